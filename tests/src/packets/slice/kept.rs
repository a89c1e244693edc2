//! A map whose entries stay good for whoever holds one, whatever becomes of the map: as in the
//! kernel, where a packet may go on reading an entry that was removed.

use std::{cell::RefCell, collections::HashMap, hash::Hash, ptr::NonNull};

pub(super) struct Kept<K, V> {
    live: RefCell<HashMap<K, NonNull<V>>>,
    /// Every entry there ever was.
    all: RefCell<Vec<NonNull<V>>>,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self {
            live: RefCell::default(),
            all: RefCell::default(),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Kept<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let entry = self.live.borrow().get(key).copied();
        // SAFETY: from a box that is freed with the map, and never lent mutably.
        entry.map(|entry| unsafe { entry.as_ref() })
    }

    pub(super) fn insert(&self, key: K, value: V) {
        let entry = NonNull::from(Box::leak(Box::new(value)));
        self.all.borrow_mut().push(entry);
        self.live.borrow_mut().insert(key, entry);
    }

    /// The entry, one of zeros where there is none yet.
    pub(super) fn get_or_default(&self, key: K) -> &V
    where
        V: Default,
    {
        if !self.live.borrow().contains_key(&key) {
            self.insert(key, V::default());
        }
        self.get(&key).expect("it was just entered")
    }

    /// Whether there was one.
    pub(super) fn remove(&self, key: &K) -> bool {
        self.live.borrow_mut().remove(key).is_some()
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.live.borrow().contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Copies of all there are, in no order.
    pub(super) fn entries(&self) -> Vec<(K, V)> {
        let keys: Vec<K> = self.live.borrow().keys().copied().collect();
        keys.into_iter()
            .filter_map(|key| Some((key, self.get(&key)?.clone())))
            .collect()
    }

    /// Moves what there is to `other`.
    pub(super) fn empty_into(&self, other: &Self) {
        for (key, value) in self.entries() {
            other.insert(key, value);
        }
        self.live.borrow_mut().clear();
    }

    /// Forgets all entries. Nobody can hold one: the map is lent to this call alone.
    pub(super) fn clear(&mut self) {
        self.live.get_mut().clear();
        for entry in self.all.get_mut().drain(..) {
            // SAFETY: made by `Box::leak`, and freed here only.
            drop(unsafe { Box::from_raw(entry.as_ptr()) });
        }
    }
}

impl<K, V> Drop for Kept<K, V> {
    fn drop(&mut self) {
        for entry in self.all.get_mut().drain(..) {
            // SAFETY: as in `clear`.
            drop(unsafe { Box::from_raw(entry.as_ptr()) });
        }
    }
}
