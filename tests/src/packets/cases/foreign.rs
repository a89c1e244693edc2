//! What is not ours: untouched, whatever it is.

use super::{Connection, Table, passes};
use crate::packets::build::{ACK, Packet, SYN, Transport};
use crate::packets::world::{self, port};
use crate::packets::{Expect, Step};

pub(super) fn cases(table: &mut Table) {
    let a = table.addresses;
    let web = Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080));
    let tcp = |dst| Packet::tcp(world::FROM_CLIENT, a.client(40_001), dst, SYN);
    let udp = |dst| Packet::udp(world::FROM_CLIENT, a.client(40_001), dst);
    table.add("tcp_other_port_of_vip", vec![passes(tcp(a.vip(8081)))]);
    table.add(
        "tcp_service_port_of_other_address",
        vec![passes(tcp(a.node(port::WEB)))],
    );
    table.add("udp_to_tcp_service", vec![passes(udp(a.vip(port::WEB)))]);
    table.add("tcp_to_udp_service", vec![passes(tcp(a.vip(port::DNS)))]);
    table.add("udp_other_port_of_vip", vec![passes(udp(a.vip(5354)))]);
    // A backend's own connections, from the port it serves on.
    let own = Packet::tcp(world::FROM_BACKEND, web.backend, a.client(9), SYN);
    table.add(
        "tcp_backend_as_client",
        vec![Step::FromBackend(own.bytes(), Expect::Pass)],
    );
    let stray = Packet::tcp(world::FROM_BACKEND, web.backend, web.client, SYN | ACK);
    table.add(
        "tcp_answer_without_flow",
        vec![Step::FromBackend(stray.bytes(), Expect::Pass)],
    );
    for (name, to) in [
        ("broadcast", [0xff; 6]),
        ("multicast", [1, 0, 0x5e, 0, 0, 1]),
    ] {
        let packet = web.request(SYN).with(|packet| packet.macs.0 = to);
        table.add(&format!("{name}_frame_to_service"), vec![passes(packet)]);
    }
    protocols(table, &web);
    tags(table, &web);
    truncated(table, &web);
    cut_tags(table, &web);
    contradictions(table, &web);
}

fn protocols(table: &mut Table, web: &Connection) {
    for (name, number) in [
        ("sctp", 132),
        ("gre", 47),
        ("esp", 50),
        ("igmp", 2),
        ("unknown", 253),
    ] {
        let packet = web.request(SYN).with(|packet| {
            packet.transport = Transport::Other(number);
            packet.payload = vec![
                0, 80, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
            ];
        });
        table.add(&format!("{name}_to_vip"), vec![passes(packet)]);
    }
    if table.addresses.v6 {
        let neighbour = web.request(SYN).with(|packet| {
            packet.transport = Transport::Icmp(135, 0, 0);
            packet.payload = vec![0; 24];
            packet.ttl = 255;
        });
        table.add("neighbour_solicitation", vec![passes(neighbour)]);
    } else {
        let mut arp = [world::FROM_CLIENT.0, world::FROM_CLIENT.1].concat();
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([0; 20]);
        table.add("arp", vec![Step::FromClient(arp, Expect::Pass)]);
    }
    let mut llc = [world::FROM_CLIENT.0, world::FROM_CLIENT.1].concat();
    llc.extend([0, 38, 0x42, 0x42, 3]);
    llc.extend([0; 40]);
    table.add("llc_frame", vec![Step::FromClient(llc, Expect::Pass)]);
}

fn tags(table: &mut Table, web: &Connection) {
    for (name, tags) in [
        ("one", vec![(0x8100, 100)]),
        ("priority", vec![(0x8100, 0xe000)]),
        ("two", vec![(0x88a8, 100), (0x8100, 200)]),
        ("three", vec![(0x88a8, 1), (0x8100, 2), (0x8100, 3)]),
    ] {
        let packet = web.request(SYN).with(|packet| packet.tags = tags);
        table.add(&format!("{name}_vlan_tags"), vec![passes(packet)]);
    }
}

fn truncated(table: &mut Table, web: &Connection) {
    let whole = web.request(SYN).bytes();
    // The kernel's test run of TC takes no packet without a whole IP header.
    let shortest = if table.addresses.v6 { 14 + 40 } else { 14 + 20 };
    for length in shortest..whole.len() {
        let packet = whole[..length].to_vec();
        table.add(
            &format!("truncated_to_{length}_bytes"),
            vec![Step::FromClient(packet, Expect::Pass)],
        );
    }
}

/// Frames that end within the tag behind another.
fn cut_tags(table: &mut Table, web: &Connection) {
    for (name, tags) in [
        ("a", vec![(0x8100, 100)]),
        ("the_second", vec![(0x88a8, 100), (0x8100, 200)]),
    ] {
        let start = 14 + 4 * (tags.len() - 1);
        let whole = web.request(SYN).with(|packet| packet.tags = tags).bytes();
        let steps = (start..start + 4)
            .map(|length| Step::FromClient(whole[..length].to_vec(), Expect::Pass));
        table.add(&format!("frame_that_ends_in_{name}_tag"), steps.collect());
    }
}

fn contradictions(table: &mut Table, web: &Connection) {
    let network = 14;
    let changed = |offset: usize, value: u8| {
        let mut bytes = web.request(SYN).bytes();
        bytes[offset] = value;
        vec![Step::FromClient(bytes, Expect::Pass)]
    };
    if table.addresses.v6 {
        table.add("wrong_version", changed(network, 0x40));
        table.add(
            "tcp_data_offset_too_small",
            changed(network + 40 + 12, 0x40),
        );
        table.add(
            "tcp_data_offset_beyond_packet",
            changed(network + 40 + 12, 0xf0),
        );
    } else {
        table.add("wrong_version", changed(network, 0x65));
        table.add("header_length_too_small", changed(network, 0x44));
        table.add("header_length_beyond_packet", changed(network, 0x4f));
        table.add(
            "tcp_data_offset_too_small",
            changed(network + 20 + 12, 0x40),
        );
        table.add(
            "tcp_data_offset_beyond_packet",
            changed(network + 20 + 12, 0xf0),
        );
    }
    let longer = web
        .request(SYN)
        .with(|packet| packet.total_length = Some(500));
    table.add("total_length_beyond_frame", vec![passes(longer)]);
    let shorter = web
        .request(SYN)
        .with(|packet| packet.total_length = Some(12));
    table.add("total_length_too_small", vec![passes(shorter)]);
}
