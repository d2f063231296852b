//! Parked events: single events that a consumer does not take, although it takes others.
//!
//! An answer that turns one event down may have nothing to do with the event. A balancer with one
//! broken backend answers 400 to every second request, and a store that restarts answers 500. So an
//! event is not given up at the first such answer. It is parked: it waits beside the stream, and is
//! sent again alone, in requests that are tries. The other events are delivered meanwhile.
//!
//! A try counts only if the consumer works. It works if it has accepted something since the last
//! try, or if it has been sent nothing else. After enough tries over enough time the event is given
//! up; the numbers depend on the answer:
//!
//! | answer to the tries | tries | time |
//! |---|---|---|
//! | a refusal (400, 413, 422) | 8 | 3 s |
//! | a refusal by an address that also refused events which it accepted later | 24 | 3 s |
//! | a server error (5xx) | 4 | `rejected.after_server_errors` |
//! | a server error, while the queue is nearly full | 4 | 1 minute |
//! | a server error, while the relay drains | 4 | 3 s |
//!
//! If an event was parked because of server errors and is then refused for the first time, the
//! tries end, and the search for refused events (`isolation`) goes on with it. The consumer may
//! refuse everything by now, and must accept another event before the refusals count. While the
//! queue is nearly full or the relay drains, perhaps no other event comes, so the refusal counts as
//! another server error.
//!
//! An ordered output sends no new events while an event that is refused is tried. An event that is
//! answered with server errors may wait for hours, so it leaves the order: later events are
//! delivered before it.
//!
//! The queue can't delete what was accepted after a parked event, so a parked event must not wait
//! until the queue is full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::position::Position;

/// The maximum number of events that are parked at the same time. At this number, the output sends
/// no new events: if the consumer turns down this many events, something else must be wrong.
pub(super) const PARKED_MAX: usize = if cfg!(test) { 50 } else { 10_000 };

/// The number of refusals of an event alone after which the event is given up. If a broken backend
/// answers every second request, an event is refused 8 times in a row by chance in 1 of 256 cases.
/// The relay then usually knows already that the address refuses at random ([`TRIES_OF_DOUBT`]).
const TRIES: u32 = 8;

/// The number of refusals of an event alone after which the event is given up, if the address has
/// accepted, in the last [`DOUBT`], an event that it had refused alone before. Such an address
/// refuses events for reasons that are not in the events.
const TRIES_OF_DOUBT: u32 = 24;

/// The number of server errors to an event alone after which the event may be given up. With
/// growing pauses, the fourth comes 7 s after the first one.
const TRIES_OF_ERRORS: u32 = 4;

/// The number of tries at other addresses in a row after which the tries at one address are
/// forgotten, because this address is away. With several addresses that work, each is tried in
/// turn. An address that has accepted nothing yet must accept another event before the tries there
/// count; see [`Next::Search`] and [`Parking::is_unproven`].
const ELSEWHERE_MAX: u32 = 8;

/// The time for which an address is known to refuse events at random, after it has accepted an
/// event that it had refused alone.
const DOUBT: Duration = Duration::from_secs(10 * 60);

/// The number of tries that are made without a pause and before other events are sent, so that the
/// order is kept if one of these tries is accepted. A balancer sends the next request to another
/// backend.
const TRIES_AT_ONCE: u32 = 3;

/// The least time from the first try to the decision to give up an event.
const TIME_MIN: Duration = Duration::from_secs(3);

/// The least time from the first try to the decision to give up an event because of server errors,
/// while the queue is nearly full. kube-apiserver keeps its events for about four minutes after the
/// queue is full.
const TIME_NEARLY_FULL: Duration = Duration::from_secs(60);

/// The pause between two refusals, after the tries that are made at once. The eighth refusal comes
/// 3 s after the first one.
const PAUSE_REFUSED: Duration = Duration::from_millis(600);

/// The first pause after a server error. Each further pause is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause after a server error.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The longest pause between two tries while the queue is nearly full. Several addresses are tried
/// in turn, and only the tries at one of them count. If another one is away, a try there takes the
/// connect timeout. Four tries at the first one should still take about as long as
/// [`TIME_NEARLY_FULL`].
pub(super) const PAUSE_NEARLY_FULL: Duration = Duration::from_secs(5);

/// The maximum number of claims in a row that a consumer may turn down while an earlier acceptance
/// still proves that the consumer works. The halves of a claim of 5,000 events reach a single event
/// in 13 steps. A consumer that turns down more claims than that has probably stopped working
/// meanwhile.
const IN_A_ROW_MAX: u64 = 16;

/// The answers of one consumer to the requests of this delivery.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conduct {
    /// The highest `Work::sent_at` of all claims that the consumer has accepted: how many
    /// refusals and server errors this delivery had seen when the claim was sent. It shows whether
    /// the consumer has accepted anything that was sent after a certain refusal. `None` if the
    /// consumer has accepted nothing.
    accepted_since: Option<u64>,
    /// The number of claims that the consumer has accepted.
    accepted: u64,
    /// The number of claims that the consumer has not accepted, without the tries of parked events.
    turned_down: u64,
    /// The number of claims turned down since the last accepted one.
    in_a_row: u64,
    /// The time at which the consumer last accepted an event that it had refused alone before;
    /// `None` if it never did.
    accepted_refused: Option<Instant>,
}

