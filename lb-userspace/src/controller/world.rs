//! The three layers of truth, never mixed (configured, override, observed), and what the kernel
//! should hold because of them. No I/O: routes and verdicts come in as arguments.

mod discover;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

pub(super) use self::discover::Rediscovered;
use super::{
    effective::{self, Effective, Facts, Via},
    merge::{self, Merged},
    orphans,
};
use crate::{
    datapath::{Listen, Route},
    discovery::{Discovered, SourceName},
    health::{Report, Target, Verdict},
    model::{
        BackendRef, BackendSpec, Config, Forwarding, HealthCheck, Mode, Override, ServiceSpec, Snat,
    },
    plan::{Desired, DesiredService},
    state::State,
};

/// What people said, in the config file and by `lbctl`, and what sources found on their behalf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layers {
    pub file: Arc<Config>,
    pub state: State,
    pub found: Arc<Discovered>,
}

impl Layers {
    /// No service or backend differs, at most overrides do. May say no where the answer is yes:
    /// two readings of a config file are not compared.
    pub(super) fn differs_in_overrides_only(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
            && self.state.services == other.state.services
            && self.state.backends == other.state.backends
            && self.found == other.found
    }
}

/// One service in force and what is observed of its backends. Cheap to share with readers.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub merged: Arc<Merged>,
    /// One per backend of the spec, in its order.
    pub observed: Vec<Observed>,
}

/// What is known of one backend beyond its spec.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub said: Override,
    /// The deadline of its drain has passed.
    pub overdue: bool,
    pub verdict: Verdict,
    pub via: Via,
    /// Probes by result.
    pub probes: BTreeMap<&'static str, u64>,
}

impl Observed {
    /// The deadline of its drain, if that is over.
    fn ended(&self) -> Option<u64> {
        self.said.deadline_ms.filter(|_| self.overdue)
    }
}

/// A backend of which the kernel must hear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Transition {
    pub backend: BackendRef,
    pub before: Effective,
    pub after: Effective,
}

/// Services that may not be in the kernel as they are desired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    /// Any, and others may be there that are not desired.
    All,
    /// By their place; all others are as they were when the kernel was last brought up to date,
    /// and none of these got or lost a backend.
    Some(BTreeSet<usize>),
}

/// What other layers brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Relayered {
    /// Services or backends may have come, gone, or been configured otherwise.
    pub moved: bool,
    /// What is to be probed may be another.
    pub probes: bool,
}

pub(super) struct World {
    layers: Arc<Layers>,
    /// Of the merge, without those of overrides.
    merge_conflicts: Vec<String>,
    conflicts: Vec<String>,
    touched: Touched,
    services: Vec<Arc<Service>>,
    places: HashMap<String, usize>,
    routes: HashMap<IpAddr, Route>,
    desired: Desired,
    /// Where services listened before that nobody may know of yet.
    orphans: BTreeSet<Listen>,
    /// The wall-clock time that was told last, in milliseconds since 1970.
    clock_ms: u64,
}

impl Service {
    pub(super) fn name(&self) -> &str {
        &self.merged.spec.name
    }

    pub(super) fn reference(&self, backend: &BackendSpec) -> BackendRef {
        BackendRef {
            service: self.name().to_owned(),
            address: backend.address,
        }
    }

    /// Specs and observations side by side.
    pub(super) fn facts(&self) -> impl Iterator<Item = Facts<'_>> {
        (0..self.observed.len()).map(|place| self.fact(place))
    }

    fn fact(&self, place: usize) -> Facts<'_> {
        let observed = &self.observed[place];
        Facts {
            spec: &self.merged.spec.backends[place],
            health: &self.merged.spec.health,
            said: &observed.said,
            verdict: &observed.verdict,
            via: observed.via,
            overdue: observed.overdue,
            origin: self.merged.origins[place],
        }
    }

    fn desired(&self) -> DesiredService {
        let spec = &self.merged.spec;
        DesiredService {
            name: spec.name.clone(),
            listen: spec.listen.clone(),
            protocol: spec.protocol,
            forwarding: spec.forwarding,
            policy: spec.policy,
            no_backend: spec.no_backend,
            on_backend_down: spec.on_backend_down,
            sources: spec.admission.sources(),
            admission: spec.admission.clone(),
            backends: self.facts().map(effective::desired).collect(),
        }
    }
}

