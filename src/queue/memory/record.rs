//! One accepted batch in memory, and where its lines are.

use std::ops::Range;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::audit::LevelCounts;
use crate::config::BATCH_OVERHEAD;
use crate::queue::Append;
use crate::queue::Claim;
use crate::queue::Position;
use crate::queue::Refused;
use crate::queue::Take;

/// Every so many lines of a batch that is cut, where they start is remembered, so that cutting it to pieces does not
/// search it from its start each time.
const LINES_PER_MARK: usize = 64;

/// One accepted batch.
pub(super) struct Record {
    pub(super) first: Position,
    pub(super) events: u64,
    pub(super) lines: Bytes,
    pub(super) levels: LevelCounts,
    pub(super) accepted: Instant,
    /// Whether `event_total` has it: at once, or with `delivered` when an output begins to send it.
    pub(super) counted: bool,
    /// With `delivered`: told when every required output has finished it, or when one never will.
    pub(super) waiting: Option<oneshot::Sender<Result<(), Refused>>>,
    /// Offsets of every [`LINES_PER_MARK`]th line; made at the first cut.
    marks: Vec<usize>,
}

impl Record {
    pub(super) fn new(first: Position, batch: Append) -> Self {
        Self {
            first,
            events: batch.events,
            lines: batch.lines,
            levels: batch.levels,
            accepted: Instant::now(),
            counted: false,
            waiting: None,
            marks: Vec::new(),
        }
    }

    pub(super) fn end(&self) -> Position {
        self.first + self.events
    }

    pub(super) fn weight(&self) -> u64 {
        self.lines.len() as u64 + BATCH_OVERHEAD
    }

    pub(super) fn positions(&self) -> Range<Position> {
        self.first..self.end()
    }

    pub(super) fn overlaps(&self, claim: Claim) -> bool {
        self.first < claim.end && claim.start < self.end()
    }

    /// Where the line of this event starts; for the end, the length.
    fn offset(&mut self, position: Position) -> usize {
        let Ok(line) = usize::try_from(position.saturating_since(self.first)) else {
            return self.lines.len();
        };
        if line == 0 {
            return 0;
        }
        if position >= self.end() {
            return self.lines.len();
        }
        if self.marks.is_empty() {
            self.marks.push(0);
            let ends = memchr::memchr_iter(b'\n', &self.lines);
            self.marks
                .extend(ends.skip(LINES_PER_MARK - 1).step_by(LINES_PER_MARK).map(|end| end + 1));
        }
        let mark = self.marks.get(line / LINES_PER_MARK).copied().unwrap_or(self.lines.len());
        match line % LINES_PER_MARK {
            0 => mark,
            rest => memchr::memchr_iter(b'\n', &self.lines[mark..])
                .nth(rest - 1)
                .map_or(self.lines.len(), |end| mark + end + 1),
        }
    }

    /// Lines of `start..end`, cut to this record.
    pub(super) fn slice(&mut self, start: Position, end: Position) -> Bytes {
        let (from, to) = (self.offset(start), self.offset(end));
        self.lines.slice(from..to)
    }

    /// Where to cut so that at most `take` comes behind `start`, but at least one event.
    pub(super) fn cut(&mut self, start: Position, take: Take) -> Position {
        let from = self.offset(start);
        let mut end = start;
        for line_end in memchr::memchr_iter(b'\n', &self.lines[from..]) {
            let fits = (line_end as u64) < take.bytes && end - start < take.events;
            if !fits && end > start {
                break;
            }
            end += 1;
            if !fits {
                break;
            }
        }
        end.clamp(start + 1, self.end())
    }
}
