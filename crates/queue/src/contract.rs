//! The contract between the queue and its callers: the types of the batches that are appended and
//! taken, and of the queue's answers. They are the same for the queue in memory and for the queue
//! in files.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use audit::{LevelCounts, ListEnds};
use base::fate::Fate;
use base::position::Position;
use telemetry::OutputMetrics;

/// A batch that is appended: the events of one request.
#[derive(Debug, Clone)]
pub struct Append {
    /// The events of the batch, each followed by one `\n`; if `list` is `Some`, by a comma or `]`.
    pub lines: Bytes,
    /// `Some`: the events are a part of a JSON list, as it was received: each is followed by a
    /// comma, and the last by `]`. Only a queue that asks for lists
    /// ([`Queue::keeps_list`](super::Queue::keeps_list)) gets them.
    pub list: Option<ListEnds>,
    /// The number of events, which is the number of lines.
    pub events: u64,
    /// The number of the batch's events of each audit level. The metrics count them when the batch
    /// is accepted.
    pub levels: LevelCounts,
}

/// The reason why the queue did not take a batch. The sender still has the batch and can send it
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue has no room for the batch.
    #[error("the queue is full")]
    Full,
    /// The disk refuses to store the batch, or does not answer.
    #[error("the queue's disk does not store the events")]
    Disk,
    /// With `acknowledge = "delivered"`: no acknowledgement of the batch will come, for example
    /// because a required output has ended or was removed.
    #[error("no output will acknowledge the events")]
    Undelivered,
}

/// A sender's receipt for a batch, returned by [`Queue::append`](super::Queue::append). If the
/// ticket is dropped before the batch is acknowledged, the queue removes the batch, because its
/// sender gets no answer and may send it again. The batch stays if an output has begun to send it,
/// or if the writer thread has begun to store it.
#[must_use]
pub struct Ticket {
    /// The answer to the sender. As long as `waits` is `Some`, this is the answer if the queue ends
    /// without having answered.
    pub answer: Result<(), Refused>,
    /// `None` once the answer is known.
    pub waits: Option<Waits>,
}

/// A batch whose sender has no answer yet.
pub struct Waits {
    pub done: oneshot::Receiver<Result<(), Refused>>,
    pub(crate) queue: Arc<dyn Withdraw>,
    /// The number by which the queue knows the batch.
    pub number: u64,
}

/// A queue from which a batch can be taken back.
pub(super) trait Withdraw: Send + Sync {
    /// Removes the batch with this number, because its sender has gone. Does nothing if it is too
    /// late for that.
    fn withdraw(&self, number: u64);
}

impl Ticket {
    /// Makes the receipt for a batch whose sender can be told at once that it is safe.
    pub fn stored() -> Self {
        Self { answer: Ok(()), waits: None }
    }

    /// Waits until the sender may be told that its batch is safe. For a queue in files, this is
    /// when the batch is synced to the disk. For a queue in memory, it is at once, or with
    /// `acknowledge = "delivered"` when every required output has acknowledged the batch or counted
    /// it as lost. A second call returns the same result as the first.
    ///
    /// # Errors
    ///
    /// The batch is not safe, and the sender must keep it. The error is [`Refused::Disk`] if the
    /// queue is in files, or with `acknowledge = "delivered"` [`Refused::Undelivered`].
    pub async fn acknowledged(&mut self) -> Result<(), Refused> {
        if let Some(Waits { done, .. }) = &mut self.waits {
            self.answer = done.await.unwrap_or(self.answer);
            self.waits = None;
        }
        self.answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(Waits { queue, number, .. }) = &self.waits {
            queue.withdraw(*number);
        }
    }
}

/// The reason why an output could not be added to the queue. The queue is then as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The queue already has an output of the same name, which was not removed yet.
    #[error("an output of this name is in the queue already: it has to leave first")]
    Taken,
    /// The cursors file has no room for another output. The value is the greatest number of
    /// outputs.
    #[error("the queue's directory has room for {0} outputs: remove one first")]
    TooMany(usize),
    /// The name of the new output could not be stored in time in the cursors file: writing or
    /// syncing the file has failed or hangs.
    #[error(
        "the queue's directory has not stored its place within {} s ({why}): repair the disk, then reload again",
        .within.as_secs()
    )]
    Disk {
        /// The time for which the queue has tried in vain to write the cursors file.
        within: Duration,
        /// The disk's error, or a general sentence if the error is not known.
        why: String,
    },
    /// The queue is closed, and takes no more outputs.
    #[error("the queue has ended")]
    Closed,
}

