//! The events that an output has delivered already and that are still in the files. The
//! deduplication window is rebuilt from them, because it is empty after a start.
//!
//! The reader reads on threads that may block, a few megabytes at a time, and changes nothing in
//! the queue. Nothing waits for the reader: files are deleted when no output needs them. Events
//! that are damaged, can't be read or are gone are skipped, and this is logged at `debug`. Nothing
//! before the last event that was lost, or before the last change of the filter's rules, is read:
//! an event that was not delivered must not make a later copy of it look like a duplicate.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::cursor::age;
use super::load::{Job, Piece, Spot};
use super::{Shared, load};
use crate::contract::{Origin, Take, now};
use crate::segment;
use crate::segment::{Check, FIRST_RECORD, Found, LogOffset, SegmentHeader};
use base::disk::{Access, File};
use base::mutant;
use base::position::Position;

/// The greatest number of bytes of old lines that a reader reads: it begins at most this far before
/// the first event that the output has not finished. A disk reads 256 MiB in a second or two, and a
/// busy cluster sends 256 MiB in some minutes.
const BYTES_MAX: u64 = if cfg!(test) { 64 << 10 } else { 256 << 20 };

/// The limits of a read of old events. Events outside these limits are not returned.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The position where reading ends: the first position that the cursor's output has not
    /// finished.
    end: Position,
    /// A byte number: lines with a smaller byte number are not returned. The byte number of a line
    /// is the number of bytes of all lines before the line in the log.
    byte: u64,
    /// A time in ms since 1970. Events that the relay received before this time are not returned.
    since: u64,
}

/// A reader of old events, oldest first: events before the first position that a cursor's output
/// has not finished.
///
/// Each call of [`Before::next`] returns one piece: some lines that follow each other in the log.
/// When all pieces in memory are returned, a thread that may block reads the next part of a
/// segment. The delivery loop of an output owns this reader while it fills its memory of recent
/// events, with which it finds duplicates. The loop may drop the reader at any time. If a read
/// hangs because the disk does not answer, nobody waits for this read.
pub struct Before {
    shared: Arc<Shared>,
    limits: Limits,
    /// The position where the next read begins. All lines in `pieces` are before this position.
    at: Position,
    /// The place in a file where the event at the position `at` can be read; `None` if this place
    /// is not known.
    spot: Option<Spot>,
    /// Pieces that were read from a file and not returned yet.
    pieces: VecDeque<Piece>,
    /// The read from a file that is running now; `None` if no read is running.
    reading: Option<AbortOnDropHandle<Option<Part>>>,
}

/// The result of one read: some lines, the position where the next read begins, and the place of
/// its event in a file; `None` if this place is not known.
type Part = (Vec<Piece>, Position, Option<Spot>);

impl Before {
    /// Makes a reader of the events from the position `from` up to `place`, where the cursor's
    /// unfinished events begin. Events that were received longer ago than `within` are skipped, and
    /// so are all but the newest [`BYTES_MAX`] bytes.
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
        Self {
            shared,
            limits,
            at: mutant!("look-back-of-duplicates", from, Position::START),
            spot: None,
            pieces: VecDeque::new(),
            reading: None,
        }
    }

    /// Returns the next piece, and the position and the age of its first line. `None` if all pieces
    /// were returned.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no line is skipped: the next call waits for the read that is
    /// already running.
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
                    none.insert(AbortOnDropHandle::new(tokio::task::spawn_blocking(read)))
                }
            };
            let read = reading.await;
            self.reading = None;
            self.take_in(read.ok().flatten()?);
        }
    }

    /// Removes the first piece of lines from memory. Returns its lines, and the position and the
    /// age of the first line. `None` if no lines are in memory.
    fn take(&mut self) -> Option<(Origin, Bytes)> {
        let piece = self.pieces.pop_front()?;
        let Piece { first, events, received, .. } = piece;
        Some((Origin { first, events, age: age(received, now()), received }, piece.lines))
    }

    /// Adds the result of a read to the lines in memory, and notes where the next read begins.
    fn take_in(&mut self, (pieces, at, spot): Part) {
        (self.at, self.spot) = (at, spot);
        self.pieces.extend(pieces);
    }

    /// Reads all events at once, on the calling thread. Returns the lines piece by piece, each with
    /// the position and the age of its first line.
    #[cfg(test)]
    pub(super) fn all(mut self) -> Vec<(Origin, Bytes)> {
        while let Some(part) = self.shared.read_before(self.at, self.spot, self.limits) {
            self.take_in(part);
        }
        std::iter::from_fn(|| self.take()).collect()
    }
}

