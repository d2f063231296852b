//! Tests of each promise of the queue in memory. `model` tests all promises together.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::contract::{is_list, now};
use crate::tests;
use crate::tests::Counts;
use audit::LevelCounts;
use telemetry::Telemetry;

mod model;

fn settings(max_bytes: u64, when_full: WhenFull, acknowledge: Acknowledge) -> config::Queue {
    let config = config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
    config::Queue { max_bytes, when_full, acknowledge, ..config.queue }
}

fn queue(max_bytes: u64, when_full: WhenFull, acknowledge: Acknowledge) -> (Queue, Telemetry) {
    let telemetry = Telemetry::new();
    let settings = settings(max_bytes, when_full, acknowledge);
    let identity = Identity::random().expect("it has random numbers");
    let (queue, _) = Queue::new(&settings, identity, telemetry.queue(), &[]);
    (queue, telemetry)
}

fn join(queue: &Queue, telemetry: &Telemetry, name: &str) -> Cursor {
    let output = Output {
        name: name.to_owned(),
        required: true,
        metrics: telemetry.output(name),
        recorder: None,
    };
    queue.join(output).expect("its name is free")
}

fn batch(events: &[String]) -> Append {
    let lines: String = events.iter().flat_map(|event| [event.as_str(), "\n"]).collect();
    let count = events.len() as u64;
    Append { lines: Bytes::from(lines), events: count, levels: LevelCounts::default(), list: None }
}

/// Makes a batch of these events: a JSON list, as it is received.
fn list(events: &[String]) -> Append {
    let offset = |index: usize| events[..index].iter().map(|event| event.len() + 1).sum::<usize>();
    let ends =
        (1..=events.len()).map(|index| u32::try_from(offset(index) - 1).expect("it is small"));
    let ends = ends.collect();
    Append { lines: Bytes::from(events.join(",") + "]"), list: Some(ends), ..batch(events) }
}

/// Returns a piece as lines. The events of a list have neither commas nor brackets.
fn as_lines(piece: &Bytes) -> Vec<u8> {
    let is_end = |byte: u8| is_list(piece) && (byte == b',' || byte == b']');
    piece.iter().map(|byte| if is_end(*byte) { b'\n' } else { *byte }).collect()
}

fn store(queue: &Queue, events: &[String], why: &str) {
    drop(queue.append(batch(events)).expect(why));
}

fn names(names: &str) -> Vec<String> {
    names.split_whitespace().map(str::to_owned).collect()
}

fn read(batch: &Batch) -> Vec<String> {
    let lines: Vec<u8> = batch.pieces.iter().flat_map(as_lines).collect();
    assert_eq!(batch.bytes, lines.len() as u64);
    assert!(lines.is_empty() || lines.ends_with(b"\n"), "whole lines");
    let events: Vec<String> =
        String::from_utf8(lines).expect("as appended").lines().map(str::to_owned).collect();
    assert_eq!(batch.events, events.len() as u64);
    events
}

fn value(telemetry: &Telemetry, series: &str) -> u64 {
    tests::value(telemetry, series).unwrap_or_else(|| panic!("no {series}"))
}

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

#[test]
fn what_is_finished_behind_a_dropped_claim_is_let_go_at_once() {
    let (queue, telemetry) = queue(3 * 258, WhenFull::DropOldest, Acknowledge::Queued);
    let cursor = join(&queue, &telemetry, "o");
    for name in ["a", "b", "c"] {
        store(&queue, &names(name), "room");
    }
    let one = Take { bytes: u64::MAX, events: 1 };
    let claims: Vec<_> = (0..3).map(|_| cursor.next(one, false).expect("an event").claim).collect();
    cursor.release(claims[0]);
    cursor.acknowledge(claims[1], Disposition::default());
    store(&queue, &names("d"), "a is dropped");
    cursor.acknowledge(claims[2], Disposition::default());
    let rest = cursor.next(one, false).expect("d");
    cursor.acknowledge(rest.claim, Disposition::default());
    assert_eq!((queue.needed(), queue.held()), (0, (0, 0)));
    assert!(cursor.redeliver(claims[0]).is_none());
    assert_eq!(value(&telemetry, "error_total{plugin=\"o\"}"), 1);
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}"), 1);
}

