//! Direct server return: requests by way of the node, answers past it.
//!
//! ```text
//!   client ──┐          ┌── b1  weight 5     every backend holds the service's address
//!            ├─ switch ─┼── b2  weight 3     and knows no way to the client through the node
//!   node ────┘          └── b3  weight 2
//!   (lbd)
//! ```

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use lb_tests::{
    clients::{self, LongLived, Protocol, any_port, burst, summary},
    daemon::{Config, Service},
    direct::{DATAGRAM_PORT, Direct},
    eventually,
    net::{Family, Layout, Network, Topology},
    note,
    servers::{ECHO_PORT, HTTP_PORT},
    world::World,
};

const WEIGHTS: [u16; 3] = [5, 3, 2];
const CONNECTIONS: usize = 10_000;
const SPREAD: &str = "[172.16.0.0/16, \"fd00:7::/64\"]";
const ECHOES: [(Protocol, u16); 2] = [(Protocol::Tcp, ECHO_PORT), (Protocol::Udp, DATAGRAM_PORT)];
/// Datagrams are served at a port where no TCP is.
const DATAGRAM_HEALTH: &str =
    "{type: tcp, port: 7000, interval: 300ms, fast_interval: 100ms, timeout: 200ms}";

fn config(network: &Network, xdp: &'static str, forwarding: &'static str) -> Config {
    let mut config = Config::new(network, xdp);
    for (name, protocol, port) in [
        ("echo-tcp", Protocol::Tcp, ECHO_PORT),
        ("echo-udp", Protocol::Udp, DATAGRAM_PORT),
        ("web", Protocol::Tcp, HTTP_PORT),
    ] {
        let mut service = Service::new(name, protocol)
            .listen(network, 0, port)
            .backends(network, port, &WEIGHTS);
        service.forwarding = forwarding;
        if protocol == Protocol::Udp {
            service.health = DATAGRAM_HEALTH;
        }
        if forwarding == "dsr-ipip" {
            service.tunnel_source = SPREAD;
        }
        config = config.service(service);
    }
    config
}

fn world(xdp: &'static str, forwarding: &'static str) -> (World, Direct) {
    let topology = Topology {
        layout: Layout::OneArm,
        ..Topology::default()
    };
    let mut direct = None;
    let world = World::new(topology, |network| {
        direct = Some(Direct::new(network).unwrap());
        config(network, xdp, forwarding)
    })
    .unwrap();
    (world, direct.expect("made with the world"))
}

fn vip(network: &Network, family: Family, port: u16) -> SocketAddr {
    (network.vip(0, family), port).into()
}

#[test]
fn xdp_l2_weights_hold() {
    weights_hold("native", "dsr-l2");
}

#[test]
fn tc_l2_weights_hold() {
    weights_hold("off", "dsr-l2");
}

/// IPv4 clients are served by the backends' addresses of both families.
#[test]
fn xdp_tunnel_weights_hold() {
    weights_hold("native", "dsr-ipip");
}

#[test]
fn tc_tunnel_weights_hold() {
    weights_hold("off", "dsr-ipip");
}

