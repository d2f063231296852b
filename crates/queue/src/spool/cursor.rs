//! One output's cursor in the durable log: its claims, and the lines that were read ahead for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::load::{Job, Loaded, Piece, Spot};
use super::unrecorded::Unrecorded;
use super::{LogState, Segment, Shared, SpoolState, TailRecord, load};
use crate::claims::{Claims, HeldClaim, Stage};
use crate::contract::{
    Acceptance, Aside, Batch, Claim, Disposition, Finished, Outcome, Redelivery, Take, is_crowded,
    now,
};
use crate::cursors::{Hole, missing_in};
use crate::identity::Identity;
use crate::notes::Notes;
use crate::outputs::Output;
use crate::segment::{FIRST_RECORD, LogOffset, RECORD_HEADER};
use crate::shelf::{Owner, Shelf};
use base::position::Position;
use telemetry::Loss;

/// The number of bytes of lines that may become final before the upkeep saves the cursors file at
/// once. With fewer bytes, it saves the file a second after the last save.
pub(super) const UNSAVED_MAX: u64 = 64 << 20;

/// The smallest read of lines that are sent again, in bytes, unless [`LogState::chunk`] is smaller.
const FETCH_MIN: u64 = 64 << 10;

/// The pause after a failed read.
const PAUSE: Duration = Duration::from_secs(1);

/// The time for which reads are retried before the events count as lost. A file that exists and
/// can't be opened is retried without end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The shortest time between two log lines about failed reads.
const QUIET: Duration = Duration::from_secs(10);

/// The reasons in the evidence why an output loses events before it settles them.
const DROPPED: &str = "when_full";
const DAMAGED: &str = "damaged";
const TAMPERED: &str = "tampered";
pub(super) const REMOVED: &str = "removed";

#[derive(Debug, Clone, Copy)]
pub(crate) struct Note {
    bytes: u64,
    /// The number of bytes of all lines before the claim in the log.
    first_byte: u64,
    /// The time when the first event of the claim, before any cut, was received, in ms since 1970.
    received: u64,
    spot: Spot,
}

/// One output's place in the log, and the lines that are in memory for it. The spool's lock guards
/// this state.
///
/// [`SpoolState::next`] claims events from the pieces that were read ahead. If there are none, it
/// takes lines from the tail (the newest records, which are in memory). If the tail does not have
/// them, a thread that may block reads them from a file ([`LogState::read_plan`],
/// [`Shared::apply`]). The lines of events that must be sent again are read in the same way
/// ([`Resend`]).
///
/// A gap is a piece without lines: its events are damaged, missing, changed or dropped. When the
/// cursor passes a gap, the output counts these events as lost, except those in holes or in
/// `counted`, which were counted before.
///
/// Invariants:
///
/// - All events of a claim are in one segment, and none was missing when the claim was made. The
///   number of its events is therefore the difference of its positions, and a dropped segment drops
///   only whole claims.
/// - Each piece that was read ahead begins where the one before it ends, and the first one at
///   `claims.read` ([`CursorState::check_ahead`]).
///
/// The cursor must never pass an event that was neither claimed nor counted as lost. An event must
/// never be counted as lost twice.
pub(crate) struct CursorState {
    pub(super) output: Output,
    pub claims: Claims<Note>,
    pub(super) ahead: Ahead,
    resend: Resend,
    /// The output's place in the saved cursors file. [`Position::START`] before the first save.
    pub(super) noted: Position,
    /// The gaps after the watermark that this output has counted as lost already.
    pub(super) counted: Vec<Hole>,
    /// The finished events whose evidence is not durable yet. `None` without evidence, and for the
    /// recorder.
    pub(crate) unrecorded: Option<Unrecorded>,
    pub(super) aside: u64,
    /// The positions and file sizes of events that were set aside before the start, until they are
    /// taken.
    pub(super) found: Vec<(Position, u64)>,
    /// The positions of the events that are set aside, and of those that are decided without
    /// durable evidence. Their files must exist: the cursors file lists them.
    pub(super) shelved: BTreeSet<Position>,
    pub(super) start: i64,
    pub(super) gone: bool,
    pub(crate) tells_acceptances: bool,
    pub(crate) takes_lists: bool,
    pub(super) readable: Arc<Notify>,
}

/// The place of a cursor's next claim, and the lines that were read ahead from there.
pub(super) struct Ahead {
    /// The number of bytes of all lines before `claims.read`.
    pub(super) byte: u64,
    /// An estimate of the time when the next event was received, in ms since 1970.
    pub(super) received: u64,
    /// The lines and gaps in memory that come next in the log.
    pieces: VecDeque<Piece>,
    /// The place of the next read. `None` if it must search from the beginning of a segment.
    pub(super) spot: Option<Spot>,
    /// A number that rises when lines in memory are forgotten or a segment is dropped. The result
    /// of a read that was started with another number is discarded.
    epoch: u64,
}

/// The lines of the claim that is sent again next, if they are not in the tail. The output asks
/// ([`Cursor::redeliver`]) until it gets them.
enum Resend {
    Idle,
    /// The lines of this claim must be read from a file.
    Wanted {
        claim: Claim,
        /// `true`: only the lines of this claim are read. Those of later claims are usually read
        /// with them, but such a read has found that lines are missing.
        alone: bool,
    },
    Fetched {
        /// The positions of the lines: the wanted claim, and often later ones.
        range: Claim,
        /// The lines. Gaps between them are left out.
        pieces: Vec<Piece>,
        /// `true` if the output has not asked for the lines since they were read.
        is_news: bool,
    },
}

