//! What both kinds of queue note of an output besides its claims: which it is, what its counters began with, and what it
//! loses because it is optional.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::WhenFull;
use crate::telemetry::Loss;
use crate::telemetry::OutputMetrics;

/// An output that gets a place in the queue.
#[derive(Clone)]
pub struct Output {
    /// Its name in the config.
    pub name: String,
    /// Events are kept until it has them. Those of others only as long as nothing else needs the room.
    pub required: bool,
    /// Where what becomes of its events is counted.
    pub metrics: OutputMetrics,
    /// Files that all have finished are kept so long, unless their room is needed: it looks at what it has got, when it starts
    /// again.
    pub keeps: Duration,
}

impl Output {
    /// Counts what it loses because the room was needed.
    pub(super) fn drops(&self, events: u64) {
        let loss = if self.required { Loss::DropOldest } else { Loss::NotRequired };
        self.metrics.lose(loss, events);
    }

    /// Lets it know whether its events are kept until it has them, for what the log says while it
    /// is down.
    pub(super) fn show_keeping(&self, when_full: WhenFull) {
        self.metrics.losses.keep(self.required && when_full == WhenFull::Reject);
    }
}

/// The value as the config writes it.
pub(super) fn written(when_full: WhenFull) -> String {
    match when_full {
        WhenFull::Reject => "reject",
        WhenFull::DropOldest => "drop_oldest",
        WhenFull::DropNewest => "drop_newest",
    }
    .to_owned()
}

/// What the counters of outputs that have left show: they go on when one of the same name joins. One number for a name,
/// however often it comes and goes.
#[derive(Default)]
pub(super) struct Departed(HashMap<String, u64>);

impl Departed {
    /// What `output_start_events` of one that joins now has to show so that its events add up: of what was `accepted`
    /// before, it gets nothing.
    pub(super) fn start(&self, name: &str, accepted: u64) -> i64 {
        signed(self.0.get(name).copied().unwrap_or(0)) - signed(accepted)
    }

    /// Names.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// One leaves that had this start; it has no backlog any more.
    pub(super) fn leave(&mut self, name: &str, start: i64, accepted: u64) {
        let counted = start.saturating_add(signed(accepted));
        self.0.insert(name.to_owned(), u64::try_from(counted).unwrap_or(0));
    }
}

/// Counts of events are far below 2^63.
pub(super) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Shows `output_start_events`.
#[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
pub(super) fn show_start(metrics: &OutputMetrics, start: i64) {
    metrics.start.set(start as f64);
}
