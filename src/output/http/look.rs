//! `check --connect`: looks at how the consumer would store events.

use hyper::StatusCode;

use super::api::TestRequest;
use super::client::Client;
use crate::delivery::endpoints::ResolvedAddress;
use crate::delivery::failure::Failure;
use crate::telemetry::AttemptError;

/// The greatest number of bytes of an answer that are read. The mapping of an index with 1,000
/// fields, which is the most by default, has about 100 KB.
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
    /// this client, is not a failure.
    ///
    /// # Errors
    ///
    /// The consumer would refuse events.
    ///
    /// [`Api::looks`]: super::api::Api::looks
    async fn look(&self, address: &ResolvedAddress) -> Result<(), Failure> {
        for look in self.api.looks() {
            let looked = self.answer_to(look, address).await;
            let looked = looked.and_then(|answer| self.api.looked(&answer));
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
    async fn answer_to(&self, look: TestRequest, address: &ResolvedAddress) -> Option<Vec<u8>> {
        let expanded = self.expanded.load_full()?;
        let endpoint = expanded.endpoints.get(address.endpoint)?;
        let answer = self.ask_alone(look, address, &expanded, endpoint, ANSWER_BYTES_MAX).await;
        answer.ok().filter(|answer| answer.status == StatusCode::OK)?.body
    }
}
