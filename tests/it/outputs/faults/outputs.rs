//! The types of outputs that the faults strike. Each is a row with a consumer and with what its
//! protocol promises.

#[cfg(feature = "kafka")]
#[cfg(feature = "kafka")]
use crate::support::consumer::Consumer;
use crate::support::consumer::Protocol;
#[cfg(feature = "kafka")]
use crate::support::kafka::Cluster;
#[cfg(feature = "kafka")]
use crate::support::kafka::TOPIC;
#[cfg(feature = "kafka")]
use crate::support::kafka::ids;
use crate::support::lumberjack_server::LumberjackServer;
#[cfg(feature = "kafka")]
use crate::support::middleman::Middleman;
use crate::support::numbered::identify;
use crate::support::peers::{Process, Rsyslog};
use crate::support::prelude::*;

/// A type of output, and a consumer of it.
pub(super) struct Output {
    pub(super) name: &'static str,
    /// Returns the output's keys for a consumer at this address.
    pub(super) keys: Box<dyn Fn(SocketAddr) -> String>,
    pub(super) peer: Box<dyn Peer>,
    /// True if the output sends events one after the other, so that they arrive in order.
    pub(super) ordered: bool,
    /// True if the consumer sends acknowledgements. Otherwise the output has a `replay_window`.
    pub(super) answers: bool,
    /// How many events (of `s3`: objects) may be sent and not acknowledged. `None` if the output
    /// has no such bound.
    pub(super) window: Option<u64>,
    /// How many times kills and resets strike. After each, an output without acknowledgements sends
    /// little until these bytes are final, so it has fewer rounds.
    pub(super) rounds: usize,
    /// How many bytes the consumer may have read and not stored when it is killed.
    pub(super) unstored_max: usize,
}

/// A consumer, or a substitute for one.
pub(super) trait Peer {
    /// Returns the address that the consumer listens on.
    fn address(&self) -> SocketAddr;

    /// Tells the consumer that relays connect to this address from now on: its own, or that of a
    /// middleman.
    fn is_reached_at(&self, _address: SocketAddr) {}

    fn suffer(&mut self, what: Blow);

    /// Returns how many bytes the consumer has stored. `None` if that can't be seen at any time.
    fn stored(&self) -> Option<u64>;

    /// Returns the numbers of the stored events, at least `at_least` of them, in stretches of
    /// numbers that follow each other.
    fn stretches(&self, at_least: u64) -> Vec<Vec<u64>>;

    /// Returns how many events (of `s3`: objects) came again and were stored already, at a consumer
    /// that knows them and keeps each once. `None` for any other consumer.
    fn again(&self) -> Option<u64> {
        None
    }
}

/// A blow to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGSTOP: the consumer stands still.
    Freeze,
    /// SIGCONT: the consumer continues.
    Thaw,
    /// SIGKILL. A part of an event that it had written is cut off, so that the first event of its
    /// next life is not taken for the rest.
    Kill,
    /// A start after a kill.
    Start,
}

fn strike(process: &mut Process, what: Blow) {
    match what {
        Blow::Freeze => process.freeze(),
        Blow::Thaw => process.thaw(),
        Blow::Kill => process.kill(),
        Blow::Start => process.start(),
    }
}

/// The most events in a request of the http outputs here.
pub(super) const REQUEST_EVENTS: u64 = 50;

/// The most bytes that a kill of rsyslog may lose, which is twice the size of one read of `imtcp`.
pub(super) const RSYSLOG_READ_MAX: usize = 256 * 1024;

pub(super) fn http() -> Output {
    let certificates = Certificates::new();
    Output {
        name: "http",
        keys: Box::new(|address| {
            format!(
                "type = \"http\"\nurls = [\"http://{address}/\"]\n\
                 batch = {{ max_events = {REQUEST_EVENTS} }}\nconcurrency = 4\n"
            )
        }),
        peer: Box::new(Consumer::start(Protocol::Http, &certificates)),
        ordered: false,
        answers: true,
        window: Some(4 * REQUEST_EVENTS),
        rounds: 4,
        unstored_max: 0,
    }
}

pub(super) fn https() -> Output {
    let certificates = Certificates::new();
    let peer = Box::new(Consumer::start(Protocol::Https, &certificates));
    Output {
        name: "https",
        keys: Box::new(move |address| {
            // The closure owns all certificates, because their files are deleted when they are
            // dropped.
            let certificates = &certificates;
            format!(
                "type = \"http\"\nurls = [\"https://localhost:{}/\"]\nconcurrency = 1\n\
                 batch = {{ max_events = {REQUEST_EVENTS} }}\ntls = {{ ca = {:?} }}\n",
                address.port(),
                certificates.ca
            )
        }),
        peer,
        ordered: true,
        answers: true,
        window: Some(REQUEST_EVENTS),
        rounds: 4,
        unstored_max: 0,
    }
}

pub(super) fn tcp() -> Output {
    let certificates = Certificates::new();
    Output {
        name: "tcp",
        keys: Box::new(|address| format!("type = \"tcp\"\naddresses = [\"{address}\"]\n")),
        peer: Box::new(Consumer::start(Protocol::Lines, &certificates)),
        ordered: true,
        answers: false,
        window: None,
        rounds: 3,
        unstored_max: 0,
    }
}

pub(super) fn syslog() -> Output {
    let certificates = Certificates::new();
    Output {
        name: "syslog",
        keys: Box::new(|address| format!("type = \"syslog\"\naddresses = [\"{address}\"]\n")),
        peer: Box::new(Rsyslog::start(Security::Plain, &certificates)),
        ordered: true,
        answers: false,
        window: None,
        rounds: 3,
        unstored_max: RSYSLOG_READ_MAX,
    }
}

