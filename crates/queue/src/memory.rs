//! The queue in memory: its events are lost when the process ends.
//!
//! One mutex guards everything. It is held for bookkeeping, for a search for line ends if a batch
//! is larger than one claim, and while a list is copied as lines. It is never held across an await.
//!
//! Only [`super::Queue`] and [`super::Cursor`] call the public methods of this file, and they
//! document them. The comments here only say what is different in memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::claims::{Claims, Stage};
use super::contract::{
    Acceptance, Append, Aside, Backlog, Batch, Claim, Disposition, JoinError, Refused, Take,
    Ticket, Waits, Withdraw, is_crowded, until,
};
use super::identity::Identity;
use super::notes;
use super::notes::Notes;
use super::outputs::{Departed, DropCount, Output, show_start, signed};
use base::lock::lock;
use base::position::Position;
use config::{Acknowledge, BATCH_OVERHEAD, WhenFull};
use telemetry::{Loss, QueueMetrics, State as Told};

mod record;

use record::{Amount, Record};

/// The queue in memory. A clone is cheap, and refers to the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<MemoryState>,
    identity: Identity,
    metrics: QueueMetrics,
    /// Notified when the queue may have become empty, or an event that was set aside is decided.
    /// The draining process waits for this.
    progress: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        lock(&self.state)
    }
}

/// The whole state of the queue, under one lock.
///
/// A batch is appended at the end of `records`. Every output has a cursor, which claims records, or
/// parts of records, from the first to the last, and finishes these claims in any order. A record
/// goes through these states. An output passes a record when it has finished all events up to the
/// record's end. Outputs that have ended permanently do not count.
///
/// - needed: at least one required output has not passed it;
/// - spare: every required output has passed it, and an optional one has not. A sender that waits
///   for `delivered` now waits only for events set aside. The record stays until its room is
///   needed;
/// - gone: every output has passed it, or it was dropped. A record whose sender waits for
///   `delivered` and which no output has begun to send is also gone when it is refused, or when its
///   sender no longer waits.
///
/// Records become spare in their order, so the spare records are always the first ones.
///
/// An event that an output sets aside leaves its record, as finished. Its line stays in `aside`:
/// until it is settled if the output is required, and until its room is needed if it is optional.
///
/// Invariants:
///
/// - `bytes` is the weight of all records, and `spare` counts the first `spare.records` of them.
/// - `bytes` is at most `capacity` after an append; `apply` may lower `capacity` below it.
/// - Positions in `records` rise, with gaps where records were dropped, withdrawn or refused.
/// - `counted` is the metric `event_total` without the events that `drop_newest` has dropped. The
///   backlog of an output is `counted` - `passed`. An event is counted for an output exactly once:
///   when it is finished, lost or dropped.
///
/// An event must never be dropped while it is on the wire of a required output, and an accepted
/// event must never be removed without being counted for each output.
struct MemoryState {
    capacity: u64,
    when_full: WhenFull,
    acknowledge: Acknowledge,
    records: VecDeque<Record>,
    bytes: u64,
    spare: Spare,
    /// The lines of the events that are set aside, by position and the index of the output's
    /// cursor. They also count against `queue.max_bytes`.
    aside: BTreeMap<(Position, usize), Arc<Bytes>>,
    /// The senders that wait for `delivered` only because of events that were set aside.
    late: Vec<Late>,
    next: Position,
    cursors: Slab<CursorState>,
    departed: Departed,
    /// The events that were stored and counted in the metric `event_total`.
    counted: Amount,
    /// `true` if the last log line about the queue's room says that it is full.
    told_full: bool,
    /// `true` if the queue takes no more batches, because its events are already counted as lost.
    closed: bool,
}

/// A sender that waits until all events of its batch that were set aside are decided.
struct Late {
    /// Each undecided event: the index of the output's cursor, and the position.
    open: Vec<(usize, Position)>,
    sender: oneshot::Sender<Result<(), Refused>>,
}

/// The records at the front that only optional outputs still need.
#[derive(Default)]
struct Spare {
    records: usize,
    bytes: u64,
}

