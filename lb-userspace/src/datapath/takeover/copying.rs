//! Entries on their way from one map into another.

use anyhow::Result;
use lb_common::abi::{Admission, as_bytes, from_bytes, map};
use tracing::warn;

use super::CHUNK;
use crate::datapath::{layout::Carry, sys::Map};

/// What is counted by slot and, behind all slots, by service moves with the number of slots.
pub(super) fn fix(name: &str, (there, here): (u32, u32), index: &mut u32, value: &mut [u8]) {
    match name {
        map::ACTIVE | map::COUNTED if *index >= there => *index = *index - there + here,
        map::ADMISSION => {
            if let Some(mut admission) = from_bytes::<Admission>(value)
                && admission.counter != 0
            {
                admission.counter = admission.counter - there + here;
                value.copy_from_slice(as_bytes(&admission));
            }
        }
        _ => {}
    }
}

/// Copies entries, those of arrays as far as they are not zero and there is room.
pub(super) fn copy(
    from: &Map,
    to: &Map,
    key: &Carry,
    value: &Carry,
    fix: impl Fn(&mut u32, &mut Vec<u8>),
) -> Result<()> {
    let is_array = from.is_array();
    from.lookup_batch(CHUNK, |keys, values| {
        let (mut new_keys, mut new_values) = (Vec::new(), Vec::new());
        let entries = keys
            .chunks_exact(key.old_size())
            .zip(values.chunks_exact(from.value_bytes()));
        for (old_key, old_value) in entries {
            if is_array && old_value.iter().all(|byte| *byte == 0) {
                continue;
            }
            let (mut k, mut v) = (Vec::new(), Vec::new());
            key.append(old_key, &mut k);
            append_value(from, value, old_value, &mut v);
            if is_array {
                let mut index = from_bytes(&k).unwrap_or_default();
                fix(&mut index, &mut v);
                if index >= to.info.max_entries {
                    continue;
                }
                k = index.to_ne_bytes().to_vec();
            }
            new_keys.extend(k);
            new_values.extend(v);
        }
        match new_keys.is_empty() {
            true => Ok(()),
            false => to.update_batch(&new_keys, &new_values),
        }
    })?;
    Ok(())
}

/// Moves entries whose keys are not there yet, and takes away the others; gives the number of those moved.
///
/// One that stayed behind could be moved once more, by a late packet of a connection that has ended.
pub(super) fn move_all(from: &Map, to: &Map, key: &Carry, value: &Carry) -> Result<u64> {
    let (mut moved, mut refused) = (0, 0);
    let mut still = vec![0; from.value_bytes()];
    from.lookup_batch(CHUNK, |keys, values| {
        let entries = keys
            .chunks_exact(key.old_size())
            .zip(values.chunks_exact(from.value_bytes()));
        for (old_key, old_value) in entries {
            let (mut k, mut v) = (Vec::new(), Vec::new());
            key.append(old_key, &mut k);
            append_value(from, value, old_value, &mut v);
            // Thousands are read at once: meanwhile a packet may have moved this one, and ended it there.
            if !from.lookup(old_key, &mut still)? {
                continue;
            }
            match to.insert(&k, &v) {
                Ok(true) => moved += 1,
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => refused += 1,
                Err(error) => return Err(error),
            }
            from.delete(old_key)?;
        }
        Ok(())
    })?;
    if refused > 0 {
        warn!("{refused} entries found no room in the new flow tables: their connections are lost");
    }
    Ok(moved)
}

/// Of a per-CPU map each CPU's value.
fn append_value(from: &Map, carry: &Carry, old: &[u8], new: &mut Vec<u8>) {
    if old.len() == carry.old_size() {
        return carry.append(old, new);
    }
    debug_assert!(from.value_bytes() == old.len());
    for one in old.chunks_exact(carry.old_size().next_multiple_of(8)) {
        carry.append(&one[..carry.old_size()], new);
        new.resize(new.len().next_multiple_of(8), 0);
    }
}
