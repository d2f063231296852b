//! The parts of a request and of its answer that depend on the protocol. Everything else
//! (addresses, connections, timeouts, headers of the config) is common to all protocols.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;

use super::body::Pieces;
use config::Compression;
use delivery::endpoints::Probed;
use delivery::failure::Failure;
use delivery::link::{Part, Verdict};
use queue::{Acceptance, Batch, Claim, Identity, Position, Take, lines};
use telemetry::AttemptError;

/// Returns the header `Authorization` of this scheme, with the token in `file`. The error text
/// names the file, and never contains its content.
pub(crate) fn token_header(scheme: &str, file: &Path) -> Result<HeaderValue, String> {
    credentials_header(&format!("{scheme} {}", token_in(file)?), file)
}

/// Returns the token or key in `file`, without a scheme or quotes. The error text names the file,
/// and never contains its content. Blocks the thread.
pub(crate) fn token_in(file: &Path) -> Result<String, String> {
    config::read_credential(file).map_err(|error| unreadable(file, &error))
}

/// Returns the message about a secret file that can't be read.
pub(crate) fn unreadable(file: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", file.display())
}

/// Returns `text`, which contains the secret in `file`, as the value of a header that is never
/// shown. The error text names the file, and never contains its content.
pub(crate) fn credentials_header(text: &str, file: &Path) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        format!("{} contains a character that is not allowed in an HTTP header", file.display())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The name of a connection: a random UUID (RFC 9562 §5.4), which no other connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId(u128);

impl ConnectionId {
    pub(super) fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

/// Shows the name in the text form of a UUID, with lower-case hexadecimal digits.
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |shift: u32, bits: u32| (self.0 >> shift) & ((1 << bits) - 1);
        let (version, variant) = (0x4000 | field(64, 12), 0x8000 | field(48, 14));
        let (first, second, last) = (field(96, 32), field(80, 16), field(0, 48));
        write!(f, "{first:08x}-{second:04x}-{version:04x}-{variant:04x}-{last:012x}")
    }
}

