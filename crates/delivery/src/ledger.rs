//! The decisions of one output's delivery, without connections: what is sent next, and what happens
//! to each claim when the link reports. The loop in `run` does the waiting.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::aside::{Aside, Kept};
use super::dead_letter::{DeadLetters, Written};
use super::failure::Failure;
use super::filtering::{Filtering, INSPECTED_BYTES_MAX, Settled, TOO_LARGE};
use super::given_up::{GivenUp, Of, Parts};
use super::health::Health;
use super::in_flight::{InFlight, Sent, State, Work};
use super::link::{Part, Verdict};
use super::pacing::Pacing;
use super::reason::Reason;
use super::retry::Retry;
use super::search::{PAUSE_MANY, SUSPECTS_MAX, Search};
use super::trial;
use super::trial::{Answer, Circumstances, Conducts, Next};
use base::mutant;
use base::position::Position;
use config::{BatchLimits, Rejected};
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};
use telemetry::{AttemptError, Cause};

const TOO_LONG: &str = "longer than max_message_bytes";

/// The claims of one output that are not final, and the decisions about them. The delivery loop
/// owns the ledger and is its only caller.
///
/// The ledger never writes to a connection, and never waits except in [`Ledger::all_written`].
///
/// Life of a claim: [`Ledger::next_to_send`] takes it from the queue, or takes it again, and passes
/// it through the filter. Then the link reports, for example with [`Ledger::on_accepted`] or
/// [`Ledger::on_broken`]. A claim becomes final when the consumer has its events, when the filter
/// drops them all, or when its event is set aside. A claim that is given up becomes final when its
/// dead letters (if they are kept) have a result.
///
/// Invariants:
/// - Every claim that must be sent again is sent before new events are taken from the queue.
///   Exception: a few new events, to learn whether the consumer accepts them.
/// - If the output is ordered, a claim that the consumer accepts becomes final only when every
///   earlier claim is accepted, set aside or given up (`State::Held`). If an earlier claim is sent
///   again after it, it is sent again too. Exceptions: claims with events that can't be sent,
///   responses about single events ([`Ledger::on_judged`]), and the close of the queue.
/// - During the search for refused events, a batch is sent only when no claim is on the wire. After
///   a failure, a batch is sent only when no claim waits for a response.
///
/// Must never happen: an event is given up although the config asks to retry it without limit, or
/// because of a response of a consumer that has not proved to accept other events. Exceptions:
/// [`Verdict::Partly`], [`Verdict::TooLong`], and an event whose file can't be read.
pub(super) struct Ledger {
    pub in_flight: InFlight,
    pub aside: Aside,
    conducts: Conducts,
    search: Search,
    pub(super) pacing: Pacing,
    pub health: Health,
    pub given_up: GivenUp,
    pub(super) filtering: Filtering,
    rules: Rules,
    /// The position after the last event that was sent, or dropped by the filter, at least once.
    /// The first attempt of a claim that begins before it counts as a retry, unless the claim is a
    /// remainder ([`Work::is_remainder`]).
    sent_until: Position,
    batches: u64,
    /// The bytes of batches that the filter has dropped since a batch of the queue was last sent.
    /// At `INSPECTED_BYTES_MAX`, the loop yields to the runtime and sets the number to zero. If
    /// more events must be given up, the loop sets the number to that limit, to yield too.
    pub(super) inspected_bytes: u64,
}

pub(crate) struct Rules {
    pub limits: BatchLimits,
    /// The setting `rejected.after_server_errors`.
    pub server_errors: Duration,
    /// `true` if `rejected.action` is `"retry"`.
    pub(super) keeps_all: bool,
    /// `true` if events are sent in the order of the queue, except those that are set aside.
    pub is_ordered: bool,
    /// `true` if a request carries many batches. The link then counts the retries, and claims that
    /// failed may share a batch when they are sent again.
    pub collects: bool,
    /// `true` if the link may get parts of JSON lists as received.
    pub sends_lists: bool,
}

impl Rules {
    pub(crate) fn new(
        config: &config::Output,
        is_ordered: bool,
        collects: bool,
        sends_lists: bool,
    ) -> Self {
        Self {
            limits: config.batch,
            server_errors: config.after_server_errors,
            keeps_all: config.rejected == Rejected::Retry,
            is_ordered,
            collects,
            sends_lists,
        }
    }
}

/// Borrows the parts that [`GivenUp`] changes. A method would borrow the whole ledger.
macro_rules! parts {
    ($ledger:expr) => {
        &mut Parts {
            in_flight: &mut $ledger.in_flight,
            aside: &mut $ledger.aside,
            filtering: &mut $ledger.filtering,
            health: &mut $ledger.health,
        }
    };
}

