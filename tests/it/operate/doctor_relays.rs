//! `doctor` where the relays' own counts or verdicts decide: refused requests, clocks that differ,
//! one relay with two names, and losses before a restart.

use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use crate::support::apiserver::{Apiserver, Counted, now};
use crate::support::prelude::*;

/// Runs `doctor --json` with a short interval, and returns the exit status and the object.
fn doctor(urls: &[&str], more: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["doctor", "--interval", "200ms", "--json"];
    arguments.extend(urls.iter().flat_map(|url| ["--relay", *url]));
    arguments.extend(more);
    let output = run_command(&arguments, Path::new("/"));
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), json)
}

/// Checks that the verdict is unknown, and that a note of kind `unknown` has these words.
fn assert_unknown((code, json): &(Option<i32>, Value), words: &str) {
    assert_eq!((*code, &json["verdict"]), (Some(2), &"unknown".into()), "{words}: {json:#}");
    let notes = json["relay"]["notes"].as_array().unwrap();
    let is_told = |note: &&Value| note["what"].as_str().unwrap().contains(words);
    let note = notes.iter().find(is_told).unwrap_or_else(|| panic!("{words}: {json:#}"));
    assert_eq!(note["kind"], "unknown", "{note:#}");
}

fn admin(relay: &Relay) -> String {
    format!("http://{}", relay.admin())
}

#[test]
fn connections_that_get_no_place_are_counted_shown_and_never_ok() {
    let consumer = HttpSink::accepting();
    let limits = "[limits]\nmax_connections = 2\n";
    let relay = Relay::start(&to_sink(consumer.address(), limits));
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let head = b"POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Length: 9999\r\n\r\n{";
    let slow: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = Client::connect(relay.address()).unwrap();
            client.send(head).unwrap();
            client
        })
        .collect();
    relay.wait_for_metrics("two slow bodies", PATIENCE, |metrics| {
        (metrics.sum("in_flight_bytes") >= 2.0).then_some(())
    });
    for _ in 0..5 {
        assert!(Client::connect(relay.address()).unwrap().is_closed_by_server());
    }
    let metrics = relay.metrics();
    let refused = |reason: &str| {
        let labels = [("listener", "127.0.0.1:0"), ("reason", reason)];
        metrics.value("connections_refused_total", &labels)
    };
    assert_eq!([refused("all_busy"), refused("accept_failed")], [5.0, 0.0]);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    assert_eq!(status["refused_connections"]["all_busy"]["count"], 5, "{status:#}");
    assert_eq!(status["verdict"]["state"], "bad", "{status:#}");
    let text = status["verdict"]["text"].as_str().unwrap();
    assert!(text.contains("limits.max_connections is reached"), "{text}");
    let found = doctor(&[&admin(&relay)], &[]);
    assert_unknown(&found, "connections refused (all_busy: 5");
    assert_unknown(&found, "limits.max_connections is reached");
    drop(slow);
    relay.finish(Backlog::Empty);
}

#[test]
fn an_age_is_told_by_the_clock_of_the_machine_that_reports_it() {
    for minutes in [-10.0, 0.0, 10.0] {
        let clock = now() + minutes * 60.0;
        let status = json!({ "time_seconds": clock, "start_time_seconds": clock - 720.0,
            "accepted_events": 600, "uptime_seconds": 720, "last_event_seconds_ago": 1.0,
            "evidence": { "size": 7, "last_checkpoint_seconds_ago": 120.0 },
            "verdict": { "state": "good", "text": "t", "findings": [] } });
        let relay = HttpSink::start(move |_| Answer::status(200).body(status.to_string()));
        let url = format!("http://{}", relay.address());
        let said = run_command(&["doctor", "--interval", "0s", "--relay", &url], Path::new("/"));
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(text.contains("the last checkpoint 120 s ago"), "{minutes}: {text}");
    }
}

