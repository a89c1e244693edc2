//! The standard world of the packet cases.
//!
//! ```text
//!   clients 198.51.100.0/24            node                 backends 10.1.0.0/24
//!   2001:db8:c::/64        ──── CLIENT_SIDE │ BACKEND_SIDE ──── 2001:db8:b::/64
//! ```
//! VIPs are 192.0.2.10 and 2001:db8:1::10. 10.9.0.0/16 and 2001:db8:9::/48 are black holes.

mod addresses;
pub mod port;
pub mod slot;

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    Admission, Backend, Be16, Config, PortKind, Rate, Service, UDP_PLACE, admission_flag,
    backend_flag, backend_state, forwarding, no_backend, policy, port_bit, protocol, source,
};

pub use self::addresses::Addresses;

pub type Mac = [u8; 6];

pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
pub const BACKEND_MAC: Mac = [2, 0, 0, 0, 0, 2];
/// MACs of the node's two devices.
pub const CLIENT_SIDE_MAC: Mac = [2, 0, 0, 0, 0, 3];
pub const BACKEND_SIDE_MAC: Mac = [2, 0, 0, 0, 0, 4];

/// Destination and source of a frame from a client, to a client, and so on.
pub const FROM_CLIENT: (Mac, Mac) = (CLIENT_SIDE_MAC, CLIENT_MAC);
pub const TO_CLIENT: (Mac, Mac) = (CLIENT_MAC, CLIENT_SIDE_MAC);
pub const FROM_BACKEND: (Mac, Mac) = (BACKEND_SIDE_MAC, BACKEND_MAC);
pub const TO_BACKEND: (Mac, Mac) = (BACKEND_MAC, BACKEND_SIDE_MAC);

/// The one port of the SNAT pool, so that a draw from it has one result.
pub const SNAT_PORT: u16 = 40_000;

/// MTU of the world's devices, and of some routes.
pub const MTU: u32 = 1500;
pub const NARROW_MTU: u32 = 1400;

/// Where tunnels begin, by family of the outer header: an address of the node that is never
/// spread, and the prefix of those that are.
pub const TUNNEL_PREFIX: [&str; 2] = ["172.16.0.0", "fd00:7::"];
/// Bits of the last word, host byte order.
pub const TUNNEL_SPREAD: u32 = 0xffff;

/// A service of the world, by the VIP's port.
pub struct Listen {
    pub port: u16,
    pub udp: bool,
    pub policy: u8,
    pub no_backend: u8,
    pub forwarding: u8,
    /// IPv4 clients are served by IPv6 backends.
    pub crossed: bool,
    /// Slots in its table; `None` for no table at all.
    pub table: Option<Vec<u32>>,
}

impl Listen {
    /// The slot that stands for `slot` in the table for clients of a family.
    pub fn slot(&self, slot: u32, clients: Addresses) -> u32 {
        slot + if clients.v6 || self.crossed {
            V6_SLOTS
        } else {
            0
        }
    }
}

pub const V6_SLOTS: u32 = 128;

pub const CONFIG: Config = Config {
    epoch: 1,
    hz: 250,
    rejects_per_second: 1000,
    snat_first: SNAT_PORT,
    snat_count: 1,
    sources: [0; 2],
    entries_per_second: 1000,
    // More than any test has flows: nothing writes it anew.
    udp_places: (1 << 20) * UDP_PLACE,
};

/// Longer than a slow machine takes for a few packets.
pub const AFFINITY_SECONDS: u32 = 3;