pub(super) struct CursorState {
    output: Output,
    pub claims: Claims<()>,
    /// The events that are not in this output's backlog: finished, lost, or older than the output.
    passed: Amount,
    aside: Amount,
    /// The end of the log when the output joined.
    joined: Position,
    /// The gauge `output_start_events`: accepted events + this value = finished + lost + unfinished
    /// events. It is -5 for a new output that joined after 5 accepted events.
    start: i64,
    /// `true` if the output has ended permanently, so that the queue no longer waits for it.
    gone: bool,
    pub(super) tells_acceptances: bool,
    pub(super) takes_lists: bool,
    notes: notes::Memory,
    readable: Arc<Notify>,
}

impl CursorState {
    /// Returns the events and bytes of a record that this output has not finished.
    fn outstanding(&self, record: &mut Record) -> Amount {
        let mut left = record.amount(self.claims.watermark(), record.end());
        for entry in self.claims.overlapping(record.positions()) {
            if entry.stage == Stage::Done {
                left -= record.amount(entry.claim.start, entry.claim.end);
            }
        }
        left
    }
}

impl MemoryState {
    /// Returns the index of the record with this position, or of the first one after it.
    fn index_at(&self, position: Position) -> usize {
        self.records.partition_point(|record| record.end() <= position)
    }

    /// Returns the bytes of the events that outputs have set aside, the optional outputs' too if
    /// `all` is `true`.
    fn bytes_aside(&self, all: bool) -> u64 {
        let outputs = self.cursors.iter().filter(|(_, cursor)| all || cursor.output.required);
        outputs.map(|(_, cursor)| cursor.aside.bytes).sum()
    }

    fn held(&self) -> u64 {
        self.bytes + self.bytes_aside(true)
    }

    fn needed(&self) -> u64 {
        self.bytes - self.spare.bytes + self.bytes_aside(false)
    }

    /// Logs that the queue has room again, once less than four fifths of `capacity` are needed:
    /// otherwise a queue that is nearly full would log a line for every few batches.
    fn log_not_full(&mut self, metrics: &QueueMetrics) {
        if !self.told_full {
            return;
        }
        let bytes = self.needed();
        if bytes < self.capacity / 10 * 8 {
            self.told_full = false;
            metrics.changed(Told::QueueHasRoom { bytes });
        }
    }

    /// Logs that the queue is full, unless the last log line about room already says so.
    fn log_full(&mut self, metrics: &QueueMetrics) {
        if !std::mem::replace(&mut self.told_full, true) {
            let when_full = self.when_full.name().to_owned();
            let bytes = self.held();
            metrics.changed(Told::QueueFull { bytes, when_full });
        }
    }

    fn accept(counted: &mut Amount, record: &mut Record, metrics: &QueueMetrics) -> Amount {
        record.counted = true;
        let amount = record.amount(record.first, record.end());
        *counted += amount;
        metrics.accepted(record.events, amount.bytes, &record.levels);
        amount
    }

    /// Counts a batch as accepted, unless it is counted already. If the sender waits for
    /// `delivered`, the batch is counted when an output begins to send it. For an output that
    /// joined after the batch, `passed` also grows, so that the output's backlog stays the same.
    fn count(
        counted: &mut Amount,
        cursors: &mut Slab<CursorState>,
        record: &mut Record,
        metrics: &QueueMetrics,
    ) {
        if record.counted {
            return;
        }
        let amount = Self::accept(counted, record, metrics);
        for (_, cursor) in cursors {
            if cursor.joined > record.first {
                cursor.passed += amount;
                cursor.start -= signed(amount.events);
                show_start(&cursor.output.metrics, cursor.start);
            }
        }
    }

    /// Returns the response to a sender that waits for `delivered`. It is [`Refused::Undelivered`]
    /// if a required output has ended before it finished the record, or if every required output
    /// joined after the record. Outputs that run are expected to finish the record.
    fn verdict(cursors: &Slab<CursorState>, record: &mut Record) -> Result<(), Refused> {
        let needed = cursors
            .iter()
            .filter(|(_, cursor)| cursor.output.required && cursor.joined <= record.first);
        let (gone, going): (Vec<_>, Vec<_>) = needed.partition(|(_, cursor)| cursor.gone);
        let is_missed = gone.iter().any(|(_, cursor)| cursor.outstanding(record).events > 0);
        let nobody = going.is_empty() && gone.is_empty();
        if is_missed || nobody { Err(Refused::Undelivered) } else { Ok(()) }
    }

