//! The operator: starts and stops the relay, edits its config, and causes the plan's troubles.

mod back;
mod choosy;
mod demands;
mod outer;
mod scenes;
mod staged;

pub(crate) use back::Restored;
pub(crate) use outer::APPLIES;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::consumers::{Consumer, Kind};
use crate::judging::Losses;
use crate::kernel;
use crate::kernel::{Process, disk, net};
use crate::observer::Begin;
use crate::oracle::said::{LATE, Memory, Moment, Said, Status};
use crate::pki::Pki;
use crate::plan::{Action, Change, Setup, Why};
use crate::setup::ADMIN;
use crate::support::http;
use crate::support::metrics::Metrics;
use crate::truth::{Book, Kind as Death, Output};
use crate::witness::Witness;

/// How long a reload can take: it waits 30 s for an address, and for files.
const RELOAD: Duration = Duration::from_secs(45);

/// How long a relay can take to exit after its drain, or to start.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Operator<'a> {
    pub(crate) book: Book,
    pub(crate) consumers: &'a [Consumer],
    pub(crate) setup: Setup,
    /// The names of the outputs that a reload removes at some time.
    pub(crate) leaving: Vec<String>,
    /// The copies of the relay's library that no life has used yet.
    libraries: Vec<PathBuf>,
    process: Option<Process>,
    /// Troubles that end by themselves, and when they end.
    ending: Vec<(Duration, Ending)>,
    pub(crate) faults: Vec<String>,
    pub(crate) losses: Losses,
    /// From this time on, events may have no evidence: the disk has refused writes, or a small
    /// queue has needed their room.
    pub(crate) disk_refused: Option<Duration>,
    /// Spans in which each sync took a second or more. The evidence is then written late, and a
    /// full queue may drop the events before that.
    pub(crate) disk_slow: Vec<(Duration, Duration)>,
    /// A span in which the config had no evidence.
    pub(crate) evidence_was_off: Option<(Duration, Duration)>,
    pub(crate) witness: Option<Witness>,
    /// When the copy of the queue's directory was made, if there is one.
    copied: Option<Duration>,
    pub(crate) restored: Option<Restored>,
    /// The log of all lives.
    pub(crate) log: Vec<u8>,
    /// When the current life began.
    pub(crate) started: Begin,
    /// The answers of the relay to the operator's questions.
    pub(crate) said: Vec<Said>,
    /// The heap use of each life.
    pub(crate) memory: Vec<Memory>,
    /// The number of event makers that the operator has used.
    batches: u32,
    /// The certificates, if anything uses TLS.
    pub(crate) pki: Option<Pki>,
}

/// The end of a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Way(usize),
    Away(usize),
    Hangs(usize),
    Disk,
    /// A store answers as its seed decides.
    Steady(usize),
    /// A consumer may have troubles again.
    Calm(usize),
    Witness,
}

/// Returns a page of the relay's admin address, if the relay responds.
pub(crate) fn page(path: &str) -> Option<String> {
    let response = http::get(ADMIN.parse().expect("an address"), path).ok()?;
    (response.status == 200).then(|| response.text())
}

impl<'a> Operator<'a> {
    pub(crate) fn new(
        book: &Book,
        consumers: &'a [Consumer],
        setup: Setup,
        leaving: Vec<String>,
        libraries: Vec<PathBuf>,
    ) -> Self {
        Self {
            book: book.clone(),
            consumers,
            setup,
            leaving,
            libraries,
            process: None,
            ending: Vec::new(),
            faults: Vec::new(),
            losses: Losses::default(),
            disk_refused: None,
            disk_slow: Vec::new(),
            evidence_was_off: None,
            witness: None,
            copied: None,
            restored: None,
            log: Vec::new(),
            started: Begin::default(),
            said: Vec::new(),
            memory: Vec::new(),
            batches: 0,
            pki: None,
        }
    }

    /// Returns `true` if the program can be started at least `count` more times.
    pub(crate) fn has_libraries(&self, count: usize) -> bool {
        self.libraries.len() >= count
    }

