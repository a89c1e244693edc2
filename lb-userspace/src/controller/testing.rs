//! Specs for the controller's tests.

use crate::model::{Admin, BackendSpec, Config, Health, Node, ServiceSpec};

pub(super) fn backend(address: &str, weight: u16) -> BackendSpec {
    BackendSpec {
        address: address.parse().unwrap(),
        weight,
        max_connections: None,
        labels: Default::default(),
    }
}

/// Backends of weight 100, everything else by default.
pub(super) fn service(name: &str, listen: &str, backends: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        listen: vec![listen.parse().unwrap()],
        protocol: Default::default(),
        forwarding: Default::default(),
        snat: Default::default(),
        tunnel_source: Vec::new(),
        policy: Default::default(),
        no_backend: Default::default(),
        on_backend_down: Default::default(),
        admission: Default::default(),
        health: Health::default(),
        backends: backends.iter().map(|a| backend(a, 100)).collect(),
        discovery: Vec::new(),
    }
}

pub(super) fn config(services: impl IntoIterator<Item = ServiceSpec>) -> Config {
    Config {
        node: Node::default(),
        admin: Admin::default(),
        services: services.into_iter().collect(),
        discovery: Vec::new(),
    }
}
