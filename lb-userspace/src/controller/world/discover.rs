//! What sources find, as a part of the world.

use std::net::SocketAddr;

use super::*;
use crate::{
    controller::{
        diff::{self, Difference},
        merge::Origin,
    },
    discovery::Asked,
    model::Protocol,
};

/// What other sets brought about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::controller) struct Rediscovered {
    /// Backends came or went.
    pub moved: bool,
    /// The kernel must hear of it.
    pub changed: bool,
    /// Services that changed, each with what became of its backends.
    pub differences: Vec<(String, Vec<Difference>)>,
}

impl World {
    /// The sources of services, and those of all services in force.
    pub(in crate::controller) fn sources(&self) -> BTreeMap<SourceName, Asked> {
        let merged = self.services.iter().map(|service| &*service.merged);
        merge::sources(&self.layers.file, merged)
    }

    /// Puts other sets in force. Only services whose own sets differ are touched, and of them what is
    /// observed of backends that stay is kept. `inherited` holds the verdicts of a former daemon on those
    /// of services that nobody knew.
    pub(in crate::controller) fn discover(
        &mut self,
        found: Arc<Discovered>,
        inherited: &HashMap<BackendRef, bool>,
        mut route: impl FnMut(IpAddr) -> Option<Route>,
    ) -> Rediscovered {
        let layers = Layers {
            found,
            ..Layers::clone(&self.layers)
        };
        let old = std::mem::replace(&mut self.layers, Arc::new(layers));
        let layers = self.layers.clone();
        let were_heard = !self.orphans.is_empty() && old.found.unknown != layers.found.unknown;
        if were_heard || !same_services(&old.found, &layers.found) {
            return self.discover_services(inherited, route);
        }
        let differs = |service: &Service| {
            service.merged.sources.iter().any(|name| {
                let (old, new) = (old.found.sets.get(name), layers.found.sets.get(name));
                match (old, new) {
                    (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
                    (None, None) => false,
                    _ => true,
                }
            })
        };
        let touched: Vec<usize> = (0..self.services.len())
            .filter(|at| differs(&self.services[*at]))
            .collect();
        let mut out = Rediscovered::default();
        if touched.is_empty() {
            return out;
        }
        let listens: HashSet<_> = self
            .services
            .iter()
            .map(|s| &s.merged.spec)
            .flat_map(|spec| spec.listen.iter().map(|l| (*l, spec.protocol)))
            .collect();
        for at in touched {
            self.discover_for(at, &listens, &mut route, &mut out);
        }
        if out.moved {
            self.touched = Touched::All;
            self.forget_routes();
        }
        self.note_conflicts();
        out
    }

    /// Services came, went or are others: everything is put together anew, and what is observed of
    /// backends that stay is kept.
    fn discover_services(
        &mut self,
        inherited: &HashMap<BackendRef, bool>,
        route: impl FnMut(IpAddr) -> Option<Route>,
    ) -> Rediscovered {
        let old = self.services.clone();
        let former = self.former();
        self.rebuild(
            |backend, _| match former.get(backend) {
                Some(former) => former.clone(),
                None => Former {
                    healthy: inherited.get(backend).copied(),
                    ..Former::default()
                },
            },
            route,
        );
        let mut before: HashMap<&str, &Service> = old.iter().map(|s| (s.name(), &**s)).collect();
        let mut told = Vec::new();
        for service in &self.services {
            let (name, new) = (service.name().to_owned(), &*service.merged);
            let differences = match before.remove(service.name()) {
                Some(old) if *old.merged == *new => continue,
                Some(old) => differences(&old.merged, new),
                None => diff::services([], [&new.spec]),
            };
            told.push((name, differences));
        }
        for (name, service) in before {
            let gone = diff::services([&service.merged.spec], []);
            told.push((name.to_owned(), gone));
        }
        Rediscovered {
            moved: true,
            changed: true,
            differences: told,
        }
    }

    fn discover_for(
        &mut self,
        at: usize,
        listens: &HashSet<(SocketAddr, Protocol)>,
        route: &mut impl FnMut(IpAddr) -> Option<Route>,
        out: &mut Rediscovered,
    ) {
        let old = self.services[at].clone();
        let mut merged = Merged::clone(&old.merged);
        merged.discover(&self.layers.found, |address, protocol| {
            listens.contains(&(address, protocol))
        });
        if merged == *old.merged {
            return;
        }
        let mut former: HashMap<_, _> = old
            .merged
            .spec
            .backends
            .iter()
            .zip(&old.observed)
            .map(|(backend, observed)| (backend.address, observed.clone()))
            .collect();
        let nothing = HashMap::new();
        let backends = merged.spec.backends.iter();
        let observed = backends.map(|backend| match former.remove(&backend.address) {
            Some(observed) => observed,
            None => self.first_seen(&merged.spec, backend, Former::default(), &nothing, route),
        });
        let observed = observed.collect();
        let addresses = |merged: &Merged| -> Vec<_> {
            merged.spec.backends.iter().map(|b| b.address).collect()
        };
        if addresses(&merged) == addresses(&old.merged) {
            if let Touched::Some(places) = &mut self.touched {
                places.insert(at);
            }
        } else {
            out.moved = true;
        }
        out.changed = true;
        let told = differences(&old.merged, &merged);
        out.differences.push((merged.spec.name.clone(), told));
        let service = Service {
            observed,
            merged: Arc::new(merged),
        };
        self.desired.services[at] = service.desired();
        self.services[at] = Arc::new(service);
    }

    /// Those of addresses that no backend has any more.
    fn forget_routes(&mut self) {
        let services = self.services.iter();
        let used: HashSet<IpAddr> = services
            .flat_map(|s| s.merged.spec.backends.iter().map(|b| b.address.ip()))
            .collect();
        self.routes.retain(|ip, _| used.contains(ip));
    }
}

fn same_services(old: &Discovered, new: &Discovered) -> bool {
    let (old, new) = (&old.services, &new.services);
    let same = |(a, b): ((&SourceName, _), (&SourceName, _))| a.0 == b.0 && Arc::ptr_eq(a.1, b.1);
    old.len() == new.len() && old.iter().zip(new).all(same)
}

fn differences(old: &Merged, new: &Merged) -> Vec<Difference> {
    let mut told = diff::services([&old.spec], [&new.spec]);
    let word = |origin: &Origin| match origin {
        Origin::Layer(layer) => layer.name(),
        Origin::Found { state, .. } => state.name().to_owned(),
    };
    let before: HashMap<_, _> = old
        .spec
        .backends
        .iter()
        .zip(&old.origins)
        .map(|(b, o)| (b.address, word(o)))
        .collect();
    for (backend, origin) in new.spec.backends.iter().zip(&new.origins) {
        let (address, after) = (backend.address, word(origin));
        if let Some(before) = before.get(&address).filter(|before| **before != *after) {
            told.push(Difference {
                kind: diff::Kind::Changed,
                object: format!("backend {}/{address}", new.spec.name),
                detail: format!("{before} → {after}"),
            });
        }
    }
    told
}

#[cfg(test)]
mod tests;
