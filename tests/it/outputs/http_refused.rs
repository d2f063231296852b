//! Events that the consumer refuses with 400, 413, 422 or 500. Only these events are lost, and a
//! consumer that refuses everything loses none.

use std::io::{BufReader, Read as _, Write as _};

use crate::support::prelude::*;

type Events = Vec<Vec<u8>>;

/// Splits the events of these batches into the good ones and the bad ones. `bad` has the indexes of
/// the bad ones.
fn parted(batches: &[Vec<u8>], bad: &[usize]) -> (Events, BTreeSet<Vec<u8>>) {
    let all = batches.iter().flat_map(|batch| events_of(batch)).enumerate();
    let (bad, good): (Vec<_>, Vec<_>) = all.partition(|(place, _)| bad.contains(place));
    (
        good.into_iter().map(|(_, event)| event).collect(),
        bad.into_iter().map(|(_, event)| event).collect(),
    )
}

fn status(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

/// A load balancer chooses a backend for each connection, and every second backend refuses one
/// event.
#[test]
fn an_event_that_is_refused_alone_reaches_the_backend_of_another_connection() {
    let batch = generated_batch(0, 50, 1200);
    let bad = events_of(&batch).remove(20);
    let sink = HttpSink::start(move |request| {
        let refuses = request.connection % 2 == 0 && events_in(request).contains(&bad);
        Answer::status(if refuses { 400 } else { 200 })
    });
    let relay = Relay::start(&to_sink(sink.address(), "concurrency = 1\n"));
    assert_eq!(relay.post(&batch).status, 200);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (50.0, 0.0));
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
        // The huge event is given up once the consumer has accepted another event after its
        // refusal.
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
        assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (1201.0, 1.0));
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_413_that_comes_before_the_body_was_read_is_understood() {
    // Like nginx, the consumer answers once it has read the head, with `Connection: close`, and
    // still reads the rest of the request.
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
    let sent = post_batch(&relay, 1, 400, 5_000);
    relay.wait_until_delivered(PATIENCE);
    let bytes: usize = sent.iter().map(|event| event.len() + 1).sum();
    assert_eq!(accepted.load(Ordering::SeqCst), bytes, "each event once");
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (400.0, 0.0));
    let metrics = relay.metrics();
    let other = metrics.sum("output_errors_total")
        - metrics.value("output_errors_total", &[("output", "consumer"), ("reason", "status_4xx")]);
    assert_eq!(other, 0.0, "the answer was lost with the connection");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_refuses_everything_is_heeded_when_it_says_until_when() {
    let sink = HttpSink::start(|_| Answer::status(413).header("Retry-After", "60"));
    let more = "concurrency = 1\n[shutdown]\ndrain_timeout = \"200ms\"\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    post_batch(&relay, 0, 4, 900);
    relay.wait_for_log("output down, events are kept", PATIENCE);
    let next = wait_for("the next attempt", PATIENCE, || {
        status(&relay)["outputs"][0]["next_retry_seconds"].as_f64()
    });
    assert!((50.0..=60.0).contains(&next), "{next}");
    // The six requests are the batch, its first half, and its four events.
    assert_eq!(sink.count(), 6);
    relay.finish(Backlog::Stable);
}

#[test]
fn an_event_that_is_answered_with_500_stops_no_other_and_is_shown() {
    let batches: Vec<_> = (0..3).map(|seed| generated_batch(seed, 50, 900)).collect();
    let (good, bad) = parted(&batches, &[70]);
    let sink = refusing(500, move |event| bad.contains(event));
    let more = "rejected = { after_server_errors = \"12s\" }\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    for batch in &batches {
        assert_eq!(relay.post(batch).status, 200);
    }
    wait_until("the other events are delivered", PATIENCE, || {
        of_output(&relay, "output_events_total") == 149.0
    });
    wait_until("the event waits", PATIENCE, || {
        status(&relay)["outputs"][0]["aside"]["events"] == 1
    });
    let shown = status(&relay);
    let aside = &shown["outputs"][0]["aside"];
    assert_eq!((&aside["position"], &aside["server_errors"]), (&70.into(), &true.into()));
    let error = aside["error"].as_str().unwrap();
    assert!(
        error.contains(&sink.address().to_string()) && error.contains("answered 500"),
        "{error}"
    );
    assert_eq!(lost(&relay), 0.0);
    let told = "the consumer turns down one event each time but accepts others: the event is set \
                aside and retried, and later events are delivered before it";
    relay.wait_for_log(told, PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    assert_none_missing(&accepted_events(&sink), &good);
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (149.0, 1.0));
    assert!(status(&relay)["outputs"][0]["aside"].is_null());
    relay.finish(Backlog::Empty);
}