    /// Runs a command of the program to its end. Returns its exit status and its output.
    pub(crate) fn command(&mut self, arguments: &[&str]) -> (Option<i32>, String) {
        let Some(library) = self.libraries.pop() else { return (None, String::new()) };
        let process = Process::start(&library, arguments);
        let status = process.wait(Duration::from_secs(600));
        let said = [process.stdout(), process.stderr()].concat();
        (status, String::from_utf8_lossy(&said).into_owned())
    }

    /// Starts the relay with the newest config, and waits until it responds.
    pub(crate) fn start(&mut self) {
        let Some(library) = self.libraries.pop() else { return };
        self.write_config();
        self.book.config(self.setup.known(self.consumers, &self.leaving));
        self.started.is_now();
        let process = Process::start(&library, &["run", "--config", "config.toml"]);
        self.process = Some(process);
        let mut deadline = kernel::now() + PATIENCE;
        while self.metrics().is_none() {
            if let Some(status) = process.wait(Duration::from_millis(200)) {
                // The start may fail while the disk is in trouble. It is repeated later.
                let log = String::from_utf8_lossy(&process.stderr()).into_owned();
                kernel::trace(format_args!("the start failed with {status}"));
                self.log.extend(log.as_bytes());
                self.process = None;
                let is_trouble = self.ending.iter().any(|(_, ending)| *ending == Ending::Disk);
                if !is_trouble {
                    self.faults.push(format!("start: the relay ended with {status}: {log}"));
                }
                return;
            }
            let is_slow = |(_, ending): &(Duration, Ending)| *ending == Ending::Disk;
            if kernel::now() > deadline && self.ending.iter().any(is_slow) {
                // Its reads were slow, but no longer are.
                self.wait_until(kernel::now());
                deadline = kernel::now() + PATIENCE;
            }
            if kernel::now() > deadline {
                self.faults.push(format!("start: the relay is not up after {PATIENCE:?}"));
                return;
            }
        }
        self.book.settled();
    }

    fn write_config(&self) {
        let witness = self.witness.as_ref().filter(|_| self.setup.has_evidence);
        let text =
            self.setup.toml(self.consumers) + &witness.map(Witness::toml).unwrap_or_default();
        fs::write("config.new", text).expect("a writable directory");
        fs::rename("config.new", "config.toml").expect("a writable directory");
    }

    /// Returns `true` if another life can be started.
    fn has_life(&self) -> bool {
        // The remaining copies are for the end of the seed.
        self.libraries.len() > 3
    }

    /// Returns the relay's metrics, if it responds.
    pub(crate) fn metrics(&mut self) -> Option<Metrics> {
        self.ask(Moment::Any)
    }

    /// Returns the relay's metrics, if it responds. Reads `/status` if the moment is not `Any`.
    pub(crate) fn ask(&mut self, moment: Moment) -> Option<Metrics> {
        let asked = kernel::now();
        let metrics = Metrics::parse(&page("/metrics")?);
        let status = (moment != Moment::Any).then(|| page("/status")).flatten();
        let status: Option<Status> = status
            .map(|status| serde_json::from_str(&status).expect("the status as it is documented"));
        if let Some(Status { verdict, .. }) = &status {
            kernel::trace(format_args!("{moment:?}: the relay says {verdict:?}"));
        }
        let (started, answered) = (self.started.get(), kernel::now());
        let said = Said { started, asked, answered, moment, metrics: metrics.clone(), status };
        self.said.push(said);
        Some(metrics)
    }

    /// Takes a consumer away, and asks once this has lasted so long that the relay must report it.
    /// It takes no `tcp` or `syslog` consumer, whose kernel acknowledges bytes that nobody reads.
    pub(crate) fn take_away(&mut self, rng: &mut fastrand::Rng) {
        let is_known = |output: &&Output| {
            !matches!(self.consumers[output.consumer].kind, Kind::Tcp | Kind::Syslog)
        };
        let outputs: Vec<_> = self.setup.outputs.iter().filter(is_known).collect();
        let Some(consumer) = rng.choice(outputs).map(|output| output.consumer) else { return };
        let (since, time) = (kernel::now(), LATE + Duration::from_secs(8));
        self.act(&match rng.u32(..3) {
            0 => Action::Way(consumer, net::Fault::Silent, 2 * time),
            1 => Action::ConsumerHangs(consumer, 2 * time),
            _ => Action::ConsumerAway(consumer, 2 * time),
        });
        self.wait_until(since + time);
        self.ask(Moment::Away(consumer, since));
        self.heal();
    }

