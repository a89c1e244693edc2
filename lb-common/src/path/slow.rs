//! Packets of known connections that need more than the fast path: answers to a first packet,
//! ends, failures, new routes.

use super::active;
use super::allocate;
use super::parse::Packet;
use super::wire::tcp;
use super::{
    Budget, Family, FamilyTables, Frame, InsertError, Milestone, Recalled, Step, Verdict, Work,
    translate,
};
use crate::abi::{
    Address, Config, Drop, Flow, FlowKey, UDP_PLACE, backend_state, flow_state, protocol,
};

/// Which table a flow stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Established,
    Handshake,
}

/// Bits of [`flow_state`] of entries that are not a client's half of a translation.
const OTHERS: u32 = flow_state::REVERSE | flow_state::DIRECT;

/// What is to become of a packet's known flow.
enum Fate {
    Keep,
    /// Forget it and draw anew.
    Redraw,
    /// The connection ends: its backend was removed or is down.
    Gone(Drop),
}

/// Forwards a packet that [`super::fast`] left in [`Work`]. [`Step::Slow`] asks for it once more: its
/// connection moved from one table to the other meanwhile.
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
    work.mtu = 0;
    // The kernel answers "time exceeded"; tagged frames are balanced on their VLAN device.
    if (packet.ttl <= 1 && !packet.departs()) || packet.is_tagged() {
        return PASS;
    }
    let (flow, found) = match tables.flow(&work.key) {
        Some(flow) => (flow, Found::Established),
        None => match tables.handshake(&work.key) {
            Some(flow) => (flow, Found::Handshake),
            // Another CPU may have established it between the two: it enters the flows before it
            // leaves the handshakes.
            None if tables.flow(&work.key).is_some() => return Ok(Step::Slow),
            None if tables.recalls() => return Ok(Step::Recall),
            None if packet.departs() => return PASS,
            None => return Ok(Step::Admit),
        },
    };
    // A client on the node itself: its packets are for the hooks they come in by.
    if packet.departs() && flow.state.get() & flow_state::REVERSE == 0 {
        return PASS;
    }
    if packet.has_invalid_flags() {
        return Err(Drop::InvalidFlags);
    }
    work.opposite = if is_direct(flow) {
        work.key
    } else {
        flow.opposite(packet.protocol)
    };
    match fate(tables, config, &packet, &work.key, flow, found) {
        // The backend may take it for another connection, which the service must let in.
        Fate::Keep if repeats(&packet, flow) => {
            work.packet.repeat(active::is_open(flow.state.get()));
            Ok(Step::Admit)
        }
        Fate::Keep => known(frame, tables, config, work, &packet, flow, found),
        Fate::Redraw => {
            tables.forget();
            Ok(Step::Admit)
        }
        Fate::Gone(reason) => {
            // A later fragment has no numbers that a reset could answer; the first one has.
            if flow.state.get() & flow_state::REVERSE != 0 || packet.is_later_fragment() {
                return Err(reason);
            }
            tables.count_drop(reason);
            Ok(Step::Answer)
        }
    }
}

/// The flow has no other direction; what is to be done to that is then done to itself.
#[inline(always)]
fn is_direct<A>(flow: &Flow<A>) -> bool {
    flow.state.get() & flow_state::DIRECT != 0
}

