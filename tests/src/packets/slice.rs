//! Runs cases on a byte slice, with tables in memory: no kernel involved.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{
        Active, Address, Admission, Affinity, AffinityKey, Backend, Be16, Bucket, Config, Drop,
        Flow, FlowKey, FragmentKey, Fragmented, Held, HeldKey, NextHop, Pod, RateKey,
        SOURCE_SERVICE_BITS, Service, ServiceKey, SourceKey, V4, V6, as_bytes, from_bytes, link,
        protocol,
    },
    path::{
        self, Attempt, Budget, Candidate, Covered, Delta, FamilyTables, Frame, Handover,
        InsertError, Milestone, Query, Recalled, Route, Tables, Verdict, Work,
    },
};

use super::world::{self, Addresses, Mac};
use super::{Action, Outcome, Runner, tuple};

/// Device numbers; any two will do.
const CLIENT_SIDE: u32 = 11;
const BACKEND_SIDE: u32 = 12;

/// A packet in a vector.
pub struct SliceFrame {
    pub bytes: Vec<u8>,
    pub ingress: u32,
}

impl Frame for SliceFrame {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn reach(&mut self, _: usize) {}

    fn extension(&self, offset: usize, kind: u8) -> u64 {
        path::extension(self, offset, kind)
    }

    fn sum(&self, offset: usize, bytes: usize) -> u64 {
        path::sum(self, offset, bytes)
    }

    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        from_bytes(self.bytes.get(offset..)?)
    }

    fn store<T: Pod>(&mut self, offset: usize, value: &T, _: Covered) -> Option<()> {
        let bytes = as_bytes(value);
        self.bytes
            .get_mut(offset..offset + bytes.len())?
            .copy_from_slice(bytes);
        Some(())
    }

    fn repair_transport(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        let found = self.load::<u16>(offset)?;
        if udp && found == 0 {
            return Some(());
        }
        let repaired = match addresses.and(ports).apply(found) {
            0 if udp => 0xffff,
            repaired => repaired,
        };
        self.store(offset, &repaired, Covered::Neutral)
    }

    fn is_checksum_left(&mut self, _: usize) -> Option<bool> {
        Some(false)
    }

    fn segment(&self) -> u32 {
        0
    }

    fn wrap(&mut self, by: usize, _: bool) -> Option<()> {
        self.grow_head(by)
    }

    fn pull(&mut self, _: usize) -> Option<()> {
        Some(())
    }

    fn grow_head(&mut self, by: usize) -> Option<()> {
        self.bytes.splice(0..0, std::iter::repeat_n(0, by));
        Some(())
    }

    fn set_length(&mut self, length: usize) -> Option<()> {
        self.bytes.resize(length, 0);
        Some(())
    }
}

/// Entries are leaked on purpose: references to them must outlive the maps' changes, as in the
/// kernel, and a test process is short.
struct Family<A: Address> {
    services: HashMap<ServiceKey<A>, Service>,
    flows: RefCell<HashMap<FlowKey<A>, &'static Flow<A>>>,
    handshakes: RefCell<HashMap<FlowKey<A>, &'static Flow<A>>>,
    listed: Vec<(SourceKey<A>, u32)>,
    affinity: RefCell<HashMap<AffinityKey<A>, &'static Affinity>>,
    fragments: RefCell<HashMap<FragmentKey<A>, &'static Fragmented>>,
    /// As they were before the tables were replaced.
    former_flows: RefCell<HashMap<FlowKey<A>, &'static Flow<A>>>,
    former_handshakes: RefCell<HashMap<FlowKey<A>, &'static Flow<A>>>,
    work: *mut Work<A>,
    recalled: *mut Recalled<A>,
}

impl<A: Address + std::hash::Hash> Family<A> {
    /// Puts empty flow tables in the place of these, which become the former ones.
    fn replace_flows(&self) {
        for (table, former) in [
            (&self.flows, &self.former_flows),
            (&self.handshakes, &self.former_handshakes),
        ] {
            former.borrow_mut().extend(table.borrow_mut().drain());
        }
    }

    fn evict(&self, key: &FlowKey<A>) -> bool {
        let tables = [&self.handshakes, &self.former_handshakes];
        let removed = tables.map(|table| table.borrow_mut().remove(key).is_some());
        removed.contains(&true)
    }
}

