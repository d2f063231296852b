//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor
//! for each output.
//!
//! The queue takes lines and counts, and hands out lines. It does not look into a line: it knows no
//! JSON and no HTTP. Every event has a [`Position`]; a batch may be cut between any two lines. A
//! batch is held until every cursor has finished it. For outputs that are not required it is held
//! only as long as nothing else needs its room. [`Queue::append`] alone decides whether there is
//! room, and never waits for it.
//!
//! An output *claims* a range of positions ([`Cursor::next`]), and then tells the queue what became
//! of each claim:
//!
//! - [`Cursor::acknowledge`]: the claim is final. The consumer has the events, or the output has
//!   given them up.
//! - [`Cursor::release`]: the claim is not on the wire any more, and is to be sent again. To send
//!   it the output calls [`Cursor::redeliver`].
//!
//! Events of a required output that are on the wire are never dropped.
//!
//! Outputs join ([`Queue::join`]) and leave ([`Cursor::leave`]) while events flow.
//!
//! There are two kinds of queue: in memory (`memory`), and in files (`spool`). The enums in this
//! file are the only place where the two meet; their methods are documented here, for both kinds.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `contract` `disk` | batches, claims and answers · operations on files |
//! | 2 | `claims` `outputs` `segment` | an output's claims · its counters · a file of the log, byte for byte |
//! | 3 | `cursors` `memory` | the file of all cursors · the queue in memory |
//! | 4 | `place` `tail` | whether a directory can be used · where the log ends |
//! | 5 | `spool` | the queue in files |
//! | 6 | `inspect` | the queue's files, seen from outside |

use std::time::Duration;

use bytes::Bytes;

use crate::audit::LevelCounts;
use crate::config;
use crate::telemetry::OutputMetrics;
use crate::telemetry::Telemetry;

mod claims;
mod contract;
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
pub use contract::Append;
pub use contract::Backlog;
pub use contract::Batch;
pub use contract::Claim;
pub use contract::Disposition;
pub use contract::JoinError;
pub use contract::Origin;
pub use contract::Redelivery;
pub use contract::Refused;
pub use contract::Take;
pub use disk::OpenError;
pub use outputs::Output;
pub use spool::Incoming;

/// Expands to a `match` that calls the same method on the queue in memory or the queue in files,
/// whichever the value holds.
macro_rules! either {
    ($either:expr, $inner:ident => $call:expr) => {
        match $either {
            Self::Memory($inner) => $call,
            Self::Spool($inner) => $call,
        }
    };
}

/// The queue between the sources of events and the outputs. A clone is cheap, and is a handle to
/// the same queue.
#[derive(Clone)]
pub enum Queue {
    /// The queue is in memory: what is in it is lost when the process ends.
    Memory(memory::Queue),
    /// The queue is in files: what is in it outlives the process.
    Spool(spool::Queue),
}

impl Queue {
    /// Opens the queue that the config asks for. Returns it with a cursor for each output, in the
    /// order of `outputs`. All outputs of the config have to be in `outputs`: a batch that is
    /// appended before an output has its cursor is acknowledged, and never sent to that output.
    ///
    /// With a directory this function waits for the disk: it must not run on a thread of the
    /// runtime.
    ///
    /// # Errors
    ///
    /// The directory can't be used.
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

    /// Lets an output join at the end of the log, while events flow. Returns its cursor.
    ///
    /// A batch lies wholly before or wholly after the place where the output joins. The output gets
    /// the batches that are appended from now on, and with files also those that are appended and
    /// not synced yet.
    ///
    /// With files this function returns after the cursors file that names the output is synced:
    /// after a crash the output goes on from here.
    ///
    /// # Errors
    ///
    /// The output has not joined, and nothing is counted for it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the output has not joined.
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

    /// Changes whether events are kept until the output with this name has them (`required`). At
    /// least one output must be required at any time: an event that no output requires is kept for
    /// nobody.
    pub fn require(&self, name: &str, required: bool) {
        either!(self, queue => queue.require(name, required))
    }

    /// Takes over the settings that can change at run time: `max_bytes` and `when_full`; without a
    /// directory also `acknowledge`, with one also `segment_bytes`. The directory stays the one
    /// that the queue was opened with. If more is held than `max_bytes` now allows, nothing is
    /// dropped for that; batches find no room until enough is delivered. A batch that was appended
    /// before is acknowledged as `acknowledge` said then.
    pub fn apply(&self, config: &config::Queue) {
        either!(self, queue => queue.apply(config))
    }

