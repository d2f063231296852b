//! `type = "syslog"`: RFC 5424 messages, framed by octet counting (RFC 6587 §3.4.1, RFC 5425 §4.3)
//! or by a line feed after each message.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;

use super::event_time::stage_time;
use super::setup::{IntoConnector, Setup};
use super::transport::encode::{Encode, Encoded};
use super::transport::stream;
use config::{OutputSettings, Rejected, Stream, Target};
use config_table::table::Table;
use delivery::link::{Parts, Verdict};
use delivery::prepared::Connector;
use queue::{Batch, lines};

/// The settings of an output of `type = "syslog"`, as read from the config.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The separation of messages on the connection.
    pub framing: Framing,
    /// The common parts of all messages.
    pub messages: config::Messages,
    /// The time that must pass without a reset after the peer's kernel has acknowledged bytes,
    /// until the bytes count as delivered. After an earlier reset, the bytes are sent again.
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
    const MEMORY: u64 = 0;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let framing = t.choice(
            "framing",
            &[("octet_counting", Framing::OctetCounting), ("newline", Framing::Newline)],
            Some(Framing::OctetCounting),
            "how messages are separated (RFC 6587, RFC 5425)",
        );
        let messages = config::Messages::read(t);
        let replay_window = Stream::read_replay_window(t);
        let stream = Stream::read(t);
        Some(Self { framing: framing?, messages: messages?, replay_window, stream: stream? })
    }

    fn targets(&self) -> Vec<Target> {
        self.stream.targets()
    }

    fn event_limit(&self) -> Option<&'static str> {
        self.messages.event_limit()
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

/// The encoder that turns events into framed syslog messages.
pub struct Messages {
    framing: Framing,
    rfc5424: Rfc5424,
}

impl Messages {
    /// Makes an encoder from the config. The names and values of `annotate` are added to the
    /// structured data of each message. `rejected` decides about an event whose message is too
    /// long.
    pub fn new(config: &Settings, rejected: Rejected, annotate: &BTreeMap<String, String>) -> Self {
        let rfc5424 = Rfc5424::new(&config.messages, rejected, annotate);
        Self { framing: config.framing, rfc5424 }
    }
}

impl Encode for Messages {
    const BATCH_BYTES: u64 = 512 * 1024;

    const HAS_LIMIT: bool = true;

    fn encode(&self, batch: Batch) -> Result<Encoded, String> {
        let mut out = BytesMut::with_capacity(self.rfc5424.capacity(&batch));
        let mut parts = Parts::default();
        for (event, position) in lines(&batch.pieces).zip(batch.positions()) {
            let Some(message) = self.rfc5424.message(event)? else {
                parts.add(position, Verdict::TooLong);
                continue;
            };
            parts.add(position, Verdict::Delivered);
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
        Ok(Encoded { pieces, parts })
    }
}

/// The encoder for RFC 5424 messages. The caller adds the bytes that separate two messages.
#[derive(Clone)]
pub(super) struct Rfc5424 {
    /// The bytes before the TIMESTAMP: `<PRI>1 `.
    before_time: String,
    /// The bytes between the fields TIMESTAMP and MSG: host name, app name, PROCID and MSGID (both
    /// nil), and structured data. MSG begins without a BOM.
    after_time: String,
    /// The maximum bytes of a message, if there is a limit.
    bytes_max: Option<u64>,
    /// The decision about an event whose message is too long: dead letter, drop or retry.
    rejected: Rejected,
}

/// The syslog message of one event.
pub struct Message<'a> {
    /// The length of the message in bytes.
    pub length: usize,
    /// The bytes of the message, in order: `before_time`, TIMESTAMP, `after_time`, and the event.
    parts: [&'a [u8]; 4],
}

impl Rfc5424 {
    /// Makes an encoder from the config. The names and values of `annotate` are added to the
    /// structured data of each message. `rejected` decides about an event whose message is too
    /// long.
    pub(crate) fn new(
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

    /// Limits messages to `bytes` bytes. A lower limit from the config stays in force.
    pub(super) fn at_most(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(self.bytes_max.map_or(bytes, |max| max.min(bytes)));
        self
    }

    /// Returns an upper limit for the bytes of all messages of a batch, with the bytes that
    /// separate them. A buffer of this size never has to grow.
    pub(crate) fn capacity(&self, batch: &Batch) -> usize {
        let header = self.before_time.len() + TIMESTAMP_MAX + self.after_time.len() + FRAME_MAX;
        let capacity = batch.bytes + batch.events * header as u64;
        usize::try_from(capacity).unwrap_or_default()
    }

    /// Returns the syslog message of an event. `None` if the message is too long and the config
    /// allows the relay to give up such events.
    ///
    /// # Errors
    ///
    /// The message is too long, and the config does not allow the relay to give up the event.
    pub(crate) fn message<'a>(&'a self, event: &'a [u8]) -> Result<Option<Message<'a>>, String> {
        let parts = [
            self.before_time.as_bytes(),
            stage_time(event).unwrap_or(b"-"),
            self.after_time.as_bytes(),
            event,
        ];
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
    pub fn write(&self, out: &mut BytesMut) {
        for part in self.parts {
            out.extend_from_slice(part);
        }
    }
}

/// Returns the field STRUCTURED-DATA (RFC 5424 §6.3): one element with the names and values of
/// `annotate`, or nil (`-`). The name of the element needs an enterprise number, because names
/// without one belong to the IETF. The number 32473 is reserved for documentation (RFC 5612), so it
/// belongs to nobody.
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

/// An upper limit for the bytes that framing adds to a message. `relp` adds the most: up to 28.
const FRAME_MAX: usize = 32;

/// The maximum bytes of a TIMESTAMP: `2026-11-20T06:24:22.439323+00:00`.
const TIMESTAMP_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{batch, rfc5424};
    use bytes::Bytes;
    use delivery::link::Part;
    use queue::{Claim, Position};

    fn messages(framing: Framing, bytes_max: u64) -> Messages {
        Messages { framing, rfc5424: rfc5424(bytes_max, Rejected::Drop) }
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
        let encoded = |framing| messages(framing, 0).encode(batch(0, &[EVENT])).unwrap().pieces;
        let message = format!("<134>1 2026-11-20T06:24:22.439323Z host app - - - {EVENT}");
        let counted = format!("{} {message}", message.len());
        assert_eq!(encoded(Framing::OctetCounting), [Bytes::from(counted)]);
        assert_eq!(encoded(Framing::Newline), [Bytes::from(format!("{message}\n"))]);
    }

    #[test]
    fn a_message_too_long_is_refused_whole_and_its_neighbours_pass() {
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(1000));
        let events = [EVENT, &long, EVENT];
        let encoded = messages(Framing::Newline, 500).encode(batch(0, &events)).unwrap();
        let part = |end, verdict| Part { end: Position::new(end), events: 1, verdict };
        let sent = [(1, Verdict::Delivered), (2, Verdict::TooLong), (3, Verdict::Delivered)];
        let sent = sent.map(|(end, verdict)| part(end, verdict));
        assert_eq!(encoded.parts.end(Claim::of(0, 3)), sent);
        assert_eq!(encoded.pieces[0].iter().filter(|byte| **byte == b'\n').count(), 2);
        let mut strict = messages(Framing::Newline, 500);
        strict.rfc5424.rejected = Rejected::Retry;
        assert!(strict.encode(batch(0, &events)).is_err());
    }
}
