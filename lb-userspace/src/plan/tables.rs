use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    Input,
    services::{Placed, table_index},
    slots::{Placement, Slots},
};
use crate::{
    model::{Forwarding, Policy, is_v6},
    select::{self, Member},
};

/// All that a table depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    policy: Policy,
    size: usize,
    members: Vec<Member>,
}

/// A table as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table<'a> {
    /// Borrowed from what is installed, if that is right already.
    pub slots: Cow<'a, [u32]>,
    pub recipe: Option<Recipe>,
}

/// The tables of all services, one per family of clients that has an eligible backend.
pub(super) fn tables<'a>(
    input: Input<'a>,
    placed: &[Placed<'_>],
    slots: &Slots,
    confirmed: &mut Vec<(u32, Recipe)>,
) -> BTreeMap<u32, Table<'a>> {
    let mut tables = BTreeMap::new();
    for (service, backends) in placed.iter().zip(&slots.members) {
        for (clients, family) in by_family(service, backends) {
            let Some(recipe) = recipe(service.desired.policy, &family) else {
                continue;
            };
            let index = table_index(service.id, clients);
            let table = table(input, index, recipe, confirmed);
            tables.insert(index, table);
        }
    }
    tables
}

/// Builds a table, unless the installed one is known to be right.
fn table<'a>(
    input: Input<'a>,
    index: u32,
    recipe: Recipe,
    confirmed: &mut Vec<(u32, Recipe)>,
) -> Table<'a> {
    let installed = input.installed.tables.get(&index);
    let known = installed.filter(|_| input.recipes.get(&index) == Some(&recipe));
    if let Some(slots) = known {
        return keep(slots);
    }
    let slots = select::build_sized(recipe.policy, &recipe.members, recipe.size);
    match installed {
        Some(same) if *same == slots => {
            confirmed.push((index, recipe));
            keep(same)
        }
        _ => Table {
            slots: Cow::Owned(slots),
            recipe: Some(recipe),
        },
    }
}

fn keep(slots: &[u32]) -> Table<'_> {
    Table {
        slots: Cow::Borrowed(slots),
        recipe: None,
    }
}

/// Backends by the family of the clients they serve, which any address of that family stands for:
/// their own, and with a tunnel those of IPv6 both.
fn by_family<'b>(
    service: &Placed<'_>,
    backends: &'b [Placement],
) -> [(IpAddr, Vec<&'b Placement>); 2] {
    let is_crossed = service.desired.forwarding == Forwarding::DsrIpip
        && service.listens.iter().any(|l| l.address.is_ipv4());
    let of = |v6: bool| {
        let serves = move |p: &&Placement| is_v6(p.member.address.ip()) == v6 || is_crossed && !v6;
        backends.iter().filter(serves).collect()
    };
    [
        (Ipv4Addr::UNSPECIFIED.into(), of(false)),
        (Ipv6Addr::UNSPECIFIED.into(), of(true)),
    ]
}

/// `None` without an eligible backend.
fn recipe(policy: Policy, backends: &[&Placement]) -> Option<Recipe> {
    let members: Vec<Member> = backends
        .iter()
        .filter(|b| b.eligible)
        .map(|b| b.member)
        .collect();
    if members.is_empty() {
        return None;
    }
    // A failing backend must not change the size of a maglev table, which would move every flow.
    // The others' draws have no memory, and a schedule is exact only for those that take part.
    let weights: Vec<u32> = match policy {
        Policy::Maglev => backends.iter().map(|b| b.member.weight).collect(),
        Policy::RoundRobin | Policy::Random => members.iter().map(|m| m.weight).collect(),
    };
    let size = select::table_size(policy, &weights);
    Some(Recipe {
        policy,
        size,
        members,
    })
}
