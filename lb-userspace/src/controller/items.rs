//! What people see of services and backends.

use lb_common::abi::BackendCounters;

use super::{
    effective::{Effective, Facts, effective},
    merge::Origin,
    view::View,
    world::Service,
};
use crate::{
    api::types::{BackendItem, HealthItem, ServiceItem},
    datapath::Datapath,
    model::{BackendState, HealthCheck, ServiceSpec},
};

/// A service and its backends, with their counters as of now.
pub(super) fn items(
    view: &View,
    datapath: &dyn Datapath,
    service: &Service,
) -> (ServiceItem, Vec<BackendItem>) {
    let backends: Vec<BackendItem> = service
        .facts()
        .zip(&service.merged.origins)
        .map(|(facts, origin)| backend_item(view, datapath, service, facts, *origin))
        .collect();
    let counted: u64 = backends.iter().map(|b| b.total_connections).sum();
    let former = view.totals.get(service.name()).copied().unwrap_or(0);
    let ServiceSpec {
        name,
        listen,
        protocol,
        forwarding,
        snat,
        tunnel_source: _,
        policy,
        no_backend,
        on_backend_down,
        admission: _,
        health: _,
        backends: _,
        discovery: _,
    } = &service.merged.spec;
    let item = ServiceItem {
        name: name.clone(),
        listen: listen.clone(),
        protocol: protocol.to_string(),
        forwarding: forwarding.to_string(),
        policy: policy.to_string(),
        snat: snat.to_string(),
        no_backend: no_backend.to_string(),
        on_backend_down: on_backend_down.to_string(),
        backends: backends.len() as u32,
        healthy_backends: healthy(&backends),
        active_connections: backends.iter().map(|b| b.active_connections).sum(),
        total_connections: counted + former,
        source: service.merged.layer.name(),
    };
    (item, backends)
}

pub(super) fn health_item(facts: Facts<'_>) -> HealthItem {
    let check = match facts.health.check {
        HealthCheck::None => "none",
        HealthCheck::Tcp => "tcp",
        HealthCheck::Http { .. } => "http",
    };
    HealthItem {
        check: check.to_owned(),
        successes_in_row: facts.verdict.successes_in_row,
        failures_in_row: facts.verdict.failures_in_row,
        last_result: facts.verdict.last_result.clone(),
        last_probe_seconds_ago: facts.verdict.last_probe.map(|at| at.elapsed().as_secs()),
    }
}

fn backend_item(
    view: &View,
    datapath: &dyn Datapath,
    service: &Service,
    facts: Facts<'_>,
    origin: Origin,
) -> BackendItem {
    let Effective {
        state,
        admit: _,
        weight: effective_weight,
        reasons,
    } = effective(facts);
    let reference = service.reference(facts.spec);
    let slot = view.placement.slots.get(&reference).copied();
    let counters = slot.map_or_else(BackendCounters::default, |slot| {
        datapath.counters(slot).unwrap_or_else(|error| {
            tracing::warn!(slot, "cannot read the counters of {reference}: {error:#}");
            BackendCounters::default()
        })
    });
    let active = slot.and_then(|slot| view.scan.active.get(&slot).copied());
    BackendItem {
        service: reference.service,
        address: facts.spec.address,
        weight: facts.spec.weight,
        effective_weight,
        state,
        reasons,
        labels: facts.spec.labels.clone(),
        active_connections: active.unwrap_or(0),
        total_connections: counters.connections,
        failed_connections: counters.refused,
        packets_in: counters.packets_in,
        bytes_in: counters.bytes_in,
        packets_out: counters.packets_out,
        bytes_out: counters.bytes_out,
        source: origin.name(),
    }
}

fn healthy(backends: &[BackendItem]) -> u32 {
    let healthy = |b: &&BackendItem| b.state == BackendState::Healthy;
    backends.iter().filter(healthy).count() as u32
}
