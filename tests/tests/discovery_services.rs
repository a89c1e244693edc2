//! Services of Kubernetes that become services of lbd by themselves.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2      API server at 127.0.0.1:6443 of the node
//!   8 addresses              └── b3
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Failure, LongLived, Protocol, any_port, ask_once},
    cluster::{Cluster, Pod, endpoint, served, slice},
    daemon::{Config, Daemon, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::{Agent, ECHO_PORT, start_all},
};
use lb_userspace::{discovery::SourceItem, model::BackendState};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);
const NODE_PORT: u16 = 30080;

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

struct Scene {
    // Dropped in this order.
    daemon: Daemon,
    cluster: Cluster,
    _agents: Vec<Agent>,
    network: Network,
}

fn config(network: &Network, keys: &str) -> String {
    let discovery = format!(
        "discovery: {{kubernetes: {{server: \"http://127.0.0.1:6443\", merge_window: 50ms{keys}}}}}\n"
    );
    Config::new(network, "native").render() + &discovery
}

impl Scene {
    fn new(objects: Vec<Value>, keys: &str) -> Self {
        let network = Network::new(Topology::default()).unwrap();
        let agents = start_all(&network.backends).unwrap();
        let cluster = Cluster::start(&network.node, local(6443)).unwrap();
        objects.into_iter().for_each(|object| cluster.apply(object));
        let daemon = Daemon::start_with(&network.node, &config(&network, keys)).unwrap();
        let scene = Self {
            daemon,
            cluster,
            _agents: agents,
            network,
        };
        scene.wait_source(|source| source.state == "synced");
        scene
    }

    fn wait_source(&self, condition: impl Fn(&SourceItem) -> bool) -> SourceItem {
        self.daemon.wait_source("", LONG, condition).unwrap()
    }

    /// Who answers the `n`th client address there.
    fn ask(&self, n: usize, target: SocketAddr) -> Result<String, Failure> {
        let family = if target.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let source = any_port(self.network.client_addresses(family)[n]);
        let asked = || ask_once(Protocol::Tcp, source, target, "who");
        self.network.client.run(asked).map(|answer| answer.backend)
    }

    fn wait_reached(&self, target: SocketAddr, backend: &str) {
        let reached = eventually(LONG, || {
            self.ask(0, target).is_ok_and(|answer| answer == backend)
        });
        assert!(reached, "{target}: no connection reaches {backend}");
    }

    /// Who answers a client that asks again and again.
    fn answers(&self, target: SocketAddr) -> BTreeSet<String> {
        let answers = (0..30).map(|_| self.ask(0, target).unwrap());
        answers.collect()
    }

    fn vip(&self, n: u8) -> SocketAddr {
        (self.network.vip(n, Family::V4), ECHO_PORT).into()
    }

    fn names(&self) -> Vec<String> {
        let services = self.daemon.services().unwrap();
        services.into_iter().map(|service| service.name).collect()
    }

    fn wait_names(&self, names: &[&str]) {
        let mut last = Vec::new();
        let met = eventually(LONG, || {
            last = self.names();
            last == names
        });
        assert!(met, "not {names:?}: {last:?}");
    }
}

/// What `service` is in addition.
fn with(mut service: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

/// A slice with the pods of these hosts.
fn pods(service: &str, hosts: &[usize]) -> Value {
    let pods = hosts.iter().map(|host| {
        let name = format!("{service}-{host}");
        endpoint(format!("10.1.{host}.2"), &name, Pod::Ready)
    });
    let name = format!("{service}-v4");
    slice("shop", service, &name, ("echo", ECHO_PORT), pods.collect())
}

fn web() -> Value {
    served("shop", "web", vip(0), ECHO_PORT)
}

fn vip(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, 100 + n])
}

