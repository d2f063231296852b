//! The events that a delivery gives up: events that were refused for good, events that can't be put
//! in the protocol, and events whose `retry.max_elapsed` is over.
//!
//! Their lines are read from the queue and handed over to be written as dead letters, if the config
//! names a place for them. A claim becomes final when its letters are written, or known not to be.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::dead_letter::CLAIMS_MAX;
use super::dead_letter::DeadLetters;
use super::dead_letter::GROUP_BYTES_MAX;
use super::dead_letter::Writing;
use super::dead_letter::Written;
use super::failure::Failure;
use super::filtering::Filtering;
use super::filtering::INSPECTED_BYTES_MAX;
use super::health::Health;
use super::in_flight::InFlight;
use super::in_flight::State;
use super::in_flight::Work;
use super::tried::Tried;
use crate::config::BatchLimits;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Disposition;
use crate::queue::Redelivery;
use crate::queue::Take;
use crate::telemetry::Cause;
use crate::telemetry::LostAs;

/// The claims that are given up, from the decision to the last letter. The ledger owns it.
///
/// Phases of a claim: *doomed*, until there is room for its letters and its lines are at hand; then
/// *ending*, until the writer of dead letters has written them. Without a place for letters a
/// doomed claim becomes final at once. In the table of claims both are `State::Burying`.
///
/// Invariants: at most `GROUP_BYTES_MAX` bytes of lines, and `CLAIMS_MAX` claims, wait for the
/// writer; with more, nothing is sent, because it might have to be given up too. Each event that is
/// given up is counted once, when its claim becomes final.
pub(super) struct GivenUp {
    /// The output's name, for its dead letters.
    output: Arc<str>,
    /// The writer of dead letters; `None`: events are dropped and counted.
    place: Option<DeadLetters>,
    /// Claims that are to be given up, in the order of the decisions.
    doomed: VecDeque<Doomed>,
    /// Claims whose letters are being written, in the order in which they were handed over.
    endings: VecDeque<Ending>,
    /// Bytes of the lines in `endings`.
    bytes: u64,
    /// Whether the lines of the next claim have to be read from files first.
    lines: Lines,
    /// The first attempts at claims that are not final; `None` without `retry.max_elapsed`.
    tried: Option<Tried>,
    /// The reason of the last failed connection, while there is no link: claims in the queue that
    /// are too old are given up for it. `None` while there is a link, or when none is too old.
    failed: Option<Arc<str>>,
}

/// Where the lines of the next claim are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// They are in memory, or nobody has asked for them.
    AtHand,
    /// They are in files: [`InFlight::readable`] reads them.
    InFiles,
}

/// A claim that is to be given up when its lines are at hand.
struct Doomed {
    claim: Claim,
    /// The number of its events, as far as it is known before they are read.
    events: u64,
    reason: Reason,
}

/// Why events are given up.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    /// The label of the counter.
    cause: Cause,
    /// The text for the log and the dead letters.
    text: Arc<str>,
}

impl Reason {
    pub(super) fn new(cause: Cause, text: &str) -> Self {
        Self { cause, text: Arc::from(text) }
    }
}

/// A claim that becomes final as soon as its dead letters are written.
struct Ending {
    claim: Claim,
    /// The events of the claim that the consumer did not get.
    disposition: Disposition,
    /// Bytes of their lines.
    bytes: u64,
    reason: Reason,
    writing: Writing,
}

impl GivenUp {
    pub(super) fn new(config: &crate::config::Output) -> Self {
        Self {
            output: Arc::from(config.name.as_str()),
            place: None,
            doomed: VecDeque::new(),
            endings: VecDeque::new(),
            bytes: 0,
            lines: Lines::AtHand,
            tried: config.retry.max_elapsed.map(Tried::new),
            failed: None,
        }
    }

    /// From now on events that are given up are written here.
    pub(super) fn place(&mut self, place: DeadLetters) {
        self.place = Some(place);
    }

