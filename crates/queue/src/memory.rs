//! The queue in memory: the events in it are lost when the process ends.
//!
//! One mutex guards everything. It is held only for bookkeeping, and for a search for line ends if
//! a batch is larger than what an output claims at once. It is never held across an await.
//!
//! The public methods of this file are documented at [`super::Queue`] and [`super::Cursor`], which
//! alone call them. The comments here say only what is different in memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::claims::{Claims, Stage};
use super::contract::{
    Append, Aside, Backlog, Batch, Claim, Disposition, JoinError, Origin, Refused, Take, Ticket,
    Waits, Withdraw, is_crowded, now, until,
};
use super::identity::Identity;
use super::notes;
use super::notes::Notes;
use super::outputs::{Departed, DropCount, Output, show_start, signed};
use base::lock::lock;
use base::mutant;
use base::position::Position;
use config::{Acknowledge, BATCH_OVERHEAD, WhenFull};
use telemetry::{Loss, QueueMetrics, State as Told};

mod record;

use record::{Amount, Record};

/// The queue in memory. A clone is cheap, and is a handle to the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<MemoryState>,
    identity: Identity,
    metrics: QueueMetrics,
    /// Notified whenever records may have left the queue. At its end, the process waits for this
    /// until the queue is empty.
    progress: Notify,
}

impl Shared {
    /// Locks the queue's state, even if a task has panicked while it held the lock. The panic was
    /// reported, and the state is used as the task has left it, because there is no better one.
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        lock(&self.state)
    }
}

/// The whole state of the queue, under one lock.
///
/// A batch is appended at the end of `records`. Every output has a cursor, which claims records, or
/// parts of records, from the first to the last, and finishes these claims in any order. A record
/// goes through these states:
///
/// - needed: at least one required output has not finished the record;
/// - spare: every required output has finished the record, and at least one optional output has
///   not. If the record's sender waits for `delivered`, it gets its answer at this moment. The
///   record is kept as long as nothing else needs its room;
/// - gone: every output has finished the record, or it was dropped. A record whose sender waits for
///   `delivered` and which no output has begun to send is also gone when it is refused, or when
///   the sender waits no longer.
///
/// Records become spare in their order, so the spare records are always the first ones in
/// `records`.
///
/// Invariants:
///
/// - `bytes` is the weight of all records, and `spare` counts the first `spare.records` of them.
/// - `bytes` is at most `capacity` after an append; `apply` may lower `capacity` below it.
/// - Positions in `records` rise, and have gaps where records were dropped or taken back.
/// - `counted` is what `event_total` shows. For each output, `counted` - `passed` is its backlog,
///   so an event is counted for an output exactly once: when it is finished, lost or dropped.
///
/// What must never happen: that an event is dropped while it is on the wire of a required output,
/// or that an accepted event is removed without being counted for each output.
struct MemoryState {
    capacity: u64,
    when_full: WhenFull,
    acknowledge: Acknowledge,
    records: VecDeque<Record>,
    /// The weight of all records: bytes, as `queue.max_bytes` counts them.
    bytes: u64,
    spare: Spare,
    /// The bytes of the events that outputs have set aside. They count against `queue.max_bytes`.
    aside: u64,
    /// The senders that wait for `delivered`, and of whose batches only events that are set aside
    /// are not delivered.
    late: Vec<Late>,
    /// The position that the next appended event gets.
    next: Position,
    cursors: Slab<CursorState>,
    departed: Departed,
    /// The events, and the bytes of their lines, that were accepted and counted in the metric
    /// `event_total`.
    counted: Amount,
    /// `true`: the queue counts as full, and the last log line about its room says so.
    told_full: bool,
    /// `true`: the queue takes no more batches. The events that were still in the queue are already
    /// counted as lost, so a batch that came now would not be counted.
    closed: bool,
}

/// A sender that waits until the events of its batch that outputs have set aside are decided.
struct Late {
    /// The index of each such output's cursor, and the position of the event.
    open: Vec<(usize, Position)>,
    sender: oneshot::Sender<Result<(), Refused>>,
}

