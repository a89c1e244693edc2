//! Time that both sides agree on.
//!
//! The programs read the kernel's clock, which nobody can set. So a second is made so long that none
//! passes by itself, and where one is to pass the kernel's entries are made older instead: every
//! time in a map is moved back by [`STEP`], while the byte slice's clock is moved on by it.

use std::mem::offset_of;

use lb_common::abi::{Affinity, Flow, Fragmented, HELD_BYTES, Held, V4, V6, map};

/// Jiffies per second. `REBASE` seconds of the path's token buckets fit 32 bits.
pub(super) const HZ: u32 = 60_000_000;

/// Jiffies that pass at once: no small multiple of a second, so that what else passes in the kernel
/// meanwhile decides nothing. Even, as the mark of a full table is odd.
pub(super) const STEP: u32 = HZ / 100 * 137 / 2 * 2;

/// So many steps are less than half of what 32 bits hold.
pub(super) const STEPS: u32 = 25;

/// When a table of established flows last had no room.
pub(super) const FULL: &str = "FULL";

/// Where times stand in the values of a map.
fn times(name: &str) -> &'static [usize] {
    match name {
        map::FLOWS4 | map::HANDSHAKES4 => {
            const {
                &[
                    offset_of!(Flow<V4>, last_seen),
                    offset_of!(Flow<V4>, created),
                ]
            }
        }
        map::FLOWS6 | map::HANDSHAKES6 => {
            const {
                &[
                    offset_of!(Flow<V6>, last_seen),
                    offset_of!(Flow<V6>, created),
                ]
            }
        }
        map::FRAGMENTS4 | map::FRAGMENTS6 => const { &[offset_of!(Fragmented, seen)] },
        map::HELD4 | map::HELD6 => const { &[offset_of!(Held, seen)] },
        map::AFFINITY4 | map::AFFINITY6 => const { &[offset_of!(Affinity, last)] },
        map::RATES | map::SOURCE_RATES => {
            const { &[if cfg!(target_endian = "little") { 4 } else { 0 }] }
        }
        FULL => &[0],
        _ => &[],
    }
}

/// Whether 0 is no time, in this map.
fn has_none(name: &str) -> bool {
    matches!(name, map::RATES | map::SOURCE_RATES | FULL)
}

fn each(name: &str, value: &mut [u8], change: impl Fn(u32) -> u32) {
    if has_none(name) && value.iter().all(|byte| *byte == 0) {
        return;
    }
    for place in times(name) {
        let bytes = &mut value[*place..place + 4];
        let time = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        bytes.copy_from_slice(&change(time).to_ne_bytes());
    }
}

/// Makes the times in a value a step older.
pub(super) fn age(name: &str, value: &mut [u8]) {
    each(name, value, |time| time.wrapping_sub(STEP));
}

/// Replaces the times in a value by how many steps ago that was, and clears what means nothing.
pub(super) fn normalise(name: &str, value: &mut [u8], now: u32) {
    each(name, value, |time| now.wrapping_sub(time) / STEP);
    if matches!(name, map::HELD4 | map::HELD6) {
        let length = u32::from_ne_bytes(value[..4].try_into().expect("four bytes")) as usize;
        let frame = offset_of!(Held, frame);
        value[frame + length.min(HELD_BYTES)..].fill(0);
    }
}
