//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor
//! for each output.
//!
//! This crate promises that an event which was accepted is handed to every output of that moment
//! and is counted once for each, and that with a directory nothing is acknowledged before it is
//! synced. It imports `audit` (the counts of a batch), `base`, `config` (its section) and
//! `telemetry`. What must never happen here: a byte of an event is read, or a lock is held while
//! something waits.
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
//! | 1 | `contract` `patient` | batches, claims and answers · reads that are tried again |
//! | 2 | `claims` `identity` `notes` `outputs` `segment` `shelf` | an output's claims · the queue's own number · a file of an output · its counters · a file of the log, byte for byte · files of events that are set aside |
//! | 3 | `cursors` `memory` `synced` | the file of all cursors · the queue in memory · the file that says where the log ends |
//! | 4 | `place` `tail` | whether a directory can be used · where the log ends |
//! | 5 | `spool` | the queue in files |
//! | 6 | `inspect` | the queue's files, seen from outside |

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use audit::LevelCounts;
use base::disk::Disk;
use base::release::Format;
use telemetry::{OutputMetrics, Telemetry};

mod claims;
mod contract;
mod cursors;
mod identity;
pub mod inspect;
mod memory;
mod notes;
mod outputs;
mod patient;
pub mod place;
mod segment;
mod shelf;
mod spool;
mod synced;
mod tail;

pub use base::disk::{OpenError, make as make_directory};
pub use base::fate::Fate;
pub use base::position::Position;
pub use contract::Originals;
pub use contract::{
    Append, Aside, Backlog, Batch, Claim, Disposition, Fates, Finished, JoinError, Origin, Outcome,
    Redelivery, Refused, SentLine, Take, Ticket, is_list, lines,
};
pub use identity::Identity;
pub use notes::Notes;
pub use outputs::Output;
pub use shelf::Shelf;
pub use spool::Incoming;

/// The formats of the queue's files, for `--version`.
pub const FORMATS: [Format; 3] = [segment::FORMAT, cursors::FORMAT, synced::FORMAT];

/// Calls a method on the value inside `Self::Memory` (queue in memory) or `Self::Spool` (queue in
/// files), whichever variant `$either` is. Expands to a `match` with these two arms.
macro_rules! either {
    ($either:expr, $inner:ident => $call:expr) => {
        match $either {
            Self::Memory($inner) => $call,
            Self::Spool($inner) => $call,
        }
    };
}

/// The queue, which holds accepted events until the outputs have finished them. A clone of this
/// value is cheap, and refers to the same queue.
#[derive(Clone)]
pub enum Queue {
    /// The queue is in memory: its events are lost when the process ends.
    Memory(memory::Queue),
    /// The queue is in files: its events are still there after the process has ended.
    Spool(spool::Queue),
}

