//! `required = false`: an output whose consumer is down or hangs does not affect the others. Its
//! events are kept as long as nothing else needs the space. Then only this output loses its oldest
//! events, and they are counted.

use crate::support::metrics::assert_conservation;
use crate::support::prelude::*;

const EVENTS: usize = 10;

/// Returns a config with a required output to one consumer, and an optional output `archive` to the
/// other.
fn config(required: SocketAddr, archive: SocketAddr, more: &str) -> String {
    format!(
        "{}[shutdown]\ndrain_timeout = \"500ms\"\n[[output]]\nname = \"archive\"\ntype = \"http\"\n\
         required = false\nurls = [\"http://{archive}/\"]\nconcurrency = 1\n{QUICK}",
        to_sink(required, &format!("concurrency = 1\n{more}")),
    )
}

/// Returns queues, in memory and on disk, that are too small for 60 batches of ten events and 10
/// KB.
fn queues(spool: &Spool) -> [String; 2] {
    let memory = "[queue]\nmax_bytes = \"64KiB\"\n".to_owned();
    [memory, spool.queue("max_bytes = \"512KiB\"\nsegment_bytes = \"32KiB\"\n")]
}

/// Posts batches one after the other, so that the required output never needs space for more than
/// one of them. Returns their events.
fn post(relay: &Relay, seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    for seed in seeds {
        let batch = generated_batch(seed, EVENTS, 1000);
        let answer = relay.post(&batch);
        assert_eq!(answer.status, 200, "batch {seed}: {}", answer.text());
        sent.extend(events_of(&batch));
        relay.wait_until_delivered(PATIENCE);
    }
    sent
}

fn of_archive(metrics: &Metrics, name: &str) -> f64 {
    metrics.value(name, &[("output", "archive")])
}

/// Checks that only the optional output has lost events, and that this is logged. Returns how many
/// events it has lost.
fn assert_lost_alone(relay: &Relay) -> usize {
    let metrics = relay.metrics();
    assert_conservation(&metrics, &["consumer", "archive"]);
    let lost = metrics.value("error_total", &[("plugin", "archive")]);
    assert!(lost > 0.0);
    assert_eq!(metrics.sum("error_total"), lost);
    assert_eq!(metrics.sum("queue_dropped_events_total"), 0.0, "that is for when_full");
    assert_eq!(metrics.sum("requests_rejected_total"), 0.0);
    let told = "the queue needs room: the oldest events of an output that is not required are dropped and counted";
    relay.wait_for_log(told, PATIENCE);
    let told = relay.log_fields().into_iter().filter(|fields| fields["message"] == told);
    let told: Vec<_> = told.map(|fields| fields["output"].as_str().map(str::to_owned)).collect();
    assert!(told.iter().all(|output| output.as_deref() == Some("archive")));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let lost = lost as usize;
    lost
}

