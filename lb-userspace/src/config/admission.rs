//! Whom a service lets in: source lists, rates, limits, affinity.

use std::time::Duration;

use super::{
    check::{Item, admission::MAX_RATE, node::MAX_FLOWS},
    report::Report,
    tree::Node,
    value::{Fields, duration, list, number, text},
};
use crate::model::{Admission, Affinity, Prefix, Prefixes, Rate};

pub(super) const KEYS: [&str; 6] = [
    "allow_sources",
    "deny_sources",
    "max_connections",
    "rate",
    "source_rate",
    "affinity",
];

pub(super) fn admission(fields: &Fields<'_>, index: usize, report: &mut Report) -> Admission {
    let mut sources = |key, denies| match fields.get(key) {
        Some(value) => prefixes(value, key, (index, denies), report),
        None => Prefixes::default(),
    };
    let (allow_sources, deny_sources) = (
        sources("allow_sources", false),
        sources("deny_sources", true),
    );
    let mut tokens = |key| fields.get(key).and_then(|value| rate(value, key, report));
    let (service_rate, source_rate) = (tokens("rate"), tokens("source_rate"));
    Admission {
        allow_sources,
        deny_sources,
        max_connections: fields
            .get("max_connections")
            .and_then(|value| number(value, "max_connections", 1..=MAX_FLOWS, report)),
        rate: service_rate,
        source_rate,
        affinity: fields
            .get("affinity")
            .and_then(|value| affinity(value, index, report)),
    }
}

fn prefixes(
    value: &Node,
    key: &str,
    (index, denies): (usize, bool),
    report: &mut Report,
) -> Prefixes {
    let expected = "a list of prefixes such as [10.0.0.0/8]";
    let Some(nodes) = list(value, key, expected, report) else {
        return Prefixes::default();
    };
    if nodes.is_empty() {
        let message = format!("`{key}` lists nothing; write at least one prefix, or remove it");
        report.fault(value.place, message);
    }
    let mut found = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(written) = text(node, key, "a prefix such as 10.0.0.0/8", report) else {
            continue;
        };
        match written.parse::<Prefix>() {
            Ok(prefix) => {
                report.found_at(Item::Listed(index, denies, found.len()), node.place);
                found.push(prefix);
            }
            Err(fault) => report.fault(node.place, format!("`{key}`: {fault}")),
        }
    }
    found.into_iter().collect()
}

/// The burst is a second's worth unless something else is written.
fn rate(value: &Node, key: &str, report: &mut Report) -> Option<Rate> {
    let keys = ["connections_per_second", "burst"];
    let fields = Fields::of(value, key, &keys, &[], report)?;
    let each = fields.require("connections_per_second", &format!("`{key}`"), "100", report)?;
    let connections_per_second = number(each, "connections_per_second", 1..=MAX_RATE, report)?;
    let burst = match fields.get("burst") {
        Some(value) => number(value, "burst", 1..=MAX_RATE, report)?,
        None => connections_per_second,
    };
    Some(Rate {
        connections_per_second,
        burst,
    })
}

fn affinity(value: &Node, index: usize, report: &mut Report) -> Option<Affinity> {
    report.faulty(Item::Affinity(index));
    let fields = Fields::of(value, "affinity", &["client_ip"], &[], report)?;
    let time = fields.require("client_ip", "`affinity`", "10m", report)?;
    let client_ip: Duration = duration(time, "client_ip", report)?;
    report.found_at(Item::Affinity(index), time.place);
    Some(Affinity { client_ip })
}
