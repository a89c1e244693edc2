//! Backends from a real ZooKeeper: they come, change, drain and go, and no fault takes one away.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                  │         └── b3
//!                  └── ZooKeeper, on the node's loopback
//! ```

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Protocol, any_port, ask_once, burst, summary},
    daemon::{Config, Daemon, Service, has_label, replace_file},
    docs::Page,
    eventually,
    net::{Family, Network, Topology},
    note,
    registry::{Fault, Registry, Reply},
    servers::{Agent, ECHO_PORT, HTTP_PORT, start_all},
    zookeeper::{ADDRESS, Registrar, Zookeeper},
};
use lb_userspace::{api::types::BackendItem, discovery::SourceItem, model::BackendState};
use zookeeper_client::{Acls, CreateMode};

const LONG: Duration = Duration::from_secs(60);

struct Scene {
    // Dropped in this order.
    daemon: Daemon,
    registrar: Registrar,
    server: Zookeeper,
    _agents: Vec<Agent>,
    network: Network,
    next_port: AtomicU16,
}

fn path(host: usize) -> String {
    format!("/services/web/i{host}")
}

fn data(host: usize, more: &str) -> String {
    format!(
        "{{\"name\":\"web\",\"id\":\"i{host}\",\"address\":\"10.1.{host}.2\",\"port\":{ECHO_PORT},\
         \"serviceType\":\"DYNAMIC\"{more}}}"
    )
}

impl Scene {
    /// With these hosts registered.
    fn new(hosts: &[usize], keys: &str) -> Self {
        let network = Network::new(Topology::default()).unwrap();
        let agents = start_all(&network.backends).unwrap();
        let began = Instant::now();
        let server = Zookeeper::start(&network.node).unwrap();
        note(format!("ZooKeeper started in {:.1?}", began.elapsed()));
        let registrar = Registrar::new(&network.node, None).unwrap();
        for host in hosts {
            registrar.register(&path(*host), &data(*host, "")).unwrap();
        }
        let source = format!(
            "{{zookeeper: {{servers: \"{ADDRESS}\", path: /services/web, session_timeout: 10s{keys}}}}}"
        );
        let service = Service::new("web", Protocol::Tcp)
            .listen(&network, 0, ECHO_PORT)
            .discovery(source);
        let config = Config::new(&network, "native").service(service);
        let daemon = Daemon::start(&network.node, &config).unwrap();
        daemon.wait_all_healthy().unwrap();
        Self {
            daemon,
            registrar,
            server,
            _agents: agents,
            network,
            next_port: AtomicU16::new(10_000),
        }
    }

    fn set(&self, host: usize, more: &str) {
        self.registrar.set(&path(host), &data(host, more)).unwrap();
    }

    fn register(&self, host: usize) {
        self.registrar
            .register(&path(host), &data(host, ""))
            .unwrap();
    }

    fn target(&self) -> SocketAddr {
        (self.network.vip(0, Family::V4), ECHO_PORT).into()
    }

    /// Backends that a hundred new connections reach; every one must succeed.
    fn reached(&self) -> Vec<String> {
        let port = self.next_port.fetch_add(200, Ordering::Relaxed);
        let sources = self.network.client_addresses(Family::V4);
        let client = &self.network.client;
        let result = burst(client, &sources, port, 100, Protocol::Tcp, self.target());
        assert_eq!(summary(&result.failures), "none");
        result.by_backend.into_keys().collect()
    }

    fn known(&self) -> usize {
        self.daemon.backends().unwrap().len()
    }

    fn wait(&self, host: usize, condition: impl Fn(&BackendItem) -> bool) {
        let address = (self.network.backend(host, Family::V4), ECHO_PORT).into();
        self.daemon
            .wait_backend("web", address, LONG, condition)
            .unwrap();
    }

    fn wait_source(&self, condition: impl Fn(&SourceItem) -> bool) -> SourceItem {
        self.daemon.wait_source("web", LONG, condition).unwrap()
    }

    /// Waits until it fails, and shows that nothing else happened.
    fn fails(&self, what: &str, hosts: &[&str]) {
        let source = self.wait_source(|s| s.state == "failing");
        note(format!("{what}: {}", source.last_error.unwrap()));
        assert_eq!(source.instances as usize, hosts.len(), "{what}");
        assert_eq!(self.reached(), hosts, "{what}");
    }

