//! Several URLs, and real proxies in front of a consumer. Addresses that go down, come back or die
//! lose nothing.

use std::time::Duration;
use std::time::Instant;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::peers::Haproxy;
use crate::support::peers::Nginx;
use crate::support::peers::Process;
use crate::support::peers::Security;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::requests::assert_in_order;
use crate::support::requests::assert_none_missing;
use crate::support::requests::assert_same_set;
use crate::support::requests::received_events;
use crate::support::requests::to_http;
use crate::support::requests::to_sink;
use crate::support::wait_until;

fn urls(sinks: &[&HttpSink]) -> Vec<String> {
    sinks.iter().map(|sink| format!("http://{}/", sink.address())).collect()
}

fn warnings(relay: &Relay) -> Vec<String> {
    let lines = relay.log_lines();
    lines.into_iter().filter(|line| line.contains("\"WARN\"")).collect()
}

#[test]
fn failover_keeps_to_the_first_url_and_comes_back_to_it() {
    let (mut first, second) = (HttpSink::accepting(), HttpSink::accepting());
    let relay = Relay::start(&to_http(&urls(&[&first, &second]), "concurrency = 1\n"));
    let mut seed = 0;
    let mut events = Vec::new();
    let mut post = || {
        seed += 1;
        let batch = generated_batch(seed, 2, 900);
        events.extend(events_of(&batch));
        assert_eq!(relay.post(&batch).status, 200);
        relay.wait_until_delivered(PATIENCE);
    };
    for _ in 0..3 {
        post();
    }
    assert_eq!((first.count(), second.count()), (3, 0));
    first.close();
    for _ in 0..5 {
        post();
    }
    assert_eq!((first.count(), second.count()), (3, 5));
    // Probes find that the first URL is still down. No request goes there.
    std::thread::sleep(Duration::from_secs(3));
    post();
    assert_eq!(relay.metrics().sum("output_errors_total"), 1.0);
    assert_eq!(
        warnings(&relay).len(),
        1,
        "one line, and the output was never down: {:?}",
        warnings(&relay)
    );
    first.reopen();
    let reopened = Instant::now();
    wait_until("the first again", PATIENCE, || {
        post();
        first.count() > 3
    });
    assert!(reopened.elapsed() >= Duration::from_secs(9), "it has to answer for a while");
    relay.wait_for_log("address up again", PATIENCE);
    let seconds = second.count();
    post();
    assert_eq!(second.count(), seconds);
    assert_same_set(&[received_events(&first), received_events(&second)].concat(), &events);
    relay.finish(Backlog::Empty);
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
        assert!(posted.elapsed() < Duration::from_secs(5), "the other one had nothing to wait for");
        assert_same_set(&received_events(&second), &events_of(&batch));
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn when_all_urls_are_down_the_first_that_comes_back_gets_everything() {
    let mut sinks = [0, 1, 2].map(|_| HttpSink::accepting());
    let addresses = urls(&[&sinks[0], &sinks[1], &sinks[2]]);
    sinks.iter_mut().for_each(|sink| sink.close());
    let relay = Relay::start(&to_http(&addresses, "batch = { max_events = 50 }\n"));
    let batch = generated_batch(1, 400, 900);
    assert_eq!(relay.post(&batch).status, 200);
    relay.wait_for_metrics("attempts at all of them", PATIENCE, |metrics| {
        (metrics.sum("output_errors_total") >= 6.0).then_some(())
    });
    sinks[1].reopen();
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&received_events(&sinks[1]), &events_of(&batch));
    relay.finish(Backlog::Empty);
}

