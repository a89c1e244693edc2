//! IPv6 extension headers in front of TCP and UDP.

use super::{Connection, Table, passes, reset_of, unreachable_of};
use crate::packets::build::{ACK, Packet, SYN, Transport, fragment_header};
use crate::packets::world::port;
use crate::packets::{Expect, Step};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const AUTHENTICATION: u8 = 51;

/// A header of so many bytes, padded.
fn options(kind: u8, length: usize) -> (u8, Vec<u8>) {
    let mut bytes = vec![0, (length / 8 - 1) as u8];
    // PadN over the rest, in pieces of at most 255 bytes.
    while bytes.len() < length {
        match (length - bytes.len()).min(255) {
            1 => bytes.push(0),
            pad => {
                bytes.extend([1, pad as u8 - 2]);
                bytes.extend(std::iter::repeat_n(0, pad - 2));
            }
        }
    }
    (kind, bytes)
}

fn routing(segments_left: u8) -> (u8, Vec<u8>) {
    (
        ROUTING,
        vec![
            0,
            2,
            3,
            segments_left,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
    )
}

fn behind(packet: Packet, headers: &[(u8, Vec<u8>)]) -> Packet {
    packet.with(|packet| packet.extensions = headers.to_vec())
}

pub(super) fn cases(table: &mut Table) {
    let a = table.addresses;
    if !a.v6 {
        return;
    }
    let web = Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080));
    let dns = Connection::new(a.client(40_053), a.vip(port::DNS), a.backend(13, 5353)).udp();
    balanced(table, &web, &dns);
    left_alone(table, &web);
    let empty = Connection::new(a.client(40_001), a.vip(port::EMPTY_REJECT), a.vip(1));
    let headers = [options(HOP_BY_HOP, 8), options(DESTINATION, 64)];
    let syn = behind(empty.request(SYN), &headers);
    let answer = Expect::Transmit(reset_of(&syn));
    table.add(
        "extended_syn_is_reset",
        vec![Step::FromClient(syn.bytes(), answer)],
    );
    let empty = Connection::new(a.client(40_053), a.vip(port::DNS_EMPTY), a.vip(1)).udp();
    for (name, headers) in [
        ("few", vec![options(HOP_BY_HOP, 8)]),
        ("many", vec![options(DESTINATION, 256)]),
    ] {
        let question = behind(empty.request(0), &headers);
        let answer = Expect::Transmit(unreachable_of(&question));
        table.add(
            &format!("extended_by_{name}_datagram_is_refused"),
            vec![Step::FromClient(question.bytes(), answer)],
        );
    }
}

fn balanced(table: &mut Table, web: &Connection, dns: &Connection) {
    let eight = |kind| options(kind, 8);
    for (name, headers) in [
        ("hop_by_hop", vec![eight(HOP_BY_HOP)]),
        ("long_hop_by_hop", vec![options(HOP_BY_HOP, 128)]),
        ("destination", vec![eight(DESTINATION)]),
        ("routing_at_its_end", vec![routing(0)]),
        ("atomic_fragment", vec![fragment_header(7, 0, false)]),
        (
            "all",
            vec![
                eight(HOP_BY_HOP),
                eight(DESTINATION),
                routing(0),
                fragment_header(9, 0, false),
                eight(DESTINATION),
            ],
        ),
        ("eight", vec![eight(DESTINATION); 8]),
        ("256_bytes_of", vec![options(DESTINATION, 256)]),
    ] {
        for connection in [web, dns] {
            let steps = vec![
                connection.forwards(behind(connection.request(SYN), &headers)),
                connection.returns(behind(connection.reply(SYN | ACK), &headers)),
                connection.forwards(behind(connection.request(ACK), &headers)),
                connection.forwards(connection.request(ACK)),
                connection.returns(connection.reply(ACK)),
                connection.returns(behind(connection.reply(ACK), &headers)),
            ];
            let protocol = if connection.udp { "udp" } else { "tcp" };
            table.add(&format!("{protocol}_behind_{name}_header"), steps);
        }
    }
}

fn left_alone(table: &mut Table, web: &Connection) {
    let eight = |kind| options(kind, 8);
    for (name, headers) in [
        ("nine", vec![eight(DESTINATION); 9]),
        ("264_bytes_of", vec![options(DESTINATION, 264)]),
        ("three_long", vec![options(DESTINATION, 96); 3]),
        ("routing_with_segments_left", vec![routing(1)]),
        (
            "late_hop_by_hop",
            vec![eight(DESTINATION), eight(HOP_BY_HOP)],
        ),
        ("two_hop_by_hop", vec![eight(HOP_BY_HOP); 2]),
        ("two_fragment", vec![fragment_header(7, 0, false); 2]),
        ("authentication", vec![eight(AUTHENTICATION)]),
    ] {
        let packet = behind(web.request(SYN), &headers);
        table.add(&format!("{name}_headers_pass"), vec![passes(packet)]);
    }
    let hop_by_hop = [eight(HOP_BY_HOP)];
    let other =
        |change: fn(&mut Packet)| vec![passes(behind(web.request(SYN), &hop_by_hop).with(change))];
    table.add(
        "extended_packet_to_other_port",
        other(|p| p.dst.set_port(8081)),
    );
    table.add("extended_packet_with_hop_limit_1", other(|p| p.ttl = 1));
    table.add(
        "extended_packet_in_a_vlan",
        other(|p| p.tags = vec![(0x8100, 100)]),
    );
    table.add(
        "extended_packet_to_a_group",
        other(|p| p.macs.0 = [0x33, 0x33, 0, 0, 0, 1]),
    );
    table.add(
        "extended_packet_of_no_protocol",
        other(|p| p.transport = Transport::Other(59)),
    );
    table.add(
        "extended_ping",
        other(|p| p.transport = Transport::Icmp(128, 0, 1)),
    );
    table.add(
        "extended_packet_longer_than_frame",
        other(|p| p.total_length = Some(200)),
    );
    table.add(
        "extended_packet_that_ends_in_its_headers",
        other(|p| p.total_length = Some(4)),
    );
    // Whole as the header tells it, which ends within the ports, or the TCP header.
    for length in [2, 10] {
        let mut bytes = behind(web.request(SYN), &hop_by_hop)
            .with(|p| p.total_length = Some(8 + length))
            .bytes();
        bytes.truncate(14 + 40 + 8 + usize::from(length));
        table.add(
            &format!("extended_packet_with_{length}_bytes_of_tcp"),
            vec![Step::FromClient(bytes, Expect::Pass)],
        );
    }
    let mut bytes = behind(web.request(SYN), &hop_by_hop).bytes();
    bytes[14 + 40 + 8 + 12] = 0x40;
    table.add(
        "extended_packet_with_data_offset_too_small",
        vec![Step::FromClient(bytes, Expect::Pass)],
    );
    let whole = behind(web.request(SYN), &hop_by_hop).bytes();
    for length in (14 + 40..whole.len()).step_by(3) {
        table.add(
            &format!("extended_packet_cut_to_{length}_bytes"),
            vec![Step::FromClient(whole[..length].to_vec(), Expect::Pass)],
        );
    }
}
