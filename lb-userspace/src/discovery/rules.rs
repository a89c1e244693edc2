//! What becomes of a source's reports: one state machine for all kinds, driven by time and
//! reports, and for all that is found: instances, and services ([`catalogue`]). Pure.
//!
//! - A failure changes nothing of what is known, however long it lasts.
//! - An instance that an answer leaves out is missing; it goes when it was missing for its hold, in
//!   answers that no failure interrupts. The hold is `removal_hold`; where the answer is empty, or the
//!   first after a failure, it is `empty_hold` if that is longer: a registry that comes back may not
//!   know everyone yet. An answer that says itself that it is final (`decided`) needs no such proof.
//! - Of several instances with one address the one in the best state counts, then the one not
//!   missing, then the one with the lowest id.
//! - What is known comes into force at once, and then no sooner than `merge_window` later; what was
//!   undone meanwhile never does.

pub mod catalogue;
mod instances;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use super::{Class, Failure, Instance, Offer, Report, Settings, Snapshot, text::one_line};

/// Most instances, or services, of one source; an answer with more is not believed.
pub const MAX_INSTANCES: usize = 100_000;

/// Sentences kept of what was left out of an answer.
const MAX_NOTES: usize = 10;
/// Characters of each.
const MAX_NOTE: usize = 200;

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    /// Milliseconds since 1970; only shown and saved.
    pub ms: u64,
}

/// How a source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// No answer and no failure yet.
    Starting,
    /// Its last answer counts.
    Synced,
    /// It failed since its last answer, which still counts.
    Failing,
    /// It gave no answer for `stale_after`, or none since lbd started and failed: what is in force
    /// may be out of date.
    Stale,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Synced => "synced",
            Self::Failing => "failing",
            Self::Stale => "stale",
        }
    }
}

/// Something of which a source finds several.
pub trait Item: Clone {
    /// What several of them are called.
    const PLURAL: &'static str;
    /// What a sound one may become.
    const PURPOSE: &'static str;

    /// All that are in force.
    type Set: Clone + PartialEq + Default;

    fn id(&self) -> &str;

    /// Takes out of it what does not fit lbd.
    ///
    /// # Errors
    /// Why nothing can be made of it at all, in words.
    fn admissible(self) -> Result<Self, String>;

    /// What is known, by id, each with whether it is missing, as a set to be in force.
    fn set<'a>(known: impl Iterator<Item = (&'a Self, bool)>, settings: &Settings) -> Self::Set
    where
        Self: 'a;
}

/// What a source knew, to begin with after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Of a source of backends.
    pub instances: Vec<Instance>,
    /// Of a source of services, each with its instances.
    pub services: Vec<(Offer, Vec<Instance>)>,
    /// Milliseconds since 1970.
    pub last_success_ms: Option<u64>,
}

/// How a source has fared since lbd started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Sets that came into force.
    pub updates: u64,
    pub errors: BTreeMap<Class, u64>,
}

#[derive(Clone, Debug)]
struct Known<I> {
    item: I,
    /// It is not in the last answer, and goes at this time.
    missing_until: Option<Instant>,
}

/// One source's state.
#[derive(Clone, Debug)]
pub struct Machine<I: Item = Instance> {
    settings: Settings,
    /// By id.
    known: BTreeMap<String, Known<I>>,
    /// When the first of those that are missing goes.
    next_missing: Option<Instant>,
    in_force: I::Set,
    /// `known` may differ from `in_force`, since then.
    changed: Option<Instant>,
    last_in_force: Option<Instant>,
    /// When it began, or its last answer of this life.
    last_word: Instant,
    answered: bool,
    failing: bool,
    last_success_ms: Option<u64>,
    last_failure: Option<(Failure, u64)>,
    left_out: Vec<String>,
    counts: Counts,
}

