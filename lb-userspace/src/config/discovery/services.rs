//! The config's own `discovery:`, which finds services: from the file and back.

use serde_yaml_ng::{Mapping, Value};

use super::{
    COMMON, Fields, Form, KINDS, Report, SourceRemarks, check_settings, put_unless_empty,
    render_settings, settings,
};
use crate::{
    config::{
        check::{self, Item, Remarks},
        render::defaults as render_defaults,
        report::Place,
        service::defaults,
        suggest::quoted,
        tree::{Data, Node},
        value::{one_or_many, unknown},
    },
    discovery::{ServicesKind, ServicesSpec, Settings, kubernetes::services::Config as Kubernetes},
    model::Config,
};

/// Sources that find services.
const FINDERS: &[&str] = &["kubernetes"];

/// A map of kinds, or a list of such maps. `first` is the index of the first source among
/// [`Item`]s.
pub(in crate::config) fn services(
    value: &Node,
    first: usize,
    report: &mut Report,
) -> Vec<ServicesSpec> {
    report.found_at(Item::Setting("discovery"), value.place);
    let mut sources = Vec::new();
    let mut none = true;
    for node in one_or_many(value) {
        let Data::Map(entries) = &*node.data else {
            let message = "`discovery` must be a mapping such as `kubernetes: {namespace: shop}`, or \
                           a list of them";
            report.fault(node.place, message);
            return sources;
        };
        for entry in entries {
            none = false;
            match entry.key.as_str() {
                "kubernetes" => {
                    let index = first + sources.len();
                    let place = entry.place;
                    sources.extend(source(&entry.value, (index, place), report));
                }
                other if KINDS.contains(&other) => {
                    let message = format!(
                        "`{other}` finds backends, not services: write it under the `discovery` of \
                         a service; here only `kubernetes` may stand"
                    );
                    report.fault(entry.place, message);
                }
                other => {
                    let words = unknown("key", other, " in discovery", FINDERS, &[]);
                    report.fault(entry.place, words);
                }
            }
        }
    }
    if none {
        let message = "`discovery` names no source; write `kubernetes`";
        report.fault(value.place, message);
    }
    sources
}

fn source(
    value: &Node,
    (index, place): (usize, Place),
    report: &mut Report,
) -> Option<ServicesSpec> {
    let keys = Kubernetes::KEYS.iter().chain(&COMMON).copied();
    let keys: Vec<&'static str> = keys.chain(["defaults"]).collect();
    let fields = Fields::of(value, "kubernetes", &keys, &[], report)?;
    report.found_at(Item::Service(index), place);
    report.found_at(Item::Discovery(index), place);
    report.found_at(Item::Source(index, 0), place);
    for key in &keys {
        if let Some(value) = fields.get(key) {
            report.found_at(Item::SourceKey(index, 0, key), value.place);
        }
    }
    let settings = settings(&fields, Settings::default(), report);
    let defaults = defaults(fields.get("defaults"), index, report);
    let kind = Kubernetes::decode(&fields, report)?;
    Some(ServicesSpec {
        kind: ServicesKind::Kubernetes(kind),
        settings,
        defaults,
    })
}

/// What is wrong with the sources of services, also where they do not come from a file.
pub(in crate::config) fn check(config: &Config, remarks: &mut Remarks) {
    let first = config.services.len();
    for (at, source) in config.discovery.iter().enumerate() {
        let index = first + at;
        let ServicesSpec {
            kind,
            settings,
            defaults,
        } = source;
        let name = source.name();
        let same = |other: &ServicesSpec| other.name() == name;
        if let Some(before) = config.discovery[..at].iter().position(same) {
            let message = format!("{} {} is listed twice", name.kind, quoted(&name.target));
            let items = [index, first + before].map(|index| Item::Source(index, 0));
            remarks.conflict(items[0], items[1], message);
        }
        let mut of_source = SourceRemarks {
            remarks,
            service: index,
            index: 0,
            kind: kind.name(),
        };
        check_settings(settings, &mut of_source);
        match kind {
            ServicesKind::Kubernetes(config) => config.check(&mut of_source),
        }
        check::defaults(defaults, index, remarks);
    }
}

/// As it stands in the file: a map, or a list of maps.
pub(in crate::config) fn render(sources: &[ServicesSpec]) -> Value {
    let entries: Vec<Value> = sources.iter().map(entry).collect();
    match <[Value; 1]>::try_from(entries) {
        Ok([one]) => one,
        Err(many) => many.into(),
    }
}

fn entry(source: &ServicesSpec) -> Value {
    let ServicesSpec {
        kind,
        settings,
        defaults,
    } = source;
    let mut map = Mapping::new();
    match kind {
        ServicesKind::Kubernetes(config) => config.render(&mut map),
    }
    render_settings(settings, Settings::default(), &mut map);
    put_unless_empty(&mut map, "defaults", render_defaults(defaults));
    Value::Mapping([(kind.name().into(), map.into())].into_iter().collect())
}
