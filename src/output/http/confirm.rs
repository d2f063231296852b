//! Requests that the consumer has taken, and whose events it confirms later.
//!
//! Such a request belongs to the connection on which it was sent, because a consumer may have
//! several servers behind one address, and only the server that took the request can confirm it.
//! The connection is asked at intervals which of its requests are confirmed. If the connection ends
//! before that, nobody can say what became of its requests, and their events are sent again: an
//! event may then arrive twice, but none is lost.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::Limited;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::Confirm;
use super::api::Outcome;
use super::api::Told;
use super::body::Pieces;
use super::client::Client;
use super::pool::Lane;
use super::pool::PooledConnection;
use super::request::Shape;
use super::request::request;
use crate::config::Compression;
use crate::delivery::failure::Failure;
use crate::queue::Claim;
use crate::telemetry::AttemptError;

/// The most requests of an output that the consumer has taken and not confirmed. At this number, no
/// other request begins.
pub(super) const UNCONFIRMED_MAX: usize = 1024;

/// The most requests about which a consumer is asked at once. The answer then has about 64 KiB.
const ASKED_MAX: usize = 4096;

/// The most bytes of an answer that says which requests are confirmed.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The name of a connection: a random UUID (RFC 9562 §5.4), which no other connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::output) struct ConnectionId(u128);

impl ConnectionId {
    pub(super) fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

/// Shows the name as `xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx`, with lower-case hexadecimal digits.
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |shift: u32, bits: u32| (self.0 >> shift) & ((1 << bits) - 1);
        let (version, variant) = (0x4000 | field(64, 12), 0x8000 | field(48, 14));
        let (first, second, last) = (field(96, 32), field(80, 16), field(0, 48));
        write!(f, "{first:08x}-{second:04x}-{version:04x}-{variant:04x}-{last:012x}")
    }
}

/// A request that the consumer has taken and not confirmed yet.
struct Unconfirmed {
    claim: Claim,
    /// What the link reports of the claim when the consumer confirms the request.
    outcome: Outcome,
    /// The number by which the consumer knows the request.
    number: u64,
    /// When the consumer took the request.
    since: Instant,
}

/// The requests of one connection that the consumer has taken and not confirmed yet. When the
/// connection ends, and this value is dropped, they become doubts.
pub(super) struct Confirmations {
    requests: Vec<Unconfirmed>,
    /// When the consumer was asked last, or when the first of the requests was taken.
    asked: Instant,
    /// The id of the address to which the connection leads.
    consumer: usize,
    doubts: Arc<Doubts>,
}

impl Confirmations {
    pub(super) fn new(consumer: usize, doubts: &Arc<Doubts>) -> Self {
        let doubts = Arc::clone(doubts);
        Self { requests: Vec::new(), asked: Instant::now(), consumer, doubts }
    }

    /// Returns `true` if no request of the connection waits for a confirmation.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns when the consumer was asked last; `None` if there is nothing to ask.
    pub(super) fn asked(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.asked)
    }

    /// Adds a request that the consumer has taken.
    pub(super) fn add(&mut self, claim: Claim, outcome: Outcome, number: u64) {
        let since = Instant::now();
        if self.is_empty() {
            self.asked = since;
        }
        self.doubts.open.fetch_add(1, Ordering::Relaxed);
        self.requests.push(Unconfirmed { claim, outcome, number, since });
    }

    /// Removes the requests with these numbers, which the consumer has confirmed, and returns them.
    fn confirmed(&mut self, numbers: &[u64]) -> Vec<Confirmed> {
        let is_confirmed = |request: &mut Unconfirmed| numbers.contains(&request.number);
        let confirmed = self.requests.extract_if(.., is_confirmed);
        let of = |request: Unconfirmed| Confirmed {
            consumer: self.consumer,
            claim: request.claim,
            outcome: request.outcome,
        };
        let confirmed: Vec<_> = confirmed.map(of).collect();
        self.doubts.open.fetch_sub(confirmed.len(), Ordering::Relaxed);
        confirmed
    }

    /// Makes doubts of the requests that `is_doubtful` chooses. `why` is the reason, for messages.
    fn doubt(&mut self, why: &str, is_doubtful: impl Fn(&Unconfirmed) -> bool) {
        let doubtful = self.requests.extract_if(.., |request| is_doubtful(request));
        let failure = Failure::new(AttemptError::Acknowledgement, why);
        let of = |request: Unconfirmed| Doubt {
            consumer: self.consumer,
            claim: request.claim,
            failure: failure.clone(),
        };
        self.doubts.add(doubtful.map(of).collect());
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        let why = "the connection ended before the consumer confirmed the events: they are sent \
                   again, so that some may arrive twice";
        self.doubt(why, |_| true);
    }
}

