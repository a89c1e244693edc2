//! Runs cases on a byte slice, with tables in memory: no kernel involved.

mod frame;
mod hold;
mod kept;
mod memory;
mod route;
mod seen;
mod state;

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::Backend,
    path::{self, Budget, Handover, Network, Step, Tables as _, Verdict},
};

use super::world;
use super::{Action, Outcome, Runner, Side, tuple};
use frame::SliceFrame;
use memory::Memory;
pub use route::Devices;
pub use seen::SeenFlow;

/// The byte slice as a place for cases.
pub struct Slice {
    memory: Memory,
    /// Fragments that come before their datagram's first are put aside, as TC does.
    holds: bool,
    is_rigid: bool,
}

impl Default for Slice {
    fn default() -> Self {
        Self {
            memory: Memory::standard(),
            holds: false,
            is_rigid: false,
        }
    }
}

impl Slice {
    /// One whose flow tables are replaced before every packet, which no connection may notice.
    pub fn replacing_flows() -> Self {
        let mut slice = Self::default();
        slice.memory.replaces_flows = true;
        slice
    }

    /// One that is to do as the programs do on `devices`, with so much room for established flows;
    /// those at TC hold fragments.
    pub fn twin(devices: Devices, room: usize, holds: bool) -> Self {
        let mut slice = Self {
            holds,
            ..Self::default()
        };
        slice.memory.devices = devices;
        slice.memory.room = room;
        slice
    }

    /// What becomes of a packet that comes from `side`; everything that was counted is in the
    /// outcome.
    pub fn take(&mut self, side: Side, packet: &[u8]) -> Outcome {
        let devices = self.memory.devices;
        let mut frame = SliceFrame {
            bytes: packet.to_vec(),
            ingress: match side {
                Side::Client | Side::Node => devices.client_side,
                Side::Backend => devices.backend_side,
            },
            is_rigid: self.is_rigid,
        };
        self.memory.drops.borrow_mut().clear();
        if self.memory.replaces_flows {
            self.memory.v4.replace_flows();
            self.memory.v6.replace_flows();
        }
        let result = match side {
            Side::Node => path::process_departing(&mut frame, &self.memory).map(Step::Done),
            Side::Client | Side::Backend => path::walk(&mut frame, &self.memory),
        };
        let action = match result {
            Ok(step) => self.action(step, &frame),
            Err(reason) => {
                self.memory.count_drop(reason);
                Action::Drop
            }
        };
        let counted = self.memory.drops.borrow().clone();
        Outcome {
            action,
            packet: frame.bytes,
            counted,
        }
    }

    fn action(&self, step: Step, frame: &SliceFrame) -> Action {
        let memory = &self.memory;
        match step {
            Step::Done(Verdict::Transmit) => Action::Transmit,
            Step::Done(Verdict::Redirect { .. }) => Action::Redirect,
            Step::Done(Verdict::Kernel { how, .. }) => match how {
                Handover::Stack => Action::Pass,
                Handover::Output => Action::Redirect,
                Handover::Resolve => Action::Resolve,
            },
            Step::Hold if self.holds => {
                match path::network(frame) {
                    Network::Ipv4(_) => hold::hold(memory, &memory.v4.held, &frame.bytes),
                    _ => hold::hold(memory, &memory.v6.held, &frame.bytes),
                }
                Action::Drop
            }
            Step::Release if self.holds => {
                match path::network(frame) {
                    Network::Ipv4(_) => hold::release(memory, &memory.v4.held),
                    _ => hold::release(memory, &memory.v6.held),
                }
                Action::Drop
            }
            _ => Action::Pass,
        }
    }

    /// From now on no handshake can be entered, as if the kernel had no memory.
    pub fn refuse_handshakes(&mut self) {
        self.memory.refuses_handshakes = true;
    }

    /// From now on packets can neither be made longer nor shorter, as where a driver has no room.
    pub fn refuse_growth(&mut self) {
        self.is_rigid = true;
    }

    /// Entries in all tables of connections.
    pub fn entries_of_flows(&self) -> usize {
        let (v4, v6) = (&self.memory.v4, &self.memory.v6);
        v4.flows.len() + v4.handshakes.len() + v6.flows.len() + v6.handshakes.len()
    }

    /// So many jiffies pass.
    pub fn wait(&mut self, jiffies: u32) {
        self.memory.now = self.memory.now.wrapping_add(jiffies);
    }

    /// A slot gets this owner.
    pub fn give(&mut self, slot: u32, backend: Backend) {
        self.memory.backends.insert(slot, backend);
    }

    /// The service on `port`, for clients of a family, draws from these slots.
    pub fn set_table(&mut self, port: u16, v6: bool, slots: &[u32]) {
        self.memory.set_table(port, v6, slots);
    }

    /// The daemon removes an entry, wherever it stands.
    pub fn forget(&mut self, src: SocketAddr, dst: SocketAddr, udp: bool) {
        match src.is_ipv6() {
            true => self.memory.v6.remove(&tuple(src, dst, udp)),
            false => self.memory.v4.remove(&tuple(src, dst, udp)),
        }
    }

    /// How many jiffies a second has.
    pub fn set_hz(&mut self, hz: u32) {
        self.memory.config.hz = hz;
    }
}

impl Runner for Slice {
    fn reset(&mut self) {
        self.memory.reset();
    }

    fn run(&mut self, from_client: bool, packet: &[u8]) -> Outcome {
        let side = if from_client {
            Side::Client
        } else {
            Side::Backend
        };
        self.take(side, packet)
    }

    fn set_backend(&mut self, slot: u32, state: u32, generation: u32) {
        if let Some(backend) = self.memory.backends.get_mut(&slot) {
            *backend = Backend {
                state,
                generation,
                ..*backend
            };
        }
    }

    fn next_epoch(&mut self) {
        self.memory.config.epoch += 1;
    }

    fn evict(&mut self, src: SocketAddr, dst: SocketAddr, udp: bool) -> bool {
        match src.is_ipv6() {
            true => self.memory.v6.evict(&tuple(src, dst, udp)),
            false => self.memory.v4.evict(&tuple(src, dst, udp)),
        }
    }

    fn listen(&mut self, local: SocketAddr, udp: bool) {
        self.memory.sockets.push((local, udp));
    }

    fn close_sockets(&mut self) {
        self.memory.sockets.clear();
    }

    fn set_sources(&mut self, sources: &[IpAddr]) {
        self.memory.sources = sources.to_vec();
        self.memory.config.sources = world::source_counts(sources);
    }

    fn set_pool(&mut self, first: u16, count: u16) {
        self.memory.config.snat_first = first;
        self.memory.config.snat_count = count;
    }

    fn wait_second(&mut self) {
        self.wait(self.memory.config.hz + 1);
    }

    fn make_stale(&mut self) {
        self.memory.config.hz = 0;
    }

    fn set_budget(&mut self, budget: Budget, limit: u32) {
        let config = &mut self.memory.config;
        match budget {
            Budget::Answers => config.rejects_per_second = limit,
            Budget::Entries => config.entries_per_second = limit,
            Budget::UdpPlaces => config.give_udp_places(limit),
        }
    }
}
