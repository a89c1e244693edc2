//! File layer + CLI layer + what sources found → the services in force. Pure.

mod found;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use super::world::Layers;
use crate::{
    discovery::{Asked, Discovered, InstanceState, SourceName},
    model::{Config, Forwarding, Protocol, ServiceSpec},
    state::State,
};

/// Which layer an object comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layer {
    File,
    Cli,
    /// A source of this kind found it.
    Found(&'static str),
}

impl Layer {
    /// As shown in the `source` column.
    pub(super) fn name(self) -> String {
        match self {
            Self::File => "file".to_owned(),
            Self::Cli => "cli".to_owned(),
            Self::Found(kind) => format!("discovery:{kind}"),
        }
    }
}

/// Where a backend comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Layer(Layer),
    /// A source of this kind, whose registry says this of it.
    Found {
        kind: &'static str,
        state: InstanceState,
    },
}

impl Origin {
    /// As shown in the `source` column.
    pub(super) fn name(self) -> String {
        match self {
            Self::Layer(layer) => layer.name(),
            Self::Found { kind, .. } => Layer::Found(kind).name(),
        }
    }

    pub(super) fn is_found(self) -> bool {
        matches!(self, Self::Found { .. })
    }
}

/// A service in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Merged {
    /// With the backends of both layers, and those found behind them.
    pub spec: ServiceSpec,
    pub layer: Layer,
    /// Where more backends come from.
    pub sources: Vec<SourceName>,
    /// Of each backend of `spec`, in its order.
    pub origins: Vec<Origin>,
    /// Instances found that are out of force, and why, one sentence each.
    pub left_out: Vec<String>,
}

impl Merged {
    /// No person said anything of it.
    pub(super) fn is_found(&self) -> bool {
        matches!(self.layer, Layer::Found(_))
    }

    /// What people said of it, without what was found.
    pub(super) fn configured(&self) -> ServiceSpec {
        let mut spec = self.spec.clone();
        spec.backends.truncate(self.count_configured());
        spec
    }

    fn count_configured(&self) -> usize {
        let found = self.origins.iter().position(|origin| origin.is_found());
        found.unwrap_or(self.origins.len())
    }

    /// Puts the backends that its sources have found now in place of those they had. One that is
    /// configured, or that an earlier source has found, stays as it is; `is_listen` says where
    /// services listen.
    pub(super) fn discover(
        &mut self,
        found: &Discovered,
        is_listen: impl Fn(SocketAddr, Protocol) -> bool,
    ) {
        let configured = self.count_configured();
        self.spec.backends.truncate(configured);
        self.origins.truncate(configured);
        self.left_out.clear();
        let mut taken: HashSet<SocketAddr> = self.spec.backends.iter().map(|b| b.address).collect();
        // With direct return a backend gets what the client sent, to the port that the client chose.
        let keeps_port = self.spec.forwarding != Forwarding::Nat;
        let listen = &self.spec.listen;
        let cannot_answer =
            |port: u16| keeps_port && listen.iter().any(|listen| listen.port() != port);
        for name in &self.sources {
            let mut other_ports = 0;
            for one in found.sets.get(name).map_or(&[][..], |set| set) {
                let address = one.spec.address;
                if cannot_answer(address.port()) {
                    other_ports += 1;
                } else if is_listen(address, self.spec.protocol) {
                    self.left_out.push(format!(
                        "instance `{}` of source {name} is left out: a service listens on \
                         {address}, so packets would come straight back",
                        one.id
                    ));
                } else if taken.insert(address) {
                    self.spec.backends.push(one.spec.clone());
                    self.origins.push(Origin::Found {
                        kind: name.kind,
                        state: one.state,
                    });
                }
            }
            if other_ports > 0 {
                self.left_out.push(format!(
                    "{other_ports} instances of source {name} are left out: their port is not that \
                     of every `listen`, and `forwarding: {}` changes no ports",
                    self.spec.forwarding
                ));
            }
        }
    }
}

/// Result of [`merge`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Merge {
    /// The file's in its order, then those added by `lbctl`, then those found.
    pub services: Vec<Merged>,
    /// Services added by `lbctl` that are out of force, why, and what to do, one sentence each.
    pub conflicts: Vec<String>,
    /// Backends added by `lbctl` whose service is gone, likewise.
    pub orphans: Vec<String>,
    /// Services found that are out of force, likewise.
    pub left_out: Vec<String>,
}

