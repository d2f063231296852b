//! A walk through all records of a queue's directory, which finds damaged and missing events.
//!
//! The first position of each record is compared with the end of the record before it. If they
//! differ, the events in between are damaged if there are damaged bytes in the gap, and otherwise
//! missing.
//!
//! Missing events do not count if no output needs them, or if the relay has dropped and counted
//! them. The cursors file is read again before missing events are reported, because a running relay
//! may just have deleted a segment that is no longer needed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::{
    ATTEMPTS, CursorsFile, Directory, Error, Fault, Finding, Seen, Tell, Verdict, pause, with_next,
};
use crate::cursors::{Contents, Hole};
use crate::segment::{
    Check, Damage, FIRST_RECORD, Found, LogOffset, RECORD_HEADER, Record, SEGMENT_HEADER, Scan,
    Seed, SegmentFile, SegmentHeader, WINDOW,
};
use crate::shelf::Loaded;
use crate::synced::Synced;
use crate::tail::{Known, Tail};
use crate::{cursors, segment, shelf};
use base::disk::File;
use base::position::Position;

pub(super) struct Want<'a> {
    /// `true` if the lines are passed to the caller's function, `false` if they are only checked.
    pub(super) lines: bool,
    /// The only output whose unfinished events can count as missing. `None` for any output.
    pub(super) output: Option<&'a str>,
    pub(super) from: Position,
}

pub(super) struct Walk<'a, 't> {
    directory: &'a Directory,
    want: Want<'a>,
    tell: &'a mut Tell<'t>,
    /// The first position that is still needed. `None` if unknown: all positions count as needed
    /// then.
    floor: Option<Position>,
    holes: Vec<Hole>,
    /// The position that the next event must have if none is missing.
    position: Position,
    verdict: Verdict,
}

impl<'a, 't> Walk<'a, 't> {
    pub(super) fn new(directory: &'a Directory, want: Want<'a>, tell: &'a mut Tell<'t>) -> Self {
        let floor = (want.from > Position::START).then_some(want.from);
        Self {
            directory,
            want,
            tell,
            floor,
            holes: Vec::new(),
            position: Position::START,
            verdict: Verdict::default(),
        }
    }

    /// Walks through the present segments, except those that end at or before `want.from`.
    pub(super) fn run(
        mut self,
        found: &cursors::Found,
        synced: Option<Synced>,
    ) -> Result<Verdict, Error> {
        self.believe(found.contents.as_ref());
        let (segments, foreign) = self.directory.files()?;
        let state = found.state;
        let fresh = state == CursorsFile::Missing && segments.is_empty();
        // An export needs no cursors file: lines are whole without it.
        if !self.want.lines && state != CursorsFile::Whole && !fresh {
            let positions = Position::START..Position::START;
            self.find(&Finding { fault: Fault::Cursors(state), events: 0, positions })?;
        }
        let known = found.contents.as_ref().map(Contents::known).unwrap_or_default();
        let end = Known::end(known, synced).position;
        let first = segments.first().copied().unwrap_or(end);
        self.position = self.floor.map_or(first, |floor| floor.min(first));
        for (index, (first, next)) in with_next(&segments).enumerate() {
            if next.is_none_or(|next| next > self.want.from) {
                self.miss(first)?;
                self.segment(first, next, Known::new(known, synced, first))?;
            }
            self.tell(Seen::Progress(index + 1, segments.len()))?;
        }
        self.miss(end)?;
        if !self.want.lines {
            for first in foreign {
                let fault = Fault::Foreign { file: segment::file_name(first) };
                self.find(&Finding { fault, events: 0, positions: first..first })?;
            }
            self.aside()?;
        }
        Ok(self.verdict)
    }

    /// Reads the events that outputs have set aside.
    fn aside(&mut self) -> Result<(), Error> {
        let disk = &*self.directory.disk;
        let shelved = || self.directory.shelved(&self.directory.cursors()?);
        let mut faults = Vec::new();
        for (output, events) in shelved()? {
            for position in events {
                let file = shelf::name(&output, position);
                let error = match shelf::load(disk, &file) {
                    Ok(Loaded { damage: None, .. }) => continue,
                    Ok(Loaded { damage: Some(damage), .. }) => io::Error::other(damage),
                    Err(error) => error,
                };
                faults.push((output.clone(), position, Fault::Unreadable { file, error }));
            }
        }
        // A relay may have deleted some of the files since.
        let shelved = if faults.is_empty() { BTreeMap::new() } else { shelved()? };
        for (output, position, fault) in faults {
            if shelved.get(&output).is_some_and(|events| events.contains(&position)) {
                let positions = position..position.next();
                self.find(&Finding { fault, events: 1, positions })?;
            }
        }
        Ok(())
    }

