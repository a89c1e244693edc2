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
    model::{BackendRef, Config},
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
    if let Some(name) = service {
        find(view, name)?;
    }
    Ok(Response::Sources {
        items: sources_of(view, service),
    })
}

fn sources_of(view: &View, service: Option<&str>) -> Vec<SourceItem> {
    let sources = view.sources.iter();
    let wanted = sources.filter(|s| service.is_none_or(|name| s.service == name));
    wanted.cloned().collect()
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
        sources: sources_of(view, Some(name)),
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
    let change = changes::apply(&view.layers, parse(text)?.services)?;
    Ok(Response::Diff {
        changes: differences(&view.layers, &change.layers),
    })
}

pub(super) fn export(view: &View) -> Result {
    let file = &view.layers.file;
    let config = Config {
        node: file.node.clone(),
        admin: file.admin.clone(),
        services: view
            .services
            .iter()
            .map(|s| s.merged.configured())
            .collect(),
    };
    Ok(Response::Export {
        text: config::render(&config),
    })
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
