//! Times as text in the format of RFC 3339: those that kube-apiserver writes into events, those of
//! a command line, and those that this program writes. The calendar is that of the crate `time`.
//! The text is read here, because that is done for each event, and because protocols allow
//! different lengths of the fraction.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

/// Returns `true` if `time` is a valid TIMESTAMP of RFC 5424 (§6.2.3), and therefore a time of RFC
/// 3339. The date must exist, and leap seconds are not allowed. The text comes from outside: it
/// must not add fields to a syslog header, and a receiver must be able to parse it.
pub fn is_timestamp(time: &[u8]) -> bool {
    parts(time).is_some_and(|Parts { fraction, .. }| fraction.len() <= 6)
}

/// Returns the milliseconds since 1970 (UTC) of a valid [timestamp](is_timestamp), rounded down.
/// `None` if the text is not such a time.
pub fn milliseconds(time: &[u8]) -> Option<i64> {
    let parts = parts(time).filter(|it| it.fraction.len() <= 6)?;
    Some(parts.seconds() * 1000 + parts.below_a_second(3))
}

/// Returns the nanoseconds since 1970 (UTC) of a time with capital letters and at most 9 digits of
/// fraction. `None` if the text is not such a time, or if the time is before 1970 or after April
/// 2262 (protocols have 64 bits with a sign for this number).
pub fn nanos(time: &[u8]) -> Option<u64> {
    let parts = parts(time).filter(|it| it.fraction.len() <= 9)?;
    let (seconds, below) = (parts.seconds(), parts.below_a_second(9));
    let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(below)?;
    u64::try_from(nanos).ok()
}

/// Returns the milliseconds since 1970 (UTC) of a time such as `2026-11-22T08:00:00Z` or
/// `2026-11-22T09:00:00.5+01:00`. `None` if the text is not a time, or if the time is before 1970.
pub fn parse(text: &str) -> Option<u64> {
    // RFC 3339 allows small letters, and a blank between date and time.
    let text = text.to_ascii_uppercase().replacen(' ', "T", 1);
    let parts = parts(text.as_bytes())?;
    u64::try_from(parts.seconds() * 1000 + parts.below_a_second(3)).ok()
}

/// Returns a time in UTC with milliseconds. A time after the year 9999 becomes the start of 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let ((year, month, day), (hour, minute, second)) = (time.to_calendar_date(), time.to_hms());
    let (month, millis) = (u8::from(month), since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// A time that [`parts`] has checked.
struct Parts<'a> {
    moment: PrimitiveDateTime,
    /// The digits of the fraction of a second; empty if the time has none.
    fraction: &'a [u8],
    offset: UtcOffset,
}

impl Parts<'_> {
    /// Returns the whole seconds since 1970 began in UTC; negative before 1970.
    fn seconds(&self) -> i64 {
        self.moment.assume_offset(self.offset).unix_timestamp()
    }

    /// Returns the first `digits` digits of the fraction: 3 for milliseconds, 9 for nanoseconds.
    fn below_a_second(&self, digits: usize) -> i64 {
        let all = self.fraction.iter().chain(std::iter::repeat(&b'0'));
        all.take(digits).fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
    }
}

/// Splits a time into its parts. Letters must be capital. `None` if the text is not a time of RFC
/// 3339, or if the time does not exist in the calendar.
fn parts(time: &[u8]) -> Option<Parts<'_>> {
    let (moment, mut offset) = time.split_at_checked(19)?;
    let mut fraction: &[u8] = &[];
    if let Some(rest) = offset.strip_prefix(b".") {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (fraction, offset) = rest.split_at_checked(digits).filter(|_| digits > 0)?;
    }
    let is_difference = has_shape(offset, b"+00:00") || has_shape(offset, b"-00:00");
    let offset = match offset {
        b"Z" => UtcOffset::UTC,
        [sign, difference @ ..] if is_difference && number(difference, 0) < 24 => {
            let sign = if *sign == b'-' { -1 } else { 1 };
            let [hours, minutes] = [0, 3].map(|at| sign * number(difference, at).cast_signed());
            UtcOffset::from_hms(hours, minutes, 0).ok()?
        }
        _ => return None,
    };
    Some(Parts { moment: checked(moment)?, fraction, offset })
}

/// Returns `true` if the text has a digit at each `0` of the pattern, and equals it elsewhere.
fn has_shape<const N: usize>(text: &[u8], pattern: &[u8; N]) -> bool {
    let Ok(text) = <&[u8; N]>::try_from(text) else { return false };
    // Without an early end, the CPU compares many bytes at a time.
    text.iter().zip(pattern).fold(true, |so_far, (byte, wanted)| {
        let fits = if *wanted == b'0' { byte.is_ascii_digit() } else { byte == wanted };
        so_far & fits
    })
}

/// Returns the number of the two digits at this index.
fn number(text: &[u8], at: usize) -> u8 {
    text[at..at + 2].iter().fold(0, |number, digit| number * 10 + (digit - b'0'))
}

