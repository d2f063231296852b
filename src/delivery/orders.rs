//! The orders that a delivery hears, and what it leaves to the delivery that takes its place.

use tokio_util::sync::CancellationToken;

use crate::filter::Seen;
use crate::queue::Claim;
use crate::queue::Cursor;

/// What a delivery leaves when another takes its place. Nothing of it is on the wire.
pub struct HandOver {
    /// The output's place in the queue.
    pub cursor: Cursor,
    /// The claims that are not final, if claims after them are.
    pub claims: Vec<Claim>,
    /// The filter's memory of the events that have left; `None` without deduplication.
    pub seen: Option<Seen>,
}

/// The orders that a delivery hears.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process ends, and first tries to deliver what it has: pauses are short from now on.
    pub draining: CancellationToken,
    /// The process ends now.
    pub stop: CancellationToken,
    /// Another delivery is to take this one's place.
    pub retire: CancellationToken,
}
