//! What happens next: packets of the case table as they are and changed, connections that go on by
//! what the byte slice made of their packets, ICMP errors about them, fragments in any order, and
//! what the daemon does meanwhile.

use std::{collections::VecDeque, net::IpAddr};

use lb_common::{abi::as_bytes, path::Budget};
use rand::Rng;

use super::super::{
    Action, Outcome, Side, Step,
    build::{ACK, FIN, PSH, RST, SYN},
    cases,
    slice::Slice,
    tuple,
    world::{self, Addresses},
};
use super::{
    event::Event,
    make::{self, errors_about},
    mutate,
};

/// Packets remembered to go on from.
const MEMORY: usize = 24;

/// The case table as events.
pub(super) struct Seeds {
    cases: Vec<Vec<Event>>,
}

impl Seeds {
    pub(super) fn new() -> Self {
        let events = |steps: Vec<Step>| steps.into_iter().filter_map(event).collect();
        let cases = cases::all().into_iter().map(|case| events(case.steps));
        Self {
            cases: cases.collect(),
        }
    }
}

/// A step of a case, if it is one that makes the same of both sides.
fn event(step: Step) -> Option<Event> {
    let packet = |side, bytes: Vec<u8>| {
        (bytes.len() <= mutate::LONGEST).then_some(Event::Packet {
            side,
            bytes,
            summed: false,
        })
    };
    match step {
        Step::FromClient(bytes, _) => packet(Side::Client, bytes),
        Step::FromBackend(bytes, _) => packet(Side::Backend, bytes),
        Step::Backend {
            slot,
            state,
            generation,
        } => Some(Event::Backend {
            slot,
            state,
            generation,
        }),
        Step::Epoch => Some(Event::Epoch),
        Step::Second => Some(Event::Second),
        Step::Budget(budget, per_second) => Some(Event::Budget(budget, per_second)),
        // Of several one is drawn, by each side another.
        Step::Sources(sources) => Some(Event::Sources(one_of_each_family(&sources))),
        Step::Evict { src, dst, udp } => Some(Event::Evict {
            v6: src.is_ipv6(),
            key: match src.is_ipv6() {
                true => as_bytes(&tuple::<lb_common::abi::V6>(src, dst, udp)).to_vec(),
                false => as_bytes(&tuple::<lb_common::abi::V4>(src, dst, udp)).to_vec(),
            },
        }),
        // A socket is the kernel's alone; what is known the comparison of states tells.
        Step::Listen { .. } | Step::CloseSockets | Step::Stale | Step::Pool { .. } => None,
        Step::Known { .. } | Step::Unknown { .. } => None,
    }
}

fn one_of_each_family(sources: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v6| sources.iter().find(|ip| ip.is_ipv6() == v6).copied();
    [false, true].into_iter().filter_map(first).collect()
}

pub(super) struct Generator<'s, R> {
    rng: R,
    seeds: &'s Seeds,
    /// What is to come of a case that was begun, or of a datagram's fragments.
    pending: VecDeque<Event>,
    /// Packets as they came, and as they left: to whom, and the bytes.
    seen: VecDeque<(Side, Vec<u8>)>,
}

impl<'s, R: Rng> Generator<'s, R> {
    pub(super) fn new(rng: R, seeds: &'s Seeds) -> Self {
        Self {
            rng,
            seeds,
            pending: VecDeque::new(),
            seen: VecDeque::new(),
        }
    }

    /// What the events are drawn by.
    pub(super) fn rng(&self) -> &R {
        &self.rng
    }

    pub(super) fn next(&mut self, slice: &Slice) -> Event {
        let mut event = loop {
            if let Some(event) = self.draw(slice) {
                break event;
            }
        };
        if let Event::Packet { bytes, summed, .. } = &mut event {
            if self.rng.random_bool(0.12) {
                mutate::mutate(&mut self.rng, bytes);
            }
            mutate::fit(bytes);
            *summed = self.rng.random_bool(0.2);
        }
        event
    }

    /// Remembers what became of a packet.
    pub(super) fn learn(&mut self, event: &Event, outcome: Option<&Outcome>) {
        let (Event::Packet { side, bytes, .. }, Some(outcome)) = (event, outcome) else {
            return;
        };
        // To whom it went, as its MACs say; what the stack gets is for a backend on the node.
        let receiver = match outcome.action {
            Action::Drop => return,
            Action::Pass if outcome.packet == *bytes => return,
            Action::Pass => Side::Node,
            _ if outcome.packet.starts_with(&world::BACKEND_MAC) => Side::Backend,
            Action::Transmit => *side,
            _ => Side::Client,
        };
        self.seen.push_back((receiver, outcome.packet.clone()));
        if self.seen.len() > MEMORY {
            self.seen.pop_front();
        }
    }