/// Method: an optional output's consumer is down while more batches are posted than the queue has
/// room for, in memory and on disk. The required output must receive everything at once. Only the
/// optional one may lose events, and once its consumer is back, it must receive exactly the newest
/// events.
#[test]
fn a_dead_optional_output_costs_nobody_else_anything_and_gets_the_newest_when_it_is_back() {
    let spool = Spool::new();
    for queue in queues(&spool) {
        let (required, mut archive) = (HttpSink::accepting(), HttpSink::accepting());
        archive.close();
        let relay = Relay::start(&config(required.address(), archive.address(), &queue));
        let sent = post(&relay, 0..60);
        assert!(accepted_events(&required) == sent, "the required output got something else");
        let lost = assert_lost_alone(&relay);
        let backlog = of_archive(&relay.metrics(), "output_backlog_events");
        assert!(backlog > 0.0, "it has a share in what nobody else needs");
        archive.reopen();
        relay.wait_for_metrics("the archive", PATIENCE, |metrics| {
            (of_archive(metrics, "output_backlog_events") == 0.0).then_some(())
        });
        assert!(accepted_events(&archive) == sent[lost..], "not the newest, in order");
        let more = post(&relay, 60..63);
        relay.wait_for_metrics("the archive", PATIENCE, |metrics| {
            (of_archive(metrics, "output_backlog_events") == 0.0).then_some(())
        });
        assert!(accepted_events(&archive).ends_with(&more));
        assert_eq!(assert_lost_alone(&relay), lost);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the queue is filled with events that only an optional output needs. Then events wait for
/// the required output, eight at first, and more until the queue is full. The metrics and `/status`
/// must show how many bytes are needed.
#[test]
fn what_no_required_output_needs_does_not_fill_the_queue() {
    let spool = Spool::new();
    for more in queues(&spool) {
        let (mut required, mut archive) = (HttpSink::accepting(), HttpSink::accepting());
        archive.close();
        let relay = Relay::start(&config(required.address(), archive.address(), &more));
        post(&relay, 0..60);
        required.close();
        post_batch(&relay, 60, 8, 1000);
        let shares = || {
            let metrics = relay.metrics();
            let capacity = metrics.value("queue_capacity_bytes", &[]);
            let shown = http::get(relay.admin(), "/status").unwrap().json()["queue"].clone();
            assert_eq!(shown["needed_bytes"], metrics.value("queue_needed_bytes", &[]));
            ["queue_bytes", "queue_needed_bytes"].map(|name| metrics.value(name, &[]) / capacity)
        };
        let [held, needed] = shares();
        assert!(held > 0.65 && needed < 0.25, "{held} are held, {needed} are needed: {more}");
        let mut seeds = 61..;
        wait_until("a full queue", PATIENCE, || {
            relay.post(&generated_batch(seeds.next().expect("more"), EVENTS, 1000)).status == 429
        });
        let [held, needed] = shares();
        assert!(held >= needed && needed > 0.65, "{held} are held, {needed} are needed: {more}");
        required.reopen();
        relay.wait_until_delivered(PATIENCE);
        let [_, needed] = shares();
        assert!(needed < 0.1, "{needed} are needed: {more}");
    }
}

/// Method: an optional output on disk loses its oldest events while its consumer is down, and the
/// relay is killed. After the next start, the consumer must receive the newest events in order, at
/// least all that had not been counted as lost.
#[test]
fn what_an_optional_output_did_not_get_on_disk_is_there_after_a_crash() {
    let spool = Spool::new();
    let [_, queue] = queues(&spool);
    let (required, mut archive) = (HttpSink::accepting(), HttpSink::accepting());
    archive.close();
    let config = config(required.address(), archive.address(), &queue);
    let mut relay = Relay::start(&config);
    let sent = post(&relay, 0..60);
    let lost = assert_lost_alone(&relay);
    relay.kill();
    archive.reopen();
    let relay = Relay::start(&config);
    relay.wait_for_metrics("the archive", PATIENCE, |metrics| {
        (of_archive(metrics, "output_backlog_events") == 0.0).then_some(())
    });
    let metrics = relay.metrics();
    assert_conservation(&metrics, &["consumer", "archive"]);
    assert_eq!(metrics.sum("error_total"), 0.0);
    let got = accepted_events(&archive);
    assert!(got.len() >= sent.len() - lost, "{} of {}, {lost} lost", got.len(), sent.len());
    assert!(got == sent[sent.len() - got.len()..], "not the newest, in order");
    relay.finish(Backlog::Empty);
}

#[test]
fn delivered_does_not_wait_for_an_optional_output() {
    let (required, archive) = (HttpSink::accepting(), HttpSink::start(|_| Answer::never()));
    let queue = "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"20s\"\n";
    let relay = Relay::start(&config(required.address(), archive.address(), queue));
    // If the relay waited for the archive, the answer would be a 503 after 20 s.
    let sent = post(&relay, 0..5);
    assert!(accepted_events(&required) == sent);
    archive.wait_for_count(1, PATIENCE);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("event_total", &[]), 50.0);
    assert_eq!(of_archive(&metrics, "output_backlog_events"), 50.0);
    assert_conservation(&metrics, &["consumer", "archive"]);
    relay.finish(Backlog::Empty);
}
