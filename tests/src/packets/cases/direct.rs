//! Direct server return.

mod way;

use self::way::{Outer, Way, inside, label, sent, ways};
use super::narrow::answered;
use super::{Connection, Table, passes, reset_of};
use crate::packets::build::{ACK, FIN, PSH, Packet, RST, SYN, Transport};
use crate::packets::world::{self, Addresses, MTU, NARROW_MTU, port};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, V4, V6, backend_state};
use lb_common::path::Budget;
use std::net::{IpAddr, SocketAddr};

pub(super) fn cases(table: &mut Table) {
    for way in ways(table) {
        life(table, &way);
        ends(table, &way);
        liveness(table, &way);
        sizes(table, &way);
        errors(table, &way);
        fragments(table, &way);
        flood(table, &way);
    }
    shapes(table);
    next_hops(table);
    spread(table);
    again(table);
}

fn life(table: &mut Table, way: &Way) {
    let (name, tcp, udp) = (way.name, &way.tcp, &way.udp);
    let add = |table: &mut Table, what: &str, steps| {
        table.add(&format!("{name}_{what}"), steps);
    };
    add(
        table,
        "syn_reaches_backend",
        vec![way.forwards(tcp.request(SYN))],
    );
    add(table, "handshake", way.opened());
    let mut steps = way.opened();
    for length in [0, 1, 2, 700, 1400] {
        let data = tcp.request(ACK | PSH).with(|p| p.payload = vec![7; length]);
        steps.push(way.forwards(data));
    }
    add(table, "data", steps);
    add(
        table,
        "retransmitted_syn",
        vec![
            way.forwards(tcp.request(SYN)),
            way.forwards(tcp.request(SYN)),
            way.forwards(tcp.request(ACK)),
        ],
    );
    // What the client's second packet made lies where nothing is evicted.
    let mut steps = way.opened();
    steps.push(Step::Unknown {
        src: tcp.client,
        dst: tcp.vip,
        udp: false,
    });
    steps.push(way.forwards(tcp.request(ACK)));
    add(table, "second_packet_establishes", steps);
    add(
        table,
        "lone_syn_stays_a_handshake",
        vec![
            way.forwards(tcp.request(SYN)),
            way.forwards(tcp.request(SYN)),
            way.forget(),
        ],
    );
    add(
        table,
        "datagrams",
        vec![
            way.asks(udp.request(0)),
            way.asks(udp.request(0)),
            Step::Unknown {
                src: udp.client,
                dst: udp.vip,
                udp: true,
            },
            way.asks(udp.request(0)),
        ],
    );
    let mut steps = way.opened();
    steps.push(Step::Epoch);
    steps.push(way.forwards(tcp.request(ACK)));
    steps.push(way.forwards(tcp.request(ACK)));
    add(table, "new_epoch_looks_the_way_up", steps);
    // The backend's own answer passes by, if it comes here at all.
    let mut steps = way.opened();
    let reply = Packet::tcp(world::FROM_BACKEND, tcp.vip, tcp.client, SYN | ACK);
    steps.push(Step::FromBackend(reply.bytes(), Expect::Pass));
    add(table, "answer_is_not_ours", steps);
    let mut steps = way.opened();
    for class in [0x02, 0xb8, 0xff] {
        let marked = |flags| tcp.request(flags).with(|p| p.tos = class);
        steps.push(way.forwards(marked(ACK)));
        steps.push(way.forwards(marked(ACK | FIN)));
    }
    add(table, "class_of_service_is_kept", steps);
    if !table.addresses.v6 {
        let options = |flags| tcp.request(flags).with(|p| p.options = vec![1; 12]);
        add(
            table,
            "ip_options_are_kept",
            vec![way.forwards(options(SYN)), way.forwards(options(ACK))],
        );
        let divisible = |flags| tcp.request(flags).with(|p| p.fragment = 0);
        add(
            table,
            "dont_fragment_is_kept",
            vec![way.forwards(divisible(SYN)), way.forwards(divisible(ACK))],
        );
        let unsummed = udp.request(0).with(|p| {
            p.transport = Transport::Udp {
                checksum: false,
                length: None,
            };
        });
        add(
            table,
            "udp_without_checksum",
            vec![way.asks(unsummed.clone()), way.asks(unsummed)],
        );
    }
    add(
        table,
        "ttl_1_passes",
        vec![passes(tcp.request(SYN).with(|p| p.ttl = 1))],
    );
    let mut steps = way.opened();
    steps.push(passes(tcp.request(ACK).with(|p| p.ttl = 1)));
    steps.push(way.forwards(tcp.request(ACK).with(|p| p.ttl = 2)));
    add(table, "ttl_1_of_a_known_flow_passes", steps);
}

