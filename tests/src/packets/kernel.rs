//! Runs cases on the real programs by `BPF_PROG_TEST_RUN`, in a network namespace of its own
//! that has the standard world's devices, routes and neighbours.

mod at_once;
mod install;
mod network;

pub use self::at_once::Done;
pub use self::install::{load, load_logging};

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, Map, PerCpuArray, PerCpuValues, RingBuf},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use lb_common::abi::{Backend, Config, Drop, V4, V6, as_bytes, map, source_slot};
use lb_common::path::Budget;

use super::world::{self, Addresses};
use super::{Action, Case, Outcome, Runner, sys, tuple};

/// Which program runs the cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Xdp,
    Tc,
}

/// The loaded programs. Its thread lives in its own network namespace, on one CPU.
pub struct Kernel {
    pub ebpf: Ebpf,
    hook: Hook,
    /// Whether a run of XDP may be told the device that a packet came by (Linux 5.15). It is the loopback
    /// device otherwise, out of which nothing is sent back.
    takes_device: bool,
    client_side: u32,
    backend_side: u32,
    config: Config,
    /// The node's own.
    sockets: Vec<OwnedFd>,
}

impl Kernel {
    /// Moves the calling thread into a new network namespace and loads the programs.
    ///
    /// # Errors
    /// Without root, or where the kernel refuses a program; the verifier's log is in the error.
    pub fn new(hook: Hook) -> Result<Self> {
        Self::logging(hook, 0)
    }

