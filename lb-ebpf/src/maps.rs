//! Every map. Sizes are minimal here; the daemon sets them at load time from its config.

use core::cell::Cell;

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_redir_neigh};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Active, Admission, Affinity, AffinityKey, Backend, BackendCounters, Bucket, Config, Drop, Flow,
    FlowKey, FragmentKey, Fragmented, Held, HeldKey, PORT_WORDS, RateKey, SOURCE_SLOTS, Service,
    ServiceKey, TableChunk, V4, V6,
};
use lb_common::path::{Budget, Recalled, Work};

/// `BPF_F_INNER_MAP`: selection tables differ in size (kernel ≥ 5.10).
const INNER_MAP: usize = 0x1000;

/// Inner map of [`TABLES`].
pub(crate) type SelectionTable = Array<TableChunk, 1, INNER_MAP>;

/// Writer: the daemon.
#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

/// Writer: the daemon.
#[btf_map]
pub(crate) static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

/// Address words of the node addresses that SNAT takes. Writer: the daemon.
#[btf_map]
pub(crate) static SOURCES: Array<[u32; 4], { SOURCE_SLOTS as usize }> = Array::new();

/// Writer: the daemon.
#[btf_map]
pub(crate) static SERVICES4: HashMap<ServiceKey<V4>, Service, 1> = HashMap::new();

/// Writer: the daemon.
#[btf_map]
pub(crate) static SERVICES6: HashMap<ServiceKey<V6>, Service, 1> = HashMap::new();

/// Selection tables by [`Service::table`]. Writer: the daemon.
#[btf_map]
pub(crate) static TABLES: ArrayOfMaps<SelectionTable, 2> = ArrayOfMaps::new();

/// By slot. Writer: the daemon.
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 1> = Array::new();

/// By slot. Writer: the packet path.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<BackendCounters, 1> = PerCpuArray::new();

/// Round-robin cursors by [`Service::id`]. Writer: the packet path.
#[btf_map]
pub(crate) static CURSORS: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Whom services let in, by [`Service::id`]. Writer: the daemon.
#[btf_map]
pub(crate) static ADMISSION: Array<Admission, 1> = Array::new();

/// What follows the prefix length in a [`lb_common::abi::SourceKey`]: service, then address.
pub(crate) type Source<const WORDS: usize> = [u32; WORDS];

/// Source lists of all services. Writer: the daemon.
#[btf_map]
pub(crate) static SOURCE_LISTS4: LpmTrie<Source<2>, u32, 1> = LpmTrie::new();

/// As [`SOURCE_LISTS4`].
#[btf_map]
pub(crate) static SOURCE_LISTS6: LpmTrie<Source<5>, u32, 1> = LpmTrie::new();

/// New connections by [`Service::id`]. Writer: the packet path.
#[btf_map]
pub(crate) static RATES: Array<Bucket, 1> = Array::new();

/// New connections by service and client. Writer: the packet path.
#[btf_map]
pub(crate) static SOURCE_RATES: LruHashMap<RateKey, Bucket, 1> = LruHashMap::new();

/// Open connections by slot, behind these by [`Admission::counter`]. Writer: the packet path.
#[btf_map]
pub(crate) static ACTIVE: Array<Active, 1> = Array::new();

/// What the packet path's count lacks, by the same index. Writer: the daemon.
#[btf_map]
pub(crate) static COUNTED: Array<u32, 1> = Array::new();

/// Clients that keep their backend. Writer: the packet path.
#[btf_map]
pub(crate) static AFFINITY4: LruHashMap<AffinityKey<V4>, Affinity, 1> = LruHashMap::new();

/// As [`AFFINITY4`].
#[btf_map]
pub(crate) static AFFINITY6: LruHashMap<AffinityKey<V6>, Affinity, 1> = LruHashMap::new();

/// Connections of clients that are no strangers; never evicted. Writer: the packet path; the daemon removes the aged.
#[btf_map]
pub(crate) static FLOWS4: HashMap<FlowKey<V4>, Flow<V4>, 1> = HashMap::new();

/// As [`FLOWS4`].
#[btf_map]
pub(crate) static FLOWS6: HashMap<FlowKey<V6>, Flow<V6>, 1> = HashMap::new();

/// Jiffies of the last packet that found [`FLOWS4`] full, and [`FLOWS6`]. Writer: the packet path.
#[btf_map]
pub(crate) static FULL: Array<Cell<u32>, 2> = Array::new();

