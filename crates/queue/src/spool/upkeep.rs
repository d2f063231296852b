//! The upkeep of the spool's files: it saves the cursors file, deletes or recycles segments, and
//! makes the next segment ahead of time.
//!
//! The upkeep has its own thread, so that the writer thread seldom waits for it. To make, delete or
//! cut a file of 64 MiB may take 20 ms or more.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::accounting::{Removed, Spare};
use super::cursor::UNSAVED_MAX;
use super::turn::{NoticePanic, Turn};
use super::{Shared, SpoolState, turn};
use crate::cursors::Cursors;
use crate::{segment, shelf};
use base::disk::{File, SEGMENTS, SPARES, named};
use base::lock::lock;
use base::position::Position;

/// The time between two saves of the cursors file, unless one is needed earlier.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The time between two deletions while no room and no spare file is needed, so that small segments
/// are deleted together.
const RECLAIM_EVERY: Duration = Duration::from_millis(250);

/// The time from a failed deletion of a file to the next attempt, unless room is needed.
const AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };

/// The pause after a deletion that failed because the cursors file could not be saved, or a
/// directory not be synced.
const RECLAIM_RETRY: Duration = Duration::from_secs(5);

/// With [`Cut::Most`], a segment is cut only if at least its size divided by this number is unused.
/// Otherwise the file can be reused without an allocation.
const UNUSED_PART: u64 = if cfg!(test) { 2 } else { 16 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chore {
    Cut,
    Save,
    /// Delete the files that no output needs, or make them spare files.
    Reclaim,
    /// Make the file of the next segment, before the writer needs it.
    Prepare,
}

/// A segment that the writer writes to, or has written to.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) file: Arc<dyn File>,
    pub(super) first: Position,
}

/// The choice among the segments that have ended since the last cut: the files of these are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The segments with much unused room. Every other segment can be reused as it is.
    Most,
    /// All of them, because their room is needed, or because the queue ends.
    All,
}

/// The choice among the files that no output needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reclaim {
    /// The finished segments. Some of them may become spare files.
    Finished,
    /// The finished segments and the spare files.
    Spares,
    /// The same as [`Reclaim::Spares`], and the unused room of ended segments. Files that could not
    /// be deleted are tried again at once.
    All,
}

/// The upkeep of the spool's files. Its thread waits until there is work, and then does one
/// [`Chore`] at a time, the most urgent one first ([`Upkeep::turn`]):
///
/// 1. prepare: the file of the next segment is made, before the writer needs it.
/// 2. cut: the unused room of ended segments is freed.
/// 3. save: the cursors file is written when it is out of date and its last save is a second ago.
///    It is written earlier when many bytes have become final, or when an output joins or leaves.
/// 4. reclaim: segments that no output needs are deleted, or become spare files. Before that, the
///    cursors file is saved, so that it has no place in one of these files.
///
/// The writer thread also calls the methods when it needs room or a file immediately. The mutex
/// around this value is held while files are changed.
///
/// A segment must not be deleted or reused while the cursors file on disk still says that an output
/// needs it.
pub(super) struct Upkeep {
    shared: Arc<Shared>,
    cursors: Cursors,
    saved_end: Position,
    /// The time of the next save, if the file is out of date and nothing saves it earlier.
    save_at: Instant,
    /// The number of requests (`Saving::requested`) that the last attempt to save was to fulfil,
    /// even if the attempt failed.
    save_attempted: u64,
    /// `true` until the cursors file has every output's name. No batch is stored before that.
    pub(super) is_unnamed: bool,
    reclaim_at: Instant,
    /// The earliest time of the next attempt for files that could not be deleted.
    again_at: Instant,
    told_stuck: bool,
    /// `true` if it was logged that delivered segments can't be deleted at present.
    told_kept: bool,
    told_unsaved: bool,
    /// `true` until the first save, after which the notes of an earlier version are not needed.
    has_notes: bool,
}

/// Does chores until the queue is closed. The writer thread does the last work ([`Upkeep::end`]).
pub(super) fn run(upkeep: &Mutex<Upkeep>, shared: &Arc<Shared>) {
    let _panic = NoticePanic(Arc::clone(shared));
    loop {
        let mut upkeep = lock(upkeep);
        let state = shared.lock();
        match upkeep.turn(&state) {
            Turn::End => return,
            Turn::Do(chore) => {
                drop(state);
                upkeep.perform(chore);
            }
            Turn::Wait(until) => {
                // The writer thread may need the upkeep during the wait.
                drop(upkeep);
                drop(shared.wakes.upkeep.wait_timeout(state, turn::wait(until)));
            }
        }
    }
}

