//! Trials: the decisions about events that a consumer turns down.
//!
//! A consumer turns an event down by a status, a close, a reset, silence, or an answer that can't
//! be read. Any of these may also be a fault of the consumer or of the network: a balancer with one
//! broken backend answers every second request with 400, and a store that restarts closes its
//! connections. So there is one rule: a failure counts against an event only if the request had
//! this event alone, and if **the consumer works**. A consumer works if it has taken something that
//! was sent after the event was first turned down. Another address that takes events proves nothing
//! about the address that does not.
//!
//! The record of a claim that was turned down is its [`Trial`]. A claim of several events is
//! halved, down to single events. A single event whose failure counts is *set aside*: it leaves the
//! queue, and holds up no other event. Its trial becomes a [`Retrial`], which says when the event
//! is tried again and when it is given up:
//!
//! | answer to the tries | tries | time |
//! |---|---|---|
//! | a refusal (400, 413, 422) | 8 | 3 s |
//! | a refusal by an address in doubt: it has accepted an event that it had turned down | 24 | 3 s |
//! | anything else | 4 | `rejected.after_server_errors` |
//! | anything else, while a relay drains whose queue ends with it | 4 | at most 3 s |
//!
//! An ordered output sets an event aside only after three failures that count. If they are no
//! refusals, the consumer must have taken something else between each two of them. So few events
//! lose their place because of a balancer's broken backend, or because a consumer works for a
//! moment in an outage.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The number of refusals after which an event may be given up. If every second request reaches a
/// broken backend, 1 event of 256 is refused 8 times in a row.
const TRIES: u32 = 8;

const TRIES_OF_DOUBT: u32 = 24;

/// The number of other failures after which an event may be given up. Pauses grow, so the fourth
/// comes 7 s after the first.
pub(super) const TRIES_OF_FAILURES: u32 = 4;

/// The number of refusals of an event that is set aside without a pause in between: a balancer
/// sends the next request to another backend.
const TRIES_AT_ONCE: u32 = 3;

/// The number of failures that count before an ordered output sets an event aside.
const COUNTED_ORDERED: u32 = 3;

/// After more than this number of tries at other addresses in a row, the address whose responses
/// count seems to be unreachable. Another address then takes its place.
const ELSEWHERE_MAX: u32 = 8;

/// The time for which an address is in doubt after it has accepted an event that it had turned
/// down.
const DOUBT: Duration = Duration::from_secs(10 * 60);

/// The shortest time for which an event is set aside before refusals give it up.
const TIME_MIN: Duration = Duration::from_secs(3);

/// The pause after the third and later refusals. The eighth comes 3 s after the first.
const PAUSE_REFUSED: Duration = Duration::from_millis(600);

/// The first pause after another failure. Each further pause is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The number of single events in a row that a consumer may turn down while an earlier acceptance
/// still proves that it works. After that, others take their turn. When an outage begins, no more
/// events than this are set aside.
const PROVEN_MAX: u64 = 64;

/// The number of addresses whose responses are remembered. A forgotten address must accept an event
/// again before its refusals count.
const CONSUMERS_MAX: usize = 1024;

/// A way in which a consumer turns an event down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 400, 413 or 422: the answer is about the events.
    Refused,
    /// Any other status, a close, a reset, silence, or an answer that can't be read.
    Failed,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conduct {
    /// The highest `sent_at` of the accepted claims: the value of [`Conducts::answers`] when the
    /// claim was sent.
    accepted_since: Option<u64>,
    accepted: u64,
    turned_down: u64,
    /// The number of single events turned down since the last accepted claim.
    in_a_row: u64,
    /// The moment at which the consumer last accepted an event that it had turned down alone while
    /// it worked.
    doubted: Option<Instant>,
}

impl Conduct {
    /// Returns `true` if the consumer has accepted something that was sent after response `number`,
    /// and has not turned down many single events since.
    fn works_since(&self, number: u64) -> bool {
        let has_accepted = self.accepted_since.is_some_and(|accepted| accepted >= number);
        has_accepted && self.in_a_row <= PROVEN_MAX
    }

