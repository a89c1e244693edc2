use std::collections::HashSet;

use anyhow::Context;
use lb_common::abi::{Admission, backend_state};

use super::{Change, Reconciler};
use crate::plan::edited;

impl Reconciler {
    /// Carries out `changes` and keeps `installed` true; gives the number of writes. After a
    /// failure, changes to the services concerned are left out, because they rely on the failed
    /// one; the others go on.
    pub(super) fn execute(&mut self, changes: Vec<Change>) -> anyhow::Result<usize> {
        let mut blocked: HashSet<u32> = HashSet::new();
        let mut failures: Vec<anyhow::Error> = Vec::new();
        let mut writes = 0;
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            if let Change::SetTable { table, recipe } = change {
                let mut run = vec![(table, recipe)];
                while let Some(Change::SetTable { table, recipe }) =
                    changes.next_if(|next| matches!(next, Change::SetTable { .. }))
                {
                    run.push((table, recipe));
                }
                run.retain(|(table, _)| !blocked.contains(&(table / 2)));
                let (written, failed) = self.write_tables(run);
                writes += written;
                for (table, error) in failed {
                    failures.push(error);
                    blocked.insert(table / 2);
                }
                continue;
            }
            let concerned = self.concerned(&change);
            if concerned.iter().any(|service| blocked.contains(service)) {
                blocked.extend(concerned);
                continue;
            }
            // Ports belong to no service. Without one that is missing, everything after would be
            // out of order; one too many does no harm.
            if let Change::SetPortWord { index, word } = change
                && !failures.is_empty()
                && word & self.port_word(index) != self.port_word(index)
            {
                continue;
            }
            let is_port = matches!(change, Change::SetPortWord { .. });
            let name = self.names.change(&change, &self.installed);
            match self.write(change).with_context(|| name) {
                Ok(()) => writes += 1,
                Err(error) => {
                    failures.push(error);
                    blocked.extend(concerned);
                    if is_port {
                        break;
                    }
                }
            }
        }
        let others = failures.len().saturating_sub(1);
        match failures.into_iter().next() {
            None => Ok(writes),
            Some(first) if others == 0 => Err(first),
            Some(first) => Err(first.context(format!("{others} more writes failed; the first"))),
        }
    }

    /// Ids of the services that rely on a change.
    fn concerned(&self, change: &Change) -> Vec<u32> {
        match change {
            Change::SetPortWord { .. } | Change::SetEcho { .. } | Change::RemoveEcho { .. } => {
                Vec::new()
            }
            Change::ClearCounters { service, .. }
            | Change::AddSources { service, .. }
            | Change::SetAdmission { service, .. }
            | Change::RemoveSources { service, .. } => vec![*service],
            Change::SetBackend { slot, backend } => {
                let former = self.installed.backends.get(slot);
                let former = former.filter(|b| b.state != backend_state::FREE);
                let now = Some(backend).filter(|b| b.state != backend_state::FREE);
                former.into_iter().chain(now).map(|b| b.service).collect()
            }
            Change::SetTable { table, .. } | Change::RemoveTable { table } => vec![table / 2],
            Change::SetService { listen, service } => {
                let former = self.installed.services.get(listen);
                former.into_iter().chain([service]).map(|s| s.id).collect()
            }
            Change::RemoveService { listen } => {
                let former = self.installed.services.get(listen);
                former.into_iter().map(|s| s.id).collect()
            }
        }
    }

    fn port_word(&self, index: u32) -> u64 {
        self.installed
            .ports
            .get(index as usize)
            .copied()
            .unwrap_or(0)
    }

    /// One write, and what it makes of `installed`.
    pub(super) fn write(&mut self, change: Change) -> anyhow::Result<()> {
        let (datapath, installed) = (self.datapath.as_ref(), &mut self.installed);
        match change {
            Change::ClearCounters { slot, .. } => datapath.clear_counters(slot)?,
            Change::SetBackend { slot, backend } => {
                datapath.set_backend(slot, &backend)?;
                installed.backends.insert(slot, backend);
            }
            Change::SetPortWord { index, word } => {
                datapath.set_port_word(index, word)?;
                let index = index as usize;
                if installed.ports.len() <= index {
                    installed.ports.resize(index + 1, 0);
                }
                installed.ports[index] = word;
            }
            Change::SetTable { table, recipe } => {
                let (_, mut failed) = self.write_tables(vec![(table, recipe)]);
                if let Some((_, error)) = failed.pop() {
                    return Err(error);
                }
            }
            Change::RemoveTable { table } => {
                self.rewritten.insert(table);
                datapath.remove_table(table)?;
                installed.tables.remove(&table);
                self.recipes.remove(&table);
            }
            Change::AddSources { service, sources } => {
                self.relisted.insert(service);
                datapath.add_sources(service, &sources)?;
                let lists = &mut installed.admissions.sources;
                let list = edited(lists.get(&service), &sources, &[]);
                lists.insert(service, list);
            }
            Change::RemoveSources { service, prefixes } => {
                self.relisted.insert(service);
                datapath.remove_sources(service, &prefixes)?;
                let lists = &mut installed.admissions.sources;
                let list = edited(lists.get(&service), &[], &prefixes);
                match list.is_empty() {
                    true => lists.remove(&service),
                    false => lists.insert(service, list),
                };
            }
            Change::SetAdmission { service, admission } => {
                datapath.set_admission(service, &admission)?;
                match admission == Admission::default() {
                    true => installed.admissions.rules.remove(&service),
                    false => installed.admissions.rules.insert(service, admission),
                };
            }
            Change::SetService { listen, service } => {
                datapath.set_service(listen, &service)?;
                installed.services.insert(listen, service);
            }
            Change::RemoveService { listen } => {
                datapath.remove_service(listen)?;
                installed.services.remove(&listen);
            }
            Change::SetEcho { address } => {
                datapath.set_echo(address)?;
                installed.echoes.insert(address);
            }
            Change::RemoveEcho { address } => {
                datapath.remove_echo(address)?;
                installed.echoes.remove(&address);
            }
        }
        Ok(())
    }
}
