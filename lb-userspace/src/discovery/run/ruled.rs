//! The machine of a source, whatever it finds.

use std::time::Instant;

use super::Asked;
use crate::discovery::{
    Catalogue, Discovered, Failure, Instance, Report, SourceName,
    rules::{Counts, Machine, Now, Restored, State, catalogue::CatalogueMachine},
};

pub(super) enum AnyReport {
    Backends(Report),
    Services(Report<Catalogue>),
}

pub(super) enum Ruled {
    Backends(Box<Machine<Instance>>),
    Services(Box<CatalogueMachine>),
}

/// Asks whichever machine it is.
macro_rules! either {
    ($ruled:expr, $machine:ident => $answer:expr) => {
        match $ruled {
            Ruled::Backends($machine) => $answer,
            Ruled::Services($machine) => $answer,
        }
    };
}

impl Ruled {
    pub(super) fn new(name: &SourceName, asked: &Asked, restored: Restored, now: Now) -> Self {
        let last = restored.last_success_ms;
        match asked {
            Asked::Backends(spec) => {
                let settings = spec.settings.clone();
                let machine = Machine::new(settings, restored.instances, last, now);
                Self::Backends(Box::new(machine))
            }
            Asked::Services(spec) => {
                let machine = CatalogueMachine::new(name.clone(), spec, restored, now);
                Self::Services(Box::new(machine))
            }
        }
    }

    /// One in its place that asks for something else, if it is of the kind that has any.
    pub(super) fn heir(&self, asked: &Asked, now: Now) -> Option<Self> {
        match (self, asked) {
            (Self::Backends(machine), Asked::Backends(spec)) => {
                let heir = machine.heir(spec.settings.clone(), now);
                Some(Self::Backends(Box::new(heir)))
            }
            _ => None,
        }
    }

    /// Takes other keys in place of those it has. A name says what is found, so it stays what it is.
    pub(super) fn set(&mut self, asked: &Asked, now: Now) {
        match (self, asked) {
            (Self::Backends(machine), Asked::Backends(spec)) => {
                machine.set_settings(spec.settings.clone(), now);
            }
            (Self::Services(machine), Asked::Services(spec)) => machine.set_spec(spec, now),
            _ => {}
        }
    }

    pub(super) fn report(&mut self, report: AnyReport, now: Now) {
        match (self, report) {
            (Self::Backends(machine), AnyReport::Backends(report)) => machine.report(report, now),
            (Self::Services(machine), AnyReport::Services(report)) => machine.report(report, now),
            _ => {}
        }
    }

    pub(super) fn advance(&mut self, now: Now) -> bool {
        either!(self, machine => machine.advance(now))
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        either!(self, machine => machine.wake_at())
    }

    /// Adds what is in force.
    pub(super) fn gather(&self, name: &SourceName, found: &mut Discovered) {
        match self {
            Self::Backends(machine) => {
                found.sets.insert(name.clone(), machine.in_force().clone());
            }
            Self::Services(machine) => {
                found.sets.extend(machine.sets());
                let services = machine.in_force().clone();
                found.services.insert(name.clone(), services);
            }
        }
    }

    pub(super) fn to_save(&self) -> Restored {
        match self {
            Self::Backends(machine) => Restored {
                instances: machine.known().cloned().collect(),
                last_success_ms: machine.last_success_ms(),
                ..Restored::default()
            },
            Self::Services(machine) => machine.to_save(),
        }
    }

    pub(super) fn state(&self, at: Instant) -> State {
        either!(self, machine => machine.state(at))
    }

    pub(super) fn last_success_ms(&self) -> Option<u64> {
        either!(self, machine => machine.last_success_ms())
    }

    pub(super) fn last_failure(&self) -> Option<&(Failure, u64)> {
        either!(self, machine => machine.last_failure())
    }

    pub(super) fn is_blank(&self) -> bool {
        either!(self, machine => machine.is_blank())
    }

    pub(super) fn is_failing(&self) -> bool {
        either!(self, machine => machine.is_failing())
    }

    pub(super) fn left_out(&self) -> Vec<String> {
        match self {
            Self::Backends(machine) => machine.left_out().to_vec(),
            Self::Services(machine) => machine.left_out(),
        }
    }

    pub(super) fn held(&self) -> usize {
        either!(self, machine => machine.held())
    }

    pub(super) fn counts(&self) -> Counts {
        match self {
            Self::Backends(machine) => machine.counts().clone(),
            Self::Services(machine) => machine.counts(),
        }
    }

    /// Instances in force.
    pub(super) fn instances(&self) -> usize {
        match self {
            Self::Backends(machine) => machine.in_force().len(),
            Self::Services(machine) => machine.instances(),
        }
    }

    /// Services in force, of one that finds services.
    pub(super) fn services(&self) -> Option<usize> {
        match self {
            Self::Backends(_) => None,
            Self::Services(machine) => Some(machine.in_force().len()),
        }
    }
}
