//! The same packet on two CPUs at the same time.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, HashMap as BpfHashMap, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::abi::{BackendCounters, from_bytes, map};

use super::{Hook, Kernel, cpus, run_tc};

/// What a program did: its action and the packet as it left it.
pub type Done = (u32, Vec<u8>);

impl Kernel {
    /// Runs each of these packets, of clients or of backends, on the first two CPUs at once, one packet
    /// after the other.
    ///
    /// # Errors
    /// With less than two CPUs, or where the kernel refuses a call.
    pub fn run_at_once(&self, from_client: bool, packets: &[Vec<u8>]) -> Result<Vec<[Done; 2]>> {
        ensure!(cpus()? >= 2, "this takes two CPUs");
        let arrived = AtomicUsize::new(0);
        let all_on = |cpu: usize| -> Result<Vec<Done>> {
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

    /// Entries of IPv4 connections, of both directions: those that are being opened, those that are open.
    ///
    /// # Errors
    /// Where the kernel refuses a call.
    pub fn entries(&mut self) -> Result<[usize; 2]> {
        let mut count = |name| -> Result<usize> {
            let map = self.map::<BpfHashMap<_, [u8; 16], [u8; 64]>>(name)?;
            Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
        };
        Ok([count(map::HANDSHAKES4)?, count(map::FLOWS4)?])
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
