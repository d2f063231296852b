//! The rules for events that are turned down, without queue, link and time.

use super::*;

mod windows;

const HOUR: Duration = Duration::from_secs(3600);

const PLAIN: Circumstances =
    Circumstances { keeps_all: false, server_errors: HOUR, drains: false, asked: None };

/// Returns the conduct of consumer 0, which has accepted something and turned nothing down.
fn working() -> Conducts {
    let mut conducts = Conducts::default();
    conducts.accepted(0, 0, false);
    conducts
}

/// The consumer with this number accepts something that is sent now.
fn accept(conducts: &mut Conducts, consumer: usize) {
    conducts.accepted(consumer, conducts.answers, false);
}

/// The consumer turns a single event down. Returns the verdict.
fn turn_down(
    trial: &mut Trial,
    conducts: &mut Conducts,
    consumer: usize,
    is_ordered: bool,
) -> Verdict {
    turn_down_by(Answer::Failed, trial, conducts, consumer, is_ordered)
}

fn turn_down_by(
    answer: Answer,
    trial: &mut Trial,
    conducts: &mut Conducts,
    consumer: usize,
    is_ordered: bool,
) -> Verdict {
    let number = conducts.turned_down(consumer, true);
    let response = (number, conducts.of(consumer));
    trial.turned_down(response, answer, false, (is_ordered, true))
}

/// Returns the tries of an event that a working consumer has turned down.
fn set_aside(answer: Answer, conducts: &mut Conducts) -> Retrial {
    let mut trial = Trial::default();
    accept(conducts, 0);
    turn_down(&mut trial, conducts, 0, false);
    accept(conducts, 0);
    let verdict = turn_down_by(answer, &mut trial, conducts, 0, false);
    assert_eq!(verdict, Verdict::SetAside);
    trial.set_aside(answer, conducts, 0, None)
}

/// Turns the event down at each try. Before each try, `between` changes the conduct of the
/// consumer. Returns the number of tries and the time until the event is given up; `None` after
/// more than a day.
async fn given_up_after(
    answer: Answer,
    now: Circumstances,
    mut between: impl FnMut(&mut Conducts),
) -> Option<(u32, Duration)> {
    let (begun, mut conducts) = (Instant::now(), working());
    let mut retrial = set_aside(answer, &mut conducts);
    let mut tries = retrial.tries;
    while begun.elapsed() < 24 * HOUR {
        tokio::time::sleep_until(retrial.due).await;
        between(&mut conducts);
        tries += 1;
        if retrial.turned_down(answer, &mut conducts, 0, now) == Next::GiveUp {
            return Some((tries, begun.elapsed()));
        }
    }
    None
}

#[test]
fn a_failure_counts_when_its_consumer_has_accepted_what_was_sent_later() {
    let mut conducts = working();
    let mut trial = Trial::default();
    // An acceptance of what was sent before the first failure proves nothing.
    assert_eq!(turn_down(&mut trial, &mut conducts, 7, false), Verdict::Again);
    conducts.accepted(7, 0, false);
    let verdict = turn_down(&mut trial, &mut conducts, 7, false);
    assert_eq!(verdict, Verdict::PassOver, "it was sent beside it");
    // An acceptance by another consumer proves nothing.
    accept(&mut conducts, 8);
    assert_eq!(turn_down(&mut trial, &mut conducts, 7, false), Verdict::Again);
    conducts.accepted(7, 1, false);
    assert_eq!(turn_down(&mut trial, &mut conducts, 7, false), Verdict::SetAside);
}

#[test]
fn halves_keep_the_first_failure_of_the_whole() {
    let mut conducts = Conducts::default();
    let mut whole = Trial::default();
    whole.doubted(conducts.turned_down(0, false));
    let mut left = whole;
    // The right half is accepted, and was sent after the whole had failed.
    accept(&mut conducts, 0);
    assert_eq!(turn_down(&mut left, &mut conducts, 0, false), Verdict::SetAside);
}

