//! Handshakes of which the table lost one direction, as it does under a flood, and what others make of
//! the tuple that is free then.

use super::{Connection, Table};
use crate::packets::build::{ACK, PSH, SYN};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::{
    abi::{Drop, backend_state},
    path::Budget,
};

pub(super) fn cases(table: &mut Table) {
    restored(table);
    given_away(table);
    late(table);
}

fn evict(udp: bool, src: std::net::SocketAddr, dst: std::net::SocketAddr) -> Step {
    Step::Evict { src, dst, udp }
}

/// Two clients of a service whose backend sees one port only.
fn rivals(table: &Table, udp: bool) -> [Connection; 2] {
    let a = table.addresses;
    let (vip, backend) = match udp {
        true => (a.vip(port::DNS_SNAT), a.backend(14, 5353)),
        false => (a.vip(port::SNAT), a.backend(2, 8443)),
    };
    [40_001, 40_002].map(|client| Connection {
        udp,
        ..Connection::new(a.client(client), vip, backend).seen_as(a.node(world::SNAT_PORT))
    })
}

fn refused(connection: &Connection, flags: u8) -> Step {
    Step::FromClient(
        connection.request(flags).bytes(),
        Expect::Dropped(Drop::SourcePortsExhausted),
    )
}

/// The client's next packet brings the way back of the backend's answer back.
fn restored(table: &mut Table) {
    let a = table.addresses;
    let web = Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080));
    let [snat, _] = rivals(table, false);
    for (name, connection) in [("tcp", &web), ("tcp_snat", &snat)] {
        let mut steps = vec![
            connection.forwards(connection.request(SYN)),
            evict(false, connection.backend, connection.source),
        ];
        steps.extend(connection.opened());
        steps.push(connection.returns(connection.reply(ACK | PSH)));
        table.add(&format!("{name}_repeated_syn_without_reverse_entry"), steps);
    }
    // Answered already, and not yet proven: the backend's answer comes again.
    let steps = vec![
        web.forwards(web.request(SYN)),
        web.returns(web.reply(SYN | ACK)),
        evict(false, web.backend, web.source),
        web.forwards(web.request(SYN)),
        web.returns(web.reply(SYN | ACK)),
        web.forwards(web.request(ACK)),
        web.returns(web.reply(ACK)),
    ];
    table.add("tcp_repeated_answer_without_reverse_entry", steps);
    let dns = Connection::new(a.client(40_053), a.vip(port::DNS), a.backend(13, 5353)).udp();
    let steps = vec![
        dns.forwards(dns.request(0)),
        evict(true, dns.backend, dns.source),
        dns.forwards(dns.request(0)),
        dns.returns(dns.reply(0)),
    ];
    table.add("udp_repeated_datagram_without_reverse_entry", steps);
    let steps = vec![
        dns.forwards(dns.request(0)),
        dns.returns(dns.reply(0)),
        evict(true, dns.client, dns.vip),
        Step::Second,
        dns.returns(dns.reply(0)),
        Step::Unknown {
            src: dns.client,
            dst: dns.vip,
            udp: true,
        },
        dns.forwards(dns.request(0)),
    ];
    table.add("udp_lasting_answer_without_forward_entry", steps);
}

