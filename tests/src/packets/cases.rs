//! The table. Every case exists for IPv4 and IPv6.

mod admission;
mod direct;
pub mod echo;
mod extensions;
mod foreign;
mod forged;
mod fragments;
mod halves;
mod icmp;
mod liveness;
mod narrow;
mod refuse;
mod sources;
mod tcp;
mod udp;

use std::net::SocketAddr;

use super::build::{Packet, Transport};
use super::world::{self, Addresses};
use super::{Case, Expect, Step};

/// Every case of the table.
pub fn all() -> Vec<Case> {
    let mut table = Table::default();
    for v6 in [false, true] {
        table.addresses = Addresses { v6 };
        tcp::cases(&mut table);
        sources::cases(&mut table);
        liveness::cases(&mut table);
        forged::cases(&mut table);
        halves::cases(&mut table);
        udp::cases(&mut table);
        refuse::cases(&mut table);
        foreign::cases(&mut table);
        icmp::cases(&mut table);
        echo::cases(&mut table);
        extensions::cases(&mut table);
        fragments::cases(&mut table);
        direct::cases(&mut table);
        narrow::cases(&mut table);
        admission::cases(&mut table);
    }
    table.cases
}

/// Collects cases of one family after the other.
struct Table {
    cases: Vec<Case>,
    addresses: Addresses,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            cases: Vec::new(),
            addresses: Addresses { v6: false },
        }
    }
}

impl Table {
    fn add(&mut self, name: &str, steps: Vec<Step>) {
        let family = if self.addresses.v6 { "v6" } else { "v4" };
        self.cases.push(Case {
            name: format!("{family}_{name}"),
            steps,
            asks_route_mtu: false,
        });
    }

    /// [`Self::add`], for a case with a route that is narrower than its device.
    fn add_narrow(&mut self, name: &str, steps: Vec<Step>) {
        self.add(name, steps);
        if let Some(case) = self.cases.last_mut() {
            case.asks_route_mtu = true;
        }
    }

    /// Slots of the current family.
    fn slot(&self, slot: u32) -> u32 {
        slot + if self.addresses.v6 {
            world::V6_SLOTS
        } else {
            0
        }
    }
}

/// One connection through the node: what each side sends, before and after translation.
#[derive(Clone)]
struct Connection {
    client: SocketAddr,
    vip: SocketAddr,
    /// Source that the backend sees.
    source: SocketAddr,
    backend: SocketAddr,
    udp: bool,
}

impl Connection {
    fn new(client: SocketAddr, vip: SocketAddr, backend: SocketAddr) -> Self {
        Self {
            client,
            vip,
            source: client,
            backend,
            udp: false,
        }
    }

    fn udp(self) -> Self {
        Self { udp: true, ..self }
    }

    fn seen_as(self, source: SocketAddr) -> Self {
        Self { source, ..self }
    }

    /// The client's packet as it arrives.
    fn request(&self, flags: u8) -> Packet {
        if self.udp {
            Packet::udp(world::FROM_CLIENT, self.client, self.vip)
        } else {
            Packet::tcp(world::FROM_CLIENT, self.client, self.vip, flags)
        }
    }

    /// The backend's packet as it arrives.
    fn reply(&self, flags: u8) -> Packet {
        if self.udp {
            Packet::udp(world::FROM_BACKEND, self.backend, self.source)
        } else {
            Packet::tcp(world::FROM_BACKEND, self.backend, self.source, flags)
        }
    }

    fn translated_request(&self, packet: &Packet) -> Vec<u8> {
        packet
            .moved(world::TO_BACKEND, self.source, self.backend)
            .bytes()
    }

    fn translated_reply(&self, packet: &Packet) -> Vec<u8> {
        packet
            .moved(world::TO_CLIENT, self.vip, self.client)
            .bytes()
    }

    /// The client sends `packet`, which reaches the backend.
    fn forwards(&self, packet: Packet) -> Step {
        let out = self.translated_request(&packet);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    }

    /// The backend sends `packet`, which reaches the client.
    fn returns(&self, packet: Packet) -> Step {
        let out = self.translated_reply(&packet);
        Step::FromBackend(packet.bytes(), Expect::Redirect(out))
    }

    /// First packet, answer, and the packet by which the client shows that it got the answer.
    fn opened(&self) -> Vec<Step> {
        use super::build::{ACK, SYN};
        vec![
            self.forwards(self.request(SYN)),
            self.returns(self.reply(SYN | ACK)),
            self.forwards(self.request(ACK)),
        ]
    }
}

/// A packet from a client that stays as it is.
fn passes(packet: Packet) -> Step {
    Step::FromClient(packet.bytes(), Expect::Pass)
}

/// The reset that answers `packet`.
pub(super) fn reset_of(packet: &Packet) -> Vec<u8> {
    use super::build::{ACK, FIN, RST, SYN};
    let Transport::Tcp {
        flags,
        sequence,
        acknowledgement,
        ..
    } = packet.transport
    else {
        panic!("only TCP is reset");
    };
    let data =
        packet.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (flags, next, acknowledged) = if flags & ACK != 0 {
        (RST, acknowledgement, 0)
    } else {
        (RST | ACK, 0, sequence.wrapping_add(data))
    };
    let mut answer = Packet::tcp(
        (packet.macs.1, packet.macs.0),
        packet.dst,
        packet.src,
        flags,
    );
    answer.transport = Transport::Tcp {
        flags,
        sequence: next,
        acknowledgement: acknowledged,
        options: Vec::new(),
    };
    answer.id = 0;
    answer.bytes()
}

/// The "port unreachable" that answers `packet`.
pub(super) fn unreachable_of(packet: &Packet) -> Vec<u8> {
    let (kind, code) = if packet.src.is_ipv6() { (1, 4) } else { (3, 3) };
    unreachable_with(packet, kind, code, 0)
}

/// The ICMP error that answers `packet`.
fn unreachable_with(packet: &Packet, kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let header = packet.header_length();
    let transport = match packet.transport {
        Transport::Tcp { .. } => 20,
        _ => 8,
    };
    let quoted = packet.bytes()[14..14 + header + transport].to_vec();
    let macs = (packet.macs.1, packet.macs.0);
    Packet::tcp(macs, packet.dst, packet.src, 0)
        .with(|answer| {
            answer.transport = Transport::Icmp(kind, code, rest);
            answer.id = 0;
            answer.payload = quoted;
        })
        .bytes()
}
