//! The built lbctl against a scripted daemon: what it asks, what it prints, how it exits.

mod change;
mod documents;
mod exit;
mod file;
mod get;
mod watch;

use std::{
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::common::{Daemon, Directory, backend, done, fault, service, source, status};
use lb_userspace::{
    api::types::{
        BackendItem, EventItem, FaultCode, HealthItem, OverrideItem, Request, Response, UnsetWhat,
    },
    discovery::SourceItem,
    model::{
        BackendState, Health, HealthCheck, Mode, Override, Policy, Protocol, ServiceSpec,
        WeightOverride,
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

pub(crate) async fn lbctl(socket: &Path, arguments: &str) -> Output {
    command(socket, arguments).output().await.unwrap()
}

pub(crate) fn command(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command
        .env("LBCTL_SOCKET", socket)
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn backends() -> Vec<BackendItem> {
    let mut failed = backend("web", "[2001:db8::1]:80", BackendState::Unhealthy);
    failed.reasons.push("override: weight 50%".to_owned());
    vec![
        backend("web", "10.1.0.11:8080", BackendState::Healthy),
        failed,
    ]
}

pub(crate) fn event(id: u64) -> EventItem {
    EventItem {
        id,
        time_ms: 1_772_366_400_000,
        severity: "Warning".to_owned(),
        reason: "BackendUnhealthy".to_owned(),
        object: "backend/web/10.1.0.11:8080".to_owned(),
        message: format!("connection refused ({id} of 3)"),
    }
}

pub(crate) fn described(item: BackendItem) -> Response {
    Response::Backend {
        item,
        health: HealthItem {
            check: "tcp".to_owned(),
            successes_in_row: 0,
            failures_in_row: 3,
            last_result: Some("connection refused".to_owned()),
            last_probe_seconds_ago: Some(4),
        },
        events: vec![],
    }
}
