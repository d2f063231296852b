//! The judge. Each rule compares the book of truth with the events that arrived at the consumers,
//! names the promise that it checks, and reports a broken one in sentences.
//!
//! To the oracle, a body was *accepted* (200), it was *refused*, or its fate is *unknown*
//! ([`Fate`]). The relay accepts a body whole or not at all (see http.md). So if one event of a
//! body of unknown fate has arrived anywhere, the whole body is judged as accepted.
//!
//! The exact time of acceptance is not known: it is between the start of the request and its
//! answer. A rule considers every config that may have been in force at some time between the two.

mod acknowledged;
mod broken;
mod given_up;
mod outer;
pub(crate) mod room;
pub(crate) mod said;
pub(crate) mod uncounted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::consumers::{Arrived, Copies, Cut, Longest, Promise, Trouble, TurnedDown};
use crate::events;
use crate::events::{Serial, identify};
use crate::evidence::time_of;
use crate::oracle::room::Room;
use crate::truth::{
    Acknowledge, Answer, Attempt, Config, DAMAGED, Death, Epoch, FULL, Fate, Kind, Known, Must,
    Output, Truth,
};

/// The most events that a sentence names, and the most faults of one rule that are reported.
const NAMED_MAX: usize = 5;

/// The longest time to an answer (`queue.delivered_timeout`).
const ANSWER: Duration = Duration::from_secs(25);

/// The time that a refused event can take: eight refusals over at least three seconds (see
/// refused-events.md) or 8 s of server errors, as the outputs are configured here, after a pause.
const REFUSAL: Duration = Duration::from_secs(12);

/// How long the relay may not have saved a cursor, or the fact that a full queue has dropped
/// events. A kill loses this (see queue-and-disk.md).
const SAVED: Duration = Duration::from_secs(1);

/// How long a removed output can stay. It waits up to ten seconds for events in flight (see
/// reload.md), and then its cursor is saved.
const LEAVES: Duration = Duration::from_secs(15);

/// The number of failures that count before an output that keeps the order sets an event aside (see
/// refused-events.md).
const COUNTED_ORDERED: usize = 3;

/// The number of failures after which an object steps aside for another one.
const OBJECT_TRIES: usize = 4;

/// How long after a trouble the relay can still send a later event as a test. It has waited for a
/// response for at most 20 s, and then pauses for just as long.
const DOUBT: Duration = Duration::from_secs(40);

/// All rules: those of this module, and those of the actors that notice a broken promise while the
/// seed runs. The sentence about a broken promise begins with the name of its rule.
pub(crate) const RULES: [&str; 23] = [
    "answers",
    "bytes",
    "certificate",
    "conservation",
    "counters",
    "delivered",
    "drain",
    "end",
    "evidence",
    "identity",
    "invented",
    "lag",
    "listener",
    "memory",
    "once",
    "order",
    "progress",
    "protocol",
    "reasons",
    "reload",
    "repeats",
    "start",
    "verdict",
];

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) rule: &'static str,
    /// The output's name; empty if the fault is about no output.
    pub(crate) output: String,
    pub(crate) text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, output, text } = self;
        if output.is_empty() {
            write!(f, "{rule}: {text}")
        } else {
            write!(f, "{rule}: output {output}: {text}")
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Letter {
    /// When the output gave up on the event.
    pub(crate) at: Duration,
    pub(crate) output: String,
    pub(crate) reason: String,
    pub(crate) event: Vec<u8>,
}

/// The losses that the relay has counted for an output, in all of its lives together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    /// `error_total{plugin=OUTPUT}`, which includes the dead letters.
    pub(crate) lost: u64,
    /// `error_total{plugin="queue"}`.
    pub(crate) queue: u64,
    /// How many of the lost events have a counted dead letter: see [`losses_in`].
    pub(crate) letters: u64,
    /// `dead_letter_dropped_events_total`.
    pub(crate) letters_dropped: u64,
}

impl Counted {
    /// Returns how many lost events need not be in a file of dead letters.
    fn without_letter(self) -> u64 {
        let Self { lost, queue, letters, letters_dropped } = self;
        lost.saturating_sub(letters) + queue + letters_dropped
    }
}

/// Everything that is known about one output when the oracle judges it.
pub(crate) struct View<'a> {
    pub(crate) output: &'a str,
    /// The index of its consumer, as in [`Output::consumer`].
    pub(crate) consumer: usize,
    pub(crate) promise: Promise,
    /// `true` for `tcp` and `syslog`: the relay knows only which bytes the peer's kernel has
    /// acknowledged (see tcp.md).
    pub(crate) is_unconfirmed: bool,
    /// `true` for `tcp`, `syslog`, `lumberjack` and `relp`, which use one connection at a time.
    pub(crate) is_stream: bool,
    /// `true` for stores that refuse a request as a whole.
    pub(crate) refuses_requests: bool,
    /// `true` if the consumer has two addresses.
    pub(crate) has_door: bool,
    /// In the order in which the consumer accepted them.
    pub(crate) arrived: &'a [Arrived],
    /// The requests that the consumer has turned down, in order of time.
    pub(crate) turned_down: &'a [TurnedDown],
    /// The times in which requests may have failed that the consumer knows nothing about.
    pub(crate) troubles: &'a [Trouble],
    /// The dead letters of this output that are in the files.
    pub(crate) letters: &'a [Letter],
    /// The letters that the relay has counted: see [`uncounted::counted`].
    pub(crate) counted_letters: &'a [Letter],
    pub(crate) counted: Counted,
    /// Returns `true` if the consumer refuses this event for good, or always returns 5xx for it.
    /// The event may lose its place in the order, and becomes a dead letter (see
    /// refused-events.md).
    pub(crate) refuses: &'a dyn Fn(&[u8]) -> bool,
    /// The last time at which the consumer died or its connections could be reset. If it is a
    /// consumer without acknowledgements, the events that it had read but not stored, or had not
    /// read within `replay_window`, are lost (see tcp.md).
    pub(crate) consumer_died: Option<Duration>,
    /// The times in which the consumer reset each connection after some bytes.
    pub(crate) cuts: &'a [Cut],
    /// The output's limit for the length of an event.
    pub(crate) longest: Option<Longest>,
    /// How long an event can wait before the output counts as late.
    pub(crate) late: Duration,
}

/// The time near the end of a seed in which nothing is wrong: every consumer accepts everything,
/// the disk works, the relay runs, the config stays the same, and the senders send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calm {
    /// When the last trouble ended.
    pub(crate) healed: Duration,
    /// When everything that the troubles delayed must be done.
    pub(crate) begins: Duration,
    pub(crate) ends: Duration,
    /// A consumer whose output uses `failover`, and the consumer's first address, which is down.
    /// Its second address works.
    pub(crate) away: Option<(usize, SocketAddr)>,
}

impl Calm {
    /// Returns the longest time that anything can take while nothing is wrong.
    fn limit(&self) -> Duration {
        self.begins.saturating_sub(self.healed)
    }
}

/// A body that was certainly in the queue.
#[derive(Debug, Clone, Copy)]
struct Stored {
    /// The body was accepted at some time between `from` and `until`.
    from: Duration,
    until: Duration,
    /// `false` if only an arrival shows that the body was accepted.
    acknowledged: bool,
}

/// The book of truth and all views, prepared for the rules.
pub(crate) struct World<'a> {
    truth: &'a Truth,
    now: Duration,
    stored: BTreeMap<Serial, Stored>,
    pub(crate) outputs: Vec<Seen<'a>>,
}

/// The arrivals at one output, with their indexes.
pub(crate) struct Seen<'a> {
    pub(crate) view: View<'a>,
    /// The serial of each arrival.
    serials: Vec<Option<Serial>>,
    /// For each event, the index of its first arrival, and how often it arrived.
    first: BTreeMap<Serial, (usize, usize)>,
    letters: BTreeSet<Serial>,
    counted_letters: BTreeSet<Serial>,
}