impl Queue {
    /// Returns the queue in files; `None` if the queue is in memory.
    fn spool(&self) -> Option<&spool::Queue> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => Some(queue),
        }
    }

    /// Opens the queue as the config says: in files if `queue.directory` is set, otherwise in
    /// memory. Returns the queue, and a cursor for each output, in the order of `outputs`.
    ///
    /// `outputs` must hold all outputs of the config. An output that is missing here can join
    /// later, but it never gets the batches that were appended before it joined. This would break a
    /// promise: the senders of these batches were told that the batches are safe.
    ///
    /// If the queue is in files, this function waits for the disk. It must therefore not run on a
    /// thread of the async runtime.
    ///
    /// # Errors
    ///
    /// The queue's directory can't be used, or the thread that writes the files can't be started.
    pub fn open(
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        if let Some(directory) = &config.directory {
            let (queue, cursors) = spool::Queue::open(directory, config, telemetry, outputs)?;
            return Ok((Self::Spool(queue), cursors.into_iter().map(Cursor::Spool).collect()));
        }
        let identity = Identity::random()
            .map_err(|error| OpenError::new("read", PathBuf::from("/dev/urandom"), error))?;
        let (queue, cursors) = memory::Queue::new(config, identity, telemetry.queue(), outputs);
        Ok((Self::Memory(queue), cursors.into_iter().map(Cursor::Memory).collect()))
    }

    /// Adds an output to the queue while events flow. The output starts at the end of the log.
    /// Returns the output's cursor, which is its place in the log.
    ///
    /// The output gets the batches that are appended from now on, always whole batches. If the
    /// queue is in files, the output also gets the batches that are appended already but not synced
    /// yet.
    ///
    /// If the queue is in files, this function returns after the cursors file, which now has the
    /// output's name and place, is synced. After a crash the output therefore continues from its
    /// place.
    ///
    /// # Errors
    ///
    /// The output's name is in the queue already, the queue is closed, or the cursors file can't be
    /// written or has no room. The output has then not joined, and no event is counted as lost for
    /// it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it returns, the output has not joined.
    pub async fn join(
        &self,
        name: &str,
        required: bool,
        metrics: OutputMetrics,
    ) -> Result<Cursor, JoinError> {
        let output = Output {
            name: name.to_owned(),
            required,
            metrics,
            keeps: Duration::ZERO,
            recorder: None,
        };
        match self {
            Self::Memory(queue) => queue.join(output).map(Cursor::Memory),
            Self::Spool(queue) => queue.join(output).await.map(Cursor::Spool),
        }
    }

    /// Sets whether the output with this name is required: events are kept until all required
    /// outputs have finished them. At least one output must be required at any time, because events
    /// that no output requires may be removed unsent.
    pub fn require(&self, name: &str, required: bool) {
        either!(self, queue => queue.require(name, required))
    }

    /// Applies the settings that can change at run time: `max_bytes` and `when_full`; for a queue
    /// in memory also `acknowledge`, for a queue in files also `segment_bytes`. The directory does
    /// not change.
    ///
    /// This call drops no events, even if the queue holds more bytes than the new `max_bytes`. New
    /// batches then have no room until enough events are delivered, or `when_full` lets the queue
    /// drop some. A batch that was appended before this call is acknowledged by the old value of
    /// `acknowledge`.
    pub fn apply(&self, config: &config::Queue) {
        either!(self, queue => queue.apply(config))
    }

    /// Returns `Ok` if nothing that this function checks prevents the queue from taking a batch
    /// whose lines have this many bytes: there is room, or `when_full` lets the queue drop events,
    /// and the disk works. The result is only a hint: the queue may change before
    /// [`Queue::append`] is called, which may also refuse the batch for another reason.
    ///
    /// # Errors
    ///
    /// The reason why [`Queue::append`] would refuse the batch now: there is no room, or the disk
    /// does not work.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        either!(self, queue => queue.admits(bytes))
    }

    /// Appends a whole batch to the queue. The batch is safe, and its sender may be told so, when
    /// [`Ticket::acknowledged`] returns `Ok`. If the queue is full and `when_full` is
    /// `drop_newest`, the batch is counted as dropped and not stored, but the result is also `Ok`.
    ///
    /// # Errors
    ///
    /// The queue refuses the batch, and stores nothing of it.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        either!(self, queue => queue.append(batch))
    }

    /// Returns the queue's directory, and the position behind the last event of the queue. `None`
    /// if the queue is in memory.
    pub fn disk(&self) -> Option<(Arc<dyn Disk>, Position)> {
        self.spool().map(spool::Queue::disk)
    }

    /// From now on, lines that are read from files are compared with the lines as they came in,
    /// which `originals` knows. A line that has changed is not handed out, and counts as lost. Only
    /// the first call has an effect. A queue in memory reads no files, so the call does nothing.
    pub fn compare_with(&self, originals: Arc<dyn Originals>) {
        if let Some(queue) = self.spool() {
            queue.compare_with(originals);
        }
    }

    /// Returns for each output its name, and the position that the cursors file is to have for it:
    /// the first position that the output has not finished, or whose evidence is not durable yet.
    /// Empty if the queue is in memory.
    pub fn places(&self) -> Vec<(String, Position)> {
        self.spool().map(spool::Queue::places).unwrap_or_default()
    }

    /// Returns `true` if a body of this many bytes may be appended as the list that was received
    /// ([`Append::list`]), because every output sends JSON lists. The list is then sent without a
    /// copy. A queue in files does not take long lists.
    pub fn keeps_list(&self, bytes: usize) -> bool {
        match self {
            Self::Memory(queue) => queue.keeps_lists(),
            Self::Spool(queue) => queue.keeps_list(bytes),
        }
    }

    /// Returns `true` if the queue is in files, `false` if it is in memory.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Spool(_))
    }

    /// Returns the store for one large request body, which is too large to be held in memory: the
    /// lines of the body are written to a file while the body arrives. `None` if the queue is in
    /// memory.
    pub fn incoming(&self) -> Option<Incoming> {
        self.spool().map(spool::Queue::incoming)
    }

    /// Appends a large request body as one batch. All lines of the body must already be written to
    /// a file and synced ([`Incoming::sync`]). There is one exception: a body that found no room
    /// with `drop_newest` is counted as dropped here, and the result is also `Ok`. The sender may
    /// be told that its body is safe when [`Ticket::acknowledged`] returns `Ok`. `levels` is the
    /// number of the body's events of each audit level.
    ///
    /// # Errors
    ///
    /// The queue refuses the body, and stores nothing of it. A queue in memory refuses every such
    /// body.
    pub fn append_incoming(
        &self,
        incoming: Incoming,
        levels: LevelCounts,
    ) -> Result<Ticket, Refused> {
        self.spool().ok_or(Refused::Disk)?.append_incoming(incoming, levels)
    }

    /// Returns `true` while the queue counts as full. It counts as full from the first batch for
    /// which there is no room until a fifth of `queue.max_bytes` is free again.
    pub fn is_full(&self) -> bool {
        either!(self, queue => queue.is_full())
    }

    /// Returns the reason why the disk stores no batches at present: its last error, or that it
    /// does not answer. `None` if the disk works, even if the queue is full. Always `None` for a
    /// queue in memory.
    pub fn fault(&self) -> Option<String> {
        self.spool().and_then(spool::Queue::fault)
    }

    /// Notes for the log that the disk has not answered for ten seconds, or that it answers again.
    /// The relay calls this function every few seconds.
    pub fn watch_disk(&self) {
        if let Some(queue) = self.spool() {
            queue.watch_disk();
        }
    }

    /// Waits until the queue has failed permanently: it can store no batch until the process starts
    /// again. Returns the reason. For a queue in memory, which can't fail in this way, this
    /// function never returns.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn failed(&self) -> String {
        match self.spool() {
            Some(queue) => queue.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the limit of the queue in bytes: `queue.max_bytes`.
    pub fn capacity(&self) -> u64 {
        either!(self, queue => queue.capacity())
    }

    /// Returns two numbers: the bytes that the queue holds, counted in the same way as for the
    /// limit `queue.max_bytes`, and the events that the queue holds.
    pub fn held(&self) -> (u64, u64) {
        either!(self, queue => queue.held())
    }

    /// Returns the part of the bytes that the queue holds ([`Queue::held`]) whose room a new batch
    /// can't have: those of events that a required output has not finished, and of files that can't
    /// be dropped. [`Queue::append`] takes the room of all other bytes if it needs it, whatever
    /// `when_full` says. The share of `queue.max_bytes` that is needed is how full the queue is.
    pub fn needed(&self) -> u64 {
        either!(self, queue => queue.needed())
    }

    /// Returns the name of each output, with its backlog.
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        either!(self, queue => queue.backlogs())
    }

    /// Sets the queue's gauges that are computed only when the metrics are read, for example the
    /// backlogs of the outputs.
    pub fn observe(&self) {
        either!(self, queue => queue.observe())
    }

    /// Waits until the end of the process would lose no event that an output can still finish. For
    /// a queue in memory, this means that all outputs have finished all events. For a queue in
    /// files, it means that no event is on the wire; from the call of this function on, the queue
    /// in files hands out no more events. With `ephemeral`, the files go away with the process, and
    /// the queue is like one in memory. Outputs that have ended permanently ([`Queue::give_up`])
    /// are not waited for.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn drained(&self, ephemeral: bool) {
        match self {
            Self::Memory(queue) => queue.drained().await,
            Self::Spool(queue) => queue.drained(ephemeral).await,
        }
    }

    /// Notes that the output with this name has ended permanently. [`Queue::drained`] then no
    /// longer waits for this output. With `acknowledge = "delivered"`, senders that wait for this
    /// output are told that it will not deliver their events.
    pub fn give_up(&self, name: &str) {
        either!(self, queue => queue.give_up(name))
    }

    /// Closes a queue in files: it takes no more batches, and its cursors file is saved. Does
    /// nothing to a queue in memory. Call this after the outputs have ended.
    pub async fn close(&self) {
        if let Some(queue) = self.spool() {
            queue.close().await;
        }
    }

    /// Decides what happens to the events that are still in the queue at the end of the process. A
    /// queue in memory counts them as lost, and takes no more batches. A queue in files keeps them
    /// for the next start, unless it is `ephemeral`. Returns for each output its name, and how many
    /// events it has not finished.
    pub fn abandon(&self, ephemeral: bool) -> Vec<(String, Left)> {
        let lost = |all: Vec<(String, u64)>| {
            all.into_iter().map(|(name, events)| (name, Left::Lost(events))).collect()
        };
        match self {
            Self::Memory(queue) => lost(queue.abandon()),
            Self::Spool(queue) if ephemeral => lost(queue.abandon()),
            Self::Spool(queue) => {
                let kept = queue.kept().into_iter();
                kept.map(|(name, events)| (name, Left::Kept(events))).collect()
            }
        }
    }
}

