//! ICMP errors about balanced connections.
//!
//! ```text
//!   client ── router ── node (VIP, SNAT address) ── router ── backend
//! ```
//! Either router, or the end behind it, complains about what it was sent.

mod trouble;

use std::net::{IpAddr, SocketAddr};

use self::trouble::{Kind, TO_BIG_V4, TO_BIG_V6, Trouble, Way, kinds, troubles};
use super::{Connection, Table, passes};
use crate::packets::build::{ACK, Packet, SYN, Transport};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, backend_state};

pub(super) fn cases(table: &mut Table) {
    let header = if table.addresses.v6 { 40 } else { 20 };
    for (name, trouble) in troubles(table) {
        let quoted = trouble.quoted();
        for (what, kinds) in kinds(table.addresses.v6) {
            let mut steps = trouble.opened();
            for kind in kinds {
                // Ports only, up to before the checksum of TCP, behind it, odd, all.
                for l4 in [8, 16, 18, 27, 1000] {
                    steps.push(trouble.reaches(kind, quoted.cut(header, l4)));
                }
            }
            // The connection goes on as if nothing had been said.
            let c = &trouble.connection;
            steps.extend([c.forwards(c.request(ACK)), c.returns(c.reply(ACK))]);
            table.add(&format!("icmp_{what}_about_{name}"), steps);
        }
        handshakes(table, &name, &trouble);
        quotes(table, &name, &trouble);
        outer_headers(table, &name, &trouble);
        strangers(table, &name, &trouble);
    }
    others(table);
}

fn too_big(table: &Table) -> Kind {
    match table.addresses.v6 {
        true => TO_BIG_V6,
        false => TO_BIG_V4,
    }
}

fn header(table: &Table) -> usize {
    if table.addresses.v6 { 40 } else { 20 }
}

/// The flow is not answered yet.
fn handshakes(table: &mut Table, name: &str, trouble: &Trouble) {
    let c = &trouble.connection;
    let (kind, header) = (too_big(table), header(table));
    let error = |l4| trouble.reaches(kind, trouble.quoted().cut(header, l4));
    let steps = vec![
        c.forwards(c.request(SYN)),
        error(8),
        error(1000),
        c.returns(c.reply(SYN | ACK)),
        error(8),
    ];
    table.add(&format!("icmp_about_unanswered_{name}"), steps);
}

/// Odd quotes of balanced packets.
fn quotes(table: &mut Table, name: &str, trouble: &Trouble) {
    let (kind, header) = (too_big(table), header(table));
    let opened = |mut steps: Vec<Step>| {
        steps.splice(0..0, trouble.opened());
        steps
    };
    let short = (0..header + 8)
        .map(|length| {
            let (mut seen, _) = trouble.quoted().cut(header, 8);
            seen.truncate(length);
            trouble.stays(&trouble.arrives(kind, seen))
        })
        .collect();
    table.add(&format!("icmp_truncated_quote_of_{name}"), opened(short));
    let (seen, _) = trouble.quoted().cut(header, 8);
    let mut steps = Vec::new();
    for total in 0..header + 8 + header + 8 {
        let cut = trouble.arrives(kind, seen.clone()).with(|packet| {
            let counted = if table.addresses.v6 {
                total.saturating_sub(header)
            } else {
                total
            };
            packet.total_length = Some(counted as u16);
        });
        steps.push(trouble.stays(&cut));
    }
    table.add(&format!("icmp_total_length_short_{name}"), opened(steps));
    if table.addresses.v6 {
        if trouble.connection.udp {
            none_left(table, name, trouble);
        }
        return quoted_fragments(table, name, trouble);
    }
    for options in [4, 12, 40] {
        let quoted = trouble.quoted().with(|p| p.options = vec![1; options]);
        let steps = [8, 18, 1000]
            .map(|l4| trouble.reaches(kind, quoted.cut(20 + options, l4)))
            .to_vec();
        let name = format!("icmp_quoting_{options}_bytes_of_options_{name}");
        table.add(&name, opened(steps));
    }
    let first = trouble.quoted().with(|p| p.fragment = 0x2000);
    let steps = vec![trouble.reaches(kind, first.cut(20, 8))];
    table.add(
        &format!("icmp_quoting_first_fragment_{name}"),
        opened(steps),
    );
    let steps = [0x0001, 0x2010, 0x1fff]
        .map(|fragment| {
            let later = trouble.quoted().with(|p| p.fragment = fragment);
            trouble.stays(&trouble.arrives(kind, later.cut(20, 1000).0))
        })
        .to_vec();
    table.add(
        &format!("icmp_quoting_later_fragment_{name}"),
        opened(steps),
    );
    if trouble.connection.udp {
        none_left(table, name, trouble);
        let none = trouble.quoted().with(|p| {
            p.transport = Transport::Udp {
                checksum: false,
                length: None,
            }
        });
        let steps = vec![trouble.reaches(kind, none.cut(20, 8))];
        table.add(&format!("icmp_quoting_no_checksum_{name}"), opened(steps));
    }
}

