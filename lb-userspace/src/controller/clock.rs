//! Notices when somebody sets the wall clock, by a clock that nobody can set. Pure.

use std::time::{Duration, Instant};

/// The wall clock's rate is never quite right; it was set if it is off by this much.
const STEP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// When it was last looked at, by both clocks.
    wall_ms: u64,
    steady: Instant,
}

impl Clock {
    pub(super) fn new(wall_ms: u64, steady: Instant) -> Self {
        Self { wall_ms, steady }
    }

    /// By how many milliseconds the wall clock was set since it was last looked at. Time that the
    /// machine slept counts as well.
    pub(super) fn look(&mut self, wall_ms: u64, steady: Instant) -> Option<i64> {
        let passed = steady.saturating_duration_since(self.steady).as_millis();
        let expected = i128::from(self.wall_ms) + passed as i128;
        *self = Self { wall_ms, steady };
        let by = i128::from(wall_ms) - expected;
        let was_set = by.unsigned_abs() >= STEP.as_millis();
        was_set.then(|| by.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_once_and_a_wrong_rate_never() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut clock = Clock::new(1_000_000, began);
        assert_eq!(clock.look(1_010_000, after(10)), None);
        // 500 ppm, the most that NTP corrects by rate, for a day and more.
        let wall = (0..10_000).fold(1_010_000, |wall, ten| {
            let wall = wall + 10_005;
            assert_eq!(clock.look(wall, after(20 + ten * 10)), None);
            wall
        });
        let at = |seconds: u64| after(100_010 + seconds);
        assert_eq!(clock.look(wall + 3_601_000, at(1)), Some(3_600_000));
        assert_eq!(clock.look(wall + 3_602_000, at(2)), None);
        assert_eq!(clock.look(wall + 3_000, at(3)), Some(-3_600_000));
        assert_eq!(clock.look(wall + 4_000, at(4)), None);
        assert_eq!(clock.look(0, at(4)), Some(-(wall as i64) - 4_000));
        assert_eq!(clock.look(u64::MAX, at(4)), Some(i64::MAX));
    }
}
