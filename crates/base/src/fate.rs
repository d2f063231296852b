//! The fate of an event that a consumer did not get, for the evidence and the queue's counters.

use serde::{Deserialize, Serialize};

/// The reason why the consumer of an output did not get an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The output's filter has removed the event.
    Dropped,
    /// The output's filter has removed the event, because an earlier event has the same bytes.
    Duplicate,
    /// The output has lost the event.
    Lost,
    /// The event is in a file of dead letters.
    DeadLetter,
    /// The event is set aside, and retried. A later entry for this position has the final result.
    Aside,
}
