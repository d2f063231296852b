//! The consumers of the simulated world: the stand-ins of the integration tests. Each has moods
//! that its seed draws, and a log of the events that it has accepted for good.

mod choosy;
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

pub(crate) use choosy::Way;

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use choosy::Choice;
use fastrand::Rng;
use rustls::ServerConfig;

use crate::events::{FAILING, REFUSED, Serial, identify, identify_all};
use crate::kernel;
use crate::pki::Authority;
use crate::support::http_sink::{Answer, Request};
use crate::support::server::{Options, Server};

/// The shortest and the longest `timeouts.request` of an output here.
const REQUEST_MIN: Duration = Duration::from_secs(4);
const REQUEST_MAX: Duration = Duration::from_secs(20);

/// The host of all second addresses.
const DOOR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 3);

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

    /// Returns `true` if the stand-in can use TLS, but does not always.
    pub(crate) fn may_have_tls(self) -> bool {
        !matches!(self, Self::S3 | Self::Ibm)
    }

    /// Returns `true` if the consumer is a store that uses HTTP.
    pub(crate) fn is_store(self) -> bool {
        !matches!(self, Self::Tcp | Self::Syslog | Self::Relp | Self::Lumberjack)
    }
}

/// An output's limit for the length of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Longest {
    /// `max_message_bytes`: a longer message is rejected, not truncated (see config.md).
    Message(usize),
    /// `filter.max_event_bytes`: the relay removes as little as possible from a larger event. One
    /// that is too large even without its bodies counts as refused (see filters/size.md).
    Event(usize),
}

/// The most bytes that precede the event in a syslog message.
const HEAD_MAX: usize = 300;

/// The most bytes that the annotation of a truncated event adds.
const ANNOTATION_MAX: usize = 60;

impl Longest {
    /// Returns `true` if an output may reject this event as too long, either by itself or with the
    /// bytes that the relay may add.
    pub(crate) fn may_reject(self, event: &[u8]) -> bool {
        match self {
            Self::Message(bytes) => event.len() + HEAD_MAX > bytes,
            Self::Event(bytes) if event.len() <= bytes => false,
            Self::Event(bytes) => {
                let bodies = [b",\"requestObject\":".as_slice(), b",\"responseObject\":"];
                let at = bodies.iter().filter_map(|it| memchr::memmem::find(event, it)).min();
                // The bodies come before the times.
                let behind = memchr::memmem::rfind(event, b",\"requestReceivedTimestamp\":");
                let bodies = at.and_then(|at| Some(behind?.saturating_sub(at))).unwrap_or(0);
                event.len() - bodies + ANNOTATION_MAX > bytes
            }
        }
    }
}

/// How a store answers requests while the operator wants it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steady {
    /// 429 to every request, with `Retry-After: 30`.
    Busy,
    /// Like [`Steady::Busy`], but after 3.5 s.
    BusyLate,
    /// Like [`Steady::Busy`], but only to requests with more than five events.
    BusyForMany,
    /// A refusal of the payload to every request.
    Refuses,
    /// 500 to requests with a failing event ([`FAILING`]). Its seed decides about the others.
    Fails,
    /// Like [`Steady::Fails`], but after 700 ms.
    FailsLate,
    /// 402, 409 or 421 to requests that contain an event with an odd number.
    Account,
    /// 200, and all records are rejected, as an `otlp` receiver reports it.
    Rejects,
    /// 102 every second, for 15 minutes.
    Interim,
    /// 503 to every request except one that has no event of the first one.
    FailsTwice,
    /// The store accepts each request, but its response gets lost.
    Unanswered,
    /// Like [`Steady::Unanswered`], but only for two of five requests.
    SomeUnanswered,
    /// No answer to the first request.
    Hangs,
    /// Each request gets its token revoked.
    Revokes,
    /// 200 to large requests before it has read them, if the consumer is one that answers early.
    Early,
    /// The trouble that only this kind of store has.
    Own,
    /// A refusal of the payload to two of five requests.
    SomeRefused,
    /// No answer to requests for its second address.
    SecondMute,
    /// Like [`Steady::Refuses`], but only for its second address and for failing events.
    SecondRefuses,
}