    /// Responds to the waiting sender of a record that no required output needs any more, or moves
    /// the sender to `late` if it must wait for events that are set aside. Returns `false` if the
    /// batch is refused and no output has begun to send it: the caller must then remove the record.
    fn answer(cursors: &Slab<CursorState>, record: &mut Record, late: &mut Vec<Late>) -> bool {
        let Some(waiting) = record.waiting.take() else { return true };
        let verdict = Self::verdict(cursors, record);
        let open = std::mem::take(&mut record.aside);
        if verdict.is_ok() && !open.is_empty() {
            late.retain(|late| !late.sender.is_closed());
            late.push(Late { open, sender: waiting });
            return true;
        }
        waiting.send(verdict).ok();
        verdict.is_ok() || record.counted
    }

    fn push(&mut self, record: Record) {
        self.next += record.events;
        self.bytes += record.weight();
        // The limit of the queue's memory is worth one comparison for each batch.
        assert!(self.bytes <= self.capacity, "{} of {} bytes", self.bytes, self.capacity);
        self.records.push_back(record);
    }

    fn remove(&mut self, index: usize) -> Option<Record> {
        let record = self.records.remove(index)?;
        self.bytes -= record.weight();
        if index < self.spare.records {
            self.spare.records -= 1;
            self.spare.bytes -= record.weight();
        }
        Some(record)
    }

    /// Removes the records that every output has finished, and marks as spare those that only
    /// optional outputs still need. Their senders get their responses now, or wait in `late` for
    /// events that are set aside. A batch that is refused now, and that no output has begun to
    /// send, is removed too.
    fn free_finished(&mut self) {
        let (mut needed, mut held) = (self.next, self.next);
        for (_, cursor) in self.cursors.iter().filter(|(_, cursor)| !cursor.gone) {
            let watermark = cursor.claims.watermark();
            held = held.min(watermark);
            if cursor.output.required {
                needed = needed.min(watermark);
            }
        }
        while self.records.front().is_some_and(|record| record.end() <= held) {
            let was_spare = self.spare.records > 0;
            let Some(mut record) = self.remove(0) else { break };
            if !was_spare {
                Self::answer(&self.cursors, &mut record, &mut self.late);
            }
        }
        while let Some(record) = self.records.get_mut(self.spare.records)
            && record.end() <= needed
        {
            if Self::answer(&self.cursors, record, &mut self.late) {
                self.spare.records += 1;
                self.spare.bytes += record.weight();
            } else {
                self.remove(self.spare.records);
            }
        }
    }

    /// Refuses the batches that an ended required output can no longer deliver, even if other
    /// outputs deliver them. A batch that no output has begun to send is removed.
    fn refuse_missed(&mut self) {
        let mut index = 0;
        while let Some(record) = self.records.get_mut(index) {
            index += 1;
            if record.waiting.is_none() || Self::verdict(&self.cursors, record).is_ok() {
                continue;
            }
            record.refuse();
            if !record.counted {
                index -= 1;
                self.remove(index);
            }
        }
    }

    /// Frees at least `needed` bytes and returns `true`, or drops nothing and returns `false`.
    /// Drops spare records and the events that optional outputs have set aside first, from the
    /// oldest on, and then, if `when_full` is `drop_oldest`, the oldest other records. Keeps a
    /// record if a required output has one of its events on the wire.
    fn make_room(&mut self, needed: u64, metrics: &QueueMetrics) -> bool {
        let spare = self.spare.records;
        let end = if self.when_full == WhenFull::DropOldest { self.records.len() } else { spare };
        let records = self.records.iter().enumerate().take(end);
        let may_go = |(_, record): &(usize, &Record)| {
            !self.cursors.iter().any(|(_, cursor)| {
                cursor.output.required && cursor.claims.has_on_wire(record.positions())
            })
        };
        let mut records = records.filter(may_go).peekable();
        let is_optional = |cursor: usize| !self.cursors[cursor].output.required;
        let aside = self.aside.iter().filter(|((_, cursor), _)| is_optional(*cursor));
        let mut aside = aside.peekable();
        let (mut chosen, mut chosen_aside, mut gained) = (Vec::new(), Vec::new(), 0);
        while gained < needed {
            let goes_first = |(index, record): &(usize, &Record)| {
                let next = aside.peek().map(|((position, _), _)| *position);
                next.is_none_or(|next| *index < spare && record.first <= next)
            };
            if let Some((index, record)) = records.next_if(goes_first) {
                gained += record.weight();
                chosen.push(index);
            } else if let Some((event, line)) = aside.next() {
                gained += line.len() as u64;
                chosen_aside.push(*event);
            } else {
                return false;
            }
        }
        for (position, cursor) in chosen_aside {
            self.take_aside(cursor, position);
            DropCount::default().lose(&self.cursors[cursor].output, 1);
        }
        let mut freed = self.next..Position::START;
        for index in chosen.into_iter().rev() {
            let is_spare = index < self.spare.records;
            let Some(mut record) = self.remove(index) else { continue };
            let Range { start, end } = record.positions();
            freed = freed.start.min(start)..freed.end.max(end);
            // A sender that waits for `delivered` still has its batch. The batch is lost only if an
            // output has begun to send it.
            if record.refuse() && !record.counted {
                continue;
            }
            let mut dropped = DropCount::default();
            for (_, cursor) in &mut self.cursors {
                // If an optional output has sent these events, a later acknowledgement does not
                // count.
                let lost = cursor.outstanding(&mut record);
                cursor.passed += lost;
                dropped.lose(&cursor.output, lost.events);
            }
            // A spare record is no loss for the queue: all required outputs that run have finished
            // it.
            if !is_spare {
                dropped.count(metrics);
            }
        }
        // This call comes last, because it forgets claims, which show the events that each output
        // has finished.
        self.end_dropped_claims(freed);
        true
    }

