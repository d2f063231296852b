//! `/status` and `/status/history`, on a real relay whose consumers work, fail, are slow or are
//! down. Most figures are compared with what the consumers have seen.

use std::collections::BTreeSet;

use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::prelude::*;
use crate::support::requests::to_http;
use crate::support::setup;
use crate::support::witness::NAME;

/// A key with which an output sends one batch after another, each as a separate request.
const IN_TURN: &str = "concurrency = 1\n";

fn status(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

fn output(relay: &Relay) -> Value {
    status(relay)["outputs"][0].clone()
}

fn addresses(relay: &Relay) -> Vec<Value> {
    output(relay)["addresses"].as_array().unwrap().clone()
}

/// Returns a field of each row.
fn of(rows: &[Value], field: &str) -> Vec<Value> {
    rows.iter().map(|row| row[field].clone()).collect()
}

fn history(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status/history").unwrap().json()
}

/// Posts batches one after another, each when the one before has been delivered.
fn post(relay: &Relay, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        assert_accepted(&relay.post(&generated_batch(seed, 5, 900)), 5);
        relay.wait_until_delivered(PATIENCE);
    }
}

/// Returns the number of bytes in the bodies of the requests to this target, as the consumer read
/// them.
fn body_bytes(sink: &HttpSink, target: &str) -> u64 {
    let requests = sink.requests();
    let of_target = requests.iter().filter(|request| request.target == target);
    of_target.map(|request| request.body.len() as u64).sum()
}

/// Method: three URLs of one consumer differ only in their paths. The first answers with 500, the
/// second with 401 and the third with 200, so each batch ends up at the third.
#[test]
fn urls_of_one_host_and_port_have_rows_of_their_own() {
    let sink = HttpSink::start(|request| {
        Answer::status(match request.target.as_str() {
            "/broken-SECRET" => 500,
            "/forbidden?key=SECRET" => 401,
            _ => 200,
        })
    });
    let at = sink.address();
    let urls = ["broken-SECRET", "forbidden?key=SECRET", "good"];
    let urls = urls.map(|path| format!("http://{at}/{path}"));
    let relay = Relay::start(&to_http(&urls, IN_TURN));
    post(&relay, 0..4);
    let rows = addresses(&relay);
    assert_eq!(of(&rows, "endpoint"), [0, 1, 2]);
    assert_eq!(of(&rows, "address"), [at.to_string(), at.to_string(), at.to_string()]);
    assert_eq!(of(&rows, "state"), ["down", "down", "up"]);
    assert_eq!(of(&rows, "used"), [false, false, true]);
    assert_eq!(of(&rows, "requests"), [1, 1, 4]);
    let errors = [json!({ "status_5xx": 1 }), json!({ "status_4xx": 1 }), json!({})];
    assert_eq!(of(&rows, "errors"), errors);
    let targets = ["/broken-SECRET", "/forbidden?key=SECRET", "/good"];
    assert_eq!(of(&rows, "sent_bytes"), targets.map(|target| body_bytes(&sink, target)));
    let text = |row: usize| rows[row]["last_error"].as_str().unwrap().to_owned();
    assert!(text(0).contains("answered 500") && text(1).contains("answered 401"), "{rows:?}");
    assert!(rows[2]["last_error"].is_null() && rows[2]["last_error_seconds_ago"].is_null());
    for row in &rows[..2] {
        // The state began with the error.
        let [error, state] = ["last_error_seconds_ago", "state_seconds"];
        let [error, state] = [error, state].map(|field| row[field].as_f64().unwrap());
        assert!((error - state).abs() < 0.1 && error < 60.0, "{row}");
        assert!(row["latency_p50_seconds"].is_null(), "nothing was acknowledged: {row}");
    }
    assert!(rows[2]["latency_p99_seconds"].is_number());
    let output = output(&relay);
    assert_eq!(output["errors"], json!({ "status_5xx": 1, "status_4xx": 1 }));
    assert_eq!((&output["strategy"], &output["shape"]), (&"failover".into(), &"event".into()));
    assert!(output["latency_p50_seconds"].is_number() && output["latency_p99_seconds"].is_number());
    assert_eq!(
        output["sent_bytes"],
        rows.iter().map(|row| row["sent_bytes"].as_u64().unwrap()).sum::<u64>()
    );
    let all = http::get(relay.admin(), "/status").unwrap().text();
    assert!(!all.contains("SECRET") && !all.contains("good"), "a path is shown: {all}");
    relay.finish(Backlog::Empty);
}

