//! Pauses: a consumer that takes nothing gets few requests, and a pause that it asks for one event
//! holds up no other.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn names(of: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{of}{number}")).collect()
}

/// Every way of turning everything down, in order and with four requests at a time. A backlog of
/// 5,000 events waits, and new events come all the time.
#[tokio::test(start_paused = true)]
async fn an_outage_gets_few_requests_in_its_first_seconds() {
    for answer in [Answer::Fail, Answer::Refuse, Answer::FailFor(2 * SECOND)] {
        for (window, ordered) in [(1, true), (4, false)] {
            let (started, down) = (Instant::now(), answer.clone());
            let setting = Setting { window, ordered, ..Setting::default() };
            let mut bench = Bench::start::<false>(&setting, move |_| {
                if started.elapsed() < 60 * SECOND { down.clone() } else { Answer::Accept }
            });
            for batch in names("old", 5000).chunks(500) {
                bench.append(batch);
            }
            for new in 0..100 {
                tokio::time::sleep(SECOND / 10).await;
                bench.append(&[format!("new{new}")]);
            }
            let tries = bench.attempts().len();
            // A refusal may be about the size of the request, which is halved 13 times.
            let most = if answer == Answer::Refuse { 30 } else { 16 };
            let most = most + window;
            assert!(tries <= most, "{answer:?}, {window} at a time: {tries} requests in 10 s");
            bench.drained().await;
            assert!(started.elapsed() < 110 * SECOND, "{answer:?}: {:?}", started.elapsed());
            assert_eq!((bench.delivered(), bench.lost()), (5100, 0));
            bench.finish().await;
        }
    }
}

/// An outage after an event was found to be at fault gets few requests, too. Those of the event
/// itself, which is retried, are not counted.
#[tokio::test(start_paused = true)]
async fn an_outage_after_an_event_at_fault_gets_few_requests() {
    let (started, tries) = (Instant::now(), Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&tries);
    let mut bench = Bench::requests(move |events| match started.elapsed().as_secs() {
        ..60 => refuse_bad(events),
        60..300 => {
            *counted.lock().unwrap() += usize::from(!is_bad(events));
            Answer::Fail
        }
        _ => Answer::Accept,
    });
    for event in ["good0", "bad", "good1"] {
        bench.append(&[event]);
        tokio::time::sleep(10 * SECOND).await;
    }
    tokio::time::sleep(30 * SECOND).await;
    bench.append(&names("more", 5000));
    tokio::time::sleep(10 * SECOND).await;
    let tries = *tries.lock().unwrap();
    assert!((8..=16).contains(&tries), "{tries} requests in 10 s");
    bench.drained().await;
    bench.finish().await;
}

/// The consumer asks for a pause each time it gets one of these events, 20 s or many years. Others
/// arrive at once, and the event is not sent again before the end of its own pause.
#[tokio::test(start_paused = true)]
async fn the_pause_that_an_event_alone_gets_is_its_own() {
    for (asked, bad) in [(20, 1), (20, 5), (400_000_000, 1), (400_000_000, 3)] {
        for (window, ordered) in [(1, true), (1, false), (4, false)] {
            let alone = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&alone);
            let setting = Setting { window, ordered, ..Setting::default() };
            let mut bench = Bench::start::<false>(&setting, move |events| {
                if events == ["bad0"] {
                    noted.lock().unwrap().push(Instant::now());
                }
                match is_bad(events) {
                    true => Answer::FailFor(Duration::from_secs(asked)),
                    false => Answer::Accept,
                }
            });
            bench.append(&names("before", 10));
            tokio::time::sleep(SECOND).await;
            bench.append(&[names("bad", bad), names("with", 600)].concat());
            for new in 0..120 {
                tokio::time::sleep(SECOND / 2).await;
                bench.append(&[format!("new{new}")]);
            }
            let what = format!("{asked} s, {bad} events, {window} at a time, {ordered}");
            tokio::time::sleep(2 * SECOND).await;
            assert_eq!(bench.seen().iter().collect::<BTreeSet<_>>().len(), 730, "{what}");
            let alone = alone.lock().unwrap().clone();
            for pair in alone.windows(2) {
                let pause = pair[1] - pair[0];
                assert!(pause >= Duration::from_secs(asked.min(300)), "{what}: {pause:?}");
            }
            assert!(alone.len() > 1 || asked > 100, "{what}: it is tried again");
            bench.finish().await;
        }
    }
}

/// The consumer asks everything for a pause of a minute, three times. It gets no more than four
/// requests before the first pause, and two after each.
#[tokio::test(start_paused = true)]
async fn a_pause_that_everything_gets_is_heeded() {
    let started = Instant::now();
    let mut bench = Bench::requests(move |_| match started.elapsed() < 170 * SECOND {
        true => Answer::FailFor(60 * SECOND),
        false => Answer::Accept,
    });
    bench.append(&names("event", 500));
    for new in 0..160 {
        bench.append(&[format!("new{new}")]);
        tokio::time::sleep(SECOND).await;
    }
    let seconds: Vec<_> =
        bench.attempts().iter().map(|at| at.duration_since(started).as_secs() / 10).collect();
    assert_eq!(seconds, [0, 0, 0, 0, 6, 6, 12, 12]);
    bench.drained().await;
    assert_eq!(bench.delivered(), 660);
    assert!(in_order(&bench.seen(), &bench.appended));
    bench.finish().await;
}

/// The relay drains while events rest for which the consumer has asked for a pause of five minutes.
/// The consumer takes these events once the drain has begun.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_pause_that_an_event_alone_gets() {
    for (ordered, others) in [(true, 0), (false, 0), (true, 20), (false, 20)] {
        let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let works_now = Arc::clone(&works);
        let setting = Setting { window: 1, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |events| {
            let asks = is_bad(events) && !works_now.load(std::sync::atomic::Ordering::Relaxed);
            if asks { Answer::FailFor(300 * SECOND) } else { Answer::Accept }
        });
        bench.append(&["bad0"]);
        tokio::time::sleep(10 * SECOND).await;
        if others > 0 {
            bench.append(&names("good", others));
            tokio::time::sleep(10 * SECOND).await;
            assert_eq!(bench.seen().len(), others, "{ordered}");
        }
        works.store(true, std::sync::atomic::Ordering::Relaxed);
        bench.draining.cancel();
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(bench.seen().len(), others + 1, "{ordered}, {others}");
        bench.finish().await;
    }
}

/// Two events beside each other, for each of which the consumer asks for a pause: the second waits
/// for the end of the first one's try, and no longer.
#[tokio::test(start_paused = true)]
async fn events_that_rest_are_tried_one_after_the_other() {
    let started = Instant::now();
    let setting = Setting { window: 1, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        let asks = is_bad(events) && started.elapsed() < 100 * SECOND;
        if asks { Answer::FailFor(20 * SECOND) } else { Answer::Accept }
    });
    bench.append(&["good", "bad0", "bad1", "bad2"]);
    for new in 0..150 {
        tokio::time::sleep(SECOND).await;
        bench.append(&[format!("new{new}")]);
    }
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(bench.delivered(), 154);
    bench.finish().await;
}