    /// As [`Self::new`]; the programs log up to `level`, from 0 (nothing) to 5.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn logging(hook: Hook, level: u8) -> Result<Self> {
        Self::sized(hook, 0, level, &[])
    }

    /// As [`Self::logging`], on this CPU, with so much room in these maps.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn sized(hook: Hook, cpu: usize, level: u8, sizes: &[(&str, u32)]) -> Result<Self> {
        let (client_side, backend_side) = network::build_namespace(cpu)?;
        let ebpf = install::load_sized(level, sizes).context("loading the programs")?;
        let mut kernel = Self {
            ebpf,
            hook,
            takes_device: release() >= (5, 15),
            client_side,
            backend_side,
            config: world::CONFIG,
            sockets: Vec::new(),
        };
        kernel.install()?;
        Ok(kernel)
    }

    /// Index of the device on the clients' side.
    pub fn client_side(&self) -> u32 {
        self.client_side
    }

    /// Why a case cannot run here, if so.
    pub fn hindrance(case: &Case) -> Option<&'static str> {
        let tells = release() >= (5, 12);
        (case.asks_route_mtu && !tells).then_some("this kernel does not tell the MTU of a route")
    }

    /// Index of the device on the backends' side.
    pub fn backend_side(&self) -> u32 {
        self.backend_side
    }

    /// How many jiffies a second has, as the programs see it.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn set_hz(&mut self, hz: u32) -> Result<()> {
        self.config.hz = hz;
        self.write_config()
    }

    /// Makes config and backends those of the standard world again.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn restore(&mut self) -> Result<()> {
        self.config = world::CONFIG;
        self.sockets.clear();
        self.write_backends()
    }

    /// Takes what the programs logged; returns the number of records.
    ///
    /// # Errors
    /// The object was built without logs.
    pub fn take_logs(&mut self) -> Result<usize> {
        let mut logs = self.map::<RingBuf<_>>("AYA_LOGS")?;
        let mut records = 0;
        while logs.next().is_some() {
            records += 1;
        }
        Ok(records)
    }

    fn map<'a, T: TryFrom<&'a mut Map>>(&'a mut self, name: &str) -> Result<T>
    where
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        T::try_from(map).with_context(|| name.to_owned())
    }

    fn write_config(&mut self) -> Result<()> {
        let value: [u8; 32] = bytes(&self.config)?;
        Ok(self
            .map::<Array<_, [u8; 32]>>(map::CONFIG)?
            .set(0, &value, 0)?)
    }

    fn write_backends(&mut self) -> Result<()> {
        for v6 in [false, true] {
            for (slot, backend) in world::backends(Addresses { v6 }) {
                self.write_backend(slot, &backend)?;
            }
        }
        Ok(())
    }

    fn write_backend(&mut self, slot: u32, backend: &Backend) -> Result<()> {
        let value: [u8; 64] = bytes(backend)?;
        Ok(self
            .map::<Array<_, [u8; 64]>>(map::BACKENDS)?
            .set(slot, &value, 0)?)
    }

    fn forget(&mut self) -> Result<()> {
        self.empty::<16, 64>(map::FLOWS4)?;
        self.empty::<40, 88>(map::FLOWS6)?;
        self.forget_handshakes()?;
        self.empty::<16, 16>(map::FRAGMENTS4)?;
        self.empty::<40, 16>(map::FRAGMENTS6)?;
        self.empty::<20, 2056>(map::HELD4)?;
        self.empty::<44, 2056>(map::HELD6)?;
        for listen in world::listens() {
            let service = u32::from(listen.port);
            let cursors = PerCpuValues::try_from(vec![0_u32; cpus()?])?;
            self.map::<PerCpuArray<_, u32>>(map::CURSORS)?
                .set(service, cursors, 0)?;
            self.map::<Array<_, u64>>(map::RATES)?.set(service, &0, 0)?;
            self.map::<Array<_, u64>>(map::ACTIVE)?
                .set(world::slot::COUNT + service, &0, 0)?;
        }
        for slot in 0..world::slot::COUNT {
            self.map::<Array<_, u64>>(map::ACTIVE)?.set(slot, &0, 0)?;
        }
        self.empty::<16, 8>(map::SOURCE_RATES)?;
        self.empty::<8, 16>(map::AFFINITY4)?;
        self.empty::<20, 16>(map::AFFINITY6)?;

        for budget in 0..Budget::COUNT {
            self.map::<PerCpuArray<_, u64>>(map::BUDGETS)?.set(
                budget,
                PerCpuValues::try_from(vec![0_u64; cpus()?])?,
                0,
            )?;
        }
        Ok(())
    }

    /// Empties the tables of connections not answered yet.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn forget_handshakes(&mut self) -> Result<()> {
        self.empty::<16, 64>(map::HANDSHAKES4)?;
        self.empty::<40, 88>(map::HANDSHAKES6)
    }

    /// Removes every entry of a map with keys of `K` and values of `V` bytes.
    fn empty<const K: usize, const V: usize>(&mut self, name: &str) -> Result<()> {
        let mut map = self.map::<BpfHashMap<_, [u8; K], [u8; V]>>(name)?;
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        Ok(keys.iter().try_for_each(|key| map.remove(key))?)
    }

    fn drops(&mut self) -> Result<Vec<u64>> {
        let drops = self.map::<PerCpuArray<_, u64>>(map::DROPS)?;
        (0..Drop::SLOTS)
            .map(|index| Ok(drops.get(&index, 0)?.iter().sum()))
            .collect()
    }

    fn run_program(
        &mut self,
        from_client: bool,
        packet: &[u8],
        summed: bool,
    ) -> Result<(Action, Vec<u8>)> {
        let ingress = if from_client {
            self.client_side
        } else {
            self.backend_side
        };
        let mut out = vec![0; packet.len() + 512];
        match self.hook {
            Hook::Xdp => {
                let program: &mut Xdp = self
                    .ebpf
                    .program_mut("lbd_xdp")
                    .context("no lbd_xdp")?
                    .try_into()?;
                // struct xdp_md: data, data_end, data_meta, ingress_ifindex, queue, egress
                let words = [0, packet.len() as u32, 0, ingress, 0, 0];
                let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let mut context_out = vec![0; context.len()];
                let told = self.takes_device;
                let result = program.test_run(TestRunOptions {
                    data_in: Some(packet),
                    data_out: Some(&mut out),
                    ctx_in: told.then_some(&context),
                    ctx_out: told.then_some(&mut context_out),
                    ..TestRunOptions::new()
                })?;
                // Metadata comes out in front of the packet: a note for the TC hook.
                let note = u32::from_ne_bytes(context_out[..4].try_into()?) as usize;
                let packet = out[note..result.data_size_out as usize].to_vec();
                let action = match (result.return_value, note) {
                    (1, _) => Action::Drop,
                    (2, 0) => Action::Pass,
                    (2, _) => Action::Resolve,
                    (3 | 4, _) if !told => Action::Send,
                    (3, _) => Action::Transmit,
                    (4, _) => Action::Redirect,
                    (other, _) => bail!("XDP action {other}"),
                };
                Ok((action, packet))
            }
            Hook::Tc => {
                let program: &mut SchedClassifier = self
                    .ebpf
                    .program_mut("lbd_tc")
                    .context("no lbd_tc")?
                    .try_into()?;
                // struct __sk_buff with only ifindex set, the eleventh word.
                let mut context = vec![0; 192];
                context[40..44].copy_from_slice(&ingress.to_ne_bytes());
                let program = program.fd()?.as_fd().as_raw_fd();
                let (action, length) = run_tc(program, packet, &mut out, &context, summed)?;
                let action = match action {
                    // TC_ACT_UNSPEC: the next program's turn.
                    u32::MAX => Action::Pass,
                    2 => Action::Drop,
                    7 => Action::Send,
                    other => bail!("TC action {other}"),
                };
                Ok((action, out[..length].to_vec()))
            }
        }
    }

    fn outcome(&mut self, from_client: bool, packet: &[u8], summed: bool) -> Outcome {
        let before = self.drops().expect("reading the drop counters");
        let (action, packet) = self
            .run_program(from_client, packet, summed)
            .unwrap_or_else(|error| panic!("{} bytes: {error:?}", packet.len()));
        let after = self.drops().expect("reading the drop counters");
        let rose = |reason: &Drop| after[*reason as usize] > before[*reason as usize];
        let counted = Drop::ALL.into_iter().filter(rose).collect();
        Outcome {
            action,
            packet,
            counted,
        }
    }
}