/// A single URL whose consumer refuses events is not down, but its row has the errors.
#[test]
fn a_refusal_of_events_is_an_error_of_its_address() {
    let sink = HttpSink::start(|_| Answer::status(400));
    let relay = Relay::start(&to_sink(sink.address(), IN_TURN));
    assert_accepted(&relay.post(&generated_batch(1, 1, 900)), 1);
    // The address counts an error first, and then the output does.
    wait_until("a refusal", PATIENCE, || output(&relay)["errors"]["status_4xx"].is_u64());
    let row = &addresses(&relay)[0];
    assert!(
        row["last_error"].is_string() && row["errors"]["status_4xx"].as_u64() >= Some(1),
        "{row}"
    );
    assert_eq!((&row["requests"], &row["state"]), (&row["errors"]["status_4xx"], &"up".into()));
}

#[test]
fn a_dead_address_is_passed_over_and_its_row_says_why_and_since_when() {
    for strategy in ["failover", "round_robin"] {
        let (mut dead, live) = (HttpSink::accepting(), HttpSink::accepting());
        dead.close();
        let urls = [&dead, &live].map(|sink| format!("http://{}/", sink.address()));
        let more = format!("strategy = \"{strategy}\"\n{IN_TURN}");
        let relay = Relay::start(&to_http(&urls, &more));
        post(&relay, 0..6);
        assert_eq!(output(&relay)["strategy"], strategy);
        let rows = addresses(&relay);
        assert_eq!(of(&rows, "state"), ["down", "up"], "{strategy}");
        assert_eq!(of(&rows, "requests"), [1, 6]);
        assert_eq!(of(&rows, "errors"), [json!({ "connect": 1 }), json!({})]);
        assert_eq!(of(&rows, "sent_bytes"), [json!(0), json!(body_bytes(&live, "/"))]);
        let error = rows[0]["last_error"].as_str().unwrap();
        assert!(error.to_lowercase().contains("refused"), "{error}");
        let down = rows[0]["state_seconds"].as_f64().unwrap();
        wait_until("time to pass", PATIENCE, || {
            addresses(&relay)[0]["state_seconds"].as_f64() >= Some(down + 1.0)
        });
        // The address works again. This is a new state, whose time begins at 0.
        dead.reopen();
        let back = wait_for("the trial", PATIENCE, || {
            let row = addresses(&relay)[0].clone();
            (row["state"] != "down").then_some(row)
        });
        assert!(back["state_seconds"].as_f64() < Some(5.0), "{back}");
        assert_eq!(back["errors"], json!({ "connect": 1 }), "a probe is no attempt");
        relay.finish(Backlog::Empty);
    }
}

/// Nothing listens at the second address. The relay cannot know that before a delivery tries it.
#[test]
fn an_address_that_no_delivery_has_tried_is_unknown_and_not_up() {
    let (live, mut dead) = (HttpSink::accepting(), HttpSink::accepting());
    dead.close();
    let urls = [&live, &dead].map(|sink| format!("http://{}/", sink.address()));
    let relay = Relay::start(&to_http(&urls, "strategy = \"failover\"\n"));
    post(&relay, 0..2);
    let rows = addresses(&relay);
    assert_eq!([&rows[0]["state"], &rows[1]["state"]], ["up", "unknown"]);
    let name = output(&relay)["name"].as_str().unwrap().to_owned();
    let count =
        |state| relay.metrics().get("output_addresses", &[("output", &name), ("state", state)]);
    assert_eq!((count("up"), count("unknown")), (Some(1.0), Some(1.0)));
    assert_eq!(status(&relay)["verdict"]["state"], "good");
    relay.finish(Backlog::Empty);
}

