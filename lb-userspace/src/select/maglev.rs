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

/// What the tables of one size, and of the same weights, have in common.
#[derive(Default)]
pub(super) struct Workshop {
    field: Field,
    /// The race of these weights for a table of `field`'s size.
    weights: Vec<u32>,
    race: Vec<u32>,
}

impl Workshop {
    /// Indices into `members`. `size` must be a prime.
    ///
    /// Maglev's algorithm (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
    /// Balancer", NSDI 2016, §3.4) with one difference. There, a member whose preferred entry is
    /// taken goes on until it finds a free one, within its turn, so the loss of one member shifts
    /// all later turns of the others. Here a race comes first, in which a member that is late for
    /// an entry loses its turn: most entries go to whoever wants them first, whatever the others
    /// do, and only what is left is shared out as in the paper. That halves the entries that move
    /// needlessly when a member leaves.
    pub(super) fn table(&mut self, members: &[Member], size: usize) -> Vec<u32> {
        let weights: Vec<u32> = members.iter().map(|m| m.weight).collect();
        let mut open = quotas(&weights, size);
        self.prepare(size, &weights);
        let mut preferences: Vec<Preference<'_>> = members
            .iter()
            .map(|m| Preference::of(m.address, &self.field))
            .collect();
        let mut table = vec![EMPTY; size];

        for i in &self.race {
            let member = *i as usize;
            let entry = &mut table[preferences[member].next()];
            if *entry == EMPTY && open[member] > 0 {
                *entry = *i;
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

    fn prepare(&mut self, size: usize, weights: &[u32]) {
        let is_other_size = self.field.size() != size;
        if is_other_size {
            self.field = Field::new(size);
        }
        if is_other_size || self.weights != weights {
            self.race = race(weights, size);
            self.weights = weights.to_vec();
        }
    }
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

/// A member's order of preference: a permutation of the entries, `scale × (start + k)⁻¹ + shift`
/// modulo the prime size for k = 0, 1, 2, … (the inverse of 0 being 0).
///
/// The paper's `start + k × skip` is a permutation too, but two members whose skips are alike then
/// meet again and again: for 1 set of backends in 100 the loss of one member moved three times the
/// usual part of the other flows. Inverses have no such kinship (Eichenauer and Lehn, "A non-linear
/// congruential pseudo random number generator", 1986).
pub(super) struct Preference<'t> {
    field: &'t Field,
    place: u32,
    scale: u64,
    shift: u64,
}

impl<'t> Preference<'t> {
    pub(super) fn of(address: SocketAddr, field: &'t Field) -> Self {
        let size = field.size() as u64;
        let hash = identity(address);
        Self {
            field,
            place: (hash % size) as u32,
            scale: spread(hash ^ 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1,
            shift: spread(hash ^ 0xc2b2_ae3d_27d4_eb4f) % size,
        }
    }

    #[inline]
    pub(super) fn next(&mut self) -> usize {
        let inverse = u64::from(self.field.inverses[self.place as usize]);
        self.place += 1;
        if self.place as usize == self.field.size() {
            self.place = 0;
        }
        self.field.reduce(self.scale * inverse + self.shift)
    }
}

/// The numbers modulo a prime: their multiplicative inverses, that of 0 being 0.
#[derive(Default)]
pub(super) struct Field {
    inverses: Vec<u32>,
    /// 2^64 / size, rounded down.
    reciprocal: u64,
}

impl Field {
    /// `size` must be a prime.
    pub(super) fn new(size: usize) -> Self {
        Self {
            inverses: inverses(size),
            reciprocal: (u128::from(u64::MAX) / size as u128) as u64,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.inverses.len()
    }

    /// `number % size`. Dividing would take most of the time of building a table; multiplying with
    /// the reciprocal gives a quotient that is at most one too small.
    #[inline]
    fn reduce(&self, number: u64) -> usize {
        let size = self.size() as u64;
        let quotient = ((u128::from(number) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = number - quotient * size;
        (if rest >= size { rest - size } else { rest }) as usize
    }
}

fn inverses(size: usize) -> Vec<u32> {
    let mut inverses: Vec<u32> = (0..size.min(2) as u32).collect();
    for number in inverses.len()..size {
        // size = q × number + r, so r⁻¹ × -q is the inverse of number.
        let quotient = (size / number) as u64;
        let inverse = u64::from(inverses[size % number]);
        inverses.push(((size as u64 - quotient) * inverse % size as u64) as u32);
    }
    inverses
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
