//! The reason why events are given up.

use std::sync::Arc;

use telemetry::Cause;

/// The reason why events are given up, for the counters, the log and the dead letters.
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

    /// An event that was set aside can't be read.
    pub(crate) fn unreadable(why: &str) -> Self {
        Self::new(Cause::Unreadable, why)
    }
}
