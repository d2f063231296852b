//! The reason why an attempt to reach a consumer failed, and its meaning for the next attempt.

use std::fmt;
use std::time::Duration;

use base::mutant;
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
    /// `true` after a server error (5xx), for the whole request or for an event of it. Usually the
    /// consumer is at fault, but a single event may trigger the error.
    pub server_error: bool,
}

impl Failure {
    /// Makes a failure after which the delivery pauses as the section `retry` of the config says.
    pub fn new(reason: AttemptError, message: impl Into<String>) -> Self {
        let server_error =
            mutant!("server-error-stops-the-output", reason == AttemptError::Status5xx, false);
        let message = message.into();
        Self { reason, message, retry_after: None, elsewhere: false, server_error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
