use crate::model::Policy;

/// Sizes of tables that apportion by rounding, all prime. Far apart, because a step from one to
/// the next moves nearly every flow that has no entry in the flow tables: services of up to 21
/// backends of like weight never take one. An entry is 4 bytes, so a
/// table takes 32 KiB, 128 KiB or 512 KiB of kernel memory.
const LADDER: [usize; 3] = [8191, 32_749, 131_071];

/// Entries per backend that a size should offer. With them, removing one of N backends moves 0.7 %
/// of the others' entries, 1.2 % in the worst of a hundred cases (19 to 21 backends with 8191
/// entries, 1200 removals). Four times the entries halve that.
const PER_BACKEND: u64 = 384;

/// Entries per backend of an exact schedule, where the share needs no room for rounding.
const PER_BACKEND_EXACT: u64 = 100;

/// Entries of the lightest backend. Its quota is half an entry off at most, i.e. 1.6 %, and a little
/// for what the others' rounding leaves: weights are to be accurate to 2 %.
const LIGHTEST: u64 = 32;

/// Longest exact schedule; beyond it weights are rounded to a size of [`LADDER`].
const LONGEST_EXACT: u64 = 16_384;

/// Number of entries for backends of these weights, those of weight 0 included.
///
/// The lightest backend gets at least 32 entries as long as 131,071 entries suffice for that.
pub fn table_size(policy: Policy, weights: &[u32]) -> usize {
    if policy == Policy::RoundRobin
        && let Some(size) = exact(weights)
    {
        return size;
    }
    let weighted = || weights.iter().filter(|w| **w > 0).map(|w| u64::from(*w));
    let lightest = weighted().min().unwrap_or(1);
    let sum: u64 = weighted().sum();
    let need = (PER_BACKEND * weights.len() as u64).max((LIGHTEST * sum).div_ceil(lightest));
    let fits = LADDER.into_iter().find(|size| *size as u64 >= need);
    fits.unwrap_or(LADDER[LADDER.len() - 1])
}

/// A multiple of the sum of the weights in lowest terms: the cursor then meets every backend
/// exactly in proportion on each pass, which no prime allows. A prime is needed for maglev's
/// permutations only.
fn exact(weights: &[u32]) -> Option<usize> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b));
    if divisor == 0 {
        return None;
    }
    let cycle: u64 = weights.iter().map(|w| u64::from(w / divisor)).sum();
    let size = (PER_BACKEND_EXACT * weights.len() as u64).next_multiple_of(cycle);
    (size <= LONGEST_EXACT).then_some(size as usize)
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
