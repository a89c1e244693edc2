//! Numbers as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `999`, `1.2k`, `35M`.
pub(super) fn count(number: u64) -> String {
    scaled(number, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// `999B`, `1.5KiB`, `35MiB`.
pub(super) fn bytes(number: u64) -> String {
    scaled(
        number,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

fn scaled(number: u64, step: f64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    // 999.5 would be rounded to a number of four digits.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    match unit > 0 && value < 9.95 {
        true => format!("{value:.1}{}", units[unit]),
        false => format!("{value:.0}{}", units[unit]),
    }
}

/// As kubectl does: two units while the second one matters, e.g. `90s`, `3m12s`, `5h7m`, `12d`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Seconds from a time in milliseconds since 1970 until now.
pub(super) fn seconds_since(time_ms: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs().saturating_sub(time_ms / 1000)
}

/// RFC 3339 in UTC, to the second.
pub(super) fn utc(time_ms: u64) -> String {
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
mod tests {
    use super::*;

    #[test]
    fn counts_and_bytes() {
        let shown = [0, 999, 1000, 1234, 35_000_000, 999_999].map(count);
        assert_eq!(shown, ["0", "999", "1.0k", "1.2k", "35M", "1.0M"]);
        let shown = [0, 1023, 1024, 1536, 5 << 20, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0B", "1023B", "1.0KiB", "1.5KiB", "5.0MiB", "16EiB"]
        );
    }

    #[test]
    fn ages() {
        let shown = [0, 119, 192, 3700, 18_420, 90_000, 1_000_000].map(age);
        assert_eq!(shown, ["0s", "119s", "3m12s", "61m", "5h7m", "25h", "11d"]);
    }

    #[test]
    fn times() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31T23:59:59Z");
        assert_eq!(utc(1_772_366_400_000), "2026-03-01T12:00:00Z");
    }
}
