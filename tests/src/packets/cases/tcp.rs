//! TCP connections: beginnings, life, ends.

use std::net::SocketAddr;

use super::{Connection, Table, passes};
use crate::packets::build::{ACK, FIN, PSH, Packet, RST, SYN, Transport};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Be16, Drop, FlowKey, V4, V6, backend_state, protocol};

pub(super) fn cases(table: &mut Table) {
    life(table);
    evictions(table);
    ends(table);
    sources(table);
    draws(table);
    next_hops(table);
    liveness(table);
    shapes(table);
}

fn web(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080))
}

fn snat(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_001), a.vip(port::SNAT), a.backend(2, 8443))
        .seen_as(a.node(world::SNAT_PORT))
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

fn sources(table: &mut Table) {
    let a = table.addresses;
    let first = snat(table);
    let mut steps = first.opened();
    steps.push(first.forwards(first.request(ACK)));
    table.add("tcp_snat_both_ways", steps.clone());
    // The pool holds one port.
    let second = Connection {
        client: a.client(40_002),
        ..first.clone()
    };
    steps.push(Step::FromClient(
        second.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    steps.push(first.forwards(first.request(ACK)));
    table.add("tcp_snat_pool_exhausted_spares_the_living", steps);
    let mut steps = first.opened();
    steps.push(first.returns(first.reply(RST)));
    steps.push(Step::FromClient(
        second.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    table.add("tcp_snat_port_of_closed_connection_rests", steps);
    let mut steps = vec![
        first.forwards(first.request(SYN)),
        Step::FromClient(
            second.request(SYN).bytes(),
            Expect::Dropped(Drop::SourcePortsExhausted),
        ),
        Step::Second,
    ];
    steps.extend(second.opened());
    steps.push(Step::Second);
    // Proven: nothing takes it over.
    steps.push(Step::FromClient(
        first.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    steps.push(second.forwards(second.request(ACK)));
    table.add("tcp_snat_port_of_old_handshake_is_taken_over", steps);
    let mut steps = first.opened();
    steps.push(first.forwards(first.request(RST)));
    steps.push(first.forwards(first.request(ACK)));
    steps.push(Step::Second);
    steps.push(Step::FromClient(
        second.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    steps.push(first.forwards(first.request(ACK)));
    table.add("tcp_snat_port_survives_forged_reset", steps);
    let mut steps = first.opened();
    steps.push(first.returns(first.reply(RST)));
    steps.push(Step::Second);
    steps.extend(second.opened());
    table.add("tcp_snat_port_of_closed_connection_is_reused", steps);
    let mut steps = first.opened();
    steps.push(first.forwards(first.request(FIN | ACK)));
    steps.push(Step::FromClient(
        second.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    table.add("tcp_snat_port_of_half_closed_connection_is_kept", steps);
    rests(table, &first, &second);
    node_sources(table, &first, &second);
    // Two services, one backend, one client port: the second gets another source port.
    let web = web(table);
    let again = Connection::new(web.client, a.vip(port::WEB_AGAIN), web.backend)
        .seen_as(a.client(world::SNAT_PORT));
    let mut steps = web.opened();
    steps.extend(again.opened());
    steps.push(web.forwards(web.request(ACK)));
    steps.push(again.forwards(again.request(ACK)));
    steps.push(web.returns(web.reply(ACK)));
    steps.push(again.returns(again.reply(ACK)));
    table.add("tcp_same_client_port_to_same_backend_twice", steps);
    // Two clients with one port number.
    let other = a.neighbour_of_clients(web.client.port());
    let other = Connection {
        client: other,
        source: other,
        ..web.clone()
    };
    let mut steps = web.opened();
    steps.extend(other.opened());
    steps.push(web.returns(web.reply(ACK)));
    steps.push(other.returns(other.reply(ACK)));
    table.add("tcp_two_clients_with_one_port", steps);
}

/// When a connection has ended, as the only port of the pool tells that `first` has and `second`
/// wants. Found by random histories (tests/flow_life.rs).
fn rests(table: &mut Table, first: &Connection, second: &Connection) {
    let refused = || {
        let packet = second.request(SYN).bytes();
        Step::FromClient(packet, Expect::Dropped(Drop::SourcePortsExhausted))
    };
    let mut steps = first.opened();
    steps.extend([
        Step::Second,
        first.forwards(first.request(RST)),
        refused(),
        Step::Second,
    ]);
    steps.extend(second.opened());
    table.add(
        "tcp_snat_port_rests_after_the_reset_of_an_idle_connection",
        steps,
    );
    let mut steps = first.opened();
    steps.extend([
        first.forwards(first.request(RST)),
        first.forwards(first.request(FIN | ACK)),
        Step::Second,
        refused(),
        first.returns(first.reply(ACK)),
    ]);
    table.add("tcp_forged_reset_is_taken_back_by_a_fin", steps);
    let mut steps = vec![
        first.forwards(first.request(FIN | ACK)),
        first.returns(first.reply(FIN | ACK)),
        first.forwards(first.request(ACK)),
        Step::Second,
    ];
    steps.extend(second.opened());
    table.add("tcp_connection_picked_up_by_its_fin_ends", steps);
}

/// Which sources SNAT may take; `first` and `second` want the only port of the pool.
fn node_sources(table: &mut Table, first: &Connection, second: &Connection) {
    let a = table.addresses;
    let port = world::SNAT_PORT;
    let listen = |local, udp| Step::Listen { local, udp };
    let exhausted = |connection: &Connection| {
        let packet = connection.request(SYN).bytes();
        Step::FromClient(packet, Expect::Dropped(Drop::SourcePortsExhausted))
    };
    let anywhere = |port| {
        let any = if a.v6 { "::" } else { "0.0.0.0" };
        SocketAddr::new(any.parse().expect("an address"), port)
    };
    for (name, local) in [("node", a.node(port)), ("any_address", anywhere(port))] {
        table.add(
            &format!("tcp_snat_port_of_a_socket_on_{name}_is_not_taken"),
            vec![listen(local, false), exhausted(first)],
        );
    }
    for (name, local, udp) in [
        ("another_address", a.second_node(port), false),
        ("another_port", a.node(port + 1), false),
        ("udp", a.node(port), true),
    ] {
        let mut steps = vec![listen(local, udp)];
        steps.extend(first.opened());
        table.add(&format!("tcp_snat_port_beside_a_socket_on_{name}"), steps);
    }
    // The socket came later: the connection goes on.
    let mut steps = first.opened();
    steps.push(listen(a.node(port), false));
    steps.push(first.forwards(first.request(ACK)));
    steps.push(first.returns(first.reply(ACK)));
    table.add("tcp_snat_port_of_a_live_connection_stays", steps);
    // The client's own address and port are no business of the node's sockets.
    let web = web(table);
    let mut steps = vec![listen(anywhere(web.client.port()), false)];
    steps.extend(web.opened());
    table.add("tcp_client_port_beside_a_socket_on_any_address", steps);

    // Two addresses, one port: two connections, and live ones stay when there is no third.
    let both = Step::Sources(vec![a.node(0).ip(), a.second_node(0).ip()]);
    let by_second = first.clone().seen_as(a.second_node(port));
    let third = Connection {
        client: a.neighbour_of_clients(43_003),
        ..second.clone()
    };
    let mut steps = vec![both.clone(), listen(a.node(port), false)];
    steps.extend(by_second.opened());
    steps.push(exhausted(second));
    steps.push(Step::CloseSockets);
    steps.extend(second.opened());
    steps.push(exhausted(&third));
    for connection in [&by_second, second] {
        steps.push(connection.forwards(connection.request(ACK)));
        steps.push(connection.returns(connection.reply(ACK)));
    }
    table.add("tcp_snat_of_two_addresses_has_twice_the_ports", steps);
    let mut steps = vec![both, listen(a.second_node(port), false)];
    steps.extend(first.opened());
    steps.push(exhausted(second));
    table.add("tcp_snat_of_two_addresses_tries_both", steps);
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

fn liveness(table: &mut Table) {
    let web = web(table);
    let slot = table.slot(slot::WEB);
    let mut steps = web.opened();
    steps.push(Step::Backend {
        slot,
        state: backend_state::ACTIVE,
        generation: 2,
    });
    steps.push(Step::FromClient(
        web.request(RST).bytes(),
        Expect::Dropped(Drop::ResetWithoutFlow),
    ));
    table.add("tcp_reset_to_a_removed_backend_is_not_answered", steps);
    let state = |state| Step::Backend {
        slot,
        state,
        generation: 1,
    };
    for (name, value) in [
        ("draining", backend_state::DRAINING),
        ("down", backend_state::DOWN),
        ("closed", backend_state::CLOSED),
    ] {
        if value != backend_state::CLOSED {
            let mut steps = web.opened();
            steps.push(state(value));
            steps.push(web.forwards(web.request(ACK)));
            steps.push(web.returns(web.reply(ACK)));
            steps.push(web.forwards(web.request(FIN | ACK)));
            table.add(
                &format!("tcp_connection_goes_on_while_backend_{name}"),
                steps,
            );
        }
        let syn = web.request(SYN);
        let answer = Expect::Transmit(super::reset_of(&syn));
        table.add(
            &format!("tcp_new_connection_refused_while_backend_{name}"),
            vec![state(value), Step::FromClient(syn.bytes(), answer.clone())],
        );
        if value != backend_state::DRAINING {
            let mut steps = web.opened();
            steps.push(state(value));
            steps.push(Step::FromClient(syn.bytes(), answer.clone()));
            table.add(
                &format!("tcp_port_reused_while_backend_{name}_is_drawn_anew"),
                steps,
            );
        }
        let steps = vec![
            web.forwards(web.request(SYN)),
            state(value),
            Step::FromClient(syn.bytes(), answer),
        ];
        table.add(
            &format!("tcp_retransmitted_syn_leaves_backend_{name}"),
            steps,
        );
    }
    let a = table.addresses;
    let resetting = Connection::new(
        a.client(40_001),
        a.vip(port::RESETTING),
        a.backend(21, 8080),
    );
    for (name, connection, slot, value) in [
        ("closed", &web, slot, backend_state::CLOSED),
        (
            "down",
            &resetting,
            table.slot(slot::RESETTING),
            backend_state::DOWN,
        ),
    ] {
        let mut steps = connection.opened();
        let state = |state| Step::Backend {
            slot,
            state,
            generation: 1,
        };
        steps.push(state(value));
        let ack = connection.request(ACK);
        steps.push(Step::FromClient(
            ack.bytes(),
            Expect::Transmit(super::reset_of(&ack)),
        ));
        steps.push(Step::FromBackend(
            connection.reply(ACK).bytes(),
            Expect::Dropped(Drop::BackendDown),
        ));
        // It was not forgotten: the backend may come back in time.
        steps.push(state(backend_state::ACTIVE));
        steps.push(connection.forwards(connection.request(ACK)));
        table.add(&format!("tcp_connection_ends_when_backend_{name}"), steps);
    }
    let mut steps = web.opened();
    steps.push(Step::Backend {
        slot,
        state: backend_state::ACTIVE,
        generation: 2,
    });
    let ack = web.request(ACK);
    steps.push(Step::FromClient(
        ack.bytes(),
        Expect::Transmit(super::reset_of(&ack)),
    ));
    steps.push(Step::FromBackend(
        web.reply(ACK).bytes(),
        Expect::Dropped(Drop::BackendRemoved),
    ));
    steps.push(web.forwards(web.request(SYN)));
    table.add("tcp_removed_backend_resets_then_draws_anew", steps);
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