    /// Returns `true` if the consumer has accepted something, or turned down no other claim, since
    /// `earlier`.
    fn still_works(&self, earlier: &Self) -> bool {
        self.accepted > earlier.accepted || self.turned_down == earlier.turned_down
    }

    fn is_in_doubt(&self) -> bool {
        self.doubted.is_some_and(|at| at.elapsed() < DOUBT)
    }
}

#[derive(Debug, Default)]
pub(super) struct Conducts {
    /// The number of responses in this delivery that turned claims down, once for each claim.
    pub answers: u64,
    of: BTreeMap<usize, Conduct>,
}

impl Conducts {
    pub(super) fn of(&self, consumer: usize) -> Conduct {
        self.of.get(&consumer).copied().unwrap_or_default()
    }

    fn of_mut(&mut self, consumer: usize) -> &mut Conduct {
        if !self.of.contains_key(&consumer) && self.of.len() >= CONSUMERS_MAX {
            self.of.pop_first();
        }
        self.of.entry(consumer).or_default()
    }

    /// `was_counted`: a failure of this event alone had counted against it.
    pub(crate) fn accepted(&mut self, consumer: usize, sent_at: u64, was_counted: bool) {
        let conduct = self.of_mut(consumer);
        conduct.accepted_since = conduct.accepted_since.max(Some(sent_at));
        conduct.accepted += 1;
        conduct.in_a_row = 0;
        if was_counted {
            conduct.doubted = Some(Instant::now());
        }
    }

    /// Notes that a request was turned down. `is_alone`: it had a single event. Returns the number
    /// of this response.
    pub(crate) fn turned_down(&mut self, consumer: usize, is_alone: bool) -> u64 {
        let conduct = self.of_mut(consumer);
        conduct.turned_down += 1;
        conduct.in_a_row += u64::from(is_alone);
        self.answers += 1;
        self.answers
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    /// `true` if `rejected.action` is `"retry"`.
    pub(super) keeps_all: bool,
    /// The setting `rejected.after_server_errors`.
    pub server_errors: Duration,
    /// `true` if the relay drains, and its queue ends with it.
    pub drains: bool,
    /// The pause that the consumer has asked for.
    pub(super) asked: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The event is sent again at once: the failure may have been an accident.
    Again,
    /// Other events take their turn. The event waits until the consumer accepts something.
    PassOver,
    SetAside,
}

/// The failures of one claim, or of a larger one that contained it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trial {
    /// The number of the response by which the claim was first turned down or passed over, or of
    /// the last failure that counts. Only an acceptance of something that was sent after it proves
    /// that the consumer works.
    since: Option<u64>,
    /// The consumer that turned the claim down first.
    by: Option<usize>,
    /// The number of failures of the event alone.
    alone: u32,
    /// The number of failures that count against the event.
    pub(super) counted: u32,
    /// The number of refusals among them.
    refusals: u32,
}

impl Trial {
    /// Notes that the claim was turned down together with others, or passed over, at the response
    /// with this number.
    pub(super) fn doubted(&mut self, number: u64) {
        self.since.get_or_insert(number);
    }

    /// Notes that `consumer` has turned the claim down. Returns `true` if this may be an accident:
    /// it is the first failure, or the first of another address that is asked in the same round.
    pub(super) fn is_accident(&mut self, consumer: usize, elsewhere: bool) -> bool {
        let first = *self.by.get_or_insert(consumer);
        self.since.is_none() || (elsewhere && first != consumer)
    }

    /// Returns `true` if the event was turned down alone.
    pub(super) fn was_alone(&self) -> bool {
        self.alone > 0
    }

    /// Returns `true` if the claim was turned down or passed over before.
    pub(super) fn is_doubted(&self) -> bool {
        self.since.is_some()
    }

    /// Returns `true` if the claim was turned down or passed over, and the consumer has taken
    /// others since.
    pub(super) fn is_proven(&self, conduct: &Conduct) -> bool {
        self.since.is_some_and(|since| conduct.works_since(since))
    }

