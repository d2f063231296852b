//! The claims that one output has taken from the queue and that are not final. The queue's cursor
//! has its own record of each claim (on the wire, released, finished). [`InFlight`] owns the
//! cursor, so that each transition changes both records in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::trial::Trial;
use base::position::Position;
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};

/// The first pause before an event that can't be set aside is tried again, and the longest one.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The rest after such a try, in times of what the try took.
const REST: u32 = 9;

/// The state of a claim that is not final.
///
/// The list shows which functions of [`InFlight`] move a claim from one state to another. An
/// *answered* claim is in no state: a caller owns it as a [`Work`] until the caller has decided.
///
/// ```text
/// function            from                      to
/// claim_next          (not taken yet)           OnWire
/// inherit             (the delivery before)     Pending
/// answered            OnWire                    answered
/// front_on_wire       OnWire                    answered
/// stay                answered                  OnWire
/// give_back           answered                  Pending, PassedOver, Burying
/// hold                answered                  Held
/// redeliver           Pending                   OnWire
/// release             Held                      Pending
/// wait                Burying                   Waiting
/// end_wait            Waiting                   Pending
/// end_turn            PassedOver                Pending, Waiting
/// change              PassedOver, Pending       Pending, PassedOver
/// change              Pending, PassedOver       Burying
/// change              OnWire                    Burying
/// finish              answered                  (final)
/// finish_claim        Held, OnWire, Burying     (final)
/// set_aside           Burying                   (set aside)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The claim was handed to the link, or is about to be. Its result is not known.
    OnWire,
    /// The claim waits to be sent again.
    Pending,
    /// An event that was turned down alone, or events that were passed over. They become `Pending`
    /// when the consumer accepts something. While it accepts nothing, one of them may be tried.
    PassedOver,
    /// The consumer has accepted the claim, but the output is ordered and an earlier claim is not
    /// decided. If the earlier claim is sent again, this one may be sent again after it.
    Held,
    /// The claim is given up or set aside. Before it becomes final, its events may have to be
    /// written to a file. An event that can't be set aside is `Waiting`.
    Burying,
    /// An event that the consumer turns down, and that can't be set aside, because the disk or the
    /// room for such events is full. Or an event for which alone the consumer has asked for a
    /// pause. It waits here for its next try, and holds up no other claim.
    Waiting,
}

/// A claim, and the record of its attempts. A caller that owns this value has taken the claim out
/// of the table, and must give it back to a function of [`InFlight`].
#[must_use = "the claim is in no state until it is given back"]
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub claim: Claim,
    /// The number of events that were sent last, without those that the filter or the queue has
    /// dropped. Before that, at most this many are sent.
    pub events: u64,
    /// The number of attempts that count. The halves of a split claim, and the claims of the
    /// previous delivery, begin with 1.
    pub attempts: u32,
    /// The number of responses that had turned something down when the claim was last sent.
    pub sent_at: u64,
    /// The number of the last batch with this claim (and maybe others), counted from 1.
    pub batch: u64,
    /// `true` if the claim may share a batch with other remainders. Most remainders are the rest of
    /// a batch that the consumer has taken in part.
    pub(super) is_remainder: bool,
    /// `true` if the claim is on the wire and the consumer will confirm it later.
    pub is_taken: bool,
    /// `true` if an earlier claim was sent after this one and accepted before it.
    pub(super) is_overtaken: bool,
    /// The responses by which consumers have turned the claim down.
    pub trial: Trial,
    /// The next try of a claim that is `Waiting`. If it is `PassedOver`, the end of the pause that
    /// the consumer has asked for it.
    pub(super) due: Option<Instant>,
    /// The number of times that the event could not be set aside.
    pub(super) waits: u32,
}

impl Work {
    pub(crate) fn new(claim: Claim, events: u64, attempts: u32) -> Self {
        Self { claim, events, attempts, ..Self::default() }
    }

    pub(super) fn with_remainder(self, is_remainder: bool) -> Self {
        Self { is_remainder, ..self }
    }

    /// Returns `true` during the pause that the consumer has asked for this event.
    pub(super) fn rests(&self) -> bool {
        self.due.is_some_and(|due| due > Instant::now())
    }