/// A protocol over HTTP: how a batch becomes the body of a request, and the meaning of an answer.
pub(crate) trait Api: Send + Sync + 'static {
    /// Returns the path that is appended to the path of each configured URL. Empty if requests go
    /// to the configured URL itself.
    fn path(&self) -> &str {
        ""
    }

    /// Returns the paths that vendors print at the end of their URLs, longer ones before shorter
    /// ones. Such a path is cut off a configured URL.
    fn printed_paths(&self) -> Vec<String> {
        self.path().split('?').take(1).map(str::to_owned).collect()
    }

    fn content_type(&self) -> &'static str;

    /// Reads the protocol's own files of credentials. Returns the header `Authorization` of all
    /// requests. `None` if there are no such files, or if each request gets its own header. The
    /// error text names the file that can't be used, and never contains its content.
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        Ok(None)
    }

    /// Begins to use the values that [`Api::authorization`] read last. Called when a start or a
    /// reload has read all files without an error.
    fn take_up(&self) {}

    /// Starts the background work of the protocol, such as the renewal of a token. Called when the
    /// delivery begins, and by `check --connect`. The work ends when no output needs it.
    fn begin(&self) {}

    /// Waits, for a limited time, until the protocol has everything that a request needs, such as a
    /// token. For a batch, called before the address is chosen, so that no address is blamed for
    /// the failure.
    fn ready(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Returns the name that is put, with a dot, before the host of each configured URL.
    fn host_prefix(&self) -> Option<&str> {
        None
    }

    /// Returns the headers that depend on the request or its connection, or that change over time,
    /// such as a token. Called for each request just before it is sent. The headers replace those
    /// of the config with the same names.
    fn request_headers(&self, _call: &Call<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
        Ok(Vec::new())
    }

    /// Returns the requests without events that `check --connect` sends to test whether the
    /// consumer would accept events.
    fn test_requests(&self) -> Vec<TestRequest>;

    /// Returns `true` if the answer to a test request may only be about its lack of events, so that
    /// it does not show whether the consumer would accept some.
    fn may_refuse_tests(&self, _reply: &Reply<'_>) -> bool {
        false
    }

    /// Judges the answer to a test request. Returns an error if the consumer would probably not
    /// accept events. The error is worded for the operator.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        self.tested_by_status(reply)
    }

    /// Checks the status of an answer to a test request, for [`Api::tested`]. An answer with a
    /// status 2xx must also be an acknowledgement ([`Api::acknowledged`]).
    fn tested_by_status(&self, reply: &Reply<'_>) -> Result<(), String> {
        Err(match reply.status {
            status if status.is_success() => {
                let acknowledged = self.acknowledged(reply);
                return acknowledged.map_err(|what| reply.instead(&what).to_owned());
            }
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                "the server does not understand the request: it may not be the service that this \
                 type of output needs"
                    .to_owned()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "the token or password is missing, wrong, or has no write access".to_owned()
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                format!("there is no such service at this URL (the request was for {})", reply.path)
            }
            _ => "the consumer is not accepting events now".to_owned(),
        })
    }

    /// Returns a test request, whose answer must be good ([`Api::tested`]) before a batch is sent.
    /// `None` if the batch may be sent at once.
    fn asks_first(&self) -> Option<TestRequest> {
        None
    }

    /// Records that the consumer has not confirmed requests in time. The requests are sent again.
    fn unconfirmed(&self) {}

    /// Returns a request whose answer may excuse a failed test request: the answer can show that
    /// the first event will remove the cause of the failure.
    fn excuse(&self) -> Option<TestRequest> {
        None
    }

    /// Returns `true` if the answer to [`Api::excuse`] excuses the failure.
    fn excuses(&self, _body: &[u8]) -> bool {
        false
    }

    /// Sends one request to each other server that the protocol needs, for `check --connect`.
    /// Returns one result for each server.
    fn probe(&self) -> BoxFuture<'_, Probed> {
        Box::pin(std::future::ready(Probed::new()))
    }

    /// Returns how the consumer confirms requests later. `None` if the answer to a request is its
    /// acknowledgement.
    fn confirm(&self) -> Option<&Confirm> {
        None
    }

    /// Returns `true` if the protocol adds its own bytes to each event. A request may then have no
    /// room for a whole batch. Each protocol that does this also reads the answers, because they
    /// are about single events.
    fn wraps_events(&self) -> bool {
        self.answer_bytes() > 0
    }

    /// Returns `true` if a request is a JSON list of the unchanged events. [`Api::encode`] may then
    /// get pieces of lists ([`queue::is_list`]).
    fn sends_lists(&self) -> bool {
        false
    }

    /// Returns the maximum bytes of an answer's body for [`Api::judge`]. 0: the body is ignored.
    fn answer_bytes(&self) -> usize {
        0
    }

    /// Returns the body of the request for a batch, before compression. If the protocol wraps
    /// events, the body has at most as many events as fit into `max_bytes`, but at least one.
    /// `queue` is the identity of the queue.
    fn encode(&self, batch: Batch, queue: Identity, max_bytes: u64) -> Encoded;

    /// Checks that an answer with a status 2xx is the acknowledgement of this protocol, and does
    /// not come from another server, such as a proxy or a sign-in page. The error says, for the
    /// operator, what is wrong. After an error, the answer is not judged, and the events are sent
    /// again.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String>;

    /// Returns the result of an answered request, except for a 2xx that [`Api::acknowledged`]
    /// refuses. Usually the result follows from the status. An answer that came before the consumer
    /// had the whole request is judged without its body, and only if its status is not 2xx.
    fn judge(&self, reply: Reply<'_>, _sent: &Sent) -> Outcome {
        reply.by_status
    }
}

/// The parts of a request that the protocol decides, without the body and the headers of
/// [`Api::request_headers`].
#[derive(Debug, Clone)]
pub(crate) struct RequestHead {
    pub method: Method,
    /// The path and query, which are added to the path of the configured URL.
    pub path: String,
    pub content_type: &'static str,
    /// The compression in the header `Content-Encoding`.
    pub compression: Compression,
    /// The SHA-256 of the body, in hexadecimal digits; empty if the protocol does not sign bodies.
    pub(crate) body_sha256: String,
}

