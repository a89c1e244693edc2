//! What of the packet path the case table does not reach, on the byte slice.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Outcome, cargo, output, root, run};

/// Crates whose code is counted: the path, and who makes it of its generic form.
const COUNTED: [&str; 2] = ["lb-common", "lb-tests"];

/// Prints the places that no case reaches.
pub(crate) fn print() -> Outcome {
    let tools = tools()?;
    let program = build()?;
    let directory = target();
    let raw = directory.join("cases.profraw");
    let data = directory.join("cases.profdata");
    let mut cases = Command::new(&program);
    cases.current_dir(root().join("tests"));
    run(cases.arg("cases_on_slice").env("LLVM_PROFILE_FILE", &raw))?;
    let mut merge = Command::new(tools.join("llvm-profdata"));
    run(merge.args(["merge", "-sparse", "-o"]).arg(&data).arg(&raw))?;
    let mut show = Command::new(tools.join("llvm-cov"));
    show.args([
        "show",
        "-use-color=0",
        "-show-regions",
        "-show-instantiations=false",
    ]);
    show.arg("-instr-profile").arg(&data).arg(&program);
    show.arg("-sources").arg(root().join("lb-common/src/path"));
    let shown = output(&mut show)?;
    let missed = missed(&shown);
    for place in &missed {
        println!("{place}");
    }
    let (reached, all) = lines(&shown);
    println!(
        "{reached} of {all} lines of lb-common/src/path reached, {} places not",
        missed.len()
    );
    Ok(())
}

fn target() -> PathBuf {
    root().join("target/coverage")
}

/// LLVM's tools, in the version of the compiler.
fn tools() -> Result<PathBuf, String> {
    let sysroot = output(
        Command::new("rustc")
            .arg("--print=sysroot")
            .current_dir(root()),
    )?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib");
    let find = || {
        let hosts = fs::read_dir(&libraries).ok()?.flatten();
        let directories = hosts.map(|host| host.path().join("bin"));
        directories
            .into_iter()
            .find(|bin| bin.join("llvm-cov").is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    println!("installing llvm-tools");
    run(Command::new("rustup")
        .args(["component", "add", "llvm-tools"])
        .current_dir(root()))?;
    find().ok_or_else(|| format!("no llvm-cov below {}", libraries.display()))
}

/// The case table's test program, which counts.
fn build() -> Result<PathBuf, String> {
    let mut build = cargo(&["test", "--release", "-p", "lb-tests", "--no-run"]);
    build.args([
        "--test",
        "packet_cases",
        "-Zprofile-rustflags",
        "--target-dir",
    ]);
    build.arg(target());
    // Flags for some crates only: the pinned toolchain, a stable one, may take them so.
    build.env("RUSTC_BOOTSTRAP", "1");
    for name in COUNTED {
        let flags =
            format!(r#"profile.release.package.{name}.rustflags=["-Cinstrument-coverage"]"#);
        build.args(["--config", &flags]);
        build.args([
            "--config",
            &format!("profile.release.package.{name}.opt-level=0"),
        ]);
    }
    // Its speed is not asked for.
    build.args([
        "--config",
        "profile.release.package.lb-userspace.opt-level=0",
    ]);
    println!("building the case table's test, with counters");
    let done = build.output().map_err(|error| format!("cargo: {error}"))?;
    let told = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(told.into_owned());
    }
    let program = told.lines().find_map(|line| {
        let (_, path) = line.split_once("Executable tests/packet_cases.rs (")?;
        path.strip_suffix(')')
    });
    program
        .map(|path| root().join(path))
        .ok_or_else(|| format!("no test program:\n{told}"))
}

/// Lines of `llvm-cov show`: number, count and source, and beneath them marks where a region begins
/// that was entered another number of times.
fn missed(shown: &str) -> Vec<String> {
    let mut places = Vec::new();
    let (mut file, mut number, mut source, mut is_reached) = ("", "", "", true);
    for line in shown.lines() {
        if let Some(path) = line.strip_suffix(':').filter(|path| path.starts_with('/')) {
            file = path.rsplit("/src/").next().unwrap_or(path);
            continue;
        }
        match parts(line) {
            Some((place, count, code)) => {
                (number, source) = (place, code);
                is_reached = count != "0";
                if !is_reached && !is_bracket(code) {
                    places.push(format!("{file}:{number}: {}", code.trim()));
                }
            }
            // A part of a line that was reached.
            None if is_reached => {
                let marks = line.rsplit('|').next().unwrap_or_default();
                for (column, _) in marks.match_indices("^0") {
                    if !marks[column + 2..].starts_with(|c: char| c.is_ascii_digit() || c == '.') {
                        let rest = source.get(column..).unwrap_or_default().trim();
                        places.push(format!("{file}:{number}:{}: {rest}", column + 1));
                    }
                }
            }
            None => {}
        }
    }
    places
}

/// Number, count and source of a line that has a count.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (number, rest) = line.split_once('|')?;
    let (count, source) = rest.split_once('|')?;
    let (number, count) = (number.trim(), count.trim());
    let is_line = number.parse::<u32>().is_ok() && !count.is_empty();
    is_line.then_some((number, count, source))
}

fn is_bracket(code: &str) -> bool {
    code.chars()
        .all(|c| c.is_whitespace() || "{}();,".contains(c))
}

/// How many lines were reached, of how many.
fn lines(shown: &str) -> (usize, usize) {
    let counts: Vec<&str> = shown
        .lines()
        .filter_map(parts)
        .map(|(_, count, _)| count)
        .collect();
    (
        counts.iter().filter(|count| **count != "0").count(),
        counts.len(),
    )
}
