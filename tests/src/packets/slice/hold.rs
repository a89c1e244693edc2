//! Fragments that wait for their datagram's first, as `lb-ebpf/src/hold.rs` has them do at TC.

use std::hash::Hash;

use lb_common::{
    abi::{Address, Drop, HELD_BYTES, HELD_PIECES, Held, HeldKey},
    path::{self, FamilyTables, Tables as _},
};

use super::kept::Kept;
use super::memory::Memory;

/// Shortest frame with a fragment: Ethernet, IPv4, and 8 bytes.
const SHORTEST: usize = 14 + 20 + 8;

/// Puts the fragment in the path's memory aside. It counts what became of it.
pub(super) fn hold<A: path::Family + Hash>(
    memory: &Memory,
    waiting: &Kept<HeldKey<A>, Held>,
    bytes: &[u8],
) where
    Memory: FamilyTables<A>,
{
    let is_free = (0..HELD_PIECES).any(|piece| path::piece_is_free::<A, _>(memory, piece));
    let Some(work) = FamilyTables::<A>::work(memory) else {
        return;
    };
    if !is_free || !(SHORTEST..=HELD_BYTES).contains(&bytes.len()) {
        return memory.count_drop(Drop::FragmentUnknown);
    }
    let mut frame = [0; HELD_BYTES];
    frame[..bytes.len()].copy_from_slice(bytes);
    let held = Held {
        length: bytes.len() as u32,
        seen: memory.now(),
        frame,
    };
    waiting.insert(work.held, held);
    memory.count_drop(Drop::FragmentHeld);
}

/// Lets those go that wait for the first fragment in the path's memory. They come in again where
/// no program of a test run sees them.
pub(super) fn release<A: Address + Hash>(memory: &Memory, waiting: &Kept<HeldKey<A>, Held>)
where
    Memory: FamilyTables<A>,
{
    let Some(work) = FamilyTables::<A>::work(memory) else {
        return;
    };
    for piece in 0..HELD_PIECES {
        work.held.piece = piece;
        let Some(held) = waiting.get(&work.held) else {
            continue;
        };
        // The path has looked at the one of number 0.
        if piece == 0 || path::is_recent(&memory.config, memory.now(), held.seen) {
            memory.count_drop(Drop::FragmentResumed);
        }
        waiting.remove(&work.held);
    }
}
