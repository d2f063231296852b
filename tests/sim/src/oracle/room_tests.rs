use super::super::tests::{Small, seconds};
use super::*;
use crate::truth::{Death, Kind};

/// A body is accepted at second 10, and arrives at this second. Another one is refused at second
/// 200. The queue is too small for both by `less` bytes.
fn small(comes: Option<u64>, on_disk: bool, less: usize) -> Small {
    let mut small = Small::new();
    let serials = small.two(10);
    comes.into_iter().for_each(|second| small.arrive(second, &serials));
    let refused = small.made(2, "get");
    small.send(&refused, 200, Some((1, Answer::Status(429))));
    let size = |serial: &Serial| small.event(*serial).bytes.len() + 1;
    let bodies = [serials, refused].map(|it| it.iter().map(size).sum::<usize>() + BATCH);
    let room = match on_disk {
        true => bodies.iter().map(|bytes| 2 * (bytes + BLOCK)).sum::<usize>() + 3 * 1024,
        false => bodies.iter().sum(),
    };
    small.config(0, |config| {
        (config.on_disk, config.segment_bytes, config.queue_bytes) = (on_disk, 1024, room - less);
    });
    small
}

/// Returns `true` if the refusal has a reason.
fn is_explained(small: &Small) -> bool {
    let faults = small.rule(|world, _| Room::new(world).refused());
    faults.iter().for_each(|it| assert!(it.contains("was answered 429, and there was room")));
    assert!(faults.len() <= 1, "{faults:?}");
    faults.is_empty()
}

#[test]
fn a_429_needs_bodies_that_wait() {
    for on_disk in [false, true] {
        assert!(is_explained(&small(None, on_disk, 1)));
        assert!(!is_explained(&small(None, on_disk, 0)));
        assert!(!is_explained(&small(Some(109), on_disk, 1)));
        assert!(is_explained(&small(Some(110), on_disk, 1)));
    }
    // While nothing is wrong, an event is removed at once.
    let is_full = |small: &Small| {
        let rule = |world: &World<'_>, _: &Seen<'_>| {
            let attempt = world.truth.attempts.last().expect("it is refused");
            let text = Room::new(world).may_be_full_calmly(attempt).to_string();
            vec![Fault { rule: "answers", output: String::new(), text }]
        };
        small.rule(rule) == ["answers: true"]
    };
    assert!(is_full(&small(Some(199), false, 1)));
    assert!(!is_full(&small(Some(198), false, 1)));
}

#[test]
fn what_waits_for_an_optional_output_or_died_fills_no_queue() {
    let mut optional = small(None, false, 1);
    let config = optional.truth.epochs.last().map(|epoch| Config::clone(&epoch.config));
    optional.config(0, |it| {
        *it = config.expect("there is one");
        it.outputs[0].required = false;
    });
    assert!(!is_explained(&optional));
    for on_disk in [false, true] {
        let mut killed = small(None, on_disk, 1);
        killed.dies(100, Kind::Kill);
        assert_eq!(is_explained(&killed), on_disk);
    }
}

#[test]
fn an_event_that_waits_keeps_what_came_after_it() {
    let mut small = small(None, false, 0);
    let later = small.two(20);
    small.arrive(21, &later);
    assert!(is_explained(&small));
}

#[test]
fn a_429_may_come_from_a_relay_that_ends_or_a_disk_in_trouble() {
    let mut ends = small(None, false, 0);
    ends.dies(200, Kind::Drain);
    assert!(is_explained(&ends));
    let mut disk = small(None, true, 0);
    disk.truth.refusing.push((seconds(160), seconds(170)));
    assert!(is_explained(&disk));
    disk.truth.refusing = vec![(seconds(160), seconds(169))];
    assert!(!is_explained(&disk));
}

#[test]
fn bodies_fill_a_queue_on_disk_if_they_come_in_a_short_time_or_just_before_a_start() {
    let full = |small: &Small, at: u64| may_have_filled(&small.truth, seconds(at), seconds(2));
    // The body of second 10 is complete at second 11. The other one was refused.
    let too_small = |on_disk: bool| {
        let mut small = small(None, on_disk, 0);
        let mut config = Config::clone(&small.truth.epochs[1].config);
        config.queue_bytes /= 2;
        small.truth.epochs.clear();
        small.config(0, |it| *it = config);
        small
    };
    let mut on_disk = too_small(true);
    let at = [9, 10, 13, 14, 200];
    assert_eq!(at.map(|at| full(&on_disk, at)), [false, true, true, false, false]);
    assert!(!full(&too_small(false), 11));
    let mut has_room = too_small(true);
    has_room.config(0, |config| config.on_disk = true);
    has_room.truth.epochs.remove(0);
    assert!(!full(&has_room, 11));
    // The relay notices after its start what happened before its end.
    on_disk.truth.deaths.push(Death {
        begun: seconds(12),
        ended: Some(seconds(30)),
        kind: Kind::Kill,
    });
    assert_eq!([29, 30, 32, 33].map(|at| full(&on_disk, at)), [false, true, true, false]);
}
