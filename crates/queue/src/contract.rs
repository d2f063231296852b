//! The contract between the queue and its callers: the batches that are appended and taken, and the
//! queue's responses. The contract is the same for the queue in memory and the queue in files.

use std::any::Any;
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
use telemetry::{Filtered, OutputMetrics};

/// A batch that is appended: the events of one request.
#[derive(Debug, Clone)]
pub struct Append {
    /// The events, each followed by `\n` or, if `list` is `Some`, by the byte that followed it in
    /// the request.
    pub lines: Bytes,
    /// The ends of the events if they are a JSON list. `]` follows the last event, and a comma
    /// follows each other one. `None` if they are lines. See
    /// [`Queue::keeps_list`](super::Queue::keeps_list).
    pub list: Option<ListEnds>,
    /// The number of events.
    pub events: u64,
    /// The number of events of each audit level, for the metrics.
    pub levels: LevelCounts,
}

/// A value that a queue in files keeps until it has stored or refused a batch, also if the batch's
/// sender has gone: until then, the batch is in memory.
pub type Held = Option<Arc<dyn Any + Send + Sync>>;

/// The reason why a batch is not acknowledged. The sender still has the batch and can send it
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue has no room for the batch, or is closed.
    #[error("the queue is full")]
    Full,
    /// The disk refuses to store the batch, or does not respond.
    #[error("the queue's disk does not store the events")]
    Disk,
    /// Not every required output will deliver the batch: one has ended or left, or the batch was
    /// dropped. This happens only with `acknowledge = "delivered"`.
    #[error("no output will acknowledge the events")]
    Undelivered,
}

/// A sender's receipt for a batch, from [`Queue::append`](super::Queue::append). If the ticket is
/// dropped before the batch is acknowledged, the queue removes the batch, because the sender gets
/// no response and may send the batch again. The batch stays if an output has begun to send it, or
/// if the writer thread has begun to store it.
#[must_use]
pub struct Ticket {
    /// The response to the sender. While `waits` is `Some`, it is used only if the queue ends.
    pub answer: Result<(), Refused>,
    /// The wait for the response. `None` once the response is known.
    pub waits: Option<Waits>,
}

/// A batch whose sender has no response yet.
pub struct Waits {
    pub done: oneshot::Receiver<Result<(), Refused>>,
    pub(crate) queue: Arc<dyn Withdraw>,
    /// The number by which the queue knows the batch.
    pub number: u64,
}

pub(super) trait Withdraw: Send + Sync {
    /// Removes the batch with this number, because its sender has gone. Does nothing, and returns
    /// `false`, if an output has begun to send the batch, or the writer thread to store it.
    fn withdraw(&self, number: u64) -> bool;

    /// Returns `true` if no output has joined since the batch with this number was appended.
    fn is_for_all(&self, number: u64) -> bool;
}

/// A batch whose sender has no response yet, or had none when this value was made.
pub struct Appended {
    batch: Option<(Arc<dyn Withdraw>, u64)>,
}

impl Appended {
    /// Removes the batch from the queue. Returns `false` if it stays, because an output has begun
    /// to send it.
    pub fn withdraw(&self) -> bool {
        self.batch.as_ref().is_some_and(|(queue, number)| queue.withdraw(*number))
    }

    /// Returns `true` if every output of the queue gets the batch, or has got it. An output that
    /// has joined later does not.
    pub fn is_for_all(&self) -> bool {
        self.batch.as_ref().is_some_and(|(queue, number)| queue.is_for_all(*number))
    }
}

impl Ticket {
    /// Makes the receipt for a batch that is acknowledged without a wait.
    pub fn stored() -> Self {
        Self { answer: Ok(()), waits: None }
    }

    /// Waits until the sender may be told that its batch is safe. In a queue in files, the batch
    /// must be synced. In a queue in memory, there is no wait unless `acknowledge` is `delivered`:
    /// every required output must then finish the batch. Later calls return the same result.
    ///
    /// # Errors
    ///
    /// The batch is not safe, and the sender must keep it: [`Refused::Disk`] from a queue in files,
    /// [`Refused::Undelivered`] with `acknowledge = "delivered"`.
    pub async fn acknowledged(&mut self) -> Result<(), Refused> {
        if let Some(Waits { done, .. }) = &mut self.waits {
            self.answer = done.await.unwrap_or(self.answer);
            self.waits = None;
        }
        self.answer
    }

