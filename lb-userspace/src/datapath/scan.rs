//! The pass over the flow tables: counts, and removes what [`super::flows`] says is over.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use lb_common::abi::{Address, Flow, FlowKey, Pod};

use super::{
    FlowScan, MapFill,
    flows::{self, Age, Verdict},
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
    pub(super) fn scan(&self, maps: &Maps, age: Age) -> Result<FlowScan> {
        let mut scan = FlowScan::default();
        family(&maps.flows4, &age, &mut scan)?;
        family(&maps.flows6, &age, &mut scan)?;
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

fn family<A: Address>(map: &Hash<FlowKey<A>, Flow<A>>, age: &Age, scan: &mut FlowScan) -> Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let mut left = 0;
    map.for_each_chunk(|chunk| {
        for (key, flow) in chunk {
            if flows::is_idle(age, key.protocol(), &flow) {
                if let Some(removed) = remove_if_over(map, age, &key, &flow)? {
                    scan.aged += removed;
                    continue;
                }
            }
            left += 1;
            let state = flow.state.get();
            if flows::is_connection(state) {
                *scan.present.entry(flow.slot).or_default() += 1;
                if flows::is_active(state) {
                    *scan.active.entry(flow.slot).or_default() += 1;
                }
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
    age: &Age,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Result<Option<u64>>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let other_key = flow.opposite(key.protocol());
    let other = map.get(&other_key)?;
    // The batch is some microseconds old: a packet may have come since.
    let Some(fresh) = map.get(key)? else {
        return Ok(Some(0));
    };
    Ok(match flows::judge(age, key, &fresh, other.as_ref()) {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lb_common::abi::{Be16, NextHop, V4, flow_state, protocol};

    use super::*;
    use crate::{
        datapath::{OBJECT, flows::Now, load, testing::isolated},
        model::{Limits, Timeouts},
    };

    const HZ: u32 = 100;
    const SERVICE: V4 = V4(0x0a0a_0a0a);

    fn with_maps(test: impl FnOnce(&Maps) + Send) {
        isolated(|bpffs| {
            let limits = Limits {
                connections: 100_000,
                handshakes: 10,
                services: 10,
                backends: 10,
            };
            load::load_maps(OBJECT, bpffs, &limits, None).unwrap();
            test(&Maps::open(bpffs).unwrap());
        });
    }

    /// Enters both directions of a TCP connection of client number `client`; returns their keys.
    fn connect(
        maps: &Maps,
        client: u32,
        slot: u32,
        (state, last_seen, answered): (u32, u32, u32),
    ) -> (FlowKey<V4>, FlowKey<V4>) {
        let port = Be16::new;
        let key = FlowKey::new(V4(client), port(9), SERVICE, port(80), protocol::TCP);
        let flow = |src, src_port, dst, dst_port, last_seen, direction| Flow {
            src,
            dst,
            src_port,
            dst_port,
            address_delta: 0,
            port_delta: 0,
            slot,
            generation: 1,
            next_hop: Cell::new(NextHop::default()),
            last_seen: Cell::new(last_seen * HZ),
            state: Cell::new(state | direction | flow_state::ESTABLISHED),
            created: 0,
            expected: Cell::new(0),
        };
        let forward = flow(V4(client), port(9), V4(7), port(8080), last_seen, 0);
        let reverse = flow(
            SERVICE,
            port(80),
            V4(client),
            port(9),
            answered,
            flow_state::REVERSE,
        );
        let opposite = forward.opposite(protocol::TCP);
        maps.flows4.set(&key, &forward).unwrap();
        maps.flows4.set(&opposite, &reverse).unwrap();
        (key, opposite)
    }

    fn age(second: u32) -> Age {
        let now = Now {
            jiffies: second * HZ,
            hz: HZ,
        };
        Age::new(now, &Timeouts::default())
    }

    #[test]
    fn connections_are_counted_and_aged() {
        with_maps(|maps| {
            let reset = flow_state::RESET;
            connect(maps, 1, 1, (0, 100, 100));
            connect(maps, 2, 1, (reset, 7530, 7535));
            connect(maps, 3, 2, (0, 100, 7000));
            connect(maps, 4, 2, (reset, 7000, 7530));
            let (orphan, lost) = connect(maps, 5, 2, (0, 50, 50));
            maps.flows4.remove(&orphan).unwrap();
            let scanner = Scanner::default();

            let scan = scanner.scan(maps, age(7540)).unwrap();
            // Client 1 went (7440 s), so did 4 (10 s after its reset) and the half of 5.
            assert_eq!(scan.aged, 5);
            assert_eq!(scan.present, [(1, 1), (2, 1)].into());
            assert_eq!(scan.active, [(2, 1)].into());
            assert!(maps.flows4.get(&lost).unwrap().is_none());
            let fill = scan.fill.iter().find(|f| f.map == "FLOWS4").unwrap();
            assert_eq!((fill.entries, fill.capacity), (4, 200_000));
            assert_eq!(maps.flows4.count().unwrap(), 4);

            let scan = scanner.scan(maps, age(7540)).unwrap();
            assert_eq!((scan.aged, scan.fill.len()), (0, 6));
        });
    }

    #[test]
    fn many_chunks_are_seen_once() {
        with_maps(|maps| {
            for client in 0..10_000 {
                connect(maps, client, client % 3, (0, client, client));
            }
            let scanner = Scanner::default();
            let scan = scanner.scan(maps, age(0)).unwrap();
            assert_eq!(scan.active.values().sum::<u64>(), 10_000);
            let scan = scanner.scan(maps, age(7440 + 4999)).unwrap();
            assert_eq!((scan.aged, scan.present.values().sum()), (10_000, 5000));
        });
    }
}
