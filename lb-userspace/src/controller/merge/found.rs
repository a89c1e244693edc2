//! Services that sources found, behind all that is configured: they take what is left.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use super::{Layer, Layers, Merged};
use crate::{
    discovery::FoundService,
    model::{Limits, Protocol, ServiceSpec, is_v6},
};

/// Services that are told of one by one.
const TOLD: usize = 20;

type Owners<'a> = HashMap<(SocketAddr, Protocol), &'a str>;

/// What the kernel's maps have room for.
struct Room {
    limits: Limits,
    services: usize,
    /// IPv4, IPv6.
    listens: [usize; 2],
    sources: [usize; 2],
}

/// Adds those that collide with nothing and fit, the oldest of each source first, and says why the
/// others do not.
pub(super) fn add<'a>(
    merged: &mut Vec<Merged>,
    layers: &'a Layers,
    listens: &mut Owners<'a>,
) -> Vec<String> {
    let mut left_out = Vec::new();
    if layers.file.discovery.is_empty() {
        return left_out;
    }
    let mut room = Room::new(layers.file.node.limits.clone());
    merged.iter().for_each(|service| room.take(&service.spec));
    let mut names: HashSet<String> = merged.iter().map(|m| m.spec.name.clone()).collect();
    let backends: HashSet<(SocketAddr, Protocol)> = merged
        .iter()
        .flat_map(|m| {
            let backends = m.spec.backends.iter();
            backends.map(|b| (b.address, m.spec.protocol))
        })
        .collect();
    for source in &layers.file.discovery {
        let source = source.name();
        let services = layers.found.services.get(&source);
        for FoundService {
            spec,
            backends: set,
        } in services.into_iter().flat_map(|s| s.iter())
        {
            let fault = match names.contains(&spec.name) {
                true => Some("another service has this name".to_owned()),
                false => taken(spec, listens, &backends, layers).or_else(|| room.fault(spec)),
            };
            if let Some(fault) = fault {
                left_out.push(format!(
                    "service `{}`, found by {source}, is out of force: {fault}",
                    spec.name
                ));
                continue;
            }
            room.take(spec);
            names.insert(spec.name.clone());
            let own = spec.listen.iter().map(|l| (*l, spec.protocol));
            listens.extend(own.map(|listen| (listen, spec.name.as_str())));
            merged.push(Merged {
                spec: spec.clone(),
                layer: Layer::Found(source.kind),
                sources: vec![set.clone()],
                origins: Vec::new(),
                left_out: Vec::new(),
            });
        }
    }
    let more = left_out.len().saturating_sub(TOLD);
    left_out.truncate(TOLD);
    if more > 0 {
        left_out.push(format!(
            "{more} more services that were found are out of force"
        ));
    }
    left_out
}

/// Why it cannot listen where it should.
fn taken(
    spec: &ServiceSpec,
    listens: &Owners<'_>,
    backends: &HashSet<(SocketAddr, Protocol)>,
    layers: &Layers,
) -> Option<String> {
    let protocol = spec.protocol;
    spec.listen.iter().find_map(|listen| {
        let at = (*listen, protocol);
        if let Some(owner) = listens.get(&at) {
            return Some(format!("{listen}/{protocol} belongs to service `{owner}`"));
        }
        if backends.contains(&at) {
            return Some(format!(
                "{listen} is a configured backend, and packets to it would come straight back"
            ));
        }
        let is_http = protocol == Protocol::Tcp && *listen == layers.file.admin.http;
        is_http.then(|| format!("{listen} is the address of `admin.http`"))
    })
}

impl Room {
    fn new(limits: Limits) -> Self {
        let (listens, sources) = (limits.services as usize, limits.sources as usize);
        Self {
            services: listens,
            listens: [listens; 2],
            sources: [sources; 2],
            limits,
        }
    }

    fn take(&mut self, spec: &ServiceSpec) {
        let [listens, sources] = needs(spec);
        self.services = self.services.saturating_sub(1);
        for family in 0..2 {
            self.listens[family] = self.listens[family].saturating_sub(listens[family]);
            self.sources[family] = self.sources[family].saturating_sub(sources[family]);
        }
    }

    /// Why it does not fit.
    fn fault(&self, spec: &ServiceSpec) -> Option<String> {
        let [listens, sources] = needs(spec);
        let exceeds =
            |needed: [usize; 2], left: [usize; 2]| needed[0] > left[0] || needed[1] > left[1];
        if self.services == 0 || exceeds(listens, self.listens) {
            return Some(format!(
                "`node.limits.services` is {}, and older services come first; raise it",
                self.limits.services
            ));
        }
        exceeds(sources, self.sources).then(|| {
            format!(
                "`node.limits.sources` is {}, which leaves no room for its source prefixes; raise it",
                self.limits.sources
            )
        })
    }
}

/// Addresses it listens on, and source prefixes, by family.
fn needs(spec: &ServiceSpec) -> [[usize; 2]; 2] {
    let count = |v6: &mut dyn Iterator<Item = bool>| {
        v6.fold([0, 0], |[v4, v6], is_v6| match is_v6 {
            true => [v4, v6 + 1],
            false => [v4 + 1, v6],
        })
    };
    let admission = &spec.admission;
    let sources = admission
        .allow_sources
        .iter()
        .chain(&*admission.deny_sources);
    [
        count(&mut spec.listen.iter().map(|l| is_v6(l.ip()))),
        count(&mut sources.map(|prefix| prefix.is_v6())),
    ]
}

#[cfg(test)]
mod tests;
