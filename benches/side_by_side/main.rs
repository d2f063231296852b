//! The relay beside the HAProxy that it replaces: both carry the same work, one after the other, in
//! one run of the bench.
//!
//! `cargo bench --bench side_by_side` starts a new proxy for each run, on 127.0.0.1, between a load
//! and a sink in this process. It prints Markdown, with these tables for each work:
//!
//! - **At saturation**: a fixed number of senders, each with one request in progress on a kept
//!   connection, send for a fixed time. The table has the CPU seconds of the proxy's process for
//!   each GB (10⁹ bytes) of request bodies and for each million events, the throughput, the memory,
//!   and the CPU seconds of the load and the sink. Most relays answer before they deliver, so the
//!   senders stay at most 8 MiB ahead of the sink. A run ends when everything has arrived and the
//!   relay's queue is empty.
//! - **Answers at half load**: each request is due at a fixed time. The duration of its answer
//!   counts from then, even if no sender was free. Each proxy gets half of its own rate at
//!   saturation. A relay and its HAProxy also each get half of the rate of the slower one.
//! - **At fixed rates**: the same, but at rates that do not depend on the proxy: 4,000, 20,000 and
//!   100,000 events/s in batches of 400, and 1,000 and 15,000 single events/s. The table has the
//!   CPU time, the durations, and how often the proxy's threads began to wait per request. CPU time
//!   and waits are summed over the proxy's threads, because the kernel counts the CPU time of a
//!   process in steps of 10 ms. That is too coarse for 40 requests.
//!
//! Without options, the bench measures saturation and half load, and takes less than 10 minutes.
//! `--only fixed` measures the fixed rates, and takes 5 minutes. `--full` measures all parts.
//!
//! `--page` measures everything that benches/RESULTS.md compares with HAProxy, and prints the
//! tables of that page. It adds the relay with a policy and with redaction
//! (`--mode memory,policy,redact`), and the memory of idle connections (`--only connections`).
//! `--chart FILE` draws the CPU time.
//!
//! In each round, everything that is compared takes its turn. The tables have medians over the
//! rounds, with the least and the greatest value. A ratio to HAProxy is the median of the ratios
//! within each round. A relay that speaks TLS is compared with a HAProxy that speaks TLS on both
//! sides.
//!
//! The HAProxy of the first row passes bytes through, so it cannot send a batch again. An nginx and
//! a HAProxy that read the whole body first could do so. They are measured beside the relay from
//! HTTP to HTTP with the queue in memory. Two floors show how much of the CPU time is the relay's
//! own: in memory, a loop of read and write; on disk, HAProxy and a thread that writes and syncs as
//! many bytes as the relay (`floor.rs`).
//!
//! The routes after the first four are measured only at saturation, with the queue in memory, if
//! `--page`, `--full` or `--output` asks for them. With `--full` they carry every work, otherwise
//! only metadata. The load sends the same bytes to a relay and to its HAProxy, which passes them on
//! unchanged. So the HAProxy beside `http → http gzip` passes plain bodies on, and the one beside
//! `http gzip → http` gzip bodies. In every row, a GB is one of uncompressed bodies.
//!
//! The consumer of the Kafka route is librdkafka's mock cluster, in this process. The route needs
//! `cargo bench --features kafka --bench side_by_side`. Without the feature, a line says that it is
//! left out.
//!
//! CPU seconds are reliable even on a shared machine. Throughput and times are not.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "threads, real clocks and blocking sockets: the runtime is in the process measured"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench prints, and panics where it cannot go on"
)]

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};

mod aims;
mod chart;
#[path = "../common/disk.rs"]
mod disk;
#[path = "../common/figures.rs"]
mod figures;
mod fixed;
mod floor;
mod idle;
#[path = "../common/interrupt.rs"]
mod interrupt;
#[path = "../common/load.rs"]
mod load;
mod page;
#[path = "../common/policy.rs"]
mod policy;
#[path = "../common/process.rs"]
mod process;
mod proxy;
#[path = "../common/relay.rs"]
mod relay;
mod report;
mod run;
#[path = "../common/sink.rs"]
mod sink;
mod tls;
#[path = "../common/work.rs"]
mod work;

use aims::Measured;
use fixed::FixedRates;
use idle::Idle;
use proxy::{Buffering, Form, Mode, Route, Through};
use report::{Answers, Detail, Throughput};
use tls::Tls;
use work::Work;

