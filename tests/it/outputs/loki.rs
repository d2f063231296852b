//! `type = "loki"`: each event is one entry with its labels, time and metadata, byte for byte.
//! `tests/sim` tests all kinds of answers.

use crate::support::loki::{Entry, Loki, Mood, to_loki};
use crate::support::moment::{nanos_of, now};
use crate::support::prelude::*;

const MIB: usize = 1024 * 1024;

/// Returns the labels and the metadata that the entry of an event must have, by serde_json's
/// reading.
fn expected(event: &Value) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let verb = event["verb"].as_str().unwrap_or_default();
    let known = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let verb = if known.contains(&verb) { verb } else { "other" };
    let labels = [("log_type", "audit"), ("cluster", "prod"), ("verb", verb)];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let code = event["responseStatus"]["code"].as_i64().map(|code| code.to_string());
    let object = &event["objectRef"];
    let metadata = [
        ("level", text(&event["level"])),
        ("stage", text(&event["stage"])),
        ("user", text(&event["user"]["username"])),
        ("user_agent", text(&event["userAgent"])),
        ("request_uri", text(&event["requestURI"])),
        ("api_group", text(&object["apiGroup"])),
        ("resource", text(&object["resource"])),
        ("namespace", text(&object["namespace"])),
        ("name", text(&object["name"])),
        ("code", code.unwrap_or_default()),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let metadata = metadata.into_iter().filter(|(_, value)| !value.is_empty());
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value));
    (labels.into(), metadata.collect())
}

#[test]
fn the_corpus_arrives_byte_for_byte_in_order_with_labels_times_and_metadata() {
    let consumer = Loki::start(4 * MIB, || Mood::Stores, |_| true);
    let more = "concurrency = 1\nlabels = { cluster = \"prod\" }";
    let relay = Relay::start(&format!("{BASE}{}", to_loki(consumer.address(), more)));
    let sent = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    for request in consumer.sink.requests() {
        assert_eq!(request.header("content-encoding"), Some("gzip"));
    }
    let store = consumer.store();
    assert_same_set(&store.lines(), &sent);
    assert_eq!(store.again, 0);
    let mut streams: BTreeMap<&BTreeMap<String, String>, Vec<&[u8]>> = BTreeMap::new();
    for entry in &store.entries {
        let event: Value = serde_json::from_str(&entry.line).expect("an event");
        let (labels, metadata) = expected(&event);
        assert_eq!((&entry.labels, entry.metadata.as_ref()), (&labels, Some(&metadata)));
        assert_eq!(entry.time, nanos_of(event["stageTimestamp"].as_str().expect("a time")));
        streams.entry(&entry.labels).or_default().push(entry.line.as_bytes());
    }
    assert!(streams.len() > 5, "{:?}", streams.keys());
    for (labels, lines) in streams {
        let mut sent = sent.iter().map(Vec::as_slice);
        let is_next = |line: &&[u8]| sent.any(|event| event == *line);
        assert!(lines.iter().all(is_next), "{labels:?} is not in order");
    }
    drop(store);
    relay.finish(Backlog::Empty);
}

/// Method: Loki stores the entries and answers with an error, and the relay is killed. After the
/// restart it must send equal entries, even if their time is the time at which the relay accepted
/// the events.
#[test]
fn the_time_of_acceptance_is_the_same_after_a_restart() {
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = Arc::clone(&calm);
    let mood = move || match is_calm.load(Ordering::SeqCst) {
        false => Mood::StoresAndFails,
        true => Mood::Stores,
    };
    let consumer = Loki::start(4 * MIB, mood, |_| true);
    let spool = TempDir::new().unwrap();
    let config = format!(
        "{BASE}{}[queue]\ndirectory = \"{}\"\n",
        to_loki(consumer.address(), &format!("{QUICK}timestamp = \"received\"")),
        text(spool.path()),
    );
    let mut relay = Relay::start(&config);
    let before = now();
    let (body, other) = (generated_batch(1, 30, 700), generated_batch(2, 30, 700));
    assert_eq!(relay.post(&body).status, 200);
    assert_eq!(relay.post(&other).status, 200);
    let after = now();
    // The events of the second batch can be waiting for those of the first.
    wait_until("entries", PATIENCE, || consumer.store().entries.len() >= 30);
    relay.kill();
    calm.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    assert_same_set(&store.lines(), &[events_of(&body), events_of(&other)].concat());
    assert!(store.again >= 30, "{} came again", store.again);
    // The time of acceptance has a resolution of one millisecond.
    let range = before - 1_000_000..=after;
    assert!(store.entries.iter().all(|entry| range.contains(&entry.time)));
    drop(store);
    relay.finish(Backlog::Empty);
}

