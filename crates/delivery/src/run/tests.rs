//! The loop against a scripted consumer, a real queue and paused time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::aside::EVENTS_MAX;
use crate::aside::tests::with_directory;
use crate::checkpoints::{Checkpoint, Fate, Published};
use crate::dead_letter::tests::Desk;
use crate::endpoints::Probed;
use crate::health::Status;
use crate::in_flight::tests::opened;
use crate::link::{CLOSE_TIME, Part, Parts, Verdict};
use base::position::Position;
use config::{Rejected, WhenFull};
use queue::{Append, Batch, Claim, Queue, Refused, Take};
use telemetry::{AttemptError, Telemetry};
use transform::policy;
use transform::policy::Policy;

mod any_consumer;
mod aside;
mod by_hand;
mod failing_disk;
mod filtering;
mod given_up;
mod judged;
mod objects;
mod pauses;
mod progress;
mod restarts;
mod scripted;

/// More attempts than any test needs. A loop that sends without end fails at this number.
const ATTEMPTS_MAX: usize = 200_000;

/// More events than requests are sent between two pauses.
const MANY: usize = 200;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The consumer's response to one batch on the wire, or what happens to the connection. A stream
/// responds to the oldest batch, other links to a random one.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Accept,
    /// Accepts the batch, except this number of bad events, which are too long for the protocol.
    AcceptBut(u64),
    /// Accepts this number of events of the batch. The response to the rest comes later.
    AcceptFirst(u64),
    /// Judges each event of the batch by its letter; see [`judged()`].
    Judge(String),
    /// Refuses this number of events of the batch for good, bad ones first, takes the rest, and
    /// does not say which.
    Partly(u64),
    Refuse,
    Fail,
    /// Fails, and another address may be tried without a pause.
    FailHere,
    /// The address can't be reached.
    Away,
    /// Fails, and asks for a pause of this length before the next attempt.
    FailFor(Duration),
    /// The connection breaks. Before that, the consumer has read this number of the batches on the
    /// wire.
    Break(usize),
    /// The connection breaks, and another address may be tried without a pause.
    BreakHere,
    /// The link ends with [`Event::Gone`]; `true` if the end is a failure.
    Gone(bool),
    Trouble,
    /// The response of the consumer with this number. All other responses are those of consumer 0.
    Of(usize, Box<Self>),
}

type Script = dyn FnMut(&[String]) -> Answer + Send;

/// The simulated consumer: its responses, and what it has received.
struct Consumer {
    script: Mutex<Box<Script>>,
    /// The moment until which the consumer refuses connections.
    away_until: Mutex<Instant>,
    latency: Duration,
    window: usize,
    /// `true` if the consumer reads batches as they are sent, and responds in any order.
    pipelined: bool,
    /// The seed that chooses the batch on the wire with the next response, and the fate of each
    /// checkpoint.
    shuffle: Mutex<u64>,
    state: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Every event that the consumer has received, in order. An event that was sent twice is in the
    /// list twice.
    events: Vec<String>,
    attempts: Vec<Instant>,
    connects: Vec<Instant>,
    checkpoints: Vec<String>,
}

impl Consumer {
    fn below(&self, end: usize) -> usize {
        let mut seed = self.shuffle.lock().unwrap();
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(*seed >> 33).unwrap() % end
    }
}

/// Makes links to the simulated consumer. If `EAGER`, they are like a stream: responses are in
/// order, and the link can break. Otherwise they are like HTTP: responses are in any order.
struct Fake<const EAGER: bool> {
    consumer: Arc<Consumer>,
    ordered: bool,
}

struct FakeLink<const EAGER: bool> {
    consumer: Arc<Consumer>,
    wire: Vec<Batch>,
    /// If [`Consumer::pipelined`], the responses to the batches on the wire, by first position.
    decided: BTreeMap<Position, Answer>,
    due: Option<Instant>,
    /// The checkpoint on the wire, and the time of the response.
    checkpoint: Option<(Checkpoint, Instant)>,
    accepted_any: bool,
    /// The number of the consumer that responded last.
    number: usize,
}

impl<const EAGER: bool> Connect for Fake<EAGER> {
    type Link = FakeLink<EAGER>;

    const EAGER: bool = EAGER;
    const IS_ONE_REQUEST: bool = EAGER;

