//! POSTs batches and retries them in the way of kube-apiserver's webhook.
//!
//! A batch gets up to five attempts. The first pause between attempts is 10 s and each further one
//! is 1.5 times as long, with up to 20 % of jitter. An attempt lasts at most 30 s. Within an
//! attempt, up to ten more requests follow if the response is 429 or 5xx with a Retry-After in
//! seconds. Two things differ from kube-apiserver. A response that cannot change (a redirect, or
//! 4xx other than 408 and 429) ends the batch at once. A success response that names another number
//! of accepted events also ends it, because it is not a relay's. The client never writes the path
//! or the query of its URL into a message, because these may contain a token.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use url::{Position, Url};

use client::ask::{Connection, Reply, Target};
use client::{ask, tls};

/// The time limit of one attempt to send a batch. Within one attempt, the batch may be sent again
/// after a response with a Retry-After header. The limit holds for all requests and pauses of the
/// attempt together.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The greatest number of further requests in one attempt, after the first one. A further request
/// follows only a response with a Retry-After header.
const AGAIN_MAX: u32 = 10;

/// The factor between a pause and the next one: a pause of 10 s is followed by a pause of 15 s.
const MULTIPLIER: f64 = 1.5;
/// The greatest random addition to a pause, as a share of the pause. With 0.2, a pause of 10 s
/// becomes a pause of 10 s to 12 s.
const JITTER: f64 = 0.2;

/// The greatest number of bytes of a response body that are read. The response of a relay is much
/// shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The time for which requests under way may continue after a stop was requested.
const STOPPING: Duration = Duration::from_secs(5);

/// The greatest number of attempts to send a batch, and the length of the pauses between them.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// The greatest number of attempts, including the first.
    pub attempts: u32,
    /// The pause before the second attempt. Each later pause is 1.5 times as long as the one
    /// before.
    pub pause: Duration,
    /// The longest pause, without its random part.
    pub pause_max: Duration,
}

impl Retry {
    /// The retries of a log that is followed: without an end, with pauses of 30 s at most.
    pub fn unlimited(pause: Duration) -> Self {
        Self { attempts: u32::MAX, pause, pause_max: Duration::from_secs(25) }
    }
}

impl Default for Retry {
    /// Returns the values that kube-apiserver's webhook uses.
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(10), pause_max: Duration::MAX }
    }
}

/// The reason why a batch was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The batch cannot be accepted: the next attempt would fail in the same way. The text is the
    /// reason.
    #[error("{0}")]
    Final(String),
    /// All attempts have failed. The text is the reason why the last attempt failed.
    #[error("given up after the last attempt: {0}")]
    GivenUp(String),
    /// A stop was requested before the batch was accepted.
    #[error("interrupted")]
    Stopped,
}

/// A report about a request that has failed, after which the batch is sent again.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The reason for the failure, as text.
    pub what: String,
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
    /// The greatest number of attempts for the batch; `u32::MAX`: there is no limit.
    pub attempts: u32,
    /// The time until the next request.
    pub pause: Duration,
}

/// Sends batches of events to one URL.
pub struct Client {
    target: Target,
    /// The path of the URL with its query, which may contain a token.
    path: String,
    retry: Retry,
    /// A token that is cancelled when a stop is requested. Pauses then end at once, and requests
    /// end after [`STOPPING`].
    stop: CancellationToken,
}

/// The body of a relay's response to a request that the relay has accepted, with the number of
/// events.
#[derive(Deserialize)]
struct Accepted {
    accepted: u64,
}

/// The result of one request.
enum Outcome {
    /// The receiver has accepted all events of the request.
    Accepted,
    /// The request has failed, but the next request may succeed. The text is the reason; the
    /// duration is the pause that the response asks for, or `None` if the response names no pause.
    Failed(String, Option<Duration>),
    /// The request has failed, and the next request would fail in the same way. The text is the
    /// reason.
    Final(String),
}

