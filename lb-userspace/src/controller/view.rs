use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use super::{
    effective::effective,
    world::{Layers, Service},
};
use crate::{
    api::types::{EventItem, StatusItem},
    datapath::{Attachment, Datapath, FlowScan},
    discovery::SourceItem,
    model::{Admin, BackendState, Config, Node},
    plan::{Admit, Placement},
    state::State,
};

/// What the controller knows at one moment, shared with readers so that they hold up nothing.
#[derive(Clone)]
pub(super) struct View {
    pub layers: Arc<Layers>,
    pub services: Vec<Arc<Service>>,
    pub placement: Arc<Placement>,
    pub scan: Arc<FlowScan>,
    /// Service → connections of slots that are gone.
    pub totals: HashMap<String, u64>,
    pub events: Vec<Arc<EventItem>>,
    /// What is wrong with the daemon itself, one sentence each.
    pub problems: Vec<String>,
    pub sources: Vec<SourceItem>,
    pub ready: bool,
    pub started: Instant,
    pub config_file: Option<PathBuf>,
    pub last_reload: String,
    pub counts: Counts,
}

/// Counted since the daemon began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    pub repairs: u64,
    pub flows_aged: u64,
    pub tables_written: u64,
}

impl View {
    /// What is left to see once the controller has stopped.
    pub(super) fn stopped() -> Self {
        Self {
            layers: Arc::new(Layers {
                file: Arc::new(Config {
                    node: Node::default(),
                    admin: Admin::default(),
                    services: Vec::new(),
                    discovery: Vec::new(),
                }),
                state: State::default(),
                found: Arc::default(),
            }),
            services: Vec::new(),
            placement: Arc::default(),
            scan: Arc::default(),
            totals: HashMap::new(),
            events: Vec::new(),
            problems: vec!["lbd is stopping; the data path keeps running".to_owned()],
            sources: Vec::new(),
            ready: false,
            started: Instant::now(),
            config_file: None,
            last_reload: "ok".to_owned(),
            counts: Counts::default(),
        }
    }

    pub(super) fn status(&self, datapath: &dyn Datapath) -> StatusItem {
        let states: Vec<BackendState> = self
            .services
            .iter()
            .flat_map(|service| service.facts().map(|facts| effective(facts).state))
            .collect();
        let healthy = states.iter().filter(|s| **s == BackendState::Healthy);
        let devices = datapath.attachments();
        let problems = self.problems.iter().cloned();
        StatusItem {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.ready,
            problems: problems
                .chain(devices.iter().filter_map(|(name, how)| unserved(name, how)))
                .chain(self.services.iter().filter_map(|s| trouble(s)))
                .chain(self.sources.iter().filter_map(SourceItem::trouble))
                .collect(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config_file: self.config_file.as_ref().map(|p| p.display().to_string()),
            last_reload: self.last_reload.clone(),
            interfaces: devices
                .into_iter()
                .map(|(name, how)| (name, how.to_string()))
                .collect(),
            services: self.services.len() as u32,
            backends: states.len() as u32,
            healthy_backends: healthy.count() as u32,
            active_connections: self.scan.active.values().sum(),
        }
    }

    /// (service, backend, result) → probes.
    pub(super) fn probes(&self) -> BTreeMap<(String, SocketAddr, &'static str), u64> {
        let mut probes = BTreeMap::new();
        for service in &self.services {
            for (facts, observed) in service.facts().zip(&service.observed) {
                for (result, count) in &observed.probes {
                    let key = (service.name().to_owned(), facts.spec.address, *result);
                    probes.insert(key, *count);
                }
            }
        }
        probes
    }
}

/// What is wrong with a device, if anything is.
fn unserved(name: &str, how: &Attachment) -> Option<String> {
    match how {
        Attachment::Served(_) => None,
        Attachment::Refused(reason) => Some(format!(
            "device {name} is not served: {reason}; packets that come in there are not balanced; \
             tried again every 10 s"
        )),
        Attachment::Missing => Some(format!(
            "device {name} (`node.interfaces`) is missing: packets that come in there are not \
             balanced; lbd serves it as soon as it is there, or take it off the list and restart lbd"
        )),
    }
}

/// What is wrong with a service, if anything is. What an operator asked for is not.
fn trouble(service: &Service) -> Option<String> {
    let name = service.name();
    let backends: Vec<_> = service.facts().map(|f| (f.spec, effective(f))).collect();
    if backends.is_empty() {
        // That a Service has no endpoints, or none for this node, is what its registry says.
        let is_fault = !service.merged.is_found();
        return is_fault.then(|| format!("service {name} has no backends"));
    }
    let unhealthy: Vec<String> = backends
        .iter()
        .filter(|(_, e)| e.state == BackendState::Unhealthy)
        .map(|(spec, e)| format!("{}: {}", spec.address, e.reasons.join(", ")))
        .collect();
    let count = backends.len();
    let serves = backends.iter().any(|(_, e)| e.admit == Admit::Active);
    match (serves, &unhealthy[..]) {
        (true, []) => None,
        (true, _) => Some(format!(
            "service {name}: {} of {count} backends unhealthy ({})",
            unhealthy.len(),
            unhealthy.join("; ")
        )),
        (false, []) => Some(format!(
            "service {name}: none of its {count} backends takes connections"
        )),
        (false, _) => Some(format!(
            "service {name}: none of its {count} backends takes connections ({})",
            unhealthy.join("; ")
        )),
    }
}
