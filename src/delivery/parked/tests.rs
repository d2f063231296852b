//! The rules for the tries of one event, under paused time.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn patience() -> Patience {
    Patience { server_errors: HOUR, keeps_all: false, is_nearly_full: false, drains: false }
}

/// Turns the event down at each of its tries. Between two tries, `between` changes the conduct of
/// the consumer. Returns the number of tries and the time until the event is given up; `None` if
/// that takes more than a day.
async fn given_up_after(
    answer: TurnedDown,
    patience: Patience,
    mut between: impl FnMut(&mut Conduct),
) -> Option<(u32, Duration)> {
    let (begun, mut conduct) = (Instant::now(), Conduct::default());
    conduct.accepted(0);
    let (mut parking, mut next) = Parking::begin(answer, 0, conduct);
    let mut tries = 1;
    while begun.elapsed() < 24 * HOUR {
        match next {
            Next::GiveUp => return Some((tries, begun.elapsed())),
            Next::AtOnce => {}
            Next::Search => panic!("no server error was counted"),
            Next::Wait => tokio::time::sleep_until(parking.due).await,
        }
        between(&mut conduct);
        next = parking.turned_down(answer, 0, conduct, patience);
        tries += 1;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_is_given_up_after_several_tries_over_some_seconds() {
    for accepts in [true, false] {
        let between = |conduct: &mut Conduct| {
            if accepts {
                conduct.accepted(1);
            }
        };
        let (tries, took) = given_up_after(TurnedDown::Refused, patience(), between).await.unwrap();
        assert_eq!(tries, TRIES);
        assert!(took >= TIME_MIN && took < 2 * TIME_MIN, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tries_at_a_consumer_that_takes_nothing_else_do_not_count() {
    let refused = given_up_after(TurnedDown::Refused, patience(), Conduct::turned_down).await;
    assert_eq!(refused, None);
    let error = given_up_after(TurnedDown::ServerError, patience(), Conduct::turned_down).await;
    assert_eq!(error, None);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_at_random_is_asked_more_often() {
    let mut conduct = Conduct::default();
    conduct.accepted(0);
    conduct.accepted_refused();
    let between = |it: &mut Conduct| *it = conduct;
    let (tries, _) = given_up_after(TurnedDown::Refused, patience(), between).await.unwrap();
    assert_eq!(tries, TRIES_OF_DOUBT);
}

#[tokio::test(start_paused = true)]
async fn server_errors_are_borne_for_as_long_as_the_circumstances_allow() {
    let none = |_: &mut Conduct| {};
    for (circumstances, wanted) in [
        (patience(), HOUR),
        (Patience { is_nearly_full: true, ..patience() }, TIME_NEARLY_FULL),
        (Patience { drains: true, is_nearly_full: true, ..patience() }, TIME_MIN),
        (Patience { server_errors: Duration::from_secs(1), ..patience() }, TIME_MIN),
    ] {
        let given_up = given_up_after(TurnedDown::ServerError, circumstances, none).await;
        let (tries, took) = given_up.unwrap();
        assert!(tries >= TRIES_OF_ERRORS, "{tries}");
        let least = wanted.min(circumstances.server_errors);
        // Four tries take 7 s, and later pauses grow to 30 s.
        assert!(took >= least && took < wanted + Duration::from_secs(31), "{took:?}");
    }
    let keeps_all = Patience { keeps_all: true, ..patience() };
    assert_eq!(given_up_after(TurnedDown::ServerError, keeps_all, none).await, None);
}

#[tokio::test(start_paused = true)]
async fn tries_at_one_address_prove_nothing_about_another() {
    let mut conduct = Conduct::default();
    conduct.accepted(0);
    let (begun, _) = Parking::begin(TurnedDown::Refused, 0, conduct);
    // Another address, or the first one in a new delivery, has accepted nothing yet.
    for (mut parking, consumer) in [(begun, 1), (begun.inherited(), 0)] {
        for _ in 0..10 * TRIES {
            tokio::time::sleep_until(parking.due).await;
            let answer = TurnedDown::Refused;
            let next = parking.turned_down(answer, consumer, Conduct::default(), patience());
            assert_ne!(next, Next::GiveUp);
        }
        assert_eq!(parking.tries, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_every_address_turns_down_is_given_up() {
    let answer = TurnedDown::ServerError;
    // The other addresses accept other events, or nothing at all.
    for (others, accept) in [(1, true), (1, false), (7, true), (7, false)] {
        let (mut conduct, mut other) = (Conduct::default(), Conduct::default());
        conduct.accepted(0);
        if accept {
            other.accepted(0);
        }
        let (mut parking, mut next) = Parking::begin(answer, 0, conduct);
        let crowded = Patience { is_nearly_full: true, ..patience() };
        let begun = Instant::now();
        while next != Next::GiveUp {
            for consumer in 1..=others {
                let next = parking.turned_down(answer, consumer, other, crowded);
                assert_ne!(next, Next::GiveUp, "the tries of another one count");
            }
            tokio::time::sleep_until(parking.due).await;
            next = parking.turned_down(answer, 0, conduct, crowded);
            assert!(begun.elapsed() < HOUR, "{others} {accept}");
        }
        assert!(parking.tries >= TRIES_OF_ERRORS, "{others} {accept}");
    }
}

/// The other address has accepted other events, or nothing yet.
#[tokio::test(start_paused = true)]
async fn the_tries_at_an_address_that_is_away_begin_again_at_another() {
    for (answer, accepts) in [
        (TurnedDown::Refused, true),
        (TurnedDown::Refused, false),
        (TurnedDown::ServerError, true),
        (TurnedDown::ServerError, false),
    ] {
        let (mut conduct, mut other) = (Conduct::default(), Conduct::default());
        conduct.accepted(0);
        if accepts {
            other.accepted(0);
        }
        let crowded = Patience { is_nearly_full: true, ..patience() };
        let (mut parking, _) = Parking::begin(answer, 0, conduct);
        for _ in 0..ELSEWHERE_MAX {
            tokio::time::sleep_until(parking.due).await;
            assert_eq!(parking.turned_down(answer, 1, other, crowded), Next::Wait);
            assert!(!parking.is_unproven());
        }
        let next = parking.turned_down(answer, 1, other, crowded);
        assert_eq!(next == Next::Search, answer == TurnedDown::Refused);
        assert_eq!(parking.is_unproven(), next == Next::Search || !accepts);
        if answer == TurnedDown::Refused {
            continue;
        }
        other.accepted(0);
        let mut tries = u32::from(accepts);
        assert!(!accepts || parking.tries == 1);
        loop {
            tokio::time::sleep_until(parking.due).await;
            tries += 1;
            if parking.turned_down(answer, 1, other, crowded) == Next::GiveUp {
                break;
            }
        }
        assert!(tries >= TRIES_OF_ERRORS, "{tries}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_refusal_of_an_event_that_got_server_errors_is_searched_for() {
    let mut conduct = Conduct::default();
    conduct.accepted(0);
    let (mut parking, _) = Parking::begin(TurnedDown::ServerError, 0, conduct);
    let waits = [
        Patience { keeps_all: true, ..patience() },
        Patience { drains: true, ..patience() },
        Patience { is_nearly_full: true, ..patience() },
    ];
    for circumstances in waits {
        let next = parking.turned_down(TurnedDown::Refused, 0, conduct, circumstances);
        assert_eq!((next, parking.answer), (Next::Wait, TurnedDown::ServerError));
    }
    let next = parking.turned_down(TurnedDown::Refused, 0, conduct, patience());
    assert_eq!(next, Next::Search);
}
