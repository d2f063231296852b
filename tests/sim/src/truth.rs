//! The book of truth: the events that the senders sent, the answers that they got, the configs that
//! were in force, and the ends of the relay's lives. The oracle compares it with what arrived.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::events::{Event, Facts, Serial};
use crate::kernel;

/// The book. All actors share it: clones refer to the same book.
#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<Truth>>);

/// The content of the book.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Every event that the senders have made.
    pub(crate) events: BTreeMap<Serial, Known>,
    /// Every request with events, in the order in which the requests began.
    pub(crate) attempts: Vec<Attempt>,
    /// The configs, in the order in which they came into force.
    pub(crate) epochs: Vec<Epoch>,
    /// The ends of the relay's lives, in order.
    pub(crate) deaths: Vec<Death>,
    /// When the disk began to refuse writes or syncs, and when it works again at the latest.
    pub(crate) refusing: Vec<(Duration, Duration)>,
    /// When a copy of the queue's directory was made, and when the relay was ended so that the copy
    /// could be put back.
    pub(crate) set_back: Vec<(Duration, Duration)>,
    /// The certificates that were put into the listener's files, and when.
    pub(crate) certificates: Vec<(Duration, Vec<u8>)>,
    /// The TLS handshakes of the senders.
    pub(crate) handshakes: Vec<Handshake>,
    /// Spans in which the sync of a dead letter can take longer than the relay waits. Such a letter
    /// is in the file, but is not counted.
    pub(crate) hanging_letters: Vec<(Duration, Duration)>,
}

#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    /// The certificate that the relay sent.
    pub(crate) certificate: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) event: Event,
    /// The requests with this event, as indexes into [`Truth::attempts`].
    pub(crate) attempts: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) from: SentBy,
    /// The events of the body, in order. Attempts with the same body share the list.
    pub(crate) serials: Arc<[Serial]>,
    pub(crate) must: Must,
    /// When the request began, before its first byte was sent.
    pub(crate) begun: Duration,
    /// When the sender got its answer or gave up, and the result; `None` while the request is open.
    pub(crate) ended: Option<(Duration, Answer)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentBy {
    pub(crate) sender: u32,
    /// The number of the connection, counted for each sender.
    pub(crate) connection: u64,
}

/// What the relay must do with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Must {
    /// Accept it: the request is valid. It gets 200, or a status that asks the sender to try again.
    Take,
    /// Refuse it for this reason. It gets one of these statuses, or one that asks to try again.
    Refuse(&'static str, &'static [u16]),
    /// The body never arrives whole, so no output may ever send an event of it.
    Never,
}

/// How a request ended for its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// The status is 200, but with a wrong number of accepted events.
    Miscounted,
    /// The status is 429 or 503, without a sensible `Retry-After`.
    Unhelpful(u16),
    /// There was no connection, so nothing was sent.
    NoConnection,
    /// The connection broke before the complete response had arrived.
    Broken,
    /// Like [`Answer::Broken`], and the sender had shut down its write side.
    HalfClosed,
    /// No response came in time.
    TimedOut,
    /// The sender disconnected, or did not read its response.
    Unread,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Miscounted => f.write_str("200 with another number of events"),
            Self::Unhelpful(status) => write!(f, "{status} without a Retry-After of some seconds"),
            Self::NoConnection => f.write_str("no connection"),
            Self::Broken => f.write_str("broken"),
            Self::HalfClosed => f.write_str("broken after the write side was shut down"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unread => f.write_str("not read"),
        }
    }
}

/// What happened to a body, as far as its sender can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The body got 200 at this time.
    Accepted(Duration),
    /// The relay must not keep any event of the body.
    Refused,
    /// The events may be stored: the connection broke before the response (see http.md), or the
    /// response was a 503. A queue on disk returns 503 if a sync fails, but a restart can find the
    /// records. With `delivered`, an output may have begun to send them.
    Unknown,
}

impl Attempt {
    pub(crate) fn fate(&self) -> Fate {
        match (self.must, self.ended) {
            (Must::Never | Must::Refuse(..), _) => Fate::Refused,
            (Must::Take, Some((at, Answer::Status(200)))) => Fate::Accepted(at),
            (
                Must::Take,
                Some((_, Answer::Status(400..500) | Answer::Unhelpful(429) | Answer::NoConnection)),
            ) => Fate::Refused,
            (Must::Take, _) => Fate::Unknown,
        }
    }
}

/// A config, and when it is in force.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    /// The earliest time at which the config may be in force.
    pub(crate) begins: Duration,
    /// From this time on, the config is in force, and the previous one no longer is. `None` while a
    /// reload is running.
    pub(crate) settled: Option<Duration>,
    pub(crate) config: Arc<Config>,
}