    fn judges_events(&self) -> bool {
        true
    }

    fn is_ordered(&self) -> bool {
        self.ordered
    }

    async fn probe(&mut self) -> Probed {
        Vec::new()
    }

    async fn connect(&mut self) -> Result<FakeLink<EAGER>, Failure> {
        self.consumer.state.lock().unwrap().connects.push(Instant::now());
        if Instant::now() < *self.consumer.away_until.lock().unwrap() {
            return Err(failure(AttemptError::Connect));
        }
        let consumer = Arc::clone(&self.consumer);
        let (wire, due, checkpoint) = (Vec::new(), None, None);
        let decided = BTreeMap::new();
        Ok(FakeLink { consumer, wire, decided, due, checkpoint, accepted_any: false, number: 0 })
    }
}

fn failure(reason: AttemptError) -> Failure {
    Failure::new(reason, "scripted")
}

fn events_of(batch: &Batch) -> Vec<String> {
    let lines: Vec<u8> = batch.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
    let lines = String::from_utf8(lines).unwrap();
    assert!(lines.ends_with('\n'), "whole lines");
    let events: Vec<String> = lines.lines().map(str::to_owned).collect();
    assert_eq!(events.len() as u64, batch.events);
    events
}

/// Returns the report in which each event of the batch is judged by its letter, and adds the events
/// that the consumer takes to `seen`.
fn judged(batch: &Batch, letters: &str, seen: &mut Vec<String>) -> Event {
    assert_eq!(letters.len() as u64, batch.events);
    let mut parts = Parts::default();
    for ((position, letter), event) in batch.positions().zip(letters.chars()).zip(events_of(batch))
    {
        let item = || failure(AttemptError::Item);
        let verdict = match letter {
            'd' => Verdict::Delivered,
            'e' => Verdict::Existing,
            'a' => Verdict::Again(item().not_the_events()),
            's' => Verdict::Again(item()),
            'u' => Verdict::Unconfirmed,
            'n' => Verdict::Unsent,
            _ => Verdict::Refused(item()),
        };
        if matches!(letter, 'd' | 'u') {
            seen.push(event);
        }
        parts.add(position, verdict);
    }
    Event::Judged(batch.claim, parts.end(batch.claim))
}

/// Returns the report that the first `count` bad events of the batch are too long, and that the
/// rest is delivered. Adds the delivered events to `seen`.
fn without_long(batch: &Batch, mut count: u64, seen: &mut Vec<String>) -> Event {
    let mut parts = Parts::default();
    for (position, event) in batch.positions().zip(events_of(batch)) {
        if count > 0 && event.starts_with("bad") {
            count -= 1;
            parts.add(position, Verdict::TooLong);
        } else {
            seen.push(event);
            parts.add(position, Verdict::Delivered);
        }
    }
    Event::Judged(batch.claim, parts.end(batch.claim))
}

/// Returns the report of a response to a batch that the consumer has already read, and has accepted
/// or refused.
fn decided(claim: Claim, answer: &Answer) -> Event {
    if *answer == Answer::Accept {
        return Event::Accepted(claim);
    }
    Event::Refused(claim, failure(AttemptError::Status4xx))
}

/// Returns the report that `refused` events of the batch are refused, bad ones first. Adds the rest
/// to `seen`.
fn partly(batch: &Batch, refused: u64, seen: &mut Vec<String>) -> Event {
    let is_bad = |event: &String| event.starts_with("bad");
    let (bad, good): (Vec<_>, Vec<_>) = events_of(batch).into_iter().partition(is_bad);
    seen.extend(bad.into_iter().chain(good).skip(usize::try_from(refused).unwrap()));
    let verdict = Verdict::Partly { refused, failure: failure(AttemptError::Item) };
    let part = Part { end: batch.claim.end, events: batch.events, verdict };
    Event::Judged(batch.claim, vec![part])
}

impl<const EAGER: bool> Link for FakeLink<EAGER> {
    fn room(&self) -> Option<Take> {
        let on_wire = self.wire.len() + usize::from(self.checkpoint.is_some());
        (on_wire < self.consumer.window).then_some(Take { bytes: u64::MAX, events: u64::MAX })
    }