pub fn listens() -> Vec<Listen> {
    use policy::{MAGLEV, RANDOM, ROUND_ROBIN};
    let tcp = |port, slots: &[u32]| Listen {
        port,
        udp: false,
        policy: MAGLEV,
        no_backend: no_backend::REJECT,
        forwarding: forwarding::NAT,
        crossed: false,
        table: Some(slots.to_vec()),
    };
    let udp = |port, slots: &[u32]| Listen {
        udp: true,
        ..tcp(port, slots)
    };
    let l2 = |listen| Listen {
        forwarding: forwarding::DSR_L2,
        ..listen
    };
    let tunnel = |listen| Listen {
        forwarding: forwarding::DSR_IPIP,
        ..listen
    };
    vec![
        tcp(port::WEB, &[slot::WEB; 7]),
        tcp(port::SNAT, &[slot::SNAT; 7]),
        tcp(port::EMPTY_REJECT, &[]),
        Listen {
            no_backend: no_backend::DROP,
            ..tcp(port::EMPTY_DROP, &[])
        },
        tcp(port::DOWN, &[slot::DOWN; 7]),
        tcp(port::DRAINING, &[slot::DRAINING; 7]),
        tcp(port::FOREIGN_SLOT, &[slot::WEB; 7]),
        tcp(port::UNRESOLVED, &[slot::UNRESOLVED; 7]),
        tcp(port::BLACK_HOLE, &[slot::BLACK_HOLE; 7]),
        tcp(port::LOCAL, &[slot::LOCAL; 7]),
        tcp(port::HAIRPIN, &[slot::HAIRPIN; 7]),
        Listen {
            policy: ROUND_ROBIN,
            ..tcp(port::ROUND_ROBIN, &[slot::ROUND_A, slot::ROUND_B])
        },
        tcp(
            port::MAGLEV,
            &[
                slot::MAGLEV_A,
                slot::MAGLEV_B,
                slot::MAGLEV_A,
                slot::MAGLEV_B,
                slot::MAGLEV_A,
            ],
        ),
        Listen {
            table: None,
            ..tcp(port::NO_TABLE, &[])
        },
        tcp(port::HALF, &[slot::HALF_DOWN, slot::HALF_UP]),
        tcp(port::WEB_AGAIN, &[slot::WEB_AGAIN; 7]),
        tcp(port::RESETTING, &[slot::RESETTING; 7]),
        tcp(port::ALLOWED, &[slot::ALLOWED; 7]),
        tcp(port::DENIED, &[slot::DENIED; 7]),
        tcp(port::RATE, &[slot::RATE; 7]),
        tcp(port::SOURCE_RATE, &[slot::SOURCE_RATE; 7]),
        tcp(port::BURST, &[slot::BURST; 7]),
        tcp(port::ITSELF, &[slot::ITSELF; 7]),
        Listen {
            policy: RANDOM,
            ..tcp(port::RANDOM, &[slot::RANDOM; 7])
        },
        tcp(port::LIMIT, &[slot::LIMIT; 7]),
        Listen {
            no_backend: no_backend::DROP,
            ..tcp(port::LIMIT_DROP, &[slot::LIMIT_DROP; 7])
        },
        Listen {
            policy: ROUND_ROBIN,
            ..tcp(port::BACKEND_LIMIT, &[slot::LIMITED, slot::UNLIMITED])
        },
        tcp(port::BACKEND_FULL, &[slot::FULL; 7]),
        Listen {
            policy: ROUND_ROBIN,
            ..tcp(port::AFFINITY, &[slot::AFFINITY_A, slot::AFFINITY_B])
        },
        tcp(
            port::AFFINITY_MAGLEV,
            &[
                slot::AFFINITY_C,
                slot::AFFINITY_D,
                slot::AFFINITY_C,
                slot::AFFINITY_D,
                slot::AFFINITY_C,
            ],
        ),
        Listen {
            policy: ROUND_ROBIN,
            ..udp(
                port::DNS_AFFINITY,
                &[slot::DNS_AFFINITY_A, slot::DNS_AFFINITY_B],
            )
        },
        udp(port::DNS_RATE, &[slot::DNS_RATE; 7]),
        udp(port::DNS, &[slot::DNS; 7]),
        udp(port::DNS_SNAT, &[slot::DNS_SNAT; 7]),
        udp(port::DNS_EMPTY, &[]),
        Listen {
            no_backend: no_backend::DROP,
            ..udp(port::DNS_DROP, &[])
        },
        udp(port::DNS_DOWN, &[slot::DNS_DOWN; 7]),
        udp(port::DNS_TWO, &[slot::DNS_TWO_A, slot::DNS_TWO_B]),
        l2(udp(port::DNS_L2, &[slot::DNS_L2])),
        tunnel(udp(port::DNS_TUNNEL, &[slot::DNS_TUNNEL])),
        tcp(port::NARROW, &[slot::NARROW]),
        tcp(port::NARROW_SNAT, &[slot::NARROW_SNAT]),
        l2(tcp(port::L2, &[slot::L2])),
        l2(tcp(port::L2_ROUTED, &[slot::L2_ROUTED])),
        l2(tcp(port::L2_LOCAL, &[slot::L2_LOCAL])),
        l2(tcp(port::L2_UNRESOLVED, &[slot::L2_UNRESOLVED])),
        l2(tcp(port::L2_RATE, &[slot::L2_RATE])),
        l2(tcp(port::L2_LIMIT, &[slot::L2_LIMIT])),
        Listen {
            policy: ROUND_ROBIN,
            ..l2(tcp(port::L2_TWO, &[slot::L2_TWO_A, slot::L2_TWO_B]))
        },
        tunnel(tcp(port::TUNNEL, &[slot::TUNNEL])),
        Listen {
            crossed: true,
            ..tunnel(tcp(port::CROSSED, &[slot::CROSSED]))
        },
        tunnel(tcp(port::SPREAD, &[slot::SPREAD])),
        tunnel(tcp(port::TUNNEL_UNRESOLVED, &[slot::TUNNEL_UNRESOLVED])),
        tunnel(tcp(port::TUNNEL_NARROW, &[slot::TUNNEL_NARROW])),
        tunnel(tcp(port::TUNNEL_BLACK_HOLE, &[slot::TUNNEL_BLACK_HOLE])),
        tunnel(tcp(port::TUNNEL_LOCAL, &[slot::TUNNEL_LOCAL])),
    ]
}