impl Resend {
    fn lines(&self, claim: Claim) -> Option<Vec<Piece>> {
        let Self::Fetched { range, pieces, .. } = self else { return None };
        let overlaps = |piece: &&Piece| piece.first < claim.end && claim.start < piece.end();
        let within = |piece: &Piece| {
            let mut piece = piece.clone();
            if piece.first < claim.start {
                piece.cut(Take { bytes: u64::MAX, events: claim.start - piece.first });
            }
            let events = piece.events.min(claim.end - piece.first);
            piece.cut(Take { bytes: u64::MAX, events })
        };
        let has = range.start <= claim.start && claim.end <= range.end;
        has.then(|| pieces.iter().filter(overlaps).map(within).collect())
    }
}

impl CursorState {
    pub(super) fn new(output: Output, at: LogOffset) -> Self {
        Self {
            output,
            claims: Claims::at(at.position),
            ahead: Ahead {
                byte: at.byte,
                received: now(),
                pieces: VecDeque::new(),
                spot: None,
                epoch: 0,
            },
            resend: Resend::Idle,
            noted: Position::START,
            counted: Vec::new(),
            unrecorded: None,
            aside: 0,
            found: Vec::new(),
            shelved: BTreeSet::new(),
            start: 0,
            gone: false,
            tells_acceptances: cfg!(test),
            takes_lists: false,
            readable: Arc::new(Notify::new()),
        }
    }

    /// Panics if the cursor's places are not in order, or behind the log's `end`.
    pub(super) fn check_places(&self, end: Position) {
        let (name, watermark, read) =
            (&self.output.name, self.claims.watermark(), self.claims.read);
        assert!(watermark <= read, "{name} has finished up to {watermark}, and read up to {read}");
        assert!(read <= end, "{name} has read up to {read}, and the log ends at {end}");
    }

    /// Panics if the pieces in memory do not follow each other from the cursor's place on, or end
    /// behind the log's `end`.
    pub(super) fn check_ahead(&self, end: Position) {
        let (name, mut next) = (&self.output.name, self.claims.read);
        for piece in &self.ahead.pieces {
            assert!(piece.first == next, "{name} has {} after {next} in memory", piece.first);
            next = piece.end();
        }
        assert!(next <= end, "{name} has lines up to {next}, and the log ends at {end}");
    }

    /// Returns the end and the bytes of a read for a claim. The read includes later released claims
    /// in the same segment, up to `bytes_max`, because they are most likely wanted next.
    fn fetches_until(&self, claim: Claim, note: Note, bytes_max: u64) -> (Position, u64) {
        let mut until = (claim.end, note.bytes);
        for later in self.claims.overlapping(claim.end..self.claims.read) {
            let end = later.note.first_byte + later.note.bytes;
            let bytes = end.saturating_sub(note.first_byte);
            if later.note.spot.segment != note.spot.segment || bytes > bytes_max {
                break;
            }
            if later.stage == Stage::Released {
                until = (later.claim.end, bytes);
            }
        }
        until
    }

    /// Returns the number of claimed and unfinished events, and the bytes of their lines.
    pub(super) fn open(&self) -> (u64, u64) {
        let open = self.claims.iter().filter(|entry| entry.stage.is_open());
        open.fold((0, 0), |(events, bytes), entry| {
            (events + left(entry.claim, &self.counted), bytes + entry.note.bytes)
        })
    }

    /// Returns the time in ms since 1970 when the first event of the first claim was received;
    /// without a claim, that of the first event that was read ahead. If the claim was cut off a
    /// larger one, the time is that of the first event of the larger one. Gaps are skipped, because
    /// their time is unknown.
    pub(super) fn oldest(&self) -> Option<u64> {
        let claimed = self.claims.iter().next().map(|entry| entry.note.received);
        claimed.or_else(|| {
            self.ahead.pieces.iter().find(|piece| !piece.is_gap()).map(|piece| piece.received)
        })
    }

    /// Returns the output's place for the cursors file: its watermark or, with evidence, the first
    /// position whose evidence is not durable, if that is earlier.
    pub(super) fn saved(&self) -> LogOffset {
        let unfinished = self.unfinished();
        let unrecorded = self.unrecorded.as_ref().and_then(Unrecorded::first);
        unrecorded.map_or(unfinished, |place| place.min(unfinished))
    }

    fn unfinished(&self) -> LogOffset {
        let byte = self.claims.iter().next().map_or(self.ahead.byte, |entry| entry.note.first_byte);
        LogOffset { position: self.claims.watermark(), byte }
    }

    /// Records a new loss for the evidence. `byte`: the bytes of all lines before these events.
    fn record_loss(&mut self, positions: Range<Position>, byte: u64, reason: &'static str) {
        let watermark = self.claims.watermark();
        if let Some(unrecorded) = &mut self.unrecorded {
            unrecorded.lose(&self.output.name, positions, byte, reason, watermark);
        }
    }

