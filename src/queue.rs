//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor for each output.
//!
//! It knows no JSON, HTTP or audit: lines and counts in, lines out. Positions number the events; a batch may be cut at
//! any line. A batch is held until every cursor has finished it; for outputs that are not required only as long as
//! nothing else needs its room. [`Queue::append`] alone decides whether there is room, and never waits for it.
//!
//! An output *claims* what it takes ([`Cursor::next`]), and for each claim says what became of it:
//! [`Cursor::acknowledge`] (final), [`Cursor::release`] (not on the wire any more, to be sent again) and then
//! [`Cursor::redeliver`]. What is on the wire of a required output is never dropped.
//!
//! Outputs come ([`Queue::join`]) and go ([`Cursor::leave`]) while events flow.
//!
//! There are two: in memory (`memory`), and in files (`spool`).

use std::time::Duration;

use bytes::Bytes;

use crate::audit::LevelCounts;
use crate::config;
use crate::telemetry::OutputMetrics;
use crate::telemetry::Telemetry;

mod claims;
mod cursors;
mod disk;
pub mod inspect;
mod memory;
mod outputs;
pub mod place;
mod segment;
mod spool;
mod tail;

pub use crate::position::Position;
pub use disk::OpenError;
pub use outputs::Output;
pub use spool::Incoming;

/// What is appended.
#[derive(Debug, Clone)]
pub struct Append {
    /// Each event followed by one `\n`.
    pub lines: Bytes,
    /// How many.
    pub events: u64,
    /// Counted when the batch is.
    pub levels: LevelCounts,
}

/// Why a batch was not taken: the sender keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no room.
    #[error("the queue is full")]
    Full,
    /// The disk does not store it.
    #[error("the queue's disk does not store the events")]
    Disk,
    /// With `delivered`: a required output that should get it has ended, or was removed, and will
    /// never acknowledge it.
    #[error("no output will acknowledge the events")]
    Undelivered,
}

/// Why an output could not join. The queue is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// One of the same name has not left.
    #[error("an output of this name is in the queue already: it has to leave first")]
    Taken,
    /// The cursors file has no room for more.
    #[error("the queue's directory has room for {0} outputs: remove one first")]
    TooMany(usize),
    /// The cursors file could not be written and synced in time.
    #[error(
        "the queue's directory has not stored its place within {} s ({why}): repair the disk, then reload again",
        .within.as_secs()
    )]
    Disk {
        /// How long that was tried.
        within: Duration,
        /// What the disk says, as far as is known.
        why: String,
    },
    /// Nothing more is taken.
    #[error("the queue has ended")]
    Closed,
}

/// What [`Cursor::redeliver`] gives.
#[derive(Debug)]
pub enum Redelivery {
    /// The claim is on the wire again.
    Batch(Batch),
    /// All of it was dropped meanwhile, and the claim is gone.
    Gone,
    /// Its lines have to be read first: [`Cursor::readable`] does, and it is to be asked for again.
    NotYet,
}

/// Upper bounds of what [`Cursor::next`] takes. One event is taken whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Bytes of lines.
    pub bytes: u64,
    /// Events.
    pub events: u64,
}

/// What an output has taken: `start..end`, not overlapping any other claim of its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// First position.
    pub start: Position,
    /// Behind the last.
    pub end: Position,
}

/// Tests write positions as numbers.
#[cfg(test)]
impl Claim {
    pub(crate) fn of(start: u64, end: u64) -> Self {
        Self { start: Position::new(start), end: Position::new(end) }
    }

    pub(crate) fn numbers(self) -> std::ops::Range<u64> {
        self.start.get()..self.end.get()
    }
}

/// Claimed events.
#[derive(Debug, Clone)]
pub struct Batch {
    /// For the answer.
    pub claim: Claim,
    /// Number of events; positions may have gaps.
    pub events: u64,
    /// Bytes of all pieces.
    pub bytes: u64,
    /// Whole lines, in order, each ended by `\n`. Not empty.
    pub pieces: Vec<Bytes>,
    /// Of each piece, where the cursor was told to say so.
    pub origins: Vec<Origin>,
}

