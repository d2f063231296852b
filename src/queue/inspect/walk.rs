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
use crate::queue::disk::File;
use crate::queue::segment;
use crate::queue::segment::Check;
use crate::queue::segment::Damage;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::Found;
use crate::queue::segment::LogOffset;
use crate::queue::segment::RECORD_HEADER;
use crate::queue::segment::Record;
use crate::queue::segment::SEGMENT_HEADER;
use crate::queue::segment::Scan;
use crate::queue::segment::Seed;
use crate::queue::segment::SegmentHeader;
use crate::queue::segment::WINDOW;
use crate::queue::synced::Synced;
use crate::queue::tail::Known;
use crate::queue::tail::LastSegment;
use crate::queue::tail::Tail;

/// The settings of a walk, which reads all segments of a queue in order.
pub(super) struct Want<'a> {
    /// `true`: the lines of all undamaged records are passed to the caller's function. `false`: the
    /// lines are checked, but not passed.
    pub(super) lines: bool,
    /// The name of an output: only events that this output has not finished can count as missing.
    /// `None`: events that at least one output has not finished can count as missing.
    pub(super) output: Option<&'a str>,
    /// Events before this position are skipped.
    pub(super) from: Position,
}

/// A walk through all segments of a queue in order, which finds damaged and missing events.
///
/// The walk goes from record to record, and compares the first position of each record with the
/// position at which the record before it ended. If the two differ, there is a gap. If there are
/// damaged bytes in the gap, the events of the gap count as damaged. If there are none, they count
/// as missing.
///
/// Missing events count only if some output still needs them, and if the relay has not dropped and
/// counted them itself. Before the walk reports missing events, it reads the cursors file again,
/// because a running relay may just have deleted a segment whose events are no longer needed.
pub(super) struct Walk<'a, 't> {
    directory: &'a Directory,
    want: Want<'a>,
    tell: &'a mut Tell<'t>,
    /// The first position that is still needed; events before this position do not count as
    /// missing. `None` if the cursors file is missing or can't be read, and the walk begins with
    /// the first event: then every event counts, from the first segment on.
    floor: Option<Position>,
    /// The holes: ranges of positions whose events the relay has dropped and counted as lost.
    holes: Vec<Hole>,
    /// The position that the next event must have, if no event is missing.
    position: Position,
    /// The counts of what was read so far: segments, events, bytes, faults and missing events.
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

    /// Walks through the segments that the queue's directory has now, except those that end at or
    /// before the position `want.from`. Returns what was counted on the way: the segments, events,
    /// bytes, faults and missing events. `found` is the cursors file (with the place of each output
    /// in the queue) and `synced` the note of the log's end, as the two were read before the walk
    /// began.
    pub(super) fn run(
        mut self,
        found: &cursors::Found,
        synced: Option<Synced>,
    ) -> Result<Verdict, Error> {
        self.believe(found.contents());
        let segments = self.directory.segments()?;
        let state = CursorsFile::from(found);
        let fresh = state == CursorsFile::Missing && segments.is_empty();
        // For an export the cursors file does not matter: lines are whole without it.
        if !self.want.lines && state != CursorsFile::Whole && !fresh {
            self.find(&Finding::Cursors(state))?;
        }
        let known = found.contents().map(Contents::known).unwrap_or_default();
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
        Ok(self.verdict)
    }

    /// Sets which events are needed, from the contents of the cursors file. Changes nothing if
    /// there are no contents, because the file could not be read. Events before the position
    /// `want.from` are never needed.
    fn believe(&mut self, contents: Option<&Contents>) {
        let Some(contents) = contents else { return };
        let output = self.want.output.and_then(|name| contents.outputs.get(name));
        let lowest = output.or_else(|| contents.outputs.values().min());
        let lowest = lowest.unwrap_or(&contents.end).position;
        self.floor = Some(lowest.max(self.want.from));
        self.holes.clone_from(&contents.holes);
    }

