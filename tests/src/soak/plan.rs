//! What goes wrong when, from a seed: the same seed gives the same plan.

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Backends of a scene.
pub(super) const BACKENDS: usize = 4;

/// How many of them may be without traffic at once.
const AWAY: usize = 2;

/// Before the first fault, and after the last one: what is seen then must be in order.
pub(super) const QUIET: Duration = Duration::from_secs(4);

/// Between two faults of one backend, so that it is back at work.
const BETWEEN: Duration = Duration::from_secs(4);

/// The longest fault, in milliseconds. Clients wait longer than that, with TCP.
const LONGEST: u64 = 5000;

/// What becomes of a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Trouble {
    /// SIGKILL, and a new one in the end.
    Killed,
    /// SIGSTOP.
    Paused,
    /// Nothing passes its port of the switch.
    CutOff,
    /// It runs a third of the time.
    Slow,
    /// It accepts and resets.
    Resets,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    /// Of the server of a backend, from 1.
    Server(usize, Trouble),
    /// The node's cable to the backends loses its carrier.
    Link,
    /// `lbctl drain`, with a deadline after so many milliseconds or without one.
    Drained(usize, Option<u64>),
    /// The backend leaves config and registry, and comes back.
    Removed(usize),
    /// Weights 1 to 9 from a number.
    Weights(u64),
    Policy(&'static str),
    /// The file with instances holds nonsense.
    RegistryBroken,
    /// The file with instances is not there.
    RegistryGone,
    DaemonKilled,
    DaemonStopped,
}

/// A fault, from `at` for as long as it `lasts`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    pub(super) fault: Fault,
}

impl Event {
    fn end(&self) -> Duration {
        self.at + self.lasts
    }

    fn meets(&self, other: &Self, gap: Duration) -> bool {
        self.at < other.end() + gap && other.at < self.end() + gap
    }
}

impl Fault {
    /// The backend that is to get no new connections meanwhile, or should not.
    fn away(&self) -> Option<usize> {
        match *self {
            Self::Server(i, _) | Self::Drained(i, _) | Self::Removed(i) => Some(i),
            _ => None,
        }
    }

    /// Faults of one kind do not overlap.
    fn excludes(&self, other: &Self) -> bool {
        match (self.away(), other.away()) {
            (Some(a), Some(b)) => a == b,
            (Some(_), None) | (None, Some(_)) => false,
            (None, None) => self.group() == other.group(),
        }
    }

    fn group(&self) -> u8 {
        match self {
            Self::Server(..) | Self::Drained(..) | Self::Removed(_) => 0,
            Self::Link => 1,
            Self::Weights(_) | Self::Policy(_) => 2,
            Self::RegistryBroken | Self::RegistryGone => 3,
            Self::DaemonKilled | Self::DaemonStopped => 4,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(i, Trouble::Killed) => write!(f, "b{i} killed"),
            Self::Server(i, Trouble::Paused) => write!(f, "b{i} paused"),
            Self::Server(i, Trouble::CutOff) => write!(f, "b{i} cut off"),
            Self::Server(i, Trouble::Slow) => write!(f, "b{i} slow"),
            Self::Server(i, Trouble::Resets) => write!(f, "b{i} resets connections"),
            Self::Link => f.write_str("link down"),
            Self::Drained(i, None) => write!(f, "b{i} drained"),
            Self::Drained(i, Some(ms)) => write!(f, "b{i} drained within {ms} ms"),
            Self::Removed(i) => write!(f, "b{i} removed"),
            Self::Weights(_) => f.write_str("weights changed"),
            Self::Policy(policy) => write!(f, "policy {policy}"),
            Self::RegistryBroken => f.write_str("registry broken"),
            Self::RegistryGone => f.write_str("registry gone"),
            Self::DaemonKilled => f.write_str("lbd killed"),
            Self::DaemonStopped => f.write_str("lbd stopped"),
        }
    }
}

/// Faults of a scene for a run of this length, by the time they begin.
pub(super) fn plan(seed: u64, length: Duration) -> Vec<Event> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut events: Vec<Event> = Vec::new();
    let mut at = QUIET;
    loop {
        at += Duration::from_millis(random.random_range(200..2500));
        let event = Event {
            at,
            lasts: Duration::from_millis(random.random_range(500..LONGEST)),
            fault: draw(&mut random),
        };
        if event.end() + QUIET > length {
            if at + QUIET > length {
                return events;
            }
            continue;
        }
        if fits(&events, &event) {
            events.push(event);
        }
    }
}

fn draw(random: &mut StdRng) -> Fault {
    let backend = random.random_range(1..=BACKENDS);
    match random.random_range(0..24) {
        0..3 => Fault::Server(backend, Trouble::Killed),
        3..5 => Fault::Server(backend, Trouble::Paused),
        5..8 => Fault::Server(backend, Trouble::CutOff),
        8..10 => Fault::Server(backend, Trouble::Slow),
        10..12 => Fault::Server(backend, Trouble::Resets),
        12 => Fault::Link,
        13 => Fault::Drained(backend, None),
        14 => Fault::Drained(backend, Some(random.random_range(200..1500))),
        15 => Fault::Removed(backend),
        16 | 17 => Fault::Weights(random.random()),
        18 => {
            let policies = ["maglev", "round-robin", "random"];
            Fault::Policy(policies[random.random_range(0..policies.len())])
        }
        19 => Fault::RegistryBroken,
        20 => Fault::RegistryGone,
        21 | 22 => Fault::DaemonKilled,
        _ => Fault::DaemonStopped,
    }
}

/// Whether what remains is enough to serve everybody.
fn fits(events: &[Event], event: &Event) -> bool {
    let mut near = events.iter().filter(|other| other.meets(event, BETWEEN));
    if near.any(|other| other.fault.excludes(&event.fault)) {
        return false;
    }
    let near = events.iter().filter(|other| other.meets(event, BETWEEN));
    event.fault.away().is_none() || near.filter(|other| other.fault.away().is_some()).count() < AWAY
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(600);

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        assert_eq!(plan(7, LENGTH), plan(7, LENGTH));
        assert_ne!(plan(7, LENGTH), plan(8, LENGTH));
    }

    #[test]
    fn ten_minutes_hold_every_fault_and_leave_two_backends() {
        for seed in 0..20 {
            let events = plan(seed, LENGTH);
            // Every kind by its words, without the backend's number.
            let kind = |event: &Event| {
                let text = event.fault.to_string();
                let words = text.trim_start_matches(|c: char| c == 'b' || c.is_ascii_digit());
                words.split(" within").next().unwrap_or_default().to_owned()
            };
            let kinds: std::collections::BTreeSet<_> = events.iter().map(kind).collect();
            assert!(kinds.len() >= 14, "seed {seed}: {kinds:?}");
            for event in &events {
                assert!(event.at >= QUIET && event.end() + QUIET <= LENGTH);
                let away = events.iter().filter(|other| {
                    other.fault.away().is_some() && other.at <= event.at && event.at < other.end()
                });
                assert!(away.count() <= AWAY, "seed {seed}: {event:?}");
            }
        }
    }
}
