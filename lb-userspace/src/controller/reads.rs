//! Answers to requests that change nothing, from a [`View`].

use std::{net::SocketAddr, sync::Arc};

use super::{
    changes, faults,
    items::{health_item, items},
    view::View,
    world::{Layers, Service},
};
use crate::{
    api::types::{BackendItem, EventItem, Fault, OverrideItem, Response},
    config,
    datapath::Datapath,
    discovery::SourceItem,
    model::{BackendRef, Config, ServiceSpec},
};

type Result = std::result::Result<Response, Fault>;

pub(super) fn services(view: &View, datapath: &dyn Datapath) -> Result {
    let items = view.services.iter().map(|s| items(view, datapath, s).0);
    Ok(Response::Services {
        items: items.collect(),
    })
}

pub(super) fn backends(view: &View, datapath: &dyn Datapath, service: Option<&str>) -> Result {
    let items = match service {
        Some(name) => items(view, datapath, find(view, name)?).1,
        None => all_backends(view, datapath),
    };
    Ok(Response::Backends { items })
}

pub(super) fn sources(view: &View, service: Option<&str>) -> Result {
    let items = match service {
        Some(name) => sources_of(view, find(view, name)?),
        None => view.sources.clone(),
    };
    Ok(Response::Sources { items })
}

/// The sources of a service; of one that was found, the source that found it.
fn sources_of(view: &View, service: &Service) -> Vec<SourceItem> {
    let found = service.merged.is_found();
    let is_its = |item: &&SourceItem| {
        let mut sources = service.merged.sources.iter();
        sources.any(|source| {
            let finder = if found { "" } else { service.name() };
            (&*item.service, &*item.kind, &item.target) == (finder, source.kind, &source.target)
        })
    };
    view.sources.iter().filter(is_its).cloned().collect()
}

pub(super) fn overrides(view: &View) -> Result {
    let overrides = view.layers.state.overrides.iter();
    let items = overrides.map(|(backend, value)| OverrideItem {
        backend: backend.clone(),
        value: value.clone(),
    });
    Ok(Response::Overrides {
        items: items.collect(),
    })
}

pub(super) fn events(view: &View, since: u64) -> Result {
    Ok(Response::Events {
        items: events_where(view, |event| event.id > since),
    })
}

pub(super) fn service(view: &View, datapath: &dyn Datapath, name: &str) -> Result {
    let service = find(view, name)?;
    let (item, backends) = items(view, datapath, service);
    let own = format!("service/{name}");
    let backends_of = format!("backend/{name}/");
    Ok(Response::Service {
        spec: Box::new(service.merged.configured()),
        item,
        backends,
        sources: sources_of(view, service),
        events: events_where(view, |event| {
            event.object == own || event.object.starts_with(&backends_of)
        }),
    })
}

pub(super) fn backend(view: &View, datapath: &dyn Datapath, backend: &BackendRef) -> Result {
    let service = find(view, &backend.service)?;
    let place = place(service, backend.address)
        .ok_or_else(|| faults::no_backend(backend, &service.merged))?;
    let (_, mut backends) = items(view, datapath, service);
    let facts = service.facts().nth(place);
    let health = facts
        .map(health_item)
        .ok_or_else(|| faults::no_backend(backend, &service.merged))?;
    let object = format!("backend/{backend}");
    Ok(Response::Backend {
        item: backends.swap_remove(place),
        health,
        events: events_where(view, |event| event.object == object),
    })
}

pub(super) fn diff(view: &View, text: &str) -> Result {
    let file = parse(text)?;
    let settings = super::diff::settings(&view.layers.file, &file);
    let change = changes::reload(&view.layers, file)?;
    let mut changes = differences(&view.layers, &change.layers);
    changes.extend(
        settings
            .iter()
            .map(|setting| format!("~ {setting}: takes a restart of lbd")),
    );
    Ok(Response::Diff { changes })
}

pub(super) fn dry_run(view: &View, text: &str) -> Result {
    let change = changes::apply(&view.layers, applied(text)?)?;
    Ok(Response::Diff {
        changes: differences(&view.layers, &change.layers),
    })
}

pub(super) fn export(view: &View) -> Result {
    let file = &view.layers.file;
    let config = Config {
        node: file.node.clone(),
        admin: file.admin.clone(),
        services: changes::configured(view.services.iter().map(|s| &*s.merged)),
        discovery: file.discovery.clone(),
    };
    Ok(Response::Export {
        text: config::render(&config),
    })
}

/// The services of a file that is to be applied.
pub(super) fn applied(text: &str) -> std::result::Result<Vec<ServiceSpec>, Fault> {
    let Config {
        node: _,
        admin: _,
        services,
        discovery,
    } = parse(text)?;
    match discovery.is_empty() {
        true => Ok(services),
        false => Err(faults::invalid(
            "only the config file finds services by `discovery`: write it there and run `lbctl \
             reload`, or take it out of what is applied",
        )),
    }
}

/// The text of a config file that a client sent.
pub(super) fn parse(text: &str) -> std::result::Result<Config, Fault> {
    config::parse(text, "file")
        .map(|parsed| parsed.config)
        .map_err(|invalid| faults::invalid(invalid.to_string()))
}

pub(super) fn all_backends(view: &View, datapath: &dyn Datapath) -> Vec<BackendItem> {
    view.services
        .iter()
        .flat_map(|s| items(view, datapath, s).1)
        .collect()
}

fn find<'a>(view: &'a View, name: &str) -> std::result::Result<&'a Service, Fault> {
    view.services
        .iter()
        .find(|s| s.name() == name)
        .map(Arc::as_ref)
        .ok_or_else(|| faults::no_service(name, view.services.iter().map(|s| s.name())))
}

fn place(service: &Service, address: SocketAddr) -> Option<usize> {
    let backends = &service.merged.spec.backends;
    backends.iter().position(|b| b.address == address)
}

fn events_where(view: &View, wanted: impl Fn(&EventItem) -> bool) -> Vec<EventItem> {
    view.events
        .iter()
        .filter(|event| wanted(event))
        .map(|event| EventItem::clone(event))
        .collect()
}

fn differences(old: &Layers, new: &Layers) -> Vec<String> {
    changes::differences(old, new)
        .iter()
        .map(ToString::to_string)
        .collect()
}
