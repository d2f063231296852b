//! One output's cursor in the durable log: what it has claimed, and what was read ahead for it.

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
use crate::position::Position;
use crate::queue::claims::Claims;
use crate::queue::claims::Stage;
use crate::queue::contract::Batch;
use crate::queue::contract::Claim;
use crate::queue::contract::Disposition;
use crate::queue::contract::Origin;
use crate::queue::contract::Redelivery;
use crate::queue::contract::Take;
use crate::queue::cursors;
use crate::queue::cursors::LogOffset;
use crate::queue::outputs::Output;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::RECORD_HEADER;
use crate::telemetry::Loss;

/// The cursors file is written when this many bytes of lines have become final since it was last
/// written, or a second after it was last written.
pub(super) const UNSAVED_MAX: u64 = 64 << 20;

/// The least number of bytes of lines that are read at once to send a claim again, even if the
/// claim is smaller.
const FETCH_MIN: u64 = 64 << 10;

/// The pause between two attempts to read from a file that exists but can't be read.
const PAUSE: Duration = Duration::from_secs(1);

/// Events that could not be read for this long count as lost. A disk that is away for a shorter
/// time costs no events.
const PATIENCE: Duration = Duration::from_secs(30);

/// The least time between two log lines about failed reads.
const QUIET: Duration = Duration::from_secs(10);

/// What the spool notes about a claim.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    /// Bytes of the claim's lines.
    bytes: u64,
    /// The byte number of the claim's first line.
    first_byte: u64,
    /// When the claim's first event was received, in ms since 1970.
    received: u64,
    /// The place in a file where the claim's lines can be read again.
    spot: Spot,
}

/// An output's place in the log, under the spool's lock.
///
/// A cursor moves through the log in this way. [`SpoolState::next`] claims events from `pieces`,
/// which are lines in memory that come next. If there are none, they are taken from the tail; if
/// the tail does not have them, they are read from a file by a thread that may block
/// ([`LogState::read_plan`], [`Shared::apply`]). A claim that was released is read again in the
/// same way, into `fetched`.
///
/// A gap is a piece without lines: positions that should be in the log and are not, because of
/// damage. When the cursor passes a gap, the output counts its events as lost, once, unless they
/// were counted before: by a drop (a hole), or by this cursor (`counted`).
///
/// Invariants:
///
/// - A claim never reaches into a second segment, and has no gap inside when it is made. The number
///   of its events is therefore the difference of its positions, and a dropped segment drops whole
///   claims.
/// - `pieces` follow each other without a gap in positions; the first begins at `claims.read`.
/// - A read that was started for an earlier `epoch` is thrown away when it arrives: what it was for
///   has been dropped or rewound.
///
/// What must never happen: that an event is passed without being claimed or counted as lost, or is
/// counted as lost twice.
pub(super) struct CursorState {
    pub(super) output: Output,
    pub(super) claims: Claims<Note>,
    /// The byte number at `claims.read`, where the next claim begins.
    pub(super) read_byte: u64,
    /// The lines and gaps that come next, as far as they were read.
    pieces: VecDeque<Piece>,
    /// The place in a file where reading goes on after the `pieces`. `None` if it is not known:
    /// then it has to be found by the position.
    pub(super) spot: Option<Spot>,
    /// Rises when the cursor is rewound, or drops what it has read ahead. A read that was started
    /// in an earlier epoch is thrown away when it arrives.
    epoch: u64,
    /// A released claim that has to be read from a file before it can be sent again.
    wanted: Option<Claim>,
    /// The lines of a released claim, which were read again.
    fetched: Option<Fetched>,
    /// The position at which the output joined, before which it got nothing. [`Position::START`] if
    /// this position is not known.
    pub(super) since: Position,
    /// Gaps after the watermark whose events this output has counted as lost.
    counted: Vec<Gap>,
    /// The value of the gauge `output_start_events`.
    pub(super) start: i64,
    /// `true`: the output has ended for good, and nothing waits for it any more.
    pub(super) gone: bool,
    /// `true`: the output's batches tell the origin of each piece of lines.
    tells_origins: bool,
    pub(super) readable: Arc<Notify>,
    /// When the last claimed event was received, in ms since 1970; the time of the start before the
    /// first claim, unless the file says more.
    pub(super) received: u64,
}

/// A released claim, and its lines, which were read again.
struct Fetched {
    claim: Claim,
    /// The lines of the claim: at least one piece, and no gaps.
    pieces: Vec<Piece>,
}

