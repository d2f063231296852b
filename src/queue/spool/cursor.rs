//! One output's place in the durable log: what it has claimed, and what was read ahead for it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Before;
use super::LogState;
use super::Shared;
use super::SpoolState;
use super::TailRecord;
use super::load;
use super::load::Job;
use super::load::Loaded;
use super::load::Piece;
use super::load::Spot;
use super::now;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Disposition;
use crate::queue::Origin;
use crate::queue::Output;
use crate::queue::Position;
use crate::queue::Redelivery;
use crate::queue::Take;
use crate::queue::claims::Claims;
use crate::queue::claims::Stage;
use crate::queue::cursors;
use crate::queue::cursors::LogOffset;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::RECORD_HEADER;
use crate::telemetry::Loss;

/// The cursors are written when so much has become final, or after a second.
pub(super) const UNSAVED_MAX: u64 = 64 << 20;

/// What is read at once for a claim, however small.
const FETCH_MIN: u64 = 64 << 10;

/// Between two attempts to read from a file that is there and can't be read.
const PAUSE: Duration = Duration::from_secs(1);

/// What can't be read for so long is lost. A disk that is away for a moment costs no events.
const PATIENCE: Duration = Duration::from_secs(30);

/// The least time between two lines that say so.
const QUIET: Duration = Duration::from_secs(10);

/// What is noted with a claim.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    /// Bytes of its lines.
    bytes: u64,
    first_byte: u64,
    /// When its first event was received.
    received: u64,
    /// Where it can be read again.
    spot: Spot,
}

pub(super) struct CursorState {
    pub(super) output: Output,
    /// No claim reaches into a second segment, and none has a gap.
    pub(super) claims: Claims<Note>,
    /// The byte number where what was not claimed begins.
    pub(super) read_byte: u64,
    /// What comes next, as far as it is in memory.
    pieces: VecDeque<Piece>,
    /// Where reading goes on behind the pieces, unless that is the end of a segment; `None`: to be found by position.
    pub(super) spot: Option<Spot>,
    /// What is loaded for an earlier one is of no use.
    epoch: u64,
    /// A released claim that is to be read again.
    wanted: Option<Claim>,
    /// It was.
    fetched: Option<Fetched>,
    /// What was accepted before it was not for this output, as far as is known.
    pub(super) since: Position,
    /// Missing events that were counted as lost, from the watermark on.
    counted: Vec<Gap>,
    /// `output_start_events`.
    pub(super) start: i64,
    /// Its output has ended for good.
    pub(super) gone: bool,
    /// Batches say where their pieces are from.
    tells_origins: bool,
    pub(super) readable: Arc<Notify>,
    /// When the event at `read` was received, or one before it.
    pub(super) received: u64,
}

/// What was read again of a claim.
struct Fetched {
    claim: Claim,
    /// Not empty, and no gaps.
    pieces: Vec<Piece>,
}

/// A gap: positions, and bytes of the lines that were there.
#[derive(Debug, Clone, Copy)]
struct Gap {
    start: Position,
    end: Position,
    bytes: u64,
}

impl CursorState {
    pub(super) fn new(output: Output, at: LogOffset) -> Self {
        Self {
            output,
            claims: Claims::at(at.position),
            read_byte: at.byte,
            pieces: VecDeque::new(),
            spot: None,
            epoch: 0,
            wanted: None,
            fetched: None,
            since: at.position,
            counted: Vec::new(),
            start: 0,
            gone: false,
            // The queue's own tests look at it always.
            tells_origins: cfg!(test),
            readable: Arc::new(Notify::new()),
            received: now(),
        }
    }

    /// What is claimed and not finished.
    pub(super) fn open(&self) -> (u64, u64) {
        let open = self.claims.iter().filter(|entry| entry.stage.is_open());
        open.fold((0, 0), |(events, bytes), entry| {
            (events + left(entry.claim, &self.counted), bytes + entry.note.bytes)
        })
    }

