//! The config's own `discovery:`.

use super::{accepted, faults, warnings};
use crate::{
    config::{check, render},
    discovery::{
        ServicesKind,
        kubernetes::{Access, Select, WATCH_TIMEOUT, services::SELECTOR},
    },
    model::{HealthCheck, Policy},
};

fn discovery(text: &str) -> String {
    format!("discovery: {{kubernetes: {text}}}")
}

#[test]
fn the_least_and_everything() {
    let text = discovery("{}");
    let parsed = accepted(&text).config;
    assert_eq!(warnings(&text), Vec::<String>::new());
    let [source] = &parsed.discovery[..] else {
        panic!("{parsed:?}");
    };
    let ServicesKind::Kubernetes(config) = &source.kind;
    assert_eq!(config.access, Access::InCluster);
    assert_eq!(config.namespace, None);
    assert_eq!(config.select, Select::Labels(SELECTOR.to_owned()));
    assert_eq!(config.watch_timeout, WATCH_TIMEOUT);
    assert_eq!(source.defaults.health.check, HealthCheck::None);
    assert_eq!(source.defaults.policy, Policy::Maglev);
    assert_eq!(
        source.name().to_string(),
        "kubernetes:*/[service.kubernetes.io/service-proxy-name=lbd]"
    );
    assert_eq!(
        render(&parsed),
        "services: []\ndiscovery:\n  kubernetes: {}\n"
    );

    let text = "\
services: []
discovery:
- kubernetes:
    namespace: shop
    selector: app=web
    nodeport_addresses:
    - 10.0.0.0/8
    - 2001:db8::/32
    node: n1
    zone: a
    watch_timeout: 5m
    server: https://10.0.0.1:6443
    token:
      file: /etc/lbd/token
    tls:
      ca_file: /etc/lbd/ca.pem
    empty_hold: 10s
    weight: 7
    labels:
      cluster: east
    defaults:
      forwarding: dsr-ipip
      snat: never
      tunnel_source: 172.16.0.0/16
      policy: random
      no_backend: drop
      on_backend_down: reset
      max_connections: 1000
      rate:
        connections_per_second: 10
      source_rate:
        connections_per_second: 5
        burst: 6
      affinity:
        client_ip: 10m
      health:
        type: http
        path: /ready
        expect_status:
        - 200
        interval: 1s
        rise: 2
        fall: 3
- kubernetes:
    namespace: shop
    service: api
    kubeconfig: /etc/lbd/kubeconfig
    context: east
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
    let targets = parsed.discovery.iter().map(|source| source.kind.target());
    assert_eq!(
        targets.collect::<Vec<_>>(),
        [
            "https://10.0.0.1:6443/shop/[app=web]",
            "/etc/lbd/kubeconfig#east:shop/api"
        ]
    );
}

#[test]
fn every_fault_has_its_place() {
    for (text, fault) in [
        (
            "{service: web}",
            "1:35: `service` goes with `namespace`: a name is one within its namespace",
        ),
        (
            "{namespace: shop, service: web, selector: a=b}",
            "1:67: `selector` and `service` exclude each other",
        ),
        (
            "{namespace: Shop}",
            "1:37: kubernetes `namespace` `Shop` must be 1 to 253",
        ),
        (
            "{nodeport_addresses: [10.0.0.1/8]}",
            "1:47: `nodeport_addresses`: 10.0.0.1/8 has bits set behind its length",
        ),
        ("{port: 80}", "1:26: unknown key `port` in kubernetes"),
        (
            "{resync: 10ms}",
            "1:34: kubernetes `resync` must be at least 1s",
        ),
        (
            "{watch_timeout: 2h}",
            "1:41: kubernetes `watch_timeout` must be whole seconds from 1s to 1h",
        ),
        ("{token: {env: T}}", "1:33: `token` goes with `server`"),
        (
            "{defaults: {listen: \"10.0.0.1:80\"}}",
            "1:37: unknown key `listen` in defaults",
        ),
        (
            "{defaults: {allow_sources: [10.0.0.0/8]}}",
            "1:37: unknown key `allow_sources` in defaults",
        ),
        (
            "{defaults: {policy: fair}}",
            "1:45: unknown value `fair` for `policy`",
        ),
        (
            "{defaults: {snat: always, forwarding: dsr-l2}}",
            "1:43: `snat: always` contradicts `forwarding: dsr-l2`",
        ),
        (
            "{defaults: {affinity: {client_ip: 2d}}}",
            "1:59: `affinity.client_ip` must be whole seconds from 1s to 1d, not 2d",
        ),
        (
            "{defaults: {health: {type: http, path: x}}}",
            "1:64: health `path` `x`",
        ),
    ] {
        let faults = faults(&discovery(text));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].starts_with(fault), "{text}: {faults:?}");
    }
}

#[test]
fn only_some_kinds_find_services() {
    for (text, fault) in [
        (
            "discovery: {consul: {service: web}}",
            "1:13: `consul` finds backends, not services: write it under the `discovery` of a service",
        ),
        (
            "discovery: {kuberntes: {}}",
            "1:13: unknown key `kuberntes` in discovery; did you mean `kubernetes`?",
        ),
        ("discovery: []", "1:12: `discovery` names no source"),
        (
            "discovery: kubernetes",
            "1:12: `discovery` must be a mapping",
        ),
    ] {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].starts_with(fault), "{text}: {faults:?}");
    }
    let twice = "discovery:\n- kubernetes: {}\n- kubernetes: {weight: 7}\n";
    let faults = faults(twice);
    assert!(faults[0].starts_with("3:3: kubernetes"), "{faults:?}");
    assert!(
        faults[0].ends_with("is listed twice; first defined at line 2"),
        "{faults:?}"
    );
}

#[test]
fn faults_that_come_by_the_api_name_their_source() {
    let mut config = accepted(&discovery("{namespace: shop}")).config;
    config.discovery[0].settings.merge_window = std::time::Duration::from_secs(61);
    let found = check(&config);
    let expected = "discovery kubernetes:shop/[service.kubernetes.io/service-proxy-name=lbd]: \
                    kubernetes `merge_window` must be at most 1m";
    assert_eq!(found, [expected]);
}
