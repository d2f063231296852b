//! The page `/metrics`, in the text format of Prometheus.

use metrics::{KeyName, Recorder as _};
use metrics_exporter_prometheus::formatting::{
    write_help_line, write_metric_line, write_type_line,
};
use metrics_exporter_prometheus::{LabelSet, Matcher, PrometheusBuilder, PrometheusRecorder};

use super::declare::{Kind, Metric};
use super::registry::{Labels, Registry, key};
use super::{catalog, process};

pub(super) fn exporter() -> PrometheusRecorder {
    let histograms = || catalog::own().filter(|metric| metric.kind == Kind::Histogram);
    let exporter = histograms()
        .try_fold(PrometheusBuilder::new(), |builder, metric| {
            let name = Matcher::Full(metric.name.to_owned());
            builder.set_buckets_for_metric(name, metric.buckets)
        })
        // The only error is an empty list of buckets.
        .unwrap_or_else(|_| PrometheusBuilder::new())
        .build_recorder();
    for metric in histograms() {
        exporter.describe_histogram(KeyName::from(metric.name), None, metric.help.into());
    }
    exporter
}

/// Returns the counters and gauges in the order of the catalogue, then the metrics of the process
/// and the histograms. [`super::Telemetry::render_states_of`] explains `is_known`.
pub(crate) fn page(registry: &Registry, is_known: impl Fn(&str, &str, &str) -> bool) -> String {
    let mut page = String::new();
    let is_shown = |metric: &Metric, labels: &Labels| {
        let is_known = |(place, name): &(&str, String)| is_known(metric.name, place, name);
        !metric.is_state || labels.first().is_none_or(is_known)
    };
    for metric in catalog::own() {
        let series = registry.series(metric.name);
        if series.is_empty() {
            continue;
        }
        write_help_line(&mut page, metric.name, None, None, metric.help);
        write_type_line(&mut page, metric.name, None, None, metric.kind.name());
        for (labels, bits) in series.into_iter().filter(|(labels, _)| is_shown(metric, labels)) {
            let labels =
                LabelSet::from_key_and_global(&key(metric.name, labels), &Default::default());
            let value = match metric.kind {
                Kind::Counter => bits.to_string(),
                Kind::Gauge | Kind::Histogram => f64::from_bits(bits).to_string(),
            };
            let none = None::<(&'static str, &str)>;
            write_metric_line(&mut page, metric.name, None, &labels, none, value, None);
        }
        page.push('\n');
    }
    let values = process::values();
    for metric in catalog::process() {
        let Some((_, value)) = values.iter().find(|(name, _)| *name == metric.name) else {
            continue;
        };
        write_help_line(&mut page, metric.name, None, None, metric.help);
        write_type_line(&mut page, metric.name, None, None, metric.kind.name());
        page.push_str(&format!("{} {value}\n\n", metric.name));
    }
    page.push_str(&registry.exporter.handle().render());
    page
}
