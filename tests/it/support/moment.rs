//! Times, parsed by other code than the relay's.

use std::time::{Duration, SystemTime};

/// Converts a time in kube-apiserver's format (UTC, 6 fractional digits) to nanoseconds since 1970.
/// Panics if the text is not such a time.
pub(crate) fn nanos_of(time: &str) -> u64 {
    let fields: Vec<u64> = time
        .split(['-', 'T', ':', '.', 'Z'])
        .filter(|field| !field.is_empty())
        .map(|field| field.parse().expect("digits"))
        .collect();
    let [year, month, day, hour, minute, second, micros] = fields[..] else {
        panic!("{time} is not a time of kube-apiserver")
    };
    assert_eq!(time.len(), "2026-01-02T03:04:05.678901Z".len(), "{time}");
    // Another crate parses dates of RFC 9110. They name the weekday, so each weekday is tried.
    let name = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        [usize::try_from(month).expect("a month") - 1];
    let date = format!("{day:02} {name} {year} {hour:02}:{minute:02}:{second:02} GMT");
    let date = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
        .iter()
        .find_map(|day| httpdate::parse_http_date(&format!("{day}, {date}")).ok())
        .expect("a date");
    let since = date.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    nanos(since) + micros * 1000
}

/// Returns the current time in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    nanos(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("before 2554")
}

#[test]
fn times_of_kube_apiserver_are_read() {
    assert_eq!(nanos_of("1970-01-01T00:00:00.000001Z"), 1000);
    assert_eq!(nanos_of("2026-11-20T06:24:22.439323Z"), 1_795_155_862_439_323_000);
}
