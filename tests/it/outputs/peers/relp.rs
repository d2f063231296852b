//! `type = "relp"` against rsyslog's `imrelp`, whose acknowledgement means here that the message is
//! in its file. Whatever ends it, nothing is lost, and only messages of the window arrive twice.

use std::net::SocketAddr;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::peers::Rsyslog;
use crate::support::peers::Security;
use crate::support::relay::BASE;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::relp_sink::RelpSink;
use crate::support::relp_sink::answer;
use crate::support::relp_sink::ok;
use crate::support::sequence::assert_covers;
use crate::support::sequence::lives;
use crate::support::text;
use crate::support::wait_until;

/// The default value of `window`.
const WINDOW: usize = 128;

/// Returns a config with one relp output, whose retries are quick enough for a test. `more` holds
/// further keys, with tables inline.
fn config(addresses: &[SocketAddr], more: &str) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!(
        r#"{BASE}
[[output]]
name = "relp"
type = "relp"
addresses = {addresses:?}
hostname = "relay.example"
retry = {{ initial_interval = "20ms", max_interval = "200ms" }}
{more}
"#
    )
}

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

fn of_output(relay: &Relay, name: &str) -> f64 {
    relay.metrics().value(name, &[("output", "relp")])
}

fn errors(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().value("output_errors_total", &[("output", "relp"), ("reason", reason)])
}

/// Returns the message of an event as RFC 5424 defines it.
fn message(event: &[u8]) -> Vec<u8> {
    let json: serde_json::Value = serde_json::from_slice(event).expect("an event");
    let time = json["stageTimestamp"].as_str().unwrap_or("-");
    [format!("<134>1 {time} relay.example kube-audit - - - ").as_bytes(), event].concat()
}

