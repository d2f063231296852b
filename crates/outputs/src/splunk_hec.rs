//! `type = "splunk_hec"`: Splunk's HTTP Event Collector, with indexer acknowledgement.
//!
//! With `acknowledge = "indexed"`, a 200 means only that Splunk has the events in memory. Splunk
//! gives the request a number. The relay asks later which numbers are indexed, and the events of a
//! request are final once Splunk has confirmed its number. Splunk confirms a number only once, and
//! only on the channel (a UUID in a header) of the request. The relay uses one channel for each
//! connection, because a number means nothing to another server behind the same address, and
//! perhaps nothing to the same server after a restart.
//!
//! Source of the facts: Splunk's documentation of the HTTP Event Collector ("About HTTP Event
//! Collector Indexer Acknowledgment", "Troubleshoot HTTP Event Collector").

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::time::Instant;

use super::event_time::{request_time, stage_time};
use super::http::HttpConnector;
use super::http::api::{
    Api, Call, Confirm, Encoded, JsonNumber, Outcome, Reply, RequestHead, Sent, TestRequest, Told,
    body_for, token_header, write_events,
};
use super::setup::{IntoConnector, Setup};
use audit::time::nanos;
use base::lock::lock;
use client::ask::JSON;
use config::{BatchBytes, Compression, Content, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::{Table, optional, required};
use delivery::failure::Failure;
use delivery::link::{Part, Verdict};
use delivery::prepared::Connector;
use queue::{Batch, Identity, Take};
use telemetry::AttemptError;

const EVENTS: &str = "/services/collector/event";

/// The path of the question about indexed requests.
const ACK: &str = "/services/collector/ack";

const CHANNEL: HeaderName = HeaderName::from_static("x-splunk-request-channel");

/// The default sourcetype, which Splunk predefines for JSON. It does not set the maximum size of an
/// event (`TRUNCATE`), so Splunk's default applies: 10,000 bytes.
const SOURCETYPE: &str = "_json";

/// The second and the longest pause before events are sent again, while Splunk answers the question
/// about indexed requests, but confirms none. There is no pause at first. Later pauses double,
/// because Splunk may index the events at each attempt.
const NUMBERLESS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));

const OFF: &str = "indexer acknowledgement is off for this token: turn it on in Splunk (useACK = \
                   true in inputs.conf), or set acknowledge = \"accepted\"";

const ON: &str = "indexer acknowledgement is on for this token: set acknowledge = \"indexed\", or \
                  turn it off in Splunk (useACK = false in inputs.conf)";

/// The maximum bytes of an answer that is parsed.
const ANSWER_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    client: HttpClient,
    /// The file with the token of the HTTP Event Collector.
    token_file: PathBuf,
    acknowledge: Acknowledge,
    /// The time between two questions about indexed requests.
    ack_interval: Duration,
    /// The longest time until the events of a request are indexed. After that, they are sent again.
    ack_timeout: Duration,
    metadata: Metadata,
}

/// The moment at which events count as delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledge {
    /// Splunk has said that the events are indexed.
    Indexed,
    /// Splunk has taken the request. A later crash of Splunk may lose the events.
    Accepted,
}

/// The members that a request has next to each event.
#[derive(Debug, Clone, PartialEq)]
struct Metadata {
    /// `None`: the token decides the index.
    index: Option<String>,
    host: String,
    source: String,
    sourcetype: String,
    /// Indexed fields that are added to each event.
    fields: BTreeMap<String, String>,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "splunk_hec";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = 4_000_000;