    /// Passes a message to the caller's function.
    fn tell(&mut self, seen: Seen<'_>) -> Result<(), Error> {
        (self.tell)(seen).map_err(Error::Told)
    }

    /// Counts a fault that was found in the directory, and passes it to the caller's function.
    fn find(&mut self, finding: &Finding) -> Result<(), Error> {
        self.verdict.findings += 1;
        self.verdict.missing += finding.missing();
        self.tell(Seen::Finding(finding))
    }

    /// Moves the expected position forward to `until`, because no record was found between the two
    /// positions. If some events in between are still needed, reports them as missing.
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

    /// Returns how many of these positions are needed: those from `floor` on, without those that
    /// the relay has dropped. `floor` is the first position that some output has not finished; if
    /// the cursors file has the output `want.output`, only this output counts.
    fn needed(&self, positions: &Range<Position>) -> u64 {
        let positions = positions.start.max(self.floor.unwrap_or_default())..positions.end;
        let events = positions.end.saturating_since(positions.start);
        events.saturating_sub(cursors::dropped_in(&self.holes, &positions))
    }

    /// Walks through the segment whose first position is `first`. `next` is the first position of
    /// the next segment (`None` for the last segment), and `known` is the position up to which the
    /// log is known to reach.
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
                self.position = next.unwrap_or(known.end.position).max(first);
                let positions = first.max(self.want.from)..self.position;
                let events = positions.end.saturating_since(positions.start);
                return self.find(&Finding::Unreadable { file: name, error, events, positions });
            }
        };
        self.verdict.segments += 1;
        let header = self.directory.header(&*file, first, next.is_none())?;
        let limit = limit(first, next, &self.holes);
        let mut segment = Segment::new(&*file, first, header, limit);
        if next.is_none() {
            let tail = segment.tail(0, known);
            (segment.size, segment.end) = (tail.kept, tail.end.position);
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
        // The header is read again, because a relay may have written it after it was read first.
        if header.is_none() && self.directory.header(&*file, first, false)?.is_none() {
            let (file, bytes, positions) = (name.clone(), SEGMENT_HEADER as u64, first..first);
            self.find(&Finding::Damaged { file, offset: 0, bytes, events: 0, positions })?;
        }
        let begin = segment.place_of(self.want.from);
        self.position = begin.1;
        self.position = segment.read(begin, &mut |step| self.step(&name, step))?;
        Ok(())
    }

    /// Processes one step through a segment: counts a record, or reports damaged or missing events.
    fn step(&mut self, name: &str, step: Step<'_, '_>) -> Result<(), Error> {
        match step {
            Step::Record(scan, record) => {
                self.position = record.header.end();
                self.verdict.events += record.header.events;
                self.verdict.bytes += record.header.length;
                if self.want.lines && !self.lines(scan, record)? {
                    let (file, bytes) = (name.to_owned(), record.header.size());
                    let (offset, events) = (record.offset, record.header.events);
                    let positions = record.header.first..record.header.end();
                    return self.find(&Finding::Damaged { file, offset, bytes, events, positions });
                }
                Ok(())
            }
            Step::Damaged { offset, bytes, positions } => {
                let positions = positions.start.max(self.want.from)..positions.end;
                let events = positions.end.saturating_since(positions.start);
                self.position = positions.end;
                let file = name.to_owned();
                self.find(&Finding::Damaged { file, offset, bytes, events, positions })
            }
            Step::Absent(until) => self.miss(until),
        }
    }

    /// Passes the lines of a record, from the position `want.from` on, to the caller's function.
    /// Long lines are read from the file a second time for this; returns `false` if they now have a
    /// wrong checksum, although they were passed already.
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

/// Returns the position at which a segment ends: all its valid records lie before this position.
/// Records from this position on do not count, because they were never acknowledged: their
/// positions belong to the next segment, or to a segment that was dropped.
pub(super) fn limit(first: Position, next: Option<Position>, holes: &[Hole]) -> Position {
    let dropped = holes.iter().map(|hole| hole.start).filter(|start| *start > first);
    dropped.chain(next).min().unwrap_or(Position::MAX)
}

