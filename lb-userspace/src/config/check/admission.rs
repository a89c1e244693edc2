//! Whom services let in.

use std::{collections::HashMap, time::Duration};

use super::{Item, Remarks, node::MAX_FLOWS};
use crate::model::{Admission, Affinity, Config, Rate, ServiceSpec, duration_text};

/// Highest rate, and burst: beyond it a minute's connections do not fit the bucket's count.
pub(in crate::config) const MAX_RATE: u32 = 1_000_000;

/// Longest affinity.
const MAX_AFFINITY: Duration = Duration::from_secs(86_400);

pub(super) fn admission(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    let Admission {
        allow_sources,
        deny_sources,
        max_connections,
        rate,
        source_rate,
        affinity,
    } = &spec.admission;
    let mut seen = HashMap::new();
    for (denies, list) in [(false, allow_sources), (true, deny_sources)] {
        for (at, prefix) in list.iter().enumerate() {
            let item = Item::Listed(index, denies, at);
            match seen.get(prefix) {
                Some(&(first, same)) => {
                    let message = match same == denies {
                        true => format!("source {prefix} is listed twice"),
                        false => format!(
                            "source {prefix} is both allowed and denied; remove it from one list"
                        ),
                    };
                    remarks.conflict(item, first, message);
                }
                None => {
                    seen.insert(prefix, (item, denies));
                }
            }
        }
    }
    connections(*max_connections, Item::Service(index), remarks);
    for (key, rate) in [("rate", rate), ("source_rate", source_rate)] {
        let Some(Rate {
            connections_per_second,
            burst,
        }) = rate
        else {
            continue;
        };
        for (what, value) in [
            ("connections_per_second", connections_per_second),
            ("burst", burst),
        ] {
            if !(1..=MAX_RATE).contains(value) {
                let message =
                    format!("`{key}.{what}` must be a number from 1 to {MAX_RATE}, not {value}");
                remarks.fault(Item::Service(index), message);
            }
        }
    }
    if let Some(affinity) = affinity
        && let Some(fault) = affinity_fault(*affinity)
    {
        let time = duration_text::format(affinity.client_ip);
        let message = format!("`affinity.client_ip` {fault}, not {time}");
        remarks.fault(Item::Affinity(index), message);
    }
    for (at, backend) in spec.backends.iter().enumerate() {
        connections(backend.max_connections, Item::Backend(index, at), remarks);
    }
}

/// Why clients cannot be remembered for so long.
pub(crate) fn affinity_fault(affinity: Affinity) -> Option<&'static str> {
    let time = affinity.client_ip;
    let is_whole = time.subsec_nanos() == 0 && !time.is_zero();
    (!is_whole || time > MAX_AFFINITY).then_some("must be whole seconds from 1s to 1d")
}

fn connections(limit: Option<u32>, item: Item, remarks: &mut Remarks) {
    if let Some(limit) = limit
        && !(1..=MAX_FLOWS).contains(&limit)
    {
        let message =
            format!("`max_connections` must be a number from 1 to {MAX_FLOWS}, not {limit}");
        remarks.fault(item, message);
    }
}

/// Whether the source lists fit the maps.
pub(super) fn fits_limits(config: &Config, remarks: &mut Remarks) {
    let limit = config.node.limits.sources;
    for (family, v6) in [("IPv4", false), ("IPv6", true)] {
        let lists = config.services.iter().map(|service| &service.admission);
        let sources = lists.flat_map(|a| a.allow_sources.iter().chain(a.deny_sources.iter()));
        let count = sources.filter(|prefix| prefix.is_v6() == v6).count();
        if count > limit as usize {
            let message = format!(
                "{count} {family} source prefixes, but `node.limits.sources` is {limit}; raise it"
            );
            remarks.fault(Item::Setting("node.limits.sources"), message);
        }
    }
}
