//! Helpers that the tests of both kinds of queue share.

use super::outputs::Output;
use telemetry::{Counter, Gauge, OutputMetrics, Telemetry};

mod format_1;

fn embedded_config() -> config::Queue {
    config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right").queue
}

/// The metrics of an output that the queue changes. A test can read them at any time.
#[derive(Default, Clone)]
pub(super) struct Counts {
    delivered: Counter,
    lost: Counter,
    dropped: Counter,
    duplicate: Counter,
    start: Gauge,
}

impl Counts {
    fn metrics(&self, telemetry: &Telemetry, name: &str) -> OutputMetrics {
        let mut metrics = telemetry.output(name);
        metrics.events = self.delivered.clone();
        metrics.lost = self.lost.clone();
        metrics.fates.filtered.dropped = self.dropped.clone();
        metrics.fates.filtered.duplicate = self.duplicate.clone();
        metrics.backlog.start = self.start.clone();
        metrics
    }

    /// Makes an output with this name, which counts in these metrics.
    pub(super) fn output(&self, telemetry: &Telemetry, name: &str, required: bool) -> Output {
        Output {
            name: name.to_owned(),
            required,
            metrics: self.metrics(telemetry, name),
            recorder: None,
        }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.get()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Returns the two values of `filtered_events_total`: dropped events, and duplicates.
    pub(super) fn filtered(&self) -> [u64; 2] {
        [&self.dropped, &self.duplicate].map(Counter::get)
    }

    /// Returns the value of `output_start_events`.
    pub(super) fn start(&self) -> f64 {
        self.start.get()
    }
}

/// Makes required outputs with these names, and returns their metrics too.
pub(super) fn outputs(telemetry: &Telemetry, names: &[&str]) -> (Vec<Counts>, Vec<Output>) {
    let output = |name: &&str| {
        let counts = Counts::default();
        let output = counts.output(telemetry, name, true);
        (counts, output)
    };
    names.iter().map(output).unzip()
}

/// Returns the values of these series, all of which must exist.
pub(super) fn values<const N: usize>(telemetry: &Telemetry, series: [&str; N]) -> [u64; N] {
    series.map(|series| value(telemetry, series).unwrap_or_else(|| panic!("no {series}")))
}

/// Returns the value of a series; `None` if there is no such series.
pub(super) fn value(telemetry: &Telemetry, series: &str) -> Option<u64> {
    let prefix = format!("kube_audit_forwarder_{series} ");
    let text = telemetry.render();
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.parse().expect("a count"))
}
