//! The real kernel: loads, pins, attaches and adopts programs and maps through aya.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Result, ensure};
use lb_common::abi::{
    Address, Admission, Backend, BackendCounters, Be16, Config, Pod, SOURCE_SERVICE_BITS, Service,
    ServiceKey, SourceKey, V4, V6, backend_state, protocol, source, source_slot,
};
use tracing::{info, warn};

use super::{
    Attachment, Capacity, Datapath, FlowScan, Listen, OBJECT, Route,
    attach::Hooks,
    attachments::{self, Attachments},
    clock::Clock,
    flows::{self, Age},
    layout::Layouts,
    load, log,
    maps::{Hash, Maps},
    next_epoch,
    pins::Pins,
    ports, preflight,
    route::Routes,
    scan::Scanner,
    switch::{self, Switch},
    takeover::{self, Places, Takeover},
    undo::Undo,
};
pub use super::{cleanup::cleanup, log::Level};
use crate::model::{Limits, Node, Prefix, Protocol, SnatPool, Sources, Timeouts, XdpMode};

/// Answers (RST, ICMP) per second and CPU: enough for people, too few to be a weapon.
const REJECTS_PER_SECOND: u32 = 1000;

/// What is no part of the node's configuration.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// How much the programs log; `None` removes logging from them.
    pub log_level: Option<Level>,
}

pub struct Kernel {
    maps: Maps,
    pins: Pins,
    clock: Clock,
    hz: u32,
    limits: Limits,
    scanner: Scanner,
    routes: Routes,
    /// First port and number of ports that SNAT takes unless others are configured.
    snat_ports: (u16, u16),
    attachments: Mutex<Attachments>,
    changes_config: Mutex<()>,
    _root: preflight::PinRoot,
}

impl Kernel {
    /// Loads the programs, or adopts what a former daemon left pinned under `<bpffs>/lbd/`, and
    /// attaches to the configured devices. Dropping the result detaches nothing.
    ///
    /// # Errors
    /// Missing privileges or BPF file system, another lbd at work, maps of another layout, a
    /// device that does not exist or cannot be attached to as configured.
    pub fn start(node: &Node) -> Result<Self> {
        let log_level = Level::from_env()?;
        Self::start_with(node, Options { log_level })
    }

    pub fn start_with(node: &Node, options: Options) -> Result<Self> {
        preflight::require_privileges()?;
        preflight::require_bpffs(&node.bpffs)?;
        preflight::create_state_directory(&node.state_dir)?;
        let root = preflight::PinRoot::claim(&node.bpffs)?;
        let mut limits = node.limits.clone();
        let mut takeover = Takeover::find(&root, &mut limits)?;
        let pins = takeover::directory(&root.path);
        let load = |pins: &Path, former: Option<&Places>| {
            preflight::create_directory(pins)?;
            let mut ebpf = load::load_maps(OBJECT, pins, &limits, options.log_level, former)?;
            if options.log_level.is_some() {
                let followed = log::follow(&mut ebpf);
                followed
                    .unwrap_or_else(|error| warn!("the programs' logs are not shown: {error:#}"));
            }
            anyhow::Ok(ebpf)
        };
        let mut ebpf = match &takeover {
            Some(takeover) => takeover.load(load)?,
            None => load(&pins, None)?,
        };
        let clock = Clock::new(load::clock(&mut ebpf)?);
        let tables = load::tables(&mut ebpf)?;
        // The others are verified while the clock is being measured.
        let begin = clock.read()?;
        let mut hooks = Hooks::load(ebpf, &root.path)?;
        let hz = clock.calibrate(begin)?;
        match &mut takeover {
            Some(takeover) => takeover.copy()?,
            None => Layouts::ensure(&pins)?,
        }
        let maps = Maps::open(&pins, tables)?;
        let snat_ports = ports::snat();
        if matches!(node.xdp, XdpMode::Auto | XdpMode::Native) {
            // What comes into use now must not redirect where only generic XDP or TC could.
            write_devices(&maps, attachments::device_words(true)?)?;
        }
        write_config(&maps, hz, snat_ports)?;
        let switch = takeover.is_some().then(|| hooks.switch(&root.path));
        let switch = switch.transpose().unwrap_or_else(|error| {
            warn!(
                "the hooks go over to the new programs one after the other, connections that begin \
                 meanwhile may be lost: {error:#}"
            );
            None
        });
        let mut attachments = Attachments::start(hooks, Undo::open(&node.state_dir)?, node)?;
        switch.map(Switch::end).transpose()?;
        if let Some(takeover) = takeover {
            switch::wait_for_programs();
            let moved = takeover.finish()?;
            info!("took over the maps of a former start, {moved} entries of flows among them");
            attachments.replace_programs(load(&pins, None)?)?;
        }
        let kernel = Self {
            maps,
            pins: Pins::open(pins)?,
            clock,
            hz,
            limits,
            scanner: Scanner::default(),
            routes: Routes::default(),
            snat_ports,
            attachments: Mutex::new(attachments),
            changes_config: Mutex::default(),
            _root: root,
        };
        kernel.refresh_devices(&kernel.lock_attachments())?;
        Ok(kernel)
    }

