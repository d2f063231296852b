//! The decisions of one output's delivery, without connections: what is sent next, and what happens
//! to each claim when the link reports. The loop in `run` does the waiting.

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
use super::link::{Connect, Part, Verdict};
use super::pacing::Pacing;
use super::reason::Reason;
use super::retry::Retry;
use super::trial;
use super::trial::{Answer, Circumstances, Conducts, Next};
use super::turns::Turns;
use base::position::Position;
use config::{BatchLimits, Rejected};
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};
use telemetry::{AttemptError, Cause};

/// The log says again after this time that events can't be set aside.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

const TOO_LONG: &str = "longer than max_message_bytes";

/// The longest time without an acceptance after which a request that times out makes the output
/// down.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The number of failures in a row after which a link that collects events gets fewer of them. Only
/// an object of the same events gets the same name, and the object may be stored already although
/// the store has said nothing, or has said that it failed.
const OBJECT_TRIES: u32 = 48;

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
///   Exception: while an event that was turned down waits for another one to be accepted, others
///   take their turn ([`Ledger::take_turn`]).
/// - If the output is ordered, a claim that the consumer accepts becomes final only when every
///   earlier claim is accepted, set aside or given up (`State::Held`). If an earlier claim is sent
///   again after it, it is sent again too. Exceptions: claims with events that can't be sent,
///   responses about single events ([`Ledger::on_judged`]), and the close of the queue.
/// - After a pause, a batch is sent only when no claim waits for a response, until the consumer
///   accepts something. If everything on the wire is one request, no more is on it than
///   [`Turns::limit`] allows, and an event that is set aside is alone on it.
///
/// Must never happen: an event is set aside or given up because of a consumer that has not proved
/// to accept other events. Exceptions: [`Verdict::Partly`], [`Verdict::TooLong`], and an event
/// whose file can't be read.
pub(super) struct Ledger {
    pub in_flight: InFlight,
    pub aside: Aside,
    conducts: Conducts,
    turns: Turns,
    /// The event whose turn it is, if its lines are not in memory yet.
    turn: Option<Position>,
    /// The moment when the consumer last accepted something.
    accepted_at: Option<Instant>,
    /// The failures in a row of a link that collects events, see [`OBJECT_TRIES`].
    failed_objects: u32,
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
    /// `true` if the last claim that was taken is an event that could not be set aside. Others are
    /// taken before the next one.
    was_wait: bool,
    /// The moment at which the log last said that an event can't be set aside.
    told_at: Option<Instant>,
    /// The bytes of batches that the filter has dropped since a batch of the queue was last sent.
    /// At `INSPECTED_BYTES_MAX`, the loop yields to the runtime and sets the number to zero. If
    /// more events must be given up, the loop sets the number to that limit, to yield too.
    pub(super) inspected_bytes: u64,
}

pub(crate) struct Rules {
    pub limits: BatchLimits,
    /// The setting `rejected.after_server_errors`.
    pub server_errors: Duration,
    /// A request that timed out makes the output down unless the consumer has accepted something
    /// in this time.
    silence: Duration,
    /// `true` if everything on the wire is one request ([`Connect::IS_ONE_REQUEST`]).
    ///
    /// [`Connect::IS_ONE_REQUEST`]: super::link::Connect::IS_ONE_REQUEST
    is_one_request: bool,
    /// `true` if `rejected.action` is `"retry"`.
    pub(super) keeps_all: bool,
    /// See [`Orders::outlives`](super::orders::Orders::outlives).
    outlives: bool,
    /// `true` if events are sent in the order of the queue, except those that are set aside.
    pub is_ordered: bool,
    /// `true` if a request carries many batches. The link then counts the retries, and claims that
    /// failed may share a batch when they are sent again.
    pub collects: bool,
    /// `true` if the link may get parts of JSON lists as received.
    pub sends_lists: bool,
}

