//! What must be put back when the data path is removed, kept in `<state_dir>/undo.json`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing::error;

pub(super) struct Undo {
    file: PathBuf,
    changes: Changes,
}

/// What the file holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Changes {
    /// In the order they were made.
    sysctls: Vec<(String, Setting)>,
    /// Devices that had no clsact queueing discipline before.
    clsact: BTreeSet<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Setting {
    pub(super) before: String,
    pub(super) set: String,
}

/// What a file's bytes say.
///
/// # Errors
/// It is damaged.
pub fn decode(bytes: &[u8]) -> serde_json::Result<Changes> {
    serde_json::from_slice(bytes)
}

impl Undo {
    /// Reads what a former daemon changed. A damaged file is put aside: what stands in it is not put
    /// back, but that keeps nobody from balancing.
    pub(super) fn open(state_dir: &Path) -> Result<Self> {
        let file = state_dir.join("undo.json");
        let changes = match fs::read(&file) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|fault| {
                let aside = file.with_extension("json.broken");
                let kept = fs::rename(&file, &aside).is_ok();
                let kept = if kept { aside.as_path() } else { &file };
                error!(
                    "{} is damaged: {fault}; `lbd --cleanup` will not put back the settings in it, \
                     look into {}",
                    file.display(),
                    kept.display()
                );
                Changes::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Changes::default(),
            Err(error) => return Err(error).context(format!("reading {}", file.display())),
        };
        Ok(Self { file, changes })
    }

    /// Path below `/proc/sys`, value before the first change, and ours.
    pub(super) fn sysctls(&self) -> impl DoubleEndedIterator<Item = (&str, &Setting)> {
        self.changes
            .sysctls
            .iter()
            .map(|(path, setting)| (path.as_str(), setting))
    }

    pub(super) fn clsact(&self) -> &BTreeSet<String> {
        &self.changes.clsact
    }

    /// Written down before the change is made, so that a crash in between loses nothing.
    pub(super) fn remember_sysctl(&mut self, path: &str, before: &str, set: &str) -> Result<()> {
        if self.changes.sysctls.iter().any(|(known, _)| known == path) {
            return Ok(());
        }
        let setting = Setting {
            before: before.to_owned(),
            set: set.to_owned(),
        };
        self.changes.sysctls.push((path.to_owned(), setting));
        self.save()
    }

    pub(super) fn remember_clsact(&mut self, device: &str) -> Result<()> {
        match self.changes.clsact.insert(device.to_owned()) {
            true => self.save(),
            false => Ok(()),
        }
    }

    /// Everything is as it was.
    pub(super) fn forget(self) -> Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(format!("removing {}", self.file.display()))
            }
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.changes)?;
        let new = self.file.with_extension("json.new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &self.file)
        };
        write().with_context(|| format!("writing {}", self.file.display()))
    }
}