/// Positions whose events are missing, and the bytes that their lines had.
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
            // The queue's own tests always check the origins.
            tells_origins: cfg!(test),
            readable: Arc::new(Notify::new()),
            received: now(),
        }
    }

    /// Events and bytes that this output has claimed and not finished.
    pub(super) fn open(&self) -> (u64, u64) {
        let open = self.claims.iter().filter(|entry| entry.stage.is_open());
        open.fold((0, 0), |(events, bytes), entry| {
            (events + left(entry.claim, &self.counted), bytes + entry.note.bytes)
        })
    }

    /// Events and bytes of the gaps from a position on that this output has counted as lost. After
    /// a rewind, gaps after `claims.read` may be among them.
    pub(super) fn counted_from(&self, position: Position) -> (u64, u64) {
        let behind = self.counted.iter().filter(|gap| gap.end > position);
        behind.fold((0, 0), |(events, bytes), gap| {
            (events + (gap.end - gap.start.max(position)), bytes + gap.bytes)
        })
    }

    /// When the oldest event that the output has not finished was received, in ms since 1970;
    /// `None` if no such event is in memory.
    pub(super) fn oldest(&self) -> Option<u64> {
        let claimed = self.claims.iter().next().map(|entry| entry.note.received);
        claimed.or_else(|| self.pieces.front().map(|piece| piece.received))
    }

    /// The place that the cursors file notes for this output: its watermark.
    pub(super) fn saved(&self) -> LogOffset {
        let byte = self.claims.iter().next().map_or(self.read_byte, |entry| entry.note.first_byte);
        LogOffset { position: self.claims.watermark(), byte }
    }

    /// `true` if the output has no event on the wire, or has ended, so that nobody will report what
    /// became of its events.
    pub(super) fn is_idle(&self) -> bool {
        self.gone || self.claims.iter().all(|entry| entry.stage != Stage::OnWire)
    }

    /// Passes a dropped segment. Returns the number of its events that this output had not got,
    /// which the caller counts as lost. Events of the segment that are on the wire are not counted
    /// again when they are acknowledged or released.
    pub(super) fn drop_segment(&mut self, segment: &super::Segment) -> u64 {
        let dropped = segment.positions();
        if self.claims.watermark() >= dropped.end {
            return 0;
        }
        self.forget_pieces_of(dropped.clone());
        // The read that is under way may be of the dropped segment.
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
        // Gaps of this segment are part of the hole now. No gap is in two segments.
        self.counted.retain(|gap| overlap(&[*gap], dropped.clone()) == 0);
        if dropped.contains(&read) {
            self.claims.read = dropped.end;
            self.read_byte = segment.end.byte;
            self.pieces.clear();
            self.spot = None;
        }
        missed
    }

    /// Drops the pieces that were read ahead and hold one of these positions, and all pieces after
    /// them.
    pub(super) fn forget_pieces_of(&mut self, positions: Range<Position>) {
        let holds = |piece: &Piece| piece.first < positions.end && positions.start < piece.end();
        if let Some(index) = self.pieces.iter().position(holds) {
            self.spot = self.pieces.get(index).map(|piece| piece.spot);
            self.pieces.truncate(index);
            self.epoch += 1;
        }
    }

    /// The place where the pieces in memory end, and the next read begins.
    fn ahead(&self) -> LogOffset {
        let read = LogOffset { position: self.claims.read, byte: self.read_byte };
        self.pieces.back().map_or(read, |piece| LogOffset {
            position: piece.end(),
            byte: piece.first_byte + piece.bytes(),
        })
    }

    /// Bytes of the lines that were read ahead.
    fn ahead_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.lines.len() as u64).sum()
    }

    /// Moves the cursor past a gap, whose events are lost for this output, and counts them unless
    /// they were counted before. `dropped`: how many of these events are in dropped segments
    /// (holes).
    fn pass_gap(&mut self, gap: &Piece, dropped: u64) {
        self.count_missing(gap, dropped);
        self.claims.read = gap.end();
        self.read_byte = gap.first_byte + gap.bytes();
        self.forget_counted();
    }

    /// Counts the events of a gap as lost for this output, except the events that it has counted
    /// before. `dropped`: how many events of the gap were counted when their segments were dropped.
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

    /// Forgets the counted gaps that lie before the watermark.
    fn forget_counted(&mut self) {
        let watermark = self.claims.watermark();
        self.counted.retain(|gap| gap.end > watermark);
    }

    /// Moves the cursor back to its watermark. All claims are forgotten, and their events are read
    /// again.
    fn rewind(&mut self) {
        let Some(note) = self.claims.rewind() else { return };
        self.read_byte = note.first_byte;
        self.received = note.received;
        self.spot = Some(note.spot);
        self.pieces.clear();
        self.epoch += 1;
    }
}

