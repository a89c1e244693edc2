use super::{Member, quota::quotas};

/// Bits of a turn's key that hold the member; the time stands above them.
const MEMBER_BITS: u32 = 18;

/// Indices into `members`, interleaved so that any window of the table is nearly in proportion.
pub(super) fn table(members: &[Member], size: usize) -> Vec<u32> {
    let weights: Vec<u32> = members.iter().map(|m| m.weight).collect();
    let quotas = quotas(&weights, size);
    evenly(&quotas, &quotas)
}

/// Each index `counts[i]` times, its j-th turn at time (j + ½) / `rates[i]`.
///
/// The order between two indices depends on their own rates only, so that one more or one less
/// leaves the others' order as it is.
pub(super) fn evenly(rates: &[u32], counts: &[u32]) -> Vec<u32> {
    let time = |i: usize, turn: u32| ((2 * u64::from(turn) + 1) << 27) / u64::from(rates[i]).max(1);
    let turns = |i: usize| (0..counts[i]).map(move |turn| time(i, turn));
    by_time((0..counts.len()).flat_map(|i| turns(i).map(move |time| (time, i))))
}

/// The indices of (time, index) pairs in order of time; at equal times the lower one first. Times
/// are below 2^46.
pub(super) fn by_time(turns: impl Iterator<Item = (u64, usize)>) -> Vec<u32> {
    // One word per turn sorts twice as fast as a pair.
    let keys = turns.map(|(time, i)| (time << MEMBER_BITS) | i as u64);
    let member = |key: u64| (key & ((1 << MEMBER_BITS) - 1)) as u32;
    sorted(keys.collect()).into_iter().map(member).collect()
}

/// Sorts numbers that lie about as densely everywhere, as turns do: dealt out to as many buckets
/// as there are numbers, few of them share one. Takes a third of the time of a general sort.
fn sorted(keys: Vec<u64>) -> Vec<u64> {
    let highest = keys.iter().copied().max().unwrap_or_default();
    let bits = usize::BITS - keys.len().leading_zeros();
    let shift = (u64::BITS - highest.leading_zeros()).saturating_sub(bits);
    let mut ends = vec![0u32; (highest >> shift) as usize + 2];
    for key in &keys {
        ends[(key >> shift) as usize + 1] += 1;
    }
    for bucket in 1..ends.len() {
        ends[bucket] += ends[bucket - 1];
    }
    let mut dealt = vec![0; keys.len()];
    for key in keys {
        let end = &mut ends[(key >> shift) as usize];
        dealt[*end as usize] = key;
        *end += 1;
    }
    // By now each stands where the next bucket begins.
    let mut begin = 0;
    for end in &ends[..ends.len() - 1] {
        let end = *end as usize;
        if end - begin > 1 {
            dealt[begin..end].sort_unstable();
        }
        begin = end;
    }
    dealt
}
