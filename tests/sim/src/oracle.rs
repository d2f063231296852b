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
pub(crate) mod said;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::consumers::Arrived;
use crate::consumers::Copies;
use crate::consumers::Promise;
use crate::events;
use crate::events::Serial;
use crate::events::identify;
use crate::truth::Acknowledge;
use crate::truth::Answer;
use crate::truth::Attempt;
use crate::truth::Config;
use crate::truth::Death;
use crate::truth::Fate;
use crate::truth::Kind;
use crate::truth::Known;
use crate::truth::Must;
use crate::truth::Output;
use crate::truth::Truth;

/// The greatest number of events that a sentence names, and of faults of one kind.
const NAMED_MAX: usize = 5;

/// The longest time to an answer (`queue.delivered_timeout`).
const ANSWER: Duration = Duration::from_secs(25);

/// The time that a refused event may take: "eight times over at least three seconds"
/// (guarantees.md), or 8 s of server errors, as the outputs here have it, and a pause before.
const REFUSAL: Duration = Duration::from_secs(12);

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
    /// `dead_letter_events_total{output=OUTPUT}`.
    pub(crate) letters: u64,
    /// `dead_letter_dropped_events_total`.
    pub(crate) letters_dropped: u64,
}

/// All that is known of one output at the time of the judgement.
pub(crate) struct View<'a> {
    pub(crate) output: &'a str,
    /// The number of its consumer, as in [`Output::consumer`].
    pub(crate) consumer: usize,
    pub(crate) promise: Promise,
    /// True for `tcp`, `syslog` and `stdout`, which "know only what the peer's kernel has"
    /// (outputs.md).
    pub(crate) is_unconfirmed: bool,
    /// In the order in which the consumer took them.
    pub(crate) arrived: &'a [Arrived],
    /// The dead letters of this output that are in the files.
    pub(crate) letters: &'a [Letter],
    pub(crate) counted: Counted,
    /// Returns true for the bytes of an event that the consumer refuses for good, or fails on for
    /// ever. Such an event may "leave the order" (guarantees.md), and becomes a dead letter.
    pub(crate) refuses: &'a dyn Fn(&[u8]) -> bool,
    /// True if a consumer without acknowledgements died, or its connections were reset: "a consumer
    /// that reads events and dies before it has stored them loses those events" (outputs.md).
    pub(crate) consumer_died: bool,
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
        let letters = view.letters.iter().filter_map(|letter| identify(&letter.event)).collect();
        Self { view, serials, first, letters }
    }

    /// Returns when the event arrived first.
    fn first_at(&self, serial: Serial) -> Option<Duration> {
        let (place, _) = self.first.get(&serial)?;
        self.view.arrived.get(*place).map(|arrived| arrived.at)
    }

    /// Returns true if the relay may give up the event, or send others before it.
    fn may_refuse(&self, known: &Known) -> bool {
        self.view.promise.parks || (self.view.refuses)(&known.event.bytes)
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
        let rules = [invented, bytes, conservation, reasons, delivered, order, once];
        let mut faults = few(answers(self.truth));
        faults.extend(few(senders_progress(self, calm)));
        faults.extend(few(acknowledged::nowhere(self)));
        for seen in &self.outputs {
            faults.extend(rules.iter().flat_map(|rule| few(rule(self, seen))));
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

    /// Returns true if the end of a process may have taken the event with it, uncounted: "a process
    /// that is killed can count nothing"; with the queue in memory, `queued` "survives anything but
    /// the end of this process", and `delivered` survives it for required outputs (guarantees.md).
    /// With a directory nothing is lost: `synced` survives "`kill -9` and a power cut".
    fn may_have_died(&self, seen: &Seen<'_>, stored: Stored) -> bool {
        let is_kept = |config: &Config| {
            let is_required = config.output(seen.view.output).is_some_and(|output| output.required);
            let is_delivered = config.acknowledge == Acknowledge::Delivered;
            config.on_disk || stored.acknowledged && is_delivered && is_required
        };
        let is_kept = self.truth.configs(stored.from, stored.until).all(is_kept);
        let is_violent = |kind| matches!(kind, Kind::Kill | Kind::PowerLoss);
        let mut deaths = self.truth.deaths.iter().filter(|death| is_violent(death.kind));
        !is_kept && deaths.any(|death| death.ended.unwrap_or(self.now) >= stored.from)
    }

    /// Returns the events that the output was owed and has not got.
    fn missing(&self, seen: &Seen<'_>) -> Vec<(Serial, Stored)> {
        let of = |(serial, stored): (&Serial, &Stored)| (*serial, *stored);
        let all = self.stored.iter().map(of);
        all.filter(|(serial, stored)| {
            !seen.first.contains_key(serial)
                && self.is_owed(seen, *serial, *stored)
                && !self.may_have_died(seen, *stored)
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
/// must be counted beside the letters.
pub(crate) fn conservation(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if seen.view.consumer_died && seen.view.is_unconfirmed {
        return Vec::new();
    }
    let Counted { lost, queue, letters, letters_dropped } = seen.view.counted;
    let missing = world.missing(seen);
    let (all, counted) = (missing.len() as u64, lost + queue);
    let gone: Vec<_> =
        missing.iter().filter(|(serial, _)| !seen.letters.contains(serial)).collect();
    let explained = lost.saturating_sub(letters) + queue + letters_dropped;
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
    let Promise { parks, counts, .. } = seen.view.promise;
    if parks || counts || outputs.any(|output| output.may_lose.is_some()) {
        return Vec::new();
    }
    let Counted { lost, queue, .. } = seen.view.counted;
    let refused = world.truth.events.values().filter(|known| seen.may_refuse(known));
    let refused: usize = refused.map(|known| copies(world.truth, known)).sum();
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

/// With `acknowledge = "delivered"`, "the sender gets its 200 once every required output has the
/// batch" (guarantees, 1), or has counted it.
pub(crate) fn delivered(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if seen.view.is_unconfirmed {
        return Vec::new();
    }
    let mut late = Vec::new();
    for (serial, stored) in &world.stored {
        let is_promised = |config: &Config| {
            let is_required = config.output(seen.view.output).is_some_and(|output| output.required);
            config.acknowledge == Acknowledge::Delivered && is_required
        };
        let mut configs = world.truth.configs(stored.from, stored.until);
        let has_it = seen.first_at(*serial).is_some_and(|at| at <= stored.until);
        if stored.acknowledged
            && !has_it
            && !seen.letters.contains(serial)
            && configs.all(is_promised)
            && world.is_owed(seen, *serial, *stored)
        {
            late.push((*serial, stored.until));
        }
    }
    let Counted { lost, queue, letters, letters_dropped } = seen.view.counted;
    let explained = lost.saturating_sub(letters) + queue + letters_dropped;
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
    if !world.truth.configs(begun, until).any(|config| to_consumer(config, false)) {
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
        let is_right = is_line_of(event, sent);
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
/// Two connections of a stream without acknowledgements are read in any order, so there each
/// connection has its own, in which nothing is repeated.
pub(crate) fn order(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    if !seen.view.promise.ordered {
        return Vec::new();
    }
    let is_stream = seen.view.is_unconfirmed;
    let arrivals = seen.view.arrived.iter().zip(&seen.serials).enumerate();
    let arrivals = arrivals.filter_map(|(place, (arrived, serial))| {
        let serial = (*serial)?;
        let is_first = seen.first.get(&serial).is_some_and(|(first, _)| *first == place);
        let connection = if is_stream { arrived.connection } else { 0 };
        (is_stream || is_first).then_some((connection, serial, arrived.at))
    });
    let mut faults = Vec::new();
    // For each connection, the event among those that have come whose first request began last.
    let mut latest: BTreeMap<usize, (Duration, Serial)> = BTreeMap::new();
    // For each connection and body, the place in the body of the last event that has come.
    let mut places: BTreeMap<(usize, usize), (usize, Serial)> = BTreeMap::new();
    for (connection, serial, at) in arrivals {
        let Some(known) = world.truth.events.get(&serial) else { continue };
        let possible = |attempt: &&Attempt| attempt.fate() != Fate::Refused;
        let possible = world.truth.attempts_of(known).filter(possible);
        let Some(begun) = possible.map(|attempt| attempt.begun).min() else { continue };
        let may_be_late = seen.may_refuse(known) || seen.letters.contains(&serial);
        let mut late = |before: Serial, why: String| {
            if !may_be_late {
                let text = format!("event {serial} came at {at:?} after {before}, but {why}");
                faults.push(seen.fault("order", text));
            }
        };
        if let (Some((later, other)), Some(until)) =
            (latest.get(&connection), accepted_by(world, known))
            && until < *later
        {
            late(*other, format!("was accepted by {until:?}, before that was sent ({later:?})"));
        }
        latest
            .entry(connection)
            .and_modify(|it| *it = (*it).max((begun, serial)))
            .or_insert((begun, serial));
        let Some((body, place)) = body_of(world.truth, known, is_stream) else {
            continue;
        };
        let last = places.entry((connection, body)).or_insert((place, serial));
        if place < last.0 {
            late(last.1, "stands before it in their body".into());
        } else {
            *last = (place, serial);
        }
    }
    faults
}

/// Returns the time by which each copy of an event was accepted. Returns `None` if that is not
/// known: a copy of which nobody knows may have been accepted after the one that has arrived.
fn accepted_by(world: &World<'_>, known: &Known) -> Option<Duration> {
    let stored = world.stored.get(&known.event.serial)?;
    (stored.acknowledged || copies(world.truth, known) == 1).then_some(stored.until)
}

/// Returns the number of an event's body (that of its first attempt) and the event's place in it.
/// Returns `None` if a repetition is no fault: where the body may be stored several times, and
/// arrivals are not only the first ones.
fn body_of(truth: &Truth, known: &Known, is_stream: bool) -> Option<(usize, usize)> {
    let number = *known.attempts.first()?;
    if is_stream && copies(truth, known) > 1 {
        return None;
    }
    let serials = &truth.attempts.get(number)?.serials;
    Some((number, serials.iter().position(|serial| *serial == known.event.serial)?))
}

/// Returns how often the queue may have got an event: once for each request that was not refused.
fn copies(truth: &Truth, known: &Known) -> usize {
    truth.attempts_of(known).filter(|attempt| attempt.fate() != Fate::Refused).count()
}

/// `elasticsearch` and `s3`: "what is stored is not stored again"; `loki`: "entries of equal time,
/// labels and line once" (outputs.md). Requests of unknown fate may be copies of their own.
pub(crate) fn once(world: &World<'_>, seen: &Seen<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (serial, (_, arrived)) in &seen.first {
        let Some(known) = world.truth.events.get(serial) else { continue };
        let copies = copies(world.truth, known);
        let most = match seen.view.promise.copies {
            Copies::AtLeastOnce | Copies::AgainBesideRefused => return Vec::new(),
            Copies::Once => copies,
            Copies::OnceMerged => copies.min(1),
            Copies::OnceByRange => copies + other_ranges(world, seen, *serial),
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
/// "Between two attempts, events of the object were […] changed or kept back by a filter that a
/// reload changed", or "a range could not be saved before a kill" (s3.md).
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
    deaths + world.truth.changes_of_filter(seen.view.consumer, from, to)
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

/// "A break at the wrong moment makes events come twice" (guarantees.md): while nothing is wrong,
/// nothing comes twice that came then.
pub(crate) fn repeats(world: &World<'_>, seen: &Seen<'_>, calm: Calm) -> Vec<Fault> {
    let mut came = BTreeMap::new();
    let is_repeated = seen.view.promise.copies == Copies::AgainBesideRefused;
    let refused = if is_repeated { refused_at(world, seen) } else { Vec::new() };
    let is_beside =
        |at: Duration| refused.iter().any(|begun| *begun <= at && *begun + calm.limit() >= at);
    let mut faults = Vec::new();
    for (arrived, serial) in seen.view.arrived.iter().zip(&seen.serials) {
        let known = serial.and_then(|serial| world.truth.events.get(&serial));
        let Some(known) = known.filter(|known| copies(world.truth, known) == 1) else { continue };
        let serial = known.event.serial;
        if (calm.begins..=calm.ends).contains(&arrived.at)
            && let Some(before) = came.insert(serial, arrived.at)
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
/// answered 200. An event that a consumer refuses is tried for seconds, in which "no new events are
/// sent" (guarantees.md), so that the queue may fill, and an answer to `delivered` waits.
pub(crate) fn senders_progress(world: &World<'_>, calm: Calm) -> Vec<Fault> {
    let refused: Vec<_> = world.outputs.iter().flat_map(|seen| refused_at(world, seen)).collect();
    let is_held_up = |attempt: &Attempt| {
        let ended = attempt.ended.map_or(world.now, |(at, _)| at);
        refused.iter().any(|at| *at <= ended && *at + calm.limit() >= attempt.begun)
    };
    let is_late = |attempt: &&Attempt| match (attempt.must, attempt.ended) {
        _ if !(calm.begins..=calm.ends).contains(&attempt.begun) => false,
        _ if is_held_up(attempt) => false,
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

/// Reads a file of dead letters. A line that is cut (a crash tears only the last one of a file) is
/// left out.
pub(crate) fn letters(file: &[u8]) -> Vec<Letter> {
    let letter = |line: &[u8]| {
        let at = memchr::memmem::find(line, br#","event":"#)?;
        let (head, event) = line.split_at(at);
        let event = event.strip_prefix(br#","event":"#)?.strip_suffix(b"}")?;
        let head: serde_json::Value = serde_json::from_slice(&[head, b"}"].concat()).ok()?;
        let text = |name: &str| Some(head.get(name)?.as_str()?.to_owned());
        Some(Letter { output: text("output")?, reason: text("reason")?, event: event.into() })
    };
    let lines = file.split_inclusive(|&byte| byte == b'\n');
    lines.filter_map(|line| letter(line.strip_suffix(b"\n")?)).collect()
}

#[cfg(test)]
#[path = "oracle/tests.rs"]
mod tests;