/// kube-apiserver and relay start together, but their clocks differ by ten minutes.
#[test]
fn processes_that_started_together_are_compared_whatever_their_clocks_say() {
    let consumer = HttpSink::accepting();
    let relay = Relay::start(&to_sink(consumer.address(), ""));
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let started = now() + 600.0;
    let apiserver = HttpSink::start(move |_| {
        let counted = Counted { started, generated: Some(13), ..Counted::starting() };
        let date = UNIX_EPOCH + Duration::from_secs_f64(now() + 600.0);
        let answer = Answer::status(200).header("date", &httpdate::fmt_http_date(date));
        answer.body(counted.metrics())
    });
    let address = format!("http://{}", apiserver.address());
    let (code, json) = doctor(&[&admin(&relay)], &["--apiserver", &address]);
    assert_eq!(code, Some(2), "{json:#}");
    assert_eq!(json["apiserver"]["unexplained_missing"], 3, "{json:#}");
    relay.finish(Backlog::Empty);
}

/// Serves the `/status` of a healthy relay with this verdict.
fn saying(verdict: &'static str) -> HttpSink {
    HttpSink::start(move |_| {
        let numbers = "\"accepted_events\": 10, \"start_time_seconds\": 1.7e9";
        Answer::status(200).body(format!("{{{numbers}, \"verdict\": {verdict}}}"))
    })
}

#[test]
fn the_verdict_is_never_better_than_the_relays_own() {
    const GOOD: &str = r#"{"state": "good", "text": "t", "findings": []}"#;
    const WARN: &str = r#"{"state": "warn", "text": "t", "findings": [{"state": "warn",
        "about": "relay", "text": "Memory is short.", "advice": null}]}"#;
    const BAD: &str = r#"{"state": "bad", "text": "t", "findings": [{"state": "bad",
        "about": "evidence", "text": "The log was set back.", "advice": null}]}"#;
    const STRANGE: &str = r#"{"state": "bad", "text": "t", "findings": [{"state": "bad",
        "about": "relay", "text": "A\u001b[31m\nB.", "advice": "C\u0007."}]}"#;
    const WORSE: &str = r#"{"state": "worse", "text": "t", "findings": []}"#;
    for (verdict, code, words) in [
        (GOOD, 0, "kube-apiserver was not asked"),
        (WARN, 0, "reports: Memory is short"),
        (BAD, 2, "reports: The log was set back"),
        (STRANGE, 2, "reports: A\u{fffd}[31m\u{fffd}B. C\u{fffd}"),
        // The verdict of a relay of another version can have a state that doctor does not know.
        (WORSE, 2, "not the JSON of a relay's /status"),
        ("1", 2, "not the JSON of a relay's /status"),
        ("null", 2, "no verdict in /status, because the relay is too old"),
    ] {
        let relay = saying(verdict);
        let url = format!("http://{}", relay.address());
        let output = run_command(&["doctor", "--interval", "0s", "--relay", &url], Path::new("/"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last != "VERDICT: OK" && last.contains(words), "{words}: {text}");
    }
}

/// Runs `doctor` for one relay. Checks that it repeats each warning and each fault in the relay's
/// own verdict, and no notes. Returns the exit status and the text.
fn passed_on(relay: &Relay) -> (Option<i32>, String) {
    let admin = admin(relay);
    let output = run_command(&["doctor", "--interval", "0s", "--relay", &admin], Path::new("/"));
    let text = String::from_utf8(output.stdout).unwrap();
    let status = http::get(relay.admin(), "/status").unwrap().json();
    for finding in status["verdict"]["findings"].as_array().unwrap() {
        let words = finding["text"].as_str().unwrap().trim_end_matches('.');
        let is_worth = ["warn", "bad"].iter().any(|state| finding["state"] == *state);
        let is_told = text.contains(&format!("{admin} reports: {words}"));
        assert_eq!(is_told, is_worth, "{words}: {text}");
    }
    (output.status.code(), text)
}

#[test]
fn an_output_that_is_down_and_a_queue_that_is_nearly_full_are_told_in_the_relays_words() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let queue = "[queue]\nmax_bytes = \"256KiB\"\n[shutdown]\ndrain_timeout = \"200ms\"\n";
    let relay = Relay::start(&to_sink(nobody, queue));
    let share = || {
        let metrics = relay.metrics();
        metrics.value("queue_needed_bytes", &[]) / metrics.value("queue_capacity_bytes", &[])
    };
    for seed in 0..100 {
        if share() > 0.82 {
            break;
        }
        assert_eq!(relay.post(&generated_batch(seed, 5, 1000)).status, 200);
    }
    relay.wait_for_log("output down, events are kept", PATIENCE);
    let (code, text) = passed_on(&relay);
    assert_eq!(code, Some(0), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("VERDICT: OK so far – "), "{text}");
    assert!(last.contains("reports: The queue is nearly full"), "{text}");
    assert!(last.contains("Output consumer is down; its events are kept ("), "{text}");
}

