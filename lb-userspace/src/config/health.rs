//! `health:` of a service, as a mapping or as the type alone.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    check::Item,
    report::Report,
    suggest::quoted,
    tree::{Data, Node},
    value::{Fields, choice, duration, number, one_or_many, text},
};
use crate::model::{Health, HealthCheck, Protocol};

/// Statuses HTTP knows.
pub(super) const STATUSES: RangeInclusive<u16> = 100..=599;

/// Path that is probed unless one is named.
pub(super) const DEFAULT_PATH: &str = "/";

/// Status that is expected unless others are named.
pub(super) const DEFAULT_STATUS: u16 = 200;

const KEYS: [&str; 10] = [
    "type",
    "path",
    "host",
    "port",
    "expect_status",
    "interval",
    "fast_interval",
    "timeout",
    "rise",
    "fall",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    None,
    Tcp,
    Http,
}

const TYPES: [(&str, Type); 3] = [
    ("none", Type::None),
    ("tcp", Type::Tcp),
    ("http", Type::Http),
];

/// Health of a service that says nothing about it: a TCP probe for TCP, none for UDP.
pub fn default_for(protocol: Protocol) -> Health {
    let check = match protocol {
        Protocol::Tcp => HealthCheck::Tcp,
        Protocol::Udp => HealthCheck::None,
    };
    Health {
        check,
        ..Health::default()
    }
}

/// Timeout and fast interval of a check that names only its interval: the usual ones, but never
/// longer than the interval.
pub(super) fn derived(interval: Duration) -> (Duration, Duration) {
    let usual = Health::default();
    (
        usual.timeout.min(interval),
        usual.fast_interval.min(interval),
    )
}

pub(super) fn health(
    value: &Node,
    protocol: Protocol,
    service: usize,
    report: &mut Report,
) -> Health {
    report.found_at(Item::Health(service, ""), value.place);
    let mut health = default_for(protocol);
    if matches!(&*value.data, Data::Scalar { .. }) {
        if let Some(kind) = choice(value, "health", &TYPES, &[], report) {
            health.check = bare(kind);
        }
        return health;
    }
    let Some(fields) = Fields::of(value, "health", &KEYS, &[], report) else {
        return health;
    };
    match fields.get("type") {
        Some(value) => match choice(value, "type", &TYPES, &[], report) {
            Some(Type::Http) => health.check = http(&fields, service, report),
            Some(kind) => {
                health.check = bare(kind);
                only_for_http(&fields, report);
            }
            None => {}
        },
        None => only_for_http(&fields, report),
    }
    if let Some(port) = fields
        .get("port")
        .and_then(|value| number(value, "port", 1..=65535, report))
    {
        health.port = u16::try_from(port).ok();
    }
    times(&fields, &mut health, service, report);
    health
}

fn bare(kind: Type) -> HealthCheck {
    match kind {
        Type::None => HealthCheck::None,
        Type::Tcp => HealthCheck::Tcp,
        Type::Http => HealthCheck::Http {
            path: DEFAULT_PATH.to_owned(),
            host: None,
            expect_status: vec![DEFAULT_STATUS],
        },
    }
}

fn only_for_http(fields: &Fields<'_>, report: &mut Report) {
    for key in ["path", "host", "expect_status"] {
        if let Some(value) = fields.get(key) {
            let message = format!("`{key}` is only for `type: http`; set the type or remove it");
            report.fault(value.place, message);
        }
    }
}

fn http(fields: &Fields<'_>, service: usize, report: &mut Report) -> HealthCheck {
    let mut word = |key: &'static str, expected| {
        let value = fields.get(key)?;
        let word = text(value, key, expected, report);
        match word {
            Some(_) => report.found_at(Item::Health(service, key), value.place),
            None => report.faulty(Item::Health(service, key)),
        }
        word.map(str::to_owned)
    };
    let path = word("path", "a path such as /healthz").unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let host = word("host", "a host name");
    let expect_status = match fields.get("expect_status") {
        Some(value) => statuses(value, service, report),
        None => vec![DEFAULT_STATUS],
    };
    HealthCheck::Http {
        path,
        host,
        expect_status,
    }
}

/// Statuses in the order given, ranges such as `200-299` written out.
fn statuses(value: &Node, service: usize, report: &mut Report) -> Vec<u16> {
    let item = Item::Health(service, "expect_status");
    let mut statuses = Vec::new();
    let nodes = one_or_many(value);
    report.found_at(item, value.place);
    for node in nodes {
        let expected = "a status such as 200 or a range such as 200-299";
        let Some(written) = text(node, "expect_status", expected, report) else {
            report.faulty(item);
            continue;
        };
        let Some(range) = status_range(written) else {
            let message = format!("`expect_status`: {} is not {expected}", quoted(written));
            report.fault(node.place, message);
            report.faulty(item);
            continue;
        };
        if let Some(twice) = range.clone().find(|status| statuses.contains(status)) {
            let message = format!("`expect_status`: {twice} is listed twice");
            report.fault(node.place, message);
            report.faulty(item);
            continue;
        }
        statuses.extend(range);
    }
    statuses
}

fn status_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let status = text.trim().parse().ok()?;
        STATUSES.contains(&status).then_some(status)
    };
    let range = status(first)?..=status(last)?;
    (!range.is_empty()).then_some(range)
}

fn times(fields: &Fields<'_>, health: &mut Health, service: usize, report: &mut Report) {
    let mut time = |key: &'static str| {
        let item = Item::Health(service, key);
        let Some(value) = fields.get(key) else {
            // It follows from the interval, of which everything is said already.
            report.faulty(item);
            return None;
        };
        let duration = duration(value, key, report);
        match duration {
            Some(_) => report.found_at(item, value.place),
            None => report.faulty(item),
        }
        duration
    };
    if let Some(interval) = time("interval") {
        health.interval = interval;
    }
    let (timeout, fast_interval) = derived(health.interval);
    health.timeout = time("timeout").unwrap_or(timeout);
    health.fast_interval = time("fast_interval").unwrap_or(fast_interval);
    for (key, target) in [("rise", &mut health.rise), ("fall", &mut health.fall)] {
        if let Some(count) = fields
            .get(key)
            .and_then(|value| number(value, key, 1..=MAX_COUNT, report))
        {
            *target = count;
        }
    }
}

/// Highest `rise` and `fall`; more would take hours to notice anything.
pub(super) const MAX_COUNT: u32 = 1000;
