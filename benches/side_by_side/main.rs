//! The relay beside the HAProxy that it replaces: the same work through each in turn, in one run.
//!
//! `cargo bench --bench side_by_side` starts both anew for each run, on 127.0.0.1, between a load
//! and a sink that live in this process, and prints Markdown: CPU seconds of the proxy's process
//! for each GB (10⁹ bytes) of request bodies and for each million events, throughput, the time to
//! the answer, memory, and what load and sink took themselves. Medians over the rounds, with least
//! and most; the ratio to HAProxy is the median of the ratios within each round.
//!
//! It saturates: a fixed number of senders, each with one request under way on a kept connection.
//! The relay answers before it has delivered, so the senders stay at most [`AHEAD_MAX`] ahead
//! of the sink, and a run ends when everything has arrived and nothing is left in the relay's queue.
//!
//! CPU seconds hold on a machine that others use too, throughput and times do not.

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
#[path = "../common/sink.rs"]
mod sink;
#[path = "../common/work.rs"]
mod work;

use load::Load;
use load::Until;
use proxy::Through;
use report::Sample;
use work::Work;

/// See [`Load::ahead_max`].
const AHEAD_MAX: u64 = 32 * 1024 * 1024;

/// Compares the relay with HAProxy on the same work
#[derive(Parser)]
struct Arguments {
    /// Rounds; in each, every batch goes through HAProxy and through each variant of the relay
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Request bodies of one run with batches, in 10⁹ bytes
    #[arg(long, default_value_t = 2.0)]
    gigabytes: f64,
    /// Requests of one run with one event each
    #[arg(long, default_value_t = 200_000)]
    singles: u64,
    /// Parallel connections of the load
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// replay_window of the tcp and syslog outputs
    #[arg(long, default_value = "100ms")]
    replay_window: String,
    /// Only the work whose name contains it: metadata, generated, single
    #[arg(long, default_value = "")]
    work: String,
    /// Only this output of the relay: http, tcp, syslog
    #[arg(long)]
    output: Option<String>,
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
        eprintln!("nothing measured: run it by `cargo bench --bench side_by_side`");
        return;
    }
    interrupt::watch();
    let throughs: Vec<Through> = Through::ALL
        .into_iter()
        .filter(|it| match (&arguments.output, it.output()) {
            (Some(only), Some(output)) => only == output,
            _ => true,
        })
        .collect();
    print!("{}", report::machine());
    println!(
        "- {} rounds, {} senders, {} GB of batches, {} singles; replay_window {}, {}",
        arguments.pairs,
        arguments.senders,
        arguments.gigabytes,
        arguments.singles,
        arguments.replay_window,
        proxy::QUEUE,
    );
    println!("- load average before: {}", figures::load_average());
    let bytes = arguments.gigabytes * 1e9;
    let batches = [Work::metadata(), Work::generated()].map(|work| {
        let requests = work.requests_of(bytes);
        (work, requests)
    });
    for (work, requests) in batches.into_iter().chain([(Work::single(), arguments.singles)]) {
        if !work.name.contains(&arguments.work) {
            continue;
        }
        let mut rounds: Vec<Vec<Sample>> = Vec::new();
        for round in 1..=arguments.pairs {
            let mut samples = Vec::new();
            for through in &throughs {
                let sample = measure(*through, &work, requests, &arguments);
                eprintln!("{} {round}/{} {}", work.name, arguments.pairs, sample.line(*through));
                samples.push(sample);
            }
            rounds.push(samples);
        }
        print!("{}", report::table(&work, requests, &throughs, &rounds));
    }
    println!("\n- load average after: {}", figures::load_average());
}

/// One run: a new sink, a new proxy, a little to warm up, the work.
fn measure(through: Through, work: &Work, requests: u64, arguments: &Arguments) -> Sample {
    let sink = sink::Sink::start(through.wire());
    let proxy =
        proxy::Proxy::start(through, &arguments.relay, &arguments.replay_window, sink.address());
    std::thread::sleep(std::time::Duration::from_millis(300));
    let rss_idle = proxy.process().memory("VmRSS:");

    let senders = arguments.senders;
    let load = Load { work, address: proxy.address(), senders, sink: &sink, ahead_max: AHEAD_MAX };
    let warm_up = load.run(Until::Requests(8 * senders as u64));
    sink.wait();
    proxy.wait_until_empty(warm_up.requests * work.events);
    sink.restart();

    let (cpu_before, own_before) = (proxy.process().cpu(), process::own_cpu());
    let begun = std::time::Instant::now();
    let load = load.run(Until::Requests(requests));
    sink.wait();
    let until_arrived = begun.elapsed();
    proxy.wait_until_empty((warm_up.requests + load.requests) * work.events);
    let (cpu, own) = (proxy.process().cpu() - cpu_before, process::own_cpu() - own_before);
    Sample {
        cpu,
        load_cpu: load.cpu,
        sink_cpu: (own.total() - load.cpu).max(0.0),
        seconds: until_arrived.as_secs_f64(),
        p50: load.percentile(50),
        p99: load.percentile(99),
        refused: load.refused,
        rss_idle,
        rss_peak: proxy.process().memory("VmHWM:"),
    }
}
