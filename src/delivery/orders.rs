//! The orders that a delivery hears, and what it leaves to the delivery that takes its place.

use tokio_util::sync::CancellationToken;

use crate::filter::Seen;
use crate::queue::Claim;
use crate::queue::Cursor;

/// What a delivery leaves to the delivery that takes its place. None of the claims is on the wire.
pub struct HandOver {
    /// The output's place in the queue.
    pub cursor: Cursor,
    /// The claims that are not final although claims after them in the queue are.
    pub claims: Vec<Claim>,
    /// The filter's memory of the events that have left; `None` without deduplication.
    pub seen: Option<Seen>,
}

/// The orders that a delivery obeys; each is given by cancelling its token.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process is about to end, and the delivery still tries to deliver what it has: pauses are
    /// short from now on.
    pub draining: CancellationToken,
    /// The process ends now: the delivery stops at once.
    pub stop: CancellationToken,
    /// Another delivery is to take this one's place: the delivery ends and leaves a [`HandOver`].
    pub retire: CancellationToken,
}
