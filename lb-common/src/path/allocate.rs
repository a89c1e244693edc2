//! Finds a free source for a new connection with NAT and enters its reverse direction.

use super::parse::Packet;
use super::wire::tcp;
use super::{FamilyTables, InsertError, Step, Sum, Tables, Verdict, Work, active};
use crate::abi::{
    Address, Backend, Be16, Drop, Flow, FlowKey, NextHop, PortKind, backend_flag, flow_state,
    port_bit, protocol,
};

/// Source ports tried before the connection is refused.
const ATTEMPTS: u32 = 16;

/// The last of them, in which an older handshake gives way. A flood of forged SYNs would hold every
/// port otherwise until its handshakes are evicted.
const LAST_ATTEMPTS: u32 = 6;

/// A source that a connection may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// A place of the SNAT pool, which has each port once for each of `addresses`.
    place: u32,
    /// Number of node addresses to choose from, 0 for the address that was prepared.
    addresses: u8,
    /// The port that was prepared, instead of the pool's.
    keeps_port: bool,
    /// Whether handshakes that nobody proved for a second give way.
    insists: bool,
}

impl Candidate {
    /// One scalar, to cross a subprogram.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.insists as u64) << 48
            | (self.keeps_port as u64) << 40
            | (self.addresses as u64) << 32
            | self.place as u64
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            place: word as u32,
            addresses: (word >> 32) as u8,
            keeps_port: word >> 40 & 1 != 0,
            insists: word >> 48 & 1 != 0,
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

impl<'t> Drawn<'t> {
    /// The backend in `slot`, for a connection that `packet` begins.
    #[inline(always)]
    pub(super) fn of<T: Tables>(tables: &'t T, packet: &Packet, slot: u32) -> Option<Self> {
        // What is picked up in the middle (another node's connection, a straggler) did not begin
        // here.
        let begins = packet.is_udp() || packet.has(tcp::SYN);
        // By multiplication: a branch would double what the verifier walks.
        let end = packet.has(tcp::FIN) as u32 * flow_state::CLIENT_FIN;
        Some(Self {
            slot,
            backend: tables.backend(slot)?,
            now: tables.now(),
            state: if begins { 0 } else { flow_state::MIDDLE } | end,
        })
    }

    #[inline(always)]
    pub(super) fn begins(&self) -> bool {
        self.state & flow_state::MIDDLE == 0
    }
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

/// Enters the reverse direction of the connection that the packet in [`Work`] begins with the backend
/// that [`super::admit`] left there into the handshakes, and leaves its key in `work.opposite`. Keeps
/// the client's address and port unless the backend asks for SNAT; a port that is taken (the same
/// client port towards the same backend through another service) is replaced.
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn allocate<A: Address, T: FamilyTables<A>>(tables: &T) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let Some(drawn) = Drawn::of(tables, &work.packet, work.slot) else {
        return PASS;
    };
    let backend = drawn.backend;
    let key = &work.key;
    // A backend that draws itself would see its own address, and answer itself.
    let draws_itself = same(key.src, backend.address());
    let snat = backend.flags & backend_flag::SNAT != 0 || draws_itself && backend.has_source();
    let source = if snat { backend.source() } else { key.src };
    work.opposite = FlowKey::new(
        backend.address(),
        Be16(backend.port),
        source,
        key.src_port,
        key.protocol(),
    );
    fill(
        &mut work.flow,
        &work.opposite,
        key,
        &drawn,
        flow_state::REVERSE,
    );
    let mut candidate = Candidate {
        place: 0,
        addresses: 0,
        keeps_port: true,
        insists: false,
    };
    let mut attempt = Attempt::Taken;
    if snat {
        candidate.addresses = config.sources[A::IS_V6 as usize] as u8;
    } else {
        attempt = tables.take_source(candidate);
    }
    candidate.keeps_port = false;
    let start = tables.random();
    // An odd stride of its own for each connection: with neighbouring places instead, taken ports
    // would pile up in runs longer than what is tried. Odd, so that a pool of a power of two is
    // walked without repeating a place.
    let stride = start >> 16 | 1;
    for round in 0..ATTEMPTS {
        if attempt != Attempt::Taken {
            break;
        }
        candidate.place = start.wrapping_add(round.wrapping_mul(stride));
        candidate.insists = round >= ATTEMPTS - LAST_ATTEMPTS;
        attempt = tables.take_source(candidate);
    }
    match attempt {
        Attempt::Entered => Ok(Step::Open),
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
    if candidate.keeps_port {
        reverse.dst_port = key.src_port;
    } else {
        let ports = config.snat_count as u32;
        if ports == 0 {
            return Attempt::Taken;
        }
        let port = config
            .snat_first
            .wrapping_add((candidate.place % ports) as u16);
        if is_listened_on(tables, key.protocol(), port) {
            return Attempt::Taken;
        }
        reverse.dst_port = Be16::new(port);
        if candidate.addresses != 0 {
            let number = candidate.place / ports % candidate.addresses as u32;
            let Some(address) = tables.source(number) else {
                return Attempt::Taken;
            };
            reverse.dst = address;
            flow.address_delta = address_delta(reverse, key);
        }
    }
    flow.port_delta = port_delta(reverse, key);
    let is_free = |flow: &Flow<A>| {
        // In this order: another CPU may write a later time meanwhile.
        let seen = flow.last_seen.get();
        let idle = tables.now().wrapping_sub(seen);
        // A second, because the backend may still be closing what the node saw closed.
        let is_over = flow_state::is_closed(flow.state.get()) && idle >= config.hz;
        is_over | belongs_to(flow, key)
    };
    if tables.recalls() {
        tables.recall(reverse);
    }
    // A UDP flow without a place of its own lasts, if its backend speaks.
    let is_unproven = |flow: &Flow<A>| {
        let since = match key.protocol() {
            protocol::UDP => flow.last_seen.get(),
            _ => flow.created,
        };
        // Behind that, which another CPU may write: never earlier.
        tables.now().wrapping_sub(since) >= config.hz
    };
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
            Some(older) if candidate.insists && is_unproven(older) => {
                *other = older.opposite(key.protocol());
                let half = tables.handshake(other);
                if half.is_some_and(|half| belongs_to(half, reverse)) {
                    tables.remove_handshake(other);
                }
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
    let half = tables.flow(other);
    if half.is_some_and(|half| belongs_to(half, reverse)) {
        tables.remove_flow(other);
    }
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

/// Whether a service listens on the port, whose answers would be taken for a connection's.
#[inline(always)]
fn is_listened_on<T: Tables>(tables: &T, protocol: u8, port: u16) -> bool {
    let kind = if protocol == protocol::UDP {
        PortKind::ServiceUdp
    } else {
        PortKind::ServiceTcp
    };
    let (index, bit) = port_bit(kind, port);
    tables.port_word(index) & bit != 0
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
pub(super) fn differ<A: Address>(a: A, b: A) -> u32 {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_words(), b.to_words());
    (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3)
}
