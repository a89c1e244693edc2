//! What the tables in memory know of connections, for a person or a model.

use std::{
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Address, Be16, Flow, FlowKey, V4, V6, protocol};

use super::Slice;
use super::memory::Family;

/// An entry: packets that go `from` leave as packets that go `to`, each source and destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenFlow {
    pub udp: bool,
    pub from: (SocketAddr, SocketAddr),
    pub to: (SocketAddr, SocketAddr),
    /// It stands in the table of flows, not among the handshakes.
    pub is_established: bool,
    pub slot: u32,
    pub generation: u32,
    /// Bits of `flow_state` in `lb_common::abi`.
    pub state: u32,
    pub expected: u32,
}

impl Slice {
    /// Every entry of both families, also in former tables, in no order.
    pub fn seen_flows(&self) -> Vec<SeenFlow> {
        let mut seen = Vec::new();
        family(&mut seen, &self.memory.v4);
        family(&mut seen, &self.memory.v6);
        seen
    }

    /// A slot's connections that began, were answered, were refused.
    pub fn milestones(&self, slot: u32) -> [u64; 3] {
        let counters = self.memory.counters.borrow();
        let counters = counters.get(&slot).copied().unwrap_or_default();
        [counters.connections, counters.established, counters.refused]
    }

    /// A slot's connections that were opened and not closed.
    pub fn open_connections(&self, slot: u32) -> u32 {
        let active = self.memory.active.get(&slot);
        active.map_or(0, |active| active.opened.get() - active.closed.get())
    }
}

fn family<A: Address + Hash>(seen: &mut Vec<SeenFlow>, family: &Family<A>) {
    for (table, is_established) in [
        (&family.flows, true),
        (&family.handshakes, false),
        (&family.former_flows, true),
        (&family.former_handshakes, false),
    ] {
        let entries = table.entries().into_iter();
        seen.extend(entries.map(|(key, flow)| entry(&key, &flow, is_established)));
    }
}

fn entry<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, is_established: bool) -> SeenFlow {
    let end = |address: A, port: Be16| SocketAddr::new(address_of(address), port.get());
    SeenFlow {
        udp: key.protocol() == protocol::UDP,
        from: (end(key.src, key.src_port), end(key.dst, key.dst_port)),
        to: (end(flow.src, flow.src_port), end(flow.dst, flow.dst_port)),
        is_established,
        slot: flow.slot,
        generation: flow.generation,
        state: flow.state.get(),
        expected: flow.expected.get(),
    }
}

fn address_of<A: Address>(address: A) -> IpAddr {
    let words = address.to_words();
    match A::IS_V6 {
        true => V6(words).ip(),
        false => V4(words[0]).ip(),
    }
}
