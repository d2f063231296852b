//! The state of refused requests, over all listeners and sources: the last refusals, the time since
//! which every batch has been refused, and for how long requests were refused.
//!
//! [`RefusalTimes`] explains the words *spell*, *shut* and *long*.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::labels::{RefusedConnection, Rejection, TlsFailure};
use crate::status;
use crate::status::RefusalTimes;
use crate::status::thresholds::{ATTEMPTS, PATIENCE, PATIENCE_WITH_RETRY_AFTER};
use base::lock::lock;

/// The maximum number of characters of [`LastRejected::message`]. Only a message that quotes a long
/// word of the request can be longer.
const MESSAGE_MAX: usize = 300;

/// A spell ends after this time without a refusal. kube-apiserver repeats after at most 41 s.
const PAUSE: Duration = Duration::from_secs(60);

/// The last refused request, for `/status`. It contains at most one word of the request's body.
#[derive(Debug, Clone)]
pub struct LastRejected {
    /// The label of the listener or source that received the request.
    pub listener: Arc<str>,
    /// The reason why the request was refused.
    pub reason: Rejection,
    /// The HTTP status of the response, or that which a source's message would get.
    pub code: u16,
    /// The sentence that a sender received or would have received, cut to 300 characters.
    pub message: String,
    /// The time at which the request was refused.
    pub at: Instant,
}

/// The last failed TLS handshake of a sender, for `/status`.
#[derive(Debug, Clone)]
pub struct LastTlsFailure {
    /// The label of the listener.
    pub listener: Arc<str>,
    /// The reason why the handshake failed.
    pub reason: TlsFailure,
    /// The time at which the handshake failed.
    pub at: Instant,
}

/// The minimum length in seconds, and the minimum number of refusals, of a long stretch.
type Patience = (f64, u64);

const WITH_RETRY_AFTER: Patience = (PATIENCE_WITH_RETRY_AFTER, 1);
const FOR_GOOD: Patience = (PATIENCE, ATTEMPTS);

/// A period of refusals: a spell, or the part of it since the last accepted batch.
#[derive(Default)]
struct Stretch {
    /// The first refusal; `None` if there was none, or if an accepted batch has ended the period.
    since: Option<Instant>,
    count: u64,
    longest: Duration,
    /// The last refusal in a long stretch.
    long_last: Option<Instant>,
    /// The number of refusals in all long stretches.
    long_count: u64,
}

impl Stretch {
    fn refused(&mut self, now: Instant, (seconds, count): Patience) {
        self.count = if self.since.is_some() { self.count.saturating_add(1) } else { 1 };
        let since = *self.since.get_or_insert(now);
        let length = now.saturating_duration_since(since);
        self.longest = self.longest.max(length);
        if length.as_secs_f64() >= seconds && self.count >= count {
            let was_long = self.long_last.is_some_and(|last| last >= since);
            let new = if was_long { 1 } else { self.count };
            self.long_count = self.long_count.saturating_add(new);
            self.long_last = Some(now);
        }
    }
}

/// The spells of refusals with 429, of those with 503, or of those for good.
#[derive(Default)]
struct Spells {
    any: Stretch,
    /// The parts of the spells since the last accepted batch.
    shut: Stretch,
    last: Option<Instant>,
}

impl Spells {
    /// Returns the time of the last refusal, if the spell still lasts.
    fn lasts(&self, now: Instant) -> Option<Instant> {
        self.last.filter(|last| now.saturating_duration_since(*last) <= PAUSE)
    }

    fn refused(&mut self, now: Instant, patience: Patience) {
        if self.lasts(now).is_none() {
            (self.any.since, self.shut.since) = (None, None);
        }
        self.last = Some(now);
        self.any.refused(now, patience);
        self.shut.refused(now, patience);
    }

    fn times(&self, now: Instant) -> RefusalTimes {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let last = self.lasts(now);
        let until_last = |since: Option<Instant>| Some((last? - since?).as_secs_f64());
        RefusalTimes {
            seconds: until_last(self.any.since),
            shut_seconds: until_last(self.shut.since),
            longest_seconds: self.any.longest.as_secs_f64(),
            longest_shut_seconds: self.shut.longest.as_secs_f64(),
            long_ended_seconds_ago: self.any.long_last.map(ago),
            long_shut_ended_seconds_ago: self.shut.long_last.map(ago),
            long_shut_requests: self.shut.long_count,
        }
    }
}

