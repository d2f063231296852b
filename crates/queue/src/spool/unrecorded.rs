//! The events that an output has finished and whose evidence is not durable yet.
//!
//! If evidence is recorded, the output's place in the cursors file stays before these events, and
//! the files of the log are kept. After a crash the output sends the events again, and the evidence
//! says so. Without evidence nothing here runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::contract::{Claim, Fates, Finished, Outcome, now};
use crate::segment::LogOffset;
use base::fate::Fate;
use base::position::Position;

/// The largest number of items of one output that wait for the evidence recorder: ranges, and the
/// hashes and fates of single events. If most are hashes, they take about 50 MB. Further ranges are
/// not recorded, and their events are sent again after a restart.
const WAITING_MAX: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Unrecorded {
    /// The first position and the end of each range, with its place in the log. A range that was
    /// joined from several has the end of the first one. Settled events of dropped segments are
    /// left out.
    places: BTreeMap<(Position, Position), Place>,
    /// The ranges that begin in a dropped segment and may end in a later one: the first position of
    /// each, and the place where the later segment begins.
    behind_drops: Vec<(Position, LogOffset)>,
    /// The place of the first finished event that was never in `finished`, because too much waited.
    not_kept: Option<LogOffset>,
    finished: Vec<Finished>,
    /// The number of ranges, hashes and fates in `finished`.
    waiting: usize,
    /// The events that were set aside and are decided, but without durable evidence. `true` if
    /// nobody else needs the file of the event.
    decided: BTreeMap<Position, bool>,
    /// The recorded losses from the watermark on, which a rewound cursor finds again.
    losses: Vec<Range<Position>>,
    wakes: Arc<Notify>,
}

#[derive(Clone, Copy)]
struct Place {
    begin: LogOffset,
    /// `true` if the output has lost these events before it settled them.
    is_loss: bool,
}

impl Unrecorded {
    pub(super) fn new(wakes: Arc<Notify>) -> Self {
        Self { wakes, ..Self::default() }
    }

    /// Records that an output has finished or lost a range, which begins at this byte of the log.
    pub(super) fn add(&mut self, output: &str, claim: Claim, byte: u64, outcome: Outcome) {
        let place = LogOffset { position: claim.start, byte };
        // A decision has no place that is held, so nothing may be joined to it.
        let is_held = |last: &Finished| {
            let (start, end) = (last.claim.start, last.claim.end);
            self.places.range((start, Position::START)..=(start, end)).next().is_some()
        };
        if let Some(last) = self.finished.last_mut()
            && (last.claim.end, &last.outcome) == (claim.start, &outcome)
            && is_plain(&outcome)
            && is_held(last)
        {
            (last.claim.end, last.at) = (claim.end, now());
            return;
        }
        let weight = match &outcome {
            Outcome::Settled(fates) => 1 + fates.sent.len() + fates.not_delivered.len(),
            Outcome::Lost(_) => 1,
        };
        if self.waiting + weight > WAITING_MAX {
            self.not_kept = Some(self.not_kept.map_or(place, |first| first.min(place)));
            return;
        }
        self.waiting += weight;
        let is_loss = matches!(outcome, Outcome::Lost(_));
        self.places.insert((claim.start, claim.end), Place { begin: place, is_loss });
        self.finished.push(Finished { output: output.to_owned(), claim, at: now(), outcome });
        self.wakes.notify_one();
    }

    /// Records that an event which was set aside is decided. The output's place in the cursors file
    /// does not wait for this evidence, because the event's file survives a crash: it is deleted
    /// after the evidence is durable. If too much waits, the file stays, and the output decides
    /// about the event again after a restart.
    pub(super) fn decided(&mut self, output: &str, position: Position, fates: Fates) {
        self.decided.insert(position, false);
        let claim = Claim { start: position, end: position.next() };
        let weight = 1 + fates.sent.len() + fates.not_delivered.len();
        if self.waiting + weight <= WAITING_MAX {
            self.waiting += weight;
            let (output, outcome) = (output.to_owned(), Outcome::Settled(fates));
            self.finished.push(Finished { output, claim, at: now(), outcome });
            self.wakes.notify_one();
        }
    }