/// To whoever hears of it the quoted datagram's checksum is 0, which is written as its complement
/// (RFC 768).
fn none_left(table: &mut Table, name: &str, trouble: &Trouble) {
    let at = 14 + header(table) + 6;
    let (kind, header) = (too_big(table), header(table));
    let quoted = (0..=u16::MAX).find_map(|word| {
        let quoted = trouble.quoted().with(|p| {
            p.payload[..2].copy_from_slice(&word.to_be_bytes());
        });
        (quoted.known.bytes()[at..at + 2] == [0xff; 2]).then_some(quoted)
    });
    let quoted = quoted.expect("some word makes it so");
    let mut steps = trouble.opened();
    steps.push(trouble.reaches(kind, quoted.cut(header, 8)));
    table.add(&format!("icmp_quoting_a_checksum_of_0_{name}"), steps);
}

/// A quote with a fragment header between.
fn quoted_fragments(table: &mut Table, name: &str, trouble: &Trouble) {
    let kind = too_big(table);
    let fragment = |bytes: Vec<u8>, offset: u16| {
        let mut quoted = bytes[..40].to_vec();
        let next = std::mem::replace(&mut quoted[6], 44);
        quoted.extend([next, 0]);
        quoted.extend(offset.to_be_bytes());
        quoted.extend([1, 2, 3, 4]);
        quoted.extend(&bytes[40..]);
        quoted
    };
    let mut steps = trouble.opened();
    for l4 in [8, 18, 1000] {
        let (seen, known) = trouble.quoted().cut(40, l4);
        steps.push(trouble.reaches(kind, (fragment(seen, 1), fragment(known, 1))));
    }
    table.add(&format!("icmp_quoting_first_fragment_{name}"), steps);
    let mut steps = trouble.opened();
    for offset in [8, 0x4000, 0xfff9] {
        let (seen, _) = trouble.quoted().cut(40, 1000);
        steps.push(trouble.stays(&trouble.arrives(kind, fragment(seen, offset))));
    }
    table.add(&format!("icmp_quoting_later_fragment_{name}"), steps);
}