/// How many copies of an event a consumer can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// One for each identity of the relay's queue. A queue in memory has a new one at each start.
    Once,
    /// Like [`Copies::Once`], but events with equal bytes are one event.
    OnceMerged,
    /// Like [`Copies::Once`], but if a filter changes, or a range could not be saved before the
    /// relay ended, an event may be stored again (see s3.md).
    OnceByRange,
    AtLeastOnce,
    /// Like [`Copies::AtLeastOnce`], but copies arrive even if nothing is wrong. If a request has a
    /// refused event, its other events may arrive twice. So may a later event that the relay sends
    /// as a test (see guarantees.md).
    AgainBesideRefused,
}

/// What a consumer promises about the events that the relay sends to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub(crate) copies: Copies,
    /// The first copies of events arrive in the order of acceptance. If the consumer turns requests
    /// down, there are exceptions (see guarantees.md).
    pub(crate) ordered: bool,
    /// Events arrive byte for byte. Every kind promises this.
    pub(crate) bytes: bool,
    /// Events with [`REFUSED`] are refused for good.
    pub(crate) refuses: bool,
    /// Events with [`FAILING`] always get 500. The relay gives up on them after 8 s.
    pub(crate) fails: bool,
    /// All other events get 5xx at times, while other events are accepted, so the relay sets them
    /// aside. It may give up on them when it shuts down, or when too many are set aside.
    pub(crate) aside: bool,
    /// The store reports only how many events of a request it has refused. So all events of the
    /// request become dead letters, even those that it has stored.
    pub(crate) counts: bool,
}

impl Promise {
    /// All events, in order, byte for byte, possibly more than once, and without refusals.
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
    /// The connection that brought the event, counted from 0 since the consumer was made.
    pub(crate) connection: usize,
    /// The event that the consumer finds in its protocol's envelope.
    pub(crate) event: Vec<u8>,
}

/// A request that the consumer has turned down, or whose answer the relay may take for a failure.
/// For a stream, these are events that the consumer had read and not acknowledged when it ended the
/// connection or kept silent.
#[derive(Debug, Clone)]
pub(crate) struct TurnedDown {
    /// When the consumer decided. The relay notices silence later.
    pub(crate) at: Duration,
    /// The latest time at which the relay notices.
    pub(crate) until: Duration,
    pub(crate) events: Vec<Serial>,
    /// The status of the answer; 0 if there was none.
    pub(crate) status: u16,
    /// `true`: the answer blames the payload (400, 413, 422).
    pub(crate) is_refusal: bool,
    /// `true`: the answer asks for a pause.
    pub(crate) asks: bool,
}

/// A time in which the consumer, or the way to it, was in trouble. `None`: it has not ended.
pub(crate) type Trouble = (Duration, Option<Duration>);

/// The ends of a consumer's connections, as far as the oracle must know them.
#[derive(Debug, Default)]
struct Died {
    /// When the consumer last died, or its connections could last be ended.
    last: Option<Duration>,
    /// `true` until the consumer recovers.
    goes_on: bool,
}

/// A time in which the consumer reset each connection after `bytes`. It never takes a longer event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) bytes: u64,
    pub(crate) begun: Duration,
    /// `None`: it has not ended.
    pub(crate) ended: Option<Duration>,
}

pub(crate) struct Consumer {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    keys: String,
    promise: Promise,
    ledger: Arc<Ledger>,
    stand: Mutex<Box<dyn Stand>>,
    died: Mutex<Died>,
    cuts: Mutex<Vec<Cut>>,
    /// A second address of the first server.
    door: Option<SocketAddr>,
    longest: Option<Longest>,
    /// How long an `s3` output collects events; 0 unless the plan sets a long time, such as 30 s.
    collects: Duration,
}