impl<I: Item> Machine<I> {
    /// Puts what was known before in force; `last_success_ms` is when that was, in milliseconds
    /// since 1970.
    pub fn new(settings: Settings, known: Vec<I>, last_success_ms: Option<u64>, now: Now) -> Self {
        let known = known.into_iter().map(|item| {
            let known = Known {
                item,
                missing_until: None,
            };
            (known.item.id().to_owned(), known)
        });
        let mut machine = Self {
            settings,
            known: known.collect(),
            next_missing: None,
            in_force: I::Set::default(),
            changed: None,
            last_in_force: None,
            last_word: now.at,
            answered: false,
            failing: false,
            last_success_ms,
            last_failure: None,
            left_out: Vec::new(),
            counts: Counts::default(),
        };
        machine.in_force = machine.set();
        machine
    }

    /// One that takes its place and asks for something else: it has what this one has, and never
    /// answered itself. What this one had not put in force so far follows as it would have.
    pub fn heir(&self, settings: Settings, now: Now) -> Self {
        let known = self.known().cloned().collect();
        Self {
            in_force: self.in_force.clone(),
            last_in_force: self.last_in_force,
            changed: Some(now.at),
            ..Self::new(settings, known, None, now)
        }
    }

    /// Takes other settings in place of these. Holds that run keep their ends.
    pub fn set_settings(&mut self, settings: Settings, now: Now) {
        self.settings = settings;
        self.changed.get_or_insert(now.at);
    }

    pub fn report(&mut self, report: Report<Snapshot<I>>, now: Now) {
        let outcome = match report {
            Report::Snapshot(snapshot) => self.answer(snapshot, now),
            Report::Failure(failure) => Err(failure),
        };
        if let Err(failure) = outcome {
            self.fail(failure, now);
        }
    }

    fn fail(&mut self, failure: Failure, now: Now) {
        *self.counts.errors.entry(failure.class).or_default() += 1;
        self.failing = true;
        self.last_failure = Some((failure, now.ms));
        for known in self.known.values_mut() {
            known.missing_until = None;
        }
        self.next_missing = None;
    }

    fn answer(&mut self, snapshot: Snapshot<I>, now: Now) -> Result<(), Failure> {
        let decided = snapshot.decided;
        let (items, left_out) = sift(snapshot)?;
        let doubtful = !decided && (items.is_empty() || self.failing);
        let Settings {
            removal_hold,
            empty_hold,
            ..
        } = self.settings;
        let hold = match doubtful {
            true => removal_hold.max(empty_hold),
            false => removal_hold,
        };
        self.left_out = left_out;
        self.answered = true;
        self.failing = false;
        self.last_word = now.at;
        self.last_success_ms = Some(now.ms);

        for (id, known) in &mut self.known {
            if !items.contains_key(id) {
                let until = known.missing_until.get_or_insert(now.at + hold);
                if decided {
                    *until = (*until).min(now.at + hold);
                }
            }
        }
        for (id, item) in items {
            let known = Known {
                item,
                missing_until: None,
            };
            self.known.insert(id, known);
        }
        self.changed.get_or_insert(now.at);
        self.next_missing = self.missing().min();
        self.drop_missing(now.at);
        Ok(())
    }

    fn drop_missing(&mut self, at: Instant) {
        if self.next_missing.is_none_or(|until| until > at) {
            return;
        }
        self.known
            .retain(|_, known| known.missing_until.is_none_or(|until| until > at));
        self.next_missing = self.missing().min();
        self.changed.get_or_insert(at);
    }

    fn missing(&self) -> impl Iterator<Item = Instant> {
        self.known.values().filter_map(|known| known.missing_until)
    }

    /// Lets time pass. True if another set came into force.
    pub fn advance(&mut self, now: Now) -> bool {
        self.drop_missing(now.at);
        if self.due().is_none_or(|due| due > now.at) {
            return false;
        }
        self.changed = None;
        let set = self.set();
        if set == self.in_force {
            return false;
        }
        self.in_force = set;
        self.last_in_force = Some(now.at);
        self.counts.updates += 1;
        true
    }