/// The result of [`Cursor::redeliver`](super::Cursor::redeliver), by which an output asks for the
/// lines of a claim in order to send them again.
#[derive(Debug)]
pub enum Redelivery {
    /// The claim counts as sent again, and this batch has its lines.
    Batch(Batch),
    /// All events of the claim were dropped from the queue, so that there is nothing to send. The
    /// claim does not exist any more.
    Gone,
    /// The lines have to be read from a file first. [`Cursor::readable`](super::Cursor::readable)
    /// reads them; then the caller calls [`Cursor::redeliver`](super::Cursor::redeliver) again.
    /// While the relay drains, a queue in files always returns this.
    NotYet,
}

/// The limits of one call of [`Cursor::next`](super::Cursor::next), which takes events to send. At
/// least one event is always taken, even if it is larger than the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// The greatest number of bytes of lines that are taken at once.
    pub bytes: u64,
    /// The greatest number of events that are taken at once.
    pub events: u64,
}

impl Take {
    /// Returns how many bytes, and how many events, at the front of this text are within the
    /// limits. It is at least one event, even if this event alone is larger than the limits. The
    /// text is lines, or a part of a list with these ends.
    pub(super) fn front_of(self, text: &[u8], ends: Option<&ListEnds>) -> (usize, u64) {
        match ends {
            Some(ends) => self.front(ends.iter()),
            None => self.front(memchr::memchr_iter(b'\n', text)),
        }
    }

    /// Does the same as [`Take::front_of`], for events that end before these offsets.
    pub fn front(self, ends: impl Iterator<Item = usize>) -> (usize, u64) {
        let (mut bytes, mut events) = (0, 0);
        for end in ends {
            let fits = (end as u64) < self.bytes && events < self.events;
            if events > 0 && !fits {
                break;
            }
            (bytes, events) = (end + 1, events + 1);
        }
        (bytes, events)
    }
}

/// A range of positions, `start..end`, whose events an output has taken from the queue to send. Two
/// claims of the same output never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The first position of the claim.
    pub start: Position,
    /// The position after the last position of the claim.
    pub end: Position,
}

impl Claim {
    /// Makes a claim of plain numbers, for tests.
    pub fn of(start: u64, end: u64) -> Self {
        Self { start: Position::new(start), end: Position::new(end) }
    }

    /// Returns the positions as plain numbers, for tests.
    pub fn numbers(self) -> Range<u64> {
        self.start.get()..self.end.get()
    }
}

/// The events of one claim, with their lines.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The claim. The output passes it to the queue to say what happened to these events.
    pub claim: Claim,
    /// The number of events in this batch. It is smaller than the number of positions in the claim
    /// if some events of the claim were dropped.
    pub events: u64,
    /// The number of bytes in all `pieces` together.
    pub bytes: u64,
    /// The lines of the batch, in order, in one or more pieces. A piece holds whole lines, each
    /// ended by `\n`. After [`Cursor::next_as`](super::Cursor::next_as) it may be a part of a list
    /// ([`is_list`]).
    pub pieces: Vec<Bytes>,
    /// For each piece that is a part of a list, the ends of its events; `None` for a piece of
    /// lines. Pieces of lines at the end may have no element.
    pub ends: Vec<Option<ListEnds>>,
    /// The origins (positions and times) of the lines, in their order. The queue returns one origin
    /// for each piece. Empty unless [`Cursor::tell_origins`](super::Cursor::tell_origins) has asked
    /// for origins.
    pub origins: Vec<Origin>,
}

impl Batch {
    /// Makes a batch that has no lines yet.
    pub fn of(claim: Claim) -> Self {
        Self {
            claim,
            events: 0,
            bytes: 0,
            pieces: Vec::new(),
            ends: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// Adds `events` events at the end: lines, or a part of a list with these ends.
    pub fn push(
        &mut self,
        events: u64,
        (text, ends): (Bytes, Option<ListEnds>),
        origin: Option<Origin>,
    ) {
        if ends.is_some() {
            self.ends.resize(self.pieces.len(), None);
            self.ends.push(ends);
        }
        self.events += events;
        self.bytes += text.len() as u64;
        self.pieces.push(text);
        self.origins.extend(origin);
    }

    /// Returns the events in order, each without the byte after it.
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        self.texts().flat_map(|(piece, ends)| audit::Events::of(piece, ends))
    }

    /// Returns each piece, with the ends of its events if it is a part of a list.
    pub fn texts(&self) -> impl Iterator<Item = (&Bytes, Option<&ListEnds>)> {
        let ends = self.ends.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        self.pieces.iter().zip(ends)
    }

    /// Returns the position of each line, in the order of the lines. The batch must have origins.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        self.origins.iter().flat_map(Origin::positions)
    }

