//! The word for what became of an event, in the evidence and where the queue counts.

use serde::{Deserialize, Serialize};

/// The reason why the consumer of an output did not get an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The output's filter does not let the event through.
    Dropped,
    /// The consumer has got the same event before.
    Duplicate,
    /// The output has lost the event.
    Lost,
    /// The event is in a file of dead letters.
    DeadLetter,
    /// The consumer does not take the event, although it takes others. The event has left the queue
    /// and is tried again from a place beside it. A later word of this position alone says what
    /// became of the event.
    Aside,
}
