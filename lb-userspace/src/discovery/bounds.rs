//! How much of what a registry says a source holds: the same for all that put together what they know
//! of many answers. A source that would have to hold more fails, and nothing is left out in silence.
//! Pure.

use std::{borrow::Borrow, collections::BTreeMap, ops::RangeBounds};

use super::{Class, Failure, Instance, rules::MAX_INSTANCES};
use crate::json;

/// Most that a source holds at once, in bytes of memory, about: ten labels for each of
/// [`MAX_INSTANCES`], or the EndpointSlices of twice as many pods.
pub(super) const MAX_HELD: usize = 256 << 20;

/// Bytes that a label takes besides its text: a place in a map, and what is allocated for two texts.
const LABEL: usize = 96;

/// What an entry of a registry takes in memory, with what is wrong with it.
pub(super) fn weight(instance: Option<&Instance>, fault: Option<&String>) -> usize {
    json::weight(&instance, LABEL) + fault.map_or(0, String::len)
}

/// A map with no more in it than a source may hold.
pub(super) struct Bounded<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Of all entries together.
    weight: usize,
    /// What several of them are called: `keys`.
    plural: &'static str,
}

struct Entry<V> {
    value: V,
    weight: usize,
}

impl<K: Ord, V> Bounded<K, V> {
    pub(super) fn new(plural: &'static str) -> Self {
        Self {
            entries: BTreeMap::new(),
            weight: 0,
            plural,
        }
    }

    /// Puts one in, of which the value takes `weight` bytes.
    ///
    /// # Errors
    /// If there would be too many, or too much; it is left out then.
    pub(super) fn insert(&mut self, key: K, value: V, weight: usize) -> Result<(), Failure> {
        self.remove(&key);
        let room = Room {
            entries: self.entries.len(),
            weight: self.weight,
            plural: self.plural,
        };
        self.weight = room.with(weight)?.weight;
        self.entries.insert(key, Entry { value, weight });
        Ok(())
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let Entry { value, weight } = self.entries.remove(key)?;
        self.weight -= weight;
        Some(value)
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        let weight = &mut self.weight;
        self.entries.retain(|key, entry| {
            let kept = keep(key);
            if !kept {
                *weight -= entry.weight;
            }
            kept
        });
    }

    /// Takes all out.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.plural))
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.entries.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.entries.values().map(|entry| &entry.value)
    }

    pub(super) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        let range = self.entries.range(range);
        range.map(|(key, entry)| (key, &entry.value))
    }
}

/// How much there is of something that comes piece by piece.
#[derive(Clone, Copy)]
pub(super) struct Room {
    entries: usize,
    weight: usize,
    plural: &'static str,
}

impl Room {
    pub(super) fn new(plural: &'static str) -> Self {
        Self {
            entries: 0,
            weight: 0,
            plural,
        }
    }

    /// With one more, which takes `weight` bytes.
    ///
    /// # Errors
    /// If that is too many, or too much.
    pub(super) fn with(self, weight: usize) -> Result<Self, Failure> {
        let Self {
            entries, plural, ..
        } = self;
        let fault = |what: String| Err(Failure::new(Class::Malformed, what));
        if entries >= MAX_INSTANCES {
            return fault(format!(
                "more than {MAX_INSTANCES} {plural}, of which no source may have more; ask for fewer"
            ));
        }
        let weight = self.weight.saturating_add(weight);
        if weight > MAX_HELD {
            return fault(format!(
                "its {plural} take more than {} MiB of memory, at {}; ask for fewer, or let them say \
                 less",
                MAX_HELD >> 20,
                entries + 1
            ));
        }
        Ok(Self {
            entries: entries + 1,
            weight,
            plural,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_and_no_larger_than_a_source_may_hold() {
        let mut few = Bounded::new("keys");
        let half = MAX_HELD / 2;
        few.insert("a", 1, half).unwrap();
        few.insert("b", 2, half).unwrap();
        let full = few.insert("c", 3, 1).unwrap_err();
        assert_eq!(full.class, Class::Malformed);
        assert!(full.message.contains("256 MiB"), "{full}");
        // In the place of another, and where another was.
        few.insert("a", 4, half).unwrap();
        few.retain(|key| *key != "b");
        few.insert("c", 3, half).unwrap();
        few.remove("c");
        few.insert("d", 5, half).unwrap();
        assert_eq!(few.values().copied().collect::<Vec<_>>(), [4, 5]);
        assert!(few.insert("e", 6, usize::MAX).is_err());

        let mut many = Bounded::new("keys");
        for key in 0..MAX_INSTANCES {
            many.insert(key, (), 1).unwrap();
        }
        many.insert(0, (), 1).unwrap();
        let full = many.insert(MAX_INSTANCES, (), 1).unwrap_err();
        assert!(full.message.contains("more than 100000 keys"), "{full}");
        assert!(many.take().get(&1).is_some());
        many.insert(MAX_INSTANCES, (), 1).unwrap();
    }
}
