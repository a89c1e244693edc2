//! Backends from a real etcd: they come, change, drain and go, and no fault takes one away.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                  │         └── b3
//!                  └── etcd, on the node's loopback
//! ```

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Protocol, any_port, ask_once, burst, summary},
    daemon::{CONFIG, Config, Daemon, Service, has_label, replace_file},
    docs::Page,
    etcd::Etcd,
    eventually,
    net::{Family, Network, Topology},
    note, patience,
    registry::{Fault, Registry, Reply},
    servers::{Agent, ECHO_PORT, HTTP_PORT, start_all},
};
use lb_userspace::{api::types::BackendItem, discovery::SourceItem, model::BackendState};

/// Generous: six tests may share two cores, and a hang is noticed after 12 s.
const LONG: Duration = Duration::from_secs(60);
const URL: &str = "http://127.0.0.1:2379";

struct Scene {
    // Dropped in this order.
    daemon: Daemon,
    etcd: Etcd,
    _agents: Vec<Agent>,
    network: Network,
    next_port: AtomicU16,
}

fn value(host: usize, more: &str) -> String {
    format!("{{\"address\": \"10.1.{host}.2:{ECHO_PORT}\"{more}}}")
}

fn config(network: &Network, keys: &str) -> Config {
    let source = format!("{{etcd: {{endpoints: \"{URL}\", prefix: services/web/{keys}}}}}");
    let service = Service::new("web", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .discovery(source);
    Config::new(network, "native").service(service)
}

impl Scene {
    /// With these hosts registered.
    fn new(hosts: &[usize], keys: &str) -> Self {
        let network = Network::new(Topology::default()).unwrap();
        let agents = start_all(&network.backends).unwrap();
        let etcd = Etcd::start(&network.node, URL, &[], &[]).unwrap();
        for host in hosts {
            etcd.put(&format!("services/web/i{host}"), &value(*host, ""))
                .unwrap();
        }
        let daemon = Daemon::start(&network.node, &config(&network, keys)).unwrap();
        daemon.wait_all_healthy().unwrap();
        Self {
            daemon,
            etcd,
            _agents: agents,
            network,
            next_port: AtomicU16::new(10_000),
        }
    }

    fn put(&self, host: usize, more: &str) {
        let key = format!("services/web/i{host}");
        self.etcd.put(&key, &value(host, more)).unwrap();
    }

    fn address(&self, host: usize) -> SocketAddr {
        (self.network.backend(host, Family::V4), ECHO_PORT).into()
    }

    fn target(&self) -> SocketAddr {
        (self.network.vip(0, Family::V4), ECHO_PORT).into()
    }

    /// Backends that a hundred new connections reach; every one must succeed.
    fn reached(&self) -> Vec<String> {
        // By eight addresses, thirteen ports of each.
        let port = self.next_port.fetch_add(16, Ordering::Relaxed);
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
        let address = self.address(host);
        self.daemon
            .wait_backend("web", address, LONG, condition)
            .unwrap();
    }

    fn wait_source(&self, condition: impl Fn(&SourceItem) -> bool) -> SourceItem {
        self.daemon.wait_source("web", LONG, condition).unwrap()
    }

    /// Waits until it fails with these words, and shows that nothing else happened.
    fn fails(&self, what: &str, words: &[&str], hosts: &[&str]) {
        let source = self.wait_source(|s| {
            let told = s.last_error.as_deref().unwrap_or_default();
            s.state == "failing" && words.iter().any(|w| told.contains(w))
        });
        note(format!("{what}: {}", source.last_error.unwrap()));
        assert_eq!(source.instances as usize, hosts.len(), "{what}");
        assert_eq!(self.reached(), hosts, "{what}");
    }

    fn recovers(&self, instances: u32) {
        self.wait_source(|s| s.state == "synced" && s.instances == instances);
    }

    /// Waits until a new connection reaches this backend.
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
    scene.put(2, ", \"weight\": 300, \"labels\": {\"version\": \"v2\"}");
    scene.wait_reached("b2");
    note(format!(
        "etcdctl put: a connection reaches the instance {:.0?} later, etcdctl's own time included",
        began.elapsed()
    ));
    scene.wait(2, |b| {
        b.effective_weight == 300 && has_label(b, "version", "v2") && b.source == "discovery:etcd"
    });
    scene.put(2, ", \"weight\": 40");
    scene.wait(2, |b| b.effective_weight == 40 && b.labels.is_empty());

    scene.put(1, ", \"state\": \"drain\"");
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "etcd: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    scene.put(1, ", \"state\": \"down\"");
    scene.wait(1, |b| b.state == BackendState::Unhealthy);
    assert_eq!(scene.reached(), ["b2"]);
    scene.etcd.delete("services/web/i1").unwrap();
    assert!(eventually(LONG, || scene.known() == 1));
    assert_eq!(scene.reached(), ["b2"]);

    // In the form of gRPC's naming, under a lease that nobody keeps alive.
    let ttl = patience(Duration::from_secs(10)).as_secs().to_string();
    let granted = scene.etcd.ctl(&["lease", "grant", &ttl]).unwrap();
    let lease = granted.split(' ').nth(1).unwrap();
    let naming = format!(
        "{{\"Op\":0,\"Addr\":\"{}\",\"Metadata\":{{\"weight\":\"30\",\"zone\":\"a\"}}}}",
        scene.address(3)
    );
    let key = format!("services/web/{}", scene.address(3));
    let began = Instant::now();
    scene
        .etcd
        .ctl(&["put", &format!("--lease={lease}"), &key, &naming])
        .unwrap();
    scene.wait(3, |b| b.effective_weight == 30 && has_label(b, "zone", "a"));
    assert_eq!(scene.reached(), ["b2", "b3"]);
    assert!(eventually(LONG, || scene.known() == 1), "the lease expires");
    note(format!(
        "a lease of {ttl} s expired: gone {:.1?} after the put",
        began.elapsed()
    ));
    assert_eq!(scene.reached(), ["b2"]);
    // A service whose name begins alike is another one.
    scene.etcd.put("services/web2/i1", &value(1, "")).unwrap();
    scene.put(2, ", \"weight\": 41");
    scene.wait(2, |b| b.effective_weight == 41);
    assert_eq!(scene.known(), 1);
    assert_eq!(
        scene.daemon.status().unwrap().problems,
        Vec::<String>::new()
    );
}