    /// Records for the evidence that the output leaves and loses its unfinished events.
    fn record_end(&mut self, end: Position, holes: &[Hole]) {
        for hole in holes {
            let start = hole.start.max(self.claims.read);
            self.record_loss(start..hole.end.min(end), self.ahead.byte, DROPPED);
        }
        let open = self.claims.iter().filter(|entry| entry.stage.is_open());
        let range = |entry: &HeldClaim<Note>| entry.claim.start..entry.claim.end;
        let mut lost: Vec<_> = open.map(|entry| (range(entry), entry.note.first_byte)).collect();
        lost.push((self.claims.read..end, self.ahead.byte));
        lost.into_iter().for_each(|(events, byte)| self.record_loss(events, byte, REMOVED));
    }

    /// Returns `true` if the output has no event on the wire or has ended, and for the recorder.
    pub(super) fn is_idle(&self) -> bool {
        let nobody_waits = self.gone || self.output.is_recorder();
        nobody_waits || self.claims.iter().all(|entry| entry.stage != Stage::OnWire)
    }

    /// Ends the claims in a dropped segment, and moves the cursor past it if the cursor is inside.
    /// Returns the number of events that this output loses and has not counted yet. A later
    /// response to an event on the wire is not counted.
    pub(super) fn drop_segment(&mut self, segment: &Segment) -> u64 {
        let dropped = segment.positions();
        if self.claims.watermark() >= dropped.end {
            return 0;
        }
        self.forget_pieces_of(dropped.clone());
        // The running read may be of the dropped segment.
        self.ahead.epoch += 1;
        let read = self.claims.read;
        let mut missed = dropped.end.saturating_since(dropped.start.max(read));
        let unread = dropped.start.max(read)..dropped.end;
        missed = missed.saturating_sub(missing_in(&self.counted, &unread));
        let mut lost = Vec::new();
        for entry in self.claims.overlapping_mut(dropped.clone()) {
            if entry.stage.is_open() {
                entry.stage = Stage::Dropped;
                missed += left(entry.claim, &self.counted);
                lost.push((entry.claim.start..entry.claim.end, entry.note.first_byte));
            }
        }
        lost.into_iter().for_each(|(events, byte)| self.record_loss(events, byte, DROPPED));
        self.claims.forget_done();
        // The gaps of this segment are part of the hole now. A gap never lies in two segments.
        self.counted.retain(|gap| missing_in(&[*gap], &dropped) == 0);
        if dropped.contains(&read) {
            self.record_loss(read..dropped.end, self.ahead.byte, DROPPED);
            self.claims.read = dropped.end;
            self.ahead.byte = segment.end.byte;
            self.ahead.pieces.clear();
            self.ahead.spot = None;
        }
        missed
    }

    /// Forgets the pieces in memory, from the first one with these positions on. They are read
    /// again.
    pub(super) fn forget_pieces_of(&mut self, positions: Range<Position>) {
        let holds = |piece: &Piece| piece.first < positions.end && positions.start < piece.end();
        if let Some(index) = self.ahead.pieces.iter().position(holds) {
            self.ahead.spot = self.ahead.pieces.get(index).map(|piece| piece.spot);
            self.ahead.pieces.truncate(index);
            self.ahead.epoch += 1;
        }
    }

    fn ahead_until(&self) -> LogOffset {
        let read = LogOffset { position: self.claims.read, byte: self.ahead.byte };
        self.ahead.pieces.back().map_or(read, |piece| LogOffset {
            position: piece.end(),
            byte: piece.first_byte + piece.bytes(),
        })
    }

    /// Moves the cursor past a gap. `dropped`: the number of events in the gap that were counted
    /// when their segments were dropped.
    fn pass_gap(&mut self, gap: &Piece, dropped: u64) {
        self.count_missing(gap, dropped);
        let reason = if gap.is_tampered { TAMPERED } else { DAMAGED };
        let reason = if dropped >= gap.events { DROPPED } else { reason };
        self.record_loss(gap.first..gap.end(), gap.first_byte, reason);
        self.claims.read = gap.end();
        self.ahead.byte = gap.first_byte + gap.bytes();
        self.forget_counted();
    }

    /// Counts the uncounted events of a gap as lost. Returns `true` if there are any.
    fn count_missing(&mut self, gap: &Piece, dropped: u64) -> bool {
        let known = dropped + missing_in(&self.counted, &(gap.first..gap.end()));
        let lost = gap.events.saturating_sub(known);
        if lost == 0 {
            return false;
        }
        self.output.metrics.lost.increment(lost);
        self.output.metrics.losses.add(Loss::Missing, lost, Some(&gap.first.to_string()));
        self.counted.push(Hole { start: gap.first, end: gap.end(), bytes: gap.bytes() });
        true
    }

    /// Forgets the counted gaps before the watermark, which the cursor never passes again.
    fn forget_counted(&mut self) {
        let watermark = self.claims.watermark();
        self.counted.retain(|gap| gap.end > watermark);
    }

    fn rewind(&mut self) {
        let Some(note) = self.claims.rewind() else { return };
        self.ahead.byte = note.first_byte;
        self.ahead.received = note.received;
        self.ahead.spot = Some(note.spot);
        self.ahead.pieces.clear();
        self.ahead.epoch += 1;
    }
}