impl RequestHead {
    /// Makes a POST to this path, with a body that is neither compressed nor signed.
    pub(crate) fn post(path: &str, content_type: &'static str) -> Self {
        Self {
            method: Method::POST,
            path: path.to_owned(),
            content_type,
            compression: Compression::None,
            body_sha256: String::new(),
        }
    }
}

/// A request for which the protocol adds headers ([`Api::request_headers`]).
pub(crate) struct Call<'a> {
    pub connection: ConnectionId,
    pub host: &'a HeaderValue,
    /// The path and query of the request, as they are sent.
    pub target: &'a str,
    pub head: &'a RequestHead,
    /// The headers that the config adds to each request.
    pub extra: &'a HeaderMap,
}

/// A request without events: see [`Api::test_requests`].
pub(crate) struct TestRequest {
    pub head: RequestHead,
    pub body: &'static [u8],
}

/// The way in which a consumer confirms the requests that it has taken ([`Outcome::Taken`]). The
/// consumer is asked regularly, on the connection that carried the requests.
pub(crate) struct Confirm {
    /// The path of the question, which is added to the path of the configured URL.
    pub path: &'static str,
    pub content_type: &'static str,
    /// The time between two questions on a connection.
    pub interval: Duration,
    /// The longest wait of a request for its confirmation. After that, its events are sent again.
    pub timeout: Duration,
    /// Returns the body of the question about the requests with these numbers.
    pub question: fn(&[u64]) -> Vec<u8>,
    /// Interprets an answer with this status and body.
    pub told: fn(StatusCode, &[u8]) -> Told,
    /// Returns `true` if an answer to events shows that the consumer itself has given the request
    /// no number.
    pub gave_none: fn(StatusCode, &[u8]) -> bool,
}

/// The meaning of an answer to a question of [`Confirm`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The numbers of the confirmed requests. The rest is not confirmed yet.
    Confirmed(Vec<u64>),
    /// The answer confirms nothing, for the given reason. The consumer is asked again later.
    Nothing(AttemptError),
    /// The answer can't be understood. It may have confirmed requests.
    Unclear,
}

/// A number in a JSON answer. Some servers send it as a string.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum JsonNumber<T> {
    Number(T),
    Text(String),
}

impl<T: FromStr> JsonNumber<T> {
    /// Returns the number; `None` if the string is not one.
    pub(crate) fn number(self) -> Option<T> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// The body of a request, and the number of events in it.
pub(crate) struct Encoded {
    pub(super) body: Pieces,
    /// The number of events in the body: the first ones of the batch. The rest had no room.
    pub(super) events: u64,
}

impl Encoded {
    pub(crate) fn new(body: Vec<u8>, events: u64) -> Self {
        Self::of_parts([body], events)
    }