impl World {
    /// `inherited` holds the verdicts of a former daemon; `route` answers how the node reaches an
    /// address, `None` if that cannot be told.
    pub(super) fn new(
        layers: Layers,
        inherited: &HashMap<BackendRef, bool>,
        route: impl FnMut(IpAddr) -> Option<Route>,
    ) -> Self {
        let mut world = Self {
            layers: Arc::new(layers),
            merge_conflicts: Vec::new(),
            conflicts: Vec::new(),
            touched: Touched::All,
            services: Vec::new(),
            places: HashMap::new(),
            routes: HashMap::new(),
            desired: Desired::default(),
            orphans: BTreeSet::new(),
            clock_ms: 0,
        };
        world.rebuild(
            |backend, _| Former {
                healthy: inherited.get(backend).copied(),
                ..Former::default()
            },
            route,
        );
        world
    }

    /// Keeps what the kernel serves where nothing known listens, until every source of services was
    /// heard.
    pub(super) fn keep(&mut self, orphans: BTreeSet<Listen>) {
        self.orphans = orphans;
        self.keep_orphans();
    }

    /// How many places there are at which services of nobody are served.
    pub(super) fn kept(&self) -> usize {
        self.desired.kept.len()
    }

    /// One that was found once is no orphan any more, whatever becomes of it.
    fn keep_orphans(&mut self) {
        if !orphans::is_awaited(&self.layers) {
            self.orphans.clear();
        }
        for listen in self.desired.services.iter().flat_map(|s| s.listens()) {
            self.orphans.remove(&listen);
        }
        self.desired.kept = self.orphans.clone();
    }

    /// Puts other layers in place of these; what is observed of backends that stay is kept.
    pub(super) fn relayer(
        &mut self,
        layers: Layers,
        route: impl FnMut(IpAddr) -> Option<Route>,
    ) -> Relayered {
        let old = std::mem::replace(&mut self.layers, Arc::new(layers));
        if self.layers.differs_in_overrides_only(&old) {
            return Relayered {
                moved: false,
                probes: self.overrule(&old.state),
            };
        }
        let former = self.former();
        self.rebuild(
            |backend, said| match former.get(backend) {
                // Whatever was repaired must prove itself: the old verdict says nothing.
                Some(Former { mode, probes, .. })
                    if *mode == Some(Mode::Maintenance) && said.mode != *mode =>
                {
                    Former {
                        probes: probes.clone(),
                        ..Former::default()
                    }
                }
                Some(former) => former.clone(),
                None => Former::default(),
            },
            route,
        );
        Relayered {
            moved: true,
            probes: true,
        }
    }

    /// What is observed of all backends.
    fn former(&self) -> HashMap<BackendRef, Former> {
        let services = self.services.iter();
        let backends = services.flat_map(|service| {
            let observed = service.facts().zip(&service.observed);
            observed.map(|(facts, observed)| {
                (service.reference(facts.spec), Former::of(facts, observed))
            })
        });
        backends.collect()
    }

