//! The programs in the kernel do what the path does on a byte slice, whatever comes in. A short run;
//! `make fuzz` is the long one.

use std::thread;

use lb_common::abi::Drop;
use lb_tests::{
    note,
    packets::{
        differ::{self, Limit},
        kernel::Hook,
    },
};

/// Of each hook.
const PACKETS: u64 = 100_000;

fn agrees(hook: Hook, cpu: usize) {
    // The namespace is the thread's, and goes with it.
    let run = thread::spawn(move || differ::run(hook, cpu, 1, Limit::Packets(PACKETS)));
    let report = match run.join().expect("no panic") {
        Ok(report) => report,
        Err(error) => panic!("{hook:?}: {error:#}"),
    };
    note(format!(
        "{hook:?}: {} packets in {} sequences agree, {} of them handled",
        report.packets, report.sequences, report.handled
    ));
    assert!(report.packets >= PACKETS);
    // Packets that all pass would agree too.
    assert!(report.handled > report.packets / 4, "{report:?}");
    let reasons = Drop::ALL.into_iter();
    let missing: Vec<Drop> = reasons
        .filter(|reason| report.drops[*reason as usize] == 0 && !is_out_of_reach(hook, *reason))
        .collect();
    assert_eq!(
        missing,
        [],
        "{hook:?}: reasons that no packet was dropped for"
    );
}

/// What no sequence brings about.
fn is_out_of_reach(hook: Hook, reason: Drop) -> bool {
    match reason {
        // The map of handshakes evicts, and no packet of a test run lacks room.
        Drop::HandshakeTableFull | Drop::FrameAccess => true,
        Drop::FragmentHeld | Drop::FragmentResumed => hook == Hook::Xdp,
        _ => false,
    }
}

#[test]
fn xdp_agrees_with_the_byte_slice() {
    agrees(Hook::Xdp, 0);
}

#[test]
fn tc_agrees_with_the_byte_slice() {
    agrees(Hook::Tc, 0);
}
