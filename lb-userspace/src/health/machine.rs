//! Rise and fall of one backend, driven by results. No clock and no randomness of its own.

use std::{sync::Arc, time::Duration};

use crate::model::Health;

/// Bounds of a delay, whatever was configured: no busy loop, no overflow of `Instant`.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Share of the interval by which a delay varies, so that probes never march in step.
const JITTER: f64 = 0.1;

pub(super) struct Machine {
    health: Arc<Health>,
    healthy: Option<bool>,
    successes: u32,
    failures: u32,
}

impl Machine {
    /// An `inherited` verdict stands until rise or fall says otherwise; without one the first
    /// result decides.
    pub(super) fn new(health: Arc<Health>, inherited: Option<bool>) -> Self {
        Self {
            health,
            healthy: inherited,
            successes: 0,
            failures: 0,
        }
    }

    /// Counts one result and says whether the verdict changed.
    pub(super) fn record(&mut self, success: bool) -> bool {
        (self.successes, self.failures) = if success {
            (self.successes.saturating_add(1), 0)
        } else {
            (0, self.failures.saturating_add(1))
        };
        let changed = match (self.healthy, success) {
            // It never took traffic: one success is proof enough, and nothing is lost by
            // believing a failure.
            (None, _) => true,
            (Some(true), false) => self.failures >= self.health.fall,
            (Some(false), true) => self.successes >= self.health.rise,
            (Some(true), true) | (Some(false), false) => false,
        };
        if changed {
            self.healthy = Some(success);
        }
        changed
    }

    /// From the start of the last probe to the start of the next; `jitter` is in −1..=1.
    pub(super) fn delay(&self, jitter: f64) -> Duration {
        let counting = match self.healthy {
            None => true,
            Some(true) => self.failures > 0,
            Some(false) => self.successes > 0,
        };
        let base = if counting {
            self.health.fast_interval
        } else {
            self.health.interval
        };
        base.clamp(SHORTEST, LONGEST)
            .mul_f64(1.0 + JITTER * jitter.clamp(-1.0, 1.0))
    }

    /// Until the first probe where a verdict was inherited; `phase` is in 0..1.
    pub(super) fn first_delay(&self, phase: f64) -> Duration {
        self.health
            .interval
            .clamp(SHORTEST, LONGEST)
            .mul_f64(phase.clamp(0.0, 1.0))
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    pub(super) fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    pub(super) fn successes_in_row(&self) -> u32 {
        self.successes
    }

    pub(super) fn failures_in_row(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn health(rise: u32, fall: u32) -> Arc<Health> {
        Arc::new(Health {
            rise,
            fall,
            ..Health::default()
        })
    }

    /// The verdict re-derived from the whole history: the last run of equal results that was
    /// long enough to decide, or else what was inherited or, lacking that, the first result.
    fn oracle(inherited: Option<bool>, rise: u32, fall: u32, history: &[bool]) -> Option<bool> {
        for end in (1..=history.len()).rev() {
            let last = history[end - 1];
            let run = history[..end].iter().rev().take_while(|r| **r == last);
            let needed = if last { rise } else { fall };
            if run.count() >= needed as usize {
                return Some(last);
            }
        }
        inherited.or(history.first().copied())
    }

    proptest! {
        #[test]
        fn verdict_agrees_with_the_whole_history(
            inherited: Option<bool>,
            rise in 1u32..5,
            fall in 1u32..5,
            history: Vec<bool>,
        ) {
            let mut machine = Machine::new(health(rise, fall), inherited);
            for (done, result) in history.iter().enumerate() {
                let before = machine.healthy();
                let changed = machine.record(*result);
                let now = oracle(inherited, rise, fall, &history[..=done]);
                prop_assert_eq!(machine.healthy(), now);
                prop_assert_eq!(changed, before != now);
                prop_assert_eq!(machine.successes_in_row() > 0, *result);
                prop_assert_eq!(machine.failures_in_row() > 0, !*result);
            }
        }

        #[test]
        fn delay_stays_within_a_tenth(jitter in -1.0f64..=1.0, phase in 0.0f64..1.0) {
            let machine = Machine::new(health(2, 3), Some(true));
            let delay = machine.delay(jitter).as_secs_f64();
            prop_assert!((4.499..=5.501).contains(&delay), "{}", delay);
            prop_assert!(machine.first_delay(phase) <= Duration::from_secs(5));
        }
    }

    #[test]
    fn a_new_backend_is_decided_by_its_first_result() {
        for result in [true, false] {
            let mut machine = Machine::new(health(9, 9), None);
            assert_eq!(machine.healthy(), None);
            assert!(machine.record(result));
            assert_eq!(machine.healthy(), Some(result));
        }
    }

    #[test]
    fn a_contrary_result_starts_the_count_again() {
        let mut machine = Machine::new(health(2, 3), Some(true));
        let changes = [false, false, true, false, false, false].map(|r| machine.record(r));
        assert_eq!(changes, [false, false, false, false, false, true]);
        let changes = [true, false, true, true].map(|r| machine.record(r));
        assert_eq!(changes, [false, false, false, true]);
    }

    #[test]
    fn probes_are_frequent_while_a_change_is_counted() {
        let (slow, fast) = (Duration::from_secs(5), Duration::from_secs(1));
        let mut machine = Machine::new(health(2, 2), None);
        assert_eq!(machine.delay(0.0), fast);
        for (result, delay) in [
            (true, slow),
            (false, fast),
            (true, slow),
            (false, fast),
            (false, slow),
            (true, fast),
            (true, slow),
        ] {
            machine.record(result);
            assert_eq!(machine.delay(0.0), delay);
        }
    }

    #[test]
    fn absurd_intervals_are_bounded() {
        for interval in [Duration::ZERO, Duration::MAX] {
            let health = Health {
                interval,
                ..Health::default()
            };
            let delay = Machine::new(Arc::new(health), Some(true)).delay(1.0);
            assert!(delay >= SHORTEST && delay <= 2 * LONGEST);
        }
    }
}
