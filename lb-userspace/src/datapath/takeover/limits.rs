//! How much room the new maps have: as the configuration says, but never less than is in use.

use std::path::Path;

use anyhow::Result;
use lb_common::abi::map;
use tracing::warn;

use super::{CHUNK, open};
use crate::{
    datapath::{
        load,
        sys::Map,
        tables::{self, INNER_TABLES},
    },
    model::Limits,
};

/// One of the node's limits, as a map at `source` has it.
pub(super) struct Pinned<'a> {
    key: &'static str,
    limit: u32,
    /// How much of it is in use.
    used: Box<dyn Fn() -> Result<u32> + 'a>,
}

/// What counts as used of a map.
enum Used {
    Entries,
    /// All up to the last element that is not zero.
    Elements,
    /// All up to the last selection table.
    Tables,
}

/// Whether a limit stays at what it is pinned at, because what is in use would find no room.
pub(super) fn is_needed(wanted: u32, pinned: &Pinned<'_>) -> Result<bool> {
    let Pinned { key, limit, used } = pinned;
    if wanted >= *limit {
        return Ok(false);
    }
    let used = used()?;
    if used > wanted {
        warn!(
            "node.limits.{key}: {used} are in use, which is more than {wanted}: it stays at {limit} \
             until lbd starts with fewer"
        );
    }
    Ok(used > wanted)
}

/// The limits, those that `keeps` says as they are pinned.
pub(super) fn adjusted(
    limits: &Limits,
    source: &Path,
    keeps: impl Fn(u32, &Pinned<'_>) -> Result<bool>,
) -> Result<Limits> {
    let mut adjusted = limits.clone();
    // A limit, the map whose entries it gives, and how many each of it takes.
    let adjust = |limit: &mut u32, key, map: &str, share: u32, used: Used| -> Result<()> {
        let Some(map) = open(source, map)? else {
            return Ok(());
        };
        let pinned = Pinned {
            key,
            limit: map.info.max_entries / share,
            used: Box::new(move || {
                let used = match used {
                    Used::Entries => count(&map),
                    Used::Elements => highest(&map),
                    Used::Tables => highest_table(source),
                };
                Ok(used?.div_ceil(share))
            }),
        };
        if keeps(*limit, &pinned)? {
            *limit = pinned.limit;
        }
        Ok(())
    };
    let Limits {
        connections,
        handshakes,
        services,
        backends,
        sources,
        clients,
    } = &mut adjusted;
    for map in [map::FLOWS4, map::FLOWS6] {
        adjust(connections, "connections", map, 2, Used::Entries)?;
    }
    for map in [map::HANDSHAKES4, map::HANDSHAKES6] {
        adjust(handshakes, "handshakes", map, 2, Used::Entries)?;
    }
    for map in [map::SOURCE_LISTS4, map::SOURCE_LISTS6] {
        adjust(sources, "sources", map, 2, Used::Entries)?;
    }
    for map in [map::AFFINITY4, map::AFFINITY6] {
        adjust(clients, "clients", map, 1, Used::Entries)?;
    }
    adjust(services, "services", map::TABLES, 2, Used::Tables)?;
    for map in [map::SERVICES4, map::SERVICES6] {
        adjust(
            services,
            "services",
            map,
            load::LISTENS_PER_SERVICE,
            Used::Entries,
        )?;
    }
    adjust(backends, "backends", map::BACKENDS, 1, Used::Elements)?;
    Ok(adjusted)
}

fn count(map: &Map) -> Result<u32> {
    let mut count = 0;
    let key_size = map.info.key_size as usize;
    map.lookup_batch(CHUNK, |keys, _| {
        count += (keys.len() / key_size) as u32;
        Ok(())
    })?;
    Ok(count)
}

/// One more than the highest index whose element is not zero.
fn highest(map: &Map) -> Result<u32> {
    let mut highest = 0;
    let value_size = map.value_bytes();
    map.lookup_batch(CHUNK, |keys, values| {
        for (key, value) in keys
            .as_chunks()
            .0
            .iter()
            .zip(values.chunks_exact(value_size))
        {
            if value.iter().any(|byte| *byte != 0) {
                highest = highest.max(u32::from_ne_bytes(*key) + 1);
            }
        }
        Ok(())
    })?;
    Ok(highest)
}

/// One more than the highest table there is.
fn highest_table(source: &Path) -> Result<u32> {
    let pinned = tables::pinned(&source.join(INNER_TABLES))?;
    let highest = pinned.iter().map(|(table, _)| table + 1).max();
    Ok(highest.unwrap_or(0))
}
