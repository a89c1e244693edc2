//! Events about overrides: set, removed, and the last connection of a drained backend gone. Pure.

use std::collections::{BTreeSet, HashMap};

use super::events::{Event, Reason};
use crate::{
    datapath::FlowScan,
    model::{BackendRef, Mode, Override, WeightOverride},
    plan::Placement,
    state::State,
    utc,
};

/// Backends that still have connections to lose, each with the number of the last scan begun
/// when it was drained: only later ones tell.
#[derive(Debug, Default)]
pub(super) struct Drains(HashMap<BackendRef, u64>);

impl Drains {
    pub(super) fn follow(&mut self, old: &State, new: &State, scans_begun: u64) {
        let drains = |state: &State, backend: &BackendRef| {
            let said = state.overrides.get(backend);
            said.is_some_and(|said| matches!(said.mode, Some(Mode::Drain | Mode::Maintenance)))
        };
        self.0.retain(|backend, _| drains(new, backend));
        for backend in new.overrides.keys() {
            if drains(new, backend) && !drains(old, backend) {
                self.0.insert(backend.clone(), scans_begun);
            }
        }
    }

    /// Backends whose last connection is gone by scan `number`.
    pub(super) fn ended(
        &mut self,
        number: u64,
        scan: &FlowScan,
        placement: &Placement,
    ) -> Vec<Event> {
        let mut ended = Vec::new();
        self.0.retain(|backend, since| {
            let slot = placement.slots.get(backend);
            let active = slot.and_then(|slot| scan.active.get(slot)).copied();
            let goes_on = number <= *since || active.unwrap_or(0) > 0;
            if !goes_on {
                ended.push(event(
                    Reason::Drained,
                    backend,
                    "no connection is left".to_owned(),
                ));
            }
            goes_on
        });
        ended
    }
}

pub(super) fn override_events(old: &State, new: &State) -> Vec<Event> {
    let none = Override::default();
    let backends: BTreeSet<&BackendRef> =
        old.overrides.keys().chain(new.overrides.keys()).collect();
    let mut events = Vec::new();
    for backend in backends {
        let said = |state: &'_ State| state.overrides.get(backend).unwrap_or(&none).clone();
        let (old, new) = (said(old), said(new));
        let set = Override {
            mode: new
                .mode
                .filter(|_| new.mode != old.mode || new.deadline_ms != old.deadline_ms),
            weight: new.weight.filter(|_| new.weight != old.weight),
            deadline_ms: new.deadline_ms,
        };
        if !set.is_empty() {
            events.push(event(Reason::OverrideSet, backend, words(&set).join(", ")));
        }
        let unset = Override {
            mode: old.mode.filter(|_| new.mode.is_none()),
            weight: old.weight.filter(|_| new.weight.is_none()),
            deadline_ms: old.deadline_ms,
        };
        if !unset.is_empty() {
            let words = words(&unset).join(", ");
            let again = match unset.weight {
                Some(_) => "; the weight is the configured one again",
                None => "",
            };
            events.push(event(
                Reason::OverrideUnset,
                backend,
                format!("no longer {words}{again}"),
            ));
        }
    }
    events
}

/// The deadline of a drain has passed, with `active` connections left.
pub(super) fn deadline_event(backend: &BackendRef, active: u64) -> Event {
    let left = match active {
        0 => "no connection is left".to_owned(),
        1 => "1 connection is reset".to_owned(),
        active => format!("{active} connections are reset"),
    };
    let message = format!("the time to drain is over: {left}");
    event(Reason::DrainDeadline, backend, message)
}

fn event(reason: Reason, backend: &BackendRef, message: String) -> Event {
    Event {
        reason,
        object: format!("backend/{backend}"),
        message,
    }
}

fn words(said: &Override) -> Vec<String> {
    let weight = said.weight.map(|weight| match weight {
        WeightOverride::Absolute(weight) => format!("weight {weight}"),
        WeightOverride::Percent(percent) => format!("weight {percent}%"),
    });
    let mode = said.mode.map(|mode| match mode {
        Mode::Drain => match said.deadline_ms {
            Some(at) => format!("drain until {}", utc::text(at)),
            None => "drain".to_owned(),
        },
        Mode::Maintenance => "maintenance".to_owned(),
        Mode::Ready => "ready".to_owned(),
    });
    mode.into_iter().chain(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mode: Option<Mode>) -> State {
        let backend = "web/10.0.0.1:80".parse().unwrap();
        let said = Override {
            mode,
            ..Override::default()
        };
        State {
            overrides: mode.map(|_| (backend, said)).into_iter().collect(),
            ..State::default()
        }
    }

    #[test]
    fn drained_once_a_later_scan_finds_nothing() {
        let mut drains = Drains::default();
        drains.follow(&state(None), &state(Some(Mode::Drain)), 5);
        let backend: BackendRef = "web/10.0.0.1:80".parse().unwrap();
        let placement = Placement {
            slots: [(backend, 3)].into(),
            ..Placement::default()
        };
        let busy = FlowScan {
            active: [(3, 1)].into(),
            ..FlowScan::default()
        };
        let idle = FlowScan::default();
        assert_eq!(
            drains.ended(5, &idle, &placement),
            [],
            "began before the drain"
        );
        assert_eq!(drains.ended(6, &busy, &placement), []);
        assert_eq!(drains.ended(7, &idle, &placement).len(), 1);
        assert_eq!(drains.ended(8, &idle, &placement), []);
    }

    #[test]
    fn a_drain_called_off_is_not_told_of() {
        let mut drains = Drains::default();
        drains.follow(&state(None), &state(Some(Mode::Drain)), 0);
        drains.follow(&state(Some(Mode::Drain)), &state(Some(Mode::Ready)), 0);
        assert_eq!(
            drains.ended(1, &FlowScan::default(), &Placement::default()),
            []
        );
    }

    #[test]
    fn overrides_set_changed_and_removed() {
        let told = |old, new| -> Vec<_> {
            override_events(&state(old), &state(new))
                .into_iter()
                .map(|event| (event.reason, event.message))
                .collect()
        };
        let (drain, ready) = (Some(Mode::Drain), Some(Mode::Ready));
        assert_eq!(
            told(None, drain),
            [(Reason::OverrideSet, "drain".to_owned())]
        );
        assert_eq!(
            told(drain, ready),
            [(Reason::OverrideSet, "ready".to_owned())]
        );
        assert_eq!(
            told(drain, None),
            [(Reason::OverrideUnset, "no longer drain".to_owned())]
        );
        assert_eq!(told(drain, drain), []);
    }

    #[test]
    fn what_is_left_of_an_override_is_not_told_again() {
        let state = |mode, weight| State {
            overrides: [(
                "web/10.0.0.1:80".parse().unwrap(),
                Override {
                    mode,
                    weight,
                    deadline_ms: None,
                },
            )]
            .into(),
            ..State::default()
        };
        let (drain, half) = (Some(Mode::Drain), Some(WeightOverride::Percent(50)));
        let told = |old: &State, new: &State| {
            let events = override_events(old, new).into_iter();
            events.map(|event| (event.reason, event.message)).collect()
        };
        let unset: Vec<_> = told(&state(drain, half), &state(drain, None));
        let message = "no longer weight 50%; the weight is the configured one again";
        assert_eq!(unset, [(Reason::OverrideUnset, message.to_owned())]);
        let set: Vec<_> = told(&state(drain, None), &state(drain, half));
        assert_eq!(set, [(Reason::OverrideSet, "weight 50%".to_owned())]);
    }
}
