//! The few places where IPv4 and IPv6 differ.

use super::wire::{Fragment, Ipv4, Ipv6};
use super::{Covered, Delta, Frame, Sum};
use crate::abi::{Address, Be16, V4, V6, protocol};

/// What an IP header says.
#[derive(Clone, Copy, Debug)]
pub struct Header<A> {
    pub src: A,
    pub dst: A,
    pub protocol: u8,
    pub ttl: u8,
    /// 0 for IPv6, which has none.
    pub checksum: u16,
    /// Bytes of the header, options included.
    pub length: usize,
    /// Bytes of the packet, header included.
    pub total_length: usize,
    /// More fragments, and the offset of this one, as bits of [`FRAGMENT_BITS`]. 0 for IPv6, which
    /// says that in a header of its own.
    pub fragment: u16,
    /// Identification, as it stands in the packet.
    pub id: u16,
}

/// More fragments follow this one.
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
/// Where a fragment's bytes belong, in units of 8.
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;
pub(super) const FRAGMENT_BITS: u16 = MORE_FRAGMENTS | FRAGMENT_OFFSET;

/// An address family's headers.
pub trait Family: Address {
    /// Bytes of a header without options.
    const HEADER: usize;
    /// Bytes of a header with all options or extension headers that the path reads.
    const HEADERS: usize;
    /// Protocol number of this family's ICMP.
    const ICMP: u8;
    /// Type and code of "port unreachable".
    const PORT_UNREACHABLE: (u8, u8);
    /// Types of an echo request and of its reply.
    const ECHO: (u8, u8);

    /// Whether an ICMP message of this type quotes the packet that it is about, and belongs to who
    /// sent that: destination unreachable (with "fragmentation needed"), packet too big, time
    /// exceeded, parameter problem. Not redirects, which are for neighbours only.
    fn is_error(kind: u8) -> bool;

    /// Whether the number in the header is that of a header which may stand before TCP or UDP.
    fn is_extension(protocol: u8) -> bool;

    /// Reads the header; `None` for headers that contradict themselves.
    fn read<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>>;

    /// Reads the header of a packet that an ICMP error quotes. Other than in [`Family::read`] it may
    /// be a first fragment, which has the ports.
    fn read_quoted<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>>;

    /// Writes new addresses into a quoted header; `delta` is what they do to a checksum. Returns
    /// what that does to the sum of the message around it, which the caller has to make up for.
    fn rewrite_quoted<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        delta: Delta,
    ) -> Option<Delta>;

    /// What the addresses, if they are in the pseudo-header of this family's ICMP, do to its
    /// checksum.
    fn icmp_delta(addresses: Delta) -> Delta;

    /// Writes new addresses and TTL into the header at `offset`. `moved` is what the addresses do
    /// to a checksum; `header` what was read there.
    fn rewrite<F: Frame>(frame: &mut F, offset: usize, header: &Rewrite<Self>) -> Option<()>;

    /// Writes a fresh header with `payload` bytes behind it.
    fn write<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        protocol: u8,
        payload: usize,
    ) -> Option<()>;

    /// What the pseudo-header adds to an ICMP checksum.
    fn icmp_pseudo(src: Self, dst: Self, length: usize) -> Sum;
}

/// Changes to an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite<A> {
    pub src: A,
    pub dst: A,
    pub protocol: u8,
    /// Bytes behind the header.
    pub payload: usize,
    /// The TTL the packet came with, and whether to decrement it.
    pub ttl: u8,
    pub forwarded: bool,
    /// Checksum the packet came with.
    pub checksum: u16,
    pub delta: Delta,
}

/// TTL of packets the path makes itself (RFC 1700's recommended default).
pub(super) const DEFAULT_TTL: u8 = 64;

/// The last 12 bytes of an IPv4 header: everything that a translation writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4Tail {
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: V4,
    dst: V4,
}

/// The same of an IPv6 header, in two pieces: in one, the second address would lie on the stack
/// where the verifier allows no access of eight bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6Middle {
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6Tail {
    src: V6,
    dst: V6,
}

impl Family for V4 {
    const HEADER: usize = size_of::<Ipv4>();
    const HEADERS: usize = 60;
    const ICMP: u8 = protocol::ICMP;
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const ECHO: (u8, u8) = (8, 0);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_extension(_: u8) -> bool {
        false
    }

    #[inline(always)]
    fn read<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>> {
        let ip = frame.load::<Ipv4>(offset)?;
        let length = (ip.version_ihl & 0xf) as usize * 4;
        if ip.version_ihl >> 4 != 4 || length < Self::HEADER {
            return None;
        }
        Some(Header {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            ttl: ip.ttl,
            checksum: ip.checksum,
            length,
            total_length: ip.total_length.get() as usize,
            fragment: ip.fragment.get() & FRAGMENT_BITS,
            id: ip.id.0,
        })
    }

    #[inline(always)]
    fn read_quoted<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>> {
        let header = Self::read(frame, offset)?;
        if header.fragment & FRAGMENT_OFFSET != 0 {
            return None;
        }
        Some(header)
    }

