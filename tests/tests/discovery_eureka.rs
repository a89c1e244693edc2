//! Backends from Eureka, whose servers are scripted.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                  │         └── b3
//!                  ├── 127.0.0.1:8761 Eureka, on the node
//!                  └── 127.0.0.1:8762 its peer
//! ```

use std::{net::SocketAddr, thread, time::Duration};

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{CONFIG, Daemon, has_label, replace_file},
    discovered::{LONG, Scene},
    docs::Page,
    eureka::{Eureka, Instance, Oddities},
    net::{Family, Network, Topology},
    note,
    registry::{Fault, Request},
    servers::{ECHO_PORT, HTTP_PORT, start_all},
};
use lb_userspace::model::BackendState;

const URLS: &str = "urls: \"http://127.0.0.1:8761/eureka\"";

fn start(network: &Network, port: u16, hosts: &[usize], odd: Oddities) -> Eureka {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let eureka = Eureka::start(&network.node, address, odd).unwrap();
    // Another application has a part in the hash.
    eureka.put(Instance {
        app: "OTHER",
        ..Instance::new("other", ([10, 1, 1, 2], 9).into())
    });
    for host in hosts {
        eureka.put(instance(*host));
    }
    eureka
}

fn instance(host: usize) -> Instance {
    let address = SocketAddr::from(([10, 1, host as u8, 2], ECHO_PORT));
    Instance::new(format!("i{host}"), address)
}

fn with(instance: Instance, status: &'static str, metadata: &[(&str, &str)]) -> Instance {
    let metadata = metadata.iter();
    Instance {
        status,
        metadata: metadata
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..instance
    }
}

/// One server that holds these hosts' instances.
fn scene(hosts: &[usize], keys: &str) -> Scene<Eureka> {
    let start = |network: &Network| start(network, 8761, hosts, Oddities::default());
    let keys = format!("{URLS}, app: web, interval: 1s, removal_hold: 0s{keys}");
    let scene = Scene::new(start, &format!("{{eureka: {{{keys}}}}}"));
    scene.wait_serving(hosts);
    scene
}

/// Paths of what was asked since the last time.
fn asked(eureka: &Eureka) -> Vec<String> {
    let all = eureka.registry.take_asked().into_iter();
    all.map(|r| r.path).collect()
}

fn wait_asked(eureka: &Eureka, path: &str) {
    let is = |r: &Request| r.path == path;
    eureka.registry.wait_asked(LONG, is).unwrap();
}

fn comes_changes_drains_and_leaves(keys: &str) {
    let scene = scene(&[1], keys);
    let eureka = &scene.registry;
    let open = scene.connection_to(1);
    let metadata = [("weight", "300"), ("version", "v2")];
    eureka.put(with(instance(2), "UP", &metadata));
    scene.wait_reached(
        2,
        "an instance is registered with Eureka, asked every second",
    );
    scene.wait(2, |b| {
        b.weight == 300 && b.effective_weight == 300 && has_label(b, "version", "v2")
    });
    let share = scene.burst(800).share("b2");
    assert!(
        (0.68..0.82).contains(&share),
        "weights 100 and 300: {share}"
    );
    eureka.put(with(instance(2), "UP", &[("weight", "100")]));
    scene.wait(2, |b| b.effective_weight == 100);

    eureka.put(with(instance(1), "OUT_OF_SERVICE", &[]));
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "eureka: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "out of service");
    for status in ["DOWN", "STARTING"] {
        eureka.put(with(instance(1), "UP", &[]));
        scene.wait(1, |b| b.effective_weight == 100);
        eureka.put(with(instance(1), status, &[]));
        scene.wait(1, |b| b.reasons[0] == "eureka: down");
        assert_eq!(scene.reached(), ["b2"]);
    }
    eureka.remove("i1");
    scene.wait_gone(1);
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "deregistered");
    open.close().unwrap();
}

#[test]
fn an_instance_comes_changes_drains_and_leaves() {
    comes_changes_drains_and_leaves("");
}

#[test]
fn so_it_does_by_deltas() {
    comes_changes_drains_and_leaves(", fetch: delta");
}

