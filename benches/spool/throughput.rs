//! The rate and the cost of acknowledged batches: the queue on disk, the raw disk and the queue in
//! memory take turns.

use std::time::Duration;

use crate::Arguments;
use crate::disk::{Disk, Raw};
use crate::figures::spread;
use crate::load::{Load, Until};
use crate::relay::Relay;
use crate::sink::{Sink, Wire};
use crate::work::Work;

/// The most bytes by which the senders may be ahead of the sink. A queue on disk keeps more than
/// that in memory (16 MiB).
const AHEAD_MAX: u64 = 8 << 20;

/// The destination of the batches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Spool,
    /// Raw writes, each with one batch of each sender.
    Raw,
    /// Raw writes, each with as many batches as the spool had per sync in the same round.
    RawGrouped,
    Memory,
}

impl Through {
    /// All of them, in the order of a round.
    const ALL: [Self; 4] = [Self::Spool, Self::Raw, Self::RawGrouped, Self::Memory];

    fn name(self) -> &'static str {
        match self {
            Self::Spool => "relay, files",
            Self::Raw => "raw, all senders' batches in a write",
            Self::RawGrouped => "raw, in groups as the relay's",
            Self::Memory => "relay, memory",
        }
    }
}

/// The results of one run.
struct Sample {
    through: Through,
    /// The size of the request bodies per second, in 10⁶ bytes. Raw writes count the same bodies.
    megabytes_per_second: f64,
    p50: Duration,
    p99: Duration,
    max: Duration,
    syncs_per_second: f64,
    batches_per_sync: f64,
    /// The CPU seconds of the relay's process, or of the thread of the raw writes, for each GB.
    cpu: f64,
    /// The CPU seconds of the relay's writer thread for each GB.
    writer_cpu: f64,
    refused: u64,
}

/// Returns the table, with a row for each work, each number of senders and each [`Through`].
pub(crate) fn table(disk: &Disk, arguments: &Arguments) -> String {
    let mut text = String::from(
        "\n| work | senders | through | MB/s | ÷ raw | p50 ms | p99 ms | max ms | syncs/s | batches/sync \
         | CPU s/GB | of it the writer | ÷ memory | refused |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for work in [Work::metadata(), Work::single()] {
        if !work.name.contains(&arguments.work) {
            continue;
        }
        for &senders in &arguments.senders {
            let rounds: Vec<Vec<Sample>> = (1..=arguments.rounds)
                .map(|round| {
                    eprintln!("{}, {senders} senders, {round}/{}", work.name, arguments.rounds);
                    measure(&work, senders, disk, arguments)
                })
                .collect();
            for through in Through::ALL {
                text += &row(&work, senders, through, &rounds);
            }
        }
    }
    text
}

fn row(work: &Work, senders: usize, through: Through, rounds: &[Vec<Sample>]) -> String {
    let pairs: Vec<(&[Sample], &Sample)> =
        rounds.iter().filter_map(|round| Some((round.as_slice(), find(round, through)?))).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let over = |value: &dyn Fn(&Sample) -> f64, digits| {
        spread(pairs.iter().map(|(_, sample)| value(sample)).collect()).show(digits)
    };
    // Computes the ratios within each round.
    let ratio = |other: Through, value: &dyn Fn(&Sample) -> f64| {
        let ratios = pairs
            .iter()
            .filter_map(|(round, sample)| Some(value(sample) / value(find(round, other)?)));
        spread(ratios.collect()).show(2)
    };
    let milliseconds =
        |value: fn(&Sample) -> Duration| over(&|sample| value(sample).as_secs_f64() * 1e3, 2);
    let (writes, runs) = (through != Through::Memory, through.runs_relay());
    let none = || "–".to_owned();
    let cells = [
        work.name.to_owned(),
        senders.to_string(),
        through.name().to_owned(),
        over(&|it| it.megabytes_per_second, if senders == 1 && work.events == 1 { 1 } else { 0 }),
        if writes { ratio(Through::Raw, &|it| it.megabytes_per_second) } else { none() },
        milliseconds(|it| it.p50),
        milliseconds(|it| it.p99),
        milliseconds(|it| it.max),
        if writes { over(&|it| it.syncs_per_second, 0) } else { none() },
        if writes { over(&|it| it.batches_per_sync, 1) } else { none() },
        over(&|it| it.cpu, 2),
        if through == Through::Spool { over(&|it| it.writer_cpu, 2) } else { none() },
        if runs { ratio(Through::Memory, &|it| it.cpu) } else { none() },
        if runs { pairs.iter().map(|(_, it)| it.refused).sum::<u64>().to_string() } else { none() },
    ];
    format!("| {} |\n", cells.join(" | "))
}

