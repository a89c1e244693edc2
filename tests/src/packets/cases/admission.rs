//! Whom services let in: source lists, rates, limits, affinity.

use super::{Connection, Table, reset_of};
use crate::packets::build::{ACK, FIN, RST, SYN};
use crate::packets::world::{AFFINITY_SECONDS, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, V4, V6, backend_state};

pub(super) fn cases(table: &mut Table) {
    sources(table);
    rates(table);
    limits(table);
    again(table);
    affinity(table);
}

/// The connection's first packet is dropped.
fn refused(connection: &Connection, reason: Drop) -> Step {
    let packet = connection.request(SYN).bytes();
    Step::FromClient(packet, Expect::Dropped(reason))
}

/// The connection's first packet is answered with a reset.
fn reset(connection: &Connection) -> Step {
    let packet = connection.request(SYN);
    let answer = reset_of(&packet);
    Step::FromClient(packet.bytes(), Expect::Transmit(answer))
}

fn begun(connection: &Connection) -> Step {
    connection.forwards(connection.request(SYN))
}

fn sources(table: &mut Table) {
    let a = table.addresses;
    let denied = Drop::SourceDenied;
    let allowing = |client| Connection::new(client, a.vip(port::ALLOWED), a.backend(40, 8080));
    let denying = |client| Connection::new(client, a.vip(port::DENIED), a.backend(41, 8080));
    let (inside, outside) = (a.client(40_001), a.stranger(40_001));
    let (blocked, spared) = (a.client_number(77, 40_001), a.client_number(65, 40_001));
    table.add("allowed_source_is_let_in", allowing(inside).opened());
    table.add(
        "unlisted_source_is_refused_where_some_are_allowed",
        vec![refused(&allowing(outside), denied)],
    );
    table.add(
        "unlisted_source_is_let_in_where_some_are_denied",
        vec![begun(&denying(outside))],
    );
    table.add(
        "denied_part_of_an_allowed_network_is_refused",
        vec![
            refused(&allowing(blocked), denied),
            refused(&denying(blocked), denied),
        ],
    );
    table.add(
        "allowed_part_of_a_denied_network_is_let_in",
        vec![begun(&allowing(spared)), begun(&denying(spared))],
    );
    let edges = [63, 64, 79, 80].map(|last| {
        let connection = allowing(a.client_number(last, 40_001));
        match last {
            64..=79 => refused(&connection, denied),
            _ => begun(&connection),
        }
    });
    table.add("denied_network_has_exact_edges", edges.into());
    table.add(
        "sources_of_one_service_are_not_anothers",
        vec![begun(&Connection::new(
            blocked,
            a.vip(port::WEB),
            a.backend(1, 8080),
        ))],
    );
    let stray = allowing(blocked).request(ACK).bytes();
    table.add(
        "denied_source_cannot_pick_up_in_the_middle",
        vec![Step::FromClient(stray, Expect::Dropped(denied))],
    );
}

