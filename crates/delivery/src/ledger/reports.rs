//! The reports of the link: what becomes of each claim, and of each event that is set aside, when
//! the consumer has answered, or the connection has ended.

use tokio::time::Instant;

use super::{Ledger, TOO_LONG};
use crate::aside::Kept;
use crate::failure::Failure;
use crate::filtering::Settled;
use crate::given_up::Of;
use crate::in_flight::{State, Work};
use crate::link::{Part, Verdict};
use crate::reason::Reason;
use crate::trial;
use crate::trial::{Answer, Next};
use base::position::Position;
use queue::Claim;
use telemetry::{AttemptError, Cause};

impl Ledger {
    pub(crate) fn on_accepted(&mut self, claim: Claim, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_accepted(claim.start, &kept, consumer);
        }
        let mut size = 0;
        for work in self.in_flight.answered(claim, None) {
            size += work.claim.end - work.claim.start;
            let first = self.in_flight.first_open();
            let waits = first.is_some_and(|first| first < work.claim.start);
            let was_late = work.attempts > 1 || work.trial.is_doubted();
            self.accepted(work, consumer, waits, was_late);
        }
        self.request_accepted(size);
    }

    /// The consumer has accepted `size` positions of a request: the next request may be larger. If
    /// everything on the wire is one request, it is accepted when nothing is left of it.
    fn request_accepted(&mut self, size: u64) {
        let size = if self.rules.is_one_request { self.search.turns.window() } else { size };
        if !self.rules.is_one_request || !self.in_flight.has(State::OnWire) {
            self.search.turns.accepted(size, self.rules.limits.max_events);
        }
    }

    /// Records that `consumer` has accepted something that was sent after `sent_at` responses had
    /// turned something down. Everything that was passed over is sent.
    fn works(&mut self, consumer: usize, sent_at: u64, was_counted: bool) {
        self.conducts.accepted(consumer, sent_at, was_counted);
        if self.pacing.is_serial {
            self.aside.recovered();
        }
        self.accepted_at = Some(Instant::now());
        self.pacing.succeeded();
        self.health.succeeded();
        self.search.progressed(&mut self.in_flight, self.rules.judges_events);
    }

    /// The consumer has accepted a claim. `waits`: in an ordered output, the claim is held until
    /// earlier claims are decided. `was_late`: later events may have been sent before this claim.
    fn accepted(&mut self, work: Work, consumer: usize, waits: bool, was_late: bool) {
        let (claim, batch, is_ordered) = (work.claim, work.batch, self.rules.is_ordered);
        // Like an event that is set aside, one that could not be is out of order.
        let was_late = was_late && work.waits == 0;
        self.works(consumer, work.sent_at, work.trial.counted > 0);
        self.health.delivered(work.events, work.attempts);
        self.filtering.tapping.accepted(claim, work.events);
        if is_ordered && work.is_overtaken {
            // An earlier event was sent after this claim, and accepted.
            self.again(work);
        } else {
            let waits = is_ordered && waits;
            match self.filtering.settle(claim, waits, &self.health.metrics) {
                None => self.in_flight.hold(work),
                Some(Settled::Final(disposition)) => self.in_flight.finish(work, disposition),
                Some(Settled::Without(disposition, lines)) => {
                    self.in_flight.stay(work);
                    self.too_large(Of::Claim(claim), disposition, lines);
                }
            }
        }
        if is_ordered && was_late {
            // Later events that were sent before this claim are sent again, to keep the order.
            let held = self.in_flight.all(State::Held);
            let later = held.filter(|held| held.claim > claim && held.batch < batch);
            for later in later.map(|held| held.claim).collect::<Vec<_>>() {
                self.filtering.released(later);
                self.in_flight.release(later);
            }
            self.in_flight.overtake(claim, batch);
        }
    }

    /// The consumer has received the request, and will confirm the events later: the claim stays on
    /// the wire. This is not a success yet: a consumer that takes everything and confirms nothing
    /// does not work.
    pub(crate) fn on_taken(&mut self, claim: Claim) {
        for work in self.in_flight.answered(claim, None) {
            self.in_flight.stay(Work { is_taken: true, ..work });
        }
    }

    /// `consumer` has judged the events of `claim` one by one: `parts` covers the claim. Events
    /// without a final verdict are sent again or set aside.
    ///
    /// A refusal of an event is final if the consumer took another event of `claim`, unless
    /// `rejected.action` is `"retry"`. If the consumer took none, each refused event counts as
    /// refused alone: the consumer's settings may be at fault, as in a store without its index.
    pub(crate) fn on_judged(&mut self, claim: Claim, parts: Vec<Part>, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_judged(claim.start, kept, parts, consumer);
        }
        let is = |wanted: fn(&Verdict) -> bool| parts.iter().any(|part| wanted(&part.verdict));
        let accepts = is(|it| matches!(it, Verdict::Delivered | Verdict::Existing));
        let took_others = accepts || is(|it| matches!(it, Verdict::Unconfirmed));
        let mut left = Vec::new();
        let mut start = claim.start;
        for Part { end, events, verdict } in parts {
            let works = self.in_flight.answered(Claim { start, end }, Some(events));
            start = end;
            match verdict {
                Verdict::Delivered | Verdict::Existing => {
                    if matches!(verdict, Verdict::Existing) {
                        self.health.metrics.existing.increment(events);
                    }
                    for work in works {
                        let passed_over = self.in_flight.first(State::PassedOver);
                        let waits =
                            passed_over.is_some_and(|first| first.claim.start < work.claim.start);
                        let was_late = work.trial.is_doubted();
                        self.accepted(work, consumer, waits, was_late);
                    }
                }
                // The consumer has not read the events, so this does not count as an attempt.
                Verdict::Unsent => works.into_iter().for_each(|work| {
                    let attempts = work.attempts.saturating_sub(1);
                    self.again(Work { attempts, ..work.with_remainder(true) });
                }),
                // Events that the consumer has taken but will not confirm are sent in their own
                // request.
                Verdict::Unconfirmed => works.into_iter().for_each(|work| {
                    self.again(work.with_remainder(false));
                }),
                Verdict::Partly { refused, failure } => {
                    self.refused_partly(works, refused, &failure, consumer);
                }
                Verdict::TooLong => works.into_iter().for_each(|work| self.too_long(work)),
                Verdict::Again(failure) => left.push((works, failure, false)),
                Verdict::Refused(failure) => left.push((works, failure, true)),
            }
        }
        if accepts {
            self.request_accepted(claim.end - claim.start);
        }
        let answer_of = |is_refused| if is_refused { Answer::Refused } else { Answer::Failed };
        let first = left.first().map(|(_, failure, is)| (answer_of(*is), failure.clone()));
        first.iter().for_each(|(_, first)| self.health.passed_over(first));
        let (again, counts) = self.not_taken(left, consumer, took_others);
        if let Some((answer, first)) = first.filter(|_| !accepts)
            && self.search.turns.failed(Some(claim.end - claim.start), (answer, &first), counts)
        {
            self.round_over(&first);
        }
        if let Some(failure) = again {
            if !accepts {
                self.health.down(&failure);
            }
            self.pause(&failure);
        }
    }

    /// Decides about the claims in `left`, which `consumer` has judged and not taken, each with the
    /// reason and `true` for a refusal. `took_others`: the consumer took other events of the
    /// report. Returns the failure of the first claim that is only sent again, if there is one, and
    /// `true` if the failure of an event counts.
    fn not_taken(
        &mut self,
        left: Vec<(Vec<Work>, Failure, bool)>,
        consumer: usize,
        took_others: bool,
    ) -> (Option<Failure>, bool) {
        let (mut again, mut counts) = (None, false);
        for (works, failure, is_refused) in left {
            for mut work in works {
                let is_doubted = work.trial.is_doubted();
                if is_refused && took_others && !self.rules.keeps_all {
                    self.give_up(work, u64::MAX, &failure);
                } else if is_refused || (is_doubted && failure.may_be_the_events) {
                    let answer = if is_refused { Answer::Refused } else { Answer::Failed };
                    for mut event in self.cut(work) {
                        // The consumer judges each event, so these events may share a request.
                        event.is_remainder = true;
                        counts |=
                            self.turned_down_alone(event, answer, &failure, consumer, took_others);
                    }
                } else {
                    // Others that this response has accepted prove that the consumer works.
                    let number = self.conducts.turned_down(consumer, false);
                    work.trial.doubted(if took_others { work.sent_at } else { number });
                    self.again(work.with_remainder(true));
                    again.get_or_insert_with(|| failure.clone());
                }
            }
        }
        (again, counts)
    }

    /// `consumer` refuses `refused` events of these claims for good and has the rest. Nobody knows
    /// which, so all are given up.
    fn refused_partly(
        &mut self,
        works: Vec<Work>,
        refused: u64,
        failure: &Failure,
        consumer: usize,
    ) {
        self.health.passed_over(failure);
        let events: u64 = works.iter().map(|work| work.events).sum();
        let sent_at = works.iter().map(|work| work.sent_at).max();
        if let Some(sent_at) = sent_at.filter(|_| refused < events) {
            self.works(consumer, sent_at, false);
        }
        let mut left = refused;
        for work in works {
            let lost = left.min(work.events);
            left -= lost;
            self.give_up(work, lost, failure);
        }
    }

    /// `consumer` refuses `claim` because of its events.
    pub(crate) fn on_refused(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_turned_down(claim.start, kept, Answer::Refused, failure, consumer);
        }
        let works = self.in_flight.answered(claim, None);
        self.turned_down(works, (Answer::Refused, false), failure, consumer);
    }

    /// An attempt to send `claim` failed, and the link still works.
    pub(crate) fn on_failed(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_failed(claim.start, kept, failure, consumer);
        }
        let works = self.in_flight.answered(claim, None);
        if failure.may_be_the_events {
            return self.turned_down(works, (Answer::Failed, true), failure, consumer);
        }
        works.into_iter().for_each(|work| self.give_back(work));
        match failure.elsewhere {
            true => self.health.passed_over(failure),
            false => self.round_failed(failure),
        }
    }

    /// `consumer` has not taken the claims of one request. Several events are sent again in two
    /// requests, and a single event is sent again, passed over, or set aside. `may_be_accident`: if
    /// it is their first failure, several events are sent again as they are.
    fn turned_down(
        &mut self,
        mut works: Vec<Work>,
        (answer, may_be_accident): (Answer, bool),
        failure: &Failure,
        consumer: usize,
    ) {
        let events: u64 = works.iter().map(|work| work.events).sum();
        if events == 0 {
            return;
        }
        let size: u64 = works.iter().map(|work| work.claim.end - work.claim.start).sum();
        self.tell_failure(answer, failure);
        let (mut is_accident, mut counts) = (may_be_accident && events > 1, false);
        for work in &mut works {
            is_accident &= work.trial.is_accident(consumer, failure.elsewhere);
        }
        if events == 1
            && let Some(work) = works.pop()
        {
            let work = work.with_remainder(false);
            counts = self.turned_down_alone(work, answer, failure, consumer, false);
        } else {
            let number = self.conducts.turned_down(consumer, false);
            let middle = works.len() / 2;
            for (index, mut work) in works.into_iter().enumerate() {
                work.trial.doubted(number);
                let (claim, is_cut) = (work.claim, index == middle && !is_accident);
                // The claims from the middle on no longer share a request with those before it.
                let is_remainder = work.is_remainder && !is_cut;
                self.again(work.with_remainder(is_remainder));
                if is_cut && middle == 0 {
                    self.in_flight.cut(claim, claim.start + size / 2);
                }
            }
        }
        let is_over =
            self.search.turns.failed((!is_accident).then_some(size), (answer, failure), counts);
        if is_over {
            self.round_over(failure);
        }
    }

    /// Counts a failed request. One event may be at fault, so the output goes down only after the
    /// tries that need no pause ([`Ledger::round_over`]), or if the consumer has accepted nothing
    /// for some time.
    fn tell_failure(&mut self, answer: Answer, failure: &Failure) {
        let is_over = |at: Instant| at.elapsed() >= self.rules.silence;
        let is_silent = match failure.reason == AttemptError::Timeout {
            true => self.accepted_at.is_none_or(is_over),
            false => self.search.turns.failing_since.is_some_and(is_over),
        };
        match answer {
            _ if is_silent && !failure.elsewhere => self.health.failed(failure),
            Answer::Refused => self.health.passed_over(failure),
            Answer::Failed => self.health.stumbled(failure),
        }
    }

    /// `consumer` has turned down a request with this event alone, or has judged the event.
    /// `took_others`: it has accepted other events of the same request. Returns `true` if the
    /// failure counts against the event.
    fn turned_down_alone(
        &mut self,
        mut work: Work,
        answer: Answer,
        failure: &Failure,
        consumer: usize,
        took_others: bool,
    ) -> bool {
        let number = self.conducts.turned_down(consumer, true);
        let response = (number, self.conducts.of(consumer));
        let counted = work.trial.counted;
        let may_repeat =
            failure.elsewhere || (self.search.turns.may_send_again() && !failure.asks());
        let how = (self.rules.is_ordered, may_repeat);
        let verdict = work.trial.turned_down(response, answer, took_others, how);
        let counts = work.trial.counted > counted;
        match verdict {
            trial::Verdict::SetAside => self.set_aside(work, answer, failure, consumer),
            trial::Verdict::Again => self.again(work),
            trial::Verdict::PassOver => {
                if !counts {
                    self.search.turns.passed_over(self.rules.limits.max_events);
                }
                work.due = self.asked(failure).map(|asked| Instant::now() + asked);
                self.filtering.released(work.claim);
                self.in_flight.give_back(work, State::PassedOver);
            }
        }
        counts
    }

    /// A request has failed before the consumer had its events, and no other address can be tried
    /// without a pause.
    fn round_failed(&mut self, failure: &Failure) {
        self.health.failed(failure);
        self.pause(failure);
    }

    fn give_back(&mut self, work: Work) {
        let is_remainder = work.is_remainder || self.rules.collects;
        self.again(work.with_remainder(is_remainder));
    }

    // ---- Reports about an event that is set aside ----

    fn aside_accepted(&mut self, position: Position, kept: &Kept, consumer: usize) {
        let (output, tries, at) = (&self.health.name, kept.retrial.tries, position.get());
        tracing::debug!(output, position = at, tries, "an event that was set aside is accepted");
        self.works(consumer, kept.sent_at, kept.retrial.tries > 1);
        self.aside.accepted();
        self.health.delivered(1, kept.attempts);
        let claim = Claim { start: position, end: position.next() };
        self.filtering.tapping.accepted(claim, 1);
        self.settle_aside(position, kept);
    }

    fn aside_judged(&mut self, position: Position, kept: Kept, parts: Vec<Part>, consumer: usize) {
        match parts.into_iter().next().map(|part| part.verdict) {
            Some(Verdict::Existing) => {
                self.health.metrics.existing.increment(1);
                self.aside_accepted(position, &kept, consumer);
            }
            Some(Verdict::Delivered) => self.aside_accepted(position, &kept, consumer),
            Some(Verdict::Refused(failure)) => {
                self.aside_turned_down(position, kept, Answer::Refused, &failure, consumer);
            }
            Some(Verdict::Partly { failure, .. }) => {
                self.health.passed_over(&failure);
                let reason = Reason::new(Cause::Refused, &failure.message);
                self.doom(position, kept, reason);
            }
            Some(Verdict::Again(failure)) => {
                self.aside_failed(position, kept, &failure, consumer);
            }
            Some(Verdict::TooLong) => {
                self.doom(position, kept, Reason::new(Cause::TooLong, TOO_LONG));
            }
            Some(Verdict::Unconfirmed | Verdict::Unsent) | None => {
                self.keep_aside(position, kept);
                self.aside.try_next(position);
            }
        }
    }

    fn aside_failed(
        &mut self,
        position: Position,
        mut kept: Kept,
        failure: &Failure,
        consumer: usize,
    ) {
        if failure.may_be_the_events {
            return self.aside_turned_down(position, kept, Answer::Failed, failure, consumer);
        }
        kept.retrial.failed();
        self.keep_aside(position, kept);
        if failure.elsewhere {
            self.aside.try_next(position);
            self.health.passed_over(failure);
        } else {
            self.round_failed(failure);
        }
    }

    fn aside_turned_down(
        &mut self,
        position: Position,
        mut kept: Kept,
        answer: Answer,
        failure: &Failure,
        consumer: usize,
    ) {
        self.health.passed_over(failure);
        kept.answer = failure.message.as_str().into();
        self.aside.turned_down();
        let (now, was_at_fault) = (self.circumstances(failure), kept.retrial.is_at_fault());
        if kept.retrial.turned_down(answer, &mut self.conducts, consumer, now) == Next::GiveUp {
            let reason = Reason::new(Cause::Refused, &failure.message);
            return self.doom(position, kept, reason);
        }
        let is_new = kept.retrial.is_at_fault() && !was_at_fault;
        self.keep_aside(position, kept);
        if is_new {
            self.health.aside(&self.aside, Some(position));
        }
        if failure.elsewhere {
            self.aside.try_next(position);
        }
    }

    fn keep_aside(&mut self, position: Position, kept: Kept) {
        let claim = Claim { start: position, end: position.next() };
        self.filtering.released(claim);
        self.aside.keep(position, kept);
        self.health.aside(&self.aside, None);
    }

    fn doom(&mut self, position: Position, kept: Kept, reason: Reason) {
        let claim = Claim { start: position, end: position.next() };
        self.filtering.released(claim);
        self.aside.doom(position, kept, reason);
    }

    // ---- The connection ----

    /// A connection on which claims become final in order has ended, and none waits for a response.
    /// If possible, the cursor is set back and the claims are forgotten, unless some were turned
    /// down.
    pub(crate) fn start_over(&mut self) {
        let is_calm = !self.in_flight.has_doubted() && self.given_up.is_ended();
        if is_calm && self.in_flight.cursor().is_in_order() {
            self.in_flight.rewind();
            self.given_up.rewound();
            self.filtering.rewound(self.in_flight.cursor());
        }
    }

    /// Takes the claims off the wire that begin before `end`, up to this position.
    fn take_off_wire(&mut self, end: Position) -> Vec<Work> {
        let claims = self.in_flight.claims(State::OnWire).into_iter();
        let before = claims.filter(|claim| claim.start < end);
        let before = before.map(|claim| Claim { end: claim.end.min(end), ..claim });
        before.filter_map(|claim| self.in_flight.front_on_wire(claim, None)).collect()
    }

    /// The connection has ended, with everything on the wire. If the consumer has turned down
    /// `request`, it is one request that has failed: everything, or what comes before the rest.
    /// `failure` has `true` if this may be an accident. Returns the claims of the request.
    fn wire_ended(
        &mut self,
        failure: Option<(&Failure, bool)>,
        request: Option<Claim>,
        consumer: usize,
    ) -> Vec<Claim> {
        let works = self.take_off_wire(request.map_or(Position::MAX, |request| request.end));
        let rest = self.take_off_wire(Position::MAX);
        let claims = works.iter().map(|work| work.claim).collect();
        rest.into_iter().for_each(|work| self.give_back(work));
        let asides = self.aside.all_answered();
        match failure {
            Some((failure, may_be_accident)) => {
                self.turned_down(works, (Answer::Failed, may_be_accident), failure, consumer);
                for (position, kept) in asides {
                    self.aside_turned_down(position, kept, Answer::Failed, failure, consumer);
                }
            }
            None => {
                works.into_iter().for_each(|work| self.give_back(work));
                for (position, mut kept) in asides {
                    kept.retrial.failed();
                    self.keep_aside(position, kept);
                }
            }
        }
        claims
    }

    /// A connection on which claims become final in order has broken. `progress`: something was
    /// accepted on it. `has_lasted`: it had lasted for some time. In both cases, this may be an
    /// accident, such as a restart. If a restart halved a stream, the events that arrive until it
    /// grows again would wait, and the next restart would repeat all of them. Otherwise, there may
    /// be too much on the connection.
    pub(crate) fn on_broken(
        &mut self,
        failure: &Failure,
        (progress, has_lasted): (bool, bool),
        consumer: usize,
    ) {
        let is_turned_down = self.is_on_wire() && failure.may_be_the_events;
        let may_be_accident = progress || has_lasted;
        self.wire_ended(is_turned_down.then_some((failure, may_be_accident)), None, consumer);
        self.start_over();
        let is_proven = progress || (has_lasted && self.search.turns.failing_since.is_none());
        match is_proven {
            true => self.pacing.broke_after_use(),
            false => self.pacing.broke_at_once(),
        }
        if is_turned_down {
            return;
        }
        if failure.elsewhere {
            return self.health.passed_over(failure);
        }
        self.health.failed(failure);
        if !is_proven {
            self.pause(failure);
        }
    }

    /// A connection has ended. Its claims on the wire are sent again. `failure` is `None` if the
    /// end was not a failure, and `request` has the events that failed, if they are not all.
    pub(crate) fn on_gone(
        &mut self,
        failure: Option<&Failure>,
        request: Option<Claim>,
        consumer: usize,
    ) {
        let is_turned_down = failure.is_some_and(|failure| self.ends_request(failure, consumer));
        let turned_down = failure.filter(|_| is_turned_down).map(|failure| (failure, true));
        let claims = self.wire_ended(turned_down, request, consumer);
        let Some(failure) = failure else { return };
        if self.rules.collects && is_turned_down {
            // The store takes others, so a pause that it asks for is not one for everything.
            return self.pacing.broke_at_once();
        }
        if self.rules.collects && failure.may_be_the_events {
            self.object_failed(claims, consumer);
        }
        if failure.elsewhere {
            self.health.passed_over(failure);
            return;
        }
        self.health.failed(failure);
        self.pacing.broke_at_once();
        self.pause(failure);
    }

    /// Returns `true` if the end of a connection with this failure turns down what is on the wire.
    /// An object is turned down once the store takes others, unless it may be stored, and is sent
    /// again whole until then.
    fn ends_request(&self, failure: &Failure, consumer: usize) -> bool {
        if !self.rules.is_one_request || !failure.may_be_the_events || !self.is_on_wire() {
            return false;
        }
        let works = |work: &Work| work.trial.is_proven(&self.conducts.of(consumer));
        !self.rules.collects
            || self.aside.is_on_wire()
            || (!failure.may_be_stored && self.in_flight.first(State::OnWire).is_some_and(works))
    }

    /// The object of these claims has failed, and others may go first.
    fn object_failed(&mut self, claims: Vec<Claim>, consumer: usize) {
        if self.search.object_failed(claims.len(), &mut self.in_flight) {
            let number = self.conducts.turned_down(consumer, false);
            self.search.steps_aside(claims, &mut self.in_flight, number);
        }
    }

    pub(crate) fn on_unreachable(&mut self, failure: &Failure) {
        self.health.failed(failure);
        self.pause(failure);
    }
}
