//! `type = "syslog"`: RFC 5424 messages, framed by octet counting (RFC 6587 §3.4.1, RFC 5425 §4.3)
//! or by a line break after each.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::BytesMut;
use memchr::memmem::FinderRev;

use super::setup::IntoConnector;
use super::setup::Setup;
use super::transport::encode::Encode;
use super::transport::encode::Encoded;
use super::transport::stream;
use crate::audit::scan;
use crate::config;
use crate::config::OutputSettings;
use crate::config::Rejected;
use crate::config::Stream;
use crate::config::Target;
use crate::config::table::Table;
use crate::delivery::lines::line;
use crate::delivery::lines::lines;
use crate::delivery::prepared::Connector;
use crate::queue::Batch;

/// The settings of an output of `type = "syslog"`, as read from the config.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How messages are separated from each other on the connection.
    pub framing: Framing,
    /// The parts of a message that are the same in all messages.
    pub messages: config::Messages,
    /// The time from the moment when the peer's kernel has acknowledged sent bytes until these
    /// bytes count as delivered. If the connection is reset within this time, the bytes are sent
    /// again.
    pub replay_window: Duration,
    /// The settings for the consumer's addresses and for the connection.
    pub stream: Stream,
}

/// The values of the key `framing` of `type = "syslog"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Each message is preceded by its length: `LENGTH SP MESSAGE` (RFC 6587 §3.4.1, RFC 5425
    /// §4.3).
    OctetCounting,
    /// Each message is followed by a line feed: `MESSAGE LF` (RFC 6587 §3.4.2).
    Newline,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "syslog";
    const SAMPLE: &'static str = "tls = {}";

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let framing = t.choice(
            "framing",
            &[("octet_counting", Framing::OctetCounting), ("newline", Framing::Newline)],
            Some(Framing::OctetCounting),
            "how messages are told apart (RFC 6587, RFC 5425)",
        );
        let messages = config::Messages::read(t);
        let replay_window = Stream::read_replay_window(t);
        let stream = Stream::read(t);
        Some(Self { framing: framing?, messages: messages?, replay_window, stream: stream? })
    }

    fn targets(&self) -> Vec<Target> {
        self.stream.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        Some(("replay_window", self.replay_window))
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        let config::Output { rejected, filter, .. } = setup.output;
        let messages = Messages::new(self, *rejected, &filter.annotate);
        let dialer = setup.dialer(&self.stream);
        Box::new(stream::StreamConnector::new(dialer, messages, self.replay_window))
    }
}

/// The encoder that turns events into syslog messages, each with a frame (a length or a line feed)
/// that separates it from the next message.
pub struct Messages {
    framing: Framing,
    rfc5424: Rfc5424,
}

impl Messages {
    /// Makes an encoder from the config. The names and values of `annotate` are added to the
    /// structured data of each message. `rejected` says what happens to an event whose message is
    /// too long.
    #[must_use]
    pub fn new(config: &Settings, rejected: Rejected, annotate: &BTreeMap<String, String>) -> Self {
        let rfc5424 = Rfc5424::new(&config.messages, rejected, annotate);
        Self { framing: config.framing, rfc5424 }
    }
}

impl Encode for Messages {
    const BATCH_BYTES: u64 = 512 * 1024;

    fn encode(&self, batch: Batch) -> Result<Encoded, String> {
        let mut out = BytesMut::with_capacity(self.rfc5424.capacity(&batch));
        let mut rejected = Vec::new();
        for event in lines(&batch.pieces) {
            let Some(message) = self.rfc5424.message(event)? else {
                rejected.push(line(event));
                continue;
            };
            if self.framing == Framing::OctetCounting {
                out.extend_from_slice(message.length.to_string().as_bytes());
                out.extend_from_slice(b" ");
            }
            message.write(&mut out);
            if self.framing == Framing::Newline {
                out.extend_from_slice(b"\n");
            }
        }
        let pieces = if out.is_empty() { Vec::new() } else { vec![out.freeze()] };
        Ok(Encoded { pieces, rejected })
    }
}