impl<'a> Seen<'a> {
    fn new(view: View<'a>) -> Self {
        let serials: Vec<_> = view.arrived.iter().map(|arrived| identify(&arrived.event)).collect();
        let mut first = BTreeMap::new();
        for (place, serial) in serials.iter().enumerate() {
            if let Some(serial) = serial {
                first.entry(*serial).or_insert((place, 0)).1 += 1;
            }
        }
        let of = |letters: &[Letter]| letters.iter().filter_map(|it| identify(&it.event)).collect();
        let (letters, counted_letters) = (of(view.letters), of(view.counted_letters));
        Self { view, serials, first, letters, counted_letters }
    }

    fn first_at(&self, serial: Serial) -> Option<Duration> {
        let (place, _) = self.first.get(&serial)?;
        self.view.arrived.get(*place).map(|arrived| arrived.at)
    }

    /// Returns `true` if the relay may give up on the event, or send later events before it.
    fn may_refuse(&self, known: &Known) -> bool {
        let event = &known.event.bytes;
        let is_long = self.view.longest.is_some_and(|longest| longest.may_reject(event));
        self.view.promise.aside || is_long || (self.view.refuses)(event)
    }

    /// Returns `true` if the event may have been set aside before `until`, and so have lost its
    /// place in the order (see [`COUNTED_ORDERED`]), or have waited for the end of a pause that the
    /// consumer has asked for it alone. A consumer that cuts its connections does not report the
    /// events that it turns down, but it turns down every event that is longer.
    fn left_the_order(&self, world: &World<'_>, serial: Serial, until: Duration) -> bool {
        let from = world.stored.get(&serial).map_or(until, |stored| stored.from);
        self.failures_that_count(serial, from, until) >= COUNTED_ORDERED
            || self.has_rested(serial, from, until)
            || self.has_stepped_aside(world, serial, until)
            || self.is_cut(world, serial, from, until)
    }

    /// Returns `true` if the consumer ended its connections, for some time in this span, after
    /// fewer bytes than the event has, and accepted another event in that time.
    fn is_cut(&self, world: &World<'_>, serial: Serial, from: Duration, until: Duration) -> bool {
        let Some(known) = world.truth.events.get(&serial) else { return false };
        let is_its = |cut: &&Cut| known.event.bytes.len() as u64 > cut.bytes;
        self.view.cuts.iter().filter(is_its).any(|cut| {
            let ended = cut.ended.unwrap_or(world.now).min(until);
            self.has_taken_another(serial, cut.begun.max(from), ended)
        })
    }

    /// Returns how many failures of the event alone may count against it in this time. A failure
    /// counts if the consumer has accepted another event since the event was first in doubt, or
    /// since the last failure that counts and is not a refusal (see refused-events.md). The event
    /// may be in doubt as soon as it waits: it may be passed over because an earlier one has
    /// failed.
    fn failures_that_count(&self, serial: Serial, from: Duration, until: Duration) -> usize {
        let downs = self.view.turned_down.iter();
        let downs = downs.skip_while(|down| down.at < from).take_while(|down| down.at <= until);
        let (mut since, mut counted) = (from, 0);
        for down in downs {
            if down.events == [serial] && self.has_taken_another(serial, since, down.until) {
                counted += 1;
                if !down.is_refusal {
                    since = down.at;
                }
            }
        }
        counted
    }

    /// Returns `true` if an object may have let others go first that come after this event: one
    /// that has failed [`OBJECT_TRIES`] times by then, with this event or with an earlier one that
    /// had not arrived when this one was accepted, or that was still sent then: the store may have
    /// had it (see guarantees.md). A store that is silent, or away, reports no failure.
    fn has_stepped_aside(&self, world: &World<'_>, serial: Serial, until: Duration) -> bool {
        if !matches!(self.view.promise.copies, Copies::OnceByRange) {
            return false;
        }
        let Some(stored) = world.stored.get(&serial) else { return false };
        let is_silent =
            |(begun, ended): &Trouble| *begun <= until && stored.from <= ended.unwrap_or(world.now);
        if self.view.troubles.iter().any(is_silent) {
            return true;
        }
        let is_earlier =
            |it: &&Serial| world.stored.get(*it).is_some_and(|it| it.from <= stored.until);
        let mut failures = BTreeMap::<Serial, (usize, Duration)>::new();
        for down in self.view.turned_down.iter().take_while(|down| down.at <= until) {
            for event in down.events.iter().filter(is_earlier) {
                let (count, last) = failures.entry(*event).or_default();
                (*count, *last) = (*count + 1, down.at);
            }
        }
        failures.into_iter().any(|(event, (count, last))| {
            let was_open =
                last >= stored.from || self.first_at(event).is_none_or(|at| at >= stored.from);
            count >= OBJECT_TRIES && was_open
        })
    }

    fn has_rested(&self, serial: Serial, from: Duration, until: Duration) -> bool {
        let mut downs = self.view.turned_down.iter().filter(|down| down.asks);
        downs.any(|down| down.events == [serial] && (from..=until).contains(&down.at))
            && self.has_taken_another(serial, from, until)
    }

    fn has_taken_another(&self, serial: Serial, from: Duration, until: Duration) -> bool {
        let mut arrived = self.view.arrived.iter().zip(&self.serials);
        arrived.any(|(it, other)| (from..=until).contains(&it.at) && *other != Some(serial))
    }

    /// Returns `true` if an event accepted no later than `serial` was in doubt when a later one
    /// `came`: a request with this event had failed, and the consumer has not accepted it since.
    /// The relay then sends a later event (see guarantees.md). While the consumer or the way to it
    /// is in trouble, any request may fail.
    fn was_in_doubt(&self, world: &World<'_>, serial: Serial, came: Duration) -> bool {
        let Some(stored) = world.stored.get(&serial) else { return false };
        let is_earlier =
            |it: &Serial| world.stored.get(it).is_some_and(|earlier| earlier.from <= stored.until);
        // With `delivered`, events whose request got 503 may have been on the wire since then.
        let first = world.first_begun(serial).unwrap_or(stored.from);
        let is_silent = |(begun, ended): &Trouble| {
            let ended = ended.unwrap_or(world.now);
            *begun <= came && came <= ended + DOUBT && first <= ended
        };
        if self.view.troubles.iter().any(is_silent) {
            return true;
        }
        let mut doubts = BTreeMap::<Serial, Duration>::new();
        for down in self.view.turned_down.iter().take_while(|down| down.at <= came) {
            for event in down.events.iter().filter(|it| is_earlier(it)) {
                doubts.insert(*event, down.at);
            }
        }
        let was_taken = |event: Serial, since: Duration| {
            let arrivals = self.view.arrived.iter().zip(&self.serials);
            let mut arrivals = arrivals.filter(|(_, serial)| **serial == Some(event));
            arrivals.any(|(arrived, _)| arrived.at > since && arrived.at < came)
        };
        doubts.into_iter().any(|(event, since)| !was_taken(event, since))
    }

    fn fault(&self, rule: &'static str, text: String) -> Fault {
        Fault { rule, output: self.view.output.to_owned(), text }
    }
}

impl<'a> World<'a> {
    pub(crate) fn new(truth: &'a Truth, now: Duration, views: Vec<View<'a>>) -> Self {
        let outputs: Vec<_> = views.into_iter().map(Seen::new).collect();
        let mut stored = BTreeMap::new();
        let first_anywhere = |serials: &[Serial]| {
            let of = |seen: &Seen<'_>| serials.iter().filter_map(|it| seen.first_at(*it)).min();
            outputs.iter().filter_map(of).min()
        };
        for attempt in &truth.attempts {
            let (until, acknowledged) = match attempt.fate() {
                Fate::Accepted(at) => (at, true),
                Fate::Refused => continue,
                Fate::Unknown => match first_anywhere(&attempt.serials) {
                    Some(at) if at >= attempt.begun => (at, false),
                    _ => continue,
                },
            };
            for serial in attempt.serials.iter() {
                let new = Stored { from: attempt.begun, until, acknowledged };
                let old = stored.entry(*serial).or_insert(new);
                if acknowledged && !old.acknowledged {
                    *old = new;
                }
            }
        }
        Self { truth, now, stored, outputs }
    }