/// Method: one of two consumers stops answering. The relay gives up the request there, and sends it
/// to the other one.
#[test]
fn the_request_that_an_address_leaves_unanswered_is_a_timeout_there() {
    let silent = HttpSink::start(|request| match request.number {
        0..4 => Answer::status(200),
        _ => Answer::never(),
    });
    let live = HttpSink::accepting();
    let urls = [&silent, &live].map(|sink| format!("http://{}/", sink.address()));
    let more = format!("strategy = \"round_robin\"\n{IN_TURN}");
    let relay = Relay::start(&to_http(&urls, &more));
    post(&relay, 0..12);
    let rows = addresses(&relay);
    assert_eq!(of(&rows, "errors"), [json!({ "timeout": 1 }), json!({})]);
    assert_eq!(of(&rows, "requests"), [5, 8]);
    assert_ne!(of(&rows, "state")[0], "up");
    assert!(
        rows[0]["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("no response and no progress for 10 s"))
    );
    assert_eq!(output(&relay)["errors"], json!({ "timeout": 1 }));
    assert_eq!(of(&rows, "sent_bytes"), [body_bytes(&silent, "/"), body_bytes(&live, "/")]);
    relay.finish(Backlog::Empty);
}

#[test]
fn latencies_are_those_of_each_consumer() {
    let slow = |millis: u64| {
        HttpSink::start(move |_| Answer::status(200).after(Duration::from_millis(millis)))
    };
    let (fast, slow) = (slow(100), slow(500));
    let urls = [&fast, &slow].map(|sink| format!("http://{}/", sink.address()));
    let delivered = "[queue]\nacknowledge = \"delivered\"\n";
    let more = format!("strategy = \"round_robin\"\n{IN_TURN}{delivered}");
    let relay = Relay::start(&to_http(&urls, &more));
    // The relay answers when the consumer has acknowledged the batch. On a busy machine, both are
    // late, so the latency is compared with the time that the sender has waited.
    let mut waited = [Vec::new(), Vec::new()];
    for seed in 0..16 {
        let (before, begun) = (fast.count(), Instant::now());
        assert_accepted(&relay.post(&generated_batch(seed, 5, 900)), 5);
        waited[usize::from(fast.count() == before)].push(begun.elapsed().as_secs_f64());
    }
    waited.iter_mut().for_each(|waited| waited.sort_by(f64::total_cmp));
    let rows = addresses(&relay);
    assert_eq!([&rows[0]["requests"], &rows[1]["requests"]], [8, 8]);
    // The buckets of the relay's latencies are 7 % wide.
    for (row, (wanted, waited)) in rows.iter().zip([0.1, 0.5].into_iter().zip(&waited)) {
        let p50 = row["latency_p50_seconds"].as_f64().unwrap();
        let p99 = row["latency_p99_seconds"].as_f64().unwrap();
        assert!((wanted * 0.93..waited[4] * 1.07).contains(&p50), "{row} of {waited:?}");
        assert!((p50..waited[7] * 1.07).contains(&p99), "{row} of {waited:?}");
    }
    // Half of the output's batches took 100 ms, and the slowest ones 500 ms.
    let output = output(&relay);
    let p99 = output["latency_p99_seconds"].as_f64().unwrap();
    assert!((0.46..waited[1][7].max(waited[0][7]) * 1.07).contains(&p99), "{output}");
    assert!(output["latency_p50_seconds"].as_f64() < Some(waited[0][7] * 1.07), "{output}");
    relay.finish(Backlog::Empty);
}

#[test]
fn the_row_of_a_tcp_consumer_counts_writes_bytes_and_breaks() {
    let (relay, mut sink) = setup::start("", "");
    post(&relay, 0..5);
    let row = addresses(&relay)[0].clone();
    assert_eq!((&row["endpoint"], &row["requests"]), (&0.into(), &5.into()));
    assert_eq!(row["sent_bytes"], sink.bytes());
    assert_eq!((&row["errors"], &row["state"]), (&json!({}), &"up".into()));
    // The replay window of 100 ms is part of the latency.
    let p50 = row["latency_p50_seconds"].as_f64().unwrap();
    assert!((0.09..1.0).contains(&p50), "{row}");
    sink.close();
    // The end of an idle connection is not a failure. The relay connects again when it has
    // something to send.
    assert_accepted(&relay.post(&generated_batch(5, 5, 900)), 5);
    wait_until("a failure", PATIENCE, || addresses(&relay)[0]["errors"]["connect"].is_u64());
    sink.reopen();
    relay.wait_until_delivered(PATIENCE);
    let row = addresses(&relay)[0].clone();
    let errors = row["errors"].as_object().unwrap().values().map(|it| it.as_u64().unwrap());
    assert_eq!(row["requests"], 6 + errors.sum::<u64>(), "{row}");
    assert_eq!(row["errors"], output(&relay)["errors"], "each error was at this address");
    relay.finish(Backlog::Empty);
}

#[test]
fn the_row_of_a_lumberjack_consumer_counts_windows() {
    let sink = LumberjackSink::with(Options::default(), |_, reply| {
        if reply.rest(Duration::from_millis(50)) {
            reply.acknowledge(5);
        }
        true
    });
    let relay = Relay::start(&format!(
        "{BASE}[[output]]\nname = \"out\"\ntype = \"lumberjack\"\naddresses = [\"{}\"]\n",
        sink.address()
    ));
    post(&relay, 0..6);
    let row = addresses(&relay)[0].clone();
    assert_eq!((sink.windows().len(), &row["requests"]), (6, &6.into()));
    assert_eq!(row["sent_bytes"], output(&relay)["sent_bytes"]);
    assert!(row["sent_bytes"].as_u64() > Some(0));
    let p50 = row["latency_p50_seconds"].as_f64().unwrap();
    assert!((0.046..0.5).contains(&p50), "{row}");
    relay.finish(Backlog::Empty);
}

#[test]
fn outputs_without_addresses_have_no_rows_and_no_strategy() {
    let relay = Relay::start(&format!("{BASE}[[output]]\nname = \"out\"\ntype = \"stdout\"\n"));
    post(&relay, 0..1);
    let output = output(&relay);
    assert_eq!((&output["addresses"], &output["strategy"]), (&json!([]), &Value::Null));
    assert!(output["latency_p50_seconds"].is_number(), "{output}");
    relay.finish(Backlog::Empty);
}

#[test]
fn events_that_are_kept_back_or_changed_are_counted_by_what_was_done() {
    let sink = HttpSink::accepting();
    let filter = "[output.filter]\ndeduplicate = \"1h\"\nshape = \"ecs\"\n";
    let relay = Relay::start(&to_sink(sink.address(), &format!("{IN_TURN}{filter}")));
    let batch = generated_batch(1, 10, 900);
    for _ in 0..3 {
        assert_accepted(&relay.post(&batch), 10);
        relay.wait_until_delivered(PATIENCE);
    }
    let output = output(&relay);
    assert_eq!(output["shape"], "ecs");
    let wanted =
        json!({ "dropped": 0, "duplicate": 20, "lowered": 0, "trimmed": 0, "redacted": 0 });
    assert_eq!((&output["filtered"], &output["delivered_events"]), (&wanted, &10.into()));
    assert_eq!(output["existing_events"], 0);
    relay.finish(Backlog::Empty);
}

/// Posts this many batches. Returns how many got a 200, and how many got a 429.
fn fill(relay: &Relay, posts: u64) -> (u64, u64) {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..posts {
        match relay.post(&generated_batch(seed, 10, 1000)).status {
            200 => taken += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
    }
    (taken, refused)
}

#[test]
fn for_how_long_a_filter_has_dropped_everything_is_measured_until_it_lets_an_event_through() {
    let sink = HttpSink::accepting();
    let relay =
        Relay::start(&to_sink(sink.address(), "filter = { match = [{ users = [\"nobody\"] }] }\n"));
    assert!(output(&relay)["all_dropped_seconds"].is_null());
    let seed = std::cell::Cell::new(0);
    wait_until("two samples", PATIENCE * 2, || {
        seed.set(seed.get() + 1);
        assert_accepted(&relay.post(&generated_batch(seed.get(), 5, 900)), 5);
        output(&relay)["all_dropped_seconds"].as_f64() >= Some(9.0)
    });
    assert_eq!(sink.count(), 0);
    let event = json!({ "level": "Metadata", "auditID": "a", "stage": "ResponseComplete",
        "verb": "get", "user": { "username": "nobody" } });
    assert_accepted(&relay.post(event.to_string().as_bytes()), 1);
    wait_until("an event that leaves", PATIENCE, || {
        output(&relay)["all_dropped_seconds"].is_null()
    });
    relay.finish(Backlog::Empty);
}

/// Method: `/status` is asked once, after a single burst, so only the relay can know the rates.
#[test]
fn a_single_answer_has_the_rates_of_the_last_minute_and_top_prints_them() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), IN_TURN));
    post(&relay, 0..20);
    let status = status(&relay);
    let output = &status["outputs"][0];
    for (rate, count) in [
        (&status["accepted_events_per_second"], 100.0),
        (&output["delivered_events_per_second"], 100.0),
        (&status["received_bytes_per_second"], 90_000.0),
        (&output["sent_bytes_per_second"], 90_000.0),
    ] {
        // The rate covers at least 10 and at most 70 seconds.
        let rate = rate.as_f64().unwrap_or_default();
        assert!(rate > count / 71.0, "{rate} of {count}: {status}");
    }
    assert!(output["delivered_events_per_second"].as_f64() <= Some(10.0), "{status}");
    let url = format!("http://{}", relay.admin());
    let screen = run_command(&["top", "--once", &url], Path::new("/"));
    let screen = String::from_utf8(screen.stdout).unwrap();
    let line = screen.lines().find(|line| line.starts_with("in ")).unwrap();
    let rate = line.split_whitespace().nth(1).and_then(|rate| rate.parse::<f64>().ok());
    assert!(rate > Some(1.0), "{screen}");
    relay.finish(Backlog::Empty);
}

