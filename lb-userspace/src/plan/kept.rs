use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use lb_common::abi::Service;

use super::{
    Admissions, Input, Table,
    services::{Placed, table_index},
};
use crate::datapath::Listen;

/// Services that stay as they are: see [`super::Desired::kept`].
#[derive(Default)]
pub(super) struct Kept {
    pub(super) services: BTreeMap<Listen, Service>,
    pub(super) ids: HashSet<u32>,
}

impl Kept {
    /// Those that a desired service has become are that service's matter, with all their listens.
    pub(super) fn new(input: Input<'_>, placed: &[Placed<'_>]) -> Self {
        let taken: HashSet<u32> = placed.iter().map(|service| service.id).collect();
        let claimed: BTreeSet<Listen> = placed
            .iter()
            .flat_map(|service| service.listens.iter().copied())
            .collect();
        let kept = input.desired.kept.iter();
        let services: BTreeMap<_, _> = kept
            .filter(|listen| !claimed.contains(listen))
            .filter_map(|listen| Some((*listen, *input.installed.services.get(listen)?)))
            .filter(|(_, service)| !taken.contains(&service.id))
            .collect();
        let ids = services.values().map(|service| service.id).collect();
        Self { services, ids }
    }

    pub(super) fn tables(&self, input: Input<'_>) -> impl Iterator<Item = (u32, Table)> {
        let families = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let tables = self
            .ids
            .iter()
            .flat_map(move |id| families.map(|family| table_index(*id, family)));
        tables
            .filter(move |table| input.installed.tables.contains_key(table))
            .map(|table| (table, Table::Installed))
    }

    pub(super) fn add_admissions(&self, input: Input<'_>, admissions: &mut Admissions) {
        let Admissions { rules, sources } = &input.installed.admissions;
        for id in &self.ids {
            let rule = rules.get(id).map(|rule| (*id, *rule));
            admissions.rules.extend(rule);
            let list = sources.get(id).map(|list| (*id, list.clone()));
            admissions.sources.extend(list);
        }
    }
}