    fn draw(&mut self, slice: &Slice) -> Option<Event> {
        if !self.pending.is_empty() && self.rng.random_bool(0.4) {
            return self.pending.pop_front();
        }
        match self.rng.random_range(0..100) {
            0..36 => self.go_on(),
            36..44 => self.begin_case(),
            44..50 => self.packet_of_case(),
            50..80 => Some(make::packet(&mut self.rng)),
            80..84 => self.error(),
            84..89 => {
                let mut fragments = make::fragments(&mut self.rng);
                let first = fragments.pop_front();
                self.pending.extend(fragments);
                first
            }
            89..91 => self.again(),
            91..93 => self.evict(slice),
            93 | 94 => Some(Event::Second),
            95 => Some(Event::Epoch),
            96 | 97 => Some(make::backend(&mut self.rng)),
            98 => {
                let per_second = *make::pick(&mut self.rng, &[0, 1, 3, 1000]);
                let budgets = [Budget::Answers, Budget::Entries, Budget::UdpPlaces];
                let budget = *make::pick(&mut self.rng, &budgets);
                Some(Event::Budget(budget, per_second))
            }
            _ => {
                let a = [false, true].map(|v6| Addresses { v6 });
                let sources = match self.rng.random_range(0..3) {
                    0 => Vec::new(),
                    1 => a.map(|a| a.node(0).ip()).to_vec(),
                    _ => a.map(|a| a.second_node(0).ip()).to_vec(),
                };
                Some(Event::Sources(sources))
            }
        }
    }

    /// Whoever got a packet answers it, or goes on after an answer.
    fn go_on(&mut self) -> Option<Event> {
        let (side, bytes) = self.remembered()?;
        let mut turned = mutate::turn_around(&bytes)?;
        let (transport, v6) = mutate::transport(&turned)?;
        let is_tcp = mutate::protocol(&turned, v6) == 6;
        if is_tcp && turned.len() >= transport + 20 {
            self.acknowledge(&mut turned[transport..]);
        }
        // The MACs of who sends it.
        let macs = match side {
            Side::Backend => world::FROM_BACKEND,
            _ => world::FROM_CLIENT,
        };
        turned[..6].copy_from_slice(&macs.0);
        turned[6..12].copy_from_slice(&macs.1);
        turned[mutate::NETWORK + if v6 { 7 } else { 8 }] = *make::pick(&mut self.rng, &make::TTLS);
        Some(packet(side, turned))
    }

    /// Numbers and flags of a segment that follows this one, turned around, or of one that does not.
    fn acknowledge(&mut self, segment: &mut [u8]) {
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let (sequence, acknowledged) = (number(&segment[4..]), number(&segment[8..]));
        let flags = segment[13];
        let answer = match (
            flags & (SYN | ACK | FIN | RST),
            self.rng.random_range(0..12),
        ) {
            (_, 0) => self.rng.random::<u8>() & 0x3f,
            (_, 1) => RST,
            (_, 2) => RST | ACK,
            (_, 3 | 4) => FIN | ACK,
            (SYN, _) => SYN | ACK,
            (_, 5) => SYN,
            (_, 6) => PSH | ACK,
            _ => ACK,
        };
        let ahead = match self.rng.random_range(0..10) {
            0 => self.rng.random(),
            1 => 0,
            2 => 0xffff,
            3 => 0x1_0000,
            4 => 0x1_0001,
            _ => 1,
        };
        segment[4..8].copy_from_slice(&acknowledged.to_be_bytes());
        segment[8..12].copy_from_slice(&sequence.wrapping_add(ahead).to_be_bytes());
        segment[13] = answer;
    }

    fn begin_case(&mut self) -> Option<Event> {
        let case = make::pick(&mut self.rng, &self.seeds.cases);
        self.pending.extend(case.iter().cloned());
        self.pending.pop_front()
    }

    fn packet_of_case(&mut self) -> Option<Event> {
        let case = make::pick(&mut self.rng, &self.seeds.cases);
        if case.is_empty() {
            return None;
        }
        let event = make::pick(&mut self.rng, case).clone();
        matches!(event, Event::Packet { .. }).then_some(event)
    }

    fn error(&mut self) -> Option<Event> {
        let (side, bytes) = self.remembered()?;
        let error = errors_about(&mut self.rng, &bytes)?;
        Some(packet(side, error))
    }

    /// A packet once more as it left: of a node in front of this one, or a loop.
    fn again(&mut self) -> Option<Event> {
        let (side, bytes) = self.remembered()?;
        Some(packet(side, bytes))
    }

    fn remembered(&mut self) -> Option<(Side, Vec<u8>)> {
        if self.seen.is_empty() {
            return None;
        }
        let place = self.rng.random_range(0..self.seen.len());
        self.seen.get(place).cloned()
    }

    fn evict(&mut self, slice: &Slice) -> Option<Event> {
        let v6 = self.rng.random();
        let keys = slice.handshakes(v6);
        if keys.is_empty() {
            return None;
        }
        let key = make::pick(&mut self.rng, &keys).clone();
        Some(Event::Evict { v6, key })
    }
}

fn packet(side: Side, bytes: Vec<u8>) -> Event {
    Event::Packet {
        side,
        bytes,
        summed: false,
    }
}
