//! Reads whole lines from the files for one cursor, at most a few megabytes at a time unless a line
//! is longer. Missing lines become a gap.
//!
//! The reads run on threads that may block, and change the state only through their result. The
//! first read that finds damaged bytes logs them and copies them to the quarantine.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{DELETED, Segment, Shared, TailRecord, quarantine_bytes};
use crate::contract::{Originals, Take, lines_of, numbers};
use crate::segment;
use crate::segment::{Check, Damage, Found, LogOffset, RECORD_HEADER, RecordHeader, Scan};
use audit::ListEnds;
use base::disk;
use base::disk::{Disk, File, Place, QUARANTINE, named};
use base::position::Position;
use base::words::counted;
use telemetry::QueueMetrics;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: Position,
    /// The offset in the segment's file of the record's header, or of padding or damage before it.
    pub(super) offset: u64,
    /// The offset of the event's line in the file. 0 for the first line of a record, and for a gap.
    pub(super) line: u64,
    pub(super) position: Position,
}

/// Some lines of one record, or a gap: positions whose lines are missing, damaged or changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    pub(super) first: Position,
    pub(super) events: u64,
    /// The number of bytes of all lines before the piece in the log.
    pub(super) first_byte: u64,
    /// The events, each with one byte after it. Empty for a gap.
    pub(super) lines: Bytes,
    /// The ends of the events, if they are a part of a JSON list as it was received.
    pub(super) ends: Option<ListEnds>,
    /// The number of bytes of a gap's missing lines; otherwise 0.
    missing: u64,
    /// `true` if the piece is a gap because somebody has changed the lines.
    pub(super) is_tampered: bool,
    /// The time of acceptance in ms since 1970; 0 for a gap.
    pub(super) received: u64,
    pub(super) spot: Spot,
}

impl Piece {
    pub(super) fn end(&self) -> Position {
        self.first + self.events
    }

    pub(super) fn is_gap(&self) -> bool {
        self.lines.is_empty()
    }

    /// Returns the number of bytes of the lines, even if they are missing.
    pub(super) fn bytes(&self) -> u64 {
        self.lines.len() as u64 + self.missing
    }

    /// Returns the events as lines. If `lists` is `true`, a part of a list stays a list.
    pub(super) fn text(self, lists: bool) -> (Bytes, Option<ListEnds>) {
        match self.ends {
            Some(ends) if !lists => (lines_of(&self.lines, &ends), None),
            ends => (self.lines, ends),
        }
    }

    /// Cuts as many events off the front as `take` allows, at least one, and returns them.
    pub(super) fn cut(&mut self, take: Take) -> Self {
        let (bytes, events) = take.front_of(&self.lines, self.ends.as_ref());
        let front = Self { events, lines: self.lines.split_to(bytes), ..self.clone() };
        let cut = usize::try_from(events).unwrap_or(usize::MAX);
        let part = |numbers| self.ends.as_ref().map(|ends| ends.part(numbers));
        let (front, rest) = (Self { ends: part(0..cut), ..front }, part(cut..usize::MAX));
        self.ends = rest;
        let line =
            if self.spot.line == 0 { self.spot.offset + RECORD_HEADER } else { self.spot.line };
        self.first += events;
        self.events -= events;
        self.first_byte += bytes as u64;
        self.spot = Spot { line: line + bytes as u64, position: self.first, ..self.spot };
        front
    }
}

/// Returns the piece of a record in memory that has these positions.
pub(super) fn piece_of(record: &TailRecord, positions: Range<Position>) -> Piece {
    let (start, end) =
        (positions.start.max(record.first.position), positions.end.min(record.end()));
    let numbers = numbers(record.first.position, start..end);
    let offset = |line: usize, position: Position| match (&record.ends, line) {
        (_, 0) => 0,
        _ if position == record.end() => record.lines.len(),
        (Some(ends), line) => ends.offset(line),
        (None, line) => memchr::memchr_iter(b'\n', &record.lines)
            .nth(line - 1)
            .map_or(record.lines.len(), |end| end + 1),
    };
    let (from, to) = (offset(numbers.start, start), offset(numbers.end, end));
    let line = if from == 0 { 0 } else { record.offset + RECORD_HEADER + from as u64 };
    Piece {
        first: start,
        events: end - start,
        first_byte: record.first.byte + from as u64,
        lines: record.lines.slice(from..to),
        ends: record.ends.as_ref().map(|ends| ends.part(numbers)),
        received: record.received,
        spot: Spot { segment: record.segment, offset: record.offset, line, position: start },
        ..Piece::default()
    }
}