    fn part(&self, claim: Claim, events: u64) -> Self {
        Self { claim, events, ..*self }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub batch: u64,
    /// The number of responses in this delivery that have turned something down.
    pub answers: u64,
}

/// The claims of one output that are not final, and the output's cursor. The delivery loop owns
/// this value. [`State`] shows the life of a claim.
///
/// Invariants ([`InFlight::check`] verifies the first one):
/// - Each claim is in the table once, in one state, or a caller owns it as a [`Work`]. No two
///   claims overlap.
/// - The cursor has a claim as "on the wire" while it is `OnWire`, `Held` or answered, and as
///   "released" while it is `Pending` or `PassedOver`. A claim that is `Burying` is released until
///   its lines are taken, and on the wire after that.
///
/// Two things must never happen: a claim leaves the table without being final (its events would
/// stay in the queue permanently), or a final claim stays in it (its events would be sent again).
pub(crate) struct InFlight {
    cursor: Cursor,
    /// The key is the position of the claim's first event.
    table: BTreeMap<Position, (State, Work)>,
    sets: [BTreeSet<Position>; State::ALL.len()],
    taken: usize,
    /// The claims that are `Waiting`, in the order of their next tries.
    due: BTreeSet<(Instant, Position)>,
    /// The last of them that was tried, and the moment of its try.
    tried: Option<(Position, Instant)>,
    /// None of them is tried before this moment, so that other events get most of the time.
    rests_until: Option<Instant>,
    /// Claims that become final together: see [`InFlight::begin_together`].
    together: Option<Vec<(Claim, Disposition)>>,
}

impl InFlight {
    pub(crate) fn new(cursor: Cursor) -> Self {
        let (table, sets) = (BTreeMap::new(), Default::default());
        let due = BTreeSet::new();
        Self { cursor, table, sets, taken: 0, due, tried: None, rests_until: None, together: None }
    }

    /// Takes over the unfinished claims of the previous delivery, as remainders if
    /// `are_remainders`.
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

    /// Waits until [`InFlight::claim_next`] or [`InFlight::redeliver`] may return a batch. Nothing
    /// is lost when the future is dropped.
    pub(crate) async fn readable(&mut self) {
        self.cursor.readable().await;
    }

    pub(crate) fn has(&self, state: State) -> bool {
        !self.set(state).is_empty()
    }

    /// Returns `true` if a claim on the wire has no response at all, not even [`Work::is_taken`].
    pub(super) fn awaits_answer(&self) -> bool {
        self.count(State::OnWire) > self.taken
    }

    /// Returns `true` if the consumer has taken claims that it has not confirmed yet.
    pub(super) fn has_taken(&self) -> bool {
        self.taken > 0
    }

    pub(crate) fn count(&self, state: State) -> usize {
        self.set(state).len()
    }

    pub(super) fn is(&self, claim: Claim, state: State) -> bool {
        let there = self.table.get(&claim.start);
        there.is_some_and(|(is, work)| *is == state && work.claim == claim)
    }

    pub(crate) fn first(&self, state: State) -> Option<&Work> {
        self.get(*self.set(state).first()?)
    }

    /// Returns the claim that has `before` other claims of this state before it.
    pub(crate) fn nth(&self, state: State, before: usize) -> Option<&Work> {
        self.get(*self.set(state).iter().nth(before)?)
    }

    pub(crate) fn all(&self, state: State) -> impl Iterator<Item = &Work> {
        self.set(state).iter().filter_map(|start| self.get(*start))
    }

    pub(crate) fn claims(&self, state: State) -> Vec<Claim> {
        self.all(state).map(|work| work.claim).collect()
    }

    pub(crate) fn get(&self, start: Position) -> Option<&Work> {
        self.table.get(&start).map(|(_, work)| work)
    }

    /// Returns `true` if a claim was turned down or passed over.
    pub(super) fn has_doubted(&self) -> bool {
        self.table.values().any(|(_, work)| work.trial.is_doubted())
    }

    /// Returns the first position of the claims that are not decided. A `Burying` claim is not
    /// decided: a reload takes it back, and later claims may have to be sent again after it.
    pub(super) fn first_open(&self) -> Option<Position> {
        let open = [State::OnWire, State::Pending, State::PassedOver, State::Burying];
        open.into_iter().filter_map(|state| self.set(state).first()).min().copied()
    }

