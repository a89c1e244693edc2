//! Every reason to drop a packet is counted by some test, and documented. One that is added without fails
//! here, as a metric does in `metrics.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use lb_common::abi::Drop;
use lb_tests::packets::{Action, Runner, Step, cases, slice::Slice};

/// Reasons that no packet case can bring about, and the test that does: its file and its name.
const ELSEWHERE: [(Drop, &str, &str); 5] = [
    // The byte slice puts nothing aside, and its tables have room for whatever cases enter. The
    // differential runs have both.
    (
        Drop::FragmentHeld,
        "tests/differ.rs",
        "tc_agrees_with_the_byte_slice",
    ),
    (
        Drop::FragmentResumed,
        "tests/differ.rs",
        "tc_agrees_with_the_byte_slice",
    ),
    (
        Drop::FlowTableFull,
        "tests/differ.rs",
        "xdp_agrees_with_the_byte_slice",
    ),
    (
        Drop::HandshakeTableFull,
        "tests/counted.rs",
        "a_table_of_handshakes_that_refuses_drops",
    ),
    (
        Drop::FrameAccess,
        "tests/counted.rs",
        "a_packet_without_room_for_its_answer_is_dropped",
    ),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reasons that the case table counts on the byte slice, each with a case.
fn counted() -> BTreeMap<u32, String> {
    let mut slice = Slice::default();
    let mut counted = BTreeMap::new();
    for case in cases::all() {
        slice.reset();
        for step in case.steps {
            let outcome = match &step {
                Step::FromClient(packet, _) => slice.run(true, packet),
                Step::FromBackend(packet, _) => slice.run(false, packet),
                step => {
                    step.set_up(&mut slice);
                    continue;
                }
            };
            for reason in outcome.counted {
                counted.entry(reason as u32).or_insert(case.name.clone());
            }
        }
    }
    counted
}

#[test]
fn every_reason_to_drop_is_counted_by_a_test() {
    let counted = counted();
    for reason in Drop::ALL {
        let elsewhere = ELSEWHERE.iter().find(|(other, ..)| *other == reason);
        match (counted.get(&(reason as u32)), elsewhere) {
            (Some(_), None) => {}
            (None, Some((_, file, test))) => {
                let text = read(file);
                assert!(
                    text.contains(&format!("fn {test}(")),
                    "{file} has no {test}"
                );
            }
            (Some(case), Some(_)) => panic!("{reason:?}: {case} counts it, take it off the list"),
            (None, None) => panic!("{reason:?}: no packet case counts it"),
        }
    }
}

#[test]
fn a_table_of_handshakes_that_refuses_drops() {
    let mut slice = Slice::default();
    slice.refuse_handshakes();
    let mut reasons = BTreeSet::new();
    for case in cases::all() {
        slice.reset();
        for step in &case.steps {
            if let Step::FromClient(packet, _) = step {
                let outcome = slice.run(true, packet);
                if outcome.counted.contains(&Drop::HandshakeTableFull) {
                    assert_eq!(outcome.action, Action::Drop, "{}", case.name);
                    assert_eq!(
                        slice.entries_of_flows(),
                        0,
                        "{}: an entry is left",
                        case.name
                    );
                    reasons.insert(case.name.clone());
                }
            }
        }
    }
    assert!(reasons.len() > 20, "{reasons:?}");
}

#[test]
fn a_packet_without_room_for_its_answer_is_dropped() {
    let mut slice = Slice::default();
    slice.refuse_growth();
    let mut dropped = 0;
    for case in cases::all() {
        slice.reset();
        for step in &case.steps {
            if let Step::FromClient(packet, _) = step {
                let outcome = slice.run(true, packet);
                if outcome.counted.contains(&Drop::FrameAccess) {
                    assert_eq!(outcome.action, Action::Drop, "{}", case.name);
                    dropped += 1;
                }
            }
        }
    }
    assert!(dropped > 20, "{dropped}");
}

/// Names in backticks of a table's first column, in the README's chapter on metrics.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = read("../README.md");
    let table = text
        .split_once(heading)
        .expect("the README has this table")
        .1;
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut names = BTreeSet::new();
    for row in rows {
        let first = row.split('|').nth(1).unwrap_or_default();
        names.extend(first.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    names
}

#[test]
fn the_documentation_has_every_reason_to_drop_and_no_other() {
    let reasons: BTreeSet<String> = Drop::ALL.map(|reason| reason.name().to_owned()).into();
    assert_eq!(documented("| drop reason | |"), reasons);
}
