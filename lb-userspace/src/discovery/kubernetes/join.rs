//! Services and their EndpointSlices to instances. Pure.
//!
//! Rules, where they come from Kubernetes: the API reference of `discovery.k8s.io/v1` EndpointSlice
//! (nil conditions, ports, the first address), and the guides "Virtual IPs and Service Proxies"
//! (traffic policies, terminating endpoints) and "Topology Aware Routing" (hints).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use super::{Select, Traffic, Wanted};
use crate::discovery::{Class, Failure, Instance, InstanceState, Snapshot};

/// Which Service a slice belongs to.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Annotation of a Service or a slice; the slice's wins.
pub const WEIGHT: &str = "lbd.io/weight";
pub const VERSION: &str = "lbd.io/version";
/// Labels that name a version, the first that is there counts.
const VERSION_LABELS: [&str; 2] = ["app.kubernetes.io/version", "version"];

/// The backends of the Services that are wanted, from all Services and slices of the namespace.
/// The order of neither matters.
///
/// # Errors
/// If there is no such Service, or it has no such port.
pub fn join<'a>(
    wanted: &Wanted,
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Result<Snapshot, Failure> {
    let mut slices_of: BTreeMap<&str, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_LABEL)) {
            slices_of.entry(service).or_default().push(slice);
        }
    }
    let mut services: Vec<(&str, &Service)> = services
        .into_iter()
        .filter_map(|service| Some((service.metadata.name.as_deref()?, service)))
        .filter(|(name, _)| !matches!(&wanted.select, Select::Name(wanted) if wanted != name))
        .collect();
    services.sort_unstable_by_key(|(name, _)| *name);
    services.dedup_by_key(|(name, _)| *name);
    let mut joined = Joined::default();
    let mut ported = 0;
    let mut fault = None;
    for (name, service) in &services {
        let mut slices = slices_of.remove(name).unwrap_or_default();
        slices.sort_by_key(|slice| slice.metadata.name.as_deref());
        match port(wanted, name, service) {
            Ok(port) => {
                ported += 1;
                one(wanted, (name, service), port, &slices, &mut joined);
            }
            Err(failure) => {
                joined.note(failure.message.clone());
                fault.get_or_insert(failure);
            }
        }
    }
    if ported == 0 {
        let missing = || {
            let what = match &wanted.select {
                Select::Name(name) => format!("there is no Service {}/{name}", wanted.namespace),
                Select::Labels(labels) => format!(
                    "there is no Service with the labels {labels} in namespace {}",
                    wanted.namespace
                ),
            };
            Failure::new(Class::Missing, what)
        };
        return Err(fault.unwrap_or_else(missing));
    }
    Ok(joined.into())
}

/// The backends of one Service behind one of its ports, from its slices in any order.
/// `wanted` says which policy counts, and where lbd runs.
pub fn join_port(
    wanted: &Wanted,
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
) -> Snapshot {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut slices = slices.to_vec();
    slices.sort_by_key(|slice| slice.metadata.name.as_deref());
    let mut joined = Joined::default();
    let port = port.name.as_deref().unwrap_or_default();
    one(wanted, (name, service), port, &slices, &mut joined);
    joined.into()
}

#[derive(Default)]
struct Joined {
    instances: BTreeMap<String, Instance>,
    left_out: BTreeSet<String>,
}

impl Joined {
    fn note(&mut self, what: String) {
        self.left_out.insert(what);
    }

    /// An endpoint that moves between slices may be in both for a while, in one of them out of date:
    /// what says more of it counts.
    fn add(&mut self, instance: Instance) {
        match self.instances.entry(instance.id.clone()) {
            Entry::Vacant(entry) => _ = entry.insert(instance),
            Entry::Occupied(mut entry) => {
                if instance.state < entry.get().state {
                    entry.insert(instance);
                }
            }
        }
    }
}

impl From<Joined> for Snapshot {
    fn from(joined: Joined) -> Self {
        Self {
            instances: joined.instances.into_values().collect(),
            left_out: joined.left_out.into_iter().collect(),
            ..Snapshot::default()
        }
    }
}

