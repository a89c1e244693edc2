//! What ARCHITECTURE.md says of a flow's life, over again and without any of the path's code.
//!
//! Where the path may choose (a backend out of a table, a port out of the pool) there are several
//! futures of one packet.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::abi::{Drop, backend_state, flow_state as bit};

use super::super::{
    Expect, build,
    build::{ACK, FIN, Packet, RST, SYN, Transport},
    cases::{reset_of, unreachable_of},
    world,
};
use super::connection::{Connection, State, Tuple, acknowledgement, flags, sequence};
use super::event::Scene;

/// Jiffies.
const SECOND: u32 = world::CONFIG.hz;

/// Client and service.
pub(super) type Name = (usize, usize);

/// What may become of a packet.
pub(super) struct Future {
    pub(super) name: &'static str,
    pub(super) expect: Expect,
    pub(super) counted: Vec<Drop>,
    pub(super) model: Model,
}

#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) state: u32,
    pub(super) generation: u32,
    pub(super) service: usize,
    pub(super) address: SocketAddr,
    pub(super) snat: bool,
    pub(super) resets: bool,
}

/// Whether a source is free for another connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freedom {
    Free,
    /// Of one that closed and rested for a second.
    Rested(Name),
    /// Of one that closed a second ago, and has sent since.
    Perhaps(Name),
    /// Of one that nobody proved for a second, or by UDP, whose backend was quiet for one: only where
    /// nothing else is left.
    Unproven(Name),
    Taken,
}

#[derive(Clone)]
pub(super) struct Model {
    scene: Scene,
    pub(super) now: u32,
    /// Entries of established flows that there may be.
    room: usize,
    /// When there last was no room.
    full: Option<u32>,
    pub(super) backends: Vec<Owner>,
    pub(super) tables: Vec<Vec<usize>>,
    connections: BTreeMap<Name, Connection>,
    /// Connections begun, answered, refused.
    pub(super) milestones: [[u64; 3]; Scene::SLOTS],
    /// What the path counts as open beside what is: of former owners, and removed by the daemon.
    drift: [u32; Scene::SLOTS],
}

impl Model {
    pub(super) fn new(scene: Scene, room: usize) -> Self {
        let nobody = Owner {
            state: backend_state::FREE,
            generation: 0,
            service: 0,
            address: scene.node(),
            snat: false,
            resets: false,
        };
        Self {
            scene,
            now: 0,
            room,
            full: None,
            backends: vec![nobody; Scene::SLOTS],
            tables: vec![Vec::new(); Scene::SERVICES],
            connections: BTreeMap::new(),
            milestones: Default::default(),
            drift: Default::default(),
        }
    }

    pub(super) fn connection(&self, name: Name) -> Option<&Connection> {
        self.connections.get(&name)
    }

    pub(super) fn give(
        &mut self,
        slot: usize,
        service: usize,
        address: SocketAddr,
        snat: bool,
        resets: bool,
    ) {
        // What is open is the former owner's, and never counted as closed.
        self.drift[slot] = self.open()[slot];
        let generation = self.backends[slot].generation + 1;
        self.backends[slot] = Owner {
            state: backend_state::ACTIVE,
            generation,
            service,
            address,
            snat,
            resets,
        };
    }

    /// The daemon removes both entries. It makes up for what the path counts; not here.
    pub(super) fn age(&mut self, name: Name) -> Option<Connection> {
        let gone = self.connections.remove(&name)?;
        if gone.is_open() && !self.is_gone(&gone) {
            self.drift[gone.slot] += 1;
        }
        Some(gone)
    }

    /// No connection is left with the slot's owner.
    pub(super) fn is_unused(&self, slot: usize) -> bool {
        let mut all = self.connections.values();
        !all.any(|known| known.slot == slot && !self.is_gone(known))
    }

    /// All entries that there are: two for each connection, one the other's mirror.
    pub(super) fn entries(&self) -> BTreeMap<Tuple, State> {
        let both = self.connections.iter().flat_map(|(name, known)| {
            let (client, vip) = self.ends(*name);
            let udp = Scene::is_udp(name.1);
            let state = |new, direction| State {
                new,
                slot: self.scene.slot(known.slot),
                generation: known.generation,
                bits: known.bits() | direction,
                is_established: known.is_established,
                expected: (known.is_answered && !known.is_established).then_some(known.expected),
            };
            let tuple = |src, dst| Tuple { udp, src, dst };
            let (source, backend) = (known.source, known.backend);
            [
                (tuple(client, vip), state((source, backend), 0)),
                (tuple(backend, source), state((vip, client), bit::REVERSE)),
            ]
        });
        both.collect()
    }

