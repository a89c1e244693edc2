//! How many connections a backend and a service have.
//!
//! The path counts what is opened and what is closed, each upwards only. Entries that the daemon
//! removes, and those that two directions closed at once, make the difference drift; the daemon,
//! which sees the true numbers when it scans the flows, makes up for it in `COUNTED`.

use super::Tables;
use crate::abi::{Address, Flow, flow_state};

/// What becomes of an established connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Count {
    Opened = 0,
    Closed = 1,
}

/// Counts a connection of the backend in `slot`, and of its service. Behind
/// [`Tables::count_active`], which keeps it off the stack of its callers.
#[inline(always)]
pub fn count_active<T: Tables>(tables: &T, slot: u32, generation: u32, what: Count) {
    let Some(backend) = tables.backend(slot) else {
        return;
    };
    // What is left of a former owner of the slot does not count for the present one.
    if backend.generation != generation {
        return;
    }
    let count = |index| {
        if let Some(active) = tables.active(index) {
            tables.add(match what {
                Count::Opened => &active.opened,
                Count::Closed => &active.closed,
            });
        }
    };
    count(slot);
    if let Some(admission) = tables.admission(backend.service)
        && admission.counter != 0
    {
        count(admission.counter);
    }
}

/// Open connections of a slot, or of an [`crate::abi::Admission::counter`].
#[inline(always)]
pub(super) fn open<T: Tables>(tables: &T, index: u32) -> u32 {
    match tables.active(index) {
        Some(active) => active.open(tables.counted(index)),
        None => 0,
    }
}

/// Counts a flow of the `FLOWS` tables that is about to be removed.
#[inline(always)]
pub(super) fn forget<A: Address, T: Tables>(tables: &T, flow: &Flow<A>) {
    if !flow_state::is_closed(flow.state.get()) {
        tables.count_active(flow.slot, flow.generation, Count::Closed);
    }
}
