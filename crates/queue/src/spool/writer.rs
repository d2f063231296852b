//! The thread that writes groups of batches, and begins and ends segments.
//!
//! Only this thread writes to the segments of the log. It never holds the state's lock while it
//! writes or syncs a file. Work for which no sender has to wait is left to [`super::upkeep`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::accounting::Spare;
use super::turn::{NoticePanic, Turn};
#[cfg(test)]
use super::upkeep::Chore;
use super::upkeep::{Reclaim, Upkeep, Written};
use super::{
    DELETED, REMEMBERED_MAX, Segment, Shared, SpoolState, TailRecord, Waiting, all_there, turn,
};
use crate::contract::{Append, Refused, now};
use crate::cursors::Cursors;
use crate::segment;
use crate::segment::{
    BLOCK, FIRST_RECORD, LogOffset, RECORD_HEADER, RecordHeader, Seed, SegmentHeader,
};
use crate::synced::{Synced, SyncedFile};
use audit::ListEnds;
use base::disk::{Access, Aligned, File, SEGMENTS, named};
use base::lock::lock;
use base::position::Position;

const ZEROS: [u8; 4096] = [0; 4096];

/// The largest size of a group of several batches in bytes: about six batches of 400 events of 0.8
/// KB. Such a group is written from one buffer. Further waiting batches become the next group.
pub(super) const GROUP_BYTES: u64 = if cfg!(test) { 12 << 10 } else { 2 << 20 };

/// The bytes of a long batch after which its file is synced.
pub(super) const SYNC_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 16 << 20 };

/// The number of bytes that are copied before their checksum is computed: so few that the CPU's
/// first-level cache still has them. The checksum library takes as many in one turn.
const STEP: usize = if cfg!(test) { 1 << 10 } else { 24 << 10 };