    /// Splunk's limit for a request's body (`max_content_length` in limits.conf) is 1 MB in older
    /// versions and in Splunk Cloud. Newer versions accept 800 MiB.
    const BATCH_BYTES: BatchBytes = BatchBytes { default: 1_000_000, max: Some(800 << 20) };

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::None, false);
        let (client, own) = HttpClient::read(t, &keys, |t| {
            let meaning = "file with the HTTP Event Collector token";
            let token_file = t.file(required("token_file", "path", meaning), Content::Token);
            let acknowledge = t.choice(
                "acknowledge",
                &[("indexed", Acknowledge::Indexed), ("accepted", Acknowledge::Accepted)],
                Some(Acknowledge::Indexed),
                "`indexed`: an event is delivered when the indexer confirms it (turn on indexer \
                 acknowledgement for the token); `accepted`: when Splunk accepts the request (a \
                 Splunk crash may lose it)",
            );
            let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
            let meaning = "how often the relay asks Splunk which requests have been indexed";
            let interval = t.time("ack_interval", Duration::from_secs(2), least..=most, meaning);
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(3600));
            let meaning = "events not confirmed as indexed within this time are sent again";
            let timeout = t.time("ack_timeout", Duration::from_secs(300), least..=most, meaning);
            (token_file, acknowledge, interval, timeout, Metadata::read(t))
        });
        let (token_file, acknowledge, ack_interval, ack_timeout, metadata) = own;
        if client.as_ref().is_some_and(|client| client.compression == Compression::Zstd) {
            t.error("compression", "is not supported by Splunk, allowed: \"none\", \"gzip\"");
        }
        if ack_timeout <= ack_interval {
            t.error("ack_timeout", "must be longer than ack_interval");
        }
        Some(Self {
            client: client?,
            token_file: token_file?,
            acknowledge: acknowledge?,
            ack_interval,
            ack_timeout,
            metadata: metadata?,
        })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        let waits = self.acknowledge == Acknowledge::Indexed;
        waits.then_some(("ack_interval", self.ack_interval))
    }

    fn event_limit(&self) -> Option<&'static str> {
        // Other sourcetypes belong to the operator or to an add-on, which may set their limit.
        (self.metadata.sourcetype == SOURCETYPE).then_some(
            "Splunk acknowledges events with the sourcetype _json, but silently truncates them at \
             10,000 bytes by default. Set it to TRUNCATE in Splunk's props.conf, or to 10000",
        )
    }
}

impl Metadata {
    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let word = |text: &str| config::printable(text, 255);
        let index = t.is_set("index");
        let key =
            optional("index", "string", "the token's default index", "index to write events to");
        let index = Some(t.word(key, word)).filter(|found| !index || found.is_some());
        let host = t.word_or(
            ("host", "string", "host of each event"),
            &config::machine_name(),
            Some("the machine's hostname"),
            plain,
        );
        let key = ("source", "string", "source of each event");
        let source = t.word_or(key, "kubernetes", None, plain);
        let key = ("sourcetype", "string", "source type of each event");
        let sourcetype = t.word_or(key, SOURCETYPE, None, plain);
        let meaning = "indexed fields to add to each event";
        let fields = t.word_map(("fields", "table of strings", meaning), word, plain);
        let (index, host, source) = (index?, host?, source?);
        Some(Self { index, host, source, sourcetype: sourcetype?, fields })
    }

    fn around(&self) -> (String, String) {
        let member = |(name, value): (&str, &str)| format!(",\"{name}\":{}", json(value));
        let own =
            [("host", &*self.host), ("source", &self.source), ("sourcetype", &self.sourcetype)];
        let index = self.index.as_deref().map(|index| ("index", index));
        let before: String = own.into_iter().chain(index).map(member).collect();
        let after = match self.fields.is_empty() {
            true => "}".to_owned(),
            false => format!(",\"fields\":{}}}", serde_json::json!(self.fields)),
        };
        (before + ",\"event\":", after)
    }
}

/// Returns the text if it has 1 to 255 bytes and no control character. Otherwise returns a message
/// about the allowed texts.
fn plain(text: &str) -> Result<String, String> {
    match (1..=255).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => {
            Err("is not a valid text, allowed: 1 to 255 bytes without control characters"
                .to_owned())
        }
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Settings {
    pub(crate) fn api(&self) -> Arc<dyn Api> {
        let (before, after) = self.metadata.around();
        let indexed = self.acknowledge == Acknowledge::Indexed;
        let acknowledgement = indexed.then_some(Confirm {
            path: ACK,
            content_type: JSON,
            interval: self.ack_interval,
            timeout: self.ack_timeout,
            question,
            told,
            gave_none,
        });
        let collector = Collector {
            token_file: self.token_file.clone(),
            before,
            after,
            acknowledgement,
            doubt: Mutex::default(),
        };
        Arc::new(collector)
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(), setup)
    }
}

