//! Several URLs, and real proxies in front of a consumer. Nothing is lost if one of them is down
//! for a while.

use crate::support::peers::{Haproxy, Nginx, Process};
use crate::support::prelude::*;

fn urls(sinks: &[&HttpSink]) -> Vec<String> {
    sinks.iter().map(|sink| format!("http://{}/", sink.address())).collect()
}

#[test]
fn a_url_that_answers_with_an_error_is_passed_over_as_one_that_does_not_answer() {
    for status in [500, 503, 429, 401] {
        let first = HttpSink::start(move |_| Answer::status(status).header("Retry-After", "100"));
        let second = HttpSink::accepting();
        let relay = Relay::start(&to_http(&urls(&[&first, &second]), ""));
        let batch = generated_batch(1, 20, 900);
        let posted = Instant::now();
        assert_eq!(relay.post(&batch).status, 200);
        relay.wait_until_delivered(PATIENCE);
        assert!(
            posted.elapsed() < Duration::from_secs(10),
            "the other one had nothing to wait for"
        );
        assert_same_set(&received_events(&second), &events_of(&batch));
        relay.finish(Backlog::Empty);
    }
}

/// Method: the corpus and generated batches are posted while the proxy is killed, or stopped and
/// started again, and while the consumer is killed or its connections are reset. Every event must
/// arrive, the generated ones in order, and none may be counted as lost.
///
/// `in_order` checks the order, which depends on the proxy's response while its consumer is down:
/// 503 says nothing about the event, but 502 turns it down, so others may be tried first.
fn a_proxy_that_is_stopped_and_killed_loses_nothing(
    proxy: &mut Process,
    url: String,
    sink: &mut HttpSink,
    more: &str,
    in_order: fn(&[Vec<u8>], &[Vec<u8>]),
) {
    let more = format!(
        "concurrency = 1\nbatch = {{ max_events = 40 }}\ntimeouts = {{ request = \"2s\" }}\n{more}"
    );
    let relay = Relay::start(&to_http(&[url], &more));
    let mut events = Vec::new();
    let mut post = |body: &[u8]| {
        events.extend(events_of(body));
        assert_eq!(relay.post(body).status, 200);
    };
    for (round, body) in corpus().iter().enumerate() {
        // Some events of the corpus are equal. The events of this batch all differ, so they prove
        // order and completeness.
        let batch = generated_batch(u64::try_from(round).unwrap(), 120, 1600);
        let requests = sink.count();
        post(&body.bytes);
        post(&batch);
        match round % 6 {
            1 => {
                sink.wait_for_count(requests + 1, PATIENCE);
                proxy.kill();
                proxy.start();
            }
            2 => {
                proxy.stop();
                relay.wait_for_log("output down, events are kept", PATIENCE);
                proxy.start();
            }
            3 => {
                // Without a pause, the consumer may be back before the proxy has missed it.
                sink.kill();
                std::thread::sleep(Duration::from_millis(300));
                sink.reopen();
            }
            4 => {
                sink.wait_for_count(requests + 1, PATIENCE);
                sink.reset_connections();
            }
            _ => {}
        }
    }
    relay.wait_until_delivered(PATIENCE * 2);
    let received = received_events(sink);
    assert_none_missing(&received, &events);
    let generated = |event: &&Vec<u8>| event.windows(9).any(|window| window == b"generated");
    let [received, expected] = [&received, &events]
        .map(|events| events.iter().filter(generated).cloned().collect::<Vec<_>>());
    in_order(&received, &expected);
    assert_eq!(lost(&relay), 0.0);
    relay.finish(Backlog::Empty);
}

/// Checks that the events of `expected` arrived in order. One may also have come earlier, as a test
/// of the consumer, if it came again behind those before it (see guarantees.md).
fn assert_in_order_in_the_end(received: &[Vec<u8>], expected: &[Vec<u8>]) {
    let mut left = expected.iter().peekable();
    for event in received {
        left.next_if(|next| *next == event);
    }
    assert_eq!(left.next(), None, "an event has not come behind those before it");
}

/// These tests need nginx and HAProxy.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn nginx_with_mutual_tls_stopped_and_killed_in_front_of_a_consumer_loses_nothing() {
        let certificates = Certificates::new();
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
        let mut nginx = Nginx::start(Security::MutualTls, &certificates, sink.address());
        let url = format!("https://localhost:{}/", nginx.address().port());
        let more = format!(
            "compression = \"gzip\"\ntls = {{ ca = {:?}, certificate = {:?}, private_key = {:?} }}\n",
            certificates.ca, certificates.client.certificate, certificates.client.key
        );
        a_proxy_that_is_stopped_and_killed_loses_nothing(
            &mut nginx.process,
            url,
            &mut sink,
            &more,
            assert_in_order_in_the_end,
        );
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn haproxy_stopped_and_killed_in_front_of_a_consumer_loses_nothing() {
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
        let mut haproxy = Haproxy::start(sink.address());
        let url = format!("http://{}/", haproxy.address());
        a_proxy_that_is_stopped_and_killed_loses_nothing(
            &mut haproxy.process,
            url,
            &mut sink,
            "",
            assert_in_order,
        );
    }

    /// Method: nginx is frozen for longer than the request timeout, and continues. Every event must
    /// arrive.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_proxy_that_hangs_is_left_and_used_again() {
        let certificates = Certificates::new();
        let sink = HttpSink::accepting();
        let nginx = Nginx::start(Security::Plain, &certificates, sink.address());
        let url = format!("http://{}/", nginx.address());
        let relay =
            Relay::start(&to_http(&[url], "concurrency = 2\ntimeouts = { request = \"500ms\" }\n"));
        nginx.process.freeze();
        let batches: Vec<_> = (0..4).map(|seed| generated_batch(seed, 400, 3000)).collect();
        for batch in &batches {
            assert_eq!(relay.post(batch).status, 200);
        }
        relay.wait_for_metrics("timeouts", PATIENCE, |metrics| {
            let labels = [("output", "consumer"), ("reason", "timeout")];
            (metrics.value("output_errors_total", &labels) >= 2.0).then_some(())
        });
        nginx.process.thaw();
        relay.wait_until_delivered(PATIENCE);
        let expected: Vec<_> = batches.iter().flat_map(|batch| events_of(batch)).collect();
        assert_none_missing(&received_events(&sink), &expected);
        relay.finish(Backlog::Empty);
    }
}