/// Where a piece of a batch comes from: its lines have the positions from `first` on, without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The position of its first line.
    pub first: Position,
    /// How long ago its lines were accepted, to the millisecond: with files as the wall clock says.
    pub age: Duration,
}

/// What became of those events of a claim that the consumer did not get, though the claim is final. Each is in one of them
/// at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disposition {
    /// Refused for good, or given up: counted as lost for this output.
    pub lost: u64,
    /// Not for this output, as its settings say.
    pub dropped: u64,
    /// The consumer had them before.
    pub duplicate: u64,
}

impl Disposition {
    /// So many were lost, and the consumer has the rest.
    #[must_use]
    pub fn lost(events: u64) -> Self {
        Self { lost: events, ..Self::default() }
    }

    /// Counts what became of so many events of an output, each once: what of them was dropped from the queue meanwhile is not
    /// among them, and may be in here.
    fn count(self, events: u64, metrics: &OutputMetrics) {
        let mut rest = events;
        for (counter, count) in [
            (&metrics.lost, self.lost),
            (&metrics.filtered.dropped, self.dropped),
            (&metrics.filtered.duplicate, self.duplicate),
        ] {
            let count = count.min(rest);
            rest -= count;
            counter.increment(count);
        }
        metrics.events.increment(rest);
    }
}

/// What a cursor has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// Events.
    pub events: u64,
    /// Bytes of their lines.
    pub bytes: u64,
    /// Seconds since the oldest of them was accepted; 0 where there are none.
    pub lag: f64,
}

impl Backlog {
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    fn show(&self, metrics: &OutputMetrics) {
        metrics.backlog_events.set(self.events as f64);
        metrics.backlog_bytes.set(self.bytes as f64);
        metrics.lag.set(self.lag);
    }
}

/// The log. Cheap to clone; all clones are the same queue.
#[derive(Clone)]
pub enum Queue {
    /// In memory.
    Memory(memory::Queue),
    /// In files.
    Spool(spool::Queue),
}

impl Queue {
    /// The queue that the config asks for, with a cursor for each output, in their order: what is appended before an
    /// output has one would be acknowledged and sent to nobody.
    ///
    /// With a directory it blocks on the disk; not for threads of the runtime.
    ///
    /// # Errors
    ///
    /// Where the directory can't be used.
    pub fn open(
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        if let Some(directory) = &config.directory {
            let (queue, cursors) = spool::Queue::open(directory, config, telemetry, outputs)?;
            return Ok((Self::Spool(queue), cursors.into_iter().map(Cursor::Spool).collect()));
        }
        let (queue, cursors) = memory::Queue::new(config, telemetry.queue(), outputs);
        Ok((Self::Memory(queue), cursors.into_iter().map(Cursor::Memory).collect()))
    }

    /// An output joins at the end of the log, while events flow. A batch is before it or behind it, never half: behind it is
    /// what is appended from now on, and with files also what is appended and not synced yet. `output_start_events` makes up
    /// for what was accepted before, also with `delivered` where that is counted later, and for what an output of this name
    /// has on its counters.
    ///
    /// With files it returns when the cursors file with it in it is synced: after a crash it goes on from here.
    ///
    /// # Errors
    ///
    /// It has not joined, and nothing is counted for it.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has not joined.
    pub async fn join(
        &self,
        name: &str,
        required: bool,
        metrics: OutputMetrics,
    ) -> Result<Cursor, JoinError> {
        let output = Output { name: name.to_owned(), required, metrics, keeps: Duration::ZERO };
        match self {
            Self::Memory(queue) => queue.join(output).map(Cursor::Memory),
            Self::Spool(queue) => queue.join(output).await.map(Cursor::Spool),
        }
    }

    /// Changes whether events are kept until an output has them. At least one output is required at any time: what none
    /// requires is kept for nobody.
    pub fn require(&self, name: &str, required: bool) {
        match self {
            Self::Memory(queue) => queue.require(name, required),
            Self::Spool(queue) => queue.require(name, required),
        }
    }

