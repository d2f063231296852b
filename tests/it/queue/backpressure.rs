//! A full queue: the answers to senders, a client like kube-apiserver that gets every batch
//! accepted, and the events that count as lost if the config permits losses. Also
//! `acknowledge = "delivered"`.

use std::thread::JoinHandle;

use crate::support::http::Response;
use crate::support::prelude::*;
use crate::support::webhook::{Sent, send_as_kube_apiserver};

/// The pauses and timeouts of kube-apiserver's client are divided by this number.
const FASTER: u32 = 30;

/// The bytes of a batch that the queue counts besides its lines.
const OVERHEAD: usize = 256;

fn assert_refusal(response: &Response, status: u16, retry_after: std::ops::RangeInclusive<u32>) {
    assert_eq!(response.status, status, "{}", response.text());
    let wait: u32 = response.header("retry-after").expect("a Retry-After").parse().unwrap();
    assert!(retry_after.contains(&wait), "{wait}");
    let told = response.json();
    assert_eq!(
        (told["kind"].as_str(), told["code"].as_u64()),
        (Some("Status"), Some(status.into()))
    );
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn real(count: usize) -> f64 {
    count as f64
}

fn lost(metrics: &Metrics, plugin: &str) -> f64 {
    metrics.value("error_total", &[("plugin", plugin)])
}

/// Method: 200 threads imitate kube-apiserver's client with times divided by `FASTER`. The consumer
/// is down for 2 s, which stand for a minute, so that the queue fills and batches are refused.
/// Every batch must be accepted in the end, and every event must arrive.
#[test]
fn kube_apiserver_gets_everything_through_after_an_outage_of_a_minute() {
    let mut sink = HttpSink::accepting();
    sink.close();
    let more = "[queue]\nmax_bytes = \"1MiB\"\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    let address = relay.address();
    // The test posts 200 batches of about 25 KB in 2 s. About 40 of them fill the queue.
    let senders: Vec<JoinHandle<(u64, Sent)>> = (0..200)
        .map(|seed: u64| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10) * u32::try_from(seed).unwrap());
                let batch = generated_batch(seed, 20, 1250);
                (seed, send_as_kube_apiserver(address, &batch, FASTER))
            })
        })
        .collect();
    let down = Instant::now();
    let full = wait_for("a full queue", PATIENCE, || {
        let metrics = relay.metrics();
        let refused = metrics.value("requests_rejected_total", &[("reason", "queue_full")]);
        (refused >= 20.0).then_some(metrics)
    });
    assert!(full.value("queue_bytes", &[]) <= 1024.0 * 1024.0);
    assert_eq!(
        http::get(relay.admin(), "/readyz").unwrap().status,
        200,
        "a full queue is not unready"
    );
    assert!(http::get(relay.admin(), "/readyz?verbose").unwrap().text().contains("queue is full"));
    while down.elapsed() < Duration::from_secs(60) / FASTER {
        let ready = http::get(relay.admin(), "/livez").unwrap();
        assert_eq!(ready.status, 200);
        std::thread::sleep(Duration::from_millis(20));
    }
    sink.reopen();
    let sent: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    relay.wait_until_delivered(PATIENCE);
    let mut expected = Vec::new();
    let mut refusals = 0;
    for (seed, sent) in &sent {
        assert!(sent.accepted, "batch {seed} was given up after {} refusals", sent.refusals.len());
        sent.refusals.iter().for_each(|refusal| assert_refusal(refusal, 429, 3..=8));
        refusals += sent.refusals.len();
        expected.extend(events_of(&generated_batch(*seed, 20, 1250)));
    }
    assert_same_set(&accepted_events(&sink), &expected);
    let metrics = relay.metrics();
    let refused = metrics.value("requests_rejected_total", &[("reason", "queue_full")]);
    assert_eq!(refused, real(refusals));
    assert_eq!(metrics.value("event_total", &[]), 4000.0);
    assert_eq!(metrics.sum("error_total"), 0.0);
    // The lines are logged a moment after the changes that they report.
    for message in [messages::FULL, messages::HAS_ROOM] {
        relay.wait_for_log(message, PATIENCE);
    }
    let told = relay.log_fields();
    let said = |message: &str| told.iter().filter(|fields| fields["message"] == message).count();
    assert!((1..=3).contains(&said(messages::FULL)), "{}", said(messages::FULL));
    assert!((1..=3).contains(&said(messages::HAS_ROOM)), "{}", said(messages::HAS_ROOM));
    relay.finish(Backlog::Empty);
}

/// Returns the size, in bytes, of a queue that has room for exactly five batches of this size.
fn room_for_five(batch: &[u8]) -> usize {
    let lines: usize = events_of(batch).iter().map(|event| event.len() + 1).sum();
    // A body is larger than its lines. The check of a request's head uses the body's length.
    5 * (lines + OVERHEAD) + (batch.len() - lines)
}

