//! The one place that turns structs into bytes and back.
#![expect(unsafe_code, reason = "plain-bytes casts live here and nowhere else")]

use core::{cell::Cell, mem::size_of, slice};

/// A type that is exactly its bytes: every bit pattern is valid and there is no padding.
///
/// # Safety
/// The implementor is `repr(C)` or `repr(transparent)`, holds only `Pod` fields (or a [`Cell`] of
/// one), and has no implicit padding.
pub unsafe trait Pod: Clone + 'static {}

// SAFETY: primitive integers, and arrays and cells of plain bytes, are plain bytes.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for u16 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: as above.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}
// SAFETY: `Cell` is `repr(transparent)`.
unsafe impl<T: Pod + Copy> Pod for Cell<T> {}

/// The bytes of `value`, in memory order.
pub fn as_bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises initialised bytes without padding.
    unsafe { slice::from_raw_parts((value as *const T).cast::<u8>(), size_of::<T>()) }
}

/// Reads a `T` from the first bytes of `bytes`, at any alignment; `None` if there are too few.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked and `Pod` makes every bit pattern valid.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Marks `repr(C)` structs as [`Pod`] and asserts size and alignment at compile time.
macro_rules! plain_bytes {
    ($($type:ty => size $size:literal, align $align:literal;)+) => {$(
        // SAFETY: `repr(C)` with `Pod` fields only; the size assertion excludes padding that
        // nobody declared.
        unsafe impl Pod for $type {}
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);
    )+};
}

use super::{
    address::{Be16, V4, V6},
    admission::{Active, Admission, Affinity, AffinityKey, Bucket, Rate, RateKey, SourceKey},
    config::Config,
    flow::{Flow, NextHop},
    fragment::{FragmentKey, Fragmented, Held, HeldKey},
    key::{FlowKey, ServiceKey},
    service::{Backend, BackendCounters, Service},
};
use crate::path::{Ipv4Tail, Ipv6Middle, Ipv6Tail, Packet, Query, Recalled, Work, wire};

plain_bytes! {
    Be16 => size 2, align 2;
    V4 => size 4, align 4;
    V6 => size 16, align 4;
    FlowKey<V4> => size 16, align 4;
    FlowKey<V6> => size 40, align 4;
    ServiceKey<V4> => size 8, align 4;
    ServiceKey<V6> => size 20, align 4;
    NextHop => size 24, align 4;
    Flow<V4> => size 64, align 4;
    Flow<V6> => size 88, align 4;
    FragmentKey<V4> => size 16, align 4;
    FragmentKey<V6> => size 40, align 4;
    Fragmented => size 16, align 4;
    HeldKey<V4> => size 20, align 4;
    HeldKey<V6> => size 44, align 4;
    Held => size 2056, align 4;
    Packet => size 16, align 4;
    Query => size 44, align 4;
    Recalled<V4> => size 96, align 4;
    Recalled<V6> => size 168, align 4;
    Work<V4> => size 244, align 4;
    Work<V6> => size 364, align 4;
    Service => size 32, align 4;
    Backend => size 64, align 4;
    BackendCounters => size 64, align 8;
    Rate => size 8, align 4;
    Admission => size 32, align 4;
    SourceKey<V4> => size 12, align 4;
    SourceKey<V6> => size 24, align 4;
    RateKey => size 16, align 4;
    Bucket => size 8, align 8;
    AffinityKey<V4> => size 8, align 4;
    AffinityKey<V6> => size 20, align 4;
    Affinity => size 16, align 4;
    Active => size 8, align 4;
    Config => size 32, align 4;
    wire::Ethernet => size 14, align 2;
    wire::Ipv4 => size 20, align 4;
    wire::Ipv6 => size 40, align 4;
    wire::Fragment => size 8, align 4;
    wire::Tcp => size 20, align 4;
    wire::Udp => size 8, align 2;
    wire::Icmp => size 8, align 4;
    Ipv4Tail => size 12, align 4;
    Ipv6Middle => size 4, align 2;
    Ipv6Tail => size 32, align 4;
}
