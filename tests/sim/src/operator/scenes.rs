//! The operator's part in the scenes of a plan.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Ending, Operator};
use crate::consumers::{Consumer, Kind, Promise, Steady};
use crate::events::{Event, Maker, Marks, Serial, identify_all};
use crate::judging::Losses;
use crate::kernel::{Process, disk};
use crate::oracle::said::Moment;
use crate::plan::{Action, Change, When, Why};
use crate::support::http;
use crate::truth::{
    Acknowledge, Answer, Attempt, Book, Fate, Kind as Death, Known, Must, Output, SentBy,
};
use crate::{events, kernel};

/// The port of the listener that a reload adds.
const SECOND: u16 = 8081;

/// How long somebody else has an address. A reload waits 30 s for it.
const TAKEN: Duration = Duration::from_secs(40);

/// How soon a reload must find an address after it has become free: half a minute between two
/// attempts, and the attempt.
const AGAIN: Duration = Duration::from_secs(70);

/// How long a consumer stays healthy after it has refused everything. The pause before the next
/// attempt is at most half a minute.
const CALM: Duration = Duration::from_secs(45);

/// How much longer than its drain the relay can take to exit.
const AT_ONCE: Duration = Duration::from_secs(6);

/// The relay's words about a file of an event that it has delivered and can't delete.
const KEPT: &str = "cannot delete the file of an event that is no longer set aside";

/// The sender number of the operator's requests.
const PROBE: u32 = 4000;

/// How long everything has been delivered before the relay is killed at rest, and how long it can
/// then take to repeat events.
const REST: Duration = Duration::from_secs(5);
const AFTER_REST: Duration = Duration::from_secs(15);

/// A backlog of this many events is delivered at once.
const SMALL: f64 = 100.0;

/// No lag reaches this, in seconds: no seed takes an hour.
const LAG_MAX: f64 = 2.0 * 3600.0;

/// Sends the operator's batches.
pub(super) struct Poster {
    book: Book,
    listener: SocketAddr,
}

impl Poster {
    pub(super) fn post(&self, events: &[Event], serials: &Arc<[Serial]>) -> Answer {
        let from = SentBy { sender: PROBE, connection: 0 };
        let attempt = self.book.begun(from, serials, Must::Take);
        let body = events::list(events);
        let answer = match http::post(self.listener, "/", "application/json", &body) {
            Ok(response) => Answer::Status(response.status),
            Err(_) => Answer::Broken,
        };
        self.book.ended(attempt, answer);
        answer
    }
}