impl<A: Address> Default for Family<A>
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
            flows: RefCell::default(),
            handshakes: RefCell::default(),
            listed: Vec::new(),
            affinity: RefCell::default(),
            fragments: RefCell::default(),
            former_flows: RefCell::default(),
            former_handshakes: RefCell::default(),
            work: Box::into_raw(Box::new(work)),
            recalled: Box::into_raw(Box::new(recalled)),
        }
    }
}

/// Tables in memory.
pub struct Memory {
    config: Config,
    ports: HashMap<u32, u64>,
    v4: Family<V4>,
    v6: Family<V6>,
    tables: HashMap<u32, Vec<u32>>,
    backends: HashMap<u32, Backend>,
    cursors: RefCell<HashMap<u32, u32>>,
    drops: RefCell<Vec<Drop>>,
    taken: [Cell<u32>; Budget::COUNT as usize],
    random: Cell<u32>,
    /// The flow tables are replaced before every packet.
    replaces_flows: bool,
    now: u32,
    full: Cell<u32>,
    /// Where the node's own sockets listen, and whether by UDP.
    sockets: Vec<(SocketAddr, bool)>,
    sources: Vec<IpAddr>,
    admissions: HashMap<u32, Admission>,
    rates: RefCell<HashMap<u32, &'static Bucket>>,
    source_rates: RefCell<HashMap<RateKey, &'static Bucket>>,
    active: RefCell<HashMap<u32, &'static Active>>,
}

impl Memory {
    fn standard() -> Self {
        let mut memory = Self {
            config: world::CONFIG,
            ports: world::port_words().into_iter().collect(),
            v4: Family::default(),
            v6: Family::default(),
            tables: HashMap::new(),
            backends: HashMap::new(),
            cursors: RefCell::default(),
            drops: RefCell::default(),
            taken: Default::default(),
            now: 1000,
            full: Cell::new(0),
            sockets: Vec::new(),
            sources: Vec::new(),
            admissions: world::admissions().into_iter().collect(),
            rates: RefCell::default(),
            source_rates: RefCell::default(),
            active: RefCell::default(),
            random: Cell::new(1),
            replaces_flows: false,
        };
        for v6 in [false, true] {
            memory.install(Addresses { v6 });
        }
        memory
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
        Some(leaked(&self.rates, service))
    }

    fn source_rate(&self, key: &RateKey, _: &Bucket) -> Option<&Bucket> {
        Some(leaked(&self.source_rates, *key))
    }

    fn take_token(&self, bucket: &Bucket) {
        bucket.0.set(bucket.0.get() + 1);
    }