/// Returns batches of the same size with different events.
fn batches(count: u64) -> Vec<Vec<u8>> {
    let batches: Vec<_> = (0..count).map(|seed| generated_batch(seed, 10, 1000)).collect();
    let longest = batches.iter().map(Vec::len).max().unwrap();
    // The shorter bodies are padded with white space inside the first event, so that the event
    // contains it.
    let pad = |batch: Vec<u8>| {
        let at = batch.iter().position(|&byte| byte == b'[').unwrap() + 2;
        [&batch[..at], &b" ".repeat(longest - batch.len()), &batch[at..]].concat()
    };
    batches.into_iter().map(pad).collect()
}

fn dead_end(queue: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    to_sink(address, &format!("{queue}[shutdown]\ndrain_timeout = \"200ms\"\n"))
}

#[test]
fn reject_refuses_what_does_not_fit_and_loses_nothing() {
    let batches = batches(8);
    let room = room_for_five(&batches[0]);
    let relay =
        Relay::start(&dead_end(&format!("[queue]\nmax_bytes = {room}\nretry_after = \"10s\"\n")));
    for batch in &batches[..5] {
        assert_eq!(relay.post(batch).status, 200);
    }
    for batch in &batches[5..] {
        assert_refusal(&relay.post(batch), 429, 6..=16);
    }
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 50.0);
    assert_eq!(metrics.value("queue_events", &[]), 50.0);
    assert_eq!(metrics.value("output_backlog_events", &[("output", "consumer")]), 50.0);
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "queue_full")]), 3.0);
    assert_eq!(metrics.value("queue_capacity_bytes", &[]), real(room));
    assert!(metrics.value("queue_bytes", &[]) <= real(room));
    assert_eq!(metrics.sum("error_total") + metrics.sum("queue_dropped_events_total"), 0.0);
    relay.finish(Backlog::Stable);
}

/// Returns the tables for `acknowledge = "delivered"` with this timeout.
fn delivered(timeout: &str) -> String {
    format!(
        "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"{timeout}\"\n[shutdown]\ndrain_timeout = \"300ms\"\n"
    )
}

#[test]
fn delivered_answers_once_every_output_has_the_batch() {
    let quick = HttpSink::accepting();
    let slow = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(1500)));
    let config = format!(
        "{}[[output]]\nname = \"slow\"\ntype = \"http\"\nurls = [\"http://{}/\"]\nconcurrency = 1\n",
        to_sink(quick.address(), &delivered("20s")),
        slow.address()
    );
    let relay = Relay::start(&config);
    for seed in 0..2 {
        let batch = generated_batch(seed, 10, 1000);
        let count = usize::try_from(seed).unwrap();
        let mut client = Client::connect(relay.address()).unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", batch.len());
        client.send(&[head.as_bytes(), &batch].concat()).unwrap();
        slow.wait_for_count(count + 1, PATIENCE);
        // The batch is on the wire: it is accepted, but not yet acknowledged.
        let metrics = relay.metrics();
        assert_eq!(metrics.value("event_total", &[]), real(10 * (count + 1)));
        assert!(metrics.value("in_flight_bytes", &[]) >= real(batch.len()));
        let response = client.read_response().unwrap();
        assert_eq!((response.status, response.json()["accepted"].as_u64()), (200, Some(10)));
        assert_eq!(response.header("connection"), None, "the connection is kept");
        for sink in [&quick, &slow] {
            assert!(sink.requests()[count].is_accepted());
        }
        assert_eq!(relay.metrics().value("in_flight_bytes", &[]), 0.0);
    }
    // Several senders wait at the same time, and each one gets its own answer.
    let address = relay.address();
    let senders: Vec<_> = (10..16)
        .map(|seed| {
            std::thread::spawn(move || {
                http::post(address, "/", "application/json", &generated_batch(seed, 10, 1000))
                    .unwrap()
                    .status
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| assert_eq!(sender.join().unwrap(), 200));
    assert_eq!(relay.metrics().value("event_total", &[]), 80.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn delivered_answers_also_for_events_that_are_refused_for_good() {
    let sink = HttpSink::start(|request| {
        let bad = request.body.windows(9).any(|window| window == b"poisonous");
        Answer::status(if bad { 422 } else { 200 })
    });
    let relay = Relay::start(&to_sink(sink.address(), &delivered("20s")));
    let bad = r#"{"auditID":"poisonous","stage":"Panic","level":"Metadata"}"#;
    let good = r#"{"auditID":"harmless","stage":"Panic","level":"Metadata"}"#;
    let body = format!("{good}\n{bad}\n{good}\n");
    let response =
        http::post(relay.address(), "/", "application/x-ndjson", body.as_bytes()).unwrap();
    assert_eq!(response.status, 200);
    let metrics = relay.metrics();
    assert_eq!((lost(&metrics, "consumer"), metrics.sum("output_events_total")), (1.0, 2.0));
    relay.finish(Backlog::Empty);
}

/// Starts a relay whose consumer is down, and posts `first`. The sender gets 503, but by then the
/// output has begun to send the batch.
fn waiting(timeout: &str) -> (HttpSink, Relay, Vec<u8>) {
    let mut sink = HttpSink::accepting();
    sink.close();
    let config = to_sink(sink.address(), &format!("concurrency = 1\n{}", delivered(timeout)));
    let relay = Relay::start(&config);
    let first = generated_batch(0, 10, 1000);
    let response = relay.post(&first);
    assert_refusal(&response, 503, 3..=8);
    assert_eq!(response.header("connection"), Some("close"));
    (sink, relay, first)
}

#[test]
fn delivered_answers_503_in_time_and_keeps_only_what_was_begun() {
    let (mut sink, relay, first) = waiting("1s");
    assert_eq!(relay.metrics().value("event_total", &[]), 10.0, "begun, and so accepted");
    let posted = Instant::now();
    for seed in 1..4 {
        let mut client = Client::connect(relay.address()).unwrap();
        let response =
            client.post("/", "application/json", &generated_batch(seed, 10, 1000)).unwrap();
        assert_refusal(&response, 503, 3..=8);
        assert!(client.is_closed_by_server(), "another replica may be better");
    }
    assert!(posted.elapsed() >= Duration::from_secs(3));
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 10.0);
    assert_eq!(metrics.value("queue_events", &[]), 10.0, "the others were taken out again");
    assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "delivery_timeout")]), 4.0);
    sink.reopen();
    relay.wait_until_delivered(PATIENCE);
    // kube-apiserver tries again. This batch is accepted. The earlier attempts, which were answered
    // with 503, are not delivered.
    let again = post_batch(&relay, 1, 10, 1000);
    let expected = [events_of(&first), again].concat();
    assert!(accepted_events(&sink) == expected, "what was answered 503 was delivered after all");
    relay.finish(Backlog::Empty);
}