fn ends(table: &mut Table, way: &Way) {
    let (name, tcp) = (way.name, &way.tcp);
    let mut steps = way.opened();
    steps.push(way.forwards(tcp.request(FIN | ACK)));
    steps.push(way.forwards(tcp.request(ACK)));
    table.add(&format!("{name}_half_closed_goes_on"), steps.clone());
    steps.push(way.forwards(tcp.request(SYN)));
    steps.push(way.forwards(tcp.request(ACK)));
    table.add(&format!("{name}_port_again_after_fin"), steps);
    let mut steps = way.opened();
    steps.push(way.forwards(tcp.request(RST)));
    steps.push(way.forwards(tcp.request(SYN)));
    steps.push(way.forwards(tcp.request(ACK)));
    table.add(&format!("{name}_port_again_after_reset"), steps);
    table.add(
        &format!("{name}_reset_establishes_nothing"),
        vec![
            way.forwards(tcp.request(SYN)),
            way.forwards(tcp.request(RST)),
            way.forget(),
            Step::FromClient(
                tcp.request(RST).bytes(),
                Expect::Dropped(Drop::ResetWithoutFlow),
            ),
        ],
    );
}

fn liveness(table: &mut Table, way: &Way) {
    let (name, tcp, udp) = (way.name, &way.tcp, &way.udp);
    let state = |slot, state, generation| Step::Backend {
        slot,
        state,
        generation,
    };
    let resets = |packet: Packet| {
        let answer = reset_of(&packet);
        Step::FromClient(packet.bytes(), Expect::Transmit(answer))
    };
    let mut steps = way.opened();
    steps.push(state(way.slot, backend_state::FREE, 2));
    steps.push(resets(tcp.request(ACK)));
    table.add(&format!("{name}_removed_backend_resets"), steps);
    let mut steps = way.opened();
    steps.push(state(way.slot, backend_state::ACTIVE, 2));
    steps.push(resets(tcp.request(ACK)));
    steps.push(way.forwards(tcp.request(SYN)));
    table.add(&format!("{name}_slot_of_another_backend"), steps);
    let mut steps = way.opened();
    for which in [backend_state::DRAINING, backend_state::DOWN] {
        steps.push(state(way.slot, which, 1));
        steps.push(way.forwards(tcp.request(ACK)));
    }
    steps.push(resets(tcp.request(SYN)));
    table.add(&format!("{name}_tcp_goes_on_while_backend_ends"), steps);
    let mut steps = vec![way.asks(udp.request(0)), way.asks(udp.request(0))];
    steps.push(state(way.udp_slot, backend_state::DOWN, 1));
    steps.push(Step::FromClient(
        udp.request(0).bytes(),
        Expect::Transmit(super::unreachable_of(&udp.request(0))),
    ));
    table.add(&format!("{name}_udp_leaves_failed_backend"), steps);
}

