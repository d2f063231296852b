//! The task of one output: it runs one delivery after another.

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use base::lock::lock;
use delivery::{HandOver, Orders, Prepared};
use queue::Cursor;

/// The reason why an output's task has ended.
pub(super) enum Ended {
    /// The task was told to end, at the end of the process.
    Stopped,
    /// A reload has removed the output. The events that it had not delivered were counted as lost.
    Left,
}

/// The next step of an output's task after its present delivery has ended.
enum Next {
    /// The task runs this delivery, which has the new settings of the output. Cancelling the token
    /// ends the delivery.
    Replace(Box<Prepared>, CancellationToken),
    /// A reload has removed the output: the task ends.
    Leave,
}

/// Holds the next order to an output's task. A later order replaces one that was not taken yet.
pub(super) struct Inbox {
    state: Mutex<InboxState>,
}

struct InboxState {
    next: Option<Next>,
    /// Cancelling this token ends the output's newest delivery: the one in `next` if there is one,
    /// otherwise the one that runs.
    retire: CancellationToken,
}

impl Inbox {
    pub(super) fn new(retire: CancellationToken) -> Self {
        Self { state: Mutex::new(InboxState { next: None, retire }) }
    }

    /// Tells the task to end its delivery, and then to run `prepared`.
    pub(super) fn replace(&self, prepared: Prepared) {
        let retire = CancellationToken::new();
        let mut state = lock(&self.state);
        state.next = Some(Next::Replace(Box::new(prepared), retire.clone()));
        std::mem::replace(&mut state.retire, retire).cancel();
    }

    pub(super) fn leave(&self) {
        let mut state = lock(&self.state);
        state.next = Some(Next::Leave);
        state.retire.cancel();
    }

    fn take(&self) -> Option<Next> {
        lock(&self.state).next.take()
    }
}

/// Runs one delivery after another, until the output is stopped or removed. `Err` if the output
/// cannot continue.
pub(super) async fn deliver(
    mut prepared: Prepared,
    cursor: Cursor,
    mut orders: Orders,
    inbox: Arc<Inbox>,
) -> Result<Ended, String> {
    let mut begin = HandOver::begin(cursor);
    loop {
        let Some(left) = prepared.run(begin, orders.clone()).await? else {
            return Ok(Ended::Stopped);
        };
        match inbox.take() {
            Some(Next::Replace(next, retire)) => {
                (prepared, orders.retire, begin) = (*next, retire, left);
            }
            // A delivery retires only after a message in the inbox, so `None` does not occur.
            Some(Next::Leave) | None => {
                left.leave().await;
                return Ok(Ended::Left);
            }
        }
    }
}