    /// Notes that the event was turned down alone by a response with this number. `took_others`:
    /// the same response has accepted other events. `may_repeat`: the event is sent again at once
    /// after every second failure.
    pub(super) fn turned_down(
        &mut self,
        (number, conduct): (u64, Conduct),
        answer: Answer,
        took_others: bool,
        (is_ordered, may_repeat): (bool, bool),
    ) -> Verdict {
        let since = *self.since.get_or_insert(number);
        self.alone += 1;
        let counts = took_others || conduct.works_since(since);
        self.counted += u32::from(counts);
        let is_refusal = counts && answer == Answer::Refused;
        self.refusals += u32::from(is_refusal);
        if self.counted >= if is_ordered { COUNTED_ORDERED } else { 1 } {
            return Verdict::SetAside;
        }
        if counts && !is_refusal {
            self.since = Some(number);
        }
        match is_refusal || (may_repeat && self.alone % 2 == 1) {
            true => Verdict::Again,
            false => Verdict::PassOver,
        }
    }

    pub(crate) fn set_aside(
        self,
        answer: Answer,
        conducts: &Conducts,
        consumer: usize,
        asked: Option<Duration>,
    ) -> Retrial {
        let now = Instant::now();
        let mut retrial = Retrial {
            since: now,
            due: now,
            pause: PAUSE_MIN,
            tries: self.counted,
            refusals: self.refusals,
            refused_at: self.since.filter(|_| answer == Answer::Refused),
            answer,
            consumer: Some(consumer),
            conduct: conducts.of(consumer),
            elsewhere: 0,
        };
        if answer == Answer::Failed || self.counted >= TRIES_AT_ONCE || asked.is_some() {
            retrial.wait(true, asked);
        }
        retrial
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    GiveUp,
}

/// The tries of an event that is set aside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retrial {
    /// The moment when the event was set aside, the start of this process, or the start of the
    /// drain: the latest of them.
    pub since: Instant,
    pub due: Instant,
    pause: Duration,
    /// The number of tries that count.
    pub tries: u32,
    pub(super) refusals: u32,
    /// The number of the first refusal; 0 if it was before this delivery. Unless the relay drains,
    /// refusals count only after the consumer has accepted something that was sent after the first.
    refused_at: Option<u64>,
    /// The last response that counts.
    pub answer: Answer,
    /// The consumer whose responses count. `None` if it is unreachable, or not known yet.
    consumer: Option<usize>,
    conduct: Conduct,
    /// The number of tries at other consumers since the last one at this consumer.
    elsewhere: u32,
}

