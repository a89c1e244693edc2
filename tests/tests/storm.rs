//! Selection tables are exchanged, and the config reloaded, as fast as that goes, under traffic.
//!
//! ```text
//!   open connections that speak,              ┌── b1
//!   new ones                  ── node (lbd) ──┼── b2
//!                                ▲            └── b3
//!               reload, set weight, a file with instances
//! ```

use std::{
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Herd, Load, Protocol, any_port, ask_once, summary},
    daemon::{Config, Service, replace_file},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

const OPEN: usize = 20;
const ARRIVALS: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(8);
const FILE: &str = "lbd/instances/instances.yaml";
const LONG: Duration = Duration::from_secs(30);

/// Open connections and new ones to the first service, of both families.
struct Traffic {
    herds: Vec<Herd>,
    loads: Vec<Load>,
}

impl Traffic {
    fn start(world: &World) -> Self {
        let (mut herds, mut loads) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let network = &world.network;
            let sources = &network.client_addresses(family);
            let target = (network.vip(0, family), ECHO_PORT).into();
            herds.push(Herd::open(&network.client, sources, target, OPEN).expect("all open"));
            let client = &network.client;
            let load = Load::start(client, sources, Protocol::Tcp, target, ARRIVALS, PATIENCE);
            loads.push(load);
        }
        Self { herds, loads }
    }

    /// Nobody noticed anything; returns the number of new connections by backend.
    fn end(self, since: Instant) -> [u64; 3] {
        for herd in &self.herds {
            assert_eq!(herd.failures(PATIENCE), "none", "of open connections");
        }
        let mut counts = [0; 3];
        for load in self.loads {
            let report = load.stop();
            assert_eq!(report.failure_summary(), "none", "of new connections");
            for (i, count) in (1..).zip(&mut counts) {
                *count += report
                    .by_backend(since)
                    .get(&*format!("b{i}"))
                    .unwrap_or(&0);
            }
        }
        counts
    }
}

#[test]
fn xdp_tables_are_exchanged_under_traffic() {
    tables_are_exchanged("native");
}

#[test]
fn tc_tables_are_exchanged_under_traffic() {
    tables_are_exchanged("off");
}

/// All weight goes from one backend to another and back. Whoever begins when `lbctl` has returned
/// meets the one that has it; nobody ever meets the third.
fn tables_are_exchanged(xdp: &'static str) {
    const SWAPS: usize = 120;
    let config = |network: &Network| {
        let service = Service::new("echo", Protocol::Tcp)
            .listen(network, 0, ECHO_PORT)
            .backends(network, ECHO_PORT, &[1, 1, 0]);
        Config::new(network, xdp).service(service)
    };
    let world = World::new(Topology::default(), config).unwrap();
    let traffic = Traffic::start(&world);
    let began = Instant::now();
    let written = world.daemon.metric("lbd_tables_written_total").unwrap();
    let set = |place: usize, family, weight: &str| {
        let address = SocketAddr::new(world.network.backend(place, family), ECHO_PORT);
        let named = format!("echo/{address}");
        world
            .daemon
            .ctl(&["set", "weight", &named, weight])
            .unwrap();
    };
    for swap in 0..SWAPS {
        let family = Family::BOTH[swap / 2 % 2];
        let (up, down) = (1 + swap % 2, 2 - swap % 2);
        set(up, family, "1");
        set(down, family, "0");
        let source = any_port(world.network.client_addresses(family)[0]);
        let target = (world.network.vip(0, family), ECHO_PORT).into();
        let client = &world.network.client;
        let answer = client.run(|| ask_once(Protocol::Tcp, source, target, "who"));
        let backend = answer.expect("somebody answers").backend;
        assert_eq!(backend, format!("b{up}"), "swap {swap}, {family}");
    }
    let written = world.daemon.metric("lbd_tables_written_total").unwrap() - written;
    let counts = traffic.end(began);
    note(format!(
        "xdp {xdp}: {written} tables exchanged, new connections meanwhile by backend {counts:?}"
    ));
    // The first swap of each family gives a weight that is there.
    assert!(written >= (2 * SWAPS - 2) as f64, "{written}");
    assert_eq!(counts[2], 0, "{counts:?}");
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
}