pub(super) fn age(received: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(received))
}

fn acceptance(piece: &Piece, now: u64) -> Acceptance {
    let received = piece.received;
    Acceptance { first: piece.first, events: piece.events, age: age(received, now), received }
}

fn batch_of(claim: Claim, parts: impl Iterator<Item = Piece>) -> Batch {
    let now = now();
    let mut batch = Batch::of(claim);
    for part in parts {
        let acceptance = acceptance(&part, now);
        batch.push(part.events, part.text(false), Some(acceptance));
    }
    batch
}

fn positions(range: Range<Position>) -> impl Iterator<Item = Position> {
    (0..range.end.saturating_since(range.start)).map(move |offset| range.start + offset)
}

/// Returns the number of events in a claim without those in `gaps`.
fn left(claim: Claim, gaps: &[Hole]) -> u64 {
    claim.end - claim.start - missing_in(gaps, &(claim.start..claim.end))
}

impl SpoolState {
    /// Claims the next events of a cursor that are in memory. First passes the gaps before them.
    fn next(&mut self, index: usize, take: Take, lists: bool) -> Option<Batch> {
        let Self { log, writing } = self;
        let mut taken: Option<(Batch, Note)> = None;
        let now = log.cursors[index].tells_acceptances.then(now);
        let mut left = take;
        loop {
            let cursor = &mut log.cursors[index];
            let Some(piece) = cursor.ahead.pieces.front_mut() else {
                if log.refill(index) {
                    continue;
                }
                break;
            };
            if piece.is_gap() {
                if taken.is_some() {
                    break;
                }
                let Some(gap) = cursor.ahead.pieces.pop_front() else { break };
                let dropped = missing_in(&log.holes, &(gap.first..gap.end()));
                log.cursors[index].pass_gap(&gap, dropped);
                writing.saving.is_dirty = true;
                continue;
            }
            let segment = piece.spot.segment;
            let elsewhere = taken.as_ref().is_some_and(|(_, note)| note.spot.segment != segment);
            let whole = piece.bytes() <= left.bytes && piece.events <= left.events;
            if elsewhere || (!whole && taken.is_some()) {
                break;
            }
            let part = if whole { cursor.ahead.pieces.pop_front() } else { Some(piece.cut(take)) };
            let Some(part) = part else { break };
            left = Take {
                bytes: left.bytes.saturating_sub(part.bytes()),
                events: left.events.saturating_sub(part.events),
            };
            let (batch, note) = taken.get_or_insert_with(|| {
                let claim = Claim { start: part.first, end: part.first };
                let Piece { first_byte, received, spot, .. } = part;
                (Batch::of(claim), Note { bytes: 0, first_byte, received, spot })
            });
            cursor.ahead.received = part.received;
            cursor.claims.read = part.end();
            batch.claim.end = part.end();
            let acceptance = now.map(|now| acceptance(&part, now));
            batch.push(part.events, part.text(lists), acceptance);
            note.bytes = batch.bytes;
            cursor.ahead.byte = note.first_byte + note.bytes;
            if !whole {
                break;
            }
        }
        let (batch, note) = taken?;
        log.cursors[index].claims.push(batch.claim, note);
        Some(batch)
    }
}

impl LogState {
    /// Adds the tail's next record to a cursor's pieces. Returns `false` if the tail lacks it.
    fn refill(&mut self, index: usize) -> bool {
        let ahead = self.cursors[index].ahead_until();
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
        cursor.ahead.spot = Some(behind);
        cursor.ahead.pieces.push_back(piece);
        true
    }

    /// Makes the batch of a claim from the tail. `None` if the tail does not have all its lines.
    fn in_tail(&self, claim: Claim) -> Option<Batch> {
        let first = self.tail_at(claim.start)?;
        let records = self.tail.range(first..);
        let records = records.take_while(|record| record.first.position < claim.end);
        let piece = |record: &TailRecord| {
            load::piece_of(record, claim.start.max(record.first.position)..claim.end)
        };
        Some(batch_of(claim, records.map(piece)))
    }

    fn read_plan(&self, index: usize) -> ReadPlan {
        if self.is_closed_for(index) {
            return ReadPlan::Nothing;
        }
        let cursor = &self.cursors[index];
        match cursor.resend {
            // The output gets these lines first.
            Resend::Fetched { is_news: true, .. } => return ReadPlan::Ready,
            Resend::Wanted { claim, alone } => {
                let entry = cursor.claims.overlapping(claim.start..claim.end).next();
                let entry = entry.filter(|entry| entry.stage.is_open());
                let Some(entry) = entry.filter(|_| self.tail_at(claim.start).is_none()) else {
                    return ReadPlan::Ready;
                };
                let (end, bytes) = match alone {
                    true => (claim.end, entry.note.bytes),
                    false => cursor.fetches_until(claim, entry.note, self.chunk),
                };
                let chunk = self.chunk.min(bytes.max(FETCH_MIN));
                return self.job(
                    cursor.ahead.epoch,
                    entry.note.spot,
                    claim.start,
                    Some(end),
                    chunk,
                );
            }
            Resend::Idle | Resend::Fetched { .. } => {}
        }
        if !cursor.ahead.pieces.is_empty() {
            return ReadPlan::Ready;
        }
        self.read_on(index)
    }