/// The largest packet that fits, and the next.
fn sizes(table: &mut Table, way: &Way) {
    let (name, tcp, udp) = (way.name, &way.tcp, &way.udp);
    let header = if table.addresses.v6 { 40 } else { 20 };
    let largest = MTU as usize - way.outer.map_or(0, Outer::overhead);
    let of = |packet: Packet, length: usize, transport: usize| {
        packet.with(|p| p.payload = vec![0x33; length - header - transport])
    };
    let segment = |length| of(tcp.request(ACK), length, 20);
    let mut steps = way.opened();
    steps.push(way.forwards(segment(largest)));
    steps.push(answered(&segment(largest + 1), largest));
    steps.push(way.forwards(segment(largest)));
    table.add(&format!("{name}_segment_too_big_is_answered"), steps);
    let udp_largest = MTU as usize - way.udp_outer.map_or(0, Outer::overhead);
    let datagram = |length| of(udp.request(0), length, 8);
    table.add(
        &format!("{name}_first_datagram_too_big_is_answered"),
        vec![
            answered(&datagram(udp_largest + 1), udp_largest),
            way.asks(datagram(udp_largest)),
            way.asks(datagram(udp_largest)),
            answered(&datagram(udp_largest + 1), udp_largest),
        ],
    );
    if !table.addresses.v6 {
        let divisible = segment(largest + 1).with(|p| p.fragment = 0);
        let mut steps = way.opened();
        steps.push(answered(&divisible, largest));
        table.add(&format!("{name}_divisible_too_big_is_answered"), steps);
        let optional = |length: usize| {
            let packet = tcp.request(ACK).with(|p| p.options = vec![1; 40]);
            of(packet, length - 40, 20)
        };
        let mut steps = way.opened();
        steps.push(way.forwards(optional(largest)));
        steps.push(answered(&optional(largest + 1), largest));
        table.add(&format!("{name}_too_big_with_options_is_answered"), steps);
    }
    let mut steps = way.opened();
    steps.push(Step::Budget(Budget::Answers, 0));
    steps.push(Step::FromClient(
        segment(largest + 1).bytes(),
        Expect::Dropped(Drop::RejectLimited),
    ));
    table.add(&format!("{name}_too_big_answers_are_limited"), steps);
}

/// SYNs beyond what may be entered go the same way, and leave nothing behind.
fn flood(table: &mut Table, way: &Way) {
    let (name, tcp, udp) = (way.name, &way.tcp, &way.udp);
    let known = |c: &Connection, udp| Step::Known {
        src: c.client,
        dst: c.vip,
        udp,
    };
    let unknown = Step::Unknown {
        src: tcp.client,
        dst: tcp.vip,
        udp: false,
    };
    let flooded = Step::Budget(Budget::Entries, 0);
    let syn = || way.forwards(tcp.request(SYN));
    let steps = vec![syn(), known(tcp, false)];
    table.add(&format!("{name}_syn_is_entered"), steps);
    let steps = vec![
        flooded.clone(),
        syn(),
        unknown.clone(),
        syn(),
        unknown,
        // The client is real: its next packet finds the same backend, and has an entry.
        way.forwards(tcp.request(ACK)),
        known(tcp, false),
        way.forwards(tcp.request(ACK | PSH)),
    ];
    table.add(&format!("{name}_syn_of_a_flood_is_not_entered"), steps);
    let steps = vec![
        Step::Budget(Budget::Entries, 1),
        syn(),
        // A SYN that is sent again has its entry already.
        syn(),
        known(tcp, false),
    ];
    table.add(&format!("{name}_syn_again_takes_no_more_room"), steps);
    let without_places = Step::Budget(Budget::UdpPlaces, 0);
    let asks = || way.asks(udp.request(0));
    let steps = vec![without_places, asks(), asks(), asks(), known(udp, true)];
    table.add(&format!("{name}_datagrams_without_a_place_go_on"), steps);
    let steps = vec![flooded, way.asks(udp.request(0)), known(udp, true)];
    table.add(&format!("{name}_datagram_of_a_flood_is_entered"), steps);
}

/// A router between the backend and the client tells the backend that an answer from `vip` is too big.
/// It quotes `quoted` bytes of that.
fn too_big(a: Addresses, client: SocketAddr, vip: SocketAddr, quoted: usize) -> Packet {
    let answer = Packet::tcp(world::FROM_CLIENT, vip, client, ACK);
    let answer = answer.with(|p| p.payload = vec![0x5a; 1500]);
    let (kind, code) = if a.v6 { (2, 0) } else { (3, 4) };
    Packet::tcp(world::FROM_CLIENT, a.neighbour_of_clients(0), vip, 0).with(|p| {
        p.transport = Transport::Icmp(kind, code, 1300);
        p.payload = answer.bytes()[14..14 + quoted].to_vec();
    })
}

