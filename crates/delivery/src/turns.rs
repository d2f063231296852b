//! Decides how many events the next request has, and how many tries are made before a pause,
//! without I/O. [`Search`](super::search::Search) finds the event that takes its turn.
//!
//! **The size of a request follows the consumer.** The first failure of a request may be an
//! accident, unless it is a refusal. Each further failure halves the next request, down to a single
//! event. Each acceptance makes it four times as large, so that a balancer that answers
//! every second request with an error still gets large ones.
//!
//! **Whether the consumer works is asked with single events.** After two failures in a row, or one
//! that asks for a pause, nothing tells the events of a request from an outage. So the next request
//! has one event. If that fails too, another one takes its turn, which lies further ahead each
//! time: after 6 failures in a row, 4,000 events are passed over. As soon as the consumer accepts
//! something, the events that were passed over are sent.
//!
//! The size of a request is its number of positions, with the events that the filter drops.
//!
//! Nothing pauses for a single event. The pauses are for a consumer that takes nothing: they begin
//! after [`FIRST_TRIES`] failures in a row, or when everything that could be tried was tried. After
//! each pause, a few more tries are made. A pause that a response asks for is for everything if the
//! next responses ask for one too.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use super::trial::Answer;
use base::position::Position;

/// The number of failures in a row before the first pause: a request and its repetition, and four
/// single events. A failure that asks for a pause counts twice.
const FIRST_TRIES: u32 = 6;

/// The number of failures in a row before the first pause if an event was found to be at fault in
/// the last [`RUN_TIME`]: the next ones may belong to the same run.
const RUN_TRIES: u32 = 128;

const RUN_TIME: Duration = Duration::from_secs(10);

/// The number of failures between two later pauses.
const MORE_TRIES: u32 = 2;

/// The number of events between two pauses that were passed over, and never tried, and are tried
/// although the consumer has accepted nothing.
const UNTRIED: u32 = 4;

/// The factor by which the number of events grows that are passed over for the next turn.
const AHEAD_GROWTH: u64 = 8;

/// The factor by which the size of a request grows.
const GROWTH: u64 = 4;

/// The maximum number of requests that have to be accepted before their size grows.
const NEEDED_MAX: u32 = 4096;

/// The tries between two pauses.
#[derive(Default)]
struct Round {
    /// The number of failures until the next pause.
    left: u32,
    /// `true` if a new event of the queue was tried since the last pause.
    took_new: bool,
    /// `true` if the first event that was passed over takes its turn next.
    first_is_next: bool,
    /// The first event, if it alone has taken its turn since the last pause.
    only_first: Option<Position>,
    /// The number of events that were passed over, and never tried, that may be tried before the
    /// next pause.
    untried: u32,
    /// `true` if an event that was passed over may be tried again before the next pause.
    may_repeat: bool,
}

impl Round {
    /// Returns the tries before the next pause.
    fn of(left: u32) -> Self {
        Self { left, untried: UNTRIED, ..Self::default() }
    }
}

