//! The sender at the other end of a connection, and the log lines about its refused handshakes,
//! requests and connections.
//!
//! For each listener, sender and reason, the log has about one warning in ten seconds at most. So a
//! sender that tries again and again is seen, but cannot fill the disk.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use base::lock::lock;
use telemetry::{RefusedConnection, Rejection, TlsFailure};

/// The shortest time between two warnings from the same entry of a [`Seldom`].
const QUIET: Duration = Duration::from_secs(10);

/// The maximum number of pairs of sender and reason in a [`Seldom`]. Other refusals share a line.
const SENDERS_MAX: usize = 64;

/// The maximum number of characters of a refusal's sentence in a log line.
const ERROR_MAX: usize = 300;

#[derive(Default)]
pub(super) struct Refused {
    handshakes: Seldom,
    requests: Seldom,
    connections: Seldom,
    items: Seldom,
}

#[derive(Clone)]
pub(super) struct Sender {
    pub(super) listener: Arc<str>,
    pub(super) peer: SocketAddr,
    pub(super) refused: Arc<Refused>,
}

impl Sender {
    pub(super) fn handshake_failed(&self, reason: TlsFailure, error: &str) {
        let Self { listener, peer, refused } = self;
        let reason = reason.name();
        if let Some([handshakes, of_many]) = refused.handshakes.count(*peer, reason) {
            tracing::warn!(
                %listener, %peer, reason, error, handshakes, handshakes_of_many_senders = of_many,
                "a sender cannot connect: the TLS handshake fails"
            );
        } else {
            tracing::debug!(%listener, %peer, reason, error, "TLS handshake failed");
        }
    }

    /// Notes a refused request of this sender, for the log. `error` is the sentence of the answer.
    /// Refusals because of the queue, its disk or an output are logged elsewhere.
    pub(super) fn request_refused(&self, rejection: Rejection, code: u16, error: &str) {
        let Self { listener, peer, refused } = self;
        let is_of_the_sender = rejection.is_for_good()
            || matches!(rejection, Rejection::Timeout | Rejection::InFlightFull);
        if !is_of_the_sender {
            return;
        }
        let reason = rejection.name();
        // The sentence may quote a word of the body, and the word may be long.
        let error: String = error.chars().take(ERROR_MAX).collect();
        if let Some([requests, of_many]) = refused.requests.count(*peer, reason) {
            tracing::warn!(
                %listener, %peer, code, reason, error, requests, requests_of_many_senders = of_many,
                "requests from a sender are refused"
            );
        }
    }

    /// Notes that items of an accepted body are not audit events. `error` describes them.
    pub(super) fn items_rejected(&self, error: &str) {
        let Self { listener, peer, refused } = self;
        let error: String = error.chars().take(ERROR_MAX).collect();
        if let Some([bodies, of_many]) = refused.items.count(*peer, "items") {
            tracing::warn!(
                %listener, %peer, error, bodies, bodies_of_many_senders = of_many,
                "items from a sender are not audit events: they are in the dead letters, if the \
                 relay has a directory for them, and the other items of their bodies are accepted"
            );
        }
    }

    /// Notes that a connection of this sender was closed because of `limits.max_connections`.
    pub(super) fn connection_closed(&self, reason: RefusedConnection) {
        let Self { listener, peer, refused } = self;
        let reason = reason.name();
        if let Some([connections, of_many]) = refused.connections.count(*peer, reason) {
            tracing::warn!(
                %listener, %peer, reason, connections, connections_of_many_senders = of_many,
                "connections from a sender are closed: limits.max_connections is reached"
            );
        }
    }
}

/// The counts of a log line: the refusals of one sender for one reason since the line before, or
/// those of all senders without an entry. Exactly one of the two is `Some`.
type Told = [Option<u64>; 2];

/// Decides which refusals have a log line. One address cannot keep the line of another from the
/// log, unless there are more than [`SENDERS_MAX`] pairs of address and reason in ten seconds.
#[derive(Default)]
struct Seldom(Mutex<Senders>);

#[derive(Default)]
struct Senders {
    known: HashMap<(IpAddr, &'static str), Counted>,
    /// The refusals that have no entry in `known`.
    others: Counted,
}

#[derive(Default)]
struct Counted {
    /// The time of the last log line; `None`: there was none yet.
    told: Option<Instant>,
    /// The number of refusals since the last log line.
    untold: u64,
}

impl Counted {
    /// Counts a refusal. Returns the number since the last log line if a line may be written now.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(1);
        if self.is_quiet(now) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.told.is_some_and(|told| now.duration_since(told) < QUIET)
    }
}

impl Seldom {
    /// Counts a refusal of this sender. Returns the counts for a log line if a line may be written
    /// now.
    fn count(&self, peer: SocketAddr, reason: &'static str) -> Option<Told> {
        let (key, now) = ((peer.ip(), reason), Instant::now());
        let mut senders = lock(&self.0);
        let Senders { known, others } = &mut *senders;
        if known.len() >= SENDERS_MAX && !known.contains_key(&key) {
            // An entry without a recent log line is not needed: its count moves to the others.
            known.retain(|_, counted| {
                let is_quiet = counted.is_quiet(now);
                if !is_quiet {
                    others.untold = others.untold.saturating_add(counted.untold);
                }
                is_quiet
            });
        }
        if known.len() >= SENDERS_MAX && !known.contains_key(&key) {
            return others.count(now).map(|count| [None, Some(count)]);
        }
        known.entry(key).or_default().count(now).map(|count| [Some(count), None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_the_number_of_refusals_since_the_line_before() {
        let seldom = Seldom::default();
        let count = || seldom.count(sender(1), "other");
        assert_eq!(count(), Some([Some(1), None]));
        for _ in 0..4 {
            assert_eq!(count(), None);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(count(), Some([Some(5), None]));
        assert_eq!(count(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scanner_does_not_hide_another_sender_or_another_reason() {
        let seldom = Seldom::default();
        let count = |number, reason| seldom.count(sender(number), reason);
        assert_eq!(count(1, "other"), Some([Some(1), None]));
        assert_eq!(count(1, "other"), None);
        assert_eq!(count(2, "other"), Some([Some(1), None]));
        assert_eq!(count(1, "plain_http"), Some([Some(1), None]));
    }

    #[tokio::test(start_paused = true)]
    async fn senders_beyond_the_greatest_number_share_a_line_and_none_is_uncounted() {
        let seldom = Seldom::default();
        let mut told = 0;
        let mut count = |number| {
            let counts = seldom.count(sender(number), "other").into_iter().flatten().flatten();
            told += counts.sum::<u64>();
        };
        for _ in 0..2 {
            (0..=u8::MAX).for_each(&mut count);
        }
        tokio::time::advance(QUIET).await;
        // The entries can be replaced now. Their counts that were not logged move to the shared
        // line.
        (0..=u8::MAX).for_each(&mut count);
        let senders = seldom.0.lock().unwrap();
        assert_eq!(senders.known.len(), SENDERS_MAX);
        let untold: u64 = senders.known.values().map(|it| it.untold).sum();
        assert_eq!(told + untold + senders.others.untold, 3 * 256);
    }
}
