//! What the kernel's maps hold, against what the model says that they should.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{
    self, Be16, PortKind, V4, V6, admission_flag, backend_flag, backend_state as state, forwarding,
    no_backend, policy, port_bit, protocol,
};

use super::model::{Model, Serving, listens};
use crate::{
    datapath::{
        Listen,
        memory::{Maps, Write},
    },
    model::{BackendRef, NoBackend, OnBackendDown, Policy, Protocol, ServiceSpec},
};

/// Slot and generation.
pub(super) type Life = (u32, u32);

/// Where everything is.
pub(super) struct Found {
    pub slots: BTreeMap<BackendRef, Life>,
    /// Slots in use that no backend in force has.
    pub left: BTreeSet<u32>,
}

/// The number that the kernel knows a service by.
pub(super) fn id(maps: &Maps, spec: &ServiceSpec) -> Option<u32> {
    listens(spec).find_map(|listen| Some(maps.services.get(&listen)?.id))
}

pub(super) fn address(backend: &abi::Backend) -> SocketAddr {
    let ip: IpAddr = match backend.family {
        6 => backend.address::<V6>().ip(),
        _ => backend.address::<V4>().ip(),
    };
    SocketAddr::new(ip, Be16(backend.port).get())
}

/// The slot in use of a service's backend.
pub(super) fn slot(maps: &Maps, id: u32, service: &Serving, at: SocketAddr) -> Option<u32> {
    let number = number(service.spec.protocol);
    let is = |b: &abi::Backend| {
        b.state != state::FREE && (b.service, b.protocol, address(b)) == (id, number, at)
    };
    let mut slots = maps.backends.iter().filter(|(_, b)| is(b));
    slots.next().map(|(slot, _)| *slot)
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    }
}

macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($words)+));
        }
    };
}
pub(super) use ensure;

/// Compares all maps with the model. Of slots that no backend in force has, and of ports, only what
/// must never be there is looked at.
pub(super) fn check(model: &Model, maps: &Maps, counters_from: u32) -> Result<Found, String> {
    let mut found = Found {
        slots: BTreeMap::new(),
        left: in_use(maps),
    };
    let wanted = model.serving().iter().flat_map(|s| listens(&s.spec));
    let (wanted, is): (BTreeSet<Listen>, BTreeSet<Listen>) =
        (wanted.collect(), maps.services.keys().copied().collect());
    ensure!(is == wanted, "listens {is:?} instead of {wanted:?}");
    let addresses: BTreeSet<IpAddr> = wanted.iter().map(|l| l.address.ip()).collect();
    ensure!(maps.echoes == addresses, "echoes {:?}", maps.echoes);
    let mut ids = BTreeSet::new();
    let mut tables = BTreeSet::new();
    let mut admissions = BTreeMap::new();
    let mut sources = BTreeMap::new();
    for service in model.serving() {
        let name = &service.spec.name;
        let id = id(maps, &service.spec).ok_or(format!("{name} has no listen"))?;
        ensure!(ids.insert(id), "{name} shares its number {id}");
        entries(maps, service, id)?;
        for (reference, life) in backends(model, maps, service, id)? {
            found.left.remove(&life.0);
            found.slots.insert(reference, life);
        }
        tables.extend(shares(model, maps, service, id)?);
        let rules = rules(service, counters_from + id);
        if rules != abi::Admission::default() {
            admissions.insert(id, rules);
        }
        let admission = &service.spec.admission;
        let allowed = admission.allow_sources.iter().map(|p| ((id, *p), true));
        let denied = admission.deny_sources.iter().map(|p| ((id, *p), false));
        sources.extend(allowed.chain(denied));
    }
    let is: BTreeSet<u32> = maps.tables.keys().copied().collect();
    ensure!(is == tables, "tables {is:?} instead of {tables:?}");
    let is = &maps.admissions;
    ensure!(
        *is == admissions,
        "admissions {is:?} instead of {admissions:?}"
    );
    let is = &maps.sources;
    ensure!(*is == sources, "source lists {is:?} instead of {sources:?}");
    for slot in &found.left {
        let state = maps.backends[slot].state;
        ensure!(
            state != state::ACTIVE,
            "slot {slot} of nobody takes connections"
        );
    }
    let missing = needed_ports(maps)
        .into_iter()
        .find(|port| !has_port(maps, *port));
    ensure!(missing.is_none(), "port {missing:?} is not known");
    Ok(found)
}