#[test]
fn delivered_takes_a_batch_out_when_its_sender_goes() {
    let (mut sink, relay, first) = waiting("2s");
    // Each of these batches waits in the queue after the first. The timeout of 2 s would remove a
    // batch too, so there are five of them, and the counter of timeouts must show that at least two
    // were removed without one.
    for seed in 1..6 {
        let batch = generated_batch(seed, 10, 1000);
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", batch.len());
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&[head.as_bytes(), &batch].concat()).unwrap();
        wait_until("the batch in the queue", PATIENCE, || {
            relay.metrics().value("queue_events", &[]) > 10.0
        });
        drop(client);
        wait_until("the batch taken out", PATIENCE, || {
            relay.metrics().value("queue_events", &[]) == 10.0
        });
    }
    wait_until("the room given back", PATIENCE, || {
        relay.metrics().value("in_flight_bytes", &[]) == 0.0
    });
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 10.0);
    let timeouts = metrics.value("requests_rejected_total", &[("reason", "delivery_timeout")]);
    assert!(timeouts <= 3.0, "{timeouts}: it was the timeouts that took them out");
    sink.reopen();
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&sink) == events_of(&first));
    relay.finish(Backlog::Empty);
}

#[test]
fn delivered_keeps_what_is_on_the_wire_when_its_sender_goes() {
    let held = Arc::new(AtomicBool::new(true));
    let holds = Arc::clone(&held);
    let sink = HttpSink::start(move |_| {
        wait_until("the end of the test", PATIENCE, || !holds.load(Ordering::SeqCst));
        Answer::status(200)
    });
    let relay = Relay::start(&to_sink(sink.address(), &delivered("20s")));
    let batch = generated_batch(1, 10, 1000);
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", batch.len());
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&[head.as_bytes(), &batch].concat()).unwrap();
    sink.wait_for_count(1, PATIENCE);
    drop(client);
    wait_until("the sender's end", PATIENCE, || relay.metrics().sum("connections") == 0.0);
    assert_eq!(relay.metrics().value("event_total", &[]), 10.0);
    held.store(false, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&sink) == events_of(&batch));
    relay.finish(Backlog::Empty);
}

#[test]
fn delivered_counts_waiting_bodies_against_max_in_flight_and_the_queue() {
    let hung = HttpSink::start(|_| Answer::never());
    let batch = generated_batch(0, 10, 1000);
    let limit = batch.len() * 2 + batch.len() / 2;
    let more = format!("{}[limits]\nmax_in_flight = {limit}\n", delivered("20s"));
    let relay = Relay::start(&to_sink(hung.address(), &more));
    let mut waiting = Vec::new();
    for seed in 0..2 {
        let batch = generated_batch(seed, 10, 1000);
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", batch.len());
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&[head.as_bytes(), &batch].concat()).unwrap();
        hung.wait_for_count(waiting.len() + 1, PATIENCE);
        waiting.push(client);
    }
    assert_refusal(&relay.post(&batch), 429, 3..=8);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("requests_rejected_total", &[("reason", "in_flight_full")]), 1.0);
    drop(waiting);
    wait_until("the room given back", PATIENCE, || {
        relay.metrics().value("in_flight_bytes", &[]) == 0.0
    });
    relay.finish(Backlog::Stable);
}
