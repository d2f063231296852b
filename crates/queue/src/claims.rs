//! The claims of one cursor: the ranges of events that an output has taken and not finished. Both
//! kinds of queue use them.

use std::collections::VecDeque;
use std::ops::Range;

use super::contract::Claim;
use base::position::Position;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The consumer has not responded yet. Perhaps the events are not sent yet either.
    OnWire,
    /// The events must be sent again, for example because the connection broke.
    Released,
    /// The claim is final: the output has finished its events.
    Done,
    /// The events were dropped or are missing, and are counted as lost. A later end of the claim is
    /// not counted again.
    Dropped,
}

impl Stage {
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::OnWire | Self::Released)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct HeldClaim<T> {
    pub claim: Claim,
    pub stage: Stage,
    pub note: T,
}

/// The claims of one output, in the order of their positions.
///
/// A claim is added when its events are handed out. It is removed when it, and every claim before
/// it, is done or dropped. The first claim in the list is therefore always open, and begins at the
/// output's watermark: the first position that is not finished. Claims never overlap. The events
/// between two claims were gone before they could be claimed. [`Claims::rewind`] removes all
/// claims, even open ones, and their events are claimed again.
///
/// `T` is what the queue notes about a claim. The queue in files notes where its lines are, how
/// many bytes they have, and when they were received; the queue in memory notes nothing.
#[derive(Debug)]
pub(super) struct Claims<T> {
    /// The next claim begins at this position, or after it if events are missing there.
    pub read: Position,
    held: VecDeque<HeldClaim<T>>,
}

impl<T: Copy> Claims<T> {
    pub(crate) fn at(read: Position) -> Self {
        Self { read, held: VecDeque::new() }
    }

    pub(crate) fn watermark(&self) -> Position {
        self.held.front().map_or(self.read, |held| held.claim.start)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &HeldClaim<T>> {
        self.held.iter()
    }

    pub(crate) fn push(&mut self, claim: Claim, note: T) {
        // The two checks are cheap, because a claim usually has hundreds of events.
        assert!(claim.start < claim.end, "a claim has events: {claim:?}");
        let last = self.held.back().map(|held| held.claim);
        assert!(last.is_none_or(|last| last.end <= claim.start), "{claim:?} overlaps {last:?}");
        self.read = claim.end;
        self.held.push_back(HeldClaim { claim, stage: Stage::OnWire, note });
    }

    fn index(&self, claim: Claim) -> Option<usize> {
        let index = self.held.binary_search_by_key(&claim.start, |held| held.claim.start).ok()?;
        (self.held.get(index)?.claim == claim).then_some(index)
    }

    /// Returns the claim with exactly these positions; `None` if it was removed or cut.
    pub(crate) fn find(&mut self, claim: Claim) -> Option<&mut HeldClaim<T>> {
        let index = self.index(claim)?;
        self.held.get_mut(index)
    }

    pub(super) fn forget_done(&mut self) {
        while self.held.front().is_some_and(|held| !held.stage.is_open()) {
            self.held.pop_front();
        }
    }

    pub(super) fn overlapping(
        &self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &HeldClaim<T>> {
        let start = self.held.partition_point(|held| held.claim.end <= positions.start);
        self.held.range(start..).take_while(move |held| held.claim.start < positions.end)
    }

    pub(super) fn overlapping_mut(
        &mut self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &mut HeldClaim<T>> {
        let start = self.held.partition_point(|held| held.claim.end <= positions.start);
        self.held.range_mut(start..).take_while(move |held| held.claim.start < positions.end)
    }

    pub(super) fn has_on_wire(&self, positions: Range<Position>) -> bool {
        self.overlapping(positions).any(|held| held.stage == Stage::OnWire)
    }

    /// Cuts a claim into two parts at `middle`. Both parts keep the stage of the claim; `note`
    /// makes the two notes from the note of the claim. Returns `None` if `middle` is not inside the
    /// claim, or if the claim was removed or cut.
    pub(crate) fn split(
        &mut self,
        claim: Claim,
        middle: Position,
        note: impl FnOnce(T) -> (T, T),
    ) -> Option<(Claim, Claim)> {
        if middle <= claim.start || middle >= claim.end {
            return None;
        }
        let index = self.index(claim)?;
        let held = *self.held.get(index)?;
        let (left, right) = (Claim { end: middle, ..claim }, Claim { start: middle, ..claim });
        let notes = note(held.note);
        self.held[index] = HeldClaim { claim: left, note: notes.0, ..held };
        self.held.insert(index + 1, HeldClaim { claim: right, note: notes.1, ..held });
        Some((left, right))
    }

    /// Returns `true` if no done claim comes after an open one. Dropped claims do not count.
    pub(crate) fn is_in_order(&self) -> bool {
        self.held.iter().all(|held| held.stage != Stage::Done)
    }

    /// Removes all claims, and returns the note of the first one. The next claim begins at the
    /// watermark.
    pub(crate) fn rewind(&mut self) -> Option<T> {
        debug_assert!(self.is_in_order());
        self.read = self.watermark();
        let first = self.held.front().map(|held| held.note);
        self.held.clear();
        first
    }
}