    /// Ends the released claims of which all events were dropped. Otherwise the records after such
    /// a claim would count as needed until the output asks for the claim, perhaps for half a
    /// minute.
    fn end_dropped_claims(&mut self, positions: Range<Position>) {
        let Self { records, cursors, .. } = self;
        let is_left = |claim: Claim| {
            let index = records.partition_point(|record| record.end() <= claim.start);
            records.get(index).is_some_and(|record| record.overlaps(claim))
        };
        for (_, cursor) in cursors {
            for entry in cursor.claims.overlapping_mut(positions.clone()) {
                if entry.stage == Stage::Released && !is_left(entry.claim) {
                    entry.stage = Stage::Dropped;
                }
            }
            cursor.claims.forget_done();
        }
        self.free_finished();
    }

    /// Returns a batch with the lines of a claim that are still in the queue, if any.
    fn read(&mut self, claim: Claim, lists: bool, tells: bool) -> Option<Batch> {
        let from = self.index_at(claim.start);
        let now = tells.then(Instant::now);
        let mut batch = Batch::of(claim);
        for record in self.records.range_mut(from..) {
            if !record.overlaps(claim) {
                break;
            }
            let (start, end) = (claim.start.max(record.first), claim.end.min(record.end()));
            let events = end - start;
            let acceptance = now.map(|now| Acceptance {
                first: start,
                events,
                age: now.saturating_duration_since(record.accepted),
                received: record.received,
            });
            batch.push(events, record.slice(start, end, lists), acceptance);
        }
        (batch.events > 0).then_some(batch)
    }
}

impl Queue {
    /// Makes an empty queue and a cursor for each of `outputs`, in their order.
    pub fn new(
        config: &config::Queue,
        identity: Identity,
        metrics: QueueMetrics,
        outputs: &[Output],
    ) -> (Self, Vec<Cursor>) {
        metrics.writable.set(1.0);
        let state = MemoryState {
            capacity: config.max_bytes,
            when_full: config.when_full,
            acknowledge: config.acknowledge,
            records: VecDeque::new(),
            bytes: 0,
            spare: Spare::default(),
            aside: BTreeMap::new(),
            late: Vec::new(),
            next: Position::START,
            cursors: Slab::new(),
            departed: Departed::default(),
            counted: Amount::default(),
            told_full: false,
            closed: false,
        };
        let state = Mutex::new(state);
        let shared = Shared { state, identity, metrics, progress: Notify::new() };
        let queue = Self { shared: Arc::new(shared) };
        queue.apply(config);
        let cursors = {
            let mut state = queue.shared.lock();
            outputs.iter().map(|output| queue.add(&mut state, output.clone())).collect()
        };
        (queue, cursors)
    }

    /// See [`super::Queue::apply`].
    #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
    pub fn apply(&self, config: &config::Queue) {
        let mut state = self.shared.lock();
        state.capacity = config.max_bytes;
        state.when_full = config.when_full;
        state.acknowledge = config.acknowledge;
        self.shared.metrics.capacity.set(config.max_bytes as f64);
        for (_, cursor) in &state.cursors {
            cursor.output.show_keeping(config.when_full);
        }
        state.log_not_full(&self.shared.metrics);
    }

