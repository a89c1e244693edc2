//! The daemon's side of the kernel, against this machine's kernel.

mod detach;
mod takeover;

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_common::abi::{ABI_VERSION, Backend, Config, Service, UDP_PLACE, backend_state};

use super::{
    Attachment, Datapath, Listen, OBJECT,
    attach::Hooks,
    devices,
    kernel::{Kernel, cleanup},
    load,
    sys::{self, Link},
    testing::{TempDir, ip_commands, isolated, sh},
    undo::Undo,
};
use crate::model::{Interfaces, Limits, Node, Protocol, SnatPool, Timeouts, XdpMode};

/// A node with the devices `one` (whose peer is `far`) and `two`, and a place for its state.
struct World {
    node: Node,
    _state: TempDir,
}

impl World {
    fn new(bpffs: &Path, interfaces: &[&str], xdp: XdpMode) -> Self {
        ip_commands(
            "link set lo up
             link add one type veth peer name far
             link add two type veth peer name farther
             link set one up
             link set far up
             link set two up
             link set farther up",
        );
        let state = TempDir::new();
        let node = Node {
            interfaces: Interfaces::Named(interfaces.iter().map(|&n| n.to_owned()).collect()),
            xdp,
            state_dir: state.0.clone(),
            bpffs: bpffs.to_owned(),
            limits: Limits {
                connections: 1000,
                handshakes: 1000,
                services: 64,
                backends: 5000,
                ..Limits::default()
            },
            timeouts: Timeouts::default(),
            snat: SnatPool::default(),
        };
        Self {
            node,
            _state: state,
        }
    }

    fn start(&self) -> Kernel {
        Kernel::start(&self.node).unwrap()
    }

    fn refusal(&self) -> String {
        format!("{:#}", Kernel::start(&self.node).err().unwrap())
    }

    fn link(&self, device: &str, hook: &str) -> Option<sys::LinkInfo> {
        let index = sh(&format!(
            "cat /sys/class/net/{device}/ifindex 2>/dev/null || ip -o link show dev {device} | cut -d: -f1"
        ));
        let index = index.trim();
        let pin = self.node.bpffs.join(format!("lbd/links/{index}-{hook}"));
        Some(Link::from_pin(&pin).unwrap()?.info)
    }
}

/// Somebody else's XDP program: any will do, so one of ours, attached without a link.
struct Stranger {
    program: u32,
    pin: PathBuf,
}

impl World {
    /// The program that runs on `one`.
    fn stranger(&self) -> Stranger {
        let program = self.link("one", "xdp").unwrap().prog_id;
        let pin = self.node.bpffs.join("stranger");
        sh(&format!("bpftool prog pin id {program} {}", pin.display()));
        Stranger { program, pin }
    }
}

impl Stranger {
    fn attach(&self, device: &str) {
        sh(&format!(
            "ip link set dev {device} xdp pinned {}",
            self.pin.display()
        ));
    }
}

/// The hooks of a device that have links, by the ends of their pins' names.
fn linked_hooks() -> &'static [&'static str] {
    match sys::has_tcx() {
        true => &["xdp", "tc", "egress"],
        false => &["xdp"],
    }
}

/// Where the maps are.
fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("lbd/{ABI_VERSION}"))
}

fn attached(kernel: &Kernel) -> Vec<(String, String)> {
    let words = |(name, how): (String, Attachment)| (name, how.to_string());
    kernel.attachments().into_iter().map(words).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, how): &(&str, &str)| ((*name).to_owned(), (*how).to_owned());
    expected.iter().map(owned).collect()
}

fn listen(address: &str) -> Listen {
    Listen {
        address: address.parse::<SocketAddr>().unwrap(),
        protocol: Protocol::Tcp,
    }
}

fn backend(generation: u32) -> Backend {
    Backend {
        generation,
        state: backend_state::ACTIVE,
        ..Backend::default()
    }
}