#[test]
fn no_fault_takes_a_backend_away() {
    let mut scene = scene(&[1, 2], "");
    let open = scene.connection_to(1);
    let faults = [
        Fault::Hang,
        Fault::Drip,
        Fault::Status(401),
        Fault::Status(404),
    ];
    for fault in Fault::QUICK.into_iter().chain(faults) {
        scene.registry.registry.set_fault(fault.clone());
        let source = scene.wait_source(|s| s.state == "failing");
        assert_eq!(source.instances, 2, "{fault:?}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{fault:?}");
        note(format!("{fault:?}: {}", source.last_error.unwrap()));
        scene.registry.registry.set_fault(None);
        scene.wait_source(|s| s.state == "synced");
    }
    scene.registry.registry.kill();
    let source = scene.wait_source(|s| s.state == "failing");
    note(format!("killed: {}", source.last_error.unwrap()));
    assert_eq!(scene.reached(), ["b1", "b2"]);
    scene.goes_on(&open, "Eureka is dead");
    open.close().unwrap();

    // lbd is restarted meanwhile.
    thread::sleep(Duration::from_millis(1500));
    scene.daemon.kill9();
    let cleanup = scene
        .daemon
        .lbd(&["--config", CONFIG, "--cleanup"])
        .unwrap();
    assert!(cleanup.status.success());
    scene.daemon.restart().unwrap();
    scene.wait_serving(&[1, 2]);

    // Restarted empty; then the instances' heartbeats register them again, one by one.
    scene.registry.empty();
    scene.registry.registry.restart().unwrap();
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!((source.instances, source.held), (2, 2));
    scene.registry.put(instance(1));
    scene.wait_source(|s| s.held == 1);
    assert_eq!(scene.reached(), ["b1", "b2"], "one came back");
    scene.registry.put(instance(2));
    scene.wait_source(|s| s.held == 0 && s.instances == 2);
    assert_eq!(scene.reached(), ["b1", "b2"]);
}

#[test]
fn deltas_that_do_not_lead_there_are_followed_by_all() {
    let scene = scene(&[1, 2], ", fetch: delta");
    let eureka = &scene.registry;
    wait_asked(eureka, "/eureka/apps/delta");
    assert_eq!(asked(eureka)[0], "/eureka/apps");
    // While nothing is wrong there are deltas only.
    for _ in 0..2 {
        wait_asked(eureka, "/eureka/apps/delta");
        assert!(
            asked(eureka)
                .iter()
                .all(|path| path == "/eureka/apps/delta")
        );
    }

    // Changes that no delta tells: the hash does.
    eureka.set_oddities(Oddities {
        forgets_changes: true,
        ..Oddities::default()
    });
    eureka.put(instance(3));
    scene.wait_serving(&[1, 2, 3]);
    wait_asked(eureka, "/eureka/apps");

    // Deltas are switched off: all is fetched each time, and nothing is wrong.
    eureka.set_oddities(Oddities {
        no_delta: true,
        ..Oddities::default()
    });
    eureka.remove("i3");
    scene.wait_gone(3);
    asked(eureka);
    wait_asked(eureka, "/eureka/apps");
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!(source.errors, 0, "{source:?}");
    assert!(!asked(eureka).contains(&"/eureka/apps/delta".to_owned()));
}

/// A pair of peers.
struct Pair([Eureka; 2]);

#[test]
fn several_servers_are_asked_in_turn_and_deltas_are_not_mixed() {
    let start_both = |network: &Network| {
        Pair([
            start(network, 8761, &[1, 2], Oddities::default()),
            start(network, 8762, &[1, 2], Oddities::default()),
        ])
    };
    let mut scene = Scene::new(
        start_both,
        "{eureka: {urls: [\"http://127.0.0.1:8761/eureka\", \"http://127.0.0.1:8762/eureka\"], \
         app: web, interval: 1s, removal_hold: 0s, fetch: delta}}",
    );
    scene.wait_serving(&[1, 2]);
    wait_asked(&scene.registry.0[0], "/eureka/apps/delta");
    assert_eq!(asked(&scene.registry.0[1]), Vec::<String>::new());

    scene.registry.0[0].registry.kill();
    scene.registry.0[1].put(instance(3));
    scene.wait_serving(&[1, 2, 3]);
    let peer = asked(&scene.registry.0[1]);
    assert_eq!(peer[0], "/eureka/apps", "not a delta of another server");
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!(source.errors, 0, "one that answers is enough: {source:?}");

    scene.registry.0[1].registry.kill();
    let source = scene.wait_source(|s| s.state == "failing");
    let told = source.last_error.unwrap();
    assert!(told.contains("none of 2 servers answers"), "{told}");
    note(told);
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
    scene.registry.0[0].put(instance(3));
    scene.registry.0[0].registry.restart().unwrap();
    scene.wait_source(|s| s.state == "synced" && s.instances == 3);
}

