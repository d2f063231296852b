//! Trials: the decisions about events that a consumer turns down.
//!
//! A balancer with one broken backend responds to every second request with 400, a store that
//! restarts responds with 500, and a store without its index refuses everything. So there is one
//! rule: a response counts against an event only if it is about this event alone, and if **the
//! consumer works**. A consumer works if it has taken something that was sent after this event was
//! first turned down. Another address that takes events proves nothing about the address that does
//! not.
//!
//! A claim that is turned down has a [`Trial`]. The claim is halved until single events are turned
//! down. A single event whose consumer works is *set aside*: it leaves the queue, and holds up no
//! other event. Its trial becomes a [`Retrial`], which says when the event is tried again and when
//! it is given up:
//!
//! | answer to the tries | tries | time |
//! |---|---|---|
//! | a refusal (400, 413, 422) | 8 | 3 s |
//! | a refusal by an address in doubt: it has accepted an event that had been refused | 24 | 3 s |
//! | a server error (5xx) | 4 | `rejected.after_server_errors` |
//! | a server error, while the relay drains | 4 | at most 3 s |
//!
//! An ordered output tries a refused event three times without a pause before it sets the event
//! aside (24 times at an address in doubt). So few events lose their place because of a balancer's
//! broken backend. It sets an event aside because of server errors only after four of them. If they
//! are to this event alone, the consumer must have taken others between each two.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use base::mutant;

/// The number of refusals after which an event may be given up. If every second request reaches a
/// broken backend, 1 event of 256 is refused 8 times in a row.
const TRIES: u32 = 8;

const TRIES_OF_DOUBT: u32 = 24;

/// The number of server errors after which an event may be given up. Pauses grow, so the fourth
/// comes 7 s after the first.
const TRIES_OF_ERRORS: u32 = 4;

/// The number of refusals without a pause in between: a balancer sends the next request to another
/// backend. The order is kept if one of these tries is accepted.
const TRIES_IN_ORDER: u32 = 3;

/// The number of server errors to a claim after which its events may be at fault.
const ERRORS_MIN: u32 = 2;

/// Like [`ERRORS_MIN`], for an ordered output. Only one of 16 claims gets four errors in a row from
/// a consumer that responds to every second request with 503. A further error to a single event
/// counts only if the consumer has accepted others since the previous one. So no event loses its
/// place because a consumer works for a moment in an outage.
const ERRORS_MIN_ORDERED: u32 = 4;

/// After more than this number of tries at other addresses in a row, the address whose responses
/// count seems to be unreachable. Another address then takes its place.
const ELSEWHERE_MAX: u32 = 8;

/// The time for which an address is in doubt after it has accepted an event that had been refused.
const DOUBT: Duration = Duration::from_secs(10 * 60);

/// The shortest time for which an event is set aside before refusals give it up.
const TIME_MIN: Duration = Duration::from_secs(3);

/// The pause after the third and later refusals. The eighth comes 3 s after the first.
const PAUSE_REFUSED: Duration = Duration::from_millis(600);

/// The first pause after a server error. Each further pause is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The number of claims in a row that a consumer may turn down while an earlier acceptance still
/// proves that it works. The halves of a claim of 5,000 events reach a single event in 13 steps.
const IN_A_ROW_MAX: u64 = 16;

/// The number of addresses whose responses are remembered. A forgotten address must accept an event
/// again before its refusals count.
const CONSUMERS_MAX: usize = 1024;

/// A way in which a consumer turns an event down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 400, 413 or 422.
    Refused,
    /// 5xx.
    ServerError,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conduct {
    /// The highest `sent_at` of the accepted claims: the value of [`Conducts::answers`] when the
    /// claim was sent.
    accepted_since: Option<u64>,
    accepted: u64,
    turned_down: u64,
    /// The number of claims turned down since the last accepted one.
    in_a_row: u64,
    /// The moment at which the consumer last accepted an event that was refused alone before.
    doubted: Option<Instant>,
}

