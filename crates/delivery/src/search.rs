//! Chooses what is sent next while a consumer turns claims down, without I/O.
//!
//! Either the consumer or an event is at fault. If the consumer takes something else, the event is.
//! So other events are sent, to compare:
//!
//! - **A claim is refused.** The search begins: one request is sent at a time, so that each
//!   response is about one claim. The claim is halved down to single events. While only suspects
//!   are left, a round sends one of them, and then one new event of the queue. If the new event is
//!   refused too, the round is over, and the loop pauses. An acceptance makes all suspects pending
//!   again. The search ends when no claim is pending, suspected or on the wire.
//! - **A claim gets a server error.** If the consumer seems to take other events, some are sent
//!   next. If not, the claim is sent again after a pause and, from its second error on, requests
//!   with this claim and requests with other events alternate.

use std::time::Duration;

use super::failure::Failure;
use base::mutant;

/// At this number of suspects, a new event is tried only after [`PAUSE_MANY`]. If as many claims
/// wait because of server errors, no new event is compared with them.
pub(super) const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// A consumer that refuses everything adds one suspect in each such pause. A suspect takes less
/// than a kilobyte, so this is at most 3 MB in a day.
pub(super) const PAUSE_MANY: Duration = Duration::from_secs(30);

/// After this many server errors to a claim, other events are sent first, to see if the consumer
/// accepts them.
const ERRORS_BEFORE_OTHERS: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// No new event was sent in this round.
    Fresh,
    /// A new event was taken, to learn whether the consumer accepts it.
    Compared,
    /// The queue had no new event. The delivery pauses, and a new event ends the pause.
    AwaitsEvent,
}

/// Invariant: there are at most [`SUSPECTS_MAX`] suspects, plus the events that were on the wire,
/// plus one for each [`PAUSE_MANY`].
#[derive(Default)]
pub(crate) struct Search {
    /// `None` while there is no search.
    round: Option<Round>,
    /// The index of the last round's suspect. The next round sends another suspect: without new
    /// events, only a suspect can show that the consumer works.
    rotation: usize,
    /// The number of new events for the next comparison, less one. It grows each time that the
    /// filter drops all events of a claim, and is 0 again after events were sent.
    more_events: u64,
    pub(super) last_refusal: Option<Failure>,
    /// `true` if a new event ends the pause, to be compared with a claim that got a server error.
    awaits_event: bool,
    /// `true` if the next request should have other events than the first waiting claim.
    others: bool,
    /// `true` if the last batch had other events than the first waiting claim. The filter may drop
    /// them.
    took_others: bool,
    /// `true` if an address that was passed over in this round responded to a claim with a further
    /// server error. If the round ends with another failure, the next request has other events.
    passed_over: bool,
}

impl Search {
    /// Returns `true` if only one request is sent at a time, because a claim was refused.
    pub(super) fn is_active(&self) -> bool {
        self.round.is_some()
    }

    pub(crate) fn refused(&mut self) {
        self.round.get_or_insert(Round::Fresh);
    }

    pub(crate) fn accepted(&mut self) {
        self.set_round(Round::Fresh);
        self.passed_over = false;
    }

    /// Notes the `errors`th server error of a claim. `elsewhere`: another address is tried next.
    pub(super) fn claim_failed(&mut self, errors: u32, elsewhere: bool) {
        let flag = if elsewhere { &mut self.passed_over } else { &mut self.others };
        *flag |= errors >= ERRORS_BEFORE_OTHERS;
    }

    /// Makes the next request have other events than the first waiting claim.
    pub(crate) fn compare(&mut self) {
        self.others = true;
    }

    pub(super) fn round_failed(&mut self) {
        mutant!(
            "round-forgets-the-500-before-it",
            self.others |= std::mem::take(&mut self.passed_over),
            self.passed_over = false
        );
    }

    /// Notes that the events of a claim were found to be at fault: no comparison is needed.
    pub(crate) fn found(&mut self) {
        self.others = false;
    }

    pub(super) fn take_others(&mut self) -> bool {
        std::mem::take(&mut self.others)
    }

    pub(super) fn took_others(&mut self) {
        self.took_others = true;
    }

    pub(crate) fn sent(&mut self) {
        (self.more_events, self.took_others) = (0, false);
    }

