//! What `lbctl` and the config file may change.

use super::*;
use crate::{
    api::types::UnsetWhat,
    controller::tests::history::operations::{NAMES, Operation, backend},
};

const MAX_PERCENT: u16 = 1000;

impl Model {
    /// Carries out a request or a reload; says whether it is to be granted.
    pub(in super::super) fn request(&mut self, operation: &Operation) -> bool {
        let Some((said, only_overrides)) = self.asked(operation) else {
            return false;
        };
        let before = self.said.clone();
        let state = |said: &Said| {
            (
                said.services.clone(),
                said.backends.clone(),
                said.overrides.clone(),
            )
        };
        let is_saved = state(&said) == state(&before) || !self.disk_is_full;
        if is_saved || only_overrides {
            let former = self.serving.clone();
            self.said = said.clone();
            self.serve(&before);
            if !only_overrides {
                self.note_overrides(&before, &former);
            }
        }
        if !is_saved && only_overrides {
            // An override is in force before it is saved, and taken back.
            self.said = before;
            self.serve(&said);
        }
        is_saved
    }

    /// Notes what became of what was said of backends that are not in force any more.
    fn note_overrides(&mut self, before: &Said, former: &[Serving]) {
        for backend in before.overrides.keys() {
            if has(&self.serving, backend) {
                continue;
            }
            let stays = self.said.overrides.contains_key(backend);
            let name = match (find(former, backend).map(|b| b.origin), stays) {
                (Some(Origin::Found(_)), true) => "a found backend goes and its override stays",
                (Some(Origin::Found(_)), false) => "a found backend goes with its override",
                (Some(_), true) => "a configured backend goes and its override stays",
                (Some(_), false) => "a configured backend goes with its override",
                (None, true) => "the override of a backend that is away stays",
                (None, false) => "the override of a backend that is away goes",
            };
            self.reached.insert(name);
        }
    }

