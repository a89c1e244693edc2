//! Packets that are too big for their way.

use super::{Connection, Table, unreachable_with};
use crate::packets::build::{ACK, Packet, SYN};
use crate::packets::world::{self, NARROW_MTU, port};
use crate::packets::{Expect, Step};

/// `packet` is answered: it is too big for `mtu`.
pub(super) fn answered(packet: &Packet, mtu: usize) -> Step {
    Step::FromClient(packet.bytes(), Expect::Transmit(too_big(packet, mtu)))
}

pub(super) fn too_big(packet: &Packet, mtu: usize) -> Vec<u8> {
    let (kind, code) = if packet.src.is_ipv6() { (2, 0) } else { (3, 4) };
    unreachable_with(packet, kind, code, mtu as u32)
}

/// NAT over a way that is narrower than the packets.
pub(super) fn cases(table: &mut Table) {
    let a = table.addresses;
    let headers = if a.v6 { 60 } else { 40 };
    let mtu = NARROW_MTU as usize;
    let sized =
        |packet: Packet, length: usize| packet.with(|p| p.payload = vec![9; length - headers]);
    let plain = Connection::new(a.client(40_001), a.vip(port::NARROW), a.narrow(8080));
    let snat = Connection::new(a.client(40_001), a.vip(port::NARROW_SNAT), a.narrow(8081))
        .seen_as(a.node(world::SNAT_PORT));
    for (name, nat) in [("nat", &plain), ("snat", &snat)] {
        let mut steps = nat.opened();
        steps.push(nat.forwards(sized(nat.request(ACK), mtu)));
        steps.push(answered(&sized(nat.request(ACK), mtu + 1), mtu));
        steps.push(nat.forwards(nat.request(ACK)));
        table.add_narrow(&format!("{name}_too_big_is_answered"), steps);
    }
    table.add_narrow(
        "nat_first_packet_too_big_is_answered",
        vec![
            answered(&sized(plain.request(SYN), mtu + 1), mtu),
            plain.forwards(plain.request(SYN)),
        ],
    );
    // Replies: the backend is told, about the packet that it sent.
    for (name, service, backend, source) in [
        ("nat", port::WEB, a.backend(1, 8080), None),
        (
            "snat",
            port::SNAT,
            a.backend(2, 8443),
            Some(a.node(world::SNAT_PORT)),
        ),
    ] {
        let client = a.narrow_client(40_001);
        let mut connection = Connection::new(client, a.vip(service), backend);
        if let Some(source) = source {
            connection = connection.seen_as(source);
        }
        let back = |packet: Packet, length| sized(packet, length);
        let mut steps = connection.opened();
        steps.push(connection.returns(back(connection.reply(ACK), mtu)));
        let long = back(connection.reply(ACK), mtu + 1);
        let told = Expect::Transmit(too_big(&long, mtu));
        steps.push(Step::FromBackend(long.bytes(), told));
        steps.push(connection.returns(connection.reply(ACK)));
        table.add_narrow(&format!("{name}_reply_too_big_is_answered"), steps);
    }
    if a.v6 {
        return;
    }
    // What may be fragmented is left to the kernel, translated, with its TTL.
    let divisible = |packet: Packet| sized(packet, mtu + 1).with(|p| p.fragment = 0);
    let packet = divisible(plain.request(ACK));
    let out = packet
        .moved(packet.macs, plain.source, plain.backend)
        .with(|p| p.ttl += 1)
        .bytes();
    let mut steps = plain.opened();
    steps.push(Step::FromClient(packet.bytes(), Expect::Stack(out)));
    steps.push(plain.forwards(plain.request(ACK)));
    table.add_narrow("nat_divisible_goes_to_the_kernel", steps);
    // Not what would come from an address of the node's.
    let mut steps = snat.opened();
    steps.push(answered(&divisible(snat.request(ACK)), mtu));
    table.add_narrow("snat_divisible_is_answered", steps);
}
