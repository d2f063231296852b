//! Requests that the consumer has taken, and whose events it confirms later.
//!
//! A taken request belongs to its connection. A consumer may have several servers behind one
//! address, and only the server that took the request can confirm it. If the connection ends before
//! the confirmation, nobody knows whether the server has stored the events. The requests become
//! *doubts*: their events are sent again, so that an event may arrive twice, but none is lost.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::Outcome;
use base::lock::lock;
use delivery::endpoints::Figures;
use delivery::failure::Failure;
use queue::Claim;
use telemetry::AttemptError;

/// The number of unconfirmed requests of an output at which the link takes no more batches.
pub(super) const UNCONFIRMED_MAX: usize = 1024;

/// A request that the consumer has taken and not confirmed yet.
struct Unconfirmed {
    claim: Claim,
    /// The result that the link reports when the consumer confirms the request.
    outcome: Outcome,
    /// The number by which the consumer identifies the request.
    number: u64,
    /// The time when the consumer took the request.
    since: Instant,
    /// The time when the request was sent.
    sent_at: Instant,
}

/// The unconfirmed requests of one connection. When the connection ends and drops this value, the
/// requests become doubts.
pub(super) struct Confirmations {
    requests: Vec<Unconfirmed>,
    /// The numbers of the requests that became doubts because they were not confirmed in time. A
    /// late confirmation must not count for another request with the same number.
    late: BTreeSet<u64>,
    /// The time from which the interval to the next question counts: the last question, or the
    /// moment when the oldest waiting request was taken, whichever is later.
    asked: Instant,
    /// The id of the connection's address.
    consumer: usize,
    /// The figures of that address, which count the requests when they are confirmed or become
    /// doubts.
    figures: Arc<Figures>,
    doubts: Arc<Doubts>,
}

impl Confirmations {
    pub(super) fn new(consumer: usize, figures: &Arc<Figures>, doubts: &Arc<Doubts>) -> Self {
        let (figures, doubts) = (Arc::clone(figures), Arc::clone(doubts));
        let (requests, late) = Default::default();
        Self { requests, late, asked: Instant::now(), consumer, figures, doubts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns the field `asked`, or `None` if no request waits.
    pub(super) fn asked(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.asked)
    }

    /// Returns `true` if a request with this number waits for its confirmation, or has waited too
    /// long. If the consumer gives such a number to another request, the consumer has forgotten the
    /// first request, or there are several consumers that count separately.
    pub(super) fn has(&self, number: u64) -> bool {
        self.late.contains(&number) || self.requests.iter().any(|it| it.number == number)
    }

    /// Adds a request that the consumer has taken. No other request may have its number.
    pub(super) fn add(&mut self, claim: Claim, outcome: Outcome, number: u64, sent_at: Instant) {
        let since = Instant::now();
        if self.is_empty() {
            self.asked = since;
        }
        self.doubts.open.fetch_add(1, Ordering::Relaxed);
        self.requests.push(Unconfirmed { claim, outcome, number, since, sent_at });
    }

    /// Removes and returns the requests with these numbers, which the consumer has confirmed.
    pub(super) fn confirmed(&mut self, numbers: &[u64]) -> Vec<Settled> {
        let is_confirmed = |request: &mut Unconfirmed| numbers.contains(&request.number);
        let confirmed = self.requests.extract_if(.., is_confirmed);
        let of = |request: Unconfirmed| {
            self.figures.ended(Some(request.sent_at.elapsed()), None);
            let Unconfirmed { claim, outcome, .. } = request;
            Settled { consumer: self.consumer, claim, outcome }
        };
        let confirmed: Vec<_> = confirmed.map(of).collect();
        self.doubts.open.fetch_sub(confirmed.len(), Ordering::Relaxed);
        confirmed
    }

    /// Begins a question. Returns the numbers of the oldest requests, at most `max`.
    pub(super) fn ask(&mut self, max: usize) -> Vec<u64> {
        self.asked = Instant::now();
        self.requests.iter().take(max).map(|request| request.number).collect()
    }

    /// Turns all requests into doubts. `why` is the reason, for messages.
    pub(super) fn doubt_all(&mut self, why: &str) {
        self.doubt(why, |_| true);
    }

    /// Turns the requests that were taken at least this long ago into doubts. Returns `true` if
    /// there were any.
    pub(super) fn doubt_older(&mut self, why: &str, age: Duration) -> bool {
        let is_late = |request: &Unconfirmed| request.since.elapsed() >= age;
        let before = self.late.len();
        self.late.extend(self.requests.iter().filter(|it| is_late(it)).map(|it| it.number));
        self.doubt(why, is_late);
        self.late.len() > before
    }

    /// Turns the requests that `is_doubtful` selects into doubts.
    fn doubt(&mut self, why: &str, is_doubtful: impl Fn(&Unconfirmed) -> bool) {
        let doubtful = self.requests.extract_if(.., |request| is_doubtful(request));
        let failure = Failure::new(AttemptError::Acknowledgement, why);
        let of = |Unconfirmed { claim, .. }| {
            self.figures.ended(None, Some(&failure));
            let outcome = Outcome::Failed(failure.clone());
            Settled { consumer: self.consumer, claim, outcome }
        };
        self.doubts.add(doubtful.map(of).collect());
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        let why = "the connection ended before the consumer confirmed the events: they are sent \
            again, so some may arrive twice";
        self.doubt_all(why);
    }
}

/// A request that was confirmed, or a doubt, whose outcome is a failure.
pub(super) struct Settled {
    /// The id of the request's address.
    pub(super) consumer: usize,
    pub(super) claim: Claim,
    pub(super) outcome: Outcome,
}

/// The doubts of one output, and the number of its requests that wait for a confirmation.
#[derive(Default)]
pub(super) struct Doubts {
    doubts: Mutex<VecDeque<Settled>>,
    /// Notified when a doubt is added.
    pub(super) added: Notify,
    /// The number of requests that wait for a confirmation.
    open: AtomicUsize,
}

impl Doubts {
    fn add(&self, doubts: Vec<Settled>) {
        if doubts.is_empty() {
            return;
        }
        self.open.fetch_sub(doubts.len(), Ordering::Relaxed);
        lock(&self.doubts).extend(doubts);
        self.added.notify_one();
    }

