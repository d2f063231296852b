//! `type = "otlp"`: each event is one record with its times and attributes, and rejected records
//! are counted. `tests/sim` tests all kinds of answers.

use crate::support::letters::letters;
use crate::support::moment::{nanos_of, now};
use crate::support::needs::needs;
use crate::support::otlp::{Attribute, Attributes, Mood, Otlp, Record, to_otlp};
use crate::support::peers::{Process, start_on_free_port};
use crate::support::prelude::*;

/// The resource that the corpus is sent with.
const RESOURCE: &str =
    "resource = { \"k8s.cluster.name\" = \"prod\", \"service.name\" = \"kube-apiserver\" }";

fn is_bad(event: &[u8]) -> bool {
    event.windows(14).any(|part| part == b"generated-13\",")
}

/// Returns the attributes that the record of an event must have, by serde_json's reading.
fn expected(event: &Value) -> Attributes {
    let object = &event["objectRef"];
    let texts = [
        ("k8s.audit.event.level", &event["level"]),
        ("k8s.audit.event.stage", &event["stage"]),
        ("k8s.audit.event.user_agent", &event["userAgent"]),
        ("k8s.audit.event.request.uri", &event["requestURI"]),
        ("k8s.audit.event.request.verb", &event["verb"]),
        ("k8s.audit.event.object_ref.resource", &object["resource"]),
        ("k8s.audit.event.object_ref.name", &object["name"]),
        ("k8s.audit.event.object_ref.namespace", &object["namespace"]),
        ("k8s.audit.event.object_ref.api_group", &object["apiGroup"]),
        ("k8s.audit.event.object_ref.api_version", &object["apiVersion"]),
        ("k8s.user.username", &event["user"]["username"]),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| {
        Some((name.to_owned(), Attribute::Text(value.as_str()?.to_owned())))
    });
    let code = event["responseStatus"]["code"].as_i64().map(Attribute::Int);
    let code = code.map(|code| ("k8s.audit.event.response.code".to_owned(), code));
    let groups = event["user"]["groups"].as_array().map(|groups| {
        groups.iter().map(|group| group.as_str().expect("a text").to_owned()).collect()
    });
    let groups = groups.map(|groups| ("k8s.user.groups".to_owned(), Attribute::Texts(groups)));
    texts.chain(code).chain(groups).collect()
}

/// Asserts that the records are those of the corpus.
fn assert_of_corpus(records: &[Record], began: u64) {
    let resource = [("k8s.cluster.name", "prod"), ("service.name", "kube-apiserver")];
    let resource = resource.map(|(name, it)| (name.to_owned(), Attribute::Text(it.to_owned())));
    let (resource, observed) = (Attributes::from(resource), began - 1_000_000..=now());
    for record in records {
        let event: Value = serde_json::from_str(&record.body).expect("an event");
        assert_eq!(record.attributes, expected(&event));
        assert_eq!(record.time, nanos_of(event["stageTimestamp"].as_str().expect("a time")));
        assert!(observed.contains(&record.observed), "{}", record.observed);
        assert_eq!(
            (record.severity, &*record.severity_text),
            (9, event["level"].as_str().unwrap())
        );
        assert_eq!(record.resource, resource);
        let (name, version) = &record.scope;
        assert_eq!((&**name, &**version), ("kube-audit-forwarder", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_corpus_arrives_byte_for_byte_with_times_and_attributes() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, true));
    let options = Options { tls, ..Options::default() };
    let consumer = Otlp::with(options, 4_000_000, || Mood::Stores(200), |_| true);
    let url = format!("https://localhost:{}", consumer.address().port());
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"otlp\"\nurls = [\"{url}\"]\n{RESOURCE}\n\
         [output.tls]\nca = {:?}\ncertificate = {:?}\nprivate_key = {:?}\n",
        certificates.ca, certificates.client.certificate, certificates.client.key,
    );
    let began = now();
    let relay = Relay::start(&config);
    let sent = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    for request in consumer.sink.requests() {
        assert_eq!(request.header("content-encoding"), Some("gzip"));
    }
    let store = consumer.store();
    assert_same_set(&store.bodies(), &sent);
    assert_of_corpus(&store.records, began);
    drop(store);
    relay.finish(Backlog::Empty);
}

