//! ICMP through the load balancer, from real kernels and `ping`.
//!
//! The network is that of `lb_tests::net`. For path MTUs a stretch of two routers is added, with a
//! narrow link between them that neither end knows of:
//!
//! ```text
//!   far ── 1500 ── near ── 1300 ── client ── 1500 ── node ── 1500 ── backend 1
//!
//!   client ── 1500 ── node ── 1500 ── backend 1 ── 1300 ── near ── 1500 ── far
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{self, Failure, Protocol, any_port, ask_once},
    daemon::{BPFFS, Config, Service},
    eventually,
    host::{Host, cable},
    net::{Family, Network, Topology},
    note,
    servers::{Agent, ECHO_PORT, HTTP_PORT},
    world::World,
};

const XDP: &str = "native";
const TC: &str = "off";

/// Bytes per packet of the narrow link.
const NARROW: u32 = 1300;

/// Nothing listens there.
const CLOSED_PORT: u16 = 9;

fn topology() -> Topology {
    Topology {
        backends: 1,
        ..Topology::default()
    }
}

fn echo(network: &Network) -> Service {
    Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1])
}

/// Replies that `ping` got, of `count` requests; checks that each was right.
fn ping(host: &Host, to: IpAddr, count: u32, arguments: &[&str]) -> u32 {
    let (to, count) = (to.to_string(), count.to_string());
    let mut command = host.command("ping");
    command.args(["-n", "-c", &count, "-i", "0.02", "-W", "1"]);
    let output = command.args(arguments).arg(&to).output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout);
    for broken in ["wrong data", "bad checksum", "DUP", "corrupted"] {
        assert!(!text.contains(broken), "{arguments:?}: {text}");
    }
    let received = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .unwrap_or_else(|| panic!("{arguments:?}: {text}"));
    let replies = text.matches(" ttl=64").count() as u32;
    let received = received.parse().expect("a number");
    assert_eq!(received, replies, "{arguments:?}: {text}");
    received
}

#[test]
fn xdp_ping_of_service_addresses() {
    service_addresses_answer(XDP);
}

#[test]
fn tc_ping_of_service_addresses() {
    service_addresses_answer(TC);
}

fn service_addresses_answer(xdp: &'static str) {
    let world = World::new(topology(), |network| {
        Config::new(network, xdp).service(echo(network))
    })
    .unwrap();
    let network = &world.network;
    for family in Family::BOTH {
        let vip = network.vip(0, family);
        let longest = match family {
            Family::V4 => "1472",
            Family::V6 => "1452",
        };
        let mut replies = 0;
        for arguments in [
            &["-s", "0"][..],
            &["-s", "1"],
            &["-s", "56"],
            &["-s", "57", "-p", "00"],
            &["-s", "64", "-p", "ff"],
            &["-s", longest],
            &["-t", "1"],
        ] {
            let received = ping(&network.client, vip, 5, arguments);
            assert_eq!(received, 5, "{xdp} {family} {arguments:?}");
            replies += received;
        }
        // An address beside it is nobody's.
        let other = network.vip(7, family);
        assert_eq!(ping(&network.client, other, 2, &[]), 0, "{xdp} {family}");
        note(format!(
            "{xdp} {family}: {replies} of {replies} pings of {vip} answered"
        ));
    }
}

/// The entry by which an address answers ends with its last service, and comes back when somebody
/// removes it.
#[test]
fn ping_ends_with_the_service_and_is_repaired() {
    let world = World::new(topology(), |network| {
        let web = Service::new("web", Protocol::Tcp)
            .listen(network, 1, HTTP_PORT)
            .backends(network, HTTP_PORT, &[1]);
        Config::new(network, XDP)
            .service(echo(network))
            .service(web)
    })
    .unwrap();
    let (network, daemon) = (&world.network, &world.daemon);
    let answers = |n, family| ping(&network.client, network.vip(n, family), 2, &[]) == 2;
    for family in Family::BOTH {
        assert!(answers(0, family) && answers(1, family), "{family}");
    }
    let services = daemon.services().unwrap().len();
    // Address, port 0, ICMP.
    let key = "192 0 2 100 0 0 1 0";
    let map = format!("{BPFFS}/lbd/{}/SERVICES4", lb_common::abi::ABI_VERSION);
    let delete = format!("map delete pinned {map} key {key}");
    let delete: Vec<&str> = delete.split(' ').collect();
    network.node.execute("bpftool", &delete).unwrap();
    assert!(!answers(0, Family::V4));
    assert!(
        eventually(Duration::from_secs(30), || answers(0, Family::V4)),
        "not repaired"
    );
    let (_, metrics) = daemon.http("/metrics").unwrap();
    assert!(metrics.contains("lbd_repairs_total 1"), "{metrics}");
    assert_eq!(daemon.services().unwrap().len(), services);

    let rest = Config::new(network, XDP).service(echo(network));
    daemon.write_config(&rest.render()).unwrap();
    daemon.ctl(&["reload"]).unwrap();
    for family in Family::BOTH {
        assert!(answers(0, family) && !answers(1, family), "{family}");
    }
}

