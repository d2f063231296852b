//! The claims that one output has taken from the queue and that are not final: one table from claim
//! to state, and one function for each transition.
//!
//! The cursor of the queue has its own record of each claim (on the wire, released, finished).
//! [`InFlight`] owns the cursor, so that each transition changes both records in one place.

use std::collections::{BTreeMap, BTreeSet};

use super::trial::Trial;
use base::mutant;
use base::position::Position;
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};

/// The state of a claim that is not final.
///
/// Each line of this list is a function of [`InFlight`], and the states that it moves a claim from
/// and to. *Answered* is a claim that its caller holds as a [`Work`], for as long as it decides:
///
/// ```text
/// function            from                      to
/// claim_next          (not taken yet)           OnWire
/// inherit             (the delivery before)     Pending
/// answered            OnWire                    answered
/// stay                answered                  OnWire
/// again, halve        answered                  Pending (halve: two claims)
/// suspect             answered                  Suspect
/// hold                answered                  Held
/// finish              answered                  (final)
/// bury                answered                  Burying
/// redeliver           Pending                   OnWire
/// release             Held, Burying             Pending
/// change              Suspect                   Pending
/// change              Pending, Suspect, OnWire  Burying
/// finish_claim        Held, OnWire, Burying     (final)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The claim was handed to the link, or is about to be handed to it. No answer has come yet.
    OnWire,
    /// The claim is to be sent again, before new events are taken from the queue.
    Pending,
    /// The claim is one event, which the consumer refused when it was sent alone. The claim waits
    /// until the consumer has accepted another event, and is then sent again.
    Suspect,
    /// The consumer has accepted the claim, but a claim before it is neither accepted nor given up.
    /// The claim becomes final when that claim is. Until then, it can still be sent again after
    /// that claim, to keep the order of an ordered output.
    Held,
    /// The claim is given up or set aside. It becomes final when its events are written, or when it
    /// is clear that they can't be written.
    Burying,
}

/// A claim, and the record of its attempts.
///
/// Whoever holds a value has taken the claim out of the table, and gives it back to the function
/// that says what becomes of it. So nobody can act on a record that is not the newest.
#[must_use = "the claim is in no state until it is given back"]
#[derive(Debug)]
pub(crate) struct Work {
    /// The positions of the claim's events.
    pub claim: Claim,
    /// The number of the claim's events that are to be sent. It may be smaller than the number of
    /// positions: the filter may keep back events, and events may be missing in the queue.
    pub events: u64,
    /// How many times the claim was sent.
    pub attempts: u32,
    /// The number of answers by which this delivery had seen something turned down when the claim
    /// was last sent.
    pub sent_at: u64,
    /// The number of the batch in which the claim was last sent. All batches of this delivery are
    /// numbered from 1. Several claims may be sent in one batch.
    pub batch: u64,
    /// `true` if the claim may be sent in one batch with other such claims. As a rule, it is the
    /// rest of a batch of which the consumer took other events.
    pub(super) is_remainder: bool,
    /// `true` if the claim is on the wire and the consumer has taken the request with it, but has
    /// not confirmed the events yet.
    pub is_taken: bool,
    /// `true` if the claim is on the wire although the consumer has accepted an earlier claim that
    /// was sent after it.
    pub(super) is_overtaken: bool,
    /// The answers by which consumers have turned the claim down.
    pub trial: Trial,
}

impl Work {
    pub(crate) fn new(claim: Claim, events: u64, attempts: u32) -> Self {
        Self {
            claim,
            events,
            attempts,
            sent_at: 0,
            batch: 0,
            is_remainder: false,
            is_taken: false,
            is_overtaken: false,
            trial: Trial::default(),
        }
    }

    /// Sets whether the claim may be sent in one batch with others.
    pub(super) fn with_remainder(self, is_remainder: bool) -> Self {
        Self { is_remainder, ..self }
    }

    /// Returns the record of a part of the claim, which has this number of events.
    fn part(&self, claim: Claim, events: u64) -> Self {
        Self { claim, events, ..*self }
    }
}

/// The facts about a batch that is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// The number of the batch.
    pub batch: u64,
    /// The number of answers by which this delivery has seen something turned down.
    pub answers: u64,
}

