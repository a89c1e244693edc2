//! The pinned maps, typed. Errors name the map and the call.

use std::{io, marker::PhantomData, path::Path};

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramFd;
use lb_common::abi::{
    Active, Admission, Backend, BackendCounters, Config, Flow, FlowKey, Pod, Service, ServiceKey,
    SourceKey, V4, V6, as_bytes, from_bytes, map,
};

use super::{
    sys,
    tables::{INNER_TABLES, Tables},
};

/// Entries per batch call: 512 KiB of buffers for the widest map.
const CHUNK: usize = 4096;

pub(super) struct Maps {
    pub(super) config: Array<Config>,
    pub(super) ports: Array<u64>,
    pub(super) services4: Hash<ServiceKey<V4>, Service>,
    pub(super) services6: Hash<ServiceKey<V6>, Service>,
    pub(super) tables: Tables,
    pub(super) backends: Array<Backend>,
    pub(super) counters: PerCpu<BackendCounters>,
    pub(super) flows4: Hash<FlowKey<V4>, Flow<V4>>,
    pub(super) flows6: Hash<FlowKey<V6>, Flow<V6>>,
    pub(super) handshakes4: Hash<FlowKey<V4>, Flow<V4>>,
    pub(super) handshakes6: Hash<FlowKey<V6>, Flow<V6>>,
    pub(super) devices: Hash<u32, u32>,
    pub(super) drops: PerCpu<u64>,
    pub(super) sources: Array<[u32; 4]>,
    pub(super) admission: Array<Admission>,
    pub(super) source_lists4: Hash<SourceKey<V4>, u32>,
    pub(super) source_lists6: Hash<SourceKey<V6>, u32>,
    pub(super) active: Array<Active>,
    pub(super) counted: Array<u32>,
}

impl Maps {
    /// Opens what the loader pinned in `directory`. `tables` is the program that tells of tables.
    pub(super) fn open(directory: &Path, tables: ProgramFd) -> Result<Self> {
        let open = |name| Named::open(directory, name);
        Ok(Self {
            config: open(map::CONFIG)?.into(),
            ports: open(map::PORTS)?.into(),
            services4: open(map::SERVICES4)?.into(),
            services6: open(map::SERVICES6)?.into(),
            tables: Tables::new(
                sys::Map::from_pin(&directory.join(map::TABLES)).with_context(|| {
                    format!("map {}: open it in {}", map::TABLES, directory.display())
                })?,
                directory.join(INNER_TABLES),
                tables,
            ),
            backends: open(map::BACKENDS)?.into(),
            counters: PerCpu(open(map::COUNTERS)?.into()),
            flows4: open(map::FLOWS4)?.into(),
            flows6: open(map::FLOWS6)?.into(),
            handshakes4: open(map::HANDSHAKES4)?.into(),
            handshakes6: open(map::HANDSHAKES6)?.into(),
            devices: open(map::DEVICES)?.into(),
            drops: PerCpu(open(map::DROPS)?.into()),
            sources: open(map::SOURCES)?.into(),
            admission: open(map::ADMISSION)?.into(),
            source_lists4: open(map::SOURCE_LISTS4)?.into(),
            source_lists6: open(map::SOURCE_LISTS6)?.into(),
            active: open(map::ACTIVE)?.into(),
            counted: open(map::COUNTED)?.into(),
        })
    }
}

impl Maps {
    pub(super) fn counter(&self, service: u32) -> u32 {
        super::counter(self.backends.len(), service)
    }
}

