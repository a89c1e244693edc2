use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::pod::Pod;

/// A 16-bit number in network byte order, as it stands in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Be16(pub u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IPv4 address; the word's bytes in memory are the packet's.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V4(pub u32);

/// An IPv6 address; the words' bytes in memory are the packet's.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V6(pub [u32; 4]);

/// What the packet path needs of an address family, so that it is written once.
pub trait Address: Pod + Copy + Eq + core::fmt::Debug {
    /// `false` for IPv4, `true` for IPv6.
    const IS_V6: bool;

    /// The address as four words (IPv4 in the first, zero behind it), as [`super::Backend`] holds it.
    fn from_words(words: &[u32; 4]) -> Self;
    fn to_words(self) -> [u32; 4];

    /// Sum of the address' 16-bit words, not folded (RFC 1071).
    fn sum(self) -> u32;

    /// Folds the address into 64 bits for hashing.
    fn mix(self) -> u64;

    fn is_unspecified(self) -> bool;

    /// Whether one host, other than the reader itself, can be meant: not multicast, broadcast,
    /// loopback, unspecified or reserved (RFC 1122 3.2.1.3, RFC 4291 2.5 and 2.7). A network's own
    /// broadcast address cannot be told from a host's.
    fn is_unicast(self) -> bool;
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

impl Address for V4 {
    const IS_V6: bool = false;

    #[inline(always)]
    fn from_words(words: &[u32; 4]) -> Self {
        Self(words[0])
    }

    #[inline(always)]
    fn to_words(self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        halves(self.0)
    }

    #[inline(always)]
    fn mix(self) -> u64 {
        u32::from_be(self.0) as u64
    }

    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    fn is_unicast(self) -> bool {
        let first = u32::from_be(self.0) >> 24;
        first != 0 && first != 127 && first < 224
    }
}

impl Address for V6 {
    const IS_V6: bool = true;

    #[inline(always)]
    fn from_words(words: &[u32; 4]) -> Self {
        Self(*words)
    }

    #[inline(always)]
    fn to_words(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        halves(self.0[0]) + halves(self.0[1]) + halves(self.0[2]) + halves(self.0[3])
    }

    #[inline(always)]
    fn mix(self) -> u64 {
        let [a, b, c, d] = self.0;
        let high = ((u32::from_be(a) as u64) << 32) | u32::from_be(b) as u64;
        let low = ((u32::from_be(c) as u64) << 32) | u32::from_be(d) as u64;
        // Multiplying one half keeps addresses that swap halves apart.
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low
    }

    #[inline(always)]
    fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    #[inline(always)]
    fn is_unicast(self) -> bool {
        let [a, b, c, d] = self.0;
        let is_multicast = u32::from_be(a) >> 24 == 0xff;
        // 1 is the loopback address.
        !is_multicast && a | b | c | (u32::from_be(d) & !1) != 0
    }
}

impl From<Ipv4Addr> for V4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl From<V4> for Ipv4Addr {
    fn from(address: V4) -> Self {
        address.0.to_ne_bytes().into()
    }
}

impl From<Ipv6Addr> for V6 {
    fn from(address: Ipv6Addr) -> Self {
        let o = address.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<V6> for Ipv6Addr {
    fn from(address: V6) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.as_chunks_mut().0.iter_mut().zip(address.0) {
            *chunk = word.to_ne_bytes();
        }
        octets.into()
    }
}

impl V4 {
    pub fn ip(self) -> IpAddr {
        IpAddr::V4(self.into())
    }
}

impl V6 {
    pub fn ip(self) -> IpAddr {
        IpAddr::V6(self.into())
    }
}