fn rates(table: &mut Table) {
    let a = table.addresses;
    let rate = |port| Connection::new(a.client(port), a.vip(port::RATE), a.backend(42, 8080));
    let first = rate(41_001);
    let mut steps = first.opened();
    steps.extend([
        refused(&rate(41_002), Drop::RateLimited),
        // Neither the open connection nor a repeated packet is a new one.
        first.forwards(first.request(ACK)),
        first.returns(first.reply(ACK)),
        refused(
            &Connection::new(
                a.client_number(9, 41_001),
                a.vip(port::RATE),
                a.backend(42, 8080),
            ),
            Drop::RateLimited,
        ),
    ]);
    table.add("rate_is_the_service's", steps);
    table.add(
        "rate_lets_another_in_after_its_time",
        vec![
            begun(&rate(41_001)),
            begun(&rate(41_001)),
            refused(&rate(41_002), Drop::RateLimited),
            Step::Second,
            begun(&rate(41_002)),
            refused(&rate(41_003), Drop::RateLimited),
        ],
    );
    let burst = |port| Connection::new(a.client(port), a.vip(port::BURST), a.backend(57, 8080));
    let over = Drop::RateLimited;
    table.add(
        "burst_is_used_up_and_comes_back_at_the_rate",
        vec![
            begun(&burst(41_001)),
            begun(&burst(41_002)),
            begun(&burst(41_003)),
            refused(&burst(41_004), over),
            Step::Second,
            begun(&burst(41_004)),
            refused(&burst(41_005), over),
        ],
    );
    let dns =
        |port| Connection::new(a.client(port), a.vip(port::DNS_RATE), a.backend(55, 5353)).udp();
    table.add(
        "rate_holds_for_datagrams_of_new_clients",
        vec![
            begun(&dns(41_001)),
            begun(&dns(41_001)),
            refused(&dns(41_002), Drop::RateLimited),
        ],
    );
    let invalid = |connection: &Connection| {
        let packet = connection.request(SYN | FIN).bytes();
        Step::FromClient(packet, Expect::Dropped(Drop::InvalidFlags))
    };
    let from = |client| Connection::new(client, a.vip(port::SOURCE_RATE), a.backend(43, 8080));
    table.add(
        "invalid_flags_take_nothing_of_a_rate",
        vec![
            invalid(&rate(41_001)),
            begun(&rate(41_001)),
            invalid(&from(a.client(41_001))),
            begun(&from(a.client(41_001))),
        ],
    );
    let limited = Drop::SourceRateLimited;
    table.add(
        "source_rate_is_each_client's",
        vec![
            begun(&from(a.client(41_001))),
            refused(&from(a.client(41_002)), limited),
            begun(&from(a.stranger(41_001))),
            refused(&from(a.stranger(41_002)), limited),
            Step::Second,
            begun(&from(a.client(41_002))),
        ],
    );
    let neighbour = from(a.client_number(200, 41_001));
    // One network of 64 bits is one client.
    let second = match a.v6 {
        true => refused(&neighbour, limited),
        false => begun(&neighbour),
    };
    table.add(
        "source_rate_of_a_neighbour",
        vec![begun(&from(a.client(41_001))), second],
    );
}

fn limits(table: &mut Table) {
    let a = table.addresses;
    let to = |port, vip, last| Connection::new(a.client(port), a.vip(vip), a.backend(last, 8080));
    let (first, second) = (to(41_001, port::LIMIT, 44), to(41_002, port::LIMIT, 44));
    let mut steps = first.opened();
    steps.extend([
        reset(&second),
        first.forwards(first.request(ACK)),
        first.returns(first.reply(RST)),
    ]);
    steps.extend(second.opened());
    steps.push(reset(&to(41_003, port::LIMIT, 44)));
    table.add("service_at_its_limit_resets", steps);
    let mut steps = first.opened();
    steps.extend([
        first.returns(first.reply(RST)),
        // It was forged: the connection counts again.
        first.forwards(first.request(ACK)),
        reset(&second),
    ]);
    table.add("forged_reset_makes_no_room", steps);
    // Who never answers holds no place.
    table.add(
        "handshakes_fill_no_limit",
        vec![
            begun(&first),
            begun(&second),
            begun(&to(41_003, port::LIMIT, 44)),
        ],
    );
    let mut steps = to(41_001, port::LIMIT_DROP, 45).opened();
    steps.push(refused(
        &to(41_002, port::LIMIT_DROP, 45),
        Drop::ConnectionLimit,
    ));
    table.add("service_at_its_limit_drops", steps);
    let mut steps = to(41_001, port::BACKEND_LIMIT, 46).opened();
    for port in 41_002..41_008 {
        steps.push(begun(&to(port, port::BACKEND_LIMIT, 47)));
    }
    table.add("backend_at_its_limit_is_passed_over", steps);
    let first = to(41_001, port::BACKEND_FULL, 48);
    let mut steps = first.opened();
    steps.extend([
        reset(&to(41_002, port::BACKEND_FULL, 48)),
        first.forwards(first.request(ACK)),
        first.forwards(first.request(RST)),
        begun(&to(41_002, port::BACKEND_FULL, 48)),
    ]);
    table.add("backends_all_at_their_limit_reset", steps);
    // The same client port begins anew: its former connection no longer counts.
    let mut steps = first.opened();
    steps.extend([
        first.forwards(first.request(RST)),
        first.forwards(first.request(SYN)),
        first.returns(first.reply(SYN | ACK)),
        first.forwards(first.request(ACK)),
        first.forwards(first.request(RST)),
        begun(&to(41_002, port::BACKEND_FULL, 48)),
    ]);
    table.add("reused_port_counts_once", steps);
}

