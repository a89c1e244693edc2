//! The hash that draws a backend. Equal on every node and release: changing it moves every flow
//! of every service, so it changes only with [`crate::abi::ABI_VERSION`].

use crate::abi::{Address, FlowKey};

/// Spreads 64 bits over 64 bits (the finalizer of MurmurHash3, Austin Appleby, public domain).
#[inline(always)]
pub const fn spread(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Hash of a five-tuple.
#[inline(always)]
pub fn five_tuple<A: Address>(key: &FlowKey<A>) -> u64 {
    let ports = ((key.src_port.get() as u64) << 24)
        | ((key.dst_port.get() as u64) << 8)
        | key.protocol as u64;
    let sides = spread(key.src.mix() ^ 0x6c62_272e_07bb_0142).wrapping_add(key.dst.mix());
    spread(sides ^ ports.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Hash of a client's address alone, for services that keep a client on one backend.
#[inline(always)]
pub fn client<A: Address>(address: A) -> u64 {
    spread(address.mix() ^ 0x517c_c1b7_2722_0a95)
}
