//! Draws a backend from a service's table.

use super::Tables;
use crate::abi::{Address, FlowKey, Service, TABLE_HEADER, backend_state, policy};
use crate::hash;

/// Draws before giving up when drawn backends are not eligible. With half the table ineligible
/// (the time between a failure and the rebuilt table) all fail once in 65,536.
const DRAWS: u32 = 16;

/// Where in its service's table a new connection draws.
#[inline(always)]
pub(super) fn place<A: Address, T: Tables>(tables: &T, service: &Service, key: &FlowKey<A>) -> u32 {
    match service.policy {
        policy::ROUND_ROBIN => tables.cursor(service.id),
        policy::RANDOM => tables.random(),
        _ => hash::five_tuple(key) as u32,
    }
}

/// The slot of an eligible backend of the service of number `service`, whose selection table is
/// number `table`; `None` if none was found. Behind [`Tables::draw`], which keeps it apart from
/// what follows: the verifier would walk that anew for every round of the loop.
#[inline(always)]
pub fn draw<T: Tables>(tables: &T, table: u32, service: u32, mut place: u32) -> Option<u32> {
    let table = tables.table(table)?;
    let size = tables.table_entry(table, 0)?;
    if size == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let slot = tables.table_entry(table, TABLE_HEADER + place % size)?;
        if let Some(backend) = tables.backend(slot)
            && backend.state == backend_state::ACTIVE
            && backend.service == service
        {
            return Some(slot);
        }
        // Deterministic, so that every node draws the same substitute.
        place = hash::spread(place as u64 + 1) as u32;
    }
    None
}