#[derive(Debug)]
pub(super) struct Job {
    /// The epoch of the cursor. If it has changed at the end of the read, the lines are discarded.
    pub(super) epoch: u64,
    /// The place where reading begins: at the event `from` or before it.
    pub(super) spot: Spot,
    pub(super) from: Position,
    /// The position after the last wanted event. `None` if the read ends after about `chunk` bytes.
    pub(super) to: Option<Position>,
    pub(super) chunk: u64,
    /// The segment as it was when the read was planned. Its known damage is not reported again. If
    /// the log has no such segment, `offset` is 0, and all events are missing.
    pub(super) segment: Segment,
    /// `true` if the read fails when a part of the file can't be read; the caller then retries it.
    /// Otherwise such a part counts as damaged.
    pub(super) patient: bool,
}

#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) segment: Position,
    pub(super) from: Position,
    pub(super) to: Option<Position>,
    /// The lines and gaps in order. Each piece begins where the one before it ends.
    pub(super) pieces: Vec<Piece>,
    /// The place where the next read continues. `None` if that is in the next segment.
    pub(super) next: Option<Spot>,
    pub(super) damages: Vec<Damage>,
}

impl Shared {
    /// Reads the events of a job from a file, and reports new damage. A missing file results in a
    /// gap. Fails if the file can't be opened. If the job is patient, also fails if a part of the
    /// file can't be read, or if it is missing and the writer has not given it up yet.
    pub(super) fn read(&self, job: &Job) -> io::Result<Loaded> {
        let mut reader = Reader::new(job);
        // Without a segment in the log, there is no file to look for.
        if job.segment.offset == 0 {
            reader.end();
            return Ok(reader.loaded);
        }
        let name = segment::file_name(job.segment.first.position);
        let named = named(&name);
        let Some(file) = disk::open_if_there(&*self.disk, &name).map_err(&named)? else {
            let first = job.segment.first.position;
            if job.patient
                && self.disk.place() == Place::Here
                && self.lock().log.segment(first).is_some()
            {
                return Err(io::Error::other(DELETED));
            }
            reader.end();
            return Ok(reader.loaded);
        };
        reader.read(&*file);
        if job.patient && !reader.has_read_all {
            return Err(named(io::Error::other("a part of it can't be read")));
        }
        let new = |damage: &&Damage| !job.segment.damaged.contains(&damage.bytes.start);
        for damage in reader.loaded.damages.iter().filter(new) {
            let room = quarantine_bytes(self.capacity());
            set_aside(
                &*self.disk,
                &*file,
                job.segment.first.position,
                damage,
                room,
                &self.quarantined,
                &self.metrics,
            );
        }
        let pieces = std::mem::take(&mut reader.loaded.pieces);
        reader.loaded.pieces = self.compared(pieces);
        Ok(reader.loaded)
    }

    /// Compares lines with the received ones, if there is evidence. Changed lines become gaps.
    fn compared(&self, pieces: Vec<Piece>) -> Vec<Piece> {
        let Some(originals) = self.originals.get() else { return pieces };
        pieces.into_iter().flat_map(|piece| untampered(piece, &**originals)).collect()
    }
}

fn untampered(mut piece: Piece, originals: &dyn Originals) -> Vec<Piece> {
    let mut parts = Vec::new();
    for position in originals.changed(piece.first, &piece.lines) {
        if position > piece.first {
            parts.push(piece.cut(Take { bytes: u64::MAX, events: position - piece.first }));
        }
        let changed = piece.cut(Take { bytes: u64::MAX, events: 1 });
        let (lines, missing) = (Bytes::new(), changed.lines.len() as u64);
        parts.push(Piece { lines, missing, received: 0, is_tampered: true, ..changed });
    }
    parts.extend(Some(piece).filter(|rest| rest.events > 0));
    parts
}

/// Logs damage, and copies the damaged bytes to `quarantine/`, as far as there is room. The caller
/// counts the damage. `capacity`: the limit for the bytes of all copies.
pub(super) fn set_aside(
    disk: &dyn Disk,
    file: &dyn File,
    segment: Position,
    damage: &Damage,
    capacity: u64,
    quarantined: &AtomicU64,
    metrics: &QueueMetrics,
) {
    let offset = damage.bytes.start;
    let length = damage.bytes.end - offset;
    let room = capacity.saturating_sub(quarantined.load(Ordering::Relaxed));
    let copied = copy_aside(disk, file, segment, offset..offset + length.min(room));
    if let Ok(copied) = copied {
        quarantined.fetch_add(copied, Ordering::Relaxed);
    }
    let quarantine = match &copied {
        Ok(copied) if *copied == length => "all of it is in quarantine/".to_owned(),
        Ok(copied) => format!("{copied} bytes of it are in quarantine/, which is full"),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            "it is in quarantine/".to_owned()
        }
        Err(error) => format!("it can't be copied to quarantine/: {error}"),
    };
    let file = segment::file_name(segment);
    let events = match damage.events {
        0 => "an unknown number of events".to_owned(),
        events => counted(events, "event", "events"),
    };
    let place = format!("{file} at offset {offset}: {length} bytes, {events}; {quarantine}");
    tracing::debug!(place, "the queue is damaged");
    metrics.damaged(&place);
}

