//! The numbers and times of the rules, at their ends: each test fails if a constant changes by one
//! step, or if a comparison includes or leaves out the end. The numbers are written out here, so
//! that a change of a constant is seen.

use super::*;

const MS: Duration = Duration::from_millis(1);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Returns an event that was set aside at its first failure that counts.
fn just_set_aside(answer: Answer) -> (Retrial, Conducts) {
    let mut conducts = working();
    (set_aside(answer, &mut conducts), conducts)
}

fn doubted(conducts: &mut Conducts) {
    conducts.accepted(0, conducts.answers, true);
}

/// The address accepts an event that it had turned down, and another one within ten minutes: the
/// doubt lasts until ten minutes after the second one.
#[tokio::test(start_paused = true)]
async fn an_address_is_in_doubt_until_ten_minutes_after_its_last_acceptance_of_that_kind() {
    let mut conducts = Conducts::default();
    assert!(!conducts.of(0).is_in_doubt());
    doubted(&mut conducts);
    tokio::time::advance(secs(599)).await;
    assert!(conducts.of(0).is_in_doubt());
    doubted(&mut conducts);
    // An acceptance of another event is no second one.
    tokio::time::advance(secs(2)).await;
    accept(&mut conducts, 0);
    assert!(conducts.of(0).is_in_doubt(), "after the first end");
    tokio::time::advance(secs(597)).await;
    assert!(conducts.of(0).is_in_doubt(), "a second before the second end");
    tokio::time::advance(secs(1) - MS).await;
    assert!(conducts.of(0).is_in_doubt(), "just before the second end");
    tokio::time::advance(MS).await;
    assert!(!conducts.of(0).is_in_doubt(), "at the second end");
    assert!(!conducts.of(1).is_in_doubt());
}

