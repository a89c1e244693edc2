//! What is known of the keys below a prefix. Pure.

use super::parse;
use crate::discovery::{
    Failure, Instance, Snapshot,
    bounds::{Bounded, weight},
};

/// Keys, with what their values mean.
pub struct Known {
    prefix: Vec<u8>,
    keys: Bounded<Vec<u8>, Entry>,
    /// The cluster's revision at the last full reading: what a watch tells of it and of what was
    /// before is known.
    revision: i64,
    /// The highest revision seen, by reading or watching.
    latest: i64,
}

#[derive(Default)]
struct Entry {
    /// What the key said last that was understood. A registrar that writes garbage over it has not
    /// taken its instance away.
    instance: Option<Instance>,
    fault: Option<String>,
}

/// A key as etcd has it.
pub struct Pair<'a> {
    pub key: &'a [u8],
    /// `None` if it was deleted.
    pub value: Option<&'a [u8]>,
    pub mod_revision: i64,
}

impl Known {
    pub fn new(prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: prefix.into(),
            keys: Bounded::new("keys"),
            revision: 0,
            latest: 0,
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn latest(&self) -> i64 {
        self.latest
    }

    /// All there is, as of one revision.
    ///
    /// # Errors
    /// If that is more than a source may hold.
    pub fn replace(
        &mut self,
        pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
        revision: i64,
    ) -> Result<(), Failure> {
        let mut before = self.keys.take();
        for (key, value) in pairs {
            let entry = before.remove(&key).unwrap_or_default();
            self.put(entry, key, &value)?;
        }
        self.revision = revision;
        self.latest = revision;
        Ok(())
    }

    fn put(&mut self, before: Entry, key: Vec<u8>, value: &[u8]) -> Result<(), Failure> {
        let entry = before.with(&self.prefix, &key, value);
        let weight = key.len() + weight(entry.instance.as_ref(), entry.fault.as_ref());
        self.keys.insert(key, entry, weight)
    }

    /// What a watch tells; whether anything may have changed.
    ///
    /// # Errors
    /// If there is more than a source may hold.
    pub fn change(&mut self, pair: &Pair<'_>) -> Result<bool, Failure> {
        if pair.mod_revision <= self.revision || !pair.key.starts_with(&self.prefix) {
            return Ok(false);
        }
        self.latest = self.latest.max(pair.mod_revision);
        let before = self.keys.remove(pair.key);
        let Some(value) = pair.value else {
            return Ok(before.is_some());
        };
        self.put(before.unwrap_or_default(), pair.key.to_vec(), value)?;
        Ok(true)
    }

    pub fn snapshot(&self) -> Snapshot {
        let entries = self.keys.values();
        Snapshot {
            instances: entries.clone().filter_map(|e| e.instance.clone()).collect(),
            left_out: entries.filter_map(|e| e.fault.clone()).collect(),
            ..Snapshot::default()
        }
    }
}

impl Entry {
    fn with(self, prefix: &[u8], key: &[u8], value: &[u8]) -> Self {
        match parse::instance(prefix, key, value) {
            Ok(instance) => Self {
                instance,
                fault: None,
            },
            Err(fault) => Self {
                fault: Some(match self.instance {
                    Some(_) => format!("{fault}; what it said before stays in force"),
                    None => fault,
                }),
                ..self
            },
        }
    }
}
