//! Every metric, with its name, help and labels, and the set-up of the log.
//!
//! Handles are made here and nowhere else, so that the set of series is closed: no label holds anything that a client
//! chooses, and each series exists from the start, at 0.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
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
use tokio::time::Instant;

use crate::audit::LEVELS;
use crate::audit::LevelCounts;

mod log;
mod memory;
mod reading;
mod reports;

pub use log::change_log;
pub use log::end_log;
pub use log::start_log;
pub use reading::Certificate;
pub use reading::Outcome;
pub use reading::Reading;
pub use reports::Cause;
pub use reports::Loss;
pub use reports::Losses;
pub use reports::LostAs;
pub use reports::Reports;
pub use reports::State;

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
const HELP: [(&str, &str); 46] = [
    ("event_total", "Events accepted."),
    ("accepted_bytes_total", "Bytes of the accepted events' lines, as the queue stores them."),
    ("last_event_timestamp_seconds", "When the last batch was accepted; 0: none since the start."),
    (
        "error_total",
        "Events accepted and then lost or refused for good, by output; plugin queue: what no output can get.",
    ),
    ("level_total", "Events accepted, by audit level."),
    ("requests_rejected_total", "Requests not accepted, by reason."),
    ("requests_total", "Answered requests, by listener and status."),
    ("request_duration_seconds", "From the end of a request's head to its answer."),
    (
        "received_bytes_total",
        "Body bytes received, as sent; also of refused requests, and so of every repetition.",
    ),
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
    (
        "output_required",
        "1 where events are kept until the consumer has them, 0 where they may be dropped.",
    ),
    ("output_backlog_bytes", "Bytes of events not yet acknowledged by the consumer."),
    ("output_backlog_events", "Events not yet acknowledged by the consumer."),
    ("output_lag_seconds", "Age of the oldest event not yet acknowledged by the consumer."),
    (
        "output_start_events",
        "Backlog found at the start; for an output added since, minus what was accepted before it joined.",
    ),
    (
        "output_delivery_seconds",
        "From the acceptance of a batch to its acknowledgement by the consumer.",
    ),
    (
        "filtered_events_total",
        "Events that an output's settings keep back (dropped, duplicate) or change (lowered, trimmed, redacted), by output and action.",
    ),
    ("dead_letter_events_total", "Events written to the dead-letter files, by output."),
    (
        "dead_letter_dropped_events_total",
        "Events in the oldest dead-letter files, deleted to keep within dead_letter.max_bytes.",
    ),
    (
        "tls_certificate_expiry_timestamp_seconds",
        "notAfter of the certificate presented, and of the peer's last seen.",
    ),
    ("config_reload_total", "Reloads of the config and of the files that it names, by result."),
    (
        "config_last_reload_timestamp_seconds",
        "When the config was reloaded last, by result; 0: not since the start.",
    ),
    (
        "log_dropped_lines_total",
        "Lines of the log that were not written: nobody reads stderr, or not as fast as lines come.",
    ),
    (
        "memory_limit_bytes",
        "Memory that the process may have: the limit of its cgroup, or of its container; 0: none.",
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

impl Rejection {
    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        REJECTIONS[self as usize]
    }
}

/// Of a [`LastRejected::message`], in characters. Ours are shorter; what a client has chosen in them is not more than a word.
const MESSAGE_MAX: usize = 300;

/// The request that was refused last, for `/status`. Holds nothing of its body but what the answer quotes of it: a word that
/// should have been another.
#[derive(Debug, Clone)]
pub struct LastRejected {
    /// Of the listener, or the source, that it came to.
    pub listener: Arc<str>,
    /// Why.
    pub reason: Rejection,
    /// The status of its answer.
    pub code: u16,
    /// What its sender was told.
    pub message: String,
    /// When.
    pub at: Instant,
}

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
    log_dropped: Counter,
    last_rejected: Arc<Mutex<Option<LastRejected>>>,
    reports: Reports,
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
        let process = metrics_process::Collector::default();
        let log_dropped =
            metrics::with_local_recorder(&recorder, || counter("log_dropped_lines_total", &[]));
        let (last_rejected, reports) = (Arc::default(), Reports::default());
        let telemetry = Self { recorder, handle, process, log_dropped, last_rejected, reports };
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
        #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^60")]
        let limit = memory::limit().unwrap_or_default() as f64;
        self.with(|| {
            self.process.collect();
            gauge("memory_limit_bytes", &[]).set(limit);
        });
        self.log_dropped.absolute(log::dropped_lines());
        self.handle.render()
    }

    /// What [`Telemetry::render`] says, as numbers.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading::new(&self.render())
    }

    /// The request that was refused last.
    #[must_use]
    pub fn last_rejected(&self) -> Option<LastRejected> {
        self.last_rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As [`Telemetry::render`], without the states of what a reload has removed: `is_there` is asked with `output` or
    /// `listener` and the name. Nobody would ever set them again, and an alert on them would never end. Counters stay.
    pub fn render_states_of(&self, is_there: impl Fn(&str, &str) -> bool) -> String {
        let shown = |line: &&str| state_of(line).is_none_or(|(place, name)| is_there(place, name));
        self.render().split_inclusive('\n').filter(shown).collect()
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
            label: label.into(),
            last_rejected: Arc::clone(&self.last_rejected),
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
            accepted_bytes: counter("accepted_bytes_total", &[]),
            levels: LEVELS.map(|level| counter("level_total", &[("level", level)])),
            last_event: gauge("last_event_timestamp_seconds", &[]),
            errors: counter("error_total", &[("plugin", reports::QUEUE)]),
            losses: self.reports.losses(reports::QUEUE),
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

    /// Counts reloads of the config.
    #[must_use]
    pub fn reloads(&self) -> ReloadMetrics {
        let results = ["success", "error"].map(|result| [("result", result)]);
        self.with(|| ReloadMetrics {
            count: results.map(|label| counter("config_reload_total", &label)),
            last: results.map(|label| gauge("config_last_reload_timestamp_seconds", &label)),
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
            losses: self.reports.losses(name),
            dead_letters: counter("dead_letter_events_total", &label),
            filtered: Filtered::new(name),
        })
    }

    /// Sets `output_required`.
    pub fn output_required(&self, name: &str, required: bool) {
        let value = f64::from(u8::from(required));
        self.with(|| gauge("output_required", &[("output", name)]).set(value));
    }

    /// Counts the backlog of an output that is not in the config any more.
    pub fn removed(&self, name: &str, events: u64) {
        self.with(|| counter("error_total", &[("plugin", name)])).increment(events);
        self.reports.losses(name).add(Loss::Removed, events, None);
    }

    /// `dead_letter_dropped_events_total`.
    pub fn dead_letters_dropped(&self) -> DroppedLetters {
        let counter = self.with(|| counter("dead_letter_dropped_events_total", &[]));
        DroppedLetters { counter, losses: self.reports.losses(reports::QUEUE) }
    }

    /// The reporter of losses and of states that change.
    #[must_use]
    pub fn reports(&self) -> Reports {
        self.reports.clone()
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

/// What an output or a listener is now, and not what it has done; the place is their first label.
const STATES: [&str; 3] =
    ["output_up", "output_required", "tls_certificate_expiry_timestamp_seconds"];

/// Of a line of [`STATES`]: `output` or `listener`, and its name.
fn state_of(line: &str) -> Option<(&str, &str)> {
    let (metric, labels) = line.strip_prefix(PREFIX)?.split_once('{')?;
    let (place, rest) = labels.split_once("=\"")?;
    let (name, _) = rest.split_once('"')?;
    STATES.contains(&metric).then_some((place, name))
}

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
    label: Arc<str>,
    last_rejected: Arc<Mutex<Option<LastRejected>>>,
}

impl ListenerMetrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        let exact = CODES.iter().position(|code| code.parse() == Ok(status));
        let class = || CODES.len() - 5 + usize::from(status / 100).clamp(1, 5) - 1;
        self.requests[exact.unwrap_or_else(class)].increment(1);
    }

    /// Counts a request that was not accepted. `message` is what its sender is told.
    pub fn rejected(&self, reason: Rejection, code: u16, message: &str) {
        self.rejected[reason as usize].increment(1);
        let last = LastRejected {
            listener: Arc::clone(&self.label),
            reason,
            code,
            message: message.chars().take(MESSAGE_MAX).collect(),
            at: Instant::now(),
        };
        *self.last_rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

/// Handles of the queue.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is the metric of its name")]
pub struct QueueMetrics {
    events: Counter,
    accepted_bytes: Counter,
    levels: [Counter; LEVELS.len()],
    last_event: Gauge,
    pub errors: Counter,
    /// Notes events that no output can get for the log.
    losses: Losses,
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
    /// Counts an accepted batch: its events, the bytes of their lines, and the events by level.
    pub fn accepted(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        self.events.increment(events);
        self.accepted_bytes.increment(bytes);
        for (counter, count) in self.levels.iter().zip(levels) {
            counter.increment(*count);
        }
        self.last_event.set(now());
    }

    /// Counts a batch that was accepted and dropped, so that no output can get it.
    pub fn drop_newest(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        self.accepted(events, bytes, levels);
        self.errors.increment(events);
        self.dropped_newest.increment(events);
        self.losses.add(Loss::DropNewest, events, None);
    }

    /// Notes a damaged place of the queue's files for the log. What it costs is noted by the
    /// outputs that pass it.
    pub fn damaged(&self, place: &str) {
        self.losses.note(Loss::Damaged, 1, Some(place));
    }

    /// A state of the queue, or of its disk, is another than it was.
    pub fn changed(&self, state: State) {
        self.losses.changed(state);
    }
}

/// Dead letters that were deleted to keep within `dead_letter.max_bytes`: events that their outputs
/// have counted as lost before.
#[derive(Clone)]
pub struct DroppedLetters {
    counter: Counter,
    losses: Losses,
}

impl DroppedLetters {
    /// Counts them.
    pub fn add(&self, events: u64) {
        self.counter.increment(events);
        self.losses.note(Loss::DeadLetters, events, None);
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Handles of reloads: of those that succeed, and of those that do not.
pub struct ReloadMetrics {
    count: [Counter; 2],
    last: [Gauge; 2],
}

impl ReloadMetrics {
    /// Counts one.
    pub fn reloaded(&self, success: bool) {
        let index = usize::from(!success);
        self.count[index].increment(1);
        self.last[index].set(now());
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
    /// Notes its losses for the log.
    pub losses: Losses,
    /// `dead_letter_events_total`.
    pub dead_letters: Counter,
    /// `filtered_events_total`.
    pub filtered: Filtered,
}

/// What an output's settings do to its events, by action. One event may be lowered, trimmed and redacted; one that is
/// dropped or a duplicate is nothing else, and does not leave.
#[derive(Clone)]
#[allow(missing_docs, reason = "each field is the action of its name")]
pub struct Filtered {
    pub dropped: Counter,
    pub duplicate: Counter,
    pub lowered: Counter,
    pub trimmed: Counter,
    pub redacted: Counter,
}

impl Filtered {
    fn new(output: &str) -> Self {
        let of =
            |action| counter("filtered_events_total", &[("output", output), ("action", action)]);
        Self {
            dropped: of("dropped"),
            duplicate: of("duplicate"),
            lowered: of("lowered"),
            trimmed: of("trimmed"),
            redacted: of("redacted"),
        }
    }
}

impl OutputMetrics {
    /// Counts events as lost, and notes them for the log.
    pub fn lose(&self, loss: Loss, events: u64) {
        self.lost.increment(events);
        self.losses.add(loss, events, None);
    }

    /// Counts a failed attempt.
    pub fn failed(&self, reason: AttemptError) {
        self.errors[reason as usize].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_at_zero_and_has_help() {
        let telemetry = Telemetry::new();
        let listener = telemetry.listener("127.0.0.1:3000");
        let _handles = (telemetry.in_flight(), telemetry.queue(), telemetry.output("o"));
        let _dropped = telemetry.dead_letters_dropped();
        let _reloads = telemetry.reloads();
        telemetry.certificate_expiry("listener", "127.0.0.1:3000", "server", 4_102_444_800);
        telemetry.output_required("o", true);
        listener.answered(431);
        listener.rejected(Rejection::DeliveryTimeout, 503, "too late");
        let text = telemetry.render();
        for (name, help) in HELP.into_iter().filter(|(_, help)| !help.is_empty()) {
            assert!(text.contains(&format!("# HELP {PREFIX}{name} {help}")), "{name}\n{text}");
        }
        for line in [
            "error_total{plugin=\"queue\"} 0",
            "error_total{plugin=\"o\"} 0",
            "output_errors_total{output=\"o\",reason=\"status_5xx\"} 0",
            "dead_letter_events_total{output=\"o\"} 0",
            "filtered_events_total{output=\"o\",action=\"dropped\"} 0",
            "filtered_events_total{output=\"o\",action=\"duplicate\"} 0",
            "filtered_events_total{output=\"o\",action=\"lowered\"} 0",
            "filtered_events_total{output=\"o\",action=\"trimmed\"} 0",
            "filtered_events_total{output=\"o\",action=\"redacted\"} 0",
            "dead_letter_dropped_events_total 0",
            "log_dropped_lines_total 0",
            "level_total{level=\"other\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"200\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"4xx\"} 1",
            "requests_rejected_total{reason=\"delivery_timeout\"} 1",
            "output_delivery_seconds_count{output=\"o\"} 0",
            "output_required{output=\"o\"} 1",
            "tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:3000\",role=\"server\"} 4102444800",
        ] {
            assert!(text.contains(&format!("\n{PREFIX}{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn a_reading_says_what_is_rendered() {
        let telemetry = Telemetry::new();
        let (queue, output) = (telemetry.queue(), telemetry.output("o"));
        let listener = telemetry.listener("[::]:3000");
        let before = telemetry.read();
        assert_eq!((before.accepted_events(), before.last_event()), (0, None));
        assert_eq!((before.all_lost_events(), before.certificates()), (0, vec![]));
        assert_eq!(before.reloads("success"), (0, None));
        queue.accepted(7, 7000, &LevelCounts::default());
        queue.errors.increment(2);
        output.lost.increment(3);
        telemetry.removed("gone", 4);
        output.events.increment(5);
        output.dead_letters.increment(1);
        listener.connections.set(6.0);
        listener.received.increment(1 << 40);
        listener.rejected(Rejection::QueueFull, 429, &"x".repeat(10_000));
        telemetry.certificate_expiry("output", "o", "server", 4_102_444_800);
        telemetry.certificate_expiry("listener", "[::]:3000", "client", 1_000_000_000);
        telemetry.reloads().reloaded(false);
        let reading = telemetry.read();
        assert_eq!(reading.accepted_events(), 7);
        assert!(reading.started() > 0.0 && reading.memory_bytes() > 0);
        assert!(reading.last_event().is_some_and(|time| time > reading.started()));
        assert_eq!((reading.lost_events("queue"), reading.lost_events("o")), (2, 3));
        assert_eq!(reading.all_lost_events(), 9);
        assert_eq!((reading.delivered_events("o"), reading.dead_letter_events("o")), (5, 1));
        assert_eq!(reading.connections("[::]:3000"), 6);
        assert_eq!(reading.received_bytes("[::]:3000"), 1 << 40);
        let rejected = reading.rejected_requests();
        assert_eq!(
            rejected.iter().find(|(reason, _)| *reason == "queue_full"),
            Some(&("queue_full", 1))
        );
        assert_eq!((reading.reloads("error").0, reading.reloads("success").0), (1, 0));
        let certificate = |place: &str, name: &str, role: &str, not_after| Certificate {
            place: place.into(),
            name: name.into(),
            role: role.into(),
            not_after,
        };
        let certificates = [
            certificate("listener", "[::]:3000", "client", 1_000_000_000),
            certificate("output", "o", "server", 4_102_444_800),
        ];
        assert_eq!(reading.certificates(), certificates);
        let last = telemetry.last_rejected().unwrap();
        assert_eq!(
            (last.reason.name(), last.code, &*last.listener),
            ("queue_full", 429, "[::]:3000")
        );
        assert_eq!(last.message.len(), MESSAGE_MAX);
    }

    #[test]
    fn what_was_removed_has_no_state_any_more_and_keeps_its_counters() {
        let telemetry = Telemetry::new();
        let _handles = ["a", "b"].map(|name| telemetry.output(name));
        for name in ["a", "b"] {
            telemetry.output_required(name, false);
            telemetry.certificate_expiry("output", name, "server", 1);
        }
        telemetry.certificate_expiry("listener", "a", "server", 1);
        let text = telemetry.render_states_of(|place, name| (place, name) == ("output", "a"));
        let of = |labels: &str| {
            text.lines()
                .filter(|line| line.contains(labels))
                .map(|line| line.split_once('{').unwrap().0)
                .collect::<Vec<_>>()
        };
        let [with, without] = [of("output=\"a\""), of("output=\"b\"")];
        for state in STATES.map(|name| format!("{PREFIX}{name}")) {
            assert!(with.contains(&&*state) && !without.contains(&&*state), "{state}\n{text}");
        }
        assert!(without.contains(&&*format!("{PREFIX}output_events_total")), "{text}");
        assert!(!text.contains("{listener=\"a\""), "{text}");
        assert_eq!(with.len() - STATES.len(), without.len());
    }
}