/// Method: another output keeps the first event of a claim in the queue, and the second one is
/// dropped. Then the claim is split. Nobody asks for the part that is gone.
#[test]
fn a_dropped_part_of_a_claim_keeps_nothing_that_is_finished_behind_it() {
    let (queue, telemetry) = queue(3 * 258, WhenFull::DropOldest, Acknowledge::Queued);
    let [slow, cursor] = ["slow", "o"].map(|name| join(&queue, &telemetry, name));
    for name in ["a", "b", "c"] {
        store(&queue, &names(name), "room");
    }
    let take = |events| Take { bytes: u64::MAX, events };
    let held = slow.next(take(1), false).expect("a").claim;
    let claim = cursor.next(take(2), false).expect("a and b").claim;
    let behind = cursor.next(take(1), false).expect("c").claim;
    cursor.release(claim);
    store(&queue, &names("d"), "b is dropped");
    let (kept, _) = cursor.split_at(claim, claim.start + 1).expect("one and one");
    assert!(cursor.redeliver(kept).is_some());
    let last = cursor.next(ALL, false).expect("d").claim;
    for claim in [kept, behind, last] {
        cursor.acknowledge(claim, Disposition::default());
    }
    let rest = slow.next(ALL, false).expect("c and d").claim;
    for claim in [held, rest] {
        slow.acknowledge(claim, Disposition::default());
    }
    assert_eq!((queue.needed(), queue.held()), (0, (0, 0)));
}

#[test]
fn a_claim_of_which_one_event_is_left_is_not_split() {
    let (queue, telemetry) = queue(3 * 258, WhenFull::DropOldest, Acknowledge::Queued);
    let cursor = join(&queue, &telemetry, "o");
    for name in ["a", "b"] {
        store(&queue, &names(name), "room");
    }
    let claim = cursor.next(ALL, false).expect("both").claim;
    cursor.release(claim);
    store(&queue, &names("c"), "room");
    assert!(
        cursor.split_at(claim, claim.start + 1).is_some_and(|(left, _)| left.start == claim.start)
    );
    cursor.rewind();
    let claim = cursor.next(ALL, false).expect("all").claim;
    let (front, _) = cursor.split_at(claim, claim.start + 2).expect("two and one");
    cursor.release(front);
    store(&queue, &names("d"), "a is dropped");
    let (dropped, kept) = cursor.split_at(front, front.start + 1).expect("one and one");
    assert!(cursor.redeliver(dropped).is_none());
    assert!(cursor.redeliver(kept).is_some());
}

#[test]
fn a_batch_is_cut_at_any_line_whatever_its_length() {
    let (queue, telemetry) = queue(10_000_000, WhenFull::Reject, Acknowledge::Queued);
    let cursor = join(&queue, &telemetry, "o");
    // More than a few marks, with lines of every length.
    let events: Vec<String> = (0..1000).map(|n| format!("{n}{}", "x".repeat(n % 97))).collect();
    for (bytes, count) in [(1, 1), (50, 7), (1000, 64), (1000, 63), (u64::MAX, 65), (100_000, 500)]
    {
        store(&queue, &events, "room");
        let mut got = Vec::new();
        while got.len() < events.len() {
            let taken = cursor.next(Take { bytes, events: count }, false).expect("more of it");
            assert!(taken.events == 1 || (taken.bytes <= bytes && taken.events <= count));
            got.extend(read(&taken));
            cursor.acknowledge(taken.claim, Disposition::default());
        }
        assert_eq!(got, events);
        assert!(cursor.next(ALL, false).is_none());
    }
}

#[test]
fn abandon_counts_what_each_output_has_not_got() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Queued);
    let cursors = ["o", "p"].map(|name| join(&queue, &telemetry, name));
    store(&queue, &names("a b c"), "room");
    let taken = cursors[0].next(Take { bytes: u64::MAX, events: 2 }, false).expect("two");
    for _ in 0..2 {
        // Nothing is counted the second time, because the claim is final.
        cursors[0].acknowledge(taken.claim, Disposition::default());
    }
    assert_eq!(queue.abandon(), [("o".to_owned(), 1), ("p".to_owned(), 3)]);
    assert_eq!(queue.abandon(), [("o".to_owned(), 0), ("p".to_owned(), 0)], "once");
    assert_eq!(value(&telemetry, "error_total{plugin=\"p\"}"), 3);
}

