//! The orders that a delivery obeys, the checkpoints that it hears of, and the state that it hands
//! to the delivery that replaces it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::checkpoints::Published;
use crate::filter::Seen;
use crate::tap::Taps;
use queue::{Claim, Cursor};

/// The state that a delivery hands over to the delivery that replaces it. The old delivery waits
/// for no answer any more: each event that has no answer is sent again by the new delivery.
pub struct HandOver {
    /// The output's place in the queue.
    pub cursor: Cursor,
    /// The claims that the new delivery must send again, in the order of the queue. Empty if
    /// `cursor` was set back to the first event that is not final: the new delivery then takes all
    /// these events from the queue again.
    pub claims: Vec<Claim>,
    /// The events that the output has set aside.
    pub aside: Aside,
    /// The filter's memory of the events that were sent. `None` if no filter removes duplicates, or
    /// if the memory is not complete: the new delivery then rebuilds it from the queue.
    pub seen: Option<Seen>,
}

impl HandOver {
    /// Makes the state of an output's first delivery, which begins at `cursor`.
    pub fn begin(cursor: Cursor) -> Self {
        let aside = Aside::new(&cursor);
        Self { cursor, claims: Vec::new(), aside, seen: None }
    }

    /// Removes the output from the queue ([`Cursor::leave`]). Returns the number of events that are
    /// lost for it: those that it has not finished, and those that it has set aside.
    pub async fn leave(self) -> u64 {
        let lost = self.cursor.leave();
        self.aside.clear().await;
        lost
    }
}

/// The orders that a delivery obeys, and what the relay shares with it. Each order is a token;
/// cancelling the token gives the order.
#[derive(Clone, Default)]
pub struct Orders {
    /// The order to drain. The process is about to end; until then, the delivery continues to send
    /// the events of the queue. A pause under way ends, and later pauses are short, so that the
    /// delivery notices in time that a consumer works again.
    pub draining: CancellationToken,
    /// The process ends now: the delivery stops at once.
    pub stop: CancellationToken,
    /// Another delivery is to replace this one, or a reload has removed the output: the delivery
    /// ends and returns a [`HandOver`].
    pub retire: CancellationToken,
    /// The newest checkpoint of the evidence, for outputs that send checkpoints. `None` if the
    /// relay records no evidence.
    pub checkpoints: Option<Published>,
    /// The taps that are shown the events that leave. `None` if nobody can open a tap.
    pub taps: Option<Arc<Taps>>,
}
