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

/// Builds tables one after another, and keeps for the next one what does not depend on addresses.
#[derive(Default)]
pub struct Builder {
    maglev: maglev::Workshop,
}

impl Builder {
    /// The slots of a table; empty if no member has a weight.
    ///
    /// `size` is what [`table_size`] says of all backends of a service rather than of the eligible
    /// ones, so that a failing backend does not change the size, which would move every flow. For
    /// maglev it must be a prime. Of more members than entries, the last by address get none.
    pub fn build_sized(&mut self, policy: Policy, members: &[Member], size: usize) -> Vec<u32> {
        let mut members: Vec<Member> = members.iter().copied().filter(|m| m.weight > 0).collect();
        members.sort_unstable_by_key(|m| (m.address, m.slot));
        members.truncate(size);
        if members.is_empty() {
            return Vec::new();
        }
        let order = match policy {
            Policy::Maglev => self.maglev.table(&members, size),
            // A random draw wants the quotas only; any arrangement will do.
            Policy::RoundRobin | Policy::Random => schedule::table(&members, size),
        };
        let slot = |member| members[member as usize].slot;
        order.into_iter().map(slot).collect()
    }
}