impl Operator<'_> {
    /// Makes the oldest segment a file that can be neither removed nor renamed, for ever.
    pub(super) fn stick(&self) {
        if let Some(first) = files("queue/segments").into_iter().next()
            && let Ok(first) = first.canonicalize()
        {
            disk::stick(&first);
        }
    }

    pub(super) fn read_log_no_more(&self) {
        if let Some(process) = self.process {
            process.read_no_more();
        }
    }

    /// Kills the relay, changes bytes of the cursors file or of all segments, and starts it again.
    pub(super) fn damage(&mut self, what: &str) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        self.kill(Death::Kill);
        match what {
            "cursors" => spoil(Path::new("queue/cursors"), |length| {
                // One of the two slots begins at each half.
                let half = length / 2 * (kernel::now().subsec_millis() as usize % 2);
                half + 40..half + 41
            }),
            _ => files("queue/segments").iter().for_each(|file| {
                // The end of each segment stays readable.
                spoil(file, |length| 100..length * 3 / 4);
            }),
        }
        self.start();
    }

    /// Reads the metrics, and reports a lag that is impossible.
    pub(super) fn look(&mut self) {
        let Some(metrics) = self.metrics() else { return };
        for (labels, lag) in metrics.all("kube_audit_forwarder_output_lag_seconds") {
            if lag > LAG_MAX {
                self.faults.push(format!("lag: {labels:?} is {lag} s behind"));
            }
        }
    }

    /// Lets a healthy consumer refuse everything for a while. The relay must not conclude that the
    /// events are at fault: for that, the consumer must accept others (see refused-events.md).
    pub(super) fn refuse_all(&mut self, consumer: usize, time: Duration) {
        self.consumers[consumer].calm(true);
        self.consumers[consumer].answers(Some(Steady::Refuses));
        let until = kernel::now() + time;
        self.ending.push((until, Ending::Steady(consumer)));
        // By then, everything that was refused has been tried again.
        self.ending.push((until + CALM, Ending::Calm(consumer)));
    }

    /// Lets a consumer ask for long pauses. It becomes healthy shortly before or after the relay
    /// begins to shut down. All others are healthy, so everything can be delivered during the drain
    /// of 10 s (see guarantees.md).
    pub(super) fn drain(&mut self, consumer: usize, outage: Duration, when: When, why: Why) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        let begun = kernel::now();
        let Some(consumer) = self.fails_on_one(consumer, when) else { return };
        self.calm_all();
        let busy = &self.consumers[consumer];
        let (how, outage) = match when {
            When::Late => (Steady::BusyLate, Duration::from_secs(3)),
            When::Before | When::After => (Steady::Busy, outage),
            When::OnOne => (Steady::Fails, outage),
        };
        busy.answers(Some(how));
        if when == When::OnOne {
            let event = self.kept_by(consumer, Marks { refused: 0, failing: 1000 });
            self.post(&[event]);
        }
        std::thread::sleep(outage);
        let mut before = Losses::default();
        if let Some(metrics) = self.metrics() {
            before.add_metrics(&metrics);
        }
        let from = self.log.len();
        std::thread::scope(|scope| {
            let after = match when {
                When::Before | When::OnOne => {
                    busy.answers(None);
                    Duration::from_millis(30)
                }
                When::After | When::Late => {
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_millis(1200));
                        busy.answers(None);
                    });
                    Duration::ZERO
                }
            };
            std::thread::sleep(after);
            self.stop(why);
        });
        let mut after = Losses::default();
        let log = String::from_utf8_lossy(&self.log[from..]).into_owned();
        after.add_last_line(&log);
        // A refused event is tried for three seconds or more, in which nothing else is sent.
        let tries = |name: &str| {
            let (given_up, of_output) = ("events given up", format!("output=\"{name}\""));
            log.lines().any(|line| line.contains(given_up) && line.contains(&of_output))
        };
        for Output { name, consumer, .. } in &self.setup.outputs {
            let consumer = &self.consumers[*consumer];
            let more = after.of(name).saturating_sub(before.of(name));
            // A stream that was mute before stays mute until its connection ends.
            let is_mute = [Kind::Relp, Kind::Lumberjack].contains(&consumer.kind)
                && consumer.arrived_since(0).last().is_none_or(|last| last.at < begun);
            if more > self.refused_by(consumer)
                && !consumer.promise().aside
                && !is_mute
                && !tries(name)
            {
                let what = "although every consumer is well";
                let text =
                    format!("drain: output {name}: {more} events are lost in the drain, {what}");
                self.faults.push(text);
            }
        }
        for consumer in self.consumers {
            consumer.calm(false);
        }
        self.start();
    }

    /// Returns how many of all events the consumer refuses for good.
    fn refused_by(&self, consumer: &Consumer) -> u64 {
        let refuses = |known: &&Known| {
            let event = &known.event.bytes;
            consumer.refuses(event) || consumer.may_reject(event)
        };
        self.book.read(|truth| truth.events.values().filter(refuses).count()) as u64
    }

    /// Sends SIGTERM while a reload waits for a removed output. The drain must begin at once.
    pub(super) fn end_in_reload(&mut self) {
        let Some(process) = self.process.filter(|_| self.has_life()) else { return };
        let old = self.setup.clone();
        // Each save can then take seconds.
        let is_slow = self.ending.iter().any(|(_, ending)| *ending == Ending::Disk);
        self.setup.change(&Change::Spare, self.consumers.len() - 1);
        if !self.setup.outputs.iter().any(|output| output.required) {
            // The relay refuses such a config.
            self.setup = old;
        }
        self.book.config(self.setup.known(self.consumers, &self.leaving));
        self.write_config();
        process.signal(libc::SIGHUP);
        std::thread::sleep(Duration::from_millis(500));
        let begun = kernel::now();
        self.stop(Why::Signal);
        let (took, drain) = (kernel::now() - begun, Duration::from_secs(self.setup.drain));
        if took > drain + AT_ONCE && !is_slow {
            self.faults.push(format!("drain: it took {took:?} of {drain:?}, because of a reload"));
        }
        self.start();
    }

    /// Ends all troubles for a while.
    pub(super) fn calm_all(&mut self) {
        let over = std::mem::take(&mut self.ending);
        self.end(over);
        for consumer in self.consumers {
            consumer.calm(true);
        }
    }

    /// Returns the consumer that should be in trouble until `when`. For [`When::OnOne`], it is a
    /// store that accepts every event when it is healthy, and at which nothing else is set aside.
    fn fails_on_one(&self, consumer: usize, when: When) -> Option<usize> {
        if when != When::OnOne {
            return Some(consumer);
        }
        let fits = |number: &usize| {
            let consumer = &self.consumers[*number];
            let Promise { fails, aside, counts, .. } = consumer.promise();
            // An object has many events, and none of them is set aside.
            consumer.kind.is_store() && consumer.kind != Kind::S3 && !fails && !aside && !counts
        };
        self.setup.outputs.iter().map(|output| output.consumer).find(fits)
    }

    /// Sends SIGTERM while a refused event is undecided and later events are accepted. The next
    /// start decides it, so the drain does not wait.
    pub(super) fn end_beside_refused(&mut self) {
        const LIMIT: Duration = Duration::from_secs(12);
        if self.process.is_none() || !self.has_life() || !self.setup.on_disk {
            return;
        }
        self.calm_all();
        self.wait_until(kernel::now() + CALM);
        let waiting = self.metrics().map_or(f64::MAX, |it| it.sum("output_backlog_events"));
        let mut good = self.maker(Marks::default());
        let refused = self.maker(Marks { refused: 1000, failing: 0 }).event();
        self.post(&[good.event(), refused, good.event()]);
        std::thread::sleep(Duration::from_millis(500));
        self.post(&good.events(3));
        std::thread::sleep(Duration::from_secs(1));
        let begun = kernel::now();
        self.stop(Why::Signal);
        let took = kernel::now() - begun;
        if took > LIMIT && waiting <= SMALL {
            let what = "although only refused events were left";
            self.faults.push(format!("drain: it took {took:?}, {what}"));
        }
        for consumer in self.consumers {
            consumer.calm(false);
        }
        self.start();
    }

    /// Runs the relay without evidence for a while.
    pub(super) fn evidence_off(&mut self, time: Duration) {
        // This needs two lives, and one must remain for later.
        if self.process.is_none() || !self.has_libraries(6) {
            return;
        }
        self.setup.has_evidence = false;
        self.restart(Why::Signal);
        let from = kernel::now();
        self.wait_until(from + time);
        self.evidence_was_off = Some((from, kernel::now()));
        self.setup.has_evidence = true;
        self.restart(Why::Signal);
    }

    /// With `delivered`, a batch may get a 200 only after standard output had it: standard output
    /// is a required output here.
    pub(super) fn look_at_stdout(&mut self, process: Process) {
        let had: BTreeSet<_> = identify_all(&process.stdout()).into_iter().collect();
        let started = self.started.get();
        let missing = self.book.read(|truth| {
            let is_promised = |attempt: &&Attempt| {
                let Fate::Accepted(at) = attempt.fate() else { return false };
                let mut configs = truth.configs(attempt.begun, at);
                attempt.begun >= started
                    && configs.all(|config| config.acknowledge == Acknowledge::Delivered)
            };
            let attempts = truth.attempts.iter().filter(is_promised);
            let serials = attempts.flat_map(|attempt| attempt.serials.iter().copied());
            serials.filter(|serial| !had.contains(serial)).collect::<Vec<_>>()
        });
        if let Some(first) = missing.first() {
            let count = missing.len();
            let what = "were answered 200, and standard output, which is required, never had them";
            self.faults.push(format!("delivered: {count} events from {first} on {what}"));
        }
    }

    /// Looks at the page when everything has been delivered, and then kills the relay if it `dies`.
    pub(crate) fn rest(&mut self, dies: bool) {
        self.ask(Moment::Quiet);
        if dies {
            self.die_at_rest();
        }
    }

    /// Kills the relay when everything has been delivered for a while. No event may be repeated: a
    /// kill repeats only events of the last second (see queue-and-disk.md).
    fn die_at_rest(&mut self) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        // The last events become final some seconds after they came.
        self.consumers.iter().for_each(|consumer| consumer.pause(true));
        let events = self.maker(Marks::default()).events(3);
        let answer = self.post(&events);
        std::thread::sleep(Duration::from_secs(3));
        self.consumers.iter().for_each(|consumer| consumer.pause(false));
        self.wait_until(kernel::now() + AFTER_REST);
        let waiting = self.metrics().map(|metrics| metrics.sum("output_backlog_events"));
        if answer != Answer::Status(200) || waiting != Some(0.0) {
            return;
        }
        self.wait_until(kernel::now() + REST);
        // The log has said that an event comes again: the disk has kept its file.
        let said = self.process.as_ref().map(|it| it.stderr()).unwrap_or_default();
        let said = [self.log.as_slice(), &said].concat();
        if memchr::memmem::find(&said, KEPT.as_bytes()).is_some() {
            return;
        }
        let had = |it: &Consumer| it.arrived_since(0).len();
        let before: Vec<_> = self.consumers.iter().map(had).collect();
        self.act(&Action::Kill(Duration::from_millis(100)));
        self.wait_until(kernel::now() + AFTER_REST);
        for (consumer, before) in self.consumers.iter().zip(before) {
            let more = had(consumer) - before;
            if more > 0 {
                let (name, what) = (&consumer.name, "after a kill, and all had been delivered");
                self.faults.push(format!("repeats: {more} events came again to {name} {what}"));
            }
        }
    }

    /// Returns an event that the filter of an output to this consumer keeps.
    pub(super) fn kept_by(&mut self, consumer: usize, marks: Marks) -> Event {
        let mut maker = self.maker(marks);
        let filter = self.setup.outputs.iter().find(|output| output.consumer == consumer);
        let filter = filter.map(|output| output.filter.clone()).unwrap_or_default();
        let mut events = std::iter::repeat_with(|| maker.event());
        events.find(|event| filter.keeps(&event.facts)).expect("there is no end of them")
    }

    /// Returns a new maker of events for the operator.
    pub(super) fn maker(&mut self, marks: Marks) -> Maker {
        self.batches += 1;
        let rng = fastrand::Rng::with_seed(self.batches.into());
        Maker::new((PROBE + self.batches) * 16, rng, marks)
    }

    /// Sends a batch of the operator, and returns the answer.
    pub(super) fn post(&mut self, events: &[Event]) -> Answer {
        let serials = self.book.made(events);
        self.post_again(events, &serials)
    }

    pub(super) fn post_again(&self, events: &[Event], serials: &Arc<[Serial]>) -> Answer {
        self.poster().post(events, serials)
    }

    pub(super) fn poster(&self) -> Poster {
        let listener = self.setup.front.operator().parse().expect("an address");
        Poster { book: self.book.clone(), listener }
    }

    /// Sends a batch of half the greatest size until it is accepted: nothing is wrong any more.
    pub(crate) fn probe(&mut self, bytes: usize) {
        const LIMIT: Duration = Duration::from_secs(90);
        let mut maker = self.maker(Marks::default());
        let mut events = vec![maker.event()];
        let bytes = (bytes / 2).min(48 << 10);
        while events.iter().map(|event| event.bytes.len() + 1).sum::<usize>() < bytes {
            events.push(maker.event());
        }
        let serials = self.book.made(&events);
        let deadline = kernel::now() + LIMIT;
        loop {
            let answer = self.post_again(&events, &serials);
            if answer == Answer::Status(200) {
                return;
            }
            if kernel::now() > deadline {
                let text = format!("progress: nothing is wrong, and a batch is answered {answer}");
                self.faults.push(text);
                return;
            }
            std::thread::sleep(Duration::from_secs(3));
        }
    }

    /// Adds or moves a listener by a reload, to an address that somebody else has for a while.
    pub(super) fn take_address(&mut self, moves: bool) {
        let Some(process) = self.process else { return };
        if self.setup.second.is_some() || self.ending.iter().any(|(_, it)| *it == Ending::Disk) {
            return;
        }
        let old = SocketAddr::from((Ipv4Addr::LOCALHOST, SECOND));
        let new = SocketAddr::from((Ipv4Addr::new(127, 0, 0, if moves { 2 } else { 1 }), SECOND));
        if moves {
            self.setup.second = Some(old);
            self.reload(&Change::Nothing);
        }
        let somebody = TcpListener::bind(new).expect("nobody has it");
        self.setup.second = Some(new);
        self.write_config();
        process.signal(libc::SIGHUP);
        self.wait_until(kernel::now() + TAKEN);
        if moves && TcpStream::connect(old).is_err() {
            self.faults.push(format!("listener: nobody listens on {old} while {new} is taken"));
        }
        drop(somebody);
        self.wait_until(kernel::now() + AGAIN);
        // Nobody may be reading the log, so the listener itself is tried.
        if TcpStream::connect(new).is_err() {
            self.faults.push(format!("listener: no reload {AGAIN:?} after {new} is free"));
        }
    }
}

/// Changes the first of every thousand bytes in a range of a file. `range` gets the file's length
/// (for a segment, without the zeros at the end).
fn spoil(path: &Path, range: impl Fn(usize) -> std::ops::Range<usize>) {
    let Ok(mut bytes) = fs::read(path) else { return };
    let all = if path.ends_with("cursors") { bytes.len() } else { used(&bytes) };
    for at in range(all).step_by(1000) {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x55;
        }
    }
    fs::write(path, bytes).expect("a writable directory");
    kernel::trace(format_args!("{} is damaged", path.display()));
}

/// Returns the length without the zeros at the end.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Returns the files of a directory, sorted by name.
fn files(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}
