//! The selection tables: an array of arrays, each as long as its table.
//!
//! Each inner array is pinned too. The outer one tells ids alone, and turning an id into a map takes
//! CAP_SYS_ADMIN (`bpf_map_get_fd_by_id` in kernel/bpf/syscall.c), which lbd can do without for the
//! price of these pins. Which array stands where a program tells, see [`TABLE_IDS`]; the outer map
//! itself is never read.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use lb_common::abi::{
    TABLE_HEADER, TABLE_IDS, TableChunk, as_bytes, map, table_chunks, table_elements,
};

use super::{preflight, sys};

/// Where inner arrays are pinned, beside their outer one.
pub(super) const INNER_TABLES: &str = "tables";

/// Elements per batch call.
const CHUNK: usize = 256;
/// Exchanges whose wait for the programs is not over.
const PENDING: usize = 64;
/// How often an exchange is looked for.
const POLL: Duration = Duration::from_micros(20);

pub(super) struct Tables {
    outer: Arc<sys::Map>,
    /// Where inner arrays are pinned, by their place in the outer one.
    pins: PathBuf,
    /// Tells ids of inner arrays.
    ids: ProgramFd,
    pending: Arc<Pending>,
}

impl Tables {
    pub(super) fn new(outer: sys::Map, pins: PathBuf, ids: ProgramFd) -> Self {
        Self {
            outer: Arc::new(outer),
            pins,
            ids,
            pending: Arc::default(),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.outer.info.max_entries
    }

    /// Fills a new inner array and puts it in the place of the former: packets draw from the one
    /// or the other, never from a mixture.
    pub(super) fn set(&self, table: u32, slots: &[u32]) -> Result<()> {
        let elements = table_elements(slots.len() as u32);
        let inner = sys::Map::inner_array(elements, size_of::<TableChunk>() as u32);
        let inner = inner.with_context(|| failed("create inner array"))?;
        let chunks = table_chunks(slots, inner.info.id);
        let keys: Vec<u8> = (0..elements).flat_map(u32::to_ne_bytes).collect();
        let mut values = Vec::with_capacity(chunks.len() * size_of::<TableChunk>());
        chunks.for_each(|chunk| values.extend_from_slice(as_bytes(&chunk)));
        let filled = inner.update_batch(&keys, &values);
        filled.with_context(|| failed("fill inner array"))?;
        let pin = self.pin_new(table, &inner);
        let pin = pin.with_context(|| failed("pin inner array"))?;
        let (outer, id) = (self.outer.clone(), inner.info.id);
        let exchanged = self.exchange(
            move || {
                let fd = inner.as_fd().as_raw_fd() as u32;
                outer.update(&table.to_ne_bytes(), &fd.to_ne_bytes())
            },
            || Ok(self.id(table)? == Some(id)),
        );
        exchanged.with_context(|| failed("update"))?;
        fs::rename(pin, self.pin(table)).with_context(|| failed("pin inner array"))
    }

    pub(super) fn remove(&self, table: u32) -> Result<()> {
        let outer = self.outer.clone();
        let removed = self.exchange(
            move || outer.delete(&table.to_ne_bytes()).map(drop),
            || Ok(self.id(table)?.is_none()),
        );
        removed.with_context(|| failed("delete"))?;
        unpin(self.pin(table)).with_context(|| failed("unpin inner array"))
    }

    /// The places where a table stands.
    pub(super) fn places(&self) -> Result<Vec<u32>> {
        let mut places = Vec::new();
        for first in (0..self.len()).step_by(TABLE_IDS as usize) {
            let ids = self.ids(first).with_context(|| failed("run lbd_tables"))?;
            let found = (first..self.len()).zip(ids);
            places.extend(found.filter(|(_, id)| *id != 0).map(|(table, _)| table));
        }
        Ok(places)
    }

    /// The slots, without the header. One that somebody else put there, or that was being written
    /// when its daemon died, is pinned by another id or not at all: it counts as none, to be written again.
    pub(super) fn get(&self, table: u32) -> Result<Option<Vec<u32>>> {
        let read = || -> io::Result<Option<Vec<u32>>> {
            let inner = match sys::Map::from_pin(&self.pin(table)) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                inner => inner?,
            };
            if self.id(table)? != Some(inner.info.id) {
                return Ok(None);
            }
            let mut words = Vec::new();
            inner.lookup_batch(CHUNK, |_, values| {
                words.extend(values.as_chunks().0.iter().copied().map(u32::from_ne_bytes));
                Ok(())
            })?;
            let count = words.first().copied().unwrap_or_default() as usize;
            let slots = words.into_iter().skip(TABLE_HEADER as usize);
            Ok(Some(slots.take(count).collect()))
        };
        read().with_context(|| failed("lookup"))
    }

