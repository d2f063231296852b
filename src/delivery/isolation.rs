//! Finding the events that a consumer refuses, without I/O: the rules for what is sent next and for
//! when a refusal is final.
//!
//! A consumer that refuses a request says only that something in it is wrong, or that something is
//! wrong with the consumer itself: a missing index refuses every event, and no event is at fault.
//! The loop halves a refused claim until single events are refused. A single event that is refused
//! becomes a *suspect*. It is given up only if the same consumer accepts an event that was sent
//! after the suspect was first refused: then the consumer works, and the refusal is about the
//! event.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::in_flight::Refusals;
use super::in_flight::Work;
use crate::config::Rejected;

/// The most suspects (events that were refused alone) that are kept while a consumer refuses
/// everything. At this number no new event of the queue is sent to compare; only the suspects are
/// sent again.
pub(super) const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// The most consumers whose acceptances are remembered. Each address that an output ever reached
/// counts as one. A consumer that was forgotten has to accept another event before an event that it
/// refuses is given up.
const CONSUMERS_MAX: usize = 1024;

/// The decision about a refused claim that can't be cut any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send it again after a pause, for ever: the config says `rejected.action = "retry"`.
    Retry,
    /// Give it up: the consumer has accepted other events since it refused this one.
    GiveUp,
    /// Keep it as a suspect until the consumer has accepted something else.
    Suspect,
}

/// What to take from the queue while there are suspects. A new event is sent to compare: if the
/// consumer accepts it, the suspects are at fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// At most this many new events, to compare them with the suspects.
    Events(u64),
    /// Nothing new: all suspects and the compared event were refused. A pause follows, then the
    /// suspects are sent again.
    RoundOver,
}

/// Whether the delivery searches for events that the consumer refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is refused. The whole window is used.
    Inactive,
    /// A claim was refused. One request is sent at a time, so that each answer is about one claim.
    Active(Round),
}

/// The state of the current round. A round sends suspects again, and then one new event to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// No new event was sent yet in this round.
    Fresh,
    /// A new event of the queue was taken to be compared with the suspects.
    Compared,
    /// The queue had no event to compare. The first event that arrives ends the pause.
    AwaitsEvent,
}

/// The search for the events that a consumer refuses, in one delivery. It is a state machine
/// without I/O or access to the queue: the delivery loop reports what happened, and asks what to
/// do.
///
/// Phases: *inactive* until a claim is refused. Then *active*, in rounds: halves and suspects are
/// sent one at a time; a single event that is refused is given up or becomes a suspect; when only
/// suspects are left, a new event of the queue is sent to compare them with. If it is refused too,
/// the round is over, and the loop pauses. The first acceptance makes all suspects pending again.
/// Isolation ends when nothing is pending, suspected or on the wire.
///
/// Invariants:
/// - An event is given up only after the consumer that refused it has accepted an event that was
///   sent after the first refusal. What was on the wire beside the refused event proves nothing,
///   because the consumer may refuse everything since. An acceptance by another consumer proves
///   nothing either, because the settings of this one may be wrong.
/// - There are at most `SUSPECTS_MAX` suspects, plus what was on the wire.
///
/// What must never happen: a consumer that refuses everything makes the loop give up events that a
/// working consumer would have taken.
pub(super) struct Isolation {
    action: Rejected,
    phase: Phase,
    /// How many times a consumer refused a claim, in this delivery.
    refusals: u64,
    /// For each consumer: the latest [`Work::sent_at`] of a claim that it accepted.
    accepted_since: BTreeMap<usize, u64>,
    /// The index of the suspect that the next round sends together with the first suspect, counted
    /// without that first suspect.
    rotation: usize,
    /// The number of new events that the next comparison takes. It is 1, and grows while the filter
    /// keeps back every event that was taken.
    comparison_events: u64,
    /// The failure with which the consumer refused the latest suspect; `None`: there was no
    /// suspect.
    last_refusal: Option<Failure>,
}

impl Isolation {
    /// Makes the state of a new delivery. `action` is the config's `rejected.action`.
    pub(super) fn new(action: Rejected) -> Self {
        Self {
            action,
            phase: Phase::Inactive,
            refusals: 0,
            accepted_since: BTreeMap::new(),
            rotation: 0,
            comparison_events: 1,
            last_refusal: None,
        }
    }