/// ICMP errors about what the backend sent the client go its flow's way, as they are.
fn errors(table: &mut Table, way: &Way) {
    let (name, tcp, a) = (way.name, &way.tcp, table.addresses);
    let about = |client, quoted| too_big(a, client, tcp.vip, quoted);
    let passed_on = |packet: &Packet| {
        let inner = packet.moved(world::TO_BACKEND, packet.src, packet.dst);
        let out = match way.outer {
            None => inner.bytes(),
            // As the flow's other packets, so that it stays in line with them.
            Some(outer) => inside(&inner, outer, label(&tcp.request(ACK))),
        };
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    let error = about(tcp.client, 1000);
    let mut steps = way.opened();
    steps.push(passed_on(&error));
    steps.push(way.forwards(tcp.request(ACK)));
    steps.push(Step::Epoch);
    steps.push(passed_on(&error));
    table.add(&format!("{name}_error_reaches_backend"), steps);
    table.add(
        &format!("{name}_error_in_handshake_reaches_backend"),
        vec![way.forwards(tcp.request(SYN)), passed_on(&error)],
    );
    let mut steps = way.opened();
    steps.push(passes(about(a.client(40_071), 1000)));
    steps.push(passes(error.clone().with(|p| p.ttl = 1)));
    table.add(&format!("{name}_foreign_error_passes"), steps);
    let mut steps = way.opened();
    steps.push(Step::Backend {
        slot: way.slot,
        state: backend_state::ACTIVE,
        generation: 2,
    });
    steps.push(passes(error));
    table.add(&format!("{name}_error_of_a_removed_backend_passes"), steps);
    // Nobody is told of an error's end.
    let largest = MTU as usize - way.outer.map_or(0, Outer::overhead);
    let of = |length: usize| about(tcp.client, length - if a.v6 { 48 } else { 28 });
    let mut steps = way.opened();
    steps.push(passed_on(&of(largest)));
    steps.push(Step::FromClient(
        of(largest + 1).bytes(),
        Expect::Dropped(Drop::TooBig),
    ));
    table.add(&format!("{name}_error_too_big_is_dropped"), steps);
}

/// Fragments, and headers in front of the transport's.
fn fragments(table: &mut Table, way: &Way) {
    let (name, udp) = (way.name, &way.udp);
    let packet = udp.request(0).with(|p| p.payload = vec![0x66; 2000]);
    let inner = packet.moved(world::TO_BACKEND, packet.src, packet.dst);
    let datagram = |id| -> Vec<Step> {
        let pairs = packet.fragments(id, &[1400]).into_iter();
        let pairs = pairs.zip(inner.fragments(id, &[1400]));
        pairs
            .map(|(sent, out)| {
                let out = match way.udp_outer {
                    None => out.bytes(),
                    Some(outer) => inside(&out, outer, label(&packet)),
                };
                Step::FromClient(sent.bytes(), Expect::Redirect(out))
            })
            .collect()
    };
    let mut steps = datagram(1);
    steps.extend(datagram(2));
    steps.push(way.asks(udp.request(0)));
    table.add(&format!("{name}_fragments"), steps);
    // Of a datagram's fragments only the first is answered.
    let largest = MTU as usize - way.udp_outer.map_or(0, Outer::overhead);
    let headers = if table.addresses.v6 { 48 } else { 20 };
    let fits = (largest - headers) & !7;
    let long = udp.request(0).with(|p| p.payload = vec![0x66; 5000]);
    let parts = long.fragments(1, &[fits, fits, fits + 8]);
    let moved = long.moved(world::TO_BACKEND, long.src, long.dst);
    let moved = moved.fragments(1, &[fits, fits, fits + 8]);
    let mut steps: Vec<Step> = (parts.iter().zip(&moved))
        .map(|(part, moved)| {
            let out = match way.udp_outer {
                None => moved.bytes(),
                Some(outer) => inside(moved, outer, label(&long)),
            };
            Step::FromClient(part.bytes(), Expect::Redirect(out))
        })
        .collect();
    if let Step::FromClient(_, expect) = &mut steps[2] {
        *expect = Expect::Dropped(Drop::TooBig);
    }
    table.add(&format!("{name}_later_fragment_too_big_is_dropped"), steps);
    // One datagram in however many fragments shows nothing of who sent it.
    let mut steps = datagram(1);
    steps.push(Step::Known {
        src: udp.client,
        dst: udp.vip,
        udp: true,
    });
    table.add(&format!("{name}_fragments_establish_nothing"), steps);
    if table.addresses.v6 {
        let behind = |flags| {
            let options = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
            way.tcp.request(flags).with(|p| p.extensions = options)
        };
        let extended = |flags| {
            let packet = behind(flags);
            let inner = packet.moved(world::TO_BACKEND, packet.src, packet.dst);
            let out = match way.outer {
                None => inner.bytes(),
                Some(outer) => inside(&inner, outer, label(&packet)),
            };
            Step::FromClient(packet.bytes(), Expect::Redirect(out))
        };
        table.add(
            &format!("{name}_extension_headers_are_kept"),
            vec![extended(SYN), extended(ACK), extended(ACK)],
        );
    }
}

/// A SYN on the tuple of a connection whose end nobody saw, as the backend's answers do not come by.
fn again(table: &mut Table) {
    let a = table.addresses;
    let to = |client, port| Connection::new(a.client(client), a.vip(port), a.vip(port));
    let forwards = |packet: Packet| {
        let out = sent(&packet, None);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    let opened = |tcp: &Connection| [SYN, ACK].map(|flags| forwards(tcp.request(flags)));
    let limited = |tcp: &Connection| {
        let packet = tcp.request(SYN).bytes();
        Step::FromClient(packet, Expect::Dropped(Drop::RateLimited))
    };
    let tcp = to(41_001, port::L2_RATE);
    for (after, ends) in [("an_open_connection", false), ("the_clients_reset", true)] {
        let mut steps = opened(&tcp).to_vec();
        if ends {
            steps.push(forwards(tcp.request(RST)));
        }
        steps.extend([
            limited(&tcp),
            // The former one goes on, if it was a stranger's SYN.
            forwards(tcp.request(ACK)),
            Step::Second,
            forwards(tcp.request(SYN)),
            limited(&tcp),
            forwards(tcp.request(ACK)),
        ]);
        table.add(&format!("l2_rate_counts_a_syn_behind_{after}"), steps);
    }
    let (first, second) = (to(41_001, port::L2_LIMIT), to(41_002, port::L2_LIMIT));
    let mut steps = opened(&first).to_vec();
    steps.push(forwards(first.request(SYN)));
    table.add(
        "l2_connection_in_place_of_another_is_within_the_limit",
        steps,
    );
    let mut steps = opened(&first).to_vec();
    steps.push(forwards(first.request(RST)));
    steps.extend(opened(&second));
    let packet = first.request(SYN);
    let answer = reset_of(&packet);
    steps.push(Step::FromClient(packet.bytes(), Expect::Transmit(answer)));
    table.add("l2_limit_holds_for_a_connection_behind_a_reset", steps);
}

fn shapes(table: &mut Table) {
    let a = table.addresses;
    for way in ways(table) {
        let tagged = way.tcp.request(SYN).with(|p| p.tags = vec![(0x8100, 5)]);
        table.add(
            &format!("{}_tagged_frame_passes", way.name),
            vec![passes(tagged)],
        );
    }
    // Of two backends each keeps its connection.
    let to = |client| Connection::new(a.client(client), a.vip(port::L2_TWO), a.vip(port::L2_TWO));
    let (first, second) = (to(40_080), to(40_081));
    let direct = |packet: Packet| {
        let out = sent(&packet, None);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    table.add(
        "l2_two_connections",
        vec![
            direct(first.request(SYN)),
            direct(second.request(SYN)),
            direct(first.request(ACK)),
            direct(second.request(ACK)),
        ],
    );
    let way = &ways(table)[1];
    let padded = |flags| way.tcp.request(flags).with(|p| p.trailer = vec![0; 6]);
    let padding = |flags| {
        let packet = padded(flags);
        let mut out = sent(&packet, way.outer);
        out.extend(&packet.trailer);
        // Built without the padding inside, which stays behind the packet.
        let bare = sent(&way.tcp.request(flags), way.outer).len();
        out.truncate(bare + 6);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    table.add("tunnel_padded_frame", vec![padding(SYN), padding(ACK)]);
}

fn next_hops(table: &mut Table) {
    let a = table.addresses;
    let to = |port| Connection::new(a.client(40_090), a.vip(port), a.vip(port)).request(SYN);
    for (name, port) in [("router", port::L2_ROUTED), ("the_node", port::L2_LOCAL)] {
        table.add(
            &format!("l2_backend_behind_{name}_is_refused"),
            vec![Step::FromClient(
                to(port).bytes(),
                Expect::Dropped(Drop::NotNeighbour),
            )],
        );
    }
    table.add(
        "tunnel_to_black_hole_is_unroutable",
        vec![Step::FromClient(
            to(port::TUNNEL_BLACK_HOLE).bytes(),
            Expect::Dropped(Drop::Unroutable),
        )],
    );
    // The kernel writes the MACs; until then they are the client's.
    let packet = to(port::L2_UNRESOLVED);
    let out = packet.moved(packet.macs, packet.src, packet.dst).bytes();
    table.add(
        "l2_unresolved_neighbour",
        vec![Step::FromClient(packet.bytes(), Expect::Resolve(out))],
    );
    let packet = to(port::TUNNEL_UNRESOLVED);
    let inner = packet.moved(packet.macs, packet.src, packet.dst);
    let outer = Outer::between(a.node(0), a.backend(99, 0));
    let out = inside(&inner, outer, label(&packet));
    table.add(
        "tunnel_unresolved_neighbour",
        vec![Step::FromClient(packet.bytes(), Expect::Resolve(out))],
    );
    // Its outer packet is the kernel's to take in; the hop to there was this one.
    let packet = to(port::TUNNEL_LOCAL);
    let inner = packet.moved(packet.macs, packet.src, packet.dst);
    let outer = Outer::between(a.node(0), a.second_node(0));
    let out = inside(&inner, outer, label(&packet));
    // Nor does an error about an answer wait for a hop.
    let error = too_big(a, packet.src, packet.dst, 1000);
    let inner = error.moved(error.macs, error.src, error.dst);
    let passed_on = inside(&inner, outer, label(&packet));
    table.add(
        "tunnel_that_ends_on_the_node",
        vec![
            Step::FromClient(packet.bytes(), Expect::Stack(out)),
            Step::FromClient(error.bytes(), Expect::Stack(passed_on)),
        ],
    );
    // A way narrower than its device.
    let connection = Connection::new(
        a.client(40_090),
        a.vip(port::TUNNEL_NARROW),
        a.vip(port::TUNNEL_NARROW),
    );
    let outer = Outer::between(a.node(0), a.narrow(0));
    let largest = NARROW_MTU as usize - outer.overhead();
    let headers = if a.v6 { 60 } else { 40 };
    let sized = |length: usize| {
        connection
            .request(ACK)
            .with(|p| p.payload = vec![1; length - headers])
    };
    let forwards = |packet: Packet| {
        let out = sent(&packet, Some(outer));
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    table.add_narrow(
        "tunnel_over_a_narrow_route",
        vec![
            forwards(connection.request(SYN)),
            forwards(sized(largest)),
            answered(&sized(largest + 1), largest),
            forwards(sized(largest)),
            answered(&sized(largest + 1), largest),
        ],
    );
}

/// Flows of one client come from different addresses in the tunnel, each always from its own.
fn spread(table: &mut Table) {
    let a = table.addresses;
    let prefix: IpAddr = world::TUNNEL_PREFIX[usize::from(a.v6)]
        .parse()
        .expect("an address");
    let mut sources = std::collections::HashSet::new();
    let mut steps = Vec::new();
    for client in 41_000..41_016 {
        let connection =
            Connection::new(a.client(client), a.vip(port::SPREAD), a.vip(port::SPREAD));
        for flags in [SYN, ACK, ACK | PSH] {
            let packet = connection.request(flags);
            let bits = label(&packet) & world::TUNNEL_SPREAD.to_be();
            let src = match prefix {
                IpAddr::V4(prefix) => {
                    let word = V4::from(prefix).0 | bits;
                    V4(word).ip()
                }
                IpAddr::V6(prefix) => {
                    let [x, y, z, word] = V6::from(prefix).0;
                    V6([x, y, z, word | bits]).ip()
                }
            };
            sources.insert(src);
            let outer = Outer {
                src,
                dst: a.backend(27, 0).ip(),
            };
            let out = sent(&packet, Some(outer));
            steps.push(Step::FromClient(packet.bytes(), Expect::Redirect(out)));
        }
    }
    assert!(sources.len() >= 15, "{} sources of 16 flows", sources.len());
    table.add("tunnel_sources_are_spread", steps);
}
