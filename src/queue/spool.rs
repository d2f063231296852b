//! The queue in files: acknowledged means synced.
//!
//! One mutex guards the state; no disk is touched under it. The writer thread ([`writer`]) alone writes segments and
//! cursors: it takes what waits, writes and syncs it as one group, then makes it visible. Cursors read the newest records
//! from memory (the tail) and older ones from the files ([`load`]), never what is not synced. Files are found and judged at
//! the start ([`recovery`]).
//!
//! Memory: 16 MiB for the tail and about as much for what cursors have read ahead, whatever the backlog. One event that
//! is larger than its cursor's share is held alone.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Append;
use super::Backlog;
use super::JoinError;
use super::Output;
use super::Position;
use super::Refused;
use super::cursors;
use super::cursors::Contents;
use super::cursors::Hole;
use super::cursors::LogOffset;
use super::disk::Disk;
use super::disk::OpenError;
use super::disk::RealDisk;
use super::outputs::Departed;
use super::outputs::show_start;
use super::outputs::written;
use super::segment::BLOCK;
use super::segment::FIRST_RECORD;
use super::segment::RECORD_HEADER;
use crate::config;
use crate::config::BATCH_OVERHEAD;
use crate::config::WhenFull;
use crate::telemetry::QueueMetrics;
use crate::telemetry::State as Told;
use crate::telemetry::Telemetry;

mod accounting;
mod before;
mod cursor;
mod incoming;
mod load;
mod recovery;
mod writer;

use accounting::Accounting;
pub(super) use before::Before;
pub(super) use cursor::Cursor;
use cursor::CursorState;
pub use incoming::Incoming;
use incoming::IncomingFile;

/// Bytes of the newest records that are kept in memory.
const TAIL_BYTES: u64 = if cfg!(test) { 24 << 10 } else { 16 << 20 };

/// What all cursors together may have read ahead. Each may hold four times what it reads at once.
const AHEAD_BYTES: u64 = 16 << 20;

/// Beyond it, neighbouring holes are joined: a slot of the cursors file has no room for many more.
const HOLES_MAX: usize = if cfg!(test) { 3 } else { 256 };

/// What a cursor reads at once, whatever the number of outputs: at least, and at most.
const CHUNK_MIN: u64 = if cfg!(test) { 4 << 10 } else { 16 << 10 };
const CHUNK_MAX: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };

/// What a cursor reads at once where there are so many.
fn chunk(outputs: usize) -> u64 {
    (AHEAD_BYTES / 4 / outputs.max(1) as u64).clamp(CHUNK_MIN, CHUNK_MAX)
}

/// What copies of damaged records may take at most.
const QUARANTINE_BYTES: u64 = 64 << 20;

/// Of a small `queue.max_bytes`, that part of it.
const QUARANTINE_PART: u64 = 16;

/// What copies of damaged records may take.
fn quarantine_bytes(capacity: u64) -> u64 {
    (capacity / QUARANTINE_PART).min(QUARANTINE_BYTES)
}

/// A disk that does not answer for so long is at fault: requests are not held for it.
const HANGS: Duration = Duration::from_secs(5);

/// How long the end may take, where the disk does not answer.
const CLOSING: Duration = Duration::from_secs(3);

/// The log. Cheap to clone; all clones are the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    state: Mutex<SpoolState>,
    /// Tells the writer thread that there is something to do.
    work: Condvar,
    /// Tells incoming_count that the writer has deleted what it could.
    reclaimed: Condvar,
    /// `queue.max_bytes`. Changed only under the state's lock.
    capacity: AtomicU64,
    metrics: QueueMetrics,
    /// Told when something has become final, or has failed, and when cursors that were asked for are saved.
    progress: Notify,
    /// Bytes in `quarantine/`.
    quarantined: AtomicU64,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// The writer thread has panicked.
    panicked: CancellationToken,
}

