//! Several requests are on the wire (`concurrency` above 1), and their answers come in an order
//! that a single lane never shows.

use super::*;

/// Sends each of these events alone, all before the first answer.
fn send_alone(hand: &mut Lanes, events: &[&str]) -> Vec<Batch> {
    events.iter().map(|event| hand.send(&[event])).collect()
}

/// Sends one event, after the end of the pause if there is one.
fn send_after_pause(hand: &mut Lanes) -> Batch {
    hand.try_send(1).unwrap_or_else(|| {
        hand.ledger().pacing.end_pause();
        hand.try_send(1).expect("the pause is over")
    })
}

/// The good event was sent before the refusal of the bad one, and is accepted after it.
#[tokio::test(start_paused = true)]
async fn an_acceptance_of_what_was_sent_before_a_refusal_proves_nothing() {
    for ordered in [false, true] {
        let mut hand = Lanes::new(ordered);
        hand.append(&["good", "bad"]);
        let sent = send_alone(&mut hand, &["good", "bad"]);
        hand.refuse(&sent[1]);
        hand.accept(&sent[0]);
        assert_eq!(hand.books(), [1, 1, 0, 0]);
        for _ in 0..3 {
            let bad = send_after_pause(&mut hand);
            assert_eq!(events_of(&bad), ["bad"]);
            hand.refuse(&bad);
            assert_eq!(hand.books(), [1, 1, 0, 0], "nothing was sent since");
        }
        // An event that is sent after the refusals is a proof; in an ordered output, one for each
        // of the three.
        hand.append(&["later"]);
        let later = loop {
            let batch = send_after_pause(&mut hand);
            if events_of(&batch) == ["later"] {
                break batch;
            }
            hand.refuse(&batch);
        };
        hand.accept(&later);
        // In order, the later event is final only after the bad one.
        let (needed, books) = if ordered { (3, [1, 2, 0, 0]) } else { (1, [2, 1, 0, 0]) };
        for refusal in 1..=needed {
            assert_eq!(hand.books(), books, "{refusal}");
            let bad = hand.send(&["bad"]);
            hand.refuse(&bad);
        }
        assert_eq!(hand.books(), [2, 0, 1, 0]);
    }
}

/// Two events are turned down at the same time. Neither is a proof against the other one, and one
/// acceptance later proves both to be at fault.
#[tokio::test(start_paused = true)]
async fn two_events_that_are_turned_down_together_wait_for_the_same_proof() {
    for lanes in [2, 4] {
        let mut hand = Lanes::new(false);
        let events = ["bad1", "bad2", "good1", "good2"];
        hand.append(&events);
        let sent = send_alone(&mut hand, &events[..lanes]);
        hand.refuse(&sent[1]);
        hand.refuse(&sent[0]);
        sent[2..].iter().for_each(|good| hand.accept(good));
        assert_eq!(hand.books(), [lanes as u64 - 2, 6 - lanes as u64, 0, 0]);
        let mut accepted = lanes as u64 - 2;
        hand.append(&["later"]);
        // Both bad events are sent again, both before the first answer.
        let again = [hand.try_send(1).expect("one"), hand.try_send(1).expect("the other one")];
        assert_eq!(again.each_ref().map(events_of), [["bad1"], ["bad2"]]);
        again.iter().for_each(|batch| hand.refuse(batch));
        assert_eq!(hand.value("output_aside_events{output=\"o\"}"), 0);
        while let Some(batch) = hand.try_send(1) {
            match is_bad(&events_of(&batch)) {
                true => hand.refuse(&batch),
                false => {
                    hand.accept(&batch);
                    accepted += 1;
                }
            }
            hand.ledger().pacing.end_pause();
            if accepted == 3 && hand.books()[2] == 2 {
                break;
            }
        }
        assert_eq!(hand.books(), [3, 0, 2, 0], "{lanes}");
    }
}