    /// See [`super::Queue::join`].
    ///
    /// # Errors
    ///
    /// The queue has an output of this name already, or the queue has ended.
    pub fn join(&self, output: Output) -> Result<Cursor, JoinError> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state.closed {
            return Err(JoinError::Closed);
        }
        if state.cursors.iter().any(|(_, cursor)| cursor.output.name == output.name) {
            return Err(JoinError::Taken);
        }
        Ok(self.add(state, output))
    }

    fn add(&self, state: &mut MemoryState, output: Output) -> Cursor {
        let start = state.departed.start(&output.name, state.counted.events);
        show_start(&output.metrics, start);
        output.show_keeping(state.when_full);
        let readable = Arc::new(Notify::new());
        let index = state.cursors.insert(CursorState {
            output,
            claims: Claims::at(state.next),
            passed: state.counted,
            aside: Amount::default(),
            joined: state.next,
            start,
            gone: false,
            tells_acceptances: cfg!(test),
            takes_lists: false,
            notes: notes::Memory::default(),
            readable: Arc::clone(&readable),
        });
        Cursor { shared: Arc::clone(&self.shared), index, readable }
    }

    /// See [`super::Queue::require`].
    pub fn require(&self, name: &str, required: bool) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for (_, cursor) in &mut state.cursors {
            if cursor.output.name == name {
                cursor.output.required = required;
                cursor.output.show_keeping(state.when_full);
            }
        }
        // The output may now need some of the records that were spare.
        state.spare = Spare::default();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// See [`super::Queue::admits`].
    ///
    /// # Errors
    ///
    /// There is no room, and `when_full` is `reject`.
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        let needed = state.needed() + bytes + BATCH_OVERHEAD;
        if state.when_full == WhenFull::Reject && needed > state.capacity {
            state.log_full(&self.shared.metrics);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// See [`super::Queue::is_full`].
    pub fn is_full(&self) -> bool {
        self.shared.lock().told_full
    }

    /// See [`super::Queue::keeps_list`].
    pub fn keeps_lists(&self) -> bool {
        self.shared.lock().cursors.iter().all(|(_, cursor)| cursor.takes_lists)
    }

    /// See [`super::Queue::append`].
    ///
    /// # Errors
    ///
    /// There is no room, the queue has ended, or `acknowledge` is `delivered` and a required output
    /// has ended.
    pub fn append(&self, batch: Append) -> Result<Ticket, Refused> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state.closed {
            return Err(Refused::Full);
        }
        if state.acknowledge == Acknowledge::Delivered
            && state.cursors.iter().any(|(_, cursor)| cursor.gone && cursor.output.required)
        {
            return Err(Refused::Undelivered);
        }
        let metrics = &self.shared.metrics;
        let bytes = batch.lines.len() as u64 + BATCH_OVERHEAD;
        let after = state.held() + bytes;
        if after > state.capacity {
            let is_full = state.needed() + bytes > state.capacity;
            if is_full {
                state.log_full(&self.shared.metrics);
            }
            if is_full && state.when_full == WhenFull::DropNewest {
                metrics.drop_newest(batch.events, batch.lines.len() as u64, &batch.levels);
                return Ok(Ticket::stored());
            }
            if !state.make_room(after - state.capacity, metrics) {
                return Err(Refused::Full);
            }
        }
        let first = state.next;
        let mut record = Record::new(first, batch);
        let ticket = match state.acknowledge {
            // The config allows `Synced` only with a directory.
            Acknowledge::Queued | Acknowledge::Synced => {
                MemoryState::accept(&mut state.counted, &mut record, metrics);
                Ticket::stored()
            }
            Acknowledge::Delivered => {
                let (waiting, done) = oneshot::channel();
                record.waiting = Some(waiting);
                let queue = Arc::clone(&self.shared);
                let waits = Some(Waits { done, queue, number: first.get() });
                // If the queue is gone, no output will deliver the batch.
                Ticket { answer: Err(Refused::Undelivered), waits }
            }
        };
        state.push(record);
        for (_, cursor) in &state.cursors {
            cursor.readable.notify_one();
        }
        Ok(ticket)
    }

    /// See [`super::Queue::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.lock().capacity
    }

    /// See [`super::Queue::held`].
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.held(), state.records.iter().map(|record| record.events).sum())
    }

    /// See [`super::Queue::needed`].
    pub fn needed(&self) -> u64 {
        self.shared.lock().needed()
    }

    /// See [`super::Queue::backlogs`].
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        let state = self.shared.lock();
        let backlog =
            |(_, cursor): (_, &CursorState)| (cursor.output.name.clone(), state.backlog(cursor));
        state.cursors.iter().map(backlog).collect()
    }

    /// See [`super::Queue::observe`].
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn observe(&self) {
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set(state.held() as f64);
        metrics.needed.set(state.needed() as f64);
        metrics.held.set(state.records.iter().map(|record| record.events).sum::<u64>() as f64);
        for (_, cursor) in &state.cursors {
            state.backlog(cursor).show(&cursor.output.metrics);
        }
    }

    /// Waits until no record is left, and no running output has an event set aside.
    pub async fn drained(&self) {
        let is_done = || {
            let state = self.shared.lock();
            let waits = |cursor: &CursorState| !cursor.gone && cursor.aside.events > 0;
            state.records.is_empty() && !state.cursors.iter().any(|(_, cursor)| waits(cursor))
        };
        until(&self.shared.progress, is_done).await;
    }

    /// Records that an output has ended permanently ([`super::Queue::give_up`]). [`Queue::abandon`]
    /// counts its unfinished accepted events as lost. If the output is required, the senders that
    /// wait for it are refused, and those of their batches that no output has begun to send are
    /// removed.
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for (_, cursor) in &mut state.cursors {
            cursor.gone |= cursor.output.name == name;
        }
        state.refuse_undecided(name);
        state.refuse_missed();
        state.free_finished();
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Closes the queue, and counts the unfinished accepted events of each output as lost. Returns
    /// the name of each output and the number of these events.
    pub fn abandon(&self) -> Vec<(String, u64)> {
        let mut state = self.shared.lock();
        state.closed = true;
        state.aside.clear();
        let counted = state.counted;
        state
            .cursors
            .iter_mut()
            .map(|(_, cursor)| {
                let backlog = counted.events.saturating_sub(cursor.passed.events);
                let lost = backlog + std::mem::take(&mut cursor.aside).events;
                cursor.output.metrics.lose(Loss::Undelivered, lost);
                cursor.output.show_aside(0);
                cursor.passed = counted;
                (cursor.output.name.clone(), lost)
            })
            .collect()
    }
}