impl Shared {
    /// Takes the lock. Debug builds check the counters that whoever had it before has left.
    ///
    /// A panic while the lock was held is a bug that the panicking thread has reported. The counts
    /// that it left are the best there are, and are not checked.
    fn lock(&self) -> MutexGuard<'_, SpoolState> {
        match self.state.lock() {
            Ok(state) => {
                if cfg!(debug_assertions) {
                    state.check();
                }
                state
            }
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Not as soon as there is room, or a queue at its edge would fill the log.
    fn log_not_full(&self, state: &mut SpoolState) {
        if !state.told_full {
            return;
        }
        let bytes =
            self.held_bytes(state).saturating_sub(state.spare_bytes() + state.reclaimable());
        if bytes < self.capacity() / 10 * 8 {
            state.told_full = false;
            self.metrics.changed(Told::QueueHasRoom { bytes });
        }
    }

    fn log_full(&self, state: &mut SpoolState) {
        // The writer may make room.
        self.work.notify_one();
        if !std::mem::replace(&mut state.told_full, true) {
            let (bytes, when_full) = (self.held_bytes(state), written(state.when_full));
            self.metrics.changed(Told::QueueFull { bytes, when_full });
        }
    }

    /// As `queue.max_bytes` counts: everything in the directory.
    fn held_bytes(&self, state: &SpoolState) -> u64 {
        state.accounting.files() + cursors::BYTES + self.quarantined.load(Ordering::Relaxed)
    }

    /// Of `queue.max_bytes`, what files of segments may take: a new cursors file must find room beside the old one, and so
    /// must copies of what is damaged.
    fn usable(&self) -> u64 {
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        let others = 2 * cursors::BYTES + quarantined.max(quarantine_bytes(self.capacity()));
        self.capacity().saturating_sub(others)
    }

    /// What new segments may take, once the writer has deleted what nobody needs.
    fn room(&self, state: &SpoolState) -> u64 {
        (self.usable() + state.reclaimable()).saturating_sub(state.accounting.taken()) / BLOCK
            * BLOCK
    }

    /// Where a batch of so many bytes finds room: in the segment that is written to, or in a new one of this size.
    fn place(&self, state: &SpoolState, needed: u64) -> Option<Room> {
        if needed <= state.accounting.segment_free() {
            return Some(Room::Here);
        }
        let (least, room) = (FIRST_RECORD + needed, self.room(state));
        let size = state.segment_bytes.next_multiple_of(BLOCK).max(least).min(room);
        (least <= room).then_some(Room::Opens(size))
    }

    /// What would have to be dropped for it.
    fn missing(&self, state: &SpoolState, needed: u64) -> u64 {
        let wanted = state.accounting.taken() + FIRST_RECORD + needed;
        wanted.saturating_sub(self.usable() + state.reclaimable())
    }
}

enum Room {
    Here,
    Opens(u64),
}

/// What a batch may take of a segment: it may be the first of its group.
fn needed(lines: u64) -> u64 {
    (RECORD_HEADER + lines).next_multiple_of(BLOCK)
}

/// In ms since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

struct SpoolState {
    /// The log, oldest first, without those that are doomed.
    segments: VecDeque<Segment>,
    accounting: Accounting,
    /// An incoming body waits until finished and doomed segments are deleted.
    reclaim_wanted: bool,
    /// Segments are dropped for an incoming body that has not come whole yet.
    has_dropper: bool,
    /// The number in the name of the next incoming file.
    incoming_count: u64,
    /// The end of what is synced.
    end: LogOffset,
    /// The newest synced records.
    tail: VecDeque<TailRecord>,
    tail_bytes: u64,
    /// Not written yet.
    waiting: VecDeque<Waiting>,
    /// The number of the next that waits.
    arrivals: u64,
    segment_bytes: u64,
    when_full: WhenFull,
    /// What a cursor reads from a file at once.
    chunk: u64,
    cursors: Slab<CursorState>,
    departed: Departed,
    /// Events stored since the process started.
    accepted: u64,
    holes: Vec<Hole>,
    /// Why nothing can be stored, since the last error.
    fault: Option<String>,
    /// Since when the writer has been at work on the disk.
    busy: Option<Instant>,
    /// Bytes that became final since the cursors were written.
    unsaved: u64,
    /// What the cursors file says is not so any more.
    cursors_dirty: bool,
    /// How often somebody wanted the cursors saved at once, and how many of those they are.
    save_requested: u64,
    save_done: u64,
    told_full: bool,
    /// Nothing more is handed out.
    draining: bool,
    /// Nothing more is taken; the writer ends.
    closed: bool,
}

/// One file of the log.
struct Segment {
    first: LogOffset,
    /// Behind its last record: what the next segment begins with.
    end: LogOffset,
    /// The file's offset there.
    offset: u64,
    /// Bytes of the file.
    size: u64,
    /// Where it is damaged, as far as is known: each is counted once, whoever reads it.
    damaged: BTreeSet<u64>,
    /// It is written to.
    active: bool,
    /// When it was written to last, or was found at the start, in ms since 1970: what outputs ask for of it is kept from then.
    ended: u64,
}

/// A synced record in memory.
struct TailRecord {
    first: LogOffset,
    events: u64,
    lines: Bytes,
    received: u64,
    segment: Position,
    offset: u64,
}

impl TailRecord {
    fn end(&self) -> Position {
        self.first.position + self.events
    }

