//! What happens in a history, and the few parties it happens to.

use std::net::SocketAddr;

use super::super::{
    build::{ACK, FIN, Packet, RST, SYN, Transport},
    world::{self, Addresses, port, slot},
};

/// Clients, services, slots and hosts are numbered from 0; few, so that their connections meet.
#[derive(Clone, Debug)]
pub struct History {
    pub v6: bool,
    /// Room for three connections.
    pub is_tight: bool,
    /// Before each packet the flow tables are replaced by empty ones, and the former looked into.
    pub replaces_flows: bool,
    /// Backends see the node's address to begin with.
    pub snat: bool,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// A client sends something to a service.
    Client {
        client: usize,
        service: usize,
        sent: Sent,
    },
    /// The backend of that connection sends something to whom it takes for the client.
    Backend {
        client: usize,
        service: usize,
        answer: Answer,
    },
    /// First packet, answer, and the client's next.
    Open { client: usize, service: usize },
    /// Jiffies; a second has 250.
    Wait(u32),
    /// Routes changed.
    Epoch,
    /// A backend drains, fails, … `backend_state` in `lb_common::abi`.
    State { slot: usize, state: u32 },
    /// The slot gets another owner, which is active.
    Give {
        slot: usize,
        service: usize,
        host: usize,
        snat: bool,
        resets: bool,
    },
    /// A service's table gets these slots.
    Table { service: usize, slots: Vec<usize> },
    /// The daemon removes the connection, as if it was idle for too long.
    Age { client: usize, service: usize },
}

/// What a client sends. To a service of UDP, a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Syn,
    Ack(Ack),
    Fin(Ack),
    Rst,
}

/// What is acknowledged, as seen from the number that the backend's answer wants to have acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    Right,
    /// Data that followed the answer at once.
    Ahead,
    /// Guesses.
    Behind,
    Beyond,
}

/// What a backend sends, and with which of some sequence numbers. A datagram by UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    SynAck(usize),
    Ack(usize),
    Fin(usize),
    Rst,
}

/// Who there is, in one address family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) v6: bool,
}

impl Scene {
    pub(super) const SERVICES: usize = 3;
    pub(super) const SLOTS: usize = 6;

    /// Of the standard world, one of each kind.
    pub(super) const PORTS: [u16; Self::SERVICES] =
        [port::MAGLEV, port::ROUND_ROBIN, port::DNS_TWO];

    const NUMBERS: [u32; Self::SLOTS] = [
        slot::MAGLEV_A,
        slot::MAGLEV_B,
        slot::ROUND_A,
        slot::ROUND_B,
        slot::DNS_TWO_A,
        slot::DNS_TWO_B,
    ];

    pub(super) fn is_udp(service: usize) -> bool {
        Self::PORTS[service] == port::DNS_TWO
    }

    fn addresses(self) -> Addresses {
        Addresses { v6: self.v6 }
    }

    /// Two of one host, and one of another.
    pub(super) fn client(self, client: usize) -> SocketAddr {
        match client {
            0 => self.addresses().client(1000),
            1 => self.addresses().client(1001),
            _ => self.addresses().neighbour_of_clients(1000),
        }
    }

    pub(super) fn vip(self, service: usize) -> SocketAddr {
        self.addresses().vip(Self::PORTS[service])
    }

    /// The same hosts for all services.
    pub(super) fn backend(self, service: usize, host: usize) -> SocketAddr {
        let port = if Self::is_udp(service) { 5353 } else { 8080 };
        self.addresses().backend(1 + host as u8, port)
    }

    pub(super) fn node(self) -> SocketAddr {
        self.addresses().node(0)
    }

    /// Number of a slot.
    pub(super) fn slot(self, slot: usize) -> u32 {
        Self::NUMBERS[slot] + if self.v6 { world::V6_SLOTS } else { 0 }
    }

    /// The ports that SNAT may take.
    pub(super) fn pool(self) -> [u16; 2] {
        [world::SNAT_PORT, world::SNAT_PORT + 1]
    }
}

/// What a client sends, who may have to acknowledge `expected`.
pub(super) fn packet_of_client(
    scene: Scene,
    (client, service): (usize, usize),
    sent: Sent,
    expected: Option<u32>,
) -> Packet {
    let ends = (scene.client(client), scene.vip(service));
    if Scene::is_udp(service) {
        return Packet::udp(world::FROM_CLIENT, ends.0, ends.1);
    }
    let number = |ack| {
        let expected = expected.unwrap_or(7);
        expected.wrapping_add(match ack {
            Ack::Right => 0,
            Ack::Ahead => 1000,
            Ack::Behind => u32::MAX,
            Ack::Beyond => 1 << 16,
        })
    };
    let (flags, acknowledgement) = match sent {
        Sent::Syn => (SYN, 0),
        Sent::Ack(ack) => (ACK, number(ack)),
        Sent::Fin(ack) => (FIN | ACK, number(ack)),
        Sent::Rst => (RST, 0),
    };
    segment(world::FROM_CLIENT, ends, flags, 1, acknowledgement)
}

/// What a backend sends from the first of two ends to the second.
pub(super) fn packet_of_backend(
    service: usize,
    ends: (SocketAddr, SocketAddr),
    answer: Answer,
) -> Packet {
    /// The last is followed by 0.
    const SEQUENCES: [u32; 3] = [0x0102_0304, 0x8000_0000, u32::MAX];
    if Scene::is_udp(service) {
        return Packet::udp(world::FROM_BACKEND, ends.0, ends.1);
    }
    let number = |which: usize| SEQUENCES[which % SEQUENCES.len()];
    let (flags, sequence) = match answer {
        Answer::SynAck(which) => (SYN | ACK, number(which)),
        Answer::Ack(which) => (ACK, number(which)),
        Answer::Fin(which) => (FIN | ACK, number(which)),
        Answer::Rst => (RST | ACK, 0),
    };
    segment(world::FROM_BACKEND, ends, flags, sequence, 2)
}

fn segment(
    macs: (world::Mac, world::Mac),
    ends: (SocketAddr, SocketAddr),
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
) -> Packet {
    Packet::tcp(macs, ends.0, ends.1, flags).with(|packet| {
        packet.transport = Transport::Tcp {
            flags,
            sequence,
            acknowledgement,
            options: Vec::new(),
        };
    })
}
