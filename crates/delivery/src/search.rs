//! What is sent next while a consumer turns claims down, without I/O.
//!
//! Whether the fault is the consumer's or an event's shows only when the consumer takes something
//! else. So other events are sent to compare with:
//!
//! - **A claim is refused.** The search begins, and from then on one request is sent at a time, so
//!   that each answer is about one claim. The claim is halved down to single events. While only
//!   suspects are left, a round sends one of them, and then one new event of the queue. If that is
//!   refused too, the round is over, and the loop pauses. Whatever is accepted makes all suspects
//!   pending again. The search ends when no claim is pending, suspected or on the wire.
//! - **A claim is answered with a server error.** It is sent again after a pause. From the second
//!   error on, requests with this claim and requests with other events take turns.

use std::time::Duration;

use super::failure::Failure;
use base::mutant;

/// At this number of suspects, the next new event is tried only after [`PAUSE_MANY`]. If as many
/// claims wait because of server errors, no new event is taken to be compared with them.
pub(super) const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// The least pause between two new events that are compared with [`SUSPECTS_MAX`] suspects or more.
/// A consumer that refuses everything adds one suspect in each pause, which needs less than a
/// kilobyte: at most 3 MB in a day.
pub(super) const PAUSE_MANY: Duration = Duration::from_secs(30);

/// The number of server errors after which other claims are sent before a claim, to learn whether
/// the consumer accepts them.
const ERRORS_BEFORE_OTHERS: u32 = 2;

/// The state of the current round of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// No new event was sent in this round yet.
    Fresh,
    /// A new event of the queue was taken in this round, to learn whether the consumer accepts it.
    Compared,
    /// The queue had no new event for this round, so the delivery pauses. The first new event that
    /// arrives ends the pause.
    AwaitsEvent,
}

/// The requests that answers of a consumer ask for, in one delivery.
///
/// Invariant: there are at most [`SUSPECTS_MAX`] suspects, plus the events that were on the wire,
/// plus one for each [`PAUSE_MANY`].
#[derive(Default)]
pub(crate) struct Search {
    /// The round of the search; `None` while no claim is refused.
    round: Option<Round>,
    /// The index of the suspect that the last round has sent. The next round sends the one after
    /// it: as long as no new event comes, only another suspect can be accepted and show that the
    /// consumer works.
    rotation: usize,
    /// The number of new events of the queue that are sent next to learn whether the consumer
    /// accepts them, less one. The number is 1 as a rule. It doubles each time that the filter
    /// keeps back all events of a claim, and is 1 again after events were sent.
    more_events: u64,
    /// The failure with which the consumer refused the latest suspect; `None` if there was none.
    pub(super) last_refusal: Option<Failure>,
    /// `true` if the first new event of the queue ends the delivery's pause, to be compared with a
    /// claim that was answered with its first server error.
    awaits_event: bool,
    /// `true` if the next request carries other events than the first claim that waits, because the
    /// consumer answers this claim with server errors.
    others: bool,
    /// `true` if the batch that was taken last holds such other events. If the filter keeps them
    /// all back, the next request carries other events.
    took_others: bool,
    /// `true` if an address that was passed over in this round has answered a claim with a server
    /// error, and not for the first time. If the round then ends with another failure, the next
    /// request carries other events.
    passed_over: bool,
}

impl Search {
    /// Returns `true` if only one request is sent at a time, because a claim was refused.
    pub(super) fn is_active(&self) -> bool {
        self.round.is_some()
    }

    /// Notes that a consumer has refused a claim.
    pub(crate) fn refused(&mut self) {
        self.round.get_or_insert(Round::Fresh);
    }

    /// Notes that a consumer has accepted a claim.
    pub(crate) fn accepted(&mut self) {
        self.set_round(Round::Fresh);
        self.passed_over = false;
    }

    /// Notes that a claim has failed with a server error, for the `errors`th time. `elsewhere`:
    /// another address is asked at once.
    pub(super) fn claim_failed(&mut self, errors: u32, elsewhere: bool) {
        let flag = if elsewhere { &mut self.passed_over } else { &mut self.others };
        *flag |= errors >= ERRORS_BEFORE_OTHERS;
    }

    /// Lets the next request carry other events than the first claim that waits.
    pub(crate) fn compare(&mut self) {
        self.others = true;
    }

    /// Notes that an attempt has failed, and that no other address is left to be asked at once.
    pub(super) fn round_failed(&mut self) {
        mutant!(
            "round-forgets-the-500-before-it",
            self.others |= std::mem::take(&mut self.passed_over),
            self.passed_over = false
        );
    }

    /// Notes that the events of a claim were found to be at fault, so that no other events are
    /// needed to compare with.
    pub(crate) fn found(&mut self) {
        self.others = false;
    }

    /// Returns `true` if the next request carries other events than the first claim that waits.
    pub(super) fn take_others(&mut self) -> bool {
        std::mem::take(&mut self.others)
    }

    /// Notes that the batch that was taken holds other events than the first claim that waits.
    pub(super) fn took_others(&mut self) {
        self.took_others = true;
    }

    /// Notes that events were sent.
    pub(crate) fn sent(&mut self) {
        (self.more_events, self.took_others) = (0, false);
    }

    /// Notes that the filter kept back every event of a claim. If new events were taken to be
    /// compared with suspects, the round still needs another new event. The next comparison takes
    /// twice as many new events, at most `max_events`.
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

    /// Returns how many new events are taken at most to learn whether the consumer accepts them.
    pub(super) fn comparison_events(&self) -> u64 {
        self.more_events + 1
    }

    /// Returns how many new events to take from the queue at most, when all events that wait are
    /// suspects. Returns `None` if the round is over, because the consumer refused the suspects and
    /// the new event.
    pub(super) fn next_comparison(&mut self) -> Option<u64> {
        if self.round == Some(Round::Compared) {
            self.set_round(Round::Fresh);
            return None;
        }
        self.set_round(Round::Compared);
        Some(self.comparison_events())
    }

    /// Notes that the queue has no new event to be compared with the suspects. The delivery now
    /// pauses. From now on, a new event in the queue ends this pause at once.
    pub(super) fn nothing_to_compare(&mut self) {
        self.set_round(Round::AwaitsEvent);
    }

    /// Returns `true` if a new event in the queue ends the delivery's pause. Returns `false` if the
    /// pause lasts until its time is over.
    pub(super) fn awaits_event(&self) -> bool {
        self.awaits_event || self.round == Some(Round::AwaitsEvent)
    }

    /// Lets the first new event of the queue end the delivery's pause.
    pub(super) fn await_event(&mut self) {
        self.awaits_event = true;
    }

    /// Notes that a new event has arrived in the queue, or that the delivery pauses because of a
    /// failure. From now on, a new event in the queue does not end a pause.
    pub(super) fn await_no_event(&mut self) {
        if self.round == Some(Round::AwaitsEvent) {
            self.set_round(Round::Fresh);
        }
        self.awaits_event = false;
    }

    /// Returns the index of the suspect that the next round sends, of this number of suspects.
    pub(crate) fn rotate(&mut self, suspects: usize) -> usize {
        self.rotation = (self.rotation + 1) % suspects.max(1);
        self.rotation
    }

    /// Ends the search. Either no event waits for a decision or an answer any more, or the
    /// connection to the consumer that refused events has ended.
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
        // The filter has kept back all other events.
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
