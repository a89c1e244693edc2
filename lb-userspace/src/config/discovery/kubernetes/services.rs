//! The config's own `discovery: {kubernetes: …}`, which finds Services.

use serde_yaml_ng::Mapping;

use super::{
    super::super::{render::put, service::prefixes, value::text},
    Fields, Form, Report, SourceRemarks, access, check_access, check_names, exclude_each_other,
    render_access, watch_timeout,
};
use crate::discovery::kubernetes::{
    Select,
    services::{Config, SELECTOR},
};

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "namespace",
        "service",
        "selector",
        "nodeport_addresses",
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
        exclude_each_other(fields, report)?;
        if let (Some(value), None) = (fields.get("service"), fields.get("namespace")) {
            let message = "`service` goes with `namespace`: a name is one within its namespace";
            report.fault(value.place, message);
            return None;
        }
        let mut word = |key: &str, expected: &str| -> Option<Option<String>> {
            match fields.get(key) {
                Some(value) => Some(Some(text(value, key, expected, report)?.to_owned())),
                None => Some(None),
            }
        };
        let namespace = word("namespace", "the name of a namespace")?;
        let service = word("service", "the name of a Service")?;
        let selector = word("selector", "a label selector such as app=web")?;
        let node = word("node", "the name of a node")?;
        let zone = word("zone", "the name of a zone")?;
        let nodeport_addresses = fields.get("nodeport_addresses");
        let nodeport_addresses = nodeport_addresses
            .map(|value| prefixes(value, "nodeport_addresses", "10.0.0.0/8", report));
        Some(Self {
            access: access(fields, report)?,
            namespace,
            select: match service {
                Some(name) => Select::Name(name),
                None => Select::Labels(selector.unwrap_or_else(|| SELECTOR.to_owned())),
            },
            nodeport_addresses: nodeport_addresses.unwrap_or_default(),
            node,
            zone,
            watch_timeout: watch_timeout(fields, report)?,
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        let Self {
            access,
            namespace,
            select,
            nodeport_addresses: _,
            node,
            zone,
            watch_timeout,
        } = self;
        if let (None, Select::Name(_)) = (namespace, select) {
            remarks.fault("service", "goes with `namespace`");
        }
        check_names(namespace.as_ref(), select, [node, zone], remarks);
        check_access(access, *watch_timeout, remarks);
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            access,
            namespace,
            select,
            nodeport_addresses,
            node,
            zone,
            watch_timeout,
        } = self;
        if let Some(namespace) = namespace {
            put(map, "namespace", namespace.clone());
        }
        match select {
            Select::Name(name) => put(map, "service", name.clone()),
            Select::Labels(labels) if labels == SELECTOR => {}
            Select::Labels(labels) => put(map, "selector", labels.clone()),
        }
        if !nodeport_addresses.is_empty() {
            let words: Vec<_> = nodeport_addresses.iter().map(ToString::to_string).collect();
            put(map, "nodeport_addresses", words);
        }
        for (key, value) in [("node", node), ("zone", zone)] {
            if let Some(value) = value {
                put(map, key, value.clone());
            }
        }
        render_access(access, *watch_timeout, map);
    }
}
