//! Removes everything lbd made in the kernel, and nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{attach, clsact, devices, preflight, sysctl, undo::Undo};
use crate::model::Node;

/// Detaches and removes everything lbd made under `bpffs`, of every version, and puts the node's
/// settings back. Says what it removed. What the state directory holds is the operator's and stays,
/// the record of changed settings excepted.
///
/// # Errors
/// A daemon is still running, or the kernel refuses.
pub fn cleanup(node: &Node) -> Result<Vec<String>> {
    let mut done = Vec::new();
    preflight::require_privileges()?;
    let undo = Undo::open(&node.state_dir)?;
    // Whatever lies in a directory of that name elsewhere is not ours.
    let root = match preflight::require_bpffs(&node.bpffs) {
        Ok(()) => preflight::PinRoot::claim_existing(&node.bpffs)?,
        Err(_) => None,
    };
    for device in devices::list()? {
        if clsact::release(&device, &undo)? {
            done.push(format!("removed the TC filter of {}", device.name));
        }
    }
    if let Some(root) = root {
        for path in contents(&root.path)? {
            let pins = remove(&path)?;
            done.push(format!("removed {} ({pins} pins)", path.display()));
        }
        fs::remove_dir(&root.path).with_context(|| format!("removing {}", root.path.display()))?;
    }
    done.extend(sysctl::restore(&undo));
    undo.forget()?;
    if done.is_empty() {
        done.push("nothing to remove".to_owned());
    }
    Ok(done)
}

/// Removes a file or a directory and what is in it; returns the number of files.
fn remove(path: &Path) -> Result<usize> {
    let is_link = path
        .parent()
        .is_some_and(|parent| parent.ends_with("links"));
    if is_link {
        attach::unpin(path)?;
        return Ok(1);
    }
    let removed = if path.is_dir() {
        let mut files = 0;
        for path in contents(path)? {
            files += remove(&path)?;
        }
        fs::remove_dir(path).map(|()| files)
    } else {
        fs::remove_file(path).map(|()| 1)
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Links first: the programs stop before their maps go.
fn contents(directory: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|e| Ok(e?.path()))
            .collect::<io::Result<Vec<_>>>()
    });
    let mut paths = paths.with_context(|| format!("reading {}", directory.display()))?;
    paths.sort_by_key(|path| !path.ends_with("links"));
    Ok(paths)
}