impl Conduct {
    /// Returns `true` if the consumer has accepted something since `earlier` was noted, or if
    /// nothing but tries of parked events was sent to it since then.
    fn works_since(&self, earlier: Self) -> bool {
        self.accepted > earlier.accepted || self.turned_down == earlier.turned_down
    }

    /// Notes that the consumer has accepted a claim. `sent_at` is the number of refusals and server
    /// errors that this delivery had seen when the claim was sent.
    pub(super) fn accepted(&mut self, sent_at: u64) {
        self.accepted_since = self.accepted_since.max(Some(sent_at));
        self.accepted += 1;
        self.in_a_row = 0;
    }

    /// Notes that the consumer has accepted an event that it had refused alone before.
    pub(super) fn accepted_refused(&mut self) {
        self.accepted_refused = Some(Instant::now());
    }

    /// Notes that the consumer has not accepted a claim, which is not the try of a parked event.
    pub(super) fn turned_down(&mut self) {
        self.turned_down += 1;
        self.in_a_row += 1;
    }

    /// Returns `true` if the consumer has not turned down many claims in a row.
    pub(super) fn still_works(&self) -> bool {
        self.in_a_row <= IN_A_ROW_MAX
    }

    /// Returns `true` if the consumer has accepted anything in this delivery.
    pub(super) fn has_accepted(&self) -> bool {
        self.accepted > 0
    }

    /// Returns `true` if the consumer has accepted a claim that was sent after the refusal or the
    /// server error with this number.
    pub(super) fn has_accepted_since(&self, number: u64) -> bool {
        self.accepted_since.is_some_and(|accepted| accepted >= number)
    }
}

/// The parked events of an output by their positions, with the consumer's last answer to each.
pub(super) type ParkedByPosition = BTreeMap<Position, (Parking, Arc<str>)>;

/// The kind of answer with which a consumer does not take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnedDown {
    /// The consumer refuses the event (400, 413 or 422).
    Refused,
    /// The consumer has answered with a server error (5xx). Such an event loses its place in the
    /// order: events that are accepted after it become final before it.
    ServerError,
}

/// The decision about an event after a try that the consumer did not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The event is sent again at once.
    AtOnce,
    /// The event waits until [`Parking::due`].
    Wait,
    /// The search for refused events goes on with the event, because its consumer has to accept
    /// another event before the refusals count. Either the event was parked because of server
    /// errors and is refused for the first time, or the address that refused it is away.
    Search,
    /// The event is given up.
    GiveUp,
}

/// The circumstances under which an event may be given up because of server errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The setting `rejected.after_server_errors`.
    pub(super) server_errors: Duration,
    /// `true` if nothing may be given up, because of `rejected.action = "retry"`.
    pub(super) keeps_all: bool,
    /// `true` if the queue is nearly full.
    pub(super) is_nearly_full: bool,
    /// `true` if the relay drains.
    pub(super) drains: bool,
}

impl Patience {
    /// Returns `true` if an event may wait for as long as it takes until the consumer accepts
    /// another one. While the queue is nearly full or the relay drains, perhaps no other event
    /// comes.
    fn is_free(self) -> bool {
        !self.keeps_all && !self.is_nearly_full && !self.drains
    }
}

/// The tries of one event that its consumer does not take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parking {
    /// The moment of the first try, or the beginning of the drain if that is later.
    pub(super) since: Instant,
    /// The moment of the next try.
    pub(super) due: Instant,
    /// The next pause after a server error.
    pause: Duration,
    /// The number of tries that count.
    pub(super) tries: u32,
    /// The number of the counted tries that the consumer answered with a refusal.
    refusals: u32,
    /// The consumer's last answer that was counted.
    pub(super) answer: TurnedDown,
    /// The consumer of the tries that are counted; `None` if it is away, or if another delivery has
    /// made them.
    consumer: Option<usize>,
    /// The conduct of the consumer at the last try.
    conduct: Conduct,
    /// The number of tries at other consumers since the last one at this consumer.
    elsewhere: u32,
}

impl Parking {
    /// Begins the tries of an event that a consumer has turned down; this counts as the first try.
    /// `conduct` is that consumer's conduct. Returns the tries, and what becomes of the event.
    pub(super) fn begin(answer: TurnedDown, consumer: usize, conduct: Conduct) -> (Self, Next) {
        let now = Instant::now();
        let mut parking = Self {
            since: now,
            due: now,
            pause: PAUSE_MIN,
            tries: 0,
            refusals: 0,
            answer,
            consumer: Some(consumer),
            conduct,
            elsewhere: 0,
        };
        parking.count(answer, conduct);
        let next = parking.next();
        (parking, next)
    }

