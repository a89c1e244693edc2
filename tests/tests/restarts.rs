//! A hundred restarts under load leave nothing behind.
//!
//! ```text
//!   60 open connections, 200 new ones a second ──── node (lbd, again and again) ──── b1, b2, b3
//! ```

use std::time::Duration;

use lb_tests::{
    clients::{Herd, Load, Protocol, summary},
    daemon::{Config, Service},
    eventually, less,
    net::{Family, Network, Topology},
    note, patience,
    servers::ECHO_PORT,
    soak::Count,
    world::World,
};

const RESTARTS: u32 = 100;
/// Of each family.
const OPEN: usize = 30;
const ARRIVALS: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(8);

fn config(network: &Network) -> Config {
    let service = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1, 1, 1]);
    Config::new(network, "native").service(service)
}

#[test]
fn a_hundred_restarts_under_load_leave_nothing_behind() {
    let mut world = World::new(Topology::default(), config).unwrap();
    let (mut herds, mut loads) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        let sources = &world.network.client_addresses(family);
        let target = (world.network.vip(0, family), ECHO_PORT).into();
        let client = &world.network.client;
        herds.push(Herd::open(client, sources, target, OPEN).expect("all open"));
        loads.push(Load::start(
            client,
            sources,
            Protocol::Tcp,
            target,
            less(ARRIVALS),
            patience(PATIENCE),
        ));
    }
    let restart = |world: &mut World, number: u32| {
        match number % 2 {
            0 => world.daemon.kill9(),
            _ => world.daemon.stop().unwrap(),
        }
        world.daemon.restart().unwrap();
    };
    // What the first ones make stays: the caches of threads, the pins of a second start.
    (0..2).for_each(|number| restart(&mut world, number));
    let mut before = None;
    let settled = |world: &World| {
        let count = || Count::of(&world.daemon, &world.network).expect("all can be counted");
        let mut last = count();
        // Programs and maps go when the kernel finds the time.
        eventually(Duration::from_secs(10), || {
            std::thread::sleep(Duration::from_millis(300));
            let now = count();
            std::mem::replace(&mut last, now.clone()) == now
        });
        last
    };
    before.get_or_insert((settled(&world), world.daemon.resident_bytes().unwrap()));
    let restarts = less(RESTARTS);
    for number in 0..restarts {
        restart(&mut world, number);
        for herd in &herds {
            assert_eq!(
                herd.failures(patience(PATIENCE)),
                "none",
                "after restart {number}"
            );
        }
    }
    let (before, memory) = before.expect("it was counted");
    let mut after = settled(&world);
    let same = eventually(Duration::from_secs(20), || {
        after = settled(&world);
        after.maps <= before.maps && after.programs <= before.programs
    });
    let memory_after = world.daemon.resident_bytes().unwrap();
    let reports: Vec<_> = loads.into_iter().map(Load::stop).collect();
    let attempts: usize = reports.iter().map(|report| report.attempts.len()).sum();
    let failures = reports.iter().flat_map(|report| report.failures());
    let failures = summary(failures.filter_map(|attempt| attempt.result.as_ref().err()));
    note(format!(
        "{restarts} restarts: {attempts} new connections, failed: {failures}; before {before:?}, \
         {} KiB; after {after:?}, {} KiB",
        memory / 1024,
        memory_after / 1024
    ));
    assert_eq!(failures, "none");
    assert!(same, "{before:?} became {after:?}");
    assert_eq!((before.links, before.pins), (after.links, after.pins));
    assert!(
        after.descriptors <= before.descriptors + 2,
        "{before:?} became {after:?}"
    );
    // A tenth is the allocator's business, and so are a few of its chunks.
    assert!(
        memory_after <= memory + memory / 10 + (2 << 20),
        "{memory} became {memory_after}"
    );

    // Flows of connections that have ended go too.
    drop(herds);
    let gone = eventually(Duration::from_secs(60), || {
        ["FLOWS4", "FLOWS6"].iter().all(|map| {
            let entries = world
                .daemon
                .metric(&format!("lbd_map_entries{{map=\"{map}\"}}"));
            entries.is_ok_and(|entries| entries == 0.0)
        })
    });
    assert!(gone, "flows are left");
}
