use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// Shares `entries` out by weight, by the method of Webster and Sainte-Laguë: as if every weight
/// were divided by the same number and rounded to the nearest. So the share of a light weight is
/// not off by more than half an entry in proportion, which the method of largest remainders does
/// not promise. A weight so small that its share is less than half an entry still gets one. Equal
/// claims favour the earlier. Weights must not be 0, nor more than the entries.
pub(super) fn quotas(weights: &[u32], entries: usize) -> Vec<u32> {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let exact = |weight: u32| entries as u64 * u64::from(weight);
    let mut quotas: Vec<u32> = weights
        .iter()
        .map(|w| ((2 * exact(*w) + sum) / (2 * sum)).max(1) as u32)
        .collect();
    let given: usize = quotas.iter().map(|quota| *quota as usize).sum();
    let claim = |i: usize, quota: u32| Claim {
        weight: weights[i],
        halves: 2 * quota - 1,
        place: Reverse(i),
    };
    if given < entries {
        let next = quotas
            .iter()
            .enumerate()
            .map(|(i, quota)| claim(i, quota + 1));
        let mut next: BinaryHeap<Claim> = next.collect();
        for _ in given..entries {
            if let Some(Claim { place, .. }) = next.pop() {
                quotas[place.0] += 1;
                next.push(claim(place.0, quotas[place.0] + 1));
            }
        }
    } else {
        let several = quotas.iter().enumerate().filter(|(_, quota)| **quota > 1);
        let last = several.map(|(i, quota)| Reverse(claim(i, *quota)));
        let mut last: BinaryHeap<Reverse<Claim>> = last.collect();
        for _ in entries..given {
            if let Some(Reverse(Claim { place, .. })) = last.pop() {
                quotas[place.0] -= 1;
                if quotas[place.0] > 1 {
                    last.push(Reverse(claim(place.0, quotas[place.0])));
                }
            }
        }
    }
    quotas
}

/// A weight's claim to its n-th entry: the weight by n - ½. The greatest come first.
#[derive(PartialEq, Eq)]
struct Claim {
    weight: u32,
    /// 2n - 1.
    halves: u32,
    place: Reverse<usize>,
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u64::from(a.weight) * u64::from(b.halves);
        cross(self, other)
            .cmp(&cross(other, self))
            .then(self.place.cmp(&other.place))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