/// A backend on whose port nothing listens says so, and the client hears it, about its own packet.
#[test]
fn closed_udp_port_of_backend_refuses_client() {
    for (xdp, snat) in [
        (XDP, "always"),
        (XDP, "never"),
        (TC, "always"),
        (TC, "never"),
    ] {
        let world = World::new(topology(), |network| {
            let mut service = Service::new("closed", Protocol::Udp)
                .listen(network, 0, 5300)
                .backends(network, CLOSED_PORT, &[1]);
            (service.snat, service.health) = (snat, "none");
            Config::new(network, xdp).service(service)
        })
        .unwrap();
        let network = &world.network;
        for family in Family::BOTH {
            let source = any_port(network.client_addresses(family)[0]);
            let target = (network.vip(0, family), 5300).into();
            let ask = || ask_once(Protocol::Udp, source, target, "is anybody there?");
            for _ in 0..3 {
                let answer = network.client.run(ask);
                assert_eq!(answer, Err(Failure::Refused), "{xdp} {snat} {family}");
            }
        }
        note(format!(
            "{xdp}, SNAT {snat}: refused by the backend, IPv4 and IPv6"
        ));
    }
}

/// Two routers with a narrow link between them, and a host behind.
struct Stretch {
    _near: Host,
    far: Host,
}

impl Stretch {
    const FAR_V4: &str = "10.9.1.2";
    const FAR_V6: &str = "fd00:9:1::2";

    fn far(family: Family) -> IpAddr {
        let text = match family {
            Family::V4 => Self::FAR_V4,
            Family::V6 => Self::FAR_V6,
        };
        text.parse().expect("an address")
    }

    /// Puts it behind `edge`, which the node reaches by `gateway`.
    fn behind(edge: &Host, node: &Host, gateway: impl Fn(Family) -> IpAddr) -> Self {
        let (near, far) = (Host::new("near").unwrap(), Host::new("far").unwrap());
        for router in [edge, &near] {
            router
                .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
                .unwrap();
        }
        cable(edge, "narrow", &near, "narrow").unwrap();
        cable(&near, "wide", &far, "eth0").unwrap();
        for host in [edge, &near] {
            host.ip(&format!("link set dev narrow mtu {NARROW}"))
                .unwrap();
        }
        edge.ip(
            "addr add 10.9.0.1/24 dev narrow\naddr add fd00:9::1/64 dev narrow nodad\n\
             route add 10.9.1.0/24 via 10.9.0.2\nroute add fd00:9:1::/64 via fd00:9::2\n",
        )
        .unwrap();
        near.ip(
            "addr add 10.9.0.2/24 dev narrow\naddr add fd00:9::2/64 dev narrow nodad\n\
             addr add 10.9.1.1/24 dev wide\naddr add fd00:9:1::1/64 dev wide nodad\n\
             route add 0.0.0.0/0 via 10.9.0.1\nroute add ::/0 via fd00:9::1\n",
        )
        .unwrap();
        let (v4, v6) = (Self::FAR_V4, Self::FAR_V6);
        far.ip(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             route add 0.0.0.0/0 via 10.9.1.1\nroute add ::/0 via fd00:9:1::1\n"
        ))
        .unwrap();
        let (v4, v6) = (gateway(Family::V4), gateway(Family::V6));
        node.ip(&format!(
            "route add 10.9.0.0/16 via {v4}\nroute add fd00:9::/32 via {v6}\n"
        ))
        .unwrap();
        Self { _near: near, far }
    }
}

