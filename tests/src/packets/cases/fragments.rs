//! Fragments of datagrams and segments.

use super::{Connection, Table};
use crate::packets::build::{ACK, Packet, SYN, Transport};
use crate::packets::world::{self, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Drop, backend_state};

const ID: u32 = 0x00c0_ffee;

fn dns(table: &Table) -> Connection {
    let a = table.addresses;
    Connection::new(a.client(40_053), a.vip(port::DNS), a.backend(13, 5353)).udp()
}

fn long(packet: Packet, length: usize) -> Packet {
    packet.with(|packet| packet.payload = (0..length).map(|i| (i * 7) as u8).collect())
}

/// The fragments of a client's packet, each as it arrives and as it goes on.
fn requests(connection: &Connection, packet: &Packet, id: u32, sizes: &[usize]) -> Vec<Step> {
    let out = packet.moved(world::TO_BACKEND, connection.source, connection.backend);
    let pairs = packet
        .fragments(id, sizes)
        .into_iter()
        .zip(out.fragments(id, sizes));
    pairs
        .map(|(sent, out)| Step::FromClient(sent.bytes(), Expect::Redirect(out.bytes())))
        .collect()
}

/// The same of a backend's packet.
fn replies(connection: &Connection, packet: &Packet, id: u32, sizes: &[usize]) -> Vec<Step> {
    let out = packet.moved(world::TO_CLIENT, connection.vip, connection.client);
    let pairs = packet
        .fragments(id, sizes)
        .into_iter()
        .zip(out.fragments(id, sizes));
    pairs
        .map(|(sent, out)| Step::FromBackend(sent.bytes(), Expect::Redirect(out.bytes())))
        .collect()
}

/// The step with another end.
fn but(step: Step, expect: Expect) -> Step {
    match step {
        Step::FromClient(packet, _) => Step::FromClient(packet, expect),
        Step::FromBackend(packet, _) => Step::FromBackend(packet, expect),
        other => other,
    }
}

pub(super) fn cases(table: &mut Table) {
    in_order(table);
    flows(table);
    hostile(table);
    out_of_order(table);
    left_alone(table);
}

