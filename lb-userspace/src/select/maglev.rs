use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Address, V4, V6},
    hash::spread,
};

use super::{
    Member,
    quota::quotas,
    schedule::{by_time, evenly},
};

const EMPTY: u32 = u32::MAX;

/// How long the race lasts: a part e^-5 of the entries, less than 1 %, is then still without claim.
const RACE: u64 = 5;

/// Unit of time in the race.
const TICKS: u64 = 1 << 43;

/// Indices into `members`.
///
/// Maglev's algorithm (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
/// Balancer", NSDI 2016, §3.4) with one difference. There, a member whose preferred entry is taken
/// goes on until it finds a free one, within its turn, so the loss of one member shifts all later
/// turns of the others. Here a race comes first, in which a member that is late for an entry loses
/// its turn: most entries go to whoever wants them first, whatever the others do, and only what is
/// left is shared out as in the paper. That halves the entries that move needlessly when a member
/// leaves.
pub(super) fn table(members: &[Member], size: usize) -> Vec<u32> {
    let weights: Vec<u32> = members.iter().map(|m| m.weight).collect();
    let mut open = quotas(&weights, size);
    let mut preferences: Vec<Preference> = members
        .iter()
        .map(|m| Preference::of(m.address, size as u32))
        .collect();
    let mut table = vec![EMPTY; size];

    for i in race(&weights, size) {
        let member = i as usize;
        let entry = &mut table[preferences[member].next()];
        if *entry == EMPTY && open[member] > 0 {
            *entry = i;
            open[member] -= 1;
        }
    }
    for i in evenly(&weights, &open) {
        let preference = &mut preferences[i as usize];
        let mut entry = preference.next();
        while table[entry] != EMPTY {
            entry = preference.next();
        }
        table[entry] = i;
    }
    table
}

/// Who claims when. A member claims its k-th entry (from 0) at time
/// (1/M + 1/(M-1) + … + 1/(M-k)) / weight: about -ln(1 - k/M) / weight, as if it claimed each entry
/// at an exponentially distributed time, so that the odds of being first are as the weights are.
/// In integers, because logarithms differ between platforms.
fn race(weights: &[u32], size: usize) -> Vec<u32> {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let end = RACE * TICKS / sum;
    let heaviest = weights.iter().copied().max().map_or(0, u64::from);
    let times: Vec<u64> = (1..=size as u64)
        .rev()
        .scan(0, |time, left| {
            *time += TICKS / left;
            Some(*time)
        })
        .take_while(|time| time / heaviest <= end)
        .collect();
    by_time(weights.iter().enumerate().flat_map(|(i, weight)| {
        let own = times.iter().map(|time| time / u64::from(*weight));
        own.take_while(|time| *time <= end)
            .map(move |time| (time, i))
    }))
}

/// A member's order of preference, every entry once: numbers below the next power of two, mixed by
/// a bijection of the member's own, without those beyond the table.
///
/// The paper's order, `at + k × skip` modulo a prime, is not mixed enough: where the skips of two
/// members happen to be nearly a small multiple of each other, the same two meet at one entry after
/// the other. Of 2000 removals of 1 of 10 members one then moved 2.9 % of the others' entries,
/// against 1.1 % at most with this order.
pub(super) struct Preference {
    count: u32,
    start: u32,
    /// Odd, so that multiplying by them modulo a power of two is a bijection.
    factors: [u32; 2],
    bits: u32,
    size: u32,
}

impl Preference {
    pub(super) fn of(address: SocketAddr, size: u32) -> Self {
        let hash = identity(address);
        let other = spread(hash ^ 0x9e37_79b9_7f4a_7c15);
        Self {
            count: 0,
            start: (hash >> 32) as u32,
            factors: [hash as u32 | 1, other as u32 | 1],
            bits: u32::BITS - (size - 1).leading_zeros(),
            size,
        }
    }

    pub(super) fn next(&mut self) -> usize {
        let mask = (1 << self.bits) - 1;
        loop {
            let mut entry = self.start.wrapping_add(self.count) & mask;
            self.count = self.count.wrapping_add(1);
            for factor in self.factors {
                entry = entry.wrapping_mul(factor) & mask;
                entry ^= entry >> self.bits.div_ceil(2);
            }
            if entry < self.size {
                return entry as usize;
            }
        }
    }
}

/// Hash of what a backend is on every node: its address and port. The constant is arbitrary, and
/// moves every flow when changed.
fn identity(address: SocketAddr) -> u64 {
    let mixed = match address.ip() {
        IpAddr::V4(ip) => V4::from(ip).mix(),
        IpAddr::V6(ip) => V6::from(ip).mix(),
    };
    spread(spread(mixed ^ 0x517c_c1b7_2722_0a95).wrapping_add(u64::from(address.port())))
}
