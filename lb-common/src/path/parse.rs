//! From bytes to a tuple. Whatever is not plainly ours to balance is left to the kernel.

use super::family::Header;
use super::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet};
use super::wire::{Tcp, Udp, tcp};
use super::{Family, Frame, Tables};
use crate::abi::{Be16, PortKind, port_bit, protocol};

/// Where the network header begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    Ipv4(usize),
    Ipv6(usize),
    Foreign,
}

/// Reads the Ethernet header and up to two VLAN tags.
#[inline(always)]
pub fn network<F: Frame>(frame: &F) -> Network {
    let Some(ethernet) = frame.load::<Ethernet>(0) else {
        return Network::Foreign;
    };
    let mut ethertype = ethernet.ethertype;
    let mut offset = size_of::<Ethernet>();
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let Some([_, inner]) = frame.load::<[Be16; 2]>(offset) else {
            return Network::Foreign;
        };
        ethertype = inner;
        offset += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Network::Ipv4(offset),
        ETHERTYPE_IPV6 => Network::Ipv6(offset),
        _ => Network::Foreign,
    }
}

/// A packet the path understands: TCP or UDP, whole or a fragment. Its tuple stands beside it, so
/// that the slow path can keep that off the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// Offset of the IP header.
    pub(super) network: u16,
    /// Offset of the TCP or UDP header, 0 for a later fragment, which has none.
    pub(super) transport: u16,
    /// Bytes behind the IP header without its options, by that header.
    pub(super) payload: u16,
    /// Checksum of the IPv4 header, 0 for IPv6.
    pub(super) header_checksum: u16,
    pub(super) protocol: u8,
    pub(super) ttl: u8,
    /// TCP flags. Other packets count as ACK: they neither begin nor end anything.
    pub(super) flags: u8,
    /// What the IP header itself says is next: `protocol`, or an IPv6 extension header.
    pub(super) next_header: u8,
    /// Bits of [`mark`].
    pub(super) marks: u32,
}

/// What the path itself knows of a packet.
mod mark {
    /// It leaves the node through its stack, whose way it keeps.
    pub(super) const DEPARTS: u32 = 1;
    /// It begins a connection on the tuple of one that there is, whose backend will have it.
    pub(super) const REPEATS: u32 = 1 << 1;
    /// That one counts as open.
    pub(super) const COUNTED: u32 = 1 << 2;
    /// It was let in to that.
    pub(super) const ADMITTED: u32 = 1 << 3;
}

/// More than any header's offset. The verifier believes no offset that was kept in a map.
pub(super) const OFFSETS: u16 = 0x3ff;

impl Packet {
    #[inline(always)]
    pub(super) const fn network(&self) -> usize {
        (self.network & OFFSETS) as usize
    }

    #[inline(always)]
    pub(super) const fn transport(&self) -> usize {
        (self.transport & OFFSETS) as usize
    }

    /// A fragment without the transport header, other than its datagram's first.
    #[inline(always)]
    pub(super) const fn is_later_fragment(&self) -> bool {
        self.transport == 0
    }

    /// Bytes of the packet, IP header included.
    #[inline(always)]
    pub(super) const fn total_length<A: Family>(&self) -> u32 {
        self.payload as u32 + A::HEADER as u32
    }

    /// Bytes of the IP and transport headers, which no later fragment has.
    #[inline(always)]
    pub(super) fn headers<F: Frame>(&self, frame: &F) -> Option<u32> {
        let transport = if self.is_udp() {
            size_of::<Udp>() as u32
        } else {
            let at = self.transport() + core::mem::offset_of!(Tcp, data_offset);
            (frame.load::<u8>(at)? >> 4) as u32 * 4
        };
        Some((self.transport as u32).checked_sub(self.network as u32)? + transport)
    }

