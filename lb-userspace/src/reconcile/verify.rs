use std::collections::{BTreeMap, HashSet};

use super::Reconciler;
use crate::{
    datapath::Datapath,
    model::Sources,
    plan::{self, Admissions, Change, Digest, Installed, Table, Target},
};

/// The tables and source lists as the kernel holds them.
#[derive(Debug)]
pub struct Tables {
    tables: BTreeMap<u32, Digest>,
    sources: BTreeMap<u32, Sources>,
}

/// What others made of the maps, and what undoes it.
pub(super) struct Differences {
    pub(super) found: Installed,
    pub(super) changes: Vec<Change>,
}

/// Reads all maps.
pub(super) fn read(datapath: &dyn Datapath) -> anyhow::Result<Installed> {
    let mut installed = read_small(datapath)?;
    let large = read_tables(datapath)?;
    installed.tables = large.tables;
    installed.admissions.sources = large.sources;
    Ok(installed)
}

pub(super) fn read_tables(datapath: &dyn Datapath) -> anyhow::Result<Tables> {
    let mut tables = BTreeMap::new();
    for table in datapath.tables()? {
        if let Some(slots) = datapath.table(table)? {
            tables.insert(table, Digest::of(&slots));
        }
    }
    let sources = datapath.sources()?;
    Ok(Tables { tables, sources })
}

/// All maps but the tables and source lists.
fn read_small(datapath: &dyn Datapath) -> anyhow::Result<Installed> {
    Ok(Installed {
        services: datapath.services()?.into_iter().collect(),
        echoes: datapath.echoes()?.into_iter().collect(),
        backends: datapath.backends()?.into_iter().collect(),
        tables: Default::default(),
        ports: datapath.port_words()?,
        admissions: Admissions {
            rules: datapath.admissions()?.into_iter().collect(),
            sources: Default::default(),
        },
    })
}

impl Reconciler {
    /// Compares the kernel with what was last written. Changes nothing.
    pub(super) fn differences(&self, tables: Tables) -> anyhow::Result<Differences> {
        let mut found = read_small(self.datapath.as_ref())?;
        found.tables = tables.tables;
        found.admissions.sources = tables.sources;
        for service in &self.relisted {
            let lists = &mut found.admissions.sources;
            match self.installed.admissions.sources.get(service) {
                Some(list) => lists.insert(*service, list.clone()),
                None => lists.remove(service),
            };
        }
        for table in &self.rewritten {
            match self.installed.tables.get(table) {
                Some(digest) => found.tables.insert(*table, *digest),
                None => found.tables.remove(table),
            };
        }
        let wanted = self.installed.clone();
        let tables = wanted.tables.into_iter().map(|(table, digest)| {
            let is_right = found.tables.get(&table) == Some(&digest);
            let to = match self.recipes.get(&table) {
                Some(recipe) if !is_right => Table::Of(recipe.clone()),
                // Without recipe it is a former daemon's that no pass has taken over yet: that
                // pass builds it.
                _ => Table::Installed,
            };
            (table, to)
        });
        let mut changes = plan::changes(
            &found,
            Target {
                services: wanted.services,
                echoes: wanted.echoes,
                backends: wanted.backends.into_iter().collect(),
                tables: tables.collect(),
                ports: wanted.ports,
                admissions: wanted.admissions,
                retired: &HashSet::new(),
            },
        );
        // The slot is still the same backend's.
        changes.retain(|change| !matches!(change, Change::ClearCounters { .. }));
        Ok(Differences { found, changes })
    }
}
