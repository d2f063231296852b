//! From the first record of a directory to the last: what is whole, what is damaged, what is
//! missing.

use std::ops::Range;

use super::ATTEMPTS;
use super::CursorsFile;
use super::Directory;
use super::Error;
use super::Finding;
use super::Seen;
use super::Tell;
use super::Verdict;
use super::pause;
use super::with_next;
use crate::position::Position;
use crate::queue::cursors;
use crate::queue::cursors::Contents;
use crate::queue::cursors::Hole;
use crate::queue::cursors::LogOffset;
use crate::queue::disk::File;
use crate::queue::segment;
use crate::queue::segment::Check;
use crate::queue::segment::Damage;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::Found;
use crate::queue::segment::RECORD_HEADER;
use crate::queue::segment::Record;
use crate::queue::segment::SEGMENT_HEADER;
use crate::queue::segment::Scan;
use crate::queue::segment::WINDOW;
use crate::queue::tail::Tail;

/// The settings of a walk through all segments.
pub(super) struct Want<'a> {
    /// `true`: the lines of whole records are passed to the caller's function.
    pub(super) lines: bool,
    /// The output whose finished events do not count as missing. `None`: only events that all
    /// outputs have finished do not count.
    pub(super) output: Option<&'a str>,
    /// Events before this position are skipped.
    pub(super) from: Position,
}

/// A walk through all segments.
///
/// It goes from record to record, and compares the position of each with the one where the last
/// record ended. A difference is either damage, if bytes in between do not check, or missing
/// events. Missing events count only if they are still needed: not before the outputs' watermarks,
/// and not in a hole. Before it reports any, the walk reads the cursors file again, because a
/// running relay may just have deleted the segment.
pub(super) struct Walk<'a, 't> {
    directory: &'a Directory,
    want: Want<'a>,
    tell: &'a mut Tell<'t>,
    /// The first position that is still needed. `None`: the cursors file can't be read, so events
    /// count from the first one in the segments.
    floor: Option<Position>,
    /// The ranges of events that the relay has dropped and counted.
    holes: Vec<Hole>,
    /// The position of the next event.
    position: Position,
    verdict: Verdict,
}

impl<'a, 't> Walk<'a, 't> {
    pub(super) fn new(directory: &'a Directory, want: Want<'a>, tell: &'a mut Tell<'t>) -> Self {
        Self {
            directory,
            want,
            tell,
            floor: None,
            holes: Vec::new(),
            position: Position::START,
            verdict: Verdict::default(),
        }
    }

    /// Walks through the segments that exist now. `found` is the cursors file, which was read
    /// before.
    pub(super) fn run(mut self, found: &cursors::Found) -> Result<Verdict, Error> {
        self.believe(found.contents());
        let segments = self.directory.segments()?;
        let state = CursorsFile::from(found);
        let fresh = state == CursorsFile::Missing && segments.is_empty();
        // For an export the cursors file does not matter: lines are whole without it.
        if !self.want.lines && state != CursorsFile::Whole && !fresh {
            self.find(&Finding::Cursors(state))?;
        }
        let known = found.contents().map(Contents::known).unwrap_or_default().position;
        let first = segments.first().copied().unwrap_or(known);
        self.position = self.floor.map_or(first, |floor| floor.min(first));
        for (index, (first, next)) in with_next(&segments).enumerate() {
            if next.is_none_or(|next| next > self.want.from) {
                self.miss(first)?;
                self.segment(first, next, known)?;
            }
            self.tell(Seen::Progress(index + 1, segments.len()))?;
        }
        self.miss(known)?;
        Ok(self.verdict)
    }

    /// Takes over from the cursors file which events are needed, if the file could be read.
    fn believe(&mut self, contents: Option<&Contents>) {
        let Some(contents) = contents else { return };
        let output = self.want.output.and_then(|name| contents.outputs.get(name));
        let lowest = output.or_else(|| contents.outputs.values().min());
        self.floor = Some(lowest.unwrap_or(&contents.end).position);
        self.holes.clone_from(&contents.holes);
    }

    fn tell(&mut self, seen: Seen<'_>) -> Result<(), Error> {
        (self.tell)(seen).map_err(Error::Told)
    }

    fn find(&mut self, finding: &Finding) -> Result<(), Error> {
        self.verdict.findings += 1;
        self.verdict.missing += finding.missing();
        self.tell(Seen::Finding(finding))
    }