#[test]
fn a_restart_adopts_maps_and_replaces_programs_in_place() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        let first = world.start();
        assert_eq!(attached(&first), pairs(&[("one", "xdp native")]));
        let config = first.config().unwrap();
        assert!([100, 250, 300, 1000].contains(&config.hz), "{config:?}");
        assert_eq!(config.epoch, 1);

        let services = [listen("192.0.2.10:80"), listen("[2001:db8::10]:80")];
        let service = Service {
            id: 3,
            table: 6,
            ..Service::default()
        };
        for listen in services {
            first.set_service(listen, &service).unwrap();
        }
        let echoes = services.map(|listen| listen.address.ip());
        for address in echoes {
            first.set_echo(address).unwrap();
        }
        first.set_backend(4999, &backend(7)).unwrap();
        first.set_port_word(17, 0xff).unwrap();
        first.set_table(6, &[4, 5, 6]).unwrap();
        let links = || {
            linked_hooks()
                .iter()
                .map(|hook| world.link("one", hook).unwrap())
        };
        let before: Vec<_> = links().collect();
        assert!(world.refusal().contains("another lbd is running"));
        drop(first);
        assert!(
            before
                .iter()
                .map(|link| link.id)
                .eq(links().map(|link| link.id))
        );

        let second = world.start();
        for (before, now) in before.iter().zip(links()) {
            assert_eq!(before.id, now.id);
            assert_ne!(before.prog_id, now.prog_id);
        }
        assert_eq!(second.config().unwrap(), Config { epoch: 2, ..config });
        let found: BTreeSet<_> = second
            .services()
            .unwrap()
            .into_iter()
            .map(|(l, _)| l)
            .collect();
        assert_eq!(found, services.into());
        let found: BTreeSet<_> = second.echoes().unwrap().into_iter().collect();
        assert_eq!(found, echoes.into());
        for address in echoes {
            second.remove_echo(address).unwrap();
            second.remove_echo(address).unwrap();
        }
        assert!(second.echoes().unwrap().is_empty());
        assert_eq!(second.services().unwrap().len(), 2);
        assert_eq!(second.backends().unwrap(), [(4999, backend(7))]);
        assert_eq!(second.port_words().unwrap()[17], 0xff);
        assert_eq!(second.port_words().unwrap().len(), 4096);
        assert_eq!(second.table(6).unwrap(), Some(vec![4, 5, 6]));
        assert!(second.repair_attachments().unwrap().is_empty());
    });
}

#[test]
fn udp_gets_places_whenever_flows_were_counted() {
    isolated(|bpffs| {
        let kernel = World::new(bpffs, &["one"], XdpMode::Off).start();
        let given = || kernel.config().unwrap().udp_places;
        assert_eq!(given() / UDP_PLACE, 0, "before the first count");
        let cpus = aya::util::online_cpus().unwrap().len() as u32;
        let mut words = BTreeSet::new();
        for _ in 0..3 {
            kernel.scan_flows(&Timeouts::default()).unwrap();
            // Of 1000 connections.
            assert_eq!(given() / UDP_PLACE, 500 / cpus);
            assert!(words.insert(given()), "{words:?}");
        }
        let last = given();
        kernel.raise_epoch().unwrap();
        kernel.set_snat(&SnatPool::default()).unwrap();
        kernel.repair_attachments().unwrap();
        assert_eq!(given(), last, "others write the config too");
    });
}

#[test]
fn tables_of_any_size_are_swapped() {
    isolated(|bpffs| {
        let kernel = World::new(bpffs, &["one"], XdpMode::Off).start();
        assert_eq!(kernel.table(0).unwrap(), None);
        for size in [1u32, 1009, 65537, 0, 3] {
            let slots: Vec<u32> = (0..size).rev().collect();
            kernel.set_table(127, &slots).unwrap();
            assert_eq!(kernel.table(127).unwrap(), Some(slots));
        }
        kernel.remove_table(127).unwrap();
        kernel.remove_table(127).unwrap();
        assert_eq!(kernel.table(127).unwrap(), None);
        let refusal = format!("{:#}", kernel.set_table(128, &[1]).unwrap_err());
        assert!(refusal.starts_with("map TABLES: update"), "{refusal}");
        kernel.remove_service(listen("192.0.2.1:1")).unwrap();
        kernel.clear_counters(4999).unwrap();
        assert_eq!(kernel.counters(4999).unwrap(), Default::default());
        assert_eq!(kernel.drops().unwrap().len(), 64);
        assert_eq!(kernel.capacity().services, 64);
        assert_eq!(kernel.capacity().backends, 5000);
    });
}

#[test]
fn a_detached_program_is_attached_again() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        for hook in linked_hooks() {
            let id = world.link("one", hook).unwrap().id;
            sh(&format!("bpftool link detach id {id}"));
            assert_eq!(world.link("one", hook).unwrap().ifindex, 0);
            assert_eq!(kernel.repair_attachments().unwrap().len(), 1, "{hook}");
            let again = world.link("one", hook).unwrap().id;
            assert_ne!(again, id);
            std::fs::remove_file(bpffs.join("lbd/links").join(pin_of(&world, hook))).unwrap();
            // The kernel detaches a link without pin when it finds the time.
            sh(&format!(
                "for _ in $(seq 500); do bpftool link show id {again} >/dev/null 2>&1 || exit 0; sleep 0.02; done; exit 1"
            ));
            assert_eq!(kernel.repair_attachments().unwrap().len(), 1, "{hook}");
        }
        assert_eq!(attached(&kernel), pairs(&[("one", "xdp native")]));
    });
}

