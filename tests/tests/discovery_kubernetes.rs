//! Backends from Kubernetes: they come, change, drain and go with their slices, and no fault of the
//! API server takes one away.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2      API server at 127.0.0.1:6443 of the node
//!                            └── b3
//! ```

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    clients::{Protocol, burst, summary},
    cluster::{Cluster, Pod, endpoint, service, slice},
    daemon::{Daemon, has_label},
    discovered,
    docs::Page,
    eventually,
    host::Host,
    net::{Family, Network, Topology},
    note,
    registry::Fault,
    servers::{ECHO_PORT, HTTP_PORT, start_all},
    tls::{Front, Pki},
};
use lb_userspace::model::BackendState;

const LONG: Duration = Duration::from_secs(30);
const SOURCE: &str = "server: \"http://127.0.0.1:6443\", namespace: shop, service: web, port: echo, watch_timeout: 1s";

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

type Scene = discovered::Scene<Cluster>;

/// A slice with one pod on a host of the network.
fn pod(host: usize, state: Pod, weight: Option<u16>) -> serde_json::Value {
    let name = format!("web-{host}");
    let one = vec![endpoint(format!("10.1.{host}.2"), &name, state)];
    let mut slice = slice("shop", "web", &name, ("echo", ECHO_PORT), one);
    slice["metadata"]["labels"]["app.kubernetes.io/version"] = format!("v{host}").into();
    if let Some(weight) = weight {
        slice["metadata"]["annotations"]["lbd.io/weight"] = weight.to_string().into();
    }
    slice
}

fn cluster(node: &Host, hosts: &[usize]) -> Cluster {
    let cluster = Cluster::start(node, local(6443)).unwrap();
    fill(&cluster, hosts);
    cluster
}

fn fill(cluster: &Cluster, hosts: &[usize]) {
    cluster.apply(service("shop", "web", &[("echo", 80)]));
    for host in hosts {
        cluster.apply(pod(*host, Pod::Ready, None));
    }
}

fn start(hosts: &[usize], keys: &str) -> Scene {
    let scene = Scene::new(
        |network| cluster(&network.node, hosts),
        &format!("{{kubernetes: {{{SOURCE}{keys}}}}}"),
    );
    scene.wait_source(|s| s.instances as usize == hosts.len());
    scene.daemon.wait_all_healthy().unwrap();
    scene
}

fn apply(scene: &Scene, host: usize, state: Pod, weight: Option<u16>) {
    scene.registry.apply(pod(host, state, weight));
}

fn leave(scene: &Scene, host: usize) {
    let name = format!("web-{host}");
    scene.registry.delete("EndpointSlice", "shop", &name);
}

fn synced(scene: &Scene, instances: u32) {
    scene.wait_source(|s| s.state == "synced" && s.instances == instances && s.held == 0);
}

#[test]
fn a_pod_comes_changes_drains_and_leaves() {
    let scene = start(&[1], "");
    let open = scene.connection_to(1);
    assert_eq!(scene.reached(), ["b1"]);

    apply(&scene, 2, Pod::Ready, Some(300));
    scene.wait_reached(2, "a pod appears in a slice");
    scene.wait(2, |b| {
        b.weight == 300
            && b.effective_weight == 300
            && has_label(b, "version", "v2")
            && has_label(b, "zone", "a")
            && has_label(b, "pod", "web-2")
            && b.source == "discovery:kubernetes"
    });
    let share = scene.burst(800).share("b2");
    assert!((0.68..0.82).contains(&share), "weights 100, 300: {share}");

    apply(&scene, 1, Pod::Ready, Some(300));
    apply(&scene, 2, Pod::Ready, None);
    scene.wait(1, |b| b.effective_weight == 300);
    scene.wait(2, |b| b.effective_weight == 100);
    let share = scene.burst(800).share("b2");
    assert!((0.18..0.32).contains(&share), "weights 300, 100: {share}");

    apply(&scene, 1, Pod::Leaving, None);
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "kubernetes: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "drained");

    // It would be none otherwise.
    apply(&scene, 2, Pod::Unready, None);
    scene.wait(2, |b| {
        b.state == BackendState::Unhealthy && b.reasons[0] == "kubernetes: down"
    });
    scene.wait(1, |b| b.state == BackendState::Healthy);
    assert_eq!(scene.reached(), ["b1"]);

    apply(&scene, 2, Pod::Ready, None);
    scene.wait(2, |b| b.state == BackendState::Healthy);
    leave(&scene, 1);
    scene.wait_gone(1);
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "removed");
    open.close().unwrap();
    let sources = scene.daemon.ctl(&["get", "sources"]).unwrap();
    note(format!("lbctl get sources:\n{sources}"));
}