    /// Goes on to the position `until`, up to which no record was found. Reports the needed events
    /// before it as missing.
    fn miss(&mut self, until: Position) -> Result<(), Error> {
        let positions = self.position..until;
        let mut events = self.needed(&positions);
        if events > 0 {
            // A relay deletes a segment after the cursors file says that no output needs it.
            self.believe(self.directory.cursors()?.contents());
            events = self.needed(&positions);
        }
        self.position = self.position.max(until);
        if events == 0 {
            return Ok(());
        }
        let start = positions.start.max(self.floor.unwrap_or_default());
        self.find(&Finding::Missing { positions: start..until, events })
    }

    /// Returns how many of these positions are needed.
    fn needed(&self, positions: &Range<Position>) -> u64 {
        let positions = positions.start.max(self.floor.unwrap_or_default())..positions.end;
        let events = positions.end.saturating_since(positions.start);
        events.saturating_sub(cursors::dropped_in(&self.holes, &positions))
    }

    /// Walks through one segment.
    fn segment(
        &mut self,
        first: Position,
        next: Option<Position>,
        known: Position,
    ) -> Result<(), Error> {
        let name = segment::file_name(first);
        let file = match self.directory.segment(first) {
            Ok(Some(file)) => file,
            // The segment was deleted. Its events are missing, or are not needed any more.
            Ok(None) => return Ok(()),
            Err(error) => {
                self.position = next.unwrap_or(known).max(first);
                let events = self.position.saturating_since(first.max(self.want.from));
                return self.find(&Finding::Unreadable { file: name, error, events });
            }
        };
        self.verdict.segments += 1;
        let header = self.directory.header(&*file, first, next.is_none())?;
        let limit = limit(first, next, &self.holes);
        let mut segment = Segment { file: &*file, first, size: u64::MAX, limit, end: limit };
        if next.is_none() {
            let tail = tail(&*file, LogOffset { position: first, byte: 0 }, limit, known);
            (segment.size, segment.end) = (tail.kept, tail.end.position);
            let unfinished = tail.unfinished.map(|offset| (name.clone(), offset));
            if header.is_none() && tail.damages.is_empty() && tail.end.position.max(known) <= first
            {
                // A relay has begun to make this segment.
                self.verdict.unfinished = unfinished.or(Some((name, 0)));
                return Ok(());
            }
            self.verdict.unfinished = unfinished;
        }
        // The header is read again: it may have been written since, before the first record.
        if header.is_none() && self.directory.header(&*file, first, false)?.is_none() {
            let bytes = SEGMENT_HEADER as u64;
            self.find(&Finding::Damaged { file: name.clone(), offset: 0, bytes, events: 0 })?;
        }
        let begin = segment.place_of(self.want.from);
        self.position = begin.1;
        self.position = segment.read(begin, &mut |step| self.step(&name, step))?;
        Ok(())
    }

    /// Processes the next thing in a segment: a record, damage, or positions that are absent.
    fn step(&mut self, name: &str, step: Step<'_, '_>) -> Result<(), Error> {
        match step {
            Step::Record(scan, record) => {
                self.position = record.header.end();
                self.verdict.events += record.header.events;
                self.verdict.bytes += record.header.length;
                if self.want.lines && !self.lines(scan, record)? {
                    let (file, bytes) = (name.to_owned(), record.header.size());
                    let (offset, events) = (record.offset, record.header.events);
                    return self.find(&Finding::Damaged { file, offset, bytes, events });
                }
                Ok(())
            }
            Step::Damaged { offset, bytes, positions } => {
                let events = positions.end.saturating_since(positions.start.max(self.want.from));
                self.position = positions.end;
                self.find(&Finding::Damaged { file: name.to_owned(), offset, bytes, events })
            }
            Step::Absent(until) => self.miss(until),
        }
    }

