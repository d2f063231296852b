//! The state of the spool in memory: one value under one lock. [`LogState`] is the log itself,
//! which cursors and the writer share. [`WriterState`] has the waiting batches, the counters of
//! files, and the tasks of the writer and the upkeep. Only functions that need both are methods of
//! [`SpoolState`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::accounting::{Accounting, SPARES_MAX};
use super::cursor::CursorState;
use super::unrecorded::Unrecorded;
use super::upkeep::Written;
use super::{AHEAD_BYTES, CHUNK_MAX, CHUNK_MIN, HANGS, HOLES_MAX, TAIL_BYTES, needed};
use crate::contract::{Append, Backlog, Held, Refused, now};
use crate::cursors;
use crate::cursors::{Contents, Hole};
use crate::outputs::{Departed, DropCount};
use crate::segment::{BLOCK, Check, FIRST_RECORD, LogOffset, RecordHeader, Scan, Seed};
use audit::ListEnds;
use base::disk::File;
use base::position::Position;
use config::{BATCH_OVERHEAD, WhenFull};
use telemetry::QueueMetrics;

/// Everything that the spool's lock guards ([`super::Shared::lock`]).
///
/// The lock is held only while values in memory are read or changed: never while a file is read,
/// written, synced or deleted, and never across an await. Both fields have the same lock, because
/// most changes touch both. For example, a dropped segment is removed from the log and counted as a
/// file to delete in one step.
pub(super) struct SpoolState {
    pub(super) log: LogState,
    pub(super) writing: WriterState,
}

/// The log as it is on the disk: the synced events, and how far each output has got.
///
/// Cursors read the log and change their own places in it. The writer thread adds batches at the
/// end, and the upkeep removes finished segments at the front. Senders and the writer drop segments
/// to make room. A batch is added only after its sync, as a whole, with the positions that follow
/// those of the batch before.
///
/// Invariants:
///
/// - `segments` are in the order of their positions. Each segment ends where the next one begins,
///   unless a segment was dropped between the two.
/// - `end` is the end of the last segment, or a later place: at startup `cursors` or `synced` may
///   know of a later end than the segments, and the last segments may have been removed.
/// - The writer appends batches only to the last segment, while it is active. The file of an active
///   segment is at least as long as its records, because its room is reserved when it is made.
/// - `tail` holds the newest records that were stored since the start, in order, at most
///   [`TAIL_BYTES`] bytes. Batches above [`super::REMEMBERED_MAX`] are never in it, and the records
///   of a dropped segment are removed. A cursor whose next record is in the tail reads no file.
/// - The watermark of each cursor is at or before `end`. Unless it is dropped for its room, a
///   segment is kept at least until all watermarks have passed it. A drop counts as a loss for each
///   output that had not finished the segment.
///
/// A position must never be given to two events. Each stored event must be in a segment, in a hole
/// or in a counter.
#[derive(Default)]
pub(super) struct LogState {
    /// The segments, oldest first. Removed segments are in [`Accounting`].
    pub(super) segments: VecDeque<Segment>,
    pub(super) end: LogOffset,
    /// The positions in the names of files that the queue did not write ([`crate::foreign`]), in
    /// order. [`super::writer`] renames such a file before `end` reaches its position.
    pub(super) foreign: Vec<Position>,
    pub(super) tail: VecDeque<TailRecord>,
    tail_bytes: u64,
    /// The number of bytes of one read of a cursor. It depends on the number of cursors.
    pub(super) chunk: u64,
    pub(super) cursors: Slab<CursorState>,
    pub(super) departed: Departed,
    /// The number of events that were stored since the start.
    pub(super) accepted: u64,
    /// The dropped ranges of the log, in order. Each output has counted its loss.
    pub(super) holes: Vec<Hole>,
    /// `true` while the relay drains and keeps its files: the outputs' cursors hand out no events.
    pub(super) draining: bool,
    /// `true` if all unfinished events are counted as lost, so that no output has a backlog.
    pub(super) abandoned: bool,
    /// Notified when an output has finished events. `None` without an evidence recorder.
    pub(super) finished_wakes: Option<Arc<Notify>>,
    /// Ranges of positions for [`crate::Cursor::take_given_up`].
    pub(super) given_up: Vec<Range<Position>>,
    /// The outputs that have left, for [`crate::Cursor::take_left`].
    pub(super) left: BTreeMap<String, Position>,
    /// The outputs that have left, but stay in the cursors file until their evidence is durable.
    pub(super) leaving: Vec<(String, Unrecorded)>,
    /// The events that are no longer set aside, by output. The upkeep deletes their files after it
    /// has saved a cursors file that does not list them.
    pub(super) unshelved: Vec<(String, Position)>,
}