    /// Runs every rule that needs only the book and the views. For each rule and output, only the
    /// first faults are reported.
    pub(crate) fn judge(&self, calm: Calm) -> Vec<Fault> {
        let rules =
            [invented, bytes, conservation, reasons, delivered, order, once, outer::lengths];
        let mut faults = few(answers(self.truth));
        faults.extend(few(outer::hurried(self.truth)));
        faults.extend(few(broken::unanswered(self.truth, self.now)));
        faults.extend(few(broken::in_a_drain(self.truth)));
        faults.extend(few(outer::served(self, calm)));
        faults.extend(few(outer::certificates(self.truth, calm)));
        faults.extend(few(outer::connections_stay(self.truth, calm)));
        let room = Room::new(self);
        faults.extend(few(room.refused()));
        faults.extend(few(senders_progress(self, &room, calm)));
        faults.extend(few(acknowledged::nowhere(self)));
        for seen in &self.outputs {
            faults.extend(rules.iter().flat_map(|rule| few(rule(self, seen))));
            faults.extend(few(given_up::answered(self, seen)));
            faults.extend(few(progress(self, seen, calm)));
            faults.extend(few(repeats(self, seen, calm)));
        }
        faults
    }

    /// Returns `true` if the output must get the event. It must have existed during the whole time
    /// in which the event may have been accepted, because a new output gets only later events (see
    /// reload.md). Each of its filters since then must keep the event, because a changed filter
    /// also applies to events in the queue (see filters/README.md).
    fn is_owed(&self, seen: &Seen<'_>, serial: Serial, stored: Stored) -> bool {
        let Some(known) = self.truth.events.get(&serial) else { return false };
        let of = |config: &'a Config| config.output(seen.view.output);
        let keeps = |output: &Output| output.filter.keeps(&known.event.facts);
        let mut when = self.truth.configs(stored.from, stored.until).peekable();
        let was_there = when.peek().is_some() && when.all(|config| of(config).is_some());
        was_there && self.truth.configs(stored.from, self.now).filter_map(of).all(keeps)
    }

    /// Returns when the first request with the event began, whatever its answer was.
    fn first_begun(&self, serial: Serial) -> Option<Duration> {
        let known = self.truth.events.get(&serial)?;
        self.truth.attempts_of(known).map(|attempt| attempt.begun).min()
    }

    /// Returns `true` if a filter dropped the event at some time between its first request and
    /// `until`. The filters of all outputs to this consumer count, because a reload may have
    /// renamed the output.
    fn was_kept_back(&self, seen: &Seen<'_>, serial: Serial, until: Duration) -> bool {
        let Some(known) = self.truth.events.get(&serial) else { return false };
        let Some(begun) = self.first_begun(serial) else { return false };
        let outputs = self.truth.configs(begun, until).flat_map(|config| &config.outputs);
        let mut outputs = outputs.filter(|output| output.consumer == seen.view.consumer);
        outputs.any(|output| !output.filter.keeps(&known.event.facts))
    }

    /// Returns `true` if an arrival came on an older connection than the first arrival of `other`,
    /// and its event could not be sent again: the queue may have dropped it, or a life of the relay
    /// ended between the request with the event and the answer to the one with `other`. A consumer
    /// that reads nothing for a while may then read the newer connection first.
    fn left_on_an_earlier_connection(&self, seen: &Seen<'_>, place: usize, other: Serial) -> bool {
        let connection = |place: usize| seen.view.arrived.get(place).map(|it| it.connection);
        let stored = |serial: Option<Serial>| self.stored.get(&serial?);
        let serial = seen.serials.get(place).copied().flatten();
        let (Some(stored), Some(later)) = (stored(serial), stored(Some(other))) else {
            return false;
        };
        let Some((of_other, _)) = seen.first.get(&other) else { return false };
        let is_between = |end: Duration| (stored.from..=later.until).contains(&end);
        let mut ends = self.truth.deaths.iter().filter_map(|death| death.ended);
        connection(place) < connection(*of_other)
            && (ends.any(is_between) || self.may_drop(seen, stored.from))
    }

    /// Returns `true` if the output was not in the config at this time, but is in the config of the
    /// next life. If the relay ended before the removal of the output was complete, the output
    /// continues from its cursor.
    fn has_come_back(&self, seen: &Seen<'_>, at: Duration) -> bool {
        let name = seen.view.output;
        let is_there = |epoch: &&Epoch| epoch.config.output(name).is_some();
        let ends = self.truth.deaths.iter().filter_map(|death| death.ended);
        let Some(end) = ends.filter(|end| *end >= at).min() else { return false };
        let begun = self.truth.epochs.partition_point(|epoch| epoch.begins <= at);
        let mut before = self.truth.epochs.iter().take(begun);
        let Some(last_there) = before.rposition(|epoch| is_there(&epoch)) else { return false };
        let has_left = self.truth.epochs.get(last_there + 1);
        let next = self.truth.epochs.iter().filter(|epoch| epoch.begins >= end);
        let is_leaving = has_left.is_some_and(|epoch| epoch.begins + LEAVES >= end);
        self.truth.epochs.iter().any(|epoch| epoch.config.on_disk)
            && is_leaving
            && next.min_by_key(|epoch| epoch.begins).is_some_and(|epoch| is_there(&epoch))
    }

    /// Returns `true` if the queue may have dropped or lost events for this consumer after `from`.
    fn may_drop(&self, seen: &Seen<'_>, from: Duration) -> bool {
        let is_its = |consumer: usize| consumer == seen.view.consumer;
        let mut counts = self.outputs.iter().filter(|it| is_its(it.view.consumer));
        let outputs = self.truth.configs(from, self.now).flat_map(|config| &config.outputs);
        let mut outputs = outputs.filter(|output| is_its(output.consumer));
        counts.any(|it| it.view.counted.lost > it.view.counted.letters || it.view.counted.queue > 0)
            && outputs.any(|output| {
                !output.required || [Some(FULL), Some(DAMAGED)].contains(&output.may_lose)
            })
    }

    /// Returns `true` if a reload removed or renamed the output to this consumer after `at`, and it
    /// lost events without a letter. Its backlog counts as lost, and is not sent again (see
    /// reload.md).
    fn may_leave(&self, seen: &Seen<'_>, at: Duration) -> bool {
        let consumer = seen.view.consumer;
        let its = |epoch: &Epoch| {
            let mut outputs = epoch.config.outputs.iter();
            outputs.find(|output| output.consumer == consumer).map(|output| output.name.clone())
        };
        let has_lost = |name: &str| {
            let mut outputs = self.outputs.iter().filter(|it| it.view.output == name);
            outputs.any(|it| it.view.counted.lost > it.view.counted.letters)
        };
        self.truth.epochs.windows(2).any(|pair| {
            let [before, after] = pair else { return false };
            let left = its(before).filter(|name| its(after).as_ref() != Some(name));
            after.begins >= at && left.is_some_and(|name| has_lost(&name))
        })
    }

    /// Returns when the relay began to run with the config of the calm time.
    fn unchanged_since(&self, calm: Calm) -> Duration {
        let deaths = self.truth.deaths.iter().filter_map(|death| death.ended);
        let settled = self.truth.epochs.iter().filter_map(|epoch| epoch.settled);
        let changes = deaths.chain(settled).filter(|at| *at <= calm.begins);
        changes.max().unwrap_or_default()
    }

