//! `discovery: {consul: …}`.

use std::time::Duration;

use serde_yaml_ng::Mapping;

use super::{
    super::{
        render::put,
        value::{choice, duration, number, one_or_many},
    },
    Fields, Form, Node, Report, SourceRemarks, http, render_secret, secret,
};
use crate::{
    config::value::text,
    discovery::{
        consul::{Config, Consistency},
        http::BaseUrl,
    },
    model::{MAX_WEIGHT, duration_text},
};

const URL: &str = "http://127.0.0.1:8500";
/// Short enough that a source whose service never changes is not stale.
const WAIT: Duration = Duration::from_secs(60);
/// Consul's weight of an instance without one, 1, is lbd's.
const WEIGHT_UNIT: u16 = crate::config::DEFAULT_WEIGHT;

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "url",
        "service",
        "tags",
        "filter",
        "datacenter",
        "namespace",
        "token",
        "tls",
        "consistency",
        "wait",
        "weight_unit",
    ];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let url = match fields.get("url") {
            Some(value) => http::url(value, "url", report),
            None => URL.parse().ok(),
        };
        let service = fields
            .require("service", "the consul source", "web", report)
            .and_then(|value| word(value, "service", report));
        let mut optional = |key: &str| word(fields.get(key)?, key, report);
        let [filter, datacenter, namespace] =
            ["filter", "datacenter", "namespace"].map(&mut optional);
        let tags = fields.get("tags").map_or(&[][..], one_or_many).iter();
        let tags: Vec<_> = tags.filter_map(|tag| word(tag, "tags", report)).collect();
        let consistency = fields
            .get("consistency")
            .and_then(|value| choice(value, "consistency", &Consistency::ALL, &[], report));
        let weight_unit = fields
            .get("weight_unit")
            .and_then(|value| number(value, "weight_unit", 1..=MAX_WEIGHT.into(), report));
        Some(Self {
            tags,
            filter,
            datacenter,
            namespace,
            token: fields
                .get("token")
                .and_then(|value| secret(value, "token", report)),
            tls: http::tls(fields, report),
            consistency: consistency.unwrap_or_default(),
            wait: fields
                .get("wait")
                .and_then(|value| duration(value, "wait", report))
                .unwrap_or(WAIT),
            weight_unit: weight_unit.map_or(WEIGHT_UNIT, |unit| unit as u16),
            url: url?,
            service: service?,
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        let Self {
            url,
            service,
            tags,
            filter,
            datacenter,
            namespace,
            token,
            tls,
            consistency: _,
            wait,
            weight_unit,
        } = self;
        let single = [
            ("service", Some(service)),
            ("filter", filter.as_ref()),
            ("datacenter", datacenter.as_ref()),
            ("namespace", namespace.as_ref()),
        ];
        let single = single
            .into_iter()
            .filter_map(|(key, word)| Some((key, word?)));
        for (key, word) in single.chain(tags.iter().map(|tag| ("tags", tag))) {
            if word.is_empty() || word.contains(char::is_control) {
                remarks.fault(key, "must not be empty, and stand on one line");
            }
        }
        http::check_tls(tls, remarks);
        http::check_plain(url, token.is_some(), "token", remarks);
        if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(wait) {
            remarks.fault("wait", "must be from 1s to 10m");
        } else if wait.subsec_nanos() % 1_000_000 != 0 {
            remarks.fault("wait", "must be whole milliseconds");
        }
        if *weight_unit == 0 {
            remarks.fault("weight_unit", "must be at least 1");
        }
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            url,
            service,
            tags,
            filter,
            datacenter,
            namespace,
            token,
            tls,
            consistency,
            wait,
            weight_unit,
        } = self;
        if URL.parse::<BaseUrl>().as_ref() != Ok(url) {
            put(map, "url", url.to_string());
        }
        put(map, "service", service.clone());
        if !tags.is_empty() {
            put(map, "tags", tags.clone());
        }
        for (key, word) in [
            ("filter", filter),
            ("datacenter", datacenter),
            ("namespace", namespace),
        ] {
            if let Some(word) = word {
                put(map, key, word.clone());
            }
        }
        if let Some(token) = token {
            put(map, "token", render_secret(token));
        }
        http::render_tls(tls, map);
        if *consistency != Consistency::Default {
            put(map, "consistency", consistency.name());
        }
        if *wait != WAIT {
            put(map, "wait", duration_text::format(*wait));
        }
        if *weight_unit != WEIGHT_UNIT {
            put(map, "weight_unit", *weight_unit);
        }
    }
}

fn word(value: &Node, key: &str, report: &mut Report) -> Option<String> {
    text(value, key, "a text", report).map(str::to_owned)
}
