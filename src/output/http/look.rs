//! `check --connect`: looks at how the consumer would store events.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::Limited;
use hyper::StatusCode;
use tokio::time::Instant;

use super::api::TestRequest;
use super::body::Pieces;
use super::client::Client;
use super::request::request;
use crate::delivery::endpoints::ResolvedAddress;
use crate::delivery::failure::Failure;
use crate::telemetry::AttemptError;

/// The most bytes of an answer that are read. The mapping of an index with 1,000 fields, which is
/// the most by default, has about 100 KB.
const ANSWER_BYTES_MAX: usize = 4 << 20;

impl Client {
    /// Does the same as [`Client::test`], and looks at how the consumer would store events.
    pub(super) async fn test_and_look(&self, address: ResolvedAddress) -> Result<(), Failure> {
        let tested = self.test(address.clone()).await;
        // Without an answer, there is nothing to look at. A missing index may have a template.
        if tested.as_ref().is_err_and(|failure| failure.reason != AttemptError::Status4xx) {
            return tested;
        }
        self.look(&address).await.and(tested)
    }

    /// Asks a consumer how it would store events, by the requests of [`Api::looks`] one after the
    /// other, until an answer can be understood. A consumer that says nothing about it, or not to
    /// this client, is no failure.
    ///
    /// # Errors
    ///
    /// The consumer would refuse events.
    ///
    /// [`Api::looks`]: super::api::Api::looks
    async fn look(&self, address: &ResolvedAddress) -> Result<(), Failure> {
        for look in self.api.looks() {
            let deadline = Instant::now() + self.timeouts.connect + self.timeouts.request;
            let answer = tokio::time::timeout_at(deadline, self.answer_to(look, address)).await;
            let looked = answer.ok().flatten().and_then(|answer| self.api.looked(&answer));
            if let Some(looked) = looked {
                let failure =
                    |what| Failure::new(AttemptError::Protocol, format!("{address}: {what}"));
                return looked.map_err(failure);
            }
        }
        Ok(())
    }

    /// Returns the body of the answer to a request, which is sent on a connection of its own;
    /// `None` without an answer 200.
    async fn answer_to(&self, look: TestRequest, address: &ResolvedAddress) -> Option<Bytes> {
        let TestRequest { head, body } = look;
        let expanded = self.expanded.load_full()?;
        let endpoint = expanded.endpoints.get(address.endpoint)?;
        let dialled = self.dial(&endpoint.base, address.clone(), expanded.proxy.as_ref());
        let mut connection = dialled.await.ok()?;
        connection.busy = true;
        let own = self.own_headers(&connection, endpoint, &head, &expanded.headers).ok()?;
        let body = Pieces::of(vec![Bytes::from_static(body)]);
        let upload = self.upload(body, address, connection.progress.begin());
        let request = request(endpoint, &head, own, &expanded.headers, upload).ok()?;
        let response = connection.sender.send_request(request).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?;
        Some(body.to_bytes())
    }
}