/// No bit stands for a port that nobody uses.
pub(super) fn check_ports(maps: &Maps) -> Result<(), String> {
    let mut words = vec![0; maps.ports.len()];
    for (kind, port) in needed_ports(maps) {
        let (word, bit) = port_bit(kind, port);
        words[word as usize] |= bit;
    }
    ensure!(words == maps.ports, "there are ports of nobody");
    Ok(())
}

fn entries(maps: &Maps, service: &Serving, id: u32) -> Result<(), String> {
    let spec = &service.spec;
    for listen in listens(spec) {
        let is = maps.services[&listen];
        let wanted = abi::Service {
            id,
            table: 2 * id + u32::from(listen.address.is_ipv6()),
            policy: match spec.policy {
                Policy::Maglev => policy::MAGLEV,
                Policy::RoundRobin => policy::ROUND_ROBIN,
                Policy::Random => policy::RANDOM,
            },
            forwarding: forwarding::NAT,
            no_backend: match spec.no_backend {
                NoBackend::Reject => no_backend::REJECT,
                NoBackend::Drop => no_backend::DROP,
            },
            ..abi::Service::default()
        };
        ensure!(is == wanted, "{listen:?}: {is:?} instead of {wanted:?}");
    }
    Ok(())
}

fn backends(
    model: &Model,
    maps: &Maps,
    service: &Serving,
    id: u32,
) -> Result<Vec<(BackendRef, Life)>, String> {
    let mut lives = Vec::new();
    for backend in &service.backends {
        let reference = BackendRef {
            service: service.spec.name.clone(),
            address: backend.address,
        };
        let slot = slot(maps, id, service, backend.address);
        let slot = slot.ok_or(format!("{reference} has no slot"))?;
        let is = maps.backends[&slot];
        let wanted = model.state(service, backend);
        ensure!(
            is.state == wanted,
            "{reference} has state {} instead of {wanted}",
            is.state
        );
        let flags = match service.spec.on_backend_down {
            OnBackendDown::Reset => backend_flag::RESET_WHEN_DOWN,
            OnBackendDown::Keep => 0,
        };
        let manner = (is.flags, is.max_connections, is.source, is.spread);
        let wanted = (flags, backend.max_connections, [0; 4], 0);
        ensure!(
            manner == wanted,
            "{reference}: {manner:?} instead of {wanted:?}"
        );
        ensure!(is.generation != 0, "{reference} has no generation");
        lives.push((reference, (slot, is.generation)));
    }
    Ok(lives)
}

/// What a service's tables consist of; gives those that there are.
fn shares(model: &Model, maps: &Maps, service: &Serving, id: u32) -> Result<Vec<u32>, String> {
    let mut tables = Vec::new();
    for is_v6 in [false, true] {
        let table = 2 * id + u32::from(is_v6);
        let takes = |b: &&super::model::Backend| {
            b.address.is_ipv6() == is_v6 && model.state(service, b) == state::ACTIVE
        };
        let eligible = service.backends.iter().filter(takes);
        let eligible = eligible.map(|b| {
            let slot = slot(maps, id, service, b.address);
            (slot.unwrap_or(u32::MAX), model.weight(service, b))
        });
        let eligible: BTreeMap<u32, Option<u32>> = eligible.collect();
        if eligible.is_empty() {
            continue;
        }
        tables.push(table);
        let Some(slots) = maps.tables.get(&table) else {
            continue;
        };
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        slots
            .iter()
            .for_each(|slot| *counts.entry(*slot).or_default() += 1);
        let (drawn, wanted): (Vec<_>, Vec<_>) =
            (counts.keys().collect(), eligible.keys().collect());
        let name = &service.spec.name;
        ensure!(
            drawn == wanted,
            "{name} draws from {drawn:?} instead of {wanted:?}"
        );
        let weights: Option<Vec<u32>> = eligible.values().copied().collect();
        let Some(weights) = weights else {
            // What a source knew before the disk was lost: who is drawn is all there is to say.
            continue;
        };
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        for ((slot, count), weight) in counts.iter().zip(weights) {
            let exact = slots.len() as f64 * f64::from(weight) / sum;
            let off = (*count as f64 - exact).abs();
            ensure!(
                off <= 2.0 + 0.02 * exact,
                "{name} draws slot {slot} {count} times of {}, not {exact:.1}",
                slots.len()
            );
        }
    }
    Ok(tables)
}

