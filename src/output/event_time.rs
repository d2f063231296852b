//! The times that an event has, for protocols that put a time beside the event.

use std::sync::LazyLock;

use memchr::memmem::FinderRev;

use crate::audit::scan;

/// Returns the value of the event's member `stageTimestamp`, without quotes, if it is a valid
/// TIMESTAMP of RFC 5424 (§6.2.3), as kube-apiserver writes it.
pub(super) fn stage_time(event: &[u8]) -> Option<&[u8]> {
    let written = timestamp_at_the_end(event);
    valid(written.or_else(|| scan::member(event, "stageTimestamp")))
}

/// Returns the value of the event's member `requestReceivedTimestamp`, as [`stage_time`] does.
pub(super) fn request_time(event: &[u8]) -> Option<&[u8]> {
    valid(scan::member(event, "requestReceivedTimestamp"))
}

/// Returns the text of a JSON value that is a string with a valid TIMESTAMP.
fn valid(value: Option<&[u8]>) -> Option<&[u8]> {
    value.and_then(scan::inner).filter(|time| is_rfc5424(time))
}

/// Returns the value of `stageTimestamp`, with quotes, if no member follows it, or only the member
/// `annotations`. kube-apiserver writes events in this way. Otherwise returns `None`. The search
/// from the end is fast: a walk over all members takes a fifth of the CPU time of a syslog output.
fn timestamp_at_the_end(event: &[u8]) -> Option<&[u8]> {
    static NAME: LazyLock<FinderRev<'static>> =
        LazyLock::new(|| FinderRev::new("\"stageTimestamp\":"));
    let from = NAME.rfind(event)? + NAME.needle().len();
    let rest = event.get(from..)?;
    let length = memchr::memchr(b'"', rest.get(1..)?)? + 2;
    let (value, behind) = rest.split_at_checked(length)?;
    // Exactly one closing brace is left, so the member belongs to the event itself, and not to an
    // object inside it.
    let is_last = match behind.strip_prefix(b",\"annotations\":") {
        None => behind == b"}",
        Some(annotations) => {
            scan::value_end(annotations).and_then(|end| annotations.get(end..)) == Some(b"}")
        }
    };
    is_last.then_some(value)
}

/// Returns `true` if `time` is a valid TIMESTAMP of RFC 5424 (§6.2.3). The date must exist in the
/// calendar, and leap seconds are not allowed. The check is needed because the text comes from
/// outside: it must not add fields to the header, and a receiver must be able to parse it.
fn is_rfc5424(time: &[u8]) -> bool {
    parts(time).is_some_and(|Parts { fraction, .. }| fraction.len() <= 6)
}

/// Returns the nanoseconds since 1970 of a time in the format of RFC 3339, with capital letters and
/// at most 9 digits of fraction. Returns `None` if the text is no such time, or if the time is
/// before 1970 or after April 2262 (protocols have 64 bits with a sign for it).
pub(super) fn nanos(time: &[u8]) -> Option<u64> {
    let Parts { moment, fraction, offset } = parts(time).filter(|it| it.fraction.len() <= 9)?;
    let at = |from: usize, digits: usize| {
        i64::from(number(moment.get(from..from + digits).unwrap_or_default()))
    };
    let seconds =
        (days(at(0, 4), at(5, 2), at(8, 2)) * 24 + at(11, 2)) * 3600 + at(14, 2) * 60 + at(17, 2)
            - ahead(offset);
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let below = digits.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
    let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(below)?;
    u64::try_from(nanos).ok()
}

/// Returns the number of days from 1970-01-01 to a day of the Gregorian calendar. The calculation
/// counts years from March, so that the leap day is the last day of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day - 719_468
}

/// Returns how many seconds a time with this offset is ahead of UTC; 0 for `Z`.
fn ahead(offset: &[u8]) -> i64 {
    match offset {
        [sign, a, b, _, c, d] => {
            let seconds = i64::from(number(&[*a, *b]) * 3600 + number(&[*c, *d]) * 60);
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => 0,
    }
}

/// The parts of a time.
struct Parts<'a> {
    /// Date and time, to the second.
    moment: &'a [u8],
    /// The digits of the fraction of a second; empty if the time has none.
    fraction: &'a [u8],
    /// `Z`, or the difference from UTC.
    offset: &'a [u8],
}

/// Takes a time apart. Returns `None` if the text is no time in the format of RFC 3339, or no time
/// that exists in the calendar.
fn parts(time: &[u8]) -> Option<Parts<'_>> {
    let (moment, mut offset) = time.split_at_checked(19)?;
    let mut fraction: &[u8] = &[];
    if let Some(rest) = offset.strip_prefix(b".") {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (fraction, offset) = rest.split_at_checked(digits).filter(|_| digits > 0)?;
    }
    (is_moment(moment) && is_offset(offset)).then_some(Parts { moment, fraction, offset })
}

/// Returns `true` if a text has the shape of a pattern: at each `0` of the pattern the text has a
/// digit, and all other bytes are equal.
fn has_shape(text: &[u8], pattern: &[u8]) -> bool {
    text.len() == pattern.len()
        && text.iter().zip(pattern).all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

/// Returns the number that is written in decimal digits.
fn number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit.wrapping_sub(b'0')))
}