/// Connections whose clients may be strangers. Writer: the packet path.
#[btf_map]
pub(crate) static HANDSHAKES4: LruHashMap<FlowKey<V4>, Flow<V4>, 1> = LruHashMap::new();

/// As [`HANDSHAKES4`].
#[btf_map]
pub(crate) static HANDSHAKES6: LruHashMap<FlowKey<V6>, Flow<V6>, 1> = LruHashMap::new();

/// What [`FLOWS4`] was before its size or layout changed, until all of it has moved; the daemon puts
/// that map in the place of this one. Writer: the packet path, which only takes out; the daemon likewise.
#[btf_map]
pub(crate) static FORMER_FLOWS4: HashMap<FlowKey<V4>, Halves<{ HALVES4 }>, 1> = HashMap::new();

/// As [`FORMER_FLOWS4`].
#[btf_map]
pub(crate) static FORMER_FLOWS6: HashMap<FlowKey<V6>, Halves<{ HALVES6 }>, 1> = HashMap::new();

/// As [`FORMER_FLOWS4`].
#[btf_map]
pub(crate) static FORMER_HANDSHAKES4: LruHashMap<FlowKey<V4>, Halves<{ HALVES4 }>, 1> =
    LruHashMap::new();

/// As [`FORMER_FLOWS4`].
#[btf_map]
pub(crate) static FORMER_HANDSHAKES6: LruHashMap<FlowKey<V6>, Halves<{ HALVES6 }>, 1> =
    LruHashMap::new();

/// A flow of whatever layout, in units of 16 bits.
pub(crate) type Halves<const N: usize> = [u16; N];

pub(crate) const HALVES4: usize = size_of::<Flow<V4>>() / 2;
pub(crate) const HALVES6: usize = size_of::<Flow<V6>>() / 2;

/// An entry on its way from the former tables. Writer: the packet path.
#[btf_map]
pub(crate) static RECALLED4: PerCpuArray<Recalled<V4>, 1> = PerCpuArray::new();

/// As [`RECALLED4`].
#[btf_map]
pub(crate) static RECALLED6: PerCpuArray<Recalled<V6>, 1> = PerCpuArray::new();

/// What first fragments told of the others, for [`FRAGMENT_SECONDS`](lb_common::abi::FRAGMENT_SECONDS).
/// Writer: the packet path.
#[btf_map]
pub(crate) static FRAGMENTS4: LruHashMap<FragmentKey<V4>, Fragmented, 16384> = LruHashMap::new();

/// As [`FRAGMENTS4`].
#[btf_map]
pub(crate) static FRAGMENTS6: LruHashMap<FragmentKey<V6>, Fragmented, 16384> = LruHashMap::new();

/// Fragments that came before their datagram's first. Writer: the packet path.
#[btf_map]
pub(crate) static HELD4: LruHashMap<HeldKey<V4>, Held, 512> = LruHashMap::new();

/// As [`HELD4`].
#[btf_map]
pub(crate) static HELD6: LruHashMap<HeldKey<V6>, Held, 512> = LruHashMap::new();

/// A fragment on its way into or out of [`HELD4`] and [`HELD6`]. Writer: the packet path.
#[btf_map]
pub(crate) static HOLDING: PerCpuArray<Held, 1> = PerCpuArray::new();

/// What is known of devices, by ifindex: bits of [`lb_common::abi::link`]. Writer: the daemon.
#[btf_map]
pub(crate) static DEVICES: HashMap<u32, u32, 1024> = HashMap::new();

/// Dropped packets by [`Drop`]. Writer: the packet path.
#[btf_map]
pub(crate) static DROPS: PerCpuArray<u64, { Drop::SLOTS as usize }> = PerCpuArray::new();

/// The period, and what was taken in it, of each [`Budget`]. Writer: the packet path.
#[btf_map]
pub(crate) static BUDGETS: PerCpuArray<[u32; 2], { Budget::COUNT as usize }> = PerCpuArray::new();

/// The slow path's memory while a packet is handled. Writer: the packet path.
#[btf_map]
pub(crate) static WORK4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();

/// As [`WORK4`].
#[btf_map]
pub(crate) static WORK6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();

/// Question to the routing table and its answer, and the neighbour to resolve where it is one
/// without a MAC.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) fib: bpf_fib_lookup,
    pub(crate) neighbour: bpf_redir_neigh,
}

/// Writer: the packet path.
#[btf_map]
pub(crate) static FIB: PerCpuArray<Lookup, 1> = PerCpuArray::new();