impl Ledger {
    pub(crate) fn new(
        (cursor, aside): (Cursor, Aside),
        filtering: Filtering,
        health: Health,
        dead_letters: DeadLetters,
        draining: CancellationToken,
        config: &config::Output,
        rules: Rules,
    ) -> Self {
        let mut ledger = Self {
            aside,
            conducts: Conducts::default(),
            search: Search::default(),
            pacing: Pacing::new(Retry::new(&config.retry), draining),
            health,
            given_up: GivenUp::new(config, dead_letters),
            filtering,
            rules,
            sent_until: cursor.position(),
            batches: 0,
            inspected_bytes: 0,
            in_flight: InFlight::new(cursor),
        };
        ledger.aside.begin(ledger.in_flight.cursor());
        ledger.health.aside(&ledger.aside, None);
        ledger
    }

    // ---- What is sent next ----

    /// Returns `true` if a new event in the queue should wake the loop. Either the event can be
    /// sent now (the connection `has_room`), or the output pauses until an event can show whether
    /// the consumer accepts anything.
    pub(super) fn wants_events(&self, has_room: bool) -> bool {
        match self.pacing.paused_until {
            None => self.may_send() && has_room,
            Some(_) => self.search.awaits_event(),
        }
    }

    /// Returns `false` while too many bytes or claims wait to be written as dead letters or files,
    /// or while the filter holds too many bytes of too large events. Also returns `false` while
    /// claims are sent one at a time and one has no response.
    fn may_send(&self) -> bool {
        // During the search for refused events, each claim must have its result before the next one
        // is sent. After a failure (`is_serial`) any response is enough: it shows that the consumer
        // takes requests again.
        let waits_for_answer = match self.search.is_active() {
            true => self.is_on_wire(),
            false => {
                let awaits = self.in_flight.awaits_answer() || self.aside.is_on_wire();
                self.pacing.is_serial && awaits
            }
        };
        !self.given_up.is_full() && !self.filtering.is_full() && !waits_for_answer
    }

    pub(super) fn is_on_wire(&self) -> bool {
        self.in_flight.has(State::OnWire) || self.aside.is_on_wire()
    }

