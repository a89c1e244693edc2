//! The last events, for `lbctl get events`. Also where each is logged.

use std::{collections::VecDeque, sync::Arc};

use super::{
    diff::{Difference, Kind},
    world::Transition,
};
use crate::{api::types::EventItem, discovery::text::one_line, model::BackendState};

/// Events kept.
pub(super) const KEPT: usize = 1024;

/// Changes that sources bring to a service at once and that get an event each.
const TOLD_ONE_BY_ONE: usize = 20;

/// Most characters of an event's message, which may tell what a registry said.
const MAX_MESSAGE: usize = 2000;

/// What happened; the event's `reason` is the variant's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    ServiceAdded,
    ServiceChanged,
    ServiceRemoved,
    BackendAdded,
    BackendChanged,
    BackendRemoved,
    /// Of services, in the config file.
    SourceAdded,
    SourceChanged,
    SourceRemoved,
    /// Settings of `node` came into force.
    NodeChanged,
    /// Sources found, or miss, more backends than are told of one by one.
    Discovered,
    BackendHealthy,
    BackendUnhealthy,
    /// The last connection of a draining backend ended.
    Drained,
    /// The time to drain is over; what is left of the connections ends.
    DrainDeadline,
    OverrideSet,
    OverrideUnset,
    Reloaded,
    ReloadFailed,
    /// Somebody changed the kernel's side behind the daemon's back, and it was put right.
    Repaired,
    /// The kernel could not be brought to what is configured.
    ApplyFailed,
    /// It could again.
    ApplyRecovered,
}

impl Reason {
    const fn is_warning(self) -> bool {
        matches!(
            self,
            Self::BackendUnhealthy | Self::ReloadFailed | Self::Repaired | Self::ApplyFailed
        )
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    pub reason: Reason,
    /// `service/web`, `backend/web/10.0.0.1:80`, `node`.
    pub object: String,
    pub message: String,
}

impl Event {
    /// `None` if people see no change of state, or one that they asked for.
    pub(super) fn transition(transition: &Transition) -> Option<Self> {
        let Transition {
            backend,
            before,
            after,
        } = transition;
        if before.state == after.state {
            return None;
        }
        let reason = match after.state {
            BackendState::Healthy => Reason::BackendHealthy,
            BackendState::Unhealthy | BackendState::Ejected => Reason::BackendUnhealthy,
            BackendState::Unknown | BackendState::Draining | BackendState::Maintenance => {
                return None;
            }
        };
        let reasons = after.reasons.join(", ");
        Some(Self {
            reason,
            object: format!("backend/{backend}"),
            message: format!("{} → {}: {reasons}", before.state, after.state),
        })
    }

    pub(super) fn difference(difference: Difference) -> Self {
        let Difference {
            kind,
            object,
            detail,
        } = difference;
        let [added, changed, removed] = match object.split(' ').next() {
            Some("service") => [
                Reason::ServiceAdded,
                Reason::ServiceChanged,
                Reason::ServiceRemoved,
            ],
            Some("discovery") => [
                Reason::SourceAdded,
                Reason::SourceChanged,
                Reason::SourceRemoved,
            ],
            Some("node") => [Reason::NodeChanged; 3],
            _ => [
                Reason::BackendAdded,
                Reason::BackendChanged,
                Reason::BackendRemoved,
            ],
        };
        let (reason, message) = match kind {
            Kind::Added => (added, "added".to_owned()),
            Kind::Changed => (changed, detail),
            Kind::Removed => (removed, "removed".to_owned()),
        };
        Self {
            reason,
            object: object.replacen(' ', "/", 1),
            message,
        }
    }

    /// What sources brought to a service; many changes at once are told of in one.
    pub(super) fn discovered(service: &str, differences: Vec<Difference>) -> Vec<Self> {
        if differences.len() <= TOLD_ONE_BY_ONE {
            return differences.into_iter().map(Self::difference).collect();
        }
        let count = |kind| differences.iter().filter(|d| d.kind == kind).count();
        let (added, removed) = (count(Kind::Added), count(Kind::Removed));
        let changed = count(Kind::Changed);
        vec![Self {
            reason: Reason::Discovered,
            object: format!("service/{service}"),
            message: format!("backends: {added} added, {removed} removed, {changed} changed"),
        }]
    }

    /// About the daemon or its node.
    pub(super) fn node(reason: Reason, message: String) -> Self {
        Self {
            reason,
            object: "node".to_owned(),
            message,
        }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Events {
    ring: VecDeque<Arc<EventItem>>,
    last_id: u64,
}

impl Events {
    /// `time_ms` is milliseconds since 1970.
    pub(super) fn push(&mut self, event: Event, time_ms: u64) {
        let Event {
            reason,
            object,
            message,
        } = event;
        let message = one_line(message, MAX_MESSAGE);
        let severity = if reason.is_warning() {
            tracing::warn!(object, "{reason:?}: {message}");
            "Warning"
        } else {
            tracing::info!(object, "{reason:?}: {message}");
            "Normal"
        };
        self.last_id += 1;
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(Arc::new(EventItem {
            id: self.last_id,
            time_ms,
            severity: severity.to_owned(),
            reason: format!("{reason:?}"),
            object,
            message,
        }));
    }

    /// Oldest first.
    pub(super) fn all(&self) -> Vec<Arc<EventItem>> {
        self.ring.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_and_numbers_all() {
        let mut events = Events::default();
        for number in 0..KEPT as u64 + 10 {
            events.push(Event::node(Reason::Repaired, number.to_string()), number);
        }
        let all = events.all();
        assert_eq!(all.len(), KEPT);
        assert_eq!((all[0].id, all[0].message.as_str()), (11, "10"));
        assert_eq!(all[0].severity, "Warning");
        assert_eq!(all[0].reason, "Repaired");
        assert_eq!(all[KEPT - 1].id, KEPT as u64 + 10);
    }

    #[test]
    fn a_message_has_an_end() {
        let mut events = Events::default();
        let said = "of a registry\n".repeat(1000);
        events.push(Event::node(Reason::Repaired, said), 1);
        let kept = &events.all()[0].message;
        assert!(kept.ends_with('…') && !kept.contains('\n'), "{kept}");
        assert!(kept.len() < 20_000, "{}", kept.len());
    }
}
