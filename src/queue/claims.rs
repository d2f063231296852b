//! What one output has taken from the log and not finished: the same for every kind of queue.

use std::collections::VecDeque;
use std::ops::Range;

use super::Claim;
use super::Position;

/// Where a claim stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Sent, or about to be.
    OnWire,
    /// To be sent again.
    Released,
    /// Final.
    Done,
    /// Its events are lost, and counted: whatever becomes of it counts no more.
    Dropped,
}

impl Stage {
    /// Something may still become of it.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::OnWire | Self::Released)
    }
}

/// A claim, and what the queue notes with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<T> {
    pub(super) claim: Claim,
    pub(super) stage: Stage,
    pub(super) note: T,
}

/// The claims of one cursor.
#[derive(Debug)]
pub(super) struct Claims<T> {
    /// The first position that was never claimed.
    pub(super) read: Position,
    /// In order, from the first that is open.
    entries: VecDeque<Entry<T>>,
}

impl<T: Copy> Claims<T> {
    /// None, and everything from here on is to be read.
    pub(super) fn at(read: Position) -> Self {
        Self { read, entries: VecDeque::new() }
    }

    /// Everything before it is finished.
    pub(super) fn watermark(&self) -> Position {
        self.entries.front().map_or(self.read, |entry| entry.claim.start)
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }

    /// Claims what comes next.
    pub(super) fn push(&mut self, claim: Claim, note: T) {
        self.read = claim.end;
        self.entries.push_back(Entry { claim, stage: Stage::OnWire, note });
    }

    fn index(&self, claim: Claim) -> Option<usize> {
        let index =
            self.entries.binary_search_by_key(&claim.start, |held| held.claim.start).ok()?;
        (self.entries.get(index)?.claim == claim).then_some(index)
    }

    /// `None` for one that is finished and forgotten.
    pub(super) fn find(&mut self, claim: Claim) -> Option<&mut Entry<T>> {
        let index = self.index(claim)?;
        self.entries.get_mut(index)
    }

    /// Lets go of what is done or dropped in front.
    pub(super) fn forget_done(&mut self) {
        while self.entries.front().is_some_and(|entry| !entry.stage.is_open()) {
            self.entries.pop_front();
        }
    }

    /// Those that have something of these positions.
    pub(super) fn overlapping(
        &self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &Entry<T>> {
        let start = self.entries.partition_point(|entry| entry.claim.end <= positions.start);
        self.entries.range(start..).take_while(move |entry| entry.claim.start < positions.end)
    }

    /// Likewise, to change them.
    pub(super) fn overlapping_mut(
        &mut self,
        positions: Range<Position>,
    ) -> impl Iterator<Item = &mut Entry<T>> {
        let start = self.entries.partition_point(|entry| entry.claim.end <= positions.start);
        self.entries.range_mut(start..).take_while(move |entry| entry.claim.start < positions.end)
    }

    /// Whether one of these positions is on the wire.
    pub(super) fn has_on_wire(&self, positions: Range<Position>) -> bool {
        self.overlapping(positions).any(|entry| entry.stage == Stage::OnWire)
    }

    /// Cuts a claim in two at a position inside it, in the same stage; `note` makes the notes of both.
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
        let held = *self.entries.get(index)?;
        let (left, right) = (Claim { end: middle, ..claim }, Claim { start: middle, ..claim });
        let notes = note(held.note);
        self.entries[index] = Entry { claim: left, note: notes.0, ..held };
        self.entries.insert(index + 1, Entry { claim: right, note: notes.1, ..held });
        Some((left, right))
    }

    /// Nothing finished lies behind one that is not.
    pub(super) fn is_in_order(&self) -> bool {
        self.entries.iter().all(|entry| entry.stage != Stage::Done)
    }

    /// Gives up all of them: what comes next starts at the first. Says what was noted with it.
    pub(super) fn rewind(&mut self) -> Option<T> {
        debug_assert!(self.is_in_order());
        self.read = self.watermark();
        let first = self.entries.front().map(|entry| entry.note);
        self.entries.clear();
        first
    }
}
