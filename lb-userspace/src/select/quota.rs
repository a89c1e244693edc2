/// Shares `entries` out by weight, by the method of largest remainders: every quota is within one
/// entry of its exact share, and a weight so small that its share is less than one entry still
/// gets one. Equal remainders favour the earlier. Weights must not be 0, nor more than the entries.
pub(super) fn quotas(weights: &[u32], entries: usize) -> Vec<u32> {
    let mut quotas = vec![0; weights.len()];
    let mut left = entries as u64;
    let mut rest: Vec<usize> = (0..weights.len()).collect();
    // Serving one light weight leaves less for the others, which may make another one light.
    loop {
        let sum: u64 = rest.iter().map(|i| u64::from(weights[*i])).sum();
        let (light, heavy): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|i| left * u64::from(weights[*i]) < sum);
        rest = heavy;
        if light.is_empty() {
            share(&mut quotas, weights, rest, left, sum);
            return quotas;
        }
        left -= light.len() as u64;
        light.iter().for_each(|i| quotas[*i] = 1);
    }
}

fn share(quotas: &mut [u32], weights: &[u32], mut rest: Vec<usize>, entries: u64, sum: u64) {
    let scaled = |i: &usize| entries * u64::from(weights[*i]);
    let mut left = entries;
    for i in &rest {
        quotas[*i] = (scaled(i) / sum) as u32;
        left -= u64::from(quotas[*i]);
    }
    rest.sort_by_key(|i| std::cmp::Reverse(scaled(i) % sum));
    rest.iter()
        .take(left as usize)
        .for_each(|i| quotas[*i] += 1);
}
