//! The first packet of a connection.

use super::allocate::{self, Drawn};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Milestone, Step, Verdict, translate};
use crate::abi::{Drop, FlowKey, flow_state, forwarding};

/// Enters both directions of the connection that the packet in [`Work`] begins with the backend
/// that [`super::admit`] left there, and sends it on.
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
    let (packet, slot) = (work.packet, work.slot);
    let Some(backend) = tables.backend(slot) else {
        return PASS;
    };
    // Not in `admit`, which answers: a host that does not listen resets these, one that does
    // ignores them.
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
    let mode = match work.forwarding as u8 {
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