    fn wait_reached(&self, host: &str) {
        let reached = eventually(LONG, || {
            let source = any_port(self.network.client_addresses(Family::V4)[0]);
            let target = self.target();
            let asked = || ask_once(Protocol::Tcp, source, target, "who");
            let answer = self.network.client.run(asked).unwrap();
            answer.backend == host
        });
        assert!(reached, "no connection reached {host}");
    }
}

#[test]
fn an_instance_comes_changes_drains_and_leaves() {
    let scene = Scene::new(&[1], "");
    assert_eq!(scene.reached(), ["b1"]);
    let began = Instant::now();
    scene.register(2);
    scene.wait_reached("b2");
    note(format!(
        "a node is created: a connection reaches the instance {:.0?} later",
        began.elapsed()
    ));
    scene.set(2, ",\"payload\":{\"weight\":\"40\",\"version\":\"v2\"}");
    scene.wait(2, |b| {
        b.effective_weight == 40
            && has_label(b, "version", "v2")
            && b.source == "discovery:zookeeper"
    });
    scene.set(1, ",\"enabled\":false");
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "zookeeper: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    let began = Instant::now();
    scene.registrar.delete(&path(1)).unwrap();
    assert!(eventually(LONG, || scene.known() == 1));
    note(format!(
        "a node is deleted: the backend is gone {:.1?} later (removal_hold 2s)",
        began.elapsed()
    ));
    assert_eq!(scene.reached(), ["b2"]);

    // A registrar that hangs longer than its session: the instance goes, and comes back with it.
    let other = Registrar::with_session(&scene.network.node, Duration::from_secs(2)).unwrap();
    other.register(&path(3), &data(3, "")).unwrap();
    scene.wait_reached("b3");
    let other = other.hang(Duration::from_secs(5));
    assert!(
        eventually(LONG, || scene.known() == 1),
        "its session expired"
    );
    note("a registrar's session expired: its instance is gone");
    drop(other);
    let other = Registrar::new(&scene.network.node, None).unwrap();
    other.register(&path(3), &data(3, "")).unwrap();
    scene.wait_reached("b3");
}

/// As a registrar does whose session expired.
#[test]
fn a_node_deleted_and_created_anew_never_leaves() {
    let scene = Scene::new(&[1, 2], "");
    let update = |s: SourceItem| s.updates;
    let before = update(scene.wait_source(|s| s.state == "synced"));
    for _ in 0..20 {
        scene.registrar.delete(&path(1)).unwrap();
        scene.register(1);
        let mut ids: Vec<_> = scene.daemon.backends().unwrap();
        ids.retain(|b| b.effective_weight > 0);
        assert_eq!(ids.len(), 2, "one left: {ids:?}");
    }
    assert_eq!(scene.reached(), ["b1", "b2"]);
    let after = update(scene.wait_source(|s| s.held == 0));
    note(format!(
        "deleted and created 20 times: {} changes of the pool",
        after - before
    ));
    assert_eq!(after, before);
}

/// Curator's parents are containers.
#[test]
fn parents_that_vanish_are_an_empty_answer_that_is_held() {
    let keys = ", empty_hold: 20s, removal_hold: 0s, merge_window: 5s";
    let scene = Scene::new(&[1, 2], keys);
    // The window begins anew with this change: both that leave now are one answer.
    scene.set(1, ",\"payload\":{\"weight\":\"40\"}");
    scene.wait(1, |b| b.effective_weight == 40);
    for host in [1, 2] {
        scene.registrar.delete(&path(host)).unwrap();
    }
    let gone = eventually(LONG, || !scene.registrar.exists("/services/web").unwrap());
    assert!(gone, "the container is removed");
    let source = scene.wait_source(|s| s.held == 2);
    assert_eq!((&*source.state, source.instances), ("synced", 2));
    assert_eq!(scene.reached(), ["b1", "b2"]);
    // The watch outlives the node.
    scene.register(3);
    scene.wait_reached("b3");
    let gone = eventually(LONG, || scene.known() == 1);
    assert!(gone, "the hold ends");
    note("parents vanished: held; created anew: followed");
}

