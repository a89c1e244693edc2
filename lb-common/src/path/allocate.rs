//! Finds a free source for a new connection and enters its reverse direction.

use super::{FamilyTables, InsertError, Sum, Tables, Work, active};
use crate::abi::{
    Address, Backend, Be16, Config, Drop, Flow, FlowKey, NextHop, PortKind, backend_flag,
    flow_state, port_bit, protocol,
};

/// Source ports tried before the connection is refused.
const ATTEMPTS: u32 = 16;

/// The last of them, in which an older handshake gives way. A flood of forged SYNs would hold every
/// port otherwise until its handshakes are evicted.
const LAST_ATTEMPTS: u32 = 6;

/// A source that a connection may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// 0: the address that was prepared; else the number of a node address, from 1.
    address: u16,
    port: Be16,
    /// 1 if handshakes that nobody proved for a second give way.
    insists: u32,
}

impl Candidate {
    /// One scalar, to cross a subprogram.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.insists << 31 | (self.address as u32) << 16 | self.port.0 as u32
    }

    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self {
            address: (word >> 16 & 0x7fff) as u16,
            port: Be16(word as u16),
            insists: word >> 31,
        }
    }
}

/// A drawn backend, for which entries are made.
pub(super) struct Drawn<'t> {
    pub(super) slot: u32,
    pub(super) backend: &'t Backend,
    pub(super) now: u32,
    /// Bits of [`flow_state`] that both directions begin with.
    pub(super) state: u32,
}

/// What came of [`take_source`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Attempt {
    /// Another connection has the tuple, or a socket of the node.
    Taken = 0,
    /// The reverse direction is in the handshakes.
    Entered = 1,
    /// The handshakes refused it.
    Full = 2,
}

/// Enters the reverse direction of the connection `work.key` → `drawn` into the handshakes and
/// leaves its key in `work.opposite`. Keeps the client's address and port unless the backend asks
/// for SNAT; a port that is taken (the same client port towards the same backend through another
/// service) is replaced.
#[inline(always)]
pub(super) fn reverse<A: Address, T: FamilyTables<A>>(
    tables: &T,
    config: &Config,
    drawn: &Drawn<'_>,
) -> Result<(), Drop> {
    let Some(work) = tables.work() else {
        return Err(Drop::HandshakeTableFull);
    };
    let backend = drawn.backend;
    let key = &work.key;
    let (own_port, protocol) = (key.src_port, key.protocol());
    // A backend that draws itself would see its own address, and answer itself.
    let draws_itself = same(key.src, backend.address());
    let snat = backend.flags & backend_flag::SNAT != 0 || draws_itself && backend.has_source();
    let source = if snat { backend.source() } else { key.src };
    work.opposite = FlowKey::new(
        backend.address(),
        Be16(backend.port),
        source,
        own_port,
        protocol,
    );
    fill(
        &mut work.flow,
        &work.opposite,
        key,
        drawn,
        flow_state::REVERSE,
    );
    let mut attempt = match snat {
        true => Attempt::Taken,
        false => tables.take_source(Candidate {
            address: 0,
            port: own_port,
            insists: 0,
        }),
    };
    let addresses = match snat {
        true => config.sources[A::IS_V6 as usize],
        false => 0,
    };
    let start = tables.random();
    // An odd stride of its own for each connection: with neighbouring places instead, taken ports
    // would pile up in runs longer than what is tried. Odd, so that a pool of a power of two is
    // walked without repeating a place.
    let stride = start >> 16 | 1;
    for round in 0..ATTEMPTS {
        if attempt != Attempt::Taken {
            break;
        }
        let place = start.wrapping_add(round.wrapping_mul(stride));
        if let Some(candidate) = tables.candidate(addresses, protocol as u32, place) {
            attempt = tables.take_source(Candidate {
                insists: (round >= ATTEMPTS - LAST_ATTEMPTS) as u32,
                ..candidate
            });
        }
    }
    match attempt {
        Attempt::Entered => Ok(()),
        Attempt::Taken => Err(Drop::SourcePortsExhausted),
        Attempt::Full => Err(Drop::HandshakeTableFull),
    }
}

