//! Events that the filter drops, changes or knows as duplicates: each is counted once for any
//! response of the consumer, and none delays other events.

use super::*;

fn through_filter() -> Setting {
    Setting { sifts: true, window: 1, ..Setting::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_by_parts_is_counted_by_parts() {
    let mut parts = [1, 2].into_iter();
    let mut bench = Bench::start::<true>(&through_filter(), move |_| match parts.next() {
        Some(count) => Answer::AcceptFirst(count),
        None if parts.len() == 0 => Answer::Accept,
        None => Answer::Break(0),
    });
    bench.append(&[lowered(1), lowered(2), lowered(3), lowered(4)]);
    bench.drained().await;
    assert_eq!((bench.seen().len(), bench.filtered("lowered")), (4, 4));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_refused_among_filtered_ones_is_given_up_alone() {
    let mut bench = Bench::start::<false>(&through_filter(), refuse_bad);
    let mut batch: Vec<String> = (0..200).map(hidden).collect();
    batch[77] = "bad1".to_owned();
    batch[150] = lowered(150);
    bench.append(&batch);
    bench.append(&["good1"]);
    bench.drained().await;
    assert_eq!((bench.lost(), bench.delivered(), bench.filtered("dropped")), (1, 2, 198));
    assert!(bench.attempts().len() < 20, "{}", bench.attempts().len());
    bench.finish().await;
}

/// The size of a request counts the events that the filter drops. If only those that it lets
/// through counted, requests would stay as small as the outage has made them.
#[tokio::test(start_paused = true)]
async fn requests_grow_after_an_outage_although_the_filter_drops_most_events() {
    for ordered in [false, true] {
        let started = Instant::now();
        let setting = Setting { ordered, window: 1, ..through_filter() };
        let mut bench = Bench::start::<false>(&setting, move |_| {
            if started.elapsed() < Duration::from_secs(60) { Answer::Fail } else { Answer::Accept }
        });
        bench.append(&["good", "other"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        bench.drained().await;
        let before = bench.attempts().len();
        for number in 0..100 {
            let mut batch: Vec<String> = (0..100).map(|each| hidden(number * 100 + each)).collect();
            batch[7] = format!("good{number}");
            batch[70] = format!("other{number}");
            bench.append(&batch);
        }
        bench.drained().await;
        let attempts = bench.attempts().len() - before;
        assert_eq!((bench.lost(), bench.delivered()), (0, 202));
        assert!(attempts < 20, "{attempts} requests for 200 events, ordered {ordered}");
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_is_compared_with_the_next_that_leaves() {
    let mut bench = Bench::start::<false>(&through_filter(), refuse_bad);
    bench.append(&["bad1"]);
    for number in 0..300 {
        let hidden: Vec<String> = (0..100).map(|each| hidden(number * 100 + each)).collect();
        bench.append(&hidden);
    }
    bench.append(&["good1"]);
    bench.drained().await;
    assert_eq!((bench.lost(), bench.delivered(), bench.filtered("dropped")), (1, 1, 30_000));
    assert!(bench.attempts().len() < 20, "{}", bench.attempts().len());
    bench.finish().await;
}

/// The consumer fails on one event. Other events are sent to learn whether it works, but the filter
/// drops all new ones.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_answered_with_5xx_stops_no_other_before_events_that_are_dropped() {
    for ordered in [false, true] {
        let setting = Setting { ordered, ..through_filter() };
        let mut bench = Bench::start::<false>(&setting, |events| match is_bad(events) {
            true => Answer::Fail,
            false => Answer::Accept,
        });
        bench.append(&["bad1", "good1", "good2", "good3"]);
        for number in 0..600 {
            bench.append(&[hidden(number)]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!((bench.lost(), bench.delivered()), (0, 3), "{ordered}");
        bench.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_repeats_an_event_that_was_given_up_is_no_duplicate() {
    let mut refused = 0;
    let mut bench = Bench::start::<false>(&through_filter(), move |events| {
        let holds = events.iter().any(|event| event == "twice");
        refused += u32::from(holds);
        // One refusal in a batch with another event, two alone before that event was accepted, and
        // eight after it.
        if holds && refused <= 11 { Answer::Refuse } else { Answer::Accept }
    });
    bench.append(&["twice", "good1"]);
    tokio::time::sleep(HOUR).await;
    assert_eq!(bench.lost(), 1);
    bench.append(&["twice"]);
    bench.append(&["twice", "good2"]);
    bench.drained().await;
    assert_eq!(bench.seen().iter().filter(|event| *event == "twice").count(), 1);
    assert_eq!(bench.filtered("duplicate"), 1);
    bench.finish().await;
}
