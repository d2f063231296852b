//! The relay beside the HAProxy that it replaces: the same work goes through each in turn, in one
//! run.
//!
//! `cargo bench --bench side_by_side` starts both anew for each run, on 127.0.0.1, between a load
//! and a sink in this process. It prints Markdown, with at most two tables for each work:
//!
//! - **At saturation**: a fixed number of senders, each with one request under way on a kept
//!   connection, for a fixed time. The table holds the CPU seconds of the proxy's process for each
//!   GB (10⁹ bytes) of request bodies and for each million events, the throughput, the memory, and
//!   the CPU seconds of load and sink. The relay answers before it has delivered, so the senders
//!   stay at most 8 MiB ahead of the sink, and a run ends when everything has arrived and nothing
//!   is left in the relay's queue.
//! - **Answers at half load**: requests come at a fixed rate, and each is due at a fixed time. The
//!   duration of an answer counts from the time at which its request was due, not from when a
//!   sender was free for it. Each proxy gets half of its own rate at saturation. A relay and its
//!   HAProxy also each get half of the rate of the slower one.
//!
//! Everything that is compared takes its turn in each round. The tables hold medians over the
//! rounds, with the least and the most value; a ratio to HAProxy is the median of the ratios within
//! each round. A relay that speaks TLS is compared with a HAProxy that speaks TLS on both sides.
//!
//! CPU seconds are right on a machine that others use too. Throughput and times are not.

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

use clap::Parser;
use clap::ValueEnum as _;

#[path = "../common/figures.rs"]
mod figures;
#[path = "../common/interrupt.rs"]
mod interrupt;
#[path = "../common/load.rs"]
mod load;
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

use proxy::Mode;
use proxy::Route;
use proxy::Through;
use report::Answers;
use report::Throughput;
use tls::Tls;
use work::Work;

/// Compares the relay with HAProxy on the same work
#[derive(Parser)]
struct Arguments {
    /// Rounds; in each, all that is compared takes its turn
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only the work whose name contains it: metadata, responses, generated, single
    #[arg(long, default_value = "")]
    work: String,
    /// Only these routes through the relay
    #[arg(long, value_delimiter = ',')]
    output: Vec<Route>,
    /// Only these modes of the relay
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Everything with every work, and answers at half load too: 25 minutes, unless other options
    /// choose from it
    #[arg(long)]
    full: bool,
    /// Parallel connections of the load
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// The same where an answer takes the replay window: tcp, syslog and tls lines, `delivered`
    #[arg(long, default_value_t = 384)]
    waiting_senders: usize,
    /// replay_window of the tcp and syslog outputs, in milliseconds
    #[arg(long, default_value_t = 100)]
    replay_window: u32,
    /// Directory for the queue on disk; not on tmpfs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Another binary of the relay than the one built for this bench
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: PathBuf,
    /// Given by `cargo bench`, and by nobody else
    #[arg(long, hide = true)]
    bench: bool,
}

/// The runs of one work. Without `--full` the plan leaves out runs for which ten minutes are too
/// short.
struct Plan {
    work: Work,
    saturated: fn(Route, Mode) -> bool,
    /// The runs at half load, among those at saturation.
    paced: fn(Route, Mode) -> bool,
}

impl Plan {
    fn all() -> [Self; 4] {
        let (all, none) = (|_, _| true, |_, _| false);
        let most = |route, mode| mode == Mode::Memory || route == Route::Http;
        [
            Self { work: Work::metadata(), saturated: all, paced: most },
            Self { work: Work::responses(), saturated: most, paced: none },
            Self { work: Work::generated(), saturated: most, paced: none },
            Self { work: Work::single(), saturated: most, paced: most },
        ]
    }
}

impl Arguments {
    /// Returns the runs to make. Each HAProxy comes before the first relay that is compared with
    /// it.
    fn choose(&self, planned: fn(Route, Mode) -> bool) -> Vec<Through> {
        let mut chosen = Vec::new();
        for mode in Mode::value_variants() {
            for route in Route::value_variants() {
                let wanted = (self.output.is_empty() || self.output.contains(route))
                    && (self.mode.is_empty() || self.mode.contains(mode));
                if !wanted || !(self.full || planned(*route, *mode)) {
                    continue;
                }
                let relay = Through::Relay(*route, *mode);
                if !chosen.contains(&relay.haproxy()) {
                    chosen.push(relay.haproxy());
                }
                chosen.push(relay);
            }
        }
        chosen
    }
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing measured: run it by `cargo bench --bench side_by_side`");
        return;
    }
    interrupt::watch();
    let begun = Instant::now();
    print!("{}", report::conditions(&arguments));
    println!("- load average before: {}", figures::load_average());
    let tls = Tls::new();
    let mut measured = Vec::new();
    for plan in Plan::all() {
        if !plan.work.name.contains(&arguments.work) {
            continue;
        }
        let throughput = saturate(plan.work, &arguments.choose(plan.saturated), &tls, &arguments);
        print!("{}", throughput.table(&arguments));
        let answers = pace(&throughput, &arguments.choose(plan.paced), &tls, &arguments);
        print!("{}", answers.table(throughput.work.name));
        measured.push((throughput, answers));
    }
    print!("{}", report::in_short(&measured));
    println!("\n- load average after: {}", figures::load_average());
    println!("- {} s in all", begun.elapsed().as_secs());
}

fn saturate(work: Work, throughs: &[Through], tls: &Tls, arguments: &Arguments) -> Throughput {
    let mut throughput = Throughput::new(work, throughs);
    let work = &throughput.work;
    for round in 1..=arguments.pairs {
        for row in &mut throughput.rows {
            eprintln!("{}, {round}/{}, {}", work.name, arguments.pairs, row.through.name());
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
    for round in 1..=arguments.pairs {
        for rows in answers.rows.chunk_by_mut(|one, other| one.through == other.through) {
            let through = rows[0].through;
            let rates: Vec<f64> = rows.iter().map(|row| row.rate).collect();
            eprintln!(
                "{}, {round}/{}, {}, {rates:.0?}/s",
                work.name,
                arguments.pairs,
                through.name()
            );
            let samples = run::pace(work, through, &rates, tls, arguments);
            rows.iter_mut().zip(samples).for_each(|(row, sample)| row.samples.push(sample));
        }
    }
    answers
}
