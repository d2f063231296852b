//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor
//! for each output.
//!
//! This crate promises: for each output that exists when an event is accepted, the event is either
//! handed out or lost, and is counted exactly once. With a directory, no stored batch is
//! acknowledged before it is synced. The crate imports `audit` (the counts of a batch), `base`,
//! `config` (its section) and `telemetry`. It must never interpret an event, or wait for anything
//! while it holds the lock of its state.
//!
//! The queue takes lines and counts, and hands out lines. It knows no JSON and no HTTP. Every
//! stored event has a [`Position`]; a batch may be cut between any two lines. An accepted batch is
//! held until every required output has finished it or has ended, unless `drop_oldest` drops it
//! before. For optional outputs it is held until its room is needed. [`Queue::append`] never waits
//! for room: if there is none, it refuses the batch or drops events, as `when_full` says.
//!
//! An output *claims* a range of positions ([`Cursor::next`]), and then calls one of these
//! functions for it:
//!
//! - [`Cursor::acknowledge`]: the claim is final, because the output has finished its events.
//! - [`Cursor::release`]: the claim is no longer on the wire and must be sent again, with
//!   [`Cursor::redeliver`].
//!
//! Events that a required output has on the wire are never dropped.
//!
//! Outputs join ([`Queue::join`]) and leave ([`Cursor::leave`]) while events flow.
//!
//! There are two kinds of queue: in memory (`memory`), and in files (`spool`). Only the enums of
//! this file join them. The comments here document the methods of both.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `contract` `patient` | batches, claims and answers · reads that are tried again |
//! | 2 | `claims` `identity` `notes` `outputs` `segment` | an output's claims · the queue's own number · a file of an output · its counters · a file of the log, byte for byte |
//! | 3 | `cursors` `memory` `synced` | the file of all cursors · the queue in memory · the file that says where the log ends |
//! | 4 | `foreign` `place` `shelf` `tail` | files that the queue did not write · whether a directory can be used · files of events that are set aside · where the log ends |
//! | 5 | `spool` | the queue in files |
//! | 6 | `inspect` | the queue's files, seen from outside |

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;

use base::disk::{Disk, RealDisk};
use base::release::Format;
use telemetry::{OutputMetrics, Telemetry};

mod claims;
mod contract;
mod cursors;
mod foreign;
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
    Acceptance, Append, Appended, Aside, Backlog, Batch, Claim, Disposition, Fates, Finished, Held,
    JoinError, Outcome, Redelivery, Refused, Remains, SentLine, Take, Ticket, is_list, lines,
};
pub use identity::Identity;
pub use notes::Notes;
pub use outputs::Output;
pub use shelf::{Loaded, Shelf};

/// The formats of the queue's files, for `--version`.
pub const FORMATS: [Format; 4] = [segment::FORMAT, cursors::FORMAT, synced::FORMAT, shelf::FORMAT];

macro_rules! either {
    ($either:expr, $inner:ident => $call:expr) => {
        match $either {
            Self::Memory($inner) => $call,
            Self::Spool($inner) => $call,
        }
    };
}

/// The queue of accepted events. A clone is cheap, and refers to the same queue.
#[derive(Clone)]
pub enum Queue {
    /// The queue in memory: its events are lost when the process ends.
    Memory(memory::Queue),
    /// The queue in files: its events survive the process.
    Spool(spool::Queue),
}

