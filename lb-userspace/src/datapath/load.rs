//! Loads the object: maps new or adopted, programs verified.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Context, Error, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{Program, ProgramFd, SchedClassifier, Xdp},
};
use lb_common::abi::map;

use super::{log::Level, sys, takeover::Places};
use crate::model::Limits;

/// Names of the programs in the object.
pub(super) mod program {
    /// The whole path, at XDP.
    pub(in crate::datapath) const XDP: &str = "lbd_xdp";
    /// The same for frames in several buffers: native XDP, where the kernel knows such.
    pub(in crate::datapath) const XDP_FRAGS: &str = "lbd_xdp_frags";
    /// The whole path, at TC ingress of devices without XDP.
    pub(in crate::datapath) const TC: &str = "lbd_tc";
    /// Sends on what XDP translated but could not transmit, at TC ingress.
    pub(in crate::datapath) const HANDOVER: &str = "lbd_handover";
    /// Translates answers of the node's own backends, at TC egress.
    pub(in crate::datapath) const EGRESS: &str = "lbd_egress";
    /// Tells the time; attached to nothing.
    pub(in crate::datapath) const CLOCK: &str = "lbd_clock";
    /// Tells which table stands where; attached to nothing.
    pub(in crate::datapath) const TABLES: &str = "lbd_tables";
}

/// Listens a service may have on average before the service maps fill up. The addresses whose echo
/// requests are answered stand there too, at most one per listen.
pub(super) const LISTENS_PER_SERVICE: u32 = 4;

/// What lbd uses where the kernel has it, and does without elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Links of TC programs (Linux 6.6); filters of the clsact discipline otherwise.
    pub tcx: bool,
    /// Native XDP for frames in several buffers (Linux 5.18); devices with an MTU beyond a page are
    /// served otherwise.
    pub xdp_frags: bool,
}

/// Asks the kernel, which takes the right to load programs.
pub fn features() -> Features {
    Features {
        tcx: sys::has_tcx(),
        xdp_frags: sys::program::has_xdp_frags(),
    }
}

/// Creates the maps pinned in `pins`, or takes those that are there; no program is loaded yet. With
/// `former` the programs look for flows that they do not find in other tables, which have to be lent to
/// them before they are loaded.
///
/// # Errors
/// A map pinned there has another layout than this program's.
pub(super) fn load_maps(
    object: &[u8],
    pins: &Path,
    limits: &Limits,
    log: Option<Level>,
    former: Option<&Places>,
) -> Result<Ebpf> {
    lift_memory_limit();
    let level = log.map_or(&0, Level::number);
    let wanted = sizes(limits);
    let mut loader = EbpfLoader::new();
    // With level 0 the verifier sees that logging is never reached, and removes it.
    loader.override_global(aya_log::LEVEL, level, false);
    let frags = u8::from(sys::program::has_xdp_frags());
    loader.override_global("XDP_FRAGS", &frags, true);
    if let Some(Places { v4, v6 }) = former {
        loader.override_global("RECALL", &1u8, true);
        loader.override_global("FORMER_PLACES4", &v4[..], true);
        loader.override_global("FORMER_PLACES6", &v6[..], true);
    }
    let names = [
        map::CONFIG,
        map::PORTS,
        map::DEVICES,
        map::DROPS,
        map::BUDGETS,
        map::FRAGMENTS4,
        map::FRAGMENTS6,
        map::HELD4,
        map::HELD6,
        map::SOURCES,
    ];
    for name in names.into_iter().chain(wanted.map(|(name, _)| name)) {
        loader.map_pin_path(name, pins.join(name));
    }
    for (name, size) in wanted {
        loader.map_max_entries(name, size);
    }
    loader.load(object).map_err(|error| explain(error, pins))
}

/// Verifies and loads the programs that are surely needed and not loaded yet, each on a thread of its own: the
/// verifier takes longer than everything else at start.
pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    let unused = match sys::program::has_xdp_frags() {
        true => program::XDP,
        false => program::XDP_FRAGS,
    };
    thread::scope(|scope| {
        let load = |(name, program): (&str, &mut Program)| {
            let loaded = match program {
                Program::Xdp(program) if program.fd().is_err() => program.load(),
                Program::SchedClassifier(program) if program.fd().is_err() => program.load(),
                _ => Ok(()),
            };
            loaded.with_context(|| format!("loading program {name}"))
        };
        let threads: Vec<_> = ebpf
            .programs_mut()
            .filter(|(name, _)| *name != unused)
            .map(|program| scope.spawn(move || load(program)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let failed = |_| Err(anyhow!("the thread that loads a program died"));
            thread.join().unwrap_or_else(failed)
        })
    })
}

/// A loaded XDP program.
pub(super) fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(program(ebpf, name)?.try_into()?)
}