/// The parts of a config that the oracle needs.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) on_disk: bool,
    /// `queue.when_full`.
    pub(crate) when_full: &'static str,
    /// `queue.max_bytes` and `queue.segment_bytes`.
    pub(crate) queue_bytes: usize,
    pub(crate) segment_bytes: usize,
    pub(crate) acknowledge: Acknowledge,
    /// `shutdown.drain_timeout`.
    pub(crate) drain: Duration,
    pub(crate) limits: Limits,
    /// The outputs to this consumer never give up on an event (`rejected.action = "retry"`).
    pub(crate) keeps: Option<usize>,
    pub(crate) outputs: Vec<Output>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// `max_in_flight` in bytes, if it is small.
    pub(crate) in_flight: Option<usize>,
    /// `max_connections`, if it is small.
    pub(crate) connections: Option<u32>,
    /// The shorter of `header_timeout` and `body_timeout`.
    pub(crate) slow: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight: None, connections: None, slow: Duration::from_secs(10) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    Queued,
    Delivered,
    Synced,
}

#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// The index of the consumer. It stays the same if the output is renamed.
    pub(crate) consumer: usize,
    pub(crate) required: bool,
    pub(crate) filter: Filter,
    /// The documented reason why the output can lose events with this config and plan. For example,
    /// it is optional, a reload removes it, a full queue drops events, or a drain with a queue in
    /// memory was too short. `None`: it must lose nothing. It is also `None` in a plan, because the
    /// reason depends on the whole config.
    pub(crate) may_lose: Option<&'static str>,
    /// The output sends events with equal bytes once (`filter.deduplicate`, longer than a seed).
    pub(crate) deduplicates: bool,
    /// The addresses of its consumer; empty in a plan.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The reason in [`Output::may_lose`] if `queue.when_full` is not `reject`.
pub(crate) const FULL: &str = "a full queue drops events";

/// The reason in [`Output::may_lose`] if the plan damages files of the queue.
pub(crate) const DAMAGED: &str = "somebody changes files of the queue";

/// The `match` key of a filter, as one table of criteria. An empty list matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) verbs: Vec<&'static str>,
    pub(crate) namespaces: Vec<&'static str>,
    pub(crate) users: Vec<&'static str>,
    /// The verb of the events that an audit policy drops.
    pub(crate) omits: Option<&'static str>,
    /// `true` if other keys of the filter change the events that are sent.
    pub(crate) changes: bool,
}

impl Filter {
    /// Returns `true` if the filter forwards an event with these facts.
    pub(crate) fn keeps(&self, facts: &Facts) -> bool {
        let has = |list: &[&str], value: &str| list.is_empty() || list.contains(&value);
        has(&self.verbs, facts.verb)
            && has(&self.namespaces, facts.namespace)
            && has(&self.users, facts.user)
            && self.omits != Some(facts.verb)
    }

    /// Returns the value of `match`, or `None` if the filter forwards everything.
    pub(crate) fn toml(&self) -> Option<String> {
        let lists =
            [("verbs", &self.verbs), ("namespaces", &self.namespaces), ("users", &self.users)];
        let lists = lists.iter().filter(|(_, list)| !list.is_empty());
        let criteria: Vec<_> = lists.map(|(key, list)| format!("{key} = {list:?}")).collect();
        (!criteria.is_empty()).then(|| format!("[{{ {} }}]", criteria.join(", ")))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    /// When the signal was sent.
    pub(crate) begun: Duration,
    /// When the process was gone; `None` if it is still draining.
    pub(crate) ended: Option<Duration>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGKILL. A part of the bytes that were not synced is gone.
    PowerLoss,
    /// SIGTERM. A queue in memory counts its remaining events as lost.
    Drain,
    /// SIGTERM. The exit status says that events were lost, but nobody knows how many: after
    /// `shutdown.drain_timeout`, there is no time for a scrape, and nobody reads the log.
    UnseenDrain,
    /// A drain that a second SIGTERM ends.
    Hurried,
}

impl Kind {
    /// Returns `true` if the process had no time to do anything.
    pub(crate) fn is_violent(self) -> bool {
        matches!(self, Self::Kill | Self::PowerLoss)
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().expect("no actor panics with the book in its hands")
    }

    /// Lets the oracle read the book. No sender can write to it at the same time.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Truth) -> T) -> T {
        read(&self.lock())
    }

    /// Adds events before they are in any body.
    pub(crate) fn made(&self, events: &[Event]) -> Arc<[Serial]> {
        let mut truth = self.lock();
        for event in events {
            let known = Known { event: event.clone(), attempts: Vec::new() };
            let before = truth.events.insert(event.serial, known);
            assert!(before.is_none(), "{} is not unique", event.serial);
        }
        events.iter().map(|event| event.serial).collect()
    }

    /// Adds a request that is about to begin. Returns its number for [`Book::ended`].
    pub(crate) fn begun(&self, from: SentBy, serials: &Arc<[Serial]>, must: Must) -> usize {
        let serials = Arc::clone(serials);
        self.lock().begun(Attempt { from, serials, must, begun: kernel::now(), ended: None })
    }

