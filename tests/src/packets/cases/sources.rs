//! TCP connections whose source is the node's: which it takes, and when one is free again.

use std::net::{IpAddr, SocketAddr};

use super::tcp::web;
use super::{Connection, Table};
use crate::packets::build::{ACK, FIN, RST, SYN};
use crate::packets::world::{self, port};
use crate::packets::{Expect, Step};
use lb_common::abi::Drop;

fn snat(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_001), a.vip(port::SNAT), a.backend(2, 8443))
        .seen_as(a.node(world::SNAT_PORT))
}

pub(super) fn cases(table: &mut Table) {
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
    pools(table, &first);
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

/// Pools that hold less than they seem to.
fn pools(table: &mut Table, snat: &Connection) {
    let a = table.addresses;
    let exhausted = |connection: &Connection| {
        let packet = connection.request(SYN).bytes();
        Step::FromClient(packet, Expect::Dropped(Drop::SourcePortsExhausted))
    };
    let pool = |first, count| Step::Pool { first, count };
    table.add(
        "tcp_snat_pool_of_no_port",
        vec![pool(world::SNAT_PORT, 0), exhausted(snat)],
    );
    // An answer to a port on which a service listens would be taken for a request.
    table.add(
        "tcp_snat_port_of_a_service_is_not_taken",
        vec![pool(port::WEB, 1), exhausted(snat)],
    );
    let dns = Connection::new(a.client(40_053), a.vip(port::DNS_SNAT), a.backend(14, 5353))
        .udp()
        .seen_as(a.node(port::WEB));
    table.add(
        "udp_snat_port_of_a_tcp_service_is_taken",
        vec![
            pool(port::WEB, 1),
            dns.forwards(dns.request(0)),
            dns.returns(dns.reply(0)),
        ],
    );
    // 80 to 95 are TCP services', 96 is nobody's.
    let free = snat.clone().seen_as(a.node(port::RESETTING + 1));
    let mut steps = vec![pool(port::RESETTING, 2)];
    steps.extend(free.opened());
    table.add("tcp_snat_takes_the_port_beside_a_service", steps);
    // Of the second of two addresses nothing stands there yet.
    let any: IpAddr = if a.v6 { "::" } else { "0.0.0.0" }
        .parse()
        .expect("an address");
    for (name, sources) in [
        ("first", [any, a.second_node(0).ip()]),
        ("second", [a.second_node(0).ip(), any]),
    ] {
        let known = snat.clone().seen_as(a.second_node(world::SNAT_PORT));
        let mut steps = vec![Step::Sources(sources.to_vec())];
        steps.extend(known.opened());
        table.add(&format!("tcp_snat_without_its_{name}_address"), steps);
    }
    let steps = vec![Step::Sources(vec![any, any]), exhausted(snat)];
    table.add("tcp_snat_without_its_addresses", steps);
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
