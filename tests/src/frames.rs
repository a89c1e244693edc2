//! Frames for the tests of foreign traffic, built byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;
pub const IPV6: u16 = 0x86dd;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

/// TCP flags.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// Puts an 802.1Q or 802.1ad tag into a frame.
pub fn tagged(mut frame: Vec<u8>, kind: u16, vlan: u16) -> Vec<u8> {
    let tag = [kind.to_be_bytes(), vlan.to_be_bytes()].concat();
    frame.splice(12..12, tag);
    frame
}

/// An IPv4 packet without options, or an IPv6 one without extension headers, by the addresses.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, &[], payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload),
        _ => panic!("{from} and {to} are of different families"),
    }
}

/// An IPv4 packet; `options` is a multiple of 4 bytes long.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let length = (words * 4 + payload.len()) as u16;
    let mut header = vec![0x40 | words as u8, 0];
    header.extend(length.to_be_bytes());
    header.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload.len() as u16).to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(payload);
    header
}

/// A TCP segment with a right checksum.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend(0x0102_0304u32.to_be_bytes());
    segment.extend(0u32.to_be_bytes());
    segment.extend([0x50, flags, 0x72, 0x10, 0, 0, 0, 0]);
    segment.extend(payload);
    sealed(from.0, to.0, TCP, segment, 16)
}

/// A UDP datagram with a right checksum.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    sealed(from.0, to.0, UDP, datagram, 6)
}

/// An ICMP or ICMPv6 echo request, by the addresses.
pub fn echo_request(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0, 0x4c, 0x42, 0, 1];
    message.extend(payload);
    if from.is_ipv6() {
        return sealed(from, to, ICMPV6, message, 2);
    }
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Who has `target`? Asked by everybody's address.
pub fn arp_request(from: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
    message.extend(from);
    message.extend(sender.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    ethernet([0xff; 6], from, ARP, &message)
}

/// IPv6 neighbour solicitation for `target`, sent to its solicited-node group.
pub fn neighbour_solicitation(from: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let tail = &target.octets()[13..];
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(tail);
    let group = Ipv6Addr::from(group);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(from);
    let message = sealed(sender.into(), group.into(), ICMPV6, message, 2);
    let to = [0x33, 0x33, 0xff, tail[0], tail[1], tail[2]];
    ethernet(to, from, IPV6, &ipv6(sender, group, ICMPV6, &message))
}

/// Puts the checksum over pseudo-header and message at `offset`.
fn sealed(from: IpAddr, to: IpAddr, protocol: u8, mut message: Vec<u8>, offset: usize) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let length = (message.len() as u32).to_be_bytes();
    let end = [0, 0, 0, protocol];
    let sum = checksum(&[&octets(from), &octets(to), &length, &end, &message]);
    message[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The Internet checksum (RFC 1071) of parts of even length, the last one possibly odd.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
