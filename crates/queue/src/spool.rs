//! The queue in files: acknowledged means synced.
//!
//! A batch goes through these steps. [`Queue::append`] finds room for the batch and adds it to
//! those that wait for the writer thread. The writer thread ([`writer`]) writes and syncs a group
//! of waiting batches, and only then makes the group visible to cursors and responds to the
//! senders. Cursors ([`cursor`]) read the newest records from memory (the tail) and older ones from
//! the files ([`load`]), never a record that is not synced. At startup, [`recovery`] finds and
//! judges the files.
//!
//! One lock guards the [`state`]. No file is touched while it is held. Only the writer thread
//! writes to the segments of the log. The [`upkeep`] saves the cursors file, deletes segments and
//! prepares files for later segments.
//!
//! Memory: 16 MiB for the tail, and about as much for the lines that all cursors have read ahead,
//! however large the backlog is. An event that is larger than its cursor's share is held alone.
//!
//! Only [`super::Queue`] calls the public methods of this file, and it documents them. The comments
//! here only say what is different with files.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::contract::{
    Append, Backlog, Held, JoinError, Originals, Refused, Remains, Ticket, Waits, Withdraw, now,
    until,
};
use super::identity::Identity;
use super::outputs::{Output, show_start};
use super::segment::{BLOCK, FIRST_RECORD, RECORD_HEADER};
use super::{cursors, identity, segment, synced};
use base::disk::{Disk, OpenError, Place};
use base::lock::lock;
use base::position::Position;
use config::WhenFull;
use telemetry::{Loss, QueueMetrics, State as Told, Telemetry};

mod accounting;
mod cursor;
mod load;
mod recovery;
mod state;
mod turn;
mod unrecorded;
mod upkeep;
mod writer;

pub(super) use cursor::Cursor;
use cursor::CursorState;
use state::{LogState, Segment, SpoolState, TailRecord, Waiting};
use writer::{GROUP_BYTES, SYNC_BYTES};

const TAIL_BYTES: u64 = if cfg!(test) { 24 << 10 } else { 16 << 20 };

/// The largest batch in bytes that the tail takes. Its records share its memory, which is free when
/// the tail has none of them any more.
const REMEMBERED_MAX: u64 = if cfg!(test) { 16 << 10 } else { 4 << 20 };

/// The number of bytes that all cursors together may have read ahead from files. Each cursor may
/// hold four reads: with 4 outputs, a read is 1 MiB, and a cursor may hold 4 MiB.
const AHEAD_BYTES: u64 = 16 << 20;

/// The number of holes above which adjacent ones are joined: the cursors file has little room.
const HOLES_MAX: usize = if cfg!(test) { 3 } else { 256 };

/// The smallest read of a cursor in bytes, even if there are many outputs.
const CHUNK_MIN: u64 = if cfg!(test) { 4 << 10 } else { 16 << 10 };
/// The largest read of a cursor in bytes, even if there are few outputs.
const CHUNK_MAX: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };

/// The limit for the bytes of all copies of damaged records.
const QUARANTINE_BYTES: u64 = 64 << 20;

/// The copies may also take at most `queue.max_bytes` divided by this number.
const QUARANTINE_PART: u64 = 16;

fn quarantine_bytes(capacity: u64) -> u64 {
    (capacity / QUARANTINE_PART).min(QUARANTINE_BYTES)
}

/// The time after which a disk that does not respond counts as failed: requests are then refused.
const HANGS: Duration = Duration::from_secs(5);

/// The time after which it is logged that the disk has not responded.
const HANGS_TOLD: Duration = Duration::from_secs(10);

/// The longest wait for the two threads when the queue closes, because the disk may not respond.
const CLOSING: Duration = Duration::from_secs(3);

/// The error if files of segments are gone.
const DELETED: &str = "files in segments/ were deleted: put them back within ten seconds, or their \
                       undelivered events are lost, and counted as lost";

/// Fails if the files of segments are missing.
fn all_there(missing: &[Position]) -> io::Result<()> {
    if missing.is_empty() { Ok(()) } else { Err(io::Error::other(DELETED)) }
}

/// The queue in files. A clone is cheap, and refers to the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

