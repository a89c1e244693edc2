//! Connections that no backend takes.

use super::{Connection, Table, passes, reset_of, unreachable_of};
use crate::packets::build::{ACK, FIN, PSH, Packet, RST, SYN};
use crate::packets::world::port;
use crate::packets::{Expect, Step};
use lb_common::abi::Drop;
use lb_common::path::Budget;

fn resets(packet: Packet) -> Step {
    let answer = reset_of(&packet);
    Step::FromClient(packet.bytes(), Expect::Transmit(answer))
}

fn bounces(packet: Packet) -> Step {
    let answer = unreachable_of(&packet);
    Step::FromClient(packet.bytes(), Expect::Transmit(answer))
}

pub(super) fn cases(table: &mut Table) {
    let a = table.addresses;
    let request = |port, flags| {
        Connection::new(a.client(40_001), a.vip(port), a.backend(1, 8080)).request(flags)
    };
    let question = |port| {
        Connection::new(a.client(40_001), a.vip(port), a.backend(1, 8080))
            .udp()
            .request(0)
    };
    for (name, port) in [
        ("empty", port::EMPTY_REJECT),
        ("down", port::DOWN),
        ("draining", port::DRAINING),
        ("foreign_slot", port::FOREIGN_SLOT),
        ("no_table", port::NO_TABLE),
    ] {
        table.add(
            &format!("tcp_{name}_service_resets"),
            vec![resets(request(port, SYN))],
        );
    }
    for (name, flags) in [
        ("ack", ACK),
        ("data", ACK | PSH),
        ("fin", FIN),
        ("fin_ack", FIN | ACK),
    ] {
        let packet =
            request(port::EMPTY_REJECT, flags).with(|packet| packet.payload = b"odd".to_vec());
        table.add(
            &format!("tcp_{name}_to_empty_service_resets"),
            vec![resets(packet)],
        );
    }
    let padded = request(port::EMPTY_REJECT, SYN).with(|packet| packet.trailer = vec![0; 6]);
    table.add(
        "tcp_padded_syn_to_empty_service_resets",
        vec![resets(padded)],
    );
    let early = request(port::EMPTY_REJECT, SYN).with(|p| p.payload = vec![7; 900]);
    table.add(
        "tcp_syn_with_data_to_empty_service_resets",
        vec![resets(early)],
    );
    table.add(
        "tcp_reset_to_empty_service_is_not_answered",
        vec![Step::FromClient(
            request(port::EMPTY_REJECT, RST).bytes(),
            Expect::Dropped(Drop::ResetWithoutFlow),
        )],
    );
    for (name, packet) in [
        ("tcp", request(port::EMPTY_DROP, SYN)),
        ("udp", question(port::DNS_DROP)),
    ] {
        let dropped = Step::FromClient(packet.bytes(), Expect::Dropped(Drop::NoBackend));
        table.add(
            &format!("{name}_empty_service_drops_silently"),
            vec![dropped],
        );
    }
    for (name, port) in [("empty", port::DNS_EMPTY), ("down", port::DNS_DOWN)] {
        table.add(
            &format!("udp_{name}_service_is_unreachable"),
            vec![bounces(question(port))],
        );
    }
    for length in [0, 1, 20, 600] {
        let packet = question(port::DNS_EMPTY).with(|p| p.payload = vec![0x5a; length]);
        table.add(
            &format!("udp_{length}_bytes_to_empty_service"),
            vec![bounces(packet)],
        );
    }
    if !a.v6 {
        let options = question(port::DNS_EMPTY).with(|p| p.options = vec![1; 12]);
        table.add(
            "udp_with_ip_options_to_empty_service",
            vec![bounces(options)],
        );
        let options = request(port::EMPTY_REJECT, SYN).with(|p| p.options = vec![1; 12]);
        table.add(
            "tcp_with_ip_options_to_empty_service",
            vec![resets(options)],
        );
    }
    let limited =
        |packet: Packet| Step::FromClient(packet.bytes(), Expect::Dropped(Drop::RejectLimited));
    table.add(
        "answers_are_limited",
        vec![
            Step::Budget(Budget::Answers, 0),
            limited(request(port::DOWN, SYN)),
            limited(question(port::DNS_EMPTY)),
        ],
    );
    let tagged = request(port::EMPTY_REJECT, SYN).with(|p| p.tags = vec![(0x8100, 5)]);
    table.add("tagged_frame_to_empty_service_passes", vec![passes(tagged)]);
    let hop = request(port::EMPTY_REJECT, SYN).with(|p| p.ttl = 1);
    table.add("ttl_1_to_empty_service_passes", vec![passes(hop)]);
}
