//! Finds a free source for a new connection and enters its reverse direction.

use super::{FamilyTables, InsertError, Sum, Work, active};
use crate::abi::{
    Address, Backend, Be16, Config, Drop, Flow, FlowKey, NextHop, PortKind, backend_flag,
    flow_state, port_bit, protocol,
};

/// Source ports tried before the connection is refused.
const ATTEMPTS: u32 = 16;

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
    /// Another connection has the tuple.
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
    let snat = backend.flags & backend_flag::SNAT != 0;
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
        false => tables.take_source(own_port),
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
        if let Some(port) = pool_port(tables, config, protocol, place) {
            attempt = tables.take_source(port);
        }
    }
    match attempt {
        Attempt::Entered => Ok(()),
        Attempt::Taken => Err(Drop::SourcePortsExhausted),
        Attempt::Full => Err(Drop::HandshakeTableFull),
    }
}

/// Tries to enter the reverse direction prepared in [`Work`], with `port` as the source that the
/// backend sees. Behind [`FamilyTables::take_source`], which keeps it apart from the search: the
/// verifier walks every round of a loop, and this once.
#[inline(always)]
pub fn take_source<A: Address, T: FamilyTables<A>>(tables: &T, port: Be16) -> Attempt {
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
    reverse.dst_port = port;
    flow.port_delta = port_delta(reverse, key);
    let is_free = |flow: &Flow<A>| {
        let idle = tables.now().wrapping_sub(flow.last_seen.get());
        // A second, because the backend may still be closing what the node saw closed.
        let is_over = flow_state::is_closed(flow.state.get()) && idle >= config.hz;
        is_over | belongs_to(flow, key)
    };
    if tables.flow(reverse).is_some_and(|flow| !is_free(flow)) {
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
    let sum = |key: &FlowKey<A>| Sum::default().address(key.src).address(key.dst);
    flow.src = opposite.dst;
    flow.dst = opposite.src;
    flow.src_port = opposite.dst_port;
    flow.dst_port = opposite.src_port;
    flow.address_delta = sum(from).difference(sum(opposite)).0;
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
fn port_delta<A: Address>(from: &FlowKey<A>, opposite: &FlowKey<A>) -> u16 {
    let sum = |key: &FlowKey<A>| Sum::default().port(key.src_port).port(key.dst_port);
    sum(from).difference(sum(opposite)).0
}

/// A port of the SNAT pool, `None` where a service listens on it.
#[inline(always)]
fn pool_port<T: crate::path::Tables>(
    tables: &T,
    config: &Config,
    protocol: u8,
    place: u32,
) -> Option<Be16> {
    if config.snat_count == 0 {
        return None;
    }
    let port = config
        .snat_first
        .wrapping_add((place % config.snat_count as u32) as u16);
    let kind = if protocol == protocol::UDP {
        PortKind::ServiceUdp
    } else {
        PortKind::ServiceTcp
    };
    let (index, bit) = port_bit(kind, port);
    (tables.port_word(index) & bit == 0).then_some(Be16::new(port))
}

/// Whether `flow` is the other direction of the entry of `key`. One branch: each would double what the
/// verifier walks.
#[inline(always)]
pub(super) fn belongs_to<A: Address>(flow: &Flow<A>, key: &FlowKey<A>) -> bool {
    let differ = |a: A, b: A| {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_words(), b.to_words());
        (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3)
    };
    let ports = (flow.dst_port.0 ^ key.src_port.0) | (flow.src_port.0 ^ key.dst_port.0);
    differ(flow.dst, key.src) | differ(flow.src, key.dst) | ports as u32 == 0
}
