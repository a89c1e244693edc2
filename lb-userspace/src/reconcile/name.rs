use std::collections::HashMap;

use lb_common::abi::{Backend, backend_state};

use super::{Change, Installed};
use crate::{datapath::Listen, plan::socket_address};

/// What people call the objects in the kernel's maps. Names of removed services are kept: their
/// backends may be there for a while.
#[derive(Default)]
pub(super) struct Names {
    services: HashMap<u32, String>,
}

impl Names {
    pub(super) fn learn(&mut self, services: &HashMap<String, u32>) {
        for (name, id) in services {
            if self.services.get(id) != Some(name) {
                self.services.insert(*id, name.clone());
            }
        }
    }

    /// The object of a change, e.g. `service web (192.0.2.10:80/tcp)`.
    pub(super) fn change(&self, change: &Change, installed: &Installed) -> String {
        let former = |slot| installed.backends.get(slot);
        match change {
            Change::ClearCounters { slot, .. } => format!("counters of slot {slot}"),
            Change::SetBackend { slot, backend } if backend.state == backend_state::FREE => {
                self.backend(*slot, former(slot).unwrap_or(backend))
            }
            Change::SetBackend { slot, backend } => self.backend(*slot, backend),
            Change::SetPortWord { index, .. } => format!("port bitmaps, word {index}"),
            Change::SetTable { table, .. } | Change::RemoveTable { table } => {
                let family = if table % 2 == 0 { "IPv4" } else { "IPv6" };
                format!("{family} table of {}", self.service(table / 2))
            }
            Change::AddSources { service, .. } | Change::RemoveSources { service, .. } => {
                format!("source lists of {}", self.service(*service))
            }
            Change::SetAdmission { service, .. } => {
                format!("admission rules of {}", self.service(*service))
            }
            Change::SetService { listen, service } => self.listen(*listen, Some(service.id)),
            Change::RemoveService { listen } => {
                self.listen(*listen, installed.services.get(listen).map(|s| s.id))
            }
            Change::SetEcho { address } | Change::RemoveEcho { address } => {
                format!("echo entry of {address}")
            }
        }
    }

    /// What a change repairs in the maps as they were found.
    pub(super) fn repair(&self, change: &Change, found: &Installed) -> String {
        let object = self.change(change, found);
        let was_there = match change {
            Change::SetBackend { slot, backend } if backend.state == backend_state::FREE => {
                let is_ours = found
                    .backends
                    .get(slot)
                    .is_none_or(|b| b.state == backend.state);
                return match is_ours {
                    true => format!("slot {slot}: its generation was lost, written again"),
                    false => format!("{object}: not ours, removed"),
                };
            }
            Change::RemoveTable { .. }
            | Change::RemoveService { .. }
            | Change::RemoveEcho { .. } => {
                return format!("{object}: not ours, removed");
            }
            Change::RemoveSources { .. } => return format!("{object}: not ours, removed"),
            Change::AddSources { service, .. } => found.admissions.sources.contains_key(service),
            Change::SetAdmission { service, .. } => found.admissions.rules.contains_key(service),
            Change::SetBackend { slot, .. } => found.backends.contains_key(slot),
            Change::SetTable { table, .. } => found.tables.contains_key(table),
            Change::SetService { listen, .. } => found.services.contains_key(listen),
            Change::SetEcho { address } => found.echoes.contains(address),
            Change::SetPortWord { .. } | Change::ClearCounters { .. } => true,
        };
        let what = if was_there {
            "was changed"
        } else {
            "was missing"
        };
        format!("{object}: {what}, written again")
    }

    fn service(&self, id: u32) -> String {
        match self.services.get(&id) {
            Some(name) => format!("service {name}"),
            None => format!("service number {id}"),
        }
    }

    fn listen(&self, listen: Listen, id: Option<u32>) -> String {
        let name = id.map_or_else(|| "service".to_owned(), |id| self.service(id));
        format!("{name} ({}/{})", listen.address, listen.protocol)
    }

    fn backend(&self, slot: u32, backend: &Backend) -> String {
        let address = socket_address(backend);
        match self.services.get(&backend.service) {
            Some(name) => format!("backend {name}/{address} (slot {slot})"),
            None => format!("backend {address} (slot {slot})"),
        }
    }
}
