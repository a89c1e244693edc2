//! Packets from nothing: every field of a kind that decides something.

use std::{collections::VecDeque, net::SocketAddr, sync::LazyLock};

use lb_common::abi::{Backend, backend_state};
use rand::Rng;

use super::super::{
    Side,
    build::{ACK, FIN, PSH, Packet, RST, SYN, Transport, fragment_header},
    world::{self, Addresses},
};
use super::{event::Event, mutate};

pub(super) const TTLS: [u8; 6] = [64, 64, 64, 255, 2, 1];

const FLAGS: [u8; 14] = [
    SYN,
    SYN,
    SYN,
    SYN,
    ACK,
    ACK,
    PSH | ACK,
    SYN | ACK,
    FIN | ACK,
    RST,
    RST | ACK,
    0,
    SYN | FIN,
    FIN,
];

const NUMBERS: [u32; 4] = [0x0102_0304, 0x0102_0305, 0, u32::MAX];

static LISTENS: LazyLock<Vec<world::Listen>> = LazyLock::new(world::listens);
/// By family.
static BACKENDS: LazyLock<[Vec<(u32, Backend)>; 2]> =
    LazyLock::new(|| [false, true].map(|v6| world::backends(Addresses { v6 })));

pub(super) fn pick<'a, T>(rng: &mut impl Rng, all: &'a [T]) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

pub(super) fn packet(rng: &mut impl Rng) -> Event {
    let (side, packet) = plain(rng);
    let bytes = odd(rng, packet).bytes();
    Event::Packet {
        side,
        bytes,
        summed: false,
    }
}

/// TCP, UDP or an echo request between any two that there are.
fn plain(rng: &mut impl Rng) -> (Side, Packet) {
    let a = Addresses { v6: rng.random() };
    let listen = pick(rng, &LISTENS);
    let client = client(rng, a);
    let vip = a.vip(match rng.random_range(0..20) {
        0 => rng.random(),
        _ => listen.port,
    });
    if rng.random_bool(0.06) {
        let kind = if a.v6 { 128 } else { 8 };
        let mut echo = Packet::udp(world::FROM_CLIENT, client, vip);
        echo.transport = Transport::Icmp(kind, 0, rng.random());
        return (Side::Client, sized(rng, echo));
    }
    let backend = pick(rng, &BACKENDS[usize::from(a.v6)]).1;
    let from_backend = rng.random_bool(0.15);
    let (src, dst, macs, side) = if from_backend {
        let side = match rng.random_range(0..3) {
            0 => Side::Node,
            _ => Side::Backend,
        };
        let ip = match a.v6 {
            true => lb_common::abi::V6(backend.address).ip(),
            false => lb_common::abi::V4(backend.address[0]).ip(),
        };
        let src = SocketAddr::new(ip, u16::from_be(backend.port));
        let to = *pick(rng, &[client, client, a.node(world::SNAT_PORT)]);
        (src, to, world::FROM_BACKEND, side)
    } else {
        let dst = *pick(
            rng,
            &[vip, vip, vip, vip, vip, vip, vip, a.node(listen.port)],
        );
        (client, dst, world::FROM_CLIENT, Side::Client)
    };
    let is_udp = listen.udp ^ rng.random_bool(0.03);
    let packet = match is_udp {
        true => Packet::udp(macs, src, dst),
        false => tcp(rng, Packet::tcp(macs, src, dst, 0)),
    };
    (side, sized(rng, packet))
}

/// Few clients with few ports, so that they meet.
fn client(rng: &mut impl Rng, a: Addresses) -> SocketAddr {
    let ports = [1000, 1000, 1000, 1001, 1002, 8080, world::SNAT_PORT];
    let port = *pick(rng, &ports);
    match rng.random_range(0..16) {
        0 => a.client_number(rng.random_range(1..=255), port),
        1 => a.narrow_client(port),
        2 => a.neighbour_of_clients(port),
        3 => a.backend(rng.random_range(1..63), port),
        4 => a.node(port),
        5 => a.stranger(port),
        6 => a.client_number(*pick(rng, &[64, 65, 66, 255, 254]), port),
        7 => a.vip(port),
        _ => a.client(port),
    }
}

fn tcp(rng: &mut impl Rng, mut packet: Packet) -> Packet {
    let flags = match rng.random_range(0..20) {
        0 => rng.random(),
        _ => *pick(rng, &FLAGS),
    };
    let options = *pick(rng, &[0, 0, 0, 4, 12, 40]);
    packet.transport = Transport::Tcp {
        flags,
        sequence: *pick(rng, &NUMBERS),
        acknowledgement: *pick(rng, &NUMBERS),
        options: vec![1; options],
    };
    packet
}

/// Gives the packet a payload, often none, sometimes near an MTU.
fn sized(rng: &mut impl Rng, mut packet: Packet) -> Packet {
    let length = match rng.random_range(0..12) {
        0..6 => rng.random_range(0..4),
        6 | 7 => rng.random_range(0..300),
        8 => rng.random_range(1300..1480),
        9 => rng.random_range(1480..2600),
        _ => 0,
    };
    packet.payload = (0..length).map(|_| rng.random()).collect();
    packet
}

