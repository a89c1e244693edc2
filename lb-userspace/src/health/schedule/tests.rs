//! Whole fleets in virtual time.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

type Targets = BTreeMap<BackendRef, Target>;

fn backend(n: usize) -> BackendRef {
    BackendRef {
        service: format!("service-{}", n / 20),
        address: ([10, 0, 0, 1], 1000 + u16::try_from(n).unwrap()).into(),
    }
}

fn target(inherited: Option<bool>) -> Target {
    Target {
        health: Health::default(),
        inherited,
    }
}

fn targets(range: std::ops::Range<usize>, inherited: Option<bool>) -> Targets {
    range.map(|n| (backend(n), target(inherited))).collect()
}

fn good() -> Outcome {
    Outcome {
        kind: Kind::Success,
        words: "connection accepted".into(),
    }
}

fn bad() -> Outcome {
    Outcome {
        kind: Kind::Timeout,
        words: "no answer within 2s".into(),
    }
}

/// A schedule with its clock and the probes under way.
struct World {
    schedule: Schedule,
    rng: StdRng,
    start: Instant,
    now: Instant,
    running: Vec<(Instant, Job, Outcome)>,
}

impl World {
    fn new(slots: usize) -> Self {
        let now = Instant::now();
        Self {
            schedule: Schedule::new(slots),
            rng: StdRng::seed_from_u64(1),
            start: now,
            now,
            running: Vec::new(),
        }
    }

    fn set_targets(&mut self, targets: &Targets) -> Consequences {
        let consequences = self.schedule.set_targets(targets, self.now, &mut self.rng);
        self.running
            .retain(|(_, job, _)| !consequences.abandoned.contains(&job.id));
        consequences
    }

    fn finish(&mut self, job: &Job, outcome: Outcome) -> Option<Report> {
        let duration = self.now - job.started;
        self.schedule.finish(job, outcome, duration, &mut self.rng)
    }

    /// Runs until `end` after the start; `answer` says what a probe will find, and after how
    /// long. Returns the starts of probes and the reports in order.
    fn run(
        &mut self,
        end: Duration,
        mut answer: impl FnMut(&BackendRef) -> (Duration, Outcome),
    ) -> (Vec<(Duration, BackendRef)>, Vec<Report>) {
        let (mut starts, mut reports) = (Vec::new(), Vec::new());
        loop {
            for job in self.schedule.start_due(self.now) {
                starts.push((self.now - self.start, (*job.backend).clone()));
                let (takes, outcome) = answer(&job.backend);
                self.running.push((self.now + takes, job, outcome));
            }
            let ended = (0..self.running.len()).min_by_key(|i| self.running[*i].0);
            let next_end = ended.map(|i| self.running[i].0);
            let Some(next) = self.schedule.wake_at().into_iter().chain(next_end).min() else {
                return (starts, reports);
            };
            if next > self.start + end {
                self.now = self.start + end;
                return (starts, reports);
            }
            self.now = self.now.max(next);
            if let Some(i) = ended
                && next_end == Some(next)
            {
                let (_, job, outcome) = self.running.swap_remove(i);
                reports.extend(self.finish(&job, outcome));
            }
        }
    }
}

fn prompt(_: &BackendRef) -> (Duration, Outcome) {
    (Duration::from_millis(1), good())
}

/// Longest time between two starts for each backend, also from 0 and to `end`.
fn longest_gaps(starts: &[(Duration, BackendRef)], end: Duration) -> HashMap<BackendRef, Duration> {
    let mut last = HashMap::new();
    let mut gaps: HashMap<BackendRef, Duration> = HashMap::new();
    for (at, backend) in starts {
        let before = last.insert(backend, *at).unwrap_or_default();
        let gap = gaps.entry(backend.clone()).or_default();
        *gap = (*gap).max(*at - before);
    }
    for (backend, at) in last {
        let gap = gaps.entry(backend.clone()).or_default();
        *gap = (*gap).max(end.saturating_sub(at));
    }
    gaps
}

#[test]
fn new_backends_are_probed_at_once_but_not_in_a_burst() {
    let mut world = World::new(512);
    world.set_targets(&targets(0..20_000, None));
    let (starts, reports) = world.run(2 * SECOND, prompt);
    assert_eq!(starts.len(), 20_000);
    assert!(reports.iter().all(|report| report.changed));
    for tenth in 0u32..20 {
        let from = SECOND / 10 * tenth;
        let count = starts
            .iter()
            .filter(|(at, _)| (from..from + SECOND / 10).contains(at))
            .count();
        assert_eq!(count, 1000, "in the 100 ms from {from:?}");
    }
}