    /// Returns how a cursor gets the lines that follow those in its memory. `Ready`: from the tail.
    fn read_on(&self, index: usize) -> ReadPlan {
        let cursor = &self.cursors[index];
        let ahead = cursor.ahead_until().position;
        if ahead >= self.end.position {
            return ReadPlan::Nothing;
        }
        if self.tail_at(ahead).is_some() {
            return ReadPlan::Ready;
        }
        let segment = self.segments.get(self.segment_at(ahead));
        // After the last segment there may be positions, up to the log's end, that no file has.
        let first = segment.map_or(self.end.position, |segment| segment.first.position);
        let begin = Spot { segment: first, offset: FIRST_RECORD, line: 0, position: first };
        let spot = cursor.ahead.spot.filter(|spot| spot.segment == first).unwrap_or(begin);
        self.job(cursor.ahead.epoch, spot, ahead, None, self.chunk)
    }

    /// Plans a read in the segment of `spot`: the positions `from..to` or, if `to` is `None`, about
    /// `chunk` bytes. If the log has no such segment, the result is a gap.
    fn job(
        &self,
        epoch: u64,
        spot: Spot,
        from: Position,
        to: Option<Position>,
        chunk: u64,
    ) -> ReadPlan {
        let segment = self.segment(spot.segment).cloned().unwrap_or_else(|| {
            // The segment is gone. All events up to the next segment are missing.
            let next = self.segments.get(self.segment_at(from));
            let end = next.map_or(self.end, |segment| segment.first);
            Segment { offset: 0, ..Segment::new(end, 0) }
        });
        ReadPlan::Load(Job { epoch, spot, from, to, chunk, segment, patient: true })
    }
}

enum ReadPlan {
    Ready,
    /// The cursor gets no more events at present.
    Nothing,
    Load(Job),
}

impl Shared {
    /// Gives a cursor the result of a read. If the log still has the segment, new damage is
    /// counted. The lines are discarded if the cursor has another epoch now.
    fn apply(&self, index: usize, epoch: u64, loaded: Loaded) {
        let mut state = self.lock();
        for damage in &loaded.damages {
            let segment = state.log.segment_mut(loaded.segment);
            if segment.is_some_and(|segment| segment.damaged.insert(damage.bytes.start)) {
                self.metrics.spool.corrupt.increment(1);
            }
        }
        let cursor = &mut state.log.cursors[index];
        if cursor.ahead.epoch != epoch {
            return;
        }
        match loaded.to {
            Some(end) => {
                // If the claim was split in the meantime, another claim may be wanted now.
                let read = Claim { start: loaded.from, end };
                let Resend::Wanted { claim, alone } = &mut cursor.resend else { return };
                let claim = *claim;
                if claim.start != read.start || claim.end > read.end {
                    return;
                }
                if claim != read && loaded.pieces.iter().any(Piece::is_gap) {
                    *alone = true;
                    return;
                }
                self.fetched(&mut state, index, claim, &loaded);
            }
            None => {
                let fits = loaded
                    .pieces
                    .first()
                    .is_some_and(|piece| piece.first == cursor.ahead_until().position);
                if fits {
                    cursor.ahead.spot = loaded.next;
                    cursor.ahead.pieces.extend(loaded.pieces);
                }
            }
        }
    }

    /// Gives a cursor the lines of a claim that is sent again, and perhaps those of later claims.
    /// Missing events of the claim are counted as lost, and if all are missing, the claim ends
    /// here. Nothing is counted if the claim has ended during the read.
    fn fetched(&self, state: &mut SpoolState, index: usize, claim: Claim, loaded: &Loaded) {
        let cursor = &mut state.log.cursors[index];
        let pieces: Vec<_> =
            loaded.pieces.iter().filter(|piece| !piece.is_gap()).cloned().collect();
        let range = Claim { end: loaded.to.unwrap_or(claim.end), ..claim };
        let is_all_missing = pieces.is_empty();
        cursor.resend = match is_all_missing {
            true => Resend::Wanted { claim, alone: false },
            false => Resend::Fetched { range, pieces, is_news: true },
        };
        if !cursor.claims.find(claim).is_some_and(|entry| entry.stage.is_open()) {
            return;
        }
        for gap in loaded.pieces.iter().filter(|piece| piece.is_gap()) {
            let is_new = cursor.count_missing(gap, 0);
            if is_new && gap.is_tampered && !is_all_missing {
                cursor.record_loss(gap.first..gap.end(), gap.first_byte, TAMPERED);
            }
        }
        if is_all_missing {
            // The claim stays wanted until [`Cursor::redeliver`] has returned `Gone`.
            if let Some(entry) = cursor.claims.find(claim) {
                entry.stage = Stage::Dropped;
                let byte = entry.note.first_byte;
                let is_tampered = loaded.pieces.iter().any(|piece| piece.is_tampered);
                let reason = if is_tampered { TAMPERED } else { DAMAGED };
                cursor.record_loss(claim.start..claim.end, byte, reason);
            }
            self.settled(state, index);
        }
    }

