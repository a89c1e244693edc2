//! What a test run may not leave on the machine.

use std::{env, fs, path::Path, process::Command};

/// Named network namespaces, pins of lbd, directories for temporary files, and processes of this
/// workspace's programs.
pub fn find(workspace: &Path) -> Vec<String> {
    let mut found = namespaces();
    found.extend(pins());
    found.extend(directories());
    found.extend(processes(&workspace.join("target")));
    found
}

fn namespaces() -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        // A number may stand behind the name, once the kernel has given one.
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| format!("network namespace {name}"))
        .collect()
}

fn pins() -> Vec<String> {
    names("/sys/fs/bpf")
        .into_iter()
        .filter(|name| name.starts_with("lb"))
        .map(|name| format!("/sys/fs/bpf/{name}"))
        .collect()
}

/// Tests call them `lbd-`, what they are for, the process, and a number. Those of processes that
/// are still at work are left to them.
fn directories() -> Vec<String> {
    let directory = env::temp_dir();
    let is_ours = |name: &String| name.starts_with("lbd-") || name.starts_with("lbk-");
    let lives = |name: &String| {
        let process = name.rsplit('-').nth(1).unwrap_or_default();
        process.parse::<u32>().is_ok() && Path::new("/proc").join(process).exists()
    };
    names(&directory.to_string_lossy())
        .into_iter()
        .filter(|name| is_ours(name) && !lives(name))
        .map(|name| directory.join(name).display().to_string())
        .collect()
}

fn processes(target: &Path) -> Vec<String> {
    names("/proc")
        .into_iter()
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            let name = program.file_name()?.to_str()?;
            let ours = program.starts_with(target) && ["lbd", "lbctl", "lbt-agent"].contains(&name);
            ours.then(|| format!("process {pid} ({name})"))
        })
        .collect()
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
