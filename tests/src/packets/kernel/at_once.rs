//! Packets on two CPUs at the same time.

use std::{
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, HashMap as BpfHashMap, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::abi::{BackendCounters, Flow, V4, V6, from_bytes, map};

use super::{Hook, Kernel, cpus, run_tc};

/// Where an entry's state stands, by family.
const STATES: [usize; 2] = [offset_of!(Flow<V4>, state), offset_of!(Flow<V6>, state)];

/// What a program did: its action and the packet as it left it.
pub type Done = (u32, Vec<u8>);

impl Kernel {
    /// Runs each of these packets, of clients or of backends, on the first two CPUs at once, one packet
    /// after the other.
    ///
    /// # Errors
    /// With less than two CPUs, or where the kernel refuses a call.
    pub fn run_at_once(&self, from_client: bool, packets: &[Vec<u8>]) -> Result<Vec<[Done; 2]>> {
        self.run_pairs([(from_client, packets); 2])
    }

    /// Runs the first packets on the first CPU and, each at the same time, the second packets on the
    /// second; of clients or of backends.
    ///
    /// # Errors
    /// As [`Self::run_at_once`].
    pub fn run_pairs(&self, sides: [(bool, &[Vec<u8>]); 2]) -> Result<Vec<[Done; 2]>> {
        ensure!(cpus()? >= 2, "this takes two CPUs");
        ensure!(sides[0].1.len() == sides[1].1.len(), "one has no pair");
        let arrived = AtomicUsize::new(0);
        let all_on = |cpu: usize| -> Result<Vec<Done>> {
            let (from_client, packets) = sides[cpu];
            pin_to(cpu)?;
            let mut done = Vec::with_capacity(packets.len());
            for (round, packet) in packets.iter().enumerate() {
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < 2 * (round + 1) {
                    std::hint::spin_loop();
                }
                match self.run_here(from_client, packet) {
                    Ok(one) => done.push(one),
                    Err(error) => {
                        // Nobody waits for a thread that has given up.
                        arrived.fetch_add(2 * packets.len(), Ordering::AcqRel);
                        return Err(error);
                    }
                }
            }
            Ok(done)
        };
        // Threads begin in the namespace of this one.
        let all_on = &all_on;
        let [a, b] = thread::scope(|scope| {
            let threads = [0, 1].map(|cpu| scope.spawn(move || all_on(cpu)));
            threads.map(|thread| thread.join().expect("no panic"))
        });
        Ok(a?.into_iter().zip(b?).map(|(a, b)| [a, b]).collect())
    }

    fn run_here(&self, from_client: bool, packet: &[u8]) -> Result<Done> {
        let ingress = match from_client {
            true => self.client_side,
            false => self.backend_side,
        };
        let mut out = vec![0; packet.len() + 512];
        let (action, length) = match self.hook {
            Hook::Xdp => {
                let program: &Xdp = self
                    .ebpf
                    .program("lbd_xdp")
                    .context("no lbd_xdp")?
                    .try_into()?;
                let words = [0, packet.len() as u32, 0, ingress, 0, 0];
                let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let result = program.test_run(TestRunOptions {
                    data_in: Some(packet),
                    data_out: Some(&mut out),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                })?;
                (result.return_value, result.data_size_out as usize)
            }
            Hook::Tc => {
                let program = self.ebpf.program("lbd_tc").context("no lbd_tc")?;
                let program: &SchedClassifier = program.try_into()?;
                let mut context = vec![0; 192];
                context[40..44].copy_from_slice(&ingress.to_ne_bytes());
                let program = program.fd()?.as_fd().as_raw_fd();
                run_tc(program, packet, &mut out, &context, false)?
            }
        };
        out.truncate(length);
        Ok((action, out))
    }

    /// What a backend's counters say, of all CPUs.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn counters(&mut self, slot: u32) -> Result<BackendCounters> {
        let counters =
            self.map::<PerCpuArray<_, [u8; size_of::<BackendCounters>()]>>(map::COUNTERS)?;
        let mut sum = BackendCounters::default();
        for one in counters.get(&slot, 0)?.iter() {
            let one: BackendCounters = from_bytes(one).context("a backend's counters")?;
            sum.packets_in += one.packets_in;
            sum.connections += one.connections;
            sum.established += one.established;
        }
        Ok(sum)
    }

    /// Open connections of a slot, as the path alone counts them.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn open_connections(&mut self, slot: u32) -> Result<u32> {
        let word = self.map::<Array<_, u64>>(map::ACTIVE)?.get(&slot, 0)?;
        let [opened, closed] = [word as u32, (word >> 32) as u32];
        Ok(opened.wrapping_sub(closed))
    }

    /// Entries of a family's connections, of both directions: those that are being opened, those that
    /// are open.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn entries(&mut self, v6: bool) -> Result<[usize; 2]> {
        let handshakes = match v6 {
            true => self.states_in::<40, 88>(map::HANDSHAKES6, STATES[1])?,
            false => self.states_in::<16, 64>(map::HANDSHAKES4, STATES[0])?,
        };
        Ok([handshakes.len(), self.states(v6)?.len()])
    }

    /// [`flow_state`](lb_common::abi::flow_state) of a family's open connections, of both directions.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn states(&mut self, v6: bool) -> Result<Vec<u32>> {
        match v6 {
            true => self.states_in::<40, 88>(map::FLOWS6, STATES[1]),
            false => self.states_in::<16, 64>(map::FLOWS4, STATES[0]),
        }
    }

    fn states_in<const K: usize, const V: usize>(
        &mut self,
        name: &str,
        offset: usize,
    ) -> Result<Vec<u32>> {
        let map = self.map::<BpfHashMap<_, [u8; K], [u8; V]>>(name)?;
        let states = map.iter().map(|entry| {
            let (_, value) = entry?;
            Ok(u32::from_ne_bytes(value[offset..offset + 4].try_into()?))
        });
        states.collect()
    }
}

fn pin_to(cpu: usize) -> Result<()> {
    // SAFETY: plain system calls on the calling thread.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    ensure!(done == 0, "pinning to CPU {cpu}");
    Ok(())
}
