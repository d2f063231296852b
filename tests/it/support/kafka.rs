//! librdkafka's mock cluster, and the records in a topic of the mock or of a real broker. The mock
//! also serves clients in other processes.
//!
//! The mock keeps only the newest 5 MB of a partition. It does not check passwords or certificates.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, bindings};
use tempfile::TempDir;

use super::certificates::{Certificates, Pair};
use super::numbered::{Id, identify};
use super::peers::{Process, program, start_on_free_port};
use super::{PATIENCE, text};

pub(crate) const TOPIC: &str = "audit";

pub(crate) const GROUP: &str = "relays";

/// The types of requests that [`Cluster::fail`] can fail, as numbers of Kafka's protocol.
pub(crate) const PRODUCE: i16 = 0;
pub(crate) const FETCH: i16 = 1;
pub(crate) const OFFSET_COMMIT: i16 = 8;

/// The mock cluster. Brokers are numbered from 1; broker -1 means all of them.
#[allow(unsafe_code, reason = "librdkafka's mock is C")]
struct Mock {
    cluster: *mut bindings::rd_kafka_mock_cluster_t,
    /// The client that owns the mock cluster.
    _client: BaseProducer,
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Mock {
    fn new(brokers: i32) -> Self {
        let client: BaseProducer = ClientConfig::new().create().expect("a client");
        // SAFETY: the client outlives the cluster, because `drop` ends the cluster first.
        let cluster =
            unsafe { bindings::rd_kafka_mock_cluster_new(client.client().native_ptr(), brokers) };
        assert!(!cluster.is_null(), "the mock starts");
        // SAFETY: the cluster was created just now, and is not null.
        unsafe { bindings::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0) };
        Self { cluster, _client: client }
    }

    fn brokers(&self) -> String {
        // SAFETY: the string belongs to the cluster, which is alive.
        let brokers =
            unsafe { CStr::from_ptr(bindings::rd_kafka_mock_cluster_bootstraps(self.cluster)) };
        brokers.to_str().expect("addresses").to_owned()
    }
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Drop for Mock {
    fn drop(&mut self) {
        // SAFETY: `new` made the cluster, and nothing uses it any more.
        unsafe { bindings::rd_kafka_mock_cluster_destroy(self.cluster) };
    }
}

/// A mock cluster with one topic. It `Deref`s to that [`Topic`].
pub(crate) struct Cluster {
    topic: Topic,
    mock: Mock,
}

impl Deref for Cluster {
    type Target = Topic;

    fn deref(&self) -> &Topic {
        &self.topic
    }
}

/// The topic [`TOPIC`] of the mock or of a real broker, as clients see it.
pub(crate) struct Topic {
    /// The addresses of the brokers, separated by commas.
    brokers: String,
    partitions: i32,
}

/// A cluster whose advertised addresses accept only TLS, and only clients with a certificate from
/// our CA. A socat in front of each broker handles TLS, and the broker advertises the socat's
/// address.
pub(crate) struct Secure {
    cluster: Cluster,
    fronts: Vec<Process>,
    _directory: TempDir,
}

impl Secure {
    pub(crate) fn start(brokers: i32, certificates: &Certificates) -> Self {
        let cluster = Cluster::start(brokers, 2 * brokers - 1);
        let directory = TempDir::new().expect("a temporary directory");
        let Pair { certificate, key } = &certificates.server;
        let front = |broker: SocketAddr| {
            start_on_free_port(|port| {
                let listen = format!(
                    "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,cert={},key={},cafile={},verify=1",
                    text(certificate),
                    text(key),
                    text(&certificates.ca)
                );
                let connect = format!("TCP:{broker}");
                Process::new(program("socat"), &[&listen, &connect], port, directory.path())
            })
        };
        let fronts: Vec<Process> = cluster.addresses().into_iter().map(front).collect();
        for (broker, front) in (1..).zip(&fronts) {
            cluster.advertise(broker, "localhost", front.address().port());
        }
        Self { cluster, fronts, _directory: directory }
    }

    /// Returns the address of each socat, as `localhost:PORT`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let ports = self.fronts.iter().map(|front| front.address().port());
        ports.map(|port| format!("localhost:{port}")).collect()
    }

    /// Makes the same brokers reachable without TLS: each broker advertises its own address again.
    pub(crate) fn into_plain(self) -> Cluster {
        for (broker, address) in (1..).zip(self.cluster.addresses()) {
            self.cluster.advertise(broker, "127.0.0.1", address.port());
        }
        self.cluster
    }
}