    /// Returns `true` if this consumer gets events with equal bytes only once, in every config.
    fn deduplicates(&self, seen: &Seen<'_>) -> bool {
        let configs = self.truth.configs(Duration::ZERO, Duration::MAX);
        let outputs = configs.flat_map(|config| &config.outputs);
        let mut its = outputs.filter(|output| output.consumer == seen.view.consumer);
        its.all(|output| output.deduplicates)
    }

    /// Returns `true` if the event may have been lost, uncounted, with the process that had it. A
    /// process that is killed cannot count its losses, and a count is lost if the process ends
    /// before it is read. A queue in memory survives the end of its process only with `delivered`,
    /// and only for required outputs. A queue with a directory loses nothing (see guarantees.md).
    fn may_have_died(&self, seen: &Seen<'_>, stored: Stored) -> bool {
        let is_kept = |config: &Config| {
            let is_delivered = config.acknowledge == Acknowledge::Delivered;
            let is_required = config.requires(seen.view.output);
            config.on_disk || stored.acknowledged && is_delivered && is_required
        };
        let is_kept = self.truth.configs(stored.from, stored.until).all(is_kept);
        // The event was in a life in which it may have been accepted, but in no later one.
        let ended = |death: &Death| death.ended.unwrap_or(self.now);
        let lives = self.truth.deaths.iter().filter(|death| ended(death) >= stored.from);
        let is_last = |death: &&Death| ended(death) >= stored.until;
        let last = lives.clone().find(is_last).map_or(self.now, ended);
        let mut lives = lives.filter(|death| ended(death) <= last);
        !is_kept && lives.any(|it| it.kind.is_violent() || it.kind == Kind::UnseenDrain)
    }

    /// Returns `true` if the event may have been lost, uncounted, with a consumer that acknowledges
    /// nothing: it has never arrived, and the consumer died, or its connections were reset, after
    /// the event was sent (see tcp.md).
    fn may_have_died_at_its_consumer(
        &self,
        seen: &Seen<'_>,
        serial: Serial,
        stored: Stored,
    ) -> bool {
        seen.view.is_unconfirmed
            && !seen.first.contains_key(&serial)
            && seen.view.consumer_died.is_some_and(|died| stored.from <= died)
    }

    /// Returns `true` if the event was accepted after a copy of the queue's directory was made, and
    /// before that copy was put back. Such events are lost if they were not delivered before (see
    /// queue-directory.md).
    fn may_be_set_back(&self, stored: Stored) -> bool {
        let mut times = self.truth.set_back.iter();
        times.any(|(copied, ended)| (*copied..=*ended).contains(&stored.from))
    }

    /// Returns `true` if the event was in a copy of the queue's directory and arrived after that
    /// copy was put back, while `other` had arrived before. Such events can arrive after newer ones
    /// (see queue-directory.md).
    fn came_back(&self, seen: &Seen<'_>, serial: Serial, other: Serial, at: Duration) -> bool {
        let Some(stored) = self.stored.get(&serial) else { return false };
        let Some(before) = seen.first_at(other) else { return false };
        let mut times = self.truth.set_back.iter();
        times.any(|(copied, ended)| stored.from <= *copied && before <= *ended && at >= *ended)
    }

    /// Returns `true` if a full queue may have dropped the event, and a kill came at most a second
    /// after the arrival of `other`. If the drop was not saved by then, the event is delivered
    /// after all.
    fn is_dropped_no_more(&self, seen: &Seen<'_>, serial: Serial, other: Serial) -> bool {
        let Some(stored) = self.stored.get(&serial) else { return false };
        let Some(before) = seen.first_at(other) else { return false };
        let is_soon = |death: &&Death| {
            let ended = death.ended.unwrap_or(self.now);
            death.kind.is_violent() && before <= ended && ended <= before + SAVED
        };
        self.may_drop(seen, stored.from) && self.truth.deaths.iter().any(|it| is_soon(&it))
    }

    /// Returns the events that the output should have got and has not got.
    fn missing(&self, seen: &Seen<'_>) -> Vec<(Serial, Stored)> {
        let of = |(serial, stored): (&Serial, &Stored)| (*serial, *stored);
        let all = self.stored.iter().map(of);
        all.filter(|(serial, stored)| {
            !seen.first.contains_key(serial)
                && self.is_owed(seen, *serial, *stored)
                && !self.may_have_died(seen, *stored)
                && !self.may_be_set_back(*stored)
        })
        .collect()
    }
}

/// Keeps only the first faults. The last of them says how many more there are.
fn few(mut faults: Vec<Fault>) -> Vec<Fault> {
    let more = faults.len().saturating_sub(NAMED_MAX);
    faults.truncate(NAMED_MAX);
    if let Some(last) = faults.last_mut().filter(|_| more > 0) {
        last.text.push_str(&format!("; and {more} more faults of this kind"));
    }
    faults
}

fn named(events: impl IntoIterator<Item = (Serial, Duration)>) -> String {
    let events: Vec<_> = events.into_iter().collect();
    let name = |(serial, at): &(Serial, Duration)| format!("{serial} ({at:?})");
    let names: Vec<_> = events.iter().take(NAMED_MAX).map(name).collect();
    let more = events.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &more
}

/// After a 200, every output gets each event of the batch, or `kube_audit_forwarder_error_total`
/// counts the loss (see guarantees.md). The losses without a letter must cover all events that have
/// neither arrived nor a counted letter.
pub(crate) fn conservation(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if seen.view.consumer_died.is_some() && seen.view.is_unconfirmed {
        return Vec::new();
    }
    let Counted { lost, queue, .. } = seen.view.counted;
    let missing = world.missing(seen);
    let (all, counted) = (missing.len() as u64, lost + queue);
    let gone: Vec<_> =
        missing.iter().filter(|(serial, _)| !seen.counted_letters.contains(serial)).collect();
    let explained = seen.view.counted.without_letter();
    let told = |events: Vec<&(Serial, Stored)>| {
        let unknown = events.iter().filter(|(_, stored)| !stored.acknowledged).count();
        let names = named(events.into_iter().map(|(serial, stored)| (*serial, stored.until)));
        format!("{names}; {unknown} of them are of bodies without a 200 of which others arrived")
    };
    let mut faults = Vec::new();
    if all > counted {
        let text = format!(
            "{all} events were accepted and have not arrived, and {counted} are counted as lost \
             ({queue} of them by the queue): {}",
            told(missing.iter().collect())
        );
        faults.push(seen.fault("conservation", text));
    } else if gone.len() as u64 > explained {
        let text = format!(
            "{} events are neither at the consumer nor in the dead letters, and {explained} are \
             counted as lost without a letter: {}",
            gone.len(),
            told(gone)
        );
        faults.push(seen.fault("conservation", text));
    }
    faults
}