/// Method: a consumer answers with 500 for some time, and with 200 to a few requests, in turn.
/// After some turns, the verdict does not change with each response, and does not say that events
/// are late when none waits. The consumer turns down 140 requests in a row: a shorter run of
/// failures may belong to single events while it takes others, and the output stays up.
#[test]
fn an_output_that_fails_and_works_in_turn_has_a_steady_state() {
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let sink = HttpSink::start(move |request| {
        let fails = !well.load(Ordering::Relaxed) && request.number % 150 < 140;
        Answer::status(if fails { 500 } else { 200 })
    });
    let relay = Relay::start(&to_sink(sink.address(), IN_TURN));
    assert_eq!(output(&relay)["unsteady"], false);
    let steady =
        Value::from("Output consumer keeps failing and recovering (500 Internal Server Error).");
    wait_until("several turns", PATIENCE, || {
        assert_accepted(&relay.post(&generated_batch(0, 5, 900)), 5);
        // While it is up, a large share of failed requests is enough.
        let output = output(&relay);
        output["unsteady"] == true && output["up"] == false
    });
    let mut phases = BTreeSet::new();
    let mut seed = 0;
    wait_until("both phases", PATIENCE, || {
        assert_accepted(&relay.post(&generated_batch(seed, 5, 900)), 5);
        seed += 1;
        for _ in 0..5 {
            let status = status(&relay);
            let output = &status["outputs"][0];
            phases.insert(output["up"].as_bool());
            assert_eq!(status["verdict"]["text"], steady, "{status}");
            assert_eq!(output["trouble"], "warn");
            if output["backlog_events"] == 0 {
                assert!(!status["verdict"].to_string().contains(" is late"), "{status}");
            }
        }
        phases.len() == 2
    });
    is_well.store(true, Ordering::Relaxed);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Method: the certificate of the consumer has expired. The text about it contains no number that
/// changes, and the certificate is listed beside the relay's own.
#[test]
fn the_expired_certificate_of_a_consumer_is_told_without_a_number_that_changes() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.expired_server, true));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let url = format!("https://localhost:{}/", sink.address().port());
    let client = &certificates.client;
    let own = format!(
        "tls = {{ ca = {:?}, certificate = {:?}, private_key = {:?} }}\n",
        certificates.ca, client.certificate, client.key
    );
    let relay = Relay::start(&to_http(&[url], &own));
    assert_accepted(&relay.post(&generated_batch(1, 1, 900)), 1);
    let certificate = |status: &Value, role: &str| {
        let all = status["certificates"].as_array().unwrap().clone();
        all.into_iter().find(|it| it["role"] == role).map(|it| it["not_after_seconds"].as_f64())
    };
    let status = wait_for("two retries", PATIENCE, || {
        let status = status(&relay);
        (status["outputs"][0]["errors"]["tls"].as_u64() >= Some(2)).then_some(status)
    });
    let text = status["verdict"].to_string();
    assert!(text.contains("certificate expired on 20"), "{text}");
    assert!(!text.contains("UNIX") && !text.contains(" ago"), "{text}");
    assert!(text.contains("consumer's operators have to replace it"), "{text}");
    let now = status["time_seconds"].as_f64();
    assert!(certificate(&status, "server").unwrap() < now, "{status}");
    assert!(certificate(&status, "client").unwrap() > now, "{status}");
    relay.finish(Backlog::Stable);
}