/// The state of refused requests. Clones are cheap and share it.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Known>>);

/// The last refusal of each kind. If only the very last one were stored, a request that ends with
/// 408, which anybody can send, could hide a refusal that matters.
#[derive(Default)]
struct Known {
    any: Option<LastRejected>,
    /// The last request with a final reason; see [`Rejection::is_for_good`].
    for_good: Option<LastRejected>,
    tls: Option<LastTlsFailure>,
    /// The number of refused connections and the time of the last one, for each reason.
    connections: BTreeMap<&'static str, (u64, Instant)>,
    /// The time of the first refusal in `batches`, in seconds since 1970; 0 without one.
    since: f64,
    /// The number of batches refused since the last accepted one.
    batches: u64,
    with_429: Spells,
    with_503: Spells,
    /// Requests refused for good that may have had a batch, and failed TLS handshakes.
    given_up: Spells,
    in_flight_full: Option<Instant>,
    accepted: Option<Instant>,
}

impl Refusals {
    /// Notes a request that was refused now. A health check is no sign of anything.
    pub fn refused(&self, mut refusal: LastRejected) {
        let (reason, now) = (refusal.reason, refusal.at);
        if reason == Rejection::Probe {
            return;
        }
        if let Some((end, _)) = refusal.message.char_indices().nth(MESSAGE_MAX) {
            refusal.message.truncate(end);
        }
        let mut known = lock(&self.0);
        if reason.is_of_batch() {
            if known.batches == 0 {
                known.since = super::now();
            }
            known.batches = known.batches.saturating_add(1);
        }
        if Rejection::WITH_429.contains(&reason) {
            known.with_429.refused(now, WITH_RETRY_AFTER);
        } else if Rejection::WITH_503.contains(&reason) {
            known.with_503.refused(now, WITH_RETRY_AFTER);
        }
        if reason == Rejection::InFlightFull {
            known.in_flight_full = Some(now);
        }
        if reason.is_for_good() {
            known.for_good = Some(refusal.clone());
        }
        known.any = Some(refusal);
    }

    /// Notes a failed TLS handshake of a sender.
    pub fn tls_failed(&self, failure: LastTlsFailure) {
        self.turned_away(failure.at);
        lock(&self.0).tls = Some(failure);
    }

    /// Notes that a sender, which may have had a batch, was refused for good.
    pub fn turned_away(&self, now: Instant) {
        lock(&self.0).given_up.refused(now, FOR_GOOD);
    }

