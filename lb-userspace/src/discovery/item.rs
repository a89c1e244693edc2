//! What people see of a source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One item of `lbctl get sources`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceItem {
    /// Empty for one that finds services.
    pub service: String,
    /// `file`, `consul`, …
    pub kind: String,
    pub target: String,
    /// `starting`, `synced`, `failing` or `stale`.
    pub state: String,
    /// Services in force, of one that finds services.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub services: Option<u32>,
    /// Instances in force, of all its services.
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
            services,
            instances,
            ..
        } = self;
        if self.is_well() {
            return None;
        }
        let error = self.last_error.as_deref().unwrap_or("no answer");
        let (count, word) = match services {
            Some(services) => (*services, "service"),
            None => (*instances, "instance"),
        };
        let known = match count {
            0 => format!("no {word} is known"),
            1 => format!("the 1 {word} known before stays in force"),
            n => format!("the {n} {word}s known before stay in force"),
        };
        let whose = match service.is_empty() {
            true => String::new(),
            false => format!("service {service}: "),
        };
        Some(format!(
            "{whose}source {kind}:{target} is {state}: {error}; {known}"
        ))
    }
}