/// The state that senders, the writer thread and the upkeep share.
///
/// Senders add batches to the back of `waiting`, and a sender that gives up removes its batch. The
/// writer thread takes groups of batches from the front. Code that gives one of the two threads
/// work wakes it afterwards ([`super::Wakes`]).
///
/// Invariants:
///
/// - The numbers in `waiting` rise. A batch with `opens` begins a new segment. The batches after
///   it, up to the next one with `opens`, go into the same segment and fit there
///   ([`Accounting::check`]).
/// - While the disk has an error, no batch waits: the writer refuses all waiting batches when it
///   notes the error, and `append` refuses later ones.
pub(super) struct WriterState {
    pub(super) accounting: Accounting,
    pub(super) waiting: VecDeque<Waiting>,
    /// The number of the next batch. Numbers are never used again.
    pub(super) arrivals: u64,
    pub(super) segment_bytes: u64,
    pub(super) when_full: WhenFull,
    /// `true` from the log line that the queue is full until less than four fifths of
    /// `queue.max_bytes` are needed.
    pub(super) told_full: bool,
    pub(super) health: Health,
    pub(super) chores: Chores,
    pub(super) saving: Saving,
    /// `true` if the queue takes no more batches, and the threads end.
    pub(super) closed: bool,
    /// The number for [`crate::Cursor::take_unplaced`].
    pub(super) unplaced: u64,
}

#[derive(Default)]
pub(super) struct Health {
    /// The last error, which keeps batches from being stored; `None` if the disk works.
    pub(super) error: Option<String>,
    /// The time when the writer thread began its present step. `None` while it waits.
    pub(super) busy: Option<Instant>,
    /// `true` if it was logged that the disk does not respond.
    pub(super) hangs_told: bool,
    /// `true` if the last write of the file `synced` has failed. The file may then name events that
    /// were refused. At startup they would count as acknowledged, and as lost if their file is
    /// gone. Until the file names the log's end again, no file behind that end is deleted, and no
    /// segment is begun.
    pub(super) note_is_unknown: bool,
}

/// The work for the upkeep, in addition to saving the cursors file.
#[derive(Default)]
pub(super) struct Chores {
    pub(super) ended: Vec<Written>,
    /// `true` if the upkeep could not make a spare file. It tries again only after the writer has
    /// made a segment.
    pub(super) spare_failed: bool,
}

/// The changes that the cursors file does not have yet. Invariant: `done <= requested`.
pub(super) struct Saving {
    pub(super) is_dirty: bool,
    /// The bytes of lines that have become final since the last attempt to save.
    pub(super) unsaved: u64,
    /// The number of requests so far for an immediate save, because an output joins or leaves.
    pub(super) requested: u64,
    /// The number of requests that the last successful save has fulfilled.
    pub(super) done: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) first: LogOffset,
    pub(super) end: LogOffset,
    /// The offset in the file where the last record ends. For a file that the startup has found and
    /// not read in full, the size of the file.
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) seed: Seed,
    pub(super) reused: bool,
    /// `false` if the file must not become a spare file: its header was damaged at startup, or a
    /// write, sync or cut has failed.
    pub(super) is_sound: bool,
    /// The offsets of the known damage. Damage is counted once, even if several cursors read it.
    pub(super) damaged: BTreeSet<u64>,
    pub(super) active: bool,
}