impl MemoryState {
    /// Frees the room of an event that was set aside, and ends the wait for it: senders that wait
    /// for nothing else get a response. Returns `false` if the event was dropped and counted.
    fn take_aside(&mut self, cursor: usize, position: Position) -> bool {
        let Some(line) = self.aside.remove(&(position, cursor)) else { return false };
        let of_output = &mut self.cursors[cursor];
        of_output.aside -= Amount { events: 1, bytes: line.len() as u64 };
        of_output.output.show_aside(of_output.aside.events);
        let of_event = |open: &(usize, Position)| *open == (cursor, position);
        // The batch may still be in the queue, because another output needs it.
        let index = self.index_at(position);
        if let Some(record) = self.records.get_mut(index) {
            record.aside.retain(|open| !of_event(open));
        }
        for late in self.late.extract_if(.., |late| {
            late.open.retain(|open| !of_event(open));
            late.open.is_empty()
        }) {
            late.sender.send(Ok(())).ok();
        }
        true
    }

    /// Refuses the senders of events that this output has set aside and will not decide, because
    /// it has ended or leaves. Some of them wait in `late`, the others also for another output.
    fn refuse_undecided(&mut self, output: &str) {
        let cursors = &self.cursors;
        let is_of = |(cursor, _): &(usize, Position)| {
            cursors.get(*cursor).is_some_and(|cursor| cursor.output.name == output)
        };
        for record in self.records.iter_mut().filter(|record| record.aside.iter().any(is_of)) {
            record.refuse();
            record.aside.clear();
        }
        for late in self.late.extract_if(.., |late| late.open.iter().any(is_of)) {
            late.sender.send(Err(Refused::Undelivered)).ok();
        }
    }

