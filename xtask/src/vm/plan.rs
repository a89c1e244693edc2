//! What runs in a virtual machine.

use std::time::Duration;

/// A program of the tests, with what it is told.
#[derive(Clone, Debug)]
pub struct Step {
    /// Unique.
    pub name: &'static str,
    pub program: &'static str,
    pub arguments: &'static str,
    pub limit: Duration,
    /// What is started for lbd.
    pub lbd: &'static str,
}

/// Programs and packets, and one test of traffic: what every `make test` runs.
const SHORT: [Step; 3] = [
    step("programs", "programs", "--nocapture --test-threads=1", 5),
    step("packets", "packet_cases", "cases_on_xdp cases_on_tc", 5),
    step(
        "traffic",
        "traffic",
        "--test-threads=1 every_connection_is_intact_by_tc",
        5,
    ),
];

const LONG: [Step; 15] = [
    step("programs", "programs", "--nocapture --test-threads=1", 5),
    step("packets", "packet_cases", "--skip slice", 20),
    step("kernel", "lb_userspace", "datapath::", 10),
    step("traffic", "traffic", "--test-threads=1", 20),
    step("dsr", "dsr", "--test-threads=1", 15),
    step("fragments", "fragments", "--test-threads=1", 10),
    step("icmp", "icmp", "--test-threads=1", 10),
    step("devices", "devices", "--test-threads=1", 10),
    step("local", "local", "--test-threads=1", 10),
    step("repair", "repair", "--test-threads=1", 10),
    step("survive", "survive", "--test-threads=1", 15),
    step("restarts", "restarts", "--test-threads=1", 15),
    step("upgrade", "upgrade", "--test-threads=1", 15),
    with_least("least-survive", "survive", 15),
    with_least("least-upgrade", "upgrade", 15),
];

const fn step(
    name: &'static str,
    program: &'static str,
    arguments: &'static str,
    minutes: u64,
) -> Step {
    Step {
        name,
        program,
        arguments,
        limit: Duration::from_secs(60 * minutes),
        lbd: "lbd",
    }
}

/// With the capabilities that the DaemonSet adds.
const fn with_least(name: &'static str, program: &'static str, minutes: u64) -> Step {
    Step {
        lbd: "lbd-least",
        ..step(name, program, "--test-threads=1", minutes)
    }
}

pub fn short() -> Vec<Step> {
    SHORT.to_vec()
}

/// All, or those of these names.
pub fn long(only: &[String]) -> Result<Vec<Step>, String> {
    if let Some(unknown) = only
        .iter()
        .find(|n| LONG.iter().all(|step| step.name != **n))
    {
        let known = LONG.map(|step| step.name).join(", ");
        return Err(format!("no step {unknown}; there are {known}"));
    }
    let mut steps = LONG.to_vec();
    steps.retain(|step| only.is_empty() || only.iter().any(|name| name == step.name));
    Ok(steps)
}

impl Step {
    /// As `init` reads it.
    pub fn line(&self) -> String {
        let Self {
            name,
            program,
            arguments,
            limit,
            lbd,
        } = self;
        let limit = limit.as_secs();
        format!("{name} {limit} env LBD_BIN=/tests/{lbd} /tests/{program} {arguments}\n")
    }
}