/// Each counted loss and each dead letter needs a documented reason: normally the counter is 0 (see
/// guarantees.md). One reason is that the consumer refuses the event. The plan knows the others
/// ([`Output::may_lose`]).
pub(crate) fn reasons(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let outputs = world.truth.configs(Duration::ZERO, Duration::MAX);
    let mut outputs = outputs.filter_map(|config| config.output(seen.view.output));
    let Promise { aside, counts, fails, .. } = seen.view.promise;
    if aside || counts || outputs.any(|output| output.may_lose.is_some()) {
        return Vec::new();
    }
    let Counted { lost, queue, .. } = seen.view.counted;
    let refused = world.truth.events.values().filter(|known| seen.may_refuse(known));
    let refused: usize = refused.map(|known| copies(world.truth, known)).sum();
    // With a short `rejected.after_server_errors`, any answer may count that often (see trial.rs).
    // If no more events can be set aside, the time does not matter.
    let is_alone = |serial: &Serial| {
        let downs = seen.view.turned_down.iter();
        fails && downs.filter(|down| down.events == [*serial]).count() >= given_up::FAILURES_MIN
    };
    let pushed_out = given_up::pushed_out(world, seen);
    let is_given_up = |it: &&Serial| is_alone(it) || pushed_out.contains(it);
    let given_up: BTreeSet<_> = seen.letters.iter().filter(is_given_up).collect();
    let refused = refused + given_up.len() + letters_again(world, seen) + unsynced(world);
    let mut faults = Vec::new();
    if lost + queue > refused as u64 {
        let text = format!(
            "{lost} events are counted as lost, and {queue} by the queue; the consumer refuses \
             {refused}, and there is no other reason"
        );
        faults.push(seen.fault("reasons", text));
    }
    let known = |serial: &&Serial| world.truth.events.get(serial);
    let is_wrong = |serial: &&Serial| known(serial).is_some_and(|known| !seen.may_refuse(known));
    if let Some(serial) = seen.letters.iter().filter(|it| !given_up.contains(it)).find(is_wrong) {
        let text =
            format!("event {serial} is in a dead letter, and the consumer takes such events");
        faults.push(seen.fault("reasons", text));
    }
    faults
}

/// Returns how many events may be counted as missing although no sender got a 200 for them. If the
/// disk refused to sync a batch and a power loss follows, its events count as lost (see
/// crates/queue/README.md). Each life may count them again.
fn unsynced(world: &World<'_>) -> usize {
    let is_loss = |death: &&Death| death.kind == Kind::PowerLoss;
    let losses = world.truth.deaths.iter().filter(is_loss).filter_map(|death| death.ended);
    let Some(last) = losses.max() else { return 0 };
    let is_refused = |attempt: &&Attempt| {
        let refuses = |(from, until): &(Duration, Duration)| {
            *from <= attempt.begun && attempt.begun <= *until
        };
        let has_503 = matches!(attempt.ended, Some((at, Answer::Status(503))) if at <= last);
        has_503 && world.truth.refusing.iter().any(refuses)
    };
    let refused = world.truth.attempts.iter().filter(is_refused);
    let events: usize = refused.map(|attempt| attempt.serials.len()).sum();
    events * world.truth.deaths.len()
}

/// Returns how many letters were written again by a later life. If earlier events are still waiting
/// when the relay ends, an event that was given up on is sent again after the start, and may get a
/// second letter (see dead-letters.md).
fn letters_again(world: &World<'_>, seen: &Seen<'_>) -> usize {
    let mut times = BTreeMap::<_, Vec<Duration>>::new();
    for letter in seen.view.letters {
        times.entry(identify(&letter.event)).or_default().push(letter.at);
    }
    let ends: Vec<_> = world.truth.deaths.iter().filter_map(|death| death.ended).collect();
    let has_ended = |pair: &&[Duration]| {
        let [before, after] = pair else { return false };
        ends.iter().any(|end| before <= end && end <= after)
    };
    let again = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.windows(2).filter(has_ended).count()
    };
    times.into_values().map(again).sum()
}

/// With `acknowledge = "delivered"`, the 200 comes only after every required output has delivered
/// the batch (see guarantees.md) or has counted it as lost.
pub(crate) fn delivered(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if seen.view.is_unconfirmed {
        return Vec::new();
    }
    let mut late = Vec::new();
    for (serial, stored) in &world.stored {
        let is_promised = |config: &Config| {
            config.acknowledge == Acknowledge::Delivered && config.requires(seen.view.output)
        };
        let mut configs = world.truth.configs(stored.from, stored.until);
        let has_it = seen.first_at(*serial).is_some_and(|at| at <= stored.until);
        if stored.acknowledged
            && !has_it
            && !seen.counted_letters.contains(serial)
            && configs.all(is_promised)
            && world.is_owed(seen, *serial, *stored)
        {
            late.push((*serial, stored.until));
        }
    }
    let explained = seen.view.counted.without_letter();
    if late.len() as u64 <= explained {
        return Vec::new();
    }
    let text = format!(
        "{} events were answered 200 before the consumer had them, and {explained} are counted as \
         lost: {}",
        late.len(),
        named(late)
    );
    vec![seen.fault("delivered", text)]
}

/// Each event that arrived or has a dead letter was sent in a body that is valid and was not
/// refused. A filter kept it, and an output to this consumer existed when it was accepted.
pub(crate) fn invented(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (arrived, serial) in seen.view.arrived.iter().zip(&seen.serials) {
        if let Err(why) = is_known(world, seen, *serial, arrived.at, &arrived.event) {
            let text = format!("an event arrived at {:?} {why}", arrived.at);
            faults.push(seen.fault("invented", text));
        }
    }
    for letter in seen.view.letters {
        if let Err(why) = is_known(world, seen, identify(&letter.event), world.now, &letter.event) {
            let text = format!("an event is in a dead letter ({}) {why}", letter.reason);
            faults.push(seen.fault("invented", text));
        }
    }
    faults
}

fn is_known(
    world: &World<'_>,
    seen: &Seen<'_>,
    serial: Option<Serial>,
    at: Duration,
    bytes: &[u8],
) -> Result<(), String> {
    let start = || String::from_utf8_lossy(bytes.get(..300).unwrap_or(bytes)).into_owned();
    let serial = serial.ok_or_else(|| format!("that has no serial: {}", start()))?;
    let known = world.truth.events.get(&serial);
    let known = known.ok_or_else(|| format!("that nobody has made ({serial}): {}", start()))?;
    let possible = |attempt: &&Attempt| attempt.fate() != Fate::Refused;
    let attempts: Vec<_> = world.truth.attempts_of(known).filter(possible).collect();
    let begun = attempts.iter().map(|attempt| attempt.begun).min();
    let Some(begun) = begun.filter(|begun| *begun <= at) else {
        return Err(format!("that was not sent, or refused ({serial}): {}", told(world, known)));
    };
    // The latest time at which the event may have been accepted.
    let until = |attempt: &&Attempt| match attempt.fate() {
        Fate::Accepted(answered) => answered,
        Fate::Refused | Fate::Unknown => at,
    };
    let until = attempts.iter().map(until).max().unwrap_or(at).min(at);
    let to_consumer = |config: &'_ Config, is_kept: bool| {
        let fits = |output: &&Output| output.consumer == seen.view.consumer;
        let keeps = |output: &Output| !is_kept || output.filter.keeps(&known.event.facts);
        config.outputs.iter().filter(fits).any(keeps)
    };
    if !world.truth.configs(begun, at).any(|config| to_consumer(config, true)) {
        return Err(format!("that each filter drops ({serial}, sent from {begun:?} on)"));
    }
    let was_there = world.truth.configs(begun, until).any(|config| to_consumer(config, false));
    if !was_there && !world.has_come_back(seen, until) {
        return Err(format!(
            "that was accepted ({until:?}) before the output was there ({serial})"
        ));
    }
    Ok(())
}

/// Describes the answers to all requests with this event.
fn told(world: &World<'_>, known: &Known) -> String {
    let one = |attempt: &Attempt| {
        let answer = attempt.ended.map_or_else(|| "no answer".into(), |(_, it)| it.to_string());
        let must = match attempt.must {
            Must::Take => "",
            Must::Refuse(what, _) => what,
            Must::Never => "cut",
        };
        format!("{:?} {must} {answer}", attempt.begun)
    };
    let all: Vec<_> = world.truth.attempts_of(known).map(one).collect();
    if all.is_empty() { "never in a body".into() } else { all.join("; ") }
}

