//! Has all hooks go over to other programs in one step.
//!
//! A packet and its answer may pass different devices and hooks. Where the new programs use other
//! tables, a connection that begins at a hook with the new program would not be known at one with the
//! old. So each hook first gets a program that calls the old one or the new one as one word says,
//! which all share; then the word changes; then the new programs take these programs' places.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use aya::Ebpf;

use super::{
    attach::{Links, PROGRAMS, Side},
    clsact,
    devices::Device,
    load::{self, program},
    preflight::create_directory,
    sys::{Link, Map, program::Program},
};

/// Index of the programs in the arrays, by the word.
const OLD: u32 = 0;
const NEW: u32 = 1;

pub(super) struct Switch {
    /// Where the arrays of programs are pinned.
    directory: PathBuf,
    /// Where the programs at work are pinned.
    programs: PathBuf,
    /// What all hooks look at.
    word: Map,
    /// By the number of the program they took the place of.
    trampolines: BTreeMap<u32, Program>,
}

impl Switch {
    /// Pins below `root` what must outlive a daemon that dies before [`Self::end`].
    pub(super) fn new(root: &Path) -> Result<Self> {
        let directory = root.join("switch");
        create_directory(&directory)?;
        Ok(Self {
            directory,
            programs: root.join(PROGRAMS),
            word: Map::array(1, size_of::<u32>() as u32)?,
            trampolines: BTreeMap::new(),
        })
    }

    /// Puts itself in front of every program in `links`, the new one of the same name being in `ebpf`.
    pub(super) fn enter_links(&mut self, ebpf: &mut Ebpf, links: &Links) -> Result<()> {
        for (_, path) in links.all()? {
            let link = Link::from_pin(&path)?;
            let Some(link) = link.filter(|link| link.info.ifindex != 0) else {
                continue;
            };
            let trampoline = self.trampoline(ebpf, link.info.prog_id)?;
            trampoline
                .enter_link(&link)
                .with_context(|| format!("updating {}", path.display()))?;
        }
        Ok(())
    }

    /// The same for filters of the clsact discipline; `scratch` is a place where a program can be pinned.
    pub(super) fn enter_filters(
        &mut self,
        ebpf: &mut Ebpf,
        devices: &[Device],
        scratch: &Path,
    ) -> Result<()> {
        for device in devices {
            for side in [Side::Ingress, Side::Egress] {
                for filter in clsact::ours(device.index, side)? {
                    let trampoline = self.trampoline(ebpf, filter.program)?;
                    let pinned = trampoline.pin(scratch);
                    let replaced = pinned
                        .map_err(anyhow::Error::from)
                        .and_then(|()| clsact::replace(device, side, &filter, scratch));
                    let _ = fs::remove_file(scratch);
                    replaced.with_context(|| format!("{side} of {}", device.name))?;
                }
            }
        }
        Ok(())
    }

    fn trampoline(&mut self, ebpf: &mut Ebpf, old: u32) -> Result<&Program> {
        if !self.trampolines.contains_key(&old) {
            let new = self.make(ebpf, old)?;
            self.trampolines.insert(old, new);
        }
        Ok(&self.trampolines[&old])
    }

    fn make(&self, ebpf: &mut Ebpf, number: u32) -> Result<Program> {
        let pin = self.programs.join(number.to_string());
        let old = Program::from_pin_or_id(&pin, number)
            .with_context(|| format!("opening program {number}"))?;
        let name = old.name();
        let new = load::any(ebpf, &name)?;
        let programs = Map::program_array(2)?;
        let trampoline = old
            .trampoline(&programs, &self.word, name == program::XDP_FRAGS)
            .with_context(|| format!("loading a program in front of {name}"))?;
        let pin = self.directory.join(number.to_string());
        // The kernel empties such an array when nobody but programs holds it any more
        // (`prog_array_map_clear`, kernel/bpf/arraymap.c).
        remove_file(&pin)
            .and_then(|()| programs.pin(&pin))
            .and_then(|()| programs.set_program(OLD, old.as_fd()))
            .and_then(|()| programs.set_program(NEW, new.as_fd()))
            .with_context(|| format!("preparing to call {name}"))?;
        Ok(trampoline)
    }

    /// The step.
    pub(super) fn flip(&self) -> io::Result<()> {
        self.word.update(&0u32.to_ne_bytes(), &NEW.to_ne_bytes())
    }

    /// The new programs have taken the places of all these. Also those that a former daemon left half
    /// way are done with.
    pub(super) fn end(self) -> Result<()> {
        let remove = || {
            for entry in fs::read_dir(&self.directory)? {
                fs::remove_file(entry?.path())?;
            }
            fs::remove_dir(&self.directory)
        };
        remove().with_context(|| format!("removing {}", self.directory.display()))
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Waits until every program has ended that ran when this was called.
pub(super) fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` waits for a grace period of RCU (`synchronize_rcu`, kernel/sched/membarrier.c),
    /// under which programs run.
    const GLOBAL: libc::c_int = 1;
    /// Longer than any program runs, for kernels without the call.
    const LONG_ENOUGH: Duration = Duration::from_millis(100);
    // SAFETY: no pointers.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        thread::sleep(LONG_ENOUGH);
    }
}