/// The path MTU that a host has learnt towards an address, if it has learnt one.
fn learnt_mtu(host: &Host, to: IpAddr) -> Option<u32> {
    let to = to.to_string();
    let output = host.execute("ip", &["route", "get", &to]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "mtu")?;
    words.get(at + 1)?.parse().ok()
}

fn web(network: &Network, snat: &'static str) -> Service {
    let mut service = Service::new("web", Protocol::Tcp).listen(network, 0, HTTP_PORT);
    service.snat = snat;
    service
}

/// Sends or fetches 50 MB; the hashes are compared there.
fn transfer(client: &Host, source: IpAddr, target: SocketAddr, upload: bool, what: &str) {
    const LENGTH: u64 = 50_000_000;
    let (transfer, way): (fn(_, _, _) -> _, _) = match upload {
        true => (clients::upload, "up"),
        false => (clients::download, "down"),
    };
    let began = Instant::now();
    client
        .run(|| transfer(any_port(source), target, LENGTH))
        .unwrap_or_else(|error| panic!("{what}, {way}: {error:#}"));
    note(format!(
        "{what}: {} MB {way} in {:.1?}, SHA-256 equal",
        LENGTH / 1_000_000,
        began.elapsed()
    ));
}

#[test]
fn xdp_narrow_link_before_the_client() {
    narrow_before_client(XDP);
}

#[test]
fn tc_narrow_link_before_the_client() {
    narrow_before_client(TC);
}

/// What is too big comes from the backend, which must hear of it.
fn narrow_before_client(xdp: &'static str) {
    for snat in ["always", "never"] {
        let mut stretch = None;
        let world = World::new(topology(), |network| {
            let gateway = |family| network.client_addresses(family)[0];
            stretch = Some(Stretch::behind(&network.client, &network.node, gateway));
            let service = web(network, snat).backends(network, HTTP_PORT, &[1]);
            Config::new(network, xdp).service(service)
        })
        .unwrap();
        let (network, stretch) = (&world.network, stretch.expect("made above"));
        for family in Family::BOTH {
            let client = Stretch::far(family);
            let target = (network.vip(0, family), HTTP_PORT).into();
            let what = format!("{xdp}, SNAT {snat}, {family}, narrow before the client");
            // Whom the backend takes for the client.
            let peer = match (snat, family) {
                ("never", _) => client,
                (_, Family::V4) => "10.1.1.1".parse().expect("an address"),
                (_, Family::V6) => "fd00:1:1::1".parse().expect("an address"),
            };
            assert_eq!(learnt_mtu(&network.backends[0], peer), None, "{what}");
            // First, because a host that knows a small MTU asks for small segments.
            transfer(&stretch.far, client, target, false, &what);
            let learnt = learnt_mtu(&network.backends[0], peer);
            assert_eq!(learnt, Some(NARROW), "{what}");
            transfer(&stretch.far, client, target, true, &what);
        }
    }
}

#[test]
fn xdp_narrow_link_before_the_backend() {
    narrow_before_backend(XDP);
}

#[test]
fn tc_narrow_link_before_the_backend() {
    narrow_before_backend(TC);
}

/// What is too big comes from the client, to which it was the service that said so.
fn narrow_before_backend(xdp: &'static str) {
    for snat in ["always", "never"] {
        let mut beyond = None;
        let world = World::new(topology(), |network| {
            let gateway = |family| network.backend(1, family);
            let stretch = Stretch::behind(&network.backends[0], &network.node, gateway);
            let agent = Agent::start(&stretch.far).unwrap();
            let mut service = web(network, snat);
            for family in Family::BOTH {
                let backend = (Stretch::far(family), HTTP_PORT).into();
                service.backends.push((backend, 1));
            }
            beyond = Some((agent, stretch));
            Config::new(network, xdp).service(service)
        })
        .unwrap();
        let network = &world.network;
        for family in Family::BOTH {
            let source = network.client_addresses(family)[0];
            let vip = network.vip(0, family);
            let what = format!("{xdp}, SNAT {snat}, {family}, narrow before the backend");
            assert_eq!(learnt_mtu(&network.client, vip), None, "{what}");
            let target = (vip, HTTP_PORT).into();
            // First, as above.
            transfer(&network.client, source, target, true, &what);
            let learnt = learnt_mtu(&network.client, vip);
            assert_eq!(learnt, Some(NARROW), "{what}");
            transfer(&network.client, source, target, false, &what);
        }
    }
}