/// The state that the threads of a consumer share.
struct Ledger {
    name: String,
    calm: AtomicBool,
    steady: Mutex<Option<Steady>>,
    arrived: Mutex<Vec<Arrived>>,
    turned_down: Mutex<Vec<TurnedDown>>,
    choice: Mutex<Choice>,
    violations: Mutex<Vec<String>>,
    /// The times in which requests may have failed that the consumer knows nothing about.
    troubles: Mutex<Vec<Trouble>>,
    /// Until this time the relay may wait before it tries again, whatever the consumer does.
    unsettled: Mutex<Duration>,
}

/// A stand-in of some kind.
trait Stand: Send {
    /// Returns its servers, first the one that accepts events.
    fn servers(&mut self) -> Vec<&mut Server>;

    /// Forgets the events that it has not acknowledged.
    fn forget(&mut self) {}

    /// Resets each connection after this many bytes.
    fn cut(&mut self, _: Option<u64>) {}
}

/// A new consumer.
struct Made {
    stand: Box<dyn Stand>,
    keys: String,
    promise: Promise,
}

/// What a kind needs to make a consumer.
struct Making<'a> {
    rng: Rng,
    /// The directory for secrets.
    directory: &'a Path,
    name: &'a str,
    ledger: Arc<Ledger>,
    tls: Option<Arc<ServerConfig>>,
}

