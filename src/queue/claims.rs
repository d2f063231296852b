//! The claims of one cursor: what an output has taken from the log and not finished. The same for
//! both kinds of queue.

use std::collections::VecDeque;
use std::ops::Range;

use super::contract::Claim;
use crate::position::Position;

/// What has happened to a claim so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The events were sent, or are about to be.
    OnWire,
    /// The events are to be sent again.
    Released,
    /// The claim is final.
    Done,
    /// The events were dropped, and are counted as lost. If the output finishes the claim later,
    /// nothing more is counted.
    Dropped,
}

impl Stage {
    /// Returns `true` if the output may still send or finish a claim in this stage.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::OnWire | Self::Released)
    }
}

/// A claim that a cursor keeps, with its stage and a note that the queue needs for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldClaim<T> {
    pub(super) claim: Claim,
    pub(super) stage: Stage,
    pub(super) note: T,
}

/// The claims of one cursor, in the order of their positions, and the place where the next claim
/// begins.
///
/// A claim is added when events are handed out. It is kept until it and all claims before it are
/// final or dropped: the first claim is open, or there is none. The first position of the first
/// claim is the cursor's watermark. Claims never overlap. There may be positions between two
/// claims: events that were dropped or missing before they were claimed.
///
/// `T` is what the queue needs to read the lines of a claim again: nothing in memory, a place in a
/// file for the spool.
#[derive(Debug)]
pub(super) struct Claims<T> {
    /// The first position that was never claimed.
    pub(super) read: Position,
    /// The claims that are kept, in the order of their positions. The first claim is open: not yet
    /// final or dropped.
    held: VecDeque<HeldClaim<T>>,
}

impl<T: Copy> Claims<T> {
    /// Makes an empty list of claims. The next claim will begin at the position `read`.
    pub(super) fn at(read: Position) -> Self {
        Self { read, held: VecDeque::new() }
    }

    /// Returns the first position that is not finished.
    pub(super) fn watermark(&self) -> Position {
        self.held.front().map_or(self.read, |held| held.claim.start)
    }

    /// All claims, in the order of their positions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldClaim<T>> {
        self.held.iter()
    }

    /// Adds a claim after all others. Its events are on the wire.
    pub(super) fn push(&mut self, claim: Claim, note: T) {
        self.read = claim.end;
        self.held.push_back(HeldClaim { claim, stage: Stage::OnWire, note });
    }

    fn index(&self, claim: Claim) -> Option<usize> {
        let index = self.held.binary_search_by_key(&claim.start, |held| held.claim.start).ok()?;
        (self.held.get(index)?.claim == claim).then_some(index)
    }

    /// Returns the claim with exactly these positions. `None` if the claim is not held any more,
    /// because it and all claims before it are finished.
    pub(super) fn find(&mut self, claim: Claim) -> Option<&mut HeldClaim<T>> {
        let index = self.index(claim)?;
        self.held.get_mut(index)
    }

    /// Removes the claims that are done or dropped from the front of the list, up to the first open
    /// claim.
    pub(super) fn forget_done(&mut self) {
        while self.held.front().is_some_and(|held| !held.stage.is_open()) {
            self.held.pop_front();
        }
    }

    /// Returns the claims that have at least one of these positions.
    pub(super) fn overlapping(
        &self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &HeldClaim<T>> {
        let start = self.held.partition_point(|held| held.claim.end <= positions.start);
        self.held.range(start..).take_while(move |held| held.claim.start < positions.end)
    }

    /// Returns the claims that have at least one of these positions, so that the caller can change
    /// them.
    pub(super) fn overlapping_mut(
        &mut self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &mut HeldClaim<T>> {
        let start = self.held.partition_point(|held| held.claim.end <= positions.start);
        self.held.range_mut(start..).take_while(move |held| held.claim.start < positions.end)
    }

    /// Returns `true` if a claim that has one of these positions is on the wire.
    pub(super) fn has_on_wire(&self, positions: Range<Position>) -> bool {
        self.overlapping(positions).any(|held| held.stage == Stage::OnWire)
    }

    /// Cuts a claim into two parts at `middle`; both parts keep the claim's stage. `note` makes the
    /// parts' notes from the claim's note. `None` if `middle` is not inside the claim, or the claim
    /// is not held any more.
    pub(super) fn split(
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

    /// Returns `true` if no final claim comes after an open claim.
    pub(super) fn is_in_order(&self) -> bool {
        self.held.iter().all(|held| held.stage != Stage::Done)
    }

    /// Removes all claims: the next claim starts at the watermark. Returns the note of the first
    /// claim; `None` if there was no claim.
    pub(super) fn rewind(&mut self) -> Option<T> {
        debug_assert!(self.is_in_order());
        self.read = self.watermark();
        let first = self.held.front().map(|held| held.note);
        self.held.clear();
        first
    }
}