    /// Makes a body of several parts, which are not joined in memory.
    pub(crate) fn of_parts(parts: impl IntoIterator<Item = Vec<u8>>, events: u64) -> Self {
        Self { body: Pieces::of(parts.into_iter().map(Bytes::from).collect()), events }
    }
}

/// Writes the first events of a batch into the body of a request: as many as fit into the limit
/// `room`, but at least one. `write` appends one event, and also gets its position and its time of
/// acceptance ([`Acceptance::received`]). Returns the number of written events.
pub(crate) fn write_events(
    batch: &Batch,
    room: Take,
    body: &mut Vec<u8>,
    mut write: impl FnMut(&[u8], Position, u64, &mut Vec<u8>),
) -> u64 {
    let mut events = 0;
    for (event, (position, received)) in lines(&batch.pieces).zip(batch.places()) {
        let before = body.len();
        write(event, position, received, body);
        if events > 0 && (body.len() as u64 > room.bytes || events == room.events) {
            body.truncate(before);
            break;
        }
        events += 1;
    }
    events
}

/// Returns an empty buffer for the body of a request that wraps the events of this batch.
pub(crate) fn body_for(batch: &Batch) -> Vec<u8> {
    Vec::with_capacity(usize::try_from(batch.bytes).unwrap_or_default() * 5 / 4)
}

/// The result of one request to a consumer.
pub(crate) enum Outcome {
    /// The consumer has acknowledged all events of the request.
    Accepted,
    /// The consumer has taken the request, which it identifies by this number, and will confirm it
    /// ([`Confirm`]).
    Taken(u64),
    /// The consumer has judged single events. The parts are those of [`Event::Judged`].
    ///
    /// [`Event::Judged`]: delivery::link::Event::Judged
    Judged(Vec<Part>),
    /// The consumer refuses the events themselves (usually status 400, 413 or 422), so it would
    /// refuse the same request again.
    Refused(Failure),
    /// The request failed for any other reason, and its events must be sent again.
    Failed(Failure),
}

const PAGE: &str = "this is a web page, not an acknowledgement: is there a proxy or a sign-in page \
                    at this URL?";

pub(crate) const TOO_LONG: &str = "the response is too long to read";

/// The pause before events are sent again that the consumer may have stored already. New events,
/// which it may take, wait no longer than this.
pub(super) const UNREAD_PAUSE: Duration = Duration::from_secs(30);

/// A consumer's answer to a request.
pub(crate) struct Reply<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// The result that follows from the status: 2xx is accepted, 400, 413 and 422 are refused,
    /// anything else has failed.
    pub(crate) by_status: Outcome,
    /// The body of the answer. `None` if the body is longer than wanted, was cut off or came too
    /// slowly, or if the answer came before the consumer had the whole request.
    pub body: Option<&'a [u8]>,
    /// `true` if a body is wanted, and this one is longer than wanted.
    pub is_too_long: bool,
    /// The path that the protocol has added to the configured URL, without a query. This part of
    /// the request's path is not secret. In a test, `/` if the protocol adds none and the URL has
    /// no path either.
    pub path: &'a str,
    /// The scheme, host and port that answered, for messages.
    pub base: &'a dyn fmt::Display,
}

/// Returns `true` if an answer reports an error, as gateways do in spite of a 2xx:
/// `{"status":"error",…}`.
pub(crate) fn reports_error(body: &[u8]) -> bool {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let status = answer.get("status").and_then(serde_json::Value::as_str);
    status.is_some_and(|status| ["error", "fail"].contains(&status))
        || answer.get("error").is_some_and(|error| !error.is_null())
}

impl Reply<'_> {
    /// Returns the failure of a request whose answer violates the protocol, or is too long to read.
    /// Codes above 206 are a server's own, such as 260 of a Loki that discards writes. After an
    /// answer that is too long, the same request would get the same answer, so there is a pause.
    pub(crate) fn unclear(&self, what: &str) -> Outcome {
        let is_success = (200..=206).contains(&self.status.as_u16());
        let is_answer = match self.body {
            Some(body) => !reports_error(body),
            None => self.is_too_long,
        };
        let may_be_stored = is_success && is_answer && !self.is_page();
        let what = if self.is_too_long { TOO_LONG } else { self.instead(what) };
        let message = format!("{}: answered {}: {what}", self.base, self.status);
        let retry_after = (may_be_stored && self.is_too_long).then_some(UNREAD_PAUSE);
        let failure = Failure::new(AttemptError::Protocol, message);
        Outcome::Failed(Failure { may_be_stored, retry_after, ..failure })
    }

    /// Returns the message about an answer that violates the protocol: `what`, or a message about a
    /// web page if the answer is one.
    pub(crate) fn instead<'w>(&self, what: &'w str) -> &'w str {
        if self.is_page() { PAGE } else { what }
    }

    /// Returns `true` if the answer is a web page: its media type says so, or its body begins with
    /// the tag of a markup language.
    pub(crate) fn is_page(&self) -> bool {
        let body = self.body.unwrap_or_default();
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        body.trim_ascii_start().starts_with(b"<") || self.has_type_of_page()
    }

    pub(crate) fn has_type_of_page(&self) -> bool {
        self.is_of_type("text/html") || self.is_of_type("application/xhtml+xml")
    }

    /// Returns `true` if the header `Content-Type` has this media type, with any parameters.
    pub(crate) fn is_of_type(&self, media_type: &str) -> bool {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let found = value.and_then(|value| value.split(';').next()).unwrap_or_default();
        found.trim().eq_ignore_ascii_case(media_type)
    }
}