    /// When [`Self::advance`] has something to do, at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        self.next_missing.into_iter().chain(self.due()).min()
    }

    /// When what changed comes into force.
    fn due(&self) -> Option<Instant> {
        let changed = self.changed?;
        let earliest = self.last_in_force.map(|at| at + self.settings.merge_window);
        Some(earliest.map_or(changed, |earliest| earliest.max(changed)))
    }

    fn set(&self) -> I::Set {
        let known = self.known.values();
        let known = known.map(|known| (&known.item, known.missing_until.is_some()));
        I::set(known, &self.settings)
    }

    /// The set in force.
    pub fn in_force(&self) -> &I::Set {
        &self.in_force
    }

    /// All that are known, in force or soon to be.
    pub fn known(&self) -> impl Iterator<Item = &I> {
        self.known.values().map(|known| &known.item)
    }

    pub fn knows(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    pub fn state(&self, at: Instant) -> State {
        let silent = at.saturating_duration_since(self.last_word) >= self.settings.stale_after;
        // A watch that nobody asks to repeat itself may be silent because nothing happens.
        let silence_tells = self.failing || !self.answered || !self.settings.resync.is_zero();
        match (self.answered, self.failing) {
            _ if silent && silence_tells => State::Stale,
            (false, true) if !self.known.is_empty() => State::Stale,
            (_, true) => State::Failing,
            (false, false) => State::Starting,
            (true, false) => State::Synced,
        }
    }

    /// Milliseconds since 1970; also of an earlier life.
    pub fn last_success_ms(&self) -> Option<u64> {
        self.last_success_ms
    }

    /// The last failure, whether or not it is over, and when, in milliseconds since 1970.
    pub fn last_failure(&self) -> Option<&(Failure, u64)> {
        self.last_failure.as_ref()
    }

    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Neither an answer of this life nor one of an earlier life is known.
    pub fn is_blank(&self) -> bool {
        let has_any = !self.known.is_empty() || self.in_force != I::Set::default();
        !self.answered && !has_any && self.last_success_ms.is_none()
    }

    /// What the last answer holds of which nothing can be made.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// How many are missing in the last answer and still held.
    pub fn held(&self) -> usize {
        self.missing().count()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

type Sound<I> = (HashMap<String, I>, Vec<String>);

/// Those of which something can be made, by id, and what is wrong with the others.
fn sift<I: Item>(snapshot: Snapshot<I>) -> Result<Sound<I>, Failure> {
    let Snapshot {
        instances: items,
        left_out: mut notes,
        decided: _,
    } = snapshot;
    let (count, words) = (items.len(), I::PLURAL);
    if count > MAX_INSTANCES {
        return Err(Failure::new(
            Class::Malformed,
            format!("an answer with {count} {words}, at most {MAX_INSTANCES} are taken"),
        ));
    }
    let mut sound = HashMap::with_capacity(count);
    for item in items {
        match item.admissible() {
            Ok(item) => {
                sound.entry(item.id().to_owned()).or_insert(item);
            }
            Err(fault) => notes.push(fault),
        }
    }
    if sound.is_empty() && count > 0 {
        let first = notes.last().cloned().unwrap_or_default();
        return Err(Failure::new(
            Class::Malformed,
            format!("none of its {count} {words} can be {}; {first}", I::PURPOSE),
        ));
    }
    Ok((sound, brief(notes)))
}

/// Each note once, on a line of its own, and not all of many nor of a long one.
fn brief(notes: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let notes = notes.into_iter().map(|note| one_line(note, MAX_NOTE));
    let mut notes: Vec<String> = notes.filter(|note| seen.insert(note.clone())).collect();
    let more = notes.len().saturating_sub(MAX_NOTES);
    notes.truncate(MAX_NOTES);
    if more > 0 {
        notes.push(format!("and {more} more"));
    }
    notes
}

#[cfg(test)]
mod tests;
