//! What is known of the nodes below a service's. Pure.

use std::collections::BTreeSet;

use super::parse;
use crate::discovery::{
    Failure, Instance, Snapshot,
    bounds::{Bounded, weight},
};

/// Nodes, with what their data means.
pub struct Known {
    ssl_port: bool,
    nodes: Bounded<String, Entry>,
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
            nodes: Bounded::new("nodes"),
        }
    }

    /// Takes away all nodes but these.
    pub fn keep(&mut self, names: &BTreeSet<String>) {
        self.nodes.retain(|name| names.contains(name));
    }

    /// What was read of a node; `None` if there is none.
    ///
    /// # Errors
    /// If all nodes together are more than a source may hold.
    pub fn read(&mut self, name: &str, data: Option<&[u8]>) -> Result<(), Failure> {
        let before = self.nodes.remove(name).unwrap_or_default();
        let Some(data) = data else {
            return Ok(());
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
        let weight = name.len() + weight(entry.instance.as_ref(), entry.fault.as_ref());
        self.nodes.insert(name.to_owned(), entry, weight)
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
