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

/// Returns a time in microseconds since 1970; negative before 1970. `time` is a text that
/// [`stage_time`] or [`request_time`] has returned.
pub(super) fn unix_micros(time: &[u8]) -> Option<i64> {
    let (moment, mut rest) = time.split_at_checked(19)?;
    let field = |from: usize, to: usize| moment.get(from..to).map(number).map(i64::from);
    let days = days_since_1970(field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let seconds = (field(11, 13)? * 60 + field(14, 16)?) * 60 + field(17, 19)?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, behind) = fraction.split_at_checked(length)?;
        let padding = std::iter::repeat_n(&b'0', 6_usize.checked_sub(length)?);
        let digits: Vec<u8> = digits.iter().chain(padding).copied().collect();
        (micros, rest) = (i64::from(number(&digits)), behind);
    }
    let offset = match rest {
        [sign, h1, h2, b':', m1, m2] => {
            let minutes = i64::from(number(&[*h1, *h2]) * 60 + number(&[*m1, *m2]));
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => 0,
    };
    Some((days * 86_400 + seconds - offset * 60) * 1_000_000 + micros)
}

/// Returns the number of days from 1970-01-01 to this date of the Gregorian calendar. The
/// calculation counts years from March, so that the leap day is the last day of a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const IN_400_YEARS: i64 = 146_097;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    era * IN_400_YEARS + day_of_era - 719_468
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
    let Some((seconds, mut rest)) = time.split_at_checked(19) else { return false };
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&digits) {
            return false;
        }
        rest = &fraction[digits..];
    }
    is_moment(seconds) && is_offset(rest)
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
    fn times_are_counted_from_1970() {
        for (time, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.9Z", -100_000),
            ("2000-02-29T00:00:00Z", 951_782_400_000_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000_000),
            ("2026-11-20T06:24:22.439323Z", 1_795_155_862_439_323),
            ("2026-11-20T06:24:22.4Z", 1_795_155_862_400_000),
            ("2026-11-20T08:54:22+02:30", 1_795_155_862_000_000),
            ("2026-11-19T22:24:22.000001-08:00", 1_795_155_862_000_001),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000_000),
            ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000_000),
        ] {
            assert_eq!(unix_micros(time.as_bytes()), Some(micros), "{time}");
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
