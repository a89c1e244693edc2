//! Builds the selection tables that the packet path draws from.

use std::net::SocketAddr;

use crate::model::Policy;

/// One eligible backend of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Identity: two nodes with the same members build tables that agree, whatever the slots.
    pub address: SocketAddr,
    pub slot: u32,
    /// Relative weight; members of weight 0 get no entry.
    pub weight: u32,
}

/// The slots of a table of prime size; empty if no member has a weight.
pub fn build(policy: Policy, members: &[Member]) -> Vec<u32> {
    let _ = (policy, members);
    todo!()
}
