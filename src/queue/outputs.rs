//! What both kinds of queue note of an output besides its claims: which output it is, what its
//! counters began with, and what it loses when it leaves or when its events are dropped.

use std::collections::HashMap;
use std::time::Duration;

use super::contract::Backlog;
use crate::config::WhenFull;
use crate::telemetry::Loss;
use crate::telemetry::OutputMetrics;
use crate::telemetry::QueueMetrics;

/// An output that gets a cursor in the queue.
#[derive(Clone)]
pub struct Output {
    /// The output's name in the config.
    pub name: String,
    /// `true`: events are kept until this output has them. `false`: they are kept for this output
    /// only as long as nothing else needs the room.
    pub required: bool,
    /// The counters and gauges of the output's events.
    pub metrics: OutputMetrics,
    /// How long after their last write segments are kept although all outputs have finished them,
    /// unless the room is needed. When the output starts again, it reads in them what it has sent.
    pub keeps: Duration,
}

impl Output {
    /// Counts events that the output loses because the queue needed their room.
    fn drops(&self, events: u64) {
        let loss = if self.required { Loss::DropOldest } else { Loss::NotRequired };
        self.metrics.lose(loss, events);
    }

    /// Tells the output's report of losses whether the queue keeps events until the output has
    /// them. While the output is down, the log says which.
    pub(super) fn show_keeping(&self, when_full: WhenFull) {
        self.metrics.losses.keep(self.required && when_full == WhenFull::Reject);
    }
}

/// Counts what outputs lose by one drop: of a record in memory, or of a segment.
///
/// Each output counts its own loss. The queue counts an event once, however many required outputs
/// lose it: all of them have the end of what is dropped before them, so the largest of their losses
/// is the number of events. What only optional outputs lose does not count for the queue.
#[derive(Default)]
pub(super) struct DropCount {
    missed: u64,
}

impl DropCount {
    /// Adds the number of events that an output loses by the drop.
    pub(super) fn lose(&mut self, output: &Output, events: u64) {
        output.drops(events);
        if output.required {
            self.missed = events.max(self.missed);
        }
    }

    /// Counts the events that required outputs have lost as dropped from the queue, each event
    /// once.
    pub(super) fn count(self, metrics: &QueueMetrics) {
        metrics.dropped.drop_oldest.increment(self.missed);
    }
}

/// Returns the value of `queue.when_full` as the config writes it.
pub(super) fn written(when_full: WhenFull) -> String {
    match when_full {
        WhenFull::Reject => "reject",
        WhenFull::DropOldest => "drop_oldest",
        WhenFull::DropNewest => "drop_newest",
    }
    .to_owned()
}

/// The events on the counters of outputs that have left, by name. When an output of the same name
/// joins later, its counters go on from there. There is one number for a name, however often
/// outputs of that name come and go.
#[derive(Default)]
pub(super) struct Departed(HashMap<String, u64>);

impl Departed {
    /// Returns the value that `output_start_events` of an output that joins now must have, so that
    /// accepted events and the output's counters add up. It is the number of events on the counters
    /// from before, minus the `accepted` events, of which the output gets none.
    pub(super) fn start(&self, name: &str, accepted: u64) -> i64 {
        signed(self.0.get(name).copied().unwrap_or(0)) - signed(accepted)
    }

    /// The number of names.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes an output that has not finished `backlog` events. If `counts` is `true`, these
    /// events are lost for the output. If not, they were never meant for it, and its
    /// `output_start_events` is corrected. Sets the output's gauges, and returns the number of lost
    /// events.
    pub(super) fn remove(
        &mut self,
        output: &Output,
        start: i64,
        backlog: u64,
        counts: bool,
        accepted: u64,
    ) -> u64 {
        let lost = if counts { backlog } else { 0 };
        output.metrics.lose(Loss::Removed, lost);
        Backlog::default().show(&output.metrics);
        let start = start - signed(backlog - lost);
        show_start(&output.metrics, start);
        self.leave(&output.name, start, accepted);
        lost
    }

    /// Notes that an output has left. `start` is the value of its `output_start_events`; it has no
    /// backlog any more.
    pub(super) fn leave(&mut self, name: &str, start: i64, accepted: u64) {
        let counted = start.saturating_add(signed(accepted));
        self.0.insert(name.to_owned(), u64::try_from(counted).unwrap_or(0));
    }
}

/// Returns the count as a signed number. Counts of events are far below 2^63.
pub(super) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Sets the output's gauge `output_start_events`.
#[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
pub(super) fn show_start(metrics: &OutputMetrics, start: i64) {
    metrics.start.set(start as f64);
}