/// Senders give up later than a test can wait; the unit tests of the verdict cover that. This test
/// checks that a real relay measures the time.
#[test]
fn a_full_queue_says_what_it_does_for_how_long_and_how_many_it_refuses() {
    let full = "[queue]\nmax_bytes = \"64KiB\"\nretry_after = \"3s\"\n";
    let (relay, _sink) = setup::start_with_dead_consumer("", full);
    let before = status(&relay);
    assert_eq!(before["queue"]["full_seconds"], Value::Null);
    assert_eq!(before["refused_429_per_second"], 0.0);
    let none = json!({ "seconds": null, "shut_seconds": null, "longest_seconds": 0.0,
        "longest_shut_seconds": 0.0, "long_ended_seconds_ago": null,
        "long_shut_ended_seconds_ago": null, "long_shut_requests": 0 });
    let wanted = json!({ "with_429": none, "with_503": none, "permanent": none });
    assert_eq!(before["refusals"], wanted);
    let (taken, refused) = fill(&relay, 40);
    assert!(taken > 0 && refused > 0);
    let status = status(&relay);
    let queue = &status["queue"];
    assert_eq!((&queue["full"], &queue["when_full"]), (&true.into(), &"reject".into()));
    assert_eq!(queue["retry_after_seconds"], 3.0);
    let full = queue["full_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&full), "{queue}");
    let requests = &status["listeners"][0]["requests"];
    assert_eq!((&requests["200"], &requests["429"]), (&taken.into(), &refused.into()));
    assert_eq!(requests["503"], 0, "a status that never occurred is there too");
    // The rate covers at least ten seconds.
    let rate = status["refused_429_per_second"].as_f64().unwrap();
    let most = refused as f64 / 10.0;
    assert!(rate > 0.0 && rate <= most + 1e-9, "{rate} of {most}");
    assert_eq!(status["acknowledge"], "queued");
    assert_eq!(status["last_lost_seconds_ago"], Value::Null, "a refused batch is not lost");
    let status = wait_for("refusals through two samples", PATIENCE * 2, || {
        fill(&relay, 5);
        let status = self::status(&relay);
        (status["refusals"]["with_429"]["shut_seconds"].as_f64() >= Some(9.0)).then_some(status)
    });
    let refused = &status["refusals"];
    let with_429 = &refused["with_429"];
    assert!(with_429["seconds"].as_f64() >= with_429["shut_seconds"].as_f64(), "{refused}");
    assert_eq!(with_429["longest_seconds"], with_429["seconds"]);
    assert_eq!(with_429["longest_shut_seconds"], with_429["shut_seconds"]);
    assert_eq!(refused["with_503"], none);
    assert!(status["queue"]["full_seconds"].as_f64() >= Some(full + 1.0), "{status}");
    relay.finish(Backlog::Stable);
}

#[test]
fn losses_have_a_time_where_they_occur() {
    for (when_full, by_queue) in [("drop_newest", true), ("drop_oldest", false)] {
        let full = format!("[queue]\nmax_bytes = \"64KiB\"\nwhen_full = \"{when_full}\"\n");
        let (relay, _sink) = setup::start_with_dead_consumer("", &full);
        let lost = |status: &Value| {
            let [queue, output] = [&status["queue"], &status["outputs"][0]];
            [status, queue, output].map(|it| it["last_lost_seconds_ago"].as_f64())
        };
        assert_eq!(lost(&status(&relay)), [None; 3]);
        // While all batches are on the wire, the oldest can't be dropped.
        wait_until("a loss", PATIENCE, || {
            relay.post(&generated_batch(1, 10, 1000));
            status(&relay)["lost_events"].as_u64() > Some(0)
        });
        let status = status(&relay);
        let [any, queue, output] = lost(&status);
        assert!(any.is_some_and(|any| any < 60.0), "{status}");
        assert_eq!((queue.is_some(), output.is_some()), (by_queue, !by_queue), "{status}");
        assert!(status["lost_events_per_second"].as_f64() > Some(0.0), "{status}");
        assert_eq!(status["queue"]["when_full"], when_full);
        relay.finish(Backlog::Stable);
    }
}

#[test]
fn the_acknowledgement_and_the_port_are_those_in_force() {
    let sink = HttpSink::accepting();
    let delivered = "[queue]\nacknowledge = \"delivered\"\n";
    let relay = Relay::start(&to_sink(sink.address(), delivered));
    let before = status(&relay);
    assert_eq!(before["acknowledge"], "delivered");
    assert_eq!(before["listeners"][0]["listener"], "127.0.0.1:0");
    assert_eq!(before["listeners"][0]["address"], relay.address().to_string());
    assert!(before["revision"].as_str().is_some_and(|revision| !revision.is_empty()));
    assert_eq!(before["evidence"], Value::Null);
    // A reload can change `acknowledge`.
    let file = relay.config_file();
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("\"delivered\"", "\"queued\"")).unwrap();
    wait_until("the reload", PATIENCE, || status(&relay)["acknowledge"] == "queued");
    let spool = Spool::new();
    let durable = Relay::start(&to_sink(sink.address(), &spool.queue("")));
    assert_eq!(status(&durable)["acknowledge"], "synced");
    durable.finish(Backlog::Empty);
    relay.finish(Backlog::Empty);
}