    /// Sets which events are needed, unless the contents of the cursors file are unknown (`None`).
    fn believe(&mut self, contents: Option<&Contents>) {
        let Some(contents) = contents else { return };
        let output = self.want.output.and_then(|name| contents.outputs.get(name));
        let lowest = output.or_else(|| contents.outputs.values().min());
        let lowest = lowest.unwrap_or(&contents.end).position;
        self.floor = Some(lowest.max(self.want.from));
        self.holes.clone_from(&contents.holes);
    }

    fn tell(&mut self, seen: Seen<'_>) -> Result<(), Error> {
        (self.tell)(seen).map_err(Error::Told)
    }

    fn find(&mut self, finding: &Finding) -> Result<(), Error> {
        self.verdict.findings += 1;
        self.verdict.missing += finding.events;
        self.tell(Seen::Finding(finding))
    }

    /// Moves the expected position to `until`. Reports the needed events in between as missing.
    fn miss(&mut self, until: Position) -> Result<(), Error> {
        let positions = self.position..until;
        let mut events = self.needed(&positions);
        if events > 0 {
            // A relay deletes a segment only after the cursors file says that no output needs it.
            self.believe(self.directory.cursors()?.contents.as_ref());
            events = self.needed(&positions);
        }
        self.position = self.position.max(until);
        if events == 0 {
            return Ok(());
        }
        let start = positions.start.max(self.floor.unwrap_or_default());
        self.find(&Finding { fault: Fault::Missing, events, positions: start..until })
    }

    /// Returns how many of these positions are needed and not dropped by the relay.
    fn needed(&self, positions: &Range<Position>) -> u64 {
        let positions = positions.start.max(self.floor.unwrap_or_default())..positions.end;
        let events = positions.end.saturating_since(positions.start);
        events.saturating_sub(cursors::missing_in(&self.holes, &positions))
    }

    /// Walks through one segment. `known`: the place up to which the log is known to reach.
    fn segment(
        &mut self,
        first: Position,
        next: Option<Position>,
        known: Known,
    ) -> Result<(), Error> {
        let name = segment::file_name(first);
        let file = match self.directory.segment(first) {
            Ok(Some(file)) => file,
            // The segment was deleted. `miss` finds out whether its events are still needed.
            Ok(None) => return Ok(()),
            Err(error) => {
                let next = next.unwrap_or(known.end.position);
                self.position = limit(first, Some(next), &self.holes).max(first);
                let positions = first.max(self.want.from)..self.position;
                let events = positions.end.saturating_since(positions.start);
                let fault = Fault::Unreadable { file: name, error };
                return self.find(&Finding { fault, events, positions });
            }
        };
        self.verdict.segments += 1;
        let header = self.directory.header(&*file, first, next.is_none())?;
        let limit = limit(first, next, &self.holes);
        let mut segment = open(&*file, first, header, limit);
        let mut end = limit;
        if next.is_none() {
            let tail = tail(&segment, 0, known);
            (segment.size, end) = (tail.kept, tail.end.position);
            let unfinished = tail.unfinished.map(|offset| (name.clone(), offset));
            if header.is_none()
                && tail.damages.is_empty()
                && tail.end.position.max(known.end.position) <= first
            {
                // A relay has begun to make this segment.
                self.verdict.unfinished = unfinished.or(Some((name, 0)));
                return Ok(());
            }
            self.verdict.unfinished = unfinished;
        }
        // A relay may have written the header in the meantime.
        if header.is_none() && self.directory.header(&*file, first, false)?.is_none() {
            let (file, bytes) = (name.clone(), SEGMENT_HEADER as u64);
            let fault = Fault::Damaged { file, offset: 0, bytes };
            self.find(&Finding { fault, events: 0, positions: first..first })?;
        }
        let begin = place_of(&segment, self.want.from);
        self.position = begin.1;
        let mut scan = segment.scan(begin, Check::Lines);
        let mut damages = Vec::new();
        while let Some(found) = scan.next() {
            match found {
                Found::Damage(damage) => damages.push(damage),
                Found::Record(record) => {
                    self.pass(&name, &mut damages, record.header.first)?;
                    self.record(&name, &mut scan, &record)?;
                }
            }
        }
        if damages.is_empty() { Ok(()) } else { self.pass(&name, &mut damages, end) }
    }