/// The API of the HTTP Event Collector, with the settings of one output.
struct Collector {
    token_file: PathBuf,
    /// The text between the time and the event.
    before: String,
    /// The text after the event.
    after: String,
    /// The way to ask Splunk for acknowledgements. `None`: events are final as soon as Splunk has
    /// taken their request.
    acknowledgement: Option<Confirm>,
    /// `None` if there is no doubt. An answer with a number ends the doubt.
    doubt: Mutex<Option<Doubt>>,
}

/// The doubt whether Splunk acknowledges requests: an answer had no number, or a request was not
/// indexed in time. Splunk may have indexed the events, and would index them again with each
/// attempt. Therefore Splunk must answer the question about indexed requests before the next
/// attempt. It refuses the question if the token has no acknowledgement.
struct Doubt {
    since: Instant,
    /// The shortest time from `since` to the next attempt.
    pause: Duration,
    /// `true` if Splunk has answered the question after the end of `pause`.
    is_answered: bool,
}

/// The answer of the collector. A proxy may answer something else.
#[derive(Deserialize, Default)]
struct Answer {
    #[serde(default)]
    code: Option<u16>,
    /// The number of the request.
    #[serde(default, rename = "ackId")]
    ack_id: Option<JsonNumber<u64>>,
    /// The index of the event at fault, or of the first event that a busy Splunk did not take.
    /// Splunk has taken all earlier events, and has not read the later ones.
    #[serde(default, rename = "invalid-event-number")]
    invalid: Option<u64>,
}

