//! What is in force, worked out straight from the three layers: configured (file, `lbctl`, sources),
//! override, observed (probes, time). Shares nothing with what it is compared with but the words in
//! which people configure.

mod requests;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::abi::backend_state::{ACTIVE, CLOSED, DOWN, DRAINING, FREE};

use self::sources::{Name, Sources};
use super::kernel;
use crate::{
    datapath::{Listen, memory::Maps},
    discovery::{InstanceState, Settings},
    model::{
        BackendRef, BackendSpec, Health, HealthCheck, Mode, Override, ServiceSpec, WeightOverride,
    },
};

/// What people said.
#[derive(Clone, PartialEq, Default)]
struct Said {
    file: Vec<ServiceSpec>,
    /// By `lbctl`, as the next two.
    services: Vec<ServiceSpec>,
    backends: Vec<(String, BackendSpec)>,
    overrides: BTreeMap<BackendRef, Override>,
}

/// A service in force.
#[derive(Clone)]
pub(super) struct Serving {
    pub spec: ServiceSpec,
    pub is_file: bool,
    pub backends: Vec<Backend>,
}

/// A backend in force.
#[derive(Clone)]
pub(super) struct Backend {
    pub address: SocketAddr,
    /// `None`: more than 0.
    weight: Option<u16>,
    pub max_connections: u32,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq)]
enum Origin {
    File,
    Lbctl,
    Found(InstanceState),
}

/// What is observed of a backend in force.
#[derive(Clone, Default)]
struct Seen {
    healthy: Option<bool>,
    successes: u32,
    failures: u32,
    /// Of its time in force: another one if it, or where its service listens, was gone meanwhile.
    life: u64,
}

#[derive(Default)]
pub(super) struct Model {
    /// By a clock that nobody sets, as all times here: a drain has the time that was said.
    pub now_ms: u64,
    /// By how much the wall clock was set since the deadlines on disk were right.
    unsaved_ms: i64,
    /// Nothing can be saved.
    pub disk_is_full: bool,
    /// What it came by.
    pub reached: BTreeSet<&'static str>,
    said: Said,
    sources: Sources,
    serving: Vec<Serving>,
    seen: BTreeMap<BackendRef, Seen>,
    lives: u64,
}