/// Version `n` of the config: other weights, policies and backends, and two services whose backends
/// come from one file.
fn version(network: &Network, n: usize) -> Config {
    let policies = ["maglev", "round-robin", "random"];
    let weights = [1 + n as u16 % 5, 1 + n as u16 % 3, 1 + n as u16 % 7];
    let mut config = Config::new(network, "native");
    let listen = |name, protocol, vip| {
        let mut service = Service::new(name, protocol).listen(network, vip, ECHO_PORT);
        service.policy = policies[n % policies.len()];
        service
    };
    for (name, protocol) in [("echo", Protocol::Tcp), ("datagrams", Protocol::Udp)] {
        // The third comes and goes.
        let weights = &weights[..3 - n % 2];
        config = config.service(listen(name, protocol, 0).backends(network, ECHO_PORT, weights));
    }
    for (name, vip) in [("found", 1), ("found-too", 2)] {
        let found = listen(name, Protocol::Tcp, vip);
        config = config.service(found.discovery(format!("{{file: {{path: /run/{FILE}}}}}")));
    }
    config
}

fn instances(network: &Network, n: usize) -> String {
    let mut text = "instances:\n".to_owned();
    for place in 1..=3 - n % 2 {
        let address = SocketAddr::new(network.backend(place, Family::V4), ECHO_PORT);
        let weight = 1 + n % 9;
        let _ = writeln!(text, "- {{address: \"{address}\", weight: {weight}}}");
    }
    text
}

/// Ten reloads a second, of which some are refused, while a file of instances changes as often. How
/// many seconds of that: `LBT_STORM_SECONDS`, else 20.
#[test]
fn a_storm_of_reloads_harms_nobody() {
    const BAD: usize = 7;
    const RATE: usize = 10;
    let seconds = std::env::var("LBT_STORM_SECONDS").map_or(20, |text| text.parse().unwrap());
    let asked: usize = RATE * seconds;
    let mut last = 0;
    let world = World::new(Topology::default(), |network| {
        replace_file(&network.node, FILE, &instances(network, 0)).unwrap();
        version(network, 0)
    })
    .unwrap();
    let daemon = &world.daemon;
    let traffic = Traffic::start(&world);
    let began = Instant::now();
    for n in 1..=asked {
        daemon
            .replace_file(FILE, &instances(&world.network, n))
            .unwrap();
        let mut text = version(&world.network, n).render();
        let is_bad = n % BAD == 0;
        if is_bad {
            text += "    wieght: 1\n";
        }
        daemon.write_config(&text).unwrap();
        let output = daemon.lbctl(&["reload"]);
        assert_eq!(output.status.success(), !is_bad, "reload {n}: {output:?}");
        if !is_bad {
            last = n;
        }
        let due = Duration::from_secs(1) * n as u32 / RATE as u32;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let rate = asked as f64 / began.elapsed().as_secs_f64();
    let counts = traffic.end(began);
    let counted = |result| {
        let series = format!("lbd_reloads_total{{result=\"{result}\"}}");
        daemon.metric(&series).unwrap() as usize
    };
    let (well, refused) = (counted("ok"), counted("error"));
    note(format!(
        "{asked} reloads asked for: {well} done and {refused} refused, {rate:.1} a second; new \
         connections meanwhile by backend {counts:?}"
    ));
    // None is left out, however fast they come.
    let bad = asked / BAD;
    assert_eq!((well, refused), (asked - bad, bad));
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");

    // What came last counts: of the file and of the instances, each on its own.
    let wanted = version(&world.network, last);
    let mut shown = Vec::new();
    for service in wanted
        .services
        .iter()
        .filter(|service| service.discovery.is_empty())
    {
        let items = daemon.backends().unwrap();
        shown = items
            .iter()
            .filter(|item| item.service == service.name)
            .map(|item| (item.address, item.weight))
            .collect();
        shown.sort();
        let mut configured = service.backends.clone();
        configured.sort();
        assert_eq!(shown, configured, "{}", service.name);
    }
    let wanted = instances(&world.network, asked).lines().count() - 1;
    for service in ["found", "found-too"] {
        let settled = eventually(LONG, || {
            let items = daemon.backends().unwrap_or_default();
            let items: Vec<_> = items
                .iter()
                .filter(|item| item.service == service)
                .collect();
            let weight = 1 + asked as u16 % 9;
            shown = items
                .iter()
                .map(|item| (item.address, item.weight))
                .collect();
            items.len() == wanted && items.iter().all(|item| item.weight == weight)
        });
        assert!(settled, "{service}: {shown:?}");
    }
    // And works.
    daemon.wait_all_healthy().unwrap();
    for vip in 0..3 {
        let source = any_port(world.network.client_addresses(Family::V4)[0]);
        let target = (world.network.vip(vip, Family::V4), ECHO_PORT).into();
        let answer = world
            .network
            .client
            .run(|| ask_once(Protocol::Tcp, source, target, "who"));
        assert_eq!(
            summary(answer.as_ref().err()),
            "none",
            "service address {vip}"
        );
    }
}
