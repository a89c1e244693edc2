//! TCP connections: beginnings, life, ends.

use super::{Connection, Table, passes};
use crate::packets::build::{ACK, FIN, PSH, Packet, RST, SYN, Transport};
use crate::packets::world::{self, port};
use crate::packets::{Expect, Step};
use lb_common::abi::{Be16, Drop, FlowKey, V4, V6, protocol};

pub(super) fn cases(table: &mut Table) {
    life(table);
    evictions(table);
    ends(table);
    draws(table);
    next_hops(table);
    shapes(table);
}

pub(super) fn web(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080))
}

fn with_payload(packet: Packet, payload: &[u8]) -> Packet {
    packet.with(|packet| packet.payload = payload.to_vec())
}

fn life(table: &mut Table) {
    let web = web(table);
    table.add(
        "tcp_syn_reaches_backend",
        vec![web.forwards(web.request(SYN))],
    );
    table.add("tcp_synack_reaches_client", web.opened());
    let mut steps = web.opened();
    steps.push(web.forwards(web.request(ACK)));
    table.add("tcp_ack_completes_handshake", steps.clone());
    steps.push(web.forwards(with_payload(
        web.request(ACK | PSH),
        b"GET / HTTP/1.1\r\n\r\n",
    )));
    steps.push(web.returns(with_payload(
        web.reply(ACK | PSH),
        b"HTTP/1.1 200 OK\r\n\r\nhello",
    )));
    table.add("tcp_data_both_ways", steps.clone());
    for length in [1, 2, 3, 1000, 1431] {
        let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let mut steps = web.opened();
        steps.push(web.forwards(with_payload(web.request(ACK), &body)));
        steps.push(web.returns(with_payload(web.reply(ACK), &body)));
        table.add(&format!("tcp_payload_of_{length}_bytes"), steps);
    }
    // The same SYN again, before and after the answer.
    let mut steps = vec![
        web.forwards(web.request(SYN)),
        web.forwards(web.request(SYN)),
    ];
    steps.push(web.returns(web.reply(SYN | ACK)));
    steps.push(web.returns(web.reply(SYN | ACK)));
    table.add("tcp_retransmitted_handshake", steps);
    // Picked up in the middle: another node's flow, or this one's after a loss of state.
    table.add(
        "tcp_ack_without_flow_is_drawn",
        vec![
            web.forwards(web.request(ACK)),
            web.returns(web.reply(ACK)),
            web.forwards(web.request(ACK)),
        ],
    );
    // The backend repeats its answer to a SYN, whose handshake gave way to others: had that been forged, the
    // segment behind it may be as well. What shows that it got the answer is the client's.
    let known = Step::Known {
        src: web.client,
        dst: web.vip,
        udp: false,
    };
    table.add(
        "tcp_repeated_answer_proves_nothing_picked_up",
        vec![
            web.forwards(web.request(ACK)),
            web.returns(web.reply(SYN | ACK)),
            known,
        ],
    );
    let mut steps = vec![
        web.forwards(web.request(ACK)),
        web.returns(web.reply(SYN | ACK)),
        web.forwards(web.request(ACK)),
    ];
    steps.push(Step::Unknown {
        src: web.client,
        dst: web.vip,
        udp: false,
    });
    table.add("tcp_repeated_answer_is_acknowledged", steps);
    // Both from nobody who would see an answer: the backend's answer to the SYN proves nothing.
    table.add(
        "tcp_syn_behind_a_forged_segment_proves_nothing",
        vec![
            web.forwards(web.request(ACK)),
            web.forwards(web.request(SYN)),
            web.returns(web.reply(SYN | ACK)),
            Step::Known {
                src: web.client,
                dst: web.vip,
                udp: false,
            },
        ],
    );
}

