//! Which events of a claim leave, and in which form, if the output has a filter.
//!
//! A batch goes through the filter each time that it is sent, and comes out as lines again. Long
//! runs of unchanged lines are not copied. The filter's decision about each event is marked by the
//! event's position until its claim is final, and is counted then: once, however many times the
//! event was sent.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::lines::line;
use super::link::REJECTED_BYTES_MAX;
use crate::filter::Changes;
use crate::filter::EventView;
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

/// An unchanged run of lines that is shorter than this many bytes is copied, together with the
/// changed lines before it. Sent uncopied, many short runs would make the vectored write slow.
const PASSED_ON_MIN: usize = 32 * 1024;

/// The buffer for one changed event is kept for the next event, unless it has grown beyond this
/// many bytes.
const CHANGED_BYTES_KEPT: usize = 1024 * 1024;

/// Bytes of events that the loop may inspect without sending any (all filtered, or all given up)
/// before it yields to the runtime, so that other tasks on this thread are not starved.
pub(super) const INSPECTED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The filter of one output, and its decisions about the claims that are not final. The ledger owns
/// it. Without a filter it passes every batch unchanged and costs nothing.
///
/// Invariant: there are marks only for positions of claims that are not final, and the marks of a
/// claim are those of the last time that it went through the filter.
pub(super) struct Filtering {
    filter: Option<Filter>,
    /// The decisions about events of claims on the wire. An event without a mark leaves unchanged,
    /// and nothing is counted for it.
    marks: BTreeMap<Position, Mark>,
    /// Bytes of the lines that the marks hold.
    marked_bytes: u64,
    /// The buffer for one changed event.
    changed: Vec<u8>,
    /// The end of the last claim that has gone through the filter. If the next claim begins after
    /// it, the queue has dropped the events between.
    next: Position,
}

/// The filter's decision about one event.
#[derive(Debug, PartialEq)]
enum Mark {
    /// The event does not leave.
    Dropped,
    /// The event does not leave, because the same event has left before.
    Duplicate,
    /// The event leaves in another form.
    Changed(Changes),
    /// The event does not leave, because it would be too large even without its bodies. Holds the
    /// line as it was received.
    TooLarge(Bytes),
}

impl Filtering {
    /// Makes a filter for the events that `cursor` hands out from now on.
    pub(super) fn new(filter: Option<Filter>, cursor: &Cursor) -> Self {
        Self {
            filter,
            marks: BTreeMap::new(),
            marked_bytes: 0,
            changed: Vec::new(),
            next: cursor.position(),
        }
    }

    /// Returns `true` if the marks hold so many bytes that nothing more should be sent. Events that
    /// are too large are held in the marks until all events before them are final.
    pub(super) fn is_full(&self) -> bool {
        self.marked_bytes >= REJECTED_BYTES_MAX
    }

    /// Notes that the cursor was rewound: it hands out claims again, from the first that is not
    /// final.
    pub(super) fn rewound(&mut self, cursor: &Cursor) {
        self.next = cursor.position();
        self.unmark(self.next..Position::MAX);
    }

    /// Notes that a claim is not on the wire any more. The claim goes through the filter again
    /// before it is sent again.
    pub(super) fn released(&mut self, claim: Claim) {
        self.unmark(claim.start..claim.end);
    }

    /// Removes the marks of these positions, and returns the marks in order.
    fn unmark(&mut self, positions: Range<Position>) -> Vec<Mark> {
        let marks: Vec<_> = self.marks.extract_if(positions, |_, _| true).map(|it| it.1).collect();
        for mark in &marks {
            if let Mark::TooLarge(line) = mark {
                self.marked_bytes -= line.len() as u64;
            }
        }
        marks
    }

    /// Notes that the queue has dropped the events at these positions. They will never be sent, so
    /// the filter must not take a repetition of such an event for a duplicate.
    fn forget(&mut self, positions: Range<Position>) {
        self.unmark(positions.clone());
        if let Some(filter) = &mut self.filter {
            filter.forget(positions);
        }
    }

