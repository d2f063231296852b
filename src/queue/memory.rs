//! The queue in memory.
//!
//! One mutex guards the state; no critical section does more than bookkeeping and, where a batch is larger than an
//! output takes at once, a search for line ends. Nothing is held across an await.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Append;
use super::Backlog;
use super::Batch;
use super::Claim;
use super::Position;
use super::Refused;
use super::Take;
use super::claims::Claims;
use super::claims::Stage;
use crate::audit::LevelCounts;
use crate::config::Acknowledge;
use crate::config::BATCH_OVERHEAD;
use crate::config::WhenFull;
use crate::telemetry::OutputMetrics;
use crate::telemetry::QueueMetrics;

/// Every so many lines of a batch that is cut, where they start is remembered, so that cutting it to pieces does not
/// search it from its start each time.
const LINES_PER_MARK: usize = 64;

/// The log. Cheap to clone; all clones are the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    capacity: u64,
    when_full: WhenFull,
    acknowledge: Acknowledge,
    metrics: QueueMetrics,
    /// Told whenever a cursor finishes something: the drain waits on it.
    progress: Notify,
}

impl Shared {
    /// A panic while the lock was held is a bug that the panicking task has reported; the counts it left are the best
    /// there are.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not as soon as there is room, or a queue at its edge would fill the log.
    fn tell_room(&self, state: &mut State) {
        if state.told_full && state.bytes < self.capacity / 10 * 8 {
            state.told_full = false;
            tracing::info!(bytes = state.bytes, "queue below 80 %");
        }
    }

    fn tell_full(&self, state: &mut State) {
        if !std::mem::replace(&mut state.told_full, true) {
            tracing::warn!(bytes = state.bytes, when_full = ?self.when_full, "queue full");
        }
    }
}

#[derive(Default)]
struct State {
    records: VecDeque<Record>,
    /// As `queue.max_bytes` counts.
    bytes: u64,
    /// The number of the next event.
    next: Position,
    cursors: Vec<CursorState>,
    /// Events and bytes of lines that `event_total` has counted.
    counted: Amount,
    /// Whether the log has it as full.
    told_full: bool,
    /// What is left was counted as lost: what came now would not be.
    closed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    events: u64,
    bytes: u64,
}

/// One accepted batch.
struct Record {
    first: Position,
    events: u64,
    lines: Bytes,
    levels: LevelCounts,
    accepted: Instant,
    /// Whether `event_total` has it: at once, or with `delivered` when an output begins to send it.
    counted: bool,
    /// With `delivered`: told when every cursor has finished it.
    waiting: Option<oneshot::Sender<()>>,
    /// Offsets of every [`LINES_PER_MARK`]th line; made at the first cut.
    marks: Vec<usize>,
}

impl Record {
    fn end(&self) -> Position {
        self.first + self.events
    }

    fn weight(&self) -> u64 {
        self.lines.len() as u64 + BATCH_OVERHEAD
    }

    fn positions(&self) -> Range<Position> {
        self.first..self.end()
    }

    fn overlaps(&self, claim: Claim) -> bool {
        self.first < claim.end && claim.start < self.end()
    }

    /// Where the line of this event starts; for the end, the length.
    fn offset(&mut self, position: Position) -> usize {
        let Ok(line) = usize::try_from(position.saturating_sub(self.first)) else {
            return self.lines.len();
        };
        if line == 0 {
            return 0;
        }
        if position >= self.end() {
            return self.lines.len();
        }
        if self.marks.is_empty() {
            self.marks.push(0);
            let ends = memchr::memchr_iter(b'\n', &self.lines);
            self.marks
                .extend(ends.skip(LINES_PER_MARK - 1).step_by(LINES_PER_MARK).map(|end| end + 1));
        }
        let mark = self.marks.get(line / LINES_PER_MARK).copied().unwrap_or(self.lines.len());
        match line % LINES_PER_MARK {
            0 => mark,
            rest => memchr::memchr_iter(b'\n', &self.lines[mark..])
                .nth(rest - 1)
                .map_or(self.lines.len(), |end| mark + end + 1),
        }
    }

    /// Lines of `start..end`, cut to this record.
    fn slice(&mut self, start: Position, end: Position) -> Bytes {
        let (from, to) = (self.offset(start), self.offset(end));
        self.lines.slice(from..to)
    }

    /// Where to cut so that at most `take` comes behind `start`, but at least one event.
    fn cut(&mut self, start: Position, take: Take) -> Position {
        let from = self.offset(start);
        let mut end = start;
        for line_end in memchr::memchr_iter(b'\n', &self.lines[from..]) {
            let fits = (line_end as u64) < take.bytes && end - start < take.events;
            if !fits && end > start {
                break;
            }
            end += 1;
            if !fits {
                break;
            }
        }
        end.clamp(start + 1, self.end())
    }
}

struct CursorState {
    name: String,
    metrics: OutputMetrics,
    claims: Claims<()>,
    /// Of what is counted: finished, lost or dropped here.
    passed: Amount,
    /// Its output has ended for good.
    gone: bool,
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

