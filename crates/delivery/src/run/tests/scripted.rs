//! Consumers whose answers each test writes down: outages, refusals, and the ends of a delivery.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_was_under_way_on_a_link_that_is_gone_comes_again_in_order_and_what_it_took_does_not()
{
    let mut count = 0;
    let setting = Setting { window: 1, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        count += 1;
        match count {
            2 => Answer::Gone(false),
            4 => Answer::Gone(true),
            6 => Answer::Trouble,
            _ => refuse_bad(events),
        }
    });
    for batch in 0..4 {
        bench.append(&[2 * batch, 2 * batch + 1]);
    }
    bench.append(&["bad", "good"]);
    bench.append(&["last"]);
    bench.drained().await;
    let good: Vec<_> = bench.appended.iter().filter(|event| *event != "bad").cloned().collect();
    assert_eq!(bench.seen(), good);
    assert_eq!((bench.lost(), bench.connects().len()), (1, 3));
    assert_eq!(bench.value("output_errors_total{output=\"o\",reason=\"protocol\"}"), 1);
    assert_eq!(bench.value("output_errors_total{output=\"o\",reason=\"connect\"}"), 1);
    assert_eq!(bench.value("output_up{output=\"o\"}"), 1);
    bench.finish().await;
}

/// Method: the consumer takes some checkpoints, refuses others and breaks at some, for hours with
/// few events. The output must stay up, and a later event must leave without a pause.
async fn leaves_checkpoints_without_events<const EAGER: bool>() {
    let setting = Setting { checkpoints: true, window: 1, ..Setting::default() };
    let mut bench = Bench::start::<EAGER>(&setting, |_| Answer::Accept);
    for event in 0..40 {
        let begun = Instant::now();
        bench.append(&[event]);
        bench.drained().await;
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(280) + Duration::from_millis(event)).await;
    }
    assert_eq!(bench.seen(), bench.appended);
    let taken = bench.checkpoints();
    assert!(taken.is_sorted_by(|a, b| a < b) && taken.len() > 50, "{taken:?}");
    let counted = bench.telemetry.render();
    let errors = counted.lines().filter(|line| {
        line.starts_with("kube_audit_forwarder_output_errors_total{") && !line.ends_with(" 0")
    });
    assert_eq!(errors.count(), 0, "{counted}");
    assert_eq!(bench.value("output_up{output=\"o\"}"), 1);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn checkpoints_leave_without_events_and_their_fate_is_that_of_no_event() {
    leaves_checkpoints_without_events::<false>().await;
    leaves_checkpoints_without_events::<true>().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_before_an_idle_consumer_is_needed_and_a_stream_connects_at_once() {
    let stream = Bench::stream(|_| Answer::Accept);
    let requests = Bench::requests(|_| Answer::Accept);
    tokio::time::sleep(HOUR).await;
    assert_eq!((stream.connects().len(), requests.connects().len()), (1, 0));
    assert!(stream.status.snapshot().up && !requests.status.snapshot().up);
    stream.finish().await;
    requests.finish().await;
}

/// The consumer takes no event for the time `outage`. Asserts that attempts continue with bounded
/// pauses, and that all events arrive soon after the outage.
async fn survives_an_outage<const EAGER: bool>(outage: Duration) {
    let started = Instant::now();
    let away = if EAGER { outage } else { Duration::ZERO };
    let setting = Setting { away, ..Setting::default() };
    let mut bench = Bench::start::<EAGER>(&setting, move |_| {
        if started.elapsed() < outage { Answer::Fail } else { Answer::Accept }
    });
    for batch in 0..50 {
        bench.append(&[batch]);
    }
    tokio::time::sleep(outage).await;
    assert_eq!(bench.delivered(), 0);
    assert_eq!(bench.value("output_backlog_events{output=\"o\"}"), 50);
    assert!(!bench.status.snapshot().up);
    bench.drained().await;
    // The limit is `max_interval` with its jitter, and the time for sending 50 batches.
    assert!(started.elapsed() < outage + Duration::from_secs(46), "{:?}", started.elapsed());
    assert!(bench.status.snapshot().up);
    assert_eq!(bench.lost(), 0);
    assert!(in_order(&bench.seen(), &bench.appended) || !EAGER);
    let tried = if EAGER { bench.connects() } else { bench.attempts() };
    let during: Vec<_> = tried.iter().filter(|at| **at < started + outage).collect();
    let longest = during.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap();
    assert!(longest <= Duration::from_secs(46), "{longest:?}");
    // A few attempts follow quickly, and then one about every 30 s.
    let most = outage.as_secs() / 20 + 20;
    assert!((during.len() as u64) < most, "{} attempts in {outage:?}", during.len());
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_or_a_day_without_the_consumer_everything_resumes_by_itself() {
    for outage in [HOUR, DAY] {
        survives_an_outage::<true>(outage).await;
        survives_an_outage::<false>(outage).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_waited_for_up_to_five_minutes() {
    for (asked, least, most) in [(60, 60, 62), (86_400, 300, 302)] {
        let mut first = true;
        let mut bench = Bench::requests(move |_| {
            let wait = Duration::from_secs(asked);
            if std::mem::take(&mut first) { Answer::FailFor(wait) } else { Answer::Accept }
        });
        bench.append(&["a"]);
        bench.drained().await;
        let waited = bench.started.elapsed().as_secs();
        assert!((least..most).contains(&waited), "{waited} s for {asked}");
        bench.finish().await;
    }
}

/// The simulator has found that each pause ended at once while unsent events waited.
#[tokio::test(start_paused = true)]
async fn a_backlog_ends_no_pause_of_an_output_that_cannot_connect() {
    let away = Setting { away: HOUR, ..Setting::default() };
    let stream = Bench::start::<true>(&away, |_| Answer::Accept);
    let started = Instant::now();
    let requests =
        Bench::requests(
            move |_| {
                if started.elapsed() < HOUR { Answer::Away } else { Answer::Accept }
            },
        );
    for mut bench in [stream, requests] {
        for number in 0..1000 {
            bench.append(&[number]);
        }
        tokio::time::sleep(HOUR / 2).await;
        let tries = bench.connects().len().max(bench.attempts().len());
        assert!(tries < 200, "{tries} tries in half an hour");
        bench.drained().await;
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_many_requests_at_once_are_one_reason_to_wait() {
    let mut failures = 0;
    let mut bench =
        Bench::start::<false>(&Setting { ordered: false, ..Setting::default() }, move |_| {
            failures += 1;
            if failures <= 4 { Answer::Fail } else { Answer::Accept }
        });
    for batch in 0..8 {
        bench.append(&vec![batch; 5000]);
    }
    bench.drained().await;
    // There was one pause of 0.25 to 0.75 s, and not four growing pauses.
    assert!(bench.started.elapsed() < Duration::from_secs(1), "{:?}", bench.started.elapsed());
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_break_after_progress_is_retried_at_once_and_one_without_waits_longer_each_time() {
    let mut count = 0;
    // Each connection takes one batch, and breaks.
    let mut bench = Bench::stream(move |_| {
        count += 1;
        if count % 2 == 0 { Answer::Break(1) } else { Answer::Accept }
    });
    for batch in 0..20 {
        bench.append(&[batch]);
        // The pause makes each event a batch of its own on the wire.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.drained().await;
    // The whole test takes less time than the shortest pause, so there was no pause.
    assert!(bench.started.elapsed() < Duration::from_millis(250), "{:?}", bench.started.elapsed());
    assert!(bench.connects().len() > 3);
    assert!(in_order(&bench.seen(), &bench.appended));
    bench.finish().await;

    let mut count = 0;
    let mut bench = Bench::stream(move |_| {
        count += 1;
        if count <= 10 { Answer::Break(1) } else { Answer::Accept }
    });
    bench.append(&["a"]);
    bench.drained().await;
    let connects = bench.connects();
    let waits: Vec<_> = connects.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits.len(), 10);
    assert!(waits[0] < Duration::from_millis(800), "{waits:?}");
    assert!(waits[9] > Duration::from_secs(14), "{waits:?}");
    assert_eq!(bench.seen(), vec!["a"; 11], "read each time, never final before");
    assert_eq!(bench.delivered(), 1);
    assert_eq!(bench.value("output_retries_total{output=\"o\"}"), 10);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_where_another_address_is_left_goes_there_at_once_and_is_not_down() {
    let mut answers = vec![Answer::BreakHere, Answer::BreakHere].into_iter();
    let mut bench = Bench::stream(move |_| answers.next().unwrap_or(Answer::Accept));
    bench.append(&["a"]);
    while bench.connects().len() < 3 {
        assert!(bench.started.elapsed() < Duration::from_millis(100), "{:?}", bench.connects());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(bench.status.snapshot().up);
    }
    bench.drained().await;
    assert_eq!(bench.value("output_errors_total{output=\"o\",reason=\"closed\"}"), 2);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_without_progress_is_down_until_one_stays() {
    let mut count = 0;
    let mut bench = Bench::stream(move |_| {
        count += 1;
        if count <= 5 { Answer::Break(0) } else { Answer::Accept }
    });
    bench.append(&["a"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    while bench.connects().len() < 5 {
        assert!(!bench.status.snapshot().up, "a connection alone is no success");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.drained().await;
    assert!(bench.status.snapshot().up);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_is_up_again_without_an_event() {
    let mut bench = Bench::stream(|_| Answer::Break(0));
    bench.append(&["a"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!bench.status.snapshot().up);
    *bench.consumer.script.lock().unwrap() = Box::new(|_| Answer::Accept);
    bench.drained().await;
    assert!(bench.status.snapshot().up);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn events_that_do_not_fit_the_protocol_are_counted_and_their_neighbours_delivered() {
    let mut bench = Bench::stream(|events| {
        Answer::AcceptBut(events.iter().filter(|event| event.starts_with("bad")).count() as u64)
    });
    bench.append(&["a", "bad", "b"]);
    bench.append(&["bad"]);
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (2, 2));
    assert_eq!(bench.seen(), ["a", "b"]);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_accepted_of_a_batch_is_final_though_the_connection_breaks() {
    let mut answers = 0;
    let mut bench = Bench::stream(move |events| {
        answers += 1;
        match answers % 3 {
            0 => Answer::Break(0),
            _ if events.len() > 2 => Answer::AcceptFirst(2),
            _ => Answer::Accept,
        }
    });
    let names: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    for batch in names.chunks(7) {
        bench.append(batch);
    }
    bench.drained().await;
    assert_eq!(bench.seen(), names, "in order, and nothing twice");
    assert_eq!((bench.delivered(), bench.lost()), (50, 0));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn one_refused_event_costs_only_itself() {
    for bad in [0, 1, 199, 398, 399] {
        let mut bench = Bench::requests(refuse_bad);
        let names: Vec<String> =
            (0..400).map(|n| if n == bad { "bad".to_owned() } else { n.to_string() }).collect();
        bench.append(&names);
        bench.append(&["next"]);
        bench.drained().await;
        let good: Vec<_> = bench.appended.iter().filter(|name| *name != "bad").cloned().collect();
        assert!(in_order(&bench.seen(), &good));
        assert_eq!((bench.delivered(), bench.lost()), (400, 1));
        // Halving the batch takes two requests for each level, and a few more.
        assert!(bench.attempts().len() < 30, "{} requests", bench.attempts().len());
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_refused_events_alone_waits_for_another_to_be_accepted() {
    let mut bench = Bench::requests(refuse_bad);
    bench.append(&["bad1", "bad2", "bad3"]);
    tokio::time::sleep(DAY).await;
    assert_eq!((bench.delivered(), bench.lost()), (0, 0), "nothing tells it from a wrong setting");
    assert!(!bench.status.snapshot().up);
    assert!(bench.attempts().len() < 3 * 24 * 3600 / 20, "{} requests", bench.attempts().len());
    bench.append(&["good"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.seen(), ["good"], "the probe does not wait for the back-off");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!((bench.delivered(), bench.lost()), (1, 3));
    assert_eq!(bench.seen(), ["good"], "once");
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_refuses_everything_for_an_hour_costs_nothing() {
    for (window, ordered) in [(1, true), (4, false)] {
        let started = Instant::now();
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, move |_| {
            if started.elapsed() < HOUR { Answer::Refuse } else { Answer::Accept }
        });
        for batch in 0..200 {
            bench.append(&[batch * 3, batch * 3 + 1, batch * 3 + 2]);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (600, 0));
        assert!(started.elapsed() < HOUR + Duration::from_secs(60), "{:?}", started.elapsed());
        assert!(!ordered || in_order(&bench.seen(), &bench.appended));
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_refused_everything_recovers_from_its_bad_event_without_new_ones() {
    // Some of the numbers are above the limit of suspects. The first event stays refused.
    for others in [1, 5, MANY - 1, MANY, 3 * MANY] {
        let started = Instant::now();
        let mut bench = Bench::requests(move |events| {
            if started.elapsed() < HOUR { Answer::Refuse } else { refuse_bad(events) }
        });
        let names: Vec<_> = (0..others).map(|n| n.to_string()).collect();
        bench.append(&["bad"]);
        bench.append(&names);
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost()), (others as u64, 1), "{others}");
        assert!(in_order(&bench.seen(), &names));
        let late = started.elapsed().saturating_sub(HOUR);
        // Four or five pauses of at most 33 s.
        assert!(late < Duration::from_secs(165), "{late:?}");
        bench.finish().await;
    }
}

/// The consumer works, but the relay knows it only after the first good event.
#[tokio::test(start_paused = true)]
async fn more_refused_events_in_a_row_than_the_limit_stop_no_later_one() {
    for (window, ordered) in [(1, true), (4, false)] {
        let setting = Setting { window, ordered, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, refuse_bad);
        for _ in 0..3 {
            bench.append(&["bad"; MANY]);
        }
        tokio::time::sleep(DAY).await;
        assert_eq!((bench.delivered(), bench.lost()), (0, 0));
        // At most 50 events are set aside at a time in these tests.
        for _ in 0..80 {
            bench.append(&["good"]);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!((bench.delivered(), bench.lost()), (80, 3 * MANY as u64), "{ordered}");
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_event_refused_while_the_others_pass_holds_nobody_up() {
    let mut bench = Bench::requests(refuse_bad);
    bench.append(&["bad"]);
    for batch in 0..50 {
        bench.append(&[batch]);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.seen().len(), 50);
    bench.drained().await;
    assert!(bench.started.elapsed() < Duration::from_secs(10), "{:?}", bench.started.elapsed());
    assert_eq!((bench.delivered(), bench.lost()), (50, 1));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn rejected_retry_drops_nothing_and_holds_up_no_other_event() {
    let started = Instant::now();
    let setting = Setting { window: 1, rejected: Rejected::Retry, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        if started.elapsed() < HOUR { refuse_bad(events) } else { Answer::Accept }
    });
    bench.append(&["a", "b", "bad", "c"]);
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!((bench.seen(), bench.lost()), (["a", "b", "c"].map(str::to_owned).to_vec(), 0));
    assert_eq!(bench.aside(), 1);
    bench.drained().await;
    assert_eq!(bench.seen(), ["a", "b", "c", "bad"]);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_stop_is_heard_wherever_the_loop_waits() {
    // The loop is stopped in each of its waits: for events; for a consumer that can't be reached;
    // after a broken connection; for a response that never comes; and after a failed attempt.
    type Script = fn(&[String]) -> Answer;
    let scripts: [(Script, Duration, Duration); 5] = [
        (|_| Answer::Accept, Duration::ZERO, Duration::from_millis(1)),
        (|_| Answer::Accept, DAY, Duration::from_millis(1)),
        (|_| Answer::Break(0), Duration::ZERO, Duration::from_millis(1)),
        (|_| Answer::Accept, Duration::ZERO, 1000 * DAY),
        (|_| Answer::Fail, Duration::ZERO, Duration::from_millis(1)),
    ];
    for (script, away, latency) in scripts {
        let mut bench =
            Bench::start::<true>(&Setting { away, latency, ..Setting::default() }, script);
        bench.append(&["a"]);
        tokio::time::sleep(HOUR).await;
        let stopped = Instant::now();
        bench.finish().await;
        assert!(stopped.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_delivery_ends_what_is_on_the_wire_and_its_successor_sends_the_rest() {
    for at in [5, 25, 45] {
        let setting = Setting {
            latency: Duration::from_millis(10),
            window: 2,
            replaced: vec![Duration::from_millis(at)],
            ..Setting::default()
        };
        let mut bench = Bench::start::<true>(&setting, |_| Answer::Accept);
        for batch in 0..20 {
            bench.append(&[batch, batch + 100]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.drained().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.seen(), bench.appended, "replaced at {at} ms");
        assert_eq!(bench.connects().len(), 2);
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_consumer_hangs_is_replaced_after_ten_seconds() {
    let mut bench = Bench::start::<true>(
        &Setting { latency: HOUR, replaced: vec![Duration::from_secs(1)], ..Setting::default() },
        |_| Answer::Accept,
    );
    bench.append(&["a", "b"]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let connects = bench.connects();
    assert_eq!(connects.len(), 2);
    let waited = connects[1] - bench.started;
    assert!((HAND_OVER_TIME..HAND_OVER_TIME + CLOSE_TIME * 2).contains(&waited), "{waited:?}");
    bench.drained().await;
    assert_eq!(bench.seen(), bench.appended);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn drop_oldest_never_touches_what_is_on_the_wire() {
    let setting = Setting {
        // Room for about 15 of these batches.
        drop_oldest: Some(8 * 1024),
        latency: Duration::from_secs(1),
        ..Setting::default()
    };
    let mut bench = Bench::start::<true>(&setting, |_| Answer::Accept);
    for batch in 0..200 {
        bench.append(&[format!("{batch}-{}", "x".repeat(250))]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.drained().await;
    let (seen, lost) = (bench.seen(), bench.lost());
    // `FakeLink` panics if the lines of a claim are missing. Each event came at most once, in
    // order.
    assert!(lost > 0, "nothing was dropped");
    assert_eq!(seen.len() as u64 + lost, 200);
    assert!(in_order(&bench.appended, &seen));
    assert_eq!(bench.value("queue_dropped_events_total{reason=\"drop_oldest\"}"), lost);
    bench.finish().await;
}