/// The claims of one output that are not final, and the output's cursor.
///
/// The delivery loop owns this value. Phases of a claim: [`InFlight::claim_next`] takes it from the
/// queue and puts it on the wire. The answer of the consumer takes it out of the table
/// ([`InFlight::answered`]), and the caller gives it back; see [`State`].
///
/// Invariants ([`InFlight::check`] verifies the first one in debug builds):
/// - Each claim is in the table once, in one state, or is held as a [`Work`]. No two claims
///   overlap.
/// - The cursor has a claim as "on the wire" while it is `OnWire`, `Held` or answered, and as
///   "released" while it is `Pending` or `Suspect`. A claim that is `Burying` is released until its
///   lines are taken, and on the wire after that.
/// - A `Suspect` is one event.
///
/// Two things must never happen: a claim leaves the table without being final (its events would
/// stay in the queue permanently), or a final claim stays in the table (its events would be sent
/// again).
pub(crate) struct InFlight {
    cursor: Cursor,
    /// The claims, each with its state. The key is the position of the claim's first event.
    table: BTreeMap<Position, (State, Work)>,
    /// The positions of the first events of the claims in each state.
    sets: [BTreeSet<Position>; State::ALL.len()],
    /// The number of claims that the consumer has taken and not confirmed yet.
    taken: usize,
    /// Claims that become final together: see [`InFlight::begin_together`]. `None` if each becomes
    /// final by itself.
    together: Option<Vec<(Claim, Disposition)>>,
}

impl InFlight {
    pub(crate) fn new(cursor: Cursor) -> Self {
        Self { cursor, table: BTreeMap::new(), sets: Default::default(), taken: 0, together: None }
    }

    /// Takes over the claims that the previous delivery of this output did not finish. They are to
    /// be sent again, so they become `Pending`. If `are_remainders` is `true`, several of them may
    /// be sent in one batch.
    pub(super) fn inherit(&mut self, claims: Vec<Claim>, are_remainders: bool) {
        for claim in claims {
            let work = Work::new(claim, claim.end - claim.start, 1);
            self.put(State::Pending, Work { is_remainder: are_remainders, ..work });
        }
    }

    /// Returns the cursor. The caller must only call methods that change no claim.
    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Waits until [`InFlight::claim_next`] or [`InFlight::redeliver`] has something to return.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn readable(&mut self) {
        self.cursor.readable().await;
    }

    /// Returns `true` if at least one claim is in this state.
    pub(crate) fn has(&self, state: State) -> bool {
        !self.set(state).is_empty()
    }

    /// Returns `true` if a claim on the wire has no answer yet. An answer may also say that the
    /// consumer has taken the request, and that it will confirm the events later.
    pub(super) fn awaits_answer(&self) -> bool {
        self.count(State::OnWire) > self.taken
    }

    /// Returns the number of claims in this state.
    pub(crate) fn count(&self, state: State) -> usize {
        self.set(state).len()
    }

    /// Returns the first claim in this state, in the order of the queue; `None` if there is none.
    pub(crate) fn first(&self, state: State) -> Option<&Work> {
        self.get(*self.set(state).first()?)
    }

    /// Returns the last claim in this state, in the order of the queue; `None` if there is none.
    pub(crate) fn last(&self, state: State) -> Option<&Work> {
        self.get(*self.set(state).last()?)
    }

    /// Returns the claim in this state that has exactly `before` claims of the same state before it
    /// in the queue; `None` if there is no such claim.
    pub(crate) fn nth(&self, state: State, before: usize) -> Option<&Work> {
        self.get(*self.set(state).iter().nth(before)?)
    }

    /// Returns the claims in this state, in the order of the queue.
    pub(crate) fn all(&self, state: State) -> impl Iterator<Item = &Work> {
        self.set(state).iter().filter_map(|start| self.get(*start))
    }

    /// Returns the positions of the claims in this state, in the order of the queue.
    pub(crate) fn claims(&self, state: State) -> Vec<Claim> {
        self.all(state).map(|work| work.claim).collect()
    }

    fn get(&self, start: Position) -> Option<&Work> {
        self.table.get(&start).map(|(_, work)| work)
    }

    /// Returns the position of the first claim that is neither held nor final; `None` if there is
    /// none. A claim that is `Burying` is one of them: a reload takes it back, and the next
    /// delivery sends it, so what is behind it may have to be sent again after it.
    pub(super) fn first_open(&self) -> Option<Position> {
        let open = [
            State::OnWire,
            mutant!("final-before-refused-ones", State::Pending, State::Suspect),
            State::Suspect,
            State::Burying,
        ];
        open.into_iter().filter_map(|state| self.set(state).first()).min().copied()
    }

