//! The admin address: its routes, its limits, and its metrics. They are complete from the start,
//! and no client can add a series.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use socket2::{Domain, Socket, Type};

use crate::support::answers::NO_EVENTS;
use crate::support::h2::H2;
use crate::support::http::{Response, get};
use crate::support::peers::promtool_check;
use crate::support::prelude::*;
use crate::support::relay::{Stdout, revision};
use crate::support::setup::{config, start};

fn ask(relay: &Relay, path: &str) -> Response {
    get(relay.admin(), path).unwrap()
}

#[test]
fn every_route_answers_and_no_other() {
    let (relay, mut sink) = start("", "");
    for (path, body) in
        [("/livez", "ok\n"), ("/healthz", "ok\n"), ("/readyz", "ok\n"), ("/readyz?x=y", "ok\n")]
    {
        let response = ask(&relay, path);
        assert_eq!((response.status, response.text().as_str()), (200, body), "{path}");
    }
    assert_eq!(ask(&relay, "/").status, 200);
    let metrics = ask(&relay, "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for path in ["/metric", "/metrics/", "/readyzz", "/audit", "/status/x", "//", "/debug/pprof"] {
        assert_eq!(ask(&relay, path).status, 404, "{path}");
    }
    let verbose = ask(&relay, "/readyz?verbose").text();
    for line in [
        "[+]started ok",
        "[+]serving ok",
        "[+]queue-room ok",
        "[+]queue-writable ok",
        "readyz check passed",
    ] {
        assert!(verbose.lines().any(|found| found == line), "{line}: {verbose}");
    }
    assert!(verbose.contains("output out"), "{verbose}");

    // A dead consumer is shown in `/readyz?verbose`, but does not make the relay unready.
    sink.close();
    assert_accepted(&relay.post(&generated_batch(1, 10, 600)), 10);
    wait_until("the output's failure", PATIENCE, || {
        let verbose = ask(&relay, "/readyz?verbose").text();
        verbose.contains("[-]output out") && !verbose.contains("not connected yet")
    });
    assert_eq!(ask(&relay, "/readyz").status, 200);
    let response = ask(&relay, "/status");
    assert_eq!(response.header("content-type"), Some("application/json"));
    let status = response.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["revision"], revision());
    let metrics = relay.metrics();
    let build = [("version", env!("CARGO_PKG_VERSION")), ("revision", revision())];
    assert_eq!(metrics.value("build_info", &build), 1.0, "the three places say the same");
    assert!(status["uptime_seconds"].is_u64(), "{status}");
    let address = relay.address().to_string();
    assert_eq!(status["listeners"][0]["listener"], "127.0.0.1:0");
    assert_eq!(status["listeners"][0]["address"], address.as_str());
    assert_eq!(status["queue"]["events"], 10);
    assert_eq!((&status["accepted_events"], &status["lost_events"]), (&10.into(), &0.into()));
    for field in ["memory_bytes", "time_seconds", "start_time_seconds", "last_event_seconds_ago"] {
        assert!(status[field].as_f64().is_some_and(|value| value >= 0.0), "{field}: {status}");
    }
    assert!(status["time_seconds"].as_f64() > status["start_time_seconds"].as_f64(), "{status}");
    assert!(status["last_rejected"].is_null(), "{status}");
    let output = &status["outputs"][0];
    assert_eq!((output["name"].as_str(), output["type"].as_str()), (Some("out"), Some("tcp")));
    assert_eq!(
        (output["up"].as_bool(), output["backlog_events"].as_u64()),
        (Some(false), Some(10))
    );
    assert!(output["last_error"].is_string() && output["lag_seconds"].is_number(), "{status}");
    wait_until("the next retry", PATIENCE, || {
        ask(&relay, "/status").json()["outputs"][0]["next_retry_seconds"].is_number()
    });
    sink.reopen();
    relay.finish(Backlog::Empty);
}

/// Balancers check a server by GET, by HEAD or, as HAProxy does by default, by OPTIONS.
#[test]
fn the_pages_for_probes_answer_head_and_options_by_their_state() {
    let (relay, _sink) = start("", "");
    let ask = |method: &str, path: &str| {
        let mut stream = TcpStream::connect(relay.admin()).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    };
    for path in ["/livez", "/readyz", "/healthz", "/readyz?verbose"] {
        let (status, body) = ask("GET", path);
        assert!(status == "200" && !body.is_empty(), "{path}");
        assert_eq!(ask("HEAD", path), (status.clone(), String::new()), "{path}");
        assert_eq!(ask("OPTIONS", path), (status, body), "{path}");
    }
    for path in ["/", "/metrics", "/status"] {
        assert_eq!(ask("HEAD", path), ("200".to_owned(), String::new()), "{path}");
        assert_eq!(ask("OPTIONS", path).0, "405", "{path}");
    }
    assert_eq!(ask("HEAD", "/nowhere").0, "404");
    relay.finish(Backlog::Empty);
}

