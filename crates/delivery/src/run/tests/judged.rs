//! Consumers whose responses are about single events: which events are sent again, which are given
//! up, and when.

use std::cmp::Ordering;

use super::*;

/// Returns the response that judges each event by a letter. The function `letter` gets the event's
/// index in the batch, and its name.
pub(super) fn judge(events: &[String], letter: impl FnMut((usize, &String)) -> char) -> Answer {
    Answer::Judge(events.iter().enumerate().map(letter).collect())
}

/// Returns the response that refuses the bad events, and says only how many they are.
pub(super) fn refuse_number(events: &[String]) -> Answer {
    match events.iter().filter(|event| event.starts_with("bad")).count() {
        0 => Answer::Accept,
        bad => Answer::Partly(bad as u64),
    }
}

/// Returns the response of a consumer that stops at the first bad event. The consumer has the
/// events before it but will not confirm them, and has not read those after it. If there is no bad
/// event, it takes everything.
pub(super) fn stop_at_bad(events: &[String]) -> Answer {
    match events.iter().position(|event| event.starts_with("bad")) {
        None => Answer::Accept,
        Some(0) if events.len() > 1 => Answer::Refuse,
        Some(bad) => judge(events, |(index, _)| match index.cmp(&bad) {
            Ordering::Less => 'u',
            Ordering::Equal => 'r',
            Ordering::Greater => 'n',
        }),
    }
}

fn errors(bench: &Bench) -> u64 {
    bench.value("output_errors_total{output=\"o\",reason=\"item\"}")
}

fn existing(bench: &Bench) -> u64 {
    bench.value("output_existing_events_total{output=\"o\"}")
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// Method: the consumer takes every second event of a batch at the first attempt, and everything
/// later. The rest, and nothing else, must be sent again in one request, in order.
#[tokio::test(start_paused = true)]
async fn only_events_that_were_not_taken_go_again_and_share_a_request() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&requests);
    let mut bench = Bench::requests(move |events| {
        let mut requests = told.lock().unwrap();
        requests.push(events.to_vec());
        let first = requests.len() == 1;
        judge(events, |(index, _)| if first && index % 2 == 0 { 'a' } else { 'd' })
    });
    bench.append(&numbers(400));
    bench.drained().await;
    let even: Vec<String> = numbers(400).into_iter().step_by(2).collect();
    assert_eq!(*requests.lock().unwrap(), [numbers(400), even]);
    assert_eq!((bench.delivered(), bench.lost(), errors(&bench)), (400, 0, 1));
    assert!(bench.status.snapshot().up, "the consumer takes events");
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_among_events_that_are_taken_is_given_up_without_another_request() {
    let mut bench = Bench::requests(|events| {
        judge(events, |(_, event)| match event.as_str() {
            "bad" => 'r',
            "old" => 'e',
            _ => 'd',
        })
    });
    bench.append(&["a", "bad", "b", "old", "old", "bad"]);
    bench.drained().await;
    assert_eq!(bench.seen(), ["a", "b"]);
    assert_eq!((bench.delivered(), bench.lost(), existing(&bench)), (4, 2, 2));
    assert_eq!((bench.attempts().len(), errors(&bench)), (1, 1));
    bench.finish().await;
}

/// Method: at first, the consumer refuses each single event, as if its index were missing. An hour
/// later, it takes all events except the bad ones. Until then, no good event may be given up.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_refuses_each_event_of_a_batch_may_be_at_fault_itself() {
    let started = Instant::now();
    let mut bench = Bench::requests(move |events| {
        let is_well = started.elapsed() > HOUR;
        judge(events, |(_, event)| if is_well && event != "bad" { 'd' } else { 'r' })
    });
    let names: Vec<_> = numbers(10).into_iter().chain(["bad".to_owned()]).collect();
    bench.append(&names);
    bench.append(&["later"]);
    tokio::time::sleep(HOUR).await;
    assert_eq!((bench.delivered(), bench.lost()), (0, 0));
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost()), (11, 1));
    let seen: BTreeSet<_> = bench.seen().into_iter().collect();
    assert!(!seen.contains("bad") && seen.len() == 11, "{seen:?}");
    bench.finish().await;
}

/// Method: `rejected.action` is `"retry"`. An event that is refused while others are taken is sent
/// again until it is taken. No other event is sent again.
#[tokio::test(start_paused = true)]
async fn a_refused_event_goes_again_alone_if_nothing_may_be_given_up() {
    let started = Instant::now();
    let setting = Setting { window: 1, rejected: Rejected::Retry, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, move |events| {
        let is_well = started.elapsed() > HOUR;
        judge(events, |(_, event)| if !is_well && event == "bad" { 'r' } else { 'd' })
    });
    bench.append(&["a", "bad", "b"]);
    bench.drained().await;
    assert_eq!(bench.seen(), ["a", "b", "bad"]);
    assert_eq!((bench.delivered(), bench.lost()), (3, 0));
    bench.finish().await;
}