impl Conduct {
    /// Returns `true` if the consumer has accepted something that was sent after response `number`.
    fn works_since(&self, number: u64) -> bool {
        self.accepted_since.is_some_and(|accepted| {
            mutant!("proof-from-before-the-refusal", accepted >= number, true)
        })
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
    fn of(&self, consumer: usize) -> Conduct {
        self.of.get(&consumer).copied().unwrap_or_default()
    }

    fn of_mut(&mut self, consumer: usize) -> &mut Conduct {
        if !self.of.contains_key(&consumer) && self.of.len() >= CONSUMERS_MAX {
            self.of.pop_first();
        }
        self.of.entry(consumer).or_default()
    }

    /// `was_refused`: this consumer, or another one, had refused an event of the claim alone.
    pub(crate) fn accepted(&mut self, consumer: usize, sent_at: u64, was_refused: bool) {
        let conduct = self.of_mut(consumer);
        conduct.accepted_since = conduct.accepted_since.max(Some(sent_at));
        conduct.accepted += 1;
        conduct.in_a_row = 0;
        if was_refused {
            conduct.doubted = Some(Instant::now());
        }
    }

    pub(super) fn turned_down(&mut self, consumer: usize) {
        let conduct = self.of_mut(consumer);
        conduct.turned_down += 1;
        conduct.in_a_row += 1;
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    pub is_ordered: bool,
    /// `true` if `rejected.action` is `"retry"`.
    pub(super) keeps_all: bool,
    /// The setting `rejected.after_server_errors`.
    pub server_errors: Duration,
    pub drains: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing shows yet that the events are at fault. They are sent again.
    Again,
    /// The events may be at fault.
    Doubt,
    /// The single event seems to be at fault, and is sent again without a pause.
    AtOnce,
    SetAside,
}

/// The responses by which consumers have turned down one claim, or a larger one that contained it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trial {
    /// The number of the response that was the first refusal.
    refused_at: Option<u64>,
    pub(super) refusals: u32,
    pub errors: u32,
    /// The number of an earlier response. Only an acceptance of something that was sent after it
    /// proves that the consumer works.
    errors_since: Option<u64>,
    /// For an ordered output, the number of server errors to a single event that count: between
    /// each two, the consumer has accepted something.
    proven: u32,
}

impl Trial {
    pub(crate) fn refused(
        &mut self,
        conducts: &mut Conducts,
        consumer: usize,
        events: u64,
        now: Circumstances,
    ) -> Verdict {
        conducts.answers += 1;
        conducts.turned_down(consumer);
        let first = *self.refused_at.get_or_insert(conducts.answers);
        let conduct = conducts.of(consumer);
        if events > 1 || !conduct.works_since(first) {
            return Verdict::Doubt;
        }
        self.refusals += 1;
        let in_order = if conduct.is_in_doubt() { TRIES_OF_DOUBT } else { TRIES_IN_ORDER };
        let is_over = !now.is_ordered || self.refusals >= in_order;
        if is_over { Verdict::SetAside } else { Verdict::AtOnce }
    }

    /// If the consumer has accepted other events of the request, `took_others` is the `sent_at` of
    /// the request.
    pub(crate) fn server_error(
        &mut self,
        conducts: &mut Conducts,
        consumer: usize,
        events: u64,
        took_others: Option<u64>,
        now: Circumstances,
    ) -> Verdict {
        conducts.answers += 1;
        let number = took_others.unwrap_or(conducts.answers);
        let conduct = conducts.of(consumer);
        self.errors += 1;
        let since = *self.errors_since.get_or_insert(number);
        let has_proof = conduct.works_since(since) && conduct.in_a_row <= IN_A_ROW_MAX;
        let works = took_others.is_some() || has_proof;
        let is_at_fault = if now.is_ordered && events == 1 {
            if self.proven == 0 || works {
                (self.proven, self.errors_since) = (self.proven + 1, Some(number));
            }
            mutant!("errors-of-an-outage-set-aside", self.proven, self.errors) >= ERRORS_MIN_ORDERED
        } else {
            let least = if now.is_ordered { ERRORS_MIN_ORDERED } else { ERRORS_MIN };
            self.errors >= least && works
        };
        match (is_at_fault, events) {
            (false, _) => Verdict::Again,
            (true, 1) => Verdict::SetAside,
            (true, _) => Verdict::Doubt,
        }
    }