    /// Bytes from the transport header to the packet's end.
    #[inline(always)]
    pub(super) fn transport_length<A: Family>(&self) -> usize {
        let skipped = self.transport().wrapping_sub(self.network() + A::HEADER);
        (self.payload as usize).wrapping_sub(skipped)
    }

    /// Bytes of the frame, for counting: by the IP header where there is more than one buffer.
    #[inline(always)]
    pub(super) fn frame_length<A: Family, F: Frame>(&self, frame: &F) -> u64 {
        let end = self.network() + A::HEADER + self.payload as usize;
        frame.length().max(end) as u64
    }

    /// Offset of the checksum field in the TCP or UDP header.
    #[inline(always)]
    pub(super) const fn checksum_offset(&self) -> usize {
        self.transport()
            + if self.is_udp() {
                core::mem::offset_of!(Udp, checksum)
            } else {
                core::mem::offset_of!(Tcp, checksum)
            }
    }

    #[inline(always)]
    pub(super) const fn is_udp(&self) -> bool {
        self.protocol == protocol::UDP
    }

    /// The TCP sequence number, in host byte order.
    #[inline(always)]
    pub(super) fn sequence<F: Frame>(&self, frame: &F) -> Option<u32> {
        let field = self.transport() + core::mem::offset_of!(Tcp, sequence);
        Some(u32::from_be(frame.load(field)?))
    }

    /// The TCP acknowledgement number, in host byte order.
    #[inline(always)]
    pub(super) fn acknowledgement<F: Frame>(&self, frame: &F) -> Option<u32> {
        let field = self.transport() + core::mem::offset_of!(Tcp, acknowledgement);
        Some(u32::from_be(frame.load(field)?))
    }

    /// The frame's VLAN tags stand in its bytes.
    #[inline(always)]
    pub(super) const fn is_tagged(&self) -> bool {
        self.network() != size_of::<Ethernet>()
    }

    #[inline(always)]
    pub(super) const fn departing(self) -> Self {
        Self {
            marks: mark::DEPARTS,
            ..self
        }
    }

    #[inline(always)]
    pub(super) const fn departs(&self) -> bool {
        self.marks & mark::DEPARTS != 0
    }

    #[inline(always)]
    pub(super) const fn repeat(&mut self, is_counted: bool) {
        self.marks = mark::REPEATS | (is_counted as u32 * mark::COUNTED);
    }

    #[inline(always)]
    pub(super) const fn repeats(&self) -> bool {
        self.marks & mark::REPEATS != 0
    }

    #[inline(always)]
    pub(super) const fn is_counted(&self) -> bool {
        self.marks & mark::COUNTED != 0
    }

    #[inline(always)]
    pub(super) const fn let_in(&mut self) {
        self.marks = mark::ADMITTED;
    }

    /// 1 if it is a TCP segment with which a client begins, and was not let in yet, else 0.
    #[inline(always)]
    pub(super) const fn asks_in(&self) -> u32 {
        let flags = self.flags as u32;
        let begins = flags >> tcp::SYN.trailing_zeros() & !(flags >> tcp::ACK.trailing_zeros());
        begins & !(self.marks >> mark::ADMITTED.trailing_zeros()) & 1
    }

    #[inline(always)]
    pub(super) const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// A TCP segment that every host throws away: SYN together with the end of a connection, or no
    /// sign of one (RFC 9293 3.10.7).
    #[inline(always)]
    pub(super) const fn has_invalid_flags(&self) -> bool {
        const DECISIVE: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK;
        /// The values of the decisive flags that are invalid, one bit each. A table, because every
        /// branch here would double what the verifier walks behind it.
        const INVALID: u32 = {
            let (mut table, mut flags) = (0, 0);
            while flags <= DECISIVE {
                let invalid = if flags & tcp::SYN != 0 {
                    flags & (tcp::FIN | tcp::RST) != 0
                } else {
                    flags & (tcp::ACK | tcp::RST) == 0
                };
                table |= (invalid as u32) << flags;
                flags += 1;
            }
            table
        };
        INVALID >> (self.flags & DECISIVE) & 1 != 0
    }
}

