//! `type = "relp"` with rsyslog's `imrelp`, which here acknowledges a message once it is in the
//! file, and with fakes that refuse or close. `faults` kills and stops rsyslog.

use crate::support::peers::Rsyslog;
use crate::support::prelude::*;
use crate::support::relp_sink::{RelpSink, answer, ok};

fn config(addresses: &[SocketAddr], more: &str) -> String {
    let more = format!("hostname = \"relay.example\"\n{more}");
    format!("{BASE}{}", stream_output("relp", addresses, &more))
}

/// Returns the message of an event as RFC 5424 defines it.
fn message(event: &[u8]) -> Vec<u8> {
    let json: Value = serde_json::from_slice(event).expect("an event");
    let time = json["stageTimestamp"].as_str().unwrap_or("-");
    [format!("<134>1 {time} relay.example kube-audit - - - ").as_bytes(), event].concat()
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn rsyslog_gets_the_corpus_by_relp_over_mutual_tls() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::relp(Security::MutualTls, &certificates);
    let keys = tls_key(Security::MutualTls, &certificates);
    let relay = Relay::start(&config(&[rsyslog.address()], &keys));
    let expected = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    // rsyslog writes a message before it acknowledges it, so the messages are there already.
    assert!(rsyslog.messages() == expected, "an event is changed, missing or there twice");
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert!(rsyslog.raw() == messages, "a header is wrong");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
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
    assert_eq!(lost(&relay), 4.0);
    assert_eq!(of_output(&relay, "output_events_total"), 6.0);
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn only_200_makes_a_message_final() {
    // The third message of the first connection is refused; command 1 is `open`.
    let sink = RelpSink::with(|command| match (command.connection, command.number) {
        (0, 4) => Some(answer(command, "500 not now")),
        _ => Some(ok(command)),
    });
    let relay = Relay::start(&config(&[sink.address()], ""));
    let expected = post_batch(&relay, 0, 400, 1500);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(errors(&relay, "protocol"), 1.0);
    let runs = sink.runs();
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert_covers(&messages, &runs);
    // The two messages before the refused one were acknowledged.
    assert!(runs[1][0] == messages[2]);
    let status = relay.wait_for_log("output up", PATIENCE);
    assert_eq!(status["output"], "consumer");
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_consumer_that_does_not_open_is_an_error_and_the_next_one_is_tried() {
    let silent = RelpSink::with(|_| Some(Vec::new()));
    let refusing = RelpSink::with(|command| Some(answer(command, "500 not for you")));
    let other = RelpSink::with(|command| Some(answer(command, "200 OK\nrelp_version=0")));
    let newer =
        RelpSink::with(|command| Some(answer(command, "200 OK\nrelp_version=7\ncommands=syslog")));
    let hanging_up = RelpSink::with(|_| None);
    let good = RelpSink::start();
    let sinks = [&silent, &refusing, &other, &newer, &hanging_up, &good];
    let addresses = sinks.map(|sink| sink.address());
    let relay = Relay::start(&config(&addresses, "timeouts = { connect = \"500ms\" }"));
    let expected = post_batch(&relay, 0, 400, 1500);
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
#[ignore = "needs peers or root: ./test"]
fn a_hint_that_the_consumer_closes_is_heeded_and_the_end_says_so() {
    let sink = RelpSink::with(|command| match (command.connection, command.number) {
        (0, 5) => Some([&ok(command)[..], b"0 serverclose 0\n"].concat()),
        _ => Some(ok(command)),
    });
    let mut relay = Relay::start(&config(&[sink.address()], ""));
    // The hint comes with the answer to the last of these messages.
    let mut expected = post_batch(&relay, 1, 4, 100);
    relay.wait_until_delivered(PATIENCE);
    wait_until("the end of the connection", PATIENCE, || sink.open() == 0);
    expected.extend(post_batch(&relay, 2, 4, 100));
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    let messages: Vec<_> = expected.iter().map(|event| message(event)).collect();
    assert!(sink.runs() == [&messages[..4], &messages[4..]]);
    relay.settle(Backlog::Empty);
    relay.stop();
    sink.wait_until_left();
    let closes: Vec<_> =
        sink.commands().into_iter().filter(|command| command.name == "close").collect();
    assert_eq!(closes.len(), 2, "each connection ends in order");
    assert_eq!(closes[1].number, 6);
}
