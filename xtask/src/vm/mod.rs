//! `cargo xtask vm`: lbd and its tests on Debian's kernels, in virtual machines.

mod boot;
mod initramfs;
mod kernels;
mod plan;
mod report;
mod table;

use std::{path::PathBuf, process::Stdio, sync::Mutex, thread};

use crate::{Outcome, build, build_next, cargo, root, tree};
use boot::Run;
use kernels::Kernel;
use plan::Step;
use report::Report;

pub const USAGE: &str =
    "vm [--kernel 5.10,6.1,…] [--only STEP,…] [--short] [--write] [-- CARGO'S OPTIONS]";

const MOST_IN_TESTS: [&str; 2] = ["5.10", "6.1"];
/// Programs beside which the tests look for others.
const PROGRAMS: [&str; 3] = ["lbd", "lbctl", "lbt-agent"];

#[derive(Default)]
struct Options {
    kernels: Vec<String>,
    only: Vec<String>,
    short: bool,
    write: bool,
    cargo: Vec<String>,
}

/// Boots each kernel, runs the tests in it, and says what became of them.
///
/// # Errors
/// No machine can be had, or something failed in one.
pub fn vm(arguments: &[String]) -> Outcome {
    let options = Options::new(arguments)?;
    if let Some(why) = boot::hindrance() {
        return Err(why);
    }
    let steps = match options.short {
        true => plan::short(&options.only)?,
        false => plan::long(&options.only)?,
    };
    let kernels = options.kernels.iter().map(|series| kernels::fetch(series));
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    let programs = programs(&steps, &options.cargo)?;
    let reports = on_each(&kernels, |kernel| run(kernel, &programs, &steps));
    print!("{}", table::summary(&reports, &steps));
    if options.write {
        table::write(&reports)?;
    }
    let bad = reports.iter().filter(|(_, report)| match report {
        Ok(report) => !report.is_good(),
        Err(_) => true,
    });
    let bad: Vec<_> = bad.map(|(series, _)| series.as_str()).collect();
    match bad.is_empty() {
        true => Ok(()),
        false => Err(format!("Linux {}: see above", bad.join(", "))),
    }
}

/// For `cargo xtask test`: every program and every packet case on each kernel, and traffic by every hook on
/// the oldest and the one most in use. Where there can be no machine, it says so; in CI that is an error.
///
/// # Errors
/// As [`vm`].
pub fn in_tests() -> Outcome {
    let (mut most, mut others, mut untested) = (Vec::new(), Vec::new(), Vec::new());
    for series in kernels::all_series() {
        let hindrance = boot::hindrance().map_or(Ok(()), Err);
        if let Err(why) = hindrance.and_then(|()| kernels::fetch(&series).map(drop)) {
            eprintln!("NOT TESTED on Linux {series}: {why}");
            untested.push(series);
        } else if MOST_IN_TESTS.contains(&series.as_str()) {
            most.push(series);
        } else {
            others.push(series);
        }
    }
    for (kernels, only) in [(most, &[][..]), (others, &["--only", "programs,packets"])] {
        let kernels = kernels.join(",");
        if !kernels.is_empty() {
            let options = [&["--short", "--kernel", &kernels], only].concat();
            vm(&options
                .iter()
                .copied()
                .map(str::to_owned)
                .collect::<Vec<_>>())?;
        }
    }
    match untested.is_empty() || std::env::var_os("CI").is_none() {
        true => Ok(()),
        false => Err(format!(
            "not tested on Linux {}: see above",
            untested.join(", ")
        )),
    }
}

impl Options {
    fn new(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        let list = |value: Option<&String>| {
            let value = value.ok_or_else(|| format!("usage: cargo xtask {USAGE}"))?;
            Ok::<_, String>(value.split(',').map(str::to_owned).collect())
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--kernel" => options.kernels = list(arguments.next())?,
                "--only" => options.only = list(arguments.next())?,
                "--short" => options.short = true,
                "--write" => options.write = true,
                "--" => options.cargo = arguments.by_ref().cloned().collect(),
                other => return Err(format!("{other}? usage: cargo xtask {USAGE}")),
            }
        }
        if options.kernels.is_empty() {
            options.kernels = kernels::all_series();
        }
        Ok(options)
    }
}

