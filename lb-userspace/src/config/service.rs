//! One entry of `services:`.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    admission,
    check::{Item, node::MAX_FLOWS},
    discovery, health,
    report::Report,
    suggest::quoted,
    tree::{Data, Node},
    value::{Fields, Later, address, choice, list, number, one_or_many, text},
};
use crate::model::{
    BackendSpec, Forwarding, Health, MAX_WEIGHT, NoBackend, OnBackendDown, Policy, Prefix,
    Protocol, ServiceSpec, Snat,
};

/// Weight of a backend whose entry names none.
pub const DEFAULT_WEIGHT: u16 = 100;

const KEYS: [&str; 18] = [
    "name",
    "listen",
    "protocol",
    "forwarding",
    "snat",
    "tunnel_source",
    "policy",
    "no_backend",
    "on_backend_down",
    "health",
    "backends",
    admission::KEYS[0],
    admission::KEYS[1],
    admission::KEYS[2],
    admission::KEYS[3],
    admission::KEYS[4],
    admission::KEYS[5],
    "discovery",
];
/// Those that say how a service is served, whatever it is and whoever its backends are.
const MANNERS: [&str; 11] = [
    "forwarding",
    "snat",
    "tunnel_source",
    "policy",
    "no_backend",
    "on_backend_down",
    "health",
    admission::KEYS[2],
    admission::KEYS[3],
    admission::KEYS[4],
    admission::KEYS[5],
];
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
const FORWARDINGS: [(&str, Forwarding); 3] = [
    ("nat", Forwarding::Nat),
    ("dsr-l2", Forwarding::DsrL2),
    ("dsr-ipip", Forwarding::DsrIpip),
];
const SNATS: [(&str, Snat); 3] = [
    ("auto", Snat::Auto),
    ("always", Snat::Always),
    ("never", Snat::Never),
];
const POLICIES: [(&str, Policy); 3] = [
    ("maglev", Policy::Maglev),
    ("round-robin", Policy::RoundRobin),
    ("random", Policy::Random),
];
const LATER_POLICIES: [Later; 2] = [
    (
        "least-connections",
        "use `maglev`, `round-robin` or `random`",
    ),
    ("peak-ewma", "use `maglev`, `round-robin` or `random`"),
];
const NO_BACKENDS: [(&str, NoBackend); 2] =
    [("reject", NoBackend::Reject), ("drop", NoBackend::Drop)];
const ON_BACKEND_DOWN: [(&str, OnBackendDown); 2] = [
    ("keep", OnBackendDown::Keep),
    ("reset", OnBackendDown::Reset),
];

/// The service at `index` of the list; never left out, so that indices stay those of the file.
pub(super) fn service(value: &Node, index: usize, report: &mut Report) -> ServiceSpec {
    report.found_at(Item::Service(index), value.place);
    let mut spec = blank(health::default_for(Protocol::default()));
    report.faulty(Item::Name(index));
    report.faulty(Item::Listens(index));
    let Some(fields) = Fields::of(value, "service", &KEYS, &[], report) else {
        return spec;
    };
    if let Some(name) = fields
        .require("name", "the service", "web", report)
        .and_then(|value| Some((value.place, text(value, "name", "a name", report)?)))
    {
        report.found_at(Item::Name(index), name.0);
        spec.name = name.1.to_owned();
    }
    if let Some(value) = fields.require("listen", "the service", "\"192.0.2.10:80\"", report) {
        spec.listen = listens(value, index, report);
    }
    if let Some(value) = fields.get("protocol") {
        let chosen = choice(value, "protocol", &PROTOCOLS, &[], report);
        spec.protocol = chosen.unwrap_or_default();
        spec.health = health::default_for(spec.protocol);
    }
    manners(&fields, &mut spec, index, report);
    if let Some(value) = fields.get("backends") {
        report.found_at(Item::Backends(index), value.place);
        spec.backends = list(value, "backends", "a list of backends", report)
            .unwrap_or(&[])
            .iter()
            .enumerate()
            .map(|(at, value)| backend(value, Item::Backend(index, at), report))
            .collect();
    }
    if let Some(value) = fields.get("discovery") {
        spec.discovery = discovery::discovery(value, index, report);
    }
    spec
}

/// What services are like that a source finds: one that is not probed unless it is said, for
/// registries that find services know how their instances are.
pub(super) fn defaults(value: Option<&Node>, index: usize, report: &mut Report) -> ServiceSpec {
    let mut spec = found_blank();
    let Some(value) = value else {
        return spec;
    };
    report.found_at(Item::Service(index), value.place);
    if let Some(fields) = Fields::of(value, "defaults", &MANNERS, &[], report) {
        manners(&fields, &mut spec, index, report);
    }
    spec
}

/// [`defaults`] that say nothing.
pub(super) fn found_blank() -> ServiceSpec {
    blank(health::default_for(Protocol::Udp))
}

