//! The queue in memory.
//!
//! One mutex guards the state; no critical section does more than bookkeeping and, where a batch is larger than an
//! output takes at once, a search for line ends. Nothing is held across an await.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use slab::Slab;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Append;
use super::Backlog;
use super::Batch;
use super::Claim;
use super::Disposition;
use super::JoinError;
use super::Origin;
use super::Output;
use super::Position;
use super::Refused;
use super::Take;
use super::claims::Claims;
use super::claims::Stage;
use super::outputs::Departed;
use super::outputs::DropCount;
use super::outputs::show_start;
use super::outputs::signed;
use super::outputs::written;
use crate::config;
use crate::config::Acknowledge;
use crate::config::BATCH_OVERHEAD;
use crate::config::WhenFull;
use crate::telemetry::Loss;
use crate::telemetry::QueueMetrics;
use crate::telemetry::State as Told;

mod record;

use record::Record;

/// The log. Cheap to clone; all clones are the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<MemoryState>,
    metrics: QueueMetrics,
    /// Told whenever a cursor finishes something: the drain waits on it.
    progress: Notify,
}

impl Shared {
    /// A panic while the lock was held is a bug that the panicking task has reported; the counts it left are the best
    /// there are.
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryState {
    capacity: u64,
    when_full: WhenFull,
    acknowledge: Acknowledge,
    records: VecDeque<Record>,
    /// As `queue.max_bytes` counts.
    bytes: u64,
    spare: Spare,
    /// The number of the next event.
    next: Position,
    cursors: Slab<CursorState>,
    departed: Departed,
    /// Events and bytes of lines that `event_total` has counted.
    counted: Amount,
    /// Whether the log has it as full.
    told_full: bool,
    /// What is left was counted as lost: what came now would not be.
    closed: bool,
}

/// The records in front that every required output has finished: only others need them, as long as nothing else needs
/// the room.
#[derive(Default)]
struct Spare {
    records: usize,
    /// As `queue.max_bytes` counts.
    bytes: u64,
}

impl Spare {
    /// One of them is taken out.
    fn take(&mut self, record: &Record) {
        self.records -= 1;
        self.bytes -= record.weight();
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    events: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }
}

struct CursorState {
    output: Output,
    claims: Claims<()>,
    /// Of what is counted: finished, lost or dropped here, or accepted before it joined.
    passed: Amount,
    /// Where the log ended as it joined.
    joined: Position,
    /// `output_start_events`.
    start: i64,
    /// Its output has ended for good.
    gone: bool,
    /// Batches say where their pieces are from.
    tells_origins: bool,
    readable: Arc<Notify>,
}

impl CursorState {
    /// What of a record this cursor has not finished.
    fn outstanding(&self, record: &mut Record) -> Amount {
        let mut left = Amount { events: 0, bytes: 0 };
        let mut from = record.first.max(self.claims.watermark().min(record.end()));
        let mut add = |record: &mut Record, from: Position, to: Position| {
            if from < to {
                left.events += to - from;
                left.bytes += record.slice(from, to).len() as u64;
            }
        };
        for entry in self.claims.overlapping(record.positions()) {
            if entry.stage == Stage::Done {
                add(record, from, entry.claim.start.min(record.end()));
                from = from.max(entry.claim.end);
            }
        }
        add(record, from, record.end());
        left
    }

    /// Counts what of a record that is dropped this cursor has not finished. Where that is on the wire of an optional
    /// output, what becomes of it there counts no more.
    fn lose(&mut self, record: &mut Record) -> u64 {
        let amount = self.outstanding(record);
        self.passed.add(amount);
        amount.events
    }

    /// A required output that is still to say something of a record: it had joined before.
    fn is_needed_for(&self, record: &Record) -> bool {
        self.output.required && self.joined <= record.first
    }
}

impl MemoryState {
    /// Index of the first record that ends behind a position.
    fn index_at(&self, position: Position) -> usize {
        self.records.partition_point(|record| record.end() <= position)
    }

