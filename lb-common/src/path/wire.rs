//! Headers as they stand on the wire. Multi-byte fields are in network byte order.

use crate::abi::{Be16, V4, V6};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub ethertype: Be16,
}

/// The destination and source addresses of an Ethernet header, as they stand in memory. Words,
/// because copies of this pass over the stack, where the verifier wants aligned accesses.
pub type Macs = [u32; 3];

/// The same with the two sides exchanged.
#[inline(always)]
pub const fn exchanged([a, b, c]: Macs) -> Macs {
    /// The word of the bytes from the middle of `first` to the middle of `second`.
    #[inline(always)]
    const fn middle(first: u32, second: u32) -> u32 {
        u32::from_be(first.to_be() << 16 | second.to_be() >> 16)
    }
    [middle(b, c), middle(c, a), middle(a, b)]
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: Be16,
    pub id: Be16,
    pub fragment: Be16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub src: V4,
    pub dst: V4,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6 {
    pub version_class_label: [u8; 4],
    pub payload_length: Be16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: V6,
    pub dst: V6,
}

/// Fragment header of IPv6 (RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub next_header: u8,
    pub reserved: u8,
    /// Offset in units of 8 bytes, two reserved bits, and whether more follow.
    pub offset: Be16,
    pub id: u32,
}

impl Fragment {
    /// Its number as a next header.
    pub const PROTOCOL: u8 = 44;

    #[inline(always)]
    pub const fn is_first(&self) -> bool {
        self.offset.get() >> 3 == 0
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    pub src_port: Be16,
    pub dst_port: Be16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub data_offset: u8,
    pub flags: u8,
    pub window: Be16,
    pub checksum: u16,
    pub urgent: Be16,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Udp {
    pub src_port: Be16,
    pub dst_port: Be16,
    pub length: Be16,
    pub checksum: u16,
}

pub const ETHERTYPE_IPV4: Be16 = Be16::new(0x0800);
pub const ETHERTYPE_IPV6: Be16 = Be16::new(0x86dd);
pub const ETHERTYPE_VLAN: Be16 = Be16::new(0x8100);
pub const ETHERTYPE_QINQ: Be16 = Be16::new(0x88a8);

/// IPv6 headers that may stand before TCP or UDP (RFC 8200 4), by their number.
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

/// Bits of [`Tcp::flags`].
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// The part of an ICMP or ICMPv6 error before the quoted packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    pub rest: u32,
}
