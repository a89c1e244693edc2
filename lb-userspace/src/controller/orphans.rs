//! What the kernel serves on behalf of sources of which nothing is known, as when the state directory
//! was lost: it stays until they answer. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::abi::{Backend, backend_state};

use super::{inherit, merge, world::Layers};
use crate::{
    datapath::Listen,
    discovery::{Instance, InstanceState, SourceName},
    plan::{Desired, Installed, socket_address, table_index},
};

/// The backends that the kernel has for services with such sources, for each service as the first
/// of them might have found them. `table` reads a selection table.
///
/// Only what takes connections may go on to do so: of the others nobody knows whether they were
/// drained, failed, or were about to leave.
pub(super) fn backends(
    installed: &Installed,
    layers: &Layers,
    table: impl Fn(u32) -> Option<Vec<u32>>,
) -> Vec<(SourceName, Vec<Instance>)> {
    let unknown = &layers.found.unknown;
    let mut out = Vec::new();
    for service in merge::merge(layers).services {
        let Some(source) = service.sources.iter().find(|s| unknown.contains(s)) else {
            continue;
        };
        let Some(id) = inherit::id(installed, &service.spec) else {
            continue;
        };
        let known: BTreeSet<_> = service.spec.backends.iter().map(|b| b.address).collect();
        let left: Vec<(u32, &Backend)> = installed
            .backends
            .iter()
            .filter(|(_, b)| b.service == id && b.state != backend_state::FREE)
            .filter(|(_, b)| !known.contains(&socket_address(b)))
            .map(|(slot, backend)| (*slot, backend))
            .collect();
        let weights = weights(&left, |address| table(table_index(id, address)));
        let instances = left.into_iter().map(|(slot, backend)| Instance {
            weight: weights.get(&slot).copied(),
            state: match backend.state {
                backend_state::ACTIVE => InstanceState::Up,
                backend_state::DOWN => InstanceState::Down,
                _ => InstanceState::Drain,
            },
            ..Instance::new(format!("kernel slot {slot}"), socket_address(backend))
        });
        let instances: Vec<_> = instances.collect();
        if !instances.is_empty() {
            out.push((source.clone(), instances));
        }
    }
    out
}

/// Weights that have the shares which these slots have in the table of their family.
fn weights(
    slots: &[(u32, &Backend)],
    table: impl Fn(IpAddr) -> Option<Vec<u32>>,
) -> HashMap<u32, u16> {
    let mut weights = HashMap::new();
    for is_v6 in [false, true] {
        let family = slots
            .iter()
            .map(|(slot, backend)| (*slot, socket_address(backend).ip()))
            .filter(|(_, ip)| ip.is_ipv6() == is_v6);
        let family: HashMap<u32, IpAddr> = family.collect();
        let Some(drawn) = family.values().next().and_then(|ip| table(*ip)) else {
            continue;
        };
        let mut entries: HashMap<u32, u32> = HashMap::new();
        for slot in drawn.iter().filter(|slot| family.contains_key(slot)) {
            *entries.entry(*slot).or_default() += 1;
        }
        let most = entries.values().copied().max().unwrap_or(1);
        let common = entries.values().fold(0, |a, b| gcd(a, *b)).max(1);
        let weight = |entries: u32| match most / common {
            0..=100 => entries / common,
            // A maglev table has the shares by and large.
            _ => ((entries * 100 + most / 2) / most).max(1),
        };
        let weights_of = entries.iter().map(|(slot, n)| (*slot, weight(*n) as u16));
        weights.extend(weights_of);
    }
    weights
}

fn gcd(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// Where the kernel serves and nothing known listens: services that a source of services may have
/// found. Nothing, unless there is one of which nothing is known.
pub(super) fn listens(
    installed: &Installed,
    layers: &Layers,
    desired: &Desired,
) -> BTreeSet<Listen> {
    let mut listens = BTreeSet::new();
    if is_awaited(layers) {
        listens.extend(installed.services.keys().copied());
        for service in &desired.services {
            for listen in service.listens() {
                listens.remove(&listen);
            }
        }
    }
    listens
}

/// Some source of services was never heard.
pub(super) fn is_awaited(layers: &Layers) -> bool {
    let mut sources = layers.file.discovery.iter();
    sources.any(|spec| layers.found.unknown.contains(&spec.name()))
}
