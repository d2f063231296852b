//! Finding the events that a consumer refuses, without I/O: the rules for what is sent next and for
//! when a refusal is final.
//!
//! A consumer that refuses a request does not say which of its events is at fault. The fault may
//! also be the consumer's own: if its index is missing, it refuses every event, and no event is at
//! fault. The loop halves a refused claim until single events are refused. A single event that is
//! refused becomes a *suspect*. When the same consumer has accepted an event that was sent after
//! the suspect was first refused, the consumer works, and the refusal may be about the event. The
//! event is then tried several times over some seconds before it is given up (`parked`).
//!
//! A consumer that answers 5xx is treated in the same way, but later: a claim is halved, or its
//! event is parked, only if the consumer has answered 5xx to it more than once, and has accepted
//! other events in between. While a consumer answers 5xx to everything, nothing is halved. If the
//! output is ordered, only the answers to a single event alone count for it, and the consumer must
//! have accepted other events between each two of them: the other server errors may have come from
//! an outage.

use std::collections::BTreeMap;
use std::time::Duration;

use super::failure::Failure;
use super::in_flight::{Refusals, Work};
use super::parked::Conduct;
use crate::config::Rejected;

/// At this number of suspects, the next new event is tried only after [`PAUSE_MANY`]. If as many
/// claims wait because of server errors, no new event is taken to be compared with them.
pub(super) const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// The least pause between two new events that are compared with [`SUSPECTS_MAX`] suspects or more.
/// A consumer that refuses everything adds one suspect in each pause, which needs less than a
/// kilobyte: at most 3 MB in a day.
pub(super) const PAUSE_MANY: Duration = Duration::from_secs(30);

/// The number of server errors to one claim after which its events may be at fault.
const ERRORS_MIN: u32 = 2;

/// The number of server errors to one claim after which its events may be at fault, if the output
/// is ordered. It is higher than [`ERRORS_MIN`] because of consumers that answer every second
/// request with 503: even there, only one of 16 claims gets four such answers in a row. For a
/// single event, an error counts only if the consumer has accepted other events since the error
/// before: a consumer that works for a moment in an outage makes no event lose its place in the
/// order.
const ERRORS_MIN_ORDERED: u32 = 4;

/// The maximum number of consumers of which the delivery remembers that they accepted events. Each
/// address that an output has ever reached counts as one consumer. A forgotten consumer must accept
/// an event again before an event that it refuses is given up.
const CONSUMERS_MAX: usize = 1024;

/// The decision about a refused claim that can't be split into smaller claims.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Send the claim again after a pause, as often as needed: the config says `rejected.action =
    /// "retry"`.
    Retry,
    /// The event may be at fault: the consumer has accepted an event that was sent after the first
    /// refusal of this claim.
    Doubt,
    /// Keep the event as a suspect until the consumer has accepted another event.
    Suspect,
}

/// The state of the current round of the search. A round first sends suspects again, and then a new
/// event, to learn whether the consumer accepts anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// No new event was sent in this round yet.
    Fresh,
    /// A new event of the queue was taken in this round, to learn whether the consumer accepts it.
    Compared,
    /// The queue had no new event for this round, so the delivery pauses. The first new event that
    /// arrives ends the pause.
    AwaitsEvent,
}

