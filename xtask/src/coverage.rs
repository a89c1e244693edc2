//! What of the packet path the case table does not reach, on the byte slice, against what
//! docs/coverage.md says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde_json::Value;

use crate::{Outcome, cargo, output, root, run};

/// Crates whose code is counted: the path, who makes it of its generic form, and who runs that.
const COUNTED: [&str; 3] = ["lb_common", "lb_tests", PROGRAM];

/// Runs the case table (tests/src/bin).
const PROGRAM: &str = "cases";

/// The code in question.
const SOURCES: &str = "lb-common/src/path";

/// Where every place that no case reaches is listed, with the reason.
const LIST: &str = "docs/coverage.md";

/// A place that no case reaches, told so that it stays the same when lines move.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    file: String,
    function: String,
    /// The line of source, or of what it closes.
    source: String,
}

/// As it stands in the list, but for how often.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            function,
            source,
        } = self;
        write!(f, "- `{file}` `{function}`: `{source}`")
    }
}

/// Runs the case table and compares what it does not reach with the list.
pub(crate) fn check() -> Outcome {
    let counted = count()?;
    let missed = missed(&counted)?;
    let list = root().join(LIST);
    let text = fs::read_to_string(&list).map_err(|error| format!("{LIST}: {error}"))?;
    let listed: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("- `"))
        .collect();
    let found: Vec<String> = (missed.iter())
        .map(|(place, times)| match times {
            1 => place.to_string(),
            _ => format!("{place} × {times}"),
        })
        .collect();
    let unlisted: Vec<&str> = (found.iter().map(String::as_str))
        .filter(|place| !listed.contains(place))
        .collect();
    let stale: Vec<&&str> = (listed.iter())
        .filter(|place| !found.iter().any(|found| found == **place))
        .collect();
    for place in &unlisted {
        println!("not reached: {place}");
    }
    for place in &stale {
        println!("reached, or gone: {place}");
    }
    let lines = &counted["data"][0]["totals"]["lines"];
    println!(
        "{} of {} lines of {SOURCES} reached, {} places not",
        lines["covered"],
        lines["count"],
        found.len()
    );
    if unlisted.is_empty() && stale.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} places are not in {LIST}: reach them by a case (CONTRIBUTING.md), or list them under \
         their reason; {} of the list are to go",
        unlisted.len(),
        stale.len()
    ))
}

/// Runs the cases; gives how often each place was entered, as `llvm-cov export` tells it.
fn count() -> Result<Value, String> {
    let tools = tools()?;
    let directory = root().join("target/coverage");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let program = build()?;
    let raw = directory.join("cases.profraw");
    let data = directory.join("cases.profdata");
    run(Command::new(&program).env("LLVM_PROFILE_FILE", &raw))?;
    let mut merge = Command::new(tools.join("llvm-profdata"));
    run(merge.args(["merge", "-sparse", "-o"]).arg(&data).arg(&raw))?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export.args(["export", "-format=text", "-skip-functions"]);
    export.arg("-instr-profile").arg(&data).arg(&program);
    export.arg("-sources").arg(root().join(SOURCES));
    serde_json::from_str(&output(&mut export)?).map_err(|error| format!("llvm-cov: {error}"))
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

/// The program that runs the case table, which counts. Only what counts, and what lies above that, is
/// compiled once more: this program is cargo's wrapper of rustc for the workspace's own crates.
fn build() -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let mut build = cargo(&["build", "--release", "-p", "lb-tests", "--bin", PROGRAM]);
    build.env("RUSTC_WORKSPACE_WRAPPER", own);
    // Their speed is not asked for.
    for name in ["lb-common", "lb-tests", "lb-userspace"] {
        let level = format!("profile.release.package.{name}.opt-level=0");
        build.args(["--config", &level]);
    }
    println!("building the case table's program, with counters");
    run(&mut build)?;
    // The next build puts another of that name there.
    let counting = root().join("target/coverage").join(PROGRAM);
    fs::copy(root().join("target/release").join(PROGRAM), &counting)
        .map_err(|error| format!("{}: {error}", counting.display()))?;
    Ok(counting)
}