    /// Notes that a consumer has turned down a try. `conduct` is that consumer's conduct. Returns
    /// what becomes of the event.
    pub(super) fn turned_down(
        &mut self,
        answer: TurnedDown,
        consumer: usize,
        conduct: Conduct,
        patience: Patience,
    ) -> Next {
        // The answers of another address prove nothing about this address.
        if self.consumer != Some(consumer) {
            self.elsewhere = self.elsewhere.saturating_add(1);
            self.consumer = self.consumer.filter(|_| self.elsewhere <= ELSEWHERE_MAX);
            if self.consumer.is_none() && self.keeps_order() {
                return Next::Search;
            }
            if self.consumer.is_some() || !conduct.has_accepted() {
                self.wait();
                return Next::Wait;
            }
            (self.tries, self.refusals) = (0, 0);
            (self.consumer, self.conduct) = (Some(consumer), conduct);
        }
        self.elsewhere = 0;
        if !conduct.works_since(self.conduct) {
            self.conduct = conduct;
            self.wait();
            return Next::Wait;
        }
        let is_new = self.refusals == 0 && self.answer == TurnedDown::ServerError;
        let answer = match answer {
            TurnedDown::Refused if is_new && patience.is_free() => return Next::Search,
            TurnedDown::Refused if is_new => TurnedDown::ServerError,
            TurnedDown::Refused | TurnedDown::ServerError => answer,
        };
        self.count(answer, conduct);
        if !patience.keeps_all && self.is_over(conduct, patience) {
            return Next::GiveUp;
        }
        self.next()
    }

    /// Notes that a try failed for a reason that does not depend on the event, such as a broken
    /// connection.
    pub(super) fn failed(&mut self) {
        self.wait();
    }

    /// Notes that the drain has begun: the event is tried now, and its tries are counted from now
    /// on. The pauses before may have grown to [`PAUSE_MAX`], and the drain is shorter than that.
    pub(super) fn hurry(&mut self) {
        let now = Instant::now();
        (self.since, self.due, self.pause) = (now, now, PAUSE_MIN);
        (self.tries, self.refusals) = (0, 0);
    }

    /// Makes the pause before the next try at most this long.
    pub(super) fn wait_at_most(&mut self, pause: Duration) {
        self.due = self.due.min(Instant::now() + pause);
    }

    /// Returns when the next try is made, and sets its time. The first refusals are followed by a
    /// try at once.
    fn next(&mut self) -> Next {
        let is_first = self.refusals == self.tries && self.tries < TRIES_AT_ONCE;
        if is_first && self.due == self.since {
            return Next::AtOnce;
        }
        self.wait();
        Next::Wait
    }

    /// Returns `true` if there were enough tries over enough time.
    fn is_over(&self, conduct: Conduct, patience: Patience) -> bool {
        let doubtful = conduct.accepted_refused.is_some_and(|at| at.elapsed() < DOUBT);
        let (tries, needed, time) = match self.answer {
            TurnedDown::Refused if doubtful => (self.refusals, TRIES_OF_DOUBT, TIME_MIN),
            TurnedDown::Refused => (self.refusals, TRIES, TIME_MIN),
            TurnedDown::ServerError => {
                let longest = match patience {
                    Patience { drains: true, .. } => TIME_MIN,
                    Patience { is_nearly_full: true, .. } => TIME_NEARLY_FULL,
                    Patience { .. } => patience.server_errors,
                };
                (self.tries, TRIES_OF_ERRORS, longest.min(patience.server_errors))
            }
        };
        tries >= needed && self.since.elapsed() >= time
    }

    /// Returns `true` if an ordered output sends no new events until this one is decided.
    pub(super) fn keeps_order(&self) -> bool {
        self.answer == TurnedDown::Refused
    }

    /// Returns the tries without the number and the conduct of the consumer, which mean nothing in
    /// another delivery.
    pub(super) fn inherited(self) -> Self {
        Self { consumer: None, conduct: Conduct::default(), ..self }
    }

    /// Returns `true` if the tries count at no address: the address where they did is away, or
    /// another delivery has made them.
    pub(super) fn is_unproven(self) -> bool {
        self.consumer.is_none()
    }

    /// Returns `true` if the consumer has refused the event at least once.
    pub(super) fn was_refused(&self) -> bool {
        self.refusals > 0
    }

    fn count(&mut self, answer: TurnedDown, conduct: Conduct) {
        self.tries = self.tries.saturating_add(1);
        self.refusals += u32::from(answer == TurnedDown::Refused);
        (self.answer, self.conduct) = (answer, conduct);
    }

    /// Sets the moment of the next try.
    fn wait(&mut self) {
        let (pause, next) = match self.answer {
            TurnedDown::Refused => (PAUSE_REFUSED, PAUSE_MIN),
            TurnedDown::ServerError => (self.pause, (2 * self.pause).min(PAUSE_MAX)),
        };
        self.due = Instant::now() + pause;
        self.pause = next;
    }
}

#[cfg(test)]
mod tests;