    /// What it takes of memory.
    fn weight(&self) -> u64 {
        self.lines.len() as u64 + BATCH_OVERHEAD
    }
}

/// A batch on its way to the disk.
struct Waiting {
    number: u64,
    /// Without lines where they are in an incoming file.
    append: Append,
    /// A large body whose file becomes a segment of its own.
    incoming: Option<IncomingFile>,
    received: u64,
    /// It begins a new segment of this size; 0 for an incoming file, whose bytes are counted
    /// already.
    opens: Option<u64>,
    done: oneshot::Sender<Result<(), Refused>>,
}

impl Waiting {
    fn needed(&self) -> u64 {
        needed(self.append.lines.len() as u64)
    }
}

impl SpoolState {
    /// Nothing is there. The first thing to do is to save that.
    fn new(config: &config::Queue) -> Self {
        Self {
            segments: VecDeque::new(),
            accounting: Accounting::default(),
            reclaim_wanted: false,
            has_dropper: false,
            incoming_count: 0,
            end: LogOffset::default(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            waiting: VecDeque::new(),
            arrivals: 0,
            segment_bytes: config.segment_bytes,
            when_full: config.when_full,
            chunk: chunk(0),
            cursors: Slab::new(),
            departed: Departed::default(),
            accepted: 0,
            holes: Vec::new(),
            fault: None,
            busy: None,
            unsaved: 0,
            cursors_dirty: true,
            save_requested: 0,
            save_done: 0,
            told_full: false,
            draining: false,
            closed: false,
        }
    }

    /// Compares the counters of bytes and files with what is held.
    ///
    /// # Panics
    ///
    /// If one of them is wrong.
    fn check(&self) {
        self.accounting.check(&self.segments, &self.waiting);
    }

    /// What every output has got.
    fn watermark(&self) -> Position {
        let watermarks = self.cursors.iter().map(|(_, cursor)| cursor.claims.watermark());
        watermarks.min().unwrap_or(self.end.position)
    }

    /// What every required output has got.
    fn required_watermark(&self) -> Position {
        let required = self.cursors.iter().filter(|(_, cursor)| cursor.output.required);
        let watermarks = required.map(|(_, cursor)| cursor.claims.watermark());
        watermarks.min().unwrap_or(self.end.position)
    }

    /// Segments in front that no output needs.
    fn finished(&self) -> impl Iterator<Item = &Segment> {
        let watermark = self.watermark();
        self.segments
            .iter()
            .take_while(move |segment| !segment.active && segment.end.position <= watermark)
    }

    /// Bytes of segments that only optional outputs need.
    fn spare_bytes(&self) -> u64 {
        let (needed, held) = (self.required_watermark(), self.watermark());
        let behind = self.segments.iter().skip_while(|segment| segment.end.position <= held);
        let spare = behind.take_while(|it| !it.active && it.end.position <= needed);
        spare.map(|segment| segment.size).sum()
    }

    /// Every required output has all there is: where there was no room, the segment that is written to may make some.
    fn can_seal_for_room(&self) -> bool {
        self.told_full
            && self.waiting.is_empty()
            && self.required_watermark() == self.end.position
            && self.segments.back().is_some_and(|last| last.active)
    }

    /// Whether there are files that no output needs, nor wants to look at when it starts again.
    fn can_reclaim(&self) -> bool {
        !self.accounting.pending_delete().is_empty()
            || !self.accounting.abandoned().is_empty()
            || self.reclaim_wanted
            || self.kept_for() == Some(Duration::ZERO)
            || self.can_seal_for_room()
    }

    /// How long an output wants to keep what all have finished, unless its room is needed.
    fn keeps(&self) -> u64 {
        let keeps = self.cursors.iter().map(|(_, cursor)| cursor.output.keeps).max();
        keeps.map_or(0, |keeps| u64::try_from(keeps.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long the first of the finished segments is kept from now on; `None` where there is none.
    fn kept_for(&self) -> Option<Duration> {
        let first = self.finished().next()?;
        let until = first.ended.saturating_add(self.keeps());
        Some(Duration::from_millis(until.saturating_sub(now())))
    }

    fn reclaimable(&self) -> u64 {
        self.accounting.pending_bytes() + self.finished().map(|segment| segment.size).sum::<u64>()
    }

    /// Index of the first segment that ends behind a position.
    fn segment_at(&self, position: Position) -> usize {
        self.segments.partition_point(|segment| segment.end.position <= position)
    }

    /// Index of the tail's record that holds a position.
    fn tail_at(&self, position: Position) -> Option<usize> {
        let index = self.tail.partition_point(|record| record.end() <= position);
        self.tail.get(index).filter(|record| record.first.position <= position).map(|_| index)
    }

    /// Events and bytes of holes from a position on.
    fn dropped_from(&self, position: Position) -> (u64, u64) {
        cursors::dropped_from(&self.holes, position)
    }

    fn backlog(&self, cursor: &CursorState) -> Backlog {
        let (mut events, mut bytes) = cursor.open();
        let (dropped_events, dropped_bytes) = self.dropped_from(cursor.claims.read);
        let (counted_events, counted_bytes) = cursor.counted_from(cursor.claims.read);
        events += (self.end.position - cursor.claims.read)
            .saturating_sub(dropped_events + counted_events);
        bytes += self
            .end
            .byte
            .saturating_sub(cursor.read_byte)
            .saturating_sub(dropped_bytes + counted_bytes);
        let received = cursor.oldest().or_else(|| {
            let index = self.tail_at(cursor.claims.read)?;
            self.tail.get(index).map(|record| record.received)
        });
        let age = Duration::from_millis(now().saturating_sub(received.unwrap_or(cursor.received)));
        Backlog { events, bytes, lag: if events > 0 { age.as_secs_f64() } else { 0.0 } }
    }

    /// Indices of the oldest segments that hold so many bytes: of those that only optional outputs need, and, with
    /// `drop_oldest`, of those that no required output has on the wire. `None` where they do not suffice.
    fn droppable(&self, bytes: u64, drop_oldest: bool) -> Option<Vec<usize>> {
        let (needed, held) = (self.required_watermark(), self.watermark());
        let (mut chosen, mut gained) = (Vec::new(), 0);
        for (index, segment) in self.segments.iter().enumerate() {
            if gained >= bytes {
                break;
            }
            let is_spare = segment.end.position <= needed;
            let is_kept = !is_spare
                && (!drop_oldest
                    || self.cursors.iter().any(|(_, cursor)| {
                        cursor.output.required && cursor.claims.has_on_wire(segment.positions())
                    }));
            if !segment.active && segment.end.position > held && !is_kept {
                gained += segment.size;
                chosen.push(index);
            }
        }
        (gained >= bytes).then_some(chosen)
    }

    /// Drops segments, for every output that has not got them.
    fn drop_segments(&mut self, chosen: Vec<usize>, metrics: &QueueMetrics) {
        for index in chosen.into_iter().rev() {
            let Some(segment) = self.segments.remove(index) else { continue };
            let mut missed = 0;
            for (_, cursor) in &mut self.cursors {
                let lost = cursor.drop_segment(&segment);
                if cursor.output.required {
                    missed = lost.max(missed);
                }
            }
            metrics.dropped.drop_oldest.increment(missed);
            self.tail.retain(|record| record.segment != segment.first.position);
            self.tail_bytes = self.tail.iter().map(TailRecord::weight).sum();
            self.accounting.retire(segment.first.position, segment.size);
            self.holes.push(Hole {
                start: segment.first.position,
                end: segment.end.position,
                bytes: segment.end.byte - segment.first.byte,
            });
            self.cursors_dirty = true;
        }
        self.holes.sort_unstable_by_key(|hole| hole.start);
        if self.holes.len() > HOLES_MAX {
            // However long a consumer hangs. Bytes of the backlog are too low for a cursor that stands within a joined one.
            self.holes.dedup_by(|next, hole| {
                let adjoins = hole.end == next.start;
                if adjoins {
                    (hole.end, hole.bytes) = (next.end, hole.bytes + next.bytes);
                }
                adjoins
            });
        }
    }

    /// Keeps a record in memory. The oldest ones there make room: to be let go of without the lock, which takes a while for
    /// large ones.
    fn remember(&mut self, record: TailRecord, evicted: &mut Vec<TailRecord>) {
        self.tail_bytes += record.weight();
        self.tail.push_back(record);
        while self.tail_bytes > TAIL_BYTES {
            let Some(oldest) = self.tail.pop_front() else { return };
            self.tail_bytes -= oldest.weight();
            if oldest.lines.len() as u64 > self.chunk {
                // Cursors that have it would hold more than their share for as long as their consumers are away.
                for (_, cursor) in &mut self.cursors {
                    cursor.forget_pieces_of(oldest.first.position..oldest.end());
                }
            }
            evicted.push(oldest);
        }
    }

    /// Why nothing can be stored, while that is so.
    fn fault(&self) -> Option<String> {
        let hangs = self.busy.map(|since| since.elapsed()).filter(|busy| *busy > HANGS);
        let hangs = hangs.map(|busy| format!("the disk has not answered for {} s", busy.as_secs()));
        self.fault.clone().or(hangs)
    }

    fn contents(&self) -> Contents {
        let place = |(_, cursor): (_, &CursorState)| (cursor.output.name.clone(), cursor.saved());
        let outputs = self.cursors.iter().map(place);
        Contents { end: self.end, outputs: outputs.collect(), holes: self.holes.clone() }
    }

    fn insert_cursor(&mut self, cursor: CursorState) -> usize {
        cursor.output.show_keeping(self.when_full);
        let index = self.cursors.insert(cursor);
        self.chunk = chunk(self.cursors.len());
        index
    }

    /// Its claims are nobody's any more. The cursors file is to forget it.
    fn remove_cursor(&mut self, index: usize) -> CursorState {
        let cursor = self.cursors.remove(index);
        self.chunk = chunk(self.cursors.len());
        self.ask_to_save();
        cursor
    }

    /// The number under which it will be in [`SpoolState::saved`].
    fn ask_to_save(&mut self) -> u64 {
        self.cursors_dirty = true;
        self.save_requested += 1;
        self.save_requested
    }

    /// Takes back what was planned for a batch that will not be written.
    fn withdraw(&mut self, number: u64) {
        let Ok(index) = self.waiting.binary_search_by_key(&number, |waiting| waiting.number) else {
            return;
        };
        let Some(mut withdrawn) = self.waiting.remove(index) else { return };
        self.discard(&mut withdrawn);
        // The next takes over the segment that it was to begin.
        let next = self.waiting.get_mut(index).filter(|next| next.opens.is_none());
        let behind = index + usize::from(withdrawn.opens.is_some());
        match (withdrawn.opens, next) {
            (Some(size), Some(next)) => next.opens = Some(size),
            (Some(size), None) => {
                self.accounting.withdraw_new(size, self.waiting.len() == index);
                return;
            }
            (None, _) => {}
        }
        if self.waiting.range(behind..).all(|waiting| waiting.opens.is_none()) {
            self.accounting.withdraw_here(withdrawn.needed());
        }
    }
}

impl Segment {
    fn positions(&self) -> Range<Position> {
        self.first.position..self.end.position
    }
}

impl Queue {
    /// Opens the queue of a directory, and gives each output its cursor, in order.
    ///
    /// Blocks on the disk; not for threads of the runtime.
    ///
    /// # Errors
    ///
    /// Where the directory can't be used. Damage in it is no error.
    pub fn open(
        directory: &Path,
        config: &config::Queue,
        telemetry: &Telemetry,
        outputs: &[Output],
    ) -> Result<(Self, Vec<Cursor>), OpenError> {
        let disk = Arc::new(RealDisk::own(directory)?);
        let (queue, cursors, writer) = recovery::open(disk, directory, config, telemetry, outputs)?;
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(|| writer.run());
        let thread = thread.map_err(|error| {
            OpenError::new("start the thread that writes", directory.to_owned(), error)
        })?;
        *queue.shared.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok((queue, cursors))
    }

    /// Whether a batch of so many bytes would be taken now. A hint: [`Queue::append`] decides.
    ///
    /// # Errors
    ///
    /// As [`Queue::append`].
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        if state.fault().is_some() {
            return Err(Refused::Disk);
        }
        let needed = needed(bytes);
        let has_room = state.when_full != WhenFull::Reject
            || self.shared.place(&state, needed).is_some()
            || state.droppable(self.shared.missing(&state, needed), false).is_some();
        if !has_room {
            self.shared.log_full(&mut state);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Takes a batch, whole or not at all. It is safe once [`Ticket::acknowledged`] says so.
    ///
    /// # Errors
    ///
    /// There is no room, or the disk refuses; nothing is stored then.
    pub fn append(&self, append: Append) -> Result<Ticket, Refused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(Refused::Full);
        }
        if state.fault().is_some() {
            return Err(Refused::Disk);
        }
        let needed = needed(append.lines.len() as u64);
        let mut place = shared.place(&state, needed);
        if place.is_none() {
            let missing = shared.missing(&state, needed);
            let mut chosen = state.droppable(missing, false);
            if chosen.is_none() {
                shared.log_full(&mut state);
                match state.when_full {
                    WhenFull::Reject => {}
                    WhenFull::DropNewest => {
                        let bytes = append.lines.len() as u64;
                        shared.metrics.drop_newest(append.events, bytes, &append.levels);
                        return Ok(Ticket { done: None, answer: Ok(()), place: None });
                    }
                    WhenFull::DropOldest => chosen = state.droppable(missing, true),
                }
            }
            let Some(chosen) = chosen else { return Err(Refused::Full) };
            state.drop_segments(chosen, &shared.metrics);
            place = shared.place(&state, needed);
        }
        let opens = match place {
            None => return Err(Refused::Full),
            Some(Room::Here) => {
                state.accounting.plan_here(needed);
                None
            }
            Some(Room::Opens(size)) => {
                state.accounting.plan_new(size, needed);
                Some(size)
            }
        };
        let (done, acknowledged) = oneshot::channel();
        let number = state.arrivals;
        state.arrivals += 1;
        let (incoming, received) = (None, now());
        state.waiting.push_back(Waiting { number, append, incoming, received, opens, done });
        drop(state);
        shared.work.notify_one();
        let place = Some((Arc::clone(shared), number));
        Ok(Ticket { done: Some(acknowledged), answer: Ok(()), place })
    }

    /// Whether it was full lately: from the first batch without room until a fifth of it is free again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.lock().told_full
    }

    /// Why nothing can be stored, while that is so.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.shared.lock().fault()
    }

    /// Waits until the writer thread has panicked.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn failed(&self) -> String {
        self.shared.panicked.cancelled().await;
        "the thread that writes the queue has panicked".to_owned()
    }

