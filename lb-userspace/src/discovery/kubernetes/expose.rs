//! A Service to services of lbd: where it listens, and whom it lets in. Pure.
//!
//! Rules, where they come from Kubernetes: the API reference of Service v1 (`ipMode`, `clusterIPs`,
//! `externalIPs`, `nodePort`), and the guide "Virtual IPs and Service Proxies" (which addresses
//! a proxy answers for, and which policy counts for them).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use super::Traffic;
use crate::{
    discovery::Offer,
    model::{Affinity, Prefix, Prefixes, Protocol},
};

/// `timeoutSeconds` where a Service with `sessionAffinity: ClientIP` leaves it out.
const AFFINITY_SECONDS: i32 = 10_800;

/// What one Service comes to.
#[derive(Clone, Debug, Default)]
pub struct Exposed<'a> {
    pub groups: Vec<Group<'a>>,
    /// What of it is not balanced, and why, one sentence each.
    pub left_out: Vec<String>,
}

/// Listens of one port of a Service that have policies and sources in common.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub offer: Offer,
    pub port: &'a ServicePort,
    /// Says which traffic policy counts.
    pub traffic: Traffic,
}

/// Where a port listens, by the kind of address.
#[derive(Default)]
struct Listens {
    cluster: BTreeSet<SocketAddr>,
    external: BTreeSet<SocketAddr>,
    balancer: BTreeSet<SocketAddr>,
}

/// `nodes` are the node's own addresses at which node ports listen.
pub fn expose<'a>(service: &'a Service, nodes: &[IpAddr]) -> Exposed<'a> {
    let mut exposed = Exposed::default();
    let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else {
        return exposed;
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let shown = format!("Service {namespace}/{name}");
    if spec.type_.as_deref() == Some("ExternalName") {
        let note = format!("{shown} is of type ExternalName and has nothing to balance");
        exposed.left_out.push(note);
        return exposed;
    }
    let addresses = Addresses::of(service, spec, &shown, &mut exposed.left_out);
    // Headless, or not known yet: whoever asks for it asks for its pods.
    if addresses.cluster.is_empty() {
        return exposed;
    }
    let (allowed, lets_in) = allowed(spec, &shown, &mut exposed.left_out);
    for port in spec.ports.as_deref().unwrap_or_default() {
        let word = match port.name.as_deref() {
            Some(word) if !word.is_empty() => word.to_owned(),
            _ => port.port.to_string(),
        };
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => {
                let other = super::wire::shown(other.as_bytes());
                let note = format!("{shown}: port {word} is {other}, which lbd does not balance");
                exposed.left_out.push(note);
                continue;
            }
        };
        let mut listens = addresses.listens(port, nodes);
        if !lets_in {
            listens.balancer.clear();
        }
        let offer = |suffix: &str, listen: BTreeSet<SocketAddr>, allowed: Prefixes| Offer {
            name: format!("{namespace}.{name}.{word}{suffix}"),
            listen: listen.into_iter().collect(),
            protocol,
            allow_sources: allowed,
            affinity: affinity(spec),
            since: since(service),
        };
        let everybody = Prefixes::default;
        for (suffix, listen, allowed, traffic) in [
            ("", listens.cluster, everybody(), Traffic::Internal),
            (
                ".external",
                listens.external,
                everybody(),
                Traffic::External,
            ),
            (".lb", listens.balancer, allowed.clone(), Traffic::External),
        ] {
            if !listen.is_empty() {
                exposed.groups.push(Group {
                    offer: offer(suffix, listen, allowed),
                    port,
                    traffic,
                });
            }
        }
    }
    exposed
}

/// All addresses of a Service, of the families that it has.
struct Addresses {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
    has_node_ports: bool,
}