/// Method: eight batches of one event wait together, so that a request has several of them. Loki
/// refuses the last one until it is set aside. Its entry must have its own time.
#[test]
fn an_event_that_was_set_aside_keeps_its_time_of_acceptance() {
    let (is_there, is_fixed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (there, fixed) = (Arc::clone(&is_there), Arc::clone(&is_fixed));
    let mood = move || match there.load(Ordering::SeqCst) {
        false => Mood::Status(503),
        true => Mood::Stores,
    };
    let batches: Vec<_> = (0..8).map(|seed| generated_batch(seed, 1, 700)).collect();
    let refused = events_of(&batches[7]).remove(0);
    let line = refused.clone();
    let is_valid = move |it: &[u8]| it != line || fixed.load(Ordering::SeqCst);
    let consumer = Loki::start(4 * MIB, mood, is_valid);
    let spool = TempDir::new().unwrap();
    let config = format!(
        "{BASE}{}[queue]\ndirectory = \"{}\"\n",
        to_loki(consumer.address(), &format!("{QUICK}timestamp = \"received\"\nconcurrency = 1")),
        text(spool.path()),
    );
    let relay = Relay::start(&config);
    let mut before = 0;
    for batch in &batches {
        std::thread::sleep(Duration::from_millis(10));
        before = now();
        assert_eq!(relay.post(batch).status, 200);
    }
    is_there.store(true, Ordering::SeqCst);
    // Others must be accepted after it was refused.
    let mut seed = 100;
    wait_until("an event that is set aside", PATIENCE, || {
        seed += 1;
        assert_eq!(relay.post(&generated_batch(seed, 1, 700)).status, 200);
        of_output(&relay, "output_aside_events") == 1.0
    });
    is_fixed.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    let entry = store.entries.iter().find(|it| it.line.as_bytes() == refused).unwrap();
    // The time of acceptance has a resolution of one millisecond.
    assert!(entry.time >= before - 1_000_000, "accepted after {before}, not at {}", entry.time);
    drop(store);
    relay.finish(Backlog::Empty);
}

/// Method: events that could break the request have quotes, line breaks and escaped lone
/// surrogates, texts longer than metadata may be, and members of the wrong type. Each must arrive
/// unchanged.
#[test]
fn what_a_client_can_write_breaks_no_request_and_is_cut_in_the_metadata() {
    let consumer = Loki::start(4 * MIB, || Mood::Stores, |_| true);
    let relay = Relay::start(&format!("{BASE}{}", to_loki(consumer.address(), "")));
    let long = "ä€".repeat(100_000);
    let events = [
        r#"{"level":"Metadata","auditID":"1","stage":"Panic","verb":"\"}],\"","userAgent":"a\"\\\n\u0000b","user":{"username":"\ud83d\ude00"}}"#.to_owned(),
        r#"{"level":"Metadata","auditID":"2","stage":"Panic","verb":7,"stageTimestamp":"yesterday","objectRef":"x","user":[],"responseStatus":{"code":"x"}}"#.to_owned(),
        format!(r#"{{"level":"Metadata","auditID":"3","stage":"Panic","verb":"get","userAgent":"{long}","requestURI":"{long}","user":{{"username":"{long}"}}}}"#),
        "{\t\"level\":\"Metadata\",\"auditID\" : \"4\",\"stage\":\"Panic\",\"verb\":\"list\"}".to_owned(),
    ];
    let before = now();
    let list = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":["#;
    assert_eq!(relay.post(format!("{list}{}]}}", events.join(",")).as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    assert_same_set(&store.lines(), &events.each_ref().map(|event| event.clone().into_bytes()));
    let entry = |id: &str| -> &Entry {
        let id = format!("\"{id}\"");
        store.entries.iter().find(|entry| entry.line.contains(&id)).expect("an entry")
    };
    let metadata = |id, name: &str| entry(id).metadata.as_ref().unwrap().get(name).cloned();
    assert_eq!((&*entry("1").labels["verb"], &*entry("2").labels["verb"]), ("other", "other"));
    assert_eq!((&*entry("3").labels["verb"], &*entry("4").labels["verb"]), ("get", "list"));
    assert_eq!(metadata("1", "user_agent").unwrap(), "a\"\\\n\u{0}b");
    assert_eq!(metadata("1", "user").unwrap(), "\u{1f600}");
    let of_wrong_types = ["user", "code", "resource"].map(|name| metadata("2", name));
    assert_eq!(of_wrong_types, [None, None, None]);
    for name in ["user_agent", "request_uri", "user"] {
        let cut = metadata("3", name).unwrap();
        // A value is cut to at most 4,096 bytes, at the end of a character.
        assert!((4094..=4096).contains(&cut.len()) && long.starts_with(&cut), "{}", cut.len());
    }
    // An event without a time gets the time at which it was accepted.
    assert!((before - 1_000_000..=now()).contains(&entry("2").time));
    drop(store);
    relay.finish(Backlog::Empty);
}

/// Method: most bytes of the events need an escape, so that their lines take twice their size. Only
/// a request with a single event may exceed the limit, which the consumer checks.
#[test]
fn a_request_keeps_the_limit_after_escapes_and_a_larger_event_goes_alone() {
    let consumer = Loki::start(64 * 1024, || Mood::Stores, |_| true);
    let more = "batch.max_bytes = \"64KiB\"\nmetadata = false\ncompression = \"none\"";
    let relay = Relay::start(&format!("{BASE}{}", to_loki(consumer.address(), more)));
    let event = |id: usize, quotes: usize| {
        let text = r#"\""#.repeat(quotes);
        format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"Panic","annotations":{{"a":"{text}"}}}}"#
        )
    };
    let mut sizes = (0..300).map(|id| event(id, 20 * (id % 70))).collect::<Vec<_>>();
    sizes.insert(150, event(1000, 100_000));
    let list = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":["#;
    assert_eq!(relay.post(format!("{list}{}]}}", sizes.join(",")).as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    let sent: Vec<_> = sizes.iter().map(|event| event.clone().into_bytes()).collect();
    assert_same_set(&store.lines(), &sent);
    assert!(store.entries.iter().all(|entry| entry.metadata.is_none()));
    assert!(store.requests.iter().max().unwrap() > &10, "{:?}", store.requests);
    drop(store);
    relay.finish(Backlog::Empty);
}

#[test]
fn writes_that_loki_blocks_are_reported_and_lose_nothing() {
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let mood = move || match is_open.load(Ordering::SeqCst) {
        true => Mood::Stores,
        false => Mood::Status(260),
    };
    let consumer = Loki::start(4 * MIB, mood, |_| true);
    let relay = Relay::start(&format!("{BASE}{}", to_loki(consumer.address(), QUICK)));
    let sent = post_batch(&relay, 1, 40, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE);
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("answered 260") && error.contains("blocks writes for this tenant"),
        "{error}"
    );
    wait_until("some answers", PATIENCE, || consumer.store().requests.len() > 5);
    assert_eq!(of_output(&relay, "output_events_total"), 0.0);
    assert_eq!(lost(&relay), 0.0);
    open.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&consumer.store().lines(), &sent);
    relay.finish(Backlog::Empty);
}
