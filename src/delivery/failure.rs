//! Why an attempt to reach a consumer failed, and what the failure says about the next attempt.

use std::fmt;
use std::time::Duration;

use crate::telemetry::AttemptError;

/// The longest pause that a consumer's `Retry-After` is granted. A consumer that asks for more has
/// most likely lost its clock.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);

/// Why an attempt failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The label `reason` of the counter of failed attempts.
    pub(crate) reason: AttemptError,
    /// The text for the log and `/status`. It names scheme, host and port, never a path or query,
    /// because these may hold a secret.
    pub(crate) message: String,
    /// The pause that the consumer asked for; `None` if it did not ask.
    pub(crate) retry_after: Option<Duration>,
    /// `true` if another address is left that may be tried at once, without a pause.
    pub(crate) elsewhere: bool,
}

impl Failure {
    /// A failure after which the delivery pauses as `retry` in the config says.
    pub(crate) fn new(reason: AttemptError, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None, elsewhere: false }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a probe of one address failed. A probe changes nothing, so its caller only reports the
/// error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The name has no address, the connection or the TLS handshake failed, or the consumer refused
    /// this client. The text names the address as the config does.
    #[error("{0}")]
    Unreachable(String),
}

impl From<Failure> for ProbeError {
    fn from(failure: Failure) -> Self {
        Self::Unreachable(failure.message)
    }
}

/// Why a delivery ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The output cannot go on in this process, for example because nobody reads stdout any more.
    /// The process must end: the relay drains the other outputs and exits with 1.
    #[error("{0}")]
    Fatal(String),
}
