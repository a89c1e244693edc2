//! From what should be to what must change: pure.
//!
//! Numbers are sticky: what the kernel knows under a service id or a slot keeps it, so that a
//! restarted daemon changes nothing and a service's connections survive every other change.

mod admission;
mod change;
mod kept;
mod part;
mod ports;
mod services;
mod slots;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Backend, Service};

use crate::{
    datapath::{Capacity, Listen},
    model::{
        Admission, BackendRef, Forwarding, NoBackend, OnBackendDown, Policy, Protocol, Sources,
    },
};

use kept::Kept;

pub use admission::{Admissions, edited};
pub use change::{Change, Target, changes};
pub use part::plan_part;
pub use services::table_index;
pub use slots::socket_address;
pub use tables::{Digest, Recipe, Table};

/// What the kernel should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub services: Vec<DesiredService>,
    /// Where services listen of which nothing is known but what the kernel holds: they stay as they
    /// are.
    pub kept: BTreeSet<Listen>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    pub policy: Policy,
    pub no_backend: NoBackend,
    pub on_backend_down: OnBackendDown,
    pub admission: Admission,
    /// [`Admission::sources`].
    pub sources: Sources,
    pub backends: Vec<DesiredBackend>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    pub address: SocketAddr,
    /// Effective weight; 0 takes no new connections.
    pub weight: u32,
    pub admit: Admit,
    /// Address of the node that connections come from: all with `snat`, else those of the backend to
    /// itself.
    pub source: Option<IpAddr>,
    /// Whether clients' addresses are replaced; without `source` they are not.
    pub snat: bool,
    /// Where a tunnel to it begins, `None` if there is none.
    pub tunnel: Option<Tunnel>,
    /// 0 for no limit.
    pub max_connections: u32,
}

/// The node's end of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    pub source: IpAddr,
    /// Low bits of the source that differ from flow to flow; beyond 32 as good as 32.
    pub spread: u8,
}

impl DesiredService {
    pub fn listens(&self) -> impl Iterator<Item = Listen> {
        self.listen.iter().map(|address| Listen {
            address: *address,
            protocol: self.protocol,
        })
    }
}

/// Becomes `lb_common::abi::backend_state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admit {
    Active,
    Draining,
    Down,
    /// Its time to drain is over.
    Closed,
}

/// What the kernel holds, as last written or read back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Installed {
    pub services: BTreeMap<Listen, Service>,
    /// The addresses whose echo requests are answered: those of all services.
    pub echoes: BTreeSet<IpAddr>,
    /// Every slot that was ever used: a free one keeps its generation, from which the next one
    /// follows.
    pub backends: BTreeMap<u32, Backend>,
    pub tables: BTreeMap<u32, Digest>,
    /// The port bitmaps' words.
    pub ports: Vec<u64>,
    pub admissions: Admissions,
}

/// Where things stand in the kernel after a plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// Service name → id.
    pub services: HashMap<String, u32>,
    pub slots: HashMap<BackendRef, u32>,
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub desired: &'a Desired,
    pub installed: &'a Installed,
    /// Flow entries per slot as of the last scan, `None` before the first.
    pub present: Option<&'a HashMap<u32, u64>>,
    /// Slots that took no new connections any more when `present` was counted. Only these are
    /// freed: in others a connection may have begun since.
    pub retired: &'a HashSet<u32>,
    /// What the installed tables were built from, as far as known; those need no rebuilding.
    pub recipes: &'a HashMap<u32, Recipe>,
    pub capacity: Capacity,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// In an order in which traffic is never misrouted, whatever the last one carried out.
    pub changes: Vec<Change>,
    pub placement: Placement,
    /// Objects left out, each with the reason and the remedy.
    pub refused: Vec<String>,
    /// Slots of removed backends that are kept for the flows they may have.
    pub retired: HashSet<u32>,
}

pub fn plan(input: Input<'_>) -> Plan {
    let mut plan = Plan::default();
    let placed = services::place(input, &mut plan.refused);
    let kept = Kept::new(input, &placed);
    let slots = slots::assign(input, &placed, &kept, &mut plan.refused);
    let mut tables = tables::tables(input, &placed, &slots);
    tables.extend(kept.tables(input));
    let mut admissions = admission::admissions(input, &placed, &mut plan.refused);
    kept.add_admissions(input, &mut admissions);
    let listens = placed.iter().flat_map(|s| &s.listens).copied();
    let listens = listens.chain(kept.services.keys().copied());
    let ports = ports::words(input, listens, &slots.backends);
    for service in &placed {
        let name = service.desired.name.clone();
        plan.placement.services.insert(name, service.id);
    }
    plan.placement.slots = slots.placement;
    plan.retired = slots.retired;
    plan.changes = changes(
        input.installed,
        Target {
            services: placed
                .iter()
                .flat_map(|s| s.entries())
                .chain(kept.services.clone())
                .collect(),
            echoes: placed
                .iter()
                .flat_map(|s| s.addresses())
                .chain(kept.services.keys().map(|listen| listen.address.ip()))
                .collect(),
            backends: slots.backends,
            tables,
            ports,
            admissions,
            retired: &plan.retired,
        },
    );
    plan
}
