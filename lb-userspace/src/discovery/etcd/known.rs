//! What is known of the keys below a prefix. Pure.

use std::collections::BTreeMap;

use super::parse;
use crate::discovery::{Instance, Snapshot};

/// Keys, with what their values mean.
pub struct Known {
    prefix: Vec<u8>,
    keys: BTreeMap<Vec<u8>, Entry>,
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
            keys: BTreeMap::new(),
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
    pub fn replace(&mut self, pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>, revision: i64) {
        let mut before = std::mem::take(&mut self.keys);
        for (key, value) in pairs {
            let entry = before.remove(&key).unwrap_or_default();
            self.keys
                .insert(key.clone(), entry.with(&self.prefix, &key, &value));
        }
        self.revision = revision;
        self.latest = revision;
    }

    /// What a watch tells; whether anything may have changed.
    pub fn change(&mut self, pair: &Pair<'_>) -> bool {
        if pair.mod_revision <= self.revision || !pair.key.starts_with(&self.prefix) {
            return false;
        }
        self.latest = self.latest.max(pair.mod_revision);
        let before = self.keys.remove(pair.key);
        let Some(value) = pair.value else {
            return before.is_some();
        };
        let entry = before
            .unwrap_or_default()
            .with(&self.prefix, pair.key, value);
        self.keys.insert(pair.key.to_vec(), entry);
        true
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