    /// Events and bytes from a position on that are missing and counted: after a rewind there may be some.
    pub(super) fn counted_from(&self, position: Position) -> (u64, u64) {
        let behind = self.counted.iter().filter(|gap| gap.end > position);
        behind.fold((0, 0), |(events, bytes), gap| {
            (events + (gap.end - gap.start.max(position)), bytes + gap.bytes)
        })
    }

    /// When the oldest event that is not finished was received, if that is known.
    pub(super) fn oldest(&self) -> Option<u64> {
        let claimed = self.claims.iter().next().map(|entry| entry.note.received);
        claimed.or_else(|| self.pieces.front().map(|piece| piece.received))
    }

    /// What the cursors file is to say.
    pub(super) fn saved(&self) -> LogOffset {
        let byte = self.claims.iter().next().map_or(self.read_byte, |entry| entry.note.first_byte);
        LogOffset { position: self.claims.watermark(), byte }
    }

    /// Nothing is on the wire, or nobody will say what became of it.
    pub(super) fn is_idle(&self) -> bool {
        self.gone || self.claims.iter().all(|entry| entry.stage != Stage::OnWire)
    }

    /// Counts what of a dropped segment this output had not got. What of that is on the wire counts no more there.
    pub(super) fn drop_segment(&mut self, segment: &super::Segment) -> u64 {
        let dropped = segment.positions();
        if self.claims.watermark() >= dropped.end {
            return 0;
        }
        self.forget_pieces_of(dropped.clone());
        // What is being read may be of it.
        self.epoch += 1;
        let read = self.claims.read;
        let mut missed = dropped.end.saturating_since(dropped.start.max(read));
        missed =
            missed.saturating_sub(overlap(&self.counted, dropped.start.max(read)..dropped.end));
        for entry in self.claims.overlapping_mut(dropped.clone()) {
            if entry.stage.is_open() {
                entry.stage = Stage::Dropped;
                missed += left(entry.claim, &self.counted);
            }
        }
        self.claims.forget_done();
        // What was missing here is of the hole now. No gap is in two segments.
        self.counted.retain(|gap| overlap(&[*gap], dropped.clone()) == 0);
        if dropped.contains(&read) {
            self.claims.read = dropped.end;
            self.read_byte = segment.end.byte;
            self.pieces.clear();
            self.spot = None;
        }
        missed
    }

    /// Lets go of what was read ahead of these positions, and of all behind it.
    pub(super) fn forget_pieces_of(&mut self, positions: Range<Position>) {
        let holds = |piece: &Piece| piece.first < positions.end && positions.start < piece.end();
        if let Some(index) = self.pieces.iter().position(holds) {
            self.spot = self.pieces.get(index).map(|piece| piece.spot);
            self.pieces.truncate(index);
            self.epoch += 1;
        }
    }

    /// Where the pieces end.
    fn ahead(&self) -> LogOffset {
        let read = LogOffset { position: self.claims.read, byte: self.read_byte };
        self.pieces.back().map_or(read, |piece| LogOffset {
            position: piece.end(),
            byte: piece.first_byte + piece.bytes(),
        })
    }

    fn ahead_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.lines.len() as u64).sum()
    }

    /// Passes missing events: they are lost for this output, unless that was counted before.
    fn pass_gap(&mut self, gap: &Piece, dropped: u64) {
        self.count_missing(gap, dropped);
        self.claims.read = gap.end();
        self.read_byte = gap.first_byte + gap.bytes();
        self.forget_counted();
    }

    /// Missing events are lost for this output, unless that was counted before, or all outputs were told of `dropped`.
    fn count_missing(&mut self, gap: &Piece, dropped: u64) {
        let known = dropped + overlap(&self.counted, gap.first..gap.end());
        let lost = gap.events.saturating_sub(known);
        if lost == 0 {
            return;
        }
        self.output.metrics.lost.increment(lost);
        self.output.metrics.losses.add(Loss::Missing, lost, Some(&gap.first.to_string()));
        self.counted.push(Gap { start: gap.first, end: gap.end(), bytes: gap.bytes() });
    }

    fn forget_counted(&mut self) {
        let watermark = self.claims.watermark();
        self.counted.retain(|gap| gap.end > watermark);
    }

    fn rewind(&mut self) {
        let Some(note) = self.claims.rewind() else { return };
        self.read_byte = note.first_byte;
        self.received = note.received;
        self.spot = Some(note.spot);
        self.pieces.clear();
        self.epoch += 1;
    }
}