    /// `queue.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.shared.capacity()
    }

    /// Takes over what can change at run time. Segments that were planned are made as they were.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
    pub fn apply(&self, config: &config::Queue) {
        let mut state = self.shared.lock();
        state.accounting.keep_limit(self.shared.usable());
        self.shared.capacity.store(config.max_bytes, Ordering::Relaxed);
        self.shared.metrics.capacity.set(config.max_bytes as f64);
        state.segment_bytes = config.segment_bytes;
        state.when_full = config.when_full;
        for (_, cursor) in &state.cursors {
            cursor.output.show_keeping(config.when_full);
        }
        self.shared.log_not_full(&mut state);
    }

    /// A cursor at the end of what is synced, when the cursors file has it.
    ///
    /// # Errors
    ///
    /// The output has not joined.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has not joined.
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

    fn begin_to_join(&self, output: Output) -> Result<Joining, JoinError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(JoinError::Closed);
        }
        if state.cursors.iter().any(|(_, cursor)| cursor.output.name == output.name) {
            return Err(JoinError::Taken);
        }
        if state.cursors.len() >= cursors::OUTPUTS_MAX {
            return Err(JoinError::TooMany(cursors::OUTPUTS_MAX));
        }
        let start = state.departed.start(&output.name, state.accepted);
        show_start(&output.metrics, start);
        let mut cursor = CursorState::new(output, state.end);
        cursor.start = start;
        let index = state.insert_cursor(cursor);
        let number = state.ask_to_save();
        drop(state);
        self.shared.work.notify_one();
        let cursor = Some(Cursor::new(Arc::clone(&self.shared), index));
        Ok(Joining { shared: Arc::clone(&self.shared), cursor, number })
    }

    /// Whether events are kept until an output has them.
    pub fn require(&self, name: &str, required: bool) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for (_, cursor) in &mut state.cursors {
            if cursor.output.name == name {
                cursor.output.required = required;
                cursor.output.show_keeping(state.when_full);
            }
        }
        self.shared.log_not_full(state);
    }

    /// Bytes held, as `queue.max_bytes` counts, and events that not every output has got.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        let watermark = state.watermark();
        let events =
            (state.end.position - watermark).saturating_sub(state.dropped_from(watermark).0);
        (self.shared.held_bytes(&state), events)
    }

    /// Each output's name and what it has not finished.
    #[must_use]
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        let state = self.shared.lock();
        let backlog =
            |(_, cursor): (_, &CursorState)| (cursor.output.name.clone(), state.backlog(cursor));
        state.cursors.iter().map(backlog).collect()
    }

    /// Sets every gauge that is read on demand.
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn observe(&self) {
        let (bytes, events) = self.held();
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set(bytes as f64);
        metrics.held.set(events as f64);
        metrics.writable.set(if state.fault().is_none() { 1.0 } else { 0.0 });
        let accounting = &state.accounting;
        let gone = accounting.pending_delete().len() + accounting.stuck().len();
        let files = state.segments.len() + gone;
        metrics.segments.set(files as f64);
        for (_, cursor) in &state.cursors {
            state.backlog(cursor).show(&cursor.output.metrics);
        }
    }

    /// Hands out nothing more, and returns once nothing is on the wire.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn drained(&self) {
        self.shared.lock().draining = true;
        loop {
            let progress = self.shared.progress.notified();
            if self.shared.lock().cursors.iter().all(|(_, cursor)| cursor.is_idle()) {
                return;
            }
            progress.await;
        }
    }

    /// An output has ended for good: the drain does not wait for it. What it did not get stays for the next start.
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for (_, cursor) in &mut state.cursors {
            cursor.gone |= cursor.output.name == name;
        }
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Takes nothing more, writes and syncs the cursors, and ends the writer thread.
    pub async fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_one();
        let writer = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        let ended = tokio::task::spawn_blocking(|| writer.join());
        match tokio::time::timeout(CLOSING, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!(
                "the thread that writes the queue has panicked: the cursors are not written, outputs may get some events again"
            ),
            Err(_) => tracing::error!(
                "the disk does not answer: the cursors are not written, outputs may get some events again"
            ),
        }
    }
}

