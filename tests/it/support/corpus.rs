//! Batches of events: the recorded ones in `tests/corpus`, and generated ones that are similar.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::repository;

/// A recorded request body.
pub(crate) struct Body {
    /// The name of the body's file.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Returns every recorded EventList, sorted by file name.
pub(crate) fn corpus() -> Vec<Body> {
    let directory = repository().join("tests/corpus");
    let mut bodies: Vec<Body> = std::fs::read_dir(&directory)
        .expect("tests/corpus is part of the repository")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| Body {
            name: path.file_name().expect("a file").to_string_lossy().into_owned(),
            bytes: std::fs::read(&path).expect("a readable file"),
        })
        .collect();
    bodies.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!bodies.is_empty(), "no bodies in {}", directory.display());
    bodies
}

/// Returns the recorded event in which a kube-apiserver updates its Lease, renamed to `name`.
pub(crate) fn lease_update(name: &str) -> String {
    const RECORDED: &str = "apiserver-wlv32tlttr4jl3gtroqexyxapa";
    let bodies = corpus();
    let events = bodies.iter().flat_map(|body| events_of(&body.bytes));
    let mut events = events.filter_map(|event| String::from_utf8(event).ok());
    let path = format!("/leases/{RECORDED}\",\"verb\":\"update\"");
    let event = events.find(|it| it.contains(&path) && it.contains("\"code\":200"));
    event.expect("a recorded update").replace(RECORDED, name)
}

/// Returns an EventList with these events.
pub(crate) fn list_of(events: &[String]) -> Vec<u8> {
    let head = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
    format!("{head}{}]}}\n", events.join(",")).into_bytes()
}

/// Returns a log that kube-apiserver itself wrote: JSON lines, with `kind` and `apiVersion` in each
/// event.
pub(crate) fn audit_log() -> Vec<u8> {
    std::fs::read(repository().join("tests/corpus/audit.log")).expect("part of the repository")
}

/// Returns the events of an EventList as a consumer must receive them: byte for byte, except that
/// raw line breaks are spaces.
///
/// serde_json finds the events, so that the relay's splitter does not judge itself.
pub(crate) fn events_of(body: &[u8]) -> Vec<Vec<u8>> {
    let list: BTreeMap<String, &RawValue> = serde_json::from_slice(body).expect("an EventList");
    let items: Vec<&RawValue> = serde_json::from_str(list["items"].get()).expect("an array");
    // Valid JSON has raw line breaks only between tokens, where a space means the same.
    let one_line = |event: &&RawValue| {
        event.get().bytes().map(|b| if b == b'\n' || b == b'\r' { b' ' } else { b }).collect()
    };
    items.iter().map(one_line).collect()
}

/// Returns an EventList as kube-apiserver sends it, with `events` events of about `event_bytes`
/// bytes each.
///
/// The auditIDs are unique over all seeds and indexes. The same arguments always give the same
/// bytes.
pub(crate) fn generated_batch(seed: u64, events: usize, event_bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(events * (event_bytes + 1) + 128);
    body.extend_from_slice(
        br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#,
    );
    for index in 0..events {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(generated_event(seed, index, event_bytes).as_bytes());
    }
    body.extend_from_slice(b"]}\n");
    body
}

/// Returns the auditID of event number `index` in [`generated_batch`].
pub(crate) fn generated_audit_id(seed: u64, index: usize) -> String {
    format!("{:08x}-{:04x}-4000-8000-{index:012x}", seed >> 16, seed & 0xffff)
}

fn generated_event(seed: u64, index: usize, event_bytes: usize) -> String {
    let audit_id = generated_audit_id(seed, index);
    let level = ["Metadata", "Request", "RequestResponse"][index % 3];
    let namespace = format!("team-{}", seed % 7);
    let uri = format!("/api/v1/namespaces/{namespace}/configmaps/generated-{index}");
    let head = format!(
        r#"{{"level":"{level}","auditID":"{audit_id}","stage":"ResponseComplete","requestURI":"{uri}","verb":"update","user":{{"username":"system:serviceaccount:{namespace}:default","groups":["system:authenticated"]}},"sourceIPs":["10.0.0.1"],"userAgent":"generated/1.0","objectRef":{{"resource":"configmaps","namespace":"{namespace}","name":"generated-{index}","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"requestObject":{{"kind":"ConfigMap","data":{{"text":""#
    );
    let tail = r#""}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.678901Z","annotations":{"authorization.k8s.io/decision":"allow"}}"#;
    // Different words, instead of one repeated letter, reveal a piece that is shifted or repeated.
    // Some have characters that JSON escapes, or that take two bytes in UTF-8.
    let words = [r"alpha\n", "bravo ", "größe ", r#"\"quoted\" "#, r"\u003ctag\u003e ", "delta "];
    let mut event = head;
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64 + 1);
    while event.len() + tail.len() < event_bytes {
        // This is xorshift64. Any generator that gives the same numbers for the same seed would do.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        event.push_str(words[usize::try_from(random % 6).expect("below 6")]);
    }
    event.push_str(tail);
    event
}

#[test]
fn the_corpus_holds_the_events_that_its_index_names() {
    let index = std::fs::read_to_string(repository().join("tests/corpus/INDEX.md")).unwrap();
    for body in corpus() {
        let row = index.lines().find(|line| line.contains(&body.name)).expect("a row of INDEX.md");
        let events: usize = row.split('|').nth(4).unwrap().trim().parse().unwrap();
        assert_eq!(events_of(&body.bytes).len(), events, "{}", body.name);
    }
    assert_eq!(audit_log().iter().filter(|&&byte| byte == b'\n').count(), 495);
}

#[test]
fn generated_batches_repeat_and_never_share_an_audit_id() {
    let mut ids = std::collections::BTreeSet::new();
    for seed in [0, 1, u64::from(u32::MAX)] {
        let batch = generated_batch(seed, 50, 1600);
        assert_eq!(batch, generated_batch(seed, 50, 1600));
        for (index, event) in events_of(&batch).iter().enumerate() {
            assert!((1600..1700).contains(&event.len()), "{} bytes", event.len());
            let event: serde_json::Value = serde_json::from_slice(event).unwrap();
            let id = event["auditID"].as_str().unwrap().to_owned();
            assert_eq!(id, generated_audit_id(seed, index));
            assert!(ids.insert(id));
        }
    }
}
