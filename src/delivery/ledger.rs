//! The decisions of one output's delivery, without connections: what is sent next, and what becomes
//! of each claim when the link reports something. The loop in `run` does the waiting.

use std::cmp::Reverse;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::dead_letter::{DeadLetters, Written};
use super::failure::Failure;
use super::filtering::{Filtering, INSPECTED_BYTES_MAX, Settled};
use super::given_up::{GivenUp, Reason};
use super::health::Health;
use super::in_flight::{ERRORS_BEFORE_OTHERS, InFlight, Refusals, State, Work};
use super::isolation::{Decision, Isolation, PAUSE_MANY, SUSPECTS_MAX};
use super::link::{Part, Verdict};
use super::pacing::Pacing;
use super::parked::{PARKED_MAX, ParkedByPosition, Parking, TurnedDown};
use super::retry::Retry;
use crate::config;
use crate::config::BatchLimits;
use crate::position::Position;
use crate::queue::{Batch, Claim, Cursor, Redelivery, Take};
use crate::telemetry::Cause;

mod tries;

/// The claims of one output that are not final, and the decisions about them. The delivery loop
/// owns the ledger and is its only caller.
///
/// The ledger never writes to a connection, and never waits except in [`Ledger::all_written`]. It
/// has the parts that decide: the table of claims ([`InFlight`]), the search for bad events
/// ([`Isolation`]), the pauses ([`Pacing`]), the filter ([`Filtering`]) and the events that are
/// given up ([`GivenUp`]).
///
/// Life of a claim: [`Ledger::next_to_send`] takes it from the queue, or takes it again if it is to
/// be sent again, and passes it through the filter. Then the link reports: [`Ledger::on_accepted`],
/// [`Ledger::on_refused`], [`Ledger::on_failed`], or the end of the link ([`Ledger::on_broken`],
/// [`Ledger::on_gone`]). A claim is final when the consumer has its events, when the filter keeps
/// back all its events, or when it is given up and its dead letters (if they are kept) have a
/// result.
///
/// Invariants:
/// - Every claim that is to be sent again is sent before new events are taken from the queue.
/// - If the output is ordered, a claim that the consumer accepts becomes final only when every
///   earlier claim is accepted or given up (`State::Held`). If an earlier claim is sent again after
///   it, it is sent again too. Exceptions: events that are parked because of server errors, whose
///   order is given up; claims with events that can't be sent; and the close of the queue.
/// - During the search for refused events, and after a failure, a claim is sent only when no other
///   claim is on the wire.
///
/// What must never happen: an event is given up although the config asks to retry it without limit,
/// or, because of the consumer's answer, before the consumer has proved that it accepts other
/// events.
pub(super) struct Ledger {
    pub(super) in_flight: InFlight,
    isolation: Isolation,
    pub(super) pacing: Pacing,
    pub(super) health: Health,
    pub(super) given_up: GivenUp,
    pub(super) filtering: Filtering,
    rules: Rules,
    turn: Turn,
    /// The events that were parked and are neither accepted nor given up, with the consumer's last
    /// answer to each.
    pub(super) parked: ParkedByPosition,
    /// The position in the queue after the last event that was sent at least once, or that the
    /// filter kept back at least once. If a claim begins before this position, sending it counts as
    /// a retry in the metrics.
    sent_until: Position,
    /// The number of batches that this delivery has sent.
    batches: u64,
}

/// The settings of a delivery that come from the config and the protocol.
pub(super) struct Rules {
    pub(super) limits: BatchLimits,
    /// The setting `rejected.after_server_errors`.
    pub(super) server_errors: Duration,
    /// `true` if the consumer gets the events in the order of the queue.
    pub(super) is_ordered: bool,
    /// `true` if a request carries many batches. The link then counts the retries, and batches that
    /// go back are sent again together.
    pub(super) collects: bool,
    /// `true` if the requests are JSON lists of events, and no filter reads the events.
    pub(super) sends_lists: bool,
}

/// The state that decides what the next request carries, and whether the loop yields before it.
#[derive(Default)]
struct Turn {
    /// `true` if the next request carries other events than the first claim that waits to be sent
    /// again, because the consumer has answered this claim with server errors.
    sends_others: bool,
    /// `true` if the batch that was taken last holds such other events. If the filter keeps them
    /// all back, the next request carries other events.
    took_others: bool,
    /// `true` if an address that was passed over in this round has answered a claim with a server
    /// error, and not for the first time. If the round then ends with another failure, the next
    /// request carries other events. `false` again when the consumer accepts something.
    doubts_claim: bool,
    /// `true` if the last request was a try of a parked event. The next request carries other
    /// events, if there are any to send.
    was_try: bool,
    /// The bytes of the events that the filter has kept back since the delivery last sent an event.
    /// At `INSPECTED_BYTES_MAX`, the loop yields to the runtime, and the number starts again at
    /// zero. The number is set to this limit, too, if more events are to be given up.
    inspected_bytes: u64,
}

/// The claims of a batch that the consumer has judged, by verdict.
#[derive(Default)]
struct Judged {
    taken: Vec<Work>,
    unconfirmed: Vec<Work>,
    unsent: Vec<Work>,
    /// The claims of which some events are refused, with the number of refused events.
    partly: Vec<(Vec<Work>, u64, Failure)>,
    /// The claims that the consumer has not taken, with the reason. The last value is `true` if the
    /// consumer refuses the claims, and `false` if it may take them later.
    left: Vec<(Vec<Work>, Failure, bool)>,
}

