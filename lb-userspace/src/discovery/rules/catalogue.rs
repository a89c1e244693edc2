//! Services and the backends of each, by the same rules: a machine for the services, and one for
//! the instances of each.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Instant,
};

use super::{Counts, Machine, Now, Report, Restored, State, brief};
use crate::{
    discovery::{
        Catalogue, Failure, FoundService, Instance, Offer, Services, ServicesSpec, Set, Snapshot,
        SourceName,
    },
    model::ServiceSpec,
};

/// One source of services.
#[derive(Clone, Debug)]
pub struct CatalogueMachine {
    name: SourceName,
    defaults: ServiceSpec,
    offers: Machine<Arc<Offer>>,
    /// By service.
    backends: BTreeMap<String, Backends>,
    in_force: Services,
    /// What is in force may not be by the keys there are now.
    other_keys: bool,
    updates: u64,
}

#[derive(Clone, Debug)]
struct Backends {
    machine: Machine,
    /// What it was told last, unless a failure came between.
    told: Option<Arc<Snapshot>>,
}

impl CatalogueMachine {
    /// Puts what was restored in force.
    pub fn new(name: SourceName, spec: &ServicesSpec, restored: Restored, now: Now) -> Self {
        let last = restored.last_success_ms;
        let settings = &spec.settings;
        let machine = |instances| Machine::new(settings.clone(), instances, last, now);
        let (offers, backends): (Vec<_>, BTreeMap<_, _>) = restored
            .services
            .into_iter()
            .map(|(offer, instances)| {
                let backends = Backends {
                    machine: machine(instances),
                    told: None,
                };
                (Arc::new(offer.clone()), (offer.name, backends))
            })
            .unzip();
        let mut machine = Self {
            name,
            defaults: spec.defaults.clone(),
            offers: Machine::new(settings.clone(), offers, last, now),
            backends,
            in_force: Services::default(),
            other_keys: false,
            updates: 0,
        };
        machine.in_force = machine.services();
        machine
    }

    /// Takes other keys in place of these. Holds that run keep their ends.
    pub fn set_spec(&mut self, spec: &ServicesSpec, now: Now) {
        self.offers.set_settings(spec.settings.clone(), now);
        for backends in self.backends.values_mut() {
            backends.machine.set_settings(spec.settings.clone(), now);
        }
        self.defaults = spec.defaults.clone();
        self.other_keys = true;
    }

    pub fn report(&mut self, report: Report<Catalogue>, now: Now) {
        let (services, backends) = match report {
            Report::Snapshot(Catalogue { services, backends }) => (services, backends),
            Report::Failure(failure) => return self.fail(&failure, now),
        };
        self.offers.report(Report::Snapshot(services), now);
        if self.offers.is_failing() {
            // It was no answer after all.
            if let Some((failure, _)) = self.offers.last_failure().cloned() {
                self.fail_backends(&failure, now);
            }
            return;
        }
        for (service, snapshot) in backends {
            if self.offers.knows(&service) {
                self.tell(service, snapshot, now);
            }
        }
    }

    fn fail(&mut self, failure: &Failure, now: Now) {
        self.offers.report(Report::Failure(failure.clone()), now);
        self.fail_backends(failure, now);
    }

    fn fail_backends(&mut self, failure: &Failure, now: Now) {
        for backends in self.backends.values_mut() {
            backends.told = None;
            let failure = Report::Failure(failure.clone());
            backends.machine.report(failure, now);
        }
    }

    fn tell(&mut self, service: String, snapshot: Arc<Snapshot>, now: Now) {
        let backends = match self.backends.entry(service) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Backends {
                machine: Machine::new(self.offers.settings().clone(), Vec::new(), None, now),
                told: None,
            }),
        };
        let told = backends.told.as_ref();
        if told.is_some_and(|told| Arc::ptr_eq(told, &snapshot)) {
            return;
        }
        let report = Report::Snapshot(Snapshot::clone(&snapshot));
        backends.machine.report(report, now);
        backends.told = Some(snapshot);
    }

    /// Lets time pass. True if other services, or other backends, came into force.
    pub fn advance(&mut self, now: Now) -> bool {
        let mut changed = self.offers.advance(now);
        if std::mem::take(&mut self.other_keys) || changed {
            let services = self.services();
            if services != self.in_force {
                self.in_force = services;
                changed = true;
            }
        }
        let offers = &self.offers;
        self.backends.retain(|service, _| offers.knows(service));
        for backends in self.backends.values_mut() {
            changed |= backends.machine.advance(now);
        }
        self.updates += u64::from(changed);
        changed
    }

    /// When [`Self::advance`] has something to do, at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        let backends = self.backends.values();
        let backends = backends.filter_map(|backends| backends.machine.wake_at());
        backends.chain(self.offers.wake_at()).min()
    }

    fn services(&self) -> Services {
        let offers = self.offers.in_force().iter();
        let found = offers.map(|offer| FoundService {
            spec: offer.serve(&self.defaults),
            backends: self.set_name(&offer.name),
        });
        Arc::new(found.collect())
    }

    fn set_name(&self, service: &str) -> SourceName {
        SourceName {
            service: service.to_owned(),
            ..self.name.clone()
        }
    }

    /// The services in force.
    pub fn in_force(&self) -> &Services {
        &self.in_force
    }

    /// The backends in force, of every service.
    pub fn sets(&self) -> impl Iterator<Item = (SourceName, Set)> {
        self.backends.iter().map(|(service, backends)| {
            let set = backends.machine.in_force().clone();
            (self.set_name(service), set)
        })
    }

    pub fn to_save(&self) -> Restored {
        let services = self.offers.known().map(|offer| {
            let backends = self.backends.get(&offer.name);
            let known = backends.map(|b| b.machine.known().cloned().collect::<Vec<Instance>>());
            (Offer::clone(offer), known.unwrap_or_default())
        });
        Restored {
            services: services.collect(),
            last_success_ms: self.offers.last_success_ms(),
            ..Restored::default()
        }
    }

    pub fn is_blank(&self) -> bool {
        self.offers.is_blank()
    }

    pub fn state(&self, at: Instant) -> State {
        self.offers.state(at)
    }

    pub fn last_success_ms(&self) -> Option<u64> {
        self.offers.last_success_ms()
    }

    pub fn last_failure(&self) -> Option<&(Failure, u64)> {
        self.offers.last_failure()
    }

    pub fn is_failing(&self) -> bool {
        self.offers.is_failing()
    }

    /// What the last answer holds of which nothing can be made, be it a service or a backend.
    pub fn left_out(&self) -> Vec<String> {
        let mut notes = self.offers.left_out().to_vec();
        for (service, Backends { machine, .. }) in &self.backends {
            notes.extend(machine.left_out().iter().cloned());
            // Its own answer was no answer, while that about services was one.
            if let (false, true, Some((failure, _))) = (
                self.is_failing(),
                machine.is_failing(),
                machine.last_failure(),
            ) {
                notes.push(format!("backends of {service}: {failure}"));
            }
        }
        brief(notes)
    }

    /// Services and instances that are missing in the last answer and still held.
    pub fn held(&self) -> usize {
        let backends = self.backends.values();
        let backends: usize = backends.map(|b| b.machine.held()).sum();
        self.offers.held() + backends
    }

    /// Instances in force, of all services.
    pub fn instances(&self) -> usize {
        let backends = self.backends.values();
        backends.map(|b| b.machine.in_force().len()).sum()
    }

    pub fn counts(&self) -> Counts {
        Counts {
            updates: self.updates,
            ..self.offers.counts().clone()
        }
    }
}

#[cfg(test)]
mod tests;