/// On the tuple of a connection whose backend has not ended it.
fn again(table: &mut Table) {
    let a = table.addresses;
    let to = |port, vip, last| Connection::new(a.client(port), a.vip(vip), a.backend(last, 8080));
    for (name, vip, last, reason) in [
        ("rate", port::RATE, 42, Drop::RateLimited),
        (
            "source_rate",
            port::SOURCE_RATE,
            43,
            Drop::SourceRateLimited,
        ),
    ] {
        let connection = to(41_001, vip, last);
        for (after, ends) in [("an_open_connection", false), ("the_clients_reset", true)] {
            let mut steps = connection.opened();
            if ends {
                steps.push(connection.forwards(connection.request(RST)));
            }
            steps.extend([
                refused(&connection, reason),
                // The former one goes on, if it was a stranger's SYN.
                connection.forwards(connection.request(ACK)),
                connection.returns(connection.reply(ACK)),
                Step::Second,
                begun(&connection),
                refused(&connection, reason),
                connection.returns(connection.reply(SYN | ACK)),
                connection.forwards(connection.request(ACK)),
            ]);
            table.add(&format!("{name}_counts_a_syn_behind_{after}"), steps);
        }
    }
    let (first, second) = (to(41_001, port::LIMIT, 44), to(41_002, port::LIMIT, 44));
    let mut steps = first.opened();
    steps.push(begun(&first));
    table.add("connection_in_place_of_another_is_within_the_limit", steps);
    let mut steps = first.opened();
    steps.push(first.forwards(first.request(RST)));
    steps.extend(second.opened());
    steps.push(reset(&first));
    table.add("limit_holds_for_a_connection_behind_a_reset", steps);
}

fn affinity(table: &mut Table) {
    let a = table.addresses;
    let (first, second) = (table.slot(slot::AFFINITY_A), table.slot(slot::AFFINITY_B));
    let to = |client, last| Connection::new(client, a.vip(port::AFFINITY), a.backend(last, 8080));
    let mine = |port, last| begun(&to(a.client(port), last));
    let other = |port, last| begun(&to(a.client_number(9, port), last));
    table.add(
        "client_keeps_its_backend",
        vec![
            mine(41_001, 49),
            mine(41_002, 49),
            other(41_001, 50),
            mine(41_003, 49),
            other(41_002, 50),
        ],
    );
    let mut steps = vec![
        mine(41_001, 49),
        other(41_001, 50),
        begun(&to(a.client_number(10, 41_001), 49)),
    ];
    steps.extend((0..AFFINITY_SECONDS).map(|_| Step::Second));
    steps.extend([mine(41_002, 50), mine(41_003, 50)]);
    table.add("client_is_drawn_anew_after_its_time", steps);
    let set = |slot, state, generation| Step::Backend {
        slot,
        state,
        generation,
    };
    for (name, change) in [
        ("down", set(first, backend_state::DOWN, 1)),
        ("draining", set(first, backend_state::DRAINING, 1)),
    ] {
        table.add(
            &format!("client_of_a_{name}_backend_gets_another_for_good"),
            vec![
                mine(41_001, 49),
                change,
                mine(41_002, 50),
                set(first, backend_state::ACTIVE, 1),
                mine(41_003, 50),
            ],
        );
    }
    // Drawn anew, it gets what the cursor says.
    table.add(
        "client_of_a_former_owner_of_the_slot_is_drawn_anew",
        vec![
            mine(41_001, 49),
            set(first, backend_state::ACTIVE, 2),
            mine(41_002, 50),
            set(second, backend_state::ACTIVE, 2),
            mine(41_003, 49),
        ],
    );
    let dns = |client, last| {
        begun(&Connection::new(client, a.vip(port::DNS_AFFINITY), a.backend(last, 5353)).udp())
    };
    table.add(
        "udp_client_keeps_its_backend",
        vec![
            dns(a.client(41_001), 53),
            dns(a.client(41_002), 53),
            dns(a.client_number(9, 41_001), 54),
            dns(a.client(41_003), 53),
        ],
    );
    // Without a memory of the client, as on another node: by its address, whatever its port.
    let mut steps = Vec::new();
    for last in 1..6 {
        let client = a.client_number(last, 41_000 + u16::from(last));
        let hash = match client.ip() {
            std::net::IpAddr::V4(ip) => lb_common::hash::client(V4::from(ip)),
            std::net::IpAddr::V6(ip) => lb_common::hash::client(V6::from(ip)),
        };
        let backend = if (hash as u32 % 5).is_multiple_of(2) {
            51
        } else {
            52
        };
        steps.push(begun(&Connection::new(
            client,
            a.vip(port::AFFINITY_MAGLEV),
            a.backend(backend, 8080),
        )));
    }
    table.add("maglev_draws_at_the_hash_of_the_client", steps);
}