/// The meaning of a code of the collector.
enum Fault {
    /// The request was taken.
    None,
    /// The settings of the output, or of Splunk, are wrong in this way.
    Settings(&'static str),
    /// An event of the request is not valid.
    Event(&'static str),
    /// Splunk can't take the request now.
    Busy(&'static str),
}

/// Returns the meaning of a known code. The codes are those of "Possible error codes" in Splunk's
/// documentation.
fn fault(code: u16) -> Option<Fault> {
    Some(match code {
        // 24 and 25 warn that a queue or the acknowledgements are nearly full.
        0 | 24 | 25 => Fault::None,
        1 => Fault::Settings("the token is disabled"),
        2 | 3 => Fault::Settings("the Authorization header is missing or wrong"),
        4 => Fault::Settings("Splunk does not know the token"),
        5 => Fault::Event("no data"),
        6 => Fault::Event("invalid data format"),
        7 => Fault::Settings("the token may not write to this index, or the index does not exist"),
        8 => Fault::Busy("internal error"),
        9 | 18 | 19 | 20 | 26 | 27 => Fault::Busy("Splunk is busy"),
        10 | 11 => Fault::Settings("the channel is missing or wrong"),
        12 | 13 => Fault::Event("the event is missing or blank"),
        14 => Fault::Settings(OFF),
        15 => Fault::Event("invalid fields"),
        23 => Fault::Busy("Splunk is shutting down"),
        _ => return None,
    })
}

impl Collector {
    /// Returns the meaning of the code of an answer. `None` if the answer has no known code.
    fn fault(&self, answer: &Answer) -> Option<Fault> {
        match answer.code? {
            10 if self.acknowledgement.is_none() => Some(Fault::Settings(ON)),
            code => fault(code),
        }
    }

    /// Returns the result of a request that Splunk has taken.
    fn taken(&self, reply: &Reply<'_>, answer: Answer) -> Outcome {
        if self.acknowledgement.is_none() {
            return Outcome::Accepted;
        }
        match answer.ack_id.and_then(JsonNumber::number) {
            Some(number) => {
                *lock(&self.doubt) = None;
                Outcome::Taken(number)
            }
            None => {
                self.unconfirmed();
                let what = format!("{}: the response has no ackId: {OFF}", reply.base);
                Outcome::Failed(Failure::new(AttemptError::Protocol, what))
            }
        }
    }

    /// Records an answer to the question, if the pause of the doubt is over. Returns the rest of
    /// the pause.
    fn answered(&self) -> Duration {
        let mut doubt = lock(&self.doubt);
        let Some(doubt) = doubt.as_mut() else { return Duration::ZERO };
        let left = doubt.pause.saturating_sub(doubt.since.elapsed());
        doubt.is_answered = left.is_zero();
        left
    }

    /// Returns the verdict on events that Splunk took before it refused an event of the same
    /// request, or became busy. Such an answer has no number, so Splunk will never confirm these
    /// events.
    fn taken_before(&self) -> Verdict {
        match self.acknowledgement {
            None => Verdict::Delivered,
            Some(_) => Verdict::Unconfirmed,
        }
    }

    /// Returns the result of a request if Splunk says that the event with the index `at` is wrong.
    /// `None` if the whole request is to be refused, or has no such event.
    fn one_is_wrong(&self, at: u64, failure: &Failure, sent: &Sent) -> Option<Outcome> {
        if at == 0 && sent.events > 1 {
            // The delivery halves a refused request. If every event is wrong, halving ends sooner
            // than attempts with one event less each time.
            return None;
        }
        let position = sent.positions().nth(usize::try_from(at).ok()?)?;
        let parts = [
            Part { end: position, events: at, verdict: self.taken_before() },
            Part { end: position.next(), events: 1, verdict: Verdict::Refused(failure.clone()) },
            Part { end: sent.claim.end, events: sent.events - at - 1, verdict: Verdict::Unsent },
        ];
        let mut parts: Vec<_> = parts.into_iter().filter(|part| part.events > 0).collect();
        parts.last_mut()?.end = sent.claim.end;
        Some(Outcome::Judged(parts))
    }

    /// Returns the result of a request if Splunk had taken `at` of its events and then became busy.
    /// `None` if Splunk had taken no event, or if the request has no event with the index `at`.
    fn busy_after(&self, at: u64, failure: &Failure, sent: &Sent) -> Option<Outcome> {
        if at == 0 {
            return None;
        }
        let position = sent.positions().nth(usize::try_from(at).ok()?)?;
        let again = Verdict::Again(failure.clone());
        Some(Outcome::Judged(vec![
            Part { end: position, events: at, verdict: self.taken_before() },
            Part { end: sent.claim.end, events: sent.events - at, verdict: again },
        ]))
    }
}

impl Api for Collector {
    fn path(&self) -> &str {
        EVENTS
    }

    fn content_type(&self) -> &'static str {
        JSON
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        token_header("Splunk", &self.token_file).map(Some)
    }

    fn printed_paths(&self) -> Vec<String> {
        [&format!("{EVENTS}/1.0"), EVENTS, "/services/collector"].map(str::to_owned).into()
    }

    /// Returns a request without an event and, with `acknowledge = "indexed"`, the question about
    /// indexed requests.
    fn test_requests(&self) -> Vec<TestRequest> {
        let test = TestRequest { head: RequestHead::post(EVENTS, self.content_type()), body: b"" };
        [test].into_iter().chain(self.acknowledgement.as_ref().map(|_| question_alone())).collect()
    }

    fn asks_first(&self) -> Option<TestRequest> {
        let doubt = lock(&self.doubt);
        doubt.as_ref().is_some_and(|doubt| !doubt.is_answered).then(question_alone)
    }

    fn unconfirmed(&self) {
        let mut doubt = lock(&self.doubt);
        let pause = match &*doubt {
            Some(Doubt { is_answered: false, .. }) => return,
            Some(Doubt { pause, .. }) => (*pause * 2).clamp(NUMBERLESS.0, NUMBERLESS.1),
            None => Duration::ZERO,
        };
        *doubt = Some(Doubt { since: Instant::now(), pause, is_answered: false });
    }

    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        let body = reply.body.unwrap_or_default();
        let answer = serde_json::from_slice::<Answer>(body).unwrap_or_default();
        let asks = self.acknowledgement.as_ref().filter(|_| reply.path == ACK);
        match (self.fault(&answer), asks) {
            (Some(Fault::Settings(what) | Fault::Busy(what)), _) => Err(what.to_owned()),
            (_, Some(asks)) if matches!((asks.told)(reply.status, body), Told::Confirmed(_)) => {
                match self.answered() {
                    Duration::ZERO => Ok(()),
                    left => Err(format!(
                        "the responses to events had no ackId, although Splunk indexes the events \
                         each time: they are sent again in {} s. If no load balancer spreads \
                         requests over several servers, {OFF}",
                        left.as_secs() + 1
                    )),
                }
            }
            // Splunk reports that the request has no event, which is true.
            (Some(Fault::Event(_)), None) => Ok(()),
            (_, Some(_)) if reply.status.is_success() => {
                let what = "the response does not say which requests are indexed";
                Err(reply.instead(what).to_owned())
            }
            (_, Some(_) | None) => self.tested_by_status(reply),
        }
    }

    /// Accepts every answer with a known code, because each answer of a collector has a code.
    /// [`Api::judge`] then decides what the code means.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String> {
        let answer = reply.body.and_then(|body| serde_json::from_slice::<Answer>(body).ok());
        let is_known = answer.and_then(|answer| self.fault(&answer)).is_some();
        is_known
            .then_some(())
            .ok_or_else(|| "this is not a response from an HTTP Event Collector".to_owned())
    }

