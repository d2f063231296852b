//! Events that are given up: what happens to their claims while dead letters are written, and when
//! letters can't be written.

use super::*;
use crate::dead_letter::GROUP_BYTES_MAX;
use crate::dead_letter::tests::Given;

/// Returns settings with dead letters, and with one request at a time.
fn with_desk() -> Setting {
    Setting { rejected: Rejected::DeadLetter, window: 1, ..Setting::default() }
}

impl Bench {
    /// Waits for the next dead letters that the delivery hands over.
    pub(super) async fn letters(&mut self) -> Given {
        let next = self.desk.as_mut().expect("a desk").next();
        let next = tokio::time::timeout(400 * DAY, next).await;
        next.expect("letters").expect("a delivery")
    }

    pub(super) fn in_letters(&self) -> u64 {
        self.value("dead_letter_events_total{output=\"o\"}")
    }

    /// Waits for a second, so that everything happens that does not wait for longer.
    async fn settled(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Reports the results of dead letters instead of the writing thread: success or an error, late or
/// never.
pub(super) struct Clerk {
    task: JoinSet<(Vec<String>, u64)>,
    stop: CancellationToken,
}

impl Clerk {
    pub(super) fn start(bench: &mut Bench, mut seed: u64) -> Self {
        let mut desk = bench.desk.take().expect("a desk");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (mut given, mut written, mut silent) = (Vec::new(), 0, Vec::new());
            while let Some(Some(letters)) = stopped.run_until_cancelled(desk.next()).await {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let events = letters.events.len() as u64;
                given.extend(letters.events.iter().cloned());
                let safe = match seed >> 61 {
                    0 => 0,
                    1 => events - 1,
                    2 => {
                        silent.push(letters);
                        continue;
                    }
                    wait => {
                        desk.pass(Duration::from_secs(wait - 3)).await;
                        events
                    }
                };
                // If the report comes too late, the events are counted as lost without a letter.
                if letters.written(safe, (safe < events).then_some("scripted")) {
                    written += safe;
                }
            }
            // The letters without a report.
            while let Some(letters) = desk.try_next() {
                given.extend(letters.events);
            }
            (given, written)
        });
        Self { task, stop }
    }

    /// Stops the clerk. Returns the events of all letters, and how many of them were written.
    pub(super) async fn end(mut self) -> (Vec<String>, u64) {
        self.stop.cancel();
        self.task.join_next().await.expect("one").expect("no panic")
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_is_finished_when_its_letter_is_safe_and_meanwhile_the_rest_goes_on() {
    let mut bench = Bench::start::<false>(&with_desk(), refuse_bad);
    bench.append(&["a", "bad", "b"]);
    let letter = bench.letters().await;
    assert_eq!(
        (letter.events.clone(), letter.reason.as_str()),
        (vec!["bad".to_owned()], "scripted")
    );
    for batch in 0..50 {
        bench.append(&[batch]);
    }
    bench.settled().await;
    assert_eq!((bench.delivered(), bench.lost(), bench.aside()), (52, 0, 1));
    assert!(letter.written(1, None));
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (52, 1, 1));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_is_not_written_costs_the_event_which_is_counted_as_lost_alone() {
    let mut bench = Bench::start::<false>(&with_desk(), refuse_bad);
    bench.append(&["a", "bad"]);
    assert!(bench.letters().await.written(0, Some("no space left")));
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (1, 1, 0));
    bench.append(&["b", "bad"]);
    bench.append(&["c"]);
    let silent = bench.letters().await;
    let since = Instant::now();
    bench.drained().await;
    assert!(since.elapsed() < Duration::from_secs(11), "{:?}", since.elapsed());
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (3, 2, 0));
    drop(silent);
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_a_moment_for_a_letter_and_leaves_what_is_not_safe() {
    for answered in [true, false] {
        let mut bench = Bench::start::<false>(&with_desk(), refuse_bad);
        bench.append(&["a", "bad"]);
        let letter = bench.letters().await;
        bench.stop.cancel();
        let since = Instant::now();
        tokio::task::yield_now().await;
        if answered {
            assert!(letter.written(1, None));
        }
        let ended = bench.tasks.join_next().await;
        assert!(matches!(ended, Some(Ok(Ok(())))));
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        let safe = u64::from(answered);
        assert_eq!((bench.aside(), bench.lost(), bench.in_letters()), (1 - safe, safe, safe));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_while_a_letter_is_written_sends_what_is_behind_it_once_more() {
    let mut count = 0;
    let mut bench = Bench::start::<true>(&with_desk(), move |events| {
        count += 1;
        match count {
            1 => Answer::AcceptBut(1),
            4 => Answer::Break(1),
            _ => {
                assert!(!events.contains(&"bad".to_owned()), "its claim was final");
                Answer::Accept
            }
        }
    });
    bench.append(&["bad"]);
    let letter = bench.letters().await;
    for name in ["a", "b", "c", "d"] {
        bench.append(&[name]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // "a" and "b" became final before the letter of "bad" was written, and are not sent again. Only
    // "c", which was on the wire at the break, is sent twice.
    bench.settled().await;
    assert!(letter.written(1, None));
    bench.drained().await;
    assert_eq!(bench.seen(), ["a", "b", "c", "c", "d"]);
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (4, 1, 1));
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_letters_is_bounded() {
    // The letters have 1 MiB each, and are not written for some time.
    let big = "x".repeat(1 << 20);
    let mut bench = Bench::start::<false>(&with_desk(), move |events| {
        if events.iter().any(|event| event.len() > 100) { Answer::Refuse } else { Answer::Accept }
    });
    for batch in 0..40 {
        bench.append(std::slice::from_ref(&big));
        bench.append(&[batch]);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut waiting = Vec::new();
    while let Some(letters) = bench.desk.as_mut().and_then(Desk::try_next) {
        waiting.push(letters);
    }
    let bytes: usize = waiting.iter().flat_map(|letters| &letters.events).map(String::len).sum();
    assert!(bytes as u64 <= GROUP_BYTES_MAX + (1 << 20), "{bytes}");
    assert!(bytes as u64 >= GROUP_BYTES_MAX / 2, "{bytes}");
    assert!(waiting.into_iter().all(|letters| letters.written(1, None)));
    let clerk = Clerk::start(&mut bench, 0);
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (40, 40));
    clerk.end().await;
    bench.finish().await;
}
