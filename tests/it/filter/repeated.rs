//! `deduplicate` over restarts and reloads: a repeated event is dropped only if the consumer has
//! it. It is sent if it was given up, was never meant for the output, or was dropped by earlier
//! rules.

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

#[test]
fn what_was_given_up_leaves_when_it_comes_again_after_a_restart() {
    let [with_refused, later] = [generated_batch(1, 40, 900), generated_batch(2, 40, 900)];
    let refused = events_of(&with_refused)[21].clone();
    let refuses = refused.clone();
    let first = refusing(422, move |event| *event == refuses);
    let directory = TempDir::new().unwrap();
    let common = format!("{BASE}{}", spool(directory.path()));
    let mut relay = Relay::start(&format!("{common}{}", output("a", &first, DEDUPLICATE)));
    for batch in [&with_refused, &later] {
        post(&relay, batch);
    }
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "a")]), 1.0);
    relay.stop();

    let second = HttpSink::accepting();
    let relay = Relay::start(&format!("{common}{}", output("a", &second, DEDUPLICATE)));
    post(&relay, &with_refused);
    assert!(accepted_events(&second).contains(&refused), "its repetition is hidden");
    // Events delivered after it are still known.
    let before = duplicates(&relay.metrics(), "a");
    post(&relay, &later);
    assert_eq!(duplicates(&relay.metrics(), "a") - before, 40.0);
    assert_eq!(count(&second, &later), 0);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_an_output_never_had_leaves_when_it_comes_again_after_a_restart() {
    let (a, b) = (HttpSink::accepting(), HttpSink::accepting());
    let [before, after] = [generated_batch(1, 10, 900), generated_batch(2, 10, 900)];
    let directory = TempDir::new().unwrap();
    let alone = format!("{BASE}{}{}", spool(directory.path()), output("a", &a, DEDUPLICATE));
    let both = format!("{alone}{}", output("b", &b, DEDUPLICATE));
    let mut relay = Relay::start(&alone);
    post(&relay, &before);
    relay.reload(&both, "success");
    post(&relay, &after);
    // `post` waits only for the output with which the relay started.
    wait_until("the new output has its events", PATIENCE, || count(&b, &after) == 10);
    assert_eq!((count(&a, &before), count(&b, &before), count(&b, &after)), (10, 0, 10));
    for restart in 1..=2 {
        relay.stop();
        relay = Relay::start(&both);
        post(&relay, &before);
        post(&relay, &after);
        let wanted = (10, 10, 10, 10);
        let counts = (count(&a, &before), count(&a, &after), count(&b, &before), count(&b, &after));
        assert_eq!(counts, wanted, "restart {restart}");
    }
    relay.finish(Backlog::Empty);
}

/// Method: the output's rules choose none of the events. Then the rules change, by a reload or at
/// the next start, and all events are posted again. After that the relay starts again with the same
/// rules.
#[test]
fn what_other_rules_had_dropped_leaves_when_it_comes_again_after_a_restart() {
    for reloads in [false, true] {
        let sink = HttpSink::accepting();
        let batch = generated_batch(1, 10, 900);
        let directory = TempDir::new().unwrap();
        let config = |filter: &str| {
            let output = output("a", &sink, &format!("{DEDUPLICATE}{filter}"));
            format!("{BASE}{}{output}", spool(directory.path()))
        };
        let mut relay = Relay::start(&config(CHOOSES_NOT));
        post(&relay, &batch);
        assert_eq!(count(&sink, &batch), 0);
        if reloads {
            relay.reload(&config(CHOOSES), "success");
        }
        relay.stop();
        for start in 1..=2 {
            relay = Relay::start(&config(CHOOSES));
            post(&relay, &batch);
            assert_same_set(&accepted_events(&sink), &events_of(&batch));
            assert_eq!(duplicates(&relay.metrics(), "a"), if start == 1 { 0.0 } else { 10.0 });
            relay.stop();
        }
    }
}

/// Method: as before, but the rules are in a policy file that is rewritten in place.
#[test]
fn what_an_earlier_policy_had_dropped_leaves_when_it_comes_again_after_a_restart() {
    const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n  \
                          verbs: [\"update\"]\n- level: RequestResponse\n";
    let sink = HttpSink::accepting();
    let [batch, other] = [generated_batch(1, 10, 900), generated_batch(2, 10, 900)];
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let filter = format!("{DEDUPLICATE}filter.policy = \"{}\"\n", text(&file));
    let config = format!("{BASE}{}{}", spool(directory.path()), output("a", &sink, &filter));
    let mut relay = Relay::start(&config);
    post(&relay, &batch);
    assert_eq!(count(&sink, &batch), 0);
    std::fs::write(&file, POLICY.replace("update", "watch")).unwrap();
    wait_until("the policy is read again", PATIENCE, || relay.reloads("success") >= 1.0);
    // The filter uses the new policy from its next batch on.
    post(&relay, &other);
    assert_eq!(count(&sink, &other), 10);
    relay.stop();
    let relay = Relay::start(&config);
    post(&relay, &batch);
    post(&relay, &other);
    assert_eq!((count(&sink, &batch), count(&sink, &other)), (10, 10));
    relay.finish(Backlog::Empty);
}

/// Method: the consumer accepts nothing at first, so the events have been sent but not accepted
/// when new rules drop them. The memory of sent events passes from one delivery to the next, and
/// must not have these events.
#[test]
fn what_new_rules_drop_before_it_was_accepted_leaves_when_it_comes_again() {
    for is_durable in [false, true] {
        let directory = TempDir::new().unwrap();
        let queue = if is_durable { spool(directory.path()) } else { String::new() };
        let (deaf, hearing) = (HttpSink::start(|_| Answer::status(503)), HttpSink::accepting());
        let config = |sink: &HttpSink, filter: &str| {
            format!("{BASE}{queue}{}", output("a", sink, &format!("{DEDUPLICATE}{filter}")))
        };
        let relay = Relay::start(&config(&deaf, CHOOSES));
        let batch = generated_batch(1, 10, 900);
        assert_eq!(relay.post(&batch).status, 200);
        deaf.wait_for_count(1, PATIENCE);
        relay.reload(&config(&hearing, CHOOSES_NOT), "success");
        relay.wait_until_delivered(PATIENCE);
        relay.reload(&config(&hearing, CHOOSES), "success");
        post(&relay, &batch);
        assert_same_set(&accepted_events(&hearing), &events_of(&batch));
        relay.finish(Backlog::Empty);
    }
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