    #[inline(always)]
    fn rewrite_quoted<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        delta: Delta,
    ) -> Option<Delta> {
        let at = offset + core::mem::offset_of!(Ipv4, checksum);
        let checksum = delta.apply(frame.load::<u16>(at)?);
        frame.store(at, &checksum, Covered::Neutral)?;
        let at = offset + core::mem::offset_of!(Ipv4, src);
        frame.store(at, &[src, dst], Covered::Neutral)?;
        Some(Delta::NONE)
    }

    #[inline(always)]
    fn icmp_delta(_: Delta) -> Delta {
        Delta::NONE
    }

    #[inline(always)]
    fn rewrite<F: Frame>(frame: &mut F, offset: usize, new: &Rewrite<Self>) -> Option<()> {
        let delta = if new.forwarded {
            new.delta.and(Delta::TTL)
        } else {
            new.delta
        };
        let tail = Ipv4Tail {
            ttl: new.ttl - new.forwarded as u8,
            protocol: new.protocol,
            checksum: delta.apply(new.checksum),
            src: new.src,
            dst: new.dst,
        };
        frame.store(
            offset + core::mem::offset_of!(Ipv4, ttl),
            &tail,
            Covered::Neutral,
        )
    }

    #[inline(always)]
    fn write<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        protocol: u8,
        payload: usize,
    ) -> Option<()> {
        /// Do not fragment: the packet is small, and an id of 0 would be ambiguous otherwise.
        const DONT_FRAGMENT: Be16 = Be16::new(0x4000);
        let mut ip = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_length: Be16::new((Self::HEADER + payload) as u16),
            id: Be16(0),
            fragment: DONT_FRAGMENT,
            ttl: DEFAULT_TTL,
            protocol,
            checksum: 0,
            src,
            dst,
        };
        ip.checksum = Sum::default()
            .port(Be16::new(0x4500))
            .port(ip.total_length)
            .port(DONT_FRAGMENT)
            .port(Be16::new(u16::from_be_bytes([DEFAULT_TTL, protocol])))
            .address(src)
            .address(dst)
            .header();
        frame.store(offset, &ip, Covered::Neutral)
    }

    #[inline(always)]
    fn icmp_pseudo(_: Self, _: Self, _: usize) -> Sum {
        Sum::default()
    }
}

impl Family for V6 {
    const HEADER: usize = size_of::<Ipv6>();
    const HEADERS: usize = Self::HEADER + super::odd::EXTENSION_BYTES;
    const ICMP: u8 = protocol::ICMPV6;
    const PORT_UNREACHABLE: (u8, u8) = (1, 4);
    const ECHO: (u8, u8) = (128, 129);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn read_quoted<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>> {
        let mut header = Self::read(frame, offset)?;
        if header.protocol == Fragment::PROTOCOL {
            let fragment = frame.load::<Fragment>(offset + Self::HEADER)?;
            if !fragment.is_first() {
                return None;
            }
            header.protocol = fragment.next_header;
            header.length += size_of::<Fragment>();
        }
        Some(header)
    }

    #[inline(always)]
    fn rewrite_quoted<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        delta: Delta,
    ) -> Option<Delta> {
        let at = offset + core::mem::offset_of!(Ipv6, src);
        frame.store(at, &Ipv6Tail { src, dst }, Covered::Neutral)?;
        Some(delta)
    }

    #[inline(always)]
    fn icmp_delta(addresses: Delta) -> Delta {
        addresses
    }

    #[inline(always)]
    fn is_extension(protocol: u8) -> bool {
        use super::wire::extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
    }

    #[inline(always)]
    fn read<F: Frame>(frame: &F, offset: usize) -> Option<Header<Self>> {
        let ip = frame.load::<Ipv6>(offset)?;
        if ip.version_class_label[0] >> 4 != 6 {
            return None;
        }
        Some(Header {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.next_header,
            ttl: ip.hop_limit,
            checksum: 0,
            length: Self::HEADER,
            total_length: Self::HEADER + ip.payload_length.get() as usize,
            fragment: 0,
            id: 0,
        })
    }

    #[inline(always)]
    fn rewrite<F: Frame>(frame: &mut F, offset: usize, new: &Rewrite<Self>) -> Option<()> {
        let middle = Ipv6Middle {
            payload_length: Be16::new(new.payload as u16),
            next_header: new.protocol,
            hop_limit: new.ttl - new.forwarded as u8,
        };
        let tail = Ipv6Tail {
            src: new.src,
            dst: new.dst,
        };
        let start = offset + core::mem::offset_of!(Ipv6, payload_length);
        frame.store(start, &middle, Covered::Changed)?;
        frame.store(start + size_of::<Ipv6Middle>(), &tail, Covered::Changed)
    }

    #[inline(always)]
    fn write<F: Frame>(
        frame: &mut F,
        offset: usize,
        src: Self,
        dst: Self,
        protocol: u8,
        payload: usize,
    ) -> Option<()> {
        let ip = Ipv6 {
            version_class_label: [0x60, 0, 0, 0],
            payload_length: Be16::new(payload as u16),
            next_header: protocol,
            hop_limit: DEFAULT_TTL,
            src,
            dst,
        };
        frame.store(offset, &ip, Covered::Changed)
    }

    #[inline(always)]
    fn icmp_pseudo(src: Self, dst: Self, length: usize) -> Sum {
        Sum::default()
            .address(src)
            .address(dst)
            .port(Be16::new(length as u16))
            .port(Be16::new(Self::ICMP as u16))
    }
}
