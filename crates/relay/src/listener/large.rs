//! Decodes a large body piece by piece while it arrives, and stores its lines in a file of the
//! queue.
//!
//! After the first step, memory holds little more than one piece, or one larger event. Only a
//! durable queue has such a file. If the queue is in memory, every body is held and decoded whole.
//!
//! [`Large::push`] and [`Large::end`] run on threads that may block: they decode megabytes and
//! write to the disk.

use std::sync::Arc;

use audit::pieces::{Pieces, Store};
use audit::{Invalid, LevelCounts};
use base::mutant;
use queue::{Append, Incoming, Queue, Refused, Ticket};
use transform::volume::{Seen, Volume};

/// The largest body in bytes that a durable queue takes as one whole. A larger body is stored in
/// pieces. A queue in memory takes every body as one whole.
const WHOLE_MAX: u64 = 16 * 1024 * 1024;

/// The size in bytes of most pieces, unless a piece is a single larger event. Each piece becomes
/// one record of the durable queue. An output that reads a record in parts checks the whole record
/// for each part, so records must not be much larger.
const PIECE_BYTES: u64 = 2 * 1024 * 1024;

/// The maximum number of bytes of a large body that are decoded in each step but the first
/// ([`Sizes::step`]).
const STEP_BYTES: u64 = 1024 * 1024;

/// The sizes in bytes for decoding a large body. The constants of this file are upper limits:
/// `whole` is at most a quarter of `limits.max_in_flight`, and `step` and `piece` are at most an
/// eighth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) whole: usize,
    /// The bytes that are collected and then decoded in each step but the first.
    pub(super) step: usize,
    piece: usize,
    /// The maximum number of bytes that wait until their event is complete: `limits.max_body`, or
    /// `limits.max_in_flight` if that is less.
    waiting: usize,
}

impl Sizes {
    pub(super) fn new(max_body: u64, max_in_flight: u64) -> Self {
        let part = |bytes: u64, parts: u64| {
            usize::try_from(bytes.min(max_in_flight / parts)).unwrap_or(usize::MAX)
        };
        Self {
            whole: part(WHOLE_MAX, 4),
            step: part(STEP_BYTES, 8),
            piece: part(PIECE_BYTES, 8),
            waiting: part(max_body, 1),
        }
    }
}

pub(super) enum Stopped {
    /// The body is not JSON, has none of the accepted forms, or has parts that are not events.
    Invalid(Invalid),
    /// The queue could not store the lines.
    Refused(Refused),
}

impl From<Invalid> for Stopped {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// A large body that is arriving: the bytes that are not decoded yet, and the file for its lines.
pub(super) struct Large {
    pieces: Pieces,
    lines: Lines,
}

struct Lines {
    incoming: Incoming,
    volume: Arc<Volume>,
    seen: Seen,
}

impl Store for Lines {
    type Error = Stopped;

    fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Stopped> {
        self.volume.look(lines, None, events, &mut self.seen);
        self.incoming.store(lines, events).map_err(Stopped::Refused)
    }
}

impl Large {
    /// Makes the state of a large body, before its first byte. Its lines go to the file `incoming`.
    pub(super) fn new(sizes: Sizes, incoming: Incoming, volume: Arc<Volume>) -> Self {
        let lines = Lines { incoming, volume, seen: Seen::default() };
        Self { pieces: Pieces::new(sizes.piece, sizes.waiting), lines }
    }

    /// Returns the number of bytes of this body that are in memory here; see [`Pieces::held`].
    pub(super) fn held(&self) -> usize {
        mutant!("large-event-counts-twice", self.pieces.held(), 2 * self.pieces.held())
    }

    /// Takes the next bytes of the body, and decodes and stores the pieces that are complete.
    /// Blocks, because decoding takes long and the lines are written to the disk.
    ///
    /// # Errors
    ///
    /// The body is invalid, or the queue could not store its lines. The whole body is refused then.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.pieces.push(bytes, &mut self.lines)
    }

    /// Ends the body after its last byte: decodes the rest, stores the lines, and blocks until all
    /// lines are synced to the disk. Returns the body, ready to be appended to the queue.
    ///
    /// # Errors
    ///
    /// The body is invalid, or the queue could not store its lines. The whole body is refused then.
    pub(super) fn end(mut self) -> Result<Whole, Stopped> {
        let (events, levels) = self.pieces.end(&mut self.lines)?;
        let Lines { mut incoming, seen, .. } = self.lines;
        incoming.sync().map_err(Stopped::Refused)?;
        let bytes = incoming.bytes();
        Ok(Whole { events, bytes, seen, batch: Batch::Disk(incoming, levels) })
    }
}

/// A body that has arrived completely and is valid. Its lines can now be appended to the queue.
pub(super) struct Whole {
    pub(super) events: u64,
    /// The number of bytes that the lines of the body's events have.
    pub(super) bytes: u64,
    /// The samples of the lines, for the volume by cause.
    seen: Seen,
    batch: Batch,
}

enum Batch {
    Memory(Append),
    Disk(Incoming, LevelCounts),
}

impl Whole {
    pub(super) fn in_memory(batch: Append, volume: &Volume) -> Self {
        let Append { ref lines, ref list, events, .. } = batch;
        let (bytes, mut seen) = (lines.len() as u64, Seen::default());
        volume.look(lines, list.as_ref(), events, &mut seen);
        Self { events, bytes, seen, batch: Batch::Memory(batch) }
    }

    /// Appends the lines to the queue. Returns the ticket, with which the request waits for the
    /// acknowledgement, and the samples, which the caller then counts for the volume by cause.
    pub(super) fn append(self, queue: &Queue) -> Result<(Ticket, Seen), Refused> {
        let ticket = match self.batch {
            Batch::Memory(append) => queue.append(append),
            Batch::Disk(incoming, levels) => queue.append_incoming(incoming, levels),
        }?;
        Ok((ticket, self.seen))
    }
}