/// A consumer gets each event byte for byte, except that raw line breaks become spaces (see
/// guarantees.md). A dead letter holds the event as received (see dead-letters.md).
pub(crate) fn bytes(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let mut configs = world.truth.configs(Duration::ZERO, Duration::MAX);
    let changes = |output: &Output| output.consumer == seen.view.consumer && output.filter.changes;
    let is_judged =
        seen.view.promise.bytes && !configs.any(|config| config.outputs.iter().any(changes));
    let arrived = seen.view.arrived.iter().zip(&seen.serials).filter(|_| is_judged);
    let arrived = arrived.map(|(arrived, serial)| (&arrived.event, *serial));
    let letters = seen.view.letters.iter();
    let letters = letters.map(|letter| (&letter.event, identify(&letter.event)));
    let mut faults = Vec::new();
    for (event, serial) in arrived.chain(letters) {
        let known = serial.and_then(|serial| world.truth.events.get(&serial));
        let Some(known) = known else { continue };
        let sent = &known.event.bytes;
        let is_right = is_line_of(event, sent) || outer::is_trimmed(seen.view.longest, event, sent);
        if !is_right {
            let same = event.iter().zip(sent.iter()).take_while(|(a, b)| a == b).count();
            let around = |of: &[u8]| {
                let start = same.saturating_sub(40).min(of.len());
                let end = (same + 40).min(of.len());
                String::from_utf8_lossy(of.get(start..end).unwrap_or_default()).into_owned()
            };
            let text = format!(
                "event {} arrived changed from byte {same} on: {:?} instead of {:?}",
                known.event.serial,
                around(event),
                around(sent)
            );
            faults.push(seen.fault("bytes", text));
        }
    }
    faults
}

fn is_line_of(line: &[u8], sent: &[u8]) -> bool {
    line == sent || line.len() == sent.len() && line == events::one_line(sent)
}

/// Each output sends events in the order of their acceptance (see guarantees.md). An event was
/// certainly accepted before another if its answer came before the other's request began, or if it
/// comes earlier in the same body.
///
/// A retry or a failover may repeat events but never skips one, so the first copies arrive in
/// order. On one connection of a stream without acknowledgements nothing is repeated, so all copies
/// arrive in order.
pub(crate) fn order(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if !seen.view.promise.ordered {
        return Vec::new();
    }
    let mut places: Vec<_> = (0..seen.serials.len()).collect();
    if !seen.view.is_stream {
        return out_of_order(world, seen, &places, &places, false);
    }
    // The relay closes a connection before it opens the next one, so events on an older connection
    // were sent earlier. The consumer may have read them later, for example after a kill.
    let connection = |place: &usize| seen.view.arrived.get(*place).map(|it| it.connection);
    places.sort_by_key(connection);
    let mut faults = out_of_order(world, seen, &places, &places, false);
    if seen.view.is_unconfirmed {
        let each = places.chunk_by(|one, other| connection(one) == connection(other));
        let again = each.flat_map(|it| out_of_order(world, seen, it, &places, true));
        let again: Vec<_> = again.collect();
        faults.retain(|fault| !again.contains(fault));
        faults.extend(again);
    }
    faults
}

/// The latest of the events that have arrived: the one whose first request began last and, for each
/// body, the one that comes last in it.
#[derive(Default)]
struct Latest {
    begun: Option<(Duration, Serial)>,
    places: BTreeMap<usize, (usize, Serial)>,
}

impl Latest {
    fn add(&mut self, serial: Serial, begun: Duration, body: Option<(usize, usize)>) {
        self.begun = self.begun.max(Some((begun, serial)));
        if let Some((body, place)) = body {
            let last = self.places.entry(body).or_insert((place, serial));
            *last = (*last).max((place, serial));
        }
    }

    /// Returns an event that has arrived although it was accepted after this one, and the reason.
    fn before(
        &self,
        accepted: Option<Duration>,
        body: Option<(usize, usize)>,
    ) -> Option<(Serial, String)> {
        if let (Some((later, other)), Some(until)) = (self.begun, accepted)
            && until < later
        {
            let why = format!("was accepted by {until:?}, before that was sent ({later:?})");
            return Some((other, why));
        }
        let (body, place) = body?;
        let (last, other) = self.places.get(&body)?;
        (place < *last).then(|| (*other, "stands before it in their body".to_owned()))
    }
}

/// Returns a fault for each event that was sent after a later accepted one. `places` are indexes of
/// arrivals, in the order in which the events were sent, and a part of `sent`, which has all of
/// them. With `all`, each copy is checked, and only events that the consumer has turned down, or
/// that wait behind one that is too long, may come late; otherwise only the first copy of each
/// event is checked.
///
/// These are the exceptions:
/// - An event that was sent on an earlier connection, and could not be sent again, may arrive at
///   any time.
/// - So may an event that the consumer refuses for good or always fails on, and one that may have
///   been set aside (see [`Seen::left_the_order`]).
/// - An event that arrives with a request that the consumer fails has left its place (see
///   guarantees.md), and may not come again if the process ends.
/// - After a refusal, the relay may send a later event as a test. If the consumer then accepts the
///   earlier events, the relay sends the test event again, after them (see guarantees.md). An
///   output that may lose events can lose the test event before that: the queue also drops events
///   that are on the wire.
/// - After a reload has renamed an output, the old one waits for its last responses while the new
///   one sends.
/// - Events from a copy of the queue's directory arrive after events that were sent since the copy
///   was made. After a kill, events that a full queue had dropped may arrive late, too.
/// - A changed filter also applies to events in the queue (see filters/README.md), and to those on
///   the wire. So an event that a filter had dropped may arrive after a later accepted one, if that
///   one arrives again or a filter drops it, too.
fn out_of_order(
    world: &World<'_>,
    seen: &Seen<'_>,
    places: &[usize],
    sent: &[usize],
    all: bool,
) -> Vec<Fault> {
    let serial_at = |place: &usize| seen.serials.get(*place).copied().flatten();
    let copies = sent.iter().filter_map(|place| Some((serial_at(place)?, *place)));
    let last: BTreeMap<Serial, usize> = copies.collect();
    // When each event came, in its newest copy with `all`, or in its first one.
    let mut came: BTreeMap<Serial, Duration> = BTreeMap::new();
    // `latest`: all that have arrived. `settled`: those that neither arrive again nor may be gone.
    let (mut latest, mut settled) = (Latest::default(), Latest::default());
    let mut faults = Vec::new();
    for place in places {
        let Some(serial) = serial_at(place) else { continue };
        let Some(at) = seen.view.arrived.get(*place).map(|it| it.at) else { continue };
        let (is_first, is_last) = (!came.contains_key(&serial), last.get(&serial) == Some(place));
        if is_first || all {
            came.insert(serial, at);
        }
        let Some(known) = world.truth.events.get(&serial) else { continue };
        let possible = |attempt: &&Attempt| attempt.fate() != Fate::Refused;
        let possible = world.truth.attempts_of(known).filter(possible);
        let Some(begun) = possible.map(|attempt| attempt.begun).min() else { continue };
        let body = body_of(world.truth, known, all);
        let may_be_late = (seen.view.refuses)(&known.event.bytes) || seen.letters.contains(&serial);
        let accepted = accepted_by(world, known);
        if (is_first || all)
            && !may_be_late
            && let Some((other, why)) = latest.before(accepted, body)
        {
            let behind = settled.before(accepted, body);
            let comes_again = behind.is_none();
            let was_kept_back = || world.was_kept_back(seen, serial, at);
            // A test event is sent again after the earlier ones, unless these leave the order
            // later.
            let leaves = || seen.left_the_order(world, serial, world.now);
            let was_test = came.get(&other).is_some_and(|at| seen.was_in_doubt(world, serial, *at));
            // A consumer may store an event whose request it fails. The relay does not know that.
            let later = behind.as_ref().map_or(other, |(later, _)| *later);
            let was_failed = came.get(&later).is_some_and(|at| {
                let mut downs = seen.view.turned_down.iter().filter(|down| down.at == *at);
                downs.any(|down| down.events.contains(&later))
            });
            let is_excused = was_failed
                || (comes_again || leaves()) && was_test
                || comes_again && outer::waits_behind(world, seen, serial)
                || comes_again
                    && !all
                    && (was_kept_back() || world.is_dropped_no_more(seen, serial, other))
                || world.came_back(seen, serial, other, at)
                || outer::is_of_another_output(world, seen, serial, other, at)
                || seen.left_the_order(world, serial, at)
                || world.left_on_an_earlier_connection(seen, *place, other);
            if !is_excused {
                // The sentence names an event that does not arrive again, if there is one.
                let (other, why) = behind.unwrap_or((other, why));
                let text = format!("event {serial} came at {at:?} after {other}, but {why}");
                faults.push(seen.fault("order", text));
            }
        }
        if is_first || all {
            latest.add(serial, begun, body);
        }
        let dies = || world.stored.get(&serial).is_some_and(|it| world.may_have_died(seen, *it));
        let may_go = dies()
            || world.was_kept_back(seen, serial, world.now)
            || world.may_drop(seen, at)
            || world.may_leave(seen, at);
        if is_last && !may_go {
            settled.add(serial, begun, body);
        }
    }
    faults
}