/// Compares the relay with HAProxy on the same work
#[derive(Parser)]
struct Arguments {
    /// Rounds; in each, every proxy takes its turn
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only works whose name contains this: metadata, responses, generated, single
    #[arg(long, default_value = "")]
    work: String,
    /// Only these routes through the relay; the default is the first four
    #[arg(long, value_delimiter = ',')]
    output: Vec<Route>,
    /// Only these modes of the relay; the default is all but no-volume, policy and redact
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Only these parts; the default is saturation and half-load
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seconds of a run at a fixed rate; a run takes longer if it would have fewer than 40 requests
    #[arg(long, default_value_t = 2.0)]
    fixed_seconds: f64,
    /// All parts, with every route and every work: 35 minutes; other options can restrict it
    #[arg(long)]
    full: bool,
    /// Everything that benches/RESULTS.md compares with HAProxy, as its tables: 7 minutes a round
    #[arg(long, conflicts_with_all = ["full", "only"])]
    page: bool,
    /// Draws the CPU time as a chart in SVG, in this file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Parallel connections of the load
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// The same if an answer takes the replay window: tcp, syslog and tls lines, with `delivered`
    #[arg(long, default_value_t = 384)]
    waiting_senders: usize,
    /// replay_window of the tcp and syslog outputs, in milliseconds
    #[arg(long, default_value_t = 100)]
    replay_window: u32,
    /// Directory for the queue on disk; not on tmpfs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// The HAProxy to compare with
    #[arg(long, default_value_os_t = proxy::program("haproxy"))]
    haproxy: PathBuf,
    /// The relay's binary; the default is the one built for this bench
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: PathBuf,
    /// Only `cargo bench` sets this
    #[arg(long, hide = true)]
    bench: bool,
    /// `false` if Kafka is wanted, but the bench or the relay was built without it.
    #[arg(skip = true)]
    kafka: bool,
}

/// A part of the measurement.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// As many requests as the proxy takes
    Saturation,
    /// Half of the requests that the proxy took at saturation, which is measured first
    HalfLoad,
    /// Rates that do not depend on the proxy
    Fixed,
    /// The memory of idle connections
    Connections,
}

/// The runs of one work. Without `--full`, its functions choose the routes and modes, so that the
/// bench takes less than 10 minutes.
struct Plan {
    work: Work,
    saturated: fn(Route, Mode) -> bool,
    /// The runs at half load. Each of them is also a run at saturation.
    paced: fn(Route, Mode) -> bool,
    /// The runs at each of `rates`, in events per second. `--full` adds none.
    fixed: fn(Route, Mode) -> bool,
    rates: &'static [u32],
}

impl Plan {
    /// Returns the plans of the four works. With `page`, two of them have fewer runs.
    fn all(page: bool) -> [Self; 4] {
        let (all, none) = (|_, _| true, |_, _| false);
        let most = |route, mode: Mode| {
            let streams = matches!(route, Route::Tcp | Route::Syslog | Route::Tls);
            route == Route::Http && !mode.filters() || streams && mode == Mode::Memory
        };
        let few = |route, mode| {
            matches!((route, mode), (Route::Http, Mode::Memory | Mode::Disk))
                || matches!((route, mode), (Route::Tcp | Route::Syslog | Route::Tls, Mode::Memory))
        };
        let plain = |route, mode: Mode| {
            matches!((route, mode), (Route::Http | Route::Tcp, Mode::Memory | Mode::Disk))
                || matches!((route, mode), (Route::Http, Mode::Evidence | Mode::NoVolume))
                || mode.filters()
        };
        let others: fn(Route, Mode) -> bool = if page { few } else { most };
        let first = |route, mode| (route, mode) == (Route::Http, Mode::Memory);
        let plan =
            |work, saturated, paced| Self { work, saturated, paced, fixed: none, rates: &[] };
        [
            Self {
                fixed: plain,
                rates: &[4_000, 20_000, 100_000],
                ..plan(Work::metadata(), all, most)
            },
            plan(Work::responses(), others, none),
            plan(Work::generated(), others, none),
            Self { fixed: first, rates: &[1_000, 15_000], ..plan(Work::single(), most, most) },
        ]
    }