/// The spare records: the records at the front of the queue that every required output has
/// finished. Only optional outputs still need them, so they are dropped when their room is needed.
#[derive(Default)]
struct Spare {
    records: usize,
    /// The weight of these records in bytes.
    bytes: u64,
}

/// The place of one output in the queue, and the numbers that are counted for this output.
pub(super) struct CursorState {
    output: Output,
    pub claims: Claims<()>,
    /// The accepted events that are not in this output's backlog: events that the output has
    /// finished or lost, or that were appended before the output joined. The other events of
    /// [`MemoryState::counted`] are the backlog.
    passed: Amount,
    /// The events that this output has set aside.
    aside: Amount,
    /// The position at which the output joined: the end of the log at that time.
    joined: Position,
    /// The value of this output's gauge `output_start_events`, a number that may be negative. It
    /// balances the output's numbers: the number of all accepted events, plus this value, is the
    /// number of events that the output has finished or lost, plus its backlog. For example, it is
    /// -5 for an output that joined after 5 accepted events, none of which it gets.
    start: i64,
    /// `true`: the output has ended permanently, and the queue waits for it no longer.
    gone: bool,
    /// `true`: each batch for this output says the position and age of each piece of its lines.
    pub(super) tells_origins: bool,
    /// `true`: the output sends JSON lists, so that batches need not be split into lines for it.
    pub(super) takes_lists: bool,
    /// The facts that the output keeps for the delivery that replaces its present one.
    notes: notes::Memory,
    readable: Arc<Notify>,
}

impl CursorState {
    /// Returns the part of a record that this output has not finished: the number of events, and
    /// the number of bytes of their lines.
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
    /// Returns the index of the record that contains this position, or of the first record after
    /// it. If there is no such record, returns the number of records.
    fn index_at(&self, position: Position) -> usize {
        self.records.partition_point(|record| record.end() <= position)
    }

    /// Returns the weight of the records that a required output has not finished, and of the events
    /// that are set aside.
    fn needed(&self) -> u64 {
        self.bytes - self.spare.bytes + self.aside
    }

    /// Logs that the queue has room again. Does so only if the log's last line about room says that
    /// the queue is full, and if now less than four fifths of `capacity` are needed. If less free
    /// room were enough, a queue that is nearly full would log a line for every few batches.
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

    /// Notes that a batch has found no room, and logs that the queue is full. Logs nothing if the
    /// log's last line about room already says so.
    fn log_full(&mut self, metrics: &QueueMetrics) {
        if !std::mem::replace(&mut self.told_full, true) {
            let when_full = self.when_full.name().to_owned();
            let bytes = self.bytes + self.aside;
            metrics.changed(Told::QueueFull { bytes, when_full });
        }
    }

    /// Counts a batch as accepted, in `counted` and in the metrics. Returns the number of its
    /// events, and the number of bytes of their lines.
    fn accept(counted: &mut Amount, record: &mut Record, metrics: &QueueMetrics) -> Amount {
        record.counted = true;
        let amount = record.amount(record.first, record.end());
        *counted += amount;
        metrics.accepted(record.events, amount.bytes, &record.levels);
        amount
    }

    /// Counts a batch as accepted, unless it is counted already. As a rule, a batch is counted when
    /// it is appended, not here. A batch whose sender waits for `delivered` is counted here, when
    /// an output begins to send it.
    ///
    /// The backlog of an output grows with each counted batch. An output that joined after this
    /// batch was appended does not get the batch. For such an output, the batch is added to
    /// `passed`, so that the backlog stays the same.
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

