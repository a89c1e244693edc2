//! One connection as the model knows it, the entries that it has, and what its packets say.

use std::net::SocketAddr;

use lb_common::abi::flow_state as bit;

use super::super::build::{FIN, Packet, RST, SYN, Transport};

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) slot: usize,
    pub(super) generation: u32,
    pub(super) backend: SocketAddr,
    /// Whom the backend takes for the client.
    pub(super) source: SocketAddr,
    /// It has a place that nobody else can take.
    pub(super) is_established: bool,
    pub(super) is_answered: bool,
    /// What the client has to acknowledge, if it was answered.
    pub(super) expected: u32,
    pub(super) is_picked_up: bool,
    pub(super) client_fin: bool,
    pub(super) backend_fin: bool,
    pub(super) reset: bool,
    /// By the backend.
    pub(super) backend_reset: bool,
    pub(super) begun: u32,
    /// When either side last sent, and when either last sent a FIN or RST.
    pub(super) seen: u32,
    pub(super) ended: u32,
    /// When the client last sent, or was answered for the first time, or anew, or the end went on.
    pub(super) heard: u32,
    /// When the backend last sent, or the end went on.
    pub(super) spoke: u32,
}

impl Connection {
    pub(super) fn is_closing(&self) -> bool {
        self.client_fin || self.backend_fin || self.reset
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client_fin && self.backend_fin || self.reset
    }

    /// A SYN of the client's begins another connection: the backend has, or may have, ended this one.
    /// What is established ends by no word of the client's, which anybody may have sent. What was picked up
    /// in the middle and is not established did not begin by a SYN.
    pub(super) fn is_over(&self) -> bool {
        match self.is_established {
            true => self.backend_fin || self.backend_reset,
            false => self.is_closing() || self.is_picked_up,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_established && !self.is_closed()
    }

    /// Notes what every packet of it brings.
    pub(super) fn sees(&mut self, now: u32, flags: u8, is_client: bool) {
        self.seen = now;
        let is_answer = !self.is_answered || flags & SYN != 0;
        if is_client || is_answer || flags & (RST | FIN) != 0 || self.is_closing() {
            self.heard = now;
        }
        if !is_client || flags & (RST | FIN) != 0 || self.is_closing() {
            self.spoke = now;
        }
        // Forged, or too late, if more follows.
        self.reset = flags & RST != 0;
        self.backend_reset = self.reset && !is_client;
        // The backend begins another connection on the tuple.
        if self.is_established && !is_client && flags & SYN != 0 {
            (self.client_fin, self.backend_fin) = (false, false);
        }
        if flags & (RST | FIN) != 0 {
            self.ended = now;
        }
        self.client_fin |= is_client && flags & FIN != 0;
        self.backend_fin |= !is_client && flags & FIN != 0;
    }

    pub(super) fn bits(&self) -> u32 {
        let set = |is_set, bit| if is_set { bit } else { 0 };
        set(self.is_established, bit::ESTABLISHED)
            | set(self.is_answered, bit::ANSWERED)
            | set(self.is_picked_up, bit::MIDDLE)
            | set(self.client_fin, bit::CLIENT_FIN)
            | set(self.backend_fin, bit::BACKEND_FIN)
            | set(self.reset, bit::RESET)
            | set(self.backend_reset, bit::BACKEND_RESET)
    }
}

/// An entry's key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Tuple {
    pub(super) udp: bool,
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
}

/// An entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// Source and destination of a packet when it leaves.
    pub(super) new: (SocketAddr, SocketAddr),
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) bits: u32,
    pub(super) is_established: bool,
    /// Of a handshake that was answered.
    pub(super) expected: Option<u32>,
}

impl State {
    pub(super) fn is_answered(&self) -> bool {
        self.bits & bit::ANSWERED != 0
    }
}

/// 0 by UDP.
pub(super) fn flags(packet: &Packet) -> u8 {
    match packet.transport {
        Transport::Tcp { flags, .. } => flags,
        _ => 0,
    }
}

pub(super) fn sequence(packet: &Packet) -> Option<u32> {
    match packet.transport {
        Transport::Tcp { sequence, .. } => Some(sequence),
        _ => None,
    }
}

pub(super) fn acknowledgement(packet: &Packet) -> Option<u32> {
    match packet.transport {
        Transport::Tcp {
            acknowledgement, ..
        } => Some(acknowledgement),
        _ => None,
    }
}
