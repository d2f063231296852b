//! `acknowledge = "delivered"`: a body that a sender repeats joins the batch that it brought
//! before, so that no event is queued or sent twice, and nothing else joins it.

use std::thread::JoinHandle;

use crate::support::apiserver::{Apiserver, Counted};
use crate::support::prelude::*;
use crate::support::webhook::send_as_kube_apiserver;

/// Returns the tables for `acknowledge = "delivered"` with this timeout.
fn delivered(timeout: &str) -> String {
    format!(
        "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"{timeout}\"\n\
         [shutdown]\ndrain_timeout = \"300ms\"\n"
    )
}

fn joined(relay: &Relay) -> f64 {
    relay.metrics().sum("requests_joined_total")
}

fn accepted(relay: &Relay) -> f64 {
    relay.metrics().value("event_total", &[])
}

/// A consumer that answers each request with 200, but only while `opens` is `true`.
fn gate() -> (HttpSink, Arc<AtomicBool>) {
    let opens = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&opens);
    let sink = HttpSink::start(move |_| {
        wait_until("the test opens the gate", PATIENCE, || is_open.load(Ordering::SeqCst));
        Answer::status(200)
    });
    (sink, opens)
}

/// Posts a body on a thread, and returns the answer.
fn post_beside(address: SocketAddr, body: &[u8]) -> JoinHandle<http::Response> {
    let body = body.to_vec();
    std::thread::spawn(move || http::post(address, "/", "application/json", &body).unwrap())
}

/// What kube-apiserver and `doctor` see of a batch with one event that its consumer answers with
/// 403. Times are divided by `faster`.
fn one_event_is_answered_403(more: &str, timeout: &str, faster: u32) {
    let batch = generated_batch(1, 20, 900);
    let events = events_of(&batch);
    let bad = events[7].clone();
    let sink = refusing(403, move |event| *event == bad);
    let relay = Relay::start(&to_sink(sink.address(), &format!("{more}{}", delivered(timeout))));
    let begun = Instant::now();
    let sent = send_as_kube_apiserver(relay.address(), &batch, faster);
    let took = begun.elapsed();
    let codes: Vec<u16> = sent.refusals.iter().map(|refusal| refusal.status).collect();
    assert!(sent.accepted, "given up after {codes:?}, {took:?}");
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == 503), "{codes:?}");
    assert!(took < Duration::from_secs(190) / faster, "{took:?}, {codes:?}");
    let taken = accepted_events(&sink);
    let innocent: Vec<_> = events.iter().filter(|event| **event != events[7]).cloned().collect();
    assert_same_set(&taken, &innocent);
    assert_eq!(taken.len(), 19, "each event once, for {} attempts", codes.len() + 1);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 20.0);
    assert_eq!((of_output(&relay, "output_events_total"), lost(&relay)), (19.0, 1.0));
    assert!(metrics.sum("requests_joined_total") >= 1.0);
    let since = metrics.value("requests_rejected_since_last_accepted", &[]);
    assert_eq!(since, 0.0, "the 200 of a batch that waited is an acceptance");
    // kube-apiserver has no loss, and the relay has the one event that it gave up.
    let apiserver = Apiserver::single();
    apiserver.count(0, |it| {
        *it = Counted { generated: Some(20), posts: vec![("200".to_owned(), 1)], ..it.clone() };
        it.posts.push(("503".to_owned(), codes.len() as u64));
    });
    let url = |address: SocketAddr| format!("http://{address}");
    let (admin, apiserver) = (url(relay.admin()), url(apiserver.address()));
    let arguments =
        ["doctor", "--interval", "200ms", "--json", "--relay", &admin, "--apiserver", &apiserver];
    let output = run_command(&arguments, Path::new("/"));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["verdict"], &json["lost"]), (&"lost".into(), &1.into()), "{json:#}");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_batch_with_an_event_that_is_turned_down_gets_its_200_and_no_event_comes_twice() {
    one_event_is_answered_403("rejected = { after_server_errors = \"4s\" }\n", "1700ms", 15);
}

