//! Every metric, with its name, help and labels, and the set-up of the log.
//!
//! Handles are made here and nowhere else, so that the set of series is closed: no label holds anything that a client
//! chooses, and each series exists from the start, at 0.

use std::io;
use std::io::Write;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use metrics::Counter;
use metrics::Gauge;
use metrics::Histogram;
use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::PrometheusRecorder;
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::audit::LEVELS;
use crate::audit::LevelCounts;
use crate::config::Log;
use crate::config::LogFormat;
use crate::config::LogLevel;

/// From a lone small batch (50 µs) to a held request (30 s).
const REQUEST_SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0,
];

/// From a lone event (1 ms) to a day's outage.
const DELIVERY_SECONDS: [f64; 13] =
    [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

/// From a cached write (100 µs) to a disk that is about to fail.
const SYNC_SECONDS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

/// Every name with its help; the kind is that of the handle made below.
const HELP: [(&str, &str); 37] = [
    ("event_total", "Events accepted."),
    ("last_event_timestamp_seconds", "When the last batch was accepted; 0: none since the start."),
    (
        "error_total",
        "Events accepted and then lost or refused for good, by output; plugin queue: what no output can get.",
    ),
    ("level_total", "Events accepted, by audit level."),
    ("requests_rejected_total", "Requests not accepted, by reason."),
    ("requests_total", "Answered requests, by listener and status."),
    ("request_duration_seconds", "From the end of a request's head to its answer."),
    ("received_bytes_total", "Body bytes received, as sent."),
    ("connections", "Open connections."),
    (
        "in_flight_bytes",
        "Bytes of bodies that are not yet in the queue or wait for their acknowledgement.",
    ),
    ("queue_bytes", "Held by the queue, as queue.max_bytes counts it."),
    ("queue_capacity_bytes", "queue.max_bytes."),
    ("queue_events", "Events held by the queue."),
    ("queue_writable", "0 while the queue can't store, whatever its fill."),
    ("queue_dropped_events_total", "Events dropped by queue.when_full, each once."),
    (
        "spool_sync_duration_seconds",
        "Time to write and sync a group of batches to the queue's directory.",
    ),
    ("spool_segments", "Files of the durable queue."),
    ("spool_corrupt_records_total", "Damaged places found in the queue's files, each once."),
    ("spool_write_errors_total", "Failed writes, syncs and deletes in the queue's directory."),
    ("output_events_total", "Events acknowledged by the consumer, each once."),
    ("output_bytes_total", "Bytes sent to the consumer, repetitions included."),
    ("output_errors_total", "Failed attempts, by reason."),
    ("output_retries_total", "Attempts after the first."),
    ("output_up", "1 while the last attempt succeeded."),
    ("output_backlog_bytes", "Bytes of events not yet acknowledged by the consumer."),
    ("output_backlog_events", "Events not yet acknowledged by the consumer."),
    ("output_lag_seconds", "Age of the oldest event not yet acknowledged by the consumer."),
    ("output_start_events", "Backlog found at the start."),
    (
        "output_delivery_seconds",
        "From the acceptance of a batch to its acknowledgement by the consumer.",
    ),
    (
        "tls_certificate_expiry_timestamp_seconds",
        "notAfter of the certificate presented, and of the peer's last seen.",
    ),
    ("build_info", "1, with version and revision of this build."),
    ("process_cpu_seconds_total", ""),
    ("process_open_fds", ""),
    ("process_max_fds", ""),
    ("process_resident_memory_bytes", ""),
    ("process_start_time_seconds", ""),
    ("process_threads", ""),
];

/// Why a request was not accepted: the label `reason` of `requests_rejected_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are CONTRACT's label values")]
pub enum Rejection {
    Invalid,
    TooLarge,
    QueueFull,
    InFlightFull,
    Unauthorized,
    Timeout,
    NotFound,
    Method,
    MediaType,
    ShuttingDown,
    Disk,
    DeliveryTimeout,
}

const REJECTIONS: [&str; 12] = [
    "invalid",
    "too_large",
    "queue_full",
    "in_flight_full",
    "unauthorized",
    "timeout",
    "not_found",
    "method",
    "media_type",
    "shutting_down",
    "disk",
    "delivery_timeout",
];

/// Why an attempt to deliver failed: the label `reason` of `output_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are CONTRACT's label values")]
pub enum AttemptError {
    Resolve,
    Connect,
    Tls,
    Timeout,
    Closed,
    Status4xx,
    Status429,
    Status5xx,
    Protocol,
}

const ATTEMPT_ERRORS: [&str; 9] = [
    "resolve",
    "connect",
    "tls",
    "timeout",
    "closed",
    "status_4xx",
    "status_429",
    "status_5xx",
    "protocol",
];

impl AttemptError {
    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        ATTEMPT_ERRORS[self as usize]
    }
}

