//! Packets that leave the node through its own stack.

use super::{Family, FamilyTables, Frame, Step, Verdict, icmp, parse};
use crate::abi::{FlowKey, PortKind, port_bit, protocol};

/// Turns away what no backend may have sent. Answers of backends on the node itself (its own
/// processes, and pods whose packets the stack forwards) are [`Step::Slow`] and stand in
/// [`Work`](super::Work): [`slow`](super::slow) translates those whose flow it knows, and leaves
/// their way to the stack that has chosen it already. Errors of theirs are [`Step::Icmp`].
#[inline(always)]
pub fn depart<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    network: usize,
) -> Step {
    const PASS: Step = Step::Done(Verdict::Pass);
    let Some(header) = A::read(frame, network) else {
        return PASS;
    };
    if header.protocol != protocol::TCP && header.protocol != protocol::UDP {
        return icmp::depart(frame, tables, network, &header);
    }
    if header.fragment != 0 {
        return PASS;
    }
    let Some((ports, packet)) = parse::packet(frame, tables, network, &header) else {
        return PASS;
    };
    let [src_port, dst_port] = ports;
    let kind = match packet.protocol {
        protocol::UDP => PortKind::BackendUdp,
        _ => PortKind::BackendTcp,
    };
    let (index, bit) = port_bit(kind, src_port.get());
    if tables.port_word(index) & bit == 0 || packet.is_tagged() {
        return PASS;
    }
    let Some(work) = tables.work() else {
        return PASS;
    };
    work.key = FlowKey::new(header.src, src_port, header.dst, dst_port, header.protocol);
    work.packet = packet.departing();
    Step::Slow
}