    fn runs(&self, part: Part) -> fn(Route, Mode) -> bool {
        match part {
            Part::Saturation => self.saturated,
            Part::HalfLoad => self.paced,
            Part::Fixed => self.fixed,
            Part::Connections => |_, _| false,
        }
    }
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        if self.only.is_empty() {
            self.full || self.page || matches!(part, Part::Saturation | Part::HalfLoad)
        } else {
            self.only.contains(&part)
        }
    }

    /// Returns `true` if the options ask for this route and this mode.
    fn has(&self, route: Route, mode: Mode) -> bool {
        let usual = mode != Mode::NoVolume && (!mode.filters() || self.page);
        let has_mode = if self.mode.is_empty() { usual } else { self.mode.contains(&mode) };
        has_mode && (self.output.is_empty() || self.output.contains(&route))
    }

    /// Returns the runs of a part, in their order. Each HAProxy comes before the first relay that
    /// is compared with it.
    fn choose(&self, plan: &Plan, part: Part) -> Vec<Through> {
        let (planned, full) = (plan.runs(part), self.full && part != Part::Fixed);
        let mut chosen = Vec::new();
        if !self.wants(part) {
            return chosen;
        }
        for mode in Mode::value_variants() {
            for route in Route::value_variants() {
                let possible = !route.is_further()
                    || part == Part::Saturation
                        && *mode == Mode::Memory
                        && (self.kafka || *route != Route::Kafka);
                // Evidence costs the same for every output. A filter must change all bodies of a
                // work by the same number of bytes, so the plan chooses its works.
                let possible = possible
                    && (*mode != Mode::Evidence || matches!(route, Route::Http | Route::Tcp))
                    && (!mode.filters() || *route == Route::Http);
                let wanted = possible && self.has(*route, *mode);
                let named = !route.is_further() || self.output.contains(route) || self.page;
                if !wanted || !(full && !mode.filters() || named && planned(*route, *mode)) {
                    continue;
                }
                let relay = Through::Relay(*route, *mode);
                if !chosen.contains(&relay.haproxy()) {
                    chosen.push(relay.haproxy());
                }
                chosen.push(relay);
                if relay == Through::Relay(Route::Http, Mode::Memory) {
                    let buffering = [Buffering::Nginx, Buffering::Haproxy];
                    chosen.extend(buffering.map(Through::Buffering));
                    chosen.push(Through::Loop);
                }
                if relay == Through::Relay(Route::Http, Mode::Disk) && part != Part::HalfLoad {
                    chosen.push(Through::Floor);
                }
            }
        }
        chosen
    }
}

