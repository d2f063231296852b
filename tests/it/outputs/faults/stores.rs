//! The stores that the faults strike: services that answer each request.
//!
//! The stores are the strict fakes of `tests/it/support`. They keep their data in memory, so they
//! can't be processes that are killed. For a kill, the store resets all connections, accepts no
//! others, and forgets the data that a killed process would lose. For a stop, the store reads and
//! answers nothing, while its kernel still accepts bytes.

use super::outputs::{Blow, Output, Peer, REQUEST_EVENTS, numbers, parts};
use crate::support::elasticsearch::Elasticsearch;
use crate::support::ibm::Ibm;
use crate::support::loki::Loki;
use crate::support::otlp::Otlp;
use crate::support::prelude::*;
use crate::support::s3::S3;
use crate::support::splunk::Splunk;
use crate::support::{elasticsearch, ibm, loki, otlp, s3, splunk};

/// The largest request, in bytes, that the fakes with a size parameter accept.
const BYTES_MAX: usize = 4_000_000;

/// The time between storing a request and answering it. A fault that strikes in between makes the
/// relay send the stored events again.
const ANSWER_TIME: Duration = Duration::from_millis(10);

/// The keys of all stores: few events in each request, and no compression, so that a number of
/// bytes corresponds to a number of events.
fn small_requests() -> String {
    format!("batch = {{ max_events = {REQUEST_EVENTS} }}\ncompression = \"none\"\n")
}

/// Returns a row for a store that gets up to four requests at a time.
fn output(
    name: &'static str,
    peer: impl Peer + 'static,
    keys: impl Fn(SocketAddr) -> String + 'static,
) -> Output {
    Output {
        name,
        keys: Box::new(move |address| keys(address) + &small_requests()),
        peer: Box::new(peer),
        ordered: false,
        answers: true,
        window: Some(4 * REQUEST_EVENTS),
        rounds: 4,
        unstored_max: 0,
    }
}

/// Returns a row for a store that gets one request at a time, so that events arrive in order. After
/// a stop, the store can read two requests: the one that timed out, and the next one.
fn ordered(
    name: &'static str,
    peer: impl Peer + 'static,
    keys: impl Fn(SocketAddr) -> String + 'static,
) -> Output {
    let keys = move |address| keys(address) + "concurrency = 1\n";
    Output { ordered: true, window: Some(2 * REQUEST_EVENTS), ..output(name, peer, keys) }
}

/// An event is final once the collector has confirmed that it is indexed. Many requests can wait
/// for that at the same time, so there is no bound: the test counts the events that are indexed and
/// not yet confirmed.
pub(super) fn splunk_hec() -> Output {
    // Every third answer says that a request is not indexed yet.
    let mut asked = 0;
    let indexes = move || {
        asked += 1;
        asked % 3 != 0
    };
    let script = splunk::Script { indexes: Box::new(indexes), ..splunk::Script::default() };
    let directory = TempDir::new().expect("a temporary directory");
    let token = directory.path().join("token");
    std::fs::write(&token, splunk::TOKEN).expect("a writable directory");
    let keys = move |address| {
        // The closure owns the directory, because it is deleted when it is dropped.
        let token = directory.path().join("token");
        splunk::keys(address, text(&token)) + "ack_interval = \"100ms\"\n"
    };
    Output { window: None, ..output("splunk_hec", slow(Splunk::start(script)), keys) }
}

pub(super) fn elasticsearch() -> Output {
    let store = Elasticsearch::start(BYTES_MAX, || elasticsearch::Mood::Judges, |_| 201);
    let keys = |address| elasticsearch::keys(address) + elasticsearch::OWN_SHAPE;
    output("elasticsearch", slow(store), keys)
}

pub(super) fn ibm_cloud_logs() -> Output {
    let script = ibm::Script::default();
    let directory = TempDir::new().expect("a temporary directory");
    ibm::write_secret(&directory.path().join("key"), &script.credential);
    let store = slow(Ibm::start(script));
    let (iam, ca) = (store.iam.address(), store.certificates.ca.clone());
    output("ibm_cloud_logs", store, move |address| {
        let key = directory.path().join("key");
        ibm::keys(address, iam) + &format!("api_key_file = {key:?}\ntls = {{ ca = {ca:?} }}\n")
    })
}