fn in_order(table: &mut Table) {
    let dns = dns(table);
    let a = table.addresses;
    for (length, sizes) in [
        (2000, &[1400][..]),
        (8000, &[1400; 5]),
        (8000, &[1448; 5]),
        (100, &[8, 8, 16]),
        (17, &[24]),
    ] {
        let mut steps = requests(&dns, &long(dns.request(0), length), ID, sizes);
        steps.extend(replies(&dns, &long(dns.reply(0), length), ID, sizes));
        steps.extend(requests(&dns, &long(dns.request(0), length), ID + 1, sizes));
        steps.push(dns.forwards(dns.request(0)));
        table.add(&format!("udp_{length}_bytes_in_{}", sizes[0]), steps);
    }
    let web = Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080));
    let mut steps = web.opened();
    steps.extend(requests(&web, &long(web.request(ACK), 1400), ID, &[800]));
    steps.extend(replies(&web, &long(web.reply(ACK), 1400), ID, &[800]));
    table.add("tcp_fragments_both_ways", steps);
    // Who sent a later fragment is told nothing (RFC 1122 3.2.2).
    let mut steps = web.opened();
    let fragments = requests(&web, &long(web.request(ACK), 1400), ID, &[800]);
    let removed = Step::Backend {
        slot: table.slot(slot::WEB),
        state: backend_state::ACTIVE,
        generation: 2,
    };
    let (first, later) = fragments.split_at(1);
    steps.extend_from_slice(first);
    steps.push(removed);
    let dropped = |step: &Step| but(step.clone(), Expect::Dropped(Drop::BackendRemoved));
    steps.extend(later.iter().map(dropped));
    table.add("tcp_later_fragment_of_removed_backend", steps);
    let steps = requests(&web, &long(web.request(SYN), 100), ID, &[24]);
    table.add("tcp_fragmented_first_packet", steps);
    let snat = Connection::new(a.client(40_053), a.vip(port::DNS_SNAT), a.backend(14, 5353))
        .udp()
        .seen_as(a.node(world::SNAT_PORT));
    let mut steps = requests(&snat, &long(snat.request(0), 2000), ID, &[1400]);
    steps.extend(replies(&snat, &long(snat.reply(0), 2000), ID, &[1400]));
    table.add("udp_fragments_with_snat", steps);
    // Two datagrams of one flow, and one of another, in turn.
    let other = Connection {
        client: a.client(40_054),
        source: a.client(40_054),
        ..dns.clone()
    };
    let long = |packet| long(packet, 3000);
    let one = requests(&dns, &long(dns.request(0)), ID, &[1400, 1400]);
    let two = requests(&dns, &long(dns.request(0)), ID + 1, &[1400, 1400]);
    let three = requests(&other, &long(other.request(0)), ID + 2, &[1400, 1400]);
    let steps = one.into_iter().zip(two).zip(three);
    let steps = steps.flat_map(|((a, b), c)| [a, b, c]).collect();
    table.add("udp_fragments_interleaved", steps);
    // Behind the first, in any order.
    let mut steps = requests(&dns, &long(dns.request(0)), ID, &[800, 800, 800]);
    steps[1..].reverse();
    table.add("udp_later_fragments_reversed", steps);
    let marked = long(dns.request(0)).with(|p| p.tos = 0xb8);
    let steps = requests(&dns, &marked, ID, &[1400, 1400]);
    table.add("udp_fragments_keep_their_traffic_class", steps);
    if table.addresses.v6 {
        // Some headers stand in each fragment, others in the first alone.
        let packet = long(dns.request(0)).with(|p| {
            p.extensions = vec![
                (0, vec![0, 0, 1, 4, 0, 0, 0, 0]),
                (60, vec![0, 0, 1, 4, 0, 0, 0, 0]),
            ];
        });
        let steps = requests(&dns, &packet, ID, &[1400, 800]);
        table.add("udp_fragments_behind_other_headers", steps);
    } else {
        let packet = long(dns.request(0)).with(|p| p.options = vec![1; 12]);
        let steps = requests(&dns, &packet, ID, &[1400, 800]);
        table.add("udp_fragments_with_options", steps);
        let unsummed = long(dns.request(0)).with(|p| {
            p.transport = Transport::Udp {
                checksum: false,
                length: None,
            };
        });
        let steps = requests(&dns, &unsummed, ID, &[1400, 1400]);
        table.add("udp_fragments_without_checksum", steps);
    }
}

/// What happens to the flow happens to its fragments.
fn flows(table: &mut Table) {
    let dns = dns(table);
    let slot = table.slot(slot::DNS);
    let fragments = requests(&dns, &long(dns.request(0), 3000), ID, &[1400, 1400]);
    let with = |step, last: Option<Expect>| {
        let mut steps = fragments.clone();
        steps.insert(2, step);
        if let (Some(expect), Some(step)) = (last, steps.pop()) {
            steps.push(but(step, expect));
        }
        steps
    };
    table.add("udp_fragments_over_a_new_epoch", with(Step::Epoch, None));
    let state = |state, generation| Step::Backend {
        slot,
        state,
        generation,
    };
    table.add(
        "udp_fragments_while_backend_draining",
        with(state(backend_state::DRAINING, 1), None),
    );
    let unknown = Some(Expect::Dropped(Drop::FragmentUnknown));
    table.add(
        "udp_fragments_while_backend_fails",
        with(state(backend_state::DOWN, 1), unknown.clone()),
    );
    table.add(
        "udp_fragments_while_backend_is_removed",
        with(state(backend_state::ACTIVE, 2), unknown.clone()),
    );
    let evict = Step::Evict {
        src: dns.client,
        dst: dns.vip,
        udp: true,
    };
    table.add("udp_fragments_without_their_flow", with(evict, unknown));
    table.add(
        "udp_fragments_too_far_apart",
        with(Step::Stale, Some(Expect::Held)),
    );
    let a = table.addresses;
    let empty = Connection::new(a.client(40_053), a.vip(port::DNS_DROP), a.vip(1)).udp();
    let steps = requests(&empty, &long(empty.request(0), 2000), ID, &[1400]);
    let reasons = [Drop::NoBackend, Drop::FragmentUnknown];
    let steps = steps.into_iter().zip(reasons);
    let steps = steps.map(|(step, reason)| but(step, Expect::Dropped(reason)));
    table.add("udp_fragments_without_backend", steps.collect());
}

