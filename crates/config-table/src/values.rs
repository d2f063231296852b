//! Parsers of the config's strings, such as sizes and addresses, and sizes and times as text.
//!
//! The error of a parser says what is wrong and what is allowed, and is the end of a sentence that
//! begins with the value: `is not a size, allowed: …`. The reader puts the value in front, or
//! leaves it out if it may be a secret.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use hyper::header::HeaderName;
use rustls_pki_types::ServerName;
use url::Url;

/// The address of a peer, `host:port` in the config. An IPv6 address is in brackets: `[::1]:514`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host name or the IP address, without brackets.
    pub host: String,
    /// The port, which is never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A kibibyte, in bytes.
pub const KIB: u64 = 1024;
/// A mebibyte, in bytes.
pub const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The minimum in bytes of `max_in_flight` (of `[limits]` and of a source) and of `queue.max_bytes`
/// of a queue in memory. One small event needs less than this.
pub const ROOM_MIN: u64 = KIB;

/// The largest size in a config, 1 PiB, so that a sum of several sizes never overflows a `u64`.
pub(crate) const SIZE_MAX: u64 = 1 << 50;

/// The longest time in a config, so that a point in time plus several times never overflows.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The minimum of waits and time limits. A limit of zero would always have passed already.
pub const TIME_MIN: Duration = Duration::from_millis(1);

/// The maximum length of a DNS name as text. In a message, it has 255 bytes (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// The values that `batch.max_bytes` may have for one type of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchBytes {
    /// The value if the config sets none.
    pub default: u64,
    /// The largest value. `None` if the protocol has no limit.
    pub max: Option<u64>,
}

impl BatchBytes {
    /// The values for a protocol that has no limit: 4 MiB by default.
    pub const UNLIMITED: Self = Self { default: 4 * MIB, max: None };
}

/// Returns a time of this many seconds.
pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Returns a time of this many milliseconds.
pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Returns the time, or `None` if it is zero. In several keys, `"0s"` means "never".
pub fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

/// Parses a size such as `64MiB`, `4MB` or `512`, in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", KIB),
        ("MiB", MIB),
        ("GiB", GIB),
    ];
    let size = number_of_units(text, &UNITS).ok_or(
        "is not a size, allowed: a whole number of bytes, or one with \
         B, kB, MB, GB, KiB, MiB or GiB, such as \"64MiB\"",
    )?;
    size.filter(|size| *size <= SIZE_MAX)
        .ok_or_else(|| format!("is too large, allowed: at most {}", show_size(SIZE_MAX)))
}

/// Parses a rate such as `5MB/s`, in bytes per second.
pub fn rate(text: &str) -> Result<u64, String> {
    let wrong =
        || "is not a size per second, allowed: at least 1kB/s, such as \"5MB/s\"".to_owned();
    let bytes = size(text.strip_suffix("/s").ok_or_else(wrong)?).map_err(|_| wrong())?;
    if bytes >= 1000 { Ok(bytes) } else { Err(wrong()) }
}

/// Parses a time such as `500ms`, `10s`, `5m` or `24h`.
pub fn time(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let time = number_of_units(text, &UNITS)
        .ok_or("is not a time, allowed: a whole number with ms, s, m or h, such as \"10s\"")?;
    time.map(Duration::from_millis)
        .filter(|time| *time <= TIME_MAX)
        .ok_or_else(|| format!("is too long, allowed: at most {}", show_time(TIME_MAX)))
}

/// Returns `true` if the text has a `$` (not `$$`) before a name: an upper-case letter, one or more
/// upper-case letters, digits or `_`, and no lower-case letter after them.
pub(crate) fn names_a_variable(text: &str) -> bool {
    let is_part = |it: char| it.is_ascii_uppercase() || it.is_ascii_digit() || it == '_';
    let is_name = |rest: &str| {
        let after = rest.trim_start_matches(is_part);
        rest.len() - after.len() >= 2
            && rest.starts_with(|it: char| it.is_ascii_uppercase())
            && !after.starts_with(|it: char| it.is_ascii_lowercase())
    };
    let mut is_second = false;
    text.split('$').skip(1).any(|rest| {
        let was_second = std::mem::replace(&mut is_second, rest.is_empty());
        !was_second && is_name(rest)
    })
}

/// Reads a number and its unit. `None` for another form, `Some(None)` if the value is too large.
fn number_of_units(text: &str, units: &[(&str, u64)]) -> Option<Option<u64>> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = text.split_at_checked(digits).filter(|_| digits > 0)?;
    let (_, unit) = units.iter().find(|(unit, _)| *unit == name)?;
    Some(number.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit)))
}

/// Returns a size in the largest unit (GiB, MiB, KiB) of which it is a multiple, such as `64MiB`,
/// or else in bytes, such as `1000`. [`size`] can parse the text.
pub fn show_size(size: u64) -> String {
    for (name, unit) in [("GiB", GIB), ("MiB", MIB), ("KiB", KIB)] {
        if size != 0 && size.is_multiple_of(unit) {
            return format!("{}{name}", size / unit);
        }
    }
    size.to_string()
}