/// One event is set aside by two outputs. One of them is then removed, and the other delivers it.
#[test]
fn an_event_that_is_set_aside_needs_room_until_it_is_settled_or_its_output_leaves() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Queued);
    let [stays, leaves] = ["o", "p"].map(|name| join(&queue, &telemetry, name));
    store(&queue, &names("a"), "room");
    for cursor in [&stays, &leaves] {
        let claim = cursor.next(ALL, false).expect("a").claim;
        cursor.set_aside(claim, &[b'a'; 100]).expect("it is in the queue");
    }
    assert_eq!((queue.needed(), queue.held()), (200, (200, 0)));
    assert_eq!(leaves.remove(true), 1, "it is lost for this output");
    assert_eq!(queue.needed(), 100);
    let event = Aside { bytes: 100, received: now() };
    stays.settle_aside(Position::START, event, Disposition::default());
    assert_eq!((queue.needed(), queue.held()), (0, (0, 0)));
    assert_eq!(queue.abandon(), [("o".to_owned(), 0)]);
}

/// Adds an output, and returns its counters too.
fn join_counted(
    queue: &Queue,
    telemetry: &Telemetry,
    name: &str,
    required: bool,
) -> (Cursor, Counts) {
    let counts = Counts::default();
    let output = counts.output(telemetry, name, required);
    (queue.join(output).expect("its name is free"), counts)
}

/// Takes the next claim of a cursor, finishes it, and returns its events.
fn deliver(cursor: &Cursor) -> Vec<String> {
    let taken = cursor.next(ALL, false).expect("something is there");
    cursor.acknowledge(taken.claim, Disposition::default());
    read(&taken)
}

#[tokio::test]
async fn no_sender_is_told_that_a_batch_is_delivered_when_its_output_has_ended() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
    let cursor = join(&queue, &telemetry, "o");
    let mut begun = queue.append(batch(&names("a b"))).expect("room");
    let taken = cursor.next(ALL, false).expect("it is on the wire");
    let mut waiting = queue.append(batch(&names("c"))).expect("room");
    queue.give_up("o");
    for ticket in [&mut begun, &mut waiting] {
        assert_eq!(ticket.acknowledged().await, Err(Refused::Undelivered));
        assert_eq!(ticket.acknowledged().await, Err(Refused::Undelivered), "and it stays so");
    }
    assert_eq!(queue.append(batch(&names("d"))).err(), Some(Refused::Undelivered));
    assert_eq!(value(&telemetry, "event_total"), 2, "c was never here: its sender has it");
    cursor.release(taken.claim);
    assert_eq!(queue.abandon(), [("o".to_owned(), 2)], "what was begun is counted");
    assert_eq!(value(&telemetry, "error_total{plugin=\"o\"}"), 2);
}

#[tokio::test]
async fn of_several_required_outputs_one_that_has_ended_is_enough_for_a_refusal() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
    let [ending, going] = ["ending", "going"].map(|name| join(&queue, &telemetry, name));
    let mut both = queue.append(batch(&names("a"))).expect("room");
    let mut other = queue.append(batch(&names("b"))).expect("room");
    let mut untouched = queue.append(batch(&names("c"))).expect("room");
    let one = Take { bytes: u64::MAX, events: 1 };
    for cursor in [&ending, &going] {
        let taken = cursor.next(one, false).expect("a");
        cursor.acknowledge(taken.claim, Disposition::default());
    }
    let taken = going.next(one, false).expect("b");
    going.acknowledge(taken.claim, Disposition::default());
    queue.give_up("ending");
    assert_eq!(both.acknowledged().await, Ok(()), "both have it");
    assert_eq!(other.acknowledged().await, Err(Refused::Undelivered), "only one has it");
    assert_eq!(untouched.acknowledged().await, Err(Refused::Undelivered));
    assert!(going.next(ALL, false).is_none(), "and nobody begins what its sender has");
    assert_eq!(queue.abandon(), [("ending".to_owned(), 1), ("going".to_owned(), 0)]);
    assert_eq!(queue.held(), (0, 0));
}

/// Method: one of two required outputs sets an event aside, and leaves or ends before the other one
/// has delivered the batch.
#[tokio::test]
async fn a_sender_is_refused_if_the_output_goes_that_has_set_its_event_aside() {
    for leaves in [true, false] {
        let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
        let [going, other] = ["going", "other"].map(|name| join(&queue, &telemetry, name));
        let mut ticket = queue.append(batch(&names("a"))).expect("room");
        set_aside(&going);
        if leaves {
            going.remove(true);
        } else {
            queue.give_up("going");
        }
        assert_eq!(deliver(&other), ["a"]);
        let answer = tokio::time::timeout(Duration::from_secs(10), ticket.acknowledged()).await;
        assert_eq!(answer, Ok(Err(Refused::Undelivered)), "leaves: {leaves}");
    }
}

