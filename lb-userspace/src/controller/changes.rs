//! What requests make of the layers. Pure: each function takes the layers in force and gives
//! those that should follow, or says why not.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    diff, faults,
    merge::{self, Layer, Merged, Origin},
    world::Layers,
};
use crate::{
    api::types::{Fault, UnsetWhat},
    config,
    discovery::{self, SourceName},
    model::{BackendRef, BackendSpec, Config, Mode, ServiceSpec, WeightOverride},
    state::AddedBackend,
    utc,
};

const MAX_PERCENT: u16 = 1000;

/// Layers that a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub layers: Layers,
    /// What was done, in one line.
    pub message: String,
}

type Result = std::result::Result<Change, Fault>;

pub(super) fn add_service(old: &Layers, service: ServiceSpec) -> Result {
    let name = service.name.clone();
    let services = merged(old);
    // What was found gives way.
    let configured = || services.iter().filter(|s| !s.is_found());
    if let Some(owner) = configured().find(|s| s.spec.name == name) {
        return Err(faults::conflict(match owner.layer {
            Layer::File => format!("service `{name}` exists already, in the config file"),
            Layer::Cli | Layer::Found(_) => format!(
                "service `{name}` exists already; change it with `lbctl apply`, or remove it \
                 first with `lbctl remove service {name}`"
            ),
        }));
    }
    listens_are_free(&service, configured())?;
    let mut new = old.clone();
    new.state.services.retain(|shadowed| shadowed.name != name);
    new.state.services.push(service);
    finish(old, new, format!("service {name} added"))
}

pub(super) fn remove_service(old: &Layers, name: &str) -> Result {
    let mut new = old.clone();
    new.state.services.retain(|service| service.name != name);
    let in_file = old.file.services.iter().any(|s| s.name == name);
    if new.state.services.len() < old.state.services.len() {
        let rest = if in_file {
            "; the config file's remains"
        } else {
            ""
        };
        return finish(old, new, format!("service {name} removed{rest}"));
    }
    if in_file {
        return Err(faults::refused(format!(
            "service `{name}` is in the config file: remove it there and run `lbctl reload`"
        )));
    }
    let services = merged(old);
    let found = services.iter().find(|s| s.spec.name == name);
    if let Some(Layer::Found(kind)) = found.map(|s| s.layer) {
        return Err(faults::refused(format!(
            "service `{name}` was found by the {kind} source of the config file: remove it there, or \
             narrow what the source selects"
        )));
    }
    Err(faults::no_service(name, names(&services)))
}

pub(super) fn add_backend(old: &Layers, service: &str, backend: BackendSpec) -> Result {
    let services = merged(old);
    let owner = find(&services, service)?;
    let reference = BackendRef {
        service: service.to_owned(),
        address: backend.address,
    };
    if place(owner, &reference).is_some() {
        return Err(faults::conflict(format!(
            "backend {reference} exists already; change its weight with `lbctl set weight \
             {reference} N`"
        )));
    }
    let mut new = old.clone();
    match owner.layer {
        Layer::Found(kind) => {
            return Err(faults::refused(format!(
                "service `{service}` was found by the {kind} source of the config file: add the \
                 backend there, or configure a service that has both"
            )));
        }
        Layer::Cli => cli_service(&mut new, service, |spec| spec.backends.push(backend)),
        Layer::File => {
            let state = &mut new.state;
            state.backends.retain(|b| b.reference() != reference);
            state.backends.push(AddedBackend {
                service: service.to_owned(),
                backend,
            });
        }
    }
    finish(old, new, format!("backend {reference} added"))
}

pub(super) fn remove_backend(old: &Layers, backend: &BackendRef) -> Result {
    let services = merged(old);
    let mut new = old.clone();
    new.state.backends.retain(|b| b.reference() != *backend);
    let forgotten = new.state.backends.len() < old.state.backends.len();
    let message = format!("backend {backend} removed");
    if forgotten && services.iter().all(|s| s.spec.name != backend.service) {
        return finish(old, new, message);
    }
    let owner = find(&services, &backend.service)?;
    let place = place(owner, backend).ok_or_else(|| faults::no_backend(backend, owner))?;
    match (owner.layer, owner.origins[place]) {
        (_, Origin::Found { kind, .. }) => {
            return Err(faults::refused(format!(
                "backend {backend} was found by the service's {kind} source: deregister it there, \
                 or take it out of service with `lbctl maint {backend}`"
            )));
        }
        (Layer::Cli, _) => cli_service(&mut new, &backend.service, |spec| {
            spec.backends.retain(|b| b.address != backend.address);
        }),
        (_, Origin::Layer(Layer::Cli)) => {}
        (_, Origin::Layer(Layer::File | Layer::Found(_))) => {
            return Err(faults::refused(format!(
                "backend {backend} is in the config file: remove it there and run `lbctl reload`, \
                 or take it out of service with `lbctl maint {backend}`"
            )));
        }
    }
    finish(old, new, message)
}

