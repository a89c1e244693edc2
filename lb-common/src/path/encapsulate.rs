//! Sends a packet to its backend inside an IP header of the node's (RFC 2003, RFC 2473).

use super::family::Fresh;
use super::translate::{self, To};
use super::wire::{Ethernet, Ipv4, Ipv6, Macs};
use super::{Covered, Family, FamilyTables, Frame, Verdict, Work};
use crate::abi::{Address, Backend, Drop, FlowKey, V4, V6, backend_state};
use crate::hash;

/// Largest packet that an IP header can tell of.
const MAX_LENGTH: usize = 0xffff;

/// Bytes that the tunnel to `backend` adds to a packet.
#[inline(always)]
pub(super) const fn overhead(backend: &Backend) -> u32 {
    if is_v6(backend) {
        size_of::<Ipv6>() as u32
    } else {
        size_of::<Ipv4>() as u32
    }
}

#[inline(always)]
pub(super) const fn is_v6(backend: &Backend) -> bool {
    backend.family == 6
}

/// Makes `source`, the tunnel's, the address that the packets of flow `key` come from in it:
/// another one for each flow, as far as [`Backend::spread`] allows, so that the backend's network
/// card, which sees the outer header only, spreads flows over its queues.
#[inline(always)]
pub(super) fn spread<A: Address>(backend: &Backend, key: &FlowKey<A>, source: &mut [u32; 4]) {
    let bits = label(key) & backend.spread;
    if is_v6(backend) {
        source[3] |= bits;
    } else {
        source[0] |= bits;
    }
}

/// What a flow's packets have in common in their outer headers. Not the bits by which the backend
/// was drawn: those are alike for all flows of a backend.
#[inline(always)]
fn label<A: Address>(key: &FlowKey<A>) -> u32 {
    (hash::five_tuple(key) >> 32) as u32
}

/// Puts the packet in [`Work`], whose backend and way stand there too, into a tunnel and says how
/// it leaves.
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn encapsulate<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Verdict, Drop> {
    let Some(work) = tables.work() else {
        return Ok(Verdict::Pass);
    };
    let backend = tables.backend(work.slot).ok_or(Drop::BackendRemoved)?;
    if backend.state == backend_state::FREE {
        return Err(Drop::BackendRemoved);
    }
    if is_v6(backend) {
        return wrap::<A, V6, F>(frame, work, backend);
    }
    if A::IS_V6 {
        return Err(Drop::Unroutable);
    }
    wrap::<A, V4, F>(frame, work, backend)
}

/// `A` is the packet's family, `O` the outer header's.
#[inline(always)]
fn wrap<A: Family, O: Family, F: Frame>(
    frame: &mut F,
    work: &mut Work<A>,
    backend: &Backend,
) -> Result<Verdict, Drop> {
    /// The path leaves tagged frames alone.
    const NETWORK: usize = size_of::<Ethernet>();
    let packet = work.packet;
    let to = To::from_number(work.to);
    let payload = packet.total_length::<A>() as usize;
    if payload + O::HEADER > MAX_LENGTH {
        return Err(Drop::TooBig);
    }
    let source = &mut work.query.src;
    *source = backend.source;
    spread(backend, &work.key, source);
    let outer = Fresh {
        src: O::from_words(source),
        dst: backend.address::<O>(),
        protocol: A::INNER,
        class: A::class(frame, NETWORK).ok_or(Drop::FrameAccess)?,
        // For routers that spread by it (RFC 6438).
        label: label(&work.key),
        payload,
    };
    let written = put::<A, O, F>(frame, NETWORK, &outer, work, to);
    written.ok_or(Drop::FrameAccess)?;
    Ok(translate::leave(frame, to, &work.hop))
}

#[inline(always)]
fn put<A: Family, O: Family, F: Frame>(
    frame: &mut F,
    network: usize,
    outer: &Fresh<O>,
    work: &Work<A>,
    to: To,
) -> Option<()> {
    let packet = work.packet;
    // The node forwards the packet, tunnel or not (RFC 2003 section 3.1).
    A::age(frame, network, packet.ttl, packet.header_checksum)?;
    if to == To::Neighbour {
        frame.wrap(O::HEADER, O::IS_V6)?;
        frame.store(0, &work.hop.macs, Covered::Neutral)?;
    } else {
        // The kernel replaces the MACs, and takes no frame that is not to its device.
        let macs = frame.load::<Macs>(0)?;
        frame.wrap(O::HEADER, O::IS_V6)?;
        frame.store(0, &macs, Covered::Neutral)?;
    }
    frame.store(size_of::<Macs>(), &O::ETHERTYPE, Covered::Neutral)?;
    O::write(frame, network, outer)
}
