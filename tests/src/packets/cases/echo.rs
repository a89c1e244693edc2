//! Echo requests.

use std::net::{IpAddr, SocketAddr};

use super::{Table, passes};
use crate::packets::build::{Packet, Transport};
use crate::packets::world::{self, Addresses};
use crate::packets::{Expect, Step};
use lb_common::path::Budget;

/// An echo request of the client to `dst`; `rest` is identifier and sequence number.
pub fn request(addresses: Addresses, dst: IpAddr, rest: u32, payload: &[u8]) -> Packet {
    let dst = SocketAddr::new(dst, 0);
    Packet::tcp(world::FROM_CLIENT, addresses.client(0), dst, 0).with(|packet| {
        let kind = if addresses.v6 { 128 } else { 8 };
        packet.transport = Transport::Icmp(kind, 0, rest);
        packet.payload = payload.to_vec();
        packet.ttl = 57;
    })
}

/// The bytes that answer it.
fn reply_to(request: &Packet) -> Vec<u8> {
    let v6 = request.src.is_ipv6();
    let Transport::Icmp(_, code, rest) = request.transport else {
        panic!("only ICMP is answered");
    };
    let mut reply = request.clone();
    reply.macs = (request.macs.1, request.macs.0);
    (reply.src, reply.dst) = (request.dst, request.src);
    reply.transport = Transport::Icmp(if v6 { 129 } else { 0 }, code, rest);
    reply.ttl = 64;
    let mut bytes = reply.bytes();
    if !v6 && bytes[36..38] == [0, 0] {
        // Both are right here, unless all is zero.
        bytes[36..38].copy_from_slice(&[0xff, 0xff]);
    }
    bytes
}

fn answered(request: Packet) -> Step {
    let reply = reply_to(&request);
    Step::FromClient(request.bytes(), Expect::Transmit(reply))
}

pub(super) fn cases(table: &mut Table) {
    let a = table.addresses;
    let vip = a.vip(0).ip();
    let ping = request(a, vip, 0x1234_0001, b"abcdefgh");
    table.add("echo_to_vip_is_answered", vec![answered(ping.clone())]);
    for length in [0, 1, 2, 7, 56, 1024, 1452] {
        let ping = request(a, vip, 0x1234_0001, &vec![0xa5; length]);
        table.add(
            &format!("echo_of_{length}_bytes_is_answered"),
            vec![answered(ping)],
        );
    }
    checksums(table);
    let mut steps = Vec::new();
    for ttl in [0, 1, 2, 63, 64, 65, 255] {
        steps.push(answered(ping.clone().with(|p| p.ttl = ttl)));
    }
    table.add("echo_of_any_ttl_is_answered", steps);
    let odd = ping.clone().with(|packet| {
        packet.tos = 0xb8;
        packet.fragment = 0;
        packet.trailer = vec![0; 10];
    });
    table.add("echo_keeps_class_and_padding", vec![answered(odd)]);
    table.add(
        "echo_is_not_limited_as_refusals_are",
        vec![
            Step::Budget(Budget::Answers, 0),
            answered(ping.clone()),
            answered(ping.clone()),
        ],
    );
    left_alone(table, &ping);
}

fn checksums(table: &mut Table) {
    let a = table.addresses;
    let vip = a.vip(0).ip();
    let mut steps = vec![
        answered(request(a, vip, 0, &[])),
        answered(request(a, vip, 0, &[0])),
        answered(request(a, vip, 0, &[0; 64])),
        answered(request(a, vip, u32::MAX, &[0xff; 64])),
    ];
    // Words for which the request's or the reply's checksum is at an edge.
    let at = if a.v6 { 14 + 42 } else { 14 + 22 };
    for word in 0..=u16::MAX {
        let ping = request(a, vip, 0x0001_0002, &word.to_be_bytes());
        let is_edge = |bytes: Vec<u8>| {
            let sum = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            sum.wrapping_add(1) <= 2 || matches!(sum, 0x0100 | 0x00ff | 0xf7ff | 0xf800 | 0x0800)
        };
        if is_edge(ping.bytes()) || is_edge(reply_to(&ping)) {
            steps.push(answered(ping));
        }
    }
    assert!(steps.len() > 12, "{} edges", steps.len());
    table.add("echo_checksums_at_the_edges", steps);
    // By how much a checksum is wrong stays.
    let ping = request(a, vip, 0x1234_0001, b"abcdefgh");
    let steps = [0x0001, 0x0100, 0x8000].map(|by: u16| {
        let wrong = |mut bytes: Vec<u8>| {
            let sum = u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])) + u32::from(by);
            let sum = (sum & 0xffff) + (sum >> 16);
            bytes[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
            bytes
        };
        let reply = wrong(reply_to(&ping));
        Step::FromClient(wrong(ping.bytes()), Expect::Transmit(reply))
    });
    table.add("echo_wrong_checksum_stays_wrong", steps.to_vec());
}

