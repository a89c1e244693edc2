//! What runs in a virtual machine.

use std::time::Duration;

/// Parts of names of tests, and why they do not run.
type Without = &'static [(&'static str, &'static str)];

/// A program of the tests, with what it is told.
#[derive(Clone, Debug)]
pub struct Step {
    /// Unique.
    pub name: &'static str,
    pub program: &'static str,
    pub arguments: &'static str,
    pub without: Without,
    pub limit: Duration,
    /// What is started for lbd.
    pub lbd: &'static str,
    /// Names of tests that ended in machines that died later.
    pub ended: Vec<String>,
}

/// Programs and packets, and traffic by every hook that the kernel has.
fn all_short() -> [Step; 3] {
    [
        step("programs", "programs", "--nocapture --test-threads=1", 10),
        step("packets", "packet_cases", "cases_on_xdp cases_on_tc", 15),
        step(
            "devices",
            "devices",
            "--nocapture --test-threads=1 vlan_one_tag jumbo_frames",
            15,
        ),
    ]
}

/// Shown as it comes: of a test that hangs, or a machine that ends, one wants to know how far it got.
const ONE_BY_ONE: &str = "--nocapture --test-threads=1";
/// Too much for an emulated processor.
const AGREE: Without = &[("maglev_two_nodes_agree", "tens of thousands of connections")];
const WEIGHTS: Without = &[("weights_hold", "tens of thousands of connections")];
const NARROW: Without = &[("narrow_link", "hundreds of megabytes")];
/// `int3` in `bpf_dispatcher_xdp_func`: docs/kernels.md.
const FLOOD: Without = &[(
    "xdp_goes_under_a_flood",
    "emulated processors trip over code that changes while they run it",
)];
const SLICE: Without = &[("slice", "the byte slice knows no kernel")];
const KERNEL_TESTS: &str = "--nocapture --test-threads=1 datapath::kernel_tests";

fn all_long() -> [Step; 15] {
    [
        step("programs", "programs", "--nocapture --test-threads=1", 20),
        step("packets", "packet_cases", "--nocapture", 20).without(SLICE),
        step("kernel", "lb_userspace", KERNEL_TESTS, 20).without(FLOOD),
        step("traffic", "traffic", ONE_BY_ONE, 20).without(AGREE),
        step("dsr", "dsr", ONE_BY_ONE, 20).without(WEIGHTS),
        step("fragments", "fragments", ONE_BY_ONE, 20),
        step("icmp", "icmp", ONE_BY_ONE, 20).without(NARROW),
        step("devices", "devices", ONE_BY_ONE, 20),
        step("local", "local", ONE_BY_ONE, 20),
        step("repair", "repair", ONE_BY_ONE, 20),
        step("survive", "survive", ONE_BY_ONE, 20),
        step("restarts", "restarts", ONE_BY_ONE, 20),
        step("upgrade", "upgrade", ONE_BY_ONE, 20),
        with_least("least-survive", "survive", 20),
        with_least("least-upgrade", "upgrade", 20),
    ]
}

fn step(name: &'static str, program: &'static str, arguments: &'static str, minutes: u64) -> Step {
    Step {
        name,
        program,
        arguments,
        without: &[],
        limit: Duration::from_secs(60 * minutes),
        lbd: "lbd",
        ended: Vec::new(),
    }
}

/// With the capabilities that the DaemonSet adds.
fn with_least(name: &'static str, program: &'static str, minutes: u64) -> Step {
    Step {
        lbd: "lbd-least",
        ..step(name, program, ONE_BY_ONE, minutes)
    }
}

/// What fits into `cargo xtask test`: all of it, or the steps of these names.
pub fn short(only: &[String]) -> Result<Vec<Step>, String> {
    selected(&all_short(), only)
}

/// All, or those of these names.
pub fn long(only: &[String]) -> Result<Vec<Step>, String> {
    selected(&all_long(), only)
}

fn selected(all: &[Step], only: &[String]) -> Result<Vec<Step>, String> {
    let unknown = only
        .iter()
        .find(|name| all.iter().all(|step| step.name != **name));
    if let Some(unknown) = unknown {
        let known: Vec<_> = all.iter().map(|step| step.name).collect();
        return Err(format!("no step {unknown}; there are {}", known.join(", ")));
    }
    let is_wanted = |step: &&Step| only.is_empty() || only.iter().any(|name| name == step.name);
    Ok(all.iter().filter(is_wanted).cloned().collect())
}

/// Those of which no line says that they ended, without the tests that did.
pub fn left(steps: &[Step], lines: &[String]) -> Vec<Step> {
    let has_ended = |step: &&Step| {
        let end = format!("@@ end {} ", step.name);
        lines.iter().any(|line| line.starts_with(&end))
    };
    let left = steps.iter().filter(|step| !has_ended(step)).cloned();
    left.map(|step| Step {
        ended: ended(lines, step.name)
            .into_iter()
            .map(|(test, _)| test)
            .collect(),
        ..step
    })
    .collect()
}

/// The tests of a step that came to an end, and whether they passed.
pub fn ended(lines: &[String], step: &str) -> Vec<(String, bool)> {
    let mut ended = Vec::new();
    let mut is_inside = false;
    // Between a test's name and its result there may be what it wrote.
    let mut at_work: Option<&str> = None;
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@@", "begin", name] => {
                is_inside = *name == step;
                at_work = None;
            }
            ["@@", ..] => is_inside = false,
            ["test", name, "...", ..] => at_work = Some(name),
            _ => {}
        }
        let result = line.rsplit_once("... ").map_or(&**line, |(_, said)| said);
        let passed = match result {
            "ok" => true,
            "FAILED" => false,
            _ => continue,
        };
        if let Some(name) = at_work.take().filter(|_| is_inside) {
            ended.push((name.to_owned(), passed));
        }
    }
    ended
}

impl Step {
    fn without(self, without: Without) -> Self {
        Self { without, ..self }
    }

    /// As `init` reads it.
    pub fn line(&self) -> String {
        let Self {
            name,
            program,
            arguments,
            without,
            limit,
            lbd,
            ended,
        } = self;
        let limit = limit.as_secs();
        let left_out = without.iter().map(|(test, _)| *test);
        let without: String = left_out
            .chain(ended.iter().map(String::as_str))
            .map(|test| format!(" --skip {test}"))
            .collect();
        format!("{name} {limit} env LBD_BIN=/tests/{lbd} /tests/{program} {arguments}{without}\n")
    }
}