/// The encoder that turns events into RFC 5424 messages. The caller adds the bytes that separate a
/// message from the next one.
#[derive(Clone)]
pub(super) struct Rfc5424 {
    /// The bytes before the TIMESTAMP: `<PRI>1 `.
    before_time: String,
    /// The bytes of a message between the fields TIMESTAMP and MSG: host name, app name, PROCID and
    /// MSGID (both nil), and structured data. MSG begins without a BOM.
    after_time: String,
    /// The most bytes of a message; `None`: there is no limit.
    bytes_max: Option<u64>,
    /// The decision about an event whose message is too long: dead letter, drop or retry.
    rejected: Rejected,
}

/// The syslog message of one event.
pub(super) struct Message<'a> {
    /// The length of the message in bytes.
    pub(super) length: usize,
    /// The bytes of the message in order: header, TIMESTAMP, the other fields, and the event.
    parts: [&'a [u8]; 4],
}

impl Rfc5424 {
    /// Makes an encoder from the config. The names and values of `annotate` are added to the
    /// structured data of each message. `rejected` says what happens to an event whose message is
    /// too long.
    pub(super) fn new(
        config: &config::Messages,
        rejected: Rejected,
        annotate: &BTreeMap<String, String>,
    ) -> Self {
        let config::Messages { hostname, app_name, .. } = config;
        Self {
            before_time: format!("<{}>1 ", config.priority),
            after_time: format!(" {hostname} {app_name} - - {} ", structured_data(annotate)),
            bytes_max: Some(config.max_message_bytes).filter(|max| *max > 0),
            rejected,
        }
    }

    /// Returns the same encoder, in which a message may have at most `bytes` bytes. A lower limit
    /// from the config stays in force.
    pub(super) fn at_most(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(self.bytes_max.map_or(bytes, |max| max.min(bytes)));
        self
    }

    /// Returns an upper limit for the number of bytes of all messages of a batch, with their
    /// frames. A buffer of this size never has to grow.
    pub(super) fn capacity(&self, batch: &Batch) -> usize {
        let header = self.before_time.len() + TIMESTAMP_MAX + self.after_time.len() + FRAME_MAX;
        let capacity = batch.bytes + batch.events * header as u64;
        usize::try_from(capacity).unwrap_or_default()
    }

    /// Returns the syslog message of an event. Returns `None` if the message is too long and the
    /// config says that such events are given up.
    ///
    /// # Errors
    ///
    /// The message is too long, and the config says that no event may be given up.
    pub(super) fn message<'a>(&'a self, event: &'a [u8]) -> Result<Option<Message<'a>>, String> {
        let parts =
            [self.before_time.as_bytes(), timestamp(event), self.after_time.as_bytes(), event];
        let length = parts.iter().map(|part| part.len()).sum();
        if self.bytes_max.is_none_or(|max| length as u64 <= max) {
            return Ok(Some(Message { length, parts }));
        }
        match self.rejected {
            Rejected::Retry => {
                Err(format!("a message of {length} bytes is longer than max_message_bytes"))
            }
            Rejected::DeadLetter | Rejected::Drop => Ok(None),
        }
    }
}

impl Message<'_> {
    /// Appends the message to `out`.
    pub(super) fn write(&self, out: &mut BytesMut) {
        for part in self.parts {
            out.extend_from_slice(part);
        }
    }
}

/// Returns the field STRUCTURED-DATA (RFC 5424 §6.3): one element with the names and values of
/// `annotate`, or nil (`-`) if there are none. The name of the element needs an enterprise number,
/// because names without one belong to the IETF. The number 32473 is reserved for documentation
/// (RFC 5612), so it belongs to nobody.
fn structured_data(annotate: &BTreeMap<String, String>) -> String {
    if annotate.is_empty() {
        return "-".to_owned();
    }
    let mut element = "[kube-audit-forwarder@32473".to_owned();
    for (name, value) in annotate {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
        element.push_str(&format!(" {name}=\"{value}\""));
    }
    element.push(']');
    element
}

/// The most bytes that a frame (length, number, separators) adds to a message. The frame of `relp`
/// is the longest.
const FRAME_MAX: usize = 32;

