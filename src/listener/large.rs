//! A body that is too large for memory: decoded in pieces while it arrives, and stored as lines in
//! a file of the queue.
//!
//! Memory holds a piece and the largest event. A queue in memory has no such file: there a body is
//! held and decoded whole.
//!
//! All of it is work for threads that may block: [`Large::push`] decodes megabytes and writes to
//! the disk.

use bytes::Bytes;

use crate::audit::Invalid;
use crate::audit::LevelCounts;
use crate::audit::pieces::Pieces;
use crate::audit::pieces::Store;
use crate::queue::Append;
use crate::queue::Incoming;
use crate::queue::Queue;
use crate::queue::Refused;
use crate::queue::Ticket;

/// Bodies up to 16 MiB are decoded whole, in place, also with a directory.
const WHOLE_MAX: u64 = 16 * 1024 * 1024;

/// Bytes after which a large body is cut at the next end of an event. One piece becomes one record
/// of the durable queue, and a cursor that reads a record in parts checks all of it for each part,
/// so records must not be much larger.
const PIECE_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes of a large body that are collected for one step off the runtime's threads.
const STEP_BYTES: u64 = 1024 * 1024;

/// Sizes from which a body is treated as large, and in which it is then read; smaller ones where
/// `limits.max_in_flight` is small.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of the largest body that is decoded whole.
    pub(super) whole: usize,
    /// Bytes that are collected for one step.
    pub(super) step: usize,
    piece: usize,
}

impl Sizes {
    pub(super) fn new(max_in_flight: u64) -> Self {
        let part = |bytes: u64, parts: u64| {
            usize::try_from(bytes.min(max_in_flight / parts)).unwrap_or(usize::MAX)
        };
        Self { whole: part(WHOLE_MAX, 4), step: part(STEP_BYTES, 8), piece: part(PIECE_BYTES, 8) }
    }
}

/// Why a large body was not taken.
pub(super) enum Stopped {
    /// The body is no list of audit events.
    Invalid(Invalid),
    /// The queue does not store it.
    Refused(Refused),
}

impl From<Invalid> for Stopped {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// A large body on its way in.
pub(super) struct Large {
    pieces: Pieces,
    lines: Lines,
}

/// Where the lines go.
struct Lines(Incoming);

impl Store for Lines {
    type Error = Stopped;

    fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Stopped> {
        self.0.store(lines, events).map_err(Stopped::Refused)
    }
}

impl Large {
    /// An empty body, whose lines the queue takes.
    pub(super) fn new(sizes: Sizes, incoming: Incoming) -> Self {
        Self { pieces: Pieces::new(sizes.piece), lines: Lines(incoming) }
    }

    /// Bytes of memory that it takes.
    pub(super) fn held(&self) -> usize {
        self.pieces.held()
    }

    /// Takes the next bytes. Blocks.
    ///
    /// # Errors
    ///
    /// The body is not taken.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.pieces.push(bytes, &mut self.lines)
    }

    /// The body has ended. Blocks until its lines are safe.
    ///
    /// # Errors
    ///
    /// The body is not taken.
    pub(super) fn end(mut self) -> Result<Whole, Stopped> {
        let (events, levels) = self.pieces.end(&mut self.lines)?;
        let Lines(mut incoming) = self.lines;
        incoming.sync().map_err(Stopped::Refused)?;
        Ok(Whole { events, bytes: incoming.bytes(), batch: Batch::Disk(incoming, levels) })
    }
}

/// A body that has come whole, and is valid.
pub(super) struct Whole {
    pub(super) events: u64,
    /// Bytes of its lines.
    pub(super) bytes: u64,
    batch: Batch,
}

enum Batch {
    Memory(Append),
    Disk(Incoming, LevelCounts),
}

impl Whole {
    pub(super) fn in_memory(lines: Bytes, events: u64, levels: LevelCounts) -> Self {
        let bytes = lines.len() as u64;
        Self { events, bytes, batch: Batch::Memory(Append { lines, events, levels }) }
    }

    /// Hands it to the queue.
    pub(super) fn append(self, queue: &Queue) -> Result<Ticket, Refused> {
        match self.batch {
            Batch::Memory(append) => queue.append(append),
            Batch::Disk(incoming, levels) => queue.append_incoming(incoming, levels),
        }
    }
}