/// Builds what the steps run; file and name of each.
fn programs(steps: &[Step], flags: &[String]) -> Result<Vec<(PathBuf, String)>, String> {
    build(flags)?;
    let upgrades = steps.iter().any(|step| step.program == "upgrade");
    if upgrades {
        build_next()?;
    }
    let mut tests = cargo(&["test", "--release", "--no-run"]);
    tests
        .args(["-p", "lb-userspace", "-p", "lb-tests"])
        .args(flags);
    for step in steps {
        match step.program {
            "lb_userspace" => tests.arg("--lib"),
            program => tests.args(["--test", program]),
        };
    }
    // Which files it made stands in what it tells people.
    tests.stdout(Stdio::null());
    let told = tests
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    let file = |program: &str| {
        let of = |line: &&str| {
            let file = line.split_once('(').map_or("", |(_, rest)| rest);
            let name = file.rsplit('/').next().unwrap_or_default();
            name.rsplit_once('-')
                .is_some_and(|(name, _)| name == program)
        };
        let line = told.lines().filter(|l| l.contains("Executable ")).find(of);
        let path = line.and_then(|line| Some(line.split_once('(')?.1.trim_end_matches(')')));
        let path = path.ok_or_else(|| format!("cargo made no tests {program}:\n{told}"))?;
        Ok::<_, String>(root().join(path))
    };
    let release = root().join("target/release");
    let beside = PROGRAMS.into_iter().chain(upgrades.then_some("lbd-next"));
    let mut files: Vec<_> = beside
        .map(|name| (release.join(name), name.to_owned()))
        .collect();
    for step in steps {
        files.push((file(step.program)?, step.program.to_owned()));
    }
    Ok(files)
}

type Reports = Vec<(String, Result<Report, String>)>;

/// As many at a time as there are processors for, reports in the order of the kernels. In machines that
/// wait for one another's processors packets overtake each other by seconds; the backends' TCP, on 5.10, then
/// takes a SYN and its repetition for two connections and resets one.
fn on_each(kernels: &[Kernel], run: impl Fn(&Kernel) -> Result<Report, String> + Sync) -> Reports {
    let left = Mutex::new(kernels.iter().enumerate());
    let done = Mutex::new(Vec::new());
    let here = thread::available_parallelism().map_or(1, usize::from);
    let at_once = (here / boot::processors()).clamp(1, kernels.len().max(1));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("nobody panics").next();
                    let Some((index, kernel)) = next else {
                        return;
                    };
                    let report = run(kernel);
                    let report = (index, kernel.series.clone(), report);
                    done.lock().expect("nobody panics").push(report);
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panics");
    done.sort_by_key(|(index, ..)| *index);
    done.into_iter()
        .map(|(_, series, report)| (series, report))
        .collect()
}

/// A machine that dies of the emulator is no word on lbd: another one goes on with what is left. So many may
/// die in turn before a test came to its end.
const AGAIN: u32 = 3;

fn run(kernel: &Kernel, programs: &[(PathBuf, String)], steps: &[Step]) -> Result<Report, String> {
    let mut run = boot_with(kernel, programs, steps)?;
    let (mut ended, mut in_vain) = (0, 0);
    loop {
        let left = plan::left(steps, &run.lines);
        let so_far = steps
            .iter()
            .map(|step| plan::ended(&run.lines, step.name).len())
            .sum();
        in_vain = if so_far > ended { 0 } else { in_vain + 1 };
        ended = so_far;
        if !run.is_emulators || left.is_empty() || in_vain == AGAIN {
            break;
        }
        let failure = run.failure.take().unwrap_or_default();
        let first = left[0].name;
        eprintln!("vm {}: the emulator's fault: {failure}", kernel.series);
        run.lines.push(format!(
            "@@ note began again with {first}: the emulator's fault: {failure}"
        ));
        run = run.and(boot_with(kernel, programs, &left)?);
    }
    Ok(Report::new(&run, steps))
}

fn boot_with(
    kernel: &Kernel,
    programs: &[(PathBuf, String)],
    steps: &[Step],
) -> Result<Run, String> {
    let directory = root().join("target/vm/runs").join(&kernel.series);
    tree::Tree::new(directory.clone())?;
    let initramfs = initramfs::pack(&directory, kernel, programs, steps)?;
    let say = |line: &str| {
        if line.starts_with("@@ ") || line.starts_with("test ") {
            eprintln!("vm {}: {line}", kernel.series);
        }
    };
    let run = boot::boot(kernel, &initramfs, &directory, steps, say);
    let _ = std::fs::remove_file(&initramfs);
    run
}