    /// Waits until a time. Ends the troubles that end by then.
    pub(crate) fn wait_until(&mut self, time: Duration) {
        loop {
            let next = self.ending.iter().map(|(at, _)| *at).min().unwrap_or(time).min(time);
            if let Some(pause) = next.checked_sub(kernel::now()).filter(|pause| !pause.is_zero()) {
                std::thread::sleep(pause);
            }
            let now = kernel::now();
            let (over, rest) = self.ending.iter().partition(|(at, _)| *at <= now);
            self.ending = rest;
            self.end(over);
            if now >= time {
                return;
            }
        }
    }

    fn end(&self, over: Vec<(Duration, Ending)>) {
        for (_, ending) in over {
            // Another trouble of this type may have begun in the meantime.
            if self.ending.iter().any(|(_, other)| *other == ending) {
                continue;
            }
            match ending {
                Ending::Way(consumer) => self.fault(consumer, net::Fault::None),
                Ending::Away(consumer) => self.consumers[consumer].start_again(),
                Ending::Hangs(consumer) => self.consumers[consumer].pause(false),
                Ending::Disk => disk::set(disk::Faults::default()),
                Ending::Steady(consumer) => self.consumers[consumer].answers(None),
                Ending::Calm(consumer) => self.consumers[consumer].calm(false),
                Ending::Witness => self.trouble_witness(net::Fault::None, None),
            }
        }
    }

    fn fault(&self, consumer: usize, fault: net::Fault) {
        for address in self.consumers[consumer].addresses() {
            net::fault(address, fault);
        }
        if fault == net::Fault::None {
            self.consumers[consumer].recovers();
        }
    }

    /// Ends all troubles.
    pub(crate) fn heal(&mut self) {
        let over = std::mem::take(&mut self.ending);
        self.end(over);
        for consumer in self.consumers {
            consumer.calm(true);
        }
        if self.process.is_none() {
            self.start();
        }
    }