/// The events of a request, for the judgement of its answer.
pub(crate) struct Sent {
    pub claim: Claim,
    pub events: u64,
    acceptances: Vec<Acceptance>,
    /// The end of the whole claim, if some of its events had no room in the request.
    whole_end: Option<Position>,
}

impl Sent {
    /// Describes a request that carries all events of several batches. `claim` covers all of them.
    pub(crate) fn whole_batches(claim: Claim, events: u64) -> Self {
        Self { claim, events, acceptances: Vec::new(), whole_end: None }
    }

    pub(super) fn of(batch: &Batch) -> Self {
        let Batch { claim, events, ref acceptances, .. } = *batch;
        Self { claim, events, acceptances: acceptances.clone(), whole_end: None }
    }

    /// Returns the position of each event, in order. May be empty unless [`Api::wraps_events`].
    pub(crate) fn positions(&self) -> impl Iterator<Item = Position> {
        let all = self.acceptances.iter().flat_map(Acceptance::positions);
        all.take(usize::try_from(self.events).unwrap_or(usize::MAX))
    }

    /// Records that only the first `events` events had room in the request.
    pub(super) fn cut(&mut self, events: u64) {
        if events >= self.events {
            return;
        }
        self.events = events;
        if let Some(last) = self.positions().last() {
            self.whole_end = Some(std::mem::replace(&mut self.claim.end, last.next()));
        }
    }

    /// Returns the whole claim, including the events that had no room in the request.
    pub(super) fn whole(&self) -> Claim {
        Claim { end: self.whole_end.unwrap_or(self.claim.end), ..self.claim }
    }

    /// Returns the outcome with an additional part for the events that had no room in the request.
    /// Returns any outcome other than accepted or judged as it is.
    pub(super) fn with_unsent(&self, outcome: Outcome) -> Outcome {
        let Some(end) = self.whole_end else { return outcome };
        let mut parts = match outcome {
            Outcome::Accepted => {
                let verdict = Verdict::Delivered;
                vec![Part { end: self.claim.end, events: self.events, verdict }]
            }
            Outcome::Judged(parts) => parts,
            outcome @ (Outcome::Taken(_) | Outcome::Refused(_) | Outcome::Failed(_)) => {
                return outcome;
            }
        };
        parts.push(Part { end, events: 0, verdict: Verdict::Unsent });
        Outcome::Judged(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_page_is_known_by_its_type_or_its_first_byte() {
        for (media_type, body, is_page) in [
            ("", "<html>", true),
            ("text/plain", "\u{feff}\n <!DOCTYPE html>", true),
            ("Text/HTML; charset=utf-8", "", true),
            ("application/xhtml+xml", "", true),
            ("application/json", "{\"a\":\"<html>\"}", false),
            ("", "", false),
        ] {
            let mut headers = HeaderMap::new();
            if !media_type.is_empty() {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            }
            let reply = Reply {
                status: StatusCode::OK,
                headers: &headers,
                by_status: Outcome::Accepted,
                body: Some(body.as_bytes()),
                is_too_long: false,
                path: "",
                base: &"",
            };
            assert_eq!(reply.is_page(), is_page, "{media_type} {body}");
        }
    }

    #[test]
    fn a_connection_is_named_by_a_random_uuid() {
        assert_eq!(ConnectionId(0).to_string(), "00000000-0000-4000-8000-000000000000");
        let all = ConnectionId(u128::MAX).to_string();
        assert_eq!(all, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(ConnectionId::random().to_string(), ConnectionId::random().to_string());
    }
}
