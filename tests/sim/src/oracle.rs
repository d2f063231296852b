//! The judge. Each rule compares the book of truth with what arrived at the consumers, quotes the
//! promise that it checks, and says what is wrong in sentences.
//!
//! What the oracle knows of a body: it was *accepted* (200), *refused*, or its fate is *unknown*
//! ([`Fate`]). A body of unknown fate of which any event has arrived anywhere was stored, so it is
//! judged as an accepted one from then on: "A body is taken whole or not at all" (http.md).
//!
//! Accepted at some time of a span: all that is known is the time at which the request began and
//! that of its answer. A config counts if it may have been in force at any time of that span.

mod acknowledged;
mod given_up;
mod outer;
mod room;
pub(crate) mod said;
pub(crate) mod uncounted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::consumers::{Arrived, Copies, Longest, Promise, TurnedDown};
use crate::events;
use crate::events::{Serial, identify};
use crate::evidence::time_of;
use crate::oracle::room::Room;
use crate::truth::{
    Acknowledge, Answer, Attempt, Config, DAMAGED, Death, Epoch, FULL, Fate, Kind, Known, Must,
    Output, Truth,
};

/// The greatest number of events that a sentence names, and of faults of one kind.
const NAMED_MAX: usize = 5;

/// The longest time to an answer (`queue.delivered_timeout`).
const ANSWER: Duration = Duration::from_secs(25);

/// The time that a refused event may take: "eight times over at least three seconds"
/// (refused-events.md), or 8 s of server errors, as the outputs here have it, and a pause before.
const REFUSAL: Duration = Duration::from_secs(12);

/// How long the place of an output, and what was dropped, may be unsaved (queue-and-disk.md).
const SAVED: Duration = Duration::from_secs(1);

/// How long an output may take to leave: "it waits for what is on the wire (ten seconds at most)"
/// (reload.md), and its place is saved then.
const LEAVES: Duration = Duration::from_secs(15);

/// The number of answers 5xx to an event alone after which it may be set aside.
const ERRORS_MIN: usize = 4;

/// The number of refusals of an event alone after which it may be set aside.
const REFUSALS_MIN: usize = 3;

/// All rules. A sentence about a broken promise begins with the name of its rule: those of this
/// module, and those of the actors who see it while it happens.
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

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) rule: &'static str,
    /// The output's name; empty if it concerns none.
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

/// A dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    /// The time at which the event was given up.
    pub(crate) at: Duration,
    pub(crate) output: String,
    pub(crate) reason: String,
    pub(crate) event: Vec<u8>,
}

/// What the relay has counted for an output, summed over all of its lives.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    /// `error_total{plugin=OUTPUT}`, which has the dead letters too.
    pub(crate) lost: u64,
    /// `error_total{plugin="queue"}`.
    pub(crate) queue: u64,
    /// Those of the lost events that the counted dead letters stand for: see [`losses_in`].
    pub(crate) letters: u64,
    /// `dead_letter_dropped_events_total`.
    pub(crate) letters_dropped: u64,
}

impl Counted {
    /// Returns the number of lost events that need not be in a file of dead letters.
    fn without_letter(self) -> u64 {
        let Self { lost, queue, letters, letters_dropped } = self;
        lost.saturating_sub(letters) + queue + letters_dropped
    }
}

/// All that is known of one output at the time of the judgement.
pub(crate) struct View<'a> {
    pub(crate) output: &'a str,
    /// The number of its consumer, as in [`Output::consumer`].
    pub(crate) consumer: usize,
    pub(crate) promise: Promise,
    /// True for `tcp`, `syslog` and `stdout`, which "know only what the peer's kernel has"
    /// (tcp.md).
    pub(crate) is_unconfirmed: bool,
    /// True for these, `lumberjack` and `relp`, which have one connection after the other.
    pub(crate) is_stream: bool,
    /// True for stores that refuse a request as a whole.
    pub(crate) refuses_requests: bool,
    /// True if it has two addresses.
    pub(crate) has_door: bool,
    /// In the order in which the consumer took them.
    pub(crate) arrived: &'a [Arrived],
    /// The requests that it has turned down, in the order of time.
    pub(crate) turned_down: &'a [TurnedDown],
    /// The dead letters of this output that are in the files.
    pub(crate) letters: &'a [Letter],
    /// Those that the relay has counted: see [`uncounted::counted`].
    pub(crate) counted_letters: &'a [Letter],
    pub(crate) counted: Counted,
    /// Returns true for the bytes of an event that the consumer refuses for good, or fails on for
    /// ever. Such an event loses "its place in the order" (refused-events.md), and becomes a dead
    /// letter.
    pub(crate) refuses: &'a dyn Fn(&[u8]) -> bool,
    /// True if a consumer without acknowledgements died, or its connections were reset: "a consumer
    /// that reads events and dies before it has stored them loses those events" (tcp.md).
    pub(crate) consumer_died: bool,
    /// The limit that the output has for the length of an event.
    pub(crate) longest: Option<Longest>,
    /// How long an event may wait before the output is late.
    pub(crate) late: Duration,
}

