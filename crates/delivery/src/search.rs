//! Looks for an event that the consumer may take while it turns others down: what was passed over,
//! and which event takes its turn next.

use super::failure::Failure;
use super::in_flight::{InFlight, State, Work};
use super::turns::Turns;
use base::position::Position;
use config::BatchLimits;
use queue::{Batch, Claim, Take};
use telemetry::AttemptError;

/// The number of failures in a row after which an object steps aside for others. An object is
/// not divided before the store takes others: only an object of the same events gets the same name,
/// and it may be stored already although the store has said nothing, or that it failed.
const OBJECT_TRIES: u32 = 4;

/// The number of other objects, of one event each, that are tried before the first one is tried
/// again: the last of them is more than 4,000 events ahead.
const OTHERS_MAX: u32 = 6;

/// The event whose turn it is.
pub(super) enum Turn {
    /// The first event of this claim, which is `Pending`.
    Of(Claim),
    /// No event may be tried now: a pause is due.
    Nobody,
    /// Lines must be read first, or each event rests.
    NotYet,
}

/// The search of one output for an event that its consumer takes. The ledger owns this value. The
/// events that others have passed over are in the state [`State::PassedOver`], and become `Pending`
/// when the consumer takes something.
pub(super) struct Search {
    pub(super) turns: Turns,
    limits: BatchLimits,
    /// `true` if a request carries many batches.
    collects: bool,
    /// The event whose turn it is, if its lines are not in memory yet.
    turn: Option<Position>,
    /// The failures in a row of a link that collects events, see [`OBJECT_TRIES`].
    failed_objects: u32,
    /// The other objects that have failed since the first one stepped aside, see [`OTHERS_MAX`].
    failed_others: u32,
}

impl Search {
    pub(super) fn new(limits: BatchLimits, collects: bool) -> Self {
        let turns = Turns::new();
        Self { turns, limits, collects, turn: None, failed_objects: 0, failed_others: 0 }
    }

    /// Returns the event whose turn it is, while others wait for a proof that the consumer works.
    /// Passes over [`Turns::ahead`] events, and takes the next one: of those that wait to be sent,
    /// or a new one. If there is none, takes one of those that were passed over. `answers` is the
    /// number of responses that have turned something down.
    pub(super) fn next(&mut self, in_flight: &mut InFlight, answers: u64) -> Turn {
        let mut ahead = if self.turn.is_some() { 0 } else { self.turns.ahead() };
        let may_be_first = |work: &&Work| !work.rests() && !self.collects;
        let first = in_flight.first(State::PassedOver).filter(may_be_first);
        if let Some(first) = first.map(|work| work.claim)
            && self.turns.takes_first(first.start)
        {
            (ahead, self.turn) = (0, Some(first.start));
            in_flight.change(first, State::Pending);
        }
        loop {
            let Some(claim) = in_flight.first(State::Pending).map(|work| work.claim) else {
                match self.find(&mut ahead, in_flight) {
                    Ok(()) => continue,
                    Err(turn) => return turn,
                }
            };
            let events = claim.end - claim.start;
            if events <= ahead {
                ahead -= events;
                pass_over(claim, in_flight, answers);
                continue;
            }
            if ahead > 0 {
                in_flight.cut(claim, claim.start + ahead);
                (ahead, self.turn) = (0, Some(claim.start + ahead));
                let front = in_flight.first(State::Pending).map(|work| work.claim);
                front.into_iter().for_each(|front| pass_over(front, in_flight, answers));
                continue;
            }
            self.turn = Some(claim.start);
            self.turns.takes(claim.start);
            return Turn::Of(claim);
        }
    }

