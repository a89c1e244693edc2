//! Connections counted in slots that no longer belong to a backend, so that the totals of a
//! service never go down. Pure.

use std::collections::{HashMap, HashSet};

/// A slot in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Life {
    pub slot: u32,
    pub generation: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Service → connections of slots that were freed.
    ended: HashMap<String, u64>,
    /// Slots without a backend that still have flows. A backend that comes back may get its
    /// slot again, counters and all.
    retired: HashMap<Life, (String, u64)>,
}

impl Totals {
    /// A slot lost its backend, with so many connections counted.
    pub(super) fn retire(&mut self, life: Life, service: &str, connections: u64) {
        self.retired.insert(life, (service.to_owned(), connections));
    }

    /// Takes in what the kernel holds after a pass: `placed` slots have a backend, `installed`
    /// ones are not free; `services` exist.
    pub(super) fn settle(
        &mut self,
        placed: &HashSet<Life>,
        installed: &HashSet<Life>,
        services: &HashSet<&str>,
    ) {
        let Self { ended, retired } = self;
        retired.retain(|life, (service, connections)| {
            if placed.contains(life) {
                return false;
            }
            if !installed.contains(life) {
                *ended.entry(service.clone()).or_default() += *connections;
                return false;
            }
            services.contains(service.as_str())
        });
        ended.retain(|service, _| services.contains(service.as_str()));
    }

    /// Service → connections to add to those of its backends' slots.
    pub(super) fn by_service(&self) -> HashMap<String, u64> {
        let mut sums = self.ended.clone();
        for (service, connections) in self.retired.values() {
            *sums.entry(service.clone()).or_default() += connections;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life {
        slot: 3,
        generation: 1,
    };

    fn web(totals: &Totals) -> u64 {
        totals.by_service().get("web").copied().unwrap_or(0)
    }

    #[test]
    fn a_freed_slots_connections_stay() {
        let mut totals = Totals::default();
        totals.retire(LIFE, "web", 10);
        totals.settle(&[].into(), &[LIFE].into(), &["web"].into());
        assert_eq!(web(&totals), 10);
        totals.settle(&[].into(), &[].into(), &["web"].into());
        assert_eq!(web(&totals), 10);
        let second = Life {
            generation: 2,
            ..LIFE
        };
        totals.retire(second, "web", 5);
        totals.settle(&[].into(), &[].into(), &["web"].into());
        assert_eq!(web(&totals), 15);
    }

    #[test]
    fn a_slot_that_is_taken_up_again_counts_once() {
        let mut totals = Totals::default();
        totals.retire(LIFE, "web", 10);
        totals.settle(&[LIFE].into(), &[LIFE].into(), &["web"].into());
        assert_eq!(web(&totals), 0);
    }

    #[test]
    fn a_removed_service_is_forgotten() {
        let mut totals = Totals::default();
        totals.retire(LIFE, "web", 10);
        totals.settle(&[].into(), &[].into(), &[].into());
        assert_eq!(totals.by_service(), HashMap::new());
    }
}