/// The answers of CONTRACT 3, and the classes of all others.
const CODES: [&str; 15] = [
    "200", "400", "401", "404", "405", "408", "413", "415", "429", "503", "1xx", "2xx", "3xx",
    "4xx", "5xx",
];

/// The registry of one relay. Owned by `relay`; handles are cheap to clone and outlive nothing.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(clippy::disallowed_macros, reason = "this is the file where the handles are made")]
impl Telemetry {
    /// An empty registry with every help text.
    #[must_use]
    pub fn new() -> Self {
        let full = |name: &str| Matcher::Full(format!("{PREFIX}{name}"));
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(full("request_duration_seconds"), &REQUEST_SECONDS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(full("output_delivery_seconds"), &DELIVERY_SECONDS)
            })
            .and_then(|builder| {
                builder.set_buckets_for_metric(full("spool_sync_duration_seconds"), &SYNC_SECONDS)
            })
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        let handle = recorder.handle();
        let telemetry = Self { recorder, handle, process: metrics_process::Collector::default() };
        telemetry.with(|| {
            for (name, help) in HELP.into_iter().filter(|(_, help)| !help.is_empty()) {
                // The exporter keys help by name alone, whatever the kind.
                metrics::describe_counter!(format!("{PREFIX}{name}"), help);
            }
            telemetry.process.describe();
            let revision = option_env!("KUBE_AUDIT_FORWARDER_REVISION").unwrap_or("unknown");
            gauge("build_info", &[("version", env!("CARGO_PKG_VERSION")), ("revision", revision)])
                .set(1.0);
        });
        telemetry
    }

    fn with<T>(&self, make: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, make)
    }

    /// The Prometheus text format. The caller has set the gauges that are read on demand.
    #[must_use]
    pub fn render(&self) -> String {
        self.with(|| self.process.collect());
        self.handle.render()
    }

    /// Folds what histograms have collected; every few seconds, or they grow while nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Handles of one listener.
    #[must_use]
    pub fn listener(&self, label: &str) -> ListenerMetrics {
        self.with(|| ListenerMetrics {
            requests: CODES
                .map(|code| counter("requests_total", &[("listener", label), ("code", code)])),
            duration: histogram("request_duration_seconds", &[("listener", label)]),
            received: counter("received_bytes_total", &[("listener", label)]),
            connections: gauge("connections", &[("listener", label)]),
            rejected: REJECTIONS
                .map(|reason| counter("requests_rejected_total", &[("reason", reason)])),
        })
    }

    /// `in_flight_bytes`.
    pub fn in_flight(&self) -> Gauge {
        self.with(|| gauge("in_flight_bytes", &[]))
    }

    /// Handles of the queue.
    #[must_use]
    pub fn queue(&self) -> QueueMetrics {
        self.with(|| QueueMetrics {
            events: counter("event_total", &[]),
            levels: LEVELS.map(|level| counter("level_total", &[("level", level)])),
            last_event: gauge("last_event_timestamp_seconds", &[]),
            errors: counter("error_total", &[("plugin", "queue")]),
            bytes: gauge("queue_bytes", &[]),
            capacity: gauge("queue_capacity_bytes", &[]),
            held: gauge("queue_events", &[]),
            writable: gauge("queue_writable", &[]),
            dropped_oldest: counter("queue_dropped_events_total", &[("reason", "drop_oldest")]),
            dropped_newest: counter("queue_dropped_events_total", &[("reason", "drop_newest")]),
            sync: histogram("spool_sync_duration_seconds", &[]),
            segments: gauge("spool_segments", &[]),
            corrupt: counter("spool_corrupt_records_total", &[]),
            write_errors: counter("spool_write_errors_total", &[]),
        })
    }

    /// Handles of one output.
    #[must_use]
    pub fn output(&self, name: &str) -> OutputMetrics {
        let label = [("output", name)];
        self.with(|| OutputMetrics {
            events: counter("output_events_total", &label),
            bytes: counter("output_bytes_total", &label),
            errors: ATTEMPT_ERRORS.map(|reason| {
                counter("output_errors_total", &[("output", name), ("reason", reason)])
            }),
            retries: counter("output_retries_total", &label),
            up: gauge("output_up", &label),
            backlog_bytes: gauge("output_backlog_bytes", &label),
            backlog_events: gauge("output_backlog_events", &label),
            lag: gauge("output_lag_seconds", &label),
            start: gauge("output_start_events", &label),
            delivery: histogram("output_delivery_seconds", &label),
            lost: counter("error_total", &[("plugin", name)]),
        })
    }

    /// `error_total` of an output that is not in the config any more.
    pub fn lost(&self, name: &str) -> Counter {
        self.with(|| counter("error_total", &[("plugin", name)]))
    }

    /// Sets `tls_certificate_expiry_timestamp_seconds`. `place` is `listener` or `output`, `role` says whose certificate
    /// it is: `server` or `client`.
    pub fn certificate_expiry(
        &self,
        place: &'static str,
        name: &str,
        role: &'static str,
        not_after: i64,
    ) {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit 52 bits")]
        let seconds = not_after as f64;
        self.with(|| {
            gauge("tls_certificate_expiry_timestamp_seconds", &[(place, name), ("role", role)])
                .set(seconds)
        });
    }
}