    fn request_headers(&self, call: &Call<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
        let channel = HeaderValue::from_str(&call.connection.to_string()).ok();
        let channel = channel.filter(|_| self.acknowledgement.is_some());
        Ok(channel.into_iter().map(|channel| (CHANNEL, channel)).collect())
    }

    fn confirm(&self) -> Option<&Confirm> {
        self.acknowledgement.as_ref()
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    fn encode(&self, batch: Batch, _: Identity, max_bytes: u64) -> Encoded {
        let mut body = body_for(&batch);
        let room = Take { bytes: max_bytes, events: u64::MAX };
        let events = write_events(&batch, room, &mut body, |event, _, received, body| {
            let time = stage_time(event).or_else(|| request_time(event)).and_then(nanos);
            let time = time.unwrap_or(received.saturating_mul(1_000_000));
            let (seconds, micros) = (time / 1_000_000_000, time % 1_000_000_000 / 1000);
            // Writing into memory can't fail.
            write!(body, "{{\"time\":{seconds}.{micros:06}").ok();
            body.extend_from_slice(self.before.as_bytes());
            body.extend_from_slice(event);
            body.extend_from_slice(self.after.as_bytes());
        });
        Encoded::new(body, events)
    }

    fn judge(&self, reply: Reply<'_>, sent: &Sent) -> Outcome {
        let parsed = reply.body.and_then(|body| serde_json::from_slice::<Answer>(body).ok());
        let answer = parsed.unwrap_or_default();
        let (status, base) = (reply.status, reply.base);
        let failure = |reason, what: &str| {
            let code = answer.code.unwrap_or_default();
            Failure::new(reason, format!("{base}: answered {status}, code {code}: {what}"))
        };
        // The category of the failure follows from the status, if the status is a failure.
        let (reason, retry_after) = match &reply.by_status {
            Outcome::Refused(by_status) | Outcome::Failed(by_status) => {
                (by_status.reason, by_status.retry_after)
            }
            Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) => {
                (AttemptError::Protocol, None)
            }
        };
        let failed = |what| {
            let failure = failure(reason, what);
            Outcome::Failed(Failure { retry_after, ..failure })
        };
        match self.fault(&answer) {
            Some(Fault::Settings(what)) => failed(what),
            Some(Fault::Busy(what)) => {
                let failure = Failure { retry_after, ..failure(reason, what) };
                let judged = answer.invalid.and_then(|at| self.busy_after(at, &failure, sent));
                judged.unwrap_or(Outcome::Failed(failure))
            }
            Some(Fault::Event(what)) if !status.is_success() => {
                // An answer with the index of an event is about that event.
                let reason = answer.invalid.map_or(reason, |_| AttemptError::Item);
                let failure = failure(reason, what);
                let judged = answer.invalid.and_then(|at| self.one_is_wrong(at, &failure, sent));
                judged.unwrap_or(Outcome::Refused(failure))
            }
            Some(Fault::Event(what)) => failed(what),
            Some(Fault::None) | None if matches!(reply.by_status, Outcome::Accepted) => {
                self.taken(&reply, answer)
            }
            Some(Fault::None) | None => reply.by_status,
        }
    }
}