impl Client {
    /// Makes a client for this URL. `tls` is used if the URL begins with `https://`. When `stop` is
    /// cancelled, pauses end at once, and requests under way end after five seconds.
    ///
    /// # Errors
    ///
    /// A text that says why the URL or the token cannot be used, and that quotes neither of them.
    pub fn new(
        url: &str,
        tls: Option<Arc<tls::Client>>,
        bearer_token: Option<&str>,
        retry: Retry,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("the URL cannot be read: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            let what = "the URL holds credentials, which are not sent: use --bearer-token-file";
            return Err(what.to_owned());
        }
        let mut target = Target::of(&url).map_err(|what| format!("the URL {what}"))?;
        if let Some(tls) = tls {
            target = target.with_credentials(tls, Vec::new(), None)?;
        }
        if let Some(token) = bearer_token {
            target = target.with_token(token)?;
        }
        let path = url[Position::BeforePath..Position::AfterQuery].to_owned();
        Ok(Self { target, path, retry, stop })
    }

    /// Sends `body`, a batch of `events` events, until the receiver accepts it or refuses it
    /// finally, all attempts have failed, or a stop is requested. `failed` is called before each
    /// pause between two attempts. Within one attempt, it is called before the first pause that a
    /// response asks for with Retry-After, but not before the later ones. Before the call, `kept`
    /// is the open connection of an earlier request, or `None`. After the call, `kept` is the open
    /// connection for the next request; `None` if no connection can be used again.
    ///
    /// # Errors
    ///
    /// [`Failure`] says why the batch was not accepted.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the batch may or may not have been accepted.
    pub async fn post(
        &self,
        kept: &mut Option<Connection>,
        body: &Bytes,
        events: u64,
        failed: impl Fn(Failed),
    ) -> Result<(), Failure> {
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOPPING).await;
        };
        tokio::select! {
            posted = self.attempts(kept, body, events, failed) => posted,
            () = stopped => Err(Failure::Stopped),
        }
    }

    /// Makes attempts to send the batch, with pauses between them, until the batch is accepted or
    /// refused for good, or no attempt is left. If a stop is requested during a pause, the function
    /// ends at once with [`Failure::Stopped`].
    async fn attempts(
        &self,
        kept: &mut Option<Connection>,
        body: &Bytes,
        events: u64,
        failed: impl Fn(Failed),
    ) -> Result<(), Failure> {
        let Retry { attempts, pause, pause_max } = self.retry;
        let (mut pause, mut attempt) = (pause.min(pause_max), 1);
        loop {
            let told = |what: &str, pause| {
                failed(Failed { what: what.to_owned(), attempt, attempts, pause });
            };
            let what = match self.attempt(kept, body, events, told).await {
                Outcome::Accepted => return Ok(()),
                Outcome::Final(what) => return Err(Failure::Final(what)),
                Outcome::Failed(what, _) => what,
            };
            if attempt >= attempts {
                return Err(Failure::GivenUp(what));
            }
            let jittered = pause.mul_f64(1.0 + JITTER * fastrand::f64());
            failed(Failed { what, attempt, attempts, pause: jittered });
            if self.stop.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
                return Err(Failure::Stopped);
            }
            pause = pause.mul_f64(MULTIPLIER).min(pause_max);
            attempt = attempt.saturating_add(1);
        }
    }

    /// Makes one attempt to send the batch, and returns the result of its last request. After a
    /// response with a Retry-After header, the attempt may pause and send the batch again. Before
    /// the first of these pauses, but not before the others, `told` is called with the reason and
    /// the length of the pause.
    async fn attempt(
        &self,
        kept: &mut Option<Connection>,
        body: &Bytes,
        events: u64,
        told: impl Fn(&str, Duration),
    ) -> Outcome {
        let deadline = Instant::now() + ATTEMPT;
        let mut again = 0;
        loop {
            let exchange = self.exchange(kept, body, events, deadline);
            let outcome = timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
                Outcome::Failed(format!("{self}: no answer within {} s", ATTEMPT.as_secs()), None)
            });
            let Outcome::Failed(what, Some(after)) = &outcome else { return outcome };
            let after = *after;
            if again == 0 {
                told(&format!("{what} and said when to try again"), after);
            }
            let due = Instant::now() + after;
            let wait = tokio::time::sleep_until(due.min(deadline));
            let is_last = again >= AGAIN_MAX || due >= deadline;
            // If the attempt's time is over, the result is the last response and not the timeout.
            if again < AGAIN_MAX && self.stop.run_until_cancelled(wait).await.is_none() || is_last {
                return outcome;
            }
            again += 1;
        }
    }

    /// Sends one request and returns its result. The request uses the connection in `kept` if it is
    /// still open, or a new one.
    async fn exchange(
        &self,
        kept: &mut Option<Connection>,
        body: &Bytes,
        events: u64,
        deadline: Instant,
    ) -> Outcome {
        loop {
            let reused = match kept {
                Some(connection) => connection.is_open().await,
                None => false,
            };
            let connection = match kept.take().filter(|_| reused) {
                Some(connection) => connection,
                None => match self.target.connect(deadline).await {
                    Ok(connection) => connection,
                    Err((_, what)) => return Outcome::Failed(format!("{self}: {what}"), None),
                },
            };
            let body = Some((ask::JSON, body.clone()));
            let request = match self.target.request(Method::POST, &self.path, body) {
                Ok(request) => request,
                Err(error) => return Outcome::Final(format!("{self}: {error}")),
            };
            let mut reply = match connection.send(request).await {
                Ok(reply) => reply,
                // The peer closed the kept connection while the request was being written and has
                // not responded, so the request is sent again on a new connection.
                Err(_) if reused => continue,
                Err(error) => {
                    return Outcome::Failed(format!("{self}: {}", ask::chain(&error)), None);
                }
            };
            let (outcome, is_whole) = self.judge(&mut reply, events).await;
            *kept = is_whole.then(|| reply.into_connection());
            return outcome;
        }
    }

    /// Returns what a response means for the batch. The `bool` is `true` if the response was read
    /// to its end; otherwise the connection cannot be used again.
    async fn judge(&self, reply: &mut Reply, events: u64) -> (Outcome, bool) {
        let status = reply.status;
        let retry_after = reply.headers.get(header::RETRY_AFTER).and_then(seconds);
        let (text, is_whole) = reply.read(ANSWER_BYTES_MAX).await.unwrap_or_default();
        let told = || format!("{self}: answered {status}{}", ask::shown(&text));
        let outcome = if status.is_success() {
            match serde_json::from_slice::<Accepted>(&text) {
                // The receiver is not a relay but another consumer of EventLists, whose only sign
                // of success is the status.
                Err(_) => Outcome::Accepted,
                Ok(Accepted { accepted }) if accepted == events => Outcome::Accepted,
                Ok(Accepted { accepted }) => Outcome::Final(format!(
                    "{self}: accepted {accepted} events of {events}, so the receiver is not a relay"
                )),
            }
        } else if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            Outcome::Failed(told(), retry_after)
        } else if status == StatusCode::REQUEST_TIMEOUT {
            Outcome::Failed(told(), None)
        } else {
            Outcome::Final(format!("{}{}", told(), remedy(status)))
        };
        (outcome, is_whole)
    }
}

