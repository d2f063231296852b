//! `type = "elasticsearch"`: the bulk API of Elasticsearch and OpenSearch. The answer judges each
//! event.
//!
//! A request has two lines for each event: the action `create` with the document's `_id`, and the
//! document. The `_id` consists of the identity of the queue, the event's position and a hash of
//! the event. An event that is sent again unchanged, even after a restart with a queue in files, is
//! stored once in each index: the answer to the second attempt is 409. The auditID is not in the
//! `_id`, because the client of kube-apiserver can choose it.

mod mapping;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::event_time::{request_time, stage_time};
use super::http::HttpConnector;
use super::http::api::{
    Api, Encoded, Outcome, Reply, RequestHead, Sent, TOO_LONG, TestRequest, body_for,
    credentials_header, token_in, write_events,
};
use super::setup::{IntoConnector, Setup};
use audit::time::rfc3339;
use base::words::escape::is_plain;
use config::{Compression, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::{Table, optional, required};
use delivery::failure::Failure;
use delivery::link::{Parts, Verdict};
use delivery::prepared::Connector;
use queue::{Batch, Identity, Take};
use telemetry::{AttemptError, OutputMetrics};
use transform::shape;
use transform::shape::{Bodies, Form, ManagedFields, Shape};

/// The path of the bulk API, as vendors print it.
const BULK: &str = "/_bulk";

/// The path and query of requests. The answer contains only the fields that are read here.
const PATH: &str = "/_bulk?filter_path=errors,items.*.status,items.*.error,items.*.failure_store";

/// The maximum bytes of an answer that is parsed. An item has about 500 bytes for a refused
/// document, and 25 for a stored one. If an answer with a status 2xx is longer, the request counts
/// as refused, and is halved.
const ANSWER_BYTES: usize = 8 << 20;

const EVENTS_MAX: u64 = 20_000;

/// An item whose document is stored, as Elasticsearch and OpenSearch write it.
const STORED: &[u8] = br#"{"create":{"status":201}}"#;

/// The error type of an item whose document is already stored.
const CONFLICT: &str = "version_conflict_engine_exception";

/// The maximum bytes of an error's type. A longer one is not shown. Elasticsearch's are shorter.
const TYPE_BYTES_MAX: usize = 64;

/// The errors whose reason is shown: their types, and the beginnings of their reasons. The server
/// composes these reasons from its own settings, limits and names. Other reasons may quote the
/// event: parsers quote values, and a full queue of the server quotes the whole request if it has
/// one document.
const REASONS: [(&str, &str); 9] = [
    ("circuit_breaking_exception", "["),
    ("cluster_block_exception", ""),
    ("illegal_argument_exception", "Limit of total fields ["),
    ("illegal_argument_exception", "Limit of nested fields ["),
    ("illegal_argument_exception", "no write index is defined for alias ["),
    ("index_closed_exception", ""),
    ("index_not_found_exception", "no such index ["),
    ("security_exception", ""),
    ("validation_exception", "Validation Failed: 1: this action would add ["),
];

/// The maximum bytes of a reason that are shown.
const REASON_BYTES_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    client: HttpClient,
    /// The index or data stream into which events are written.
    index: String,
    /// The file with the API key for `Authorization: ApiKey`, if one is sent.
    api_key_file: Option<PathBuf>,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "elasticsearch";
    const SAMPLE: &'static str = "tls = {}\nbasic_auth = {}";
    const MEMORY: u64 = 4 * ((4 + 8) << 20);
    /// Elastic's rules and dashboards need ECS. Bodies are strings: the fields of bodies as objects
    /// would have contradicting types in one index, and would be too many for it.
    const FORM: Form =
        Form { shape: Shape::Ecs, bodies: Bodies::String, managed_fields: ManagedFields::Keep };

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::None, true);
        let (client, (index, api_key_file)) = HttpClient::read(t, &keys, |t| {
            let meaning = "index or data stream to write to";
            let index = t.word(required("index", "string", meaning), index_name);
            let meaning = "file with the API key: `encoded`, or `id:api_key`";
            let key = optional("api_key_file", "path", "none", meaning);
            (index, t.file(key, config::Content::Token))
        });
        // elastic/elasticsearch#146526, which was open in April 2026, asks for zstd.
        if client.as_ref().is_some_and(|client| client.compression == Compression::Zstd) {
            t.error("compression", "is not supported by the server, allowed: \"none\", \"gzip\"");
        }
        for name in ["bearer_token_file", "basic_auth"] {
            if api_key_file.is_some() && t.is_set(name) {
                t.error(name, "conflicts with api_key_file: set only one of the two");
            }
        }
        Some(Self { client: client?, index: index?, api_key_file })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn index(&self) -> Option<&str> {
        Some(&self.index)
    }
}

