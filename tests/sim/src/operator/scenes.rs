//! What the operator does in the scenes of a plan.

use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::Ending;
use super::Operator;
use crate::consumers::Consumer;
use crate::consumers::Steady;
use crate::events::Maker;
use crate::events::Marks;
use crate::judging::Losses;
use crate::kernel;
use crate::kernel::disk;
use crate::plan::Change;
use crate::plan::When;
use crate::plan::Why;
use crate::setup::LISTENER;
use crate::support::http;
use crate::truth::Answer;
use crate::truth::Kind;
use crate::truth::Known;
use crate::truth::Must;
use crate::truth::Origin;
use crate::truth::Output;

/// The port of the listener that a reload adds.
const SECOND: u16 = 8081;

/// How long somebody else has an address. A reload waits 30 s for one.
const TAKEN: Duration = Duration::from_secs(40);

/// The longest time in which an address that is free is found so: half a minute between two
/// attempts, and the attempt.
const AGAIN: Duration = Duration::from_secs(70);

/// How long a consumer is well after it has refused everything: the pause before the next attempt
/// is half a minute at most.
const CALM: Duration = Duration::from_secs(45);

/// How much longer than its drain the relay may take to its end.
const AT_ONCE: Duration = Duration::from_secs(6);

/// The number of the sender of the last batch.
const PROBE: u32 = 4000;

/// No lag is as long as this: no seed takes an hour.
const LAG_MAX: f64 = 2.0 * 3600.0;