    /// Notes a connection that was refused now.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        let mut known = lock(&self.0);
        let (count, last) =
            known.connections.entry(reason.name()).or_insert_with(|| (0, Instant::now()));
        (*count, *last) = (count.saturating_add(1), Instant::now());
    }

    /// Returns the number of refused connections, and the time since the last one, for each reason.
    pub fn connections(&self) -> Vec<(&'static str, u64, Duration)> {
        let known = lock(&self.0);
        known.connections.iter().map(|(name, (count, at))| (*name, *count, at.elapsed())).collect()
    }

    /// Notes that a batch was accepted.
    pub fn accepted(&self) {
        let mut known = lock(&self.0);
        (known.since, known.batches) = (0.0, 0);
        known.accepted = Some(Instant::now());
        known.with_429.shut.since = None;
        known.with_503.shut.since = None;
        known.given_up.shut.since = None;
    }

    /// Returns the time since a batch was last accepted, by a clock that nobody sets; `None` if
    /// none was.
    pub fn accepted_ago(&self) -> Option<Duration> {
        lock(&self.0).accepted.map(|at| at.elapsed())
    }

    /// Returns the time of the first refused batch after the last accepted one, in seconds since
    /// 1970, and the number of these refusals. Both are 0 if no batch was refused since.
    pub(super) fn of_batches(&self) -> (f64, u64) {
        let known = lock(&self.0);
        (known.since, known.batches)
    }

    /// Returns the last request that was refused; `None` if there was none yet.
    pub fn last(&self) -> Option<LastRejected> {
        lock(&self.0).any.clone()
    }

    /// Returns the last request that was refused for good; `None` if there was none yet.
    pub fn last_for_good(&self) -> Option<LastRejected> {
        lock(&self.0).for_good.clone()
    }

    /// Returns the last TLS failure that [`Self::tls_failed`] noted; `None` if there is none yet.
    pub fn last_tls_failure(&self) -> Option<LastTlsFailure> {
        lock(&self.0).tls.clone()
    }

    /// Returns for how long requests were refused, by the kind of the refusal.
    pub fn times(&self, now: Instant) -> status::Refusals {
        let known = lock(&self.0);
        let (with_429, with_503) = (known.with_429.times(now), known.with_503.times(now));
        status::Refusals { with_429, with_503, permanent: known.given_up.times(now) }
    }

    /// Returns the time since a request was last refused because of `limits.max_in_flight`.
    pub fn in_flight_full_ago(&self) -> Option<Duration> {
        lock(&self.0).in_flight_full.map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    fn refuse(refusals: &Refusals, reason: Rejection, at: Instant) {
        let (listener, message) = ("l".into(), String::new());
        refusals.refused(LastRejected { listener, reason, code: 429, message, at });
    }

    #[test]
    fn refusals_last_until_a_minute_has_passed_without_one_and_their_length_is_kept() {
        let (mut now, refusals) = (Instant::now(), Refusals::default());
        assert_eq!(refusals.times(now), status::Refusals::default());
        for _ in 1..=30 {
            now += STEP;
            refuse(&refusals, Rejection::QueueFull, now);
        }
        let times = refusals.times(now).with_429;
        assert_eq!((times.seconds, times.shut_seconds), (Some(290.0), Some(290.0)));
        // An accepted batch ends the time in which nothing was accepted, but not the spell of
        // refusals.
        refusals.accepted();
        now += STEP;
        let times = refusals.times(now).with_429;
        assert_eq!((times.seconds, times.shut_seconds), (Some(290.0), None));
        refuse(&refusals, Rejection::InFlightFull, now);
        let times = refusals.times(now).with_429;
        assert_eq!((times.seconds, times.shut_seconds), (Some(300.0), Some(0.0)));
        now += PAUSE + STEP;
        let times = refusals.times(now).with_429;
        assert_eq!((times.seconds, times.shut_seconds), (None, None));
        let ended = (times.long_ended_seconds_ago, times.long_shut_ended_seconds_ago);
        assert_eq!(ended, (Some(70.0), Some(80.0)));
        assert_eq!((times.longest_seconds, times.longest_shut_seconds), (300.0, 290.0));
        assert_eq!(
            refusals.times(now).with_503,
            RefusalTimes::default(),
            "each status has its own"
        );
        refuse(&refusals, Rejection::Disk, now);
        assert_eq!(refusals.times(now).with_503.seconds, Some(0.0));
    }

    #[test]
    fn a_batch_that_is_tried_five_times_and_refused_for_good_is_counted_as_given_up() {
        let (mut now, refusals) = (Instant::now(), Refusals::default());
        let given_up = |now| {
            let times = refusals.times(now).permanent;
            (times.long_shut_requests, times.long_shut_ended_seconds_ago)
        };
        for attempts in 1..=2 {
            // The pauses between kube-apiserver's attempts.
            for seconds in [0.0, 10.0, 15.0, 22.5, 33.75] {
                now += Duration::from_secs_f64(seconds);
                assert_eq!(given_up(now).0, 5 * (attempts - 1));
                refusals.turned_away(now);
            }
            assert_eq!(given_up(now), (5 * attempts, Some(0.0)));
            now += PAUSE + STEP;
        }
        refusals.turned_away(now);
        refusals.accepted();
        assert_eq!(refusals.times(now).permanent.shut_seconds, None);
        assert_eq!(given_up(now), (10, Some(70.0)));
        // A sender whose lone requests are refused, among accepted batches.
        for _ in 0..100 {
            now += STEP;
            refusals.turned_away(now);
            refusals.accepted();
        }
        assert_eq!(given_up(now).0, 10);
    }

    #[test]
    fn lone_refusals_do_not_add_up() {
        let (mut now, refusals) = (Instant::now(), Refusals::default());
        for _ in 1..=20 {
            now += PAUSE + STEP;
            refuse(&refusals, Rejection::QueueFull, now);
        }
        assert_eq!(refusals.times(now).with_429.longest_seconds, 0.0);
    }
}