fn rsyslog_gets_the_corpus(security: Security) {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::relp(security, &certificates);
    let relay = Relay::start(&config(&[rsyslog.address()], &tls(security, &certificates)));
    let bodies: Vec<_> = corpus().into_iter().map(|body| body.bytes).collect();
    let expected = post(&relay, &bodies);
    relay.wait_until_delivered(PATIENCE);
    // rsyslog writes a message before it acknowledges it, so the test need not wait for it.
    assert!(rsyslog.messages() == expected, "an event is changed, missing or there twice");
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert!(rsyslog.raw() == messages, "a header is wrong");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn rsyslog_gets_the_corpus_by_relp() {
    rsyslog_gets_the_corpus(Security::Plain);
}

#[test]
fn rsyslog_gets_the_corpus_by_relp_over_tls() {
    rsyslog_gets_the_corpus(Security::Tls);
}

#[test]
fn rsyslog_gets_the_corpus_by_relp_over_mutual_tls() {
    rsyslog_gets_the_corpus(Security::MutualTls);
}

/// Returns batches that arrive while a fault strikes the peer.
fn stream_of_batches() -> Vec<Vec<u8>> {
    (0..6).map(|seed| generated_batch(seed, 400, 1500)).collect()
}

/// Method: ends rsyslog in the middle of a stream and starts it again, twice. `end` ends rsyslog,
/// and may post more batches before; it returns their events. Every event must arrive in order, and
/// each end may repeat at most one window. Returns how many events were posted, and how many
/// rsyslog had at each end.
fn everything_arrives_though(
    end: impl Fn(&mut Rsyslog, &Relay) -> Vec<Vec<u8>>,
) -> (usize, Vec<usize>) {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::relp(Security::Plain, &certificates);
    let relay = Relay::start(&config(&[rsyslog.address()], ""));
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for bodies in stream_of_batches().chunks(3) {
        let before = rsyslog.messages().len();
        expected.extend(post(&relay, bodies));
        rsyslog.wait_for_count(before + 1, PATIENCE);
        expected.extend(end(&mut rsyslog, &relay));
        // Without the cut, the next life of rsyslog would continue a line that the kill has left
        // incomplete.
        ends.push(rsyslog.cut_partial_line());
        rsyslog.process.start();
    }
    relay.wait_until_delivered(PATIENCE);
    let messages = rsyslog.messages();
    let repeated = messages.len() - expected.len();
    eprintln!("{} ends at {ends:?}, {repeated} events twice", ends.len());
    assert_covers(&expected, &lives(messages, &ends));
    assert!(repeated <= ends.len() * WINDOW, "more than a window for each end");
    relay.finish(Backlog::Empty);
    (expected.len(), ends)
}

/// Method: [`everything_arrives_though`] with a kill in the middle of a stream.
#[test]
fn nothing_is_lost_when_rsyslog_is_killed() {
    everything_arrives_though(|rsyslog, _| {
        rsyslog.process.kill();
        Vec::new()
    });
}

/// Method: [`everything_arrives_though`] with an rsyslog that stands still while its kernel takes a
/// window, and is then killed. It has acknowledged none of this window.
#[test]
fn nothing_is_lost_when_rsyslog_is_killed_in_the_middle_of_a_window() {
    let (posted, ends) = everything_arrives_though(|rsyslog, relay| {
        rsyslog.process.freeze();
        let more = post(relay, &stream_of_batches()[..1]);
        // rsyslog's kernel holds more messages than rsyslog has written, and rsyslog will not
        // answer them.
        let written: usize = rsyslog.raw().iter().map(Vec::len).sum();
        wait_until("messages in its kernel", PATIENCE, || {
            of_output(relay, "output_bytes_total") >= (written + 20_000) as f64
        });
        assert!(of_output(relay, "output_backlog_events") > 0.0);
        rsyslog.process.kill();
        more
    });
    // At the second end rsyslog may have a window of the first end twice.
    let has_less = ends[0] <= 1200 && ends[1] <= 2800 + WINDOW;
    assert!(has_less && posted == 3200, "{ends:?} of {posted}");
}

/// Method: [`everything_arrives_though`] with SIGTERM in the middle of a stream.
#[test]
fn nothing_is_lost_when_rsyslog_is_restarted() {
    everything_arrives_though(|rsyslog, _| {
        rsyslog.process.stop();
        Vec::new()
    });
}

/// Method: rsyslog stands still while batches are posted, and goes on before a timeout. Every event
/// must arrive exactly once, without an error.
#[test]
fn a_frozen_rsyslog_gets_everything_once_when_it_goes_on() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::relp(Security::Plain, &certificates);
    let relay = Relay::start(&config(&[rsyslog.address()], ""));
    wait_until("the connection", PATIENCE, || of_output(&relay, "output_up") == 1.0);
    rsyslog.process.freeze();
    let expected = post(&relay, &stream_of_batches());
    assert_eq!(of_output(&relay, "output_backlog_events"), expected.len() as f64);
    rsyslog.process.thaw();
    relay.wait_until_delivered(PATIENCE);
    assert!(rsyslog.messages() == expected);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_window_is_sent_again_to_another_rsyslog_when_the_first_stays_frozen() {
    let certificates = Certificates::new();
    let (frozen, other) = (
        Rsyslog::relp(Security::Plain, &certificates),
        Rsyslog::relp(Security::Plain, &certificates),
    );
    let more = "timeouts = { connect = \"1s\", request = \"1s\" }";
    let relay = Relay::start(&config(&[frozen.address(), other.address()], more));
    let mut expected = post(&relay, &stream_of_batches()[..1]);
    relay.wait_until_delivered(PATIENCE);
    frozen.process.freeze();
    expected.extend(post(&relay, &stream_of_batches()[1..]));
    relay.wait_until_delivered(PATIENCE);
    assert!(errors(&relay, "timeout") >= 1.0);
    let first = frozen.messages();
    assert!(first == expected[..400], "{} events", first.len());
    assert_covers(&expected, &[first, other.messages()]);
    // The first rsyslog's kernel holds at most a window of messages, which rsyslog writes when it
    // goes on.
    frozen.process.thaw();
    relay.finish(Backlog::Empty);
}

#[test]
fn messages_too_long_are_counted_and_their_neighbours_delivered_in_order() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::relp(Security::Plain, &certificates);
    let relay = Relay::start(&config(&[rsyslog.address()], "max_message_bytes = 2000"));
    let event = |name: usize, padding: usize| {
        format!(r#"{{"auditID":"{name}","stage":"Panic","x":"{}"}}"#, "x".repeat(padding))
    };
    let long = [0, 1, 4, 9];
    let events: Vec<_> =
        (0..10).map(|name| event(name, if long.contains(&name) { 3000 } else { 10 })).collect();
    let list = format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{}]}}"#,
        events.join(",")
    );
    assert_eq!(relay.post(list.as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let passed: Vec<_> = (0..10)
        .filter(|name| !long.contains(name))
        .map(|name| events[name].clone().into_bytes())
        .collect();
    assert!(rsyslog.messages() == passed);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "relp")]), 4.0);
    assert_eq!(of_output(&relay, "output_events_total"), 6.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn only_200_makes_a_message_final() {
    // The third message of the first connection is refused.
    let sink = RelpSink::with(|command| match (command.connection, command.number) {
        (0, 4) => Some(answer(command, "500 not now")),
        _ => Some(ok(command)),
    });
    let relay = Relay::start(&config(&[sink.address()], ""));
    let expected = post(&relay, &stream_of_batches()[..1]);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(errors(&relay, "protocol"), 1.0);
    let runs = sink.runs();
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert_covers(&messages, &runs);
    // The two messages before the refused one were acknowledged.
    assert!(runs[1][0] == messages[2]);
    let status = relay.wait_for_log("output up", PATIENCE);
    assert_eq!(status["output"], "relp");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_does_not_open_is_an_error_and_the_next_one_is_tried() {
    let silent = RelpSink::with(|_| Some(Vec::new()));
    let refusing = RelpSink::with(|command| Some(answer(command, "500 not for you")));
    let other = RelpSink::with(|command| Some(answer(command, "200 OK\nrelp_version=0")));
    let newer =
        RelpSink::with(|command| Some(answer(command, "200 OK\nrelp_version=7\ncommands=syslog")));
    let hanging_up = RelpSink::with(|_| None);
    let good = RelpSink::start();
    let sinks = [&silent, &refusing, &other, &newer, &hanging_up, &good];
    let addresses = sinks.map(RelpSink::address);
    let relay = Relay::start(&config(&addresses, "timeouts = { connect = \"500ms\" }"));
    let expected = post(&relay, &stream_of_batches()[..1]);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(
        ["timeout", "protocol", "closed"].map(|reason| errors(&relay, reason)),
        [1.0, 3.0, 1.0]
    );
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert!(good.runs() == [messages]);
    for bad in &sinks[..5] {
        assert_eq!(bad.commands().len(), 1, "an open, and nothing after it");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_hint_that_the_consumer_closes_is_heeded_and_the_end_says_so() {
    let sink = RelpSink::with(|command| match (command.connection, command.number) {
        (0, 5) => Some([&ok(command)[..], b"0 serverclose 0\n"].concat()),
        _ => Some(ok(command)),
    });
    let mut relay = Relay::start(&config(&[sink.address()], ""));
    // The hint comes with the answer to the last of these messages.
    let mut expected = post(&relay, &[generated_batch(1, 4, 100)]);
    relay.wait_until_delivered(PATIENCE);
    wait_until("the end of the connection", PATIENCE, || sink.open() == 0);
    expected.extend(post(&relay, &[generated_batch(2, 4, 100)]));
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert!(sink.runs() == [&messages[..4], &messages[4..]]);
    relay.settle(Backlog::Empty);
    relay.stop();
    let closes: Vec<_> =
        sink.commands().into_iter().filter(|command| command.name == "close").collect();
    assert_eq!(closes.len(), 2, "each connection ends in order");
    assert_eq!(closes[1].number, 6);
}