/// As on a kernel before 6.6.
#[test]
fn without_tcx_filters_do() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        sh("tc qdisc add dev two clsact");
        let pins = bpffs.join("lbd");
        std::fs::create_dir_all(pins.join("1")).unwrap();
        let load = || {
            let limits = &world.node.limits;
            let ebpf = load::load_maps(OBJECT, &pins.join("1"), limits, None, None).unwrap();
            Hooks::load(ebpf, &pins).unwrap().without_tcx()
        };
        let device = |name| {
            devices::list()
                .unwrap()
                .into_iter()
                .find(|d| d.name == name)
                .unwrap()
        };
        let shown = |name| sh(&format!("tc filter show dev {name} ingress"));
        let mut undo = Undo::open(&world.node.state_dir).unwrap();

        let mut hooks = load();
        for name in ["one", "two"] {
            let (_, changed) = hooks.serve(&device(name), XdpMode::Off, &mut undo).unwrap();
            let expected = [
                format!("{name}: attached at tc ingress with lbd_tc"),
                format!("{name}: attached at tc egress with lbd_egress"),
            ];
            assert_eq!(changed, expected);
            assert!(shown(name).contains("lbd_tc"), "{}", shown(name));
        }
        let before = shown("one");
        drop(hooks);
        assert_eq!(shown("one"), before);

        let mut hooks = load();
        let mut changes = |xdp| hooks.serve(&device("one"), xdp, &mut undo).unwrap().1;
        assert_eq!(
            changes(XdpMode::Off),
            [
                "one: replaced the program at tc ingress with lbd_tc",
                "one: replaced the program at tc egress with lbd_egress",
            ]
        );
        assert!(changes(XdpMode::Off).is_empty());
        let expected = [
            "one: attached at xdp native",
            "one: replaced the program at tc ingress with lbd_handover",
        ];
        assert_eq!(changes(XdpMode::Native), expected);
        assert_eq!(shown("one").matches("bpf chain 0 handle").count(), 1);
        sh("tc filter del dev one ingress");
        assert_eq!(
            changes(XdpMode::Native),
            ["one: attached at tc ingress with lbd_handover"]
        );
        drop(hooks);

        cleanup(&world.node).unwrap();
        let disciplines = sh("tc qdisc show");
        assert!(
            !disciplines.contains("clsact ffff: dev one"),
            "{disciplines}"
        );
        assert!(
            disciplines.contains("clsact ffff: dev two"),
            "{disciplines}"
        );
        assert_eq!(shown("two"), "");
        assert_eq!(cleanup(&world.node).unwrap(), ["nothing to remove"]);
    });
}

/// A veth takes redirected frames once its peer runs XDP or GRO.
#[test]
fn devices_that_take_redirected_frames_are_known() {
    isolated(|bpffs| {
        if devices::redirect_targets().is_none() {
            // Past libtest's capture.
            let why = "left out: this kernel does not tell which devices take redirected frames";
            let _ = writeln!(std::io::stderr(), "{why}");
            return;
        }
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        let index = |name| {
            devices::list()
                .unwrap()
                .into_iter()
                .find(|d| d.name == name)
                .unwrap()
                .index
        };
        let direct = || {
            let map = sys::Map::from_pin(&pins(bpffs).join("DEVICES")).unwrap();
            let mut direct = 0;
            let redirect = |word: &&[u8]| {
                let word = u32::from_ne_bytes((**word).try_into().unwrap());
                word & lb_common::abi::link::REDIRECT != 0
            };
            map.lookup_batch(64, |_, words| {
                direct += words.chunks(4).filter(redirect).count();
                Ok(())
            })
            .unwrap();
            direct
        };
        let targets = || devices::redirect_targets().unwrap();
        assert!(targets().contains(&index("far")) && !targets().contains(&index("two")));
        let before = direct();
        sh("ethtool -K farther gro on");
        assert!(targets().contains(&index("two")));
        let epoch = kernel.config().unwrap().epoch;
        kernel.repair_attachments().unwrap();
        assert_eq!(direct(), before + 1);
        assert_eq!(kernel.config().unwrap().epoch, epoch + 1);
        sh("ethtool -K farther gro off");
        let epoch = kernel.config().unwrap().epoch;
        kernel.raise_epoch().unwrap();
        assert_eq!(kernel.config().unwrap().epoch, epoch + 1);
        assert_eq!(direct(), before);
    });
}

