//! Probes that are never sent: a test says what they find.

use std::time::Duration;

use super::*;
use crate::health::{
    Checks,
    probe::{Kind, Outcome},
};

impl Checks {
    /// Lets every target be due, and its probe end as `answers` says: `None` if this node could not
    /// send it.
    pub(crate) fn probe_all(&self, answers: impl Fn(&BackendRef) -> Option<bool>) {
        let mut shared = self.runner.lock();
        let mut jobs = Vec::new();
        while let Some(due) = shared.schedule.wake_at() {
            jobs.extend(shared.schedule.start_due(due));
        }
        let mut rng = rand::rng();
        for job in jobs {
            let (kind, words) = match answers(&job.backend) {
                Some(true) => (Kind::Success, "connected"),
                Some(false) => (Kind::Refused, "connection refused"),
                None => (Kind::Local, "no port is left"),
            };
            let outcome = Outcome {
                kind,
                words: words.into(),
            };
            let report = shared
                .schedule
                .finish(&job, outcome, Duration::ZERO, &mut rng);
            if let Some(report) = report {
                self.runner.send(report);
            }
        }
    }
}
