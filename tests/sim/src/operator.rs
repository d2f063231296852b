//! The operator: starts and ends the relay, edits its config, and lets the troubles of the plan
//! happen.

mod back;
mod outer;
mod scenes;
mod staged;

pub(crate) use back::Restored;
pub(crate) use outer::APPLIES;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::consumers::{Consumer, Kind, Steady};
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

/// How long a reload may take: it waits 30 s for an address, and for files.
const RELOAD: Duration = Duration::from_secs(45);

/// How long a relay may take to its end after its drain, or to its start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The operator with what it works on.
pub(crate) struct Operator<'a> {
    pub(crate) book: Book,
    pub(crate) consumers: &'a [Consumer],
    pub(crate) setup: Setup,
    /// The names of the outputs that leave the config at some time.
    pub(crate) leaving: Vec<String>,
    /// The copies of the relay's library that no life has used.
    libraries: Vec<PathBuf>,
    process: Option<Process>,
    /// Troubles that end by themselves, with the times at which they end.
    ending: Vec<(Duration, Ending)>,
    pub(crate) faults: Vec<String>,
    pub(crate) losses: Losses,
    /// The time from which on events may be without evidence: the disk has refused writes, or a
    /// small queue has needed their room.
    pub(crate) disk_refused: Option<Duration>,
    /// The times in which each sync took a second or more. The evidence is written late then, and a
    /// queue that is full may drop events before.
    pub(crate) disk_slow: Vec<(Duration, Duration)>,
    /// A time in which the config had no evidence.
    pub(crate) evidence_was_off: Option<(Duration, Duration)>,
    /// The witness of the evidence log.
    pub(crate) witness: Option<Witness>,
    /// The time at which the copy of the queue's directory was made, if there is one.
    copied: Option<Duration>,
    pub(crate) restored: Option<Restored>,
    /// The log of all lives.
    pub(crate) log: Vec<u8>,
    /// The time at which the present life began.
    pub(crate) started: Begin,
    /// What the relay has said of itself.
    pub(crate) said: Vec<Said>,
    /// What each life has needed.
    pub(crate) memory: Vec<Memory>,
    /// The number of batches that the operator has sent.
    batches: u32,
    /// The certificates, if anything has TLS.
    pub(crate) pki: Option<Pki>,
}

/// The end of a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Way(usize),
    Away(usize),
    Hangs(usize),
    Disk,
    /// A store answers again as its seed decides.
    Steady(usize),
    /// A consumer may be in trouble again.
    Calm(usize),
    Witness,
}

/// Returns a page of the relay's admin address, if it answers.
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

    /// Returns true if the program can be started so many times more.
    pub(crate) fn has_libraries(&self, count: usize) -> bool {
        self.libraries.len() >= count
    }

    /// Runs a command of the program to its end. Returns its exit status and what it printed.
    pub(crate) fn command(&mut self, arguments: &[&str]) -> (Option<i32>, String) {
        let Some(library) = self.libraries.pop() else { return (None, String::new()) };
        let process = Process::start(&library, arguments);
        let status = process.wait(Duration::from_secs(600));
        let said = [process.stdout(), process.stderr()].concat();
        (status, String::from_utf8_lossy(&said).into_owned())
    }

    /// Starts the relay with the newest config, and waits until it is there.
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
                // It is refused while the disk is in trouble, and started again as a pod is.
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
                // Its reads were slow, and are not any more.
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

    /// True if a life can still be started.
    fn has_life(&self) -> bool {
        // Two are for the commands at the end.
        self.libraries.len() > 3
    }

    /// Returns the relay's metrics, if it answers.
    pub(crate) fn metrics(&mut self) -> Option<Metrics> {
        self.ask(Moment::Any)
    }

    /// Returns the relay's metrics, if it answers. At a moment that the rules know, its status is
    /// asked as well.
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

    /// Asks while the consumer of an output has been away for so long that the relay has to say so.
    /// A consumer of lines or syslog is none: its kernel acknowledges what nobody reads.
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

    /// Waits until a time, and ends the troubles that end meanwhile.
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
            // Another trouble of the same kind may have come meanwhile.
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

    /// Lets something happen.
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
            Action::Reset(consumer) => {
                self.consumers[consumer].dies();
                for address in self.consumers[consumer].addresses() {
                    net::reset(address);
                }
            }
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
                // A sync waits for those before it.
                let until = kernel::now() + time + sync_time;
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
            Action::RefusesAll(consumer, time) => self.answer(consumer, Steady::Refuses, time),
            Action::Answers(consumer, how, time) => self.answer(consumer, how, time),
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
            Action::Stage(stage) => self.direct(stage),
        }
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

    fn disk(&mut self, faults: disk::Faults, time: Duration) {
        if faults.sync_time.is_zero() {
            self.book.disk_refuses(kernel::now() + time);
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

    /// Ends the relay without its knowledge.
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

    /// SIGTERM, perhaps twice, and another start.
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
        self.book.dies(Death::Drain);
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
            // It may be taken later.
            None if !is_wrong => {}
            // Its log says nothing, and its counter does.
            None if process.is_unread() && self.has_refused_a_config() => {}
            None => {
                self.faults.push(format!("reload: a wrong config is not refused after {RELOAD:?}"))
            }
        }
        // The next start, and the next reload, take the config that is meant.
        self.write_config();
    }
}