/// Number of a service, by its port: listens of both families share it.
pub fn service(port: u16) -> Service {
    let listen = listens().into_iter().find(|listen| listen.port == port);
    let listen = listen.unwrap_or_else(|| panic!("no service on port {port}"));
    Service {
        id: u32::from(port),
        table: 0,
        policy: listen.policy,
        forwarding: listen.forwarding,
        no_backend: listen.no_backend,
        ..Service::default()
    }
}

pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => lb_common::abi::V6::from(v6).0,
    }
}

/// Where the slots' backends listen, and the slots themselves.
pub fn backends(addresses: Addresses) -> Vec<(u32, Backend)> {
    let a = addresses;
    let offset = if a.v6 { V6_SLOTS } else { 0 };
    let entry = |slot: u32, service: u16, address: SocketAddr| {
        let udp = matches!(service, port::DNS..=port::DNS_TUNNEL);
        let backend = Backend {
            generation: 1,
            state: backend_state::ACTIVE,
            address: words(address.ip()),
            port: Be16::new(address.port()).0,
            family: if a.v6 { 6 } else { 4 },
            protocol: if udp { protocol::UDP } else { protocol::TCP },
            service: u32::from(service),
            ..Backend::default()
        };
        (slot + offset, backend)
    };
    let snat = |(slot, backend): (u32, Backend)| {
        let source = words(a.node(0).ip());
        (
            slot,
            Backend {
                source,
                flags: backend_flag::SNAT,
                ..backend
            },
        )
    };
    // Direct return: the port is the service's.
    let direct = |slot: u32, service: u16, last: u8| entry(slot, service, a.backend(last, service));
    let tunnel = |(slot, backend): (u32, Backend)| {
        let source = words(a.node(0).ip());
        let flags = backend_flag::TUNNEL;
        (
            slot,
            Backend {
                source,
                flags,
                ..backend
            },
        )
    };
    let spread = |(slot, backend): (u32, Backend)| {
        let prefix = TUNNEL_PREFIX[usize::from(a.v6)].parse();
        let source = words(prefix.expect("an address"));
        let spread = TUNNEL_SPREAD.to_be();
        (
            slot,
            Backend {
                source,
                flags: backend_flag::TUNNEL,
                spread,
                ..backend
            },
        )
    };
    let limited = |(slot, backend): (u32, Backend)| {
        let max_connections = 1;
        (
            slot,
            Backend {
                max_connections,
                ..backend
            },
        )
    };
    let state = |(slot, backend): (u32, Backend), state| (slot, Backend { state, ..backend });
    vec![
        entry(slot::WEB, port::WEB, a.backend(1, 8080)),
        snat(entry(slot::SNAT, port::SNAT, a.backend(2, 8443))),
        state(
            entry(slot::DOWN, port::DOWN, a.backend(3, 8080)),
            backend_state::DOWN,
        ),
        state(
            entry(slot::DRAINING, port::DRAINING, a.backend(4, 8080)),
            backend_state::DRAINING,
        ),
        entry(slot::UNRESOLVED, port::UNRESOLVED, a.backend(99, 8080)),
        entry(slot::BLACK_HOLE, port::BLACK_HOLE, a.black_hole(8080)),
        entry(slot::LOCAL, port::LOCAL, a.node(8080)),
        entry(slot::HAIRPIN, port::HAIRPIN, a.neighbour_of_clients(8080)),
        entry(slot::ROUND_A, port::ROUND_ROBIN, a.backend(9, 8080)),
        entry(slot::ROUND_B, port::ROUND_ROBIN, a.backend(10, 8080)),
        entry(slot::MAGLEV_A, port::MAGLEV, a.backend(11, 8080)),
        entry(slot::MAGLEV_B, port::MAGLEV, a.backend(12, 8080)),
        entry(slot::DNS, port::DNS, a.backend(13, 5353)),
        snat(entry(slot::DNS_SNAT, port::DNS_SNAT, a.backend(14, 5353))),
        state(
            entry(slot::DNS_DOWN, port::DNS_DOWN, a.backend(15, 5353)),
            backend_state::DOWN,
        ),
        state(
            entry(slot::HALF_DOWN, port::HALF, a.backend(16, 8080)),
            backend_state::DOWN,
        ),
        entry(slot::HALF_UP, port::HALF, a.backend(17, 8080)),
        entry(slot::WEB_AGAIN, port::WEB_AGAIN, a.backend(1, 8080)),
        (
            slot::RESETTING + offset,
            Backend {
                flags: backend_flag::RESET_WHEN_DOWN,
                ..entry(slot::RESETTING, port::RESETTING, a.backend(21, 8080)).1
            },
        ),
        entry(slot::ALLOWED, port::ALLOWED, a.backend(40, 8080)),
        entry(slot::DENIED, port::DENIED, a.backend(41, 8080)),
        entry(slot::RATE, port::RATE, a.backend(42, 8080)),
        entry(slot::SOURCE_RATE, port::SOURCE_RATE, a.backend(43, 8080)),
        entry(slot::RANDOM, port::RANDOM, a.backend(56, 8080)),
        entry(slot::BURST, port::BURST, a.backend(57, 8080)),
        (
            slot::ITSELF + offset,
            Backend {
                source: words(a.node(0).ip()),
                ..entry(slot::ITSELF, port::ITSELF, a.backend(58, 8080)).1
            },
        ),
        entry(slot::LIMIT, port::LIMIT, a.backend(44, 8080)),
        entry(slot::LIMIT_DROP, port::LIMIT_DROP, a.backend(45, 8080)),
        limited(entry(
            slot::LIMITED,
            port::BACKEND_LIMIT,
            a.backend(46, 8080),
        )),
        entry(slot::UNLIMITED, port::BACKEND_LIMIT, a.backend(47, 8080)),
        limited(entry(slot::FULL, port::BACKEND_FULL, a.backend(48, 8080))),
        entry(slot::AFFINITY_A, port::AFFINITY, a.backend(49, 8080)),
        entry(slot::AFFINITY_B, port::AFFINITY, a.backend(50, 8080)),
        entry(slot::AFFINITY_C, port::AFFINITY_MAGLEV, a.backend(51, 8080)),
        entry(slot::AFFINITY_D, port::AFFINITY_MAGLEV, a.backend(52, 8080)),
        entry(
            slot::DNS_AFFINITY_A,
            port::DNS_AFFINITY,
            a.backend(53, 5353),
        ),
        entry(
            slot::DNS_AFFINITY_B,
            port::DNS_AFFINITY,
            a.backend(54, 5353),
        ),
        entry(slot::DNS_RATE, port::DNS_RATE, a.backend(55, 5353)),
        entry(slot::DNS_TWO_A, port::DNS_TWO, a.backend(19, 5353)),
        entry(slot::DNS_TWO_B, port::DNS_TWO, a.backend(20, 5353)),
        direct(slot::DNS_L2, port::DNS_L2, 21),
        tunnel(direct(slot::DNS_TUNNEL, port::DNS_TUNNEL, 22)),
        entry(slot::NARROW, port::NARROW, a.narrow(8080)),
        snat(entry(slot::NARROW_SNAT, port::NARROW_SNAT, a.narrow(8081))),
        direct(slot::L2, port::L2, 24),
        entry(slot::L2_ROUTED, port::L2_ROUTED, a.routed(port::L2_ROUTED)),
        entry(slot::L2_LOCAL, port::L2_LOCAL, a.node(port::L2_LOCAL)),
        direct(slot::L2_UNRESOLVED, port::L2_UNRESOLVED, 99),
        direct(slot::L2_RATE, port::L2_RATE, 60),
        direct(slot::L2_LIMIT, port::L2_LIMIT, 61),
        direct(slot::L2_TWO_A, port::L2_TWO, 30),
        direct(slot::L2_TWO_B, port::L2_TWO, 31),
        tunnel(entry(slot::TUNNEL, port::TUNNEL, a.routed(port::TUNNEL))),
        tunnel(direct(slot::CROSSED, port::CROSSED, 26)),
        spread(direct(slot::SPREAD, port::SPREAD, 27)),
        tunnel(direct(slot::TUNNEL_UNRESOLVED, port::TUNNEL_UNRESOLVED, 99)),
        tunnel(entry(
            slot::TUNNEL_NARROW,
            port::TUNNEL_NARROW,
            a.narrow(port::TUNNEL_NARROW),
        )),
        tunnel(entry(
            slot::TUNNEL_BLACK_HOLE,
            port::TUNNEL_BLACK_HOLE,
            a.black_hole(port::TUNNEL_BLACK_HOLE),
        )),
        tunnel(entry(
            slot::TUNNEL_LOCAL,
            port::TUNNEL_LOCAL,
            a.second_node(port::TUNNEL_LOCAL),
        )),
    ]
}

