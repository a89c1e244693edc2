//! Backends on the node itself, and backends that draw themselves.
//!
//! ```text
//!   client ──── node (lbd, a server of its own) ──┬── b1
//!                                                 └── pod (10.244.0.2), its device not served
//! ```

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    clients::{self, Failure, Protocol, any_port, ask_once},
    daemon::{Config, Daemon, Service},
    host::{Host, cable},
    net::{Family, Network, Topology},
    servers::{Agent, ECHO_PORT, HTTP_PORT},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Where the node's own server and the pod listen.
const PLACES: [&str; 2] = ["process", "pod"];

/// Nothing listens there.
const CLOSED_PORT: u16 = 9;

fn address(network: &Network, place: &str, family: Family) -> IpAddr {
    match (place, family) {
        ("pod", Family::V4) => "10.244.0.2".parse().unwrap(),
        ("pod", Family::V6) => "fd00:244::2".parse().unwrap(),
        _ => network.node_address(family),
    }
}

fn plug_pod(network: &Network) -> Host {
    let pod = Host::new("pod").unwrap();
    cable(&network.node, "pod", &pod, "eth0").unwrap();
    // Host routes, as a CNI makes them: the node alone leads to the pod.
    network
        .node
        .ip(
            "addr add 10.244.0.1/32 dev pod\naddr add fd00:244::1/128 dev pod nodad\n\
             route add 10.244.0.2/32 dev pod\nroute add fd00:244::2/128 dev pod",
        )
        .unwrap();
    pod.ip(
        "addr add 10.244.0.2/32 dev eth0\naddr add fd00:244::2/128 dev eth0 nodad\n\
         route add 10.244.0.1/32 dev eth0\nroute add fd00:244::1/128 dev eth0\n\
         route add 0.0.0.0/0 via 10.244.0.1\nroute add ::/0 via fd00:244::1",
    )
    .unwrap();
    pod
}

fn name(place: &str, protocol: Protocol) -> String {
    format!("{place}-{protocol}").to_lowercase()
}

/// One service per place, protocol and port: their names begin with the place.
fn config(network: &Network, xdp: &'static str) -> Config {
    let mut config = Config::new(network, xdp);
    for (n, place) in (0..).zip(PLACES) {
        for (protocol, port) in [
            (Protocol::Tcp, ECHO_PORT),
            (Protocol::Udp, ECHO_PORT),
            (Protocol::Http, HTTP_PORT),
        ] {
            let mut service =
                Service::new(&name(place, protocol), protocol).listen(network, n, port);
            for family in Family::BOTH {
                let backend = (address(network, place, family), port);
                service.backends.push((backend.into(), 1));
            }
            config = config.service(service);
        }
    }
    config
}

fn backends_on_the_node(xdp: &'static str) {
    let topology = Topology {
        backends: 1,
        ..Topology::default()
    };
    let network = Network::new(topology).unwrap();
    let pod = plug_pod(&network);
    let _agents = [&network.node, &pod].map(|host| Agent::start(host).unwrap());
    let daemon = Daemon::start(&network.node, &config(&network, xdp)).unwrap();
    daemon.wait_all_healthy().unwrap();
    for (n, place) in (0..).zip(PLACES) {
        for family in Family::BOTH {
            let what = format!("{xdp} {place} {family}");
            let source = any_port(network.client_addresses(family)[3]);
            let to = |port| SocketAddr::from((network.vip(n, family), port));
            network.client.run(|| {
                for protocol in PROTOCOLS {
                    let answer = ask_once(protocol, source, to(ECHO_PORT), "who am I")
                        .unwrap_or_else(|e| panic!("{what} {protocol}: {e}"));
                    let seen = answer.seen_from.unwrap().ip();
                    assert_eq!(seen, source.ip(), "{what}: the client's address is kept");
                }
                clients::upload(source, to(HTTP_PORT), 5_000_000).unwrap();
                clients::download(source, to(HTTP_PORT), 5_000_000).unwrap();
                clients::datagrams(source, to(ECHO_PORT), 500).unwrap();
            });
            // Without the VIP, the same server answers in its own name.
            let direct = (address(&network, place, family), ECHO_PORT).into();
            network.client.run(|| {
                ask_once(Protocol::Tcp, source, direct, "hello")
                    .unwrap_or_else(|e| panic!("{what}, direct: {e}"));
            });
        }
    }
}

#[test]
fn xdp_backends_on_the_node_answer() {
    backends_on_the_node("native");
}

#[test]
fn tc_backends_on_the_node_answer() {
    backends_on_the_node("off");
}

/// Nothing listens on the backends' port: the client hears it, about its own packet.
fn closed_ports_on_the_node_refuse(xdp: &'static str) {
    let topology = Topology {
        backends: 1,
        ..Topology::default()
    };
    let network = Network::new(topology).unwrap();
    let _pod = plug_pod(&network);
    let mut config = Config::new(&network, xdp);
    for (n, place) in (0..).zip(PLACES) {
        let mut service = Service::new(place, Protocol::Udp).listen(&network, n, 5300);
        for family in Family::BOTH {
            let backend = (address(&network, place, family), CLOSED_PORT);
            service.backends.push((backend.into(), 1));
        }
        service.health = "none";
        config = config.service(service);
    }
    let daemon = Daemon::start(&network.node, &config).unwrap();
    daemon.wait_all_healthy().unwrap();
    for (n, place) in (0..).zip(PLACES) {
        for family in Family::BOTH {
            let source = any_port(network.client_addresses(family)[3]);
            let target = (network.vip(n, family), 5300).into();
            let ask = || ask_once(Protocol::Udp, source, target, "is anybody there?");
            for _ in 0..3 {
                let answer = network.client.run(ask);
                assert_eq!(answer, Err(Failure::Refused), "{xdp} {place} {family}");
            }
        }
    }
}

#[test]
fn xdp_closed_ports_on_the_node_refuse() {
    closed_ports_on_the_node_refuse("native");
}

#[test]
fn tc_closed_ports_on_the_node_refuse() {
    closed_ports_on_the_node_refuse("off");
}

/// The only backend is the client itself.
fn backend_reaches_itself(xdp: &'static str) {
    let topology = Topology {
        backends: 1,
        ..Topology::default()
    };
    let network = Network::new(topology).unwrap();
    let _agent = Agent::start(&network.backends[0]).unwrap();
    let mut config = Config::new(&network, xdp);
    for protocol in PROTOCOLS {
        let service = Service::new(&name("self", protocol), protocol)
            .listen(&network, 0, ECHO_PORT)
            .backends(&network, ECHO_PORT, &[1]);
        config = config.service(service);
    }
    let daemon = Daemon::start(&network.node, &config).unwrap();
    daemon.wait_all_healthy().unwrap();
    for family in Family::BOTH {
        let source = any_port(network.backend(1, family));
        let target = (network.vip(0, family), ECHO_PORT).into();
        for protocol in PROTOCOLS {
            let answer = network.backends[0]
                .run(|| ask_once(protocol, source, target, "who am I"))
                .unwrap_or_else(|e| panic!("{xdp} {family} {protocol}: {e}"));
            let seen = answer.seen_from.unwrap().ip();
            assert_ne!(seen, source.ip(), "{xdp} {family} {protocol}");
        }
    }
}

#[test]
fn xdp_backend_that_draws_itself_answers_itself() {
    backend_reaches_itself("native");
}

#[test]
fn tc_backend_that_draws_itself_answers_itself() {
    backend_reaches_itself("off");
}