    /// What people will have said, if it is to be granted, and whether only overrides differ.
    fn asked(&self, operation: &Operation) -> Option<(Said, bool)> {
        let mut said = self.said.clone();
        match operation {
            Operation::Reload(file) => {
                said.file = file.specs();
                let all = serving(&said, &self.sources);
                // Whatever is in the way of each other: within the file, or with what lbctl added.
                if all.len() < said.file.len() + said.services.len() {
                    return None;
                }
                let Said { file, backends, .. } = &mut said;
                backends.retain(|(service, backend)| {
                    let mut service = file.iter().filter(|s| s.name == *service);
                    service.any(|s| s.backends.iter().all(|b| b.address != backend.address))
                });
            }
            Operation::AddService(draft) => {
                let spec = draft.spec();
                let is_taken = |s: &Serving| s.spec.name == spec.name || collides(&s.spec, &spec);
                if self.serving.iter().any(is_taken) {
                    return None;
                }
                said.services.retain(|s| s.name != spec.name);
                said.services.push(spec);
            }
            Operation::RemoveService(name) => {
                let name = NAMES[*name];
                let place = said.services.iter().position(|s| s.name == name)?;
                said.services.remove(place);
            }
            Operation::AddBackend(place, weight) => {
                let reference = place.reference();
                let service = self.find_service(&reference.service)?;
                if self.find(&reference).is_some() {
                    return None;
                }
                let backend = backend((place.1, *weight, None));
                match service.is_file {
                    true => {
                        let known = &mut said.backends;
                        known.retain(|(s, b)| {
                            (s, b.address) != (&reference.service, reference.address)
                        });
                        known.push((reference.service, backend));
                    }
                    false => said.added(&reference.service)?.backends.push(backend),
                }
            }
            Operation::RemoveBackend(place) => {
                let reference = place.reference();
                let is = |(s, b): &(String, BackendSpec)| {
                    (s, b.address) == (&reference.service, reference.address)
                };
                let is_added = said.backends.iter().any(is);
                said.backends.retain(|added| !is(added));
                match (self.find_service(&reference.service), self.find(&reference)) {
                    (None, _) if is_added => {}
                    (None, _) | (_, None) => return None,
                    (
                        Some(_),
                        Some(Backend {
                            origin: Origin::File | Origin::Found(_),
                            ..
                        }),
                    ) => {
                        return None;
                    }
                    (Some(service), Some(_)) if service.is_file => {}
                    (Some(_), Some(_)) => {
                        let service = said.added(&reference.service)?;
                        service.backends.retain(|b| b.address != reference.address);
                    }
                }
            }
            Operation::SetWeight(place, weight) => {
                let reference = place.reference();
                self.find(&reference)?;
                if matches!(weight, WeightOverride::Percent(percent) if *percent > MAX_PERCENT) {
                    return None;
                }
                said.overrides.entry(reference).or_default().weight = Some(*weight);
                return Some((said, true));
            }
            Operation::SetMode(place, mode, seconds) => {
                let reference = place.reference();
                self.find(&reference)?;
                if seconds.is_some() && *mode != Mode::Drain {
                    return None;
                }
                let one = said.overrides.entry(reference).or_default();
                one.mode = Some(*mode);
                one.deadline_ms = seconds.map(|seconds| self.now_ms + 1000 * seconds);
                return Some((said, true));
            }
            Operation::Unset(place, what) => {
                let reference = place.reference();
                let Some(one) = said.overrides.get_mut(&reference) else {
                    self.find(&reference)?;
                    return Some((said, true));
                };
                if *what != UnsetWhat::Mode {
                    one.weight = None;
                }
                if *what != UnsetWhat::Weight {
                    (one.mode, one.deadline_ms) = (None, None);
                }
                if (one.weight, one.mode) == (None, None) {
                    said.overrides.remove(&reference);
                }
                return Some((said, true));
            }
            Operation::Apply(file) => {
                let specs = file.specs();
                let replaced = |name: &str| specs.iter().any(|s| s.name == name);
                let of_file = said.file.iter().any(|s| replaced(&s.name));
                let others = self.serving.iter().filter(|s| !replaced(&s.spec.name));
                let mut others = others.map(|s| &s.spec).chain(&specs);
                let is_taken = |spec: &ServiceSpec| {
                    specs
                        .iter()
                        .any(|new| new.name != spec.name && collides(new, spec))
                };
                if of_file || others.any(is_taken) {
                    return None;
                }
                for spec in specs {
                    match said.services.iter_mut().find(|s| s.name == spec.name) {
                        Some(former) => *former = spec,
                        None => said.services.push(spec),
                    }
                }
            }
            _ => return None,
        }
        let mut sources = self.sources.clone();
        sources.set(&settings(&serving(&said, &sources)));
        let after = serving(&said, &sources);
        let mut overrides = std::mem::take(&mut said.overrides);
        overrides.retain(|backend, _| self.outlives(backend, &after));
        said.overrides = overrides;
        Some((said, false))
    }

    /// What was said of a backend goes with it, unless a source may still find the same one.
    fn outlives(&self, backend: &BackendRef, after: &[Serving]) -> bool {
        if has(after, backend) {
            return true;
        }
        let origin = self.find(backend).map(|backend| backend.origin);
        let is_configured = matches!(origin, Some(Origin::File | Origin::Lbctl));
        let mut service = after.iter().filter(|s| s.spec.name == backend.service);
        match service.find_map(|service| name(&service.spec)) {
            // One that answered without it does not have it.
            Some(source) if is_configured => !self.sources.was_heard(&source),
            Some(_) => true,
            None => origin.is_none() && self.source(&backend.service).is_none(),
        }
    }

    fn find_service(&self, name: &str) -> Option<&Serving> {
        self.serving.iter().find(|s| s.spec.name == name)
    }

    fn find(&self, backend: &BackendRef) -> Option<&Backend> {
        find(&self.serving, backend)
    }
}

impl Said {
    fn added(&mut self, service: &str) -> Option<&mut ServiceSpec> {
        self.services.iter_mut().find(|s| s.name == service)
    }
}

fn find<'a>(serving: &'a [Serving], backend: &BackendRef) -> Option<&'a Backend> {
    let mut services = serving.iter().filter(|s| s.spec.name == backend.service);
    services.find_map(|s| s.backends.iter().find(|b| b.address == backend.address))
}

fn collides(one: &ServiceSpec, other: &ServiceSpec) -> bool {
    listens(one).any(|listen| listens(other).any(|l| l == listen))
}