/// Copies bytes of a segment to a new file in `quarantine/`. Returns their number.
fn copy_aside(
    disk: &dyn Disk,
    file: &dyn File,
    segment: Position,
    bytes: Range<u64>,
) -> io::Result<u64> {
    const STEP: u64 = 1 << 20;
    let length = bytes.end - bytes.start;
    if length == 0 {
        return Ok(0);
    }
    let copy = disk.create(&format!("{QUARANTINE}/{segment:020}-{}.bad", bytes.start), length)?;
    let mut at = bytes.start;
    while at < bytes.end {
        let mut buffer = vec![0; usize::try_from(STEP.min(bytes.end - at)).unwrap_or_default()];
        // Bytes that can't be read are zeros in the copy.
        file.read_at(&mut buffer, at).ok();
        copy.write_at(&[&buffer], at - bytes.start)?;
        at += buffer.len() as u64;
    }
    copy.sync()?;
    Ok(length)
}

struct Reader<'a> {
    job: &'a Job,
    /// The place in the log where the next piece begins.
    at: LogOffset,
    bytes: u64,
    /// `true` while every needed part of the file could be read.
    has_read_all: bool,
    loaded: Loaded,
}

impl<'a> Reader<'a> {
    fn new(job: &'a Job) -> Self {
        Self {
            job,
            at: LogOffset { position: job.from, byte: job.segment.first.byte },
            bytes: 0,
            has_read_all: true,
            loaded: Loaded {
                segment: job.segment.first.position,
                from: job.from,
                to: job.to,
                ..Loaded::default()
            },
        }
    }

    fn wants(&self) -> bool {
        match self.job.to {
            Some(to) => self.at.position < to,
            None => self.bytes < self.job.chunk,
        }
    }

    fn read(&mut self, file: &dyn File) {
        let job = self.job;
        let expected =
            if job.spot.line == 0 { job.spot.position } else { job.segment.first.position };
        // Only headers are read before the record that holds the first wanted event.
        let mut position = expected;
        let mut within = None;
        let mut scan =
            job.segment.scan(file, (job.spot.offset, position), Check::Headers).ahead(job.chunk);
        while let Some(found) = scan.next() {
            match found {
                Found::Damage(damage) => self.loaded.damages.push(damage),
                Found::Record(record) if record.header.end() > job.from => {
                    within = Some(record);
                    break;
                }
                Found::Record(_) => {}
            }
            position = scan.position();
        }
        self.has_read_all &= scan.has_read_all();
        let Some(first) = within.filter(|first| !self.is_beyond(first)) else { return self.end() };
        let mut scan =
            job.segment.scan(file, (first.offset, position), Check::Lines).ahead(job.chunk);
        self.read_on(&mut scan);
        self.has_read_all &= scan.has_read_all();
    }

    /// Reads records while the job wants more events. If the job has no last position (`to`), only
    /// records that are already in memory are read after the first lines.
    fn read_on(&mut self, scan: &mut Scan<'_>) {
        let job = self.job;
        while self.wants() && (self.loaded.pieces.is_empty() || job.to.is_some() || scan.is_ahead())
        {
            match scan.next() {
                None => return self.end(),
                Some(Found::Damage(damage)) => self.loaded.damages.push(damage),
                Some(Found::Record(record)) if self.is_beyond(&record) => return self.end(),
                Some(Found::Record(record)) => match &record.lines {
                    Some(lines) => self.take(&record, lines),
                    None => {
                        // The scan has verified this record, which is too long for memory. The part
                        // is read again.
                        let line = match job.spot {
                            spot if spot.line > 0 && spot.offset == record.offset => {
                                (spot.line, spot.position)
                            }
                            _ => (record.offset + RECORD_HEADER, record.header.first),
                        };
                        if !self.take_long(scan, &record, line) {
                            return;
                        }
                    }
                },
            }
        }
        if self.loaded.next.is_none() {
            let (offset, position) = (scan.offset(), scan.position());
            let segment = job.segment.first.position;
            self.loaded.next = Some(Spot { segment, offset, line: 0, position });
        }
    }