    fn active(&self, index: u32) -> Option<&Active> {
        Some(leaked(&self.active, index))
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

    fn last_full(&self) -> Option<&Cell<u32>> {
        Some(&self.full)
    }

    fn cursor(&self, service: u32) -> u32 {
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(service).or_insert(0);
        *cursor += 1;
        *cursor - 1
    }

    fn count_packet(&self, _: u32, _: bool, _: u64) {}

    fn count_connection(&self, _: u32, _: Milestone) {}

    fn count_drop(&self, reason: Drop) {
        self.drops.borrow_mut().push(reason);
    }

    fn take(&self, budget: Budget, _: u32, per_second: u32) -> bool {
        let taken = &self.taken[budget as usize];
        taken.set(taken.get() + 1);
        taken.get() <= per_second
    }

    fn route(&self, _: u32, query: &Query, hop: &mut NextHop) -> Route {
        let dst = if query.v6 != 0 {
            V6(query.dst).ip()
        } else {
            V4(query.dst[0]).ip()
        };
        let (route, next) = route(dst);
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
                self.$field.flows.borrow().get(key).copied()
            }

            fn insert_flow(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
            ) -> Result<(), InsertError> {
                let flow = Box::leak(Box::new(flow.clone()));
                self.$field.flows.borrow_mut().insert(*key, flow);
                Ok(())
            }

            fn remove_flow(&self, key: &FlowKey<$family>) {
                self.$field.flows.borrow_mut().remove(key);
            }

            fn handshake(&self, key: &FlowKey<$family>) -> Option<&Flow<$family>> {
                self.$field.handshakes.borrow().get(key).copied()
            }

            fn insert_handshake(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
                overwrite: bool,
            ) -> Result<(), InsertError> {
                let mut handshakes = self.$field.handshakes.borrow_mut();
                if !overwrite && handshakes.contains_key(key) {
                    return Err(InsertError::Exists);
                }
                handshakes.insert(*key, Box::leak(Box::new(flow.clone())));
                Ok(())
            }

            fn remove_handshake(&self, key: &FlowKey<$family>) -> bool {
                self.$field.handshakes.borrow_mut().remove(key).is_some()
            }

            fn recall(&self, key: &FlowKey<$family>) -> bool {
                let recalled = FamilyTables::<$family>::recalled(self);
                recalled.expect("it is there").key = *key;
                path::bring::<$family, _>(self)
            }

            fn recalled(&self) -> Option<&mut Recalled<$family>> {
                // SAFETY: as in `work`.
                Some(unsafe { &mut *self.$field.recalled })
            }

            fn former_flow(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let former = self.$field.former_flows.borrow();
                former.get(key).is_some_and(|former| {
                    flow.clone_from(former);
                    true
                })
            }

            fn remove_former_flow(&self, key: &FlowKey<$family>) {
                self.$field.former_flows.borrow_mut().remove(key);
            }

            fn former_handshake(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let former = self.$field.former_handshakes.borrow();
                former.get(key).is_some_and(|former| {
                    flow.clone_from(former);
                    true
                })
            }

            fn remove_former_handshake(&self, key: &FlowKey<$family>) {
                self.$field.former_handshakes.borrow_mut().remove(key);
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
                self.$field.affinity.borrow().get(key).copied()
            }

            fn set_affinity(&self, key: &AffinityKey<$family>, affinity: &Affinity) {
                let affinity = Box::leak(Box::new(affinity.clone()));
                self.$field.affinity.borrow_mut().insert(*key, affinity);
            }

            fn fragmented(&self, key: &FragmentKey<$family>) -> Option<&Fragmented> {
                self.$field.fragments.borrow().get(key).copied()
            }

            fn insert_fragmented(&self, key: &FragmentKey<$family>, value: &Fragmented) {
                let value = Box::leak(Box::new(*value));
                self.$field.fragments.borrow_mut().insert(*key, value);
            }

            /// Nothing is put aside here.
            fn held(&self, _: &HeldKey<$family>) -> Option<&Held> {
                None
            }

            fn take_source(&self, candidate: Candidate) -> Attempt {
                path::take_source::<$family, _>(self, candidate)
            }

            fn source(&self, number: u32) -> Option<$family> {
                let words = world::words(*self.sources.get(number as usize)?);
                Some(<$family>::from_words(&words))
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
                // SAFETY: leaked, and lent to one borrower at a time by contract.
                Some(unsafe { &mut *self.$field.work })
            }
        }
    };
}

family_tables!(V4, v4);
family_tables!(V6, v6);

/// The element of a map; one of zeros where there is none yet.
fn leaked<K: Eq + std::hash::Hash, V: Default>(
    map: &RefCell<HashMap<K, &'static V>>,
    key: K,
) -> &'static V {
    let mut map = map.borrow_mut();
    map.entry(key).or_insert_with(|| Box::leak(Box::default()))
}

/// The standard world's routes.
fn route(dst: std::net::IpAddr) -> (Route, NextHop) {
    let none = NextHop::default();
    let same = |address: std::net::SocketAddr| address.ip() == dst;
    let towards_backends = |mtu| neighbour(BACKEND_SIDE, world::TO_BACKEND, mtu);
    for a in [Addresses { v6: false }, Addresses { v6: true }] {
        if same(a.black_hole(0)) {
            return (Route::Refused, none);
        }
        if same(a.node(0)) || same(a.second_node(0)) {
            return (Route::Stack, none);
        }
        if same(a.backend(99, 0)) {
            let macs = none.macs;
            let hop = towards_backends(world::MTU);
            return (Route::Unresolved, NextHop { macs, ..hop });
        }
        if same(a.narrow(0)) {
            let mut hop = towards_backends(world::NARROW_MTU);
            hop.link |= link::GATEWAY;
            return (Route::Neighbour, hop);
        }
        if same(a.routed(0)) {
            let mut hop = towards_backends(world::MTU);
            hop.link |= link::GATEWAY;
            return (Route::Neighbour, hop);
        }
        if (1..64).any(|last| same(a.backend(last, 0))) {
            return (Route::Neighbour, towards_backends(world::MTU));
        }
        if same(a.narrow_client(0)) {
            let hop = neighbour(CLIENT_SIDE, world::TO_CLIENT, world::NARROW_MTU);
            return (Route::Neighbour, hop);
        }
    }
    let hop = neighbour(CLIENT_SIDE, world::TO_CLIENT, world::MTU);
    (Route::Neighbour, hop)
}

