//! Backends from Consul: a real one as Debian has it, and a scripted one with the faults that
//! registries have.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                  │         └── b3
//!                  └── 127.0.0.1:8500 Consul, on the node
//! ```

use std::{
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Protocol, burst, summary},
    consul::Consul,
    daemon::{CONFIG, Daemon, has_label, replace_file},
    discovered::{LONG, Scene},
    docs::Page,
    net::{Family, Network, Topology},
    note,
    registry::{Fault, Registry, Reply, Request},
    servers::{ECHO_PORT, HTTP_PORT, start_all},
};
use lb_userspace::model::BackendState;

const WAIT: Duration = Duration::from_secs(1);

/// What a registration of the instance on a host says, with more keys.
fn registration(host: usize, port: u16, more: &str) -> String {
    format!(
        r#"{{"ID": "i{host}", "Name": "web", "Address": "10.1.{host}.2", "Port": {port}{more}}}"#
    )
}

/// A scripted Consul's state.
struct State {
    index: u64,
    /// Entries of the service's health.
    entries: Vec<String>,
    /// Waits, as Consul does. Without: each answer comes at once.
    blocks: bool,
    /// Instead of the index.
    headers: Option<Vec<(&'static str, &'static str)>>,
}

/// Consul's health endpoint, scripted.
struct Scripted {
    registry: Registry,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Scripted {
    fn start(network: &Network) -> Self {
        let state = Arc::new((
            Mutex::new(State {
                index: 1000,
                entries: entries(&[1, 2]),
                blocks: true,
                headers: None,
            }),
            Condvar::new(),
        ));
        let shared = state.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], 8500));
        let script = move |request: &Request| health(&shared, request);
        Self {
            registry: Registry::start(&network.node, address, script).unwrap(),
            state,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock().unwrap());
        self.state.1.notify_all();
    }

    /// Waits for a query with this index, or without one.
    fn wait_index(&self, index: Option<&str>) -> Request {
        let has = |r: &Request| r.query.get("index").map(String::as_str) == index;
        self.registry.wait_asked(LONG, has).unwrap()
    }
}

fn entries(hosts: &[usize]) -> Vec<String> {
    let entry = |host: &usize| {
        format!(
            r#"{{"Node": {{"Node": "n{host}", "Address": "10.1.{host}.2"}},
                "Service": {{"ID": "i{host}", "Service": "web", "Address": "", "Port": {ECHO_PORT},
                             "Tags": [], "Meta": null, "Weights": {{"Passing": 1, "Warning": 1}}}},
                "Checks": [{{"CheckID": "serfHealth", "Status": "passing"}}]}}"#
        )
    };
    hosts.iter().map(entry).collect()
}

fn health(shared: &(Mutex<State>, Condvar), request: &Request) -> Reply {
    if request.path != "/v1/health/service/web" {
        return Reply::status(404, "no such path");
    }
    let asked = request.query.get("index").map(|i| i.parse().unwrap());
    let wait = request.query.get("wait").map(|w| {
        let ms = w.strip_suffix("ms").unwrap().parse().unwrap();
        Duration::from_millis(ms)
    });
    let state = shared.0.lock().unwrap();
    let unchanged =
        |state: &mut State| state.blocks && asked.is_some_and(|asked: u64| state.index <= asked);
    let waited = shared
        .1
        .wait_timeout_while(state, wait.unwrap_or_default(), unchanged);
    let state = waited.unwrap().0;
    let mut reply = Reply::json(format!("[{}]", state.entries.join(", ")));
    match &state.headers {
        None => reply = reply.header("X-Consul-Index", state.index),
        Some(headers) => {
            for (name, value) in headers {
                reply = reply.header(name, value);
            }
        }
    }
    reply
}

fn scripted() -> Scene<Scripted> {
    let scene = Scene::new(Scripted::start, "{consul: {service: web, wait: 1s}}");
    scene.wait_serving(&[1, 2]);
    scene
}

/// A scene with a real Consul; `None`, told, where there is none.
fn real() -> Option<Scene<Consul>> {
    if let Err(why) = Consul::program() {
        note(format!("not run against a real Consul: {why}"));
        return None;
    }
    let start = |network: &Network| Consul::start(&network.node).unwrap();
    Some(Scene::new(start, "{consul: {service: web, wait: 5s}}"))
}