    /// Not as soon as there is room, or a queue at its edge would fill the log.
    fn log_not_full(&mut self, metrics: &QueueMetrics) {
        if !self.told_full {
            return;
        }
        let bytes = self.bytes - self.spare.bytes;
        if bytes < self.capacity / 10 * 8 {
            self.told_full = false;
            metrics.changed(Told::QueueHasRoom { bytes });
        }
    }

    fn log_full(&mut self, metrics: &QueueMetrics) {
        if !std::mem::replace(&mut self.told_full, true) {
            let when_full = written(self.when_full);
            metrics.changed(Told::QueueFull { bytes: self.bytes, when_full });
        }
    }

    /// Counts a batch as accepted.
    fn accept(counted: &mut Amount, record: &mut Record, metrics: &QueueMetrics) -> Amount {
        record.counted = true;
        let amount = Amount { events: record.events, bytes: record.lines.len() as u64 };
        counted.add(amount);
        metrics.accepted(record.events, amount.bytes, &record.levels);
        amount
    }

    /// Counts a batch that was not accepted as it came: for outputs that joined behind it as one that they do not get.
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
                cursor.passed.add(amount);
                cursor.start -= signed(amount.events);
                show_start(&cursor.output.metrics, cursor.start);
            }
        }
    }

    /// The disposition of a record that every required output that goes on has finished, as its sender is
    /// to hear it. One that has ended for good will never have it; and where the only output that
    /// was to get it has left, or is not required any more, no required one has.
    fn verdict(cursors: &Slab<CursorState>, record: &mut Record) -> Result<(), Refused> {
        let needed = cursors.iter().filter(|(_, cursor)| cursor.is_needed_for(record));
        let (gone, going): (Vec<_>, Vec<_>) = needed.partition(|(_, cursor)| cursor.gone);
        let is_missed = gone.iter().any(|(_, cursor)| cursor.outstanding(record).events > 0);
        match is_missed || (going.is_empty() && gone.is_empty()) {
            true => Err(Refused::Undelivered),
            false => Ok(()),
        }
    }

    /// Tells the sender of what every required output has finished. `false`: it is refused, and
    /// nobody has begun it, so that it was never here.
    fn answer(cursors: &Slab<CursorState>, record: &mut Record) -> bool {
        if let Some(waiting) = record.waiting.take() {
            let verdict = Self::verdict(cursors, record);
            // The sender may have gone: then nobody needs the answer.
            waiting.send(verdict).ok();
            return verdict.is_ok() || record.counted;
        }
        true
    }

    fn remove(&mut self, index: usize) -> Option<Record> {
        let record = self.records.remove(index)?;
        self.bytes -= record.weight();
        if index < self.spare.records {
            self.spare.take(&record);
        }
        Some(record)
    }

    /// Answers what every required output has finished, and lets go of what every output has.
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
            let Some(mut record) = self.records.pop_front() else { break };
            self.bytes -= record.weight();
            if self.spare.records == 0 {
                Self::answer(&self.cursors, &mut record);
            } else {
                self.spare.take(&record);
            }
        }
        while let Some(record) = self.records.get_mut(self.spare.records)
            && record.end() <= needed
        {
            if Self::answer(&self.cursors, record) {
                self.spare.records += 1;
                self.spare.bytes += record.weight();
            } else {
                self.remove(self.spare.records);
            }
        }
    }

    /// Some required output has ended for good: what it has not finished will not be delivered,
    /// whatever others do. Its senders hear it now, and what nobody has begun is theirs again.
    fn refuse_missed(&mut self) {
        let mut index = 0;
        while let Some(record) = self.records.get_mut(index) {
            index += 1;
            if record.waiting.is_none() || Self::verdict(&self.cursors, record).is_ok() {
                continue;
            }
            if let Some(waiting) = record.waiting.take() {
                // The sender may have gone: then nobody needs the answer.
                waiting.send(Err(Refused::Undelivered)).ok();
            }
            if !record.counted {
                index -= 1;
                self.remove(index);
            }
        }
    }

    /// Drops the oldest records until so many bytes are free: first those that only optional outputs need, then, with
    /// `drop_oldest`, those that no required output has on the wire. All or nothing.
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
        for index in chosen.into_iter().rev() {
            let is_spare = index < self.spare.records;
            let Some(mut record) = self.remove(index) else { continue };
            if let Some(waiting) = record.waiting.take() {
                // With `delivered` until just now. The sender has the batch still, and it is not
                // lost unless it was begun.
                waiting.send(Err(Refused::Undelivered)).ok();
                if !record.counted {
                    continue;
                }
            }
            let mut dropped = DropCount::default();
            for (_, cursor) in &mut self.cursors {
                let lost = cursor.lose(&mut record);
                dropped.lose(&cursor.output, lost);
            }
            // Every required output that goes on has got a spare record.
            if !is_spare {
                dropped.count(metrics);
            }
        }
        true
    }

    /// The lines of a claim that are still here.
    fn read(&mut self, claim: Claim, cursor: usize) -> Option<Batch> {
        let from = self.index_at(claim.start);
        let now = self.cursors[cursor].tells_origins.then(Instant::now);
        let mut batch: Option<Batch> = None;
        for record in self.records.range_mut(from..) {
            if !record.overlaps(claim) {
                break;
            }
            let (start, end) = (claim.start.max(record.first), claim.end.min(record.end()));
            let piece = record.slice(start, end);
            let batch = batch.get_or_insert_with(|| Batch {
                claim,
                events: 0,
                bytes: 0,
                pieces: Vec::new(),
                origins: Vec::new(),
            });
            batch.events += end - start;
            batch.bytes += piece.len() as u64;
            batch.pieces.push(piece);
            batch.origins.extend(now.map(|now| Origin {
                first: start,
                age: now.saturating_duration_since(record.accepted),
            }));
        }
        batch
    }
}