    /// Returns the held claims that can become final, because every claim before them is accepted,
    /// or was given up and is final.
    pub(super) fn held_before_all_open(&self) -> Vec<Claim> {
        if !self.has(State::Held) {
            return Vec::new();
        }
        let held = self.set(State::Held).range(..self.first_open().unwrap_or(Position::MAX));
        held.filter_map(|start| self.get(*start)).map(|work| work.claim).collect()
    }

    /// Takes the next events of the queue as a new claim, in the state `OnWire`, and returns them.
    /// Returns `None` if the queue has none, if it is closed, or if its next events must first be
    /// read from files ([`InFlight::readable`] waits for that).
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
    /// `OnWire`, to send it again. A claim that is `Burying` keeps its state: its lines are
    /// written. [`Redelivery::Gone`]: the queue has dropped all events of the claim, and the claim
    /// is removed. [`Redelivery::NotYet`]: the events must first be read from files, or the queue
    /// is closed, and the claim keeps its state.
    pub(crate) fn redeliver(&mut self, claim: Claim) -> Redelivery {
        let retaken = self.cursor.redeliver(claim);
        match &retaken {
            Redelivery::Batch(batch) => {
                if let Some((State::Pending, work)) = self.table.get(&claim.start) {
                    let work = work.part(work.claim, batch.events);
                    self.put(State::OnWire, work);
                }
            }
            Redelivery::Gone => {
                self.remove(claim.start);
            }
            Redelivery::NotYet => {}
        }
        retaken
    }

    /// Notes that a claim on the wire is being sent, with `events` events. Returns its entry;
    /// `None` if the claim is not in the table.
    pub(crate) fn sent(&mut self, claim: Claim, events: u64, sent: Sent) -> Option<&Work> {
        let (_, work) = self.table.get_mut(&claim.start)?;
        work.events = events;
        work.attempts += 1;
        work.batch = sent.batch;
        work.sent_at = sent.answers;
        Some(work)
    }

    /// Returns the first claim that is to be sent again, if it may share a batch that ends at
    /// `end`. It must be the remainder of an earlier batch and lie after `end`. Between them there
    /// must be no claim that is on the wire or may be sent before this batch is answered.
    pub(super) fn next_remainder(&self, end: Position) -> Option<Claim> {
        let next = self.first(State::Pending).filter(|work| work.is_remainder)?;
        let start = next.claim.start;
        let others = [State::OnWire, State::Suspect, State::Held];
        let is_free = |state| self.set(state).range(end..start).next().is_none();
        (start >= end && others.into_iter().all(is_free)).then_some(next.claim)
    }

    /// Takes the claim on the wire that begins at `claim.start` out of the table, because the
    /// connection reports something about it; `None` if the claim is not on the wire. If the report
    /// is only about the first part of a claim, the claim is cut in two: the first part is
    /// returned, and the second stays on the wire. `events` is the number of events of the first
    /// part that were sent; `None` if the report does not say it.
    pub(super) fn front_on_wire(&mut self, claim: Claim, events: Option<u64>) -> Option<Work> {
        let (State::OnWire, work) = self.table.get(&claim.start)? else { return None };
        let whole = work.claim;
        let cut = self.cursor.split_at(whole, claim.end);
        let work = self.remove(whole.start)?;
        let Some((front, rest)) = cut else { return Some(work) };
        let events = events.unwrap_or(front.end - front.start).min(work.events);
        self.put(State::OnWire, work.part(rest, work.events - events));
        Some(Work { is_taken: false, ..work.part(front, events) })
    }

    /// Takes the claims on the wire about which the connection reports something out of the table,
    /// and returns them in the order of the queue. Several claims may have been sent as one batch:
    /// then `claim` is the range of positions from the first of them to the last. A claim that
    /// reaches beyond `claim` is cut in two, and the second part stays on the wire. `events` is the
    /// number of events in `claim` that were sent; `None` if the report does not say it.
    pub(crate) fn answered(&mut self, claim: Claim, events: Option<u64>) -> Vec<Work> {
        let Claim { start, end } = claim;
        let on_wire = self.set(State::OnWire).range(start..end);
        let batch_of = |start: &Position| self.get(*start).map(|work| work.batch);
        let batch = on_wire.clone().next().and_then(batch_of);
        let of_batch = on_wire.filter(|start| batch_of(start) == batch);
        let starts: Vec<_> = of_batch.copied().collect();
        let (mut left, mut found) = (events, Vec::with_capacity(starts.len()));
        for start in starts {
            if let Some(work) = self.front_on_wire(Claim { start, end }, left) {
                left = left.map(|left| left.saturating_sub(work.events));
                found.push(work);
            }
        }
        found
    }

