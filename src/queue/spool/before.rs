//! The events that an output has got already and that are still in the files. The deduplication
//! window is rebuilt from them, because it is empty after a start.
//!
//! The reader reads on threads that may block, a few megabytes at a time, and changes nothing in
//! the queue. Nothing waits for the reader: files are deleted when no output needs them. Events
//! that are damaged, can't be read or are gone are skipped, and this is logged at `debug`. Events
//! that the output has lost or filtered away can't be told from the others.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::Shared;
use super::cursor::age;
use super::load;
use super::load::Job;
use super::load::Piece;
use super::load::Spot;
use super::now;
use crate::position::Position;
use crate::queue::contract::Origin;
use crate::queue::contract::Take;
use crate::queue::cursors::LogOffset;
use crate::queue::disk::Access;
use crate::queue::disk::File;
use crate::queue::segment;
use crate::queue::segment::Check;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::Found;
use crate::queue::segment::Scan;
use crate::queue::segment::SegmentHeader;

/// The greatest number of bytes of lines that a reader reads before a cursor's place. A disk reads
/// 256 MiB in a second or two, and a busy cluster sends 256 MiB in some minutes.
const BYTES_MAX: u64 = if cfg!(test) { 64 << 10 } else { 256 << 20 };

/// The limits of a read: they say which events are read.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The position where reading ends: the cursor's watermark, the first position that its output
    /// has not finished.
    end: Position,
    /// The least byte number of a line that is read. The byte number of a line is the number of
    /// bytes of all lines before it in the log.
    byte: u64,
    /// The earliest time when an event that is read was received, in ms since 1970.
    since: u64,
}

/// A reader of the events before a cursor's watermark (the first position that its output has not
/// finished), oldest first.
///
/// Each call of [`Before::next`] returns one piece of lines. When all pieces in memory are
/// returned, the next part of a segment is read on a thread that may block. The delivery loop of an
/// output owns this reader while it fills its deduplication window, and may drop it at any time.
/// Nobody waits for a read that hangs because the disk does not answer.
pub struct Before {
    shared: Arc<Shared>,
    limits: Limits,
    /// The position where the next read begins. It comes after all `pieces`.
    at: Position,
    /// The place of the position `at` in a file; `None` if the place is not known.
    spot: Option<Spot>,
    /// The pieces that were read and not returned yet.
    pieces: VecDeque<Piece>,
    /// The read that is under way; `None` if there is none.
    reading: Option<JoinHandle<Option<Part>>>,
}

/// The result of one read.
struct Part {
    pieces: Vec<Piece>,
    /// The position where the next read begins.
    at: Position,
    /// The place of the position `at` in a file; `None` if the place is not known.
    spot: Option<Spot>,
}

impl Before {
    /// Makes a reader of the events from the position `from` up to `place`, a cursor's place in the
    /// log. The reader skips events that were received longer ago than `within`.
    pub(super) fn new(
        shared: Arc<Shared>,
        from: Position,
        place: LogOffset,
        within: Duration,
    ) -> Self {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let limits = Limits {
            end: place.position,
            byte: place.byte.saturating_sub(BYTES_MAX),
            since: now().saturating_sub(within),
        };
        Self { shared, limits, at: from, spot: None, pieces: VecDeque::new(), reading: None }
    }

    /// Returns the next piece of lines, with its origin (the position and the age of its first
    /// line). `None` if all pieces were returned.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no line is skipped: the next call waits for the read that is under
    /// way.
    pub async fn next(&mut self) -> Option<(Origin, Bytes)> {
        loop {
            if let Some(next) = self.take() {
                return Some(next);
            }
            let (at, spot, limits) = (self.at, self.spot, self.limits);
            let reading = match &mut self.reading {
                Some(reading) => reading,
                none => {
                    let shared = Arc::clone(&self.shared);
                    let read = move || shared.read_before(at, spot, limits);
                    none.insert(tokio::task::spawn_blocking(read))
                }
            };
            let read = reading.await;
            self.reading = None;
            self.take_in(read.ok().flatten()?);
        }
    }

    /// Removes the first piece from memory, and returns it with its origin. `None` if no piece is
    /// in memory.
    fn take(&mut self) -> Option<(Origin, Bytes)> {
        let piece = self.pieces.pop_front()?;
        Some((Origin { first: piece.first, age: age(piece.received, now()) }, piece.lines))
    }

    /// Adds the result of a read to the pieces in memory.
    fn take_in(&mut self, part: Part) {
        (self.at, self.spot) = (part.at, part.spot);
        self.pieces.extend(part.pieces);
    }

