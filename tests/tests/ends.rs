//! Connections that end with their backend, or with its time to drain.
//!
//! ```text
//!                            ┌── b1  cut off, drained
//!   client ──── node (lbd) ──┤
//!                            └── b2
//! ```

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Failure, Herd, LongLived, Protocol, any_port},
    daemon::{Config, Service},
    eventually,
    net::{Family, Layout, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

const PATIENCE: Duration = Duration::from_secs(3);

/// Services `kept` and `ended` on the first two service addresses, both on backend 1 alone.
fn config(network: &Network, xdp: &'static str, ended: &'static str) -> Config {
    let mut config = Config::new(network, xdp);
    for (n, name, policy) in [(0, "kept", "keep"), (1, "ended", ended)] {
        let mut service = Service::new(name, Protocol::Tcp)
            .listen(network, n, ECHO_PORT)
            .backends(network, ECHO_PORT, &[1]);
        service.on_backend_down = policy;
        config = config.service(service);
    }
    config
}

#[test]
fn xdp_connections_of_a_lost_backend_end_where_asked() {
    lost_backend("native", Family::V4);
}

#[test]
fn tc_connections_of_a_lost_backend_end_where_asked() {
    lost_backend("off", Family::V6);
}

/// The host vanishes, so that nobody but lbd can end its connections; the policy of one service is
/// changed while its connections are open.
fn lost_backend(xdp: &'static str, family: Family) {
    let topology = Topology {
        layout: Layout::Switched,
        ..Topology::default()
    };
    let world = World::new(topology, |network| config(network, xdp, "keep")).unwrap();
    let network = &world.network;
    let open = |n| {
        let target = (network.vip(n, family), ECHO_PORT).into();
        let sources = network.client_addresses(family);
        Herd::open(&network.client, &sources, target, 4).unwrap()
    };
    let (kept, quiet, ended) = (open(0), open(0), open(1));
    let changed = config(network, xdp, "reset");
    world.daemon.write_config(&changed.render()).unwrap();
    world.daemon.ctl(&["reload"]).unwrap();
    for herd in [&kept, &ended] {
        assert_eq!(herd.failures(PATIENCE), "none", "{xdp}: after the change");
    }

    network.cut_off(1, true).unwrap();
    for service in ["kept", "ended"] {
        let backend = SocketAddr::new(network.backend(1, family), ECHO_PORT);
        let evicted = |b: &lb_userspace::api::types::BackendItem| b.effective_weight == 0;
        let limit = Duration::from_secs(10);
        world
            .daemon
            .wait_backend(service, backend, limit, evicted)
            .unwrap();
    }
    let all = |failure: Failure| vec![Err(failure); 4];
    assert_eq!(ended.exchange(PATIENCE), all(Failure::Reset), "{xdp}");
    assert_eq!(kept.exchange(PATIENCE), all(Failure::Timeout), "{xdp}");
    let metrics = world.daemon.http("/metrics").unwrap().1;
    let count = drops(&metrics, "backend_down");
    assert!(count >= 4, "{count}");

    // What was kept goes on when the host is back.
    network.cut_off(1, false).unwrap();
    world.daemon.wait_all_healthy().unwrap();
    let back = eventually(Duration::from_secs(10), || {
        quiet.failures(PATIENCE) == "none"
    });
    assert!(back, "{xdp}: a kept connection does not go on");
    note(format!(
        "xdp {xdp} {family}: 4 reset, 4 kept, {count} packets answered by RST"
    ));
}

/// A counter of `lbd_drops_total`.
fn drops(metrics: &str, reason: &str) -> u64 {
    let name = format!("lbd_drops_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

#[test]
fn xdp_drain_ends_at_its_deadline() {
    drain_with_deadline("native", Family::V4, Duration::from_secs(4), false);
}

#[test]
fn tc_drain_ends_at_its_deadline_that_the_daemon_slept_through() {
    drain_with_deadline("off", Family::V6, Duration::from_secs(4), true);
}

/// Two services with the same backend: one is drained with a deadline, one without.
fn drain_with_deadline(xdp: &'static str, family: Family, time: Duration, restart: bool) {
    let mut world = World::new(Topology::default(), |n| config(n, xdp, "keep")).unwrap();
    let network = &world.network;
    let open = |n| {
        let source = any_port(network.client_addresses(family)[0]);
        let target = (network.vip(n, family), ECHO_PORT).into();
        LongLived::open(&network.client, Protocol::Tcp, source, target).unwrap()
    };
    let (spared, ended) = (open(0), open(1));
    let backend = SocketAddr::new(network.backend(1, family), ECHO_PORT);
    let (kept_name, ended_name) = (format!("kept/{backend}"), format!("ended/{backend}"));
    let seconds = format!("{}s", time.as_secs());

    let began = Instant::now();
    world.daemon.ctl(&["drain", &kept_name]).unwrap();
    let drain = ["drain", &ended_name, "--timeout", &seconds];
    world.daemon.ctl(&drain).unwrap();
    assert!(began.elapsed() < time, "lbctl does not wait unasked");
    let shown = world.daemon.ctl(&["get", "overrides"]).unwrap();
    assert_eq!(shown.matches("drain until 2").count(), 1, "{shown}");
    if restart {
        world.daemon.kill9();
        world.daemon.restart().unwrap();
    }
    let over = eventually(time + Duration::from_secs(20), || !ended.is_alive());
    let after = began.elapsed();
    assert!(over, "the connection outlives its deadline");
    assert!(after >= time, "it ended after {after:?} already");
    let why = ended.close().unwrap_err();
    assert!(why.ends_with("reset"), "{why}");
    note(format!(
        "xdp {xdp} {family}: drained with {seconds}, reset after {} ms",
        after.as_millis()
    ));

    let told = || world.daemon.ctl(&["get", "events"]).unwrap();
    let has_event = eventually(Duration::from_secs(5), || told().contains("DrainDeadline"));
    assert!(has_event, "{}", told());
    let described = world
        .daemon
        .ctl(&["describe", "backend", &ended_name])
        .unwrap();
    assert!(described.contains("drain, over since"), "{described}");
    // Taken back, the backend serves again.
    world.daemon.ctl(&["unset", "mode", &ended_name]).unwrap();
    let serves = |b: &lb_userspace::api::types::BackendItem| b.effective_weight > 0;
    let limit = Duration::from_secs(10);
    let waited = world.daemon.wait_backend("ended", backend, limit, serves);
    waited.unwrap();
    let target = (world.network.vip(1, family), ECHO_PORT).into();
    let sources = world.network.client_addresses(family);
    let again = Herd::open(&world.network.client, &sources, target, 2).unwrap();
    assert_eq!(again.failures(PATIENCE), "none");
    assert!(
        spared.is_alive(),
        "a drain without deadline ended a connection"
    );
    spared.close().unwrap();
}
