//! Every metric of the relay, declared once. A new counter needs one declaration here, one call
//! where the program counts, and its section on the page `docs/reference/metrics.md`, which a test
//! compares with the declarations.
//!
//! `help` is the text on `/metrics`. A change of a `help`, or of a name, needs a line in
//! CHANGELOG.md.
//!
//! No client chooses the value of a label, so the number of series is bounded. The values are from
//! the config, from the build, from a fixed set, or hashes of at most 16 names. Most series exist
//! from the start, with 0; the head of the reference page has the exceptions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::Histogram;
use tokio::time::Instant;

use super::declare::{DEFAULTS, Each, Handle, Kind, Metric, catalog, full_name};
use super::labels::{
    APISERVER, AddressState, AttemptError, ChangedEvent, Code, Dropped, EvidenceError, Filtered,
    LISTENER, Levels, OUTPUT, PLUGIN, REVISION, ROLE, RefusedConnection, Rejection, Reloaded,
    TlsFailure, VERSION, WITNESS,
};
use super::recent::RecentTimes;
use super::refusals::Refusals;
use super::registry::{Counter, Gauge, Registry};
use super::reports::Losses;

/// Bucket bounds in seconds: from a small batch (below 100 µs) to a wait for delivery (30 s).
const REQUEST_SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0,
];

