//! The cost of a batch behind a backlog of some size, and the time that a start then takes.
//!
//! There is one relay for each size, and all of them run at once. In each round, each relay takes
//! its turn. The consumer accepts exactly as many bytes as are sent, so it receives bytes that were
//! sent a whole backlog earlier.

use std::path::PathBuf;

use crate::Arguments;
use crate::disk::{Disk, drop_cached};
use crate::figures::spread;
use crate::load::{Load, Outcome, Until};
use crate::relay::Relay;
use crate::sink::{Sink, Wire};
use crate::work::Work;

const SENDERS: usize = 8;

/// The most bytes by which a backlog may exceed its nominal size.
const AHEAD_MAX: u64 = 1 << 20;

/// The requests before each measurement. They use up the events that were in memory when the cache
/// was dropped.
const WARM_UP: u64 = 100;

/// The requests before each start. They fill about half of a segment.
const BETWEEN_STARTS: u64 = 100;

/// A relay with its backlog.
struct Backlog<'a> {
    work: &'a Work,
    mebibytes: u64,
    /// The directory of the queue, or `None` for a queue in memory.
    directory: Option<PathBuf>,
    filled: Outcome,
    rounds: Vec<Round>,
    /// The resident memory after the last round, and its peak, in MiB.
    memory: (f64, f64),
    starts: Vec<f64>,
    // The order of these fields matters: the sink's threads end when the connections do.
    relay: Option<Relay>,
    sink: Sink,
}

struct Round {
    /// The backlog at the end of the round, in MiB.
    backlog: f64,
    cpu: f64,
    writer_cpu: f64,
    load: Outcome,
}

/// Returns the table of queues on disk, with a row for each size.
pub(crate) fn on_disk(disk: &Disk, arguments: &Arguments) -> String {
    let (sizes, text) = fitting(disk, &arguments.backlogs);
    text + &table(Some(disk), &sizes, arguments)
}

/// Returns the same table for queues in memory.
pub(crate) fn in_memory(arguments: &Arguments) -> String {
    table(None, &arguments.memory_backlogs, arguments)
}

fn table(disk: Option<&Disk>, sizes: &[u64], arguments: &Arguments) -> String {
    let work = Work::metadata();
    let mut backlogs: Vec<Backlog<'_>> = Vec::new();
    for &mebibytes in sizes {
        eprintln!("filling a backlog of {mebibytes} MiB");
        backlogs.push(Backlog::fill(&work, mebibytes, disk, arguments));
    }
    for round in 1..=arguments.rounds {
        for backlog in &mut backlogs {
            eprintln!("backlog of {} MiB, {round}/{}", backlog.mebibytes, arguments.rounds);
            backlog.pass_through(arguments);
        }
    }
    for backlog in &mut backlogs {
        backlog.look_at_memory();
    }
    for _ in 0..arguments.starts {
        for backlog in &mut backlogs {
            backlog.start_again(arguments);
        }
    }
    let mut text = String::from(
        "\n| backlog | in rounds MiB | CPU s/GB | ÷ first | of it the writer | CPU ms/batch | MB/s | p50 ms | p99 ms \
         | max ms | RSS MiB | RSS peak MiB | start ms | filling MB/s | filling p99 ms |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for backlog in &backlogs {
        text += &backlog.row(&backlogs[0]);
    }
    text
}

/// Returns the sizes that together fit into half of the free disk, and a text about the others.
fn fitting(disk: &Disk, sizes: &[u64]) -> (Vec<u64>, String) {
    let (free, mut fitting, mut text) = (disk.free() >> 20, Vec::new(), String::new());
    for &mebibytes in sizes {
        // The 512 MiB are for the space that is reserved for a segment, and for later requests.
        let needed: u64 = fitting.iter().chain([&mebibytes]).map(|size| size + 512).sum();
        if 2 * needed <= free {
            fitting.push(mebibytes);
        } else {
            text +=
                &format!("\nLeft out: {mebibytes} MiB; only {free} MiB of the disk are free.\n");
        }
    }
    (fitting, text)
}

impl<'a> Backlog<'a> {
    fn fill(work: &'a Work, mebibytes: u64, disk: Option<&Disk>, arguments: &Arguments) -> Self {
        if let Some(disk) = disk {
            disk.settle();
        }
        let directory = disk.map(|disk| disk.path().join(format!("backlog-{mebibytes}")));
        let sink = Sink::start(Wire::Http);
        sink.hold_back(u64::MAX);
        let relay = start(arguments, mebibytes, directory.as_ref(), &sink);
        let load = Load {
            work,
            address: relay.address,
            senders: SENDERS,
            sink: &sink,
            ahead_max: AHEAD_MAX,
        };
        let filled = load.run(Until::Requests(work.requests_of((mebibytes << 20) as f64)));
        Self {
            work,
            mebibytes,
            directory,
            filled,
            rounds: Vec::new(),
            memory: (0.0, 0.0),
            starts: Vec::new(),
            relay: Some(relay),
            sink,
        }
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("it runs")
    }

