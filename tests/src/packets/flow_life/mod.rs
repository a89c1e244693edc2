//! The life of flows: random histories of packets, backends, tables and time on the byte slice, and a
//! [`model`] that says after each packet what must have become of it and which entries there must be.

mod connection;
mod event;
mod model;

use std::collections::BTreeSet;

use lb_common::abi::{Backend, Be16, backend_flag, backend_state, protocol};

use connection::{State, Tuple};
pub use event::{Ack, Answer, Event, History, Sent};
use model::{Future, Model};

use super::{Runner as _, Side, slice::Slice, world};
use event::{Scene, packet_of_backend, packet_of_client};

/// Runs a history; gives what was reached in it, in the model's words.
///
/// # Errors
/// What differs from the model, at which event.
pub fn run(history: &History) -> Result<BTreeSet<&'static str>, String> {
    let mut life = Life::new(history);
    for (number, event) in history.events.iter().enumerate() {
        life.apply(event)
            .map_err(|difference| format!("event {}, {event:?}: {difference}", number + 1))?;
    }
    Ok(life.reached)
}

/// The slice and its model, side by side.
struct Life {
    scene: Scene,
    slice: Slice,
    model: Model,
    reached: BTreeSet<&'static str>,
}

impl Life {
    fn new(history: &History) -> Self {
        let scene = Scene { v6: history.v6 };
        // An odd number: of the last connection one direction fits.
        let room = if history.is_tight { 7 } else { usize::MAX };
        let mut slice = match history.replaces_flows {
            true => Slice::replacing_flows(),
            false => Slice::twin(Default::default(), room, false),
        };
        slice.set_pool(world::SNAT_PORT, scene.pool().len() as u16);
        let mut life = Self {
            scene,
            slice,
            model: Model::new(scene, room),
            reached: BTreeSet::new(),
        };
        for service in 0..Scene::SERVICES {
            let slots = [2 * service, 2 * service + 1];
            for slot in slots {
                life.give(slot, service, slot % 2, history.snat, false);
            }
            life.set_table(service, &slots);
        }
        life
    }

