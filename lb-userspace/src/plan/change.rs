use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::abi::{Admission, Backend, Service, backend_state};

use super::{Admissions, Installed, Recipe, Table, admission, slots::emptied};
use crate::{
    datapath::Listen,
    model::{Prefix, Sources},
};

/// One write to the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    ClearCounters {
        slot: u32,
        /// The service whose backend the slot goes to.
        service: u32,
    },
    SetBackend {
        slot: u32,
        backend: Backend,
    },
    SetPortWord {
        index: u32,
        word: u64,
    },
    /// Builds a table and, unless the installed one is the same, puts it in its place.
    SetTable {
        table: u32,
        recipe: Recipe,
    },
    RemoveTable {
        table: u32,
    },
    /// In this order: see [`super::admission`].
    AddSources {
        service: u32,
        sources: Sources,
    },
    SetAdmission {
        service: u32,
        admission: Admission,
    },
    RemoveSources {
        service: u32,
        prefixes: Arc<[Prefix]>,
    },
    SetService {
        listen: Listen,
        service: Service,
    },
    RemoveService {
        listen: Listen,
    },
    SetEcho {
        address: IpAddr,
    },
    RemoveEcho {
        address: IpAddr,
    },
}

/// The maps as they should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target<'a> {
    pub services: BTreeMap<Listen, Service>,
    pub echoes: BTreeSet<IpAddr>,
    /// In order of the slots; free ones may be left out.
    pub backends: Vec<(u32, Backend)>,
    pub tables: BTreeMap<u32, Table>,
    pub ports: Vec<u64>,
    pub admissions: Admissions,
    /// Slots that nobody wants any more.
    pub retired: &'a HashSet<u32>,
}

/// What leads from what is installed to the target, in an order in which every step is safe to
/// stop after: failed backends stop taking connections before anything else happens; nothing refers
/// to what is not there yet, or no more; nobody is let in before the rules say so; a reply's port is known before its backend is drawn; and
/// backends that still work but are drained or removed stop only after others took their place, so
/// that no connection is refused in between.
pub fn changes(from: &Installed, to: Target<'_>) -> Vec<Change> {
    let Target {
        services,
        echoes,
        backends,
        tables,
        ports,
        admissions,
        retired,
    } = to;
    let (mut failed, mut started) = (Vec::new(), Vec::new());
    let (mut drained, mut freed) = (Vec::new(), Vec::new());
    // Both are in order of the slots: one walk is far cheaper than a look-up for each.
    let mut installed = from.backends.iter().peekable();
    let mut abandoned = Vec::new();
    for (slot, backend) in &backends {
        abandoned.extend(std::iter::from_fn(|| {
            installed.next_if(|(is, _)| *is < slot)
        }));
        let former = installed.next_if(|(is, _)| *is == slot).map(|(_, b)| b);
        // A slot never used reads as zeros.
        if former.copied().unwrap_or_default() == *backend {
            continue;
        }
        let set = Change::SetBackend {
            slot: *slot,
            backend: *backend,
        };
        let is_same = former.is_some_and(|f| f.generation == backend.generation);
        match backend.state {
            backend_state::FREE => freed.push(set),
            backend_state::DOWN if is_same && !retired.contains(slot) => failed.push(set),
            backend_state::DRAINING | backend_state::DOWN | backend_state::CLOSED if is_same => {
                drained.push(set);
            }
            _ if is_same => started.push(set),
            _ => {
                let service = backend.service;
                started.extend([
                    Change::ClearCounters {
                        slot: *slot,
                        service,
                    },
                    set,
                ]);
            }
        }
    }
    for (slot, backend) in abandoned.into_iter().chain(installed) {
        let empty = emptied(backend);
        if *backend != empty {
            freed.push(Change::SetBackend {
                slot: *slot,
                backend: empty,
            });
        }
    }

    let is_gone = |listen: &&Listen| !services.contains_key(listen);
    let gone_services = from.services.keys().filter(is_gone);
    let gone_tables = from
        .tables
        .keys()
        .filter(|table| !tables.contains_key(table));
    let (more_ports, exact_ports) = port_changes(&from.ports, &ports);

    let mut changes = failed;
    changes.extend(gone_services.map(|listen| Change::RemoveService { listen: *listen }));
    let address = |address: &IpAddr| *address;
    let gone_echoes = from.echoes.difference(&echoes).map(address);
    changes.extend(gone_echoes.map(|address| Change::RemoveEcho { address }));
    changes.extend(admission::changes(&from.admissions, &admissions));
    changes.extend(started);
    changes.extend(more_ports);
    let gone_tables: Vec<Change> = gone_tables
        .map(|table| Change::RemoveTable { table: *table })
        .collect();
    changes.extend(tables.into_iter().filter_map(|(table, to)| match to {
        Table::Installed => None,
        Table::Of(recipe) => Some(Change::SetTable { table, recipe }),
    }));
    changes.extend(
        services
            .iter()
            .filter(|(listen, service)| from.services.get(listen) != Some(service))
            .map(|(listen, service)| Change::SetService {
                listen: *listen,
                service: *service,
            }),
    );
    let new_echoes = echoes.difference(&from.echoes).map(address);
    changes.extend(new_echoes.map(|address| Change::SetEcho { address }));
    changes.extend(drained);
    changes.extend(gone_tables);
    changes.extend(freed);
    changes.extend(exact_ports);
    changes
}

/// Words that must gain bits first, and words that may lose some at the end.
fn port_changes(from: &[u64], to: &[u64]) -> (Vec<Change>, Vec<Change>) {
    let (mut more, mut exact) = (Vec::new(), Vec::new());
    for (index, to) in (0..).zip(to) {
        let is = from.get(index as usize).copied().unwrap_or(0);
        if to & !is != 0 {
            more.push(Change::SetPortWord {
                index,
                word: is | to,
            });
        }
        if is & !to != 0 {
            exact.push(Change::SetPortWord { index, word: *to });
        }
    }
    (more, exact)
}