#[inline(always)]
fn fate<A: Family, T: FamilyTables<A>>(
    tables: &T,
    config: &Config,
    packet: &Packet,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    found: Found,
) -> Fate {
    let state = flow.state.get();
    let reverse = state & flow_state::REVERSE != 0;
    // A new connection on an old one's tuple, a SYN again because nobody answered, or a stranger's.
    let begins = !packet.is_udp() && packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let (alive, ends, backend_state) = match tables.backend(flow.slot) {
        Some(backend) if backend.generation == flow.generation => (
            backend.state != backend_state::FREE,
            backend.ends_flows(packet.is_udp()),
            backend.state,
        ),
        _ => (false, false, backend_state::FREE),
    };
    // What is established is over when its backend said so, or cannot have it any more: whoever
    // forged the client's segments may have forged its end too. If the backend still has the
    // connection, it answers a SYN by asking the client (RFC 5961 4.2), else it begins anew. What was
    // picked up in the middle is no SYN's: the answer to one would prove it, and nobody would have to
    // have seen that.
    let (fails, over) = match found {
        Found::Established => (backend_state::DOWN, flow_state::BACKEND_ENDS),
        Found::Handshake => (
            backend_state::DRAINING,
            flow_state::ENDS | flow_state::MIDDLE,
        ),
    };
    let redraw = if packet.is_udp() {
        !alive || ends
    } else {
        let fails = backend_state >= fails && (ends || !is_crossed(config, flow, tables.now()));
        begins && (!alive || fails || state & over != 0)
    };
    match (reverse, redraw) {
        (false, true) => Fate::Redraw,
        _ if !alive => Fate::Gone(Drop::BackendRemoved),
        // What a failed backend still answers helps UDP clients that wait for it.
        _ if ends && !packet.is_udp() => Fate::Gone(Drop::BackendDown),
        // The backend's answers would be another connection's.
        _ if found == Found::Handshake && !tables.is_whole(key) => Fate::Redraw,
        _ => Fate::Keep,
    }
}

/// Whether the packet is to be let in first, though there is a connection on its tuple. One branch: each
/// would double what the verifier walks.
#[inline(always)]
fn repeats<A: Address>(packet: &Packet, flow: &Flow<A>) -> bool {
    let state = flow.state.get();
    let is_clients = !(state >> flow_state::REVERSE.trailing_zeros());
    let is_established = state >> flow_state::ESTABLISHED.trailing_zeros();
    packet.asks_in() & is_clients & is_established != 0
}

/// Whether a SYN that comes now and the answer to the one before may have met on the way: the client is
/// about to go on with that answer, and another backend's would be of another connection. Who sends a
/// SYN again waits for a second (RFC 6298 2.1), as the kernel does that asks for a neighbour, with a SYN
/// in hand: they come together often. One branch, as in [`repeats`].
#[inline(always)]
fn is_crossed<A: Address>(config: &Config, flow: &Flow<A>, now: u32) -> bool {
    let state = flow.state.get();
    let is_handshake = !(state >> flow_state::ESTABLISHED.trailing_zeros());
    let is_answered = state >> flow_state::ANSWERED.trailing_zeros();
    let elapsed = now.wrapping_sub(flow.last_seen.get());
    let is_recent = (u64::from(elapsed).wrapping_sub(u64::from(config.hz / 2)) >> 63) as u32;
    is_handshake & is_answered & is_recent & 1 != 0
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
) -> Result<Step, Drop> {
    let reverse = flow.state.get() & flow_state::REVERSE != 0;
    flow.last_seen.set(tables.now());
    tables.count_packet(flow.slot, reverse, packet.frame_length::<A, F>(frame));
    let mut to = translate::way(
        frame,
        tables,
        config,
        &work.key,
        flow,
        packet.departs(),
        (&mut work.query, &mut work.hop),
    )?;
    if packet.has(tcp::FIN | tcp::RST) || flow_state::is_closing(flow.state.get()) {
        note_end(tables, &work.opposite, packet, flow, found, reverse);
    }
    if translate::is_too_big(frame, &work.key, packet, flow, &mut to, &work.hop) {
        return translate::refuse(tables, work);
    }
    let (slot, mode) = (flow.slot, flow.state.get() & flow_state::DIRECT);
    let mut proven = false;
    // A later fragment shows nothing: it has no transport header.
    if found == Found::Handshake && !packet.is_later_fragment() {
        proven = is_proven(frame, tables, config, work, packet, flow)?
            && tables.has_place(packet.protocol);
        if proven && let Err(error) = establish(tables, work, flow) {
            // Without a place of its own it goes on where others may evict it.
            proven = false;
            if error == InsertError::Full && !packet.is_udp() {
                if let Some(last) = tables.last_full(A::IS_V6) {
                    // Never 0, and never later than now: that would be a long time ago.
                    last.set(tables.now().wrapping_sub(1) | 1);
                }
                if reverse {
                    return Err(Drop::FlowTableFull);
                }
                tables.count_drop(Drop::FlowTableFull);
                return Ok(Step::Answer);
            }
        }
    }
    if mode == flow_state::TUNNEL {
        let step = translate::tunnel(work, slot, to);
        if proven {
            leave_handshakes(tables, work, flow);
        }
        return Ok(step);
    }
    let verdict = translate::send(frame, packet, flow, to, &work.hop)?;
    if proven {
        leave_handshakes(tables, work, flow);
    }
    Ok(Step::Done(verdict))
}