/// Returns `true` if `text` has the form `YYYY-MM-DDThh:mm:ss` and is a time that exists in the
/// Gregorian calendar.
fn is_moment(text: &[u8]) -> bool {
    if !has_shape(text, b"0000-00-00T00:00:00") {
        return false;
    }
    let (year, month, day) = (number(&text[..4]), number(&text[5..7]), number(&text[8..10]));
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(is_leap),
        _ => return false,
    };
    (1..=days).contains(&day)
        && number(&text[11..13]) < 24
        && number(&text[14..16]) < 60
        && number(&text[17..]) < 60
}

/// Returns `true` if `text` is `Z` or a difference from UTC in hours and minutes, such as `+02:00`.
fn is_offset(text: &[u8]) -> bool {
    let is_difference = has_shape(text, b"+00:00") || has_shape(text, b"-00:00");
    text == b"Z" || (is_difference && number(&text[1..3]) < 24 && number(&text[4..]) < 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timestamp_is_the_events_own_wherever_it_stands() {
        let own = "2026-11-20T06:24:22.439323Z";
        let inner = r#""stageTimestamp":"1999-01-01T00:00:00Z""#;
        for event in [
            format!(r#"{{"a":{{{inner}}},"stageTimestamp":"{own}"}}"#),
            format!(r#"{{"stageTimestamp":"{own}","a":{{{inner}}}}}"#),
            format!(r#"{{"stageTimestamp":"{own}","annotations":{{"a":"}}"}}}}"#),
            format!(r#"{{"stageTimestamp":"{own}","annotations":{{{inner}}}}}"#),
            format!(
                r#"{{"stageTimestamp":"{own}","annotations":{{"b":{{{inner},"annotations":{{}}}}}}}}"#
            ),
            format!(r#"{{"stageTimestamp" : "{own}" }}"#),
            format!(r#"{{"a":"\"stageTimestamp\":","stageTimestamp":"{own}","b":1}}"#),
        ] {
            assert_eq!(stage_time(event.as_bytes()), Some(own.as_bytes()), "{event}");
        }
        for none in [
            format!(r#"{{"a":{{{inner}}}}}"#),
            r#"{"stageTimestamp":"}"#.to_owned(),
            r#"{"stageTimestamp":7}"#.to_owned(),
        ] {
            assert_eq!(stage_time(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn only_rfc5424_timestamps_pass() {
        for good in [
            "2026-11-20T06:24:22Z",
            "2026-11-20T06:24:22.1Z",
            "2026-11-20T06:24:22.439323+01:00",
            "2026-11-20T00:00:00-23:59",
            "2024-02-29T23:59:59Z",
            "2000-02-29T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
        ] {
            assert!(is_rfc5424(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "x",
            "2026-11-20 06:24:22Z",
            "2026-11-20t06:24:22Z",
            "2026-11-20T06:24:22z",
            "2026-11-20T06:24:22.4393231Z",
            "2026-11-20T06:24:22",
            "2026-11-20T06:24:22.Z",
            "2026-11-20T06:24:22Z ",
            "2026-11-20T06:24:22+1:00",
        ] {
            assert!(!is_rfc5424(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_time_that_is_in_no_calendar_stays_out_of_the_header() {
        for bad in [
            "9999-99-99T99:99:99Z",
            "2026-00-20T06:24:22Z",
            "2026-13-20T06:24:22Z",
            "2026-11-00T06:24:22Z",
            "2026-11-31T06:24:22Z",
            "2026-01-32T06:24:22Z",
            "2026-02-29T06:24:22Z",
            "2024-02-30T06:24:22Z",
            "1900-02-29T06:24:22Z",
            "2100-02-29T06:24:22Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T06:60:00Z",
            // RFC 5424 §6.2.3: leap seconds must not be used.
            "2016-12-31T23:59:60Z",
            "2026-11-20T06:24:22+24:00",
            "2026-11-20T06:24:22-01:60",
            "2026-11-20T06:24:22.5+99:99",
        ] {
            assert!(!is_rfc5424(bad.as_bytes()), "{bad}");
            let event = format!(r#"{{"auditID":"a","stageTimestamp":"{bad}"}}"#);
            assert_eq!(stage_time(event.as_bytes()), None, "{bad}");
        }
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

    proptest::proptest! {
        /// Takes days at random, from 1970 on for about 7,900 years, and gets their dates by
        /// another algorithm. Each such date must pass, and the date one day later must pass
        /// exactly if it is in the same month.
        #[test]
        fn each_day_of_the_calendar_passes_and_no_other(days in 0_i64..2_900_000) {
            let (year, month, day) = civil(days);
            let text = |day: i64| format!("{year:04}-{month:02}-{day:02}T12:00:00Z");
            proptest::prop_assert!(is_rfc5424(text(day).as_bytes()), "{}", text(day));
            let (_, next_month, _) = civil(days + 1);
            let behind_is_next_month = next_month != month;
            proptest::prop_assert_eq!(
                is_rfc5424(text(day + 1).as_bytes()), !behind_is_next_month, "{}", text(day + 1)
            );
            let noon = (days * 24 + 12) * 3600;
            let wanted = noon.checked_mul(1_000_000_000).map(i64::unsigned_abs);
            proptest::prop_assert_eq!(nanos(text(day).as_bytes()), wanted, "{}", text(day));
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
}