fn main() {
    if floor::run_if_asked() {
        return;
    }
    let mut arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing measured: run it by `cargo bench --bench side_by_side`");
        return;
    }
    interrupt::watch();
    // This process has two sockets for each connection. The relay raises its own limit too.
    ::process::raise_open_files().expect("a limit that can be raised");
    let begun = Instant::now();
    print!("{}", report::conditions(&arguments));
    println!("- load average before: {}", figures::load_average());
    let mut plans = Vec::from(Plan::all(arguments.page));
    plans.retain(|plan| plan.work.name.contains(&arguments.work));
    let kafka = Through::Relay(Route::Kafka, Mode::Memory);
    let chosen = |plan| arguments.choose(plan, Part::Saturation);
    if plans.iter().any(|plan| chosen(plan).contains(&kafka))
        && let Some(what) = proxy::without_kafka(&arguments.relay)
    {
        println!(
            "- {} is left out, because {what} was built without Kafka; \
             `cargo bench --features kafka --bench side_by_side` has it",
            kafka.name()
        );
        arguments.kafka = false;
    }
    let tls = Tls::new();
    let measured: Vec<Measured> =
        plans.into_iter().map(|plan| measure(plan, &tls, &arguments)).collect();
    let idle = keep(&tls, &arguments);
    let load = figures::load_average();
    let ended = format!("- load average after: {load}\n- {} s in all", begun.elapsed().as_secs());
    if arguments.page {
        println!("{ended}\n- {} requests were refused", page::refused(&measured));
        print!("{}", page::page(&measured, &idle, arguments.replay_window));
    } else {
        print!("{}", idle.table());
        print!("\n### In short\n\n{}", aims::in_short(&measured, &idle));
        println!("\n{ended}");
    }
    if let Some(file) = &arguments.chart {
        let written = std::fs::write(file, chart::svg(&measured, &arguments));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// Measures all parts of a plan. Each table is printed as soon as it is measured, so that an
/// interrupted run has shown it. With `--page`, these tables go to stderr.
fn measure(plan: Plan, tls: &Tls, arguments: &Arguments) -> Measured {
    let show = |text: &str| if arguments.page { eprint!("{text}") } else { print!("{text}") };
    let [mut saturated, paced, fixed] =
        [Part::Saturation, Part::HalfLoad, Part::Fixed].map(|part| arguments.choose(&plan, part));
    if !arguments.wants(Part::Saturation) {
        saturated.clone_from(&paced);
    }
    let mut throughput = saturate(plan.work, &saturated, tls, arguments);
    throughput.complete_floor();
    show(&throughput.table(arguments));
    let answers = pace(&throughput, &paced, tls, arguments);
    show(&answers.table(throughput.work.name, Detail::All));
    let mut fixed = hold(&throughput.work, &fixed, plan.rates, tls, arguments);
    fixed.complete_floor();
    show(&fixed.tables(&throughput.work, Detail::All));
    let measured = Measured { throughput, answers, fixed };
    show(&page::filters(&measured));
    measured
}

/// Measures the memory of idle connections if the options ask for it.
fn keep(tls: &Tls, arguments: &Arguments) -> Idle {
    let work = Work::metadata();
    let wants = |through: Through| {
        let mut relays = idle::THROUGHS
            .into_iter()
            .filter(|it| matches!(it, Through::Relay(route, mode) if arguments.has(*route, *mode)));
        relays.any(|relay| through == relay || through == relay.haproxy())
    };
    let mut idle = Idle { work: work.name, rows: Vec::new() };
    if arguments.wants(Part::Connections) && work.name.contains(&arguments.work) {
        let throughs = idle::THROUGHS.into_iter().filter(|through| wants(*through));
        idle.rows = throughs.map(|through| idle::Row { through, samples: Vec::new() }).collect();
    }
    for round in 1..=arguments.pairs {
        for row in &mut idle.rows {
            let name = row.through.name();
            eprintln!("idle connections, {round}/{}, {name}", arguments.pairs);
            row.samples.push(run::keep(&work, row.through, tls, arguments));
        }
    }
    idle
}

fn saturate(work: Work, throughs: &[Through], tls: &Tls, arguments: &Arguments) -> Throughput {
    let mut throughput = Throughput::new(work, throughs);
    let plain = &throughput.work;
    let compressed = |through: &Through| through.form() == Form::Gzip;
    let gzipped = throughs.iter().any(compressed).then(|| plain.gzipped());
    for round in 1..=arguments.pairs {
        for row in &mut throughput.rows {
            eprintln!("{}, {round}/{}, {}", plain.name, arguments.pairs, row.through.name());
            let work = gzipped.as_ref().filter(|_| compressed(&row.through)).unwrap_or(plain);
            row.samples.push(run::saturate(work, row.through, tls, arguments));
        }
    }
    throughput
}

fn pace(
    throughput: &Throughput,
    throughs: &[Through],
    tls: &Tls,
    arguments: &Arguments,
) -> Answers {
    let (work, mut answers) = (&throughput.work, Answers::new(throughput, throughs));
    let rows: Vec<_> = answers.rows.iter().map(|row| (row.through, row.rate)).collect();
    let run = |through, rates: &[f64]| run::pace(work, through, rates, tls, arguments);
    let samples = take_turns(work, &rows, arguments, run);
    answers.rows.iter_mut().zip(samples).for_each(|(row, samples)| row.samples = samples);
    answers
}

fn hold(
    work: &Work,
    throughs: &[Through],
    rates: &[u32],
    tls: &Tls,
    arguments: &Arguments,
) -> FixedRates {
    let mut fixed = FixedRates::new(throughs, rates);
    let rate = |events: u32| f64::from(events) / work.events as f64;
    let rows: Vec<_> = fixed.rows.iter().map(|row| (row.through, rate(row.events))).collect();
    let run = |through, rates: &[f64]| run::hold(work, through, rates, tls, arguments);
    let samples = take_turns(work, &rows, arguments, run);
    fixed.rows.iter_mut().zip(samples).for_each(|(row, samples)| row.samples = samples);
    fixed
}

/// In each round, runs each proxy once, at all its rates in turn. Each of `rows` is a proxy and a
/// rate in requests per second, and the rows of a proxy are adjacent. Returns the samples of each
/// row.
fn take_turns<S>(
    work: &Work,
    rows: &[(Through, f64)],
    arguments: &Arguments,
    run: impl Fn(Through, &[f64]) -> Vec<S>,
) -> Vec<Vec<S>> {
    let mut samples: Vec<Vec<S>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 1..=arguments.pairs {
        let mut columns = samples.iter_mut();
        for rows in rows.chunk_by(|one, other| one.0 == other.0) {
            let (through, rates) = (rows[0].0, rows.iter().map(|row| row.1).collect::<Vec<_>>());
            let (name, rounds) = (through.name(), arguments.pairs);
            eprintln!("{}, {round}/{rounds}, {name}, {rates:.1?}/s", work.name);
            for (sample, samples) in run(through, &rates).into_iter().zip(columns.by_ref()) {
                samples.push(sample);
            }
        }
    }
    samples
}