/// The connection of this handshake is established, and the handshake no longer needed. Not before
/// the packet is sent: what is removed may be another connection's at once. Of CPUs that establish it
/// at the same time the one that removes the entry counts it.
#[inline(always)]
fn leave_handshakes<A: Address, T: FamilyTables<A>>(tables: &T, work: &Work<A>, flow: &Flow<A>) {
    let (slot, generation, state) = (flow.slot, flow.generation, flow.state.get());
    if tables.remove_handshake(&work.key) {
        let established = state | flow_state::ESTABLISHED;
        tables.count_active(slot, generation, state, established);
    }
    tables.remove_handshake(&work.opposite);
}

/// Whether this packet of a handshake shows that the client is where it says to be: then, and only
/// then, the connection may fill a place that nobody else can take. Notes the backend's answer.
#[inline(always)]
fn is_proven<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    config: &Config,
    work: &mut Work<A>,
    packet: &Packet,
    flow: &Flow<A>,
) -> Result<bool, Drop> {
    let state = flow.state.get();
    if is_direct(flow) {
        // The backend's answer does not come by here: the client's next packet must do. A lone SYN
        // or datagram, whose source may be forged, stays where others like it evict it.
        return Ok(!packet.has(tcp::SYN | tcp::RST) && !packet.is_later_fragment());
    }
    let answered = state & flow_state::ANSWERED != 0;
    if packet.has(tcp::RST) {
        // What was picked up in the middle was not counted as begun either.
        const KNOWN: u32 = flow_state::REVERSE | flow_state::ANSWERED | flow_state::MIDDLE;
        if state & KNOWN == flow_state::REVERSE {
            tables.count_connection(flow.slot, Milestone::Refused);
        }
        return Ok(false);
    }
    if state & flow_state::REVERSE == 0 {
        if packet.is_udp() {
            return Ok(answered);
        }
        // Whoever forged the client's address saw nothing of the backend's number. The client may
        // acknowledge data as well that followed the answer at once (RFC 7413).
        const AHEAD: u32 = 1 << 16;
        let number = packet.acknowledgement(frame).ok_or(Drop::FrameAccess)?;
        let proves = packet.has(tcp::ACK) && !packet.has(tcp::SYN);
        return Ok(answered && proves && number.wrapping_sub(flow.expected.get()) < AHEAD);
    }
    if !answered {
        tables.count_connection(flow.slot, Milestone::Established);
    }
    // Again for every attempt of the backend: a client may begin anew with its old port.
    if !answered || packet.has(tcp::SYN) {
        let expected = match packet.is_udp() {
            true => 0,
            false => packet
                .sequence(frame)
                .ok_or(Drop::FrameAccess)?
                .wrapping_add(1),
        };
        flow.expected.set(expected);
        flow.state.set(state | flow_state::ANSWERED);
        match tables.handshake(&work.opposite) {
            Some(forward) if allocate::belongs_to(forward, &work.key) => {
                forward.expected.set(expected);
                forward.last_seen.set(tables.now());
                let answered = forward.state.get() | flow_state::ANSWERED;
                forward.state.set(answered);
            }
            // Another attempt that was answered before: the client goes on with that one.
            Some(forward) if forward.state.get() & flow_state::ANSWERED != 0 => {}
            // Evicted meanwhile, or replaced by an attempt that is late: the client's next packet
            // must go where its answer comes from.
            _ => restore(tables, work, flow),
        }
    }
    // A backend resets connections that it does not know; and it does not go on for long sending to
    // a client that never spoke again.
    let lasts = packet.is_udp() && tables.now().wrapping_sub(flow.created) >= config.hz;
    Ok(state & flow_state::MIDDLE != 0 || lasts)
}

