//! When the next attempt may be made, and how many at once, without I/O: pauses after failures, the
//! drain's short pauses, and whether a new connection counts as proof that the consumer is up.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::retry::Retry;

/// The longest pause while the relay drains, so that a consumer that is back is not missed.
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How many requests may be on the wire at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempts {
    /// As many as the link's window takes.
    Window,
    /// One at a time, after a failure, until one succeeds.
    OneByOne,
}

/// Tells if a connection alone counts as a sign that the consumer is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connections {
    /// A connection is enough.
    Trusted,
    /// The last connection broke before anything was accepted on it. A consumer that refuses our
    /// certificate, or everybody, does so at once: the next connection has to last, or to accept
    /// something.
    Unproven,
}

/// Tells if the drain has shortened a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// The drain has not shortened a pause yet.
    NotYet,
    /// The drain has ended the pause that was under way when it began; later pauses take their
    /// time, at most [`DRAIN_PAUSE_MAX`].
    Shortened,
}

/// The pacing of one delivery. The loop owns it, tells it of failures and successes, and asks it
/// when the next attempt may be made.
///
/// Invariants: while there is a pause, nothing is sent. Failures that are reported during a pause
/// do not lengthen it, however many requests were on the wire: they are one reason to wait; only a
/// consumer that asks for a longer pause (`Retry-After`) gets it. After a failure, one attempt at a
/// time is made until one succeeds.
pub(super) struct Pacing {
    retry: Retry,
    /// Nothing is sent before this moment; `None`: there is no pause.
    paused_until: Option<Instant>,
    attempts: Attempts,
    connections: Connections,
    drain: Drain,
    /// This token is cancelled when the process begins its drain: it still tries to deliver what
    /// the queue holds.
    draining: CancellationToken,
}

impl Pacing {
    /// Makes the pacing of a new delivery. `retry` decides how long pauses are.
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

    /// Hands over the token of the drain. Once the token is cancelled, pauses are short.
    pub(super) fn shorten_when(&mut self, draining: CancellationToken) {
        self.draining = draining;
    }

    /// The end of the pause under way; `None` if there is no pause.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Returns `true` if the pause under way is to end when the drain begins. This happens only
    /// once.
    pub(super) fn may_be_shortened(&self) -> bool {
        self.paused_until.is_some() && self.drain == Drain::NotYet
    }

    /// Notes that the drain has begun, and ends the pause under way.
    pub(super) fn shorten(&mut self) {
        self.drain = Drain::Shortened;
        self.paused_until = None;
    }

    /// Ends the pause, because its time is over or because what the output waited for is there.
    pub(super) fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Notes that an attempt failed, and that the consumer asked for a pause of `asked` (`None`:
    /// for no pause). Returns the pause from now on.
    pub(super) fn failed(&mut self, asked: Option<Duration>) -> Duration {
        let now = Instant::now();
        let until = match self.paused_until {
            Some(until) => asked.map_or(until, |asked| until.max(now + asked)),
            None => now + self.next_wait(asked),
        };
        self.attempts = Attempts::OneByOne;
        self.paused_until = Some(until);
        until.saturating_duration_since(now)
    }

    /// A round of suspects is over: begins a pause. Returns how long it is.
    pub(super) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.next_wait(asked);
        self.paused_until = Some(Instant::now() + wait);
        wait
    }

    fn next_wait(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.retry.pause(asked);
        if self.draining.is_cancelled() { wait.min(DRAIN_PAUSE_MAX) } else { wait }
    }

    /// Notes that the consumer accepted something. The next pause is a short one again.
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

    /// Notes that the connection broke after it had lasted, or had accepted something. The next
    /// pause is a short one again.
    pub(super) fn broke_after_use(&mut self) {
        self.retry.reset();
    }

    /// Notes that the connection broke before anything was accepted on it.
    pub(super) fn broke_at_once(&mut self) {
        self.connections = Connections::Unproven;
    }

    /// Returns `true` if the connection has yet to prove that the consumer is up.
    pub(super) fn is_unproven(&self) -> bool {
        self.connections == Connections::Unproven
    }

    /// Returns `true` if only one attempt at a time is made.
    pub(super) fn is_serial(&self) -> bool {
        self.attempts == Attempts::OneByOne
    }
}

#[cfg(test)]
mod tests;
