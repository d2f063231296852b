//! A strict fake of Loki's push API. It checks every header, label and limit. Like Loki, it stores
//! entries with equal time, labels and line only once. It keeps the entries while no relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;

/// The tenant that the relay's config must name.
pub(crate) const TENANT: &str = "team-a";

/// The possible values of the label `verb`.
const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "other"];

/// How the consumer handles one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The consumer stores the valid entries. It responds with 204, or 400 if an entry is invalid.
    Stores,
    /// Like [`Mood::Stores`], but it responds with 200 instead of 204.
    StoresWith200,
    /// The consumer responds with this status and stores nothing.
    Status(u16),
    /// The consumer responds with 413 if there are more than 50 entries. Otherwise like `Stores`.
    Small,
    /// The consumer stores the valid entries, and responds with 500.
    StoresAndFails,
    /// The consumer stores the valid entries, but its answer breaks off.
    Cut,
    /// The consumer stores nothing, and responds with 200 and an error.
    FailsWith200,
}

/// A log entry. Its time is in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) time: u64,
    pub(crate) line: String,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
}

/// The entries and the requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The stored entries, in the order in which they first arrived.
    pub(crate) entries: Vec<Entry>,
    /// The index in `entries` of each time, labels and line.
    known: BTreeMap<(u64, BTreeMap<String, String>, String), usize>,
    /// The number of entries in each request.
    pub(crate) requests: Vec<usize>,
    /// How many times an entry arrived that was stored already.
    pub(crate) again: usize,
}

impl Store {
    fn add(&mut self, entry: Entry) {
        let name = (entry.time, entry.labels.clone(), entry.line.clone());
        match self.known.get(&name) {
            Some(there) => {
                assert_eq!(self.entries[*there], entry, "an entry came again and was not the same");
                self.again += 1;
            }
            None => {
                self.known.insert(name, self.entries.len());
                self.entries.push(entry);
            }
        }
    }

    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        self.entries.iter().map(|entry| entry.line.clone().into_bytes()).collect()
    }
}

pub(crate) type Loki = Keeper<Store>;

impl Loki {
    /// Starts a consumer for requests of at most `bytes_max` bytes before compression. It calls
    /// `mood` once for each request, and `is_valid` once for each line.
    pub(crate) fn start(
        bytes_max: usize,
        mood: impl FnMut() -> Mood + Send + 'static,
        is_valid: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        Self::with(Options::default(), bytes_max, mood, is_valid)
    }

    pub(crate) fn with(
        options: Options,
        bytes_max: usize,
        mut mood: impl FnMut() -> Mood + Send + 'static,
        is_valid: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let sink = HttpSink::remembering(options, move |request| {
            let entries = entries(request, bytes_max);
            let mut store = kept.lock().expect("not poisoned");
            store.requests.push(entries.len());
            let mood = mood();
            let stores = match mood {
                Mood::Status(_) | Mood::FailsWith200 => false,
                Mood::Small => entries.len() <= 50,
                Mood::Stores | Mood::StoresWith200 | Mood::StoresAndFails | Mood::Cut => true,
            };
            let mut refused = 0;
            for entry in entries {
                match is_valid(entry.line.as_bytes()) {
                    true if stores => store.add(entry),
                    true => {}
                    false => refused += 1,
                }
            }
            let judged = |status| match refused {
                0 => Answer::status(status),
                // Loki's answer contains the line, or a part of it.
                _ => Answer::status(400).body("entry too far behind: s3cr3t\n"),
            };
            match mood {
                Mood::Stores => judged(204),
                Mood::StoresWith200 => judged(200),
                Mood::Small if stores => judged(204),
                Mood::Small => Answer::status(413),
                Mood::Status(status) => Answer::status(status),
                Mood::StoresAndFails => Answer::status(500),
                Mood::Cut => Answer::raw("HTTP/1.1 204 No Cont").closing(),
                Mood::FailsWith200 => {
                    Answer::status(200).body(r#"{"status":"error","error":"s3cr3t"}"#)
                }
            }
        });
        Self { sink, kept: store }
    }
}

/// Returns the config of an output to this consumer. `more` adds keys.
pub(crate) fn to_loki(address: SocketAddr, more: &str) -> String {
    format!("[[output]]\nname = \"consumer\"\n{}{more}\n", keys(address))
}

/// Returns the keys of an output to this consumer.
pub(crate) fn keys(address: SocketAddr) -> String {
    format!("type = \"loki\"\nurls = [\"http://{address}\"]\ntenant = \"{TENANT}\"\n")
}

/// Returns the entries of a request. Panics if the push API would refuse the request, or if two
/// streams have the same labels.
fn entries(request: &Request, bytes_max: usize) -> Vec<Entry> {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/loki/api/v1/push"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert!(matches!(request.header("content-encoding"), None | Some("gzip")));
    assert_eq!(request.header("x-scope-orgid"), Some(TENANT));
    let body = request.decoded();
    let mut push: BTreeMap<String, Vec<BTreeMap<String, Value>>> =
        serde_json::from_slice(&body).expect("a request of the push API");
    let streams = push.remove("streams").expect("streams");
    assert!(push.is_empty(), "members beside the streams: {:?}", push.keys());
    let (mut found, mut labels_before) = (Vec::new(), Vec::new());
    for mut stream in streams {
        let labels: BTreeMap<String, String> = take(&mut stream, "stream");
        let values: Vec<Vec<Value>> = take(&mut stream, "values");
        assert!(stream.is_empty(), "members beside labels and entries: {:?}", stream.keys());
        assert!(!values.is_empty(), "a stream without entries");
        assert!(labels.len() <= 15, "{labels:?}");
        assert_eq!(labels["log_type"], "audit");
        assert!(VERBS.contains(&labels["verb"].as_str()), "{labels:?}");
        for (name, value) in &labels {
            let in_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            assert!(name.chars().all(in_a_name) && !value.is_empty(), "{name} = {value}");
        }
        assert!(!labels_before.contains(&labels), "two streams of {labels:?}");
        labels_before.push(labels.clone());
        found.extend(values.into_iter().map(|value| entry(labels.clone(), value)));
    }
    assert!(!found.is_empty(), "a request without entries");
    assert!(body.len() <= bytes_max || found.len() == 1, "{} bytes", body.len());
    found
}

fn take<T: serde::de::DeserializeOwned>(of: &mut BTreeMap<String, Value>, name: &str) -> T {
    let value = of.remove(name).unwrap_or_else(|| panic!("no {name}"));
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn entry(labels: BTreeMap<String, String>, value: Vec<Value>) -> Entry {
    let mut value = value.into_iter();
    let mut text = || match value.next() {
        Some(Value::String(text)) => text,
        other => panic!("{other:?} is not a string"),
    };
    let (time, line) = (text(), text());
    assert!(time.bytes().all(|byte| byte.is_ascii_digit()), "{time}");
    let time: i64 = time.parse().expect("nanoseconds");
    let metadata = value.next().map(|metadata| {
        let metadata: BTreeMap<String, String> = serde_json::from_value(metadata).expect("strings");
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(metadata.len() <= 128 && bytes <= 64_000, "{} of {bytes} bytes", metadata.len());
        metadata
    });
    assert_eq!(value.next(), None, "an entry has three parts at most");
    Entry { labels, time: time.unsigned_abs(), line, metadata }
}