fn pin_of(world: &World, hook: &str) -> String {
    format!("{}-{hook}", world.link("one", hook).unwrap().ifindex)
}

#[test]
fn devices_come_and_go() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one", "two"], XdpMode::Native);
        let kernel = world.start();
        ip_commands("link del two");
        kernel.repair_attachments().unwrap();
        assert_eq!(
            attached(&kernel),
            pairs(&[("one", "xdp native"), ("two", "missing")])
        );
        let pins = std::fs::read_dir(bpffs.join("lbd/links")).unwrap().count();
        assert_eq!(pins, linked_hooks().len());
        ip_commands("link add two type veth peer name farther\nlink set two up");
        let repaired = kernel.repair_attachments().unwrap();
        assert!(
            repaired.iter().any(|r| r == "two: attached at xdp native"),
            "{repaired:?}"
        );
        assert!(kernel.repair_attachments().unwrap().is_empty());
        drop(kernel);

        let fewer = World {
            node: Node {
                interfaces: Interfaces::Named(vec!["two".to_owned()]),
                ..world.node.clone()
            },
            _state: TempDir::new(),
        };
        let kernel = fewer.start();
        assert_eq!(attached(&kernel), pairs(&[("two", "xdp native")]));
        assert!(world.link("one", "xdp").is_none());
        drop(kernel);
        ip_commands("link del two");
        let refusal = fewer.refusal();
        assert!(
            refusal.contains("no device two; this node has"),
            "{refusal}"
        );
    });
}

#[test]
fn another_program_is_left_alone() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Native);
        drop(world.start());
        let stranger = world.stranger();
        cleanup(&world.node).unwrap();
        stranger.attach("one");
        stranger.attach("far");

        world.node.xdp = XdpMode::Auto;
        let kernel = world.start();
        let tc = "tc (another XDP program is attached)";
        assert_eq!(attached(&kernel), pairs(&[("one", tc)]));
        assert!(kernel.repair_attachments().unwrap().is_empty());
        let shown = sh("ip -d link show dev one");
        assert!(
            shown.contains(&format!("prog/xdp id {} ", stranger.program)),
            "{shown}"
        );

        ip_commands("link set dev one xdp off");
        let repaired = kernel.repair_attachments().unwrap();
        let expected = [
            "one: attached at xdp native",
            "one: replaced the program at tc ingress with lbd_handover",
        ];
        assert_eq!(repaired, expected);
        drop(kernel);

        cleanup(&world.node).unwrap();
        stranger.attach("one");
        let strict = World {
            node: Node {
                xdp: XdpMode::Native,
                ..world.node.clone()
            },
            _state: TempDir::new(),
        };
        let refusal = strict.refusal();
        assert!(
            refusal.contains("another XDP program is attached"),
            "{refusal}"
        );
    });
}

#[test]
fn a_device_that_another_program_took_is_refused_until_it_is_free() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one", "two"], XdpMode::Native);
        let kernel = world.start();
        let stranger = world.stranger();
        ip_commands(
            "link del two
             link add two type veth peer name farther
             link set two up",
        );
        stranger.attach("two");
        kernel.repair_attachments().unwrap();
        let [(_, one), (name, Attachment::Refused(reason))] = &kernel.attachments()[..] else {
            panic!("{:?}", kernel.attachments());
        };
        assert_eq!(*one, Attachment::Served("xdp native".to_owned()));
        let is_told = reason.contains("two: another XDP program is attached");
        assert!(name == "two" && is_told, "{name}: {reason}");

        ip_commands("link set dev two xdp off");
        kernel.repair_attachments().unwrap();
        let served = pairs(&[("one", "xdp native"), ("two", "xdp native")]);
        assert_eq!(attached(&kernel), served);
    });
}

#[test]
fn the_configured_mode_is_used() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Generic);
        for (mode, expected) in [
            (XdpMode::Generic, "xdp generic"),
            (XdpMode::Native, "xdp native"),
            (XdpMode::Off, "tc"),
            (XdpMode::Native, "xdp native"),
        ] {
            world.node.xdp = mode;
            let kernel = world.start();
            assert_eq!(attached(&kernel), pairs(&[("one", expected)]));
            assert_eq!(world.link("one", "xdp").is_some(), mode != XdpMode::Off);
        }
    });
}