impl Rules {
    pub(crate) fn new<C: Connect>(
        connector: &C,
        config: &config::Output,
        (sends_lists, outlives): (bool, bool),
    ) -> Self {
        Self {
            limits: config.batch,
            server_errors: config.after_server_errors,
            silence: config.timeouts.request.min(SILENCE_MAX),
            is_one_request: C::IS_ONE_REQUEST,
            keeps_all: config.rejected == Rejected::Retry,
            outlives,
            is_ordered: connector.is_ordered(),
            collects: C::COLLECTS,
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
            turns: Turns::new(),
            turn: None,
            accepted_at: None,
            failed_objects: 0,
            pacing: Pacing::new(Retry::new(&config.retry), draining),
            health,
            given_up: GivenUp::new(config, dead_letters),
            filtering,
            rules,
            sent_until: cursor.position(),
            batches: 0,
            was_wait: false,
            told_at: None,
            inspected_bytes: 0,
            in_flight: InFlight::new(cursor),
        };
        let are_lanes = !ledger.rules.is_one_request && !ledger.rules.is_ordered;
        ledger.aside.begin(ledger.in_flight.cursor(), are_lanes);
        ledger.health.aside(&ledger.aside, None);
        ledger
    }

    // ---- What is sent next ----

    /// Returns `true` if a new event in the queue should wake the loop. Either the event can be
    /// sent now (the connection `has_room`), or the output pauses until an event can show whether
    /// the consumer accepts anything.
    pub(super) fn wants_events(&self, has_room: bool) -> bool {
        match self.pacing.paused_until {
            None => self.may_send() && has_room && !self.awaits_confirmation(),
            Some(_) => self.turns.awaits_event,
        }
    }

    /// Returns `false` while too many bytes or claims wait to be written as dead letters or files,
    /// or while the filter holds too many bytes of too large events. Also returns `false` while
    /// what is on the wire must have a response first, or the next try waits for its file.
    fn may_send(&self) -> bool {
        // After a pause, any response is enough: it shows that the consumer takes requests again.
        let awaits = self.in_flight.awaits_answer() || self.aside.is_on_wire();
        let is_serial = self.pacing.is_serial && awaits;
        let is_full = self.given_up.is_full() || self.filtering.is_full() || self.is_full();
        !is_full && !is_serial && !self.aside.awaits_next()
    }

    /// Returns `true` if no event takes its turn yet. What the consumer has taken may prove soon
    /// that it works. If the next event ended the connection, the consumer could no longer confirm
    /// what it has taken.
    fn awaits_confirmation(&self) -> bool {
        self.in_flight.has(State::PassedOver) && self.in_flight.has_taken()
    }

    /// Returns `true` if everything on the wire is one request, and nothing may be added to it.
    fn is_full(&self) -> bool {
        self.rules.is_one_request
            && self.is_on_wire()
            && (self.turns.room() == 0
                || self.in_flight.has(State::PassedOver)
                || self.in_flight.is_tried(Some(State::OnWire))
                || self.aside.is_on_wire()
                || self.aside.is_due())
    }

    /// Returns `true` if a link that collects events should send what it has.
    pub(super) fn wants_flush(&self) -> bool {
        self.filtering.is_full() || self.is_full()
    }

    /// Returns `true` if the consumer has accepted nothing since it turned something down.
    pub(super) fn has_failed(&self) -> bool {
        self.turns.failing_since.is_some()
    }

    pub(super) fn is_on_wire(&self) -> bool {
        self.in_flight.has(State::OnWire) || self.aside.is_on_wire()
    }

