//! Times as text, for dead letters and documents.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::audit::time;

/// Returns a time in UTC with milliseconds, in the format of RFC 3339.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = date(days);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Returns the year, month and day that is `days` days after 1970-01-01. The calculation counts
/// years from March, so that the leap day is the last day of a year.
fn date(days: u64) -> (u64, u64, u64) {
    const IN_400_YEARS: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / IN_400_YEARS, days % IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// Reads a time in the format of RFC 3339, such as `2026-11-22T08:00:00Z` or
/// `2026-11-22T09:00:00.5+01:00`. Returns it in milliseconds since 1970; `None` if the text is no
/// time, or one before 1970.
pub(crate) fn parse(text: &str) -> Option<u64> {
    // RFC 3339 allows small letters, and a blank between date and time.
    let text = text.to_ascii_uppercase().replacen(' ', "T", 1);
    time::milliseconds_since_1970(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.007Z"),
            (1_767_225_599, "2025-12-31T23:59:59.007Z"),
            (1_795_155_862, "2026-11-20T06:24:22.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7)), text);
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for seconds in (0..5000).map(|it: u64| it * 1_000_003) {
            let text = rfc3339(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
            assert_eq!(parse(&text), Some(seconds * 1000 + 7), "{text}");
        }
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01t00:00:00.5z", Some(500)),
            ("1970-01-01 00:00:01.98765Z", Some(1987)),
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("1969-12-31T23:00:00-01:00", Some(0)),
            ("1969-12-31T23:00:00Z", None),
            ("1970-01-01T00:00:00-01:30", Some(5_400_000)),
            ("1970-01-01T00:00:00+00:01", None),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("2023-02-29T00:00:00Z", None),
            ("2023-13-01T00:00:00Z", None),
            ("2023-01-01", None),
            ("2023-01-01T00:00:00", None),
            ("2023-01-01T0:00:00Z", None),
            ("2023-01-01T00:00:00.Z", None),
            ("2023-01-01T00:00:00Zx", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse(text), millis, "{text}");
        }
    }
}