/// The name that the wanted port has in slices: a slice has its own number for it.
fn port<'a>(wanted: &Wanted, name: &str, service: &'a Service) -> Result<&'a str, Failure> {
    let shown = format!("Service {}/{name}", wanted.namespace);
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        let what = format!("{shown} is of type ExternalName and has no endpoints");
        return Err(Failure::new(Class::Config, what));
    }
    let ports: &[ServicePort] = spec
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let has = || {
        let all = ports.iter().map(|port| match port.name.as_deref() {
            Some(name) if !name.is_empty() => format!("{name} ({})", port.port),
            _ => port.port.to_string(),
        });
        let all: Vec<String> = all.collect();
        match all.is_empty() {
            true => "none".to_owned(),
            false => all.join(", "),
        }
    };
    let found: Vec<&ServicePort> = match &wanted.port {
        None => ports.iter().collect(),
        Some(port) => {
            let number: Option<i32> = port.parse().ok();
            let matches = |p: &&ServicePort| match number {
                Some(number) => p.port == number,
                None => p.name.as_deref() == Some(port),
            };
            ports.iter().filter(matches).collect()
        }
    };
    match (&found[..], &wanted.port) {
        ([one], _) => Ok(one.name.as_deref().unwrap_or_default()),
        ([], Some(port)) => Err(Failure::new(
            Class::Missing,
            format!("{shown} has no port {port}; it has {}", has()),
        )),
        ([], None) => Err(Failure::new(Class::Missing, format!("{shown} has no port"))),
        (_, Some(port)) => Err(Failure::new(
            Class::Config,
            format!(
                "{shown} has several ports {port}; give the port's name, one of {}",
                has()
            ),
        )),
        (_, None) => Err(Failure::new(
            Class::Config,
            format!("{shown} has several ports; set `port` to one of {}", has()),
        )),
    }
}

/// An endpoint at its address, before policies.
struct Candidate<'a> {
    address: SocketAddr,
    condition: Condition,
    endpoint: &'a Endpoint,
    slice: &'a EndpointSlice,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ready,
    /// On its way out, and still answering.
    ServingTerminating,
    Unready,
}

fn one(
    wanted: &Wanted,
    (name, service): (&str, &Service),
    port: &str,
    slices: &[&EndpointSlice],
    joined: &mut Joined,
) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    let mut by_address: BTreeMap<SocketAddr, Candidate<'_>> = BTreeMap::new();
    for slice in slices {
        for candidate in candidates(slice, port, publish_unready, joined) {
            let rank = |c: &Candidate<'_>| c.condition as u8;
            match by_address.entry(candidate.address) {
                Entry::Vacant(entry) => _ = entry.insert(candidate),
                Entry::Occupied(mut entry) => {
                    if rank(&candidate) < rank(entry.get()) {
                        entry.insert(candidate);
                    }
                }
            }
        }
    }
    // A node decides for each family on its own, as kube-proxy does.
    let (v4, v6): (Vec<_>, Vec<_>) = by_address
        .into_values()
        .partition(|candidate| candidate.address.is_ipv4());
    for family in [v4, v6] {
        for (candidate, state) in chosen(wanted, name, &spec, family, joined) {
            let instance = instance(wanted, (name, service), &candidate, state, joined);
            joined.add(instance);
        }
    }
}

fn candidates<'a>(
    slice: &'a EndpointSlice,
    port: &str,
    publish_unready: bool,
    joined: &mut Joined,
) -> Vec<Candidate<'a>> {
    let shown = slice.metadata.name.as_deref().unwrap_or_default();
    let is_v4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        other => {
            joined.note(format!(
                "EndpointSlice {shown} has addresses of type {other}"
            ));
            return Vec::new();
        }
    };
    let ports = slice.ports.as_deref().unwrap_or_default();
    // A slice of pods that do not have the named port does not have it either.
    let Some(found) = ports
        .iter()
        .find(|p| p.name.as_deref().unwrap_or_default() == port)
    else {
        return Vec::new();
    };
    let Some(number) = found.port.and_then(|port| u16::try_from(port).ok()) else {
        joined.note(format!(
            "EndpointSlice {shown} has no number for port `{port}`"
        ));
        return Vec::new();
    };
    let mut candidates = Vec::with_capacity(slice.endpoints.len());
    for endpoint in &slice.endpoints {
        // Those behind the first have no meaning.
        let Some(text) = endpoint.addresses.first() else {
            joined.note(format!(
                "EndpointSlice {shown} has an endpoint without address"
            ));
            continue;
        };
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == is_v4 => candidates.push(Candidate {
                address: SocketAddr::new(ip, number),
                condition: condition(endpoint, publish_unready),
                endpoint,
                slice,
            }),
            _ => {
                let text = super::wire::shown(text.as_bytes());
                let kind = &slice.address_type;
                joined.note(format!(
                    "EndpointSlice {shown}: `{text}` is no {kind} address"
                ));
            }
        }
    }
    candidates
}

fn condition(endpoint: &Endpoint, publish_unready: bool) -> Condition {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    match conditions.terminating.unwrap_or(false) {
        _ if ready || publish_unready => Condition::Ready,
        true if serving => Condition::ServingTerminating,
        _ => Condition::Unready,
    }
}

