//! Events that a consumer does not take although it takes others: they wait beside the stream, and
//! none is given up unless the event itself is at fault.

use super::*;

/// Returns the script of a consumer that answers `answer` to each request with a bad event.
fn bad_get(answer: Answer) -> impl FnMut(&[String]) -> Answer + Send {
    move |events| if is_bad(events) { answer.clone() } else { Answer::Accept }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// A balancer with one broken backend refuses every second request, at random or in turns.
#[tokio::test(start_paused = true)]
async fn refusals_at_random_cost_no_event() {
    for (window, ordered) in [(1, true), (4, false)] {
        for seed in 0..8 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut turn = false;
            let latency = Duration::from_millis(1);
            let setting = Setting { window, ordered, latency, shuffle: seed, ..Setting::default() };
            let mut bench = Bench::start::<false>(&setting, move |_| {
                turn = if seed % 2 == 0 { random.bool() } else { !turn };
                if turn { Answer::Refuse } else { Answer::Accept }
            });
            for batch in names(1000).chunks(40) {
                bench.append(batch);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bench.drained().await;
            assert_eq!((bench.delivered(), bench.lost()), (1000, 0), "seed {seed}, {window}");
            assert!(!ordered || in_order(&bench.seen(), &bench.appended), "seed {seed}");
            bench.finish().await;
        }
    }
}

/// With several requests under way, an event may be accepted while events before it are suspects.
/// These suspects then become pending again.
#[tokio::test(start_paused = true)]
async fn an_ordered_output_keeps_the_order_with_several_claims_on_the_wire() {
    for seed in 0..60 {
        let started = Instant::now();
        let mut random = fastrand::Rng::with_seed(seed);
        let setting = Setting {
            window: 3,
            ordered: true,
            latency: Duration::from_millis(10),
            shuffle: seed,
            pipelined: true,
            ..Setting::default()
        };
        let mut bench = Bench::start::<false>(&setting, move |_| {
            let refuses = started.elapsed() < Duration::from_secs(3) && random.u8(..10) < 6;
            if refuses { Answer::Refuse } else { Answer::Accept }
        });
        for batch in names(60).chunks(3) {
            bench.append(batch);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (60, 0), "seed {seed}");
        assert!(in_order(&bench.seen(), &bench.appended), "seed {seed}: {:?}", bench.seen());
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_answered_with_5xx_for_ever_stops_no_other() {
    for (window, ordered) in [(1, true), (4, false)] {
        for bad in [0, 57, 99] {
            let setting = Setting { window, ordered, ..Setting::default() };
            let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
            let mut batch = names(100);
            "bad".clone_into(&mut batch[bad]);
            bench.append(&batch);
            for number in 0..20 {
                bench.append(&[format!("after{number}")]);
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            let seen: BTreeSet<_> = bench.seen().into_iter().collect();
            assert_eq!(seen.len(), 119, "the others, {window} at a time, bad {bad}");
            let parked = bench.status.snapshot().parked.expect("it waits");
            assert_eq!((parked.events, parked.position.get()), (1, bad as u64));
            assert!(parked.out_of_order && parked.error.contains("scripted"), "{parked:?}");
            assert_eq!(bench.value("output_parked_events{output=\"o\"}"), 1);
            assert!(bench.status.snapshot().up);
            assert_eq!((bench.delivered(), bench.lost()), (119, 0));
            // The event is given up after an hour.
            tokio::time::sleep(HOUR - Duration::from_secs(40)).await;
            assert_eq!(bench.lost(), 0);
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!((bench.delivered(), bench.lost()), (119, 1));
            assert!(bench.status.snapshot().parked.is_none());
            assert!(bench.attempts().len() < 300, "{} requests", bench.attempts().len());
            bench.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_answered_with_5xx_for_a_while_is_delivered_after_it() {
    let started = Instant::now();
    let mut bench = Bench::start::<false>(
        &Setting { window: 4, ordered: false, ..Setting::default() },
        move |events| match is_bad(events) && started.elapsed() < HOUR / 2 {
            true => Answer::Fail,
            false => Answer::Accept,
        },
    );
    bench.append(&["a", "bad", "b"]);
    for _ in 0..40 {
        bench.append(&["c"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (43, 0));
    bench.finish().await;
}

/// Sends one bad event and 62 others in ten minutes, and then begins the drain.
/// The consumer accepts everything, then answers 5xx to one event, then refuses everything while
/// there is nothing else to send. Nothing shows that it works, so the event is kept.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_while_it_is_parked_needs_a_proof_first() {
    for (window, ordered) in [(1, true), (4, false)] {
        let started = Instant::now();
        let refuses = move || (60..600).contains(&started.elapsed().as_secs());
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            if refuses() {
                return Answer::Refuse;
            }
            let fails = is_bad(events) && started.elapsed() < Duration::from_secs(60);
            if fails { Answer::Fail } else { Answer::Accept }
        });
        bench.append(&["first".to_owned(), "bad".to_owned()]);
        for number in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bench.append(&[format!("after{number}")]);
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (22, 0), "{window}");
        assert!(started.elapsed() > Duration::from_secs(600), "{window}: not refused for long");
        bench.finish().await;
    }
}

/// The last new event is refused, and only a parked one can show that the consumer works.
#[tokio::test(start_paused = true)]
async fn a_parked_event_proves_that_the_consumer_works() {
    for (window, ordered) in [(1, true), (4, false)] {
        let started = Instant::now();
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let fails = events.iter().any(|event| event == "slow");
            match is_bad(events) {
                true => Answer::Refuse,
                false if fails && started.elapsed() < Duration::from_secs(60) => Answer::Fail,
                false => Answer::Accept,
            }
        });
        bench.append(&["first".to_owned(), "slow".to_owned()]);
        for number in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bench.append(&[format!("after{number}")]);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        bench.append(&["bad"]);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((bench.delivered(), bench.lost()), (22, 1), "{window}");
        bench.finish().await;
    }
}

/// Answers 5xx and refusals to one event, in turns. Each other event is accepted.
#[tokio::test(start_paused = true)]
async fn an_event_that_gets_both_answers_in_turns_is_given_up() {
    for (window, ordered) in [(1, true), (4, false)] {
        let mut turn = false;
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            turn ^= is_bad(events);
            match (is_bad(events), turn) {
                (false, _) => Answer::Accept,
                (true, true) => Answer::Fail,
                (true, false) => Answer::Refuse,
            }
        });
        bench.append(&["first".to_owned(), "bad".to_owned()]);
        for number in 0..20 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            bench.append(&[format!("after{number}")]);
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (21, 1), "{window}");
        bench.finish().await;
    }
}