/// The pause after the first error. It doubles with each further error, up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The time between two looks whether all segments still have their files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The time after which segments whose files were deleted are given up, and a new one is begun.
/// Until then somebody may put them back, or go on deleting.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The writer thread. It waits until there is work, and then does one [`Step`] at a time, the most
/// urgent one first ([`Writer::turn`]):
///
/// 1. probe: a test after an error, in which usually a new segment is made. No batch is stored
///    until it succeeds. The pause between two tests is [`RETRY_MIN`] to [`RETRY_MAX`].
/// 2. look: once a second, whether the queue's directory and all segments are still there
///    ([`Shared::without_file`]). The directory is checked after each sync, too.
/// 3. commit: the first waiting batches form a group, which is written with one write (a long batch
///    with several), synced, and published. Batches that arrive in the meantime wait for the next
///    group. A group ends before a batch that begins a new segment.
/// 4. seal: the active segment is ended, because the queue is full and its room is needed.
///
/// After a failed write or sync, the content of the file after the segment's last record is
/// unknown. The kernel may have forgotten data that it did not write, and the next sync does not
/// report this. The writer therefore never writes to this segment again. The failed group and all
/// waiting batches get [`Refused::Disk`]. The positions of the failed group are given to the next
/// batches, because nobody was told of them.
///
/// A batch must not be acknowledged, or visible to a cursor, before it is synced. A write must not
/// touch a block with acknowledged bytes. If the disk does not respond, the process may end before
/// this thread does.
pub(super) struct Writer {
    shared: Arc<Shared>,
    pub(super) upkeep: Arc<Mutex<Upkeep>>,
    synced: SyncedFile,
    /// The memory from which groups are written. `None` until a group needs it.
    buffer: Option<Aligned>,
    /// The segment that is written to. `None` at startup, after a failed write or sync, and while
    /// the last segment of the log is ended.
    active: Option<Written>,
    /// The wanted size in bytes of the segment that a probe makes, with room for the largest batch
    /// of the group that has failed. 0 after a probe has made a segment.
    retry_segment_bytes: u64,
    retry_at: Instant,
    pause: Duration,
    look_at: Instant,
    /// The time since which segments have no file.
    missing_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Commit,
    Seal,
    Look,
    Probe,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, cursors: Cursors) -> Self {
        let upkeep = Upkeep::new(Arc::clone(&shared), cursors);
        Self {
            shared,
            upkeep: Arc::new(Mutex::new(upkeep)),
            synced: SyncedFile::default(),
            buffer: None,
            active: None,
            retry_segment_bytes: 0,
            retry_at: Instant::now(),
            pause: RETRY_MIN,
            look_at: Instant::now() + LOOK_EVERY,
            missing_since: None,
        }
    }

    /// Writes the cursors file for the first time, with every output in it. Also returns `Ok` if
    /// the disk is full or fails: the writer then tries again, and stores no batch before that.
    ///
    /// # Errors
    ///
    /// The file can never be written: the directory is read-only, or belongs to another user.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let Err(error) = self.upkeep().save() else { return Ok(()) };
        let never = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        if never.contains(&error.kind()) {
            return Err(error);
        }
        self.shared.metrics.spool.write_errors.increment(1);
        let shared = Arc::clone(&self.shared);
        self.fault(&mut shared.lock(), format!("the cursors can't be written: {error}"));
        Ok(())
    }

    /// Locks the upkeep: waits for the end of its present chore, and keeps the next one from
    /// beginning. The caller must not hold the lock of the state.
    fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        lock(&self.upkeep)
    }

    /// Does one step after the other until the queue is closed, and then [`Writer::end`].
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _panic = NoticePanic(Arc::clone(&shared));
        loop {
            let mut state = shared.lock();
            state.writing.health.busy = None;
            let step = loop {
                match self.turn(&state) {
                    Turn::Do(step) => break step,
                    Turn::End => {
                        drop(state);
                        return self.end();
                    }
                    Turn::Wait(until) => {
                        let waited = shared.wakes.writer.wait_timeout(state, turn::wait(until));
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                }
            };
            state.writing.health.busy = Some(Instant::now());
            drop(state);
            self.perform(step);
        }
    }

    /// Returns the next action, in the order that [`Writer`] documents.
    fn turn(&self, state: &SpoolState) -> Turn<Step> {
        let may_look = !state.writing.closed && state.writing.health.error.is_none();
        if may_look && Instant::now() >= self.look_at {
            return Turn::Do(Step::Look);
        }
        self.turn_without_look(state)
    }

    /// Returns the next action of those that are not a look for the queue's files.
    fn turn_without_look(&self, state: &SpoolState) -> Turn<Step> {
        let has_fault = state.writing.health.error.is_some();
        if state.writing.closed {
            Turn::End
        } else if has_fault && Instant::now() >= self.retry_at {
            Turn::Do(Step::Probe)
        } else if !state.writing.waiting.is_empty() && !has_fault {
            Turn::Do(Step::Commit)
        } else if state.can_seal_for_room() {
            Turn::Do(Step::Seal)
        } else {
            Turn::Wait(Some(if has_fault { self.retry_at } else { self.look_at }))
        }
    }

    /// Returns `true` if both the writer and the upkeep wait until they are woken. The writer then
    /// only looks whether all files are there.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let turn = self.turn_without_look(&self.shared.lock());
        matches!(turn, Turn::Wait(until) if until == Some(self.look_at)) && self.upkeep().is_idle()
    }

    pub(super) fn perform(&mut self, step: Step) {
        match step {
            Step::Commit => self.commit(),
            Step::Seal => self.seal_for_room(),
            Step::Look => self.look(),
            Step::Probe => self.probe(),
        }
    }

    #[cfg(test)]
    pub(super) fn keep_up(&mut self, chore: Chore) {
        self.upkeep().perform(chore);
    }

    /// Writes and syncs the first group of waiting batches, and responds to its senders. The group
    /// has at most [`GROUP_BYTES`], unless its first batch alone is larger, and ends before a later
    /// batch that begins a new segment.
    fn commit(&mut self) {
        let group: Vec<Waiting> = {
            let mut state = self.shared.lock();
            let mut waiting = state.writing.waiting.iter();
            let mut bytes = waiting.next().map_or(0, Waiting::needed);
            let joins = |waiting: &&Waiting| {
                bytes += waiting.needed();
                waiting.opens.is_none() && bytes <= GROUP_BYTES
            };
            let count = 1 + waiting.take_while(joins).count();
            let count = count.min(state.writing.waiting.len());
            let group: Vec<Waiting> = state.writing.waiting.drain(..count).collect();
            state.writing.accounting.take_in_hand(&group);
            group
        };
        let Some(first) = group.first() else { return };
        if let Some(size) = first.opens {
            let needed = FIRST_RECORD + group.iter().map(Waiting::needed).sum::<u64>();
            match self.open_segment(size, needed.min(size)) {
                // The disk had room only for a smaller segment than planned. This group fits; the
                // batches that still wait are refused.
                Ok(made) if made < size => {
                    let behind = {
                        let mut state = self.shared.lock();
                        state.writing.accounting.clear_line(made - needed);
                        state.writing.clear_line()
                    };
                    refuse_all(behind);
                }
                Ok(_) => self.shared.lock().writing.accounting.opened(),
                Err(error) => {
                    return self.refuse(group, "no room for a new segment", &error, false);
                }
            }
        }
        match self.write(&group) {
            Ok(records) => self.publish(group, records),
            Err(error) => self.refuse(group, "a batch can't be written and synced", &error, true),
        }
    }

    /// Writes a group after the last record of the active segment, syncs it, and notes the new end
    /// of the log. Returns the offset and the header of each record.
    fn write(&mut self, group: &[Waiting]) -> io::Result<Vec<(u64, RecordHeader)>> {
        let Some(active) = &self.active else {
            return Err(io::Error::other("no segment is open"));
        };
        let (at, mut place) = self.shared.lock().log.place_for(active.first, group);
        self.rename_foreign(place.position + group.iter().map(|it| it.append.events).sum::<u64>())?;
        let size = group.iter().map(|it| RECORD_HEADER + it.append.lines.len() as u64).sum::<u64>();
        let started = Instant::now();
        let records = if size.next_multiple_of(BLOCK) > GROUP_BYTES {
            let [long] = group else { return Err(io::Error::other("a group is too long")) };
            self.write_long(active, long, at, place)?
        } else {
            let buffer = match &mut self.buffer {
                Some(buffer) => buffer,
                none => none.insert(Aligned::new(length(GROUP_BYTES))?),
            };
            let buffer = &mut buffer.bytes()[..length(size.next_multiple_of(BLOCK))];
            write_short(active, group, at, place, buffer)?
        };
        active.file.sync()?;
        let mut at = at;
        if let Some((offset, last)) = records.last() {
            (at, place) = (offset + last.size(), last.end_place());
        }
        self.check_place()?;
        let synced = Synced { end: place, segment: active.first, offset: at };
        self.note(&synced)?;
        self.shared.metrics.spool.sync.record(started.elapsed().as_secs_f64());
        Ok(records)
    }

    /// Writes a batch that is longer than [`GROUP_BYTES`], and never a list, directly from its
    /// memory, as one group of several records. An output that reads a part of a record checks the
    /// whole record, so that records must not be much longer.
    ///
    /// After about [`SYNC_BYTES`] the file is synced, and the step counts as begun again: a slow
    /// disk that still writes does not hang.
    fn write_long(
        &self,
        active: &Written,
        long: &Waiting,
        mut at: u64,
        mut place: LogOffset,
    ) -> io::Result<Vec<(u64, RecordHeader)>> {
        let seed = Seed::of(active.first);
        let (group, mut rest) = (place.position, &*long.append.lines);
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (start, mut parts) = (at, Vec::new());
            while !rest.is_empty() && at - start < SYNC_BYTES {
                let (lines, behind) = rest.split_at(first_record(rest));
                let header = RecordHeader {
                    first: place.position,
                    first_byte: place.byte,
                    received: long.received,
                    length: lines.len() as u64,
                    events: memchr::memchr_iter(b'\n', lines).count() as u64,
                    group,
                    crc: seed.crc(lines),
                };
                parts.push((header.encode(seed), lines));
                records.push((at, header));
                (at, place, rest) = (at + header.size(), header.end_place(), behind);
            }
            // Only a write of whole blocks bypasses the page cache.
            let end = at.next_multiple_of(BLOCK);
            let padding = &ZEROS[..length(end - at)];
            let pieces = parts.iter().flat_map(|(head, lines)| [head.as_slice(), lines]);
            let pieces: Vec<&[u8]> = pieces.chain([padding]).collect();
            active.file.write_at(&pieces, start)?;
            at = end;
            if !rest.is_empty() {
                active.file.sync()?;
                if let Some(busy) = &mut self.shared.lock().writing.health.busy {
                    *busy = Instant::now();
                }
            }
        }
        Ok(records)
    }

    /// Fails if what was just synced would not be found by a start.
    fn check_place(&self) -> io::Result<()> {
        self.shared.disk.place().check()?;
        match &self.active {
            Some(active) if !active.file.is_linked()? => Err(io::Error::other(DELETED)),
            _ => Ok(()),
        }
    }

    /// Looks whether the directory and all segments are still there. If not, no batch is stored
    /// until a probe finds that they are.
    fn look(&mut self) {
        self.look_at = Instant::now() + LOOK_EVERY;
        let place = self.shared.disk.place().check();
        // A listing that fails says nothing about the files.
        let missing = || self.shared.without_file().unwrap_or_default();
        if let Err(error) = place.and_then(|()| all_there(&missing())) {
            self.refuse(Vec::new(), "the queue's files are not all there", &error, true);
        }
    }

    fn note(&mut self, synced: &Synced) -> io::Result<()> {
        let noted = self.synced.write(&*self.shared.disk, synced);
        self.shared.lock().writing.health.note_is_unknown = noted.is_err();
        noted
    }

    /// Notes the present end of the log if the last note has failed (`Health::note_is_unknown`).
    fn note_again(&mut self) -> io::Result<()> {
        let synced = {
            let SpoolState { log, writing } = &*self.shared.lock();
            if !writing.health.note_is_unknown {
                return Ok(());
            }
            let last = log.segments.back().map(|last| (last.first.position, last.offset));
            let (segment, offset) = last.unwrap_or((log.end.position, FIRST_RECORD));
            Synced { end: log.end, segment, offset }
        };
        self.note(&synced)
    }

    /// Makes a synced group visible to outputs, counts it, adds it to the tail, and tells the
    /// senders.
    fn publish(&mut self, group: Vec<Waiting>, records: Vec<(u64, RecordHeader)>) {
        self.pause = RETRY_MIN;
        let metrics = &self.shared.metrics;
        let planned: u64 = group.iter().map(Waiting::needed).sum();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let Some(segment) = state.log.segments.back_mut() else { return };
        let before = segment.offset.next_multiple_of(BLOCK);
        if let Some((offset, last)) = records.last() {
            segment.offset = offset + last.size();
            segment.end = LogOffset { position: last.end(), byte: last.end_byte() };
            state.log.end = segment.end;
        }
        let used = segment.offset.next_multiple_of(BLOCK) - before;
        let first = segment.first.position;
        assert!(used <= planned, "a group takes {used} bytes, and was promised {planned}");
        let is_last = state.writing.waiting.iter().all(|waiting| waiting.opens.is_none());
        state.writing.accounting.published(if is_last { planned.saturating_sub(used) } else { 0 });
        let mut evicted = Vec::new();
        let mut records = records.into_iter();
        for waiting in group {
            let Append { mut lines, mut list, events, levels } = waiting.append;
            let bytes = lines.len() as u64;
            metrics.accepted(events, bytes, &levels);
            state.log.accepted += events;
            // Only a long batch has more than one record, and it is never a list.
            while !lines.is_empty()
                && let Some((offset, header)) = records.next()
            {
                let of_record = (lines.split_to(length(header.length)), list.take());
                if bytes <= REMEMBERED_MAX {
                    let record = TailRecord::new(first, offset, header, of_record);
                    state.log.remember(record, &mut evicted);
                }
            }
            // The sender may have gone.
            waiting.done.send(Ok(())).ok();
        }
        let is_new = state.writing.saving.touch();
        state.log.wake_cursors();
        drop(guard);
        if is_new {
            self.shared.wakes.upkeep.notify_one();
        }
        drop(evicted);
    }

    /// Refuses a group that could not be stored, and all waiting batches. `closes` is `true` if the
    /// group's write or sync has failed: the writer must then never write to the active segment
    /// again.
    fn refuse(&mut self, group: Vec<Waiting>, what: &str, error: &io::Error, closes: bool) {
        self.shared.metrics.spool.write_errors.increment(1);
        let largest = group.iter().map(Waiting::needed).max().unwrap_or(0);
        self.retry_segment_bytes = FIRST_RECORD + largest;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        if closes {
            self.active = None;
            if let Some(segment) = state.log.segments.back_mut() {
                segment.active = false;
                segment.is_sound = false;
                if segment.first == segment.end {
                    let (first, size) = (segment.first.position, segment.size);
                    state.writing.accounting.retire(first, size);
                    state.log.segments.pop_back();
                }
            }
        }
        let behind = state.writing.clear_line();
        state.writing.accounting.clear_plans(0);
        if is_full(error)
            && let Some(chosen) = state.log.droppable(self.retry_segment_bytes, false)
        {
            state.drop_segments(chosen, &self.shared.metrics);
        }
        self.fault(&mut state, format!("{what}: {error}"));
        drop(state);
        self.shared.wakes.upkeep.notify_one();
        refuse_all(group.into_iter().chain(behind));
    }

    /// Records an error of the disk, and logs it if it is new. No batch is stored until a probe
    /// succeeds.
    fn fault(&mut self, state: &mut SpoolState, fault: String) {
        if state.writing.health.error.as_ref() != Some(&fault) {
            let error = fault.clone();
            self.shared.metrics.changed(telemetry::State::DiskRefuses { error });
        }
        state.writing.health.error = Some(fault);
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// Tests whether batches can be stored again after an error, and records the result.
    fn probe(&mut self) {
        match self.try_probe() {
            Ok(()) => {
                self.shared.lock().writing.health.error = None;
                self.shared.metrics.changed(telemetry::State::DiskIsWell);
            }
            Err(error) => {
                self.shared.metrics.spool.write_errors.increment(1);
                let shared = Arc::clone(&self.shared);
                self.fault(&mut shared.lock(), format!("the queue can't be written: {error}"));
            }
        }
    }

    /// Makes and syncs a new segment or, if the queue is full, saves only the cursors file.
    fn try_probe(&mut self) -> io::Result<()> {
        let since = self.missing_since.take();
        self.shared.disk.place().check()?;
        let missing = self.shared.without_file()?;
        if let Err(error) = all_there(&missing) {
            let since = *self.missing_since.insert(since.unwrap_or_else(Instant::now));
            if since.elapsed() < GIVE_UP_AFTER {
                return Err(error);
            }
            self.shared.lock().give_up_segments(&missing);
            self.missing_since = None;
        }
        if self.upkeep().is_unnamed {
            self.upkeep().save()?;
        }
        self.note_again()?;
        self.reclaim_all()?;
        let size = {
            let state = self.shared.lock();
            state.writing.segment_bytes.min(self.shared.room(&state)) / BLOCK * BLOCK
        };
        let least = FIRST_RECORD + BLOCK;
        if size < least {
            // The disk works, but the queue is full. Appends are then refused for that reason.
            return self.upkeep().save();
        }
        // The segment must have room for the largest refused batch. Otherwise a nearly full disk
        // would seem to work after each small batch, and to fail after each large one. If all
        // required outputs have finished all events, they free no more room, and a segment of any
        // size will do.
        let empty = {
            let state = self.shared.lock();
            state.log.required_watermark() == state.log.end.position
        };
        let wanted = if empty { least } else { self.retry_segment_bytes.clamp(least, size) };
        let made = self.open_segment(size, wanted)?;
        self.retry_segment_bytes = 0;
        self.shared.lock().writing.accounting.clear_plans(made - FIRST_RECORD);
        Ok(())
    }

    /// Makes a new segment at the end of the log, from a spare file if there is one of this size.
    /// If the disk has no room for `size` bytes, the segment is smaller, but not below `least`.
    /// Returns its size.
    fn open_segment(&mut self, size: u64, least: u64) -> io::Result<u64> {
        let end = self.make_way()?;
        let spare = self.take_spare(size);
        let (file, size) = match spare {
            Some(spare) => (self.use_spare(spare, end)?, size),
            None => self.make_segment(end, size, least)?,
        };
        self.seal();
        let mut state = self.shared.lock();
        state.writing.accounting.made(size);
        state.writing.chores.spare_failed = false;
        state.log.begin_segment(Segment {
            reused: spare.is_some_and(|spare| spare.reused),
            active: true,
            ..Segment::new(end, size)
        });
        drop(state);
        self.active = Some(Written { file, first: end.position });
        // The upkeep makes the next spare file.
        self.shared.wakes.upkeep.notify_one();
        Ok(size)
    }

    /// Takes a spare file of this size. Waits for the upkeep if it may be making one.
    fn take_spare(&self, size: u64) -> Option<Spare> {
        let take = || self.shared.lock().writing.accounting.take_spare(size);
        take().or_else(|| {
            drop(self.upkeep());
            take()
        })
    }

    /// Makes a spare file the segment that begins at `end`. The file gets its new name only after
    /// its new header is synced.
    fn use_spare(&self, spare: Spare, end: LogOffset) -> io::Result<Arc<dyn File>> {
        let disk = &self.shared.disk;
        let old = spare.name();
        let name = segment::file_name(end.position);
        let header = SegmentHeader::new(end, now(), spare.reused);
        let renamed = disk.open(&old, Access::Append).and_then(|file| {
            write_header(&*file, header)?;
            disk.rename(&old, &name)?;
            Ok(file)
        });
        let file = renamed.inspect_err(|_| {
            self.shared.lock().writing.accounting.discard_spare(spare.number);
        })?;
        self.shared.lock().writing.accounting.spare_is_used(spare.number);
        disk.sync_directory(SEGMENTS).inspect_err(|_| {
            self.shared.lock().writing.accounting.made_in_vain(end.position, spare.size);
        })?;
        Ok(file)
    }

    /// Makes the file of the segment that begins at `end`, with a size between `least` and `size`.
    /// Returns the file and its size.
    fn make_segment(
        &mut self,
        end: LogOffset,
        mut size: u64,
        least: u64,
    ) -> io::Result<(Arc<dyn File>, u64)> {
        let missing = |writer: &Self| {
            let state = writer.shared.lock();
            let accounting = &state.writing.accounting;
            (accounting.files() + size).saturating_sub(accounting.limit(writer.shared.usable()))
        };
        if missing(self) > 0 {
            self.upkeep().reclaim(Reclaim::Spares)?;
        }
        if missing(self) > 0 {
            self.reclaim_all()?;
        }
        if missing(self) > 0 || size < least {
            return Err(io::Error::other("queue.max_bytes leaves no room for it"));
        }
        let name = segment::file_name(end.position);
        let disk = Arc::clone(&self.shared.disk);
        loop {
            match disk.create(&name, size) {
                Err(error)
                    if is_full(&error)
                        && self.shared.lock().writing.accounting.spare_bytes() > 0 =>
                {
                    self.reclaim_all()?;
                }
                Err(error) if is_full(&error) && size > least => {
                    size = (size / 2).next_multiple_of(BLOCK).max(least);
                }
                Err(error) if is_full(&error) && self.drop_for_space() => self.reclaim_all()?,
                // The file is left from a segment that could not be made. It has no acknowledged
                // events.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.remove(&name)?,
                made => break drop(made?),
            }
        }
        let safe = disk.open(&name, Access::Append).and_then(|file| {
            write_header(&*file, SegmentHeader::new(end, now(), false))?;
            disk.sync_directory(SEGMENTS)?;
            Ok((file, size))
        });
        safe.inspect_err(|_| {
            self.shared.lock().writing.accounting.made_in_vain(end.position, size);
        })
    }

    /// Makes sure that no other file has the next segment's name. Returns the place where it
    /// begins.
    fn make_way(&mut self) -> io::Result<LogOffset> {
        let (end, is_taken) = {
            let mut state = self.shared.lock();
            // A segment without a record has the name that the next segment needs.
            if let Some(empty) = state.log.segments.pop_back_if(|last| last.first == last.end) {
                self.active = None;
                state.writing.accounting.retire(empty.first.position, empty.size);
            }
            let end = state.log.end;
            (end, state.writing.accounting.has_name(end.position))
        };
        self.rename_foreign(end.position)?;
        if is_taken {
            self.reclaim_all()?;
            if self.shared.lock().writing.accounting.is_stuck(end.position) {
                // If a segment that can't be deleted has this name, a later deletion would delete
                // the new segment.
                let name = segment::file_name(end.position);
                let error = io::Error::other("an empty segment of this name can't be deleted");
                return Err(named(&name)(error));
            }
        }
        Ok(end)
    }

    /// Renames the files that the queue did not write and whose position is `end` or before it.
    /// Otherwise the next start would take such a file for a segment of the log.
    fn rename_foreign(&self, end: Position) -> io::Result<()> {
        let next = || self.shared.lock().log.foreign.first().copied();
        while let Some(first) = next().filter(|first| *first <= end) {
            let name = segment::file_name(first);
            let other = format!("{name}.foreign-{}", now());
            match self.shared.disk.rename(&name, &other) {
                // Somebody has moved it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => {
                    renamed.map_err(named(&name))?;
                    self.shared.disk.sync_directory(SEGMENTS)?;
                    tracing::warn!(
                        file = name,
                        other,
                        "the queue needs the name of a file in segments/ that it did not write, \
                         and has given the file another name"
                    );
                }
            }
            self.shared.lock().log.foreign.remove(0);
        }
        Ok(())
    }

    /// Makes sure that a segment can be deleted when the disk is full: if none is finished, drops
    /// one that only optional outputs need. `false` if there is neither.
    fn drop_for_space(&self) -> bool {
        let mut state = self.shared.lock();
        if state.log.finished().next().is_none() {
            let Some(oldest) = state.log.droppable(1, false) else { return false };
            state.drop_segments(oldest, &self.shared.metrics);
        }
        true
    }

    /// Ends the active segment. The upkeep may cut its file.
    fn seal(&mut self) {
        let Some(active) = self.active.take() else { return };
        let mut state = self.shared.lock();
        let Some(segment) = state.log.segment_mut(active.first) else { return };
        segment.active = false;
        state.writing.chores.ended.push(active);
    }

    /// Ends the active segment if [`SpoolState::can_seal_for_room`]. Also drops all segments that
    /// only optional outputs need, because the room of both may be needed together.
    fn seal_for_room(&mut self) {
        let mut state = self.shared.lock();
        if !state.can_seal_for_room() {
            return;
        }
        self.active = None;
        state.writing.accounting.clear_plans(0);
        if let Some(last) = state.log.segments.back_mut() {
            last.active = false;
        }
        let all = state.log.droppable(state.log.spare_bytes(), false).unwrap_or_default();
        state.drop_segments(all, &self.shared.metrics);
        drop(state);
        self.shared.wakes.upkeep.notify_one();
    }

    fn reclaim_all(&mut self) -> io::Result<()> {
        self.seal_for_room();
        self.upkeep().reclaim(Reclaim::All)
    }

    /// Writes all waiting batches, ends the last segment, and does the last work of the upkeep
    /// ([`Upkeep::end`]).
    pub(super) fn end(mut self) {
        while !self.shared.lock().writing.waiting.is_empty() {
            self.commit();
        }
        self.shared.lock().writing.accounting.clear_plans(0);
        self.seal();
        self.upkeep().end();
    }
}

