//! The established packet: one hash lookup, no call that is not needed.

use super::translate::{self, To, Way};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Step, Verdict, parse};
use crate::abi::{Drop, backend_state, flow_state};

/// Forwards a packet of a known flow whose backend is alive and whose next hop is current.
/// Turns away what no service wants. Everything else is [`Step::Slow`], untouched.
#[inline(always)]
pub fn fast<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    network: usize,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let Some((key, packet)) = parse::packet::<A, F, T>(frame, tables, network) else {
        return PASS;
    };
    // The end of a connection, and its beginning, change state.
    if packet.has(tcp::SYN | tcp::FIN | tcp::RST) {
        return Ok(Step::Slow);
    }
    let Some(flow) = tables.flow(&key) else {
        return Ok(Step::Slow);
    };
    let Some(backend) = tables.backend(flow.slot) else {
        return Ok(Step::Slow);
    };
    let Some(config) = tables.config() else {
        return PASS;
    };
    let hop = flow.next_hop.get();
    let unavailable = packet.is_udp() && backend.state == backend_state::DOWN;
    if backend.generation != flow.generation
        || unavailable
        || hop.epoch != config.epoch
        || packet.ttl <= 1
        || packet.is_tagged()
    {
        return Ok(Step::Slow);
    }
    let now = tables.now();
    // Aging needs no more than seconds, and a clean cache line costs less than a dirty one.
    if now.wrapping_sub(flow.last_seen.get()) >= config.hz {
        flow.last_seen.set(now);
    }
    let reverse = flow.state.get() & flow_state::REVERSE != 0;
    tables.count_packet(flow.slot, reverse, frame.length() as u64);
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
