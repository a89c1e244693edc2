//! The established packet: one hash lookup, no call that is not needed.

use super::parse::{self, Packet};
use super::translate::{self, To, Way};
use super::wire::tcp;
use super::{Family, FamilyTables, Frame, Step, Verdict, icmp};
use crate::abi::{Drop, Flow, FlowKey, NextHop, backend_state, flow_state, protocol};

/// LLVM copies this by words of eight bytes, which the verifier wants aligned on the stack.
#[repr(align(8))]
struct Aligned<T>(T);

/// Forwards a packet of a known flow whose backend is alive and whose next hop is current.
/// Turns away what no service wants. Everything else is [`Step::Slow`], untouched, and stands in
/// [`Work`](super::Work), or [`Step::Icmp`], of which only the place stands there.
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
        if A::is_extension(header.protocol) {
            return Ok(Step::Odd);
        }
        if header.fragment != 0 || !icmp::is_wanted(frame, network, &header) {
            return PASS;
        }
        let Some(work) = tables.work() else {
            return PASS;
        };
        work.network = network as u32;
        return Ok(Step::Icmp);
    }
    if header.fragment != 0 {
        return Ok(Step::Odd);
    }
    let Some((ports, packet)) = parse::packet(frame, tables, network, &header) else {
        return PASS;
    };
    let [src_port, dst_port] = ports;
    let key = FlowKey::new(header.src, src_port, header.dst, dst_port, header.protocol);
    let (Aligned(key), Aligned(packet)) = (&Aligned(key), &Aligned(packet));
    let Some((flow, hop)) = current::<A, T>(tables, key, packet) else {
        let Some(work) = tables.work() else {
            return PASS;
        };
        work.key = *key;
        work.packet = *packet;
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
        packet,
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
    let unavailable = backend.state >= backend_state::DOWN && backend.ends_flows(packet.is_udp());
    let is_current = backend.generation == flow.generation
        && flow.state.get() & flow_state::RESET == 0
        && !unavailable
        && hop.epoch == tables.config()?.epoch;
    is_current.then_some((flow, hop))
}
