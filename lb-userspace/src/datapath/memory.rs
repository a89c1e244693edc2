//! A data path that only remembers, for tests.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{bail, ensure};
use lb_common::abi::{Admission, Backend, BackendCounters, Config, Drop, PORT_WORDS, Service};

use super::{Attachment, Capacity, Datapath, FlowScan, Listen, Route, next_epoch};
use crate::model::{Prefix, SnatPool, Sources, Timeouts};

/// The kernel's maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Maps {
    pub config: Config,
    pub ports: Vec<u64>,
    pub services: BTreeMap<Listen, Service>,
    pub echoes: BTreeSet<IpAddr>,
    /// Slots whose generation is not 0.
    pub backends: BTreeMap<u32, Backend>,
    pub tables: BTreeMap<u32, Vec<u32>>,
    pub counters: HashMap<u32, BackendCounters>,
    pub admissions: BTreeMap<u32, Admission>,
    pub sources: BTreeMap<(u32, Prefix), bool>,
}

/// A write, without the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    Config,
    PortWord(u32),
    Service(Listen),
    RemoveService(Listen),
    Echo(IpAddr),
    RemoveEcho(IpAddr),
    Backend(u32),
    Table(u32),
    RemoveTable(u32),
    ClearCounters(u32),
    Admission(u32),
    AddSources(u32),
    RemoveSources(u32),
}

/// Called after every write.
type Watcher = Box<dyn FnMut(Write, &Maps) + Send>;

pub struct Memory {
    capacity: Capacity,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    maps: Maps,
    writes: Vec<Write>,
    watcher: Option<Watcher>,
    /// Calls until one fails; it is the last one at 1.
    fail_in: Option<u64>,
    /// All that follow fail as well.
    is_broken: bool,
    flows: FlowScan,
    drops: Vec<u64>,
    routes: HashMap<IpAddr, Route>,
    repaired: Vec<String>,
    attachments: Vec<(String, Attachment)>,
}

impl Memory {
    pub fn new(capacity: Capacity) -> Self {
        let mut inner = Inner::default();
        inner.maps.ports = vec![0; PORT_WORDS as usize];
        inner.drops = vec![0; Drop::SLOTS as usize];
        Self {
            capacity,
            inner: Mutex::new(inner),
        }
    }

    /// Makes the `n`-th call from now fail, from 1; reads count too. 0 forgets an earlier order.
    pub fn fail_call(&self, n: u64) {
        let mut inner = self.lock();
        inner.fail_in = (n > 0).then_some(n);
        inner.is_broken = false;
    }

    /// Makes the `n`-th call from now fail, from 1, and all after it, until
    /// [`Memory::fail_call`] says otherwise: nothing reaches the kernel any more.
    pub fn break_at_call(&self, n: u64) {
        let mut inner = self.lock();
        inner.fail_in = Some(n.max(1));
        inner.is_broken = true;
    }

    /// What [`Datapath::scan_flows`] finds from now on.
    pub fn set_flows(&self, flows: FlowScan) {
        self.lock().flows = flows;
    }

    pub fn set_drops(&self, drops: Vec<u64>) {
        self.lock().drops = drops;
    }

    /// Addresses without one have a direct route without source.
    pub fn set_route(&self, address: IpAddr, route: Route) {
        self.lock().routes.insert(address, route);
    }

    /// What the next [`Datapath::repair_attachments`] says.
    pub fn set_repaired(&self, repaired: Vec<String>) {
        self.lock().repaired = repaired;
    }

    pub fn set_attachments(&self, attachments: Vec<(String, Attachment)>) {
        self.lock().attachments = attachments;
    }

    pub fn maps(&self) -> Maps {
        self.lock().maps.clone()
    }

