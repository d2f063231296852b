//! Reading from the files for one cursor: a few megabytes at a time, and whole lines. Missing lines
//! are marked as a gap.
//!
//! The reads run on threads that may block, and change the state only through what they return.
//! Damaged bytes are copied to the quarantine and logged here, by the first read that finds them.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{Segment, Shared, TailRecord, quarantine_bytes};
use crate::contract::{Originals, Take, lines_of, numbers};
use crate::segment;
use crate::segment::{Check, Damage, Found, LogOffset, RECORD_HEADER, RecordHeader, Scan};
use audit::ListEnds;
use base::disk;
use base::disk::{Disk, File, QUARANTINE, named};
use base::position::Position;
use telemetry::QueueMetrics;

/// The place of an event in the files of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// The first position of the segment, which names its file.
    pub(super) segment: Position,
    /// The offset of the header of the event's record, in the segment's file.
    pub(super) offset: u64,
    /// The offset in the file at which the event's line begins. 0 means that the line is the first
    /// one of its record.
    pub(super) line: u64,
    /// The position of the event.
    pub(super) position: Position,
}

/// A part of the log: some lines of one record. If lines are missing because of damage, or because
/// somebody has changed them, the piece is a gap: a range of positions without lines.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The position of the first event in this part of the log.
    pub(super) first: Position,
    /// The number of events in this part of the log, at least 1.
    pub(super) events: u64,
    /// The byte number of the first line: the number of bytes of all lines in the log before this
    /// line.
    pub(super) first_byte: u64,
    /// The events of this part of the log, each with one byte after it. Empty if the lines are
    /// missing (a gap).
    pub(super) lines: Bytes,
    /// `Some`: the events are a part of a JSON list, as it was received.
    pub(super) ends: Option<ListEnds>,
    /// If the lines are missing (a gap), the number of bytes that they had; else 0.
    missing: u64,
    /// `true`: the lines count as missing because somebody has changed them.
    pub(super) is_tampered: bool,
    /// The time when the lines were received, in ms since 1970; 0 if the lines are missing (a gap).
    pub(super) received: u64,
    /// The place in a file of the first event in this part of the log.
    pub(super) spot: Spot,
}

impl Piece {
    /// Returns the position after the last event of this part of the log.
    pub(super) fn end(&self) -> Position {
        self.first + self.events
    }

    /// Returns `true` if this part of the log is a gap: a range of positions whose lines are
    /// missing.
    pub(super) fn is_gap(&self) -> bool {
        self.lines.is_empty()
    }

    /// Returns the number of bytes of the lines in this part of the log. For a gap, it is the
    /// number of bytes of the missing lines.
    pub(super) fn bytes(&self) -> u64 {
        self.lines.len() as u64 + self.missing
    }

    /// Returns the events as lines. If `lists` is `true`, a part of a JSON list is returned as it
    /// is, with its ends.
    pub(super) fn text(self, lists: bool) -> (Bytes, Option<ListEnds>) {
        match self.ends {
            Some(ends) if !lists => (lines_of(&self.lines, &ends), None),
            ends => (self.lines, ends),
        }
    }

    /// Cuts off the first events and returns them: as many events as `take` allows, but at least
    /// one. `self` keeps the events after them.
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

/// Returns the events at these `positions`, from a record that is in memory. Positions outside the
/// record are ignored.
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
        missing: 0,
        is_tampered: false,
        received: record.received,
        spot: Spot { segment: record.segment, offset: record.offset, line, position: start },
    }
}

/// A planned read of one segment: which events are to be read, and what is known of the segment.
#[derive(Debug)]
pub(super) struct Job {
    /// The cursor's epoch, a number that rises when lines that were read become useless. If the
    /// cursor has another epoch when the read ends, the lines that were read are thrown away.
    pub(super) epoch: u64,
    /// The place in the file where reading begins. This may be before the event at the position
    /// `from`: at its record, or at an earlier record.
    pub(super) spot: Spot,
    /// The first position that is to be read.
    pub(super) from: Position,
    /// The position after the last event that is to be read. `None` if there is no such limit: the
    /// read then ends after about `chunk` bytes.
    pub(super) to: Option<Position>,
    /// About how many bytes of lines are to be read at once.
    pub(super) chunk: u64,
    /// The segment as it was when the read was planned. Its damage is known, and is not reported
    /// again. If the log has no such segment, `offset` is 0: all events of the read are missing.
    pub(super) segment: Segment,
    /// `true`: if a part of the file can't be read, the read fails and is tried again later.
    /// `false`: such a part counts as damaged, and the read continues.
    pub(super) patient: bool,
}

/// The result of a read of one segment.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The first position of the segment that was read.
    pub(super) segment: Position,
    /// The first position that was to be read: [`Job::from`].
    pub(super) from: Position,
    /// The position after the last event that was to be read: [`Job::to`].
    pub(super) to: Option<Position>,
    /// The lines and gaps that were read, in order. Each element begins at the position where the
    /// element before it ends.
    pub(super) pieces: Vec<Piece>,
    /// The place in this segment where the next read continues. `None`: the next read continues in
    /// the next segment.
    pub(super) next: Option<Spot>,
    /// The damage that this read has found.
    pub(super) damages: Vec<Damage>,
}