    /// Takes over what can change at run time: `max_bytes`, `when_full`, `acknowledge` without a directory, `segment_bytes`
    /// with one. The directory is the one it was opened with. Where more is held than may be, nothing is dropped, and
    /// batches find no room until there is some. What `acknowledge` was holds for batches that were appended before.
    pub fn apply(&self, config: &config::Queue) {
        match self {
            Self::Memory(queue) => queue.apply(config),
            Self::Spool(queue) => queue.apply(config),
        }
    }

    /// Whether a batch of so many bytes would be taken now. A hint: [`Queue::append`] decides.
    ///
    /// # Errors
    ///
    /// As [`Queue::append`].
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        match self {
            Self::Memory(queue) => queue.admits(bytes),
            Self::Spool(queue) => queue.admits(bytes),
        }
    }

    /// Takes a batch, whole or not at all. Its sender is answered when [`Ticket::acknowledged`] says so.
    ///
    /// # Errors
    ///
    /// Nothing is stored then.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        match self {
            Self::Memory(queue) => queue.append(batch).map(Ticket::Memory),
            Self::Spool(queue) => queue.append(batch).map(Ticket::Spool),
        }
    }

    /// Whether it is in files.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Spool(_))
    }

    /// Takes the lines of a body that is too large to be held in memory, while it arrives; `None`
    /// where the queue is memory.
    #[must_use]
    pub fn incoming(&self) -> Option<Incoming> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => Some(queue.incoming()),
        }
    }

    /// Takes a body whose lines this queue has stored and synced while it arrived. Its sender is
    /// answered when [`Ticket::acknowledged`] says so.
    ///
    /// # Errors
    ///
    /// Nothing is stored then.
    pub fn append_incoming(
        &self,
        incoming: Incoming,
        levels: LevelCounts,
    ) -> Result<Ticket, Refused> {
        match self {
            Self::Memory(_) => Err(Refused::Disk),
            Self::Spool(queue) => queue.append_incoming(incoming, levels).map(Ticket::Spool),
        }
    }

    /// Whether it was full lately: from the first batch without room until a fifth of it is free again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Memory(queue) => queue.is_full(),
            Self::Spool(queue) => queue.is_full(),
        }
    }

    /// Why nothing can be stored whatever the room, while that is so.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => queue.fault(),
        }
    }

    /// Waits until nothing can be stored any more before the next start, and says why. For ever in
    /// memory.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn failed(&self) -> String {
        match self {
            Self::Memory(_) => std::future::pending().await,
            Self::Spool(queue) => queue.failed().await,
        }
    }

    /// `queue.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        match self {
            Self::Memory(queue) => queue.capacity(),
            Self::Spool(queue) => queue.capacity(),
        }
    }

    /// Bytes held, as `queue.max_bytes` counts, and events held.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        match self {
            Self::Memory(queue) => queue.held(),
            Self::Spool(queue) => queue.held(),
        }
    }

    /// Each output's name and what it has not finished.
    #[must_use]
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        match self {
            Self::Memory(queue) => queue.backlogs(),
            Self::Spool(queue) => queue.backlogs(),
        }
    }

    /// Sets every gauge that is read on demand.
    pub fn observe(&self) {
        match self {
            Self::Memory(queue) => queue.observe(),
            Self::Spool(queue) => queue.observe(),
        }
    }

    /// The drain: returns once there is nothing that the end of the process would lose. In memory that is when every cursor
    /// has finished everything; with files nothing more is handed out, and it is when nothing is on the wire.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn drained(&self) {
        match self {
            Self::Memory(queue) => queue.drained().await,
            Self::Spool(queue) => queue.drained().await,
        }
    }

    /// An output has ended for good: the drain does not wait for it. With `delivered`, who waits
    /// for it hears that it will not have the events.
    pub fn give_up(&self, name: &str) {
        match self {
            Self::Memory(queue) => queue.give_up(name),
            Self::Spool(queue) => queue.give_up(name),
        }
    }

    /// Takes nothing more, and leaves files in order; after the outputs have ended.
    pub async fn close(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Spool(queue) => queue.close().await,
        }
    }

    /// The end: says what is left for each output and what becomes of it. In memory it is counted as lost, and nothing more
    /// is taken; files keep it.
    #[must_use]
    pub fn abandon(&self) -> Vec<(String, Left)> {
        match self {
            Self::Memory(queue) => {
                let lost = queue.abandon().into_iter();
                lost.map(|(name, events)| (name, Left::Lost(events))).collect()
            }
            Self::Spool(queue) => {
                let kept = queue.backlogs().into_iter();
                kept.map(|(name, backlog)| (name, Left::Kept(backlog.events))).collect()
            }
        }
    }
}

