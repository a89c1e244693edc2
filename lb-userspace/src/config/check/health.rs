//! `health:` of a service.

use std::time::Duration;

use super::{Item, Remarks};
use crate::{
    config::{
        health::{MAX_COUNT, STATUSES},
        suggest::quoted,
    },
    model::{Health, HealthCheck, duration_text},
};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(86_400);
const MAX_TEXT: usize = 1024;

pub(super) fn health(health: &Health, service: usize, remarks: &mut Remarks) {
    let Health {
        check,
        port,
        interval,
        fast_interval,
        timeout,
        rise,
        fall,
    } = health;
    match check {
        HealthCheck::None | HealthCheck::Tcp => {}
        HealthCheck::Http {
            path,
            host,
            expect_status,
        } => http(path, host.as_deref(), expect_status, service, remarks),
    }
    if *port == Some(0) {
        remarks.fault(Item::Health(service, "port"), "health `port` is 0");
    }
    for (key, time) in [
        ("interval", interval),
        ("fast_interval", fast_interval),
        ("timeout", timeout),
    ] {
        if let Some(fault) = time_fault(*time) {
            let message = format!("health `{key}` {fault}");
            remarks.fault(Item::Health(service, key), message);
        }
    }
    for (key, count) in [("rise", rise), ("fall", fall)] {
        if !(1..=MAX_COUNT).contains(count) {
            let message = format!("health `{key}` must be from 1 to {MAX_COUNT}, not {count}");
            remarks.fault(Item::Health(service, key), message);
        }
    }
    for (key, time) in [("timeout", timeout), ("fast_interval", fast_interval)] {
        if time > interval {
            let message = format!(
                "health `{key}` {} is longer than `interval` {}",
                duration_text::format(*time),
                duration_text::format(*interval)
            );
            remarks.warn(Item::Health(service, key), message);
        }
    }
}

fn time_fault(time: Duration) -> Option<&'static str> {
    if time.is_zero() {
        Some("is zero; write e.g. 1s")
    } else if time < SHORTEST || time > LONGEST {
        Some("must be from 1ms to 1d")
    } else if !time.subsec_nanos().is_multiple_of(1_000_000) {
        Some("must be whole milliseconds")
    } else {
        None
    }
}

/// The path and host go into a request verbatim, so neither may end its line or its word.
fn http(path: &str, host: Option<&str>, statuses: &[u16], service: usize, remarks: &mut Remarks) {
    let graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if !path.starts_with('/') || !graphic(path) || path.len() > MAX_TEXT {
        let message = format!(
            "health `path` {} must begin with / and be at most {MAX_TEXT} ASCII characters \
             without spaces; escape others as %XX",
            quoted(path)
        );
        remarks.fault(Item::Health(service, "path"), message);
    }
    if let Some(host) = host
        && (host.is_empty() || !graphic(host) || host.contains('/') || host.len() > MAX_TEXT)
    {
        let message = format!("health `host` {} is no host name", quoted(host));
        remarks.fault(Item::Health(service, "host"), message);
    }
    let item = Item::Health(service, "expect_status");
    if statuses.is_empty() {
        remarks.fault(item, "health `expect_status` is empty; write e.g. [200]");
    }
    if let Some(status) = statuses.iter().find(|status| !STATUSES.contains(status)) {
        let message = format!("health `expect_status` {status} is no HTTP status (100–599)");
        remarks.fault(item, message);
    }
    if let Some((_, twice)) = statuses
        .iter()
        .enumerate()
        .find(|&(index, status)| statuses[..index].contains(status))
    {
        let message = format!("health `expect_status` {twice} is listed twice");
        remarks.fault(item, message);
    }
}
