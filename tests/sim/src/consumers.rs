//! The consumers of the simulated world: the stand-ins of the integration tests, each with moods
//! that its seed draws, and a log of what it has accepted for good.

mod elasticsearch;
mod front;
mod http;
mod ibm;
mod indexers;
mod loki;
mod lumberjack;
mod otlp;
mod relp;
mod s3;
mod splunk;
mod stream;
mod weather;

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use rustls::ServerConfig;

use crate::events::{FAILING, REFUSED, Serial, identify_all};
use crate::kernel;
use crate::pki::Authority;
use crate::support::http_sink::Request;
use crate::support::server::{Options, Server};

/// The host of second addresses.
const DOOR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 3);

/// A kind of consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Http,
    Tcp,
    Syslog,
    Relp,
    Lumberjack,
    Splunk,
    Elasticsearch,
    Loki,
    Otlp,
    S3,
    Ibm,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Http,
        Self::Tcp,
        Self::Syslog,
        Self::Relp,
        Self::Lumberjack,
        Self::Splunk,
        Self::Elasticsearch,
        Self::Loki,
        Self::Otlp,
        Self::S3,
        Self::Ibm,
    ];

    /// Returns true if the stand-in can speak TLS, and does not do it anyway.
    pub(crate) fn may_have_tls(self) -> bool {
        !matches!(self, Self::S3 | Self::Ibm)
    }

    /// Returns true for stores behind HTTP.
    pub(crate) fn is_store(self) -> bool {
        !matches!(self, Self::Tcp | Self::Syslog | Self::Relp | Self::Lumberjack)
    }
}

/// How long an event may be for an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Longest {
    /// `max_message_bytes`: a longer message is "rejected, never cut" (config.md).
    Message(usize),
    /// `filter.max_event_bytes`: "the relay removes the first of these that makes the event small
    /// enough"; an event that is too large even without them "is treated as if the consumer had
    /// refused it for good" (filters/size.md).
    Event(usize),
}

/// The greatest length of what stands before the event in a syslog message, in bytes.
const HEAD_MAX: usize = 300;

/// The greatest number of bytes that the annotation of a truncated event adds.
const ANNOTATION_MAX: usize = 60;

impl Longest {
    /// Returns true if an output may reject such an event as too long: it is longer, or it would
    /// be with what the relay may add.
    pub(crate) fn may_reject(self, event: &[u8]) -> bool {
        match self {
            Self::Message(bytes) => event.len() + HEAD_MAX > bytes,
            Self::Event(bytes) if event.len() <= bytes => false,
            Self::Event(bytes) => {
                let bodies = [b",\"requestObject\":".as_slice(), b",\"responseObject\":"];
                let at = bodies.iter().filter_map(|it| memchr::memmem::find(event, it)).min();
                // The bodies end before the times.
                let behind = memchr::memmem::rfind(event, b",\"requestReceivedTimestamp\":");
                let bodies = at.and_then(|at| Some(behind?.saturating_sub(at))).unwrap_or(0);
                event.len() - bodies + ANNOTATION_MAX > bytes
            }
        }
    }
}

/// How a store answers every request while somebody wants it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steady {
    /// 429, with a Retry-After of 30 s.
    Busy,
    /// The same, after some seconds.
    BusyLate,
    /// The same as [`Steady::Busy`] to requests with many events.
    BusyForMany,
    /// As if the payload were at fault.
    Refuses,
    /// 500 to requests with certain events, and the others as its seed decides.
    Fails,
    /// To every other event a status that is about the account or about this moment.
    Account,
    /// 200, and all records are rejected, as an `otlp` receiver says it.
    Rejects,
    /// 102 each second, for a quarter of an hour.
    Interim,
    /// 503 to everything but one request with other events than the first one.
    FailsTwice,
    /// The store takes the request, and its answer gets lost.
    Unanswered,
    /// The same for some requests.
    SomeUnanswered,
    /// The first request hangs.
    Hangs,
    /// The token of each request is revoked.
    Revokes,
    /// 200 to large requests before it has read them, if it is such a consumer.
    Early,
    /// Whatever trouble of its own kind it has.
    Own,
    /// To some requests as if their payload were at fault.
    SomeRefused,
    /// Nothing to requests for its second address.
    SecondMute,
    /// As if the payload were at fault, to requests for its second address and to those with
    /// certain events.
    SecondRefuses,
}