    /// Marks the cursors file as out of date, and wakes the threads and tasks that may have work
    /// now. Must be called after events became final, or their evidence durable.
    fn settled(&self, state: &mut SpoolState, index: usize) {
        let cursor = &mut state.log.cursors[index];
        cursor.claims.forget_done();
        cursor.forget_counted();
        let is_new = state.writing.saving.touch();
        if is_new || state.writing.saving.unsaved >= UNSAVED_MAX || state.can_reclaim() {
            self.wakes.upkeep.notify_one();
        }
        if state.can_seal_for_room() {
            self.wakes.writer.notify_one();
        }
        self.log_not_full(state);
        self.wakes.progress.notify_waiters();
    }
}

impl Owner for Shared {
    fn is_changed(&self, position: Position, line: &[u8]) -> bool {
        self.originals.get().is_some_and(|known| {
            // Only whole lines are compared.
            !known.changed(position, &[line, b"\n"].concat()).is_empty()
        })
    }

    fn remove(&self, output: &str, position: Position) {
        let mut state = self.lock();
        let keeps_file = |(name, unrecorded): (&str, &mut Unrecorded)| {
            name == output && unrecorded.keeps_file(position)
        };
        if state.log.unrecorded().any(keeps_file) {
            return;
        }
        state.log.unshelve(output, position);
        if state.writing.saving.touch() {
            self.wakes.upkeep.notify_one();
        }
    }
}

