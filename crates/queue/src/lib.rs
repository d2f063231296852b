//! The log between listeners and outputs: one ordered, bounded sequence of batches, and a cursor
//! for each output.
//!
//! This crate promises that every accepted event is handed to each output that exists at that time,
//! and is counted once for each. With a directory, nothing is acknowledged before it is synced. It
//! imports `audit` (the counts of a batch), `base`, `config` (its section) and `telemetry`. It must
//! never interpret an event, or hold a lock while something waits.
//!
//! The queue takes lines and counts, and hands out lines. It knows no JSON and no HTTP. Every event
//! has a [`Position`]; a batch may be cut between any two lines. A batch is held until every
//! required output has finished it. For other outputs it is held only as long as nothing else needs
//! its room. [`Queue::append`] alone decides whether there is room, and never waits for it.
//!
//! An output *claims* a range of positions ([`Cursor::next`]), and then tells the queue how each
//! claim ended:
//!
//! - [`Cursor::acknowledge`]: the claim is final. The consumer has the events, or the output has
//!   given them up.
//! - [`Cursor::release`]: the claim is no longer on the wire and must be sent again, with
//!   [`Cursor::redeliver`].
//!
//! Events of a required output that are on the wire are never dropped.
//!
//! Outputs join ([`Queue::join`]) and leave ([`Cursor::leave`]) while events flow.
//!
//! There are two kinds of queue: in memory (`memory`), and in files (`spool`). They meet only in
//! the enums of this file, whose comments document the methods of both.
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
    Acceptance, Append, Aside, Backlog, Batch, Claim, Disposition, Fates, Finished, JoinError,
    Outcome, Redelivery, Refused, SentLine, Take, Ticket, is_list, lines,
};
pub use identity::Identity;
pub use notes::Notes;
pub use outputs::Output;
pub use shelf::Shelf;
pub use spool::Incoming;

