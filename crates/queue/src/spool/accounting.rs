//! The bytes and files of the spool: what is on the disk, and what is promised to batches.
//!
//! Every change of these numbers is a method of [`Accounting`], and [`Accounting::check`] compares
//! them with the segments and batches that the spool holds. Debug builds do so each time the
//! state's lock is taken.

use std::collections::VecDeque;

use super::{Segment, Waiting};
use crate::segment::{BLOCK, FIRST_RECORD};
use base::disk::SPARES;
use base::position::Position;

/// A segment that was removed from the log, and whose file may still exist: the first position of
/// the segment, which is in the file's name, and the file's size in bytes.
pub(super) type Removed = (Position, u64);

/// The greatest number of spare files. One is the next segment. The other one is there for a queue
/// that takes batches faster than files are made ready.
pub(super) const SPARES_MAX: usize = 2;

/// The end of the name of a spare file.
pub(super) const SPARE: &str = ".spare";

/// A file that holds no event and becomes the next segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spare {
    /// The number in the file's name.
    pub(super) number: u64,
    /// The size of the file in bytes.
    pub(super) size: u64,
    /// `true`: the file was a segment before.
    pub(super) reused: bool,
    stage: SpareStage,
}

/// The stage of a spare file on its way to a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpareStage {
    /// The upkeep is making the file.
    Making,
    /// The file can become a segment.
    Ready,
    /// The writer is making the file a segment.
    Taken,
}

impl Spare {
    /// Returns the file's name: `spare/%020u.spare`.
    pub(super) fn name(&self) -> String {
        format!("{SPARES}/{:020}{SPARE}", self.number)
    }
}

/// Returns the number in the name of a file, such as a spare file, whose name ends with `suffix`;
/// `None` if the name is of another kind.
pub(super) fn number_of(name: &str, suffix: &str) -> Option<u64> {
    name.rsplit('/').next()?.strip_suffix(suffix)?.parse().ok()
}

/// Returns the number for the next file whose name ends with `suffix`: one more than the highest
/// number in the names of these files; 0 if there are none.
pub(super) fn next_number(files: &[(String, u64)], suffix: &str) -> u64 {
    let numbers = files.iter().filter_map(|(name, _)| number_of(name, suffix));
    numbers.max().map_or(0, |last| last.saturating_add(1))
}

/// The spool's counters of files and bytes.
///
/// There are two kinds of counters. The first kind counts the bytes that the files in `segments/`
/// and `spare/` take now ([`Accounting::files`]). Each of these files is in exactly one of six
/// states:
///
/// - a segment of the log ([`super::LogState::segments`]), which counts with its whole size,
///   including bytes that are reserved and not written yet;
/// - `pending_delete`: a segment that was removed from the log, because every output has finished
///   it, because it was dropped, or because it has no events. The cursors file, which notes how far
///   each output has got, may still name a place in this segment. The upkeep therefore saves the
///   cursors file first, and deletes the segment after that;
/// - `stuck`: a segment that was removed from the log and could not be deleted. Its bytes count
///   until a later attempt succeeds;
/// - incoming: the file of a large request body that is still arriving or waits to become a
///   segment;
/// - `spares`: a file without events that becomes the next segment;
/// - `abandoned`: the file of a large request body that will not become a segment, or a spare file
///   that is not wanted any more.
///
/// If a file goes from one state to another, `files` does not change. It changes only when bytes
/// are reserved for a file, or when a file is made, cut or deleted.
///
/// The second kind counts bytes that are planned and not written yet. They are for the batches of
/// events that wait for the writer. `segment_free` is the number of bytes that will still be free
/// in the last segment after these batches. If the next batch fits, it is planned in this last
/// segment. If the batch needs more, a new segment is planned for it. `reserved_new` is the number
/// of bytes of all segments that are planned and not made yet. For example, with `segment_free` = 8
/// KiB, a batch that needs 12 KiB gets a new segment of `segment_bytes`, and later batches go into
/// this new segment.
///
/// The spool's state owns this value, under its lock. `files` must never be less than the bytes
/// that the files in the directory take. Otherwise the queue could exceed `queue.max_bytes`, and
/// nobody would notice.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    /// The number of bytes of all files in `segments/` and `spare/`, including reserved bytes that
    /// are not written yet.
    files: u64,
    /// The part of `files` for large request bodies, in bytes. It counts the files of the bodies
    /// that are arriving, and of those that wait to become segments.
    incoming: u64,
    /// Segments that were removed from the log and that the upkeep has not tried to delete yet.
    pending_delete: Vec<Removed>,
    /// Segments that were removed from the log and that could not be deleted.
    stuck: Vec<Removed>,
    /// The names and the sizes in bytes of abandoned files: files of large request bodies that will
    /// not become segments, and spare files that are not wanted. The upkeep has to delete them.
    abandoned: Vec<(String, u64)>,
    /// The files that become the next segments.
    spares: Vec<Spare>,
    /// The number in the name of the next spare file.
    spare_count: u64,
    /// The number of bytes that will be free in the log's last segment after all waiting batches
    /// are written. New segments that are planned for these batches count: the last of them is then
    /// the log's last segment.
    segment_free: u64,
    /// The number of bytes of the segments that are planned and not made yet. These segments are
    /// for waiting batches, and for the batches that the writer is about to write.
    reserved_new: u64,
    /// A size limit in bytes: the limit before `queue.max_bytes` was changed. Segments that were
    /// planned under this old limit may still be made, even if the new limit is smaller. 0 if no
    /// such segment is left.
    reserved_limit: u64,
    /// The group of batches that the writer has taken to write.
    in_hand: InHand,
}