    fn send(&mut self, batch: Batch) {
        assert!(self.room().is_some(), "sent without room");
        let sent: BTreeSet<_> = self.wire.iter().flat_map(Batch::positions).collect();
        assert!(!batch.positions().any(|it| sent.contains(&it)), "on the wire twice at a time");
        let attempts = {
            let attempts = &mut self.consumer.state.lock().unwrap().attempts;
            attempts.push(Instant::now());
            attempts.len()
        };
        assert!(attempts < ATTEMPTS_MAX, "no end of attempts: {batch:?}");
        if self.consumer.pipelined {
            let events = events_of(&batch);
            let answer = (self.consumer.script.lock().unwrap())(&events);
            if answer == Answer::Accept {
                self.consumer.state.lock().unwrap().events.extend(events);
            }
            self.decided.insert(batch.claim.start, answer);
        }
        self.wire.push(batch);
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        assert!(self.takes_checkpoint() && self.checkpoint.is_none(), "one at a time");
        self.checkpoint = Some((checkpoint, Instant::now() + self.consumer.latency));
    }

    async fn event(&mut self) -> Event {
        let Some((_, at)) = self.checkpoint else { return self.answer().await };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(at) => self.answer_checkpoint(),
            event = self.answer() => event,
        }
    }

    fn consumer(&self) -> usize {
        self.number
    }

    async fn close(self) {}
}

impl<const EAGER: bool> FakeLink<EAGER> {
    /// Takes the checkpoint or refuses it. Some streams break at it.
    fn answer_checkpoint(&mut self) -> Event {
        let (checkpoint, _) = self.checkpoint.take().expect("it is on the wire");
        Event::Checkpoint(match self.consumer.below(4) {
            0 => Fate::Failed(failure(AttemptError::Status5xx)),
            1 => Fate::Refused(failure(AttemptError::Status4xx)),
            2 if EAGER => {
                let failure = failure(AttemptError::Closed);
                return Event::Broken { failure, progress: self.accepted_any };
            }
            _ => {
                let line = String::from_utf8(checkpoint.line().to_vec()).unwrap();
                self.consumer.state.lock().unwrap().checkpoints.push(line);
                Fate::Taken
            }
        })
    }

    async fn answer(&mut self) -> Event {
        if self.wire.is_empty() {
            return std::future::pending().await;
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + self.consumer.latency);
        tokio::time::sleep_until(due).await;
        self.due = None;
        let index = match EAGER {
            true => 0,
            false => self.consumer.below(self.wire.len()),
        };
        let events = events_of(&self.wire[index]);
        if let Some(answer) = self.decided.remove(&self.wire[index].claim.start) {
            return decided(self.wire.remove(index).claim, &answer);
        }
        let answer = (self.consumer.script.lock().unwrap())(&events);
        let (number, answer) =
            if let Answer::Of(number, answer) = answer { (number, *answer) } else { (0, answer) };
        self.number = number;
        let mut seen = self.consumer.state.lock().unwrap();
        let batch = self.wire[index].clone();
        let claim = batch.claim;
        let event = match answer {
            Answer::Break(_) | Answer::BreakHere => {
                assert!(EAGER, "only a stream breaks as a whole");
                let read = if let Answer::Break(read) = answer { read } else { 0 };
                seen.events.extend(self.wire.iter().take(read).flat_map(events_of));
                let elsewhere = answer == Answer::BreakHere;
                let failure = Failure { elsewhere, ..failure(AttemptError::Closed) };
                return Event::Broken { failure, progress: self.accepted_any };
            }
            Answer::AcceptFirst(count) => {
                assert!(EAGER, "only a stream is acknowledged by parts");
                let (front, rest) = events.split_at(usize::try_from(count).unwrap());
                let front_claim = Claim { end: claim.start + count, ..claim };
                let batch = &mut self.wire[index];
                (batch.claim.start, batch.events) = (front_claim.end, rest.len() as u64);
                let lines: String = rest.iter().map(|event| format!("{event}\n")).collect();
                batch.pieces = vec![Bytes::from(lines)];
                self.accepted_any = true;
                seen.events.extend_from_slice(front);
                return Event::Accepted(front_claim);
            }
            Answer::Gone(failed) => {
                assert!(!EAGER, "a stream breaks");
                let failure = failed.then(|| failure(AttemptError::Protocol));
                return Event::Gone { failure, request: None };
            }
            Answer::Trouble => return Event::Troubled(failure(AttemptError::Connect)),
            Answer::Judge(letters) => judged(&batch, &letters, &mut seen.events),
            Answer::Partly(refused) => partly(&batch, refused, &mut seen.events),
            Answer::Accept => {
                self.accepted_any = true;
                seen.events.extend(events);
                Event::Accepted(claim)
            }
            Answer::AcceptBut(count) => {
                self.accepted_any = true;
                without_long(&batch, count, &mut seen.events)
            }
            Answer::Of(..) => panic!("an answer is of one consumer"),
            Answer::Refuse => Event::Refused(claim, failure(AttemptError::Status4xx)),
            Answer::Fail => Event::Failed(claim, failure(AttemptError::Status5xx)),
            Answer::FailHere => {
                let failure = Failure { elsewhere: true, ..failure(AttemptError::Status5xx) };
                Event::Failed(claim, failure)
            }
            Answer::Away => Event::Failed(claim, failure(AttemptError::Connect)),
            Answer::FailFor(wait) => {
                let asked = Failure { retry_after: Some(wait), ..failure(AttemptError::Status429) };
                Event::Failed(claim, asked)
            }
        };
        self.wire.remove(index);
        event
    }
}

