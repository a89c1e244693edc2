//! Sends a packet on by its flow's translation.

use super::family::Rewrite;
use super::parse::Packet;
use super::{
    Covered, Delta, Family, FamilyTables, Frame, Handover, Query, Route, Step, Verdict, Work,
    encapsulate,
};
use crate::abi::{Be16, Config, Drop, Flow, FlowKey, NextHop, flow_state};

/// Least MTU that an error tells of: every link carries as much (RFC 791 section 3.2).
const MIN_MTU: u32 = 68;

/// How a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum To {
    Neighbour = 0,
    /// The next hop has no MACs yet.
    Unresolved = 1,
    /// The next hop is zeroed.
    Stack = 2,
}

impl To {
    /// The way back from `self as u32`.
    #[inline(always)]
    pub(super) const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Neighbour,
            1 => Self::Unresolved,
            _ => Self::Stack,
        }
    }

    /// The path decrements the TTL; the kernel's stack does so itself.
    #[inline(always)]
    pub(super) fn forwards(self) -> bool {
        self != Self::Stack
    }
}

/// Finds how the packets of `key` leave and leaves their next hop in `hop`: a departing one as the
/// stack has chosen; else by the flow's cached next hop if it is current; else as the routing table
/// says, which is cached where it is good for more than one packet. `query` and `hop` are memory off
/// the stack.
#[inline(always)]
pub(super) fn way<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    config: &Config,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    departs: bool,
    (query, hop): (&mut Query, &mut NextHop),
) -> Result<To, Drop> {
    if departs {
        *hop = NextHop::default();
        return Ok(To::Stack);
    }
    *hop = flow.next_hop.get();
    // Before the question: an answer from before a change must not count as one from after it.
    let epoch = config.epoch;
    if hop.epoch == epoch {
        return Ok(To::Neighbour);
    }
    let mode = flow.state.get() & flow_state::DIRECT;
    let overhead = ask(tables, key, flow, mode, query)?;
    let to = match tables.route(frame.ingress(), query, hop) {
        Route::Neighbour => To::Neighbour,
        Route::Unresolved => To::Unresolved,
        Route::Stack => To::Stack,
        Route::Refused => return Err(Drop::Unroutable),
    };
    // A router would send the packet, which is to the service's address, straight back; so would
    // this node's stack.
    if mode == flow_state::L2 && (to == To::Stack || hop.is_gateway()) {
        return Err(Drop::NotNeighbour);
    }
    hop.narrow(overhead);
    if to == To::Neighbour {
        hop.epoch = epoch;
        flow.next_hop.set(*hop);
    }
    Ok(to)
}

/// Asks where the flow's packets are to go, and gives the bytes they grow by.
#[inline(always)]
fn ask<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    mode: u32,
    query: &mut Query,
) -> Result<u32, Drop> {
    query.v6 = A::IS_V6 as u32;
    query.protocol = key.protocol;
    query.ports = [flow.src_port, flow.dst_port];
    query.src = flow.src.to_words();
    query.dst = flow.dst.to_words();
    if mode == 0 {
        return Ok(0);
    }
    let backend = tables.backend(flow.slot).ok_or(Drop::BackendRemoved)?;
    query.dst = backend.address;
    query.v6 = encapsulate::is_v6(backend) as u32;
    if mode == flow_state::L2 {
        return Ok(0);
    }
    // IPv6 in IPv4 is not offered.
    if A::IS_V6 && !encapsulate::is_v6(backend) {
        return Err(Drop::Unroutable);
    }
    query.src = backend.source;
    encapsulate::spread(backend, key, &mut query.src);
    query.protocol = A::INNER as u32;
    query.ports = [Be16(0); 2];
    Ok(encapsulate::overhead(backend))
}

/// Whether a packet exceeds `mtu`, or each of the packets that its device will make of it.
#[inline(always)]
pub(super) fn exceeds<A: Family, F: Frame>(frame: &F, packet: &Packet, mtu: u32) -> bool {
    if packet.total_length::<A>() <= mtu {
        return false;
    }
    match frame.segment() {
        0 => true,
        segment => packet
            .headers(frame)
            .is_none_or(|headers| headers + segment > mtu),
    }
}

