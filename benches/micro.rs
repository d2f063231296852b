//! The cost of single parts: the queue in memory, the encoding for syslog, filters, compression,
//! the queue on disk, and its start.
//!
//! Run it with `cargo bench --bench micro`. After `--`, part of a name selects benches, `filters`
//! the tables of filters, and `compression` those of compression. Time is the CPU time of this
//! process, with all its threads and the kernel's work for them. Other work of the machine and the
//! speed of its disk do not count. `cargo bench --bench spool` measures how long a batch waits for
//! the disk, and `cargo bench --bench decode` measures decoding.
//!
//! Files are below the directory that `SPOOL_BENCH_DIRECTORY` names, or otherwise below target/.

#![allow(clippy::print_stdout, reason = "tables are printed")]
#![allow(clippy::unwrap_used, reason = "a bench panics where it cannot go on")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base::position::Position;
use config::Config;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput};
use delivery::filter::{EventView, Filter, Rules};
use outputs::Encode as _;
use outputs::syslog::{Messages, Settings};
use queue::{Append, Batch, Cursor, Disposition, Output, Queue, Take};
use rustix::time::ClockId;
use telemetry::Telemetry;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use transform::policy::Policy;

#[path = "common/compression.rs"]
mod compression;
#[path = "common/figures.rs"]
mod figures;
#[path = "common/policy.rs"]
mod policy;
#[path = "common/work.rs"]
mod work;

use figures::spread;
use work::{Work, body_of};

/// The relay's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The default of `output.batch`.
const TAKE: Take = Take { bytes: 4 << 20, events: 5000 };

const MIB: u64 = 1 << 20;

/// A clock of the CPU time of this process.
struct CpuTime;

impl CpuTime {
    fn now() -> Duration {
        let now = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(now).expect("it runs forwards from 0")
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, start: Duration) -> Duration {
        Self::now() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(50)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if only.as_ref().is_none_or(|only| only == "filters") {
        filters();
    }
    if only.is_none_or(|only| only == "compression") {
        compression::compression();
    }
    memory(&mut criterion);
    syslog(&mut criterion);
    spool(&mut criterion);
    recovery(&mut criterion);
    criterion.final_summary();
}

/// Decodes a body of the work into a batch that can be appended to a queue.
fn batch_of(work: &Work) -> Append {
    let batch = audit::decode(work.body.clone()).expect("an EventList");
    Append { lines: batch.lines, events: batch.events, levels: batch.levels, list: None }
}

fn single() -> Append {
    batch_of(&Work::single())
}

fn batch() -> Append {
    batch_of(&Work::metadata())
}

fn config(queue: &str, output: &str) -> Config {
    let text = format!(
        "{queue}\n[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'output'\n{output}\n"
    );
    config::read(&text, outputs::TYPES)
        .config
        .unwrap_or_else(|| panic!("a valid config, not {text}"))
}

static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(Telemetry::new);

fn output(name: String) -> Output {
    let metrics = TELEMETRY.output(&name);
    Output { name, required: true, recorder: None, metrics }
}

/// The config and the outputs with which a queue is opened.
struct Closed {
    config: config::Queue,
    outputs: Vec<Output>,
    runtime: Runtime,
}

impl Closed {
    fn new(queue: &str, outputs: usize) -> Self {
        let names = (0..outputs).map(|index| format!("output-{index}"));
        Self {
            config: config(queue, "type = 'stdout'").queue,
            outputs: names.map(output).collect(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
        }
    }

    fn open(self) -> Open {
        let (queue, cursors) = Queue::open(&self.config, &TELEMETRY, &self.outputs).unwrap();
        Open { queue, cursors, runtime: self.runtime }
    }
}

/// An open queue, and the cursors of its outputs.
struct Open {
    queue: Queue,
    cursors: Vec<Cursor>,
    runtime: Runtime,
}

impl Open {
    /// Appends a batch `times` times, and waits until each of them is acknowledged.
    fn append(&self, batch: &Append, times: usize) {
        let append = |_| self.queue.append(batch.clone()).expect("room");
        let mut tickets: Vec<_> = (0..times).map(append).collect();
        self.runtime.block_on(async {
            for ticket in &mut tickets {
                ticket.acknowledged().await.unwrap();
            }
        });
    }