    /// Puts the layers' overrides in place of those of `old`. Says whether that starts or ends a
    /// maintenance, during which nothing is probed.
    fn overrule(&mut self, old: &State) -> bool {
        let layers = self.layers.clone();
        let (old, new) = (&old.overrides, &layers.state.overrides);
        let backends: BTreeSet<&BackendRef> = old.keys().chain(new.keys()).collect();
        let mut probes = false;
        for backend in backends {
            if old.get(backend) == new.get(backend) {
                continue;
            }
            let Some((at, place)) = self.find(backend) else {
                continue;
            };
            let observed = &mut Arc::make_mut(&mut self.services[at]).observed[place];
            let is_maintained = |said: &Override| said.mode == Some(Mode::Maintenance);
            let was_maintained = is_maintained(&observed.said);
            let ended = observed.ended();
            observed.said = new.get(backend).cloned().unwrap_or_default();
            observed.overdue = is_overdue(&observed.said, ended, self.clock_ms);
            if was_maintained != is_maintained(&observed.said) {
                probes = true;
                if was_maintained {
                    // Whatever was repaired must prove itself: the old verdict says nothing.
                    observed.verdict = Former::default().verdict();
                }
            }
            self.touch(at, place);
        }
        self.note_conflicts();
        probes
    }

    fn find(&self, backend: &BackendRef) -> Option<(usize, usize)> {
        let at = *self.places.get(&backend.service)?;
        let specs = &self.services[at].merged.spec.backends;
        let place = specs.iter().position(|s| s.address == backend.address)?;
        Some((at, place))
    }

    /// Has the kernel hear of a backend that is observed or overridden otherwise.
    fn touch(&mut self, at: usize, place: usize) {
        let fact = self.services[at].fact(place);
        self.desired.services[at].backends[place] = effective::desired(fact);
        if let Touched::Some(places) = &mut self.touched {
            places.insert(at);
        }
    }

    /// Takes in what time it is. Gives the backends whose deadline to drain has passed since. A drain
    /// that has ended stays so until something else is said of it.
    pub(super) fn pass_time(&mut self, now_ms: u64) -> Vec<BackendRef> {
        self.clock_ms = now_ms;
        let layers = self.layers.clone();
        let mut passed = Vec::new();
        for (backend, said) in &layers.state.overrides {
            if !is_overdue(said, None, self.clock_ms) {
                continue;
            }
            let Some((at, place)) = self.find(backend) else {
                continue;
            };
            if self.services[at].observed[place].overdue {
                continue;
            }
            Arc::make_mut(&mut self.services[at]).observed[place].overdue = true;
            self.touch(at, place);
            passed.push(backend.clone());
        }
        passed
    }

    /// The wall clock was set by so many milliseconds: moves all deadlines along, so that every drain
    /// has the time that it had. Says whether there are any.
    pub(super) fn shift_clock(&mut self, by_ms: i64) -> bool {
        let shifted = |ms: &mut u64| *ms = ms.saturating_add_signed(by_ms);
        shifted(&mut self.clock_ms);
        let drained = |(backend, said): (&BackendRef, &Override)| {
            said.deadline_ms.is_some().then(|| backend.clone())
        };
        let overrides = self.layers.state.overrides.iter();
        let backends: Vec<BackendRef> = overrides.filter_map(drained).collect();
        let layers = Arc::make_mut(&mut self.layers);
        for said in layers.state.overrides.values_mut() {
            said.deadline_ms.as_mut().map(shifted);
        }
        for backend in &backends {
            if let Some((at, place)) = self.find(backend) {
                let observed = &mut Arc::make_mut(&mut self.services[at]).observed[place];
                observed.said.deadline_ms.as_mut().map(shifted);
            }
        }
        !backends.is_empty()
    }

