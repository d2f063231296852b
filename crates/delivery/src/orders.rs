//! The orders that a delivery obeys, and the state that it hands to the delivery that replaces it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::checkpoints::Published;
use crate::filter::Seen;
use crate::tap::Taps;
use queue::{Claim, Cursor};

/// The state that a delivery hands to the next one. Events without a response are sent again.
pub struct HandOver {
    /// The output's place in the queue.
    pub cursor: Cursor,
    /// The claims to be sent again, in the order of the queue. Empty if `cursor` was set back.
    pub claims: Vec<Claim>,
    /// The events that the output has set aside.
    pub aside: Aside,
    /// The filter's memory of sent events. `None` if it is incomplete, or if duplicates are sent.
    pub seen: Option<Seen>,
}

impl HandOver {
    /// Makes the state for the first delivery of an output.
    pub fn begin(cursor: Cursor) -> Self {
        let aside = Aside::new(&cursor);
        Self { cursor, claims: Vec::new(), aside, seen: None }
    }

    /// Removes the output from the queue ([`Cursor::leave`]). Returns the number of events that the
    /// output loses.
    pub async fn leave(self) -> u64 {
        let lost = self.cursor.leave();
        self.aside.clear().await;
        lost
    }
}

/// The orders that a delivery obeys (an order is given by cancelling its token), and the relay's
/// checkpoints and taps.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process will end soon: the delivery still sends events, and its pauses are short, so
    /// that a consumer that works again is noticed in time.
    pub draining: CancellationToken,
    /// `true` if the next process sends what this one leaves: the queue has a directory that is not
    /// ephemeral.
    pub outlives: bool,
    /// The process ends now: the delivery closes its connection and sends nothing more.
    pub stop: CancellationToken,
    /// The delivery must return a [`HandOver`], because another delivery replaces it or a reload
    /// has removed the output.
    pub retire: CancellationToken,
    /// The newest checkpoint of the evidence; `None` if the relay records no evidence.
    pub checkpoints: Option<Published>,
    /// The taps that see the events that leave; `None` if nobody can open a tap.
    pub taps: Option<Arc<Taps>>,
}