    /// Changes the maps behind the daemon's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Maps)) {
        change(&mut self.lock().maps);
    }

    /// All writes since the last call, in order.
    pub fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.lock().writes)
    }

    /// Calls `watcher` with the maps after every write.
    pub fn watch(&self, watcher: impl FnMut(Write, &Maps) + Send + 'static) {
        self.lock().watcher = Some(Box::new(watcher));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, call: &str, get: impl FnOnce(&Inner) -> T) -> anyhow::Result<T> {
        let mut inner = self.lock();
        inner.count(call)?;
        Ok(get(&inner))
    }

    fn write(&self, write: Write, set: impl FnOnce(&mut Maps)) -> anyhow::Result<()> {
        let mut inner = self.lock();
        inner.count(&format!("{write:?}"))?;
        set(&mut inner.maps);
        inner.writes.push(write);
        let Inner { watcher, maps, .. } = &mut *inner;
        if let Some(watcher) = watcher {
            watcher(write, maps);
        }
        Ok(())
    }
}

impl Inner {
    fn count(&mut self, call: &str) -> anyhow::Result<()> {
        self.fail_in = match self.fail_in {
            Some(1) => {
                self.fail_in = self.fail_in.filter(|_| self.is_broken);
                bail!("{call}: failed by order")
            }
            other => other.map(|n| n - 1),
        };
        Ok(())
    }
}

impl Datapath for Memory {
    fn raise_epoch(&self) -> anyhow::Result<()> {
        self.write(Write::Config, |maps| {
            maps.config.epoch = next_epoch(maps.config.epoch);
        })
    }

    fn set_port_word(&self, index: u32, word: u64) -> anyhow::Result<()> {
        ensure!(index < PORT_WORDS, "PORTS has no element {index}");
        self.write(Write::PortWord(index), |maps| {
            maps.ports[index as usize] = word
        })
    }

    fn port_words(&self) -> anyhow::Result<Vec<u64>> {
        self.read("port_words", |inner| inner.maps.ports.clone())
    }

    fn set_service(&self, listen: Listen, service: &Service) -> anyhow::Result<()> {
        ensure!(
            service.id < self.capacity.services,
            "no service {}",
            service.id
        );
        self.write(Write::Service(listen), |maps| {
            maps.services.insert(listen, *service);
        })
    }

    fn remove_service(&self, listen: Listen) -> anyhow::Result<()> {
        self.write(Write::RemoveService(listen), |maps| {
            maps.services.remove(&listen);
        })
    }

    fn services(&self) -> anyhow::Result<Vec<(Listen, Service)>> {
        self.read("services", |inner| {
            inner.maps.services.iter().map(|(l, s)| (*l, *s)).collect()
        })
    }

    fn set_echo(&self, address: IpAddr) -> anyhow::Result<()> {
        self.write(Write::Echo(address), |maps| {
            maps.echoes.insert(address);
        })
    }

    fn remove_echo(&self, address: IpAddr) -> anyhow::Result<()> {
        self.write(Write::RemoveEcho(address), |maps| {
            maps.echoes.remove(&address);
        })
    }

    fn echoes(&self) -> anyhow::Result<Vec<IpAddr>> {
        self.read("echoes", |inner| {
            inner.maps.echoes.iter().copied().collect()
        })
    }

    fn set_admission(&self, service: u32, admission: &Admission) -> anyhow::Result<()> {
        self.write(Write::Admission(service), |maps| {
            match *admission == Admission::default() {
                true => maps.admissions.remove(&service),
                false => maps.admissions.insert(service, *admission),
            };
        })
    }

    fn admissions(&self) -> anyhow::Result<Vec<(u32, Admission)>> {
        self.read("admissions", |inner| {
            let admissions = inner.maps.admissions.iter();
            admissions.map(|(id, rules)| (*id, *rules)).collect()
        })
    }

    fn add_sources(&self, service: u32, sources: &[(Prefix, bool)]) -> anyhow::Result<()> {
        self.write(Write::AddSources(service), |maps| {
            let sources = sources.iter();
            maps.sources
                .extend(sources.map(|(prefix, allowed)| ((service, *prefix), *allowed)));
        })
    }

