//! `type = "tcp"`: every event arrives unchanged and in order, even if the consumer breaks its
//! connections.

use std::io::Read as _;
use std::net::Shutdown;

use crate::support::prelude::*;
use crate::support::sequence::covered;
use crate::support::server::Connection;
use crate::support::stream::Stream;

/// Returns a config with one tcp output. `more` has further keys, with tables inline.
fn config(address: SocketAddr, more: &str) -> String {
    let window = if more.contains("replay_window") { "" } else { "replay_window = \"500ms\"\n" };
    format!("{BASE}{}", stream_output("tcp", &[address], &format!("{window}{more}")))
}

/// A long window, for consumers that end connections. Bytes that stay in a consumer's kernel for
/// longer than the window count as delivered, and on a busy machine a fake can be late to read
/// them.
const PATIENT: &str = "replay_window = \"2s\"\n";

/// Starts a relay with one output to this consumer.
fn relay(sink: &TcpSink, more: &str) -> Relay {
    Relay::start(&config(sink.address(), more))
}

/// Waits until every event is final, and until the consumer has read the last one. The kernel
/// acknowledges bytes before the consumer reads them.
fn wait_until_arrived(relay: &Relay, sink: &TcpSink, expected: &[Vec<u8>]) {
    relay.wait_until_delivered(PATIENCE * 2);
    wait_until("the last event", PATIENCE, || sink.has(expected.last().unwrap()));
}

/// Returns as many batches of 400 events of this size as fit into `bytes` bytes.
fn generated(bytes: usize, event_bytes: usize) -> Vec<Vec<u8>> {
    let batches = bytes / (400 * event_bytes);
    (0..batches as u64).map(|seed| generated_batch(seed, 400, event_bytes)).collect()
}

/// Returns the size of these events as lines, in bytes.
fn size(events: &[Vec<u8>]) -> u64 {
    events.iter().map(|event| event.len() as u64 + 1).sum()
}

fn runs(sink: &TcpSink) -> Vec<Vec<Vec<u8>>> {
    let mut runs = vec![Vec::new(); sink.history().len()];
    for message in sink.messages() {
        runs[message.connection].push(message.bytes);
    }
    runs
}

/// Options of a consumer with a small receive buffer, so that the stream soon stops if the consumer
/// does not read.
fn small() -> Options {
    Options { receive_buffer: Some(16 * 1024), ..Options::default() }
}

#[test]
fn the_corpus_arrives_byte_for_byte_in_order_over_one_connection() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "");
    let expected = post_corpus(&relay);
    sink.wait_for_count(expected.len(), PATIENCE);
    assert!(sink.lines() == expected, "the relay changed an event, or their order");
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(sink.history().len(), 1);
    let metrics = relay.metrics();
    let labels = [("output", "consumer")];
    assert_eq!(metrics.value("output_bytes_total", &labels), size(&expected) as f64);
    assert_eq!(metrics.value("output_events_total", &labels), expected.len() as f64);
    assert_eq!(metrics.value("output_retries_total", &labels), 0.0);
    assert_eq!(metrics.sum("output_errors_total"), 0.0);
    assert_eq!(metrics.value("output_up", &labels), 1.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn audit_log_lines_are_those_of_kube_apiservers_own_log() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "format = \"audit_log\"");
    let expected: Vec<Vec<u8>> = post_corpus(&relay)
        .iter()
        .map(|event| {
            let rest = event.strip_prefix(b"{").expect("an object");
            [&br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#[..], rest].concat()
        })
        .collect();
    sink.wait_for_count(expected.len(), PATIENCE);
    assert!(sink.lines() == expected, "not the lines of audit.log");
    // kube-apiserver's own lines pass unchanged.
    let log = crate::support::corpus::audit_log();
    sink.clear();
    let response = http::post(relay.address(), "/", "application/x-ndjson", &log);
    assert_eq!(response.unwrap().status, 200);
    sink.wait_for_count(495, PATIENCE);
    let lines: Vec<Vec<u8>> =
        sink.lines().into_iter().flat_map(|line| [line, b"\n".to_vec()]).collect();
    assert!(lines.concat() == log, "the relay changed a line of audit.log");
    relay.finish(Backlog::Empty);
}