    /// Connections opened less those closed, as the path counts them.
    pub(super) fn open(&self) -> [u32; Scene::SLOTS] {
        let mut open = self.drift;
        for known in self.connections.values() {
            if known.is_open() && !self.is_gone(known) {
                open[known.slot] += 1;
            }
        }
        open
    }

    fn ends(&self, (client, service): Name) -> (SocketAddr, SocketAddr) {
        (self.scene.client(client), self.scene.vip(service))
    }

    /// The slot is another backend's by now.
    fn is_gone(&self, known: &Connection) -> bool {
        self.backends[known.slot].generation != known.generation
    }

    /// Why connections of this backend end, if they do.
    fn end_of(&self, known: &Connection) -> Option<Drop> {
        let owner = &self.backends[known.slot];
        match owner.state {
            _ if self.is_gone(known) => Some(Drop::BackendRemoved),
            backend_state::FREE => Some(Drop::BackendRemoved),
            backend_state::CLOSED => Some(Drop::BackendDown),
            backend_state::DOWN if owner.resets => Some(Drop::BackendDown),
            _ => None,
        }
    }

    pub(super) fn client_sends(&self, name: Name, packet: &Packet) -> Vec<Future> {
        let Some(known) = self.connection(name) else {
            return self.open_anew(name, packet, "drawn");
        };
        let flags = flags(packet);
        let state = self.backends[known.slot].state;
        let end = self.end_of(known);
        let draws_again = match Scene::is_udp(name.1) {
            true => end.is_some() || state == backend_state::DOWN,
            false => {
                let keeps = match known.is_established {
                    true => state != backend_state::DOWN,
                    // The answer is on its way, and met the SYN.
                    false => {
                        let is_crossed = known.is_answered && self.now - known.heard < SECOND / 2;
                        state == backend_state::ACTIVE || is_crossed
                    }
                };
                flags == SYN && (end.is_some() || !keeps || known.is_over())
            }
        };
        if draws_again {
            let mut without = self.clone();
            without.connections.remove(&name);
            return without.open_anew(name, packet, "drawn again");
        }
        match end {
            Some(reason) => vec![self.turn_back(packet, reason, "reset by the node")],
            None => vec![self.goes_on(name, packet)],
        }
    }

    /// A client's packet of a connection that goes on.
    fn goes_on(&self, name: Name, packet: &Packet) -> Future {
        let flags = flags(packet);
        let (mut next, now) = (self.clone(), self.now);
        let has_room = next.has_room();
        let Some(known) = next.connections.get_mut(&name) else {
            unreachable!("the caller knows it");
        };
        known.sees(now, flags, true);
        let is_proof = match acknowledgement(packet) {
            // By UDP a second datagram will do, once there was an answer.
            None => true,
            Some(number) => {
                let ahead = number.wrapping_sub(known.expected);
                flags & ACK != 0 && flags & (SYN | RST) == 0 && ahead < 1 << 16
            }
        };
        let mut what = "goes on";
        if !known.is_established && known.is_answered && is_proof {
            if !has_room && Scene::is_udp(name.1) {
                what = "goes on without a place of its own";
            } else if !has_room {
                next.full = Some(now);
                return next.turn_back(
                    packet,
                    Drop::FlowTableFull,
                    "no room for the client's proof",
                );
            }
            if has_room {
                known.is_established = true;
                what = "established by the client";
            }
        }
        let moved = packet.moved(world::TO_BACKEND, known.source, known.backend);
        next.redirects(what, moved)
    }

    pub(super) fn backend_sends(&self, service: usize, packet: &Packet) -> Vec<Future> {
        let udp = Scene::is_udp(service);
        let found = self.connections.iter().find(|(name, known)| {
            let ends = (known.backend, known.source);
            Scene::is_udp(name.1) == udp && ends == (packet.src, packet.dst)
        });
        let Some((name, known)) = found else {
            return vec![self.future("of no connection", Expect::Pass, &[])];
        };
        match self.end_of(known) {
            // What a failed backend still answers helps clients that wait.
            Some(Drop::BackendDown) if udp => {}
            Some(reason) => {
                let dropped = Expect::Dropped(reason);
                return vec![self.future("late answer dropped", dropped, &[reason])];
            }
            None => {}
        }
        vec![self.answers(*name, packet)]
    }