    /// Tells the packet path what devices there are, and says whether that is news.
    fn refresh_devices(&self, attachments: &Attachments) -> Result<bool> {
        write_devices(&self.maps, attachments.device_words()?)
    }

    #[cfg(test)]
    pub(super) fn config(&self) -> Result<Config> {
        self.maps.config.get(0)
    }

    /// The only way to write it once lbd serves: the scan of flows runs beside all else.
    fn change_config(&self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let lock = self.changes_config.lock();
        let _alone = lock.unwrap_or_else(PoisonError::into_inner);
        let former = self.maps.config.get(0)?;
        let mut config = former;
        change(&mut config);
        if config != former {
            self.maps.config.set(0, &config)?;
        }
        Ok(())
    }

    fn lock_attachments(&self) -> MutexGuard<'_, Attachments> {
        let lock = self.attachments.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datapath for Kernel {
    /// The devices that next hops may lead to are brought up to date before.
    fn raise_epoch(&self) -> Result<()> {
        self.refresh_devices(&self.lock_attachments())?;
        self.change_config(|config| config.epoch = next_epoch(config.epoch))
    }

    fn set_port_word(&self, index: u32, word: u64) -> Result<()> {
        self.maps.ports.set(index, &word)
    }

    fn port_words(&self) -> Result<Vec<u64>> {
        self.maps.ports.all()
    }

    fn set_service(&self, listen: Listen, service: &Service) -> Result<()> {
        match key(listen) {
            Key::V4(key) => self.maps.services4.set(&key, service),
            Key::V6(key) => self.maps.services6.set(&key, service),
        }
    }

    fn remove_service(&self, listen: Listen) -> Result<()> {
        match key(listen) {
            Key::V4(key) => self.maps.services4.remove(&key)?,
            Key::V6(key) => self.maps.services6.remove(&key)?,
        };
        Ok(())
    }

    fn services(&self) -> Result<Vec<(Listen, Service)>> {
        let mut found = listens(&self.maps.services4, V4::ip)?;
        found.extend(listens(&self.maps.services6, V6::ip)?);
        Ok(found)
    }

    fn set_echo(&self, address: IpAddr) -> Result<()> {
        // That there is an entry is all that is asked of it.
        let entry = Service::default();
        match echo_key(address) {
            Key::V4(key) => self.maps.services4.set(&key, &entry),
            Key::V6(key) => self.maps.services6.set(&key, &entry),
        }
    }

    fn remove_echo(&self, address: IpAddr) -> Result<()> {
        match echo_key(address) {
            Key::V4(key) => self.maps.services4.remove(&key)?,
            Key::V6(key) => self.maps.services6.remove(&key)?,
        };
        Ok(())
    }

    fn echoes(&self) -> Result<Vec<IpAddr>> {
        let mut found = echoes(&self.maps.services4, protocol::ICMP, V4::ip)?;
        found.extend(echoes(&self.maps.services6, protocol::ICMPV6, V6::ip)?);
        Ok(found)
    }

    fn set_admission(&self, service: u32, admission: &Admission) -> Result<()> {
        self.maps.admission.set(service, admission)
    }

    fn admissions(&self) -> Result<Vec<(u32, Admission)>> {
        let all = (0..).zip(self.maps.admission.all()?);
        let is_set = |(_, admission): &(u32, Admission)| *admission != Admission::default();
        Ok(all.filter(is_set).collect())
    }

    fn add_sources(&self, service: u32, sources: &[(Prefix, bool)]) -> Result<()> {
        let value = |allowed| match allowed {
            true => source::ALLOWED,
            false => source::DENIED,
        };
        let key = |prefix| source_key(service, prefix);
        let v4 = sources
            .iter()
            .filter_map(|(prefix, allowed)| match key(*prefix) {
                SourceOf::V4(key) => Some((key, value(*allowed))),
                SourceOf::V6(_) => None,
            });
        self.maps.source_lists4.set_all(v4)?;
        let v6 = sources
            .iter()
            .filter_map(|(prefix, allowed)| match key(*prefix) {
                SourceOf::V4(_) => None,
                SourceOf::V6(key) => Some((key, value(*allowed))),
            });
        self.maps.source_lists6.set_all(v6)
    }

    fn remove_sources(&self, service: u32, prefixes: &[Prefix]) -> Result<()> {
        for prefix in prefixes {
            match source_key(service, *prefix) {
                SourceOf::V4(key) => self.maps.source_lists4.remove(&key)?,
                SourceOf::V6(key) => self.maps.source_lists6.remove(&key)?,
            };
        }
        Ok(())
    }

    fn sources(&self) -> Result<BTreeMap<u32, Sources>> {
        let mut lists = BTreeMap::new();
        list_sources(&self.maps.source_lists4, V4::ip, &mut lists)?;
        list_sources(&self.maps.source_lists6, V6::ip, &mut lists)?;
        let sorted = |mut list: Vec<_>| {
            list.sort_unstable();
            list.into()
        };
        Ok(lists
            .into_iter()
            .map(|(id, list)| (id, sorted(list)))
            .collect())
    }

    fn set_backend(&self, slot: u32, backend: &Backend) -> Result<()> {
        self.maps.backends.set(slot, backend)
    }

    /// Every slot that was ever used, free ones included: their generation must go on.
    fn backends(&self) -> Result<Vec<(u32, Backend)>> {
        let slots = (0..).zip(self.maps.backends.all()?);
        let used = |b: &Backend| b.generation != 0 || b.state != backend_state::FREE;
        Ok(slots.filter(|(_, backend)| used(backend)).collect())
    }

    fn set_table(&self, table: u32, slots: &[u32]) -> Result<()> {
        self.maps.tables.set(table, slots)
    }

    fn remove_table(&self, table: u32) -> Result<()> {
        self.maps.tables.remove(table)
    }

    fn tables(&self) -> Result<Vec<u32>> {
        self.maps.tables.places()
    }

    fn table(&self, table: u32) -> Result<Option<Vec<u32>>> {
        self.maps.tables.get(table)
    }

    fn counters(&self, slot: u32) -> Result<BackendCounters> {
        let per_cpu = self.maps.counters.get(slot)?;
        Ok(per_cpu.into_iter().fold(BackendCounters::default(), sum))
    }

    fn clear_counters(&self, slot: u32) -> Result<()> {
        self.maps.counters.clear(slot)
    }

    fn drops(&self) -> Result<Vec<u64>> {
        let total = |reason| Ok(self.maps.drops.get(reason)?.into_iter().sum());
        (0..self.maps.drops.len()).map(total).collect()
    }

    fn scan_flows(&self, timeouts: &Timeouts) -> Result<FlowScan> {
        let now = self.clock.now(self.hz)?;
        // What came into a table behind the scan would not be counted, and its place be given twice.
        // Should the scan fail, or the daemon end, UDP has no more than it was given.
        self.change_config(|config| config.give_udp_places(0))?;
        let scan = self.scanner.scan(&self.maps, Age::new(now, timeouts))?;
        let cpus = aya::util::online_cpus().map_or(0, |cpus| cpus.len());
        let places = flows::udp_places(scan.udp_room, cpus);
        self.change_config(|config| config.give_udp_places(places))?;
        Ok(scan)
    }

    fn set_snat(&self, pool: &SnatPool) -> Result<Vec<IpAddr>> {
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for address in &pool.addresses {
            match self.routes.is_own(*address)? {
                true => own.push(*address),
                false => foreign.push(*address),
            }
        }
        let (snat_first, snat_count) = match pool.ports {
            Some((first, last)) => (first, last - first + 1),
            None => self.snat_ports,
        };
        let mut sources = [0; 2];
        for address in own {
            let number = &mut sources[usize::from(address.is_ipv6())];
            let slot = source_slot(address.is_ipv6(), *number);
            self.maps.sources.set(slot, &words(address))?;
            *number += 1;
        }
        self.change_config(|config| {
            *config = Config {
                sources,
                snat_first,
                snat_count,
                ..*config
            }
        })?;
        Ok(foreign)
    }

    fn route(&self, address: IpAddr) -> Result<Route> {
        self.routes.route(address)
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            services: (self.maps.tables.len() / 2).min(self.limits.services),
            backends: self.maps.backends.len(),
            sources: self.maps.source_lists4.capacity() / 2,
        }
    }

