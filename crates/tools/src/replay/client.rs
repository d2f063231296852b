//! POSTs batches, and sends a failed one again for up to five minutes.
//!
//! An attempt is one request and lasts at most 30 s. The first pause between attempts is 1 s and
//! each further one is twice as long, with up to 20 % of jitter. If the response is 429 or 5xx with
//! a Retry-After in seconds, the pause is not shorter than that. No pause is longer than 30 s.
//!
//! The client makes no further attempt after two kinds of response. One is a response that will not
//! change: a redirect, or 4xx other than 408 and 429. The other is a success with a wrong number of
//! accepted events: the receiver is then not a relay. The client's own messages lack the path and
//! the query of its URL, because these may contain a token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use url::{Position, Url};

use base::words::counted;
use client::ask::{AskFault, Connection, Reply, Target};
use client::{ask, tls};

/// The time for which a batch is sent again, unless a log is followed.
pub const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The time limit of one attempt.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The pause before the second attempt.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The maximum random addition to a pause, as a share of the pause.
const JITTER: f64 = 0.2;

/// The maximum bytes that are read of a response body. A relay's body is much shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The time for which open requests may continue after a stop was requested.
const STOPPING: Duration = Duration::from_secs(5);

/// The reason why a batch was not accepted, as text.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The batch can't be accepted: the next attempt would fail in the same way.
    #[error("{0}")]
    Final(String),
    /// All attempts have failed. The text is the reason of the last one.
    #[error("given up after five minutes: {0}")]
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
    /// The time until the next attempt.
    pub pause: Duration,
}

/// Sends batches of events to one URL.
pub struct Client {
    target: Target,
    /// The URL's path and query, which may contain a token.
    path: String,
    /// The time for which a batch is sent again.
    patience: Duration,
    /// Cancelled when a stop is requested. Pauses then end immediately, and requests after
    /// [`STOPPING`].
    stop: CancellationToken,
    /// `true`: there was a connection for the newest batch.
    has_sent: AtomicBool,
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
    /// response asks for, or 0.
    Failed(String, Duration),
    /// Another request would fail in the same way. The text is the reason.
    Final(String),
}

impl Client {
    /// Makes a client for this URL. `tls` is for URLs that begin with `https://`. A batch is sent
    /// again for the time `patience`. When `stop` is cancelled, pauses end immediately, and open
    /// requests after five seconds.
    ///
    /// # Errors
    ///
    /// The URL, the token or `tls` can't be used. The text quotes neither URL nor token.
    pub fn new(
        url: &str,
        tls: Option<Arc<tls::Client>>,
        bearer_token: Option<&str>,
        patience: Duration,
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
        Ok(Self { target, path, patience, stop, has_sent: AtomicBool::new(false) })
    }