/// Returns when every copy of an event had been accepted, or `None` if that is not known: a copy
/// that nobody knows about may have been accepted after the one that has arrived.
fn accepted_by(world: &World<'_>, known: &Known) -> Option<Duration> {
    let stored = world.stored.get(&known.event.serial)?;
    if is_repeated(world.truth, known) {
        return None;
    }
    (stored.acknowledged || copies(world.truth, known) == 1).then_some(stored.until)
}

/// Returns the index of the request that first had the event, and the event's index in its body.
/// Returns `None` if a repeated event is not a fault: it was accepted more than once, or all copies
/// are checked and its body may be stored several times.
fn body_of(truth: &Truth, known: &Known, is_stream: bool) -> Option<(usize, usize)> {
    let number = *known.attempts.first()?;
    if is_stream && copies(truth, known) > 1 || is_repeated(truth, known) {
        return None;
    }
    let serials = &truth.attempts.get(number)?.serials;
    Some((number, serials.iter().position(|serial| *serial == known.event.serial)?))
}

/// Returns `true` if the event was accepted more than once: each copy has its place in the order.
fn is_repeated(truth: &Truth, known: &Known) -> bool {
    let accepted = |attempt: &&Attempt| matches!(attempt.fate(), Fate::Accepted(_));
    truth.attempts_of(known).filter(accepted).count() > 1
}

/// Returns how many copies of the event the queue may have: one for each request not refused.
pub(crate) fn copies(truth: &Truth, known: &Known) -> usize {
    truth.attempts_of(known).filter(|attempt| attempt.fate() != Fate::Refused).count()
}

/// `elasticsearch` and `s3` do not store an event twice. `loki` stores entries with the same time,
/// labels and line once (see loki.md). Each request of unknown fate may add a copy.
pub(crate) fn once(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (serial, (_, arrived)) in &seen.first {
        let Some(known) = world.truth.events.get(serial) else { continue };
        let copies = copies(world.truth, known);
        let most = match seen.view.promise.copies {
            Copies::AtLeastOnce | Copies::AgainBesideRefused => return Vec::new(),
            Copies::Once => copies,
            Copies::OnceMerged => copies.min(1),
            // Each accepted copy is an event of its own.
            Copies::OnceByRange => copies * (1 + other_ranges(world, seen, *serial)),
        };
        if *arrived > most {
            let it = seen.serials.iter().zip(seen.view.arrived);
            let times = it.filter(|(it, _)| **it == Some(*serial)).map(|(_, it)| (*serial, it.at));
            let text = format!(
                "event {serial} is there {arrived} times instead of {most} at most: {}",
                named(times)
            );
            faults.push(seen.fault("once", text));
        }
    }
    faults
}

/// Returns how often the event may have become part of another object before its last arrival. That
/// happens if a full queue dropped events of the object between two attempts, a new filter applied
/// to them, the directory was restored from an older copy, or the object's range was not saved
/// before a kill (see s3.md).
fn other_ranges(world: &World<'_>, seen: &Seen<'_>, serial: Serial) -> usize {
    let last = seen.serials.iter().rposition(|it| *it == Some(serial));
    let to = last.and_then(|place| seen.view.arrived.get(place)).map_or(world.now, |it| it.at);
    let from = world.stored.get(&serial).map_or(Duration::ZERO, |stored| stored.from);
    let is_death = |(begins, death): (Duration, &Death)| {
        let ended = death.ended.unwrap_or(world.now);
        begins.max(from) <= ended && ended <= to
    };
    let unsaved =
        world.truth.refusing.iter().filter(|(begins, ends)| *begins <= to && *ends >= from);
    let begins = unsaved.map(|(begins, _)| *begins).min();
    let deaths = world.truth.deaths.iter();
    let deaths = begins.map_or(0, |at| deaths.filter(|it| is_death((at, it))).count());
    let drops = usize::from(world.may_drop(seen, from));
    let is_put_back =
        |(copied, ended): &&(Duration, Duration)| from <= *copied && (from..=to).contains(ended);
    let copies = world.truth.set_back.iter().filter(is_put_back).count();
    deaths + drops + copies + world.truth.changes_of_filter(seen.view.consumer, from, to)
}

/// Each response is one that http.md documents. A valid request gets 200 with its number of events,
/// or 408, 429 or 503. A wrong one never gets 200. A 429 or 503 has a sensible `Retry-After`.
pub(crate) fn answers(truth: &Truth) -> Vec<Fault> {
    let is_wrong = |attempt: &&Attempt| {
        let status = match attempt.ended {
            Some((_, Answer::Status(status))) => status,
            Some((_, Answer::Miscounted | Answer::Unhelpful(_))) => return true,
            _ => return false,
        };
        let comes_again = [408, 429, 503].contains(&status);
        !comes_again
            && match attempt.must {
                Must::Take => status != 200,
                Must::Refuse(_, statuses) => !statuses.contains(&status),
                Must::Never => status != 400,
            }
    };
    let text = |attempt: &Attempt| {
        let (at, answer) = attempt.ended.unwrap_or((attempt.begun, Answer::Unread));
        let first = attempt.serials.first().map(ToString::to_string).unwrap_or_default();
        format!(
            "a request of sender {} with {} events from {first} on was answered {answer} at {at:?}; \
             it was {}",
            attempt.from.sender,
            attempt.serials.len(),
            match attempt.must {
                Must::Take => "sound".into(),
                Must::Refuse(what, statuses) => format!("wrong ({what}: {statuses:?})"),
                Must::Never => "cut".into(),
            }
        )
    };
    let wrong = truth.attempts.iter().filter(is_wrong);
    wrong.map(|it| Fault { rule: "answers", output: String::new(), text: text(it) }).collect()
}

/// Nothing gets stuck: events that were accepted while nothing is wrong arrive within a limit, and
/// so do those that waited before. The limit grows by [`REFUSAL`] for each refused event that was
/// sent between the oldest waiting event and this one.
pub(crate) fn progress(world: &World<'_>, seen: &Seen<'_>, calm: Calm) -> Vec<Fault> {
    let (mut late, limit) = (Vec::new(), calm.limit());
    let waited = world.stored.iter().filter(|(serial, _)| {
        seen.first_at(**serial).is_none_or(|at| at > calm.healed) && !seen.letters.contains(serial)
    });
    let oldest = waited.map(|(_, stored)| stored.from).min().unwrap_or_default();
    let refused = refused_at(world, seen);
    for (serial, stored) in &world.stored {
        let before = refused.iter().filter(|at| (oldest..=stored.until).contains(*at)).count();
        let more = REFUSAL * u32::try_from(before).unwrap_or(u32::MAX);
        let due = stored.until.max(calm.healed) + limit.saturating_add(more);
        let is_there = seen.first_at(*serial).is_some_and(|at| at <= due);
        let may_refuse = world.truth.events.get(serial).is_none_or(|known| seen.may_refuse(known));
        if due <= calm.ends
            && !is_there
            && !may_refuse
            && !seen.letters.contains(serial)
            && world.is_owed(seen, *serial, *stored)
            && !world.may_have_died(seen, *stored)
            && !world.may_have_died_at_its_consumer(seen, *serial, *stored)
            && !world.may_be_set_back(*stored)
        {
            late.push((*serial, stored.until));
        }
    }
    let Counted { lost, queue, .. } = seen.view.counted;
    if late.len() as u64 <= lost + queue {
        return Vec::new();
    }
    let text = format!(
        "{} events have not come within {limit:?} although nothing is wrong since {:?}: {}",
        late.len(),
        calm.healed,
        named(late)
    );
    vec![seen.fault("progress", text)]
}

