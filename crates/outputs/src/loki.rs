//! `type = "loki"`: the push API of Grafana Loki.
//!
//! A request has a stream for each verb of its events, and a stream has its events in the order of
//! the queue. The line of an entry is the unchanged event. There are few labels, because each set
//! of labels is a separate stream. User, object, URI and response code are structured metadata of
//! entries.
//!
//! An event that is sent again has the same time, labels and line. For Loki, this is the same
//! entry, so nothing is stored twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;

use super::event_fields::{EventFields, unescaped};
use super::http::HttpConnector;
use super::http::api::{Api, Encoded, Reply, RequestHead, TestRequest, reports_error};
use super::setup::{IntoConnector, Setup};
use config::{Compression, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::{Table, optional};
use delivery::prepared::Connector;
use queue::{Batch, Identity, lines};
use transform::shape::write_string;

const TENANT: &str = "x-scope-orgid";

/// The maximum bytes of an answer that is parsed. Loki's own answers are empty, or one line.
const ANSWER_BYTES: usize = 64 * 1024;

/// The maximum number of labels in a config: Loki accepts 15 by default
/// (`max_label_names_per_series`), and each stream also has `log_type` and `verb`.
const LABELS_MAX: usize = 13;

/// The maximum bytes of a label's value that Loki accepts by default (`max_label_value_length`).
const LABEL_BYTES_MAX: usize = 2048;

/// The values of the label `verb`: the verbs of Kubernetes, and `other` for any other verb, because
/// a client of kube-apiserver can choose its verb.
const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "other"];

/// The maximum bytes of a value in the metadata; longer values are cut. Loki refuses an entry with
/// more than 64 KB of metadata (`max_structured_metadata_size`).
const METADATA_VALUE_BYTES_MAX: usize = 4096;

/// The maximum number of members of an event that become metadata of its entry. Loki accepts 128
/// (`max_structured_metadata_entries_count`).
const METADATA: usize = 10;

const _: () = assert!(METADATA * (METADATA_VALUE_BYTES_MAX + 64) <= 64_000 && METADATA <= 128);

/// The beginning and the end of a request's body. The streams are between them.
const FRAME: (&[u8], &[u8]) = (b"{\"streams\":[", b"]}");

const STREAM_END: &[u8] = b"]}";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The consumer's URLs, and the settings of requests. The tenant is among the headers.
    client: HttpClient,
    format: Format,
}

#[derive(Debug, Clone, PartialEq)]
struct Format {
    /// The configured labels of each stream.
    labels: BTreeMap<String, String>,
    timestamp: Timestamp,
    metadata: bool,
}

/// The values of the key `timestamp`: the time of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timestamp {
    /// The time of the event's stage. If the event has none, the time of its acceptance.
    Event,
    /// The time at which the relay accepted the event.
    Received,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "loki";
    const SAMPLE: &'static str = "tls = {}\nbasic_auth = {}";
    const MEMORY: u64 = 4 * 4 * (4 << 20);

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::Gzip, true);
        let (client, (tenant, format)) = HttpClient::read(t, &keys, |t| {
            let meaning = "tenant (X-Scope-OrgID header)";
            let tenant = t.secret(optional("tenant", "string", "none", meaning), tenant);
            let meaning = "labels of each stream, in addition to `log_type` and `verb`; at most 13";
            let labels = t.word_map(("labels", "table of strings", meaning), label_name, label);
            if labels.len() > LABELS_MAX {
                t.error("labels", format!("has too many labels, allowed: at most {LABELS_MAX}"));
            }
            let words = [("event", Timestamp::Event), ("received", Timestamp::Received)];
            let meaning = "time of each entry. `event`: the time of the event's stage; `received`: \
                           when the relay accepted it (for old events, which Loki may reject)";
            let timestamp = t.choice("timestamp", &words, Some(Timestamp::Event), meaning);
            let meaning = "`true`: send user, object and other fields as structured metadata";
            let metadata = t.flag("metadata", true, meaning);
            (tenant, timestamp.map(|timestamp| Format { labels, timestamp, metadata }))
        });
        let mut client = client?;
        // pkg/loghttp/push/push.go of Loki (main, August 2026): gzip, deflate and snappy.
        if client.compression == Compression::Zstd {
            t.error("compression", "is not supported by Loki, allowed: \"none\", \"gzip\"");
        }
        if t.is_set("tenant") && client.headers.contains_key(TENANT) {
            let what = format!("conflicts with the header `{TENANT}`: set only one of the two");
            t.error("tenant", what);
        }
        client.headers.extend(tenant.map(|tenant| (TENANT.to_owned(), tenant)));
        Some(Self { client, format: format? })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn event_limit(&self) -> Option<&'static str> {
        Some(
            "By default, Loki rejects events over 256 KB, and they become dead letters or are \
             lost. Set it to Loki's max_line_size, such as \"256kB\"",
        )
    }
}

