//! Events that a consumer does not take although it takes others: they are set aside, hold up no
//! other event, and none is given up unless the event itself is at fault.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Returns the script of a consumer that gives the response `answer` to each request with a bad
/// event.
fn bad_get(answer: Answer) -> impl FnMut(&[String]) -> Answer + Send {
    move |events| if is_bad(events) { answer.clone() } else { Answer::Accept }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// The number of times that each event was refused alone. An event that was refused three times may
/// be set aside, out of the order.
#[derive(Clone, Default)]
struct Alone(Arc<Mutex<BTreeMap<String, u32>>>);

impl Alone {
    fn refuse(&self, events: &[String]) -> Answer {
        if let [event] = events {
            *self.0.lock().unwrap().entry(event.clone()).or_default() += 1;
        }
        Answer::Refuse
    }

    fn that_stay(&self, events: &[String]) -> Vec<String> {
        let refused = self.0.lock().unwrap();
        let stays = |event: &&String| refused.get(*event).is_none_or(|times| *times < 3);
        events.iter().filter(stays).cloned().collect()
    }
}

/// A balancer with one broken backend refuses every second request, at random or in turns.
#[tokio::test(start_paused = true)]
async fn refusals_at_random_cost_no_event() {
    for (window, ordered) in [(1, true), (4, false)] {
        for seed in 0..8 {
            let mut random = fastrand::Rng::with_seed(seed);
            let alone = Alone::default();
            let mut turn = false;
            let latency = Duration::from_millis(1);
            let setting = Setting { window, ordered, latency, shuffle: seed, ..Setting::default() };
            let refused = alone.clone();
            let mut bench = Bench::start::<false>(&setting, move |events| {
                turn = if seed % 2 == 0 { random.bool() } else { !turn };
                if turn { refused.refuse(events) } else { Answer::Accept }
            });
            for batch in names(1000).chunks(40) {
                bench.append(batch);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bench.drained().await;
            assert_eq!((bench.delivered(), bench.lost()), (1000, 0), "seed {seed}, {window}");
            let stays = alone.that_stay(&bench.appended);
            assert!(!ordered || in_order(&bench.seen(), &stays), "seed {seed}");
            assert!(stays.len() > 950, "{}, seed {seed}", stays.len());
            bench.finish().await;
        }
    }
}

/// If several requests are on the wire, an event may be accepted while earlier events are suspects.
/// The suspects then become pending again.
#[tokio::test(start_paused = true)]
async fn an_ordered_output_keeps_the_order_with_several_claims_on_the_wire() {
    for seed in 0..60 {
        let started = Instant::now();
        let mut random = fastrand::Rng::with_seed(seed);
        let alone = Alone::default();
        let refused = alone.clone();
        let setting = Setting {
            window: 3,
            ordered: true,
            latency: Duration::from_millis(10),
            shuffle: seed,
            pipelined: true,
            ..Setting::default()
        };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let refuses = started.elapsed() < Duration::from_secs(3) && random.u8(..10) < 6;
            if refuses { refused.refuse(events) } else { Answer::Accept }
        });
        for batch in names(60).chunks(3) {
            bench.append(batch);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (60, 0), "seed {seed}");
        let stays = alone.that_stay(&bench.appended);
        assert!(in_order(&bench.seen(), &stays), "seed {seed}: {:?}", bench.seen());
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
            let (aside, _) = bench.status.snapshot().aside.expect("it waits");
            assert_eq!((aside.events, aside.position), (1, bad as u64));
            assert!(aside.server_errors && aside.error.contains("scripted"), "{aside:?}");
            assert_eq!((bench.aside(), bench.backlog()), (1, 0));
            assert!(bench.status.snapshot().up);
            assert_eq!((bench.delivered(), bench.lost()), (119, 0));
            // The event is given up after an hour.
            tokio::time::sleep(HOUR - Duration::from_secs(40)).await;
            assert_eq!(bench.lost(), 0);
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!((bench.delivered(), bench.lost()), (119, 1));
            assert!(bench.status.snapshot().aside.is_none());
            assert!(bench.attempts().len() < 300, "{} requests", bench.attempts().len());
            bench.finish().await;
        }
    }
}

