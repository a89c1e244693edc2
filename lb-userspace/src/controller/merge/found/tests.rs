use std::sync::Arc;

use super::{super::merge, *};
use crate::{
    config,
    controller::testing,
    discovery::{Discovered, Found, InstanceState, SourceName},
    model::Forwarding,
    state::State,
};

const FILE: &str = "
discovery:
  kubernetes: {}
services:
- name: web
  listen: 192.0.2.1:80
  backends: [{address: \"10.96.0.9:80\"}]
";

fn finder() -> SourceName {
    SourceName {
        service: String::new(),
        kind: "kubernetes",
        target: "*/[service.kubernetes.io/service-proxy-name=lbd]".to_owned(),
    }
}

fn found(name: &str, listen: &str) -> FoundService {
    FoundService {
        spec: testing::service(name, listen, &[]),
        backends: SourceName {
            service: name.to_owned(),
            ..finder()
        },
    }
}

fn layers(file: &str, services: Vec<FoundService>) -> Layers {
    let found = Discovered {
        services: [(finder(), Arc::new(services))].into(),
        ..Discovered::default()
    };
    Layers {
        file: Arc::new(config::parse(file, "f").unwrap().config),
        state: State::default(),
        found: Arc::new(found),
    }
}

/// Names in force, and what is said of the others.
fn outcome(layers: &Layers) -> (Vec<String>, Vec<String>) {
    let merge = merge(layers);
    assert_eq!(merge.conflicts.len() + merge.orphans.len(), 0, "{merge:#?}");
    let names = merge.services.into_iter().map(|s| s.spec.name);
    (names.collect(), merge.left_out)
}

#[test]
fn services_are_found_behind_those_configured_with_their_backends() {
    let mut layers = layers(FILE, vec![found("shop.a.http", "10.96.0.1:80")]);
    let mut sets = Discovered::clone(&layers.found);
    let one = |address: &str| Found {
        id: address.to_owned(),
        spec: testing::backend(address, 100),
        state: InstanceState::Up,
    };
    // Not one that a service listens on.
    let set = vec![one("10.0.0.1:8080"), one("192.0.2.1:80")];
    let name = found("shop.a.http", "10.96.0.1:80").backends;
    sets.sets.insert(name, Arc::new(set));
    layers.found = Arc::new(sets);
    let merge = merge(&layers);
    let [web, shop] = &merge.services[..] else {
        panic!("{merge:#?}");
    };
    assert!(!web.is_found() && shop.is_found());
    assert_eq!(shop.layer.name(), "discovery:kubernetes");
    assert_eq!(shop.spec.backends.len(), 1, "{shop:#?}");
    assert_eq!(shop.origins[0].name(), "discovery:kubernetes");
    assert!(shop.left_out[0].contains("192.0.2.1:80"), "{shop:#?}");
}

#[test]
fn what_is_configured_comes_first_and_the_older_ones_before_the_younger() {
    let mut layers = layers(
        FILE,
        vec![
            found("shop.a.http", "192.0.2.1:80"),
            found("shop.b.http", "10.96.0.2:80"),
            found("shop.c.http", "10.96.0.2:80"),
            found("shop.d.http", "10.96.0.9:80"),
            found("shop.e.http", "127.0.0.1:9464"),
            found("shop.f.http", "192.0.2.9:80"),
            found("shop.b.http", "10.96.0.8:80"),
        ],
    );
    layers.state.services = vec![testing::service("added", "192.0.2.9:80", &[])];
    let (names, told) = outcome(&layers);
    assert_eq!(names, ["web", "added", "shop.b.http"]);
    for (told, words) in told.iter().zip([
        "`shop.a.http`, found by kubernetes:*/[service.kubernetes.io/service-proxy-name=lbd], is \
         out of force: 192.0.2.1:80/tcp belongs to service `web`",
        "belongs to service `shop.b.http`",
        "is a configured backend",
        "the address of `admin.http`",
        "belongs to service `added`",
        "another service has this name",
    ]) {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(told.len(), 6);
}

#[test]
fn those_beyond_the_limits_are_left_out_and_the_others_stay() {
    let limits = format!("node: {{limits: {{services: 3, sources: 1}}}}{FILE}");
    let mut services = vec![
        found("shop.a.http", "10.96.0.1:80"),
        found("shop.b.http", "10.96.0.2:80"),
        found("shop.c.http", "10.96.0.3:80"),
        found("shop.d.http", "10.96.0.4:80"),
    ];
    services[0].spec.admission.allow_sources = ["10.0.0.0/8", "11.0.0.0/8"]
        .iter()
        .map(|prefix| prefix.parse().unwrap())
        .collect();
    let (names, told) = outcome(&layers(&limits, services));
    assert_eq!(names, ["web", "shop.b.http", "shop.c.http"]);
    assert!(told[0].contains("`node.limits.sources` is 1"), "{told:?}");
    assert!(told[1].contains("`node.limits.services` is 3"), "{told:?}");

    // Of many not each is told.
    let many = (0..100).map(|n| found(&format!("shop.s{n}.http"), &format!("10.96.1.{n}:80")));
    let (names, told) = outcome(&layers(&limits, many.collect()));
    assert_eq!((names.len(), told.len()), (3, TOLD + 1));
    assert!(told[TOLD].starts_with("78 more services"), "{told:?}");

    // Each address counts.
    let mut dual = found("shop.a.http", "10.96.0.1:80");
    for n in 2..=3 {
        let listen = format!("10.96.0.{n}:80").parse().unwrap();
        dual.spec.listen.push(listen);
    }
    let (names, told) = outcome(&layers(&limits, vec![dual]));
    assert_eq!((names.len(), told.len()), (1, 1), "{told:?}");
}

#[test]
fn direct_return_needs_backends_with_the_port_of_the_listen() {
    let mut direct = found("shop.a.http", "10.96.0.1:80");
    direct.spec.forwarding = Forwarding::DsrL2;
    let set = direct.backends.clone();
    let mut layers = layers(FILE, vec![direct]);
    let one = |address: &str| Found {
        id: address.to_owned(),
        spec: testing::backend(address, 100),
        state: InstanceState::Up,
    };
    let mut sets = Discovered::clone(&layers.found);
    let instances = ["10.0.0.1:80", "10.0.0.2:8080", "10.0.0.3:8080"].map(one);
    sets.sets.insert(set, Arc::new(instances.into()));
    layers.found = Arc::new(sets);
    let merge = merge(&layers);
    let service = &merge.services[1];
    assert_eq!(service.spec.backends.len(), 1, "{service:#?}");
    assert_eq!(service.left_out.len(), 1, "{service:#?}");
    assert!(
        service.left_out[0].starts_with("2 instances"),
        "{service:#?}"
    );
}

#[test]
fn without_its_source_nothing_is_found() {
    let file = FILE.replace("discovery:\n  kubernetes: {}\n", "");
    let (names, told) = outcome(&layers(&file, vec![found("shop.a.http", "10.96.0.1:80")]));
    assert_eq!((names, told), (vec!["web".to_owned()], Vec::new()));
}
