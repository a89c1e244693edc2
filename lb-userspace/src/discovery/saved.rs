//! The last sets known to be good, in the state directory: one file a source.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Instance, Offer, SourceName, rules::Restored};
use crate::state::file::{Unreadable, seal, unseal};

/// Layout of [`Saved`]. A daemon reads its own version and older ones.
const VERSION: u32 = 1;

const ENDING: &str = ".json";
const BROKEN: &str = ".broken";

/// What a file holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// [`SourceName`] as text: two names may have one file name.
    source: String,
    last_success_ms: Option<u64>,
    instances: Vec<Instance>,
    /// Of a source of services.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    services: Vec<(Offer, Vec<Instance>)>,
}

/// The text of a file.
///
/// # Errors
/// None that any set leads to.
pub fn encode(saved: &Saved) -> serde_json::Result<String> {
    seal(VERSION, saved)
}

/// The set in a file's text.
///
/// # Errors
/// It was written by a later daemon, or is damaged.
pub fn decode(text: &str) -> Result<Saved, Unreadable> {
    unseal(VERSION, text)
}

/// Where the sets are.
#[derive(Clone, Debug)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    /// Makes the directory if need be. Where that cannot be, no set can be saved, which each says.
    pub(super) fn open(state_dir: &Path) -> Self {
        let directory = state_dir.join("discovery");
        if let Err(error) = fs::create_dir_all(&directory) {
            tracing::error!("cannot create {}: {error}", directory.display());
        }
        Self(directory)
    }

    /// What `source` knew; nothing if there is no file, and nothing and why if it cannot be used.
    /// A damaged file is put aside.
    pub(super) fn load(&self, source: &SourceName) -> (Restored, Option<String>) {
        match self.read(source) {
            Ok(restored) => (restored, None),
            Err(why) => (Restored::default(), Some(why)),
        }
    }

    fn read(&self, source: &SourceName) -> Result<Restored, String> {
        let path = self.path(source);
        let shown = path.display();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Restored::default()),
            Err(error) => {
                return Err(format!("cannot read what was last known, {shown}: {error}"));
            }
        };
        let why = match decode(&String::from_utf8_lossy(&bytes)) {
            Ok(saved) if saved.source == source.to_string() => {
                return Ok(Restored {
                    instances: saved.instances,
                    services: saved.services,
                    last_success_ms: saved.last_success_ms,
                });
            }
            // The file of another source whose name has the same digest.
            Ok(_) => return Ok(Restored::default()),
            Err(Unreadable::Newer(version)) => format!("it has version {version}"),
            Err(Unreadable::Damaged(why)) => why,
        };
        let aside = path.with_extension(&BROKEN[1..]);
        let kept = match fs::rename(&path, &aside) {
            Ok(()) => format!("; kept as {}", aside.display()),
            Err(_) => String::new(),
        };
        Err(format!(
            "what was last known, {shown}, cannot be used: {why}{kept}"
        ))
    }

    /// Once this returns without error, the set survives a crash of the machine.
    pub(super) fn save(&self, source: &SourceName, known: Restored) -> anyhow::Result<()> {
        let path = self.path(source);
        let saved = Saved {
            source: source.to_string(),
            last_success_ms: known.last_success_ms,
            instances: known.instances,
            services: known.services,
        };
        self.replace(&path, &encode(&saved)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn replace(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.0)?.sync_all()?;
        Ok(())
    }

    pub(super) fn remove(&self, source: &SourceName) -> anyhow::Result<()> {
        let path = self.path(source);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes the sets of all sources but these.
    pub(super) fn keep_only<'a>(&self, sources: impl Iterator<Item = &'a SourceName>) {
        let wanted: HashSet<PathBuf> = sources.map(|source| self.path(source)).collect();
        let Ok(entries) = fs::read_dir(&self.0) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_set = path.to_string_lossy().ends_with(ENDING);
            if is_set && !wanted.contains(&path) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn path(&self, source: &SourceName) -> PathBuf {
        let SourceName {
            service,
            kind,
            target,
        } = source;
        // FNV-1a.
        let digest = target
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        // No service has this name.
        let service = match service.is_empty() {
            true => "-",
            false => service,
        };
        self.0
            .join(format!("{service}.{kind}.{digest:016x}{ENDING}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;

    fn name(target: &str) -> SourceName {
        SourceName {
            service: "web".to_owned(),
            kind: "file",
            target: target.to_owned(),
        }
    }

    fn known() -> Restored {
        Restored {
            instances: vec![Instance::new("a", "10.0.0.1:80".parse().unwrap())],
            last_success_ms: Some(7),
            ..Restored::default()
        }
    }

    #[test]
    fn what_is_saved_is_read_and_removed_with_its_source() {
        let directory = Directory::new("shelf");
        let shelf = Shelf::open(directory.path());
        let (one, two) = (name("/one"), name("/two"));
        assert_eq!(shelf.load(&one), (Restored::default(), None));
        shelf.save(&one, known()).unwrap();
        shelf.save(&two, known()).unwrap();
        assert_eq!(shelf.load(&one), (known(), None));
        shelf.remove(&one).unwrap();
        shelf.remove(&one).unwrap();
        assert_eq!(shelf.load(&one), (Restored::default(), None));
        shelf.keep_only([&one].into_iter());
        assert_eq!(shelf.load(&two), (Restored::default(), None));
    }

    #[test]
    fn damage_is_told_and_put_aside() {
        let directory = Directory::new("shelf-damage");
        let shelf = Shelf::open(directory.path());
        let source = name("/one");
        shelf.save(&source, known()).unwrap();
        let path = shelf.path(&source);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            &text[..text.len() / 2],
            "",
            &text.replace("10.0.0.1", "10.0.0.2"),
        ] {
            fs::write(&path, damaged).unwrap();
            let (restored, why) = shelf.load(&source);
            assert_eq!(restored, Restored::default());
            let why = why.unwrap();
            assert!(
                why.contains("cannot be used") && why.contains(".broken"),
                "{why}"
            );
            assert_eq!(shelf.load(&source), (Restored::default(), None));
        }
    }

    #[test]
    fn a_leftover_of_a_killed_write_does_no_harm() {
        let directory = Directory::new("shelf-leftover");
        let shelf = Shelf::open(directory.path());
        let source = name("/one");
        fs::write(shelf.path(&source).with_extension("new"), "{\"ver").unwrap();
        shelf.save(&source, known()).unwrap();
        assert_eq!(shelf.load(&source), (known(), None));
    }

    #[test]
    fn anothers_file_is_not_taken_for_ones_own() {
        let directory = Directory::new("shelf-other");
        let shelf = Shelf::open(directory.path());
        let (one, two) = (name("/one"), name("/two"));
        shelf.save(&one, known()).unwrap();
        fs::copy(shelf.path(&one), shelf.path(&two)).unwrap();
        assert_eq!(shelf.load(&two), (Restored::default(), None));
    }
}