#[test]
fn a_batch_that_is_delivered_meanwhile_gets_its_200_at_once() {
    let (sink, opens) = gate();
    let relay = Relay::start(&to_sink(sink.address(), &delivered("700ms")));
    let batch = generated_batch(1, 10, 1000);
    assert_eq!(relay.post(&batch).status, 503);
    assert_eq!(relay.post(&batch).status, 503, "it still waits");
    assert_eq!((accepted(&relay), joined(&relay)), (10.0, 1.0));
    opens.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let begun = Instant::now();
    assert_accepted(&relay.post(&batch), 10);
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!((sink.requests().len(), accepted(&relay), joined(&relay)), (1, 10.0, 2.0));
    // The sender may not have seen the 200.
    assert_accepted(&relay.post(&batch), 10);
    assert_eq!((sink.requests().len(), accepted(&relay), joined(&relay)), (1, 10.0, 3.0));
    // A sender that gets its 200 at first and sends the same again means it.
    let batch = generated_batch(2, 10, 1000);
    for _ in 0..2 {
        assert_accepted(&relay.post(&batch), 10);
    }
    assert_eq!((sink.requests().len(), accepted(&relay), joined(&relay)), (3, 30.0, 3.0));
    relay.finish(Backlog::Empty);
}

/// Method: two requests with the same body wait at the same time. One item is not an audit event,
/// which must be counted once.
#[test]
fn two_requests_that_wait_with_the_same_body_are_one_batch() {
    let (sink, opens) = gate();
    let relay = Relay::start(&to_sink(sink.address(), &delivered("20s")));
    let mut list: Value = serde_json::from_slice(&generated_batch(1, 10, 1000)).unwrap();
    list["items"].as_array_mut().unwrap().push(json!({"not": "an event"}));
    let body = list.to_string().into_bytes();
    let senders: Vec<_> = (0..3).map(|_| post_beside(relay.address(), &body)).collect();
    wait_until("two have joined", PATIENCE, || joined(&relay) == 2.0);
    sink.wait_for_count(1, PATIENCE);
    opens.store(true, Ordering::SeqCst);
    for sender in senders {
        let answer = sender.join().unwrap();
        assert_eq!((answer.status, answer.json()), (200, json!({"accepted": 10, "rejected": 1})));
    }
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("rejected_items_total"), 1.0);
    assert_eq!((metrics.value("event_total", &[]), sink.requests().len()), (10.0, 1));
    assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_batch_whose_sender_went_away_is_joined_also_as_gzip() {
    let (sink, opens) = gate();
    let relay = Relay::start(&to_sink(sink.address(), &delivered("20s")));
    let batch = generated_batch(1, 10, 1000);
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", batch.len());
    let mut client = Client::connect(relay.address()).unwrap();
    client.send(&[head.as_bytes(), &batch].concat()).unwrap();
    sink.wait_for_count(1, PATIENCE);
    drop(client);
    wait_until("the sender's end", PATIENCE, || relay.metrics().sum("connections") == 0.0);
    opens.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &batch).unwrap();
    let gzip = gzip.finish().unwrap();
    let headers = [("Content-Encoding", "gzip"), ("Content-Type", "application/json")];
    let answer = Client::connect(relay.address()).unwrap().request("POST", "/", &headers, &gzip);
    assert_accepted(&answer.unwrap(), 10);
    assert_eq!((sink.requests().len(), accepted(&relay), joined(&relay)), (1, 10.0, 1.0));
    relay.finish(Backlog::Empty);
}

