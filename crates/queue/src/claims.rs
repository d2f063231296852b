//! The claims of one cursor: what an output has taken from the log and not finished. The same for
//! both kinds of queue.

use std::collections::VecDeque;
use std::ops::Range;

use super::contract::Claim;
use base::position::Position;

/// The stage of a claim (a range of events that an output has taken from the queue to send).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The events were sent to the consumer, or are about to be sent, and the consumer has not
    /// answered yet.
    OnWire,
    /// The events must be sent again, for example because the connection broke.
    Released,
    /// The claim is final: the consumer has the events, or the output has given them up.
    Done,
    /// The events were dropped, and are counted as lost. If the output finishes the claim later,
    /// nothing more is counted.
    Dropped,
}

impl Stage {
    /// Returns `true` if the output may still send or finish a claim in this stage.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::OnWire | Self::Released)
    }
}

/// A claim in a cursor's list, with its stage and a note. The note is what the queue needs to read
/// the claim's lines again, such as their place in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldClaim<T> {
    pub claim: Claim,
    pub stage: Stage,
    pub note: T,
}

/// The claims of one output (ranges of events that it has taken to send), in the order of their
/// positions, and the place where its next claim begins.
///
/// A claim is added when its events are handed out to the output. It is removed when it and all
/// claims before it are final or dropped. The first claim in the list is therefore always open,
/// which means neither final nor dropped. The first position of the first claim is the output's
/// watermark: the first position that is not finished.
///
/// Claims never overlap. There may be positions between two claims that belong to no claim: events
/// that were dropped or missing before they were claimed.
///
/// `T` is the note that the queue needs to read the lines of a claim again: nothing for the queue
/// in memory, a place in a file for the queue in files.
#[derive(Debug)]
pub(super) struct Claims<T> {
    /// The position at which the next claim begins. If events are missing at this position, the
    /// claim begins after them.
    pub read: Position,
    /// The claims that are kept, in the order of their positions. The first claim is open: not yet
    /// final or dropped.
    held: VecDeque<HeldClaim<T>>,
}

impl<T: Copy> Claims<T> {
    /// Makes an empty list of claims. The next claim will begin at the position `read`.
    pub(crate) fn at(read: Position) -> Self {
        Self { read, held: VecDeque::new() }
    }

    /// Returns the first position that is not finished: the start of the first claim in the list.
    /// If the list is empty, returns the start of the next claim.
    pub(crate) fn watermark(&self) -> Position {
        self.held.front().map_or(self.read, |held| held.claim.start)
    }

    /// Returns all claims in the list, in the order of their positions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &HeldClaim<T>> {
        self.held.iter()
    }

    /// Adds a claim at the end of the list, in the stage `OnWire` (its events are about to be
    /// sent). `note` is kept with the claim.
    pub(crate) fn push(&mut self, claim: Claim, note: T) {
        // The checks are cheap: two comparisons for each claim, which usually has hundreds of
        // events.
        assert!(claim.start < claim.end, "a claim has events: {claim:?}");
        let last = self.held.back().map(|held| held.claim);
        assert!(last.is_none_or(|last| last.end <= claim.start), "{claim:?} overlaps {last:?}");
        self.read = claim.end;
        self.held.push_back(HeldClaim { claim, stage: Stage::OnWire, note });
    }

    /// Returns the index of this claim in `held`; `None` if the claim is not in the list.
    fn index(&self, claim: Claim) -> Option<usize> {
        let index = self.held.binary_search_by_key(&claim.start, |held| held.claim.start).ok()?;
        (self.held.get(index)?.claim == claim).then_some(index)
    }

    /// Returns the claim with exactly these positions. `None` if the claim is no longer in the
    /// list, because it and all claims before it are finished.
    pub(crate) fn find(&mut self, claim: Claim) -> Option<&mut HeldClaim<T>> {
        let index = self.index(claim)?;
        self.held.get_mut(index)
    }

    /// Removes claims from the front of the list, up to the first claim that is open.
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

    /// Returns `true` if at least one of these positions is in a claim that is on the wire.
    pub(super) fn has_on_wire(&self, positions: Range<Position>) -> bool {
        self.overlapping(positions).any(|held| held.stage == Stage::OnWire)
    }

    /// Cuts a claim into two parts at `middle`, and returns the parts. Both parts get the stage of
    /// the claim. The claim has a note, and the function `note` makes the notes of the two parts
    /// from it. `None` if `middle` is not inside the claim, or if the claim is no longer in the
    /// list.
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

    /// Returns `true` if no finished claim comes after an unfinished one. Claims whose events were
    /// dropped do not count.
    pub(crate) fn is_in_order(&self) -> bool {
        self.held.iter().all(|held| held.stage != Stage::Done)
    }

    /// Removes all claims, so that the next claim begins at the watermark. Returns the note of the
    /// first removed claim; `None` if there was no claim.
    pub(crate) fn rewind(&mut self) -> Option<T> {
        debug_assert!(self.is_in_order());
        self.read = self.watermark();
        let first = self.held.front().map(|held| held.note);
        self.held.clear();
        first
    }
}
