//! `discovery:` of a service: from the file and back.
//!
//! A kind of source has a file here that implements [`Form`] for its configuration.

mod consul;
mod dns;
mod etcd;
mod eureka;
mod file;
mod http;
pub(crate) mod instances;
mod kubernetes;
pub(super) mod services;
mod zookeeper;

use std::time::Duration;

use serde_yaml_ng::{Mapping, Value};

use super::{
    check::{Item, Remarks},
    render::{put, put_unless_empty},
    report::Report,
    service::labels,
    suggest::quoted,
    tree::{Data, Node},
    value::{Fields, duration, number, one_or_many, unknown},
};
use crate::{
    discovery::{Configured, Kind, Secret, Settings, SourceSpec, for_each_kind},
    model::{MAX_WEIGHT, duration_text},
};

/// Keys of every kind of source.
const COMMON: [&str; 7] = [
    "empty_hold",
    "removal_hold",
    "resync",
    "merge_window",
    "stale_after",
    "weight",
    "labels",
];

const LONGEST: Duration = Duration::from_secs(86_400);

/// How one kind of source stands in the config file.
pub(super) trait Form: Sized {
    /// Its own keys.
    const KEYS: &'static [&'static str];

    /// From the file. `None` if what cannot do without is missing or faulty, which is then reported.
    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self>;

    /// What is wrong with it, also where it does not come from a file.
    fn check(&self, remarks: &mut SourceRemarks<'_>);

    /// Its own keys, so that [`Self::decode`] reads the same.
    fn render(&self, map: &mut Mapping);
}

/// Remarks about one source.
pub(super) struct SourceRemarks<'a> {
    remarks: &'a mut Remarks,
    service: usize,
    index: usize,
    kind: &'static str,
}

impl SourceRemarks<'_> {
    /// A fault of a key's value: `must be …`.
    pub(super) fn fault(&mut self, key: &'static str, message: impl AsRef<str>) {
        let message = format!("{} `{key}` {}", self.kind, message.as_ref());
        let item = Item::SourceKey(self.service, self.index, key);
        self.remarks.fault(item, message);
    }

    pub(super) fn warn(&mut self, key: &'static str, message: impl AsRef<str>) {
        let message = format!("{} `{key}` {}", self.kind, message.as_ref());
        let item = Item::SourceKey(self.service, self.index, key);
        self.remarks.warn(item, message);
    }
}

/// A map of kinds, or a list of such maps.
pub(super) fn discovery(value: &Node, service: usize, report: &mut Report) -> Vec<SourceSpec> {
    report.found_at(Item::Discovery(service), value.place);
    let mut sources = Vec::new();
    let mut none = true;
    for node in one_or_many(value) {
        let Data::Map(entries) = &*node.data else {
            let message = "`discovery` must be a mapping such as `file: {path: /etc/lbd/web.yaml}`, \
                           or a list of them";
            report.fault(node.place, message);
            return sources;
        };
        for entry in entries {
            none = false;
            match source(&entry.key, &entry.value, report) {
                Decoded::Source(spec, fields) => {
                    let index = sources.len();
                    report.found_at(Item::Source(service, index), entry.place);
                    for (key, place) in fields {
                        report.found_at(Item::SourceKey(service, index, key), place);
                    }
                    sources.push(*spec);
                }
                Decoded::Faulty => {}
                Decoded::Unknown => {
                    let words = unknown("key", &entry.key, " in discovery", KINDS, &[]);
                    report.fault(entry.place, words);
                }
            }
        }
    }
    if none {
        let message = format!(
            "`discovery` names no source; write one of {}",
            KINDS.join(", ")
        );
        report.fault(value.place, message);
    }
    sources
}

