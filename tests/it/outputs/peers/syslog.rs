//! `type = "syslog"` against rsyslog and syslog-ng: each event is one message, byte for byte.
//!
//! If a peer ends, the relay sends again the bytes that the peer's kernel had and the peer had not
//! read, because of the reset, and all bytes younger than the replay window. It cannot know of two
//! kinds of losses: bytes that the peer had read and not yet written, and bytes that were in the
//! peer's kernel for longer than the window. RELP has neither loss. rsyslog takes a while to stop,
//! so the tests that stop a peer have a long window.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::peers::{Process, Rsyslog, SyslogNg};
use crate::support::prelude::*;
use crate::support::sequence::lives;

/// Returns a config with one syslog output. `more` has further keys, with tables inline.
fn config(address: SocketAddr, more: &str) -> String {
    let window = if more.contains("replay_window") { "" } else { "replay_window = \"500ms\"\n" };
    format!("{BASE}{}", stream_output("syslog", &[address], &format!("{window}{more}")))
}

/// A long window for peers that are stopped.
const PATIENT: &str = "replay_window = \"3s\"\n";

/// Returns the message of an event as RFC 5424 defines it.
fn message(priority: u8, hostname: &str, app_name: &str, event: &[u8]) -> Vec<u8> {
    let json: Value = serde_json::from_slice(event).expect("an event");
    let time = json["stageTimestamp"].as_str().unwrap_or("-");
    [format!("<{priority}>1 {time} {hostname} {app_name} - - - ").as_bytes(), event].concat()
}

