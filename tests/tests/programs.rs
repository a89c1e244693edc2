//! The verifier's work on every program, held to its budget. The virtual machines run this on each
//! kernel (`cargo xtask vm`); docs/kernels.md says what they measured.

use std::collections::BTreeMap;

use aya::{maps::MapType, sys::is_map_supported};
use lb_tests::{
    host::Host,
    note,
    packets::{kernel, verifier},
    veth,
};
use lb_userspace::datapath;

/// Instructions that the verifier may walk at most. Linux refuses a million.
const BUDGETS: [(&str, u32); 7] = [
    ("lbd_xdp", 104_000),
    ("lbd_xdp_frags", 104_000),
    ("lbd_tc", 104_000),
    ("lbd_egress", 67_000),
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
    for feature in features() {
        note(format!("vm: feature {feature}"));
    }
    let mut excess = Vec::new();
    for (taking_over, budgets) in [(false, BUDGETS), (true, UPGRADE_BUDGETS)] {
        let suffix = if taking_over { "(upgrade)" } else { "" };
        let counts = verifier::measure(0, taking_over);
        let counts = counts.unwrap_or_else(|error| {
            // In one line, and how the verifier's log ends: there it says why.
            let text = format!("{error:#}").replace('\n', " | ");
            let end = text.len().saturating_sub(400);
            let why: String = text
                .char_indices()
                .filter(|(at, _)| *at < 200 || *at >= end)
                .map(|(_, c)| c)
                .collect();
            note(format!("vm: rejected {suffix} {why}"));
            panic!("{error:#}");
        });
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

/// What lbd finds in this kernel of what it would use, and what it takes instead.
fn features() -> [String; 4] {
    let datapath::Features { tcx, xdp_frags } = datapath::features();
    let host = Host::new("features").expect("a namespace");
    let has_links = veth::pass_everything(&host, "lo").is_ok();
    let has_ring = is_map_supported(MapType::RingBuf).unwrap_or(false);
    let found = |name: &str, has: bool, instead: &str| match has {
        true => format!("{name}: used"),
        false => format!("{name}: not there, {instead}"),
    };
    [
        found("links of XDP programs", has_links, "lbd cannot attach"),
        found(
            "links of TC programs (TCX)",
            tcx,
            "filters of clsact instead",
        ),
        found("ring buffer", has_ring, "no logs of the packet path"),
        found(
            "native XDP for frames in several buffers",
            xdp_frags,
            "another hook where the MTU is beyond a page",
        ),
    ]
}