    /// Returns `Ok` if a batch with this many bytes of lines would be taken now. The result is a
    /// hint: [`Queue::append`] decides.
    ///
    /// # Errors
    ///
    /// The reason for which [`Queue::append`] would refuse the batch.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        either!(self, queue => queue.admits(bytes))
    }

    /// Takes a whole batch. The sender may be told that its batch is safe when
    /// [`Ticket::acknowledged`] returns `Ok`.
    ///
    /// # Errors
    ///
    /// The batch is refused; nothing of it is stored.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        match self {
            Self::Memory(queue) => queue.append(batch).map(Ticket::Memory),
            Self::Spool(queue) => queue.append(batch).map(Ticket::Spool),
        }
    }

    /// Returns `true` if the queue is in files, `false` if it is in memory.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Spool(_))
    }

    /// Returns a place for the lines of a body that is too large to be held in memory, which are
    /// stored while the body arrives. `None` if the queue is in memory.
    #[must_use]
    pub fn incoming(&self) -> Option<Incoming> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => Some(queue.incoming()),
        }
    }

    /// Takes a body whose lines were all stored and synced while it arrived. The sender may be told
    /// that its body is safe when [`Ticket::acknowledged`] returns `Ok`.
    ///
    /// # Errors
    ///
    /// The body is refused; nothing of it is stored.
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

    /// Returns `true` if the queue counts as full: from the first batch that finds no room until a
    /// fifth of `queue.max_bytes` is free again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        either!(self, queue => queue.is_full())
    }

    /// Returns the disk's last error if it prevents the queue from storing batches, however much
    /// room there is. `None` if batches can be stored, and always in memory.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => queue.fault(),
        }
    }

    /// Waits until the queue has failed so that it can store nothing before the next start of the
    /// process. Returns the reason. In memory this function waits for ever.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn failed(&self) -> String {
        match self {
            Self::Memory(_) => std::future::pending().await,
            Self::Spool(queue) => queue.failed().await,
        }
    }

    /// The limit of the queue in bytes: `queue.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        either!(self, queue => queue.capacity())
    }

    /// Returns the bytes that the queue holds, as `queue.max_bytes` counts them, and the number of
    /// events that it holds.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        either!(self, queue => queue.held())
    }

    /// Returns for each output its name and its backlog: what the output has not finished.
    #[must_use]
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        either!(self, queue => queue.backlogs())
    }

    /// Sets every gauge of the queue whose value is computed only when the metrics are read.
    pub fn observe(&self) {
        either!(self, queue => queue.observe())
    }

    /// Waits until the end of the process would lose nothing. In memory this means that every
    /// output has finished every event. With files it means that no claim is on the wire; as soon
    /// as this function is called, no more events are handed out.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn drained(&self) {
        either!(self, queue => queue.drained().await)
    }

    /// Notes that the output with this name has ended for good: [`Queue::drained`] no longer waits
    /// for the output. With `acknowledge = "delivered"`, senders that wait for this output are told
    /// that it will not have their events.
    pub fn give_up(&self, name: &str) {
        either!(self, queue => queue.give_up(name))
    }

    /// Ends the queue: no more batches are taken, and the files are left in order. Call this after
    /// the outputs have ended.
    pub async fn close(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Spool(queue) => queue.close().await,
        }
    }

    /// Gives up the events that are left at the end of the process. Returns for each output its
    /// name, how many events are left, and what becomes of them. In memory they are counted as
    /// lost, and no more batches are taken; with files they stay for the next start.
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

/// What becomes of the events that an output did not get before the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// This many events are lost, and counted as lost.
    Lost(u64),
    /// This many events stay in the queue's directory, for the next start.
    Kept(u64),
}

/// A sender's receipt for a batch, from [`Queue::append`]. If it is dropped before the batch is
/// acknowledged, the batch is taken out of the queue again, unless an output has begun to send it
/// or the writer has begun to store it.
#[must_use]
pub enum Ticket {
    /// A receipt of a queue in memory.
    Memory(memory::Ticket),
    /// A receipt of a queue in files.
    Spool(spool::Ticket),
}

impl Ticket {
    /// Waits until the sender may be told that its batch is safe. In memory that is at once, or
    /// with `acknowledge = "delivered"` when every required output has acknowledged the batch or
    /// counted it as lost. With files it is when the batch is synced. A second call returns the
    /// same result.
    ///
    /// # Errors
    ///
    /// [`Refused::Disk`], or with `delivered` [`Refused::Undelivered`]: the batch is not safe, and
    /// the sender keeps it.
    pub async fn acknowledged(&mut self) -> Result<(), Refused> {
        match self {
            Self::Memory(ticket) => ticket.delivered().await,
            Self::Spool(ticket) => ticket.acknowledged().await,
        }
    }
}

/// A reader of the events that lie before a cursor and are still in the files, oldest first. It may
/// be dropped at any time.
pub struct Before(Option<spool::Before>);

impl Before {
    /// Returns the next lines, with the position of the first line and the lines' age. `None`:
    /// there are no more lines.
    ///
    /// This function waits for the disk. The caller must also watch for the end of the process
    /// meanwhile.
    ///
    /// # Cancel safety
    ///
    /// No line is skipped if the future is dropped.
    pub async fn next(&mut self) -> Option<(Origin, Bytes)> {
        self.0.as_mut()?.next().await
    }
}

/// One output's place in the log, owned by the output's delivery loop. When a reload replaces the
/// loop, the new loop gets the cursor, and either goes on with the claims that are not finished or
/// calls [`Cursor::rewind`].
pub enum Cursor {
    /// A cursor of a queue in memory.
    Memory(memory::Cursor),
    /// A cursor of a queue in files.
    Spool(spool::Cursor),
}

