//! The facts about an output that both kinds of queue note besides its claims: which output it is,
//! what its counters began with, and what it loses when it leaves or when its events are dropped.

use std::collections::HashMap;
use std::time::Duration;

use super::contract::Backlog;
use base::position::Position;
use config::WhenFull;
use telemetry::{Loss, OutputMetrics, QueueMetrics};

/// An output, as the queue knows it. It gets a cursor.
#[derive(Clone)]
pub struct Output {
    /// The output's name in the config.
    pub name: String,
    /// `true`: events are kept until this output has them. `false`: they are kept for this output
    /// only as long as their room is not needed for new events.
    pub required: bool,
    /// The counters and gauges of the output's events.
    pub metrics: OutputMetrics,
    /// The time for which segments are kept after the queue has stopped writing to them, even if
    /// all outputs have finished their events. For segments that were found at the start of the
    /// process, this time begins at the start. Segments are deleted earlier if their room is
    /// needed. After a restart the output reads in them which events it has already sent.
    pub keeps: Duration,
    /// `None` for an output. Otherwise this is the reader that records the evidence, and the value
    /// is the first position that it needs. The reader keeps events like an optional output. In a
    /// queue in files it begins with the segment that holds this position, or with the oldest
    /// segment if that one is gone. It continues while the relay drains. It is not in the list of
    /// outputs, not in the metrics, and not in the cursors file.
    pub recorder: Option<Position>,
}

impl Output {
    /// Returns `true` if this is the reader that records the evidence.
    pub(super) fn is_recorder(&self) -> bool {
        self.recorder.is_some()
    }

    /// Adds events to this output's counters of lost events. The queue has dropped these events
    /// because it needed their room.
    fn drops(&self, events: u64) {
        let loss = if self.required { Loss::DropOldest } else { Loss::NotRequired };
        self.metrics.lose(loss, events);
    }

    /// Shows how many events the output has set aside.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
    pub(super) fn show_aside(&self, events: u64) {
        self.metrics.aside.set(events as f64);
    }

    /// Tells the telemetry whether the queue keeps the events of this output until the output has
    /// them, or may drop them earlier. The log says so while the output is down. The queue keeps
    /// them if the output is required and a full queue refuses new batches (`when_full` is
    /// `reject`).
    pub(super) fn show_keeping(&self, when_full: WhenFull) {
        self.metrics.losses.keep(self.required && when_full == WhenFull::Reject);
    }
}

/// Counts the events that outputs lose when the queue drops something once: a batch in memory, or a
/// segment file.
///
/// Each output counts its own loss. The queue counts an event only once, even if several required
/// outputs lose it. As a rule each of them loses the last events of the dropped range, so the
/// number of different events is the largest of these losses. Events that only optional outputs
/// lose are not counted for the queue.
#[derive(Default)]
pub(super) struct DropCount {
    /// The largest number of events that one required output loses.
    missed: u64,
}

impl DropCount {
    /// Adds the number of events that an output loses by the drop.
    pub(crate) fn lose(&mut self, output: &Output, events: u64) {
        output.drops(events);
        if output.required {
            self.missed = events.max(self.missed);
        }
    }

    /// Adds the events that required outputs have lost to the queue's counter of dropped events,
    /// each event once.
    pub(crate) fn count(self, metrics: &QueueMetrics) {
        metrics.dropped.drop_oldest.increment(self.missed);
    }
}

/// The names of outputs that have left the queue, each with the number of events that the output's
/// counters show. When an output of the same name joins later, its counters continue from this
/// number. A name has one entry, even if outputs of this name leave several times.
#[derive(Default)]
pub(super) struct Departed(HashMap<String, u64>);

impl Departed {
    /// Returns the value of the gauge `output_start_events` for an output that joins now. The value
    /// is chosen so that the number of accepted events plus the gauge equals the output's counters
    /// plus its backlog. If an earlier output with this name has left the queue, its counters
    /// continue. The value is the number of events in these counters (0 if there are none), minus
    /// `accepted`. `accepted` is the number of events accepted so far, none of which this output
    /// gets.
    pub(crate) fn start(&self, name: &str, accepted: u64) -> i64 {
        signed(self.0.get(name).copied().unwrap_or(0)) - signed(accepted)
    }

    /// Removes an output that has not finished `backlog` events, and returns the number of events
    /// that are counted as lost for it. If `counts` is `true`, all events of the backlog are
    /// counted as lost. If `counts` is `false`, none is counted as lost, because the output was
    /// never meant to get these events. The gauge `output_start_events` of the output is then
    /// lowered by their number. In both cases the backlog gauges of the output are set to 0.
    pub(crate) fn remove(
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

    /// Notes that an output has left the queue, with no backlog any more. `start` is the value of
    /// its gauge `output_start_events`, and `accepted` is the number of events accepted so far.
    pub(crate) fn leave(&mut self, name: &str, start: i64, accepted: u64) {
        let counted = start.saturating_add(signed(accepted));
        self.0.insert(name.to_owned(), u64::try_from(counted).unwrap_or(0));
    }
}

/// Converts a number of events to a signed number. Numbers of events are far below 2^63.
pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Sets the gauge `output_start_events` of an output.
#[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
pub(super) fn show_start(metrics: &OutputMetrics, start: i64) {
    metrics.backlog.start.set(start as f64);
}