    /// Returns for each line its position, and the time at which it was accepted
    /// ([`Origin::received`]), in the order of the lines. The batch must have origins.
    pub fn places(&self) -> impl Iterator<Item = (Position, u64)> {
        let of = |origin: &Origin| {
            let received = origin.received;
            origin.positions().map(move |position| (position, received))
        };
        self.origins.iter().flat_map(of)
    }
}

/// Returns `true` if this piece of a batch is a part of a JSON list as it was received: events with
/// commas between them, and one more byte at the end, a comma or `]`. Other pieces end with `\n`.
pub fn is_list(piece: &[u8]) -> bool {
    !piece.ends_with(b"\n")
}

/// Returns a copy of a list, or of a part of one, as lines: a line break is behind each event.
pub(crate) fn lines_of(list: &[u8], ends: &ListEnds) -> Bytes {
    let mut lines = list.to_vec();
    ends.end_lines(&mut lines);
    Bytes::from(lines)
}

/// Returns the number of the events at these positions among those from the position `first` on.
pub(crate) fn numbers(first: Position, positions: Range<Position>) -> Range<usize> {
    let number = |position: Position| {
        usize::try_from(position.saturating_since(first)).unwrap_or(usize::MAX)
    };
    number(positions.start)..number(positions.end)
}

/// Returns the events of a batch in order, each without its line break. `pieces` are the lines of
/// the batch.
pub fn lines<P: AsRef<[u8]>>(pieces: &[P]) -> impl Iterator<Item = &[u8]> {
    pieces.iter().flat_map(|piece| {
        let (piece, mut start) = (piece.as_ref(), 0);
        memchr::memchr_iter(b'\n', piece)
            .map(move |end| &piece[std::mem::replace(&mut start, end + 1)..end])
    })
}

/// The positions and the times of some lines of a batch that follow each other. The lines have the
/// positions from `first` on, without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The position of the first line.
    pub first: Position,
    /// The number of lines.
    pub events: u64,
    /// The time since the lines were accepted. For a queue in files it is measured by the wall
    /// clock in milliseconds, because the time of acceptance must be valid after a restart.
    pub age: Duration,
    /// The time of acceptance by the wall clock, in milliseconds since 1970. It is the same each
    /// time that the lines are taken. A queue in files keeps it over restarts.
    pub received: u64,
}

/// Returns `true` if a queue in which this many bytes are needed ([`super::Queue::needed`]) is
/// crowded: they are at least three quarters of its limit.
pub(crate) fn is_crowded(needed: u64, capacity: u64) -> bool {
    needed >= capacity / 4 * 3
}

/// Waits until `is_so` returns `true`. `wakes` is notified whenever its result may have become
/// `true`.
pub(crate) async fn until(wakes: &Notify, is_so: impl Fn() -> bool) {
    loop {
        let woken = wakes.notified();
        if is_so() {
            return;
        }
        woken.await;
    }
}

/// Returns the current time by the wall clock, in milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Origin {
    /// Returns the position of each line, in their order.
    pub fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        let first = self.first;
        (0..self.events).map(move |offset| first + offset)
    }
}

/// Counts the events of a final claim that the consumer did not get with this claim, by reason. An
/// event counts in at most one of these numbers. The consumer has acknowledged all other events of
/// the claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disposition {
    /// The number of events that the consumer has refused permanently, or that the output has given
    /// up. They count as lost for this output.
    pub lost: u64,
    /// The number of events that the output's filter does not let through. They are not a loss.
    pub dropped: u64,
    /// The number of events that were not sent again, because the consumer has got the same event
    /// before, at an earlier position.
    pub duplicate: u64,
    /// The number of events that the output has set aside: 1 or 0.
    pub aside: u64,
    /// The fate of each event, for the evidence. More events may be lost here than the numbers
    /// above say: if nobody knows which events of a claim are lost, all of them count as lost here.
    pub fates: Fates,
}

/// The fates of the events of a final claim, one by one. Only the evidence needs them. Without
/// evidence, only `rest` is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    /// The events that the consumer did not get, in the order of their positions.
    pub not_delivered: Vec<(Position, Fate)>,
    /// The reason why the consumer did not get the events that are not in `not_delivered`; `None`
    /// if the consumer has them.
    pub rest: Option<Fate>,
    /// The lines that were sent, in the order of their positions, if the filter has changed or
    /// dropped events of the claim. Empty if all lines were sent as they came.
    pub sent: Vec<SentLine>,
}

