//! Connections that began with former tables: their entries move here as their packets come by.
//!
//! When tables are replaced by others (of another size or layout), the programs that use the new ones
//! begin with empty flow tables, and nobody writes to the former any more. What is not found here is
//! looked for there, until the daemon has moved the rest.

use super::{FamilyTables, InsertError, Step, Verdict};
use crate::abi::{Address, Flow, FlowKey, flow_state};

/// What [`FamilyTables::recall`] and [`FamilyTables::is_whole`] work on. Too much for a BPF stack.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Recalled<A> {
    pub key: FlowKey<A>,
    /// Tuple of the packets that answer those of `key`.
    pub opposite: FlowKey<A>,
    pub flow: Flow<A>,
}

/// Looks for the flow of a packet that [`super::slow`] did not find. Another [`Step::Recall`] after
/// [`Step::Slow`] means that it is gone again, and the packet passes.
#[inline(always)]
pub fn recall<A: Address, T: FamilyTables<A>>(tables: &T) -> Step {
    const PASS: Step = Step::Done(Verdict::Pass);
    let Some(work) = tables.work() else {
        return PASS;
    };
    if tables.recall(&work.key) {
        return Step::Slow;
    }
    if work.packet.departs() {
        return PASS;
    }
    Step::Admit
}

/// Moves the entry of [`Recalled::key`] and that of the other direction. Behind
/// [`FamilyTables::recall`].
#[inline(always)]
pub fn bring<A: Address, T: FamilyTables<A>>(tables: &T) -> bool {
    let Some(Recalled {
        key,
        opposite,
        flow,
    }) = tables.recalled()
    else {
        return false;
    };
    if !bring_one(tables, key, flow) {
        // Another CPU may have been first.
        return tables.flow(key).is_some() || tables.handshake(key).is_some();
    }
    if flow.state.get() & flow_state::DIRECT == 0 {
        *opposite = flow.opposite(key.protocol());
        bring_one(tables, opposite, flow);
    }
    true
}

#[inline(always)]
fn bring_one<A: Address, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    flow: &mut Flow<A>,
) -> bool {
    // Entered here before it is removed there: on whatever CPU its next packet is, it finds the one
    // entry or the other.
    if tables.former_flow(key, flow) {
        if tables.flow(key).is_none() && tables.insert_flow(key, flow) == Err(InsertError::Full) {
            return false;
        }
        tables.remove_former_flow(key);
        return true;
    }
    if tables.former_handshake(key, flow) {
        // There already, or without room, which is the same to its next packet.
        let _ = tables.insert_handshake(key, flow, false);
        tables.remove_former_handshake(key);
        return true;
    }
    false
}