    /// Returns `true` if one request is sent at a time, because a claim was refused.
    pub(super) fn is_active(&self) -> bool {
        self.phase != Phase::Inactive
    }

    /// Returns how many times a consumer has refused a claim so far.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Returns the failure with which the consumer refused the latest suspect; `None` if there was
    /// no suspect.
    pub(super) fn last_refusal(&self) -> Option<&Failure> {
        self.last_refusal.as_ref()
    }

    /// Notes in `work` that a consumer refused the claim. Returns what is to be done if the claim
    /// can't be cut any more.
    pub(super) fn refused(&mut self, work: &mut Work, consumer: usize) -> Verdict {
        if !self.is_active() {
            self.phase = Phase::Active(Round::Fresh);
        }
        self.refusals += 1;
        let first = match work.refusals {
            Refusals::None => self.refusals,
            Refusals::InBatch(first) | Refusals::Alone(first) => first,
        };
        if work.refusals == Refusals::None {
            work.refusals = Refusals::InBatch(first);
        }
        let accepted = self.accepted_since.get(&consumer);
        match self.action {
            Rejected::Retry => Verdict::Retry,
            Rejected::Drop | Rejected::DeadLetter if accepted.is_some_and(|at| *at >= first) => {
                Verdict::GiveUp
            }
            Rejected::Drop | Rejected::DeadLetter => Verdict::Suspect,
        }
    }

    /// Notes that the refused event becomes a suspect because of `failure`.
    pub(super) fn suspect(&mut self, work: &mut Work, failure: &Failure) {
        if let Refusals::InBatch(first) = work.refusals {
            work.refusals = Refusals::Alone(first);
        }
        self.last_refusal = Some(failure.clone());
    }

    /// Notes that a consumer accepted a claim that was sent when there were `sent_at` refusals.
    pub(super) fn accepted(&mut self, sent_at: u64, consumer: usize) {
        let latest = self.accepted_since.entry(consumer).or_default();
        *latest = sent_at.max(*latest);
        if self.accepted_since.len() > CONSUMERS_MAX {
            self.accepted_since.pop_first();
        }
        self.set_round(Round::Fresh);
    }

    /// Notes that events were sent. The next comparison takes one event again.
    pub(super) fn sent(&mut self) {
        self.comparison_events = 1;
    }

    /// Notes that the filter kept back every event that was taken to be compared with suspects. The
    /// next comparison takes twice as many events, at most `max_events`.
    pub(super) fn nothing_left(&mut self, max_events: u64) {
        self.comparison_events = (2 * self.comparison_events).min(max_events);
        if self.phase == Phase::Active(Round::Compared) {
            self.set_round(Round::Fresh);
        }
    }

    /// Returns what to take from the queue when only suspects are left. `suspects` is their number.
    pub(super) fn next_comparison(&mut self, suspects: usize) -> Comparison {
        if self.phase == Phase::Active(Round::Compared) || suspects >= SUSPECTS_MAX {
            self.set_round(Round::Fresh);
            return Comparison::RoundOver;
        }
        self.set_round(Round::Compared);
        Comparison::Events(self.comparison_events)
    }

    /// Notes that the queue has nothing to compare the suspects with. The round is over.
    pub(super) fn nothing_to_compare(&mut self) {
        self.set_round(Round::AwaitsEvent);
    }

    /// Returns `true` if a new event in the queue is to end the pause, because suspects wait to be
    /// compared with it.
    pub(super) fn awaits_event(&self) -> bool {
        self.phase == Phase::Active(Round::AwaitsEvent)
    }

    /// Notes that a new event has arrived, or that the loop pauses for another reason. From now on,
    /// an event does not end the pause.
    pub(super) fn await_no_event(&mut self) {
        if self.awaits_event() {
            self.set_round(Round::Fresh);
        }
    }

    /// Begins a new round, which sends the first suspect and one other. Returns the index of that
    /// other suspect among `others` suspects; each round takes another. If the first is at fault
    /// and no new event comes, only another suspect can be accepted.
    pub(super) fn rotate(&mut self, others: usize) -> usize {
        self.rotation = (self.rotation + 1) % others.max(1);
        self.rotation
    }

    /// Ends the isolation: no event is refused, suspected or on the wire any more, or the link that
    /// could refuse events is gone.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Inactive;
    }

    fn set_round(&mut self, round: Round) {
        if self.is_active() {
            self.phase = Phase::Active(round);
        }
    }
}

#[cfg(test)]
mod tests;
