//! What is known of the nodes below a service's. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::parse;
use crate::discovery::{Instance, Snapshot};

/// Nodes, with what their data means.
#[derive(Default)]
pub struct Known {
    ssl_port: bool,
    nodes: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    /// What the node said last that was understood. A registrar that writes garbage over it has not
    /// taken its instance away.
    instance: Option<Instance>,
    fault: Option<String>,
}

impl Known {
    pub fn new(ssl_port: bool) -> Self {
        Self {
            ssl_port,
            nodes: BTreeMap::new(),
        }
    }

    /// Takes away all nodes but these.
    pub fn keep(&mut self, names: &BTreeSet<String>) {
        self.nodes.retain(|name, _| names.contains(name));
    }

    /// What was read of a node; `None` if there is none.
    pub fn read(&mut self, name: &str, data: Option<&[u8]>) {
        let before = self.nodes.remove(name).unwrap_or_default();
        let Some(data) = data else {
            return;
        };
        let entry = match parse::instance(name, data, self.ssl_port) {
            Ok(instance) => Entry {
                instance: Some(instance),
                fault: None,
            },
            Err(fault) => Entry {
                fault: Some(match before.instance {
                    Some(_) => format!("{fault}; what it said before stays in force"),
                    None => fault,
                }),
                ..before
            },
        };
        self.nodes.insert(name.to_owned(), entry);
    }

    pub fn snapshot(&self) -> Snapshot {
        let nodes = self.nodes.values();
        Snapshot {
            instances: nodes.clone().filter_map(|e| e.instance.clone()).collect(),
            left_out: nodes.filter_map(|e| e.fault.clone()).collect(),
            ..Snapshot::default()
        }
    }
}
