//! `cargo xtask soak --minutes N [--seed S]`: see `lb_tests::soak`. Exits with 1 if a connection failed
//! for no known reason, or anything is left behind.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use lb_tests::soak::{Options, run};

const USAGE: &str = "usage: soak [--minutes N] [--seed S]";

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    match run(options, |line| println!("{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak, seed {}: {error:#}", options.seed);
            ExitCode::FAILURE
        }
    }
}

/// Minutes may be fractions; without a seed it is a new one, which the first line tells.
fn options(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let (mut minutes, mut seed) = (10.0, now.as_secs() % 1_000_000);
    while let Some(name) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        match name.as_str() {
            "--minutes" => minutes = value.parse().context(USAGE)?,
            "--seed" => seed = value.parse().context(USAGE)?,
            _ => bail!(USAGE),
        }
    }
    let length = Duration::try_from_secs_f64(60.0 * minutes).context(USAGE)?;
    if length < Duration::from_secs(20) {
        bail!("a soak takes 20 seconds at least");
    }
    Ok(Options { length, seed })
}