    /// Returns the result for a sender that waits for `delivered`. The function assumes that all
    /// required outputs that still run will finish the record. The result is
    /// [`Refused::Undelivered`] in two cases, otherwise `Ok`. First: a required output has ended
    /// permanently before it finished the whole record. Second: all required outputs that were to
    /// get the record have left the queue, or are not required any more.
    fn verdict(cursors: &Slab<CursorState>, record: &mut Record) -> Result<(), Refused> {
        let needed = cursors
            .iter()
            .filter(|(_, cursor)| cursor.output.required && cursor.joined <= record.first);
        let (gone, going): (Vec<_>, Vec<_>) = needed.partition(|(_, cursor)| cursor.gone);
        let is_missed = gone.iter().any(|(_, cursor)| cursor.outstanding(record).events > 0);
        let nobody = going.is_empty() && gone.is_empty();
        if mutant!("ended-output-under-delivered", is_missed, false)
            || mutant!("reload-under-delivered", nobody, false)
        {
            Err(Refused::Undelivered)
        } else {
            Ok(())
        }
    }

    /// Sends the result to the sender of a record, if the sender waits for it. No required output
    /// needs the record any more. Returns `false` if the batch is refused and no output has begun
    /// to send it: the batch is then not accepted, and the caller must remove the record. Otherwise
    /// returns `true`.
    ///
    /// If an output has set events of the batch aside, the sender gets its answer when these are
    /// decided, and waits in `late` until then.
    fn answer(cursors: &Slab<CursorState>, record: &mut Record, late: &mut Vec<Late>) -> bool {
        let Some(waiting) = record.waiting.take() else { return true };
        let verdict = Self::verdict(cursors, record);
        let open = std::mem::take(&mut record.aside);
        if verdict.is_ok() && !open.is_empty() {
            late.retain(|late| !late.sender.is_closed());
            late.push(Late { open, sender: waiting });
            return true;
        }
        // The sender may have gone: then nobody needs the answer.
        waiting.send(verdict).ok();
        verdict.is_ok() || record.counted
    }

    /// Adds a record at the end. There must be room for it.
    fn push(&mut self, record: Record) {
        self.next += record.events;
        self.bytes += record.weight();
        // The check guards the limit of the queue's memory. It is one comparison for each batch.
        assert!(self.bytes <= self.capacity, "{} of {} bytes", self.bytes, self.capacity);
        self.records.push_back(record);
    }

    /// Removes the record with this index, and returns it. `None` if there is no such record.
    fn remove(&mut self, index: usize) -> Option<Record> {
        let record = self.records.remove(index)?;
        self.bytes -= record.weight();
        if index < self.spare.records {
            self.spare.records -= 1;
            self.spare.bytes -= record.weight();
        }
        Some(record)
    }

    /// Removes the records that every output has finished. Records that only optional outputs still
    /// need become spare: they stay until their room is needed. The senders of all these records
    /// get their results.
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

    /// Refuses the batches that a required output can no longer deliver, because it has ended
    /// permanently. Senders that wait for `delivered` are told that their batches are not
    /// delivered, even if other outputs deliver them. A refused batch is removed if no output has
    /// begun to send it, because its sender still has it.
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

    /// Frees at least `needed` bytes. Drops the oldest spare records, as many as are needed. If
    /// `when_full` is `drop_oldest`, and the spare records are not enough, also drops the oldest of
    /// the other records. Keeps each record of which a required output has sent an event that has
    /// no answer yet.
    ///
    /// Returns `true` if the bytes are freed. Returns `false` if all records that may be dropped
    /// together have fewer bytes; then none is dropped.
    fn make_room(&mut self, needed: u64, metrics: &QueueMetrics) -> bool {
        let spare = self.spare.records;
        let may_go =
            if self.when_full == WhenFull::DropOldest { self.records.len() } else { spare };
        let (mut chosen, mut gained) = (Vec::new(), 0);
        for (index, record) in self.records.iter().enumerate().take(may_go) {
            if gained >= needed {
                break;
            }
            let is_kept = self.cursors.iter().any(|(_, cursor)| {
                cursor.output.required && cursor.claims.has_on_wire(record.positions())
            });
            if !is_kept {
                gained += record.weight();
                chosen.push(index);
            }
        }
        if gained < needed {
            return false;
        }
        let mut freed = self.next..Position::START;
        for index in chosen.into_iter().rev() {
            let is_spare = index < self.spare.records;
            let Some(mut record) = self.remove(index) else { continue };
            let Range { start, end } = record.positions();
            freed = freed.start.min(start)..freed.end.max(end);
            // If the batch was appended while `delivered` was set, its sender still has it. It is
            // lost only if an output has begun to send it.
            if record.refuse() && !record.counted {
                continue;
            }
            let mut dropped = DropCount::default();
            for (_, cursor) in &mut self.cursors {
                // An optional output may already have sent some of these events. If it acknowledges
                // them later, they are not counted again.
                let lost = cursor.outstanding(&mut record);
                cursor.passed += lost;
                dropped.lose(&cursor.output, lost.events);
            }
            // Every required output that still runs has finished a spare record.
            if !is_spare {
                mutant!(
                    "drop-counts-what-all-have",
                    dropped.count(metrics),
                    metrics.dropped.drop_oldest.increment(record.events)
                );
            }
        }
        // The events that an output has finished are counted above, by claims that are forgotten
        // here.
        self.end_dropped_claims(freed);
        true
    }