/// Whether the packet in [`Work`] is too big for its way, which its sender is then to be told.
///
/// What may be fragmented goes to the kernel, which does that. It takes no packet from an address
/// of its own, though, nor one to a service's address: their senders are told, which heed it
/// whether they allowed fragments or not.
#[inline(always)]
pub(super) fn is_too_big<A: Family, F: Frame>(
    frame: &F,
    key: &FlowKey<A>,
    packet: &Packet,
    flow: &Flow<A>,
    to: &mut To,
    hop: &NextHop,
) -> bool {
    if *to == To::Stack || !exceeds::<A, F>(frame, packet, hop.mtu()) {
        return false;
    }
    let is_translated = flow.state.get() & flow_state::DIRECT == 0 && flow.src == key.src;
    if is_translated && A::is_divisible(frame, packet.network()) == Some(true) {
        *to = To::Stack;
        return false;
    }
    true
}

/// The packet goes nowhere because it is too big: has its sender told. Of a datagram's fragments
/// only the first is answered (RFC 1122 section 3.2.2).
#[inline(always)]
pub(super) fn refuse<A: Family, T: FamilyTables<A>>(
    tables: &T,
    work: &mut Work<A>,
) -> Result<Step, Drop> {
    if work.packet.is_later_fragment() {
        return Err(Drop::TooBig);
    }
    tables.count_drop(Drop::TooBig);
    work.mtu = work.hop.mtu().max(MIN_MTU);
    Ok(Step::Answer)
}

/// Leaves the packet in [`Work`], with its next hop, to [`super::encapsulate`].
#[inline(always)]
pub(super) fn tunnel<A: Family>(work: &mut Work<A>, slot: u32, to: To) -> Step {
    work.slot = slot;
    work.to = to as u32;
    Step::Encapsulate
}

/// Rewrites the packet and says how it leaves.
#[inline(always)]
pub(super) fn send<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    flow: &Flow<A>,
    to: To,
    hop: &NextHop,
) -> Result<Verdict, Drop> {
    if flow.state.get() & flow_state::L2 != 0 {
        A::age(frame, packet.network(), packet.ttl, packet.header_checksum)
    } else {
        rewrite(frame, packet, flow, to.forwards())
    }
    .and_then(|()| link(frame, to, hop))
    .ok_or(Drop::FrameAccess)?;
    Ok(leave(frame, to, hop))
}

/// Writes the link's header of a packet that leaves by `hop`.
#[inline(always)]
pub(super) fn link<F: Frame>(frame: &mut F, to: To, hop: &NextHop) -> Option<()> {
    match to {
        To::Neighbour => frame.store(0, &hop.macs, Covered::Neutral),
        To::Unresolved | To::Stack => Some(()),
    }
}

/// How a packet leaves that is as it is to be.
#[inline(always)]
pub(super) fn leave<F: Frame>(frame: &F, to: To, hop: &NextHop) -> Verdict {
    let ifindex = hop.ifindex;
    let how = match to {
        To::Stack => Handover::Stack,
        To::Unresolved => Handover::Resolve,
        To::Neighbour if ifindex == frame.ingress() => return Verdict::Transmit,
        To::Neighbour if hop.is_direct() => return Verdict::Redirect { ifindex },
        To::Neighbour => Handover::Output,
    };
    Verdict::Kernel { how, ifindex }
}

/// New addresses, ports and checksums; the kernel's stack decrements the TTL itself.
#[inline(always)]
fn rewrite<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    flow: &Flow<A>,
    forwarded: bool,
) -> Option<()> {
    let addresses = Delta(flow.address_delta);
    A::rewrite(
        frame,
        packet.network(),
        &Rewrite {
            src: flow.src,
            dst: flow.dst,
            protocol: packet.next_header,
            payload: packet.payload as usize,
            ttl: packet.ttl,
            forwarded,
            checksum: packet.header_checksum,
            delta: addresses,
        },
    )?;
    if packet.is_later_fragment() {
        return Some(());
    }
    frame.store(
        packet.transport(),
        &[flow.src_port, flow.dst_port],
        Covered::Neutral,
    )?;
    frame.repair_transport(
        packet.checksum_offset(),
        addresses,
        Delta(flow.port_delta),
        packet.is_udp(),
    )
}
