//! What sources have in force, by the rules of the documentation: a failure changes nothing; who is
//! missing goes after a hold, which an empty answer, or the first after a failure, makes longer. A
//! service's source that asks for something else by now begins with what it knew.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::discovery::{Instance, InstanceState, Settings};

/// Of a service, of a kind, and what it asks for.
pub(in super::super) type Name = (String, &'static str, String);

#[derive(Clone, Default)]
pub(in super::super) struct Sources {
    running: BTreeMap<Name, Source>,
    /// On disk.
    saved: BTreeMap<Name, Saved>,
}

#[derive(Clone)]
struct Source {
    settings: Settings,
    known: BTreeMap<String, Known>,
    in_force: BTreeMap<SocketAddr, Member>,
    in_force_since: Option<u64>,
    /// More is known, or other settings hold, than when `in_force` was made. A failure is neither.
    changed: bool,
    failing: bool,
    /// It came in another's place.
    is_heir: bool,
    /// By the wall clock, as the next.
    last_answer: Option<u64>,
    saved_answer: u64,
    unsaved: bool,
}

#[derive(Clone)]
struct Known {
    address: SocketAddr,
    weight: Weight,
    state: InstanceState,
    missing_until: Option<u64>,
}

#[derive(Clone)]
struct Saved {
    known: BTreeMap<String, Known>,
    last_answer: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Weight {
    Is(u16),
    /// Whatever the source's settings say.
    Usual,
    /// Whatever share the kernel's table gave it.
    Share,
}

/// A backend in force.
#[derive(Clone, PartialEq)]
pub(in super::super) struct Member {
    id: String,
    /// `None`: more than 0.
    pub(super) weight: Option<u16>,
    pub(super) state: InstanceState,
}

impl Sources {
    /// Runs those of these services, and forgets all others. Gives how many begin with what
    /// another one has.
    pub(super) fn set(&mut self, wanted: &BTreeMap<Name, Settings>) -> usize {
        let before = std::mem::take(&mut self.running);
        self.saved.retain(|name, _| wanted.contains_key(name));
        let mut heirs = 0;
        for (name, settings) in wanted {
            let source = match before.get(name) {
                Some(source) if source.settings == *settings => source.clone(),
                Some(source) => Source {
                    settings: settings.clone(),
                    changed: true,
                    ..source.clone()
                },
                None => {
                    let mut source = Source::new(settings, self.saved.get(name));
                    // No service has two of them here.
                    let place = |name: &Name| (name.0.clone(), name.1);
                    let former = before.iter().find(|(other, _)| place(other) == place(name));
                    // One that has nothing leaves nothing.
                    let has_any = |s: &Source| !(s.known.is_empty() && s.in_force.is_empty());
                    if let Some((_, former)) = former.filter(|(_, former)| has_any(former)) {
                        source.inherit(former);
                        heirs += 1;
                    }
                    source
                }
            };
            self.running.insert(name.clone(), source);
        }
        heirs
    }

    /// Dies, and begins with what was saved.
    pub(super) fn restart(&mut self, wanted: &BTreeMap<Name, Settings>) {
        self.running.clear();
        self.set(wanted);
    }

    pub(super) fn in_force(&self, name: &Name) -> impl Iterator<Item = (&SocketAddr, &Member)> {
        self.running.get(name).into_iter().flat_map(|s| &s.in_force)
    }

    /// It answered once, in this life or one of which something was saved.
    pub(super) fn was_heard(&self, name: &Name) -> bool {
        let source = self.running.get(name);
        source.is_some_and(|source| source.last_answer.is_some())
    }

    /// Those that came in another's place and never answered, each with whether it is saved.
    pub(super) fn heirs(&self) -> impl Iterator<Item = (&Name, bool)> {
        let running = self.running.iter();
        let heirs = running.filter(|(_, source)| source.is_heir && source.last_answer.is_none());
        heirs.map(|(name, source)| (name, !source.unsaved))
    }

    pub(super) fn is_blank(&self, name: &Name) -> bool {
        let source = &self.running[name];
        source.known.is_empty() && source.last_answer.is_none()
    }

    /// Lets one begin with what the kernel holds: slot, address, state, and whether a table has it.
    pub(super) fn assume(
        &mut self,
        name: &Name,
        held: Vec<(u32, SocketAddr, InstanceState, bool)>,
    ) {
        let source = self.running.get_mut(name).unwrap();
        for (slot, address, state, has_share) in held {
            let known = Known {
                address,
                state,
                weight: match has_share {
                    true => Weight::Share,
                    false => Weight::Usual,
                },
                missing_until: None,
            };
            source.known.insert(format!("kernel slot {slot}"), known);
        }
        source.in_force = source.set();
    }

    pub(in super::super) fn answer(
        &mut self,
        name: &Name,
        said: &[Instance],
        decided: bool,
        now_ms: u64,
        wall_ms: u64,
    ) {
        if let Some(source) = self.running.get_mut(name) {
            source.answer(said, decided, now_ms);
            source.last_answer = Some(wall_ms);
        }
    }

    pub(in super::super) fn fail(&mut self, name: &Name) {
        if let Some(source) = self.running.get_mut(name) {
            source.failing = true;
            source.miss_nobody();
        }
    }

    pub(super) fn advance(&mut self, now_ms: u64) {
        self.running.values_mut().for_each(|s| s.advance(now_ms));
    }

    pub(in super::super) fn save(&mut self) {
        /// What stays the same is saved again after so long.
        const ANYWAY_MS: u64 = 600_000;
        for (name, source) in &mut self.running {
            let answered = source.last_answer.unwrap_or(0);
            if source.unsaved || answered > source.saved_answer + ANYWAY_MS {
                source.unsaved = false;
                source.saved_answer = answered;
                let saved = Saved {
                    known: source.known.clone(),
                    last_answer: source.last_answer,
                };
                self.saved.insert(name.clone(), saved);
            }
        }
    }

    /// Some instance is missing in the last answer and in force.
    pub(in super::super) fn holds_any(&self) -> bool {
        let mut known = self.running.values().flat_map(|s| s.known.values());
        known.any(|known| known.missing_until.is_some())
    }
}

impl Source {
    fn new(settings: &Settings, saved: Option<&Saved>) -> Self {
        let mut source = Self {
            settings: settings.clone(),
            known: saved.map(|s| s.known.clone()).unwrap_or_default(),
            in_force: BTreeMap::new(),
            in_force_since: None,
            changed: false,
            failing: false,
            is_heir: false,
            last_answer: saved.and_then(|s| s.last_answer),
            saved_answer: saved.and_then(|s| s.last_answer).unwrap_or(0),
            unsaved: false,
        };
        source.miss_nobody();
        source.in_force = source.set();
        source
    }

    /// The next answer says it again.
    fn miss_nobody(&mut self) {
        let known = self.known.values_mut();
        known.for_each(|known| known.missing_until = None);
    }

    /// Begins with what another one has, which is no answer of its own.
    fn inherit(&mut self, former: &Self) {
        self.known.clone_from(&former.known);
        self.in_force.clone_from(&former.in_force);
        self.in_force_since = former.in_force_since;
        self.changed = true;
        self.is_heir = true;
        self.unsaved = true;
        self.miss_nobody();
    }

    fn answer(&mut self, said: &[Instance], decided: bool, now_ms: u64) {
        let is_doubtful = !decided && (said.is_empty() || self.failing);
        let removal = self.settings.removal_hold.as_millis() as u64;
        let empty = self.settings.empty_hold.as_millis() as u64;
        let goes_at = now_ms
            + if is_doubtful {
                removal.max(empty)
            } else {
                removal
            };
        self.failing = false;
        self.changed = true;
        let named: BTreeSet<&str> = said.iter().map(|instance| instance.id.as_str()).collect();
        for (id, known) in &mut self.known {
            if !named.contains(id.as_str()) {
                let until = known.missing_until.unwrap_or(goes_at);
                known.missing_until = Some(if decided { until.min(goes_at) } else { until });
            }
        }
        // Of two with one id the first counts, so it comes last.
        for instance in said.iter().rev() {
            let known = Known {
                address: instance.address,
                weight: instance.weight.map_or(Weight::Usual, Weight::Is),
                state: instance.state,
                missing_until: None,
            };
            self.known.insert(instance.id.clone(), known);
        }
        self.drop_missing(now_ms);
    }

    fn drop_missing(&mut self, now_ms: u64) {
        let before = self.known.len();
        let stays = |known: &Known| known.missing_until.is_none_or(|until| until > now_ms);
        self.known.retain(|_, known| stays(known));
        self.changed |= self.known.len() < before;
    }

    fn advance(&mut self, now_ms: u64) {
        self.drop_missing(now_ms);
        let window = self.settings.merge_window.as_millis() as u64;
        let is_due = self.in_force_since.is_none_or(|at| at + window <= now_ms);
        if !is_due || !self.changed {
            return;
        }
        self.changed = false;
        let set = self.set();
        if set != self.in_force {
            self.in_force = set;
            self.in_force_since = Some(now_ms);
            self.unsaved = true;
        }
    }

    /// Of several with one address: the one in the best state, then one not missing, then the lowest
    /// id.
    fn set(&self) -> BTreeMap<SocketAddr, Member> {
        let mut ranked: Vec<_> = self.known.iter().collect();
        ranked.sort_by_key(|(id, known)| (known.state, known.missing_until.is_some(), *id));
        let mut set = BTreeMap::new();
        for (id, known) in ranked {
            set.entry(known.address).or_insert_with(|| Member {
                id: id.clone(),
                weight: match known.weight {
                    Weight::Is(weight) => Some(weight),
                    Weight::Usual => Some(self.settings.weight),
                    Weight::Share => None,
                },
                state: known.state,
            });
        }
        set
    }
}
