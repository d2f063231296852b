//! `type = "otlp"`: log records of OpenTelemetry, by OTLP over HTTP with Protobuf.
//!
//! A request has one resource, one scope and a record for each event. The body of a record is the
//! unchanged event as a text. The messages have few fields, so they are written and read here
//! without a library. `opentelemetry/proto/collector/logs/v1/logs_service.proto` and its imports
//! define the numbers of the fields.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;

use super::event_fields::EventFields;
use super::http::HttpConnector;
use super::http::api::{
    Api, Encoded, JsonNumber, Outcome, Reply, RequestHead, Sent, TestRequest, write_events,
};
use super::setup::{IntoConnector, Setup};
use audit::scan;
use client::ask::JSON;
use config::{BatchBytes, Compression, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::Table;
use delivery::failure::Failure;
use delivery::link::{Part, Verdict};
use delivery::prepared::Connector;
use queue::{Batch, Identity, Take};
use telemetry::AttemptError;

/// The maximum bytes of an answer that is parsed. An answer has only a number and a message.
const ANSWER_BYTES: usize = 1 << 20;

/// The default of `batch.max_bytes`. Receivers take 4 MB or more.
const BATCH_BYTES: u64 = 4_000_000;

/// The name of the scope: the program that has written the records.
const SCOPE: &str = base::release::NAME;

/// `SEVERITY_NUMBER_INFO`. An audit event is information, whatever its audit level is.
const SEVERITY: u64 = 9;

/// The bytes that a request reserves for the keys and the lengths of its `ScopeLogs` and its
/// `ResourceLogs`, because the lengths are known only after the last record. A length of 5 bytes is
/// enough for 32 GiB.
const HEADS: u64 = 2 * (1 + 5);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    client: HttpClient,
    /// The attributes of the resource.
    resource: BTreeMap<String, String>,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "otlp";
    const SAMPLE: &'static str = "tls = {}\nbasic_auth = {}";
    const MEMORY: u64 = 4 * 4 * 4_000_000;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        // OTLP 1.x demands only that a receiver accepts requests without compression and with gzip.
        let keys = HttpKeys::of_requests(Compression::Gzip, true);
        let (client, resource) = HttpClient::read(t, &keys, |t| {
            let meaning = "resource attributes, such as \"k8s.cluster.name\"";
            let printable = |text: &str| config::printable(text, 255);
            t.word_map(("resource", "table of strings", meaning), printable, attribute)
        });
        Some(Self { client: client?, resource })
    }

    const BATCH_BYTES: BatchBytes = BatchBytes { default: BATCH_BYTES, max: None };

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }
}

fn attribute(value: &str) -> Result<String, String> {
    if value.len() > 4096 {
        return Err("is too long, allowed: at most 4096 bytes".to_owned());
    }
    Ok(value.to_owned())
}

impl Settings {
    pub(crate) fn api(&self) -> Arc<dyn Api> {
        let logs = Logs { resource: self.resource.clone() };
        Arc::new(logs)
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(), setup)
    }
}

/// The API for logs, with the settings of one output.
struct Logs {
    resource: BTreeMap<String, String>,
}

