//! Acts on the schedule: one task that sleeps until the next probe is due, and one task for each
//! probe under way.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};

use super::{
    Report, Target, Verdict, probe,
    schedule::{Job, Schedule},
};
use crate::model::BackendRef;

/// Probes at once. Hosts that hang are probed nearly all the time until `fall` is counted: 1,000
/// may do so together. An HTTP probe takes 20 KiB, most of it hyper's buffers.
const MAX_SLOTS: usize = 1024;

/// Probes at once on this machine: at most half the file descriptors the process may open.
pub(super) fn slots() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit to write to for the duration of the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    match usize::try_from(limit.rlim_cur) {
        Ok(files) if result == 0 => (files / 2).min(MAX_SLOTS),
        _ => MAX_SLOTS,
    }
}

pub(super) struct Runner {
    shared: Mutex<Shared>,
    /// The schedule may have something to do earlier than the driver knows.
    wake: Notify,
    reports: mpsc::UnboundedSender<Report>,
}

struct Shared {
    schedule: Schedule,
    running: HashMap<u64, AbortHandle>,
}

impl Runner {
    pub(super) fn new(reports: mpsc::UnboundedSender<Report>, slots: usize) -> Self {
        let schedule = Schedule::new(slots);
        let running = HashMap::new();
        Self {
            shared: Mutex::new(Shared { schedule, running }),
            wake: Notify::new(),
            reports,
        }
    }

    /// Starts probes as they fall due, for ever.
    pub(super) async fn drive(self: Arc<Self>) {
        loop {
            match self.start_due() {
                Some(at) => {
                    let at = tokio::time::Instant::from_std(at);
                    // Early or late, the schedule is asked again.
                    let _ = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    pub(super) fn set_targets(&self, targets: &BTreeMap<BackendRef, Target>) {
        let mut shared = self.lock();
        let Shared { schedule, running } = &mut *shared;
        let now = Instant::now();
        let consequences = schedule.set_targets(targets, now, &mut rand::rng());
        for id in consequences.abandoned {
            if let Some(probe) = running.remove(&id) {
                probe.abort();
            }
        }
        for report in consequences.reports {
            self.send(report);
        }
        self.wake.notify_one();
    }

    pub(super) fn verdict(&self, backend: &BackendRef) -> Option<Verdict> {
        self.lock().schedule.verdict(backend)
    }

    fn start_due(self: &Arc<Self>) -> Option<Instant> {
        let mut shared = self.lock();
        for job in shared.schedule.start_due(Instant::now()) {
            let id = job.id;
            // It cannot end before its handle is kept: its end needs the lock held here.
            let task = tokio::spawn(Arc::clone(self).probe(job));
            shared.running.insert(id, task.abort_handle());
        }
        shared.schedule.wake_at()
    }

    async fn probe(self: Arc<Self>, job: Job) {
        let begun = Instant::now();
        let outcome = probe::run(&job.health, job.backend.address).await;
        let duration = begun.elapsed();

        // Reports leave under the lock, so none follows the removal of its target.
        let mut shared = self.lock();
        shared.running.remove(&job.id);
        let report = shared
            .schedule
            .finish(&job, outcome, duration, &mut rand::rng());
        if let Some(report) = report {
            self.send(report);
        }
        self.wake.notify_one();
    }

    fn send(&self, report: Report) {
        // Nobody listens any more: the daemon is ending.
        let _ = self.reports.send(report);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod by_hand;