#[test]
fn an_instance_of_a_real_consul_comes_changes_drains_and_leaves() {
    let Some(scene) = real() else {
        return;
    };
    let register = |host: usize, more: &str| {
        let body = registration(host, ECHO_PORT, more);
        scene
            .registry
            .put("/v1/agent/service/register", &body)
            .unwrap();
    };
    scene.wait_source(|s| s.state == "synced");
    register(1, "");
    scene.wait_reached(1, "the first instance is registered with Consul");
    let open = scene.connection_to(1);

    let more = r#", "Check": {"CheckID": "ttl2", "TTL": "1h", "Status": "passing"},
        "Tags": ["blue", "zone=a"], "Meta": {"version": "v2"},
        "Weights": {"Passing": 3, "Warning": 1}"#;
    register(2, more);
    scene.wait_reached(2, "a second instance is registered with Consul");
    scene.wait(2, |b| b.weight == 300 && b.effective_weight == 300);
    scene.wait(2, |b| {
        has_label(b, "version", "v2") && has_label(b, "zone", "a") && has_label(b, "tags", "blue")
    });
    let share = scene.burst(800).share("b2");
    assert!((0.68..0.82).contains(&share), "weights 1 and 3: {share}");

    let put = |path: &str| scene.registry.put(path, "").unwrap();
    put("/v1/agent/check/warn/ttl2");
    scene.wait(2, |b| b.weight == 100 && b.effective_weight == 100);
    put("/v1/agent/check/fail/ttl2");
    scene.wait(2, |b| {
        b.state == BackendState::Unhealthy && b.reasons[0] == "consul: down"
    });
    assert_eq!(scene.reached(), ["b1"]);
    put("/v1/agent/check/pass/ttl2");
    scene.wait(2, |b| b.effective_weight == 300);

    put("/v1/agent/service/maintenance/i1?enable=true&reason=test");
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "consul: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "maintenance");
    put("/v1/agent/service/maintenance/i1?enable=false");
    scene.wait(1, |b| b.effective_weight == 100);
    put("/v1/agent/maintenance?enable=true");
    scene.wait(2, |b| b.reasons[0] == "consul: drain");
    put("/v1/agent/maintenance?enable=false");
    scene.wait_serving(&[1, 2]);

    put("/v1/agent/service/deregister/i1");
    scene.wait_gone(1);
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "deregistered");
    open.close().unwrap();

    // A node without an agent, whose service has no address of its own.
    let external = format!(
        r#"{{"Node": "n3", "Address": "10.1.3.2",
            "Service": {{"ID": "i3", "Service": "web", "Port": {ECHO_PORT}}}}}"#
    );
    scene
        .registry
        .put("/v1/catalog/register", &external)
        .unwrap();
    scene.wait_reached(3, "an instance with its node's address is registered");
}

#[test]
fn a_real_consul_that_dies_and_is_restarted_empty_takes_nothing_away() {
    let Some(mut scene) = real() else {
        return;
    };
    let register = |scene: &Scene<Consul>, host: usize| {
        let body = registration(host, ECHO_PORT, "");
        scene
            .registry
            .put("/v1/agent/service/register", &body)
            .unwrap();
    };
    register(&scene, 1);
    register(&scene, 2);
    scene.wait_serving(&[1, 2]);
    let open = scene.connection_to(1);

    scene.registry.kill();
    let source = scene.wait_source(|s| s.state == "failing");
    note(format!("killed: {}", source.last_error.unwrap()));
    assert_eq!(scene.reached(), ["b1", "b2"]);
    let sources = scene.daemon.ctl(&["get", "sources"]).unwrap();
    note(format!("lbctl get sources meanwhile:\n{sources}"));

    // lbd is restarted meanwhile, as by a restart of the node. The last change is on disk a second
    // later at the latest.
    thread::sleep(Duration::from_millis(1500));
    open.close().unwrap();
    scene.daemon.kill9();
    let cleanup = scene
        .daemon
        .lbd(&["--config", CONFIG, "--cleanup"])
        .unwrap();
    assert!(cleanup.status.success());
    scene.daemon.restart().unwrap();
    scene.wait_serving(&[1, 2]);
    assert_eq!(scene.wait_source(|s| s.state == "stale").instances, 2);
    assert_eq!(scene.reached(), ["b1", "b2"]);

    scene.registry.restart().unwrap();
    let source = scene.wait_source(|s| s.state == "synced");
    assert_eq!((source.instances, source.held), (2, 2), "restarted empty");
    assert_eq!(scene.reached(), ["b1", "b2"]);
    register(&scene, 1);
    scene.wait_source(|s| s.held == 1);
    assert_eq!(scene.reached(), ["b1", "b2"], "one came back");
    register(&scene, 2);
    scene.wait_source(|s| s.held == 0 && s.instances == 2);
    assert_eq!(scene.reached(), ["b1", "b2"]);
}

#[test]
fn no_fault_takes_a_backend_away() {
    let scene = scripted();
    let registry = &scene.registry.registry;
    let open = scene.connection_to(1);
    for fault in Fault::QUICK.into_iter().chain([Fault::Hang, Fault::Drip]) {
        registry.set_fault(fault.clone());
        let source = scene.wait_source(|s| s.state == "failing");
        assert_eq!(source.instances, 2, "{fault:?}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{fault:?}");
        note(format!("{fault:?}: {}", source.last_error.unwrap()));
        registry.set_fault(None);
        scene.wait_source(|s| s.state == "synced");
    }
    scene.goes_on(&open, "faults");
    open.close().unwrap();
    scene.registry.change(|state| {
        state.entries = entries(&[1, 2, 3]);
        state.index += 1;
    });
    scene.wait_serving(&[1, 2, 3]);
}

