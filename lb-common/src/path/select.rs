//! Draws a backend from a service's table.

use super::{Tables, active};
use crate::abi::{Address, Backend, Drop, FlowKey, Service, TABLE_HEADER, backend_state, policy};
use crate::hash;

/// Draws in a round.
const DRAWS: u32 = 16;

/// Rounds before giving up when drawn backends are not eligible: at their limits, or failed, for the
/// time until the table is rebuilt. With nine tenths of the table ineligible all fail once in a thousand.
const ROUNDS: u32 = 4;

/// The slot of a backend for a new connection; with `by_client` the same for all of a client's.
#[inline(always)]
pub(super) fn choose<A: Address, T: Tables>(
    tables: &T,
    service: &Service,
    key: &FlowKey<A>,
    by_client: bool,
) -> Result<u32, Drop> {
    let mut place = place(tables, service, key, by_client);
    let mut result = Err(Drop::NoBackend);
    for _ in 0..ROUNDS {
        result = tables.draw(service.table, service.id, place);
        if result.is_ok() {
            break;
        }
        place = hash::spread(place as u64 ^ 1 << 40) as u32;
    }
    result
}

/// Where in its service's table a new connection draws.
#[inline(always)]
fn place<A: Address, T: Tables>(
    tables: &T,
    service: &Service,
    key: &FlowKey<A>,
    by_client: bool,
) -> u32 {
    match service.policy {
        policy::ROUND_ROBIN => tables.cursor(service.id),
        policy::RANDOM => tables.random(),
        _ if by_client => hash::client(key.src) as u32,
        _ => hash::five_tuple(key) as u32,
    }
}

/// The slot of an eligible backend of the service of number `service`, whose selection table is
/// number `table`. Behind [`Tables::draw`], which keeps it apart from what follows: the verifier
/// would walk that anew for every round of the loop.
///
/// # Errors
/// None was found; it says whether any was left out for having as many connections as it may.
#[inline(always)]
pub fn draw<T: Tables>(tables: &T, table: u32, service: u32, mut place: u32) -> Result<u32, Drop> {
    let mut none = Drop::NoBackend;
    let Some(table) = tables.table(table) else {
        return Err(none);
    };
    let size = tables.table_entry(table, 0).unwrap_or(0);
    if size == 0 {
        return Err(none);
    }
    for _ in 0..DRAWS {
        let Some(slot) = tables.table_entry(table, TABLE_HEADER + place % size) else {
            return Err(none);
        };
        if let Some(backend) = tables.backend(slot)
            && backend.state == backend_state::ACTIVE
            && backend.service == service
        {
            if !is_at_limit(tables, slot, backend) {
                return Ok(slot);
            }
            none = Drop::ConnectionLimit;
        }
        // Deterministic, so that every node draws the same substitute.
        place = hash::spread(place as u64 + 1) as u32;
    }
    Err(none)
}

/// Whether a backend has as many connections as it may.
#[inline(always)]
pub(super) fn is_at_limit<T: Tables>(tables: &T, slot: u32, backend: &Backend) -> bool {
    let limit = backend.max_connections;
    limit != 0 && active::open(tables, slot) >= limit
}
