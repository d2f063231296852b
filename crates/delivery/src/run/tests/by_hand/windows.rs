//! The numbers and times of the ledger, at their ends: each test fails if a constant changes by one
//! step, or if a comparison includes or leaves out the end. The numbers are written out here.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

use super::*;
use crate::dead_letter::Written;

const MS: Duration = Duration::from_millis(1);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The consumer accepts something, and is silent about the next request, which ends this much
/// later. Returns `true` if the output is up then.
async fn is_up_after_silence(after: Duration) -> bool {
    let mut hand = Lanes::new(false);
    hand.append(&["a", "b"]);
    let first = hand.send(&["a"]);
    hand.accept(&first);
    assert!(hand.is_up());
    tokio::time::advance(after).await;
    let second = hand.send(&["b"]);
    hand.fail(&second, AttemptError::Timeout);
    hand.is_up()
}

#[tokio::test(start_paused = true)]
async fn a_silent_consumer_is_down_when_it_has_accepted_nothing_for_ten_seconds() {
    assert!(is_up_after_silence(secs(10) - MS).await);
    assert!(!is_up_after_silence(secs(10)).await);
}

/// The consumer fails without a pause. The output is down ten seconds after the first failure, not
/// after the last acceptance.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_fails_is_down_ten_seconds_after_its_first_failure() {
    for (after, is_up) in [(secs(10) - MS, true), (secs(10), false)] {
        let mut hand = Lanes::new(false);
        hand.append(&["a", "b"]);
        let first = hand.send(&["a"]);
        hand.accept(&first);
        tokio::time::advance(secs(100)).await;
        let second = hand.send(&["b"]);
        hand.fail(&second, AttemptError::Status5xx);
        assert!(hand.is_up(), "one failure is none of the consumer");
        tokio::time::advance(after).await;
        let second = hand.send(&["b"]);
        hand.fail(&second, AttemptError::Status5xx);
        assert_eq!(hand.is_up(), is_up, "{after:?}");
    }
}

/// Method: a connection breaks with four events on it. What it showed before, and for how long it
/// had lasted, tells an accident from too much on the connection.
#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_before_anything_is_final_gets_half_as_much_next() {
    let failure = failure(AttemptError::Closed);
    for (progress, has_lasted, next) in
        [(false, false, "a b"), (true, false, "a b c d"), (false, true, "a b c d")]
    {
        let mut hand = Lanes::new(true);
        hand.append(&["a", "b", "c", "d"]);
        hand.send(&["a", "b", "c", "d"]);
        hand.ledger().on_broken(&failure, (progress, has_lasted), 0);
        let again = hand.try_send(u64::MAX).expect("there is something to send");
        assert_eq!(events_of(&again).join(" "), next);
    }
}

/// An object of the same events has the same name, so it is tried again as it is: without end if
/// there are no other events, and until the store takes another object.
#[tokio::test(start_paused = true)]
async fn the_fourth_failure_in_a_row_lets_another_object_go_first() {
    let mut hand = Hand::<true>::new(true);
    hand.append(&["first"]);
    let first = hand.send(&["first"]);
    hand.accept(&first);
    hand.append(&["a", "b", "c", "d"]);
    let gone = |hand: &mut Hand<true>, events: &str| {
        let batch = hand.try_send(u64::MAX).expect("there is something to send");
        assert_eq!(events_of(&batch).join(" "), events);
        hand.ledger().on_gone(Some(&failure(AttemptError::Status5xx)), None, 0);
        hand.ledger().pacing.end_pause();
    };
    (0..60).for_each(|_| gone(&mut hand, "a b c d"));
    // In an outage, the object and others take turns, and none is divided.
    hand.append(&["e"]);
    gone(&mut hand, "a b c d");
    gone(&mut hand, "e");
    hand.append(&["f"]);
    gone(&mut hand, "a b c d e");
    gone(&mut hand, "f");
    hand.append(&["g"]);
    gone(&mut hand, "a b c d e f");
    let other = hand.send(&["g"]);
    hand.accept(&other);
    // The store takes others.
    gone(&mut hand, "a b c d e f");
    gone(&mut hand, "a b c");
    let one = hand.send(&["a"]);
    hand.accept(&one);
}

/// An object is refused, and divided once the store takes another one. The events of the next
/// object, which were collected beside it, were never refused: their first failure must not divide
/// it.
#[tokio::test(start_paused = true)]
async fn the_division_of_an_object_does_not_divide_the_next_one() {
    let mut hand = Hand::<true>::new(true);
    hand.append(&["a", "b"]);
    let gone = |hand: &mut Hand<true>, batch: &Batch, may_be_stored: bool| {
        let failure = Failure { may_be_stored, ..failure(AttemptError::Status5xx) };
        hand.ledger().on_gone(Some(&failure), Some(batch.claim), 0);
        hand.ledger().pacing.end_pause();
    };
    for _ in 0..4 {
        let first = hand.send(&["a", "b"]);
        hand.append(&["x"]);
        gone(&mut hand, &first, false);
    }
    let other = hand.send(&["x"]);
    hand.accept(&other);
    // An object that may be stored is sent again whole, also if the store takes others.
    for may_be_stored in [true, false] {
        let first = hand.send(&["a", "b"]);
        hand.ledger().on_taken(first.claim);
        let next = hand.send(&["x", "x", "x"]);
        gone(&mut hand, &first, may_be_stored);
        assert_eq!(next.events, 3);
    }
    let in_flight = &hand.ledger().in_flight;
    let doubted = in_flight.all(State::Pending).filter(|work| work.trial.is_doubted());
    assert_eq!(doubted.map(|work| work.claim.end - work.claim.start).collect::<Vec<_>>(), [1, 1]);
    for half in ["a", "b"] {
        let half = hand.send(&[half]);
        hand.accept(&half);
    }
}