impl Api for Logs {
    fn path(&self) -> &'static str {
        "/v1/logs"
    }

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    /// The request has an empty `ResourceLogs`, because some receivers refuse an empty body.
    fn test_requests(&self) -> Vec<TestRequest> {
        let head = RequestHead::post(self.path(), self.content_type());
        vec![TestRequest { head, body: b"\x0a\x00" }]
    }

    /// A receiver may refuse the request because it has no records. If the refusal is in an
    /// encoding of OTLP, the receiver speaks OTLP.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        let is_otlp = reply.is_of_type(self.content_type()) || reply.is_of_type(JSON);
        match reply.status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY if is_otlp => Ok(()),
            _ => self.tested_by_status(reply),
        }
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    /// Writes an `ExportLogsServiceRequest`.
    fn encode(&self, batch: Batch, _: Identity, max_bytes: u64) -> Encoded {
        let (mut resource, mut scope) = (Vec::new(), Vec::new());
        write_message(1, &mut resource, |body| {
            for (name, value) in &self.resource {
                write_attribute(1, name, value.as_bytes(), body);
            }
        });
        write_message(1, &mut scope, |body| {
            write_bytes(1, SCOPE.as_bytes(), body);
            write_bytes(2, env!("CARGO_PKG_VERSION").as_bytes(), body);
        });
        let bytes = max_bytes.saturating_sub(HEADS + (resource.len() + scope.len()) as u64);
        let room = Take { bytes, events: u64::MAX };
        let mut records = Vec::with_capacity(usize::try_from(2 * batch.bytes).unwrap_or_default());
        let events = write_events(&batch, room, &mut records, |event, _, received, body| {
            write_message(2, body, |body| write_record(event, received, body));
        });
        // The lengths of the `ResourceLogs` and of its `ScopeLogs` are known only after the last
        // record.
        let mut head = Vec::new();
        let inner = (scope.len() + records.len()) as u64;
        write_length(1, resource.len() as u64 + length_of(inner), &mut head);
        head.append(&mut resource);
        write_length(2, inner, &mut head);
        head.append(&mut scope);
        Encoded::of_parts([head, records], events)
    }

    /// Accepts an `ExportLogsServiceResponse` with any status 2xx. OTLP asks for 200, but some
    /// receivers answer 201 or 204, and with an empty body.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String> {
        let is_understood = !reply.has_type_of_page() && rejected_in(reply).is_some();
        let what = || "the response is not an ExportLogsServiceResponse".to_owned();
        is_understood.then_some(()).ok_or_else(what)
    }

    fn judge(&self, reply: Reply<'_>, sent: &Sent) -> Outcome {
        let rejected = rejected_in(&reply).unwrap_or_default();
        if !reply.status.is_success() || rejected == 0 {
            return reply.by_status;
        }
        let refused = rejected.min(sent.events);
        let Reply { status, base, .. } = reply;
        let message = format!("{base}: answered {status}: {refused} of {} rejected", sent.events);
        let failure = Failure::new(AttemptError::Item, message);
        if refused == sent.events {
            // Nothing was stored: the only event of the request was rejected, or the receiver
            // rejects everything. A receiver that rejects everything is misconfigured, and a
            // refusal then gives up no event.
            return Outcome::Refused(failure);
        }
        let verdict = Verdict::Partly { refused, failure };
        Outcome::Judged(vec![Part { end: sent.claim.end, events: sent.events, verdict }])
    }
}

/// Writes the fields of a `LogRecord`. `received` is the time of the event's acceptance in
/// milliseconds since 1970.
fn write_record(event: &[u8], received: u64, body: &mut Vec<u8>) {
    let fields = EventFields::of(event);
    if let Some(time) = fields.time {
        write_fixed64(1, time, body);
    }
    write_key(2, VARINT, body);
    write_varint(SEVERITY, body);
    if let Some(level) = fields.level {
        write_bytes(3, &scan::key(level), body);
    }
    write_text(5, event, body);
    for (name, value) in [
        ("k8s.audit.event.level", fields.level),
        ("k8s.audit.event.stage", fields.stage),
        ("k8s.audit.event.user_agent", fields.user_agent),
        ("k8s.audit.event.request.uri", fields.request_uri),
        ("k8s.audit.event.request.verb", fields.verb),
        ("k8s.audit.event.object_ref.resource", fields.object.resource),
        ("k8s.audit.event.object_ref.name", fields.object.name),
        ("k8s.audit.event.object_ref.namespace", fields.object.namespace),
        ("k8s.audit.event.object_ref.api_group", fields.object.api_group),
        ("k8s.audit.event.object_ref.api_version", fields.object.api_version),
        ("k8s.user.username", fields.username),
    ] {
        if let Some(value) = value {
            write_attribute(6, name, &scan::key(value), body);
        }
    }
    if let Some(code) = fields.code {
        write_key_value(6, "k8s.audit.event.response.code", body, |body| {
            write_key(3, VARINT, body);
            write_varint(code.cast_unsigned(), body);
        });
    }
    if let Some(groups) = fields.groups() {
        write_key_value(6, "k8s.user.groups", body, |body| {
            // An `ArrayValue`, of one `AnyValue` for each group.
            write_message(5, body, |body| {
                for group in groups {
                    write_text(1, &scan::key(group), body);
                }
            });
        });
    }
    write_fixed64(11, received.saturating_mul(1_000_000), body);
}