/// The unit that a consumer's answers are about. It decides how an ordered output keeps the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Answers are about whole requests. An accepted claim waits until every claim before it is
    /// accepted or given up.
    Request,
    /// Answers are about single events. An accepted event is final, unless a refused event before
    /// it is not decided yet.
    Events,
}

impl Ledger {
    /// Makes the ledger of a new delivery. Events that are given up are written to `dead_letters`,
    /// if the config says so. Pauses are short from the moment at which `draining` is cancelled.
    pub(super) fn new(
        cursor: Cursor,
        filtering: Filtering,
        health: Health,
        dead_letters: DeadLetters,
        draining: CancellationToken,
        config: &config::Output,
        rules: Rules,
    ) -> Self {
        Self {
            isolation: Isolation::new(config.rejected, rules.is_ordered),
            pacing: Pacing::new(Retry::new(&config.retry), draining),
            health,
            given_up: GivenUp::new(config, dead_letters),
            filtering,
            rules,
            turn: Turn::default(),
            parked: ParkedByPosition::new(),
            sent_until: cursor.position(),
            batches: 0,
            in_flight: InFlight::new(cursor),
        }
    }

    /// Takes over the claims that the previous delivery of this output has left. Some of them are
    /// `parked`. If `are_remainders` is `true`, several of the others may be sent in one batch.
    pub(super) fn inherit(
        &mut self,
        claims: Vec<Claim>,
        parked: ParkedByPosition,
        are_remainders: bool,
    ) {
        self.in_flight.inherit(claims, &parked, are_remainders);
        self.parked = parked;
        self.parked.retain(|position, _| self.in_flight.is_tried(*position));
        self.health.parked(&self.parked, None);
    }

    /// Returns `true` if the delivery loop should wake up when the queue has a new event. There are
    /// two cases:
    ///
    /// - The output does not pause, and the event can be sent at once. `has_room` is `true` if the
    ///   connection can take a batch.
    /// - The output pauses, only suspects are left, and a new event is needed to learn whether the
    ///   consumer accepts anything.
    ///
    /// Otherwise returns `false`.
    pub(super) fn wants_events(&self, has_room: bool) -> bool {
        match self.pacing.paused_until {
            None => {
                let may_take = self.may_take_new() || self.in_flight.has(State::Pending);
                self.may_send() && has_room && may_take
            }
            Some(_) => self.isolation.awaits_event(),
        }
    }

    /// Returns `true` if events may be sent now. Returns `false` while too many bytes are held in
    /// memory, of events that are given up and wait for their dead letters, or of events that are
    /// too large for the filter. Also returns `false` while too many claims wait for their dead
    /// letters, and if claims are sent one at a time and one of them has no answer yet.
    fn may_send(&self) -> bool {
        // The search for refused events needs the result of every claim. A pause only needs to know
        // that the consumer takes requests again.
        let waits_for_answer = (self.isolation.is_active() && self.in_flight.has(State::OnWire))
            || (self.pacing.is_serial && self.in_flight.awaits_answer());
        !self.given_up.is_full() && !self.filtering.is_full() && !waits_for_answer
    }

    /// Returns `true` if new events may be taken from the queue. Returns `false` while an ordered
    /// output decides about a refused event: the events that are accepted before the decision would
    /// have to be sent again after this event. Also returns `false` while [`PARKED_MAX`] events are
    /// parked, unless their tries count at no address yet: then only new events can show that an
    /// address works.
    fn may_take_new(&self) -> bool {
        let decides = self.rules.is_ordered && self.in_flight.has_parked_in_order();
        let first = || self.in_flight.first(State::Parked).and_then(|work| work.parking);
        !decides
            && (self.in_flight.count(State::Parked) < PARKED_MAX
                || first().is_some_and(Parking::is_unproven))
    }

    /// Returns `true` if the loop should yield to the runtime, because it has inspected many bytes
    /// and has sent nothing. In that case, the count of inspected bytes starts again at zero.
    pub(super) fn take_turn_over(&mut self) -> bool {
        let is_over = self.turn.inspected_bytes >= INSPECTED_BYTES_MAX;
        if is_over {
            self.turn.inspected_bytes = 0;
        }
        is_over
    }

    /// Returns the next batch to send; `None` if nothing may be sent now, or if there is nothing to
    /// send. No more new events are taken than fit into `room`. A claim that is sent again is sent
    /// whole, whatever the room is. A claim whose events the filter keeps back completely becomes
    /// final, and the next claim is taken.
    pub(super) fn next_to_send(&mut self, room: Take) -> Option<Batch> {
        while self.pacing.paused_until.is_none()
            && self.may_send()
            && self.turn.inspected_bytes < INSPECTED_BYTES_MAX
        {
            let batch = self.take(room)?;
            let (claim, bytes) = (batch.claim, batch.bytes);
            let batch = self.filtering.pass_to_send(batch, self.in_flight.cursor());
            if batch.events == 0 {
                self.turn.inspected_bytes += bytes;
                self.nothing_left(claim);
                continue;
            }
            self.turn.inspected_bytes = 0;
            self.turn.took_others = false;
            self.isolation.sent();
            self.batches += 1;
            // The first attempt of a claim sends events again if the cursor was set back. Events
            // that found no room in an earlier request have had no attempt yet.
            let was_sent = claim.start < self.sent_until;
            let work = self.note_sent(claim, batch.events);
            let is_retry = |work: Work| work.attempts > 1 || (was_sent && !work.is_remainder);
            if !self.rules.collects && work.is_some_and(is_retry) {
                self.health.metrics.retries.increment(1);
            }
            return Some(match work {
                Some(work) if work.is_remainder => self.with_remainders(batch, room),
                Some(_) | None => batch,
            });
        }
        None
    }