#[test]
fn only_get_is_answered_and_nothing_is_ingested() {
    let (relay, sink) = start("", "");
    let mut client = Client::connect(relay.admin()).unwrap();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "ODD"] {
        let response = client.request(method, "/metrics", &[], NO_EVENTS.as_bytes()).unwrap();
        assert_eq!(response.status, 405, "{method}");
        assert!(response.header("allow").is_some_and(|allow| allow.contains("GET")), "{method}");
    }
    assert_eq!(client.request("GET", "/livez", &[], b"").unwrap().status, 200);
    let metrics = relay.metrics();
    assert_eq!((metrics.sum("requests_total"), metrics.value("event_total", &[])), (0.0, 0.0));
    // The listener of events serves no admin routes.
    for path in ["/metrics", "/readyz", "/status", "/"] {
        assert_eq!(get(relay.address(), path).unwrap().status, 405, "{path}");
    }
    relay.finish(Backlog::Empty);
    assert_eq!(sink.count(), 0);
}

#[test]
fn the_65th_connection_takes_the_place_of_the_one_that_is_idle_longest() {
    let (relay, _sink) = start("", "");
    let admin = relay.admin();
    let mut held: Vec<Client> = (0..64).map(|_| Client::connect(admin).unwrap()).collect();
    // Each connection gets an answer, so all of them have been accepted. The first connection is
    // asked last, so the last one in the list has been idle longest.
    for client in held.iter_mut().rev() {
        assert_eq!(client.request("GET", "/livez", &[], b"").unwrap().status, 200);
    }
    for _ in 0..3 {
        assert_eq!(get(admin, "/livez").unwrap().status, 200);
        assert!(held.pop().unwrap().is_closed_by_server());
        held.insert(0, Client::connect(admin).unwrap());
        assert_eq!(held[0].request("GET", "/readyz", &[], b"").unwrap().status, 200);
    }
    assert_accepted(&relay.post(NO_EVENTS.as_bytes()), 0);
    for client in &mut held[..60] {
        assert_eq!(client.request("GET", "/readyz", &[], b"").unwrap().status, 200);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn probes_are_answered_whatever_holds_all_places_of_the_admin_address() {
    let (relay, _sink) = start("", "");
    let admin = relay.admin();
    let silent = b"";
    let half = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ";
    // Nobody reads the responses. They fill the socket, so that the next write blocks.
    let unread = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(400);
    for beginning in [&silent[..], &half[..], &unread[..]] {
        let hold = || {
            let mut client = Client::connect(admin).unwrap();
            socket2::SockRef::from(client.stream().socket()).set_recv_buffer_size(4096).unwrap();
            client.send(beginning).unwrap();
            client
        };
        let held: Vec<Client> = (0..70).map(|_| hold()).collect();
        for path in ["/livez", "/readyz", "/healthz", "/metrics", "/status"] {
            assert_eq!(get(admin, path).unwrap().status, 200, "{path}");
        }
        drop(held);
    }
    relay.finish(Backlog::Empty);
}

/// The connection of a probe, and 600 newer ones without a request, are accepted at once.
#[test]
fn probes_are_answered_in_a_flood_of_new_connections() {
    let (relay, _sink) = start("", "");
    let admin: socket2::SockAddr = relay.admin().into();
    for round in 0..20 {
        relay.signal(libc::SIGSTOP);
        let mut probe = Client::connect(relay.admin()).unwrap();
        probe.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let silent = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.connect(&admin).unwrap();
            socket
        };
        let flood: Vec<Socket> = (0..600).map(|_| silent()).collect();
        relay.signal(libc::SIGCONT);
        let answer = probe.read_response().unwrap();
        assert_eq!(answer.status, 200, "probe {round}");
        drop(flood);
        // A later connection is accepted after all of them.
        assert_eq!(get(relay.admin(), "/livez").unwrap().status, 200);
    }
    relay.finish(Backlog::Empty);
}

fn series(metrics: &Metrics) -> BTreeSet<String> {
    let line = |line: &str| line.rsplit_once(' ').expect("a series and its value").0.to_owned();
    metrics
        .text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(line)
        .collect()
}

#[test]
fn every_series_exists_at_0_from_the_start() {
    let sink = TcpSink::start();
    let stdout = "[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n";
    let relay = Relay::start(&config(&sink, "", stdout));
    let metrics = relay.metrics();
    let listener = ("listener", "127.0.0.1:0");
    let mut expected: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("event_total", vec![]),
        ("last_event_timestamp_seconds", vec![]),
        ("error_total", vec![("plugin", "queue")]),
        ("request_duration_seconds_count", vec![listener]),
        ("received_bytes_total", vec![listener]),
        ("connections", vec![listener]),
        ("in_flight_bytes", vec![]),
        ("queue_bytes", vec![]),
        ("queue_events", vec![]),
        ("queue_dropped_events_total", vec![("reason", "drop_oldest")]),
        ("queue_dropped_events_total", vec![("reason", "drop_newest")]),
    ];
    let reasons = "invalid too_large queue_full in_flight_full unauthorized timeout not_found method media_type \
                   shutting_down disk delivery_timeout";
    expected.extend(
        reasons
            .split_whitespace()
            .map(|reason| ("requests_rejected_total", vec![("reason", reason)])),
    );
    let codes = "200 400 401 404 405 408 413 415 429 503 1xx 2xx 3xx 4xx 5xx";
    expected.extend(
        codes.split_whitespace().map(|code| ("requests_total", vec![listener, ("code", code)])),
    );
    let levels = "None Metadata Request RequestResponse other";
    expected.extend(levels.split_whitespace().map(|level| ("level_total", vec![("level", level)])));
    for output in ["out", "stdout"] {
        expected.push(("error_total", vec![("plugin", output)]));
        let names = "output_events_total output_bytes_total output_retries_total output_backlog_bytes \
                     output_backlog_events output_lag_seconds output_start_events output_delivery_seconds_count";
        expected.extend(names.split_whitespace().map(|name| (name, vec![("output", output)])));
        let reasons =
            "resolve connect tls timeout closed status_4xx status_429 status_5xx protocol";
        let of = |reason| ("output_errors_total", vec![("output", output), ("reason", reason)]);
        expected.extend(reasons.split_whitespace().map(of));
        let actions = "dropped duplicate lowered trimmed redacted";
        let of = |action| ("filtered_events_total", vec![("output", output), ("action", action)]);
        expected.extend(actions.split_whitespace().map(of));
    }
    for (name, labels) in &expected {
        assert_eq!(metrics.get(name, labels), Some(0.0), "{name} {labels:?}");
    }
    assert_eq!(metrics.get("queue_capacity_bytes", &[]), Some(256.0 * 1024.0 * 1024.0));
    assert_eq!(metrics.get("queue_writable", &[]), Some(1.0));
    assert_eq!(metrics.get("output_lag_max_seconds", &[("output", "out")]), Some(30.1));
    let build = metrics.all("build_info");
    assert!(build.len() == 1 && build[0].1 == 1.0, "{build:?}");
    assert!(metrics.get("process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 0.0));
    assert!(metrics.get("process_start_time_seconds", &[]).is_some());
    relay.finish(Backlog::Empty);
}

#[test]
fn no_client_can_add_a_series_or_fill_the_log() {
    let (relay, _sink) = start("path_prefix = \"/audit\"", "");
    assert_accepted(&relay.post(&generated_batch(1, 3, 600)), 3);
    relay.wait_until_delivered(PATIENCE);
    let before = series(&relay.metrics());
    relay.wait_for_log("output up", PATIENCE);
    let lines = relay.log_lines().len();
    let begun = Instant::now();
    let mut client = Client::connect(relay.address()).unwrap();
    for index in 0..50 {
        for method in [format!("ODD{index}"), "POST".to_owned()] {
            let path = format!("/odd{index}\"{{}}?x={index}");
            let headers = [
                ("User-Agent", format!("odd-{index}")),
                ("X-Request-Id", path.clone()),
                ("Content-Type", format!("odd/{index}")),
            ];
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let response = client.request(&method, &path, &headers, b"odd").unwrap();
            assert!(response.status == 400 || response.status == 404, "{}", response.status);
            if response.status == 400 {
                client = Client::connect(relay.address()).unwrap();
            }
        }
        let event = format!(
            r#"{{"level":"Odd{index}","auditID":"odd\n{index}","stage":"Panic","verb":"odd{index}","user":{{"username":"odd"}}}}"#
        );
        assert_accepted(&relay.post(event.as_bytes()), 1);
        let kind = format!(r#"{{"kind":"Odd{index}","apiVersion":"odd/v{index}"}}"#);
        assert_eq!(relay.post(kind.as_bytes()).status, 400);
        let mut garbage = Client::connect(relay.address()).unwrap();
        garbage.send(format!("\x1b[31mODD{index}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(garbage.read_response().unwrap().status, 400);
        drop(H2::connect(relay.address()).unwrap());
    }
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    assert_eq!(series(&metrics), before);
    assert_eq!(metrics.value("level_total", &[("level", "other")]), 50.0);
    // A sender causes at most one line in ten seconds for each of the two reasons.
    let most = 2 * (1 + begun.elapsed().as_secs() / 10);
    let more = relay.log_lines().len() - lines;
    assert!(more as u64 <= most, "a line for each request: {:?}", relay.log_lines());
    // Garbage on the admin address adds no series either.
    let mut garbage = Client::connect(relay.admin()).unwrap();
    garbage.stream().write_all(b"\x00\x01\r\n\r\n").unwrap();
    drop(garbage.read_response());
    assert_eq!(series(&relay.metrics()), before);
    relay.finish(Backlog::Empty);
}

/// Tests that need peers.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn promtool_finds_nothing_wrong_with_the_metrics() {
        let sink = TcpSink::start();
        let stdout = "[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n";
        let relay = Relay::with(&config(&sink, "", stdout)).stdout(Stdout::Collected).start();
        assert_eq!(promtool_check(&relay.metrics().text), Ok(()));
        assert_accepted(&relay.post(&generated_batch(1, 10, 600)), 10);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(promtool_check(&relay.metrics().text), Ok(()));
        relay.finish(Backlog::Empty);
    }
}
