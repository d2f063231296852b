//! `filter.shape`, `filter.bodies` and `filter.managed_fields`: documents have the configured form
//! and the whole event, and dead letters have the event without a shape.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::value::RawValue;

use crate::support::fed;
use crate::support::letters::events_in_letters;
use crate::support::prelude::*;
use crate::support::tcp_sink::Framing;

pub(super) fn all_events() -> Vec<Vec<u8>> {
    corpus().iter().flat_map(|body| events_of(&body.bytes)).collect()
}

/// Posts the whole corpus to a relay whose `http` output has this filter. Returns the documents
/// that the consumer received, in the order of the events.
fn documents(filter: &str) -> Vec<Vec<u8>> {
    let sink = HttpSink::accepting();
    let more = format!("concurrency = 1\nformat = \"ndjson\"\n{filter}");
    let relay = Relay::start(&to_sink(sink.address(), &more));
    for body in corpus() {
        assert_eq!(relay.post(&body.bytes).status, 200, "{}", body.name);
    }
    relay.wait_until_delivered(PATIENCE);
    let documents = accepted_events(&sink);
    let metrics = relay.metrics();
    assert_eq!(
        metrics.value("output_events_total", &[("output", "consumer")]),
        documents.len() as f64
    );
    relay.finish(Backlog::Empty);
    documents
}

/// Parses an event or a document. The corpus deliberately has numbers beyond the range of an f64,
/// whose digits are compared elsewhere.
pub(super) fn parsed(event: &[u8]) -> Value {
    let text = String::from_utf8(event.to_vec()).expect("UTF-8").replace("1e400", "1");
    serde_json::from_str(&text).expect(&text)
}

/// Returns the event as `kubernetes.audit` must have it if bodies are kept.
fn in_ecs(event: &[u8]) -> Value {
    let mut value = parsed(event);
    if let Some(annotations) = value.get_mut("annotations").and_then(Value::as_object_mut) {
        let dotless = std::mem::take(annotations)
            .into_iter()
            .map(|(key, value)| (key.replace('.', "_"), value));
        annotations.extend(dotless);
    }
    value
}

#[test]
fn an_ecs_document_begins_with_its_time_and_ends_with_the_event() {
    let documents = documents("filter.shape = \"ecs\"\n");
    let events = all_events();
    assert_eq!(documents.len(), events.len());
    for (document, event) in documents.iter().zip(&events) {
        let (written, own) = (parsed(document), in_ecs(event));
        let time = own["stageTimestamp"].as_str().expect("a time");
        let head = format!("{{\"@timestamp\":\"{time}\",");
        assert!(document.starts_with(head.as_bytes()), "{written}");
        assert_eq!(written["kubernetes"]["audit"], own);
        assert_eq!(written["event"]["action"], own["verb"]);
        assert_eq!(written["user"]["name"], own["user"]["username"]);
        assert_eq!(written["source"]["ip"], own["sourceIPs"]);
        assert_eq!(written["client"]["ip"], own["sourceIPs"][0]);
        assert_eq!(written["user_agent"]["original"], own["userAgent"]);
        // No index is configured, so the document names no data stream.
        assert!(written.get("data_stream").is_none(), "{written}");
    }
}

/// Returns the event with its bodies as strings of their JSON text.
fn with_bodies_as_strings(event: &[u8]) -> Value {
    let mut value = parsed(event);
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(event).unwrap();
    for name in ["requestObject", "responseObject"] {
        if let Some(body) = members.get(name) {
            value[name] = body.get().replace("1e400", "1").into();
        }
    }
    value
}

#[test]
fn bodies_leave_as_strings_or_not_at_all_without_another_shape() {
    let events = all_events();
    let strings = documents("filter.bodies = \"string\"\n");
    let dropped = documents("filter.bodies = \"drop\"\n");
    let mut bodies = 0;
    for ((event, string), dropped) in events.iter().zip(&strings).zip(&dropped) {
        assert_eq!(parsed(string), with_bodies_as_strings(event));
        let mut without = parsed(event);
        for name in ["requestObject", "responseObject"] {
            bodies += usize::from(without.as_object_mut().unwrap().remove(name).is_some());
        }
        assert_eq!(parsed(dropped), without);
        if without == parsed(event) {
            assert!(string == event && dropped == event, "an event without bodies stays as it is");
        }
    }
    assert!(bodies > 100, "{bodies} bodies");
}

#[test]
fn managed_fields_go_from_objects_and_lists_and_nothing_else_does() {
    fn omit(body: &mut Value) {
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        for item in body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            omit(item);
        }
    }
    let got = documents("filter.managed_fields = \"drop\"\n");
    let mut changed = 0;
    for (event, got) in all_events().iter().zip(&got) {
        let mut expected = parsed(event);
        // A patch is its sender's own text, and kube-apiserver does not change it either.
        let is_patch = expected["verb"] == "patch";
        for name in ["requestObject", "responseObject"] {
            if let Some(body) = expected.get_mut(name)
                && !(is_patch && name == "requestObject")
            {
                omit(body);
            }
        }
        assert_eq!(parsed(got), expected);
        changed += usize::from(got != event);
    }
    assert!(changed > 50, "{changed} events had managed fields");
}