/// An output that is not in the cursors file yet. Dropped, it has never been here: nothing is counted for it.
struct Joining {
    shared: Arc<Shared>,
    cursor: Option<Cursor>,
    number: u64,
}

impl Joining {
    fn is_saved(&self) -> bool {
        self.shared.lock().save_done >= self.number
    }

    async fn saved(&self) {
        loop {
            let progress = self.shared.progress.notified();
            if self.is_saved() {
                return;
            }
            progress.await;
        }
    }

    fn end(mut self) -> Result<Cursor, JoinError> {
        self.cursor.take().ok_or(JoinError::Closed)
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(cursor) = self.cursor.take() {
            cursor.leave_uncounted();
        }
    }
}

/// What [`Queue::append`] gives for a batch it took. Dropped before it is begun to be written, the batch is taken out.
#[must_use]
pub struct Ticket {
    done: Option<oneshot::Receiver<Result<(), Refused>>>,
    /// The answer that `done` has given, once it has. The answer stays the same however often
    /// somebody asks.
    answer: Result<(), Refused>,
    place: Option<(Arc<Shared>, u64)>,
}

impl Ticket {
    /// Returns once the batch is on disk, or is not. Asked again, it says the same again.
    ///
    /// # Errors
    ///
    /// [`Refused::Disk`].
    pub async fn acknowledged(&mut self) -> Result<(), Refused> {
        let Some(done) = &mut self.done else { return self.answer };
        // An error means that the writer thread is gone.
        self.answer = done.await.unwrap_or(Err(Refused::Disk));
        self.done = None;
        self.place = None;
        self.answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some((shared, number)) = self.place.take() else { return };
        shared.lock().withdraw(number);
        // The file of a large body may be there to be removed.
        shared.work.notify_one();
    }
}

#[cfg(test)]
mod tests;