#[test]
fn the_evidence_shows_its_size_its_checkpoint_and_its_witnesses() {
    let directory = TempDir::new().unwrap();
    let (mut witness, evidence) = Witness::of_a_log(directory.path());
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), &evidence));
    post(&relay, 0..1);
    // Before the first checkpoint, the witness has cosigned the empty log.
    let shown = wait_for("a checkpoint and a cosignature", PATIENCE, || {
        let evidence = status(&relay)["evidence"].clone();
        let times = [
            &evidence["last_checkpoint_seconds_ago"],
            &evidence["witnesses"][0]["last_seconds_ago"],
        ];
        times.iter().all(|time| time.is_number()).then_some(evidence)
    });
    assert!(shown["size"].as_u64() > Some(0), "{shown}");
    assert!(shown["last_checkpoint_seconds_ago"].as_f64() < Some(60.0), "{shown}");
    assert_eq!(shown["witnesses"].as_array().unwrap().len(), 1);
    assert_eq!((&shown["witnesses"][0]["name"], &shown["errors"]), (&NAME.into(), &json!({})));
    witness.go_away();
    post(&relay, 1..2);
    wait_until("an error of the witness", PATIENCE, || {
        status(&relay)["evidence"]["errors"]["witness"].is_u64()
    });
    relay.finish(Backlog::Empty);
}

