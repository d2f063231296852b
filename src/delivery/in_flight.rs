//! The claims that one output has taken from the queue and that are not final: one table from claim
//! to state, and one function for each transition.
//!
//! The cursor of the queue has its own record of each claim (on the wire, released, finished).
//! [`InFlight`] owns the cursor, so that each transition changes both records in one place.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::parked::{ParkedByPosition, Parking};
use crate::position::Position;
use crate::queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};

/// The state of a claim that is not final.
///
/// Each line of this list is a function of [`InFlight`], and the states that it moves a claim from
/// and to:
///
/// ```text
/// function          from                      to
/// claim_next        (not taken yet)           OnWire
/// inherit           (the delivery before)     Pending
/// release           OnWire, Held              Pending
/// split             Pending                   Pending (two claims)
/// redeliver         Pending                   OnWire
/// change            Pending                   Suspect, Parked
/// change            Suspect, Parked           Pending
/// change            all but Held, Burying     Burying
/// hold              OnWire                    Held
/// finish            OnWire, Held, Burying     (final)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The claim was handed to the link, or is about to be handed to it. No answer has come yet.
    OnWire,
    /// The claim is to be sent again, before new events are taken from the queue.
    Pending,
    /// The claim is one event, which the consumer refused when it was sent alone. The claim waits
    /// until the consumer has accepted another event, and is then sent again.
    Suspect,
    /// The claim is one event, which the consumer does not take although it takes others. The claim
    /// waits beside the stream until its next try.
    Parked,
    /// The consumer has accepted the claim, but a claim before it is neither accepted nor given up.
    /// The claim becomes final when that claim is. Until then, it can still be sent again: after
    /// that claim, to keep the order of an ordered output, or while the queue is nearly full, to
    /// show that the consumer works.
    Held,
    /// The claim is given up. It becomes final when its dead letters are written, or when it is
    /// clear that they can't be written.
    Burying,
}

/// Tells whether and how a consumer has refused the events of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusals {
    /// The consumer has not refused the claim.
    None,
    /// The consumer refused the claim, or a larger claim that contained it. All refusals of this
    /// delivery are numbered from 1. The value is the number of the first refusal of this claim.
    InBatch(u64),
    /// The claim is one event, and the consumer refused it when it was sent alone. All refusals of
    /// this delivery are numbered from 1. The value is the number of the first refusal of this
    /// event, alone or in a larger claim.
    Alone(u64),
}

/// The server errors with which the consumer has answered a claim, or a larger claim that contained
/// it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServerErrors {
    pub(super) count: u32,
    /// The number of the error since which the consumer must have accepted something: the first
    /// one; for a single event of an ordered output, the last one that is in `proven`. Server
    /// errors are numbered together with the refusals. `None` if there was none.
    pub(super) since: Option<u64>,
    /// The number of errors with which the consumer has answered a single event of an ordered
    /// output alone, and between which it has accepted other events.
    pub(super) proven: u32,
}

/// The number of server errors after which other claims are sent before a claim, to learn whether
/// the consumer accepts them.
pub(super) const ERRORS_BEFORE_OTHERS: u32 = 2;

/// A claim, and the record of its attempts and refusals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// The positions of the claim's events.
    pub(super) claim: Claim,
    /// The number of the claim's events that are to be sent. It may be smaller than the number of
    /// positions: the filter may keep back events, and events may be missing in the queue.
    pub(super) events: u64,
    /// How many times the claim was sent.
    pub(super) attempts: u32,
    /// The number of refusals that this delivery had seen when the claim was last sent.
    pub(super) sent_at: u64,
    /// The number of the batch in which the claim was last sent. All batches of this delivery are
    /// numbered from 1. Several claims may be sent in one batch.
    pub(super) batch: u64,
    /// `true` if the claim may be sent in one batch with other such claims. As a rule, it is the
    /// rest of a batch of which the consumer took other events.
    pub(super) is_remainder: bool,
    /// `true` if the claim is on the wire and the consumer has taken the request with it, but has
    /// not confirmed the events yet.
    pub(super) is_taken: bool,
    /// `true` if the claim is on the wire although the consumer has accepted an earlier claim that
    /// was sent after it.
    pub(super) is_overtaken: bool,
    /// Tells whether and how the consumer has refused the claim.
    pub(super) refusals: Refusals,
    /// The server errors with which the consumer has answered the claim.
    pub(super) errors: ServerErrors,
    /// The tries of a single event that its consumer does not take although it takes others; `None`
    /// for all other claims.
    pub(super) parking: Option<Parking>,
}