/// Bucket bounds in seconds: from a single event (1 ms) to an outage of a day.
const DELIVERY_SECONDS: [f64; 13] =
    [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

/// Bucket bounds in seconds: from a write to a cache (100 µs) to a disk about to fail (10 s).
const SYNC_SECONDS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

catalog! {
    /// The metric of the lost events of one output, or of the queue.
    pub(super) struct LostMetrics [PLUGIN] {
        pub(super) events: Counter = "error_total",
            "Accepted events that were then lost or refused for good, by output; plugin \"queue\": \
                lost before any output could get them.";
    }

    /// The metrics of the batches that the queue accepts.
    pub struct AcceptedMetrics [] {
        pub events: Counter = "event_total", "Events accepted.";
        pub bytes: Counter = "accepted_bytes_total",
            "Bytes of accepted events, as stored in the queue.";
        pub levels: Levels = "level_total", "Events accepted, by audit level.";
        pub last: Gauge = "last_event_timestamp_seconds",
            "When the last batch was accepted; 0: none since the start.";
    } with {
        /// The state of refused requests, which changes when a batch is accepted.
        pub refusals: Refusals,
    }

    /// The metrics of the queue.
    pub struct QueueMetrics [] {
        pub bytes: Gauge = "queue_bytes",
            "Bytes held by the queue, as queue.max_bytes counts them.";
        pub needed: Gauge = "queue_needed_bytes",
            "Queue bytes that required outputs still need, or that cannot be dropped.";
        pub capacity: Gauge = "queue_capacity_bytes", "Size limit of the queue (queue.max_bytes).";
        pub durable: Gauge = "queue_durable", "1 if the queue is on disk, 0 if it is in memory.";
        pub earlier: Gauge = "queue_earlier_events",
            "Events that earlier processes had accepted into the queue's directory.";
        pub held: Gauge = "queue_events", "Events held by the queue.";
        pub writable: Gauge = "queue_writable",
            "1 if the queue can write events, 0 if not, regardless of how full it is.";
        pub dropped: Each<Dropped, Counter> = "queue_dropped_events_total",
            "Events dropped because of queue.when_full, each counted once.";
    } with {
        /// The metrics of the batches that the queue accepts.
        pub accepted: AcceptedMetrics,
        /// The metrics of the files of a queue on disk.
        pub spool: SpoolMetrics,
        /// The counter `error_total` for events that no output can get, such as a dropped batch.
        pub errors: Counter,
        /// The log's notes about the events that no output can get.
        pub losses: Losses,
    }

    /// The metrics of the files of a queue on disk.
    pub struct SpoolMetrics [] {
        pub sync: Histogram = "spool_sync_duration_seconds",
            "Time to write and sync a group of batches to the queue's directory.",
            buckets: &SYNC_SECONDS;
        pub segments: Gauge = "spool_segments", "Files in the durable queue.";
        pub corrupt: Counter = "spool_corrupt_records_total",
            "Damaged places found in the queue's files, each counted once.";
        pub write_errors: Counter = "spool_write_errors_total",
            "Failed writes, syncs and deletes in the queue's directory.";
    }

    /// The metrics of one listener or source.
    pub struct ListenerMetrics [LISTENER] {
        pub requests: Each<Code, Counter> = "requests_total",
            "Requests that got a response, by listener and status code.";
        pub joined: Counter = "requests_joined_total",
            "Requests that joined the batch of an earlier request with the same body.";
        pub duration: Histogram = "request_duration_seconds",
            "Time from the end of a request's head to its response.", buckets: &REQUEST_SECONDS;
        pub received: Counter = "received_bytes_total",
            "Body bytes received, before decompression, including refused and repeated requests.";
        pub changed_events: Each<ChangedEvent, Counter> = "changed_events_total",
            "Events that were changed before they were accepted, by change.";
        pub rejected_items: Counter = "rejected_items_total",
            "Items of accepted bodies that are not audit events.";
        pub connections: Gauge = "connections", "Open connections.";
        pub refused: Each<RefusedConnection, Counter> = "connections_refused_total",
            "Connections that were closed because of limits.max_connections, or could not be \
                accepted, by reason.";
        pub tls_failures: Each<TlsFailure, Counter> = "listener_tls_failures_total",
            "Failed TLS handshakes with senders, by reason.";
    } with {
        /// The counters of refused requests, which all listeners and sources share.
        pub rejections: RejectionMetrics,
        /// The label of the listener or source: its address in the config, or its name.
        pub label: Arc<str>,
        /// The state of refused requests, over all listeners and sources.
        pub refusals: Refusals,
        /// The times from the end of a body to the response that accepts it.
        pub times: Arc<Mutex<RecentTimes>>,
    }

    /// The counters of refused requests, over all listeners and sources.
    pub struct RejectionMetrics [] {
        pub requests: Each<Rejection, Counter> = "requests_rejected_total",
            "Rejected requests, by reason.";
    }

    /// The metrics of the time since which every batch has been refused.
    pub(super) struct RefusingMetrics [] {
        pub(super) since: Gauge = "requests_rejected_since_timestamp_seconds",
            "When the first request was refused after the last accepted batch; 0: none.";
        pub(super) requests: Gauge = "requests_rejected_since_last_accepted",
            "Requests refused after the last accepted batch.";
    }

    /// The metric of the request bodies that count for `limits.max_in_flight`.
    pub(super) struct InFlightMetrics [] {
        pub bytes: Gauge = "in_flight_bytes",
            "Body bytes that are not in the queue yet, or that wait to be acknowledged.";
    }

    /// The metric of one kube-apiserver.
    pub(super) struct ApiserverMetrics [APISERVER] {
        pub(super) last_heard: Gauge = "apiserver_last_heard_timestamp_seconds",
            "When this kube-apiserver's own events were last accepted here.";
    }

    /// The metrics of one output.
    pub struct OutputMetrics [OUTPUT] {
        pub events: Counter = "output_events_total",
            "Events acknowledged by the consumer, each counted once.";
        pub bytes: Counter = "output_bytes_total", "Bytes sent to the consumer, including retries.";
        pub errors: Each<AttemptError, Counter> = "output_errors_total",
            "Failed attempts, by reason.";
        pub aside: Gauge = "output_aside_events",
            "Events set aside: the consumer accepts others, but not these.";
        pub existing: Counter = "output_existing_events_total",
            "Events that the consumer reported as already stored by an earlier attempt.";
        pub retries: Counter = "output_retries_total", "Delivery attempts after the first.";
        pub up: Gauge = "output_up",
            "1 if the consumer accepts events, 0 if it has accepted none that were tried.",
            is_state: true;
        pub paused: Gauge = "output_paused",
            "1 if the output is paused by the config, 0 if not.", is_state: true;
    } with {
        /// The metrics of the events that the consumer has not acknowledged yet.
        pub backlog: BacklogMetrics,
        /// The metrics of the fates of the output's events.
        pub fates: FateMetrics,
        /// The counter `error_total` of this output, which counts its lost events.
        pub lost: Counter,
        /// The log's notes about the events that this output has lost.
        pub losses: Losses,
    }

    /// The metrics of the events that the consumer of one output has not acknowledged yet.
    pub struct BacklogMetrics [OUTPUT] {
        pub bytes: Gauge = "output_backlog_bytes",
            "Bytes of events not yet acknowledged by the consumer.";
        pub events: Gauge = "output_backlog_events", "Events not yet acknowledged by the consumer.";
        pub lag: Gauge = "output_lag_seconds",
            "Age of the oldest event not yet acknowledged by the consumer.";
        pub start: Gauge = "output_start_events",
            "Backlog at startup. For an output that a reload added: the number of events accepted \
                before the reload, as a negative number.";
    }

    /// The metrics of the fates of one output's events.
    pub struct FateMetrics [OUTPUT] {
        pub delivery: Histogram = "output_delivery_seconds",
            "Time from accepting a batch to its acknowledgement by the consumer.",
            buckets: &DELIVERY_SECONDS;
        pub dead_letters: Counter = "dead_letter_events_total",
            "Events written to the dead-letter files, by output.";
        pub filtered: Each<Filtered, Counter> = "filtered_events_total",
            "Events filtered out (dropped, duplicate) or changed (lowered, trimmed, redacted) by \
                an output's settings, by output and action.";
    } with {
        /// The delivery latencies of the last minutes, for `/status`.
        pub times: Arc<Mutex<RecentTimes>>,
    }

    /// The metrics of the settings of one output.
    pub(super) struct SettingMetrics [OUTPUT] {
        pub(super) required: Gauge = "output_required",
            "1 if the output is required, 0 if its events may be dropped to make room.",
            is_state: true;
        pub(super) lag_max: Gauge = "output_lag_max_seconds",
            "Lag above which the output counts as late.", is_state: true;
    }

    /// The metric of the addresses of one output.
    pub(super) struct AddressMetrics [OUTPUT] {
        pub addresses: Each<AddressState, Gauge> = "output_addresses",
            "Addresses of the output, by state.", is_state: true;
    }

    /// The metric of the dead letters that were deleted to keep within `dead_letter.max_bytes`.
    pub struct DroppedLetters [] {
        pub events: Counter = "dead_letter_dropped_events_total",
            "Events in dead-letter files that were deleted to keep within dead_letter.max_bytes.";
    } with {
        /// The log's notes about deleted dead letters.
        pub losses: Losses,
    }

    /// The metrics of one certificate.
    pub(super) struct CertificateMetrics ["listener or output", ROLE] {
        pub not_after: Gauge = "tls_certificate_expiry_timestamp_seconds",
            "Expiry (notAfter) of the relay's own certificate, or of the one that the peer \
                presented last.",
            is_state: true;
    }

    /// The metrics of config reloads, by result.
    pub struct ReloadMetrics [] {
        pub count: Each<Reloaded, Counter> = "config_reload_total",
            "Reloads of the config and of the files that it names, by result.";
        pub last: Each<Reloaded, Gauge> = "config_last_reload_timestamp_seconds",
            "When the config was last reloaded, by result; 0: not since the start.";
    }

    /// The metrics of the evidence log. Without the section `[evidence]` all values stay 0.
    pub struct EvidenceMetrics [] {
        pub size: Gauge = "evidence_size", "Entries of the evidence log.";
        pub checkpoint: Gauge = "evidence_last_checkpoint_timestamp_seconds",
            "When the last checkpoint of the evidence was signed; 0: not since the start.";
        pub errors: Each<EvidenceError, Counter> = "evidence_errors_total",
            "Failed attempts to record evidence, by reason.";
    } with {
        pub(super) last_errors: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
        pub(super) last_signed: Arc<Mutex<Option<Instant>>>,
    }

    /// The metrics of one witness.
    pub struct WitnessMetrics [WITNESS] {
        pub last: Gauge = "evidence_witness_timestamp_seconds",
            "When the witness last cosigned a checkpoint; 0: not since the start.";
    }

    /// The metrics of taps, which show events to people.
    pub struct TapMetrics [] {
        pub taps: Gauge = "taps", "Open taps: people who are watching the events sent.";
        pub shown: Counter = "tap_shown_events_total", "Events that were written to taps.";
        pub skipped: Counter = "tap_skipped_events_total",
            "Events that taps did not show: over a tap's limits, or unreadable.";
    }

    /// The metrics of the log, of refused scrapes, of the memory limit and of earlier processes.
    pub(super) struct ProgramMetrics [] {
        pub(super) log_dropped: Counter = "log_dropped_lines_total",
            "Log lines dropped because stderr is read too slowly or not at all.";
        pub(super) unauthorized: Counter = "metrics_unauthorized_total",
            "Requests for /metrics that were refused with 401.";
        pub memory_limit: Gauge = "memory_limit_bytes",
            "Memory limit of the process, set by its cgroup or container; 0: no limit.";
        pub last_killed: Gauge = "last_killed_timestamp_seconds",
            "When a process was last killed before it could shut down, within 24 hours; 0: none \
                known.";
        pub earlier_lost: Gauge = "earlier_lost_events",
            "Events lost by earlier processes, until 24 hours after the last loss; 0: none known.";
    }

    /// The metric of the build that runs.
    pub(super) struct BuildMetrics [VERSION, REVISION] {
        pub(super) info: Gauge = "build_info",
            "Always 1; the labels contain the version and revision of this build.";
    }
}

const PROCESS: &[Metric] = &[
    of_process(
        "process_cpu_seconds_total",
        Kind::Counter,
        "Total user and system CPU time spent in seconds.",
    ),
    of_process("process_open_fds", Kind::Gauge, "Number of open file descriptors."),
    of_process("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors."),
    of_process("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes."),
    of_process(
        "process_virtual_memory_max_bytes",
        Kind::Gauge,
        "Maximum amount of virtual memory available in bytes.",
    ),
    of_process("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes."),
    of_process(
        "process_start_time_seconds",
        Kind::Gauge,
        "Start time of the process since unix epoch in seconds.",
    ),
    of_process("process_threads", Kind::Gauge, "Number of OS threads in the process."),
];

const fn of_process(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, kind, help, ..DEFAULTS }
}

/// Returns every metric that this crate registers: all but those of the process.
pub(crate) fn own() -> impl Iterator<Item = &'static Metric> {
    FAMILIES.iter().copied().flatten()
}

pub(crate) fn process() -> impl Iterator<Item = &'static Metric> {
    PROCESS.iter()
}
