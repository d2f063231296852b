//! The facts about an output that both kinds of queue keep next to its claims: its name and
//! metrics, the start of its counters, and its losses when it leaves or its events are dropped.

use std::collections::HashMap;

use super::contract::Backlog;
use base::position::Position;
use config::WhenFull;
use telemetry::{Dropped, Loss, OutputMetrics, QueueMetrics};

/// An output, as the caller describes it to the queue.
#[derive(Clone)]
pub struct Output {
    /// The name in the config.
    pub name: String,
    /// `true` if events are kept until this output has finished them or `drop_oldest` drops them,
    /// `false` if they are kept for it only until their room is needed.
    pub required: bool,
    /// The counters and gauges of the output's events.
    pub metrics: OutputMetrics,
    /// `Some` for the evidence recorder: the first position that the recorder needs. Events are
    /// kept for the recorder as for an optional output, and it gets events even while the relay
    /// drains. In a queue in files its cursor begins with the segment of this position. The
    /// recorder is not in the list of outputs, the metrics or the cursors file.
    pub recorder: Option<Position>,
}

impl Output {
    pub(super) fn is_recorder(&self) -> bool {
        self.recorder.is_some()
    }

    fn drops(&self, events: u64) {
        let loss = if self.required { Loss::DropOldest } else { Loss::NotRequired };
        self.metrics.lose(loss, events);
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
    pub(super) fn show_aside(&self, events: u64) {
        self.metrics.aside.set(events as f64);
    }

    /// Tells the telemetry, for its log lines, whether events are kept until this output has them.
    pub(super) fn show_keeping(&self, when_full: WhenFull) {
        self.metrics.losses.keep(self.required && when_full == WhenFull::Reject);
    }
}

/// The count of the events that outputs lose by one drop of a batch or a segment.
///
/// Each output counts its own loss. The queue counts an event only once, even if several required
/// outputs lose it. The losses usually overlap, because an output loses the end of the dropped
/// range, so the queue counts the largest one. Losses of optional outputs do not count for the
/// queue.
#[derive(Default)]
pub(super) struct DropCount {
    missed: u64,
}

impl DropCount {
    pub(crate) fn lose(&mut self, output: &Output, events: u64) {
        output.drops(events);
        if output.required {
            self.missed = events.max(self.missed);
        }
    }

    /// Adds the loss of the required outputs to the queue's counter.
    pub(crate) fn count(self, metrics: &QueueMetrics) {
        metrics.dropped.of(Dropped::Oldest).increment(self.missed);
    }
}

/// The outputs that have left, by name, with the number of events in their counters. The counters
/// of a later output of the same name continue from there.
#[derive(Default)]
pub(super) struct Departed(HashMap<String, u64>);

impl Departed {
    /// Returns the gauge `output_start_events` of an output that joins after `accepted` events and
    /// gets none of them: the number that its counters continue from, minus `accepted`. The number
    /// of accepted events plus the gauge is then always the output's counters plus its backlog.
    pub(crate) fn start(&self, name: &str, accepted: u64) -> i64 {
        signed(self.0.get(name).copied().unwrap_or(0)) - signed(accepted)
    }

    /// Removes an output and returns its number of lost events. If `counts` is `false`, no event
    /// was meant for it, and the gauge `output_start_events` is lowered by `backlog`.
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

    /// Records that an output without a backlog has left. `start` is `output_start_events`.
    pub(crate) fn leave(&mut self, name: &str, start: i64, accepted: u64) {
        let counted = start.saturating_add(signed(accepted));
        self.0.insert(name.to_owned(), u64::try_from(counted).unwrap_or(0));
    }
}

pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "a gauge; counts are below 2^52")]
pub(super) fn show_start(metrics: &OutputMetrics, start: i64) {
    metrics.backlog.start.set(start as f64);
}
