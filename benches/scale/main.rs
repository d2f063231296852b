//! How the cost of a batch changes with the backlog, the outputs, the connections, the events in a
//! batch, and the rules of a policy.
//!
//! `cargo bench --bench scale` runs the relay's own program on 127.0.0.1, between a load and a sink
//! in this process, and prints Markdown tables. All relays of a table run at once. In each round,
//! each relay takes its turn while the others are idle. The tables have medians over the rounds,
//! with the least and the greatest value. "÷ first" is the median of the ratios to the first row
//! within each round. CPU time is that of the relay's process, for its input and its output.
//!
//! Files are below the directory that `--directory` or `SPOOL_BENCH_DIRECTORY` names, or otherwise
//! below target/. They are removed at the end, also after a panic or Ctrl-C.

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

use clap::{Parser, ValueEnum};

mod backlog;
#[path = "../common/disk.rs"]
mod disk;
#[path = "../common/figures.rs"]
mod figures;
#[path = "../common/interrupt.rs"]
mod interrupt;
#[path = "../common/load.rs"]
mod load;
#[path = "../common/policy.rs"]
mod policy;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/relay.rs"]
mod relay;
#[path = "../common/sink.rs"]
mod sink;
mod variant;
#[path = "../common/work.rs"]
mod work;

use disk::Disk;
use variant::Setting;
use work::Work;

/// The number of requests in progress, if there are as many connections.
const SENDERS: usize = 8;

/// Measures how the cost of a batch changes with more of everything
#[derive(Parser)]
struct Arguments {
    /// Only these tables
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "backlog,outputs,connections,batches,rules"
    )]
    only: Vec<Table>,
    /// Rounds; in each, every relay takes its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one run, except with backlogs
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Numbers of outputs (http)
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    outputs: Vec<usize>,
    /// Numbers of kept connections, which are used in turn
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,500,2000")]
    connections: Vec<usize>,
    /// Numbers of events in a batch
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,256,1000,4000")]
    batches: Vec<u64>,
    /// Numbers of rules in an output's policy; 0: no filter
    #[arg(long, value_delimiter = ',', default_value = "0,1,20,100")]
    rules: Vec<usize>,
    /// Backlogs in MiB, smallest first; left out if they would fill more than half of the free disk
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024,8192")]
    backlogs: Vec<u64>,
    /// Backlogs of queues in memory, in MiB, smallest first
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024")]
    memory_backlogs: Vec<u64>,
    /// Request bodies of one run with a backlog, in 10⁹ bytes
    #[arg(long, default_value_t = 0.5)]
    gigabytes: f64,
    /// Starts with each backlog
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Directory for the files; not on tmpfs
    #[arg(long, env = "SPOOL_BENCH_DIRECTORY", default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// The relay's binary; the default is the one built for this bench
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: PathBuf,
    /// Only `cargo bench` sets this
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    Backlog,
    Outputs,
    Connections,
    Batches,
    Rules,
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing measured: run it by `cargo bench --bench scale`");
        return;
    }
    interrupt::watch();
    // This process has two sockets for each connection. The relay raises its own limit.
    ::process::raise_open_files().expect("a limit that can be raised");
    let disk = Disk::new(&arguments.directory);
    print!("{}", figures::machine());
    println!("- {}", disk.describe());
    println!("- load average before: {}", figures::load_average());
    println!("- {} rounds of {} s", arguments.rounds, arguments.seconds);
    for table in &arguments.only {
        match table {
            Table::Backlog => backlog(&disk, &arguments),
            Table::Outputs => outputs(&disk, &arguments),
            Table::Connections => connections(&arguments),
            Table::Batches => batches(&disk, &arguments),
            Table::Rules => rules(&disk, &arguments),
        }
    }
    println!("\n- load average after: {}", figures::load_average());
}

/// Measures with backlogs. While the load sends batches, the consumer receives batches that were
/// sent a whole backlog earlier.
fn backlog(disk: &Disk, arguments: &Arguments) {
    println!("\n## Backlog\n\n{}, rounds of {} GB.", Work::metadata().name, arguments.gigabytes);
    print!("\n### queue on disk\n{}", backlog::on_disk(disk, arguments));
    print!("\n### queue in memory\n{}", backlog::in_memory(arguments));
}

/// Measures with several outputs. Each output sends every byte, so each one adds about the same
/// cost. The cost of one output must not rise.
fn outputs(disk: &Disk, arguments: &Arguments) {
    println!("\n## Outputs");
    for (work, on_disk) in
        [(Work::metadata(), false), (Work::single(), false), (Work::metadata(), true)]
    {
        let settings = arguments.outputs.iter().map(|&outputs| Setting {
            number: outputs,
            work: &work,
            outputs,
            connections: SENDERS,
            senders: SENDERS,
            on_disk: on_disk.then_some(disk),
            output: String::new(),
        });
        let title = format!("{}, queue {}", work.name, place(on_disk));
        variant::table(&title, "outputs", settings.collect(), arguments);
    }
}

/// Measures with several connections. At most [`SENDERS`] requests are in progress. Each sender
/// uses its connections in turn, so that none is idle for long.
fn connections(arguments: &Arguments) {
    println!("\n## Connections");
    for work in [Work::metadata(), Work::single()] {
        let settings = arguments.connections.iter().map(|&connections| Setting {
            number: connections,
            work: &work,
            outputs: 1,
            connections,
            senders: SENDERS.min(connections),
            on_disk: None,
            output: String::new(),
        });
        let title = format!("{}, queue in memory", work.name);
        variant::table(&title, "connections", settings.collect(), arguments);
    }
}

/// Measures with batches of different sizes. A batch has a fixed cost and a cost for each byte, and
/// neither of them may rise.
fn batches(disk: &Disk, arguments: &Arguments) {
    println!("\n## Events in a batch");
    let works: Vec<Work> =
        arguments.batches.iter().map(|&events| Work::batches_of(events)).collect();
    for on_disk in [false, true] {
        let settings = works.iter().map(|work| Setting {
            number: usize::try_from(work.events).expect("an argument"),
            work,
            outputs: 1,
            connections: SENDERS,
            senders: SENDERS,
            on_disk: on_disk.then_some(disk),
            output: String::new(),
        });
        let title = format!("{}, queue {}", works[0].name, place(on_disk));
        variant::table(&title, "events", settings.collect(), arguments);
    }
}

/// Measures with several rules. Only the last rule matches, and it keeps every event unchanged, so
/// the cost is that of reading and deciding.
fn rules(disk: &Disk, arguments: &Arguments) {
    println!("\n## Rules of a policy");
    let filter = |rules: usize| match rules {
        0 => String::new(),
        rules => {
            let file = disk.path().join(format!("policy-{rules}.yaml"));
            std::fs::write(&file, policy::of(rules)).expect("a writable directory");
            format!("filter.policy = '{}'", file.display())
        }
    };
    for work in [Work::metadata(), Work::responses(), Work::generated(), Work::single()] {
        let settings = arguments.rules.iter().map(|&rules| Setting {
            number: rules,
            work: &work,
            outputs: 1,
            connections: SENDERS,
            senders: SENDERS,
            on_disk: None,
            output: filter(rules),
        });
        let title = format!("{}, queue in memory", work.name);
        variant::table(&title, "rules", settings.collect(), arguments);
    }
}

fn place(on_disk: bool) -> &'static str {
    if on_disk { "on disk" } else { "in memory" }
}