/// Writes an attribute whose value is a text, as a `KeyValue`.
fn write_attribute(field: u8, name: &str, value: &[u8], body: &mut Vec<u8>) {
    let text = length_of(value.len() as u64);
    write_length(field, length_of(name.len() as u64) + length_of(text), body);
    write_bytes(1, name.as_bytes(), body);
    write_text(2, value, body);
}

/// Writes an `AnyValue` that is a text.
fn write_text(field: u8, text: &[u8], body: &mut Vec<u8>) {
    write_length(field, length_of(text.len() as u64), body);
    write_bytes(1, text, body);
}

/// Writes a `KeyValue`. `write` writes the fields of its `AnyValue`.
fn write_key_value(field: u8, name: &str, body: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    write_message(field, body, |body| {
        write_bytes(1, name.as_bytes(), body);
        write_message(2, body, write);
    });
}

/// The wire types of Protobuf that are written here: a number of variable length, a number of 8
/// bytes, and bytes that follow their length.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

/// Writes the key of a field. The number of the field must be below 16.
fn write_key(field: u8, wire_type: u8, body: &mut Vec<u8>) {
    body.push(field << 3 | wire_type);
}

/// Writes a number with 7 bits in each byte, the lowest bits first. The highest bit of a byte is
/// set if another byte follows.
fn write_varint(number: u64, body: &mut Vec<u8>) {
    let mut rest = number;
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            return body.push(low);
        }
        body.push(low | 0x80);
    }
}

fn write_fixed64(field: u8, number: u64, body: &mut Vec<u8>) {
    write_key(field, FIXED64, body);
    body.extend_from_slice(&number.to_le_bytes());
}

fn write_bytes(field: u8, bytes: &[u8], body: &mut Vec<u8>) {
    write_length(field, bytes.len() as u64, body);
    body.extend_from_slice(bytes);
}

/// Writes the beginning of a field that is bytes or a message: its key and its length.
fn write_length(field: u8, length: u64, body: &mut Vec<u8>) {
    write_key(field, BYTES, body);
    write_varint(length, body);
}

/// Returns the encoded length of a field (key, length and value). The value is bytes or a message,
/// and is `length` bytes long.
fn length_of(length: u64) -> u64 {
    1 + u64::from((length | 1).ilog2() / 7 + 1) + length
}

/// Writes a field that is a message. `write` writes the fields of the message. The length is known
/// only after the fields, and is then moved before them.
fn write_message(field: u8, body: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    write_key(field, BYTES, body);
    let begin = body.len();
    write(body);
    let end = body.len();
    write_varint((end - begin) as u64, body);
    let length = body.len() - end;
    if let Some(message) = body.get_mut(begin..) {
        message.rotate_right(length);
    }
}

/// Returns the number of rejected records in an answer, or 0 if the answer has no such number.
/// `None` if the answer is not an `ExportLogsServiceResponse`. A body that begins with `{` is JSON,
/// whatever the `Content-Type` is: no message of Protobuf begins with this byte.
fn rejected_in(reply: &Reply<'_>) -> Option<u64> {
    let body = reply.body?;
    match reply.is_of_type(JSON) || body.starts_with(b"{") {
        true if body.is_empty() => Some(0),
        true => rejected_in_json(body),
        false => rejected(body),
    }
}

/// An `ExportLogsServiceResponse` in JSON. Some receivers write the names as in Protobuf. An answer
/// with any other member is not such a response.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonResponse {
    #[serde(default, rename = "partialSuccess", alias = "partial_success")]
    partial: Option<JsonPartial>,
}

#[derive(Deserialize)]
struct JsonPartial {
    #[serde(default, rename = "rejectedLogRecords", alias = "rejected_log_records")]
    rejected: Option<JsonNumber<i64>>,
}

/// Like [`rejected`], for an `ExportLogsServiceResponse` in JSON.
fn rejected_in_json(response: &[u8]) -> Option<u64> {
    // serde would also accept an array for the message.
    let object = Some(response).filter(|it| it.trim_ascii_start().starts_with(b"{"))?;
    let response: JsonResponse = serde_json::from_slice(object).ok()?;
    let number = match response.partial.and_then(|partial| partial.rejected) {
        None => 0,
        Some(number) => number.number()?,
    };
    // A number below 0 makes no sense, and counts as 0.
    Some(u64::try_from(number).unwrap_or(0))
}

