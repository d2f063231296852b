//! One accepted batch in memory, and the places of its lines.

use std::ops::{AddAssign, Range, SubAssign};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::contract::{Append, Claim, Refused, Take, lines_of, now, numbers};
use audit::{LevelCounts, ListEnds};
use base::position::Position;
use config::BATCH_OVERHEAD;

/// The number of lines from one stored offset to the next. A search for a line in a large batch
/// begins at a stored offset: 64 lines of 1.5 KB are 96 KB to search.
const LINES_PER_MARK: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        self.events -= other.events;
        self.bytes -= other.bytes;
    }
}

pub(super) struct Record {
    pub(super) first: Position,
    pub(super) events: u64,
    /// The events, each with the byte after it: `\n`, or a comma or `]` in a JSON list.
    pub(super) lines: Bytes,
    pub(super) levels: LevelCounts,
    pub(super) accepted: Instant,
    /// The wall-clock time of acceptance, in milliseconds since 1970.
    pub(super) received: u64,
    /// `true` if the metric `event_total` has counted the batch: when it was appended, or with
    /// `acknowledge = "delivered"` when an output began to send it.
    pub(super) counted: bool,
    /// The channel to a sender that waits until the batch is delivered, or can't be delivered.
    pub(super) waiting: Option<oneshot::Sender<Result<(), Refused>>>,
    /// The events that required outputs have set aside while a sender waits: the index of the
    /// cursor, and the position.
    pub(super) aside: Vec<(usize, Position)>,
    places: Places,
}

enum Places {
    /// The offset of every [`LINES_PER_MARK`]th line. Empty until the first cut of the batch.
    Lines(Vec<usize>),
    /// The events are a JSON list ([`Append::list`]).
    List(ListEnds),
}

impl Record {
    pub(super) fn new(first: Position, batch: Append) -> Self {
        Self {
            first,
            events: batch.events,
            lines: batch.lines,
            levels: batch.levels,
            accepted: Instant::now(),
            received: now(),
            counted: false,
            waiting: None,
            aside: Vec::new(),
            places: batch.list.map_or(Places::Lines(Vec::new()), Places::List),
        }
    }

    pub(super) fn refuse(&mut self) -> bool {
        let waiting = self.waiting.take();
        waiting.map(|waiting| waiting.send(Err(Refused::Undelivered)).ok()).is_some()
    }

    pub(super) fn end(&self) -> Position {
        self.first + self.events
    }

    /// Returns the number of bytes by which the batch counts in `queue.max_bytes`.
    pub(super) fn weight(&self) -> u64 {
        self.lines.len() as u64 + BATCH_OVERHEAD
    }

    pub(super) fn positions(&self) -> Range<Position> {
        self.first..self.end()
    }

    pub(super) fn overlaps(&self, claim: Claim) -> bool {
        self.first < claim.end && claim.start < self.end()
    }

    /// Returns the offset in `lines` of the event at this position, or of the end if it is later.
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
        let marks = match &mut self.places {
            Places::Lines(marks) => marks,
            Places::List(ends) => {
                return ends.offset(line);
            }
        };
        if marks.is_empty() {
            marks.push(0);
            let ends = memchr::memchr_iter(b'\n', &self.lines);
            marks.extend(ends.skip(LINES_PER_MARK - 1).step_by(LINES_PER_MARK).map(|end| end + 1));
        }
        let mark = marks.get(line / LINES_PER_MARK).copied().unwrap_or(self.lines.len());
        match line % LINES_PER_MARK {
            0 => mark,
            rest => memchr::memchr_iter(b'\n', &self.lines[mark..])
                .nth(rest - 1)
                .map_or(self.lines.len(), |end| mark + end + 1),
        }
    }

    pub(super) fn amount(&mut self, start: Position, end: Position) -> Amount {
        let start = start.clamp(self.first, self.end());
        let end = end.clamp(start, self.end());
        let bytes = self.offset(end) - self.offset(start);
        Amount { events: end - start, bytes: bytes as u64 }
    }

    /// Returns the events from `start` to `end`: as lines or, if `lists` is `true` and the batch is
    /// a list, as a part of the list.
    pub(super) fn slice(
        &mut self,
        start: Position,
        end: Position,
        lists: bool,
    ) -> (Bytes, Option<ListEnds>) {
        if !lists {
            self.end_lines();
        }
        let (from, to) = (self.offset(start), self.offset(end));
        let ends = match &self.places {
            Places::Lines(_) => None,
            Places::List(ends) => Some(ends.part(numbers(self.first, start..end))),
        };
        (self.lines.slice(from..to), ends)
    }

    /// Turns a list into lines, in a copy: a consumer may be receiving the list itself.
    fn end_lines(&mut self) {
        let Places::List(ends) = &self.places else { return };
        self.lines = lines_of(&self.lines, ends);
        self.places = Places::Lines(Vec::new());
    }

    /// Returns the end of the part from `start` on that is within the limits of `take`.
    pub(super) fn cut(&mut self, start: Position, take: Take) -> Position {
        let from = self.offset(start);
        let ends = match &self.places {
            Places::Lines(_) => None,
            Places::List(ends) => Some(ends.part(numbers(self.first, start..self.end()))),
        };
        let (_, events) = take.front_of(&self.lines[from..], ends.as_ref());
        (start + events).clamp(start + 1, self.end())
    }
}