/// A hash map, least-recently-used or not, or a trie of prefixes.
pub(super) struct Hash<K, V> {
    map: Named,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    pub(super) fn name(&self) -> &'static str {
        self.map.name
    }

    pub(super) fn capacity(&self) -> u32 {
        self.map.inner.info.max_entries
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>> {
        self.map.get(as_bytes(key))
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<()> {
        self.map.set(as_bytes(key), as_bytes(value))
    }

    /// Writes entries in their order, a chunk at a time.
    pub(super) fn set_all(&self, entries: impl Iterator<Item = (K, V)>) -> Result<()> {
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (key, value) in entries.by_ref().take(CHUNK) {
                keys.extend_from_slice(as_bytes(&key));
                values.extend_from_slice(as_bytes(&value));
            }
            let written = self.map.inner.update_batch(&keys, &values);
            written.with_context(|| self.map.failed("batch update"))?;
        }
        Ok(())
    }

    /// `false` if there was no such key.
    pub(super) fn remove(&self, key: &K) -> Result<bool> {
        let removed = self.map.inner.delete(as_bytes(key));
        removed.with_context(|| self.map.failed("delete"))
    }

    /// Hands all entries over, a chunk at a time; entries may be removed meanwhile.
    pub(super) fn for_each_chunk(
        &self,
        mut each: impl FnMut(&mut dyn Iterator<Item = (K, V)>) -> Result<()>,
    ) -> Result<()> {
        let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
        let mut outcome = Ok(());
        let walk = self.map.inner.lookup_batch(CHUNK, |keys, values| {
            let keys = keys.chunks_exact(key_size).filter_map(from_bytes::<K>);
            let values = values.chunks_exact(value_size).filter_map(from_bytes::<V>);
            outcome = each(&mut keys.zip(values));
            match outcome {
                Ok(()) => Ok(()),
                Err(_) => Err(io::ErrorKind::Interrupted.into()),
            }
        });
        outcome?;
        walk.with_context(|| self.map.failed("batch lookup"))
    }

    pub(super) fn all(&self) -> Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        self.for_each_chunk(|entries| {
            found.extend(entries);
            Ok(())
        })?;
        Ok(found)
    }

    pub(super) fn count(&self) -> Result<u64> {
        let key_size = size_of::<K>();
        let mut count = 0;
        let walk = self.map.inner.lookup_batch(CHUNK, |keys, _| {
            count += (keys.len() / key_size) as u64;
            Ok(())
        });
        walk.with_context(|| self.map.failed("batch lookup"))?;
        Ok(count)
    }
}

pub(super) struct Array<V> {
    map: Named,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> Array<V> {
    pub(super) fn len(&self) -> u32 {
        self.map.inner.info.max_entries
    }

    pub(super) fn get(&self, index: u32) -> Result<V> {
        let value = self.map.get(as_bytes(&index))?;
        value.with_context(|| format!("map {}: there is no element {index}", self.map.name))
    }

    pub(super) fn set(&self, index: u32, value: &V) -> Result<()> {
        self.map.set(as_bytes(&index), as_bytes(value))
    }

    /// All elements by index.
    pub(super) fn all(&self) -> Result<Vec<V>> {
        self.map.values(self.len() as usize)
    }
}

/// An array with a value per CPU.
pub(super) struct PerCpu<V>(Array<V>);

impl<V: Pod> PerCpu<V> {
    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    /// The element's value on each CPU.
    pub(super) fn get(&self, index: u32) -> Result<Vec<V>> {
        let Named { name, inner } = &self.0.map;
        let mut bytes = vec![0; inner.value_bytes()];
        let found = inner.lookup(as_bytes(&index), &mut bytes);
        let found = found.with_context(|| self.0.map.failed("lookup"))?;
        ensure!(found, "map {name}: there is no element {index}");
        let stride = size_of::<V>().next_multiple_of(8);
        Ok(bytes.chunks_exact(stride).filter_map(from_bytes).collect())
    }

    pub(super) fn clear(&self, index: u32) -> Result<()> {
        let zeros = vec![0; self.0.map.inner.value_bytes()];
        self.0.map.set(as_bytes(&index), &zeros)
    }
}

struct Named {
    name: &'static str,
    inner: sys::Map,
}

impl Named {
    fn open(directory: &Path, name: &'static str) -> Result<Self> {
        let path = directory.join(name);
        let inner = sys::Map::from_pin(&path)
            .with_context(|| format!("map {name}: open {}", path.display()))?;
        Ok(Self { name, inner })
    }

    fn failed(&self, call: &str) -> String {
        format!("map {}: {call}", self.name)
    }

    fn get<V: Pod>(&self, key: &[u8]) -> Result<Option<V>> {
        let mut value = vec![0; size_of::<V>()];
        let found = self.inner.lookup(key, &mut value);
        let found = found.with_context(|| self.failed("lookup"))?;
        Ok(found.then(|| from_bytes(&value)).flatten())
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let done = self.inner.update(key, value);
        done.with_context(|| self.failed("update"))
    }

    #[expect(
        clippy::chunks_exact_to_as_chunks,
        reason = "the size of a type parameter is no constant argument"
    )]
    fn values<V: Pod>(&self, expected: usize) -> Result<Vec<V>> {
        let mut found = Vec::with_capacity(expected);
        let walk = self.inner.lookup_batch(CHUNK, |_, values| {
            let values = values.chunks_exact(size_of::<V>());
            found.extend(values.filter_map(from_bytes::<V>));
            Ok(())
        });
        walk.with_context(|| self.failed("batch lookup"))?;
        Ok(found)
    }
}

impl<K, V> From<Named> for Hash<K, V> {
    fn from(map: Named) -> Self {
        Self {
            map,
            types: PhantomData,
        }
    }
}

impl<V> From<Named> for Array<V> {
    fn from(map: Named) -> Self {
        Self {
            map,
            types: PhantomData,
        }
    }
}
