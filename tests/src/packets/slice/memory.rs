//! The path's tables in memory.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{
        Active, Address, Admission, Affinity, AffinityKey, Backend, BackendCounters, Be16, Bucket,
        Config, Drop, Flow, FlowKey, FragmentKey, Fragmented, Held, HeldKey, NextHop, Pod, RateKey,
        SOURCE_SERVICE_BITS, Service, ServiceKey, SourceKey, V4, V6, as_bytes, from_bytes,
        protocol,
    },
    path::{
        self, Attempt, Budget, Candidate, FamilyTables, InsertError, Milestone, Query, Recalled,
        Route, Tables, Work,
    },
};

use super::super::world::{self, Addresses};
use super::kept::Kept;
use super::route::{self, Devices};

/// What exists once for each address family.
pub(super) struct Family<A: Address + Hash> {
    services: HashMap<ServiceKey<A>, Service>,
    pub(super) flows: Kept<FlowKey<A>, Flow<A>>,
    pub(super) handshakes: Kept<FlowKey<A>, Flow<A>>,
    listed: Vec<(SourceKey<A>, u32)>,
    pub(super) affinity: Kept<AffinityKey<A>, Affinity>,
    pub(super) fragments: Kept<FragmentKey<A>, Fragmented>,
    pub(super) held: Kept<HeldKey<A>, Held>,
    /// As they were before the tables were replaced.
    pub(super) former_flows: Kept<FlowKey<A>, Flow<A>>,
    pub(super) former_handshakes: Kept<FlowKey<A>, Flow<A>>,
    work: UnsafeCell<Work<A>>,
    recalled: UnsafeCell<Recalled<A>>,
}

impl<A: Address + Hash> Family<A> {
    /// Puts empty flow tables in the place of these, which become the former ones.
    pub(super) fn replace_flows(&self) {
        self.flows.empty_into(&self.former_flows);
        self.handshakes.empty_into(&self.former_handshakes);
    }

    pub(super) fn evict(&self, key: &FlowKey<A>) -> bool {
        let tables = [&self.handshakes, &self.former_handshakes];
        tables.map(|table| table.remove(key)).contains(&true)
    }

    pub(super) fn remove(&self, key: &FlowKey<A>) {
        self.flows.remove(key);
        self.former_flows.remove(key);
        self.evict(key);
    }

    fn forget(&mut self) {
        self.flows.clear();
        self.handshakes.clear();
        self.affinity.clear();
        self.fragments.clear();
        self.held.clear();
        self.former_flows.clear();
        self.former_handshakes.clear();
    }
}

impl<A: Address + Hash> Default for Family<A>
where
    Work<A>: Pod,
    Recalled<A>: Pod,
{
    fn default() -> Self {
        let zeroes = vec![0; size_of::<Work<A>>()];
        let work = from_bytes(&zeroes).expect("as many bytes as it needs");
        let recalled = from_bytes(&zeroes).expect("more bytes than it needs");
        Self {
            services: HashMap::new(),
            flows: Kept::default(),
            handshakes: Kept::default(),
            listed: Vec::new(),
            affinity: Kept::default(),
            fragments: Kept::default(),
            held: Kept::default(),
            former_flows: Kept::default(),
            former_handshakes: Kept::default(),
            work: UnsafeCell::new(work),
            recalled: UnsafeCell::new(recalled),
        }
    }
}

/// The first packet's jiffies.
const START: u32 = 1000;

/// Tables in memory.
pub(super) struct Memory {
    pub(super) config: Config,
    ports: HashMap<u32, u64>,
    pub(super) v4: Family<V4>,
    pub(super) v6: Family<V6>,
    tables: HashMap<u32, Vec<u32>>,
    pub(super) backends: HashMap<u32, Backend>,
    /// As they are to begin with.
    standard_backends: HashMap<u32, Backend>,
    pub(super) cursors: RefCell<HashMap<u32, u32>>,
    pub(super) drops: RefCell<Vec<Drop>>,
    /// The period, and what was taken in it.
    taken: [Cell<(u32, u32)>; Budget::COUNT as usize],
    random: Cell<u32>,
    /// The flow tables are replaced before every packet.
    pub(super) replaces_flows: bool,
    /// Nothing can be entered into the handshakes.
    pub(super) refuses_handshakes: bool,
    /// Entries that each table of established flows has room for.
    pub(super) room: usize,
    pub(super) devices: Devices,
    pub(super) now: u32,
    pub(super) full: [Cell<u32>; 2],
    /// Where the node's own sockets listen, and whether by UDP.
    pub(super) sockets: Vec<(SocketAddr, bool)>,
    pub(super) sources: Vec<IpAddr>,
    admissions: HashMap<u32, Admission>,
    pub(super) rates: Kept<u32, Bucket>,
    pub(super) source_rates: Kept<RateKey, Bucket>,
    pub(super) active: Kept<u32, Active>,
    pub(super) counters: RefCell<HashMap<u32, BackendCounters>>,
}

