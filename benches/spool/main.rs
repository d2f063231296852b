//! The durable queue: what is acknowledged once it is synced, beside the raw disk and beside the queue in memory; and
//! what a batch costs with backlogs of different sizes.
//!
//! `cargo bench --bench spool` drives the relay's own binary, on 127.0.0.1, between a load and a sink that live in this
//! process, and prints Markdown. All that is compared takes its turn in each round; the tables hold medians over the
//! rounds, with least and most. CPU seconds are those of the relay's process for each GB (10⁹ bytes) of request bodies,
//! in and out.
//!
//! Files go below a directory that `--directory` or `SPOOL_BENCH_DIRECTORY` names, target/ if none does: what counts is
//! the disk under it. They are removed at the end, also after a panic and after Ctrl-C.

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

use clap::Parser;

mod backlog;
mod disk;
#[path = "../common/figures.rs"]
mod figures;
#[path = "../common/interrupt.rs"]
mod interrupt;
#[path = "../common/load.rs"]
mod load;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/relay.rs"]
mod relay;
#[path = "../common/sink.rs"]
mod sink;
mod throughput;
#[path = "../common/work.rs"]
mod work;

use disk::Disk;

/// Measures the durable queue
#[derive(Parser)]
struct Arguments {
    /// Where to write; not on tmpfs
    #[arg(long, env = "SPOOL_BENCH_DIRECTORY", default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Rounds; in each, everything that is compared takes its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one run of the first table
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Parallel connections of the load, for the first table
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    senders: Vec<usize>,
    /// Only the work whose name contains it, for the first table: metadata, single
    #[arg(long, default_value = "")]
    work: String,
    /// Backlogs of the second table, in MiB, smallest first. What does not fit twice on the disk is left out
    #[arg(long, value_delimiter = ',', default_value = "1,1024,8192")]
    backlogs: Vec<u64>,
    /// Request bodies of one run of the second table, in 10⁹ bytes
    #[arg(long, default_value_t = 0.5)]
    gigabytes: f64,
    /// Starts with each backlog
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Only this table: throughput, backlog
    #[arg(long)]
    only: Option<String>,
    /// Another binary of the relay than the one built for this bench
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: PathBuf,
    /// Given by `cargo bench`, and by nobody else
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing measured: run it by `cargo bench --bench spool`");
        return;
    }
    interrupt::watch();
    let disk = Disk::new(&arguments.directory);
    print!("{}", figures::machine());
    println!("- {}", disk.describe());
    println!("- load average before: {}", figures::load_average());
    let wanted = |table| arguments.only.as_deref().is_none_or(|only| only == table);
    if wanted("throughput") {
        println!("- {} rounds of {} s", arguments.rounds, arguments.seconds);
        print!("{}", throughput::table(&disk, &arguments));
    }
    if wanted("backlog") {
        println!("\n- {} rounds of {} GB", arguments.rounds, arguments.gigabytes);
        print!("{}", backlog::table(&disk, &arguments));
    }
    println!("\n- load average after: {}", figures::load_average());
}