    fn apply(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Client {
                client,
                service,
                sent,
            } => self.client_sends(*client, *service, *sent),
            Event::Backend {
                client,
                service,
                answer,
            } => self.backend_sends(*client, *service, *answer),
            Event::Open { client, service } => {
                use {Answer::SynAck, Sent::Ack as ByAck, Sent::Syn};
                self.client_sends(*client, *service, Syn)?;
                self.backend_sends(*client, *service, SynAck(0))?;
                self.client_sends(*client, *service, ByAck(Ack::Right))
            }
            Event::Wait(jiffies) => {
                self.slice.wait(*jiffies);
                self.model.now += jiffies;
                Ok(())
            }
            Event::Epoch => {
                self.slice.next_epoch();
                Ok(())
            }
            Event::State { slot, state } => {
                // A slot is not freed before a scan finds nothing of it.
                if *state != backend_state::FREE || self.model.is_unused(*slot) {
                    self.model.backends[*slot].state = *state;
                    self.install(*slot);
                }
                Ok(())
            }
            Event::Give {
                slot,
                service,
                host,
                snat,
                resets,
            } => {
                self.give(*slot, *service, *host, *snat, *resets);
                Ok(())
            }
            Event::Table { service, slots } => {
                self.set_table(*service, slots);
                Ok(())
            }
            Event::Age { client, service } => {
                self.age(*client, *service);
                Ok(())
            }
        }
    }

    fn client_sends(&mut self, client: usize, service: usize, sent: Sent) -> Result<(), String> {
        let name = (client, service);
        let expected = self.model.connection(name).map(|c| c.expected);
        let packet = packet_of_client(self.scene, name, sent, expected);
        let futures = self.model.client_sends(name, &packet);
        self.check(Side::Client, &packet.bytes(), futures)
    }

    fn backend_sends(
        &mut self,
        client: usize,
        service: usize,
        answer: Answer,
    ) -> Result<(), String> {
        let name = (client, service);
        // Without a connection, a stranger's packet.
        let (backend, source) = match self.model.connection(name) {
            Some(known) => (known.backend, known.source),
            None => (self.scene.backend(service, 0), self.scene.client(client)),
        };
        let packet = packet_of_backend(service, (backend, source), answer);
        let futures = self.model.backend_sends(service, &packet);
        self.check(Side::Backend, &packet.bytes(), futures)
    }

    /// Sends a packet and takes the future that came true.
    fn check(&mut self, side: Side, packet: &[u8], futures: Vec<Future>) -> Result<(), String> {
        let outcome = self.slice.take(side, packet);
        let mut differences = Vec::new();
        for future in futures {
            let difference = future
                .expect
                .difference(packet, &outcome)
                .or_else(|| unequal("counted drops", &future.counted, &outcome.counted))
                .or_else(|| self.differs(&future.model));
            match difference {
                None => {
                    self.model = future.model;
                    self.reached.insert(future.name);
                    return Ok(());
                }
                Some(difference) => differences.push(format!("\n {}: {difference}", future.name)),
            }
        }
        Err(format!(
            "{outcome:?}, where may have been{}",
            differences.concat()
        ))
    }

    /// How the tables differ from what a model says.
    fn differs(&self, model: &Model) -> Option<String> {
        let there = self.slice.seen_flows().into_iter();
        let there = there.map(|flow| {
            let tuple = Tuple {
                udp: flow.udp,
                src: flow.from.0,
                dst: flow.from.1,
            };
            let mut state = State {
                new: flow.to,
                slot: flow.slot,
                generation: flow.generation,
                bits: flow.state,
                is_established: flow.is_established,
                expected: None,
            };
            if !flow.is_established && state.is_answered() {
                state.expected = Some(flow.expected);
            }
            (tuple, state)
        });
        unequal("entries", &model.entries(), &there.collect())
            .or_else(|| {
                let counted = self.each_slot(|slot| self.slice.milestones(slot));
                unequal("milestones", &model.milestones, &counted)
            })
            .or_else(|| {
                let open = self.each_slot(|slot| self.slice.open_connections(slot));
                unequal("open connections", &model.open(), &open)
            })
    }

    fn each_slot<T>(&self, ask: impl Fn(u32) -> T) -> [T; Scene::SLOTS] {
        std::array::from_fn(|slot| ask(self.scene.slot(slot)))
    }

    fn give(&mut self, slot: usize, service: usize, host: usize, snat: bool, resets: bool) {
        let address = self.scene.backend(service, host);
        self.model.give(slot, service, address, snat, resets);
        self.install(slot);
    }

    /// Writes a slot as the daemon would.
    fn install(&mut self, slot: usize) {
        let (scene, owner) = (self.scene, &self.model.backends[slot]);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let is_udp = Scene::is_udp(owner.service);
        let snat = flag(owner.snat, backend_flag::SNAT);
        let backend = Backend {
            generation: owner.generation,
            state: owner.state,
            address: world::words(owner.address.ip()),
            port: Be16::new(owner.address.port()).0,
            family: if scene.v6 { 6 } else { 4 },
            protocol: if is_udp { protocol::UDP } else { protocol::TCP },
            service: u32::from(Scene::PORTS[owner.service]),
            source: match owner.snat {
                true => world::words(scene.node().ip()),
                false => [0; 4],
            },
            flags: snat | flag(owner.resets, backend_flag::RESET_WHEN_DOWN),
            ..Backend::default()
        };
        self.slice.give(scene.slot(slot), backend);
    }

    fn set_table(&mut self, service: usize, slots: &[usize]) {
        let numbers: Vec<u32> = slots.iter().map(|slot| self.scene.slot(*slot)).collect();
        self.slice
            .set_table(Scene::PORTS[service], self.scene.v6, &numbers);
        self.model.tables[service] = slots.to_vec();
    }

    /// The daemon finds a connection idle for too long.
    fn age(&mut self, client: usize, service: usize) {
        let scene = self.scene;
        if let Some(gone) = self.model.age((client, service)) {
            let is_udp = Scene::is_udp(service);
            self.slice
                .forget(scene.client(client), scene.vip(service), is_udp);
            self.slice.forget(gone.backend, gone.source, is_udp);
        }
    }
}

fn unequal<T: PartialEq + std::fmt::Debug>(what: &str, model: &T, there: &T) -> Option<String> {
    (model != there).then(|| format!("{what}:\n  model {model:?}\n  slice {there:?}"))
}

/// States that a slot may be in, but for [`backend_state::ACTIVE`].
pub const OTHER_STATES: [u32; 4] = [
    backend_state::FREE,
    backend_state::DRAINING,
    backend_state::DOWN,
    backend_state::CLOSED,
];