/// How many copies of an event a consumer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// One for each identity of the relay's queue: a queue in memory has another one after each
    /// start.
    Once,
    /// As [`Copies::Once`], and events of equal bytes are one event.
    OnceMerged,
    /// As [`Copies::Once`], but a changed filter, or a range that could not be saved before the
    /// relay's end, may store an event again (s3.md, "When an event counts as delivered").
    OnceByRange,
    AtLeastOnce,
    /// As [`Copies::AtLeastOnce`]; even if nothing is wrong, what left in a request with an event
    /// that the store refuses comes twice (splunk_hec.md, "What goes wrong"), or a later
    /// event that shows whether the store takes anything (guarantees.md, 2).
    AgainBesideRefused,
}

/// What a consumer promises for the events that the relay sends to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub(crate) copies: Copies,
    /// Events arrive in the order of their acceptance, first copies at least. If the consumer turns
    /// requests down, this has the exceptions of guarantees.md.
    pub(crate) ordered: bool,
    /// Events arrive byte for byte, as every kind promises.
    pub(crate) bytes: bool,
    /// Events with [`REFUSED`] are refused for good.
    pub(crate) refuses: bool,
    /// Events with [`FAILING`] are answered 500 for ever. The relay gives them up after seconds.
    pub(crate) fails: bool,
    /// Events that are neither are answered 5xx at times, while others are taken, so that the relay
    /// sets them aside. It may give them up while it drains, or when too many are set aside.
    pub(crate) aside: bool,
    /// The store tells only how many events of a request it has refused, so that all of them are
    /// among the dead letters, also those that it has.
    pub(crate) counts: bool,
}

impl Promise {
    /// All events, in order, byte for byte, perhaps again, and none is refused.
    pub(crate) const PLAIN: Self = Self {
        copies: Copies::AtLeastOnce,
        ordered: true,
        bytes: true,
        refuses: false,
        fails: false,
        aside: false,
        counts: false,
    };
}

/// An event that a consumer has accepted for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) at: Duration,
    /// The connection that brought it, counted from 0 over the whole life of the consumer.
    pub(crate) connection: usize,
    /// The event as the consumer sees it, out of its envelope.
    pub(crate) event: Vec<u8>,
}

/// A request that a consumer has answered as if its events were at fault.
#[derive(Debug, Clone)]
pub(crate) struct TurnedDown {
    pub(crate) at: Duration,
    pub(crate) events: Vec<Serial>,
    pub(crate) status: u16,
    /// True for an answer 5xx, false for a refusal of the payload.
    pub(crate) is_error: bool,
}

/// A consumer of the relay.
pub(crate) struct Consumer {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    keys: String,
    promise: Promise,
    ledger: Arc<Ledger>,
    stand: Mutex<Box<dyn Stand>>,
    has_died: AtomicBool,
    /// A second address of its first server.
    door: Option<SocketAddr>,
    longest: Option<Longest>,
    /// How long an `s3` collects events, if that is for long.
    collects: Duration,
}

/// What the threads of a consumer share.
struct Ledger {
    name: String,
    calm: AtomicBool,
    steady: Mutex<Option<Steady>>,
    arrived: Mutex<Vec<Arrived>>,
    turned_down: Mutex<Vec<TurnedDown>>,
    violations: Mutex<Vec<String>>,
    /// Until then the relay may wait before it tries again, whatever the consumer would answer.
    unsettled: Mutex<Duration>,
}

/// A stand-in, as a kind makes it.
trait Stand: Send {
    /// Returns each of its servers, the one that takes events first.
    fn servers(&mut self) -> Vec<&mut Server>;

    /// Forgets what it has not acknowledged.
    fn forget(&mut self) {}

    /// Resets each connection after so many bytes.
    fn cut(&mut self, _: Option<u64>) {}
}

/// A consumer that was just made.
struct Made {
    stand: Box<dyn Stand>,
    keys: String,
    promise: Promise,
}