impl Queue {
    fn spool(&self) -> Option<&spool::Queue> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(queue) => Some(queue),
        }
    }

    /// Opens the queue: in files if `queue.directory` is set, otherwise in memory. Also returns a
    /// cursor for each output, in the order of `outputs`.
    ///
    /// `outputs` must hold all outputs of the config. An output that joins later does not get the
    /// batches that were acknowledged before it joined.
    ///
    /// For a queue in files this blocks, so it must not run on a thread of the async runtime.
    ///
    /// # Errors
    ///
    /// The queue's directory can't be used, the threads that work on the files can't be started, or
    /// the operating system gives no random numbers.
    pub fn open(
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        if let Some(directory) = &config.directory {
            let disk = Arc::new(RealDisk::own(directory)?);
            return Self::open_on(disk, directory, config, telemetry, outputs);
        }
        let identity = Identity::random()
            .map_err(|error| OpenError::new("read", PathBuf::from("/dev/urandom"), error))?;
        let (queue, cursors) = memory::Queue::new(config, identity, telemetry.queue(), outputs);
        Ok((Self::Memory(queue), cursors.into_iter().map(Cursor::Memory).collect()))
    }

    /// Opens the queue in files on this disk, as [`Queue::open`] does on the real one. Tests give a
    /// disk that fails. `directory` is only named in errors.
    ///
    /// # Errors
    ///
    /// As [`Queue::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        directory: &Path,
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        let (queue, cursors) = spool::Queue::open(disk, directory, config, telemetry, outputs)?;
        Ok((Self::Spool(queue), cursors.into_iter().map(Cursor::Spool).collect()))
    }

    /// Adds an output at the end of the log while events flow, and returns its cursor.
    ///
    /// The output gets the batches that are appended from now on, always whole batches. In a queue
    /// in files it also gets the batches that are appended but not synced yet. For a queue in
    /// files, the function succeeds only after the cursors file with the new output is synced, so
    /// that the output continues from its place after a crash.
    ///
    /// # Errors
    ///
    /// The name is taken, the queue is closed, or the cursors file can't be written or has no room.
    /// The output has then not joined, and no event is counted as lost for it.
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
        let output = Output { name: name.to_owned(), required, metrics, recorder: None };
        match self {
            Self::Memory(queue) => queue.join(output).map(Cursor::Memory),
            Self::Spool(queue) => queue.join(output).await.map(Cursor::Spool),
        }
    }

    /// Sets whether the output with this name is required. At least one output must be required at
    /// any time, because events that no output requires may be removed before they are sent.
    pub fn require(&self, name: &str, required: bool) {
        either!(self, queue => queue.require(name, required))
    }

    /// Applies the settings that can change at run time: `max_bytes` and `when_full`; for a queue
    /// in memory also `acknowledge`, for a queue in files also `segment_bytes`.
    ///
    /// This drops no events, even if the queue holds more than the new `max_bytes`. A new batch
    /// then finds no room until enough events are delivered or can be dropped. Batches that were
    /// appended before keep the old value of `acknowledge`.
    pub fn apply(&self, config: &config::Queue) {
        either!(self, queue => queue.apply(config))
    }

    /// Returns `Ok` if the queue could probably take a batch whose lines have this many bytes: the
    /// disk works, and there is room or `when_full` allows it to drop events. [`Queue::append`] may
    /// still refuse the batch.
    ///
    /// # Errors
    ///
    /// The reason why [`Queue::append`] would refuse the batch now.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        either!(self, queue => queue.admits(bytes))
    }

    /// Appends a whole batch. The sender may be told that the batch is safe when
    /// [`Ticket::acknowledged`] returns `Ok`. If the queue is full and `when_full` is
    /// `drop_newest`, the batch is counted as dropped and not stored, and the result is `Ok` too.
    ///
    /// # Errors
    ///
    /// The queue refuses the batch, and stores nothing of it.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        self.append_holding(batch, None)
    }

    /// Does the same as [`Queue::append`]. A queue in files keeps `held` until it has stored or
    /// refused the batch, and a queue in memory drops it at once.
    ///
    /// # Errors
    ///
    /// The queue refuses the batch, and stores nothing of it.
    pub fn append_holding(&self, batch: Append, held: Held) -> Result<Ticket, Refused> {
        match self {
            Self::Memory(queue) => queue.append(batch),
            Self::Spool(queue) => queue.append(batch, held),
        }
    }

    /// Returns the queue's directory, and the position at which the log ends. `None` for a queue in
    /// memory.
    pub fn disk(&self) -> Option<(Arc<dyn Disk>, Position)> {
        self.spool().map(spool::Queue::disk)
    }

    /// Sets `originals`, the lines as they were received. From now on, every line that is read from
    /// a segment is compared with them. A changed line is not handed out, and counts as lost if it
    /// was to be sent. Only the first call has an effect. Does nothing for a queue in memory.
    pub fn compare_with(&self, originals: Arc<dyn Originals>) {
        if let Some(queue) = self.spool() {
            queue.compare_with(originals);
        }
    }

    /// Returns the name of each output, and the position that the cursors file gets for this
    /// output: that of the first event that the output has not finished, or whose evidence is not
    /// durable. Empty for a queue in memory.
    pub fn places(&self) -> Vec<(String, Position)> {
        self.spool().map(spool::Queue::places).unwrap_or_default()
    }

    /// Returns `true` if a body of this many bytes may be appended as the received JSON list
    /// ([`Append::list`]), which outputs can send without a copy. Every output must send lists, and
    /// no evidence may be recorded. A queue in files does not take long lists.
    pub fn keeps_list(&self, bytes: usize) -> bool {
        match self {
            Self::Memory(queue) => queue.keeps_lists(),
            Self::Spool(queue) => queue.keeps_list(bytes),
        }
    }

    /// Returns `true` if the queue is in files.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Spool(_))
    }

    /// Returns `true` after a batch has found no room, until less than four fifths of
    /// `queue.max_bytes` are needed ([`Queue::needed`]).
    pub fn is_full(&self) -> bool {
        either!(self, queue => queue.is_full())
    }

    /// Returns the reason why the disk stores no batches at present: the last error, or that the
    /// disk does not respond. `None` if the disk works (even if the queue is full), and for a queue
    /// in memory.
    pub fn fault(&self) -> Option<String> {
        self.spool().and_then(spool::Queue::fault)
    }

    /// Logs when the disk has not responded for ten seconds, and when it responds again. Call it
    /// often.
    pub fn watch_disk(&self) {
        if let Some(queue) = self.spool() {
            queue.watch_disk();
        }
    }

    /// Waits until the queue has failed permanently, so that it stores nothing until the process is
    /// restarted. Returns the reason. Never returns for a queue in memory.
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

    /// Returns `queue.max_bytes`.
    pub fn capacity(&self) -> u64 {
        either!(self, queue => queue.capacity())
    }

    /// Returns how many bytes the queue holds, as `queue.max_bytes` counts them, and how many
    /// events.
    pub fn held(&self) -> (u64, u64) {
        either!(self, queue => queue.held())
    }

    /// Returns how many of the held bytes ([`Queue::held`]) are needed: without `drop_oldest`, a
    /// new batch can't get their room. They belong to events that a required output has not
    /// finished, in memory also to events that are set aside, and on disk also to files that can't
    /// be dropped. The fill level is their share of `queue.max_bytes`.
    pub fn needed(&self) -> u64 {
        either!(self, queue => queue.needed())
    }

    /// Returns the name of each output, with its backlog.
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        either!(self, queue => queue.backlogs())
    }

    /// Sets the gauges that are computed only when the metrics are read, such as the backlogs.
    pub fn observe(&self) {
        either!(self, queue => queue.observe())
    }

    /// Waits until the end of the process would lose no event that an output can still finish. A
    /// queue in memory waits until all outputs have finished all events. A queue in files does the
    /// same if `ephemeral` is `true` (its directory is deleted with the process). Otherwise it
    /// hands out no more events, and waits until none is on the wire. Outputs that have ended
    /// permanently ([`Queue::give_up`]) are not waited for.
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

    /// Records that the output with this name has ended permanently. [`Queue::drained`] no longer
    /// waits for the output. If `acknowledge` is `delivered`, a sender whose batch waits for this
    /// output is told that the batch will not be delivered.
    pub fn give_up(&self, name: &str) {
        either!(self, queue => queue.give_up(name))
    }

    /// Closes a queue in files: it takes no more batches, and saves its cursors file. Does nothing
    /// to a queue in memory. Call this after the outputs have ended.
    pub async fn close(&self) {
        if let Some(queue) = self.spool() {
            queue.close().await;
        }
    }

    /// Returns what the next start would find of the events that are not finished. Blocks on the
    /// disk, which may not respond.
    pub fn remains(&self) -> Remains {
        match self {
            Self::Memory(_) => Remains::Found,
            Self::Spool(queue) => queue.remains(),
        }
    }

    /// Returns `false` once [`Queue::abandon`] has returned [`Left::Unknown`] for some events.
    pub fn finds_kept(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Spool(queue) => queue.finds_kept(),
        }
    }

    /// Returns the name of each output, and the number and fate of its unfinished events. In a
    /// queue in memory, and in a queue in files if `ephemeral` is `true` or the files were deleted,
    /// these events count as lost from now on. Otherwise they stay in the files for the next start.
    /// A queue in memory also takes no more batches.
    pub fn abandon(&self, ephemeral: bool, remains: Remains) -> Vec<(String, Left)> {
        let lost = |all: Vec<(String, u64)>| {
            all.into_iter().map(|(name, events)| (name, Left::Lost(events))).collect()
        };
        match self {
            Self::Memory(queue) => lost(queue.abandon()),
            Self::Spool(queue) if ephemeral || remains == Remains::Deleted => lost(queue.abandon()),
            Self::Spool(queue) => {
                let kept = queue.kept();
                let is_found = remains == Remains::Found || kept.iter().all(|(_, it)| *it == 0);
                if !is_found {
                    queue.keeps_unknown();
                }
                let left = if is_found { Left::Kept } else { Left::Unknown };
                kept.into_iter().map(|(name, events)| (name, left(events))).collect()
            }
        }
    }
}