    pub(crate) fn ended(&self, attempt: usize, answer: Answer) {
        let mut truth = self.lock();
        let Some(attempt) = truth.attempts.get_mut(attempt) else { return };
        attempt.ended = Some((kernel::now(), answer));
        let Attempt { from: SentBy { sender, connection }, serials, begun, .. } = attempt;
        kernel::trace(format_args!(
            "sender {sender} connection {connection}: {} events from {} on, begun {begun:?}: {answer}",
            serials.len(),
            serials.first().map_or_else(|| "none".into(), ToString::to_string),
        ));
    }

    /// Adds a config that may be in force from now on: the first one, one that is about to be
    /// loaded, or that of the next life.
    pub(crate) fn config(&self, config: Config) {
        let config = Arc::new(config);
        self.lock().epochs.push(Epoch { begins: kernel::now(), settled: None, config });
    }

    /// Records that the newest config is now certainly in force.
    pub(crate) fn settled(&self) {
        if let Some(epoch) = self.lock().epochs.last_mut() {
            epoch.settled.get_or_insert_with(kernel::now);
        }
    }

    /// Removes the newest config, which was refused and was never in force.
    pub(crate) fn refused(&self) {
        self.lock().epochs.pop();
    }

    /// Records that the disk refuses writes or syncs from now until this time.
    pub(crate) fn disk_refuses(&self, until: Duration) {
        self.lock().refusing.push((kernel::now(), until));
    }

    /// Records that the queue's directory is restored from a copy, after the relay has ended.
    pub(crate) fn set_back(&self, copied: Duration, ended: Duration) {
        self.lock().set_back.push((copied, ended));
    }

    /// Records that the listener's files contain this certificate from now on.
    pub(crate) fn certificate(&self, certificate: Vec<u8>) {
        self.lock().certificates.push((kernel::now(), certificate));
    }

    /// Records a handshake that has just ended.
    pub(crate) fn shook_hands(&self, begun: Duration, certificate: Vec<u8>) {
        let ended = kernel::now();
        self.lock().handshakes.push(Handshake { begun, ended, certificate });
    }

    /// Records that the sync of letters from this span can take longer than the relay waits.
    pub(crate) fn letters_hang(&self, from: Duration, to: Duration) {
        self.lock().hanging_letters.push((from, to));
    }

    /// Records that the relay is about to end in this way.
    pub(crate) fn dies(&self, kind: Kind) {
        self.lock().deaths.push(Death { begun: kernel::now(), ended: None, kind });
    }

    /// Records that nobody saw how many events the draining process has lost.
    pub(crate) fn is_unseen(&self) {
        if let Some(death) = self.lock().deaths.last_mut() {
            death.kind = Kind::UnseenDrain;
        }
    }

    /// Records that the process is gone.
    pub(crate) fn is_dead(&self) {
        if let Some(death) = self.lock().deaths.last_mut() {
            death.ended.get_or_insert_with(kernel::now);
        }
    }
}

impl Truth {
    /// Adds an attempt, and returns its index.
    pub(crate) fn begun(&mut self, attempt: Attempt) -> usize {
        let number = self.attempts.len();
        for serial in attempt.serials.iter() {
            if let Some(known) = self.events.get_mut(serial) {
                known.attempts.push(number);
            }
        }
        self.attempts.push(attempt);
        number
    }

    /// Returns the attempts with this event.
    pub(crate) fn attempts_of(&self, known: &Known) -> impl Iterator<Item = &Attempt> {
        known.attempts.iter().filter_map(|&number| self.attempts.get(number))
    }

    /// Returns the configs that may have been in force at some time in this span.
    pub(crate) fn configs(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Config> {
        let until = |place: usize| {
            let next = self.epochs.get(place + 1);
            next.map_or(Duration::MAX, |next| next.settled.unwrap_or(Duration::MAX))
        };
        let overlaps =
            move |(place, epoch): &(usize, &Epoch)| epoch.begins <= to && until(*place) >= from;
        self.epochs.iter().enumerate().filter(overlaps).map(|(_, epoch)| &*epoch.config)
    }
}

impl Truth {
    /// Returns how often the filter of the output to this consumer may have changed in this span.
    pub(crate) fn changes_of_filter(&self, consumer: usize, from: Duration, to: Duration) -> usize {
        let is_change = |pair: &&[Epoch]| {
            let [before, after] = pair else { return false };
            let filter = |epoch: &Epoch| {
                let mut outputs = epoch.config.outputs.iter();
                outputs.find(|output| output.consumer == consumer).map(|it| it.filter.clone())
            };
            let (before, now) = (filter(before), filter(after));
            let settled = after.settled.unwrap_or(Duration::MAX);
            before.is_some()
                && now.is_some()
                && before != now
                && after.begins <= to
                && settled >= from
        };
        self.epochs.windows(2).filter(is_change).count()
    }
}

impl Config {
    pub(crate) fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// Returns `true` if there is an output with this name, and it is required.
    pub(crate) fn requires(&self, name: &str) -> bool {
        self.output(name).is_some_and(|output| output.required)
    }
}