    /// Returns `true` if so much waits for the writer of letters that nothing more should be sent.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES_MAX || self.endings.len() >= CLAIMS_MAX
    }

    /// Returns `true` if no letter is being written.
    pub(super) fn is_ended(&self) -> bool {
        self.endings.is_empty()
    }

    /// Whether the lines of the next claim have to be read from files, which
    /// [`InFlight::readable`] does.
    pub(super) fn needs_lines(&self) -> bool {
        self.lines == Lines::InFiles
    }

    /// The lines that were asked for are in memory. Returns whether some were asked for.
    pub(super) fn lines_are_read(&mut self) -> bool {
        std::mem::replace(&mut self.lines, Lines::AtHand) == Lines::InFiles
    }

    /// A released claim is to be given up, because the consumer refuses it with this text.
    pub(super) fn add(&mut self, work: &Work, error: &str, in_flight: &mut InFlight) {
        self.doom(work, Reason::new(Cause::Refused, error), in_flight);
    }

    fn doom(&mut self, work: &Work, reason: Reason, in_flight: &mut InFlight) {
        let Work { claim, events, .. } = *work;
        in_flight.bury(claim);
        self.doomed.push_back(Doomed { claim, events, reason });
    }

    /// The cursor was rewound: the doomed claims are claims no more.
    pub(super) fn rewound(&mut self) {
        self.doomed.clear();
    }

    /// There is an attempt at this claim.
    pub(super) fn tried(&mut self, claim: Claim, cursor: &Cursor) {
        if let Some(tried) = &mut self.tried {
            tried.note(claim, cursor.watermark());
        }
    }

    /// The reason for events that were tried for too long.
    fn too_old(tried: &Tried, error: &str) -> Reason {
        let after = tried.max_elapsed;
        let text =
            format!("not delivered in {after:?} (retry.max_elapsed), the last error: {error}");
        Reason::new(Cause::TooOld, &text)
    }

    /// After a failure: gives up the claims in this state (`Pending` or `Suspect`, so they are
    /// released) that were tried for too long.
    pub(super) fn take_old(&mut self, state: State, failure: &Failure, in_flight: &mut InFlight) {
        let Some(tried) = &self.tried else { return };
        let until = tried.over_until();
        let reason = Self::too_old(tried, &failure.message);
        while let Some(work) = in_flight.first(state).filter(|work| work.claim.end <= until) {
            self.doom(&work, reason.clone(), in_flight);
        }
    }

    /// There is no link: an attempt at every claim that is not final has failed.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if self.tried.is_some() {
            self.failed = Some(Arc::from(failure.message.as_str()));
        }
    }

    /// There is a link again.
    pub(super) fn connected(&mut self) {
        (self.failed, self.lines) = (None, Lines::AtHand);
    }

    /// After [`GivenUp::all_failed`], when no other claim is left: gives up the next events of the
    /// queue as long as they are too old. The first claim that is not too old has been tried now.
    /// Returns `true` if the loop should yield first, and there may be more to do.
    pub(super) fn next_old(
        &mut self,
        in_flight: &mut InFlight,
        filtering: &mut Filtering,
        health: &Health,
        max: BatchLimits,
    ) -> bool {
        let mut inspected = 0;
        while self.endings.is_empty()
            && self.doomed.is_empty()
            && !self.needs_lines()
            && let (Some(error), Some(tried)) = (&self.failed, &mut self.tried)
        {
            let until = tried.over_until();
            let old = until.saturating_since(in_flight.cursor().position());
            let events = if old > 0 { old } else { u64::MAX }.min(max.max_events);
            match in_flight.claim_next(Take { bytes: max.max_bytes, events }) {
                Some(batch) if batch.claim.end <= until => {
                    let reason = Self::too_old(tried, error);
                    let claim = batch.claim;
                    inspected += batch.bytes;
                    let (lines, disposition) = filtering.originals(batch, in_flight.cursor());
                    self.end_with(claim, disposition, lines, &reason, in_flight, health);
                    if inspected >= INSPECTED_BYTES_MAX {
                        return true;
                    }
                }
                Some(batch) => {
                    tried.note(batch.claim, in_flight.cursor().watermark());
                    in_flight.rewind();
                    self.failed = None;
                }
                None if in_flight.cursor().is_at_end() => self.failed = None,
                None => self.lines = Lines::InFiles,
            }
        }
        false
    }

    /// Hands over the lines of doomed claims, as far as there is room. Returns `true` if the loop
    /// should yield first, and there may be more to do.
    pub(super) fn bury(
        &mut self,
        in_flight: &mut InFlight,
        filtering: &mut Filtering,
        health: &Health,
    ) -> bool {
        let mut inspected = 0;
        while !self.is_full() && !self.needs_lines() && inspected < INSPECTED_BYTES_MAX {
            let Some(Doomed { claim, events, reason }) = self.doomed.pop_front() else { break };
            if self.place.is_none() && !filtering.is_enabled() {
                // A released claim may have been dropped by the queue already.
                if in_flight.take_back(claim) {
                    let disposition = Disposition::lost(events);
                    self.end_with(claim, disposition, Vec::new(), &reason, in_flight, health);
                }
                continue;
            }
            match in_flight.redeliver_to_bury(claim) {
                Redelivery::Batch(batch) => {
                    inspected += batch.bytes;
                    let (lines, disposition) = filtering.originals(batch, in_flight.cursor());
                    self.end_with(claim, disposition, lines, &reason, in_flight, health);
                }
                Redelivery::Gone => {
                    filtering.give_up(claim);
                }
                Redelivery::NotYet => {
                    self.doomed.push_front(Doomed { claim, events, reason });
                    self.lines = Lines::InFiles;
                }
            }
        }
        inspected >= INSPECTED_BYTES_MAX
    }

    /// The claim is to become final. `lines` are the lines of the events that `disposition` counts
    /// as lost: they are handed over to be written, or dropped if there is no place for them.
    pub(super) fn end_with(
        &mut self,
        claim: Claim,
        disposition: Disposition,
        lines: Vec<Bytes>,
        reason: &Reason,
        in_flight: &mut InFlight,
        health: &Health,
    ) {
        if disposition.lost == 0 {
            // Nothing of the claim would have left.
            in_flight.finish(claim, disposition);
            return;
        }
        let bytes = lines.iter().map(|piece| piece.len() as u64).sum();
        let Reason { cause, text } = reason;
        let place = self.place.as_ref();
        let Some(writing) = place.and_then(|place| place.write(&self.output, lines, text)) else {
            health.given_up(disposition.lost, *cause, LostAs::Dropped, text);
            in_flight.finish(claim, disposition);
            return;
        };
        self.bytes += bytes;
        in_flight.bury(claim);
        self.endings.push_back(Ending {
            claim,
            disposition,
            bytes,
            reason: reason.clone(),
            writing,
        });
    }

    /// Waits until the letters that were handed over first are written. Never returns if there are
    /// none.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn written(&mut self) -> Written {
        match self.endings.front_mut() {
            Some(ending) => ending.writing.done().await,
            None => std::future::pending().await,
        }
    }

    /// The claim of the first letters becomes final. `written` is what [`GivenUp::written`]
    /// returned.
    pub(super) fn end(&mut self, written: Written, in_flight: &mut InFlight, health: &Health) {
        let Some(ending) = self.endings.pop_front() else { return };
        let Ending { claim, disposition, bytes, reason: Reason { cause, text }, .. } = ending;
        in_flight.finish(claim, disposition);
        self.bytes -= bytes;
        health.metrics.dead_letters.increment(written.events);
        health.given_up(written.events, cause, LostAs::DeadLetter, &text);
        if let Some(error) = written.error {
            let unwritten = disposition.lost.saturating_sub(written.events);
            health.given_up(unwritten, cause, LostAs::Unwritten, &format!("{error}; {text}"));
        }
    }
}
