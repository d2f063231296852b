//! The events that a delivery gives up: events that the consumer refuses although it accepts
//! others, events that the protocol can't carry, and events that were not delivered in
//! `retry.max_elapsed`.
//!
//! Their lines are read from the queue and handed over to be written as dead letters, if the config
//! names a place for them. A claim becomes final when its letters are written, or when it is clear
//! that they can't be written.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::dead_letter::{CLAIMS_MAX, DeadLetters, GROUP_BYTES_MAX, Writing, Written};
use super::failure::Failure;
use super::filtering::{Filtering, INSPECTED_BYTES_MAX};
use super::health::Health;
use super::in_flight::{InFlight, State, Work};
use super::tried::Tried;
use crate::config::{BatchLimits, Rejected};
use crate::queue::{Claim, Cursor, Disposition, Redelivery, Take};
use crate::telemetry::{Cause, LostAs};

/// The claims that one output gives up: it does not try to send them any more. This value holds a
/// claim from the decision to give it up until its dead letters (copies of its events in files) are
/// written. The ledger owns this value.
///
/// Phases of a claim: *doomed*, until its lines are in memory and the writer of dead letters has
/// room for them; then *ending*, until the dead letters are written. If dead letters are not kept,
/// a claim becomes final at the end of the first phase (without a filter, its lines are not needed
/// then). In both phases, `InFlight` has the claim in the state `State::Burying`.
///
/// Invariants: at most about `GROUP_BYTES_MAX` bytes of lines, and `CLAIMS_MAX` claims, wait for
/// the writer. At these limits, nothing is sent, because further events might have to be given up
/// too. Each event that is given up is counted once, when its claim becomes final.
pub(super) struct GivenUp {
    /// The output's name, which is written into its dead letters.
    output: Arc<str>,
    /// The writer of dead letters; `None` if events that are given up are only counted, and not
    /// kept.
    place: Option<DeadLetters>,
    /// The claims that are to be given up, in the order of the decisions. The lines of these claims
    /// are not yet handed over to the writer of dead letters.
    doomed: VecDeque<Doomed>,
    /// The claims whose dead letters are being written. They are in the order in which their lines
    /// were handed over to the writer of dead letters.
    endings: VecDeque<Ending>,
    /// The bytes of the lines of all claims in `endings`.
    bytes: u64,
    /// `true` if the lines of the next claim that is to be given up must first be read from the
    /// queue's files, with [`InFlight::readable`]. `false` if they are in memory, or if nobody has
    /// asked for them yet.
    pub(super) needs_lines: bool,
    /// For the events that are not final: the times at which they were first tried (sent, or not
    /// sent because there was no connection). They show which events are too old to be tried again.
    /// `None` if `retry.max_elapsed` is not set, so that no event gets too old.
    tried: Option<Tried>,
    /// The error of the last failed connection. Events of the queue that are too old are given up
    /// with this error as their reason. `None` while there is a connection. Also `None` when the
    /// queue has no more events that are too old, and always if `retry.max_elapsed` is not set.
    failed: Option<Arc<str>>,
}

/// A claim that is to be given up as soon as its lines are in memory.
struct Doomed {
    claim: Claim,
    /// The number of the claim's events that are to be sent. The number may be inexact, because the
    /// lines of the claim are not read again yet.
    events: u64,
    /// The lines of the events that the protocol can't carry, in the form in which they were to be
    /// sent; the consumer has all other events of the claim. If the list is empty, all events of
    /// the claim are given up.
    unfit: Vec<Bytes>,
    /// The maximum number of the claim's events that count as lost. The consumer has the others,
    /// and nobody knows which, so all events of the claim become dead letters. [`u64::MAX`] if all
    /// are lost.
    lost_max: u64,
    reason: Reason,
}

/// The reason why events are given up, for the counters, the log and the dead letters.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    /// The reason as a label of the counter of lost events.
    cause: Cause,
    /// The reason as text, for the log and the dead letters.
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
    /// The numbers of the claim's events that the consumer did not get: lost, dropped by the
    /// filter, or duplicates.
    disposition: Disposition,
    /// The number of lines that are being written for this claim. It is larger than the number of
    /// lost events if nobody knows which of the events are lost.
    events: u64,
    /// The bytes of the lines that are being written for this claim.
    bytes: u64,
    reason: Reason,
    writing: Writing,
}

