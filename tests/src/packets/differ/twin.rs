//! The real programs, a few microseconds a packet.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::Map,
    programs::{SchedClassifier, Xdp},
    util::nr_cpus,
};
use lb_common::{abi::map, path::Budget};

use super::super::{
    Action, Runner as _, Side,
    kernel::{Hook, Kernel},
    slice::Devices,
    sys::{self, Raw, Room},
};
use super::{
    clock::{self, FULL, HZ},
    event::Event,
};

/// Room for established flows of a family: little, so that sequences fill it.
pub(super) const ROOM: u32 = 10;

/// Room in the maps that fill. In those that evict, far more than a sequence enters, or the kernel
/// would evict what the byte slice keeps.
const SIZES: [(&str, u32); 17] = [
    (map::FLOWS4, ROOM),
    (map::FLOWS6, ROOM),
    (map::HANDSHAKES4, 1024),
    (map::HANDSHAKES6, 1024),
    (map::FRAGMENTS4, 1024),
    (map::FRAGMENTS6, 1024),
    (map::SOURCE_RATES, 1024),
    (map::AFFINITY4, 1024),
    (map::AFFINITY6, 1024),
    (map::ACTIVE, SLOTS + SERVICES),
    (map::COUNTED, SLOTS + SERVICES),
    (map::RATES, SERVICES),
    (map::CURSORS, SERVICES),
    (map::ADMISSION, SERVICES),
    (map::COUNTERS, SLOTS),
    (map::BACKENDS, SLOTS),
    (map::TABLES, 2 * SERVICES),
];
const SLOTS: u32 = super::super::world::slot::COUNT;
/// Services are numbered by their ports.
const SERVICES: u32 = 512;

/// Maps whose entries packets make, and which a sequence begins without.
const TABLES: [&str; 11] = [
    map::FLOWS4,
    map::FLOWS6,
    map::HANDSHAKES4,
    map::HANDSHAKES6,
    map::FRAGMENTS4,
    map::FRAGMENTS6,
    map::SOURCE_RATES,
    map::AFFINITY4,
    map::AFFINITY6,
    map::HELD4,
    map::HELD6,
];

/// Arrays that a sequence begins with zeroes in.
const ARRAYS: [&str; 5] = [map::ACTIVE, map::RATES, map::CURSORS, map::BUDGETS, FULL];

/// What is in the maps: by name and key.
pub(super) type State = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

/// What the programs did with a packet.
pub(super) struct Done {
    pub(super) action: Action,
    pub(super) packet: Vec<u8>,
}

pub(super) struct Twin {
    kernel: Kernel,
    hook: Hook,
    maps: HashMap<&'static str, Raw>,
    ingress: RawFd,
    egress: RawFd,
    cpu: usize,
    cpus: usize,
    out: Vec<u8>,
    room: Room,
    /// Counters at the sequence's beginning.
    before: State,
    clock: RawFd,
    /// Backends, budgets or sources are not those of the standard world.
    is_changed: bool,
}

impl Twin {
    /// # Errors
    /// Without root, or where the kernel refuses something.
    pub(super) fn new(hook: Hook, cpu: usize) -> Result<Self> {
        let mut kernel = Kernel::sized(hook, cpu, 0, &SIZES)?;
        kernel.reset();
        let cpus = match nr_cpus() {
            Ok(count) => count.get() as usize,
            Err((path, error)) => bail!("{path}: {error}"),
        };
        let mut twin = Self {
            ingress: match hook {
                Hook::Xdp => xdp(&mut kernel, "lbd_xdp")?,
                Hook::Tc => classifier(&mut kernel, "lbd_tc")?,
            },
            egress: classifier(&mut kernel, "lbd_egress")?,
            clock: xdp(&mut kernel, "lbd_clock")?,
            kernel,
            hook,
            maps: HashMap::new(),
            cpu,
            cpus,
            out: vec![0; 8192],
            room: Room::default(),
            before: State::new(),
            is_changed: true,
        };
        for name in TABLES.into_iter().chain(ARRAYS).chain(COUNTERS) {
            let raw = twin.raw(name)?;
            twin.maps.insert(name, raw);
        }
        twin.reset()?;
        Ok(twin)
    }

    pub(super) fn devices(&self) -> Devices {
        Devices {
            client_side: self.kernel.client_side(),
            backend_side: self.kernel.backend_side(),
        }
    }