#[tokio::test]
async fn an_optional_output_that_has_ended_costs_no_sender_its_answer() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
    let required = join(&queue, &telemetry, "required");
    let (_optional, _) = join_counted(&queue, &telemetry, "optional", false);
    let mut ticket = queue.append(batch(&names("a"))).expect("room");
    queue.give_up("optional");
    let mut second = queue.append(batch(&names("b"))).expect("room");
    assert_eq!(deliver(&required), names("a b"));
    assert_eq!((ticket.acknowledged().await, second.acknowledged().await), (Ok(()), Ok(())));
    assert_eq!(queue.abandon(), [("required".to_owned(), 0), ("optional".to_owned(), 2)]);
}

#[test]
fn one_that_joined_for_nothing_has_lost_nothing() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Queued);
    let staying = join(&queue, &telemetry, "staying");
    store(&queue, &names("a"), "room");
    let counts = Counts::default();
    let guest = || queue.join(counts.output(&telemetry, "guest", true)).expect("its name is free");
    let undone = crate::Cursor::Memory(guest());
    store(&queue, &names("b c"), "room");
    assert_eq!(deliver(&staying), names("a b c"));
    assert_eq!(queue.held().1, 2, "kept for it");
    undone.leave_uncounted();
    assert_eq!((queue.held().1, counts.lost(), counts.start()), (0, 0, -3.0), "it adds up to 0");
    store(&queue, &names("d"), "room");
    let again = guest();
    assert_eq!(counts.start(), -4.0);
    store(&queue, &names("e"), "room");
    assert_eq!(deliver(&again), names("e"));
    assert_eq!((counts.delivered(), counts.lost()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_says_where_and_how_old_its_pieces_are() {
    use std::time::Duration;
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Queued);
    let cursor = join(&queue, &telemetry, "o");
    store(&queue, &names("a b c"), "room");
    tokio::time::advance(Duration::from_secs(5)).await;
    store(&queue, &names("d e"), "room");
    tokio::time::advance(Duration::from_secs(2)).await;
    let taken = cursor.next(ALL, false).expect("both");
    let times: Vec<_> = taken.acceptances.iter().map(|acceptance| acceptance.received).collect();
    assert!(times.is_sorted() && times.iter().all(|time| now() - time < 60_000), "{times:?}");
    let acceptance = |first: Position, events, seconds| {
        let received = times[usize::from(first.get() >= 3)];
        Acceptance { first, events, age: Duration::from_secs(seconds), received }
    };
    assert_eq!(
        taken.acceptances,
        [acceptance(Position::new(0), 3, 7), acceptance(Position::new(3), 2, 2)]
    );
    cursor.release(taken.claim);
    let (left, right) = cursor.split_at(taken.claim, taken.claim.start + 2).expect("two parts");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(
        cursor.redeliver(left).expect("the left").acceptances,
        [acceptance(Position::new(0), 2, 8)]
    );
    assert_eq!(
        cursor.redeliver(right).expect("the right").acceptances,
        [acceptance(Position::new(2), 1, 8), acceptance(Position::new(3), 2, 3)]
    );
}

/// Takes the next claim of a cursor, of one event, and sets the event aside.
fn set_aside(cursor: &Cursor) -> (Position, Weak<Bytes>) {
    let taken = cursor.next(Take { bytes: u64::MAX, events: 1 }, false).expect("an event");
    let line = cursor.set_aside(taken.claim, &taken.pieces[0]);
    (taken.claim.start, line.expect("it is in the queue"))
}

/// Method: an optional output sets two events aside, of 244 bytes each, and a required one takes
/// everything. The queue then has room for one more batch beside them, and gets three.
#[test]
fn an_event_that_an_optional_output_has_set_aside_is_kept_until_its_room_is_needed() {
    let (queue, telemetry) = queue(1100, WhenFull::Reject, Acknowledge::Queued);
    let required = join(&queue, &telemetry, "required");
    let (optional, counts) = join_counted(&queue, &telemetry, "optional", false);
    let long = |name: &str| [name.repeat(243)];
    let [(first, a), (second, b)] = ["a", "b"].map(|name| {
        store(&queue, &long(name), "room");
        deliver(&required);
        set_aside(&optional)
    });
    assert_eq!((queue.needed(), queue.held()), (0, (488, 0)));
    store(&queue, &long("c"), "there is room for both");
    assert_eq!(b.upgrade().expect("it is kept").to_vec(), batch(&long("b")).lines);
    queue.admits(244).expect("only 500 bytes are needed");
    store(&queue, &long("d"), "one event makes room");
    assert_eq!((a.strong_count(), counts.lost()), (0, 2));
    assert_eq!((b.strong_count(), queue.held()), (0, (1000, 2)), "and the other one too");
    assert_eq!(value(&telemetry, "output_aside_events{output=\"optional\"}"), 0);
    assert_eq!(queue.append(batch(&long("e"))).err(), Some(Refused::Full));
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}"), 0);
    // The consumer has received the second event all the same.
    for position in [first, second] {
        let event = Aside { bytes: 244, received: now() };
        optional.settle_aside(position, event, Disposition::default());
    }
    assert_eq!((counts.delivered(), counts.lost()), (0, 2), "each counts once");
}