pub(super) struct TailRecord {
    pub(super) first: LogOffset,
    pub(super) events: u64,
    /// The events, each followed by one `\n`; if `ends` is `Some`, by a comma or `]`.
    pub(super) lines: Bytes,
    /// `Some` for a part of a JSON list, as it was received. The file holds the events as lines.
    pub(super) ends: Option<ListEnds>,
    /// The time of acceptance in ms since 1970.
    pub(super) received: u64,
    pub(super) segment: Position,
    pub(super) offset: u64,
}

pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) append: Append,
    pub(super) _held: Held,
    /// The time of acceptance in ms since 1970.
    pub(super) received: u64,
    /// The size of the new segment that begins with this batch; `None` if it begins none.
    pub(super) opens: Option<u64>,
    pub(super) done: oneshot::Sender<Result<(), Refused>>,
}

fn chunk(outputs: usize) -> u64 {
    (AHEAD_BYTES / 4 / outputs.max(1) as u64).clamp(CHUNK_MIN, CHUNK_MAX)
}

impl SpoolState {
    /// Panics if the end of the log or the place of a cursor is wrong, in release builds too. With
    /// a cursor at a wrong place, events would be lost or sent twice, and no counter would say so.
    pub(super) fn check_ends(&self) {
        let end = self.log.end.position;
        let last = self.log.segments.back().map(|last| last.end.position);
        assert!(last.is_none_or(|last| last <= end), "the log ends at {end}, a file at {last:?}");
        let saving = &self.writing.saving;
        assert!(saving.done <= saving.requested, "nobody asked for what is saved");
        self.log.cursors.iter().for_each(|(_, cursor)| cursor.check_places(end));
    }

    /// Checks most invariants of [`LogState`], [`WriterState`] and [`Accounting`], and panics if
    /// one does not hold. Only debug builds and tests call this.
    pub(super) fn check(&self) {
        let Self { log, writing } = self;
        writing.accounting.check(&log.segments, &writing.waiting);
        let is_refused = writing.health.error.is_none() || writing.waiting.is_empty();
        assert!(is_refused, "with a fault nothing waits: {:?}", writing.health.error);
        assert!(writing.waiting.iter().is_sorted_by(|a, b| a.number < b.number), "in order");
        let last = writing.waiting.back();
        assert!(last.is_none_or(|last| last.number < writing.arrivals), "numbers are not reused");
        for (segment, next) in log.segments.iter().zip(log.segments.iter().skip(1)) {
            assert!(segment.first.position < segment.end.position, "only the last one is empty");
            assert!(segment.end.position <= next.first.position, "segments follow each other");
        }
        for (_, cursor) in &log.cursors {
            cursor.check_ahead(log.end.position);
        }
        let active = log.segments.iter().filter(|segment| segment.active).count();
        let is_last = log.segments.back().is_some_and(|last| last.active);
        assert!(active == usize::from(is_last), "only the last segment is written to");
        if cfg!(test) {
            let weight: u64 = log.tail.iter().map(TailRecord::weight).sum();
            assert_eq!(log.tail_bytes, weight, "the tail weighs as much as its records");
        }
    }

    /// Returns `true` if the active segment should be ended for its room: the queue is full, no
    /// batch waits, and the required outputs have finished all events.
    pub(super) fn can_seal_for_room(&self) -> bool {
        self.writing.told_full
            && self.writing.waiting.is_empty()
            && self.log.required_watermark() == self.log.end.position
            && self.log.segments.back().is_some_and(|last| last.active)
    }

    /// Returns `true` if the upkeep should delete something now.
    pub(super) fn can_reclaim(&self) -> bool {
        !self.writing.accounting.pending_delete().is_empty()
            || !self.writing.accounting.abandoned().is_empty()
            || self.log.finished().next().is_some()
    }