#[test]
fn everything_arrives_when_the_consumer_comes_back_after_it_was_stopped() {
    let mut sink = TcpSink::start();
    sink.close();
    let relay = relay(&sink, "");
    wait_for_errors(&relay, "connect", 1.0);
    assert_eq!(of_output(&relay, "output_up"), 0.0);
    let expected = post_corpus(&relay);
    assert_eq!(of_output(&relay, "output_backlog_events"), expected.len() as f64);
    assert_eq!(of_output(&relay, "output_backlog_bytes"), size(&expected) as f64);
    sink.reopen();
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.lines() == expected, "something is missing, twice or changed");
    assert_eq!(of_output(&relay, "output_up"), 1.0);
    relay.wait_for_log("output up again", PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Method: the consumer stops reading while its kernel still acknowledges bytes. Then `die` ends
/// it, and its kernel sends a reset. The events in the kernel must be sent again, and every event
/// must arrive in order.
///
/// The reset must come within the window, because the events count as delivered later. If a busy
/// machine delays it, the attempt proves nothing, and the next one has a longer window. With a load
/// average of 12 to 30 on two cores, the reset came after 4.4 s.
fn dies_with_unread_data(die: impl Fn(&mut TcpSink)) {
    let mut took = Duration::ZERO;
    for window in [2, 8, 32].map(Duration::from_secs) {
        took = dies_within(window, &die);
        if took < window / 2 {
            return;
        }
        eprintln!("the reset came after {took:?}: too late for a window of {window:?}");
    }
    panic!("the machine is too busy for this test: the reset came after {took:?}");
}

/// Returns the time from the first post to the reset. If that is less than half of `window`, also
/// checks that every event has arrived.
fn dies_within(window: Duration, die: impl Fn(&mut TcpSink)) -> Duration {
    let mut sink = TcpSink::start();
    let relay = relay(&sink, &format!("replay_window = \"{}s\"", window.as_secs()));
    let first = post_batch(&relay, 1000, 1, 1000);
    sink.wait_for_count(1, PATIENCE);
    // A read that has already begun can still fill one buffer.
    sink.pause(true);
    // The batches are small, so that some are acknowledged completely.
    let bodies: Vec<_> = (0..50).map(|seed| generated_batch(seed, 20, 1000)).collect();
    let begun = Instant::now();
    let expected = [first, post(&relay, &bodies)].concat();
    wait_until("what its kernel takes to be sent", PATIENCE, || {
        of_output(&relay, "output_bytes_total") >= 300_000.0
    });
    assert!(sink.bytes() < 100_000, "it has read {} bytes", sink.bytes());
    die(&mut sink);
    let took = begun.elapsed();
    sink.reopen();
    // Events may need four windows until they are final.
    relay.wait_until_delivered(PATIENCE * 2 + window * 4);
    if took < window / 2 {
        wait_until("the last event", PATIENCE, || sink.has(expected.last().unwrap()));
        assert_covers(&expected, &runs(&sink));
        assert!(errors(&relay, "closed") > 0.0);
    }
    relay.finish(Backlog::Empty);
    took
}

#[test]
fn a_consumer_killed_with_unread_data_loses_nothing() {
    dies_with_unread_data(|sink| sink.kill());
}

#[test]
fn a_consumer_that_sends_fin_and_then_rst_loses_nothing() {
    dies_with_unread_data(|sink| {
        sink.finish_writing();
        // The pause gives the relay time to see the FIN. The RST still comes within the window.
        std::thread::sleep(Duration::from_millis(200));
        sink.kill();
    });
}

#[test]
fn a_consumer_that_reads_nothing_is_given_up_after_the_request_timeout_and_tried_again() {
    let sink = TcpSink::with(Framing::Lines, small());
    sink.pause(true);
    let relay = relay(&sink, &format!("{PATIENT}timeouts = {{ request = \"500ms\" }}"));
    let expected = post(&relay, &generated(4_000_000, 1500));
    wait_for_errors(&relay, "timeout", 1.0);
    assert_eq!(of_output(&relay, "output_events_total"), 0.0);
    assert_eq!(of_output(&relay, "output_backlog_events"), expected.len() as f64);
    sink.pause(false);
    wait_until_arrived(&relay, &sink, &expected);
    assert_covers(&expected, &runs(&sink));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_slow_consumer_that_reads_a_little_all_the_time_gets_nothing_twice() {
    // At 16 KB per 20 ms, the consumer takes three times the request timeout to read everything.
    let (server, seen) = recording(small(), |stream, connection, record| {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(size @ 1..) = stream.read(&mut buffer) {
            record(&buffer[..size]);
            if !connection.rest(Duration::from_millis(20)) {
                return;
            }
        }
    });
    let relay = Relay::start(&config(server.address(), "timeouts = { request = \"1s\" }"));
    let started = Instant::now();
    let expected = post(&relay, &generated(2_400_000, 1500));
    relay.wait_until_delivered(PATIENCE);
    wait_until("the last event", PATIENCE, || lines(&seen)[0].len() >= expected.len());
    assert!(started.elapsed() > Duration::from_secs(2), "not slow: {:?}", started.elapsed());
    assert!(lines(&seen) == [expected], "sent twice, or something is missing");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn after_the_consumers_fin_nothing_more_is_sent_on_that_connection() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "");
    let first = post_batch(&relay, 1, 10, 1000);
    relay.wait_until_delivered(PATIENCE);
    // While no event is unacknowledged, a FIN ends the connection in order, and is not an error.
    sink.finish_writing();
    wait_until("our FIN", PATIENCE, || sink.open() == 0);
    assert_eq!(sink.history().len(), 1, "no connection without something to send");
    let second = post_batch(&relay, 2, 10, 1000);
    sink.wait_for_count(20, PATIENCE);
    wait_until_arrived(&relay, &sink, &second);
    assert!(runs(&sink) == [first, second]);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

/// Checks that the bytes sent to a consumer that cuts connections are at most `times` the bytes of
/// the events, both by the relay's count and by the consumer's (`saw`). About 3 times are usual: a
/// request that is accepted makes the next one up to four times as large, which may be too large.
fn assert_sent_at_most(relay: &Relay, saw: u64, expected: &[Vec<u8>], times: u64) {
    let sent = of_output(relay, "output_bytes_total");
    let all = size(expected);
    eprintln!("{all} bytes of events, {sent} sent, {saw} seen");
    assert!(sent <= (times * all) as f64, "{sent} bytes sent for {all}");
    assert!(saw <= times * all, "{saw} bytes seen for {all}");
}

/// Method: the consumer reads 2 MB of each connection and resets it. Every event must arrive in
/// order, and at most four times the bytes of the events may be sent.
#[test]
fn a_consumer_that_resets_every_connection_after_2_mb_gets_everything_for_four_times_the_bytes() {
    let sink = TcpSink::start();
    sink.cut_each_after(Some(2_000_000));
    let relay = relay(&sink, PATIENT);
    let expected = post(&relay, &generated(8_000_000, 1500));
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.history().len() >= 4, "it cut");
    assert_covers(&expected, &runs(&sink));
    assert_sent_at_most(&relay, sink.bytes(), &expected, 4);
    relay.finish(Backlog::Empty);
}

/// The bytes that arrived on each connection.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

/// Starts a consumer that reads with `serve`. The last argument of `serve` records the bytes.
fn recording(
    options: Options,
    serve: impl Fn(&mut Stream, &Connection, &dyn Fn(&[u8])) + Send + Sync + 'static,
) -> (Server, Seen) {
    let seen = Seen::default();
    let for_handler = Arc::clone(&seen);
    let server = Server::start(options, move |mut stream, connection| {
        serve(&mut stream, connection, &|read| {
            let mut seen = for_handler.lock().unwrap();
            if seen.len() <= connection.number {
                seen.resize(connection.number + 1, Vec::new());
            }
            seen[connection.number].extend_from_slice(read);
        });
    });
    (server, seen)
}

/// Returns the complete lines of each connection.
fn lines(seen: &Seen) -> Vec<Vec<Vec<u8>>> {
    let lines = |bytes: &Vec<u8>| {
        let mut lines: Vec<_> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        // After the last line feed comes a line that was cut off, or nothing.
        lines.pop();
        lines
    };
    seen.lock().unwrap().iter().map(lines).collect()
}

/// Starts a consumer that reads exactly this many bytes of each connection and sends FIN. It closes
/// the connection 20 ms later, and its kernel then sends RST if more bytes have arrived.
fn finishing(bytes: usize) -> (Server, Seen) {
    recording(Options::default(), move |stream, connection, record| {
        let (mut left, mut buffer) = (bytes, vec![0; 64 * 1024]);
        while left > 0 && connection.may_go_on() {
            let wanted = left.min(buffer.len());
            let Ok(size @ 1..) = stream.read(&mut buffer[..wanted]) else { return };
            record(&buffer[..size]);
            left -= size;
        }
        // The relay may already have ended the connection.
        drop(stream.socket().shutdown(Shutdown::Write));
        connection.rest(Duration::from_millis(20));
    })
}

/// Method: the consumer reads exactly 2 MB of each connection, sends FIN, and soon closes it. Every
/// event must arrive in order, and at most four times the bytes of the events may be sent.
#[test]
fn a_consumer_that_finishes_every_connection_after_2_mb_gets_everything_for_four_times_the_bytes() {
    let (server, seen) = finishing(2_000_000);
    let relay = Relay::start(&config(server.address(), PATIENT));
    let expected = post(&relay, &generated(8_000_000, 1500));
    relay.wait_until_delivered(PATIENCE * 2);
    wait_until("the last event", PATIENCE, || {
        lines(&seen).iter().any(|run| run.last() == expected.last())
    });
    let runs = lines(&seen);
    assert!(runs.len() >= 4, "it finished some");
    assert_covers(&expected, &runs);
    let saw = seen.lock().unwrap().iter().map(|bytes| bytes.len() as u64).sum();
    assert_sent_at_most(&relay, saw, &expected, 4);
    relay.finish(Backlog::Empty);
}

/// Method: the consumer cuts each connection after a few events, one byte after the longest event,
/// or before a large event that follows a small one. Every event must still arrive, in order.
#[test]
fn a_consumer_that_cuts_after_few_bytes_gets_everything() {
    let four = generated_batch(1, 4, 1000);
    let longest = events_of(&four).iter().map(Vec::len).max().unwrap() as u64;
    // A connection has room for one large event, but not for a small one and a large one.
    let size = |seed| if seed % 2 == 0 { 1000 } else { 3000 };
    let mixed = (0..6).map(|seed| generated_batch(seed, 1, size(seed))).collect();
    for (bodies, cut_after) in [
        (vec![generated_batch(1, 30, 700)], 10_000),
        // The line feed counts too.
        (vec![four], longest + 2),
        (mixed, 3500),
    ] {
        let sink = TcpSink::start();
        sink.cut_each_after(Some(cut_after));
        let relay = relay(&sink, PATIENT);
        let expected = post(&relay, &bodies);
        wait_until_arrived(&relay, &sink, &expected);
        assert_covers(&expected, &runs(&sink));
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn nothing_is_final_before_its_replay_window_has_passed() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "replay_window = \"2s\"");
    let before = Instant::now();
    let expected = post_batch(&relay, 1, 10, 1000);
    sink.wait_for_count(10, PATIENCE);
    let arrived = before.elapsed();
    let metrics = relay.metrics();
    if before.elapsed() < Duration::from_secs(2) {
        let labels = [("output", "consumer")];
        assert_eq!(metrics.value("output_events_total", &labels), 0.0);
        assert_eq!(metrics.value("output_backlog_events", &labels), 10.0);
    }
    wait_until_arrived(&relay, &sink, &expected);
    assert!(before.elapsed() >= Duration::from_secs(2));
    // The events become final soon after the window: the output checks the connection ten times in
    // a window, and a busy machine needs a margin.
    assert!(before.elapsed() < arrived + Duration::from_secs(5));
    assert!(sink.lines() == expected, "once");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_delivered_answer_takes_at_least_the_replay_window() {
    let sink = TcpSink::start();
    let queue = "[queue]\nacknowledge = \"delivered\"\n";
    let relay = relay(&sink, &format!("replay_window = \"1s\"\n{queue}"));
    let started = Instant::now();
    let expected = post_batch(&relay, 1, 10, 1000);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    sink.wait_for_count(10, PATIENCE);
    assert!(sink.lines() == expected);
    assert_eq!(of_output(&relay, "output_events_total"), 10.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_lone_event_is_sent_at_once_whatever_waits_for_its_window() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "replay_window = \"5s\"");
    for seed in 0..5 {
        let before = Instant::now();
        post_batch(&relay, seed, 1, 1000);
        sink.wait_for_count(usize::try_from(seed).unwrap() + 1, PATIENCE);
        // An event takes milliseconds. A busy machine can take longer, but less than a window.
        assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn an_idle_connection_is_ended_and_made_again_when_there_is_something_to_send() {
    let sink = TcpSink::start();
    let relay = relay(&sink, "idle_timeout = \"300ms\"");
    let mut expected = Vec::new();
    for round in 1..=3 {
        expected.extend(post_batch(&relay, round, 10, 1000));
        relay.wait_until_delivered(PATIENCE);
        wait_until("the idle connection's end", PATIENCE, || sink.open() == 0);
    }
    let history = sink.history();
    for times in &history {
        assert!(times.closed.unwrap() - times.opened >= Duration::from_millis(300));
    }
    // The first connection may have been idle before any event was sent.
    assert!((3..=4).contains(&history.len()), "{}", history.len());
    assert!(sink.lines() == expected, "once");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn round_robin_takes_the_next_address_at_each_connect() {
    let sinks = [(); 3].map(|()| TcpSink::start());
    let addresses = sinks.each_ref().map(|sink| sink.address());
    let more = "strategy = \"round_robin\"\nreplay_window = \"500ms\"";
    let relay = Relay::start(&format!("{BASE}{}", stream_output("tcp", &addresses, more)));
    for round in 0..4 {
        let expected = post_batch(&relay, round, 10, 1000);
        let sink = &sinks[usize::try_from(round).unwrap() % 3];
        wait_until_arrived(&relay, sink, &expected);
        assert!(sink.lines().ends_with(&expected), "round {round}");
        sink.close_connections();
    }
    relay.finish(Backlog::Empty);
}

fn tls_sink(certificates: &Certificates, require_client: bool) -> TcpSink {
    let tls = Some(certificates.server_config(&certificates.server, require_client));
    TcpSink::with(Framing::Lines, Options { tls, ..Options::default() })
}

#[test]
fn the_corpus_arrives_over_tls_with_ca_and_client_certificate() {
    let certificates = Certificates::new();
    let sink = tls_sink(&certificates, true);
    let relay = relay(&sink, &tls_key(Security::MutualTls, &certificates));
    let expected = post_corpus(&relay);
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.lines() == expected, "the relay changed an event, or their order");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    for role in ["server", "client"] {
        let labels = [("output", "consumer"), ("role", role)];
        let expiry = relay.metrics().value("tls_certificate_expiry_timestamp_seconds", &labels);
        assert!(expiry > 1.7e9, "{role}: {expiry}");
    }
    relay.finish(Backlog::Empty);
}

/// Like `assert_covers`, but two TLS records may be missing between two connections. When a
/// consumer ends, its TLS library may have taken these bytes from the kernel without passing them
/// on. No sender can detect that.
fn assert_covers_but_for_records(expected: &[Vec<u8>], sink: &TcpSink) {
    let may_skip = |from: usize, to: usize| size(&expected[from..to]) <= 2 * 16 * 1024;
    assert_eq!(covered(expected, &runs(sink), may_skip), expected.len());
}

/// Method: a TLS consumer is killed or closed in the middle of a stream and opened again, several
/// times. At most two TLS records may be missing between two connections.
#[test]
fn a_tls_consumer_killed_in_the_middle_loses_nothing_that_it_has_not_read() {
    let certificates = Certificates::new();
    let mut sink = tls_sink(&certificates, false);
    let keys = format!("{PATIENT}{}", tls_key(Security::Tls, &certificates));
    let relay = relay(&sink, &keys);
    let mut expected = Vec::new();
    for (round, bodies) in generated(4_000_000, 1500).chunks(3).enumerate() {
        let before = sink.bytes();
        expected.extend(post(&relay, bodies));
        wait_until("some of it", PATIENCE, || sink.bytes() > before);
        if round % 2 == 0 {
            sink.kill()
        } else {
            sink.close()
        }
        sink.reopen();
    }
    wait_until_arrived(&relay, &sink, &expected);
    assert_covers_but_for_records(&expected, &sink);
    relay.finish(Backlog::Empty);
}

/// Method: a TLS consumer cuts each connection after 2 MB. At most two TLS records may be missing
/// between two connections, and at most four times the bytes of the events may be sent.
#[test]
fn a_tls_consumer_that_cuts_every_connection_after_2_mb_gets_what_it_has_not_read() {
    let certificates = Certificates::new();
    let sink = tls_sink(&certificates, false);
    sink.cut_each_after(Some(2_000_000));
    // This is longer than the consumer takes for 2 MB on a busy machine. Bytes that stay in its
    // kernel for longer count as delivered.
    let keys = format!("replay_window = \"5s\"\n{}", tls_key(Security::Tls, &certificates));
    let relay = relay(&sink, &keys);
    let expected = post(&relay, &generated(5_000_000, 1500));
    wait_until_arrived(&relay, &sink, &expected);
    assert_covers_but_for_records(&expected, &sink);
    assert_sent_at_most(&relay, sink.bytes(), &expected, 4);
    relay.finish(Backlog::Empty);
}

/// Method: the TLS settings of an output do not match its consumer. The output must count `tls`
/// errors, keep trying and lose nothing.
#[test]
fn a_consumer_of_another_ca_or_name_or_without_our_certificate_is_tried_for_ever() {
    let certificates = Certificates::new();
    let Certificates { server, elsewhere_server, wrong_client, wrong_ca, ca, .. } = &certificates;
    let ours = format!("tls = {{ ca = {ca:?} }}\n");
    let wrong = format!(
        "tls = {{ ca = {ca:?}, certificate = {:?}, private_key = {:?} }}\n",
        wrong_client.certificate, wrong_client.key
    );
    for (pair, require_client, settings) in [
        (server, false, &format!("tls = {{ ca = {wrong_ca:?} }}\n")),
        (elsewhere_server, false, &ours),
        (server, true, &ours),
        (server, true, &wrong),
    ] {
        let tls = Some(certificates.server_config(pair, require_client));
        let sink = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
        let relay = relay(&sink, &format!("{settings}[shutdown]\ndrain_timeout = \"1s\"\n"));
        post_batch(&relay, 1, 10, 1000);
        wait_for_errors(&relay, "tls", 3.0);
        assert_eq!((of_output(&relay, "output_backlog_events"), lost(&relay)), (10.0, 0.0));
        assert_eq!(sink.count(), 0);
        wait_until("a failed handshake", PATIENCE, || !sink.handshake_failures().is_empty());
        relay.finish(Backlog::Stable);
    }
}

#[test]
fn a_consumer_of_another_name_is_accepted_if_server_name_says_so() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.elsewhere_server, false));
    let sink = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
    let ca = &certificates.ca;
    let named = format!("tls = {{ ca = {ca:?}, server_name = \"elsewhere.example\" }}");
    let relay = relay(&sink, &named);
    let expected = post_batch(&relay, 2, 10, 1000);
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.lines() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn insecure_skip_verify_takes_any_certificate_and_warns() {
    let certificates = Certificates::new();
    let expired = Some(certificates.server_config(&certificates.expired_server, false));
    let sink = TcpSink::with(Framing::Lines, Options { tls: expired, ..Options::default() });
    let relay = relay(&sink, "tls = { insecure_skip_verify = true }");
    let expected = post_batch(&relay, 1, 10, 1000);
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.lines() == expected);
    wait_for("the warning", PATIENCE, || {
        relay
            .log_lines()
            .into_iter()
            .find(|line| line.contains("\"WARN\"") && line.contains("insecure_skip_verify"))
    });
    relay.finish(Backlog::Empty);
}

#[test]
fn a_batch_is_cut_at_lines_and_one_event_larger_than_the_limit_travels_alone() {
    let sink = TcpSink::start();
    // A large event exceeds `max_bytes`. Four small events exceed `max_events`.
    let relay = relay(&sink, "batch = { max_bytes = \"4KiB\", max_events = 3 }");
    let bodies = [
        generated_batch(1, 400, 1000),
        generated_batch(2, 2, 500_000),
        generated_batch(3, 10, 1000),
    ];
    let expected = post(&relay, &bodies);
    wait_until_arrived(&relay, &sink, &expected);
    assert!(sink.lines() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_dead_consumer_delays_no_other() {
    let (mut dead, alive) = (TcpSink::start(), TcpSink::start());
    let hung = TcpSink::with(Framing::Lines, small());
    dead.close();
    hung.pause(true);
    let outputs: Vec<String> = [("dead", &dead), ("hung", &hung), ("alive", &alive)]
        .iter()
        .map(|(name, sink)| {
            let output = stream_output("tcp", &[sink.address()], "replay_window = \"500ms\"");
            output.replace("consumer", name)
        })
        .collect();
    let relay = Relay::start(&format!("{BASE}{}", outputs.concat()));
    let mut expected = Vec::new();
    for body in generated(6_000_000, 1500) {
        expected.extend(post(&relay, &[body]));
        let before = Instant::now();
        alive.wait_for_count(expected.len(), PATIENCE);
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    }
    assert!(alive.lines() == expected);
    assert_eq!((dead.count(), dead.history().len()), (0, 0));
    dead.reopen();
    hung.pause(false);
    wait_until_arrived(&relay, &dead, &expected);
    wait_until_arrived(&relay, &hung, &expected);
    assert_covers(&expected, &runs(&dead));
    assert_covers(&expected, &runs(&hung));
    relay.finish(Backlog::Empty);
}

#[test]
fn the_end_waits_until_what_was_sent_is_final_and_counts_what_is_not() {
    let sink = TcpSink::start();
    let mut relay = relay(&sink, "replay_window = \"1s\"");
    let expected = post(&relay, &generated(1_000_000, 1000));
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0));
    sink.wait_until_left();
    assert!(sink.lines() == expected);
    assert_eq!(relay.wait_for_log(messages::ENDED, PATIENCE)["lost"], 0);
}

/// Method: the consumer does not read, but its kernel accepts bytes from each new connection. A
/// delivery times out, the next connection accepts a few events, and so on. The output must never
/// look healthy in between.
#[test]
fn a_consumer_that_stands_still_does_not_look_healthy_after_each_new_connection() {
    let hung = TcpSink::with(Framing::Lines, small());
    hung.pause(true);
    let keys = "replay_window = \"100ms\"\ntimeouts = { request = \"1s\" }\n";
    let relay = relay(&hung, keys);
    let expected = post(&relay, &generated(6_000_000, 1500));
    wait_for_errors(&relay, "timeout", 1.0);
    wait_until("two more timeouts", PATIENCE, || {
        let output = http::get(relay.admin(), "/status").unwrap().json()["outputs"][0].take();
        assert!(!output["trouble"].is_null(), "{output}");
        errors(&relay, "timeout") >= 3.0
    });
    hung.pause(false);
    wait_until_arrived(&relay, &hung, &expected);
    relay.finish(Backlog::Empty);
}