/// Returns the number of rejected records in an `ExportLogsServiceResponse` in Protobuf, or 0
/// without such a number. `None` if the bytes are not such a message.
fn rejected(response: &[u8]) -> Option<u64> {
    let (mut rest, mut rejected) = (response, 0);
    while !rest.is_empty() {
        // `partial_success` is the field 1, and in it `rejected_log_records` is also the field 1.
        if let (1, Value::Bytes(mut partial)) = read_field(&mut rest)? {
            while !partial.is_empty() {
                if let (1, Value::Number(number)) = read_field(&mut partial)? {
                    // The number has a sign. A number below 0 makes no sense, and counts as 0.
                    rejected = u64::try_from(number.cast_signed()).unwrap_or(0);
                }
            }
        }
    }
    Some(rejected)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// 4 or 8 bytes. No field that is read here has such a value.
    Fixed,
}

/// Takes the next field off a message: its number and its value. `None` if the bytes are not a
/// field.
fn read_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = read_varint(message)?;
    let value = match key & 7 {
        0 => Value::Number(read_varint(message)?),
        1 => message.split_off(..8).map(|_| Value::Fixed)?,
        2 => {
            let length = usize::try_from(read_varint(message)?).ok()?;
            Value::Bytes(message.split_off(..length)?)
        }
        5 => message.split_off(..4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    Some((key >> 3, value)).filter(|(field, _)| *field > 0)
}

/// Takes a number off a message, as [`write_varint`] writes it. `None` if the bytes are not a
/// number of 64 bits.
fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(shift).filter(|it| it >> shift == bits)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read_with_fields_that_are_not_known() {
        for (answer, wanted) in [
            (&b""[..], Some(0)),
            (b"\x0a\x00", Some(0)),
            (b"\x0a\x02\x08\x07", Some(7)),
            (b"\x0a\x08\x08\x96\x01\x12\x03bad", Some(150)),
            // A warning, without rejected records.
            (b"\x0a\x05\x12\x03bad", Some(0)),
            // Fields of all types, which later versions may add.
            (b"\x10\x05\x19abcdefgh\x25abcd\x2a\x01x\x0a\x02\x08\x03", Some(3)),
            (b"\x0a\x0d\x18\x01\x21abcdefgh\x08\x02", Some(2)),
            // -1
            (b"\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Some(0)),
            (b"\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", None),
            (b"\x0a\x03\x08\x07", None),
            (b"\x0a\x01\x08", None),
            (b"\x00\x00", None),
            (b"<html>welcome</html>", None),
            (b"{\"partialSuccess\":{}}", None),
            (b"ok", None),
        ] {
            assert_eq!(rejected(answer), wanted, "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn the_answer_is_read_in_json_too() {
        for (answer, wanted) in [
            ("{}", Some(0)),
            (r#"{"partialSuccess":{}}"#, Some(0)),
            (r#"{"partialSuccess":null}"#, Some(0)),
            (r#"{"partialSuccess":{"rejectedLogRecords":"7","errorMessage":"bad"}}"#, Some(7)),
            (r#"{"partial_success":{"rejected_log_records":7}}"#, Some(7)),
            (r#"{"partialSuccess":{"rejectedLogRecords":-1}}"#, Some(0)),
            (r#"{"partialSuccess":{"rejectedLogRecords":"many"}}"#, None),
            (r#"{"partialSuccess":7}"#, None),
            (r#"{"status":"error"}"#, None),
            (r#"{"code":16,"message":"who are you?"}"#, None),
            ("[]", None),
            ("\"ok\"", None),
        ] {
            assert_eq!(rejected_in_json(answer.as_bytes()), wanted, "{answer}");
        }
    }

    #[test]
    fn numbers_have_as_many_bytes_as_they_need() {
        for (number, wanted) in [
            (0, &b"\x00"[..]),
            (127, b"\x7f"),
            (128, b"\x80\x01"),
            (16_383, b"\xff\x7f"),
            (16_384, b"\x80\x80\x01"),
            (300, b"\xac\x02"),
            (u64::MAX, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ] {
            let mut written = Vec::new();
            write_varint(number, &mut written);
            assert_eq!(written, wanted);
            assert_eq!(read_varint(&mut written.as_slice()), Some(number));
            if number < u64::MAX {
                assert_eq!(length_of(number), 1 + wanted.len() as u64 + number);
            }
        }
    }
}