impl Operator<'_> {
    /// The oldest segment can be neither removed nor renamed, for ever.
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
        let Some(process) = self.process.filter(|_| self.has_life()) else { return };
        let metrics = self.metrics();
        self.book.dies(Kind::Kill);
        process.kill();
        if let Some(metrics) = metrics {
            self.losses.add_metrics(&metrics);
        }
        self.gone(process);
        match what {
            "cursors" => spoil(Path::new("queue/cursors"), |length| {
                // A slot begins at each half.
                let half = length / 2 * (kernel::now().subsec_millis() as usize % 2);
                half + 40..half + 41
            }),
            _ => files("queue/segments").iter().for_each(|file| {
                // What comes last can be read.
                spoil(file, |length| 100..length * 3 / 4);
            }),
        }
        self.start();
    }

    /// Reads the metrics, and says what cannot be true.
    pub(super) fn look(&mut self) {
        let Some(metrics) = self.metrics() else { return };
        for (labels, lag) in metrics.all("kube_audit_forwarder_output_lag_seconds") {
            if lag > LAG_MAX {
                self.faults.push(format!("lag: {labels:?} is {lag} s behind"));
            }
        }
    }

    /// A consumer that is well but for that refuses every request for so long. The relay may not
    /// believe it: "refused for good" needs the proof that the consumer takes others.
    pub(super) fn refuse_all(&mut self, consumer: usize, time: Duration) {
        self.consumers[consumer].calm(true);
        self.consumers[consumer].answers(Some(Steady::Refuses));
        let until = kernel::now() + time;
        self.ending.push((until, Ending::Steady(consumer)));
        // Until then, everything that was refused has been tried again.
        self.ending.push((until + CALM, Ending::Calm(consumer)));
    }

    /// A consumer asks for long pauses for so long, and is well from shortly after or before the
    /// end of the relay on. All others are well, so that everything can be delivered in the drain,
    /// which takes 10 s: "keeps delivering for `shutdown.drain_timeout`" (guarantees.md).
    pub(super) fn drain(&mut self, consumer: usize, outage: Duration, when: When, why: Why) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        let over = std::mem::take(&mut self.ending);
        self.end(over);
        for consumer in self.consumers {
            consumer.calm(true);
        }
        let busy = &self.consumers[consumer];
        let (how, outage) = match when {
            When::Late => (Steady::BusyLate, Duration::from_secs(3)),
            When::Before | When::After => (Steady::Busy, outage),
        };
        busy.answers(Some(how));
        std::thread::sleep(outage);
        let mut before = Losses::default();
        if let Some(metrics) = self.metrics() {
            before.add_metrics(&metrics);
        }
        let from = self.log.len();
        std::thread::scope(|scope| {
            let after = match when {
                When::Before => {
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
        after.add_last_line(&String::from_utf8_lossy(&self.log[from..]));
        for Output { name, consumer, .. } in &self.setup.outputs {
            let consumer = &self.consumers[*consumer];
            let more = after.of(name).saturating_sub(before.of(name));
            if more > self.refused_by(consumer) && !consumer.promise().parks {
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

    /// Returns how many events the consumer refuses for good of all that there are.
    fn refused_by(&self, consumer: &Consumer) -> u64 {
        let refuses = |known: &&Known| consumer.refuses(&known.event.bytes);
        self.book.read(|truth| truth.events.values().filter(refuses).count()) as u64
    }

    /// SIGTERM while a reload waits, as it does for an output of the same name to leave. The drain
    /// begins at once nevertheless.
    pub(super) fn end_in_reload(&mut self) {
        let Some(process) = self.process.filter(|_| self.has_life()) else { return };
        self.setup.change(&Change::Spare, self.consumers.len() - 1);
        self.book.config(self.setup.known(self.consumers, &self.leaving));
        self.write_config();
        process.signal(libc::SIGHUP);
        std::thread::sleep(Duration::from_millis(500));
        let begun = kernel::now();
        self.stop(Why::Signal);
        let (took, drain) = (kernel::now() - begun, Duration::from_secs(self.setup.drain));
        if took > drain + AT_ONCE {
            self.faults.push(format!("drain: it took {took:?} of {drain:?}, because of a reload"));
        }
        self.start();
    }

    /// Sends a batch of half the greatest size, until it is accepted: nothing is wrong any more.
    pub(crate) fn probe(&mut self, seed: u64, bytes: usize) {
        const LIMIT: Duration = Duration::from_secs(90);
        let rng = crate::senders::rng(seed, "probe");
        let mut maker = Maker::new(PROBE * 16, rng, Marks::default());
        let mut events = vec![maker.event()];
        let bytes = (bytes / 2).min(48 << 10);
        while events.iter().map(|event| event.bytes.len() + 1).sum::<usize>() < bytes {
            events.push(maker.event());
        }
        let (body, serials) = (crate::events::list(&events), self.book.made(&events));
        let deadline = kernel::now() + LIMIT;
        loop {
            let from = Origin { sender: PROBE, connection: 0 };
            let attempt = self.book.begun(from, &serials, Must::Take);
            let listener = LISTENER.parse().expect("an address");
            let answer = match http::post(listener, "/", "application/json", &body) {
                Ok(response) => Answer::Status(response.status),
                Err(_) => Answer::Broken,
            };
            self.book.ended(attempt, answer);
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

    /// A reload adds a listener, or moves it, to an address that somebody else has for a while.
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
        let from = process.stderr().len();
        process.signal(libc::SIGHUP);
        self.wait_until(kernel::now() + TAKEN);
        if moves && TcpStream::connect(old).is_err() {
            self.faults.push(format!("listener: nobody listens on {old} while {new} is taken"));
        }
        drop(somebody);
        self.wait_until(kernel::now() + AGAIN);
        let log = process.stderr();
        let log = String::from_utf8_lossy(log.get(from..).unwrap_or_default());
        if !log.lines().any(|line| line.contains("config reloaded") && !line.contains("except")) {
            self.faults.push(format!("listener: no reload {AGAIN:?} after {new} is free"));
        }
    }
}

/// Changes bytes of a file: the first of every thousand in a range, which is asked for by the
/// length of what is in the file before its last zeros.
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

/// Returns the files of a directory, by name.
fn files(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}