    pub(super) fn can_recycle(&self) -> bool {
        self.writing.accounting.spares() < SPARES_MAX && self.log.finished().next().is_some()
    }

    /// Returns `true` if the file of the next segment should be made now, and there is room for it.
    /// `usable`: the limit for all segment files.
    pub(super) fn wants_spare(&self, usable: u64) -> bool {
        let Self { log, writing } = self;
        writing.health.error.is_none()
            && !writing.closed
            && !writing.chores.spare_failed
            && !writing.told_full
            && log.segments.back().is_some_and(|last| last.active)
            && !writing.accounting.has_spare(writing.next_size())
            && writing.accounting.taken() + writing.next_size() <= usable
    }

    /// Returns the number of bytes that can be freed without a loss: finished segments, removed
    /// segments that are not stuck, and spare files.
    pub(super) fn reclaimable(&self) -> u64 {
        self.writing.accounting.pending_bytes()
            + self.writing.accounting.spare_bytes()
            + self.log.finished().map(|segment| segment.size).sum::<u64>()
    }

    /// Drops the segments with these indices (in rising order), and counts the losses.
    pub(super) fn drop_segments(&mut self, chosen: Vec<usize>, metrics: &QueueMetrics) {
        let Self { log, writing } = self;
        for index in chosen.into_iter().rev() {
            let Some(segment) = log.segments.remove(index) else { continue };
            assert!(!segment.active, "the segment that is written to is not dropped");
            log.lose(&segment, metrics);
            writing.accounting.retire(segment.first.position, segment.size);
            writing.saving.is_dirty = true;
        }
        log.join_holes();
    }

    /// Takes segments whose files are gone out of the log. Each output counts their events as lost
    /// when it has to read them.
    pub(super) fn give_up_segments(&mut self, missing: &[Position]) {
        let Self { log, writing } = self;
        log.segments.retain(|segment| {
            let is_missing = missing.contains(&segment.first.position);
            if is_missing {
                writing.accounting.retire(segment.first.position, segment.size);
            }
            !is_missing
        });
        writing.saving.is_dirty = true;
    }

    pub(super) fn insert_cursor(&mut self, mut cursor: CursorState) -> usize {
        cursor.output.show_keeping(self.writing.when_full);
        let wakes = self.log.finished_wakes.clone().filter(|_| !cursor.output.is_recorder());
        cursor.unrecorded = wakes.map(Unrecorded::new);
        let index = self.log.cursors.insert(cursor);
        self.log.chunk = chunk(self.log.cursors.len());
        index
    }

    /// Removes the cursor of an output that leaves, and requests a save of the cursors file.
    pub(super) fn remove_cursor(&mut self, index: usize) -> CursorState {
        let cursor = self.log.cursors.remove(index);
        self.log.chunk = chunk(self.log.cursors.len());
        self.writing.saving.ask();
        cursor
    }
}

impl LogState {
    /// Returns the name and the unrecorded events of each output, including those that have left.
    pub(super) fn unrecorded(&mut self) -> impl Iterator<Item = (&str, &mut Unrecorded)> {
        let here = self.cursors.iter_mut().filter_map(|(_, cursor)| {
            Some((cursor.output.name.as_str(), cursor.unrecorded.as_mut()?))
        });
        self.leaving.iter_mut().map(|(name, it)| (name.as_str(), it)).chain(here)
    }

    /// Returns the first position that some output has not finished, or whose evidence is not
    /// durable. If there is none, returns the end of the log.
    pub(super) fn watermark(&self) -> Position {
        let places = self.cursors.iter().map(|(_, cursor)| cursor.saved().position);
        let leaving = self.leaving.iter().filter_map(|(_, it)| it.first());
        let places = places.chain(leaving.map(|place| place.position));
        places.min().unwrap_or(self.end.position)
    }

    /// Returns the first position that a required output has not finished, or the log's end.
    pub(super) fn required_watermark(&self) -> Position {
        let required = self.cursors.iter().filter(|(_, cursor)| cursor.output.required);
        let watermarks = required.map(|(_, cursor)| cursor.claims.watermark());
        watermarks.min().unwrap_or(self.end.position)
    }

