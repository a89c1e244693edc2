//! Which backend is probed when, and what is known of each. Pure: time and randomness are
//! arguments, the parent module acts.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use super::{
    Report, Target, Verdict,
    lanes::{Lanes, Speed},
    machine::Machine,
    probe::{Kind, Outcome},
};
use crate::model::{BackendRef, Health, HealthCheck};

/// Between the first probes of new backends: 20,000 at once take 2 s instead of a burst.
const PACE: Duration = Duration::from_micros(100);

pub(super) struct Schedule {
    entries: BTreeMap<Arc<BackendRef>, Entry>,
    lanes: Lanes,
    last_id: u64,
    /// Earliest first probe of the next new backend.
    next_new: Option<Instant>,
}

struct Entry {
    /// New whenever the backend is added or its health spec changes, and never used again: a
    /// late result bears a former id.
    id: u64,
    machine: Machine,
    phase: Phase,
    speed: Speed,
    last: Option<(Instant, Cow<'static, str>)>,
}

enum Phase {
    Waiting(Instant),
    Probing,
    /// `type: none`.
    Unprobed,
}

/// One probe to run now.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) backend: Arc<BackendRef>,
    pub(super) health: Arc<Health>,
    pub(super) started: Instant,
}

/// What a change of targets leads to besides a new schedule.
#[derive(Default)]
pub(super) struct Consequences {
    /// Ids of the probes under way whose result no longer matters.
    pub(super) abandoned: Vec<u64>,
    pub(super) reports: Vec<Report>,
}

impl Schedule {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            lanes: Lanes::new(slots),
            last_id: 0,
            next_new: None,
        }
    }

    /// See [`super::Checks::set_targets`].
    pub(super) fn set_targets(
        &mut self,
        targets: &BTreeMap<BackendRef, Target>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Consequences {
        let mut consequences = Consequences::default();
        // Backends of one service share one copy of its spec.
        let mut shared: Option<Arc<Health>> = None;
        for (backend, target) in targets {
            let known = self.entries.get(backend);
            if known.is_some_and(|entry| **entry.machine.health() == target.health) {
                continue;
            }
            let health = shared
                .take()
                .filter(|health| **health == target.health)
                .unwrap_or_else(|| Arc::new(target.health.clone()));
            shared = Some(Arc::clone(&health));
            let report = self.start(
                backend,
                health,
                target.inherited,
                now,
                rng,
                &mut consequences,
            );
            consequences.reports.extend(report);
        }
        self.remove_all_but(targets, &mut consequences);
        consequences
    }

    /// The probes that are due, as far as slots are free.
    pub(super) fn start_due(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        while let Some(backend) = self.lanes.take_due(now) {
            if let Some(entry) = self.entries.get_mut(&backend) {
                entry.phase = Phase::Probing;
                jobs.push(Job {
                    id: entry.id,
                    health: Arc::clone(entry.machine.health()),
                    backend,
                    started: now,
                });
            }
        }
        jobs
    }

    /// When [`Self::start_due`] has something to do next; `None` if only a result or new targets
    /// can tell.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.lanes.wake_at()
    }

    /// Takes in a result; `None` if the backend was removed or restarted meanwhile.
    pub(super) fn finish(
        &mut self,
        job: &Job,
        outcome: Outcome,
        duration: Duration,
        rng: &mut impl Rng,
    ) -> Option<Report> {
        let entry = self.entries.get_mut(&job.backend)?;
        if entry.id != job.id {
            return None;
        }
        let changed = match outcome.kind.success() {
            Some(success) => entry.machine.record(success),
            None => false,
        };
        entry.last = Some((job.started, outcome.words));

        self.lanes.release(entry.speed);
        let down = entry.machine.healthy() == Some(false);
        entry.speed = if down && duration >= job.health.timeout / 2 {
            Speed::Slow
        } else {
            Speed::Prompt
        };
        let due = job.started + entry.machine.delay(rng.random_range(-1.0..=1.0));
        entry.phase = Phase::Waiting(due);
        self.lanes
            .wait(entry.speed, due, entry.id, Arc::clone(&job.backend));
        Some(entry.report(&job.backend, changed, outcome.kind, duration))
    }

    pub(super) fn verdict(&self, backend: &BackendRef) -> Option<Verdict> {
        self.entries.get(backend).map(Entry::verdict)
    }

    /// Adds a backend, or begins again with one whose spec changed, keeping its verdict.
    fn start(
        &mut self,
        backend: &BackendRef,
        health: Arc<Health>,
        inherited: Option<bool>,
        now: Instant,
        rng: &mut impl Rng,
        consequences: &mut Consequences,
    ) -> Option<Report> {
        let (backend, former) = match self.remove(backend, consequences) {
            Some((backend, entry)) => (backend, Some(entry)),
            None => (Arc::new(backend.clone()), None),
        };
        let before = former.as_ref().map_or(inherited, |f| f.machine.healthy());
        let unprobed = health.check == HealthCheck::None;
        let machine = Machine::new(health, if unprobed { Some(true) } else { before });

        self.last_id += 1;
        let mut entry = Entry {
            id: self.last_id,
            machine,
            phase: Phase::Unprobed,
            speed: former.as_ref().map_or(Speed::Prompt, |f| f.speed),
            last: former.and_then(|f| f.last),
        };
        let report = if unprobed {
            entry.last = Some((now, "not checked".into()));
            let changed = before != Some(true);
            Some(entry.report(&backend, changed, Kind::Success, Duration::ZERO))
        } else {
            let due = match before {
                Some(_) => now + entry.machine.first_delay(rng.random()),
                None => self.pace(now),
            };
            entry.phase = Phase::Waiting(due);
            self.lanes
                .wait(entry.speed, due, entry.id, Arc::clone(&backend));
            None
        };
        self.entries.insert(backend, entry);
        report
    }

    fn pace(&mut self, now: Instant) -> Instant {
        let due = self.next_new.map_or(now, |next| next.max(now));
        self.next_new = Some(due + PACE);
        due
    }

    fn remove_all_but(
        &mut self,
        targets: &BTreeMap<BackendRef, Target>,
        consequences: &mut Consequences,
    ) {
        // Every target has an entry, so equal numbers mean that none is left over.
        if self.entries.len() == targets.len() {
            return;
        }
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|backend| !targets.contains_key(&***backend))
            .cloned()
            .collect();
        for backend in gone {
            self.remove(&backend, consequences);
        }
    }

    fn remove(
        &mut self,
        backend: &BackendRef,
        consequences: &mut Consequences,
    ) -> Option<(Arc<BackendRef>, Entry)> {
        let (backend, entry) = self.entries.remove_entry(backend)?;
        match entry.phase {
            Phase::Waiting(due) => self.lanes.forget(entry.speed, due, entry.id),
            Phase::Probing => {
                self.lanes.release(entry.speed);
                consequences.abandoned.push(entry.id);
            }
            Phase::Unprobed => {}
        }
        Some((backend, entry))
    }
}

impl Entry {
    fn verdict(&self) -> Verdict {
        Verdict {
            healthy: self.machine.healthy(),
            successes_in_row: self.machine.successes_in_row(),
            failures_in_row: self.machine.failures_in_row(),
            last_result: self.last.as_ref().map(|(_, words)| words.to_string()),
            last_probe: self.last.as_ref().map(|(started, _)| *started),
        }
    }

    fn report(
        &self,
        backend: &BackendRef,
        changed: bool,
        kind: Kind,
        duration: Duration,
    ) -> Report {
        Report {
            backend: backend.clone(),
            verdict: self.verdict(),
            changed,
            result: kind.label(),
            duration,
        }
    }
}