const PREFIX: &str = "kube_audit_forwarder_";

fn key(name: &str, labels: &[(&'static str, &str)]) -> metrics::Key {
    let labels: Vec<_> =
        labels.iter().map(|(key, value)| metrics::Label::new(*key, (*value).to_owned())).collect();
    metrics::Key::from_parts(format!("{PREFIX}{name}"), labels)
}

const METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new(module_path!(), metrics::Level::INFO, None);

fn counter(name: &str, labels: &[(&'static str, &str)]) -> Counter {
    let counter =
        metrics::with_recorder(|recorder| recorder.register_counter(&key(name, labels), &METADATA));
    counter.increment(0);
    counter
}

fn gauge(name: &str, labels: &[(&'static str, &str)]) -> Gauge {
    let gauge =
        metrics::with_recorder(|recorder| recorder.register_gauge(&key(name, labels), &METADATA));
    gauge.increment(0.0);
    gauge
}

fn histogram(name: &str, labels: &[(&'static str, &str)]) -> Histogram {
    metrics::with_recorder(|recorder| recorder.register_histogram(&key(name, labels), &METADATA))
}

/// Handles of one listener; the rejections are shared by all.
#[derive(Clone)]
pub struct ListenerMetrics {
    requests: [Counter; CODES.len()],
    /// `request_duration_seconds`.
    pub duration: Histogram,
    /// `received_bytes_total`.
    pub received: Counter,
    /// `connections`.
    pub connections: Gauge,
    rejected: [Counter; REJECTIONS.len()],
}

impl ListenerMetrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        let exact = CODES.iter().position(|code| code.parse() == Ok(status));
        let class = || CODES.len() - 5 + usize::from(status / 100).clamp(1, 5) - 1;
        self.requests[exact.unwrap_or_else(class)].increment(1);
    }

    /// Counts a request that was not accepted.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].increment(1);
    }
}

/// Handles of the queue.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is the metric of its name")]
pub struct QueueMetrics {
    events: Counter,
    levels: [Counter; LEVELS.len()],
    last_event: Gauge,
    pub errors: Counter,
    pub bytes: Gauge,
    pub capacity: Gauge,
    pub held: Gauge,
    pub writable: Gauge,
    pub dropped_oldest: Counter,
    pub dropped_newest: Counter,
    pub sync: Histogram,
    pub segments: Gauge,
    pub corrupt: Counter,
    pub write_errors: Counter,
}

impl QueueMetrics {
    /// Counts an accepted batch.
    pub fn accepted(&self, events: u64, levels: &LevelCounts) {
        self.events.increment(events);
        for (counter, count) in self.levels.iter().zip(levels) {
            counter.increment(*count);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_event.set(now.as_secs_f64());
    }
}

/// Handles of one output.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is the metric of its name")]
pub struct OutputMetrics {
    pub events: Counter,
    pub bytes: Counter,
    errors: [Counter; ATTEMPT_ERRORS.len()],
    pub retries: Counter,
    pub up: Gauge,
    pub backlog_bytes: Gauge,
    pub backlog_events: Gauge,
    pub lag: Gauge,
    pub start: Gauge,
    pub delivery: Histogram,
    /// `error_total` of this output.
    pub lost: Counter,
}

impl OutputMetrics {
    /// Counts a failed attempt.
    pub fn failed(&self, reason: AttemptError) {
        self.errors[reason as usize].increment(1);
    }
}

/// Sends the log to stderr. Dependencies speak from warn on: h2 would show headers, and with them tokens, below.
///
/// A second call in the same process changes nothing.
pub fn start_log(log: Log) {
    let level = match log.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let others = level.min(Level::WARN);
    let targets = Targets::new()
        .with_default(LevelFilter::from_level(others))
        .with_target("kube_audit_forwarder", level);
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_ansi(false);
    let started = match log.format {
        LogFormat::Json => registry.with(layer.json().with_writer(io::stderr)).try_init(),
        LogFormat::Text => registry.with(layer.with_target(false).with_writer(Escaped)).try_init(),
    };
    drop(started);
}

/// Writes whole lines to stderr with every control character in them escaped: what a peer says can't forge a line.
struct Escaped;

impl<'a> MakeWriter<'a> for Escaped {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Escaped {
    /// The formatter hands over one whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(&escaped(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn escaped(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let mut safe = String::with_capacity(line.len());
    for char in text.chars() {
        if char.is_control() { safe.extend(char.escape_default()) } else { safe.push(char) }
    }
    safe.push('\n');
    safe.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_at_zero_and_has_help() {
        let telemetry = Telemetry::new();
        let listener = telemetry.listener("127.0.0.1:3000");
        let _handles = (telemetry.in_flight(), telemetry.queue(), telemetry.output("o"));
        telemetry.certificate_expiry("listener", "127.0.0.1:3000", "server", 4_102_444_800);
        listener.answered(431);
        listener.rejected(Rejection::DeliveryTimeout);
        let text = telemetry.render();
        for (name, help) in HELP.into_iter().filter(|(_, help)| !help.is_empty()) {
            assert!(text.contains(&format!("# HELP {PREFIX}{name} {help}")), "{name}\n{text}");
        }
        for line in [
            "error_total{plugin=\"queue\"} 0",
            "error_total{plugin=\"o\"} 0",
            "output_errors_total{output=\"o\",reason=\"status_5xx\"} 0",
            "level_total{level=\"other\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"200\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"4xx\"} 1",
            "requests_rejected_total{reason=\"delivery_timeout\"} 1",
            "output_delivery_seconds_count{output=\"o\"} 0",
            "tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:3000\",role=\"server\"} 4102444800",
        ] {
            assert!(text.contains(&format!("\n{PREFIX}{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn control_characters_of_a_log_line_are_escaped() {
        assert_eq!(escaped(b"a\n\x1b[31mb\xff\n"), "a\\n\\u{1b}[31mb\u{fffd}\n".as_bytes());
    }
}
