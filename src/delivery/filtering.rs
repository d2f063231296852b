//! What of a claim leaves, where the output has a filter.
//!
//! A batch goes through it each time that it is sent, and comes out as lines again: what is not changed is not copied where
//! there is much of it. What became of each event is marked by its position until its claim is final, and counted then,
//! once, however often it was sent.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::lines::line;
use super::link::REJECTED_BYTES_MAX;
use crate::filter::Asked;
use crate::filter::Changes;
use crate::filter::Filter;
use crate::filter::Seen;
use crate::filter::Verdict;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Disposition;
use crate::queue::Origin;
use crate::queue::Position;
use crate::telemetry::OutputMetrics;

/// Untouched lines are copied behind changed ones, unless they are so many bytes: a piece each would be dear for who
/// writes them.
const PASSED_ON_MIN: usize = 32 * 1024;

/// The room for one changed event is kept for the next, unless it is more than this.
const CHANGED_BYTES_KEPT: usize = 1024 * 1024;

/// Bytes of events that the loop may inspect without sending any (all filtered, or all given up)
/// before it yields to the runtime, so that other tasks on this thread are not starved.
pub(super) const INSPECTED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Owned by the delivery loop. Without a filter it passes everything and costs nothing.
pub(super) struct Filtering {
    filter: Option<Filter>,
    /// Of claims on the wire: what became of their events. Those without a mark leave, and nothing of it is counted.
    marks: BTreeMap<Position, Mark>,
    /// Of the lines in them.
    marked_bytes: u64,
    changed: Vec<u8>,
    /// Where the next claim begins that was not taken before, unless what is there is dropped.
    next: Position,
}

#[derive(Debug, PartialEq)]
enum Mark {
    Dropped,
    Duplicate,
    Changed(Changes),
    /// Without its bodies it would still be too large: the line as it came.
    TooLarge(Bytes),
}

impl Filtering {
    /// At the beginning of what `cursor` will give.
    pub(super) fn new(filter: Option<Filter>, cursor: &Cursor) -> Self {
        Self {
            filter,
            marks: BTreeMap::new(),
            marked_bytes: 0,
            changed: Vec::new(),
            next: cursor.position(),
        }
    }

    /// Events that do not leave are held until all before them are final. Beyond some bytes nothing more should be sent.
    pub(super) fn is_full(&self) -> bool {
        self.marked_bytes >= REJECTED_BYTES_MAX
    }

    /// What comes next is what was claimed first and is not final.
    pub(super) fn rewound(&mut self, cursor: &Cursor) {
        self.next = cursor.position();
        self.unmark(self.next..Position::MAX);
    }

    /// The claim is not on the wire any more.
    pub(super) fn released(&mut self, claim: Claim) {
        self.unmark(claim.start..claim.end);
    }

    /// Takes the marks of these positions.
    fn unmark(&mut self, positions: Range<Position>) -> Vec<Mark> {
        let marks: Vec<_> = self.marks.extract_if(positions, |_, _| true).map(|it| it.1).collect();
        for mark in &marks {
            if let Mark::TooLarge(line) = mark {
                self.marked_bytes -= line.len() as u64;
            }
        }
        marks
    }

    /// These are not what they were: what was dropped from the queue meanwhile has not left, and will not.
    fn forget(&mut self, positions: Range<Position>) {
        self.unmark(positions.clone());
        if let Some(filter) = &mut self.filter {
            filter.forget(positions);
        }
    }

    /// What it remembers is for who comes next.
    pub(super) fn into_seen(self) -> Option<Seen> {
        self.filter.and_then(Filter::into_seen)
    }

    /// Tells the filter what has left before, as far as it asks for that and the queue has it.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has told a part.
    pub(super) async fn look_back(&mut self, cursor: &Cursor) {
        let Some(filter) = &mut self.filter else { return };
        let Some(window) = filter.asks_for() else { return };
        let mut before = cursor.before(window);
        while let Some((origin, lines)) = before.next().await {
            for (position, start, end) in events(&lines, &origin) {
                let event = lines.get(start..end - 1).unwrap_or_default();
                filter.remember(event, position, origin.age);
            }
        }
        filter.remembers();
    }

    /// There is a filter.
    pub(super) fn is_on(&self) -> bool {
        self.filter.is_some()
    }

    /// What of a batch is to be sent.
    pub(super) fn pass(&mut self, batch: Batch, cursor: &Cursor) -> Batch {
        if self.filter.is_none() {
            return batch;
        }
        self.meets(&batch);
        let Some(filter) = &mut self.filter else { return batch };
        let Batch { claim, pieces, origins, .. } = batch;
        filter.renew(cursor.watermark());
        let mut lines = Lines::default();
        for (piece, origin) in pieces.into_iter().zip(&origins) {
            let (mut run, mut end, mut next) = (0, 0, origin.first);
            let mut events = filter.events(&piece);
            while let Some((event, request)) = events.next() {
                let (start, position) = (end, next);
                (end, next) = (start + event.len() + 1, position.next());
                self.changed.clear();
                let asked = Asked { event, request, position, age: origin.age };
                let mark = match filter.judge(&asked, &mut self.changed) {
                    Verdict::Untouched => {
                        lines.events += 1;
                        continue;
                    }
                    Verdict::Changed(changes) => Mark::Changed(changes),
                    Verdict::Dropped => Mark::Dropped,
                    Verdict::Duplicate => Mark::Duplicate,
                    Verdict::TooLarge => Mark::TooLarge(line(event)),
                };
                lines.pass(&piece, run, start);
                run = end;
                match &mark {
                    Mark::Changed(_) => lines.add(&self.changed),
                    Mark::TooLarge(line) => self.marked_bytes += line.len() as u64,
                    Mark::Dropped | Mark::Duplicate => {}
                }
                // Of annotations alone nothing is counted.
                if mark != Mark::Changed(Changes::default()) {
                    self.marks.insert(position, mark);
                }
            }
            lines.pass(&piece, run, piece.len());
        }
        if self.changed.capacity() > CHANGED_BYTES_KEPT {
            self.changed = Vec::new();
        }
        let (events, pieces) = lines.end();
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Batch { claim, events, bytes, pieces, origins: Vec::new() }
    }

