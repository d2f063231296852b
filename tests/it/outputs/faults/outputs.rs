//! The types of outputs that faults strike: for each a row with a consumer, and what its protocol promises.

#[cfg(feature = "kafka")]
use std::collections::BTreeSet;
use std::net::SocketAddr;

#[cfg(feature = "kafka")]
use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
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
use crate::support::peers::Process;
use crate::support::peers::Rsyslog;
use crate::support::peers::Security;

/// A type of output, and a consumer of it.
pub(super) struct Output {
    pub(super) name: &'static str,
    /// Its keys with this address of the consumer.
    pub(super) keys: Box<dyn Fn(SocketAddr) -> String>,
    pub(super) peer: Box<dyn Peer>,
    /// Whether events leave one after the other.
    pub(super) ordered: bool,
    /// Whether the consumer says anything; if not, there is a `replay_window`.
    pub(super) answers: bool,
    /// How many events may be under way, where the output has a bound of its own.
    pub(super) window: Option<u64>,
    /// How often kills and resets strike: after each an output without answers sends little until that is final.
    pub(super) rounds: usize,
    /// Bytes that the consumer may have read and not stored when it is killed.
    pub(super) unstored_max: usize,
}

/// A consumer, or what stands for one.
pub(super) trait Peer {
    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// Relays connect to this address from now on: itself, or what is before it.
    fn is_reached_at(&self, _address: SocketAddr) {}

    fn suffer(&mut self, what: Blow);

    /// Bytes that it has stored, where that can be seen at any time.
    fn stored(&self) -> Option<u64>;

    /// The numbers of the events that it has stored, at least so many, in stretches that follow each other.
    fn stretches(&self, at_least: u64) -> Vec<Vec<u64>>;
}

/// What is done to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGSTOP
    Freeze,
    /// SIGCONT
    Thaw,
    /// SIGKILL. What it has written of an event is cut off: the next life's first would be taken for its end.
    Kill,
    /// After a kill.
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

/// Events of a request of the http outputs here.
pub(super) const REQUEST_EVENTS: u64 = 50;

/// What `imtcp` reads at once is half of it.
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
        rounds: 6,
        unstored_max: 0,
    }
}

pub(super) fn https() -> Output {
    let certificates = Certificates::new();
    let peer = Box::new(Consumer::start(Protocol::Https, &certificates));
    Output {
        name: "https",
        keys: Box::new(move |address| {
            // All of them: their files live as long.
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
        rounds: 6,
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
        rounds: 6,
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
        // The default.
        window: Some(128),
        rounds: 6,
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
        // Within a partition.
        ordered: false,
        answers: true,
        // Batches under way, if the producer is given up; else nothing comes again.
        window: Some(4 * REQUEST_EVENTS),
        rounds: 6,
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

/// It does not say which connection brought what, and reads several at a time.
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

/// A mock cluster of one broker. It keeps what it has in memory, so that it can't be a process that is killed: it goes away,
/// with its connections, and comes back. A middleman before it is what stops.
#[cfg(feature = "kafka")]
struct Broker {
    cluster: Cluster,
    before: Middleman,
}

#[cfg(feature = "kafka")]
impl Broker {
    fn start() -> Self {
        // A partition keeps 5 MB: all of them hold what a test sends.
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

/// Cut where the next number does not follow.
pub(super) fn parts(numbers: &[u64]) -> Vec<Vec<u64>> {
    numbers.chunk_by(|a, b| a + 1 == *b).map(<[u64]>::to_vec).collect()
}
