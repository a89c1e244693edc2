//! Bytes that live in BPF maps. Layouts are part of [`ABI_VERSION`]: change one, raise the other.

mod address;
mod admission;
mod config;
mod flow;
mod fragment;
mod key;
mod layout;
mod pod;
mod reason;
mod service;

pub use address::{Address, Be16, V4, V6};
pub use admission::{
    Active, Admission, Affinity, AffinityKey, Bucket, Rate, RateKey, SOURCE_SERVICE_BITS,
    SourceKey, admission_flag, source,
};
pub use config::{
    Config, MAX_SOURCES, PORT_WORDS, PortKind, SOURCE_SLOTS, UDP_PLACE, port_bit, source_slot,
};
pub use flow::{Flow, NextHop, flow_state, link};
pub use fragment::{
    FRAGMENT_SECONDS, FragmentKey, Fragmented, HELD_BYTES, HELD_PIECES, Held, HeldKey,
};
pub use key::{FlowKey, ServiceKey, protocol};
pub use layout::{Field, LAYOUTS, Layout};
pub use pod::{Pod, as_bytes, from_bytes};
pub use reason::Drop;
pub use service::{
    Backend, BackendCounters, NO_SLOT, Service, TABLE_HEADER, TABLE_IDS, TABLE_LANES, TableChunk,
    backend_flag, backend_state, forwarding, no_backend, policy, table_chunks, table_elements,
};

/// Version of every layout in this module; names the pin directory (`<bpffs>/lbd/<version>/`).
pub const ABI_VERSION: u32 = 2;

/// Map names, as declared in `lb-ebpf/src/maps.rs` and used for pinning.
pub mod map {
    pub const CONFIG: &str = "CONFIG";
    pub const PORTS: &str = "PORTS";
    pub const SERVICES4: &str = "SERVICES4";
    pub const SERVICES6: &str = "SERVICES6";
    pub const TABLES: &str = "TABLES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const CURSORS: &str = "CURSORS";
    pub const FLOWS4: &str = "FLOWS4";
    pub const FLOWS6: &str = "FLOWS6";
    pub const HANDSHAKES4: &str = "HANDSHAKES4";
    pub const HANDSHAKES6: &str = "HANDSHAKES6";
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    pub const HELD4: &str = "HELD4";
    pub const HELD6: &str = "HELD6";
    pub const DEVICES: &str = "DEVICES";
    pub const DROPS: &str = "DROPS";
    pub const BUDGETS: &str = "BUDGETS";
    pub const SOURCES: &str = "SOURCES";
    pub const ADMISSION: &str = "ADMISSION";
    pub const SOURCE_LISTS4: &str = "SOURCE_LISTS4";
    pub const SOURCE_LISTS6: &str = "SOURCE_LISTS6";
    pub const RATES: &str = "RATES";
    pub const SOURCE_RATES: &str = "SOURCE_RATES";
    pub const ACTIVE: &str = "ACTIVE";
    pub const COUNTED: &str = "COUNTED";
    pub const AFFINITY4: &str = "AFFINITY4";
    pub const AFFINITY6: &str = "AFFINITY6";
    /// Flow tables of a former size or layout while their entries move; not pinned by these names.
    pub const FORMER_FLOWS4: &str = "FORMER_FLOWS4";
    pub const FORMER_FLOWS6: &str = "FORMER_FLOWS6";
    pub const FORMER_HANDSHAKES4: &str = "FORMER_HANDSHAKES4";
    pub const FORMER_HANDSHAKES6: &str = "FORMER_HANDSHAKES6";
}
