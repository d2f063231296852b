//! The command `doctor`, where the relays' own counts or words decide: what they have turned away,
//! whose clock an age is of, and one relay with two names.

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

/// Checks that the verdict is unknown, and that a note says so with these words.
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
fn batches_answered_413_or_400_are_never_ok() {
    for (body, status, reason) in
        [(vec![b' '; 300 * 1024], 413, "too_large: 5"), (b"[]".to_vec(), 400, "invalid: 5")]
    {
        let consumer = HttpSink::accepting();
        let relay = Relay::start(&to_sink(consumer.address(), "[limits]\nmax_body = \"256KiB\"\n"));
        for _ in 0..5 {
            assert_eq!(relay.post(&body).status, status);
        }
        assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
        relay.wait_until_delivered(PATIENCE);
        let apiserver = Apiserver::single();
        apiserver.count(0, |it| it.generated = Some(10));
        let address = format!("http://{}", apiserver.address());
        for more in [vec![], vec!["--apiserver", address.as_str()]] {
            let found = doctor(&[&admin(&relay)], &more);
            assert_unknown(&found, &format!("requests refused for good ({reason})"));
            assert_unknown(&found, "here at least 1 of them, with an unknown number of events");
            let text = found.1.to_string();
            assert!(!text.contains("this alone is no loss"), "{text}");
        }
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn an_age_is_told_by_the_clock_of_the_machine_that_reports_it() {
    for minutes in [-10.0, 0.0, 10.0] {
        let clock = now() + minutes * 60.0;
        let begin = clock - 120.0;
        let relay = HttpSink::start(move |request| {
            let text = format!(
                "P_event_total 600\nP_error_total{{plugin=\"queue\"}} 0\n\
                 P_last_event_timestamp_seconds {begin}\n\
                 P_requests_rejected_since_timestamp_seconds {begin}\n\
                 P_requests_rejected_since_last_accepted {}\n\
                 P_requests_rejected_total{{reason=\"queue_full\"}} {}\n\
                 process_start_time_seconds {}\n",
                70 + request.number,
                70 + request.number,
                begin - 600.0
            );
            let date = UNIX_EPOCH + Duration::from_secs_f64(clock);
            let answer = Answer::status(200).header("date", &httpdate::fmt_http_date(date));
            answer.body(text.replace("P_", "kube_audit_forwarder_"))
        });
        let (code, json) = doctor(&[&format!("http://{}", relay.address())], &[]);
        assert_eq!((code, &json["lost"]), (Some(0), &0.into()), "{minutes}: {json:#}");
        let notes = json["relay"]["notes"].to_string();
        let ages = ["119 s", "120 s", "121 s"].map(|age| format!("refused for {age} "));
        let all = json.to_string();
        assert!(ages.iter().any(|age| all.contains(age)), "{minutes}: {notes}");
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

#[test]
fn a_filter_that_keeps_back_everything_is_never_ok() {
    let consumer = HttpSink::accepting();
    let filter = "filter = { match = { users = [\"nobody\"] } }\n";
    let relay = Relay::start(&to_sink(consumer.address(), filter));
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_for_metrics("the filter", PATIENCE, |metrics| {
        (metrics.sum("filtered_events_total") == 10.0).then_some(())
    });
    let found = doctor(&[&admin(&relay)], &[]);
    assert_unknown(&found, "its filter has kept back all 10 events since the start");
    relay.finish(Backlog::Empty);
}

/// The page of a healthy relay, with this verdict in its `/status`, and these metrics besides.
fn saying(verdict: &'static str, more: &'static str) -> HttpSink {
    HttpSink::start(move |request| {
        let text = match request.target.as_str() {
            "/status" => format!("{{\"queue\": {{\"fault\": null}}, \"verdict\": {verdict}}}"),
            _ => format!(
                "P_event_total 10\nP_error_total{{plugin=\"out\"}} 0\n\
                 P_output_events_total{{output=\"out\"}} 10\n{more}\
                 process_start_time_seconds 1.7e9\n"
            ),
        };
        Answer::status(200).body(text.replace("P_", "kube_audit_forwarder_"))
    })
}

#[test]
fn the_verdict_is_never_better_than_the_relays_own() {
    const GOOD: &str = r#"{"state": "good", "text": "t", "findings": []}"#;
    const WARN: &str = r#"{"state": "warn", "text": "t", "findings": [{"state": "warn",
        "about": "relay", "text": "Memory is short.", "advice": null}]}"#;
    const BAD: &str = r#"{"state": "bad", "text": "t", "findings": [{"state": "bad",
        "about": "evidence", "text": "The log was set back.", "advice": null}]}"#;
    let tampered = "P_evidence_errors_total{reason=\"tampered\"} 1\n";
    for (verdict, more, code, words) in [
        (GOOD, "", 0, "kube-apiserver was not asked"),
        (WARN, "", 0, "says of itself: Memory is short"),
        (BAD, "", 2, "says of itself: The log was set back"),
        (GOOD, tampered, 2, "1 events were changed in the queue's files"),
        (GOOD, "P_queue_writable 0\n", 2, "the queue can't store"),
        ("1", "", 0, "what the relay says about itself is unknown"),
    ] {
        let relay = saying(verdict, more);
        let url = format!("http://{}", relay.address());
        let output = run_command(&["doctor", "--interval", "0s", "--relay", &url], Path::new("/"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last != "VERDICT: OK" && last.contains(words), "{words}: {text}");
    }
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
    // One kube-apiserver with two names.
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
fn losses_before_a_restart_of_a_relay_with_a_directory_are_unknown_and_never_ok() {
    let directory = TempDir::new().unwrap();
    let consumer = HttpSink::accepting();
    let queue = format!("[queue]\ndirectory = {:?}\n", directory.path());
    let refusing = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = format!("rejected = {{ action = \"drop\" }}\n{queue}");
    let losing = to_sink(refusing, &more).replace("retry = {", "retry = { max_elapsed = \"1s\",");
    let mut relay = Relay::start(&losing);
    assert_eq!(relay.metrics().value("queue_earlier_events", &[]), 0.0);
    assert_eq!(relay.post(&generated_batch(1, 10, 700)).status, 200);
    relay.wait_for_log("events given up and counted", PATIENCE);
    let (code, json) = doctor(&[&admin(&relay)], &[]);
    assert_eq!((code, &json["lost"]), (Some(1), &10.into()), "{json:#}");
    relay.stop();

    let relay = Relay::start(&to_sink(consumer.address(), &queue));
    assert_eq!(relay.post(&generated_batch(2, 10, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let apiserver = Apiserver::single();
    apiserver.count(0, |it| {
        it.started -= 3600.0;
        it.generated = Some(20);
    });
    let address = format!("http://{}", apiserver.address());
    for more in [vec![], vec!["--apiserver", address.as_str()]] {
        let found = doctor(&[&admin(&relay)], &more);
        assert_unknown(&found, "what earlier processes with its queue.directory have lost is");
    }
    // A kube-apiserver that is as young as the relay has sent nothing to an earlier process.
    apiserver.count(0, |it| {
        it.started += 3600.0;
        it.generated = Some(10);
    });
    let (code, json) = doctor(&[&admin(&relay)], &["--apiserver", &address]);
    assert_eq!(code, Some(0), "{json:#}");
    relay.finish(Backlog::Empty);
}