    fn is_beyond(&self, record: &segment::Record) -> bool {
        self.job.to.is_some_and(|to| record.header.first >= to)
    }

    /// Adds a gap from the current place up to `until`, if any position is between them.
    fn miss(&mut self, until: LogOffset, spot: Spot) {
        let first = self.at.position;
        if until.position > first {
            let missing = match self.loaded.pieces.last() {
                Some(_) => until.byte.saturating_sub(self.at.byte),
                // The byte number where the gap begins is not known.
                None => 0,
            };
            self.push(Piece {
                first,
                events: until.position - first,
                first_byte: until.byte - missing,
                missing,
                spot: Spot { line: 0, position: first, ..spot },
                ..Piece::default()
            });
        }
    }

    fn push(&mut self, piece: Piece) {
        self.at = LogOffset { position: piece.end(), byte: piece.first_byte + piece.bytes() };
        self.bytes += piece.lines.len() as u64;
        self.loaded.pieces.push(piece);
    }

    /// Ends the read at the end of the segment. Wanted events that were not found become a gap.
    fn end(&mut self) {
        let end = self.job.to.unwrap_or(self.job.segment.end.position);
        let spot = Spot { offset: self.job.segment.offset, ..self.job.spot };
        self.miss(LogOffset { position: end, byte: self.job.segment.end.byte }, spot);
        self.loaded.next = None;
    }

    /// Adds the wanted events of a record in memory, after a gap for missing events before it.
    fn take(&mut self, record: &segment::Record, lines: &Bytes) {
        let header = record.header;
        let segment = self.job.segment.first.position;
        let whole = TailRecord::new(segment, record.offset, header, (lines.clone(), None));
        let piece = piece_of(&whole, self.at.position..self.job.to.unwrap_or(header.end()));
        let begins = LogOffset { position: piece.first, byte: piece.first_byte };
        self.miss(begins, piece.spot);
        self.push(piece);
    }

    /// Reads the wanted lines of a record that is too long for memory, part by part, from the
    /// offset `line` on, where the event at `position` begins. Returns `false` if the job wants no
    /// more, and lines of the record are left.
    fn take_long(
        &mut self,
        scan: &mut Scan<'_>,
        record: &segment::Record,
        (mut line, mut position): (u64, Position),
    ) -> bool {
        let header = record.header;
        let (begin, end) = (record.offset + RECORD_HEADER, record.offset + header.size());
        if self.at.position > position {
            line = scan.nth_line(line..end, self.at.position - position);
            position = self.at.position;
        }
        while line < end && self.wants() {
            let Some((lines, events)) = self.next_lines(scan, header, line..end, position) else {
                break;
            };
            let spot = Spot {
                segment: self.job.segment.first.position,
                offset: record.offset,
                line: if line == begin { 0 } else { line },
                position,
            };
            let first_byte = header.first_byte + (line - begin);
            self.miss(LogOffset { position, byte: first_byte }, spot);
            line += lines.len() as u64;
            self.push(Piece {
                first: position,
                events,
                first_byte,
                lines,
                received: header.received,
                spot,
                ..Piece::default()
            });
            position += events;
        }
        if self.wants() || line >= end {
            return true;
        }
        let (segment, offset) = (self.job.segment.first.position, record.offset);
        self.loaded.next = Some(Spot { segment, offset, line, position });
        false
    }

    /// Reads about `chunk` bytes of the next lines of a long record. Returns the lines and their
    /// number. `None` if they have changed since the scan or can't be read: the rest of the record
    /// is then missing.
    fn next_lines(
        &self,
        scan: &mut Scan<'_>,
        header: RecordHeader,
        bytes: Range<u64>,
        position: Position,
    ) -> Option<(Bytes, u64)> {
        let mut lines = scan.read_lines(bytes.start, bytes.end, self.job.chunk);
        let mut events = memchr::memchr_iter(b'\n', &lines).count() as u64;
        if let Some(to) = self.job.to
            && position + events > to
        {
            events = to - position;
            let last = usize::try_from(events).unwrap_or(usize::MAX).saturating_sub(1);
            let cut = memchr::memchr_iter(b'\n', &lines).nth(last).map_or(0, |end| end + 1);
            lines.truncate(cut);
        }
        let has_read = scan.has_read(&(bytes.start..bytes.start + lines.len() as u64));
        let is_whole = events > 0 && position + events <= header.end() && has_read;
        is_whole.then_some((lines, events))
    }
}
