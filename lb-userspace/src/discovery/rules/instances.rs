//! Instances as things that are found: of several with one address one counts.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::Item;
use crate::{
    discovery::{Found, Instance, Set, Settings, instance::admissible},
    model::BackendSpec,
};

impl Item for Instance {
    const PLURAL: &'static str = "instances";
    const PURPOSE: &'static str = "a backend";

    type Set = Set;

    fn id(&self) -> &str {
        &self.id
    }

    fn admissible(self) -> Result<Self, String> {
        admissible(self)
    }

    fn set<'a>(known: impl Iterator<Item = (&'a Self, bool)>, settings: &Settings) -> Set {
        let mut by_address: HashMap<SocketAddr, (&Self, bool)> = HashMap::new();
        for known in known {
            let rank = |(instance, missing): (&Self, bool)| (instance.state, missing);
            by_address
                .entry(known.0.address)
                .and_modify(|best| {
                    if rank(known) < rank(*best) {
                        *best = known;
                    }
                })
                .or_insert(known);
        }
        let mut set: Vec<Found> = by_address
            .into_values()
            .map(|(instance, _)| found(instance, settings))
            .collect();
        set.sort_unstable_by_key(|found| found.spec.address);
        Arc::new(set)
    }
}

fn found(instance: &Instance, settings: &Settings) -> Found {
    let mut labels = settings.labels.clone();
    labels.extend(instance.labels.clone());
    Found {
        id: instance.id.clone(),
        spec: BackendSpec {
            address: instance.address,
            weight: instance.weight.unwrap_or(settings.weight),
            labels,
            max_connections: None,
        },
        state: instance.state,
    }
}
