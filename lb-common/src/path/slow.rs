//! Packets of known connections that need more than the fast path: answers to a first packet,
//! ends, failures, new routes.

use super::parse::Packet;
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Milestone, Step, Verdict, Work, translate};
use crate::abi::{Config, Drop, Flow, backend_state, flow_state};

/// Which table a flow stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Established,
    Handshake,
}

/// What is to become of a packet's known flow.
enum Fate {
    Keep,
    /// Forget it and draw anew.
    Redraw,
    /// The backend was removed.
    Gone,
}

/// Forwards a packet that [`super::fast`] left in [`Work`].
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn slow<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let packet = work.packet;
    // The kernel answers "time exceeded"; tagged frames are balanced on their VLAN device.
    if packet.ttl <= 1 || packet.is_tagged() {
        return PASS;
    }
    let (flow, found) = match tables.flow(&work.key) {
        Some(flow) => (flow, Found::Established),
        None => match tables.handshake(&work.key) {
            Some(flow) => (flow, Found::Handshake),
            None => return Ok(Step::Open),
        },
    };
    if packet.has_invalid_flags() {
        return Err(Drop::InvalidFlags);
    }
    work.opposite = flow.opposite(packet.protocol);
    match fate(tables, &packet, flow) {
        Fate::Keep => known(frame, tables, config, work, &packet, flow, found).map(Step::Done),
        Fate::Redraw => {
            forget(tables, work, found);
            Ok(Step::Open)
        }
        Fate::Gone => {
            tables.count_drop(Drop::BackendRemoved);
            if flow.state.get() & flow_state::REVERSE == 0 {
                Ok(Step::Answer)
            } else {
                Err(Drop::BackendRemoved)
            }
        }
    }
}

#[inline(always)]
fn fate<A: Family, T: FamilyTables<A>>(tables: &T, packet: &Packet, flow: &Flow<A>) -> Fate {
    let state = flow.state.get();
    let reverse = state & flow_state::REVERSE != 0;
    // A new connection on an old one's tuple, or a SYN again because nobody answered.
    let begins = !packet.is_udp() && packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let (alive, backend_state) = match tables.backend(flow.slot) {
        Some(backend) if backend.generation == flow.generation => {
            (backend.state != backend_state::FREE, backend.state)
        }
        _ => (false, backend_state::FREE),
    };
    let redraw = if packet.is_udp() {
        !alive || backend_state == backend_state::DOWN
    } else {
        begins
            && (!alive || backend_state != backend_state::ACTIVE || flow_state::is_closing(state))
    };
    match (reverse, redraw) {
        (false, true) => Fate::Redraw,
        _ if alive => Fate::Keep,
        _ => Fate::Gone,
    }
}

/// A packet of a known flow: notes what it changes, refreshes the next hop, sends it on.
#[inline(always)]
fn known<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    work: &mut Work<A>,
    packet: &Packet,
    flow: &Flow<A>,
    found: Found,
) -> Result<Verdict, Drop> {
    let reverse = flow.state.get() & flow_state::REVERSE != 0;
    flow.last_seen.set(tables.now());
    tables.count_packet(flow.slot, reverse, packet.frame_length::<A, F>(frame));
    let way = translate::way(frame, tables, config, flow, packet.protocol)?;
    if packet.has(tcp::FIN | tcp::RST) {
        note_end(tables, &work.opposite, packet, flow, found, reverse);
    }
    let verdict = translate::send(frame, packet, flow, &way)?;
    if found == Found::Handshake && reverse {
        if packet.has(tcp::RST) {
            tables.count_connection(flow.slot, Milestone::Refused);
        } else {
            establish(tables, work, flow)?;
        }
    }
    Ok(verdict)
}

/// Marks both directions with the end that this packet brings.
#[inline(always)]
fn note_end<A: Family, T: FamilyTables<A>>(
    tables: &T,
    opposite: &crate::abi::FlowKey<A>,
    packet: &Packet,
    flow: &Flow<A>,
    found: Found,
    reverse: bool,
) {
    let mut bits = 0;
    if packet.has(tcp::RST) {
        bits |= flow_state::RESET;
    }
    if packet.has(tcp::FIN) {
        bits |= if reverse {
            flow_state::BACKEND_FIN
        } else {
            flow_state::CLIENT_FIN
        };
    }
    flow.state.set(flow.state.get() | bits);
    let other = match found {
        Found::Established => tables.flow(opposite),
        Found::Handshake => tables.handshake(opposite),
    };
    if let Some(other) = other {
        other.state.set(other.state.get() | bits);
    }
}

/// The backend answered: moves both directions where no stranger's packet can evict them.
#[inline(always)]
fn establish<A: Family, T: FamilyTables<A>>(
    tables: &T,
    work: &mut Work<A>,
    reverse: &Flow<A>,
) -> Result<(), Drop> {
    let Work {
        key,
        opposite: forward,
        flow,
        ..
    } = work;
    // A second attempt's answer, after its first half was evicted, must not take over what the
    // first attempt's answer has established.
    if let Some(established) = tables.flow(forward)
        && established.opposite(key.protocol()) != *key
    {
        return Ok(());
    }
    flow.clone_from(reverse);
    flow.state.set(flow.state.get() | flow_state::ESTABLISHED);
    tables
        .insert_flow(key, flow)
        .map_err(|_| Drop::FlowTableFull)?;
    // The forward direction is the reverse one seen in a mirror.
    flow.src = key.dst;
    flow.src_port = key.dst_port;
    flow.dst = key.src;
    flow.dst_port = key.src_port;
    flow.address_delta = !flow.address_delta;
    flow.port_delta = !flow.port_delta;
    flow.state.set(flow.state.get() & !flow_state::REVERSE);
    flow.next_hop.set(match tables.handshake(forward) {
        Some(entry) => entry.next_hop.get(),
        None => Default::default(),
    });
    if tables.insert_flow(forward, flow).is_err() {
        tables.remove_flow(key);
        return Err(Drop::FlowTableFull);
    }
    tables.count_connection(flow.slot, Milestone::Established);
    tables.remove_handshake(forward);
    tables.remove_handshake(key);
    Ok(())
}

#[inline(always)]
fn forget<A: Family, T: FamilyTables<A>>(tables: &T, work: &Work<A>, found: Found) {
    match found {
        Found::Established => {
            tables.remove_flow(&work.opposite);
            tables.remove_flow(&work.key);
        }
        Found::Handshake => {
            tables.remove_handshake(&work.opposite);
            tables.remove_handshake(&work.key);
        }
    }
}
