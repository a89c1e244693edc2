//! Draws a backend from a service's table.

use super::Tables;
use crate::abi::{Address, Backend, FlowKey, Service, TABLE_HEADER, backend_state, policy};
use crate::hash;

/// Draws before giving up when drawn backends are not eligible. With half the table ineligible
/// (the time between a failure and the rebuilt table) all fail once in 65,536.
const DRAWS: u32 = 16;

/// The slot and backend of a new connection; `None` if no eligible one was found.
#[inline(always)]
pub(super) fn draw<'t, A: Address, T: Tables>(
    tables: &'t T,
    service: &Service,
    key: &FlowKey<A>,
) -> Option<(u32, &'t Backend)> {
    let table = tables.table(service.table)?;
    let size = tables.table_entry(table, 0)?;
    if size == 0 {
        return None;
    }
    let mut place = match service.policy {
        policy::ROUND_ROBIN => tables.cursor(service.id),
        policy::RANDOM => tables.random(),
        _ => hash::five_tuple(key) as u32,
    };
    for _ in 0..DRAWS {
        let slot = tables.table_entry(table, TABLE_HEADER + place % size)?;
        if let Some(backend) = tables.backend(slot)
            && backend.state == backend_state::ACTIVE
            && backend.service == service.id
        {
            return Some((slot, backend));
        }
        // Deterministic, so that every node draws the same substitute.
        place = hash::spread(place as u64 + 1) as u32;
    }
    None
}
