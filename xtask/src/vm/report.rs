//! What the lines of a virtual machine say.

use std::collections::BTreeMap;

use super::{
    boot::Run,
    plan::{self, Step},
};

/// What became of a step.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub passed: u32,
    pub failed: Vec<String>,
    /// Tests that could not run, with the reason.
    pub skipped: Vec<String>,
    pub seconds: u32,
    /// Why it has no result of its own, if so.
    pub broken: Option<String>,
    /// How many tests libtest found, those that ended in machines that died included.
    tests: Option<u32>,
    /// How many of those failed.
    earlier_failed: u32,
}

/// What a kernel's run told.
#[derive(Clone, Default, Debug)]
pub struct Report {
    pub release: String,
    pub steps: BTreeMap<&'static str, Outcome>,
    /// Verified instructions by program.
    pub programs: BTreeMap<String, u32>,
    /// What lbd uses there.
    pub features: Vec<String>,
    /// Programs that the verifier refused, and why.
    pub rejected: Vec<String>,
    pub notes: Vec<String>,
    pub failure: Option<String>,
    pub seconds: u64,
}

impl Report {
    pub fn new(run: &Run, steps: &[Step]) -> Self {
        let mut report = Self {
            failure: run.failure.clone(),
            seconds: run.took.as_secs(),
            ..Self::default()
        };
        let mut current: Option<(&'static str, Outcome)> = None;
        for (number, line) in run.lines.iter().enumerate() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                ["@@", "kernel", release] => report.release = (*release).to_owned(),
                ["@@", "note", ..] => report.notes.push(line[8..].to_owned()),
                ["@@", "begin", name] => {
                    let step = steps.iter().find(|step| step.name == *name);
                    let died = current.take().filter(|(died, _)| died == name);
                    let tests = died.and_then(|(_, outcome)| outcome.tests);
                    current = step.map(|step| {
                        let ended = plan::ended(&run.lines[..number], step.name);
                        (step.name, Outcome::of(step).and(ended, tests))
                    });
                }
                ["@@", "end", _, status, seconds] => {
                    if let Some((name, mut outcome)) = current.take() {
                        outcome.end(status, seconds);
                        report.steps.insert(name, outcome);
                    }
                }
                _ => {
                    if let Some((_, outcome)) = &mut current {
                        outcome.read(line);
                    }
                    report.read(line);
                }
            }
        }
        report.add_missing(current, steps);
        report
    }

    /// `vm: program NAME COUNT`, `vm: feature TEXT` and `vm: rejected TEXT`.
    fn read(&mut self, line: &str) {
        // The first of them stands behind the test's name.
        let Some((_, said)) = line.split_once("vm: ") else {
            return;
        };
        let words: Vec<_> = said.split_whitespace().collect();
        match words.as_slice() {
            ["program", name, count] => {
                let count = count.parse().unwrap_or_default();
                self.programs.insert((*name).to_owned(), count);
            }
            ["feature", text @ ..] => self.features.push(text.join(" ")),
            ["rejected", text @ ..] => self.rejected.push(text.join(" ")),
            _ => {}
        }
    }

    /// Steps that did not come to an end, or not to their turn.
    fn add_missing(&mut self, current: Option<(&'static str, Outcome)>, steps: &[Step]) {
        if let Some((name, mut outcome)) = current {
            outcome.broken = Some("the machine ended meanwhile".to_owned());
            self.steps.insert(name, outcome);
        }
        for step in steps {
            self.steps.entry(step.name).or_insert_with(|| Outcome {
                broken: Some("not begun".to_owned()),
                ..Outcome::of(step)
            });
        }
    }

    pub fn is_good(&self) -> bool {
        let good = |o: &Outcome| o.broken.is_none() && o.failed.is_empty() && o.passed > 0;
        self.failure.is_none()
            && self.rejected.is_empty()
            && !self.steps.is_empty()
            && self.steps.values().all(good)
    }
}

impl Outcome {
    /// Nothing yet but what the step leaves out.
    fn of(step: &Step) -> Self {
        let left_out = step.without.iter();
        Self {
            skipped: left_out
                .map(|(test, why)| format!("{test}: {why}"))
                .collect(),
            ..Self::default()
        }
    }

    /// With what ended in machines that died, which had so many tests in all.
    fn and(mut self, ended: Vec<(String, bool)>, tests: Option<u32>) -> Self {
        self.passed = ended.iter().filter(|(_, passed)| *passed).count() as u32;
        let failed = ended.into_iter().filter(|(_, passed)| !passed);
        self.failed = failed.map(|(test, _)| test).collect();
        self.earlier_failed = self.failed.len() as u32;
        self.tests = tests;
        self
    }

    /// `running 7 tests`: those that are left, if the step began before.
    fn begin(&mut self, tests: u32) {
        let ended = self.passed + self.failed.len() as u32;
        match self.tests {
            Some(all) if all != ended + tests => {
                self.broken = Some(format!("{tests} tests of {all} were left after {ended}"));
            }
            _ => self.tests = Some(ended + tests),
        }
    }

    /// A line of libtest's, or one that a test wrote.
    fn read(&mut self, whole: &str) {
        let line = whole.trim();
        if let ["running", tests, "test" | "tests"] = *line.split(' ').collect::<Vec<_>>() {
            self.begin(tests.parse().unwrap_or_default());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            let earlier = self.earlier_failed;
            let (failed, named) = (count(counts, "failed") + earlier, self.failed.len() as u32);
            let unnamed = failed.saturating_sub(named);
            self.failed.extend((0..unnamed).map(|_| "?".to_owned()));
        } else if let Some(name) = failed_test(whole) {
            self.failed.push(name);
        } else if line.contains("NOT TESTED") || line.contains("left out: ") {
            self.skipped.push(line.to_owned());
        }
    }

