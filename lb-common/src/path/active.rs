//! How many connections a backend and a service have.
//!
//! The path counts what is opened and what is closed, each upwards only. Entries that the daemon
//! removes, and those that two directions closed at once, make the difference drift; the daemon,
//! which sees the true numbers when it scans the flows, makes up for it in `COUNTED`.

use super::Tables;
use crate::abi::{Address, Flow, flow_state};

/// Counts what a flow's state changed from and to: of the backend in `slot`, and of its service.
/// Behind [`Tables::count_active`], which keeps it off the stack of its callers, and its branches
/// out of what the verifier walks behind them.
#[inline(always)]
pub fn count_active<T: Tables>(tables: &T, slot: u32, generation: u32, before: u32, after: u32) {
    let (was_open, opens) = (is_open(before), is_open(after));
    if was_open == opens {
        return;
    }
    let Some(backend) = tables.backend(slot) else {
        return;
    };
    // What is left of a former owner of the slot does not count for the present one.
    if backend.generation != generation {
        return;
    }
    let count = |index| {
        if let Some(active) = tables.active(index) {
            tables.add(match opens {
                true => &active.opened,
                false => &active.closed,
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

/// Whether a flow of this state is of the `FLOWS` tables and has not ended.
#[inline(always)]
pub(super) const fn is_open(state: u32) -> bool {
    state & flow_state::ESTABLISHED != 0 && !flow_state::is_closed(state)
}

/// Open connections of a slot, or of an [`crate::abi::Admission::counter`].
#[inline(always)]
pub(super) fn open<T: Tables>(tables: &T, index: u32) -> u32 {
    match tables.active(index) {
        Some(active) => active.open(tables.counted(index)),
        None => 0,
    }
}

/// Counts a flow that is about to be removed.
#[inline(always)]
pub(super) fn forget<A: Address, T: Tables>(tables: &T, flow: &Flow<A>) {
    tables.count_active(flow.slot, flow.generation, flow.state.get(), 0);
}
