//! What a virtual machine starts with: a file system in memory with modules, tools and tests.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{kernels::Kernel, plan::Step};
use crate::{
    Outcome, output,
    tree::{FILE, PROGRAM, Tree, read},
};

/// What lbd and its tests ask of a kernel that it does not have built in.
const MODULES: [&str; 9] = [
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "8021q",
    "ipip",
    "ip6_tunnel",
    "sit",
];
/// What `init` and the tests call.
const TOOLS: [&str; 34] = [
    "sh", "mount", "umount", "ln", "mkdir", "cat", "cut", "stty", "insmod", "timeout", "sleep",
    "ip", "tc", "ethtool", "ping", "cp", "rm", "find", "mkfifo", "test", "nsenter", "unshare",
    "ls", "env", "setpriv", "grep", "true", "kill", "echo", "seq", "tr", "sed", "head", "yes",
];
/// Some tests do without.
const MORE_TOOLS: [&str; 1] = ["bpftool"];
const INIT: &str = include_str!("init");
/// Stands for lbd in [`Step`]s of that name.
const LEAST: &str = include_str!("least");

/// Packs all into `directory/initramfs.cpio`. `programs` are file and name each; the names stand in
/// `steps`.
///
/// # Errors
/// A tool or module is missing.
pub fn pack(
    directory: &Path,
    kernel: &Kernel,
    programs: &[(PathBuf, String)],
    steps: &[Step],
) -> Result<PathBuf, String> {
    let tree = Tree::new(directory.join("root"))?;
    for place in ["dev", "proc", "sys", "tmp", "run"] {
        tree.directory(place)?;
    }
    tree.write("init", INIT, PROGRAM)?;
    tree.write("tests/lbd-least", LEAST, PROGRAM)?;
    let mut needed = BTreeSet::new();
    for tool in TOOLS {
        let found = which(tool).ok_or_else(|| format!("`{tool}` is missing; run `make setup`"))?;
        needed.extend(add(&tree, &found, &format!("bin/{tool}"))?);
    }
    for (tool, found) in MORE_TOOLS.map(|tool| (tool, which(tool))) {
        if let Some(found) = found {
            needed.extend(add(&tree, &found, &format!("bin/{tool}"))?);
        }
    }
    for (file, name) in programs {
        let place = format!("tests/{name}");
        needed.extend(add(&tree, file, &place)?);
        // Lines of backtraces are most of it.
        crate::run(Command::new("strip").arg(tree.path(&place)))?;
    }
    for library in needed {
        tree.copy(
            Path::new(&library),
            library.trim_start_matches('/'),
            PROGRAM,
        )?;
    }
    let modules = add_modules(&tree, kernel)?;
    tree.write("modules/order", modules, FILE)?;
    let steps: Vec<_> = steps.iter().map(Step::line).collect();
    tree.write("steps", steps.concat(), FILE)?;
    let archive = directory.join("initramfs.cpio");
    archive_of(&tree, &archive)?;
    fs::remove_dir_all(&tree.0).map_err(|e| e.to_string())?;
    Ok(archive)
}

/// Copies a program; returns the libraries that it wants.
fn add(tree: &Tree, program: &Path, place: &str) -> Result<Vec<String>, String> {
    tree.copy(program, place, PROGRAM)?;
    // It fails for what needs none.
    let listed = Command::new("ldd").arg(program).output();
    let listed = listed.map_err(|error| format!("cannot run ldd: {error}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let path = |line: &str| {
        let words = line.split_whitespace();
        words
            .into_iter()
            .find(|w| w.starts_with('/'))
            .map(str::to_owned)
    };
    Ok(listed.lines().filter_map(path).collect())
}

/// Copies the modules and what they need, and lists them in the order of loading.
fn add_modules(tree: &Tree, kernel: &Kernel) -> Result<String, String> {
    let listed = depend(kernel)?;
    // Not in every package.
    let builtin = read(&kernel.modules.join("modules.builtin")).unwrap_or_default();
    let mut order = Vec::new();
    for module in MODULES {
        let line = listed.lines().find_map(|line| {
            let (file, needs) = line.split_once(':')?;
            (stem(file) == module).then_some((file, needs))
        });
        let Some((file, needs)) = line else {
            if builtin.lines().any(|file| stem(file) == module) {
                continue;
            }
            return Err(format!("Linux {} has no module {module}", kernel.release));
        };
        // What is needed first stands last.
        let needs = needs.split_whitespace().rev();
        for file in needs.chain([file]) {
            if !order.contains(&stem(file)) {
                add_module(tree, &kernel.modules.join(file), &stem(file))?;
                order.push(stem(file));
            }
        }
    }
    Ok(order.iter().map(|name| format!("{name}\n")).collect())
}

/// `modules.dep`, which Debian's packages leave to be made where they are installed.
fn depend(kernel: &Kernel) -> Result<String, String> {
    let file = kernel.modules.join("modules.dep");
    if !file.exists() {
        let base = kernel
            .modules
            .ancestors()
            .find(|above| above.join("lib/modules").exists());
        let base = base.ok_or("the modules lie where no machine has them")?;
        let mut depmod = Command::new("depmod");
        depmod.arg("-b").arg(base).arg(&kernel.release);
        output(&mut depmod)?;
    }
    read(&file)
}

fn add_module(tree: &Tree, file: &Path, name: &str) -> Outcome {
    let place = format!("modules/{name}");
    if file.extension().is_none_or(|end| end == "ko") {
        return tree.copy(file, &place, FILE);
    }
    let unpacked = Command::new("xz").arg("-dc").arg(file).output();
    let unpacked = unpacked.map_err(|error| format!("cannot run xz: {error}"))?;
    if !unpacked.status.success() {
        return Err(format!("xz cannot read {}", file.display()));
    }
    tree.write(&place, unpacked.stdout, FILE)
}

/// `kernel/net/8021q/8021q.ko.xz` is `8021q`.
fn stem(file: &str) -> String {
    let name = file.trim().rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn archive_of(tree: &Tree, archive: &Path) -> Outcome {
    let file = fs::File::create(archive).map_err(|e| format!("{}: {e}", archive.display()))?;
    // Directories before what is in them.
    let mut find = Command::new("find");
    find.arg(".").current_dir(&tree.0).stdout(Stdio::piped());
    let mut find = find.spawn().map_err(|e| format!("cannot run find: {e}"))?;
    let names = find.stdout.take().expect("piped");
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "-H", "newc", "-R", "0:0", "--quiet"]);
    let packed = cpio.current_dir(&tree.0).stdin(names).stdout(file).status();
    let _ = find.wait();
    match packed {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cpio failed ({status})")),
        Err(error) => Err(format!("cannot run cpio: {error}")),
    }
}

/// Also where only root looks.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    let places = path
        .split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    places
        .map(|place| Path::new(place).join(program))
        .find(|file| file.is_file())
}