impl Shared {
    /// Reads a part of one segment: the first segment that ends after the position `at`. Returns
    /// those lines that are within the limits; there may be none. `None` if nothing is left to
    /// read.
    fn read_before(&self, at: Position, spot: Option<Spot>, limits: Limits) -> Option<Part> {
        if at >= limits.end {
            return None;
        }
        let (mut job, behind) = self.job_before(at, limits.end)?;
        let none = (Vec::new(), job.segment.end.position, None);
        if job.segment.end.byte <= limits.byte
            || behind.is_some_and(|next| self.made(next) < limits.since)
        {
            return Some(none);
        }
        let name = segment::file_name(job.segment.first.position);
        let file = match self.disk.open(&name, Access::Read) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(segment = name, %error, "a part of the queue is not read for the deduplication window");
                return Some(none);
            }
        };
        let spot = spot.filter(|spot| spot.segment == job.segment.first.position);
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
        let pieces = self.compared(loaded.pieces).into_iter();
        let pieces = pieces.filter(is_wanted).map(within).collect();
        // The next read begins after this one in any case, so that reading comes to an end.
        let next = loaded.next.filter(|next| next.position > job.from);
        let at = next.map_or(job.segment.end.position, |next| next.position);
        Some((pieces, at, next))
    }

    /// Plans a read of the first segment that ends after the position `at`. Returns the planned
    /// read. If there is a later segment, also returns the first position of this later segment.
    /// `None` if every segment ends at or before `at`, or if the segment begins at or after `end`.
    fn job_before(&self, at: Position, end: Position) -> Option<(Job, Option<Position>)> {
        let state = self.lock();
        let index = state.log.segment_at(at);
        let segment = state.log.segments.get(index).filter(|it| it.first.position < end)?;
        let first = segment.first.position;
        let job = Job {
            epoch: 0,
            spot: Spot { segment: first, offset: FIRST_RECORD, line: 0, position: first },
            from: at.max(first),
            to: None,
            chunk: state.log.chunk,
            segment: segment.clone(),
            patient: false,
        };
        Some((job, state.log.segments.get(index + 1).map(|next| next.first.position)))
    }

    /// Returns the time when the file of a segment was made, in ms since 1970; `first` is the
    /// segment's first position. All events in earlier segments were received before that time.
    /// `u64::MAX` if the segment's header can't be read or is damaged.
    fn made(&self, first: Position) -> u64 {
        let file = self.disk.open(&segment::file_name(first), Access::Read).ok();
        let header = file.and_then(|file| SegmentHeader::read(&*file, first).ok());
        header.map_or(u64::MAX, |header| header.made)
    }
}

/// Finds the first record of a segment that is within the limits and ends after the first position
/// that is to be read. Returns the place of this record; `None` if there is no such record.
fn begin(file: &dyn File, job: &Job, limits: Limits) -> Option<Spot> {
    let segment = job.segment.first.position;
    let mut scan = job.segment.scan(file, (FIRST_RECORD, segment), Check::Headers);
    loop {
        let Found::Record(record) = scan.next()? else { continue };
        let header = record.header;
        let is_wanted = header.end() > job.from
            && header.received >= limits.since
            && header.end_byte() > limits.byte;
        if is_wanted {
            let offset = record.offset;
            return Some(Spot { segment, offset, line: 0, position: header.first });
        }
    }
}
