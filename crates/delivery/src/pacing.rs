//! Decides when the next attempt may be made, and how many may run at the same time, without I/O.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::retry::Retry;

/// The longest pause while the relay drains, even with `Retry-After`.
pub(super) const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Decides when one delivery may make its next attempt. The delivery loop owns this value.
///
/// Invariants: nothing is sent during a pause. A failure during a pause makes it longer only if the
/// consumer asks for that (`Retry-After`; while the relay drains, for at most [`DRAIN_PAUSE_MAX`]).
/// After a failure, one attempt at a time is made until one succeeds or, for an output that
/// connects before it has events, until there is a new connection.
pub(super) struct Pacing {
    retry: Retry,
    pub(super) paused_until: Option<Instant>,
    /// `true` if only one request at a time may be sent.
    pub(super) is_serial: bool,
    /// `true` if a new connection alone does not prove that the consumer is up. The previous one
    /// broke before anything was accepted on it, or ended with the failure of an `Event::Gone`.
    pub(super) is_unproven: bool,
    /// `true` after [`Pacing::shorten`]: the drain ends at most one pause early.
    pub(super) is_shortened: bool,
    draining: CancellationToken,
}

impl Pacing {
    pub(crate) fn new(retry: Retry, draining: CancellationToken) -> Self {
        Self {
            retry,
            paused_until: None,
            is_serial: false,
            is_unproven: false,
            is_shortened: false,
            draining,
        }
    }

    pub(crate) fn drains(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub(super) fn shorten(&mut self) {
        self.is_shortened = true;
        self.paused_until = None;
    }

    pub(super) fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Begins a pause, or makes the current one longer if the consumer `asked` for that. A drain
    /// does not shorten the time `asked` for if the failure is `in_doubt`, which means that the
    /// consumer may have stored the events: they would arrive once more. Returns the time until the
    /// end of the pause.
    pub(crate) fn failed(&mut self, asked: Option<Duration>, in_doubt: bool) -> Duration {
        let now = Instant::now();
        let until = match self.paused_until {
            Some(until) => asked.map_or(until, |asked| until.max(now + self.shortened(asked))),
            None => now + self.next_wait(asked),
        };
        let asked = asked.filter(|_| in_doubt).unwrap_or_default();
        let until = until.max(now + asked);
        self.is_serial = true;
        self.paused_until = Some(until);
        until.saturating_duration_since(now)
    }

    fn next_wait(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.retry.pause(asked);
        self.shortened(wait)
    }

    fn shortened(&self, wait: Duration) -> Duration {
        if self.drains() { wait.min(DRAIN_PAUSE_MAX) } else { wait }
    }

    /// The consumer accepted something: the next pause is the shortest.
    pub(crate) fn succeeded(&mut self) {
        (self.is_serial, self.is_unproven) = (false, false);
        self.retry.reset();
    }

    /// Notes a new connection, after which several requests may run at the same time again. Returns
    /// `true` if the connection alone proves that the consumer is up.
    pub(crate) fn connected(&mut self) -> bool {
        self.is_serial = false;
        !self.is_unproven
    }

    /// The connection has lasted long enough to prove that the consumer is up.
    pub(crate) fn proven(&mut self) {
        self.is_unproven = false;
    }

    /// The connection had lasted, or something was accepted on it: the next pause is the shortest.
    pub(super) fn broke_after_use(&mut self) {
        self.retry.reset();
    }

    /// Nothing was accepted on the connection, or `Event::Gone` reported a failure.
    pub(super) fn broke_at_once(&mut self) {
        self.is_unproven = true;
    }
}

#[cfg(test)]
mod tests;