    /// Returns each held claim that has no undecided claim before it.
    pub(super) fn held_before_all_open(&self) -> Vec<Claim> {
        if !self.has(State::Held) {
            return Vec::new();
        }
        let held = self.set(State::Held).range(..self.first_open().unwrap_or(Position::MAX));
        held.filter_map(|start| self.get(*start)).map(|work| work.claim).collect()
    }

    /// Takes a new claim, in the state `OnWire`, with `lists` as in [`Cursor::next_as`]. Returns
    /// `None` if the queue is empty or closed, or if events must first be read from files
    /// ([`InFlight::readable`]).
    pub(super) fn claim_next(&mut self, take: Take, lists: bool) -> Option<Batch> {
        let batch = self.cursor.next_as(take, lists)?;
        self.put(State::OnWire, Work::new(batch.claim, batch.events, 0));
        Some(batch)
    }

    /// Takes a released claim from the queue again, with its lines. A `Pending` claim moves to
    /// `OnWire`. [`Redelivery::Gone`]: the queue has dropped the claim, and the table no longer has
    /// it. [`Redelivery::NotYet`]: the lines must first be read from files, or the queue is closed.
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

    pub(crate) fn sent(&mut self, claim: Claim, events: u64, sent: Sent) -> Option<&Work> {
        let (_, work) = self.table.get_mut(&claim.start)?;
        work.events = events;
        work.attempts += 1;
        work.batch = sent.batch;
        work.sent_at = sent.answers;
        Some(work)
    }

    /// Returns the first pending claim if it may share a batch that ends at `end`. It must be a
    /// remainder that starts at or after `end`. No claim in between may be on the wire, held or
    /// passed over.
    pub(super) fn next_remainder(&self, end: Position) -> Option<Claim> {
        let next = self.first(State::Pending).filter(|work| work.is_remainder)?;
        let start = next.claim.start;
        let others = [State::OnWire, State::PassedOver, State::Held];
        let is_free = |state| self.set(state).range(end..start).next().is_none();
        (start >= end && others.into_iter().all(is_free)).then_some(next.claim)
    }

    /// Takes the claim on the wire that begins at `claim.start` out of the table. If it ends after
    /// `claim.end`, only its first part is taken, and the second part stays on the wire. `events`
    /// is the number of sent events in the first part, if it is known.
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

    /// Takes the claims of a report out of the table. They are on the wire and belong to one batch.
    /// `claim` ranges from the first to the last, and `events` is the number of their sent events,
    /// if the report says it. If the last one reaches beyond `claim`, its second part stays on the
    /// wire.
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

    /// Puts an answered claim back on the wire, until it is confirmed, cut or given up.
    pub(crate) fn stay(&mut self, work: Work) {
        self.put(State::OnWire, work);
    }

    /// Marks each claim on the wire after `claim` as overtaken, if it was sent before `batch`.
    pub(super) fn overtake(&mut self, claim: Claim, batch: u64) {
        for start in self.sets[State::OnWire as usize].range(claim.end..) {
            if let Some((_, later)) = self.table.get_mut(start) {
                later.is_overtaken |= later.batch < batch;
            }
        }
    }

    /// Makes an accepted claim held. Earlier responses that turned it down do not count any more.
    pub(crate) fn hold(&mut self, work: Work) {
        let Work { claim, events, attempts, batch, .. } = work;
        self.put(State::Held, Work { batch, ..Work::new(claim, events, attempts) });
    }

    /// Makes an answered claim final. Between [`InFlight::begin_together`] and
    /// [`InFlight::end_together`], the claim becomes final only at the latter. `disposition` counts
    /// the events that the consumer did not get.
    pub(crate) fn finish(&mut self, work: Work, disposition: Disposition) {
        self.acknowledge(work.claim, disposition);
    }

    /// Makes a claim final that is `OnWire`, `Held` or `Burying`.
    pub(super) fn finish_claim(&mut self, claim: Claim, disposition: Disposition) {
        self.acknowledge(claim, disposition);
        self.remove(claim.start);
    }

    /// See [`Cursor::set_aside`].
    pub(crate) fn set_aside(&mut self, claim: Claim, line: &[u8]) -> Option<Weak<Bytes>> {
        let kept = self.cursor.set_aside(claim, line);
        self.remove(claim.start);
        kept
    }

