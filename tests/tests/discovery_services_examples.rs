//! The documentation's examples of services that are found, as they stand: in a pod, and outside with a
//! token and a kubeconfig, each over TLS.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    clients::{Protocol, any_port, ask_once},
    cluster::{Cluster, Pod, endpoint, served, slice},
    daemon::{Daemon, has_label},
    docs::Page,
    eventually,
    host::Host,
    net::{Family, Network, Topology},
    servers::{HTTP_PORT, start_all},
    tls::{Front, Pki},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);
const NODE_PORT: u16 = 30080;

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn vip(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, 100 + n])
}

fn http(host: usize, service: &str, namespace: &str) -> Value {
    let name = format!("{service}-{host}");
    let one = vec![endpoint(format!("10.1.{host}.2"), &name, Pod::Ready)];
    slice(namespace, service, &name, ("echo", HTTP_PORT), one)
}

/// The service account of a pod, and the files that the examples name.
fn write_secrets(node: &Host, pki: &Pki) {
    let account = node.run_path("secrets/kubernetes.io/serviceaccount");
    pki.write(&account).unwrap();
    std::fs::rename(account.join("ca.pem"), account.join("ca.crt")).unwrap();
    std::fs::write(account.join("token"), "t0ken").unwrap();
    std::fs::write(account.join("namespace"), "lbd").unwrap();
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
}

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
    let mut service = served("shop", "web", vip(0), 80);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
    cluster.apply(service);
    cluster.apply(http(1, "web", "shop"));
    let mut api = served("west", "api", vip(1), 80);
    api["metadata"]["labels"] = json!({"app": "api"});
    cluster.apply(api);
    cluster.apply(http(2, "api", "west"));
    write_secrets(node, &pki);

    let wait_reached = |target: SocketAddr, backend: &str| {
        let source = any_port(network.client_addresses(Family::V4)[0]);
        let asked = || ask_once(Protocol::Http, source, target, "who");
        let reached = eventually(LONG, || {
            network
                .client
                .run(asked)
                .is_ok_and(|answer| answer.backend == backend)
        });
        assert!(reached, "{target}: no connection reaches {backend}");
    };
    let minimal = page.config("services-minimal", &network, "native").unwrap();
    let environment = vec![
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT", "6443".to_owned()),
    ];
    let daemon = Daemon::start_in(node, &minimal, environment).unwrap();
    wait_reached((vip(0), 80).into(), "b1");
    assert_eq!(daemon.services().unwrap().len(), 1);

    let complete = page
        .config("services-complete", &network, "native")
        .unwrap();
    daemon.write_config(&complete).unwrap();
    daemon.ctl(&["reload"]).unwrap();
    wait_reached((vip(0), 80).into(), "b1");
    wait_reached((vip(1), 80).into(), "b2");
    let node_port = (network.node_address(Family::V4), NODE_PORT).into();
    wait_reached(node_port, "b1");
    let first: SocketAddr = "10.1.1.2:8080".parse().unwrap();
    daemon
        .wait_backend("shop.web.echo", first, LONG, |b| {
            b.effective_weight == 50 && has_label(b, "cluster", "east")
        })
        .unwrap();
    for what in [
        &["export"][..],
        &["describe", "service", "shop.web.echo"],
        &["get", "sources", "-o", "json"],
    ] {
        let shown = daemon.ctl(what).unwrap();
        assert!(!shown.contains("t0ken"), "{shown}");
    }
    assert!(!daemon.log().contains("t0ken"));
}
