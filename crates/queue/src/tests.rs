//! Helpers that the tests of both kinds of queue share.

use super::outputs::Output;
use telemetry::{Filtered, OutputMetrics, Telemetry};

mod earlier;
mod format_1;

fn embedded_config() -> config::Queue {
    config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right").queue
}

/// The metrics of an output that the queue changes. A test can read them at any time.
#[derive(Clone)]
pub(super) struct Counts(OutputMetrics);

impl Default for Counts {
    fn default() -> Self {
        Self(Telemetry::of_no_output())
    }
}

impl Counts {
    fn metrics(&self, telemetry: &Telemetry, name: &str) -> OutputMetrics {
        let (Self(own), mut metrics) = (self, telemetry.output(name));
        metrics.events = own.events.clone();
        metrics.lost = own.lost.clone();
        metrics.fates.filtered = own.fates.filtered.clone();
        metrics.backlog.start = own.backlog.start.clone();
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
        self.0.events.get()
    }

    pub(super) fn lost(&self) -> u64 {
        self.0.lost.get()
    }

    /// Returns the two values of `filtered_events_total`: dropped events, and duplicates.
    pub(super) fn filtered(&self) -> [u64; 2] {
        [Filtered::Dropped, Filtered::Duplicate].map(|it| self.0.fates.filtered.of(it).get())
    }

    /// Returns the value of `output_start_events`.
    pub(super) fn start(&self) -> f64 {
        self.0.backlog.start.get()
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
