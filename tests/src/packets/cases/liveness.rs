//! TCP connections whose backend drains, fails or is removed.

use super::tcp::web;
use super::{Connection, Table, reset_of};
use crate::packets::build::{ACK, FIN, RST, SYN};
use crate::packets::world::{port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, backend_state};

pub(super) fn cases(table: &mut Table) {
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
        let answer = Expect::Transmit(reset_of(&syn));
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
            Step::FromClient(syn.bytes(), answer.clone()),
        ];
        table.add(
            &format!("tcp_retransmitted_syn_leaves_backend_{name}"),
            steps,
        );
        // The client takes the answer that it is about to see.
        let mut steps = vec![
            web.forwards(web.request(SYN)),
            web.returns(web.reply(SYN | ACK)),
            state(value),
        ];
        let mut later = steps.clone();
        if value == backend_state::CLOSED {
            steps.push(Step::FromClient(syn.bytes(), answer.clone()));
        } else {
            steps.extend([
                web.forwards(web.request(SYN)),
                web.returns(web.reply(SYN | ACK)),
                web.forwards(web.request(ACK)),
                web.returns(web.reply(ACK)),
            ]);
        }
        table.add(
            &format!("tcp_syn_crosses_the_answer_of_backend_{name}"),
            steps,
        );
        // It did not.
        later.extend([Step::Second, Step::FromClient(syn.bytes(), answer)]);
        table.add(
            &format!("tcp_retransmitted_syn_leaves_answered_backend_{name}"),
            later,
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
            Expect::Transmit(reset_of(&ack)),
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
        Expect::Transmit(reset_of(&ack)),
    ));
    steps.push(Step::FromBackend(
        web.reply(ACK).bytes(),
        Expect::Dropped(Drop::BackendRemoved),
    ));
    steps.push(web.forwards(web.request(SYN)));
    table.add("tcp_removed_backend_resets_then_draws_anew", steps);
}
