//! ICMP errors as they arrive and as they leave.

use std::net::SocketAddr;

use super::super::{Connection, Table};
use crate::packets::build::{ACK, Packet, SYN, Transport};
use crate::packets::world::{self, Mac, port};
use crate::packets::{Expect, Step};

/// An error to be: type, code, and what stands behind the checksum.
pub(super) type Kind = (u8, u8, u32);

/// The errors that are passed on, with all their codes.
pub(super) fn kinds(v6: bool) -> Vec<(&'static str, Vec<Kind>)> {
    let codes = |kind: u8, codes: std::ops::RangeInclusive<u8>, rest: u32| {
        codes.map(|code| (kind, code, rest)).collect::<Vec<_>>()
    };
    if v6 {
        vec![
            ("unreachable", codes(1, 0..=8, 0)),
            ("packet_too_big", codes(2, 0..=0, 1280)),
            ("time_exceeded", codes(3, 0..=1, 0)),
            ("parameter_problem", codes(4, 0..=3, 40)),
        ]
    } else {
        let mut unreachable = codes(3, 0..=3, 0);
        unreachable.extend(codes(3, 5..=15, 0));
        vec![
            ("unreachable", unreachable),
            ("fragmentation_needed", codes(3, 4..=4, 1300)),
            ("time_exceeded", codes(11, 0..=1, 0)),
            ("parameter_problem", codes(12, 0..=2, 0x0800_0000)),
        ]
    }
}

pub(super) const TO_BIG_V4: Kind = (3, 4, 1300);
pub(super) const TO_BIG_V6: Kind = (2, 0, 1280);

/// The packet that is complained about, as the complainer saw it and as who sent it knows it.
#[derive(Clone)]
pub(super) struct Quoted {
    pub(super) seen: Packet,
    pub(super) known: Packet,
}

impl Quoted {
    /// The first bytes of both: `l4` behind the IP header, which has `header` bytes.
    pub(super) fn cut(&self, header: usize, l4: usize) -> (Vec<u8>, Vec<u8>) {
        let cut = |packet: &Packet| {
            let bytes = packet.bytes();
            bytes[14..bytes.len().min(14 + header + l4)].to_vec()
        };
        (cut(&self.seen), cut(&self.known))
    }

    pub(super) fn with(self, change: impl Fn(&mut Packet)) -> Self {
        Self {
            seen: self.seen.with(&change),
            known: self.known.with(&change),
        }
    }
}

/// Which way an error goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    ToClient,
    ToBackend,
}

/// One connection and the errors about it.
#[derive(Clone)]
pub(super) struct Trouble {
    pub(super) connection: Connection,
    /// Who complains.
    pub(super) router: SocketAddr,
    pub(super) way: Way,
}

impl Trouble {
    pub(super) fn packet(&self, macs: (Mac, Mac), src: SocketAddr, dst: SocketAddr) -> Packet {
        let packet = match self.connection.udp {
            true => Packet::udp(macs, src, dst),
            false => Packet::tcp(macs, src, dst, ACK),
        };
        packet.with(|packet| {
            packet.ttl = 3;
            packet.payload = b"what was sent, and was too much".to_vec();
        })
    }

    /// A packet of the connection, away from who is to hear of it.
    pub(super) fn quoted(&self) -> Quoted {
        let c = &self.connection;
        let (seen, known) = match self.way {
            Way::ToClient => ((c.source, c.backend), (c.client, c.vip)),
            Way::ToBackend => ((c.vip, c.client), (c.backend, c.source)),
        };
        Quoted {
            seen: self.packet(world::FROM_CLIENT, seen.0, seen.1),
            known: self.packet(world::FROM_CLIENT, known.0, known.1),
        }
    }

    /// The error as it arrives.
    pub(super) fn arrives(&self, (kind, code, rest): Kind, quoted: Vec<u8>) -> Packet {
        let (macs, dst) = match self.way {
            Way::ToClient => (world::FROM_BACKEND, self.connection.source),
            Way::ToBackend => (world::FROM_CLIENT, self.connection.vip),
        };
        Packet::tcp(macs, self.router, dst, 0).with(|packet| {
            packet.transport = Transport::Icmp(kind, code, rest);
            packet.payload = quoted;
        })
    }

    /// The same as it leaves.
    pub(super) fn leaves(&self, arrived: &Packet, quoted: Vec<u8>) -> Packet {
        let c = &self.connection;
        let (macs, src, dst) = match self.way {
            Way::ToClient => (world::TO_CLIENT, c.vip, c.client),
            // A backend that knows the client's address hears from the real router.
            Way::ToBackend if c.source.ip() == c.client.ip() => {
                (world::TO_BACKEND, self.router, c.backend)
            }
            Way::ToBackend => (world::TO_BACKEND, c.source, c.backend),
        };
        arrived
            .moved(macs, src, dst)
            .with(|packet| packet.payload = quoted)
    }

    pub(super) fn step(&self, packet: &Packet, expect: Expect) -> Step {
        match self.way {
            Way::ToClient => Step::FromBackend(packet.bytes(), expect),
            Way::ToBackend => Step::FromClient(packet.bytes(), expect),
        }
    }

    /// The error is passed on.
    pub(super) fn reaches(&self, kind: Kind, (seen, known): (Vec<u8>, Vec<u8>)) -> Step {
        self.reaches_as(self.arrives(kind, seen), known)
    }

    pub(super) fn reaches_as(&self, arrived: Packet, known: Vec<u8>) -> Step {
        let left = self.leaves(&arrived, known);
        self.step(&arrived, Expect::Redirect(left.bytes()))
    }

    /// The error is left alone.
    pub(super) fn stays(&self, arrived: &Packet) -> Step {
        self.step(arrived, Expect::Pass)
    }

    /// First packet, and the answer.
    pub(super) fn opened(&self) -> Vec<Step> {
        let c = &self.connection;
        vec![c.forwards(c.request(SYN)), c.returns(c.reply(SYN | ACK))]
    }
}

pub(super) fn troubles(table: &Table) -> Vec<(String, Trouble)> {
    let a = table.addresses;
    let client = a.client(40_070);
    let node = a.node(world::SNAT_PORT);
    let connections = [
        (
            "tcp",
            Connection::new(client, a.vip(port::WEB), a.backend(1, 8080)),
        ),
        (
            "tcp_snat",
            Connection::new(client, a.vip(port::SNAT), a.backend(2, 8443)).seen_as(node),
        ),
        (
            "udp",
            Connection::new(client, a.vip(port::DNS), a.backend(13, 5353)).udp(),
        ),
        (
            "udp_snat",
            Connection::new(client, a.vip(port::DNS_SNAT), a.backend(14, 5353))
                .udp()
                .seen_as(node),
        ),
    ];
    let mut troubles = Vec::new();
    for (name, connection) in connections {
        for (way, to, router) in [
            (Way::ToClient, "client", a.backend(30, 0)),
            (Way::ToBackend, "backend", a.neighbour_of_clients(0)),
        ] {
            let trouble = Trouble {
                connection: connection.clone(),
                router,
                way,
            };
            troubles.push((format!("{name}_to_{to}"), trouble));
        }
    }
    troubles
}
