//! Events that the consumer refuses for good: 400, 413 and 422 cost the refused events and no
//! others, and a consumer that refuses everything costs nothing.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::http;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::http_sink::Request;
use crate::support::relay::BASE;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::requests::QUICK;
use crate::support::requests::accepted_events;
use crate::support::requests::assert_in_order;
use crate::support::requests::assert_none_missing;
use crate::support::requests::assert_same_set;
use crate::support::requests::events_in;
use crate::support::requests::to_http;
use crate::support::requests::to_sink;
use crate::support::server::Options;
use crate::support::server::Server;
use crate::support::wait_until;

type Events = Vec<Vec<u8>>;

/// Returns the events of these batches in two parts: the good ones, and the bad ones, which are
/// those at the places in `bad`.
fn parted(batches: &[Vec<u8>], bad: &[usize]) -> (Events, BTreeSet<Vec<u8>>) {
    let all = batches.iter().flat_map(|batch| events_of(batch)).enumerate();
    let (bad, good): (Vec<_>, Vec<_>) = all.partition(|(place, _)| bad.contains(place));
    (
        good.into_iter().map(|(_, event)| event).collect(),
        bad.into_iter().map(|(_, event)| event).collect(),
    )
}

/// Returns a consumer's script that answers `status` if a request holds one of these events, and
/// 200 otherwise.
fn refuses(bad: BTreeSet<Vec<u8>>, status: u16) -> impl Fn(&Request) -> Answer {
    move |request| {
        let refused = events_in(request).iter().any(|event| bad.contains(event));
        Answer::status(if refused { status } else { 200 })
    }
}

fn lost(relay: &Relay) -> f64 {
    relay.metrics().value("error_total", &[("plugin", "consumer")])
}

fn delivered(relay: &Relay) -> f64 {
    relay.metrics().value("output_events_total", &[("output", "consumer")])
}

fn status(relay: &Relay) -> serde_json::Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

