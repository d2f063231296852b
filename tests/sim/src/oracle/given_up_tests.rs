use super::super::reasons;
use super::super::tests::{Small, seconds};
use super::*;
use crate::truth::{Death, Kind};

/// An event is given up at second 20 for this reason, after this many refusals alone.
fn case(reason: &str, refusals: u64) -> Small {
    let mut small = Small::new();
    let serials = small.two(5);
    small.turn_down(6, &serials, false);
    (0..refusals).for_each(|second| small.turn_down(7 + second, &serials[..1], false));
    small.letter_at(20, serials[0]);
    small.letters[0].reason = reason.into();
    small
}

#[test]
fn an_event_is_given_up_after_eight_refusals_alone() {
    let refused = "http://a: answered 400 Bad Request";
    case(refused, 8).passes(answered);
    case(refused, 7).fails(answered, "has turned it down 7 times alone, and by this status");
    case("http://a: answered 413 Payload Too Large", 8).fails(answered, "never by this status");
    case("longer than max_message_bytes", 0).passes(answered);
    // The notes of the consumer have no status for an answer of raw bytes.
    let mut raw = case("http://a: answered 200 OK: the response is not JSON", 8);
    raw.turned_down.iter_mut().for_each(|down| down.status = 0);
    raw.passes(answered);
    case("http://a: answered 500 for an event", 8).fails(answered, "never by this status");
    // Four other failures in between are enough, whatever the last answer was.
    let beside = |failures: u64| {
        let mut small = case(refused, 3);
        let serials: Vec<_> = small.truth.events.keys().copied().take(1).collect();
        (0..failures).for_each(|second| small.turn_down(10 + second, &serials, true));
        small
    };
    beside(4).passes(answered);
    beside(3).fails(answered, "has turned it down 6 times alone, and by this status");
    // A store that only counts refused events has no list of them.
    let mut counts = case(refused, 0);
    counts.promise.counts = true;
    counts.passes(answered);
}

#[test]
fn refusals_count_in_one_life() {
    let refused = "http://a: answered 400 Bad Request";
    let mut another_life = case(refused, 8);
    another_life.dies(10, Kind::Kill);
    another_life.fails(answered, "has turned it down 5 times alone");
    // A relay that is shutting down needs eight refusals, too.
    let mut ends = case(refused, 7);
    let (begun, ended) = (seconds(19), Some(seconds(21)));
    ends.truth.deaths.push(Death { begun, ended, kind: Kind::Drain });
    ends.fails(answered, "has turned it down 7 times alone");
    // Fewer refusals are enough if another event takes its place on the shelf.
    case(&format!("{refused}, and no more events can be set aside"), 3).passes(answered);
}

#[test]
fn an_event_is_given_up_after_four_server_errors_alone() {
    let case = |errors: u64| {
        let mut small = case("http://a: answered 500 Internal Server Error", 0);
        let serials: Vec<_> = small.truth.events.keys().copied().take(1).collect();
        (0..errors).for_each(|second| small.turn_down(10 + second, &serials, true));
        small
    };
    case(4).passes(answered);
    case(3).fails(answered, "has turned it down 3 times alone, and by this status");
}

#[test]
fn an_event_is_given_up_if_no_more_can_be_set_aside() {
    let case = |errors: u64, reason: &str, queue_bytes: usize| {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.queue_bytes = queue_bytes);
        let serials = small.two(5);
        (0..errors).for_each(|second| small.turn_down(10 + second, &serials[..1], true));
        small.turn_down(15, &serials[1..], true);
        small.letter_at(20, serials[0]);
        small.letters[0].reason = reason.into();
        small
    };
    let (reason, other) = ("http://a: answered 402 x, and no more events can be set aside", "402");
    case(4, reason, 4 << 10).passes(reasons);
    let says = "is in a dead letter, and the consumer takes such events";
    // It was not turned down often enough, it was given up for itself, or there was room.
    case(3, reason, 4 << 10).fails(reasons, says);
    case(4, other, 4 << 10).fails(reasons, says);
    case(4, reason, 64 << 10).fails(reasons, says);
    // Another event that has arrived needs no room.
    let mut small = case(4, reason, 8 << 10);
    small.passes(reasons);
    let other = *small.truth.events.keys().last().expect("an event");
    small.arrive(19, &[other]);
    small.fails(reasons, says);
}