#[test]
fn both_bases_are_found_and_credentials_are_sent_and_not_shown() {
    let odd = Oddities {
        base: "/eureka/v2",
        like_xml: true,
        // lbd:s3cret
        authorization: Some("Basic bGJkOnMzY3JldA=="),
        ..Oddities::default()
    };
    let begin = |network: &Network| {
        replace_file(&network.node, "lbd/password", "s3cret\n").unwrap();
        start(network, 8761, &[1], odd.clone())
    };
    let scene = Scene::new(
        begin,
        "{eureka: {urls: \"http://127.0.0.1:8761\", app: Web, interval: 1s, user: lbd, \
         password: {file: /run/lbd/password}, empty_hold: 0s, removal_hold: 0s}}",
    );
    scene.wait_serving(&[1]);
    let export = scene.daemon.ctl(&["export"]).unwrap();
    assert!(export.contains("file: /run/lbd/password"), "{export}");
    assert!(!(export + &scene.daemon.log()).contains("s3cret"));

    // The application's last instance goes: a 404 of a server that answers otherwise is an answer.
    scene.registry.remove("i1");
    scene.wait_gone(1);
    scene.wait_source(|s| s.state == "synced");

    // The same server at the other base, as after an upgrade.
    scene.registry.set_oddities(Oddities::default());
    scene.registry.put(instance(2));
    scene.wait_serving(&[2]);

    scene.registry.set_oddities(Oddities {
        authorization: Some("Basic another"),
        ..odd
    });
    let source = scene.wait_source(|s| s.state == "failing");
    assert_eq!(source.errors_by_class.get("denied"), Some(&source.errors));
    assert_eq!(scene.reached(), ["b2"]);
}

/// The examples of the documentation, as they stand.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/eureka.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    // It only has to be understood: the scripted server speaks no TLS.
    page.config("secured", &network, "native").unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let eureka = start(&network, 8761, &[], Oddities::default());
    let backend = |host: u8| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));
    for host in [1, 2] {
        eureka.put(Instance::new(format!("i{host}"), backend(host)));
    }
    let minimal = page.config("minimal", &network, "native").unwrap();
    let daemon = Daemon::start_with(&network.node, &minimal).unwrap();
    for host in [1, 2] {
        daemon
            .wait_backend("web", backend(host), LONG, |b| b.effective_weight == 100)
            .unwrap();
    }
    replace_file(&network.node, "lbd/eureka-password", "a1b2c3\n").unwrap();
    let weighted = Instance::new("i2", backend(2));
    eureka.put(with(weighted, "UP", &[("lb.weight", "7")]));
    daemon
        .write_config(&page.config("complete", &network, "native").unwrap())
        .unwrap();
    daemon.ctl(&["reload"]).unwrap();
    daemon
        .wait_backend("web", backend(1), LONG, |b| {
            b.effective_weight == 50 && has_label(b, "team", "shop")
        })
        .unwrap();
    daemon
        .wait_backend("web", backend(2), LONG, |b| b.effective_weight == 7)
        .unwrap();
    wait_asked(&eureka, "/eureka/apps/delta");
    let sources = network.client_addresses(Family::V4);
    let target = (network.vip(0, Family::V4), 80).into();
    let result = burst(
        &network.client,
        &sources,
        20_000,
        200,
        Protocol::Http,
        target,
    );
    assert_eq!(summary(&result.failures), "none");
    assert!(result.by_backend["b1"] > result.by_backend["b2"]);
}