impl Memory {
    pub(super) fn standard() -> Self {
        let mut memory = Self {
            config: world::CONFIG,
            ports: world::port_words().into_iter().collect(),
            v4: Family::default(),
            v6: Family::default(),
            tables: HashMap::new(),
            backends: HashMap::new(),
            standard_backends: HashMap::new(),
            cursors: RefCell::default(),
            drops: RefCell::default(),
            taken: Default::default(),
            now: START,
            full: Default::default(),
            sockets: Vec::new(),
            sources: Vec::new(),
            admissions: world::admissions().into_iter().collect(),
            rates: Kept::default(),
            source_rates: Kept::default(),
            active: Kept::default(),
            counters: RefCell::default(),
            random: Cell::new(1),
            replaces_flows: false,
            refuses_handshakes: false,
            room: usize::MAX,
            devices: Devices::default(),
        };
        for v6 in [false, true] {
            memory.install(Addresses { v6 });
        }
        memory.standard_backends.clone_from(&memory.backends);
        memory
    }

    /// Forgets all that packets and cases left; what is installed stays as the standard world has it.
    pub(super) fn reset(&mut self) {
        self.config = world::CONFIG;
        self.backends.clone_from(&self.standard_backends);
        self.v4.forget();
        self.v6.forget();
        self.cursors.get_mut().clear();
        self.drops.get_mut().clear();
        self.taken = Default::default();
        self.random.set(1);
        self.now = START;
        self.full = Default::default();
        self.sockets.clear();
        self.sources.clear();
        self.rates.clear();
        self.source_rates.clear();
        self.active.clear();
        self.counters.get_mut().clear();
    }

    pub(super) fn set_table(&mut self, port: u16, v6: bool, slots: &[u32]) {
        let table = 2 * world::service(port).id + u32::from(v6);
        let length = slots.len() as u32;
        let entries = [length].into_iter().chain(slots.iter().copied());
        self.tables.insert(table, entries.collect());
    }

    fn install(&mut self, addresses: Addresses) {
        self.backends.extend(world::backends(addresses));
        for (service, address, length, value) in world::sources(addresses) {
            let words = world::words(address);
            if addresses.v6 {
                let key = SourceKey::new(service, V6::from_words(&words), length);
                self.v6.listed.push((key, value));
            } else {
                let key = SourceKey::new(service, V4::from_words(&words), length);
                self.v4.listed.push((key, value));
            }
        }
        let vip = world::words(addresses.vip(0).ip());
        if addresses.v6 {
            let key = ServiceKey::echo(V6::from_words(&vip), protocol::ICMPV6);
            self.v6.services.insert(key, Service::default());
        } else {
            let key = ServiceKey::echo(V4::from_words(&vip), protocol::ICMP);
            self.v4.services.insert(key, Service::default());
        }
        for listen in world::listens() {
            let protocol = if listen.udp {
                protocol::UDP
            } else {
                protocol::TCP
            };
            let service = world::service(listen.port);
            let table = 2 * service.id + u32::from(addresses.v6);
            let service = Service { table, ..service };
            let port = lb_common::abi::Be16::new(listen.port);
            let words = world::words(addresses.vip(0).ip());
            // Under port 0 and ICMP stands the address itself.
            if addresses.v6 {
                let vip = V6::from_words(&words);
                self.v6
                    .services
                    .insert(ServiceKey::new(vip, Be16(0), 58), service);
                let key = ServiceKey::new(vip, port, protocol);
                self.v6.services.insert(key, service);
            } else {
                let vip = V4::from_words(&words);
                self.v4
                    .services
                    .insert(ServiceKey::new(vip, Be16(0), 1), service);
                let key = ServiceKey::new(vip, port, protocol);
                self.v4.services.insert(key, service);
            }
            if let Some(slots) = &listen.table {
                let mut entries = vec![slots.len() as u32];
                entries.extend(slots.iter().map(|slot| listen.slot(*slot, addresses)));
                self.tables.insert(table, entries);
            }
        }
    }
}

impl Tables for Memory {
    type Table = Vec<u32>;

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn now(&self) -> u32 {
        self.now
    }