    /// Performs an action.
    pub(crate) fn act(&mut self, action: &Action) {
        kernel::trace(format_args!("ACTION {action:?}"));
        let now = kernel::now();
        match *action {
            Action::Kill(pause) => self.die(Death::Kill, pause),
            Action::PowerLoss(pause) => self.die(Death::PowerLoss, pause),
            Action::Restart => self.restart(Why::Signal),
            Action::Impatient => self.restart(Why::TwoSignals),
            Action::Reload(ref change) => self.reload(change),
            Action::Way(consumer, fault, time) => {
                self.consumers[consumer].dies();
                self.fault(consumer, fault);
                self.ending.push((now + time, Ending::Way(consumer)));
            }
            Action::Door(consumer, is_second, fault, time) => {
                self.consumers[consumer].dies();
                net::fault(self.consumers[consumer].address(is_second), fault);
                self.ending.push((now + time, Ending::Way(consumer)));
            }
            Action::Reset(consumer) => self.reset(consumer),
            Action::ConsumerRestarts(consumer, crash) => {
                if !self.is_in_trouble(consumer) {
                    self.consumers[consumer].restart(crash);
                }
            }
            Action::ConsumerAway(consumer, time) => {
                if !self.is_in_trouble(consumer) {
                    self.consumers[consumer].stop(true);
                    self.ending.push((now + time, Ending::Away(consumer)));
                }
            }
            Action::ConsumerHangs(consumer, time) => {
                if !self.is_in_trouble(consumer) {
                    self.consumers[consumer].pause(true);
                    self.ending.push((now + time, Ending::Hangs(consumer)));
                }
            }
            Action::DiskFull(time) => {
                self.disk(disk::Faults { no_space: true, ..disk::Faults::default() }, time);
            }
            Action::DiskSlow(sync_time, time) => {
                // A sync waits for earlier syncs.
                let until = self.disk_ends(time) + sync_time;
                self.book.letters_hang(kernel::now(), until);
                if sync_time >= Duration::from_secs(1) {
                    self.disk_slow.push((kernel::now(), until));
                }
                self.disk(disk::Faults { sync_time, ..disk::Faults::default() }, time);
            }
            Action::DiskFails(time) => {
                let faults =
                    disk::Faults { write_error: 0.1, sync_error: 0.1, ..Default::default() };
                self.disk(faults, time);
            }
            Action::DiskReads(read_error, read_time, time) => {
                self.disk(disk::Faults { read_error, read_time, ..Default::default() }, time);
            }
            Action::Stuck => self.stick(),
            Action::UnreadLog => self.read_log_no_more(),
            Action::Damage(what) => self.damage(what),
            Action::Look => self.look(),
            Action::EndBesideRefused => self.end_beside_refused(),
            Action::EvidenceOff(time) => self.evidence_off(time),
            Action::Drain(consumer, outage, when, why) => self.drain(consumer, outage, when, why),
            Action::EndInReload => self.end_in_reload(),
            Action::RefusesAll(consumer, time) => self.refuse_all(consumer, time),
            Action::TakenAddress(moves) => self.take_address(moves),
            Action::WitnessWay(fault, time) => {
                self.trouble_witness(fault, None);
                self.ending.push((now + time, Ending::Witness));
            }
            Action::WitnessAnswers(status, time) => {
                self.trouble_witness(net::Fault::None, Some(status));
                self.ending.push((now + time, Ending::Witness));
            }
            Action::WitnessContradicts(status) => {
                self.witness.iter().for_each(|witness| witness.contradicts_once(status));
            }
            Action::Backup => self.back_up(),
            Action::Restore(back, kills) => self.restore(back, kills),
            Action::Rotate => self.rotate(),
            Action::WrongCertificate(wrong) => self.put_wrong(wrong),
            Action::TooLong(consumer) => self.outlast_too_long(consumer),
            Action::TooLarge(consumer) => self.too_large(consumer),
            Action::Choose(ref choosy) => self.choose(choosy),
            Action::Stage(stage) => self.direct(stage),
        }
    }

    fn reset(&self, consumer: usize) {
        self.consumers[consumer].dies();
        self.consumers[consumer].addresses().into_iter().for_each(net::reset);
        self.consumers[consumer].recovers();
    }

    fn is_in_trouble(&self, consumer: usize) -> bool {
        let is_here = |ending: &Ending| matches!(ending, Ending::Away(it) | Ending::Hangs(it) if *it == consumer);
        self.ending.iter().any(|(_, ending)| is_here(ending))
    }

    fn trouble_witness(&self, fault: net::Fault, status: Option<u16>) {
        if let Some(witness) = &self.witness {
            net::fault(witness.address(), fault);
            witness.answers(status);
        }
    }

    /// Returns when faults of the disk end that begin now, for this time. They last as long as an
    /// earlier trouble of the disk that they replace, if that is longer.
    fn disk_ends(&self, time: Duration) -> Duration {
        let earlier = self.ending.iter().filter(|(_, ending)| *ending == Ending::Disk);
        earlier.map(|(at, _)| *at).fold(kernel::now() + time, Duration::max)
    }

    fn disk(&mut self, faults: disk::Faults, time: Duration) {
        if faults.sync_time.is_zero() {
            self.book.disk_refuses(self.disk_ends(time));
        }
        disk::set(faults);
        if faults.no_space || faults.write_error > 0.0 {
            self.disk_refused.get_or_insert(kernel::now());
        }
        self.ending.push((kernel::now() + time, Ending::Disk));
    }

    fn gone(&mut self, process: Process) {
        self.memory
            .push(Memory { most: process.heap_most(), lived: (self.started.get(), kernel::now()) });
        self.log.extend(process.stderr());
        self.process = None;
        self.book.is_dead();
    }