impl Model {
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            ..Self::default()
        }
    }

    pub(super) fn serving(&self) -> &[Serving] {
        &self.serving
    }

    pub(super) fn sources(&mut self) -> &mut Sources {
        &mut self.sources
    }

    /// The name of the source of a service in force.
    pub(super) fn source(&self, service: &str) -> Option<Name> {
        let serving = self.serving.iter().find(|s| s.spec.name == service)?;
        name(&serving.spec)
    }

    /// The number of a backend's time in force.
    pub(super) fn life(&self, backend: &BackendRef) -> u64 {
        self.seen[backend].life
    }

    /// The state that the kernel is to have of a backend.
    pub(super) fn state(&self, service: &Serving, backend: &Backend) -> u32 {
        let reference = reference(service, backend);
        let said = self.said.overrides.get(&reference);
        let mode = said.and_then(|said| said.mode);
        let healthy = match service.spec.health.check {
            HealthCheck::None => Some(true),
            _ => self.seen[&reference].healthy,
        };
        let unless_dead = |state| if healthy == Some(false) { DOWN } else { state };
        let state = match (mode, backend.origin) {
            (Some(Mode::Maintenance), _) => DRAINING,
            (Some(Mode::Drain), _) => match said.and_then(|said| said.deadline_ms) {
                Some(at) if at <= self.now_ms => CLOSED,
                _ => unless_dead(DRAINING),
            },
            (Some(Mode::Ready), _) => ACTIVE,
            (None, Origin::Found(InstanceState::Down)) => DOWN,
            (None, Origin::Found(InstanceState::Drain)) => unless_dead(DRAINING),
            (None, _) => match healthy {
                Some(true) => ACTIVE,
                Some(false) => DOWN,
                None => DRAINING,
            },
        };
        match state {
            ACTIVE if self.weight(service, backend) == Some(0) => DRAINING,
            state => state,
        }
    }

    /// Its weight among others; `None`: more than 0.
    pub(super) fn weight(&self, service: &Serving, backend: &Backend) -> Option<u32> {
        let said = self.said.overrides.get(&reference(service, backend));
        let configured = backend.weight.map(f64::from);
        match said.and_then(|said| said.weight) {
            None => backend.weight.map(u32::from),
            Some(WeightOverride::Absolute(weight)) => Some(weight.into()),
            Some(WeightOverride::Percent(0)) => Some(0),
            Some(WeightOverride::Percent(percent)) => configured.map(|configured| {
                let exact = configured * f64::from(percent) / 100.0;
                if exact == 0.0 {
                    0
                } else {
                    exact.round().max(1.0) as u32
                }
            }),
        }
    }

    pub(super) fn set_clock(&mut self, by_ms: i64) {
        self.unsaved_ms += by_ms;
    }

    /// Deadlines are right on disk from here on.
    pub(super) fn look_at_clock(&mut self) {
        let mut said = self.said.overrides.values();
        if !self.disk_is_full || said.all(|said| said.deadline_ms.is_none()) {
            self.unsaved_ms = 0;
        }
    }

    /// Some drain is to end later.
    pub(super) fn awaits_deadline(&self) -> bool {
        let deadlines = self.said.overrides.values().filter_map(|s| s.deadline_ms);
        deadlines.max().is_some_and(|at| at > self.now_ms)
    }

    /// Sources put in force what is due.
    pub(super) fn discover(&mut self) {
        self.sources.advance(self.now_ms);
        self.serve(&self.said.clone());
    }

    pub(super) fn probe(&mut self, answer: impl Fn(SocketAddr) -> Option<bool>) {
        let mut seen = std::mem::take(&mut self.seen);
        for (service, backend) in self.backends() {
            let reference = reference(service, backend);
            if !is_probed(&self.said, &reference, &service.spec.health) {
                continue;
            }
            if let (Some(success), Some(seen)) = (answer(backend.address), seen.get_mut(&reference))
            {
                seen.record(success, &service.spec.health);
            }
        }
        self.seen = seen;
    }

    /// Begins, or begins anew, with what is saved, this file, and what the kernel holds.
    pub(super) fn restart(&mut self, file: Vec<ServiceSpec>, maps: &Maps) {
        self.said.file = file;
        // Nobody knows any more that the clock was set.
        let unsaved_ms = std::mem::take(&mut self.unsaved_ms);
        let deadlines = self.said.overrides.values_mut();
        for deadline in deadlines.filter_map(|said| said.deadline_ms.as_mut()) {
            *deadline = deadline.saturating_add_signed(-unsaved_ms);
        }
        let mut serving = serving(&self.said, &self.sources);
        let settings = settings(&serving);
        for (name, is_saved) in self.sources.heirs() {
            self.reached
                .insert(match (settings.contains_key(name), is_saved) {
                    (true, true) => "crash before a source in another's place answers",
                    (true, false) => "crash before a source in another's place is saved",
                    (false, _) => continue,
                });
        }
        self.sources.restart(&settings);
        serving = self::serving(&self.said, &self.sources);
        for service in &serving {
            self.adopt(service, maps);
        }
        let former = std::mem::take(&mut self.seen);
        let before = std::mem::take(&mut self.serving);
        self.serve(&Said::default());
        for service in &self.serving {
            let id = kernel::id(maps, &service.spec);
            for backend in &service.backends {
                let reference = reference(service, backend);
                let held = id.and_then(|id| kernel::slot(maps, id, service, backend.address));
                let held = held.map(|slot| maps.backends[&slot].state);
                let healthy = self.inherited(service, backend, held);
                let life = stays(&before, service, backend).then(|| former[&reference].life);
                let seen = self.seen.get_mut(&reference).unwrap();
                seen.healthy = healthy;
                seen.life = life.unwrap_or(seen.life);
            }
        }
    }

    /// What the kernel's state says of a backend's health.
    fn inherited(&self, service: &Serving, backend: &Backend, held: Option<u32>) -> Option<bool> {
        let said = self.said.overrides.get(&reference(service, backend));
        let mode = said.and_then(|said| said.mode);
        // It takes no connections for another reason than its health.
        let is_withheld = matches!(mode, Some(Mode::Drain | Mode::Maintenance))
            || backend.origin == Origin::Found(InstanceState::Drain)
            || self.weight(service, backend) == Some(0);
        match held? {
            ACTIVE => Some(true),
            DOWN => (backend.origin != Origin::Found(InstanceState::Down)).then_some(false),
            _ => is_withheld.then_some(true),
        }
    }

    /// Lets a source that never answered begin with what the kernel has for its service.
    fn adopt(&mut self, service: &Serving, maps: &Maps) {
        let (Some(name), Some(id)) = (name(&service.spec), kernel::id(maps, &service.spec)) else {
            return;
        };
        if !self.sources.is_blank(&name) {
            return;
        }
        let is_known = |at: SocketAddr| service.backends.iter().any(|b| b.address == at);
        let held = maps
            .backends
            .iter()
            .filter(|(_, b)| b.service == id && b.state != FREE);
        let held = held.map(|(slot, b)| (*slot, kernel::address(b), b));
        let held = held.filter(|(_, address, _)| !is_known(*address));
        let held = held.map(|(slot, address, b)| {
            let state = match b.state {
                ACTIVE => InstanceState::Up,
                DOWN => InstanceState::Down,
                _ => InstanceState::Drain,
            };
            let table = maps.tables.get(&(2 * id + u32::from(address.is_ipv6())));
            let has_share = table.is_some_and(|table| table.contains(&slot));
            (slot, address, state, has_share)
        });
        self.sources.assume(&name, held.collect());
    }

    fn backends(&self) -> impl Iterator<Item = (&Serving, &Backend)> {
        let services = self.serving.iter();
        services.flat_map(|service| {
            service
                .backends
                .iter()
                .map(move |backend| (service, backend))
        })
    }

    /// Works out what is in force now, and what is still known of each backend, `before` being what
    /// people said until now.
    fn serve(&mut self, before: &Said) {
        let wanted = settings(&serving(&self.said, &self.sources));
        if self.sources.set(&wanted) > 0 {
            self.reached.insert("a source comes in another's place");
        }
        let old = std::mem::replace(&mut self.serving, serving(&self.said, &self.sources));
        let mut former = std::mem::take(&mut self.seen);
        let mut seen = BTreeMap::new();
        for (service, backend) in self.backends() {
            let reference = reference(service, backend);
            let old_service = old.iter().find(|s| s.spec.name == service.spec.name);
            let mut now = former.remove(&reference).unwrap_or_default();
            if !stays(&old, service, backend) {
                now.life = 0;
            }
            let old_health = old_service.map(|s| &s.spec.health);
            if old_health.is_some_and(|h| h.check == HealthCheck::None) && has(&old, &reference) {
                // It served without a check; one that begins must not take it down.
                now.healthy = Some(true);
            }
            let ends = is_maintained(before, &reference) && !is_maintained(&self.said, &reference);
            if ends {
                // Whatever was repaired must prove itself.
                now.healthy = None;
            }
            let goes_on = old_health == Some(&service.spec.health)
                && is_probed(before, &reference, &service.spec.health)
                && !ends;
            if !goes_on {
                (now.successes, now.failures) = (0, 0);
            }
            seen.insert(reference, now);
        }
        for seen in seen.values_mut().filter(|seen| seen.life == 0) {
            self.lives += 1;
            seen.life = self.lives;
        }
        self.seen = seen;
    }
}