/// Compiles as cargo says, with counters if it is one of the crates in question.
pub(crate) fn compile(rustc: &str, arguments: &[String]) -> ExitCode {
    let mut command = Command::new(rustc);
    command.args(arguments);
    let mut words = arguments.iter().skip_while(|word| *word != "--crate-name");
    let name = words.nth(1);
    if name.is_some_and(|name| COUNTED.contains(&name.as_str())) {
        command.arg("-Cinstrument-coverage");
    }
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {rustc}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The places that were never entered, in order, and how many of each look alike.
fn missed(counted: &Value) -> Result<BTreeMap<Place, usize>, String> {
    let mut places = BTreeMap::new();
    for file in array(&counted["data"][0]["files"]) {
        let path = Path::new(file["filename"].as_str().unwrap_or_default());
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let lines: Vec<&str> = text.lines().collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut last = String::new();
        for (number, goes_on) in missed_lines(array(&file["segments"])) {
            let place = place(&name, &lines, number);
            // Of several pieces of one function behind each other the first.
            if !goes_on || place.function != last {
                last.clone_from(&place.function);
                *places.entry(place).or_insert(0) += 1;
            }
        }
    }
    Ok(places)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Where code begins that was never entered: lines from 1, in order, and whether nothing between
/// it and the one before was entered either. A segment is line, column, count, whether it has a count,
/// whether a region begins, whether it is a gap between regions.
fn missed_lines(segments: &[Value]) -> Vec<(usize, bool)> {
    let mut lines = Vec::new();
    let mut was_missed = false;
    for segment in segments {
        let flag = |place: usize| segment[place].as_bool().unwrap_or_default();
        let (has_count, is_gap) = (flag(3), flag(5));
        if is_gap || !has_count {
            continue;
        }
        let is_missed = segment[2].as_u64() == Some(0);
        if let Some(line) = segment[0].as_u64().filter(|_| is_missed) {
            lines.push((line as usize, was_missed));
        }
        was_missed = is_missed;
    }
    lines
}

/// What stands in line `number`.
fn place(file: &str, lines: &[&str], number: usize) -> Place {
    let before = |number: usize| lines[..number].iter().rev();
    let line = lines[number - 1];
    let is_bracket = |line: &str| line.trim().chars().all(|c| "{}();,".contains(c));
    let indent = |line: &str| line.len() - line.trim_start().len();
    // A closing bracket is where what it closes was not entered, or not left.
    let source = match is_bracket(line) {
        true => before(number)
            .find(|other| !is_bracket(other) && indent(other) == indent(line))
            .map_or(String::new(), |opening| format!("past {}", opening.trim())),
        false => line.trim().to_owned(),
    };
    let function = before(number).find_map(|line| {
        let (front, name) = line.split_once("fn ")?;
        let is_front = front
            .chars()
            .all(|c| c.is_alphanumeric() || " ()_".contains(c));
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        is_front.then(|| name[..end].to_owned())
    });
    Place {
        file: file.to_owned(),
        function: function.unwrap_or_default(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_behind_each_other_are_told_apart() {
        let segments = serde_json::json!([
            [1, 1, 3, true, true, false],
            [2, 5, 0, true, true, false],
            [3, 5, 0, true, true, true],
            [3, 9, 0, true, true, false],
            [4, 1, 2, true, true, false],
            [5, 9, 0, true, true, false],
            [6, 2, 0, false, false, false],
            [7, 1, 0, true, true, false]
        ]);
        let lines = missed_lines(array(&segments));
        assert_eq!(lines, [(2, false), (3, true), (5, false), (7, true)]);
    }

    #[test]
    fn a_place_is_told_by_function_and_source() {
        let lines = [
            "pub(super) fn known<A>(",
            ") {",
            "    if is_it() {",
            "        let x = load()?;",
            "    }",
        ];
        let told = |number| place("slow.rs", &lines, number).to_string();
        assert_eq!(told(4), "- `slow.rs` `known`: `let x = load()?;`");
        assert_eq!(told(5), "- `slow.rs` `known`: `past if is_it() {`");
    }
}