    fn backlog(&self, cursor: &CursorState) -> Backlog {
        let events = self.counted.events.saturating_sub(cursor.passed.events);
        let oldest = self
            .records
            .get(self.index_at(cursor.claims.watermark()))
            .filter(|record| record.counted);
        let lag = match oldest {
            Some(record) if events > 0 => record.accepted.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        Backlog { events, bytes: self.counted.bytes.saturating_sub(cursor.passed.bytes), lag }
    }
}

impl Withdraw for Shared {
    /// Removes the batch that begins at this position, unless it already counts as accepted.
    fn withdraw(&self, number: u64) -> bool {
        let first = Position::new(number);
        let mut state = self.lock();
        let index = state.index_at(first);
        let is_here = |record: &Record| record.first == first && !record.counted;
        if !state.records.get(index).is_some_and(is_here) {
            return false;
        }
        drop(state.remove(index));
        state.log_not_full(&self.metrics);
        drop(state);
        self.progress.notify_waiters();
        true
    }

    fn is_for_all(&self, number: u64) -> bool {
        let first = Position::new(number);
        let state = self.lock();
        state.cursors.iter().all(|(_, cursor)| cursor.gone || cursor.joined <= first)
    }
}

/// The place of one output in the queue in memory, owned by the output's delivery loop.
pub struct Cursor {
    shared: Arc<Shared>,
    index: usize,
    readable: Arc<Notify>,
}

impl Cursor {
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut CursorState) -> R) -> R {
        call(&mut self.shared.lock().cursors[self.index])
    }

    /// See [`super::Cursor::readable`].
    pub async fn readable(&self) {
        until(&self.readable, || !self.is_at_end()).await;
    }

    /// See [`super::Cursor::next_as`].
    pub fn next(&self, take: Take, lists: bool) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let read = state.cursors[self.index].claims.read;
        let first = state.index_at(read);
        let mut claim: Option<Claim> = None;
        let mut left = take;
        for record in state.records.range_mut(first..) {
            let start = read.max(record.first);
            let Amount { events, bytes } = record.amount(start, record.end());
            let whole = bytes <= left.bytes && events <= left.events;
            let end = match (&claim, whole) {
                (_, true) => record.end(),
                (None, false) => record.cut(start, take),
                (Some(_), false) => break,
            };
            MemoryState::count(
                &mut state.counted,
                &mut state.cursors,
                record,
                &self.shared.metrics,
            );
            claim.get_or_insert(Claim { start, end }).end = end;
            if !whole {
                break;
            }
            left = Take { bytes: left.bytes - bytes, events: left.events - events };
        }
        let claim = claim?;
        assert!(claim.end <= state.next, "{claim:?} ends behind the log, at {}", state.next);
        state.cursors[self.index].claims.push(claim, ());
        let tells = state.cursors[self.index].tells_acceptances;
        state.read(claim, lists, tells)
    }

    /// See [`super::Cursor::acknowledge`].
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        self.finish(&mut self.shared.lock(), claim, &disposition);
        self.shared.progress.notify_waiters();
    }

    fn finish(&self, state: &mut MemoryState, claim: Claim, disposition: &Disposition) {
        let from = state.index_at(claim.start);
        let cursor = &mut state.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim) else { return };
        entry.stage = Stage::Done;
        let mut amount = Amount::default();
        let now = Instant::now();
        for record in state.records.range_mut(from..) {
            if !record.overlaps(claim) {
                break;
            }
            amount += record.amount(claim.start, claim.end);
            if disposition.aside == 0 {
                cursor.output.metrics.delivered(now.duration_since(record.accepted), now);
            }
        }
        disposition.count(amount.events, &cursor.output.metrics);
        cursor.passed += amount;
        cursor.claims.forget_done();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
    }

    /// See [`super::Cursor::set_aside`].
    pub fn set_aside(&self, claim: Claim, line: &[u8]) -> Option<Weak<Bytes>> {
        // A part of the record would keep the memory of the whole record.
        let line = Arc::new(Bytes::copy_from_slice(line));
        let kept = Arc::downgrade(&line);
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let index = state.index_at(claim.start);
        let cursor = &mut state.cursors[self.index];
        cursor.claims.find(claim).filter(|entry| entry.stage.is_open())?;
        // The queue may have dropped the event since the output has read it.
        let record = state.records.get_mut(index).filter(|record| record.overlaps(claim));
        let is_here = record.is_some();
        if let Some(record) = record {
            cursor.aside += Amount { events: 1, bytes: line.len() as u64 };
            cursor.output.show_aside(cursor.aside.events);
            state.aside.insert((claim.start, self.index), line);
            if cursor.output.required && record.waiting.is_some() {
                record.aside.push((self.index, claim.start));
            }
        }
        self.finish(state, claim, &Disposition::aside());
        // The record needs its room too while another output needs it.
        let excess = state.held().saturating_sub(state.capacity);
        if excess > 0 {
            state.make_room(excess, &self.shared.metrics);
        }
        drop(guard);
        self.shared.progress.notify_waiters();
        is_here.then_some(kept)
    }

    /// See [`super::Cursor::settle_aside`].
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state.take_aside(self.index, position) {
            event.count(&disposition, &state.cursors[self.index].output.metrics);
        }
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// See [`super::Cursor::release`].
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.cursors[self.index].claims.find(claim) {
            entry.stage = Stage::Released;
        }
        state.end_dropped_claims(claim.start..claim.end);
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// See [`super::Cursor::split_at`].
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        let mut state = self.shared.lock();
        let parts = state.cursors[self.index].claims.split(claim, middle, |()| ((), ()));
        // All events of one part may have been dropped.
        state.end_dropped_claims(claim.start..claim.end);
        parts
    }

    /// See [`super::Cursor::rewind`].
    pub fn rewind(&self) {
        self.with(|cursor| cursor.claims.rewind());
    }

    /// See [`super::Cursor::redeliver`]. `None` if all events were dropped.
    pub fn redeliver(&self, claim: Claim) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let batch = state.read(claim, false, true);
        let cursor = &mut state.cursors[self.index];
        if let Some(entry) = cursor.claims.find(claim) {
            entry.stage = if batch.is_some() { Stage::OnWire } else { Stage::Dropped };
        }
        cursor.claims.forget_done();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        if batch.is_none() {
            // This was perhaps the last unfinished claim, and the queue may be empty now.
            self.shared.progress.notify_waiters();
        }
        batch
    }

    /// Removes the output. If `counts` is `true`, its unfinished events count as lost; events that
    /// are set aside count as lost in any case. Returns the number of lost events. See
    /// [`super::Cursor::leave`] and [`super::Cursor::leave_uncounted`].
    pub fn remove(self, counts: bool) -> u64 {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        // The senders that wait only for this output get their responses first. Their batches are
        // then accepted before the output's loss is computed, or not at all.
        let cursor = &mut state.cursors[self.index];
        cursor.gone = true;
        cursor.output.required = false;
        let name = cursor.output.name.clone();
        state.refuse_undecided(&name);
        state.free_finished();
        let cursor = state.cursors.remove(self.index);
        state.aside.retain(|(_, of), _| *of != self.index);
        cursor.output.metrics.lose(Loss::Removed, cursor.aside.events);
        cursor.output.show_aside(0);
        let backlog = state.counted.events.saturating_sub(cursor.passed.events);
        let accepted = state.counted.events;
        let lost = state.departed.remove(&cursor.output, cursor.start, backlog, counts, accepted);
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
        lost + cursor.aside.events
    }

    /// See [`super::Cursor::identity`].
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// See [`super::Cursor::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.lock().capacity
    }

    /// See [`super::Cursor::crowding`].
    pub fn crowding(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let state = shared.lock();
            is_crowded(state.needed(), state.capacity)
        }
    }

    /// See [`super::Cursor::notes`].
    pub fn notes(&self) -> Notes {
        let (notes, end) = {
            let state = self.shared.lock();
            (Arc::clone(&state.cursors[self.index].notes), state.next)
        };
        let (shared, of) = (Arc::clone(&self.shared), Arc::clone(&notes));
        let settled = move || {
            let state = shared.lock();
            let mut cursors = state.cursors.iter().map(|(_, cursor)| cursor);
            // After the output has left, its index may be that of another output.
            let cursor = cursors.find(|cursor| Arc::ptr_eq(&cursor.notes, &of));
            cursor.map_or(Position::START, |cursor| cursor.claims.watermark())
        };
        Notes::in_memory(notes, end, settled)
    }

    /// See [`super::Cursor::is_at_end`].
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.index_at(state.cursors[self.index].claims.read) >= state.records.len()
    }
}

#[cfg(test)]
mod tests;