fn rules(service: &Serving, counter: u32) -> abi::Admission {
    let admission = &service.spec.admission;
    let lists = (
        admission.allow_sources.is_empty(),
        admission.deny_sources.is_empty(),
    );
    abi::Admission {
        flags: match lists {
            (false, _) => admission_flag::SOURCES | admission_flag::LISTED_ONLY,
            (true, false) => admission_flag::SOURCES,
            (true, true) => 0,
        },
        max_connections: admission.max_connections.unwrap_or(0),
        counter: admission.max_connections.map_or(0, |_| counter),
        ..abi::Admission::default()
    }
}

pub(super) fn in_use(maps: &Maps) -> BTreeSet<u32> {
    let slots = maps.backends.iter().filter(|(_, b)| b.state != state::FREE);
    slots.map(|(slot, _)| *slot).collect()
}

fn needed_ports(maps: &Maps) -> Vec<(PortKind, u16)> {
    let listens = maps.services.keys().map(|listen| {
        let kind = match listen.protocol {
            Protocol::Tcp => PortKind::ServiceTcp,
            Protocol::Udp => PortKind::ServiceUdp,
        };
        (kind, listen.address.port())
    });
    let slots = in_use(maps).into_iter().map(|slot| {
        let backend = &maps.backends[&slot];
        let kind = match backend.protocol {
            protocol::UDP => PortKind::BackendUdp,
            _ => PortKind::BackendTcp,
        };
        (kind, Be16(backend.port).get())
    });
    listens.chain(slots).collect()
}

fn has_port(maps: &Maps, (kind, port): (PortKind, u16)) -> bool {
    let (word, bit) = port_bit(kind, port);
    maps.ports[word as usize] & bit != 0
}

/// Service, family, protocol, address.
type Identity = (u32, u8, u8, SocketAddr);

/// What must hold after every single write, also on the way and in a pass that fails.
#[derive(Default)]
pub(super) struct Guard {
    /// Connections that there really are, by slot.
    pub flows: BTreeMap<u32, u64>,
    pub violation: Option<String>,
    before: BTreeMap<u32, abi::Backend>,
    identities: HashMap<Life, Identity>,
}

impl Guard {
    pub(super) fn watch(&mut self, write: Write, maps: &Maps) {
        if self.violation.is_none() {
            self.violation = self.check(write, maps).err();
        }
        if let Write::Backend(_) = write {
            self.before = maps.backends.clone();
        }
    }

    fn check(&mut self, write: Write, maps: &Maps) -> Result<(), String> {
        let Write::Backend(slot) = write else {
            if let Write::Table(table) = write {
                drawn_from(maps, table)?;
            }
            return Ok(());
        };
        let was = self.before.get(&slot).copied().unwrap_or_default();
        let is = maps.backends.get(&slot).copied().unwrap_or_default();
        ensure!(
            is.generation >= was.generation,
            "slot {slot} goes back to {is:?}"
        );
        let is_free = is.state == state::FREE;
        if was.state != state::FREE && self.flows.get(&slot).is_some_and(|n| *n > 0) {
            let stays = !is_free && is.generation == was.generation;
            ensure!(stays, "slot {slot} has connections and becomes {is:?}");
        }
        if is_free {
            let table = 2 * was.service + u32::from(was.family == 6);
            return drawn_from(maps, table);
        }
        let identity = (is.service, is.family, is.protocol, address(&is));
        let known = self
            .identities
            .entry((slot, is.generation))
            .or_insert(identity);
        ensure!(
            *known == identity,
            "slot {slot}, generation {}, is {identity:?} and was {known:?}",
            is.generation
        );
        Ok(())
    }
}

/// A table draws slots of its service and family, and none that is free.
fn drawn_from(maps: &Maps, table: u32) -> Result<(), String> {
    let slots: BTreeSet<u32> = maps
        .tables
        .get(&table)
        .into_iter()
        .flatten()
        .copied()
        .collect();
    for slot in slots {
        let backend = maps.backends.get(&slot).copied().unwrap_or_default();
        let is_right = backend.state != state::FREE
            && 2 * backend.service + u32::from(backend.family == 6) == table;
        ensure!(
            is_right,
            "table {table} draws slot {slot}, which holds {backend:?}"
        );
    }
    Ok(())
}
