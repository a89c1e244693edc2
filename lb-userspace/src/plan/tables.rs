use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    Input,
    services::{Placed, table_index},
    slots::{Placement, Slots},
};
use crate::{
    model::{Forwarding, Policy, is_v6},
    select::{self, Builder, Member},
};

/// All that a table depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    policy: Policy,
    size: usize,
    members: Vec<Member>,
}

impl Recipe {
    pub fn build(&self, builder: &mut Builder) -> Vec<u32> {
        builder.build_sized(self.policy, &self.members, self.size)
    }
}

/// What is kept of a table's contents: the tables of a thousand services take 32 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest(u64);

impl Digest {
    pub fn of(slots: &[u32]) -> Self {
        let mut hasher = DefaultHasher::new();
        slots.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A table as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Table {
    /// The installed one.
    Installed,
    /// What this makes.
    Of(Recipe),
}

/// The tables of all services, one per family of clients that has an eligible backend.
pub(super) fn tables(
    input: Input<'_>,
    placed: &[Placed<'_>],
    slots: &Slots,
) -> BTreeMap<u32, Table> {
    let mut tables = BTreeMap::new();
    for (service, backends) in placed.iter().zip(&slots.members) {
        for (clients, family) in by_family(service, backends) {
            let Some(recipe) = recipe(service.desired.policy, &family) else {
                continue;
            };
            let index = table_index(service.id, clients);
            let is_there = input.installed.tables.contains_key(&index)
                && input.recipes.get(&index) == Some(&recipe);
            let table = match is_there {
                true => Table::Installed,
                false => Table::Of(recipe),
            };
            tables.insert(index, table);
        }
    }
    tables
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
