//! The socket's requests and answers, shared by the daemon and `lbctl`. One POST to `/v1/call`
//! carries one [`Request`] and is answered by a [`Response`] or, with a 4xx status, a [`Fault`].

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    discovery::SourceItem,
    model::{
        BackendRef, BackendSpec, BackendState, Mode, Override, ServiceSpec, WeightOverride,
        duration_text,
    },
};

pub const API_VERSION: &str = "lb/v1";

// One at a time: its size is nobody's matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    GetServices,
    /// All backends, or those of one service.
    GetBackends {
        service: Option<String>,
    },
    /// All sources of backends, or those of one service.
    GetSources {
        service: Option<String>,
    },
    GetOverrides,
    /// Events after `since` (0: all that are kept).
    GetEvents {
        since: u64,
    },
    /// Everything about one service: the spec in force, and what is observed.
    DescribeService {
        name: String,
    },
    DescribeBackend {
        backend: BackendRef,
    },
    Status,
    AddService {
        service: ServiceSpec,
    },
    /// Fails with `refused` for services of the config file.
    RemoveService {
        name: String,
    },
    AddBackend {
        service: String,
        backend: BackendSpec,
    },
    RemoveBackend {
        backend: BackendRef,
    },
    SetWeight {
        backend: BackendRef,
        weight: WeightOverride,
    },
    /// `lbctl drain`, `ready`, `maint`.
    SetMode {
        backend: BackendRef,
        mode: Mode,
        /// Of a drain: how long until the connections that are left end.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        deadline: Option<Deadline>,
    },
    /// Removes an override: `weight`, `mode`, or both.
    Unset {
        backend: BackendRef,
        what: UnsetWhat,
    },
    /// What the daemon would change if this file (its text) were the config file.
    Diff {
        text: String,
    },
    /// Makes services of a file those of the CLI layer: adds or replaces them, all or nothing.
    Apply {
        text: String,
        dry_run: bool,
    },
    /// The whole configuration in force, as a config file.
    Export,
    /// Reads the config file again, all or nothing.
    Reload,
}

/// A time from now, as people write it: `5m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deadline(#[serde(with = "duration_text")] pub Duration);

impl From<Duration> for Deadline {
    fn from(time: Duration) -> Self {
        Self(time)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsetWhat {
    Weight,
    Mode,
    All,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Response {
    Services {
        items: Vec<ServiceItem>,
    },
    Backends {
        items: Vec<BackendItem>,
    },
    Sources {
        items: Vec<SourceItem>,
    },
    Overrides {
        items: Vec<OverrideItem>,
    },
    Events {
        items: Vec<EventItem>,
    },
    Service {
        spec: Box<ServiceSpec>,
        item: ServiceItem,
        backends: Vec<BackendItem>,
        #[serde(default)]
        sources: Vec<SourceItem>,
        events: Vec<EventItem>,
    },
    Backend {
        item: BackendItem,
        health: HealthItem,
        events: Vec<EventItem>,
    },
    Status(StatusItem),
    /// The change was made; `message` says what was done in one line.
    Done {
        message: String,
    },
    /// Differences in words, one a line (`+ service web`, `- backend web/10.0.0.1:80`, `~ …`); empty if equal.
    Diff {
        changes: Vec<String>,
    },
    Export {
        text: String,
    },
}

/// Why a request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    pub code: FaultCode,
    /// What was wrong, where, and what to do.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultCode {
    /// The request is malformed or a value is out of range (exit code 2).
    Invalid,
    /// Exit code 5.
    NotFound,
    /// It exists already, or collides with another object (exit code 6).
    Conflict,
    /// A guard refuses (exit code 7).
    Refused,
    /// The daemon could not carry it out (exit code 3).
    Failed,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceItem {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub protocol: String,
    pub forwarding: String,
    pub policy: String,
    pub snat: String,
    pub no_backend: String,
    pub on_backend_down: String,
    pub backends: u32,
    pub healthy_backends: u32,
    pub active_connections: u64,
    pub total_connections: u64,
    /// `file`, `cli`, or `discovery:` and the kind of the source that found it.
    pub source: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendItem {
    pub service: String,
    pub address: SocketAddr,
    /// As configured.
    pub weight: u16,
    /// What the kernel's table is built with now; 0 while it takes no new connections.
    pub effective_weight: u32,
    pub state: BackendState,
    /// Why it is in this state, e.g. `health: connection refused (3 of 3)`, `override: drain`.
    pub reasons: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub active_connections: u64,
    pub total_connections: u64,
    pub failed_connections: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    /// `file`, `cli`, or `discovery:` and the kind of the source that found it.
    pub source: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthItem {
    /// `tcp`, `http` or `none`.
    pub check: String,
    pub successes_in_row: u32,
    pub failures_in_row: u32,
    /// Result of the last probe in words, `None` before the first.
    pub last_result: Option<String>,
    /// Seconds since the last probe ended.
    pub last_probe_seconds_ago: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OverrideItem {
    pub backend: BackendRef,
    #[serde(rename = "override", with = "OverrideFields")]
    pub value: Override,
}

/// How items spell an [`Override`]; the state file has names of its own.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Override", rename_all = "camelCase")]
struct OverrideFields {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    weight: Option<WeightOverride>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventItem {
    /// Counts up from 1 for as long as the daemon lives.
    pub id: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `Normal` or `Warning`, as in kubectl.
    pub severity: String,
    /// CamelCase word, e.g. `BackendUnhealthy`, `Reloaded`, `Repaired`.
    pub reason: String,
    /// `service/web`, `backend/web/10.0.0.1:80`, `node`.
    pub object: String,
    pub message: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusItem {
    pub version: String,
    pub ready: bool,
    /// What is not as it should be, one sentence each; empty if all is well.
    pub problems: Vec<String>,
    pub uptime_seconds: u64,
    pub config_file: Option<String>,
    /// Result of the last reload: `ok` or the error.
    pub last_reload: String,
    pub interfaces: BTreeMap<String, String>,
    pub services: u32,
    pub backends: u32,
    pub healthy_backends: u32,
    pub active_connections: u64,
}