    fn end(&mut self, status: &str, seconds: &str) {
        self.seconds = seconds.parse().unwrap_or_default();
        if self.broken.is_some() {
            return;
        }
        self.broken = match status {
            "0" => None,
            // What `timeout` gives, and what libtest gives when a test failed.
            "124" | "137" => Some(format!("took longer than its limit ({} s)", self.seconds)),
            "101" if !self.failed.is_empty() => None,
            other => Some(format!("ended with status {other}")),
        };
    }
}

/// `8 passed` in `ok. 8 passed; 0 failed`.
fn count(counts: &str, what: &str) -> u32 {
    let mut parts = counts.split([';', '.']).map(str::trim);
    let number = parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    number.unwrap_or_default()
}

/// libtest lists the names of failed tests with four spaces before each.
fn failed_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("    ")?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(lines: &[&str], failure: Option<&str>) -> Report {
        let run = Run {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            failure: failure.map(str::to_owned),
            is_emulators: false,
            took: Duration::from_secs(7),
        };
        let steps = super::super::plan::short(&[]).expect("all");
        Report::new(&run, &steps)
    }

    const GOOD: [&str; 17] = [
        "@@ kernel 5.10.0-32-amd64",
        "@@ begin programs",
        "vm: program lbd_xdp 35000",
        "test programs_load ...     vm: feature ring buffer: used",
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        "@@ end programs 0 5",
        "@@ begin packets",
        "test cases_on_xdp ... ok",
        "test result: ok. 2 passed; 0 failed; 0 ignored",
        "@@ end packets 0 6",
        "@@ begin devices",
        "    NOT TESTED: no such device",
        "test result: ok. 1 passed; 0 failed",
        "@@ end devices 0 6",
        "@@ done",
        "",
        "",
    ];

    #[test]
    fn a_good_run() {
        let report = report(&GOOD, None);
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.release, "5.10.0-32-amd64");
        assert_eq!(report.programs["lbd_xdp"], 35000);
        assert_eq!(report.features, ["ring buffer: used"]);
        assert_eq!(report.steps["devices"].skipped.len(), 1);
        assert_eq!(report.steps["packets"].passed, 2);
    }

    #[test]
    fn what_did_not_run_is_not_good() {
        for end in 1..14 {
            let report = report(&GOOD[..end], None);
            assert!(!report.is_good(), "{end}: {report:?}");
        }
        assert!(!report(&GOOD, Some("kernel: BUG: x")).is_good());
    }

    /// The machine died in `packets`, and another one began with it.
    #[test]
    fn another_machine_goes_on() {
        let mut lines = GOOD[..8].to_vec();
        lines.push("@@ note began again with packets: x");
        let all = super::super::plan::short(&[]).expect("all");
        let said: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        let left = super::super::plan::left(&all, &said);
        let left: Vec<_> = left.iter().map(|step| step.name).collect();
        assert_eq!(left, ["packets", "devices"]);
        lines.extend([
            GOOD[0],
            GOOD[6],
            "test cases_on_tc ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ]);
        lines.extend(&GOOD[9..]);
        let report = report(&lines, None);
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.steps["packets"].passed, 2);
        assert_eq!(report.notes, ["began again with packets: x"]);
    }

    /// As [`another_machine_goes_on`], within a step.
    #[test]
    fn another_machine_runs_the_tests_that_are_left() {
        let died = [
            "@@ kernel 5.10.0-32-amd64",
            "@@ begin devices",
            "running 3 tests",
            "test one ...     what it says",
            "ok",
            "test two ... FAILED",
            "test three ...     what it says",
            "@@ note began again with devices: x",
        ];
        let said: Vec<_> = died.iter().map(|line| (*line).to_owned()).collect();
        let all = plan::short(&["devices".to_owned()]).expect("a step");
        let left = plan::left(&all, &said);
        assert_eq!(left[0].ended, ["one", "two"]);
        assert!(left[0].line().contains(" --skip one --skip two\n"));
        for (running, broken) in [("running 1 test", false), ("running 2 tests", true)] {
            let next = [
                "@@ begin devices",
                running,
                "test three ... ok",
                "test result: ok. 1 passed; 0 failed",
                "@@ end devices 0 6",
            ];
            let report = report(&[&died[..], &next[..]].concat(), None);
            let devices = &report.steps["devices"];
            assert_eq!(devices.passed, 2);
            assert_eq!(devices.failed, ["two"], "it is not forgotten");
            assert_eq!(devices.broken.is_some(), broken, "{:?}", devices.broken);
        }
    }

    #[test]
    fn failed_tests_have_names() {
        let mut lines = GOOD;
        lines[7] = "    cases_on_xdp";
        lines[8] = "test result: FAILED. 1 passed; 1 failed; 0 ignored";
        lines[9] = "@@ end packets 101 6";
        let report = report(&lines, None);
        assert_eq!(report.steps["packets"].failed, ["cases_on_xdp"]);
        assert!(report.steps["packets"].broken.is_none());
        assert!(!report.is_good());
    }

    #[test]
    fn what_the_verifier_refuses_is_told() {
        let mut lines = GOOD;
        lines[2] = "vm: rejected program lbd_xdp: R1 invalid mem access";
        assert_eq!(
            report(&lines, None).rejected,
            ["program lbd_xdp: R1 invalid mem access"]
        );
        assert!(!report(&lines, None).is_good());
    }

    #[test]
    fn a_step_that_found_no_test_is_not_good() {
        let mut lines = GOOD;
        lines[8] = "test result: ok. 0 passed; 0 failed; 0 ignored";
        assert!(!report(&lines, None).is_good());
    }
}
