//! The first packet of a connection.

use super::allocate::{self, Drawn};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Milestone, Step, Verdict, Work, translate};
use crate::abi::{Drop, flow_state};

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
    allocate::reverse(tables, config, &drawn)?;
    let Some(Work {
        key,
        opposite: reverse,
        flow,
        ..
    }) = tables.work()
    else {
        return PASS;
    };
    allocate::fill(flow, key, reverse, &drawn, 0);
    let way = match translate::way(frame, tables, config, flow, packet.protocol, false) {
        Ok(way) => way,
        Err(reason) => {
            tables.remove_handshake(reverse);
            return Err(reason);
        }
    };
    if tables.insert_handshake(key, flow, true).is_err() {
        tables.remove_handshake(reverse);
        return Err(Drop::HandshakeTableFull);
    }
    if begins {
        tables.count_connection(slot, Milestone::Begun);
    }
    tables.count_packet(slot, false, packet.frame_length::<A, F>(frame));
    translate::send(frame, &packet, flow, &way).map(Step::Done)
}