impl Seen {
    fn record(&mut self, success: bool, health: &Health) {
        (self.successes, self.failures) = match success {
            true => (self.successes + 1, 0),
            false => (0, self.failures + 1),
        };
        let decides = match (self.healthy, success) {
            (None, _) => true,
            (Some(_), true) => self.successes >= health.rise,
            (Some(_), false) => self.failures >= health.fall,
        };
        if decides {
            self.healthy = Some(success);
        }
    }
}

fn reference(service: &Serving, backend: &Backend) -> BackendRef {
    BackendRef {
        service: service.spec.name.clone(),
        address: backend.address,
    }
}

fn is_maintained(said: &Said, backend: &BackendRef) -> bool {
    let said = said.overrides.get(backend);
    said.is_some_and(|said| said.mode == Some(Mode::Maintenance))
}

fn is_probed(said: &Said, backend: &BackendRef, health: &Health) -> bool {
    health.check != HealthCheck::None && !is_maintained(said, backend)
}

fn has(old: &[Serving], backend: &BackendRef) -> bool {
    let mut services = old.iter().filter(|s| s.spec.name == backend.service);
    services.any(|s| s.backends.iter().any(|b| b.address == backend.address))
}

/// A backend was in force before, behind the same listens.
fn stays(before: &[Serving], service: &Serving, backend: &Backend) -> bool {
    let mut before = before.iter().filter(|s| s.spec.name == service.spec.name);
    before.any(|s| {
        s.spec.listen == service.spec.listen
            && s.spec.protocol == service.spec.protocol
            && s.backends.iter().any(|b| b.address == backend.address)
    })
}

