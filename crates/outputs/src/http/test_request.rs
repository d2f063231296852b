//! `check --connect`: requests without events, whose answers show whether the consumer would accept
//! events.

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::time::Instant;

use super::answer;
use super::answer::Answer;
use super::api::{Outcome, RequestHead, TestRequest};
use super::body::Pieces;
use super::client::Client;
use super::expanded::Expanded;
use super::pool::exchange;
use super::request::{cannot_read, compressed, content_encoding};
use super::url::HttpEndpoint;
use crate::transport::tls_session::handshake;
use client::ask::chain;
use client::tls;
use config::ClientTls;
use delivery::endpoints::ResolvedAddress;
use delivery::failure::Failure;
use telemetry::AttemptError;

/// The maximum bytes of an answer to a test request. A longer answer is not parsed.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The maximum bytes of an answer to [`Api::excuse`], which may list all settings of a cluster. A
/// longer answer is not parsed.
///
/// [`Api::excuse`]: super::api::Api::excuse
const EXCUSE_BYTES_MAX: usize = 4 << 20;

/// The longest time for a TLS handshake that only tests whether a server speaks TLS. A server
/// without TLS may never answer, because it takes the handshake for an incomplete request.
const TLS_ANSWER: Duration = Duration::from_secs(3);

impl Client {
    /// Tests whether an address would accept events: connects, and sends the test requests of the
    /// protocol. The failure is worded for the operator. `Some` if the answer shows nothing: the
    /// text says why.
    async fn test(&self, address: ResolvedAddress) -> Result<Option<String>, Failure> {
        self.api.ready().await?;
        let expanded = self.expanded.load_full();
        let endpoint = expanded.as_ref().and_then(|it| it.endpoints.get(address.endpoint));
        let (Some(expanded), Some(endpoint)) = (&expanded, endpoint) else {
            let what = format!("{address}: the config no longer has this URL");
            return Err(Failure::new(AttemptError::Protocol, what));
        };
        let mut result = Ok(None);
        for test in self.api.test_requests() {
            if matches!(result, Ok(None)) {
                result = self.test_with(test, &address, expanded, endpoint).await;
            }
        }
        // A server that has answered in the protocol on a plain connection does not need TLS.
        let may_need_tls = match &result {
            Ok(unclear) => unclear.is_some(),
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

    /// Sends a test request to an address. Fails without an answer, and if the answer shows the
    /// protocol that the consumer would probably not accept events. `Some` if it shows nothing.
    pub(super) async fn test_with(
        &self,
        test: TestRequest,
        address: &ResolvedAddress,
        expanded: &Expanded,
        endpoint: &HttpEndpoint,
    ) -> Result<Option<String>, Failure> {
        let path = match test.head.path.is_empty() && endpoint.target("") == "/" {
            true => "/".to_owned(),
            false => test.head.path.clone(),
        };
        let to = (address, expanded, endpoint);
        let is_of_delivery = test.head.method == Method::POST && test.head.path == self.api.path();
        let answer = match content_encoding(self.config.compression) {
            Some(coding) if is_of_delivery => self.ask_compressed(test, coding, to).await?,
            Some(_) | None => {
                let body = Pieces::of(vec![Bytes::from_static(test.body)]);
                self.ask_alone(test.head, body, to, ANSWER_BYTES_MAX).await?
            }
        };
        let reply = answer.reply(&endpoint.base, &path);
        if self.api.may_refuse_tests(&reply) {
            let status = reply.status;
            return Ok(Some(format!(
                "not tested: it answered {status} to a request without events"
            )));
        }
        self.api.tested(&reply).map(|()| None).map_err(|what| {
            let message = format!("{}: answered {}: {what}", endpoint.base, reply.status);
            match reply.by_status {
                Outcome::Refused(failure) | Outcome::Failed(failure) => {
                    Failure { message, ..failure }
                }
                Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) => {
                    Failure::new(AttemptError::Protocol, message)
                }
            }
        })
    }

    /// Sends a request without events, compressed as those with events are. If it is refused, sends
    /// it without compression, too: another status then shows that the consumer can't read it.
    async fn ask_compressed(
        &self,
        TestRequest { head, body }: TestRequest,
        coding: &str,
        to: (&ResolvedAddress, &Expanded, &HttpEndpoint),
    ) -> Result<Answer, Failure> {
        let (plain, compression) =
            (Pieces::of(vec![Bytes::from_static(body)]), self.config.compression);
        let packed = compressed(plain.clone(), compression).await?;
        let packed_head = RequestHead { compression, ..head.clone() };
        let answer = self.ask_alone(packed_head, packed, to, ANSWER_BYTES_MAX).await?;
        if !cannot_read(answer.status) {
            return Ok(answer);
        }
        let plain = self.ask_alone(head, plain, to, ANSWER_BYTES_MAX).await?;
        if plain.status == answer.status {
            return Ok(answer);
        }
        let what = format!(
            "{}: answered {} to a body with Content-Encoding: {coding}, and {} without: set \
             compression = \"none\"",
            to.2.base, answer.status, plain.status
        );
        Err(Failure::new(AttemptError::Status4xx, what))
    }

    /// Sends a request without events to an address, on a connection of its own. [`Answer::body`]
    /// is `None` if the body has more than `bytes_max` bytes.
    pub(super) async fn ask_alone(
        &self,
        head: RequestHead,
        body: Pieces,
        (address, expanded, endpoint): (&ResolvedAddress, &Expanded, &HttpEndpoint),
        bytes_max: usize,
    ) -> Result<Answer, Failure> {
        let base = &endpoint.base;
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        let deadline = Instant::now() + self.timeouts.connect + self.timeouts.request;
        let mut connection = self.dial(base, address.clone(), expanded.proxy.as_ref()).await?;
        let request = self.request(&mut connection, endpoint, &head, &expanded.headers, body)?;
        let answer = async {
            let response = exchange(&mut connection.sender, request).await;
            let response =
                response.map_err(|error| failed(answer::reason(&error), &chain(&error)))?;
            Ok(answer::read(response, bytes_max, deadline).await)
        };
        let late = |_| Err(failed(AttemptError::Timeout, "no answer to a test request"));
        tokio::time::timeout_at(deadline, answer).await.unwrap_or_else(late)
    }

    /// Returns `true` if an address with an `http://` URL speaks TLS. Begins a handshake on a
    /// connection of its own. Any certificate is accepted, because nothing is sent afterwards.
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
        let mut deadline = Instant::now() + self.timeouts.connect;
        let opened = self.open(base, address, proxy, &mut deadline).await;
        let Ok(stream) = opened else { return false };
        let deadline = Instant::now() + TLS_ANSWER;
        handshake(&client, &base.at, stream, deadline).await.is_ok()
    }

