//! The kernel's side of the load balancer, behind one trait: [`kernel`] talks to the real maps
//! and programs, [`memory`] is for tests. Nothing else in the daemon touches BPF.

pub mod kernel;
pub mod memory;
pub mod watch;

mod attach;
mod attachments;
mod cleanup;
mod clock;
mod clsact;
mod devices;
mod flows;
#[cfg(test)]
mod kernel_tests;
mod layout;
mod load;
mod log;
mod maps;
mod netlink;
mod pins;
mod ports;
mod preflight;
mod route;
mod scan;
mod switch;
mod sys;
mod sysctl;
mod tables;
mod takeover;
#[cfg(test)]
pub(crate) mod testing;
pub mod undo;

pub use load::{Features, features};
pub use route::own_addresses;

/// The kernel programs' object file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lbd-ebpf"));

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Admission, Backend, BackendCounters, Service};

use crate::model::{Prefix, Protocol, SnatPool, Sources, Timeouts};

/// Where a service listens; a key of the kernel's service maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    pub protocol: Protocol,
}

/// Entries and capacity of one kernel map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapFill {
    pub map: &'static str,
    pub entries: u64,
    pub capacity: u64,
}

/// Result of one pass over the flow tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowScan {
    /// Open connections by slot: those answered, and not closed by both sides or reset.
    pub active: std::collections::HashMap<u32, u64>,
    /// Connections of any state that still have an entry, by slot.
    pub present: std::collections::HashMap<u32, u64>,
    /// Entries removed because they timed out.
    pub aged: u64,
    /// UDP flows of either family that may still get a place in its table.
    pub udp_room: u64,
    pub fill: Vec<MapFill>,
}

/// What the daemon does to, and reads from, the kernel. All calls are synchronous and short
/// (microseconds to a few milliseconds), [`Datapath::scan_flows`] excepted.
///
/// Errors name the map and the call.
pub trait Datapath: Send + Sync {
    /// Has the packet path look every next hop up anew.
    fn raise_epoch(&self) -> anyhow::Result<()>;

    /// Writes one 64-bit word of the port bitmaps ([`lb_common::abi::port_bit`]).
    fn set_port_word(&self, index: u32, word: u64) -> anyhow::Result<()>;
    fn port_words(&self) -> anyhow::Result<Vec<u64>>;

    fn set_service(&self, listen: Listen, service: &Service) -> anyhow::Result<()>;
    /// Removing what is not there is no error.
    fn remove_service(&self, listen: Listen) -> anyhow::Result<()>;
    fn services(&self) -> anyhow::Result<Vec<(Listen, Service)>>;

    /// Has echo requests to `address` answered.
    fn set_echo(&self, address: IpAddr) -> anyhow::Result<()>;
    /// Removing what is not there is no error.
    fn remove_echo(&self, address: IpAddr) -> anyhow::Result<()>;
    /// The addresses whose echo requests are answered.
    fn echoes(&self) -> anyhow::Result<Vec<IpAddr>>;

    /// Says whom the service of this number lets in.
    fn set_admission(&self, service: u32, admission: &Admission) -> anyhow::Result<()>;
    /// All that differ from the default, by service.
    fn admissions(&self) -> anyhow::Result<Vec<(u32, Admission)>>;

    /// Adds prefixes to a service's source lists, or changes whether they let in, in this order.
    fn add_sources(&self, service: u32, sources: &[(Prefix, bool)]) -> anyhow::Result<()>;
    /// In this order. Removing what is not there is no error.
    fn remove_sources(&self, service: u32, prefixes: &[Prefix]) -> anyhow::Result<()>;
    /// The source lists by service, in the order of [`Prefix`].
    fn sources(&self) -> anyhow::Result<BTreeMap<u32, Sources>>;

    fn set_backend(&self, slot: u32, backend: &Backend) -> anyhow::Result<()>;
    /// Every slot that was ever used, i.e. whose generation is not 0, by slot: free ones included,
    /// so that the next use of a slot gets a generation that no flow left over has.
    fn backends(&self) -> anyhow::Result<Vec<(u32, Backend)>>;

    /// Swaps a whole selection table (the slots only, without the header) in one step.
    fn set_table(&self, table: u32, slots: &[u32]) -> anyhow::Result<()>;
    fn remove_table(&self, table: u32) -> anyhow::Result<()>;
    /// Which tables there are.
    fn tables(&self) -> anyhow::Result<Vec<u32>>;
    /// The slots of a table, `None` if there is none.
    fn table(&self, table: u32) -> anyhow::Result<Option<Vec<u32>>>;

    /// Counters of a slot, summed over CPUs.
    fn counters(&self, slot: u32) -> anyhow::Result<BackendCounters>;
    /// Zeroes a slot's counters, before it goes to another backend.
    fn clear_counters(&self, slot: u32) -> anyhow::Result<()>;
    /// Drops by [`lb_common::abi::Drop`] number, summed over CPUs.
    fn drops(&self) -> anyhow::Result<Vec<u64>>;

    /// Passes over all flows, removing those idle past their timeout, and gives UDP what is left of its
    /// share of the tables.
    fn scan_flows(&self, timeouts: &Timeouts) -> anyhow::Result<FlowScan>;

    /// What SNAT takes from now on. Addresses that are not the node's own are left out, and
    /// returned: the answers to them would go elsewhere.
    fn set_snat(&self, pool: &SnatPool) -> anyhow::Result<Vec<IpAddr>>;

    /// How the node reaches `address` right now.
    fn route(&self, address: IpAddr) -> anyhow::Result<Route>;

    /// Largest number of services and slots the maps hold.
    fn capacity(&self) -> Capacity;

    /// Checks that every program is still attached, attaches again what is not, and returns what
    /// it repaired, in words.
    fn repair_attachments(&self) -> anyhow::Result<Vec<String>>;

    /// The part of [`Self::repair_attachments`] that cannot wait when devices come, go or change, with
    /// what it changed. Quick where none did.
    fn follow_devices(&self) -> anyhow::Result<Vec<String>>;

    /// Each device that is served or should be, by its name.
    fn attachments(&self) -> Vec<(String, Attachment)>;
}

/// How a device is served; displays as `xdp native`, `not served: …` or `missing`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attachment {
    /// At the hook that the words name.
    Served(String),
    /// In words, why not.
    Refused(String),
    /// `node.interfaces` names it, and there is none.
    Missing,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(hook) => f.write_str(hook),
            Self::Refused(reason) => write!(f, "not served: {reason}"),
            Self::Missing => f.write_str("missing"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    pub services: u32,
    pub backends: u32,
    /// Source prefixes per address family.
    pub sources: u32,
}

/// Element of `ACTIVE` and `COUNTED` that counts a service's connections: behind those of all slots.
pub const fn counter(slots: u32, service: u32) -> u32 {
    slots.saturating_add(service)
}

/// Epochs are never 0.
fn next_epoch(epoch: u32) -> u32 {
    epoch.wrapping_add(1).max(1)
}

/// How the node reaches an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Address the kernel would choose as source; what SNAT uses. `None` if there is no route.
    pub source: Option<IpAddr>,
    /// Replies of this address come back through this node whatever their destination: the
    /// address is the node's own, or a pod behind a host route (/32, /128) without gateway.
    pub returns_here: bool,
    /// The address is on a link of the node's: neither its own nor behind a router.
    pub is_neighbour: bool,
}