/// An outage begins after an acceptance. Each event fails alone, and only a few are set aside.
#[test]
fn an_acceptance_proves_little_once_many_events_in_a_row_were_turned_down() {
    let mut conducts = working();
    let mut others = [Trial::default(); 100];
    let number = conducts.turned_down(0, false);
    others.iter_mut().for_each(|trial| trial.doubted(number));
    accept(&mut conducts, 0);
    let mut set_aside = 0;
    for trial in &mut others {
        let verdict = turn_down(trial, &mut conducts, 0, false);
        set_aside += u64::from(verdict == Verdict::SetAside);
    }
    assert_eq!(set_aside, PROVEN_MAX);
    // Other events of the same request were taken.
    let response = (conducts.turned_down(0, true), conducts.of(0));
    assert_eq!(
        others[99].turned_down(response, Answer::Failed, true, (false, true)),
        Verdict::SetAside
    );
}

#[test]
fn an_ordered_output_asks_for_a_proof_between_each_two_failures() {
    let (mut conducts, mut trial) = (working(), Trial::default());
    for counted in 0..COUNTED_ORDERED {
        for _ in 0..4 {
            let verdict = turn_down(&mut trial, &mut conducts, 0, true);
            assert_ne!(verdict, Verdict::SetAside);
        }
        assert_eq!(trial.counted, counted);
        accept(&mut conducts, 0);
    }
    assert_eq!(turn_down(&mut trial, &mut conducts, 0, true), Verdict::SetAside);
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_is_given_up_after_several_tries_over_some_seconds() {
    for accepts in [true, false] {
        let between = |conducts: &mut Conducts| {
            if accepts {
                accept(conducts, 0);
            }
        };
        let (tries, took) = given_up_after(Answer::Refused, PLAIN, between).await.unwrap();
        assert_eq!(tries, TRIES);
        assert!(took >= TIME_MIN && took < 2 * TIME_MIN, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tries_at_a_consumer_that_takes_nothing_else_do_not_count() {
    let between = |conducts: &mut Conducts| _ = conducts.turned_down(0, false);
    for answer in [Answer::Refused, Answer::Failed] {
        assert_eq!(given_up_after(answer, PLAIN, between).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_at_random_is_asked_more_often() {
    let between = |conducts: &mut Conducts| conducts.accepted(0, conducts.answers, true);
    let (tries, _) = given_up_after(Answer::Refused, PLAIN, between).await.unwrap();
    assert_eq!(tries, TRIES_OF_DOUBT);
}

#[tokio::test(start_paused = true)]
async fn other_failures_are_borne_for_as_long_as_the_circumstances_allow() {
    let none = |_: &mut Conducts| {};
    for (now, wanted) in [
        (PLAIN, HOUR),
        (Circumstances { drains: true, ..PLAIN }, TIME_MIN),
        (Circumstances { server_errors: Duration::from_secs(1), ..PLAIN }, TIME_MIN),
    ] {
        let (tries, took) = given_up_after(Answer::Failed, now, none).await.unwrap();
        assert!(tries >= TRIES_OF_FAILURES, "{tries}");
        let least = wanted.min(now.server_errors);
        // Four tries take 7 s, and later pauses grow to 30 s.
        assert!(took >= least && took < wanted + Duration::from_secs(31), "{took:?}");
    }
    let keeps_all = Circumstances { keeps_all: true, ..PLAIN };
    assert_eq!(given_up_after(Answer::Failed, keeps_all, none).await, None);
}

/// A timeout or a 404 before the refusal that sets the event aside is no refusal.
#[test]
fn only_refusals_count_as_refusals_before_an_event_is_set_aside() {
    let (mut trial, mut conducts) = (Trial::default(), working());
    turn_down(&mut trial, &mut conducts, 0, true);
    for answer in [Answer::Failed, Answer::Refused] {
        accept(&mut conducts, 0);
        turn_down_by(answer, &mut trial, &mut conducts, 0, true);
    }
    accept(&mut conducts, 0);
    let verdict = turn_down_by(Answer::Refused, &mut trial, &mut conducts, 0, true);
    let retrial = trial.set_aside(Answer::Refused, &conducts, 0, None);
    assert_eq!((verdict, retrial.tries, retrial.refusals), (Verdict::SetAside, 3, 2));
}

#[tokio::test(start_paused = true)]
async fn tries_at_one_address_prove_nothing_about_another() {
    let mut conducts = working();
    let begun = set_aside(Answer::Refused, &mut conducts);
    // Another address, or the first one in a new delivery, has accepted nothing yet.
    for (mut retrial, consumer) in [(begun, 1), (begun.inherited(), 2)] {
        for _ in 0..10 * TRIES {
            tokio::time::sleep_until(retrial.due).await;
            let next = retrial.turned_down(Answer::Refused, &mut conducts, consumer, PLAIN);
            assert_ne!(next, Next::GiveUp);
        }
        assert_eq!(retrial.tries, 1);
    }
}

/// A reload has changed the output. The new consumer refuses everything, and may have the number of
/// the previous delivery's consumer.
#[tokio::test(start_paused = true)]
async fn a_new_delivery_needs_its_own_proof_before_a_refusal_counts() {
    let mut retrial = set_aside(Answer::Refused, &mut working()).inherited();
    let mut conducts = Conducts::default();
    for _ in 0..10 * TRIES {
        tokio::time::sleep_until(retrial.due).await;
        let next = retrial.turned_down(Answer::Refused, &mut conducts, 0, PLAIN);
        assert_eq!((next, retrial.tries), (Next::Wait, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_every_address_turns_down_is_given_up() {
    let now = Circumstances { server_errors: Duration::from_secs(60), ..PLAIN };
    // The other addresses accept other events, or nothing at all.
    for (others, accepts) in [(1, true), (1, false), (7, true), (7, false)] {
        let mut conducts = working();
        if accepts {
            accept(&mut conducts, 1);
        }
        let mut retrial = set_aside(Answer::Failed, &mut conducts);
        let begun = Instant::now();
        loop {
            for consumer in 1..=others {
                let next = retrial.turned_down(Answer::Failed, &mut conducts, consumer, now);
                assert_ne!(next, Next::GiveUp, "the tries of another one count");
            }
            tokio::time::sleep_until(retrial.due).await;
            if retrial.turned_down(Answer::Failed, &mut conducts, 0, now) == Next::GiveUp {
                break;
            }
            assert!(begun.elapsed() < HOUR, "{others} {accepts}");
        }
        assert!(retrial.tries >= TRIES_OF_FAILURES, "{others} {accepts}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_tries_at_an_address_that_is_away_begin_again_at_another() {
    for answer in [Answer::Refused, Answer::Failed] {
        for accepts in [true, false] {
            let mut conducts = working();
            if accepts {
                accept(&mut conducts, 1);
            }
            let now = Circumstances { server_errors: Duration::from_secs(60), ..PLAIN };
            let mut retrial = set_aside(answer, &mut conducts);
            for _ in 0..ELSEWHERE_MAX {
                tokio::time::sleep_until(retrial.due).await;
                assert_eq!(retrial.turned_down(answer, &mut conducts, 1, now), Next::Wait);
                assert_eq!(retrial.consumer, Some(0));
            }
            retrial.turned_down(answer, &mut conducts, 1, now);
            assert_eq!(retrial.consumer, accepts.then_some(1));
            let mut tries = 0;
            loop {
                tokio::time::sleep_until(retrial.due).await;
                accept(&mut conducts, 1);
                tries += 1;
                if retrial.turned_down(answer, &mut conducts, 1, now) == Next::GiveUp {
                    break;
                }
            }
            let least = if answer == Answer::Refused { TRIES } else { TRIES_OF_FAILURES };
            assert!(tries + 1 >= least, "{tries}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_refusal_of_an_event_that_failed_otherwise_needs_a_proof() {
    let mut conducts = working();
    let mut retrial = set_aside(Answer::Failed, &mut conducts);
    for _ in 0..100 {
        tokio::time::sleep_until(retrial.due).await;
        let next = retrial.turned_down(Answer::Refused, &mut conducts, 0, PLAIN);
        assert_eq!((next, retrial.answer), (Next::Wait, Answer::Failed));
    }
    accept(&mut conducts, 0);
    retrial.turned_down(Answer::Refused, &mut conducts, 0, PLAIN);
    assert_eq!((retrial.refusals, retrial.answer), (1, Answer::Refused));
    // While the relay drains, there may be no other event.
    let mut drained = set_aside(Answer::Failed, &mut conducts);
    drained.hurry();
    let drains = Circumstances { drains: true, ..PLAIN };
    drained.turned_down(Answer::Refused, &mut conducts, 0, drains);
    assert_eq!(drained.refusals, 1);
}

#[test]
fn the_memory_of_consumers_is_bounded() {
    let mut conducts = Conducts::default();
    for consumer in 0..10 * CONSUMERS_MAX {
        conducts.accepted(consumer, 1, false);
    }
    assert_eq!(conducts.of.len(), CONSUMERS_MAX);
}