    fn die(&mut self, kind: Death, pause: Duration) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        self.kill(kind);
        self.wait_until(kernel::now() + pause);
        self.start();
    }

    /// Ends the relay without any warning.
    fn kill(&mut self, kind: Death) {
        let Some(process) = self.process else { return };
        let metrics = self.metrics();
        self.book.dies(kind);
        process.kill();
        if let Some(metrics) = metrics {
            self.losses.add_metrics(&metrics);
        }
        if kind == Death::PowerLoss {
            disk::power_loss();
        }
        self.gone(process);
    }

    /// Sends SIGTERM, once or twice, and starts the relay again.
    fn restart(&mut self, why: Why) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        self.stop(why);
        self.start();
    }

    /// Ends the relay.
    pub(crate) fn stop(&mut self, why: Why) {
        let Some(process) = self.process else { return };
        let metrics = self.metrics();
        let is_hurried = why == Why::TwoSignals;
        self.book.dies(if is_hurried { Death::Hurried } else { Death::Drain });
        match why {
            Why::Signal => process.signal(libc::SIGTERM),
            Why::TwoSignals => {
                process.signal(libc::SIGTERM);
                std::thread::sleep(Duration::from_millis(300));
                process.signal(libc::SIGTERM);
            }
            Why::Stdout => process.close_stdout(),
        }
        let limit = Duration::from_secs(self.setup.drain) + PATIENCE;
        let status = process.wait(limit);
        match status {
            Some(0) => {}
            Some(status) => {
                let is_trouble = self.ending.iter().any(|(_, ending)| *ending == Ending::Disk);
                if !is_trouble && why == Why::Signal && self.setup.on_disk {
                    self.faults.push(format!("end: the relay ended with {status} after SIGTERM"));
                }
            }
            None => {
                self.faults.push(format!("end: the relay still runs {limit:?} after SIGTERM"));
                process.kill();
            }
        }
        let said = process.stderr();
        if !self.losses.add_last_line(&String::from_utf8_lossy(&said))
            && let Some(metrics) = metrics
        {
            self.losses.add_metrics(&metrics);
            if status == Some(1) && process.is_unread() {
                self.book.is_unseen();
            }
        }
        if why == Why::Stdout {
            self.look_at_stdout(process);
        }
        self.gone(process);
    }

    fn has_refused_a_config(&mut self) -> bool {
        let result = [("result", "error")];
        self.metrics().is_some_and(|metrics| metrics.count("config_reload_total", &result) > 0)
    }

    fn reload(&mut self, change: &Change) {
        let Some(process) = self.process else { return };
        let before = process.stderr().len();
        let old = self.setup.clone();
        let is_wrong = matches!(change, Change::Wrong);
        self.setup.change(change, self.consumers.len() - 1);
        if is_wrong {
            let text = self.setup.toml(self.consumers) + "\nwrong = true\n";
            fs::write("config.toml", text).expect("a writable directory");
        } else {
            self.book.config(self.setup.known(self.consumers, &self.leaving));
            self.write_config();
        }
        process.signal(libc::SIGHUP);
        let deadline = kernel::now() + RELOAD;
        let said = loop {
            let log = process.stderr();
            let log = String::from_utf8_lossy(log.get(before..).unwrap_or_default()).into_owned();
            if log.contains("config reloaded") {
                break Some(true);
            }
            if log.contains("config not reloaded") {
                break Some(false);
            }
            if kernel::now() > deadline {
                break None;
            }
            let next = kernel::now() + Duration::from_millis(100);
            self.wait_until(next);
        };
        match said {
            Some(true) if !is_wrong => {
                self.book.settled();
                self.ask(Moment::Looked);
            }
            Some(true) => self.faults.push("reload: a wrong config was taken".to_owned()),
            Some(false) if is_wrong => {}
            Some(false) => {
                self.book.refused();
                self.setup = old;
            }
            // The config may be applied later.
            None if !is_wrong => {}
            // Nobody reads its log, but its counter shows the refusal.
            None if process.is_unread() && self.has_refused_a_config() => {}
            None => {
                self.faults.push(format!("reload: a wrong config is not refused after {RELOAD:?}"))
            }
        }
        // The next start and the next reload read the correct config.
        self.write_config();
    }
}