fn rsyslog_gets_the_corpus(framing: &str, security: Security) {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(security, &certificates);
    let more = format!(
        "framing = \"{framing}\"\nhostname = \"relay.example\"\n{}",
        tls_key(security, &certificates)
    );
    let relay = Relay::start(&config(rsyslog.address(), &more));
    let expected = post_corpus(&relay);
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
#[ignore = "needs peers or root: ./test"]
fn rsyslog_gets_the_corpus_with_octet_counting_over_tls() {
    rsyslog_gets_the_corpus("octet_counting", Security::Tls);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn rsyslog_gets_the_corpus_with_newlines_over_mutual_tls() {
    rsyslog_gets_the_corpus("newline", Security::MutualTls);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn syslog_ng_gets_the_corpus_over_mutual_tls() {
    let certificates = Certificates::new();
    let syslog_ng = SyslogNg::start(Security::MutualTls, &certificates);
    let tls = tls_key(Security::MutualTls, &certificates);
    let more = format!("hostname = \"relay.example\"\n{tls}");
    let relay = Relay::start(&config(syslog_ng.address(), &more));
    let expected = post_corpus(&relay);
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
#[ignore = "needs peers or root: ./test"]
fn the_header_says_what_the_config_says() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let more = "facility = \"auth\"\nseverity = \"notice\"\nhostname = \"h\"\napp_name = \"a\"";
    let relay = Relay::start(&config(sink.address(), more));
    let mut expected = post_batch(&relay, 1, 2, 1000);
    // The events have no stageTimestamp, or one that would break the header.
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
#[ignore = "needs peers or root: ./test"]
fn the_hostname_is_the_machines_unless_the_config_has_one() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let relay = Relay::start(&config(sink.address(), ""));
    let expected = post_batch(&relay, 1, 1, 1000);
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(1, PATIENCE);
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(sink.lines(), [message(134, machine.trim(), "kube-audit", &expected[0])]);
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn everything_arrives_when_rsyslog_comes_back_after_it_was_stopped() {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Tls, &certificates);
    rsyslog.process.stop();
    let relay = Relay::start(&config(rsyslog.address(), &tls_key(Security::Tls, &certificates)));
    let expected = post_corpus(&relay);
    wait_for_errors(&relay, "connect", 1.0);
    rsyslog.process.start();
    relay.wait_until_delivered(PATIENCE);
    rsyslog.wait_for_count(expected.len(), PATIENCE);
    assert!(rsyslog.messages() == expected);
    relay.finish(Backlog::Empty);
}

/// Method: the peer is stopped with SIGTERM in the middle of a stream and started again, twice. It
/// writes the messages that it has read, and its kernel answers the others with RST. Every event
/// must arrive, in order. Events may repeat.
fn everything_arrives_while_it_is_restarted<Peer>(
    mut peer: Peer,
    relay: Relay,
    process: fn(&mut Peer) -> &mut Process,
    messages: fn(&Peer) -> Vec<Vec<u8>>,
) {
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for seeds in [0..3, 3..6] {
        let before = messages(&peer).len();
        expected.extend(post_batches(&relay, seeds, 400, 1500));
        wait_until("a message", PATIENCE, || messages(&peer).len() > before);
        process(&mut peer).stop();
        ends.push(messages(&peer).len());
        process(&mut peer).start();
    }
    relay.wait_until_delivered(PATIENCE);
    // The peer writes a message a moment after its kernel has acknowledged it.
    wait_until("the last event", PATIENCE, || messages(&peer).last() == expected.last());
    assert_covers(&expected, &lives(messages(&peer), &ends));
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn everything_arrives_while_rsyslog_is_restarted_in_the_middle() {
    let rsyslog = Rsyslog::start(Security::Plain, &Certificates::new());
    let relay = Relay::start(&config(rsyslog.address(), PATIENT));
    everything_arrives_while_it_is_restarted(
        rsyslog,
        relay,
        |it| &mut it.process,
        Rsyslog::messages,
    );
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn everything_arrives_while_syslog_ng_is_restarted_in_the_middle() {
    let certificates = Certificates::new();
    let syslog_ng = SyslogNg::start(Security::Tls, &certificates);
    let keys = format!("{PATIENT}{}", tls_key(Security::Tls, &certificates));
    let relay = Relay::start(&config(syslog_ng.address(), &keys));
    everything_arrives_while_it_is_restarted(
        syslog_ng,
        relay,
        |it| &mut it.process,
        SyslogNg::messages,
    );
}

/// Method: syslog-ng, with TLS, is frozen while batches are posted that are much larger than the
/// kernel's buffers. It continues before a timeout. Every event must arrive exactly once, without
/// an error.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_frozen_peer_gets_everything_once_when_it_goes_on() {
    let certificates = Certificates::new();
    let syslog_ng = SyslogNg::start(Security::Tls, &certificates);
    let keys = tls_key(Security::Tls, &certificates);
    let relay = Relay::start(&config(syslog_ng.address(), &keys));
    wait_until("the connection", PATIENCE, || of_output(&relay, "output_up") == 1.0);
    syslog_ng.process.freeze();
    let expected = post_batches(&relay, 0..6, 400, 1500);
    assert!(of_output(&relay, "output_backlog_events") > 0.0);
    syslog_ng.process.thaw();
    syslog_ng.wait_for_count(expected.len(), PATIENCE);
    assert!(syslog_ng.messages() == expected);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

/// Returns an event whose message has exactly `bytes` bytes with the hostname `h`.
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
#[ignore = "needs peers or root: ./test"]
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
    // Another batch has only such an event.
    assert_eq!(relay.post(&events[2]).status, 200);
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(4, PATIENCE);
    let passed = [0, 1, 3, 5].map(|index| message(134, "h", "kube-audit", &events[index]));
    assert_eq!(sink.lines(), passed);
    assert_eq!((lost(&relay), of_output(&relay, "output_events_total")), (3.0, 4.0));
    assert_eq!(of_output(&relay, "output_up"), 1.0);
    let said = relay.wait_for_log(messages::GIVEN_UP, PATIENCE);
    assert_eq!(said["output"], "consumer");
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn with_rejected_retry_a_message_too_long_is_set_aside_and_holds_up_no_other() {
    let sink = TcpSink::with(Framing::OctetCounting, Options::default());
    let more = "hostname = \"h\"\nmax_message_bytes = 2000\nrejected = { action = \"retry\" }";
    let shutdown = "[shutdown]\ndrain_timeout = \"1s\"\n";
    let relay = Relay::start(&format!("{}{shutdown}", config(sink.address(), more)));
    let names = ["a", "b", "c", "d", "e"];
    let mut events: Vec<_> = names.iter().map(|name| event_of_message(500, name)).collect();
    events.insert(3, event_of_message(2001, "too-long"));
    assert_eq!(relay.post(&list(&events)).status, 200);
    events.remove(3);
    // Each later event shows once that the receiver works.
    wait_until("the event is set aside", PATIENCE, || {
        let event = event_of_message(500, "later");
        assert_eq!(relay.post(&event).status, 200);
        events.push(event);
        std::thread::sleep(Duration::from_millis(200));
        of_output(&relay, "output_aside_events") == 1.0
    });
    relay.wait_for_metrics("the others to be final", PATIENCE, |metrics| {
        let delivered = metrics.value("output_events_total", &[("output", "consumer")]);
        (delivered == events.len() as f64).then_some(())
    });
    let passed: BTreeSet<_> =
        events.iter().map(|event| message(134, "h", "kube-audit", event)).collect();
    assert_eq!(sink.lines().into_iter().collect::<BTreeSet<_>>(), passed);
    assert_eq!(relay.metrics().sum("error_total"), 0.0);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let said = status["outputs"][0]["aside"]["error"].as_str().unwrap().to_owned();
    assert!(said.contains("max_message_bytes"), "{said}");
    relay.finish(Backlog::Stable);
}

/// Generates a JSON string as kube-apiserver or an API client can write it.
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
/// rsyslog must receive each one byte for byte, in order.
#[test]
#[ignore = "needs peers or root: ./test"]
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