    fn recalls(&self) -> bool {
        self.replaces_flows
    }

    fn random(&self) -> u32 {
        self.random.set(
            self.random
                .get()
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223),
        );
        self.random.get()
    }

    fn port_word(&self, index: u32) -> u64 {
        self.ports.get(&index).copied().unwrap_or(0)
    }

    fn backend(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(&slot)
    }

    fn table(&self, table: u32) -> Option<&Self::Table> {
        self.tables.get(&table)
    }

    fn table_entry(&self, table: &Self::Table, index: u32) -> Option<u32> {
        table.get(index as usize).copied()
    }

    fn draw(&self, table: u32, service: u32, place: u32) -> Result<u32, Drop> {
        path::draw(self, table, service, place)
    }

    fn admission(&self, service: u32) -> Option<&Admission> {
        self.admissions.get(&service)
    }

    fn rate(&self, service: u32) -> Option<&Bucket> {
        Some(self.rates.get_or_default(service))
    }

    fn source_rate(&self, key: &RateKey, _: &Bucket) -> Option<&Bucket> {
        Some(self.source_rates.get_or_default(*key))
    }

    fn take_token(&self, bucket: &Bucket) {
        bucket.0.set(bucket.0.get() + 1);
    }

    fn active(&self, index: u32) -> Option<&Active> {
        Some(self.active.get_or_default(index))
    }

    fn counted(&self, _: u32) -> u32 {
        0
    }

    fn add(&self, count: &Cell<u32>) {
        count.set(count.get() + 1);
    }

    fn count_active(&self, slot: u32, generation: u32, before: u32, after: u32) {
        path::count_active(self, slot, generation, before, after);
    }

    fn last_full(&self, v6: bool) -> Option<&Cell<u32>> {
        self.full.get(usize::from(v6))
    }

    fn cursor(&self, service: u32) -> u32 {
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(service).or_insert(0);
        *cursor += 1;
        *cursor - 1
    }

    fn count_packet(&self, slot: u32, reverse: bool, bytes: u64) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(slot).or_default();
        if reverse {
            counters.packets_out += 1;
            counters.bytes_out += bytes;
        } else {
            counters.packets_in += 1;
            counters.bytes_in += bytes;
        }
    }

    fn count_connection(&self, slot: u32, milestone: Milestone) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(slot).or_default();
        *match milestone {
            Milestone::Begun => &mut counters.connections,
            Milestone::Established => &mut counters.established,
            Milestone::Refused => &mut counters.refused,
        } += 1;
    }

    fn count_drop(&self, reason: Drop) {
        self.drops.borrow_mut().push(reason);
    }

    fn take(&self, budget: Budget, period: u32, limit: u32) -> bool {
        let taken = &self.taken[budget as usize];
        let number = match taken.get() {
            (same, number) if same == period => number,
            _ => 0,
        };
        let is_left = number < limit;
        taken.set((period, number + u32::from(is_left)));
        is_left
    }

    fn route(&self, _: u32, query: &Query, hop: &mut NextHop) -> Route {
        let [src, dst] = [query.src, query.dst].map(|address| match query.v6 {
            0 => V4(address[0]).ip(),
            _ => V6(address).ip(),
        });
        let (route, next) = route::route(self.devices, src, dst);
        *hop = next;
        route
    }
}