/// Odd packets around a right quote.
fn outer_headers(table: &mut Table, name: &str, trouble: &Trouble) {
    let (seen, known) = trouble.quoted().cut(header(table), 1000);
    let plain = trouble.arrives(too_big(table), seen);
    let mut steps = trouble.opened();
    steps.push(trouble.stays(&plain.clone().with(|p| p.ttl = 1)));
    steps.push(trouble.stays(&plain.clone().with(|p| p.ttl = 0)));
    let last_hop = plain.clone().with(|p| p.ttl = 2);
    steps.push(trouble.reaches_as(last_hop, known.clone()));
    table.add(&format!("icmp_ttl_{name}"), steps);

    let mut steps = trouble.opened();
    let tagged = plain.clone().with(|p| p.tags = vec![(0x8100, 5)]);
    let to_group = plain.clone().with(|p| p.macs.0 = [1, 0, 0x5e, 0, 0, 1]);
    steps.extend([trouble.stays(&tagged), trouble.stays(&to_group)]);
    let padded = plain.clone().with(|p| p.trailer = vec![0; 9]);
    steps.push(trouble.reaches_as(padded, known.clone()));
    if !table.addresses.v6 {
        let options = plain.clone().with(|p| p.options = vec![1; 40]);
        steps.push(trouble.reaches_as(options, known.clone()));
        for fragment in [0x2000, 0x0010] {
            steps.push(trouble.stays(&plain.clone().with(|p| p.fragment = fragment)));
        }
    }
    table.add(&format!("icmp_odd_frames_{name}"), steps);

    // A checksum that is wrong by as much stays wrong by as much: nobody gets a bad message
    // certified.
    let at = 14 + header(table) + 2;
    let wrong = |mut bytes: Vec<u8>| {
        let right = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let sum = u32::from(right) + 0x0101;
        let sum = (sum & 0xffff) + (sum >> 16);
        bytes[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        bytes
    };
    let left = trouble.leaves(&plain, known);
    let (arrived, left) = (wrong(plain.bytes()), Expect::Redirect(wrong(left.bytes())));
    let mut steps = trouble.opened();
    steps.push(match trouble.way {
        Way::ToClient => Step::FromBackend(arrived, left),
        Way::ToBackend => Step::FromClient(arrived, left),
    });
    table.add(&format!("icmp_wrong_checksum_stays_wrong_{name}"), steps);
}

/// Errors about nothing that is balanced.
fn strangers(table: &mut Table, name: &str, trouble: &Trouble) {
    let (kind, header) = (too_big(table), header(table));
    let (seen, known) = trouble.quoted().cut(header, 1000);
    let arrives = |quoted: Vec<u8>| trouble.arrives(kind, quoted);
    let stays = |packet: Packet| trouble.stays(&packet);
    table.add(
        &format!("icmp_without_flow_{name}"),
        vec![stays(arrives(seen.clone()))],
    );
    let mut steps = trouble.opened();
    // The receiver's own packets, the other port, the other protocol.
    steps.push(stays(arrives(known)));
    let port_apart = trouble.quoted().with(|p| {
        let side = match trouble.way {
            Way::ToClient => &mut p.src,
            Way::ToBackend => &mut p.dst,
        };
        side.set_port(side.port() + 1);
    });
    steps.push(stays(arrives(port_apart.cut(header, 1000).0)));
    let at = if table.addresses.v6 { 6 } else { 9 };
    for protocol in [1, 58, 132, 44, if trouble.connection.udp { 6 } else { 17 }] {
        let mut quoted = seen.clone();
        quoted[at] = protocol;
        steps.push(stays(arrives(quoted)));
    }
    // It goes to somebody else than who sent the quoted packet.
    let mut astray = arrives(seen.clone());
    astray.dst = SocketAddr::new(table.addresses.neighbour_of_clients(0).ip(), 0);
    steps.push(stays(astray));
    let version: Vec<u8> = [&[0x15], &seen[1..]].concat();
    steps.push(stays(arrives(version)));
    if !table.addresses.v6 {
        for length in [0x40, 0x44, 0x4f] {
            steps.push(stays(arrives([&[length], &seen[1..28]].concat())));
        }
    }
    table.add(&format!("icmp_about_others_{name}"), steps);

    let mut steps = trouble.opened();
    let others: &[u8] = if table.addresses.v6 {
        &[0, 5, 100, 127, 129, 133, 134, 135, 136, 137, 255]
    } else {
        &[0, 4, 5, 6, 9, 10, 13, 14, 17, 18, 40, 255]
    };
    for other in others {
        steps.push(stays(trouble.arrives((*other, 0, 0), seen.clone())));
    }
    table.add(&format!("icmp_of_other_types_{name}"), steps);

    // The slot went to another backend: the flow is none any more.
    let index = match (trouble.connection.udp, name.contains("snat")) {
        (false, false) => slot::WEB,
        (false, true) => slot::SNAT,
        (true, false) => slot::DNS,
        (true, true) => slot::DNS_SNAT,
    };
    for (what, state, generation) in [
        ("reused", backend_state::ACTIVE, 2),
        ("freed", backend_state::FREE, 1),
    ] {
        let mut steps = trouble.opened();
        steps.push(Step::Backend {
            slot: table.slot(index),
            state,
            generation,
        });
        steps.push(stays(arrives(seen.clone())));
        table.add(&format!("icmp_about_{what}_slot_{name}"), steps);
    }
    // One that failed or drains still has its connections.
    for (what, state) in [
        ("failed", backend_state::DOWN),
        ("draining", backend_state::DRAINING),
    ] {
        let mut steps = trouble.opened();
        steps.push(Step::Backend {
            slot: table.slot(index),
            state,
            generation: 1,
        });
        steps.push(Step::Epoch);
        steps.push(trouble.reaches(kind, trouble.quoted().cut(header, 8)));
        table.add(&format!("icmp_about_{what}_backend_{name}"), steps);
    }
}

/// Next hops that are no plain neighbours, and a source port that was replaced.
fn others(table: &mut Table) {
    let a = table.addresses;
    let (kind, header) = (too_big(table), header(table));
    let trouble = |connection: Connection, way, router| Trouble {
        connection,
        router,
        way,
    };
    let local = Connection::new(a.client(40_071), a.vip(port::LOCAL), a.node(8080));
    let local = trouble(local, Way::ToBackend, a.neighbour_of_clients(0));
    let (seen, known) = local.quoted().cut(header, 8);
    let arrived = local.arrives(kind, seen);
    // The stack routes it, and takes one from the TTL itself.
    let left = local.leaves(&arrived, known).with(|p| {
        p.macs = world::FROM_CLIENT;
        p.ttl += 1;
    });
    let c = &local.connection;
    let syn = c.request(SYN);
    let to_stack = syn.moved(world::FROM_CLIENT, c.source, c.backend);
    let to_stack = to_stack.with(|p| p.ttl += 1);
    let steps = vec![
        Step::FromClient(syn.bytes(), Expect::Stack(to_stack.bytes())),
        local.step(&arrived, Expect::Stack(left.bytes())),
    ];
    table.add("icmp_to_backend_on_the_node", steps);

    let silent = Connection::new(
        a.client(40_072),
        a.vip(port::UNRESOLVED),
        a.backend(99, 8080),
    );
    let silent = trouble(silent, Way::ToBackend, a.neighbour_of_clients(0));
    let (seen, known) = silent.quoted().cut(header, 8);
    let arrived = silent.arrives(kind, seen);
    let left = silent
        .leaves(&arrived, known)
        .with(|p| p.macs = world::FROM_CLIENT);
    let c = &silent.connection;
    let syn = c.request(SYN);
    let to_resolve = syn.moved(world::FROM_CLIENT, c.source, c.backend);
    let steps = vec![
        Step::FromClient(syn.bytes(), Expect::Resolve(to_resolve.bytes())),
        silent.step(&arrived, Expect::Resolve(left.bytes())),
    ];
    table.add("icmp_to_unresolved_backend", steps);

    // The way back to the client is a black hole.
    let lost = Connection::new(a.black_hole(40_075), a.vip(port::WEB), a.backend(1, 8080));
    let syn = lost.forwards(lost.request(SYN));
    let unroutable =
        |packet: Packet| Step::FromBackend(packet.bytes(), Expect::Dropped(Drop::Unroutable));
    table.add(
        "tcp_answer_without_a_way_is_dropped",
        vec![syn.clone(), unroutable(lost.reply(SYN | ACK)), syn.clone()],
    );
    let lost = trouble(lost, Way::ToClient, a.backend(30, 0));
    let (seen, _) = lost.quoted().cut(header, 8);
    table.add(
        "icmp_without_a_way_is_dropped",
        vec![syn, unroutable(lost.arrives(kind, seen))],
    );

    // Two services with one backend: the second connection of a client port gets another, and its
    // errors are about the port that the client knows.
    let client = a.client(40_073);
    let first = Connection::new(client, a.vip(port::WEB), a.backend(1, 8080));
    let moved = SocketAddr::new(client.ip(), world::SNAT_PORT);
    let second = Connection::new(client, a.vip(port::WEB_AGAIN), a.backend(1, 8080)).seen_as(moved);
    let mut steps = first.opened();
    steps.extend(second.opened());
    for (way, router) in [
        (Way::ToClient, a.backend(1, 0)),
        (Way::ToBackend, a.neighbour_of_clients(0)),
    ] {
        for connection in [&first, &second] {
            let trouble = trouble(connection.clone(), way, router);
            for l4 in [8, 1000] {
                steps.push(trouble.reaches(kind, trouble.quoted().cut(header, l4)));
            }
        }
    }
    table.add("icmp_about_replaced_source_port", steps);

    // Where the client is the one who complains, as a host does on which nothing listens any more.
    let dns = Connection::new(a.client(40_074), a.vip(port::DNS), a.backend(13, 5353)).udp();
    let unheard = trouble(dns.clone(), Way::ToBackend, dns.client);
    let port_unreachable = if a.v6 { (1, 4, 0) } else { (3, 3, 0) };
    let mut steps = vec![dns.forwards(dns.request(0)), dns.returns(dns.reply(0))];
    steps.push(unheard.reaches(port_unreachable, unheard.quoted().cut(header, 8)));
    table.add("icmp_client_no_longer_listens", steps);

    // An error about a packet of the node's own, which it is to hear of itself.
    let health = Packet::tcp(world::FROM_CLIENT, a.node(50_000), a.backend(1, 8080), SYN);
    let to: IpAddr = a.node(0).ip();
    let own = Packet::tcp(
        world::FROM_BACKEND,
        a.backend(1, 0),
        SocketAddr::new(to, 0),
        0,
    )
    .with(|packet| {
        packet.transport = Transport::Icmp(kind.0, kind.1, kind.2);
        packet.payload = health.bytes()[14..].to_vec();
    });
    table.add(
        "icmp_about_the_nodes_own_packets",
        vec![
            Step::FromBackend(own.bytes(), Expect::Pass),
            passes(own.with(|p| p.macs = world::FROM_CLIENT)),
        ],
    );
}