impl Queue {
    /// An empty queue, and a cursor for each of these outputs.
    #[must_use]
    pub fn new(
        config: &config::Queue,
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
            next: Position::START,
            cursors: Slab::new(),
            departed: Departed::default(),
            counted: Amount::default(),
            told_full: false,
            closed: false,
        };
        let shared = Shared { state: Mutex::new(state), metrics, progress: Notify::new() };
        let queue = Self { shared: Arc::new(shared) };
        queue.apply(config);
        let cursors = {
            let mut state = queue.shared.lock();
            outputs.iter().map(|output| queue.add(&mut state, output.clone())).collect()
        };
        (queue, cursors)
    }

    /// Takes over what can change at run time.
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

    /// A cursor at the end of the log: what was appended is before it, what will be is behind it.
    ///
    /// # Errors
    ///
    /// The name is taken, or the queue has ended.
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
            joined: state.next,
            start,
            gone: false,
            // The queue's own tests look at it always.
            tells_origins: cfg!(test),
            readable: Arc::clone(&readable),
        });
        Cursor { shared: Arc::clone(&self.shared), index, readable }
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
        // Of what only others needed, it may need some.
        state.spare = Spare::default();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// Whether a batch of so many bytes would find room now. A hint: [`Queue::append`] decides.
    ///
    /// # Errors
    ///
    /// As [`Queue::append`].
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        let needed = state.bytes - state.spare.bytes + bytes + BATCH_OVERHEAD;
        if state.when_full == WhenFull::Reject && needed > state.capacity {
            state.log_full(&self.shared.metrics);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Whether it was full lately: from the first batch without room until a fifth of it is free again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.lock().told_full
    }

    /// Takes a batch, whole or not at all.
    ///
    /// # Errors
    ///
    /// There is no room; nothing is stored then.
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
        let after = state.bytes + batch.lines.len() as u64 + BATCH_OVERHEAD;
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
            // `Synced` is for a queue on disk.
            Acknowledge::Queued | Acknowledge::Synced => {
                MemoryState::accept(&mut state.counted, &mut record, metrics);
                Ticket::stored()
            }
            Acknowledge::Delivered => {
                let (waiting, delivered) = oneshot::channel();
                record.waiting = Some(waiting);
                Ticket {
                    delivered: Delivered::Waits(delivered),
                    place: Some((Arc::clone(&self.shared), first)),
                }
            }
        };
        state.next += record.events;
        state.bytes += record.weight();
        state.records.push_back(record);
        for (_, cursor) in &state.cursors {
            cursor.readable.notify_one();
        }
        Ok(ticket)
    }

    /// `queue.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.shared.lock().capacity
    }

    /// Bytes held, as `queue.max_bytes` counts, and events held.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.bytes, state.records.iter().map(|record| record.events).sum())
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
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set(state.bytes as f64);
        metrics.held.set(state.records.iter().map(|record| record.events).sum::<u64>() as f64);
        for (_, cursor) in &state.cursors {
            state.backlog(cursor).show(&cursor.output.metrics);
        }
    }

    /// Returns once every cursor has finished everything.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn drained(&self) {
        loop {
            let progress = self.shared.progress.notified();
            if self.shared.lock().records.is_empty() {
                return;
            }
            progress.await;
        }
    }

    /// An output has ended for good: nothing waits for it any more. What it did not get is counted by
    /// [`Queue::abandon`], unless its sender is told that it was not delivered.
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for (_, cursor) in &mut state.cursors {
            cursor.gone |= cursor.output.name == name;
        }
        state.refuse_missed();
        state.free_finished();
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Takes nothing more, gives up what is left, counts it as lost, and says how many events each output did not get.
    #[must_use]
    pub fn abandon(&self) -> Vec<(String, u64)> {
        let mut state = self.shared.lock();
        state.closed = true;
        let counted = state.counted;
        state
            .cursors
            .iter_mut()
            .map(|(_, cursor)| {
                let lost = counted.events.saturating_sub(cursor.passed.events);
                cursor.output.metrics.lose(Loss::Undelivered, lost);
                cursor.passed = counted;
                (cursor.output.name.clone(), lost)
            })
            .collect()
    }
}

