//! The packet programs of the kernel against the same path on a byte slice, see
//! `lb_tests::packets::differ`. `cargo xtask fuzz` runs it.

use std::{
    env,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_tests::packets::{
    differ::{self, Limit, Report},
    kernel::Hook,
};

const USAGE: &str = "usage: fuzz [--minutes N | --packets N] [--seed N]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut limit, mut seed) = (None, None);
    let mut arguments = env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        let number: u64 = value.parse().with_context(|| format!("{option} {value}"))?;
        match option.as_str() {
            "--minutes" => {
                let end = Instant::now() + Duration::from_secs(60 * number);
                limit = Some(Limit::Until(end));
            }
            "--packets" => limit = Some(Limit::Packets(number)),
            "--seed" => seed = Some(number),
            _ => bail!(USAGE),
        }
    }
    let limit = limit.unwrap_or(Limit::Until(Instant::now() + Duration::from_secs(60)));
    let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
    println!("seed {seed}");
    let cpus = thread::available_parallelism()?.get();
    let runs = [Hook::Xdp, Hook::Tc].map(|hook| {
        let cpu = hook as usize % cpus;
        (hook, thread::spawn(move || timed(hook, cpu, seed, limit)))
    });
    let mut faults = Vec::new();
    for (hook, run) in runs {
        match run.join().expect("no panic") {
            Ok(line) => println!("{hook:?}: {line}"),
            Err(error) => faults.push(format!("{hook:?}: {error:#}")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n\n"));
    }
    Ok(())
}

fn timed(hook: Hook, cpu: usize, seed: u64, limit: Limit) -> Result<String> {
    let begin = Instant::now();
    let report = differ::run(hook, cpu, seed, limit)?;
    let rate = report.packets as f64 / begin.elapsed().as_secs_f64();
    Ok(format!("{}, {rate:.0} packets/s", shown(&report)))
}

fn shown(report: &Report) -> String {
    let Report {
        packets,
        sequences,
        handled,
        drops,
    } = report;
    let reasons = drops.iter().filter(|count| **count > 0).count();
    format!(
        "{packets} packets in {sequences} sequences agree, {handled} of them handled, {reasons} drop reasons"
    )
}
