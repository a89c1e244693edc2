//! The packet path on the byte slice: whatever comes in, nothing panics, and the laws hold
//! ([`laws`]).
//!
//! The first byte of an input says on what slice, and how the rest is read: as what draws a sequence of
//! the generator that the kernel's programs are compared by ([`differ`]), or as packets, each behind the
//! side it comes from and its length in two bytes.

use std::{cell::RefCell, thread::LocalKey};

use crate::packets::{
    Outcome, Runner as _, Side, differ, laws,
    slice::{Devices, Slice},
};

/// Bits of the first byte: how to read, and below it which slice.
pub const AS_PACKETS: u8 = 4;
const SLICES: u8 = 3;

/// Entries of established flows where there is little room.
const ROOM: usize = 8;

type Place = LocalKey<RefCell<Slice>>;

thread_local! {
    static PLAIN: RefCell<Slice> = RefCell::default();
    static HOLDING: RefCell<Slice> = RefCell::new(Slice::twin(Devices::default(), ROOM, true));
    static REPLACING: RefCell<Slice> = RefCell::new(Slice::replacing_flows());
    static RIGID: RefCell<Slice> = RefCell::new({
        let mut slice = Slice::default();
        slice.refuse_growth();
        slice
    });
}

pub fn run(bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else {
        return false;
    };
    let slice: &Place = match kind & SLICES {
        0 => &PLAIN,
        1 => &HOLDING,
        2 => &REPLACING,
        _ => &RIGID,
    };
    slice.with_borrow_mut(|slice| {
        let understood = match kind & AS_PACKETS {
            0 => differ::play(slice, bytes, lawful) > 0,
            _ => packets(slice, bytes),
        };
        // What an input leaves libFuzzer takes for a leak, and looks for it for half a second.
        slice.reset();
        understood
    })
}

fn lawful(side: Side, packet: &[u8], outcome: &Outcome) {
    if let Err(fault) = laws::check(side, packet, outcome) {
        panic!("{fault}");
    }
}

fn packets(slice: &mut Slice, mut bytes: &[u8]) -> bool {
    slice.reset();
    let mut understood = false;
    while let Some(([side, high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (packet, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        let side = match side % 3 {
            0 => Side::Client,
            1 => Side::Backend,
            _ => Side::Node,
        };
        let outcome = slice.take(side, packet);
        lawful(side, packet, &outcome);
        understood |= differ::is_handled(packet, &outcome);
    }
    understood
}