    /// Forgets what became of a batch before, and what was dropped from the queue since.
    fn meets(&mut self, batch: &Batch) {
        let Batch { claim, events, .. } = *batch;
        self.unmark(claim.start..claim.end);
        if claim.start > self.next {
            self.forget(self.next..claim.start);
        }
        self.next = self.next.max(claim.end);
        if events < claim.end - claim.start {
            self.forget(claim.start..claim.end);
        }
    }

    /// The lines of a batch that is given up, as they were received, without those that would not have left anyway.
    pub(super) fn originals(&mut self, batch: Batch, cursor: &Cursor) -> (Vec<Bytes>, Disposition) {
        if self.filter.is_none() {
            return (batch.pieces, Disposition::lost(batch.events));
        }
        // It may never have been sent.
        self.pass(batch.clone(), cursor);
        let mut lines = Lines::default();
        for (piece, origin) in batch.pieces.iter().zip(&batch.origins) {
            let mut run = 0;
            for (position, start, end) in events(piece, origin) {
                match self.marks.get(&position) {
                    Some(Mark::Dropped | Mark::Duplicate) => {
                        lines.pass(piece, run, start);
                        run = end;
                    }
                    Some(Mark::Changed(_) | Mark::TooLarge(_)) | None => lines.events += 1,
                }
            }
            lines.pass(piece, run, piece.len());
        }
        let (lost, pieces) = lines.end();
        (pieces, Disposition { lost, ..self.give_up(batch.claim) })
    }

    /// What of a claim's events does not leave because it is too large.
    pub(super) fn too_large(&self, claim: Claim) -> Vec<Bytes> {
        let marks = self.marks.range(claim.start..claim.end);
        marks
            .filter_map(|(_, mark)| match mark {
                Mark::TooLarge(line) => Some(line.clone()),
                Mark::Dropped | Mark::Duplicate | Mark::Changed(_) => None,
            })
            .collect()
    }

    /// Whether there are such.
    pub(super) fn has_too_large(&self, claim: Claim) -> bool {
        !self.too_large(claim).is_empty()
    }

    /// The claim is final: counts what it changed, and says what of it did not leave, but for what is too large.
    pub(super) fn finish(&mut self, claim: Claim, metrics: &OutputMetrics) -> Disposition {
        let mut disposition = Disposition::default();
        for mark in self.unmark(claim.start..claim.end) {
            match mark {
                Mark::Dropped => disposition.dropped += 1,
                Mark::Duplicate => disposition.duplicate += 1,
                Mark::TooLarge(_) => {}
                Mark::Changed(Changes { lowered, redacted, trimmed }) => {
                    metrics.filtered.lowered.increment(lowered.into());
                    metrics.filtered.redacted.increment(redacted.into());
                    metrics.filtered.trimmed.increment(trimmed.into());
                }
            }
        }
        disposition
    }

    /// Some events of a claim have not left, and who has them is not known: what repeats one of it may leave.
    pub(super) fn doubt(&mut self, claim: Claim) {
        if let Some(filter) = &mut self.filter {
            filter.forget(claim.start..claim.end);
        }
    }

    /// The claim is given up, or gone: nothing of it has left.
    pub(super) fn give_up(&mut self, claim: Claim) -> Disposition {
        let mut disposition = Disposition::default();
        for mark in self.unmark(claim.start..claim.end) {
            match mark {
                Mark::Dropped => disposition.dropped += 1,
                Mark::Duplicate => disposition.duplicate += 1,
                Mark::TooLarge(_) | Mark::Changed(_) => {}
            }
        }
        self.forget(claim.start..claim.end);
        disposition
    }
}

/// Of each line of a piece: its position, where it starts, and where the next one does.
fn events<'a>(
    piece: &'a [u8],
    origin: &Origin,
) -> impl Iterator<Item = (Position, usize, usize)> + use<'a> {
    let ends = memchr::memchr_iter(b'\n', piece).map(|end| end + 1);
    let (mut next, mut start) = (origin.first, 0);
    ends.map(move |end| {
        let line = (next, std::mem::replace(&mut start, end), end);
        next = next.next();
        line
    })
}

/// Lines that are put together of others.
#[derive(Default)]
struct Lines {
    pieces: Vec<Bytes>,
    copied: Vec<u8>,
    events: u64,
}

impl Lines {
    /// Lines of a piece as they are.
    fn pass(&mut self, piece: &Bytes, start: usize, end: usize) {
        let run = start..end;
        if run.len() < PASSED_ON_MIN && run.len() < piece.len() {
            self.copied.extend_from_slice(piece.get(run).unwrap_or_default());
        } else if !run.is_empty() {
            self.seal();
            self.pieces.push(piece.slice(run));
        }
    }

    /// A line without its end.
    fn add(&mut self, event: &[u8]) {
        self.copied.extend_from_slice(event);
        self.copied.push(b'\n');
        self.events += 1;
    }

    fn seal(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.copied)));
        }
    }

    fn end(mut self) -> (u64, Vec<Bytes>) {
        self.seal();
        (self.events, self.pieces)
    }
}
