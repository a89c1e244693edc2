//! The real kernel: loads, pins, attaches and adopts programs and maps through aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use lb_common::abi::{
    ABI_VERSION, Address, Backend, BackendCounters, Be16, Config, Pod, Service, ServiceKey, V4, V6,
    backend_state, protocol,
};
use tracing::{info, warn};

use super::{
    Capacity, Datapath, FlowScan, Listen, OBJECT, Route,
    attach::{Hooks, Served},
    clock::Clock,
    devices::{self, Device},
    load, log,
    maps::{Hash, Maps},
    ports, preflight, route,
    scan::Scanner,
    sysctl,
    undo::Undo,
};
pub use super::{cleanup::cleanup, log::Level};
use crate::model::{Node, Protocol};

/// Answers (RST, ICMP) per second and CPU: enough for people, too few to be a weapon.
const REJECTS_PER_SECOND: u32 = 1000;
/// Bit of a `DEVICES` value: XDP may redirect straight into the device.
const DIRECT: u32 = 1 << 0;

/// What is no part of the node's configuration.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// How much the programs log; `None` removes logging from them.
    pub log_level: Option<Level>,
}

pub struct Kernel {
    maps: Maps,
    clock: Clock,
    hz: u32,
    node: Node,
    scanner: Scanner,
    attached: Mutex<Attached>,
    _root: preflight::PinRoot,
}

/// Where the programs are attached.
struct Attached {
    hooks: Hooks,
    undo: Undo,
    devices: BTreeMap<u32, (String, Result<Served, String>)>,
    missing: Vec<String>,
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
        preflight::create_directory(&node.state_dir)?;
        let root = preflight::PinRoot::claim(&node.bpffs)?;
        let pins = root.path.join(ABI_VERSION.to_string());
        preflight::create_directory(&pins)?;

        let mut ebpf = load::load_maps(OBJECT, &pins, &node.limits, options.log_level)?;
        if options.log_level.is_some() {
            log::follow(&mut ebpf)?;
        }
        let maps = Maps::open(&pins)?;
        let clock = Clock::new(load::clock(&mut ebpf)?);
        // The other programs are verified while the clock is being measured.
        let begin = clock.read()?;
        let hooks = Hooks::load(ebpf, &root.path)?;
        let hz = clock.calibrate(begin)?;
        write_config(&maps, hz)?;
        let kernel = Self {
            maps,
            clock,
            hz,
            node: node.clone(),
            scanner: Scanner::default(),
            attached: Mutex::new(Attached {
                hooks,
                undo: Undo::open(&node.state_dir)?,
                devices: BTreeMap::new(),
                missing: Vec::new(),
            }),
            _root: root,
        };
        kernel.attach()?;
        Ok(kernel)
    }

    fn attach(&self) -> Result<()> {
        let mut attached = self.attached();
        let all = devices::list()?;
        let default_route = devices::with_default_route()?;
        let (chosen, missing) = devices::select(
            &self.node.interfaces,
            &all,
            &default_route,
            &BTreeSet::new(),
        );
        devices::require(&chosen, &missing, &all)?;
        for line in attached.serve(&chosen, &all, &self.node)? {
            info!("{line}");
        }
        for (name, served) in attached.devices.values() {
            match served {
                Ok(Served::Tc(Some(reason))) => warn!("{name}: XDP is not used: {reason}"),
                Ok(_) => {}
                Err(error) => anyhow::bail!("{error}"),
            }
        }
        self.refresh_devices(&all, &attached)
    }

    /// Tells the packet path which devices XDP may redirect into.
    fn refresh_devices(&self, all: &[Device], attached: &Attached) -> Result<()> {
        let native = attached
            .devices
            .values()
            .any(|(_, served)| *served == Ok(Served::Native));
        let direct = devices::direct(all, devices::redirect_targets(), native);
        let map = &self.maps.devices;
        let mut known = BTreeSet::new();
        for (ifindex, _) in map.all()? {
            if direct.contains(&ifindex) {
                known.insert(ifindex);
            } else {
                map.remove(&ifindex)?;
            }
        }
        for ifindex in direct.difference(&known).take(map.capacity() as usize) {
            map.set(ifindex, &DIRECT)?;
        }
        Ok(())
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    /// Serves the chosen devices and releases all others; says what it changed. A device that
    /// cannot be served keeps its error.
    fn serve(&mut self, chosen: &[&Device], all: &[Device], node: &Node) -> Result<Vec<String>> {
        let mut changes = Vec::new();
        let mut served = BTreeMap::new();
        for device in chosen {
            let outcome = match self.hooks.serve(device, node.xdp, &mut self.undo) {
                Ok((how, changed)) => {
                    changes.extend(changed);
                    Ok(how)
                }
                Err(error) => Err(format!("{error:#}")),
            };
            let forward = sysctl::let_forward(&device.name, &mut self.undo)?;
            changes.extend(forward);
            served.insert(device.index, (device.name.clone(), outcome));
        }
        let keep = served.keys().copied().collect();
        changes.extend(self.hooks.release_others(&keep, all, &self.undo)?);
        self.devices = served;
        Ok(changes)
    }
}