    fn pin(&self, table: u32) -> PathBuf {
        self.pins.join(table.to_string())
    }

    /// Pins an array that is not in its place yet. A daemon that died may have left its own.
    fn pin_new(&self, table: u32, inner: &sys::Map) -> Result<PathBuf> {
        preflight::create_directory(&self.pins)?;
        let pin = self.pins.join(format!("{table}-new"));
        unpin(pin.clone())?;
        inner.pin(&pin)?;
        Ok(pin)
    }

    fn id(&self, table: u32) -> io::Result<Option<u32>> {
        let [id, ..] = self.ids(table)?;
        Ok((id != 0).then_some(id))
    }

    /// Of the tables from this one on; 0 where there is none.
    fn ids(&self, first: u32) -> io::Result<[u32; TABLE_IDS as usize]> {
        let mut packet = [0; 4 * TABLE_IDS as usize];
        packet[..4].copy_from_slice(&first.to_ne_bytes());
        sys::test_run(self.ids.as_fd(), &mut packet)?;
        let mut words = packet.as_chunks().0.iter();
        Ok(std::array::from_fn(|_| {
            words.next().map_or(0, |word| u32::from_ne_bytes(*word))
        }))
    }

    /// Runs `change` on a thread of its own, and returns when `is_done` sees its effect.
    ///
    /// Having exchanged the inner map, the kernel has the caller wait until no program uses the
    /// former one (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c): some 10 ms, which a thousand
    /// services cannot afford one after the other, and nothing here needs.
    fn exchange(
        &self,
        change: impl FnOnce() -> io::Result<()> + Send + 'static,
        is_done: impl Fn() -> io::Result<bool>,
    ) -> io::Result<()> {
        let permit = Pending::enter(&self.pending);
        let (sender, result) = channel();
        thread::Builder::new()
            .name("table-exchange".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                // Nobody listens once the effect was seen.
                let _ = sender.send(change());
                drop(permit);
            })?;
        loop {
            match result.recv_timeout(POLL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::Other.into()),
                Err(RecvTimeoutError::Timeout) if is_done()? => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// What is pinned in this directory of inner arrays, by its place in the outer one.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn pinned(directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut pinned = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that is not in its place yet has no number for a name.
        if let Some(table) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            pinned.push((table, entry.path()));
        }
    }
    Ok(pinned)
}

/// Puts inner arrays into another outer map, many at a time: each waits for the programs.
pub(super) fn copy(pinned: &[(u32, PathBuf)], to: &sys::Map) -> io::Result<()> {
    let put = |(table, pin): &(u32, PathBuf)| to.set_inner(*table, &sys::Map::from_pin(pin)?);
    thread::scope(|scope| {
        let share = pinned.len().div_ceil(PENDING).max(1);
        let threads: Vec<_> = pinned
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().try_for_each(put)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let died = |_| Err(io::ErrorKind::Other.into());
            thread.join().unwrap_or_else(died)
        })
    })
}

/// Counts the threads that wait for programs.
#[derive(Default)]
struct Pending {
    count: Mutex<usize>,
    left: Condvar,
}

impl Pending {
    /// Waits until there are fewer than [`PENDING`].
    fn enter(pending: &Arc<Self>) -> Permit {
        let count = pending.count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = pending
            .left
            .wait_while(count, |count| *count >= PENDING)
            .unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        Permit(pending.clone())
    }
}

struct Permit(Arc<Pending>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_one();
    }
}

/// Whether or not there is one.
fn unpin(path: PathBuf) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(call: &str) -> String {
    format!("map {}: {call}", map::TABLES)
}