/// The time from `received` to `now`, which are both in ms since 1970.
pub(super) fn age(received: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(received))
}

fn origin(piece: &Piece, now: u64) -> Origin {
    Origin { first: piece.first, age: age(piece.received, now) }
}

/// Makes the batch of a claim from its pieces of lines. `tells_origins`: the batch holds the origin
/// of each piece.
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

/// Returns how many of these positions are in the gaps.
fn overlap(gaps: &[Gap], positions: Range<Position>) -> u64 {
    let overlap =
        |gap: &Gap| gap.end.min(positions.end).saturating_since(gap.start.max(positions.start));
    gaps.iter().map(overlap).sum()
}

/// The number of events of a claim, without the events that were missing when the claim was read
/// again.
fn left(claim: Claim, gaps: &[Gap]) -> u64 {
    claim.end - claim.start - overlap(gaps, claim.start..claim.end)
}

impl SpoolState {
    /// Claims the next events that are in memory, at most `take`, after passing the gaps before
    /// them. `None` if no event is in memory.
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
    /// Adds the lines that come next to the cursor's pieces, if the tail (the newest records, in
    /// memory) holds them. `false` if the tail does not.
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

    /// Returns how many of these positions are in holes: in segments that were dropped and counted
    /// as lost.
    fn dropped_in(&self, positions: Range<Position>) -> u64 {
        cursors::dropped_in(&self.holes, &positions)
    }

    /// Makes the batch of a claim from the tail (the newest records, in memory); `None` if the tail
    /// does not hold all lines of the claim.
    fn in_tail(&self, claim: Claim, index: usize) -> Option<Batch> {
        let first = self.tail_at(claim.start)?;
        let records = self.tail.range(first..);
        let records = records.take_while(|record| record.first.position < claim.end);
        let piece = |record: &TailRecord| {
            load::piece_of(record, claim.start.max(record.first.position)..claim.end)
        };
        Some(batch_of(claim, records.map(piece), self.cursors[index].tells_origins))
    }

    /// Returns what a cursor needs before it can hand out events.
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

    /// Returns the read from a file that continues what a cursor has in memory, if there is one.
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
        // Behind the last segment there may be positions up to the end that no file has.
        let first = segment.map_or(self.end.position, |segment| segment.first.position);
        let begin = Spot { segment: first, offset: FIRST_RECORD, line: 0, position: first };
        let spot = cursor.spot.filter(|spot| spot.segment == first).unwrap_or(begin);
        self.job(cursor.epoch, spot, ahead, None, self.chunk)
    }

    /// Plans a read of the positions `from..to` in the segment of `spot`, of about `chunk` bytes.
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
            // The segment is gone. Everything up to the next one is missing.
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

/// What a cursor needs before it can hand out events.
enum ReadPlan {
    /// The cursor can hand out events now.
    Ready,
    /// The cursor has no event to hand out, and none to read.
    Nothing,
    /// This read from a file has to be done first.
    Load(Job),
}

impl Shared {
    /// Gives a cursor what was read for it in this `epoch`. Damage is counted in any case; the
    /// lines are thrown away if the cursor has another epoch now.
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
                // If the claim was split meanwhile, another claim is wanted now, and this read is
                // not.
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

    /// Gives a cursor the lines of a released claim, which were read again. Events that are missing
    /// now are counted as lost; all others are sent again.
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

    /// Updates the state after events of a cursor were finished or dropped: the cursors file is out
    /// of date, and segments may have become free. Callers must call this after each such change.
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

/// One output's handle to its cursor. Owned by the output's delivery loop.
///
/// All of the cursor's state is in [`CursorState`], under the lock. Here is what needs no lock: the
/// read that is under way for it, of which there is one at a time, and what the log was told of
/// failures. The next read is started when less than half a chunk is left in memory, so that the
/// disk works while the output is busy with the pieces before.
pub struct Cursor {
    shared: Arc<Shared>,
    index: usize,
    readable: Arc<Notify>,
    /// The cursor's epoch when the present read was started, and the read's thread; `None` if no
    /// read is under way. A thread that hangs in a dead disk is not waited for at the end.
    loading: Option<(u64, JoinHandle<std::io::Result<Loaded>>)>,
    /// The time of the first failure since the last read that succeeded; `None` if no read has
    /// failed since.
    failing: Option<Instant>,
    /// When a failed read was last logged; `None` if none was.
    told: Option<Instant>,
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let readable = Arc::clone(&shared.lock().log.cursors[index].readable);
        Self { shared, index, readable, loading: None, failing: None, told: None }
    }