impl Datapath for Kernel {
    /// A new epoch has the packet path look next hops up anew, so the devices they may lead to are
    /// brought up to date before it.
    fn set_config(&self, config: &Config) -> Result<()> {
        if self.maps.config.get(0)?.epoch != config.epoch {
            self.refresh_devices(&devices::list()?, &self.attached())?;
        }
        self.maps.config.set(0, config)
    }

    fn config(&self) -> Result<Config> {
        self.maps.config.get(0)
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

    fn scan_flows(&self) -> Result<FlowScan> {
        self.scanner.scan(&self.maps, self.clock.now(self.hz)?)
    }

    fn route(&self, address: IpAddr) -> Result<Route> {
        route::route(address)
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            services: (self.maps.tables.len() / 2).min(self.node.limits.services),
            backends: self.maps.backends.len(),
        }
    }

    fn repair_attachments(&self) -> Result<Vec<String>> {
        let mut attached = self.attached();
        let all = devices::list()?;
        let default_route = devices::with_default_route()?;
        let before = attached.devices.clone();
        let serving = before.keys().copied().collect();
        let (chosen, missing) =
            devices::select(&self.node.interfaces, &all, &default_route, &serving);
        let repaired = attached.serve(&chosen, &all, &self.node)?;
        for (index, (name, now)) in &attached.devices {
            let was = before.get(index).map(|(_, was)| was);
            match now {
                Err(error) if was != Some(now) => warn!("{name}: not served: {error}"),
                Ok(Served::Tc(Some(reason))) if was != Some(now) => {
                    warn!("{name}: XDP is not used: {reason}");
                }
                _ => {}
            }
        }
        if !missing.is_empty() && missing != attached.missing {
            warn!(
                "not served, because there is no such device: {}",
                missing.join(", ")
            );
        }
        attached.missing = missing;
        self.refresh_devices(&all, &attached)?;
        Ok(repaired)
    }

    fn attachments(&self) -> Vec<(String, String)> {
        let attached = self.attached();
        let present = attached.devices.values().map(|(name, served)| {
            let how = match served {
                Ok(served) => served.name(),
                Err(error) => format!("not served: {error}"),
            };
            (name.clone(), how)
        });
        let missing = attached
            .missing
            .iter()
            .map(|name| (name.clone(), "missing".to_owned()));
        present.chain(missing).collect()
    }
}

/// The epoch goes on from the former daemon's, so that next hops cached in its time are looked up
/// anew.
fn write_config(maps: &Maps, hz: u32) -> Result<()> {
    let former: Config = maps.config.get(0)?;
    ensure!(hz != 0, "the clock does not tick");
    let (snat_first, snat_count) = ports::snat();
    maps.config.set(
        0,
        &Config {
            epoch: former.epoch.wrapping_add(1).max(1),
            hz,
            rejects_per_second: REJECTS_PER_SECOND,
            snat_first,
            snat_count,
            reserved: [0; 4],
        },
    )
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

fn listens<A: Address>(
    map: &Hash<ServiceKey<A>, Service>,
    ip: impl Fn(A) -> IpAddr,
) -> Result<Vec<(Listen, Service)>>
where
    ServiceKey<A>: Pod,
{
    let listen = |(key, service): (ServiceKey<A>, Service)| {
        let protocol = match key.protocol {
            protocol::UDP => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let address = SocketAddr::new(ip(key.address), key.port.get());
        (Listen { address, protocol }, service)
    };
    Ok(map.all()?.into_iter().map(listen).collect())
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