impl Upkeep {
    pub(super) fn new(shared: Arc<Shared>, cursors: Cursors) -> Self {
        let now = Instant::now();
        Self {
            shared,
            cursors,
            saved_end: Position::START,
            save_at: now,
            save_attempted: 0,
            is_unnamed: true,
            reclaim_at: now,
            again_at: now,
            told_stuck: false,
            told_kept: false,
            told_unsaved: false,
            has_notes: true,
        }
    }

    fn turn(&self, state: &SpoolState) -> Turn<Chore> {
        let now = Instant::now();
        let writing = &state.writing;
        let save = writing.saving.is_dirty
            && (now >= self.save_at || writing.saving.requested > self.save_attempted);
        let can_reclaim = state.can_reclaim();
        let again = (!writing.accounting.stuck().is_empty()).then_some(self.again_at);
        if writing.closed {
            Turn::End
        } else if state.wants_spare(self.shared.usable()) {
            Turn::Do(Chore::Prepare)
        } else if !writing.chores.ended.is_empty() {
            Turn::Do(Chore::Cut)
        } else if save || writing.saving.unsaved >= UNSAVED_MAX {
            Turn::Do(Chore::Save)
        } else if (can_reclaim && (now >= self.reclaim_at || state.can_recycle()))
            || again.is_some_and(|at| now >= at)
        {
            Turn::Do(Chore::Reclaim)
        } else {
            let save = writing.saving.is_dirty.then_some(self.save_at);
            let reclaim = can_reclaim.then_some(self.reclaim_at);
            Turn::Wait(save.into_iter().chain(reclaim).chain(again).min())
        }
    }