impl Work {
    pub(super) fn new(claim: Claim, events: u64, attempts: u32) -> Self {
        Self {
            claim,
            events,
            attempts,
            sent_at: 0,
            batch: 0,
            is_remainder: false,
            is_taken: false,
            is_overtaken: false,
            refusals: Refusals::None,
            errors: ServerErrors::default(),
            parking: None,
        }
    }
}

/// The claims of one output that are not final, and the output's cursor.
///
/// The delivery loop owns this value. Phases of a claim: [`InFlight::claim_next`] takes it from the
/// queue and puts it on the wire. From there it becomes final ([`InFlight::finish`]), or is
/// released to be sent again ([`InFlight::release`]), and is put on the wire again
/// ([`InFlight::redeliver`]); see [`State`].
///
/// Invariants ([`InFlight::check`] verifies the first one in debug builds):
/// - Each claim is in the table once, in one state, and no two claims overlap.
/// - The cursor has a claim as "on the wire" while the state is `OnWire` or `Held`, and as
///   "released" while it is `Pending`, `Suspect` or `Parked`. A claim that is `Burying` is released
///   until its lines are taken, and on the wire after that.
/// - A `Suspect` is one event, and so is a claim that is `Parked`.
///
/// Two things must never happen: a claim leaves the table without being final (its events would
/// stay in the queue permanently), or a final claim stays in the table (its events would be sent
/// again).
pub(super) struct InFlight {
    cursor: Cursor,
    /// The claims, each with its state. The key is the position of the claim's first event.
    table: BTreeMap<Position, (State, Work)>,
    /// The positions of the first events of the claims in each state.
    sets: [BTreeSet<Position>; State::ALL.len()],
    /// The claims in the state `Parked`, in the order of their next tries.
    due: BTreeSet<(Instant, Position)>,
    /// The parked events whose order is kept ([`Parking::keeps_order`]).
    parked_in_order: BTreeSet<Position>,
    /// The number of claims that the consumer has taken and not confirmed yet.
    taken: usize,
    /// Claims that become final together: see [`InFlight::begin_together`]. `None` if each becomes
    /// final by itself.
    together: Option<Vec<(Claim, Disposition)>>,
}

impl InFlight {
    pub(super) fn new(cursor: Cursor) -> Self {
        Self {
            cursor,
            table: BTreeMap::new(),
            sets: Default::default(),
            due: BTreeSet::new(),
            parked_in_order: BTreeSet::new(),
            taken: 0,
            together: None,
        }
    }

    /// Takes over the claims that the previous delivery of this output did not finish. They are to
    /// be sent again, so they become `Pending`; those in `parked` stay parked. If `are_remainders`
    /// is `true`, several of the `Pending` claims may be sent in one batch.
    pub(super) fn inherit(
        &mut self,
        claims: Vec<Claim>,
        parked: &ParkedByPosition,
        are_remainders: bool,
    ) {
        for claim in claims {
            let parking = parked.get(&claim.start).map(|(parking, _)| parking.inherited());
            let state = if parking.is_some() { State::Parked } else { State::Pending };
            let work = Work::new(claim, claim.end - claim.start, 1);
            self.put(
                state,
                Work { is_remainder: are_remainders && parking.is_none(), parking, ..work },
            );
        }
    }

    /// Returns the cursor. The caller must only call methods that change no claim.
    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Waits until [`InFlight::claim_next`] or [`InFlight::redeliver`] has something to return.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn readable(&mut self) {
        self.cursor.readable().await;
    }

    /// Returns `true` if at least one claim is in this state.
    pub(super) fn has(&self, state: State) -> bool {
        !self.set(state).is_empty()
    }

    /// Returns `true` if a claim on the wire has no answer yet. An answer may also say that the
    /// consumer has taken the request, and that it will confirm the events later.
    pub(super) fn awaits_answer(&self) -> bool {
        self.count(State::OnWire) > self.taken
    }

    /// Returns the number of claims in this state.
    pub(super) fn count(&self, state: State) -> usize {
        self.set(state).len()
    }

    /// Returns the first claim in this state, in the order of the queue; `None` if there is none.
    pub(super) fn first(&self, state: State) -> Option<Work> {
        self.nth(state, 0)
    }

