//! The thread that writes groups of batches and the cursors file, and makes and deletes segments.
//!
//! Only this thread changes the files of segments and the cursors file. It holds the state's lock
//! only to take work and to publish the outcome.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Segment;
use super::Shared;
use super::SpoolState;
use super::TailRecord;
use super::Waiting;
use super::cursor::UNSAVED_MAX;
use super::incoming::IncomingFile;
use super::now;
use crate::position::Position;
use crate::queue::contract::Refused;
use crate::queue::cursors::Cursors;
use crate::queue::cursors::LogOffset;
use crate::queue::disk::File;
use crate::queue::disk::SEGMENTS;
use crate::queue::disk::named;
use crate::queue::segment;
use crate::queue::segment::BLOCK;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::RecordHeader;
use crate::queue::segment::SegmentHeader;
use crate::telemetry;

/// The time between two saves of the cursors file while it is out of date.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// After the writer has deleted files, it waits at least this long before it deletes files again,
/// unless room is needed. Several small segments are then deleted together.
const RECLAIM_EVERY: Duration = Duration::from_millis(250);

/// If a file could not be deleted, the writer tries again after this time. If room is needed, it
/// tries earlier.
const AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };

/// The longest time between two looks at finished segments that outputs want to keep for a while.
/// The writer does not simply sleep until such a segment may be deleted: the clock may be set or
/// the settings may change meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The pause after the first error, before the writer tries to store again. After each further
/// error, the pause is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest pause after an error, before the writer tries to store again.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The writer thread.
///
/// The thread waits until there is something to do, and then does one [`Step`] at a time. If there
/// are several steps to do, it does the most urgent one first ([`Writer::turn`]):
///
/// 1. probe: a test after an error. No batch is stored until a new segment can be made and synced.
///    The writer tries this with pauses of [`RETRY_MIN`] to [`RETRY_MAX`].
/// 2. save: the cursors file is written when it is out of date and its last save is a second ago.
///    It is written earlier when many bytes have become final (need not be sent again), or when an
///    output joins or leaves.
/// 3. reclaim: files that no output needs are deleted. Before that, the cursors file is saved, so
///    that no place in it lies in a deleted file.
/// 4. commit: the first of the waiting batches form a group. The group is written with one write,
///    synced, and published (made visible to outputs). Batches that arrive meanwhile wait, and
///    become the next group. A group ends before a batch that begins a new segment.
///
/// After a failed write or sync nobody knows what the file contains after the segment's last
/// record: the kernel may have forgotten data that it did not write, and the next sync does not
/// report this. The writer therefore never writes to this segment again. The failed group and all
/// waiting batches get [`Refused::Disk`]. The positions of the failed group are given to the first
/// batches of the next segment, because nobody was told of them.
///
/// A batch must not be acknowledged to its sender, and must not be visible to a cursor, before this
/// batch is synced. A segment must not be deleted while the cursors file on disk still says that an
/// output needs the segment. A write must not touch a block with acknowledged bytes. If the disk
/// does not answer, nobody waits for the thread: the process may end before the thread has ended.
pub(super) struct Writer {
    shared: Arc<Shared>,
    cursors: Cursors,
    /// The segment that is written to; `None` after an error and at the start.
    active: Option<Active>,
    /// The end of the log as the cursors file on disk states it.
    saved_end: Position,
    /// The earliest time of the next save of the cursors file, unless an output joins or leaves
    /// before.
    save_at: Instant,
    /// The number of the last request to save the cursors file (`save_requested`) at the time of
    /// the last attempt to save, even if this attempt failed.
    save_attempted: u64,
    /// `true`: the cursors file does not contain every output's name yet. No batch is stored before
    /// the file contains all names.
    unnamed: bool,
    /// The earliest time when the writer deletes files again, unless room is needed.
    reclaim_at: Instant,
    /// After a file could not be deleted, the writer tries again at this time, or earlier if room
    /// is needed.
    again_at: Instant,
    /// `true`: it was logged that some files can't be deleted.
    told_stuck: bool,
    /// `true`: it was logged that delivered segments can't be deleted at present, because the
    /// cursors file can't be written or because of another error.
    told_kept: bool,
    /// `true`: it was logged that the cursors file can't be written.
    told_unsaved: bool,
    /// The least size in bytes of the segment (a file of the queue) that the next probe must make.
    /// A probe tests whether the disk works again after an error; no batch is stored until a probe
    /// succeeds. The size has room for the largest batch of the group that was being written when
    /// the error came; 0 after a successful probe. It does not matter once all required outputs
    /// have finished all events: then a smaller segment will do.
    retry_segment_bytes: u64,
    /// The time when the writer tries to store again after an error.
    retry_at: Instant,
    /// The pause before the next attempt to store, if there is another error.
    pause: Duration,
}

