//! Segments that name a client who did not send them. Nothing tells them from the client's own, so
//! none of them may cost the client its established connection.

use super::{Connection, Table};
use crate::packets::build::{ACK, FIN, PSH, Packet, RST, SYN};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, backend_state};

pub(super) fn cases(table: &mut Table) {
    ends(table);
    drained(table);
    again(table);
    direct(table);
}

/// The first of two backends has the connection; another draw would give the second.
fn first_of_two(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(
        a.client(40_001),
        a.vip(port::ROUND_ROBIN),
        a.backend(9, 8080),
    )
}

fn to_second(table: &Table, first: &Connection) -> Connection {
    Connection {
        backend: table.addresses.backend(10, 8080),
        ..first.clone()
    }
}

/// What client and backend still say to each other.
fn goes_on(connection: &Connection) -> [Step; 2] {
    [
        connection.forwards(connection.request(ACK | PSH)),
        connection.returns(connection.reply(ACK)),
    ]
}

fn ends(table: &mut Table) {
    let first = first_of_two(table);
    let forged = |flags| first.forwards(first.request(flags));
    for (name, flags) in [
        ("syn", &[SYN][..]),
        ("fin_and_syn", &[FIN | ACK, SYN]),
        ("reset_and_syn", &[RST, SYN]),
        ("fin_reset_and_syn", &[FIN | ACK, RST | ACK, SYN]),
    ] {
        let mut steps = first.opened();
        steps.extend(flags.iter().map(|flags| forged(*flags)));
        steps.extend(goes_on(&first));
        table.add(&format!("tcp_forged_{name}_end_no_connection"), steps);
    }
    // What the backend ended is over: a SYN begins something else.
    let second = to_second(table, &first);
    for (name, flags) in [("fin", FIN | ACK), ("reset", RST)] {
        let mut steps = first.opened();
        steps.push(first.returns(first.reply(flags)));
        steps.extend(second.opened());
        steps.extend(goes_on(&second));
        table.add(
            &format!("tcp_syn_after_the_backends_{name}_is_drawn"),
            steps,
        );
    }
    // A reset that is followed by more was none, whoever it named.
    let mut steps = first.opened();
    steps.push(first.returns(first.reply(RST)));
    steps.push(first.returns(first.reply(ACK)));
    steps.push(forged(SYN));
    steps.extend(goes_on(&first));
    table.add("tcp_reset_of_the_backends_is_taken_back", steps);
}

/// A backend that gets no new connections keeps those that it has.
fn drained(table: &mut Table) {
    let first = first_of_two(table);
    let drains = Step::Backend {
        slot: table.slot(slot::ROUND_A),
        state: backend_state::DRAINING,
        generation: 1,
    };
    let mut steps = first.opened();
    steps.push(drains);
    steps.push(first.forwards(first.request(SYN)));
    steps.extend(goes_on(&first));
    table.add("tcp_forged_syn_leaves_a_draining_backend_alone", steps);
}

/// The client begins anew with a port whose connection the backend may still have.
fn again(table: &mut Table) {
    let a = table.addresses;
    let first = first_of_two(table);
    let reopened = |connection: &Connection| {
        [
            connection.forwards(connection.request(SYN)),
            connection.returns(connection.reply(SYN | ACK)),
            connection.forwards(connection.request(ACK)),
        ]
    };
    for (name, end) in [("reset", RST), ("fin", FIN | ACK)] {
        let mut steps = first.opened();
        steps.push(first.forwards(first.request(end)));
        steps.extend(reopened(&first));
        steps.extend(goes_on(&first));
        table.add(&format!("tcp_port_again_after_the_clients_{name}"), steps);
    }
    // The backend's SYN-ACK takes the old connection's ends back: with the backend's FIN the new one is
    // closed by one side, and its port is nobody else's, as it would be if it were closed by both.
    let snat = Connection::new(a.client(40_001), a.vip(port::SNAT), a.backend(2, 8443))
        .seen_as(a.node(world::SNAT_PORT));
    let other = Connection {
        client: a.client(40_002),
        ..snat.clone()
    };
    let mut steps = snat.opened();
    steps.push(snat.forwards(snat.request(FIN | ACK)));
    steps.extend(reopened(&snat));
    steps.push(snat.returns(snat.reply(FIN | ACK)));
    steps.push(Step::Second);
    steps.push(Step::FromClient(
        other.request(SYN).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    ));
    steps.push(snat.forwards(snat.request(ACK)));
    table.add("tcp_connection_on_an_old_port_is_young", steps);
    // It does not without that: the backend did not agree to anything.
    let mut steps = snat.opened();
    steps.push(snat.forwards(snat.request(FIN | ACK)));
    steps.push(snat.forwards(snat.request(SYN)));
    steps.push(snat.returns(snat.reply(FIN | ACK)));
    steps.push(Step::Second);
    steps.extend(other.opened());
    table.add("tcp_syn_alone_takes_no_end_back", steps);
}

/// With direct return the backend's end is never seen.
fn direct(table: &mut Table) {
    let a = table.addresses;
    let l2 = Connection::new(a.client(40_070), a.vip(port::L2), a.vip(port::L2));
    let forwards = |flags| {
        let packet: Packet = l2.request(flags);
        let out = packet.moved(world::TO_BACKEND, l2.client, l2.vip).bytes();
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    };
    let drains = Step::Backend {
        slot: table.slot(slot::L2),
        state: backend_state::DRAINING,
        generation: 1,
    };
    for (name, end) in [("fin", FIN | ACK), ("reset", RST)] {
        let steps = vec![
            forwards(SYN),
            forwards(ACK),
            drains.clone(),
            forwards(end),
            forwards(SYN),
            forwards(ACK),
        ];
        table.add(&format!("l2_forged_{name}_and_syn_end_nothing"), steps);
    }
}