    /// Ends the claims at these positions that are to be sent again, and of which the queue has
    /// dropped all events. Otherwise the records behind such a claim would count as needed until
    /// its output asks for it again, which may take half a minute.
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

    /// Returns a batch with the lines of a claim, as far as these are still in the queue. `None` if
    /// all of them were dropped. `cursor` is the index of the claim's cursor. If `lists` is `true`,
    /// the batch may hold parts of JSON lists ([`super::Cursor::next_as`]).
    fn read(&mut self, claim: Claim, cursor: usize, lists: bool) -> Option<Batch> {
        let from = self.index_at(claim.start);
        let now = self.cursors[cursor].tells_origins.then(Instant::now);
        let mut batch = Batch::of(claim);
        for record in self.records.range_mut(from..) {
            if !record.overlaps(claim) {
                break;
            }
            let (start, end) = (claim.start.max(record.first), claim.end.min(record.end()));
            let events = end - start;
            let origin = now.map(|now| Origin {
                first: start,
                events,
                age: now.saturating_duration_since(record.accepted),
                received: record.received,
            });
            batch.push(events, record.slice(start, end, lists), origin);
        }
        (batch.events > 0).then_some(batch)
    }
}

impl Queue {
    /// Makes an empty queue, with a cursor for each of these outputs. Returns the queue and the
    /// cursors, in the order of `outputs`.
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
            aside: 0,
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

    /// Applies the settings that can change at run time. See [`super::Queue::apply`].
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

    /// Adds an output, and returns its cursor. The output gets the batches that are appended from
    /// now on. See [`super::Queue::join`].
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

