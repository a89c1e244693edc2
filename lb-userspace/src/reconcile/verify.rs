use std::{borrow::Cow, collections::HashSet};

use super::Reconciler;
use crate::{
    datapath::Datapath,
    plan::{self, Change, Installed, Table, Target},
};

/// What others made of the maps, and what undoes it.
pub(super) struct Differences {
    pub(super) found: Installed,
    pub(super) changes: Vec<Change>,
}

/// Reads all maps.
pub(super) fn read(datapath: &dyn Datapath) -> anyhow::Result<Installed> {
    let mut installed = read_small(datapath)?;
    for table in 0..2 * datapath.capacity().services {
        if let Some(slots) = datapath.table(table)? {
            installed.tables.insert(table, slots);
        }
    }
    Ok(installed)
}

/// All maps but the tables.
fn read_small(datapath: &dyn Datapath) -> anyhow::Result<Installed> {
    Ok(Installed {
        services: datapath.services()?.into_iter().collect(),
        echoes: datapath.echoes()?.into_iter().collect(),
        backends: datapath.backends()?.into_iter().collect(),
        tables: Default::default(),
        ports: datapath.port_words()?,
    })
}

impl Reconciler {
    /// Compares the kernel with what was last written. Changes nothing, but that the tables that
    /// are as they were go over into what was found: the memory for all of them twice is too much.
    pub(super) fn differences(&mut self) -> anyhow::Result<Differences> {
        let mut found = read_small(self.datapath.as_ref())?;
        let mut changed = Vec::new();
        for table in 0..2 * self.datapath.capacity().services {
            let is = self.datapath.table(table)?;
            if is.as_ref() != self.installed.tables.get(&table) {
                changed.push((table, is));
            }
        }
        let mut wanted = std::mem::take(&mut self.installed);
        let mut right = Vec::with_capacity(changed.len());
        for (table, is) in changed {
            let slots = wanted.tables.remove(&table);
            right.push((table, slots, self.recipes.remove(&table)));
            found.tables.extend(is.map(|is| (table, is)));
        }
        let targets = right.into_iter().filter_map(|(table, slots, recipe)| {
            Some((
                table,
                Table {
                    slots: Cow::Owned(slots?),
                    recipe,
                },
            ))
        });
        let mut changes = plan::changes(
            &found,
            Target {
                services: wanted.services,
                echoes: wanted.echoes,
                backends: wanted.backends.into_iter().collect(),
                tables: targets.collect(),
                ports: wanted.ports,
                retired: &HashSet::new(),
            },
        );
        // The slot is still the same backend's.
        changes.retain(|change| !matches!(change, Change::ClearCounters { .. }));
        found.tables.append(&mut wanted.tables);
        Ok(Differences { found, changes })
    }
}