fn refuse_all(batches: impl IntoIterator<Item = Waiting>) {
    for waiting in batches {
        // The sender may have gone.
        waiting.done.send(Err(Refused::Disk)).ok();
    }
}

/// Writes a group with one write, from a buffer of its size, which is a multiple of [`BLOCK`].
fn write_short(
    active: &Written,
    group: &[Waiting],
    start: u64,
    mut place: LogOffset,
    buffer: &mut [u8],
) -> io::Result<Vec<(u64, RecordHeader)>> {
    let (seed, first) = (Seed::of(active.first), place.position);
    let (mut records, mut at) = (Vec::with_capacity(group.len()), start);
    for waiting in group {
        let Append { lines, list, .. } = &waiting.append;
        let (head, copy) = buffer[length(at - start)..].split_at_mut(length(RECORD_HEADER));
        let header = RecordHeader {
            first: place.position,
            first_byte: place.byte,
            received: waiting.received,
            length: lines.len() as u64,
            events: waiting.append.events,
            group: first,
            crc: copy_lines(seed, lines, list.as_ref(), copy),
        };
        head.copy_from_slice(&header.encode(seed));
        records.push((at, header));
        at += header.size();
        place = header.end_place();
    }
    buffer[length(at - start)..].fill(0);
    active.file.write_at(&[buffer], start)?;
    Ok(records)
}

