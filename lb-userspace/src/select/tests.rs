use std::time::Instant;

use proptest::prelude::*;

use super::{
    maglev::{Field, Preference},
    quota::quotas,
    *,
};

fn build_sized(policy: Policy, members: &[Member], size: usize) -> Vec<u32> {
    Builder::default().build_sized(policy, members, size)
}

fn build(policy: Policy, members: &[Member]) -> Vec<u32> {
    let weights: Vec<u32> = members.iter().map(|m| m.weight).collect();
    build_sized(policy, members, table_size(policy, &weights))
}

fn member(i: u32, weight: u32) -> Member {
    let [_, b, c, d] = i.to_be_bytes();
    let address = SocketAddr::from(([10, b, c, d], 8080));
    Member {
        address,
        slot: i,
        weight,
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    (1..).zip(weights).map(|(i, w)| member(i * 7, *w)).collect()
}

fn count(table: &[u32], slot: u32) -> usize {
    table.iter().filter(|s| **s == slot).count()
}

fn moved(before: &[u32], after: &[u32]) -> f64 {
    assert_eq!(before.len(), after.len());
    let moved = before.iter().zip(after).filter(|(a, b)| a != b).count();
    moved as f64 / before.len() as f64
}

/// Share of the entries that move needlessly when `gone` leaves.
fn disruption(members: &[Member], whole: &[u32], gone: &Member) -> f64 {
    let left: Vec<Member> = members
        .iter()
        .copied()
        .filter(|m| m.slot != gone.slot)
        .collect();
    let after = build_sized(Policy::Maglev, &left, whole.len());
    moved(whole, &after) - count(whole, gone.slot) as f64 / whole.len() as f64
}

#[test]
fn preferences_visit_every_entry_once() {
    for size in [2, 3, 5, 7, 8191] {
        let field = Field::new(size);
        for i in 1..20 {
            let mut preference = Preference::of(member(i, 1).address, &field);
            let seen: std::collections::BTreeSet<_> =
                (0..size).map(|_| preference.next()).collect();
            assert_eq!(seen.len(), size);
        }
    }
}

/// Backends on which the paper's linear permutations moved 1.9 % of the other flows.
#[test]
fn kindred_addresses_are_disrupted_no_more_than_others() {
    let members: Vec<Member> = (1..=10)
        .map(|i| Member {
            address: SocketAddr::from(([0xfd00, 1, i, 0, 0, 0, 0, 2], 7000)),
            slot: i.into(),
            weight: 1,
        })
        .collect();
    let whole = build(Policy::Maglev, &members);
    for gone in &members {
        let extra = disruption(&members, &whole, gone);
        assert!(extra <= 0.01, "without {}: {extra}", gone.address);
    }
}

/// The same table found by looking at everything at every step.
fn naive_maglev(members: &[Member], size: usize) -> Vec<u32> {
    let mut members = members.to_vec();
    members.sort_by_key(|m| m.address);
    let weights: Vec<u64> = members.iter().map(|m| m.weight.into()).collect();
    let quotas = quotas(&members.iter().map(|m| m.weight).collect::<Vec<_>>(), size);
    let field = Field::new(size);
    let mut preferences: Vec<Preference<'_>> = members
        .iter()
        .map(|m| Preference::of(m.address, &field))
        .collect();
    let mut table: Vec<Option<usize>> = vec![None; size];
    let holds = |table: &[Option<usize>], i| table.iter().filter(|e| **e == Some(i)).count() as u32;

    let end = 5 * (1u64 << 43) / weights.iter().sum::<u64>();
    let claim = |i: usize, turn: u64| {
        let time: u64 = (0..=turn).map(|k| (1u64 << 43) / (size as u64 - k)).sum();
        (time / weights[i], i)
    };
    let mut turns = vec![0; members.len()];
    while let Some((_, i)) = (0..members.len())
        .filter(|i| turns[*i] < size as u64)
        .map(|i| claim(i, turns[i]))
        .filter(|(time, _)| *time <= end)
        .min()
    {
        turns[i] += 1;
        let entry = preferences[i].next();
        if table[entry].is_none() && holds(&table, i) < quotas[i] {
            table[entry] = Some(i);
        }
    }

    let mut turns = vec![0; members.len()];
    while let Some(i) = (0..members.len())
        .filter(|i| holds(&table, *i) < quotas[*i])
        .reduce(|a, b| {
            let time = |i: usize, other: usize| (2 * turns[i] + 1) * weights[other];
            if time(b, a) < time(a, b) { b } else { a }
        })
    {
        turns[i] += 1;
        let entry = loop {
            let entry = preferences[i].next();
            if table[entry].is_none() {
                break entry;
            }
        };
        table[entry] = Some(i);
    }
    table
        .into_iter()
        .map(|e| members[e.unwrap()].slot)
        .collect()
}

#[test]
fn no_weight_no_table() {
    for policy in [Policy::Maglev, Policy::RoundRobin, Policy::Random] {
        assert!(build(policy, &[]).is_empty());
        assert!(build(policy, &[member(1, 0)]).is_empty());
    }
}

#[test]
fn sizes_are_prime_except_exact_schedules() {
    let is_prime = |n: usize| {
        (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    for weights in [
        vec![1],
        vec![100; 31],
        vec![100; 32],
        vec![100; 200],
        vec![1, 65_535],
        vec![3; 9999],
    ] {
        for policy in [Policy::Maglev, Policy::Random] {
            let size = table_size(policy, &weights);
            assert!(is_prime(size) && size <= 131_071, "{size}");
        }
    }
    assert_eq!(table_size(Policy::RoundRobin, &[50, 30, 20]), 300);
    let one_to_twenty: Vec<u32> = (1..=20).collect();
    assert_eq!(table_size(Policy::Maglev, &one_to_twenty), 8191);
    assert!(is_prime(table_size(
        Policy::RoundRobin,
        &[65_535, 65_534, 1]
    )));
}

#[test]
fn losing_one_backend_moves_little_else() {
    let profiles: [fn(u32) -> u32; 3] = [|_| 100, |i| 100 * (1 + i % 5), |i| 100 + 37 * (i % 20)];
    for n in [2, 3, 10, 21, 22, 85, 100] {
        for profile in profiles {
            let members = members(&(0..n).map(profile).collect::<Vec<_>>());
            let whole = build(Policy::Maglev, &members);
            let moved: Vec<f64> = members
                .iter()
                .take(21)
                .map(|gone| disruption(&members, &whole, gone))
                .collect();
            let mean = moved.iter().sum::<f64>() / moved.len() as f64;
            assert!(
                mean <= 0.01,
                "one of {n} moved {mean} of the others' entries"
            );
            assert!(moved.iter().all(|m| *m <= 0.015), "one of {n}: {moved:?}");
        }
    }
}

#[test]
fn halving_one_weight_moves_little_else() {
    for n in [10, 20] {
        let mut members = members(&vec![100; n]);
        let before = build(Policy::Maglev, &members);
        members[n / 2].weight = 50;
        let after = build(Policy::Maglev, &members);
        let needed =
            (count(&before, members[n / 2].slot) - count(&after, members[n / 2].slot)) as f64;
        let moved = moved(&before, &after) - needed / before.len() as f64;
        assert!(moved <= 0.01, "halving one of {n} moved {moved}");
    }
}

#[test]
fn round_robin_is_smooth_and_exact() {
    let table = build(Policy::RoundRobin, &members(&[5, 3, 2]));
    let draws: Vec<u32> = table
        .iter()
        .copied()
        .cycle()
        .skip(123)
        .take(20_000)
        .collect();
    for (i, share) in [(7, 10_000), (14, 6000), (21, 4000)] {
        assert!(count(&draws, i).abs_diff(share) <= 2);
    }
    for window in draws.windows(10) {
        for (i, share) in [(7, 5), (14, 3), (21, 2)] {
            assert!(count(window, i).abs_diff(share) <= 1);
        }
    }
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![Just(100), 1..10u32, 1..1000u32, 1..=65_535u32];
    prop::collection::vec(weight, 1..60)
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::Maglev),
        Just(Policy::RoundRobin),
        Just(Policy::Random)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn maglev_is_what_the_naive_one_says(weights in prop::collection::vec(1..300u32, 1..9), size in prop_oneof![Just(13usize), Just(101), Just(211)]) {
        let members = members(&weights);
        prop_assert_eq!(build_sized(Policy::Maglev, &members, size), naive_maglev(&members, size));
    }

    #[test]
    fn no_entry_is_better_given_to_another(weights in weights(), policy in policies()) {
        let table = build(policy, &members(&weights));
        let quotas: Vec<u64> = members(&weights).iter().map(|m| count(&table, m.slot) as u64).collect();
        for (weight, quota) in weights.iter().zip(&quotas) {
            prop_assert!(*quota > 0);
            for (other, others) in weights.iter().zip(&quotas) {
                // weight / (quota - ½) is not less than other / (others + ½).
                let (claim, rival) = (u64::from(*weight) * (2 * others + 1), u64::from(*other) * (2 * quota - 1));
                prop_assert!(*quota == 1 || claim >= rival, "{weights:?}: {quotas:?}");
            }
        }
    }

    #[test]
    fn weights_are_accurate_to_two_percent(weights in prop::collection::vec(1..100u32, 1..40), policy in policies()) {
        let table = build(policy, &members(&weights));
        let sum: u32 = weights.iter().sum();
        for m in members(&weights) {
            let exact = table.len() as f64 * f64::from(m.weight) / f64::from(sum);
            let error = (count(&table, m.slot) as f64 - exact).abs() / exact;
            prop_assert!(error <= 0.02, "weight {} of {weights:?}: {error}", m.weight);
        }
    }

    #[test]
    fn order_and_slots_do_not_matter(weights in weights(), policy in policies(), by in 0..60usize) {
        let members = members(&weights);
        let table = build(policy, &members);
        let mut others: Vec<Member> = members.iter().map(|m| Member { slot: 9_999_999 - m.slot, ..*m }).collect();
        others.rotate_left(by % weights.len());
        let renamed: Vec<u32> = build(policy, &others).into_iter().map(|s| 9_999_999 - s).collect();
        prop_assert_eq!(table, renamed);
    }
}

#[test]
#[ignore = "prints measurements"]
fn measure() {
    type Weight = fn(u32) -> u32;
    let profiles: [(&str, Weight); 3] = [
        ("equal", |_| 100),
        ("1 to 5", |i| 100 * (1 + i % 5)),
        ("1 to 8", |i| 100 + 37 * (i % 20)),
    ];
    for n in [2, 3, 5, 10, 20, 21, 22, 85, 100, 163, 1000] {
        for (name, profile) in profiles {
            let members = members(&(0..n).map(profile).collect::<Vec<_>>());
            let start = Instant::now();
            let whole = build(Policy::Maglev, &members);
            let took = start.elapsed();
            let extra: Vec<f64> = members
                .iter()
                .take(50)
                .map(|gone| disruption(&members, &whole, gone))
                .collect();
            let worst = extra.iter().fold(0.0, |a: f64, b| a.max(*b));
            let mean = extra.iter().sum::<f64>() / extra.len() as f64;
            println!(
                "{n:4} backends, weights {name}: {} entries in {took:?}; one leaves: {:.2} % of the others' move, worst {:.2} %",
                whole.len(),
                100.0 * mean,
                100.0 * worst,
            );
        }
    }
}
