//! Brings the kernel to what is desired, verifies it, and repairs what others broke.

mod execute;
mod name;
mod tables;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use lb_common::abi::{Backend, backend_state};

use crate::{
    datapath::Datapath,
    plan::{self, Change, Desired, Input, Installed, Placement, Recipe},
    select::Builder,
};

use name::Names;

pub use verify::Tables;

pub struct Reconciler {
    datapath: Arc<dyn Datapath>,
    installed: Installed,
    /// What the installed tables were built from, where known.
    recipes: HashMap<u32, Recipe>,
    /// Slots of removed backends, with the number of scans when they were retired.
    retired: HashMap<u32, u64>,
    scans: u64,
    /// Tables written or removed, or nearly so, since verifying began.
    rewritten: HashSet<u32>,
    /// Services whose source lists were, likewise.
    relisted: HashSet<u32>,
    /// Since this was made.
    tables_written: u64,
    names: Names,
    builder: Builder,
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
        Ok(Self {
            installed: verify::read(datapath.as_ref())?,
            datapath,
            recipes: HashMap::new(),
            retired: HashMap::new(),
            scans: 0,
            rewritten: HashSet::new(),
            relisted: HashSet::new(),
            tables_written: 0,
            names: Names::default(),
            builder: Builder::default(),
        })
    }

    /// What the kernel held when this was made, or holds since the last pass.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Selection tables written since this was made.
    pub fn tables_written(&self) -> u64 {
        self.tables_written
    }

    /// Says that the counts given to [`Self::apply`] from now on are those of a scan that began
    /// after the last pass. Slots of backends removed by then may be freed; without this call none
    /// is, because a connection may have begun after its slot was counted.
    pub fn scanned(&mut self) {
        self.scans += 1;
    }

    /// Makes the kernel hold `desired`. `present` counts the flow entries per slot as of the last
    /// scan (`None` before the first): the slot of a removed backend is freed once it has none (see
    /// [`Self::scanned`]).
    ///
    /// When a write fails, everything that does not depend on it is written all the same; the
    /// error names what was not, and the next call tries again.
    pub fn apply(
        &mut self,
        desired: &Desired,
        present: Option<&HashMap<u32, u64>>,
    ) -> anyhow::Result<Applied> {
        let retired = self.retired_before_scan();
        let mut applied = self.pass(desired, present, &retired)?;
        // What this pass removed may be the room that was missing.
        if !applied.refused.is_empty() && applied.changes > 0 {
            let again = self.pass(desired, present, &retired)?;
            applied = Applied {
                changes: applied.changes + again.changes,
                ..again
            };
        }
        Ok(applied)
    }

    /// As [`Self::apply`], for the services at `places` of what is desired, the others being as the
    /// last pass left them: see [`plan::plan_part`] for what may differ. Gives the number of kernel
    /// writes; `None`, and nothing done, if it takes a whole pass.
    pub fn apply_part(
        &mut self,
        desired: &Desired,
        places: &BTreeSet<usize>,
        placement: &Placement,
    ) -> anyhow::Result<Option<usize>> {
        let input = Input {
            desired,
            installed: &self.installed,
            present: None,
            retired: &HashSet::new(),
            recipes: &self.recipes,
            capacity: self.datapath.capacity(),
        };
        match plan::plan_part(input, places, placement) {
            Some(changes) => self.execute(changes).map(Some),
            None => Ok(None),
        }
    }

    /// Has a slot take no new connections, ahead of the pass that takes its backend for failed.
    pub fn evict(&mut self, slot: u32) -> anyhow::Result<()> {
        let Some(held) = self.installed.backends.get(&slot) else {
            return Ok(());
        };
        let backend = Backend {
            state: backend_state::DOWN,
            ..*held
        };
        self.write(Change::SetBackend { slot, backend })
    }

    /// The first half of verifying, which takes most of its time and may run beside other calls:
    /// reads the tables and the source lists. [`Self::verify`] wants the result.
    pub fn begin_verify(&mut self) -> impl FnOnce() -> anyhow::Result<Tables> + Send + 'static {
        self.rewritten.clear();
        self.relisted.clear();
        let datapath = self.datapath.clone();
        move || verify::read_tables(datapath.as_ref())
    }

    /// Reads the rest of the kernel's maps back, writes again what differs, and says what was
    /// repaired. `tables` were read since [`Self::begin_verify`]; those written meanwhile are taken
    /// for right until the next time.
    pub fn verify(&mut self, tables: Tables) -> anyhow::Result<Vec<String>> {
        let found = self.differences(tables)?;
        let said = found
            .changes
            .iter()
            .map(|change| self.names.repair(change, &found.found));
        let said = said.collect();
        self.installed = found.found;
        self.execute(found.changes)?;
        Ok(said)
    }

    fn pass(
        &mut self,
        desired: &Desired,
        present: Option<&HashMap<u32, u64>>,
        retired: &HashSet<u32>,
    ) -> anyhow::Result<Applied> {
        let plan = plan::plan(Input {
            desired,
            installed: &self.installed,
            present,
            retired,
            recipes: &self.recipes,
            capacity: self.datapath.capacity(),
        });
        self.names.learn(&plan.placement.services);
        let result = self.execute(plan.changes);
        self.note_retired(&plan.retired);
        Ok(Applied {
            changes: result?,
            placement: plan.placement,
            refused: plan.refused,
        })
    }

    /// Remembers since which scan slots are retired; one that a failed write left active is not.
    fn note_retired(&mut self, slots: &HashSet<u32>) {
        self.retired.retain(|slot, _| slots.contains(slot));
        for slot in slots {
            let backend = self.installed.backends.get(slot);
            if backend.is_some_and(|b| b.state != backend_state::ACTIVE) {
                self.retired.entry(*slot).or_insert(self.scans);
            }
        }
    }

    fn retired_before_scan(&self) -> HashSet<u32> {
        let slots = self.retired.iter().filter(|(_, at)| **at < self.scans);
        slots.map(|(slot, _)| *slot).collect()
    }
}