/// The fate of the events that an output has not finished when the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// This many events are lost and counted as lost, because the queue is in memory or ephemeral,
    /// or because its files were deleted.
    Lost(u64),
    /// This many events stay in the queue's directory for the next start.
    Kept(u64),
    /// This many events are unfinished, and the next start may not find all of them: some files
    /// were deleted, or the directory was moved away or covered by a mount.
    Unknown(u64),
}

/// A function that says whether the queue is crowded. Clones are cheap.
#[derive(Clone)]
pub struct Crowding(Arc<dyn Fn() -> bool + Send + Sync>);

impl Crowding {
    /// Returns `true` if at least three quarters of `queue.max_bytes` are needed
    /// ([`Queue::needed`]).
    pub fn is_crowded(&self) -> bool {
        (self.0)()
    }
}

/// The place of one output in the log, owned by the output's delivery loop. When a reload replaces
/// the loop, the new loop gets the cursor. If the old loop could call [`Cursor::rewind`], the new
/// loop takes the unfinished events again; otherwise it continues with the unfinished claims.
pub enum Cursor {
    /// A cursor of a queue in memory.
    Memory(memory::Cursor),
    /// A cursor of a queue in files.
    Spool(spool::Cursor),
}

impl Cursor {
    fn spool(&self) -> Option<&spool::Cursor> {
        match self {
            Self::Memory(_) => None,
            Self::Spool(cursor) => Some(cursor),
        }
    }