/// Those that count on this node, and how.
fn chosen<'a>(
    wanted: &Wanted,
    name: &str,
    spec: &ServiceSpec,
    mut all: Vec<Candidate<'a>>,
    joined: &mut Joined,
) -> Vec<(Candidate<'a>, InstanceState)> {
    let (key, policy) = match wanted.traffic {
        Traffic::External => ("externalTrafficPolicy", &spec.external_traffic_policy),
        Traffic::Internal => ("internalTrafficPolicy", &spec.internal_traffic_policy),
    };
    let is_local = policy.as_deref() == Some("Local");
    match (is_local, &wanted.node) {
        (true, Some(node)) => {
            all.retain(|candidate| candidate.endpoint.node_name.as_ref() == Some(node));
        }
        (true, None) => joined.note(format!(
            "Service {}/{name} has {key} Local, which needs `node` or the variable NODE_NAME; all \
             endpoints count",
            wanted.namespace
        )),
        (false, _) => hinted(wanted, &mut all),
    }
    let any_ready = all.iter().any(|c| c.condition == Condition::Ready);
    let state = |condition| match condition {
        Condition::Ready => InstanceState::Up,
        Condition::ServingTerminating if any_ready => InstanceState::Drain,
        // Better one that is going than none.
        Condition::ServingTerminating => InstanceState::Up,
        Condition::Unready => InstanceState::Down,
    };
    all.into_iter()
        .map(|candidate| {
            let state = state(candidate.condition);
            (candidate, state)
        })
        .collect()
}

/// Takes out those ready endpoints that are meant for other nodes or zones, if every ready one says
/// whom it is meant for and some are meant for this one. Others have no hints, and get no new
/// connections anyway.
fn hinted(wanted: &Wanted, all: &mut Vec<Candidate<'_>>) {
    let for_node = |c: &Candidate<'_>| -> Option<Vec<String>> {
        let hints = c.endpoint.hints.as_ref()?.for_nodes.as_ref()?;
        Some(hints.iter().map(|node| node.name.clone()).collect())
    };
    let for_zone = |c: &Candidate<'_>| zones(c.endpoint);
    let by_node = wanted
        .node
        .as_ref()
        .and_then(|node| meant(all, node, for_node));
    let Some(meant) = by_node.or_else(|| {
        let zone = wanted.zone.as_ref()?;
        meant(all, zone, for_zone)
    }) else {
        return;
    };
    let mut meant = meant.into_iter();
    all.retain(|_| meant.next().unwrap_or(true));
}

/// For each endpoint whether it stays.
fn meant<'a>(
    all: &[Candidate<'a>],
    here: &String,
    hints: impl Fn(&Candidate<'a>) -> Option<Vec<String>>,
) -> Option<Vec<bool>> {
    let mut any = false;
    let mut stays = Vec::with_capacity(all.len());
    for candidate in all {
        if candidate.condition != Condition::Ready {
            stays.push(true);
            continue;
        }
        let is_meant = hints(candidate).filter(|h| !h.is_empty())?.contains(here);
        any |= is_meant;
        stays.push(is_meant);
    }
    any.then_some(stays)
}

fn zones(endpoint: &Endpoint) -> Option<Vec<String>> {
    let hints = endpoint.hints.as_ref()?.for_zones.as_ref()?;
    Some(hints.iter().map(|zone| zone.name.clone()).collect())
}

fn instance(
    wanted: &Wanted,
    (name, service): (&str, &Service),
    candidate: &Candidate<'_>,
    state: InstanceState,
    joined: &mut Joined,
) -> Instance {
    let Candidate {
        address,
        endpoint,
        slice,
        ..
    } = candidate;
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod.and_then(|target| target.name.as_deref());
    // An address is given to another pod later, which is another instance.
    let id = match pod {
        Some(pod) => format!("{pod}/{address}"),
        None => address.to_string(),
    };
    let metas = [&slice.metadata, &service.metadata];
    let annotation = |key: &str| {
        let find = |meta: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.annotations.as_ref()?.get(key).cloned()
        };
        metas.iter().find_map(find)
    };
    let label = |key: &&str| {
        metas
            .iter()
            .find_map(|meta| meta.labels.as_ref()?.get(*key).cloned())
    };
    let mut instance = Instance::new(id, *address);
    instance.state = state;
    if let Some(text) = annotation(WEIGHT) {
        match text.parse() {
            Ok(weight) => instance.weight = Some(weight),
            Err(_) => joined.note(format!(
                "Service {}/{name}: annotation {WEIGHT} must be 0 to 65535, not `{}`",
                wanted.namespace,
                super::wire::shown(text.as_bytes())
            )),
        }
    }
    let version = annotation(VERSION).or_else(|| VERSION_LABELS.iter().find_map(label));
    let hints = zones(endpoint).filter(|zones| !zones.is_empty());
    for (key, value) in [
        ("service", Some(name.to_owned())),
        ("version", version),
        ("pod", pod.map(str::to_owned)),
        ("node", endpoint.node_name.clone()),
        ("zone", endpoint.zone.clone()),
        ("hint-zones", hints.map(|zones| zones.join(","))),
    ] {
        if let Some(value) = value {
            instance.labels.insert(key.to_owned(), value);
        }
    }
    instance
}
