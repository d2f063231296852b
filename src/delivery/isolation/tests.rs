//! The rules of isolation, without queue, link and time.

use super::*;
use crate::position::Position;
use crate::queue::Claim;
use crate::telemetry::AttemptError;

fn work(start: u64, events: u64) -> Work {
    let start = Position::new(start);
    Work { batch: 1, ..Work::new(Claim { start, end: start + events }, events, 1) }
}

fn refusal() -> Failure {
    Failure::new(AttemptError::Status4xx, "refused")
}

#[test]
fn an_event_is_a_suspect_until_its_consumer_has_accepted_one_that_was_sent_later() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    let mut bad = work(0, 1);
    // An acceptance of what was sent before the refusal proves nothing.
    isolation.accepted(0, 7);
    assert_eq!(isolation.refused(&mut bad, 7), Decision::Suspect);
    isolation.suspect(&mut bad, &refusal());
    assert_eq!(bad.refusals, Refusals::Alone(1));
    isolation.accepted(0, 7);
    assert_eq!(isolation.refused(&mut bad, 7), Decision::Suspect, "it was on the wire beside it");
    // An acceptance by another consumer proves nothing.
    isolation.accepted(isolation.refusals, 8);
    assert_eq!(isolation.refused(&mut bad, 7), Decision::Suspect);
    // An acceptance of what was sent after the first refusal proves that the consumer works.
    isolation.accepted(1, 7);
    assert_eq!(isolation.refused(&mut bad, 7), Decision::Doubt);
}

#[test]
fn halves_keep_the_time_of_the_first_refusal() {
    let mut isolation = Isolation::new(Rejected::DeadLetter, false);
    let mut whole = work(0, 2);
    assert_eq!(isolation.refused(&mut whole, 0), Decision::Suspect);
    let mut left = Work { events: 1, ..whole };
    // The right half is accepted, and was sent after the whole had been refused.
    isolation.accepted(isolation.refusals, 0);
    assert_eq!(isolation.refused(&mut left, 0), Decision::Doubt);
}

#[test]
fn a_round_compares_one_new_event_and_is_over_when_that_is_refused_too() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    assert!(!isolation.is_active());
    isolation.refused(&mut work(0, 1), 0);
    assert!(isolation.is_active());
    assert_eq!(isolation.next_comparison(), Some(1));
    isolation.sent();
    isolation.refused(&mut work(1, 1), 0);
    assert_eq!(isolation.next_comparison(), None);
    assert_eq!(isolation.next_comparison(), Some(1), "a new round");
    isolation.end();
    assert!(!isolation.is_active());
}

#[test]
fn a_comparison_of_which_the_filter_lets_nothing_pass_takes_twice_as_many_next() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    isolation.refused(&mut work(0, 1), 0);
    for events in [1, 2, 4, 5, 5] {
        assert_eq!(isolation.next_comparison(), Some(events));
        isolation.nothing_left(5);
    }
    assert_eq!(isolation.next_comparison(), Some(5));
    isolation.sent();
    isolation.accepted(1, 0);
    assert_eq!(isolation.next_comparison(), Some(1));
}

#[test]
fn a_new_event_ends_a_pause_only_while_suspects_wait_to_be_compared() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    assert!(!isolation.awaits_event());
    isolation.refused(&mut work(0, 1), 0);
    assert_eq!(isolation.next_comparison(), Some(1));
    isolation.nothing_to_compare();
    assert!(isolation.awaits_event());
    // The consumer has asked for a pause, or a new event has arrived.
    isolation.await_no_event();
    assert!(!isolation.awaits_event());
    assert_eq!(isolation.next_comparison(), Some(1));
    isolation.nothing_to_compare();
    isolation.accepted(1, 0);
    assert!(!isolation.awaits_event());
}

#[test]
fn each_round_sends_another_suspect_beside_the_first() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    let turns: Vec<_> = (0..6).map(|_| isolation.rotate(3)).collect();
    assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
    assert_eq!(isolation.rotate(0), 0, "the first is the only one");
}

#[test]
fn the_memory_of_consumers_is_bounded() {
    let mut isolation = Isolation::new(Rejected::Drop, false);
    for consumer in 0..10 * CONSUMERS_MAX {
        isolation.accepted(1, consumer);
    }
    assert_eq!(isolation.conducts.len(), CONSUMERS_MAX);
}