/// Returns a time, in whole milliseconds, in a short form that [`time`] can parse: `5m`, `90s`.
pub fn show_time(time: Duration) -> String {
    let millis = time.as_millis();
    for (name, unit) in [("h", 3_600_000), ("m", 60_000)] {
        // One minute is printed as "60s", and 90 seconds as "90s", as people write them.
        if millis > unit && millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

/// Returns a range in words: `at least 1s`, or `1s to 15s`. `None` if every value is allowed.
pub fn allowed<T: Copy>(range: &Range<T>, show: impl Fn(T) -> String) -> Option<String> {
    match *range {
        (Bound::Included(least), Bound::Included(most)) => {
            Some(format!("{} to {}", show(least), show(most)))
        }
        (Bound::Included(least), _) => Some(format!("at least {}", show(least))),
        (_, Bound::Included(most)) => Some(format!("at most {}", show(most))),
        _ => None,
    }
}

/// The values that a key allows.
pub type Range<T> = (Bound<T>, Bound<T>);

/// Returns the two ends of a range.
pub fn bounds<T: Copy>(range: &impl RangeBounds<T>) -> Range<T> {
    (range.start_bound().cloned(), range.end_bound().cloned())
}

/// Parses `IP:PORT`, an address that the relay binds. With port 0, the kernel chooses a port.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "is not IP:PORT, allowed: an address such as \"0.0.0.0:3000\", or \"[::]:3000\" \
         for IPv6 (a name is not)"
            .to_owned()
    })
}

/// Parses `host:port`, the address of a peer.
pub fn host_port(text: &str) -> Result<HostPort, String> {
    let wrong = |what: &str| {
        Err(format!("{what}, allowed: host:port such as \"10.0.0.5:5000\", IPv6 in brackets"))
    };
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("has no port") };
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(Some(host)) if host.parse::<Ipv6Addr>().is_ok() => host,
        Some(_) => return wrong("has no IPv6 address between its brackets"),
        None if host.contains(':') => return wrong("has more than one colon"),
        None => host,
    };
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() {
        return wrong("has no host");
    }
    if host.len() > HOST_BYTES_MAX || !host.chars().all(in_a_name) {
        return wrong("has a host that is neither an address nor a name");
    }
    // `parse` alone would accept "+5".
    match port.parse::<u16>() {
        Ok(number) if number != 0 && port.bytes().all(|c| c.is_ascii_digit()) => {
            Ok(HostPort { host: host.to_owned(), port: number })
        }
        _ => wrong("has a port that is not 1 to 65535"),
    }
}

/// Parses an http or https URL of a consumer.
///
/// # Errors
///
/// The text shows nothing of the URL, because its path, query and user may be secrets.
pub fn url(text: &str) -> Result<Url, String> {
    let allowed = "allowed: http://HOST[:PORT]/PATH or https://…";
    let url = Url::parse(text).map_err(|why| format!("is not a URL ({why}), {allowed}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("has a scheme that is not http or https, {allowed}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user name or password in it, use basic_auth instead".to_owned());
    }
    if url.port() == Some(0) {
        return Err(format!("has port 0, {allowed}"));
    }
    if url.fragment().is_some() {
        return Err(format!("has a fragment (#…), which is never sent, {allowed}"));
    }
    Ok(url)
}

/// Checks the URL of an HTTP proxy. The URL may contain a user and a password.
///
/// # Errors
///
/// The text shows nothing of the URL.
pub fn proxy_url(text: &str) -> Result<(), String> {
    let allowed = "allowed: http://[USER:PASSWORD@]HOST[:PORT]";
    let url = Url::parse(text).map_err(|why| format!("is not a URL ({why}), {allowed}"))?;
    if url.scheme() != "http" {
        return Err(format!("has a scheme that is not http, {allowed}"));
    }
    if url.port() == Some(0) {
        return Err(format!("has port 0, {allowed}"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("has more than a host and a port, {allowed}"));
    }
    Ok(())
}

/// Parses the name of an output or a source. `queue` is refused: metrics use it for the queue.
pub fn output_name(text: &str) -> Result<String, String> {
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let in_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !starts || text.len() > 63 || !text.chars().all(in_a_name) {
        return Err(
            "is not a name, allowed: 1 to 63 characters (a-z, 0-9, -), not starting with -"
                .to_owned(),
        );
    }
    if text == "queue" {
        return Err("is the name of the queue itself in metrics: choose another name".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses the name of a Kafka topic.
pub fn topic(text: &str) -> Result<String, String> {
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=249).contains(&text.len())
        || !text.chars().all(in_a_name)
        || [".", ".."].contains(&text)
    {
        return Err(
            "is not a topic, allowed: 1 to 249 characters (a-z, A-Z, 0-9, ., _, -)".to_owned()
        );
    }
    Ok(text.to_owned())
}

/// Parses the path below which a listener accepts events.
pub fn path_prefix(text: &str) -> Result<String, String> {
    let in_a_path = |c: char| c.is_ascii_graphic() && !"?#".contains(c);
    if !text.starts_with('/') || !text.chars().all(in_a_path) {
        return Err(
            "must begin with \"/\" and contain only printable ASCII without spaces, ? and #"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// Parses 1 to `bytes_max` printable ASCII characters without space, such as a name of RFC 5424.
pub fn printable(text: &str, bytes_max: usize) -> Result<String, String> {
    if text.is_empty() || text.len() > bytes_max || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!(
            "is not a valid name, allowed: 1 to {bytes_max} printable ASCII characters without \
             spaces"
        ));
    }
    Ok(text.to_owned())
}

/// Parses the name that a peer's certificate must have: a DNS name or an IP address.
pub fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            Err("is not a server name, allowed: a DNS name or an IP address without brackets"
                .to_owned())
        }
    }
}

/// Checks the user name of Basic authentication or SASL. RFC 7617 §2 (Basic) allows no colon and no
/// control character in it.
///
/// # Errors
///
/// The text says what is wrong and what is allowed. It does not show the user name.
pub fn user_name(text: &str) -> Result<(), String> {
    if text.is_empty() || text.contains(|c: char| c == ':' || c.is_control()) {
        return Err(
            "is not a username, allowed: one or more characters, without colons and control \
             characters"
                .to_owned(),
        );
    }
    Ok(())
}

/// Parses the name of a request header, and returns the name in lower case.
pub fn header_name(text: &str) -> Result<String, String> {
    // The headers about the body and the connection. The relay itself sets them.
    const OURS: [&str; 6] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "content-type",
        "content-encoding",
    ];
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        "is not a header name, allowed: letters, digits and !#$%&'*+-.^_`|~".to_owned()
    })?;
    if OURS.contains(&name.as_str()) {
        return Err("is set by the relay itself: use another header".to_owned());
    }
    Ok(name.as_str().to_owned())
}

