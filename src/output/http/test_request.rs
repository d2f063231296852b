//! `check --connect`: requests without events, whose answers say if the consumer would take events.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::answer;
use super::answer::Answer;
use super::api::TestRequest;
use super::body::Pieces;
use super::client::Client;
use super::expanded::Expanded;
use super::url::HttpEndpoint;
use crate::ask::chain;
use crate::config::ClientTls;
use crate::delivery::endpoints::ResolvedAddress;
use crate::delivery::failure::Failure;
use crate::output::transport::tls_session::handshake;
use crate::telemetry::AttemptError;
use crate::tls;

/// The greatest number of bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The longest wait for the answer to the beginning of a TLS handshake. A server that does not
/// speak TLS may never answer, because it takes the handshake for half a request.
const TLS_ANSWER: Duration = Duration::from_secs(3);

impl Client {
    /// Tests whether an address would take events: connects, and sends the test requests of the
    /// protocol if it has any. Returns the failure otherwise, in words for the operator.
    pub(super) async fn test(&self, address: ResolvedAddress) -> Result<(), Failure> {
        self.api.ready().await?;
        let expanded = self.expanded.load_full();
        let found = expanded.as_ref().and_then(|expanded| {
            expanded.endpoints.get(address.endpoint).map(|endpoint| (expanded, endpoint))
        });
        let Some((expanded, endpoint)) = found else {
            let what = format!("{address}: the config no longer has this URL");
            return Err(Failure::new(AttemptError::Protocol, what));
        };
        let tests = self.api.test_requests();
        let has_tests = !tests.is_empty();
        let mut result = if has_tests { Ok(()) } else { self.reach(address.clone()).await };
        for test in tests {
            if result.is_ok() {
                result = self.test_with(test, &address, expanded, endpoint).await;
            }
        }
        // A server that has answered as the protocol does on a plain connection needs no TLS.
        let may_need_tls = match &result {
            Ok(()) => !has_tests,
            Err(failure) => {
                ![AttemptError::Resolve, AttemptError::Connect].contains(&failure.reason)
            }
        };
        if may_need_tls
            && !endpoint.base.https
            && self.speaks_tls(&address, expanded, endpoint).await
        {
            let what = "this port expects TLS, so the URL must begin with https://";
            let what = format!("{}: {what}", endpoint.base);
            return Err(Failure::new(AttemptError::Protocol, what));
        }
        result
    }

    /// Sends a test request to an address. Returns the failure unless the answer says that the
    /// consumer would take events.
    async fn test_with(
        &self,
        test: TestRequest,
        address: &ResolvedAddress,
        expanded: &Expanded,
        endpoint: &HttpEndpoint,
    ) -> Result<(), Failure> {
        let path = test.head.path.clone();
        let answer = self.ask_alone(test, address, expanded, endpoint, ANSWER_BYTES_MAX).await?;
        let reply = answer.reply(&endpoint.base, &path);
        self.api.tested(&reply).map_err(|what| {
            let what = format!("{}: answered {}: {what}", endpoint.base, reply.status);
            Failure::new(AttemptError::Status4xx, what)
        })
    }

    /// Sends a request without events to an address, on a connection of its own, and returns the
    /// answer. Its body is wanted if it has at most `bytes_max` bytes.
    pub(super) async fn ask_alone(
        &self,
        TestRequest { head, body }: TestRequest,
        address: &ResolvedAddress,
        expanded: &Expanded,
        endpoint: &HttpEndpoint,
        bytes_max: usize,
    ) -> Result<Answer, Failure> {
        let base = &endpoint.base;
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        let deadline = Instant::now() + self.timeouts.connect + self.timeouts.request;
        let mut connection = self.dial(base, address.clone(), expanded.proxy.as_ref()).await?;
        let body = Pieces::of(vec![Bytes::from_static(body)]);
        let request = self.request(&mut connection, endpoint, &head, &expanded.headers, body)?;
        let answer = async {
            let response = connection.sender.send_request(request).await;
            let response =
                response.map_err(|error| failed(answer::reason(&error), &chain(&error)))?;
            Ok(answer::read(response, bytes_max, deadline).await)
        };
        let late = |_| Err(failed(AttemptError::Timeout, "no answer to a test request"));
        tokio::time::timeout_at(deadline, answer).await.unwrap_or_else(late)
    }

    /// Returns `true` if an address, whose URL is `http://`, speaks TLS. Begins a handshake on a
    /// connection of its own, and believes any certificate, because nothing is sent afterwards.
    async fn speaks_tls(
        &self,
        address: &ResolvedAddress,
        expanded: &Expanded,
        endpoint: &HttpEndpoint,
    ) -> bool {
        let settings = ClientTls { insecure_skip_verify: true, ..ClientTls::default() };
        let Ok(client) = tls::Client::of_contents(&settings, &[b"http/1.1"], Vec::new()) else {
            return false;
        };
        let (base, proxy) = (&endpoint.base, expanded.proxy.as_ref());
        let deadline = Instant::now() + self.timeouts.connect;
        let Ok(stream) = self.open(base, address, proxy, deadline).await else { return false };
        let deadline = Instant::now() + TLS_ANSWER;
        handshake(&client, &base.at, stream, deadline).await.is_ok()
    }
}
