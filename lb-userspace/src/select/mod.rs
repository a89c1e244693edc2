//! Builds the selection tables that the packet path draws from.
//!
//! A table is a pure function of its members: two nodes that know the same backends build tables
//! that agree entry by entry, whatever the slots, the order, or what was there before.

mod maglev;
mod quota;
mod schedule;
mod size;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use crate::model::Policy;

pub use size::table_size;

/// One eligible backend of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Identity: two nodes with the same members build tables that agree, whatever the slots.
    pub address: SocketAddr,
    pub slot: u32,
    /// Relative weight; members of weight 0 get no entry.
    pub weight: u32,
}

/// The slots of a table; empty if no member has a weight. Of prime size, but for exact
/// round-robin schedules (see [`table_size`]).
pub fn build(policy: Policy, members: &[Member]) -> Vec<u32> {
    let weights: Vec<u32> = members.iter().map(|m| m.weight).collect();
    build_sized(policy, members, table_size(policy, &weights))
}

/// As [`build`], with a size chosen by the caller: from all backends of a service rather than the
/// eligible ones, so that a failing backend does not change the size, which would move every flow.
/// For maglev `size` must be a prime. Of more members than entries, the last by address get none.
pub fn build_sized(policy: Policy, members: &[Member], size: usize) -> Vec<u32> {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.weight > 0).collect();
    members.sort_unstable_by_key(|m| (m.address, m.slot));
    members.truncate(size);
    if members.is_empty() {
        return Vec::new();
    }
    let order = match policy {
        Policy::Maglev => maglev::table(&members, size),
        // A random draw wants the quotas only; any arrangement will do.
        Policy::RoundRobin | Policy::Random => schedule::table(&members, size),
    };
    order
        .into_iter()
        .map(|i| members[i as usize].slot)
        .collect()
}
