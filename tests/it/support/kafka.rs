//! librdkafka's mock cluster, which serves clients of other processes too, and what lies in its topics.
//!
//! It keeps the newest 5 MB of a partition, and holds no client to any password or certificate.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ffi::CString;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use rdkafka::ClientConfig;
use rdkafka::bindings;
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use rdkafka::producer::BaseProducer;
use rdkafka::producer::BaseRecord;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::Offset;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tempfile::TempDir;

use super::PATIENCE;
use super::certificates::Certificates;
use super::certificates::Pair;
use super::numbered::Id;
use super::numbered::identify;
use super::peers::Process;
use super::peers::program;
use super::peers::start_on_free_port;
use super::text;

/// The topic of the tests.
pub(crate) const TOPIC: &str = "audit";

/// The group of the tests.
pub(crate) const GROUP: &str = "relays";

/// Requests that faults can be put on, by the numbers of Kafka's protocol.
pub(crate) const PRODUCE: i16 = 0;
pub(crate) const FETCH: i16 = 1;
pub(crate) const OFFSET_COMMIT: i16 = 8;

/// The mock itself, with what `rdkafka::mocking` has and a little more. Brokers are numbered from 1; -1 is all.
#[allow(unsafe_code, reason = "librdkafka's mock is C")]
struct Mock {
    cluster: *mut bindings::rd_kafka_mock_cluster_t,
    /// The mock lives in a client.
    _client: BaseProducer,
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Mock {
    fn new(brokers: i32) -> Self {
        let client: BaseProducer = ClientConfig::new().create().expect("a client");
        // SAFETY: the client outlives the cluster, which `drop` ends before it.
        let cluster =
            unsafe { bindings::rd_kafka_mock_cluster_new(client.client().native_ptr(), brokers) };
        assert!(!cluster.is_null(), "the mock starts");
        // SAFETY: the cluster is whole.
        unsafe { bindings::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0) };
        Self { cluster, _client: client }
    }

    fn brokers(&self) -> String {
        // SAFETY: a string of the cluster, which lives.
        let brokers =
            unsafe { CStr::from_ptr(bindings::rd_kafka_mock_cluster_bootstraps(self.cluster)) };
        brokers.to_str().expect("addresses").to_owned()
    }
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Drop for Mock {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody any more.
        unsafe { bindings::rd_kafka_mock_cluster_destroy(self.cluster) };
    }
}

/// A cluster with one topic.
pub(crate) struct Cluster {
    partitions: i32,
    mock: Mock,
}

/// A cluster whose brokers are reached by TLS only, and by who presents a certificate of our CA only: socat stands before
/// each, and each says that it is where its socat listens.
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

    /// `localhost:PORT` each.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let ports = self.fronts.iter().map(|front| front.address().port());
        ports.map(|port| format!("localhost:{port}")).collect()
    }

    /// The same brokers without TLS.
    pub(crate) fn into_plain(self) -> Cluster {
        for (broker, address) in (1..).zip(self.cluster.addresses()) {
            self.cluster.advertise(broker, "127.0.0.1", address.port());
        }
        self.cluster
    }
}

/// What lies in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

#[allow(unsafe_code, reason = "librdkafka's mock is C")]
impl Cluster {
    /// So many brokers, and the topic with so many partitions.
    pub(crate) fn start(brokers: i32, partitions: i32) -> Self {
        let cluster = Self::without_topic(brokers, partitions);
        cluster.create_topic();
        cluster
    }

    pub(crate) fn without_topic(brokers: i32, partitions: i32) -> Self {
        let mock = Mock::new(brokers);
        Self { partitions, mock }
    }

    pub(crate) fn create_topic(&self) {
        let topic = CString::new(TOPIC).expect("no zero");
        // SAFETY: the cluster lives, and copies the name.
        let error = unsafe {
            bindings::rd_kafka_mock_topic_create(
                self.mock.cluster,
                topic.as_ptr(),
                self.partitions,
                1,
            )
        };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    /// The next requests of this kind get these answers, one each; `_TRANSPORT` ends the connection.
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

    /// Each answer comes so much later.
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

    /// What a broker says where it is, which is not where it listens.
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

    /// Where the brokers listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let brokers = self.mock.brokers();
        brokers.split(',').map(|broker| broker.parse().expect("an address")).collect()
    }

    /// Puts messages into a partition, in this order.
    pub(crate) fn put(&self, partition: i32, payloads: &[Vec<u8>]) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.mock.brokers())
            .set("message.max.bytes", "10000000")
            .create()
            .expect("a producer");
        for payload in payloads {
            let record = BaseRecord::<[u8], _>::to(TOPIC).partition(partition).payload(payload);
            producer.send(record).map_err(|(error, _)| error).expect("room for it");
        }
        producer.flush(PATIENCE).expect("the brokers take it");
    }

    /// `brokers` of a config.
    pub(crate) fn brokers(&self) -> String {
        let brokers = self.mock.brokers();
        let brokers: Vec<String> = brokers.split(',').map(|broker| format!("{broker:?}")).collect();
        format!("[{}]", brokers.join(", "))
    }

    /// The output that sends to the topic. `more` holds further keys, tables inline.
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

    /// The source that reads the topic. The mock forms a group anew a second sooner than `session_timeout`.
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

    /// Waits until the topic holds at least so many messages, and gives them all, by partition.
    pub(crate) fn records(&self, count: usize, limit: Duration) -> Vec<Record> {
        let reader = reader(&self.mock.brokers());
        reader.assign(&self.list(Offset::Beginning)).expect("an assignment");
        let end = Instant::now() + limit;
        let (mut records, mut quiet_since) = (Vec::new(), Instant::now());
        // What comes after the last that was waited for would be one too many.
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

    /// The group's committed offsets, by partition; 0 where there is none.
    pub(crate) fn committed(&self) -> BTreeMap<i32, i64> {
        // One that has known better days of a coordinator may wait for it for long.
        let reader = reader(&self.mock.brokers());
        let list = self.list(Offset::Invalid);
        let committed = reader.committed_offsets(list, PATIENCE).expect("the coordinator");
        let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        let elements = committed.elements();
        elements.iter().map(|element| (element.partition(), offset(element.offset()))).collect()
    }
}

/// Reads what is there, and joins no group.
fn reader(brokers: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer")
}

/// Whose events these are, in their order.
pub(crate) fn ids(records: &[Record]) -> Vec<Id> {
    records.iter().map(|record| identify(&record.payload)).collect()
}