    /// Returns `true` if the file of a decided event must not be deleted yet, because the evidence
    /// of the decision is not durable. [`Unrecorded::recorded`] then returns its position.
    pub(super) fn keeps_file(&mut self, position: Position) -> bool {
        let decided = self.decided.get_mut(&position);
        decided.map(|is_unneeded| *is_unneeded = true).is_some()
    }

    /// Records that an output has lost these events, except those that were recorded before.
    /// `byte`: the bytes of all lines before these events.
    pub(super) fn lose(
        &mut self,
        output: &str,
        positions: Range<Position>,
        byte: u64,
        reason: &'static str,
        watermark: Position,
    ) {
        let mut start = positions.start;
        self.losses.sort_unstable_by_key(|known| known.start);
        let mut parts = Vec::new();
        for known in &self.losses {
            parts.push(start..known.start.min(positions.end));
            start = start.max(known.end);
        }
        parts.push(start..positions.end);
        for part in parts.into_iter().filter(|part| part.start < part.end) {
            let claim = Claim { start: part.start, end: part.end };
            self.add(output, claim, byte, Outcome::Lost(reason));
        }
        if positions.start < positions.end {
            self.losses.retain(|known| known.end > watermark);
            self.losses.push(positions);
        }
    }

    /// Returns the place of the first event whose evidence is not durable.
    pub(super) fn first(&self) -> Option<LogOffset> {
        let first = self.places.first_key_value().map(|(_, place)| place.begin);
        let behind_drops = self.behind_drops.iter().map(|(_, place)| *place);
        first.into_iter().chain(self.not_kept).chain(behind_drops).min()
    }

    /// Forgets settled events of a dropped segment: they can't be sent again, and after a crash
    /// they must not look lost. `end`: the first place after the segment that is not dropped.
    pub(super) fn leave(&mut self, dropped: Range<Position>, end: LogOffset) {
        let begin_there = (dropped.start, Position::START)..(dropped.end, Position::START);
        let settled = self.places.range(begin_there).filter(|(_, place)| !place.is_loss);
        let settled: Vec<_> = settled.map(|(key, _)| *key).collect();
        for key in &settled {
            self.places.remove(key);
        }
        let (inside, mut others): (Vec<_>, Vec<_>) =
            self.behind_drops.drain(..).partition(|(_, place)| dropped.contains(&place.position));
        // Ranges do not overlap: of those that begin in the segment, only the last may end later.
        let last = settled.last().map(|(start, _)| *start);
        let last = last.or(inside.iter().map(|(start, _)| *start).max());
        others.extend(last.map(|start| (start, end)));
        self.behind_drops = others;
    }

    pub(super) fn take(&mut self) -> Vec<Finished> {
        self.waiting = 0;
        std::mem::take(&mut self.finished)
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.finished.is_empty() && self.first().is_none() && self.decided.is_empty()
    }

    /// Records that evidence which [`Unrecorded::take`] has returned is durable. Returns the
    /// position of a decided event whose file can be deleted now.
    pub(super) fn recorded(&mut self, finished: &Finished) -> Option<Position> {
        let Finished { claim, outcome, .. } = finished;
        let first = (claim.start, Position::START);
        let of_claim = self.places.range(first..=(claim.start, claim.end));
        for key in of_claim.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.places.remove(&key);
        }
        self.behind_drops.retain(|(start, _)| *start != claim.start);
        let is_one = claim.end == claim.start.next();
        let is_decision =
            matches!(outcome, Outcome::Settled(fates) if fates.rest != Some(Fate::Aside));
        let decided = (is_one && is_decision).then(|| self.decided.remove(&claim.start));
        decided.flatten().filter(|is_unneeded| *is_unneeded).map(|_| claim.start)
    }
}