/// One object is sent at a time. After a fault, the whole object is sent again.
pub(super) fn s3() -> Output {
    let (store, files) = (S3::start(|| s3::Mood::Stores), s3::Keys::new());
    let objects = "object_bytes = \"64KiB\"\nobject_age = \"200ms\"\n";
    let keys = move |address| files.keys(address) + objects;
    Output { ordered: true, window: Some(1), ..output("s3", slow(store), keys) }
}

pub(super) fn loki() -> Output {
    let store = Loki::start(BYTES_MAX, || loki::Mood::Stores, |_| true);
    ordered("loki", slow(store), loki::keys)
}

pub(super) fn otlp() -> Output {
    let store = Otlp::start(BYTES_MAX, || otlp::Mood::Stores(200), |_| true);
    ordered("otlp", slow(store), otlp::keys)
}

/// Makes a store answer [`ANSWER_TIME`] after it has stored a request.
fn slow<S: Store>(store: S) -> S {
    store.sink().stand_in_front(|request, store| store(request).after(ANSWER_TIME));
    store
}

/// A fake of a store.
pub(in crate::outputs) trait Store {
    fn sink(&self) -> &HttpSink;

    fn sink_mut(&mut self) -> &mut HttpSink;

    /// Forgets the data that a killed process would lose.
    fn forget(&self) {}

    /// Returns how many events (of `s3`: objects) are stored. An event that is stored twice counts
    /// twice.
    fn count(&self) -> usize;

    /// Returns the stored events in the order in which they arrived, unless the store sorts them.
    fn events(&self) -> Vec<Vec<u8>>;

    /// The value of [`Peer::again`].
    fn again(&self) -> Option<usize> {
        None
    }
}

impl<S: Store> Peer for S {
    fn address(&self) -> SocketAddr {
        self.sink().address()
    }

    fn suffer(&mut self, what: Blow) {
        match what {
            Blow::Freeze => self.sink().pause(true),
            Blow::Thaw => self.sink().pause(false),
            Blow::Kill => {
                self.sink_mut().kill();
                self.forget();
            }
            Blow::Start => self.sink_mut().reopen(),
        }
    }

    fn stored(&self) -> Option<u64> {
        Some(self.count() as u64)
    }

    fn stretches(&self, _: u64) -> Vec<Vec<u64>> {
        parts(&numbers(&self.events()))
    }

    fn again(&self) -> Option<u64> {
        Store::again(self).map(|again| again as u64)
    }
}

impl Store for Splunk {
    fn sink(&self) -> &HttpSink {
        &self.sink
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.sink
    }

    fn forget(&self) {
        self.store().forget();
    }

    fn count(&self) -> usize {
        self.store().indexed.len()
    }

    fn events(&self) -> Vec<Vec<u8>> {
        self.store().indexed.clone()
    }
}

impl Store for Elasticsearch {
    fn sink(&self) -> &HttpSink {
        &self.sink
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.sink
    }

    fn count(&self) -> usize {
        self.store().documents.len()
    }

    /// Returns the documents in the order of their `_id`.
    fn events(&self) -> Vec<Vec<u8>> {
        Elasticsearch::events(self)
    }

    fn again(&self) -> Option<usize> {
        Some(self.store().again)
    }
}

impl Store for Ibm {
    fn sink(&self) -> &HttpSink {
        &self.logs
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.logs
    }

    fn count(&self) -> usize {
        self.memory().stored.len()
    }

    fn events(&self) -> Vec<Vec<u8>> {
        self.memory().stored.clone()
    }
}

impl Store for S3 {
    fn sink(&self) -> &HttpSink {
        &self.sink
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.sink
    }

    fn count(&self) -> usize {
        self.store().objects.len()
    }

    /// Returns the lines in the order of the objects' names.
    fn events(&self) -> Vec<Vec<u8>> {
        self.store().lines()
    }

    fn again(&self) -> Option<usize> {
        Some(self.store().again)
    }
}

impl Store for Loki {
    fn sink(&self) -> &HttpSink {
        &self.sink
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.sink
    }

    fn count(&self) -> usize {
        self.store().entries.len()
    }

    fn events(&self) -> Vec<Vec<u8>> {
        self.store().lines()
    }

    fn again(&self) -> Option<usize> {
        Some(self.store().again)
    }
}

impl Store for Otlp {
    fn sink(&self) -> &HttpSink {
        &self.sink
    }

    fn sink_mut(&mut self) -> &mut HttpSink {
        &mut self.sink
    }

    fn count(&self) -> usize {
        self.store().records.len()
    }

    fn events(&self) -> Vec<Vec<u8>> {
        self.store().bodies()
    }
}