/// A request that the consumer has confirmed.
pub(super) struct Confirmed {
    /// The id of the address that has confirmed it.
    pub(super) consumer: usize,
    pub(super) claim: Claim,
    pub(super) outcome: Outcome,
}

/// A request of which nobody can say any more what became of it.
pub(super) struct Doubt {
    /// The id of the address to which the request was sent.
    pub(super) consumer: usize,
    pub(super) claim: Claim,
    pub(super) failure: Failure,
}

/// The requests of one output whose confirmation can't come any more, and the number of those that
/// wait for one.
#[derive(Default)]
pub(super) struct Doubts {
    doubts: Mutex<VecDeque<Doubt>>,
    /// Notified when a doubt is added.
    pub(super) added: Notify,
    /// The number of requests that wait for a confirmation.
    open: AtomicUsize,
}

impl Doubts {
    fn add(&self, doubts: Vec<Doubt>) {
        if doubts.is_empty() {
            return;
        }
        self.open.fetch_sub(doubts.len(), Ordering::Relaxed);
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner).extend(doubts);
        self.added.notify_one();
    }

    /// Takes the oldest doubt.
    pub(super) fn take(&self) -> Option<Doubt> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Returns `true` if as many requests as allowed wait for a confirmation.
    pub(super) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= UNCONFIRMED_MAX
    }
}

impl Client {
    /// Returns when the consumer is to be asked next about a request of an idle connection of
    /// `lane`; `None` if there is nothing to ask.
    pub(super) fn asks_at(&self, lane: &Lane) -> Option<Instant> {
        let interval = self.api.confirm()?.interval();
        lane.first_asked().map(|asked| asked + interval)
    }

    /// Asks the consumer which requests are confirmed, on each connection of `lane` whose turn it
    /// is. Returns the confirmed ones. A connection that gives no clear answer is closed.
    pub(super) async fn ask(&self, lane: &mut Lane) -> Vec<Confirmed> {
        let (mut confirmed, Some(confirm)) = (Vec::new(), self.api.confirm()) else {
            return Vec::new();
        };
        let due = Instant::now().checked_sub(confirm.interval());
        for mut connection in due.map(|due| lane.take_asked_before(due)).unwrap_or_default() {
            match self.ask_one(&mut connection, confirm).await {
                Ok(numbers) => {
                    confirmed.extend(connection.confirmations.confirmed(&numbers));
                    let late = |request: &Unconfirmed| request.since.elapsed() >= confirm.timeout();
                    let why = format!(
                        "{}: the events were not confirmed within {} s: they are sent again, so \
                         that some may arrive twice",
                        connection.key.base,
                        confirm.timeout().as_secs()
                    );
                    connection.confirmations.doubt(&why, late);
                    lane.put_back(connection, self.endpoints.count());
                }
                Err(failure) => {
                    self.metrics.failed(failure.reason);
                    let why = format!(
                        "{failure}: what the consumer confirmed is not known, so the events are \
                         sent again, and some may arrive twice"
                    );
                    connection.confirmations.doubt(&why, |_| true);
                }
            }
        }
        confirmed
    }

