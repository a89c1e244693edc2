//! File layer + CLI layer → the services in force. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use crate::{
    model::{Config, Protocol, ServiceSpec},
    state::State,
};

/// Which layer an object comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layer {
    File,
    Cli,
}

impl Layer {
    /// As shown in the `source` column.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cli => "cli",
        }
    }
}

/// A service in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Merged {
    /// With the backends of both layers.
    pub spec: ServiceSpec,
    pub layer: Layer,
    /// Layer of each backend of `spec`, in its order.
    pub layers: Vec<Layer>,
}

/// Result of [`merge`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Merge {
    /// The file's in its order, then those added by `lbctl`.
    pub services: Vec<Merged>,
    /// Services added by `lbctl` that are out of force, why, and what to do, one sentence each.
    pub conflicts: Vec<String>,
    /// Backends added by `lbctl` whose service is gone, likewise.
    pub orphans: Vec<String>,
}

/// Where both layers claim a name, an address or a backend, the file wins.
pub(super) fn merge(file: &Config, state: &State) -> Merge {
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
    Merge {
        services: merged,
        conflicts,
        orphans,
    }
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
        layers: vec![layer; spec.backends.len()],
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
        let Merged { spec, layers, .. } = &mut merged[place];
        if spec.backends.iter().all(|known| known.address != address) {
            spec.backends.push(added.backend.clone());
            layers.push(Layer::Cli);
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
        let merge = merge(&file, &state);
        assert_eq!(merge.conflicts.len() + merge.orphans.len(), 0, "{merge:#?}");
        let [web, dns] = &merge.services[..] else {
            panic!("{merge:#?}");
        };
        assert_eq!(web.layers, [Layer::File, Layer::Cli]);
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
        let merge = merge(&file, &state);
        assert_eq!(merge.services, [whole(&file.services[0], Layer::File)]);
        assert_eq!(merge.conflicts.len(), 2, "{merge:#?}");
        assert_eq!(merge.orphans.len(), 1, "{merge:#?}");
    }
}