    /// Returns the last claim in this state, in the order of the queue; `None` if there is none.
    pub(super) fn last(&self, state: State) -> Option<Work> {
        let start = self.set(state).last()?;
        self.table.get(start).map(|(_, work)| *work)
    }

    /// Returns the claim in this state that has exactly `before` claims of the same state before it
    /// in the queue; `None` if there is no such claim.
    pub(super) fn nth(&self, state: State, before: usize) -> Option<Work> {
        let start = self.set(state).iter().nth(before)?;
        self.table.get(start).map(|(_, work)| *work)
    }

    /// Returns the claims in this state, in the order of the queue.
    pub(super) fn all(&self, state: State) -> Vec<Work> {
        let found = self.set(state).iter().filter_map(|start| self.table.get(start));
        found.map(|(_, work)| *work).collect()
    }

    /// Returns the position of the first claim that is neither accepted nor given up; `None` if
    /// there is none. Parked events that have left the order do not count.
    fn first_open(&self) -> Option<Position> {
        let open = [State::OnWire, State::Pending, State::Suspect].map(|state| self.set(state));
        open.into_iter().chain([&self.parked_in_order]).filter_map(|set| set.first()).min().copied()
    }

    /// Returns `true` if the event at this position is parked, or is being tried.
    pub(super) fn is_tried(&self, position: Position) -> bool {
        self.table
            .get(&position)
            .is_some_and(|(state, work)| work.parking.is_some() && *state != State::Burying)
    }

    /// Returns `true` if a refused event that keeps its order is parked.
    pub(super) fn has_parked_in_order(&self) -> bool {
        !self.parked_in_order.is_empty()
    }

    /// Returns `true` if a suspect, or a parked event whose order is kept, is before this claim.
    pub(super) fn has_refused_before(&self, claim: Claim) -> bool {
        let refused =
            self.set(State::Suspect).first().into_iter().chain(self.parked_in_order.first());
        refused.min().is_some_and(|first| *first < claim.start)
    }

    /// Returns `true` if a claim before this one in the queue is neither accepted nor given up.
    /// Parked events that have left the order do not count.
    pub(super) fn has_open_before(&self, claim: Claim) -> bool {
        self.first_open().is_some_and(|first| first < claim.start)
    }

    /// Returns `true` if a claim before this one in the queue is neither accepted nor given up, and
    /// the queue has not dropped it.
    pub(super) fn has_undecided_before(&self, claim: Claim) -> bool {
        let states = [State::OnWire, State::Pending, State::Suspect, State::Parked];
        // Only if there is such a claim, the queue is asked for its watermark, which takes its
        // lock.
        states.into_iter().any(|state| {
            let before = self.set(state).range(..claim.start).next_back();
            before.is_some_and(|start| *start >= self.cursor.watermark())
        })
    }

    /// Returns the held claims that can become final, because every claim before them is accepted
    /// or given up.
    pub(super) fn held_before_all_open(&self) -> Vec<Work> {
        if !self.has(State::Held) {
            return Vec::new();
        }
        let held = self.set(State::Held).range(..self.first_open().unwrap_or(Position::MAX));
        held.filter_map(|start| self.table.get(start)).map(|(_, work)| *work).collect()
    }

    /// Returns the moment of the next try of a parked event; `None` if no event is parked.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Returns the parked event that is tried next; `None` if no event is parked.
    pub(super) fn next_parked(&self) -> Option<Work> {
        let (_, start) = self.due.first()?;
        self.table.get(start).map(|(_, work)| *work)
    }

    /// Returns the parked event whose try is due; `None` if there is none.
    pub(super) fn due(&self) -> Option<Work> {
        let is_due = self.next_try().is_some_and(|due| due <= Instant::now());
        self.next_parked().filter(|_| is_due)
    }

    /// Takes the next events of the queue as a new claim, in the state `OnWire`, and returns them.
    /// Returns `None` if the queue has no new event or is closed, or if its next events must first
    /// be read from files ([`InFlight::readable`] waits for that).
    pub(super) fn claim_next(&mut self, take: Take) -> Option<Batch> {
        self.claim_next_as(take, false)
    }