/// The formats of the queue's files, for `--version`.
pub const FORMATS: [Format; 3] = [segment::FORMAT, cursors::FORMAT, synced::FORMAT];

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

    /// Opens the queue, in files if `queue.directory` is set. Returns it with a cursor for each
    /// output, in the order of `outputs`.
    ///
    /// `outputs` must hold all outputs of the config. An output that joins later never gets the
    /// batches that were appended before, although their senders were told that the batches are
    /// safe.
    ///
    /// A queue in files blocks on the disk, so this must not run on a thread of the async runtime.
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

    /// Adds an output at the end of the log while events flow, and returns its cursor.
    ///
    /// The output gets the batches that are appended from now on, always whole batches. With a
    /// queue in files it also gets the batches that are appended but not synced yet. This function
    /// then returns only after the cursors file with the new output is synced, so that the output
    /// continues from its place after a crash.
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

    /// Sets whether the output with this name is required. At least one output must be required at
    /// any time, because events that no output requires may be removed unsent.
    pub fn require(&self, name: &str, required: bool) {
        either!(self, queue => queue.require(name, required))
    }

    /// Applies the settings that can change at run time: `max_bytes` and `when_full`; for a queue
    /// in memory also `acknowledge`, for a queue in files also `segment_bytes`.
    ///
    /// This drops no events, even if the queue holds more than the new `max_bytes`: new batches
    /// then find no room until enough events are delivered, or until `when_full` lets the queue
    /// drop some. Batches that were appended before keep the old value of `acknowledge`.
    pub fn apply(&self, config: &config::Queue) {
        either!(self, queue => queue.apply(config))
    }

    /// Returns `Ok` if the queue could probably take a batch whose lines have this many bytes: the
    /// disk works, and there is room or `when_full` lets the queue drop events. [`Queue::append`]
    /// may still refuse the batch.
    ///
    /// # Errors
    ///
    /// The reason why [`Queue::append`] would refuse the batch now.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        either!(self, queue => queue.admits(bytes))
    }

    /// Appends a whole batch. Its sender may be told that it is safe when [`Ticket::acknowledged`]
    /// returns `Ok`. A full queue with `drop_newest` also returns `Ok`: it counts the batch as
    /// dropped and does not store it.
    ///
    /// # Errors
    ///
    /// The queue refuses the batch, and stores nothing of it.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        either!(self, queue => queue.append(batch))
    }

    /// Returns the queue's directory and the position after its last event. `None` in memory.
    pub fn disk(&self) -> Option<(Arc<dyn Disk>, Position)> {
        self.spool().map(spool::Queue::disk)
    }

    /// Compares all lines that are read from files from now on with `originals`, the lines as they
    /// were received. A changed line is not handed out, and counts as lost. Only the first call has
    /// an effect. A queue in memory does nothing.
    pub fn compare_with(&self, originals: Arc<dyn Originals>) {
        if let Some(queue) = self.spool() {
            queue.compare_with(originals);
        }
    }

    /// Returns each output's name and its position for the cursors file: the first one that it has
    /// not finished, or whose evidence is not durable. Empty if the queue is in memory.
    pub fn places(&self) -> Vec<(String, Position)> {
        self.spool().map(spool::Queue::places).unwrap_or_default()
    }

    /// Returns `true` if a body of this many bytes may be appended as the received JSON list
    /// ([`Append::list`]), because every output sends lists. The list is then sent without a copy.
    /// A queue in files does not take long lists.
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

    /// Returns the store for one request body that is too large for memory: its lines are written
    /// to a file while they arrive. `None` if the queue is in memory.
    pub fn incoming(&self) -> Option<Incoming> {
        self.spool().map(spool::Queue::incoming)
    }

    /// Appends a large request body as one batch. All its lines must be written to a file and
    /// synced ([`Incoming::sync`]), except for a body that found no room with `drop_newest`, which
    /// is only counted as dropped here. The sender may be told that its body is safe when
    /// [`Ticket::acknowledged`] returns `Ok`. `levels` counts the events of each audit level.
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

    /// Returns `true` from the first batch without room until a fifth of the room is free again.
    pub fn is_full(&self) -> bool {
        either!(self, queue => queue.is_full())
    }

    /// Returns why the disk stores no batches at present: its last error, or that it does not
    /// answer. `None` if the disk works, even if the queue is full, and for a queue in memory.
    pub fn fault(&self) -> Option<String> {
        self.spool().and_then(spool::Queue::fault)
    }

    /// Logs that the disk has not answered for ten seconds, or answers again. Call it repeatedly.
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

    /// Returns the bytes (as `queue.max_bytes` counts them) and the events that the queue holds.
    pub fn held(&self) -> (u64, u64) {
        either!(self, queue => queue.held())
    }

    /// Returns how many of the held bytes ([`Queue::held`]) a new batch can't replace: those of
    /// events that a required output has not finished, and of files that can't be dropped.
    /// [`Queue::append`] takes the room of all others when it needs it, whatever `when_full` says.
    /// The fill level of the queue is the share of these bytes in `queue.max_bytes`.
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
    /// queue in memory waits until all outputs have finished all events. A queue in files hands out
    /// no more events from now on, and waits until none is on the wire; with `ephemeral` (its
    /// directory is deleted with the process) it waits like a queue in memory. Outputs that have
    /// ended permanently ([`Queue::give_up`]) are not waited for.
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
    /// waits for it. With `acknowledge = "delivered"`, senders that wait for it are told that it
    /// will not deliver their events.
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

    /// Ends the queue. A queue in memory takes no more batches, and counts its events as lost, as
    /// an `ephemeral` queue in files does. Any other queue in files keeps them for the next start.
    /// Returns the name of each output and the number of events that it has not finished.
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

/// The fate of the events that an output has not finished when the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// This many events are lost and counted as lost, because the queue is in memory or ephemeral.
    Lost(u64),
    /// This many events stay in the queue's directory, and are sent after the next start.
    Kept(u64),
}

/// A function that says whether the queue is crowded. Clones are cheap.
#[derive(Clone)]
pub struct Crowding(Arc<dyn Fn() -> bool + Send + Sync>);

impl Crowding {
    /// Returns `true` if at least three quarters of the limit are needed ([`Queue::needed`]).
    pub fn is_crowded(&self) -> bool {
        (self.0)()
    }
}

/// A reader of the events before an output's watermark that are still in files, oldest first.
pub struct Before(Option<spool::Before>);

impl Before {
    /// Returns the next lines and their acceptance; `None` if there are no more.
    ///
    /// This waits for the disk, which may take long. The caller must also watch for the end of the
    /// process.
    ///
    /// # Cancel safety
    ///
    /// No line is skipped if the future is dropped.
    pub async fn next(&mut self) -> Option<(Acceptance, Bytes)> {
        self.0.as_mut()?.next().await
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

    /// Waits until [`Cursor::next`] can return events. Also returns when the lines that the last
    /// call of [`Cursor::redeliver`] needed are read from a file, or when their claim has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn readable(&mut self) {
        either!(self, cursor => cursor.readable().await)
    }