    /// Returns the moment of the next try of an event that is set aside, or could not be set aside.
    /// `None` if there is no such event, if the loop must first wait for something else, or if the
    /// queue is closed.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let may_send = self.pacing.paused_until.is_none() && self.may_send();
        let aside = self.aside.next_try().filter(|_| may_send && self.may_try());
        let wait = self.next_wait().filter(|_| may_send && !self.given_up.needs_lines);
        aside.into_iter().chain(wait).min()
    }

    /// Returns the moment of the next try of an event that could not be set aside. `None` if there
    /// is no such event, or if other claims must be sent first.
    fn next_wait(&self) -> Option<Instant> {
        let is_alone = !self.rules.is_one_request || !self.is_on_wire();
        let is_first =
            !self.in_flight.has(State::Pending) && !self.in_flight.has(State::PassedOver);
        let may_wait = is_alone && is_first && !self.in_flight.cursor().is_closed();
        self.in_flight.next_wait().filter(|_| may_wait)
    }

    /// Returns `true` if an event that is set aside may be tried. It is alone on the wire if
    /// everything there is one request.
    fn may_try(&self) -> bool {
        let is_alone = !self.rules.is_one_request || !self.is_on_wire();
        is_alone && self.aside.may_send() && !self.in_flight.cursor().is_closed()
    }

    /// Returns the next batch to send; `None` if there is none, or if nothing may be sent now. New
    /// events fit into `room`, except a single event whose turn it is. A claim that is sent again
    /// may be larger than `room`. If the filter drops all events of a claim, the claim becomes
    /// final.
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
            let is_first = !self.is_on_wire();
            // The cursor reads lines from files for one claim at a time, and first for claims that
            // are given up.
            let waits = self.given_up.needs_lines || self.aside.awaits_next();
            let taken = if waits { None } else { self.take(room) };
            let Some(batch) = taken else { return self.next_try_to_send() };
            let (claim, bytes) = (batch.claim, batch.bytes);
            let batch = self.filtering.pass_to_send(batch, self.in_flight.cursor());
            if batch.events == 0 {
                self.inspected_bytes += bytes;
                self.nothing_left(claim);
                continue;
            }
            self.inspected_bytes = 0;
            self.turn = None;
            self.batches += 1;
            // A first attempt is a retry if the cursor was set back after an earlier one. A
            // remainder is none: its events may have had no room in an earlier request.
            let was_sent = claim.start < self.sent_until;
            let sent = self.note_sent(claim, batch.events);
            let (attempts, is_remainder) = sent.unwrap_or_default();
            if !self.rules.collects && (attempts > 1 || (was_sent && !is_remainder)) {
                self.health.metrics.retries.increment(1);
            }
            let batch = if is_remainder { self.with_remainders(batch, room) } else { batch };
            self.turns.sent(claim.end - claim.start, is_first);
            return Some(batch);
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

    /// Returns `true` if the batch, which is sent now, is a single event that was turned down alone
    /// before.
    pub(super) fn was_alone(&self, batch: &Batch) -> bool {
        let start = batch.claim.start;
        let is_alone = !self.rules.is_one_request || self.in_flight.count(State::OnWire) == 1;
        let was_alone = self.in_flight.get(start).is_some_and(|work| work.trial.was_alone());
        self.aside.is_sent(start) || (batch.events == 1 && is_alone && was_alone)
    }

    /// Notes an attempt. Returns the number of attempts, and `true` if the claim is a remainder.
    fn note_sent(&mut self, claim: Claim, events: u64) -> Option<(u32, bool)> {
        self.sent_until = self.sent_until.max(claim.end);
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
            if events > room.events.min(self.turns.limit()) || batch.bytes + next.bytes > room.bytes
            {
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

    /// Takes a claim that must be sent again or, if there is none, new events. While an event waits
    /// for another one to be accepted, takes the event whose turn it is.
    fn take(&mut self, room: Take) -> Option<Batch> {
        if self.in_flight.has(State::PassedOver) {
            return if self.awaits_confirmation() { None } else { self.take_turn() };
        }
        let is_added = self.rules.is_one_request && self.is_on_wire();
        let events = if is_added { self.turns.room() } else { self.turns.limit() };
        while let Some(work) = self.in_flight.first(State::Pending) {
            match self.redeliver_first(work.claim, events) {
                Redelivery::Batch(batch) => return Some(batch),
                Redelivery::Gone => {}
                Redelivery::NotYet => return None,
            }
        }
        let is_due = self.next_wait().is_some_and(|due| due <= Instant::now());
        let others_go_first = std::mem::take(&mut self.was_wait);
        if is_due && !others_go_first {
            return self.take_waiting();
        }
        let take = Take {
            bytes: room.bytes.min(self.rules.limits.max_bytes),
            events: room.events.min(self.rules.limits.max_events).min(events),
        };
        let new = self.in_flight.claim_next(take, self.rules.sends_lists);
        if new.is_some() || !is_due { new } else { self.take_waiting() }
    }

    /// Takes the event that could not be set aside and whose try is due.
    fn take_waiting(&mut self) -> Option<Batch> {
        let claim = self.in_flight.end_wait()?;
        self.was_wait = true;
        match self.redeliver(claim) {
            Redelivery::Batch(batch) => Some(batch),
            Redelivery::Gone | Redelivery::NotYet => None,
        }
    }

    /// Takes a single event that is tried while others wait for a proof that the consumer works.
    /// Passes over [`Turns::ahead`] events, and takes the next one: of those that wait to be sent,
    /// or a new one. If there is none, takes one of those that were passed over. If none of them
    /// may be tried now, a pause begins.
    fn take_turn(&mut self) -> Option<Batch> {
        let mut ahead = if self.turn.is_some() { 0 } else { self.turns.ahead() };
        if let Some(first) = self.in_flight.first(State::PassedOver).map(|work| work.claim)
            && self.turns.takes_first(first.start)
        {
            (ahead, self.turn) = (0, Some(first.start));
            self.in_flight.change(first, State::Pending);
        }
        loop {
            let Some(claim) = self.in_flight.first(State::Pending).map(|work| work.claim) else {
                if self.find_turn(&mut ahead)? {
                    continue;
                }
                return None;
            };
            let events = claim.end - claim.start;
            if events <= ahead {
                ahead -= events;
                self.pass_over(claim);
                continue;
            }
            if ahead > 0 {
                self.in_flight.cut(claim, claim.start + ahead);
                (ahead, self.turn) = (0, Some(claim.start + ahead));
                let front = self.in_flight.first(State::Pending).map(|work| work.claim);
                front.into_iter().for_each(|front| self.pass_over(front));
                continue;
            }
            self.turn = Some(claim.start);
            self.turns.takes(claim.start);
            match self.redeliver_first(claim, 1) {
                Redelivery::Batch(batch) => return Some(batch),
                Redelivery::Gone => {}
                Redelivery::NotYet => return None,
            }
        }
    }

    /// Makes the next event to be tried `Pending`, or new events that contain it. `ahead` is the
    /// number of events to pass over. Returns `false` if a pause has begun, because there is no
    /// such event; `None` if lines must be read first.
    fn find_turn(&mut self, ahead: &mut u64) -> Option<bool> {
        let take = Take { bytes: self.rules.limits.max_bytes, events: ahead.saturating_add(1) };
        if let Some(Batch { claim, .. }) = self.in_flight.claim_next(take, false) {
            // If there are fewer events, the last one takes its turn.
            *ahead = (*ahead).min((claim.end - claim.start).saturating_sub(1));
            self.turns.takes_new();
            if let Some(work) = self.in_flight.front_on_wire(claim, None) {
                self.in_flight.give_back(work, State::Pending);
            }
            return Some(true);
        }
        if !self.in_flight.cursor().is_at_end() && !self.in_flight.cursor().is_closed() {
            return None;
        }
        *ahead = 0;
        let passed_over = self.in_flight.all(State::PassedOver);
        let passed_over = passed_over.map(|work| {
            let Claim { start, end } = work.claim;
            (!work.trial.was_alone(), end - start, work.claim)
        });
        let (is_untried, events, largest) = passed_over.max()?;
        let claim = if is_untried && self.turns.may_try() {
            // The event in the middle of those that were never tried takes its turn.
            let middle = largest.start + events / 2;
            self.in_flight.cut(largest, middle);
            let right = Claim { start: middle, ..largest };
            self.in_flight.cut(right, middle.next());
            Claim { start: middle, end: middle.next() }
        } else if let Some(index) = self.turns.repeat(self.in_flight.count(State::PassedOver)) {
            self.in_flight.nth(State::PassedOver, index)?.claim
        } else {
            if let Some(failure) = self.turns.last.clone() {
                self.round_over(&failure);
            }
            return Some(false);
        };
        if self.in_flight.is(claim, State::PassedOver) {
            self.in_flight.change(claim, State::Pending);
        } else {
            // The queue has dropped the events.
            self.in_flight.change(largest, State::Pending);
        }
        Some(true)
    }

    fn pass_over(&mut self, claim: Claim) {
        if let Some(trial) = self.in_flight.trial_mut(claim) {
            trial.doubted(self.conducts.answers);
        }
        self.in_flight.change(claim, State::PassedOver);
    }

    /// Takes the first `events` events of a `Pending` claim again.
    fn redeliver_first(&mut self, claim: Claim, events: u64) -> Redelivery {
        if claim.end - claim.start > events {
            self.in_flight.cut(claim, claim.start + events);
        }
        let first = self.in_flight.first(State::Pending).map_or(claim, |work| work.claim);
        self.redeliver(first)
    }

    /// Takes a claim again. If the queue has dropped its events, the filter forgets them too.
    fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let retaken = self.in_flight.redeliver(claim);
        if matches!(retaken, Redelivery::Gone) {
            self.filtering.give_up(claim);
        }
        retaken
    }

    /// Everything that could be tried was tried, and the consumer takes nothing: a pause begins.
    fn round_over(&mut self, failure: &Failure) {
        self.health.down(failure);
        self.pause(failure);
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

    /// Makes a claim final of which the filter lets no event through. The claim does not wait for
    /// earlier ones, because nothing of it is sent.
    fn nothing_left(&mut self, claim: Claim) {
        self.turn = None;
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
        self.in_flight.give_back(work, State::Pending);
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

    /// Sets each sent event of a claim aside.
    fn set_aside(&mut self, work: Work, answer: Answer, failure: &Failure, consumer: usize) {
        for event in self.cut(work) {
            self.filtering.released(event.claim);
            let retrial = event.trial.set_aside(answer, &self.conducts, consumer);
            let kept = Kept::new(retrial, &failure.message, event.attempts);
            let reason = Reason { cause: Cause::Refused, text: Arc::clone(&kept.answer) };
            self.given_up.add(event, Some(kept), 1, reason, &mut self.in_flight);
        }
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances {
            keeps_all: self.rules.keeps_all,
            server_errors: self.rules.server_errors,
            drains: self.pacing.drains() && !self.rules.outlives,
        }
    }

    // ---- Reports of the link ----

    pub(super) fn on_accepted(&mut self, claim: Claim, consumer: usize) {
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
        let size = if self.rules.is_one_request { self.turns.window() } else { size };
        if !self.rules.is_one_request || !self.in_flight.has(State::OnWire) {
            self.turns.accepted(size, self.rules.limits.max_events);
        }
    }

    /// Records that `consumer` has accepted something that was sent after `sent_at` responses had
    /// turned something down. Everything that was passed over is sent.
    fn works(&mut self, consumer: usize, sent_at: u64, was_counted: bool) {
        self.conducts.accepted(consumer, sent_at, was_counted);
        if self.pacing.is_serial {
            self.aside.recovered();
        }
        self.turns.progressed();
        (self.accepted_at, self.failed_objects) = (Some(Instant::now()), 0);
        self.pacing.succeeded();
        self.health.succeeded();
        // Events that were passed over may share a request again.
        let may_share = !self.rules.is_one_request;
        for claim in self.in_flight.claims(State::PassedOver) {
            self.in_flight.change(claim, State::Pending);
            self.in_flight.share(claim, may_share);
        }
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
        if let Some((_, first, _)) = left.first() {
            self.health.passed_over(first);
            let (first, size) = (first.clone(), claim.end - claim.start);
            if !accepts && self.turns.failed(Some(size), &first) {
                self.round_over(&first);
            }
        }
        if let Some(failure) = self.not_taken(left, consumer, took_others) {
            if !accepts {
                self.health.down(&failure);
            }
            self.pause(&failure);
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
                let is_doubted = work.trial.is_doubted();
                if is_refused && took_others && !self.rules.keeps_all {
                    self.give_up(work, u64::MAX, &failure);
                } else if is_refused || (is_doubted && failure.may_be_the_events) {
                    let answer = if is_refused { Answer::Refused } else { Answer::Failed };
                    for mut event in self.cut(work) {
                        // The consumer judges each event, so these events may share a request.
                        event.is_remainder = true;
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
        again
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

    /// `consumer` refuses `claim` because of its events.
    pub(super) fn on_refused(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_turned_down(claim.start, kept, Answer::Refused, failure, consumer);
        }
        let works = self.in_flight.answered(claim, None);
        self.turned_down(works, Answer::Refused, failure, consumer);
    }

    /// An attempt to send `claim` failed, and the link still works.
    pub(super) fn on_failed(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        if let Some(kept) = self.aside.answered(claim.start) {
            return self.aside_failed(claim.start, kept, failure, consumer);
        }
        let works = self.in_flight.answered(claim, None);
        if failure.may_be_the_events {
            return self.turned_down(works, Answer::Failed, failure, consumer);
        }
        works.into_iter().for_each(|work| self.give_back(work));
        match failure.elsewhere {
            true => self.health.passed_over(failure),
            false => self.round_failed(failure),
        }
    }

    /// `consumer` has not taken the claims of one request. Several events are sent again in two
    /// requests, and a single event is sent again, passed over, or set aside.
    fn turned_down(
        &mut self,
        mut works: Vec<Work>,
        answer: Answer,
        failure: &Failure,
        consumer: usize,
    ) {
        let events: u64 = works.iter().map(|work| work.events).sum();
        if events == 0 {
            return;
        }
        let size: u64 = works.iter().map(|work| work.claim.end - work.claim.start).sum();
        self.tell_failure(answer, failure);
        // The first failure of a request may be an accident: it is sent again as it is. What was on
        // a broken connection is not: it would be too large for the next one.
        let may_be = answer == Answer::Failed && !self.rules.is_one_request;
        let mut is_accident = may_be && events > 1;
        for work in &mut works {
            is_accident &= work.trial.is_accident(consumer, failure.elsewhere);
        }
        if events == 1
            && let Some(work) = works.pop()
        {
            self.turned_down_alone(work, answer, failure, consumer, false);
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
        let is_asked = answer == Answer::Failed
            && (failure.retry_after.is_some() || failure.reason == AttemptError::Status429);
        let is_over = self.turns.failed(if is_accident { None } else { Some(size) }, failure);
        if !failure.elsewhere && (is_over || is_asked) {
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
            false => self.turns.failing_since.is_some_and(is_over),
        };
        match answer {
            _ if is_silent && !failure.elsewhere => self.health.failed(failure),
            Answer::Refused => self.health.passed_over(failure),
            Answer::Failed => self.health.stumbled(failure),
        }
    }

    /// `consumer` has turned down a request with this event alone, or has judged the event.
    /// `took_others`: it has accepted other events of the same request.
    fn turned_down_alone(
        &mut self,
        mut work: Work,
        answer: Answer,
        failure: &Failure,
        consumer: usize,
        took_others: bool,
    ) {
        let number = self.conducts.turned_down(consumer, true);
        let response = (number, self.conducts.of(consumer));
        let counted = work.trial.counted;
        let may_repeat = failure.elsewhere || self.turns.may_send_again();
        let how = (self.rules.is_ordered, may_repeat);
        let verdict = work.trial.turned_down(response, answer, took_others, how);
        if work.trial.counted == counted && verdict == trial::Verdict::PassOver {
            self.turns.passed_over(self.rules.limits.max_events);
        }
        match verdict {
            trial::Verdict::SetAside => {
                // The event was at fault, and not the size of its request.
                self.turns.found(self.rules.limits.max_events);
                self.set_aside(work, answer, failure, consumer);
            }
            trial::Verdict::Again => self.again(work),
            trial::Verdict::PassOver => {
                self.filtering.released(work.claim);
                self.in_flight.give_back(work, State::PassedOver);
            }
        }
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
        let (now, was_at_fault) = (self.circumstances(), kept.retrial.is_at_fault());
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
    pub(super) fn start_over(&mut self) {
        let is_calm = !self.has_failed() && !self.turns.is_limited();
        if is_calm && self.given_up.is_ended() && self.in_flight.cursor().is_in_order() {
            self.in_flight.rewind();
            self.given_up.rewound();
            self.filtering.rewound(self.in_flight.cursor());
        }
    }

    /// Takes all claims off the wire.
    fn take_off_wire(&mut self) -> Vec<Work> {
        let claims = self.in_flight.claims(State::OnWire).into_iter();
        claims.filter_map(|claim| self.in_flight.front_on_wire(claim, None)).collect()
    }

    /// The connection has ended, with everything on the wire. If the consumer has turned it down,
    /// it is one request that has failed.
    fn wire_ended(&mut self, failure: Option<&Failure>, consumer: usize) {
        let (works, asides) = (self.take_off_wire(), self.aside.all_answered());
        match failure {
            Some(failure) => {
                self.turned_down(works, Answer::Failed, failure, consumer);
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
    }

    /// A connection on which claims become final in order has broken. `progress`: something was
    /// accepted on it. `has_lasted`: it had lasted for some time.
    pub(super) fn on_broken(
        &mut self,
        failure: &Failure,
        (progress, has_lasted): (bool, bool),
        consumer: usize,
    ) {
        let is_turned_down = self.is_on_wire() && failure.may_be_the_events;
        self.wire_ended(is_turned_down.then_some(failure), consumer);
        self.start_over();
        let is_proven = progress || (has_lasted && self.turns.failing_since.is_none());
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
    /// end was not a failure.
    pub(super) fn on_gone(&mut self, failure: Option<&Failure>, consumer: usize) {
        let is_turned_down = failure.is_some_and(|failure| self.ends_request(failure));
        self.wire_ended(failure.filter(|_| is_turned_down), consumer);
        let Some(failure) = failure else { return };
        if failure.elsewhere {
            self.health.passed_over(failure);
            return;
        }
        self.health.failed(failure);
        self.pacing.broke_at_once();
        self.pause(failure);
    }

    /// Returns `true` if the end of a connection with this failure turns down what is on the wire.
    fn ends_request(&mut self, failure: &Failure) -> bool {
        if !self.rules.is_one_request || !failure.may_be_the_events || !self.is_on_wire() {
            return false;
        }
        self.failed_objects += 1;
        !self.rules.collects || self.failed_objects >= OBJECT_TRIES
    }

    pub(super) fn on_unreachable(&mut self, failure: &Failure) {
        self.health.failed(failure);
        self.pause(failure);
    }

    // ---- Waits ----

    /// The queue has a new event, or has read lines from its files. `wanted`: the loop has waited
    /// for a new event, so the pause ends.
    pub(super) fn on_readable(&mut self, wanted: bool) {
        if wanted {
            self.turns.awaits_event = false;
            self.pacing.end_pause();
        }
        self.given_up.lines_are_read();
    }

    /// Begins a pause after a failure. During a pause, a further failure can only make the pause
    /// longer.
    fn pause(&mut self, failure: &Failure) {
        let wait = self.pacing.failed(failure.retry_after, failure.may_be_stored);
        // If the consumer could not be reached, a new event would end each pause at once: it is
        // never tried, and still waits when the next pause begins.
        let can_show = failure.may_be_the_events
            && failure.retry_after.is_none()
            && self.in_flight.has(State::PassedOver);
        // Silence would cost a time-out before another event takes its turn.
        let was_reached = failure.may_be_the_events;
        let is_quick = !was_reached || failure.reason != AttemptError::Timeout;
        self.turns.paused(can_show, self.rules.is_ordered && is_quick, was_reached);
        self.health.next_attempt(wait);
    }

    /// Returns `true` if [`Ledger::hurry`] was not called yet, and would end a pause or try events
    /// that are set aside.
    pub(super) fn may_hurry(&self) -> bool {
        let are_kept = self.aside.count() > 0 || self.in_flight.has(State::Waiting);
        let waits = self.pacing.paused_until.is_some() || are_kept;
        waits && !self.pacing.is_shortened
    }

    /// The drain has begun: ends the pause, and tries the events that are set aside.
    pub(crate) fn hurry(&mut self) {
        self.pacing.shorten();
        self.in_flight.end_waits();
        self.aside.hurry();
    }

    pub(super) fn bury(&mut self) -> bool {
        if self.aside.forget_dropped() {
            self.health.aside(&self.aside, None);
        }
        self.given_up.bury(parts!(self))
    }

    /// The oldest write has a result. An event that could not be set aside is sent again later.
    pub(super) fn on_written(&mut self, written: Written) {
        let Some(error) = self.given_up.end(written, parts!(self)) else { return };
        if self.told_at.is_none_or(|at| at.elapsed() >= TOLD_AGAIN) {
            self.told_at = Some(Instant::now());
            let (output, events) = (&self.health.name, self.in_flight.count(State::Waiting));
            tracing::error!(
                output,
                error,
                events,
                "cannot write the file of an event to set aside: the event stays in the queue and \
                 is sent again; check the disk of queue.directory"
            );
        }
        self.health.passed_over(&Failure::new(AttemptError::Item, error));
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