async fn drain_after_ten_minutes(bench: &mut Bench) {
    bench.append(&["a", "bad", "b"]);
    for _ in 0..60 {
        bench.append(&["c"]);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    bench.draining.cancel();
}

/// The pauses between the tries have grown to 30 s when the drain begins, and the drain has 20 s.
#[tokio::test(start_paused = true)]
async fn a_drain_tries_the_parked_events_every_second() {
    let works_from = Instant::now() + Duration::from_secs(602);
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        match is_bad(events) && Instant::now() < works_from {
            true => Answer::Fail,
            false => Answer::Accept,
        }
    });
    drain_after_ten_minutes(&mut bench).await;
    // The consumer takes the event 2 s after the drain has begun.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((bench.delivered(), bench.lost()), (63, 0));
    bench.finish().await;
}

/// A queue in memory ends with the drain, so an event that nobody takes must become a dead letter,
/// or be counted as lost, before its end.
#[tokio::test(start_paused = true)]
async fn a_parked_event_is_given_up_a_few_seconds_after_a_drain_has_begun() {
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
    drain_after_ten_minutes(&mut bench).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((bench.delivered(), bench.lost()), (62, 0));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((bench.delivered(), bench.lost()), (62, 1));
    bench.finish().await;
}

/// If the answer names the events that have failed with 5xx, only these events wait.
#[tokio::test(start_paused = true)]
async fn an_item_that_is_answered_with_5xx_for_ever_stops_no_other() {
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, |events| {
        judged::judge(events, |(_, event)| if event.starts_with("bad") { 's' } else { 'd' })
    });
    for batch in 0..40 {
        bench.append(&[format!("{batch}a"), format!("bad{batch}"), format!("{batch}b")]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((bench.delivered(), bench.lost()), (80, 0));
    assert_eq!(bench.status.snapshot().parked.expect("they wait").events, 40);
    tokio::time::sleep(HOUR + Duration::from_secs(60)).await;
    assert_eq!((bench.delivered(), bench.lost()), (80, 40));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_apart_while_everything_is_answered_with_5xx() {
    let started = Instant::now();
    for (window, ordered) in [(1, true), (4, false)] {
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |_| {
            if started.elapsed() < 3 * HOUR { Answer::Fail } else { Answer::Accept }
        });
        for batch in names(2000).chunks(400) {
            bench.append(batch);
        }
        tokio::time::sleep_until(started + 3 * HOUR).await;
        let before = bench.attempts().len();
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (2000, 0));
        assert!(!ordered || in_order(&bench.seen(), &bench.appended));
        // The attempts are about 30 s apart. At every second one, a claim was halved to learn
        // whether its second half is taken.
        let after = bench.attempts().len() - before;
        assert!(after <= 300, "{after} requests");
        bench.finish().await;
    }
}

