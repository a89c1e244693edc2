//! Backends that fail under load.
//!
//! ```text
//!   client                             ┌── b1
//!   500 connections/s ──── node (lbd) ─┼── b2  killed, cut off, unplugged
//!                                      └── b3
//! ```

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Failure, Load, Protocol, Report},
    daemon::{Config, Service},
    eventually,
    net::{Family, Layout, Network, Topology},
    note, patience,
    servers::HTTP_PORT,
    world::World,
};

const RATE: u32 = 500;
/// How long clients wait: a SYN that the network lost is sent again after a second.
const LIMIT: Duration = Duration::from_millis(2500);
const EVICTED_WITHIN: Duration = Duration::from_secs(5);

fn config(network: &Network, xdp: &'static str) -> Config {
    Config::new(network, xdp).service(
        Service::new("web", Protocol::Tcp)
            .listen(network, 0, HTTP_PORT)
            .backends(network, HTTP_PORT, &[1, 1, 1]),
    )
}

struct Scene {
    world: World,
    family: Family,
    load: Load,
    failed_at: Instant,
    evicted_at: Instant,
}

impl Scene {
    /// Load for a second, then `fail`, then eviction as `lbctl` shows it.
    fn play(
        layout: Layout,
        xdp: &'static str,
        family: Family,
        fail: impl FnOnce(&mut World),
    ) -> Self {
        let topology = Topology {
            layout,
            ..Topology::default()
        };
        let mut world = World::new(topology, |network| config(network, xdp)).unwrap();
        let network = &world.network;
        let load = Load::start(
            &network.client,
            &network.client_addresses(family),
            Protocol::Http,
            (network.vip(0, family), HTTP_PORT).into(),
            RATE,
            LIMIT,
        );
        std::thread::sleep(Duration::from_secs(1));
        let before = load.so_far();
        assert_eq!(before.failure_summary(), "none", "before anything failed");
        assert_eq!(before.by_backend(before.attempts[0].began).len(), 3);
        let failed_at = Instant::now();
        fail(&mut world);
        let mut scene = Self {
            world,
            family,
            load,
            failed_at,
            evicted_at: failed_at,
        };
        scene.wait(EVICTED_WITHIN, |weight| weight == 0);
        scene.evicted_at = Instant::now();
        // Those that time out are over by then.
        std::thread::sleep(patience(LIMIT) + Duration::from_secs(1));
        scene
    }

    fn failed_backend(&self) -> SocketAddr {
        (self.world.network.backend(2, self.family), HTTP_PORT).into()
    }

    fn wait(&self, limit: Duration, weight: impl Fn(u32) -> bool) {
        let daemon = &self.world.daemon;
        let met =
            |backend: &lb_userspace::api::types::BackendItem| weight(backend.effective_weight);
        daemon
            .wait_backend("web", self.failed_backend(), limit, met)
            .unwrap();
    }

    /// Waits until many connections that began after this time were served by the backend.
    fn wait_served(&self, since: Instant) {
        let served = eventually(Duration::from_secs(10), || {
            let report = self.load.so_far();
            let counts = report.by_backend(since);
            counts.get("b2").is_some_and(|count| *count > 50)
        });
        assert!(served, "too few connections come back");
    }

    /// What must hold of any failure; says what was seen.
    fn judge(&self, name: &str, report: &Report, expected: &[Failure]) {
        let since = |time: Option<Instant>| match time {
            Some(time) => format!(
                "{} ms",
                time.saturating_duration_since(self.failed_at).as_millis()
            ),
            None => "-".to_owned(),
        };
        note(format!(
            "{name} ({}): {} of {} connections failed ({}); after the failure: evicted {}, last \
             failing connection began {}, ended {}",
            self.family,
            report.failures().count(),
            report.attempts.len(),
            report.failure_summary(),
            since(Some(self.evicted_at)),
            since(report.last_failure_began()),
            since(report.last_failure_ended()),
        ));
        for attempt in report.failures() {
            let failure = attempt.result.as_ref().unwrap_err();
            assert!(expected.contains(failure), "{failure}");
            assert!(
                attempt.began < self.evicted_at,
                "a connection failed after eviction"
            );
            assert!(
                attempt.ended > self.failed_at,
                "a connection failed before the failure"
            );
        }
    }
}

#[test]
fn xdp_process_killed_under_load() {
    process_killed("native", Family::V4);
}

#[test]
fn tc_process_killed_under_load() {
    process_killed("off", Family::V6);
}

/// The host refuses connections: the daemon notices by its probes, and the backend comes back
/// after `rise` successes, not before.
fn process_killed(xdp: &'static str, family: Family) {
    let mut scene = Scene::play(Layout::Direct, xdp, family, |world| world.agents[1].kill());
    let back_at = Instant::now();
    scene.world.agents[1].restart().unwrap();
    scene.wait(Duration::from_secs(3), |weight| weight > 0);
    let healthy_at = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    scene.wait_served(healthy_at);
    let report = scene.load.so_far();
    scene.judge(
        &format!("process killed, xdp {xdp}"),
        &report,
        &[Failure::Refused, Failure::Reset, Failure::Closed],
    );
    let mut returned = report
        .attempts
        .iter()
        .filter(|attempt| attempt.began > back_at && attempt.result.as_deref() == Ok("b2"));
    let first = returned.next().expect("traffic comes back").began;
    note(format!(
        "back after {} ms; first connection after {} ms",
        (healthy_at - back_at).as_millis(),
        (first - back_at).as_millis()
    ));
    // The second success in a row comes one fast interval (100 ms, jittered) after the first.
    assert!(
        first - back_at > Duration::from_millis(50),
        "before `rise` successes"
    );
}

#[test]
fn xdp_host_disappears_silently_under_load() {
    host_disappears("native", Family::V4);
}

#[test]
fn tc_host_disappears_silently_under_load() {
    host_disappears("off", Family::V6);
}

/// Nobody answers any more, nobody is told: connections time out until the probes have.
fn host_disappears(xdp: &'static str, family: Family) {
    let scene = Scene::play(Layout::Switched, xdp, family, |world| {
        world.network.cut_off(2, true).unwrap();
    });
    scene.world.network.cut_off(2, false).unwrap();
    scene.wait(Duration::from_secs(5), |weight| weight > 0);
    let healthy_at = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    scene.wait_served(healthy_at);
    let report = scene.load.so_far();
    scene.judge(
        &format!("host disappears, xdp {xdp}"),
        &report,
        &[Failure::Timeout, Failure::Unreachable],
    );
}

/// The node sees its device lose the carrier.
#[test]
fn xdp_link_lost_under_load() {
    let scene = Scene::play(Layout::Direct, "native", Family::V4, |world| {
        world.network.backends[1]
            .ip("link set dev eth0 down")
            .unwrap();
    });
    let report = scene.load.so_far();
    scene.judge(
        "link lost, xdp native",
        &report,
        &[Failure::Timeout, Failure::Unreachable],
    );
}