/// The program of the whole path, loaded: for native XDP the one for frames in several buffers, where
/// the kernel knows such. Never for generic XDP, which copies packets for such a program otherwise:
/// on Linux 6.18 the fragments that it passed did not reach the TC hook behind it as they were.
pub(super) fn whole_path(ebpf: &mut Ebpf, native: bool) -> Result<&mut Xdp> {
    let name = match native && sys::program::has_xdp_frags() {
        true => program::XDP_FRAGS,
        false => program::XDP,
    };
    let program = xdp(ebpf, name)?;
    if program.fd().is_err() {
        program
            .load()
            .with_context(|| format!("loading program {name}"))?;
    }
    Ok(program)
}

/// A loaded TC program.
pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(program(ebpf, name)?.try_into()?)
}

/// The program of that name, loaded.
pub(super) fn any(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let loaded = match program(ebpf, name)? {
        Program::Xdp(program) => {
            if program.fd().is_err() {
                program
                    .load()
                    .with_context(|| format!("loading program {name}"))?;
            }
            program.fd()?
        }
        Program::SchedClassifier(program) => program.fd()?,
        _ => bail!("{name} is a program of another kind"),
    };
    Ok(loaded.as_fd().try_clone_to_owned()?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    let program = ebpf.program_mut(name);
    program.with_context(|| format!("the object has no program {name}"))
}

/// Loads the clock.
pub(super) fn clock(ebpf: &mut Ebpf) -> Result<ProgramFd> {
    let clock = xdp(ebpf, program::CLOCK)?;
    clock.load().context("loading program lbd_clock")?;
    Ok(clock.fd()?.try_clone()?)
}

/// Loads what tells of tables.
pub(super) fn tables(ebpf: &mut Ebpf) -> Result<ProgramFd> {
    let tables = classifier(ebpf, program::TABLES)?;
    tables.load().context("loading program lbd_tables")?;
    Ok(tables.fd()?.try_clone()?)
}

/// Entries of the maps whose size the node's limits give.
pub(super) fn sizes(limits: &Limits) -> [(&'static str, u32); 19] {
    // Destructured, so that a new limit must find its map.
    let Limits {
        connections,
        handshakes,
        services,
        backends,
        sources,
        clients,
    } = *limits;
    let listens = services.saturating_mul(LISTENS_PER_SERVICE);
    // One entry per direction, one table per address family.
    let (flows, handshakes) = (connections.saturating_mul(2), handshakes.saturating_mul(2));
    // While a list gives way to another, both are there.
    let sources = sources.saturating_mul(2);
    let counted = backends.saturating_add(services);
    [
        (map::ADMISSION, services),
        (map::RATES, services),
        (map::ACTIVE, counted),
        (map::COUNTED, counted),
        (map::SOURCE_LISTS4, sources),
        (map::SOURCE_LISTS6, sources),
        (map::SOURCE_RATES, clients),
        (map::AFFINITY4, clients),
        (map::AFFINITY6, clients),
        (map::SERVICES4, listens),
        (map::SERVICES6, listens),
        (map::TABLES, services.saturating_mul(2)),
        (map::CURSORS, services),
        (map::BACKENDS, backends),
        (map::COUNTERS, backends),
        (map::FLOWS4, flows),
        (map::FLOWS6, flows),
        (map::HANDSHAKES4, handshakes),
        (map::HANDSHAKES6, handshakes),
    ]
}

fn explain(error: EbpfError, pins: &Path) -> Error {
    match error {
        EbpfError::MapError(MapError::IncompatiblePinnedMap {
            name,
            property,
            expected,
            actual,
        }) => anyhow!(
            "map {name} pinned in {} is another program's or another version's: its {property} is \
             {actual}, this lbd needs {expected}; stop lbd, run `lbd --cleanup` (which ends the \
             balanced connections), start lbd",
            pins.display()
        ),
        EbpfError::MapError(MapError::CreateError { name, io_error })
            if matches!(
                io_error.raw_os_error(),
                Some(libc::ENOMEM | libc::E2BIG | libc::EPERM)
            ) =>
        {
            anyhow!(
                "loading the maps: {name}: {io_error}; most likely there is no memory for it: lower \
                 `node.limits`, or, before Linux 5.11, raise the limit of locked memory (systemd: \
                 `LimitMEMLOCK=infinity`), which CAP_SYS_RESOURCE lets lbd do itself"
            )
        }
        other => Error::new(other).context("loading the maps"),
    }
}

/// Before Linux 5.11 maps count against the locked memory of the process; newer kernels ignore it.
fn lift_memory_limit() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a `rlimit`. A refusal shows when a map cannot be created.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) };
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// EPERM is what kernels before 5.11 say of locked memory.
    #[test]
    fn a_map_without_memory_is_told_with_the_remedy() {
        let told = |errno| {
            let error = EbpfError::MapError(MapError::CreateError {
                name: "FLOWS4".to_owned(),
                io_error: io::Error::from_raw_os_error(errno),
            });
            format!("{:#}", explain(error, Path::new("/pins")))
        };
        for errno in [libc::ENOMEM, libc::E2BIG, libc::EPERM] {
            let told = told(errno);
            let parts = [
                "loading the maps: FLOWS4: ",
                "`node.limits`",
                "LimitMEMLOCK",
            ];
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        }
        let other = told(libc::EINVAL);
        assert!(!other.contains("node.limits"), "{other}");
    }
}
