//! UDP flows.

use super::{Connection, Table, passes};
use crate::packets::build::{Packet, Transport};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::{
    abi::{Drop, backend_state},
    path::Budget,
};

fn dns(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_053), a.vip(port::DNS), a.backend(13, 5353)).udp()
}

fn answered(connection: &Connection) -> Vec<Step> {
    vec![
        connection.forwards(connection.request(0)),
        connection.returns(connection.reply(0)),
    ]
}

pub(super) fn cases(table: &mut Table) {
    let dns = dns(table);
    table.add(
        "udp_first_datagram_reaches_backend",
        vec![dns.forwards(dns.request(0))],
    );
    table.add("udp_answer_reaches_client", answered(&dns));
    let mut steps = answered(&dns);
    steps.extend(answered(&dns));
    table.add("udp_flow_goes_on", steps);
    let again = vec![dns.forwards(dns.request(0)), dns.forwards(dns.request(0))];
    table.add("udp_unanswered_flow_goes_on", again);
    lengths(table, &dns);
    checksums(table, &dns);
    backends(table, &dns);
    places(table, &dns);
    let a = table.addresses;
    let snat = Connection::new(a.client(40_053), a.vip(port::DNS_SNAT), a.backend(14, 5353))
        .udp()
        .seen_as(a.node(world::SNAT_PORT));
    let mut steps = answered(&snat);
    let second = Connection {
        client: a.client(40_054),
        ..snat.clone()
    };
    steps.push(Step::FromClient(
        second.request(0).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    steps.extend(answered(&snat));
    table.add("udp_snat_both_ways", steps);
    let listen = |udp| Step::Listen {
        local: a.node(world::SNAT_PORT),
        udp,
    };
    let refused = Step::FromClient(
        snat.request(0).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    );
    table.add(
        "udp_snat_port_of_a_socket_is_not_taken",
        vec![listen(true), refused],
    );
    let mut steps = vec![listen(false)];
    steps.extend(answered(&snat));
    table.add("udp_snat_port_beside_a_socket_on_tcp", steps);
    table.add(
        "udp_ttl_1_goes_to_kernel",
        vec![passes(dns.request(0).with(|p| p.ttl = 1))],
    );
}

fn lengths(table: &mut Table, dns: &Connection) {
    for length in [0, 1, 2, 511, 1472 - 28] {
        let packet = |packet: Packet| packet.with(|p| p.payload = vec![0xa5; length]);
        let steps = vec![
            dns.forwards(packet(dns.request(0))),
            dns.returns(packet(dns.reply(0))),
            dns.forwards(packet(dns.request(0))),
        ];
        table.add(&format!("udp_payload_of_{length}_bytes"), steps);
    }
    let length = |value| {
        dns.request(0).with(|p| {
            p.transport = Transport::Udp {
                checksum: true,
                length: Some(value),
            };
        })
    };
    table.add("udp_length_0_passes", vec![passes(length(0))]);
    table.add("udp_length_7_passes", vec![passes(length(7))]);
    table.add("udp_length_beyond_packet_passes", vec![passes(length(400))]);
}

fn checksums(table: &mut Table, dns: &Connection) {
    let none = |packet: Packet| {
        packet.with(|p| {
            p.transport = Transport::Udp {
                checksum: false,
                length: None,
            }
        })
    };
    if table.addresses.v6 {
        table.add(
            "udp_checksum_0_is_invalid",
            vec![passes(none(dns.request(0)))],
        );
    } else {
        let steps = vec![
            dns.forwards(none(dns.request(0))),
            dns.returns(none(dns.reply(0))),
            dns.forwards(none(dns.request(0))),
        ];
        table.add("udp_checksum_0_stays_0", steps);
    }
    // A payload for which the translated checksum comes out as 0, which must be sent as 0xffff.
    let field = if table.addresses.v6 {
        14 + 40 + 6
    } else {
        14 + 20 + 6
    };
    let payload = (0..=u16::MAX).find(|word| {
        let packet = dns
            .request(0)
            .with(|p| p.payload = word.to_be_bytes().to_vec());
        let out = dns.translated_request(&packet);
        out[field..field + 2] == [0xff, 0xff]
    });
    let payload = payload.map_or(Vec::new(), |word| word.to_be_bytes().to_vec());
    let packet = dns.request(0).with(|p| p.payload = payload);
    table.add("udp_checksum_never_becomes_0", vec![dns.forwards(packet)]);
}

/// UDP has a share of the table that evicts nothing; beyond it flows go on as handshakes.
fn places(table: &mut Table, dns: &Connection) {
    let give = |places| Step::Budget(Budget::UdpPlaces, places);
    let without_place = |c: &Connection| Step::Known {
        src: c.client,
        dst: c.vip,
        udp: c.udp,
    };
    let with_place = |c: &Connection| Step::Unknown {
        src: c.client,
        dst: c.vip,
        udp: c.udp,
    };
    let lasting = |c: &Connection| [answered(c), answered(c), answered(c)].concat();
    let a = table.addresses;
    let [second, third] =
        [40_061, 40_062].map(|port| Connection::new(a.client(port), dns.vip, dns.backend).udp());

    let mut steps = vec![give(0)];
    steps.extend(lasting(dns));
    steps.push(without_place(dns));
    table.add("udp_without_a_place_goes_on_both_ways", steps);

    let mut steps = vec![
        give(0),
        dns.forwards(dns.request(0)),
        dns.returns(dns.reply(0)),
        Step::Second,
        dns.returns(dns.reply(0)),
        dns.returns(dns.reply(0)),
    ];
    steps.push(without_place(dns));
    table.add("udp_without_a_place_a_backend_sends_on", steps);

    // What was taken is given anew, were it as much as before.
    let mut steps = vec![give(1)];
    for (flow, end) in [
        (dns, with_place(dns)),
        (&second, without_place(&second)),
        (dns, with_place(dns)),
    ] {
        steps.extend(lasting(flow));
        steps.push(end);
    }
    steps.push(give(1));
    steps.extend(lasting(&third));
    steps.push(with_place(&third));
    table.add("udp_takes_as_many_places_as_are_given", steps);

    let mut steps = vec![give(0)];
    steps.extend(lasting(dns));
    steps.push(give(1));
    steps.extend(answered(dns));
    steps.push(with_place(dns));
    table.add("udp_asks_for_a_place_again", steps);

    let web = Connection::new(a.client(40_063), a.vip(port::WEB), a.backend(1, 8080));
    let mut steps = vec![give(0)];
    steps.extend(web.opened());
    steps.push(with_place(&web));
    table.add("udp_tcp_needs_no_place_of_udp", steps);
}

fn backends(table: &mut Table, dns: &Connection) {
    let slot = table.slot(slot::DNS);
    let state = |state, generation| Step::Backend {
        slot,
        state,
        generation,
    };
    let mut steps = answered(dns);
    steps.push(state(backend_state::DRAINING, 1));
    steps.extend(answered(dns));
    table.add("udp_flow_goes_on_while_backend_draining", steps);
    let refused = Step::FromClient(
        dns.request(0).bytes(),
        Expect::Transmit(super::unreachable_of(&dns.request(0))),
    );
    let mut steps = answered(dns);
    steps.push(state(backend_state::DOWN, 1));
    steps.push(refused);
    table.add("udp_flow_leaves_failed_backend", steps);
    let mut steps = answered(dns);
    steps.push(state(backend_state::ACTIVE, 2));
    steps.push(Step::FromBackend(
        dns.reply(0).bytes(),
        Expect::Dropped(Drop::BackendRemoved),
    ));
    steps.extend(answered(dns));
    table.add("udp_flow_leaves_removed_backend", steps);
    // Of two backends one fails: the flow moves to the other.
    let a = table.addresses;
    let (first, second) = (table.slot(slot::DNS_TWO_A), table.slot(slot::DNS_TWO_B));
    let to = |last| {
        Connection::new(
            a.client(40_060),
            a.vip(port::DNS_TWO),
            a.backend(last, 5353),
        )
        .udp()
    };
    let set = |slot, state| Step::Backend {
        slot,
        state,
        generation: 1,
    };
    let mut steps = vec![set(second, backend_state::DOWN)];
    steps.extend(answered(&to(19)));
    steps.push(set(second, backend_state::ACTIVE));
    steps.push(set(first, backend_state::DOWN));
    steps.extend(answered(&to(20)));
    table.add("udp_flow_moves_to_the_living_backend", steps);
}