    /// Makes the next event to be tried `Pending`, or new events that contain it. `ahead` is the
    /// number of events to pass over.
    ///
    /// # Errors
    ///
    /// There is no such event ([`Turn::Nobody`]), or none yet ([`Turn::NotYet`]).
    fn find(&mut self, ahead: &mut u64, in_flight: &mut InFlight) -> Result<(), Turn> {
        let take = Take { bytes: self.limits.max_bytes, events: ahead.saturating_add(1) };
        if let Some(Batch { claim, .. }) = in_flight.claim_next(take, false) {
            // If there are fewer events, the last one takes its turn.
            *ahead = (*ahead).min((claim.end - claim.start).saturating_sub(1));
            self.turns.takes_new();
            if let Some(work) = in_flight.front_on_wire(claim, None) {
                in_flight.give_back(work, State::Pending);
            }
            return Ok(());
        }
        if !in_flight.cursor().is_at_end() && !in_flight.cursor().is_closed() {
            return Err(Turn::NotYet);
        }
        *ahead = 0;
        if self.collects {
            end_turns(in_flight);
            // Each of them may rest, because the store has asked for a pause.
            return in_flight.has(State::Pending).then_some(()).ok_or(Turn::NotYet);
        }
        let passed_over = in_flight.all(State::PassedOver);
        let passed_over = passed_over.map(|work| {
            let Claim { start, end } = work.claim;
            (!work.trial.was_alone(), end - start, work.claim)
        });
        let (is_untried, events, largest) = passed_over.max().ok_or(Turn::NotYet)?;
        let claim = if is_untried && self.turns.may_try() {
            // The event in the middle of those that were never tried takes its turn.
            let middle = largest.start + events / 2;
            in_flight.cut(largest, middle);
            let right = Claim { start: middle, ..largest };
            in_flight.cut(right, middle.next());
            Claim { start: middle, end: middle.next() }
        } else {
            let index = self.turns.repeat(in_flight.count(State::PassedOver));
            let work = index.and_then(|index| in_flight.nth(State::PassedOver, index));
            work.filter(|work| !work.rests()).ok_or(Turn::Nobody)?.claim
        };
        // If the middle is not there, the queue has dropped the events.
        let is_there = in_flight.is(claim, State::PassedOver);
        in_flight.change(if is_there { claim } else { largest }, State::Pending);
        Ok(())
    }

    /// Events were sent, or the filter has dropped those whose turn it was.
    pub(super) fn took_turn(&mut self) {
        self.turn = None;
    }

    /// The consumer has taken something: everything that was passed over is sent, and may share a
    /// request again, unless it is an event that was turned down alone. If the consumer
    /// `judges_events`, such an event may, too.
    pub(super) fn progressed(&mut self, in_flight: &mut InFlight, judges_events: bool) {
        self.turns.progressed();
        (self.failed_objects, self.failed_others) = (0, 0);
        for claim in end_turns(in_flight) {
            in_flight.share(claim, judges_events);
        }
    }

    /// An object of `claims` claims has failed. Returns `true` if it steps aside: after
    /// [`OBJECT_TRIES`] in a row, objects of one other event each are tried, if there are any,
    /// further ahead each time. After [`OTHERS_MAX`] of them, the first object is tried again.
    pub(super) fn object_failed(&mut self, claims: usize, in_flight: &mut InFlight) -> bool {
        match in_flight.has(State::PassedOver) {
            true => self.failed_others += 1,
            false => self.failed_objects += 1,
        }
        let others = in_flight.count(State::Pending) > claims || !in_flight.cursor().is_at_end();
        if self.failed_objects >= OBJECT_TRIES && self.failed_others < OTHERS_MAX && others {
            return true;
        }
        self.failed_others = 0;
        self.turns.begin_again();
        end_turns(in_flight);
        false
    }

    /// The object of these claims steps aside.
    pub(super) fn steps_aside(
        &mut self,
        claims: Vec<Claim>,
        in_flight: &mut InFlight,
        answers: u64,
    ) {
        self.turns.passed_over(self.limits.max_events);
        claims.into_iter().for_each(|claim| pass_over(claim, in_flight, answers));
    }

    /// A pause begins after this failure. `is_ordered`: events are sent in the order of the queue.
    pub(super) fn paused(&mut self, failure: &Failure, is_ordered: bool, in_flight: &InFlight) {
        // If the consumer could not be reached, a new event would end each pause at once: it is
        // never tried, and still waits when the next pause begins. A pause that was asked for a few
        // events, because there were no others, is not one for everything.
        let is_asked = failure.retry_after.is_some() && self.turns.is_over();
        let was_reached = failure.may_be_the_events;
        let can_show = was_reached && !is_asked && in_flight.has(State::PassedOver);
        // Silence would cost a time-out before another event takes its turn.
        let is_quick = !was_reached || failure.reason != AttemptError::Timeout;
        self.turns.paused(can_show, is_ordered && is_quick, was_reached);
    }
}

fn pass_over(claim: Claim, in_flight: &mut InFlight, answers: u64) {
    if let Some(trial) = in_flight.trial_mut(claim) {
        trial.doubted(answers);
    }
    in_flight.change(claim, State::PassedOver);
}

/// Everything that was passed over is sent. Returns its claims.
fn end_turns(in_flight: &mut InFlight) -> Vec<Claim> {
    let claims = in_flight.claims(State::PassedOver);
    claims.iter().for_each(|claim| in_flight.end_turn(*claim));
    claims
}