impl Retrial {
    pub(crate) fn found() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            due: now + PAUSE_MIN,
            pause: PAUSE_MIN,
            tries: 0,
            refusals: 0,
            refused_at: None,
            answer: Answer::Failed,
            consumer: None,
            conduct: Conduct::default(),
            elsewhere: 0,
        }
    }

    pub(super) fn turned_down(
        &mut self,
        answer: Answer,
        conducts: &mut Conducts,
        consumer: usize,
        now: Circumstances,
    ) -> Next {
        conducts.answers += 1;
        let counts = self.counts(answer, conducts.answers, consumer, conducts.of(consumer), now);
        if counts {
            self.tries = self.tries.saturating_add(1);
            self.refusals += u32::from(answer == Answer::Refused);
            // Other failures in between, such as those of an address that goes down, change
            // nothing.
            self.answer = if self.refusals > 0 { Answer::Refused } else { answer };
            if self.is_over(now) && !now.keeps_all {
                return Next::GiveUp;
            }
        }
        let is_elsewhere = self.consumer.is_some_and(|counted| counted != consumer);
        self.wait(counts || is_elsewhere, now.asked);
        let is_asked = now.asked.is_some();
        if counts && answer == Answer::Refused && self.refusals < TRIES_AT_ONCE && !is_asked {
            self.at_once();
        } else if now.drains {
            self.due = self.due.min(Instant::now() + PAUSE_MIN);
        }
        Next::Wait
    }

    /// Returns `true` if the response with this number counts against the event.
    fn counts(
        &mut self,
        answer: Answer,
        number: u64,
        consumer: usize,
        conduct: Conduct,
        now: Circumstances,
    ) -> bool {
        if !self.is_counted_at(consumer, &conduct) {
            return false;
        }
        let still_works = conduct.still_works(&self.conduct);
        self.conduct = conduct;
        if answer == Answer::Refused && self.refusals == 0 && !now.drains {
            // The event was set aside because of other failures, and the consumer may refuse
            // everything now.
            let first = *self.refused_at.get_or_insert(number);
            return still_works && conduct.works_since(first);
        }
        still_works
    }

    /// Returns `true` if responses of `consumer` count. Only one consumer counts at a time. If it
    /// seems to be unreachable, the next one that has accepted something takes its place.
    fn is_counted_at(&mut self, consumer: usize, conduct: &Conduct) -> bool {
        if self.consumer != Some(consumer) {
            self.elsewhere = self.elsewhere.saturating_add(1);
            self.consumer = self.consumer.filter(|_| self.elsewhere <= ELSEWHERE_MAX);
            if self.consumer.is_some() || conduct.accepted == 0 {
                return false;
            }
            (self.tries, self.refusals) = (0, 0);
            (self.consumer, self.conduct) = (Some(consumer), *conduct);
        }
        self.elsewhere = 0;
        true
    }

    /// A try failed for a reason that does not depend on the event, such as a broken connection.
    pub(crate) fn failed(&mut self) {
        self.wait(false, None);
    }

    pub(crate) fn at_once(&mut self) {
        self.due = Instant::now();
    }

    /// The consumer takes events again: the event is tried soon.
    pub(super) fn soon(&mut self) {
        self.pause = PAUSE_MIN;
        self.due = self.due.min(Instant::now() + PAUSE_MIN);
    }

    /// The event is tried now, and its tries are counted from zero. Earlier pauses may have grown
    /// to [`PAUSE_MAX`], which may be longer than the drain.
    pub(crate) fn hurry(&mut self) {
        self.since = Instant::now();
        self.pause = PAUSE_MIN;
        (self.tries, self.refusals) = (0, 0);
        self.at_once();
    }

    fn is_over(&self, now: Circumstances) -> bool {
        let (age, most) = (self.since.elapsed(), if now.drains { TIME_MIN } else { Duration::MAX });
        let is_refused = self.answer == Answer::Refused && self.is_at_fault() && age >= TIME_MIN;
        let others = self.tries.saturating_sub(self.refusals);
        is_refused || (others >= TRIES_OF_FAILURES && age >= now.server_errors.min(most))
    }

    /// Returns `true` if the event was turned down so often that it is most likely at fault, and
    /// not the consumer. Until then, nobody is told that it is.
    pub(super) fn is_at_fault(&self) -> bool {
        let (tries, needed) = match self.answer {
            Answer::Refused => (self.refusals, TRIES),
            Answer::Failed => (self.tries, TRIES_OF_FAILURES),
        };
        tries >= if self.conduct.is_in_doubt() { TRIES_OF_DOUBT } else { needed }
    }

    /// Returns the record for the next delivery. The number and conduct of the consumer mean
    /// nothing there. The next delivery sends everything after the refusals of this one.
    pub(super) fn inherited(self) -> Self {
        let refused_at = self.refused_at.map(|_| 0);
        Self { consumer: None, refused_at, conduct: Conduct::default(), ..self }
    }

    /// Notes that an earlier process has set the event aside because of a refusal. This process
    /// sends everything after that refusal.
    pub(super) fn refused_before(&mut self) {
        (self.answer, self.refused_at) = (Answer::Refused, Some(0));
    }

    /// Sets the moment of the next try. If the last counted response is a refusal and `counts` is
    /// `true`, the pause is always the same. Otherwise, pauses grow. A pause is at least as long as
    /// the consumer has `asked` for.
    fn wait(&mut self, counts: bool, asked: Option<Duration>) {
        let (pause, next) = match self.answer {
            Answer::Refused if counts => (PAUSE_REFUSED, PAUSE_MIN),
            Answer::Refused | Answer::Failed => (self.pause, (2 * self.pause).min(PAUSE_MAX)),
        };
        self.due = Instant::now() + pause.max(asked.unwrap_or_default());
        self.pause = next;
    }
}

#[cfg(test)]
mod tests;