/// The state that the handles of the queue, the cursors and the two threads share. The threads use
/// it until [`Queue::close`], each cursor until its output leaves. All fields except `state` are
/// constant or atomic, or have their own lock.
struct Shared {
    disk: Arc<dyn Disk>,
    identity: Identity,
    state: Mutex<SpoolState>,
    wakes: Wakes,
    /// The value of `queue.max_bytes`. It is changed only while the lock of `state` is held.
    capacity: AtomicU64,
    metrics: QueueMetrics,
    /// The number of bytes of the files in `quarantine/`, which are copies of damaged bytes.
    quarantined: AtomicU64,
    originals: OnceLock<Arc<dyn Originals>>,
    /// `true` at the end of the process if the next start may not find all kept events.
    keeps_unknown: AtomicBool,
    /// The handles of the two threads. Empty before the threads are started, and after
    /// [`Queue::close`] has taken the handles.
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    /// Cancelled when one of the two threads has panicked.
    panicked: CancellationToken,
}

/// The signals that wake threads and tasks after a change of the state.
#[derive(Default)]
struct Wakes {
    writer: Condvar,
    upkeep: Condvar,
    /// Notified when [`Queue::drained`] may be able to return, or a requested save of the cursors
    /// file is done.
    progress: Notify,
}

impl Shared {
    /// Locks the state and checks it. If a thread has panicked while it held the lock, the panic
    /// was reported, and the state is used without a check, as that thread left it.
    fn lock(&self) -> MutexGuard<'_, SpoolState> {
        match self.state.lock() {
            Ok(state) => {
                state.check_ends();
                if cfg!(debug_assertions) {
                    state.check();
                }
                state
            }
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn wake(&self) {
        self.wakes.writer.notify_one();
        self.wakes.upkeep.notify_one();
    }

    /// Returns the first positions of the segments of the log whose files are gone. If the writer
    /// does not call this, a segment that it begins at the same time may seem to be gone.
    fn without_file(&self) -> io::Result<Vec<Position>> {
        let found = segment::list(&*self.disk)?;
        let state = self.lock();
        let first = state.log.segments.iter().map(|segment| segment.first.position);
        Ok(first.filter(|first| found.binary_search(first).is_err()).collect())
    }

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Logs that the queue has room again, once less than four fifths of `queue.max_bytes` are
    /// needed: otherwise a queue that is nearly full would log a line for every few batches.
    fn log_not_full(&self, state: &mut SpoolState) {
        if !state.writing.told_full {
            return;
        }
        let bytes = self.needed_bytes(state);
        if bytes < self.capacity() / 10 * 8 {
            state.writing.told_full = false;
            self.metrics.changed(Told::QueueHasRoom { bytes });
        }
    }

    /// Logs that the queue is full, unless the log says so already, and wakes the threads that may
    /// be able to make room.
    fn log_full(&self, state: &mut SpoolState) {
        self.wake();
        if !std::mem::replace(&mut state.writing.told_full, true) {
            let when_full = state.writing.when_full.name().to_owned();
            let bytes = self.held_bytes(state);
            self.metrics.changed(Told::QueueFull { bytes, when_full });
        }
    }

    /// Returns the bytes that the queue holds for events: files with events, the cursors file, and
    /// copies of damaged records. Spare files do not count: they are given up when their room is
    /// needed.
    fn held_bytes(&self, state: &SpoolState) -> u64 {
        let accounting = &state.writing.accounting;
        let files = accounting.files() - accounting.spare_bytes();
        files + cursors::BYTES + self.quarantined.load(Ordering::Relaxed)
    }

    /// Returns the part of [`Shared::held_bytes`] that a new batch can't get without `drop_oldest`.
    /// It consists of segments that a required output needs, the cursors file, copies of damaged
    /// records, and files that are stuck or abandoned (`Accounting`).
    fn needed_bytes(&self, state: &SpoolState) -> u64 {
        let given = state.writing.accounting.pending_bytes() + state.log.unneeded_bytes();
        self.held_bytes(state).saturating_sub(given)
    }

    /// Returns how many bytes of `queue.max_bytes` segments may take. The rest is for the cursors
    /// file and its replacement, the files `synced` and `identity`, and copies of damaged records.
    fn usable(&self) -> u64 {
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        let own = 2 * cursors::BYTES + synced::BYTES + identity::BYTES;
        let others = own + quarantined.max(quarantine_bytes(self.capacity()));
        self.capacity().saturating_sub(others)
    }

    /// Returns the number of bytes that new segments may take, a multiple of 4,096. Segments that
    /// all outputs have finished, and spare files, count as deleted.
    fn room(&self, state: &SpoolState) -> u64 {
        (self.usable() + state.reclaimable()).saturating_sub(state.writing.accounting.taken())
            / BLOCK
            * BLOCK
    }

    /// Finds room for a batch that needs this many bytes. Returns `None` if the batch fits into the
    /// last segment, after all waiting batches, and otherwise the size of its new segment.
    fn place(&self, state: &SpoolState, needed: u64) -> Result<Option<u64>, Refused> {
        if needed <= state.writing.accounting.segment_free() {
            return Ok(None);
        }
        let (least, room) = (FIRST_RECORD + needed, self.room(state));
        let size = state.writing.segment_bytes.next_multiple_of(BLOCK).max(least).min(room);
        if least <= room { Ok(Some(size)) } else { Err(Refused::Full) }
    }

    /// Returns the number of bytes of segments that must be dropped to begin a segment with a
    /// batch.
    fn missing(&self, state: &SpoolState, needed: u64) -> u64 {
        let wanted = state.writing.accounting.taken() + FIRST_RECORD + needed;
        wanted.saturating_sub(self.usable() + state.reclaimable())
    }

    /// Chooses segments to drop for a batch. Returns `None` if the batch is to be dropped instead
    /// (`drop_newest`). Fails if the segments that may be dropped are too small.
    fn choose(&self, state: &mut SpoolState, missing: u64) -> Result<Option<Vec<usize>>, Refused> {
        if let Some(spare) = state.log.droppable(missing, false) {
            return Ok(Some(spare));
        }
        self.log_full(state);
        match state.writing.when_full {
            WhenFull::Reject => Err(Refused::Full),
            WhenFull::DropNewest => Ok(None),
            WhenFull::DropOldest => {
                state.log.droppable(missing, true).map(Some).ok_or(Refused::Full)
            }
        }
    }

    /// Adds a batch to the waiting ones, wakes the writer thread, and returns the sender's receipt.
    fn join_line(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, SpoolState>,
        append: Append,
        held: Held,
        opens: Option<u64>,
    ) -> Ticket {
        let (sender, done) = oneshot::channel();
        let (number, received) = (state.writing.arrivals, now());
        state.writing.arrivals += 1;
        let waiting = Waiting { number, append, _held: held, received, opens, done: sender };
        state.writing.waiting.push_back(waiting);
        let sleeps = state.writing.health.busy.is_none();
        drop(state);
        if sleeps {
            self.wakes.writer.notify_one();
        }
        let waits = Some(Waits { done, queue: Arc::<Self>::clone(self), number });
        // This is the response if the writer thread has gone without storing the batch.
        Ticket { answer: Err(Refused::Disk), waits }
    }
}

/// Returns an upper limit for the bytes that a batch takes in a segment. A long batch is cut into
/// records, of which two that follow each other have more than [`GROUP_BYTES`] of lines together. A
/// block ends after each [`SYNC_BYTES`].
fn needed(lines: u64) -> u64 {
    let records = 1 + 2 * (lines / GROUP_BYTES);
    (records * RECORD_HEADER + lines + lines / SYNC_BYTES * BLOCK).next_multiple_of(BLOCK)
}

impl Queue {
    /// See [`super::Queue::open`]. Damaged files are not an error.
    ///
    /// # Errors
    ///
    /// The directory can't be used, or the threads can't be started.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        let (queue, cursors, writer) = recovery::open(disk, directory, config, telemetry, outputs)?;
        let (upkeep, shared) = (Arc::clone(&writer.upkeep), Arc::clone(&queue.shared));
        let name = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = name("spool-upkeep")
            .spawn(move || upkeep::run(&upkeep, &shared))
            .and_then(|upkeep| Ok(vec![upkeep, name("spool").spawn(|| writer.run())?]));
        let threads = threads.map_err(|error| {
            OpenError::new("start the threads that write", directory.to_owned(), error)
        })?;
        *lock(&queue.shared.threads) = threads;
        Ok((queue, cursors))
    }

