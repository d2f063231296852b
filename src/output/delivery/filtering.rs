//! What of a claim leaves, where the output has a filter.
//!
//! A batch goes through it each time that it is sent, and comes out as lines again: what is not changed is not copied where
//! there is much of it. What became of each event is marked by its position until its claim is final, and counted then,
//! once, however often it was sent.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::filter::Asked;
use crate::filter::Changes;
use crate::filter::Filter;
use crate::filter::Seen;
use crate::filter::Verdict;
use crate::output::tcp::line;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Fate;
use crate::queue::Origin;
use crate::queue::Position;
use crate::telemetry::OutputMetrics;

/// Untouched lines are copied behind changed ones, unless they are so many bytes: a piece each would be dear for who
/// writes them.
const PASSED_ON_MIN: usize = 32 * 1024;

/// Owned by the delivery loop. Without a filter it passes everything and costs nothing.
pub(super) struct Filtering {
    filter: Option<Filter>,
    /// Of claims that are not final: what became of their events. Those without a mark leave as they are.
    marks: BTreeMap<Position, Mark>,
    changed: Vec<u8>,
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
    pub(super) fn new(filter: Option<Filter>) -> Self {
        Self { filter, marks: BTreeMap::new(), changed: Vec::new() }
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
        let Some(filter) = &mut self.filter else { return batch };
        let Batch { claim, events, pieces, origins, .. } = batch;
        unmark(&mut self.marks, claim);
        filter.renew(cursor.watermark());
        if events < claim.end - claim.start {
            // What was dropped from the queue meanwhile has not left, and will not.
            filter.forget(claim.start..claim.end);
        }
        let mut lines = Lines::default();
        for (piece, origin) in pieces.into_iter().zip(&origins) {
            let (mut run, mut end, mut next) = (0, 0, origin.first);
            let mut events = filter.events(&piece);
            while let Some((event, request)) = events.next() {
                let (start, position) = (end, next);
                (end, next) = (start + event.len() + 1, position + 1);
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
                if let Mark::Changed(_) = mark {
                    lines.add(&self.changed);
                }
                self.marks.insert(position, mark);
            }
            lines.pass(&piece, run, piece.len());
        }
        let (events, pieces) = lines.end();
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Batch { claim, events, bytes, pieces, origins: Vec::new() }
    }

    /// The lines of a batch that is given up, as they were received, without those that would not have left anyway.
    pub(super) fn originals(&mut self, batch: Batch, cursor: &Cursor) -> (Vec<Bytes>, Fate) {
        if self.filter.is_none() {
            return (batch.pieces, Fate::lost(batch.events));
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
        (pieces, Fate { lost, ..self.give_up(batch.claim) })
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

    /// The claim is final: counts what it changed, and says what of it did not leave, but for what is too large.
    pub(super) fn finish(&mut self, claim: Claim, metrics: &OutputMetrics) -> Fate {
        let mut fate = Fate::default();
        for mark in unmark(&mut self.marks, claim) {
            match mark {
                Mark::Dropped => fate.dropped += 1,
                Mark::Duplicate => fate.duplicate += 1,
                Mark::TooLarge(_) => {}
                Mark::Changed(Changes { lowered, redacted, trimmed }) => {
                    metrics.filtered.lowered.increment(lowered.into());
                    metrics.filtered.redacted.increment(redacted.into());
                    metrics.filtered.trimmed.increment(trimmed.into());
                }
            }
        }
        fate
    }

    /// The claim is given up, or gone: nothing of it has left.
    pub(super) fn give_up(&mut self, claim: Claim) -> Fate {
        let Some(filter) = &mut self.filter else { return Fate::default() };
        filter.forget(claim.start..claim.end);
        let mut fate = Fate::default();
        for mark in unmark(&mut self.marks, claim) {
            match mark {
                Mark::Dropped => fate.dropped += 1,
                Mark::Duplicate => fate.duplicate += 1,
                Mark::TooLarge(_) | Mark::Changed(_) => {}
            }
        }
        fate
    }
}

/// Takes the marks of a claim.
fn unmark(marks: &mut BTreeMap<Position, Mark>, claim: Claim) -> Vec<Mark> {
    marks.extract_if(claim.start..claim.end, |_, _| true).map(|(_, mark)| mark).collect()
}

/// Of each line of a piece: its position, where it starts, and where the next one does.
fn events<'a>(
    piece: &'a [u8],
    origin: &Origin,
) -> impl Iterator<Item = (Position, usize, usize)> + use<'a> {
    let ends = memchr::memchr_iter(b'\n', piece).map(|end| end + 1);
    let mut start = 0;
    (origin.first..)
        .zip(ends)
        .map(move |(position, end)| (position, std::mem::replace(&mut start, end), end))
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