pub(super) fn set_weight(old: &Layers, backend: &BackendRef, weight: WeightOverride) -> Result {
    let spec = existing(old, backend)?;
    let words = match weight {
        WeightOverride::Absolute(weight) => weight.to_string(),
        WeightOverride::Percent(percent) if percent > MAX_PERCENT => {
            return Err(faults::invalid(format!(
                "weight {percent}% of {backend}: at most {MAX_PERCENT}%; raise the configured \
                 weight instead"
            )));
        }
        WeightOverride::Percent(percent) => format!("{percent}% of {}", spec.weight),
    };
    let mut new = old.clone();
    let said = new.state.overrides.entry(backend.clone()).or_default();
    said.weight = Some(weight);
    Ok(Change {
        layers: new,
        message: format!("weight of {backend} set to {words}"),
    })
}

/// `deadline_ms`, milliseconds since 1970, is for drains only.
pub(super) fn set_mode(
    old: &Layers,
    backend: &BackendRef,
    mode: Mode,
    deadline_ms: Option<u64>,
) -> Result {
    existing(old, backend)?;
    if deadline_ms.is_some() && mode != Mode::Drain {
        return Err(faults::invalid(
            "a deadline goes with `drain` only; leave it out".to_owned(),
        ));
    }
    let message = match mode {
        Mode::Drain => {
            let until = deadline_ms.map(|at| format!(" until {}, then end", utc::text(at)));
            let until = until.unwrap_or_default();
            format!("{backend} drains: no new connections, existing ones continue{until}")
        }
        Mode::Maintenance => format!("{backend} in maintenance: no new connections, no probes"),
        Mode::Ready => format!("{backend} ready: takes connections whatever its health"),
    };
    let mut new = old.clone();
    let said = new.state.overrides.entry(backend.clone()).or_default();
    said.mode = Some(mode);
    said.deadline_ms = deadline_ms;
    Ok(Change {
        layers: new,
        message,
    })
}

/// Also forgets overrides of backends that are gone.
pub(super) fn unset(old: &Layers, backend: &BackendRef, what: UnsetWhat) -> Result {
    let mut new = old.clone();
    let Some(said) = new.state.overrides.get_mut(backend) else {
        existing(old, backend)?;
        return Ok(Change {
            layers: new,
            message: format!("{backend} has no override"),
        });
    };
    let former = said.clone();
    if matches!(what, UnsetWhat::Weight | UnsetWhat::All) {
        said.weight = None;
    }
    if matches!(what, UnsetWhat::Mode | UnsetWhat::All) {
        said.mode = None;
        said.deadline_ms = None;
    }
    let message = if *said == former {
        format!("{backend} has no such override")
    } else {
        format!("override of {backend} removed")
    };
    if said.is_empty() {
        new.state.overrides.remove(backend);
    }
    Ok(Change {
        layers: new,
        message,
    })
}

/// Adds `services` to the CLI layer, in place of those of the same name.
pub(super) fn apply(old: &Layers, services: Vec<ServiceSpec>) -> Result {
    let in_file: Vec<&str> = services
        .iter()
        .filter(|new| old.file.services.iter().any(|s| s.name == new.name))
        .map(|new| new.name.as_str())
        .collect();
    if !in_file.is_empty() {
        return Err(faults::conflict(format!(
            "the config file owns {}: change it there and run `lbctl reload`, or take it out of \
             what is applied",
            in_file.join(", ")
        )));
    }
    let replaced: HashSet<&str> = services.iter().map(|s| s.name.as_str()).collect();
    let merged = merged(old);
    for service in &services {
        let others = merged
            .iter()
            .filter(|s| !s.is_found() && !replaced.contains(s.spec.name.as_str()));
        listens_are_free(service, others)?;
    }
    let mut new = old.clone();
    for service in &services {
        let known = &mut new.state.services;
        match known.iter_mut().find(|s| s.name == service.name) {
            Some(former) => *former = service.clone(),
            None => known.push(service.clone()),
        }
    }
    hand_over(old, &mut new);
    let changes = differences(old, &new).len();
    let message = format!(
        "{} applied, {}",
        counted(services.len(), "service"),
        counted(changes, "change")
    );
    finish(old, new, message)
}