/// The group of batches that the writer has taken to write. All numbers are 0 as soon as the group
/// is published or refused.
#[derive(Debug, Default)]
struct InHand {
    /// The size in bytes of the new segment that this group of batches begins. 0 if the group needs
    /// no new segment, or after the new segment was made.
    reserved: u64,
    /// The greatest number of bytes that this group of batches may take in its segment.
    needed: u64,
    /// `true`: the group is only one large request body, whose file becomes a segment of its own.
    is_incoming: bool,
}

impl Accounting {
    /// Makes the counters at the start of the process, from the segments and other files that were
    /// found.
    pub(super) fn new(
        segments: &VecDeque<Segment>,
        pending_delete: Vec<Removed>,
        abandoned: Vec<(String, u64)>,
    ) -> Self {
        let spare_count = next_number(&abandoned, SPARE);
        let files = segments.iter().map(|segment| segment.size).sum::<u64>()
            + pending_delete.iter().map(|(_, size)| size).sum::<u64>()
            + abandoned.iter().map(|(_, size)| size).sum::<u64>();
        Self { files, pending_delete, abandoned, spare_count, ..Self::default() }
    }

    /// Returns the number of bytes of all files in `segments/` and `spare/`, including reserved
    /// bytes that are not written yet.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Returns [`Accounting::files`], plus the bytes of the segments that are planned for batches
    /// and not made yet.
    pub(super) fn taken(&self) -> u64 {
        self.files + self.reserved_new
    }

    pub(super) fn segment_free(&self) -> u64 {
        self.segment_free
    }

    #[cfg(test)]
    pub(super) fn reserved_new(&self) -> u64 {
        self.reserved_new
    }

    pub(super) fn pending_delete(&self) -> &[Removed] {
        &self.pending_delete
    }

    pub(super) fn stuck(&self) -> &[Removed] {
        &self.stuck
    }

    pub(super) fn abandoned(&self) -> &[(String, u64)] {
        &self.abandoned
    }

