//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor for each output.
//!
//! It knows no JSON, HTTP or audit: lines and counts in, lines out. Positions number the events; a batch may be cut at
//! any line. A batch is held until every cursor has finished it. [`Queue::append`] alone decides whether there is room,
//! and never waits for it.
//!
//! An output *claims* what it takes ([`Cursor::next`]), and for each claim says what became of it:
//! [`Cursor::finish`] (final), [`Cursor::release`] (not on the wire any more, to be sent again) and then
//! [`Cursor::retake`]. What is on the wire is never dropped.

use bytes::Bytes;

use crate::audit::LevelCounts;

mod claims;
mod cursors;
mod disk;
mod memory;
mod segment;

pub use memory::Cursor;
pub use memory::Queue;
pub use memory::Ticket;

/// The number of an event: how many were accepted before it.
pub type Position = u64;

/// What is appended.
#[derive(Debug, Clone)]
pub struct Append {
    /// Each event followed by one `\n`.
    pub lines: Bytes,
    /// How many.
    pub events: u64,
    /// Counted when the batch is.
    pub levels: LevelCounts,
}

/// There is no room: the sender keeps the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Full;

/// Upper bounds of what [`Cursor::next`] takes. One event is taken whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Bytes of lines.
    pub bytes: u64,
    /// Events.
    pub events: u64,
}

/// What an output has taken: `start..end`, not overlapping any other claim of its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// First position.
    pub start: Position,
    /// Behind the last.
    pub end: Position,
}

/// Claimed events.
#[derive(Debug, Clone)]
pub struct Batch {
    /// For the answer.
    pub claim: Claim,
    /// Number of events; positions may have gaps.
    pub events: u64,
    /// Bytes of all pieces.
    pub bytes: u64,
    /// Whole lines, in order, each ended by `\n`. Not empty.
    pub pieces: Vec<Bytes>,
}

/// What a cursor has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// Events.
    pub events: u64,
    /// Bytes of their lines.
    pub bytes: u64,
    /// Seconds since the oldest of them was accepted; 0 where there are none.
    pub lag: f64,
}
