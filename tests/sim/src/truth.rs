//! The book of truth: what the senders sent and what they were told, the configs that were in
//! force, and the ends of the relay's lives. The oracle compares it with what arrived.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::events::{Event, Facts, Serial};
use crate::kernel;

/// The book, which all actors share. Clones are the same book.
#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<Truth>>);

/// What is in the book.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Every event that was ever in a body.
    pub(crate) events: BTreeMap<Serial, Known>,
    /// Every request with events, in the order in which they were begun.
    pub(crate) attempts: Vec<Attempt>,
    /// The configs, in the order in which they came into force.
    pub(crate) epochs: Vec<Epoch>,
    /// The ends of lives, in their order.
    pub(crate) deaths: Vec<Death>,
    /// The times at which the disk begins to refuse writes or syncs, and those at which it takes
    /// all of them again at the latest.
    pub(crate) refusing: Vec<(Duration, Duration)>,
    /// The times at which a copy of the queue's directory was made, and at which the relay ended
    /// before the copy was put back.
    pub(crate) set_back: Vec<(Duration, Duration)>,
    /// The certificates that were put into the listener's files, each with the time.
    pub(crate) certificates: Vec<(Duration, Vec<u8>)>,
    /// The handshakes that senders have made.
    pub(crate) handshakes: Vec<Handshake>,
    /// The times in which the sync of a dead letter began that took longer than the relay waits. It
    /// is in the file then, and counts as not written.
    pub(crate) hanging_letters: Vec<(Duration, Duration)>,
}

/// A handshake of TLS with the relay.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    /// The certificate that the relay has shown.
    pub(crate) certificate: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) event: Event,
    /// The requests with this event, as indexes of [`Truth::attempts`].
    pub(crate) attempts: Vec<usize>,
}

/// One request with events.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The sender and its connection.
    pub(crate) from: SentBy,
    /// The events of the body, in their order there. Attempts with the same body share the list.
    pub(crate) serials: Arc<[Serial]>,
    pub(crate) must: Must,
    /// The time before the first byte of the request left.
    pub(crate) begun: Duration,
    /// The time at which the sender had its answer, or gave up waiting. `None` while it waits.
    pub(crate) ended: Option<(Duration, Answer)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentBy {
    pub(crate) sender: u32,
    /// The number of the connection among those of this sender.
    pub(crate) connection: u64,
}

/// What the relay has to do with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Must {
    /// The request is sound: 200, or an answer that asks to try again.
    Take,
    /// The request is wrong, for this reason: one of these statuses, or one that asks to try again.
    Refuse(&'static str, &'static [u16]),
    /// The body never arrives whole, so no event of it may ever leave.
    Never,
}

/// What a sender knows at the end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// The status is 200, but the number of accepted events is not that of the body.
    Miscounted,
    /// The status is 429 or 503, without a Retry-After of some seconds.
    Unhelpful(u16),
    /// There was no connection, so no byte of the request left.
    NoConnection,
    /// The connection broke before the answer was whole.
    Broken,
    /// No answer came in time.
    TimedOut,
    /// The sender went away, or never read its answer.
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
            Self::TimedOut => f.write_str("timed out"),
            Self::Unread => f.write_str("not read"),
        }
    }
}

/// What became of a body, as far as its sender can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was answered 200 at this time.
    Accepted(Duration),
    /// The relay may not keep any event of it.
    Refused,
    /// "A connection that breaks before the answer may leave the events stored" (http.md). So may a
    /// 503: the queue on disk answers it to a group whose sync has failed, and recovery keeps whole
    /// records that were written before a kill; with `delivered` an output may have begun to send.
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

/// A config that is in force.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    /// The earliest time at which it may have been in force.
    pub(crate) begins: Duration,
    /// The time from which on it is certainly in force, and the one before it is not. `None` while
    /// a reload is under way.
    pub(crate) settled: Option<Duration>,
    pub(crate) config: Arc<Config>,
}

/// As much of a config as the oracle has to know.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) on_disk: bool,
    /// `queue.when_full`.
    pub(crate) when_full: &'static str,
    /// `queue.max_bytes` and `queue.segment_bytes`.
    pub(crate) queue_bytes: usize,
    pub(crate) segment_bytes: usize,
    pub(crate) acknowledge: Acknowledge,
    pub(crate) limits: Limits,
    /// The outputs to this consumer give up no event (`rejected.action = "retry"`).
    pub(crate) keeps: Option<usize>,
    pub(crate) outputs: Vec<Output>,
}

/// The table `[limits]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// `max_in_flight` in bytes, if it is small.
    pub(crate) in_flight: Option<usize>,
    /// `max_connections`, if it is small.
    pub(crate) connections: Option<u32>,
    /// The shorter one of `header_timeout` and `body_timeout`.
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

/// An output in a config.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// The number of the consumer to which it sends. An output that is renamed keeps it.
    pub(crate) consumer: usize,
    pub(crate) required: bool,
    pub(crate) filter: Filter,
    /// The documented reason for which this output, in this config and with this plan, may lose
    /// events: the queue drops what is oldest, the consumer refuses some, the output is removed or
    /// optional, a drain with a queue in memory was too short. `None`: it may lose nothing. A plan
    /// always has `None`, because the reason depends on the whole config.
    pub(crate) may_lose: Option<&'static str>,
    /// Events of equal bytes leave once (`filter.deduplicate`, longer than a seed).
    pub(crate) deduplicates: bool,
    /// The addresses of its consumer, which a plan does not know yet.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The reason of [`Output::may_lose`] where `queue.when_full` is not `reject`.
