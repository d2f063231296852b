//! The orders that a delivery obeys, and the state that it hands to the delivery that replaces it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::checkpoints::Published;
use crate::filter::Seen;
use crate::tap::Taps;
use queue::{Claim, Cursor};

/// The state that a delivery hands over to the next one, which sends each unanswered event again.
pub struct HandOver {
    /// The output's position in the queue.
    pub cursor: Cursor,
    /// The claims to be sent again, in the order of the queue. Empty if `cursor` was set back.
    pub claims: Vec<Claim>,
    /// The events that the output has set aside.
    pub aside: Aside,
    /// The filter's memory of sent events, if it removes duplicates and its memory is complete.
    pub seen: Option<Seen>,
}

impl HandOver {
    /// Makes the state of an output's first delivery.
    pub fn begin(cursor: Cursor) -> Self {
        let aside = Aside::new(&cursor);
        Self { cursor, claims: Vec::new(), aside, seen: None }
    }

    /// Removes the output from the queue ([`Cursor::leave`]). Returns the number of its lost
    /// events.
    pub async fn leave(self) -> u64 {
        let lost = self.cursor.leave();
        self.aside.clear().await;
        lost
    }
}

/// The orders that a delivery obeys: each is given by cancelling its token.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process will end soon: the delivery still sends events, and its pauses are short, so
    /// that a consumer that works again is noticed in time.
    pub draining: CancellationToken,
    /// The process ends now: the delivery stops at once.
    pub stop: CancellationToken,
    /// The delivery returns a [`HandOver`]: another one replaces it, or a reload removed the
    /// output.
    pub retire: CancellationToken,
    /// The newest checkpoint of the evidence; `None` if the relay records no evidence.
    pub checkpoints: Option<Published>,
    /// The taps that see the events that leave; `None` if nobody can open a tap.
    pub taps: Option<Arc<Taps>>,
}