/// How long ago something was received, in milliseconds since 1970 both.
pub(super) fn age(received: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(received))
}

fn origin(piece: &Piece, now: u64) -> Origin {
    Origin { first: piece.first, age: age(piece.received, now) }
}

/// The pieces that there are of a claim.
fn batch_of(claim: Claim, parts: impl Iterator<Item = Piece>, tells_origins: bool) -> Batch {
    let now = tells_origins.then(now);
    let (pieces, origins) = (Vec::new(), Vec::new());
    let mut batch = Batch { claim, events: 0, bytes: 0, pieces, origins };
    for part in parts {
        batch.events += part.events;
        batch.bytes += part.bytes();
        batch.origins.extend(now.map(|now| origin(&part, now)));
        batch.pieces.push(part.lines);
    }
    batch
}

/// How many of these positions are in gaps.
fn overlap(gaps: &[Gap], positions: Range<Position>) -> u64 {
    let overlap =
        |gap: &Gap| gap.end.min(positions.end).saturating_since(gap.start.max(positions.start));
    gaps.iter().map(overlap).sum()
}

/// The events of a claim without those that were found missing when it was read again.
fn left(claim: Claim, gaps: &[Gap]) -> u64 {
    claim.end - claim.start - overlap(gaps, claim.start..claim.end)
}

impl SpoolState {
    /// Claims what comes next, as far as it is in memory.
    fn next(&mut self, index: usize, take: Take) -> Option<Batch> {
        let Self { log, writing } = self;
        let mut taken: Option<(Claim, Note)> = None;
        let now = log.cursors[index].tells_origins.then(now);
        let (mut pieces, mut origins, mut left) = (Vec::new(), Vec::new(), take);
        loop {
            let cursor = &mut log.cursors[index];
            let Some(piece) = cursor.pieces.front_mut() else {
                if log.refill(index) {
                    continue;
                }
                break;
            };
            if piece.is_gap() {
                if taken.is_some() {
                    break;
                }
                let Some(gap) = cursor.pieces.pop_front() else { break };
                let dropped = log.dropped_in(gap.first..gap.end());
                log.cursors[index].pass_gap(&gap, dropped);
                writing.cursors_dirty = true;
                continue;
            }
            let elsewhere = taken.is_some_and(|(_, note)| note.spot.segment != piece.spot.segment);
            let whole = piece.bytes() <= left.bytes && piece.events <= left.events;
            if elsewhere || (!whole && taken.is_some()) {
                break;
            }
            let part = if whole { cursor.pieces.pop_front() } else { Some(piece.cut(take)) };
            let Some(part) = part else { break };
            left = Take {
                bytes: left.bytes.saturating_sub(part.bytes()),
                events: left.events.saturating_sub(part.events),
            };
            let (claim, note) = taken.get_or_insert((
                Claim { start: part.first, end: part.first },
                Note {
                    bytes: 0,
                    first_byte: part.first_byte,
                    received: part.received,
                    spot: part.spot,
                },
            ));
            claim.end = part.end();
            note.bytes += part.bytes();
            cursor.received = part.received;
            cursor.claims.read = claim.end;
            cursor.read_byte = note.first_byte + note.bytes;
            origins.extend(now.map(|now| origin(&part, now)));
            pieces.push(part.lines);
            if !whole {
                break;
            }
        }
        let (claim, note) = taken?;
        log.cursors[index].claims.push(claim, note);
        Some(Batch { claim, events: claim.end - claim.start, bytes: note.bytes, pieces, origins })
    }
}