#[test]
fn one_relay_with_two_names_counts_once() {
    let consumer = HttpSink::accepting();
    let relay = Relay::start(&to_sink(consumer.address(), ""));
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let other = Relay::start(&to_sink(consumer.address(), ""));
    assert_eq!(other.post(&generated_batch(2, 10, 700)).status, 200);
    other.wait_until_delivered(PATIENCE);
    let localhost = format!("http://localhost:{}", relay.admin().port());
    let names = [admin(&relay), localhost, admin(&other)];
    let names = names.each_ref().map(String::as_str);
    let (_, json) = doctor(&names, &[]);
    assert_eq!(json["relay"]["accepted"], 20, "{json:#}");
    assert_eq!(json["relay"]["instances"].as_array().unwrap().len(), 2, "{json:#}");
    let notes = json["relay"]["notes"].to_string();
    assert!(notes.contains("is the same process as http://127.0.0.1"), "{notes}");
    // One kube-apiserver has two names.
    let apiserver = Apiserver::single();
    apiserver.count(0, |it| it.generated = Some(20));
    let port = apiserver.address().port();
    let urls = [format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}")];
    let more = ["--apiserver", urls[0].as_str(), "--apiserver", urls[1].as_str()];
    let (code, json) = doctor(&names, &more);
    assert_eq!((code, &json["apiserver"]["generated"]), (Some(0), &20.into()), "{json:#}");
    relay.finish(Backlog::Empty);
    other.finish(Backlog::Empty);
}

#[test]
fn losses_before_a_restart_in_order_are_known_and_those_before_a_kill_are_not() {
    let directory = TempDir::new().unwrap();
    let consumer = HttpSink::accepting();
    let queue = format!("[queue]\ndirectory = {:?}\n", directory.path());
    let batch = generated_batch(1, 10, 700);
    let refusing = all_but(&batch);
    let more = format!("rejected = {{ action = \"drop\" }}\n{queue}");
    let mut relay = Relay::start(&to_sink(refusing.address(), &more));
    assert_eq!(relay.metrics().value("queue_earlier_events", &[]), 0.0);
    give_up(&relay, &batch);
    let (code, json) = doctor(&[&admin(&relay)], &[]);
    assert_eq!((code, &json["lost"]), (Some(1), &10.into()), "{json:#}");
    relay.stop();

    let apiserver = Apiserver::single();
    let older = |sent: u64| {
        apiserver.count(0, |it| {
            it.started -= 3600.0;
            it.generated = Some(sent);
        });
    };
    older(20);
    let address = format!("http://{}", apiserver.address());
    let mut relay = Relay::start(&to_sink(consumer.address(), &queue));
    assert_eq!(relay.post(&generated_batch(2, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    for more in [vec![], vec!["--apiserver", address.as_str()]] {
        let (code, json) = doctor(&[&admin(&relay)], &more);
        assert_eq!((code, &json["lost"]), (Some(1), &10.into()), "{json:#}");
        assert!(json.to_string().contains("before its last restart, the last at"), "{json:#}");
    }
    relay.kill();

    let relay = Relay::start(&to_sink(consumer.address(), &queue));
    relay.wait_until_delivered(PATIENCE);
    let (code, json) = doctor(&[&admin(&relay)], &["--apiserver", &address]);
    let words = "the losses of earlier processes with its queue.directory are unknown";
    assert!(code == Some(1) && json.to_string().contains(words), "{json:#}");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_restart_in_order_with_a_directory_that_lost_nothing_leaves_nothing_unknown() {
    let directory = TempDir::new().unwrap();
    let consumer = HttpSink::accepting();
    let config =
        to_sink(consumer.address(), &format!("[queue]\ndirectory = {:?}\n", directory.path()));
    let mut relay = Relay::start(&config);
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    relay.stop();
    let relay = Relay::start(&config);
    assert_eq!(relay.post(&generated_batch(2, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let (code, json) = doctor(&[&admin(&relay)], &[]);
    assert_eq!((code, &json["verdict"]), (Some(0), &"ok".into()), "{json:#}");
    assert!(!json.to_string().contains("earlier processes"), "{json:#}");
    relay.finish(Backlog::Empty);
}
