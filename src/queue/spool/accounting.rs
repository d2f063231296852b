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

/// A file of the spool that is no part of the log any more: the first position in its name, and the
/// bytes that it counts for.
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
/// - incoming: the file of a large body that is arriving, or that waits in the line;
/// - `abandoned`: the file of a large body that will not become a segment.
///
/// A file changes its state without a change of `files`; only making, growing, cutting and deleting
/// a file changes it.
///
/// The second kind is what is promised to the batches in the line, before their bytes are written.
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
    /// The part of `files` that large bodies take: those that arrive, and those in the line.
    incoming: u64,
    pending_delete: Vec<Removed>,
    stuck: Vec<Removed>,
    /// Names and bytes.
    abandoned: Vec<(String, u64)>,
    /// Bytes that are left in the last segment once everything in the line is written. If the line
    /// begins new segments, the last of those is meant.
    segment_free: u64,
    /// Bytes of the segments that batches in the line, or in the writer's hand, are to begin.
    reserved_new: u64,
    /// The size limit that applied when `reserved_new` was planned, if `queue.max_bytes` was
    /// lowered since; else 0. Segments that were planned before are still allowed.
    reserved_limit: u64,
    in_hand: InHand,
}

/// What the writer has taken from the line, and has neither published nor refused.
#[derive(Debug, Default)]
struct InHand {
    /// Bytes of the segment that the group begins; 0 if it begins none, or once that is made.
    reserved: u64,
    /// Bytes that the group may take of its segment.
    needed: u64,
    /// The group is a large body, whose file becomes a segment of its own.
    is_incoming: bool,
}

impl Accounting {
    /// The counters for what a start has found.
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

    /// Bytes of all files in `segments/`, and of the segments that batches in the line begin.
    pub(super) fn taken(&self) -> u64 {
        self.files + self.reserved_new
    }

    /// Bytes that are left in the last segment once everything in the line is written.
    pub(super) fn segment_free(&self) -> u64 {
        self.segment_free
    }

    /// Bytes of the segments that batches in the line begin.
    #[cfg(test)]
    pub(super) fn reserved_new(&self) -> u64 {
        self.reserved_new
    }

    /// Segments that have left the log, and whose delete was not tried yet.
    pub(super) fn pending_delete(&self) -> &[Removed] {
        &self.pending_delete
    }

    /// Segments whose delete has failed.
    pub(super) fn stuck(&self) -> &[Removed] {
        &self.stuck
    }

    /// The files of large bodies that will not become segments: names and bytes.
    pub(super) fn abandoned(&self) -> &[(String, u64)] {
        &self.abandoned
    }