/// Gives some packets what few have.
fn odd(rng: &mut impl Rng, mut packet: Packet) -> Packet {
    packet.ttl = *pick(rng, &TTLS);
    packet.tos = *pick(rng, &[0, 0, 0, 0x10, 0xb8, 3]);
    packet.fragment = *pick(rng, &[0x4000, 0x4000, 0]);
    if rng.random_bool(0.05) {
        packet.macs.0 = *pick(rng, &[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]]);
    }
    if rng.random_bool(0.03) {
        let tag = (*pick(rng, &[0x8100, 0x88a8]), rng.random());
        packet.tags = vec![tag; rng.random_range(1..=3)];
    }
    if rng.random_bool(0.1) {
        let length = rng.random_range(0..8);
        packet.trailer = (0..length).map(|_| rng.random()).collect();
    }
    if rng.random_bool(0.03) {
        packet.total_length = Some(*pick(rng, &[0, 20, 28, 40, 60, 1000, 0xffff]));
    }
    if let Transport::Udp { checksum, length } = &mut packet.transport {
        *checksum = rng.random_bool(0.8);
        if rng.random_bool(0.05) {
            *length = Some(*pick(rng, &[0, 7, 8, 9, 100, 0xffff]));
        }
    }
    if rng.random_bool(0.08) {
        packet.options = vec![1; *pick(rng, &[4, 8, 40])];
    }
    if packet.src.is_ipv6() && rng.random_bool(0.12) {
        packet.extensions = extensions(rng);
    }
    packet
}

fn extensions(rng: &mut impl Rng) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    for _ in 0..rng.random_range(1..=4) {
        let number = *pick(rng, &[0, 43, 60, 60, 44]);
        if number == 44 {
            all.push(fragment_header(rng.random(), 0, rng.random_bool(0.3)));
            continue;
        }
        let words = rng.random_range(0..4_u8);
        let mut bytes = vec![0; 8 * (usize::from(words) + 1)];
        bytes[1] = words;
        if rng.random_bool(0.1) {
            bytes[3] = 1;
        }
        all.push((number, bytes));
    }
    all
}

/// A datagram or segment in fragments, in order or not.
pub(super) fn fragments(rng: &mut impl Rng) -> VecDeque<Event> {
    let (side, mut packet) = plain(rng);
    // Longer than the first fragment.
    let length = rng.random_range(64..600);
    packet.payload = (0..length).map(|_| rng.random()).collect();
    packet.ttl = *pick(rng, &TTLS);
    packet.options = vec![1; *pick(rng, &[0, 0, 8])];
    let first = *pick(rng, &[8, 16, 24, 64]);
    let mut sizes = vec![first];
    while sizes.len() < 9 && sizes.iter().sum::<usize>() + 40 < length && rng.random_bool(0.6) {
        sizes.push(8 * rng.random_range(1..5));
    }
    // Few identifications, so that datagrams meet.
    let id = rng.random_range(0..4);
    let mut fragments: Vec<Packet> = packet.fragments(id, &sizes);
    if rng.random_bool(0.5) {
        for place in 1..fragments.len() {
            fragments.swap(place, rng.random_range(0..=place));
        }
    }
    if rng.random_bool(0.2) {
        fragments.push(pick(rng, &fragments).clone());
    }
    let events = fragments.into_iter().map(|fragment| Event::Packet {
        side,
        bytes: fragment.bytes(),
        summed: false,
    });
    events.collect()
}

/// An ICMP error about a packet, from its receiver or from a router.
pub(super) fn errors_about(rng: &mut impl Rng, about: &[u8]) -> Option<Vec<u8>> {
    let (transport, v6) = mutate::transport(about)?;
    let a = Addresses { v6 };
    let quoted = (transport - mutate::NETWORK) + *pick(rng, &[8, 8, 20, 100, 7, 0]);
    let quote = &about[mutate::NETWORK..];
    let quote = &quote[..quoted.min(quote.len())];
    let turned = mutate::turn_around(about)?;
    let (src, dst) = ends(&turned, v6);
    let router = *pick(rng, &[src, src, a.backend(1, 0), a.stranger(0)]);
    let (kind, code) = match v6 {
        true => *pick(rng, &[(1, 4), (1, 0), (2, 0), (3, 0), (4, 1), (128, 0)]),
        false => *pick(rng, &[(3, 3), (3, 4), (3, 1), (11, 0), (12, 0), (5, 0)]),
    };
    let mut error = Packet::udp(world::FROM_CLIENT, router, dst);
    error.transport = Transport::Icmp(kind, code, rng.random_range(0..2000));
    error.payload = quote.to_vec();
    error.ttl = *pick(rng, &TTLS);
    Some(error.bytes())
}

/// Source and destination; the ports are the first four bytes behind the IP header.
fn ends(bytes: &[u8], v6: bool) -> (SocketAddr, SocketAddr) {
    let network = &bytes[mutate::NETWORK..];
    let address = |number: usize| -> std::net::IpAddr {
        if v6 {
            let octets = &network[8 + 16 * number..][..16];
            <[u8; 16]>::try_from(octets).expect("16 bytes").into()
        } else {
            let octets = &network[12 + 4 * number..][..4];
            <[u8; 4]>::try_from(octets).expect("4 bytes").into()
        }
    };
    (
        SocketAddr::new(address(0), 0),
        SocketAddr::new(address(1), 0),
    )
}

/// A backend fails, drains, comes back, or its slot goes to another.
pub(super) fn backend(rng: &mut impl Rng) -> Event {
    use backend_state::{ACTIVE, CLOSED, DOWN, DRAINING, FREE};
    let family = usize::from(rng.random::<bool>());
    let slot = pick(rng, &BACKENDS[family]).0;
    Event::Backend {
        slot,
        state: *pick(rng, &[ACTIVE, ACTIVE, DRAINING, DOWN, CLOSED, FREE]),
        generation: *pick(rng, &[1, 1, 1, 2]),
    }
}