impl LogState {
    /// Brings what comes next from the tail, if it is there.
    fn refill(&mut self, index: usize) -> bool {
        let ahead = self.cursors[index].ahead();
        let Some(record) = self.tail_at(ahead.position).and_then(|at| self.tail.get(at)) else {
            return false;
        };
        let piece = load::piece_of(record, ahead.position..record.end());
        let behind = Spot {
            segment: record.segment,
            offset: record.offset + RECORD_HEADER + record.lines.len() as u64,
            line: 0,
            position: record.end(),
        };
        let cursor = &mut self.cursors[index];
        cursor.spot = Some(behind);
        cursor.pieces.push_back(piece);
        true
    }

    /// How many of these positions were dropped, and counted for every output.
    fn dropped_in(&self, positions: Range<Position>) -> u64 {
        cursors::dropped_in(&self.holes, &positions)
    }

    /// A claim's lines, if all of them are in memory.
    fn in_tail(&self, claim: Claim, index: usize) -> Option<Batch> {
        let first = self.tail_at(claim.start)?;
        let records = self.tail.range(first..);
        let records = records.take_while(|record| record.first.position < claim.end);
        let piece = |record: &TailRecord| {
            load::piece_of(record, claim.start.max(record.first.position)..claim.end)
        };
        Some(batch_of(claim, records.map(piece), self.cursors[index].tells_origins))
    }

    /// What has to be read from a file for a cursor to go on.
    fn read_plan(&self, index: usize) -> ReadPlan {
        if self.draining {
            return ReadPlan::Nothing;
        }
        let cursor = &self.cursors[index];
        if let Some(claim) = cursor.wanted {
            let entry = cursor.claims.overlapping(claim.start..claim.end).next();
            let entry = entry.filter(|entry| entry.stage.is_open());
            let fetched = cursor.fetched.as_ref().is_some_and(|fetched| fetched.claim == claim);
            return match entry {
                Some(entry) if !fetched && self.tail_at(claim.start).is_none() => {
                    let chunk = self.chunk.min(entry.note.bytes.max(FETCH_MIN));
                    self.job(cursor.epoch, entry.note.spot, claim.start, Some(claim.end), chunk)
                }
                Some(_) | None => ReadPlan::Ready,
            };
        }
        if !cursor.pieces.is_empty() {
            return ReadPlan::Ready;
        }
        self.read_on(index)
    }

    /// What has to be read from a file behind what a cursor has in memory.
    fn read_on(&self, index: usize) -> ReadPlan {
        let cursor = &self.cursors[index];
        let ahead = cursor.ahead().position;
        if ahead >= self.end.position {
            return ReadPlan::Nothing;
        }
        if self.tail_at(ahead).is_some() {
            return ReadPlan::Ready;
        }
        let segment = self.segments.get(self.segment_at(ahead));
        // Behind the last segment nothing is there to be read, up to the end.
        let first = segment.map_or(self.end.position, |segment| segment.first.position);
        let begin = Spot { segment: first, offset: FIRST_RECORD, line: 0, position: first };
        let spot = cursor.spot.filter(|spot| spot.segment == first).unwrap_or(begin);
        self.job(cursor.epoch, spot, ahead, None, self.chunk)
    }

    fn job(
        &self,
        epoch: u64,
        spot: Spot,
        from: Position,
        to: Option<Position>,
        chunk: u64,
    ) -> ReadPlan {
        let index = self.segments.partition_point(|segment| segment.first.position < spot.segment);
        let segment =
            self.segments.get(index).filter(|segment| segment.first.position == spot.segment);
        ReadPlan::Load(match segment {
            Some(segment) => Job {
                epoch,
                spot,
                from,
                to,
                chunk,
                first: segment.first,
                end: segment.end,
                offset: segment.offset,
                known: segment.damaged.clone(),
                patient: true,
            },
            // It is gone: all up to the next one is missing.
            None => {
                let next = self.segments.get(self.segment_at(from));
                let end = next.map_or(self.end, |segment| segment.first);
                let known = Default::default();
                let first = end;
                Job { epoch, spot, from, to, chunk, first, end, offset: 0, known, patient: true }
            }
        })
    }
}

