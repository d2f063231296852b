//! The bytes and files of the spool: those on the disk, and those that are promised to batches.
//! Only the methods of [`Accounting`] change these numbers.

use std::collections::VecDeque;

use super::{Segment, Waiting};
use crate::segment::{BLOCK, FIRST_RECORD};
use base::disk::SPARES;
use base::position::Position;

/// The first position and the size of a removed segment, whose file may still exist.
pub(super) type Removed = (Position, u64);

/// The largest number of spare files: one for the next segment, and one in case the queue fills
/// segments faster than files are made.
pub(super) const SPARES_MAX: usize = 2;

pub(super) const SPARE: &str = ".spare";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) number: u64,
    pub(super) size: u64,
    /// `true` if the file was a segment before.
    pub(super) reused: bool,
    stage: SpareStage,
}

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
    pub(super) fn name(&self) -> String {
        format!("{SPARES}/{:020}{SPARE}", self.number)
    }
}

/// Returns the number in a file name that ends with `suffix`; `None` for another name.
pub(super) fn number_of(name: &str, suffix: &str) -> Option<u64> {
    name.rsplit('/').next()?.strip_suffix(suffix)?.parse().ok()
}

/// Returns one more than the highest number of these files; 0 if there are none.
pub(super) fn next_number(files: &[(String, u64)], suffix: &str) -> u64 {
    let numbers = files.iter().filter_map(|(name, _)| number_of(name, suffix));
    numbers.max().map_or(0, |last| last.saturating_add(1))
}

/// The spool's counters of files and bytes. The spool's state owns them, under its lock.
///
/// `files` counts the bytes that the files in `segments/` and `spare/` take now. Each of these
/// files is in exactly one of five states:
///
/// - a segment of the log ([`super::LogState::segments`]), which counts with its whole size,
///   including bytes that are reserved and not written yet;
/// - `pending_delete`: a segment that was removed from the log, because every output has finished
///   it, because it was dropped, or because it has no events. The saved cursors file may still name
///   a place in it, so the upkeep saves that file before it deletes the segment;
/// - `stuck`: a removed segment that could not be deleted. Its bytes count until a later attempt
///   succeeds;
/// - `spares`: a file without events of the log, which may become a later segment;
/// - `abandoned`: an unwanted spare file, or a file `*.incoming` of an older version.
///
/// `files` changes when bytes are reserved for a file, and when a file is made, cut or deleted. If
/// `files` and `reserved_new` together were less than the size of these files, the queue could
/// exceed `queue.max_bytes` unnoticed.
///
/// The other counters are plans for the batches that wait for the writer. A batch that fits into
/// `segment_free` is planned in the last segment, and any other one begins a new segment, which
/// counts in `reserved_new`. For example, with `segment_free` = 8 KiB, a batch of 12 KiB begins a
/// new segment of `segment_bytes`, and later batches go into that one.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    /// The bytes of all files in `segments/` and `spare/`, including reserved bytes.
    files: u64,
    pending_delete: Vec<Removed>,
    stuck: Vec<Removed>,
    /// The names and sizes of the abandoned files, which the upkeep deletes.
    abandoned: Vec<(String, u64)>,
    spares: Vec<Spare>,
    spare_count: u64,
    /// A lower limit for the bytes that are free after all waiting batches in the last segment,
    /// which may be only planned.
    segment_free: u64,
    /// The bytes of segments that are planned for batches and not made yet.
    reserved_new: u64,
    /// The highest limit in bytes under which planned segments were planned, if `queue.max_bytes`
    /// has changed since. 0 if there are no such segments.
    reserved_limit: u64,
    in_hand: InHand,
}

/// The group of batches that the writer has taken. All numbers are 0 when there is none.
#[derive(Debug, Default)]
struct InHand {
    /// The size of the new segment that the group begins. 0 if it begins none, or once the segment
    /// is made.
    reserved: u64,
    /// The upper limit for the bytes that the group takes in its segment.
    needed: u64,
}

impl Accounting {
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

