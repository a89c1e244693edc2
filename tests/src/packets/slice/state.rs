//! What is in the tables in memory, as the kernel's maps would hold it.

use std::hash::Hash;

use lb_common::abi::{Address, AffinityKey, FlowKey, FragmentKey, HeldKey, Pod, as_bytes, map};

use super::Slice;
use super::kept::Kept;
use super::memory::Family;

/// Map, key, value.
pub(in super::super) type Entry = (&'static str, Vec<u8>, Vec<u8>);

impl Slice {
    /// Jiffies.
    pub(in super::super) fn now(&self) -> u32 {
        self.memory.now
    }

    /// Every entry that packets made, in no order.
    pub(in super::super) fn entries(&self) -> Vec<Entry> {
        let memory = &self.memory;
        let mut entries = Vec::new();
        family(
            &mut entries,
            &memory.v4,
            [
                map::FLOWS4,
                map::HANDSHAKES4,
                map::AFFINITY4,
                map::FRAGMENTS4,
                map::HELD4,
            ],
        );
        family(
            &mut entries,
            &memory.v6,
            [
                map::FLOWS6,
                map::HANDSHAKES6,
                map::AFFINITY6,
                map::FRAGMENTS6,
                map::HELD6,
            ],
        );
        table(&mut entries, map::SOURCE_RATES, &memory.source_rates);
        table(&mut entries, map::RATES, &memory.rates);
        table(&mut entries, map::ACTIVE, &memory.active);
        for (service, cursor) in memory.cursors.borrow().iter() {
            entries.push((map::CURSORS, bytes(service), bytes(cursor)));
        }
        for (slot, counters) in memory.counters.borrow().iter() {
            entries.push((map::COUNTERS, bytes(slot), bytes(counters)));
        }
        for (family, last) in (0_u32..).zip(&memory.full) {
            entries.push(("FULL", bytes(&family), bytes(&last.get())));
        }
        entries
    }

    /// Keys of the handshakes of a family, in order.
    pub(in super::super) fn handshakes(&self, v6: bool) -> Vec<Vec<u8>> {
        let mut keys: Vec<_> = match v6 {
            true => keys(&self.memory.v6.handshakes),
            false => keys(&self.memory.v4.handshakes),
        };
        keys.sort();
        keys
    }

    /// Removes a handshake by its key's bytes.
    pub(in super::super) fn forget_handshake(&mut self, v6: bool, key: &[u8]) -> Option<bool> {
        use lb_common::abi::from_bytes;
        Some(match v6 {
            true => self.memory.v6.evict(&from_bytes(key)?),
            false => self.memory.v4.evict(&from_bytes(key)?),
        })
    }
}

fn family<A: Address + Hash>(entries: &mut Vec<Entry>, family: &Family<A>, names: [&'static str; 5])
where
    FlowKey<A>: Pod,
    lb_common::abi::Flow<A>: Pod,
    AffinityKey<A>: Pod,
    FragmentKey<A>: Pod,
    HeldKey<A>: Pod,
{
    let [flows, handshakes, affinity, fragments, held] = names;
    table(entries, flows, &family.flows);
    table(entries, handshakes, &family.handshakes);
    table(entries, affinity, &family.affinity);
    table(entries, fragments, &family.fragments);
    table(entries, held, &family.held);
}

fn table<K, V>(entries: &mut Vec<Entry>, name: &'static str, table: &Kept<K, V>)
where
    K: Pod + Copy + Eq + Hash,
    V: Pod,
{
    let all = table.entries();
    entries.extend(
        all.iter()
            .map(|(key, value)| (name, bytes(key), bytes(value))),
    );
}

fn keys<K: Pod + Copy + Eq + Hash, V: Clone>(table: &Kept<K, V>) -> Vec<Vec<u8>> {
    table.entries().iter().map(|(key, _)| bytes(key)).collect()
}

fn bytes<T: Pod>(value: &T) -> Vec<u8> {
    as_bytes(value).to_vec()
}