impl Runner for Kernel {
    fn reset(&mut self) {
        self.config = world::CONFIG;
        self.sockets.clear();
        let done = self
            .write_config()
            .and_then(|()| self.write_backends())
            .and_then(|()| self.forget());
        done.expect("resetting the kernel's maps");
    }

    fn run(&mut self, from_client: bool, packet: &[u8]) -> Outcome {
        self.outcome(from_client, packet, true)
    }

    /// Without a hardware checksum, which the kernel compares even if another packet stands in the
    /// buffer by then.
    fn run_reused(&mut self, from_client: bool, packet: &[u8]) -> Outcome {
        self.outcome(from_client, packet, false)
    }

    fn set_backend(&mut self, slot: u32, state: u32, generation: u32) {
        let v6 = slot >= world::V6_SLOTS;
        let found = world::backends(Addresses { v6 })
            .into_iter()
            .find(|(s, _)| *s == slot);
        let (_, backend) = found.expect("a slot of the world");
        let backend = Backend {
            state,
            generation,
            ..backend
        };
        self.write_backend(slot, &backend)
            .expect("writing a backend");
    }

    fn next_epoch(&mut self) {
        self.config.epoch += 1;
        self.write_config().expect("writing the config");
    }

    fn evict(&mut self, src: SocketAddr, dst: SocketAddr, udp: bool) -> bool {
        let done = if src.is_ipv6() {
            bytes::<_, 40>(&tuple::<V6>(src, dst, udp)).and_then(|key| {
                let name = map::HANDSHAKES6;
                let mut map = self.map::<BpfHashMap<_, [u8; 40], [u8; 88]>>(name)?;
                let is_there = map.get(&key, 0).is_ok();
                if is_there {
                    map.remove(&key)?;
                }
                Ok(is_there)
            })
        } else {
            bytes::<_, 16>(&tuple::<V4>(src, dst, udp)).and_then(|key| {
                let name = map::HANDSHAKES4;
                let mut map = self.map::<BpfHashMap<_, [u8; 16], [u8; 64]>>(name)?;
                let is_there = map.get(&key, 0).is_ok();
                if is_there {
                    map.remove(&key)?;
                }
                Ok(is_there)
            })
        };
        done.expect("removing a handshake")
    }