/// Writes the URL without its path and query, which may contain a token.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target.origin())
    }
}

/// Returns the pause that a Retry-After header asks for. The header must be a whole number of
/// seconds; for any other value, such as a date, the result is `None`, as in Kubernetes' client-go.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Returns the last part of an error message about a response with this HTTP status. This part
/// names the option of the command line that is the likely cause; empty if no option is.
fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; see --bearer-token-file",
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "; see the path of --url",
        StatusCode::PAYLOAD_TOO_LARGE => "; see --batch-bytes, and the relay's limits.max_body",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_is_away_gets_five_attempts_at_kube_apiservers_pauses() {
        // The port is taken, and nothing listens on it, so no attempt reaches anybody.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}/", socket.local_addr().unwrap());
        let (retry, stop) = (Retry::default(), CancellationToken::new());
        let client = Client::new(&url, None, None, retry, stop).unwrap();
        let failures = Mutex::new(Vec::new());
        let failed = |failed: Failed| failures.lock().unwrap().push(failed);
        let posted = client.post(&mut None, &Bytes::new(), 0, failed).await;
        assert!(matches!(posted, Err(Failure::GivenUp(_))), "{posted:?}");
        let failures = failures.into_inner().unwrap();
        assert_eq!(failures.iter().map(|it| it.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for (failed, least) in failures.iter().zip([10.0, 15.0, 22.5, 33.75]) {
            let pause = failed.pause.as_secs_f64();
            assert!((least..=least * 1.2).contains(&pause), "{failures:?}");
        }
    }

    #[test]
    fn only_whole_seconds_are_a_retry_after() {
        for (value, wanted) in [("3", Some(3)), ("0", Some(0)), ("1.5", None), ("-1", None)] {
            let seconds = seconds(&HeaderValue::from_str(value).unwrap());
            assert_eq!(seconds, wanted.map(Duration::from_secs), "{value}");
        }
    }
}
