//! When the next attempt may be made, and how many at once, without I/O: pauses after failures, the
//! drain's short pauses, and whether a new connection counts as proof that the consumer is up.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::retry::Retry;

/// The longest pause while the relay drains, even if the consumer asks for more with `Retry-After`.
/// The drain has 20 s by default, and what a queue in memory holds after that is lost, so the relay
/// must notice early that the consumer works again.
pub(super) const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The number of requests that may be sent without an answer at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempts {
    /// As many requests as the connection allows.
    Window,
    /// One request at a time. This begins with a failure, and ends when a request succeeds. If the
    /// output connects before it has events, a new connection ends it too.
    OneByOne,
}

/// Whether a new connection alone is a sign that the consumer is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connections {
    /// A new connection alone is a sign that the consumer is up.
    Trusted,
    /// A new connection alone proves nothing, because an earlier connection broke before anything
    /// was accepted on it, or ended with a failure that `Event::Gone` reported. A consumer that
    /// refuses our certificate, or every client, breaks connections in this way. So the next
    /// connection has to last for some time, or something has to be accepted on it.
    Unproven,
}

/// Whether the drain has shortened a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// The drain has not shortened a pause yet.
    NotYet,
    /// The drain has ended the pause that was under way when the drain began. Later pauses run to
    /// their end, but last at most [`DRAIN_PAUSE_MAX`].
    Shortened,
}

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
    paused_until: Option<Instant>,
    attempts: Attempts,
    connections: Connections,
    drain: Drain,
    /// The token that is cancelled when the process begins to drain.
    draining: CancellationToken,
}

impl Pacing {
    /// Makes the pacing of a new delivery. `retry` decides how long the pauses are.
    pub(super) fn new(retry: Retry) -> Self {
        Self {
            retry,
            paused_until: None,
            attempts: Attempts::Window,
            connections: Connections::Trusted,
            drain: Drain::NotYet,
            draining: CancellationToken::new(),
        }
    }

    /// Sets the token that is cancelled when the drain begins. From then on, pauses are short.
    pub(super) fn shorten_when(&mut self, draining: CancellationToken) {
        self.draining = draining;
    }

    /// Returns `true` while the relay drains.
    pub(super) fn drains(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns the end of the current pause; `None` if there is no pause.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Returns `true` if the drain has not shortened a pause yet.
    pub(super) fn is_before_drain(&self) -> bool {
        self.drain == Drain::NotYet
    }

    /// Notes that the drain has begun, and ends the current pause.
    pub(super) fn shorten(&mut self) {
        self.drain = Drain::Shortened;
        self.paused_until = None;
    }

    /// Ends the pause: its time is over, or the output waited for a new event and this event has
    /// arrived.
    pub(super) fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Notes that an attempt failed. `asked` is the pause that the consumer asked for; `None` if it
    /// did not ask. Begins a pause, or makes the current pause longer if the consumer asked for it.
    /// Returns the time until the end of the pause.
    pub(super) fn failed(&mut self, asked: Option<Duration>) -> Duration {
        let now = Instant::now();
        let until = match self.paused_until {
            Some(until) => asked.map_or(until, |asked| until.max(now + self.shortened(asked))),
            None => now + self.next_wait(asked),
        };
        self.attempts = Attempts::OneByOne;
        self.paused_until = Some(until);
        until.saturating_duration_since(now)
    }

    /// Begins a pause after a round in which the consumer refused all events that were tried.
    /// `asked` is the pause that the consumer asked for; `None` if it did not ask. Returns the
    /// length of the pause.
    pub(super) fn pause(&mut self, asked: Option<Duration>) -> Duration {
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
    pub(super) fn succeeded(&mut self) {
        self.attempts = Attempts::Window;
        self.connections = Connections::Trusted;
        self.retry.reset();
    }

    /// Notes that there is a new connection. Returns `true` if the connection alone counts as a
    /// sign that the consumer is up.
    pub(super) fn connected(&mut self) -> bool {
        self.attempts = Attempts::Window;
        self.connections == Connections::Trusted
    }

    /// Notes that the connection has lasted long enough to count as a sign that the consumer is up.
    pub(super) fn proven(&mut self) {
        self.connections = Connections::Trusted;
    }

    /// Notes that the connection broke after it had lasted for some time, or after something was
    /// accepted on it. The next pause is as short as the first one.
    pub(super) fn broke_after_use(&mut self) {
        self.retry.reset();
    }

    /// Notes that the connection broke before anything was accepted on it, or that `Event::Gone`
    /// reported a failure. The next connection alone is then no sign that the consumer is up.
    pub(super) fn broke_at_once(&mut self) {
        self.connections = Connections::Unproven;
    }

    /// Returns `true` if the current connection alone is no sign that the consumer is up, because
    /// the connection before it broke at once.
    pub(super) fn is_unproven(&self) -> bool {
        self.connections == Connections::Unproven
    }

    /// Returns `true` if only one attempt at a time may be made, because the last one failed.
    pub(super) fn is_serial(&self) -> bool {
        self.attempts == Attempts::OneByOne
    }
}

#[cfg(test)]
mod tests;