#[test]
fn answers_that_do_not_say_what_there_is_are_failures() {
    let scene = scripted();
    for (headers, gone, words) in [
        (
            vec![("X-Consul-Index", "1"), ("X-Consul-KnownLeader", "false")],
            true,
            "knows no leader",
        ),
        (
            vec![
                ("X-Consul-Index", "1"),
                ("X-Consul-Results-Filtered-By-ACLs", "true"),
            ],
            true,
            "may not see all",
        ),
        (vec![], true, "is this Consul?"),
        (vec![("X-Consul-Index", "many")], false, "is this Consul?"),
    ] {
        scene.registry.change(|state| {
            state.headers = Some(headers);
            state.entries = entries(if gone { &[] } else { &[1, 2] });
            state.index += 1;
        });
        let failing = |s: &lb_userspace::discovery::SourceItem| {
            s.state == "failing" && s.last_error.as_ref().is_some_and(|e| e.contains(words))
        };
        assert_eq!(scene.wait_source(failing).instances, 2);
        assert_eq!(scene.reached(), ["b1", "b2"]);
        scene.registry.change(|state| {
            state.headers = None;
            state.entries = entries(&[1, 2]);
            state.index += 1;
        });
        scene.wait_source(|s| s.state == "synced" && s.held == 0);
    }
}

#[test]
fn blocking_queries_follow_the_documented_rules() {
    let start = |network: &Network| {
        replace_file(&network.node, "lbd/token", "s3cret\n").unwrap();
        Scripted::start(network)
    };
    let scene = Scene::new(
        start,
        "{consul: {service: web, wait: 1s, merge_window: 0ms, token: {file: /run/lbd/token}}}",
    );
    scene.wait_serving(&[1, 2]);
    let registry = &scene.registry.registry;
    let asked = scene.registry.wait_index(Some("1000"));
    assert_eq!(asked.query["wait"], format!("{}ms", WAIT.as_millis()));
    assert_eq!(asked.headers["x-consul-token"], "s3cret");
    let export = scene.daemon.ctl(&["export"]).unwrap();
    assert!(export.contains("file: /run/lbd/token"), "{export}");
    assert!(!(export + &scene.daemon.log()).contains("s3cret"));

    // The cluster is restored from an older state: the index runs backwards. What happens under the
    // lower one is heard.
    registry.take_asked();
    scene.registry.change(|state| state.index = 3);
    scene.registry.wait_index(None);
    scene.registry.wait_index(Some("3"));
    scene.registry.change(|state| {
        state.entries = entries(&[1, 2, 3]);
        state.index = 4;
    });
    scene.wait_serving(&[1, 2, 3]);

    // An index of 0, which would never block.
    registry.take_asked();
    scene.registry.change(|state| state.index = 0);
    scene.registry.wait_index(Some("1"));
    assert!(
        registry
            .take_asked()
            .iter()
            .all(|r| r.query.get("index") != Some(&"0".to_owned()))
    );

    // A cluster that never holds a query back is not asked without a pause.
    scene.registry.change(|state| state.blocks = false);
    registry.take_asked();
    let began = Instant::now();
    thread::sleep(Duration::from_secs(2));
    let count = registry.take_asked().len();
    let most = began.elapsed().as_millis() / 100 + 2;
    note(format!(
        "a Consul that never blocks was asked {count} times in two seconds"
    ));
    assert!((3..=most as usize).contains(&count), "{count} queries");
}

/// The examples of the documentation, as they stand.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/consul.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    // It only has to be understood: its servers speak TLS, or are sold.
    page.config("secured", &network, "native").unwrap();
    let minimal = page.config("minimal", &network, "native").unwrap();
    let complete = page.config("complete", &network, "native").unwrap();
    if let Err(why) = Consul::program() {
        note(format!("examples only parsed: {why}"));
        return;
    }
    let consul = Consul::start(&network.node).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let register = |host, more: &str| {
        let body = registration(host, HTTP_PORT, more);
        consul.put("/v1/agent/service/register", &body).unwrap();
    };
    let backend = |host| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));
    register(1, "");
    register(2, r#", "Tags": ["v2"], "Meta": {"zone": "a"}"#);
    register(3, r#", "Tags": ["v2"], "Meta": {"zone": "b"}"#);
    let daemon = Daemon::start_with(&network.node, &minimal).unwrap();
    for host in 1..=3 {
        daemon
            .wait_backend("web", backend(host), LONG, |b| b.effective_weight == 100)
            .unwrap();
    }
    replace_file(&network.node, "lbd/consul-token", "a1b2c3\n").unwrap();
    daemon.write_config(&complete).unwrap();
    daemon.ctl(&["reload"]).unwrap();
    daemon
        .wait_backend("web", backend(2), LONG, |b| {
            b.effective_weight == 10 && has_label(b, "team", "shop")
        })
        .unwrap();
    let only = lb_tests::eventually(LONG, || daemon.backends().is_ok_and(|all| all.len() == 1));
    assert!(only, "{:?}", daemon.backends());
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
    assert_eq!(result.by_backend.into_keys().collect::<Vec<_>>(), ["b2"]);
}