    pub(super) fn take(&self) -> Option<Settled> {
        lock(&self.doubts).pop_front()
    }

    /// Returns `true` if at least [`UNCONFIRMED_MAX`] requests wait for a confirmation.
    pub(super) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= UNCONFIRMED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a connection ends, each of its unconfirmed requests becomes exactly one doubt.
    #[test]
    fn what_is_not_confirmed_when_a_connection_ends_is_doubtful() {
        let (doubts, figures) = (Arc::<Doubts>::default(), Arc::<Figures>::default());
        let mut confirmations = Confirmations::new(7, &figures, &doubts);
        let now = Instant::now();
        for number in 0..4 {
            confirmations.add(Claim::of(number, number + 1), Outcome::Accepted, number, now);
        }
        let confirmed = confirmations.confirmed(&[2, 9]);
        assert_eq!(confirmed.iter().map(|it| it.claim).collect::<Vec<_>>(), [Claim::of(2, 3)]);
        assert!(!confirmations.doubt_older("late", Duration::from_secs(60)));
        assert!(confirmations.has(0) && confirmations.has(3) && !confirmations.has(2));
        assert!(confirmations.doubt_older("late", Duration::ZERO));
        // The number of a late request stays in use, so that its confirmation does not count for
        // another request.
        assert!(confirmations.is_empty() && confirmations.has(0) && !confirmations.has(6));
        confirmations.add(Claim::of(4, 5), Outcome::Accepted, 7, now);
        drop(confirmations);
        let mut claims = Vec::new();
        while let Some(doubt) = doubts.take() {
            let Outcome::Failed(failure) = doubt.outcome else { panic!("it is a doubt") };
            assert_eq!((doubt.consumer, failure.reason), (7, AttemptError::Acknowledgement));
            claims.push(doubt.claim);
        }
        assert_eq!(claims, [0, 1, 3, 4].map(|at| Claim::of(at, at + 1)));
        assert_eq!(doubts.open.load(Ordering::Relaxed), 0);
        // The address has five attempts; one was acknowledged.
        let shown = figures.show();
        assert_eq!(
            (shown.requests, shown.errors),
            (Some(5), [("acknowledgement".to_owned(), 4)].into())
        );
        assert!(shown.latency_p50_seconds.is_some());
    }
}