/// The number of events that an output did not get before the process ended, and what happens to
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// This many events are lost, because the queue is in memory, or in a directory that goes away.
    /// They are counted as lost.
    Lost(u64),
    /// This many events stay in the queue's directory, and are sent after the next start.
    Kept(u64),
}

/// A function that says whether the queue is crowded. Clones are cheap.
#[derive(Clone)]
pub struct Crowding(Arc<dyn Fn() -> bool + Send + Sync>);

impl Crowding {
    /// Returns `true` if three quarters of the queue's limit are needed ([`Queue::needed`]), or
    /// more.
    pub fn is_crowded(&self) -> bool {
        (self.0)()
    }
}

/// A reader of events that an output has already finished: those before the output's place in the
/// queue. The reader returns the lines of these events that are still in the files, oldest first.
/// The reader may be dropped at any time.
pub struct Before(Option<spool::Before>);

impl Before {
    /// Returns the next lines, with the position of the first line and the time since the lines
    /// were received. `None` if there are no more lines.
    ///
    /// This function waits for the disk, which may take long. While the caller waits, it must
    /// therefore also watch whether the process is to end.
    ///
    /// # Cancel safety
    ///
    /// No line is skipped if the future is dropped.
    pub async fn next(&mut self) -> Option<(Origin, Bytes)> {
        self.0.as_mut()?.next().await
    }
}