fn blank(health: Health) -> ServiceSpec {
    ServiceSpec {
        name: String::new(),
        listen: Vec::new(),
        protocol: Protocol::default(),
        forwarding: Forwarding::default(),
        snat: Snat::default(),
        tunnel_source: Vec::new(),
        policy: Policy::default(),
        no_backend: NoBackend::default(),
        on_backend_down: OnBackendDown::default(),
        admission: Default::default(),
        health,
        backends: Vec::new(),
        discovery: Vec::new(),
    }
}

fn manners(fields: &Fields<'_>, spec: &mut ServiceSpec, index: usize, report: &mut Report) {
    macro_rules! choose {
        ($key:ident, $words:expr, $later:expr) => {
            if let Some(value) = fields.get(stringify!($key)) {
                report.found_at(Item::Choice(index, stringify!($key)), value.place);
                let chosen = choice(value, stringify!($key), $words, $later, report);
                spec.$key = chosen.unwrap_or_default();
            }
        };
    }
    choose!(forwarding, &FORWARDINGS, &[]);
    choose!(snat, &SNATS, &[]);
    choose!(policy, &POLICIES, &LATER_POLICIES);
    choose!(no_backend, &NO_BACKENDS, &[]);
    if let Some(value) = fields.get("tunnel_source") {
        report.found_at(Item::Choice(index, "tunnel_source"), value.place);
        spec.tunnel_source = prefixes(value, "tunnel_source", "172.16.0.0/16", report);
    }
    choose!(on_backend_down, &ON_BACKEND_DOWN, &[]);
    if let Some(value) = fields.get("on_backend_down") {
        report.found_at(Item::OnBackendDown(index), value.place);
    }
    spec.admission = admission::admission(fields, index, report);
    if let Some(value) = fields.get("health") {
        spec.health = health::health(value, spec.protocol, index, report);
    }
}

fn listens(value: &Node, index: usize, report: &mut Report) -> Vec<SocketAddr> {
    let mut listens = Vec::new();
    let nodes = one_or_many(value);
    for node in nodes {
        if let Some(listen) = address(node, "listen", report) {
            report.found_at(Item::Listen(index, listens.len()), node.place);
            listens.push(listen);
        }
    }
    if listens.len() == nodes.len() {
        report.found_at(Item::Listens(index), value.place);
    }
    listens
}

pub(super) fn prefixes(value: &Node, key: &str, example: &str, report: &mut Report) -> Vec<Prefix> {
    let expected = format!("a prefix such as {example}, or a list of them");
    let mut prefixes = Vec::new();
    for node in one_or_many(value) {
        match text(node, key, &expected, report).map(str::parse) {
            Some(Ok(prefix)) => prefixes.push(prefix),
            Some(Err(fault)) => report.fault(node.place, format!("`{key}`: {fault}")),
            None => {}
        }
    }
    prefixes
}

/// A backend, or for a faulty one an address that is marked so and that nothing else is said about.
fn backend(value: &Node, item: Item, report: &mut Report) -> BackendSpec {
    report.faulty(item);
    let mut spec = BackendSpec {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        weight: DEFAULT_WEIGHT,
        max_connections: None,
        labels: BTreeMap::new(),
    };
    let keys = ["address", "weight", "max_connections", "labels"];
    let Some(fields) = Fields::of(value, "backend", &keys, &[], report) else {
        return spec;
    };
    if let Some(value) = fields.require("address", "the backend", "\"10.1.0.11:8080\"", report)
        && let Some(address) = address(value, "address", report)
    {
        report.found_at(item, value.place);
        spec.address = address;
    }
    if let Some(weight) = fields
        .get("weight")
        .and_then(|value| number(value, "weight", 0..=u32::from(MAX_WEIGHT), report))
    {
        spec.weight = u16::try_from(weight).unwrap_or(MAX_WEIGHT);
    }
    spec.max_connections = fields
        .get("max_connections")
        .and_then(|value| number(value, "max_connections", 1..=MAX_FLOWS, report));
    if let (Some(value), Item::Backend(service, at)) = (fields.get("labels"), item) {
        report.found_at(Item::Labels(service, at), value.place);
        spec.labels = labels(value, report);
    }
    spec
}

pub(super) fn labels(value: &Node, report: &mut Report) -> BTreeMap<String, String> {
    match &*value.data {
        Data::Map(entries) => entries
            .iter()
            .filter_map(|entry| {
                let expected = format!("text for {}", quoted(&entry.key));
                let text = text(&entry.value, "labels", &expected, report)?;
                Some((entry.key.clone(), text.to_owned()))
            })
            .collect(),
        _ if value.is_null() => BTreeMap::new(),
        _ => {
            let message = "`labels` must be a mapping such as {version: v1}";
            report.fault(value.place, message);
            BTreeMap::new()
        }
    }
}