/// Whether either port is one of a service or of a backend: the cheap question that turns foreign
/// traffic away before anything else is asked.
#[inline(always)]
pub(super) fn is_wanted<T: Tables>(tables: &T, protocol: u8, [src, dst]: [Be16; 2]) -> bool {
    let (service, backend) = if protocol == protocol::UDP {
        (PortKind::ServiceUdp, PortKind::BackendUdp)
    } else {
        (PortKind::ServiceTcp, PortKind::BackendTcp)
    };
    let (index, bit) = port_bit(service, dst.get());
    if tables.port_word(index) & bit != 0 {
        return true;
    }
    let (index, bit) = port_bit(backend, src.get());
    tables.port_word(index) & bit != 0
}

/// Whether the frame goes to a group of hosts: a router must neither forward nor answer such
/// (RFC 1812 5.3.4, RFC 1122 3.2.2).
#[inline(always)]
pub(super) fn is_to_group<F: Frame>(frame: &F) -> Option<bool> {
    /// The individual/group bit of an address' first byte (IEEE 802 8.2).
    const GROUP: u8 = 1;
    Some(frame.load::<u8>(0)? & GROUP != 0)
}

/// Whether the frame is `length` bytes long. Shorter frames are truncated packets; longer ones carry
/// Ethernet padding. The first buffer is asked first: that costs less.
#[inline(always)]
pub(super) fn holds<F: Frame>(frame: &F, length: usize) -> bool {
    length <= frame.length() || length <= frame.whole_length()
}

/// Parses a whole TCP or UDP packet on a port that a service or a backend uses; its IP header
/// `header`, with nothing but IPv4 options between it and the transport header, begins at `network`.
/// Gives its ports too, source first. `None` for what the path leaves alone: other ports, headers
/// that contradict themselves or the frame.
#[inline(always)]
pub(super) fn packet<A: Family, F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    network: usize,
    header: &Header<A>,
) -> Option<([Be16; 2], Packet)> {
    let transport = network + header.length;
    let ports = frame.load::<[Be16; 2]>(transport)?;
    if !is_wanted(tables, header.protocol, ports) || is_to_group(frame)? {
        return None;
    }
    if !holds(frame, network + header.total_length) {
        return None;
    }
    let transport_length = header.total_length.checked_sub(header.length)?;
    let flags = segment::<A, F>(frame, header.protocol, transport, transport_length, false)?;
    let packet = Packet {
        network: network as u16,
        transport: transport as u16,
        payload: (header.total_length - A::HEADER) as u16,
        header_checksum: header.checksum,
        protocol: header.protocol,
        ttl: header.ttl,
        flags,
        next_header: header.protocol,
        marks: 0,
    };
    Some((ports, packet))
}

/// Checks the TCP or UDP header at `transport`, behind which `length` bytes of the packet end, and
/// gives the TCP flags. The header of a datagram's first fragment may speak of more bytes.
#[inline(always)]
pub(super) fn segment<A: Family, F: Frame>(
    frame: &F,
    protocol: u8,
    transport: usize,
    length: usize,
    is_first_fragment: bool,
) -> Option<u8> {
    if protocol == protocol::TCP {
        let tcp = frame.load::<Tcp>(transport)?;
        let data_offset = (tcp.data_offset >> 4) as usize * 4;
        if data_offset < size_of::<Tcp>() || data_offset > length {
            return None;
        }
        Some(tcp.flags)
    } else {
        let udp = frame.load::<Udp>(transport)?;
        let claimed = udp.length.get() as usize;
        if claimed < size_of::<Udp>() || (claimed > length && !is_first_fragment) {
            return None;
        }
        // RFC 8200 8.1: over IPv6 a UDP checksum of zero is no valid packet.
        if A::IS_V6 && udp.checksum == 0 {
            return None;
        }
        Some(tcp::ACK)
    }
}