impl Shared {
    /// Reads the events of a job from a file. Reports damage that was not known before. If the file
    /// does not exist, the result is a gap: all these events count as missing.
    ///
    /// # Errors
    ///
    /// The file exists, but can't be opened. Or a part of the file can't be read, and the job is
    /// patient, which means that the read is to be tried again later.
    pub(super) fn read(&self, job: &Job) -> io::Result<Loaded> {
        let name = segment::file_name(job.segment.first.position);
        let named = named(&name);
        let file = match job.segment.offset {
            0 => None,
            _ => disk::open_if_there(&*self.disk, &name).map_err(&named)?,
        };
        let mut reader = Reader::new(job);
        let Some(file) = file else {
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

    /// Compares lines with the lines as they came in, if there is evidence. Lines that have changed
    /// become gaps.
    pub(super) fn compared(&self, pieces: Vec<Piece>) -> Vec<Piece> {
        let Some(originals) = self.originals.get() else { return pieces };
        pieces.into_iter().flat_map(|piece| untampered(piece, &**originals)).collect()
    }
}

/// Cuts the lines that have changed since they came in out of a piece. They become gaps.
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

/// Reads the events of a job, as far as the file can be read. The result contains the damage that
/// was found. The damage is not reported to the log or to metrics here.
pub(super) fn read_what_is_there(job: &Job, file: &dyn File) -> Loaded {
    let mut reader = Reader::new(job);
    reader.read(file);
    reader.loaded
}

/// Copies damaged bytes of a segment to the directory `quarantine/`, as far as this directory has
/// room. Also logs and counts the damage. `capacity`: the greatest number of bytes that all copies
/// in the directory may take together.
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
        events => format!("{events} events"),
    };
    let place = format!("{file} at offset {offset}: {length} bytes, {events}; {quarantine}");
    tracing::debug!(place, "the queue is damaged");
    metrics.damaged(&place);
}

/// Copies bytes of a segment to a new file in the directory `quarantine/`. Returns the number of
/// bytes that were copied.
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

/// A read of one segment that is under way.
struct Reader<'a> {
    job: &'a Job,
    /// The place in the log up to which the result has lines or gaps. The next part of the result
    /// begins here.
    at: LogOffset,
    /// The number of bytes of all lines that were read so far.
    bytes: u64,
    /// `true` as long as every part of the file that was needed could be read.
    has_read_all: bool,
    /// The result of the read so far.
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
                pieces: Vec::new(),
                next: None,
                damages: Vec::new(),
            },
        }
    }

    /// Returns `true` if the job wants more events than were read so far.
    fn wants(&self) -> bool {
        match self.job.to {
            Some(to) => self.at.position < to,
            None => self.bytes < self.job.chunk,
        }
    }

    /// Reads the events of the job, beginning with the record that holds the first of these events.
    fn read(&mut self, file: &dyn File) {
        let job = self.job;
        let expected =
            if job.spot.line == 0 { job.spot.position } else { job.segment.first.position };
        // Before that record only headers are read.
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

    /// Reads one record after the other while the job wants more events. If the job has no last
    /// position (`to` is `None`), the read may end earlier. In this case, after the first lines,
    /// only records that are in memory already are read.
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
                        // The scan has just read and checked all lines of the long record. The part
                        // that is wanted is read again.
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

    /// Returns `true` if this record begins after the last event that the job wants. The wanted
    /// events that were not found in earlier records are then missing.
    fn is_beyond(&self, record: &segment::Record) -> bool {
        self.job.to.is_some_and(|to| record.header.first >= to)
    }

    /// Adds a gap to the result: from the end of what was read so far up to the place `until`. Adds
    /// nothing if there is no position between.
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
                lines: Bytes::new(),
                ends: None,
                missing,
                is_tampered: false,
                received: 0,
                spot: Spot { line: 0, position: first, ..spot },
            });
        }
    }

    /// Adds lines, or a gap, to the end of the result.
    fn push(&mut self, piece: Piece) {
        self.at = LogOffset { position: piece.end(), byte: piece.first_byte + piece.bytes() };
        self.bytes += piece.lines.len() as u64;
        self.loaded.pieces.push(piece);
    }

    /// Ends the read at the end of the segment. Wanted events that were not found become a gap:
    /// they count as missing.
    fn end(&mut self) {
        let end = self.job.to.unwrap_or(self.job.segment.end.position);
        let spot = Spot { offset: self.job.segment.offset, ..self.job.spot };
        self.miss(LogOffset { position: end, byte: self.job.segment.end.byte }, spot);
        self.loaded.next = None;
    }

    /// Adds those events of a record that the job wants to the result; their lines are in memory.
    /// If wanted events before the record were not found, first adds a gap: these events count as
    /// missing.
    fn take(&mut self, record: &segment::Record, lines: &Bytes) {
        let header = record.header;
        let segment = self.job.segment.first.position;
        let whole = TailRecord::new(segment, record.offset, header, (lines.clone(), None));
        let piece = piece_of(&whole, self.at.position..self.job.to.unwrap_or(header.end()));
        let begins = LogOffset { position: piece.first, byte: piece.first_byte };
        self.miss(begins, piece.spot);
        self.push(piece);
    }

    /// Reads those lines of a long record that the job wants. The record is too long to be kept in
    /// memory as a whole, so its lines are read part by part. Reading begins at the line at the
    /// offset `line`, which has the position `position`; this may be a line inside the record.
    /// Returns `false` if the job wants no more events although the record has more lines.
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
                ends: None,
                missing: 0,
                is_tampered: false,
                received: header.received,
                spot,
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

    /// Reads about as many of the next lines of a long record as one read returns. Returns the
    /// lines and the number of their events. `bytes` is the range of the remaining lines in the
    /// file, and `position` is the position of the first of them. `None` if the lines have changed
    /// since they were checked, or can't be read again: the rest of the record is then missing.
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