#[test]
fn a_service_is_reached_at_all_its_addresses_until_it_goes() {
    // None at all would be an empty answer, which is held.
    let other = served("shop", "other", "10.96.0.1", 80);
    let scene = Scene::new(vec![other], ", nodeport_addresses: 10.0.0.0/24");
    scene.wait_names(&["shop.other.echo"]);
    let client = scene.network.client_addresses(Family::V4)[0];
    let v6 = scene.network.vip(0, Family::V6);
    let mut service = with(
        web(),
        json!({
            "type": "LoadBalancer",
            "clusterIPs": [vip(0).to_string(), v6.to_string()],
            "externalIPs": [vip(1).to_string()],
            "loadBalancerSourceRanges": [format!("{client}/32")],
        }),
    );
    service["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": vip(2).to_string()}]}});
    scene.cluster.apply(service);
    scene.cluster.apply(pods("web", &[1]));
    let one = vec![endpoint("fd00:1:1::2", "web-1", Pod::Ready)];
    let six = slice("shop", "web", "web-v6", ("echo", ECHO_PORT), one);
    scene.cluster.apply(six);

    scene.wait_reached(scene.vip(0), "b1");
    scene.wait_reached((v6, ECHO_PORT).into(), "b1");
    scene.wait_reached(scene.vip(1), "b1");
    let node = scene.network.node_address(Family::V4);
    scene.wait_reached((node, NODE_PORT).into(), "b1");
    scene.wait_reached(scene.vip(2), "b1");
    assert!(scene.ask(1, scene.vip(0)).is_ok());
    assert_eq!(
        scene.ask(1, scene.vip(2)),
        Err(Failure::Timeout),
        "a client that is not among the source ranges"
    );
    // From the oldest to the youngest; of one age, by name.
    scene.wait_names(&[
        "shop.other.echo",
        "shop.web.echo",
        "shop.web.echo.external",
        "shop.web.echo.lb",
    ]);
    let services = scene.daemon.services().unwrap();
    assert!(services.iter().all(|s| s.source == "discovery:kubernetes"));
    let source = scene.wait_source(|s| s.services == Some(4));
    assert_eq!((source.instances, &*source.service), (4, ""));
    let metric = "lbd_source_services{kind=\"kubernetes\",service=\"\",target=\"http://127.0.0.1:6443/\
                  */[service.kubernetes.io/service-proxy-name=lbd]\"}";
    assert_eq!(scene.daemon.metric(metric).unwrap(), 4.0);
    for what in [
        &["get", "sources"][..],
        &["get", "services", "-o", "wide"],
        &["describe", "service", "shop.web.echo.lb"],
    ] {
        note(format!(
            "{}:\n{}",
            what.join(" "),
            scene.daemon.ctl(what).unwrap()
        ));
    }

    // What a file or lbctl says is not about it.
    let refused = scene.daemon.lbctl(&["remove", "service", "shop.web.echo"]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert!(!scene.daemon.ctl(&["export"]).unwrap().contains("shop.web"));
    scene.daemon.ctl(&["reload"]).unwrap();
    assert_eq!(scene.names().len(), 4);
    assert_eq!(scene.ask(0, scene.vip(0)).unwrap(), "b1");

    let source = any_port(scene.network.client_addresses(Family::V4)[2]);
    let host = &scene.network.client;
    let open = LongLived::open(host, Protocol::Tcp, source, scene.vip(0)).unwrap();
    scene.cluster.delete("Service", "shop", "web");
    scene.wait_names(&["shop.other.echo"]);
    assert!(scene.ask(0, scene.vip(0)).is_err(), "a new connection");
    let goal = open.exchanges() + 4;
    let goes_on = eventually(LONG, || open.exchanges() >= goal || !open.is_alive());
    assert!(goes_on && open.is_alive(), "the open connection broke");
    open.close().unwrap();
}

/// Drained backends stay drained through a restart; and there is one pair of watches however many
/// Services there are.
#[test]
fn backends_of_a_service_are_operated_like_others() {
    let mut objects = vec![web(), pods("web", &[1, 2])];
    for n in 0..20 {
        let address = format!("10.96.1.{n}");
        objects.push(served("shop", &format!("other-{n}"), address, 80));
    }
    let mut scene = Scene::new(objects, ", watch_timeout: 10m");
    scene.wait_source(|source| source.services == Some(21));
    scene.wait_reached(scene.vip(0), "b2");
    let watching = eventually(LONG, || scene.cluster.counts() == (2, 2));
    assert!(watching, "{:?}", scene.cluster.counts());

    scene
        .daemon
        .ctl(&["set", "weight", "shop.web.echo/10.1.1.2:7000", "7"])
        .unwrap();
    scene
        .daemon
        .ctl(&["drain", "shop.web.echo/10.1.2.2:7000"])
        .unwrap();
    assert_eq!(scene.answers(scene.vip(0)), ["b1".to_owned()].into());
    // Through a change of the Service itself, too.
    let local = json!({"internalTrafficPolicy": "Cluster", "sessionAffinity": "None"});
    scene.cluster.apply(with(web(), local));
    scene.cluster.apply(pods("web", &[1, 2, 3]));
    let third: SocketAddr = "10.1.3.2:7000".parse().unwrap();
    let up = |b: &lb_userspace::api::types::BackendItem| b.state == BackendState::Healthy;
    scene
        .daemon
        .wait_backend("shop.web.echo", third, LONG, up)
        .unwrap();
    let but_the_second: BTreeSet<_> = ["b1", "b3"].map(str::to_owned).into();
    let wait_without = |scene: &Scene| {
        let of_backends = scene.daemon.backends().unwrap();
        let drained = of_backends
            .iter()
            .filter(|b| b.state == BackendState::Draining);
        assert_eq!(drained.count(), 1, "{of_backends:?}");
        let answers = scene.answers(scene.vip(0));
        assert!(answers.is_subset(&but_the_second), "{answers:?}");
    };
    wait_without(&scene);
    scene.daemon.stop().unwrap();
    scene.daemon.restart().unwrap();
    scene.wait_source(|source| source.state == "synced" && source.services == Some(21));
    wait_without(&scene);
    let weight = scene.daemon.backends().unwrap();
    let weight = weight
        .iter()
        .find(|b| b.address.to_string() == "10.1.1.2:7000");
    assert_eq!(weight.unwrap().effective_weight, 7);
}

