//! `cargo xtask`: builds, shows, tests and measures the project. `make` calls it after set-up.

mod coverage;
mod deb;
mod fuzz;
mod image;
mod leftovers;
mod manual;
mod next;
mod tree;
mod vm;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Tasks and what they take.
const USAGE: &str = "usage: cargo xtask build|demo|test|bench|soak [--minutes N] [--seed S]|\
                     fuzz [--minutes N] [--seed N]|vm [--kernel LIST]|coverage|deb [VERSION]|\
                     image-root [ARCHITECTURE]|test-image";

/// What went wrong, for a person.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<_> = arguments.collect();
    if Path::new(&task).ends_with("rustc") {
        return coverage::compile(&task, &rest);
    }
    let outcome = match task.as_str() {
        "build" => build(&[]),
        "demo" => built("demo", &rest),
        "bench" => built("bench", &rest),
        "soak" => built("soak", &rest),
        "test" => test(&rest),
        "vm" => vm::vm(&rest),
        "deb" => build(&[]).and_then(|()| deb::package(rest.first().map(String::as_str))),
        "fuzz" => fuzz::run_all(&rest),
        "coverage" => coverage::check(),
        "image-root" => image::lay_out(rest.first().map(String::as_str)),
        "test-image" => test_image(),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// `target/release/{lbd,lbctl}`, and the programs of the tests. `flags` are cargo's.
fn build(flags: &[String]) -> Outcome {
    let mut build = cargo(&["build", "--release", "--bins"]);
    run(build
        .args(["-p", "lb-userspace", "-p", "lb-tests"])
        .args(flags))
}

/// `target/release/lbd-next`, for tests of upgrades.
fn build_next() -> Outcome {
    let copy = root().join("target/next");
    next::prepare(&root(), &copy)?;
    let mut build = cargo(&["build", "--release", "-p", "lb-userspace"]);
    // Its speed is not asked for.
    build.args([
        "--config",
        "profile.release.package.lb-userspace.opt-level=0",
    ]);
    // What both need is built once.
    build.args(["--bin", "lbd-next", "--target-dir"]);
    run(build.arg(root().join("target")).current_dir(copy))
}

/// Builds everything and runs one program of the tests.
fn built(program: &str, arguments: &[String]) -> Outcome {
    build(&[])?;
    run(as_root(root().join("target/release").join(program)).args(arguments))
}

/// All tests, with what `cargo test` is to be told besides; then looks for what they left behind.
fn test(arguments: &[String]) -> Outcome {
    build(&[])?;
    build_next()?;
    // One of the tests installs it.
    deb::package(None)?;
    let before = leftovers::find(&root());
    // The programs compile for the kernel only, and the fuzz targets with a sanitizer only.
    let mut tests = cargo(&["test", "--release", "--workspace"]);
    tests.args(["--exclude", "lb-ebpf", "--exclude", "lb-fuzz"]);
    if !is_root() {
        // Tests make network namespaces and load BPF programs; building needs no such rights.
        let target = format!("{}_UNKNOWN_LINUX_GNU", env::consts::ARCH.to_uppercase());
        tests.env(format!("CARGO_TARGET_{target}_RUNNER"), "sudo -E");
    }
    let mut tested = run(tests.args(arguments));
    if arguments.is_empty() {
        tested = tested
            .and_then(|()| vm::in_tests())
            .and_then(|()| coverage::check());
    }
    let mut left = leftovers::find(&root());
    left.retain(|item| !before.contains(item));
    match (tested, left.as_slice()) {
        (tested, []) => tested,
        (_, left) => Err(format!("the tests left behind: {}", left.join(", "))),
    }
}

/// Builds the image's root directory and starts it. No part of [`test`]: it compiles everything for
/// another C library.
fn test_image() -> Outcome {
    image::lay_out(None)?;
    test(&["--test", "image"].map(str::to_owned))
}

fn run(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}").replace('"', "");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` failed ({status})")),
        Err(error) => Err(format!("cannot run `{shown}`: {error}")),
    }
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output();
    let output = output.map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{shown}` failed ({}): {message}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root()).args(arguments);
    // What the cargo that runs this tells it of xtask itself: build scripts that look at it would have
    // everything above them built anew, each time one of `cargo` and `cargo xtask` follows the other.
    let told = env::vars_os().map(|(name, _)| name);
    let of_xtask = ["CARGO_PKG_", "CARGO_MANIFEST_"];
    for name in told.filter(|name| {
        of_xtask
            .iter()
            .any(|of| name.to_string_lossy().starts_with(of))
    }) {
        command.env_remove(name);
    }
    command
}

fn as_root(program: PathBuf) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program);
    command
}

fn is_root() -> bool {
    // The owner of this process, as `/proc` tells without a system call of our own.
    std::fs::metadata("/proc/self")
        .map(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
        .unwrap_or(false)
}

/// The workspace's directory.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