fn index_name(text: &str) -> Result<String, String> {
    let is_special = |c: char| r#"\/*?"<>|,#:"#.contains(c);
    let in_a_name = |c: char| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !is_special(c);
    let begins = text.chars().next().is_some_and(|c| !"-_+".contains(c));
    if !(1..=255).contains(&text.len())
        || !begins
        || !text.chars().all(in_a_name)
        || [".", ".."].contains(&text)
    {
        return Err(
            "is not an index, allowed: 1 to 255 printable ASCII characters except capital letters \
             and \\ / * ? \" < > | , # :, not beginning with -, _ or +"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

impl Settings {
    pub(crate) fn api(&self, setup: &Setup<'_>) -> Arc<dyn Api> {
        let bulk = Bulk {
            index: self.index.clone(),
            api_key_file: self.api_key_file.clone(),
            output: setup.output.name.clone(),
            metrics: setup.metrics.clone(),
            told: AtomicBool::new(false),
            lacks_index: AtomicBool::new(false),
            form: setup.output.filter.form,
        };
        Arc::new(bulk)
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(setup), setup)
    }
}

/// The bulk API, with the settings of one output.
struct Bulk {
    index: String,
    api_key_file: Option<PathBuf>,
    /// The name of the output, for the log.
    output: String,
    metrics: OutputMetrics,
    /// `true` once the log has the message that documents go to the failure store.
    told: AtomicBool,
    /// `true` if the last answer to a test request was that the index does not exist.
    lacks_index: AtomicBool,
    form: Form,
}

/// The answer to a request of the bulk API: an item for each action, in the order of the actions.
/// The member `errors` is not parsed, because the items say the same.
#[derive(Deserialize)]
struct Answer {
    items: Vec<Item>,
}

/// Other servers that offer the bulk API may name another action than the request did.
#[derive(Deserialize)]
struct Item {
    #[serde(alias = "index", alias = "update")]
    create: Created,
}

#[derive(Deserialize)]
struct Created {
    status: u16,
    #[serde(default)]
    error: Option<ServerError>,
    /// `used` if the document did not fit the data stream, and is in its failure store.
    #[serde(default)]
    failure_store: Option<String>,
}

/// The answer to a request that was refused as a whole.
#[derive(Deserialize)]
struct RefusedRequest {
    error: ServerError,
}

#[derive(Deserialize)]
struct ServerError {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    caused_by: Option<Box<ServerError>>,
}

impl ServerError {
    /// Returns the error's type, or an empty text if the type does not look like a word of
    /// Elasticsearch: the answer may come from another server.
    fn word(&self) -> &str {
        let is_word = self.kind.len() <= TYPE_BYTES_MAX
            && self.kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if is_word { &self.kind } else { "" }
    }

    /// Returns a colon and the reason of the error, for messages. If the reason may quote the
    /// event, uses the first cause whose reason does not. Empty if there is no such cause.
    fn shown(&self) -> String {
        let is_safe = |error: &&Self| {
            let (kind, reason) = (error.kind.as_str(), error.reason.as_str());
            !reason.is_empty()
                && REASONS.iter().any(|(of, start)| kind == *of && reason.starts_with(start))
        };
        let mut chain = std::iter::successors(Some(self), |error| error.caused_by.as_deref());
        let Some(Self { reason, .. }) = chain.find(is_safe) else { return String::new() };
        let cut = reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default();
        let safe = |char: char| if is_plain(char) { char } else { ' ' };
        format!(": {}", cut.chars().map(safe).collect::<String>())
    }
}

impl Created {
    /// Returns the verdict of the item on its event. `base` names the address that answered, and
    /// `bodies` is the form in which the event's bodies were sent.
    fn verdict(&self, base: &dyn std::fmt::Display, bodies: Bodies) -> Verdict {
        let kind = self.error.as_ref().map_or("", ServerError::word);
        let is_conflict = self.error.as_ref().is_some_and(|error| error.kind == CONFLICT);
        let failure = || {
            let reason = self.error.as_ref().map_or("", |error| error.reason.as_str());
            let hint = mapping::hint_for(reason, bodies).map(|hint| format!(": {hint}"));
            let hint = hint.unwrap_or_default();
            let shown = self.error.as_ref().map(ServerError::shown).unwrap_or_default();
            let message =
                format!("{base}: answered {} {kind} for an event{shown}{hint}", self.status);
            Failure::new(AttemptError::Item, message)
        };
        match self.status {
            200..300 => Verdict::Delivered,
            409 if is_conflict => Verdict::Existing,
            400 | 413 | 422 => Verdict::Refused(failure()),
            // Too many requests are never an event's fault.
            429 => Verdict::Again(failure().not_the_events()),
            // Anything else may be the fault of the server or its settings: a missing index (404),
            // a block on writes (403). It may be the event's, too: if an ingest pipeline fails for
            // an event, the status of the event is 500 each time.
            _ => Verdict::Again(failure()),
        }
    }
}

impl Api for Bulk {
    fn path(&self) -> &str {
        PATH
    }

    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn printed_paths(&self) -> Vec<String> {
        vec![format!("/{}{BULK}", self.index), BULK.to_owned()]
    }

    fn test_requests(&self) -> Vec<TestRequest> {
        let post = RequestHead::post(&format!("/{}", self.index), self.content_type());
        vec![TestRequest { head: RequestHead { method: Method::HEAD, ..post }, body: b"" }]
    }

    /// The answer to HEAD has no body, so only the header `Content-Type` can show a web page.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        let is_page = reply.has_type_of_page();
        self.lacks_index
            .store(reply.status == StatusCode::NOT_FOUND && !is_page, Ordering::Relaxed);
        if is_page {
            return Err(reply.instead("").to_owned());
        }
        match reply.status {
            StatusCode::UNAUTHORIZED => Err("the credentials are missing or wrong".to_owned()),
            // A key that may only write events is not allowed to query the index.
            StatusCode::FORBIDDEN => Ok(()),
            StatusCode::NOT_FOUND => Err(format!(
                "the index or data stream {} does not exist: create it, unless a template creates \
                 it for the first event",
                self.index
            )),
            _ => self.tested_by_status(reply),
        }
    }

    /// Checks nothing: [`Api::judge`] reads the item of each event, and only the bulk API answers
    /// with items.
    fn acknowledged(&self, _: &Reply<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Returns a request for the cluster's settings if the index is missing. They say whether the
    /// first event will create the index.
    fn excuse(&self) -> Option<TestRequest> {
        if !self.lacks_index.load(Ordering::Relaxed) {
            return None;
        }
        let path = "/_cluster/settings?include_defaults=true&flat_settings=true";
        let post = RequestHead::post(path, self.content_type());
        Some(TestRequest { head: RequestHead { method: Method::GET, ..post }, body: b"" })
    }

    fn excuses(&self, body: &[u8]) -> bool {
        makes_indices(body).is_some_and(|setting| makes(&setting, &self.index))
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let Some(file) = self.api_key_file.as_deref() else { return Ok(None) };
        let key = token_in(file)?;
        // `id:api_key` is the pair of which `encoded` is the Base64 form, which has no colon.
        let encoded = if key.contains(':') { BASE64_STANDARD.encode(key) } else { key };
        credentials_header(&format!("ApiKey {encoded}"), file).map(Some)
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    fn encode(&self, batch: Batch, queue: Identity, max_bytes: u64) -> Encoded {
        let action = format!("{{\"create\":{{\"_index\":\"{}\",\"_id\":\"{queue}-", self.index);
        let mut body = body_for(&batch);
        let room = Take { bytes: max_bytes, events: EVENTS_MAX };
        let events = write_events(&batch, room, &mut body, |event, position, received, body| {
            body.extend_from_slice(action.as_bytes());
            body.extend_from_slice(itoa::Buffer::new().format(position.get()).as_bytes());
            body.push(b'-');
            body.extend_from_slice(&hex_digits(rapidhash::v3::rapidhash_v3(event)));
            body.extend_from_slice(b"\"}}\n");
            write_document(event, received, body);
            body.push(b'\n');
        });
        Encoded::new(body, events)
    }

    fn judge(&self, mut reply: Reply<'_>, sent: &Sent) -> Outcome {
        if let Outcome::Refused(failure) | Outcome::Failed(failure) = &mut reply.by_status {
            let refused = reply.body.map(serde_json::from_slice::<RefusedRequest>);
            if let Some(Ok(RefusedRequest { error })) = refused {
                failure.message += format!(" {}{}", error.word(), error.shown()).trim_end();
            }
            return reply.by_status;
        }
        if reply.is_too_long {
            return Outcome::Refused(Failure::new(
                AttemptError::Protocol,
                format!("{}: {TOO_LONG}", reply.base),
            ));
        }
        if reply.body.is_some_and(|body| stores_all(body, sent.events)) {
            return Outcome::Accepted;
        }
        let answer = reply.body.and_then(|body| serde_json::from_slice::<Answer>(body).ok());
        let Some(Answer { items }) = answer else {
            return reply.unclear("this is not a response from the bulk API");
        };
        if items.len() as u64 != sent.events {
            return reply.unclear("the response has a different number of items than the request");
        }
        let stored =
            items.iter().filter(|item| item.create.failure_store.as_deref() == Some("used"));
        let stored = stored.count();
        (0..stored).for_each(|_| self.metrics.failed(AttemptError::Item));
        if stored > 0 && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                output = self.output,
                index = self.index,
                "Elasticsearch puts documents into its failure store because they do not fit the \
                 data stream: they count as delivered; check the mapping of the data stream"
            );
        }
        let mut parts = Parts::default();
        for (position, item) in sent.positions().zip(&items) {
            parts.add(position, item.create.verdict(reply.base, self.form.bodies));
        }
        Outcome::Judged(parts.end(sent.claim))
    }
}

/// Returns `true` if an answer is exactly the usual text for this number of stored documents. The
/// items of any other answer are parsed.
fn stores_all(answer: &[u8], documents: u64) -> bool {
    let items = answer.strip_prefix(br#"{"errors":false,"items":["#);
    let Some(items) = items.and_then(|items| items.strip_suffix(b"]}")) else { return false };
    let (first, rest) = items.split_at_checked(STORED.len()).unwrap_or_default();
    let (others, end) = rest.as_chunks::<{ STORED.len() + 1 }>();
    let is_other = |item: &[u8; STORED.len() + 1]| item.split_first() == Some((&b',', STORED));
    first == STORED
        && end.is_empty()
        && others.len() as u64 + 1 == documents
        && others.iter().all(is_other)
}

/// Returns the 16 hexadecimal digits of a number, in lower case.
fn hex_digits(number: u64) -> [u8; 16] {
    let bytes = number.to_be_bytes();
    std::array::from_fn(|at| {
        let digit = bytes[at / 2] >> (4 * ((at + 1) % 2)) & 0xF;
        b"0123456789abcdef"[usize::from(digit)]
    })
}

/// Writes an event as a document: the unchanged event, with `@timestamp` as its first member. The
/// time is that of the stage, else of the request, else of the acceptance (`received`, in
/// milliseconds since 1970). A document that begins with `@timestamp` is written unchanged.
fn write_document(event: &[u8], received: u64, body: &mut Vec<u8>) {
    if shape::has_timestamp(event) {
        body.extend_from_slice(event);
        return;
    }
    body.extend_from_slice(b"{\"@timestamp\":\"");
    match stage_time(event).or_else(|| request_time(event)) {
        Some(time) => body.extend_from_slice(time),
        None => {
            let received = UNIX_EPOCH + Duration::from_millis(received);
            body.extend_from_slice(rfc3339(received).as_bytes());
        }
    }
    body.push(b'"');
    let rest = event.get(1..).unwrap_or_default();
    if rest.first() != Some(&b'}') {
        body.push(b',');
    }
    body.extend_from_slice(rest);
}

/// Returns the setting `action.auto_create_index` of a cluster. `None` if the answer does not have
/// it. A transient setting takes precedence over a persistent one, and a persistent setting over
/// the default.
fn makes_indices(settings: &[u8]) -> Option<String> {
    let settings: serde_json::Value = serde_json::from_slice(settings).ok()?;
    let of = |kind| settings.get(kind)?.get("action.auto_create_index")?.as_str();
    ["transient", "persistent", "defaults"].into_iter().find_map(of).map(str::to_owned)
}

/// Returns `true` if a cluster with this setting creates the index for the first document. The
/// setting is `true`, `false`, or a list of patterns. The first match decides, and a pattern that
/// begins with `-` forbids the index. A pattern with several `*` counts as a match that forbids.
///
/// Source: `AutoCreateIndex` of Elasticsearch.
fn makes(setting: &str, index: &str) -> bool {
    let fits = |pattern: &str| match pattern.split_once('*') {
        None => pattern == index,
        Some((before, after)) => {
            let rest = index.strip_prefix(before);
            after.contains('*') || rest.is_some_and(|rest| rest.ends_with(after))
        }
    };
    let mut patterns = setting.split(',').map(str::trim);
    let first = patterns.find(|pattern| fits(pattern.trim_start_matches(['+', '-'])));
    let is_allowed = |pattern: &str| !pattern.starts_with('-') && pattern.matches('*').count() < 2;
    setting == "true" || setting != "false" && first.is_some_and(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_stores_each_document_is_read_at_once() {
        let items = |count: usize| vec![r#"{"create":{"status":201}}"#; count].join(",");
        let answer = |items: &str| format!(r#"{{"errors":false,"items":[{items}]}}"#);
        for count in [1, 2, 3, 100] {
            let whole = answer(&items(count));
            assert!(stores_all(whole.as_bytes(), count as u64), "{count}");
            assert!(!stores_all(whole.as_bytes(), count as u64 + 1), "{count}");
            assert!(!stores_all(whole.as_bytes(), count as u64 - 1), "{count}");
        }
        let three = answer(&items(3));
        for other in [
            three.replacen("201", "429", 1),
            three.replacen("201", "409", 3),
            three.replacen(r#"201}}]"#, r#"500}}]"#, 1),
            three.replacen("},{", "}.{", 1),
            three.replace("false", "true"),
            three.replace("]}", "],\"took\":1}"),
            three.replace("]}", "]"),
            answer(""),
            r#"{"errors":false,"items":[]}"#.to_owned(),
            String::new(),
        ] {
            for count in 0..5 {
                assert!(!stores_all(other.as_bytes(), count), "{other}");
            }
        }
    }

    #[test]
    fn digits_are_hexadecimal() {
        for number in [0, 1, 0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210, u64::MAX] {
            assert_eq!(hex_digits(number), *format!("{number:016x}").as_bytes());
        }
    }

    #[test]
    fn the_first_pattern_that_fits_decides_if_an_index_is_made() {
        for (setting, is_made) in [
            ("true", true),
            ("false", false),
            ("audit", true),
            ("+audit-*, -*", false),
            ("-audit*,+*", false),
            (".monitoring*,+au*it", true),
            ("logs-*", false),
            ("*u*t", false),
        ] {
            assert_eq!(makes(setting, "audit"), is_made, "{setting}");
        }
        let settings = br#"{"transient":{},"persistent":{"action.auto_create_index":"-audit"},
            "defaults":{"action.auto_create_index":"true"}}"#;
        assert_eq!(makes_indices(settings).as_deref(), Some("-audit"));
        assert_eq!(makes_indices(b"{}"), None);
    }
}