    fn remove_sources(&self, service: u32, prefixes: &[Prefix]) -> anyhow::Result<()> {
        self.write(Write::RemoveSources(service), |maps| {
            for prefix in prefixes {
                maps.sources.remove(&(service, *prefix));
            }
        })
    }

    fn sources(&self) -> anyhow::Result<BTreeMap<u32, Sources>> {
        self.read("sources", |inner| {
            let mut lists: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            for ((service, prefix), allowed) in &inner.maps.sources {
                lists.entry(*service).or_default().push((*prefix, *allowed));
            }
            lists
                .into_iter()
                .map(|(id, list)| (id, list.into()))
                .collect()
        })
    }

    fn set_backend(&self, slot: u32, backend: &Backend) -> anyhow::Result<()> {
        ensure!(slot < self.capacity.backends, "BACKENDS has no slot {slot}");
        self.write(Write::Backend(slot), |maps| {
            if backend.generation == 0 {
                maps.backends.remove(&slot);
            } else {
                maps.backends.insert(slot, *backend);
            }
        })
    }

    fn backends(&self) -> anyhow::Result<Vec<(u32, Backend)>> {
        self.read("backends", |inner| {
            inner.maps.backends.iter().map(|(s, b)| (*s, *b)).collect()
        })
    }

    fn set_table(&self, table: u32, slots: &[u32]) -> anyhow::Result<()> {
        ensure!(
            table < 2 * self.capacity.services,
            "TABLES has no element {table}"
        );
        ensure!(
            !slots.is_empty(),
            "table {table}: a table has at least one entry"
        );
        self.write(Write::Table(table), |maps| {
            maps.tables.insert(table, slots.to_vec());
        })
    }

    fn remove_table(&self, table: u32) -> anyhow::Result<()> {
        self.write(Write::RemoveTable(table), |maps| {
            maps.tables.remove(&table);
        })
    }

    fn tables(&self) -> anyhow::Result<Vec<u32>> {
        self.read("tables", |inner| {
            inner.maps.tables.keys().copied().collect()
        })
    }

    fn table(&self, table: u32) -> anyhow::Result<Option<Vec<u32>>> {
        self.read("table", |inner| inner.maps.tables.get(&table).cloned())
    }

    fn counters(&self, slot: u32) -> anyhow::Result<BackendCounters> {
        self.read("counters", |inner| {
            inner.maps.counters.get(&slot).copied().unwrap_or_default()
        })
    }

    fn clear_counters(&self, slot: u32) -> anyhow::Result<()> {
        self.write(Write::ClearCounters(slot), |maps| {
            maps.counters.remove(&slot);
        })
    }

    fn drops(&self) -> anyhow::Result<Vec<u64>> {
        self.read("drops", |inner| inner.drops.clone())
    }

    fn scan_flows(&self, _: &Timeouts) -> anyhow::Result<FlowScan> {
        self.read("scan_flows", |inner| inner.flows.clone())
    }

    /// Addresses with a route of their own are other hosts'.
    fn set_snat(&self, pool: &SnatPool) -> anyhow::Result<Vec<IpAddr>> {
        let is_foreign = |inner: &Inner, ip: &IpAddr| inner.routes.contains_key(ip);
        self.read("set_snat", |inner| {
            let addresses = pool.addresses.iter().copied();
            addresses.filter(|ip| is_foreign(inner, ip)).collect()
        })
    }

    fn route(&self, address: IpAddr) -> anyhow::Result<Route> {
        self.read("route", |inner| {
            let direct = Route {
                source: None,
                returns_here: true,
                is_neighbour: true,
            };
            inner.routes.get(&address).copied().unwrap_or(direct)
        })
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn repair_attachments(&self) -> anyhow::Result<Vec<String>> {
        self.read("repair_attachments", |_| ())?;
        Ok(std::mem::take(&mut self.lock().repaired))
    }

    fn follow_devices(&self) -> anyhow::Result<Vec<String>> {
        self.read("follow_devices", |_| Vec::new())
    }

    fn attachments(&self) -> Vec<(String, Attachment)> {
        self.lock().attachments.clone()
    }
}