    /// Returns the cursor of each output. The cursor of the evidence recorder is left out.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &CursorState> {
        self.cursors.iter().map(|(_, cursor)| cursor).filter(|it| !it.output.is_recorder())
    }

    pub(super) fn is_closed_for(&self, index: usize) -> bool {
        self.draining && !self.cursors[index].output.is_recorder()
    }

    /// Returns the segments that every output has finished, oldest first, without the active one.
    pub(super) fn finished(&self) -> impl Iterator<Item = &Segment> {
        let watermark = self.watermark();
        self.segments
            .iter()
            .take_while(move |segment| !segment.active && segment.end.position <= watermark)
    }

    /// Returns the number of bytes of the segments that only optional outputs need.
    pub(super) fn spare_bytes(&self) -> u64 {
        let (needed, held) = (self.required_watermark(), self.watermark());
        let behind = self.segments.iter().skip_while(|segment| segment.end.position <= held);
        let spare = behind.take_while(|it| !it.active && it.end.position <= needed);
        spare.map(|segment| segment.size).sum()
    }

    /// Returns the number of segment bytes that no required output needs. A segment without a
    /// needed event counts as a whole, because it can be deleted, dropped or ended. If the active
    /// segment is needed, its unwritten bytes count, and the finished share of the written ones.
    pub(super) fn unneeded_bytes(&self) -> u64 {
        let needed = self.required_watermark();
        let of = |segment: &Segment| {
            let Range { start, end } = segment.positions();
            let left = end - needed.clamp(start, end);
            if left == 0 {
                return segment.size;
            }
            let taken = match segment.active {
                true => u128::from(segment.offset) * u128::from(left) / u128::from(end - start),
                false => u128::from(segment.size),
            };
            segment.size.saturating_sub(u64::try_from(taken).unwrap_or(segment.size))
        };
        self.segments.iter().map(of).sum()
    }

    pub(super) fn segment(&self, first: Position) -> Option<&Segment> {
        self.segments.get(self.index_of(first)?)
    }

    pub(super) fn segment_mut(&mut self, first: Position) -> Option<&mut Segment> {
        let index = self.index_of(first)?;
        self.segments.get_mut(index)
    }

    fn index_of(&self, first: Position) -> Option<usize> {
        self.segments.binary_search_by_key(&first, |segment| segment.first.position).ok()
    }

    /// Returns the index of the first segment that ends after a position.
    pub(super) fn segment_at(&self, position: Position) -> usize {
        self.segments.partition_point(|segment| segment.end.position <= position)
    }

    pub(super) fn tail_at(&self, position: Position) -> Option<usize> {
        let index = self.tail.partition_point(|record| record.end() <= position);
        self.tail.get(index).filter(|record| record.first.position <= position).map(|_| index)
    }

    /// Returns an output's unfinished events. Their lag is only approximate.
    pub(super) fn backlog(&self, cursor: &CursorState) -> Backlog {
        if self.abandoned {
            return Backlog::default();
        }
        let (mut events, mut bytes) = cursor.open();
        let (dropped_events, dropped_bytes) =
            cursors::missing_from(&self.holes, cursor.claims.read);
        let (counted_events, counted_bytes) =
            cursors::missing_from(&cursor.counted, cursor.claims.read);
        events += (self.end.position - cursor.claims.read)
            .saturating_sub(dropped_events + counted_events);
        bytes += self
            .end
            .byte
            .saturating_sub(cursor.ahead.byte)
            .saturating_sub(dropped_bytes + counted_bytes);
        let received = cursor.oldest().or_else(|| {
            let index = self.tail_at(cursor.claims.read)?;
            self.tail.get(index).map(|record| record.received)
        });
        let age =
            Duration::from_millis(now().saturating_sub(received.unwrap_or(cursor.ahead.received)));
        Backlog { events, bytes, lag: if events > 0 { age.as_secs_f64() } else { 0.0 } }
    }

    /// Returns `true` if no segment has some of the events that a cursor needs, and they are not
    /// counted as lost.
    pub(super) fn has_gap_for(&self, cursor: &CursorState) -> bool {
        let mut at = cursor.claims.watermark();
        let behind = self.segments.range(self.segment_at(at).min(self.segments.len())..);
        let ends = behind.map(|segment| (segment.first.position, segment.end.position));
        ends.chain([(self.end.position, self.end.position)]).any(|(first, end)| {
            let gap = at..first.max(at);
            at = end;
            let counted =
                cursors::missing_in(&self.holes, &gap) + cursors::missing_in(&cursor.counted, &gap);
            gap.end - gap.start > counted
        })
    }

    /// Chooses segments of at least `bytes` bytes to drop, oldest first. Returns their indices, or
    /// `None` if those that may be dropped are too small. Segments that only optional outputs need
    /// may be dropped; with `drop_oldest` also others, unless a required output has an event of the
    /// segment on the wire. The active segment and finished segments are never chosen.
    pub(super) fn droppable(&self, bytes: u64, drop_oldest: bool) -> Option<Vec<usize>> {
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

    /// Counts the loss of a segment that was taken out of the log, and adds it to the holes.
    fn lose(&mut self, segment: &Segment, metrics: &QueueMetrics) {
        let mut dropped = DropCount::default();
        for (_, cursor) in &mut self.cursors {
            let lost = cursor.drop_segment(segment);
            if !cursor.output.is_recorder() {
                dropped.lose(&cursor.output, lost);
            }
        }
        dropped.count(metrics);
        self.tail.retain(|record| record.segment != segment.first.position);
        self.tail_bytes = self.tail.iter().map(TailRecord::weight).sum();
        self.holes.push(Hole {
            start: segment.first.position,
            end: segment.end.position,
            bytes: segment.end.byte - segment.first.byte,
        });
        if self.finished_wakes.is_some() {
            self.give_up(segment);
        }
    }

    fn give_up(&mut self, segment: &Segment) {
        let dropped = segment.positions();
        let mut end = segment.end;
        while let Some(hole) = self.holes.iter().find(|hole| hole.start == end.position) {
            end = LogOffset { position: hole.end, byte: end.byte + hole.bytes };
        }
        self.unrecorded().for_each(|(_, it)| it.leave(dropped.clone(), end));
        match self.given_up.last_mut() {
            Some(last) if last.end == dropped.start => last.end = dropped.end,
            _ => self.given_up.push(dropped),
        }
    }

    /// Sorts the holes. If there are more than [`HOLES_MAX`], joins adjacent ones, so that a row of
    /// drops takes one entry. If a cursor's place is inside a joined hole, the number of bytes in
    /// its backlog is too low, but the number of events is right.
    fn join_holes(&mut self) {
        self.holes.sort_unstable_by_key(|hole| hole.start);
        if self.holes.len() > HOLES_MAX {
            self.holes.dedup_by(|next, hole| {
                let adjoins = hole.end == next.start;
                if adjoins {
                    (hole.end, hole.bytes) = (next.end, hole.bytes + next.bytes);
                }
                adjoins
            });
        }
    }

    pub(super) fn begin_segment(&mut self, segment: Segment) {
        // Otherwise positions could be given twice, or to no event.
        let (first, end) = (segment.first, self.end);
        assert!(first == end, "{} does not begin at {}", first.position, end.position);
        assert!(self.segments.back().is_none_or(|last| !last.active), "the last one is ended");
        self.segments.push_back(segment);
    }

    /// Returns the offset in the active segment and the place in the log at which a group is
    /// written. `active`: the first position of the segment that the writer has open.
    pub(super) fn place_for(&self, active: Position, group: &[Waiting]) -> (u64, LogOffset) {
        // A write at a wrong place would destroy events.
        let last = self.segments.back().filter(|last| last.active && last.first.position == active);
        let last = last.expect("a group is written to the last segment");
        let at = last.offset.next_multiple_of(BLOCK);
        let needed = group.iter().map(Waiting::needed).sum::<u64>();
        assert!(at + needed <= last.size, "{needed} bytes at {at} of {}", last.size);
        assert!(last.end == self.end, "the log ends at {}", self.end.position);
        (at, self.end)
    }

    /// Adds a record to the tail, and moves the oldest ones that have no room to `evicted`. The
    /// caller drops these after it has released the lock, because to free a large record takes a
    /// while.
    pub(super) fn remember(&mut self, record: TailRecord, evicted: &mut Vec<TailRecord>) {
        // A cursor finds its record in the tail by its position.
        let last = self.tail.back().map(TailRecord::end);
        assert!(last.is_none_or(|last| last <= record.first.position), "{last:?} is in the tail");
        assert!(record.end() <= self.end.position, "{} is not synced", record.first.position);
        self.tail_bytes += record.weight();
        self.tail.push_back(record);
        while self.tail_bytes > TAIL_BYTES {
            let Some(oldest) = self.tail.pop_front() else { return };
            self.tail_bytes -= oldest.weight();
            if oldest.lines.len() as u64 > self.chunk {
                // A cursor with pieces of a large record would exceed its share of memory for as
                // long as its consumer is unreachable.
                for (_, cursor) in &mut self.cursors {
                    cursor.forget_pieces_of(oldest.first.position..oldest.end());
                }
            }
            evicted.push(oldest);
        }
    }

    pub(super) fn contents(&self) -> Contents {
        let offset = |cursor: &CursorState| (cursor.output.name.clone(), cursor.saved());
        let mut outputs: BTreeMap<_, _> = self.outputs().map(offset).collect();
        for (name, unrecorded) in &self.leaving {
            // If an output of the same name has joined again, it begins after the earlier one.
            if let Some(first) = unrecorded.first()
                && (outputs.len() < cursors::OUTPUTS_MAX || outputs.contains_key(name))
            {
                let place = outputs.entry(name.clone()).or_insert(first);
                *place = first.min(*place);
            }
        }
        let aside = self.outputs().filter(|cursor| !cursor.shelved.is_empty()).map(|cursor| {
            (cursor.output.name.clone(), cursors::ranges(cursor.shelved.iter().copied()))
        });
        Contents { end: self.end, outputs, holes: self.holes.clone(), aside: aside.collect() }
    }

    /// Takes an event off the list of those that are set aside, so that its file will be deleted.
    pub(super) fn unshelve(&mut self, output: &str, position: Position) {
        for (_, cursor) in &mut self.cursors {
            if cursor.output.name == output {
                cursor.shelved.remove(&position);
            }
        }
        self.unshelved.push((output.to_owned(), position));
    }

    pub(super) fn wake_cursors(&self) {
        for (_, cursor) in &self.cursors {
            cursor.readable.notify_one();
        }
    }
}