    fn answers(&self, name: Name, packet: &Packet) -> Future {
        let (flags, ends) = (flags(packet), self.ends(name));
        let (mut next, now) = (self.clone(), self.now);
        let has_room = next.has_room();
        let Some(known) = next.connections.get_mut(&name) else {
            unreachable!("the caller knows it");
        };
        known.sees(now, flags, false);
        let milestones = &mut next.milestones[known.slot];
        let mut what = "answered";
        if !known.is_established && flags & RST != 0 {
            what = "reset by the backend";
            milestones[2] += u64::from(!known.is_answered && !known.is_picked_up);
        } else if !known.is_established {
            if !known.is_answered || flags & SYN != 0 {
                known.expected = sequence(packet).map_or(0, |number| number.wrapping_add(1));
            }
            milestones[1] += u64::from(!known.is_answered);
            known.is_answered = true;
            let lasts = Scene::is_udp(name.1) && now - known.begun >= SECOND;
            if lasts && !has_room {
                what = "goes on without a place of its own";
            } else if known.is_picked_up && flags & SYN == 0 || lasts {
                if !has_room {
                    next.full = Some(now);
                    let dropped = Expect::Dropped(Drop::FlowTableFull);
                    let counted = [Drop::FlowTableFull];
                    return next.future("no room for the backend's proof", dropped, &counted);
                }
                known.is_established = true;
                what = "established by the backend";
            }
        }
        next.redirects(what, packet.moved(world::TO_CLIENT, ends.1, ends.0))
    }

    fn has_room(&self) -> bool {
        let established = self.connections.values().filter(|c| c.is_established);
        2 * established.count() + 2 <= self.room
    }

    /// A packet of no connection.
    fn open_anew(&self, name: Name, packet: &Packet, what: &'static str) -> Vec<Future> {
        if flags(packet) & RST != 0 {
            let reason = Drop::ResetWithoutFlow;
            return vec![self.future("reset of nothing", Expect::Dropped(reason), &[reason])];
        }
        let was_full = self.full.is_some_and(|full| self.now - full < SECOND);
        if was_full && !Scene::is_udp(name.1) {
            return vec![self.turn_back(packet, Drop::FlowTableFull, "refused for a second")];
        }
        let table = &self.tables[name.1];
        let takes = |slot: &&usize| {
            let owner = &self.backends[**slot];
            owner.state == backend_state::ACTIVE && owner.service == name.1
        };
        let mut eligible: Vec<usize> = table.iter().filter(takes).copied().collect();
        let mut futures = Vec::new();
        // Draws are not repeated for ever.
        if eligible.len() * 4 < table.len() * 3 || table.is_empty() {
            futures.push(self.turn_back(packet, Drop::NoBackend, "no backend"));
        }
        eligible.sort_unstable();
        eligible.dedup();
        for slot in eligible {
            futures.extend(self.open_with(name, packet, slot, what));
        }
        futures
    }

