//! Steps that most tests of outputs share: they post events, and read metrics of the output
//! `consumer`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use super::certificates::Certificates;
use super::corpus::{corpus, events_of, generated_batch};
use super::http_sink::HttpSink;
use super::peers::Security;
use super::relay::Relay;
use super::requests::refusing;
use super::{PATIENCE, wait_until};

/// Posts EventLists one after the other, and returns the events that must arrive.
pub(crate) fn post(relay: &Relay, bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    for body in bodies {
        let response = relay.post(body);
        assert_eq!(response.status, 200, "{}", response.text());
    }
    bodies.iter().flat_map(|body| events_of(body)).collect()
}

/// Posts a generated batch for each seed, and returns the events that must arrive.
pub(crate) fn post_batches(
    relay: &Relay,
    seeds: Range<u64>,
    events: usize,
    event_bytes: usize,
) -> Vec<Vec<u8>> {
    let bodies: Vec<_> = seeds.map(|seed| generated_batch(seed, events, event_bytes)).collect();
    post(relay, &bodies)
}

/// Posts one generated batch, and returns the events that must arrive.
pub(crate) fn post_batch(relay: &Relay, seed: u64, events: usize, bytes: usize) -> Vec<Vec<u8>> {
    post_batches(relay, seed..seed + 1, events, bytes)
}

/// Posts the recorded bodies, and returns the events that must arrive.
pub(crate) fn post_corpus(relay: &Relay) -> Vec<Vec<u8>> {
    let bodies: Vec<_> = corpus().into_iter().map(|body| body.bytes).collect();
    post(relay, &bodies)
}

/// Returns a metric of the output `consumer`.
pub(crate) fn of_output(relay: &Relay, metric: &str) -> f64 {
    relay.metrics().value(metric, &[("output", "consumer")])
}

/// Returns how many events the output `consumer` has lost.
pub(crate) fn lost(relay: &Relay) -> f64 {
    relay.metrics().value("error_total", &[("plugin", "consumer")])
}

/// Returns how many errors with this reason the output `consumer` has counted.
pub(crate) fn errors(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().value("output_errors_total", &[("output", "consumer"), ("reason", reason)])
}

/// Waits until the output `consumer` has counted `count` errors with this reason.
pub(crate) fn wait_for_errors(relay: &Relay, reason: &str, count: f64) {
    let labels = [("output", "consumer"), ("reason", reason)];
    relay.wait_for_metrics(&format!("{count} errors '{reason}'"), PATIENCE, |metrics| {
        (metrics.value("output_errors_total", &labels) >= count).then_some(())
    });
}

/// Returns the sums of `output_errors_total` by reason, without zeros.
pub(crate) fn errors_by_reason(relay: &Relay) -> BTreeMap<String, f64> {
    let mut errors = BTreeMap::new();
    for (labels, value) in relay.metrics().all("output_errors_total") {
        let reason = &labels.iter().find(|(name, _)| name == "reason").expect("a reason").1;
        *errors.entry(reason.clone()).or_insert(0.0) += value;
    }
    errors.retain(|_, value| *value > 0.0);
    errors
}

/// Returns the config of an output `consumer` that dials addresses, with retries that are fast
/// enough for a test. `more` adds keys, with inline tables.
pub(crate) fn stream_output(kind: &str, addresses: &[SocketAddr], more: &str) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!(
        "[[output]]\nname = \"consumer\"\ntype = \"{kind}\"\naddresses = {addresses:?}\n\
         retry = {{ initial_interval = \"20ms\", max_interval = \"200ms\" }}\n{more}\n"
    )
}

/// Returns the key `tls` of an output with this security.
pub(crate) fn tls_key(security: Security, certificates: &Certificates) -> String {
    let Certificates { ca, client, .. } = certificates;
    match security {
        Security::Plain => String::new(),
        Security::Tls => format!("tls = {{ ca = {ca:?} }}\n"),
        Security::MutualTls => format!(
            "tls = {{ ca = {ca:?}, certificate = {:?}, private_key = {:?} }}\n",
            client.certificate, client.key
        ),
    }
}

/// Starts a consumer that turns down each request with an event of this batch by 400, and accepts
/// the others.
pub(crate) fn all_but(batch: &[u8]) -> HttpSink {
    let refused = events_of(batch);
    refusing(400, move |event| refused.contains(event))
}

/// Posts a batch for the consumer of [`all_but`], then others, until each event of the batch is
/// given up and the others are delivered.
pub(crate) fn give_up(relay: &Relay, batch: &[u8]) {
    post(relay, &[batch.to_vec()]);
    let count = u32::try_from(events_of(batch).len()).unwrap();
    let mut seeds = 1_000_000..;
    wait_until("the events to be given up", PATIENCE, || {
        post_batch(relay, seeds.next().unwrap(), 2, 700);
        lost(relay) >= f64::from(count)
    });
    relay.wait_until_delivered(PATIENCE);
}
