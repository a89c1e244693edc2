//! From what should be to what must change: pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Backend, Service};

use crate::{
    datapath::Listen,
    model::{BackendRef, NoBackend, Policy, Protocol},
};

/// What the kernel should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub services: Vec<DesiredService>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub protocol: Protocol,
    pub policy: Policy,
    pub no_backend: NoBackend,
    pub backends: Vec<DesiredBackend>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    pub address: SocketAddr,
    /// Effective weight; 0 takes no new connections.
    pub weight: u32,
    pub admit: Admit,
    /// Source address for SNAT, `None` to keep the client's.
    pub snat: Option<IpAddr>,
}

/// Becomes `lb_common::abi::backend_state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admit {
    Active,
    Draining,
    Down,
}

/// What the kernel holds, as last written or read back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Installed {
    pub services: BTreeMap<Listen, Service>,
    pub backends: BTreeMap<u32, Backend>,
    pub tables: BTreeMap<u32, Vec<u32>>,
    /// The port bitmaps' words.
    pub ports: Vec<u64>,
}

/// Where things stand in the kernel after a plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// Service name → id.
    pub services: HashMap<String, u32>,
    pub slots: HashMap<BackendRef, u32>,
}
