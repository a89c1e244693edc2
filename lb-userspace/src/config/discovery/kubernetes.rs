//! `discovery: {kubernetes: …}`, of a service and of the config itself.

mod services;

use std::{ops::RangeInclusive, time::Duration};

use serde_yaml_ng::Mapping;

use super::{
    super::{
        check::node::path_fault,
        render::put,
        suggest::quoted,
        value::{choice, duration, text},
    },
    Fields, Form, Report, SourceRemarks, http, render_secret, secret,
};
use crate::{
    discovery::kubernetes::{Access, Config, Select, Traffic, WATCH_TIMEOUT, Wanted},
    model::duration_text,
};

/// A server may end a watch sooner, and ends none after less than this by itself.
const WATCH: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

const TRAFFIC: [(&str, Traffic); 2] = [
    (Traffic::External.name(), Traffic::External),
    (Traffic::Internal.name(), Traffic::Internal),
];

/// Longest name of an object: RFC 1123.
const MAX_OBJECT_NAME: usize = 253;

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "namespace",
        "service",
        "selector",
        "port",
        "traffic",
        "node",
        "zone",
        "watch_timeout",
        "kubeconfig",
        "context",
        "server",
        "token",
        "tls",
    ];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let mut word = |key: &str, expected: &str| -> Option<String> {
            text(fields.get(key)?, key, expected, report).map(str::to_owned)
        };
        let service = word("service", "the name of a Service");
        let selector = word("selector", "a label selector such as app=web");
        let port = word("port", "the name or number of a port of the Service");
        let node = word("node", "the name of a node");
        let zone = word("zone", "the name of a zone");
        let namespace = fields
            .require("namespace", "the kubernetes source", "shop", report)
            .and_then(|value| text(value, "namespace", "the name of a namespace", report))
            .map(str::to_owned);
        exclude_each_other(fields, report)?;
        let select = match fields.get("selector") {
            Some(_) => Select::Labels(selector?),
            None => {
                fields.require("service", "the kubernetes source", "web", report)?;
                Select::Name(service?)
            }
        };
        let traffic = match fields.get("traffic") {
            Some(value) => choice(value, "traffic", &TRAFFIC, &[], report)?,
            None => Traffic::default(),
        };
        Some(Self {
            access: access(fields, report)?,
            wanted: Wanted {
                namespace: namespace?,
                select,
                port,
                traffic,
                node,
                zone,
            },
            watch_timeout: watch_timeout(fields, report)?,
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        let Self {
            access,
            wanted,
            watch_timeout,
        } = self;
        check_wanted(wanted, remarks);
        check_access(access, *watch_timeout, remarks);
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            access,
            wanted:
                Wanted {
                    namespace,
                    select,
                    port,
                    traffic,
                    node,
                    zone,
                },
            watch_timeout,
        } = self;
        put(map, "namespace", namespace.clone());
        match select {
            Select::Name(name) => put(map, "service", name.clone()),
            Select::Labels(labels) => put(map, "selector", labels.clone()),
        }
        for (key, value) in [("port", port), ("node", node), ("zone", zone)] {
            if let Some(value) = value {
                put(map, key, value.clone());
            }
        }
        if *traffic != Traffic::default() {
            put(map, "traffic", traffic.name());
        }
        render_access(access, *watch_timeout, map);
    }
}

fn exclude_each_other(fields: &Fields<'_>, report: &mut Report) -> Option<()> {
    match (fields.get("service"), fields.get("selector")) {
        (Some(_), Some(value)) => {
            let message = "`selector` and `service` exclude each other";
            report.fault(value.place, message);
            None
        }
        _ => Some(()),
    }
}

fn watch_timeout(fields: &Fields<'_>, report: &mut Report) -> Option<Duration> {
    match fields.get("watch_timeout") {
        Some(value) => duration(value, "watch_timeout", report),
        None => Some(WATCH_TIMEOUT),
    }
}

fn check_access(access: &Access, watch_timeout: Duration, remarks: &mut SourceRemarks<'_>) {
    if !WATCH.contains(&watch_timeout) || watch_timeout.subsec_nanos() != 0 {
        remarks.fault("watch_timeout", "must be whole seconds from 1s to 1h");
    }
    match access {
        Access::InCluster => {}
        Access::Kubeconfig { path, .. } => {
            if let Some(fault) = path_fault(path) {
                remarks.fault("kubeconfig", fault);
            }
        }
        Access::Server { url, token, tls } => {
            http::check_tls(tls, remarks);
            if token.is_some() && !url.is_tls {
                let message = "is sent in the clear: `server` is no https:// URL";
                remarks.warn("token", message);
            }
        }
    }
}

