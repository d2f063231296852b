//! The meaning of a consumer's answer, or of an error instead of an answer.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode, header};
use tokio::time::Instant;

use super::api::{Api, Confirm, Outcome, Reply, Sent};
use super::url::BaseUrl;
use crate::transport::connection::io_reason;
use client::ask::NoAnswer;
use delivery::failure::{Failure, RETRY_AFTER_MAX};
use telemetry::AttemptError;

/// The maximum bytes that are read from the body of a consumer's answer, unless the protocol wants
/// more ([`Api::answer_bytes`]). After a longer body, the connection is closed, because it can
/// carry another request only if the whole body was read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The longest time for reading the body of an answer if the body does not matter. If the body
/// takes longer, the connection is closed. The result of the request does not change.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The reasons of failures in which the consumer was not reached, or has not answered.
pub(super) const NO_ANSWER: [AttemptError; 5] = [
    AttemptError::Resolve,
    AttemptError::Connect,
    AttemptError::Tls,
    AttemptError::Timeout,
    AttemptError::Closed,
];

/// Returns the pause of the header `Retry-After`, in seconds or as a date (RFC 9110 §10.2.3), at
/// most [`RETRY_AFTER_MAX`]. `None` if there is no such header, if the header can't be read, or if
/// its date is in the past.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit into a `u64` mean more than any maximum.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).ok()?
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// Returns the result that follows from the status and the headers of an answer: for example, 200
/// is accepted, 413 is refused, and 503 is failed. `path` is the protocol's part of the request's
/// path, without its query, for the message about a missing service. The path of the configured
/// URL, which may be a secret, is not named.
pub(super) fn meaning(
    base: &BaseUrl,
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
) -> Outcome {
    let is_missing = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status);
    let asked = match (is_missing, path) {
        (true, "") => " for the path of the configured URL".to_owned(),
        (true, path) => format!(" for {path} below the configured URL"),
        (false, _) => String::new(),
    };
    let failure = |reason| Failure {
        retry_after: retry_after(headers, SystemTime::now()),
        ..Failure::new(reason, format!("{base}: answered {status}{asked}"))
    };
    match status {
        status if status.is_success() => Outcome::Accepted,
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Outcome::Refused(failure(AttemptError::Status4xx)),
        StatusCode::TOO_MANY_REQUESTS => Outcome::Failed(failure(AttemptError::Status429)),
        status if status.is_client_error() => Outcome::Failed(failure(AttemptError::Status4xx)),
        status if status.is_server_error() => Outcome::Failed(failure(AttemptError::Status5xx)),
        _ => Outcome::Failed(failure(AttemptError::Protocol)),
    }
}

/// Returns the result of a request whose answer began before the consumer had the whole request. An
/// error status counts as usual (`api` judges it), because a consumer may refuse a request after it
/// has read only the head. A status 2xx counts as a failure: nobody can accept a batch that has not
/// arrived. Some proxies answer like that even when no consumer runs.
pub(super) fn early(
    api: &dyn Api,
    (base, path): (&BaseUrl, &str),
    response: &Response<Incoming>,
    sent: &Sent,
) -> Outcome {
    let (status, headers) = (response.status(), response.headers());
    let by_status = meaning(base, path, status, headers);
    if matches!(by_status, Outcome::Accepted) {
        let what = format!(
            "{base}: answered {status} before it had the whole request, so this is not an \
             acknowledgement"
        );
        return Outcome::Failed(Failure::new(AttemptError::Protocol, what));
    }
    let (body, is_too_long) = (None, false);
    api.judge(Reply { status, headers, by_status, body, is_too_long, path, base }, sent)
}