/// Checks the name of a tenant. The error text does not contain the name.
fn tenant(name: &str) -> Result<(), String> {
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
    if !(1..=150).contains(&name.len())
        || !name.chars().all(in_a_name)
        || [".", ".."].contains(&name)
    {
        return Err("is not a tenant, allowed: 1 to 150 letters, digits and !-_.*'()".to_owned());
    }
    Ok(())
}

fn label_name(name: &str) -> Result<String, String> {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !begins || !name.chars().all(in_a_name) || name.starts_with("__") || name.len() > 1024 {
        return Err(
            "is not a label, allowed: letters, digits and _, not beginning with a digit or __"
                .to_owned(),
        );
    }
    if ["log_type", "verb"].contains(&name) {
        return Err("is set by the relay itself: use another label".to_owned());
    }
    Ok(name.to_owned())
}

fn label(value: &str) -> Result<String, String> {
    if !(1..=LABEL_BYTES_MAX).contains(&value.len()) || value.chars().any(char::is_control) {
        return Err(format!(
            "is not a valid label value, allowed: 1 to {LABEL_BYTES_MAX} bytes without control \
             characters"
        ));
    }
    Ok(value.to_owned())
}

impl Settings {
    pub(crate) fn api(&self) -> Arc<dyn Api> {
        Arc::new(self.format.clone())
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(), setup)
    }
}

impl Api for Format {
    fn path(&self) -> &'static str {
        "/loki/api/v1/push"
    }

    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn test_requests(&self) -> Vec<TestRequest> {
        let head = RequestHead::post(self.path(), self.content_type());
        vec![TestRequest { head, body: br#"{"streams":[]}"# }]
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    fn encode(&self, batch: Batch, _: Identity, max_bytes: u64) -> Encoded {
        let mut streams: [Vec<u8>; VERBS.len()] = Default::default();
        let (mut size, mut events) = (FRAME.0.len() + FRAME.1.len(), 0);
        for (event, (_, received)) in lines(&batch.pieces).zip(batch.places()) {
            let fields = EventFields::of(event);
            let verb = fields.verb.map(unescaped).unwrap_or_default();
            let known = VERBS.iter().position(|known| *known == verb);
            let index = known.unwrap_or(VERBS.len() - 1);
            let (verb, stream) = (VERBS[index], &mut streams[index]);
            let before = stream.len();
            // A new stream also needs room for its end and a comma.
            let end = if stream.is_empty() { STREAM_END.len() + 1 } else { 0 };
            if stream.is_empty() {
                self.begin_stream(verb, stream);
            } else {
                stream.push(b',');
            }
            self.write_entry(event, &fields, received, stream);
            let added = stream.len() - before + end;
            if events > 0 && (size + added) as u64 > max_bytes {
                stream.truncate(before);
                break;
            }
            size += added;
            events += 1;
        }
        let mut parts = vec![FRAME.0.to_vec()];
        for mut stream in streams.into_iter().filter(|stream| !stream.is_empty()) {
            if parts.len() > 1 {
                parts.push(b",".to_vec());
            }
            stream.extend_from_slice(STREAM_END);
            parts.push(stream);
        }
        parts.push(FRAME.1.to_vec());
        Encoded::of_parts(parts, events)
    }

    /// Accepts 204, which Loki answers, and 200 with a body that is not a web page and reports no
    /// error.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String> {
        match (reply.status.as_u16(), reply.body) {
            (204, _) => Ok(()),
            (200, Some(body)) if !reply.is_page() && !reports_error(body) => Ok(()),
            (260, _) => Err("Loki blocks writes for this tenant, and stored nothing".to_owned()),
            _ => Err("this is not a response from Loki's push API".to_owned()),
        }
    }

    /// Loki answers 422 to a request without streams.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        match reply.status {
            StatusCode::UNPROCESSABLE_ENTITY if !reply.is_page() => Ok(()),
            _ => self.tested_by_status(reply),
        }
    }
}

