//! When the next attempt may be made, and how many at once, without I/O: pauses after failures, the
//! drain's short pauses, and whether a new connection counts as proof that the consumer is up.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::retry::Retry;
use base::mutant;

/// The longest pause while the relay drains, even if the consumer asks for more with `Retry-After`.
/// The drain has 20 s by default, and what a queue in memory holds after that is lost, so the relay
/// must notice early that the consumer works again.
pub(super) const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Decides when one delivery may make its next attempt. The delivery loop owns this value, reports
/// failures and successes, and asks for the current pause.
///
/// Invariants: nothing is sent during a pause. Failures that are reported during a pause do not
/// make it longer, even if many requests fail at once. Only a consumer that asks for a longer pause
/// (`Retry-After`) gets it, and not while the relay drains. After a failure, one attempt at a time
/// is made until one succeeds or, if the output connects before it has events, until there is a new
/// connection.
pub(super) struct Pacing {
    retry: Retry,
    /// Nothing is sent before this moment; `None` if there is no pause.
    pub(super) paused_until: Option<Instant>,
    /// `true` if only one request at a time may be sent. This begins with a failure, and ends when
    /// a request succeeds. If the output connects before it has events, a new connection ends it
    /// too.
    pub(super) is_serial: bool,
    /// `true` if a new connection alone is not a sign that the consumer is up, because an earlier
    /// one broke before anything was accepted on it, or ended with a failure that `Event::Gone`
    /// reported. A consumer that refuses our certificate, or every client, breaks connections in
    /// this way. The next connection has to last for some time, or something has to be accepted on
    /// it.
    pub(super) is_unproven: bool,
    /// `true` once the drain has ended the pause that was under way when it began. Later pauses run
    /// to their end, but last at most [`DRAIN_PAUSE_MAX`].
    pub(super) is_shortened: bool,
    /// The token that is cancelled when the process begins to drain.
    draining: CancellationToken,
}

impl Pacing {
    /// Makes the pacing of a new delivery. `retry` decides how long the pauses are. They are short
    /// from the moment at which `draining` is cancelled.
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

    /// Returns `true` while the relay drains.
    pub(crate) fn drains(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Notes that the drain has begun, and ends the current pause.
    pub(super) fn shorten(&mut self) {
        self.is_shortened = true;
        mutant!("drain-waits-out-a-pause", self.paused_until = None);
    }

    /// Ends the pause: its time is over, or the output waited for a new event and this event has
    /// arrived.
    pub(super) fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Notes that an attempt failed. `asked` is the pause that the consumer asked for; `None` if it
    /// did not ask. Begins a pause, or makes the current pause longer if the consumer asked for it.
    /// Returns the time until the end of the pause.
    pub(crate) fn failed(&mut self, asked: Option<Duration>) -> Duration {
        let now = Instant::now();
        let until = match self.paused_until {
            Some(until) => asked.map_or(until, |asked| {
                until.max(now + mutant!("drain-with-retry-after", self.shortened(asked), asked))
            }),
            None => now + self.next_wait(asked),
        };
        self.is_serial = true;
        self.paused_until = Some(until);
        until.saturating_duration_since(now)
    }

    /// Begins a pause after a round in which the consumer refused all events that were tried.
    /// `asked` is the pause that the consumer asked for; `None` if it did not ask. Returns the
    /// length of the pause.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.next_wait(asked);
        self.paused_until = Some(Instant::now() + wait);
        wait
    }

    /// Returns the length of the next pause, which is short while the relay drains.
    fn next_wait(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.retry.pause(asked);
        self.shortened(wait)
    }

    /// Returns how much of a pause to wait for: all of it, or at most [`DRAIN_PAUSE_MAX`] while the
    /// relay drains.
    fn shortened(&self, wait: Duration) -> Duration {
        if self.drains() { wait.min(DRAIN_PAUSE_MAX) } else { wait }
    }

    /// Notes that the consumer accepted something. The next pause is as short as the first one.
    pub(crate) fn succeeded(&mut self) {
        (self.is_serial, self.is_unproven) = (false, false);
        self.retry.reset();
    }

    /// Notes that there is a new connection. Returns `true` if the connection alone counts as a
    /// sign that the consumer is up.
    pub(crate) fn connected(&mut self) -> bool {
        self.is_serial = false;
        !self.is_unproven
    }

    /// Notes that the connection has lasted long enough to count as a sign that the consumer is up.
    pub(crate) fn proven(&mut self) {
        self.is_unproven = false;
    }

    /// Notes that the connection broke after it had lasted for some time, or after something was
    /// accepted on it. The next pause is as short as the first one.
    pub(super) fn broke_after_use(&mut self) {
        self.retry.reset();
    }

    /// Notes that the connection broke before anything was accepted on it, or that `Event::Gone`
    /// reported a failure. The next connection alone is then no sign that the consumer is up.
    pub(super) fn broke_at_once(&mut self) {
        self.is_unproven = true;
    }
}

#[cfg(test)]
mod tests;
