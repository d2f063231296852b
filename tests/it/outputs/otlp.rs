//! `type = "otlp"`: each event arrives, whatever the receiver answers and however often the relay
//! is killed; what is refused is in dead letters and counted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::chance::rng;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::field::Field;
use crate::support::field::wait_until_given_up;
use crate::support::free_port;
use crate::support::letters::events_in_letters;
use crate::support::letters::letters;
use crate::support::moment::nanos_of;
use crate::support::moment::now;
use crate::support::needs::needs;
use crate::support::otlp::Attribute;
use crate::support::otlp::Attributes;
use crate::support::otlp::Mood;
use crate::support::otlp::Otlp;
use crate::support::otlp::Record;
use crate::support::otlp::to_otlp;
use crate::support::peers::Process;
use crate::support::peers::start_on_free_port;
use crate::support::relay::BASE;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::repository;
use crate::support::requests::QUICK;
use crate::support::requests::assert_none_missing;
use crate::support::requests::assert_same_set;
use crate::support::server::Options;
use crate::support::text;
use crate::support::wait_until;

const MIB: usize = 1024 * 1024;

/// The resource that the corpus is sent with.
const RESOURCE: &str =
    "resource = { \"k8s.cluster.name\" = \"prod\", \"service.name\" = \"kube-apiserver\" }";

fn is_bad(event: &[u8]) -> bool {
    event.windows(14).any(|part| part == b"generated-13\",")
}

fn lost(relay: &Relay) -> f64 {
    relay.metrics().value("error_total", &[("plugin", "consumer")])
}

