//! What the bytes in each map mean, by name: a later or an earlier version of lbd, whose layouts
//! differ, finds in them what it knows.

use super::{
    Active, Admission, Affinity, AffinityKey, Backend, BackendCounters, Bucket, Config, Flow,
    FlowKey, FragmentKey, Fragmented, Held, HeldKey, RateKey, Service, ServiceKey, SourceKey, V4,
    V6, map,
};

/// Some of the bytes of a key or a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Means the same in all versions; a field that means something else has another name.
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// A map whose contents another version may take over.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub map: &'static str,
    /// Of an array: its index.
    pub key: &'static [Field],
    pub value: &'static [Field],
}

/// A type whose bytes have names.
trait Fields {
    const FIELDS: &'static [Field];
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Names the fields of structs, and asserts that they are all there are.
macro_rules! fields {
    ($($type:ty: $($field:ident)+;)+) => {$(
        impl Fields for $type {
            const FIELDS: &'static [Field] = {
                const FIELDS: &[Field] = &[$(Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($type, $field),
                    size: size_of_field::<$type, _>(|value| &value.$field),
                }),+];
                assert!(sum(FIELDS) == size_of::<$type>());
                FIELDS
            };
        }
    )+};
}

const fn sum(fields: &[Field]) -> usize {
    let (mut total, mut at) = (0, 0);
    while at < fields.len() {
        total += fields[at].size;
        at += 1;
    }
    total
}

/// Types that are one number, or that are known by their size alone.
macro_rules! whole {
    ($($type:ty)+) => {$(
        impl Fields for $type {
            const FIELDS: &'static [Field] = &[Field {
                name: "whole",
                offset: 0,
                size: size_of::<$type>(),
            }];
        }
    )+};
}

fields! {
    FlowKey<V4>: src dst src_port dst_port protocol;
    FlowKey<V6>: src dst src_port dst_port protocol;
    Flow<V4>: src dst src_port dst_port address_delta port_delta slot generation next_hop last_seen
        state created expected;
    Flow<V6>: src dst src_port dst_port address_delta port_delta slot generation next_hop last_seen
        state created expected;
    ServiceKey<V4>: address port protocol pad;
    ServiceKey<V6>: address port protocol pad;
    Service: id table policy forwarding no_backend pad reserved;
    Backend: generation state address source port family protocol service flags spread
        max_connections reserved;
    BackendCounters: packets_in bytes_in packets_out bytes_out connections established refused
        reserved;
    Config: epoch hz rejects_per_second snat_first snat_count sources entries_per_second udp_places;
    Admission: flags max_connections counter affinity rate source_rate;
    SourceKey<V4>: bits service address;
    SourceKey<V6>: bits service address;
    RateKey: service family address;
    AffinityKey<V4>: client service;
    AffinityKey<V6>: client service;
    Affinity: slot generation last reserved;
    Active: opened closed;
    FragmentKey<V4>: src dst id protocol;
    FragmentKey<V6>: src dst id protocol;
    Fragmented: src_port dst_port protocol seen reserved;
    HeldKey<V4>: datagram piece;
    HeldKey<V6>: datagram piece;
    Held: length seen frame;
}

whole!(u32 u64 [u32; 2] [u32; 4] Bucket);

macro_rules! layouts {
    ($($map:ident: $key:ty => $value:ty;)+) => {
        /// Every pinned map but `TABLES`.
        pub const LAYOUTS: &[Layout] = &[$(Layout {
            map: map::$map,
            key: <$key as Fields>::FIELDS,
            value: <$value as Fields>::FIELDS,
        }),+];
    };
}

layouts! {
    CONFIG: u32 => Config;
    PORTS: u32 => u64;
    SERVICES4: ServiceKey<V4> => Service;
    SERVICES6: ServiceKey<V6> => Service;
    BACKENDS: u32 => Backend;
    COUNTERS: u32 => BackendCounters;
    CURSORS: u32 => u32;
    FLOWS4: FlowKey<V4> => Flow<V4>;
    FLOWS6: FlowKey<V6> => Flow<V6>;
    HANDSHAKES4: FlowKey<V4> => Flow<V4>;
    HANDSHAKES6: FlowKey<V6> => Flow<V6>;
    FRAGMENTS4: FragmentKey<V4> => Fragmented;
    FRAGMENTS6: FragmentKey<V6> => Fragmented;
    HELD4: HeldKey<V4> => Held;
    HELD6: HeldKey<V6> => Held;
    DEVICES: u32 => u32;
    DROPS: u32 => u64;
    BUDGETS: u32 => [u32; 2];
    SOURCES: u32 => [u32; 4];
    ADMISSION: u32 => Admission;
    SOURCE_LISTS4: SourceKey<V4> => u32;
    SOURCE_LISTS6: SourceKey<V6> => u32;
    RATES: u32 => Bucket;
    SOURCE_RATES: RateKey => Bucket;
    ACTIVE: u32 => Active;
    COUNTED: u32 => u32;
    AFFINITY4: AffinityKey<V4> => Affinity;
    AFFINITY6: AffinityKey<V6> => Affinity;
}