    /// Adds a cursor at the end of the log, so that the output gets only batches that are appended
    /// from now on.
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
            // The queue's own tests always check the origins.
            tells_origins: cfg!(test),
            takes_lists: false,
            notes: notes::Memory::default(),
            readable: Arc::clone(&readable),
        });
        Cursor { shared: Arc::clone(&self.shared), index, readable }
    }

    /// Sets whether the output with this name is required: events are kept until all required
    /// outputs have finished them. See [`super::Queue::require`].
    pub fn require(&self, name: &str, required: bool) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for (_, cursor) in &mut state.cursors {
            if cursor.output.name == name {
                cursor.output.required = required;
                cursor.output.show_keeping(state.when_full);
            }
        }
        // The output may need some of the records that were spare.
        state.spare = Spare::default();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// Returns `Ok` if there is room now for a batch whose lines have this many bytes. Also returns
    /// `Ok` if `when_full` allows the queue to drop events when it is full. See
    /// [`super::Queue::admits`].
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

    /// Returns `true` while the queue counts as full. See [`super::Queue::is_full`].
    pub fn is_full(&self) -> bool {
        self.shared.lock().told_full
    }

    /// Returns `true` if JSON lists can be appended as they were received. See
    /// [`super::Queue::keeps_list`].
    pub fn keeps_lists(&self) -> bool {
        self.shared.lock().cursors.iter().all(|(_, cursor)| cursor.takes_lists)
    }

    /// Appends a batch to the queue, and returns the sender's receipt. See
    /// [`super::Queue::append`].
    ///
    /// # Errors
    ///
    /// There is no room, the queue has ended, or `acknowledge` is `delivered` and a required output
    /// has ended, so that the batch can't be delivered to all.
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
        let after = state.bytes + state.aside + batch.lines.len() as u64 + BATCH_OVERHEAD;
        if after > state.capacity {
            let is_full = after - state.spare.bytes > state.capacity;
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
                // If the queue is gone, no output will deliver the batch any more.
                Ticket { answer: Err(Refused::Undelivered), waits }
            }
        };
        state.push(record);
        for (_, cursor) in &state.cursors {
            cursor.readable.notify_one();
        }
        Ok(ticket)
    }

    /// Returns the limit of the queue in bytes: `queue.max_bytes`. See [`super::Queue::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.lock().capacity
    }

    /// Returns the number of bytes, and the number of events, that the queue holds. See
    /// [`super::Queue::held`].
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.bytes + state.aside, state.records.iter().map(|record| record.events).sum())
    }

    /// Returns the weight of the records that a required output has not finished. See
    /// [`super::Queue::needed`].
    pub fn needed(&self) -> u64 {
        self.shared.lock().needed()
    }

    /// Returns the name and the backlog of each output. See [`super::Queue::backlogs`].
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        let state = self.shared.lock();
        let backlog =
            |(_, cursor): (_, &CursorState)| (cursor.output.name.clone(), state.backlog(cursor));
        state.cursors.iter().map(backlog).collect()
    }

    /// Sets the gauges that are computed only when the metrics are read. See
    /// [`super::Queue::observe`].
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn observe(&self) {
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set((state.bytes + state.aside) as f64);
        metrics.needed.set(mutant!("spare-bytes-are-pressure", state.needed(), state.bytes) as f64);
        metrics.held.set(state.records.iter().map(|record| record.events).sum::<u64>() as f64);
        for (_, cursor) in &state.cursors {
            state.backlog(cursor).show(&cursor.output.metrics);
        }
    }

    /// Waits until no record is left in the queue, and no event is set aside.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn drained(&self) {
        let is_done = || {
            let state = self.shared.lock();
            let waits = |cursor: &CursorState| !cursor.gone && cursor.aside.events > 0;
            state.records.is_empty() && !state.cursors.iter().any(|(_, cursor)| waits(cursor))
        };
        until(&self.shared.progress, is_done).await;
    }

    /// Notes that the output with this name has ended permanently. Accepted events that the output
    /// has not finished are counted as lost by [`Queue::abandon`]. If the output is required, a
    /// batch that waits for `delivered` and that no output has begun to send is not accepted: its
    /// sender is told that it is not delivered, and it is removed. See [`super::Queue::give_up`].
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for (_, cursor) in &mut state.cursors {
            cursor.gone |= cursor.output.name == name;
        }
        state.refuse_late(name);
        state.refuse_missed();
        state.free_finished();
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Closes the queue. The accepted events that an output has not finished are counted as lost
    /// for this output. Returns for each output its name, and the number of these events.
    pub fn abandon(&self) -> Vec<(String, u64)> {
        let mut state = self.shared.lock();
        state.closed = true;
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
    /// Notes that an event which the output with this cursor had set aside is delivered, or counted
    /// as lost. A sender that has waited for nothing else gets its answer.
    fn decided(&mut self, cursor: usize, position: Position) {
        let of_event = |open: &(usize, Position)| *open == (cursor, position);
        // The batch is perhaps not finished by all outputs.
        let index = self.index_at(position);
        if let Some(record) = self.records.get_mut(index) {
            record.aside.retain(|open| !of_event(open));
        }
        for late in self.late.extract_if(.., |late| {
            late.open.retain(|open| !of_event(open));
            late.open.is_empty()
        }) {
            // The sender may have gone: then nobody needs the answer.
            late.sender.send(Ok(())).ok();
        }
    }

    /// Refuses the batches of which an output that has ended, or is removed, has set events aside.
    fn refuse_late(&mut self, output: &str) {
        let cursors = &self.cursors;
        let is_of = |(cursor, _): &(usize, Position)| {
            cursors.get(*cursor).is_some_and(|cursor| cursor.output.name == output)
        };
        for late in self.late.extract_if(.., |late| late.open.iter().any(is_of)) {
            late.sender.send(Err(Refused::Undelivered)).ok();
        }
    }

    /// Returns the backlog of an output: the events that it has not finished.
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
    /// Removes a batch that does not count as accepted yet. A batch counts as accepted at once if
    /// its sender need not wait, otherwise when an output begins to send it. `number` is the
    /// position of its first event.
    fn withdraw(&self, number: u64) {
        let first = Position::new(number);
        let mut state = self.lock();
        let index = state.index_at(first);
        if state.records.get(index).is_some_and(|record| record.first == first && !record.counted) {
            drop(state.remove(index));
            state.log_not_full(&self.metrics);
            drop(state);
            self.progress.notify_waiters();
        }
    }
}

