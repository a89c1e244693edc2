//! Random histories of the whole controller: what people say, what sources and probes find, time,
//! scans, calls that fail and crashes. After each step the kernel must hold what a [`model`] makes of the
//! three layers. `PROPTEST_CASES=20000` for a longer run.
//!
//! The controller's task is driven by hand: it gets the inputs that it would get from its channels and
//! timers, one at a time and in the order in which it takes them. Sources never ask, and probes are
//! never sent.

mod kernel;
mod life;
mod model;
mod operations;

use std::{cell::RefCell, collections::BTreeMap};

use proptest::test_runner::{Config, TestCaseError, TestRunner};

use self::{
    life::Life,
    operations::{Draft, File, History, Operation},
};

/// A few seconds' worth.
const CASES: u32 = 400;
/// Of so many cases each, until histories came by all that they should. The rarest comes five times in one.
const BATCHES: u32 = 5;

/// What histories come by, sooner or later; else the model checks less than it seems to.
const REACHED: [&str; 27] = [
    "a backend removed with connections keeps its slot",
    "a call fails",
    "a call fails at the start",
    "a configured backend goes and its override stays",
    "a configured backend goes with its override",
    "a deadline passes",
    "a disk is full",
    "a found backend goes and its override stays",
    "a found backend goes with its override",
    "a full disk takes an override back",
    "a missing instance is held",
    "a request is granted",
    "a request is refused",
    "a scan ends after changes",
    "a slot is freed",
    "a source comes in another's place",
    "at rest",
    "crash",
    "crash before a source in another's place answers",
    "crash before a source in another's place is saved",
    "crash while the kernel is behind",
    "crash with another file",
    "granted while the kernel is behind",
    "probes change a state",
    "the clock is set while a drain has time left",
    "the override of a backend that is away goes",
    "the override of a backend that is away stays",
];

#[test]
fn the_kernel_holds_what_the_model_says() {
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
    let mut missed = REACHED.to_vec();
    for _ in 0..BATCHES {
        let outcome = TestRunner::new(config.clone()).run(&operations::history(), |history| {
            let names = run(&history).map_err(TestCaseError::fail)?;
            for name in names {
                *reached.borrow_mut().entry(name).or_insert(0) += 1;
            }
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
        missed.retain(|name| !reached.borrow().contains_key(name));
        if missed.is_empty() {
            break;
        }
    }
    println!("histories that came by: {:#?}", reached.borrow());
    assert!(missed.is_empty(), "no history came by {missed:?}");
}

/// Gives what was reached.
fn run(history: &History) -> Result<Vec<&'static str>, String> {
    let mut life = Life::new(&history.first)?;
    for (number, operation) in history.operations.iter().enumerate() {
        life.step(operation)
            .map_err(|fault| format!("operation {}, {operation:?}: {fault}", number + 1))?;
    }
    life.end().map_err(|fault| format!("at the end: {fault}"))
}

/// A call of those that an operation leads to fails, each in turn.
fn run_with_failures(first: &File, operations: impl Fn(Operation) -> Vec<Operation>) {
    for call in 1..12 {
        let history = History {
            first: first.clone(),
            operations: operations(Operation::FailCall(call)),
        };
        if let Err(fault) = run(&history) {
            panic!("call {call} fails: {fault}");
        }
    }
}

/// The first write of an eviction comes ahead of its pass, and counts if that fails.
#[test]
fn a_backend_that_recovers_before_its_eviction_is_complete_serves_again() {
    let first = File(vec![Draft::probed(0, &[0, 1]), Draft::probed(1, &[0])]);
    let probe = |is_up| Operation::Probe(vec![Some(is_up), Some(true), None, None, None]);
    run_with_failures(&first, |fail| {
        vec![
            probe(true),
            fail,
            probe(false),
            probe(true),
            Operation::Quiet,
        ]
    });
}

/// A scan under way missed the connections that a slot took while it could not be retired.
#[test]
fn a_slot_is_freed_only_by_a_scan_that_began_after_it_was_retired() {
    let first = File(vec![Draft::trusted(0, &[0, 1])]);
    let without = File(vec![Draft::trusted(0, &[1])]);
    run_with_failures(&first, |fail| {
        vec![
            Operation::Quiet,
            fail,
            Operation::Reload(without.clone()),
            Operation::ScanBegins,
            Operation::Flows(u16::MAX),
            Operation::Retry,
            Operation::ScanEnds,
        ]
    });
}