impl MemoryState {
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

/// What [`Queue::append`] gives for a batch it took. Dropped before [`Ticket::delivered`] has returned, a batch that no
/// output has begun is taken out again.
#[must_use]
pub struct Ticket {
    delivered: Delivered,
    place: Option<(Arc<Shared>, Position)>,
}

enum Delivered {
    Waits(oneshot::Receiver<Result<(), Refused>>),
    /// The answer, which stays the same however often somebody asks.
    Known(Result<(), Refused>),
}

impl Ticket {
    fn stored() -> Self {
        Self { delivered: Delivered::Known(Ok(())), place: None }
    }

    /// Returns at once, or with `delivered` once every required output has acknowledged or counted the
    /// batch.
    ///
    /// # Errors
    ///
    /// An output that it waits for will never have it. The batch is the sender's.
    pub async fn delivered(&mut self) -> Result<(), Refused> {
        let waits = match &mut self.delivered {
            Delivered::Known(known) => return *known,
            Delivered::Waits(waits) => waits,
        };
        // An error means that the queue is gone: no output will say anything any more.
        let answer = waits.await.unwrap_or(Err(Refused::Undelivered));
        self.delivered = Delivered::Known(answer);
        self.place = None;
        answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some((shared, first)) = self.place.take() else { return };
        let mut state = shared.lock();
        let index = state.index_at(first);
        if state.records.get(index).is_some_and(|record| record.first == first && !record.counted) {
            drop(state.remove(index));
            state.log_not_full(&shared.metrics);
            drop(state);
            shared.progress.notify_waiters();
        }
    }
}

/// One output's place in the log. Owned by its delivery loop.
pub struct Cursor {
    shared: Arc<Shared>,
    index: usize,
    readable: Arc<Notify>,
}

impl Cursor {
    /// Waits until there is something that was not claimed yet.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn readable(&self) {
        loop {
            if !self.is_at_end() {
                return;
            }
            self.readable.notified().await;
        }
    }

    /// Claims what comes next: whole batches as far as they fit, or a part of one that does not fit alone.
    #[must_use]
    pub fn next(&self, take: Take) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let read = state.cursors[self.index].claims.read;
        let first = state.index_at(read);
        let mut claim: Option<Claim> = None;
        let mut left = take;
        for record in state.records.range_mut(first..) {
            let start = read.max(record.first);
            let bytes = match start == record.first {
                true => record.lines.len() as u64,
                false => record.slice(start, record.end()).len() as u64,
            };
            let events = record.end() - start;
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
        state.cursors[self.index].claims.push(claim, ());
        state.read(claim, self.index)
    }