/// Each order of the answers to four requests, two of which are refused.
#[tokio::test(start_paused = true)]
async fn the_order_of_the_answers_changes_no_book() {
    let mut orders = Vec::new();
    for first in 0..4 {
        for second in (0..4).filter(|it| *it != first) {
            for third in (0..4).filter(|it| ![first, second].contains(it)) {
                orders.push([first, second, third, 6 - first - second - third]);
            }
        }
    }
    assert_eq!(orders.len(), 24);
    for (order, ordered) in orders.iter().flat_map(|order| [(order, false), (order, true)]) {
        let mut hand = Lanes::new(ordered);
        let events = ["good1", "bad1", "good2", "bad2"];
        hand.append(&events);
        let sent = send_alone(&mut hand, &events);
        let mut taken = Vec::new();
        for index in order {
            match is_bad(&events_of(&sent[*index])) {
                true => hand.refuse(&sent[*index]),
                false => {
                    taken.extend(events_of(&sent[*index]));
                    hand.accept(&sent[*index]);
                }
            }
            let [_, _, aside, lost] = hand.books();
            assert_eq!((aside, lost), (0, 0), "{order:?}: nothing was sent since");
        }
        for round in 0..100 {
            hand.append(&[&format!("later{round}")]);
            while let Some(batch) = hand.try_send(1) {
                let events = events_of(&batch);
                if is_bad(&events) {
                    hand.refuse(&batch);
                } else {
                    hand.accept(&batch);
                    taken.extend(events);
                }
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            hand.ledger().pacing.end_pause();
        }
        let [_, backlog, aside, lost] = hand.books();
        assert_eq!((backlog, aside, lost), (0, 0, 2), "{order:?}, ordered: {ordered}");
        let distinct: BTreeSet<_> = taken.iter().collect();
        assert_eq!(distinct.len(), 102, "{order:?}, ordered: {ordered}");
        // In order, what was accepted too early is sent again. Otherwise nothing is sent twice.
        assert!(ordered || taken.len() == 102, "{order:?}: {taken:?}");
    }
}

/// A reload comes after the refusal, with an answer outstanding. The old delivery's acceptances are
/// no proof for the new one.
#[tokio::test(start_paused = true)]
async fn a_hand_over_between_two_answers_forgets_the_proofs_and_no_event() {
    for lanes in [2, 4] {
        let mut hand = Lanes::new(false);
        let events = ["bad1", "bad2", "good1", "good2"];
        hand.append(&events);
        let sent = send_alone(&mut hand, &events[..lanes]);
        hand.refuse(&sent[0]);
        let mut hand = hand.hand_over();
        assert_eq!(hand.books(), [0, 4, 0, 0]);
        // An answer to the old delivery that comes late is about nothing on this wire.
        hand.accept(&sent[lanes - 1]);
        assert_eq!(hand.books(), [0, 4, 0, 0]);
        let mut seen = Vec::new();
        for turn in 0..200 {
            let Some(batch) = hand.try_send(1) else {
                hand.ledger().pacing.end_pause();
                continue;
            };
            let events = events_of(&batch);
            if is_bad(&events) || turn < 20 {
                hand.refuse(&batch);
                assert!(turn >= 20 || hand.books() == [0, 4, 0, 0], "{turn}: no proof");
            } else {
                hand.accept(&batch);
                seen.extend(events);
            }
            hand.ledger().pacing.end_pause();
        }
        assert_eq!(hand.books(), [2, 0, 2, 0], "{lanes}");
        seen.sort();
        assert_eq!(seen, ["good1", "good2"], "once each");
    }
}

/// After a failure, one request at a time is sent until one is accepted, however many lanes there
/// are. Answers to requests that were sent before the failure are answers, too.
#[tokio::test(start_paused = true)]
async fn after_a_failure_one_lane_is_used_until_something_is_accepted() {
    for lanes in [2_usize, 4] {
        let mut hand = Lanes::new(false);
        let names: Vec<_> = (0..4 * lanes).map(|number| number.to_string()).collect();
        hand.append(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let sent: Vec<_> = (0..lanes).map(|_| hand.try_send(1).expect("a lane")).collect();
        for batch in &sent {
            hand.fail(batch, AttemptError::Connect);
        }
        assert!(hand.try_send(1).is_none(), "a pause has begun");
        hand.ledger().pacing.end_pause();
        let one = hand.try_send(1).expect("the pause is over");
        assert!(hand.try_send(1).is_none(), "one lane only");
        hand.accept(&one);
        let many = (0..lanes).map_while(|_| hand.try_send(1)).count();
        assert_eq!(many, lanes, "all lanes again");
    }
}