/// Where both layers claim a name, an address or a backend, the file wins; what is configured wins
/// over what is found.
pub(super) fn merge(layers: &Layers) -> Merge {
    let Layers { file, state, found } = layers;
    let mut merged: Vec<Merged> = file
        .services
        .iter()
        .map(|spec| whole(spec, Layer::File))
        .collect();
    let orphans = add_backends(&mut merged, state);
    let mut conflicts = Vec::new();
    let mut names: HashSet<&str> = file.services.iter().map(|s| s.name.as_str()).collect();
    let mut listens = listens(&file.services);
    for spec in &state.services {
        let name = &spec.name;
        let collision = spec
            .listen
            .iter()
            .find_map(|listen| Some((listen, listens.get(&(*listen, spec.protocol))?)));
        if !names.insert(name) {
            conflicts.push(format!(
                "service `{name}` was added by lbctl and stands in the config file as well: the \
                 file's is in force; `lbctl remove service {name}` forgets the added one"
            ));
        } else if let Some((listen, owner)) = collision {
            conflicts.push(format!(
                "service `{name}`, added by lbctl, is out of force: {listen}/{} belongs to \
                 service `{owner}` of the config file; `lbctl remove service {name}` forgets it",
                spec.protocol
            ));
        } else {
            listens.extend(
                spec.listen
                    .iter()
                    .map(|l| ((*l, spec.protocol), name.as_str())),
            );
            merged.push(whole(spec, Layer::Cli));
        }
    }
    let left_out = found::add(&mut merged, layers, &mut listens);
    let is_listen = |address, protocol| listens.contains_key(&(address, protocol));
    for service in merged.iter_mut().filter(|s| !s.sources.is_empty()) {
        service.discover(found, is_listen);
    }
    Merge {
        services: merged,
        conflicts,
        orphans,
        left_out,
    }
}

/// The sources that are to run: those of services, and those of the services that people configured.
pub(super) fn sources<'a>(
    file: &Config,
    services: impl IntoIterator<Item = &'a Merged>,
) -> BTreeMap<SourceName, Asked> {
    let finders = file.discovery.iter();
    let finders = finders.map(|spec| (spec.name(), Asked::Services(Box::new(spec.clone()))));
    let of_services = services.into_iter().flat_map(|service| {
        let specs = service.spec.discovery.iter();
        specs.map(|spec| {
            (
                spec.name(&service.spec.name),
                Asked::Backends(Box::new(spec.clone())),
            )
        })
    });
    finders.chain(of_services).collect()
}

/// Who listens where.
pub(super) fn listens(services: &[ServiceSpec]) -> HashMap<(SocketAddr, Protocol), &str> {
    services
        .iter()
        .flat_map(|s| s.listen.iter().map(|l| ((*l, s.protocol), s.name.as_str())))
        .collect()
}

fn whole(spec: &ServiceSpec, layer: Layer) -> Merged {
    Merged {
        spec: spec.clone(),
        layer,
        sources: spec.discovery.iter().map(|s| s.name(&spec.name)).collect(),
        origins: vec![Origin::Layer(layer); spec.backends.len()],
        left_out: Vec::new(),
    }
}

/// A backend that the file lists by now needs no conflict: the operator moved it there.
fn add_backends(merged: &mut [Merged], state: &State) -> Vec<String> {
    let places: HashMap<String, usize> = merged
        .iter()
        .enumerate()
        .map(|(place, service)| (service.spec.name.clone(), place))
        .collect();
    let mut orphans = Vec::new();
    for added in &state.backends {
        let address = added.backend.address;
        let Some(&place) = places.get(&added.service) else {
            orphans.push(format!(
                "backend {0}, added by lbctl, has no service: the config file has no `{1}`; \
                 `lbctl remove backend {0}` forgets it",
                added.reference(),
                added.service
            ));
            continue;
        };
        let Merged { spec, origins, .. } = &mut merged[place];
        if spec.backends.iter().all(|known| known.address != address) {
            spec.backends.push(added.backend.clone());
            origins.push(Origin::Layer(Layer::Cli));
        }
    }
    orphans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::testing::{backend, config, service},
        state::AddedBackend,
    };

    fn added(service: &str, address: &str) -> AddedBackend {
        AddedBackend {
            service: service.to_owned(),
            backend: backend(address, 7),
        }
    }

    #[test]
    fn layers_add_up() {
        let file = config([service("web", "192.0.2.1:80", &["10.0.0.1:80"])]);
        let state = State {
            services: vec![service("dns", "192.0.2.1:53", &["10.0.0.9:53"])],
            backends: vec![added("web", "10.0.0.2:80")],
            ..State::default()
        };
        let merge = merge(&Layers {
            file: file.clone().into(),
            state,
            found: Default::default(),
        });
        assert_eq!(merge.conflicts.len() + merge.orphans.len(), 0, "{merge:#?}");
        let [web, dns] = &merge.services[..] else {
            panic!("{merge:#?}");
        };
        assert_eq!(web.origins, [Layer::File, Layer::Cli].map(Origin::Layer));
        assert_eq!(web.spec.backends[1].weight, 7);
        assert_eq!((dns.layer, dns.spec.name.as_str()), (Layer::Cli, "dns"));
    }

    #[test]
    fn the_file_wins() {
        let file = config([service("web", "192.0.2.1:80", &["10.0.0.1:80"])]);
        let state = State {
            services: vec![
                service("web", "192.0.2.2:80", &[]),
                service("other", "192.0.2.1:80", &[]),
            ],
            backends: vec![added("web", "10.0.0.1:80"), added("gone", "10.0.0.1:80")],
            ..State::default()
        };
        let merge = merge(&Layers {
            file: file.clone().into(),
            state,
            found: Default::default(),
        });
        assert_eq!(merge.services, [whole(&file.services[0], Layer::File)]);
        assert_eq!(merge.conflicts.len(), 2, "{merge:#?}");
        assert_eq!(merge.orphans.len(), 1, "{merge:#?}");
    }
}
