//! The test network itself, without a load balancer: plain forwarding, real servers, real failures.

use std::time::{Duration, Instant};

use lb_tests::{
    clients::{self, Failure, Load, LongLived, Protocol, any_port, ask_once, burst},
    eventually,
    net::{Family, Layout, Network, Topology},
    note,
    servers::{Agent, ECHO_PORT, HTTP_PORT, start_all},
};

fn network(layout: Layout) -> (Network, Vec<Agent>) {
    let network = Network::new(Topology {
        layout,
        ..Topology::default()
    })
    .unwrap();
    let agents = start_all(&network.backends).unwrap();
    (network, agents)
}

#[test]
fn harness_forwarding_reaches_every_backend() {
    for layout in [Layout::Direct, Layout::Switched, Layout::OneArm] {
        let (network, _agents) = network(layout);
        for family in Family::BOTH {
            let source = any_port(network.client_addresses(family)[0]);
            for i in 1..=3 {
                for (protocol, port) in [
                    (Protocol::Tcp, ECHO_PORT),
                    (Protocol::Udp, ECHO_PORT),
                    (Protocol::Http, HTTP_PORT),
                ] {
                    let target = (network.backend(i, family), port).into();
                    let answer = network
                        .client
                        .run(|| ask_once(protocol, source, target, "hello"));
                    let answer =
                        answer.unwrap_or_else(|e| panic!("{layout:?} {protocol} {target}: {e}"));
                    assert_eq!(answer.backend, format!("b{i}"));
                    if let Some(peer) = answer.seen_from {
                        assert_eq!(peer.ip(), source.ip());
                    }
                }
            }
        }
    }
}

#[test]
fn harness_burst_20000_connections() {
    let (network, _agents) = network(Layout::Direct);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in Family::BOTH {
            let sources = network.client_addresses(family);
            let target = (network.backend(1, family), ECHO_PORT).into();
            let result = burst(&network.client, &sources, 10_000, 20_000, protocol, target);
            note(format!("{protocol} {family}: {:.1?}", result.elapsed));
            assert_eq!(clients::summary(&result.failures), "none");
            assert_eq!(result.by_backend["b1"], 20_000);
            assert_eq!(result.by_source.len(), 20_000);
        }
    }
}

#[test]
fn harness_bulk_is_checked_both_ways() {
    let (network, _agents) = network(Layout::Direct);
    for family in Family::BOTH {
        let source = any_port(network.client_addresses(family)[0]);
        let target = (network.backend(1, family), HTTP_PORT).into();
        let began = Instant::now();
        network.client.run(|| {
            clients::upload(source, target, 20_000_000).unwrap();
            clients::download(source, target, 20_000_000).unwrap();
        });
        note(format!("{family}: 2 × 20 MB in {:.1?}", began.elapsed()));
    }
}

#[test]
fn harness_failures_are_told_apart() {
    let (network, mut agents) = network(Layout::Switched);
    let source = any_port(network.client_addresses(Family::V4)[0]);
    let target = |i| (network.backend(i, Family::V4), ECHO_PORT).into();
    let ask = |i| {
        network
            .client
            .run(|| ask_once(Protocol::Tcp, source, target(i), "x"))
    };

    let long = LongLived::open(&network.client, Protocol::Tcp, source, target(1)).unwrap();
    agents[0].kill();
    assert_eq!(ask(1), Err(Failure::Refused));
    assert!(eventually(Duration::from_secs(1), || !long.is_alive()));
    assert!(long.close().unwrap_err().contains("after opening"));
    agents[0].restart().unwrap();
    assert_eq!(ask(1).unwrap().backend, "b1");

    // Of a neighbour that it knows the node waits for longer than the client does, as a rule.
    assert_eq!(ask(2).unwrap().backend, "b2");
    network.cut_off(2, true).unwrap();
    let answer = ask(2);
    let silent = matches!(answer, Err(Failure::Timeout | Failure::Unreachable));
    assert!(silent, "{answer:?}");
    network.cut_off(2, false).unwrap();
    assert!(eventually(Duration::from_secs(5), || ask(2).is_ok()));
}

#[test]
fn harness_load_keeps_its_rate() {
    let (network, mut agents) = network(Layout::Direct);
    let target = (network.backend(1, Family::V6), HTTP_PORT).into();
    let began = Instant::now();
    let load = Load::start(
        &network.client,
        &network.client_addresses(Family::V6),
        Protocol::Http,
        target,
        500,
        Duration::from_secs(1),
    );
    std::thread::sleep(Duration::from_secs(1));
    let killed = Instant::now();
    agents[0].kill();
    std::thread::sleep(Duration::from_millis(500));
    let expected = 500.0 * began.elapsed().as_secs_f64();
    let report = load.stop();
    note(format!(
        "{} connections, {}",
        report.attempts.len(),
        report.failure_summary()
    ));
    let share = report.attempts.len() as f64 / expected;
    assert!((0.8..1.2).contains(&share), "not {expected:.0} connections");
    assert!(report.failures().all(|a| a.ended >= killed));
    assert!(report.failures().count() > 100);
}