    /// Returns the number of bytes that become free when the files in `pending_delete` are deleted.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending_delete.iter().map(|(_, size)| size).sum()
    }

    /// Returns `true` if the file name of a segment that begins at `first` is still taken, by a
    /// segment that was removed from the log and is not deleted yet.
    pub(super) fn has_name(&self, first: Position) -> bool {
        self.pending_delete.iter().any(|(other, _)| *other == first) || self.is_stuck(first)
    }

    /// Returns `true` if a segment that began at `first` was removed from the log, and its file
    /// could not be deleted.
    pub(super) fn is_stuck(&self, first: Position) -> bool {
        self.stuck.iter().any(|(other, _)| *other == first)
    }

    // ---- Files ----

    /// Adds the `size` bytes of a new segment that was made at the end of the log.
    pub(super) fn made(&mut self, size: u64) {
        self.files += size;
    }

    /// Notes that the file of a new segment was made with `size` bytes, but its header could not be
    /// written and synced. The segment does not become a part of the log. Its bytes count until its
    /// file is deleted.
    pub(super) fn made_in_vain(&mut self, first: Position, size: u64) {
        self.files += size;
        self.retire(first, size);
    }

    /// Notes that the file of a segment was cut after its last record, which has freed `given`
    /// bytes.
    pub(super) fn cut(&mut self, given: u64) {
        self.files -= given;
    }

    /// Notes that a segment was removed from the log and that its file is to be deleted.
    pub(super) fn retire(&mut self, first: Position, size: u64) {
        self.pending_delete.push((first, size));
    }

    /// Notes that the file of a segment, which was removed from the log before, is now deleted, or
    /// could not be deleted. Its bytes count until it is deleted.
    pub(super) fn deleted(&mut self, (first, size): Removed, is_deleted: bool) {
        self.forget(first);
        match is_deleted {
            true => self.files -= size,
            false => self.stuck.push((first, size)),
        }
    }

    /// Removes a segment from the lists of files that are to be deleted.
    fn forget(&mut self, first: Position) {
        self.pending_delete.retain(|(other, _)| *other != first);
        self.stuck.retain(|(other, _)| *other != first);
    }

    // ---- Spare files ----

    /// Returns the number of bytes of the spare files that can be deleted if their room is needed.
    pub(super) fn spare_bytes(&self) -> u64 {
        let free = self.spares.iter().filter(|spare| spare.stage != SpareStage::Taken);
        free.map(|spare| spare.size).sum()
    }

    /// Returns `true` if there is a spare file of this size, or one is being made.
    pub(super) fn has_spare(&self, size: u64) -> bool {
        self.spares.iter().any(|spare| spare.size == size && spare.stage != SpareStage::Taken)
    }

    /// Returns the number of spare files.
    pub(super) fn spares(&self) -> usize {
        self.spares.len()
    }

    fn new_spare(&mut self, size: u64, reused: bool) -> Spare {
        let number = self.spare_count;
        self.spare_count += 1;
        Spare { number, size, reused, stage: SpareStage::Making }
    }

    /// Counts a spare file that is about to be made. Spare files of other sizes are not wanted any
    /// more.
    pub(super) fn reserve_spare(&mut self, size: u64) -> Spare {
        self.discard_spares();
        let spare = self.new_spare(size, false);
        self.files += size;
        self.spares.push(spare);
        spare
    }

    /// Returns the spare file that the file of a finished segment of this size is to become; `None`
    /// if there are enough. `planned`: the number of other segments that are to become spare files.
    pub(super) fn plan_spare(&mut self, size: u64, planned: usize) -> Option<Spare> {
        let has_place = self.spares.len() + planned < SPARES_MAX;
        has_place.then(|| self.new_spare(size, true))
    }

    /// Notes that the file of a segment, which was removed from the log before, is a spare file
    /// now.
    pub(super) fn recycled(&mut self, (first, _): Removed, spare: Spare) {
        self.forget(first);
        self.spares.push(spare);
    }

    /// Notes that a spare file can become a segment.
    pub(super) fn spare_is_ready(&mut self, number: u64) {
        for spare in self.spares.iter_mut().filter(|spare| spare.number == number) {
            spare.stage = SpareStage::Ready;
        }
    }

    /// Takes a spare file of this size, which is to become a segment. A file that was a segment
    /// before is taken first.
    pub(super) fn take_spare(&mut self, size: u64) -> Option<Spare> {
        let is_fit = |spare: &&mut Spare| spare.size == size && spare.stage == SpareStage::Ready;
        let fit = self.spares.iter_mut().filter(is_fit);
        let spare = fit.max_by_key(|spare| spare.reused)?;
        spare.stage = SpareStage::Taken;
        Some(*spare)
    }

    /// Notes that a spare file has become a segment, whose bytes the caller counts.
    pub(super) fn spare_is_used(&mut self, number: u64) {
        self.files -= self.remove_spare(number).map_or(0, |spare| spare.size);
    }

    /// Notes that a spare file is not wanted any more, and is to be deleted.
    pub(super) fn discard_spare(&mut self, number: u64) {
        let removed = self.remove_spare(number);
        self.abandoned.extend(removed.map(|spare| (spare.name(), spare.size)));
    }

    fn remove_spare(&mut self, number: u64) -> Option<Spare> {
        let index = self.spares.iter().position(|spare| spare.number == number)?;
        Some(self.spares.remove(index))
    }

    /// Notes that all spare files, except those that the writer has taken, are to be deleted.
    pub(super) fn discard_spares(&mut self) {
        let (taken, free): (Vec<_>, Vec<_>) =
            self.spares.iter().partition(|spare| spare.stage == SpareStage::Taken);
        self.spares = taken;
        self.abandoned.extend(free.into_iter().map(|spare| (spare.name(), spare.size)));
    }

    // ---- Large request bodies ----

    /// Adds `bytes` bytes for the file of a large request body that is arriving, before these bytes
    /// are written.
    pub(super) fn reserve_incoming(&mut self, bytes: u64) {
        self.files += bytes;
        self.incoming += bytes;
    }

    /// Notes that the file of a large request body, which takes `size` bytes, has become a segment
    /// of the log.
    pub(super) fn adopt_incoming(&mut self, size: u64) {
        self.incoming -= size;
    }

    /// Notes that the file of a large request body will not become a segment, and is to be deleted.
    pub(super) fn abandon(&mut self, name: String, size: u64) {
        self.incoming -= size;
        self.abandoned.push((name, size));
    }

    /// Notes that an abandoned file is deleted: the file of a large request body, or a spare file.
    pub(super) fn deleted_abandoned(&mut self, name: &str) {
        let Some(index) = self.abandoned.iter().position(|(other, _)| other == name) else {
            return;
        };
        let (_, size) = self.abandoned.remove(index);
        self.files -= size;
    }

    // ---- Batches that wait for the writer ----

    /// Plans room for a batch that takes `needed` bytes: in the log's last segment, or, if `opens`
    /// is a number, as the first batch of a new segment of this size.
    pub(super) fn plan(&mut self, needed: u64, opens: Option<u64>) {
        match opens {
            None => self.segment_free -= needed,
            Some(size) => {
                self.segment_free = size - FIRST_RECORD - needed;
                self.reserved_new += size;
            }
        }
    }

    /// Plans the file of a large request body as the log's last segment. Nothing is appended to
    /// such a segment. The next batch therefore has to begin a new segment.
    pub(super) fn plan_incoming(&mut self) {
        self.segment_free = 0;
    }

    /// Cancels the plan of a batch that needs no new segment. The `needed` bytes that were planned
    /// for the batch in the last segment are free again.
    pub(super) fn withdraw_here(&mut self, needed: u64) {
        self.segment_free += needed;
    }

    /// Cancels the plan of a new segment of `size` bytes, because the only batch for this segment
    /// was withdrawn. `is_last`: no other batch waits behind the withdrawn batch. In this case
    /// `segment_free` counted the free bytes of the cancelled segment, and becomes 0.
    pub(super) fn withdraw_new(&mut self, size: u64, is_last: bool) {
        self.unplan(size);
        if is_last {
            self.segment_free = 0;
        }
    }

    /// Keeps the old size limit when `queue.max_bytes` is changed. Segments that are planned and
    /// not made yet may still be made within the old limit. `usable`: the old limit for the files
    /// of all segments, in bytes.
    pub(super) fn keep_limit(&mut self, usable: u64) {
        if self.reserved_new > 0 {
            self.reserved_limit = usable.max(self.reserved_limit);
        }
    }

    /// Returns the greatest number of bytes that [`Accounting::files`] may become. This is
    /// `usable`, the present limit. If `queue.max_bytes` was lowered, it is the earlier, higher
    /// limit as long as segments that were planned under that limit are not made yet.
    pub(super) fn limit(&self, usable: u64) -> u64 {
        usable.max(self.reserved_limit)
    }

    /// Notes that the writer has taken this group of batches from the waiting ones, to write them.
    pub(super) fn take_in_hand(&mut self, group: &[Waiting]) {
        let Some(first) = group.first() else { return };
        self.in_hand = InHand {
            reserved: first.opens.unwrap_or(0),
            needed: group.iter().map(Waiting::needed).sum(),
            is_incoming: first.incoming.is_some(),
        };
    }

    /// Notes that a new segment is made for the group of batches that the writer has taken. The
    /// bytes of this segment do not count as planned any more.
    pub(super) fn opened(&mut self) {
        let made = std::mem::take(&mut self.in_hand.reserved);
        self.unplan(made);
    }

    /// Notes that planned segments of this many bytes are not planned any more.
    fn unplan(&mut self, bytes: u64) {
        self.reserved_new -= bytes;
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
    }

    /// Notes that the writer has stored the group of batches that it had taken. `given`: the number
    /// of bytes that were planned for the group and that the group did not use. These bytes are
    /// free again. The caller passes 0 if a waiting batch begins a new segment: no more batches are
    /// written to the old segment then.
    pub(super) fn published(&mut self, given: u64) {
        self.in_hand = InHand::default();
        self.segment_free += given;
    }

    /// Cancels all plans, because no batch waits and the writer has no group of batches to write.
    /// `free`: the number of bytes that are free in the last segment.
    pub(super) fn clear_plans(&mut self, free: u64) {
        self.clear_line(free);
        self.in_hand = InHand::default();
    }

    /// Cancels the plans of all waiting batches. The writer calls this when it is about to write a
    /// group of batches to a new segment that is smaller than planned. The plan of this group is
    /// kept. `free`: the number of bytes that are still free in the new segment after the group.
    pub(super) fn clear_line(&mut self, free: u64) {
        (self.reserved_new, self.reserved_limit, self.segment_free) = (0, 0, free);
        self.in_hand.reserved = 0;
    }

    /// Compares the counters with the segments and batches that the spool holds.
    ///
    /// # Panics
    ///
    /// If a counter is wrong. Only debug builds and tests call this: there is nothing to be done
    /// about a wrong counter at run time.
    pub(super) fn check(&self, segments: &VecDeque<Segment>, waiting: &VecDeque<Waiting>) {
        let sum = |files: &[Removed]| files.iter().map(|(_, size)| size).sum::<u64>();
        let log: u64 = segments.iter().map(|segment| segment.size).sum();
        let abandoned: u64 = self.abandoned.iter().map(|(_, size)| size).sum();
        let spares: u64 = self.spares.iter().map(|spare| spare.size).sum();
        let removed = sum(&self.pending_delete) + sum(&self.stuck);
        let found = log + removed + spares + abandoned + self.incoming;
        assert_eq!(self.files, found, "every file in segments/ counts once: {self:?}");

        let in_line = waiting.iter().filter_map(|waiting| waiting.incoming.as_ref());
        let in_line: u64 = in_line.map(|file| file.size).sum();
        assert!(in_line <= self.incoming, "{in_line} bytes of bodies are in the line: {self:?}");

        let planned: u64 = waiting.iter().filter_map(|waiting| waiting.opens).sum();
        let planned = planned + self.in_hand.reserved;
        assert_eq!(self.reserved_new, planned, "new segments count as the line has them: {self:?}");
        let is_kept = self.reserved_limit == 0 || self.reserved_new > 0;
        assert!(is_kept, "a limit of before holds for planned segments only: {self:?}");

        let room = self.room_of_last(segments, waiting);
        assert!(self.segment_free <= room, "only {room} bytes are left: {self:?}");
    }

    /// Returns the upper limit for `segment_free`: the greatest number of bytes that can be free in
    /// the log's last segment after all waiting batches are written.
    fn room_of_last(&self, segments: &VecDeque<Segment>, waiting: &VecDeque<Waiting>) -> u64 {
        let opens = waiting.iter().rposition(|waiting| waiting.opens.is_some());
        let behind = waiting.range(opens.unwrap_or(0)..).map(Waiting::needed).sum::<u64>();
        if let Some(size) = opens.and_then(|index| waiting.get(index)?.opens) {
            // `size` is 0 for a large body, because no more batches go into its file.
            return size.saturating_sub(FIRST_RECORD + behind);
        }
        let behind = behind + self.in_hand.needed;
        if self.in_hand.is_incoming {
            0
        } else if self.in_hand.reserved > 0 {
            self.in_hand.reserved.saturating_sub(FIRST_RECORD + behind)
        } else {
            let last = segments.back().filter(|segment| segment.active);
            let left = last
                .map_or(0, |last| last.size.saturating_sub(last.offset.next_multiple_of(BLOCK)));
            left.saturating_sub(behind)
        }
    }
}