/// Method: while a batch waits, bodies come that differ from it in one way each. Each of them must
/// reach the consumer, even if all auditIDs are those of the batch that waits.
#[test]
fn another_body_and_another_listener_never_join() {
    let (sink, opens) = gate();
    let config = to_sink(sink.address(), &delivered("20s"));
    let relay = Relay::with(&format!("{config}[[listener]]\naddress = \"127.0.0.2:0\"\n"))
        .listeners(2)
        .start();
    let batch = generated_batch(1, 10, 1000);
    let [first, second] = [0, 1].map(|index| relay.listeners()[index].1);
    let mut waiting = vec![post_beside(first, &batch)];
    sink.wait_for_count(1, PATIENCE);
    let text = String::from_utf8(batch.clone()).unwrap();
    let at = text.rfind("10.0.0.").expect("an address") + "10.0.0.".len();
    let mut changed = batch.clone();
    changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
    let longer = [&batch[..], b"\n"].concat();
    let events = events_of(&batch);
    let fewer = [&events[..9].join(&b'\n')[..], b"\n"].concat();
    for body in [changed, longer, fewer] {
        waiting.push(post_beside(first, &body));
    }
    waiting.push(post_beside(second, &batch));
    let queued = 10.0 + 10.0 + 10.0 + 9.0 + 10.0;
    wait_until("all are in the queue", PATIENCE, || {
        relay.metrics().value("queue_events", &[]) == queued
    });
    opens.store(true, Ordering::SeqCst);
    for sender in waiting {
        assert_eq!(sender.join().unwrap().status, 200);
    }
    assert_eq!((accepted(&relay), joined(&relay)), (queued, 0.0));
    assert_eq!(accepted_events(&sink).len(), 49);
    relay.finish(Backlog::Empty);
}

/// Method: the batch that waits fills the queue. Another batch has no room, but the repetition
/// needs none.
#[test]
fn a_repetition_needs_no_room_in_a_full_queue() {
    let (sink, opens) = gate();
    let queue = delivered("1s").replace("[queue]\n", "[queue]\nmax_bytes = \"20KiB\"\n");
    let relay = Relay::start(&to_sink(sink.address(), &queue));
    let batch = generated_batch(1, 10, 1500);
    assert_eq!(relay.post(&batch).status, 503);
    assert_eq!(relay.post(&generated_batch(2, 10, 1500)).status, 429);
    let repeated = post_beside(relay.address(), &batch);
    wait_until("it has joined", PATIENCE, || joined(&relay) == 1.0);
    opens.store(true, Ordering::SeqCst);
    assert_accepted(&repeated.join().unwrap(), 10);
    assert_eq!(sink.requests().len(), 1);
    relay.finish(Backlog::Empty);
}

/// Method: a reload changes a setting while the batch waits, which then still can be joined. A
/// second one removes the output that the batch waits for, after which it is a new batch.
#[test]
fn a_batch_is_joined_over_a_reload_but_not_when_its_output_has_gone() {
    let (sink, opens) = gate();
    let config = |name: &str, more: &str| {
        let more = format!("{more}{}", delivered("1s"));
        to_sink(sink.address(), &more).replace("\"consumer\"", &format!("{name:?}"))
    };
    let relay = Relay::start(&config("consumer", ""));
    let batch = generated_batch(1, 10, 1000);
    assert_eq!(relay.post(&batch).status, 503);
    relay.reload(&config("consumer", "batch = { max_events = 4000 }\n"), "success");
    assert_eq!(relay.post(&batch).status, 503);
    assert_eq!((accepted(&relay), joined(&relay)), (10.0, 1.0));
    opens.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_accepted(&relay.post(&batch), 10);
    assert_eq!(sink.requests().len(), 1);
    opens.store(false, Ordering::SeqCst);
    let second = generated_batch(2, 10, 1000);
    assert_eq!(relay.post(&second).status, 503);
    let other = HttpSink::accepting();
    let moved =
        config("other", "").replace(&sink.address().to_string(), &other.address().to_string());
    relay.reload(&moved, "success");
    wait_until("the new output has the batch", PATIENCE, || relay.post(&second).status == 200);
    assert_same_set(&accepted_events(&other), &events_of(&second));
    opens.store(true, Ordering::SeqCst);
}

/// Tests that take minutes.
mod rest {
    use super::*;

    /// Method: all times are those of kube-apiserver and of the defaults.
    #[test]
    #[ignore = "takes long: ./test all"]
    fn an_event_that_is_turned_down_is_decided_before_kube_apiserver_gives_up() {
        one_event_is_answered_403("", "25s", 1);
    }
}