/// Most services there may be, for the benchmark as well.
pub const SERVICES: u32 = 1024;

/// Whom the services let in, by number.
pub fn admissions() -> Vec<(u32, Admission)> {
    let one = Rate {
        per_second: 1,
        burst: 1,
    };
    let three = Rate { burst: 3, ..one };
    let of = |port: u16, admission: Admission| {
        let id = u32::from(port);
        let counter = slot::COUNT + id;
        (
            id,
            Admission {
                counter,
                ..admission
            },
        )
    };
    let none = Admission::default();
    let flags = admission_flag::SOURCES;
    let all = [
        (
            port::ALLOWED,
            Admission {
                flags: flags | admission_flag::LISTED_ONLY,
                ..none
            },
        ),
        (port::DENIED, Admission { flags, ..none }),
        (port::RATE, Admission { rate: one, ..none }),
        (port::L2_RATE, Admission { rate: one, ..none }),
        (port::DNS_RATE, Admission { rate: one, ..none }),
        (
            port::BURST,
            Admission {
                rate: three,
                ..none
            },
        ),
        (
            port::SOURCE_RATE,
            Admission {
                source_rate: one,
                ..none
            },
        ),
        (
            port::AFFINITY,
            Admission {
                affinity: AFFINITY_SECONDS,
                ..none
            },
        ),
        (
            port::AFFINITY_MAGLEV,
            Admission {
                affinity: AFFINITY_SECONDS,
                ..none
            },
        ),
        (
            port::DNS_AFFINITY,
            Admission {
                affinity: AFFINITY_SECONDS,
                ..none
            },
        ),
    ];
    let limit = Admission {
        max_connections: 1,
        ..none
    };
    let limited = [port::LIMIT, port::LIMIT_DROP, port::L2_LIMIT].map(|port| (port, limit));
    let each = all.into_iter().chain(limited);
    each.map(|(port, admission)| of(port, admission)).collect()
}