    /// Does the same as [`InFlight::claim_next`]. If `lists` is `true`, the batch may have lists
    /// ([`Cursor::next_as`]).
    pub(super) fn claim_next_as(&mut self, take: Take, lists: bool) -> Option<Batch> {
        let batch = self.cursor.next_as(take, lists)?;
        self.put(State::OnWire, Work::new(batch.claim, batch.events, 0));
        Some(batch)
    }

    /// Takes the events of a released claim from the queue again. A `Pending` claim moves to
    /// `OnWire`, to send it again. A claim that is given up stays `Burying`: its lines become dead
    /// letters. [`Redelivery::Gone`]: the queue has dropped all events of the claim, and the claim
    /// is removed. [`Redelivery::NotYet`]: the events must first be read from files, or the queue
    /// is closed, and the claim keeps its state.
    pub(super) fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let retaken = self.cursor.redeliver(claim);
        match &retaken {
            Redelivery::Batch(batch) => {
                if let Some(&(State::Pending, work)) = self.table.get(&claim.start) {
                    self.put(State::OnWire, Work { events: batch.events, ..work });
                }
            }
            Redelivery::Gone => self.remove(claim.start),
            Redelivery::NotYet => {}
        }
        retaken
    }

    /// Notes that a claim on the wire is being sent, with `events` events, in the batch with the
    /// number `batch`. `refusals` is the number of refusals that this delivery has seen so far.
    /// Returns the claim's entry; `None` if the claim is not in the table.
    pub(super) fn sent(
        &mut self,
        claim: Claim,
        events: u64,
        batch: u64,
        refusals: u64,
    ) -> Option<Work> {
        let (_, work) = self.table.get_mut(&claim.start)?;
        work.events = events;
        work.attempts += 1;
        work.batch = batch;
        work.sent_at = refusals;
        Some(*work)
    }

    /// Returns the first claim that is to be sent again, if it may share a batch that ends at
    /// `end`. It must be the remainder of an earlier batch and lie after `end`. Between them there
    /// must be no claim that is on the wire or may be sent before this batch is answered.
    pub(super) fn next_remainder(&self, end: Position) -> Option<Work> {
        let next = self.first(State::Pending).filter(|work| work.is_remainder)?;
        let start = next.claim.start;
        let others = [State::OnWire, State::Parked, State::Suspect, State::Held];
        let is_free = |state| self.set(state).range(end..start).next().is_none();
        (start >= end && others.into_iter().all(is_free)).then_some(next)
    }

    /// Returns the entry of a claim on the wire about which the connection reports something;
    /// `None` if the claim is not on the wire. If the report is only about the first part of a
    /// claim, the claim is cut in two. The first part is returned, and the second stays on the
    /// wire. `events` is the number of events of the first part that were sent; `None` if the
    /// report does not say it.
    pub(super) fn front_on_wire(&mut self, claim: Claim, events: Option<u64>) -> Option<Work> {
        let whole = self.on_wire_at(claim.start)?;
        let Some((front, rest)) = self.cursor.split_at(whole.claim, claim.end) else {
            return Some(whole);
        };
        let events = events.unwrap_or(front.end - front.start).min(whole.events);
        let work = Work { claim: front, events, ..whole };
        self.put(State::OnWire, work);
        self.put(State::OnWire, Work { claim: rest, events: whole.events - events, ..whole });
        Some(work)
    }

    /// Returns the entries of the claims on the wire about which the connection reports something,
    /// in the order of the queue. Several claims may have been sent as one batch: then `claim` is
    /// the range of positions from the first of them to the last. A claim that reaches beyond
    /// `claim` is cut in two, and the second part stays on the wire. `events` is the number of
    /// events in `claim` that were sent; `None` if the report does not say it.
    pub(super) fn all_on_wire(&mut self, claim: Claim, events: Option<u64>) -> Vec<Work> {
        let Claim { start, end } = claim;
        let Some(first) = self.set(State::OnWire).range(start..end).next().copied() else {
            return Vec::new();
        };
        let batch = self.on_wire_at(first).map_or(0, |work| work.batch);
        let starts: Vec<_> = self.set(State::OnWire).range(first..end).copied().collect();
        let (mut left, mut found) = (events, Vec::new());
        for start in starts {
            let is_of_batch = self.on_wire_at(start).is_some_and(|work| work.batch == batch);
            if is_of_batch && let Some(work) = self.front_on_wire(Claim { start, end }, left) {
                left = left.map(|left| left.saturating_sub(work.events));
                found.push(work);
            }
        }
        found
    }

    /// Returns the entry of the claim on the wire whose first event has the position `start`;
    /// `None` if there is no such claim.
    pub(super) fn on_wire_at(&self, start: Position) -> Option<Work> {
        let (state, work) = self.table.get(&start)?;
        (*state == State::OnWire).then_some(*work)
    }

    /// Notes that the consumer has taken the requests with these claims, and will confirm their
    /// events later. The claims stay on the wire.
    pub(super) fn taken(&mut self, works: Vec<Work>) {
        for work in works {
            self.put(State::OnWire, Work { is_taken: true, ..work });
        }
    }

    /// Notes that the consumer has accepted the claim of `work`. Later claims on the wire that were
    /// sent before it are overtaken.
    pub(super) fn overtake(&mut self, work: &Work) {
        for start in self.sets[State::OnWire as usize].range(work.claim.end..) {
            if let Some((_, later)) = self.table.get_mut(start) {
                later.is_overtaken |= later.batch < work.batch;
            }
        }
    }

    /// Moves a claim from `OnWire` to `Held`: the consumer has accepted it, but a claim before it
    /// is not decided yet. The consumer's earlier answers to the claim do not count any more.
    pub(super) fn hold(&mut self, work: Work) {
        let Work { claim, events, attempts, batch, .. } = work;
        self.put(State::Held, Work { batch, ..Work::new(claim, events, attempts) });
    }

    /// Makes a claim final and removes it from the table. The claim must be `OnWire`, `Held` or
    /// `Burying`. `disposition` counts the claim's events that the consumer did not get.
    pub(super) fn finish(&mut self, claim: Claim, disposition: Disposition) {
        match &mut self.together {
            Some(together) => together.push((claim, disposition)),
            None => self.cursor.acknowledge(claim, disposition),
        }
        self.remove(claim.start);
    }

    /// From now on, finished claims become final only in [`InFlight::end_together`], all at once. A
    /// start begins at the first event that is not final, and must not begin inside an object of
    /// `s3`, which can't be made again from its second half.
    pub(super) fn begin_together(&mut self) {
        self.together.get_or_insert_default();
    }

    /// Makes the claims final that were finished since [`InFlight::begin_together`].
    pub(super) fn end_together(&mut self) {
        // The last claim first: the queue then has its first event that is not final before all of
        // them, until the first claim becomes final.
        for (claim, disposition) in self.together.take().into_iter().flatten().rev() {
            self.cursor.acknowledge(claim, disposition);
        }
    }

    /// Moves a claim from `OnWire` or `Held` to `Pending`, to send it again.
    pub(super) fn release(&mut self, claim: Claim) {
        self.cursor.release(claim);
        self.change(claim, State::Pending);
    }

    /// Splits a `Pending` claim into two claims, which are both `Pending`. Returns the second one;
    /// `None` if the claim can't be split, because it is one event.
    pub(super) fn split(&mut self, work: Work) -> Option<Work> {
        let (left, right) = self.cursor.split(work.claim)?;
        // Each half was sent once, as a part of the whole. The number of events in each half is
        // known only when it is taken again, because positions may have gaps.
        let [left, right] = [left, right].map(|half| {
            let events = work.events.min(half.end - half.start);
            Work { claim: half, events, attempts: 1, ..work }
        });
        self.put(State::Pending, left);
        self.put(State::Pending, right);
        Some(right)
    }

    /// Replaces the entry of a claim. The state of the claim stays the same.
    pub(super) fn note(&mut self, work: Work) {
        if let Some(&(state, _)) = self.table.get(&work.claim.start) {
            self.put(state, work);
        }
    }

    /// Moves a claim to another state that is the same state for the cursor: see the list at
    /// [`State`]. A `Suspect` and a `Parked` claim are one event each.
    pub(super) fn change(&mut self, claim: Claim, state: State) {
        match self.table.get(&claim.start).copied() {
            Some((_, work)) => self.put(state, work),
            None => debug_assert!(false, "no claim at {}", claim.start),
        }
    }

    /// Changes the tries of all parked events.
    pub(super) fn each_parked(&mut self, mut edit: impl FnMut(&mut Parking)) {
        let starts: Vec<_> = self.due.iter().map(|(_, start)| *start).collect();
        for start in starts {
            if let Some((State::Parked, work)) = self.table.get(&start) {
                let mut work = *work;
                work.parking.as_mut().map(&mut edit);
                self.put(State::Parked, work);
            }
        }
    }

    /// Takes a released claim back from the queue without its lines, so that the claim can be
    /// finished, and returns `true`. If the queue has dropped all events of the claim, removes the
    /// claim from the table and returns `false`.
    pub(super) fn take_back(&mut self, claim: Claim) -> bool {
        let is_there = self.cursor.take_back(claim);
        if !is_there {
            self.remove(claim.start);
        }
        is_there
    }

    /// Forgets all claims and sets the cursor back, so that [`InFlight::claim_next`] begins again
    /// with the first event that is not final. Allowed only if no final claim comes after one that
    /// is not final ([`Cursor::is_in_order`]).
    pub(super) fn rewind(&mut self) {
        self.cursor.rewind();
        self.table.clear();
        self.taken = 0;
        self.sets.iter_mut().for_each(BTreeSet::clear);
        self.due.clear();
        self.parked_in_order.clear();
    }

    /// Ends this delivery: releases all claims, so that the next delivery can send them. Returns
    /// the cursor, and the claims that are not final in the order of the queue. If the cursor could
    /// be set back to the first event that is not final, no claims are returned.
    pub(super) fn hand_over(mut self) -> (Cursor, Vec<Claim>) {
        for state in [State::OnWire, State::Held, State::Burying] {
            for work in self.all(state) {
                self.cursor.release(work.claim);
            }
        }
        let mut claims: Vec<_> = self.table.values().map(|(_, work)| work.claim).collect();
        if self.cursor.is_in_order() {
            self.cursor.rewind();
            claims.clear();
        }
        (self.cursor, claims)
    }

    /// Returns the positions of the first events of all claims in this state.
    fn set(&self, state: State) -> &BTreeSet<Position> {
        &self.sets[state as usize]
    }

    /// Puts a claim into the table. A claim that begins at the same position is replaced.
    fn put(&mut self, state: State, mut work: Work) {
        let start = work.claim.start;
        work.is_taken &= state == State::OnWire;
        work.is_overtaken &= state == State::OnWire;
        self.taken += usize::from(work.is_taken);
        if let Some((before, old)) = self.table.insert(start, (state, work)) {
            self.leave(before, &old);
        }
        self.sets[state as usize].insert(start);
        if let (State::Parked, Some(parking)) = (state, work.parking) {
            self.due.insert((parking.due, start));
            if parking.keeps_order() {
                self.parked_in_order.insert(start);
            }
        }
        self.check();
    }

    /// Takes a claim that had this state and this entry out of all sets.
    fn leave(&mut self, state: State, work: &Work) {
        let start = work.claim.start;
        self.sets[state as usize].remove(&start);
        self.taken -= usize::from(work.is_taken);
        self.parked_in_order.remove(&start);
        if let Some(parking) = work.parking {
            self.due.remove(&(parking.due, start));
        }
    }

    /// Removes the claim that begins at `start` from the table, if there is one.
    fn remove(&mut self, start: Position) {
        if let Some((state, work)) = self.table.remove(&start) {
            self.leave(state, &work);
        }
        self.check();
    }

    /// Checks in debug builds that each claim is in one state and that no two claims overlap, and
    /// panics otherwise. With more than 64 claims, it does not compare each claim with its
    /// neighbours, because that would take too long: a delivery may hold 10,000 claims.
    fn check(&self) {
        if cfg!(debug_assertions) {
            let in_sets: usize = State::ALL.into_iter().map(|state| self.count(state)).sum();
            assert_eq!(in_sets, self.table.len(), "each claim is in one state");
            assert!(self.taken <= self.count(State::OnWire), "taken claims are on the wire");
            assert_eq!(
                self.due.len(),
                self.count(State::Parked),
                "each parked claim has its next try"
            );
            if self.table.len() <= 64 {
                let mut end = Position::START;
                for (start, (state, work)) in &self.table {
                    assert!(
                        *start == work.claim.start && *start >= end,
                        "claims overlap at {start}"
                    );
                    assert!(self.set(*state).contains(start), "{start} is not {state:?}");
                    end = work.claim.end;
                }
            }
        }
    }
}

impl State {
    const ALL: [Self; 6] =
        [Self::OnWire, Self::Pending, Self::Suspect, Self::Parked, Self::Held, Self::Burying];
}

#[cfg(test)]
pub(super) mod tests;
