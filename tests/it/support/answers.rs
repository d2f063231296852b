//! Checks of the relay's responses to a sender, and of the counters for them.

use std::collections::BTreeMap;

use super::http::{Client, Response};
use super::metrics::Metrics;
use super::relay::Relay;

/// Checks that `response` is a refusal with `code`: the body is the Kubernetes `Status` for this
/// code, and the code's headers are present. Returns the message of the `Status`.
pub(crate) fn assert_refusal(response: &Response, code: u16) -> String {
    let text = response.text();
    assert_eq!(response.status, code, "{text}");
    assert_eq!(response.header("content-type"), Some("application/json"), "{text}");
    let status = response.json();
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        408 => "Timeout",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => panic!("{code} is not in the contract"),
    };
    assert_eq!(status["kind"], "Status", "{text}");
    assert_eq!(status["apiVersion"], "v1", "{text}");
    assert_eq!(status["status"], "Failure", "{text}");
    assert_eq!(status["reason"], reason, "{text}");
    assert_eq!(status["code"], code, "{text}");
    let retry_after = response.header("retry-after");
    if matches!(code, 429 | 503) {
        let seconds: u64 = retry_after.expect("Retry-After").parse().expect("whole seconds");
        assert!((3..=8).contains(&seconds), "Retry-After {seconds}, with retry_after = 5s");
    } else {
        assert_eq!(retry_after, None, "client-go would try again at once: {text}");
    }
    let challenge = response.header("www-authenticate");
    assert_eq!(challenge, (code == 401).then_some("Bearer"), "{text}");
    assert_eq!(response.header("allow"), (code == 405).then_some("POST"), "{text}");
    let message = status["message"].as_str().expect("a message").to_owned();
    assert!(!message.is_empty(), "{text}");
    message
}

/// Checks that `response` is the one to a head that is too slow, too large or not HTTP: it has the
/// status `code` and no body.
pub(crate) fn assert_head_refusal(response: &Response, code: u16) {
    assert_eq!((response.status, response.text().as_str()), (code, ""));
    assert_eq!(response.header("content-length"), Some("0"));
    assert_eq!(response.header("connection"), Some("close"));
}

/// Checks that the response is 200 and says that `events` events were accepted.
pub(crate) fn assert_accepted(response: &Response, events: u64) {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.text(), format!("{{\"accepted\":{events}}}"));
    assert_eq!(response.header("content-type"), Some("application/json"));
}

/// An EventList without events. The relay accepts it, and stores nothing for the outputs.
pub(crate) const NO_EVENTS: &str =
    r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}"#;

/// Checks that the server has kept the connection: it answers another request.
pub(crate) fn assert_kept(client: &mut Client) {
    let response = client.post("/audit", "application/json", NO_EVENTS.as_bytes());
    assert_accepted(&response.expect("the connection was to be kept"), 0);
}

/// The counted responses by status code, and the counted rejections by reason, without zeros.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counted {
    codes: BTreeMap<String, f64>,
    reasons: BTreeMap<String, f64>,
}

impl Counted {
    pub(crate) fn of(relay: &Relay) -> Self {
        Self::in_metrics(&relay.metrics())
    }

    pub(crate) fn in_metrics(metrics: &Metrics) -> Self {
        let by = |name: &str, key: &str| {
            let mut counts = BTreeMap::new();
            for (labels, value) in metrics.all(name) {
                let label = labels.iter().find(|label| label.0 == key).expect("this label");
                if value != 0.0 {
                    *counts.entry(label.1.clone()).or_default() += value;
                }
            }
            counts
        };
        Self {
            codes: by("requests_total", "code"),
            reasons: by("requests_rejected_total", "reason"),
        }
    }

    /// Returns these counts plus one response with this code and, if given, this reason.
    pub(crate) fn and(mut self, code: &str, reason: Option<&str>) -> Self {
        *self.codes.entry(code.to_owned()).or_default() += 1.0;
        if let Some(reason) = reason {
            *self.reasons.entry(reason.to_owned()).or_default() += 1.0;
        }
        self
    }
}