pub(super) fn listens(spec: &ServiceSpec) -> impl Iterator<Item = Listen> {
    let protocol = spec.protocol;
    let listens = spec.listen.clone().into_iter();
    listens.map(move |address| Listen { address, protocol })
}

/// Who is in force: the file's, then what `lbctl` added where name and addresses are left. Of
/// backends those that people configured, then those found.
fn serving(said: &Said, sources: &Sources) -> Vec<Serving> {
    let mut all: Vec<Serving> = Vec::new();
    let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
    let layers = [(true, &said.file), (false, &said.services)];
    for (is_file, spec) in layers
        .iter()
        .flat_map(|(is, specs)| specs.iter().map(|s| (*is, s)))
    {
        if names.contains(&spec.name) || listens(spec).any(|listen| taken.contains(&listen)) {
            continue;
        }
        names.insert(spec.name.clone());
        taken.extend(listens(spec));
        let mut backends = BTreeMap::new();
        let own = spec.backends.iter().map(|b| (b, is_file));
        let added = said
            .backends
            .iter()
            .filter(|(name, _)| is_file && *name == spec.name);
        for (backend, is_file) in own.chain(added.map(|(_, b)| (b, false))) {
            backends.entry(backend.address).or_insert(Backend {
                address: backend.address,
                weight: Some(backend.weight),
                max_connections: backend.max_connections.unwrap_or(0),
                origin: if is_file { Origin::File } else { Origin::Lbctl },
            });
        }
        for (address, member) in name(spec).iter().flat_map(|name| sources.in_force(name)) {
            backends.entry(*address).or_insert(Backend {
                address: *address,
                weight: member.weight,
                max_connections: 0,
                origin: Origin::Found(member.state),
            });
        }
        all.push(Serving {
            spec: spec.clone(),
            is_file,
            backends: backends.into_values().collect(),
        });
    }
    all
}

fn name(spec: &ServiceSpec) -> Option<Name> {
    let source = spec.discovery.first()?;
    let kind = &source.kind;
    Some((spec.name.clone(), kind.name(), kind.target()))
}

/// The sources that are to run.
fn settings(serving: &[Serving]) -> BTreeMap<Name, Settings> {
    let specs = serving.iter().map(|service| &service.spec);
    let settings = |spec: &ServiceSpec| Some((name(spec)?, spec.discovery[0].settings.clone()));
    specs.filter_map(settings).collect()
}