fn neighbour(ifindex: u32, (dst, src): (Mac, Mac), mtu: u32) -> NextHop {
    let bytes = [dst, src].concat();
    NextHop {
        ifindex,
        epoch: 0,
        macs: from_bytes(&bytes).unwrap_or_default(),
        link: link::new(mtu, true),
    }
}

/// The byte slice as a place for cases.
pub struct Slice {
    memory: Memory,
}

impl Default for Slice {
    fn default() -> Self {
        Self {
            memory: Memory::standard(),
        }
    }
}

impl Slice {
    /// One whose flow tables are replaced before every packet, which no connection may notice.
    pub fn replacing_flows() -> Self {
        let mut slice = Self::default();
        slice.memory.replaces_flows = true;
        slice
    }
}

impl Runner for Slice {
    fn reset(&mut self) {
        let replaces_flows = self.memory.replaces_flows;
        self.memory = Memory {
            replaces_flows,
            ..Memory::standard()
        };
    }

    fn run(&mut self, from_client: bool, packet: &[u8]) -> Outcome {
        let ingress = if from_client {
            CLIENT_SIDE
        } else {
            BACKEND_SIDE
        };
        let mut frame = SliceFrame {
            bytes: packet.to_vec(),
            ingress,
        };
        self.memory.drops.borrow_mut().clear();
        if self.memory.replaces_flows {
            self.memory.v4.replace_flows();
            self.memory.v6.replace_flows();
        }
        let action = match path::process(&mut frame, &self.memory) {
            Ok(
                Verdict::Pass
                | Verdict::Kernel {
                    how: Handover::Stack,
                    ..
                },
            ) => Action::Pass,
            Ok(Verdict::Transmit) => Action::Transmit,
            Ok(
                Verdict::Redirect { .. }
                | Verdict::Kernel {
                    how: Handover::Output,
                    ..
                },
            ) => Action::Redirect,
            Ok(Verdict::Kernel {
                how: Handover::Resolve,
                ..
            }) => Action::Resolve,
            Err(reason) => {
                self.memory.count_drop(reason);
                Action::Drop
            }
        };
        let counted = self.memory.drops.borrow().clone();
        Outcome {
            action,
            packet: frame.bytes,
            counted,
        }
    }

    fn set_backend(&mut self, slot: u32, state: u32, generation: u32) {
        if let Some(backend) = self.memory.backends.get_mut(&slot) {
            *backend = Backend {
                state,
                generation,
                ..*backend
            };
        }
    }

    fn next_epoch(&mut self) {
        self.memory.config.epoch += 1;
    }

    fn evict(&mut self, src: SocketAddr, dst: SocketAddr, udp: bool) -> bool {
        match src.is_ipv6() {
            true => self.memory.v6.evict(&tuple(src, dst, udp)),
            false => self.memory.v4.evict(&tuple(src, dst, udp)),
        }
    }

    fn listen(&mut self, local: SocketAddr, udp: bool) {
        self.memory.sockets.push((local, udp));
    }

    fn close_sockets(&mut self) {
        self.memory.sockets.clear();
    }

    fn set_sources(&mut self, sources: &[IpAddr]) {
        self.memory.sources = sources.to_vec();
        self.memory.config.sources = world::source_counts(sources);
    }

    fn wait_second(&mut self) {
        self.memory.now += self.memory.config.hz + 1;
    }

    fn make_stale(&mut self) {
        self.memory.config.hz = 0;
    }

    fn set_budget(&mut self, budget: Budget, per_second: u32) {
        match budget {
            Budget::Answers => self.memory.config.rejects_per_second = per_second,
            Budget::Entries => self.memory.config.entries_per_second = per_second,
        }
    }
}