/// Method: between two outages the consumer takes one request, or a few. The server errors before
/// and after them are not about an event, so no event may leave the order.
#[tokio::test(start_paused = true)]
async fn an_ordered_output_keeps_the_order_if_a_consumer_recovers_for_a_moment() {
    for (request, taken) in (1..40).flat_map(|request| [(request, 1), (request, 4)]) {
        let mut count = 0;
        let setting = Setting { window: 1, ordered: true, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |_| {
            count += 1;
            let works = (request..request + taken).contains(&count) || count > 80;
            if works { Answer::Accept } else { Answer::Fail }
        });
        for batch in names(40).chunks(20) {
            bench.append(batch);
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (40, 0));
        assert!(in_order(&bench.seen(), &bench.appended), "{request}, {taken}: {:?}", bench.seen());
        bench.finish().await;
    }
}

/// The queue keeps all events that were accepted after a parked event, so a parked event must not
/// wait until the queue is full; also if the consumer refuses it after a while. The second bad
/// event fails when all others are accepted, and no new event comes that could show that the
/// consumer works.
#[tokio::test(start_paused = true)]
async fn an_event_that_fills_the_queue_by_waiting_is_given_up_after_a_minute() {
    for (fails_for, ordered) in [(1000, false), (20, false), (1000, true), (20, true)] {
        let setting = Setting { drop_oldest: Some(64 * 1024), ordered, ..Setting::default() };
        let started = Instant::now();
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let fails = started.elapsed() < Duration::from_secs(fails_for);
            match is_bad(events) {
                true if fails => Answer::Fail,
                true => Answer::Refuse,
                false => Answer::Accept,
            }
        });
        bench.append(&["bad"]);
        let mut number = 0;
        while bench.queue.held().0 < 50 * 1024 {
            number += 1;
            bench.append(&[format!("event{number}")]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.append(&["bad too"]);
        tokio::time::sleep(Duration::from_secs(49)).await;
        assert_eq!(bench.lost(), 0);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((bench.delivered(), bench.lost()), (number, 1), "{fails_for}, {ordered}");
        // Now there is room for new events.
        for _ in 0..3 {
            bench.append(&["more"]);
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        assert_eq!((bench.delivered(), bench.lost()), (number + 3, 2), "{fails_for}, {ordered}");
        bench.finish().await;
    }
}

/// Three claims are on the wire at a time. The first and the last are refused, and no new event
/// finds room in the queue to show that the consumer works. An unordered output sends only one
/// event again to see it.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_held_proves_that_the_consumer_works_if_the_queue_is_full() {
    for (capacity, ordered, lost) in
        [(900, true, 2), (9000, true, 0), (900, false, 2), (9000, false, 0)]
    {
        let setting = Setting {
            drop_oldest: Some(capacity),
            window: 3,
            ordered,
            latency: Duration::from_millis(10),
            pipelined: true,
            ..Setting::default()
        };
        let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Refuse));
        for events in [&["bad"][..], &["good", "last"], &["bad"]] {
            bench.append(events);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(bench.lost(), lost);
        let times = |name: &str| bench.seen().iter().filter(|it| *it == name).count();
        let is_full = lost > 0;
        assert_eq!((times("good") > 1, times("last") > 1), (is_full && ordered, is_full));
        // If there is room, a new event shows it.
        bench.append(&["more"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((bench.delivered(), bench.lost()), (3, 2));
        bench.finish().await;
    }
}

/// One address refuses some events and answers another one with 5xx. The second address is away.
/// The requests take turns so that each try of a refused event meets the second address.
#[tokio::test(start_paused = true)]
async fn tries_that_meet_an_address_that_is_away_hold_up_no_other_event() {
    let mut at_second = false;
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        if std::mem::take(&mut at_second) {
            return Answer::Away;
        }
        at_second = events.iter().any(|event| event == "failed");
        match is_bad(events) {
            _ if at_second => Answer::FailHere,
            true => Answer::Refuse,
            false => Answer::Accept,
        }
    });
    bench.append(&["first"]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    bench.append(&["bad"; 20]);
    bench.append(&["second"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.append(&["failed"]);
    for number in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.append(&[format!("after{number}")]);
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((bench.delivered(), bench.lost()), (22, 20));
    bench.finish().await;
}

/// An event is refused, and parked, at one address, which is then away for good. The other address
/// has accepted nothing before. It turns this event down too, or takes it, and takes all others.
#[tokio::test(start_paused = true)]
async fn an_event_whose_address_has_gone_stops_no_other() {
    for (window, ordered) in [(1, true), (4, false)] {
        for (answer, lost) in [(Answer::Refuse, 1), (Answer::Fail, 1), (Answer::Accept, 0)] {
            let started = Instant::now();
            let setting = Setting { window, ordered, ..Setting::default() };
            let at_second = answer.clone();
            let mut bench = Bench::start::<false>(&setting, move |events| {
                let number = usize::from(started.elapsed() >= Duration::from_secs(2));
                let answer = match (is_bad(events), number) {
                    (false, _) => Answer::Accept,
                    (true, 0) => Answer::Refuse,
                    (true, _) => at_second.clone(),
                };
                Answer::Of(number, Box::new(answer))
            });
            bench.append(&["first", "bad", "second"]);
            for number in 0..20 {
                bench.append(&[format!("after{number}")]);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(bench.delivered(), 23 - lost, "{answer:?} {ordered}");
            bench.drained().await;
            assert_eq!((bench.delivered(), bench.lost()), (23 - lost, lost), "{answer:?}");
            // The last copy of each event comes in order.
            let mut last: Vec<_> = bench.seen();
            last.reverse();
            let mut seen = BTreeSet::new();
            last.retain(|event| seen.insert(event.clone()));
            last.reverse();
            let arrived = bench.appended.iter().filter(|event| seen.contains(*event));
            assert!(!ordered || last.iter().eq(arrived), "{answer:?}: {:?}", bench.seen());
            bench.finish().await;
        }
    }
}

/// As many events as possible are parked because of server errors, at an address that then is away
/// for good, or by a delivery that is then replaced. The other address has accepted nothing.
#[tokio::test(start_paused = true)]
async fn the_greatest_number_of_parked_events_ends_at_another_address() {
    for replaced in [vec![], vec![HOUR / 4]] {
        let started = Instant::now();
        let setting = Setting { window: 4, ordered: false, replaced, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let number = usize::from(started.elapsed() >= HOUR / 4);
            let answer = if is_bad(events) { Answer::Fail } else { Answer::Accept };
            Answer::Of(number, Box::new(answer))
        });
        for number in 0..2 * PARKED_MAX {
            bench.append(&[format!("bad{number}")]);
            bench.append(&[format!("good{number}")]);
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        tokio::time::sleep_until(started + HOUR / 4).await;
        let before = bench.delivered();
        assert!(before < 2 * PARKED_MAX as u64, "no limit was reached");
        tokio::time::sleep(HOUR / 6).await;
        assert!(bench.delivered() > before, "no event was delivered at the second address");
        bench.drained().await;
        let all = 2 * PARKED_MAX as u64;
        assert_eq!((bench.delivered(), bench.lost()), (all, all));
        bench.finish().await;
    }
}

/// More parked events than the limit stop the output: then something else must be wrong.
#[tokio::test(start_paused = true)]
async fn the_number_of_parked_events_is_bounded() {
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
    for number in 0..3 * PARKED_MAX {
        bench.append(&[format!("bad{number}")]);
        bench.append(&[format!("good{number}")]);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(HOUR / 4).await;
    let parked = bench.status.snapshot().parked.expect("they wait").events;
    assert!((PARKED_MAX as u64..PARKED_MAX as u64 + 10).contains(&parked), "{parked}");
    tokio::time::sleep(5 * HOUR).await;
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (3 * PARKED_MAX as u64, 3 * PARKED_MAX as u64));
    bench.finish().await;
}