    /// Returns the filter's memory of events that have left, for the delivery that takes over;
    /// `None` without deduplication.
    pub(super) fn into_seen(self) -> Option<Seen> {
        self.filter.and_then(Filter::into_seen)
    }

    /// Rebuilds the filter's memory of events that have already been sent, from the events within
    /// the filter's window that are still in the queue. Does nothing if the filter needs no
    /// history.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, only a part is rebuilt; events after that part may be sent twice.
    pub(super) async fn look_back(&mut self, cursor: &Cursor) {
        let Some(filter) = &mut self.filter else { return };
        let Some(window) = filter.history_window() else { return };
        let mut before = cursor.before(window);
        while let Some((origin, lines)) = before.next().await {
            for (position, start, end) in events(&lines, &origin) {
                let event = lines.get(start..end - 1).unwrap_or_default();
                filter.remember(event, position, origin.age);
            }
        }
        filter.history_loaded();
    }

    /// Returns `true` if the output has a filter.
    pub(super) fn is_enabled(&self) -> bool {
        self.filter.is_some()
    }

    /// Returns the events of a batch that are to be sent, in the form in which they are sent. The
    /// result may be a batch without events.
    pub(super) fn pass(&mut self, batch: Batch, cursor: &Cursor) -> Batch {
        if self.filter.is_none() {
            return batch;
        }
        self.begin_batch(&batch);
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
                let asked = EventView { event, request, position, age: origin.age };
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
                // An event that only got annotations is not counted.
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

    /// Prepares for a batch that comes to the filter, perhaps again: forgets earlier decisions
    /// about its events, and the events that the queue has dropped before it.
    fn begin_batch(&mut self, batch: &Batch) {
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

    /// Returns the lines of a batch that is given up, as they were received, and the disposition of
    /// the batch. The lines of events that the filter keeps back are left out.
    pub(super) fn originals(&mut self, batch: Batch, cursor: &Cursor) -> (Vec<Bytes>, Disposition) {
        if self.filter.is_none() {
            return (batch.pieces, Disposition::lost(batch.events));
        }
        // The batch may never have gone through the filter.
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

    /// Returns the lines of the claim's events that are not sent because they are too large.
    pub(super) fn too_large(&self, claim: Claim) -> Vec<Bytes> {
        let marks = self.marks.range(claim.start..claim.end);
        marks
            .filter_map(|(_, mark)| match mark {
                Mark::TooLarge(line) => Some(line.clone()),
                Mark::Dropped | Mark::Duplicate | Mark::Changed(_) => None,
            })
            .collect()
    }

    /// Returns `true` if the claim has events that are too large.
    pub(super) fn has_too_large(&self, claim: Claim) -> bool {
        !self.too_large(claim).is_empty()
    }

    /// Notes that the claim is final. Counts the events that were changed, and returns how many
    /// events were dropped or were duplicates. Events that are too large are in neither number.
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

    /// Notes that some events of the claim were not sent, and nobody knows which. The filter
    /// forgets all events of the claim, so that a repetition may be sent.
    pub(super) fn forget_history(&mut self, claim: Claim) {
        if let Some(filter) = &mut self.filter {
            filter.forget(claim.start..claim.end);
        }
    }

    /// Notes that the claim is given up, or dropped by the queue: none of its events was delivered.
    /// Returns how many of these events the filter would have kept back anyway.
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

/// Returns, for each line of a piece, the line's position, the index of its first byte, and the
/// index after its line break.
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

/// The pieces of a filtered batch: unchanged runs of lines, and changed lines.
#[derive(Default)]
struct Lines {
    pieces: Vec<Bytes>,
    copied: Vec<u8>,
    events: u64,
}

impl Lines {
    /// Adds the bytes `start..end` of a piece, whole lines, as they are.
    fn pass(&mut self, piece: &Bytes, start: usize, end: usize) {
        let run = start..end;
        if run.len() < PASSED_ON_MIN && run.len() < piece.len() {
            self.copied.extend_from_slice(piece.get(run).unwrap_or_default());
        } else if !run.is_empty() {
            self.seal();
            self.pieces.push(piece.slice(run));
        }
    }

    /// Adds a changed event, given without its line break.
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