    /// Returns the batch, which the caller may withdraw as dropping the ticket does.
    pub fn appended(&self) -> Appended {
        let batch = self.waits.as_ref().map(|waits| (Arc::clone(&waits.queue), waits.number));
        Appended { batch }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.appended().withdraw();
    }
}

/// The reason why an output could not be added. The queue is then unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The queue has an output of the same name.
    #[error("an output of this name is in the queue already: it has to leave first")]
    Taken,
    /// The cursors file has no room for another output. The value is the largest number of outputs.
    #[error("the queue's directory has room for {0} outputs: remove one first")]
    TooMany(usize),
    /// The cursors file with the new output could not be written and synced in time.
    #[error(
        "the queue's directory has not stored its place within {} s ({why}): repair the disk, then reload again",
        .within.as_secs()
    )]
    Disk {
        /// The time for which the queue has tried.
        within: Duration,
        /// The disk's error, or a general sentence if it is unknown.
        why: String,
    },
    /// The queue is closed, and takes no more outputs.
    #[error("the queue has ended")]
    Closed,
}

/// The result of [`Cursor::redeliver`](super::Cursor::redeliver).
#[derive(Debug)]
pub enum Redelivery {
    /// The claim is on the wire again, and this batch has its lines.
    Batch(Batch),
    /// The claim has no event left to send.
    Gone,
    /// The lines must be read from a file first. Call again when
    /// [`Cursor::readable`](super::Cursor::readable) returns. While the relay drains, a queue in
    /// files returns only this, unless it is ephemeral.
    NotYet,
}

/// The limits of one claim ([`Cursor::next`](super::Cursor::next)). At least one event is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// The largest number of bytes.
    pub bytes: u64,
    /// The largest number of events.
    pub events: u64,
}

impl Take {
    /// Returns how many bytes and events at the front of `text` are within the limits: at least one
    /// event.
    pub(super) fn front_of(self, text: &[u8], ends: Option<&ListEnds>) -> (usize, u64) {
        match ends {
            Some(ends) => self.front(ends.iter()),
            None => self.front(memchr::memchr_iter(b'\n', text)),
        }
    }

    /// Like `front_of`. `ends` are the offsets of the byte after each event.
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

/// A range of positions that an output has taken to send. Claims of one output never overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The first position of the claim.
    pub start: Position,
    /// The position after the last one.
    pub end: Position,
}

impl Claim {
    /// Makes a claim from plain numbers, for tests.
    pub fn of(start: u64, end: u64) -> Self {
        Self { start: Position::new(start), end: Position::new(end) }
    }

    /// Returns the positions as plain numbers, for tests.
    pub fn numbers(self) -> Range<u64> {
        self.start.get()..self.end.get()
    }
}

/// The events of one claim, with their lines.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The claim, by which the output names these events to the queue.
    pub claim: Claim,
    /// The number of events: fewer than the claim's positions if some were dropped or are missing.
    pub events: u64,
    /// The number of bytes of all `pieces`.
    pub bytes: u64,
    /// The lines in order. Each piece holds whole lines, each with its `\n`. After
    /// [`Cursor::next_as`](super::Cursor::next_as) a piece may also be a part of a list
    /// ([`is_list`]).
    pub pieces: Vec<Bytes>,
    /// The ends of the events in each piece that is a part of a list; `None` for a piece of lines.
    /// The last elements may be left out if they are `None`.
    pub ends: Vec<Option<ListEnds>>,
    /// The positions and times of the lines, one element for each piece. Empty for a new batch
    /// unless [`Cursor::tell_acceptances`](super::Cursor::tell_acceptances) is set.
    pub acceptances: Vec<Acceptance>,
}

impl Batch {
    /// Makes the batch of a claim, still without events.
    pub fn of(claim: Claim) -> Self {
        Self { claim, ..Self::default() }
    }

    /// Adds events at the end: lines, or a part of a list with these ends.
    pub fn push(
        &mut self,
        events: u64,
        (text, ends): (Bytes, Option<ListEnds>),
        acceptance: Option<Acceptance>,
    ) {
        if ends.is_some() {
            self.ends.resize(self.pieces.len(), None);
            self.ends.push(ends);
        }
        self.events += events;
        self.bytes += text.len() as u64;
        self.pieces.push(text);
        self.acceptances.extend(acceptance);
    }

