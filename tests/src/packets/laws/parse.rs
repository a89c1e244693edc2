//! Where things stand in a packet; written apart from the path's parser, so as not to share its faults.

use std::{net::IpAddr, ops::Range};

use lb_common::abi::protocol;

use super::{ETHERNET, address};

/// An IP packet in an untagged frame, or quoted in one.
#[derive(Clone, Copy)]
pub(super) struct Parsed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_v6: bool,
    /// Where its IP header begins.
    start: usize,
    /// Bytes of the IP header with its options or extension headers.
    pub(super) header: usize,
    /// Bytes of the whole packet, as it says itself.
    pub(super) total: usize,
    pub(super) protocol: u8,
    /// There is no transport header in it.
    pub(super) is_later_fragment: bool,
}

impl<'a> Parsed<'a> {
    /// `None` for whatever is not whole.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let parsed = match bytes.get(12..ETHERNET)? {
            [0x08, 0x00] => Self::at(bytes, ETHERNET, false)?,
            [0x86, 0xdd] => Self::at(bytes, ETHERNET, true)?,
            _ => return None,
        };
        let is_whole = (parsed.header..=bytes.len() - ETHERNET).contains(&parsed.total);
        is_whole.then_some(parsed)
    }

    fn at(bytes: &'a [u8], start: usize, is_v6: bool) -> Option<Self> {
        let ip = &bytes[start..];
        let number = |at: usize| Some(usize::from(u16::from_be_bytes(*ip[at..].first_chunk()?)));
        let mut parsed = Self {
            bytes,
            is_v6,
            start,
            header: 0,
            total: 0,
            protocol: 0,
            is_later_fragment: false,
        };
        if is_v6 {
            parsed.total = 40 + number(4)?;
            parsed.behind_extensions(ip)?;
            return Some(parsed);
        }
        let first = *ip.first()?;
        parsed.header = usize::from(first & 15) * 4;
        parsed.total = number(2)?;
        parsed.protocol = *ip.get(9)?;
        parsed.is_later_fragment = number(6)? & 0x1fff != 0;
        (first >> 4 == 4 && parsed.header >= 20 && ip.len() >= parsed.header).then_some(parsed)
    }

    fn behind_extensions(&mut self, ip: &[u8]) -> Option<()> {
        self.header = 40;
        self.protocol = *ip.get(6)?;
        if ip.first()? >> 4 != 6 || ip.len() < self.header {
            return None;
        }
        while matches!(self.protocol, 0 | 43 | 44 | 60) && !self.is_later_fragment {
            let extension: &[u8; 8] = ip.get(self.header..)?.first_chunk()?;
            if self.protocol == 44 {
                let field = u16::from_be_bytes([extension[2], extension[3]]);
                self.is_later_fragment = field >> 3 != 0;
                self.header += 8;
            } else {
                self.header += 8 * (usize::from(extension[1]) + 1);
            }
            self.protocol = extension[0];
        }
        Some(())
    }

    pub(super) fn transport(&self) -> usize {
        self.start + self.header
    }

    /// Type of service or traffic class.
    pub(super) fn class(&self) -> u8 {
        let [first, second] = [self.bytes[self.start], self.bytes[self.start + 1]];
        match self.is_v6 {
            true => first << 4 | second >> 4,
            false => second,
        }
    }

    pub(super) fn ttl_place(&self) -> Range<usize> {
        let at = self.start + if self.is_v6 { 7 } else { 8 };
        at..at + 1
    }

    pub(super) fn ttl(&self) -> u8 {
        self.bytes[self.ttl_place().start]
    }

    /// The IPv4 header's checksum; nothing in IPv6.
    pub(super) fn sum_place(&self) -> Range<usize> {
        let at = self.start + 10;
        at..if self.is_v6 { at } else { at + 2 }
    }

    /// Source and destination.
    pub(super) fn addresses(&self) -> Range<usize> {
        match self.is_v6 {
            true => self.start + 8..self.start + 40,
            false => self.start + 12..self.start + 20,
        }
    }

    pub(super) fn src(&self) -> IpAddr {
        let both = &self.bytes[self.addresses()];
        address(&both[..both.len() / 2])
    }

    pub(super) fn dst(&self) -> IpAddr {
        let both = &self.bytes[self.addresses()];
        address(&both[both.len() / 2..])
    }

    /// Of TCP and UDP, source first.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let known = matches!(self.protocol, protocol::TCP | protocol::UDP);
        let [a, b, c, d] = self.bytes.get(self.transport()..)?.first_chunk()?;
        let ports = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        (known && !self.is_later_fragment).then_some(ports)
    }

    pub(super) fn tcp_flags(&self) -> Option<u8> {
        let is_tcp = self.protocol == protocol::TCP && !self.is_later_fragment;
        let flags = self.bytes.get(self.transport() + 13)?;
        is_tcp.then_some(*flags)
    }

    /// The checksum of TCP or UDP.
    pub(super) fn check_place(&self) -> Range<usize> {
        let at = self.transport()
            + if self.protocol == protocol::UDP {
                6
            } else {
                16
            };
        at..at + 2
    }

    pub(super) fn is_echo(&self) -> bool {
        let wanted = if self.is_v6 { (58, 128) } else { (1, 8) };
        let kind = self.bytes.get(self.transport());
        kind.is_some_and(|kind| (self.protocol, *kind) == wanted)
    }

    /// The packet that an ICMP error is about.
    pub(super) fn quoted(&self) -> Option<Self> {
        let kind = *self.bytes.get(self.transport())?;
        let is_error = match (self.protocol, self.is_v6) {
            (1, false) => matches!(kind, 3 | 11 | 12),
            (58, true) => matches!(kind, 1..=4),
            _ => false,
        };
        let start = self.transport() + 8;
        // Behind its end there may be Ethernet's padding.
        let bytes = &self.bytes[..self.start + self.total];
        if !is_error || start > bytes.len() {
            return None;
        }
        let mut quoted = Self::at(bytes, start, self.is_v6)?;
        // As much of it as there is.
        quoted.total = bytes.len() - start;
        let is_segment = matches!(quoted.protocol, protocol::TCP | protocol::UDP);
        let has_ports = bytes.len() >= quoted.transport() + 8;
        (is_segment && has_ports && !quoted.is_later_fragment).then_some(quoted)
    }

    /// Sum of the IPv4 header; nothing in IPv6.
    pub(super) fn header_sum(&self) -> u32 {
        match self.is_v6 {
            true => 0,
            false => sum(&self.bytes[self.start..self.transport()]),
        }
    }

    pub(super) fn is_header_right(&self) -> bool {
        folded(self.header_sum()) == 0
    }

    /// Sum of the transport header and what is there behind it, with the pseudo-header if it has one:
    /// zero once folded if the checksum is right and all of it is there.
    pub(super) fn segment_sum(&self) -> u32 {
        let end = self.bytes.len().min(self.start + self.total);
        let segment = &self.bytes[self.transport().min(end)..end];
        let own = sum(segment);
        if self.protocol == 1 {
            return own;
        }
        own + sum(&self.bytes[self.addresses()]) + u32::from(self.protocol) + segment.len() as u32
    }
}

/// Sum of big-endian words, an odd byte padded.
fn sum(bytes: &[u8]) -> u32 {
    let (words, odd) = bytes.as_chunks::<2>();
    let words: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    words + odd.first().map_or(0, |byte| u32::from(*byte) << 8)
}

/// A sum in one's complement, of whose two zeros it takes one.
pub(super) fn folded(sum: u32) -> u16 {
    (sum % 0xffff) as u16
}