impl Cursor {
    /// Waits until [`Cursor::next`] has events to claim. If the last call of [`Cursor::redeliver`]
    /// could not return its claim's lines yet, this function also returns when it can.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn readable(&mut self) {
        either!(self, cursor => cursor.readable().await)
    }

    /// Returns a reader of events before this cursor's watermark. It reads those that are still in
    /// the files and were received within this time, at most the newest 256 MiB. The output has got
    /// these events already, except those that were lost or filtered away. Damaged or missing
    /// events are skipped: they were final. In memory nothing is kept, and the reader is empty.
    #[must_use]
    pub fn before(&self, within: Duration) -> Before {
        Before(match self {
            Self::Memory(_) => None,
            Self::Spool(cursor) => Some(cursor.before(within)),
        })
    }

    /// Claims the next events: as many whole batches as fit into `take`, or a part of the next
    /// batch if not even one whole batch fits. `None` if there are no more events, or if their
    /// lines must be read from a file first, which [`Cursor::readable`] does.
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        either!(self, cursor => cursor.next(take))
    }

    /// Makes a claim final. Its events count as acknowledged by the consumer, except those that
    /// `disposition` counts.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        either!(self, cursor => cursor.acknowledge(claim, disposition))
    }

    /// Notes that a claim is not on the wire any more. The claim will be sent again.
    pub fn release(&self, claim: Claim) {
        either!(self, cursor => cursor.release(claim))
    }

    /// Puts a released claim on the wire again and returns its lines. The other results: all events
    /// of the claim were dropped, or its lines must be read from a file first.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        match self {
            Self::Memory(cursor) => {
                cursor.redeliver(claim).map_or(Redelivery::Gone, Redelivery::Batch)
            }
            Self::Spool(cursor) => cursor.redeliver(claim),
        }
    }

    /// Puts a released claim on the wire again without its lines, so that it can be acknowledged.
    /// `false`: all events of the claim were dropped meanwhile.
    #[must_use]
    pub fn take_back(&self, claim: Claim) -> bool {
        match self {
            Self::Memory(cursor) => cursor.redeliver(claim).is_some(),
            Self::Spool(cursor) => cursor.take_back(claim),
        }
    }

    /// Cuts a claim of at least two events into two halves, which both keep the claim's stage (such
    /// as on the wire). `None` if the claim has fewer events, or is not held any more.
    #[must_use]
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split(claim))
    }

    /// Cuts a claim into two parts, which both keep the claim's stage (such as on the wire). The
    /// second part begins at `middle`. `None` if `middle` does not lie inside the claim.
    #[must_use]
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split_at(claim, middle))
    }

    /// Forgets every claim that is not finished: [`Cursor::next`] starts again at the first
    /// forgotten claim.
    ///
    /// Call this only if [`Cursor::is_in_order`] returns `true`. It always does for outputs that
    /// finish their claims in order.
    pub fn rewind(&mut self) {
        either!(self, cursor => cursor.rewind())
    }

    /// Returns `true` if no finished claim comes after an unfinished one. Only then may
    /// [`Cursor::rewind`] be called.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        either!(self, cursor => cursor.is_in_order())
    }

    /// Removes the output from the queue. The events that the output has not finished are counted
    /// as lost for it. From then on its backlog is empty, nobody waits for it, and the cursors file
    /// does not name it. Returns how many events were lost.
    pub fn leave(self) -> u64 {
        either!(self, cursor => cursor.leave())
    }

    /// Removes an output that has joined in vain and has taken no events. Events that were appended
    /// meanwhile were never meant for this output, and are not counted for it.
    pub fn leave_uncounted(self) {
        either!(self, cursor => cursor.leave_uncounted())
    }

    /// Changes [`Output::keeps`].
    pub fn keep(&self, keeps: Duration) {
        match self {
            Self::Memory(_) => {}
            Self::Spool(cursor) => cursor.keep(keeps),
        }
    }

    /// Sets whether batches of this cursor have the origins of their pieces ([`Batch::origins`]).
    /// Without a call they have none.
    pub fn tell_origins(&self, tells: bool) {
        either!(self, cursor => cursor.tell_origins(tells))
    }

    /// Returns `true` if no more events are handed out, because the process drains and the files
    /// keep the rest for the next start. Always `false` in memory.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Spool(cursor) => cursor.is_closed(),
        }
    }

    /// Returns the first position that was never claimed.
    #[must_use]
    pub fn position(&self) -> Position {
        either!(self, cursor => cursor.position())
    }

    /// Returns the first position that this output has not finished. All positions before it are
    /// finished.
    #[must_use]
    pub fn watermark(&self) -> Position {
        either!(self, cursor => cursor.watermark())
    }

    /// Returns `true` if every appended event is claimed. With files: if every synced event is.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        either!(self, cursor => cursor.is_at_end())
    }
}

#[cfg(test)]
mod tests;