/// Tries to enter the reverse direction prepared in [`Work`], with `candidate` as the source that the
/// backend sees. Behind [`FamilyTables::take_source`], which keeps it apart from the search: the
/// verifier walks every round of a loop, and this once.
#[inline(always)]
pub fn take_source<A: Address, T: FamilyTables<A>>(tables: &T, candidate: Candidate) -> Attempt {
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return Attempt::Full;
    };
    let Work {
        key,
        opposite: reverse,
        other,
        flow,
        ..
    } = work;
    if candidate.address != 0 {
        let Some(address) = tables.source(candidate.address as u32 - 1) else {
            return Attempt::Taken;
        };
        reverse.dst = address;
        flow.address_delta = address_delta(reverse, key);
    }
    reverse.dst_port = candidate.port;
    flow.port_delta = port_delta(reverse, key);
    let is_free = |flow: &Flow<A>| {
        let idle = tables.now().wrapping_sub(flow.last_seen.get());
        // A second, because the backend may still be closing what the node saw closed.
        let is_over = flow_state::is_closed(flow.state.get()) && idle >= config.hz;
        is_over | belongs_to(flow, key)
    };
    let is_unproven = |flow: &Flow<A>| tables.now().wrapping_sub(flow.created) >= config.hz;
    if tables.flow(reverse).is_some_and(|flow| !is_free(flow)) {
        return Attempt::Taken;
    }
    // The answers would be the socket's. Where the client's address is kept they are not for the
    // node, though a socket that listens on all addresses would be found.
    if differ(reverse.dst, key.src) != 0 && tables.has_socket(reverse) {
        return Attempt::Taken;
    }
    match tables.insert_handshake(reverse, flow, false) {
        Ok(()) => {}
        Err(InsertError::Full) => return Attempt::Full,
        Err(InsertError::Exists) => match tables.handshake(reverse) {
            Some(leftover) if belongs_to(leftover, key) => {
                if tables.insert_handshake(reverse, flow, true).is_err() {
                    return Attempt::Full;
                }
            }
            Some(older) if candidate.insists != 0 && is_unproven(older) => {
                *other = older.opposite(key.protocol());
                tables.remove_handshake(other);
                if tables.insert_handshake(reverse, flow, true).is_err() {
                    return Attempt::Full;
                }
            }
            _ => return Attempt::Taken,
        },
    }
    // Once more: a connection that is answered enters the flows before it leaves the handshakes,
    // and may have been between the two.
    let Some(former) = tables.flow(reverse) else {
        return Attempt::Entered;
    };
    if !is_free(former) {
        tables.remove_handshake(reverse);
        return Attempt::Taken;
    }
    active::forget(tables, former);
    *other = former.opposite(key.protocol());
    tables.remove_flow(other);
    tables.remove_flow(reverse);
    Attempt::Entered
}

/// Makes `flow` turn packets of tuple `from` into packets that `opposite` answers. Writes field by
/// field into memory off the stack: two of these do not fit beside each other on a BPF stack.
#[inline(always)]
pub(super) fn fill<A: Address>(
    flow: &mut Flow<A>,
    from: &FlowKey<A>,
    opposite: &FlowKey<A>,
    drawn: &Drawn<'_>,
    direction: u32,
) {
    flow.src = opposite.dst;
    flow.dst = opposite.src;
    flow.src_port = opposite.dst_port;
    flow.dst_port = opposite.src_port;
    flow.address_delta = address_delta(from, opposite);
    flow.port_delta = port_delta(from, opposite);
    flow.slot = drawn.slot;
    flow.generation = drawn.backend.generation;
    flow.next_hop.set(NextHop::default());
    flow.last_seen.set(drawn.now);
    flow.state.set(drawn.state | direction);
    flow.created = drawn.now;
    flow.expected.set(0);
}

#[inline(always)]
fn address_delta<A: Address>(from: &FlowKey<A>, opposite: &FlowKey<A>) -> u16 {
    let sum = |key: &FlowKey<A>| Sum::default().address(key.src).address(key.dst);
    sum(from).difference(sum(opposite)).0
}

#[inline(always)]
fn port_delta<A: Address>(from: &FlowKey<A>, opposite: &FlowKey<A>) -> u16 {
    let sum = |key: &FlowKey<A>| Sum::default().port(key.src_port).port(key.dst_port);
    sum(from).difference(sum(opposite)).0
}

/// The pair of address and port at a place of the SNAT pool, which has each port once for each of
/// `addresses`; `None` where a service listens on the port. Behind [`Tables::candidate`], as
/// [`take_source`] is.
#[inline(always)]
pub fn candidate<T: Tables>(
    tables: &T,
    addresses: u32,
    protocol: u32,
    place: u32,
) -> Option<Candidate> {
    let config = tables.config()?;
    let ports = config.snat_count as u32;
    if ports == 0 {
        return None;
    }
    let port = config.snat_first.wrapping_add((place % ports) as u16);
    let address = match addresses {
        0 => 0,
        _ => 1 + place / ports % addresses,
    };
    let kind = if protocol == protocol::UDP as u32 {
        PortKind::ServiceUdp
    } else {
        PortKind::ServiceTcp
    };
    let (index, bit) = port_bit(kind, port);
    (tables.port_word(index) & bit == 0).then_some(Candidate {
        address: address as u16,
        port: Be16::new(port),
        insists: 0,
    })
}

/// Whether `flow` is the other direction of the entry of `key`. One branch: each would double what the
/// verifier walks.
#[inline(always)]
pub(super) fn belongs_to<A: Address>(flow: &Flow<A>, key: &FlowKey<A>) -> bool {
    let ports = (flow.dst_port.0 ^ key.src_port.0) | (flow.src_port.0 ^ key.dst_port.0);
    differ(flow.dst, key.src) | differ(flow.src, key.dst) | ports as u32 == 0
}

#[inline(always)]
fn same<A: Address>(a: A, b: A) -> bool {
    differ(a, b) == 0
}

/// 0 for equal addresses.
#[inline(always)]
fn differ<A: Address>(a: A, b: A) -> u32 {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_words(), b.to_words());
    (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3)
}
