//! Help for tests of the http output: configs with such an output, and the events in its requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::value::RawValue;

use super::corpus::events_of;
use super::http_sink::{Answer, HttpSink, Request};
use super::relay::BASE;
use super::{lines_in, repository};

/// Retries that are fast enough for a test.
pub(crate) const QUICK: &str =
    "retry = { initial_interval = \"20ms\", max_interval = \"100ms\" }\n";

/// Returns a config with the usual listener and one http output named `consumer`.
pub(crate) fn to_http(urls: &[String], more: &str) -> String {
    format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"http\"\nurls = {urls:?}\n{QUICK}{more}"
    )
}

/// Like [`to_http`], but with the URL of one consumer without TLS.
pub(crate) fn to_sink(address: SocketAddr, more: &str) -> String {
    to_http(&[format!("http://{address}/ingest")], more)
}

/// Returns a shipped config with these texts replaced. The kernel chooses the ports of its listener
/// and its admin address.
pub(crate) fn shipped(name: &str, substitutions: &[(&str, &str)]) -> String {
    let file = repository().join("config").join(name);
    let mut config = std::fs::read_to_string(file).expect("part of the repository");
    // A config with a source has no listener. Then this replacement changes nothing.
    config = config.replace("0.0.0.0:3000", "127.0.0.1:0");
    for (from, to) in [("0.0.0.0:9090", "127.0.0.1:0")].iter().chain(substitutions) {
        assert!(config.contains(from), "{name} holds no {from}");
        config = config.replace(from, to);
    }
    config
}

/// Starts a consumer that answers with `status` to each request with an event that it refuses, and
/// with 200 to the others.
pub(crate) fn refusing(
    status: u16,
    is_refused: impl Fn(&Vec<u8>) -> bool + Send + Sync + 'static,
) -> HttpSink {
    HttpSink::start(move |request| {
        Answer::status(if events_in(request).iter().any(&is_refused) { status } else { 200 })
    })
}

/// Returns the events of a request, in any of the output's formats.
pub(crate) fn events_in(request: &Request) -> Vec<Vec<u8>> {
    let body = request.decoded();
    if body.starts_with(b"[") {
        let items: Vec<&RawValue> = serde_json::from_slice(&body).expect("an array");
        return items.iter().map(|item| item.get().as_bytes().to_vec()).collect();
    }
    if body.starts_with(br#"{"kind":"EventList""#) {
        return events_of(&body);
    }
    assert!(body.is_empty() || body.ends_with(b"\n"), "the last line has no end");
    lines_in(&body)
}

/// Returns the events of the accepted requests, in the order of the requests.
pub(crate) fn accepted_events(sink: &HttpSink) -> Vec<Vec<u8>> {
    let requests = sink.requests();
    requests.iter().filter(|request| request.is_accepted()).flat_map(events_in).collect()
}

pub(crate) fn received_events(sink: &HttpSink) -> Vec<Vec<u8>> {
    sink.requests().iter().flat_map(events_in).collect()
}

/// Checks that `received` has each event of `expected` once, in any order, and no other event.
pub(crate) fn assert_same_set(received: &[Vec<u8>], expected: &[Vec<u8>]) {
    assert_eq!(received.len(), expected.len(), "another number of events");
    assert_none_missing(received, expected);
}

/// Checks that `received` has each event of `expected` and no other. Events may be repeated.
pub(crate) fn assert_none_missing(received: &[Vec<u8>], expected: &[Vec<u8>]) {
    let mut counts: BTreeMap<&[u8], i64> = BTreeMap::new();
    expected.iter().for_each(|event| *counts.entry(event).or_default() -= 1);
    for event in received {
        *counts
            .get_mut(event.as_slice())
            .expect("an event that was never sent, or a changed one") += 1;
    }
    let missing = counts.values().filter(|&&count| count < 0).count();
    assert_eq!(missing, 0, "of {} events", expected.len());
}

/// Checks that `received` has the events of `expected` in order. Events may be repeated, but none
/// arrives before its predecessor.
pub(crate) fn assert_in_order(received: &[Vec<u8>], expected: &[Vec<u8>]) {
    let places: BTreeMap<&[u8], usize> =
        expected.iter().enumerate().map(|(place, event)| (event.as_slice(), place)).collect();
    assert_eq!(places.len(), expected.len(), "the events of such a test differ");
    let mut next = 0;
    for event in received {
        let place =
            *places.get(event.as_slice()).expect("an event that was never sent, or a changed one");
        assert!(place <= next, "event {place} came before event {next}");
        next = next.max(place + 1);
    }
    assert_eq!(next, expected.len(), "the last events are missing");
}