/// Puts another config file in force.
pub(super) fn reload(old: &Layers, file: Config) -> Result {
    let mut new = Layers {
        file: Arc::new(file),
        state: old.state.clone(),
        found: old.found.clone(),
    };
    let conflicts = merge::merge(&new).conflicts;
    if !conflicts.is_empty() {
        return Err(faults::conflict(format!(
            "the config file collides with what lbctl added, nothing was changed: {}",
            conflicts.join("; ")
        )));
    }
    // The file lists them by now, or dropped the service they were added to.
    let Layers { file, state, .. } = &mut new;
    state.backends.retain(|added| {
        let service = file.services.iter().find(|s| s.name == added.service);
        service.is_some_and(|s| {
            s.backends
                .iter()
                .all(|b| b.address != added.backend.address)
        })
    });
    hand_over(old, &mut new);
    let changes = differences(old, &new).len();
    let mut message = match changes {
        0 => "config file reloaded, no service changed".to_owned(),
        changes => format!("config file reloaded, {}", counted(changes, "change")),
    };
    let settings = diff::settings(&old.file, &new.file);
    if !settings.is_empty() {
        message += &format!("; takes a restart of lbd: {}", settings.join(", "));
    }
    finish(old, new, message)
}

/// What differs between two sets of layers once merged.
pub(super) fn differences(old: &Layers, new: &Layers) -> Vec<diff::Difference> {
    if new.differs_in_overrides_only(old) {
        return Vec::new();
    }
    let mut out = Vec::from_iter(diff::node(&old.file.node, &new.file.node));
    out.extend(diff::discovery(&old.file.discovery, &new.file.discovery));
    let (old, new) = (merged(old), merged(new));
    let (old, new) = (old.iter().map(|s| &s.spec), new.iter().map(|s| &s.spec));
    out.extend(diff::services(old, new));
    out
}

pub(super) fn find<'a>(
    services: &'a [Merged],
    name: &str,
) -> std::result::Result<&'a Merged, Fault> {
    services
        .iter()
        .find(|s| s.spec.name == name)
        .ok_or_else(|| faults::no_service(name, names(services)))
}

/// Holds every change to the rules of the config file, and drops overrides with their backends.
fn finish(old: &Layers, mut new: Layers, message: String) -> Result {
    let (before, services) = (merged(old), merged(&new));
    let findings = config::check(&whole(&new, &services));
    if !findings.is_empty() {
        return Err(faults::invalid(findings.join("\n")));
    }
    drop_overrides(old, &before, &mut new, &services);
    Ok(Change {
        layers: new,
        message,
    })
}

/// Lets sources that come in others' place begin with what those have found: the services that
/// changed so go on as they are until the new ones answer.
fn hand_over(old: &Layers, new: &mut Layers) {
    if old.found.sets.is_empty() {
        return;
    }
    // Only those in force run, and found anything.
    let names = |layers: &Layers| merge::sources(&layers.file, &merged(layers)).into_keys();
    let (before, after): (Vec<_>, Vec<_>) = (names(old).collect(), names(new).collect());
    let heirs = discovery::heirs(&before, &after);
    if heirs.is_empty() {
        return;
    }
    let found = Arc::make_mut(&mut new.found);
    for (name, former) in heirs {
        if let Some(set) = old.found.sets.get(&former) {
            found.sets.entry(name).or_insert_with(|| set.clone());
        }
    }
}