/// Requests go to two addresses in turn. The first fails on one event, and the second can't be
/// reached. The next request after a failure at the first address is the same event: if it were
/// another event while the file of this one is read, the others would only get the second address.
#[tokio::test(start_paused = true)]
async fn an_event_whose_file_is_read_leaves_the_others_the_address_that_works() {
    let is_bad = |events: &[String]| events.iter().any(|event| event == "\"bad\"");
    let mut is_first = false;
    let setting = Setting { window: 1, ordered: false, has_files: true, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        is_first = !is_first;
        match is_first {
            true if is_bad(events) => Answer::FailHere,
            true => Answer::Accept,
            false => Answer::Away,
        }
    });
    bench.append(&["\"bad\""]);
    for number in 0..1500 {
        bench.append(&[number]);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((bench.delivered(), bench.aside(), bench.lost()), (1500, 1, 0));
    bench.finish().await;
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

/// The consumer responds to one event with 5xx and accepts all others. Later it refuses everything,
/// while there is nothing else to send. Nothing shows that it works, so the event is kept.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_while_it_is_set_aside_needs_a_proof_first() {
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

/// The last new event is refused. Only an event that is set aside can show that the consumer works.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_set_aside_proves_that_the_consumer_works() {
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

/// Sends one bad event and 62 others in ten minutes, and then begins the drain.
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
async fn a_drain_tries_the_events_that_are_set_aside_every_second() {
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

/// A queue in memory ends with the drain. Before that, an event that nobody takes must become a
/// dead letter, or be counted as lost. If the next process has the event, it stays set aside.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_set_aside_is_given_up_in_a_drain_only_if_the_queue_ends_with_it() {
    for (outlives, lost) in [(false, 1), (true, 0)] {
        let setting = Setting { window: 4, ordered: false, outlives, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
        drain_after_ten_minutes(&mut bench).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((bench.delivered(), bench.lost()), (62, 0));
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!((bench.delivered(), bench.lost()), (62, lost), "{outlives}");
        bench.finish().await;
    }
}

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
    assert_eq!(bench.status.snapshot().aside.expect("they wait").0.events, 40);
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
        // whether its second half is accepted.
        let after = bench.attempts().len() - before;
        assert!(after <= 300, "{after} requests");
        bench.finish().await;
    }
}

/// Method: between two outages the consumer takes one request, or a few. The server errors of the
/// outages are not about an event, so no event may leave the order.
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

