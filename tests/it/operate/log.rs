//! The log on standard error: a reader that does not read delays nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::prelude::*;

/// Returns a config whose log has lines for each request and delivery.
fn config(format: &str, sink: &HttpSink, more: &str) -> String {
    format!(
        "log = {{ format = \"{format}\", level = \"trace\" }}\n\
         admin = {{ address = \"127.0.0.1:0\" }}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"consumer\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n{more}",
        sink.address()
    )
}

fn dropped(metrics: &Metrics) -> f64 {
    metrics.value("log_dropped_lines_total", &[])
}

/// Posts one event after another until lines are dropped. Returns the number of events.
fn post_until_lines_are_dropped(relay: &Relay, client: &mut Client, from: u64) -> u64 {
    for number in from..from + 20_000 {
        let body = numbered::list(0, number..number + 1);
        let response = client.post("/", "application/json", &body).expect("an answer");
        assert_eq!(response.status, 200, "{}", response.text());
        // The GET only causes more lines.
        assert_eq!(client.request("GET", "/", &[], &[]).expect("an answer").status, 405);
        if number % 50 == 0 && dropped(&relay.metrics()) > 0.0 {
            return number + 1 - from;
        }
    }
    panic!("no line is dropped: {}", relay.metrics().text);
}

/// Method: the reader of the relay's log does not read, or has closed the pipe, while requests
/// cause lines until some are dropped. Requests, deliveries, a reload and the stop must work as
/// usual, and the dropped lines must be counted. Even with a hung consumer, a second signal must
/// end the process.
#[test]
fn a_log_that_nobody_reads_holds_up_no_answer_no_delivery_no_reload_and_no_end() {
    let spool = Spool::new();
    let in_files = spool.queue("");
    let drain = "[shutdown]\ndrain_timeout = \"100s\"\n";
    type Silence = fn(&Relay);
    let rounds: [(&str, &str, Silence); 3] = [
        ("text", "", Relay::close_log),
        ("json", &in_files, Relay::hold_log),
        ("text", drain, Relay::hold_log),
    ];
    for (format, more, silence) in rounds {
        let hangs = Arc::new(AtomicBool::new(false));
        let is_hung = Arc::clone(&hangs);
        let sink = HttpSink::start(move |_| match is_hung.load(Ordering::SeqCst) {
            true => Answer::never(),
            false => Answer::status(200),
        });
        let mut relay = Relay::start(&config(format, &sink, more));
        assert_eq!(dropped(&relay.metrics()), 0.0, "the series is there from the start");
        silence(&relay);
        let mut client = Client::connect(relay.address()).unwrap();
        let sent = post_until_lines_are_dropped(&relay, &mut client, 0);
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..sent));
        relay.signal(libc::SIGHUP);
        wait_until("the reload", PATIENCE, || relay.reloads("success") == 1.0);
        let before = dropped(&relay.metrics());
        let status = http::get(relay.admin(), "/status").unwrap().json();
        assert!(status["log_dropped_lines"].as_f64() >= Some(before), "{status:#}");
        if more != drain {
            assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
            relay.settle(Backlog::Empty);
            // Nobody reads the last lines either.
            relay.stop();
            continue;
        }
        hangs.store(true, Ordering::SeqCst);
        assert_eq!(relay.post(&numbered::list(1, 0..1)).status, 200);
        relay.signal(libc::SIGTERM);
        wait_until("the drain", PATIENCE, || {
            http::get(relay.admin(), "/readyz").unwrap().status == 503
        });
        // A signal within 10 ms of the first counts as the same signal, sent twice.
        std::thread::sleep(Duration::from_millis(100));
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.wait().code(), Some(1));
    }
}

#[test]
fn a_log_that_is_read_again_goes_on_and_says_how_many_lines_are_missing() {
    let sink = HttpSink::accepting();
    let mut relay = Relay::start(&config("json", &sink, ""));
    relay.hold_log();
    let mut client = Client::connect(relay.address()).unwrap();
    let sent = post_until_lines_are_dropped(&relay, &mut client, 0);
    relay.wait_until_delivered(PATIENCE);
    relay.read_log();
    // The log must report every line that was dropped.
    let told = |relay: &Relay| -> f64 {
        let fields = relay.log_fields();
        let told = fields.iter().filter(|fields| {
            fields["message"] == "log lines were dropped: nobody reads stderr, or too slowly"
        });
        told.map(|fields| fields["lines"].as_f64().expect("a number")).sum()
    };
    wait_until("the number of dropped lines", PATIENCE, || {
        let dropped = dropped(&relay.metrics());
        dropped > 0.0 && told(&relay) == dropped
    });
    // Then the log has whole lines again, up to the last one. The new batches have two events each,
    // because lines about the earlier batches may still be in the pipe.
    let accepted = |events: u64| {
        let fields = relay.log_fields();
        let of = |fields: &&Value| {
            fields["message"] == "batch accepted" && fields["events"].as_u64() == Some(events)
        };
        fields.iter().filter(of).count() as u64
    };
    for number in 0..5 {
        let body = numbered::list(1, 2 * number..2 * number + 2);
        assert_eq!(client.post("/", "application/json", &body).unwrap().status, 200);
    }
    wait_until("the lines of what came last", PATIENCE, || accepted(2) == 5);
    assert!(accepted(1) < sent, "{} of {sent}", accepted(1));
    relay.settle(Backlog::Empty);
    relay.stop();
    relay.wait_for_log(messages::ENDED, PATIENCE);
    for line in relay.log_lines() {
        let parsed: Result<Value, _> = serde_json::from_str(&line);
        assert!(parsed.is_ok(), "{line}");
    }
}
