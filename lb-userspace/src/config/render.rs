//! A config as a file.

use std::net::SocketAddr;

use serde_yaml_ng::{Mapping, Value};

use super::{decode::XDP_MODES, discovery, health};
use crate::model::{
    Admin, Admission, BackendSpec, Config, Forwarding, Health, HealthCheck, Interfaces, Limits,
    NoBackend, Node, OnBackendDown, Policy, Prefix, Rate, ServiceSpec, Snat, SnatPool, Timeouts,
};

/// Writes a config so that [`parse`](super::parse) reads back the same, if [`check`](super::check)
/// finds no fault in it. Leaves out defaults that say nothing about a service.
pub fn render(config: &Config) -> String {
    let Config {
        node: node_config,
        admin: admin_config,
        services,
        discovery: sources,
    } = config;
    let mut root = Mapping::new();
    put_unless_empty(&mut root, "node", node(node_config));
    put_unless_empty(&mut root, "admin", admin(admin_config));
    put(
        &mut root,
        "services",
        services.iter().map(service).collect::<Vec<_>>(),
    );
    if !sources.is_empty() {
        put(&mut root, "discovery", discovery::services::render(sources));
    }
    serde_yaml_ng::to_string(&root).expect("mappings of strings and numbers always serialise")
}

fn node(node: &Node) -> Mapping {
    let Node {
        interfaces,
        xdp,
        state_dir,
        bpffs,
        limits: sizes,
        timeouts: times,
        snat: SnatPool { addresses, ports },
    } = node;
    let usual = Node::default();
    let mut map = Mapping::new();
    if let Interfaces::Named(names) = interfaces {
        put(&mut map, "interfaces", names.clone());
    }
    if *xdp != usual.xdp {
        let word = XDP_MODES.iter().find(|(_, mode)| mode == xdp);
        put(&mut map, "xdp", word.map_or("auto", |&(word, _)| word));
    }
    for (key, path, usual) in [
        ("state_dir", state_dir, &usual.state_dir),
        ("bpffs", bpffs, &usual.bpffs),
    ] {
        if path != usual {
            put(&mut map, key, path.to_string_lossy().into_owned());
        }
    }
    put_unless_empty(&mut map, "limits", limits(sizes));
    put_unless_empty(&mut map, "timeouts", timeouts(times));
    if !addresses.is_empty() {
        let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        put(&mut map, "snat_addresses", words);
    }
    if let Some((first, last)) = ports {
        put(&mut map, "snat_ports", format!("{first}-{last}"));
    }
    map
}

fn limits(limits: &Limits) -> Mapping {
    let Limits {
        connections,
        handshakes,
        services,
        backends,
        sources,
        clients,
    } = limits;
    let usual = Limits::default();
    let mut map = Mapping::new();
    for (key, value, usual) in [
        ("connections", *connections, usual.connections),
        ("handshakes", *handshakes, usual.handshakes),
        ("services", *services, usual.services),
        ("backends", *backends, usual.backends),
        ("sources", *sources, usual.sources),
        ("clients", *clients, usual.clients),
    ] {
        if value != usual {
            put(&mut map, key, value);
        }
    }
    map
}

fn timeouts(timeouts: &Timeouts) -> Mapping {
    let Timeouts {
        tcp_established,
        tcp_closing,
        tcp_closed,
        udp,
    } = *timeouts;
    let usual = Timeouts::default();
    let mut map = Mapping::new();
    for (key, value, usual) in [
        ("tcp_established", tcp_established, usual.tcp_established),
        ("tcp_closing", tcp_closing, usual.tcp_closing),
        ("tcp_closed", tcp_closed, usual.tcp_closed),
        ("udp", udp, usual.udp),
    ] {
        if value != usual {
            put(&mut map, key, crate::model::duration_text::format(value));
        }
    }
    map
}

fn admin(admin: &Admin) -> Mapping {
    let Admin { socket, http } = admin;
    let usual = Admin::default();
    let mut map = Mapping::new();
    if *socket != usual.socket {
        put(&mut map, "socket", socket.to_string_lossy().into_owned());
    }
    if *http != usual.http {
        put(&mut map, "http", http.to_string());
    }
    map
}

fn service(spec: &ServiceSpec) -> Value {
    let ServiceSpec {
        name,
        listen,
        protocol,
        policy,
        health: health_spec,
        backends,
        discovery: sources,
        ..
    } = spec;
    let mut map = Mapping::new();
    put(&mut map, "name", name.clone());
    match listen.as_slice() {
        [one] => put(&mut map, "listen", one.to_string()),
        many => put(
            &mut map,
            "listen",
            many.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
        ),
    }
    put_word(&mut map, "protocol", protocol);
    ways(&mut map, spec);
    put_word(&mut map, "policy", policy);
    failures(&mut map, spec);
    if *health_spec != health::default_for(*protocol) {
        put(&mut map, "health", health(health_spec));
    }
    if sources.is_empty() || !backends.is_empty() {
        put(
            &mut map,
            "backends",
            backends.iter().map(backend).collect::<Vec<_>>(),
        );
    }
    if !sources.is_empty() {
        put(&mut map, "discovery", discovery::render(sources));
    }
    Value::Mapping(map)
}