/// Returns the length of the first record of a long batch: the whole lines that [`GROUP_BYTES`]
/// have room for, or one longer line.
fn first_record(lines: &[u8]) -> usize {
    let most = length(GROUP_BYTES).min(lines.len());
    let (front, behind) = lines.split_at(most);
    let end = memchr::memrchr(b'\n', front);
    let end = end.or_else(|| Some(most + memchr::memchr(b'\n', behind)?));
    end.map_or(lines.len(), |end| end + 1)
}

/// Copies a batch to the front of `to` as lines. Returns their checksum. `list`: the ends of the
/// events, if the batch is a JSON list as it was received.
fn copy_lines(seed: Seed, events: &[u8], list: Option<&ListEnds>, to: &mut [u8]) -> u32 {
    let mut ends = list.into_iter().flat_map(ListEnds::iter).peekable();
    let (mut crc, mut start) = (seed.start(), 0);
    for (from, to) in events.chunks(STEP).zip(to.chunks_mut(STEP)) {
        let to = &mut to[..from.len()];
        to.copy_from_slice(from);
        while let Some(end) = ends.next_if(|end| *end < start + STEP) {
            to[end - start] = b'\n';
        }
        start += STEP;
        crc = crc32c::crc32c_append(crc, to);
    }
    crc
}

/// Writes and syncs the header of a segment, with zeros up to the first record.
fn write_header(file: &dyn File, header: SegmentHeader) -> io::Result<()> {
    let header = header.encode();
    file.write_at(&[&header, &ZEROS[header.len()..]], 0)?;
    file.sync()
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Returns `true` if the disk or the user's quota is full, or the file would be too large.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
