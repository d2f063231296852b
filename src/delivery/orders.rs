//! The orders that a delivery obeys, and the state that it hands to the delivery that replaces it.

use tokio_util::sync::CancellationToken;

use crate::filter::Seen;
use crate::queue::Claim;
use crate::queue::Cursor;

/// The state that a delivery hands to the delivery that replaces it. None of the claims is on the
/// wire (sent, without an answer).
pub struct HandOver {
    /// The output's place in the queue.
    pub cursor: Cursor,
    /// The claims (ranges of events) that the next delivery has to send again, in the order of the
    /// queue. Empty if `cursor` was set back to the first event that is not final (settled).
    pub claims: Vec<Claim>,
    /// The filter's memory of the events that were sent; `None` if the filter does not remove
    /// duplicates.
    pub seen: Option<Seen>,
}

/// The orders that a delivery obeys. Each order is a token; cancelling the token gives the order.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process is about to end, but the delivery still tries to deliver what the queue holds.
    /// From now on, pauses are short.
    pub draining: CancellationToken,
    /// The process ends now: the delivery stops at once.
    pub stop: CancellationToken,
    /// Another delivery is to replace this one: the delivery ends and returns a [`HandOver`].
    pub retire: CancellationToken,
}