    /// Futures with the backend in `slot`, one for each source that it may see.
    fn open_with(
        &self,
        name: Name,
        packet: &Packet,
        slot: usize,
        what: &'static str,
    ) -> Vec<Future> {
        let owner = &self.backends[slot];
        let client = self.ends(name).0;
        let freedom = |source: SocketAddr| (source, self.freedom(name, owner.address, source));
        let address = if owner.snat {
            self.scene.node()
        } else {
            client
        };
        let pool = self
            .scene
            .pool()
            .map(|port| freedom(with_port(address, port)));
        let own = (!owner.snat).then(|| freedom(client));

        let mut sources = Vec::from_iter(own);
        let is_free = |freedom: &Freedom| matches!(freedom, Freedom::Free | Freedom::Rested(_));
        sources.retain(|(_, freedom)| is_free(freedom) || matches!(freedom, Freedom::Perhaps(_)));
        let mut is_sure = sources.iter().any(|(_, freedom)| is_free(freedom));
        if !is_sure {
            let insists = !pool.iter().any(|(_, freedom)| is_free(freedom));
            let mut may_take = pool.to_vec();
            may_take.retain(|(_, freedom)| match freedom {
                Freedom::Free | Freedom::Rested(_) | Freedom::Perhaps(_) => true,
                Freedom::Unproven(_) => insists,
                Freedom::Taken => false,
            });
            is_sure = may_take
                .iter()
                .any(|(_, freedom)| !matches!(freedom, Freedom::Perhaps(_)));
            sources.extend(may_take);
        }
        let mut futures = Vec::new();
        for (source, freedom) in sources {
            let (what, mut next) = (
                match freedom {
                    Freedom::Free if source == client || owner.snat => what,
                    Freedom::Free => "with another port",
                    Freedom::Rested(_) | Freedom::Perhaps(_) => "with a closed connection's port",
                    _ => "with a handshake's port",
                },
                self.clone(),
            );
            if let Freedom::Rested(other) | Freedom::Perhaps(other) | Freedom::Unproven(other) =
                freedom
            {
                next.connections.remove(&other);
            }
            next.enter(name, packet, slot, source);
            let moved = packet.moved(world::TO_BACKEND, source, owner.address);
            futures.push(next.redirects(what, moved));
        }
        if !is_sure {
            let reason = Drop::SourcePortsExhausted;
            futures.push(self.future("no port left", Expect::Dropped(reason), &[reason]));
        }
        futures
    }

    fn enter(&mut self, name: Name, packet: &Packet, slot: usize, source: SocketAddr) {
        let owner = &self.backends[slot];
        let is_picked_up = !Scene::is_udp(name.1) && flags(packet) & SYN == 0;
        let connection = Connection {
            slot,
            generation: owner.generation,
            backend: owner.address,
            source,
            is_established: false,
            is_answered: false,
            expected: 0,
            is_picked_up,
            client_fin: flags(packet) & FIN != 0,
            backend_fin: false,
            reset: false,
            backend_reset: false,
            begun: self.now,
            seen: self.now,
            ended: self.now,
            heard: self.now,
            spoke: self.now,
        };
        self.connections.insert(name, connection);
        self.milestones[slot][0] += u64::from(!is_picked_up);
    }

    /// Whether the backend at `backend` may see `source` as the client of `name`.
    fn freedom(&self, name: Name, backend: SocketAddr, source: SocketAddr) -> Freedom {
        let udp = Scene::is_udp(name.1);
        let owner = self.connections.iter().find(|(other, known)| {
            Scene::is_udp(other.1) == udp && (known.backend, known.source) == (backend, source)
        });
        let Some((other, known)) = owner else {
            return Freedom::Free;
        };
        let for_a_second = |since| self.now - since >= SECOND;
        if !known.is_established {
            let since = if udp { known.spoke } else { known.begun };
            return match for_a_second(since) {
                true => Freedom::Unproven(*other),
                false => Freedom::Taken,
            };
        }
        // An entry tells when its packets came to a second only, and each direction its own.
        match known.is_closed() {
            true if for_a_second(known.seen) => Freedom::Rested(*other),
            true if for_a_second(known.ended) => Freedom::Perhaps(*other),
            _ => Freedom::Taken,
        }
    }

    fn redirects(self, name: &'static str, packet: Packet) -> Future {
        Future {
            name,
            expect: Expect::Redirect(packet.bytes()),
            counted: Vec::new(),
            model: self,
        }
    }

    fn future(&self, name: &'static str, expect: Expect, counted: &[Drop]) -> Future {
        Future {
            name,
            expect,
            counted: counted.to_vec(),
            model: self.clone(),
        }
    }

    /// The sender is told that its packet goes nowhere, but for a reset.
    fn turn_back(&self, packet: &Packet, reason: Drop, name: &'static str) -> Future {
        let unanswered = Drop::ResetWithoutFlow;
        match packet.transport {
            Transport::Tcp { flags, .. } if flags & build::RST != 0 => {
                self.future(name, Expect::Dropped(unanswered), &[reason, unanswered])
            }
            Transport::Tcp { .. } => {
                self.future(name, Expect::Transmit(reset_of(packet)), &[reason])
            }
            _ => self.future(name, Expect::Transmit(unreachable_of(packet)), &[reason]),
        }
    }
}

fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), port)
}