/// The place of one output in the queue in memory. It is owned by the output's delivery loop, which
/// takes events and sends them.
pub struct Cursor {
    shared: Arc<Shared>,
    /// The index of the output's state in `MemoryState::cursors`.
    index: usize,
    readable: Arc<Notify>,
}

impl Cursor {
    /// Calls a function with the state of this cursor, under the lock.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut CursorState) -> R) -> R {
        call(&mut self.shared.lock().cursors[self.index])
    }

    /// Waits until the queue has an event that this cursor has not claimed yet.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn readable(&self) {
        until(&self.readable, || !self.is_at_end()).await;
    }

    /// Claims the next events, within the limits of `take`. `None` if every event in the queue is
    /// claimed. See [`super::Cursor::next_as`].
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
        // The check is one comparison for each claim.
        assert!(claim.end <= state.next, "{claim:?} ends behind the log, at {}", state.next);
        state.cursors[self.index].claims.push(claim, ());
        state.read(claim, self.index, lists)
    }

    /// Makes a claim final: the output has finished its events. See [`super::Cursor::acknowledge`].
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
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
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// Makes the claim of one event final, which the output sets aside. See
    /// [`super::Cursor::set_aside`].
    pub fn set_aside(&self, claim: Claim, bytes: u64) {
        {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            let index = state.index_at(claim.start);
            let cursor = &mut state.cursors[self.index];
            if !cursor.claims.find(claim).is_some_and(|entry| entry.stage.is_open()) {
                return;
            }
            cursor.aside += Amount { events: 1, bytes };
            cursor.output.show_aside(cursor.aside.events);
            state.aside += bytes;
            let record = state.records.get_mut(index);
            let waiting =
                record.filter(|record| cursor.output.required && record.waiting.is_some());
            if let Some(record) = waiting {
                record.aside.push((self.index, claim.start));
            }
        }
        self.acknowledge(claim, Disposition::aside());
    }

    /// Notes what has become of an event that was set aside. See
    /// [`super::Cursor::settle_aside`].
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let cursor = &mut state.cursors[self.index];
        event.count(&disposition, &cursor.output.metrics);
        cursor.aside -= Amount { events: 1, bytes: event.bytes };
        cursor.output.show_aside(cursor.aside.events);
        state.aside -= event.bytes;
        state.decided(self.index, position);
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// Returns the time at which the first event of a claim was accepted. See
    /// [`super::Cursor::received`].
    pub fn received(&self, claim: Claim) -> u64 {
        let state = self.shared.lock();
        let record = state.records.get(state.index_at(claim.start));
        record.map_or_else(now, |record| record.received)
    }

    /// Notes that a claim must be sent again. See [`super::Cursor::release`].
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.cursors[self.index].claims.find(claim) {
            entry.stage = Stage::Released;
        }
        state.end_dropped_claims(claim.start..claim.end);
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Cuts a claim into two parts. See [`super::Cursor::split_at`].
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        self.with(|cursor| cursor.claims.split(claim, middle, |()| ((), ())))
    }

    /// Forgets all unfinished claims, so that their events are taken again. See
    /// [`super::Cursor::rewind`].
    pub fn rewind(&self) {
        self.with(|cursor| cursor.claims.rewind());
    }

    /// Returns the lines of a claim that was released (its events must be sent again). `None` if
    /// all events of the claim were dropped; the claim then does not exist any more. See
    /// [`super::Cursor::redeliver`].
    pub fn redeliver(&self, claim: Claim) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let batch = state.read(claim, self.index, false);
        let cursor = &mut state.cursors[self.index];
        if let Some(entry) = cursor.claims.find(claim) {
            entry.stage = if batch.is_some() { Stage::OnWire } else { Stage::Dropped };
        }
        cursor.claims.forget_done();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        if batch.is_none() {
            // The claims after this one may be finished, and the queue may be empty now.
            mutant!("drain-waits-for-a-dropped-claim", self.shared.progress.notify_waiters());
        }
        batch
    }

    /// Cuts a claim into two halves, and returns them. `None` if fewer than two events of the claim
    /// are still in the queue, or if the claim is no longer in the list. See
    /// [`super::Cursor::split`].
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let from = state.index_at(claim.start);
        let pieces: Vec<Claim> = state
            .records
            .range(from..)
            .take_while(|record| record.overlaps(claim))
            .map(|record| Claim {
                start: claim.start.max(record.first),
                end: claim.end.min(record.end()),
            })
            .collect();
        let events = pieces.iter().map(|piece| piece.end - piece.start).sum::<u64>();
        if events < 2 {
            return None;
        }
        let mut half = events / 2;
        let middle = pieces.iter().find_map(|piece| {
            let length = piece.end - piece.start;
            let is_here = half <= length;
            if !is_here {
                half -= length;
            }
            is_here.then(|| piece.start + half)
        })?;
        state.cursors[self.index].claims.split(claim, middle, |()| ((), ()))
    }

    /// Removes the output from the queue. If `counts` is `true`, the events that the output has not
    /// finished are counted as lost. Returns the number of lost events. See
    /// [`super::Cursor::leave`] and [`super::Cursor::leave_uncounted`].
    pub fn remove(self, counts: bool) -> u64 {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        // Senders that waited for this output alone are answered first. Their batches are then
        // counted as accepted before the output's loss is worked out, or not at all.
        let cursor = &mut state.cursors[self.index];
        cursor.gone = true;
        cursor.output.required = false;
        let name = cursor.output.name.clone();
        state.refuse_late(&name);
        state.free_finished();
        let cursor = state.cursors.remove(self.index);
        state.aside -= cursor.aside.bytes;
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

    /// Returns the identity of the queue. See [`super::Cursor::identity`].
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// Returns the limit of the queue in bytes. See [`super::Cursor::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.lock().capacity
    }

    /// Returns a function that says whether the queue is crowded. See
    /// [`super::Cursor::crowding`].
    pub fn crowding(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let state = shared.lock();
            is_crowded(state.needed(), state.capacity)
        }
    }

    /// Returns the notes in which the output may keep facts. See [`super::Cursor::notes`].
    pub fn notes(&self) -> Notes {
        let (notes, end) = {
            let state = self.shared.lock();
            (
                mutant!(
                    "s3-reload-stores-twice",
                    Arc::clone(&state.cursors[self.index].notes),
                    notes::Memory::default()
                ),
                state.next,
            )
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

    /// Returns `true` if this output has taken all events in the queue to send them. See
    /// [`super::Cursor::is_at_end`].
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.index_at(state.cursors[self.index].claims.read) >= state.records.len()
    }
}

#[cfg(test)]
mod tests;