/// A rotel agent: an independent OTLP receiver, which `./test setup` installs. It forwards the
/// records that it receives.
struct Rotel {
    process: Process,
    _directory: TempDir,
}

impl Rotel {
    fn start(next: &Otlp) -> Self {
        needs("rotel-agent");
        let program = repository().join("target/peers/rotel-agent");
        assert!(program.is_file(), "{} is missing; run ./test setup", program.display());
        let directory = TempDir::new().expect("a temporary directory");
        let process = start_on_free_port(|port| {
            let own = |name: &str| text(&directory.path().join(name)).to_owned();
            let arguments = [
                "start",
                &format!("--otlp-http-endpoint=127.0.0.1:{port}"),
                &format!("--otlp-grpc-endpoint=127.0.0.1:{}", free_port()),
                &format!("--pid-file={}", own("pid")),
                &format!("--log-file={}", own("log")),
                "--exporter=otlp",
                "--otlp-exporter-protocol=http",
                &format!("--otlp-exporter-endpoint=http://{}", next.address()),
            ];
            Process::new(program.clone(), &arguments, port, directory.path())
        });
        Self { process, _directory: directory }
    }
}

/// Method: a receiver accepts most records of a request, and reports only how many it has rejected.
/// Nothing may be sent again, and the rejected records must count as lost. With the action
/// `dead_letter`, the whole request must be in the dead letters.
#[test]
fn records_that_are_rejected_by_their_number_are_counted_and_the_request_is_in_the_dead_letters() {
    let cases = [
        ("dead_letter", Mood::Counts),
        ("retry", Mood::Counts),
        ("dead_letter", Mood::CountsInJson),
    ];
    for (rejected, mood) in cases {
        let consumer = Otlp::start(4_000_000, move || mood, |event| !is_bad(event));
        let kept = TempDir::new().unwrap();
        let more = format!("{QUICK}rejected.action = \"{rejected}\"\nbatch.max_events = 50");
        let directory = format!("[dead_letter]\ndirectory = \"{}\"\n", text(kept.path()));
        let config = format!("{BASE}{}{directory}", to_otlp(consumer.address(), &more));
        let relay = Relay::start(&config);
        let sent = post_batch(&relay, 1, 200, 700);
        relay.wait_until_delivered(PATIENCE);
        let events = sent;
        let (bad, good): (Vec<_>, Vec<_>) = events.iter().cloned().partition(|event| is_bad(event));
        assert_eq!(bad.len(), 1);
        assert_same_set(&consumer.store().bodies(), &good);
        assert_eq!(consumer.store().requests.iter().sum::<usize>(), 200);
        let delivered = of_output(&relay, "output_events_total");
        assert_eq!((delivered, lost(&relay)), (199.0, 1.0));
        let errors = [("output", "consumer"), ("reason", "item")];
        assert_eq!(relay.metrics().value("output_errors_total", &errors), 1.0);
        let letters = letters(kept.path());
        if rejected == "retry" {
            assert!(letters.is_empty(), "{} letters", letters.len());
        } else {
            // These are all events of the request with the bad event.
            let size = letters.len();
            assert!((1..=50).contains(&size), "{size} letters");
            let told = format!("answered 200 As-Told: 1 of {size} rejected");
            let plain = format!("answered 200 OK: 1 of {size} rejected");
            for (reason, event) in &letters {
                assert!(reason.ends_with(&told) || reason.ends_with(&plain), "{reason}");
                assert!(events.contains(event));
            }
            assert!(letters.iter().any(|(_, event)| is_bad(event)));
            let in_letters = [("output", "consumer")];
            let counted = relay.metrics().value("dead_letter_events_total", &in_letters);
            assert_eq!(counted, f64::from(u32::try_from(size).unwrap()));
        }
        let log = relay.finish(Backlog::Empty);
        assert!(!log.contains("s3cr3t"), "the receiver's text is in the log");
    }
}

