//! How many instructions the kernel's verifier walks in each program.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use lb_userspace::datapath::{self, OBJECT};

/// As `lbd` loads them: all that this kernel is given, by name, to log up to `level`. With `taking_over` as during an
/// upgrade, when the programs look up former flow tables too.
///
/// # Errors
/// The kernel refuses one; what its verifier says is in the error.
pub fn measure(level: u8, taking_over: bool) -> Result<BTreeMap<String, u32>> {
    let mut ebpf = load(level, taking_over)?;
    let frags = datapath::features().xdp_frags;
    let mut counts = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        if name == "lbd_xdp_frags" && !frags {
            continue;
        }
        let count = count(program).with_context(|| format!("program {name}"))?;
        counts.insert(name.to_owned(), count);
    }
    Ok(counts)
}

fn load(level: u8, taking_over: bool) -> Result<Ebpf> {
    crate::veth::lift_memory_limit();
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    loader.override_global("AYA_LOG_LEVEL", &level, false);
    let frags = u8::from(datapath::features().xdp_frags);
    loader.override_global("XDP_FRAGS", &frags, true);
    if taking_over {
        loader.override_global("RECALL", &1_u8, true);
    }
    Ok(loader.load(OBJECT)?)
}

fn count(program: &mut Program) -> Result<u32> {
    load_program(program)?;
    if let Some(count) = program.info()?.verified_instruction_count() {
        return Ok(count);
    }
    unload(program)?;
    let log = verifier_log(program)?;
    let words = log.split_whitespace();
    let count = words.skip_while(|word| *word != "processed").nth(1);
    let count = count.with_context(|| format!("the verifier says nothing of a number: {log}"))?;
    Ok(count.parse()?)
}

/// Before Linux 5.16 only the verifier's log tells, and aya shows the log of a program only that was
/// refused. So this one is refused after it was verified: for want of a file descriptor.
fn verifier_log(program: &mut Program) -> Result<String> {
    let limit = set_descriptors(0)?;
    let refused = load_program(program);
    set_descriptors(limit)?;
    match refused {
        Err(ProgramError::LoadError { verifier_log, .. }) => Ok(verifier_log.to_string()),
        other => bail!("expected to be refused a file descriptor: {other:?}"),
    }
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => panic!("lbd has no programs such as {other:?}"),
    }
}

fn unload(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.unload(),
        Program::SchedClassifier(program) => program.unload(),
        other => panic!("lbd has no programs such as {other:?}"),
    }
}

/// Sets how many descriptors this process may have from now on, and returns how many it could.
fn set_descriptors(limit: libc::rlim_t) -> Result<libc::rlim_t> {
    // SAFETY: an all-zero `rlimit` is valid.
    let mut limits: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) } != 0 {
        bail!("getrlimit: {}", std::io::Error::last_os_error());
    }
    let former = std::mem::replace(&mut limits.rlim_cur, limit);
    // SAFETY: as above.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) } != 0 {
        bail!("setrlimit: {}", std::io::Error::last_os_error());
    }
    Ok(former)
}