    /// The claim is final: acknowledged by the consumer, but for the events that `disposition` counts.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let from = state.index_at(claim.start);
        let cursor = &mut state.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim) else { return };
        entry.stage = Stage::Done;
        let mut amount = Amount { events: 0, bytes: 0 };
        for record in state.records.range_mut(from..) {
            if !record.overlaps(claim) {
                break;
            }
            let (start, end) = (claim.start.max(record.first), claim.end.min(record.end()));
            amount.events += end - start;
            amount.bytes += record.slice(start, end).len() as u64;
            cursor.output.metrics.delivery.record(record.accepted.elapsed().as_secs_f64());
        }
        disposition.count(amount.events, &cursor.output.metrics);
        cursor.passed.add(amount);
        cursor.claims.forget_done();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
    }

    /// The claim is not on the wire any more; it will be sent again.
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.cursors[self.index].claims.find(claim) {
            entry.stage = Stage::Released;
        }
    }

    /// Reads a released claim again, to send it. `None`: all of it was dropped meanwhile, and the claim is gone.
    #[must_use]
    pub fn redeliver(&self, claim: Claim) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let batch = state.read(claim, self.index);
        let cursor = &mut state.cursors[self.index];
        if let Some(entry) = cursor.claims.find(claim) {
            entry.stage = if batch.is_some() { Stage::OnWire } else { Stage::Dropped };
        }
        cursor.claims.forget_done();
        state.free_finished();
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        if batch.is_none() {
            // What was finished behind it may have been the last.
            self.shared.progress.notify_waiters();
        }
        batch
    }

    /// Cuts a claim of at least two events into two claims in the same stage.
    #[must_use]
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
        let events: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        let mut half = events / 2;
        if half == 0 {
            return None;
        }
        let mut middle = claim.start;
        for piece in pieces {
            let length = piece.end - piece.start;
            middle = piece.start + half.min(length);
            if half <= length {
                break;
            }
            half -= length;
        }
        state.cursors[self.index].claims.split(claim, middle, |()| ((), ()))
    }

    /// Cuts a claim into two claims in the same stage, of which the second begins at `middle`.
    #[must_use]
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        self.shared.lock().cursors[self.index].claims.split(claim, middle, |()| ((), ()))
    }

    /// Gives up every claim that is not finished: [`Cursor::next`] starts again at the first of them.
    ///
    /// Only for outputs that finish in order: nothing finished may lie behind an unfinished claim.
    pub fn rewind(&self) {
        self.shared.lock().cursors[self.index].claims.rewind();
    }

    /// Nothing finished lies behind an unfinished claim.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.shared.lock().cursors[self.index].claims.is_in_order()
    }

    /// The output is removed. What it has not finished is lost, and counted; says how many events.
    pub fn leave(self) -> u64 {
        self.remove(true)
    }

    /// It has not joined: what came meanwhile was never for it.
    pub fn leave_uncounted(self) {
        self.remove(false);
    }

    fn remove(self, counts: bool) -> u64 {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        // Senders that waited for it alone are answered, so that their batches count before its
        // share of them, or not at all.
        let cursor = &mut state.cursors[self.index];
        cursor.gone = true;
        cursor.output.required = false;
        state.free_finished();
        let cursor = state.cursors.remove(self.index);
        let backlog = state.counted.events.saturating_sub(cursor.passed.events);
        let accepted = state.counted.events;
        let lost = state.departed.remove(&cursor.output, cursor.start, backlog, counts, accepted);
        state.log_not_full(&self.shared.metrics);
        drop(guard);
        self.shared.progress.notify_waiters();
        lost
    }

    /// Whether batches say where their pieces are from.
    pub fn tell_origins(&self, tells: bool) {
        self.shared.lock().cursors[self.index].tells_origins = tells;
    }

    /// The first position that was never claimed.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.lock().cursors[self.index].claims.read
    }

    /// Everything before it is finished.
    #[must_use]
    pub fn watermark(&self) -> Position {
        self.shared.lock().cursors[self.index].claims.watermark()
    }

    /// Everything that was appended is claimed.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.index_at(state.cursors[self.index].claims.read) >= state.records.len()
    }
}

#[cfg(test)]
mod tests;
