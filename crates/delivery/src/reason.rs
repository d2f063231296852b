//! The reason why events are given up, for the counters, the log and the dead letters.

use std::sync::Arc;

use telemetry::Cause;

#[derive(Debug, Clone)]
pub(crate) struct Reason {
    /// The label of the counter of lost events.
    pub cause: Cause,
    /// The text for the log and the dead letters.
    pub text: Arc<str>,
}

impl Reason {
    pub(crate) fn new(cause: Cause, text: &str) -> Self {
        Self { cause, text: Arc::from(text) }
    }

    /// Makes the reason for an event that is set aside and can't be read.
    pub(crate) fn unreadable(why: &str) -> Self {
        Self::new(Cause::Unreadable, why)
    }
}
