//! The reason why an attempt to reach a consumer failed, and its meaning for the next attempt.

use std::fmt;
use std::time::Duration;

use telemetry::AttemptError;

/// The longest pause that a consumer can ask for with `Retry-After`. A longer one is cut to this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);

/// The reason why an attempt to deliver or to connect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The label `reason` of the counter of failed attempts.
    pub reason: AttemptError,
    /// The text for the log and `/status`. It may have the scheme, host and port of a URL, but
    /// never a path or query, which may hold a secret.
    pub message: String,
    /// The pause that the consumer asked for.
    pub retry_after: Option<Duration>,
    /// `true` if another address may be tried without a pause.
    pub elsewhere: bool,
    /// `true` if the events of the request may be the reason: the consumer had a connection, and
    /// turned the request down by a status, a close, silence, or an answer that can't be read.
    pub may_be_the_events: bool,
    /// `true` if the consumer may have stored the events: it said that it took the request, in
    /// words that can't be read, or an attempt to store an object had an unknown end.
    pub may_be_stored: bool,
}

impl Failure {
    /// Makes a failure after which the delivery pauses as the section `retry` of the config says.
    pub fn new(reason: AttemptError, message: impl Into<String>) -> Self {
        let was_reached = !matches!(reason, AttemptError::Resolve | AttemptError::Connect);
        let message = message.into();
        Self {
            reason,
            message,
            retry_after: None,
            elsewhere: false,
            may_be_the_events: was_reached,
            may_be_stored: false,
        }
    }

    /// Returns `true` if the consumer asks for a pause.
    pub(super) fn asks(&self) -> bool {
        self.retry_after.is_some() || self.reason == AttemptError::Status429
    }

    /// Notes that the events of the request are not the reason: for example, the consumer has not
    /// got it.
    #[must_use]
    pub fn not_the_events(self) -> Self {
        Self { may_be_the_events: false, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