/// A record of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Cluster {
    /// Starts `brokers` brokers, and creates the topic with `partitions` partitions.
    pub(crate) fn start(brokers: i32, partitions: i32) -> Self {
        let cluster = Self::without_topic(brokers, partitions);
        cluster.create_topic();
        cluster
    }

    pub(crate) fn without_topic(brokers: i32, partitions: i32) -> Self {
        let mock = Mock::new(brokers);
        Self { topic: Topic::new(mock.brokers(), partitions), mock }
    }

    pub(crate) fn create_topic(&self) {
        let topic = CString::new(TOPIC).expect("no zero");
        // SAFETY: the cluster lives, and copies the name.
        let error = unsafe {
            bindings::rd_kafka_mock_topic_create(
                self.mock.cluster,
                topic.as_ptr(),
                self.topic.partitions,
                1,
            )
        };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    /// Answers the next requests of this type with these errors, one for each request. `_TRANSPORT`
    /// closes the connection instead.
    pub(crate) fn fail(&self, kind: i16, errors: &[RDKafkaRespErr]) {
        // SAFETY: the cluster lives, and copies the errors.
        unsafe {
            bindings::rd_kafka_mock_push_request_errors_array(
                self.mock.cluster,
                kind,
                errors.len(),
                errors.as_ptr(),
            );
        }
    }

    pub(crate) fn set_up(&self, broker: i32, up: bool) {
        // SAFETY: the cluster lives.
        let error = unsafe {
            match up {
                true => bindings::rd_kafka_mock_broker_set_up(self.mock.cluster, broker),
                false => bindings::rd_kafka_mock_broker_set_down(self.mock.cluster, broker),
            }
        };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    /// Delays each answer of this broker by this time.
    pub(crate) fn delay(&self, broker: i32, by: Duration) {
        let millis = i32::try_from(by.as_millis()).expect("seconds");
        // SAFETY: the cluster lives.
        let error =
            unsafe { bindings::rd_kafka_mock_broker_set_rtt(self.mock.cluster, broker, millis) };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    pub(crate) fn lead(&self, partition: i32, broker: i32) {
        let topic = CString::new(TOPIC).expect("no zero");
        // SAFETY: the cluster lives, and copies the name.
        let error = unsafe {
            bindings::rd_kafka_mock_partition_set_leader(
                self.mock.cluster,
                topic.as_ptr(),
                partition,
                broker,
            )
        };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    /// Sets the address that a broker advertises. It can differ from the address that it listens
    /// on.
    pub(crate) fn advertise(&self, broker: i32, host: &str, port: u16) {
        let host = CString::new(host).expect("no zero");
        // SAFETY: the cluster lives, and copies the name.
        unsafe {
            bindings::rd_kafka_mock_broker_set_host_port(
                self.mock.cluster,
                broker,
                host.as_ptr(),
                i32::from(port),
            );
        }
    }
}

impl Topic {
    /// Describes a topic with this many partitions on these brokers. Creates nothing.
    pub(crate) fn new(brokers: String, partitions: i32) -> Self {
        Self { brokers, partitions }
    }

    /// Returns the addresses that the brokers listen on.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.brokers.split(',').map(|broker| broker.parse().expect("an address")).collect()
    }

    /// Puts messages into a partition in this order, and waits until the brokers have them.
    pub(crate) fn put(&self, partition: i32, payloads: &[Vec<u8>]) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("message.max.bytes", "10000000")
            .create()
            .expect("a producer");
        for payload in payloads {
            let record = BaseRecord::<[u8], _>::to(TOPIC).partition(partition).payload(payload);
            producer.send(record).map_err(|(error, _)| error).expect("room for it");
        }
        producer.flush(PATIENCE).expect("the brokers take it");
    }

    /// Returns the value of the config's key `brokers`.
    pub(crate) fn brokers(&self) -> String {
        let brokers: Vec<String> =
            self.brokers.split(',').map(|broker| format!("{broker:?}")).collect();
        format!("[{}]", brokers.join(", "))
    }

    /// Returns the config of an output that sends to the topic. `more` adds keys, with inline
    /// tables.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let retry = if more.contains("retry") {
            ""
        } else {
            "retry = { initial_interval = \"50ms\", max_interval = \"500ms\" }\n"
        };
        format!(
            "[[output]]\nname = \"{name}\"\ntype = \"kafka\"\nbrokers = {}\ntopic = \"{TOPIC}\"\n\
             {retry}{more}\n",
            self.brokers()
        )
    }

    /// Returns the config of a source that reads the topic. The session timeout is short because
    /// the mock forms a new group only one second before it expires.
    pub(crate) fn source(&self, more: &str) -> String {
        format!(
            "[[source]]\nname = \"topic\"\ntype = \"kafka\"\nbrokers = {}\ntopic = \"{TOPIC}\"\n\
             group = \"{GROUP}\"\nsession_timeout = \"3s\"\n{more}\n",
            self.brokers()
        )
    }

    fn list(&self, offset: Offset) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition_offset(TOPIC, partition, offset).expect("an offset");
        }
        list
    }

    /// Waits until the topic has at least `count` messages and none has arrived for half a second.
    /// Returns all messages, sorted by partition and offset.
    pub(crate) fn records(&self, count: usize, limit: Duration) -> Vec<Record> {
        let reader = reader(&self.brokers);
        reader.assign(&self.list(Offset::Beginning)).expect("an assignment");
        let end = Instant::now() + limit;
        let (mut records, mut quiet_since) = (Vec::new(), Instant::now());
        // The half second reveals messages that the test does not expect.
        while records.len() < count || quiet_since.elapsed() < Duration::from_millis(500) {
            assert!(Instant::now() < end, "{} of {count} messages in {limit:?}", records.len());
            let Some(Ok(message)) = reader.poll(Duration::from_millis(50)) else { continue };
            quiet_since = Instant::now();
            records.push(Record {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                payload: message.payload().unwrap_or_default().to_vec(),
            });
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Returns the group's committed offset of each partition, or 0 if a partition has none.
    pub(crate) fn committed(&self) -> BTreeMap<i32, i64> {
        // Each call uses a new reader, because one that has lost its coordinator can wait a long
        // time for the next.
        let reader = reader(&self.brokers);
        let list = self.list(Offset::Invalid);
        let committed = reader.committed_offsets(list, PATIENCE).expect("the coordinator");
        let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        let elements = committed.elements();
        elements.iter().map(|element| (element.partition(), offset(element.offset()))).collect()
    }
}

/// Creates a reader of the topic that does not join the group.
fn reader(brokers: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer")
}

/// Returns the ids of the events in these records, in the same order.
pub(crate) fn ids(records: &[Record]) -> Vec<Id> {
    records.iter().map(|record| identify(&record.payload)).collect()
}