#[test]
fn no_fault_of_the_server_takes_a_backend_away() {
    let mut scene = Scene::new(&[1, 2], ", empty_hold: 10m");
    let all = ["b1", "b2"];
    // Values that are no instances.
    scene.etcd.put("services/web/i1", "\u{1}garbage").unwrap();
    scene.etcd.put("services/web/odd", "{}").unwrap();
    let source = scene.wait_source(|s| s.left_out.len() == 2);
    note(format!("garbage values: {}", source.left_out.join("; ")));
    assert_eq!((&*source.state, source.instances), ("synced", 2));
    assert_eq!(scene.reached(), all);
    scene.put(1, "");
    scene.etcd.delete("services/web/odd").unwrap();
    scene.wait_source(|s| s.left_out.is_empty());

    let began = Instant::now();
    scene.etcd.kill9();
    scene.fails("killed", &["127.0.0.1:2379"], &all);
    note(format!("a kill is told {:.0?} later", began.elapsed()));
    // Others in its place.
    let address: SocketAddr = "127.0.0.1:2379".parse().unwrap();
    for fault in [Fault::NoHttp, Fault::Garbage, Fault::Status(500)] {
        let registry =
            Registry::start(&scene.network.node, address, |_| Reply::json("{}")).unwrap();
        let what = format!("{fault:?} in its place");
        registry.set_fault(fault);
        // The first may still be of what was before.
        let errors = scene.wait_source(|_| true).errors;
        scene.wait_source(|s| s.errors > errors + 1);
        scene.fails(&what, &["http://127.0.0.1:2379: "], &all);
    }
    scene.etcd.restart().unwrap();
    scene.recovers(2);
    assert_eq!(scene.reached(), all);
    scene.put(3, "");
    scene.wait_reached("b3");
    let all = ["b1", "b2", "b3"];

    let began = Instant::now();
    scene.etcd.hang(true);
    scene.fails("hangs", &["timed out", "within", "broken pipe"], &all);
    note(format!("a hang is told {:.1?} later", began.elapsed()));
    scene.etcd.hang(false);
    scene.recovers(3);

    // Restarted empty: held, until its instances register again.
    scene.etcd.kill9();
    scene.wait_source(|s| s.state == "failing");
    scene.etcd.restart_empty().unwrap();
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!((source.instances, source.held), (3, 3), "{source:?}");
    assert_eq!(scene.reached(), all);
    for host in [1, 2] {
        scene.put(host, "");
    }
    let source = scene.wait_source(|s| s.held == 1);
    assert_eq!(source.instances, 3);
    assert_eq!(scene.reached(), all);
}

