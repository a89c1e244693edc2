//! Shares of 20,000 connections against weights.
//!
//! ```text
//!                            ┌── b1  weight 5
//!   client ──── node (lbd) ──┼── b2  weight 3
//!                            ├── b3  weight 2
//!                            └── b4  weight 0: gets none
//! ```

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{Config, Service},
    net::{Family, Topology},
    note,
    servers::ECHO_PORT,
    stacks,
    world::World,
};

const WEIGHTS: [u16; 4] = [5, 3, 2, 0];
const CONNECTIONS: usize = 20_000;

/// Policies, and how far the share of a backend may be from its weight: a draw by chance has a
/// standard deviation of 0.35 % here, a rotation none.
const POLICIES: [(&str, f64); 3] = [("maglev", 0.02), ("round-robin", 0.005), ("random", 0.02)];

#[test]
fn xdp_weights_hold_for_every_policy() {
    weights_hold("native");
}

#[test]
fn tc_weights_hold_for_every_policy() {
    weights_hold("off");
}

fn weights_hold(xdp: &'static str) {
    let topology = Topology {
        backends: WEIGHTS.len(),
        ..Topology::default()
    };
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let world = World::new(topology, |network| {
        let mut config = Config::new(network, xdp);
        for (n, (policy, _)) in (0..).zip(POLICIES) {
            for protocol in protocols {
                let mut service = Service::new(&service_name(policy, protocol), protocol)
                    .listen(network, n, ECHO_PORT)
                    .backends(network, ECHO_PORT + u16::from(n), &WEIGHTS);
                service.policy = policy;
                config = config.service(service);
            }
        }
        config
    })
    .unwrap();

    let network = &world.network;
    let (mut wrong, mut unanswered) = (Vec::new(), 0);
    for (n, (policy, tolerance)) in (0..).zip(POLICIES) {
        for protocol in protocols {
            for family in Family::BOTH {
                let target = (network.vip(n, family), ECHO_PORT).into();
                let sources = network.client_addresses(family);
                let before = stacks::lost(&world);
                let result = burst(
                    &network.client,
                    &sources,
                    10_000,
                    CONNECTIONS,
                    protocol,
                    target,
                );
                let lost = stacks::lost(&world) - before;
                let shares: Vec<_> = (1..=4).map(|i| result.share(&format!("b{i}"))).collect();
                let row = format!(
                    "xdp {xdp:<6} {policy:<11} {protocol} {family}: {:5.2} {:5.2} {:5.2} {:4.2} %, \
                     failures {}, dropped by hosts and cables {lost}, {:.1?}",
                    100.0 * shares[0],
                    100.0 * shares[1],
                    100.0 * shares[2],
                    100.0 * shares[3],
                    summary(&result.failures),
                    result.elapsed,
                );
                note(&row);
                let near = WEIGHTS
                    .iter()
                    .zip(&shares)
                    .all(|(weight, share)| (share - f64::from(*weight) / 10.0).abs() <= tolerance);
                let is_explained = stacks::explain(lost, protocol, &result.failures);
                if !near || shares[3] != 0.0 || !is_explained {
                    wrong.push(row);
                }
                unanswered += result.failures.len() as u64;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    counters_agree(&world, unanswered);
}

/// What lbctl tells of each service is what the clients counted: all connections, of both families. So
/// many datagrams were not answered, which lbd may not have seen.
fn counters_agree(world: &World, unanswered: u64) {
    let opened = 2 * CONNECTIONS as u64;
    // Where a source port is used again while the backend still closes its former connection, the
    // handshake ends in a reset, and the client's next SYN counts as another connection.
    let stragglers = opened / 1000;
    let backends = world.daemon.backends().unwrap();
    for service in world.daemon.services().unwrap() {
        let own = || backends.iter().filter(|b| b.service == service.name);
        let total: u64 = own().map(|b| b.total_connections).sum();
        let failed: u64 = own().map(|b| b.failed_connections).sum();
        let told = (service.total_connections, total, failed);
        let unseen = match service.name.ends_with("udp") {
            true => unanswered,
            false => 0,
        };
        let counted = opened - unseen..=opened + stragglers;
        assert!(
            counted.contains(&told.0) && counted.contains(&total) && failed <= stragglers,
            "{}: {told:?}",
            service.name
        );
    }
}

fn service_name(policy: &str, protocol: Protocol) -> String {
    format!("{policy}-{protocol}").to_lowercase()
}
