//! The times that kube-apiserver writes into events: which texts are times, and their value.

/// Returns `true` if `time` is a valid TIMESTAMP of RFC 5424 (§6.2.3). Every such text is a time of
/// RFC 3339 too. The date must exist in the calendar, and leap seconds are not allowed. The check
/// is needed because the text comes from outside: it must not add fields to a syslog header, and a
/// receiver must be able to parse it.
#[must_use]
pub fn is_timestamp(time: &[u8]) -> bool {
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

/// Returns the time of a valid [timestamp](is_timestamp) in milliseconds since 1970 began in UTC.
/// Smaller parts of a second are cut off. Returns `None` if the text is no such time.
#[must_use]
pub fn milliseconds(time: &[u8]) -> Option<i64> {
    if !is_timestamp(time) {
        return None;
    }
    let (seconds, rest) = time.split_at_checked(19)?;
    let field = |from: usize, to: usize| Some(i64::from(number(seconds.get(from..to)?)));
    let days = days(field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let seconds = ((days * 24 + field(11, 13)?) * 60 + field(14, 16)?) * 60 + field(17, 19)?;
    let (fraction, offset) = match rest.strip_prefix(b".") {
        Some(rest) => rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count()),
        None => rest.split_at(0),
    };
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(3);
    let milliseconds = digits.fold(0, |sum, digit| sum * 10 + i64::from(digit.wrapping_sub(b'0')));
    let ahead = match offset {
        [sign, hours @ .., _, m1, m0] => {
            let minutes = i64::from(number(hours)) * 60 + i64::from(number(&[*m1, *m0]));
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => 0,
    };
    Some((seconds - ahead * 60) * 1000 + milliseconds)
}

/// Returns the number of days from 1970-01-01 to a date of the Gregorian calendar. The number is
/// negative for a date before it.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // The year begins in March here, so that a leap day is its last day. The months from March on
    // have 31, 30, 31, 30, 31 days, and again the same.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let of_years = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    of_years + of_year - 719_468
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
            assert!(is_timestamp(good.as_bytes()), "{good}");
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
            assert!(!is_timestamp(bad.as_bytes()), "{bad}");
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
        /// Takes days at random, from 1970 on for about 7,900 years, and gets their dates by
        /// another algorithm. Each such date must pass, and the date one day later must pass
        /// exactly if it is in the same month.
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
}