    /// Like [`Client::test`], but does not fail if the first event will remove the cause: an index
    /// that is missing, for example, may be created by it.
    pub(super) async fn test_or_excuse(
        &self,
        address: ResolvedAddress,
    ) -> Result<Option<String>, Failure> {
        let tested = self.test(address.clone()).await;
        let is_refused =
            tested.as_ref().is_err_and(|failure| failure.reason == AttemptError::Status4xx);
        if is_refused
            && let Some(excuse) = self.api.excuse()
            && let Some(answer) = self.answer_to(excuse, &address).await
            && self.api.excuses(&answer)
        {
            return Ok(None);
        }
        tested
    }

    /// Sends a request on a connection of its own. Returns the body of an answer with the status
    /// 200; `None` for any other answer.
    async fn answer_to(&self, excuse: TestRequest, address: &ResolvedAddress) -> Option<Vec<u8>> {
        let expanded = self.expanded.load_full()?;
        let endpoint = expanded.endpoints.get(address.endpoint)?;
        let TestRequest { head, body } = excuse;
        let (body, to) =
            (Pieces::of(vec![Bytes::from_static(body)]), (address, &*expanded, endpoint));
        let answer = self.ask_alone(head, body, to, EXCUSE_BYTES_MAX).await;
        answer.ok().filter(|answer| answer.status == StatusCode::OK)?.body
    }
}