    fn raw(&self, name: &str) -> Result<Raw> {
        let found = self.kernel.ebpf.map(name);
        let (data, is_per_cpu) = match found.with_context(|| format!("no map {name}"))? {
            Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) => (data, false),
            Map::PerCpuArray(data) => (data, true),
            _ => bail!("{name} is a map of another kind"),
        };
        let info = data.info()?;
        let value = info.value_size() as usize;
        Ok(Raw {
            fd: data.fd().as_fd().as_raw_fd(),
            key: info.key_size() as usize,
            value: if is_per_cpu {
                value.next_multiple_of(8) * self.cpus
            } else {
                value
            },
            entries: info.max_entries() as usize,
        })
    }

    /// Begins a sequence: the standard world, and nothing that packets left.
    pub(super) fn reset(&mut self) -> Result<()> {
        if self.is_changed {
            self.kernel.restore()?;
            self.kernel.set_hz(HZ)?;
            self.is_changed = false;
        }
        let room = &mut self.room;
        for name in TABLES {
            self.maps[name].each(room, true, |_, _| ())?;
        }
        let mut used = Vec::new();
        for name in ARRAYS {
            self.maps[name].each(room, false, |key, value| {
                if !is_zero(value) {
                    used.push((name, key.to_vec()));
                }
            })?;
        }
        for (name, key) in used {
            let raw = &self.maps[name];
            raw.set(&key, &vec![0; raw.value])?;
        }
        self.before = self.counters()?;
        Ok(())
    }

    /// What packets left: every entry, with ages for times; and by how much counters rose.
    pub(super) fn state(&mut self) -> Result<State> {
        let now = self.now()?;
        let mut state = State::new();
        let place = self.place();
        for name in TABLES.into_iter().chain(ARRAYS) {
            // A budget says what is left of a period, which the next packets tell.
            if name == map::BUDGETS {
                continue;
            }
            let is_table = TABLES.contains(&name);
            self.maps[name].each(&mut self.room, false, |key, value| {
                let mut value = place.of(name, value).to_vec();
                if is_table || !is_zero(&value) {
                    clock::normalise(name, &mut value, now);
                    state.insert((name, key.to_vec()), value);
                }
            })?;
        }
        for (key, value) in self.counters()? {
            let rose = difference(&value, self.before.get(&key));
            if !is_zero(&rose) {
                state.insert(key, rose);
            }
        }
        Ok(state)
    }

    fn counters(&mut self) -> Result<State> {
        let mut counters = State::new();
        let place = self.place();
        for name in COUNTERS {
            self.maps[name].each(&mut self.room, false, |key, value| {
                let value = place.of(name, value);
                if !is_zero(value) {
                    counters.insert((name, key.to_vec()), value.to_vec());
                }
            })?;
        }
        Ok(counters)
    }

    fn place(&self) -> Place {
        Place {
            cpu: self.cpu,
            cpus: self.cpus,
        }
    }

    /// Drop counters, by number.
    pub(super) fn drops(&mut self) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        let place = self.place();
        self.maps[map::DROPS].each(&mut self.room, false, |_, value| {
            let value = place.of(map::DROPS, value);
            let value = value.try_into().expect("a counter has eight bytes");
            counts.push(u64::from_ne_bytes(value));
        })?;
        Ok(counts)
    }

    fn now(&mut self) -> Result<u32> {
        let (mut clock, mut context) = ([0; 64], [0; 24]);
        // struct xdp_md: data, data_end, …
        context[4..8].copy_from_slice(&64_u32.to_ne_bytes());
        sys::test_run(self.clock, &[0; 64], &mut clock, &mut context, false, false)?;
        let jiffies = u64::from_ne_bytes(clock[..8].try_into()?);
        Ok(jiffies as u32)
    }

    /// Whether the kernel runs a program on this packet: at TC not on those that end within the
    /// smallest IP header (since Linux 6.15 or so).
    pub(super) fn takes(&self, side: Side, packet: &[u8]) -> bool {
        let at_tc = self.hook == Hook::Tc || side == Side::Node;
        let least = match packet.get(12..14) {
            Some([0x08, 0x00]) => 14 + 20,
            Some([0x86, 0xdd]) => 14 + 40,
            _ => 14,
        };
        !at_tc || packet.len() >= least
    }

    /// # Errors
    /// The kernel refuses a call, or finds the packet's hardware checksum wrong.
    pub(super) fn take(&mut self, side: Side, packet: &[u8], summed: bool) -> Result<Done> {
        let devices = self.devices();
        let ingress = match side {
            Side::Client | Side::Node => devices.client_side,
            Side::Backend => devices.backend_side,
        };
        if self.hook == Hook::Xdp && side != Side::Node {
            return self.take_xdp(ingress, packet);
        }
        let program = match side {
            Side::Node => self.egress,
            _ => self.ingress,
        };
        // struct __sk_buff with only ifindex set, the eleventh word.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&ingress.to_ne_bytes());
        let out = &mut self.out;
        let (action, length) = sys::test_run(program, packet, out, &mut context, false, summed)?;
        let action = match action {
            // TC_ACT_UNSPEC: the next program's turn.
            u32::MAX => Action::Pass,
            2 => Action::Drop,
            7 => Action::Send,
            other => bail!("TC action {other:#x}"),
        };
        let packet = out[..length].to_vec();
        Ok(Done { action, packet })
    }

    fn take_xdp(&mut self, ingress: u32, packet: &[u8]) -> Result<Done> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, queue, egress
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ingress.to_ne_bytes());
        let out = &mut self.out;
        let (action, length) = sys::test_run(self.ingress, packet, out, &mut context, true, false)?;
        // Metadata comes out in front of the packet: a note for the TC hook.
        let note = u32::from_ne_bytes(context[..4].try_into()?) as usize;
        let action = match (action, note) {
            (1, _) => Action::Drop,
            (2, 0) => Action::Pass,
            (2, _) => Action::Resolve,
            (3, _) => Action::Transmit,
            (4, _) => Action::Redirect,
            (other, _) => bail!("XDP action {other}"),
        };
        let packet = out[note..length].to_vec();
        Ok(Done { action, packet })
    }

    /// Everything but packets.
    pub(super) fn apply(&mut self, event: &Event) -> Result<()> {
        self.is_changed |= !matches!(event, Event::Second | Event::Evict { .. });
        match event {
            Event::Packet { .. } => {}
            Event::Backend {
                slot,
                state,
                generation,
            } => self.kernel.set_backend(*slot, *state, *generation),
            Event::Epoch => self.kernel.next_epoch(),
            Event::Second => self.age()?,
            Event::Evict { v6, key } => {
                let name = if *v6 {
                    map::HANDSHAKES6
                } else {
                    map::HANDSHAKES4
                };
                self.maps[name].remove(key)?;
            }
            Event::Budget(budget, per_second) => self.kernel.set_budget(*budget, *per_second),
            Event::Sources(sources) => self.kernel.set_sources(sources),
        }
        Ok(())
    }

    fn age(&mut self) -> Result<()> {
        let mut aged = Vec::new();
        for name in TABLES.into_iter().chain([map::RATES, FULL]) {
            self.maps[name].each(&mut self.room, false, |key, value| {
                let before = value.to_vec();
                clock::age(name, value);
                if *value != before {
                    aged.push((name, key.to_vec(), value.to_vec()));
                }
            })?;
        }
        // Another second than the one they count in. Places for UDP are not counted by seconds.
        self.maps[map::BUDGETS].each(&mut self.room, false, |key, value| {
            if *key == (Budget::UdpPlaces as u32).to_ne_bytes() {
                return;
            }
            for budget in value.chunks_mut(8) {
                let second = u32::from_ne_bytes(budget[..4].try_into().expect("four bytes"));
                budget[..4].copy_from_slice(&second.wrapping_sub(1).to_ne_bytes());
            }
            aged.push((map::BUDGETS, key.to_vec(), value.to_vec()));
        })?;
        for (name, key, value) in aged {
            self.maps[name].set(&key, &value)?;
        }
        Ok(())
    }
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0)
}