impl WriterState {
    pub(super) fn new(config: &config::Queue) -> Self {
        Self {
            accounting: Accounting::default(),
            waiting: VecDeque::new(),
            arrivals: 0,
            segment_bytes: config.segment_bytes,
            when_full: config.when_full,
            told_full: false,
            health: Health::default(),
            chores: Chores::default(),
            saving: Saving { is_dirty: true, unsaved: 0, requested: 0, done: 0 },
            closed: false,
            unplaced: 0,
        }
    }

    pub(super) fn takes(&self) -> Result<(), Refused> {
        match self.health.fault() {
            _ if self.closed => Err(Refused::Full),
            Some(_) => Err(Refused::Disk),
            None => Ok(()),
        }
    }

    /// Returns the configured size of a segment, rounded up to whole blocks.
    pub(super) fn next_size(&self) -> u64 {
        self.segment_bytes.next_multiple_of(BLOCK)
    }

    /// Removes a waiting batch and its plan, and returns `true`, unless the writer has taken the
    /// batch already.
    pub(super) fn withdraw(&mut self, number: u64) -> bool {
        let Ok(index) = self.waiting.binary_search_by_key(&number, |waiting| waiting.number) else {
            return false;
        };
        let Some(withdrawn) = self.waiting.remove(index) else { return false };
        // If this batch was to begin a segment, the next batch of that segment begins it instead.
        let next = self.waiting.get_mut(index).filter(|next| next.opens.is_none());
        let behind = index + usize::from(withdrawn.opens.is_some());
        match (withdrawn.opens, next) {
            (Some(size), Some(next)) => next.opens = Some(size),
            (Some(size), None) => {
                self.accounting.withdraw_new(size, self.waiting.len() == index);
                return true;
            }
            (None, _) => {}
        }
        if self.waiting.range(behind..).all(|waiting| waiting.opens.is_none()) {
            self.accounting.withdraw_here(withdrawn.needed());
        }
        true
    }