/// A queue, the running delivery of one output, and its simulated consumer.
struct Bench {
    queue: Queue,
    telemetry: Arc<Telemetry>,
    consumer: Arc<Consumer>,
    status: Arc<Status>,
    stop: CancellationToken,
    draining: CancellationToken,
    tasks: JoinSet<Result<(), String>>,
    _publishing: JoinSet<()>,
    /// The desk at which the output's dead letters arrive; `None` after a [`Clerk`] has taken it.
    desk: Option<Desk>,
    appended: Vec<String>,
    started: Instant,
}

#[derive(Debug, Clone)]
struct Setting {
    /// The size of a queue that drops its oldest events when it is full; `None` for the default
    /// queue.
    drop_oldest: Option<u64>,
    /// `true` if events that are set aside are in files, as with a queue on disk.
    has_files: bool,
    /// The disk of a queue in files; `None` for a queue in memory.
    disk: Option<Arc<dyn base::disk::Disk>>,
    rejected: Rejected,
    latency: Duration,
    window: usize,
    ordered: bool,
    pipelined: bool,
    shuffle: u64,
    away: Duration,
    /// The times, since the start, at which another delivery replaces the current one.
    replaced: Vec<Duration>,
    /// `true` if the output has the filter [`sifting`].
    sifts: bool,
    /// `true` if the output sends checkpoints, of which 200 are published, one each minute.
    checkpoints: bool,
    /// [`Orders::outlives`].
    outlives: bool,
    /// The number of events that may be set aside.
    aside_max: usize,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            drop_oldest: None,
            has_files: false,
            disk: None,
            rejected: Rejected::Drop,
            latency: Duration::from_millis(1),
            window: 4,
            ordered: true,
            pipelined: false,
            shuffle: 1,
            away: Duration::ZERO,
            replaced: Vec::new(),
            sifts: false,
            checkpoints: false,
            outlives: false,
            aside_max: EVENTS_MAX,
        }
    }
}

/// Returns a filter that drops events with `"verb":"hide"`, removes the body of events with
/// `"verb":"lower"`, and sends no event twice in a year.
fn sifting() -> Arc<filter::Rules> {
    let rule = |verb: &[&str], level| policy::Rule {
        line: 1,
        level,
        criteria: policy::Criteria {
            verbs: verb.iter().map(|&verb| verb.to_owned()).collect(),
            ..policy::Criteria::default()
        },
        omit_stages: Vec::new(),
        omit_managed_fields: None,
    };
    let rules = vec![
        rule(&["hide"], policy::Level::None),
        rule(&["lower"], policy::Level::Metadata),
        rule(&[], policy::Level::RequestResponse),
    ];
    let config = config::Filter { deduplicate: Some(365 * DAY), ..config::Filter::default() };
    let sifting = filter::Rules::new(&config, Rejected::Drop);
    sifting.apply(vec![Policy::new(&[], false, rules)]);
    Arc::new(sifting)
}