/// What becomes of events that an output did not get before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Lost, and counted.
    Lost(u64),
    /// In the queue's directory, for the next start.
    Kept(u64),
}

/// What [`Queue::append`] gives for a batch it took. Dropped before it has said that the batch is acknowledged, what no
/// output has begun, and no disk, is taken out again.
#[must_use]
pub enum Ticket {
    /// Of a queue in memory.
    Memory(memory::Ticket),
    /// Of one in files.
    Spool(spool::Ticket),
}

impl Ticket {
    /// Returns when the sender may be told: at once, with `delivered` once every required output has acknowledged or
    /// counted the batch, with a directory once it is synced. Asked again, it says the same again.
    ///
    /// # Errors
    ///
    /// [`Refused::Disk`], or with `delivered` [`Refused::Undelivered`]: the sender keeps the batch.
    pub async fn acknowledged(&mut self) -> Result<(), Refused> {
        match self {
            Self::Memory(ticket) => ticket.delivered().await,
            Self::Spool(ticket) => ticket.acknowledged().await,
        }
    }
}

/// What lies before a cursor and is still there, oldest first. It may be dropped at any time.
pub struct Before(Option<spool::Before>);

impl Before {
    /// The next lines, with the position of the first, and their age. `None` when that was all.
    ///
    /// It waits for the disk: whoever waits for it listens to the end as well.
    ///
    /// # Cancel safety
    ///
    /// Nothing is passed over when dropped.
    pub async fn next(&mut self) -> Option<(Origin, Bytes)> {
        self.0.as_mut()?.next().await
    }
}

/// One output's place in the log. Owned by its delivery loop; it outlives that where another takes over, which goes on with
/// [`Cursor::rewind`] or with the claims that are not finished.
pub enum Cursor {
    /// In memory.
    Memory(memory::Cursor),
    /// In files.
    Spool(spool::Cursor),
}