    /// Removes all waiting batches. The caller corrects the plans in `accounting` under the same
    /// lock, and responds to the senders after it has released the lock.
    pub(super) fn clear_line(&mut self) -> Vec<Waiting> {
        self.waiting.drain(..).collect()
    }
}

impl Health {
    /// Returns the reason why nothing can be stored: the last error, or that one step of the writer
    /// thread has taken more than [`HANGS`]. `None` if batches can be stored.
    pub(super) fn fault(&self) -> Option<String> {
        let hangs = self.busy.map(|since| since.elapsed()).filter(|busy| *busy > HANGS);
        let hangs = hangs.map(|busy| format!("the disk has not answered for {} s", busy.as_secs()));
        self.error.clone().or(hangs)
    }
}

impl Saving {
    /// Marks the cursors file as out of date. Returns `true` if the upkeep must be woken.
    pub(super) fn touch(&mut self) -> bool {
        !std::mem::replace(&mut self.is_dirty, true)
    }

    /// Requests an immediate save of the cursors file. It is saved when `done` reaches the returned
    /// number.
    pub(super) fn ask(&mut self) -> u64 {
        self.is_dirty = true;
        self.requested += 1;
        self.requested
    }
}

impl Segment {
    /// Makes an inactive segment without records that begins at this place of the log.
    pub(super) fn new(first: LogOffset, size: u64) -> Self {
        Self {
            first,
            end: first,
            offset: FIRST_RECORD,
            size,
            seed: Seed::of(first.position),
            reused: false,
            is_sound: true,
            damaged: BTreeSet::new(),
            active: false,
        }
    }