/// A line that was sent to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentLine {
    /// The position of its event.
    pub position: Position,
    /// The SHA-256 of the line, without its line break.
    pub hash: [u8; 32],
    /// `true`: the filter has changed the event.
    pub is_changed: bool,
}

impl Fates {
    /// Notes that the events at these positions are lost.
    pub(crate) fn lose(&mut self, positions: &[Position]) {
        self.not_delivered.extend(positions.iter().map(|position| (*position, Fate::Lost)));
        self.not_delivered.sort_unstable_by_key(|(position, _)| *position);
    }

    /// Notes that the lost events are in a file of dead letters.
    pub fn kept_as_dead_letters(&mut self) {
        let fates = self.not_delivered.iter_mut().map(|(_, fate)| fate).chain(&mut self.rest);
        fates.filter(|fate| **fate == Fate::Lost).for_each(|fate| *fate = Fate::DeadLetter);
    }
}

/// A value that knows the lines as they came in, so that lines in files can be compared with them.
pub trait Originals: Send + Sync + fmt::Debug {
    /// Compares lines that were read from a file, which begin with the event at `first`. Returns,
    /// in rising order, the positions of the lines that have changed. A line of which nothing is
    /// known counts as unchanged. Blocks the thread.
    fn changed(&self, first: Position, lines: &[u8]) -> Vec<Position>;
}

/// The end of some events at an output: finished, or lost before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The output has finished the events.
    Settled(Fates),
    /// The events were lost before the output could finish them. The value is the reason.
    Lost(&'static str),
}

/// Events that an output has finished, for the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The name of the output.
    pub output: String,
    /// The positions of the events. Two values of one output never have the same position, unless
    /// the queue was opened again in between, or the first one says that the event was set aside.
    pub claim: Claim,
    /// The time when the events were finished, in milliseconds since 1970.
    pub at: u64,
    /// The end of the events at the output.
    pub outcome: Outcome,
}

impl Disposition {
    /// Makes the value for a claim of which this many events are lost. The consumer has the other
    /// events of the claim.
    pub fn lost(events: u64) -> Self {
        let fates = Fates { rest: Some(Fate::Lost), ..Fates::default() };
        Self { lost: events, fates, ..Self::default() }
    }

    /// Makes the value for a claim whose one event is set aside.
    pub fn aside() -> Self {
        let fates = Fates { rest: Some(Fate::Aside), ..Fates::default() };
        Self { aside: 1, fates, ..Self::default() }
    }

    /// Adds the events of a final claim to the output's counters, each event once. `events` is the
    /// number of the claim's events that are still in the queue. Events that were dropped from the
    /// queue are counted already; the fields of `self` may include them, so the sum of the fields
    /// is limited to `events`.
    pub fn count(&self, events: u64, metrics: &OutputMetrics) {
        let mut rest = events.saturating_sub(self.aside);
        for (counter, count) in [
            (&metrics.lost, self.lost),
            (&metrics.fates.filtered.dropped, self.dropped),
            (&metrics.fates.filtered.duplicate, self.duplicate),
        ] {
            let count = count.min(rest);
            rest -= count;
            counter.increment(count);
        }
        metrics.events.increment(rest);
    }
}

/// An event that an output has set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// The number of bytes by which the event counts in `queue.max_bytes`.
    pub bytes: u64,
    /// The time of its acceptance by the wall clock, in milliseconds since 1970.
    pub received: u64,
}

impl Aside {
    /// Returns the time since the event was accepted, by the wall clock.
    pub fn age(self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.received))
    }

    /// Counts the event, which is decided now.
    pub fn count(self, disposition: &Disposition, metrics: &OutputMetrics) {
        disposition.count(1, metrics);
        if disposition.lost + disposition.dropped + disposition.duplicate == 0 {
            metrics.delivered(self.age(), Instant::now());
        }
    }
}

/// The backlog of one output: the events that it has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// The number of events that are not finished.
    pub events: u64,
    /// The number of bytes of these events' lines.
    pub bytes: u64,
    /// The number of seconds since the oldest of these events was accepted; 0 if there are none.
    pub lag: f64,
}

impl Backlog {
    /// Sets the gauges of an output to this backlog.
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn show(&self, metrics: &OutputMetrics) {
        metrics.backlog.events.set(self.events as f64);
        metrics.backlog.bytes.set(self.bytes as f64);
        metrics.backlog.lag.set(self.lag);
    }
}
