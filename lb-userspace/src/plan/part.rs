//! A plan for some services: where no backend comes or goes, the others need not be looked at.

use std::collections::{BTreeSet, HashSet};

use super::{
    Change, Desired, Input, Installed, Placement, Target, admission, changes, kept::Kept, services,
    slots, tables,
};
use crate::{datapath::Listen, model::BackendRef};

/// Changes for the services at these places of what is desired. They must be placed as
/// `placement` says, by a plan that refused nothing; only weights, admission and source addresses
/// of their backends, and policies, may differ since. `None` if it is not so; [`super::plan`]
/// knows what to do then.
pub fn plan_part(
    input: Input<'_>,
    places: &BTreeSet<usize>,
    placement: &Placement,
) -> Option<Vec<Change>> {
    let services = places.iter().map(|at| input.desired.services.get(*at));
    let desired = Desired {
        services: services
            .map(|service| service.cloned())
            .collect::<Option<_>>()?,
        // The others are not looked at.
        kept: BTreeSet::new(),
    };
    let installed = excerpt(input.installed, &desired, placement)?;
    let retired = HashSet::new();
    let input = Input {
        desired: &desired,
        installed: &installed,
        retired: &retired,
        ..input
    };
    let mut refused = Vec::new();
    let placed = services::place(input, &mut refused);
    let slots = slots::assign(input, &placed, &Kept::default(), &mut refused);
    let keeps_ids = placed
        .iter()
        .all(|s| placement.services.get(&s.desired.name) == Some(&s.id));
    let keeps_slots = slots
        .placement
        .iter()
        .all(|(backend, slot)| placement.slots.get(backend) == Some(slot));
    let admissions = admission::admissions(input, &placed, &mut refused);
    if !refused.is_empty() || placed.len() != places.len() || !keeps_ids || !keeps_slots {
        return None;
    }
    let tables = tables::tables(input, &placed, &slots);
    let target = Target {
        services: placed.iter().flat_map(|s| s.entries()).collect(),
        // The same services have the same addresses.
        echoes: BTreeSet::new(),
        backends: slots.backends,
        tables,
        // The same backends have the same ports.
        ports: Vec::new(),
        admissions,
        retired: &retired,
    };
    Some(changes(&installed, target))
}

/// What is installed for some services; slots of their former backends, ports, and
/// addresses that answer echo requests, left out.
fn excerpt(all: &Installed, desired: &Desired, placement: &Placement) -> Option<Installed> {
    let mut some = Installed::default();
    for service in &desired.services {
        for address in &service.listen {
            let listen = Listen {
                address: *address,
                protocol: service.protocol,
            };
            some.services.insert(listen, *all.services.get(&listen)?);
        }
        let id = placement.services.get(&service.name)?;
        for table in [2 * id, 2 * id + 1] {
            let digest = all.tables.get(&table);
            some.tables.extend(digest.map(|digest| (table, *digest)));
        }
        let rules = all.admissions.rules.get(id);
        some.admissions
            .rules
            .extend(rules.map(|rules| (*id, *rules)));
        let sources = all.admissions.sources.get(id);
        let sources = sources.map(|list| (*id, list.clone()));
        some.admissions.sources.extend(sources);
        for backend in &service.backends {
            let name = BackendRef {
                service: service.name.clone(),
                address: backend.address,
            };
            let slot = placement.slots.get(&name)?;
            some.backends.insert(*slot, *all.backends.get(slot)?);
        }
    }
    Some(some)
}