fn render_access(access: &Access, watch_timeout: Duration, map: &mut Mapping) {
    if watch_timeout != WATCH_TIMEOUT {
        put(map, "watch_timeout", duration_text::format(watch_timeout));
    }
    match access {
        Access::InCluster => {}
        Access::Kubeconfig { path, context } => {
            put(map, "kubeconfig", path.to_string_lossy().into_owned());
            if let Some(context) = context {
                put(map, "context", context.clone());
            }
        }
        Access::Server { url, token, tls } => {
            put(map, "server", url.to_string());
            if let Some(token) = token {
                put(map, "token", render_secret(token));
            }
            http::render_tls(tls, map);
        }
    }
}

fn access(fields: &Fields<'_>, report: &mut Report) -> Option<Access> {
    let belongs = [
        ("context", "kubeconfig"),
        ("token", "server"),
        ("tls", "server"),
    ];
    let mut sound = true;
    for (key, to) in belongs {
        if let (Some(value), None) = (fields.get(key), fields.get(to)) {
            report.fault(value.place, format!("`{key}` goes with `{to}`"));
            sound = false;
        }
    }
    if let (Some(_), Some(value)) = (fields.get("kubeconfig"), fields.get("server")) {
        let message = "`server` and `kubeconfig` exclude each other";
        report.fault(value.place, message);
        sound = false;
    }
    if !sound {
        return None;
    }
    if let Some(value) = fields.get("kubeconfig") {
        let path = text(value, "kubeconfig", "an absolute path", report)?.into();
        let context = match fields.get("context") {
            Some(value) => Some(text(value, "context", "a context's name", report)?.to_owned()),
            None => None,
        };
        return Some(Access::Kubeconfig { path, context });
    }
    let Some(value) = fields.get("server") else {
        return Some(Access::InCluster);
    };
    let url = http::url(value, "server", report);
    let token = match fields.get("token") {
        Some(value) => Some(secret(value, "token", report)?),
        None => None,
    };
    Some(Access::Server {
        url: url?,
        token,
        tls: http::tls(fields, report),
    })
}

fn check_wanted(wanted: &Wanted, remarks: &mut SourceRemarks<'_>) {
    let Wanted {
        namespace,
        select,
        port,
        traffic: _,
        node,
        zone,
    } = wanted;
    check_names(Some(namespace), select, [node, zone], remarks);
    let is_port = |port: &str| match port.parse::<u32>() {
        Ok(number) => (1..=65535).contains(&number),
        Err(_) => is_name(port) && port.len() <= 63,
    };
    if let Some(port) = port
        && !is_port(port)
    {
        let message = format!("{} is neither a port's name nor a number", quoted(port));
        remarks.fault("port", message);
    }
}

fn check_names(
    namespace: Option<&String>,
    select: &Select,
    [node, zone]: [&Option<String>; 2],
    remarks: &mut SourceRemarks<'_>,
) {
    let mut name = |key: &'static str, name: &str| {
        if !is_name(name) {
            let message = format!(
                "{} must be 1 to {MAX_OBJECT_NAME} characters a-z, 0-9, `-` and `.`",
                quoted(name)
            );
            remarks.fault(key, message);
        }
    };
    if let Some(namespace) = namespace {
        name("namespace", namespace);
    }
    if let Select::Name(service) = select {
        name("service", service);
    }
    if let Some(node) = node {
        name("node", node);
    }
    if let Select::Labels(labels) = select
        && !is_printable(labels)
    {
        remarks.fault("selector", "must be a label selector such as `app=web`");
    }
    if let Some(zone) = zone
        && !is_printable(zone)
    {
        remarks.fault("zone", "must be the value of a node's zone label");
    }
}

fn is_name(name: &str) -> bool {
    let name_char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    (1..=MAX_OBJECT_NAME).contains(&name.len()) && name.bytes().all(name_char)
}

fn is_printable(text: &str) -> bool {
    let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    (1..=4096).contains(&text.len()) && text.bytes().all(printable)
}