/// Method: requests have a small limit, and some events are larger. Only a request with a single
/// event may exceed the limit, which the receiver checks.
#[test]
fn a_request_keeps_the_limit_and_a_larger_event_goes_alone() {
    let consumer = Otlp::start(64 * 1024, || Mood::Stores(200), |_| true);
    let more = "batch.max_bytes = \"64KiB\"\ncompression = \"none\"";
    let relay = Relay::start(&format!("{BASE}{}", to_otlp(consumer.address(), more)));
    let mut sent = Vec::new();
    for body in [generated_batch(1, 500, 900), generated_batch(2, 3, 200_000)] {
        assert_eq!(relay.post(&body).status, 200);
        sent.extend(events_of(&body));
    }
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    assert_same_set(&store.bodies(), &sent);
    assert!(store.requests.iter().max().unwrap() > &30, "{:?}", store.requests);
    drop(store);
    relay.finish(Backlog::Empty);
}

/// Method: an event has members of the wrong types, and others are missing. It must arrive as a
/// record without these attributes.
#[test]
fn an_event_without_known_members_is_a_record_without_attributes() {
    let consumer = Otlp::start(4_000_000, || Mood::Stores(200), |_| true);
    let relay = Relay::start(&format!("{BASE}{}", to_otlp(consumer.address(), "")));
    let event = r#"{"level":"Metadata","auditID":"1","stage":"Panic","verb":7,"userAgent":"\ud83d\ude00\u0000","stageTimestamp":"yesterday","objectRef":"x","user":{"username":"","groups":["a",1,"\""]},"responseStatus":{"code":1e3}}"#;
    let list = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":["#;
    let began = now();
    assert_eq!(relay.post(format!("{list}{event}]}}").as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let store = consumer.store();
    let [record] = store.records.as_slice() else { panic!("{} records", store.records.len()) };
    let texts = [
        ("k8s.audit.event.level", "Metadata"),
        ("k8s.audit.event.stage", "Panic"),
        ("k8s.audit.event.user_agent", "\u{1f600}\u{0}"),
        ("k8s.user.username", ""),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), Attribute::Text(text.to_owned())));
    let mut attributes = Attributes::from(texts);
    let groups = Attribute::Texts(vec!["a".to_owned(), "\"".to_owned()]);
    attributes.insert("k8s.user.groups".to_owned(), groups);
    assert_eq!(record.attributes, attributes);
    assert_eq!((record.body.as_str(), record.time), (event, 0));
    assert!((began - 1_000_000..=now()).contains(&record.observed));
    assert!(record.resource.is_empty());
    drop(store);
    relay.finish(Backlog::Empty);
}

/// These tests need rotel.
mod peers {
    use super::*;

    /// Method: a real receiver decodes the corpus and forwards it to our own receiver, which must
    /// get every event byte for byte, with its times and attributes.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn rotel_takes_the_corpus_and_understands_each_field() {
        let next = Otlp::start(usize::MAX, || Mood::Stores(200), |_| true);
        let rotel = Rotel::start(&next);
        let config = format!("{BASE}{}", to_otlp(rotel.process.address(), RESOURCE));
        let began = now();
        let relay = Relay::start(&config);
        let sent = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        wait_until("rotel's records", PATIENCE, || next.store().records.len() >= sent.len());
        let store = next.store();
        assert_same_set(&store.bodies(), &sent);
        assert_of_corpus(&store.records, began);
        drop(store);
        relay.finish(Backlog::Empty);
    }
}