    fn pass(&mut self, amount: Amount) {
        self.passed.events += amount.events;
        self.passed.bytes += amount.bytes;
    }
}

impl State {
    /// Index of the first record that ends behind a position.
    fn index_at(&self, position: Position) -> usize {
        self.records.partition_point(|record| record.end() <= position)
    }

    fn count(counted: &mut Amount, record: &mut Record, metrics: &QueueMetrics) {
        if !record.counted {
            record.counted = true;
            counted.events += record.events;
            counted.bytes += record.lines.len() as u64;
            metrics.accepted(record.events, &record.levels);
        }
    }

    fn remove(&mut self, index: usize) -> Option<Record> {
        let record = self.records.remove(index)?;
        self.bytes -= record.weight();
        Some(record)
    }

    /// Lets go of what every cursor has finished.
    fn free(&mut self) {
        let waiting = self.cursors.iter().filter(|cursor| !cursor.gone);
        let watermark = waiting.map(|cursor| cursor.claims.watermark()).min().unwrap_or(self.next);
        while self.records.front().is_some_and(|record| record.end() <= watermark) {
            if let Some(waiting) = self.remove(0).and_then(|record| record.waiting) {
                // The sender may have gone: then nobody needs the answer.
                waiting.send(()).ok();
            }
        }
    }

    /// Drops the oldest records that no output has on the wire until `room` bytes are free; all or nothing.
    fn drop_oldest(&mut self, needed: u64, metrics: &QueueMetrics) -> bool {
        let mut chosen = Vec::new();
        let mut gained = 0;
        for (index, record) in self.records.iter().enumerate() {
            if gained >= needed {
                break;
            }
            if !self.cursors.iter().any(|cursor| cursor.claims.has_on_wire(record.positions())) {
                gained += record.weight();
                chosen.push(index);
            }
        }
        if gained < needed {
            return false;
        }
        for index in chosen.into_iter().rev() {
            let Some(mut record) = self.remove(index) else { continue };
            let mut missed = 0;
            for cursor in &mut self.cursors {
                let amount = cursor.outstanding(&mut record);
                cursor.pass(amount);
                cursor.metrics.lost.increment(amount.events);
                missed = amount.events.max(missed);
            }
            // Not those that every output has: they waited only for what is before them.
            metrics.dropped_oldest.increment(missed);
        }
        true
    }

    /// The lines of a claim that are still here.
    fn read(&mut self, claim: Claim) -> Option<Batch> {
        let from = self.index_at(claim.start);
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
            });
            batch.events += end - start;
            batch.bytes += piece.len() as u64;
            batch.pieces.push(piece);
        }
        batch
    }
}

