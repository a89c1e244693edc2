//! The pass over the flow tables: counts, and removes what [`super::flows`] says is over.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use lb_common::abi::{Address, Flow, FlowKey, Pod};

use super::{
    FlowScan, MapFill,
    flows::{self, Now, Verdict},
    maps::{Hash, Maps},
};

/// Maps other than the flow tables are walked for their number of entries in one of so many passes.
const COUNT_EVERY: u64 = 10;

/// Remembers the counts of the passes that skip them.
#[derive(Default)]
pub(super) struct Scanner {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    passes: u64,
    counted: Vec<MapFill>,
}

impl Scanner {
    /// Counts connections that were answered. Entries of connections that were not are left out of
    /// `present`: they leave their map by themselves, and one that outlives its slot is refused by
    /// its generation.
    pub(super) fn scan(&self, maps: &Maps, now: Now) -> Result<FlowScan> {
        let mut scan = FlowScan::default();
        family(&maps.flows4, now, &mut scan)?;
        family(&maps.flows6, now, &mut scan)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passes % COUNT_EVERY == 0 {
            state.counted = vec![
                fill(&maps.services4, maps.services4.count()?),
                fill(&maps.services6, maps.services6.count()?),
                fill(&maps.handshakes4, maps.handshakes4.count()?),
                fill(&maps.handshakes6, maps.handshakes6.count()?),
            ];
        }
        state.passes += 1;
        scan.fill.extend(&state.counted);
        Ok(scan)
    }
}

fn family<A: Address>(map: &Hash<FlowKey<A>, Flow<A>>, now: Now, scan: &mut FlowScan) -> Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let mut left = 0;
    map.for_each_chunk(|chunk| {
        for (key, flow) in chunk {
            if flows::is_idle(now, key.protocol, &flow) {
                if let Some(removed) = remove_if_over(map, now, &key, &flow)? {
                    scan.aged += removed;
                    continue;
                }
            }
            left += 1;
            let state = flow.state.get();
            if flows::is_connection(state) {
                *scan.present.entry(flow.slot).or_default() += 1;
                *scan.active.entry(flow.slot).or_default() += u64::from(flows::is_active(state));
            }
        }
        Ok(())
    })?;
    scan.fill.push(fill(map, left));
    Ok(())
}

/// `None` if the entry stays, else how many this call removed: none if it went with its opposite.
fn remove_if_over<A: Address>(
    map: &Hash<FlowKey<A>, Flow<A>>,
    now: Now,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Result<Option<u64>>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let other_key = flow.opposite(key.protocol);
    let other = map.get(&other_key)?;
    // The batch is some microseconds old: a packet may have come since.
    let Some(fresh) = map.get(key)? else {
        return Ok(Some(0));
    };
    Ok(match flows::judge(now, key, &fresh, other.as_ref()) {
        Verdict::Keep => None,
        Verdict::Remove => Some(u64::from(map.remove(key)?)),
        Verdict::RemovePair => {
            Some(u64::from(map.remove(key)?) + u64::from(map.remove(&other_key)?))
        }
    })
}

fn fill<K: Pod, V: Pod>(map: &Hash<K, V>, entries: u64) -> MapFill {
    MapFill {
        map: map.name(),
        entries,
        capacity: map.capacity().into(),
    }
}