impl Cursor {
    /// Waits until [`Cursor::next`], or the [`Cursor::redeliver`] that was asked for last, has something to say.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn readable(&mut self) {
        match self {
            Self::Memory(cursor) => cursor.readable().await,
            Self::Spool(cursor) => cursor.readable().await,
        }
    }

    /// What lies before its watermark, is still in the queue's files, and was received within so long: what this output has got
    /// already, but for what of it was lost or filtered away. As far as the files reach, and 256 MiB at most, the newest; in
    /// memory nothing is kept. What is damaged or gone is passed over: it was final.
    #[must_use]
    pub fn before(&self, within: Duration) -> Before {
        Before(match self {
            Self::Memory(_) => None,
            Self::Spool(cursor) => Some(cursor.before(within)),
        })
    }

    /// Claims what comes next: whole batches as far as they fit, or a part of one that does not fit alone. `None` where
    /// there is nothing, or it has to be read first: [`Cursor::readable`] does.
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        match self {
            Self::Memory(cursor) => cursor.next(take),
            Self::Spool(cursor) => cursor.next(take),
        }
    }

    /// The claim is final: acknowledged by the consumer, but for the events that `disposition` counts.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        match self {
            Self::Memory(cursor) => cursor.acknowledge(claim, disposition),
            Self::Spool(cursor) => cursor.acknowledge(claim, disposition),
        }
    }

    /// The claim is not on the wire any more; it will be sent again.
    pub fn release(&self, claim: Claim) {
        match self {
            Self::Memory(cursor) => cursor.release(claim),
            Self::Spool(cursor) => cursor.release(claim),
        }
    }

    /// Takes a released claim again, to send it.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        match self {
            Self::Memory(cursor) => {
                cursor.redeliver(claim).map_or(Redelivery::Gone, Redelivery::Batch)
            }
            Self::Spool(cursor) => cursor.redeliver(claim),
        }
    }

    /// Takes a released claim again only to finish it; `false` where it was dropped meanwhile.
    #[must_use]
    pub fn take_back(&self, claim: Claim) -> bool {
        match self {
            Self::Memory(cursor) => cursor.redeliver(claim).is_some(),
            Self::Spool(cursor) => cursor.take_back(claim),
        }
    }

    /// Cuts a claim of at least two events into two claims in the same stage.
    #[must_use]
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        match self {
            Self::Memory(cursor) => cursor.split(claim),
            Self::Spool(cursor) => cursor.split(claim),
        }
    }

    /// Cuts a claim into two claims in the same stage, of which the second begins at `middle`; `None` where it does not lie
    /// inside.
    #[must_use]
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        match self {
            Self::Memory(cursor) => cursor.split_at(claim, middle),
            Self::Spool(cursor) => cursor.split_at(claim, middle),
        }
    }

    /// Gives up every claim that is not finished: [`Cursor::next`] starts again at the first of them.
    ///
    /// Only where [`Cursor::is_in_order`], as it always is for outputs that finish in order.
    pub fn rewind(&mut self) {
        match self {
            Self::Memory(cursor) => cursor.rewind(),
            Self::Spool(cursor) => cursor.rewind(),
        }
    }

    /// Nothing finished lies behind an unfinished claim: [`Cursor::rewind`] may be called, whatever was finished how.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        match self {
            Self::Memory(cursor) => cursor.is_in_order(),
            Self::Spool(cursor) => cursor.is_in_order(),
        }
    }

    /// The output is removed. What it has not finished is lost for it, and counted; its backlog is empty then, nobody waits
    /// for it any more, and files forget it. Says how many events were lost.
    pub fn leave(self) -> u64 {
        match self {
            Self::Memory(cursor) => cursor.leave(),
            Self::Spool(cursor) => cursor.leave(),
        }
    }

    /// The output has joined for nothing, and has taken nothing: what came meanwhile was never for it.
    pub fn leave_uncounted(self) {
        match self {
            Self::Memory(cursor) => cursor.leave_uncounted(),
            Self::Spool(cursor) => cursor.leave_uncounted(),
        }
    }

    /// Changes [`Output::keeps`].
    pub fn keep(&self, keeps: Duration) {
        match self {
            Self::Memory(_) => {}
            Self::Spool(cursor) => cursor.keep(keeps),
        }
    }

    /// Whether batches say where their pieces are from. Not unless it was told to.
    pub fn tell_origins(&self, tells: bool) {
        match self {
            Self::Memory(cursor) => cursor.tell_origins(tells),
            Self::Spool(cursor) => cursor.tell_origins(tells),
        }
    }

    /// Nothing is handed out any more: files keep it for the next start.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Spool(cursor) => cursor.is_closed(),
        }
    }

    /// The first position that was never claimed.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Memory(cursor) => cursor.position(),
            Self::Spool(cursor) => cursor.position(),
        }
    }

    /// Everything before it is finished.
    #[must_use]
    pub fn watermark(&self) -> Position {
        match self {
            Self::Memory(cursor) => cursor.watermark(),
            Self::Spool(cursor) => cursor.watermark(),
        }
    }

    /// Everything that was appended is claimed.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        match self {
            Self::Memory(cursor) => cursor.is_at_end(),
            Self::Spool(cursor) => cursor.is_at_end(),
        }
    }
}

#[cfg(test)]
mod tests;