/// What a kind needs to make a consumer.
struct Making<'a> {
    rng: Rng,
    /// For secrets.
    directory: &'a Path,
    name: &'a str,
    ledger: Arc<Ledger>,
    tls: Option<Arc<ServerConfig>>,
}

impl Consumer {
    /// Starts a consumer, which draws everything from its seed and its name. Its secrets are files
    /// in this directory, which exists. With `tls` it speaks TLS.
    pub(crate) fn start(
        kind: Kind,
        name: &str,
        seed: u64,
        directory: &Path,
        tls: Option<Authority>,
    ) -> Self {
        let seed = BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, name));
        let ledger = Arc::new(Ledger {
            name: name.to_owned(),
            calm: AtomicBool::new(false),
            steady: Mutex::default(),
            arrived: Mutex::default(),
            turned_down: Mutex::default(),
            violations: Mutex::default(),
            unsettled: Mutex::default(),
        });
        let rng = Rng::with_seed(seed);
        let config = tls.as_ref().map(|tls| Arc::clone(&tls.server));
        let mut making = Making { rng, directory, name, ledger: Arc::clone(&ledger), tls: config };
        let times = making.times();
        let mut made = match kind {
            Kind::Http => http::make(&mut making),
            Kind::Tcp => stream::tcp(&mut making),
            Kind::Syslog => stream::syslog(&mut making),
            Kind::Relp => relp::make(&mut making),
            Kind::Lumberjack => lumberjack::make(&mut making),
            Kind::Splunk => splunk::make(&mut making),
            Kind::Elasticsearch => elasticsearch::make(&mut making),
            Kind::Loki => loki::make(&mut making),
            Kind::Otlp => otlp::make(&mut making),
            Kind::S3 => s3::make(&mut making),
            Kind::Ibm => ibm::make(&mut making),
        };
        let address = made.stand.servers()[0].address();
        kernel::trace(format_args!("consumer {name}: {kind:?} at {address}"));
        if let Some(Authority { ca, .. }) = tls {
            made.keys = made.keys.replace("\"http://", "\"https://");
            // A String takes everything.
            writeln!(made.keys, "tls.ca = {ca:?}").ok();
        }
        Self {
            name: name.to_owned(),
            kind,
            keys: made.keys + &times,
            promise: made.promise,
            ledger,
            stand: Mutex::new(made.stand),
            has_died: AtomicBool::new(false),
            door: None,
            longest: None,
            collects: Duration::ZERO,
        }
    }

    /// Gives its output a limit for the length of an event.
    pub(crate) fn limit(&mut self, longest: Longest) {
        self.keys += &match longest {
            Longest::Message(bytes) => format!("max_message_bytes = {bytes}\n"),
            Longest::Event(bytes) => format!("filter.max_event_bytes = {bytes}\n"),
        };
        self.longest = Some(longest);
    }

    pub(crate) fn longest(&self) -> Option<Longest> {
        self.longest
    }

    /// Lets the output of an `s3` collect events for so long.
    pub(crate) fn collect(&mut self, age: Duration) {
        let lines = self.keys.lines().map(|line| match line.split(' ').next() {
            Some("object_age") => format!("object_age = \"{}s\"\n", age.as_secs()),
            Some("object_bytes") => "object_bytes = \"1MiB\"\n".to_owned(),
            Some("compression") => "compression = \"zstd\"\n".to_owned(),
            _ => format!("{line}\n"),
        });
        self.keys = lines.collect();
        self.collects = age;
    }

    pub(crate) fn collects(&self) -> Duration {
        self.collects
    }

    /// Gives the consumer a second address, which its output knows, too. Returns false if outputs
    /// of this kind have one address.
    pub(crate) fn open_door(&mut self, strategy: &str) -> bool {
        let first = self.addresses()[0];
        let door = SocketAddr::from((DOOR, first.port()));
        let key = |key: &str| self.keys.lines().find(|line| line.starts_with(key));
        let Some(line) = key("urls = [").or_else(|| key("addresses = [")) else { return false };
        let both = line.trim_end_matches(']').to_owned();
        let (_, own) = both.split_once('[').expect("it has one");
        if !own.contains(&first.to_string()) {
            return false;
        }
        let second = own.replace(&first.to_string(), &door.to_string());
        let keys = format!("{both}, {second}]\nstrategy = \"{strategy}\"");
        self.keys = self.keys.replacen(line, &keys, 1);
        self.door = Some(door);
        kernel::net::open_door(door, first);
        true
    }

    pub(crate) fn has_door(&self) -> bool {
        self.door.is_some()
    }

    /// Returns the first address (false) or the second one (true).
    pub(crate) fn address(&self, is_second: bool) -> SocketAddr {
        self.door.filter(|_| is_second).unwrap_or_else(|| self.addresses()[0])
    }

    /// Returns the addresses of all its servers, the one that takes events first, and its second
    /// address. `ibm` has two servers.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let servers: Vec<_> =
            self.stand().servers().into_iter().map(|server| server.address()).collect();
        servers.into_iter().chain(self.door).collect()
    }

    /// Returns the keys of the output that sends to the consumer, without `[[output]]` and `name`.
    /// Tables are dotted keys, so that others can be added.
    pub(crate) fn keys(&self) -> &str {
        &self.keys
    }

    pub(crate) fn promise(&self) -> Promise {
        self.promise
    }

    /// Returns true if the store refuses this event for good, or fails on it for ever: it belongs
    /// to the dead letters.
    pub(crate) fn refuses(&self, event: &[u8]) -> bool {
        (self.promise.refuses && is_refused(event)) || (self.promise.fails && fails(event))
    }

    /// Returns true if the output may reject this event as too long or too large.
    pub(crate) fn may_reject(&self, event: &[u8]) -> bool {
        self.longest.is_some_and(|longest| longest.may_reject(event))
    }

    /// Returns what the consumer has accepted for good from the index `from` on, in its order.
    pub(crate) fn arrived_since(&self, from: usize) -> Vec<Arrived> {
        lock(&self.ledger.arrived).get(from..).unwrap_or_default().to_vec()
    }

    /// Returns the requests that it has turned down, in the order of time.
    pub(crate) fn turned_down(&self) -> Vec<TurnedDown> {
        lock(&self.ledger.turned_down).clone()
    }

    /// Returns what the relay did against the protocol.
    pub(crate) fn violations(&self) -> Vec<String> {
        let panics: Vec<_> =
            self.stand().servers().into_iter().flat_map(|server| server.take_panics()).collect();
        let mut violations = lock(&self.ledger.violations);
        violations.extend(panics);
        violations.clone()
    }

    /// With true, the consumer does only what a store that is well does.
    pub(crate) fn calm(&self, calm: bool) {
        self.ledger.calm.store(calm, Ordering::SeqCst);
    }

    /// Lets a store behind HTTP answer every request so. `None`: as its seed decides.
    pub(crate) fn answers(&self, steady: Option<Steady>) {
        *lock(&self.ledger.steady) = steady;
    }

    /// With true, the consumer reads nothing and answers nothing, and its kernel still takes
    /// connections and bytes. With false, it continues. What a consumer of lines or syslog has not
    /// read for a second is gone if it is stopped then: its protocol promises no more.
    pub(crate) fn pause(&self, paused: bool) {
        self.stand().servers().into_iter().for_each(|server| server.pause(paused));
    }

    /// Lets a consumer of lines or syslog reset each connection after so many bytes.
    pub(crate) fn cut(&self, bytes: Option<u64>) {
        self.stand().cut(bytes);
    }

    /// Lets a consumer crash, and then close each connection in order that was quiet for so long.
    pub(crate) fn ends_quiet(&self, time: Option<Duration>) {
        self.stop(true);
        self.stand().servers().into_iter().for_each(|server| server.set_idle(time));
        self.start_again();
    }

    /// Ends the consumer, in order or as a crash does. It keeps what it has acknowledged.
    pub(crate) fn stop(&self, crash: bool) {
        self.dies();
        let mut stand = self.stand();
        for server in stand.servers().into_iter().filter(|server| server.is_listening()) {
            if crash { server.kill() } else { server.close() }
        }
        if crash {
            stand.forget();
        }
    }

    /// Starts a consumer again that was stopped.
    pub(crate) fn start_again(&self) {
        for server in self.stand().servers() {
            if !server.is_listening() {
                server.reopen();
            }
        }
    }

    /// Ends all connections at once. If it forgets, what it did not acknowledge is gone.
    pub(crate) fn restart(&self, forgets: bool) {
        self.stop(forgets);
        self.start_again();
    }

    /// True if connections were ever ended, or the consumer was.
    pub(crate) fn has_died(&self) -> bool {
        self.has_died.load(Ordering::SeqCst)
    }

    /// Notes that its connections are ended by somebody else.
    pub(crate) fn dies(&self) {
        self.has_died.store(true, Ordering::SeqCst);
    }

    /// Returns the time until which the relay may wait before it tries the consumer again.
    pub(crate) fn unsettled(&self) -> Duration {
        *lock(&self.ledger.unsettled)
    }

    fn stand(&self) -> MutexGuard<'_, Box<dyn Stand>> {
        lock(&self.stand)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // A panic of a stand-in is a violation, which the oracle has read.
        self.stop(true);
        self.violations();
    }
}