    /// See [`super::Queue::admits`].
    ///
    /// # Errors
    ///
    /// There is no room for the batch and `when_full` is `reject`, or the disk does not work.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        if state.writing.health.fault().is_some() {
            return Err(Refused::Disk);
        }
        let needed = needed(bytes);
        let has_room = state.writing.when_full != WhenFull::Reject
            || self.shared.place(&state, needed).is_ok()
            || state.log.droppable(self.shared.missing(&state, needed), false).is_some();
        if !has_room {
            self.shared.log_full(&mut state);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// See [`super::Queue::append`].
    ///
    /// # Errors
    ///
    /// There is no room for the batch, the queue is closed, or the disk does not work.
    pub fn append(&self, append: Append, held: Held) -> Result<Ticket, Refused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.writing.takes()?;
        let needed = needed(append.lines.len() as u64);
        let mut opens = shared.place(&state, needed);
        if opens.is_err() {
            let missing = shared.missing(&state, needed);
            let Some(chosen) = shared.choose(&mut state, missing)? else {
                let Append { lines, events, levels, .. } = append;
                shared.metrics.drop_newest(events, lines.len() as u64, &levels);
                state.writing.unplaced += events;
                return Ok(Ticket::stored());
            };
            state.drop_segments(chosen, &shared.metrics);
            opens = shared.place(&state, needed);
        }
        let opens = opens?;
        state.writing.accounting.plan(needed, opens);
        Ok(shared.join_line(state, append, held, opens))
    }

    /// See [`super::Queue::keeps_list`].
    pub fn keeps_list(&self, bytes: usize) -> bool {
        needed(bytes as u64) <= GROUP_BYTES
            && self.shared.lock().log.cursors.iter().all(|(_, cursor)| cursor.takes_lists)
    }

    /// See [`super::Queue::is_full`].
    pub fn is_full(&self) -> bool {
        self.shared.lock().writing.told_full
    }

    /// See [`super::Queue::fault`].
    pub fn fault(&self) -> Option<String> {
        self.shared.lock().writing.health.fault()
    }

    /// See [`super::Queue::watch_disk`].
    pub fn watch_disk(&self) {
        let mut state = self.shared.lock();
        let health = &mut state.writing.health;
        let waited = health.busy.map(|since| since.elapsed()).unwrap_or_default();
        let hangs = waited >= HANGS_TOLD;
        if std::mem::replace(&mut health.hangs_told, hangs) != hangs {
            self.shared.metrics.changed(match hangs {
                true => Told::DiskHangs { seconds: waited.as_secs() },
                false => Told::DiskAnswers,
            });
        }
    }

    /// Waits until one of the two threads has panicked. Returns a message.
    pub async fn failed(&self) -> String {
        self.shared.panicked.cancelled().await;
        "the thread that writes the queue has panicked".to_owned()
    }

    /// See [`super::Queue::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.capacity()
    }

    /// See [`super::Queue::apply`]. New segments that are already planned keep their size.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
    pub fn apply(&self, config: &config::Queue) {
        let mut state = self.shared.lock();
        state.writing.accounting.keep_limit(self.shared.usable());
        self.shared.capacity.store(config.max_bytes, Ordering::Relaxed);
        self.shared.metrics.capacity.set(config.max_bytes as f64);
        state.writing.segment_bytes = config.segment_bytes;
        state.writing.when_full = config.when_full;
        for (_, cursor) in &state.log.cursors {
            cursor.output.show_keeping(config.when_full);
        }
        self.shared.log_not_full(&mut state);
    }

    /// See [`super::Queue::join`]. The output begins at the end of the synced part of the log.
    ///
    /// # Errors
    ///
    /// The queue is closed or has an output of this name already, there are too many outputs, or
    /// the cursors file can't be written. The output has then not joined.
    pub async fn join(&self, output: Output) -> Result<Cursor, JoinError> {
        let joining = self.begin_to_join(output)?;
        match tokio::time::timeout(HANGS, joining.saved()).await {
            Ok(()) => joining.end(),
            Err(_) => {
                let why =
                    self.fault().unwrap_or_else(|| "the cursors file can't be written".to_owned());
                Err(JoinError::Disk { within: HANGS, why })
            }
        }
    }

    /// Adds the cursor and requests a save of the cursors file, after which the output has joined.
    fn begin_to_join(&self, output: Output) -> Result<Joining, JoinError> {
        let mut state = self.shared.lock();
        if state.writing.closed {
            return Err(JoinError::Closed);
        }
        if state.log.cursors.iter().any(|(_, cursor)| cursor.output.name == output.name) {
            return Err(JoinError::Taken);
        }
        if state.log.outputs().count() >= cursors::OUTPUTS_MAX {
            return Err(JoinError::TooMany(cursors::OUTPUTS_MAX));
        }
        let start = state.log.departed.start(&output.name, state.log.accepted);
        show_start(&output.metrics, start);
        let mut cursor = CursorState::new(output, state.log.end);
        cursor.start = start;
        let index = state.insert_cursor(cursor);
        let number = state.writing.saving.ask();
        drop(state);
        self.shared.wakes.upkeep.notify_one();
        let cursor = Some(Cursor::new(Arc::clone(&self.shared), index));
        let shared = Arc::clone(&self.shared);
        Ok(Joining { shared, cursor, number })
    }

    /// See [`super::Queue::require`].
    pub fn require(&self, name: &str, required: bool) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for (_, cursor) in &mut state.log.cursors {
            if cursor.output.name == name {
                cursor.output.required = required;
                cursor.output.show_keeping(state.writing.when_full);
            }
        }
        self.shared.log_not_full(state);
    }

    /// Returns the bytes that the queue holds, as `queue.max_bytes` counts them, and the number of
    /// events from the lowest watermark on.
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        let watermarks = state.log.outputs().map(|cursor| cursor.claims.watermark());
        let watermark = watermarks.min().unwrap_or(state.log.end.position);
        let events = (state.log.end.position - watermark)
            .saturating_sub(cursors::missing_from(&state.log.holes, watermark).0);
        (self.shared.held_bytes(&state), events)
    }

    /// See [`super::Queue::needed`].
    pub fn needed(&self) -> u64 {
        self.shared.needed_bytes(&self.shared.lock())
    }

    /// See [`super::Queue::backlogs`].
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        let state = self.shared.lock();
        let backlog =
            |cursor: &CursorState| (cursor.output.name.clone(), state.log.backlog(cursor));
        state.log.outputs().map(backlog).collect()
    }

    /// Returns the name of each output and the number of events that it gets after a restart: its
    /// backlog, and the events that it has set aside.
    pub fn kept(&self) -> Vec<(String, u64)> {
        let log = &self.shared.lock().log;
        let kept = |cursor: &CursorState| log.backlog(cursor).events + cursor.aside;
        log.outputs().map(|cursor| (cursor.output.name.clone(), kept(cursor))).collect()
    }

    /// See [`super::Queue::finds_kept`].
    pub fn finds_kept(&self) -> bool {
        !self.shared.keeps_unknown.load(Ordering::Relaxed)
    }

    pub(super) fn keeps_unknown(&self) {
        self.shared.keeps_unknown.store(true, Ordering::Relaxed);
    }

    /// See [`super::Queue::remains`].
    pub fn remains(&self) -> Remains {
        let place = self.shared.disk.place();
        let is_whole = place == Place::Here
            && self.shared.without_file().is_ok_and(|missing| missing.is_empty());
        let log = &self.shared.lock().log;
        let is_found = is_whole && log.outputs().all(|cursor| !log.has_gap_for(cursor));
        match place.is_deleted() {
            true => Remains::Deleted,
            false if is_found => Remains::Found,
            false => Remains::Unknown,
        }
    }

    /// See [`super::Queue::disk`].
    pub fn disk(&self) -> (Arc<dyn Disk>, Position) {
        (Arc::clone(&self.shared.disk), self.shared.lock().log.end.position)
    }

    /// See [`super::Queue::compare_with`].
    pub fn compare_with(&self, originals: Arc<dyn Originals>) {
        // Only the first call sets the value.
        let _is_first = self.shared.originals.set(originals).is_ok();
    }

    /// See [`super::Queue::places`].
    pub fn places(&self) -> Vec<(String, Position)> {
        let state = self.shared.lock();
        let place = |cursor: &CursorState| (cursor.output.name.clone(), cursor.saved().position);
        state.log.outputs().map(place).collect()
    }

    /// See [`super::Queue::observe`].
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn observe(&self) {
        let (bytes, events) = self.held();
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set(bytes as f64);
        metrics.needed.set(self.shared.needed_bytes(&state) as f64);
        metrics.held.set(events as f64);
        metrics.writable.set(if state.writing.health.fault().is_none() { 1.0 } else { 0.0 });
        let accounting = &state.writing.accounting;
        let gone = accounting.pending_delete().len() + accounting.stuck().len();
        let files = state.log.segments.len() + gone;
        metrics.spool.segments.set(files as f64);
        for cursor in state.log.outputs() {
            state.log.backlog(cursor).show(&cursor.output.metrics);
        }
    }

    /// See [`super::Queue::drained`].
    pub async fn drained(&self, ephemeral: bool) {
        self.shared.lock().log.draining = !ephemeral;
        let is_done = || {
            let log = &self.shared.lock().log;
            let left = |it: &CursorState| log.backlog(it).events + it.aside;
            let is_empty = |it: &CursorState| it.gone || left(it) == 0;
            log.outputs().all(|it| it.is_idle() && (!ephemeral || is_empty(it)))
        };
        until(&self.shared.wakes.progress, is_done).await;
    }

    /// Counts the unfinished events of each output as lost, because the directory is ephemeral.
    /// Returns the name of each output and the number of these events.
    pub fn abandon(&self) -> Vec<(String, u64)> {
        let log = &mut self.shared.lock().log;
        let lost = |cursor: &CursorState| {
            let events = log.backlog(cursor).events + cursor.aside;
            cursor.output.metrics.lose(Loss::Undelivered, events);
            cursor.output.show_aside(0);
            (cursor.output.name.clone(), events)
        };
        let lost = log.outputs().map(lost).collect();
        log.abandoned = true;
        lost
    }

    /// See [`super::Queue::give_up`]. The unfinished events stay in the queue for the next start.
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for (_, cursor) in &mut state.log.cursors {
            cursor.gone |= cursor.output.name == name;
        }
        drop(state);
        self.shared.wakes.progress.notify_waiters();
    }

    /// Closes the queue. Waits at most [`CLOSING`] for the cursors file and both threads.
    pub async fn close(&self) {
        self.shared.lock().writing.closed = true;
        self.shared.wake();
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        let join = || threads.into_iter().try_for_each(std::thread::JoinHandle::join);
        let ended = tokio::task::spawn_blocking(join);
        match tokio::time::timeout(CLOSING, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!(
                "the thread that writes the queue has panicked: the cursors (the outputs' \
                 positions in the queue) are not saved, so some events may be sent twice after the \
                 next start"
            ),
            Err(_) => tracing::error!(
                "the queue's disk does not respond: the cursors (the outputs' positions in the \
                 queue) are not saved, so some events may be sent twice after the next start"
            ),
        }
    }
}

/// An output that is joining. If this value is dropped, its cursor is removed, and no event is
/// counted as lost for it.
struct Joining {
    shared: Arc<Shared>,
    cursor: Option<Cursor>,
    /// The number of the requested save that puts the output into the cursors file.
    number: u64,
}

impl Joining {
    fn is_saved(&self) -> bool {
        self.shared.lock().writing.saving.done >= self.number
    }

    async fn saved(&self) {
        until(&self.shared.wakes.progress, || self.is_saved()).await;
    }

    fn end(mut self) -> Result<Cursor, JoinError> {
        self.cursor.take().ok_or(JoinError::Closed)
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(cursor) = self.cursor.take() {
            cursor.remove(false);
        }
    }
}

impl Withdraw for Shared {
    /// Removes a batch, unless the writer thread has taken it already.
    fn withdraw(&self, number: u64) -> bool {
        self.lock().writing.withdraw(number)
    }

    /// No sender waits for outputs, so nobody asks.
    fn is_for_all(&self, _number: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