    fn repair_attachments(&self) -> Result<Vec<String>> {
        let mut attachments = self.lock_attachments();
        let mut repaired = self.pins.repair()?;
        repaired.extend(attachments.repair()?);
        if self.refresh_devices(&attachments)? {
            // Cached next hops hold what was known of their devices.
            self.change_config(|config| config.epoch = next_epoch(config.epoch))?;
        }
        Ok(repaired)
    }

    fn follow_devices(&self) -> Result<Vec<String>> {
        let mut attachments = self.lock_attachments();
        if !self.refresh_devices(&attachments)? {
            return Ok(Vec::new());
        }
        let changed = attachments.repair()?;
        self.refresh_devices(&attachments)?;
        Ok(changed)
    }

    fn attachments(&self) -> Vec<(String, Attachment)> {
        self.lock_attachments().describe()
    }
}

/// Says whether anything changed.
fn write_devices(maps: &Maps, words: BTreeMap<u32, u32>) -> Result<bool> {
    let map = &maps.devices;
    // What finds no room is served through the kernel.
    let words: BTreeMap<_, _> = words.into_iter().take(map.capacity() as usize).collect();
    let known: BTreeMap<_, _> = map.all()?.into_iter().collect();
    for ifindex in known.keys().filter(|ifindex| !words.contains_key(ifindex)) {
        map.remove(ifindex)?;
    }
    for (ifindex, word) in &words {
        if known.get(ifindex) != Some(word) {
            map.set(ifindex, word)?;
        }
    }
    Ok(known != words)
}