/// Duplicates come from broken connections and other troubles (see guarantees.md): while nothing is
/// wrong, no event arrives twice. With `deduplicate`, an event also does not arrive again if it
/// arrived earlier with the same config and process, or if a sender repeats it.
pub(crate) fn repeats(world: &World<'_>, seen: &Seen<'_>, calm: Calm) -> Vec<Fault> {
    let mut came = BTreeMap::new();
    // After a refusal, the relay sends a later event as a test. An output that keeps the order then
    // sends this event again (see guarantees.md).
    let Promise { copies: kind, ordered, .. } = seen.view.promise;
    let is_repeated = ordered || kind == Copies::AgainBesideRefused;
    let mut refused = if is_repeated { refused_at(world, seen) } else { Vec::new() };
    // With a backlog, the search for a refused event begins long after its request.
    let searched = seen.view.letters.iter().filter(|_| is_repeated);
    refused.extend(searched.map(|letter| letter.at.saturating_sub(REFUSAL)));
    refused.extend(seen.view.turned_down.iter().map(|down| down.at));
    let is_beside =
        |at: Duration| refused.iter().any(|begun| *begun <= at && *begun + calm.limit() >= at);
    let deduplicates = world.deduplicates(seen);
    let since = if deduplicates { world.unchanged_since(calm) } else { calm.begins };
    let mut faults = Vec::new();
    for (arrived, serial) in seen.view.arrived.iter().zip(&seen.serials) {
        let known = serial.and_then(|serial| world.truth.events.get(&serial));
        let is_one = |known: &&Known| deduplicates || copies(world.truth, known) == 1;
        let Some(known) = known.filter(is_one) else { continue };
        let serial = known.event.serial;
        if (since..=calm.ends).contains(&arrived.at)
            && let Some(before) = came.insert(serial, arrived.at)
            && arrived.at >= calm.begins
            && !is_beside(arrived.at)
        {
            let text = format!(
                "event {serial} came at {before:?} and again at {:?}, although nothing is wrong \
                 since {:?}",
                arrived.at, calm.healed
            );
            faults.push(seen.fault("repeats", text));
        }
    }
    faults
}

/// Returns the start times of the requests with events that the output's consumer refuses for good
/// or always fails on, and that may be stored: one time for each such event.
fn refused_at(world: &World<'_>, seen: &Seen<'_>) -> Vec<Duration> {
    let is_refused = |serial: &Serial| {
        let known = world.truth.events.get(serial);
        known.is_some_and(|known| (seen.view.refuses)(&known.event.bytes))
    };
    let stored = world.truth.attempts.iter().filter(|attempt| attempt.fate() != Fate::Refused);
    let refused = stored.flat_map(|attempt| {
        attempt.serials.iter().filter(|it| is_refused(it)).map(|_| attempt.begun)
    });
    refused.collect()
}

/// Senders are served, too: while nothing is wrong, a valid request gets 200, or 429 if bodies of
/// the last second may fill the queue. While the relay tries a refused event, which takes seconds,
/// it sends no later ones, so the queue may fill up, and the response may wait with `delivered`.
fn senders_progress(world: &World<'_>, room: &Room<'_>, calm: Calm) -> Vec<Fault> {
    let refused: Vec<_> = world.outputs.iter().flat_map(|seen| refused_at(world, seen)).collect();
    let is_held_up = |attempt: &Attempt| {
        let ended = attempt.ended.map_or(world.now, |(at, _)| at);
        refused.iter().any(|at| *at <= ended && *at + calm.limit() >= attempt.begun)
    };
    let is_late = |attempt: &&Attempt| match (attempt.must, attempt.ended) {
        _ if !(calm.begins..=calm.ends).contains(&attempt.begun) => false,
        _ if is_held_up(attempt) => false,
        (_, Some((_, Answer::Status(429))))
            if outer::may_be_full(world.truth, attempt) || room.may_be_full_calmly(attempt) =>
        {
            false
        }
        // The response came after the calm time, or never.
        (Must::Take, ended) if ended.is_none_or(|(at, _)| at > calm.ends) => {
            attempt.begun + ANSWER <= calm.ends
        }
        (
            Must::Take,
            Some((_, Answer::Status(429 | 503) | Answer::TimedOut | Answer::NoConnection)),
        ) => true,
        _ => false,
    };
    let text = |attempt: &Attempt| {
        format!(
            "a sound request of sender {}, begun at {:?}, was answered: {}; nothing is wrong since \
             {:?}",
            attempt.from.sender,
            attempt.begun,
            attempt.ended.map_or_else(|| "nothing".into(), |(_, answer)| answer.to_string()),
            calm.healed
        )
    };
    let late = world.truth.attempts.iter().filter(is_late);
    late.map(|it| Fault { rule: "progress", output: String::new(), text: text(it) }).collect()
}

/// Reads a file of dead letters. It skips incomplete lines, and lines with zeros in place of bytes
/// that the disk never wrote: a failed sync or a power loss damages only a file's last lines.
pub(crate) fn letters(file: &[u8]) -> Vec<Letter> {
    let letter = |line: &[u8]| {
        if line.contains(&0) {
            return None;
        }
        let end = memchr::memmem::find(line, br#","event":"#)?;
        let (head, event) = line.split_at(end);
        let event = event.strip_prefix(br#","event":"#)?.strip_suffix(b"}")?;
        let head: serde_json::Value = serde_json::from_slice(&[head, b"}"].concat()).ok()?;
        let text = |name: &str| Some(head.get(name)?.as_str()?.to_owned());
        let at = time_of(&text("time")?)?;
        Some(Letter { at, output: text("output")?, reason: text("reason")?, event: event.into() })
    };
    let lines = file.split_inclusive(|&byte| byte == b'\n');
    lines.filter_map(|line| letter(line.strip_suffix(b"\n")?)).collect()
}

/// Returns how many lost events these dead letters stand for. Each stands for one, with one
/// exception: if an `otlp` receiver rejects N of the M events of a request, all M become letters
/// (see dead-letters.md), and the reason ends in `N of M rejected`. After a disk error, a letter
/// may also be in the next file with the same time; it counts once (see dead-letters.md).
pub(crate) fn losses_in(letters: &[Letter]) -> u64 {
    let once: BTreeSet<_> = letters.iter().map(uncounted::same).collect();
    let mut by_reason = BTreeMap::<&str, u64>::new();
    for (_, reason, _) in once {
        *by_reason.entry(reason).or_default() += 1;
    }
    let losses = |(reason, letters): (&str, u64)| {
        let mut words = reason.strip_suffix(" rejected")?.rsplit(' ');
        let all: u64 = words.next()?.parse().ok()?;
        let rejected: u64 = words.nth(1)?.parse().ok()?;
        (letters * rejected).checked_div(all)
    };
    let losses = |it: (&str, u64)| losses(it).unwrap_or(it.1);
    by_reason.into_iter().map(losses).sum()
}

#[cfg(test)]
#[path = "oracle/tests.rs"]
mod tests;