impl Format {
    /// Writes the beginning of the stream of a verb, up to its first entry.
    fn begin_stream(&self, verb: &str, body: &mut Vec<u8>) {
        body.extend_from_slice(b"{\"stream\":{\"log_type\":\"audit\"");
        for (name, value) in &self.labels {
            write_member(name, value, body);
        }
        write_member("verb", verb, body);
        body.extend_from_slice(b"},\"values\":[");
    }

    /// Writes an entry: its time, its line and its metadata. `received` is the time of acceptance
    /// in milliseconds since 1970.
    fn write_entry(
        &self,
        event: &[u8],
        fields: &EventFields<'_>,
        received: u64,
        body: &mut Vec<u8>,
    ) {
        let time = match self.timestamp {
            Timestamp::Event => fields.time,
            Timestamp::Received => None,
        };
        let time = time.unwrap_or(received.saturating_mul(1_000_000));
        body.extend_from_slice(b"[\"");
        body.extend_from_slice(itoa::Buffer::new().format(time).as_bytes());
        body.extend_from_slice(b"\",");
        write_string(event, body);
        if self.metadata {
            body.extend_from_slice(b",{");
            let begin = body.len();
            for (name, value) in metadata(fields) {
                write_metadata(name, value.unwrap_or_default(), body);
            }
            if let Some(code) = fields.code {
                write_metadata("code", itoa::Buffer::new().format(code).as_bytes(), body);
            }
            // Each member is written with a comma before it, which the first member must not have.
            if body.len() > begin {
                body.remove(begin);
            }
            body.push(b'}');
        }
        body.push(b']');
    }
}

/// Returns the texts of an event for the structured metadata: names, and values as written.
fn metadata<'a>(fields: &EventFields<'a>) -> [(&'static str, Option<&'a [u8]>); METADATA - 1] {
    [
        ("level", fields.level),
        ("stage", fields.stage),
        ("user", fields.username),
        ("user_agent", fields.user_agent),
        ("request_uri", fields.request_uri),
        ("api_group", fields.object.api_group),
        ("resource", fields.object.resource),
        ("namespace", fields.object.namespace),
        ("name", fields.object.name),
    ]
}

/// Writes a text of the metadata, after a comma. `written` is the text as it is in the event: the
/// bytes between the quotes, with escapes. Writes nothing if the text is empty.
fn write_metadata(name: &str, written: &[u8], body: &mut Vec<u8>) {
    if written.len() > METADATA_VALUE_BYTES_MAX || memchr::memchr(b'\\', written).is_some() {
        let value = unescaped(written);
        let end = value.floor_char_boundary(METADATA_VALUE_BYTES_MAX);
        write_member(name, value.get(..end).unwrap_or_default(), body);
    } else if !written.is_empty() {
        for part in [b",\"", name.as_bytes(), b"\":\"", written, b"\""] {
            body.extend_from_slice(part);
        }
    }
}

/// Writes a member of a JSON object, with a comma before it.
fn write_member(name: &str, value: &str, body: &mut Vec<u8>) {
    body.push(b',');
    write_string(name.as_bytes(), body);
    body.push(b':');
    write_string(value.as_bytes(), body);
}