fn left_alone(table: &mut Table, ping: &Packet) {
    let a = table.addresses;
    for (name, dst) in [
        ("node", a.node(0)),
        ("backend", a.backend(1, 0)),
        ("client", a.neighbour_of_clients(0)),
    ] {
        let other = ping.clone().with(|packet| packet.dst = dst);
        table.add(&format!("echo_to_{name}_passes"), vec![passes(other)]);
    }
    let kind = |kind, code| {
        let packet = ping.clone();
        passes(packet.with(|p| p.transport = Transport::Icmp(kind, code, 0x1234_0001)))
    };
    let (request, reply) = if a.v6 { (128, 129) } else { (8, 0) };
    table.add(
        "echo_of_other_kinds_passes",
        vec![kind(reply, 0), kind(request, 1), kind(request, 255)],
    );
    // Of the other family.
    table.add(
        "echo_of_the_other_family_passes",
        vec![kind(if a.v6 { 8 } else { 128 }, 0)],
    );
    let changed = |change: &dyn Fn(&mut Packet)| passes(ping.clone().with(change));
    table.add(
        "echo_to_group_of_hosts_passes",
        vec![
            changed(&|p| p.macs.0 = [0xff; 6]),
            changed(&|p| p.macs.0 = [1, 0, 0x5e, 0, 0, 1]),
            changed(&|p| p.macs.0 = [0x33, 0x33, 0, 0, 0, 1]),
        ],
    );
    let sources: &[&str] = if a.v6 {
        &["::", "::1", "ff02::1", "ff0e::1:2"]
    } else {
        &[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ]
    };
    let from = |source: IpAddr| changed(&|p| p.src = SocketAddr::new(source, 0));
    let mut steps: Vec<Step> = sources
        .iter()
        .map(|source| from(source.parse().expect("an address")))
        .collect();
    // Of the address itself: forged, and the answer would come back.
    steps.push(from(ping.dst.ip()));
    table.add("echo_from_no_single_host_passes", steps);
    table.add(
        "echo_in_tagged_frame_passes",
        vec![changed(&|p| p.tags = vec![(0x8100, 5)])],
    );
    if a.v6 {
        let at = 14 + 4;
        let steps = (0..8_u8).map(|length| {
            let mut bytes = ping.bytes();
            bytes[at + 1] = length;
            Step::FromClient(bytes, Expect::Pass)
        });
        table.add("echo_too_short_passes", steps.collect());
    } else {
        table.add(
            "echo_with_ip_options_passes",
            vec![changed(&|p| p.options = vec![7, 7, 4, 0, 0, 0, 0, 0])],
        );
        table.add(
            "echo_in_fragments_passes",
            vec![
                changed(&|p| p.fragment = 0x2000),
                changed(&|p| p.fragment = 0x2010),
                changed(&|p| p.fragment = 0x0010),
            ],
        );
        let short = |length| changed(&|p| p.total_length = Some(length));
        table.add("echo_too_short_passes", (0..28).map(short).collect());
    }
    let beyond = ping.bytes().len() as u16;
    table.add(
        "echo_longer_than_its_frame_passes",
        vec![changed(&|p| p.total_length = Some(beyond))],
    );
}