    /// Claims and finishes this many events for each output.
    fn read(&mut self, events: u64) {
        for cursor in &mut self.cursors {
            let mut left = events;
            while left > 0 {
                match cursor.next(Take { events: left, ..TAKE }) {
                    None => self.runtime.block_on(cursor.readable()),
                    Some(claimed) => {
                        cursor.acknowledge(claimed.claim, Disposition::default());
                        left -= black_box(claimed).events;
                    }
                }
            }
        }
    }

    /// Appends a batch `times` times, and finishes its events for each output.
    fn pass(&mut self, batch: &Append, times: usize) {
        self.append(batch, times);
        self.read(batch.events * times as u64);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.runtime.block_on(self.queue.close());
    }
}

fn memory(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("queue in memory, append and read");
    for (name, batch, times, outputs) in [
        ("batch of 400 events", batch(), 1, 1),
        ("batch of 400 events, 8 outputs", batch(), 1, 8),
        ("400 single events, read at once", single(), 400, 1),
    ] {
        let mut open = Closed::new("", outputs).open();
        pass(&mut group, name, &mut open, &batch, times);
    }
}

fn pass(
    group: &mut BenchmarkGroup<'_, CpuTime>,
    name: &str,
    open: &mut Open,
    batch: &Append,
    times: usize,
) {
    group.throughput(Throughput::Elements(batch.events * times as u64));
    group.bench_function(name, |bencher| bencher.iter(|| open.pass(batch, times)));
}

/// The rows of the filters' table: a name, the config keys of the filter, and the text of its
/// policy, which is empty for no policy. The other rows are compared with the first.
fn rows() -> Vec<(&'static str, &'static str, String)> {
    let keys = |name, keys| (name, keys, String::new());
    let policy = |name, text: String| (name, "", text);
    let lowered = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
    vec![
        keys("none", ""),
        keys("redaction, presets", "redact = []"),
        keys("annotations", "annotate = { cluster = 'production' }"),
        policy("policy, levels lowered", lowered.to_owned()),
        policy("policy, 20 rules", policy::of(20)),
        keys("size limit of 1 KiB", "max_event_bytes = '1KiB'"),
        keys("deduplication, all duplicates", "deduplicate = '5m'"),
        keys("shape ecs", "shape = 'ecs'"),
        keys("shape ecs, bodies as strings", "shape = 'ecs'\nbodies = 'string'"),
        keys("shape ocsf", "shape = 'ocsf'"),
    ]
}

/// Measures the filters, and prints a table for each work. A pass decodes each body, appends it to
/// a queue in memory, and claims it. Then the filter, if there is one, judges each event. The whole
/// relay also works with sockets, so its ratios are smaller.
fn filters() {
    const ROUNDS: usize = 21;
    for work in [Work::metadata(), Work::responses()] {
        println!("\n### filters: {}\n\n| filter | CPU s/GB | ÷ none |\n|---|---|---|", work.name);
        let rows = rows();
        let mut passes: Vec<_> =
            rows.iter().map(|(_, keys, policy)| filtered(&work, keys, policy)).collect();
        let mut costs = vec![Vec::new(); rows.len()];
        for round in 0..=ROUNDS {
            for (pass, costs) in passes.iter_mut().zip(&mut costs) {
                let start = CpuTime::now();
                let bytes = pass();
                let cost = (CpuTime::now() - start).as_secs_f64() * 1e9 / bytes as f64;
                // The first round only fills caches and memory.
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        for ((name, _, _), row) in rows.iter().zip(&costs) {
            print_row(name, row, &costs[0]);
        }
    }
}

/// Prints the median cost of a row in CPU s/GB, and its median ratio to the first row.
fn print_row(name: &str, row: &[f64], first: &[f64]) {
    let ratios = row.iter().zip(first).map(|(cost, first)| cost / first);
    let (cost, ratio) = (spread(row.to_vec()), spread(ratios.collect()));
    println!("| {name} | {:.2} | {:.2} |", cost.median(), ratio.median());
}

/// Returns a function that passes all bodies of the work through a filter with these keys and this
/// policy, and returns the size of the bodies in bytes.
fn filtered(work: &Work, keys: &str, policy: &str) -> impl FnMut() -> usize {
    let bodies: Vec<Vec<u8>> =
        work.requests.iter().map(|request| body_of(request).to_vec()).collect();
    let rules = (!keys.is_empty() || !policy.is_empty()).then(|| {
        let config = config("", &format!("type = 'stdout'\n[output.filter]\n{keys}"));
        let rules = Rules::new(&config.outputs[0].filter, config::Rejected::Retry);
        if !policy.is_empty() {
            rules.apply(vec![Policy::read(policy).expect("a valid policy")]);
        }
        Arc::new(rules)
    });
    let mut filter = rules.map(|rules| Filter::new(rules, None));
    let mut open = Closed::new("", 1).open();
    let (mut position, mut changed) = (Position::START, Vec::new());
    move || {
        for body in &bodies {
            let batch = audit::decode(body.clone()).expect("an EventList");
            let append = Append {
                lines: batch.lines,
                events: batch.events,
                levels: batch.levels,
                list: None,
            };
            open.append(&append, 1);
            let claimed = open.cursors[0].next(TAKE).expect("it was appended");
            for piece in &claimed.pieces {
                let Some(filter) = &mut filter else { break };
                let mut events = filter.events(audit::Events::of(piece, None));
                while let Some((event, request, known)) = events.next() {
                    changed.clear();
                    let age = Duration::ZERO;
                    let asked = EventView { event, request, known, position, age };
                    black_box(filter.judge(&asked, &mut changed));
                    position = position.next();
                }
            }
            open.cursors[0].acknowledge(claimed.claim, Disposition::default());
        }
        bodies.iter().map(Vec::len).sum()
    }
}

fn syslog(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("syslog, encode");
    for framing in ["octet_counting", "newline"] {
        let output = format!(
            "type = 'syslog'\naddresses = ['127.0.0.1:1']\nhostname = 'host'\nframing = '{framing}'"
        );
        let mut outputs = config("", &output).outputs;
        let output = outputs.remove(0);
        let syslog: &Settings = output.kind.settings().expect("it is syslog's");
        let messages = Messages::new(syslog, output.rejected, &output.filter.annotate);
        for (name, append) in [("batch of 400 events", batch()), ("single event", single())] {
            let mut open = Closed::new("", 1).open();
            open.append(&append, 1);
            let batch: Batch = open.cursors[0].next(TAKE).expect("it was appended");
            group.throughput(Throughput::Bytes(batch.bytes));
            group.bench_function(format!("{name}, {framing}"), |bencher| {
                bencher.iter(|| messages.encode(batch.clone()).unwrap().pieces);
            });
        }
    }
}

fn disk() -> TempDir {
    let named = std::env::var_os("SPOOL_BENCH_DIRECTORY");
    let below = named.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&below).unwrap();
    tempfile::Builder::new().prefix("micro-bench-").tempdir_in(below).unwrap()
}

/// Returns the config keys of a queue in this directory.
fn durable(directory: &Path) -> String {
    format!("queue.max_bytes = '2GiB'\nqueue.directory = '{}'", directory.display())
}

fn spool(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("queue on disk, append and read");
    for (name, batch, times, backlog) in [
        ("batch of 400 events", batch(), 1, 0),
        ("8 batches of 400 events at once", batch(), 8, 0),
        ("single event", single(), 1, 0),
        ("64 single events at once", single(), 64, 0),
        // The backlog is larger than the part of the queue that is also in memory.
        ("batch of 400 events, read from files", batch(), 1, 256),
    ] {
        let directory = disk();
        let mut open = Closed::new(&durable(directory.path()), 1).open();
        (0..backlog).for_each(|_| open.append(&batch, 1));
        pass(&mut group, name, &mut open, &batch, times);
    }
}

/// Measures the start of a queue that was not closed, as after a kill of the process.
fn recovery(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("queue on disk, start");
    group.sample_size(20);
    for (name, segment, mebibytes) in [
        ("1 MiB in one segment", "64MiB", 1),
        ("32 MiB in one segment", "64MiB", 32),
        ("32 MiB in 8 segments", "4MiB", 32),
        ("32 MiB in 32 segments", "1MiB", 32),
    ] {
        let directory = disk();
        let queue =
            |directory: &Path| format!("{}\nqueue.segment_bytes = '{segment}'", durable(directory));
        let (open, batch) = (Closed::new(&queue(directory.path()), 1).open(), batch());
        let batches = mebibytes * MIB / batch.lines.len() as u64;
        (0..batches).for_each(|_| open.append(&batch, 1));
        let killed = || {
            let copy = disk();
            copy_files(directory.path(), copy.path());
            (Closed::new(&queue(copy.path()), 1), copy)
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                killed,
                |(closed, copy)| (closed.open(), copy),
                BatchSize::PerIteration,
            );
        });
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (entry, to) = (entry.path(), to.join(entry.file_name()));
        if entry.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_files(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}
