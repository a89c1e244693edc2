//! Internet checksums (RFC 1071), kept apart by type: a running sum, a difference, and what stands
//! in a header. On the path only differences are applied (RFC 1624 equation 3); whole sums are
//! taken only of packets the path makes itself.

use super::Frame;
use super::odd::EXTENSION_BYTES;
use crate::abi::{Address, Be16};

/// What [`sum`] gives of bytes that cannot be read.
const UNREADABLE: u64 = u64::MAX;

/// The most that [`sum`] takes: an IPv6 header with all that [`super::odd`] lets pass.
const SUMMED: usize = 40 + EXTENSION_BYTES;

/// Sums up a header of `bytes`, a multiple of four, at `offset`; for [`Sum::read`].
#[inline(always)]
pub fn sum<F: Frame>(frame: &F, offset: usize, bytes: usize) -> u64 {
    let mut sum = Sum::default();
    for start in (0..SUMMED).step_by(4) {
        if start >= bytes {
            break;
        }
        let Some(words) = frame.load::<u32>(offset + start) else {
            return UNREADABLE;
        };
        sum = sum.double(words);
    }
    sum.0 as u64
}

#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A one's-complement sum of 16-bit words that is not folded yet. Holds up to 65,536 words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// The sum of a header that stands in the frame.
    #[inline(always)]
    pub fn read<F: Frame>(frame: &F, offset: usize, bytes: usize) -> Option<Self> {
        match frame.sum(offset, bytes) {
            UNREADABLE => None,
            sum => Some(Self(sum as u32)),
        }
    }

    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    #[inline(always)]
    pub fn address<A: Address>(self, address: A) -> Self {
        Self(self.0 + address.sum())
    }

    #[inline(always)]
    pub fn port(self, port: Be16) -> Self {
        Self(self.0 + port.0 as u32)
    }

    /// A word in the packet's byte order.
    #[inline(always)]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + word as u32)
    }

    /// Two words, as four bytes of the packet stand in memory.
    #[inline(always)]
    pub fn double(self, words: u32) -> Self {
        Self(self.0 + (words & 0xffff) + (words >> 16))
    }

    /// What belongs into a header whose checksummed words are these.
    #[inline(always)]
    pub fn header(self) -> u16 {
        !fold(self.0)
    }

    /// What belongs into a header when these are only the first of its checksummed words, and
    /// whoever sends the packet is to add the others.
    #[inline(always)]
    pub fn begun(self) -> u16 {
        fold(self.0)
    }

    /// What turns this sum into `new`. Both must add the same number of words, at most 16.
    #[inline(always)]
    pub fn difference(self, new: Self) -> Delta {
        // Adding the complement subtracts; 16 × 0xffff is zero in one's complement.
        Delta(fold(new.0 + 16 * 0xffff - self.0))
    }
}

/// How far a change of some header fields moves a checksum over them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delta(pub u16);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// What decrementing the TTL does to an IPv4 header.
    pub const TTL: Self = Self(!Be16::new(0x0100).0);

    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 as u32 + other.0 as u32))
    }

    /// The change back.
    #[inline(always)]
    pub const fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// The header's checksum after the change.
    #[inline(always)]
    pub const fn apply(self, header: u16) -> u16 {
        !fold(!header as u32 + self.0 as u32)
    }
}