/// The revision goes back, and some keys with it.
#[test]
fn a_cluster_restored_from_a_backup_is_read_anew() {
    let mut scene = Scene::new(&[1], ", empty_hold: 10s");
    scene.etcd.kill9();
    let copy = |from: &str, to: &str| {
        let node = &scene.network.node;
        node.execute("cp", &["-a", from, to]).unwrap();
    };
    copy("/run/etcd-one", "/run/etcd-backup");
    scene.etcd.restart().unwrap();
    scene.recovers(1);
    for turn in 0..20 {
        scene.put(2, &format!(", \"weight\": {}", turn + 1));
    }
    scene.wait(2, |b| b.effective_weight == 20);
    let before = scene.etcd.revision().unwrap();
    scene.etcd.kill9();
    std::fs::remove_dir_all(scene.etcd.data()).unwrap();
    copy("/run/etcd-backup", "/run/etcd-one");
    scene.etcd.restart().unwrap();
    let after = scene.etcd.revision().unwrap();
    assert!(after < before, "{after} < {before}");
    let source = scene.wait_source(|s| s.state == "synced" && s.held == 1);
    note(format!("restored from {before} to {after}: {source:?}"));
    assert!(
        scene.daemon.log().contains("went back from")
            || source
                .last_error
                .is_some_and(|e| e.contains("went back from"))
    );
    // It is watched from where it is now, and what the backup lacks is held, then gone.
    scene.put(3, "");
    scene.wait_reached("b3");
    assert!(eventually(LONG, || scene.reached() == ["b1", "b3"]));
}

/// The daemon stands still while a second client writes more than its connection holds and compacts: the
/// server cancels the watch.
#[test]
fn a_compacted_watch_begins_anew() {
    let scene = Scene::new(&[1], "");
    scene.daemon.signal(libc::SIGSTOP);
    // Labels so large are dropped, the value is sound.
    let filling = format!(", \"labels\": {{\"x\": \"{}\"}}", "x".repeat(100_000));
    // Among many events that nobody reads, the one that counts.
    for turn in 0..400 {
        scene.put(2, &filling);
        if turn == 200 {
            scene.put(3, "");
        }
    }
    let revision = scene.etcd.revision().unwrap();
    scene.etcd.ctl(&["compact", &revision.to_string()]).unwrap();
    scene.daemon.signal(libc::SIGCONT);
    scene.recovers(3);
    scene.wait_reached("b3");
    let told = eventually(LONG, || scene.daemon.log().contains("etcd compacted"));
    assert!(told, "{}", scene.daemon.log());
    note(format!(
        "compacted at {revision} while lbd stood still: read anew"
    ));
    // And the new watch works.
    scene.etcd.delete("services/web/i2").unwrap();
    assert!(eventually(LONG, || scene.known() == 2));
    assert_eq!(scene.reached(), ["b1", "b3"]);
}

/// More than lbd reads in one message: it asks for fewer keys at a time.
#[test]
fn large_values_come_in_small_pages() {
    let mut scene = Scene::new(&[1], "");
    scene.daemon.stop().unwrap();
    // Labels so large are dropped, the values are sound.
    let filling = format!(", \"labels\": {{\"x\": \"{}\"}}", "x".repeat(100_000));
    for n in 0..40 {
        let key = format!("services/web/large{n}");
        scene.etcd.put(&key, &value(2, &filling)).unwrap();
    }
    scene.put(3, "");
    scene.daemon.launch().unwrap();
    scene.daemon.wait_ready().unwrap();
    scene.wait_reached("b3");
    scene.recovers(3);
}