/// Checks the value of a request header.
///
/// # Errors
///
/// The text says what is wrong and what is allowed. It does not show the value.
pub fn header_value(text: &str) -> Result<(), String> {
    // RFC 9110 also allows the bytes 0x80 to 0xff, as obsolete. Peers interpret them differently.
    if !text.chars().all(|c| matches!(c, '\t' | ' '..='~')) {
        return Err("is not a header value, allowed: printable ASCII, space and tab".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::list;

    #[test]
    fn sizes_and_times_are_read_and_written() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("7B", 7),
            ("4MB", 4_000_000),
            ("3kB", 3000),
            ("2GB", 2_000_000_000),
            ("64KiB", 65_536),
            ("64MiB", 67_108_864),
            ("1GiB", 1_073_741_824),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
            assert_eq!(size(&show_size(expected)), Ok(expected), "{text}");
        }
        for text in list(
            r"
|MiB|1.5MiB|-1|+1|64 MiB|64mib|64M|99999999999999999999|9999999GiB
",
        ) {
            assert!(size(text).is_err(), "{text}");
        }
        for (text, expected) in [
            ("0s", 0),
            ("500ms", 500),
            ("60s", 60_000),
            ("60m", 3_600_000),
            ("10s", 10_000),
            ("90s", 90_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(expected)), "{text}");
            assert_eq!(show_time(Duration::from_millis(expected)), text);
        }
        for text in ["", "0", "10", "s", "1m30s", "1.5s", "-1s", "1d", "9999999999h"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, host, port) in [
            ("10.0.0.5:5000", "10.0.0.5", 5000),
            ("log_stash-0.logs.svc.cluster.local.:1", "log_stash-0.logs.svc.cluster.local.", 1),
            ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ] {
            let address = host_port(text).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for text in list(
            r"
|host|:5000|host:|host:0|host:65536|host:http|::1:5000|[::1]|[host]:1|[]:1|[::1:5|a b:1
http://host:1|user@host:1|host:+5
",
        ) {
            assert!(host_port(text).is_err(), "{text}");
        }
        for text in
            ["", ":3000", "localhost:3000", "3000", "0.0.0.0", "[::]", "::1:3000", "1.2.3.4:70000"]
        {
            assert!(socket_address(text).is_err(), "{text}");
        }
        assert!(socket_address("[::]:0").is_ok());
    }

    #[test]
    fn a_url_is_http_with_a_host_and_without_a_user() {
        for text in ["http://a", "https://a:8443/b?c=d", "http://[::1]:80/", "HTTPS://A/"] {
            assert!(url(text).is_ok(), "{text}");
        }
        for text in list(
            r"
|a|/b|ftp://a/|http://|https:///b?|http://u@a/|http://u:p@a/|http://:p@a/|http://a:0/
http://a:99999/|http://a/#b|file:///etc
",
        ) {
            let wrong = text != "https:///b?"; // WHATWG reads this one as the host `b`.
            assert_eq!(url(text).is_err(), wrong, "{text}");
        }
    }
}