    /// The filter dropped a whole claim: the next comparison takes twice as many events, up to
    /// `max_events`.
    pub(super) fn nothing_left(&mut self, max_events: u64) {
        self.more_events = (2 * self.more_events + 1).min(max_events.saturating_sub(1));
        if self.round == Some(Round::Compared) {
            self.set_round(Round::Fresh);
        }
        mutant!(
            "dropped-event-spends-the-turn",
            self.others |= std::mem::take(&mut self.took_others),
            self.took_others = false
        );
    }

    pub(super) fn comparison_events(&self) -> u64 {
        self.more_events + 1
    }

    /// Returns the number of new events to compare with suspects; `None` if the round is over.
    pub(super) fn next_comparison(&mut self) -> Option<u64> {
        if self.round == Some(Round::Compared) {
            self.set_round(Round::Fresh);
            return None;
        }
        self.set_round(Round::Compared);
        Some(self.comparison_events())
    }

    pub(super) fn nothing_to_compare(&mut self) {
        self.set_round(Round::AwaitsEvent);
    }

    /// Returns `true` if a new event in the queue ends the pause.
    pub(super) fn awaits_event(&self) -> bool {
        self.awaits_event || self.round == Some(Round::AwaitsEvent)
    }

    pub(super) fn await_event(&mut self) {
        self.awaits_event = true;
    }

    /// A new event has arrived, or the delivery pauses for another reason.
    pub(super) fn await_no_event(&mut self) {
        if self.round == Some(Round::AwaitsEvent) {
            self.set_round(Round::Fresh);
        }
        self.awaits_event = false;
    }

    /// Returns the index of the suspect that the next round sends.
    pub(crate) fn rotate(&mut self, suspects: usize) -> usize {
        self.rotation = (self.rotation + 1) % suspects.max(1);
        self.rotation
    }

    /// Ends the search: no event waits for a decision or a response, or the connection has ended.
    pub(crate) fn end(&mut self) {
        self.round = None;
    }

    fn set_round(&mut self, round: Round) {
        self.round = self.round.map(|_| round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_compares_one_new_event_and_is_over_when_that_is_refused_too() {
        let mut search = Search::default();
        assert!(!search.is_active());
        search.refused();
        assert!(search.is_active());
        assert_eq!(search.next_comparison(), Some(1));
        search.sent();
        search.refused();
        assert_eq!(search.next_comparison(), None);
        assert_eq!(search.next_comparison(), Some(1), "a new round");
        search.end();
        assert!(!search.is_active());
    }

    #[test]
    fn a_comparison_of_which_the_filter_lets_nothing_pass_takes_twice_as_many_next() {
        let mut search = Search::default();
        search.refused();
        for events in [1, 2, 4, 5, 5] {
            assert_eq!(search.next_comparison(), Some(events));
            search.nothing_left(5);
        }
        assert_eq!(search.next_comparison(), Some(5));
        search.sent();
        search.accepted();
        assert_eq!(search.next_comparison(), Some(1));
    }

    #[test]
    fn a_new_event_ends_a_pause_only_while_suspects_wait_to_be_compared() {
        let mut search = Search::default();
        assert!(!search.awaits_event());
        search.refused();
        assert_eq!(search.next_comparison(), Some(1));
        search.nothing_to_compare();
        assert!(search.awaits_event());
        // The consumer has asked for a pause, or a new event has arrived.
        search.await_no_event();
        assert!(!search.awaits_event());
        assert_eq!(search.next_comparison(), Some(1));
        search.nothing_to_compare();
        search.accepted();
        assert!(!search.awaits_event());
    }

    #[test]
    fn other_events_take_turns_with_a_claim_from_its_second_server_error_on() {
        let mut search = Search::default();
        search.claim_failed(1, false);
        assert!(!search.take_others());
        search.claim_failed(2, false);
        assert!(search.take_others() && !search.take_others());
        // The error of an address that is passed over counts when the round ends.
        search.claim_failed(3, true);
        assert!(!search.take_others());
        search.round_failed();
        assert!(search.take_others());
        search.claim_failed(4, true);
        search.accepted();
        search.round_failed();
        assert!(!search.take_others(), "the consumer has accepted something");
        // The filter has dropped all other events.
        search.took_others();
        search.nothing_left(10);
        assert!(search.take_others());
    }

    #[test]
    fn each_round_sends_the_next_suspect() {
        let mut search = Search::default();
        let turns: Vec<_> = (0..6).map(|_| search.rotate(3)).collect();
        assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
        assert_eq!(search.rotate(0), 0, "there is none");
    }
}