    /// Asks the consumer which requests of a connection are confirmed. Returns their numbers. An
    /// error status confirms nothing, and the consumer is asked again later.
    ///
    /// # Errors
    ///
    /// There was no answer, or none that can be understood. It may have confirmed requests.
    async fn ask_one(
        &self,
        connection: &mut PooledConnection,
        confirm: &dyn Confirm,
    ) -> Result<Vec<u64>, Failure> {
        let base = connection.key.base.clone();
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        let deadline = Instant::now() + self.timeouts.request;
        let confirmations = &mut connection.confirmations;
        confirmations.asked = Instant::now();
        let asked = confirmations.requests.iter().take(ASKED_MAX);
        let asked: Vec<u64> = asked.map(|request| request.number).collect();
        let expanded = self.expanded.load_full();
        let place = connection.key.address.endpoint;
        let endpoint = expanded.as_ref().and_then(|expanded| expanded.endpoints.get(place));
        let endpoint = endpoint.filter(|endpoint| endpoint.base == base);
        let (Some(expanded), Some(endpoint)) = (&expanded, endpoint) else {
            return Err(failed(AttemptError::Protocol, "the config no longer has this URL"));
        };
        let own = self.api.request_headers(connection.id)?;
        let answer = async {
            connection.sender.ready().await?;
            connection.busy = true;
            let marks = connection.progress.begin();
            let body = Pieces::of(vec![Bytes::from(confirm.question(&asked))]);
            let shape = Shape {
                path_and_query: endpoint.target(confirm.path()),
                content_type: confirm.content_type(),
                compression: Compression::None,
                own,
            };
            let upload = self.upload(body, marks);
            let Ok(request) = request(endpoint, shape, &expanded.headers, upload) else {
                return Ok(None);
            };
            let response = connection.sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok(body.ok().map(|body| (status, body.to_bytes())))
        };
        let answered: Result<hyper::Result<_>, _> = tokio::time::timeout_at(deadline, answer).await;
        let (status, body) = match answered {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => {
                return Err(failed(AttemptError::Protocol, "the answer about events broke off"));
            }
            Ok(Err(_)) => {
                let what = "the connection ended before the consumer confirmed the events";
                return Err(failed(AttemptError::Closed, what));
            }
            Err(_) => {
                let what = "no answer to the question which events are confirmed";
                return Err(failed(AttemptError::Timeout, what));
            }
        };
        connection.busy = false;
        match confirm.told(status, &body) {
            Told::Confirmed(numbers) => Ok(numbers),
            Told::Nothing(reason) => {
                self.metrics.failed(reason);
                Ok(Vec::new())
            }
            Told::Unclear => {
                let what = "the answer about events is not that of the protocol";
                Err(failed(AttemptError::Protocol, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_named_by_a_random_uuid() {
        assert_eq!(ConnectionId(0).to_string(), "00000000-0000-4000-8000-000000000000");
        let all = ConnectionId(u128::MAX).to_string();
        assert_eq!(all, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(ConnectionId::random().to_string(), ConnectionId::random().to_string());
    }

    /// The requests of a connection that ends are doubts, each once; confirmed ones are not.
    #[test]
    fn what_is_not_confirmed_when_a_connection_ends_is_doubtful() {
        let doubts = Arc::<Doubts>::default();
        let mut confirmations = Confirmations::new(7, &doubts);
        for number in 0..4 {
            confirmations.add(Claim::of(number, number + 1), Outcome::Accepted, number);
        }
        let confirmed = confirmations.confirmed(&[2, 9]);
        assert_eq!(confirmed.iter().map(|it| it.claim).collect::<Vec<_>>(), [Claim::of(2, 3)]);
        confirmations.doubt("late", |request| request.number == 0);
        drop(confirmations);
        let mut claims = Vec::new();
        while let Some(doubt) = doubts.take() {
            assert_eq!((doubt.consumer, doubt.failure.reason), (7, AttemptError::Acknowledgement));
            claims.push(doubt.claim);
        }
        assert_eq!(claims, [Claim::of(0, 1), Claim::of(1, 2), Claim::of(3, 4)]);
        assert_eq!(doubts.open.load(Ordering::Relaxed), 0);
    }
}