/// The epoch goes on from the former daemon's, so that next hops cached in its time are looked up
/// anew.
fn write_config(maps: &Maps, hz: u32, snat_ports: (u16, u16)) -> Result<()> {
    let former: Config = maps.config.get(0)?;
    ensure!(hz != 0, "the clock does not tick");
    let (snat_first, snat_count) = match former.snat_count {
        0 => snat_ports,
        // The controller says whether another pool is wanted.
        count => (former.snat_first, count),
    };
    maps.config.set(
        0,
        &Config {
            epoch: next_epoch(former.epoch),
            hz,
            rejects_per_second: REJECTS_PER_SECOND,
            entries_per_second: entries_per_second(maps.handshakes4.capacity()),
            snat_first,
            snat_count,
            sources: former.sources,
            // None before the first scan, which begins with the controller: the tables may be full of
            // UDP, and until then it goes on without.
            udp_places: 0,
        },
    )
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(ip) => V4::from(ip).to_words(),
        IpAddr::V6(ip) => V6::from(ip).to_words(),
    }
}

/// Each CPU's share of a table of so many entries, two a connection, so that what is entered lasts
/// for a second at least, the time after which a client sends its SYN again (RFC 6298 section 2).
fn entries_per_second(handshakes: u32) -> u32 {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    (handshakes / 2 / u32::try_from(cpus).unwrap_or(u32::MAX)).max(1)
}