/// Each fault, the server's death and its return, also as one that lost everything.
#[test]
fn no_fault_of_the_server_takes_a_backend_away() {
    let mut scene = start(&[1, 2], ", empty_hold: 8s");
    let open = [scene.connection_to(1), scene.connection_to(2)];
    let mut told = Vec::new();
    let mut hit = |scene: &Scene, what: &str| {
        let source = scene
            .daemon
            .wait_source("web", LONG, |s| {
                // A watch that breaks may be told as well; this is the list behind it.
                let told = s.last_error.as_ref();
                s.state == "failing" && told.is_some_and(|e| e.starts_with("http://"))
            })
            .unwrap();
        assert_eq!(source.instances, 2, "{what}");
        assert_eq!(scene.known().len(), 2, "{what}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{what}");
        told.push(format!("{what}: {}", source.last_error.unwrap()));
    };
    for fault in Fault::QUICK.into_iter().chain([Fault::Hang]) {
        scene.registry.registry.set_fault(fault.clone());
        scene.registry.registry.drop_connections();
        hit(&scene, &format!("{fault:?}"));
        scene.registry.registry.set_fault(None);
        synced(&scene, 2);
    }
    scene.registry.registry.kill();
    hit(&scene, "killed");
    // What happens meanwhile is there as soon as the server is.
    scene.registry.apply(pod(3, Pod::Ready, None));
    scene.registry.registry.restart().unwrap();
    scene.wait(3, |b| b.state == BackendState::Healthy);
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
    leave(&scene, 3);
    scene.wait_gone(3);
    synced(&scene, 2);

    // Restarted with nothing in it: no Service, so no answer.
    scene.registry.registry.kill();
    scene.registry.forget();
    scene.registry.registry.restart().unwrap();
    let source = scene
        .daemon
        .wait_source("web", LONG, |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.contains("no Service shop/web"))
        })
        .unwrap();
    assert_eq!((source.instances, &*source.state), (2, "failing"));
    told.push(source.last_error.unwrap());
    // The Service, without endpoints yet: those that were known are held.
    scene
        .registry
        .apply(service("shop", "web", &[("echo", 80)]));
    scene
        .daemon
        .wait_source("web", LONG, |s| s.instances == 2 && s.held == 2)
        .unwrap();
    assert_eq!(scene.reached(), ["b1", "b2"]);
    fill(&scene.registry, &[1, 2]);
    synced(&scene, 2);
    assert_eq!(scene.reached(), ["b1", "b2"]);
    for words in told {
        note(format!("told: {words}"));
    }
    for connection in &open {
        scene.goes_on(connection, "faults");
    }
    // None for good, which is meant in the end.
    leave(&scene, 1);
    leave(&scene, 2);
    assert!(eventually(LONG, || scene.known().is_empty()));
    for connection in open {
        scene.goes_on(&connection, "all gone");
        connection.close().unwrap();
    }
}

/// Killed, and started while the API server is away.
#[test]
fn a_daemon_that_starts_without_its_server_serves_what_it_knew() {
    let mut scene = start(&[1, 2], "");
    apply(&scene, 3, Pod::Leaving, Some(7));
    scene.wait(3, |b| b.state == BackendState::Draining);
    // The last change is on disk a second later at the latest.
    std::thread::sleep(Duration::from_millis(2500));
    scene.daemon.kill9();
    scene.registry.registry.kill();
    scene.daemon.restart().unwrap();
    let source = scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "stale")
        .unwrap();
    assert_eq!(source.instances, 3);
    scene.wait(1, |b| b.effective_weight == 100);
    scene.wait(2, |b| b.effective_weight == 100);
    scene.wait(3, |b| b.weight == 7 && has_label(b, "version", "v3"));
    assert_eq!(scene.reached(), ["b1", "b2"]);
    scene.registry.registry.restart().unwrap();
    apply(&scene, 3, Pod::Ready, None);
    scene.wait(3, |b| b.state == BackendState::Healthy);
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
}