/// The source lists: service, address, prefix length, value of the trie.
pub fn sources(a: Addresses) -> Vec<(u32, IpAddr, u32, u32)> {
    let length = |v4, v6| if a.v6 { v6 } else { v4 };
    let list = [
        (a.client_number(0, 0), length(24, 64), source::ALLOWED),
        (a.client_number(64, 0), length(28, 124), source::DENIED),
        (a.client_number(65, 0), length(32, 128), source::ALLOWED),
    ];
    [port::ALLOWED, port::DENIED]
        .into_iter()
        .flat_map(|port| {
            list.map(|(address, length, value)| (u32::from(port), address.ip(), length, value))
        })
        .collect()
}

/// The port bitmaps' words, by index.
pub fn port_words() -> Vec<(u32, u64)> {
    let mut words = std::collections::BTreeMap::new();
    let mut set = |kind, port| {
        let (index, bit) = port_bit(kind, port);
        *words.entry(index).or_insert(0) |= bit;
    };
    for listen in listens() {
        set(
            if listen.udp {
                PortKind::ServiceUdp
            } else {
                PortKind::ServiceTcp
            },
            listen.port,
        );
    }
    for (_, backend) in backends(Addresses { v6: false }) {
        let udp = backend.protocol == protocol::UDP;
        let kind = if udp {
            PortKind::BackendUdp
        } else {
            PortKind::BackendTcp
        };
        set(kind, Be16(backend.port).get());
    }
    words.into_iter().collect()
}

/// How many of SNAT's addresses are of each family.
pub fn source_counts(sources: &[IpAddr]) -> [u32; 2] {
    let v6 = sources.iter().filter(|ip| ip.is_ipv6()).count() as u32;
    [sources.len() as u32 - v6, v6]
}