impl Queue {
    /// An empty queue of so many bytes. Outputs join before the first append.
    #[must_use]
    pub fn new(config: &crate::config::Queue, metrics: QueueMetrics) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
        metrics.capacity.set(config.max_bytes as f64);
        metrics.writable.set(1.0);
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                capacity: config.max_bytes,
                when_full: config.when_full,
                acknowledge: config.acknowledge,
                metrics,
                progress: Notify::new(),
            }),
        }
    }

    /// A cursor at the end of the log.
    #[must_use]
    pub fn join(&self, name: &str, metrics: OutputMetrics) -> Cursor {
        let mut state = self.shared.lock();
        let readable = Arc::new(Notify::new());
        let read = state.next;
        let passed = state.counted;
        state.cursors.push(CursorState {
            name: name.to_owned(),
            metrics,
            claims: Claims::at(read),
            passed,
            gone: false,
            readable: Arc::clone(&readable),
        });
        Cursor { shared: Arc::clone(&self.shared), index: state.cursors.len() - 1, readable }
    }

    /// Whether a batch of so many bytes would find room now. A hint: [`Queue::append`] decides.
    ///
    /// # Errors
    ///
    /// As [`Queue::append`].
    pub fn admits(&self, bytes: u64) -> Result<(), Refused> {
        if self.shared.when_full != WhenFull::Reject {
            return Ok(());
        }
        let mut state = self.shared.lock();
        if state.bytes + bytes + BATCH_OVERHEAD > self.shared.capacity {
            self.shared.tell_full(&mut state);
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
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Refused::Full);
        }
        let metrics = &self.shared.metrics;
        let needed = batch.lines.len() as u64 + BATCH_OVERHEAD;
        let after = state.bytes + needed;
        if after > self.shared.capacity {
            self.shared.tell_full(&mut state);
            match self.shared.when_full {
                WhenFull::Reject => return Err(Refused::Full),
                WhenFull::DropNewest => {
                    metrics.accepted(batch.events, &batch.levels);
                    metrics.errors.increment(batch.events);
                    metrics.dropped_newest.increment(batch.events);
                    return Ok(Ticket::stored());
                }
                WhenFull::DropOldest if needed > self.shared.capacity => return Err(Refused::Full),
                WhenFull::DropOldest => {
                    if !state.drop_oldest(after - self.shared.capacity, metrics) {
                        return Err(Refused::Full);
                    }
                }
            }
        }
        let first = state.next;
        let mut record = Record {
            first,
            events: batch.events,
            lines: batch.lines,
            levels: batch.levels,
            accepted: Instant::now(),
            counted: false,
            waiting: None,
            marks: Vec::new(),
        };
        let ticket = match self.shared.acknowledge {
            // `Synced` is for a queue on disk.
            Acknowledge::Queued | Acknowledge::Synced => {
                State::count(&mut state.counted, &mut record, metrics);
                Ticket::stored()
            }
            Acknowledge::Delivered => {
                let (waiting, delivered) = oneshot::channel();
                record.waiting = Some(waiting);
                Ticket {
                    delivered: Some(delivered),
                    place: Some((Arc::clone(&self.shared), first)),
                }
            }
        };
        state.next += record.events;
        state.bytes += record.weight();
        state.records.push_back(record);
        for cursor in &state.cursors {
            cursor.readable.notify_one();
        }
        Ok(ticket)
    }

    /// `queue.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.shared.capacity
    }

    /// Bytes held, as `queue.max_bytes` counts, and events held.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.bytes, state.records.iter().map(|record| record.events).sum())
    }

    /// Each output's name and what it has not finished, in the order of joining.
    #[must_use]
    pub fn backlogs(&self) -> Vec<(String, Backlog)> {
        let state = self.shared.lock();
        state.cursors.iter().map(|cursor| (cursor.name.clone(), state.backlog(cursor))).collect()
    }

    /// Sets every gauge that is read on demand.
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and counts are below 2^52")]
    pub fn observe(&self) {
        let state = self.shared.lock();
        let metrics = &self.shared.metrics;
        metrics.bytes.set(state.bytes as f64);
        metrics.held.set(state.records.iter().map(|record| record.events).sum::<u64>() as f64);
        for cursor in &state.cursors {
            state.backlog(cursor).show(&cursor.metrics);
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
    /// [`Queue::abandon`].
    pub fn give_up(&self, name: &str) {
        let mut state = self.shared.lock();
        for cursor in state.cursors.iter_mut().filter(|cursor| cursor.name == name) {
            cursor.gone = true;
        }
        state.free();
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
            .map(|cursor| {
                let lost = counted.events.saturating_sub(cursor.passed.events);
                cursor.metrics.lost.increment(lost);
                cursor.passed = counted;
                (cursor.name.clone(), lost)
            })
            .collect()
    }
}

impl State {
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
    delivered: Option<oneshot::Receiver<()>>,
    place: Option<(Arc<Shared>, Position)>,
}

impl Ticket {
    fn stored() -> Self {
        Self { delivered: None, place: None }
    }

    /// Returns at once, or with `delivered` once every output has acknowledged or counted the batch.
    pub async fn delivered(&mut self) {
        if let Some(delivered) = &mut self.delivered {
            // An error means that the queue is gone, and with it whoever could act on the difference.
            delivered.await.ok();
            self.place = None;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some((shared, first)) = self.place.take() else { return };
        let mut state = shared.lock();
        let index = state.index_at(first);
        if state.records.get(index).is_some_and(|record| record.first == first && !record.counted) {
            drop(state.remove(index));
            shared.tell_room(&mut state);
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
            {
                let state = self.shared.lock();
                if state.index_at(state.cursors[self.index].claims.read) < state.records.len() {
                    return;
                }
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
            State::count(&mut state.counted, record, &self.shared.metrics);
            claim.get_or_insert(Claim { start, end }).end = end;
            if !whole {
                break;
            }
            left = Take { bytes: left.bytes - bytes, events: left.events - events };
        }
        let claim = claim?;
        state.cursors[self.index].claims.push(claim, ());
        state.read(claim)
    }

    /// The claim is final: acknowledged by the consumer, `lost` of its events apart, which it has refused for good.
    pub fn finish(&self, claim: Claim, lost: u64) {
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
            cursor.metrics.delivery.record(record.accepted.elapsed().as_secs_f64());
        }
        let lost = lost.min(amount.events);
        cursor.metrics.events.increment(amount.events - lost);
        cursor.metrics.lost.increment(lost);
        cursor.pass(amount);
        cursor.claims.forget_done();
        state.free();
        self.shared.tell_room(state);
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
    pub fn retake(&self, claim: Claim) -> Option<Batch> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let batch = state.read(claim);
        let cursor = &mut state.cursors[self.index];
        if let Some(entry) = cursor.claims.find(claim) {
            entry.stage = if batch.is_some() { Stage::OnWire } else { Stage::Done };
        }
        cursor.claims.forget_done();
        state.free();
        self.shared.tell_room(state);
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

    /// Gives up every claim that is not finished: [`Cursor::next`] starts again at the first of them.
    ///
    /// Only for outputs that finish in order: nothing finished may lie behind an unfinished claim.
    pub fn rewind(&self) {
        self.shared.lock().cursors[self.index].claims.rewind();
    }

    /// The first position that was never claimed.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.lock().cursors[self.index].claims.read
    }
}

#[cfg(test)]
mod tests;