/// Meanwhile another client has the source that the backend sees.
fn given_away(table: &mut Table) {
    let [first, second] = rivals(table, false);
    let lost = evict(false, first.backend, first.source);
    // Neither the same SYN again nor the proof of the answer takes it back, whether the other
    // connection is established or not.
    let mut steps = vec![
        first.forwards(first.request(SYN)),
        lost.clone(),
        second.forwards(second.request(SYN)),
        refused(&first, SYN),
    ];
    steps.extend([
        second.returns(second.reply(SYN | ACK)),
        second.forwards(second.request(ACK)),
        second.returns(second.reply(ACK)),
    ]);
    table.add("tcp_snat_port_of_half_a_handshake_is_given_away", steps);
    let steps = vec![
        first.forwards(first.request(SYN)),
        evict(false, first.client, first.vip),
        Step::Second,
        second.forwards(second.request(SYN)),
        second.returns(second.reply(SYN | ACK)),
    ];
    table.add("tcp_snat_port_of_the_other_half_is_given_away", steps);
    let answered = [
        first.forwards(first.request(SYN)),
        first.returns(first.reply(SYN | ACK)),
        lost,
    ];
    let mut steps = answered.to_vec();
    steps.extend([
        second.forwards(second.request(SYN)),
        refused(&first, ACK),
        second.returns(second.reply(SYN | ACK)),
        second.forwards(second.request(ACK)),
        second.returns(second.reply(ACK)),
    ]);
    table.add("tcp_proof_takes_over_no_handshake", steps);
    let mut steps = answered.to_vec();
    steps.extend(second.opened());
    steps.extend([
        refused(&first, ACK),
        second.returns(second.reply(ACK)),
        second.forwards(second.request(ACK)),
    ]);
    table.add("tcp_proof_takes_over_no_connection", steps);
    let [first, second] = rivals(table, true);
    let asked = |connection: &Connection| {
        [
            connection.forwards(connection.request(0)),
            connection.returns(connection.reply(0)),
        ]
    };
    let mut steps = asked(&first).to_vec();
    steps.push(evict(true, first.backend, first.source));
    steps.extend(asked(&second));
    steps.push(second.forwards(second.request(0)));
    steps.push(refused(&first, 0));
    steps.extend(asked(&second));
    table.add("udp_proof_takes_over_no_connection", steps);
    // A flow without a place of its own keeps its port as long as its backend speaks.
    let mut steps = vec![Step::Budget(Budget::UdpPlaces, 0)];
    for _ in 0..2 {
        steps.extend(asked(&first));
        steps.push(Step::Second);
    }
    steps.extend(asked(&first));
    steps.push(refused(&second, 0));
    steps.push(Step::Second);
    steps.extend(asked(&second));
    table.add("udp_snat_port_of_a_flow_without_a_place_is_kept", steps);
}

/// The client went on with another backend; the first one answers.
fn late(table: &mut Table) {
    let a = table.addresses;
    let to = |last| {
        let backend = a.backend(last, 5353);
        Connection::new(a.client(40_060), a.vip(port::DNS_TWO), backend).udp()
    };
    let (first, second) = (to(19), to(20));
    let slots = [slot::DNS_TWO_A, slot::DNS_TWO_B].map(|slot| table.slot(slot));
    let only = |which: usize| {
        [0, 1].map(|number| Step::Backend {
            slot: slots[number],
            state: match number == which {
                true => backend_state::ACTIVE,
                false => backend_state::DRAINING,
            },
            generation: 1,
        })
    };
    let mut steps = only(0).to_vec();
    steps.push(first.forwards(first.request(0)));
    steps.push(evict(true, first.client, first.vip));
    steps.extend(only(1));
    let answers = [
        Step::Second,
        first.returns(first.reply(0)),
        second.forwards(second.request(0)),
        second.returns(second.reply(0)),
    ];
    steps.extend([
        second.forwards(second.request(0)),
        second.returns(second.reply(0)),
        second.forwards(second.request(0)),
    ]);
    steps.extend(answers.clone());
    table.add(
        "udp_late_answer_takes_nothing_from_an_established_flow",
        steps,
    );
    // Nor from one that is not: the client would be sent back and forth.
    let mut steps = only(0).to_vec();
    steps.extend([
        first.forwards(first.request(0)),
        first.returns(first.reply(0)),
        evict(true, first.client, first.vip),
    ]);
    steps.extend(only(1));
    steps.extend([
        second.forwards(second.request(0)),
        second.returns(second.reply(0)),
    ]);
    steps.extend(answers);
    table.add("udp_late_answer_takes_nothing_from_a_new_flow", steps);
}