/// Method: the consumer stops at each bad event. The consumer gets each good event at most twice. A
/// bad event is given up after its first refusal, because the consumer took others of its request.
#[tokio::test(start_paused = true)]
async fn what_was_taken_without_a_confirmation_goes_again_once_and_apart() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&requests);
    let mut bench = Bench::requests(move |events| {
        told.lock().unwrap().push(events.concat());
        stop_at_bad(events)
    });
    bench.append(&["a", "b", "bad1", "c", "bad2", "d", "e"]);
    bench.drained().await;
    let mut requests = requests.lock().unwrap().clone();
    assert_eq!(requests.remove(0), "abbad1cbad2de");
    requests.sort();
    assert_eq!(requests, ["ab", "c", "cbad2de", "de"]);
    assert_eq!((bench.delivered(), bench.lost(), errors(&bench)), (5, 2, 2));
    bench.finish().await;
}

/// Method: the remainders of a batch share a request, which the consumer refuses as a whole. Each
/// remainder is then sent by itself, and only the bad event is given up.
#[tokio::test(start_paused = true)]
async fn a_request_of_remainders_that_is_refused_is_taken_apart() {
    let mut count = 0;
    let mut bench = Bench::requests(move |events| {
        count += 1;
        match count {
            1 => judge(events, |(index, _)| if index % 2 == 0 { 'a' } else { 'd' }),
            _ => refuse_bad(events),
        }
    });
    bench.append(&["a", "b", "bad", "c", "d", "e"]);
    bench.append(&["last"]);
    bench.drained().await;
    let seen: BTreeSet<_> = bench.seen().into_iter().collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "last"]);
    assert_eq!((bench.delivered(), bench.lost()), (6, 1));
    bench.finish().await;
}

/// Method: the consumer refuses two of six events and does not say which. No event may be sent
/// again; all six must be in the dead letters, and two of them count as lost.
#[tokio::test(start_paused = true)]
async fn if_only_a_number_is_refused_nothing_goes_again_and_all_is_in_the_dead_letters() {
    let setting = Setting { rejected: Rejected::DeadLetter, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, refuse_number);
    let names = ["a", "bad1", "b", "c", "bad2", "d"];
    bench.append(&names);
    let letters = bench.letters().await;
    assert_eq!(
        (letters.events.as_slice(), letters.reason.as_str()),
        (&names.map(str::to_owned)[..], "scripted")
    );
    assert!(letters.written(6, None));
    bench.drained().await;
    bench.append(&["later"]);
    bench.drained().await;
    assert_eq!(bench.seen(), ["a", "b", "c", "d", "later"]);
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (5, 2, 6));
    assert_eq!((bench.attempts().len(), errors(&bench)), (2, 1));
    assert!(bench.status.snapshot().up, "the consumer takes events");
    bench.finish().await;
}

/// Method: the consumer refuses all events of a request by their number. The refusal is final, too:
/// the protocol forbids to send the events again.
#[tokio::test(start_paused = true)]
async fn a_number_that_is_refused_is_final_whatever_the_config_says_of_refusals() {
    for rejected in [Rejected::Retry, Rejected::Drop, Rejected::DeadLetter] {
        let setting = Setting { rejected, ..Setting::default() };
        let mut bench = Bench::start::<false>(&setting, refuse_number);
        bench.append(&["bad1", "bad2"]);
        bench.drained().await;
        bench.append(&["bad3", "a"]);
        bench.drained().await;
        assert_eq!((bench.delivered(), bench.lost(), bench.attempts().len()), (1, 3, 2));
        assert_eq!(bench.seen(), ["a"]);
        bench.finish().await;
    }
}

/// Method: only two of the six letters of a claim are written. The two events that are lost are
/// counted once each.
#[tokio::test(start_paused = true)]
async fn letters_of_a_number_that_are_not_written_do_not_change_what_is_lost() {
    let setting = Setting { rejected: Rejected::DeadLetter, ..Setting::default() };
    let mut bench = Bench::start::<false>(&setting, refuse_number);
    bench.append(&["a", "bad1", "b", "c", "bad2", "d"]);
    assert!(bench.letters().await.written(2, Some("no space left")));
    bench.drained().await;
    assert_eq!((bench.delivered(), bench.lost(), bench.in_letters()), (4, 2, 2));
    bench.finish().await;
}