enum Key {
    V4(ServiceKey<V4>),
    V6(ServiceKey<V6>),
}

fn key(listen: Listen) -> Key {
    let protocol = match listen.protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    };
    let port = Be16::new(listen.address.port());
    match listen.address.ip() {
        IpAddr::V4(ip) => Key::V4(ServiceKey::new(ip.into(), port, protocol)),
        IpAddr::V6(ip) => Key::V6(ServiceKey::new(ip.into(), port, protocol)),
    }
}

enum SourceOf {
    V4(SourceKey<V4>),
    V6(SourceKey<V6>),
}

fn source_key(service: u32, prefix: Prefix) -> SourceOf {
    let length = u32::from(prefix.length());
    match prefix.address() {
        IpAddr::V4(ip) => SourceOf::V4(SourceKey::new(service, ip.into(), length)),
        IpAddr::V6(ip) => SourceOf::V6(SourceKey::new(service, ip.into(), length)),
    }
}

fn list_sources<A: Address>(
    map: &Hash<SourceKey<A>, u32>,
    ip: impl Fn(A) -> IpAddr,
    lists: &mut BTreeMap<u32, Vec<(Prefix, bool)>>,
) -> Result<()>
where
    SourceKey<A>: Pod,
{
    map.for_each_chunk(|chunk| {
        for (key, value) in chunk {
            let length = key.bits.saturating_sub(SOURCE_SERVICE_BITS) as u8;
            // No daemon writes others.
            let Ok(prefix) = Prefix::new(ip(key.address), length) else {
                continue;
            };
            let list = lists.entry(key.service).or_default();
            list.push((prefix, value == source::ALLOWED));
        }
        Ok(())
    })
}

fn listens<A: Address>(
    map: &Hash<ServiceKey<A>, Service>,
    ip: impl Fn(A) -> IpAddr,
) -> Result<Vec<(Listen, Service)>>
where
    ServiceKey<A>: Pod,
{
    let listen = |(key, service): (ServiceKey<A>, Service)| {
        let protocol = match key.protocol {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            _ => return None,
        };
        let address = SocketAddr::new(ip(key.address), key.port.get());
        Some((Listen { address, protocol }, service))
    };
    Ok(map.all()?.into_iter().filter_map(listen).collect())
}

fn echo_key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(ip) => Key::V4(ServiceKey::echo(ip.into(), protocol::ICMP)),
        IpAddr::V6(ip) => Key::V6(ServiceKey::echo(ip.into(), protocol::ICMPV6)),
    }
}

fn echoes<A: Address>(
    map: &Hash<ServiceKey<A>, Service>,
    icmp: u8,
    ip: impl Fn(A) -> IpAddr,
) -> Result<Vec<IpAddr>>
where
    ServiceKey<A>: Pod + PartialEq,
{
    let keys = map.all()?.into_iter().map(|(key, _)| key);
    let echoes = keys.filter(|key| *key == ServiceKey::echo(key.address, icmp));
    Ok(echoes.map(|key| ip(key.address)).collect())
}

fn sum(total: BackendCounters, one: BackendCounters) -> BackendCounters {
    // Destructured, so that a new counter is not forgotten.
    let BackendCounters {
        packets_in,
        bytes_in,
        packets_out,
        bytes_out,
        connections,
        established,
        refused,
        reserved,
    } = one;
    BackendCounters {
        packets_in: total.packets_in + packets_in,
        bytes_in: total.bytes_in + bytes_in,
        packets_out: total.packets_out + packets_out,
        bytes_out: total.bytes_out + bytes_out,
        connections: total.connections + connections,
        established: total.established + established,
        refused: total.refused + refused,
        reserved: total.reserved + reserved,
    }
}