/// What is said of services that a source finds.
pub(super) fn defaults(spec: &ServiceSpec) -> Mapping {
    let mut map = Mapping::new();
    ways(&mut map, spec);
    if spec.policy != Policy::default() {
        put_word(&mut map, "policy", &spec.policy);
    }
    failures(&mut map, spec);
    if spec.health != super::service::found_blank().health {
        put(&mut map, "health", health(&spec.health));
    }
    map
}

/// How packets get to backends.
fn ways(map: &mut Mapping, spec: &ServiceSpec) {
    let ServiceSpec {
        forwarding,
        snat,
        tunnel_source,
        ..
    } = spec;
    if *forwarding != Forwarding::default() {
        put_word(map, "forwarding", forwarding);
    }
    if *snat != Snat::default() {
        put_word(map, "snat", snat);
    }
    match tunnel_source.as_slice() {
        [] => {}
        [one] => put_word(map, "tunnel_source", one),
        many => put(
            map,
            "tunnel_source",
            many.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ),
    }
}

/// What becomes of connections that cannot go to a backend, and whom it lets in.
fn failures(map: &mut Mapping, spec: &ServiceSpec) {
    if spec.no_backend != NoBackend::default() {
        put_word(map, "no_backend", &spec.no_backend);
    }
    if spec.on_backend_down != OnBackendDown::default() {
        put_word(map, "on_backend_down", &spec.on_backend_down);
    }
    admission(map, &spec.admission);
}

fn admission(map: &mut Mapping, admission: &Admission) {
    let Admission {
        allow_sources,
        deny_sources,
        max_connections,
        rate: service_rate,
        source_rate,
        affinity,
    } = admission;
    for (key, list) in [
        ("allow_sources", allow_sources),
        ("deny_sources", deny_sources),
    ] {
        if !list.is_empty() {
            put(
                map,
                key,
                list.iter().map(Prefix::to_string).collect::<Vec<_>>(),
            );
        }
    }
    if let Some(limit) = max_connections {
        put(map, "max_connections", *limit);
    }
    for (key, rate) in [("rate", service_rate), ("source_rate", source_rate)] {
        if let Some(rate) = rate {
            put(map, key, tokens(*rate));
        }
    }
    if let Some(affinity) = affinity {
        let mut time = Mapping::new();
        let format = crate::model::duration_text::format;
        put(&mut time, "client_ip", format(affinity.client_ip));
        put(map, "affinity", time);
    }
}

fn tokens(rate: Rate) -> Mapping {
    let Rate {
        connections_per_second,
        burst,
    } = rate;
    let mut map = Mapping::new();
    put(&mut map, "connections_per_second", connections_per_second);
    if burst != connections_per_second {
        put(&mut map, "burst", burst);
    }
    map
}

fn health(health: &Health) -> Mapping {
    let Health {
        check,
        port,
        interval,
        fast_interval,
        timeout,
        rise,
        fall,
    } = health;
    let mut map = Mapping::new();
    match check {
        HealthCheck::None => put(&mut map, "type", "none"),
        HealthCheck::Tcp => put(&mut map, "type", "tcp"),
        HealthCheck::Http {
            path,
            host,
            expect_status,
        } => {
            put(&mut map, "type", "http");
            put(&mut map, "path", path.clone());
            if let Some(host) = host {
                put(&mut map, "host", host.clone());
            }
            put(&mut map, "expect_status", statuses(expect_status));
        }
    }
    if let Some(port) = port {
        put(&mut map, "port", *port);
    }
    let (usual_timeout, usual_fast_interval) = health::derived(*interval);
    let format = crate::model::duration_text::format;
    put(&mut map, "interval", format(*interval));
    if *fast_interval != usual_fast_interval {
        put(&mut map, "fast_interval", format(*fast_interval));
    }
    if *timeout != usual_timeout {
        put(&mut map, "timeout", format(*timeout));
    }
    put(&mut map, "rise", *rise);
    put(&mut map, "fall", *fall);
    map
}

/// Three or more statuses in a row become a range.
fn statuses(statuses: &[u16]) -> Vec<Value> {
    statuses
        .chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .flat_map(|run| match run {
            [first, _, .., last] => vec![Value::from(format!("{first}-{last}"))],
            few => few.iter().map(|&status| Value::from(status)).collect(),
        })
        .collect()
}

fn backend(backend: &BackendSpec) -> Value {
    let BackendSpec {
        address,
        weight,
        max_connections,
        labels,
    } = backend;
    let mut map = Mapping::new();
    put(&mut map, "address", address.to_string());
    put(&mut map, "weight", *weight);
    if let Some(limit) = max_connections {
        put(&mut map, "max_connections", *limit);
    }
    let labels = labels
        .iter()
        .map(|(key, value)| (key.clone().into(), value.clone().into()))
        .collect();
    put_unless_empty(&mut map, "labels", labels);
    Value::Mapping(map)
}

pub(super) fn put(map: &mut Mapping, key: &str, value: impl Into<Value>) {
    map.insert(key.into(), value.into());
}

pub(super) fn put_unless_empty(map: &mut Mapping, key: &str, value: Mapping) {
    if !value.is_empty() {
        put(map, key, value);
    }
}

/// An enum of the model by the word it serialises as.
fn put_word(map: &mut Mapping, key: &str, word: &impl std::fmt::Display) {
    put(map, key, word.to_string());
}