    /// Returns `true` if the thread waits until it is woken.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.turn(&self.shared.lock()), Turn::Wait(None))
    }

    pub(super) fn perform(&mut self, chore: Chore) {
        match chore {
            Chore::Cut => self.cut(Cut::Most),
            Chore::Save => self.save_or_tell(),
            Chore::Reclaim => self.reclaim_or_tell(),
            Chore::Prepare => self.prepare(),
        }
    }

    /// Does the last work: cuts ended segments, saves the cursors file if it is out of date, and
    /// deletes spare files and segments that no output needs.
    pub(super) fn end(&mut self) {
        self.cut(Cut::All);
        let outdated = {
            let mut state = self.shared.lock();
            state.writing.accounting.discard_spares();
            state.writing.saving.is_dirty || state.log.end.position != self.saved_end
        };
        let saved = if outdated { self.save() } else { Ok(()) };
        if let Err(error) = saved.and_then(|()| self.reclaim(Reclaim::Finished)) {
            tracing::error!(
                %error,
                "cannot save the cursors (the outputs' positions in the queue) at the end of the \
                 relay: some events may be sent twice after the next start"
            );
        }
    }

    fn cut(&mut self, which: Cut) {
        let ended = std::mem::take(&mut self.shared.lock().writing.chores.ended);
        for Written { file, first } in ended {
            let offset = {
                let mut state = self.shared.lock();
                let Some(segment) = state.log.segment_mut(first) else { continue };
                let unused = segment.size.saturating_sub(segment.offset);
                if which == Cut::Most && unused < segment.size / UNUSED_PART {
                    continue;
                }
                segment.offset
            };
            // Without the sync, a power loss would undo the cut after its room is used again.
            let outcome = file.truncate(offset).and_then(|()| file.sync());
            let mut state = self.shared.lock();
            let Some(segment) = state.log.segment_mut(first) else { continue };
            match outcome {
                Ok(()) => {
                    let given = segment.size.saturating_sub(offset);
                    segment.size -= given;
                    state.writing.accounting.cut(given);
                }
                // The segment counts with its reserved room until it is deleted.
                Err(error) => {
                    segment.is_sound = false;
                    drop(state);
                    tracing::debug!(%error, "a segment can't be cut to its length");
                }
            }
        }
    }

    /// Makes the file of the next segment. A failure is only logged at `debug`: the writer makes
    /// the file itself when it needs one, and reports an error then.
    fn prepare(&mut self) {
        let spare = {
            let mut state = self.shared.lock();
            let size = state.writing.next_size();
            state.writing.accounting.reserve_spare(size)
        };
        let name = spare.name();
        let disk = &*self.shared.disk;
        let made = disk
            .create(&name, spare.size)
            .and_then(|file| file.sync())
            .and_then(|()| disk.sync_directory(SPARES));
        let mut state = self.shared.lock();
        match made {
            Ok(()) => state.writing.accounting.spare_is_ready(spare.number),
            Err(error) => {
                tracing::debug!(%error, "the file of the next segment can't be made ahead of time");
                state.writing.accounting.discard_spare(spare.number);
                state.writing.chores.spare_failed = true;
            }
        }
    }

    /// Saves the cursors file. Logs the first of several failures in a row.
    fn save_or_tell(&mut self) {
        let failed = self.save().inspect_err(|error| {
            self.shared.metrics.spool.write_errors.increment(1);
            if !self.told_unsaved {
                tracing::warn!(
                    %error,
                    "cannot save the cursors (the outputs' positions in the queue), retrying: \
                     after a crash, some events would be sent twice"
                );
            }
        });
        self.told_unsaved = failed.is_err();
    }

    pub(super) fn save(&mut self) -> io::Result<()> {
        let (contents, watermark, requested, unshelved) = {
            let mut state = self.shared.lock();
            (state.writing.saving.is_dirty, state.writing.saving.unsaved) = (false, 0);
            let unshelved = std::mem::take(&mut state.log.unshelved);
            (state.log.contents(), state.log.watermark(), state.writing.saving.requested, unshelved)
        };
        self.save_attempted = requested;
        self.save_at = Instant::now() + SAVE_EVERY;
        if let Err(error) = self.cursors.write(&*self.shared.disk, &contents) {
            let mut state = self.shared.lock();
            state.writing.saving.is_dirty = true;
            state.log.unshelved.extend(unshelved);
            return Err(error);
        }
        self.is_unnamed = false;
        self.note_end(contents.end.position);
        let mut state = self.shared.lock();
        state.log.holes.retain(|hole| hole.end > watermark);
        for (_, cursor) in &mut state.log.cursors {
            let place = contents.outputs.get(&cursor.output.name);
            cursor.noted = place.map_or(cursor.noted, |place| place.position);
        }
        self.shared.log_not_full(&mut state);
        if std::mem::replace(&mut state.writing.saving.done, requested) != requested {
            self.shared.wakes.progress.notify_waiters();
        }
        drop(state);
        if std::mem::take(&mut self.has_notes) {
            shelf::retire_notes(&*self.shared.disk);
        }
        // While the file listed an event, its missing file was its loss.
        let files = unshelved.iter().map(|(output, position)| shelf::name(output, *position));
        shelf::delete(&*self.shared.disk, files);
        Ok(())
    }

    fn note_end(&mut self, end: Position) {
        // If the saved end went back, positions after it would be given again after a crash.
        assert!(self.saved_end <= end, "the log ends at {end}, and before at {}", self.saved_end);
        self.saved_end = end;
    }

    /// Deletes or recycles dropped and finished segments, and the files that `which` chooses.
    /// Before that, saves the cursors file, which must have no place in one of these files. One
    /// failed deletion does not stop the others.
    pub(super) fn reclaim(&mut self, which: Reclaim) -> io::Result<()> {
        self.reclaim_at = Instant::now() + RECLAIM_EVERY;
        if which == Reclaim::All {
            self.cut(Cut::All);
        }
        let removed = self.choose(which);
        let (gone, mut failed) = self.remove_abandoned();
        if removed.is_empty() {
            self.tell_stuck(failed);
            // After a power loss the files would exist again, and take more room than allowed.
            return if gone { self.sync_directories() } else { Ok(()) };
        }
        self.save()?;
        let mut recycled = Vec::new();
        for (file, spare) in removed {
            if let Some(spare) = spare
                && self.recycle(file, spare)
            {
                recycled.push(spare.number);
                continue;
            }
            if let Err(error) = self.remove(file) {
                failed.get_or_insert(error);
            }
        }
        self.tell_stuck(failed);
        let synced = self.sync_directories();
        // A spare file may be overwritten only after its new name is synced.
        let accounting = &mut self.shared.lock().writing.accounting;
        for number in recycled {
            match &synced {
                Ok(()) => accounting.spare_is_ready(number),
                Err(_) => accounting.discard_spare(number),
            }
        }
        synced
    }

    fn sync_directories(&self) -> io::Result<()> {
        self.shared.disk.sync_directory(SPARES)?;
        self.shared.disk.sync_directory(SEGMENTS)
    }

    /// Removes the finished segments from the log. Returns all removed segments whose files are to
    /// be deleted now, each with the spare file that it is to become, if any.
    fn choose(&self, which: Reclaim) -> Vec<(Removed, Option<Spare>)> {
        let mut guard = self.shared.lock();
        let SpoolState { log, writing } = &mut *guard;
        if which != Reclaim::Finished {
            writing.accounting.discard_spares();
        }
        let finished = log.finished().count();
        let watermark = log.watermark();
        let mut spares = Vec::new();
        for segment in log.segments.drain(..finished) {
            // After this check, nothing finds out whether an output still needs a chosen segment.
            assert!(!segment.active, "the segment that is written to is not deleted");
            assert!(segment.end.position <= watermark, "an output needs what is deleted");
            let removed = (segment.first.position, segment.size);
            writing.accounting.retire(removed.0, removed.1);
            // A place on the disk that has lost records once is not used again.
            let is_whole = segment.is_sound && segment.damaged.is_empty();
            let may_be_spare = which == Reclaim::Finished && is_whole && !writing.closed;
            if may_be_spare && segment.size == writing.next_size() {
                let spare = writing.accounting.plan_spare(segment.size, spares.len());
                spares.extend(spare.map(|spare| (removed, spare)));
            }
        }
        for (first, _) in writing.accounting.pending_delete() {
            assert!(log.segment(*first).is_none(), "the log has {first}, which is deleted");
        }
        let again = which == Reclaim::All || Instant::now() >= self.again_at;
        let stuck = writing.accounting.stuck().iter().filter(|_| again);
        let pending = writing.accounting.pending_delete();
        let removed = stuck.chain(pending).copied();
        let keeps_end = writing.health.note_is_unknown;
        let removed = removed.filter(|(first, _)| !keeps_end || *first < log.end.position);
        let spare = |file| spares.iter().find(|(of, _)| *of == file).map(|(_, spare)| *spare);
        removed.map(|file| (file, spare(file))).collect()
    }

    /// Makes a removed segment a spare file. `false` after an error, or if somebody may read the
    /// file.
    fn recycle(&self, file: Removed, spare: Spare) -> bool {
        let name = segment::file_name(file.0);
        let recycled = self.shared.disk.recycle(&name, &spare.name());
        let mut state = self.shared.lock();
        match recycled {
            Ok(true) => state.writing.accounting.recycled(file, spare),
            Ok(false) | Err(_) => return false,
        }
        self.shared.log_not_full(&mut state);
        true
    }

    fn remove(&self, file: Removed) -> io::Result<()> {
        let outcome = self.delete(&segment::file_name(file.0));
        let mut state = self.shared.lock();
        state.writing.accounting.deleted(file, outcome.is_ok());
        self.shared.log_not_full(&mut state);
        outcome
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        match self.shared.disk.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.shared.metrics.spool.write_errors.increment(1);
                Err(named(name)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Deletes the abandoned files, in which no cursor has a place. Returns `true` if at least one
    /// was deleted, and the first error.
    fn remove_abandoned(&self) -> (bool, Option<io::Error>) {
        let abandoned = self.shared.lock().writing.accounting.abandoned().to_vec();
        let (mut gone, mut failed) = (false, None);
        for (name, _) in abandoned {
            if let Err(error) = self.delete(&name) {
                failed.get_or_insert(error);
                continue;
            }
            gone = true;
            let mut state = self.shared.lock();
            state.writing.accounting.deleted_abandoned(&name);
            self.shared.log_not_full(&mut state);
        }
        (gone, failed)
    }

    /// Logs once that some files can't be deleted, and once when all of them are gone. `failed`:
    /// the first error of the last attempt.
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
                        "cannot delete files that the queue no longer needs, retrying: until then, \
                         the queue has less room for events"
                    );
                }
            }
            None if files == 0 && std::mem::take(&mut self.told_stuck) => {
                tracing::info!("the queue has deleted the files that it could not delete before");
            }
            None => {}
        }
    }

    /// Deletes files. Logs the first of several failures in a row.
    fn reclaim_or_tell(&mut self) {
        let outcome = self.reclaim(Reclaim::Finished);
        let failed = outcome.inspect_err(|error| {
            self.shared.metrics.spool.write_errors.increment(1);
            let now = Instant::now();
            self.reclaim_at = now + RECLAIM_RETRY;
            self.again_at = self.again_at.max(now + AGAIN);
            if !self.told_kept {
                tracing::warn!(
                    %error,
                    "cannot delete segments whose events are all delivered, retrying: until then, \
                     they take up disk space"
                );
            }
        });
        self.told_kept = failed.is_err();
    }
}
