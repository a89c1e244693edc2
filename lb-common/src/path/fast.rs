//! The established packet: one hash lookup, no call that is not needed.

use super::parse::{self, Packet};
use super::translate::{self, To, Way};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Step, Verdict};
use crate::abi::{Drop, Flow, FlowKey, NextHop, backend_state, flow_state, protocol};

/// Forwards a packet of a known flow whose backend is alive and whose next hop is current.
/// Turns away what no service wants. Everything else is [`Step::Slow`], untouched, and stands in
/// [`Work`](super::Work).
#[inline(always)]
pub fn fast<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    network: usize,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let Some(header) = A::read(frame, network) else {
        return PASS;
    };
    if header.protocol != protocol::TCP && header.protocol != protocol::UDP {
        return Ok(match A::is_extension(header.protocol) {
            true => Step::Odd,
            false => Step::Done(Verdict::Pass),
        });
    }
    if header.fragment != 0 {
        return Ok(Step::Odd);
    }
    let Some((key, packet)) = parse::packet::<A, F, T>(frame, tables, network, &header) else {
        return PASS;
    };
    let Some((flow, hop)) = current::<A, T>(tables, &key, &packet) else {
        let Some(work) = tables.work() else {
            return PASS;
        };
        work.key = key;
        work.packet = packet;
        return Ok(Step::Slow);
    };
    let Some(config) = tables.config() else {
        return PASS;
    };
    let now = tables.now();
    // Aging needs no more than seconds, and a clean cache line costs less than a dirty one.
    if now.wrapping_sub(flow.last_seen.get()) >= config.hz {
        flow.last_seen.set(now);
    }
    let reverse = flow.state.get() & flow_state::REVERSE != 0;
    tables.count_packet(flow.slot, reverse, packet.frame_length::<A, F>(frame));
    translate::send(
        frame,
        &packet,
        flow,
        &Way {
            to: To::Neighbour,
            hop,
        },
    )
    .map(Step::Done)
}

/// The flow of a packet that needs nothing but translation, and its next hop.
#[inline(always)]
fn current<'t, A: Family, T: FamilyTables<A>>(
    tables: &'t T,
    key: &FlowKey<A>,
    packet: &Packet,
) -> Option<(&'t Flow<A>, NextHop)> {
    // The end of a connection, and its beginning, change state. The kernel answers "time
    // exceeded".
    if packet.has(tcp::SYN | tcp::FIN | tcp::RST) || packet.ttl <= 1 || packet.is_tagged() {
        return None;
    }
    let flow = tables.flow(key)?;
    let backend = tables.backend(flow.slot)?;
    let hop = flow.next_hop.get();
    let unavailable = packet.is_udp() && backend.state == backend_state::DOWN;
    let is_current = backend.generation == flow.generation
        && !unavailable
        && hop.epoch == tables.config()?.epoch;
    is_current.then_some((flow, hop))
}