    /// Sends `body`, a batch of `events` events, until the receiver accepts it or refuses it
    /// permanently, all attempts have failed, or a stop is requested. `failed` is called before
    /// each pause between two attempts. `kept` is the open connection of an earlier request; after
    /// the call, it is the connection for the next request, if one can be used again.
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
        self.has_sent.store(false, Ordering::Relaxed);
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOPPING).await;
        };
        tokio::select! {
            posted = self.attempts(kept, body, events, failed) => posted,
            () = stopped => Err(Failure::Stopped),
        }
    }

    /// Returns `false` if the newest batch was not sent at all, because there was no connection.
    pub fn has_sent(&self) -> bool {
        self.has_sent.load(Ordering::Relaxed)
    }

    /// Makes attempts, with pauses between them, until the batch is accepted or permanently
    /// refused, or `patience` is over. A stop ends a pause with [`Failure::Stopped`].
    async fn attempts(
        &self,
        kept: &mut Option<Connection>,
        body: &Bytes,
        events: u64,
        failed: impl Fn(Failed),
    ) -> Result<(), Failure> {
        let (begun, mut own, mut attempt) = (Instant::now(), PAUSE, 1);
        loop {
            let deadline = Instant::now() + ATTEMPT;
            let exchange = self.exchange(kept, body, events, deadline);
            let outcome = timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
                let what = format!("{self}: no response within {} s", ATTEMPT.as_secs());
                Outcome::Failed(what, Duration::ZERO)
            });
            let (what, retry_after) = match outcome {
                Outcome::Accepted => return Ok(()),
                Outcome::Final(what) => return Err(Failure::Final(what)),
                Outcome::Failed(what, retry_after) => (what, retry_after),
            };
            let jittered = own.mul_f64(1.0 + JITTER * fastrand::f64());
            let pause = jittered.max(retry_after).min(PAUSE_MAX);
            if begun.elapsed() + pause > self.patience {
                return Err(Failure::GivenUp(what));
            }
            failed(Failed { what, attempt, pause });
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(Failure::Stopped);
            }
            own = (own * 2).min(PAUSE_MAX);
            attempt = attempt.saturating_add(1);
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
                    Err((fault, what)) => {
                        let what = format!("{self}: {what}{}", remedy(fault));
                        return Outcome::Failed(what, Duration::ZERO);
                    }
                },
            };
            self.has_sent.store(true, Ordering::Relaxed);
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
                    let hint = "; if the listener has TLS, --url begins with https://";
                    let hint = if self.target.is_https() { "" } else { hint };
                    let what = format!("{self}: {}{hint}", ask::chain(&error));
                    return Outcome::Failed(what, Duration::ZERO);
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
                    "{self}: accepted {} of {events}, so the receiver is not a relay",
                    counted(accepted, "event", "events")
                )),
            }
        } else if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            Outcome::Failed(told(), retry_after.unwrap_or_default())
        } else if status == StatusCode::REQUEST_TIMEOUT {
            Outcome::Failed(told(), Duration::ZERO)
        } else {
            Outcome::Final(format!("{}{}", told(), remedy(AskFault::Status(status.as_u16()))))
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

/// Returns the end of an error message: the command-line option to check after this fault, if there
/// is one.
fn remedy(fault: AskFault) -> &'static str {
    match fault {
        AskFault::Status(401 | 403) => "; see --bearer-token-file",
        AskFault::Status(404 | 405) => {
            "; see the path of --url, which is that of a listener, and not of the admin address"
        }
        AskFault::Status(413) => "; see the relay's limits.max_body",
        AskFault::NoAddress | AskFault::NoConnection => {
            "; check that --url is the address of a listener"
        }
        AskFault::Issuer => "; name a file with the CA with --ca",
        AskFault::Status(_)
        | AskFault::Name
        | AskFault::Time
        | AskFault::NoTls
        | AskFault::Other => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_does_not_listen_is_given_up_after_five_minutes() {
        // The port is taken, and nothing listens on it, so no attempt reaches anybody.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}/", socket.local_addr().unwrap());
        let client = Client::new(&url, None, None, PATIENCE, CancellationToken::new()).unwrap();
        let (begun, failures) = (Instant::now(), Mutex::new(Vec::new()));
        let failed = |failed: Failed| failures.lock().unwrap().push(failed);
        let posted = client.post(&mut None, &Bytes::new(), 0, failed).await;
        assert!(matches!(posted, Err(Failure::GivenUp(_))), "{posted:?}");
        let took = begun.elapsed();
        assert!((PATIENCE - PAUSE_MAX..=PATIENCE + ATTEMPT).contains(&took), "{took:?}");
        let failures = failures.into_inner().unwrap();
        for (index, (failed, least)) in failures.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0]).enumerate()
        {
            assert_eq!(failed.attempt as usize, index + 1);
            let pause = failed.pause.as_secs_f64();
            assert!((least..=least * 1.2).contains(&pause), "{failures:?}");
        }
        assert!(failures[5..].iter().all(|failed| failed.pause == PAUSE_MAX), "{failures:?}");
    }

    #[test]
    fn only_whole_seconds_are_a_retry_after() {
        for (value, wanted) in [("3", Some(3)), ("0", Some(0)), ("1.5", None), ("-1", None)] {
            let seconds = seconds(&HeaderValue::from_str(value).unwrap());
            assert_eq!(seconds, wanted.map(Duration::from_secs), "{value}");
        }
    }
}
