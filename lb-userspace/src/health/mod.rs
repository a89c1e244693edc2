//! Active health checks: a pure state machine per backend ([`machine`]), a pure schedule of all
//! of them ([`schedule`], [`lanes`]), and the probes themselves ([`probe`]).

mod lanes;
mod machine;
mod probe;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::mpsc;

use crate::model::{BackendRef, Health};

/// One backend to probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub health: Health,
    /// Verdict inherited from a former daemon (the kernel still holds it): stands until
    /// rise/fall says otherwise. `None` for a backend never seen: no traffic until the first
    /// success. Counts only when the target is added.
    pub inherited: Option<bool>,
}

/// Current verdict about one backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// `None` until the first result of a new backend.
    pub healthy: Option<bool>,
    pub successes_in_row: u32,
    pub failures_in_row: u32,
    /// Last result in words, e.g. `connection refused`, `HTTP status 503, expected 200`.
    pub last_result: Option<String>,
    /// When the last probe that ended was started.
    pub last_probe: Option<std::time::Instant>,
}

/// Sent after every probe, and once for each target that is never probed (`type: none`).
#[derive(Clone, Debug)]
pub struct Report {
    pub backend: BackendRef,
    pub verdict: Verdict,
    /// Whether `healthy` differs from before.
    pub changed: bool,
    /// Label of the metric `lbd_health_checks_total`: `success`, `refused`, `timeout`,
    /// `unreachable`, `status`, `error`. An `error` of this node itself (no file descriptor or
    /// port left) counts neither as success nor as failure.
    pub result: &'static str,
    pub duration: std::time::Duration,
}

/// Runs the probes of all backends.
pub struct Checks {
    runner: Arc<run::Runner>,
    driver: tokio::task::AbortHandle,
}

impl Checks {
    /// Reports go to `reports`; probes run on the current tokio runtime until this is dropped.
    pub fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        let runner = Arc::new(run::Runner::new(reports, run::slots()));
        let driver = tokio::spawn(Arc::clone(&runner).drive()).abort_handle();
        Self { runner, driver }
    }

    /// Probes exactly `targets` from now on. Targets whose health spec is unchanged keep their
    /// state and phase; a changed spec keeps the verdict. Once this returns, no report is sent
    /// about a backend that is not in `targets`; earlier ones may still wait in the channel.
    pub fn set_targets(&mut self, targets: &BTreeMap<BackendRef, Target>) {
        self.runner.set_targets(targets);
    }

    /// `None` for what is not a target.
    pub fn verdict(&self, backend: &BackendRef) -> Option<Verdict> {
        self.runner.verdict(backend)
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.runner.set_targets(&BTreeMap::new());
        self.driver.abort();
    }
}