    /// The next deadline to come, in milliseconds since 1970.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let said = self.layers.state.overrides.values();
        let deadlines = said.filter_map(|said| said.deadline_ms);
        deadlines.filter(|at| *at > self.clock_ms).min()
    }

    /// Takes in one probe's result; `Some` if the verdict changed with it. Reports about
    /// backends that are gone or no longer probed are ignored.
    pub(super) fn observe(&mut self, report: Report) -> Option<Transition> {
        let Report {
            backend,
            verdict,
            changed: _,
            result,
            duration: _,
        } = report;
        let (at, place) = self.find(&backend)?;
        let service = &self.services[at];
        if service.observed[place].said.mode == Some(Mode::Maintenance) {
            return None;
        }
        let was = service.observed[place].verdict.healthy;
        let before = (was != verdict.healthy).then(|| effective::effective(service.fact(place)));

        let observed = &mut Arc::make_mut(&mut self.services[at]).observed[place];
        observed.verdict = verdict;
        *observed.probes.entry(result).or_default() += 1;

        let before = before?;
        self.touch(at, place);
        let after = effective::effective(self.services[at].fact(place));
        Some(Transition {
            backend,
            before,
            after,
        })
    }

    /// Takes in how the node reaches addresses now; those not in `routes` keep what was known.
    /// Gives the backends that are reached otherwise than before.
    pub(super) fn reroute(&mut self, routes: HashMap<IpAddr, Route>) -> Vec<Transition> {
        self.routes.extend(routes);
        let mut transitions = Vec::new();
        for at in 0..self.services.len() {
            for place in 0..self.services[at].observed.len() {
                let service = &mut self.services[at];
                let spec = &service.merged.spec;
                let address = spec.backends[place].address;
                let via =
                    effective::via(spec, address.ip(), self.routes.get(&address.ip()).copied());
                if via == service.observed[place].via {
                    continue;
                }
                let before = effective::effective(service.fact(place));
                Arc::make_mut(service).observed[place].via = via;
                let after = effective::effective(service.fact(place));
                let backend = service.reference(&service.merged.spec.backends[place]);
                self.touch(at, place);
                transitions.push(Transition {
                    backend,
                    before,
                    after,
                });
            }
        }
        transitions
    }

    pub(super) fn touched(&self) -> &Touched {
        &self.touched
    }

    /// The kernel holds what is desired.
    pub(super) fn settled(&mut self) {
        self.touched = Touched::Some(BTreeSet::new());
    }

    pub(super) fn layers(&self) -> &Arc<Layers> {
        &self.layers
    }

    pub(super) fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// What of the layers is out of force, and why, one sentence each.
    pub(super) fn conflicts(&self) -> &[String] {
        &self.conflicts
    }

    pub(super) fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Some backend has no route.
    pub(super) fn has_unreachable(&self) -> bool {
        let lost = |route: &Route| route.source.is_none() && !route.returns_here;
        self.routes.values().any(lost)
    }

    /// Addresses whose routes matter.
    pub(super) fn routed(&self) -> HashSet<IpAddr> {
        self.routes.keys().copied().collect()
    }

    /// What to probe.
    pub(super) fn targets(&self) -> BTreeMap<BackendRef, Target> {
        let mut targets = BTreeMap::new();
        for service in &self.services {
            let health = &service.merged.spec.health;
            if health.check == HealthCheck::None {
                continue;
            }
            for facts in service.facts() {
                if facts.said.mode != Some(Mode::Maintenance) {
                    let target = Target {
                        health: health.clone(),
                        inherited: facts.verdict.healthy,
                    };
                    targets.insert(service.reference(facts.spec), target);
                }
            }
        }
        targets
    }

    fn rebuild(
        &mut self,
        former: impl Fn(&BackendRef, &Override) -> Former,
        mut route: impl FnMut(IpAddr) -> Option<Route>,
    ) {
        let layers = self.layers.clone();
        let merge::Merge {
            services,
            mut conflicts,
            orphans,
            left_out,
        } = merge::merge(&layers);
        conflicts.extend(orphans);
        conflicts.extend(left_out);

        let old_routes = std::mem::take(&mut self.routes);
        self.services = services
            .into_iter()
            .map(|merged| {
                let observed = merged.spec.backends.iter().map(|backend| {
                    let reference = BackendRef {
                        service: merged.spec.name.clone(),
                        address: backend.address,
                    };
                    let none = Override::default();
                    let said = layers.state.overrides.get(&reference).unwrap_or(&none);
                    let former = former(&reference, said);
                    self.first_seen(&merged.spec, backend, former, &old_routes, &mut route)
                });
                Arc::new(Service {
                    observed: observed.collect(),
                    merged: Arc::new(merged),
                })
            })
            .collect();
        self.places = self
            .services
            .iter()
            .enumerate()
            .map(|(place, service)| (service.name().to_owned(), place))
            .collect();
        self.desired.services = self.services.iter().map(|s| s.desired()).collect();
        self.keep_orphans();

        self.merge_conflicts = conflicts;
        self.touched = Touched::All;
        self.note_conflicts();
    }

    /// What is known of a backend as it comes into force.
    fn first_seen(
        &mut self,
        service: &ServiceSpec,
        backend: &BackendSpec,
        former: Former,
        old_routes: &HashMap<IpAddr, Route>,
        route: &mut impl FnMut(IpAddr) -> Option<Route>,
    ) -> Observed {
        let reference = BackendRef {
            service: service.name.clone(),
            address: backend.address,
        };
        let said = self.layers.state.overrides.get(&reference);
        let said = said.cloned().unwrap_or_default();
        let ip = backend.address.ip();
        let matters = service.snat != Snat::Never || service.forwarding != Forwarding::Nat;
        if matters && !self.routes.contains_key(&ip) {
            let known = old_routes.get(&ip).copied().or_else(|| route(ip));
            self.routes.insert(ip, known.unwrap_or(NO_ROUTE));
        }
        Observed {
            overdue: is_overdue(&said, former.ended, self.clock_ms),
            said,
            verdict: former.verdict(),
            via: effective::via(service, ip, self.routes.get(&ip).copied()),
            probes: former.probes,
        }
    }

    fn note_conflicts(&mut self) {
        let overrides = self.layers.state.overrides.keys();
        // An instance that was drained may register again, and is still to be drained then.
        // So may its service.
        let finds = !self.layers.file.discovery.is_empty();
        let may_return = |backend: &BackendRef| match self.places.get(&backend.service) {
            Some(at) => !self.services[*at].merged.sources.is_empty(),
            None => finds && backend.service.contains('.'),
        };
        let stray = overrides.filter(|b| self.find(b).is_none() && !may_return(b));
        let stray = stray.map(|backend| {
            format!(
                "the override of {backend} applies to no backend; `lbctl unset all {backend}` \
                 forgets it"
            )
        });
        let left_out = self.services.iter().flat_map(|s| &s.merged.left_out);
        let merge_conflicts = self.merge_conflicts.iter();
        let told = merge_conflicts.chain(left_out).cloned().chain(stray);
        self.conflicts = told.collect();
    }
}

