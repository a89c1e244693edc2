//! Wall-clock time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_millis() as u64);
    #[cfg(test)]
    let now = now.saturating_add_signed(testing::SET_BY.get());
    now
}

/// RFC 3339 in UTC, to the second.
pub fn text(time_ms: u64) -> String {
    let seconds = time_ms / 1000;
    let (year, month, day) = civil(seconds / 86400);
    let of_day = seconds % 86400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar. Years are taken to begin in March, so that the
/// leap day is a year's last.
fn civil(days_since_1970: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const OFFSET: u64 = 719_468;
    let days = days_since_1970 + OFFSET;
    let day = days % ERA;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = match month {
        0..10 => (month + 3, 0),
        _ => (month - 9, 1),
    };
    (days / ERA * 400 + year + carry, month, day)
}

#[cfg(test)]
pub(crate) mod testing {
    thread_local! {
        /// By how many milliseconds a test has set the clock of its thread.
        pub(crate) static SET_BY: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(text(1_735_689_599_999), "2024-12-31T23:59:59Z");
        assert_eq!(text(1_772_366_400_000), "2026-03-01T12:00:00Z");
    }
}