/// Under a flood the table of handshakes forgets one direction.
fn evictions(table: &mut Table) {
    let a = table.addresses;
    let to = |last| {
        Connection::new(
            a.client(40_001),
            a.vip(port::ROUND_ROBIN),
            a.backend(last, 8080),
        )
    };
    let (first, second) = (to(9), to(10));
    let evict = |src, dst| Step::Evict {
        src,
        dst,
        udp: false,
    };
    table.add(
        "tcp_answer_finds_client_without_forward_entry",
        vec![
            first.forwards(first.request(SYN)),
            evict(first.client, first.vip),
            first.returns(first.reply(SYN | ACK)),
            first.forwards(first.request(ACK)),
        ],
    );
    table.add(
        "tcp_refusal_finds_client_without_forward_entry",
        vec![
            first.forwards(first.request(SYN)),
            evict(first.client, first.vip),
            first.returns(first.reply(RST | ACK)),
            second.forwards(second.request(SYN)),
        ],
    );
    let web = web(table);
    let mut steps = vec![web.forwards(web.request(SYN)), evict(web.client, web.vip)];
    steps.extend(web.opened());
    table.add("tcp_repeated_syn_without_forward_entry", steps);
    let mut steps = vec![
        first.forwards(first.request(SYN)),
        first.returns(first.reply(SYN | ACK)),
        evict(first.backend, first.client),
        first.forwards(first.request(ACK)),
    ];
    steps.push(first.returns(first.reply(ACK)));
    steps.push(first.forwards(first.request(ACK)));
    table.add("tcp_established_without_reverse_entry", steps);
    // The late answer is another attempt's, and takes nothing from the established one.
    let mut steps = vec![
        first.forwards(first.request(SYN)),
        evict(first.client, first.vip),
    ];
    steps.extend(second.opened());
    steps.extend([
        first.returns(first.reply(SYN | ACK)),
        second.forwards(second.request(ACK)),
        Step::Unknown {
            src: first.client,
            dst: first.vip,
            udp: false,
        },
    ]);
    table.add(
        "tcp_late_answer_takes_nothing_from_an_established_connection",
        steps,
    );
    // What nobody proved can still be pushed out; what the client proved cannot.
    let mut steps = vec![
        first.forwards(first.request(SYN)),
        first.returns(first.reply(SYN | ACK)),
        evict(first.client, first.vip),
        evict(first.backend, first.client),
        second.forwards(second.request(SYN)),
    ];
    table.add("tcp_answer_alone_establishes_nothing", steps.clone());
    steps.truncate(2);
    steps.push(first.forwards(forged(&first, 0x1000_0000)));
    steps.extend([
        evict(first.client, first.vip),
        evict(first.backend, first.client),
        second.forwards(second.request(SYN)),
    ]);
    table.add("tcp_forged_acknowledgement_establishes_nothing", steps);
    for (name, ahead) in [("answer", 0), ("early_data", 1000)] {
        let mut steps = vec![
            first.forwards(first.request(SYN)),
            first.returns(first.reply(SYN | ACK)),
            first.forwards(forged(&first, ahead)),
            evict(first.client, first.vip),
            evict(first.backend, first.client),
        ];
        steps.push(first.forwards(first.request(ACK)));
        steps.push(first.returns(first.reply(ACK)));
        table.add(&format!("tcp_acknowledged_{name}_establishes"), steps);
    }
    table.add(
        "tcp_late_answer_of_second_attempt_takes_nothing_over",
        vec![
            first.forwards(first.request(SYN)),
            evict(first.client, first.vip),
            second.forwards(second.request(SYN)),
            first.returns(first.reply(SYN | ACK)),
            second.returns(second.reply(SYN | ACK)),
            first.forwards(first.request(ACK)),
            first.returns(first.reply(ACK)),
        ],
    );
}

/// The client's ACK, of a number that lies `ahead` of what the backend's answer asks for.
fn forged(connection: &Connection, ahead: u32) -> Packet {
    connection.request(ACK).with(|packet| {
        if let Transport::Tcp {
            acknowledgement, ..
        } = &mut packet.transport
        {
            *acknowledgement = acknowledgement.wrapping_add(ahead);
        }
    })
}

fn ends(table: &mut Table) {
    let web = web(table);
    let closed = |first_client: bool| {
        let mut steps = web.opened();
        let client = web.forwards(web.request(FIN | ACK));
        let backend = web.returns(web.reply(FIN | ACK));
        steps.extend(if first_client {
            [client, backend]
        } else {
            [backend, client]
        });
        steps.push(web.forwards(web.request(ACK)));
        steps.push(web.returns(web.reply(ACK)));
        steps
    };
    table.add("tcp_client_closes_first", closed(true));
    table.add("tcp_backend_closes_first", closed(false));
    let mut steps = web.opened();
    steps.push(web.forwards(web.request(FIN | ACK)));
    steps.push(web.returns(with_payload(web.reply(ACK), b"rest of the answer")));
    table.add("tcp_half_closed_goes_on", steps);
    let mut steps = web.opened();
    steps.push(web.forwards(web.request(RST)));
    table.add("tcp_client_resets", steps);
    table.add(
        "tcp_backend_speaks_again_before_the_client",
        vec![
            web.forwards(web.request(SYN)),
            web.returns(web.reply(SYN | ACK)),
            web.returns(web.reply(PSH | ACK)),
            web.forwards(web.request(ACK)),
        ],
    );
    table.add(
        "tcp_client_resets_what_is_not_answered",
        vec![
            web.forwards(web.request(SYN)),
            web.forwards(web.request(RST)),
            web.returns(web.reply(SYN | ACK)),
        ],
    );
    let mut steps = web.opened();
    steps.push(web.returns(web.reply(RST | ACK)));
    table.add("tcp_backend_resets", steps);
    table.add(
        "tcp_backend_refuses",
        vec![
            web.forwards(web.request(SYN)),
            web.returns(web.reply(RST | ACK)),
        ],
    );
    let mut steps = closed(true);
    steps.push(web.forwards(web.request(SYN)));
    steps.push(web.returns(web.reply(SYN | ACK)));
    steps.push(web.forwards(web.request(ACK)));
    table.add("tcp_port_reused_after_close", steps);
    let mut steps = web.opened();
    steps.push(web.returns(web.reply(RST)));
    steps.push(web.forwards(web.request(SYN)));
    table.add("tcp_port_reused_after_reset", steps);
    table.add(
        "tcp_reset_without_flow_dropped",
        vec![Step::FromClient(
            web.request(RST).bytes(),
            Expect::Dropped(Drop::ResetWithoutFlow),
        )],
    );
}