#[test]
fn clients_stay_with_their_backend_if_the_service_says_so() {
    let sticky = |affinity: &str| with(web(), json!({"sessionAffinity": affinity}));
    let objects = vec![sticky("ClientIP"), pods("web", &[1, 2, 3])];
    let scene = Scene::new(objects, "");
    scene.wait_source(|source| source.instances == 3);
    let reachable = eventually(LONG, || scene.ask(0, scene.vip(0)).is_ok());
    assert!(reachable);
    assert_eq!(scene.answers(scene.vip(0)).len(), 1);
    scene.cluster.apply(sticky("None"));
    let spread = eventually(LONG, || scene.answers(scene.vip(0)).len() > 1);
    assert!(spread, "still at one backend");
}

/// Killed, and started while the API server is away; then the server comes back with nothing in it.
#[test]
fn no_fault_of_the_server_takes_a_service_away() {
    let objects = vec![web(), pods("web", &[1, 2])];
    let mut scene = Scene::new(objects.clone(), ", empty_hold: 1h");
    scene.wait_source(|source| source.instances == 2);
    scene.wait_reached(scene.vip(0), "b1");
    let saved = scene.network.node.run_path("lbd/state/discovery");
    let is_saved = eventually(LONG, || {
        let files = std::fs::read_dir(&saved).unwrap().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.into_iter().any(|text| text.contains("10.1.2.2:7000"))
    });
    assert!(is_saved, "nothing in {}", saved.display());
    scene.daemon.kill9();
    scene.cluster.registry.kill();
    scene.daemon.restart().unwrap();
    let source = scene.wait_source(|source| source.state == "stale");
    assert_eq!((source.services, source.instances), (Some(1), 2));
    note(format!("told: {}", source.trouble().unwrap()));
    assert_eq!(scene.names(), ["shop.web.echo"]);
    scene.wait_reached(scene.vip(0), "b1");
    scene.wait_reached(scene.vip(0), "b2");

    scene.cluster.forget();
    scene.cluster.registry.restart().unwrap();
    let source = scene.wait_source(|source| source.state == "synced");
    assert_eq!((source.services, source.held), (Some(1), 1));
    scene.wait_reached(scene.vip(0), "b2");
    // The Service is there again, without endpoints yet.
    scene.cluster.apply(objects[0].clone());
    let source = scene.wait_source(|source| source.held == 2);
    assert_eq!((source.services, source.instances), (Some(1), 2));
    scene.wait_reached(scene.vip(0), "b1");
    scene.cluster.apply(objects[1].clone());
    scene.wait_source(|source| source.held == 0);
    scene.wait_reached(scene.vip(0), "b2");
    assert_eq!(scene.names(), ["shop.web.echo"]);
}

/// Nothing says what the kernel serves, and it is served until the API server says what there is.
#[test]
fn a_lost_state_directory_takes_no_service_away() {
    let mut scene = Scene::new(vec![web(), pods("web", &[1, 2])], "");
    scene.wait_source(|source| source.instances == 2);
    for backend in ["b1", "b2"] {
        scene.wait_reached(scene.vip(0), backend);
    }
    scene.daemon.kill9();
    scene.cluster.registry.kill();
    std::fs::remove_dir_all(scene.network.node.run_path("lbd/state")).unwrap();
    scene.daemon.restart().unwrap();
    let source = scene.wait_source(|source| source.last_error.is_some());
    assert_eq!(source.services, Some(0));
    let problems = scene.daemon.status().unwrap().problems;
    let told = problems.iter().find(|p| p.contains("a former lbd"));
    note(format!("told: {}", told.expect("nothing said")));
    for backend in ["b1", "b2"] {
        scene.wait_reached(scene.vip(0), backend);
    }
    // Other changes leave it alone.
    scene.daemon.ctl(&["reload"]).unwrap();
    scene.wait_reached(scene.vip(0), "b1");

    scene.cluster.registry.restart().unwrap();
    scene.wait_source(|source| {
        source.state == "synced" && source.services == Some(1) && source.instances == 2
    });
    scene.wait_reached(scene.vip(0), "b2");
    let problems = scene.daemon.status().unwrap().problems;
    assert!(
        !problems.iter().any(|p| p.contains("a former lbd")),
        "{problems:?}"
    );
}