impl Ledger {
    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    fn steady(&self) -> Option<Steady> {
        *lock(&self.steady)
    }

    /// Notes what has arrived.
    fn add(&self, connection: usize, events: impl IntoIterator<Item = Vec<u8>>) {
        let at = kernel::now();
        let mut arrived = lock(&self.arrived);
        let before = arrived.len();
        arrived.extend(events.into_iter().map(|event| Arrived { at, connection, event }));
        let count = arrived.len() - before;
        drop(arrived);
        if count > 0 {
            kernel::trace(format_args!("{} has {count} more by {connection}", self.name));
        }
    }

    /// Notes that a request is answered with this status. An `otlp` receiver that rejects all
    /// records of each request says so with 200.
    fn answers(&self, status: Option<u16>, request: &Request) {
        let is_error = matches!(status, Some(500..600));
        let is_refusal = matches!(status, Some(400 | 413 | 422))
            || status == Some(200) && self.steady() == Some(Steady::Rejects);
        if is_error || is_refusal {
            let events = identify_all(&request.decoded());
            let status = status.unwrap_or_default();
            let (count, first) = (events.len(), events.first());
            kernel::trace(format_args!(
                "{} turns {count} down by {status}, the first is {first:?}",
                self.name
            ));
            let down = TurnedDown { at: kernel::now(), events, status, is_error };
            lock(&self.turned_down).push(down);
        }
    }

