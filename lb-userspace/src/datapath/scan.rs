//! The pass over the flow tables: counts, and removes what [`super::flows`] says is over.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use lb_common::abi::{Active, Address, Flow, FlowKey, Pod, backend_state, protocol};

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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = maps.active.all()?;
        let mut scan = FlowScan::default();
        let room4 = family(&maps.flows4, &age, &mut scan)?;
        let room6 = family(&maps.flows6, &age, &mut scan)?;
        scan.udp_room = room4.min(room6);
        correct(maps, &before, &scan)?;
        if state.passes.is_multiple_of(COUNT_EVERY) {
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

/// Makes up for what the packet path's counts miss or have too much, now that the true numbers are
/// known; `before` is what it had counted when the scan began. Services are counted whether or not
/// they have a limit: so one that is set holds for the connections that are there, and none of a
/// service that is gone is left to the next owner of its number.
fn correct(maps: &Maps, before: &[Active], scan: &FlowScan) -> Result<()> {
    let backends = maps.backends.all()?;
    let mut truth = vec![0_u32; before.len()];
    for (slot, active) in &scan.active {
        let Some(backend) = backends.get(*slot as usize) else {
            continue;
        };
        // Connections whose backend's time to drain is over have ended, and only wait to age.
        let counter = match backend.state {
            backend_state::CLOSED => None,
            _ => Some(maps.counter(backend.service)),
        };
        for index in [Some(*slot), counter].into_iter().flatten() {
            if let Some(sum) = truth.get_mut(index as usize) {
                *sum += *active as u32;
            }
        }
    }
    let (after, counted) = (maps.active.all()?, maps.counted.all()?);
    let counts = before.iter().zip(&after).zip(counted);
    for ((index, active), ((before, after), now)) in (0..).zip(truth).zip(counts) {
        let right = correction(active, pair(before), pair(after), now);
        if right != now {
            maps.counted.set(index, &right)?;
        }
    }
    Ok(())
}

fn pair(active: &Active) -> [u32; 2] {
    [active.opened.get(), active.closed.get()]
}

/// What is to be added to `opened - closed`, given what is added now. The scan saw `active` open
/// connections some time between `before` and `after` (each opened and closed); it may or may not
/// have seen those opened or closed meanwhile, so all that is known is a range.
fn correction(active: u32, before: [u32; 2], after: [u32; 2], now: u32) -> u32 {
    let least = active.wrapping_sub(after[0]).wrapping_add(before[1]);
    let most = active.wrapping_sub(before[0]).wrapping_add(after[1]);
    // Counts wrap, so distances are compared.
    if (now.wrapping_sub(least) as i32) < 0 {
        least
    } else if (now.wrapping_sub(most) as i32) > 0 {
        most
    } else {
        now
    }
}

/// Returns for how many more UDP flows there is room.
fn family<A: Address>(
    map: &Hash<FlowKey<A>, Flow<A>>,
    age: &Age,
    scan: &mut FlowScan,
) -> Result<u64>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let (mut left, mut udp) = (0, 0);
    map.for_each_chunk(|chunk| {
        for (key, flow) in chunk {
            if flows::is_idle(age, key.protocol(), &flow)
                && let Some(removed) = remove_if_over(map, age, &key, &flow)?
            {
                scan.aged += removed;
                continue;
            }
            left += 1;
            udp += u64::from(key.protocol() == protocol::UDP);
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
    Ok(flows::udp_room(map.capacity().into(), udp))
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

    use lb_common::abi::{Backend, Be16, NextHop, V4, flow_state};

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
                ..Limits::default()
            };
            let mut ebpf = load::load_maps(OBJECT, bpffs, &limits, None, None).unwrap();
            let tables = load::tables(&mut ebpf).unwrap();
            test(&Maps::open(bpffs, tables).unwrap());
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
    fn udp_has_room_for_what_is_left_of_its_half() {
        with_maps(|maps| {
            let scanner = Scanner::default();
            let room = |second| scanner.scan(maps, age(second)).unwrap().udp_room;
            connect(maps, 1, 1, (0, 100, 100));
            assert_eq!(room(100), 50_000);
            for (number, key) in <[_; 2]>::from(connect(maps, 2, 1, (0, 100, 100)))
                .into_iter()
                .enumerate()
            {
                let flow = maps.flows4.get(&key).unwrap().unwrap();
                let ports = (key.src_port, key.dst_port);
                let udp = FlowKey::new(key.src, ports.0, key.dst, ports.1, protocol::UDP);
                maps.flows4.set(&udp, &flow).unwrap();
                assert_eq!(room(100), 50_000 - 1, "{number}");
            }
            // They are too old, the others are not.
            assert_eq!(room(300), 50_000);
            assert_eq!(maps.flows4.count().unwrap(), 4);
        });
    }

    #[test]
    fn a_count_is_corrected_as_far_as_is_known() {
        // Nothing happened meanwhile: what was seen is the truth.
        assert_eq!(correction(5, [9, 4], [9, 4], 0), 0);
        assert_eq!(correction(5, [9, 3], [9, 3], 0), u32::MAX);
        assert_eq!(correction(7, [9, 4], [9, 4], 0), 2);
        // Two were opened and one closed during the scan, which may have seen any of them.
        for seen in 4..=7 {
            assert_eq!(correction(seen, [9, 4], [11, 5], 0), 0, "{seen}");
        }
        assert_eq!(correction(3, [9, 4], [11, 5], 0), u32::MAX);
        assert_eq!(correction(8, [9, 4], [11, 5], 0), 1);
        // The counts wrapped.
        assert_eq!(correction(6, [u32::MAX, 4], [1, 4], 8), 9);
    }

    #[test]
    fn scans_make_up_for_what_the_path_did_not_count() {
        with_maps(|maps| {
            let open = |slot| {
                let active = maps.active.get(slot).unwrap();
                active.open(maps.counted.get(slot).unwrap())
            };
            for client in 0..5 {
                connect(maps, client, 3, (0, 7000, 7000));
            }
            let scanner = Scanner::default();
            scanner.scan(maps, age(7100)).unwrap();
            assert_eq!(open(3), 5);
            // Aged by the daemon, which the path does not see.
            scanner.scan(maps, age(7000 + 7440)).unwrap();
            assert_eq!(open(3), 0);
        });
    }

    #[test]
    fn what_a_drain_has_ended_counts_for_no_service() {
        with_maps(|maps| {
            let counter = maps.counter(1);
            let open = |index| {
                let active = maps.active.get(index).unwrap();
                active.open(maps.counted.get(index).unwrap())
            };
            let set = |state| {
                let backend = Backend {
                    generation: 1,
                    service: 1,
                    state,
                    ..Backend::default()
                };
                maps.backends.set(3, &backend).unwrap();
            };
            set(backend_state::DRAINING);
            for client in 0..5 {
                connect(maps, client, 3, (0, 7000, 7000));
            }
            let scanner = Scanner::default();
            scanner.scan(maps, age(7100)).unwrap();
            assert_eq!(open(counter), 5);
            set(backend_state::CLOSED);
            scanner.scan(maps, age(7100)).unwrap();
            assert_eq!((open(3), open(counter)), (5, 0));
        });
    }

    #[test]
    fn what_nobody_has_any_more_is_counted_for_nobody() {
        with_maps(|maps| {
            // A daemon that died between removing flows and correcting the counts, and a service
            // whose last connections ended after its limit.
            let leftover = Active::default();
            leftover.opened.set(5);
            let service = maps.counter(7);
            for index in [4, service] {
                maps.active.set(index, &leftover).unwrap();
            }
            Scanner::default().scan(maps, age(7100)).unwrap();
            for index in [4, service] {
                let counted = maps.counted.get(index).unwrap();
                assert_eq!(leftover.open(counted), 0, "{index}");
            }
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