/// The time before the end of a seed in which nothing is wrong: every consumer takes everything,
/// the disk works, the relay runs, no config changes, and the senders send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calm {
    /// The last trouble has ended.
    pub(crate) healed: Duration,
    /// Whatever the troubles have delayed is done.
    pub(crate) begins: Duration,
    pub(crate) ends: Duration,
    /// The first address of this consumer of an output with `failover` is away, and the second one
    /// works.
    pub(crate) away: Option<(usize, SocketAddr)>,
}

impl Calm {
    /// The longest time that anything may take in it.
    fn limit(&self) -> Duration {
        self.begins.saturating_sub(self.healed)
    }
}

/// A body that the queue had for certain.
#[derive(Debug, Clone, Copy)]
struct Stored {
    /// It was accepted at some time between these two.
    from: Duration,
    until: Duration,
    /// False if only an arrival shows it.
    acknowledged: bool,
}

/// The book of truth and all views, prepared for the rules.
pub(crate) struct World<'a> {
    truth: &'a Truth,
    now: Duration,
    stored: BTreeMap<Serial, Stored>,
    pub(crate) outputs: Vec<Seen<'a>>,
}

/// What arrived at one output.
pub(crate) struct Seen<'a> {
    pub(crate) view: View<'a>,
    /// The serial of each arrival.
    serials: Vec<Option<Serial>>,
    /// For each event the place of its first arrival, and the number of its arrivals.
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

    /// Returns when the event arrived first.
    fn first_at(&self, serial: Serial) -> Option<Duration> {
        let (place, _) = self.first.get(&serial)?;
        self.view.arrived.get(*place).map(|arrived| arrived.at)
    }

    /// Returns true if the relay may give up the event, or send others before it.
    fn may_refuse(&self, known: &Known) -> bool {
        let event = &known.event.bytes;
        let is_long = self.view.longest.is_some_and(|longest| longest.may_reject(event));
        self.view.promise.aside || is_long || (self.view.refuses)(event)
    }

    /// Returns true if the event may have been set aside before the time `until`, so that it has
    /// left the order: the consumer answered this event alone four times with 5xx, or refused it
    /// alone three times, and took another one meanwhile. A refusal of a request with several
    /// events begins this time, too.
    fn left_the_order(&self, serial: Serial, until: Duration) -> bool {
        let downs = self.view.turned_down.iter().take_while(|down| down.at <= until);
        let its: Vec<_> = downs.filter(|down| down.events.contains(&serial)).collect();
        let is_aside = |is_error: bool, least: usize| {
            let is_alone = |down: &&&TurnedDown| down.events == [serial];
            let mut answers = its.iter().filter(|down| down.is_error == is_error);
            let alone: Vec<_> = answers.clone().filter(is_alone).map(|down| down.at).collect();
            let first = match is_error {
                true => alone.first().copied(),
                false => answers.next().map(|down| down.at),
            };
            let (Some(first), Some(last)) = (first, alone.last()) else { return false };
            let mut between =
                self.view.arrived.iter().filter(|it| it.at >= first && it.at <= *last);
            alone.len() >= least && between.any(|it| identify(&it.event) != Some(serial))
        };
        is_aside(true, ERRORS_MIN) || is_aside(false, REFUSALS_MIN)
    }

    /// Returns true if an event that was not accepted later than `serial` was in doubt when `other`
    /// first came: the consumer had refused a request with it, or had answered it twice with 5xx,
    /// or once after it had taken something else, and had not taken it since then.
    fn was_in_doubt(&self, world: &World<'_>, serial: Serial, other: Serial) -> bool {
        let Some(came) = self.first_at(other) else { return false };
        let Some(stored) = world.stored.get(&serial) else { return false };
        let is_earlier =
            |it: &Serial| world.stored.get(it).is_some_and(|earlier| earlier.from <= stored.until);
        let mut doubts = BTreeMap::<Serial, (u32, Duration)>::new();
        let mut before = Duration::ZERO;
        for down in self.view.turned_down.iter().take_while(|down| down.at <= came) {
            let taken = self.view.arrived.iter().take_while(|arrived| arrived.at <= down.at);
            let has_worked = taken.last().is_some_and(|arrived| arrived.at >= before);
            before = down.at;
            for event in down.events.iter().filter(|it| is_earlier(it)) {
                let doubt = doubts.entry(*event).or_default();
                *doubt = (doubt.0 + if down.is_error && !has_worked { 1 } else { 2 }, down.at);
            }
        }
        let was_taken = |event: Serial, since: Duration| {
            let arrivals = self.view.arrived.iter().zip(&self.serials);
            let mut arrivals = arrivals.filter(|(_, serial)| **serial == Some(event));
            arrivals.any(|(arrived, _)| arrived.at > since && arrived.at < came)
        };
        let mut doubts = doubts.into_iter().filter(|(_, (count, _))| *count >= 2);
        doubts.any(|(event, (_, since))| !was_taken(event, since))
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

    /// Runs every rule that needs nothing but the book and the views. Of each rule and output, only
    /// the first faults are told.
    pub(crate) fn judge(&self, calm: Calm) -> Vec<Fault> {
        let rules =
            [invented, bytes, conservation, reasons, delivered, order, once, outer::lengths];
        let mut faults = few(answers(self.truth));
        faults.extend(few(outer::hurried(self.truth)));
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

    /// Returns true if this output has to get the event: it was there for the whole time in which
    /// the event may have been accepted ("An output is added: it begins with the next event"), and
    /// each of its filters since then keeps the event ("A changed filter also works on events that
    /// already wait").
    fn is_owed(&self, seen: &Seen<'_>, serial: Serial, stored: Stored) -> bool {
        let Some(known) = self.truth.events.get(&serial) else { return false };
        let of = |config: &'a Config| config.output(seen.view.output);
        let keeps = |output: &Output| output.filter.keeps(&known.event.facts);
        let mut when = self.truth.configs(stored.from, stored.until).peekable();
        let was_there = when.peek().is_some() && when.all(|config| of(config).is_some());
        was_there && self.truth.configs(stored.from, self.now).filter_map(of).all(keeps)
    }

    /// Returns true if a filter kept the event back at some time between its first request and the
    /// time `until`. It may be that of another output with the same consumer, because an output may
    /// be renamed.
    fn was_kept_back(&self, seen: &Seen<'_>, serial: Serial, until: Duration) -> bool {
        let Some(known) = self.truth.events.get(&serial) else { return false };
        let attempts = self.truth.attempts_of(known).map(|attempt| attempt.begun);
        let Some(begun) = attempts.min() else { return false };
        let outputs = self.truth.configs(begun, until).flat_map(|config| &config.outputs);
        let mut outputs = outputs.filter(|output| output.consumer == seen.view.consumer);
        outputs.any(|output| !output.filter.keeps(&known.event.facts))
    }

    /// Returns true if an arrival came on an older connection than the first one of `other`, and
    /// its event could not be sent again after that: the queue has dropped it, or a life of the
    /// relay ended after the event was accepted and before `other` was sent. A consumer that reads
    /// nothing for a while may then read the younger connection first.
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

    /// Returns true if the output was not in the config at a time, but is in that of the next life:
    /// "If the relay ends before the output has finished, and the next start's config names it
    /// again, it continues at its place" (queue-and-disk.md).
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

    /// Returns true if the queue may have dropped or lost an event after the time `from` that was
    /// to go to the output's consumer.
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

    /// Returns true if the output to this consumer left or was renamed after the time `at`, and has
    /// lost events without a letter: "what it has not got is counted as lost" (reload.md), so
    /// nothing of it comes again.
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

    /// Returns the time since which the relay runs with the config of the calm time.
    fn unchanged_since(&self, calm: Calm) -> Duration {
        let deaths = self.truth.deaths.iter().filter_map(|death| death.ended);
        let settled = self.truth.epochs.iter().filter_map(|epoch| epoch.settled);
        let changes = deaths.chain(settled).filter(|at| *at <= calm.begins);
        changes.max().unwrap_or_default()
    }

    /// Returns true if events of equal bytes leave once for this consumer, in every config.
    fn deduplicates(&self, seen: &Seen<'_>) -> bool {
        let configs = self.truth.configs(Duration::ZERO, Duration::MAX);
        let outputs = configs.flat_map(|config| &config.outputs);
        let mut its = outputs.filter(|output| output.consumer == seen.view.consumer);
        its.all(|output| output.deduplicates)
    }

    /// Returns true if the end of the process that had the event may have taken it along,
    /// uncounted: "a process that is killed can count nothing", and "the count of a loss" is gone
    /// if "the process ends before Prometheus has read it"; with the queue in memory, `queued`
    /// "survives anything but the end of this process", and `delivered` survives it for required
    /// outputs (guarantees.md). With a directory nothing is lost: `synced` survives "`kill -9` and
    /// a power cut".
    fn may_have_died(&self, seen: &Seen<'_>, stored: Stored) -> bool {
        let is_kept = |config: &Config| {
            let is_delivered = config.acknowledge == Acknowledge::Delivered;
            let is_required = config.requires(seen.view.output);
            config.on_disk || stored.acknowledged && is_delivered && is_required
        };
        let is_kept = self.truth.configs(stored.from, stored.until).all(is_kept);
        // The event was in a life of the time in which it was accepted, and in no later one.
        let ended = |death: &Death| death.ended.unwrap_or(self.now);
        let lives = self.truth.deaths.iter().filter(|death| ended(death) >= stored.from);
        let is_last = |death: &&Death| ended(death) >= stored.until;
        let last = lives.clone().find(is_last).map_or(self.now, ended);
        let mut lives = lives.filter(|death| ended(death) <= last);
        !is_kept && lives.any(|it| it.kind.is_violent() || it.kind == Kind::UnseenDrain)
    }

    /// Returns true if the event came in after a copy of the queue's directory was made, and before
    /// the directory was set back to it: "Events accepted since the copy and not yet
    /// delivered are lost" (queue-directory.md).
    fn may_be_set_back(&self, stored: Stored) -> bool {
        let mut times = self.truth.set_back.iter();
        times.any(|(copied, ended)| (*copied..=*ended).contains(&stored.from))
    }

    /// Returns true if the event was in a copy of the queue's directory, came first after that was
    /// put back, and `other` came before: "Events that were still queued in the copy are
    /// delivered, possibly a second time, after newer ones" (queue-directory.md).
    fn came_back(&self, seen: &Seen<'_>, serial: Serial, other: Serial, at: Duration) -> bool {
        let Some(stored) = self.stored.get(&serial) else { return false };
        let Some(before) = seen.first_at(other) else { return false };
        let mut times = self.truth.set_back.iter();
        times.any(|(copied, ended)| stored.from <= *copied && before <= *ended && at >= *ended)
    }

    /// Returns true if a full queue may have dropped the event, and a kill came within a second of
    /// the arrival of `other`: "Events that a full queue dropped in that second are delivered
    /// after all" (queue-and-disk.md).
    fn is_dropped_no_more(&self, seen: &Seen<'_>, serial: Serial, other: Serial) -> bool {
        let Some(stored) = self.stored.get(&serial) else { return false };
        let Some(before) = seen.first_at(other) else { return false };
        let is_soon = |death: &&Death| {
            let ended = death.ended.unwrap_or(self.now);
            death.kind.is_violent() && before <= ended && ended <= before + SAVED
        };
        self.may_drop(seen, stored.from) && self.truth.deaths.iter().any(|it| is_soon(&it))
    }

    /// Returns the events that the output was owed and has not got.
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

/// Leaves out all but the first faults, and says in the last one how many.
fn few(mut faults: Vec<Fault>) -> Vec<Fault> {
    let more = faults.len().saturating_sub(NAMED_MAX);
    faults.truncate(NAMED_MAX);
    if let Some(last) = faults.last_mut().filter(|_| more > 0) {
        last.text.push_str(&format!("; and {more} more faults of this kind"));
    }
    faults
}

/// Names some events, each with its time.
fn named(events: impl IntoIterator<Item = (Serial, Duration)>) -> String {
    let events: Vec<_> = events.into_iter().collect();
    let name = |(serial, at): &(Serial, Duration)| format!("{serial} ({at:?})");
    let names: Vec<_> = events.iter().take(NAMED_MAX).map(name).collect();
    let more = events.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &more
}

/// "Once a batch is answered 200, every output gets each of its events, or the loss is counted in
/// `kube_audit_forwarder_error_total`" (guarantees, 1). Events that are in no file of dead letters
/// must be counted beside the letters, and so must those whose letter is not counted.
pub(crate) fn conservation(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if seen.view.consumer_died && seen.view.is_unconfirmed {
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

/// "In health that counter stays at 0; only outputs with `required = false` may raise it by design"
/// (guarantees, 1): what is counted, and each dead letter, needs a reason that the docs name. The
/// consumer's refusals are one; the plan knows the others ([`Output::may_lose`]).
pub(crate) fn reasons(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let outputs = world.truth.configs(Duration::ZERO, Duration::MAX);
    let mut outputs = outputs.filter_map(|config| config.output(seen.view.output));
    let Promise { aside, counts, .. } = seen.view.promise;
    if aside || counts || outputs.any(|output| output.may_lose.is_some()) {
        return Vec::new();
    }
    let Counted { lost, queue, .. } = seen.view.counted;
    let refused = world.truth.events.values().filter(|known| seen.may_refuse(known));
    let refused: usize = refused.map(|known| copies(world.truth, known)).sum();
    let refused = refused + letters_again(world, seen) + unsynced(world);
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
    if let Some(serial) = seen.letters.iter().find(is_wrong) {
        let text =
            format!("event {serial} is in a dead letter, and the consumer takes such events");
        faults.push(seen.fault("reasons", text));
    }
    faults
}

/// Returns how often events may be counted as missing that nobody was promised: "If the disk
/// refuses that, too, a power loss may take these events, and they count as lost"
/// (queue/README.md). Each life counts them again.
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

/// Returns how many letters came again in another life: an event that was given up before earlier
/// ones were final is sent again after a start, "so a letter may be there twice"
/// (dead-letter-format.md).
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

/// With `acknowledge = "delivered"`, "the sender gets its 200 once every required output has the
/// batch" (guarantees, 1), or has counted it.
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

/// Every event that arrived, or is in a dead letter, was sent in a sound body that was not refused
/// ("a body is taken whole or not at all", http.md), is kept by a filter, and was accepted while an
/// output to this consumer was there.
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
    // The latest time at which it may have been accepted.
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

/// Tells what the senders of an event were answered.
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

/// "A consumer gets the JSON of each event byte for byte as kube-apiserver sent it, except that raw
/// line breaks between tokens become spaces" (guarantees, 3). Dead letters have "the event's bytes
/// as they were received".
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

/// "Events leave each output in the order in which they were accepted" (guarantees, 2). An event
/// whose answer came before the request of another one began was accepted before it, and so was
/// one that stands before it in a body.
///
/// "A retry or a fail-over may repeat events, but never skips one", so first copies come in order.
/// On one connection of a stream without acknowledgements nothing comes twice, so there each copy
/// comes in order.
pub(crate) fn order(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if !seen.view.promise.ordered {
        return Vec::new();
    }
    let mut places: Vec<_> = (0..seen.serials.len()).collect();
    if !seen.view.is_stream {
        return out_of_order(world, seen, &places, false);
    }
    // The relay leaves a connection before it makes the next one, so what came on an earlier one
    // left before. A consumer may have read it later, for example after the relay was killed.
    let connection = |place: &usize| seen.view.arrived.get(*place).map(|it| it.connection);
    places.sort_by_key(connection);
    let mut faults = out_of_order(world, seen, &places, false);
    if seen.view.is_unconfirmed {
        let each = places.chunk_by(|one, other| connection(one) == connection(other));
        let again: Vec<_> = each.flat_map(|it| out_of_order(world, seen, it, true)).collect();
        faults.retain(|fault| !again.contains(fault));
        faults.extend(again);
    }
    faults
}

/// The latest events of those that have come: the one whose first request began last, and for each
/// body the one that stands last in it.
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

    /// Returns an event that has come although it was accepted after this one, and the reason.
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

/// Returns a fault for each event that left after one that was accepted later. `places` are those
/// of the arrivals, in the order in which they left; with `all`, each copy is looked at, otherwise
/// the first one of each event.
///
/// There are these exceptions:
/// - What has left on an earlier connection, and could not be sent again, may come at any time.
/// - An event that the consumer refuses for good, or fails on for ever, and one that may have been
///   set aside (see [`Seen::left_the_order`]), may come at any time.
/// - "To learn whether a consumer takes anything, the relay sends it a later event. If the consumer
///   takes that event and the earlier ones after it, the later event comes again, behind them"
///   (guarantees, 2).
///   An optional output may lose it before: the queue drops events "even if they are on the wire".
/// - An output that a reload renames is another one from then on, and waits for its last answers
///   beside the new one.
/// - What comes from a copy of the queue's directory comes behind what has left since it was made,
///   and what a full queue has dropped may come behind what has left since, after a kill.
/// - A changed filter also works on "events that are already in the queue" (filters/README.md), and
///   on those that wait for their acknowledgement. So an event that a filter has kept back may come
///   after one that was accepted later, if that one comes again behind it or a filter keeps that
///   one back.
fn out_of_order(world: &World<'_>, seen: &Seen<'_>, places: &[usize], all: bool) -> Vec<Fault> {
    let serial_at = |place: &usize| seen.serials.get(*place).copied().flatten();
    let mut copies: BTreeMap<Serial, usize> = BTreeMap::new();
    for serial in places.iter().filter_map(serial_at) {
        *copies.entry(serial).or_default() += 1;
    }
    let mut came: BTreeMap<Serial, usize> = BTreeMap::new();
    // Of all that have come, and of those that neither come again nor are kept back.
    let (mut latest, mut settled) = (Latest::default(), Latest::default());
    let mut faults = Vec::new();
    for place in places {
        let Some(serial) = serial_at(place) else { continue };
        let number = came.entry(serial).or_default();
        *number += 1;
        let (is_first, is_last) = (*number == 1, copies.get(&serial) == Some(number));
        let Some(known) = world.truth.events.get(&serial) else { continue };
        let Some(at) = seen.view.arrived.get(*place).map(|it| it.at) else { continue };
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
            let comes_again = !all && behind.is_none();
            let was_kept_back = || world.was_kept_back(seen, serial, at);
            let is_excused = comes_again
                && (was_kept_back()
                    || seen.was_in_doubt(world, serial, other)
                    || outer::waits_behind(world, seen, serial)
                    || world.is_dropped_no_more(seen, serial, other))
                || world.came_back(seen, serial, other, at)
                || outer::is_of_another_output(world, seen, serial, other, at)
                || seen.left_the_order(serial, at)
                || world.left_on_an_earlier_connection(seen, *place, other);
            if !is_excused {
                // It names an event that does not come again, if there is one.
                let (other, why) = behind.unwrap_or((other, why));
                let text = format!("event {serial} came at {at:?} after {other}, but {why}");
                faults.push(seen.fault("order", text));
            }
        }
        if is_first || all {
            latest.add(serial, begun, body);
        }
        let may_go = world.was_kept_back(seen, serial, world.now)
            || world.may_drop(seen, at)
            || world.may_leave(seen, at);
        if is_last && !may_go {
            settled.add(serial, begun, body);
        }
    }
    faults
}

/// Returns the time by which each copy of an event was accepted. Returns `None` if that is not
/// known: a copy of which nobody knows may have been accepted after the one that has arrived.
fn accepted_by(world: &World<'_>, known: &Known) -> Option<Duration> {
    let stored = world.stored.get(&known.event.serial)?;
    if is_repeated(world.truth, known) {
        return None;
    }
    (stored.acknowledged || copies(world.truth, known) == 1).then_some(stored.until)
}

/// Returns the number of an event's body (that of its first attempt) and the event's place in it.
/// Returns `None` if a repetition is no fault: where the body may be stored several times, and
/// arrivals are not only the first ones.
fn body_of(truth: &Truth, known: &Known, is_stream: bool) -> Option<(usize, usize)> {
    let number = *known.attempts.first()?;
    if is_stream && copies(truth, known) > 1 || is_repeated(truth, known) {
        return None;
    }
    let serials = &truth.attempts.get(number)?.serials;
    Some((number, serials.iter().position(|serial| *serial == known.event.serial)?))
}

/// Returns true if the event was accepted more than once: each copy has a place of its own.
fn is_repeated(truth: &Truth, known: &Known) -> bool {
    let accepted = |attempt: &&Attempt| matches!(attempt.fate(), Fate::Accepted(_));
    truth.attempts_of(known).filter(accepted).count() > 1
}

/// Returns how often the queue may have got an event: once for each request that was not refused.
fn copies(truth: &Truth, known: &Known) -> usize {
    truth.attempts_of(known).filter(|attempt| attempt.fate() != Fate::Refused).count()
}

/// `elasticsearch` and `s3`: what is stored is not stored again; `loki`: "entries of equal time,
/// labels and line once" (loki.md). Requests of unknown fate may be copies of their own.
pub(crate) fn once(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (serial, (_, arrived)) in &seen.first {
        let Some(known) = world.truth.events.get(serial) else { continue };
        let copies = copies(world.truth, known);
        let most = match seen.view.promise.copies {
            Copies::AtLeastOnce | Copies::AgainBesideRefused => return Vec::new(),
            Copies::Once => copies,
            Copies::OnceMerged => copies.min(1),
            // Each copy that was accepted is an event of its own.
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

/// Returns how often the event may have become a part of another object, until it arrived last:
/// "Between two attempts, events of the object were […] dropped from a full queue, […] or changed
/// or dropped by another filter", or "the directory was set back to an older copy",
/// or "a range could not be saved before a kill" (s3.md).
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

/// Every answer is one of http.md's: a sound request gets 200 with its number of events, or is
/// asked to come again, by 429 and 503 after some seconds; a wrong one never gets 200.
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

/// Whatever can go on, goes on: what was accepted while nothing is wrong arrives within a bound,
/// and so does what waited before. Each event before it that the consumer refuses, and that was
/// accepted since the oldest one that waited, may take [`REFUSAL`] more.
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

/// "A connection that breaks at the wrong moment causes duplicates" (guarantees.md): while nothing
/// is wrong, nothing comes twice that came then. With `deduplicate`, nothing comes again that came
/// in this life of the relay, also if a sender repeats it.
pub(crate) fn repeats(world: &World<'_>, seen: &Seen<'_>, calm: Calm) -> Vec<Fault> {
    let mut came = BTreeMap::new();
    // "With concurrency = 1 ... the relay sends it a later event: after it has refused a single
    // event ... it gets the later one again" (guarantees.md, 2).
    let Promise { copies: kind, ordered, .. } = seen.view.promise;
    let is_repeated = ordered || kind == Copies::AgainBesideRefused;
    let mut refused = if is_repeated { refused_at(world, seen) } else { Vec::new() };
    // With a backlog, the search for a refused event comes long after its request.
    let searched = seen.view.letters.iter().filter(|_| is_repeated);
    refused.extend(searched.map(|letter| letter.at.saturating_sub(REFUSAL)));
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

/// Returns when the requests began with events that the output's consumer refuses for good, or
/// fails on, and that may be stored: once for each such event.
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

/// Senders are served, too: while nothing is wrong, and what waited has left, a sound request is
/// answered 200, or finds a queue that bodies of the last second may fill. An event that a consumer
/// refuses is tried for seconds, in which "no new events are sent" (guarantees.md), so that the
/// queue may fill, and an answer to `delivered` waits.
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
        // The answer came after the calm time, if at all.
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

/// Reads a file of dead letters. A line that is cut, or that has zeros where the disk never wrote,
/// is left out: a failed sync or a power loss tears only what was written last in a file.
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

/// Returns how many lost events these dead letters stand for. Each stands for one, except "all
/// events of a request of which an `otlp` receiver rejected some without saying which (the reason
/// ends in `N of M rejected`)" (dead-letters.md): M letters stand for N. After an error of the
/// disk, a letter "is also in the next file" (dead-letter-format.md), with the same time.
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