pub(crate) const FULL: &str = "a full queue drops events";

/// The same where the plan damages files of the queue.
pub(crate) const DAMAGED: &str = "somebody changes files of the queue";

/// The key `match` of a filter, as one table of criteria. A list that is empty asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) verbs: Vec<&'static str>,
    pub(crate) namespaces: Vec<&'static str>,
    pub(crate) users: Vec<&'static str>,
    /// True if other keys of the filter change what leaves.
    pub(crate) changes: bool,
}

impl Filter {
    /// Returns true if the filter forwards such an event.
    pub(crate) fn keeps(&self, facts: &Facts) -> bool {
        let has = |list: &[&str], value: &str| list.is_empty() || list.contains(&value);
        has(&self.verbs, facts.verb)
            && has(&self.namespaces, facts.namespace)
            && has(&self.users, facts.user)
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

/// The end of one life of the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    /// The time of the signal.
    pub(crate) begun: Duration,
    /// The time at which the process was gone; `None` if it still drains.
    pub(crate) ended: Option<Duration>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and a part of what was not synced is gone.
    PowerLoss,
    /// SIGTERM: what a queue in memory still has at the end is counted as lost.
    Drain,
    /// The same, and the exit status says that events are lost, but nobody has seen how many:
    /// `shutdown.drain_timeout` was over, so there was no time for a scrape, and nobody reads the
    /// log.
    UnseenDrain,
}

impl Kind {
    /// Returns true if the process had no time to do anything.
    pub(crate) fn is_violent(self) -> bool {
        matches!(self, Self::Kill | Self::PowerLoss)
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().expect("no actor panics with the book in its hands")
    }

    /// Lets the oracle read. No sender can write meanwhile.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Truth) -> T) -> T {
        read(&self.lock())
    }

    /// Notes events before they are in any body.
    pub(crate) fn made(&self, events: &[Event]) -> Arc<[Serial]> {
        let mut truth = self.lock();
        for event in events {
            let known = Known { event: event.clone(), attempts: Vec::new() };
            let before = truth.events.insert(event.serial, known);
            assert!(before.is_none(), "{} is not unique", event.serial);
        }
        events.iter().map(|event| event.serial).collect()
    }

    /// Notes that a request begins. Returns its number for [`Book::ended`].
    pub(crate) fn begun(&self, from: SentBy, serials: &Arc<[Serial]>, must: Must) -> usize {
        let serials = Arc::clone(serials);
        self.lock().begun(Attempt { from, serials, must, begun: kernel::now(), ended: None })
    }

    /// Notes how a request ended.
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

    /// Notes that this config may be in force from now on: the first one, one that a reload is
    /// about to bring, or that of the next life.
    pub(crate) fn config(&self, config: Config) {
        let config = Arc::new(config);
        self.lock().epochs.push(Epoch { begins: kernel::now(), settled: None, config });
    }

    /// Notes that the newest config is certainly in force.
    pub(crate) fn settled(&self) {
        if let Some(epoch) = self.lock().epochs.last_mut() {
            epoch.settled.get_or_insert_with(kernel::now);
        }
    }

    /// Notes that the newest config was refused, and was never in force.
    pub(crate) fn refused(&self) {
        self.lock().epochs.pop();
    }

    /// Notes that the disk refuses writes or syncs from now on until a time.
    pub(crate) fn disk_refuses(&self, until: Duration) {
        self.lock().refusing.push((kernel::now(), until));
    }

    /// Notes that the queue's directory is set back, after the relay's end, to a copy.
    pub(crate) fn set_back(&self, copied: Duration, ended: Duration) {
        self.lock().set_back.push((copied, ended));
    }

    /// Notes that the listener's files have this certificate from now on.
    pub(crate) fn certificate(&self, certificate: Vec<u8>) {
        self.lock().certificates.push((kernel::now(), certificate));
    }

    /// Notes a handshake that has just ended.
    pub(crate) fn shook_hands(&self, begun: Duration, certificate: Vec<u8>) {
        let ended = kernel::now();
        self.lock().handshakes.push(Handshake { begun, ended, certificate });
    }

    /// Notes that the sync of dead letters that were given up in this time hangs, or may hang.
    pub(crate) fn letters_hang(&self, from: Duration, to: Duration) {
        self.lock().hanging_letters.push((from, to));
    }

    /// Notes that the relay is about to be ended so.
    pub(crate) fn dies(&self, kind: Kind) {
        self.lock().deaths.push(Death { begun: kernel::now(), ended: None, kind });
    }

    /// Notes that nobody has seen how many events the process that drains has lost.
    pub(crate) fn is_unseen(&self) {
        if let Some(death) = self.lock().deaths.last_mut() {
            death.kind = Kind::UnseenDrain;
        }
    }

    /// Notes that the process is gone.
    pub(crate) fn is_dead(&self) {
        if let Some(death) = self.lock().deaths.last_mut() {
            death.ended.get_or_insert_with(kernel::now);
        }
    }
}

impl Truth {
    /// Adds an attempt, and returns its number.
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

    /// Returns the configs that may have been in force at some time of this span.
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

    /// Returns true if there is an output of this name, and it is required.
    pub(crate) fn requires(&self, name: &str) -> bool {
        self.output(name).is_some_and(|output| output.required)
    }
}
