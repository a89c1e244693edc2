//! The first packet of a connection.

use super::allocate::{self, Drawn};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Milestone, Step, Verdict, select, translate};
use crate::abi::{Drop, FlowKey, ServiceKey, flow_state, forwarding, no_backend};

/// Draws a backend for the packet in [`Work`], which is of no known flow, enters both directions and sends it on.
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn open<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let packet = work.packet;
    // Only the first fragment opens anything.
    if packet.is_later_fragment() {
        return Err(Drop::FragmentUnknown);
    }
    let listen = ServiceKey::new(work.key.dst, work.key.dst_port, packet.protocol);
    let Some(service) = tables.service(&listen) else {
        return PASS;
    };
    if packet.has(tcp::RST) {
        return Err(Drop::ResetWithoutFlow);
    }
    // Refused here already, while the client has nothing to lose.
    let was_full = tables.last_full().map_or(0, |last| last.get());
    if was_full != 0 && tables.now().wrapping_sub(was_full) < config.hz {
        tables.count_drop(Drop::FlowTableFull);
        return Ok(Step::Answer);
    }
    let place = select::place(tables, service, &work.key);
    let drawn = tables.draw(service.table, service.id, place);
    let Some((slot, backend)) = drawn.and_then(|slot| Some((slot, tables.backend(slot)?))) else {
        if service.no_backend == no_backend::DROP {
            return Err(Drop::NoBackend);
        }
        tables.count_drop(Drop::NoBackend);
        return Ok(Step::Answer);
    };
    // Behind the answer: a host that does not listen resets these, one that does ignores them.
    if packet.has_invalid_flags() {
        return Err(Drop::InvalidFlags);
    }
    // What is picked up in the middle (another node's connection, a straggler) did not begin here.
    let begins = packet.is_udp() || packet.has(tcp::SYN);
    let begun = if begins { 0 } else { flow_state::MIDDLE };
    let drawn = Drawn {
        slot,
        backend,
        now: tables.now(),
        state: begun,
    };
    let mode = match service.forwarding {
        forwarding::DSR_L2 => flow_state::L2,
        forwarding::DSR_IPIP => flow_state::TUNNEL,
        _ => 0,
    };
    if mode == 0 {
        allocate::reverse(tables, config, &drawn)?;
    } else {
        // Nothing is translated.
        work.opposite = work.key.reversed();
    }
    let Some(work) = tables.work() else {
        return PASS;
    };
    allocate::fill(&mut work.flow, &work.key, &work.opposite, &drawn, mode);
    let undo = |tables: &T, reverse: &FlowKey<A>| {
        if mode == 0 {
            tables.remove_handshake(reverse);
        }
    };
    let (flow, room) = (&work.flow, (&mut work.query, &mut work.hop));
    let mut to = match translate::way(frame, tables, config, &work.key, flow, false, room) {
        Ok(to) => to,
        Err(reason) => {
            undo(tables, &work.opposite);
            return Err(reason);
        }
    };
    if translate::is_too_big(frame, &work.key, &packet, flow, &mut to, &work.hop) {
        undo(tables, &work.opposite);
        return translate::refuse(tables, work);
    }
    if tables.insert_handshake(&work.key, flow, true).is_err() {
        undo(tables, &work.opposite);
        return Err(Drop::HandshakeTableFull);
    }
    if begins {
        tables.count_connection(slot, Milestone::Begun);
    }
    tables.count_packet(slot, false, packet.frame_length::<A, F>(frame));
    if mode == flow_state::TUNNEL {
        return Ok(translate::tunnel(work, slot, to));
    }
    translate::send(frame, &packet, &work.flow, to, &work.hop).map(Step::Done)
}
