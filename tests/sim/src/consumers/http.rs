//! A consumer for `type = "http"`. It acknowledges a whole request with 2xx, or refuses it.

use std::sync::{Arc, Mutex};

use serde_json::value::RawValue;

use super::front::Own;
use super::{Made, Making, Promise, Stand, front, is_refused, lock};
use crate::support::http_sink::{Answer, HttpSink, Request};
use crate::support::server::Server;

/// The statuses that acknowledge a request.
const TAKEN: [u16; 6] = [200, 200, 200, 201, 202, 204];

impl Stand for HttpSink {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![self]
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct EventList<'b> {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    metadata: Option<serde_json::Value>,
    #[serde(borrow)]
    items: Vec<&'b RawValue>,
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let format = ["event_list", "ndjson", "json_array"][making.rng.usize(..3)];
    let compression = ["none", "gzip", "zstd"][making.rng.usize(..3)];
    let concurrency = [1, 1, 4][making.rng.usize(..3)];
    let manners =
        front::Manners { pages: false, payload: &[400, 413, 422], ..front::manners(making) }
            .early(making, Answer::status(200));
    let refuses = manners.early.is_none();
    let taken = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let (kept, mut rng) = (Arc::clone(&taken), making.rng());
    let sink = HttpSink::remembering(manners.options(making), move |request| {
        let mut events = events(request, format, compression);
        if refuses && events.iter().any(|event| is_refused(event)) {
            return Answer::status([400, 413, 422][rng.usize(..3)]);
        }
        lock(&kept).append(&mut events);
        Answer::status(TAKEN[rng.usize(..TAKEN.len())])
    });
    let drain = move || std::mem::take(&mut *lock(&taken));
    let (promise, keys) =
        manners.promise(Promise { ordered: concurrency == 1, refuses: true, ..Promise::PLAIN });
    front::stand(making, &sink, manners, Own::default(), drain);
    let keys = format!(
        "type = \"http\"\nurls = [\"http://{}/audit\"]\nformat = \"{format}\"\n\
         compression = \"{compression}\"\nconcurrency = {concurrency}\n{keys}",
        sink.address()
    );
    Made { stand: Box::new(sink), keys, promise }
}

/// Returns the events of a request. Panics if it does not match the config.
fn events(request: &Request, format: &str, compression: &str) -> Vec<Vec<u8>> {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/audit"));
    let content_type = match format {
        "ndjson" => "application/x-ndjson",
        _ => "application/json",
    };
    assert_eq!(request.header("content-type"), Some(content_type));
    assert_eq!(request.header("content-encoding").unwrap_or("none"), compression);
    let body = request.decoded();
    let found: Vec<Vec<u8>> = match format {
        "ndjson" => {
            let lines = body.strip_suffix(b"\n").expect("the last line ends");
            lines.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
        }
        "json_array" => {
            let items: Vec<&RawValue> = serde_json::from_slice(&body).expect("an array");
            items.into_iter().map(bytes).collect()
        }
        _ => {
            let list: EventList<'_> = serde_json::from_slice(&body).expect("an EventList");
            let names = (list.kind.as_str(), list.api_version.as_str());
            assert_eq!(names, ("EventList", "audit.k8s.io/v1"), "{:?}", list.metadata);
            list.items.into_iter().map(bytes).collect()
        }
    };
    assert!(!found.is_empty(), "a request without events");
    found
}

fn bytes(value: &RawValue) -> Vec<u8> {
    value.get().as_bytes().to_vec()
}