/// Returns the result of a request, which `api` judges. A 2xx that is not the acknowledgement of
/// the protocol is a failure. Reads the body of the answer until `deadline`, or only drains it if
/// `api` does not want it ([`read`]). The `bool` is `true` if another request can use the
/// connection: the body was read to its end, and the answer hides no number of a consumer that
/// confirms requests later. A server that has restarted behind a proxy counts from 0 again. If the
/// proxy answers for it, it may have given this request the number of an earlier one, which would
/// be taken for confirmed.
pub(super) async fn judge(
    api: &dyn Api,
    (base, path): (&BaseUrl, &str),
    response: Response<Incoming>,
    sent: &Sent,
    deadline: Instant,
) -> (Outcome, bool) {
    let answer = read(response, api.answer_bytes(), deadline).await;
    let reply = answer.reply(base, path);
    let outcome = match reply.status.is_success().then(|| api.acknowledged(&reply)) {
        Some(Err(what)) => reply.unclear(&what),
        Some(Ok(())) | None => api.judge(reply, sent),
    };
    let gave_none = |confirm: &Confirm| {
        answer.body.as_ref().is_some_and(|body| (confirm.gave_none)(answer.status, body))
    };
    let is_known = matches!(outcome, Outcome::Taken(_)) || api.confirm().is_none_or(gave_none);
    (outcome, answer.is_whole && is_known)
}

/// An answer after its body was read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    /// `None` if the body is longer than wanted, was cut off or came too slowly.
    pub(super) body: Option<Vec<u8>>,
    /// `true` if a body is wanted, and this one is longer than wanted.
    is_too_long: bool,
    /// `true` if the body was read to its end.
    is_whole: bool,
}

impl Answer {
    /// Returns the answer for the protocol. `path` is the protocol's part of the request's path.
    pub(super) fn reply<'a>(&'a self, base: &'a BaseUrl, path: &'a str) -> Reply<'a> {
        Reply {
            status: self.status,
            headers: &self.headers,
            by_status: meaning(base, path, self.status, &self.headers),
            body: self.body.as_deref(),
            is_too_long: self.is_too_long,
            path,
            base,
        }
    }
}

/// Reads the body of an answer until `deadline`, and returns it if it has at most `wanted` bytes.
/// If `wanted` is 0, the body is only drained: for at most [`ANSWER_TIME`] and up to about
/// [`ANSWER_BYTES_MAX`] bytes.
pub(super) async fn read(response: Response<Incoming>, wanted: usize, deadline: Instant) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut text, mut read) = (Vec::new(), 0);
    let rest = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.ok()?;
            let data = frame.data_ref().map_or(&[][..], Bytes::as_ref);
            read += data.len();
            if read > wanted.max(ANSWER_BYTES_MAX) {
                return None;
            }
            if read <= wanted {
                text.extend_from_slice(data);
            }
        }
        Some(())
    };
    let deadline = match wanted {
        0 => deadline.min(Instant::now() + ANSWER_TIME),
        _ => deadline,
    };
    let is_whole = matches!(tokio::time::timeout_at(deadline, rest).await, Ok(Some(())));
    Answer {
        status: head.status,
        headers: head.headers,
        body: (is_whole && read <= wanted).then_some(text),
        is_too_long: wanted > 0 && read > wanted,
        is_whole,
    }
}

/// Returns the category of the error that ended a request on an open connection before its answer:
/// invalid HTTP, TLS, a timeout, or a closed connection.
pub(super) fn reason(error: &NoAnswer) -> AttemptError {
    let NoAnswer::Broken(error) = error else { return AttemptError::Protocol };
    if error.is_parse() {
        return AttemptError::Protocol;
    }
    let mut source = Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            // With TLS 1.3, a server refuses the client's certificate after the handshake.
            return io_reason(error);
        }
        source = error.source();
    }
    AttemptError::Closed
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Sun, 09 Sep 2001 01:46:50 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(of("Sun, 09 Sep 2001 01:46:30 GMT"), None);
        assert_eq!(of("99999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(of("Fri, 31 Dec 9999 23:59:59 GMT"), Some(RETRY_AFTER_MAX));
        assert_eq!((of("soon"), of("-1"), of("+1"), of("")), (None, None, None, None));
    }
}
