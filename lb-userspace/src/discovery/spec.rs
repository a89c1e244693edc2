//! What is configured of a source.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Catalogue, Feed, Kind, kubernetes, run};
use crate::model::{ServiceSpec, duration_text};

/// One entry of a service's `discovery:`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceSpec {
    /// What is asked, and how.
    pub kind: Kind,
    /// What becomes of the answers.
    pub settings: Settings,
}

/// One entry of the config's own `discovery:`, which finds services.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicesSpec {
    pub kind: ServicesKind,
    /// What becomes of the answers.
    pub settings: Settings,
    /// What every service is like as far as the registry does not say: a service without name, listen,
    /// source lists and backends.
    pub defaults: ServiceSpec,
}

/// What is asked for services, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServicesKind {
    Kubernetes(kubernetes::services::Config),
}

impl ServicesKind {
    /// Its key in the config.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// What is asked for, as people name it and without secrets. No two sources of services of one
    /// kind have one target.
    pub fn target(&self) -> String {
        match self {
            Self::Kubernetes(config) => config.target(),
        }
    }

    /// Runs the source for ever.
    pub(super) async fn run(self, feed: Feed<Catalogue>) {
        match self {
            Self::Kubernetes(config) => run::run(|| config.source(), feed).await,
        }
    }
}

impl ServicesSpec {
    pub fn name(&self) -> SourceName {
        SourceName {
            service: String::new(),
            kind: self.kind.name(),
            target: self.kind.target(),
        }
    }
}

/// The keys that every kind of source has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// How long an empty answer must stand until it is believed. Zero where the source is
    /// authoritative.
    #[serde(with = "duration_text")]
    pub empty_hold: Duration,
    /// How long an instance must be missing until it is gone.
    #[serde(with = "duration_text")]
    pub removal_hold: Duration,
    /// Time between full fetches; zero for none.
    #[serde(with = "duration_text")]
    pub resync: Duration,
    /// Shortest time between two changes of the pool.
    #[serde(with = "duration_text")]
    pub merge_window: Duration,
    /// Time without an answer after which what is known counts as stale.
    #[serde(with = "duration_text")]
    pub stale_after: Duration,
    /// Of instances of which the registry names none.
    pub weight: u16,
    /// Of every instance; the registry's own win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            empty_hold: Duration::from_secs(60),
            removal_hold: Duration::ZERO,
            resync: Duration::from_secs(120),
            merge_window: Duration::from_millis(500),
            stale_after: Duration::from_secs(300),
            weight: crate::config::DEFAULT_WEIGHT,
            labels: BTreeMap::new(),
        }
    }
}

impl SourceSpec {
    pub fn name(&self, service: &str) -> SourceName {
        SourceName {
            service: service.to_owned(),
            kind: self.kind.name(),
            target: self.kind.target(),
        }
    }
}

/// Which source. One whose name stays through a reload keeps what it knows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceName {
    /// Empty for one that finds services.
    pub service: String,
    /// The key in the config: `file`.
    pub kind: &'static str,
    /// What it asks for, as people name it: a path, `web.example:8080`.
    pub target: String,
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            kind,
            target,
        } = self;
        match service.is_empty() {
            true => write!(f, "{kind}:{target}"),
            false => write!(f, "{service}/{kind}:{target}"),
        }
    }
}