/// Method: the relay gets about two batches a second for a bit more than two steps of ten seconds.
#[test]
fn the_history_has_the_rates_of_what_flows_and_the_reloads() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), IN_TURN));
    let first = http::get(relay.admin(), "/status/history").unwrap();
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let first = first.json();
    assert_eq!((&first["interval_seconds"], &first["points"]), (&10.into(), &360.into()));
    assert_eq!(first["time_seconds"], json!([]));
    relay.signal(libc::SIGHUP);
    relay.wait_for_log("config reloaded", PATIENCE);
    let mut sent = 0;
    let history = wait_for("two steps", PATIENCE * 2, || {
        post(&relay, sent..sent + 1);
        sent += 1;
        std::thread::sleep(Duration::from_millis(500));
        let history = history(&relay);
        (history["time_seconds"].as_array().unwrap().len() >= 2).then_some(history)
    });
    let status = status(&relay);
    assert_eq!(history["host"], status["host"]);
    let start = history["start_time_seconds"].as_f64().unwrap();
    assert!((start - status["start_time_seconds"].as_f64().unwrap()).abs() < 0.01);
    let times: Vec<f64> =
        history["time_seconds"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
    assert_eq!(times[1] - times[0], 10.0);
    let now = status["time_seconds"].as_f64().unwrap();
    assert!((now - 15.0..=now + 1.0).contains(&times[1]), "{times:?} at {now}");
    let sum = |line: &Value| -> f64 {
        let line = line.as_array().unwrap();
        assert_eq!(line.len(), times.len());
        line.iter().map(|point| point.as_f64().unwrap()).sum::<f64>() * 10.0
    };
    // The newest batches are not in a step yet.
    let (events, out) =
        (sum(&history["accepted_events_per_second"]), &history["outputs"]["consumer"]);
    let accepted = status["accepted_events"].as_f64().unwrap();
    assert!(events > accepted * 0.5 && events <= accepted + 0.1, "{events} of {accepted}");
    let delivered = sum(&out["delivered_events_per_second"]);
    assert!((delivered - events).abs() <= 5.1, "{delivered} of {events}");
    assert!(sum(&history["received_bytes_per_second"]) > events * 900.0);
    assert!(sum(&out["sent_bytes_per_second"]) > delivered * 900.0);
    for line in ["refused_429_per_second", "lost_events_per_second"] {
        assert_eq!(sum(&history[line]), 0.0, "{line}");
    }
    assert!(sum(&history["memory_bytes"]) > 1e6);
    assert_eq!(history["reloads"].as_array().unwrap().len(), 1);
    let reload = &history["reloads"][0];
    assert_eq!(reload["result"], "success");
    assert!(reload["time_seconds"].as_f64().is_some_and(|at| at >= start && at <= now), "{reload}");
    let only_get = http::post(relay.admin(), "/status/history", "text/plain", b"").unwrap();
    assert_eq!(only_get.status, 405);
    let unknown = http::get(relay.admin(), "/status/histor").unwrap();
    assert!(unknown.status == 404 && unknown.text().contains(" /status/history "));
    relay.finish(Backlog::Empty);
}

#[test]
fn an_output_that_a_reload_removes_leaves_the_history() {
    let (stays, leaves) = (HttpSink::accepting(), TcpSink::start());
    let second = leaves.output("leaves", "required = false\n");
    let config = to_sink(stays.address(), IN_TURN);
    let relay = Relay::start(&format!("{config}{second}"));
    let names = |history: &Value| -> Vec<String> {
        history["outputs"].as_object().unwrap().keys().cloned().collect()
    };
    wait_until("both", PATIENCE, || names(&history(&relay)) == ["consumer", "leaves"]);
    std::fs::write(relay.config_file(), &config).unwrap();
    relay.wait_for_log("config reloaded", PATIENCE);
    assert_eq!(names(&history(&relay)), ["consumer"]);
    relay.finish(Backlog::Empty);
}
