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
use crate::consumers::Promise;
use crate::consumers::Steady;
use crate::judging::Losses;
use crate::kernel;
use crate::kernel::disk;
use crate::plan::Change;
use crate::plan::Output;
use crate::truth::Kind;

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

    /// Kills the relay, changes a byte of the largest file with these letters in its path, and
    /// starts it again.
    pub(super) fn damage(&mut self, what: &str) {
        let Some(process) = self.process.filter(|_| self.has_life()) else { return };
        let metrics = self.metrics();
        self.book.dies(Kind::Kill);
        process.kill();
        if let Some(metrics) = metrics {
            self.losses.add_metrics(&metrics);
        }
        self.gone(process);
        let mut rng = fastrand::Rng::with_seed(u64::from(kernel::now().subsec_nanos()));
        let path = match what {
            "cursors" => Some(PathBuf::from("queue/cursors")),
            _ => files("queue/segments").into_iter().next_back(),
        };
        if let Some(path) = path
            && let Ok(mut bytes) = fs::read(&path)
        {
            // A slot of the cursors file begins at each half; a segment is full of records.
            let half = bytes.len() / 2 * rng.usize(..2);
            if let Some(byte) = bytes.get_mut(half + rng.usize(8..200)) {
                *byte ^= 0x55;
                fs::write(&path, bytes).expect("a writable directory");
                kernel::trace(format_args!("{} is damaged", path.display()));
            }
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

    /// A consumer asks for long pauses for so long. Then the relay gets SIGTERM, a moment after
    /// or before the consumer is well. All others are well, so that everything can be delivered in
    /// the drain, which takes 20 s: "keeps delivering for `shutdown.drain_timeout`" (guarantees.md).
    pub(super) fn drain(&mut self, consumer: usize, outage: Duration, is_well_before: bool) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        let over = std::mem::take(&mut self.ending);
        self.end(over);
        for consumer in self.consumers {
            consumer.calm(true);
        }
        let busy = &self.consumers[consumer];
        busy.answers(Some(Steady::Busy));
        std::thread::sleep(outage);
        let mut before = Losses::default();
        if let Some(metrics) = self.metrics() {
            before.add_metrics(&metrics);
        }
        let from = self.log.len();
        std::thread::scope(|scope| {
            if is_well_before {
                busy.answers(None);
                std::thread::sleep(Duration::from_millis(30));
            } else {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(1200));
                    busy.answers(None);
                });
            }
            self.stop(false);
        });
        let mut after = Losses::default();
        after.add_last_line(&String::from_utf8_lossy(&self.log[from..]));
        for Output { name, consumer, .. } in &self.setup.outputs {
            let promise = self.consumers[*consumer].promise();
            let Promise { parks, counts, refuses, fails, .. } = promise;
            let more = after.of(name).saturating_sub(before.of(name));
            if more > 0 && !(parks || counts || refuses || fails) {
                let what = "although every consumer is well";
                let text = format!("drain: output {name}: {more} events are lost in 20 s, {what}");
                self.faults.push(text);
            }
        }
        for consumer in self.consumers {
            consumer.calm(false);
        }
        self.start();
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

/// Returns the files of a directory, by name.
fn files(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}