impl Consumer {
    /// Starts a consumer that draws everything from its seed and its name. Its secrets are files in
    /// `directory`, which must exist. With `tls`, it uses TLS.
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
            choice: Mutex::default(),
            violations: Mutex::default(),
            troubles: Mutex::default(),
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
            // Writing to a String cannot fail.
            writeln!(made.keys, "tls.ca = {ca:?}").ok();
        }
        Self {
            name: name.to_owned(),
            kind,
            keys: made.keys + &times,
            promise: made.promise,
            ledger,
            stand: Mutex::new(made.stand),
            died: Mutex::default(),
            cuts: Mutex::default(),
            door: None,
            longest: None,
            collects: Duration::ZERO,
        }
    }

    /// Limits the length of an event in its output.
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

    /// Lets the `s3` output of this consumer collect events for `age`.
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

    /// Gives the consumer a second address. Returns `false` if its output can have only one.
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

    /// Returns the first address (`false`) or the second one (`true`).
    pub(crate) fn address(&self, is_second: bool) -> SocketAddr {
        self.door.filter(|_| is_second).unwrap_or_else(|| self.addresses()[0])
    }

    /// Returns the addresses of all its servers (`ibm` has two), first that of the one that accepts
    /// events, and then its second address.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let servers: Vec<_> =
            self.stand().servers().into_iter().map(|server| server.address()).collect();
        servers.into_iter().chain(self.door).collect()
    }

    /// Returns the keys of its output, without `[[output]]` and `name`. Tables are written as
    /// dotted keys, so others can be added.
    pub(crate) fn keys(&self) -> &str {
        &self.keys
    }

    pub(crate) fn promise(&self) -> Promise {
        self.promise
    }

    /// Returns `true` if the store refuses this event for good or always fails on it.
    pub(crate) fn refuses(&self, event: &[u8]) -> bool {
        let is_chosen = |event| lock(&self.ledger.choice).has(event);
        identify(event).is_some_and(is_chosen)
            || (self.promise.refuses && is_refused(event))
            || (self.promise.fails && fails(event))
    }

    /// Returns `true` if the output may reject this event as too long or too large.
    pub(crate) fn may_reject(&self, event: &[u8]) -> bool {
        self.longest.is_some_and(|longest| longest.may_reject(event))
    }

    /// Returns the events that the consumer has accepted for good, from index `from` on, in order.
    pub(crate) fn arrived_since(&self, from: usize) -> Vec<Arrived> {
        lock(&self.ledger.arrived).get(from..).unwrap_or_default().to_vec()
    }

    /// Returns the requests that the consumer has turned down, in order of time.
    pub(crate) fn turned_down(&self) -> Vec<TurnedDown> {
        lock(&self.ledger.turned_down).clone()
    }

    /// Returns the relay's violations of the protocol.
    pub(crate) fn violations(&self) -> Vec<String> {
        let panics: Vec<_> =
            self.stand().servers().into_iter().flat_map(|server| server.take_panics()).collect();
        let mut violations = lock(&self.ledger.violations);
        violations.extend(panics);
        violations.clone()
    }

    /// With `true`, the consumer behaves like a healthy store.
    pub(crate) fn calm(&self, calm: bool) {
        self.ledger.calm.store(calm, Ordering::SeqCst);
    }

    /// Lets a store behind HTTP answer this way. `None`: as its seed decides.
    pub(crate) fn answers(&self, steady: Option<Steady>) {
        *lock(&self.ledger.steady) = steady;
    }

    /// Lets the consumer turn down requests with an event that it does not take, or with more
    /// events than `most`. Without ways, it takes everything again.
    pub(crate) fn chooses(&self, ways: &[Way], most: Option<usize>, rng: Rng) {
        lock(&self.ledger.choice).begin(ways, most, rng);
    }

    /// From now on, the consumer does not take these events.
    pub(crate) fn refuses_these(&self, events: impl IntoIterator<Item = Serial>) {
        lock(&self.ledger.choice).add(events);
    }

    /// With `true`, a consumer that chooses takes nothing.
    pub(crate) fn is_down(&self, is_down: bool) {
        lock(&self.ledger.choice).set_down(is_down);
    }

    /// With `true`, the consumer reads and answers nothing, but its kernel still accepts
    /// connections and bytes. With `false`, it continues. If a `tcp` or `syslog` consumer is
    /// stopped during a pause, it loses bytes that were unread for `replay_window` (see tcp.md).
    pub(crate) fn pause(&self, paused: bool) {
        if paused {
            self.falters()
        } else {
            self.recovers()
        }
        self.stand().servers().into_iter().for_each(|server| server.pause(paused));
    }

    /// Lets a `tcp` or `syslog` consumer reset each connection after this many bytes.
    pub(crate) fn cut(&self, bytes: Option<u64>) {
        let now = kernel::now();
        let mut cuts = lock(&self.cuts);
        cuts.iter_mut().for_each(|cut| cut.ended = cut.ended.or(Some(now)));
        cuts.extend(bytes.map(|bytes| Cut { bytes, begun: now, ended: None }));
        drop(cuts);
        lock(&self.died).last = Some(now);
        self.stand().cut(bytes);
    }

    /// Lets a consumer crash and start again. After that, it closes each connection that is idle
    /// for this long.
    pub(crate) fn ends_quiet(&self, time: Option<Duration>) {
        self.stop(true);
        self.stand().servers().into_iter().for_each(|server| server.set_idle(time));
        self.start_again();
    }

    /// Ends the consumer, in order or with a crash. It keeps all events that it has acknowledged.
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

    /// Starts a stopped consumer again.
    pub(crate) fn start_again(&self) {
        self.recovers();
        for server in self.stand().servers() {
            if !server.is_listening() {
                server.reopen();
            }
        }
    }

    /// Ends all connections at once. If it `forgets`, events without an acknowledgement are lost.
    pub(crate) fn restart(&self, forgets: bool) {
        self.stop(forgets);
        self.start_again();
    }

    /// Returns the last time at which the consumer died, or its connections could be ended, if that
    /// ever happened.
    pub(crate) fn died(&self) -> Option<Duration> {
        lock(&self.died).last
    }

    pub(crate) fn cuts(&self) -> Vec<Cut> {
        lock(&self.cuts).clone()
    }

    /// Records that somebody else ends its connections, so the events that it has read may be lost.
    pub(crate) fn dies(&self) {
        *lock(&self.died) = Died { last: Some(kernel::now()), goes_on: true };
        self.falters();
    }

    /// Records that a trouble has begun.
    fn falters(&self) {
        lock(&self.ledger.troubles).push((kernel::now(), None));
    }

    /// Records that the trouble has ended.
    pub(crate) fn recovers(&self) {
        let now = kernel::now();
        let mut troubles = lock(&self.ledger.troubles);
        troubles.iter_mut().for_each(|(_, ended)| *ended = ended.or(Some(now)));
        let mut died = lock(&self.died);
        if std::mem::take(&mut died.goes_on) {
            died.last = Some(now);
        }
    }

    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        lock(&self.ledger.troubles).clone()
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
        // A panic of a stand-in is a violation. The oracle has read it by now.
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

    fn add(&self, connection: usize, events: impl IntoIterator<Item = Vec<u8>>) {
        let at = kernel::now();
        let mut arrived = lock(&self.arrived);
        let before = arrived.len();
        arrived.extend(events.into_iter().map(|event| Arrived { at, connection, event }));
        let count = arrived.len() - before;
        let first = arrived.get(before).and_then(|first| identify(&first.event));
        drop(arrived);
        if count > 0 {
            let first = first.map(|first| first.to_string()).unwrap_or_default();
            let Self { name, .. } = self;
            kernel::trace(format_args!("{name} has {count} more by {connection}, first {first}"));
        }
    }

    /// Returns the way in which a consumer that chooses turns down a request with these events.
    fn turns_away(&self, events: &[Serial]) -> Option<Way> {
        lock(&self.choice).turns_down(events)
    }

    /// Records how a request is answered, if the relay may take the answer for a failure. `is_own`:
    /// the answer may be wrong in a way that only this kind of store knows. An `otlp` receiver
    /// returns 200 even if it rejects all records of a request.
    fn answers(&self, answer: &Answer, request: &Request, is_own: bool) {
        let status = answer.code();
        let is_refusal = matches!(status, Some(400 | 413 | 422))
            || status == Some(200) && self.steady() == Some(Steady::Rejects);
        let takes = answer.delay() + request.read.duration_since(request.began);
        let is_taken =
            matches!(status, Some(200..300)) && answer.is_whole() && takes < REQUEST_MIN && !is_own;
        if !is_taken || is_refusal {
            let events = identify_all(&request.lines());
            let what = (is_refusal, answer.asks_for_a_pause());
            self.turns_down(events, status, what, answer.delay());
        }
    }

    /// Records that the consumer turns these events down, and that the relay notices after `after`
    /// or at its time-out.
    fn turns_down(
        &self,
        events: Vec<Serial>,
        status: Option<u16>,
        (is_refusal, asks): (bool, bool),
        after: Duration,
    ) {
        if events.is_empty() {
            return;
        }
        let (count, first) = (events.len(), events.first());
        let answer = status.map_or_else(|| "no status".to_owned(), |status| status.to_string());
        kernel::trace(format_args!(
            "{} turns {count} down by {answer}, the first is {}",
            self.name,
            first.map(ToString::to_string).unwrap_or_default(),
        ));
        let at = kernel::now();
        let until = at + if status.is_some() { after } else { after.max(REQUEST_MAX) };
        let status = status.unwrap_or_default();
        let down = TurnedDown { at, until, events, status, is_refusal, asks };
        lock(&self.turned_down).push(down);
    }

    fn violated(&self, what: String) {
        kernel::trace(format_args!("{}: violation: {what}", self.name));
        lock(&self.violations).push(what);
    }
}

impl Making<'_> {
    /// Returns a new generator.
    fn rng(&mut self) -> Rng {
        self.rng.fork()
    }

    /// Writes a secret to a file.
    fn secret(&self, what: &str, content: &str) -> PathBuf {
        let file = self.directory.join(format!("{}-{what}", self.name));
        std::fs::write(&file, format!("{content}\n")).expect("a writable directory");
        file
    }

    /// Draws the times of an output. They are short, so that there are many attempts in a minute.
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

/// Locks, even if a stand-in has panicked while it held the lock: the data is still correct.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_refused(event: &[u8]) -> bool {
    memchr::memmem::find(event, REFUSED.as_bytes()).is_some()
}

fn fails(event: &[u8]) -> bool {
    memchr::memmem::find(event, FAILING.as_bytes()).is_some()
}