    /// Returns the events in order, without the byte that follows each.
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        self.texts().flat_map(|(piece, ends)| audit::Events::of(piece, ends))
    }

    /// Returns each piece, with the ends of its events if it is a part of a list.
    pub fn texts(&self) -> impl Iterator<Item = (&Bytes, Option<&ListEnds>)> {
        let ends = self.ends.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        self.pieces.iter().zip(ends)
    }

    /// Returns the position of each line in order. The batch must have acceptances.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        self.acceptances.iter().flat_map(Acceptance::positions)
    }

    /// Returns the position and [`Acceptance::received`] of each line. The batch must have
    /// acceptances.
    pub fn places(&self) -> impl Iterator<Item = (Position, u64)> {
        let of = |acceptance: &Acceptance| {
            let received = acceptance.received;
            acceptance.positions().map(move |position| (position, received))
        };
        self.acceptances.iter().flat_map(of)
    }
}

/// Returns `true` if this piece of a batch is a part of a received JSON list: events with commas
/// between them, and a comma or `]` at the end. Other pieces end with `\n`.
pub fn is_list(piece: &[u8]) -> bool {
    !piece.ends_with(b"\n")
}

pub(crate) fn lines_of(list: &[u8], ends: &ListEnds) -> Bytes {
    let mut lines = list.to_vec();
    ends.end_lines(&mut lines);
    Bytes::from(lines)
}

/// Returns the distances of these positions from `first`, as indexes of events.
pub(crate) fn numbers(first: Position, positions: Range<Position>) -> Range<usize> {
    let number = |position: Position| {
        usize::try_from(position.saturating_since(first)).unwrap_or(usize::MAX)
    };
    number(positions.start)..number(positions.end)
}

/// Returns the lines of these pieces in order, without their line breaks.
pub fn lines<P: AsRef<[u8]>>(pieces: &[P]) -> impl Iterator<Item = &[u8]> {
    pieces.iter().flat_map(|piece| {
        let (piece, mut start) = (piece.as_ref(), 0);
        memchr::memchr_iter(b'\n', piece)
            .map(move |end| &piece[std::mem::replace(&mut start, end + 1)..end])
    })
}

/// The positions of lines that follow each other without a gap, and the time of their acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acceptance {
    /// The position of the first line.
    pub first: Position,
    /// The number of lines.
    pub events: u64,
    /// The time since the lines were accepted. In a queue in files it is a difference of wall-clock
    /// milliseconds, because it must be valid after a restart.
    pub age: Duration,
    /// The time of acceptance by the wall clock, in milliseconds since 1970. It never changes.
    pub received: u64,
}

pub(crate) fn is_crowded(needed: u64, capacity: u64) -> bool {
    needed >= capacity / 4 * 3
}

/// Waits until `is_so` returns `true`. `wakes` must be notified when this result may have changed.
pub(crate) async fn until(wakes: &Notify, is_so: impl Fn() -> bool) {
    loop {
        let woken = wakes.notified();
        if is_so() {
            return;
        }
        woken.await;
    }
}

pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Acceptance {
    /// Returns the position of each line in order.
    pub fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        let first = self.first;
        (0..self.events).map(move |offset| first + offset)
    }
}

/// The numbers of events of a final claim that the consumer did not get with this claim, by reason.
/// Each event counts once. The consumer has acknowledged all other events of the claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disposition {
    /// Events that the consumer has refused permanently, or that the output has given up.
    pub lost: u64,
    /// Events that the output's filter has dropped. They are not a loss.
    pub dropped: u64,
    /// Events that were not sent, because the consumer has the same event from an earlier position.
    pub duplicate: u64,
    /// Events that the output has set aside: 1 or 0.
    pub aside: u64,
    /// The fate of each event, for the evidence. More events may be lost here than `lost` counts:
    /// if it is unknown which events of a claim are lost, all events of the claim are lost here.
    pub fates: Fates,
}

/// The fate of each event of a final claim. If no evidence is recorded, only `rest` may be set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    /// Events that the consumer did not get, in the order of their positions.
    pub not_delivered: Vec<(Position, Fate)>,
    /// The fate of all other events; `None` if the consumer has them.
    pub rest: Option<Fate>,
    /// The sent lines, in the order of their positions, if the filter has changed or dropped events
    /// of the claim. Empty if all lines were sent unchanged.
    pub sent: Vec<SentLine>,
}

