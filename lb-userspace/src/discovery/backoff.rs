//! Pauses between failures.

use std::time::Duration;

use rand::Rng;

/// Pauses that double from `first` to `longest`, each shortened by chance to as little as half, so
/// that the nodes that lost a registry at one moment do not come back at one moment. Pure.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Default for Backoff {
    /// From one second to a quarter of a minute.
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(15))
    }
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// How long to pause now.
    pub fn pause(&mut self, random: &mut impl Rng) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(random.random_range(0.5..=1.0))
    }

    /// It went well: the next pause is the shortest.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        let mut random = rand::rng();
        for whole in [1, 2, 4, 8, 15, 15, 15] {
            let pause = backoff.pause(&mut random);
            let whole = Duration::from_secs(whole);
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} {whole:?}");
        }
        backoff.reset();
        assert!(backoff.pause(&mut random) <= Duration::from_secs(1));
    }
}