    /// See [`crate::queue::Cursor::readable`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped: the read goes on, and the next call waits for it.
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

    /// Starts this read on a thread that may block, unless another read is under way.
    fn load(&mut self, mut job: Job) {
        if self.loading.is_none() {
            job.patient = self.failing.is_none_or(|since| since.elapsed() < PATIENCE);
            let (epoch, shared) = (job.epoch, Arc::clone(&self.shared));
            let loading = tokio::task::spawn_blocking(move || shared.read(&job));
            self.loading = Some((epoch, loading));
        }
    }

    /// Waits for the read that is under way, and gives the cursor what it has found. If the read
    /// has failed, waits for `PAUSE` so that the next attempt is not made at once.
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

    /// `true` if a failed read may be logged now: a disk that fails now and then must not fill the
    /// log.
    fn may_tell(&mut self) -> bool {
        let may = self.told.is_none_or(|told| told.elapsed() >= QUIET);
        if may {
            self.told = Some(Instant::now());
        }
        may
    }

    /// See [`crate::queue::Cursor::next`].
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

    /// See [`crate::queue::Cursor::acknowledge`].
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

    /// See [`crate::queue::Cursor::release`].
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.log.cursors[self.index].claims.find(claim) {
            if entry.stage == Stage::OnWire {
                entry.stage = Stage::Released;
            }
            self.shared.progress.notify_waiters();
        }
    }

    /// See [`crate::queue::Cursor::redeliver`].
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

    /// See [`crate::queue::Cursor::take_back`].
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

    /// See [`crate::queue::Cursor::split`].
    #[must_use]
    pub fn split(&self, claim: Claim) -> Option<(Claim, Claim)> {
        self.split_at(claim, claim.start + (claim.end - claim.start) / 2)
    }

    /// See [`crate::queue::Cursor::split_at`].
    #[must_use]
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        let mut state = self.shared.lock();
        state.log.cursors[self.index].claims.split(claim, middle, |note| {
            // The number of bytes before `middle` is known only when the lines are read. Both parts
            // get a share by their number of events; the sum is right.
            let (events, of) =
                (u128::from(middle - claim.start), u128::from(claim.end - claim.start));
            let bytes = u64::try_from(u128::from(note.bytes) * events / of).unwrap_or(note.bytes);
            let right =
                Note { bytes: note.bytes - bytes, first_byte: note.first_byte + bytes, ..note };
            (Note { bytes, ..note }, right)
        })
    }

    /// See [`crate::queue::Cursor::rewind`].
    pub fn rewind(&mut self) {
        let mut state = self.shared.lock();
        state.log.cursors[self.index].rewind();
        drop(state);
        self.shared.progress.notify_waiters();
    }

    /// See [`crate::queue::Cursor::is_in_order`].
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.shared.lock().log.cursors[self.index].claims.is_in_order()
    }

    /// See [`crate::queue::Cursor::leave`].
    pub fn leave(self) -> u64 {
        self.remove(true)
    }

    /// See [`crate::queue::Cursor::leave_uncounted`].
    pub fn leave_uncounted(self) {
        self.remove(false);
    }

    /// Removes the output's cursor. If `counts` is `true`, the output's backlog is counted as lost.
    /// Returns the number of lost events.
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

    /// See [`crate::queue::Cursor::tell_origins`].
    pub fn tell_origins(&self, tells: bool) {
        self.shared.lock().log.cursors[self.index].tells_origins = tells;
    }

    /// See [`crate::queue::Cursor::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().log.draining
    }

    /// See [`crate::queue::Cursor::before`].
    #[must_use]
    pub fn before(&self, within: Duration) -> Before {
        let state = self.shared.lock();
        let cursor = &state.log.cursors[self.index];
        Before::new(Arc::clone(&self.shared), cursor.since, cursor.saved(), within)
    }

    /// See [`crate::queue::Cursor::position`].
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.lock().log.cursors[self.index].claims.read
    }

    /// See [`crate::queue::Cursor::watermark`].
    #[must_use]
    pub fn watermark(&self) -> Position {
        self.shared.lock().log.cursors[self.index].claims.watermark()
    }

    /// See [`crate::queue::Cursor::is_at_end`].
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.log.cursors[self.index].claims.read >= state.log.end.position
    }
}

/// What tests call instead of [`Cursor::readable`], which waits and needs threads.
#[cfg(test)]
impl Cursor {
    /// Whether [`Cursor::readable`] would return at once.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.read_plan(), ReadPlan::Ready)
    }

    /// The read that [`Cursor::readable`] would start, or with `ahead` the one that
    /// [`Cursor::next`] would.
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