/// Overrides go with their backends. One of a backend that was found stays as long as it may be
/// found again; one of a configured backend, while a source that may find it was never heard.
fn drop_overrides(old: &Layers, before: &[Merged], new: &mut Layers, after: &[Merged]) {
    let (were, are) = (origins(before), references(after));
    let (sources_before, sources) = (sources(before), sources(after));
    let was_heard =
        |name: &SourceName| old.found.sets.contains_key(name) && !old.found.unheard.contains(name);
    let finds = |layers: &Layers| !layers.file.discovery.is_empty();
    let (found, finds) = (finds(old), finds(new));
    new.state.overrides.retain(|backend, _| {
        let service = backend.service.as_str();
        let is_named_as_found = service.contains('.');
        if are.contains(backend) || (finds && is_named_as_found) {
            return true;
        }
        match (were.get(backend), sources.get(service)) {
            (Some(Origin::Layer(_)), Some(sources)) => !sources.iter().all(was_heard),
            (Some(Origin::Found { .. }) | None, Some(_)) => true,
            (Some(_), None) => false,
            // Whoever might have found it again is gone; or it is one that never was.
            (None, None) => !sources_before.contains_key(service) && !(found && is_named_as_found),
        }
    });
}

/// The config file that says all that people said.
pub fn configuration(layers: &Layers) -> Config {
    whole(layers, &merged(layers))
}

fn whole(layers: &Layers, services: &[Merged]) -> Config {
    Config {
        node: layers.file.node.clone(),
        admin: layers.file.admin.clone(),
        services: configured(services),
        discovery: layers.file.discovery.clone(),
    }
}

/// What people said, without what was found.
pub(super) fn configured<'a>(services: impl IntoIterator<Item = &'a Merged>) -> Vec<ServiceSpec> {
    let services = services.into_iter().filter(|s| !s.is_found());
    services.map(Merged::configured).collect()
}

fn counted(count: usize, word: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {word}{plural}")
}

fn merged(layers: &Layers) -> Vec<Merged> {
    merge::merge(layers).services
}

fn names(services: &[Merged]) -> impl Iterator<Item = &str> {
    services.iter().map(|s| s.spec.name.as_str())
}

fn references(services: &[Merged]) -> HashSet<BackendRef> {
    origins(services).into_keys().collect()
}

fn origins(services: &[Merged]) -> HashMap<BackendRef, Origin> {
    let backends = services.iter().flat_map(|s| {
        let backends = s.spec.backends.iter().zip(&s.origins);
        backends.map(|(b, origin)| {
            let reference = BackendRef {
                service: s.spec.name.clone(),
                address: b.address,
            };
            (reference, *origin)
        })
    });
    backends.collect()
}

/// Of services that have any.
fn sources(services: &[Merged]) -> HashMap<&str, &[SourceName]> {
    let services = services.iter().filter(|s| !s.sources.is_empty());
    let sources = services.map(|s| (s.spec.name.as_str(), s.sources.as_slice()));
    sources.collect()
}

fn place(service: &Merged, backend: &BackendRef) -> Option<usize> {
    let backends = &service.spec.backends;
    backends.iter().position(|b| b.address == backend.address)
}

fn existing(layers: &Layers, backend: &BackendRef) -> std::result::Result<BackendSpec, Fault> {
    // What the file says is in force, so there is no need to merge all there is.
    let in_file = layers.file.services.iter();
    let in_file = in_file.filter(|service| service.name == backend.service);
    let mut backends = in_file.flat_map(|service| &service.backends);
    if let Some(spec) = backends.find(|spec| spec.address == backend.address) {
        return Ok(spec.clone());
    }
    let services = merged(layers);
    let owner = find(&services, &backend.service)?;
    let place = place(owner, backend).ok_or_else(|| faults::no_backend(backend, owner))?;
    Ok(owner.spec.backends[place].clone())
}

fn cli_service(layers: &mut Layers, name: &str, edit: impl FnOnce(&mut ServiceSpec)) {
    let services = &mut layers.state.services;
    if let Some(spec) = services.iter_mut().find(|s| s.name == name) {
        edit(spec);
    }
}

fn listens_are_free<'a>(
    service: &ServiceSpec,
    others: impl Iterator<Item = &'a Merged>,
) -> std::result::Result<(), Fault> {
    for other in others.filter(|o| o.spec.protocol == service.protocol) {
        if let Some(taken) = service
            .listen
            .iter()
            .find(|l| other.spec.listen.contains(l))
        {
            let layer = match other.layer {
                Layer::File => "of the config file",
                Layer::Cli => "added by lbctl",
                Layer::Found(_) => "found by a source",
            };
            return Err(faults::conflict(format!(
                "service `{}`: {taken}/{} belongs to service `{}` {layer}; choose another \
                 address or port",
                service.name, service.protocol, other.spec.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
