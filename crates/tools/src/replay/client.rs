//! POSTs batches and retries them like kube-apiserver's webhook.
//!
//! By default, a batch gets up to five attempts. The first pause between attempts is 10 s and each
//! further one is 1.5 times as long, with up to 20 % of jitter. An attempt lasts at most 30 s.
//! Within an attempt, up to ten more requests follow if the response is 429 or 5xx with a
//! Retry-After in seconds.
//!
//! Unlike kube-apiserver, the client makes no further attempt after two kinds of response. One is a
//! response that will not change: a redirect, or 4xx other than 408 and 429. The other is a success
//! with a wrong number of accepted events: the receiver is then not a relay. The client's own
//! messages lack the path and the query of its URL, because these may contain a token.

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

/// The time limit of one attempt, with all its requests and pauses.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The maximum number of further requests in one attempt, each after a response with Retry-After.
const AGAIN_MAX: u32 = 10;

/// The factor between a pause and the next one.
const MULTIPLIER: f64 = 1.5;
/// The maximum random addition to a pause, as a share of the pause.
const JITTER: f64 = 0.2;

/// The maximum bytes that are read of a response body. A relay's body is much shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The time for which open requests may continue after a stop was requested.
const STOPPING: Duration = Duration::from_secs(5);

/// The number of attempts to send a batch, and the pauses between them.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// The maximum number of attempts, including the first.
    pub attempts: u32,
    /// The pause before the second attempt. Each later pause is 1.5 times as long as the one
    /// before, up to `pause_max`.
    pub pause: Duration,
    /// The longest pause, without its random part.
    pub pause_max: Duration,
}

impl Retry {
    /// The retries of a log that is followed: unlimited, with pauses of at most 30 s.
    pub fn unlimited(pause: Duration) -> Self {
        Self { attempts: u32::MAX, pause, pause_max: Duration::from_secs(25) }
    }
}

impl Default for Retry {
    /// The values of kube-apiserver's webhook.
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(10), pause_max: Duration::MAX }
    }
}

/// The reason why a batch was not accepted, as text.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The batch can't be accepted: the next attempt would fail in the same way.
    #[error("{0}")]
    Final(String),
    /// All attempts have failed. The text is the reason of the last one.
    #[error("given up after the last attempt: {0}")]
    GivenUp(String),
    /// A stop was requested before the client knew whether the batch was accepted.
    #[error("interrupted")]
    Stopped,
}

/// A failed request, after which the batch is sent again.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The reason for the failure.
    pub what: String,
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
    /// The maximum number of attempts. `u32::MAX`: no limit.
    pub attempts: u32,
    /// The time until the next request, if the attempt does not end before it.
    pub pause: Duration,
}

/// Sends batches of events to one URL.
pub struct Client {
    target: Target,
    /// The URL's path and query, which may contain a token.
    path: String,
    retry: Retry,
    /// Cancelled when a stop is requested. Pauses then end immediately, and requests after
    /// [`STOPPING`].
    stop: CancellationToken,
}

/// The body of a relay's response to a request that it has accepted.
#[derive(Deserialize)]
struct Accepted {
    accepted: u64,
}

enum Outcome {
    /// The receiver has accepted all events of the request.
    Accepted,
    /// Another request may succeed. The text is the reason; the duration is the pause that the
    /// response asks for.
    Failed(String, Option<Duration>),
    /// Another request would fail in the same way. The text is the reason.
    Final(String),
}

impl Client {
    /// Makes a client for this URL. `tls` is for URLs that begin with `https://`. When `stop` is
    /// cancelled, pauses end immediately, and open requests after five seconds.
    ///
    /// # Errors
    ///
    /// The URL, the token or `tls` can't be used. The text quotes neither URL nor token.
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
    /// permanently, all attempts have failed, or a stop is requested. `failed` is called before
    /// each pause between two attempts, and within an attempt only before its first pause. `kept`
    /// is the open connection of an earlier request; after the call, it is the connection for the
    /// next request, if one can be used again.
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

    /// Makes attempts, with pauses between them, until the batch is accepted or permanently
    /// refused, or no attempt is left. A stop ends a pause between two attempts with
    /// [`Failure::Stopped`].
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

    /// Makes one attempt, and returns the result of its last request. Calls `told` before the first
    /// of its pauses, with the reason and the length of the pause.
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
                Outcome::Failed(format!("{self}: no response within {} s", ATTEMPT.as_secs()), None)
            });
            let Outcome::Failed(what, Some(after)) = &outcome else { return outcome };
            let after = *after;
            if again == 0 {
                told(&format!("{what} and said when to try again"), after);
            }
            let due = Instant::now() + after;
            let wait = tokio::time::sleep_until(due.min(deadline));
            let is_last = again >= AGAIN_MAX || due >= deadline;
            // If the time of the attempt is over, the result is the last response and not the
            // timeout.
            if again < AGAIN_MAX && self.stop.run_until_cancelled(wait).await.is_none() || is_last {
                return outcome;
            }
            again += 1;
        }
    }

    /// Sends one request on the connection in `kept`, if it is still open, or on a new one.
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
                // The reused connection has failed without a response. The peer may have closed
                // it. The request is sent again, on a new connection.
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

    /// Returns the result of a response. The `bool` is `true` if the response was read to its end;
    /// otherwise the connection can't be used again.
    async fn judge(&self, reply: &mut Reply, events: u64) -> (Outcome, bool) {
        let status = reply.status;
        let retry_after = reply.headers.get(header::RETRY_AFTER).and_then(seconds);
        let (text, is_whole) = reply.read(ANSWER_BYTES_MAX).await.unwrap_or_default();
        let told = || format!("{self}: answered {status}{}", ask::shown(&text));
        let outcome = if status.is_success() {
            match serde_json::from_slice::<Accepted>(&text) {
                // The receiver may be another consumer of EventLists, whose only sign of success is
                // the status.
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

/// Returns the pause of a Retry-After header. `None` if the header has another form than a whole
/// number of seconds, such as a date. Kubernetes' client-go ignores other forms too.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Returns the end of an error message: the command-line option to check after a response with this
/// status, if there is one.
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