#[test]
fn a_daemon_that_starts_without_etcd_serves_what_it_knew() {
    let mut scene = Scene::new(&[1, 2], "");
    scene.put(2, ", \"state\": \"drain\"");
    scene.wait(2, |b| b.state == BackendState::Draining);
    // The last change is on disk a second later at the latest.
    std::thread::sleep(Duration::from_millis(2500));
    scene.daemon.kill9();
    scene.etcd.kill9();
    let cleanup = scene.daemon.lbd(&["--config", CONFIG, "--cleanup"]);
    assert!(cleanup.unwrap().status.success());
    scene.daemon.restart().unwrap();
    scene.wait_source(|s| s.state == "stale" && s.instances == 2);
    scene.wait(1, |b| b.effective_weight == 100);
    assert_eq!(scene.reached(), ["b1"]);
    let sources = scene.daemon.ctl(&["get", "sources"]).unwrap();
    note(format!(
        "lbctl get sources, restarted without etcd:\n{sources}"
    ));
    scene.etcd.restart().unwrap();
    scene.recovers(2);
}

/// ```text
///   node (lbd) ──┬── b1 (etcd m1)   m1 loses m2 and m3, but not the node
///                ├── b2 (etcd m2)
///                └── b3 (etcd m3)
/// ```
#[test]
fn a_member_without_its_cluster_is_left_for_another() {
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let names = ["m1", "m2", "m3"];
    let peers: Vec<_> = (1..=3).map(|n| format!("http://10.1.{n}.2:2380")).collect();
    let peers: Vec<_> = names
        .iter()
        .copied()
        .zip(peers.iter().map(|p| &**p))
        .collect();
    let urls: Vec<_> = (1..=3).map(|n| format!("http://10.1.{n}.2:2379")).collect();
    // The members reach each other through the node.
    network
        .node
        .sysctl(&[("ipv4/ip_forward", "1"), ("ipv4/conf/all/forwarding", "1")])
        .unwrap();
    let mut members: Vec<_> = (0..3)
        .map(|n| {
            let host = &network.backends[n];
            Etcd::prepare(host, names[n], &urls[n], &peers, &[])
        })
        .collect();
    for member in &mut members {
        member.launch().unwrap();
    }
    for member in &members {
        member.wait_ready().unwrap();
    }
    members[0].put("services/web/i1", &value(1, "")).unwrap();
    let source = format!(
        "{{etcd: {{endpoints: [{}], prefix: services/web/}}}}",
        urls.iter()
            .map(|u| format!("\"{u}\""))
            .collect::<Vec<_>>()
            .join(", ")
    );
    let service = Service::new("web", Protocol::Tcp)
        .listen(&network, 0, ECHO_PORT)
        .discovery(source);
    let config = Config::new(&network, "native").service(service);
    let daemon = Daemon::start(&network.node, &config).unwrap();
    daemon.wait_all_healthy().unwrap();
    let began = Instant::now();
    network.backends[0]
        .ip("route add blackhole 10.1.2.2/32\nroute add blackhole 10.1.3.2/32")
        .unwrap();
    let source = daemon.wait_source("web", LONG, |s| s.errors > 0).unwrap();
    note(format!(
        "partitioned member: told {:.1?} later: {}",
        began.elapsed(),
        source.last_error.unwrap()
    ));
    // The others go on once they have a leader, and lbd with them, although the first endpoint still accepts
    // connections.
    assert!(eventually(LONG, || {
        members[1].put("services/web/i2", &value(2, "")).is_ok()
    }));
    daemon
        .wait_source("web", LONG, |s| s.state == "synced" && s.instances == 2)
        .unwrap();
    note(format!(
        "a change by the others arrives {:.1?} after the partition",
        began.elapsed()
    ));
    // Without a quorum nobody answers, and nothing is lost.
    members[1].kill9();
    let source = daemon
        .wait_source("web", LONG, |s| {
            s.state == "failing"
                && s.last_error
                    .as_ref()
                    .is_some_and(|e| e.contains("10.1.1.2") && e.contains("10.1.3.2"))
        })
        .unwrap();
    note(format!("no quorum: {}", source.last_error.unwrap()));
    assert_eq!(source.instances, 2);
    members[1].restart().unwrap();
    daemon
        .wait_source("web", LONG, |s| s.state == "synced")
        .unwrap();
}