/// Method: a consumer refuses one document for good. Its dead letter must have the original event,
/// so that it can be replayed.
#[test]
fn a_refused_event_is_kept_in_its_own_form() {
    let sink = HttpSink::start(|request| {
        let is_refused = request.decoded().windows(15).any(|part| part == b"\"system:nobody\"");
        Answer::status(if is_refused { 400 } else { 200 })
    });
    let kept = TempDir::new().unwrap();
    let event = |index: usize, user: &str| {
        format!(
            r#"{{"level":"Request","auditID":"{index}","stage":"Panic","verb":"get","user":{{"username":"{user}"}},"annotations":{{"a.b":"c"}}}}"#
        )
    };
    let more = format!(
        "format = \"ndjson\"\nfilter = {{ shape = \"ecs\", bodies = \"drop\" }}\n\
         [dead_letter]\ndirectory = \"{}\"\n",
        text(kept.path())
    );
    let relay = Relay::start(&to_sink(sink.address(), &more));
    let events: Vec<_> = (0..40)
        .map(|index| event(index, if index == 7 { "system:nobody" } else { "system:somebody" }))
        .collect();
    assert_eq!(relay.post((events.join("\n") + "\n").as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(events_in_letters(kept.path()), [events[7].as_bytes()]);
    assert_eq!(accepted_events(&sink).len(), 39);
    relay.finish(Backlog::Empty);
}

/// Method: three of five documents are longer than a message of a syslog output may be; one of them
/// would fit as an event. Their letters must hold the redacted events without a shape. Without a
/// shape in the config, the letters must be redacted too.
#[test]
fn an_event_whose_document_is_too_long_is_kept_in_its_own_form() {
    for (shape, too_long) in [("shape = \"ecs\", ", &[1, 3, 4][..]), ("", &[3, 4])] {
        let sink = TcpSink::with(Framing::OctetCounting, Options::default());
        let kept = TempDir::new().unwrap();
        let config = format!(
            "{BASE}[[output]]\nname = \"syslog\"\ntype = \"syslog\"\naddresses = [\"{}\"]\n\
             replay_window = \"200ms\"\nhostname = \"h\"\nmax_message_bytes = 3000\n\
             filter = {{ {shape}redact = [{{ fields = [\"userAgent\"] }}] }}\n\
             [dead_letter]\ndirectory = \"{}\"\n",
            sink.address(),
            text(kept.path())
        );
        let relay = Relay::start(&config);
        let event = |index: usize, agent: &str, bytes: usize| {
            format!(
                r#"{{"level":"Request","auditID":"{index}","stage":"Panic"{agent},"more":"{}"}}"#,
                "x".repeat(bytes)
            )
        };
        let bytes = [10, 2850, 20, 5000, 5000];
        let sent: Vec<_> =
            bytes.iter().enumerate().map(|(at, n)| event(at, r#","userAgent":"a""#, *n)).collect();
        assert_eq!(relay.post((sent.join("\n") + "\n").as_bytes()).status, 200);
        relay.wait_until_delivered(PATIENCE);
        let delivered = 5 - too_long.len();
        sink.wait_for_count(delivered, PATIENCE);
        let expected: Vec<_> =
            too_long.iter().map(|&at| event(at, "", bytes[at]).into_bytes()).collect();
        assert_same_set(&events_in_letters(kept.path()), &expected);
        let metrics = relay.metrics();
        assert_eq!(metrics.count("output_events_total", &[("output", "syslog")]), delivered as u64);
        assert_eq!(metrics.count("error_total", &[("plugin", "syslog")]), too_long.len() as u64);
        let redacted = [("output", "syslog"), ("action", "redacted")];
        assert_eq!(metrics.value("filtered_events_total", &redacted), 5.0);
        for line in sink.lines() {
            let line = String::from_utf8(line).unwrap();
            assert_eq!(line.contains(r#"{"ecs":{"version":"#), !shape.is_empty(), "{line}");
            assert!(!line.contains("userAgent"), "{line}");
        }
        relay.finish(Backlog::Empty);
    }
}

/// These tests need the Python package ocsf-json-schema.
mod peers {
    use super::*;

    /// Method: a Python program checks each document against the published schemas of OCSF.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn ocsf_documents_of_the_corpus_are_valid_by_the_schema() {
        needs("ocsf-json-schema");
        let documents =
            documents("filter = { shape = \"ocsf\", annotate = { cluster = \"prod\" } }\n");
        assert_eq!(documents.len(), all_events().len());
        for document in &documents {
            let document = parsed(document);
            let added = &document["unmapped"]["annotations"]["kube-audit-forwarder/cluster"];
            assert_eq!(*added, "prod", "the shape is applied last");
        }
        let mut lines = documents.join(&b'\n');
        lines.push(b'\n');
        for version in ["1.1.0", "1.5.0", "1.8.0"] {
            let mut checker = Command::new(repository().join("target/peers/python/bin/python3"));
            let script = repository().join("tests/peers/ocsf.py");
            let output = fed(checker.arg(script).arg(version), &lines);
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{told}");
            assert_eq!(told, format!("{} documents are valid\n", documents.len()));
        }
    }
}
