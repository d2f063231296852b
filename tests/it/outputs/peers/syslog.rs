//! `type = "syslog"` against rsyslog and syslog-ng: each event is one message, byte for byte.
//!
//! The tests of peers that end prove as much as a sender can know. Bytes that the peer's kernel had
//! taken and the peer had not read are sent again, because a reset tells of them, and so is
//! everything younger than the replay window. Bytes that the peer had read and not yet written die
//! with it, and no sender can know that; RELP solves this. Nor can a sender know of bytes that lie
//! in the peer's kernel for longer than the window before the peer ends. rsyslog takes a while to
//! stop, so these tests have a long window.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::peers::Rsyslog;
use crate::support::peers::Security;
use crate::support::peers::SyslogNg;
use crate::support::relay::BASE;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::sequence::assert_covers;
use crate::support::sequence::covered;
use crate::support::sequence::lives;
use crate::support::server::Options;
use crate::support::tcp_sink::Framing;
use crate::support::tcp_sink::TcpSink;
use crate::support::text;
use crate::support::wait_until;

/// Returns a config with one syslog output, whose retries are quick enough for a test. `more` holds
/// further keys, with tables inline.
fn config(address: SocketAddr, more: &str) -> String {
    let window = if more.contains("replay_window") { "" } else { "replay_window = \"500ms\"" };
    format!(
        r#"{BASE}
[[output]]
name = "syslog"
type = "syslog"
addresses = ["{address}"]
retry = {{ initial_interval = "20ms", max_interval = "200ms" }}
{window}
{more}
"#
    )
}

/// A long window for peers that end; see above.
const PATIENT: &str = "replay_window = \"3s\"";

fn tls(security: Security, certificates: &Certificates) -> String {
    let ca = text(&certificates.ca);
    let identity = format!(
        "certificate = {:?}, private_key = {:?}",
        certificates.client.certificate, certificates.client.key
    );
    match security {
        Security::Plain => String::new(),
        Security::Tls => format!("tls = {{ ca = {ca:?} }}\n"),
        Security::MutualTls => format!("tls = {{ ca = {ca:?}, {identity} }}\n"),
    }
}

/// Posts EventLists one after the other, and returns the events that must arrive.
fn post(relay: &Relay, bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    for body in bodies {
        let response = relay.post(body);
        assert_eq!(response.status, 200, "{}", response.text());
    }
    bodies.iter().flat_map(|body| events_of(body)).collect()
}

fn corpus_bodies() -> Vec<Vec<u8>> {
    corpus().into_iter().map(|body| body.bytes).collect()
}

fn size(events: &[Vec<u8>]) -> usize {
    events.iter().map(Vec::len).sum()
}

fn of_output(relay: &Relay, name: &str) -> f64 {
    relay.metrics().value(name, &[("output", "syslog")])
}

/// Returns the message of an event as RFC 5424 defines it.
fn message(priority: u8, hostname: &str, app_name: &str, event: &[u8]) -> Vec<u8> {
    let json: serde_json::Value = serde_json::from_slice(event).expect("an event");
    let time = json["stageTimestamp"].as_str().unwrap_or("-");
    [format!("<{priority}>1 {time} {hostname} {app_name} - - - ").as_bytes(), event].concat()
}