#[test]
fn inherited_verdicts_are_probed_evenly_over_the_interval() {
    let mut world = World::new(512);
    world.set_targets(&targets(0..10_000, Some(true)));
    let (starts, reports) = world.run(5 * SECOND, prompt);
    assert!(reports.iter().all(|report| !report.changed));
    for second in 0u32..4 {
        let from = SECOND * second;
        let count = starts
            .iter()
            .filter(|(at, _)| (from..from + SECOND).contains(at))
            .count();
        assert!((1800..2200).contains(&count), "{count} from {from:?}");
    }
}

#[test]
fn unchanged_targets_keep_state_and_phase() {
    let all = targets(0..100, Some(true));
    let (mut quiet, mut disturbed) = (World::new(512), World::new(512));
    quiet.set_targets(&all);
    disturbed.set_targets(&all);
    // What was inherited counts only when a target is added.
    let again = targets(0..100, None);
    let (mut starts, mut expected) = (Vec::new(), Vec::new());
    for second in 1..20 {
        expected.extend(quiet.run(SECOND * second, prompt).0);
        starts.extend(disturbed.run(SECOND * second, prompt).0);
        let consequences = disturbed.set_targets(&again);
        assert!(consequences.reports.is_empty() && consequences.abandoned.is_empty());
    }
    assert_eq!(starts, expected);
}

#[test]
fn a_changed_spec_keeps_the_verdict_and_drops_the_probe_under_way() {
    let mut world = World::new(512);
    let mut all = targets(0..1, None);
    world.set_targets(&all);
    world.run(SECOND, prompt);
    world.now += 6 * SECOND;
    let job = world.schedule.start_due(world.now).remove(0);

    for target in all.values_mut() {
        target.health.fall = 1;
    }
    assert_eq!(world.set_targets(&all).abandoned, [job.id]);
    assert!(world.finish(&job, bad()).is_none(), "late");
    let verdict = world.schedule.verdict(&backend(0)).unwrap();
    assert_eq!((verdict.healthy, verdict.successes_in_row), (Some(true), 0));

    world.now += 6 * SECOND;
    let job = world.schedule.start_due(world.now).remove(0);
    let report = world.finish(&job, bad()).unwrap();
    assert!(report.changed, "the new spec counts");
}

#[test]
fn a_removed_backend_is_silent_even_after_its_return() {
    let mut world = World::new(2);
    let all = targets(0..1, None);
    world.set_targets(&all);
    let job = world.schedule.start_due(world.now).remove(0);
    assert_eq!(world.set_targets(&Targets::new()).abandoned, [job.id]);
    assert!(world.finish(&job, good()).is_none());
    assert!(world.schedule.verdict(&backend(0)).is_none());
    assert_eq!(world.schedule.wake_at(), None);

    world.set_targets(&all);
    assert!(world.finish(&job, good()).is_none());
    let verdict = world.schedule.verdict(&backend(0)).unwrap();
    assert_eq!(verdict.healthy, None);
    let (starts, _) = world.run(SECOND, prompt);
    assert_eq!(starts.len(), 1, "its slot was given back exactly once");
}

#[test]
fn backends_without_a_check_are_healthy_at_once() {
    let mut world = World::new(2);
    let mut all = targets(0..1, None);
    for target in all.values_mut() {
        target.health.check = HealthCheck::None;
    }
    let reports = world.set_targets(&all).reports;
    assert_eq!(reports.len(), 1);
    assert!(reports[0].changed);
    assert_eq!(reports[0].verdict.healthy, Some(true));
    assert_eq!(world.schedule.wake_at(), None);
    assert!(world.set_targets(&all).reports.is_empty());
}

#[test]
fn the_nodes_own_shortage_is_not_counted() {
    let mut world = World::new(2);
    world.set_targets(&targets(0..1, Some(true)));
    let shortage = |_: &BackendRef| {
        let outcome = Outcome {
            kind: Kind::Local,
            words: "this node cannot probe: too many open files".into(),
        };
        (Duration::ZERO, outcome)
    };
    let (_, reports) = world.run(60 * SECOND, shortage);
    assert!(reports.len() > 10);
    for report in reports {
        assert!(!report.changed);
        assert_eq!(report.verdict.healthy, Some(true));
        assert_eq!(report.verdict.failures_in_row, 0);
        assert_eq!(report.result, "error");
    }
}