/// What a person configured has its address, and its limits.
#[test]
fn what_is_configured_comes_first() {
    let scene = Scene::new(vec![web(), pods("web", &[1])], "");
    scene.wait_reached(scene.vip(0), "b1");
    let own = Service::new("own", Protocol::Tcp)
        .listen(&scene.network, 0, ECHO_PORT)
        .backends(&scene.network, ECHO_PORT, &[0, 1]);
    let text = config(&scene.network, "");
    let (_, discovery) = text.split_once("discovery:").unwrap();
    let file = Config::new(&scene.network, "native").service(own).render();
    let both = format!("{file}discovery:{discovery}");
    scene.daemon.write_config(&both).unwrap();
    scene.daemon.ctl(&["reload"]).unwrap();
    assert_eq!(scene.names(), ["own"]);
    scene.wait_reached(scene.vip(0), "b2");
    let problems = scene.daemon.status().unwrap().problems;
    let told = problems.iter().find(|p| p.contains("`shop.web.echo`"));
    let told = told.unwrap_or_else(|| panic!("{problems:?}"));
    assert!(
        told.contains("out of force") && told.contains("`own`"),
        "{told}"
    );
    // As it was, once nobody else wants the address.
    scene.daemon.write_config(&text).unwrap();
    scene.daemon.ctl(&["reload"]).unwrap();
    assert_eq!(scene.names(), ["shop.web.echo"]);
    scene.wait_reached(scene.vip(0), "b1");
    // Nothing is found without a source.
    scene.daemon.write_config(&file).unwrap();
    scene.daemon.ctl(&["reload"]).unwrap();
    assert_eq!(scene.names(), ["own"]);
    assert_eq!(scene.daemon.sources().unwrap().len(), 0);
}

/// Each with five pods; then one pod of one of them leaves.
#[test]
fn a_thousand_services_come_at_once_and_one_changes_alone() {
    let slice_of = |n: usize, pods: usize| {
        let pods = (1..=pods).map(|pod| {
            let address = format!("10.1.{}.{}", pod % 3 + 1, (n * 5 + pod) % 250 + 3);
            endpoint(address, &format!("p{n}-{pod}"), Pod::Ready)
        });
        let name = format!("s{n}");
        slice("shop", &name, &name, ("echo", ECHO_PORT), pods.collect())
    };
    let keys = ", watch_timeout: 10m, resync: 0s";
    let scene = Scene::new(vec![web(), pods("web", &[1])], keys);
    scene.wait_reached(scene.vip(0), "b1");
    let before = scene.daemon.resident_bytes().unwrap();
    let began = Instant::now();
    for n in 0..1000 {
        let address = format!("10.96.{}.{}", n / 250, n % 250 + 1);
        scene
            .cluster
            .apply(served("shop", &format!("s{n}"), address, 80));
        scene.cluster.apply(slice_of(n, 5));
    }
    scene.wait_source(|source| source.services == Some(1001) && source.instances == 5001);
    let all = eventually(LONG, || scene.daemon.status().unwrap().backends == 5001);
    assert!(all, "{:?}", scene.daemon.status());
    let memory = scene.daemon.resident_bytes().unwrap();
    note(format!(
        "1,000 Services with 5 pods each: all in force {:.0?} later, {} MiB resident, {} before",
        began.elapsed(),
        memory >> 20,
        before >> 20
    ));
    let tables = || scene.daemon.metric("lbd_tables_written_total").unwrap();
    let written = tables();
    let began = Instant::now();
    scene.cluster.apply(slice_of(7, 4));
    let gone = eventually(LONG, || scene.daemon.status().unwrap().backends == 5000);
    assert!(gone, "{:?}", scene.daemon.status());
    assert!(eventually(LONG, || tables() > written));
    note(format!(
        "one pod leaves: its service has another table {:.0?} later",
        began.elapsed()
    ));
    assert_eq!(tables() - written, 1.0, "only its service is touched");
    assert_eq!(scene.cluster.counts(), (2, 2));
    scene.wait_reached(scene.vip(0), "b1");
}
