//! Somebody takes apart what lbd made in the kernel: it is noticed, repaired, told and counted, and open
//! connections outlive it where anything of them is left.
//!
//! ```text
//!   client ──── node (lbd) ──── b1, b2, b3
//! ```

use std::time::{Duration, Instant};

use lb_tests::{
    clients::{Herd, Protocol, burst, summary},
    daemon::{BPFFS, Config, Service},
    eventually,
    host::Host,
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

/// Everything is looked at every ten seconds; this is for busy machines.
const LIMIT: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(8);

fn config(network: &Network) -> Config {
    let service = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1, 1, 1]);
    Config::new(network, "native").service(service)
}

fn shell(node: &Host, script: &str) {
    let done = node.execute("sh", &["-ec", script]).unwrap();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{script}: {errors}");
}

/// What somebody does, whether connections outlive it, and a word of what lbd says.
const DAMAGES: [(&str, &str, &str, &str); 7] = [
    (
        "a map's pin removed",
        "rm lbd/*/FLOWS4",
        "open",
        "pin of map FLOWS4",
    ),
    ("a link's pin removed", "rm lbd/links/*-xdp", "", "xdp"),
    (
        "a program detached",
        // Without TCX they are filters.
        "for pin in lbd/links/*-egress; do \
           if [ -e $pin ]; then bpftool link detach pinned $pin; continue; fi; \
           for device in client b1 b2 b3; do tc filter del dev $device egress; done; \
         done",
        "open",
        "egress",
    ),
    (
        "a map emptied",
        "for i in $(seq 20); do \
           key=$(bpftool -j map getnext pinned lbd/*/SERVICES4 | tr -d '[],\"' | \
             sed 's/.*next_key://; s/}//; s/0x/ /g'); \
           bpftool map delete pinned lbd/*/SERVICES4 key hex $key || break; \
         done; true",
        "open",
        "service echo",
    ),
    (
        "a backend overwritten",
        "zeros=$(yes 0 | head -64 | tr '\\n' ' '); \
         bpftool map update pinned lbd/*/BACKENDS key 0 0 0 0 value $zeros",
        "",
        "backend echo",
    ),
    (
        "a table removed",
        "for key in 0 1 2 3; do bpftool map delete pinned lbd/*/TABLES key $key 0 0 0 || true; done",
        "open",
        "table of service echo",
    ),
    ("everything removed", "rm -r lbd", "", "made again"),
];

#[test]
fn whatever_is_taken_apart_is_repaired() {
    let world = World::new(Topology::default(), config).unwrap();
    let (daemon, network) = (&world.daemon, &world.network);
    let family = Family::V4;
    let sources = &network.client_addresses(family);
    let target = (network.vip(0, family), ECHO_PORT).into();
    let mut port = 20_000;
    for (what, script, connections, told) in DAMAGES {
        let herd = Herd::open(&network.client, sources, target, 30).expect("all open");
        let repairs = || daemon.metric("lbd_repairs_total");
        let (before, log) = (repairs().unwrap(), daemon.log().len());
        shell(&network.node, &format!("cd {BPFFS}; {script}"));
        let began = Instant::now();
        let mut said = String::new();
        // One damage may take more than one repair.
        let repaired = eventually(LIMIT, || {
            let is_counted = repairs().is_ok_and(|now| now > before);
            said = daemon.log().get(log..).unwrap_or_default().to_owned();
            is_counted && said.contains(told)
        });
        let took = began.elapsed();
        assert!(repaired, "{what}: nobody noticed, or said {told}:\n{said}");
        assert!(said.contains("Repaired"), "{what}: {said}");
        let mut failures = String::new();
        let works = eventually(LIMIT, || {
            port += 100;
            let result = burst(&network.client, sources, port, 60, Protocol::Tcp, target);
            failures = summary(&result.failures);
            failures == "none"
        });
        assert!(
            works,
            "{what}: new connections: {failures}\n{}",
            &daemon.log()[log..]
        );
        let open = herd.failures(PATIENCE);
        note(format!(
            "{what}: repaired after {:.1} s; open connections: failed {open}",
            took.as_secs_f64()
        ));
        assert!(connections.is_empty() || open == "none", "{what}: {open}");
    }
    // What is pinned now is what the next start needs.
    let mut world = world;
    let herd = Herd::open(&world.network.client, sources, target, 30).expect("all open");
    world.daemon.kill9();
    world.daemon.restart().unwrap();
    assert_eq!(herd.failures(PATIENCE), "none");
}