    fn acknowledge(&mut self, claim: Claim, disposition: Disposition) {
        match &mut self.together {
            Some(together) => together.push((claim, disposition)),
            None => self.cursor.acknowledge(claim, disposition),
        }
    }

    /// From now on, finished claims become final only in [`InFlight::end_together`]. So a restart
    /// begins inside an object of `s3` only while dead letters are in progress.
    pub(super) fn begin_together(&mut self) {
        self.together.get_or_insert_default();
    }

    pub(super) fn end_together(&mut self) {
        // The last claim first: until the first claim becomes final, the first event that is not
        // final is before all of them.
        for (claim, disposition) in self.together.take().into_iter().flatten().rev() {
            self.cursor.acknowledge(claim, disposition);
        }
    }

    /// Releases an answered claim, and puts it into this state: `Pending`, `PassedOver` or
    /// `Burying`.
    pub(crate) fn give_back(&mut self, work: Work, state: State) {
        self.cursor.release(work.claim);
        self.put(state, work);
    }

    /// Makes a held claim pending.
    pub(super) fn release(&mut self, claim: Claim) {
        self.cursor.release(claim);
        self.change(claim, State::Pending);
    }

    /// Makes a claim wait whose event could not be set aside. Each pause is twice as long as the
    /// one before.
    pub(super) fn wait(&mut self, claim: Claim) {
        self.cursor.release(claim);
        self.end_try(claim);
        let Some(work) = self.remove(claim.start) else { return };
        let pause = (WAIT_MIN * (1 << work.waits.min(8))).min(WAIT_MAX);
        let (due, waits) = (Some(Instant::now() + pause), work.waits.saturating_add(1));
        self.put(State::Waiting, Work { due, waits, ..work });
    }

    /// The consumer takes others: a claim that was passed over becomes pending, or waits until the
    /// end of the pause that the consumer has asked for it alone.
    pub(super) fn end_turn(&mut self, claim: Claim) {
        if !self.get(claim.start).is_some_and(Work::rests) {
            return self.change(claim, State::Pending);
        }
        self.end_try(claim);
        let Some(work) = self.remove(claim.start) else { return };
        self.put(State::Waiting, Work { waits: work.waits.max(1), ..work });
    }

    /// Ends the try of a claim that has waited, if it is this one: it waits again.
    fn end_try(&mut self, claim: Claim) {
        if let Some((_, at)) = self.tried.take_if(|(tried, _)| *tried == claim.start) {
            self.rests_until = Some(Instant::now() + at.elapsed() * REST);
        }
    }

    /// Returns the moment of the next try of a claim that waits. `None` if none waits, or while one
    /// is being tried: they are tried one at a time.
    pub(super) fn next_wait(&self) -> Option<Instant> {
        let (due, _) = *self.due.first()?;
        (!self.is_tried(None)).then_some(self.rests_until.map_or(due, |rest| due.max(rest)))
    }

    /// Returns `true` if a claim that has waited is being tried, in this state or, with `None`, in
    /// any.
    pub(super) fn is_tried(&self, state: Option<State>) -> bool {
        let tried = self.tried.and_then(|(position, _)| self.table.get(&position));
        tried.is_some_and(|(is, _)| state.is_none_or(|state| *is == state))
    }

    /// Makes the claim pending whose try is due first.
    pub(super) fn end_wait(&mut self) -> Option<Claim> {
        let (_, position) = *self.due.first()?;
        let claim = self.get(position)?.claim;
        self.change(claim, State::Pending);
        self.tried = Some((position, Instant::now()));
        Some(claim)
    }

    /// Makes all claims pending that wait, because the drain has begun, and ends the pauses that
    /// the consumer has asked for single events.
    pub(super) fn end_waits(&mut self) {
        while self.end_wait().is_some() {}
        for claim in self.claims(State::PassedOver) {
            if let Some((_, work)) = self.table.get_mut(&claim.start) {
                work.due = None;
            }
        }
    }

