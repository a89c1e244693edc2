//! Active health checks: a pure state machine per backend ([`machine`]), probes, and the
//! schedule that runs them.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use crate::model::{BackendRef, Health};

/// One backend to probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub health: Health,
    /// Verdict inherited from a former daemon (the kernel still holds it): stands until
    /// rise/fall says otherwise. `None` for a backend never seen: no traffic until the first
    /// success.
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
    pub last_probe: Option<std::time::Instant>,
}

/// Sent after every probe.
#[derive(Clone, Debug)]
pub struct Report {
    pub backend: BackendRef,
    pub verdict: Verdict,
    /// Whether `healthy` differs from before.
    pub changed: bool,
    /// Label of the metric `lbd_health_checks_total`: `success`, `refused`, `timeout`,
    /// `unreachable`, `status`, `error`.
    pub result: &'static str,
    pub duration: std::time::Duration,
}

/// Runs the probes of all backends.
pub struct Checks {}

impl Checks {
    /// Reports go to `reports`; probes run on the current tokio runtime until this is dropped.
    pub fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        let _ = reports;
        todo!()
    }

    /// Probes exactly `targets` from now on. Targets whose health spec is unchanged keep their
    /// state and phase.
    pub fn set_targets(&mut self, targets: &BTreeMap<BackendRef, Target>) {
        let _ = targets;
        todo!()
    }
}
