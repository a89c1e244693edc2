//! The real kernel: loads, pins, attaches and adopts programs and maps through aya.

use std::path::Path;

use crate::model::Node;

pub struct Kernel {}

impl Kernel {
    /// Loads the programs, or adopts what a former daemon left pinned under `<bpffs>/lbd/`, and
    /// attaches to the configured devices.
    pub fn start(node: &Node) -> anyhow::Result<Self> {
        let _ = node;
        todo!()
    }
}

/// Detaches and removes everything lbd made under `bpffs`, and nothing else. Says what it removed.
pub fn cleanup(node: &Node) -> anyhow::Result<Vec<String>> {
    let _: &Path = &node.bpffs;
    todo!()
}
