//! The first packet of a connection.

use super::allocate::{self, Drawn};
use super::{Family, FamilyTables, Frame, InsertError, Milestone, Step, Verdict, translate};
use crate::abi::{Drop, FlowKey, flow_state, forwarding};

/// Enters the forward direction of the connection that the packet in [`Work`](super::Work) begins with the backend
/// that [`super::admit`] left there, and sends it on. With NAT [`super::allocate`] entered the
/// reverse direction; there is none else. A flood's SYN is sent on without an entry. If another CPU
/// entered the same connection meanwhile, the packet is left to [`super::slow`] once more.
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
    let Some(drawn) = Drawn::of(tables, &packet, slot) else {
        return PASS;
    };
    let mode = match work.forwarding as u8 {
        forwarding::DSR_L2 => flow_state::L2,
        forwarding::DSR_IPIP => flow_state::TUNNEL,
        _ => 0,
    };
    if mode != 0 {
        // Nothing is translated.
        work.opposite = work.key.reversed();
    }
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
    if work.is_kept != 0 {
        match tables.insert_handshake(&work.key, flow, false) {
            Ok(()) => {}
            Err(InsertError::Full) => {
                undo(tables, &work.opposite);
                return Err(Drop::HandshakeTableFull);
            }
            // There was none a moment ago: another CPU has a packet of the same connection, and was
            // faster. This one goes where that one went.
            Err(InsertError::Exists) => {
                let is_shared = tables
                    .handshake(&work.key)
                    .is_some_and(|first| allocate::belongs_to(first, &work.opposite));
                if !is_shared {
                    undo(tables, &work.opposite);
                }
                return Ok(Step::Slow);
            }
        }
    }
    if drawn.begins() {
        tables.count_connection(slot, Milestone::Begun);
    }
    tables.count_packet(slot, false, packet.frame_length::<A, F>(frame));
    if mode == flow_state::TUNNEL {
        return Ok(translate::tunnel(work, slot, to));
    }
    translate::send(frame, &packet, &work.flow, to, &work.hop).map(Step::Done)
}