    /// Moves the expected position to `until`, where the next record begins. If there are damaged
    /// bytes before it, the events in between count as damaged, otherwise as missing.
    fn pass(
        &mut self,
        name: &str,
        damages: &mut Vec<Damage>,
        until: Position,
    ) -> Result<(), Error> {
        let Some(offset) = damages.first().map(|first| first.bytes.start) else {
            return if self.position < until { self.miss(until) } else { Ok(()) };
        };
        let bytes = damages.drain(..).map(|damage| damage.bytes.end - damage.bytes.start).sum();
        let positions = self.position.max(self.want.from)..until;
        let events = positions.end.saturating_since(positions.start);
        self.position = until;
        let fault = Fault::Damaged { file: name.to_owned(), offset, bytes };
        self.find(&Finding { fault, events, positions })
    }

    fn record(&mut self, name: &str, scan: &mut Scan<'_>, record: &Record) -> Result<(), Error> {
        let header = record.header;
        self.position = header.end();
        self.verdict.events += header.events;
        self.verdict.bytes += header.length;
        if !self.want.lines || self.lines(scan, record)? {
            return Ok(());
        }
        let (file, offset, bytes) = (name.to_owned(), record.offset, header.size());
        let fault = Fault::Damaged { file, offset, bytes };
        let positions = header.first..header.end();
        self.find(&Finding { fault, events: header.events, positions })
    }

    /// Passes the lines of a record from `want.from` on. A long record is read a second time for
    /// this. Returns `false` if the checksum is wrong at that time, although the lines were passed.
    fn lines(&mut self, scan: &mut Scan<'_>, record: &Record) -> Result<bool, Error> {
        let header = record.header;
        let passed = self.want.from.saturating_since(header.first);
        let (begin, end) = (record.offset + RECORD_HEADER, record.offset + header.size());
        let start = scan.nth_line(begin..end, passed);
        self.tell(Seen::At(header.first + passed))?;
        if let Some(lines) = &record.lines {
            let skipped = usize::try_from(start - begin).unwrap_or(usize::MAX);
            self.tell(Seen::Lines(lines.get(skipped..).unwrap_or_default()))?;
            return Ok(true);
        }
        let (mut at, mut crc) = (begin, scan.seed().start());
        while at < end {
            let part = scan.read(at, WINDOW.min(end - at));
            crc = crc32c::crc32c_append(crc, &part);
            let skipped = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            if let Some(lines) = part.get(skipped..).filter(|lines| !lines.is_empty()) {
                self.tell(Seen::Lines(lines))?;
            }
            at += part.len() as u64;
        }
        Ok(crc == header.crc)
    }
}

/// Returns the position at which a segment ends. Records from there on were never acknowledged:
/// their positions belong to the next segment, or to one that was dropped.
pub(super) fn limit(first: Position, next: Option<Position>, holes: &[Hole]) -> Position {
    let dropped = holes.iter().map(|hole| hole.start).filter(|start| *start > first);
    dropped.chain(next).min().unwrap_or(Position::MAX)
}

pub(super) fn open(
    file: &dyn File,
    first: Position,
    header: Option<SegmentHeader>,
    limit: Position,
) -> SegmentFile<'_> {
    let (seed, reused) = Seed::of_file(header, file, first);
    SegmentFile { file, first, seed, reused, size: u64::MAX, limit }
}

/// Reads the end of the last segment, from `known` on. While there is damage, reads it several
/// times, because a relay may be writing there. `byte`: the byte number at which the segment
/// begins.
pub(super) fn tail(segment: &SegmentFile<'_>, byte: u64, known: Known) -> Tail {
    let (offset, position) = place_of(segment, known.end.position);
    let mut attempts = ATTEMPTS;
    loop {
        let tail = Tail::read(segment, offset, LogOffset { position, byte }, known);
        attempts -= 1;
        if tail.damages.is_empty() || attempts == 0 {
            return tail;
        }
        pause();
    }
}

/// Returns the offset and the first position of the record in which this event is expected.
fn place_of(segment: &SegmentFile<'_>, event: Position) -> (u64, Position) {
    let mut scan = segment.scan((FIRST_RECORD, segment.first), Check::Headers);
    if event > segment.first {
        scan.skip_to(event);
    }
    (scan.offset(), scan.position())
}