    /// Waits until [`Cursor::next`] may return events. Also returns when the lines that the last
    /// call of [`Cursor::redeliver`] needed are read from a file, or when the claim of these lines
    /// has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn readable(&mut self) {
        either!(self, cursor => cursor.readable().await)
    }

    /// Claims the next events to send, within the limits of `take`. These are usually whole
    /// batches. A batch that exceeds the limits alone, or is long and read from a file, is cut.
    /// `None` if there are no more events, if the queue hands out none ([`Cursor::is_closed`]), or
    /// if the lines must first be read from a file ([`Cursor::readable`]).
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        self.next_as(take, false)
    }

    /// Like [`Cursor::next`]. If `lists` is `true`, a piece of the batch may be a part of a
    /// received JSON list ([`is_list`]). There are no such pieces before [`Queue::keeps_list`] has
    /// returned `true`.
    #[must_use]
    pub fn next_as(&mut self, take: Take, lists: bool) -> Option<Batch> {
        match self {
            Self::Memory(cursor) => cursor.next(take, lists),
            Self::Spool(cursor) => cursor.next_as(take, lists),
        }
    }

    /// Makes a claim final. Its events count as acknowledged by the consumer, except those that
    /// `disposition` counts.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        either!(self, cursor => cursor.acknowledge(claim, disposition))
    }

    /// Makes the claim of one event final, because the output sets this event aside. The output
    /// then no longer needs the event in the log. If `acknowledge` is `delivered` and the output is
    /// required, the sender of the event waits for [`Cursor::settle_aside`].
    ///
    /// A queue in memory keeps the line, which counts in `queue.max_bytes`, and returns a reference
    /// to it. The reference ends when the event is settled, or dropped because the output is
    /// optional and its room is needed: the event is then counted as lost. In a queue in files,
    /// the event must already be on the [`Shelf`], and the reference refers to nothing.
    ///
    /// Returns `None` if the event was dropped, and counted as lost, before it could be set aside.
    #[must_use]
    pub fn set_aside(&self, claim: Claim, line: &[u8]) -> Option<Weak<Bytes>> {
        match self {
            Self::Memory(cursor) => cursor.set_aside(claim, line),
            Self::Spool(cursor) => cursor.set_aside(claim).then(Weak::new),
        }
    }

    /// Records that an event which was set aside is decided. The event counts as acknowledged by
    /// the consumer, unless `disposition` counts it as lost, dropped or duplicate. Does nothing if
    /// a queue in memory has dropped the event, even while it was on the wire.
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        either!(self, cursor => cursor.settle_aside(position, event, disposition))
    }

    /// Returns the positions and file sizes of the events that were set aside before the start, but
    /// only at the first call. Later calls, and a queue in memory, return nothing.
    pub fn take_aside(&self) -> Vec<(Position, u64)> {
        self.spool().map(spool::Cursor::take_aside).unwrap_or_default()
    }

    /// Returns the store of the events that the output sets aside.
    pub fn shelf(&self) -> Shelf {
        self.spool().map_or_else(Shelf::in_memory, spool::Cursor::shelf)
    }

    /// Records that a claim is no longer on the wire: no response of the consumer is expected, for
    /// example because the connection broke. The output must send the claim again.
    pub fn release(&self, claim: Claim) {
        either!(self, cursor => cursor.release(claim))
    }

    /// Puts a released claim on the wire again, and returns the lines. Returns [`Redelivery::Gone`]
    /// if all events of the claim were dropped or are missing. Returns [`Redelivery::NotYet`] if
    /// the lines must first be read from a file, or if the queue hands out no more events.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        match self {
            Self::Memory(cursor) => {
                cursor.redeliver(claim).map_or(Redelivery::Gone, Redelivery::Batch)
            }
            Self::Spool(cursor) => cursor.redeliver(claim),
        }
    }

    /// Puts a released claim on the wire again without reading the lines, so that the output can
    /// acknowledge the claim. Returns `false` if all its events were dropped or are missing.
    pub fn take_back(&self, claim: Claim) -> bool {
        match self {
            Self::Memory(cursor) => cursor.redeliver(claim).is_some(),
            Self::Spool(cursor) => cursor.take_back(claim),
        }
    }

    /// Cuts a claim into two parts, which keep the state of the claim. The second part begins at
    /// `middle`. `None` if `middle` is not inside the claim, or if the claim no longer exists.
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split_at(claim, middle))
    }

    /// Forgets every unfinished claim. [`Cursor::next`] then returns the same events again, from
    /// the first unfinished one on. Call this only if [`Cursor::is_in_order`] returns `true`,
    /// because otherwise finished events would be sent again.
    pub fn rewind(&mut self) {
        either!(self, cursor => cursor.rewind())
    }

    /// Returns `true` if no finished claim comes after an unfinished one.
    pub fn is_in_order(&self) -> bool {
        either!(self, cursor => cursor.with(|state| state.claims.is_in_order()))
    }

    /// Removes the output from the queue. Returns the number of events that it has not finished or
    /// has set aside: they are counted as lost. A queue in files then saves its cursors file.
    pub fn leave(self) -> u64 {
        either!(self, cursor => cursor.remove(true))
    }

    /// Removes an output that has joined but taken no events, for example because a reload failed.
    /// No event is counted as lost, because none was meant for it.
    pub fn leave_uncounted(self) {
        either!(self, cursor => cursor.remove(false));
    }

    /// Sets whether new batches of this cursor have [`Batch::acceptances`]. Initially they have
    /// none. Batches that are sent again always have them.
    pub fn tell_acceptances(&self, tells: bool) {
        either!(self, cursor => cursor.with(|state| state.tells_acceptances = tells))
    }

    /// Sets whether this output sends JSON lists ([`Cursor::next_as`]). Initially it sends lines.
    pub fn take_lists(&self, takes: bool) {
        either!(self, cursor => cursor.with(|state| state.takes_lists = takes));
    }

    /// Returns the number of events that `drop_newest` has dropped since the last call: they were
    /// acknowledged, and have no position. Only the evidence recorder calls this. 0 for a queue in
    /// memory.
    pub fn take_unplaced(&self) -> u64 {
        self.spool().map_or(0, spool::Cursor::take_unplaced)
    }

    /// Returns the ranges of positions that the queue has dropped for their room, or that every
    /// output had finished before the start. Later calls return only new ranges. Their events may
    /// be missing in the queue without a loss. An output that has lost some of them reports this
    /// itself ([`Cursor::take_finished`]). Only the evidence recorder calls this. Empty for a queue
    /// in memory.
    pub fn take_given_up(&self) -> Vec<Range<Position>> {
        self.spool().map(spool::Cursor::take_given_up).unwrap_or_default()
    }

    /// Returns the name of each output that has left since the last call, with the first position
    /// that was not meant for it. Only the evidence recorder calls this. Empty for a queue in
    /// memory.
    pub fn take_left(&self) -> BTreeMap<String, Position> {
        self.spool().map(spool::Cursor::take_left).unwrap_or_default()
    }

    /// Returns `true` if the evidence needs the fate of each event ([`Disposition::fates`]).
    pub fn is_recorded(&self) -> bool {
        self.spool().is_some_and(|cursor| cursor.with(|state| state.unrecorded.is_some()))
    }

    /// Waits until [`Cursor::take_finished`] may have something to return. Only the evidence
    /// recorder calls this. Never returns for a queue in memory.
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

    /// Returns the events that outputs have finished since the last call. In the cursors file, the
    /// place of an output stays before its finished claims until [`Cursor::recorded`] is called.
    /// Only the evidence recorder calls this. Empty for a queue in memory.
    pub fn take_finished(&self) -> Vec<Finished> {
        self.spool().map(spool::Cursor::take_finished).unwrap_or_default()
    }

    /// Records that the evidence of these events is durable.
    pub fn recorded(&self, finished: &[Finished]) {
        if let Some(cursor) = self.spool() {
            cursor.recorded(finished);
        }
    }

    /// Returns `true` if the queue hands no more events to outputs, because the process is ending
    /// and the files keep them for the next start. Always `false` for a queue in memory.
    pub fn is_closed(&self) -> bool {
        self.spool().is_some_and(spool::Cursor::is_closed)
    }

    /// Returns the identity of the queue, a random number.
    pub fn identity(&self) -> Identity {
        either!(self, cursor => cursor.identity())
    }

    /// Returns `queue.max_bytes`.
    pub fn capacity(&self) -> u64 {
        either!(self, cursor => cursor.capacity())
    }

    /// Returns a function that tells whether the queue is crowded.
    pub fn crowding(&self) -> Crowding {
        either!(self, cursor => Crowding(Arc::new(cursor.crowding())))
    }

    /// Returns the notes of the output: facts for the delivery that replaces the present one. In a
    /// queue in files the notes survive a restart.
    pub fn notes(&self) -> Notes {
        either!(self, cursor => cursor.notes())
    }

    /// Returns the position at which the next claim begins, unless events are missing there.
    pub fn position(&self) -> Position {
        either!(self, cursor => cursor.with(|state| state.claims.read))
    }

    /// Returns the first position that this output has not finished.
    pub fn watermark(&self) -> Position {
        either!(self, cursor => cursor.with(|state| state.claims.watermark()))
    }

    /// Returns `true` if this output has taken all events; with a queue in files, all synced ones.
    pub fn is_at_end(&self) -> bool {
        either!(self, cursor => cursor.is_at_end())
    }
}

#[cfg(test)]
pub(crate) mod tests;
