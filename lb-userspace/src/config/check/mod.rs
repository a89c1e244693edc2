//! What the values of a config mean together; the same for a file and for what comes by the API.

mod address;
pub(super) mod admission;
mod health;
pub(super) mod node;
mod service;

pub(crate) use self::{
    address::{backend_fault, listen_fault},
    admission::affinity_fault,
    service::label_fault,
};
use crate::{
    config::discovery,
    model::{Config, ServiceSpec},
};

/// Every fault of a config that did not come from a file; empty if it may be applied.
pub fn check(config: &Config) -> Vec<String> {
    remarks(config)
        .into_iter()
        .filter(|remark| remark.severity == Severity::Fault)
        .map(|remark| match remark.item.service() {
            Some(index) => format!("{}: {}", owner(config, index), remark.message),
            None => remark.message,
        })
        .collect()
}

fn owner(config: &Config, index: usize) -> String {
    if let Some(service) = config.services.get(index) {
        return format!("service `{}`", service.name);
    }
    let source = config.discovery.get(index - config.services.len());
    let name = source.map(|source| source.name().to_string());
    format!("discovery {}", name.unwrap_or_default())
}

/// A value that a remark can be about. Numbers are indices into `services`, `listen`, `backends`.
/// Behind the services come the sources of services: as services that have this one source, and are
/// like their `defaults`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Item {
    /// One outside services, by its keys: `admin.http`.
    Setting(&'static str),
    Interface(usize),
    SnatAddress(usize),
    Service(usize),
    Name(usize),
    Listens(usize),
    Listen(usize, usize),
    /// One of a service's keys that say how it is served.
    Choice(usize, &'static str),
    Backends(usize),
    Backend(usize, usize),
    Labels(usize, usize),
    OnBackendDown(usize),
    /// Of the service, whether it is on the list of the denied, its place in its list.
    Listed(usize, bool, usize),
    Affinity(usize),
    /// A key of `health`, or all of it for an empty one.
    Health(usize, &'static str),
    Discovery(usize),
    Source(usize, usize),
    /// A key of a source.
    SourceKey(usize, usize, &'static str),
}

impl Item {
    /// What the value is a part of.
    pub(super) fn parent(self) -> Option<Self> {
        match self {
            Self::Setting(_) => None,
            Self::Interface(_) => Some(Self::Setting("node.interfaces")),
            Self::SnatAddress(_) => Some(Self::Setting("node.snat_addresses")),
            Self::Service(_) => Some(Self::Setting("services")),
            Self::Name(service)
            | Self::Listens(service)
            | Self::Choice(service, _)
            | Self::Backends(service)
            | Self::OnBackendDown(service)
            | Self::Listed(service, ..)
            | Self::Affinity(service)
            | Self::Discovery(service)
            | Self::Health(service, "") => Some(Self::Service(service)),
            Self::Source(service, _) => Some(Self::Discovery(service)),
            Self::SourceKey(service, source, _) => Some(Self::Source(service, source)),
            Self::Listen(service, _) => Some(Self::Listens(service)),
            Self::Backend(service, _) => Some(Self::Backends(service)),
            Self::Labels(service, backend) => Some(Self::Backend(service, backend)),
            Self::Health(service, _) => Some(Self::Health(service, "")),
        }
    }

    fn service(self) -> Option<usize> {
        match self {
            Self::Setting(_) | Self::Interface(_) | Self::SnatAddress(_) => None,
            Self::Service(service)
            | Self::Name(service)
            | Self::Listens(service)
            | Self::Listen(service, _)
            | Self::Choice(service, _)
            | Self::Backends(service)
            | Self::Backend(service, _)
            | Self::Labels(service, _)
            | Self::OnBackendDown(service)
            | Self::Listed(service, ..)
            | Self::Affinity(service)
            | Self::Discovery(service)
            | Self::Source(service, _)
            | Self::SourceKey(service, ..)
            | Self::Health(service, _) => Some(service),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Severity {
    Fault,
    Warning,
}

/// Something to say about a value.
pub(super) struct Remark {
    pub(super) severity: Severity,
    pub(super) item: Item,
    pub(super) message: String,
    /// The value it conflicts with.
    pub(super) other: Option<Item>,
}

pub(super) fn remarks(config: &Config) -> Vec<Remark> {
    let mut remarks = Remarks(Vec::new());
    node::node(&config.node, &mut remarks);
    node::admin(&config.admin, &mut remarks);
    node::fits_limits(config, &mut remarks);
    admission::fits_limits(config, &mut remarks);
    for (index, spec) in config.services.iter().enumerate() {
        service::service(spec, index, &mut remarks);
        admission::admission(spec, index, &mut remarks);
        health::health(&spec.health, index, &mut remarks);
        discovery::check(&spec.discovery, index, &mut remarks);
    }
    discovery::services::check(config, &mut remarks);
    service::names_differ(config, &mut remarks);
    service::listens_differ(config, &mut remarks);
    remarks.0
}

/// What is wrong with the defaults of services that a source finds.
pub(super) fn defaults(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    service::manners(spec, index, remarks);
    admission::admission(spec, index, remarks);
    health::health(&spec.health, index, remarks);
}

pub(super) struct Remarks(Vec<Remark>);

impl Remarks {
    pub(super) fn fault(&mut self, item: Item, message: impl Into<String>) {
        self.push(Severity::Fault, item, message.into(), None);
    }

    pub(super) fn warn(&mut self, item: Item, message: impl Into<String>) {
        self.push(Severity::Warning, item, message.into(), None);
    }

    pub(super) fn conflict(&mut self, item: Item, other: Item, message: impl Into<String>) {
        self.push(Severity::Fault, item, message.into(), Some(other));
    }

    fn push(&mut self, severity: Severity, item: Item, message: String, other: Option<Item>) {
        self.0.push(Remark {
            severity,
            item,
            message,
            other,
        });
    }
}
