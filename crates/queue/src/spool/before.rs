//! A reader of the events that an output has delivered and that are still in files. After a
//! restart, the output rebuilds its deduplication window from them.
//!
//! The reader reads on threads that may block, usually a few megabytes at a time, and changes
//! nothing in the queue. Nothing waits for the reader, and files may be deleted while it reads.
//! Events that are damaged, changed or unreadable are skipped. The reader begins after the last
//! lost event and after the last change of the filter's rules: an event that was not delivered must
//! not make a later copy look like a duplicate.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::cursor::age;
use super::load::{Job, Piece, Spot};
use super::{Shared, load};
use crate::contract::{Acceptance, Take, now};
use crate::segment;
use crate::segment::{Check, FIRST_RECORD, Found, LogOffset, SegmentHeader};
use base::disk::{Access, File};
use base::mutant;
use base::position::Position;

/// The greatest number of bytes of lines from the reader's start to the first unfinished event. A
/// disk reads 256 MiB in a second or two, and a busy cluster sends them in some minutes.
const BYTES_MAX: u64 = if cfg!(test) { 64 << 10 } else { 256 << 20 };

/// The limits of a read. Events outside them are not returned.
#[derive(Debug, Clone, Copy)]
struct Limits {
    end: Position,
    /// The smallest byte number of a piece.
    byte: u64,
    /// The earliest time of acceptance, in ms since 1970.
    since: u64,
}

/// A reader of events before an output's watermark, oldest first.
///
/// The output's delivery loop owns the reader while it fills the deduplication window, and may drop
/// the reader at any time. If a read hangs because the disk does not respond, nobody waits for it.
pub struct Before {
    shared: Arc<Shared>,
    limits: Limits,
    at: Position,
    spot: Option<Spot>,
    pieces: VecDeque<Piece>,
    reading: Option<AbortOnDropHandle<Option<Part>>>,
}

/// The result of a read: some lines, and the position and place where the next read begins.
type Part = (Vec<Piece>, Position, Option<Spot>);

impl Before {
    /// Makes a reader of the events from `from` up to `place`, the cursor's first unfinished one.
    /// Skips events that are older than `within`, and all but the newest [`BYTES_MAX`] bytes.
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

    /// See [`crate::Before::next`]. If the future is dropped, the next call waits for the running
    /// read.
    pub async fn next(&mut self) -> Option<(Acceptance, Bytes)> {
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

    fn take(&mut self) -> Option<(Acceptance, Bytes)> {
        let piece = self.pieces.pop_front()?;
        let Piece { first, events, received, .. } = piece;
        Some((Acceptance { first, events, age: age(received, now()), received }, piece.lines))
    }

    fn take_in(&mut self, (pieces, at, spot): Part) {
        (self.at, self.spot) = (at, spot);
        self.pieces.extend(pieces);
    }

    #[cfg(test)]
    pub(super) fn all(mut self) -> Vec<(Acceptance, Bytes)> {
        while let Some(part) = self.shared.read_before(self.at, self.spot, self.limits) {
            self.take_in(part);
        }
        std::iter::from_fn(|| self.take()).collect()
    }
}

impl Shared {
    /// Reads a part of the first segment that ends after `at`. `None` if nothing is left to read.
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
        // The next read always begins after this one, so that the reader comes to an end.
        let next = loaded.next.filter(|next| next.position > job.from);
        let at = next.map_or(job.segment.end.position, |next| next.position);
        Some((pieces, at, next))
    }

    /// Plans a read of the first segment that ends after `at`. Also returns the first position of
    /// the next segment. `None` if there is no such segment before `end`.
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

    /// Returns the time when a segment was made, in ms since 1970. All events of earlier segments
    /// are older. `u64::MAX` if its header can't be read.
    fn made(&self, first: Position) -> u64 {
        let file = self.disk.open(&segment::file_name(first), Access::Read).ok();
        let header = file.and_then(|file| SegmentHeader::read(&*file, first).ok());
        header.map_or(u64::MAX, |header| header.made)
    }
}

/// Returns the place of the first record that the job wants and that is within the limits.
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