macro_rules! family_tables {
    ($family:ty, $field:ident) => {
        impl FamilyTables<$family> for Memory {
            fn service(&self, key: &ServiceKey<$family>) -> Option<&Service> {
                self.$field.services.get(key)
            }

            fn flow(&self, key: &FlowKey<$family>) -> Option<&Flow<$family>> {
                self.$field.flows.get(key)
            }

            fn insert_flow(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
            ) -> Result<(), InsertError> {
                let flows = &self.$field.flows;
                if flows.contains(key) {
                    return Err(InsertError::Exists);
                }
                if flows.len() >= self.room {
                    return Err(InsertError::Full);
                }
                flows.insert(*key, flow.clone());
                Ok(())
            }

            fn remove_flow(&self, key: &FlowKey<$family>) {
                self.$field.flows.remove(key);
            }

            fn handshake(&self, key: &FlowKey<$family>) -> Option<&Flow<$family>> {
                self.$field.handshakes.get(key)
            }

            fn insert_handshake(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
                overwrite: bool,
            ) -> Result<(), InsertError> {
                let handshakes = &self.$field.handshakes;
                if self.refuses_handshakes {
                    return Err(InsertError::Full);
                }
                if !overwrite && handshakes.contains(key) {
                    return Err(InsertError::Exists);
                }
                handshakes.insert(*key, flow.clone());
                Ok(())
            }

            fn remove_handshake(&self, key: &FlowKey<$family>) -> bool {
                self.$field.handshakes.remove(key)
            }

            fn recall(&self, key: &FlowKey<$family>) -> bool {
                let recalled = FamilyTables::<$family>::recalled(self);
                recalled.expect("it is there").key = *key;
                path::bring::<$family, _>(self)
            }

            fn recalled(&self) -> Option<&mut Recalled<$family>> {
                // SAFETY: as in `work`.
                Some(unsafe { &mut *self.$field.recalled.get() })
            }

            fn former_flow(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let former = &self.$field.former_flows;
                former.get(key).is_some_and(|former| {
                    flow.clone_from(former);
                    true
                })
            }

            fn remove_former_flow(&self, key: &FlowKey<$family>) {
                self.$field.former_flows.remove(key);
            }

            fn former_handshake(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let former = &self.$field.former_handshakes;
                former.get(key).is_some_and(|former| {
                    flow.clone_from(former);
                    true
                })
            }

            fn remove_former_handshake(&self, key: &FlowKey<$family>) {
                self.$field.former_handshakes.remove(key);
            }

            fn listed(&self, key: &SourceKey<$family>) -> Option<u32> {
                let covers = |prefix: &SourceKey<$family>| {
                    let length = prefix.bits - SOURCE_SERVICE_BITS;
                    let number = |a: &$family| {
                        let bytes = as_bytes(a).iter();
                        bytes.fold(0_u128, |number, byte| number << 8 | u128::from(*byte))
                    };
                    let differ = number(&prefix.address) ^ number(&key.address);
                    let rest = 8 * size_of::<$family>() as u32 - length;
                    prefix.service == key.service && differ.checked_shr(rest).unwrap_or(0) == 0
                };
                let found = self
                    .$field
                    .listed
                    .iter()
                    .filter(|(prefix, _)| covers(prefix));
                found
                    .max_by_key(|(prefix, _)| prefix.bits)
                    .map(|(_, value)| *value)
            }

            fn affinity(&self, key: &AffinityKey<$family>) -> Option<&Affinity> {
                self.$field.affinity.get(key)
            }

            fn set_affinity(&self, key: &AffinityKey<$family>, affinity: &Affinity) {
                self.$field.affinity.insert(*key, affinity.clone());
            }

            fn fragmented(&self, key: &FragmentKey<$family>) -> Option<&Fragmented> {
                self.$field.fragments.get(key)
            }

            fn insert_fragmented(&self, key: &FragmentKey<$family>, value: &Fragmented) {
                self.$field.fragments.insert(*key, *value);
            }

            fn held(&self, key: &HeldKey<$family>) -> Option<&Held> {
                self.$field.held.get(key)
            }

            fn is_whole(&self, key: &FlowKey<$family>) -> bool {
                let recalled = FamilyTables::<$family>::recalled(self);
                recalled.expect("it is there").key = *key;
                path::is_whole::<$family, _>(self)
            }

            fn has_place(&self, protocol: u8) -> bool {
                path::has_place::<$family, _>(self, protocol)
            }

            fn forget(&self) {
                path::forget::<$family, _>(self);
            }

            fn take_source(&self, candidate: Candidate) -> Attempt {
                path::take_source::<$family, _>(self, candidate)
            }

            fn source(&self, number: u32) -> Option<$family> {
                let sources = self.sources.iter();
                let source = sources
                    .filter(|ip| ip.is_ipv6() == <$family>::IS_V6)
                    .nth(number as usize)
                    .filter(|source| !source.is_unspecified())?;
                Some(<$family>::from_words(&world::words(*source)))
            }

            fn has_socket(&self, key: &FlowKey<$family>) -> bool {
                let udp = key.protocol() == protocol::UDP;
                let gets = |(local, by_udp): &(SocketAddr, bool)| {
                    let ip = local.ip();
                    let here = ip == key.dst.ip()
                        || ip.is_unspecified() && ip.is_ipv6() == <$family>::IS_V6;
                    here && *by_udp == udp && local.port() == key.dst_port.get()
                };
                self.sockets.iter().any(gets)
            }

            fn work(&self) -> Option<&mut Work<$family>> {
                // SAFETY: lent to one borrower at a time by contract.
                Some(unsafe { &mut *self.$field.work.get() })
            }
        }
    };
}

family_tables!(V4, v4);
family_tables!(V6, v6);
