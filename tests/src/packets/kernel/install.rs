//! Loads the programs, and fills their maps with the standard world's services.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap as BpfHashMap, MapData,
        lpm_trie::{Key as LpmKey, LpmTrie},
        of_maps::ArrayOfMaps,
    },
    programs::{SchedClassifier, Xdp},
};
use lb_common::abi::{
    Address as _, Be16, SOURCE_SERVICE_BITS, Service, ServiceKey, TableChunk, V4, V6, link, map,
    protocol, table_chunks,
};

use super::{Kernel, bytes};
use crate::packets::world::{self, Addresses};

/// Selection tables may differ in size.
const INNER_MAP: u32 = 0x1000;

/// Loads all programs with maps big enough for the world, and for the benchmark's flows.
pub fn load() -> Result<Ebpf> {
    load_logging(0)
}

/// As [`load`]; the programs log up to `level`, from 0 (nothing) to 5.
///
/// # Errors
/// The kernel refuses a program; the verifier's log is in the error.
pub fn load_logging(level: u8) -> Result<Ebpf> {
    load_sized(level, &[])
}

/// As [`load_logging`], with so much room in these maps.
pub(super) fn load_sized(level: u8, sizes: &[(&str, u32)]) -> Result<Ebpf> {
    crate::veth::lift_memory_limit();
    let mut loader = EbpfLoader::new();
    for (name, size) in [
        (map::SERVICES4, 256),
        (map::SERVICES6, 256),
        (map::TABLES, 2048),
        (map::BACKENDS, world::slot::COUNT),
        (map::COUNTERS, world::slot::COUNT),
        (map::CURSORS, world::SERVICES),
        (map::FLOWS4, 1 << 18),
        (map::FLOWS6, 1 << 18),
        (map::HANDSHAKES4, 1 << 16),
        (map::HANDSHAKES6, 1 << 16),
        (map::ADMISSION, world::SERVICES),
        (map::RATES, world::SERVICES),
        (map::ACTIVE, world::slot::COUNT + world::SERVICES),
        (map::COUNTED, world::slot::COUNT + world::SERVICES),
        (map::SOURCE_LISTS4, 1 << 17),
        (map::SOURCE_LISTS6, 1 << 17),
        (map::SOURCE_RATES, 1 << 16),
        (map::AFFINITY4, 1 << 16),
        (map::AFFINITY6, 1 << 16),
    ] {
        loader.map_max_entries(name, size);
    }
    for (name, size) in sizes {
        loader.map_max_entries(name, *size);
    }
    loader.override_global("AYA_LOG_LEVEL", &level, false);
    let mut ebpf = loader.load(lb_userspace::datapath::OBJECT)?;
    for name in ["lbd_xdp", "lbd_clock"] {
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .with_context(|| format!("no {name}"))?
            .try_into()?;
        program.load().with_context(|| name.to_owned())?;
    }
    for name in ["lbd_tc", "lbd_handover", "lbd_egress"] {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .with_context(|| format!("no {name}"))?
            .try_into()?;
        program.load().with_context(|| name.to_owned())?;
    }
    Ok(ebpf)
}

impl Kernel {
    pub(super) fn install(&mut self) -> Result<()> {
        for (index, word) in world::port_words() {
            self.map::<Array<_, u64>>(map::PORTS)?
                .set(index, &word, 0)?;
        }
        let (client_side, backend_side) = (self.client_side, self.backend_side);
        let mut devices = self.map::<BpfHashMap<_, u32, u32>>(map::DEVICES)?;
        let word = link::new(world::MTU, true);
        devices.insert(&client_side, &word, 0)?;
        devices.insert(&backend_side, &word, 0)?;
        for v6 in [false, true] {
            self.install_services(Addresses { v6 })?;
            self.install_sources(&world::sources(Addresses { v6 }))?;
        }
        for (id, admission) in world::admissions() {
            let value: [u8; 32] = bytes(&admission)?;
            self.map::<Array<_, [u8; 32]>>(map::ADMISSION)?
                .set(id, &value, 0)?;
        }
        self.write_config()
    }

    fn install_services(&mut self, addresses: Addresses) -> Result<()> {
        let vip = world::words(addresses.vip(0).ip());
        let echo: [u8; 32] = bytes(&Service::default())?;
        if addresses.v6 {
            let key = ServiceKey::echo(V6::from_words(&vip), protocol::ICMPV6);
            self.map::<BpfHashMap<_, [u8; 20], [u8; 32]>>(map::SERVICES6)?
                .insert(&bytes(&key)?, &echo, 0)?;
        } else {
            let key = ServiceKey::echo(V4::from_words(&vip), protocol::ICMP);
            self.map::<BpfHashMap<_, [u8; 8], [u8; 32]>>(map::SERVICES4)?
                .insert(&bytes(&key)?, &echo, 0)?;
        }
        for listen in world::listens() {
            let protocol = if listen.udp {
                protocol::UDP
            } else {
                protocol::TCP
            };
            let service = world::service(listen.port);
            let service = Service {
                table: 2 * service.id + u32::from(addresses.v6),
                ..service
            };
            let port = Be16::new(listen.port);
            let words = world::words(addresses.vip(0).ip());
            let value: [u8; 32] = bytes(&service)?;
            // Under port 0 and ICMP stands the address itself.
            let icmp = if addresses.v6 { 58 } else { 1 };
            for (port, protocol) in [(port, protocol), (Be16(0), icmp)] {
                if addresses.v6 {
                    let key = ServiceKey::new(V6::from_words(&words), port, protocol);
                    let key = bytes::<_, 20>(&key)?;
                    self.map::<BpfHashMap<_, [u8; 20], [u8; 32]>>(map::SERVICES6)?
                        .insert(&key, &value, 0)?;
                } else {
                    let key = ServiceKey::new(V4::from_words(&words), port, protocol);
                    let key = bytes::<_, 8>(&key)?;
                    self.map::<BpfHashMap<_, [u8; 8], [u8; 32]>>(map::SERVICES4)?
                        .insert(&key, &value, 0)?;
                }
            }
            if let Some(slots) = &listen.table {
                let slots: Vec<u32> = slots
                    .iter()
                    .map(|slot| listen.slot(*slot, addresses))
                    .collect();
                // Its id is the daemon's business.
                let chunks = table_chunks(&slots, 0);
                let length = chunks.len() as u32;
                let mut inner = Array::<MapData, TableChunk>::create(length, INNER_MAP)?;
                for (index, chunk) in (0..).zip(chunks) {
                    inner.set(index, &chunk, 0)?;
                }
                self.map::<ArrayOfMaps<_, Array<MapData, TableChunk>>>(map::TABLES)?
                    .set(service.table, &inner, 0)?;
            }
        }
        Ok(())
    }

    /// Adds to the source lists: service, address, prefix length, value.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn install_sources(&mut self, sources: &[(u32, IpAddr, u32, u32)]) -> Result<()> {
        for (service, address, length, value) in sources {
            let words = world::words(*address);
            let bits = SOURCE_SERVICE_BITS + length;
            if address.is_ipv6() {
                let [a, b, c, d] = words;
                let key = LpmKey::new(bits, [*service, a, b, c, d]);
                self.map::<LpmTrie<_, [u32; 5], u32>>(map::SOURCE_LISTS6)?
                    .insert(&key, value, 0)?;
            } else {
                let key = LpmKey::new(bits, [*service, words[0]]);
                self.map::<LpmTrie<_, [u32; 2], u32>>(map::SOURCE_LISTS4)?
                    .insert(&key, value, 0)?;
            }
        }
        Ok(())
    }
}
