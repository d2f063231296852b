//! The bytes and files of the spool: what is on the disk, and what is promised to batches.
//!
//! Every change of these numbers is a method of [`Accounting`], and [`Accounting::check`] compares
//! them with the segments and batches that the spool holds. Debug builds and the simulation do so
//! each time when the state's lock is released.

use std::collections::VecDeque;

use super::Segment;
use super::Waiting;
use crate::position::Position;
use crate::queue::segment::BLOCK;
use crate::queue::segment::FIRST_RECORD;

/// A file that has left the log: the position that its name states, and the bytes that it counts
/// for.
pub(super) type Removed = (Position, u64);

/// The spool's counters of files and bytes.
///
/// Two kinds of numbers are kept here. The first kind is what lies in `segments/` now, in bytes
/// ([`Accounting::files`]). Each file there is in exactly one of five states:
///
/// - a segment of the log ([`super::LogState::segments`]), which counts with its whole size, also
///   with the room that is reserved and not written yet;
/// - `pending_delete`: a segment that has left the log, because every output has passed it or
///   because it was dropped. The cursors file may still need it; the writer deletes it after the
///   next save;
/// - `stuck`: a segment whose delete has failed. It takes its room until a later attempt succeeds;
/// - incoming: the file of a large body that is arriving, or that waits to become a segment;
/// - `abandoned`: the file of a large body that will not become a segment.
///
/// A file changes its state without a change of `files`; only making, growing, cutting and deleting
/// a file changes it.
///
/// The second kind is what is promised to the waiting batches, before their bytes are written.
/// A batch goes into the segment that will be the last one when its turn comes: `segment_free` is
/// what is left there. If that is not enough, the batch reserves a new segment: `reserved_new` is
/// the bytes of all segments that are reserved and not made. For example, with `segment_free` = 8
/// KiB, a batch that needs 12 KiB reserves a segment of `segment_bytes`, and later batches go into
/// that.
///
/// Owned by the spool's state, under its lock. What must never happen: that `files` is less than
/// the directory holds, because then `queue.max_bytes` is exceeded and nobody sees it.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    /// Bytes of all files in `segments/`.
    files: u64,
    /// The part of `files` that large bodies take, while they arrive or wait to become segments.
    incoming: u64,
    pending_delete: Vec<Removed>,
    stuck: Vec<Removed>,
    /// Names and bytes of the files of large bodies that will not become segments.
    abandoned: Vec<(String, u64)>,
    /// Bytes that will be free in the log's last segment once all waiting batches are written. If
    /// waiting batches begin new segments, the last of these new segments is meant.
    segment_free: u64,
    /// Bytes of the segments that are planned and not made yet, for waiting batches and for the
    /// group of batches that the writer has taken.
    reserved_new: u64,
    /// The size limit, in bytes, within which the segments in `reserved_new` were planned, if
    /// `queue.max_bytes` was changed since; else 0. Segments planned before the change are still
    /// allowed.
    reserved_limit: u64,
    in_hand: InHand,
}

/// The group of batches that the writer has taken, and has neither published nor refused.
#[derive(Debug, Default)]
struct InHand {
    /// Bytes of the new segment that the group begins; 0 if the group begins none, or once the new
    /// segment is made.
    reserved: u64,
    /// The most bytes of its segment that the group takes.
    needed: u64,
    /// `true`: the group is one large body, whose file becomes a segment of its own.
    is_incoming: bool,
}

impl Accounting {
    /// The counters at the start of the process, from the segments and other files that were found.
    pub(super) fn new(
        segments: &VecDeque<Segment>,
        pending_delete: Vec<Removed>,
        abandoned: Vec<(String, u64)>,
    ) -> Self {
        let files = segments.iter().map(|segment| segment.size).sum::<u64>()
            + pending_delete.iter().map(|(_, size)| size).sum::<u64>()
            + abandoned.iter().map(|(_, size)| size).sum::<u64>();
        Self { files, pending_delete, abandoned, ..Self::default() }
    }

