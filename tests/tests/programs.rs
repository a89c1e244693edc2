//! The verifier's work on every program, held to its budget. The virtual machines run this on each
//! kernel (`cargo xtask vm`); docs/kernels.md says what they measured.

use std::collections::BTreeMap;

use lb_tests::{
    note,
    packets::{kernel, verifier},
};
use lb_userspace::datapath;

/// Instructions that the verifier may walk at most. Linux refuses a million.
const BUDGETS: [(&str, u32); 7] = [
    ("lbd_xdp", 100_000),
    ("lbd_xdp_frags", 100_000),
    ("lbd_tc", 100_000),
    ("lbd_egress", 62_000),
    ("lbd_handover", 80_000),
    ("lbd_clock", 100),
    ("lbd_tables", 6_000),
];
/// For programs that look up former flow tables too, during an upgrade.
const UPGRADE_BUDGETS: [(&str, u32); 7] = [
    ("lbd_xdp", 120_000),
    ("lbd_xdp_frags", 120_000),
    ("lbd_tc", 120_000),
    ("lbd_egress", 80_000),
    ("lbd_handover", 90_000),
    ("lbd_clock", 100),
    ("lbd_tables", 6_000),
];

/// Percent of the budgets for kernels before 6.12, whose verifiers find fewer states alike.
const OLDER: u32 = 110;

/// What was measured, by kernel.
const PAGE: &str = include_str!("../../docs/kernels.md");
/// Percent that a program may differ from what stands there.
const TOLERANCE: u32 = 5;

/// One test, for it takes the process's file descriptors away for a while on old kernels.
#[test]
fn programs_load_and_stay_within_their_budgets() {
    let features = datapath::features();
    note(format!("vm: feature {}", hooks(features)));
    let mut excess = Vec::new();
    for (taking_over, budgets) in [(false, BUDGETS), (true, UPGRADE_BUDGETS)] {
        let counts = verifier::measure(0, taking_over).expect("the programs load");
        let suffix = if taking_over { "(upgrade)" } else { "" };
        for (program, count) in &counts {
            note(format!("vm: program {program}{suffix} {count}"));
            excess.extend(outdated(&format!("{program}{suffix}"), *count));
        }
        excess.extend(beyond(
            &counts,
            &budgets,
            if is_older() { OLDER } else { 100 },
        ));
    }
    assert!(excess.is_empty(), "{}", excess.join(", "));
}

/// Says if docs/kernels.md tells something else of this kernel; others it does not know.
fn outdated(program: &str, count: u32) -> Option<String> {
    let told = told(program)?;
    let near = told.abs_diff(count) * 100 <= told * TOLERANCE;
    (!near).then(|| {
        format!(
            "{program}: {count}, docs/kernels.md says {told}: `cargo xtask vm --only programs --write`"
        )
    })
}

fn told(program: &str) -> Option<u32> {
    let cells = |line: &'static str| line.split('|').map(str::trim);
    let head = PAGE.lines().find(|line| line.starts_with("| program |"))?;
    let (major, minor) = kernel::release();
    let column = cells(head).position(|cell| cell == format!("{major}.{minor}"))?;
    let name = format!("| `{program}` |");
    let row = PAGE.lines().find(|line| line.starts_with(&name))?;
    cells(row).nth(column)?.parse().ok()
}

fn is_older() -> bool {
    kernel::release() < (6, 12)
}

fn beyond(counts: &BTreeMap<String, u32>, budgets: &[(&str, u32)], percent: u32) -> Vec<String> {
    let over = |(program, count): (&String, &u32)| {
        let budget = budgets.iter().find(|(name, _)| name == program);
        let budget = budget.map_or(0, |(_, budget)| *budget * percent / 100);
        (*count > budget).then(|| format!("{program}: {count} of {budget}"))
    };
    counts.iter().filter_map(over).collect()
}

fn hooks(features: datapath::Features) -> String {
    let tc = if features.tcx {
        "TCX links"
    } else {
        "clsact filters instead of TCX links"
    };
    let frags = match features.xdp_frags {
        true => "XDP with frames in several buffers",
        false => "XDP without frames in several buffers",
    };
    format!("{tc}; {frags}")
}