    /// Passes the lines of a record to the caller's function. `false`: the lines have a wrong
    /// checksum when they are read this time.
    fn lines(&mut self, scan: &mut Scan<'_>, record: &Record) -> Result<bool, Error> {
        let header = record.header;
        let passed = self.want.from.saturating_since(header.first);
        let (begin, end) = (record.offset + RECORD_HEADER, record.offset + header.size());
        let start = scan.nth_line(begin..end, passed);
        if let Some(lines) = &record.lines {
            let skipped = usize::try_from(start - begin).unwrap_or(usize::MAX);
            self.tell(Seen::Lines(lines.get(skipped..).unwrap_or_default()))?;
            return Ok(true);
        }
        let (mut at, mut crc) = (begin, 0);
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

/// Returns the position before which the records of a segment lie. Records after it were never
/// acknowledged: their positions belong to the next segment, or to a segment that was dropped.
pub(super) fn limit(first: Position, next: Option<Position>, holes: &[Hole]) -> Position {
    let dropped = holes.iter().map(|hole| hole.start).filter(|start| *start > first);
    dropped.chain(next).min().unwrap_or(Position::MAX)
}

/// Reads the end of the last segment, after the place up to which it is known to be synced. The end
/// is read again as long as it has damage, because a relay may be writing it. `first` is the place
/// in the log where the segment begins.
pub(super) fn tail(file: &dyn File, first: LogOffset, limit: Position, known: Position) -> Tail {
    let segment = Segment { file, first: first.position, size: u64::MAX, limit, end: limit };
    let (offset, position) = segment.place_of(known);
    let begin = LogOffset { position, ..first };
    let mut attempts = ATTEMPTS;
    loop {
        let scan = Scan::new(file, (offset, position), u64::MAX, limit, Check::Lines);
        let tail = Tail::read(scan, begin, known);
        attempts -= 1;
        if tail.damages.is_empty() || attempts == 0 {
            return tail;
        }
        pause();
    }
}

/// A segment that a walk reads.
struct Segment<'a> {
    file: &'a dyn File,
    first: Position,
    /// The offset where the segment's part of the log ends.
    size: u64,
    /// The position at which the segment must end. Records from there on are not its own.
    limit: Position,
    /// The position after the segment's last event.
    end: Position,
}

/// The next thing that a walk finds in a segment.
enum Step<'s, 'f> {
    /// A record with valid checksums, and the scan that has found it.
    Record(&'s mut Scan<'f>, &'s Record),
    /// Damaged bytes, and the positions that were in them.
    Damaged { offset: u64, bytes: u64, positions: Range<Position> },
    /// Neither records nor damaged bytes up to this position.
    Absent(Position),
}

type Take<'a> = dyn FnMut(Step<'_, '_>) -> Result<(), Error> + 'a;

impl<'a> Segment<'a> {
    fn scan(&self, begin: (u64, Position), check: Check) -> Scan<'a> {
        Scan::new(self.file, begin, self.size, self.limit, check)
    }

    /// Returns the offset and the position at which the record that has this event is expected.
    fn place_of(&self, event: Position) -> (u64, Position) {
        let begin = (FIRST_RECORD, self.first);
        if event <= self.first {
            return begin;
        }
        let mut scan = self.scan(begin, Check::Headers);
        scan.skip_to(event);
        (scan.offset(), scan.position())
    }

    /// Reads a segment from the record at `begin` to its end. Returns the position after what was
    /// found.
    fn read(&self, begin: (u64, Position), take: &mut Take<'_>) -> Result<Position, Error> {
        let (mut scan, mut position) = (self.scan(begin, Check::Lines), begin.1);
        let mut damages: Vec<Damage> = Vec::new();
        while let Some(found) = scan.next() {
            let record = match found {
                Found::Damage(damage) => {
                    damages.push(damage);
                    continue;
                }
                Found::Record(record) => record,
            };
            let first = record.header.first;
            match damaged(&damages, position..first) {
                Some(step) => take(step)?,
                None if position < first => take(Step::Absent(first))?,
                None => {}
            }
            damages.clear();
            take(Step::Record(&mut scan, &record))?;
            position = record.header.end();
        }
        if let Some(step) = damaged(&damages, position..self.end) {
            take(step)?;
            position = self.end;
        }
        Ok(position)
    }
}

/// Returns the damage between two records as one step; `None` if there is no damage.
fn damaged<'s, 'f>(damages: &[Damage], positions: Range<Position>) -> Option<Step<'s, 'f>> {
    let offset = damages.first()?.bytes.start;
    let bytes = damages.iter().map(|damage| damage.bytes.end - damage.bytes.start).sum();
    Some(Step::Damaged { offset, bytes, positions })
}