fn find(round: &[Sample], through: Through) -> Option<&Sample> {
    round.iter().find(|sample| sample.through == through)
}

impl Through {
    fn runs_relay(self) -> bool {
        matches!(self, Self::Spool | Self::Memory)
    }
}

fn measure(work: &Work, senders: usize, disk: &Disk, arguments: &Arguments) -> Vec<Sample> {
    let limit = Duration::from_secs_f64(arguments.seconds);
    let raw = |through, batches: usize| {
        Sample::of_raw(through, work, batches, &disk.raw(batches, work.lines(), limit))
    };
    let spool = relayed(Through::Spool, work, senders, disk, arguments);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most senders")]
    let grouped = (spool.batches_per_sync.round() as usize).max(1);
    let mut samples = vec![spool, raw(Through::Raw, senders)];
    if senders > 1 {
        samples.push(raw(Through::RawGrouped, grouped));
    }
    samples.push(relayed(Through::Memory, work, senders, disk, arguments));
    samples
}

impl Sample {
    fn of_raw(through: Through, work: &Work, batches: usize, raw: &Raw) -> Self {
        let seconds = raw.elapsed.as_secs_f64();
        let bytes = raw.writes * (batches * work.body.len()) as u64;
        Self {
            through,
            megabytes_per_second: bytes as f64 / 1e6 / seconds,
            p50: raw.percentile(50),
            p99: raw.percentile(99),
            max: raw.percentile(100),
            syncs_per_second: raw.writes as f64 / seconds,
            batches_per_sync: batches as f64,
            cpu: raw.cpu * 1e9 / bytes as f64,
            writer_cpu: 0.0,
            refused: 0,
        }
    }
}

/// Makes one run: a new sink, a new relay, some requests to warm up, and the work.
fn relayed(
    through: Through,
    work: &Work,
    senders: usize,
    disk: &Disk,
    arguments: &Arguments,
) -> Sample {
    let queue = disk.path().join("queue");
    let sink = Sink::start(Wire::Http);
    let directory = match through {
        Through::Spool => format!("\nqueue.directory = '{}'", queue.display()),
        Through::Memory | Through::Raw | Through::RawGrouped => String::new(),
    };
    let relay = Relay::start(
        &arguments.relay,
        &format!("queue.max_bytes = '2GiB'{directory}"),
        &format!("type = 'http'\nurls = ['http://{}/']", sink.address()),
    );
    let load = Load { work, address: relay.address, senders, sink: &sink, ahead_max: AHEAD_MAX };
    let warm_up = load.run(Until::Requests(8 * senders as u64));
    sink.wait();
    relay.wait_until_empty(warm_up.requests * work.events);

    let syncs = || match through {
        Through::Spool => relay.metrics().series("spool_sync_duration_seconds_count"),
        Through::Memory | Through::Raw | Through::RawGrouped => 0,
    };
    let (syncs_before, cpu_before) = (syncs(), relay.process.cpu());
    let writer_before = relay.process.cpu_of_thread("spool");
    let load = load.run(Until::Over(Duration::from_secs_f64(arguments.seconds)));
    sink.wait();
    relay.wait_until_empty((warm_up.requests + load.requests) * work.events);
    let syncs = syncs() - syncs_before;
    let cpu = relay.process.cpu() - cpu_before;
    let writer = relay.process.cpu_of_thread("spool") - writer_before;
    drop(relay);
    if through == Through::Spool {
        std::fs::remove_dir_all(&queue).expect("our own directory");
        disk.settle();
    }
    let gigabytes = (load.requests * work.body.len() as u64) as f64 / 1e9;
    let seconds = load.took.as_secs_f64();
    Sample {
        through,
        megabytes_per_second: gigabytes * 1e3 / seconds,
        p50: load.percentile(50),
        p99: load.percentile(99),
        max: load.percentile(100),
        syncs_per_second: syncs as f64 / seconds,
        batches_per_sync: load.requests as f64 / syncs as f64,
        cpu: cpu.total() / gigabytes,
        writer_cpu: writer.total() / gigabytes,
        refused: load.refused,
    }
}