fn rsyslog_gets_the_corpus(framing: &str, security: Security) {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(security, &certificates);
    let more = format!(
        "framing = \"{framing}\"\nhostname = \"relay.example\"\n{}",
        tls(security, &certificates)
    );
    let relay = Relay::start(&config(rsyslog.address(), &more));
    let expected = post(&relay, &corpus_bodies());
    rsyslog.wait_for_count(expected.len(), PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    assert!(rsyslog.messages() == expected, "an event is changed, missing or there twice");
    let messages: Vec<_> =
        expected.iter().map(|event| message(134, "relay.example", "kube-audit", event)).collect();
    assert!(rsyslog.raw() == messages, "a header is wrong");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn rsyslog_gets_the_corpus_with_octet_counting() {
    rsyslog_gets_the_corpus("octet_counting", Security::Plain);
}

#[test]
fn rsyslog_gets_the_corpus_with_newlines() {
    rsyslog_gets_the_corpus("newline", Security::Plain);
}

#[test]
fn rsyslog_gets_the_corpus_with_octet_counting_over_tls() {
    rsyslog_gets_the_corpus("octet_counting", Security::Tls);
}

#[test]
fn rsyslog_gets_the_corpus_with_newlines_over_mutual_tls() {
    rsyslog_gets_the_corpus("newline", Security::MutualTls);
}

fn syslog_ng_gets_the_corpus(security: Security) {
    let certificates = Certificates::new();
    let syslog_ng = SyslogNg::start(security, &certificates);
    let more = format!("hostname = \"relay.example\"\n{}", tls(security, &certificates));
    let relay = Relay::start(&config(syslog_ng.address(), &more));
    let expected = post(&relay, &corpus_bodies());
    syslog_ng.wait_for_count(expected.len(), PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    assert!(syslog_ng.messages() == expected, "an event is changed, missing or there twice");
    wait_until("the headers", PATIENCE, || syslog_ng.headers().len() == expected.len());
    for header in syslog_ng.headers() {
        let header = String::from_utf8(header).unwrap();
        let columns: Vec<&str> = header.split(' ').collect();
        assert_eq!((columns[0], &columns[3..]), ("134", &["relay.example", "kube-audit"][..]));
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn syslog_ng_gets_the_corpus_over_plain_tcp() {
    syslog_ng_gets_the_corpus(Security::Plain);
}

#[test]
fn syslog_ng_gets_the_corpus_over_tls() {
    syslog_ng_gets_the_corpus(Security::Tls);
}

#[test]
fn syslog_ng_gets_the_corpus_over_mutual_tls() {
    syslog_ng_gets_the_corpus(Security::MutualTls);
}

#[test]
fn the_header_says_what_the_config_says() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let more = "facility = \"auth\"\nseverity = \"notice\"\nhostname = \"h\"\napp_name = \"a\"";
    let relay = Relay::start(&config(sink.address(), more));
    let mut expected = post(&relay, &[generated_batch(1, 2, 1000)]);
    // The events have no stageTimestamp, or one that would add a field to the header.
    for time in ["", r#","stageTimestamp":"2026-01-02 03:04:05Z x""#, r#","stageTimestamp":7"#] {
        let event = format!(r#"{{"auditID":"a","stage":"Panic"{time}}}"#);
        assert_eq!(relay.post(event.as_bytes()).status, 200);
        expected.push(event.into_bytes());
    }
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(expected.len(), PATIENCE);
    let wanted: Vec<_> = expected
        .iter()
        .enumerate()
        .map(|(index, event)| match index {
            0 | 1 => message(37, "h", "a", event),
            _ => [b"<37>1 - h a - - - ", event.as_slice()].concat(),
        })
        .collect();
    assert_eq!(sink.lines(), wanted);
    relay.finish(Backlog::Empty);
}

#[test]
fn the_hostname_is_the_machines_unless_the_config_has_one() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let relay = Relay::start(&config(sink.address(), ""));
    let expected = post(&relay, &[generated_batch(1, 1, 1000)]);
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(1, PATIENCE);
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(sink.lines(), [message(134, machine.trim(), "kube-audit", &expected[0])]);
    relay.finish(Backlog::Empty);
}

#[test]
fn everything_arrives_when_rsyslog_comes_back_after_it_was_stopped() {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Tls, &certificates);
    rsyslog.process.stop();
    let relay = Relay::start(&config(rsyslog.address(), &tls(Security::Tls, &certificates)));
    let expected = post(&relay, &corpus_bodies());
    relay.wait_for_metrics("an error 'connect'", PATIENCE, |metrics| {
        let labels = [("output", "syslog"), ("reason", "connect")];
        (metrics.value("output_errors_total", &labels) > 0.0).then_some(())
    });
    rsyslog.process.start();
    relay.wait_until_delivered(PATIENCE);
    rsyslog.wait_for_count(expected.len(), PATIENCE);
    assert!(rsyslog.messages() == expected);
    relay.finish(Backlog::Empty);
}

/// Returns batches that arrive while a fault strikes the peer.
fn stream_of_batches() -> Vec<Vec<u8>> {
    (0..6).map(|seed| generated_batch(seed, 400, 1500)).collect()
}

/// Method: rsyslog is stopped with SIGTERM in the middle of a stream and started again, several
/// times. Every event must arrive, in order; repetitions are allowed.
#[test]
fn everything_arrives_while_rsyslog_is_restarted_in_the_middle() {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let relay = Relay::start(&config(rsyslog.address(), PATIENT));
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for bodies in stream_of_batches().chunks(3) {
        let before = rsyslog.messages().len();
        expected.extend(post(&relay, bodies));
        rsyslog.wait_for_count(before + 1, PATIENCE);
        // On SIGTERM rsyslog writes the messages that it has read, and its kernel answers RST for
        // the others.
        rsyslog.process.stop();
        ends.push(rsyslog.messages().len());
        rsyslog.process.start();
    }
    relay.wait_until_delivered(PATIENCE);
    // rsyslog writes a message a moment after its kernel has acknowledged it.
    let last = expected.last().cloned();
    wait_until("the last event", PATIENCE, || rsyslog.messages().last() == last.as_ref());
    assert_covers(&expected, &lives(rsyslog.messages(), &ends));
    relay.finish(Backlog::Empty);
}

/// Method: syslog-ng, with TLS, is stopped with SIGTERM in the middle of a stream and started
/// again, several times. Every event must arrive, in order; repetitions are allowed.
#[test]
fn everything_arrives_while_syslog_ng_is_restarted_in_the_middle() {
    let certificates = Certificates::new();
    let mut syslog_ng = SyslogNg::start(Security::Tls, &certificates);
    let relay = Relay::start(&config(
        syslog_ng.address(),
        &format!("{PATIENT}\n{}", tls(Security::Tls, &certificates)),
    ));
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for bodies in stream_of_batches().chunks(3) {
        let before = syslog_ng.messages().len();
        expected.extend(post(&relay, bodies));
        syslog_ng.wait_for_count(before + 1, PATIENCE);
        syslog_ng.process.stop();
        ends.push(syslog_ng.messages().len());
        syslog_ng.process.start();
    }
    relay.wait_until_delivered(PATIENCE);
    let last = expected.last().cloned();
    wait_until("the last event", PATIENCE, || syslog_ng.messages().last() == last.as_ref());
    assert_covers(&expected, &lives(syslog_ng.messages(), &ends));
    relay.finish(Backlog::Empty);
}

/// Method: rsyslog is killed in the middle of a stream and started again, several times. Between
/// two of its lives, at most the bytes of one read may be missing; all other events must arrive, in
/// order.
#[test]
fn of_a_killed_rsyslog_only_what_it_had_read_itself_can_be_missing() {
    /// The most bytes that one read of imtcp returns. Bytes that were still in the kernel are sent
    /// again.
    const READ_MAX: usize = 256 * 1024;
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let relay = Relay::start(&config(rsyslog.address(), PATIENT));
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for bodies in stream_of_batches().chunks(3) {
        let before = rsyslog.messages().len();
        expected.extend(post(&relay, bodies));
        rsyslog.wait_for_count(before + 1, PATIENCE);
        rsyslog.process.kill();
        // Without the cut, the next life of rsyslog would continue a line that the kill has left
        // incomplete.
        ends.push(rsyslog.cut_partial_line());
        rsyslog.process.start();
    }
    relay.wait_until_delivered(PATIENCE);
    let last = expected.last().cloned();
    wait_until("the last event", PATIENCE, || rsyslog.messages().last() == last.as_ref());
    let lives = lives(rsyslog.messages(), &ends);
    let may_skip = |from: usize, to: usize| size(&expected[from..to]) <= READ_MAX;
    assert_eq!(covered(&expected, &lives, may_skip), expected.len());
    relay.finish(Backlog::Empty);
}

/// Method: rsyslog stands still while its kernel takes a batch, and is killed. Its kernel then
/// resets the connection, so the whole batch must arrive at its next life.
#[test]
fn everything_that_a_frozen_and_then_killed_rsyslog_had_not_read_arrives() {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Plain, &certificates);
    // The window is longer than this test takes from the freeze to the kill.
    let relay = Relay::start(&config(rsyslog.address(), "replay_window = \"4s\""));
    let mut expected = post(&relay, &[generated_batch(1, 400, 1000)]);
    // rsyslog has written all messages that it has read, so the kill loses nothing that a sender
    // can't know of.
    rsyslog.wait_for_count(expected.len(), PATIENCE);
    rsyslog.process.freeze();
    let sent = of_output(&relay, "output_bytes_total");
    expected.extend(post(&relay, &[generated_batch(2, 400, 1000)]));
    wait_until("its kernel to take it", PATIENCE, || {
        of_output(&relay, "output_bytes_total") > sent + 50_000.0
    });
    rsyslog.process.kill();
    let end = rsyslog.messages().len();
    assert_eq!(end, 400);
    rsyslog.process.start();
    relay.wait_until_delivered(PATIENCE);
    let last = expected.last().cloned();
    wait_until("the last event", PATIENCE, || rsyslog.messages().last() == last.as_ref());
    assert_covers(&expected, &lives(rsyslog.messages(), &[end]));
    relay.finish(Backlog::Empty);
}

/// Method: rsyslog and syslog-ng stand still while batches are posted, and go on before a timeout.
/// Every event must arrive exactly once, without an error.
#[test]
fn a_frozen_peer_gets_everything_once_when_it_goes_on() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let syslog_ng = SyslogNg::start(Security::Tls, &certificates);
    let relays = [
        Relay::start(&config(rsyslog.address(), "")),
        Relay::start(&config(syslog_ng.address(), &tls(Security::Tls, &certificates))),
    ];
    for relay in &relays {
        wait_until("the connection", PATIENCE, || of_output(relay, "output_up") == 1.0);
    }
    rsyslog.process.freeze();
    syslog_ng.process.freeze();
    let bodies = stream_of_batches();
    let expected = relays.each_ref().map(|relay| post(relay, &bodies));
    // The batches are much larger than the kernels' buffers.
    for relay in &relays {
        let backlog = of_output(relay, "output_backlog_events");
        assert!(backlog > 0.0, "{backlog}");
    }
    rsyslog.process.thaw();
    syslog_ng.process.thaw();
    rsyslog.wait_for_count(expected[0].len(), PATIENCE);
    syslog_ng.wait_for_count(expected[1].len(), PATIENCE);
    assert!(rsyslog.messages() == expected[0]);
    assert!(syslog_ng.messages() == expected[1]);
    for relay in relays {
        assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

/// Returns an event whose message has exactly `bytes` bytes, if the hostname is `h`.
fn event_of_message(bytes: usize, name: &str) -> Vec<u8> {
    let event = |padding: usize| {
        let padding = "x".repeat(padding);
        format!(r#"{{"auditID":"{name}","stage":"Panic","annotations":{{"p":"{padding}"}}}}"#)
            .into_bytes()
    };
    let header = message(134, "h", "kube-audit", &event(0)).len();
    event(bytes - header)
}

fn list(events: &[Vec<u8>]) -> Vec<u8> {
    let head = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
    [&head[..], &events.join(&b","[..]), b"]}"].concat()
}

#[test]
fn a_message_longer_than_the_limit_is_refused_and_counted_and_its_neighbours_pass() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let more = "hostname = \"h\"\nmax_message_bytes = 2000";
    let relay = Relay::start(&config(sink.address(), more));
    let events = [
        event_of_message(1999, "a"),
        event_of_message(2000, "b"),
        event_of_message(2001, "too-long-1"),
        event_of_message(500, "c"),
        event_of_message(300_000, "too-long-2"),
        event_of_message(500, "d"),
    ];
    assert_eq!(relay.post(&list(&events)).status, 200);
    // Another batch holds only such an event.
    assert_eq!(relay.post(&events[2]).status, 200);
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(4, PATIENCE);
    let passed = [0, 1, 3, 5].map(|index| message(134, "h", "kube-audit", &events[index]));
    assert_eq!(sink.lines(), passed);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("error_total", &[("plugin", "syslog")]), 3.0);
    assert_eq!(metrics.value("output_events_total", &[("output", "syslog")]), 4.0);
    assert_eq!(metrics.value("output_up", &[("output", "syslog")]), 1.0);
    let said = relay.wait_for_log("events given up and counted", PATIENCE);
    assert_eq!(said["output"], "syslog");
    relay.finish(Backlog::Empty);
}

#[test]
fn with_rejected_retry_a_message_too_long_blocks_loudly_and_nothing_before_it() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let more = "hostname = \"h\"\nmax_message_bytes = 2000\nrejected = { action = \"retry\" }";
    let shutdown = "[shutdown]\ndrain_timeout = \"1s\"\n";
    let relay = Relay::start(&format!("{}{shutdown}", config(sink.address(), more)));
    let first = event_of_message(500, "first");
    assert_eq!(relay.post(&first).status, 200);
    let names = ["a", "b", "c", "d", "e"];
    let mut events: Vec<_> = names.iter().map(|name| event_of_message(500, name)).collect();
    events.insert(3, event_of_message(2001, "too-long"));
    assert_eq!(relay.post(&list(&events)).status, 200);
    relay.wait_for_metrics("everything before it to be final", PATIENCE, |metrics| {
        let labels = [("output", "syslog")];
        (metrics.value("output_events_total", &labels) == 4.0).then_some(())
    });
    relay.wait_for_metrics("some attempts", PATIENCE, |metrics| {
        let labels = [("output", "syslog"), ("reason", "protocol")];
        (metrics.value("output_errors_total", &labels) >= 5.0).then_some(())
    });
    let passed: Vec<_> = [&first, &events[0], &events[1], &events[2]]
        .iter()
        .map(|event| message(134, "h", "kube-audit", event))
        .collect();
    assert_eq!(sink.lines(), passed, "each once, and nothing behind it");
    assert_eq!(of_output(&relay, "output_backlog_events"), 3.0);
    assert_eq!(of_output(&relay, "output_up"), 0.0);
    assert_eq!(relay.metrics().sum("error_total"), 0.0);
    let said = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(said["error"].as_str().unwrap().contains("max_message_bytes"), "{said}");
    relay.finish(Backlog::Stable);
}

/// Generates a JSON string as kube-apiserver or an API client may write it.
fn odd_string() -> impl Strategy<Value = String> {
    prop_oneof![
        // serde_json escapes the characters that must be escaped. The others are raw UTF-8 of one
        // to four bytes.
        ".{0,40}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(r#""\u2028\u0000\ud83d\ude00\ud800 \\n\\ \/ <>&""#.to_owned()),
        Just("\"\u{7f}\u{80}\u{85}\u{feff}\u{2028} %msg% ${MSG} 17 <13>1 \"".to_owned()),
        (0_usize..300_000).prop_map(|length| format!("\"{}\"", "ß🙂x".repeat(length / 7))),
    ]
}

fn odd_event() -> impl Strategy<Value = String> {
    let member =
        ("[a-z]{1,8}", odd_string()).prop_map(|(key, value)| format!("\"{key}\" :\t{value}"));
    prop::collection::vec(member, 0..4).prop_map(|members| {
        let members: String = members.iter().map(|member| format!(",{member}")).collect();
        format!(r#"{{"auditID":"a","stage":"Panic","requestObject":{{"n":1e400{members}}}}}"#)
    })
}

/// Method: proptest makes lists of odd events (escapes, control characters, text of 300 KB).
/// rsyslog must receive each of them byte for byte, in order.
#[test]
fn octet_counting_frames_any_event_for_the_real_receiver() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let relay = Relay::start(&config(rsyslog.address(), ""));
    let expected = Cell::new(Vec::new());
    let config = ProptestConfig { cases: 40, ..ProptestConfig::with_source_file(file!()) };
    let events = prop::collection::vec(odd_event(), 1..6);
    TestRunner::new(config)
        .run(&events, |events| {
            let events: Vec<Vec<u8>> = events.into_iter().map(String::into_bytes).collect();
            let response = relay.post(&list(&events));
            prop_assert_eq!(response.status, 200, "{}", response.text());
            let mut all = expected.take();
            all.extend(events);
            rsyslog.wait_for_count(all.len(), PATIENCE);
            prop_assert!(rsyslog.messages() == all, "rsyslog has something else");
            expected.set(all);
            Ok(())
        })
        .unwrap();
    assert!(expected.take().iter().any(|event| event.len() > 200_000), "no large ones");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_lone_message_is_not_held_back() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let relay = Relay::start(&config(rsyslog.address(), "replay_window = \"5s\""));
    for seed in 0..3 {
        let before = std::time::Instant::now();
        post(&relay, &[generated_batch(seed, 1, 1000)]);
        rsyslog.wait_for_count(usize::try_from(seed).unwrap() + 1, PATIENCE);
        assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    }
    relay.finish(Backlog::Empty);
}