impl Addresses {
    fn of(service: &Service, spec: &ServiceSpec, shown: &str, notes: &mut Vec<String>) -> Self {
        let several = spec.cluster_ips.as_deref().unwrap_or_default();
        let cluster: Vec<&str> = match several {
            [] => spec.cluster_ip.as_deref().into_iter().collect(),
            several => several.iter().map(String::as_str).collect(),
        };
        let cluster = cluster.into_iter().filter(|ip| !["", "None"].contains(ip));
        let cluster = parsed(cluster, "clusterIPs", shown, notes);
        let external = spec.external_ips.as_deref().unwrap_or_default();
        let external = external.iter().map(String::as_str);
        let mut external = parsed(external, "externalIPs", shown, notes);
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let balancer = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_deref());
        // With `Proxy` the balancer sends what it gets to node ports or pods itself.
        let ingress = ingress
            .filter(|_| kind == "LoadBalancer")
            .unwrap_or_default()
            .iter()
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_deref());
        let mut balancer = parsed(ingress, "loadBalancer.ingress", shown, notes);
        // A proxy of a family that the Service does not have knows nothing of it.
        let has = |ip: &IpAddr| cluster.iter().any(|c| c.is_ipv4() == ip.is_ipv4());
        external.retain(has);
        balancer.retain(has);
        Self {
            cluster,
            external,
            balancer,
            has_node_ports: ["NodePort", "LoadBalancer"].contains(&kind),
        }
    }

    fn listens(&self, port: &ServicePort, nodes: &[IpAddr]) -> Listens {
        let at = |ips: &[IpAddr], number: i32| -> BTreeSet<SocketAddr> {
            match u16::try_from(number) {
                Ok(number) if number > 0 => {
                    ips.iter().map(|ip| SocketAddr::new(*ip, number)).collect()
                }
                _ => BTreeSet::new(),
            }
        };
        let cluster = at(&self.cluster, port.port);
        let balancer = at(&self.balancer, port.port);
        let mut external = at(&self.external, port.port);
        if let (true, Some(number)) = (self.has_node_ports, port.node_port) {
            let has = |ip: &&IpAddr| self.cluster.iter().any(|c| c.is_ipv4() == ip.is_ipv4());
            let nodes: Vec<IpAddr> = nodes.iter().filter(has).copied().collect();
            external.extend(at(&nodes, number));
        }
        // One address in two groups: the one with source ranges counts, as it is the narrower one.
        external.retain(|listen| !balancer.contains(listen) && !cluster.contains(listen));
        Listens {
            balancer: &balancer - &cluster,
            cluster,
            external,
        }
    }
}

fn parsed<'a>(
    texts: impl Iterator<Item = &'a str>,
    what: &str,
    shown: &str,
    notes: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => {
                let text = super::wire::shown(text.as_bytes());
                notes.push(format!("{shown}: `{text}` of `{what}` is no address"));
            }
        }
    }
    addresses
}

/// `loadBalancerSourceRanges`, and whether anybody is let in at all: ranges of which none is
/// understood must not let everybody in.
fn allowed(spec: &ServiceSpec, shown: &str, notes: &mut Vec<String>) -> (Prefixes, bool) {
    let ranges = spec.load_balancer_source_ranges.as_deref();
    let ranges = ranges.unwrap_or_default();
    let mut prefixes = BTreeSet::new();
    for range in ranges {
        match prefix(range.trim()) {
            Some(prefix) => _ = prefixes.insert(prefix),
            None => {
                let range = super::wire::shown(range.as_bytes());
                notes.push(format!(
                    "{shown}: `{range}` of `loadBalancerSourceRanges` is no range of addresses"
                ));
            }
        }
    }
    let lets_in = ranges.is_empty() || !prefixes.is_empty();
    if !lets_in {
        notes.push(format!(
            "{shown}: its load balancer's addresses, as nobody may come in"
        ));
    }
    (prefixes.into_iter().collect(), lets_in)
}

/// Bits behind the prefix are allowed there, and mean nothing.
fn prefix(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    Prefix::around(address.parse().ok()?, length.parse().ok()?)
}

fn affinity(spec: &ServiceSpec) -> Option<Affinity> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let seconds = u64::try_from(seconds.unwrap_or(AFFINITY_SECONDS)).unwrap_or(0);
    Some(Affinity {
        client_ip: Duration::from_secs(seconds),
    })
}

fn since(service: &Service) -> i64 {
    let created = service.metadata.creation_timestamp.as_ref();
    created.map_or(i64::MAX, |created| created.0.as_second())
}

#[cfg(test)]
mod tests;