fn hostile(table: &mut Table) {
    let a = table.addresses;
    let web = Connection::new(a.client(40_001), a.vip(port::WEB), a.backend(1, 8080));
    let tiny = |step| but(step, Expect::Dropped(Drop::TinyFragment));
    for size in [8, 16] {
        let steps = requests(&web, &long(web.request(SYN), 100), ID, &[size]);
        let first = steps.into_iter().next().into_iter();
        table.add(
            &format!("tcp_first_fragment_of_{size}_bytes"),
            first.map(tiny).collect(),
        );
    }
    for (start, size) in [(1, 8), (2, 16)] {
        let mut steps = requests(&web, &long(web.request(SYN), 100), ID, &[40]);
        let overlap = requests(&web, &long(web.request(SYN), 100), ID, &[size]);
        steps.extend(overlap.into_iter().skip(1).map(tiny));
        table.add(&format!("tcp_overlap_at_{}", start * 8), steps);
    }
    if !table.addresses.v6 {
        // The header says that the packet ends within it.
        let bytes = long(web.request(SYN), 100).fragments(ID, &[40])[0].clone();
        let short = bytes.with(|p| p.total_length = Some(12));
        let steps = vec![Step::FromClient(short.bytes(), Expect::Pass)];
        table.add("tcp_fragment_with_total_length_too_small", steps);
    }
    // A later fragment that ends in its own headers.
    let dns = dns(table);
    let mut steps = requests(&dns, &long(dns.request(0), 2000), ID, &[1400]);
    let later = long(dns.request(0), 2000).fragments(ID, &[1400])[1].clone();
    let short = later.with(|packet| {
        packet.options = vec![1; 8];
        packet.total_length = Some(if table.addresses.v6 { 4 } else { 24 });
    });
    steps.push(Step::FromClient(short.bytes(), Expect::Pass));
    table.add("udp_later_fragment_that_ends_in_its_headers", steps);
    // Elsewhere tiny fragments are none of our business.
    let foreign = Connection::new(a.client(40_001), a.node(port::WEB), a.backend(1, 8080));
    let steps = requests(&foreign, &long(foreign.request(SYN), 100), ID, &[8]);
    let steps = steps.into_iter().map(|step| but(step, Expect::Pass));
    table.add("tcp_tiny_fragments_of_others", steps.collect());
    // The same identification again, for another flow.
    let other = Connection {
        client: dns.client,
        vip: a.vip(port::DNS_TWO),
        backend: a.backend(19, 5353),
        ..dns.clone()
    };
    let second = Step::Backend {
        slot: table.slot(slot::DNS_TWO_B),
        state: backend_state::DOWN,
        generation: 1,
    };
    let mut steps = vec![second];
    steps.extend(requests(&dns, &long(dns.request(0), 2000), ID, &[1400]));
    steps.extend(requests(&other, &long(other.request(0), 2000), ID, &[1400]));
    table.add("udp_identification_used_again", steps);
}