/// `ended` is the deadline of a drain that is over.
fn is_overdue(said: &Override, ended: Option<u64>, now_ms: u64) -> bool {
    let is_past = |at| at <= now_ms || ended == Some(at);
    said.mode == Some(Mode::Drain) && said.deadline_ms.is_some_and(is_past)
}

const NO_ROUTE: Route = Route {
    source: None,
    returns_here: false,
    is_neighbour: false,
};

/// What an earlier life of a backend hands on.
#[derive(Clone, Default)]
struct Former {
    mode: Option<Mode>,
    /// The deadline of its drain, which is over.
    ended: Option<u64>,
    healthy: Option<bool>,
    verdict: Option<Verdict>,
    probes: BTreeMap<&'static str, u64>,
}

impl Former {
    fn of(facts: Facts<'_>, observed: &Observed) -> Self {
        Self {
            mode: facts.said.mode,
            ended: observed.ended(),
            // A check that begins now must not take a backend down that served without one.
            healthy: effective::healthy(facts.health, facts.verdict),
            verdict: Some(observed.verdict.clone()),
            probes: observed.probes.clone(),
        }
    }

    fn verdict(&self) -> Verdict {
        let blank = Verdict {
            healthy: None,
            successes_in_row: 0,
            failures_in_row: 0,
            last_result: None,
            last_probe: None,
        };
        Verdict {
            healthy: self.healthy,
            ..self.verdict.clone().unwrap_or(blank)
        }
    }
}

#[cfg(test)]
mod tests;
