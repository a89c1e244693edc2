//! Numbers as people read them.

use crate::utc;

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
    (utc::now_ms() / 1000).saturating_sub(time_ms / 1000)
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
}
