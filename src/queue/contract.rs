//! The words of the contract between the queue and the others: batches that are appended and taken,
//! and the queue's answers. They are the same for the queue in memory and for the queue on disk.

use std::time::Duration;

use bytes::Bytes;

use crate::audit::LevelCounts;
use crate::position::Position;
use crate::telemetry::OutputMetrics;

/// A batch that is appended: the events of one request.
#[derive(Debug, Clone)]
pub struct Append {
    /// The events of the batch, each followed by one `\n`.
    pub lines: Bytes,
    /// The number of events, which is the number of lines.
    pub events: u64,
    /// The number of the batch's events of each audit level. The metrics count them when the batch
    /// is accepted.
    pub levels: LevelCounts,
}

/// Why a batch was not taken. The sender still has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue has no room for the batch.
    #[error("the queue is full")]
    Full,
    /// The disk refuses to store the batch, or does not answer.
    #[error("the queue's disk does not store the events")]
    Disk,
    /// With `acknowledge = "delivered"`: a required output that should get the batch has ended, or
    /// was removed, and will never acknowledge it.
    #[error("no output will acknowledge the events")]
    Undelivered,
}

/// Why an output could not join. The queue is then as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// An output of the same name is in the queue, and has not left.
    #[error("an output of this name is in the queue already: it has to leave first")]
    Taken,
    /// The cursors file has no room for another output.
    #[error("the queue's directory has room for {0} outputs: remove one first")]
    TooMany(usize),
    /// The cursors file could not be written and synced in time.
    #[error(
        "the queue's directory has not stored its place within {} s ({why}): repair the disk, then reload again",
        .within.as_secs()
    )]
    Disk {
        /// How long the queue has tried to write the file.
        within: Duration,
        /// The disk's error, as far as it is known.
        why: String,
    },
    /// The queue is closed and takes nothing more.
    #[error("the queue has ended")]
    Closed,
}

/// The result of [`Cursor::redeliver`](super::Cursor::redeliver).
#[derive(Debug)]
pub enum Redelivery {
    /// The claim is on the wire again, and these are its lines.
    Batch(Batch),
    /// All events of the claim were dropped meanwhile. The claim does not exist any more.
    Gone,
    /// The lines have to be read from a file first. [`Cursor::readable`](super::Cursor::readable)
    /// reads them; then the caller calls [`Cursor::redeliver`](super::Cursor::redeliver) again.
    NotYet,
}

/// The most that [`Cursor::next`](super::Cursor::next) claims at once. One event is claimed
/// whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// The greatest number of bytes of lines in the claim.
    pub bytes: u64,
    /// The greatest number of events in the claim.
    pub events: u64,
}

/// A range of positions that an output has taken from the queue: `start..end`. It overlaps no other
/// claim of the same cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The first position of the claim.
    pub start: Position,
    /// The position after the last position of the claim.
    pub end: Position,
}

/// Tests write positions as numbers.
#[cfg(test)]
impl Claim {
    pub(crate) fn of(start: u64, end: u64) -> Self {
        Self { start: Position::new(start), end: Position::new(end) }
    }

    pub(crate) fn numbers(self) -> std::ops::Range<u64> {
        self.start.get()..self.end.get()
    }
}

/// The events of a claim, as the output gets them.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The claim, by which the output names the batch to the queue.
    pub claim: Claim,
    /// The number of events. It is smaller than the number of positions in the claim if some of its
    /// events were dropped.
    pub events: u64,
    /// The number of bytes of all pieces.
    pub bytes: u64,
    /// The lines of the batch, in order and in one or more pieces. A piece has whole lines, each
    /// ended by `\n`.
    pub pieces: Vec<Bytes>,
    /// The origin of each piece, in the same order. Empty unless
    /// [`Cursor::tell_origins`](super::Cursor::tell_origins) has asked for origins.
    pub origins: Vec<Origin>,
}

/// Where a piece of a batch comes from. The lines of the piece have the positions from `first` on,
/// without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The position of the piece's first line.
    pub first: Position,
    /// How long ago the lines were accepted. With files it is measured by the wall clock, in
    /// milliseconds, because the time of acceptance outlives the process.
    pub age: Duration,
}

/// What became of the events of a final claim that the consumer did not get. An event is counted in
/// at most one of these fields; the consumer has all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disposition {
    /// Events that the consumer has refused for good, or that the output has given up. They count
    /// as lost for this output.
    pub lost: u64,
    /// Events that the output's filter keeps back.
    pub dropped: u64,
    /// Events that the consumer has got before, at an earlier position.
    pub duplicate: u64,
}

impl Disposition {
    /// Makes the disposition of a claim of which this many events are lost. The consumer has the
    /// other events.
    #[must_use]
    pub fn lost(events: u64) -> Self {
        Self { lost: events, ..Self::default() }
    }

    /// Adds the events of a final claim to the output's counters, each event once. `events`: the
    /// events that are left of the claim. If some were dropped from the queue meanwhile, they are
    /// counted already; the fields here may include them, and are then cut to what is left.
    pub(super) fn count(self, events: u64, metrics: &OutputMetrics) {
        let mut rest = events;
        for (counter, count) in [
            (&metrics.lost, self.lost),
            (&metrics.filtered.dropped, self.dropped),
            (&metrics.filtered.duplicate, self.duplicate),
        ] {
            let count = count.min(rest);
            rest -= count;
            counter.increment(count);
        }
        metrics.events.increment(rest);
    }
}

/// The events that an output has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// The number of events that are not finished.
    pub events: u64,
    /// The number of bytes of these events' lines.
    pub bytes: u64,
    /// Seconds since the oldest of these events was accepted; 0 if there are none.
    pub lag: f64,
}

impl Backlog {
    /// Sets the output's gauges to this backlog.
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub(super) fn show(&self, metrics: &OutputMetrics) {
        metrics.backlog_events.set(self.events as f64);
        metrics.backlog_bytes.set(self.bytes as f64);
        metrics.lag.set(self.lag);
    }
}