/// Returns the time of a text `YYYY-MM-DDThh:mm:ss`; `None` if the text is not one, or if the time
/// does not exist in the Gregorian calendar.
fn checked(text: &[u8]) -> Option<PrimitiveDateTime> {
    if !has_shape(text, b"0000-00-00T00:00:00") {
        return None;
    }
    let [century, year, month, day, hour, minute, second] =
        [0, 2, 5, 8, 11, 14, 17].map(|at| number(text, at));
    let year = i32::from(century) * 100 + i32::from(year);
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    Some(PrimitiveDateTime::new(date, Time::from_hms(hour, minute, second).ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_rfc5424_timestamps_pass() {
        let good = "2026-11-20T06:24:22Z, 2026-11-20T06:24:22.1Z, 2026-11-20T06:24:22.439323+01:00, \
             2026-11-20T00:00:00-23:59, 2024-02-29T23:59:59Z, 2000-02-29T00:00:00Z, \
             9999-12-31T23:59:59.999999Z";
        for good in good.split(", ") {
            assert!(is_timestamp(good.as_bytes()), "{good}");
        }
        let bad = ", x, 2026-11-20 06:24:22Z, 2026-11-20t06:24:22Z, 2026-11-20T06:24:22z, \
             2026-11-20T06:24:22.4393231Z, 2026-11-20T06:24:22, 2026-11-20T06:24:22.Z, \
             2026-11-20T06:24:22Z , 2026-11-20T06:24:22+1:00";
        for bad in bad.split(", ") {
            assert!(!is_timestamp(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_time_that_is_in_no_calendar_stays_out_of_the_header() {
        // RFC 5424 §6.2.3: leap seconds must not be used.
        let bad = "9999-99-99T99:99:99Z, 2026-00-20T06:24:22Z, 2026-13-20T06:24:22Z, \
             2026-11-00T06:24:22Z, 2026-11-31T06:24:22Z, 2026-01-32T06:24:22Z, \
             2026-02-29T06:24:22Z, 2024-02-30T06:24:22Z, 1900-02-29T06:24:22Z, \
             2100-02-29T06:24:22Z, 2026-11-20T24:00:00Z, 2026-11-20T06:60:00Z, \
             2016-12-31T23:59:60Z, 2026-11-20T06:24:22+24:00, 2026-11-20T06:24:22-01:60, \
             2026-11-20T06:24:22.5+99:99";
        for bad in bad.split(", ") {
            assert!(!is_timestamp(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_time_in_milliseconds_is_that_of_the_text() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:00.0019Z", 1),
            ("1969-12-31T23:59:59.5Z", -500),
            ("2026-11-20T06:24:22.439323Z", 1_795_155_862_439),
            ("2026-11-20T08:24:22.43+02:00", 1_795_155_862_430),
            ("2026-11-20T00:54:22-05:30", 1_795_155_862_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999),
        ] {
            assert_eq!(milliseconds(text.as_bytes()), Some(expected), "{text}");
        }
        assert_eq!(milliseconds(b"2026-11-20"), None);
        assert_eq!(milliseconds(b"2026-02-30T00:00:00Z"), None);
    }

    proptest::proptest! {
        /// Takes random days of about 7,900 years since 1970, and gets the dates by another
        /// algorithm. Each such date must pass, and the date one day later must pass exactly if it
        /// is in the same month.
        #[test]
        fn each_day_of_the_calendar_passes_and_no_other(days in 0_i64..2_900_000) {
            let (year, month, day) = civil(days);
            let text = |day: i64| format!("{year:04}-{month:02}-{day:02}T12:00:00Z");
            proptest::prop_assert!(is_timestamp(text(day).as_bytes()), "{}", text(day));
            let noon = (days * 24 + 12) * 3_600_000;
            proptest::prop_assert_eq!(milliseconds(text(day).as_bytes()), Some(noon));
            let (_, next_month, _) = civil(days + 1);
            let behind_is_next_month = next_month != month;
            proptest::prop_assert_eq!(
                is_timestamp(text(day + 1).as_bytes()), !behind_is_next_month, "{}", text(day + 1)
            );
        }
    }

    /// Returns the year, month and day that is `days` days after 1970-01-01, by walking from month
    /// to month.
    fn civil(mut days: i64) -> (i64, i64, i64) {
        let is_leap = |year: i64| (year % 4 == 0) != ((year % 100 == 0) != (year % 400 == 0));
        let mut year = 1970;
        while days >= 365 + i64::from(is_leap(year)) {
            days -= 365 + i64::from(is_leap(year));
            year += 1;
        }
        let mut month = 1;
        for length in [31, 28 + i64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        (year, month, days + 1)
    }

    #[test]
    fn times_are_nanoseconds_since_1970() {
        for (time, nanos_since) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:59:59.999999999+01:00", None),
            ("1969-12-31T23:59:59.5-00:01", Some(59_500_000_000)),
            ("2000-02-29T23:59:59.1Z", Some(951_868_799_100_000_000)),
            ("2026-11-20T06:24:22.439323Z", Some(1_795_155_862_439_323_000)),
            ("2026-11-20T06:24:22.439323001Z", Some(1_795_155_862_439_323_001)),
            ("2026-11-20T07:54:22.000000007+01:30", Some(1_795_155_862_000_000_007)),
            ("2262-04-11T23:47:16.854775807Z", Some(i64::MAX.unsigned_abs())),
            ("2262-04-11T23:47:16.854775808Z", None),
            ("9999-12-31T23:59:59Z", None),
            ("2026-11-20T06:24:22.0000000001Z", None),
            ("2026-11-31T06:24:22Z", None),
            ("2026-11-20T06:24:22", None),
            ("", None),
        ] {
            assert_eq!(nanos(time.as_bytes()), nanos_since, "{time}");
        }
    }

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
        // The end of the calendar, which a damaged file may name, is no reason to panic.
        let late = UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        assert_eq!(rfc3339(late), "1970-01-01T00:00:00.000Z");
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