    /// Returns `true` if the consumer most likely works, although it has just responded to this
    /// claim with a server error, which is not counted yet. Returns `false` for the first error to
    /// a claim of an ordered output: the output then sends no other event, so that a short outage
    /// changes no order.
    pub(super) fn is_alone_in_trouble(
        &self,
        conducts: &Conducts,
        consumer: usize,
        is_ordered: bool,
    ) -> bool {
        let (conduct, first) = (conducts.of(consumer), u32::from(is_ordered));
        let has_proof = self.errors_since.is_some_and(|since| conduct.works_since(since));
        let is_new = conduct.in_a_row <= u64::from(first);
        self.errors >= first && (is_new || (has_proof && conduct.in_a_row <= IN_A_ROW_MAX))
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused_at.is_some()
    }

    pub(crate) fn set_aside(self, answer: Answer, conducts: &Conducts, consumer: usize) -> Retrial {
        let now = Instant::now();
        let refusals = self.refusals;
        let mut retrial = Retrial {
            since: now,
            due: now,
            pause: PAUSE_MIN,
            tries: refusals.max(1),
            refusals,
            refused_at: self.refused_at,
            answer,
            consumer: Some(consumer),
            conduct: conducts.of(consumer),
            elsewhere: 0,
        };
        if answer == Answer::ServerError || refusals >= TRIES_IN_ORDER {
            retrial.wait(true);
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
            answer: Answer::ServerError,
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
            self.answer = answer;
            if self.is_over(now) && !now.keeps_all {
                return Next::GiveUp;
            }
        }
        let is_elsewhere = self.consumer.is_some_and(|counted| counted != consumer);
        self.wait(counts || is_elsewhere);
        if counts && answer == Answer::Refused && self.refusals < TRIES_IN_ORDER {
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
            // The event was set aside because of server errors, and the consumer may refuse
            // everything now.
            let first = *self.refused_at.get_or_insert(number);
            return still_works
                && mutant!("refusals-set-aside-need-no-proof", conduct.works_since(first), true);
        }
        still_works
    }

    /// Returns `true` if responses of `consumer` count. Only one consumer counts at a time. If it
    /// seems to be unreachable, the next one that has accepted something takes its place.
    fn is_counted_at(&mut self, consumer: usize, conduct: &Conduct) -> bool {
        mutant!(
            "tries-of-another-address",
            {},
            if self.consumer != Some(consumer) {
                (self.consumer, self.conduct) = (Some(consumer), *conduct);
            }
        );
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
        self.wait(false);
    }

    pub(crate) fn at_once(&mut self) {
        self.due = Instant::now();
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
        let (tries, needed, time) = match self.answer {
            Answer::Refused if self.conduct.is_in_doubt() => {
                (self.refusals, TRIES_OF_DOUBT, TIME_MIN)
            }
            Answer::Refused => (self.refusals, TRIES, TIME_MIN),
            Answer::ServerError if now.drains => {
                (self.tries, TRIES_OF_ERRORS, TIME_MIN.min(now.server_errors))
            }
            Answer::ServerError => (self.tries, TRIES_OF_ERRORS, now.server_errors),
        };
        tries >= needed && self.since.elapsed() >= time
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
    /// `true`, the pause is always the same. Otherwise, pauses grow.
    fn wait(&mut self, counts: bool) {
        let (pause, next) = match self.answer {
            Answer::Refused if counts => (PAUSE_REFUSED, PAUSE_MIN),
            Answer::Refused | Answer::ServerError => (self.pause, (2 * self.pause).min(PAUSE_MAX)),
        };
        self.due = Instant::now() + pause;
        self.pause = next;
    }
}

#[cfg(test)]
mod tests;