/// Method: an optional output, which no event has reached yet, keeps batches in the queue, and
/// another one sets events aside. Then more batches come, one by one.
#[test]
fn the_oldest_events_that_only_optional_outputs_need_are_dropped_first() {
    let (queue, telemetry) = queue(2500, WhenFull::DropOldest, Acknowledge::Queued);
    let required = join(&queue, &telemetry, "required");
    let (late, kept) = join_counted(&queue, &telemetry, "late", false);
    let (setting, aside) = join_counted(&queue, &telemetry, "setting", false);
    let long = |name: &str| [name.repeat(243)];
    for name in ["a", "b"] {
        store(&queue, &long(name), "room");
        deliver(&required);
    }
    set_aside(&setting);
    set_aside(&setting);
    // A batch has 500 bytes, and an event that is set aside has 244.
    let expected = [(0, 0), (0, 0), (1, 0), (2, 1), (2, 2)];
    for (number, lost) in expected.into_iter().enumerate() {
        store(&queue, &long("c"), "something is old");
        assert_eq!((kept.lost(), aside.lost()), lost, "{number}");
        assert!(queue.held().0 <= 2500);
    }
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}"), 0);
    drop((late, setting));
}

/// Method: an optional output sets each event of a full queue aside, and a required one takes none.
#[test]
fn an_event_that_is_set_aside_in_a_full_queue_takes_no_further_memory() {
    let (queue, telemetry) = queue(3 * 500, WhenFull::Reject, Acknowledge::Queued);
    let _required = join(&queue, &telemetry, "required");
    let (optional, counts) = join_counted(&queue, &telemetry, "optional", false);
    for name in ["a", "b", "c"] {
        store(&queue, &[name.repeat(243)], "room");
    }
    for lost in 1..=3 {
        let (_, line) = set_aside(&optional);
        assert_eq!((line.strong_count(), counts.lost(), queue.held().0), (0, lost, 1500));
    }
}

/// Method: the event is dropped after an optional output has read it.
#[test]
fn an_event_that_was_dropped_is_not_set_aside() {
    let (queue, telemetry) = queue(600, WhenFull::Reject, Acknowledge::Queued);
    let required = join(&queue, &telemetry, "required");
    let (optional, counts) = join_counted(&queue, &telemetry, "optional", false);
    store(&queue, &["a".repeat(243)], "room");
    deliver(&required);
    let taken = optional.next(ALL, false).expect("it is kept for the output");
    store(&queue, &["b".repeat(243)], "the first batch makes room");
    assert!(optional.set_aside(taken.claim, &taken.pieces[0]).is_none());
    assert_eq!((counts.lost(), queue.held()), (1, (500, 1)));
    assert_eq!(queue.abandon(), [("required".to_owned(), 1), ("optional".to_owned(), 1)]);
}

/// Method: a required output sets an event aside, and a sender waits for it. The output becomes
/// optional, and the event's room is needed.
#[tokio::test]
async fn a_sender_has_its_answer_when_the_event_of_an_optional_output_is_dropped() {
    let (queue, telemetry) = queue(600, WhenFull::Reject, Acknowledge::Delivered);
    let required = join(&queue, &telemetry, "required");
    let changing = join(&queue, &telemetry, "changing");
    let mut ticket = queue.append(batch(&["a".repeat(243)])).expect("room");
    deliver(&required);
    set_aside(&changing);
    let more = ["b".repeat(243)];
    assert_eq!(queue.append(batch(&more)).err(), Some(Refused::Full), "it is needed");
    queue.require("changing", false);
    let _more = queue.append(batch(&more)).expect("the event makes room");
    let answer = tokio::time::timeout(Duration::from_secs(10), ticket.acknowledged()).await;
    assert_eq!(answer, Ok(Ok(())));
}