#[test]
fn hosts_that_hang_delay_nobody_else() {
    // 2,000 hung ones want 800 slots all the time, and get 64.
    let (hung, end) = (2000, 300 * SECOND);
    let mut world = World::new(128);
    world.set_targets(&targets(0..3000, Some(false)));
    let hangs: HashSet<_> = (0..hung).map(backend).collect();
    let answer = |backend: &BackendRef| {
        if hangs.contains(backend) {
            (2 * SECOND, bad())
        } else {
            prompt(backend)
        }
    };
    // Their first probes do not know yet that they will hang.
    world.run(60 * SECOND, answer);
    let (starts, _) = world.run(60 * SECOND + end, answer);
    let starts: Vec<_> = starts
        .into_iter()
        .map(|(at, backend)| (at - 60 * SECOND, backend))
        .collect();
    let gaps = longest_gaps(&starts, end);
    assert_eq!(gaps.len(), 3000, "every backend is probed");
    for (backend, gap) in gaps {
        if !hangs.contains(&backend) {
            assert!(gap <= SECOND * 51 / 10 + SECOND / 2, "{backend}: {gap:?}");
        } else {
            assert!(gap <= 70 * SECOND, "{backend}: {gap:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Targets { from: usize, to: usize, fall: u32 },
    Run { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..12, 0usize..12, 1u32..4).prop_map(|(from, to, fall)| Step::Targets {
            from,
            to,
            fall
        }),
        (1u64..20_000).prop_map(|ms| Step::Run { ms }),
    ]
}

proptest! {
    /// Whatever comes and goes: probes never exceed the slots, no backend is probed twice at
    /// once, none starves, and every verdict follows from that backend's reports.
    #[test]
    fn churn_keeps_the_books(steps in prop::collection::vec(step(), 1..30), seed: u64) {
        let mut world = World::new(4);
        let mut dice = StdRng::seed_from_u64(seed);
        let mut current = Targets::new();
        let mut verdicts: HashMap<BackendRef, Option<bool>> = HashMap::new();
        let mut elapsed = Duration::ZERO;
        for step in steps {
            match step {
                Step::Targets { from, to, fall } => {
                    current = targets(from..to, None);
                    for target in current.values_mut() {
                        target.health.fall = fall;
                    }
                    world.set_targets(&current);
                    verdicts.retain(|backend, _| current.contains_key(backend));
                }
                Step::Run { ms } => {
                    elapsed += Duration::from_millis(ms);
                    let (_, reports) = world.run(elapsed, |_| match dice.random_range(0..3) {
                        0 => (2 * SECOND, bad()),
                        1 => (Duration::ZERO, bad()),
                        _ => (Duration::from_millis(3), good()),
                    });
                    world.now = world.start + elapsed;
                    for report in reports {
                        prop_assert!(current.contains_key(&report.backend));
                        let before = verdicts
                            .insert(report.backend, report.verdict.healthy)
                            .flatten();
                        prop_assert_eq!(report.changed, before != report.verdict.healthy);
                    }
                }
            }
            prop_assert!(world.running.len() <= 4);
            let mut probed: Vec<_> = world.running.iter().map(|(_, job, _)| &job.backend).collect();
            probed.sort();
            probed.dedup();
            prop_assert_eq!(probed.len(), world.running.len());
            for backend in current.keys() {
                let healthy = world.schedule.verdict(backend).unwrap().healthy;
                prop_assert_eq!(healthy, verdicts.get(backend).copied().flatten());
            }
        }
        let (starts, _) = world.run(elapsed + 60 * SECOND, prompt);
        for backend in current.keys() {
            prop_assert!(starts.iter().any(|(_, started)| started == backend));
        }
    }
}

#[test]
fn a_healthy_backend_does_not_queue_behind_the_dead_for_one_lost_packet() {
    let end = 120 * SECOND;
    let mut world = World::new(8);
    let mut all = targets(1..100, None);
    all.insert(backend(0), target(Some(true)));
    world.set_targets(&all);
    let mut probes = 0;
    let (starts, _) = world.run(end, |probed| {
        if *probed != backend(0) {
            return (2 * SECOND, bad());
        }
        probes += 1;
        if probes == 10 {
            (2 * SECOND, bad())
        } else {
            prompt(probed)
        }
    });
    let settled: Vec<_> = starts
        .into_iter()
        .filter(|(at, probed)| *at > 40 * SECOND && *probed == backend(0))
        .map(|(at, probed)| (at - 40 * SECOND, probed))
        .collect();
    assert!(settled.len() > 10);
    let gap = longest_gaps(&settled, end - 40 * SECOND)[&backend(0)];
    assert!(gap <= 6 * SECOND, "{gap:?}");
}