    /// Bytes that deleting what has left the log gives back, unless a delete fails.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending_delete.iter().map(|(_, size)| size).sum()
    }

    /// Whether a file that has left the log, and is not deleted, has the name of this position.
    pub(super) fn has_name(&self, first: Position) -> bool {
        self.pending_delete.iter().any(|(other, _)| *other == first) || self.is_stuck(first)
    }

    /// Whether the file with the name of this position could not be deleted.
    pub(super) fn is_stuck(&self, first: Position) -> bool {
        self.stuck.iter().any(|(other, _)| *other == first)
    }

    // ---- Files ----

    /// A segment was made, and is the last of the log.
    pub(super) fn made(&mut self, size: u64) {
        self.files += size;
    }

    /// A segment was made, but not synced: it is no part of the log.
    pub(super) fn made_in_vain(&mut self, first: Position, size: u64) {
        self.files += size;
        self.retire(first, size);
    }

    /// A segment of the log was cut to its length, which gives back so many bytes.
    pub(super) fn cut(&mut self, given: u64) {
        self.files -= given;
    }

    /// A segment has left the log, and is to be deleted.
    pub(super) fn retire(&mut self, first: Position, size: u64) {
        self.pending_delete.push((first, size));
    }

    /// The file of a segment that has left the log is deleted.
    pub(super) fn deleted(&mut self, (first, size): Removed) {
        self.forget(first);
        self.files -= size;
    }

    /// The file of a segment that has left the log could not be deleted.
    pub(super) fn not_deleted(&mut self, (first, size): Removed) {
        self.forget(first);
        self.stuck.push((first, size));
    }

    fn forget(&mut self, first: Position) {
        self.pending_delete.retain(|(other, _)| *other != first);
        self.stuck.retain(|(other, _)| *other != first);
    }

    /// A large body that is arriving takes so many bytes more.
    pub(super) fn reserve_incoming(&mut self, bytes: u64) {
        self.files += bytes;
        self.incoming += bytes;
    }

    /// The file of a large body is a segment of the log now.
    pub(super) fn adopt_incoming(&mut self, size: u64) {
        self.incoming -= size;
    }

    /// The file of a large body will not become a segment, and is to be deleted.
    pub(super) fn abandon(&mut self, name: String, size: u64) {
        self.incoming -= size;
        self.abandoned.push((name, size));
    }

    /// The file of a large body that was abandoned is deleted.
    pub(super) fn deleted_abandoned(&mut self, name: &str) {
        let Some(index) = self.abandoned.iter().position(|(other, _)| other == name) else {
            return;
        };
        let (_, size) = self.abandoned.remove(index);
        self.files -= size;
    }

    // ---- The line ----

    /// A batch joins the line, and goes into the segment that is the last one then.
    pub(super) fn plan_here(&mut self, needed: u64) {
        self.segment_free -= needed;
    }

    /// A batch joins the line, and begins a new segment of this size.
    pub(super) fn plan_new(&mut self, size: u64, needed: u64) {
        self.segment_free = size - FIRST_RECORD - needed;
        self.reserved_new += size;
    }

    /// The file of a large body joins the line: batches after it begin a segment of their own.
    pub(super) fn plan_incoming(&mut self) {
        self.segment_free = 0;
    }

    /// A batch that goes into the last segment leaves the line.
    pub(super) fn withdraw_here(&mut self, needed: u64) {
        self.segment_free += needed;
    }

    /// A batch leaves the line together with the segment that it was to begin. `is_last`: nothing
    /// is behind it in the line, so that no segment is planned that has room.
    pub(super) fn withdraw_new(&mut self, size: u64, is_last: bool) {
        self.reserved_new -= size;
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
        if is_last {
            self.segment_free = 0;
        }
    }

    /// `queue.max_bytes` is changed: segments that were planned within `usable` bytes stay allowed.
    pub(super) fn keep_limit(&mut self, usable: u64) {
        if self.reserved_new > 0 {
            self.reserved_limit = usable.max(self.reserved_limit);
        }
    }

    /// What the files may take, of which `usable` is the limit now.
    pub(super) fn limit(&self, usable: u64) -> u64 {
        usable.max(self.reserved_limit)
    }

    /// The writer takes a group from the line.
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

    /// The segment that the group in hand begins is made.
    pub(super) fn opened(&mut self) {
        self.reserved_new -= std::mem::take(&mut self.in_hand.reserved);
        if self.reserved_new == 0 {
            self.reserved_limit = 0;
        }
    }

    /// The group in hand is stored. `given`: bytes that it was promised and did not need, which are
    /// free again; 0 if the line begins a new segment, as nothing more comes into this one.
    pub(super) fn published(&mut self, given: u64) {
        self.in_hand = InHand::default();
        self.segment_free += given;
    }

    /// Nothing is in the line, and nothing in the writer's hand: the last segment has `free` bytes
    /// left.
    pub(super) fn clear_plans(&mut self, free: u64) {
        (self.reserved_new, self.reserved_limit, self.segment_free) = (0, 0, free);
        self.in_hand = InHand::default();
    }

    /// As [`Accounting::clear_plans`], but the group in hand is about to be written to the segment
    /// that was made for it, and is smaller than planned.
    pub(super) fn clear_line(&mut self, free: u64) {
        (self.reserved_new, self.reserved_limit, self.segment_free) = (0, 0, free);
        self.in_hand.reserved = 0;
    }

    /// Compares the counters with what is held.
    ///
    /// # Panics
    ///
    /// If one of them is wrong. Debug builds and tests only: there is nothing to be done about it
    /// at run time.
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

    /// At most so many bytes are left in the last segment once everything in the line is written.
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
