//! The tries of parked events: single events that the consumer does not take, although it takes
//! others. `parked` decides when an event is tried again and when it is given up.

use std::sync::Arc;

use tokio::time::Instant;

use super::Ledger;
use crate::delivery::failure::Failure;
use crate::delivery::in_flight::{State, Work};
use crate::delivery::pacing::DRAIN_PAUSE_MAX;
use crate::delivery::parked::{Next, PAUSE_NEARLY_FULL, Parking, Patience, TurnedDown};
use crate::queue::Claim;

impl Ledger {
    /// Returns `true` if parked events may be tried now. An ordered output first sends the claims
    /// that wait to be sent again, and ends the search for refused events.
    pub(super) fn may_try(&self) -> bool {
        let is_first = !self.in_flight.has(State::Pending) && !self.isolation.is_active();
        // One try at a time waits for its lines to be read from files.
        let next = self.in_flight.first(State::Pending);
        let waits = next.is_some_and(|work| work.parking.is_some());
        (is_first || !self.rules.is_ordered) && !waits && !self.in_flight.cursor().is_closed()
    }

    /// Returns the moment of the next try of a parked event; `None` if there is none, or if the
    /// loop must first wait for something else.
    pub(in crate::delivery) fn next_try(&self) -> Option<Instant> {
        let may_try = self.pacing.paused_until.is_none()
            && self.may_send()
            && !self.given_up.needs_lines
            && self.may_try();
        self.in_flight.next_try().filter(|_| may_try)
    }

    /// Parks each event of a claim on the wire that the consumer answers with server errors,
    /// although it takes others.
    pub(super) fn park_each(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        let mut start = claim.start;
        while let Some(event) = self.cut_event(start, claim.end) {
            start = event.claim.end;
            self.release(event.claim);
            self.begin_tries(event, TurnedDown::ServerError, failure, consumer);
        }
    }

    /// Begins the tries of an event that the consumer does not take, although it takes others. The
    /// event was sent once and is to be sent again.
    pub(super) fn begin_tries(
        &mut self,
        work: Work,
        answer: TurnedDown,
        failure: &Failure,
        consumer: usize,
    ) {
        let (parking, next) = Parking::begin(answer, consumer, self.isolation.conduct(consumer));
        self.go_on_trying(Work { parking: Some(parking), ..work }, next, failure);
    }

    /// Notes that the consumer has not accepted the try of an event. `is_refused` is `true` if it
    /// refuses the event.
    pub(super) fn try_failed(
        &mut self,
        mut work: Work,
        failure: &Failure,
        is_refused: bool,
        consumer: usize,
    ) {
        self.release(work.claim);
        let Some(parking) = &mut work.parking else { return };
        let answer = match is_refused {
            true => Some(TurnedDown::Refused),
            false => failure.server_error.then_some(TurnedDown::ServerError),
        };
        let next = match answer {
            Some(answer) => {
                self.health.refused(failure);
                let conduct = self.isolation.conduct(consumer);
                parking.turned_down(answer, consumer, conduct, self.patience())
            }
            None => {
                // The failure does not depend on the event, and ends the round.
                self.turn.sends_others |= std::mem::take(&mut self.turn.doubts_claim);
                self.health.failed(failure);
                parking.failed();
                Next::Wait
            }
        };
        if next == Next::Search {
            return self.search_for(work, failure, consumer);
        }
        self.go_on_trying(work, next, failure);
        if answer.is_none() {
            self.pause(failure);
        }
        self.take_all_old(failure);
    }

    /// Ends the tries of an event because none of them counts at `consumer`, which turns the event
    /// down now. This counts like the first refusal of any other event.
    fn search_for(&mut self, work: Work, failure: &Failure, consumer: usize) {
        self.tries_are_over(work.claim);
        let mut work = Work { parking: None, is_remainder: false, ..work };
        let decision = self.isolation.refused(&mut work, consumer);
        self.in_flight.note(work);
        self.decide_alone(work, decision, failure, consumer);
    }

