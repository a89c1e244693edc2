//! Lays files out in a directory as they will be on a machine.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub const FILE: u32 = 0o644;
pub const PROGRAM: u32 = 0o755;

/// A directory that stands for `/`.
pub struct Tree(pub PathBuf);

impl Tree {
    /// Empties the directory, or makes it.
    pub fn new(directory: PathBuf) -> Result<Self, String> {
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|error| said(&directory, error))?;
        }
        fs::create_dir_all(&directory).map_err(|error| said(&directory, error))?;
        permit(&directory, PROGRAM)?;
        Ok(Self(directory))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, and the directories above it. `name` is relative to the tree's root.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> Result<(), String> {
        let path = self.path(name);
        self.directories(&path)?;
        fs::write(&path, text).map_err(|error| said(&path, error))?;
        permit(&path, mode)
    }

    pub fn copy(&self, from: &Path, name: &str, mode: u32) -> Result<(), String> {
        let path = self.path(name);
        self.directories(&path)?;
        fs::copy(from, &path).map_err(|error| said(from, error))?;
        permit(&path, mode)
    }

    pub fn directory(&self, name: &str) -> Result<(), String> {
        self.directories(&self.path(name).join("any file"))
    }

    /// Everything that is no directory, relative to the root, in order.
    pub fn files(&self) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let mut left = vec![self.0.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).map_err(|error| said(&directory, error))? {
                let path = entry.map_err(|error| said(&directory, error))?.path();
                if path.is_dir() && !path.is_symlink() {
                    left.push(path);
                } else if let Ok(name) = path.strip_prefix(&self.0) {
                    found.push(name.display().to_string());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whatever mask the caller's shell has, directories are for everybody to enter.
    fn directories(&self, path: &Path) -> Result<(), String> {
        let missing = path.ancestors().skip(1).take_while(|above| !above.exists());
        let mut missing: Vec<_> = missing.collect();
        missing.reverse();
        for directory in missing {
            fs::create_dir(directory).map_err(|error| said(directory, error))?;
            permit(directory, PROGRAM)?;
        }
        Ok(())
    }
}

pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| said(path, error))
}

fn permit(path: &Path, mode: u32) -> Result<(), String> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| said(path, error))
}

fn said(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
