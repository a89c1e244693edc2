//! A scrape's text. The registry is built anew for every scrape, so that a series ends with its
//! object.

use lb_common::abi::Drop;
use prometheus::{
    Encoder, Histogram, IntCounterVec, IntGaugeVec, Opts, Registry, Result, TextEncoder,
};

use super::help;
use crate::{
    api::types::BackendItem,
    controller::Snapshot,
    datapath::MapFill,
    discovery::{Class, SourceItem},
    model::BackendState,
};

const STATES: [BackendState; 6] = [
    BackendState::Unknown,
    BackendState::Healthy,
    BackendState::Unhealthy,
    BackendState::Ejected,
    BackendState::Draining,
    BackendState::Maintenance,
];

pub(super) fn text(snapshot: &Snapshot, ready: bool, reconcile: &Histogram) -> Result<Vec<u8>> {
    let scrape = Scrape(Registry::new());
    scrape.0.register(Box::new(reconcile.clone()))?;
    scrape.node(snapshot, ready)?;
    scrape.services(snapshot)?;
    scrape.backends(&snapshot.backends)?;
    scrape.sources(&snapshot.sources)?;
    scrape.drops(&snapshot.drops)?;
    scrape.maps(&snapshot.map_fill)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&scrape.0.gather(), &mut text)?;
    Ok(text)
}

struct Scrape(Registry);

impl Scrape {
    fn node(&self, snapshot: &Snapshot, ready: bool) -> Result<()> {
        let version = &snapshot.status.version;
        self.gauge("lbd_build_info", &["version"])?
            .with_label_values(&[version])
            .set(1);
        self.gauge("lbd_ready", &[])?
            .with_label_values::<&str>(&[])
            .set(ready.into());
        let reloads = self.counter("lbd_reloads_total", &["result"])?;
        add(&reloads, &["ok"], snapshot.reloads_ok);
        add(&reloads, &["error"], snapshot.reloads_failed);
        add(
            &self.counter("lbd_repairs_total", &[])?,
            &[],
            snapshot.repairs,
        );
        add(
            &self.counter("lbd_tables_written_total", &[])?,
            &[],
            snapshot.tables_written,
        );
        add(
            &self.counter("lbd_flows_aged_total", &[])?,
            &[],
            snapshot.flows_aged,
        );
        Ok(())
    }

    fn services(&self, snapshot: &Snapshot) -> Result<()> {
        let connections = self.counter("lbd_service_connections_total", &["service"])?;
        for service in &snapshot.services {
            add(&connections, &[&service.name], service.total_connections);
        }
        let labels = ["service", "backend", "result"];
        let checks = self.counter("lbd_health_checks_total", &labels)?;
        for ((service, address, result), count) in &snapshot.health_checks {
            add(&checks, &[service, &address.to_string(), result], *count);
        }
        Ok(())
    }

    fn backends(&self, backends: &[BackendItem]) -> Result<()> {
        let one = ["service", "backend"];
        let directed = ["service", "backend", "direction"];
        let connections = self.counter("lbd_backend_connections_total", &one)?;
        let refused = self.counter("lbd_backend_refused_connections_total", &one)?;
        let packets = self.counter("lbd_backend_packets_total", &directed)?;
        let bytes = self.counter("lbd_backend_bytes_total", &directed)?;
        let active = self.gauge("lbd_backend_active_connections", &one)?;
        let weight = self.gauge("lbd_backend_weight", &one)?;
        let effective = self.gauge("lbd_backend_effective_weight", &one)?;
        let state = self.gauge("lbd_backend_state", &["service", "backend", "state"])?;
        for item in backends {
            let address = item.address.to_string();
            let key = [item.service.as_str(), &address];
            let to = |direction| [key[0], key[1], direction];
            add(&connections, &key, item.total_connections);
            add(&refused, &key, item.failed_connections);
            add(&packets, &to("in"), item.packets_in);
            add(&packets, &to("out"), item.packets_out);
            add(&bytes, &to("in"), item.bytes_in);
            add(&bytes, &to("out"), item.bytes_out);
            set(&active, &key, item.active_connections);
            set(&weight, &key, item.weight.into());
            set(&effective, &key, item.effective_weight.into());
            for one in STATES {
                let name = one.to_string();
                let labels = [key[0], key[1], &name];
                set(&state, &labels, (item.state == one).into());
            }
        }
        Ok(())
    }

    fn sources(&self, sources: &[SourceItem]) -> Result<()> {
        let one = ["service", "kind", "target"];
        let errors = self.counter(
            "lbd_source_errors_total",
            &["service", "kind", "target", "class"],
        )?;
        let updates = self.counter("lbd_source_updates_total", &one)?;
        let instances = self.gauge("lbd_source_instances", &one)?;
        let services = self.gauge("lbd_source_services", &one)?;
        let success = self.gauge("lbd_source_last_success_timestamp_seconds", &one)?;
        let stale = self.gauge("lbd_source_stale", &one)?;
        for item in sources {
            let key = [&*item.service, &*item.kind, &*item.target];
            for class in Class::ALL {
                let count = item.errors_by_class.get(class.name()).copied();
                let labels = [key[0], key[1], key[2], class.name()];
                add(&errors, &labels, count.unwrap_or(0));
            }
            add(&updates, &key, item.updates);
            set(&instances, &key, item.instances.into());
            if let Some(count) = item.services {
                set(&services, &key, count.into());
            }
            set(&success, &key, item.last_success_ms.unwrap_or(0) / 1000);
            set(&stale, &key, item.is_stale().into());
        }
        Ok(())
    }

    /// Reasons that never happened are shown as 0: a rate needs a series to begin with.
    fn drops(&self, drops: &[u64]) -> Result<()> {
        let counter = self.counter("lbd_drops_total", &["reason"])?;
        for reason in Drop::ALL {
            let count = drops.get(reason as usize).copied().unwrap_or(0);
            add(&counter, &[reason.name()], count);
        }
        Ok(())
    }

    fn maps(&self, fill: &[MapFill]) -> Result<()> {
        let entries = self.gauge("lbd_map_entries", &["map"])?;
        let capacity = self.gauge("lbd_map_capacity", &["map"])?;
        for map in fill {
            set(&entries, &[map.map], map.entries);
            set(&capacity, &[map.map], map.capacity);
        }
        Ok(())
    }

    fn counter(&self, name: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counter = IntCounterVec::new(Opts::new(name, help(name)), labels)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn gauge(&self, name: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let gauge = IntGaugeVec::new(Opts::new(name, help(name)), labels)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }
}

fn add(counter: &IntCounterVec, labels: &[&str], count: u64) {
    counter.with_label_values(labels).inc_by(count);
}

fn set(gauge: &IntGaugeVec, labels: &[&str], value: u64) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    gauge.with_label_values(labels).set(value);
}
