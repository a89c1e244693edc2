//! Notices when somebody sets the wall clock, by a clock that nobody can set. Pure.

use std::time::Duration;

use crate::discovery::rules::Now;

/// The wall clock's rate is never quite right; it was set if it is off by this much.
const STEP: Duration = Duration::from_secs(1);

/// The wall clock, when it was last looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wall(Now);

impl Wall {
    pub(super) fn new(now: Now) -> Self {
        Self(now)
    }

    /// By how many milliseconds the wall clock was set since it was last looked at. Time that the
    /// machine slept counts as well.
    pub(super) fn look(&mut self, now: Now) -> Option<i64> {
        let passed = now.at.saturating_duration_since(self.0.at).as_millis();
        let expected = i128::from(self.0.ms) + passed as i128;
        self.0 = now;
        let by = i128::from(now.ms) - expected;
        let was_set = by.unsigned_abs() >= STEP.as_millis();
        was_set.then(|| by.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_step_is_told_once_and_a_wrong_rate_never() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut wall_clock = Wall::new(Now {
            at: began,
            ms: 1_000_000,
        });
        let mut look = |ms, at| wall_clock.look(Now { at, ms });
        assert_eq!(look(1_010_000, after(10)), None);
        // 500 ppm, the most that NTP corrects by rate, for a day and more.
        let wall = (0..10_000).fold(1_010_000, |wall, ten| {
            let wall = wall + 10_005;
            assert_eq!(look(wall, after(20 + ten * 10)), None);
            wall
        });
        let at = |seconds: u64| after(100_010 + seconds);
        assert_eq!(look(wall + 3_601_000, at(1)), Some(3_600_000));
        assert_eq!(look(wall + 3_602_000, at(2)), None);
        assert_eq!(look(wall + 3_000, at(3)), Some(-3_600_000));
        assert_eq!(look(wall + 4_000, at(4)), None);
        assert_eq!(look(0, at(4)), Some(-(wall as i64) - 4_000));
        assert_eq!(look(u64::MAX, at(4)), Some(i64::MAX));
    }
}
