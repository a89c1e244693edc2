//! Both sides, step by step.

use std::fmt;

use anyhow::Result;
use lb_common::abi::{Drop, map};

use super::super::{Action, Outcome, Runner as _, Side, kernel::Hook, laws, slice::Slice};
use super::{
    Report,
    alone::is_handled,
    clock::{self, HZ, STEP, STEPS},
    event::Event,
    twin::{ROOM, State, Twin},
};

/// How the two sides differ, or why one could not be asked.
#[derive(Debug)]
pub(super) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

pub(super) struct Pair {
    slice: Slice,
    twin: Twin,
    hook: Hook,
    /// What the byte slice did with the last packet.
    last: Option<Outcome>,
    /// Of this sequence.
    packets: u64,
    handled: u64,
    /// What the byte slice counted since the sequence began, and the programs ever before.
    drops: [u64; Drop::SLOTS as usize],
    before: Vec<u64>,
    steps: u32,
}

impl Pair {
    pub(super) fn new(hook: Hook, cpu: usize) -> Result<Self> {
        let mut twin = Twin::new(hook, cpu)?;
        let slice = Slice::twin(twin.devices(), ROOM as usize, hook == Hook::Tc);
        Ok(Self {
            slice,
            before: twin.drops()?,
            twin,
            hook,
            last: None,
            packets: 0,
            handled: 0,
            drops: [0; Drop::SLOTS as usize],
            steps: 0,
        })
    }

    pub(super) fn slice(&self) -> &Slice {
        &self.slice
    }

    pub(super) fn last(&self) -> Option<&Outcome> {
        self.last.as_ref()
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        report.packets += self.packets;
        report.handled += self.handled;
        report.drops.resize(self.drops.len(), 0);
        for (sum, drops) in report.drops.iter_mut().zip(self.drops) {
            *sum += drops;
        }
    }

    pub(super) fn reset(&mut self) -> Result<()> {
        self.twin.reset()?;
        self.slice.reset();
        self.slice.set_hz(HZ);
        self.before = self.twin.drops()?;
        self.last = None;
        (self.packets, self.handled, self.steps) = (0, 0, 0);
        self.drops = [0; Drop::SLOTS as usize];
        Ok(())
    }

    /// Has an event happen to both sides.
    pub(super) fn play(&mut self, event: &Event) -> Result<(), Fault> {
        if *event == Event::Second {
            self.steps += 1;
            // The clock would go round.
            if self.steps > STEPS {
                return Ok(());
            }
        }
        self.twin.apply(event)?;
        let slice = &mut self.slice;
        self.last = None;
        match event {
            Event::Packet {
                side,
                bytes,
                summed,
            } => self.send(*side, bytes, *summed)?,
            Event::Second => slice.wait(STEP),
            other => other.happen(slice),
        }
        Ok(())
    }

    fn send(&mut self, side: Side, bytes: &[u8], summed: bool) -> Result<(), Fault> {
        if !self.twin.takes(side, bytes) {
            return Ok(());
        }
        let wanted = self.slice.take(side, bytes);
        // The kernel compares what it cut, and what it let another packet lie in, with the
        // checksum of the whole.
        let is_cut = wanted.packet.len() != bytes.len() || wanted.action == Action::Transmit;
        let summed = summed && !is_cut && wanted.action != Action::Drop;
        let done = self.twin.take(side, bytes, summed)?;
        self.packets += 1;
        let by_tc = self.hook == Hook::Tc || side == Side::Node;
        let action = match wanted.action {
            Action::Transmit | Action::Redirect | Action::Resolve if by_tc => Action::Send,
            action => action,
        };
        self.handled += u64::from(is_handled(bytes, &wanted));
        laws::check(side, bytes, &wanted).map_err(Fault)?;
        for reason in &wanted.counted {
            self.drops[*reason as usize] += 1;
        }
        if done.action != action {
            return Err(Fault(format!(
                "the byte slice says {action:?} counting {:?}, the program {:?}",
                wanted.counted, done.action
            )));
        }
        if action != Action::Drop && done.packet != wanted.packet {
            return Err(Fault(format!(
                "{action:?}: the byte slice writes\n  {}\nthe program\n  {}",
                super::super::hex(&wanted.packet),
                super::super::hex(&done.packet)
            )));
        }
        if !wanted.counted.is_empty() {
            self.compare_drops()?;
        }
        self.last = Some(wanted);
        Ok(())
    }

    fn compare_drops(&mut self) -> Result<(), Fault> {
        let now = self.twin.drops()?;
        for reason in Drop::ALL {
            let number = reason as usize;
            let rose = now[number] - self.before[number];
            if rose != self.drops[number] {
                let wanted = self.drops[number];
                return Err(Fault(format!(
                    "{reason:?}: the byte slice counted {wanted}, the programs {rose}"
                )));
            }
        }
        Ok(())
    }

    /// Compares what the sequence left.
    pub(super) fn compare(&mut self) -> Result<(), Fault> {
        self.compare_drops()?;
        let (wanted, mut found) = (self.wanted(), self.twin.state()?);
        // Compared above.
        found.retain(|(name, _), _| *name != map::DROPS);
        for (place, value) in &wanted {
            match found.get(place) {
                Some(other) if other == value => {}
                other => return Err(differs(place, Some(value), other)),
            }
        }
        match found.iter().find(|(place, _)| !wanted.contains_key(place)) {
            Some((place, value)) => Err(differs(place, None, Some(value))),
            None => Ok(()),
        }
    }

    fn wanted(&self) -> State {
        let now = self.slice.now();
        let mut state = State::new();
        for (name, key, mut value) in self.slice.entries() {
            let is_array = matches!(
                name,
                map::ACTIVE | map::RATES | map::CURSORS | map::COUNTERS | clock::FULL
            );
            if is_array && value.iter().all(|byte| *byte == 0) {
                continue;
            }
            clock::normalise(name, &mut value, now);
            state.insert((name, key), value);
        }
        state
    }
}

fn differs(
    (name, key): &(&'static str, Vec<u8>),
    wanted: Option<&Vec<u8>>,
    found: Option<&Vec<u8>>,
) -> Fault {
    let shown = |value: Option<&Vec<u8>>| {
        value.map_or("nothing".to_owned(), |value| super::super::hex(value))
    };
    Fault(format!(
        "{name} {}: the byte slice has\n  {}\nthe kernel\n  {}",
        super::super::hex(key),
        shown(wanted),
        shown(found)
    ))
}
