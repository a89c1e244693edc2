//! The packet path on the byte slice: packets of the case table, mutated, one after another through
//! one world. Nothing panics, and what is left to the kernel untouched is untouched.
#![no_main]

use std::cell::RefCell;

use lb_tests::packets::{Action, Runner as _, Step, cases, slice::Slice};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static PACKETS: Vec<(bool, Vec<u8>)> = cases::all()
        .into_iter()
        .flat_map(|case| case.steps)
        .filter_map(|step| match step {
            Step::FromClient(packet, _) => Some((true, packet)),
            Step::FromBackend(packet, _) => Some((false, packet)),
            _ => None,
        })
        .collect();
    static SLICE: RefCell<Slice> = RefCell::default();
}

/// Five bytes of input choose a packet and change one byte of it, or cut it.
fn mutated(choice: &[u8]) -> Option<(bool, Vec<u8>)> {
    let [high, low, place, value, kind] = *choice else {
        return None;
    };
    PACKETS.with(|packets| {
        let index = usize::from(u16::from_be_bytes([high, low])) % packets.len();
        let (from_client, mut packet) = packets[index].clone();
        let place = usize::from(place) % packet.len();
        match kind % 4 {
            0 => packet.truncate(place.max(14)),
            1 => {}
            _ => packet[place] = value,
        }
        Some((from_client, packet))
    })
}

fuzz_target!(|bytes: &[u8]| {
    SLICE.with_borrow_mut(|slice| {
        slice.reset();
        // The input as a packet of its own, then as a list of mutations.
        slice.run(true, bytes);
        for choice in bytes.chunks(5) {
            let Some((from_client, packet)) = mutated(choice) else {
                return;
            };
            let outcome = slice.run(from_client, &packet);
            // Headers are rewritten in place; only answers change the length.
            if matches!(
                outcome.action,
                Action::Pass | Action::Redirect | Action::Resolve
            ) {
                assert_eq!(outcome.packet.len(), packet.len());
            }
        }
    });
});