/// A line that was sent to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentLine {
    /// The position of the event.
    pub position: Position,
    /// The SHA-256 of the line, without its line break.
    pub hash: [u8; 32],
    /// `true` if the filter has changed the event.
    pub is_changed: bool,
}

impl Fates {
    pub(crate) fn lose(&mut self, positions: &[Position]) {
        self.not_delivered.extend(positions.iter().map(|position| (*position, Fate::Lost)));
        self.not_delivered.sort_unstable_by_key(|(position, _)| *position);
    }

    /// Changes the fate of lost events to dead letter.
    pub fn kept_as_dead_letters(&mut self) {
        let fates = self.not_delivered.iter_mut().map(|(_, fate)| fate).chain(&mut self.rest);
        fates.filter(|fate| **fate == Fate::Lost).for_each(|fate| *fate = Fate::DeadLetter);
    }
}

/// The lines as they were received. Lines that are read from files are compared with them.
pub trait Originals: Send + Sync + fmt::Debug {
    /// Returns the positions, in rising order, of the lines that differ from the received ones. The
    /// lines were read from a file and begin at `first`. A line without a known original counts as
    /// unchanged. Blocks.
    fn changed(&self, first: Position, lines: &[u8]) -> Vec<Position>;
}

/// The way in which events ended at an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The output has finished the events.
    Settled(Fates),
    /// The events were lost for this reason before the output could finish them.
    Lost(&'static str),
}

/// Events that an output has finished or lost, for the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The name of the output.
    pub output: String,
    /// The positions of the events. A position of an output may appear twice, for example after a
    /// restart, or if the event was set aside before.
    pub claim: Claim,
    /// The time when the last of the events were finished or lost, in ms since 1970.
    pub at: u64,
    /// The way in which the events ended.
    pub outcome: Outcome,
}

impl Disposition {
    /// Makes the value for a claim of which this many events are lost.
    pub fn lost(events: u64) -> Self {
        let fates = Fates { rest: Some(Fate::Lost), ..Fates::default() };
        Self { lost: events, fates, ..Self::default() }
    }

    /// Makes the value for the claim of one event that is set aside.
    pub fn aside() -> Self {
        let fates = Fates { rest: Some(Fate::Aside), ..Fates::default() };
        Self { aside: 1, fates, ..Self::default() }
    }

    /// Adds the events of a final claim to the output's counters. `events` is the number of events
    /// of the claim that are still in the queue. Dropped events are counted already, and the fields
    /// of `self` may include them, so the sum of the fields is limited to `events`.
    pub fn count(&self, events: u64, metrics: &OutputMetrics) {
        let mut rest = events.saturating_sub(self.aside);
        for (counter, count) in [
            (&metrics.lost, self.lost),
            (metrics.fates.filtered.of(Filtered::Dropped), self.dropped),
            (metrics.fates.filtered.of(Filtered::Duplicate), self.duplicate),
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
    /// The number of bytes by which the event counts in `queue.max_bytes` of a queue in memory.
    pub bytes: u64,
    /// The time of acceptance by the wall clock, in milliseconds since 1970.
    pub received: u64,
}

impl Aside {
    /// Returns the time since the event was accepted.
    pub fn age(self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.received))
    }

    /// Counts the end of the event, which is no longer set aside.
    pub fn count(self, disposition: &Disposition, metrics: &OutputMetrics) {
        disposition.count(1, metrics);
        if disposition.lost + disposition.dropped + disposition.duplicate == 0 {
            metrics.delivered(self.age(), Instant::now());
        }
    }
}

/// The events that an output has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// The number of these events.
    pub events: u64,
    /// The number of bytes of their lines.
    pub bytes: u64,
    /// The seconds since the oldest of them was accepted; 0 if there are none.
    pub lag: f64,
}

impl Backlog {
    /// Sets the gauges of an output to these values.
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn show(&self, metrics: &OutputMetrics) {
        metrics.backlog.events.set(self.events as f64);
        metrics.backlog.bytes.set(self.bytes as f64);
        metrics.backlog.lag.set(self.lag);
    }
}

/// The state of a queue's directory, as the next start would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// All events that are neither finished nor counted as lost, as far as the relay knows.
    Found,
    /// Nothing: the directory was deleted.
    Deleted,
    /// Perhaps not all: segments were deleted, the directory was moved away or covered by a mount,
    /// or the disk does not respond.
    Unknown,
}
