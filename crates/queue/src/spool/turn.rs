//! The parts that the writer thread and the upkeep thread share: how they wait for work, and what
//! happens after a panic.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;

pub(super) enum Turn<Action> {
    Do(Action),
    /// Wait until the thread is woken, or until this time if there is one.
    Wait(Option<Instant>),
    /// End, because the queue is closed.
    End,
}

/// Returns the time to wait: at most an hour, so that the addition to the clock can't overflow.
pub(super) fn wait(until: Option<Instant>) -> Duration {
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    left.min(Duration::from_secs(3600))
}

/// A guard that notices a panic of the thread that owns it. The queue then refuses all batches, so
/// that no sender waits for this thread, and the relay ends.
pub(super) struct NoticePanic(pub(super) Arc<Shared>);

impl Drop for NoticePanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.lock();
            state.writing.health.error =
                Some("the thread that writes the queue has panicked, restart the relay".to_owned());
            state.writing.waiting.clear();
            state.writing.accounting.clear_plans(0);
            drop(state);
            self.0.panicked.cancel();
        }
    }
}
