//! The values of all metrics: one cell of memory for each series.
//!
//! A [`Counter`] or [`Gauge`] is a reference to such a cell. The code that counts, the page
//! `/metrics` and `/status` all use the same cell, so the pages can't differ. The exporter stores
//! the histograms.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{GaugeFn, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::PrometheusRecorder;

use base::lock::lock;

/// A number that starts at 0 and only grows. Clones share the value.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds to the value.
    pub fn increment(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Release);
    }

    pub(super) fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Release);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A number that may go up and down. Clones share the value.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Release);
    }

    /// Adds to the value.
    pub fn increment(&self, by: f64) {
        GaugeFn::increment(&*self.0, by);
    }

    /// Subtracts from the value.
    pub fn decrement(&self, by: f64) {
        GaugeFn::decrement(&*self.0, by);
    }

    /// Returns the value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Returns the value of a gauge that counts something, as an integer.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts and sizes: whole, not negative, and below 2^53"
    )]
    pub fn count(&self) -> u64 {
        self.get() as u64
    }

    /// Returns the same for a gauge that may be negative.
    #[allow(clippy::cast_possible_truncation, reason = "differences of counts: below 2^53")]
    pub fn signed(&self) -> i64 {
        self.get() as i64
    }

    /// Returns a time in seconds since 1970; `None` if the value is 0, which means never.
    pub fn time(&self) -> Option<f64> {
        Some(self.get()).filter(|time| *time > 0.0)
    }
}

/// The labels of a series: each name with its value, in the order of the page `/metrics`.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The cells of counters and gauges, by the metric's full name and the labels; and the exporter,
/// which stores the histograms. Only [`Registry::keep`] removes a series.
pub(crate) struct Registry {
    cells: Mutex<BTreeMap<&'static str, BTreeMap<Labels, Arc<AtomicU64>>>>,
    pub(super) exporter: PrometheusRecorder,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

pub(crate) fn key(name: &'static str, labels: Labels) -> Key {
    let label = |(name, value)| Label::new(name, value);
    Key::from_parts(name, labels.into_iter().map(label).collect::<Vec<_>>())
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

impl Registry {
    pub(crate) fn new(exporter: PrometheusRecorder) -> Self {
        Self { cells: Mutex::default(), exporter }
    }

    fn cell(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Arc<AtomicU64> {
        let mut cells = lock(&self.cells);
        Arc::clone(cells.entry(name).or_default().entry(owned(labels)).or_default())
    }

    pub(crate) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        Counter(self.cell(name, labels))
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        Gauge(self.cell(name, labels))
    }

    pub(super) fn histogram(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Histogram {
        self.exporter.register_histogram(&key(name, owned(labels)), &METADATA)
    }

    /// Removes the series of the metric `name` that `is_kept` rejects. The handles of a removed
    /// series stay valid, but no page shows their values any more.
    pub(crate) fn keep(&self, name: &str, is_kept: impl Fn(&Labels) -> bool) {
        if let Some(series) = lock(&self.cells).get_mut(name) {
            series.retain(|labels, _| is_kept(labels));
        }
    }

    /// Returns the series of a metric, sorted by labels, with the bits of the values.
    pub(crate) fn series(&self, name: &str) -> Vec<(Labels, u64)> {
        let cells = lock(&self.cells);
        let series = |(labels, cell): (&Labels, &Arc<AtomicU64>)| {
            (labels.clone(), cell.load(Ordering::Acquire))
        };
        cells.get(name).into_iter().flatten().map(series).collect()
    }
}
