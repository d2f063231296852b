use super::super::room::Room;
use super::super::tests::{CALM, OK, Small, seconds};
use super::*;
use crate::events::{Event, Maker, Marks};
use crate::truth::Limits;

/// Runs a rule about the whole world, which finds exactly one fault with this text, or none.
#[track_caller]
fn check(small: &Small, rule: impl Fn(&World<'_>) -> Vec<Fault>, says: Option<&str>) {
    let rule = |world: &World<'_>, _: &Seen<'_>| rule(world);
    match says {
        Some(says) => small.fails(rule, says),
        None => small.passes(rule),
    }
}

fn event(level: &'static str) -> Event {
    let mut maker = Maker::new(7, fastrand::Rng::with_seed(3), Marks::default());
    let mut events = std::iter::repeat_with(|| maker.event());
    events.find(|event| event.facts.level == level).expect("there is no end of them")
}

#[test]
fn no_event_is_longer_than_the_limit() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(12, &serials[..1]);
    small.passes(lengths);
    let bytes = small.event(serials[0]).bytes.len();
    small.longest = Some(Longest::Message(bytes));
    small.passes(lengths);
    small.longest = Some(Longest::Event(bytes - 1));
    small.fails(lengths, &format!("an event of {bytes} bytes came at 12s; the limit is"));
}

#[test]
fn what_is_too_long_may_be_rejected_and_what_can_be_trimmed_may_not() {
    let small = event("Metadata");
    let bytes = small.bytes.len();
    assert!(!Longest::Message(bytes + 300).may_reject(&small.bytes));
    assert!(Longest::Message(bytes + 299).may_reject(&small.bytes));
    assert!(!Longest::Event(bytes).may_reject(&small.bytes));
    assert!(Longest::Event(bytes - 1).may_reject(&small.bytes));
    // The bodies can be removed.
    let large = event("RequestResponse");
    let head = memchr::memmem::find(&large.bytes, b",\"requestObject\":").expect("a body");
    assert!(!Longest::Event(head + 400).may_reject(&large.bytes));
    assert!(Longest::Event(head).may_reject(&large.bytes));
    let line = b"{\"annotations\":{\"audit.k8s.io/truncated\":\"true\"}}";
    assert!(is_trimmed(Some(Longest::Event(head)), line, &large.bytes));
    assert!(!is_trimmed(Some(Longest::Event(large.bytes.len())), line, &large.bytes));
    assert!(!is_trimmed(Some(Longest::Event(line.len() - 1)), line, &large.bytes));
    assert!(!is_trimmed(Some(Longest::Event(head)), b"{}", &large.bytes));
}

#[test]
fn a_request_is_not_too_slow_before_its_time_is_over() {
    let rule = |world: &World<'_>| hurried(world.truth);
    let mut small = Small::new();
    let events = small.made(1, "get");
    small.send(&events, 10, Some((10, Answer::Status(408))));
    check(&small, rule, None);
    small.send(&events, 30, Some((9, Answer::Status(408))));
    check(&small, rule, Some("begun at 30s, was answered 408 too early"));
    small.config(25, |config| config.limits = Limits { slow: seconds(3), ..Limits::default() });
    check(&small, rule, None);
}

#[test]
fn more_than_may_be_under_way_is_answered_429() {
    let mut small = Small::new();
    let (one, other) = (small.made(1, "get"), small.made(1, "get"));
    small.send(&one, 70, Some((2, Answer::Status(429))));
    small.send(&other, 71, Some((5, Answer::Status(200))));
    let bytes = small.event(one[0]).bytes.len() + small.event(other[0]).bytes.len();
    let rule = |world: &World<'_>| super::super::senders_progress(world, &Room::new(world), CALM);
    check(&small, rule, Some("was answered: 429"));
    let limit = |bytes: usize| {
        move |config: &mut crate::truth::Config| {
            config.limits = Limits { in_flight: Some(bytes), ..Limits::default() };
        }
    };
    small.config(60, limit(bytes + 2 * ENVELOPE - 1));
    check(&small, rule, None);
    small.config(65, limit(bytes + 2 * ENVELOPE));
    check(&small, rule, Some("was answered: 429"));
}