    /// Puts a claim back on the wire: it has been cut off another one, or its events will be
    /// confirmed later.
    pub(crate) fn stay(&mut self, work: Work) {
        self.put(State::OnWire, work);
    }

    /// Notes that the consumer has accepted a claim that was sent in the batch with this number.
    /// Later claims on the wire that were sent before it are overtaken.
    pub(super) fn overtake(&mut self, claim: Claim, batch: u64) {
        for start in self.sets[State::OnWire as usize].range(claim.end..) {
            if let Some((_, later)) = self.table.get_mut(start) {
                later.is_overtaken |= later.batch < batch;
            }
        }
    }

    /// Holds a claim that the consumer has accepted: a claim before it is not decided yet. The
    /// consumer's earlier answers to the claim do not count any more.
    pub(crate) fn hold(&mut self, work: Work) {
        let Work { claim, events, attempts, batch, .. } = work;
        self.put(State::Held, Work { batch, ..Work::new(claim, events, attempts) });
    }

    /// Makes a claim final. `disposition` counts the claim's events that the consumer did not get.
    pub(crate) fn finish(&mut self, work: Work, disposition: Disposition) {
        self.acknowledge(work.claim, disposition);
    }

    /// Makes a claim in the table final. It must be `OnWire`, `Held` or `Burying`.
    pub(super) fn finish_claim(&mut self, claim: Claim, disposition: Disposition) {
        self.acknowledge(claim, disposition);
        self.remove(claim.start);
    }

    /// Makes a claim that is `Burying` final, because its one event, which has this number of
    /// bytes, is set aside.
    pub(crate) fn set_aside(&mut self, claim: Claim, bytes: u64) {
        self.cursor.set_aside(claim, bytes);
        self.remove(claim.start);
    }

    fn acknowledge(&mut self, claim: Claim, disposition: Disposition) {
        match &mut self.together {
            Some(together) => together.push((claim, disposition)),
            None => self.cursor.acknowledge(claim, disposition),
        }
    }

    /// From now on, finished claims become final only in [`InFlight::end_together`], all at once. A
    /// start begins at the first event that is not final, and must not begin inside an object of
    /// `s3`, which can't be made again from its second half.
    pub(super) fn begin_together(&mut self) {
        mutant!("object-ends-in-parts", self.together.get_or_insert_default());
    }

    /// Makes the claims final that were finished since [`InFlight::begin_together`].
    pub(super) fn end_together(&mut self) {
        // The last claim first: the queue then has its first event that is not final before all of
        // them, until the first claim becomes final.
        for (claim, disposition) in self.together.take().into_iter().flatten().rev() {
            self.cursor.acknowledge(claim, disposition);
        }
    }

    /// Makes a claim `Pending`, to send it again.
    pub(crate) fn again(&mut self, work: Work) {
        self.cursor.release(work.claim);
        self.put(State::Pending, work);
    }

    /// Makes a claim of one event a suspect.
    pub(crate) fn suspect(&mut self, work: Work) {
        self.cursor.release(work.claim);
        self.put(State::Suspect, work);
    }

    /// Notes that a claim is given up or set aside. Its lines are to be read and written.
    pub(super) fn bury(&mut self, work: Work) {
        self.cursor.release(work.claim);
        self.put(State::Burying, work);
    }

    /// Makes a claim `Pending`, to send it again: it is held, or its event could not be set aside.
    pub(super) fn release(&mut self, claim: Claim) {
        self.cursor.release(claim);
        self.change(claim, State::Pending);
    }

