//! A strict fake of Elasticsearch's bulk API. It checks the headers, the path and every line, and
//! keeps the documents by their `_id` while no relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use serde_json::value::RawValue;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;

/// The index that the relay's config must name.
pub(crate) const INDEX: &str = "logs-kubernetes.audit_logs-default";

/// The key with which an output sends events in their own shape, including their bodies.
pub(crate) const OWN_SHAPE: &str = "filter = { shape = \"event\", bodies = \"keep\" }\n";

/// The path and query of each request.
const TARGET: &str = "/_bulk?filter_path=errors,items.*.status,items.*.error,items.*.failure_store";

/// How the consumer handles one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The consumer stores or refuses each document, as the function `status` says.
    Judges,
    /// The consumer responds with 413 if there are more than 50 documents. Otherwise like `Judges`.
    Small,
    /// The consumer stores all that it does not refuse, and closes the connection.
    Mute,
    /// The consumer stores all that it does not refuse, but its answer breaks off.
    Cut,
}

/// The documents by `_id`, and the requests so far.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) documents: BTreeMap<String, Vec<u8>>,
    /// The `_id` of each document, in the order in which they were stored.
    pub(crate) order: Vec<String>,
    /// The number of documents in each request.
    pub(crate) requests: Vec<usize>,
    /// How many times a document arrived that was stored already.
    pub(crate) again: usize,
}

pub(crate) type Elasticsearch = Keeper<Store>;

impl Elasticsearch {
    /// Starts a consumer. It calls `mood` once for each request, and `status` for each document
    /// that is not stored yet.
    pub(crate) fn start(
        bytes_max: usize,
        mood: impl FnMut() -> Mood + Send + 'static,
        status: impl FnMut(&[u8]) -> u16 + Send + 'static,
    ) -> Self {
        Self::with(Options::default(), bytes_max, mood, status)
    }

    pub(crate) fn with(
        options: Options,
        bytes_max: usize,
        mut mood: impl FnMut() -> Mood + Send + 'static,
        mut status: impl FnMut(&[u8]) -> u16 + Send + 'static,
    ) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let sink = HttpSink::remembering(options, move |request| {
            let documents = documents(request, bytes_max);
            let mut store = kept.lock().expect("not poisoned");
            store.requests.push(documents.len());
            let mood = mood();
            let mood = match mood {
                Mood::Small if documents.len() > 50 => return Answer::status(413),
                Mood::Small => Mood::Judges,
                mood @ (Mood::Judges | Mood::Mute | Mood::Cut) => mood,
            };
            let mut items = Vec::new();
            for (id, document) in documents {
                let status = match store.documents.get(&id) {
                    Some(there) => {
                        assert_eq!(*there, document, "{id} names two documents");
                        store.again += 1;
                        409
                    }
                    None => match status(&document) {
                        busy @ (429 | 503) if mood == Mood::Judges => busy,
                        429 | 503 => 201,
                        status => status,
                    },
                };
                if status == 201 {
                    store.order.push(id.clone());
                    store.documents.insert(id, document);
                }
                let kind = match status {
                    201 => None,
                    409 => Some(json!({"type": "version_conflict_engine_exception"})),
                    _ => Some(json!({"type": "some_exception"})),
                };
                items.push(json!({"create": {"status": status, "error": kind}}));
            }
            let answer = json!({"items": items}).to_string();
            match mood {
                Mood::Judges => Answer::status(200).body(answer),
                Mood::Mute => Answer::hang_up(),
                Mood::Cut => {
                    let length = 2 * answer.len();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    Answer::raw(head + &answer).closing()
                }
                Mood::Small => unreachable!("answered above"),
            }
        });
        Self { sink, kept: store }
    }

    /// Returns the events of all documents without the relay's `@timestamp`, in no particular
    /// order.
    pub(crate) fn events(&self) -> Vec<Vec<u8>> {
        self.store().documents.values().map(|document| event_of(document)).collect()
    }
}

/// Returns the config of an output to this consumer, for events in their own shape.
pub(crate) fn to_elasticsearch(address: SocketAddr, more: &str) -> String {
    to_elasticsearch_in_ecs(address, &format!("{OWN_SHAPE}{more}"))
}

/// Returns the config of an output to this consumer, for events in the default shape.
pub(crate) fn to_elasticsearch_in_ecs(address: SocketAddr, more: &str) -> String {
    format!("[[output]]\nname = \"consumer\"\n{}{more}\n", keys(address))
}

/// Returns the keys of an output to this consumer, for events in the default shape.
pub(crate) fn keys(address: SocketAddr) -> String {
    format!("type = \"elasticsearch\"\nurls = [\"http://{address}\"]\nindex = \"{INDEX}\"\n")
}

/// Returns the documents of a request with their `_id`. Panics if the bulk API would refuse it.
fn documents(request: &Request, bytes_max: usize) -> Vec<(String, Vec<u8>)> {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", TARGET));
    assert_eq!(request.header("content-type"), Some("application/x-ndjson"));
    let body = request.decoded();
    assert!(body.ends_with(b"\n"), "the last line has no line break");
    let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
    let (pairs, rest) = lines.as_chunks::<2>();
    assert_eq!(rest, [b""], "an action without a document");
    assert!(body.len() <= bytes_max || pairs.len() == 1, "{} bytes", body.len());
    let document = |[action, document]: &[&[u8]; 2]| {
        let action: serde_json::Value = serde_json::from_slice(action).expect("JSON");
        let id = action["create"]["_id"].as_str().expect("a document's _id").to_owned();
        assert_eq!(action, json!({"create": {"_index": INDEX, "_id": id}}));
        assert!(id.len() <= 512);
        (id, document.to_vec())
    };
    pairs.iter().map(document).collect()
}

/// Returns the event of a document: all of it except the member `@timestamp`, which is first.
pub(crate) fn event_of(document: &[u8]) -> Vec<u8> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(document).expect("JSON");
    let first = format!("{{\"@timestamp\":{}", members["@timestamp"]);
    let rest = document.strip_prefix(first.as_bytes()).expect("the time comes first");
    [b"{", rest.strip_prefix(b",").unwrap_or(rest)].concat()
}