    /// Notes that an address has answered the try of an event with a server error, and that another
    /// address is asked at once. Returns `true` if the event is given up instead.
    pub(super) fn try_passed_over(
        &mut self,
        work: &mut Work,
        failure: &Failure,
        consumer: usize,
    ) -> bool {
        let (conduct, patience) = (self.isolation.conduct(consumer), self.patience());
        let Some(parking) = &mut work.parking else { return false };
        let next = parking.turned_down(TurnedDown::ServerError, consumer, conduct, patience);
        self.in_flight.note(*work);
        if next == Next::GiveUp {
            self.health.refused(failure);
            self.release(work.claim);
            self.go_on_trying(*work, next, failure);
        }
        next == Next::GiveUp
    }

    fn patience(&self) -> Patience {
        Patience {
            server_errors: self.rules.server_errors,
            keeps_all: self.isolation.retries(),
            is_nearly_full: self.in_flight.cursor().is_nearly_full(),
            drains: self.pacing.drains(),
        }
    }

    /// Returns `true` if this claim on the wire is the try of one event. If the filter now lets
    /// more of its events pass than before, it becomes an ordinary claim.
    pub(super) fn is_try(&mut self, work: &mut Work) -> bool {
        if work.parking.is_some() && work.events > 1 {
            work.parking = None;
            self.in_flight.note(*work);
            self.tries_are_over(work.claim);
        }
        work.parking.is_some()
    }

    /// Returns `true` if the drain, when it begins, has a pause to end or parked events to try at
    /// once.
    pub(in crate::delivery) fn may_hurry(&self) -> bool {
        let waits = self.pacing.paused_until.is_some() || self.in_flight.has(State::Parked);
        waits && !self.pacing.is_shortened
    }

    /// Notes that the drain has begun: ends the current pause, and tries the parked events now.
    pub(in crate::delivery) fn hurry(&mut self) {
        self.pacing.shorten();
        self.in_flight.each_parked(Parking::hurry);
    }

    /// Carries out the decision about an event after a try that the consumer did not accept.
    fn go_on_trying(&mut self, mut work: Work, next: Next, failure: &Failure) {
        let position = work.claim.start;
        work.is_remainder = false;
        let longest = match self.patience() {
            Patience { drains: true, .. } => Some(DRAIN_PAUSE_MAX),
            Patience { is_nearly_full: true, .. } => Some(PAUSE_NEARLY_FULL),
            Patience { .. } => None,
        };
        if let (Some(parking), Some(longest)) = (&mut work.parking, longest) {
            parking.wait_at_most(longest);
        }
        self.in_flight.note(work);
        match (next, work.parking) {
            (Next::Wait, Some(parking)) => {
                self.in_flight.change(work.claim, State::Parked);
                self.parked.insert(position, (parking, Arc::from(failure.message.as_str())));
                self.health.parked(&self.parked, Some(position));
            }
            (Next::AtOnce | Next::Wait | Next::Search, _) => {}
            (Next::GiveUp, _) => {
                self.give_up(&work, failure);
                self.tries_are_over(work.claim);
            }
        }
    }

    /// Notes that `consumer` has accepted the try of an event that was turned down before, by this
    /// consumer or by another one.
    pub(super) fn try_accepted(&mut self, work: &Work, parking: Parking, consumer: usize) {
        if parking.was_refused() {
            self.isolation.conduct_mut(consumer).accepted_refused();
        }
        let (position, tries) = (work.claim.start.get(), parking.tries);
        let output = &self.health.name;
        tracing::debug!(output, position, tries, "an event that was turned down is accepted");
        self.tries_are_over(work.claim);
    }

    /// Removes the parked event of this claim from `/status`.
    pub(super) fn tries_are_over(&mut self, claim: Claim) {
        if self.parked.remove(&claim.start).is_some() {
            // Also forgets events that the queue has dropped.
            self.parked = self.parked.split_off(&self.in_flight.cursor().watermark());
            self.health.parked(&self.parked, None);
        }
    }
}