#[test]
fn a_sender_is_served_beside_a_crowd() {
    let rule = |world: &World<'_>| served(world, CALM);
    let mut small = Small::new();
    let events = small.made(1, "get");
    for second in [62, 66, 70, 74] {
        small.send(&events, second, Some((1, Answer::Broken)));
    }
    check(&small, rule, None);
    small.config(0, |config| {
        config.limits = Limits { connections: Some(8), ..Limits::default() };
    });
    check(&small, rule, Some("none of 4 sound requests of sender 1 was served"));
    small.send(&events, 78, OK);
    check(&small, rule, None);
}

#[test]
fn what_an_output_still_has_comes_beside_the_one_with_its_new_name() {
    let mut small = Small::new();
    let (old, new) = (small.two(10), small.two(30));
    small.arrive(32, &new);
    small.arrive(35, &old[..1]);
    let rule = |world: &World<'_>, seen: &Seen<'_>| super::super::order(world, seen);
    small.fails(rule, "event 1/0 came at 35s after 1/3");
    small.config(20, |config| config.outputs[0].name = "another".into());
    small.passes(rule);
    small.arrived.truncate(2);
    small.arrive(36, &old[..1]);
    small.fails(rule, "event 1/0 came at 36s after 1/3");
}

#[test]
fn a_later_event_comes_early_where_one_that_is_too_long_waits() {
    let mut small = Small::new();
    let (long, one) = (small.two(10), small.two(12));
    let other = small.two(20);
    let keeps =
        |consumer: Option<usize>| move |config: &mut crate::truth::Config| config.keeps = consumer;
    small.config(5, keeps(Some(0)));
    for (second, serials) in [(22, &other), (30, &one), (30, &other)] {
        small.arrive(second, serials);
    }
    let rule = |world: &World<'_>, seen: &Seen<'_>| super::super::order(world, seen);
    small.fails(|world, seen| rule(world, seen).into_iter().take(1).collect(), "came at 30s after");
    let bytes = long.iter().map(|it| small.event(*it).bytes.len()).max().unwrap_or_default();
    small.longest = Some(Longest::Message(bytes + 299));
    small.passes(rule);
    // A stream sends the later events again on the same connection, or on the next one.
    (small.is_stream, small.is_unconfirmed) = (true, true);
    small.passes(rule);
    let (first, again) = small.arrived.split_at_mut(4);
    again.iter_mut().for_each(|arrived| arrived.connection += 1);
    assert_eq!(first.last().map(|arrived| arrived.connection), Some(1));
    small.passes(rule);
    // The later events do not arrive again.
    small.arrived.truncate(4);
    for is_stream in [false, true] {
        (small.is_stream, small.is_unconfirmed) = (is_stream, is_stream);
        let first_fault = |world: &World<'_>, seen: &Seen<'_>| {
            rule(world, seen).into_iter().take(1).collect::<Vec<_>>()
        };
        small.fails(first_fault, "came at 30s after");
    }
}

#[test]
fn the_newest_certificate_is_shown() {
    let rule = |world: &World<'_>| certificates(world.truth, CALM);
    let (one, two) = (vec![1], vec![2]);
    let small = |second: u64, shown: &[u8]| {
        let mut small = Small::new();
        small.certificates(&[(0, one.clone()), (70, two.clone())]);
        small.shakes(second, shown);
        small
    };
    check(&small(50, &one), rule, None);
    check(&small(50, &two), rule, Some("in a handshake from 50s on is number 1"));
    check(&small(50, &[3]), rule, Some("is an unknown one"));
    check(&small(72, &one), rule, None);
    check(&small(72, &two), rule, None);
    check(&small(76, &one), rule, Some("in a handshake from 76s on is number 0"));
    check(&small(76, &two), rule, None);
}

#[test]
fn no_request_breaks_while_the_certificate_is_replaced() {
    let rule = |world: &World<'_>| connections_stay(world.truth, CALM);
    let mut small = Small::new();
    let events = small.made(1, "get");
    small.send(&events, 72, Some((1, Answer::Broken)));
    check(&small, rule, None);
    small.certificates(&[(0, vec![1]), (50, vec![2]), (80, vec![3])]);
    check(&small, rule, None);
    small.certificates(&[(0, vec![1]), (70, vec![2])]);
    check(&small, rule, Some("a request of sender 1, begun at 72s, broke while it was replaced"));
    small.config(0, |config| {
        config.limits = Limits { connections: Some(8), ..Limits::default() };
    });
    check(&small, rule, None);
}
