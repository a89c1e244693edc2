//! The few `bpf()` calls of which there are millions, without what a general library does around
//! them.

use std::{io, os::fd::RawFd};

const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;
const TEST_RUN: libc::c_long = 10;
const LOOKUP_BATCH: libc::c_long = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    action: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: whoever fills in the attributes vouches for the pointers in them; the size is theirs.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match done {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a program on `packet`, with `context` in and out. Returns the action and the length of what
/// is in `out` then. `summed` gives the buffer a hardware checksum, and has the kernel check it
/// afterwards.
pub(super) fn test_run(
    program: RawFd,
    packet: &[u8],
    out: &mut [u8],
    context: &mut [u8],
    wants_context: bool,
    summed: bool,
) -> io::Result<(u32, usize)> {
    let size = context.len() as u32;
    let mut run = TestRun {
        program: program as u32,
        size_in: packet.len() as u32,
        size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_in_size: size,
        context_in: context.as_ptr() as u64,
        flags: if summed { CHECKSUM_COMPLETE } else { 0 },
        ..TestRun::default()
    };
    if wants_context {
        run.context_out_size = size;
        run.context_out = context.as_mut_ptr() as u64;
    }
    bpf(TEST_RUN, &mut run)?;
    Ok((run.action, run.size_out as usize))
}

/// Memory that calls have in common.
#[derive(Default)]
pub(super) struct Room {
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// A map as system calls see it.
#[derive(Clone, Copy)]
pub(super) struct Raw {
    pub(super) fd: RawFd,
    pub(super) key: usize,
    /// Bytes of a value; of per-CPU maps those of all CPUs.
    pub(super) value: usize,
    pub(super) entries: usize,
}

impl Raw {
    /// Calls `each` with key and value of every entry. `delete` takes them out.
    pub(super) fn each(
        &self,
        room: &mut Room,
        delete: bool,
        mut each: impl FnMut(&[u8], &mut [u8]),
    ) -> io::Result<()> {
        let command = match delete {
            true => LOOKUP_AND_DELETE_BATCH,
            false => LOOKUP_BATCH,
        };
        room.keys
            .resize(room.keys.len().max(self.key * self.entries), 0);
        room.values
            .resize(room.values.len().max(self.value * self.entries), 0);
        let (mut place, mut next) = ([0_u8; 64], [0_u8; 64]);
        let mut is_first = true;
        loop {
            let mut batch = Batch {
                from: if is_first {
                    0
                } else {
                    place.as_mut_ptr() as u64
                },
                next: next.as_mut_ptr() as u64,
                keys: room.keys.as_mut_ptr() as u64,
                values: room.values.as_mut_ptr() as u64,
                count: self.entries as u32,
                map: self.fd as u32,
                ..Batch::default()
            };
            let done = bpf(command, &mut batch);
            let is_over = match done {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let keys = room.keys.chunks(self.key);
            let pairs = keys.zip(room.values.chunks_mut(self.value));
            for (key, value) in pairs.take(batch.count as usize) {
                each(key, value);
            }
            if is_over {
                return Ok(());
            }
            place = next;
            is_first = false;
        }
    }

    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key, self.value));
        let mut element = Element {
            map: self.fd as u32,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            ..Element::default()
        };
        bpf(UPDATE, &mut element)
    }

    /// Whether there was one.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.key);
        let mut element = Element {
            map: self.fd as u32,
            key: key.as_ptr() as u64,
            ..Element::default()
        };
        match bpf(DELETE, &mut element) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
