//! What the tests of both kinds of queue share.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::Counter;
use metrics::Gauge;
use metrics::atomics::AtomicU64 as Cell;

use super::outputs::Output;
use crate::config;
use crate::telemetry::OutputMetrics;
use crate::telemetry::Telemetry;

mod format_1;
pub(crate) mod simulated_disk;

/// The `[queue]` table of the embedded config.
fn embedded_config() -> config::Queue {
    config::read(config::EMBEDDED, crate::output::TYPES).config.expect("it is right").queue
}

/// The counters of an output that the queue moves, where they can be read at any time.
#[derive(Default, Clone)]
pub(super) struct Counts {
    delivered: Arc<Cell>,
    lost: Arc<Cell>,
    dropped: Arc<Cell>,
    duplicate: Arc<Cell>,
    start: Arc<Cell>,
}

impl Counts {
    fn metrics(&self, telemetry: &Telemetry, name: &str) -> OutputMetrics {
        let mut metrics = telemetry.output(name);
        metrics.events = Counter::from_arc(Arc::clone(&self.delivered));
        metrics.lost = Counter::from_arc(Arc::clone(&self.lost));
        metrics.filtered.dropped = Counter::from_arc(Arc::clone(&self.dropped));
        metrics.filtered.duplicate = Counter::from_arc(Arc::clone(&self.duplicate));
        metrics.start = Gauge::from_arc(Arc::clone(&self.start));
        metrics
    }

    /// The output of this name.
    pub(super) fn output(&self, telemetry: &Telemetry, name: &str, required: bool) -> Output {
        Output {
            name: name.to_owned(),
            required,
            metrics: self.metrics(telemetry, name),
            keeps: std::time::Duration::ZERO,
            recorder: None,
        }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// `filtered_events_total`: dropped, and duplicates.
    pub(super) fn filtered(&self) -> [u64; 2] {
        [&self.dropped, &self.duplicate].map(|count| count.load(Ordering::Relaxed))
    }

    /// `output_start_events`.
    pub(super) fn start(&self) -> f64 {
        f64::from_bits(self.start.load(Ordering::Relaxed))
    }
}

/// Required outputs of these names, and what can be read of each.
pub(super) fn outputs(telemetry: &Telemetry, names: &[&str]) -> (Vec<Counts>, Vec<Output>) {
    let output = |name: &&str| {
        let counts = Counts::default();
        let output = counts.output(telemetry, name, true);
        (counts, output)
    };
    names.iter().map(output).unzip()
}

/// Values of some series.
pub(super) fn values<const N: usize>(telemetry: &Telemetry, series: [&str; N]) -> [u64; N] {
    series.map(|series| value(telemetry, series).unwrap_or_else(|| panic!("no {series}")))
}

/// What one shows, if it is there.
pub(super) fn value(telemetry: &Telemetry, series: &str) -> Option<u64> {
    let prefix = format!("kube_audit_forwarder_{series} ");
    let text = telemetry.render();
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.parse().expect("a count"))
}