fn weights_hold(xdp: &'static str, forwarding: &'static str) {
    let (world, _direct) = world(xdp, forwarding);
    let network = &world.network;
    let mut wrong = Vec::new();
    for (protocol, port) in ECHOES {
        for family in Family::BOTH {
            let target = vip(network, family, port);
            let sources = network.client_addresses(family);
            let result = burst(
                &network.client,
                &sources,
                10_000,
                CONNECTIONS,
                protocol,
                target,
            );
            let shares: Vec<_> = (1..=3).map(|i| result.share(&format!("b{i}"))).collect();
            let row = format!(
                "xdp {xdp:<6} {forwarding} {protocol} {family}: {:5.2} {:5.2} {:5.2} %, \
                 failures {}, {:.1?}",
                100.0 * shares[0],
                100.0 * shares[1],
                100.0 * shares[2],
                summary(&result.failures),
                result.elapsed,
            );
            note(&row);
            let near = WEIGHTS
                .iter()
                .zip(&shares)
                .all(|(weight, share)| (share - f64::from(*weight) / 10.0).abs() <= 0.02);
            if !near || !result.failures.is_empty() {
                wrong.push(row);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for service in world.daemon.services().unwrap() {
        assert_eq!(service.forwarding, forwarding, "{}", service.name);
    }
}

#[test]
fn xdp_transfers_find_their_size() {
    for forwarding in ["dsr-l2", "dsr-ipip"] {
        transfers_find_their_size("native", forwarding);
    }
}

#[test]
fn tc_transfers_find_their_size() {
    for forwarding in ["dsr-l2", "dsr-ipip"] {
        transfers_find_their_size("off", forwarding);
    }
}

/// 50 MB each way, from a client of a full frame's size, whose segments do not fit the tunnel until
/// it is told, and of 1,400 bytes.
fn transfers_find_their_size(xdp: &'static str, forwarding: &'static str) {
    const LENGTH: u64 = 50_000_000;
    let (world, _direct) = world(xdp, forwarding);
    let network = &world.network;
    for mtu in [1500, 1400] {
        let line = format!("link set dev eth0 mtu {mtu}");
        network.client.ip(&line).unwrap();
        for family in Family::BOTH {
            let source = any_port(network.client_addresses(family)[0]);
            let target = vip(network, family, HTTP_PORT);
            network.client.run(|| {
                clients::upload(source, target, LENGTH).unwrap();
                clients::download(source, target, LENGTH).unwrap();
            });
            note(format!(
                "xdp {xdp} {forwarding} {family}, client's MTU {mtu}: 50 MB up and down"
            ));
        }
    }
}

#[test]
fn xdp_datagram_too_big_for_the_tunnel_is_answered() {
    datagram_is_answered("native");
}

#[test]
fn tc_datagram_too_big_for_the_tunnel_is_answered() {
    datagram_is_answered("off");
}

/// A datagram of 1,500 bytes with its headers, whose sender allows no fragments: it hears the MTU,
/// and a datagram of just that size arrives and is answered by the backend.
fn datagram_is_answered(xdp: &'static str) {
    let (world, _direct) = world(xdp, "dsr-ipip");
    let network = &world.network;
    for family in Family::BOTH {
        let headers = if family == Family::V4 { 28 } else { 48 };
        let source = any_port(network.client_addresses(family)[0]);
        let target = vip(network, family, DATAGRAM_PORT);
        let mtu = network.client.run(|| {
            let socket = UdpSocket::bind(source).unwrap();
            socket.connect(target).unwrap();
            never_fragment(&socket, family).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            socket.send(&vec![b'x'; 1500 - headers]).unwrap();
            let told = eventually(Duration::from_secs(3), || {
                path_mtu(&socket, family).unwrap() < 1500
            });
            assert!(told, "{xdp} {family}: not answered");
            let mtu = path_mtu(&socket, family).unwrap();
            // The error of the first datagram.
            let _ = socket.take_error();
            let small = vec![b'y'; 100];
            socket.send(&small).unwrap();
            let mut answer = [0; 2000];
            assert!(socket.recv(&mut answer).unwrap() > small.len());
            // The answer, longer than the question, may not fit the way back in one piece.
            assert_eq!(
                socket.send(&vec![b'z'; mtu - headers]).unwrap(),
                mtu - headers
            );
            let error = socket.send(&vec![b'x'; 1500 - headers]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            mtu
        });
        note(format!("xdp {xdp} {family}: the tunnel takes {mtu} bytes"));
        // IPv4 clients may have been drawn an IPv6 backend.
        let expected: &[usize] = match family {
            Family::V4 => &[1480, 1460],
            Family::V6 => &[1460],
        };
        assert!(expected.contains(&mtu), "{xdp} {family}: {mtu}");
    }
}

fn never_fragment(socket: &UdpSocket, family: Family) -> io::Result<()> {
    let (level, name, value) = match family {
        Family::V4 => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        Family::V6 => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    // SAFETY: the value outlives the call, and its size is its own.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the host knows of the way to the socket's peer.
fn path_mtu(socket: &UdpSocket, family: Family) -> io::Result<usize> {
    let (level, name) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    let mut size = size_of_val(&mtu) as u32;
    // SAFETY: as above.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut mtu).cast(),
            &mut size,
        )
    };
    if done == 0 {
        Ok(mtu as usize)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A service's forwarding changes under its connections; each keeps the one it began with.
#[test]
fn xdp_forwarding_changes_under_load() {
    forwarding_changes("native");
}

#[test]
fn tc_forwarding_changes_under_load() {
    forwarding_changes("off");
}

fn forwarding_changes(xdp: &'static str) {
    let (world, _direct) = world(xdp, "dsr-l2");
    let network = &world.network;
    let mut alive = Vec::new();
    for (round, forwarding) in ["dsr-l2", "dsr-ipip", "nat", "dsr-l2"].iter().enumerate() {
        world
            .daemon
            .write_config(&config(network, xdp, forwarding).render())
            .unwrap();
        world.daemon.ctl(&["reload"]).unwrap();
        let services = world.daemon.services().unwrap();
        assert!(services.iter().all(|s| s.forwarding == *forwarding));
        for family in Family::BOTH {
            for (protocol, service) in ECHOES {
                for number in 0..5 {
                    let port = 20_000 + 100 * round as u16 + number;
                    let source = (network.client_addresses(family)[0], port).into();
                    let target = vip(network, family, service);
                    let open = LongLived::open(&network.client, protocol, source, target);
                    let what = format!("{xdp} {forwarding} {family} {protocol} {number}");
                    alive.push((open.unwrap_or_else(|e| panic!("{what}: {e}")), what));
                }
            }
        }
        // Each makes a few exchanges before the next change.
        let goals: Vec<u64> = alive.iter().map(|(one, _)| one.exchanges() + 3).collect();
        let spoken = eventually(Duration::from_secs(10), || {
            let mut open = alive.iter().zip(&goals);
            open.all(|((one, _), goal)| one.exchanges() >= *goal || !one.is_alive())
        });
        assert!(spoken, "{xdp} {forwarding}: connections are too slow");
    }
    let count = alive.len();
    for (connection, what) in alive {
        let exchanges = connection.close().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(exchanges >= 3, "{what}: {exchanges} exchanges");
    }
    note(format!(
        "xdp {xdp}: {count} connections kept their forwarding"
    ));
}