#[test]
fn no_fault_of_the_server_takes_a_backend_away() {
    let mut scene = Scene::new(&[1, 2], ", empty_hold: 10m");
    let all = ["b1", "b2"];
    scene.registrar.set(&path(1), "\u{1}garbage").unwrap();
    scene.registrar.register("/services/web/odd", "").unwrap();
    let source = scene.wait_source(|s| s.left_out.len() == 2);
    note(format!("garbage data: {}", source.left_out.join("; ")));
    assert_eq!((&*source.state, source.instances), ("synced", 2));
    assert_eq!(scene.reached(), all);
    scene.set(1, "");
    scene.wait_source(|s| s.left_out.len() == 1);

    let began = Instant::now();
    scene.server.hang(true);
    scene.fails("hangs", &all);
    note(format!("a hang is told {:.1?} later", began.elapsed()));
    // The registrar's session may have expired with its nodes: those are held.
    scene.server.hang(false);
    scene.wait_source(|s| s.state == "synced");
    assert_eq!(scene.reached(), all);

    scene.server.kill9();
    scene.fails("killed", &all);
    let address: SocketAddr = ADDRESS.parse().unwrap();
    for fault in [Fault::NoHttp, Fault::Garbage, Fault::Drop] {
        let registry =
            Registry::start(&scene.network.node, address, |_| Reply::json("{}")).unwrap();
        registry.set_fault(fault.clone());
        let errors = scene.wait_source(|_| true).errors;
        scene.wait_source(|s| s.errors > errors + 1);
        scene.fails(&format!("{fault:?} in its place"), &all);
    }
    scene.server.restart_empty().unwrap();
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!((source.instances, source.held), (2, 2), "{source:?}");
    assert_eq!(scene.reached(), all);
    scene.registrar = Registrar::new(&scene.network.node, None).unwrap();
    for host in [1, 2, 3] {
        scene.register(host);
    }
    scene.wait_reached("b3");
    scene.wait_source(|s| s.held == 0 && s.instances == 3);
    assert_eq!(
        scene.daemon.status().unwrap().problems,
        Vec::<String>::new()
    );
}

/// The examples of the documentation, as they stand; the complete one needs a password.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/zookeeper.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let node = &network.node;
    let backend = SocketAddr::from(([10, 1, 1, 2], HTTP_PORT));
    let _server = Zookeeper::start(node).unwrap();
    let registrar = Registrar::new(node, Some("lbd:hunter2")).unwrap();
    let text = page.example("node").unwrap();
    registrar.register("/services/web/web-1", &text).unwrap();
    let acls = Acls::creator_all();
    registrar
        .create(
            "/prod/services/web/web-1",
            &text,
            CreateMode::Ephemeral,
            acls,
        )
        .unwrap();
    let config = page.config("minimal", &network, "native").unwrap();
    let daemon = Daemon::start_with(node, &config).unwrap();
    let wait = |condition: &dyn Fn(&BackendItem) -> bool| {
        daemon
            .wait_backend("web", backend, LONG, condition)
            .unwrap();
    };
    wait(&|b| b.effective_weight == 200 && has_label(b, "version", "v2"));
    let sources = network.client_addresses(Family::V4);
    let target = (network.vip(0, Family::V4), 80).into();
    let result = burst(
        &network.client,
        &sources,
        20_000,
        50,
        Protocol::Http,
        target,
    );
    assert_eq!(summary(&result.failures), "none");

    // Nobody listens at its first server.
    replace_file(node, "lbd/zookeeper-password", "hunter3\n").unwrap();
    let complete = page.config("complete", &network, "native").unwrap();
    daemon.write_config(&complete).unwrap();
    daemon.ctl(&["reload"]).unwrap();
    let source = daemon
        .wait_source("web", LONG, |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.contains("not authorized"))
        })
        .unwrap();
    note(format!("a wrong password: {}", source.last_error.unwrap()));
    replace_file(node, "lbd/zookeeper-password", "hunter2\n").unwrap();
    wait(&|b| b.effective_weight == 200 && has_label(b, "zone", "a"));
    let export = daemon.ctl(&["export"]).unwrap();
    assert!(
        export.contains("file: /run/lbd/zookeeper-password"),
        "{export}"
    );
    for text in [
        daemon.log(),
        export,
        daemon.ctl(&["describe", "service", "web"]).unwrap(),
    ] {
        assert!(!text.contains("hunter"), "{text}");
    }
}