#[test]
fn auto_takes_xdp_on_veth_only_where_the_other_end_has_it() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Native);
        drop(world.start());
        let stranger = world.stranger();
        world.node.xdp = XdpMode::Auto;
        let kernel = world.start();
        let tc = "tc (a veth device loses what XDP sends back unless its other end has XDP too)";
        assert_eq!(attached(&kernel), pairs(&[("one", tc)]));
        assert!(kernel.repair_attachments().unwrap().is_empty());

        stranger.attach("far");
        let repaired = kernel.repair_attachments().unwrap();
        let expected = [
            "one: attached at xdp native",
            "one: replaced the program at tc ingress with lbd_handover",
        ];
        assert_eq!(repaired, expected);
        assert_eq!(attached(&kernel), pairs(&[("one", "xdp native")]));

        ip_commands("link set dev far xdp off");
        let repaired = kernel.repair_attachments().unwrap();
        let expected = [
            "one: detached from xdp",
            "one: replaced the program at tc ingress with lbd_tc",
        ];
        assert_eq!(repaired, expected);
        assert_eq!(attached(&kernel), pairs(&[("one", tc)]));
    });
}

#[test]
fn auto_takes_no_generic_xdp_above_other_devices() {
    isolated(|bpffs| {
        ip_commands("link add br0 type bridge\nlink set br0 up");
        let mut world = World::new(bpffs, &["br0"], XdpMode::Generic);
        let kernel = world.start();
        assert_eq!(attached(&kernel), pairs(&[("br0", "xdp generic")]));
        drop(kernel);
        world.node.xdp = XdpMode::Auto;
        let kernel = world.start();
        let attached = attached(&kernel);
        let [(_, hook)] = attached.as_slice() else {
            panic!("{attached:?}");
        };
        assert!(hook.starts_with("tc (xdp native: "), "{hook}");
        assert!(hook.ends_with("the devices below have merged)"), "{hook}");
        assert!(world.link("br0", "xdp").is_none());
        assert!(kernel.repair_attachments().unwrap().is_empty());
    });
}

#[test]
fn generic_xdp_is_not_for_packets_with_half_a_checksum() {
    isolated(|_| {
        ip_commands(
            "link add one type veth peer name far
             link add br0 type bridge",
        );
        let against = |name: &str| {
            let devices = devices::list().unwrap();
            let device = devices.iter().find(|device| device.name == name).unwrap();
            device.against_generic()
        };
        let unsummed = "generic XDP is shown packets whose checksums are still to be computed";
        assert_eq!(against("one"), Some(unsummed));
        let merged = "generic XDP is shown what the devices below have merged";
        assert_eq!(against("br0"), Some(merged));
        // As of hardware.
        assert_eq!(against("lo"), None);
    });
}

#[test]
fn a_map_that_is_not_ours_is_refused() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Off);
        drop(world.start());
        let pin = pins(bpffs).join("BACKENDS");
        std::fs::remove_file(&pin).unwrap();
        let pin = pin.display();
        sh(&format!(
            "bpftool map create {pin} type array key 4 value 8 entries 9 name x"
        ));
        let refusal = world.refusal();
        assert!(
            refusal.contains("map BACKENDS") && refusal.contains("--cleanup"),
            "{refusal}"
        );
    });
}

#[test]
fn cleanup_removes_everything_once() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        sh("echo 0 > /proc/sys/net/ipv4/conf/one/forwarding");
        let elsewhere = TempDir::new();
        std::fs::create_dir(elsewhere.0.join("lbd")).unwrap();
        std::fs::write(elsewhere.0.join("lbd/file"), "someone's").unwrap();
        let mistaken = Node {
            bpffs: elsewhere.0.clone(),
            ..world.node.clone()
        };
        assert_eq!(cleanup(&mistaken).unwrap(), ["nothing to remove"]);
        assert!(elsewhere.0.join("lbd/file").exists());
        assert_eq!(cleanup(&world.node).unwrap(), ["nothing to remove"]);
        let kernel = world.start();
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/one/forwarding").trim(), "1");
        let refusal = format!("{:#}", cleanup(&world.node).unwrap_err());
        assert!(refusal.contains("another lbd is running"), "{refusal}");
        drop(kernel);
        let removed = cleanup(&world.node).unwrap();
        assert!(removed.len() > 2, "{removed:?}");
        assert!(!bpffs.join("lbd").exists());
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/one/forwarding").trim(), "0");
        assert!(!sh("ip -d link show dev one").contains("xdp"));
        assert_eq!(cleanup(&world.node).unwrap(), ["nothing to remove"]);
    });
}
