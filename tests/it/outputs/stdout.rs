//! `type = "stdout"`: lines on the standard output, from a thread that blocks nothing else.

use std::io::Read as _;

use crate::support::metrics::assert_conservation;
use crate::support::prelude::*;
use crate::support::relay::Stdout;

const OUTPUT: &str = "[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n";

fn lines(events: &[Vec<u8>]) -> Vec<u8> {
    events.iter().flat_map(|event| [event.as_slice(), b"\n"]).collect::<Vec<_>>().concat()
}

#[test]
fn each_event_is_one_line_on_stdout_and_nothing_else_is() {
    let relay = Relay::start(&format!("{BASE}{OUTPUT}"));
    let expected = lines(&post_corpus(&relay));
    relay.wait_until_delivered(PATIENCE);
    wait_until("all of it", PATIENCE, || relay.stdout().len() >= expected.len());
    assert!(relay.stdout() == expected, "an event is changed, or something else is on stdout");
    let bytes = relay.metrics().value("output_bytes_total", &[("output", "stdout")]);
    assert_eq!(bytes, expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn audit_log_lines_carry_kind_and_version() {
    let relay = Relay::start(&format!("{BASE}{OUTPUT}format = \"audit_log\"\n"));
    let expected: Vec<Vec<u8>> = post_corpus(&relay)
        .iter()
        .map(|event| {
            let head = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
            [&head[..], event.strip_prefix(b"{").expect("an object")].concat()
        })
        .collect();
    relay.wait_until_delivered(PATIENCE);
    let expected = lines(&expected);
    wait_until("all of it", PATIENCE, || relay.stdout().len() >= expected.len());
    assert!(relay.stdout() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_lone_event_is_written_at_once() {
    let relay = Relay::start(&format!("{BASE}{OUTPUT}"));
    let before = Instant::now();
    post_batch(&relay, 1, 1, 1000);
    wait_until("the line", PATIENCE, || relay.stdout().ends_with(b"\n"));
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    relay.finish(Backlog::Empty);
}

/// Checks that requests are answered within 3 s. This takes milliseconds if the machine is not
/// busy.
fn answers_at_once(relay: &Relay, body: &[u8]) {
    for (what, ask) in [
        ("ingest", &(|| relay.post(body).status) as &dyn Fn() -> u16),
        ("readyz", &|| http::get(relay.admin(), "/readyz").expect("an answer").status),
        ("metrics", &|| http::get(relay.admin(), "/metrics").expect("an answer").status),
    ] {
        let before = Instant::now();
        assert_eq!(ask(), 200, "{what}");
        assert!(before.elapsed() < Duration::from_secs(3), "{what}: {:?}", before.elapsed());
    }
}

#[test]
fn a_pipe_that_nobody_reads_blocks_nothing_else_and_loses_nothing_once_it_is_read() {
    let sink = TcpSink::start();
    let tcp = format!(
        "[[output]]\nname = \"tcp\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n",
        sink.address()
    );
    let mut relay = Relay::with(&format!("{BASE}{OUTPUT}{tcp}")).stdout(Stdout::Held).start();
    let mut expected = Vec::new();
    // These are many more events than fit into a pipe.
    for seed in 0..10 {
        let body = generated_batch(seed, 100, 1000);
        answers_at_once(&relay, &body);
        expected.extend(events_of(&body));
    }
    sink.wait_for_count(expected.len(), PATIENCE);
    assert!(sink.lines() == expected, "the other output goes on");
    let waiting =
        |relay: &Relay| relay.metrics().value("output_backlog_events", &[("output", "stdout")]);
    assert!(waiting(&relay) > 0.0);
    let mut pipe = relay.take_stdout();
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        pipe.read_to_end(&mut read).expect("the pipe");
        read
    });
    relay.finish(Backlog::Empty);
    assert!(reader.join().unwrap() == lines(&expected));
}

#[test]
fn a_pipe_that_nobody_reads_does_not_keep_the_end_from_coming_and_the_loss_is_counted() {
    let shutdown = "[shutdown]\ndrain_timeout = \"2s\"\n";
    let mut relay = Relay::with(&format!("{BASE}{shutdown}{OUTPUT}")).stdout(Stdout::Held).start();
    let mut accepted = 0;
    for seed in 0..5 {
        // One batch is being written into the pipe, and the others wait.
        post_batch(&relay, seed, 100, 1000);
        accepted += 100;
    }
    let metrics = relay.metrics();
    assert_conservation(&metrics, &["stdout"]);
    let delivered = metrics.value("output_events_total", &[("output", "stdout")]);
    relay.signal(libc::SIGTERM);
    let before = Instant::now();
    assert_eq!(relay.wait().code(), Some(1));
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    let lost = f64::from(accepted) - delivered;
    let told = relay.wait_for_log(messages::UNDELIVERED, PATIENCE);
    assert_eq!((told["output"].as_str(), told["events"].as_f64()), (Some("stdout"), Some(lost)));
    let ended = relay.wait_for_log(messages::ENDED_WITH_LOSSES, PATIENCE);
    assert_eq!(ended["lost"].as_f64(), Some(lost));
}

#[test]
fn a_closed_pipe_ends_the_process_with_1() {
    let mut relay = Relay::with(&format!("{BASE}{OUTPUT}")).stdout(Stdout::Held).start();
    drop(relay.take_stdout());
    post_batch(&relay, 1, 1, 1000);
    assert_eq!(relay.wait().code(), Some(1));
    let log = relay.log_lines().join("\n");
    assert!(log.contains("cannot write to stdout"), "{log}");
    assert!(log.contains("lost and counted"), "what was accepted is not forgotten: {log}");
}

/// Returns a config with the stdout output, and an http output to this consumer.
fn with_consumer(consumer: SocketAddr) -> String {
    format!(
        "{BASE}{OUTPUT}[[output]]\nname = \"web\"\ntype = \"http\"\nurls = [\"http://{consumer}/\"]\n\
         concurrency = 1\n"
    )
}

#[test]
fn a_closed_pipe_costs_the_other_outputs_nothing() {
    let web = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(200)));
    let mut relay = Relay::with(&with_consumer(web.address())).stdout(Stdout::Held).start();
    let batch = generated_batch(1, 300, 1000);
    drop(relay.take_stdout());
    assert_eq!(relay.post(&batch).status, 200);
    assert_eq!(relay.wait().code(), Some(1));
    let sent: usize = web.accepted().iter().map(|body| events_of(body).len()).sum();
    assert_eq!(sent, 300);
}

#[test]
fn a_pipe_that_closes_while_the_relay_drains_ends_it_with_1_and_at_once() {
    let web = HttpSink::accepting();
    let mut relay = Relay::with(&with_consumer(web.address())).stdout(Stdout::Held).start();
    // The batch is larger than the pipe, so the drain waits for the reader.
    post_batch(&relay, 1, 300, 1000);
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    let began = Instant::now();
    drop(relay.take_stdout());
    assert_eq!(relay.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(10), "not for the whole of drain_timeout");
    let sent: usize = web.accepted().iter().map(|body| events_of(body).len()).sum();
    assert_eq!(sent, 300);
}