/// The most bytes of a TIMESTAMP: `2026-11-20T06:24:22.439323+00:00`.
const TIMESTAMP_MAX: usize = 32;

/// Returns the value of the event's member `stageTimestamp`, without quotes, if it is a valid
/// TIMESTAMP of RFC 5424 (§6.2.3), as kube-apiserver writes it. Otherwise returns the nil value
/// `-`.
fn timestamp(event: &[u8]) -> &[u8] {
    let written = timestamp_at_the_end(event);
    match written.or_else(|| scan::member(event, "stageTimestamp")).unwrap_or_default() {
        [b'"', time @ .., b'"'] if is_rfc5424(time) => time,
        _ => b"-",
    }
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
    use crate::queue::Claim;
    use bytes::Bytes;

    fn batch(lines: &str) -> Batch {
        Batch {
            claim: Claim::of(0, 1),
            events: lines.lines().count() as u64,
            bytes: lines.len() as u64,
            pieces: vec![Bytes::from(lines.to_owned())],
            origins: Vec::new(),
        }
    }

    fn messages(framing: Framing, bytes_max: Option<u64>) -> Messages {
        let config = config::Messages {
            priority: 134,
            hostname: "host".into(),
            app_name: "kube-audit".into(),
            max_message_bytes: bytes_max.unwrap_or_default(),
        };
        Messages { framing, rfc5424: Rfc5424::new(&config, Rejected::Drop, &BTreeMap::new()) }
    }

    #[test]
    fn what_is_added_to_events_is_in_the_structured_data_too() {
        let named = |pairs: &[(&str, &str)]| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            structured_data(&pairs.iter().map(owned).collect())
        };
        assert_eq!(named(&[]), "-");
        assert_eq!(
            named(&[("zone", r#"a"b]c\d ü"#), ("cluster", "prod-eu")]),
            r#"[kube-audit-forwarder@32473 cluster="prod-eu" zone="a\"b\]c\\d ü"]"#
        );
    }

    const EVENT: &str = r#"{"auditID":"ä","requestObject":{"stageTimestamp":"x"},"stageTimestamp":"2026-11-20T06:24:22.439323Z"}"#;

    #[test]
    fn a_message_is_header_and_event_and_its_length_counts_bytes() {
        let encoded =
            messages(Framing::OctetCounting, None).encode(batch(&format!("{EVENT}\n"))).unwrap();
        let message = format!("<134>1 2026-11-20T06:24:22.439323Z host kube-audit - - - {EVENT}");
        assert_eq!(encoded.pieces, [Bytes::from(format!("{} {message}", message.len()))]);
        let encoded =
            messages(Framing::Newline, None).encode(batch(&format!("{EVENT}\n"))).unwrap();
        assert_eq!(encoded.pieces, [Bytes::from(format!("{message}\n"))]);
    }

    #[test]
    fn a_message_too_long_is_refused_whole_and_its_neighbours_pass() {
        let lines = format!("{EVENT}\n{{\"x\":\"{}\"}}\n{EVENT}\n", "y".repeat(1000));
        let encoded = messages(Framing::Newline, Some(500)).encode(batch(&lines)).unwrap();
        let long = lines.lines().nth(1).unwrap();
        assert_eq!(encoded.rejected, [Bytes::from(format!("{long}\n"))]);
        assert_eq!(encoded.pieces[0].iter().filter(|byte| **byte == b'\n').count(), 2);
        let mut strict = messages(Framing::Newline, Some(500));
        strict.rfc5424.rejected = Rejected::Retry;
        assert!(strict.encode(batch(&lines)).is_err());
    }

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
            assert_eq!(std::str::from_utf8(timestamp(event.as_bytes())), Ok(own), "{event}");
        }
        for none in [
            format!(r#"{{"a":{{{inner}}}}}"#),
            r#"{"stageTimestamp":"}"#.to_owned(),
            r#"{"stageTimestamp":7}"#.to_owned(),
        ] {
            assert_eq!(timestamp(none.as_bytes()), b"-", "{none}");
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
            assert_eq!(timestamp(event.as_bytes()), b"-", "{bad}");
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