type Places = Vec<(&'static str, super::report::Place)>;

enum Decoded {
    Source(Box<SourceSpec>, Places),
    Faulty,
    Unknown,
}

macro_rules! forms {
    ($($key:literal $variant:ident $module:ident,)+) => {
        const KINDS: &[&str] = &[$($key),+];

        fn source(kind: &str, value: &Node, report: &mut Report) -> Decoded {
            match kind {
                $($key => decoded::<crate::discovery::$module::Config>(
                    $key, value, Kind::$variant, report,
                ),)+
                _ => Decoded::Unknown,
            }
        }

        fn check_kind(kind: &Kind, remarks: &mut SourceRemarks<'_>) {
            match kind {
                $(Kind::$variant(config) => config.check(remarks),)+
            }
        }

        fn render_kind(kind: &Kind, map: &mut Mapping) {
            match kind {
                $(Kind::$variant(config) => config.render(map),)+
            }
        }
    };
}
for_each_kind!(forms);

fn decoded<C: Form + Configured>(
    what: &'static str,
    value: &Node,
    kind: impl Fn(C) -> Kind,
    report: &mut Report,
) -> Decoded {
    let keys: Vec<&'static str> = C::KEYS.iter().chain(&COMMON).copied().collect();
    let Some(fields) = Fields::of(value, what, &keys, &[], report) else {
        return Decoded::Faulty;
    };
    let settings = settings(&fields, C::usual(), report);
    match C::decode(&fields, report) {
        Some(config) => {
            let spec = SourceSpec {
                kind: kind(config),
                settings,
            };
            let places = keys
                .iter()
                .filter_map(|key| Some((*key, fields.get(key)?.place)));
            Decoded::Source(Box::new(spec), places.collect())
        }
        None => Decoded::Faulty,
    }
}

fn settings(fields: &Fields<'_>, usual: Settings, report: &mut Report) -> Settings {
    let mut settings = usual;
    for (key, time) in times(&mut settings) {
        if let Some(value) = fields
            .get(key)
            .and_then(|value| duration(value, key, report))
        {
            *time = value;
        }
    }
    if let Some(weight) = fields
        .get("weight")
        .and_then(|value| number(value, "weight", 0..=u32::from(MAX_WEIGHT), report))
    {
        settings.weight = u16::try_from(weight).unwrap_or(MAX_WEIGHT);
    }
    if let Some(value) = fields.get("labels") {
        settings.labels = labels(value, report);
    }
    settings
}

fn times(settings: &mut Settings) -> [(&'static str, &mut Duration); 5] {
    [
        ("empty_hold", &mut settings.empty_hold),
        ("removal_hold", &mut settings.removal_hold),
        ("resync", &mut settings.resync),
        ("merge_window", &mut settings.merge_window),
        ("stale_after", &mut settings.stale_after),
    ]
}

/// What the sources of one service mean together.
pub(super) fn check(sources: &[SourceSpec], service: usize, remarks: &mut Remarks) {
    for (index, spec) in sources.iter().enumerate() {
        let SourceSpec { kind, settings } = spec;
        let target = kind.target();
        let same =
            |other: &SourceSpec| other.kind.name() == kind.name() && other.kind.target() == target;
        if let Some(first) = sources[..index].iter().position(same) {
            let message = format!("{} {} is listed twice", kind.name(), quoted(&target));
            let item = Item::Source(service, index);
            remarks.conflict(item, Item::Source(service, first), message);
        }
        let mut remarks = SourceRemarks {
            remarks,
            service,
            index,
            kind: kind.name(),
        };
        check_settings(settings, &mut remarks);
        check_kind(kind, &mut remarks);
    }
}

fn check_settings(settings: &Settings, remarks: &mut SourceRemarks<'_>) {
    let mut settings = settings.clone();
    for (key, time) in times(&mut settings) {
        if *time > LONGEST {
            remarks.fault(key, "must be at most 1d");
        } else if time.subsec_nanos() % 1_000_000 != 0 {
            remarks.fault(key, "must be whole milliseconds");
        }
    }
    let Settings {
        resync,
        merge_window,
        stale_after,
        labels,
        ..
    } = settings;
    if !resync.is_zero() && resync < Duration::from_secs(1) {
        remarks.fault("resync", "must be at least 1s, or 0s for never");
    }
    if merge_window > Duration::from_secs(60) {
        remarks.fault("merge_window", "must be at most 1m");
    }
    if stale_after < Duration::from_secs(1) {
        remarks.fault("stale_after", "must be at least 1s");
    } else if stale_after < resync.mul_f64(1.2) {
        let message = format!(
            "{} is hardly longer than `resync` {}: a source that is well would count as stale",
            duration_text::format(stale_after),
            duration_text::format(resync)
        );
        remarks.warn("stale_after", message);
    }
    for (key, value) in &labels {
        if let Some(fault) = super::label_fault(key, value) {
            remarks.fault("labels", format!("are faulty: {fault}"));
        }
    }
}

/// As it stands in the file: a map, or a list of maps.
pub(super) fn render(sources: &[SourceSpec]) -> Value {
    let entries: Vec<Value> = sources
        .iter()
        .map(|SourceSpec { kind, settings }| {
            let mut map = Mapping::new();
            render_kind(kind, &mut map);
            render_settings(settings, kind.usual(), &mut map);
            Value::Mapping([(kind.name().into(), map.into())].into_iter().collect())
        })
        .collect();
    match <[Value; 1]>::try_from(entries) {
        Ok([one]) => one,
        Err(many) => many.into(),
    }
}

fn render_settings(settings: &Settings, mut usual: Settings, map: &mut Mapping) {
    let mut settings = settings.clone();
    for ((key, time), (_, usual)) in times(&mut settings).into_iter().zip(times(&mut usual)) {
        if time != usual {
            put(map, key, duration_text::format(*time));
        }
    }
    let Settings { weight, labels, .. } = settings;
    if weight != usual.weight {
        put(map, "weight", weight);
    }
    let labels = labels.into_iter();
    let labels = labels.map(|(key, value)| (key.into(), value.into()));
    put_unless_empty(map, "labels", labels.collect());
}

/// `{file: PATH}` or `{env: NAME}`. What stands in the config instead is not repeated in the fault: it may
/// be the secret itself.
pub(super) fn secret(value: &Node, key: &str, report: &mut Report) -> Option<Secret> {
    let entry = match &*value.data {
        Data::Map(entries) if entries.len() == 1 => entries.first(),
        _ => None,
    };
    let word = entry.and_then(|entry| match (&*entry.value.data, entry.key.as_str()) {
        (Data::Scalar { text, .. }, "file") if text.starts_with('/') => {
            Some(Secret::File(text.into()))
        }
        (Data::Scalar { text, .. }, "env") if !text.is_empty() => Some(Secret::Env(text.clone())),
        _ => None,
    });
    if word.is_none() {
        let message = format!(
            "`{key}` must say where the secret is: `{{file: /absolute/path}}` or \
             `{{env: VARIABLE}}`; the config itself holds none"
        );
        report.fault(value.place, message);
    }
    word
}

/// The way back of [`secret`].
pub(super) fn render_secret(secret: &Secret) -> Value {
    let (key, value) = match secret {
        Secret::File(path) => ("file", path.to_string_lossy().into_owned()),
        Secret::Env(name) => ("env", name.clone()),
    };
    Value::Mapping([(key.into(), value.into())].into_iter().collect())
}