    /// Bytes of all files in `segments/`.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Bytes of all files in `segments/`, and of the segments that are planned for batches and not
    /// made yet.
    pub(super) fn taken(&self) -> u64 {
        self.files + self.reserved_new
    }

    /// Bytes that will be free in the log's last segment once all waiting batches are written.
    pub(super) fn segment_free(&self) -> u64 {
        self.segment_free
    }

    /// Bytes of the segments that batches in the line begin.
    #[cfg(test)]
    pub(super) fn reserved_new(&self) -> u64 {
        self.reserved_new
    }

    /// Segments that have left the log, and that the writer has not tried to delete yet.
    pub(super) fn pending_delete(&self) -> &[Removed] {
        &self.pending_delete
    }

    /// Segments that have left the log, and could not be deleted.
    pub(super) fn stuck(&self) -> &[Removed] {
        &self.stuck
    }

    /// Names and bytes of the files of large bodies that will not become segments.
    pub(super) fn abandoned(&self) -> &[(String, u64)] {
        &self.abandoned
    }

    /// Bytes that become free when the files in `pending_delete` are deleted.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending_delete.iter().map(|(_, size)| size).sum()
    }

    /// `true` if a file that has left the log still has the name of a segment that begins at
    /// `first`.
    pub(super) fn has_name(&self, first: Position) -> bool {
        self.pending_delete.iter().any(|(other, _)| *other == first) || self.is_stuck(first)
    }

    /// `true` if the file of a segment that began at `first` has left the log and could not be
    /// deleted.
    pub(super) fn is_stuck(&self, first: Position) -> bool {
        self.stuck.iter().any(|(other, _)| *other == first)
    }

    // ---- Files ----

    /// Counts a segment of `size` bytes that was made at the end of the log.
    pub(super) fn made(&mut self, size: u64) {
        self.files += size;
    }

    /// Counts a segment that was made but could not be synced. It is no part of the log, and is to
    /// be deleted.
    pub(super) fn made_in_vain(&mut self, first: Position, size: u64) {
        self.files += size;
        self.retire(first, size);
    }

    /// Notes that a segment of the log was cut to its length, which has freed `given` bytes.
    pub(super) fn cut(&mut self, given: u64) {
        self.files -= given;
    }

    /// Notes that a segment has left the log, and that its file is to be deleted.
    pub(super) fn retire(&mut self, first: Position, size: u64) {
        self.pending_delete.push((first, size));
    }

    /// Notes that the file of a segment that had left the log is deleted.
    pub(super) fn deleted(&mut self, (first, size): Removed) {
        self.forget(first);
        self.files -= size;
    }

    /// Notes that the file of a segment that had left the log could not be deleted.
    pub(super) fn not_deleted(&mut self, (first, size): Removed) {
        self.forget(first);
        self.stuck.push((first, size));
    }

    fn forget(&mut self, first: Position) {
        self.pending_delete.retain(|(other, _)| *other != first);
        self.stuck.retain(|(other, _)| *other != first);
    }

    /// Counts this many bytes more for a large body that is arriving.
    pub(super) fn reserve_incoming(&mut self, bytes: u64) {
        self.files += bytes;
        self.incoming += bytes;
    }

    /// Notes that the file of a large body, which takes `size` bytes, has become a segment of the
    /// log.
    pub(super) fn adopt_incoming(&mut self, size: u64) {
        self.incoming -= size;
    }

    /// Notes that the file of a large body will not become a segment, and is to be deleted.
    pub(super) fn abandon(&mut self, name: String, size: u64) {
        self.incoming -= size;
        self.abandoned.push((name, size));
    }

    /// Notes that the abandoned file of a large body is deleted.
    pub(super) fn deleted_abandoned(&mut self, name: &str) {
        let Some(index) = self.abandoned.iter().position(|(other, _)| other == name) else {
            return;
        };
        let (_, size) = self.abandoned.remove(index);
        self.files -= size;
    }

    // ---- The line ----

    /// Plans `needed` bytes for a batch in the segment that will be the last one when the batch is
    /// written.
    pub(super) fn plan_here(&mut self, needed: u64) {
        self.segment_free -= needed;
    }

    /// Plans a new segment of `size` bytes, and `needed` bytes in it for the batch that begins it.
    pub(super) fn plan_new(&mut self, size: u64, needed: u64) {
        self.segment_free = size - FIRST_RECORD - needed;
        self.reserved_new += size;
    }

    /// Plans the file of a large body as the log's last segment. Nothing is appended to such a
    /// segment, so that the next batch has to begin a new one.
    pub(super) fn plan_incoming(&mut self) {
        self.segment_free = 0;
    }

    /// Takes back the plan of a batch that was to take `needed` bytes of the last segment.
    pub(super) fn withdraw_here(&mut self, needed: u64) {
        self.segment_free += needed;
    }

    /// Takes back the plan of a new segment of `size` bytes, whose only batch was withdrawn.
    /// `is_last`: no batch waits after the withdrawn one, so that no planned segment has room.
    pub(super) fn withdraw_new(&mut self, size: u64, is_last: bool) {
        self.reserved_new -= size;
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
        if is_last {
            self.segment_free = 0;
        }
    }

    /// Notes that `queue.max_bytes` changes. Segments that were planned within `usable` bytes, the
    /// limit before the change, stay allowed.
    pub(super) fn keep_limit(&mut self, usable: u64) {
        if self.reserved_new > 0 {
            self.reserved_limit = usable.max(self.reserved_limit);
        }
    }

    /// The most bytes that the files in `segments/` may take: `usable`, or a higher limit within
    /// which segments were planned before `queue.max_bytes` was changed.
    pub(super) fn limit(&self, usable: u64) -> u64 {
        usable.max(self.reserved_limit)
    }

    /// Notes that the writer has taken this group of batches to write them.
    pub(super) fn take_in_hand(&mut self, group: &[Waiting]) {
        let Some(first) = group.first() else { return };
        self.in_hand = match first.incoming {
            Some(_) => InHand { is_incoming: true, ..InHand::default() },
            None => InHand {
                reserved: first.opens.unwrap_or(0),
                needed: group.iter().map(Waiting::needed).sum(),
                is_incoming: false,
            },
        };
    }

    /// Notes that the new segment for the group that the writer has taken is made.
    pub(super) fn opened(&mut self) {
        self.reserved_new -= std::mem::take(&mut self.in_hand.reserved);
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
    }

    /// Notes that the group that the writer had taken is stored. `given`: bytes that were planned
    /// for the group, that it did not need, and that are free again; 0 if a waiting batch begins a
    /// new segment, because nothing more goes into this one.
    pub(super) fn published(&mut self, given: u64) {
        self.in_hand = InHand::default();
        self.segment_free += given;
    }

    /// Clears all plans: no batch waits, and the writer has taken none. `free`: bytes that are left
    /// in the last segment.
    pub(super) fn clear_plans(&mut self, free: u64) {
        (self.reserved_new, self.reserved_limit, self.segment_free) = (0, 0, free);
        self.in_hand = InHand::default();
    }

    /// Clears the plans of all waiting batches, but not those of the group that the writer has
    /// taken: the group is about to be written to a new segment, which is smaller than planned.
    /// `free`: bytes that the group leaves in this segment.
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
        let found = log + sum(&self.pending_delete) + sum(&self.stuck) + abandoned + self.incoming;
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

    /// The most bytes that can be left in the log's last segment once all waiting batches are
    /// written.
    fn room_of_last(&self, segments: &VecDeque<Segment>, waiting: &VecDeque<Waiting>) -> u64 {
        let opens = waiting.iter().rposition(|waiting| waiting.opens.is_some());
        let behind = waiting.range(opens.unwrap_or(0)..).map(Waiting::needed).sum::<u64>();
        if let Some(size) = opens.and_then(|index| waiting.get(index)?.opens) {
            // 0 for a large body: nothing is written to its file any more.
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