    /// Sends some bytes while the consumer accepts as many, and measures this round.
    fn pass_through(&mut self, arguments: &Arguments) {
        let (relay, sink) = (self.relay(), &self.sink);
        let load = Load {
            work: self.work,
            address: relay.address,
            senders: SENDERS,
            sink,
            ahead_max: AHEAD_MAX,
        };
        if let Some(directory) = &self.directory {
            drop_cached(directory);
        }
        sink.hold_back(self.mebibytes << 20);
        load.run(Until::Requests(WARM_UP));
        sink.wait();

        let (cpu, writer) = (relay.process.cpu(), relay.process.cpu_of_thread("spool"));
        let requests = self.work.requests_of(arguments.gigabytes * 1e9);
        let load = load.run(Until::Requests(requests));
        sink.wait();
        let cpu = (relay.process.cpu() - cpu).total();
        let writer_cpu = (relay.process.cpu_of_thread("spool") - writer).total();
        let backlog = relay.metrics().of_output("output_backlog_bytes") as f64 / f64::from(1 << 20);
        self.rounds.push(Round { backlog, cpu, writer_cpu, load });
    }

    fn look_at_memory(&mut self) {
        let process = &self.relay().process;
        self.memory = (process.memory("VmRSS:"), process.memory("VmHWM:"));
    }

    /// Sends some requests, kills the relay, and measures its next start, for which no segment is
    /// in the kernel's cache.
    fn start_again(&mut self, arguments: &Arguments) {
        let Some(directory) = self.directory.clone() else { return };
        self.sink.hold_back(u64::MAX);
        let relay = self.relay();
        let load = Load {
            work: self.work,
            address: relay.address,
            senders: SENDERS,
            sink: &self.sink,
            ahead_max: AHEAD_MAX,
        };
        load.run(Until::Requests(BETWEEN_STARTS));
        self.relay = None;
        drop_cached(&directory);
        let relay = start(arguments, self.mebibytes, Some(&directory), &self.sink);
        self.starts.push(relay.until_listening.as_secs_f64() * 1e3);
        self.relay = Some(relay);
    }

    fn row(&self, first: &Self) -> String {
        let over = |value: &dyn Fn(&Round) -> f64, digits| {
            spread(self.rounds.iter().map(value).collect()).show(digits)
        };
        let milliseconds =
            |percent| over(&|round| round.load.percentile(percent).as_secs_f64() * 1e3, 2);
        let bytes = |load: &Outcome| (load.requests * self.work.body.len() as u64) as f64;
        let ratios = self.rounds.iter().zip(&first.rounds).map(|(it, other)| it.cpu / other.cpu);
        let on_disk = |value: &dyn Fn() -> String| {
            self.directory.as_ref().map_or_else(|| "–".to_owned(), |_| value())
        };
        let filled = &self.filled;
        let cells = [
            format!("{} MiB", self.mebibytes),
            over(&|round| round.backlog, 0),
            over(&|round| round.cpu * 1e9 / bytes(&round.load), 2),
            spread(ratios.collect()).show(2),
            on_disk(&|| over(&|round| round.writer_cpu * 1e9 / bytes(&round.load), 2)),
            over(&|round| round.cpu * 1e3 / round.load.requests as f64, 2),
            over(&|round| bytes(&round.load) / 1e6 / round.load.took.as_secs_f64(), 0),
            milliseconds(50),
            milliseconds(99),
            milliseconds(100),
            format!("{:.1}", self.memory.0),
            format!("{:.1}", self.memory.1),
            on_disk(&|| spread(self.starts.clone()).show(0)),
            format!("{:.0}", bytes(filled) / 1e6 / filled.took.as_secs_f64()),
            format!("{:.2}", filled.percentile(99).as_secs_f64() * 1e3),
        ];
        format!("| {} |\n", cells.join(" | "))
    }
}

fn start(arguments: &Arguments, mebibytes: u64, directory: Option<&PathBuf>, sink: &Sink) -> Relay {
    // The queue never becomes full, and a request that the consumer holds back does not time out.
    let mut queue = format!("queue.max_bytes = '{}MiB'", 2 * mebibytes + 1024);
    if let Some(directory) = directory {
        queue += &format!("\nqueue.directory = '{}'", directory.display());
    }
    let output = format!(
        "type = 'http'\nurls = ['http://{}/']\ntimeouts = {{ request = '1h' }}",
        sink.address()
    );
    Relay::start(&arguments.relay, &queue, &output)
}