/// The examples of the documentation, as they stand: a plain server, then one of three endpoints with TLS
/// and users.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/etcd.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let node = &network.node;
    let backend = |host| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));
    let mut etcd = Etcd::start(node, URL, &[], &[]).unwrap();
    let naming_key = format!("services/web/{}", backend(2));
    let register = |etcd: &Etcd| {
        let text = page.example("value").unwrap();
        etcd.put("services/web/web-1", text.trim()).unwrap();
        let text = page.example("naming").unwrap();
        etcd.put(&naming_key, text.trim()).unwrap();
    };
    register(&etcd);
    let config = page.config("minimal", &network, "native").unwrap();
    let daemon = Daemon::start_with(node, &config).unwrap();
    let wait = |host, condition: &dyn Fn(&BackendItem) -> bool| {
        daemon
            .wait_backend("web", backend(host), LONG, condition)
            .unwrap();
    };
    wait(1, &|b| {
        b.effective_weight == 200 && has_label(b, "version", "v2")
    });
    wait(2, &|b| {
        b.effective_weight == 30 && has_label(b, "version", "v1")
    });
    let sources = network.client_addresses(Family::V4);
    let target = (network.vip(0, Family::V4), 80).into();
    let result = burst(
        &network.client,
        &sources,
        20_000,
        100,
        Protocol::Http,
        target,
    );
    assert_eq!(summary(&result.failures), "none");
    assert_eq!(result.by_backend.len(), 2);
    etcd.kill9();

    node.ip("addr add 10.20.0.6/32 dev lo").unwrap();
    let issued = lb_tests::certificates::Issued::new(&["etcd.example"]).unwrap();
    for (name, text) in [
        ("lbd/etcd-ca.pem", &issued.ca),
        ("lbd/lbd.pem", &issued.client.0),
        ("lbd/lbd.key", &issued.client.1),
        ("server.pem", &issued.server.0),
        ("server.key", &issued.server.1),
        ("lbd/etcd-password", &"hunter2\n".to_owned()),
    ] {
        replace_file(node, name, text).unwrap();
    }
    let access = [
        "--cacert=/run/lbd/etcd-ca.pem",
        "--cert=/run/lbd/lbd.pem",
        "--key=/run/lbd/lbd.key",
        "--insecure-skip-tls-verify",
    ];
    std::fs::remove_dir_all(etcd.data()).unwrap();
    let etcd = Etcd::start(
        node,
        "https://10.20.0.6:2379",
        &[
            "--cert-file=/run/server.pem",
            "--key-file=/run/server.key",
            "--client-cert-auth",
            "--trusted-ca-file=/run/lbd/etcd-ca.pem",
        ],
        &access,
    )
    .unwrap();
    register(&etcd);
    for arguments in [
        &["user", "add", "root:toor"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "lbd:hunter2"],
        &["role", "add", "lbd"],
        &[
            "role",
            "grant-permission",
            "lbd",
            "read",
            "--prefix=true",
            "services/web/",
        ],
        &["user", "grant-role", "lbd", "lbd"],
        &["auth", "enable"],
    ] {
        etcd.ctl(arguments).unwrap();
    }
    let complete = page.config("complete", &network, "native").unwrap();
    daemon.write_config(&complete).unwrap();
    daemon.ctl(&["reload"]).unwrap();
    wait(1, &|b| {
        b.effective_weight == 200 && has_label(b, "zone", "a")
    });
    wait(2, &|b| {
        b.effective_weight == 30 && has_label(b, "zone", "a")
    });
    let source = daemon
        .wait_source("web", LONG, |s| s.state == "synced" && s.instances == 2)
        .unwrap();
    assert!(source.target.contains("10.20.0.5:2379"), "{source:?}");

    // The password is nowhere, and a wrong one is told.
    let export = daemon.ctl(&["export"]).unwrap();
    assert!(export.contains("file: /run/lbd/etcd-password"), "{export}");
    replace_file(node, "lbd/etcd-password", "hunter3\n").unwrap();
    daemon
        .write_config(&complete.replace("weight: 50", "weight: 51"))
        .unwrap();
    daemon.ctl(&["reload"]).unwrap();
    let source = daemon
        .wait_source("web", LONG, |s| {
            s.errors_by_class.contains_key("denied")
                || s.last_error
                    .as_ref()
                    .is_some_and(|e| e.contains("authentication failed"))
        })
        .unwrap();
    note(format!("a wrong password: {}", source.last_error.unwrap()));
    assert_eq!(source.instances, 2);
    replace_file(node, "lbd/etcd-password", "hunter2\n").unwrap();
    daemon
        .wait_source("web", LONG, |s| s.state == "synced")
        .unwrap();
    for text in [
        daemon.log(),
        export,
        daemon.ctl(&["describe", "service", "web"]).unwrap(),
    ] {
        assert!(!text.contains("hunter"), "{text}");
    }
}