/// One output's handle to its cursor, owned by the output's delivery loop. The state is in
/// [`CursorState`], under the spool's lock.
///
/// At most one read from a file runs at a time. The next one is started when less than half a chunk
/// (the bytes of one read) is left in memory, so that the disk works while the output sends.
pub struct Cursor {
    shared: Arc<Shared>,
    index: usize,
    readable: Arc<Notify>,
    /// The running read and its epoch. Nobody waits for it when the cursor is dropped.
    loading: Option<(u64, AbortOnDropHandle<std::io::Result<Loaded>>)>,
    /// The time of the first failed read after the last successful one.
    failing: Option<Instant>,
    /// The time of the last log line about a failed read.
    told: Option<Instant>,
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let readable = Arc::clone(&shared.lock().log.cursors[index].readable);
        Self { shared, index, readable, loading: None, failing: None, told: None }
    }

    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut CursorState) -> R) -> R {
        call(&mut self.shared.lock().log.cursors[self.index])
    }

    /// See [`crate::Cursor::readable`]. If the future is dropped, the read continues, and the next
    /// call waits for it.
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

    /// Starts a read on a thread that may block, unless one is running.
    fn load(&mut self, mut job: Job) {
        if self.loading.is_none() {
            job.patient = self.failing.is_none_or(|since| since.elapsed() < PATIENCE);
            let (epoch, shared) = (job.epoch, Arc::clone(&self.shared));
            let loading = tokio::task::spawn_blocking(move || shared.read(&job));
            self.loading = Some((epoch, AbortOnDropHandle::new(loading)));
        }
    }

    /// Waits for the running read, and gives its result to the cursor. Pauses after a failure.
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
                    tracing::error!(
                        output,
                        %error,
                        "cannot read a segment of the queue, retrying: a part that cannot be read \
                         for half a minute counts as lost, but a file that cannot be opened is \
                         waited for; check the disk of queue.directory"
                    );
                }
                self.failing.get_or_insert_with(Instant::now);
                tokio::time::sleep(PAUSE).await;
            }
            Err(panic) => {
                if self.may_tell() {
                    tracing::error!(
                        %panic,
                        "the task that reads a file of the queue has failed, retrying: please \
                         report this bug"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Returns `true` if a failed read may be logged: at most one in each [`QUIET`].
    fn may_tell(&mut self) -> bool {
        let may = self.told.is_none_or(|told| told.elapsed() >= QUIET);
        if may {
            self.told = Some(Instant::now());
        }
        may
    }

    /// See [`crate::Cursor::next`].
    #[cfg(test)]
    pub fn next(&mut self, take: Take) -> Option<Batch> {
        self.next_as(take, false)
    }

    /// See [`crate::Cursor::next_as`].
    pub fn next_as(&mut self, take: Take, lists: bool) -> Option<Batch> {
        let (batch, ahead) = {
            let mut state = self.shared.lock();
            if state.log.is_closed_for(self.index) {
                return None;
            }
            let cursor = &mut state.log.cursors[self.index];
            cursor.resend = Resend::Idle;
            let was_dirty = state.writing.saving.is_dirty;
            let batch = state.next(self.index, take, lists);
            if state.writing.saving.is_dirty && !was_dirty {
                self.shared.wake();
            }
            let pieces = state.log.cursors[self.index].ahead.pieces.iter();
            let in_memory: u64 = pieces.map(|piece| piece.lines.len() as u64).sum();
            let low = in_memory < state.log.chunk / 2;
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

    /// See [`crate::Cursor::acknowledge`].
    pub fn acknowledge(&self, claim: Claim, disposition: Disposition) {
        self.finish(&mut self.shared.lock(), claim, disposition);
    }

    /// Returns `false` if the claim was final before, or was dropped.
    fn finish(&self, state: &mut SpoolState, claim: Claim, disposition: Disposition) -> bool {
        let cursor = &mut state.log.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            return false;
        };
        entry.stage = Stage::Done;
        let (note, events) = (entry.note, left(claim, &cursor.counted));
        disposition.count(events, &cursor.output.metrics);
        if disposition.aside == 0 {
            cursor.output.metrics.delivered(age(note.received, now()), Instant::now());
        }
        if let Some(unrecorded) = &mut cursor.unrecorded {
            let mut fates = disposition.fates;
            let within = |gap: &Hole| positions(gap.start.max(claim.start)..gap.end.min(claim.end));
            let missing: Vec<_> = cursor.counted.iter().flat_map(within).collect();
            if !missing.is_empty() {
                fates.lose(&missing);
            }
            let outcome = Outcome::Settled(fates);
            unrecorded.add(&cursor.output.name, claim, note.first_byte, outcome);
        }
        state.writing.saving.unsaved += note.bytes;
        self.shared.settled(state, self.index);
        true
    }

    /// See [`crate::Cursor::set_aside`]. Returns `false` if the event was dropped before.
    pub fn set_aside(&self, claim: Claim) -> bool {
        let mut state = self.shared.lock();
        let is_kept = self.finish(&mut state, claim, Disposition::aside());
        if is_kept {
            let cursor = &mut state.log.cursors[self.index];
            cursor.aside += 1;
            cursor.shelved.insert(claim.start);
            cursor.output.show_aside(cursor.aside);
        }
        is_kept
    }

    /// See [`crate::Cursor::settle_aside`].
    pub fn settle_aside(&self, position: Position, event: Aside, disposition: Disposition) {
        {
            let mut state = self.shared.lock();
            let cursor = &mut state.log.cursors[self.index];
            event.count(&disposition, &cursor.output.metrics);
            cursor.aside -= 1;
            cursor.output.show_aside(cursor.aside);
            if let Some(unrecorded) = &mut cursor.unrecorded {
                unrecorded.decided(&cursor.output.name, position, disposition.fates);
            }
        }
        self.shared.wakes.progress.notify_waiters();
    }

    /// See [`crate::Cursor::take_aside`].
    pub fn take_aside(&self) -> Vec<(Position, u64)> {
        self.with(|cursor| std::mem::take(&mut cursor.found))
    }

    /// See [`crate::Cursor::shelf`].
    pub fn shelf(&self) -> Shelf {
        let name = self.with(|cursor| cursor.output.name.clone());
        Shelf::in_files(Arc::clone(&self.shared.disk), &name, Arc::<Shared>::clone(&self.shared))
    }

    /// See [`crate::Cursor::release`].
    pub fn release(&self, claim: Claim) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.log.cursors[self.index].claims.find(claim) {
            if entry.stage == Stage::OnWire {
                entry.stage = Stage::Released;
            }
            self.shared.wakes.progress.notify_waiters();
        }
    }

    /// See [`crate::Cursor::redeliver`]. A final claim is `Gone` too.
    pub fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let mut state = self.shared.lock();
        if state.log.draining {
            return Redelivery::NotYet;
        }
        let from_tail = state.log.in_tail(claim);
        let cursor = &mut state.log.cursors[self.index];
        let Some(entry) = cursor.claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            if matches!(cursor.resend, Resend::Wanted { claim: wanted, .. } if wanted == claim) {
                cursor.resend = Resend::Idle;
            }
            return Redelivery::Gone;
        };
        let fetched = || Some(batch_of(claim, cursor.resend.lines(claim)?.into_iter()));
        let Some(batch) = from_tail.or_else(fetched) else {
            let alone = matches!(cursor.resend, Resend::Wanted { alone: true, .. });
            cursor.resend = Resend::Wanted { claim, alone };
            return Redelivery::NotYet;
        };
        entry.stage = Stage::OnWire;
        if let Resend::Fetched { is_news, .. } = &mut cursor.resend {
            // The other lines that were read stay in memory.
            *is_news = false;
        } else {
            cursor.resend = Resend::Idle;
        }
        Redelivery::Batch(batch)
    }

    /// See [`crate::Cursor::take_back`]. Returns `false` for a final claim too.
    pub fn take_back(&self, claim: Claim) -> bool {
        let mut state = self.shared.lock();
        let claims = &mut state.log.cursors[self.index].claims;
        let Some(entry) = claims.find(claim).filter(|entry| entry.stage.is_open()) else {
            return false;
        };
        entry.stage = Stage::OnWire;
        true
    }

    /// See [`crate::Cursor::split_at`].
    pub fn split_at(&self, claim: Claim, middle: Position) -> Option<(Claim, Claim)> {
        let mut state = self.shared.lock();
        state.log.cursors[self.index].claims.split(claim, middle, |note| {
            // The bytes before `middle` are unknown until the lines are read. Both parts get a
            // share by their number of events; the sum is right.
            let (events, of) =
                (u128::from(middle - claim.start), u128::from(claim.end - claim.start));
            let bytes = u64::try_from(u128::from(note.bytes) * events / of).unwrap_or(note.bytes);
            let right =
                Note { bytes: note.bytes - bytes, first_byte: note.first_byte + bytes, ..note };
            (Note { bytes, ..note }, right)
        })
    }

    /// See [`crate::Cursor::rewind`].
    pub fn rewind(&mut self) {
        self.with(CursorState::rewind);
        self.shared.wakes.progress.notify_waiters();
    }

    /// See [`crate::Cursor::leave`] (`counts` is `true`) and [`crate::Cursor::leave_uncounted`].
    pub fn remove(self, counts: bool) -> u64 {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.lock();
        let state = &mut *guard;
        let backlog = state.log.backlog(&state.log.cursors[self.index]).events;
        let mut cursor = state.remove_cursor(self.index);
        cursor.output.metrics.lose(Loss::Removed, cursor.aside);
        cursor.output.show_aside(0);
        if counts {
            cursor.record_end(state.log.end.position, &state.log.holes);
        }
        if cursor.unrecorded.is_some() {
            let until = if counts { state.log.end.position } else { cursor.claims.watermark() };
            state.log.left.entry(cursor.output.name.clone()).or_insert(until);
        }
        if let Some(unrecorded) = cursor.unrecorded.take().filter(|it| !it.is_recorded()) {
            state.log.leaving.push((cursor.output.name.clone(), unrecorded));
        }
        let accepted = state.log.accepted;
        let lost =
            state.log.departed.remove(&cursor.output, cursor.start, backlog, counts, accepted)
                + cursor.aside;
        shared.log_not_full(state);
        drop(guard);
        shared.wake();
        shared.wakes.progress.notify_waiters();
        lost
    }

    /// See [`crate::Cursor::take_unplaced`].
    pub fn take_unplaced(&self) -> u64 {
        std::mem::take(&mut self.shared.lock().writing.unplaced)
    }

    /// See [`crate::Cursor::take_given_up`].
    pub fn take_given_up(&self) -> Vec<Range<Position>> {
        std::mem::take(&mut self.shared.lock().log.given_up)
    }

    /// See [`crate::Cursor::take_left`].
    pub fn take_left(&self) -> BTreeMap<String, Position> {
        std::mem::take(&mut self.shared.lock().log.left)
    }

    /// See [`crate::Cursor::finished`].
    pub fn finished(&self) -> Option<Arc<Notify>> {
        self.shared.lock().log.finished_wakes.clone()
    }

    /// See [`crate::Cursor::take_finished`].
    pub fn take_finished(&self) -> Vec<Finished> {
        let mut state = self.shared.lock();
        state.log.unrecorded().flat_map(|(_, it)| it.take()).collect()
    }

    /// See [`crate::Cursor::recorded`].
    pub fn recorded(&self, finished: &[Finished]) {
        if finished.is_empty() {
            return;
        }
        let mut free = Vec::new();
        {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            for (name, unrecorded) in state.log.unrecorded() {
                let own = finished.iter().filter(|it| it.output == name);
                let positions = own.filter_map(|it| unrecorded.recorded(it));
                free.extend(positions.map(|position| (name.to_owned(), position)));
            }
            free.iter().for_each(|(name, position)| state.log.unshelve(name, *position));
            state.log.leaving.retain(|(_, unrecorded)| !unrecorded.is_recorded());
            self.shared.settled(state, self.index);
        }
    }

    /// See [`crate::Cursor::is_closed`].
    pub fn is_closed(&self) -> bool {
        self.shared.lock().log.draining
    }

    /// See [`crate::Cursor::identity`].
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// See [`crate::Cursor::capacity`].
    pub fn capacity(&self) -> u64 {
        self.shared.capacity()
    }

    /// See [`crate::Cursor::crowding`].
    pub fn crowding(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || is_crowded(shared.needed_bytes(&shared.lock()), shared.capacity())
    }

    /// See [`crate::Cursor::notes`].
    pub fn notes(&self) -> Notes {
        let (name, end) = {
            let state = self.shared.lock();
            (state.log.cursors[self.index].output.name.clone(), state.log.end.position)
        };
        let (shared, of) = (Arc::clone(&self.shared), name.clone());
        let settled = move || {
            let state = shared.lock();
            let mut cursors = state.log.cursors.iter().map(|(_, cursor)| cursor);
            let cursor = cursors.find(|cursor| cursor.output.name == of);
            cursor.map_or(Position::START, |cursor| cursor.noted)
        };
        Notes::new(Arc::clone(&self.shared.disk), &name, end, settled)
    }

    /// See [`crate::Cursor::is_at_end`].
    pub fn is_at_end(&self) -> bool {
        let state = self.shared.lock();
        state.log.cursors[self.index].claims.read >= state.log.end.position
    }
}

/// Functions that tests call instead of [`Cursor::readable`], which waits and needs threads.
#[cfg(test)]
impl Cursor {
    /// Returns `true` if [`Cursor::readable`] would return without a wait.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.read_plan(), ReadPlan::Ready)
    }

    /// Returns the read from a file that [`Cursor::readable`] would start, or, if `ahead` is
    /// `true`, the read that [`Cursor::next`] would start. `None` if it would start none.
    pub(super) fn job(&self, ahead: bool) -> Option<Job> {
        let read_plan = match ahead {
            true => self.shared.lock().log.read_on(self.index),
            false => self.read_plan(),
        };
        if let ReadPlan::Load(job) = read_plan { Some(job) } else { None }
    }

    /// Gives this cursor the result of a read that was started in this `epoch`.
    pub(super) fn take_in(&self, epoch: u64, loaded: Loaded) {
        self.shared.apply(self.index, epoch, loaded);
    }
}