/// The size of the next request of one output, and the tries that are left until the next pause.
/// [`Search`](super::search::Search) owns this value.
#[derive(Default)]
pub(super) struct Turns {
    /// The maximum number of events in a request. `None`: no failure has set a limit.
    limit: Option<u64>,
    /// `true` if the next request has one event, to show whether the consumer takes anything.
    probes: bool,
    /// The moment when an event was last found to be at fault.
    found_at: Option<Instant>,
    /// The number of events that were sent since nothing was on the wire. Only used if everything
    /// on the wire is one request.
    window: u64,
    /// The number of accepted requests of the current limit, and the number after which it grows.
    accepted: u32,
    needed: u32,
    /// `true` if no request of the current limit has been accepted since it grew.
    is_new: bool,
    /// `true` if a request of the current limit has been accepted.
    is_known: bool,
    /// The number of events that are passed over before the next one takes its turn.
    ahead: u64,
    /// `true` if an event was passed over since the consumer accepted something.
    has_passed: bool,
    /// `true` if the first event, in its turn after a pause, was the last to be turned down.
    first_failed: bool,
    round: Round,
    /// The index of the event that was repeated last. The next one is repeated after the next
    /// pause.
    rotation: usize,
    /// `true` if a new event of the queue ends the pause.
    pub(super) awaits_event: bool,
    /// The moment of the first failure since the consumer last accepted something.
    pub(super) failing_since: Option<Instant>,
    /// The last failure since the consumer accepted something.
    pub(super) last: Option<Failure>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { needed: 1, round: Round::of(FIRST_TRIES), ..Self::default() }
    }

    /// Returns the maximum number of events in the next request.
    pub(super) fn limit(&self) -> u64 {
        if self.probes { 1 } else { self.limit.unwrap_or(u64::MAX) }
    }

    /// Returns the number of events that may be added to what is on the wire.
    pub(super) fn room(&self) -> u64 {
        self.limit().saturating_sub(self.window)
    }

    /// Notes that events were sent. `is_first`: nothing was on the wire.
    pub(super) fn sent(&mut self, events: u64, is_first: bool) {
        self.window = if is_first { events } else { self.window + events };
    }

    /// Returns the number of events in what is on the wire, accepted ones included.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The consumer has turned down a request of `events` events; `None` if the next request is as
    /// large. `counts`: it has taken others since, so that the event of the request is at fault,
    /// and not the consumer. Returns `true` if a pause is due.
    pub(super) fn failed(
        &mut self,
        events: Option<u64>,
        (answer, failure): (Answer, &Failure),
        counts: bool,
    ) -> bool {
        let is_alone = events == Some(1);
        events.into_iter().for_each(|events| self.halve(events));
        self.last = Some(failure.clone());
        self.first_failed = self.round.only_first.is_some();
        if counts {
            // The consumer works.
            (self.found_at, self.failing_since) = (Some(Instant::now()), None);
            self.probes = false;
            return false;
        }
        let is_first = self.failing_since.is_none();
        if is_first && self.found_at.is_some_and(|at| at.elapsed() < RUN_TIME) {
            self.round.left = RUN_TRIES;
        }
        self.failing_since.get_or_insert_with(Instant::now);
        // Another address is asked without a pause. And a request that is refused may be too
        // large, which its halves tell.
        if failure.elsewhere || (answer == Answer::Refused && !is_alone) {
            return false;
        }
        let asks = failure.asks();
        self.probes |= !is_first || is_alone || asks;
        let tries = 1 + u32::from(asks && self.round.left > MORE_TRIES);
        self.round.left = self.round.left.saturating_sub(tries);
        self.is_over()
    }

    /// Returns `true` if so much was turned down in a row that it is no matter of single events.
    pub(super) fn is_over(&self) -> bool {
        self.round.left == 0
    }

    fn halve(&mut self, events: u64) {
        if events < 2 {
            return;
        }
        // A size that was accepted before may fail by accident, or because of an event.
        match std::mem::take(&mut self.is_new) {
            true => self.needed = (2 * self.needed).min(NEEDED_MAX),
            false if self.is_known => self.needed = 1,
            false => {}
        }
        (self.is_known, self.accepted) = (false, 0);
        self.limit = Some(self.limit.map_or(events / 2, |limit| limit.min(events / 2)));
    }

    /// The consumer has accepted something, so each event may be tried again.
    pub(super) fn progressed(&mut self) {
        self.round = Round::of(FIRST_TRIES);
        self.begin_again();
        self.first_failed = false;
        (self.awaits_event, self.failing_since, self.last) = (false, None, None);
        self.probes = false;
    }

    /// The consumer has accepted a request of `events` events. There is no limit any more once it
    /// reaches `max_events`.
    pub(super) fn accepted(&mut self, events: u64, max_events: u64) {
        if events <= self.limit.unwrap_or(max_events) / 2 {
            return;
        }
        if std::mem::take(&mut self.is_new) {
            self.needed = 1;
        }
        self.is_known = true;
        let Some(limit) = self.limit else { return };
        self.accepted += 1;
        if self.accepted >= self.needed {
            // A size that has failed before is approached in small steps.
            let growth = if self.needed == 1 { GROWTH } else { 2 };
            (self.accepted, self.is_new, self.is_known) = (0, true, false);
            self.limit = limit.checked_mul(growth).filter(|grown| *grown < max_events);
        }
    }

    /// Returns the number of events to pass over before the next one takes its turn.
    pub(super) fn ahead(&self) -> u64 {
        self.ahead
    }

    /// An event was passed over after it was turned down: the next one takes its turn further
    /// ahead, up to `max_events`.
    pub(super) fn passed_over(&mut self, max_events: u64) {
        self.ahead =
            if self.has_passed { (AHEAD_GROWTH * self.ahead).clamp(1, max_events) } else { 0 };
        self.has_passed = true;
    }

    /// Everything that was passed over is tried again, from the first event on.
    pub(super) fn begin_again(&mut self) {
        (self.ahead, self.has_passed) = (0, false);
    }

    /// Returns `true` if a single event may be sent again at once: no other one was passed over
    /// since the consumer accepted something.
    pub(super) fn may_send_again(&self) -> bool {
        !self.has_passed
    }

    /// A new event of the queue takes its turn.
    pub(super) fn takes_new(&mut self) {
        self.round.took_new = true;
    }

    /// Returns `true` once if the first of the events that were passed over takes its turn, which
    /// begins at this position. No other one is then repeated before the next pause.
    pub(super) fn takes_first(&mut self, position: Position) -> bool {
        let takes = std::mem::take(&mut self.round.first_is_next);
        if takes {
            (self.round.only_first, self.round.may_repeat) = (Some(position), false);
        }
        takes
    }

    /// Returns `true` if an event that was passed over, and never tried, may be tried now.
    pub(super) fn may_try(&mut self) -> bool {
        let may_try = self.round.untried > 0;
        self.round.untried = self.round.untried.saturating_sub(1);
        may_try
    }

    /// The event at this position takes its turn.
    pub(super) fn takes(&mut self, position: Position) {
        self.round.only_first.take_if(|first| *first != position);
    }

    /// Returns the index of the event that is repeated, if one may be repeated before the next
    /// pause, or at another address.
    pub(super) fn repeat(&mut self, passed_over: usize) -> Option<usize> {
        let elsewhere = self.last.as_ref().is_some_and(|failure| failure.elsewhere);
        if !std::mem::take(&mut self.round.may_repeat) && !elsewhere {
            return None;
        }
        self.rotation = (self.rotation + 1) % passed_over.max(1);
        Some(self.rotation)
    }

    /// A pause begins, after which more tries are made. `can_show`: a new event could show whether
    /// the consumer works. If none was tried since the last pause, it then ends this pause.
    /// `in_order`: the first event then takes its turn before later ones, so that they stay in
    /// order if the consumer works again. If it alone was tried since the last pause, the next turn
    /// is another event's. `was_reached`: the failure came from the consumer. A connection that
    /// can't be made is no answer to any event: the first one takes the turn again. Once it was
    /// turned down, another one has to be turned down before: if one of two addresses refuses
    /// connections, the first event might otherwise get the one that works each time (seed
    /// 2132114622 of the simulator).
    pub(super) fn paused(&mut self, can_show: bool, in_order: bool, was_reached: bool) {
        self.awaits_event = !self.round.took_new && can_show;
        let was_turn_of_first = match was_reached {
            true => self.round.only_first.is_some(),
            false => self.first_failed,
        };
        self.round = Round {
            first_is_next: in_order && !was_turn_of_first,
            // The first event may still wait for a connection in its turn.
            only_first: self.round.only_first.filter(|_| !was_reached),
            may_repeat: true,
            ..Round::of(MORE_TRIES)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::AttemptError;

    const MAX: u64 = 5000;

    fn failure() -> Failure {
        Failure::new(AttemptError::Closed, "scripted")
    }

    /// The consumer takes single events. Each second failure in a row makes the next request one
    /// event.
    #[test]
    fn a_request_is_halved_down_to_one_event_and_grows_again_twice_as_fast() {
        let mut turns = Turns::new();
        let mut sizes = Vec::new();
        let mut events = MAX;
        while turns.limit != Some(1) {
            assert!(!turns.failed(Some(events), (Answer::Failed, &failure()), false));
            events = turns.limit();
            sizes.push(events);
            if events == 1 && turns.limit > Some(1) {
                turns.progressed();
                events = turns.limit();
            }
        }
        assert_eq!(sizes, [2500, 1, 625, 1, 156, 1, 39, 1, 9, 1, 2, 1]);
        let mut steps = 0;
        while turns.limit.is_some() {
            turns.progressed();
            turns.accepted(turns.limit(), MAX);
            steps += 1;
        }
        assert_eq!(steps, 7);
    }

    /// The consumer takes up to 1,000 events. Few of the requests are too large.
    #[test]
    fn a_size_that_fails_again_and_again_is_tried_ever_less() {
        let (mut turns, mut failed) = (Turns::new(), 0);
        for _ in 0..1000 {
            let events = turns.limit().min(MAX);
            if events > 1000 {
                turns.failed(Some(events), (Answer::Failed, &failure()), false);
                failed += 1;
            } else {
                turns.progressed();
                turns.accepted(events, MAX);
            }
        }
        assert!(failed < 50, "{failed}");
    }

    /// A balancer answers 30 % of the requests with an error. The requests stay large.
    #[test]
    fn failures_at_random_do_not_make_every_request_small() {
        let (mut turns, mut random, mut sent) = (Turns::new(), fastrand::Rng::with_seed(7), 0);
        for _ in 0..1000 {
            let events = turns.limit().min(MAX);
            sent += events;
            if random.u8(..10) < 3 {
                turns.failed(Some(events), (Answer::Failed, &failure()), false);
            } else {
                turns.progressed();
                turns.accepted(events, MAX);
            }
        }
        assert!(sent > 1000 * MAX / 4, "{sent}");
    }

    #[test]
    fn the_turns_of_a_run_pass_over_ever_more_events() {
        let mut turns = Turns::new();
        let mut turn = || {
            turns.passed_over(MAX);
            turns.ahead() + 1
        };
        assert!((0..6).map(|_| turn()).sum::<u64>() > 4000);
        turns.progressed();
        assert_eq!(turns.ahead(), 0);
    }

    fn until_pause(turns: &mut Turns, failure: &Failure) -> Option<u32> {
        (1..1000).find(|_| turns.failed(Some(1), (Answer::Failed, failure), false))
    }

    #[test]
    fn a_consumer_that_takes_nothing_gets_few_tries_between_two_pauses() {
        let mut turns = Turns::new();
        assert_eq!(until_pause(&mut turns, &failure()), Some(FIRST_TRIES));
        assert_eq!(turns.repeat(3), None, "each was just tried");
        for rotation in [1, 2, 0] {
            turns.paused(true, false, true);
            assert_eq!(turns.repeat(3), Some(rotation));
            assert_eq!(turns.repeat(3), None);
            assert_eq!(until_pause(&mut turns, &failure()), Some(MORE_TRIES));
        }
        let asked = Failure { retry_after: Some(Duration::ZERO), ..failure() };
        turns.paused(true, false, true);
        assert_eq!(until_pause(&mut turns, &asked), Some(MORE_TRIES));
        turns.progressed();
        assert_eq!(until_pause(&mut turns, &asked), Some(4));
    }

    /// Events at fault stand beside each other: for some seconds, many failures are no outage.
    #[tokio::test(start_paused = true)]
    async fn after_an_event_at_fault_more_are_looked_for_without_a_pause() {
        let mut turns = Turns::new();
        assert!((0..1000).all(|_| !turns.failed(Some(1), (Answer::Failed, &failure()), true)));
        assert_eq!(until_pause(&mut turns, &failure()), Some(RUN_TRIES));
        tokio::time::advance(RUN_TIME - Duration::from_millis(1)).await;
        turns.progressed();
        assert_eq!(until_pause(&mut turns, &failure()), Some(RUN_TRIES));
        tokio::time::advance(Duration::from_millis(1)).await;
        turns.progressed();
        assert_eq!(until_pause(&mut turns, &failure()), Some(FIRST_TRIES));
    }

    #[test]
    fn the_first_event_is_next_after_refused_connections_until_it_is_turned_down() {
        let (mut turns, first) = (Turns::new(), Position::START);
        for _ in 0..3 {
            turns.paused(true, true, false);
            assert!(turns.takes_first(first));
        }
        // The first event is sent when a connection can be made, and turned down.
        turns.paused(true, true, false);
        turns.failed(Some(1), (Answer::Failed, &failure()), false);
        for _ in 0..3 {
            turns.takes(first.next());
            turns.paused(true, true, false);
            assert!(!turns.takes_first(first), "another event may need the address that works");
        }
        turns.takes(first.next());
        turns.failed(Some(1), (Answer::Failed, &failure()), false);
        turns.paused(true, true, false);
        assert!(turns.takes_first(first), "another event was turned down, too");
    }
}