/// What a cursor needs to go on.
enum ReadPlan {
    /// It can.
    Ready,
    /// There is nothing yet.
    Nothing,
    /// A file has to be read.
    Load(Job),
}

impl Shared {
    /// Takes in what was read.
    fn apply(&self, index: usize, epoch: u64, loaded: Loaded) {
        let mut state = self.lock();
        for damage in &loaded.damages {
            let at = state.log.segments.partition_point(|it| it.first.position < loaded.segment);
            let segment =
                state.log.segments.get_mut(at).filter(|it| it.first.position == loaded.segment);
            if segment.is_some_and(|segment| segment.damaged.insert(damage.bytes.start)) {
                self.metrics.corrupt.increment(1);
            }
        }
        let cursor = &mut state.log.cursors[index];
        if cursor.epoch != epoch {
            return;
        }
        match loaded.to {
            Some(end) => {
                // The claim may have been split meanwhile: then only a part of it is wanted now.
                let read = Claim { start: loaded.from, end };
                if let Some(claim) = cursor.wanted.filter(|claim| *claim == read) {
                    self.fetched(&mut state, index, claim, &loaded);
                }
            }
            None => {
                let fits = loaded
                    .pieces
                    .first()
                    .is_some_and(|piece| piece.first == cursor.ahead().position);
                if fits {
                    cursor.spot = loaded.next;
                    cursor.pieces.extend(loaded.pieces);
                }
            }
        }
    }

    /// A released claim was read again. What is missing of it by now is lost, all else is sent.
    fn fetched(&self, state: &mut SpoolState, index: usize, claim: Claim, loaded: &Loaded) {
        let cursor = &mut state.log.cursors[index];
        let pieces: Vec<_> =
            loaded.pieces.iter().filter(|piece| !piece.is_gap()).cloned().collect();
        cursor.fetched = (!pieces.is_empty()).then_some(Fetched { claim, pieces });
        if !cursor.claims.find(claim).is_some_and(|entry| entry.stage.is_open()) {
            return;
        }
        for gap in loaded.pieces.iter().filter(|piece| piece.is_gap()) {
            cursor.count_missing(gap, 0);
        }
        if cursor.fetched.is_none() {
            cursor.wanted = None;
            if let Some(entry) = cursor.claims.find(claim) {
                entry.stage = Stage::Dropped;
            }
            self.settled(state, index);
        }
    }

    /// After something of a cursor is done.
    fn settled(&self, state: &mut SpoolState, index: usize) {
        let cursor = &mut state.log.cursors[index];
        cursor.claims.forget_done();
        cursor.forget_counted();
        let was_dirty = std::mem::replace(&mut state.writing.cursors_dirty, true);
        if !was_dirty || state.writing.unsaved >= UNSAVED_MAX || state.can_reclaim() {
            self.work.notify_one();
        }
        self.log_not_full(state);
        self.progress.notify_waiters();
    }
}