/// The segment that is written to.
struct Active {
    file: Arc<dyn File>,
    /// The first position of the segment.
    first: Position,
}

/// A step of the writer thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the group of batches that is at the front of the waiting batches.
    Commit,
    /// Write the cursors file, which notes how far each output has got.
    Save,
    /// Delete the files that no output needs.
    Reclaim,
    /// Find out whether batches can be stored again, after the disk has failed.
    Probe,
}

/// The next action of the writer thread.
enum Turn {
    /// Do this step now.
    Do(Step),
    /// Wait until this time; `None`: wait until the thread is woken.
    Wait(Option<Instant>),
    /// End, because the queue is closed.
    End,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, cursors: Cursors) -> Self {
        let now = Instant::now();
        Self {
            shared,
            cursors,
            active: None,
            saved_end: Position::START,
            save_at: now,
            save_attempted: 0,
            unnamed: true,
            reclaim_at: now,
            again_at: now,
            told_stuck: false,
            told_kept: false,
            retry_segment_bytes: 0,
            told_unsaved: false,
            retry_at: now,
            pause: RETRY_MIN,
        }
    }

    /// Writes the cursors file for the first time, with every output in it. If the disk is full or
    /// fails, also returns `Ok`: the writer tries again later, and stores no batch until the file
    /// is written.
    ///
    /// # Errors
    ///
    /// The file can never be written: the directory is read-only, or belongs to another user.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let Err(error) = self.save() else { return Ok(()) };
        let never = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        if never.contains(&error.kind()) {
            return Err(error);
        }
        self.shared.metrics.write_errors.increment(1);
        let shared = Arc::clone(&self.shared);
        self.fault(&mut shared.lock(), format!("the cursors can't be written: {error}"));
        Ok(())
    }

    /// Does one step after the other until the queue is closed. At the end writes the batches that
    /// are still waiting, saves the cursors file if it is out of date, deletes the files that no
    /// output needs, and returns.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut state = shared.lock();
            state.writing.busy = None;
            let step = loop {
                match self.turn(&state) {
                    Turn::Do(step) => break step,
                    Turn::End => {
                        drop(state);
                        return self.end();
                    }
                    Turn::Wait(until) => {
                        let wait = until.map_or(Duration::MAX, |until| {
                            until.saturating_duration_since(Instant::now())
                        });
                        // `wait_timeout` adds the time to a clock, which an hour does not overflow.
                        let wait = wait.min(Duration::from_secs(3600));
                        let waited = shared.work.wait_timeout(state, wait);
                        state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                    }
                }
            };
            state.writing.busy = Some(Instant::now());
            drop(state);
            self.perform(step);
        }
    }

    /// Returns the next action: the most urgent step that is to be done now, or how long to wait,
    /// or that the thread ends because the queue is closed. The order of the steps is described at
    /// [`Writer`].
    fn turn(&self, state: &SpoolState) -> Turn {
        let now = Instant::now();
        let save = state.writing.cursors_dirty
            && (now >= self.save_at || state.writing.save_requested > self.save_attempted);
        let can_reclaim = state.can_reclaim();
        let again = (!state.writing.accounting.stuck().is_empty()).then_some(self.again_at);
        if state.writing.closed {
            Turn::End
        } else if state.writing.fault.is_some() && now >= self.retry_at {
            Turn::Do(Step::Probe)
        } else if save || state.writing.unsaved >= UNSAVED_MAX {
            Turn::Do(Step::Save)
        } else if state.writing.reclaim_wanted
            || (can_reclaim && now >= self.reclaim_at)
            || again.is_some_and(|at| now >= at)
        {
            Turn::Do(Step::Reclaim)
        } else if !state.writing.waiting.is_empty() && state.writing.fault.is_none() {
            Turn::Do(Step::Commit)
        } else {
            let save = state.writing.cursors_dirty.then_some(self.save_at);
            let retry = state.writing.fault.is_some().then_some(self.retry_at);
            let kept = state.log.kept_for().map(|kept| now + kept.min(LOOK_EVERY));
            let reclaim = if can_reclaim { Some(self.reclaim_at) } else { kept };
            Turn::Wait(save.into_iter().chain(retry).chain(reclaim).chain(again).min())
        }
    }

    /// Returns `true` if the writer has nothing to do, and waits until another thread wakes it.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.turn(&self.shared.lock()), Turn::Wait(None))
    }

    /// Does one step.
    pub(super) fn perform(&mut self, step: Step) {
        match step {
            Step::Commit => self.commit(),
            Step::Save => self.save_or_tell(),
            Step::Reclaim => self.reclaim_or_tell(),
            Step::Probe => self.probe(),
        }
    }

    /// Takes the first group of batches from the waiting ones, writes and syncs this group, and
    /// answers its senders. The group ends before the next batch that begins a new segment.
    fn commit(&mut self) {
        let mut group: Vec<Waiting> = {
            let mut state = self.shared.lock();
            let begins = |waiting: &Waiting| waiting.opens.is_some();
            let later = state.writing.waiting.iter().skip(1).position(begins);
            let count = later.map_or(state.writing.waiting.len(), |index| index + 1);
            let group: Vec<Waiting> = state.writing.waiting.drain(..count).collect();
            state.writing.accounting.take_in_hand(&group);
            group
        };
        if let Some(file) = group.first_mut().and_then(|first| first.incoming.take()) {
            return self.commit_incoming(group, &file);
        }
        let Some(first) = group.first() else { return };
        if let Some(size) = first.opens {
            let needed = FIRST_RECORD + group.iter().map(Waiting::needed).sum::<u64>();
            match self.open_segment(size, needed.min(size)) {
                Ok(made) if made < size => self.turn_away(made - needed),
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

    /// Makes the file of a large request body a segment of the log, and answers the sender. `group`
    /// contains only this body.
    fn commit_incoming(&mut self, group: Vec<Waiting>, file: &IncomingFile) {
        let received = group.first().map_or_else(now, |waiting| waiting.received);
        let adopted = self.make_way().and_then(|end| self.adopt(file, received, end));
        if let Err(error) = adopted {
            self.shared.lock().writing.accounting.abandon(file.name.clone(), file.size);
            return self.refuse(group, "a large body can't be made a segment", &error, false);
        }
        self.pause = RETRY_MIN;
        self.seal();
        for Waiting { append, done, .. } in group {
            self.shared.metrics.accepted(append.events, file.bytes, &append.levels);
            self.shared.lock().publish_incoming(file, append.events);
            // The sender may have gone: then nobody needs the answer.
            done.send(Ok(())).ok();
        }
    }

    /// Makes the file of a large request body the segment that begins at `end`. The lines in the
    /// file are synced already. Writes and syncs the headers of the segment and of its records, and
    /// then renames the file. If an error happens after that, renames the file back if possible.
    fn adopt(&self, incoming: &IncomingFile, received: u64, end: LogOffset) -> io::Result<()> {
        let started = Instant::now();
        let mut place = end;
        for record in &incoming.records {
            let header = RecordHeader {
                first: place.position,
                first_byte: place.byte,
                received,
                length: record.length,
                events: record.events,
                // Each record is a group of its own. A reader then takes zeros inside the file for
                // damage, never for a torn write.
                group: place.position,
                crc: record.crc,
            };
            incoming.file.write_at(&[&header.encode()], record.offset)?;
            place = LogOffset { position: header.end(), byte: header.end_byte() };
        }
        let header = SegmentHeader { first: end.position, first_byte: end.byte, made: now() };
        incoming.file.write_at(&[&header.encode()], 0)?;
        incoming.file.sync()?;
        let name = segment::file_name(end.position);
        self.shared.disk.rename(&incoming.name, &name)?;
        if let Err(error) = self.shared.disk.sync_directory(SEGMENTS) {
            // The file gets its old name again, and a start deletes files of such names: nobody was
            // told that the body is safe.
            self.shared.disk.rename(&name, &incoming.name)?;
            return Err(error);
        }
        self.shared.metrics.sync.record(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Refuses all waiting batches. The disk had room only for a smaller segment than the one for
    /// which these batches were planned. The group of batches that is just being written fits, and
    /// is not refused. `free`: the number of bytes that are still free in the smaller segment after
    /// this group.
    fn turn_away(&self, free: u64) {
        let behind: Vec<Waiting> = {
            let mut state = self.shared.lock();
            state.writing.accounting.clear_line(free);
            state.writing.clear_line()
        };
        for waiting in behind {
            waiting.done.send(Err(Refused::Disk)).ok();
        }
    }

    /// Writes a group of batches after the last record of the active segment, and syncs the file.
    /// Returns the offset and the header of each new record.
    fn write(&self, group: &[Waiting]) -> io::Result<Vec<(u64, RecordHeader)>> {
        let Some(active) = &self.active else {
            return Err(io::Error::other("no segment is open"));
        };
        let (mut at, mut place) = {
            let state = self.shared.lock();
            let offset = state.log.segments.back().map_or(FIRST_RECORD, |segment| segment.offset);
            (offset.next_multiple_of(BLOCK), state.log.end)
        };
        let (start, first) = (at, place.position);
        let mut records = Vec::with_capacity(group.len());
        for waiting in group {
            let lines = &waiting.append.lines;
            let header = RecordHeader {
                first: place.position,
                first_byte: place.byte,
                received: waiting.received,
                length: lines.len() as u64,
                events: waiting.append.events,
                group: first,
                crc: crc32c::crc32c(lines),
            };
            records.push((at, header));
            at += header.size();
            place = LogOffset { position: header.end(), byte: header.end_byte() };
        }
        let headers: Vec<_> = records.iter().map(|(_, header)| header.encode()).collect();
        let pieces: Vec<&[u8]> = headers
            .iter()
            .zip(group)
            .flat_map(|(header, waiting)| [header.as_slice(), &waiting.append.lines])
            .collect();
        let started = Instant::now();
        active.file.write_at(&pieces, start)?;
        active.file.sync()?;
        self.shared.metrics.sync.record(started.elapsed().as_secs_f64());
        Ok(records)
    }

    /// Makes a synced group of batches visible to outputs: adds it to the log, counts its events,
    /// keeps the new records in memory, and answers the senders.
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
        debug_assert!(used <= planned, "a group takes {used} bytes, and was promised {planned}");
        debug_assert!(segment.offset <= segment.size, "a segment is written beyond its end");
        let is_last = state.writing.waiting.iter().all(|waiting| waiting.opens.is_none());
        state.writing.accounting.published(if is_last { planned.saturating_sub(used) } else { 0 });
        let mut evicted = Vec::new();
        for (waiting, (offset, header)) in group.into_iter().zip(records) {
            let bytes = waiting.append.lines.len() as u64;
            metrics.accepted(waiting.append.events, bytes, &waiting.append.levels);
            state.log.accepted += waiting.append.events;
            let record = TailRecord {
                first: LogOffset { position: header.first, byte: header.first_byte },
                events: header.events,
                lines: waiting.append.lines,
                received: header.received,
                segment: first,
                offset,
            };
            state.log.remember(record, &mut evicted);
            // The sender may have gone: then nobody needs the answer.
            waiting.done.send(Ok(())).ok();
        }
        state.writing.cursors_dirty = true;
        state.log.wake_cursors();
        drop(guard);
        drop(evicted);
    }

    /// Refuses all batches of a group that could not be stored, and all waiting batches. `closes`
    /// is `true` if a write or sync has failed: nobody then knows what the file contains after the
    /// segment's last record. The writer never writes to such a segment again.
    fn refuse(&mut self, group: Vec<Waiting>, what: &str, error: &io::Error, closes: bool) {
        self.shared.metrics.write_errors.increment(1);
        let largest = group.iter().map(Waiting::needed).max().unwrap_or(0);
        self.retry_segment_bytes = FIRST_RECORD + largest;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        if closes {
            self.active = None;
            if let Some(segment) = state.log.segments.back_mut() {
                (segment.active, segment.ended) = (false, now());
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
        for waiting in group.into_iter().chain(behind) {
            waiting.done.send(Err(Refused::Disk)).ok();
        }
    }

    /// Notes an error of the disk. Logs the error, unless the same error was noted before. No batch
    /// is stored until a probe (a test whether the disk works) succeeds.
    fn fault(&mut self, state: &mut SpoolState, fault: String) {
        if state.writing.fault.as_ref() != Some(&fault) {
            let error = fault.clone();
            self.shared.metrics.changed(telemetry::State::DiskRefuses { error });
        }
        state.writing.fault = Some(fault);
        self.wait();
    }

    /// Sets the time of the next attempt to store, after the present pause. Then doubles the pause
    /// for the next error, up to `RETRY_MAX`.
    fn wait(&mut self) {
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// Tests whether batches can be stored again after an error, and notes the result.
    fn probe(&mut self) {
        match self.try_probe() {
            Ok(()) => {
                self.shared.lock().writing.fault = None;
                self.shared.metrics.changed(telemetry::State::DiskIsWell);
            }
            Err(error) => {
                self.shared.metrics.write_errors.increment(1);
                let shared = Arc::clone(&self.shared);
                self.fault(&mut shared.lock(), format!("a new segment can't be made: {error}"));
            }
        }
    }

    /// Returns `Ok` if the disk works again. To find out, it makes and syncs a new segment. If the
    /// queue is full, no segment may be made. In this case it writes the cursors file instead.
    fn try_probe(&mut self) -> io::Result<()> {
        if self.unnamed {
            self.save()?;
        }
        self.reclaim(Reclaim::All)?;
        let size = {
            let state = self.shared.lock();
            state.writing.segment_bytes.min(self.shared.room(&state)) / BLOCK * BLOCK
        };
        let least = FIRST_RECORD + BLOCK;
        if size < least {
            // The disk works, but the queue is full. Appends are then refused for that reason.
            return self.save();
        }
        // The segment must have room for the largest batch that was refused. Otherwise a nearly
        // full disk would be well for small batches and at fault for large ones, in turn. If
        // everything required is delivered, nothing more will be freed, and any segment will do.
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

    /// Makes a new segment at the end of the log, into which the next batches are written. If the
    /// disk has no room for `size` bytes, a smaller segment is made. Fewer than `least` bytes are
    /// an error. Returns the size of the segment.
    fn open_segment(&mut self, mut size: u64, least: u64) -> io::Result<u64> {
        let end = self.make_way()?;
        let over = {
            let state = self.shared.lock();
            state.writing.accounting.files() + size
                > state.writing.accounting.limit(self.shared.usable())
        };
        let name = segment::file_name(end.position);
        if over {
            self.reclaim(Reclaim::All)?;
        }
        {
            let state = self.shared.lock();
            let limit = state.writing.accounting.limit(self.shared.usable());
            if state.writing.accounting.files() + size > limit || size < least {
                return Err(io::Error::other("queue.max_bytes leaves no room for it"));
            }
        }
        let file = loop {
            match self.shared.disk.create(&name, size) {
                Err(error) if is_full(&error) && size > least => {
                    size = (size / 2).next_multiple_of(BLOCK).max(least);
                }
                Err(error) if is_full(&error) && self.drop_for_space() => {
                    self.reclaim(Reclaim::All)?
                }
                // The file is left from a segment that could not be made. Nothing in the file was
                // acknowledged.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.shared.disk.remove(&name)?;
                }
                made => break made?,
            }
        };
        let header = SegmentHeader { first: end.position, first_byte: end.byte, made: now() };
        let safe = file
            .write_at(&[&header.encode()], 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.shared.disk.sync_directory(SEGMENTS));
        if let Err(error) = safe {
            let mut state = self.shared.lock();
            state.writing.accounting.made_in_vain(end.position, size);
            return Err(error);
        }
        self.seal();
        let mut state = self.shared.lock();
        state.writing.accounting.made(size);
        state.log.segments.push_back(Segment {
            first: end,
            end,
            offset: FIRST_RECORD,
            size,
            damaged: Default::default(),
            active: true,
            ended: 0,
        });
        self.active = Some(Active { file, first: end.position });
        Ok(size)
    }

    /// Returns the place in the log where the next segment begins. Before that, makes sure that no
    /// other file has the name of the next segment.
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
        if is_taken {
            self.reclaim(Reclaim::All)?;
            if self.shared.lock().writing.accounting.is_stuck(end.position) {
                // A segment that can't be deleted has the name. If it were deleted later, the new
                // segment would be deleted instead.
                let name = segment::file_name(end.position);
                let error = io::Error::other("an empty segment of this name can't be deleted");
                return Err(named(&name)(error));
            }
        }
        Ok(end)
    }

    /// Finds out whether a segment can be deleted when the disk is full although `queue.max_bytes`
    /// is not reached. Returns `true` if every output has finished some segment. Otherwise drops a
    /// segment that only optional outputs need, and returns `true`. If there is none, returns
    /// `false`.
    fn drop_for_space(&self) -> bool {
        let mut state = self.shared.lock();
        if state.log.finished().next().is_some() {
            return true;
        }
        let oldest = state.log.droppable(1, false);
        if let Some(oldest) = oldest {
            state.drop_segments(oldest, &self.shared.metrics);
            return true;
        }
        false
    }

    /// Ends the active segment: no batch is written to it any more. Cuts its file after the last
    /// record, which frees the reserved bytes that were not used.
    fn seal(&mut self) {
        let Some(active) = self.active.take() else { return };
        let offset = {
            let mut state = self.shared.lock();
            let found =
                state.log.segments.iter_mut().rev().find(|it| it.first.position == active.first);
            let Some(segment) = found else { return };
            (segment.active, segment.ended) = (false, now());
            segment.offset
        };
        // Without the sync a power loss would undo the cut, when the room is used by other files.
        match active.file.truncate(offset).and_then(|()| active.file.sync()) {
            Ok(()) => {
                let mut state = self.shared.lock();
                let found = state
                    .log
                    .segments
                    .iter_mut()
                    .rev()
                    .find(|it| it.first.position == active.first);
                let Some(segment) = found else { return };
                let given = segment.size.saturating_sub(offset);
                segment.size -= given;
                state.writing.accounting.cut(given);
            }
            // The segment counts with all its reserved room until it is deleted.
            Err(error) => tracing::debug!(%error, "a segment can't be cut to its length"),
        }
    }

    /// Saves the cursors file. If this fails, logs a warning. If the attempt before failed too,
    /// logs nothing.
    fn save_or_tell(&mut self) {
        let failed = self.save().inspect_err(|error| {
            self.shared.metrics.write_errors.increment(1);
            if !self.told_unsaved {
                tracing::warn!(%error, "the cursors can't be written, trying again");
            }
        });
        self.told_unsaved = failed.is_err();
    }

    /// Writes and syncs the cursors file.
    pub(super) fn save(&mut self) -> io::Result<()> {
        let (contents, watermark, requested) = {
            let mut state = self.shared.lock();
            (state.writing.cursors_dirty, state.writing.unsaved) = (false, 0);
            (state.log.contents(), state.log.watermark(), state.writing.save_requested)
        };
        self.save_attempted = requested;
        self.save_at = Instant::now() + SAVE_EVERY;
        if let Err(error) = self.cursors.write(&*self.shared.disk, &contents) {
            self.shared.lock().writing.cursors_dirty = true;
            return Err(error);
        }
        self.unnamed = false;
        self.saved_end = contents.end.position;
        let mut state = self.shared.lock();
        state.log.holes.retain(|hole| hole.end > watermark);
        self.shared.log_not_full(&mut state);
        if std::mem::replace(&mut state.writing.save_done, requested) != requested {
            self.shared.progress.notify_waiters();
        }
        Ok(())
    }

    /// Deletes the files of segments that every output has finished, and of dropped segments.
    /// `which` says whether finished segments that outputs want to keep are deleted too. Saves the
    /// cursors file first: no place in the cursors file may lie in a deleted file. If one file
    /// can't be deleted, the other files are deleted nevertheless.
    fn reclaim(&mut self, which: Reclaim) -> io::Result<()> {
        self.reclaim_at = Instant::now() + RECLAIM_EVERY;
        let removed = {
            let mut state = self.shared.lock();
            if state.can_seal_for_room() {
                self.active = None;
                state.writing.accounting.clear_plans(0);
                if let Some(last) = state.log.segments.back_mut() {
                    (last.active, last.ended) = (false, now());
                }
                // The queue is full although segments that only optional outputs need could be
                // dropped: they give enough room only together with this segment.
                let all = state.log.droppable(state.log.spare_bytes(), false).unwrap_or_default();
                state.drop_segments(all, &self.shared.metrics);
            }
            let old = now().saturating_sub(state.log.keeps());
            let is_chosen = |segment: &&Segment| which == Reclaim::All || segment.ended <= old;
            let finished = state.log.finished().take_while(is_chosen).count();
            let finished: Vec<Segment> = state.log.segments.drain(..finished).collect();
            for segment in &finished {
                debug_assert!(!segment.active, "the segment that is written to is not deleted");
                debug_assert!(
                    segment.end.position <= state.log.watermark(),
                    "an output needs what is deleted"
                );
                state.writing.accounting.retire(segment.first.position, segment.size);
            }
            let again = which == Reclaim::All || Instant::now() >= self.again_at;
            let stuck = state.writing.accounting.stuck().iter().filter(|_| again);
            stuck.chain(state.writing.accounting.pending_delete()).copied().collect::<Vec<_>>()
        };
        let mut failed = self.remove_abandoned();
        if removed.is_empty() {
            self.tell_stuck(failed);
            return Ok(());
        }
        self.save()?;
        for file in removed {
            let name = segment::file_name(file.0);
            let outcome = match self.shared.disk.remove(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
            let mut state = self.shared.lock();
            match outcome {
                Ok(()) => state.writing.accounting.deleted(file),
                Err(error) => {
                    state.writing.accounting.not_deleted(file);
                    self.shared.metrics.write_errors.increment(1);
                    failed.get_or_insert_with(|| named(&name)(error));
                }
            }
            self.shared.log_not_full(&mut state);
        }
        self.tell_stuck(failed);
        self.shared.disk.sync_directory(SEGMENTS)
    }

    /// Deletes the abandoned files: files of large request bodies that did not become segments. The
    /// cursors file need not be saved first, because no cursor has a place in these files. Returns
    /// the first error; `None` if there was none. The writer tries again later to delete the files
    /// that are left.
    fn remove_abandoned(&self) -> Option<io::Error> {
        let abandoned = self.shared.lock().writing.accounting.abandoned().to_vec();
        let mut failed = None;
        for (name, _) in abandoned {
            match self.shared.disk.remove(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.shared.metrics.write_errors.increment(1);
                    failed.get_or_insert_with(|| named(&name)(error));
                }
                Ok(()) | Err(_) => {
                    let mut state = self.shared.lock();
                    state.writing.accounting.deleted_abandoned(&name);
                    self.shared.log_not_full(&mut state);
                }
            }
        }
        failed
    }

    /// Logs once that some files can't be deleted, and logs once when all of these files are gone.
    /// `failed`: the first error of the last attempt to delete files; `None` if there was no error.
    fn tell_stuck(&mut self, failed: Option<io::Error>) {
        let files = {
            let state = self.shared.lock();
            state.writing.accounting.stuck().len() + state.writing.accounting.abandoned().len()
        };
        match failed {
            Some(error) => {
                self.again_at = Instant::now() + AGAIN;
                if !std::mem::replace(&mut self.told_stuck, true) {
                    tracing::warn!(
                        files,
                        %error,
                        "files of the queue that no output needs can't be deleted: they take room, and \
                         the queue goes on without that room, trying again"
                    );
                }
            }
            None if files == 0 && std::mem::take(&mut self.told_stuck) => {
                tracing::info!("the files of the queue that could not be deleted are gone");
            }
            None => {}
        }
    }

    /// Deletes the files that no output needs, and wakes large request bodies that wait for room.
    /// If this fails, logs a warning. If the attempt before failed too, logs nothing.
    fn reclaim_or_tell(&mut self) {
        let is_wanted = self.shared.lock().writing.reclaim_wanted;
        let outcome = self.reclaim(if is_wanted { Reclaim::All } else { Reclaim::Old });
        self.shared.lock().writing.reclaim_wanted = false;
        self.shared.reclaimed.notify_all();
        let failed = outcome.inspect_err(|error| {
            self.shared.metrics.write_errors.increment(1);
            self.reclaim_at = Instant::now() + RETRY_MAX;
            if !self.told_kept {
                tracing::warn!(%error, "segments that are delivered can't be deleted, trying again");
            }
        });
        self.told_kept = failed.is_err();
    }

    /// Does the last work of the writer: writes all waiting batches, cuts the file of the last
    /// segment after its last record, saves the cursors file if it is out of date, and deletes
    /// files that no output wants to keep. If the save succeeds, the cursors file has the exact
    /// place of each output.
    pub(super) fn end(mut self) {
        while !self.shared.lock().writing.waiting.is_empty() {
            self.commit();
        }
        let outdated = {
            let mut state = self.shared.lock();
            state.writing.accounting.clear_plans(0);
            drop(state);
            self.seal();
            let state = self.shared.lock();
            state.writing.cursors_dirty || state.log.end.position != self.saved_end
        };
        let left = match outdated {
            true => self.save().and_then(|()| self.reclaim(Reclaim::Old)),
            false => self.reclaim(Reclaim::Old),
        };
        if let Err(error) = left {
            tracing::error!(%error, "the cursors can't be written, outputs may get some events again");
        }
    }
}

/// How many of the segments that every output has finished are deleted: all of them, or only the
/// old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reclaim {
    /// Only the segments that no output wants to keep any longer ([`super::Output::keeps`]).
    Old,
    /// All segments that every output has finished, because their room is needed.
    All,
}

impl Drop for Writer {
    /// If the writer thread has panicked, makes the queue refuse all batches, so that no sender
    /// waits for this thread.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.shared.lock();
            state.writing.fault =
                Some("the thread that writes the queue has panicked, restart the relay".to_owned());
            state.writing.waiting.clear();
            state.writing.accounting.clear_plans(0);
            drop(state);
            self.shared.panicked.cancel();
        }
    }
}

/// Returns `true` if the error means that the disk is full, that the user's quota is used up, or
/// that the file would be larger than allowed.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
