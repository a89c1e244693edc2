//! Events about overrides: set, removed, and the last connection of a drained backend gone. Pure.

use std::collections::HashMap;

use super::events::{Event, Reason};
use crate::{
    datapath::FlowScan,
    model::{BackendRef, Mode, Override, WeightOverride},
    plan::Placement,
    state::State,
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
    let set = new
        .overrides
        .iter()
        .filter(|(backend, said)| old.overrides.get(backend) != Some(said))
        .map(|(backend, said)| event(Reason::OverrideSet, backend, words(said)));
    let unset = old
        .overrides
        .iter()
        .filter(|(backend, _)| !new.overrides.contains_key(backend))
        .map(|(backend, said)| event(Reason::OverrideUnset, backend, words(said)));
    set.chain(unset).collect()
}

fn event(reason: Reason, backend: &BackendRef, message: String) -> Event {
    Event {
        reason,
        object: format!("backend/{backend}"),
        message,
    }
}

fn words(said: &Override) -> String {
    let weight = said.weight.map(|weight| match weight {
        WeightOverride::Absolute(weight) => format!("weight {weight}"),
        WeightOverride::Percent(percent) => format!("weight {percent}%"),
    });
    let mode = said.mode.map(|mode| match mode {
        Mode::Drain => "drain".to_owned(),
        Mode::Maintenance => "maintenance".to_owned(),
        Mode::Ready => "ready".to_owned(),
    });
    let words: Vec<String> = mode.into_iter().chain(weight).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mode: Option<Mode>) -> State {
        let backend = "web/10.0.0.1:80".parse().unwrap();
        let said = Override { mode, weight: None };
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
            [(Reason::OverrideUnset, "drain".to_owned())]
        );
        assert_eq!(told(drain, drain), []);
    }
}