/// One output's place in the log. Owned by its delivery loop.
pub struct Cursor {
    shared: Arc<Shared>,
    index: usize,
    readable: Arc<Notify>,
    /// What is being read for it. A thread that hangs in a dead disk is left behind at the end.
    loading: Option<(u64, JoinHandle<std::io::Result<Loaded>>)>,
    /// Since when that has failed.
    failing: Option<Instant>,
    /// When the log was told of a failure last.
    told: Option<Instant>,
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let readable = Arc::clone(&shared.lock().log.cursors[index].readable);
        Self { shared, index, readable, loading: None, failing: None, told: None }
    }

    /// Waits until [`Cursor::next`], or the [`Cursor::redeliver`] that was asked for last, has something to say.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn readable(&mut self) {
        loop {
            match self.read_plan() {
                ReadPlan::Ready => return,
                ReadPlan::Nothing => self.readable.notified().await,
                ReadPlan::Load(job) => {
                    self.load(job);
                    self.loaded().await;
                }
            }
        }
    }

    fn read_plan(&self) -> ReadPlan {
        self.shared.lock().log.read_plan(self.index)
    }

    fn load(&mut self, mut job: Job) {
        if self.loading.is_none() {
            job.patient = self.failing.is_none_or(|since| since.elapsed() < PATIENCE);
            let (epoch, shared) = (job.epoch, Arc::clone(&self.shared));
            let loading = tokio::task::spawn_blocking(move || shared.read(&job));
            self.loading = Some((epoch, loading));
        }
    }

    async fn loaded(&mut self) {
        let Some((epoch, loading)) = &mut self.loading else { return };
        let (epoch, loaded) = (*epoch, loading.await);
        self.loading = None;
        match loaded {
            Ok(Ok(loaded)) => {
                self.failing = None;
                self.shared.apply(self.index, epoch, loaded);
            }
            Ok(Err(error)) => {
                if self.failing.is_none() && self.may_tell() {
                    let output = self.shared.lock().log.cursors[self.index].output.name.clone();
                    tracing::error!(output, %error, "a segment of the queue can't be read, trying again for half a minute");
                }
                self.failing.get_or_insert_with(Instant::now);
                tokio::time::sleep(PAUSE).await;
            }
            Err(panic) => {
                if self.may_tell() {
                    tracing::error!(%panic, "a file of the queue could not be read, trying again");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Whether the log may have a line about a failure: a disk that fails now and then must not
    /// fill it.
    fn may_tell(&mut self) -> bool {
        let may = self.told.is_none_or(|told| told.elapsed() >= QUIET);
        if may {
            self.told = Some(Instant::now());
        }
        may
    }

    /// Claims what comes next, as far as it is in memory: whole batches as far as they fit, or a part of one that does not
    /// fit alone. `None` also where it has to be read first: [`Cursor::readable`] does.
    #[must_use]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        let (batch, ahead) = {
            let mut state = self.shared.lock();
            if state.log.draining {
                return None;
            }
            let cursor = &mut state.log.cursors[self.index];
            (cursor.wanted, cursor.fetched) = (None, None);
            let was_dirty = state.writing.cursors_dirty;
            let batch = state.next(self.index, take);
            if state.writing.cursors_dirty && !was_dirty {
                self.shared.work.notify_one();
            }
            let low = state.log.cursors[self.index].ahead_bytes() < state.log.chunk / 2;
            let ahead = low.then(|| state.log.read_on(self.index));
            (batch, ahead)
        };
        if let Some(ReadPlan::Load(job)) = ahead
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.load(job);
        }
        batch
    }

    /// The claim is final: acknowledged by the consumer, but for the events that `disposition` counts.
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        let mut state = self.shared.lock();
        let cursor = &mut state.log.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            return;
        };
        entry.stage = Stage::Done;
        let (note, events) = (entry.note, left(claim, &cursor.counted));
        disposition.count(events, &cursor.output.metrics);
        let took = age(note.received, now());
        cursor.output.metrics.delivery.record(took.as_secs_f64());
        state.writing.unsaved += note.bytes;
        self.shared.settled(&mut state, self.index);
    }

    /// The claim is not on the wire any more; it will be sent again.
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.log.cursors[self.index].claims.find(claim) {
            if entry.stage == Stage::OnWire {
                entry.stage = Stage::Released;
            }
            self.shared.progress.notify_waiters();
        }
    }

    /// Takes a released claim again, to send it.
    #[must_use]
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let mut state = self.shared.lock();
        if state.log.draining {
            return Redelivery::NotYet;
        }
        let from_tail = state.log.in_tail(claim, self.index);
        let cursor = &mut state.log.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            return Redelivery::Gone;
        };
        let fetched = cursor.fetched.take().filter(|fetched| fetched.claim == claim);
        let tells = cursor.tells_origins;
        let fetched = fetched.map(|fetched| batch_of(claim, fetched.pieces.into_iter(), tells));
        let Some(batch) = from_tail.or(fetched) else {
            cursor.wanted = Some(claim);
            return Redelivery::NotYet;
        };
        entry.stage = Stage::OnWire;
        cursor.wanted = None;
        Redelivery::Batch(batch)
    }

    /// Takes a released claim again without its lines; `false` where it was dropped meanwhile.
    #[must_use]
    pub fn take_back(&self, claim: Claim) -> bool {
        let mut state = self.shared.lock();
        let claims = &mut state.log.cursors[self.index].claims;
        let Some(entry) = claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            return false;
        };
        entry.stage = Stage::OnWire;
        true
    }

    /// Cuts a claim of at least two events into two claims in the same stage.
    #[must_use]
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        self.split_at(claim, claim.start + (claim.end - claim.start) / 2)
    }

    /// Cuts a claim into two claims in the same stage, of which the second begins at `middle`.
    #[must_use]
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        let mut state = self.shared.lock();
        state.log.cursors[self.index].claims.split(claim, middle, |note| {
            // Where in its bytes the middle is, is only known when it is read: the sum is right.
            let (events, of) =
                (u128::from(middle - claim.start), u128::from(claim.end - claim.start));
            let bytes = u64::try_from(u128::from(note.bytes) * events / of).unwrap_or(note.bytes);
            let right =
                Note { bytes: note.bytes - bytes, first_byte: note.first_byte + bytes, ..note };
            (Note { bytes, ..note }, right)
        })
    }

    /// Gives up every claim that is not finished: [`Cursor::next`] starts again at the first of them.
    ///
    /// Only where [`Cursor::is_in_order`].
    pub fn rewind(&mut self) {
        let mut state = self.shared.lock();
        state.log.cursors[self.index].rewind();
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// Nothing finished lies behind an unfinished claim.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.shared.lock().log.cursors[self.index].claims.is_in_order()
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
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.lock();
        let state = &mut *guard;
        let backlog = state.log.backlog(&state.log.cursors[self.index]).events;
        let cursor = state.remove_cursor(self.index);
        let accepted = state.log.accepted;
        let lost =
            state.log.departed.remove(&cursor.output, cursor.start, backlog, counts, accepted);
        shared.log_not_full(state);
        drop(guard);
        shared.work.notify_one();
        shared.progress.notify_waiters();
        lost
    }

    /// See [`Output::keeps`].
    pub fn keep(&self, keeps: Duration) {
        self.shared.lock().log.cursors[self.index].output.keeps = keeps;
        self.shared.work.notify_one();
    }

    /// Whether batches say where their pieces are from.
    pub fn tell_origins(&self, tells: bool) {
        self.shared.lock().log.cursors[self.index].tells_origins = tells;
    }

    /// Nothing is handed out any more, until the next start.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().log.draining
    }

    /// Lines before its watermark that are still in the files and were received within so long.
    #[must_use]
    pub fn before(&self, within: Duration) -> Before {
        let state = self.shared.lock();
        let cursor = &state.log.cursors[self.index];
        Before::new(Arc::clone(&self.shared), cursor.since, cursor.saved(), within)
    }

    /// The first position that was never claimed.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.lock().log.cursors[self.index].claims.read
    }

    /// Everything before it is finished.
    #[must_use]
    pub fn watermark(&self) -> Position {
        self.shared.lock().log.cursors[self.index].claims.watermark()
    }

    /// Everything that is on disk is claimed.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.log.cursors[self.index].claims.read >= state.log.end.position
    }
}

/// What tests do in the place of [`Cursor::readable`], its waiting and its threads.
#[cfg(test)]
impl Cursor {
    /// Whether it would return.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.read_plan(), ReadPlan::Ready)
    }

    /// What it would read, or what [`Cursor::next`] reads ahead.
    pub(super) fn job(&self, ahead: bool) -> Option<Job> {
        let read_plan = match ahead {
            true => self.shared.lock().log.read_on(self.index),
            false => self.read_plan(),
        };
        if let ReadPlan::Load(job) = read_plan { Some(job) } else { None }
    }

    pub(super) fn take_in(&self, epoch: u64, loaded: Loaded) {
        self.shared.apply(self.index, epoch, loaded);
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some((_, loading)) = self.loading.take() {
            loading.abort();
        }
    }
}