/// The examples of the documentation, as they stand: in a pod, and outside with a token and a
/// kubeconfig, each over TLS.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/kubernetes.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let node = &network.node;
    let cluster = Cluster::start(node, local(16443)).unwrap();
    let pki = Pki::new().unwrap();
    let front = Front::start(node, &pki, &["127.0.0.1"], false, local(6443), local(16443));
    let _front = front.unwrap();
    cluster.set_token(Some("t0ken"));
    cluster.apply(service("shop", "web", &[("http", 80)]));
    let http = |host: usize, name: &str, service: &str, state| {
        let one = vec![endpoint(format!("10.1.{host}.2"), name, state)];
        slice("shop", service, name, ("http", HTTP_PORT), one)
    };
    cluster.apply(http(1, "web-1", "web", Pod::Ready));
    cluster.apply(http(2, "web-2", "web", Pod::Ready));

    let account = node.run_path("secrets/kubernetes.io/serviceaccount");
    pki.write(&account).unwrap();
    std::fs::rename(account.join("ca.pem"), account.join("ca.crt")).unwrap();
    std::fs::write(account.join("token"), "t0ken").unwrap();
    std::fs::write(account.join("namespace"), "lbd").unwrap();
    let reached = |port: u16| {
        let sources = network.client_addresses(Family::V4);
        let target = (network.vip(0, Family::V4), 80).into();
        let result = burst(&network.client, &sources, port, 200, Protocol::Http, target);
        assert_eq!(summary(&result.failures), "none");
        result.by_backend
    };
    let backend = |host| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));

    let config = page.config("minimal", &network, "native").unwrap();
    let environment = vec![
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT", "6443".to_owned()),
    ];
    let daemon = Daemon::start_in(node, &config, environment).unwrap();
    for host in [1, 2] {
        daemon
            .wait_backend("web", backend(host), LONG, |b| {
                b.state == BackendState::Healthy
            })
            .unwrap();
    }
    assert_eq!(
        reached(20_000).into_keys().collect::<Vec<_>>(),
        ["b1", "b2"]
    );

    // A canary beside it, with an app label of `web`.
    let mut canary = service("shop", "canary", &[("http", 80)]);
    canary["metadata"]["labels"] = serde_json::json!({"app": "web", "version": "v2"});
    canary["metadata"]["annotations"] = serde_json::json!({"lbd.io/weight": "10"});
    cluster.apply(canary);
    cluster.apply(http(3, "canary-1", "canary", Pod::Ready));
    let files = node.run_path("lbd/kubernetes");
    pki.write(&files).unwrap();
    std::fs::write(files.join("token"), "t0ken\n").unwrap();
    let kubeconfig = "\
apiVersion: v1
kind: Config
contexts:
- {name: west, context: {cluster: west, user: lbd}}
clusters:
- {name: west, cluster: {server: \"https://127.0.0.1:6443\", certificate-authority: ca.pem}}
users:
- {name: lbd, user: {token: t0ken}}
";
    std::fs::write(files.join("config"), kubeconfig).unwrap();
    daemon
        .write_config(&page.config("complete", &network, "native").unwrap())
        .unwrap();
    daemon.ctl(&["reload"]).unwrap();
    daemon
        .wait_backend("web", backend(3), LONG, |b| {
            b.effective_weight == 10
                && has_label(b, "version", "v2")
                && has_label(b, "cluster", "east")
        })
        .unwrap();
    daemon
        .wait_backend("web", backend(1), LONG, |b| b.effective_weight == 50)
        .unwrap();
    let synced = eventually(LONG, || {
        let sources = daemon.sources().unwrap();
        sources.len() == 2 && sources.iter().all(|s| s.state == "synced")
    });
    assert!(synced, "{:?}", daemon.sources());
    let by_backend = reached(30_000);
    assert!(by_backend["b1"] > by_backend["b3"], "{by_backend:?}");
    for what in [
        &["export"][..],
        &["describe", "service", "web"],
        &["get", "sources", "-o", "json"],
    ] {
        let shown = daemon.ctl(what).unwrap();
        assert!(!shown.contains("t0ken"), "{shown}");
    }
    assert!(!daemon.log().contains("t0ken"));
}