    /// Makes a scan from this offset on, where the record with this position is expected.
    pub(super) fn scan<'f>(
        &self,
        file: &'f dyn File,
        begin: (u64, Position),
        check: Check,
    ) -> Scan<'f> {
        Scan::new(file, self.seed, begin, self.offset, self.end.position, check)
    }

    pub(super) fn positions(&self) -> Range<Position> {
        self.first.position..self.end.position
    }
}

impl TailRecord {
    /// `offset`: the place of the header in the segment that begins at the position `segment`.
    pub(super) fn new(
        segment: Position,
        offset: u64,
        header: RecordHeader,
        (lines, ends): (Bytes, Option<ListEnds>),
    ) -> Self {
        let RecordHeader { first, first_byte, received, events, .. } = header;
        let first = LogOffset { position: first, byte: first_byte };
        Self { first, events, lines, ends, received, segment, offset }
    }

    pub(super) fn end(&self) -> Position {
        self.first.position + self.events
    }

    pub(super) fn weight(&self) -> u64 {
        let ends = self.ends.as_ref().map_or(0, |ends| size_of_val(ends.offsets()));
        (self.lines.len() + ends) as u64 + BATCH_OVERHEAD
    }
}

impl Waiting {
    /// Returns an upper limit for the bytes that the batch takes in its segment.
    pub(super) fn needed(&self) -> u64 {
        needed(self.append.lines.len() as u64)
    }
}