/// A segment that a walk reads.
pub(super) struct Segment<'a> {
    file: &'a dyn File,
    first: Position,
    /// The seed of the checksums of the segment's records.
    seed: Seed,
    /// `true`: the file was an earlier segment before.
    reused: bool,
    /// The offset in the file up to which the segment is read; bytes after it do not count.
    size: u64,
    /// The position at which the segment ends: all its valid records lie before this position.
    /// Records from this position on do not count, because they were never acknowledged.
    limit: Position,
    /// The position after the last event that the segment should have.
    end: Position,
}

/// One step through a segment: a record, damaged bytes, or missing events.
enum Step<'s, 'f> {
    /// A record with valid checksums, and the scan that has found it.
    Record(&'s mut Scan<'f>, &'s Record),
    /// Damaged bytes from `offset` on, and the positions of the events that were in them.
    Damaged { offset: u64, bytes: u64, positions: Range<Position> },
    /// There is neither a record nor damage up to this position: the events before it are missing.
    Absent(Position),
}

/// The function that gets each step through a segment.
type Take<'a> = dyn FnMut(Step<'_, '_>) -> Result<(), Error> + 'a;

impl<'a> Segment<'a> {
    /// Makes a segment from its file and its header, which is `None` if it is damaged. Records from
    /// the position `limit` on do not count.
    pub(super) fn new(
        file: &'a dyn File,
        first: Position,
        header: Option<SegmentHeader>,
        limit: Position,
    ) -> Self {
        let (seed, reused) = Seed::of_file(header, file, first);
        Self { file, first, seed, reused, size: u64::MAX, limit, end: limit }
    }

    /// Reads the end of the last segment, from the position on up to which it is known to be
    /// synced. If there is damage, reads the end again, a limited number of times, because a
    /// running relay may be writing it. `byte`: the byte number with which the segment begins.
    pub(super) fn tail(&self, byte: u64, known: Known) -> Tail {
        let (offset, position) = self.place_of(known.end.position);
        let Self { file, seed, reused, limit, .. } = *self;
        let from = (offset, position);
        let last = LastSegment { file, seed, reused, from, size: u64::MAX, limit };
        let begin = LogOffset { position, byte };
        let mut attempts = ATTEMPTS;
        loop {
            let tail = Tail::read(&last, begin, known);
            attempts -= 1;
            if tail.damages.is_empty() || attempts == 0 {
                return tail;
            }
            pause();
        }
    }

    /// Makes a scan of the segment, which begins at this offset and position.
    pub(super) fn scan(&self, begin: (u64, Position), check: Check) -> Scan<'a> {
        Scan::new(self.file, self.seed, begin, self.size, self.limit, check)
    }

    /// Returns the offset in the file, and the first position, of the record in which this event is
    /// expected.
    fn place_of(&self, event: Position) -> (u64, Position) {
        let begin = (FIRST_RECORD, self.first);
        if event <= self.first {
            return begin;
        }
        let mut scan = self.scan(begin, Check::Headers);
        scan.skip_to(event);
        (scan.offset(), scan.position())
    }

    /// Reads the segment from the record at `begin`, which is an offset and a position, to the end.
    /// Passes each step to `take`. Returns the position after the last event or damage.
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

/// Joins the damaged parts of the file between two records into one report of damage. `positions`
/// are the positions between the two records. `None` if there is no damage.
fn damaged<'s, 'f>(damages: &[Damage], positions: Range<Position>) -> Option<Step<'s, 'f>> {
    let offset = damages.first()?.bytes.start;
    let bytes = damages.iter().map(|damage| damage.bytes.end - damage.bytes.start).sum();
    Some(Step::Damaged { offset, bytes, positions })
}