    pub(super) fn files(&self) -> u64 {
        self.files
    }

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

    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending_delete.iter().map(|(_, size)| size).sum()
    }

    /// Returns `true` if the file of a removed segment that began at `first` may still exist.
    pub(super) fn has_name(&self, first: Position) -> bool {
        self.pending_delete.iter().any(|(other, _)| *other == first) || self.is_stuck(first)
    }

    pub(super) fn is_stuck(&self, first: Position) -> bool {
        self.stuck.iter().any(|(other, _)| *other == first)
    }

    // ---- Files ----

    pub(super) fn made(&mut self, size: u64) {
        self.files += size;
    }

    /// Counts the file of a new segment that will not be a part of the log, as one to delete.
    pub(super) fn made_in_vain(&mut self, first: Position, size: u64) {
        self.files += size;
        self.retire(first, size);
    }

    pub(super) fn cut(&mut self, given: u64) {
        self.files -= given;
    }

    pub(super) fn retire(&mut self, first: Position, size: u64) {
        self.pending_delete.push((first, size));
    }

    pub(super) fn deleted(&mut self, (first, size): Removed, is_deleted: bool) {
        self.forget(first);
        match is_deleted {
            true => self.files -= size,
            false => self.stuck.push((first, size)),
        }
    }

    fn forget(&mut self, first: Position) {
        self.pending_delete.retain(|(other, _)| *other != first);
        self.stuck.retain(|(other, _)| *other != first);
    }

    // ---- Spare files ----

    pub(super) fn spare_bytes(&self) -> u64 {
        let free = self.spares.iter().filter(|spare| spare.stage != SpareStage::Taken);
        free.map(|spare| spare.size).sum()
    }

    /// Returns `true` if a spare file of this size exists or is being made.
    pub(super) fn has_spare(&self, size: u64) -> bool {
        self.spares.iter().any(|spare| spare.size == size && spare.stage != SpareStage::Taken)
    }

    pub(super) fn spares(&self) -> usize {
        self.spares.len()
    }

    fn new_spare(&mut self, size: u64, reused: bool) -> Spare {
        let number = self.spare_count;
        self.spare_count += 1;
        Spare { number, size, reused, stage: SpareStage::Making }
    }

    /// Counts a spare file that is about to be made. Discards the others, which have another size.
    pub(super) fn reserve_spare(&mut self, size: u64) -> Spare {
        self.discard_spares();
        let spare = self.new_spare(size, false);
        self.files += size;
        self.spares.push(spare);
        spare
    }

    /// Returns the spare file that a finished segment of this size is to become; `None` if there
    /// are enough. `planned`: the number of other segments that become spare files.
    pub(super) fn plan_spare(&mut self, size: u64, planned: usize) -> Option<Spare> {
        let has_place = self.spares.len() + planned < SPARES_MAX;
        has_place.then(|| self.new_spare(size, true))
    }

    pub(super) fn recycled(&mut self, (first, _): Removed, spare: Spare) {
        self.forget(first);
        self.spares.push(spare);
    }

    pub(super) fn spare_is_ready(&mut self, number: u64) {
        for spare in self.spares.iter_mut().filter(|spare| spare.number == number) {
            spare.stage = SpareStage::Ready;
        }
    }

    /// Takes a ready spare file of this size, preferably one that was a segment before.
    pub(super) fn take_spare(&mut self, size: u64) -> Option<Spare> {
        let is_fit = |spare: &&mut Spare| spare.size == size && spare.stage == SpareStage::Ready;
        let fit = self.spares.iter_mut().filter(is_fit);
        let spare = fit.max_by_key(|spare| spare.reused)?;
        spare.stage = SpareStage::Taken;
        Some(*spare)
    }

    pub(super) fn spare_is_used(&mut self, number: u64) {
        self.files -= self.remove_spare(number).map_or(0, |spare| spare.size);
    }

    pub(super) fn discard_spare(&mut self, number: u64) {
        let removed = self.remove_spare(number);
        self.abandoned.extend(removed.map(|spare| (spare.name(), spare.size)));
    }

    fn remove_spare(&mut self, number: u64) -> Option<Spare> {
        let index = self.spares.iter().position(|spare| spare.number == number)?;
        Some(self.spares.remove(index))
    }

    pub(super) fn discard_spares(&mut self) {
        let (taken, free): (Vec<_>, Vec<_>) =
            self.spares.iter().partition(|spare| spare.stage == SpareStage::Taken);
        self.spares = taken;
        self.abandoned.extend(free.into_iter().map(|spare| (spare.name(), spare.size)));
    }

    pub(super) fn deleted_abandoned(&mut self, name: &str) {
        let Some(index) = self.abandoned.iter().position(|(other, _)| other == name) else {
            return;
        };
        let (_, size) = self.abandoned.remove(index);
        self.files -= size;
    }

    // ---- Batches that wait for the writer ----

    /// Plans a batch in the last segment, or as the first one of a new segment of the size `opens`.
    pub(super) fn plan(&mut self, needed: u64, opens: Option<u64>) {
        match opens {
            None => self.segment_free -= needed,
            Some(size) => {
                self.segment_free = size - FIRST_RECORD - needed;
                self.reserved_new += size;
            }
        }
    }

    pub(super) fn withdraw_here(&mut self, needed: u64) {
        self.segment_free += needed;
    }

    /// Cancels a new segment whose only batch was withdrawn. `is_last`: no batch waits behind it.
    pub(super) fn withdraw_new(&mut self, size: u64, is_last: bool) {
        self.unplan(size);
        if is_last {
            self.segment_free = 0;
        }
    }

    /// Records the limit `usable` before it changes, for the segments that are planned under it.
    pub(super) fn keep_limit(&mut self, usable: u64) {
        if self.reserved_new > 0 {
            self.reserved_limit = usable.max(self.reserved_limit);
        }
    }

    /// Returns the limit for [`Accounting::files`]: `usable` or, while segments wait that were
    /// planned under a higher limit, that limit.
    pub(super) fn limit(&self, usable: u64) -> u64 {
        usable.max(self.reserved_limit)
    }

    pub(super) fn take_in_hand(&mut self, group: &[Waiting]) {
        let Some(first) = group.first() else { return };
        self.in_hand = InHand {
            reserved: first.opens.unwrap_or(0),
            needed: group.iter().map(Waiting::needed).sum(),
        };
    }

    pub(super) fn opened(&mut self) {
        let made = std::mem::take(&mut self.in_hand.reserved);
        self.unplan(made);
    }

    fn unplan(&mut self, bytes: u64) {
        self.reserved_new -= bytes;
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
    }

    /// Records that the writer has stored its group. `given`: the planned bytes that the group did
    /// not use, and that are free for other batches now.
    pub(super) fn published(&mut self, given: u64) {
        self.in_hand = InHand::default();
        self.segment_free += given;
    }

    /// Cancels all plans. `free`: the free bytes of the last segment.
    pub(super) fn clear_plans(&mut self, free: u64) {
        self.clear_line(free);
        self.in_hand = InHand::default();
    }

    /// Cancels the plans of all waiting batches. `free`: the free bytes of the last segment after
    /// the writer's group.
    pub(super) fn clear_line(&mut self, free: u64) {
        (self.reserved_new, self.reserved_limit, self.segment_free) = (0, 0, free);
        self.in_hand.reserved = 0;
    }

    /// Compares the counters with the segments and batches, and panics if a counter is wrong. Only
    /// debug builds and tests call this.
    pub(super) fn check(&self, segments: &VecDeque<Segment>, waiting: &VecDeque<Waiting>) {
        let sum = |files: &[Removed]| files.iter().map(|(_, size)| size).sum::<u64>();
        let log: u64 = segments.iter().map(|segment| segment.size).sum();
        let abandoned: u64 = self.abandoned.iter().map(|(_, size)| size).sum();
        let spares: u64 = self.spares.iter().map(|spare| spare.size).sum();
        let removed = sum(&self.pending_delete) + sum(&self.stuck);
        let found = log + removed + spares + abandoned;
        assert_eq!(self.files, found, "every file in segments/ counts once: {self:?}");

        let planned: u64 = waiting.iter().filter_map(|waiting| waiting.opens).sum();
        let planned = planned + self.in_hand.reserved;
        assert_eq!(self.reserved_new, planned, "new segments count as the line has them: {self:?}");
        let is_kept = self.reserved_limit == 0 || self.reserved_new > 0;
        assert!(is_kept, "a limit of before holds for planned segments only: {self:?}");

        let room = self.room_of_last(segments, waiting);
        assert!(self.segment_free <= room, "only {room} bytes are left: {self:?}");
    }

    fn room_of_last(&self, segments: &VecDeque<Segment>, waiting: &VecDeque<Waiting>) -> u64 {
        let opens = waiting.iter().rposition(|waiting| waiting.opens.is_some());
        let behind = waiting.range(opens.unwrap_or(0)..).map(Waiting::needed).sum::<u64>();
        if let Some(size) = opens.and_then(|index| waiting.get(index)?.opens) {
            return size.saturating_sub(FIRST_RECORD + behind);
        }
        let behind = behind + self.in_hand.needed;
        if self.in_hand.reserved > 0 {
            self.in_hand.reserved.saturating_sub(FIRST_RECORD + behind)
        } else {
            let last = segments.back().filter(|segment| segment.active);
            let left = last
                .map_or(0, |last| last.size.saturating_sub(last.offset.next_multiple_of(BLOCK)));
            left.saturating_sub(behind)
        }
    }
}