#[test]
fn round_robin_takes_the_next_url_for_each_request() {
    let mut sinks = [0, 1, 2].map(|_| HttpSink::accepting());
    let addresses = urls(&[&sinks[0], &sinks[1], &sinks[2]]);
    let more = "strategy = \"round_robin\"\nconcurrency = 1\n";
    let relay = Relay::start(&to_http(&addresses, more));
    let mut events = Vec::new();
    let mut post = |seed: u64| {
        let batch = generated_batch(seed, 3, 900);
        events.extend(events_of(&batch));
        assert_eq!(relay.post(&batch).status, 200);
        relay.wait_until_delivered(PATIENCE);
    };
    (0..9).for_each(&mut post);
    assert_eq!(sinks.each_ref().map(|sink| sink.count()), [3, 3, 3]);
    sinks[1].kill();
    (10..18).for_each(&mut post);
    assert_eq!(sinks.each_ref().map(|sink| sink.count()), [7, 3, 7]);
    let received = sinks.iter().flat_map(received_events).collect::<Vec<_>>();
    assert_same_set(&received, &events);
    relay.finish(Backlog::Empty);
}

/// Method: in the middle of each batch the consumer is killed, closed or reset, and comes back,
/// with one request at a time and with four. Every event must arrive, and with one request at a
/// time in order.
#[test]
fn a_consumer_that_dies_and_comes_back_all_the_time_gets_everything() {
    for concurrency in [1, 4] {
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(10)));
        let more = format!("concurrency = {concurrency}\nbatch = {{ max_events = 20 }}\n");
        let relay = Relay::start(&to_sink(sink.address(), &more));
        let mut events = Vec::new();
        for seed in 0..6 {
            let batch = generated_batch(seed, 200, 1600);
            events.extend(events_of(&batch));
            let requests = sink.count();
            assert_eq!(relay.post(&batch).status, 200);
            sink.wait_for_count(requests + 2, PATIENCE);
            match seed % 3 {
                0 => sink.kill(),
                1 => sink.close(),
                _ => sink.reset_connections(),
            }
            if seed % 3 < 2 {
                sink.reopen();
            }
        }
        relay.wait_until_delivered(PATIENCE);
        let received = received_events(&sink);
        assert_none_missing(&received, &events);
        if concurrency == 1 {
            assert_in_order(&received, &events);
        }
        relay.finish(Backlog::Empty);
    }
}

/// Method: the corpus and generated batches are posted while the proxy is killed, stopped and
/// started again, and while the consumer after it is killed and its connections are reset. Every
/// event must arrive, the generated ones in order, and nothing may be counted as lost.
fn a_proxy_that_is_stopped_and_killed_loses_nothing(
    proxy: &mut Process,
    url: String,
    sink: &mut HttpSink,
    more: &str,
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
                sink.kill();
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
    assert_in_order(&received, &expected);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "consumer")]), 0.0);
    relay.finish(Backlog::Empty);
}

/// They need peers, or root.
mod peers {
    use super::*;

    #[test]
    fn nginx_stopped_and_killed_in_front_of_a_consumer_loses_nothing() {
        let certificates = Certificates::new();
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
        let mut nginx = Nginx::start(Security::Plain, &certificates, sink.address());
        let url = format!("http://{}/a?b=c", nginx.address());
        a_proxy_that_is_stopped_and_killed_loses_nothing(&mut nginx.process, url, &mut sink, "");
    }

    #[test]
    fn nginx_with_mutual_tls_stopped_and_killed_in_front_of_a_consumer_loses_nothing() {
        let certificates = Certificates::new();
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
        let mut nginx = Nginx::start(Security::MutualTls, &certificates, sink.address());
        let url = format!("https://localhost:{}/", nginx.address().port());
        let more = format!(
            "compression = \"gzip\"\ntls = {{ ca = {:?}, certificate = {:?}, private_key = {:?} }}\n",
            certificates.ca, certificates.client.certificate, certificates.client.key
        );
        a_proxy_that_is_stopped_and_killed_loses_nothing(&mut nginx.process, url, &mut sink, &more);
    }

    #[test]
    fn haproxy_stopped_and_killed_in_front_of_a_consumer_loses_nothing() {
        let mut sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(5)));
        let mut haproxy = Haproxy::start(sink.address());
        let url = format!("http://{}/", haproxy.address());
        a_proxy_that_is_stopped_and_killed_loses_nothing(&mut haproxy.process, url, &mut sink, "");
    }

    /// Method: nginx stands still for longer than the request timeout, and goes on. Every event
    /// must arrive.
    #[test]
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