/// Returns `true` if the consumer has all events unchanged, or all were lost. Adjacent ranges with
/// equal outcomes are then joined.
fn is_plain(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Settled(fates) => *fates == Fates::default(),
        Outcome::Lost(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> LogOffset {
        LogOffset { position: Position::new(position), byte: position * 100 }
    }

    fn range(start: u64, end: u64) -> Range<Position> {
        Position::new(start)..Position::new(end)
    }

    fn settle(unrecorded: &mut Unrecorded, start: u64, end: u64) {
        let outcome = Outcome::Settled(Fates::default());
        unrecorded.add("a", Claim::of(start, end), start * 100, outcome);
    }

    /// Method: the segments of the positions 0 to 10 and 10 to 20 are dropped while no evidence can
    /// be written. A range that was settled ends in the third segment.
    #[test]
    fn settled_events_of_dropped_segments_do_not_hold_the_place_back() {
        let mut unrecorded = Unrecorded::new(Arc::new(Notify::new()));
        settle(&mut unrecorded, 2, 5);
        let first = unrecorded.take();
        settle(&mut unrecorded, 6, 8);
        settle(&mut unrecorded, 8, 25);
        let second = unrecorded.take();
        assert_eq!(unrecorded.first(), Some(at(2)));
        unrecorded.leave(range(0, 10), at(10));
        assert_eq!(unrecorded.first(), Some(at(10)));
        unrecorded.leave(range(10, 20), at(20));
        assert_eq!(unrecorded.first(), Some(at(20)), "20 to 25 may be sent again");
        first.iter().for_each(|it| _ = unrecorded.recorded(it));
        assert_eq!(unrecorded.first(), Some(at(20)));
        second.iter().for_each(|it| _ = unrecorded.recorded(it));
        assert_eq!(unrecorded.first(), None);
    }

    /// Method: the file of a decided event is no longer needed before its evidence is taken, while
    /// it is taken, or after it is durable; or so much waits that the decision is not recorded.
    #[test]
    fn the_file_of_a_decided_event_stays_until_the_evidence_is_durable() {
        let position = Position::new(3);
        let aside = || Outcome::Settled(Fates { rest: Some(Fate::Aside), ..Fates::default() });
        for asked in 0..3 {
            let mut unrecorded = Unrecorded::new(Arc::new(Notify::new()));
            unrecorded.add("a", Claim::of(3, 4), 300, aside());
            let set_aside = unrecorded.take();
            unrecorded.decided("a", position, Fates::default());
            assert!(asked != 0 || unrecorded.keeps_file(position));
            assert_eq!(unrecorded.recorded(&set_aside[0]), None, "this is not the decision");
            let taken = unrecorded.take();
            assert!(asked != 1 || unrecorded.keeps_file(position));
            assert!(!unrecorded.is_recorded());
            let free = unrecorded.recorded(&taken[0]);
            assert_eq!(free, (asked < 2).then_some(position));
            assert!(asked != 2 || !unrecorded.keeps_file(position), "it is deleted at once");
            assert!(unrecorded.is_recorded());
        }
        let mut unrecorded = Unrecorded::new(Arc::new(Notify::new()));
        unrecorded.decided("a", position, Fates::default());
        settle(&mut unrecorded, 4, 10);
        assert_eq!(unrecorded.first(), Some(at(4)), "the next range is not joined to the decision");
        assert!(unrecorded.keeps_file(position));
        let free: Vec<_> = unrecorded.take().iter().map(|it| unrecorded.recorded(it)).collect();
        assert_eq!(free, [Some(position), None]);
        let mut unrecorded = Unrecorded::new(Arc::new(Notify::new()));
        unrecorded.waiting = WAITING_MAX;
        unrecorded.decided("a", position, Fates::default());
        assert!(unrecorded.take().is_empty());
        assert!(unrecorded.keeps_file(position), "until a restart");
    }

    #[test]
    fn lost_events_of_dropped_segments_hold_the_place_back() {
        let mut unrecorded = Unrecorded::new(Arc::new(Notify::new()));
        settle(&mut unrecorded, 0, 5);
        unrecorded.lose("a", range(5, 10), 500, "when_full", Position::START);
        settle(&mut unrecorded, 30, 35);
        unrecorded.leave(range(0, 10), at(10));
        assert_eq!(unrecorded.first(), Some(at(5)));
        unrecorded.take().iter().for_each(|it| _ = unrecorded.recorded(it));
        assert_eq!(unrecorded.first(), None);
    }
}
