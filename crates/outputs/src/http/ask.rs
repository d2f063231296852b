//! The questions to a consumer about the requests that it has taken: which of them are confirmed.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::Instant;

use super::answer;
use super::api::{Confirm, RequestHead, Told};
use super::body::Pieces;
use super::client::Client;
use super::confirm::Settled;
use super::pool::{Lane, PooledConnection, exchange};
use client::ask;
use client::ask::NoAnswer;
use delivery::failure::Failure;
use telemetry::AttemptError;

/// The maximum number of requests in one question. The answer to such a question has about 64 KiB.
const ASKED_MAX: usize = 4096;

/// The maximum bytes of an answer to a question.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

impl Client {
    /// Returns the time of the next question on an idle connection of `lane`. `None` if there is
    /// nothing to ask.
    pub(super) fn asks_at(&self, lane: &Lane) -> Option<Instant> {
        let interval = self.api.confirm()?.interval;
        lane.first_asked().map(|asked| asked + interval)
    }

    /// Asks the consumer which requests are confirmed, on each connection of `lane` whose turn it
    /// is. Returns the confirmed requests. A connection without a clear answer is closed.
    pub(super) async fn ask(&self, lane: &mut Lane) -> Vec<Settled> {
        let (mut confirmed, Some(confirm)) = (Vec::new(), self.api.confirm()) else {
            return Vec::new();
        };
        let due = Instant::now().checked_sub(confirm.interval);
        for mut connection in due.map(|due| lane.take_asked_before(due)).unwrap_or_default() {
            match self.ask_one(&mut connection, confirm).await {
                Ok(numbers) => {
                    let attempt = self.endpoints.attempt(connection.key.address.clone());
                    confirmed.extend(connection.confirmations.confirmed(&numbers));
                    let why = format!(
                        "{}: the events were not confirmed within {} s: they are sent again, so \
                         some may arrive twice",
                        connection.key.base,
                        confirm.timeout.as_secs()
                    );
                    if connection.confirmations.doubt_older(&why, confirm.timeout) {
                        self.api.unconfirmed();
                        // The requests are counted as failed when they become doubts, so the
                        // address is only blamed here.
                        attempt.blamed(&Failure::new(AttemptError::Acknowledgement, why));
                    } else if !numbers.is_empty() {
                        attempt.succeeded();
                    }
                    lane.put_back(connection, self.endpoints.count());
                }
                Err(failure) => {
                    self.metrics.failed(failure.reason);
                    let why = format!(
                        "{failure}: it is unknown which events the consumer confirmed, so they are \
                         sent again, and some may arrive twice"
                    );
                    connection.confirmations.doubt_all(&why);
                    self.endpoints.attempt(connection.key.address.clone()).failed(&failure);
                }
            }
        }
        confirmed
    }

    /// Asks the consumer which requests of a connection are confirmed, and returns their numbers.
    /// An error status confirms nothing, and the consumer is asked again later.
    ///
    /// # Errors
    ///
    /// There was no clear answer, or the config no longer has the URL. The consumer may have
    /// confirmed requests in a lost or unclear answer.
    async fn ask_one(
        &self,
        connection: &mut PooledConnection,
        confirm: &Confirm,
    ) -> Result<Vec<u64>, Failure> {
        let base = connection.key.base.clone();
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        let address = connection.key.address.clone();
        let deadline = Instant::now() + self.endpoints.attempt(address).patience();
        let expanded = self.expanded.load_full();
        let place = connection.key.address.endpoint;
        let endpoint = expanded.as_ref().and_then(|expanded| {
            // A reload may have moved the URL in the list.
            let at_place = expanded.endpoints.get(place).into_iter();
            at_place.chain(&expanded.endpoints).find(|endpoint| endpoint.base == base)
        });
        let (Some(expanded), Some(endpoint)) = (&expanded, endpoint) else {
            return Err(failed(AttemptError::Protocol, "the config no longer has this URL"));
        };
        let head = RequestHead::post(confirm.path, confirm.content_type);
        let asked = connection.confirmations.ask(ASKED_MAX);
        let question = Pieces::of(vec![Bytes::from((confirm.question)(&asked))]);
        let answer = async {
            let broken = |error: NoAnswer| failed(answer::reason(&error), &ask::chain(&error));
            connection.sender.ready().await.map_err(|error| broken(error.into()))?;
            let request = self.request(connection, endpoint, &head, &expanded.headers, question)?;
            let response = exchange(&mut connection.sender, request).await;
            let response = response.map_err(broken)?;
            connection.take_up_cookies(response.headers(), &endpoint.target(&head.path));
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| {
                failed(AttemptError::Protocol, "the response about events was cut off")
            })?;
            Ok::<_, Failure>((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout_at(deadline, answer).await.map_err(|_| {
            let what = "no response to the query for confirmed events";
            failed(AttemptError::Timeout, what)
        })??;
        connection.busy = false;
        match (confirm.told)(status, &body) {
            Told::Confirmed(numbers) => Ok(numbers),
            Told::Nothing(reason) => {
                self.metrics.failed(reason);
                Ok(Vec::new())
            }
            Told::Unclear => {
                let what = "the response about events does not follow the protocol";
                Err(failed(AttemptError::Protocol, what))
            }
        }
    }
}
