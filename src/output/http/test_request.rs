//! `check --connect`: a request without events, whose answer says if the consumer would take
//! events.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::Limited;
use hyper::StatusCode;
use tokio::time::Instant;

use super::answer;
use super::answer::chain;
use super::api::TestRequest;
use super::body::Pieces;
use super::client::Client;
use super::request::request;
use crate::delivery::endpoints::ResolvedAddress;
use crate::delivery::failure::Failure;
use crate::telemetry::AttemptError;

/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Client {
    /// Tests whether an address would take events: connects, and sends the test request of the
    /// protocol if it has one. Returns the failure otherwise, in words for the operator.
    pub(super) async fn test(&self, address: ResolvedAddress) -> Result<(), Failure> {
        let Some(test) = self.api.test_request() else { return self.reach(address).await };
        self.api.ready().await?;
        let expanded = self.expanded.load_full();
        let found = expanded.as_ref().and_then(|expanded| {
            expanded.endpoints.get(address.endpoint).map(|endpoint| (expanded, endpoint))
        });
        let Some((expanded, endpoint)) = found else {
            let what = format!("{address}: the config no longer has this URL");
            return Err(Failure::new(AttemptError::Protocol, what));
        };
        let base = &endpoint.base;
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        let deadline = Instant::now() + self.timeouts.connect + self.timeouts.request;
        let mut connection = self.dial(base, address, expanded.proxy.as_ref()).await?;
        connection.busy = true;
        let TestRequest { head, body } = test;
        let own = self.own_headers(&connection, endpoint, &head, &expanded.headers)?;
        let body = Pieces::of(vec![Bytes::from_static(body)]);
        let upload = self.upload(body, &connection.key.address, connection.progress.begin());
        let request = request(endpoint, &head, own, &expanded.headers, upload)
            .map_err(|error| failed(AttemptError::Protocol, &error.to_string()))?;
        let answer = async {
            let response = connection.sender.send_request(request).await?;
            let status = response.status();
            // An answer that is too long, or breaks off, still has its status.
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
        };
        let answered: Result<hyper::Result<(StatusCode, Bytes)>, _> =
            tokio::time::timeout_at(deadline, answer).await;
        match answered {
            Ok(Ok((status, body))) => self.api.tested(status, &body).map_err(|what| {
                failed(AttemptError::Status4xx, &format!("answered {status}: {what}"))
            }),
            Ok(Err(error)) => Err(failed(answer::reason(&error), &chain(&error))),
            Err(_) => Err(failed(AttemptError::Timeout, "no answer to a test request")),
        }
    }
}
