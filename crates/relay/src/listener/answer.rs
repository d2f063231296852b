//! The answers to senders: `{"accepted":N}`, with `"rejected":N` if items of the body are not audit
//! events, or a Kubernetes `Status` object, which kube-apiserver
//! writes into its log.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode, header};

use audit::Rejected;
use queue::Refused;
use telemetry::Rejection;

pub(super) type Body = Full<Bytes>;

pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// The refusal that `response` reports; `None` if the request was accepted.
    pub(super) refusal: Option<Refusal>,
}

/// The facts about the events of a body, besides their number.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// The items that are not audit events.
    pub(super) rejected: Rejected,
    /// The number of events in which bytes that are not UTF-8 were replaced.
    pub(super) mended: u64,
    /// The number of events that were trimmed, because the body does not fit into memory.
    pub(super) trimmed: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The value of the metrics' label `reason`.
    pub(super) rejection: Rejection,
    /// The reason as one sentence for the sender.
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        rejection: Rejection,
        message: impl Into<String>,
    ) -> Self {
        Self { status, rejection, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Rejection::Invalid, message)
    }

    pub(super) fn too_large(max_body: u64) -> Self {
        let message = format!(
            "the body is larger than the effective limits.max_body ({max_body} bytes), and is not a \
             list of events each of which fits when it is trimmed"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Rejection::TooLarge, message)
    }

    pub(super) fn in_flight_full() -> Self {
        let message = "too many bytes of requests are in progress, try again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Rejection::InFlightFull, message)
    }

    pub(super) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Rejection::ShuttingDown, "shutting down")
    }

    /// Returns `true` if the connection must end after this answer: after 503, so that the sender
    /// connects to another replica, and after 408.
    pub(super) fn closes(&self) -> bool {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT)
    }

    /// Returns the whole HTTP answer for this refusal. An answer with 429 or 503 has a
    /// `Retry-After` header with a random time around `retry_after` (see [`draw`]).
    pub(super) fn answer(&self, retry_after: Duration) -> Response<Body> {
        let mut response = json(self.status, status_object(self.status, &self.message).into());
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(draw(retry_after)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let (status, rejection, message) = match refused {
            Refused::Full => (
                StatusCode::TOO_MANY_REQUESTS,
                Rejection::QueueFull,
                "the queue is full, try again later",
            ),
            Refused::Disk => (
                StatusCode::SERVICE_UNAVAILABLE,
                Rejection::Disk,
                "the disk does not store events now, try again later",
            ),
            Refused::Undelivered => (
                StatusCode::SERVICE_UNAVAILABLE,
                Rejection::DeliveryTimeout,
                "an output that the events are for has ended, try again later",
            ),
        };
        Self::new(status, rejection, message)
    }
}

/// Returns the answer for `events` accepted events, and `rejected` items that are not events.
pub(super) fn accepted(events: u64, rejected: u64) -> Answer {
    let body = match (events, rejected) {
        (1, 0) => Bytes::from_static(b"{\"accepted\":1}"),
        (_, 0) => Bytes::from(format!("{{\"accepted\":{events}}}")),
        _ => Bytes::from(format!("{{\"accepted\":{events},\"rejected\":{rejected}}}")),
    };
    Answer { response: json(StatusCode::OK, body), refusal: None }
}

fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns a random number of seconds, at least 1, between 0.6 and 1.6 times `middle`, so that
/// senders that were refused together do not retry together. For example, 5 s gives 3 to 8. A
/// `middle` of more than 15 s is treated as 15 s.
fn draw(middle: Duration) -> u64 {
    let millis = u64::try_from(middle.as_millis()).unwrap_or(u64::MAX).min(15_000);
    let low = (millis * 6).div_ceil(10_000).max(1);
    let high = (millis * 16 / 10_000).max(low);
    fastrand::u64(low..=high)
}

/// Returns a `metav1.Status` object (k8s.io/apimachinery/pkg/apis/meta/v1/types.go) as JSON text.
fn status_object(status: StatusCode, message: &str) -> String {
    let reason = match status.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        408 => "Timeout",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "",
    };
    serde_json::json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": status.as_u16(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_drawn_from_0_6_to_1_6_times_the_middle() {
        for (middle, range) in
            [(1, 1..=1), (2, 2..=3), (3, 2..=4), (5, 3..=8), (10, 6..=16), (15, 9..=24)]
        {
            let drawn: std::collections::BTreeSet<_> =
                (0..2000).map(|_| draw(Duration::from_secs(middle))).collect();
            assert_eq!(drawn, range.collect(), "{middle}");
        }
    }
}
