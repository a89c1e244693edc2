//! What a source says of one instance.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Longest id, in bytes; what is longer is left out.
const MAX_ID: usize = 512;
/// Labels of an instance.
const MAX_LABELS: usize = 64;

/// One instance of a service, as its registry knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Stays the same for as long as the registry means the same instance; unique within a source.
    pub id: String,
    pub address: SocketAddr,
    /// 0 takes no new connections. `None`: the source's `weight`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<u16>,
    /// On top of the source's `labels`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub state: InstanceState,
}

impl Instance {
    /// One that takes connections, of the source's weight.
    pub fn new(id: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            id: id.into(),
            address,
            weight: None,
            labels: BTreeMap::new(),
            state: InstanceState::Up,
        }
    }

    /// Without the labels that no backend can have, and those behind the first [`MAX_LABELS`]: a registry's
    /// labels are not the operator's fault, and what does not fit is not to be held either.
    #[must_use]
    pub(super) fn fitting(mut self) -> Self {
        self.labels
            .retain(|key, value| crate::config::label_fault(key, value).is_none());
        while self.labels.len() > MAX_LABELS {
            self.labels.pop_last();
        }
        self
    }
}

/// What the registry says of an instance, whatever lbd's own probes find. From best to worst.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    #[default]
    Up,
    /// No new connections, existing ones continue.
    Drain,
    /// The registry's own checks fail: no new connections, as for a backend whose probes fail.
    Down,
}

impl InstanceState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Drain => "drain",
            Self::Down => "down",
        }
    }
}

/// A source's whole answer: instances, or whatever it is to find.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot<I = Instance> {
    /// In any order. Of two with one id the first counts.
    pub instances: Vec<I>,
    /// What the registry holds that is none of them, one sentence each; shown, and otherwise
    /// ignored.
    pub left_out: Vec<String>,
    /// The registry says in so many words that these are all: an answer that is empty is believed
    /// at once.
    pub decided: bool,
}

impl<I> Default for Snapshot<I> {
    fn default() -> Self {
        Self {
            instances: Vec::new(),
            left_out: Vec::new(),
            decided: false,
        }
    }
}

impl<I> From<Vec<I>> for Snapshot<I> {
    fn from(instances: Vec<I>) -> Self {
        Self {
            instances,
            ..Self::default()
        }
    }
}

/// Takes out of an instance what no backend can have.
///
/// # Errors
/// Why it cannot be a backend at all, in words.
pub(super) fn admissible(instance: Instance) -> Result<Instance, String> {
    let Instance { id, address, .. } = &instance;
    if id.len() > MAX_ID || id.contains(char::is_control) {
        let id: String = id.escape_debug().take(60).collect();
        return Err(format!(
            "the id `{id}` is longer than {MAX_ID} bytes or has control characters"
        ));
    }
    if let Some(fault) = crate::config::backend_fault(*address) {
        return Err(format!("`{id}`: {address} {fault}"));
    }
    Ok(instance.fitting())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_labels_are_kept() {
        let mut instance = Instance::new("a", "10.0.0.1:80".parse().unwrap());
        let labels = (0..2 * MAX_LABELS).map(|n| (format!("key-{n:03}"), "v".to_owned()));
        instance.labels = labels.collect();
        let kept = admissible(instance).unwrap().labels;
        assert_eq!(kept.len(), MAX_LABELS);
        assert!(kept.contains_key("key-000"));
    }

    #[test]
    fn what_cannot_be_a_backend_is_told_and_odd_labels_go() {
        for (address, word) in [
            ("10.0.0.1:0", "port 0"),
            ("0.0.0.0:80", "unspecified"),
            ("224.0.0.1:80", "multicast"),
            ("[fe80::1]:80", "link-local"),
            ("[::ffff:10.0.0.1]:80", "IPv6 form"),
        ] {
            let instance = Instance::new("a", address.parse().unwrap());
            let fault = admissible(instance).unwrap_err();
            assert!(fault.contains(word), "{fault}");
        }
        let long = Instance::new("x".repeat(513), "10.0.0.1:80".parse().unwrap());
        assert!(admissible(long).unwrap_err().contains("512"));
        let mut odd = Instance::new("a", "10.0.0.1:80".parse().unwrap());
        for (key, value) in [("version", "v1"), ("a b", "x"), ("note", "two\nlines")] {
            odd.labels.insert(key.to_owned(), value.to_owned());
        }
        let labels = admissible(odd).unwrap().labels;
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("version".to_owned(), "v1".to_owned())]
        );
    }
}