/// The place of one output in the log. The cursor is owned by the output's delivery loop, which
/// takes events and sends them. When a reload replaces the loop, the new loop gets the cursor. If
/// possible, the old loop has called [`Cursor::rewind`] before, and the new loop takes the
/// unfinished events again. Otherwise the new loop continues with the unfinished claims.
pub enum Cursor {
    /// A cursor of a queue in memory.
    Memory(memory::Cursor),
    /// A cursor of a queue in files.
    Spool(spool::Cursor),
}

impl Cursor {
    /// Returns the cursor of a queue in files; `None` if the queue is in memory.
    fn spool(&self) -> Option<&spool::Cursor> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(cursor) => Some(cursor),
        }
    }

    /// Waits until [`Cursor::next`] can return events. There is one other reason to return: the
    /// last call of [`Cursor::redeliver`] could not return lines because they must be read from a
    /// file, and these lines have now been read, or the claim has ended in the meantime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn readable(&mut self) {
        either!(self, cursor => cursor.readable().await)
    }

    /// Returns a reader of the events before this output's watermark. The reader returns the events
    /// that are still in the files and were received at most the time `within` ago. It returns at
    /// most the newest 256 MiB of them. The consumer has these events already, except those that
    /// the output's filter has kept back. To make sure of this, the reader begins after the last
    /// event that was lost, and after the last change of the filter's rules. Damaged or missing
    /// events are skipped. For a queue in memory the reader is empty, because finished events are
    /// not kept.
    pub fn before(&self, within: Duration) -> Before {
        Before(self.spool().map(|cursor| cursor.before(within)))
    }

    /// Claims the next events, which means that the output takes them to send. The claim has as
    /// many whole batches as fit into the limits of `take`. If not even one batch fits, the claim
    /// has a part of the next batch. `None` if there are no more events, or if their lines must
    /// first be read from a file, which [`Cursor::readable`] does.
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        self.next_as(take, false)
    }

    /// Does the same as [`Cursor::next`]. If `lists` is `true`, a piece of the batch may be a part
    /// of a JSON list as it was received ([`is_list`]). Only a queue that keeps lists has such
    /// pieces ([`Queue::keeps_list`]).
    #[must_use]
    pub fn next_as(&mut self, take: Take, lists: bool) -> Option<Batch> {
        match self {
            Self::Memory(cursor) => cursor.next(take, lists),
            Self::Spool(cursor) => cursor.next_as(take, lists),
        }
    }

    /// Makes a claim final: the output has finished its events. They count as acknowledged by the
    /// consumer, except those that `disposition` counts as lost, dropped or duplicate.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        either!(self, cursor => cursor.acknowledge(claim, disposition))
    }

    /// Makes the claim of one event final, which the output sets aside. The event takes no room in
    /// the log any more; a queue in memory counts its `bytes` against `queue.max_bytes`. If the
    /// queue is in files, the event must be on the [`Shelf`]. With `acknowledge = "delivered"`, the
    /// event's sender waits until [`Cursor::settle_aside`] is called.
    pub fn set_aside(&self, claim: Claim, bytes: u64) {
        match self {
            Self::Memory(cursor) => cursor.set_aside(claim, bytes),
            Self::Spool(cursor) => cursor.set_aside(claim),
        }
    }

    /// Notes that the event at this position, which was set aside, is decided. It counts as
    /// acknowledged by the consumer, unless `disposition` counts it as lost, dropped or duplicate.
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        either!(self, cursor => cursor.settle_aside(position, event, disposition))
    }

    /// Takes the events that the output had set aside before the start: their positions, and the
    /// sizes of their files. Empty for a queue in memory, and at each later call.
    pub fn take_aside(&self) -> Vec<(Position, u64)> {
        self.spool().map(spool::Cursor::take_aside).unwrap_or_default()
    }

    /// Returns the place of the events that the output sets aside.
    pub fn shelf(&self) -> Shelf {
        self.spool().map_or_else(Shelf::in_memory, spool::Cursor::shelf)
    }

    /// Returns the time at which the first event of a claim was accepted, by the wall clock, in
    /// milliseconds since 1970. If the claim is gone, returns the present time.
    pub fn received(&self, claim: Claim) -> u64 {
        either!(self, cursor => cursor.received(claim))
    }

    /// Notes that a claim no longer waits for an answer of the consumer, for example because the
    /// connection broke. The output must send the claim again.
    pub fn release(&self, claim: Claim) {
        either!(self, cursor => cursor.release(claim))
    }

    /// Marks a released claim as sent and not answered yet, and returns its lines. The result is
    /// [`Redelivery::Gone`] if all events of the claim were dropped. It is [`Redelivery::NotYet`]
    /// if the lines must first be read from a file, or if the queue hands out no more events; the
    /// caller must then try again later.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        match self {
            Self::Memory(cursor) => {
                cursor.redeliver(claim).map_or(Redelivery::Gone, Redelivery::Batch)
            }
            Self::Spool(cursor) => cursor.redeliver(claim),
        }
    }

    /// Marks a released claim as sent and not answered yet, but does not return its lines. The
    /// output can then acknowledge the claim. Returns `true` if this was done. Returns `false` if
    /// all events of the claim were dropped.
    pub fn take_back(&self, claim: Claim) -> bool {
        match self {
            Self::Memory(cursor) => cursor.redeliver(claim).is_some(),
            Self::Spool(cursor) => cursor.take_back(claim),
        }
    }

    /// Cuts a claim into two halves, and returns them. Both halves get the state of the claim, for
    /// example "sent and not answered yet". `None` if the claim has fewer than two events, or if it
    /// and all claims before it are finished already.
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split(claim))
    }

    /// Cuts a claim into two parts, and returns them. The second part begins at `middle`. Both
    /// parts get the state of the claim, for example "sent and not answered yet". `None` if
    /// `middle` does not lie inside the claim, or if the claim and all claims before it are
    /// finished already.
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split_at(claim, middle))
    }

    /// Forgets every claim that is not finished. [`Cursor::next`] then returns the same events
    /// again, from the first event of the first unfinished claim on.
    ///
    /// Call this only if [`Cursor::is_in_order`] returns `true`, because otherwise finished events
    /// would be sent again. An output that finishes its claims in order needs no such check.
    pub fn rewind(&mut self) {
        either!(self, cursor => cursor.rewind())
    }

    /// Returns `true` if no finished claim comes after an unfinished one. Call [`Cursor::rewind`]
    /// only if the result is `true`. If the result is `false`, [`Cursor::rewind`] would send
    /// finished events again.
    pub fn is_in_order(&self) -> bool {
        either!(self, cursor => cursor.with(|state| state.claims.is_in_order()))
    }

    /// Removes the output from the queue. The events that the output has not finished are counted
    /// as lost for it; returns their number. After this, the output has no backlog, and nothing in
    /// the queue waits for it. If the queue is in files, the upkeep then saves the cursors file
    /// without the output's name.
    pub fn leave(self) -> u64 {
        either!(self, cursor => cursor.remove(true))
    }

    /// Removes an output that has joined but taken no events, for example because a reload failed
    /// afterwards. The events that were appended since it joined are not counted as lost for it,
    /// because they were never meant for it.
    pub fn leave_uncounted(self) {
        either!(self, cursor => cursor.remove(false));
    }

    /// Changes [`Output::keeps`]: how long segments are kept although all outputs have finished
    /// them. Does nothing for a queue in memory.
    pub fn keep(&self, keeps: Duration) {
        if let Some(cursor) = self.spool() {
            cursor.keep(keeps);
        }
    }

    /// Notes by which rules the output's filter chooses the events that it sends, from the position
    /// `from` on. `selection` is a fingerprint of these rules. If the rules have changed, they may
    /// let an event through that was kept back before. No event before `from` then counts as sent
    /// any more ([`Cursor::before`]). Does nothing for a queue in memory, which keeps no finished
    /// events.
    pub fn select(&self, selection: u64, from: Position) {
        if let Some(cursor) = self.spool() {
            cursor.select(selection, from);
        }
    }

    /// Sets whether the batches that this cursor returns have origins ([`Batch::origins`]). An
    /// origin is the position and age of one piece of the batch's lines. Before the first call of
    /// this function the batches have no origins.
    pub fn tell_origins(&self, tells: bool) {
        either!(self, cursor => cursor.with(|state| state.tells_origins = tells))
    }

    /// Sets whether this output sends JSON lists ([`Cursor::next_as`]). Before the first call of
    /// this function it sends lines.
    pub fn take_lists(&self, takes: bool) {
        either!(self, cursor => cursor.with(|state| state.takes_lists = takes));
    }

    /// Returns how many events were acknowledged and dropped without a position since the last
    /// call, because the queue was full and `when_full` is `drop_newest`. Only the reader that
    /// records the evidence calls this. Always 0 for a queue in memory.
    pub fn take_unplaced(&self) -> u64 {
        self.spool().map_or(0, spool::Cursor::take_unplaced)
    }

    /// Returns positions that are not lost if this cursor does not find their events: the queue has
    /// dropped them for their room, or every output had finished them before the start. An output
    /// that has lost some of them has said so ([`Cursor::take_finished`]). Each is returned once.
    /// Only the reader that records the evidence calls this. Empty for a queue in memory.
    pub fn take_given_up(&self) -> Vec<Range<Position>> {
        self.spool().map(spool::Cursor::take_given_up).unwrap_or_default()
    }

    /// Returns the outputs that have left since the last call, each with the position of the first
    /// event that was not meant for it any more. Only the reader that records the evidence calls
    /// this. Empty for a queue in memory.
    pub fn take_left(&self) -> BTreeMap<String, Position> {
        self.spool().map(spool::Cursor::take_left).unwrap_or_default()
    }

    /// Returns `true` if there is evidence, which needs to know what became of each event
    /// ([`Disposition::fates`]). Always `false` for a queue in memory.
    pub fn is_recorded(&self) -> bool {
        self.spool().is_some_and(|cursor| cursor.with(|state| state.unrecorded.is_some()))
    }

    /// Waits until an output has finished events that [`Cursor::take_finished`] returns. Only the
    /// reader that records the evidence calls this. Never returns for a queue in memory.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub fn finished(&self) -> impl Future<Output = ()> + Send + use<> {
        let wakes = self.spool().and_then(spool::Cursor::finished);
        async move {
            match wakes {
                Some(wakes) => wakes.notified().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Returns what all outputs have finished since the last call. The places of the outputs in the
    /// cursors file stay before these events until [`Cursor::recorded`] is called. Only the reader
    /// that records the evidence calls this. Always empty for a queue in memory.
    pub fn take_finished(&self) -> Vec<Finished> {
        self.spool().map(spool::Cursor::take_finished).unwrap_or_default()
    }

    /// Notes that the evidence of these events, which [`Cursor::take_finished`] has returned, is
    /// durable.
    pub fn recorded(&self, finished: &[Finished]) {
        if let Some(cursor) = self.spool() {
            cursor.recorded(finished);
        }
    }

    /// Returns `true` if the queue hands out no more events, because the process is ending and the
    /// files keep the events for the next start. Always `false` for a queue in memory.
    pub fn is_closed(&self) -> bool {
        self.spool().is_some_and(spool::Cursor::is_closed)
    }

    /// Returns the identity of the queue, which no other queue has.
    pub fn identity(&self) -> Identity {
        either!(self, cursor => cursor.identity())
    }

    /// Returns the limit of the queue in bytes: `queue.max_bytes`.
    pub fn capacity(&self) -> u64 {
        either!(self, cursor => cursor.capacity())
    }

    /// Returns a function that says whether the queue is crowded: three quarters of its limit are
    /// needed, or more.
    pub fn crowding(&self) -> Crowding {
        either!(self, cursor => Crowding(Arc::new(cursor.crowding())))
    }

    /// Returns the notes in which the output may keep facts for the delivery that replaces this
    /// one, and, if the queue is in files, for the next start.
    pub fn notes(&self) -> Notes {
        either!(self, cursor => cursor.notes())
    }

    /// Returns the position at which this cursor's next claim begins. If events are missing at this
    /// position, the claim begins after them.
    pub fn position(&self) -> Position {
        either!(self, cursor => cursor.with(|state| state.claims.read))
    }

    /// Returns the first position that this output has not finished. All positions before it are
    /// finished.
    pub fn watermark(&self) -> Position {
        either!(self, cursor => cursor.with(|state| state.claims.watermark()))
    }

    /// Returns `true` if this output has taken all events in the queue to send them. If the queue
    /// is in files, only synced events count.
    pub fn is_at_end(&self) -> bool {
        either!(self, cursor => cursor.is_at_end())
    }
}

#[cfg(test)]
pub(crate) mod tests;