/// The kernel takes programs, links and neighbours of a device with it; connections wait for the next.
#[test]
fn a_device_that_is_made_anew_carries_its_connections_on() {
    let mut world = World::new(Topology::default(), config).unwrap();
    let family = Family::V4;
    let sources = world.network.client_addresses(family);
    let target = (world.network.vip(0, family), ECHO_PORT).into();
    let herd = Herd::open(&world.network.client, &sources, target, 30).expect("all open");
    let attached = |world: &World| {
        let status = world.daemon.status().unwrap();
        status.interfaces.get("b2").cloned()
    };
    let before = attached(&world);
    world.network.unplug(2).unwrap();
    let is_noticed = eventually(LIMIT, || attached(&world) != before);
    assert!(is_noticed, "still {before:?}");
    let shown = world.daemon.lbctl(&["status"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    let problem = "device b2 (`node.interfaces`) is missing";
    assert!(text.contains(problem), "{text}");
    assert_eq!(shown.status.code(), Some(3), "{text}");
    world.network.replug(2).unwrap();
    let began = Instant::now();
    let is_back = eventually(LIMIT, || attached(&world) == before);
    assert!(is_back, "{before:?}, now {:?}", attached(&world));
    let took = began.elapsed();
    let open = herd.failures(PATIENCE);
    note(format!(
        "a device made anew: attached {:.1} s after it came; open connections: failed {open}",
        took.as_secs_f64()
    ));
    assert_eq!(open, "none");
    world.daemon.wait_all_healthy().unwrap();
    let problems = world.daemon.status().unwrap().problems;
    assert_eq!(problems, Vec::<String>::new());
    let network = &world.network;
    let result = burst(&network.client, &sources, 30_000, 60, Protocol::Tcp, target);
    assert_eq!(summary(&result.failures), "none");
}

/// The address from which connections come is another from one moment to the next.
#[test]
fn connections_come_from_the_address_that_the_node_has_now() {
    let world = World::new(Topology::default(), |network| {
        let mut config = config(network);
        config.services[0].snat = "always";
        config
    })
    .unwrap();
    let network = &world.network;
    let family = Family::V4;
    let sources = network.client_addresses(family);
    let target = (network.vip(0, family), ECHO_PORT).into();
    let herd = Herd::open(&network.client, &sources, target, 30).expect("all open");
    let move_to = |of: &Host, is: &str, device: &str, was: &str| {
        let lines = format!("addr add {is}/24 dev {device}\naddr del {was}/24 dev {device}");
        of.ip(&lines).unwrap();
    };
    move_to(&network.node, "10.1.2.9", "b2", "10.1.2.1");
    let route = "route replace 0.0.0.0/0 via 10.1.2.9";
    network.backends[1].ip(route).unwrap();
    let began = Instant::now();
    let mut port = 20_000;
    let mut failures = String::new();
    let works = eventually(LIMIT, || {
        port += 100;
        let result = burst(&network.client, &sources, port, 60, Protocol::Tcp, target);
        failures = summary(&result.failures);
        failures == "none"
    });
    assert!(works, "{failures}\n{}", world.daemon.log());
    note(format!(
        "another address: all new connections work after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    // What came from the former address has none any more; the others go on.
    let exchanged = herd.exchange(PATIENCE);
    let lost = exchanged.iter().filter(|result| result.is_err()).count();
    assert!((1..30).contains(&lost), "{lost} of 30");
}