    /// Returns the moment of the next try of an event that is set aside. `None` if there is no such
    /// event, if the loop must first wait for something else, or if the queue is closed.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let may_try = self.pacing.paused_until.is_none() && self.may_send() && self.may_try();
        self.aside.next_try().filter(|_| may_try)
    }

    fn may_try(&self) -> bool {
        !self.in_flight.cursor().is_closed()
    }

    /// Returns the next batch to send; `None` if there is none, or if nothing may be sent now. New
    /// events fit into `room`, except a single event or the few events that are compared after
    /// server errors. A claim that is sent again may be larger than `room`. If the filter drops all
    /// events of a claim, the claim becomes final.
    pub(super) fn next_to_send(&mut self, room: Take) -> Option<Batch> {
        while self.pacing.paused_until.is_none()
            && self.may_send()
            && self.inspected_bytes < INSPECTED_BYTES_MAX
        {
            if !self.aside.lets_others_go_first()
                && let Some(batch) = self.next_try_to_send()
            {
                return Some(batch);
            }
            // The cursor reads lines from files for one claim at a time, and first for claims that
            // are given up.
            let taken = if self.given_up.needs_lines { None } else { self.take(room) };
            let Some(batch) = taken else { return self.next_try_to_send() };
            let (claim, bytes) = (batch.claim, batch.bytes);
            let batch = self.filtering.pass_to_send(batch, self.in_flight.cursor());
            if batch.events == 0 {
                self.inspected_bytes += bytes;
                self.nothing_left(claim);
                continue;
            }
            self.inspected_bytes = 0;
            self.search.sent();
            self.batches += 1;
            // A first attempt is a retry if the cursor was set back after an earlier one. A
            // remainder is none: its events may have had no room in an earlier request.
            let was_sent = claim.start < self.sent_until;
            let sent = self.note_sent(claim, batch.events);
            let (attempts, is_remainder) = sent.unwrap_or_default();
            if !self.rules.collects && (attempts > 1 || (was_sent && !is_remainder)) {
                self.health.metrics.retries.increment(1);
            }
            return Some(if is_remainder { self.with_remainders(batch, room) } else { batch });
        }
        None
    }

    /// Returns the next set-aside event whose try is due. Settles due events that the filter no
    /// longer lets through.
    fn next_try_to_send(&mut self) -> Option<Batch> {
        while self.may_try()
            && let Some(batch) = self.aside.next_due()
        {
            let position = batch.claim.start;
            let batch = self.filtering.pass_to_send(batch, self.in_flight.cursor());
            if batch.events > 0 {
                self.aside.sent(position, self.conducts.answers);
                self.batches += 1;
                self.health.metrics.retries.increment(1);
                return Some(batch);
            }
            let kept = self.aside.take_waiting(position)?;
            self.settle_aside(position, &kept);
        }
        None
    }

    /// Notes an attempt. Returns the number of attempts, and `true` if the claim is a remainder.
    fn note_sent(&mut self, claim: Claim, events: u64) -> Option<(u32, bool)> {
        self.sent_until = self.sent_until.max(claim.end);
        self.given_up.tried(claim, self.in_flight.cursor());
        let sent = Sent { batch: self.batches, answers: self.conducts.answers };
        let work = self.in_flight.sent(claim, events, sent)?;
        Some((work.attempts, work.is_remainder))
    }

    /// Adds the next remainders of earlier batches to a batch, as long as they fit. If a consumer
    /// has taken half of the events of a request, the rest is sent in one request, and not in one
    /// for each event.
    fn with_remainders(&mut self, mut batch: Batch, room: Take) -> Batch {
        while let Some(claim) = self.in_flight.next_remainder(batch.claim.end) {
            let next = match self.redeliver(claim) {
                Redelivery::Batch(next) => next,
                Redelivery::Gone => continue,
                Redelivery::NotYet => break,
            };
            let next = self.filtering.pass_to_send(next, self.in_flight.cursor());
            let (claim, events) = (next.claim, batch.events + next.events);
            if events > room.events || batch.bytes + next.bytes > room.bytes {
                if let Some(work) = self.in_flight.front_on_wire(claim, None) {
                    self.again(work);
                }
                break;
            }
            if next.events == 0 {
                self.nothing_left(claim);
                continue;
            }
            self.note_sent(claim, next.events);
            batch.claim.end = claim.end;
            batch.events = events;
            batch.bytes += next.bytes;
            batch.pieces.extend(next.pieces);
            batch.acceptances.extend(next.acceptances);
        }
        batch
    }

    /// Takes a claim that must be sent again or, if there is none, new events: only a few while
    /// there are suspects, to compare. After server errors, [`Ledger::take_others`] may go first.
    fn take(&mut self, room: Take) -> Option<Batch> {
        if self.search.take_others()
            && let Some(batch) = self.take_others()
        {
            self.search.took_others();
            return Some(batch);
        }
        while let Some(work) = self.in_flight.first(State::Pending) {
            match self.redeliver(work.claim) {
                Redelivery::Batch(batch) => return Some(batch),
                Redelivery::Gone => {}
                Redelivery::NotYet => return None,
            }
        }
        let mut take = Take {
            bytes: room.bytes.min(self.rules.limits.max_bytes),
            events: room.events.min(self.rules.limits.max_events),
        };
        let lists = self.rules.sends_lists;
        if !self.in_flight.has(State::Suspect) {
            if !self.in_flight.has(State::OnWire) {
                self.search.end();
            }
            return self.in_flight.claim_next_as(take, lists);
        }
        let Some(events) = self.search.next_comparison() else {
            self.next_round();
            return None;
        };
        take.events = take.events.min(events);
        let batch = self.in_flight.claim_next_as(take, lists);
        if batch.is_none() {
            self.search.nothing_to_compare();
            self.next_round();
        }
        batch
    }

    /// Takes a few events to compare: does the consumer accept them, although it responds to the
    /// first waiting claim with server errors? Prefers new events. If the queue has none, or if
    /// very many claims wait, takes a part of a waiting claim, a single waiting event, or a held
    /// claim.
    fn take_others(&mut self) -> Option<Batch> {
        let events = self.search.comparison_events();
        let few = Take { bytes: self.rules.limits.max_bytes, events };
        if self.in_flight.count(State::Pending) < SUSPECTS_MAX
            && let Some(batch) = self.in_flight.claim_next(few)
        {
            return Some(batch);
        }
        let first = self.in_flight.first(State::Pending)?.claim;
        // The claims do not take turns, because each half could have a bad event.
        let others = self.in_flight.all(State::Pending).skip(1);
        let fewest = others.min_by_key(|work| (work.trial.errors, Reverse(work.claim.start)));
        let (fewest, errors) = fewest.map(|work| (work.claim, work.trial.errors)).unzip();
        let mut other = fewest.unwrap_or(first);
        let held = self.in_flight.last(State::Held).map(|work| work.claim);
        if let Some(half) = self.in_flight.split_pending(other) {
            other = half;
        } else if let Some(held) = held.filter(|_| errors != Some(0)) {
            // The consumer may fail on every event that waits.
            self.filtering.released(held);
            self.in_flight.release(held);
            other = held;
        } else if fewest.is_none() {
            return None;
        }
        match self.redeliver(other) {
            Redelivery::Batch(batch) => Some(batch),
            Redelivery::Gone | Redelivery::NotYet => None,
        }
    }

    /// Takes a claim again. If the queue has dropped its events, the filter forgets them too.
    fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let retaken = self.in_flight.redeliver(claim);
        if matches!(retaken, Redelivery::Gone) {
            self.filtering.give_up(claim);
        }
        retaken
    }

    /// Ends a round of the search: the consumer refused the suspect and the new event, or there was
    /// no new event to send. After a pause, the next suspect is sent again.
    fn next_round(&mut self) {
        let suspects = self.in_flight.count(State::Suspect);
        let next = self.search.rotate(mutant!(
            "only-the-first-suspect-is-tried",
            suspects,
            suspects.min(1)
        ));
        if let Some(suspect) = self.in_flight.nth(State::Suspect, next) {
            self.in_flight.change(suspect.claim, State::Pending);
        }
        let refusal = self.search.last_refusal.as_ref();
        if let Some(failure) = refusal {
            self.health.down(failure);
        }
        let asked = refusal.and_then(|failure| failure.retry_after);
        let are_many = suspects >= SUSPECTS_MAX;
        let wait = self.pacing.pause(asked.max(are_many.then_some(PAUSE_MANY)));
        self.health.next_attempt(wait);
    }

    // ---- The result of a claim ----

    /// Makes final each held claim that has no undecided claim before it.
    pub(super) fn finish_decided(&mut self) {
        self.finish_all(self.in_flight.held_before_all_open());
    }

    pub(super) fn finish_all(&mut self, claims: Vec<Claim>) {
        if claims.is_empty() {
            return;
        }
        self.in_flight.begin_together();
        claims.into_iter().for_each(|claim| self.finish(claim));
        self.in_flight.end_together();
    }

    /// Returns `true` if no claim waits to be sent again, or for the decision about another claim.
    pub(crate) fn is_settled(&self) -> bool {
        let open = [State::Pending, State::Suspect, State::Held];
        open.into_iter().all(|state| !self.in_flight.has(state))
    }

    /// Makes a claim final of which the filter lets no event through. The claim does not wait for
    /// earlier ones, because nothing of it is sent.
    fn nothing_left(&mut self, claim: Claim) {
        self.search.nothing_left(self.rules.limits.max_events);
        self.sent_until = self.sent_until.max(claim.end);
        self.finish(claim);
    }

    /// Makes a claim final. Events that are too large for the filter are given up first.
    fn finish(&mut self, claim: Claim) {
        match self.filtering.settle(claim, false, &self.health.metrics) {
            Some(Settled::Without(disposition, lines)) => {
                self.too_large(Of::Claim(claim), disposition, lines);
            }
            Some(Settled::Final(disposition)) => self.in_flight.finish_claim(claim, disposition),
            None => {}
        }
    }

    /// Settles an event that was set aside: the consumer has it, or the filter does not let it
    /// through.
    fn settle_aside(&mut self, position: Position, kept: &Kept) {
        let claim = Claim { start: position, end: position.next() };
        let (disposition, lines) = match self.filtering.settle(claim, false, &self.health.metrics) {
            Some(Settled::Without(disposition, lines)) => (disposition, lines),
            Some(Settled::Final(disposition)) => (disposition, Vec::new()),
            None => return,
        };
        self.too_large(Of::Aside(position, kept.event), disposition, lines);
    }

    fn too_large(&mut self, of: Of, disposition: Disposition, lines: Vec<Bytes>) {
        let reason = Reason::new(Cause::TooLong, TOO_LARGE);
        self.given_up.end_with(of, disposition, lines, reason, parts!(self));
    }

    /// Makes a claim `Pending`. It will go through the filter again.
    fn again(&mut self, work: Work) {
        self.filtering.released(work.claim);
        self.in_flight.again(work);
    }

    /// Gives up a claim that the consumer refuses. At most `lost_max` of its events count as lost.
    fn give_up(&mut self, work: Work, lost_max: u64, failure: &Failure) {
        self.filtering.released(work.claim);
        let reason = Reason::new(Cause::Refused, &failure.message);
        self.given_up.add(work, None, lost_max, reason, &mut self.in_flight);
    }

    fn too_long(&mut self, work: Work) {
        self.filtering.released(work.claim);
        let reason = Reason::new(Cause::TooLong, TOO_LONG);
        self.given_up.add(work, None, u64::MAX, reason, &mut self.in_flight);
    }

    /// Sets each sent event of a claim aside. If there is no room and `rejected.action` is
    /// `"retry"`, the event stays in the queue and is sent again.
    fn set_aside(&mut self, work: Work, answer: Answer, failure: &Failure, consumer: usize) {
        for event in self.cut(work) {
            self.filtering.released(event.claim);
            if self.rules.keeps_all && self.aside.is_full(0) {
                self.in_flight.again(event);
                self.health.down(failure);
                self.pause(failure);
                continue;
            }
            let retrial = event.trial.set_aside(answer, &self.conducts, consumer);
            let kept = Kept::new(retrial, &failure.message, event.attempts);
            let reason = Reason { cause: Cause::Refused, text: Arc::clone(&kept.answer) };
            self.given_up.add(event, Some(kept), 1, reason, &mut self.in_flight);
        }
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances {
            is_ordered: self.rules.is_ordered,
            keeps_all: self.rules.keeps_all,
            server_errors: self.rules.server_errors,
            drains: self.pacing.drains(),
        }
    }

    // ---- Reports of the link ----

    pub(super) fn on_accepted(&mut self, claim: Claim, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_accepted(claim.start, &kept, consumer);
        }
        for work in self.in_flight.answered(claim, None) {
            let first = self.in_flight.first_open();
            let waits = first.is_some_and(|first| first < work.claim.start);
            let was_late = work.attempts > 1;
            self.accepted(work, consumer, waits, was_late);
        }
    }

    /// Records that `consumer` has accepted something that was sent after `sent_at` responses had
    /// turned something down. All suspects are sent again.
    fn works(&mut self, consumer: usize, sent_at: u64, was_refused: bool) {
        self.conducts.accepted(consumer, sent_at, was_refused);
        self.search.accepted();
        self.pacing.succeeded();
        self.health.succeeded();
        for suspect in self.in_flight.claims(State::Suspect) {
            self.in_flight.change(suspect, State::Pending);
        }
    }

    /// The consumer has accepted a claim. `waits`: in an ordered output, the claim is held until
    /// earlier claims are decided. `was_late`: later events may have been sent before this claim.
    fn accepted(&mut self, work: Work, consumer: usize, waits: bool, was_late: bool) {
        let (claim, batch, is_ordered) = (work.claim, work.batch, self.rules.is_ordered);
        self.works(consumer, work.sent_at, work.trial.refusals > 0);
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
    pub(super) fn on_taken(&mut self, claim: Claim) {
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
    pub(super) fn on_judged(&mut self, claim: Claim, parts: Vec<Part>, consumer: usize) {
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
                        let suspect = self.in_flight.first(State::Suspect);
                        let waits =
                            suspect.is_some_and(|first| first.claim.start < work.claim.start);
                        let was_refused = work.trial.is_refused() && work.events == 1;
                        self.accepted(work, consumer, waits, was_refused);
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
                    self.again(work.with_remainder(mutant!(
                        "splunk-taken-shares-requests",
                        false,
                        true
                    )));
                }),
                Verdict::Partly { refused, failure } => {
                    self.refused_partly(works, refused, &failure, consumer);
                }
                Verdict::TooLong => works.into_iter().for_each(|work| self.too_long(work)),
                Verdict::Again(failure) => left.push((works, failure, false)),
                Verdict::Refused(failure) => left.push((works, failure, true)),
            }
        }
        if let Some((_, first, _)) = left.first() {
            self.health.turned_away(first);
        }
        if let Some(failure) = self.not_taken(left, consumer, took_others) {
            if !accepts {
                self.health.down(&failure);
            }
            self.pause(&failure);
            self.given_up.take_all_old(&failure, parts!(self));
        }
    }

    /// Decides about the claims in `left`, which `consumer` has judged and not taken, each with the
    /// reason and `true` for a refusal. `took_others`: the consumer took other events of the
    /// report. Returns the failure of the first claim that is only sent again, if there is one.
    fn not_taken(
        &mut self,
        left: Vec<(Vec<Work>, Failure, bool)>,
        consumer: usize,
        took_others: bool,
    ) -> Option<Failure> {
        let mut again = None;
        for (works, failure, is_refused) in left {
            for mut work in works {
                let is_at_fault = match is_refused {
                    true => !self.rules.keeps_all,
                    false => self.is_at_fault(&mut work, &failure, consumer, took_others),
                };
                match (is_at_fault, is_refused) {
                    (true, true) if took_others => self.give_up(work, u64::MAX, &failure),
                    (true, true) => {
                        for mut event in self.cut(work) {
                            // The consumer judges each event, so suspects may share a request.
                            event.is_remainder = true;
                            self.refused_alone(event, &failure, consumer);
                        }
                    }
                    (true, false) => {
                        self.set_aside(work, Answer::ServerError, &failure, consumer);
                    }
                    (false, _) => {
                        self.search.claim_failed(work.trial.errors, false);
                        // A refused event must not share a request: the consumer might refuse
                        // others too.
                        self.again(work.with_remainder(!is_refused));
                        again.get_or_insert_with(|| failure.clone());
                    }
                }
            }
        }
        again
    }

    /// Returns `true` if a judged claim's events are at fault for `failure`, which is no refusal.
    fn is_at_fault(
        &mut self,
        work: &mut Work,
        failure: &Failure,
        consumer: usize,
        took_others: bool,
    ) -> bool {
        let now = self.circumstances();
        let took_others = took_others.then_some(work.sent_at);
        let (conducts, events) = (&mut self.conducts, work.events);
        failure.server_error
            && work.trial.server_error(conducts, consumer, events, took_others, now)
                != trial::Verdict::Again
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
        self.health.turned_away(failure);
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

    /// Cuts a claim into its events, and returns those that were in the request. Events that the
    /// filter kept out of the request become `Pending` again.
    fn cut(&mut self, work: Work) -> Vec<Work> {
        let Claim { mut start, end } = work.claim;
        let mut events = Vec::new();
        self.in_flight.stay(work);
        while start < end {
            let one = Claim { start, end: start.next() };
            let Some(event) = self.in_flight.front_on_wire(one, Some(1)) else { break };
            start = event.claim.end;
            let event = Work { events: 1, ..event };
            match self.filtering.is_kept_back(event.claim.start) {
                true => self.again(event),
                false => events.push(event),
            }
        }
        events
    }

    /// `consumer` refuses `claim` because of its events. Several claims of one batch are sent by
    /// themselves, a claim of several events is halved, and a single event is set aside or sent
    /// again later.
    pub(super) fn on_refused(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_turned_down(claim.start, kept, Answer::Refused, failure, consumer);
        }
        let mut works = self.in_flight.answered(claim, None);
        self.health.refused(failure);
        if works.len() == 1
            && let Some(work) = works.pop()
        {
            return self.refused_alone(work.with_remainder(false), failure, consumer);
        }
        let now = self.circumstances();
        for mut work in works {
            self.search.refused();
            work.trial.refused(&mut self.conducts, consumer, u64::MAX, now);
            self.again(work.with_remainder(false));
        }
    }

    fn refused_alone(&mut self, mut work: Work, failure: &Failure, consumer: usize) {
        let now = self.circumstances();
        self.search.refused();
        let verdict = work.trial.refused(&mut self.conducts, consumer, work.events, now);
        let Err(work) = self.halve(work) else { return };
        mutant!(
            "refused-at-random",
            {},
            if matches!(verdict, trial::Verdict::SetAside | trial::Verdict::AtOnce) {
                return self.give_up(work, u64::MAX, failure);
            }
        );
        match verdict {
            _ if self.rules.keeps_all => {
                self.again(work);
                self.health.down(failure);
                self.pause(failure);
            }
            trial::Verdict::SetAside => {
                self.set_aside(work, Answer::Refused, failure, consumer);
            }
            trial::Verdict::AtOnce | trial::Verdict::Again => self.again(work),
            trial::Verdict::Doubt => {
                self.search.last_refusal = Some(failure.clone());
                self.filtering.released(work.claim);
                self.in_flight.suspect(work);
                // Halves are not given up for their age yet, because they were not refused alone.
                self.given_up.take_old(State::Suspect, failure, &mut self.in_flight);
            }
        }
    }

    /// An attempt to send `claim` failed, and the connection still works. Usually, the claim is
    /// sent again. If only this claim gets server errors while the consumer takes others, the claim
    /// is halved, or its single event is set aside.
    pub(super) fn on_failed(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_failed(claim.start, kept, failure, consumer);
        }
        let mut works = self.in_flight.answered(claim, None);
        if works.is_empty() {
            return;
        }
        let (conducts, is_ordered) = (&self.conducts, self.rules.is_ordered);
        let is_alone = |work: &Work| work.trial.is_alone_in_trouble(conducts, consumer, is_ordered);
        let compares = failure.server_error && !self.rules.collects && works.iter().all(is_alone);
        if mutant!(
            "errors-at-the-last-address-only",
            failure.server_error,
            failure.server_error && !failure.elsewhere
        ) && !self.rules.collects
        {
            let now = self.circumstances();
            let mut is_at_fault = true;
            for work in &mut works {
                let verdict =
                    work.trial.server_error(&mut self.conducts, consumer, work.events, None, now);
                is_at_fault &= verdict != trial::Verdict::Again;
                // The error of an address that is passed over counts too: the last address of a
                // round may never be asked to take other events.
                self.search.claim_failed(work.trial.errors, failure.elsewhere);
            }
            if is_at_fault {
                self.health.refused(failure);
                return self.take_apart(works, failure, consumer);
            }
        }
        if failure.elsewhere {
            self.health.passed_over(failure);
            return works.into_iter().for_each(|work| self.give_back(work));
        }
        let events: u64 = works.iter().map(|work| work.events).sum();
        self.conducts.turned_down(consumer);
        works.into_iter().for_each(|work| self.give_back(work));
        let others = events > 1 || !self.in_flight.cursor().is_at_end();
        if !compares || failure.retry_after.is_some() {
            return self.round_failed(failure);
        }
        // An event may be at fault. Other events show this: they are sent next or, if there are
        // none, as soon as one arrives, because a pause for each such event would hold up all
        // others.
        if others {
            self.pacing.is_serial = true;
            self.health.failed(failure);
        } else {
            self.round_failed(failure);
            self.search.await_event();
        }
        self.search.compare();
    }

    /// A request has failed, and no other address can be tried without a pause.
    fn round_failed(&mut self, failure: &Failure) {
        self.search.round_failed();
        self.health.failed(failure);
        self.pause(failure);
        self.given_up.take_all_old(failure, parts!(self));
    }

    /// Divides a request that gets server errors: several claims are sent by themselves, a single
    /// claim is halved, and a single event is set aside.
    fn take_apart(&mut self, mut works: Vec<Work>, failure: &Failure, consumer: usize) {
        self.search.found();
        self.conducts.turned_down(consumer);
        if works.len() > 1 {
            return works.into_iter().for_each(|work| {
                self.again(work.with_remainder(false));
            });
        }
        let Some(work) = works.pop() else { return };
        if let Err(work) = self.halve(work.with_remainder(false)) {
            self.set_aside(work, Answer::ServerError, failure, consumer);
        }
    }

    /// Splits a claim into two, and each half is sent alone. `Err` returns the claim if only one
    /// event of it was sent.
    fn halve(&mut self, work: Work) -> Result<(), Work> {
        if work.events == 1 {
            return Err(work);
        }
        self.filtering.released(work.claim);
        self.in_flight.halve(work)
    }

    fn give_back(&mut self, work: Work) {
        let is_remainder = work.is_remainder || self.rules.collects;
        self.again(work.with_remainder(is_remainder));
    }

    // ---- Reports about an event that is set aside ----

    fn aside_accepted(&mut self, position: Position, kept: &Kept, consumer: usize) {
        let (output, tries, at) = (&self.health.name, kept.retrial.tries, position.get());
        tracing::debug!(output, position = at, tries, "an event that was set aside is accepted");
        self.works(consumer, kept.sent_at, kept.retrial.refusals > 0);
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
                self.health.turned_away(&failure);
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
        if failure.server_error {
            let answer = Answer::ServerError;
            return self.aside_turned_down(position, kept, answer, failure, consumer);
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
        self.health.refused(failure);
        kept.answer = failure.message.as_str().into();
        let now = self.circumstances();
        if kept.retrial.turned_down(answer, &mut self.conducts, consumer, now) == Next::GiveUp {
            let reason = Reason::new(Cause::Refused, &failure.message);
            return self.doom(position, kept, reason);
        }
        self.keep_aside(position, kept);
        if failure.elsewhere {
            self.aside.try_next(position);
        }
        self.given_up.take_all_old(failure, parts!(self));
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

    /// Prepares to send again, in order, the claims that are not final. Called after the end of a
    /// connection on which claims become final in order. If possible, the cursor is set back and
    /// the claims are forgotten. While dead letters are in progress, or if a later claim is final
    /// already, each claim on the wire is sent again as it is.
    pub(super) fn start_over(&mut self) {
        self.search.end();
        if self.given_up.is_ended() && self.in_flight.cursor().is_in_order() {
            self.in_flight.rewind();
            self.given_up.rewound();
            self.filtering.rewound(self.in_flight.cursor());
        }
        self.take_back();
    }

    /// Takes all claims, and all events that are set aside, off the wire.
    fn take_back(&mut self) {
        for claim in self.in_flight.claims(State::OnWire) {
            if let Some(work) = self.in_flight.front_on_wire(claim, None) {
                self.give_back(work);
            }
        }
        for (position, mut kept) in self.aside.all_answered() {
            kept.retrial.failed();
            self.keep_aside(position, kept);
        }
    }

    /// A connection on which claims become final in order has broken. `is_proven`: the connection
    /// had lasted for some time, or something was accepted on it.
    pub(super) fn on_broken(&mut self, failure: &Failure, is_proven: bool) {
        self.start_over();
        if failure.elsewhere {
            self.health.passed_over(failure);
        } else {
            self.health.failed(failure);
        }
        if is_proven {
            self.pacing.broke_after_use();
            return;
        }
        self.pacing.broke_at_once();
        if !failure.elsewhere {
            self.pause(failure);
        }
    }

    /// A connection has ended. Its claims on the wire are sent again. `failure` is `None` if the
    /// end was not a failure.
    pub(super) fn on_gone(&mut self, failure: Option<&Failure>) {
        self.take_back();
        let Some(failure) = failure else { return };
        if failure.elsewhere {
            self.health.passed_over(failure);
            return;
        }
        self.health.failed(failure);
        self.pacing.broke_at_once();
        self.pause(failure);
    }

    pub(super) fn on_unreachable(&mut self, failure: &Failure) {
        self.health.failed(failure);
        self.pause(failure);
        self.all_failed(failure);
    }

    /// There is no connection any more. Unless another address is tried without a pause, this
    /// counts as a failed attempt for every event that is not final, so old events are given up.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if !failure.elsewhere {
            self.given_up.take_all_old(failure, parts!(self));
            self.given_up.all_failed(failure);
        }
    }

    // ---- Waits ----

    /// The queue has a new event, or has read lines from its files. `wanted`: the loop has waited
    /// for a new event, so the pause ends.
    pub(super) fn on_readable(&mut self, wanted: bool) {
        if wanted {
            self.search.await_no_event();
            self.pacing.end_pause();
        }
        self.given_up.lines_are_read();
    }

    /// Begins a pause after a failure. During a pause, a further failure can only make the pause
    /// longer.
    fn pause(&mut self, failure: &Failure) {
        let wait = self.pacing.failed(failure.retry_after);
        // A new event does not end this pause, unless `on_failed` asks for that afterwards.
        self.search.await_no_event();
        self.health.next_attempt(wait);
    }

    /// Returns `true` if [`Ledger::hurry`] was not called yet, and would end a pause or try events
    /// that are set aside.
    pub(super) fn may_hurry(&self) -> bool {
        let waits = self.pacing.paused_until.is_some() || self.aside.count() > 0;
        waits && !self.pacing.is_shortened
    }

    /// The drain has begun: ends the pause, and tries the events that are set aside.
    pub(crate) fn hurry(&mut self) {
        self.pacing.shorten();
        mutant!("drain-forgets-events-set-aside", self.aside.hurry());
    }

    pub(super) fn bury(&mut self) -> bool {
        self.given_up.bury(parts!(self))
    }

    pub(super) fn bury_old(&mut self) -> bool {
        self.given_up.next_old(parts!(self), self.rules.limits)
    }

    /// The oldest write has a result. If an event could not be set aside, it is sent again after a
    /// pause.
    pub(super) fn on_written(&mut self, written: Written) {
        if let Some(error) = self.given_up.end(written, parts!(self)) {
            let output = &self.health.name;
            tracing::error!(
                output,
                error,
                "cannot write the file of an event to set aside: the event stays in the queue and \
                 is sent again; check the disk of queue.directory"
            );
            self.pause(&Failure::new(AttemptError::Item, error));
        }
    }

    /// Waits until all dead letters and files in progress are written or have failed, and then for
    /// the deletion of files. Nothing is lost when the future is dropped.
    pub(super) async fn all_written(&mut self) {
        while !self.given_up.is_ended() {
            let written = self.given_up.written().await;
            self.on_written(written);
        }
        self.aside.close().await;
    }
}
