//! `type = "elasticsearch"`: document names, indexes and templates that do not fit, and a real
//! server. `tests/sim` tests all kinds of answers.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::corpus::list_of;
use crate::support::elasticsearch::{
    Elasticsearch, INDEX, Mood, to_elasticsearch, to_elasticsearch_in_ecs,
};
use crate::support::letters::events_in_letters;
use crate::support::needs::needs;
use crate::support::prelude::*;

const MIB: usize = 1024 * 1024;

/// Method: two relays whose queues both begin at position 0 write to one index. Their documents
/// must have different names.
#[test]
fn two_queues_never_give_two_events_one_name() {
    let consumer = Elasticsearch::start(4 * MIB, || Mood::Judges, |_| 201);
    let body = generated_batch(1, 10, 700);
    let config = format!("{BASE}{}", to_elasticsearch(consumer.address(), ""));
    for relays in 1..=2 {
        let relay = Relay::start(&config);
        assert_eq!(relay.post(&body).status, 200);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(consumer.store().documents.len(), relays * 10);
        assert_eq!(of_output(&relay, "output_existing_events_total"), 0.0);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn an_answer_that_was_lost_costs_no_second_document_and_is_counted() {
    let mut moods = [Mood::Mute, Mood::Judges].into_iter();
    let consumer =
        Elasticsearch::start(4 * MIB, move || moods.next().expect("two requests"), |_| 201);
    let relay = Relay::start(&format!("{BASE}{}", to_elasticsearch(consumer.address(), "")));
    let sent = post_batch(&relay, 1, 10, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&consumer.events(), &sent);
    assert_eq!(of_output(&relay, "output_existing_events_total"), 10.0);
    assert_eq!(of_output(&relay, "output_events_total"), 10.0);
    relay.finish(Backlog::Empty);
}

/// Method: the consumer has no index, so it refuses each document by itself. No event may be given
/// up before the consumer accepts one.
#[test]
fn a_missing_index_costs_no_event() {
    let is_there = Arc::new(AtomicBool::new(false));
    let made = Arc::clone(&is_there);
    let status = move |_: &[u8]| if made.load(Ordering::SeqCst) { 201 } else { 404 };
    let consumer = Elasticsearch::start(4 * MIB, || Mood::Judges, status);
    let more = "retry.initial_interval = \"10ms\"\nretry.max_interval = \"100ms\"";
    let relay = Relay::start(&format!("{BASE}{}", to_elasticsearch(consumer.address(), more)));
    let sent = post_batch(&relay, 1, 40, 700);
    wait_until("some refusals", PATIENCE, || consumer.store().requests.len() > 20);
    assert_eq!(lost(&relay), 0.0);
    is_there.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&consumer.events(), &sent);
    relay.finish(Backlog::Empty);
}

/// Method: the consumer refuses each document, or each request, with a reason. The log and
/// `/status` must give the reason if it is about the server, and must not give it if it can quote
/// the event.
#[test]
fn a_reason_is_told_unless_it_may_quote_the_event() {
    let fields = "Limit of total fields [1000] has been exceeded while adding new fields [3]";
    let parsed = format!("[1:9] failed to parse: {fields}");
    let caused = |kind: &str, reason: &str, by: &str, why: &str| json!({"type": kind, "reason": reason, "caused_by": {"type": by, "reason": why}});
    let of = |kind: &str, reason: &str| json!({"type": kind, "reason": reason});
    let illegal = "illegal_argument_exception";
    let block = "index [a] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage \
                 watermark, index has read-only-allow-delete block];";
    let user = "action [indices:data/write/bulk[s]] is unauthorized for user [relay]";
    let shards = "Validation Failed: 1: this action would add [2] shards, but this cluster \
                  currently has [1000]/[1000] maximum normal shards open;";
    let term = "Document contains at least one immense term in field=\"s3cr3t\"";
    let quoted = "[a][0] primary shard is not active, request: [BulkShardRequest [[a][0]] \
                  containing [index {[a][x], source[{\"s3cr3t\":1}]}]]";
    for (status, whole, error, shown) in [
        (400, false, of(illegal, fields), fields),
        (400, false, caused("document_parsing_exception", &parsed, illegal, fields), fields),
        (
            400,
            false,
            of(illegal, "no write index is defined for alias [a]."),
            "no write index is defined for alias [a].",
        ),
        (429, false, of("cluster_block_exception", block), block),
        (404, false, of("index_not_found_exception", "no such index [a]"), "no such index [a]"),
        (403, false, of("security_exception", user), user),
        (403, true, of("security_exception", user), user),
        (400, false, of("validation_exception", shards), shards),
        (
            429,
            true,
            of("circuit_breaking_exception", "[parent] Data too large, data for [<http_request>]"),
            "[parent] Data too large",
        ),
        (403, true, of("security_exception", "a\u{1b}[2J\nb\u{202e}c"), "a [2J b c"),
        (403, true, of("security_exception", &"\u{e4}".repeat(300)), &"\u{e4}".repeat(100)),
        (400, false, of("document_parsing_exception", "failed to parse [s3cr3t]"), ""),
        (400, false, of("mapper_parsing_exception", "failed to parse field [s3cr3t]"), ""),
        (400, false, of(illegal, term), ""),
        (400, false, of("unknown_exception", "Limit of total fields [s3cr3t]"), ""),
        (503, false, of("unavailable_shards_exception", quoted), ""),
        (429, false, of("es_rejected_execution_exception", quoted), ""),
        (400, true, of("parse_exception", "s3cr3t"), ""),
        (400, true, json!("s3cr3t"), ""),
    ] {
        let told = error.clone();
        let consumer = HttpSink::start(move |request| {
            if whole {
                let body = json!({"error": told, "status": status});
                return Answer::status(status).body(body.to_string());
            }
            let lines = request.decoded().iter().filter(|byte| **byte == b'\n').count();
            let item = json!({"create": {"status": status, "error": told}});
            let items = vec![item; lines / 2];
            Answer::status(200).body(json!({"errors": true, "items": items}).to_string())
        });
        let relay = Relay::start(&format!("{BASE}{}", to_elasticsearch(consumer.address(), "")));
        post_batch(&relay, 1, 1, 700);
        relay.wait_for_log("output down, events are kept", PATIENCE);
        let status = http::get(relay.admin(), "/status").unwrap().json();
        let last = status["outputs"][0]["last_error"].as_str().unwrap().to_owned();
        let logged = relay.log_fields();
        let logged = logged.iter().find_map(|line| line["error"].as_str()).unwrap();
        for text in [&last, logged] {
            assert!(text.contains(shown), "{error}: {text}");
            assert!(text.len() < 400, "{text}");
            assert_eq!(text.contains("_exception: "), !shown.is_empty() && whole, "{text}");
            assert_eq!(text.contains(" for an event: "), !shown.is_empty() && !whole, "{text}");
        }
        assert!(!last.contains("s3cr3t") && !relay.log_text().contains("s3cr3t"), "{last}");
        relay.settle(Backlog::Stable);
    }
}

/// osmem-server, a small OpenSearch that `./test setup` installs.
struct OpenSearch {
    child: Child,
    address: String,
}

impl OpenSearch {
    fn start() -> Self {
        needs("osmem-server");
        let program = repository().join("target/peers/osmem-server");
        let mut child = Command::new(program)
            .args(["-no-stdin-watch", "-addr", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("osmem-server runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).expect("it says its address");
        let address = told["url"].as_str().expect("a URL").trim_start_matches("http://").to_owned();
        Self { child, address }
    }

    fn get(&self, path: &str) -> Value {
        let address = self.address.parse().expect("an address");
        http::get(address, &format!("/{INDEX}/{path}")).expect("an answer").json()
    }

    fn count(&self) -> u64 {
        self.get("_count")["count"].as_u64().unwrap_or(0)
    }

    fn make_index(&self, mapping: &Value) {
        let address = self.address.parse().expect("an address");
        let headers = [("Content-Type", "application/json")];
        let mapping = mapping.to_string();
        let mut client = Client::connect(address).expect("it listens");
        let made = client.request("PUT", &format!("/{INDEX}"), &headers, mapping.as_bytes());
        assert_eq!(made.expect("an answer").status, 200);
    }
}

/// Returns the relevant part of the template of Elastic's Kubernetes integration, which maps bodies
/// as objects of which only some members are indexed.
fn mapping_of_the_integration() -> Value {
    let spec = json!({"properties": {
        "restartPolicy": {"type": "keyword"},
        "containers": {"properties": {"image": {"type": "text"}}},
    }});
    let body = json!({"dynamic": false, "properties": {"spec": spec}});
    let bodies = json!({"properties": {"requestObject": body, "responseObject": body}});
    json!({"mappings": {"properties": {
        "@timestamp": {"type": "date"},
        "kubernetes": {"properties": {"audit": bodies}},
    }}})
}

impl Drop for OpenSearch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns the event as its document has it in `kubernetes.audit`: bodies are strings, and the keys
/// of annotations have no dots. Numbers beyond the range of an f64 become 1.
fn as_stored(event: &[u8]) -> Value {
    let tamed = |text: &str| text.replace("1e400", "1");
    let text = std::str::from_utf8(event).expect("UTF-8");
    let mut value: Value = serde_json::from_str(&tamed(text)).expect("an event");
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(event).unwrap();
    for name in ["requestObject", "responseObject"] {
        if let Some(body) = members.get(name) {
            value[name] = tamed(body.get()).into();
        }
    }
    if let Some(annotations) = value.get_mut("annotations").and_then(Value::as_object_mut) {
        let old = std::mem::take(annotations);
        annotations.extend(old.into_iter().map(|(key, value)| (key.replace('.', "_"), value)));
    }
    value
}

/// These tests need osmem-server.
mod peers {
    use super::*;

    /// Method: a real server gets the whole corpus. It refuses events whose bodies have
    /// contradicting types. Each event must be stored or be a dead letter.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_small_opensearch_stores_the_corpus_or_says_what_it_refuses() {
        let server = OpenSearch::start();
        let kept = TempDir::new().unwrap();
        let config = format!(
            "{BASE}{}[dead_letter]\ndirectory = \"{}\"\n",
            to_elasticsearch(server.address.parse().unwrap(), ""),
            text(kept.path()),
        );
        let relay = Relay::start(&config);
        let mut sent = 0;
        for body in corpus() {
            assert_eq!(relay.post(&body.bytes).status, 200, "{}", body.name);
            sent += events_of(&body.bytes).len() as u64;
        }
        relay.wait_until_delivered(PATIENCE * 2);
        let (stored, refused) = (server.count(), events_in_letters(kept.path()).len() as u64);
        assert_eq!(stored + refused, sent, "{stored} stored, {refused} refused");
        assert!(stored > 1000 && refused < 300, "{stored} stored, {refused} refused");
        assert_eq!(of_output(&relay, "output_events_total"), stored as f64);
        relay.finish(Backlog::Empty);
    }

    /// Method: a real server has the index of Elastic's Kubernetes integration, which refuses
    /// bodies as strings, the default. The log must name the key. With the key, each event must be
    /// stored.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_small_opensearch_with_the_index_of_the_integration_leads_to_the_key() {
        let server = OpenSearch::start();
        server.make_index(&mapping_of_the_integration());
        let key = "set filter.bodies = \"keep\" or \"drop\"";
        let kept = TempDir::new().unwrap();
        let config = |more: &str| {
            format!(
                "{BASE}{}[dead_letter]\ndirectory = \"{}\"\n",
                to_elasticsearch_in_ecs(server.address.parse().unwrap(), more),
                text(kept.path()),
            )
        };
        let body = generated_batch(1, 20, 700);
        let relay = Relay::start(&config(""));
        assert_eq!(relay.post(&body).status, 200);
        wait_until("a refusal", PATIENCE, || {
            let labels = [("output", "consumer"), ("reason", "item")];
            relay.metrics().value("output_errors_total", &labels) >= 1.0
        });
        wait_until("the key in the log", PATIENCE, || {
            relay.log_text().contains(&key.replace('"', "\\\""))
        });
        drop(relay);
        for bodies in ["keep", "drop"] {
            let before = server.count();
            let relay = Relay::start(&config(&format!("filter.bodies = \"{bodies}\"")));
            assert_eq!(relay.post(&body).status, 200);
            relay.wait_until_delivered(PATIENCE);
            assert_eq!(server.count() - before, 20, "{bodies}");
            relay.finish(Backlog::Empty);
        }
    }

    /// Method: a client that may impersonate sends events whose names in `extra` are empty, consist
    /// of dots, contradict one another or fill the limit of fields. A real server must store these,
    /// and the events of everybody else, in each shape that promises it, and as they are with the
    /// template of the documentation, which also helps against a name that is a date.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn names_that_a_client_chooses_cost_a_small_opensearch_no_event() {
        let names = ["", ".", "a", "a.b", "a.b.c", "arn.x", "authentication", "sigs.k8s", " "];
        let many: BTreeMap<_, _> = (0..2000).map(|name| (format!("n{name}"), ["v"])).collect();
        let extras = names.map(|name| json!({name: ["v"]})).into_iter().chain([json!(many)]);
        let known =
            r#""extra":{"arn":["a"],"sigs.k8s.io/aws-iam-authenticator/principalId":["p"]}"#;
        let mut events: Vec<_> = extras
            .map(|extra| format!(r#""extra":{extra}"#))
            .chain(std::iter::repeat_n(known.to_owned(), 20))
            .enumerate()
            .map(|(number, extra)| {
                format!(
                    r#"{{"level":"Metadata","auditID":"e{number}","stage":"ResponseComplete","user":{{"username":"u",{extra}}},"impersonatedUser":{{"username":"i",{extra}}},"objectRef":{{"name":"NAME"}},"stageTimestamp":"2026-11-20T06:24:22.439323Z"}}"#
                )
            })
            .collect();
        let page = std::fs::read_to_string(repository().join("docs/destinations/elasticsearch.md"));
        let page = page.expect("the page");
        let template = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let template: Value = serde_json::from_str(template.expect("a template")).expect("JSON");
        for shape in ["ecs", "ocsf", "event", "event\"\nfilter.bodies = \"keep"] {
            events.reverse();
            let server = OpenSearch::start();
            let is_as_received = shape.ends_with("keep");
            if is_as_received {
                server.make_index(&template);
            }
            let more = format!("filter.shape = \"{shape}\"");
            let address = server.address.parse().unwrap();
            let relay = Relay::start(&format!("{BASE}{}", to_elasticsearch_in_ecs(address, &more)));
            for (index, event) in events.iter().enumerate() {
                let name = if is_as_received && index == 0 { "2026-11-27" } else { "n" };
                assert_eq!(relay.post(&list_of(&[event.replace("NAME", name)])).status, 200);
                relay.wait_until_delivered(PATIENCE);
            }
            assert_eq!(server.count(), events.len() as u64, "{shape}");
            assert_eq!(of_output(&relay, "output_events_total"), events.len() as f64, "{shape}");
            assert_eq!(relay.metrics().sum("output_errors_total"), 0.0, "{shape}");
            relay.finish(Backlog::Empty);
        }
    }

    /// Method: a real server gets the whole corpus in the default shape. It must store every event
    /// with all its values.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn with_its_defaults_a_small_opensearch_stores_the_corpus_and_refuses_nothing() {
        let server = OpenSearch::start();
        let kept = TempDir::new().unwrap();
        let config = format!(
            "{BASE}{}[dead_letter]\ndirectory = \"{}\"\n",
            to_elasticsearch_in_ecs(server.address.parse().unwrap(), ""),
            text(kept.path()),
        );
        let relay = Relay::start(&config);
        let mut expected = Vec::new();
        for body in corpus() {
            assert_eq!(relay.post(&body.bytes).status, 200, "{}", body.name);
            expected
                .extend(events_of(&body.bytes).iter().map(|event| as_stored(event).to_string()));
        }
        relay.wait_until_delivered(PATIENCE * 2);
        assert_eq!(events_in_letters(kept.path()).len(), 0, "refused");
        assert_eq!(server.count(), expected.len() as u64);
        assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
        assert_eq!(of_output(&relay, "output_existing_events_total"), 0.0);
        let found = server.get("_search?size=10000");
        let hits = found["hits"]["hits"].as_array().expect("hits");
        let tame = |value: &Value| value.to_string().replace("1e400", "1");
        let mut stored: Vec<_> =
            hits.iter().map(|hit| tame(&hit["_source"]["kubernetes"]["audit"])).collect();
        stored.sort();
        expected.sort();
        assert!(stored == expected, "{} of {} documents", stored.len(), expected.len());
        relay.finish(Backlog::Empty);
    }
}
