//! The queue in files: a simulation against a model, damage of every kind, and many threads on a real disk.

use metrics::Counter;
use metrics::Gauge;
use metrics::atomics::AtomicU64 as Cell;

use super::*;
use crate::config;
use crate::tests::Failing;
use crate::tests::is_alone;
use crate::tests::seeds;

mod damage;
mod simulation;
mod threads;

/// The counters of an output that the queue moves, where they can be read at any time.
#[derive(Default)]
struct Counts {
    delivered: Arc<Cell>,
    lost: Arc<Cell>,
    start: Arc<Cell>,
}

impl Counts {
    fn metrics(&self, telemetry: &Telemetry, name: &str) -> OutputMetrics {
        let mut metrics = telemetry.output(name);
        metrics.events = Counter::from_arc(Arc::clone(&self.delivered));
        metrics.lost = Counter::from_arc(Arc::clone(&self.lost));
        metrics.start = Gauge::from_arc(Arc::clone(&self.start));
        metrics
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Events found at the start.
    fn start(&self) -> f64 {
        f64::from_bits(self.start.load(Ordering::Relaxed))
    }
}

/// The outputs of these names, and what can be read of each.
fn outputs(telemetry: &Telemetry, names: &[&str]) -> (Vec<Counts>, Vec<(String, OutputMetrics)>) {
    let output = |name: &&str| {
        let counts = Counts::default();
        let metrics = counts.metrics(telemetry, name);
        (counts, ((*name).to_owned(), metrics))
    };
    names.iter().map(output).unzip()
}

fn settings(max_bytes: u64, segment_bytes: u64, when_full: WhenFull) -> config::Queue {
    let config = config::read(config::EMBEDDED).config.expect("it is right");
    config::Queue { max_bytes, segment_bytes, when_full, ..config.queue }
}

/// Values of some series.
fn values<const N: usize>(telemetry: &Telemetry, series: [&str; N]) -> [u64; N] {
    series.map(|series| value(telemetry, series).unwrap_or_else(|| panic!("no {series}")))
}

/// What one shows, if it is there.
fn value(telemetry: &Telemetry, series: &str) -> Option<u64> {
    let prefix = format!("kube_audit_forwarder_{series} ");
    let text = telemetry.render();
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.parse().expect("a count"))
}

/// An event's line: its number, and some more.
fn write_line(number: u64, length: usize, lines: &mut Vec<u8>) {
    let begin = lines.len();
    lines.extend(number.to_string().bytes());
    lines.push(b' ');
    let filler = b'a' + u8::try_from(number % 26).expect("a letter");
    lines.resize((begin + length - 1).max(lines.len()), filler);
    lines.push(b'\n');
}
