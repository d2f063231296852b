//! `type = "syslog"`: RFC 5424 messages with octet counting (RFC 6587 §3.4.1, RFC 5425 §4.3) or a line break each.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::BytesMut;
use memchr::memmem::FinderRev;

use super::stream::Encode;
use super::stream::Encoded;
use super::tcp::line;
use super::tcp::lines;
use crate::audit::scan;
use crate::config;
use crate::config::Framing;
use crate::config::Rejected;
use crate::config::SyslogOutput;
use crate::queue::Batch;

/// How events become messages, each behind its frame.
pub struct Messages {
    framing: Framing,
    rfc5424: Rfc5424,
}

impl Messages {
    /// As the config says; `annotate` is put in each message's structured data too.
    #[must_use]
    pub fn new(
        config: &SyslogOutput,
        rejected: Rejected,
        annotate: &BTreeMap<String, String>,
    ) -> Self {
        let rfc5424 = Rfc5424::new(&config.messages, rejected, annotate);
        Self { framing: config.framing, rfc5424 }
    }
}

impl Encode for Messages {
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

/// What is in the messages, whatever frames them.
#[derive(Clone)]
pub(super) struct Rfc5424 {
    /// `<PRI>1 `.
    before_time: String,
    /// From behind TIMESTAMP to MSG: PROCID and MSGID are nil, and no BOM follows.
    after_time: String,
    /// `None`: no limit.
    bytes_max: Option<u64>,
    rejected: Rejected,
}

/// An event's message.
pub(super) struct Message<'a> {
    pub(super) length: usize,
    parts: [&'a [u8]; 4],
}

impl Rfc5424 {
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

    /// Messages longer than that are given up too.
    pub(super) fn at_most(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(self.bytes_max.map_or(bytes, |max| max.min(bytes)));
        self
    }

    /// Bytes that the messages of a batch may take, with a frame for each.
    pub(super) fn capacity(&self, batch: &Batch) -> usize {
        let header = self.before_time.len() + TIMESTAMP_MAX + self.after_time.len() + FRAME_MAX;
        let capacity = batch.bytes + batch.events * header as u64;
        usize::try_from(capacity).unwrap_or_default()
    }

    /// The message of an event, `None` where it is longer than allowed and given up; an error where it is that and may not
    /// be given up.
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
    pub(super) fn write(&self, out: &mut BytesMut) {
        for part in self.parts {
            out.extend_from_slice(part);
        }
    }
}

/// STRUCTURED-DATA (RFC 5424 §6.3): one element, or nil. Names without an enterprise number are the IETF's; the one that
/// RFC 5612 sets apart for documentation is nobody's.
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

/// The most that the frame of a message takes: relp's.
const FRAME_MAX: usize = 32;

/// `2026-11-20T06:24:22.439323+00:00`.
const TIMESTAMP_MAX: usize = 32;

/// The event's stageTimestamp, which kube-apiserver writes as RFC 5424 §6.2.3 wants it; else the nil value.
fn timestamp(event: &[u8]) -> &[u8] {
    let written = timestamp_at_the_end(event);
    match written.or_else(|| scan::member(event, "stageTimestamp")).unwrap_or_default() {
        [b'"', time @ .., b'"'] if is_rfc5424(time) => time,
        _ => b"-",
    }
}

/// The value of stageTimestamp where kube-apiserver writes it: as the last member, or the last before annotations. Saves
/// the walk over all members, which is a fifth of what a syslog output costs.
fn timestamp_at_the_end(event: &[u8]) -> Option<&[u8]> {
    static NAME: LazyLock<FinderRev<'static>> =
        LazyLock::new(|| FinderRev::new("\"stageTimestamp\":"));
    let from = NAME.rfind(event)? + NAME.needle().len();
    let rest = event.get(from..)?;
    let length = memchr::memchr(b'"', rest.get(1..)?)? + 2;
    let (value, behind) = rest.split_at_checked(length)?;
    // One brace left to close: it is a member of the event itself and not of an object within.
    let is_last = match behind.strip_prefix(b",\"annotations\":") {
        None => behind == b"}",
        Some(annotations) => {
            scan::value_end(annotations).and_then(|end| annotations.get(end..)) == Some(b"}")
        }
    };
    is_last.then_some(value)
}

/// Whether a text has the shape of RFC 5424's TIMESTAMP: what comes from outside must not add fields to the header.
fn is_rfc5424(time: &[u8]) -> bool {
    let matches = |text: &[u8], pattern: &[u8]| {
        text.len() == pattern.len()
            && text.iter().zip(pattern).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                _ => byte == wanted,
            })
    };
    let Some((date, mut rest)) = time.split_at_checked(19) else { return false };
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&digits) {
            return false;
        }
        rest = &fraction[digits..];
    }
    matches(date, b"0000-00-00T00:00:00")
        && (rest == b"Z" || matches(rest, b"+00:00") || matches(rest, b"-00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Claim;
    use bytes::Bytes;

    fn batch(lines: &str) -> Batch {
        Batch {
            claim: Claim { start: 0, end: 1 },
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
        for good in
            ["2026-11-20T06:24:22Z", "2026-11-20T06:24:22.1Z", "2026-11-20T06:24:22.439323+01:00"]
        {
            assert!(is_rfc5424(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "x",
            "2026-11-20 06:24:22Z",
            "2026-11-20T06:24:22.4393231Z",
            "2026-11-20T06:24:22",
            "2026-11-20T06:24:22.Z",
            "2026-11-20T06:24:22Z ",
        ] {
            assert!(!is_rfc5424(bad.as_bytes()), "{bad}");
        }
    }
}