    /// Reads all events at once, on the calling thread. Returns the lines of each piece, with their
    /// origin.
    #[cfg(test)]
    pub(super) fn all(mut self) -> Vec<(Origin, Bytes)> {
        while let Some(part) = self.shared.read_before(self.at, self.spot, self.limits) {
            self.take_in(part);
        }
        std::iter::from_fn(|| self.take()).collect()
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.abort();
        }
    }
}

impl Shared {
    /// Reads a part of the first segment that ends after the position `at`. Returns the pieces that
    /// are within the limits, which may be none. `None` if nothing is left to read.
    fn read_before(&self, at: Position, spot: Option<Spot>, limits: Limits) -> Option<Part> {
        if at >= limits.end {
            return None;
        }
        let (mut job, behind) = self.job_before(at, limits.end)?;
        let none = Part { pieces: Vec::new(), at: job.end.position, spot: None };
        if job.end.byte <= limits.byte || behind.is_some_and(|next| self.made(next) < limits.since)
        {
            return Some(none);
        }
        let name = segment::file_name(job.first.position);
        let file = match self.disk.open(&name, Access::Read) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(segment = name, %error, "a part of the queue is not read for the deduplication window");
                return Some(none);
            }
        };
        let spot = spot.filter(|spot| spot.segment == job.first.position);
        let Some(spot) = spot.or_else(|| begin(&*file, &job, limits)) else { return Some(none) };
        job.spot = spot;
        job.from = job.from.max(spot.position);
        let loaded = load::read_what_is_there(&job, &*file);
        for damage in &loaded.damages {
            tracing::debug!(
                segment = name,
                ?damage,
                "a part of the queue is not read for the deduplication window"
            );
        }
        let is_wanted = |piece: &Piece| {
            let is_there = !piece.is_gap() && piece.first < limits.end;
            is_there && piece.received >= limits.since && piece.first_byte >= limits.byte
        };
        let within = |mut piece: Piece| {
            let events = piece.events.min(limits.end - piece.first);
            piece.cut(Take { bytes: u64::MAX, events })
        };
        let pieces = loaded.pieces.into_iter().filter(is_wanted).map(within).collect();
        // The next read begins after this one in any case, so that reading comes to an end.
        let next = loaded.next.filter(|next| next.position > job.from);
        let at = next.map_or(job.end.position, |next| next.position);
        Some(Part { pieces, at, spot: next })
    }

    /// Plans a read of the first segment that ends after the position `at`. Returns the planned
    /// read, and the first position of the segment after it, if there is one. `None` if there is no
    /// segment that ends after `at` and begins before `end`.
    fn job_before(&self, at: Position, end: Position) -> Option<(Job, Option<Position>)> {
        let state = self.lock();
        let index = state.log.segment_at(at);
        let segment = state.log.segments.get(index).filter(|it| it.first.position < end)?;
        let first = segment.first;
        let from = at.max(first.position);
        let job = Job {
            epoch: 0,
            spot: Spot { segment: first.position, offset: FIRST_RECORD, line: 0, position: from },
            from,
            to: None,
            chunk: state.log.chunk,
            first,
            end: segment.end,
            offset: segment.offset,
            known: BTreeSet::new(),
            patient: false,
        };
        Some((job, state.log.segments.get(index + 1).map(|next| next.first.position)))
    }

    /// Returns the time when the segment that begins at the position `first` was made, in ms since
    /// 1970. All events in earlier segments were received before that time. `u64::MAX` if the
    /// segment's header can't be read or is damaged.
    fn made(&self, first: Position) -> u64 {
        let file = self.disk.open(&segment::file_name(first), Access::Read).ok();
        let header = file.and_then(|file| SegmentHeader::read(&*file, first).ok());
        header.map_or(u64::MAX, |header| header.made)
    }
}

/// Returns the place in a segment of the first record that is within the limits of the read; `None`
/// if there is no such record.
fn begin(file: &dyn File, job: &Job, limits: Limits) -> Option<Spot> {
    let at = (FIRST_RECORD, job.first.position);
    let mut scan = Scan::new(file, at, job.offset, job.end.position, Check::Headers);
    loop {
        let Found::Record(record) = scan.next()? else { continue };
        let header = record.header;
        let is_wanted = header.end() > job.from
            && header.received >= limits.since
            && header.end_byte() > limits.byte;
        if is_wanted {
            let (segment, offset) = (job.first.position, record.offset);
            return Some(Spot { segment, offset, line: 0, position: header.first });
        }
    }
}
