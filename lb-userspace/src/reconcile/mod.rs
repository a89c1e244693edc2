//! Brings the kernel to what is desired, verifies it, and repairs what others broke.

use std::{collections::HashMap, sync::Arc};

use crate::{
    datapath::Datapath,
    plan::{Desired, Installed, Placement},
};

pub struct Reconciler {
    datapath: Arc<dyn Datapath>,
    installed: Installed,
}

/// What one pass did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Number of kernel writes.
    pub changes: usize,
    pub placement: Placement,
    /// Objects left out, each with the reason and the remedy (e.g. maps too small).
    pub refused: Vec<String>,
}

impl Reconciler {
    /// Reads what the kernel holds already (a former daemon's work is adopted, not rebuilt).
    pub fn new(datapath: Arc<dyn Datapath>) -> anyhow::Result<Self> {
        let _ = datapath;
        todo!()
    }

    /// What the kernel held when this was made, or holds since the last pass.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Makes the kernel hold `desired`. `present` counts the flow entries per slot as of the last
    /// scan (`None` before the first): the slot of a removed backend is freed once it has none.
    pub fn apply(
        &mut self,
        desired: &Desired,
        present: Option<&HashMap<u32, u64>>,
    ) -> anyhow::Result<Applied> {
        let _ = (desired, present, &self.datapath);
        todo!()
    }

    /// Reads the kernel's maps back, writes again what differs, and says what was repaired.
    pub fn verify(&mut self) -> anyhow::Result<Vec<String>> {
        todo!()
    }
}