    /// Cuts a released claim at a position inside it. Both parts keep the claim's state. Each
    /// counts as sent once, because later events may have been sent before it.
    pub(super) fn cut(&mut self, claim: Claim, at: Position) {
        let Some((state, _)) = self.table.get(&claim.start) else { return };
        let state = *state;
        let Some((left, right)) = self.cursor.split_at(claim, at) else { return };
        let Some(work) = self.remove(claim.start) else { return };
        for part in [left, right] {
            let events = work.events.min(part.end - part.start);
            self.put(state, Work { attempts: 1, ..work.part(part, events) });
        }
    }

    /// Lets a claim share a batch with other remainders. An event that was turned down alone does
    /// so only if the consumer judges each event.
    pub(super) fn share(&mut self, claim: Claim, judges_events: bool) {
        if let Some((_, work)) = self.table.get_mut(&claim.start) {
            work.is_remainder |= judges_events || !work.trial.was_alone();
        }
    }

    /// Changes a claim's record of failures.
    pub(super) fn trial_mut(&mut self, claim: Claim) -> Option<&mut Trial> {
        self.table.get_mut(&claim.start).map(|(_, work)| &mut work.trial)
    }

    /// Moves a claim to another state. The cursor's record of the claim does not change, and must
    /// fit both states. Panics if there is no such claim: a forgotten claim would never become
    /// final.
    pub(crate) fn change(&mut self, claim: Claim, state: State) {
        match self.remove(claim.start) {
            Some(work) => self.put(state, work),
            None => unreachable!("no claim at {}", claim.start),
        }
    }

    /// Takes a released claim from the queue without its lines, to finish it. If the queue has
    /// dropped the events, removes the claim and returns `false`.
    pub(crate) fn take_back(&mut self, claim: Claim) -> bool {
        let is_there = self.cursor.take_back(claim);
        if !is_there {
            self.remove(claim.start);
        }
        is_there
    }

    /// Forgets all claims, and sets the cursor back to the first event that is not final. Allowed
    /// only if no final claim comes after one that is not final ([`Cursor::is_in_order`]).
    pub(crate) fn rewind(&mut self) {
        self.cursor.rewind();
        self.table.clear();
        self.taken = 0;
        self.due.clear();
        self.sets.iter_mut().for_each(BTreeSet::clear);
    }

    /// Releases all claims for the next delivery. Sets the cursor back if that is possible.
    /// Otherwise returns the claims that are not final.
    pub(super) fn hand_over(mut self) -> (Cursor, Vec<Claim>) {
        for state in [State::OnWire, State::Held, State::Burying] {
            self.claims(state).into_iter().for_each(|claim| self.cursor.release(claim));
        }
        let mut claims: Vec<_> = self.table.values().map(|(_, work)| work.claim).collect();
        if self.cursor.is_in_order() {
            self.cursor.rewind();
            claims.clear();
        }
        (self.cursor, claims)
    }

    fn set(&self, state: State) -> &BTreeSet<Position> {
        &self.sets[state as usize]
    }

    /// Puts a claim into a state. Replaces a claim that begins at the same position.
    fn put(&mut self, state: State, mut work: Work) {
        let start = work.claim.start;
        work.is_taken &= state == State::OnWire;
        work.is_overtaken &= state == State::OnWire;
        work.due = work.due.filter(|_| matches!(state, State::Waiting | State::PassedOver));
        self.taken += usize::from(work.is_taken);
        let due = work.due.filter(|_| state == State::Waiting);
        self.due.extend(due.map(|due| (due, start)));
        if let Some((before, old)) = self.table.insert(start, (state, work)) {
            self.leave(before, &old);
        }
        self.sets[state as usize].insert(start);
        self.check();
    }

    fn leave(&mut self, state: State, work: &Work) {
        self.sets[state as usize].remove(&work.claim.start);
        self.taken -= usize::from(work.is_taken);
        work.due.map(|due| self.due.remove(&(due, work.claim.start)));
    }

    fn remove(&mut self, start: Position) -> Option<Work> {
        let (state, work) = self.table.remove(&start)?;
        self.leave(state, &work);
        self.check();
        Some(work)
    }

    /// Panics if an invariant does not hold. Debug builds also check that no two claims overlap,
    /// but only for up to 64 claims. For the 10,000 claims that a delivery may have, the check
    /// would take too long.
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
    const ALL: [Self; 6] =
        [Self::OnWire, Self::Pending, Self::PassedOver, Self::Held, Self::Burying, Self::Waiting];
}

#[cfg(test)]
pub(super) mod tests;
