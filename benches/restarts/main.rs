//! How many events a consumer gets twice because it restarts.
//!
//! `cargo bench --bench restarts` runs the relay's own program on 127.0.0.1 between a load at a
//! fixed rate and a sink in this process. The sink resets all connections again and again, and
//! refuses new ones for some time. It prints Markdown. In each round, everything that is compared
//! takes its turn. The tables have medians over the rounds, with the least and the greatest value.
//!
//! The sink counts bytes or events and does not look at them. What it got more than once is what
//! has arrived, minus what was sent, in events of the mean length.

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

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

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
#[path = "../common/work.rs"]
mod work;

use load::{Load, Until};
use relay::Relay;
use sink::{Sink, Wire};
use work::Work;

/// The requests from which the sink learns the mean length of an event.
const FIRST: u64 = 5;

/// Counts what a consumer gets twice because it restarts
#[derive(Parser)]
struct Arguments {
    /// Only these outputs
    #[arg(long, value_delimiter = ',', default_value = "tcp,syslog,relp,lumberjack,http")]
    output: Vec<Output>,
    /// Rounds; in each, everything that is compared takes its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Restarts in one run
    #[arg(long, default_value_t = 4)]
    restarts: u32,
    /// Seconds between two restarts
    #[arg(long, default_value_t = 4.0)]
    every: f64,
    /// Seconds for which a restarting consumer refuses connections
    #[arg(long, value_delimiter = ',', default_value = "0,1.2")]
    away: Vec<f64>,
    /// Events each second
    #[arg(long, default_value_t = 5000.0)]
    rate: f64,
    /// The relays' binaries; the default is the one built for this bench
    #[arg(long, value_delimiter = ',', default_value = env!("CARGO_BIN_EXE_kube-audit-forwarder"))]
    relay: Vec<PathBuf>,
    /// Only `cargo bench` sets this
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Tcp,
    Syslog,
    Relp,
    Lumberjack,
    Http,
}

impl Output {
    fn wire(self) -> Wire {
        match self {
            Self::Tcp | Self::Syslog => Wire::Stream,
            Self::Relp => Wire::Relp,
            Self::Lumberjack => Wire::Lumberjack,
            Self::Http => Wire::Http,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Syslog => "syslog",
            Self::Relp => "relp",
            Self::Lumberjack => "lumberjack",
            Self::Http => "http",
        }
    }

    fn config(self, consumer: SocketAddr) -> String {
        let name = self.name();
        match self {
            Self::Http => format!("type = '{name}'\nurls = ['http://{consumer}/']"),
            Self::Tcp | Self::Syslog | Self::Relp | Self::Lumberjack => {
                format!("type = '{name}'\naddresses = ['{consumer}']")
            }
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing measured: run it by `cargo bench --bench restarts`");
        return;
    }
    interrupt::watch();
    print!("{}", figures::machine());
    println!("- load average before: {}", figures::load_average());
    let Arguments { rounds, restarts, every, rate, .. } = arguments;
    println!("- {rounds} rounds of {restarts} restarts each {every} s, at {rate} events/s");
    println!("\nEvents that arrive again, for each restart:\n");
    let names: String = arguments.relay.iter().map(|it| format!(" {} |", it.display())).collect();
    println!("| output | away |{names}\n|---|---|{}", "---|".repeat(arguments.relay.len()));
    for output in &arguments.output {
        for away in &arguments.away {
            let mut repeats = vec![Vec::new(); arguments.relay.len()];
            for _ in 0..rounds {
                for (relay, repeats) in arguments.relay.iter().zip(&mut repeats) {
                    repeats.push(run(relay, *output, *away, &arguments));
                }
            }
            let cells = repeats.into_iter().map(|it| format!(" {} |", figures::spread(it).show(0)));
            println!("| {} | {away} s |{}", output.name(), cells.collect::<String>());
        }
    }
    println!("\n- load average after: {}", figures::load_average());
}

/// Returns the number of events that arrive again for each restart.
fn run(relay: &Path, output: Output, away: f64, arguments: &Arguments) -> f64 {
    let (work, sink) = (Work::metadata(), Sink::start(output.wire()));
    sink.may_go_away();
    let relay = Relay::start(relay, "", &output.config(sink.address()));
    let (address, ahead_max) = (relay.address, u64::MAX);
    let load = Load { work: &work, address, senders: 4, sink: &sink, ahead_max };
    load.run(Until::Requests(FIRST));
    relay.wait_until_delivered(FIRST * work.events);
    let (before, first) = (sink.arrived(), (FIRST * work.events) as f64);
    let length = before as f64 / first;

    let per_second = arguments.rate / work.events as f64;
    let seconds = arguments.every * f64::from(arguments.restarts + 1);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
    let requests = (seconds * per_second) as u64;
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=arguments.restarts {
                let due = Duration::from_secs_f64(arguments.every * f64::from(number));
                std::thread::sleep(due.saturating_sub(started.elapsed()));
                sink.go_away(Duration::from_secs_f64(away));
            }
        });
        load.run(Until::Paced { requests, per_second });
    });
    relay.wait_until_delivered((FIRST + requests) * work.events);
    let arrived = (sink.arrived() - before) as f64 / length;
    // A sum of 0 must not be shown as -0.
    (arrived - (requests * work.events) as f64).max(0.0) / f64::from(arguments.restarts)
}