/// The acceptance of another object begins the count of failures again.
#[tokio::test(start_paused = true)]
async fn three_failures_of_an_object_let_no_other_one_go_first() {
    let mut hand = Hand::<true>::new(true);
    for _ in 0..3 {
        hand.append(&["a", "b"]);
        for _ in 0..3 {
            let batch = hand.send(&["a", "b"]);
            assert_eq!(batch.events, 2);
            hand.append(&["new"]);
            hand.ledger().on_gone(Some(&failure(AttemptError::Status5xx)), None, 0);
            hand.ledger().pacing.end_pause();
        }
        let batch = hand.send(&["a", "b"]);
        hand.accept(&batch);
        for _ in 0..3 {
            let new = hand.try_send(1).expect("there is something to send");
            hand.accept(&new);
        }
    }
}

/// Each try of the event is over at once, and it can never be set aside.
#[tokio::test(start_paused = true)]
async fn an_event_that_can_not_be_set_aside_waits_from_one_second_to_thirty() {
    let mut hand = Lanes::new(false);
    hand.append(&["a"]);
    let claim = hand.send(&["a"]).claim;
    let in_flight = &mut hand.ledger().in_flight;
    for wanted in [1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30].map(secs) {
        in_flight.wait(claim);
        assert_eq!(in_flight.next_wait(), Some(Instant::now() + wanted));
        tokio::time::advance(wanted).await;
        assert_eq!(in_flight.end_wait(), Some(claim));
        assert_eq!(in_flight.next_wait(), None, "one at a time");
        assert!(matches!(in_flight.redeliver(claim), queue::Redelivery::Batch(_)));
    }
}

/// A try takes a second: others get nine seconds after it.
#[tokio::test(start_paused = true)]
async fn a_try_of_such_an_event_takes_a_tenth_of_the_time() {
    let mut hand = Lanes::new(false);
    hand.append(&["a"]);
    let claim = hand.send(&["a"]).claim;
    let in_flight = &mut hand.ledger().in_flight;
    in_flight.wait(claim);
    tokio::time::advance(secs(1)).await;
    in_flight.end_wait();
    assert!(matches!(in_flight.redeliver(claim), queue::Redelivery::Batch(_)));
    tokio::time::advance(secs(1)).await;
    in_flight.wait(claim);
    assert_eq!(in_flight.next_wait(), Some(Instant::now() + secs(9)), "its own pause is 2 s");
}

/// Counts the lines of the log with the level `error`.
struct Errors(Arc<AtomicU64>);

impl Subscriber for Errors {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let is_error = *event.metadata().level() == Level::ERROR;
        self.0.fetch_add(u64::from(is_error), Ordering::Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Method: the event is refused again and again, and the test says each time that its file could
/// not be written.
#[tokio::test(start_paused = true)]
async fn the_log_tells_once_a_minute_that_an_event_can_not_be_set_aside() {
    let told = Arc::<AtomicU64>::default();
    let _log = tracing::subscriber::set_default(Errors(Arc::clone(&told)));
    let (aside, _directory) = with_directory();
    let mut hand = Lanes::with(false, |begin| HandOver { aside, ..begin });
    hand.append(&["\"a\"", "\"bad\""]);
    let (first, bad) = (hand.send(&["\"a\""]), hand.send(&["\"bad\""]));
    hand.refuse(&bad);
    hand.accept(&first);
    hand.append(&["\"b\""]);
    let mut bad = hand.send(&["\"bad\""]);
    hand.refuse(&bad);
    while let Some(batch) = hand.try_send(1) {
        match events_of(&batch) == ["\"bad\""] {
            true => bad = batch,
            false => hand.accept(&batch),
        }
    }
    for (after, wanted) in
        [(Duration::ZERO, 1), (secs(60) - MS, 1), (MS, 2), (secs(60) - MS, 2), (MS, 3)]
    {
        tokio::time::advance(after).await;
        hand.refuse(&bad);
        assert!(!hand.ledger().given_up.is_ended(), "its file is written");
        let error = Some("no space".to_owned());
        hand.ledger().on_written(Written { events: 0, error });
        assert_eq!(told.load(Ordering::Relaxed), wanted, "{after:?}");
        assert_eq!(hand.books(), [2, 1, 0, 0], "it is in no book as set aside");
        hand.ledger().in_flight.end_waits();
        bad = hand.send(&["\"bad\""]);
    }
}
