//! `deduplicate` over restarts and reloads: a repeated event is dropped only if the consumer has
//! it. After a restart it is sent once more. It is also sent if it was never meant for the output,
//! or was dropped by earlier rules.

use crate::support::prelude::*;

const DEDUPLICATE: &str = "filter.deduplicate = \"1h\"\n";

/// Rules that choose all generated events, and rules that choose none of them.
const CHOOSES: &str = "filter.match = { verbs = [\"update\"] }\n";
const CHOOSES_NOT: &str = "filter.match = { verbs = [\"watch\"] }\n";

/// Returns an http output that sends one request at a time.
fn output(name: &str, sink: &HttpSink, more: &str) -> String {
    sink.output(name, &format!("{QUICK}concurrency = 1\n{more}"))
}

fn spool(directory: &Path) -> String {
    format!("[queue]\ndirectory = \"{}\"\n", text(&directory.join("spool")))
}

fn duplicates(metrics: &Metrics, output: &str) -> f64 {
    metrics.value("filtered_events_total", &[("output", output), ("action", "duplicate")])
}

/// Posts a batch, and waits until the outputs have finished it.
fn post(relay: &Relay, batch: &[u8]) {
    assert_eq!(relay.post(batch).status, 200);
    relay.wait_until_delivered(PATIENCE);
}

/// Returns how often the consumer has accepted the events of a batch.
fn count(sink: &HttpSink, batch: &[u8]) -> usize {
    let wanted = events_of(batch);
    accepted_events(sink).iter().filter(|event| wanted.contains(event)).count()
}

/// Method: the same batch is posted twice to each of two processes, one after the other.
#[test]
fn what_comes_again_after_a_restart_leaves_once_more() {
    for is_durable in [false, true] {
        let directory = TempDir::new().unwrap();
        let queue = if is_durable { spool(directory.path()) } else { String::new() };
        let sink = HttpSink::accepting();
        let config = format!("{BASE}{queue}{}", output("a", &sink, DEDUPLICATE));
        let batch = generated_batch(1, 10, 900);
        for start in 1..=2 {
            let relay = Relay::start(&config);
            post(&relay, &batch);
            post(&relay, &batch);
            assert_eq!(count(&sink, &batch), 10 * start, "start {start}");
            assert_eq!(duplicates(&relay.metrics(), "a"), 10.0, "start {start}");
            relay.finish(Backlog::Empty);
        }
    }
}

/// Method: the output's rules choose none of the events. Then a reload changes the rules, and all
/// events are posted again.
#[test]
fn what_other_rules_had_dropped_leaves_when_it_comes_again() {
    let sink = HttpSink::accepting();
    let batch = generated_batch(1, 10, 900);
    let config =
        |filter: &str| format!("{BASE}{}", output("a", &sink, &format!("{DEDUPLICATE}{filter}")));
    let relay = Relay::start(&config(CHOOSES_NOT));
    post(&relay, &batch);
    assert_eq!(count(&sink, &batch), 0);
    relay.reload(&config(CHOOSES), "success");
    for duplicate in [0.0, 10.0] {
        post(&relay, &batch);
        assert_same_set(&accepted_events(&sink), &events_of(&batch));
        assert_eq!(duplicates(&relay.metrics(), "a"), duplicate);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn an_output_that_is_removed_and_added_again_gets_what_comes_again() {
    for is_durable in [false, true] {
        let directory = TempDir::new().unwrap();
        let queue = if is_durable { spool(directory.path()) } else { String::new() };
        let (a, b) = (HttpSink::accepting(), HttpSink::accepting());
        let alone = format!("{BASE}{queue}{}", output("a", &a, DEDUPLICATE));
        let both = format!("{alone}{}", output("b", &b, DEDUPLICATE));
        let relay = Relay::start(&both);
        relay.reload(&alone, "success");
        let batch = generated_batch(1, 10, 900);
        post(&relay, &batch);
        relay.reload(&both, "success");
        post(&relay, &batch);
        assert_eq!((count(&a, &batch), count(&b, &batch)), (10, 10));
        relay.finish(Backlog::Empty);
    }
}