    fn violated(&self, what: String) {
        kernel::trace(format_args!("{}: violation: {what}", self.name));
        lock(&self.violations).push(what);
    }
}

impl Making<'_> {
    /// Returns a generator of its own.
    fn rng(&mut self) -> Rng {
        self.rng.fork()
    }

    /// Writes a file with a secret.
    fn secret(&self, what: &str, content: &str) -> PathBuf {
        let file = self.directory.join(format!("{}-{what}", self.name));
        std::fs::write(&file, format!("{content}\n")).expect("a writable directory");
        file
    }

    /// Draws the times of an output. They are short, so that a minute sees many attempts.
    fn times(&mut self) -> String {
        let rng = &mut self.rng;
        let age = if rng.u32(..4) == 0 { "timeouts.max_connection_age = \"15s\"\n" } else { "" };
        format!(
            "retry.initial_interval = \"{}ms\"\nretry.max_interval = \"{}s\"\n\
             timeouts.connect = \"2s\"\ntimeouts.request = \"{}s\"\n{age}",
            [100, 500][rng.usize(..2)],
            [1, 3, 10][rng.usize(..3)],
            [4, 10, 20][rng.usize(..3)],
        )
    }

    /// Draws the settings of a listener.
    fn options(&mut self) -> Options {
        let idle = (self.rng.u32(..4) == 0).then(|| Duration::from_secs(self.rng.u64(1..20)));
        Options { idle, tls: self.tls.clone(), ..Options::default() }
    }
}

/// Locks, also if a stand-in has panicked about a request while it held the lock: what it holds is
/// still true.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_refused(event: &[u8]) -> bool {
    memchr::memmem::find(event, REFUSED.as_bytes()).is_some()
}

fn fails(event: &[u8]) -> bool {
    memchr::memmem::find(event, FAILING.as_bytes()).is_some()
}