pub(super) fn lumberjack() -> Output {
    const WINDOW: u64 = 100;
    Output {
        name: "lumberjack",
        keys: Box::new(|address| {
            format!("type = \"lumberjack\"\naddresses = [\"{address}\"]\nwindow = {WINDOW}\n")
        }),
        peer: Box::new(LumberjackServer::start()),
        ordered: true,
        answers: true,
        window: Some(WINDOW),
        rounds: 4,
        unstored_max: 0,
    }
}

pub(super) fn relp() -> Output {
    let certificates = Certificates::new();
    Output {
        name: "relp",
        keys: Box::new(|address| format!("type = \"relp\"\naddresses = [\"{address}\"]\n")),
        peer: Box::new(Rsyslog::relp(Security::Plain, &certificates)),
        ordered: true,
        answers: true,
        // The default `window` of the output.
        window: Some(128),
        rounds: 4,
        unstored_max: 0,
    }
}

#[cfg(feature = "kafka")]
pub(super) fn kafka() -> Output {
    Output {
        name: "kafka",
        keys: Box::new(|address| {
            format!(
                "type = \"kafka\"\nbrokers = [\"{address}\"]\ntopic = \"{TOPIC}\"\n\
                 batch = {{ max_events = {REQUEST_EVENTS} }}\n"
            )
        }),
        peer: Box::new(Broker::start()),
        // Events are ordered only within a partition.
        ordered: false,
        answers: true,
        // The batches under way arrive again if the relay gives up its producer; otherwise nothing
        // does.
        window: Some(4 * REQUEST_EVENTS),
        rounds: 4,
        unstored_max: 0,
    }
}

impl Peer for Consumer {
    fn address(&self) -> SocketAddr {
        self.process.address()
    }

    fn suffer(&mut self, what: Blow) {
        strike(&mut self.process, what);
    }

    fn stored(&self) -> Option<u64> {
        Some(self.bytes())
    }

    fn stretches(&self, _: u64) -> Vec<Vec<u64>> {
        self.connections().iter().map(|events| numbers(events)).collect()
    }
}

/// rsyslog does not tell which connection brought a message, and reads several connections at a
/// time.
impl Peer for Rsyslog {
    fn address(&self) -> SocketAddr {
        self.process.address()
    }

    fn suffer(&mut self, what: Blow) {
        strike(&mut self.process, what);
        if what == Blow::Kill {
            self.cut_partial_line();
        }
    }

    fn stored(&self) -> Option<u64> {
        Some(self.bytes())
    }

    fn stretches(&self, _: u64) -> Vec<Vec<u64>> {
        parts(&numbers(&self.messages()))
    }
}

impl Peer for LumberjackServer {
    fn address(&self) -> SocketAddr {
        self.process.address()
    }

    fn suffer(&mut self, what: Blow) {
        strike(&mut self.process, what);
        if what == Blow::Kill {
            self.cut_partial_line();
        }
    }

    fn stored(&self) -> Option<u64> {
        Some(self.bytes())
    }

    fn stretches(&self, _: u64) -> Vec<Vec<u64>> {
        parts(&numbers(&self.events()))
    }
}

/// A mock cluster of one broker. The mock keeps its records in memory, so it can't be a process
/// that is killed. For a kill, the broker goes away with its connections and comes back. For a
/// stop, a middleman in front of it stands still.
#[cfg(feature = "kafka")]
struct Broker {
    cluster: Cluster,
    before: Middleman,
}

#[cfg(feature = "kafka")]
impl Broker {
    fn start() -> Self {
        // A partition keeps 5 MB. All eight together hold what a test sends.
        let cluster = Cluster::start(1, 8);
        let before = Middleman::start(cluster.addresses()[0]);
        Self { cluster, before }
    }
}

#[cfg(feature = "kafka")]
impl Peer for Broker {
    fn address(&self) -> SocketAddr {
        self.before.address()
    }

    fn is_reached_at(&self, address: SocketAddr) {
        self.cluster.advertise(1, &address.ip().to_string(), address.port());
    }

    fn suffer(&mut self, what: Blow) {
        match what {
            Blow::Freeze => self.before.hold(true),
            Blow::Thaw => self.before.hold(false),
            Blow::Kill => self.cluster.set_up(1, false),
            Blow::Start => {
                self.before.hold(false);
                self.cluster.set_up(1, true);
            }
        }
    }

    fn stored(&self) -> Option<u64> {
        None
    }

    fn stretches(&self, at_least: u64) -> Vec<Vec<u64>> {
        let at_least = usize::try_from(at_least).expect("few");
        let records = self.cluster.records(at_least, PATIENCE);
        let partitions = records.chunk_by(|a, b| a.partition == b.partition);
        let partitions: Vec<Vec<u64>> =
            partitions.map(|records| ids(records).iter().map(|id| id.number).collect()).collect();
        for numbers in &partitions {
            let mut seen = BTreeSet::new();
            let first = numbers.iter().filter(|number| seen.insert(**number));
            assert!(first.is_sorted(), "out of order in a partition");
        }
        partitions
    }
}

pub(super) fn numbers(events: &[Vec<u8>]) -> Vec<u64> {
    events.iter().map(|event| identify(event).number).collect()
}

/// Cuts the list wherever the next number is not the number before plus one.
pub(super) fn parts(numbers: &[u64]) -> Vec<Vec<u64>> {
    numbers.chunk_by(|a, b| a + 1 == *b).map(<[u64]>::to_vec).collect()
}