impl GivenUp {
    pub(super) fn new(config: &crate::config::Output, dead_letters: DeadLetters) -> Self {
        Self {
            output: Arc::from(config.name.as_str()),
            place: (config.rejected == Rejected::DeadLetter).then_some(dead_letters),
            doomed: VecDeque::new(),
            endings: VecDeque::new(),
            bytes: 0,
            needs_lines: false,
            tried: config.retry.max_elapsed.map(Tried::new),
            failed: None,
        }
    }

    /// Returns `true` if the dead letters that wait to be written have reached a limit, so that
    /// nothing more should be sent.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES_MAX || self.endings.len() >= CLAIMS_MAX
    }

    /// Returns `true` if no claim waits for its dead letters to be written.
    pub(super) fn is_ended(&self) -> bool {
        self.endings.is_empty()
    }

    /// Notes that the lines of the next claim that is to be given up are in memory. Returns `true`
    /// if they had to be read from files, and `false` if they were in memory already.
    pub(super) fn lines_are_read(&mut self) -> bool {
        std::mem::take(&mut self.needs_lines)
    }

    /// Decides to give up a claim for `reason`. It is given up later, when its lines are in memory.
    /// At most `lost_max` of its events then count as lost. If the consumer has some of them and
    /// nobody knows which, all events become dead letters. The claim must be in the state
    /// `State::Pending` or `State::Suspect`, or parked.
    pub(super) fn add(
        &mut self,
        work: &Work,
        lost_max: u64,
        reason: Reason,
        in_flight: &mut InFlight,
    ) {
        let Work { claim, events, .. } = *work;
        in_flight.change(claim, State::Burying);
        self.doomed.push_back(Doomed { claim, events, unfit: Vec::new(), lost_max, reason });
    }

    /// Decides to give up those events of a claim that the protocol can't carry. The consumer has
    /// the others. The claim must be in the state `State::Pending`, so that its lines can be read
    /// again. `unfit` are the events as they were sent.
    pub(super) fn add_unfit(
        &mut self,
        claim: Claim,
        unfit: Vec<Bytes>,
        reason: Reason,
        in_flight: &mut InFlight,
    ) {
        in_flight.change(claim, State::Burying);
        let events = unfit.len() as u64;
        self.doomed.push_back(Doomed { claim, events, unfit, lost_max: events, reason });
    }

    /// Forgets the claims in `doomed`: they are to be given up, but their lines are not yet handed
    /// over to the writer of dead letters. The caller has set the cursor back. The queue hands out
    /// the same events again, in new claims, and it is then decided again what happens to them.
    pub(super) fn rewound(&mut self) {
        self.doomed.clear();
    }

    /// Notes that the events of this claim are being sent now. If an event was never sent before,
    /// this is the time of its first attempt.
    pub(super) fn tried(&mut self, claim: Claim, cursor: &Cursor) {
        if let Some(tried) = &mut self.tried {
            tried.note(claim, cursor.watermark());
        }
    }

    /// Returns the reason for giving up events that were not delivered within `retry.max_elapsed`.
    /// `error` is the text of the last error.
    fn too_old(tried: &Tried, error: &str) -> Reason {
        let after = tried.max_elapsed;
        let text =
            format!("not delivered in {after:?} (retry.max_elapsed), the last error: {error}");
        Reason::new(Cause::TooOld, &text)
    }

    /// Decides, after a failure, to give up all claims in the state `state` that are too old. A
    /// claim is too old when all its events were first sent at least `retry.max_elapsed` ago. The
    /// state is `Pending`, `Suspect` or `Parked`, so these claims are not being sent now.
    pub(super) fn take_old(&mut self, state: State, failure: &Failure, in_flight: &mut InFlight) {
        let Some(tried) = &self.tried else { return };
        let until = tried.over_until();
        let reason = Self::too_old(tried, &failure.message);
        while let Some(work) = in_flight.first(state).filter(|work| work.claim.end <= until) {
            self.add(&work, u64::MAX, reason.clone(), in_flight);
        }
    }

    /// Notes that there is no connection any more, because of `failure`. This counts as a failed
    /// attempt for every event that is not final.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if self.tried.is_some() {
            self.failed = Some(Arc::from(failure.message.as_str()));
        }
    }

    /// Notes that there is a connection again.
    pub(super) fn connected(&mut self) {
        (self.failed, self.needs_lines) = (None, false);
    }

    /// Gives up the next events of the queue, as long as they are too old. The next batch after
    /// these events counts as tried now, unless it was tried before. Called while there is no
    /// connection, and when no claim waits to be sent again. Does nothing before
    /// [`GivenUp::all_failed`], and while other claims are being given up. If the result is `true`,
    /// there may be more to do; the loop should first yield to the runtime.
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
            && !self.needs_lines
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
                None => self.needs_lines = true,
            }
        }
        false
    }

    /// Gives up the claims in `doomed`. Hands over their lines to the writer of dead letters, until
    /// the writer has no more room, or the next lines must first be read from files. If the result
    /// is `true`, there may be more to do; the loop should first yield to the runtime.
    pub(super) fn bury(
        &mut self,
        in_flight: &mut InFlight,
        filtering: &mut Filtering,
        health: &Health,
    ) -> bool {
        let mut inspected = 0;
        while !self.is_full() && !self.needs_lines && inspected < INSPECTED_BYTES_MAX {
            let Some(doomed) = self.doomed.pop_front() else { break };
            let Doomed { claim, events, lost_max, ref reason, .. } = doomed;
            let all_lost = doomed.unfit.is_empty();
            if all_lost && self.place.is_none() && !filtering.is_enabled() {
                // A released claim may have been dropped by the queue already.
                if in_flight.take_back(claim) {
                    let disposition = Disposition::lost(events.min(lost_max));
                    self.end_with(claim, disposition, Vec::new(), reason, in_flight, health);
                }
                continue;
            }
            match in_flight.redeliver(claim) {
                Redelivery::Batch(batch) => {
                    inspected += batch.bytes;
                    let cursor = in_flight.cursor();
                    let (lines, mut disposition) = match doomed.unfit.is_empty() {
                        true => filtering.originals(batch, cursor),
                        false => {
                            let unfit = doomed.unfit;
                            filtering.before_form(batch, unfit, cursor, &health.metrics)
                        }
                    };
                    disposition.lost = disposition.lost.min(lost_max);
                    self.end_with(claim, disposition, lines, reason, in_flight, health);
                }
                Redelivery::Gone => {
                    filtering.give_up(claim);
                }
                Redelivery::NotYet => {
                    self.doomed.push_front(doomed);
                    self.needs_lines = true;
                }
            }
        }
        inspected >= INSPECTED_BYTES_MAX
    }

    /// Gives up the lost events of a claim. `disposition` counts the events of the claim that the
    /// consumer did not get, and `lines` has the lines of those that are, or may be, lost. The
    /// lines are handed over to be written as dead letters, and the claim becomes final after that.
    /// If dead letters are not kept, or no event is lost, the claim becomes final at once.
    pub(super) fn end_with(
        &mut self,
        claim: Claim,
        disposition: Disposition,
        lines: Vec<Bytes>,
        reason: &Reason,
        in_flight: &mut InFlight,
        health: &Health,
    ) {
        let events = count(&lines);
        if disposition.lost == 0 && events == 0 {
            // No event of the claim is lost: the filter would not have sent any of them.
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
        in_flight.change(claim, State::Burying);
        self.endings.push_back(Ending {
            claim,
            disposition,
            events,
            bytes,
            reason: reason.clone(),
            writing,
        });
    }

    /// Waits for the result of the oldest dead letters that have no result yet, and returns this
    /// result. Never returns if no letters wait to be written.
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

    /// Makes a claim final, because its dead letters have a result: they are written, or can't be
    /// written. It is the claim whose letters were handed over first. `written` is the result that
    /// [`GivenUp::written`] returned.
    pub(super) fn end(&mut self, written: Written, in_flight: &mut InFlight, health: &Health) {
        let Some(ending) = self.endings.pop_front() else { return };
        let Ending {
            claim, mut disposition, events, bytes, reason: Reason { cause, text }, ..
        } = ending;
        let lost = disposition.lost;
        if written.events >= events {
            disposition.fates.put_aside();
        }
        in_flight.finish(claim, disposition);
        self.bytes -= bytes;
        health.metrics.fates.dead_letters.increment(written.events);
        // If only some letters are written, and nobody knows which of the events are lost, those
        // without a letter count as lost first.
        let unwritten = events.saturating_sub(written.events).min(lost);
        let in_letters = lost - unwritten;
        health.given_up(in_letters, cause, LostAs::DeadLetter, &text);
        if let Some(error) = written.error {
            health.given_up(unwritten, cause, LostAs::Unwritten, &format!("{error}; {text}"));
        }
    }
}

/// Returns the number of events in these lines.
fn count(lines: &[Bytes]) -> u64 {
    lines.iter().map(|piece| memchr::memchr_iter(b'\n', piece).count() as u64).sum()
}