    /// Splits a claim into two claims, which are both `Pending`. Returns the claim if it can't be
    /// split, because it is one event.
    pub(super) fn halve(&mut self, work: Work) -> Result<(), Work> {
        let Some((left, right)) = self.cursor.split(work.claim) else { return Err(work) };
        // Each half was sent once, as a part of the whole. The number of events in each half is
        // known only when it is taken again, because positions may have gaps.
        for half in [left, right] {
            let events = work.events.min(half.end - half.start);
            self.again(Work { attempts: 1, ..work.part(half, events) });
        }
        Ok(())
    }

    /// Splits a `Pending` claim into two claims, which are both `Pending`. Returns the second one;
    /// `None` if the claim can't be split, because it is one event.
    pub(super) fn split_pending(&mut self, claim: Claim) -> Option<Claim> {
        let right = self.cursor.split(claim)?.1;
        let work = self.remove(claim.start)?;
        for half in [Claim { end: right.start, ..claim }, right] {
            let events = work.events.min(half.end - half.start);
            self.put(State::Pending, Work { attempts: 1, ..work.part(half, events) });
        }
        Some(right)
    }

    /// Moves a claim to another state that is the same state for the cursor: see the list at
    /// [`State`]. A `Suspect` is one event.
    ///
    /// # Panics
    ///
    /// If there is no such claim: it would be forgotten, and its events would wait for ever.
    pub(crate) fn change(&mut self, claim: Claim, state: State) {
        match self.remove(claim.start) {
            Some(work) => self.put(state, work),
            None => unreachable!("no claim at {}", claim.start),
        }
    }

    /// Takes a released claim back from the queue without its lines, so that the claim can be
    /// finished, and returns `true`. If the queue has dropped all events of the claim, removes the
    /// claim from the table and returns `false`.
    pub(crate) fn take_back(&mut self, claim: Claim) -> bool {
        let is_there = self.cursor.take_back(claim);
        if !is_there {
            self.remove(claim.start);
        }
        is_there
    }

    /// Forgets all claims and sets the cursor back, so that [`InFlight::claim_next`] begins again
    /// with the first event that is not final. Allowed only if no final claim comes after one that
    /// is not final ([`Cursor::is_in_order`]).
    pub(crate) fn rewind(&mut self) {
        self.cursor.rewind();
        self.table.clear();
        self.taken = 0;
        self.sets.iter_mut().for_each(BTreeSet::clear);
    }

    /// Ends this delivery: releases all claims, so that the next delivery can send them. Returns
    /// the cursor, and the claims that are not final in the order of the queue. If the cursor could
    /// be set back to the first event that is not final, no claims are returned.
    pub(super) fn hand_over(mut self) -> (Cursor, Vec<Claim>) {
        for state in [State::OnWire, State::Held, State::Burying] {
            self.claims(state).into_iter().for_each(|claim| self.cursor.release(claim));
        }
        mutant!(
            "reload-forgets-held-claims",
            {},
            self.table.retain(|_, (state, _)| *state != State::Held)
        );
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
        self.check();
    }

    /// Takes a claim that had this state and this entry out of all sets.
    fn leave(&mut self, state: State, work: &Work) {
        self.sets[state as usize].remove(&work.claim.start);
        self.taken -= usize::from(work.is_taken);
    }

    /// Removes the claim that begins at `start` from the table, and returns it; `None` if there is
    /// none.
    fn remove(&mut self, start: Position) -> Option<Work> {
        let (state, work) = self.table.remove(&start)?;
        self.leave(state, &work);
        self.check();
        Some(work)
    }

    /// Checks that each claim is in one state. Debug builds also check that no two claims overlap;
    /// with more than 64 claims this would take too long, because a delivery may hold 10,000.
    ///
    /// # Panics
    ///
    /// If one of the two does not hold.
    fn check(&self) {
        let in_sets: usize = self.sets.iter().map(BTreeSet::len).sum();
        assert!(in_sets == self.table.len(), "each claim is in one state");
        assert!(self.taken <= self.count(State::OnWire), "taken claims are on the wire");
        if cfg!(debug_assertions) && self.table.len() <= 64 {
            let mut end = Position::START;
            for (start, (state, work)) in &self.table {
                assert!(*start == work.claim.start && *start >= end, "claims overlap at {start}");
                assert!(self.set(*state).contains(start), "{start} is not {state:?}");
                end = work.claim.end;
            }
        }
    }
}

impl State {
    const ALL: [Self; 5] = [Self::OnWire, Self::Pending, Self::Suspect, Self::Held, Self::Burying];
}

#[cfg(test)]
pub(super) mod tests;