/// Events come all the time while the consumer takes nothing. The first that it takes after that is
/// the first event, so nothing arrives early.
#[tokio::test(start_paused = true)]
async fn an_ordered_output_begins_with_the_first_event_after_an_outage() {
    for (answer, outage) in [(Answer::Fail, 60), (Answer::Fail, 600), (Answer::Away, 600)] {
        let (started, taken) = (Instant::now(), Arc::<Mutex<Vec<String>>>::default());
        let takes = Arc::clone(&taken);
        let setting = Setting { window: 1, ordered: true, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let is_away = (5..5 + outage).contains(&started.elapsed().as_secs());
            if is_away {
                return answer.clone();
            }
            takes.lock().unwrap().extend(events.iter().cloned());
            Answer::Accept
        });
        for number in 0..outage + 60 {
            bench.append(&[number]);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        bench.drained().await;
        assert_eq!(*taken.lock().unwrap(), bench.appended, "{outage}");
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_set_aside_keeps_no_other_in_the_queue() {
    for ordered in [false, true] {
        for bad in [1, 100] {
            let setting = Setting { drop_oldest: Some(2 << 20), ordered, ..Setting::default() };
            let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
            let mut good = 0;
            for number in 0..10_000 {
                // 100 bad events, or one, are spread over all.
                let is_bad = number % (10_000 / bad) == 500 % (10_000 / bad);
                let name = if is_bad { format!("bad{number}") } else { number.to_string() };
                bench.append(&[name]);
                good += u64::from(!is_bad);
                tokio::time::sleep(Duration::from_millis(10)).await;
                let lag = bench.queue.backlogs()[0].1.lag;
                assert!(lag < 5.0, "{lag} s, {bad}, {ordered}");
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(bench.value("queue_dropped_events_total{reason=\"drop_oldest\"}"), 0);
            let aside = bench.aside();
            assert_eq!(bench.delivered(), good, "{bad}, {ordered}");
            // At most 50 are set aside at a time in these tests.
            assert_eq!(aside + bench.lost(), bad);
            assert_eq!(aside, bad.min(EVENTS_MAX as u64));
            assert_eq!(bench.backlog(), 0);
            bench.finish().await;
        }
    }
}

/// Three claims are on the wire at a time. The first and the last are refused, and nothing that was
/// sent later shows that the consumer works.
#[tokio::test(start_paused = true)]
async fn what_was_sent_beside_a_refused_event_is_no_proof() {
    for ordered in [true, false] {
        let setting = Setting {
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
        assert_eq!(bench.lost(), 0);
        bench.append(&["more"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((bench.delivered(), bench.lost()), (3, 2));
        bench.finish().await;
    }
}

/// One address refuses some events and responds to another one with 5xx. After each 5xx, the next
/// request goes to a second address, which is unreachable.
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

/// An event is refused at one address, which then stays unreachable. The other address has accepted
/// nothing before. It turns this event down too, or takes it, and takes all other events.
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
            // The last copy of each other event comes in order.
            let mut last: Vec<_> = bench.seen();
            last.reverse();
            let mut seen = BTreeSet::new();
            last.retain(|event| event != "bad" && seen.insert(event.clone()));
            last.reverse();
            let arrived = bench.appended.iter().filter(|event| seen.contains(*event));
            assert!(!ordered || last.iter().eq(arrived), "{answer:?}: {:?}", bench.seen());
            bench.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_oldest_event_makes_room_for_one_more() {
    let setting = Setting { window: 4, ordered: false, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, bad_get(Answer::Fail));
    for number in 0..3 * EVENTS_MAX {
        bench.append(&[format!("bad{number}")]);
        // The good event is sent after the failure of the bad one.
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.append(&[format!("good{number}")]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(bench.lost(), (number + 1).saturating_sub(EVENTS_MAX) as u64);
    }
    let (aside, _) = bench.status.snapshot().aside.expect("they wait");
    assert_eq!(aside.events, EVENTS_MAX as u64);
    assert_eq!((bench.delivered(), bench.lost()), (150, 100));
    assert_eq!(aside.position, 4 * EVENTS_MAX as u64, "the newest are kept");
    tokio::time::sleep(2 * HOUR).await;
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (150, 150));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_makes_room_if_nothing_may_be_given_up() {
    let started = Instant::now();
    let rejected = Rejected::Retry;
    let setting = Setting { window: 4, ordered: false, rejected, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        let fails = started.elapsed() < 12 * HOUR && is_bad(events);
        if fails { Answer::Fail } else { Answer::Accept }
    });
    for number in 0..2 * EVENTS_MAX {
        bench.append(&[format!("bad{number}")]);
        bench.append(&[format!("good{number}")]);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(HOUR).await;
    assert_eq!((bench.aside(), bench.lost()), (EVENTS_MAX as u64, 0));
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (4 * EVENTS_MAX as u64, 0));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_replaces_another_takes_over_what_is_set_aside() {
    for at in [32_000, 33_000, 35_001, 35_002, 35_003] {
        let started = Instant::now();
        let replaced = vec![Duration::from_millis(at)];
        let latency = Duration::from_millis(2);
        let setting = Setting { ordered: false, replaced, latency, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            match is_bad(events) && started.elapsed() < Duration::from_secs(60) {
                true => Answer::Fail,
                false => Answer::Accept,
            }
        });
        bench.append(&["a", "bad", "b", "bad too"]);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(bench.aside(), 2);
        for _ in 0..20 {
            bench.append(&["c"]);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost(), bench.aside()), (24, 0, 0), "{at}");
        bench.finish().await;
    }
}

/// Method: the output is optional, and sets two events aside. A required output takes nothing, and
/// its events fill the queue: while no event is tried, or while one is on the wire. The consumer
/// then accepts all events.
#[tokio::test(start_paused = true)]
async fn an_event_that_the_queue_drops_for_its_room_is_forgotten() {
    for is_on_wire in [false, true] {
        let works = Arc::new(AtomicBool::new(false));
        let works_now = Arc::clone(&works);
        let latency = Duration::from_secs(1);
        let drop_oldest = Some(64 << 10);
        let setting = Setting { ordered: false, latency, drop_oldest, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let fails = is_bad(events) && !works_now.load(Ordering::Relaxed);
            if fails { Answer::Fail } else { Answer::Accept }
        });
        bench.queue.require("o", false);
        bench.append(&["a", "bad", "b", "bad too"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let metrics = bench.telemetry.output("required");
        let _required = bench.queue.join("required", true, metrics).await.expect("it is new");
        let large = ["x".repeat(8000)];
        for _ in 0..7 {
            bench.append(&large);
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert_eq!((bench.delivered(), bench.aside(), bench.lost()), (9, 2, 0), "there is room");
        let tried = bench.attempts().len();
        while bench.attempts().len() == tried {
            tokio::time::sleep(latency / 10).await;
        }
        if !is_on_wire {
            tokio::time::sleep(latency * 2).await;
        }
        works.store(true, Ordering::Relaxed);
        bench.append(&large);
        assert_eq!((bench.aside(), bench.lost()), (0, 2), "at once");
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(bench.status.snapshot().aside.is_none());
        let bad = bench.seen().iter().filter(|event| event.starts_with("bad")).count();
        assert_eq!(bad, usize::from(is_on_wire), "none is sent again");
        assert_eq!((bench.delivered(), bench.lost()), (10, 2), "each is counted once");
        bench.finish().await;
    }
}