/// The search for the events that a consumer refuses, in one delivery. The search is a state
/// machine without I/O and without access to the queue: the delivery loop reports what happened,
/// and asks what to do. What becomes of an event that is in doubt is decided in `parked`.
///
/// Phases: *inactive* until a claim is refused. Then *active*, in rounds: halves of refused claims,
/// and suspects, are sent one at a time; a single event that is refused is in doubt, becomes a
/// *suspect*, or (with `rejected.action = "retry"`) is sent again after a pause; when only suspects
/// are left, a new event of the queue is sent, to learn whether the consumer accepts it. If the new
/// event is refused too, the round is over, and the loop pauses. Each acceptance makes all suspects
/// pending again. The search ends when no claim is pending, suspected or on the wire.
///
/// Invariants:
/// - An event is in doubt only after the consumer that refused it has accepted an event that was
///   sent after the first refusal. Events that were sent before this refusal prove nothing, because
///   the consumer may have refused everything since then. An acceptance by another consumer proves
///   nothing either, because the settings of the refusing consumer may be wrong.
/// - There are at most `SUSPECTS_MAX` suspects, plus the events that were on the wire, plus one for
///   each `PAUSE_MANY`.
///
/// What must never happen: a consumer that refuses everything makes the loop give up events that a
/// working consumer would have taken.
pub(super) struct Isolation {
    /// The setting `rejected.action` of the output: what is done with an event that its consumer
    /// refuses.
    action: Rejected,
    /// The round of the search; `None` while the delivery does not search. In a search one request
    /// is sent at a time, so that each answer is about one claim.
    round: Option<Round>,
    /// The number of refusals that this delivery has seen. Each answer by which a consumer refuses
    /// a claim counts once.
    pub(super) refusals: u64,
    /// `true` if the consumer gets the events in the order of the queue. More is then asked for
    /// before an event is parked because of server errors, because it leaves the order.
    is_ordered: bool,
    /// The answers of each consumer so far, by the consumer's number. Each address that the output
    /// has reached counts as one consumer.
    conducts: BTreeMap<usize, Conduct>,
    /// Says which suspects the last round sent. A round sends the first suspect and one other. The
    /// value is the index of that other suspect among the suspects after the first; the next round
    /// chooses the one after it.
    rotation: usize,
    /// The number of new events of the queue that are sent next to learn whether the consumer
    /// accepts them, while all other events that wait are suspects. As a rule, the number is 1. It
    /// doubles each time that the filter keeps back all events of a claim, and is 1 again after
    /// events were sent.
    comparison_events: u64,
    /// The failure with which the consumer refused the latest suspect; `None` if there was no
    /// suspect.
    pub(super) last_refusal: Option<Failure>,
}

impl Isolation {
    /// Makes the state of a new delivery. `action` is the config's `rejected.action`. `is_ordered`
    /// is `true` if the consumer gets the events in the order of the queue.
    pub(super) fn new(action: Rejected, is_ordered: bool) -> Self {
        Self {
            action,
            is_ordered,
            round: None,
            refusals: 0,
            conducts: BTreeMap::new(),
            rotation: 0,
            comparison_events: 1,
            last_refusal: None,
        }
    }

    /// Returns `true` if only one request is sent at a time, because a claim was refused.
    pub(super) fn is_active(&self) -> bool {
        self.round.is_some()
    }

    /// Returns `true` if the config says `rejected.action = "retry"`: an event that its consumer
    /// refuses is sent again, as often as needed.
    pub(super) fn retries(&self) -> bool {
        self.action == Rejected::Retry
    }

    /// Notes in `work` that a consumer refused its claim. `consumer` is the number of this
    /// consumer. Returns what is to be done if the claim can't be split into smaller claims.
    pub(super) fn refused(&mut self, work: &mut Work, consumer: usize) -> Decision {
        self.round.get_or_insert(Round::Fresh);
        self.refusals += 1;
        self.conduct_mut(consumer).turned_down();
        let first = match work.refusals {
            Refusals::None => self.refusals,
            Refusals::InBatch(first) | Refusals::Alone(first) => first,
        };
        if work.refusals == Refusals::None {
            work.refusals = Refusals::InBatch(first);
        }
        let has_accepted = self.conduct(consumer).has_accepted_since(first);
        match self.action {
            Rejected::Retry => Decision::Retry,
            Rejected::Drop | Rejected::DeadLetter if has_accepted => Decision::Doubt,
            Rejected::Drop | Rejected::DeadLetter => Decision::Suspect,
        }
    }

    /// Notes that the event of `work` becomes a suspect: the consumer refused the event when it was
    /// sent alone, and the event is kept until the consumer has accepted another event. `failure`
    /// is the consumer's refusal.
    pub(super) fn suspect(&mut self, work: &mut Work, failure: &Failure) {
        if let Refusals::InBatch(first) = work.refusals {
            work.refusals = Refusals::Alone(first);
        }
        self.last_refusal = Some(failure.clone());
    }

    /// Notes that a consumer accepted a claim. `consumer` is the number of this consumer. `sent_at`
    /// is the number of refusals that this delivery had seen when the claim was sent.
    pub(super) fn accepted(&mut self, sent_at: u64, consumer: usize) {
        self.conduct_mut(consumer).accepted(sent_at);
        self.set_round(Round::Fresh);
    }