/// Returns the attributes that the record of an event must have, as serde_json reads the event.
fn expected(event: &serde_json::Value) -> Attributes {
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
        let event: serde_json::Value = serde_json::from_str(&record.body).expect("an event");
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

/// POSTs the corpus, and returns its events.
fn post_the_corpus(relay: &Relay) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    for body in corpus() {
        assert_eq!(relay.post(&body.bytes).status, 200, "{}", body.name);
        sent.extend(events_of(&body.bytes));
    }
    sent
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
    let sent = post_the_corpus(&relay);
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

/// A rotel agent, an OTLP receiver that was not written here, which `./test setup` installs. It
/// sends on the records that it has taken.
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

/// Method: a receiver answers in all its ways at random while the relay is killed and started
/// again. In the end each good event must be stored, and each bad event must be in the dead letters
/// and nowhere else.
///
/// `field` is one more fault.
fn whatever_happens(field: Field) {
    let mut rng = rng();
    let mut moods = rng.fork();
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = Arc::clone(&calm);
    let counts = rng.bool();
    let mood = move || match moods.u32(..18) {
        _ if is_calm.load(Ordering::SeqCst) => Mood::Stores(200),
        0 => Mood::Busy,
        1 => Mood::Status(500),
        2 => Mood::Status(503),
        3 => Mood::Status(401),
        4 => Mood::EmptyPage,
        5 => Mood::HangsUp(true),
        6 => Mood::HangsUp(false),
        7 => Mood::Cut,
        8 => Mood::Page,
        9 => Mood::Small,
        10 => Mood::Stores(204),
        11 => Mood::Stores(201),
        12..14 if counts => Mood::Counts,
        14..16 if counts => Mood::CountsInJson,
        _ => Mood::Stores(200),
    };
    let consumer = Otlp::start(MIB, mood, |event| !is_bad(event));
    field.stand_in_front(&consumer.sink, &mut rng);
    let (spool, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let more = format!("{QUICK}batch.max_bytes = \"1MiB\"\n{}", field.keys());
    let config = format!(
        "{BASE}{}[queue]\ndirectory = \"{}\"\n[dead_letter]\ndirectory = \"{}\"\n",
        to_otlp(consumer.address(), &more),
        text(spool.path()),
        text(kept.path()),
    );
    let mut sent = Vec::new();
    for round in 0..field.lives(6) {
        let mut relay = Relay::start(&config);
        for batch in 0..field.bodies(8) {
            let body = generated_batch(round * 100 + batch, 200, 700);
            assert_eq!(relay.post(&body).status, 200);
            sent.extend(events_of(&body));
        }
        std::thread::sleep(Duration::from_millis(rng.u64(20..400)));
        relay.kill();
    }
    calm.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    let is_refused = |event: &[u8]| is_bad(event) || field.fails(event);
    let (bad, mut good): (Vec<_>, Vec<_>) = sent.into_iter().partition(|event| is_refused(event));
    let given_up = || -> BTreeSet<_> { events_in_letters(kept.path()).into_iter().collect() };
    wait_until_given_up(&relay, &mut good, || {
        let given_up = given_up();
        bad.iter().all(|event| given_up.contains(event))
    });
    let refused = given_up();
    let missing = bad.iter().filter(|event| !refused.contains(*event)).count();
    assert_eq!(missing, 0, "bad events have no letter");
    let store = consumer.store();
    eprintln!("{} requests, {} records", store.requests.len(), store.records.len());
    assert_none_missing(&store.bodies(), &good);
    if !counts {
        assert_same_set(&refused.into_iter().collect::<Vec<_>>(), &bad);
    }
    assert!(!relay.log_text().contains("s3cr3t"), "the receiver's text is in the log");
    drop(store);
    relay.finish(Backlog::Empty);
}

#[test]
fn each_event_is_stored_or_refused_whatever_happens() {
    whatever_happens(Field::Plain);
}

#[test]
fn each_event_is_stored_or_refused_behind_a_balancer_with_a_broken_backend() {
    whatever_happens(Field::BrokenBackend);
}

#[test]
fn each_event_is_stored_or_refused_behind_a_sign_in_page() {
    whatever_happens(Field::SignInPage);
}

#[test]
fn each_event_is_stored_or_refused_if_the_store_fails_on_some_for_ever() {
    whatever_happens(Field::FailingEvents);
}

/// Method: a receiver takes most records of each request, and says only how many it has rejected.
/// Nothing may be sent again; the rejected records count as lost, the others as delivered, and all
/// are in the dead letters.
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
        let body = generated_batch(1, 200, 700);
        assert_eq!(relay.post(&body).status, 200);
        relay.wait_until_delivered(PATIENCE);
        let events = events_of(&body);
        let (bad, good): (Vec<_>, Vec<_>) = events.iter().cloned().partition(|event| is_bad(event));
        assert_eq!(bad.len(), 1);
        assert_same_set(&consumer.store().bodies(), &good);
        assert_eq!(consumer.store().requests.iter().sum::<usize>(), 200);
        let delivered = relay.metrics().value("output_events_total", &[("output", "consumer")]);
        assert_eq!((delivered, lost(&relay)), (199.0, 1.0));
        let errors = [("output", "consumer"), ("reason", "item")];
        assert_eq!(relay.metrics().value("output_errors_total", &errors), 1.0);
        let letters = letters(kept.path());
        if rejected == "retry" {
            assert!(letters.is_empty(), "{} letters", letters.len());
        } else {
            // The whole request that had the bad event, and no other.
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
        assert!(!relay.log_text().contains("s3cr3t"), "the receiver's text is in the log");
        relay.finish(Backlog::Empty);
    }
}

/// Method: for a while, a receiver answers 200 to each request and says that it has rejected all of
/// its records, as one does whose tenant was not made yet.
#[test]
fn a_receiver_that_rejects_all_records_of_all_requests_costs_no_event() {
    let works = Arc::new(AtomicBool::new(false));
    let stores = Arc::clone(&works);
    let consumer = Otlp::start(4_000_000, || Mood::Counts, move |_| stores.load(Ordering::SeqCst));
    let config = format!("{BASE}{}", to_otlp(consumer.address(), QUICK));
    let relay = Relay::start(&config);
    let body = generated_batch(1, 40, 700);
    assert_eq!(relay.post(&body).status, 200);
    wait_until("many requests", PATIENCE, || consumer.store().requests.len() > 12);
    assert_eq!(lost(&relay), 0.0);
    works.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&consumer.store().bodies(), &events_of(&body));
    relay.finish(Backlog::Empty);
}

/// Method: requests with a small limit, and one event that is larger. No request may be larger than
/// the limit, except that of the large event, which the receiver checks.
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

/// Method: events whose members have other types than in Kubernetes, or none. They must arrive as
/// records without these attributes.
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

/// They need peers, or root.
mod peers {
    use super::*;

    /// Method: a real receiver takes the corpus, decodes it and sends it on to our own, which must
    /// get all of it: events byte for byte, times and attributes.
    #[test]
    fn rotel_takes_the_corpus_and_understands_each_field() {
        let next = Otlp::start(usize::MAX, || Mood::Stores(200), |_| true);
        let rotel = Rotel::start(&next);
        let config = format!("{BASE}{}", to_otlp(rotel.process.address(), RESOURCE));
        let began = now();
        let relay = Relay::start(&config);
        let sent = post_the_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        wait_until("rotel's records", PATIENCE, || next.store().records.len() >= sent.len());
        let store = next.store();
        assert_same_set(&store.bodies(), &sent);
        assert_of_corpus(&store.records, began);
        drop(store);
        relay.finish(Backlog::Empty);
    }
}