    /// Returns a reader of the events before this output's watermark that are still in files, were
    /// received at most `within` ago, and are among the newest 256 MiB. The consumer has these
    /// events, except those that the filter has removed: the reader begins after the last lost
    /// event and after the last change of the filter's rules. Damaged or missing events are
    /// skipped. For a queue in memory the reader is empty.
    pub fn before(&self, within: Duration) -> Before {
        Before(self.spool().map(|cursor| cursor.before(within)))
    }

    /// Claims the next events to send: as many whole batches as fit into the limits of `take`, or a
    /// part of the next batch if not even one fits. `None` if there are no more events, or if
    /// [`Cursor::readable`] must first read their lines from a file.
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        self.next_as(take, false)
    }

    /// Like [`Cursor::next`]. If `lists` is `true`, a piece of the batch may be a part of a
    /// received JSON list ([`is_list`]), which only a queue that keeps lists has
    /// ([`Queue::keeps_list`]).
    #[must_use]
    pub fn next_as(&mut self, take: Take, lists: bool) -> Option<Batch> {
        match self {
            Self::Memory(cursor) => cursor.next(take, lists),
            Self::Spool(cursor) => cursor.next_as(take, lists),
        }
    }

    /// Makes a claim final. Its events count as acknowledged by the consumer, except those that
    /// `disposition` counts as lost, dropped or duplicate.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        either!(self, cursor => cursor.acknowledge(claim, disposition))
    }

    /// Makes the claim of one event final, because the output sets this event aside. The event
    /// leaves the log. A queue in memory counts its `bytes` against `queue.max_bytes`; with a queue
    /// in files, the event must be on the [`Shelf`] already. With `acknowledge = "delivered"`, its
    /// sender waits for [`Cursor::settle_aside`].
    pub fn set_aside(&self, claim: Claim, bytes: u64) {
        match self {
            Self::Memory(cursor) => cursor.set_aside(claim, bytes),
            Self::Spool(cursor) => cursor.set_aside(claim),
        }
    }

    /// Ends an event that was set aside. It counts as acknowledged by the consumer, unless
    /// `disposition` counts it as lost, dropped or duplicate.
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        either!(self, cursor => cursor.settle_aside(position, event, disposition))
    }

    /// Takes the positions and file sizes of the events that were set aside before the start. Empty
    /// for a queue in memory, and at each later call.
    pub fn take_aside(&self) -> Vec<(Position, u64)> {
        self.spool().map(spool::Cursor::take_aside).unwrap_or_default()
    }

    /// Returns the store of the events that the output sets aside.
    pub fn shelf(&self) -> Shelf {
        self.spool().map_or_else(Shelf::in_memory, spool::Cursor::shelf)
    }

    /// Returns the wall-clock time at which the first event of a claim was accepted, in
    /// milliseconds since 1970. For a claim that no longer exists, returns a later time.
    pub fn received(&self, claim: Claim) -> u64 {
        either!(self, cursor => cursor.received(claim))
    }

    /// Records that a claim no longer waits for an answer of the consumer, for example because the
    /// connection broke. The output must send it again.
    pub fn release(&self, claim: Claim) {
        either!(self, cursor => cursor.release(claim))
    }

    /// Puts a released claim on the wire again, and returns its lines. Returns [`Redelivery::Gone`]
    /// if all its events were dropped. Returns [`Redelivery::NotYet`] if the lines must first be
    /// read from a file, or if the queue hands out no more events.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        match self {
            Self::Memory(cursor) => {
                cursor.redeliver(claim).map_or(Redelivery::Gone, Redelivery::Batch)
            }
            Self::Spool(cursor) => cursor.redeliver(claim),
        }
    }

    /// Puts a released claim on the wire again without reading its lines, so that the output can
    /// acknowledge it. Returns `false` if all its events were dropped.
    pub fn take_back(&self, claim: Claim) -> bool {
        match self {
            Self::Memory(cursor) => cursor.redeliver(claim).is_some(),
            Self::Spool(cursor) => cursor.take_back(claim),
        }
    }

    /// Cuts a claim into two halves, which keep its state (on the wire, for example). `None` if it
    /// has fewer than two events, or if it and all claims before it are finished.
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        either!(self, cursor => cursor.split(claim))
    }

    /// Cuts a claim into two parts, which keep its state; the second begins at `middle`. `None` if
    /// `middle` is not inside the claim, or if it and all claims before it are finished.
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

    /// Removes the output from the queue. Returns the number of its unfinished events, which are
    /// counted as lost. A queue in files then saves its cursors file without this output.
    pub fn leave(self) -> u64 {
        either!(self, cursor => cursor.remove(true))
    }

    /// Removes an output that has joined but taken no events, for example because a reload failed.
    /// No event is counted as lost, because none was meant for it.
    pub fn leave_uncounted(self) {
        either!(self, cursor => cursor.remove(false));
    }

    /// Changes [`Output::keeps`]. Does nothing for a queue in memory.
    pub fn keep(&self, keeps: Duration) {
        if let Some(cursor) = self.spool() {
            cursor.keep(keeps);
        }
    }

    /// Sets the fingerprint of the filter's rules for the events from `from` on. New rules may let
    /// an event through that the old ones removed, so after a change no event before `from` counts
    /// as sent ([`Cursor::before`]). Does nothing for a queue in memory.
    pub fn select(&self, selection: u64, from: Position) {
        if let Some(cursor) = self.spool() {
            cursor.select(selection, from);
        }
    }

    /// Sets whether this cursor's batches have [`Batch::acceptances`]. At first they do not.
    pub fn tell_acceptances(&self, tells: bool) {
        either!(self, cursor => cursor.with(|state| state.tells_acceptances = tells))
    }

    /// Sets whether this output sends JSON lists ([`Cursor::next_as`]). It sends lines at first.
    pub fn take_lists(&self, takes: bool) {
        either!(self, cursor => cursor.with(|state| state.takes_lists = takes));
    }

    /// Returns how many acknowledged events were dropped without a position since the last call
    /// (`drop_newest`). Only the evidence recorder calls this. 0 for a queue in memory.
    pub fn take_unplaced(&self) -> u64 {
        self.spool().map_or(0, spool::Cursor::take_unplaced)
    }

    /// Returns positions, each once, whose events this cursor may lack without a loss: the queue
    /// has dropped them for their room, or every output had finished them before the start. Outputs
    /// that lost some of them have reported it ([`Cursor::take_finished`]). Only the evidence
    /// recorder calls this. Empty for a queue in memory.
    pub fn take_given_up(&self) -> Vec<Range<Position>> {
        self.spool().map(spool::Cursor::take_given_up).unwrap_or_default()
    }

    /// Returns the outputs that have left since the last call, each with the first position that
    /// was not meant for it. Only the evidence recorder calls this. Empty for a queue in memory.
    pub fn take_left(&self) -> BTreeMap<String, Position> {
        self.spool().map(spool::Cursor::take_left).unwrap_or_default()
    }

    /// Returns `true` if the evidence needs the fate of each event ([`Disposition::fates`]).
    pub fn is_recorded(&self) -> bool {
        self.spool().is_some_and(|cursor| cursor.with(|state| state.unrecorded.is_some()))
    }

    /// Waits until [`Cursor::take_finished`] has something to return. Only the evidence recorder
    /// calls this. Never returns for a queue in memory.
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

    /// Returns what all outputs have finished since the last call. In the cursors file, the outputs
    /// stay before these events until [`Cursor::recorded`] is called. Only the evidence recorder
    /// calls this. Empty for a queue in memory.
    pub fn take_finished(&self) -> Vec<Finished> {
        self.spool().map(spool::Cursor::take_finished).unwrap_or_default()
    }

    /// Records that the evidence of these events is durable.
    pub fn recorded(&self, finished: &[Finished]) {
        if let Some(cursor) = self.spool() {
            cursor.recorded(finished);
        }
    }

    /// Returns `true` if the queue hands out no more events, because the process is ending and the
    /// files keep them for the next start. Always `false` for a queue in memory.
    pub fn is_closed(&self) -> bool {
        self.spool().is_some_and(spool::Cursor::is_closed)
    }

    /// Returns the identity of the queue, which no other queue has.
    pub fn identity(&self) -> Identity {
        either!(self, cursor => cursor.identity())
    }

    /// Returns `queue.max_bytes`.
    pub fn capacity(&self) -> u64 {
        either!(self, cursor => cursor.capacity())
    }

    /// Returns a function for [`Crowding::is_crowded`].
    pub fn crowding(&self) -> Crowding {
        either!(self, cursor => Crowding(Arc::new(cursor.crowding())))
    }

    /// Returns the notes in which the output keeps facts for the delivery that replaces this one.
    /// With a queue in files they survive a restart.
    pub fn notes(&self) -> Notes {
        either!(self, cursor => cursor.notes())
    }

    /// Returns the position at which the next claim begins (later, if events are missing there).
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
