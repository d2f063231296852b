use super::super::tests::{Small, seconds};
use super::super::{Fault, Seen, World};
use super::*;

/// Runs a rule about the requests, which finds exactly one fault with this text, or none.
#[track_caller]
fn check(small: &Small, rule: impl Fn(&Truth) -> Vec<Fault>, says: Option<&str>) {
    let rule = |world: &World<'_>, _: &Seen<'_>| rule(world.truth);
    match says {
        Some(says) => small.fails(rule, says),
        None => small.passes(rule),
    }
}

#[test]
fn a_request_that_breaks_needs_an_end_of_the_relay_or_a_connection_that_was_kept() {
    let now = seconds(1000);
    let unanswered = |truth: &Truth| unanswered(truth, now);
    let sends = |small: &mut Small, must, after| {
        let events = small.made(1, "get");
        small.request(&events, 30, Some((after, Answer::Broken)), must);
    };
    for must in [Must::Take, Must::Refuse("PUT", &[405])] {
        let mut small = Small::new();
        sends(&mut small, must, 1);
        check(&small, unanswered, Some("got no answer: broken"));
        small.truth.attempts[0].must = Must::Never;
        check(&small, unanswered, None);
        // Its connection was kept after this request.
        let mut kept = Small::new();
        kept.two(20);
        sends(&mut kept, must, 1);
        check(&kept, unanswered, None);
        // The rest of the body came too slowly.
        let mut slow = Small::new();
        sends(&mut slow, must, 3);
        check(&slow, unanswered, None);
        let mut crowded = Small::new();
        crowded.config(10, |config| config.limits.connections = Some(9));
        sends(&mut crowded, must, 1);
        check(&crowded, unanswered, None);
        let mut ends = Small::new();
        sends(&mut ends, must, 1);
        ends.dies(31, Kind::Kill);
        check(&ends, unanswered, None);
    }
}

#[test]
fn a_sender_that_shuts_down_its_write_side_gets_an_answer_unless_it_waits_for_delivery() {
    let case = |acknowledge, after| {
        let mut small = Small::new();
        small.config(10, |config| config.acknowledge = acknowledge);
        let events = small.made(1, "get");
        small.send(&events, 30, Some((after, Answer::HalfClosed)));
        small
    };
    let unanswered = |truth: &Truth| unanswered(truth, seconds(1000));
    check(&case(Acknowledge::Synced, 1), unanswered, Some("write side was shut down"));
    check(&case(Acknowledge::Synced, 3), unanswered, None);
    check(&case(Acknowledge::Delivered, 1), unanswered, None);
}

#[test]
fn in_a_drain_requests_wait_for_half_of_its_time_and_no_longer() {
    // The relay begins to drain at second 40, and may take 20 s.
    let case = |answer: Option<(u64, Answer)>, kind, begins: u64| {
        let mut small = Small::new();
        let events = small.made(1, "get");
        small.send(&events, begins, answer);
        small.dies(60, kind);
        small.truth.deaths[0].begun = seconds(40);
        small
    };
    let at = |second: u64, status| Some((second - 30, Answer::Status(status)));
    check(&case(at(50, 503), Kind::Drain, 30), in_a_drain, None);
    check(&case(at(49, 503), Kind::Drain, 30), in_a_drain, Some("too early"));
    check(&case(at(49, 200), Kind::Drain, 30), in_a_drain, None);
    check(&case(at(55, 503), Kind::Drain, 30), in_a_drain, Some("too late"));
    check(&case(None, Kind::Drain, 30), in_a_drain, Some("got nothing"));
    check(&case(Some((20, Answer::Broken)), Kind::Drain, 30), in_a_drain, Some("no answer"));
    check(&case(Some((20, Answer::Broken)), Kind::Kill, 30), in_a_drain, None);
    // The sender gave up before an answer was due.
    check(&case(Some((15, Answer::TimedOut)), Kind::Drain, 30), in_a_drain, None);
    check(&case(Some((30, Answer::TimedOut)), Kind::Drain, 30), in_a_drain, Some("too late"));
    // A request that comes after the drain has begun may get 503 at once.
    check(&case(Some((1, Answer::Status(503))), Kind::Drain, 40), in_a_drain, None);
    let mut disk = case(at(45, 503), Kind::Drain, 30);
    disk.truth.refusing.push((seconds(35), seconds(44)));
    check(&disk, in_a_drain, None);
    // The life that drains began to listen at second 39, or at second 37.
    for (settled, says) in [(39, None), (37, Some("no answer"))] {
        let mut short = case(Some((20, Answer::Broken)), Kind::Drain, 30);
        let (begun, ended) = (seconds(29), Some(seconds(29)));
        short.truth.deaths.insert(0, Death { begun, ended, kind: Kind::Kill });
        short.config(settled, |_| {});
        check(&short, in_a_drain, says);
    }
}
