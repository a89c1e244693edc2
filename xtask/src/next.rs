//! An lbd as a later version may be, whose maps have another layout: what upgrades are tested with.
//! Its sources are a copy of these with a few lines changed, so that nothing of it is in lbd itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Outcome;

/// File, what stands there once, and what is to stand there.
const CHANGES: &[(&str, &str, &str)] = &[
    // Or cargo, which knows a workspace's packages by name and version, would take what it built of the
    // one for the other's.
    (
        "Cargo.toml",
        "\nversion = \"0.1.0\"\n",
        "\nversion = \"0.2.0\"\n",
    ),
    (
        "Cargo.lock",
        "name = \"lb-common\"\nversion = \"0.1.0\"",
        "name = \"lb-common\"\nversion = \"0.2.0\"",
    ),
    (
        "Cargo.lock",
        "name = \"lb-ebpf\"\nversion = \"0.1.0\"",
        "name = \"lb-ebpf\"\nversion = \"0.2.0\"",
    ),
    (
        "Cargo.lock",
        "name = \"lb-fuzz\"\nversion = \"0.1.0\"",
        "name = \"lb-fuzz\"\nversion = \"0.2.0\"",
    ),
    (
        "Cargo.lock",
        "name = \"lb-tests\"\nversion = \"0.1.0\"",
        "name = \"lb-tests\"\nversion = \"0.2.0\"",
    ),
    (
        "Cargo.lock",
        "name = \"lb-userspace\"\nversion = \"0.1.0\"",
        "name = \"lb-userspace\"\nversion = \"0.2.0\"",
    ),
    (
        "Cargo.lock",
        "name = \"xtask\"\nversion = \"0.1.0\"",
        "name = \"xtask\"\nversion = \"0.2.0\"",
    ),
    (
        "lb-common/src/abi/mod.rs",
        "pub const ABI_VERSION: u32 = 2;",
        "pub const ABI_VERSION: u32 = 3;",
    ),
    // A flow gets a field, and others move.
    (
        "lb-common/src/abi/flow.rs",
        "pub struct Flow<A> {\n    pub src: A,",
        "pub struct Flow<A> {\n    pub later: u32,\n    pub created: u32,\n    pub src: A,",
    ),
    (
        "lb-common/src/abi/flow.rs",
        "    /// Jiffies of the first packet, low 32 bits.\n    pub created: u32,\n",
        "",
    ),
    (
        "lb-common/src/abi/layout.rs",
        "    Flow<V4>: src",
        "    Flow<V4>: later src",
    ),
    (
        "lb-common/src/abi/layout.rs",
        "    Flow<V6>: src",
        "    Flow<V6>: later src",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Flow<V4> => size 64,",
        "Flow<V4> => size 68,",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Flow<V6> => size 88,",
        "Flow<V6> => size 92,",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Recalled<V4> => size 96,",
        "Recalled<V4> => size 100,",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Recalled<V6> => size 168,",
        "Recalled<V6> => size 172,",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Work<V4> => size 244,",
        "Work<V4> => size 248,",
    ),
    (
        "lb-common/src/abi/pod.rs",
        "Work<V6> => size 364,",
        "Work<V6> => size 368,",
    ),
    // A backend's fields change places.
    (
        "lb-common/src/abi/service.rs",
        "pub struct Backend {\n",
        "pub struct Backend {\n    pub max_connections: u32,\n",
    ),
    (
        "lb-common/src/abi/service.rs",
        "    /// Open connections beyond which it takes no new ones, 0 for no limit.\n    \
         pub max_connections: u32,\n",
        "",
    ),
    (
        "lb-userspace/Cargo.toml",
        "[[bin]]\nname = \"lbd\"",
        "[[bin]]\nname = \"lbd-next\"",
    ),
];

/// Not part of the sources.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// Brings the copy at `to` up to date; files that stay as they are keep their times.
pub(crate) fn prepare(from: &Path, to: &Path) -> Outcome {
    let mut changes: Vec<_> = CHANGES.to_vec();
    copy(from, to, Path::new(""), &mut changes)?;
    match changes.first() {
        None => Ok(()),
        Some((file, ..)) => Err(format!("{file}: not there to be changed for lbd-next")),
    }
}

type Change = (&'static str, &'static str, &'static str);

fn copy(from: &Path, to: &Path, below: &Path, changes: &mut Vec<Change>) -> Outcome {
    let directory = from.join(below);
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(to.join(below)).map_err(|error| failed(&to.join(below), error))?;
    let entries = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(|error| failed(&directory, error))? {
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let (path, kind) = (below.join(&name), entry.file_type());
        if kind.map_err(|error| failed(&path, error))?.is_dir() {
            copy(from, to, &path, changes)?;
            continue;
        }
        let (source, target): (PathBuf, PathBuf) = (from.join(&path), to.join(&path));
        let mut bytes = fs::read(&source).map_err(|error| failed(&source, error))?;
        for (_, old, new) in changes.extract_if(.., |(file, ..)| path == Path::new(*file)) {
            let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
            if text.matches(old).count() != 1 {
                return Err(format!(
                    "{}: lbd-next needs `{old}` there once; see {}",
                    path.display(),
                    file!()
                ));
            }
            bytes = text.replace(old, new).into_bytes();
        }
        if fs::read(&target).is_ok_and(|known| known == bytes) {
            continue;
        }
        fs::write(&target, bytes).map_err(|error| failed(&target, error))?;
    }
    remove_others(&directory, &to.join(below))
}

/// Removes from `copy` what is not in `directory` any more: a module that moved would be there twice.
fn remove_others(directory: &Path, copy: &Path) -> Outcome {
    let failed = |error: io::Error| format!("{}: {error}", copy.display());
    for entry in fs::read_dir(copy).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if directory.join(&name).exists() || LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let removed = match entry.file_type().map_err(failed)?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.map_err(failed)?;
    }
    Ok(())
}