/// Returns the messages of the log at this level.
fn messages(relay: &Relay, level: &str) -> Vec<String> {
    let lines = relay.log_lines();
    let lines =
        lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter(|line| line["level"] == level)
        .map(|line| line["fields"]["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred")]
fn bad_events_cost_only_themselves(status: u16, bad: &[usize], more: &str) {
    let batches: Vec<_> = (0..3).map(|seed| generated_batch(seed, 50, 1200)).collect();
    let (good, bad) = parted(&batches, bad);
    let count = bad.len() as f64;
    let sink = HttpSink::start(refuses(bad, status));
    let relay = Relay::start(&to_sink(sink.address(), more));
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    let accepted = accepted_events(&sink);
    if more.contains("concurrency = 1\n") {
        assert_in_order(&accepted, &good);
    }
    assert_none_missing(&accepted, &good);
    assert_eq!((delivered(&relay), lost(&relay)), (150.0 - count, count), "{status}");
    let requests = relay.metrics().value("output_retries_total", &[("output", "consumer")]);
    assert!(requests <= count * 30.0, "{requests} requests more for {count} bad events");
    relay.wait_for_log("events given up and counted", PATIENCE);
    assert_eq!(messages(&relay, "ERROR"), ["events given up and counted"]);
    assert_eq!(messages(&relay, "WARN"), [] as [String; 0], "an output that works is not down");
    relay.finish(Backlog::Empty);
}

#[test]
fn one_bad_event_costs_itself_wherever_it_stands() {
    for (status, place) in [(400, 50), (413, 75), (422, 99), (400, 0), (422, 149)] {
        bad_events_cost_only_themselves(status, &[place], "concurrency = 1\n");
    }
}

#[test]
fn several_bad_events_cost_themselves_and_order_is_kept() {
    for bad in [&[0, 1, 2][..], &[49, 50, 51], &[3, 77, 78, 120, 149]] {
        bad_events_cost_only_themselves(400, bad, "concurrency = 1\n");
    }
}

#[test]
fn several_bad_events_cost_themselves_with_requests_in_parallel() {
    for bad in [&[0, 1, 2][..], &[49, 50, 51], &[3, 77, 78, 120, 149]] {
        bad_events_cost_only_themselves(422, bad, "batch = { max_events = 10 }\n");
    }
}

#[test]
fn drop_costs_as_much_as_dead_letters_without_a_directory() {
    let more = "concurrency = 1\nrejected = { action = \"drop\" }\n";
    bad_events_cost_only_themselves(400, &[60], more);
}

#[test]
fn with_retry_nothing_is_ever_given_up() {
    let batches = [generated_batch(0, 20, 900), generated_batch(1, 20, 900)];
    let (_, bad) = parted(&batches, &[5]);
    let mended = Arc::new(AtomicBool::new(false));
    let judge = (refuses(bad, 400), Arc::clone(&mended));
    let sink = HttpSink::start(move |request| match judge.1.load(Ordering::SeqCst) {
        true => Answer::status(200),
        false => judge.0(request),
    });
    let more = "concurrency = 1\nrejected = { action = \"retry\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    batches.iter().for_each(|batch| assert_eq!(relay.post(batch).status, 200));
    sink.wait_for_count(40, PATIENCE);
    assert_eq!((delivered(&relay), lost(&relay)), (5.0, 0.0), "order is kept before the bad one");
    assert_eq!(messages(&relay, "WARN"), ["output down, events are kept"]);
    mended.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_in_order(&accepted_events(&sink), &parted(&batches, &[]).0);
    assert_eq!(lost(&relay), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_limit_by_bytes_makes_batches_smaller_and_costs_only_what_exceeds_it_alone() {
    for concurrency in [1, 4] {
        let sink = HttpSink::start(|request| {
            Answer::status(if request.body.len() > 100_000 { 413 } else { 200 })
        });
        let relay =
            Relay::start(&to_sink(sink.address(), &format!("concurrency = {concurrency}\n")));
        let batches: Vec<_> = (0..3).map(|seed| generated_batch(seed, 400, 1600)).collect();
        let huge = generated_batch(9, 1, 150_000);
        for batch in batches.iter().chain([&huge]) {
            assert_eq!(relay.post(batch).status, 200);
        }
        // The last batch is refused until another batch has been accepted.
        let after = generated_batch(10, 1, 900);
        assert_eq!(relay.post(&after).status, 200);
        relay.wait_until_delivered(PATIENCE);
        let good: Events =
            batches.iter().chain([&after]).flat_map(|batch| events_of(batch)).collect();
        let accepted = accepted_events(&sink);
        assert_none_missing(&accepted, &good);
        if concurrency == 1 {
            let probe = events_of(&after).remove(0);
            let without_probe: Events =
                accepted.into_iter().filter(|event| *event != probe).collect();
            assert_in_order(&without_probe, &good[..good.len() - 1]);
        }
        assert_eq!((delivered(&relay), lost(&relay)), (1201.0, 1.0));
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_413_that_comes_before_the_body_was_read_is_understood() {
    // The consumer answers as nginx does: at the head, with `Connection: close`, and it reads the
    // rest of the request for a while.
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let server = Server::start(Options::default(), move |stream, _| {
        let mut reader = BufReader::new(stream);
        while let Ok(Some(head)) = http::read_head(&mut reader) {
            let length: u64 = head.header("content-length").unwrap().parse().unwrap();
            let is_large = length > 300_000;
            let refusal =
                b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n";
            if is_large && reader.get_mut().write_all(refusal).is_err() {
                return;
            }
            let body = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink());
            if is_large || body.is_err() {
                return;
            }
            count.fetch_add(usize::try_from(length).unwrap(), Ordering::SeqCst);
            let taken = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            if reader.get_mut().write_all(taken).is_err() {
                return;
            }
        }
    });
    let relay = Relay::start(&to_sink(server.address(), "concurrency = 1\nformat = \"ndjson\"\n"));
    let batch = generated_batch(1, 400, 5_000);
    assert_eq!(relay.post(&batch).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let bytes: usize = events_of(&batch).iter().map(|event| event.len() + 1).sum();
    assert_eq!(accepted.load(Ordering::SeqCst), bytes, "each event once");
    assert_eq!((delivered(&relay), lost(&relay)), (400.0, 0.0));
    let metrics = relay.metrics();
    let other = metrics.sum("output_errors_total")
        - metrics.value("output_errors_total", &[("output", "consumer"), ("reason", "status_4xx")]);
    assert_eq!(other, 0.0, "the answer was lost with the connection");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_lone_bad_event_waits_until_another_is_accepted() {
    let batches =
        [generated_batch(0, 1, 900), generated_batch(1, 1, 900), generated_batch(2, 1, 900)];
    for (bad, good) in [(&[0][..], 1), (&[0, 1], 2)] {
        let (_, refused) = parted(&batches, bad);
        let sink = HttpSink::start(refuses(refused, 422));
        let relay = Relay::start(&to_sink(sink.address(), ""));
        for &place in bad {
            assert_eq!(relay.post(&batches[place]).status, 200);
        }
        sink.wait_for_count(8, PATIENCE);
        assert_eq!((delivered(&relay), lost(&relay)), (0.0, 0.0));
        assert_eq!(messages(&relay, "WARN"), ["output down, events are kept"]);
        assert_eq!(relay.post(&batches[good]).status, 200);
        relay.wait_until_delivered(PATIENCE);
        #[allow(clippy::cast_precision_loss, reason = "two at most")]
        let expected = (1.0, bad.len() as f64);
        assert_eq!((delivered(&relay), lost(&relay)), expected);
        relay.finish(Backlog::Empty);
    }
}

/// Checks that every event arrived, and in order if only the last arrival of a repeated event
/// counts.
fn assert_last_in_order(accepted: &Events, expected: &Events) {
    let mut seen = BTreeSet::new();
    let mut last: Events =
        accepted.iter().rev().filter(|event| seen.insert(*event)).cloned().collect();
    last.reverse();
    assert!(last == *expected, "not all of it, or another order");
}

fn a_consumer_that_refuses_everything_for_a_while(
    status: u16,
    concurrency: usize,
    refusals: usize,
) {
    let sink = HttpSink::start(move |request| {
        Answer::status(if request.number < refusals { status } else { 200 })
    });
    let more = format!("concurrency = {concurrency}\nbatch = {{ max_events = 25 }}\n");
    let relay = Relay::start(&to_sink(sink.address(), &more));
    let batches: Vec<_> = (0..4).map(|seed| generated_batch(seed, 25, 900)).collect();
    for batch in &batches[..2] {
        assert_eq!(relay.post(batch).status, 200);
    }
    sink.wait_for_count(refusals / 2, PATIENCE);
    for batch in &batches[2..] {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE * 2);
    let expected = parted(&batches, &[]).0;
    let accepted = accepted_events(&sink);
    if concurrency == 1 {
        assert_last_in_order(&accepted, &expected);
    }
    assert_none_missing(&accepted, &expected);
    assert_eq!((delivered(&relay), lost(&relay)), (100.0, 0.0));
    assert_eq!(messages(&relay, "ERROR"), [] as [String; 0]);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_refuses_everything_for_a_while_costs_nothing_and_order_is_kept() {
    // The numbers of refusals end the trouble at different stages: after the first refusal, in the
    // middle of the halving, and in the rounds of probes.
    for refusals in [1, 2, 7, 30, 52, 80] {
        a_consumer_that_refuses_everything_for_a_while(400, 1, refusals);
    }
}

#[test]
fn a_consumer_that_refuses_everything_for_a_while_costs_nothing_with_requests_in_parallel() {
    for refusals in [1, 3, 9, 40, 70] {
        a_consumer_that_refuses_everything_for_a_while(413, 4, refusals);
    }
}

#[test]
fn what_was_under_way_when_the_refusals_began_is_no_proof_against_the_rest() {
    // The setting of the consumer changes while three requests are under way: it finishes these,
    // and refuses everything else.
    let mended = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let sink = HttpSink::start(move |request| match request.number {
        0..3 => Answer::status(200).after(Duration::from_millis(400)),
        _ if works.load(Ordering::SeqCst) => Answer::status(200),
        _ => Answer::status(400),
    });
    let relay = Relay::start(&to_sink(sink.address(), "batch = { max_events = 10 }\n"));
    let batch = generated_batch(0, 40, 900);
    assert_eq!(relay.post(&batch).status, 200);
    sink.wait_for_count(40, PATIENCE);
    assert_eq!((delivered(&relay), lost(&relay)), (30.0, 0.0));
    mended.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((delivered(&relay), lost(&relay)), (40.0, 0.0));
    assert_none_missing(&accepted_events(&sink), &events_of(&batch));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_refuses_everything_is_complained_of_once_and_asked_ever_less() {
    let sink =
        HttpSink::start(|_| Answer::status(400).body("plain HTTP request sent to HTTPS port"));
    let relay = Relay::start(&format!(
        "{}[shutdown]\ndrain_timeout = \"200ms\"\n",
        to_sink(sink.address(), "")
    ));
    for seed in 0..3 {
        assert_eq!(relay.post(&generated_batch(seed, 100, 900)).status, 200);
    }
    let down = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(down["error"].as_str().unwrap().contains("400"), "{down}");
    let first = sink.count();
    sink.wait_for_count(first + 30, PATIENCE);
    assert_eq!((delivered(&relay), lost(&relay)), (0.0, 0.0));
    assert_eq!(messages(&relay, "WARN"), ["output down, events are kept"]);
    assert_eq!(relay.metrics().value("output_up", &[("output", "consumer")]), 0.0);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["outputs"][0]["up"], false);
    relay.finish(Backlog::Stable);
}

#[test]
fn a_consumer_that_refuses_everything_is_heeded_when_it_says_until_when() {
    let sink = HttpSink::start(|_| Answer::status(413).header("Retry-After", "60"));
    let more = "concurrency = 1\n[shutdown]\ndrain_timeout = \"200ms\"\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    assert_eq!(relay.post(&generated_batch(0, 4, 900)).status, 200);
    relay.wait_for_log("output down, events are kept", PATIENCE);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let next = status["outputs"][0]["next_retry_seconds"].as_f64().unwrap();
    assert!((50.0..=60.0).contains(&next), "{next}");
    // The seven requests are the batch, its halves and its single events.
    assert_eq!(sink.count(), 7);
    relay.finish(Backlog::Stable);
}

#[test]
fn a_url_that_refuses_everything_loses_nothing_beside_one_that_works() {
    let wrong = HttpSink::start(|_| Answer::status(400));
    let right = HttpSink::accepting();
    let urls = [&wrong, &right].map(|sink| format!("http://{}/", sink.address()));
    let more = "strategy = \"round_robin\"\nconcurrency = 1\n";
    let relay = Relay::start(&to_http(&urls, more));
    let batches: Vec<_> = (0..6).map(|seed| generated_batch(seed, 50, 900)).collect();
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(lost(&relay), 0.0);
    assert_in_order(&accepted_events(&right), &parted(&batches, &[]).0);
    assert!(!messages(&relay, "WARN").is_empty(), "somebody must mend it");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_bad_event_is_told_by_every_url_of_a_round() {
    let batches: Vec<_> = (0..4).map(|seed| generated_batch(seed, 50, 900)).collect();
    let (good, bad) = parted(&batches, &[10, 120]);
    let sinks = [0, 1, 2].map(|_| HttpSink::start(refuses(bad.clone(), 400)));
    let urls = sinks.each_ref().map(|sink| format!("http://{}/", sink.address()));
    let relay = Relay::start(&to_http(&urls, "strategy = \"round_robin\"\n"));
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((delivered(&relay), lost(&relay)), (198.0, 2.0));
    let accepted: Events = sinks.iter().flat_map(accepted_events).collect();
    assert_same_set(&accepted, &good);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_wrong_standby_loses_nothing_while_the_first_url_is_down() {
    // The first URL accepts the requests that it has, but no new ones, and the standby refuses
    // everything. The requests that the first has accepted say nothing about the standby's
    // judgement.
    let mended = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let first = HttpSink::start(move |request| match request.number {
        0..3 => Answer::status(200).after(Duration::from_millis(400)),
        _ if works.load(Ordering::SeqCst) => Answer::status(200),
        _ => Answer::status(503),
    });
    let wrong = HttpSink::start(|_| Answer::status(400));
    let urls = [&first, &wrong].map(|sink| format!("http://{}/", sink.address()));
    let relay = Relay::start(&to_http(&urls, "batch = { max_events = 10 }\n"));
    let batches: Vec<_> = (0..2).map(|seed| generated_batch(seed, 50, 900)).collect();
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    wrong.wait_for_count(40, PATIENCE);
    assert_eq!(lost(&relay), 0.0);
    mended.store(true, Ordering::SeqCst);
    // The first URL is tried again only after ten seconds.
    relay.wait_until_delivered(PATIENCE * 2);
    assert_eq!((delivered(&relay), lost(&relay)), (100.0, 0.0));
    assert_none_missing(&accepted_events(&first), &parted(&batches, &[]).0);
    relay.finish(Backlog::Empty);
}

#[test]
fn an_output_that_takes_a_batch_apart_delays_no_other() {
    let batches: Vec<_> = (0..2).map(|seed| generated_batch(seed, 20, 900)).collect();
    let wrong = HttpSink::start(|_| Answer::status(400));
    let right = HttpSink::accepting();
    let config = format!(
        "{BASE}[[output]]\nname = \"wrong\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n{QUICK}\
         [[output]]\nname = \"consumer\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n\
         [shutdown]\ndrain_timeout = \"200ms\"\n",
        wrong.address(),
        right.address()
    );
    let relay = Relay::start(&config);
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    wait_until("all of it", PATIENCE, || accepted_events(&right).len() >= 40);
    assert_same_set(&accepted_events(&right), &parted(&batches, &[]).0);
    relay.finish(Backlog::Stable);
}

/// Posts 1,000 events to a relay whose consumer is a balancer with a broken backend, which answers
/// 400. `is_broken` says which requests reach that backend.
fn a_broken_backend_costs_nothing(
    more: &str,
    is_broken: impl Fn(&Request) -> bool + Send + Sync + 'static,
) {
    let sink =
        HttpSink::start(move |request| Answer::status(if is_broken(request) { 400 } else { 200 }));
    let relay = Relay::start(&to_sink(sink.address(), more));
    let batches: Vec<_> = (0..10).map(|seed| generated_batch(seed, 100, 900)).collect();
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    let good: Events = batches.iter().flat_map(|batch| events_of(batch)).collect();
    let accepted = accepted_events(&sink);
    assert_none_missing(&accepted, &good);
    if more.contains("concurrency = 1\n") {
        // What was accepted before a refused event came again after it.
        let mut all = accepted.iter();
        assert!(good.iter().all(|event| all.any(|other| other == event)), "out of order");
    }
    assert_eq!((delivered(&relay), lost(&relay)), (1000.0, 0.0));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_balancer_with_a_broken_backend_costs_no_event() {
    for more in ["concurrency = 1\n", "batch = { max_events = 20 }\n"] {
        // The balancer takes its backends in turn, for each request.
        a_broken_backend_costs_nothing(more, |request| request.number % 2 == 1);
        // It draws a backend for each request.
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let random = std::sync::Mutex::new(fastrand::Rng::with_seed(seed));
        a_broken_backend_costs_nothing(more, move |_| random.lock().unwrap().bool());
        // It chooses a backend for each connection.
        a_broken_backend_costs_nothing(more, |request| request.connection % 2 == 0);
    }
}

#[test]
fn an_event_that_is_answered_with_500_stops_no_other_and_is_shown() {
    let batches: Vec<_> = (0..3).map(|seed| generated_batch(seed, 50, 900)).collect();
    let (good, bad) = parted(&batches, &[70]);
    let sink = HttpSink::start(refuses(bad, 500));
    let more = "rejected = { after_server_errors = \"12s\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    wait_until("the other events are delivered", PATIENCE, || delivered(&relay) == 149.0);
    wait_until("the event waits", PATIENCE, || {
        status(&relay)["outputs"][0]["parked"]["events"] == 1
    });
    let shown = status(&relay);
    let parked = &shown["outputs"][0]["parked"];
    assert_eq!((&parked["position"], &parked["out_of_order"]), (&70.into(), &true.into()));
    let error = parked["error"].as_str().unwrap();
    assert!(error.contains(&sink.address().to_string()) && error.contains("500"), "{error}");
    assert_eq!(lost(&relay), 0.0);
    let told = "the consumer answers an event with a server error and takes others: the event is \
                tried again, and later events are delivered before it";
    relay.wait_for_log(told, PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    assert_none_missing(&accepted_events(&sink), &good);
    assert_eq!((delivered(&relay), lost(&relay)), (149.0, 1.0));
    assert!(status(&relay)["outputs"][0]["parked"].is_null());
    relay.finish(Backlog::Empty);
}
