//! The events that an output has finished, and whose evidence is not durable yet.
//!
//! Without evidence there is no such value, and nothing here runs. With evidence, the place that
//! the cursors file has for an output stays before these events, and so do the files of the log:
//! after a crash the output sends them again, and the evidence says so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::position::Position;
use crate::queue::contract::Claim;
use crate::queue::contract::Fates;
use crate::queue::contract::Finished;
use crate::queue::contract::Outcome;
use crate::queue::contract::now;
use crate::queue::segment::LogOffset;

/// At most this many items of each output wait for the reader that records the evidence: ranges,
/// and the hashes and fates of single events. They take about 60 MB. If nothing can be recorded,
/// further ranges are not kept, and their events are sent again after the next start. As a rule,
/// ranges that follow each other are joined into one.
const WAITING_MAX: usize = 1 << 20;

/// The events that one output has finished, and whose evidence is not durable yet.
#[derive(Default)]
pub(in crate::queue) struct Unrecorded {
    /// The ranges of these events: the key has a range's first position and its end, and the value
    /// is the place in the log where the range begins. If ranges were joined into one, the key
    /// keeps the end of the first of them.
    places: BTreeMap<(Position, Position), LogOffset>,
    /// The place of the first event that was finished and not kept here, because too much waits.
    /// This value is never reset.
    not_kept: Option<LogOffset>,
    /// The ranges that the reader that records the evidence has not taken yet.
    finished: Vec<Finished>,
    /// The number of ranges, hashes and fates in `finished`.
    waiting: usize,
    /// The ranges of lost events, from the watermark on, that were noted already. A cursor that was
    /// moved back comes to them again, and they must not be noted twice.
    losses: Vec<Range<Position>>,
    /// Notified when there is a range to take.
    wakes: Arc<Notify>,
}

impl Unrecorded {
    /// `wakes` is notified when there is a range to take.
    pub(super) fn new(wakes: Arc<Notify>) -> Self {
        Self { wakes, ..Self::default() }
    }

    /// Notes that an output has finished a range of events, which begins at this byte of the log.
    pub(super) fn add(&mut self, output: &str, claim: Claim, byte: u64, outcome: Outcome) {
        let place = LogOffset { position: claim.start, byte };
        if let Some(last) = self.finished.last_mut()
            && (last.claim.end, &last.outcome) == (claim.start, &outcome)
            && is_plain(&outcome)
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
        self.places.insert((claim.start, claim.end), place);
        self.finished.push(Finished { output: output.to_owned(), claim, at: now(), outcome });
        self.wakes.notify_one();
    }

    /// Notes that an output has lost these events, which begin at this byte of the log. Events that
    /// were noted before are left out. `watermark`: the first position that the output has not
    /// finished.
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

    /// Returns the place of the first event whose evidence is not durable yet.
    pub(super) fn first(&self) -> Option<LogOffset> {
        let first = self.places.first_key_value().map(|(_, place)| *place);
        first.into_iter().chain(self.not_kept).min()
    }

    /// Takes the ranges that were not taken yet.
    pub(super) fn take(&mut self) -> Vec<Finished> {
        self.waiting = 0;
        std::mem::take(&mut self.finished)
    }

    /// Returns `true` if nothing of this output waits for its evidence.
    pub(super) fn is_recorded(&self) -> bool {
        self.finished.is_empty() && self.first().is_none()
    }

    /// Notes that the evidence of a range is durable. `claim` was taken with [`Unrecorded::take`].
    pub(super) fn recorded(&mut self, claim: Claim) {
        let first = (claim.start, Position::START);
        let of_claim = self.places.range(first..=(claim.start, claim.end));
        for key in of_claim.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.places.remove(&key);
        }
    }
}

/// Returns `true` if all events of a range have the same outcome, so that the range can be joined
/// with the next one.
fn is_plain(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Settled(fates) => *fates == Fates::default(),
        Outcome::Lost(_) => true,
    }
}