fn hidden(number: u64) -> String {
    format!(r#"{{"verb":"hide","n":{number}}}"#)
}

fn lowered(number: u64) -> String {
    format!(r#"{{"level":"Request","verb":"lower","n":{number},"requestObject":"{number}"}}"#)
}

/// Returns an event in the form in which the filter [`sifting`] sends it; `None` if it drops the
/// event.
fn sifted(event: &str) -> Option<String> {
    let body = event.find(r#","requestObject""#);
    match body {
        _ if event.contains("hide") => None,
        Some(body) => Some(event.split_at(body).0.replace("Request", "Metadata") + "}"),
        None => Some(event.to_owned()),
    }
}

/// Publishes a new checkpoint each minute, if they are wanted.
fn publish(is_wanted: bool, tasks: &mut JoinSet<()>) -> Option<Published> {
    if !is_wanted {
        return None;
    }
    let (publish, published) = watch::channel(Bytes::new());
    tasks.spawn(async move {
        for number in 0..200 {
            publish.send_replace(Bytes::from(format!("example.org/log\n{number}\n")));
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    });
    Some(published)
}

impl Bench {
    fn start<const EAGER: bool>(
        setting: &Setting,
        script: impl FnMut(&[String]) -> Answer + Send + 'static,
    ) -> Self {
        // The output of the embedded default config serves for all tests, because the loop reads
        // only a few of its settings.
        let mut config =
            config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
        config.outputs[0].rejected = setting.rejected;
        if let Some(bytes) = setting.drop_oldest {
            (config.queue.max_bytes, config.queue.when_full) = (bytes, WhenFull::DropOldest);
        }
        config.outputs[0].checkpoints = setting.checkpoints;
        let mut publishing = JoinSet::new();
        let published = publish(setting.checkpoints, &mut publishing);
        let telemetry = Arc::new(Telemetry::new());
        let started = Instant::now();
        let consumer = Arc::new(Consumer {
            script: Mutex::new(Box::new(script)),
            away_until: Mutex::new(started + setting.away),
            latency: setting.latency,
            window: setting.window,
            pipelined: setting.pipelined,
            shuffle: Mutex::new(setting.shuffle),
            state: Mutex::default(),
        });
        let metrics = telemetry.output("o");
        let (queue, cursor) = failing_disk::opened_for(setting, &config, &telemetry);
        let status = Arc::<Status>::default();
        let (stop, draining) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let (ordered, replaced) = (setting.ordered, setting.replaced.clone());
        let (outlives, aside_max) = (setting.outlives, setting.aside_max);
        let files = setting.has_files.then(with_directory);
        let rules = setting.sifts.then(sifting);
        let (letters, desk) = Desk::new(&telemetry);
        let (to, told, stopped) = (Arc::clone(&consumer), Arc::clone(&status), stop.clone());
        let drains = draining.clone();
        tasks.spawn(async move {
            let mut begin = HandOver::begin(cursor);
            let (aside, _directory) = files.unzip();
            begin.aside = aside.unwrap_or(begin.aside);
            begin.aside.events_max = aside_max;
            for at in replaced.into_iter().map(Some).chain([None]) {
                let checkpoints = published.clone();
                let (stop, draining) = (stopped.clone(), drains.clone());
                let orders = Orders { stop, draining, checkpoints, outlives, ..Orders::default() };
                let retire = orders.retire.clone();
                let config = config.outputs[0].clone();
                let health = Health::new(&config, metrics.clone(), Arc::clone(&told));
                let fake = Fake::<EAGER> { consumer: Arc::clone(&to), ordered };
                let (filter, dead_letters) = (rules.clone(), letters.clone());
                let start = Start { begin, health, config, filter, dead_letters, orders };
                let delivery = Delivery::new(fake, start);
                let replacing = async {
                    match at {
                        Some(at) => tokio::time::sleep_until(started + at).await,
                        None => std::future::pending().await,
                    }
                    retire.cancel();
                    std::future::pending::<()>().await;
                };
                let left = tokio::select! {
                    left = delivery.run() => left?,
                    () = replacing => None,
                };
                let Some(left) = left else { return Ok(()) };
                begin = left;
            }
            Err("replaced without being told".to_owned())
        });
        Self {
            queue,
            telemetry,
            consumer,
            status,
            stop,
            draining,
            tasks,
            _publishing: publishing,
            desk: Some(desk),
            appended: Vec::new(),
            started,
        }
    }

    /// Starts a bench with a stream. The script is that of the consumer.
    fn stream(script: impl FnMut(&[String]) -> Answer + Send + 'static) -> Self {
        Self::start::<true>(&Setting::default(), script)
    }

    /// Starts a bench whose output sends one request at a time, in order, like HTTP.
    fn requests(script: impl FnMut(&[String]) -> Answer + Send + 'static) -> Self {
        Self::start::<false>(&Setting { window: 1, ..Setting::default() }, script)
    }

    /// Appends one batch to the queue. Each name is one event.
    fn append<T: ToString>(&mut self, names: &[T]) {
        self.try_append(names).expect("room");
    }

    fn try_append<T: ToString>(&mut self, names: &[T]) -> Result<(), Refused> {
        let names: Vec<String> = names.iter().map(T::to_string).collect();
        let lines: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        let events = names.len() as u64;
        let append =
            Append { lines: Bytes::from(lines), events, levels: Default::default(), list: None };
        let _stored = self.queue.append(append)?;
        self.appended.extend(names);
        Ok(())
    }

    async fn drained(&self) {
        let drained = tokio::time::timeout(400 * DAY, self.queue.drained(false)).await;
        assert!(drained.is_ok(), "not delivered in 400 days: {:?}", self.queue.backlogs());
    }

    fn value(&self, series: &str) -> u64 {
        self.queue.observe();
        let text = self.telemetry.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("kube_audit_forwarder_{series} ")));
        // The metrics have the count as a float, but it is a whole number.
        let value: f64 = line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap();
        value.to_string().parse().unwrap()
    }

    fn lost(&self) -> u64 {
        self.value("error_total{plugin=\"o\"}")
    }

    fn backlog(&self) -> u64 {
        self.value("output_backlog_events{output=\"o\"}")
    }

    fn aside(&self) -> u64 {
        self.value("output_aside_events{output=\"o\"}")
    }

    fn filtered(&self, action: &str) -> u64 {
        self.value(&format!("filtered_events_total{{output=\"o\",action=\"{action}\"}}"))
    }

    fn delivered(&self) -> u64 {
        self.value("output_events_total{output=\"o\"}")
    }

    fn seen(&self) -> Vec<String> {
        self.consumer.state.lock().unwrap().events.clone()
    }

    /// Returns the numbers of the checkpoints that the consumer has taken.
    fn checkpoints(&self) -> Vec<u32> {
        let lines = &self.consumer.state.lock().unwrap().checkpoints;
        let number = |line: &String| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            object["note"].as_str().unwrap().lines().nth(1).unwrap().parse().unwrap()
        };
        lines.iter().map(number).collect()
    }

    fn connects(&self) -> Vec<Instant> {
        self.consumer.state.lock().unwrap().connects.clone()
    }

    fn attempts(&self) -> Vec<Instant> {
        self.consumer.state.lock().unwrap().attempts.clone()
    }

    /// Ends a test: stops the delivery, and checks that the counters account for every event.
    async fn finish(mut self) {
        self.stop.cancel();
        let ended = self.tasks.join_next().await;
        assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        let counts = [
            self.value("event_total"),
            self.delivered(),
            self.backlog(),
            self.aside(),
            self.lost(),
            self.value("error_total{plugin=\"queue\"}"),
            self.value("filtered_events_total{output=\"o\",action=\"dropped\"}"),
            self.value("filtered_events_total{output=\"o\",action=\"duplicate\"}"),
        ];
        let [accepted, rest @ ..] = counts;
        assert_eq!(accepted, rest.iter().sum::<u64>(), "{counts:?}");
    }
}

/// Returns `true` if `seen` has all events of `wanted` in this order. Other events may be between
/// them.
fn in_order(seen: &[String], wanted: &[String]) -> bool {
    let mut seen = seen.iter();
    wanted.iter().all(|wanted| seen.any(|event| event == wanted))
}

fn is_bad(events: &[String]) -> bool {
    events.iter().any(|event| event.starts_with("bad"))
}

fn refuse_bad(events: &[String]) -> Answer {
    if is_bad(events) { Answer::Refuse } else { Answer::Accept }
}