/// Whether the proven connection in [`Work`] may fill such a place. Not one whose other direction is
/// another's by now, to which this one is late. Nor by a SYN: what was picked up in the middle, and the
/// handshake that the backend answers by it, may both have been forged.
///
/// UDP proves little: two datagrams of a forged source are enough. So it has a share of the tables, and
/// cannot take TCP's. The daemon divides what is left of the share among the CPUs whenever it has
/// counted: where one has more than its part of the flows, or many come at once, some find nothing. They
/// go on where others may evict them, and ask again with their next packet. Behind
/// [`FamilyTables::has_place`], as [`forget`].
#[inline(always)]
pub fn has_place<A: Address, T: FamilyTables<A>>(tables: &T, protocol: u8) -> bool {
    let Some(Work {
        key,
        opposite,
        packet,
        ..
    }) = tables.work()
    else {
        return false;
    };
    if packet.has(tcp::SYN) {
        return false;
    }
    // With direct return that is its own.
    let is_other =
        allocate::differ(opposite.src, key.src) | (opposite.src_port.0 ^ key.src_port.0) as u32;
    let is_late = |half: &Flow<A>| is_other != 0 && !allocate::belongs_to(half, key);
    if tables.flow(opposite).is_some() || tables.handshake(opposite).is_some_and(is_late) {
        return false;
    }
    if protocol != protocol::UDP {
        return true;
    }
    let given = tables.config().map_or(0, |config| config.udp_places);
    tables.take(Budget::UdpPlaces, given, given / UDP_PLACE)
}

/// Enters the forward direction of a handshake whose reverse one is `reverse`.
#[inline(always)]
fn restore<A: Family, T: FamilyTables<A>>(tables: &T, work: &mut Work<A>, reverse: &Flow<A>) {
    let Work {
        key,
        opposite,
        flow,
        ..
    } = work;
    // An established one of that tuple is another attempt's, and stays.
    if tables.flow(opposite).is_some() {
        return;
    }
    flow.clone_from(reverse);
    mirror(flow, key);
    flow.next_hop.set(Default::default());
    // Without room the client's next packet is drawn anew.
    let _ = tables.insert_handshake(opposite, flow, true);
}

/// Marks both directions with the end that this packet brings, and takes back the mark of a reset
/// that is followed by more: it was forged, or too old to count. A SYN of the backend's takes all
/// marks back, for it has begun another connection on the tuple; with direct return the client's has
/// to do. Who waits for the connection's source to have rested looks at one direction only.
#[inline(always)]
fn note_end<A: Family, T: FamilyTables<A>>(
    tables: &T,
    opposite: &FlowKey<A>,
    packet: &Packet,
    flow: &Flow<A>,
    found: Found,
    reverse: bool,
) {
    const RESETS: u32 = flow_state::RESET | flow_state::BACKEND_RESET;
    let mut bits = 0;
    if packet.has(tcp::RST) {
        bits |= match reverse {
            true => RESETS,
            false => flow_state::RESET,
        };
    }
    if packet.has(tcp::FIN) {
        bits |= if reverse {
            flow_state::BACKEND_FIN
        } else {
            flow_state::CLIENT_FIN
        };
    }
    let before = flow.state.get();
    let begins = packet.has(tcp::SYN) && found == Found::Established && before & OTHERS != 0;
    let over = RESETS | (begins as u32 * flow_state::ENDS);
    let after = before & !over | bits;
    flow.state.set(after);
    tables.count_active(flow.slot, flow.generation, before, after);
    let other = match found {
        Found::Established => tables.flow(opposite),
        Found::Handshake => tables.handshake(opposite),
    };
    if let Some(other) = other {
        other.state.set(other.state.get() & !over | bits);
        other.last_seen.set(tables.now());
    }
}