/// Where this CPU's part of a per-CPU value is.
#[derive(Clone, Copy)]
struct Place {
    cpu: usize,
    cpus: usize,
}

impl Place {
    fn of<'v>(&self, name: &str, value: &'v [u8]) -> &'v [u8] {
        let size = value.len() / self.cpus;
        match name {
            // Elements lie eight bytes apart.
            map::CURSORS => &value[self.cpu * size..][..size_of::<u32>()],
            map::BUDGETS | map::COUNTERS | map::DROPS => &value[self.cpu * size..][..size],
            _ => value,
        }
    }
}

/// What only rises.
const COUNTERS: [&str; 2] = [map::COUNTERS, map::DROPS];

/// By how much the words of a value rose.
fn difference(value: &[u8], before: Option<&Vec<u8>>) -> Vec<u8> {
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    let Some(before) = before else {
        return value.to_vec();
    };
    let words = value.chunks(8).zip(before.chunks(8));
    words
        .flat_map(|(now, then)| word(now).wrapping_sub(word(then)).to_ne_bytes())
        .collect()
}

fn xdp(kernel: &mut Kernel, name: &str) -> Result<RawFd> {
    let program = kernel.ebpf.program_mut(name);
    let program: &mut Xdp = program.with_context(|| format!("no {name}"))?.try_into()?;
    Ok(program.fd()?.as_fd().as_raw_fd())
}

fn classifier(kernel: &mut Kernel, name: &str) -> Result<RawFd> {
    let program = kernel.ebpf.program_mut(name);
    let program: &mut SchedClassifier =
        program.with_context(|| format!("no {name}"))?.try_into()?;
    Ok(program.fd()?.as_fd().as_raw_fd())
}
