//! XDP goes from a device that packets come by.

use std::{
    net::UdpSocket,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use aya::util::online_cpus;
use lb_common::abi::{Backend, PortKind, Service, backend_state, port_bit, protocol};

use super::super::{
    Datapath, Listen, OBJECT,
    attach::{Hooks, calm, unpin},
    devices::{self, Device},
    load,
    sys::Link,
    testing::{ip_commands, isolated, sh},
    undo::Undo,
};
use super::{World, pins};
use crate::model::{Protocol, XdpMode};

const VIP: &str = "198.51.100.1:53";
const SLOT: u32 = 5;

/// Has datagrams to [`VIP`] sent by `far` reach `one`, and lbd send them back out of there.
fn balance(world: &World) {
    ip_commands(
        "link set one address 02:00:00:00:00:01
         link set far address 02:00:00:00:00:02
         address add 192.0.2.1/24 dev one
         address add 192.0.2.2/32 dev far
         route add 198.51.100.1 dev far src 192.0.2.2
         neighbour add 198.51.100.1 dev far lladdr 02:00:00:00:00:01
         neighbour add 192.0.2.3 dev one lladdr 02:00:00:00:00:02",
    );
    let kernel = world.start();
    let service = Service {
        id: 3,
        table: 6,
        ..Service::default()
    };
    let listen = Listen {
        address: VIP.parse().unwrap(),
        protocol: Protocol::Udp,
    };
    let backend = Backend {
        generation: 1,
        state: backend_state::ACTIVE,
        address: [u32::from_ne_bytes([192, 0, 2, 3]), 0, 0, 0],
        port: 53u16.to_be(),
        family: 4,
        protocol: protocol::UDP,
        service: service.id,
        ..Backend::default()
    };
    kernel.set_backend(SLOT, &backend).unwrap();
    kernel.set_table(service.table, &[SLOT]).unwrap();
    kernel.set_service(listen, &service).unwrap();
    let (index, bit) = port_bit(PortKind::ServiceUdp, 53);
    kernel.set_port_word(index, bit).unwrap();
}

fn hooks(world: &World, bpffs: &Path) -> Hooks {
    let limits = &world.node.limits;
    let ebpf = load::load_maps(OBJECT, &pins(bpffs), limits, None, None).unwrap();
    Hooks::load(ebpf, &bpffs.join("lbd")).unwrap()
}

fn one() -> Device {
    let all = devices::list().unwrap();
    all.into_iter().find(|d| d.name == "one").unwrap()
}

/// Set when it goes, also by a panic.
struct Done<'f>(&'f AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_passes_all_stands_in_before_xdp_goes() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        let before = world.link("one", "xdp").unwrap();
        let pin = bpffs.join(format!("lbd/links/{}-xdp", before.ifindex));
        calm(&Link::from_pin(&pin).unwrap().unwrap()).unwrap();
        let now = world.link("one", "xdp").unwrap();
        assert_eq!((now.id, now.ifindex), (before.id, before.ifindex));
        assert_ne!(now.prog_id, before.prog_id);
        let shown = sh("ip -d link show dev one");
        assert!(
            shown.contains(&format!("prog/xdp id {}", now.prog_id)),
            "{shown}"
        );
        let repaired = kernel.repair_attachments().unwrap();
        assert_eq!(repaired, ["one: replaced the program at xdp"]);
        drop(kernel);
        unpin(&pin).unwrap();
        assert!(!pin.exists());
        assert_eq!(one().xdp, None);
    });
}

/// A veth with GRO keeps on receiving while XDP goes, and what receives forgets its device meanwhile:
/// programs that are under way then bring the kernel down. See [`calm`].
#[test]
fn xdp_goes_under_a_flood() {
    const ROUNDS: u32 = 20;
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Off);
        sh("ethtool -K one gro on; ethtool -K far gro on");
        balance(&world);
        let mut hooks = hooks(&world, bpffs);
        let mut undo = Undo::open(&world.node.state_dir).unwrap();
        let mut serve = |mode| {
            let (served, _) = hooks.serve(&one(), mode, &mut undo).unwrap();
            served.name()
        };
        let done = AtomicBool::new(false);
        let flood = || {
            let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
            while !done.load(Ordering::Relaxed) {
                // ICMP errors about earlier ones are told here.
                let _ = socket.send_to(b"flood", VIP);
            }
        };
        thread::scope(|scope| {
            let _last = Done(&done);
            for _ in 1..online_cpus().unwrap().len().max(2) {
                scope.spawn(flood);
            }
            for _ in 0..ROUNDS {
                assert_eq!(serve(XdpMode::Native), "xdp native");
                assert_eq!(serve(XdpMode::Off), "tc");
                assert_eq!(one().xdp, None);
            }
        });
        drop(hooks);
        let kernel = world.start();
        assert!(kernel.counters(SLOT).unwrap().packets_in > 1000);
    });
}