/// The answer to the question about indexed requests: the number of each request, and `true` if the
/// request is indexed.
#[derive(Deserialize)]
struct Acks {
    acks: BTreeMap<String, bool>,
}

/// Returns a question about the request 0. It is sent on a new channel, which has no such request.
/// Splunk refuses the question if acknowledgement is off for the token.
fn question_alone() -> TestRequest {
    TestRequest { head: RequestHead::post(ACK, JSON), body: br#"{"acks":[0]}"# }
}

/// Returns the body of the question whether the requests with these numbers are indexed.
fn question(numbers: &[u64]) -> Vec<u8> {
    let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
    format!("{{\"acks\":[{}]}}", numbers.join(",")).into_bytes()
}

fn told(status: StatusCode, body: &[u8]) -> Told {
    match status {
        status if status.is_success() => {
            let Ok(Acks { acks }) = serde_json::from_slice(body) else { return Told::Unclear };
            let indexed = acks.into_iter().filter(|(_, is_indexed)| *is_indexed);
            let numbers = indexed.map(|(number, _)| number.parse());
            numbers.collect::<Result<_, _>>().map_or(Told::Unclear, Told::Confirmed)
        }
        StatusCode::TOO_MANY_REQUESTS => Told::Nothing(AttemptError::Status429),
        status if status.is_server_error() => Told::Nothing(AttemptError::Status5xx),
        _ => Told::Nothing(AttemptError::Status4xx),
    }
}

/// Splunk gives a number only to a request that it takes as a whole. A proxy's answer does not show
/// whether Splunk has taken the request.
fn gave_none(status: StatusCode, body: &[u8]) -> bool {
    let answer = serde_json::from_slice::<Answer>(body).unwrap_or_default();
    let fault = answer.code.and_then(fault);
    !status.is_success() && fault.is_some_and(|fault| !matches!(fault, Fault::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_by_splunk_itself_shows_that_it_gave_no_number() {
        let gave_none = |status: u16, body: &str| {
            gave_none(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert!(gave_none(400, r#"{"text":"Invalid data format","code":6}"#));
        assert!(gave_none(400, r#"{"code":6,"invalid-event-number":3}"#));
        assert!(gave_none(503, r#"{"text":"Server is busy","code":9}"#));
        for (status, body) in [
            (504, "<html>Gateway Time-out</html>"),
            (502, ""),
            (200, "<html>welcome</html>"),
            (200, r#"{"text":"Success","code":0}"#),
            (200, r#"{"text":"Server is busy","code":9}"#),
            (503, r#"{"message":"no healthy upstream"}"#),
            (403, r#"{"code":403}"#),
            (400, r#"{"text":"Success","code":0}"#),
        ] {
            assert!(!gave_none(status, body), "{status} {body}");
        }
    }

    #[test]
    fn acks_are_asked_and_told_as_splunk_documents_it() {
        assert_eq!(question(&[0, 17]), b"{\"acks\":[0,17]}");
        let told =
            |status: u16, body: &str| told(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!(
            told(200, r#"{"acks":{"0":true,"1":false,"17":true}}"#),
            Told::Confirmed(vec![0, 17])
        );
        for unclear in ["", "<html>", "{}", r#"{"acks":[0]}"#, r#"{"acks":{"x":true}}"#] {
            assert_eq!(told(200, unclear), Told::Unclear, "{unclear}");
        }
        assert_eq!(told(400, r#"{"acks":{"0":true}}"#), Told::Nothing(AttemptError::Status4xx));
        assert_eq!(told(503, ""), Told::Nothing(AttemptError::Status5xx));
    }
}