    /// Notes in `work` that a consumer has answered its claim with a server error. Returns `true`
    /// if the events of the claim may be at fault: there were enough such answers, and the
    /// consumer has accepted something that was sent after the first one. `took_others` is `true`
    /// if the consumer has accepted other events of the same request.
    pub(super) fn server_error(
        &mut self,
        work: &mut Work,
        consumer: usize,
        took_others: bool,
    ) -> bool {
        self.refusals += 1;
        // The events of the same request that the consumer accepted were sent at `sent_at`.
        let number = if took_others { work.sent_at } else { self.refusals };
        let conduct = self.conduct(consumer);
        let errors = &mut work.errors;
        errors.count += 1;
        let since = *errors.since.get_or_insert(number);
        let works = took_others || (conduct.has_accepted_since(since) && conduct.still_works());
        if !self.is_ordered || work.events > 1 {
            let errors_min = if self.is_ordered { ERRORS_MIN_ORDERED } else { ERRORS_MIN };
            return errors.count >= errors_min && works;
        }
        if errors.proven == 0 || works {
            (errors.proven, errors.since) = (errors.proven + 1, Some(number));
        }
        errors.proven >= ERRORS_MIN_ORDERED
    }

    /// Returns the answers of a consumer so far.
    pub(super) fn conduct(&self, consumer: usize) -> Conduct {
        self.conducts.get(&consumer).copied().unwrap_or_default()
    }

    /// Returns the answers of a consumer, to add one.
    pub(super) fn conduct_mut(&mut self, consumer: usize) -> &mut Conduct {
        if !self.conducts.contains_key(&consumer) && self.conducts.len() >= CONSUMERS_MAX {
            self.conducts.pop_first();
        }
        self.conducts.entry(consumer).or_default()
    }

    /// Notes that events were sent. The next time that a new event is needed to compare suspects
    /// with it, one new event is taken.
    pub(super) fn sent(&mut self) {
        self.comparison_events = 1;
    }

    /// Notes that the filter kept back every event of a claim. If new events were taken to be
    /// compared with suspects, the round still needs another new event. The next comparison takes
    /// twice as many new events, at most `max_events`.
    pub(super) fn nothing_left(&mut self, max_events: u64) {
        self.comparison_events = (2 * self.comparison_events).min(max_events);
        if self.round == Some(Round::Compared) {
            self.set_round(Round::Fresh);
        }
    }

    /// Returns how many new events are taken at most to learn whether the consumer accepts them.
    pub(super) fn comparison_events(&self) -> u64 {
        self.comparison_events
    }

    /// Returns how many new events to take from the queue at most, when all events that wait are
    /// suspects: if the consumer accepts a new event, the consumer works, and the suspects are at
    /// fault. Returns `None` if the round is over, because the consumer refused the suspects and
    /// the new event. After a pause, suspects are sent again.
    pub(super) fn next_comparison(&mut self) -> Option<u64> {
        if self.round == Some(Round::Compared) {
            self.set_round(Round::Fresh);
            return None;
        }
        self.set_round(Round::Compared);
        Some(self.comparison_events)
    }

    /// Notes that the delivery looked for a new event in the queue, to learn whether the consumer
    /// accepts it, and found none. All events that wait are suspects. The delivery now pauses
    /// before it sends suspects again. From now on, a new event in the queue ends this pause at
    /// once.
    pub(super) fn nothing_to_compare(&mut self) {
        self.set_round(Round::AwaitsEvent);
    }

    /// Returns `true` if a new event in the queue ends the delivery's pause, because only suspects
    /// are left, and the new event shows if the consumer accepts anything. Returns `false` if the
    /// pause lasts until its time is over.
    pub(super) fn awaits_event(&self) -> bool {
        self.round == Some(Round::AwaitsEvent)
    }

    /// Notes that a new event has arrived in the queue, or that the delivery pauses because of a
    /// failure. From now on, a new event in the queue does not end a pause: see
    /// [`Isolation::awaits_event`].
    pub(super) fn await_no_event(&mut self) {
        if self.awaits_event() {
            self.set_round(Round::Fresh);
        }
    }

    /// Chooses the second of the two suspects that the next round sends. One of the two is always
    /// the first suspect of the queue. The other is one of the `others` suspects after the first;
    /// it changes from round to round. Returns the index of this suspect among the `others`.
    ///
    /// Two are needed, because the consumer may refuse the first suspect each time. As long as no
    /// new event comes, only another suspect can then be accepted, and show that the consumer
    /// works.
    pub(super) fn rotate(&mut self, others: usize) -> usize {
        self.rotation = (self.rotation + 1) % others.max(1);
        self.rotation
    }

    /// Ends the search for events that the consumer refuses. Either no event waits for a decision
    /// or an answer any more, or the connection to the consumer that refused events has ended.
    pub(super) fn end(&mut self) {
        self.round = None;
    }

    fn set_round(&mut self, round: Round) {
        self.round = self.round.map(|_| round);
    }
}

#[cfg(test)]
mod tests;
