//! The decisions of one output's delivery, without connections: what is sent next, and what happens
//! to each claim when the link reports. The loop in `run` does the waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::aside::{Aside, Kept};
use super::dead_letter::{DeadLetters, Written};
use super::failure::{Failure, RETRY_AFTER_MAX};
use super::filtering::{Filtering, INSPECTED_BYTES_MAX, Settled, TOO_LARGE};
use super::given_up::{GivenUp, Of, Parts};
use super::health::Health;
use super::in_flight::{InFlight, Sent, State, Work};
use super::link::Connect;
use super::pacing::{DRAIN_PAUSE_MAX, Pacing};
use super::reason::Reason;
use super::retry::Retry;
use super::search::{Search, Turn};
use super::trial::{Answer, Circumstances, Conducts, TRIES_OF_FAILURES};
use base::position::Position;
use config::{BatchLimits, Rejected};
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};
use telemetry::{AttemptError, Cause};

mod reports;

/// The log says again after this time that events can't be set aside.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

const TOO_LONG: &str = "longer than max_message_bytes";

/// The longest time without an acceptance after which a request that times out makes the output
/// down.
const SILENCE_MAX: Duration = Duration::from_secs(10);

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
///   take their turn ([`Search::next`]).
/// - If the output is ordered, a claim that the consumer accepts becomes final only when every
///   earlier claim is accepted, set aside or given up (`State::Held`). If an earlier claim is sent
///   again after it, it is sent again too. Exceptions: claims with events that can't be sent,
///   responses about single events ([`Ledger::on_judged`]), and the close of the queue.
/// - After a pause, a batch is sent only when no claim waits for a response, until the consumer
///   accepts something. If everything on the wire is one request, no more is on it than
///   [`Turns::limit`] allows, and an event that is set aside is alone on it.
///
/// [`Turns::limit`]: super::turns::Turns::limit
///
/// Must never happen: an event is set aside or given up because of a consumer that has not proved
/// to accept other events. Exceptions: [`Verdict::Partly`], [`Verdict::TooLong`], and an event
/// whose file can't be read.
///
/// [`Verdict::Partly`]: super::link::Verdict::Partly
/// [`Verdict::TooLong`]: super::link::Verdict::TooLong
pub(super) struct Ledger {
    pub in_flight: InFlight,
    pub aside: Aside,
    conducts: Conducts,
    search: Search,
    /// The moment when the consumer last accepted something.
    accepted_at: Option<Instant>,
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
    /// `true` if the responses of the consumer are about single events.
    judges_events: bool,
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
            judges_events: connector.judges_events(),
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
            search: Search::new(rules.limits, rules.collects),
            accepted_at: None,
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
            Some(_) => self.search.turns.awaits_event,
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
            && (self.search.turns.room() == 0
                || self.in_flight.has(State::PassedOver)
                || self.in_flight.is_tried(Some(State::OnWire))
                || [State::OnWire, State::Pending].into_iter().any(|state| self.is_alone(state))
                || self.aside.is_on_wire()
                || self.aside.is_due())
    }

    /// Returns `true` if the first claim in this state is an event that was turned down alone, and
    /// must be alone again.
    fn is_alone(&self, state: State) -> bool {
        self.in_flight.first(state).is_some_and(|work| work.trial.was_alone())
    }

    /// Returns `true` if a link that collects events should send what it has.
    pub(super) fn wants_flush(&self) -> bool {
        self.filtering.is_full() || self.is_full()
    }

    /// Returns `true` if the consumer has accepted nothing since it turned something down.
    pub(super) fn has_failed(&self) -> bool {
        self.search.turns.failing_since.is_some()
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
            // What is added to a request on the wire has less room.
            let most = match is_first || !self.rules.is_one_request {
                true => self.search.turns.limit(),
                false => self.search.turns.room(),
            };
            let room = Take { events: room.events.min(most), ..room };
            // The cursor reads lines from files for one claim at a time, and first for claims that
            // are given up.
            let waits = self.given_up.needs_lines || self.aside.awaits_next();
            let taken = if waits { None } else { self.take(room, most) };
            let Some(batch) = taken else { return self.next_try_to_send() };
            let (claim, bytes) = (batch.claim, batch.bytes);
            let batch = self.filtering.pass_to_send(batch, self.in_flight.cursor());
            if batch.events == 0 {
                self.inspected_bytes += bytes;
                self.nothing_left(claim);
                continue;
            }
            self.inspected_bytes = 0;
            self.search.took_turn();
            self.batches += 1;
            // A first attempt is a retry if the cursor was set back after an earlier one. A
            // remainder is none: its events may have had no room in an earlier request.
            let was_sent = claim.start < self.sent_until;
            let sent = self.note_sent(claim, batch.events);
            let (attempts, is_remainder) = sent.unwrap_or_default();
            if !self.rules.collects && (attempts > 1 || (was_sent && !is_remainder)) {
                self.health.metrics.retries.increment(1);
            }
            self.search.turns.sent(claim.end - claim.start, is_first);
            // Another object that shows whether the store works has one event.
            let is_turn = self.rules.collects && self.in_flight.has(State::PassedOver);
            let batch = match is_remainder && !is_turn {
                true => self.with_remainders(batch, room),
                false => batch,
            };
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
            self.search.turns.sent(claim.end - claim.start, false);
            batch.claim.end = claim.end;
            batch.events = events;
            batch.bytes += next.bytes;
            batch.pieces.extend(next.pieces);
            batch.acceptances.extend(next.acceptances);
        }
        batch
    }

    /// Takes a claim that must be sent again or, if there is none, new events. While an event waits
    /// for another one to be accepted, takes the event whose turn it is. A request has room for
    /// `most` events, and the link for new ones that fit into `room`, too.
    fn take(&mut self, room: Take, most: u64) -> Option<Batch> {
        if self.in_flight.has(State::PassedOver) {
            return if self.awaits_confirmation() { None } else { self.take_turn() };
        }
        while let Some(work) = self.in_flight.first(State::Pending) {
            match self.redeliver_first(work.claim, most) {
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
            events: room.events.min(self.rules.limits.max_events),
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

    /// Takes the event whose turn it is ([`Search::next`]). If nothing may be tried now, a pause
    /// begins.
    fn take_turn(&mut self) -> Option<Batch> {
        loop {
            let claim = match self.search.next(&mut self.in_flight, self.conducts.answers) {
                Turn::Of(claim) => claim,
                Turn::Nobody => {
                    if let Some(failure) = self.search.turns.last.clone() {
                        self.round_over(&failure);
                    }
                    return None;
                }
                Turn::NotYet => return None,
            };
            match self.redeliver_first(claim, 1) {
                Redelivery::Batch(batch) => return Some(batch),
                Redelivery::Gone => {}
                Redelivery::NotYet => return None,
            }
        }
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
        self.search.took_turn();
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
        let asked = self.asked(failure);
        for event in self.cut(work) {
            self.filtering.released(event.claim);
            let retrial = event.trial.set_aside(answer, &self.conducts, consumer, asked);
            let kept = Kept::new(retrial, &failure.message, event.attempts);
            let reason = Reason { cause: Cause::Refused, text: Arc::clone(&kept.answer) };
            self.given_up.add(event, Some(kept), 1, reason, &mut self.in_flight);
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

    /// Returns the pause that the consumer asks for a single event. Four of them must not be longer
    /// than the time after which an event is given up, and a drain can't wait for one.
    fn asked(&self, failure: &Failure) -> Option<Duration> {
        let most = match self.pacing.drains() {
            true => DRAIN_PAUSE_MAX,
            false => RETRY_AFTER_MAX.min(self.rules.server_errors / TRIES_OF_FAILURES),
        };
        failure.retry_after.map(|asked| asked.min(most))
    }

    fn circumstances(&self, failure: &Failure) -> Circumstances {
        Circumstances {
            asked: self.asked(failure),
            keeps_all: self.rules.keeps_all,
            server_errors: self.rules.server_errors,
            drains: self.pacing.drains() && !self.rules.outlives,
        }
    }

    // ---- Waits ----

    /// The queue has a new event, or has read lines from its files. `wanted`: the loop has waited
    /// for a new event, so the pause ends.
    pub(super) fn on_readable(&mut self, wanted: bool) {
        if wanted {
            self.search.turns.awaits_event = false;
            self.pacing.end_pause();
        }
        self.given_up.lines_are_read();
    }

    /// Begins a pause after a failure. During a pause, a further failure can only make the pause
    /// longer.
    fn pause(&mut self, failure: &Failure) {
        let wait = self.pacing.failed(failure.retry_after, failure.may_be_stored);
        self.search.paused(failure, self.rules.is_ordered, &self.in_flight);
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
