//! The long fuzz: the packet programs against the byte slice, then every parser.

use std::process::Command;

use crate::{Outcome, as_root, build, cargo, output, root, run};

/// What `cargo fuzz` is installed in where it is missing.
const CARGO_FUZZ: &str = "0.13.2";

/// Half the time goes to the kernel, the other half to the parsers, each as long as the others.
pub(crate) fn run_all(arguments: &[String]) -> Outcome {
    let Options { minutes, seed } = Options::read(arguments)?;
    build(&[])?;
    install()?;
    let mut kernel = as_root(root().join("target/release/fuzz"));
    kernel.args(["--minutes", &minutes.div_ceil(2).to_string()]);
    if let Some(seed) = seed {
        kernel.args(["--seed", &seed.to_string()]);
    }
    let mut outcomes = vec![("the kernel's programs".to_owned(), run(&mut kernel))];
    let targets = targets()?;
    let seconds = (30 * minutes / targets.len() as u64).max(10);
    for target in targets {
        println!("{target}: {seconds} s");
        let outcome = parser(&target, seconds, seed);
        outcomes.push((target, outcome));
    }
    summary(&outcomes)
}

/// One that fails keeps none of the others from running, and is named once more at the end.
fn summary(outcomes: &[(String, Outcome)]) -> Outcome {
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|(name, outcome)| Some(format!("{name}: {}", outcome.as_ref().err()?)))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let (failures, all) = (failed.len(), outcomes.len());
    Err(format!(
        "{failures} of {all} failed:\n{}",
        failed.join("\n")
    ))
}

struct Options {
    minutes: u64,
    seed: Option<u64>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self, String> {
        const USAGE: &str = "usage: cargo xtask fuzz [--minutes N] [--seed N]";
        let mut options = Self {
            minutes: 10,
            seed: None,
        };
        for pair in arguments.chunks(2) {
            let [option, value] = pair else {
                return Err(USAGE.to_owned());
            };
            let number = value.parse().map_err(|_| USAGE.to_owned())?;
            match option.as_str() {
                "--minutes" => options.minutes = number,
                "--seed" => options.seed = Some(number),
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}

fn install() -> Outcome {
    if output(&mut cargo(&["fuzz", "--version"])).is_ok() {
        return Ok(());
    }
    println!("installing cargo-fuzz {CARGO_FUZZ}");
    run(&mut cargo(&[
        "install",
        "cargo-fuzz",
        "--version",
        CARGO_FUZZ,
        "--locked",
    ]))
}

/// The directories of seeds: every target has one.
fn targets() -> Result<Vec<String>, String> {
    let seeds = root().join("tests/fuzz/seeds");
    let entries = std::fs::read_dir(&seeds).map_err(|e| format!("{}: {e}", seeds.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut targets: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    targets.sort();
    Ok(targets)
}

fn parser(target: &str, seconds: u64, seed: Option<u64>) -> Outcome {
    // What is found goes there; the directories that are committed are only read.
    let new = format!("target/fuzz/new/{target}");
    std::fs::create_dir_all(root().join(&new)).map_err(|e| format!("{new}: {e}"))?;
    let mut fuzz: Command = cargo(&["fuzz", "run", "--fuzz-dir", "tests/fuzz"]);
    // The pinned toolchain is a stable one, and may use the sanitizer so.
    fuzz.env("RUSTC_BOOTSTRAP", "1");
    fuzz.args(["--target-dir", "target/fuzz", target, &new]);
    let committed = ["seeds", "corpus"].map(|kind| format!("tests/fuzz/{kind}/{target}"));
    fuzz.args(committed.iter().filter(|path| root().join(path).is_dir()));
    fuzz.args([
        "--",
        &format!("-max_total_time={seconds}"),
        "-print_final_stats=1",
    ]);
    if let Some(seed) = seed {
        fuzz.arg(format!("-seed={}", seed as u32));
    }
    run(&mut fuzz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_failed_are_named() {
        let of = |name: &str, outcome| (name.to_owned(), outcome);
        let mut outcomes = vec![
            of("config", Ok(())),
            of("dns", Err("it crashed".to_owned())),
        ];
        outcomes.push(of("etcd", Ok(())));
        outcomes.push(of("state", Err("it hangs".to_owned())));
        let wanted = "2 of 4 failed:\ndns: it crashed\nstate: it hangs";
        assert_eq!(summary(&outcomes), Err(wanted.to_owned()));
        assert_eq!(summary(&outcomes[..1]), Ok(()));
    }
}