/// Enters both directions, or the only one, where no stranger's packet can evict them.
///
/// # Errors
/// Nothing is entered: there is no room, or another CPU entered the connection meanwhile, or another
/// connection has the other direction's tuple, to which this handshake is late.
#[inline(always)]
fn establish<A: Family, T: FamilyTables<A>>(
    tables: &T,
    work: &mut Work<A>,
    handshake: &Flow<A>,
) -> Result<(), InsertError> {
    let Work {
        key,
        opposite,
        flow,
        ..
    } = work;
    flow.clone_from(handshake);
    flow.state.set(flow.state.get() | flow_state::ESTABLISHED);
    tables.insert_flow(key, flow)?;
    if is_direct(flow) {
        tables.count_connection(flow.slot, Milestone::Established);
        return Ok(());
    }
    mirror(flow, key);
    flow.next_hop.set(match tables.handshake(opposite) {
        Some(entry) => entry.next_hop.get(),
        None => Default::default(),
    });
    let mirrored = tables.insert_flow(opposite, flow);
    if mirrored.is_err() {
        tables.remove_flow(key);
    }
    mirrored
}

/// Turns the entry of `key` into that of the other direction, which is the same seen in a mirror.
#[inline(always)]
fn mirror<A: Address>(flow: &mut Flow<A>, key: &FlowKey<A>) {
    flow.src = key.dst;
    flow.src_port = key.dst_port;
    flow.dst = key.src;
    flow.dst_port = key.src_port;
    flow.address_delta = !flow.address_delta;
    flow.port_delta = !flow.port_delta;
    flow.state.set(flow.state.get() ^ flow_state::REVERSE);
}

/// Removes the connection in [`Work`]. Under the other direction's tuple another one may stand. Behind
/// [`FamilyTables::forget`], which keeps it out of what the verifier walks in [`slow`].
#[inline(always)]
pub fn forget<A: Address, T: FamilyTables<A>>(tables: &T) {
    let Some(Work { key, opposite, .. }) = tables.work() else {
        return;
    };
    let is_pair =
        |other: Option<&Flow<A>>| other.is_some_and(|other| allocate::belongs_to(other, key));
    if let Some(flow) = tables.flow(key) {
        active::forget(tables, flow);
        if is_pair(tables.flow(opposite)) {
            tables.remove_flow(opposite);
        }
        tables.remove_flow(key);
    } else {
        if is_pair(tables.handshake(opposite)) {
            tables.remove_handshake(opposite);
        }
        tables.remove_handshake(key);
    }
}

/// Whether the handshake of [`Recalled::key`], if it is a client's, has the tuple by which its backend
/// answers. The entry of that tuple is made again if it was evicted: the two are not used alike.
/// Behind [`FamilyTables::is_whole`], as [`forget`].
#[inline(always)]
pub fn is_whole<A: Address, T: FamilyTables<A>>(tables: &T) -> bool {
    let Some(Recalled {
        key,
        opposite,
        flow,
    }) = tables.recalled()
    else {
        return true;
    };
    let Some(handshake) = tables.handshake(key) else {
        return true;
    };
    if handshake.state.get() & OTHERS != 0 {
        return true;
    }
    *opposite = handshake.opposite(key.protocol());
    let half = tables.handshake(opposite);
    // Behind that: what is established enters the flows before it leaves the handshakes.
    if let Some(other) = tables.flow(opposite).or(half) {
        return allocate::belongs_to(other, key);
    }
    flow.clone_from(handshake);
    mirror(flow, key);
    flow.next_hop.set(Default::default());
    match tables.insert_handshake(opposite, flow, false) {
        // Without room it stays as it is.
        Ok(()) | Err(InsertError::Full) => true,
        Err(InsertError::Exists) => tables
            .handshake(opposite)
            .is_some_and(|other| allocate::belongs_to(other, key)),
    }
}
