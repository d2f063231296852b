//! One accepted batch in memory, and where its lines begin.

use std::ops::{AddAssign, Range, SubAssign};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::contract::{Append, Claim, Refused, Take, lines_of, now, numbers};
use audit::{LevelCounts, ListEnds};
use base::position::Position;
use config::BATCH_OVERHEAD;

/// A batch remembers the offset of one line in this many lines. When a large batch is cut into many
/// parts, the search for a line begins at the nearest remembered offset, and not at the start of
/// the batch. 64 lines of 1.5 KB are 96 KB to search.
const LINES_PER_MARK: usize = 64;

/// A number of events, and the number of bytes of their lines.
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

/// One batch in the queue in memory: its lines, and what the queue notes about the batch.
pub(super) struct Record {
    /// The position of the batch's first event.
    pub(super) first: Position,
    pub(super) events: u64,
    /// The events, each with the byte after it: `\n`, or a comma or `]` if they are a JSON list.
    pub(super) lines: Bytes,
    pub(super) levels: LevelCounts,
    /// When the batch was appended to the queue.
    pub(super) accepted: Instant,
    /// When the batch was appended, by the wall clock, in milliseconds since 1970.
    pub(super) received: u64,
    /// `true`: the metric `event_total` has counted the batch. A batch is counted when it is
    /// appended, or with `acknowledge = "delivered"` when an output begins to send it.
    pub(super) counted: bool,
    /// The channel to the sender, if the sender waits until the batch is delivered. The result is
    /// sent when every required output has finished the batch, or when a required output will never
    /// finish it. `None` if the sender does not wait, or has its result already.
    pub(super) waiting: Option<oneshot::Sender<Result<(), Refused>>>,
    /// The events that required outputs have set aside: the index of the output's cursor, and the
    /// position of the event.
    pub(super) aside: Vec<(usize, Position)>,
    places: Places,
}

/// The places of the events in a record.
enum Places {
    /// The events are lines. The value is the offset of every [`LINES_PER_MARK`]th line, from line
    /// 0 on: the place where this line begins. With these offsets a line is found without a search
    /// from the start. Empty until the batch is cut for the first time.
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

    /// Refuses the batch, if its sender waits. Returns whether it has waited.
    pub(super) fn refuse(&mut self) -> bool {
        let waiting = self.waiting.take();
        // The sender may have gone: then nobody needs the answer.
        waiting.map(|waiting| waiting.send(Err(Refused::Undelivered)).ok()).is_some()
    }

    /// Returns the position after the batch's last event.
    pub(super) fn end(&self) -> Position {
        self.first + self.events
    }

    /// Returns the number of bytes by which the batch counts in `queue.max_bytes`: its lines and a
    /// fixed overhead.
    pub(super) fn weight(&self) -> u64 {
        self.lines.len() as u64 + BATCH_OVERHEAD
    }

    /// Returns the positions of the batch's events.
    pub(super) fn positions(&self) -> Range<Position> {
        self.first..self.end()
    }

    /// Returns `true` if the claim has at least one event of this batch.
    pub(super) fn overlaps(&self, claim: Claim) -> bool {
        self.first < claim.end && claim.start < self.end()
    }

    /// Returns the offset in `lines` at which the line of the event with this position begins. For
    /// a position at or after the end of the batch, returns the length of `lines`.
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

    /// Returns how many events of this batch are from the position `start` on and before `end`, and
    /// the number of bytes of their lines.
    pub(super) fn amount(&mut self, start: Position, end: Position) -> Amount {
        let start = start.clamp(self.first, self.end());
        let end = end.clamp(start, self.end());
        let bytes = self.offset(end) - self.offset(start);
        Amount { events: end - start, bytes: bytes as u64 }
    }

    /// Returns the events of this batch whose positions are in `start..end`, as lines. If `lists`
    /// is `true` and the batch is a JSON list, returns a part of this list, with its ends.
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

    /// Makes lines of a JSON list: a line break replaces the byte after each event. The list itself
    /// may be on its way to a consumer, so that it is copied.
    fn end_lines(&mut self) {
        let Places::List(ends) = &self.places else { return };
        self.lines = lines_of(&self.lines, ends);
        self.places = Places::Lines(Vec::new());
    }

    /// Returns the position at which to cut the batch, so that the part from `start` to the
    /// returned position is within the limits of `take`. The part has at least one event, even if
    /// this event alone is larger than the limits.
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