/// The tries of an event when the address comes in doubt before it and, if `again`, once more.
async fn tries_after(again: bool, wait: Duration) -> u32 {
    let mut conducts = working();
    doubted(&mut conducts);
    tokio::time::advance(secs(500)).await;
    if again {
        doubted(&mut conducts);
    }
    tokio::time::advance(wait).await;
    let mut retrial = set_aside(Answer::Refused, &mut conducts);
    let mut tries = 1;
    loop {
        tokio::time::sleep_until(retrial.due).await;
        tries += 1;
        if retrial.turned_down(Answer::Refused, &mut conducts, 0, PLAIN) == Next::GiveUp {
            return tries;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_doubt_begins_the_ten_minutes_again() {
    assert_eq!(tries_after(false, secs(110)).await, 8, "the doubt is over");
    assert_eq!(tries_after(true, secs(110)).await, 24, "the second one is not");
    assert_eq!(tries_after(true, secs(610)).await, 8, "both are over");
}

#[test]
fn sixty_four_events_in_a_row_are_proven_to_be_at_fault_and_the_next_is_not() {
    for others in [0, 63, 64, 65] {
        let (mut conducts, mut trial) = (working(), Trial::default());
        trial.doubted(conducts.turned_down(0, false));
        accept(&mut conducts, 0);
        // A request of several events is no single event.
        conducts.turned_down(0, false);
        for _ in 0..others {
            conducts.turned_down(0, true);
        }
        let verdict = turn_down(&mut trial, &mut conducts, 0, false);
        assert_eq!(verdict == Verdict::SetAside, others < 64, "{others}");
    }
}

#[test]
fn an_ordered_output_sets_an_event_aside_at_the_third_failure_that_counts() {
    for (is_ordered, needed) in [(false, 1), (true, 3)] {
        let (mut conducts, mut trial) = (working(), Trial::default());
        turn_down(&mut trial, &mut conducts, 0, is_ordered);
        let counted = (1..10).find(|_| {
            accept(&mut conducts, 0);
            let verdict = turn_down_by(Answer::Refused, &mut trial, &mut conducts, 0, is_ordered);
            verdict == Verdict::SetAside
        });
        assert_eq!(counted, Some(needed));
    }
}

/// An event with its first refusal, and the refusal that is to give it up after `age`.
async fn given_up_at(age: Duration, refusals: u32, now: Circumstances) -> Next {
    let (mut retrial, mut conducts) = just_set_aside(Answer::Refused);
    for _ in 1..refusals - 1 {
        let next = retrial.turned_down(Answer::Refused, &mut conducts, 0, now);
        assert_eq!(next, Next::Wait);
    }
    tokio::time::advance(age).await;
    retrial.turned_down(Answer::Refused, &mut conducts, 0, now)
}

#[tokio::test(start_paused = true)]
async fn the_eighth_refusal_gives_up_after_three_seconds_and_not_before() {
    let drains = Circumstances { drains: true, ..PLAIN };
    for now in [PLAIN, drains] {
        for (age, refusals, next) in
            [(secs(3) - MS, 8, Next::Wait), (secs(3), 7, Next::Wait), (secs(3), 8, Next::GiveUp)]
        {
            assert_eq!(given_up_at(age, refusals, now).await, next, "{age:?} {refusals} {now:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_fourth_failure_gives_up_after_its_time_and_not_before() {
    let drains = Circumstances { drains: true, ..PLAIN };
    for (now, most) in [(PLAIN, HOUR), (drains, secs(3))] {
        for (age, tries, wanted) in
            [(most - MS, 4, Next::Wait), (most, 3, Next::Wait), (most, 4, Next::GiveUp)]
        {
            let (mut retrial, mut conducts) = just_set_aside(Answer::Failed);
            for _ in 2..tries {
                retrial.turned_down(Answer::Failed, &mut conducts, 0, now);
            }
            tokio::time::advance(age).await;
            let next = retrial.turned_down(Answer::Failed, &mut conducts, 0, now);
            assert_eq!(next, wanted, "{age:?} {tries} {now:?}");
        }
    }
}

/// Turns the event down at each try, and returns the pauses before the tries.
async fn pauses(answer: Answer) -> Vec<Duration> {
    let keeps_all = Circumstances { keeps_all: true, ..PLAIN };
    let (mut retrial, mut conducts) = just_set_aside(answer);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        pauses.push(retrial.due.saturating_duration_since(Instant::now()));
        tokio::time::sleep_until(retrial.due).await;
        retrial.turned_down(answer, &mut conducts, 0, keeps_all);
    }
    pauses
}

#[tokio::test(start_paused = true)]
async fn the_pauses_after_refusals_are_short_and_those_after_failures_grow_to_thirty_seconds() {
    let refused = [0, 0, 600, 600, 600, 600, 600, 600].map(Duration::from_millis);
    assert_eq!(pauses(Answer::Refused).await, refused);
    assert_eq!(pauses(Answer::Failed).await, [1, 2, 4, 8, 16, 30, 30, 30].map(secs));
    let found = Retrial::found();
    assert_eq!(found.due - Instant::now(), secs(1));
}

/// The consumer takes events again: a try that is due later is due in a second, and none is later
/// than it was.
#[tokio::test(start_paused = true)]
async fn an_event_is_tried_a_second_after_the_consumer_takes_events_again() {
    let (mut retrial, mut conducts) = just_set_aside(Answer::Failed);
    for _ in 0..8 {
        retrial.turned_down(Answer::Failed, &mut conducts, 0, PLAIN);
    }
    retrial.soon();
    assert_eq!(retrial.due - Instant::now(), secs(1));
    tokio::time::advance(secs(1) - MS).await;
    retrial.soon();
    assert_eq!(retrial.due - Instant::now(), MS, "it is not later");
    retrial.turned_down(Answer::Failed, &mut conducts, 0, PLAIN);
    assert_eq!(retrial.due - Instant::now(), secs(1), "the pauses grow again from the shortest");
    retrial.turned_down(Answer::Failed, &mut conducts, 0, PLAIN);
    assert_eq!(retrial.due - Instant::now(), secs(2));
}

/// The event was turned down at address 0, which is not reached any more.
#[tokio::test(start_paused = true)]
async fn the_ninth_try_elsewhere_in_a_row_changes_the_address_whose_answers_count() {
    for (elsewhere, counts) in [(8, false), (9, true)] {
        let (mut retrial, mut conducts) = just_set_aside(Answer::Failed);
        accept(&mut conducts, 1);
        for _ in 1..elsewhere {
            retrial.turned_down(Answer::Failed, &mut conducts, 1, PLAIN);
        }
        assert_eq!(retrial.tries, 1, "they do not count");
        retrial.turned_down(Answer::Failed, &mut conducts, 1, PLAIN);
        assert_eq!(retrial.consumer == Some(1), counts, "{elsewhere}");
        // One answer of the first address begins the count again.
        let (mut retrial, mut conducts) = just_set_aside(Answer::Failed);
        accept(&mut conducts, 1);
        for consumer in [[1; 8].as_slice(), &[0], &[1; 8]].concat() {
            retrial.turned_down(Answer::Failed, &mut conducts, consumer, PLAIN);
            assert_eq!(retrial.consumer, Some(0));
        }
    }
}

/// Address 0 is the first of 1,024, and then of 1,025. The first one is forgotten then.
#[test]
fn one_thousand_and_twenty_four_addresses_are_remembered() {
    let mut conducts = Conducts::default();
    for consumer in 0..1024 {
        accept(&mut conducts, consumer);
    }
    assert!(conducts.of(0).accepted == 1 && conducts.of(1023).accepted == 1);
    accept(&mut conducts, 1024);
    assert!(conducts.of(0).accepted == 0 && conducts.of(1024).accepted == 1);
}