    fn listen(&mut self, local: SocketAddr, udp: bool) {
        let socket: io::Result<OwnedFd> = match udp {
            true => UdpSocket::bind(local).map(Into::into),
            false => TcpListener::bind(local).map(Into::into),
        };
        self.sockets
            .push(socket.unwrap_or_else(|error| panic!("{local}: {error}")));
    }

    fn close_sockets(&mut self) {
        self.sockets.clear();
    }

    fn set_sources(&mut self, sources: &[IpAddr]) {
        self.config.sources = world::source_counts(sources);
        let mut write = || -> Result<()> {
            let mut map = self.map::<Array<_, [u32; 4]>>(map::SOURCES)?;
            for v6 in [false, true] {
                let of_family = sources.iter().filter(|source| source.is_ipv6() == v6);
                for (number, source) in (0..).zip(of_family) {
                    map.set(source_slot(v6, number), &world::words(*source), 0)?;
                }
            }
            self.write_config()
        };
        write().expect("writing SNAT's addresses");
    }

    fn set_pool(&mut self, first: u16, count: u16) {
        self.config.snat_first = first;
        self.config.snat_count = count;
        self.write_config().expect("writing the config");
    }

    fn wait_second(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }

    fn make_stale(&mut self) {
        self.config.hz = 0;
        self.write_config().expect("writing the config");
    }

    fn set_budget(&mut self, budget: Budget, limit: u32) {
        match budget {
            Budget::Answers => self.config.rejects_per_second = limit,
            Budget::Entries => self.config.entries_per_second = limit,
            Budget::UdpPlaces => self.config.give_udp_places(limit),
        }
        self.write_config().expect("writing the config");
    }
}

/// Runs a TC program on a buffer that, if `summed`, has a hardware checksum over the whole packet
/// (`CHECKSUM_COMPLETE`), and asks the kernel whether that is still right afterwards. Where the
/// kernel is older than 6.17 the buffer has none. Returns the action and the packet's length.
fn run_tc(
    program: RawFd,
    packet: &[u8],
    out: &mut [u8],
    context: &[u8],
    summed: bool,
) -> Result<(u32, usize)> {
    // That of before comes back nowhere.
    let mut context = context.to_vec();
    let mut run = |summed| sys::test_run(program, packet, out, &mut context, false, summed);
    if !summed {
        return run(false).context("test run");
    }
    match run(true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => run(false).context("test run"),
        // Cutting a buffer takes its hardware checksum away, which the kernel then compares
        // nevertheless. Only answers are cut, and asking for one again changes nothing.
        Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
            let again = run(false).context("test run")?;
            ensure!(again.1 != packet.len(), "the hardware checksum is wrong");
            Ok(again)
        }
        other => other.context("test run"),
    }
}

/// Version of the running kernel: `(6, 12)`.
pub fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(['.', '-', '+']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn cpus() -> Result<usize> {
    match nr_cpus() {
        Ok(count) => Ok(count.get() as usize),
        Err((path, error)) => bail!("{path}: {error}"),
    }
}

fn bytes<T: lb_common::abi::Pod, const N: usize>(value: &T) -> Result<[u8; N]> {
    as_bytes(value).try_into().context("size of a map's entry")
}