    /// Notes that a claim is sent now, with `events` events. Returns its entry.
    fn note_sent(&mut self, claim: Claim, events: u64) -> Option<Work> {
        self.sent_until = self.sent_until.max(claim.end);
        self.given_up.tried(claim, self.in_flight.cursor());
        self.in_flight.sent(claim, events, self.batches, self.isolation.refusals)
    }

    /// Adds to a batch the next claims that are remainders of earlier batches, as long as they fit.
    /// For example, if a consumer has taken only half of the events of a request, the other half is
    /// sent again in one request, and not in one request for each event.
    fn with_remainders(&mut self, mut batch: Batch, room: Take) -> Batch {
        while let Some(work) = self.in_flight.next_remainder(batch.claim.end) {
            let next = match self.redeliver(work.claim) {
                Redelivery::Batch(next) => next,
                Redelivery::Gone => continue,
                Redelivery::NotYet => break,
            };
            let next = self.filtering.pass_to_send(next, self.in_flight.cursor());
            let (claim, events) = (next.claim, batch.events + next.events);
            if events > room.events || batch.bytes + next.bytes > room.bytes {
                self.release(claim);
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
            batch.origins.extend(next.origins);
        }
        batch
    }

    /// Takes the next batch from the queue. Tries of parked events take turns with all other
    /// events, which are called the stream here. Returns `None` if nothing can be taken now.
    fn take(&mut self, room: Take) -> Option<Batch> {
        // The cursor reads lines from files for one claim at a time. Claims that are given up come
        // first.
        if self.given_up.needs_lines {
            return None;
        }
        if std::mem::take(&mut self.turn.was_try)
            && let Some(batch) = self.take_from_stream(room)
        {
            return Some(batch);
        }
        if self.may_try()
            && let Some(work) = self.in_flight.due()
        {
            self.in_flight.change(work.claim, State::Pending);
            match self.redeliver(work.claim) {
                Redelivery::Batch(batch) => {
                    self.turn.was_try = true;
                    return Some(batch);
                }
                Redelivery::Gone => self.tries_are_over(work.claim),
                Redelivery::NotYet => return None,
            }
        }
        let batch = self.take_from_stream(room)?;
        let work = self.in_flight.on_wire_at(batch.claim.start);
        self.turn.was_try = work.is_some_and(|work| work.parking.is_some());
        Some(batch)
    }

    /// Takes the next batch of events that are not parked. A claim that is to be sent again comes
    /// first. If there is none, new events are taken. While there are suspects, only a few new
    /// events are taken, to learn whether the consumer accepts them. Returns `None` if nothing can
    /// be taken now.
    fn take_from_stream(&mut self, room: Take) -> Option<Batch> {
        if std::mem::take(&mut self.turn.sends_others)
            && let Some(batch) = self.take_others()
        {
            self.turn.took_others = true;
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
        let lists = self.rules.sends_lists && !self.filtering.is_tapped();
        if !self.in_flight.has(State::Suspect) {
            self.end_isolation();
            if !self.may_take_new() {
                return None;
            }
            return self.in_flight.claim_next_as(take, lists);
        }
        let Some(events) = self.isolation.next_comparison() else {
            self.next_round();
            return None;
        };
        take.events = take.events.min(events);
        let batch = self.in_flight.claim_next_as(take, lists).or_else(|| self.take_held());
        if batch.is_none() {
            self.isolation.nothing_to_compare();
            self.next_round();
        }
        batch
    }

    /// Takes the last claim that is held again if the queue is nearly full. The claim was accepted,
    /// and is held because an earlier event is a suspect, or as a proof ([`Ledger::is_proof`]). Its
    /// room is not free before that event is decided, so perhaps no new event finds room that could
    /// show that the consumer works.
    fn take_held(&mut self) -> Option<Batch> {
        let held = self.in_flight.last(State::Held)?;
        if !self.in_flight.cursor().is_nearly_full() {
            return None;
        }
        self.release(held.claim);
        match self.redeliver(held.claim) {
            Redelivery::Batch(batch) => Some(batch),
            Redelivery::Gone | Redelivery::NotYet => None,
        }
    }

    /// Called when the consumer answers the first claim that waits to be sent again with server
    /// errors. Takes one or a few other events, to learn whether the consumer accepts these. The
    /// batch holds a new event. If there is none, or if very many claims wait already, it holds
    /// the second half of one of the waiting claims. If the claim is a single event, the batch is
    /// the last claim that is held. Returns `None` if there is no other event.
    fn take_others(&mut self) -> Option<Batch> {
        let events = self.isolation.comparison_events();
        let few = Take { bytes: self.rules.limits.max_bytes, events };
        let waiting = self.in_flight.count(State::Pending);
        if waiting < SUSPECTS_MAX
            && let Some(batch) = self.in_flight.claim_next(few)
        {
            return Some(batch);
        }
        let first = self.in_flight.first(State::Pending)?;
        let others = self.in_flight.all(State::Pending).into_iter().skip(1);
        // Not in turns: an event that the consumer does not take could be in each half that has its
        // turn. The claim with the fewest errors has not failed since it was cut off.
        let fewest = others.min_by_key(|work| (work.errors.count, Reverse(work.claim.start)));
        let mut other = fewest.unwrap_or(first);
        let held = self.in_flight.last(State::Held);
        if let Some(half) = self.in_flight.split(other) {
            other = half;
        } else if let Some(held) = held.filter(|_| fewest.is_none() || other.errors.count > 0) {
            // The consumer may fail on every event that waits.
            self.release(held.claim);
            other = held;
        } else if fewest.is_none() {
            return None;
        }
        match self.redeliver(other.claim) {
            Redelivery::Batch(batch) => Some(batch),
            Redelivery::Gone | Redelivery::NotYet => None,
        }
    }

    /// Takes the events of a `Pending` claim again, to send them. If the queue has dropped them,
    /// the filter forgets the claim too.
    fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let retaken = self.in_flight.redeliver(claim);
        if matches!(retaken, Redelivery::Gone) {
            self.filtering.give_up(claim);
        }
        retaken
    }

    /// Ends a round of the search for events that the consumer refuses. The round ends because the
    /// consumer refused the suspects and the new event that were sent, or because no new event
    /// could be sent. The output now pauses. After the pause, the first suspect and one other
    /// suspect are sent again. An ordered output also tries a parked event then: during the search
    /// it tries none at its own time, and perhaps only the parked events are left to show that the
    /// consumer works.
    fn next_round(&mut self) {
        if let Some(first) = self.in_flight.first(State::Suspect) {
            self.in_flight.change(first.claim, State::Pending);
        }
        let another = self.isolation.rotate(self.in_flight.count(State::Suspect));
        if let Some(another) = self.in_flight.nth(State::Suspect, another) {
            self.in_flight.change(another.claim, State::Pending);
        }
        if self.rules.is_ordered
            && let Some(parked) = self.in_flight.next_parked()
        {
            self.in_flight.change(parked.claim, State::Pending);
        }
        let refusal = self.isolation.last_refusal.as_ref();
        if let Some(failure) = refusal {
            self.health.down(failure);
        }
        let asked = refusal.and_then(|failure| failure.retry_after);
        let are_many = self.in_flight.count(State::Suspect) >= SUSPECTS_MAX;
        let wait = self.pacing.pause(asked.max(are_many.then_some(PAUSE_MANY)));
        self.health.next_attempt(wait);
    }

    /// Ends the search for events that the consumer refuses, if no claim is on the wire. The caller
    /// makes sure that no claim waits to be sent again: none is in the state `State::Pending` or
    /// `State::Suspect`.
    fn end_isolation(&mut self) {
        if self.isolation.is_active() && !self.in_flight.has(State::OnWire) {
            self.isolation.end();
        }
    }

    /// Makes the held claims final that need not be held any longer: in an ordered output those
    /// before which every claim is accepted or given up. The proof ([`Ledger::is_proof`]) stays.
    pub(super) fn finish_decided(&mut self) {
        let last = self.in_flight.last(State::Held).map(|work| work.claim);
        let proof = last.filter(|claim| self.is_proof(*claim));
        let held = match self.rules.is_ordered {
            true => self.in_flight.held_before_all_open(),
            false => self.in_flight.all(State::Held),
        };
        self.finish_all(held.into_iter().filter(|work| Some(work.claim) != proof));
    }

    /// Returns `true` if a claim that the consumer has accepted is held as a proof that the
    /// consumer works: the queue is nearly full, and a claim before this one is not decided yet.
    /// Perhaps no new event finds room before that claim is decided. The held claim is then sent
    /// again ([`Ledger::take_held`], [`Ledger::take_others`]). Only the last accepted claim is held
    /// for this reason.
    fn is_proof(&self, claim: Claim) -> bool {
        !self.rules.collects
            && !self.pacing.drains()
            && self.in_flight.has_undecided_before(claim)
            && self.in_flight.cursor().is_nearly_full()
    }

    /// Makes all held claims final, because the claims before them will not be decided in this
    /// delivery.
    pub(super) fn finish_held(&mut self) {
        self.finish_all(self.in_flight.all(State::Held).into_iter());
    }

    /// Makes these claims final at once.
    fn finish_all(&mut self, works: impl Iterator<Item = Work>) {
        self.in_flight.begin_together();
        works.for_each(|work| self.finish(work.claim, Vec::new()));
        self.in_flight.end_together();
    }

    /// Returns `true` if no claim waits to be sent again, or for the decision about another claim.
    pub(super) fn is_settled(&self) -> bool {
        let open = [State::Pending, State::Suspect, State::Parked, State::Held];
        open.into_iter().all(|state| !self.in_flight.has(state))
    }

    /// Makes a claim final because the filter keeps back all its events. This happens even if an
    /// earlier event is a suspect, because there is nothing to send. Events that are too large for
    /// the filter are given up.
    fn nothing_left(&mut self, claim: Claim) {
        self.tries_are_over(claim);
        self.isolation.nothing_left(self.rules.limits.max_events);
        self.turn.sends_others |= std::mem::take(&mut self.turn.took_others);
        self.sent_until = self.sent_until.max(claim.end);
        self.finish(claim, Vec::new());
    }

    /// Makes a claim final, except that the events `unfit` and those that are too large for the
    /// filter are given up.
    fn finish(&mut self, claim: Claim, unfit: Vec<Bytes>) {
        if let Some(settled) = self.filtering.settle(claim, unfit, false, &self.health.metrics) {
            self.end(claim, settled);
        }
    }

    /// Ends a claim as the filter has decided. If dead letters are kept of some of its events, the
    /// claim becomes final when they are written.
    fn end(&mut self, claim: Claim, settled: Settled) {
        let Self { in_flight, health, given_up, .. } = self;
        match settled {
            Settled::Final(disposition) => in_flight.finish(claim, disposition),
            Settled::Without(disposition, lines, reason) => {
                let reason = Reason::new(Cause::TooLong, reason);
                given_up.end_with(claim, disposition, lines, &reason, in_flight, health);
            }
            Settled::ReadAgain(unfit, reason) => {
                self.release(claim);
                let reason = Reason::new(Cause::TooLong, reason);
                self.given_up.add_unfit(claim, unfit, reason, &mut self.in_flight);
            }
        }
    }

    /// Moves a claim from `OnWire` or `Held` to `Pending`, to send it again. The filter's decisions
    /// about its events are forgotten, because the claim goes through the filter again.
    fn release(&mut self, claim: Claim) {
        self.in_flight.release(claim);
        self.filtering.released(claim);
    }

    /// Notes that `consumer` has accepted the events of `claim`, except `rejected`, which the
    /// protocol can't carry.
    pub(super) fn on_accepted(&mut self, claim: Claim, mut rejected: Vec<Bytes>, consumer: usize) {
        for work in self.in_flight.all_on_wire(claim, None) {
            self.accepted(&work, std::mem::take(&mut rejected), consumer, Scope::Request);
        }
    }

    /// Notes that `consumer` has accepted the events of a claim on the wire, except `rejected`,
    /// which the protocol can't carry.
    fn accepted(&mut self, work: &Work, rejected: Vec<Bytes>, consumer: usize, scope: Scope) {
        let claim = work.claim;
        let (waits, was_late) = match scope {
            Scope::Request => (self.in_flight.has_open_before(claim), work.attempts > 1),
            Scope::Events => {
                let was_alone = matches!(work.refusals, Refusals::Alone(_));
                (self.in_flight.has_refused_before(claim), was_alone)
            }
        };
        let keeps_order = work.parking.is_none_or(|parking| parking.keeps_order());
        self.isolation.accepted(work.sent_at, consumer);
        if let Some(parking) = work.parking {
            self.try_accepted(work, parking, consumer);
        }
        self.turn.doubts_claim = false;
        self.pacing.succeeded();
        self.health.succeeded();
        self.health.delivered(work.events, work.attempts);
        self.filtering.tapping.accepted(claim, work.events, rejected.is_empty());
        let is_ordered = self.rules.is_ordered;
        let waits = is_ordered && waits && keeps_order;
        let is_proof = rejected.is_empty() && work.parking.is_none() && self.is_proof(claim);
        let work = if is_proof && !waits { self.last_of(*work) } else { *work };
        let (claim, waits) = (work.claim, waits || is_proof);
        if work.is_overtaken && is_ordered && rejected.is_empty() {
            // An earlier event was sent after this claim.
            self.release(claim);
        } else if let Some(settled) =
            self.filtering.settle(claim, rejected, waits, &self.health.metrics)
        {
            self.end(claim, settled);
        } else {
            self.in_flight.hold(work);
        }
        if is_ordered && was_late && keeps_order {
            // Later events that were sent before this claim are sent again, to keep the order.
            for held in self.in_flight.all(State::Held) {
                if held.claim > claim && held.batch < work.batch {
                    self.release(held.claim);
                }
            }
            self.in_flight.overtake(&work);
        }
        self.retry_suspects();
    }

    /// Makes an accepted claim on the wire final except its last event. Returns the claim of this
    /// event.
    fn last_of(&mut self, work: Work) -> Work {
        let Claim { start, end } = work.claim;
        let last = end.saturating_back(1);
        if last == start || self.filtering.is_kept_back(last) {
            return work;
        }
        let front = Claim { start, end: last };
        self.in_flight.front_on_wire(front, Some(work.events.saturating_sub(1)));
        let Some(work) = self.in_flight.on_wire_at(last) else { return work };
        self.finish(front, Vec::new());
        work
    }

    /// Sends all suspects again, because the consumer has accepted another event.
    fn retry_suspects(&mut self) {
        for suspect in self.in_flight.all(State::Suspect) {
            self.in_flight.change(suspect.claim, State::Pending);
        }
    }

    /// Notes that the consumer has taken the request with the events of `claim`, and will confirm
    /// them later. The claim is not final, and stays on the wire. This does not count as a success
    /// yet: a consumer that takes everything and confirms nothing does not work.
    pub(super) fn on_taken(&mut self, claim: Claim) {
        let works = self.in_flight.all_on_wire(claim, None);
        self.in_flight.taken(works);
    }

    /// Notes that `consumer` has judged the events of `claim` one by one. Each event is in one of
    /// the parts. Only the events that the consumer has not taken are sent again.
    ///
    /// A refusal of an event is final if the consumer took another event of the same batch. If it
    /// took none, its settings may be at fault (a missing index refuses every event), so the event
    /// becomes a suspect, as if it had been refused alone.
    pub(super) fn on_judged(&mut self, claim: Claim, parts: Vec<Part>, consumer: usize) {
        let Judged { taken, unconfirmed, unsent, partly, left } = self.judged(claim, parts);
        for work in &taken {
            self.accepted(work, Vec::new(), consumer, Scope::Events);
        }
        for work in unsent {
            // The events were not in the request, so this does not count as an attempt.
            let attempts = work.attempts.saturating_sub(1);
            self.in_flight.note(Work { is_remainder: true, attempts, ..work });
            self.release(work.claim);
        }
        // Events that the consumer has taken but will not confirm are sent in a request of their
        // own.
        for work in &unconfirmed {
            self.in_flight.note(Work { is_remainder: false, ..*work });
            self.release(work.claim);
        }
        for (works, refused, failure) in partly {
            self.refused_partly(&works, refused, &failure, consumer);
        }
        let accepts = !taken.is_empty();
        let took_others = accepts || !unconfirmed.is_empty();
        let Some((_, first, _)) = left.first() else { return };
        self.health.turned_away(first);
        let mut again = None;
        for (works, failure, is_refused) in left {
            for work in works {
                if self.not_taken(work, &failure, is_refused, consumer, took_others) {
                    again.get_or_insert_with(|| failure.clone());
                }
            }
        }
        if let Some(failure) = again {
            if !accepts {
                self.health.down(&failure);
            }
            self.pause(&failure);
            self.take_all_old(&failure);
        }
    }

    /// Sorts the judged claims on the wire by verdict.
    fn judged(&mut self, claim: Claim, parts: Vec<Part>) -> Judged {
        let mut judged = Judged::default();
        let mut start = claim.start;
        for Part { end, events, verdict } in parts {
            let works = self.in_flight.all_on_wire(Claim { start, end }, Some(events));
            start = end;
            match verdict {
                Verdict::Delivered => judged.taken.extend(works),
                Verdict::Existing => {
                    self.health.metrics.existing.increment(events);
                    judged.taken.extend(works);
                }
                Verdict::Unconfirmed => judged.unconfirmed.extend(works),
                Verdict::Unsent => judged.unsent.extend(works),
                Verdict::Again(failure) => judged.left.push((works, failure, false)),
                Verdict::Refused(failure) => judged.left.push((works, failure, true)),
                Verdict::Partly { refused, failure } => {
                    judged.partly.push((works, refused, failure));
                }
            }
        }
        judged
    }

    /// Notes that `consumer` has not taken a claim that it has judged. `took_others` is `true` if
    /// it took another event of the same batch. Returns `true` if the claim is sent again because
    /// of a failure that does not depend on its events.
    fn not_taken(
        &mut self,
        mut work: Work,
        failure: &Failure,
        is_refused: bool,
        consumer: usize,
        took_others: bool,
    ) -> bool {
        if self.is_try(&mut work) && !took_others {
            self.try_failed(work, failure, is_refused, consumer);
        } else if is_refused && !self.isolation.retries() {
            self.refused_alone(&work, failure, consumer, took_others);
        } else if failure.server_error
            && self.isolation.server_error(&mut work, consumer, took_others)
        {
            self.in_flight.note(work);
            self.park_each(work.claim, failure, consumer);
        } else {
            self.turn.sends_others |= work.errors.count >= ERRORS_BEFORE_OTHERS;
            // A refused event must not share a request with others, because the consumer might then
            // refuse these too.
            self.in_flight.note(Work { is_remainder: !is_refused, ..work });
            self.release(work.claim);
            return true;
        }
        false
    }

    /// Notes that `consumer` refuses `refused` events of these claims for good and has the others,
    /// and that nobody knows which. All these events go to the dead letters.
    fn refused_partly(&mut self, works: &[Work], refused: u64, failure: &Failure, consumer: usize) {
        self.health.turned_away(failure);
        if refused < works.iter().map(|work| work.events).sum() {
            for work in works {
                self.isolation.accepted(work.sent_at, consumer);
            }
            self.pacing.succeeded();
            self.health.succeeded();
            self.retry_suspects();
        }
        let mut left = refused;
        for work in works {
            let lost = left.min(work.events);
            left -= lost;
            self.release(work.claim);
            let reason = Reason::new(Cause::Refused, &failure.message);
            self.given_up.add(work, lost, reason, &mut self.in_flight);
        }
    }

    /// Notes that `consumer` refuses each event of a claim on the wire. `accepts` is `true` if it
    /// took another event of the same batch.
    fn refused_alone(&mut self, work: &Work, failure: &Failure, consumer: usize, accepts: bool) {
        if accepts {
            self.release(work.claim);
            self.give_up(work, failure);
            return;
        }
        let mut start = work.claim.start;
        while let Some(mut event) = self.cut_event(start, work.claim.end) {
            start = event.claim.end;
            // The consumer judges each event, so suspects may share a request.
            event.is_remainder = true;
            let decision = self.isolation.refused(&mut event, consumer);
            self.in_flight.note(event);
            self.release(event.claim);
            self.decide_alone(event, decision, failure, consumer);
        }
    }

    /// Decides to give up a claim that is to be sent again, because the consumer refuses it.
    fn give_up(&mut self, work: &Work, failure: &Failure) {
        let reason = Reason::new(Cause::Refused, &failure.message);
        self.given_up.add(work, u64::MAX, reason, &mut self.in_flight);
    }

    /// Cuts the next event that was sent off a claim on the wire. Searches the claim's events from
    /// `start` to `end`, and releases those that the filter has kept back. Returns `None` if no
    /// sent event is left.
    fn cut_event(&mut self, mut start: Position, end: Position) -> Option<Work> {
        while start < end {
            let mut event = self.in_flight.on_wire_at(start)?;
            if event.claim.end > start.next() {
                let one = Claim { start, end: start.next() };
                event = self.in_flight.front_on_wire(one, Some(1)).unwrap_or(event);
            }
            event.events = 1;
            start = event.claim.end;
            if !self.filtering.is_kept_back(event.claim.start) {
                return Some(event);
            }
            // The event was not in the request.
            self.release(event.claim);
        }
        None
    }

    /// Notes that `consumer` refuses `claim` because of its events. A claim of several events is
    /// split into halves. A claim of one event is given up, or sent again later. If several claims
    /// were sent in one batch, each is sent by itself next.
    pub(super) fn on_refused(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        let works = self.in_flight.all_on_wire(claim, None);
        let Some(mut work) = works.first().copied() else { return };
        self.health.refused(failure);
        if works.len() > 1 {
            for mut work in works {
                self.isolation.refused(&mut work, consumer);
                self.in_flight.note(Work { is_remainder: false, ..work });
                self.release(work.claim);
            }
            return;
        }
        if self.is_try(&mut work) {
            return self.try_failed(work, failure, true, consumer);
        }
        let decision = self.isolation.refused(&mut work, consumer);
        work.is_remainder = false;
        self.in_flight.note(work);
        self.release(work.claim);
        if work.events > 1 && self.in_flight.split(work).is_some() {
            return;
        }
        self.decide_alone(work, decision, failure, consumer);
    }

    /// Carries out the decision of the search for refused events about a claim that is to be sent
    /// again and can't be split.
    fn decide_alone(
        &mut self,
        mut work: Work,
        decision: Decision,
        failure: &Failure,
        consumer: usize,
    ) {
        match decision {
            Decision::Retry => {
                self.health.down(failure);
                self.pause(failure);
            }
            Decision::Doubt => self.begin_tries(work, TurnedDown::Refused, failure, consumer),
            Decision::Suspect => {
                self.isolation.suspect(&mut work, failure);
                self.in_flight.note(work);
                self.in_flight.change(work.claim, State::Suspect);
                // Pending halves are not given up for their age yet, because they were not refused
                // alone.
                self.given_up.take_old(State::Suspect, failure, &mut self.in_flight);
            }
        }
    }

    /// Notes that an attempt to send `claim` to `consumer` failed, while the connection continues
    /// to work. The claim is to be sent again. If the consumer answers this claim with server
    /// errors, and takes others, the claim is halved, or its event is parked.
    pub(super) fn on_failed(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        let mut works = self.in_flight.all_on_wire(claim, None);
        if works.is_empty() {
            return;
        }
        let is_try = match &mut works[..] {
            [work] => self.is_try(work),
            _ => false,
        };
        if let [work] = &mut works[..]
            && is_try
        {
            if !failure.elsewhere {
                let work = *work;
                return self.try_failed(work, failure, false, consumer);
            }
            if failure.server_error && self.try_passed_over(work, failure, consumer) {
                return;
            }
        } else if failure.server_error && !self.rules.collects {
            // An address that is passed over counts, too: the last one of a round may never be
            // asked to take other events.
            let sends_others = self.turn.sends_others;
            let is_at_fault = self.note_server_error(&mut works, consumer);
            if failure.elsewhere {
                self.turn.doubts_claim |= self.turn.sends_others && !sends_others;
                self.turn.sends_others = sends_others;
            }
            if is_at_fault {
                self.health.refused(failure);
                return self.take_apart(works, failure, consumer);
            }
        }
        if !failure.elsewhere {
            self.isolation.conduct_mut(consumer).turned_down();
            self.turn.sends_others |= std::mem::take(&mut self.turn.doubts_claim);
        }
        for work in works {
            self.give_back(work);
        }
        if failure.elsewhere {
            self.health.passed_over(failure);
            return;
        }
        self.health.failed(failure);
        self.pause(failure);
        self.take_all_old(failure);
    }

    /// Notes a server error that `consumer` has answered to one request with these claims. Returns
    /// `true` if events of the request may be at fault.
    fn note_server_error(&mut self, works: &mut [Work], consumer: usize) -> bool {
        let mut is_at_fault = true;
        for work in works {
            is_at_fault &= self.isolation.server_error(work, consumer, false);
            self.turn.sends_others |= work.errors.count >= ERRORS_BEFORE_OTHERS;
            self.in_flight.note(*work);
        }
        is_at_fault
    }

    /// Divides a request that the consumer answers with server errors: of several claims each is
    /// sent by itself next, a single claim is halved, and a single event is parked.
    fn take_apart(&mut self, works: Vec<Work>, failure: &Failure, consumer: usize) {
        self.turn.sends_others = false;
        self.isolation.conduct_mut(consumer).turned_down();
        let is_one = works.len() == 1;
        for work in works {
            let work = Work { is_remainder: false, ..work };
            self.in_flight.note(work);
            self.release(work.claim);
            if is_one && !(work.events > 1 && self.in_flight.split(work).is_some()) {
                self.begin_tries(work, TurnedDown::ServerError, failure, consumer);
            }
        }
    }

    /// Prepares to send every claim that is not final again, in order. Called after the end of a
    /// connection on which claims become final in order. As a rule, the cursor is set back and the
    /// claims are forgotten. If that is not possible (claims of an earlier delivery, or dead
    /// letters that are being written), the claims are kept, and each is sent again as it is.
    pub(super) fn start_over(&mut self) {
        self.isolation.end();
        if self.given_up.is_ended() && self.in_flight.cursor().is_in_order() {
            self.in_flight.rewind();
            self.given_up.rewound();
            self.filtering.rewound(self.in_flight.cursor());
            return;
        }
        self.take_back();
    }

    /// Takes all claims off the wire, to send them again in the order of the queue.
    fn take_back(&mut self) {
        for work in self.in_flight.all(State::OnWire) {
            self.give_back(work);
        }
    }

    /// Takes a claim off the wire, to send it again.
    fn give_back(&mut self, work: Work) {
        if self.rules.collects {
            self.in_flight.note(Work { is_remainder: true, ..work });
        }
        self.release(work.claim);
    }

    /// Notes the break of a connection on which claims become final in order. `is_proven` is `true`
    /// if the connection had lasted for some time, or if something was accepted on it. In that
    /// case, the break does not show that the consumer refuses connections.
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

    /// Notes that a connection has ended. Its claims on the wire are to be sent again; other claims
    /// keep their state. `failure` is the reason; `None` if the end was not a failure.
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

    /// Notes that no connection could be made, because of `failure`.
    pub(super) fn on_unreachable(&mut self, failure: &Failure) {
        self.health.failed(failure);
        self.pause(failure);
        self.all_failed(failure);
    }

    /// Notes that there is no connection any more, because of `failure`. This counts as a failed
    /// attempt for every claim that is not final, so claims that are too old are given up. Does
    /// nothing if another address is to be tried at once.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if !failure.elsewhere {
            self.take_all_old(failure);
            self.given_up.all_failed(failure);
        }
    }

    /// Decides to give up the claims that wait to be sent again and are too old: they were first
    /// sent at least `retry.max_elapsed` ago.
    fn take_all_old(&mut self, failure: &Failure) {
        for state in [State::Pending, State::Suspect, State::Parked] {
            self.given_up.take_old(state, failure, &mut self.in_flight);
        }
        if !self.parked.is_empty() {
            self.parked.retain(|position, _| self.in_flight.is_tried(*position));
            self.health.parked(&self.parked, None);
        }
    }

    /// Notes that a connection was made. `is_eager` is `true` if the protocol connects before it
    /// has an event to send. Only in this case can the connection itself show that the consumer is
    /// up.
    pub(super) fn on_connected(&mut self, is_eager: bool) {
        self.given_up.connected();
        if is_eager && self.pacing.connected() {
            self.health.succeeded();
        }
    }

    /// Notes that the connection has lasted long enough to show that the consumer is up.
    pub(super) fn on_proven(&mut self) {
        self.pacing.proven();
        self.health.succeeded();
    }

    /// Notes that the queue has a new event, or has read lines from its files. `wanted` is `true`
    /// if the loop waited for a new event. In that case, the pause ends.
    pub(super) fn on_readable(&mut self, wanted: bool) {
        if wanted {
            self.isolation.await_no_event();
            self.pacing.end_pause();
        }
        self.given_up.lines_are_read();
    }

    /// Begins a pause after a failure. Further failures during a pause do not begin another pause.
    fn pause(&mut self, failure: &Failure) {
        let wait = self.pacing.failed(failure.retry_after);
        // A new event in the queue does not end this pause: the consumer has asked for it, or can't
        // be reached.
        self.isolation.await_no_event();
        self.health.next_attempt(wait);
    }

    /// Hands over events that are given up, to be written as dead letters (see [`GivenUp::bury`]).
    /// Returns `true` if there is more to do.
    pub(super) fn bury(&mut self) -> bool {
        self.given_up.bury(&mut self.in_flight, &mut self.filtering, &self.health)
    }

    /// Hands over events that are given up, while there is a connection. If there is more to do,
    /// the loop yields to the runtime before it continues.
    pub(super) fn bury_beside_sending(&mut self) {
        if self.bury() {
            self.turn.inspected_bytes = INSPECTED_BYTES_MAX;
        }
    }

    /// Gives up the next events of the queue if they are too old. Called while there is no
    /// connection. Returns `true` if there is more to do.
    pub(super) fn bury_old(&mut self) -> bool {
        let (in_flight, filtering) = (&mut self.in_flight, &mut self.filtering);
        self.given_up.next_old(in_flight, filtering, &self.health, self.rules.limits)
    }

    /// Notes the result of writing dead letters. The result belongs to the oldest letters that had
    /// no result yet.
    pub(super) fn on_written(&mut self, written: Written) {
        self.given_up.end(written, &mut self.in_flight, &self.health);
    }

    /// Waits until all dead letters that were handed over are written, or have failed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn all_written(&mut self) {
        while !self.given_up.is_ended() {
            let written = self.given_up.written().await;
            self.on_written(written);
        }
    }
}
