//! A file of instances, for the file source.

use std::net::SocketAddr;

use crate::{
    config::{
        Faults,
        report::Report,
        service::labels,
        suggest::quoted,
        tree::{self, Node},
        value::{Fields, address, choice, list, number, text},
    },
    discovery::{Instance, InstanceState},
    model::MAX_WEIGHT,
};

const KEYS: [&str; 5] = ["id", "address", "weight", "labels", "state"];
const STATES: [(&str, InstanceState); 3] = [
    ("up", InstanceState::Up),
    ("drain", InstanceState::Drain),
    ("down", InstanceState::Down),
];

/// Reads `instances:` of a YAML or JSON text; `file` is its name in messages. An instance without an
/// id has its address for one.
///
/// # Errors
/// Every fault with its place. A text with nothing in it is one: it is what a file has while it is
/// being written.
pub fn parse(text: &str, file: &str) -> Result<Vec<Instance>, Faults> {
    let mut report = Report::default();
    let root = tree::load(text, &mut report);
    let instances = instances(root.as_ref(), &mut report);
    match report.finish() {
        Ok(_) => Ok(instances),
        Err(findings) => Err(Faults {
            file: file.to_owned(),
            findings,
        }),
    }
}

fn instances(root: Option<&Node>, report: &mut Report) -> Vec<Instance> {
    let empty = root.is_none_or(Node::is_null);
    if empty {
        if report.is_clean() {
            let message = "there is nothing in it; to say that there are no instances write \
                           `instances: []`";
            report.fault(super::super::Place::START, message);
        }
        return Vec::new();
    }
    let fields = root.and_then(|root| Fields::of(root, "the file", &["instances"], &[], report));
    let Some(value) = fields.and_then(|fields| {
        fields.require(
            "instances",
            "the file",
            "[{address: \"10.1.0.11:8080\"}]",
            report,
        )
    }) else {
        return Vec::new();
    };
    if value.is_null() {
        let message = "`instances` is empty; to say that there are none write `instances: []`";
        report.fault(value.place, message);
    }
    let expected = "a list of instances";
    let nodes = list(value, "instances", expected, report).unwrap_or(&[]);
    let mut seen = std::collections::HashMap::new();
    let mut instances = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(instance) = instance(node, report) else {
            continue;
        };
        if let Some(line) = seen.insert(instance.id.clone(), node.place.line) {
            let id = quoted(&instance.id);
            let message = format!("the id {id} is used twice; first at line {line}");
            report.fault(node.place, message);
        }
        instances.push(instance);
    }
    instances
}

fn instance(value: &Node, report: &mut Report) -> Option<Instance> {
    let fields = Fields::of(value, "instance", &KEYS, &[], report)?;
    let at = fields.require("address", "the instance", "\"10.1.0.11:8080\"", report)?;
    let address: SocketAddr = address(at, "address", report)?;
    if let Some(fault) = crate::config::backend_fault(address) {
        report.fault(at.place, format!("`address` {address} {fault}"));
        return None;
    }
    let id = match fields.get("id") {
        Some(value) => text(value, "id", "a text", report)?.to_owned(),
        None => address.to_string(),
    };
    let mut instance = Instance::new(id, address);
    if let Some(value) = fields.get("weight") {
        let weight = number(value, "weight", 0..=u32::from(MAX_WEIGHT), report)?;
        instance.weight = u16::try_from(weight).ok();
    }
    if let Some(value) = fields.get("labels") {
        instance.labels = labels(value, report);
        for (key, label) in &instance.labels {
            if let Some(fault) = crate::config::label_fault(key, label) {
                report.fault(value.place, fault);
            }
        }
    }
    if let Some(value) = fields.get("state") {
        instance.state = choice(value, "state", &STATES, &[], report)?;
    }
    Some(instance)
}
