//! What people see of a source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One item of `lbctl get sources`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceItem {
    pub service: String,
    /// `file`, `consul`, …
    pub kind: String,
    pub target: String,
    /// `starting`, `synced`, `failing` or `stale`.
    pub state: String,
    /// Instances in force.
    pub instances: u32,
    /// Of these, missing in the last answer and held.
    pub held: u32,
    /// Milliseconds since 1970; `None` before the first. A former daemon's counts.
    pub last_success_ms: Option<u64>,
    /// Sets that came into force since the daemon began.
    pub updates: u64,
    /// Failures since the daemon began.
    pub errors: u64,
    pub errors_by_class: BTreeMap<String, u64>,
    /// The last failure in words, also of one that is over.
    pub last_error: Option<String>,
    /// Milliseconds since 1970.
    pub last_error_ms: Option<u64>,
    /// What the last answer holds that cannot be a backend.
    pub left_out: Vec<String>,
}

impl SourceItem {
    /// What it says may be out of date.
    pub fn is_stale(&self) -> bool {
        self.state == "stale"
    }

    /// Its last answer counts, and is young enough.
    pub fn is_well(&self) -> bool {
        !matches!(self.state.as_str(), "failing" | "stale")
    }

    /// What is wrong, in a sentence, if anything is.
    pub fn trouble(&self) -> Option<String> {
        let Self {
            service,
            kind,
            target,
            state,
            instances,
            ..
        } = self;
        if self.is_well() {
            return None;
        }
        let error = self.last_error.as_deref().unwrap_or("no answer");
        let count = match instances {
            0 => "no instance is known".to_owned(),
            1 => "the 1 instance known before stays in force".to_owned(),
            n => format!("the {n} instances known before stay in force"),
        };
        Some(format!(
            "service {service}: source {kind}:{target} is {state}: {error}; {count}"
        ))
    }
}