fn out_of_order(table: &mut Table) {
    let dns = dns(table);
    let held = |step| but(step, Expect::Held);
    let released = |step| match step {
        Step::FromClient(packet, Expect::Redirect(out)) => {
            Step::FromClient(packet, Expect::Released(out))
        }
        other => other,
    };
    for count in [1, 2, 7] {
        let sizes = vec![800; count];
        let whole = long(dns.request(0), 800 * count + 100);
        let mut steps = requests(&dns, &whole, ID, &sizes);
        let first = steps.remove(0);
        let mut steps: Vec<_> = steps.into_iter().map(held).collect();
        steps.reverse();
        // What was put aside once is there no more when the first comes again.
        steps.extend([released(first.clone()), first]);
        table.add(&format!("udp_{count}_fragments_before_the_first"), steps);
    }
    // More than eight of one datagram, and one that is too long, are not put aside.
    let whole = long(dns.request(0), 100 * 8);
    let steps = requests(&dns, &whole, ID, &[64; 12]);
    let mut steps: Vec<_> = steps.into_iter().skip(1).map(held).take(8).collect();
    let other = requests(&dns, &long(dns.request(0), 100), ID + 1, &[64]);
    steps.extend(other.into_iter().skip(1).map(held));
    table.add("udp_eight_fragments_wait_at_most", steps);
    // Nobody's first: what waits for another identification stays.
    let mut one = requests(&dns, &long(dns.request(0), 2000), ID, &[1400]);
    let two = requests(&dns, &long(dns.request(0), 2000), ID + 1, &[1400]);
    let late = one.pop().map(held);
    let steps = late
        .into_iter()
        .chain(two)
        .chain(one.into_iter().map(released));
    table.add("udp_fragment_waits_for_its_own_first", steps.collect());
    let mut steps = requests(&dns, &long(dns.request(0), 2000), ID, &[1400]);
    let late = steps.pop().map(held);
    let steps = late.into_iter().chain([Step::Stale]).chain(steps);
    table.add("udp_fragment_waits_no_longer", steps.collect());
}

fn left_alone(table: &mut Table) {
    let dns = dns(table);
    let a = table.addresses;
    let pass = |name: &str, table: &mut Table, steps: Vec<Step>| {
        let steps = steps.into_iter().map(|step| but(step, Expect::Pass));
        table.add(name, steps.collect());
    };
    let fragments = |change: fn(&mut Packet)| {
        let packet = long(dns.request(0), 2000).with(change);
        requests(&dns, &packet, ID, &[1400])
    };
    pass("udp_fragments_with_ttl_1", table, fragments(|p| p.ttl = 1));
    let tagged = fragments(|p| p.tags = vec![(0x8100, 100)]);
    pass("udp_fragments_in_a_vlan", table, tagged);
    let group = fragments(|p| p.macs.0 = [1, 0, 0x5e, 0, 0, 1]);
    pass("udp_fragments_to_a_group", table, group);
    let ping = fragments(|p| {
        let kind = if p.src.is_ipv6() { 128 } else { 8 };
        p.transport = Transport::Icmp(kind, 0, 1);
    });
    pass("ping_fragments", table, ping);
    let other = Connection::new(dns.client, a.node(port::DNS), dns.backend).udp();
    let steps = requests(&other, &long(other.request(0), 2000), ID, &[1400]);
    pass("udp_fragments_to_others", table, steps);
    // Of a port on which nobody listens: the address may be the node's own.
    let other = Connection::new(dns.client, a.vip(5354), dns.backend).udp();
    let steps = requests(&other, &long(other.request(0), 3000), ID, &[1400, 1400]);
    pass("udp_fragments_to_other_port", table, steps.clone());
    let mut late: Vec<_> = steps[1..].to_vec();
    late.reverse();
    let mut late: Vec<_> = late.into_iter().map(|s| but(s, Expect::Held)).collect();
    late.push(but(steps[0].clone(), Expect::LetGo));
    late.extend(steps.into_iter().map(|step| but(step, Expect::Pass)));
    table.add("udp_fragments_to_other_port_before_the_first", late);
    let ssh = Connection::new(dns.client, a.vip(22), dns.backend);
    let steps = requests(&ssh, &long(ssh.request(ACK), 1400), ID, &[800]);
    pass("tcp_fragments_to_other_port", table, steps);
    // A reply nobody asked for.
    let stray = long(dns.reply(0), 2000).fragments(ID, &[1400]);
    let steps = stray
        .into_iter()
        .map(|p| Step::FromBackend(p.bytes(), Expect::Pass));
    table.add("udp_stray_reply_fragments", steps.collect());
}
