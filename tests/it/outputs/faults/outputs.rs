//! The types of outputs that the faults strike. Each function returns an output with its consumer
//! and with the promises of its protocol.

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

pub(super) struct Output {
    pub(super) name: &'static str,
    /// Returns the output's keys for a consumer at this address.
    pub(super) keys: Box<dyn Fn(SocketAddr) -> String>,
    pub(super) peer: Box<dyn Peer>,
    /// `true` if the output sends events one after the other, so that they arrive in order.
    pub(super) ordered: bool,
    /// `true` if the consumer sends acknowledgements. Otherwise the output has a `replay_window`.
    pub(super) answers: bool,
    /// The most events (`s3`: objects) that can be sent and not acknowledged. `None` if the output
    /// has no such bound.
    pub(super) window: Option<u64>,
    /// How often a test kills the consumer or resets its connection. An output without
    /// acknowledgements sends little until the repeated bytes are final, so it has fewer rounds.
    pub(super) rounds: usize,
    /// How many bytes the consumer can have read and not stored when it is killed.
    pub(super) unstored_max: usize,
}

/// A consumer, or a substitute for one.
pub(super) trait Peer {
    /// Returns the address that the consumer listens on.
    fn address(&self) -> SocketAddr;

    /// Tells the consumer which address relays use from now on: its own, or that of a middleman.
    fn is_reached_at(&self, _address: SocketAddr) {}

    fn suffer(&mut self, what: Blow);

    /// Returns how many bytes the consumer has stored; for a store, how many events (`s3`:
    /// objects). `None` if this can't be read during the test.
    fn stored(&self) -> Option<u64>;

    /// Returns the numbers of the stored events, in stretches of consecutive numbers. First waits
    /// for `at_least` events if the test can't see how many are stored.
    fn stretches(&self, at_least: u64) -> Vec<Vec<u64>>;

    /// Returns how many events (`s3`: objects) arrived again at a store that keeps each one once.
    /// `None` for any other consumer.
    fn again(&self) -> Option<u64> {
        None
    }
}

/// A blow to a consumer. A consumer that is not a process imitates the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGSTOP.
    Freeze,
    /// SIGCONT.
    Thaw,
    /// SIGKILL. A consumer that appends to one file then cuts off a partly written event, so that
    /// the next event is not read as the rest of it.
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

/// The value of `batch.max_events`, for the outputs that set it.
pub(super) const REQUEST_EVENTS: u64 = 50;

/// The most bytes that a kill of rsyslog can lose: twice the size of one read of `imtcp`.
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
        // The unacknowledged batches arrive again if the relay replaces its producer. Otherwise
        // nothing arrives twice.
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

/// rsyslog does not say which connection a message came from, and reads several connections at
/// once.
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
/// that is killed. For a kill, the broker is down, without connections, until the start. For a
/// stop, a middleman in front of it passes nothing on.
#[cfg(feature = "kafka")]
struct Broker {
    cluster: Cluster,
    before: Middleman,
}

#[cfg(feature = "kafka")]
impl Broker {
    fn start() -> Self {
        // A partition keeps 5 MB. Eight partitions can keep all events of a test.
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

/// Splits the list wherever a number is not the previous number plus one.
pub(super) fn parts(numbers: &[u64]) -> Vec<Vec<u64>> {
    numbers.chunk_by(|a, b| a + 1 == *b).map(<[u64]>::to_vec).collect()
}
