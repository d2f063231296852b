//! The queue on disk, which acknowledges a batch when it is synced, beside the raw disk and beside
//! the queue in memory. `cargo bench --bench scale` measures the cost of a batch with backlogs of
//! different sizes.
//!
//! `-- --only memory` measures something else: a queue on disk that becomes full and then empty
//! within the memory limit of a pod. It needs permission to make memory cgroups, which root has.
//!
//! `cargo bench --bench spool` runs the relay's own program on 127.0.0.1, between a load and a sink
//! in this process, and prints Markdown. In each round, everything that is compared takes its turn.
//! The tables have medians over the rounds, with the least and the greatest value. CPU seconds are
//! those of the measured process or thread for each GB (10⁹ bytes) of request bodies.
//!
//! Files are below the directory that `--directory` or `SPOOL_BENCH_DIRECTORY` names, or otherwise
//! below target/. The results depend on its disk. Files and memory cgroups are removed at the end,
//! also after a panic or Ctrl-C.

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

#[path = "../common/disk.rs"]
mod disk;
#[path = "../common/figures.rs"]
mod figures;
#[path = "../common/interrupt.rs"]
mod interrupt;
#[path = "../common/load.rs"]
mod load;
mod memory;
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

/// Measures the queue on disk
#[derive(Parser)]
struct Arguments {
    /// Only these tables
    #[arg(long, value_delimiter = ',', default_value = "throughput")]
    only: Vec<Table>,
    /// Directory for the files; not on tmpfs
    #[arg(long, env = "SPOOL_BENCH_DIRECTORY", default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Rounds; in each, everything that is compared takes its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one run for throughput
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Numbers of parallel connections of the load for throughput
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    senders: Vec<usize>,
    /// Only works whose name contains this, for throughput: metadata, single
    #[arg(long, default_value = "")]
    work: String,
    /// The relay's binary; the default is the one built for this bench
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: PathBuf,
    /// Only `cargo bench` sets this
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Acknowledged batches beside the raw disk and the queue in memory
    Throughput,
    /// A queue that becomes full and empty again in a memory cgroup of 512 MiB; needs root
    Memory,
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
    println!("- {} rounds", arguments.rounds);
    for table in &arguments.only {
        match table {
            Table::Throughput => {
                println!("- {} s for each run of throughput", arguments.seconds);
                print!("{}", throughput::table(&disk, &arguments));
            }
            Table::Memory => print!("{}", memory::table(&disk, &arguments)),
        }
    }
    println!("\n- load average after: {}", figures::load_average());
}