fn draws(table: &mut Table) {
    let a = table.addresses;
    let random = Connection::new(a.client(40_001), a.vip(port::RANDOM), a.backend(56, 8080));
    table.add("tcp_random_draw", random.opened());
    // It sees the node's address, not its own.
    let itself = a.backend(58, 40_001);
    let itself = Connection::new(itself, a.vip(port::ITSELF), a.backend(58, 8080))
        .seen_as(a.node(world::SNAT_PORT));
    let syn = itself.request(SYN);
    let answer = itself.reply(SYN | ACK);
    let back = answer.moved(world::TO_BACKEND, itself.vip, itself.client);
    let steps = vec![
        itself.forwards(syn),
        Step::FromBackend(answer.bytes(), Expect::Transmit(back.bytes())),
    ];
    table.add("tcp_backend_draws_itself", steps);
    let a = table.addresses;
    let to = |last, client_port, vip_port| {
        Connection::new(
            a.client(client_port),
            a.vip(vip_port),
            a.backend(last, 8080),
        )
    };
    let rounds = (0..6).map(|i| {
        let connection = to(9 + (i % 2) as u8, 41_000 + i, port::ROUND_ROBIN);
        connection.forwards(connection.request(SYN))
    });
    table.add("tcp_round_robin_alternates", rounds.collect());
    let maglev = (0..8).map(|i| {
        let client = a.client(42_000 + i);
        let vip = a.vip(port::MAGLEV);
        let ports = (Be16::new(client.port()), Be16::new(vip.port()));
        let hash = match (client.ip(), vip.ip()) {
            (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => lb_common::hash::five_tuple(
                &FlowKey::<V4>::new(src.into(), ports.0, dst.into(), ports.1, protocol::TCP),
            ),
            (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => lb_common::hash::five_tuple(
                &FlowKey::<V6>::new(src.into(), ports.0, dst.into(), ports.1, protocol::TCP),
            ),
            _ => unreachable!("one family"),
        };
        let last = if (hash as u32 % 5).is_multiple_of(2) {
            11
        } else {
            12
        };
        let connection = to(last, client.port(), port::MAGLEV);
        connection.forwards(connection.request(SYN))
    });
    table.add("tcp_maglev_draws_at_the_hash", maglev.collect());
    // Whatever the draw, only the living half is taken.
    let half = (0..12).map(|i| {
        let connection = to(17, 43_000 + i, port::HALF);
        connection.forwards(connection.request(SYN))
    });
    table.add("tcp_ineligible_backend_is_redrawn", half.collect());
}

fn next_hops(table: &mut Table) {
    let a = table.addresses;
    let to = |backend, vip_port| Connection::new(a.client(40_001), a.vip(vip_port), backend);
    let unresolved = to(a.backend(99, 8080), port::UNRESOLVED);
    let syn = unresolved.request(SYN);
    let out = syn
        .moved(world::FROM_CLIENT, unresolved.source, unresolved.backend)
        .bytes();
    table.add(
        "tcp_unresolved_neighbour_goes_to_kernel",
        vec![Step::FromClient(syn.bytes(), Expect::Resolve(out))],
    );
    let black = to(a.black_hole(8080), port::BLACK_HOLE);
    table.add(
        "tcp_black_hole_drops",
        vec![Step::FromClient(
            black.request(SYN).bytes(),
            Expect::Dropped(Drop::Unroutable),
        )],
    );
    // The stack decrements the TTL itself.
    let local = to(a.node(8080), port::LOCAL);
    let syn = local.request(SYN);
    let out = Packet {
        ttl: 64,
        ..syn.moved(world::FROM_CLIENT, local.source, local.backend)
    };
    table.add(
        "tcp_local_backend_goes_to_stack",
        vec![Step::FromClient(syn.bytes(), Expect::Stack(out.bytes()))],
    );
    let hairpin = to(a.neighbour_of_clients(8080), port::HAIRPIN);
    let syn = hairpin.request(SYN);
    let out = syn
        .moved(world::TO_CLIENT, hairpin.source, hairpin.backend)
        .bytes();
    table.add(
        "tcp_backend_behind_the_same_device",
        vec![Step::FromClient(syn.bytes(), Expect::Transmit(out))],
    );
    let web = web(table);
    let mut steps = web.opened();
    steps.push(Step::Epoch);
    steps.push(web.forwards(web.request(ACK)));
    steps.push(web.returns(web.reply(ACK)));
    steps.push(web.forwards(web.request(ACK)));
    table.add("tcp_new_epoch_routes_anew", steps);
}

fn shapes(table: &mut Table) {
    let web = web(table);
    let options = [
        2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let with_options = web.request(SYN).with(|packet| {
        let Transport::Tcp { options: field, .. } = &mut packet.transport else {
            return;
        };
        field.extend(options);
    });
    table.add("tcp_syn_with_options", vec![web.forwards(with_options)]);
    let early = with_payload(web.request(SYN), b"data on syn");
    table.add("tcp_syn_with_data", vec![web.forwards(early)]);
    table.add(
        "tcp_syn_with_padding",
        vec![{
            let padded = web.request(SYN).with(|packet| packet.trailer = vec![0; 6]);
            web.forwards(padded)
        }],
    );
    let marked = web.request(SYN).with(|packet| packet.tos = 0xb8);
    table.add("tcp_traffic_class_is_kept", vec![web.forwards(marked)]);
    let far = web.request(SYN).with(|packet| packet.ttl = 2);
    table.add("tcp_ttl_2_is_forwarded", vec![web.forwards(far)]);
    let last = web.request(SYN).with(|packet| packet.ttl = 1);
    table.add("tcp_ttl_1_goes_to_kernel", vec![passes(last)]);
    let mut steps = web.opened();
    steps.push(passes(web.request(ACK).with(|packet| packet.ttl = 1)));
    table.add("tcp_established_ttl_1_goes_to_kernel", steps);
    for (name, flags) in [
        ("null", 0),
        ("xmas", 0x29),
        ("fin", FIN),
        ("syn_fin", SYN | FIN),
        ("syn_rst", SYN | RST),
    ] {
        let dropped =
            |reason| Step::FromClient(web.request(flags).bytes(), Expect::Dropped(reason));
        // To an address of ours where nobody listens it is not ours to drop.
        let a = table.addresses;
        let foreign = Packet::tcp(world::FROM_CLIENT, web.client, a.node(port::WEB), flags);
        let reason = match flags & RST {
            0 => Drop::InvalidFlags,
            _ => Drop::ResetWithoutFlow,
        };
        table.add(
            &format!("tcp_{name}_flags_open_nothing"),
            vec![
                dropped(reason),
                Step::FromBackend(web.reply(ACK).bytes(), Expect::Pass),
                passes(foreign),
            ],
        );
        if flags & (SYN | FIN) != 0 {
            let mut steps = web.opened();
            steps.push(dropped(Drop::InvalidFlags));
            steps.push(web.forwards(web.request(ACK)));
            table.add(&format!("tcp_{name}_flags_change_no_connection"), steps);
        }
    }
    // Every value of one address and port moves the checksum differently.
    let a = table.addresses;
    for client_port in [1, 255, 256, 32_767, 65_535] {
        let web = Connection {
            client: a.client(client_port),
            source: a.client(client_port),
            ..web.clone()
        };
        let mut steps = web.opened();
        steps.push(web.forwards(with_payload(web.request(ACK), &[0xff; 33])));
        table.add(&format!("tcp_client_port_{client_port}"), steps);
    }
    if !table.addresses.v6 {
        let routed = web.request(SYN).with(|packet| packet.options = vec![1; 8]);
        table.add("tcp_ip_options_are_kept", vec![web.forwards(routed)]);
        let full = web.request(SYN).with(|packet| packet.options = vec![1; 40]);
        table.add("tcp_60_byte_ip_header", vec![web.forwards(full)]);
        let may_fragment = web.request(SYN).with(|packet| packet.fragment = 0);
        table.add("tcp_without_df", vec![web.forwards(may_fragment)]);
    }
}
