//! Random histories of flows, after each packet of which the path and a model of it must agree:
//! `lb_tests::packets::flow_life`. `PROPTEST_CASES=20000` for a longer run.

use std::{cell::RefCell, collections::BTreeMap};

use lb_common::abi::backend_state;
use lb_tests::packets::flow_life::{self, Ack, Answer, Event, History, OTHER_STATES, Sent};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// A few seconds' worth.
const CASES: u32 = 2000;

/// What histories come by, sooner or later; else the model checks less than it seems to.
const REACHED: [&str; 20] = [
    "answered",
    "drawn",
    "drawn again",
    "established by the backend",
    "established by the client",
    "goes on",
    "goes on without a place of its own",
    "late answer dropped",
    "no backend",
    "no port left",
    "no room for the backend's proof",
    "no room for the client's proof",
    "of no connection",
    "refused for a second",
    "reset by the backend",
    "reset by the node",
    "reset of nothing",
    "with a closed connection's port",
    "with a handshake's port",
    "with another port",
];

#[test]
fn every_history_goes_as_the_model_says() {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let mut config = Config {
        // Counterexamples become named tests.
        failure_persistence: None,
        ..Config::default()
    };
    if !asked {
        config.cases = CASES;
    }
    let reached = RefCell::new(BTreeMap::new());
    let outcome = TestRunner::new(config).run(&history(), |history| {
        let names = flow_life::run(&history).map_err(TestCaseError::fail)?;
        for name in names {
            *reached.borrow_mut().entry(name).or_insert(0) += 1;
        }
        Ok(())
    });
    println!("histories that came by: {:#?}", reached.borrow());
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let missed: Vec<_> = REACHED
        .iter()
        .filter(|name| !reached.borrow().contains_key(*name))
        .collect();
    assert!(missed.is_empty(), "no history came by {missed:?}");
}

fn history() -> impl Strategy<Value = History> {
    let rarely = || prop_oneof![2 => Just(false), 1 => Just(true)];
    let world = (any::<bool>(), rarely(), rarely(), rarely());
    (world, vec(event(), 1..60)).prop_map(|((v6, is_tight, replaces, snat), events)| History {
        v6,
        is_tight,
        replaces_flows: replaces && !is_tight,
        snat,
        events,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let name = || (0..3_usize, 0..3_usize);
    let slot = || 0..6_usize;
    prop_oneof![
        10 => (name(), sent()).prop_map(|((client, service), sent)| Event::Client {
            client,
            service,
            sent,
        }),
        8 => (name(), answer()).prop_map(|((client, service), answer)| Event::Backend {
            client,
            service,
            answer,
        }),
        4 => name().prop_map(|(client, service)| Event::Open { client, service }),
        3 => prop::sample::select(vec![60, 125, 300, 1000]).prop_map(Event::Wait),
        1 => Just(Event::Epoch),
        2 => (slot(), state()).prop_map(|(slot, state)| Event::State { slot, state }),
        2 => (slot(), 0..3_usize, 0..3_usize, any::<bool>(), any::<bool>()).prop_map(
            |(slot, service, host, snat, resets)| Event::Give {
                slot,
                service,
                host,
                snat,
                resets,
            }
        ),
        1 => (0..3_usize, vec(slot(), 0..6)).prop_map(|(service, slots)| Event::Table {
            service,
            slots,
        }),
        1 => name().prop_map(|(client, service)| Event::Age { client, service }),
    ]
}

fn state() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(backend_state::ACTIVE),
        prop::sample::select(OTHER_STATES.to_vec()),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        3 => Just(Sent::Syn),
        4 => ack().prop_map(Sent::Ack),
        2 => ack().prop_map(Sent::Fin),
        1 => Just(Sent::Rst),
    ]
}

fn ack() -> impl Strategy<Value = Ack> {
    prop_oneof![
        3 => Just(Ack::Right),
        1 => Just(Ack::Ahead),
        1 => Just(Ack::Behind),
        1 => Just(Ack::Beyond),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let number = || 0..3_usize;
    prop_oneof![
        3 => number().prop_map(Answer::SynAck),
        3 => number().prop_map(Answer::Ack),
        2 => number().prop_map(Answer::Fin),
        1 => Just(Answer::Rst),
    ]
}
