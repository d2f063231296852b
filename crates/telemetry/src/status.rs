//! The JSON that `/status` answers, as types. The relay writes and judges its
//! own state by these types, and `top` and `doctor` read another relay's state into them.
//!
//! A field that is missing gets its default, so that the answers of an older relay can be read too.
//! The comments of the fields are the tables of docs/reference/status-json.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub mod thresholds;
pub mod verdict;

use thresholds::{PATIENCE_MAX, PATIENCE_WITH_RETRY_AFTER};

/// Reads a value. `null`, which stands for "not known yet", becomes the default of its type.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    source: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

/// The state of a relay at one moment: the answer of `/status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process and its memory.
    #[serde(flatten)]
    pub process: Process,
    /// The requests of senders, and the events that came with them.
    #[serde(flatten)]
    pub intake: Intake,
    /// The events lost or refused for good, by the queue and by all outputs.
    #[serde(flatten)]
    pub losses: Losses,
    /// The kube-apiservers from which this relay has received events in the last hour, sorted by
    /// name; at most 16.
    pub apiservers: Vec<Apiserver>,
    /// The listeners, in the order of the config.
    pub listeners: Vec<Listener>,
    /// The sources, in the order of the config.
    pub sources: Vec<Source>,
    /// The queue.
    pub queue: Queue,
    /// The outputs, in the order of the config.
    pub outputs: Vec<Output>,
    /// The certificates of the outputs and listeners.
    pub certificates: Vec<Certificate>,
    /// The reloads of the config.
    pub reloads: Reloads,
    /// The rights that the process has kept.
    #[serde(rename = "process")]
    pub permissions: Permissions,
    /// The evidence log; `None` if the config has no `[evidence]`.
    pub evidence: Option<Evidence>,
    /// The relay's judgement of its own state; `None` from a relay that gives none.
    pub verdict: Option<verdict::Verdict>,
}

/// The process and its memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The version of the program.
    pub version: String,
    /// The commit of the program; `unknown` if the build did not set it.
    pub revision: String,
    /// The name of the machine; in Kubernetes, of the pod.
    pub host: String,
    /// The time of the response, in seconds since 1970.
    pub time_seconds: f64,
    /// The start of the process, in seconds since 1970.
    pub start_time_seconds: f64,
    /// The time since the start of the relay, in seconds.
    pub uptime_seconds: u64,
    /// The number of asynchronous tasks.
    pub tasks: u64,
    /// `true`: all outputs, listeners and sources are open. From then until `stopping`, `/readyz`
    /// may be ready.
    pub started: bool,
    /// `true`: the relay is shutting down.
    pub stopping: bool,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// The memory limit of its cgroup, in bytes; `None` if there is no limit.
    pub memory_limit_bytes: Option<u64>,
    /// Log lines that were not written, because stderr is read too slowly or not at all, or could
    /// not be written.
    pub log_dropped_lines: u64,
    /// The error of the last write of log lines that failed; `None` if none has failed.
    pub log_error: Option<String>,
    /// When an earlier process was last killed before it could shut down, within 24 hours, such as
    /// `2026-11-26T04:35:04Z`; `None` if none was. Accurate to a few seconds; stored in
    /// `process.state_directory` or `queue.directory`.
    pub last_killed: Option<String>,
    /// `true`: the queue of the killed process was in memory, or in a directory that was deleted
    /// with its pod, so that nobody knows which events it had.
    pub last_killed_with_queue: bool,
}

/// The requests of senders, and the events that came with them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Intake {
    /// The `queue.acknowledge` setting: `queued`, `delivered` or `synced`; `None` until the queue
    /// is open.
    pub acknowledge: Option<String>,
    /// Bytes of request bodies that are not in the queue yet.
    pub in_flight_bytes: u64,
    /// Events accepted since the start (`event_total`).
    pub accepted_events: u64,
    /// Events accepted per second, over the last minute.
    pub accepted_events_per_second: Option<f64>,
    /// Body bytes received per second, over the last minute.
    pub received_bytes_per_second: Option<f64>,
    /// The age of the last accepted batch, in seconds; `None` if there is none yet.
    pub last_event_seconds_ago: Option<f64>,
    /// The last 16 test requests of `deploy/connect.sh` whose events this relay has accepted,
    /// newest first: the digits at the end of the name.
    pub probes: Vec<String>,
    /// Refused requests since the start, by reason, as in `requests_rejected_total`.
    pub rejected_requests: BTreeMap<String, u64>,
    /// Requests refused with 429 per second, over the last minute.
    pub refused_429_per_second: Option<f64>,
    /// The age of the last 429 caused by `limits.max_in_flight`, in seconds; `None` if there was
    /// none.
    pub in_flight_full_seconds_ago: Option<f64>,
    /// For how long the relay refused requests.
    pub refusals: Refusals,
    /// The last refused request; `None` if none was refused since the start.
    pub last_rejected: Option<Rejected>,
    /// The last request that was refused for good; `None` if none was refused since the start.
    pub last_final_refusal: Option<Rejected>,
    /// Refused connections by reason, as in `connections_refused_total`: `count` and
    /// `last_seconds_ago`. Only reasons that have occurred since the start.
    pub refused_connections: BTreeMap<String, Occurred>,
    /// The last failed TLS handshake with a sender; `None` if none has failed since the start.
    pub last_tls_failure: Option<TlsFailure>,
}

/// The events lost or refused for good, by the queue and by all outputs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Events lost or refused for good since the start (`error_total`), by the queue and all
    /// outputs, including outputs that have been removed. Normally 0, unless an output has
    /// `required = false`.
    pub lost_events: u64,
    /// The age of the last of these losses, in seconds; `None` if there was none.
    pub last_lost_seconds_ago: Option<f64>,
    /// Events lost per second, over the last minute.
    pub lost_events_per_second: Option<f64>,
    /// Events lost by earlier processes, as far as they are recorded; shown for 24 hours after the
    /// last loss (`earlier_lost_events`). Stored in the same place as `last_killed`.
    pub earlier_lost_events: u64,
    /// When an earlier process last lost events, in the format of `last_killed`; `None` if none
    /// did.
    pub earlier_last_lost: Option<String>,
    /// `true`: all losses of earlier processes in the last 24 hours are recorded. `false` for 24
    /// hours after a kill or a damaged record, and in the first 24 hours of a process that has
    /// found no record: the first one that uses the directory, or one without a directory.
    pub earlier_known: bool,
    /// Events in dead letters that were deleted to keep within `dead_letter.max_bytes`.
    pub dead_letters_dropped_events: u64,
}

/// For how long the relay refused requests, by the kind of the refusal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusals {
    /// Requests refused with 429: the queue is full, or too many bytes are in flight.
    pub with_429: RefusalTimes,
    /// Requests refused with 503: the disk refuses writes, or the consumers are too slow.
    pub with_503: RefusalTimes,
    /// POST requests that were refused for good, and failed TLS handshakes.
    pub permanent: RefusalTimes,
}

impl Refusals {
    /// Returns for how long everything has been refused, and for how long kube-apiserver repeats a
    /// batch that is refused in this way, in seconds. `None` if the first time is shorter.
    pub fn shut(&self) -> Option<(f64, f64)> {
        let is_permanent = self.permanent.long_shut_ended_seconds_ago.is_some();
        let permanent = self.permanent.shut_for(PATIENCE_MAX).filter(|_| is_permanent);
        let times = [
            (self.with_429.shut_for(PATIENCE_WITH_RETRY_AFTER), PATIENCE_WITH_RETRY_AFTER),
            (self.with_503.shut_for(PATIENCE_WITH_RETRY_AFTER), PATIENCE_WITH_RETRY_AFTER),
            (permanent, PATIENCE_MAX),
        ];
        let times = times.into_iter().filter_map(|(seconds, patience)| Some((seconds?, patience)));
        times.max_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1)))
    }
}

/// For how long requests were refused. A *spell* lasts up to the last refusal before a pause of a
/// minute. It is *shut* as long as no batch is accepted in it. It is *long* if kube-apiserver gives
/// up a batch that is refused for this time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusalTimes {
    /// How long requests have been refused without a one-minute pause; `None` if none was refused
    /// in the last minute.
    pub seconds: Option<f64>,
    /// The same, counted from the last accepted event; `None` if events are accepted.
    pub shut_seconds: Option<f64>,
    /// The longest `seconds` since the start.
    pub longest_seconds: f64,
    /// The longest `shut_seconds` since the start.
    pub longest_shut_seconds: f64,
    /// The age of the last refusal in a period longer than kube-apiserver retries a batch; `None`
    /// if there was none.
    pub long_ended_seconds_ago: Option<f64>,
    /// The same, for a period without accepted events.
    pub long_shut_ended_seconds_ago: Option<f64>,
    /// The number of refusals in all such periods without accepted events.
    pub long_shut_requests: u64,
}

impl RefusalTimes {
    /// Returns for how long everything has been refused, in seconds; `None` if less than
    /// `patience`.
    pub fn shut_for(&self, patience: f64) -> Option<f64> {
        self.shut_seconds.filter(|seconds| *seconds >= patience)
    }
}

/// A refused request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rejected {
    /// The listener or source that received the request.
    pub listener: String,
    /// The reason, as in `requests_rejected_total`.
    pub reason: String,
    /// The HTTP status of the response.
    pub code: u16,
    /// The text of the response or, for a source, the reason of the refusal; at most 300
    /// characters. The only sender data it may contain is a wrong value, such as that of `kind`.
    pub message: String,
    /// The age of the refusal, in seconds.
    pub seconds_ago: f64,
}

/// A failed TLS handshake of a sender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsFailure {
    /// The address of the listener, as configured.
    pub listener: String,
    /// The reason, as in `listener_tls_failures_total`.
    pub reason: String,
    /// The age of the failure, in seconds.
    pub seconds_ago: f64,
}

/// A kube-apiserver whose events this relay has received.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Apiserver {
    /// The name of its Lease in `kube-system`.
    pub name: String,
    /// The `apiserver` label of `apiserver_last_heard_timestamp_seconds`.
    pub id: String,
    /// The age of its first Lease update that this process of the relay has accepted, in seconds.
    pub first_heard_seconds_ago: Option<f64>,
    /// The age of its last accepted Lease update, in seconds. kube-apiserver updates its Lease
    /// every 10 s.
    pub last_heard_seconds_ago: f64,
}

/// A listener.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// The listener's address, as configured.
    pub listener: String,
    /// The address as bound, with the real port for port 0; `None` while the listener waits for its
    /// certificate or its address.
    pub address: Option<String>,
    /// Bytes of request bodies, before decompression.
    pub received_bytes: u64,
    /// Open connections.
    pub connections: u64,
    /// `true`: the listener speaks HTTPS.
    pub tls: bool,
    /// Requests that got a response, by status code, as in `requests_total`.
    pub requests: BTreeMap<String, u64>,
    /// The median time from the end of an accepted batch's body to the response, over the last one
    /// to two minutes, accurate to 6.3%; `None` if none was accepted then.
    pub latency_p50_seconds: Option<f64>,
    /// The 99th percentile: one response in a hundred takes longer. Above 1 s the listener is slow,
    /// except with `acknowledge = "delivered"`.
    pub latency_p99_seconds: Option<f64>,
}

/// A source: a Kafka topic that is read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The name of the source.
    pub name: String,
    /// The type of the source: `kafka`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The topic that is read.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// `waiting` for a partition, `reading`, or `paused` because the queue has no room.
    pub state: String,
    /// The partitions that this relay reads.
    pub partitions: Vec<i32>,
    /// Bytes of messages.
    pub received_bytes: u64,
    /// The last error; `None` once something has been read since.
    pub last_error: Option<String>,
}

/// The queue.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// `memory` or `disk`.
    pub kind: String,
    /// Bytes in use, as `queue.max_bytes` counts them.
    pub bytes: u64,
    /// The part of `bytes` that new events cannot use; its share of `capacity_bytes` is how full
    /// the queue is. `None` if the relay's version is too old to report it.
    pub needed_bytes: Option<u64>,
    /// How fast `needed_bytes` has grown per second in the last one to five minutes; negative if it
    /// shrinks. `None` in the first minute, and after the machine was paused.
    pub growth_bytes_per_second: Option<f64>,
    /// The limit, `queue.max_bytes`.
    pub capacity_bytes: u64,
    /// Events in the queue.
    pub events: u64,
    /// Events that earlier processes had accepted into the queue's directory
    /// (`queue_earlier_events`).
    pub earlier_events: u64,
    /// `true` after a batch did not fit, until a fifth of the queue is free.
    pub full: bool,
    /// How long the queue has been full; `None` if it is not.
    pub full_seconds: Option<f64>,
    /// The `queue.when_full` setting: `reject`, `drop_oldest` or `drop_newest`; `None` until the
    /// queue is open.
    pub when_full: Option<String>,
    /// The `queue.retry_after` setting, in seconds; `None` until the queue is open. `Retry-After`
    /// varies around it.
    pub retry_after_seconds: Option<f64>,
    /// Why the queue cannot store batches now; `None` if it can.
    pub fault: Option<String>,
    /// Events lost before any output could get them.
    pub lost_events: u64,
    /// The age of the last of these losses, in seconds; `None` if there was none.
    pub last_lost_seconds_ago: Option<f64>,
}

impl Counts {
    /// Returns the number of events that the filter has not let pass: dropped ones and duplicates.
    pub fn filtered_out(&self) -> u64 {
        let actions = ["dropped", "duplicate"].iter();
        actions.filter_map(|action| self.filtered.get(*action)).sum()
    }
}

impl Queue {
    /// Returns the number of bytes in the queue that new events cannot use.
    pub fn needed(&self) -> u64 {
        self.needed_bytes.unwrap_or(self.bytes)
    }

    /// Returns the needed bytes of the queue divided by its capacity, such as 0.5.
    pub fn fill(&self) -> f64 {
        self.needed() as f64 / (self.capacity_bytes as f64).max(1.0)
    }

    /// Returns the seconds until the queue is full at the pace of the last minutes. `None` if it is
    /// not known to grow, or if too little of it is needed for a forecast.
    pub fn full_in(&self) -> Option<f64> {
        let growth = self.growth_bytes_per_second.filter(|growth| *growth > 0.0)?;
        let free = self.capacity_bytes.saturating_sub(self.needed()) as f64;
        (self.fill() > thresholds::FORECAST_FILL).then(|| free / growth)
    }
}

/// An output.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The name of the output.
    pub name: String,
    /// The type of the output: `http`, `tcp` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// `true`: the queue keeps events until this output has them.
    pub required: bool,
    /// The schema of the documents sent (`filter.shape`).
    pub shape: String,
    /// The `output.strategy` setting; `None` for outputs without addresses (`kafka`, `stdout`).
    pub strategy: Option<String>,
    /// The `output.rate_limit` setting; `None` if there is no limit.
    pub rate_limit_bytes_per_second: Option<u64>,
    /// `true`: the output is `required`, and `queue.when_full` drops none of its events; as of the
    /// last failed attempt.
    pub keeps_events: bool,
    /// The attempts to reach the consumer of an output.
    #[serde(flatten)]
    pub health: Health,
    /// The events that the consumer of an output has not acknowledged yet.
    #[serde(flatten)]
    pub backlog: Backlog,
    /// The counts of an output since the start, and how long its events take.
    #[serde(flatten)]
    pub counts: Counts,
    /// How long the filter has dropped every event, accurate to ten seconds; `None` if it passes
    /// events, or none arrive.
    pub all_dropped_seconds: Option<f64>,
    /// The events set aside: the consumer accepts others, but not these; `None` if there are none.
    pub aside: Option<Aside>,
    /// The addresses of the output.
    pub addresses: Vec<Address>,
    /// `bad` or `warn`: the verdict about the output; `None` if nothing is wrong.
    pub trouble: Option<verdict::State>,
}

/// The attempts to reach the consumer of an output.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `true`: the last attempt succeeded. `false` also before the first attempt.
    pub up: bool,
    /// `true`: paused by `pause = true` in the config: no attempts are made, and the events wait.
    pub paused: bool,
    /// `true`: the output has changed between up and down five times or more, each time within two
    /// minutes, and has not kept its state for two minutes since.
    #[serde(deserialize_with = "or_default")]
    pub unsteady: bool,
    /// How long attempts have been failing, in seconds; `None` while the output is up, and before
    /// the first attempt.
    pub down_seconds: Option<f64>,
    /// The text of the last error, even if it is resolved; `None` if there was none since the
    /// start.
    pub last_error: Option<String>,
    /// The age of the last error, in seconds.
    pub last_error_seconds_ago: Option<f64>,
    /// The age of the last delivery timeout while the output was up; `None` if there was none.
    pub stalled_seconds_ago: Option<f64>,
    /// The time until the next attempt, in seconds; `None` if none is planned.
    pub next_retry_seconds: Option<f64>,
}

/// The events that the consumer of an output has not acknowledged yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Backlog {
    /// Events that the consumer has not acknowledged yet.
    pub backlog_events: u64,
    /// Bytes of these events.
    pub backlog_bytes: u64,
    /// `backlog_events` at the start; negative for an output that a reload has added
    /// (`output_start_events`).
    pub start_events: i64,
    /// The age of the oldest of these events, in seconds.
    #[serde(deserialize_with = "or_default")]
    pub lag_seconds: f64,
    /// The lag above which the output is late (`output_lag_max_seconds`): 30 s, plus the time that
    /// the output normally holds or collects events, such as `replay_window` or `object_age`.
    #[serde(deserialize_with = "or_default")]
    pub lag_max_seconds: f64,
    /// `true`: `backlog_events` and `lag_seconds` have both grown for two minutes, and the lag is a
    /// second longer than the output normally holds or collects events.
    #[serde(deserialize_with = "or_default")]
    pub growing: bool,
}

/// The counts of an output since the start, and how long its events take.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Events that the consumer has acknowledged since the start, each once
    /// (`output_events_total`).
    pub delivered_events: u64,
    /// The same per second, over the last minute; `None` in the first seconds after a reload has
    /// added the output.
    pub delivered_events_per_second: Option<f64>,
    /// Delivered events that the consumer reported as already stored
    /// (`output_existing_events_total`).
    pub existing_events: u64,
    /// Bytes sent, including retries (`output_bytes_total`).
    pub sent_bytes: u64,
    /// The same per second, over the last minute.
    pub sent_bytes_per_second: Option<f64>,
    /// Attempts after the first (`output_retries_total`).
    pub retries: u64,
    /// Events that the filter has dropped (`dropped`, `duplicate`) or changed (`lowered`,
    /// `trimmed`, `redacted`), as in `filtered_events_total`.
    pub filtered: BTreeMap<String, u64>,
    /// Failed attempts by reason (`output_errors_total`); only reasons that have occurred.
    pub errors: BTreeMap<String, u64>,
    /// Events lost or refused for good (`error_total`).
    pub lost_events: u64,
    /// The same per second, over the last minute.
    pub lost_events_per_second: Option<f64>,
    /// The age of the last of these losses, in seconds; `None` if there was none.
    pub last_lost_seconds_ago: Option<f64>,
    /// The lost events that are in the dead letters.
    pub dead_letter_events: u64,
    /// The median time from a batch's acceptance to the consumer's acknowledgement, over the last
    /// four to five minutes, accurate to 6.3%; `None` if nothing was acknowledged then.
    pub latency_p50_seconds: Option<f64>,
    /// The 99th percentile: one event in a hundred takes longer.
    pub latency_p99_seconds: Option<f64>,
}

/// Events that are set aside: the consumer does not take them, although it takes others.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Aside {
    /// How many there are.
    pub events: u64,
    /// The position of the first of them that is at fault. If none is, of the first of them.
    pub position: u64,
    /// The `auditID` of that event, at most 64 bytes of it.
    pub audit_id: String,
    /// The size of that event in bytes.
    pub bytes: u64,
    /// How long delivery of that event has been attempted, in seconds.
    pub seconds: f64,
    /// How many times that event was tried while the consumer worked.
    pub tries: u32,
    /// The last answer to that event, or how the connection ended, with the consumer's address.
    pub error: String,
    /// `true`: one of them is turned down by something else than 400, 413 or 422, and may wait up
    /// to `rejected.after_server_errors`.
    pub server_errors: bool,
    /// How many of these, among the first 1,000, were turned down so often that the events, and not
    /// the consumer, are most likely at fault.
    pub at_fault: u64,
    /// `true`: nine tenths of the room for such events are used, so that new ones push out the
    /// oldest ones that are at fault, before `rejected.after_server_errors`.
    pub crowded: bool,
}

/// An address of an output.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Address {
    /// The index of its URL or address in the config, counted from 0. The path of a URL is never
    /// shown, because it may contain a secret.
    pub endpoint: u64,
    /// Host and port; if the host is a name, also the IP address it resolves to.
    pub address: String,
    /// `up`, `unknown` (not tried yet), `down`, or `back, on trial` (it accepts connections again;
    /// one delivery at a time uses it, until one succeeds).
    pub state: String,
    /// How long it has been in this state, in seconds.
    pub state_seconds: Option<f64>,
    /// `true`: the last successful delivery used this address.
    pub used: bool,
    /// Finished attempts: requests, or fully acknowledged batches (`tcp`, `syslog`, `lumberjack`,
    /// `relp`). A connection that fails or breaks counts as one.
    pub requests: Option<u64>,
    /// Bytes sent to this address, including retries.
    pub sent_bytes: Option<u64>,
    /// Like the output's `errors`, for this address.
    pub errors: BTreeMap<String, u64>,
    /// The median time from sending to acknowledgement, over the last four to five minutes, in
    /// seconds; for `tcp` and `syslog` including `replay_window`.
    pub latency_p50_seconds: Option<f64>,
    /// The 99th percentile: one attempt in a hundred takes longer.
    pub latency_p99_seconds: Option<f64>,
    /// The text of the last error at this address.
    pub last_error: Option<String>,
    /// The age of this error, in seconds.
    pub last_error_seconds_ago: Option<f64>,
}

/// A certificate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// `listener` or `output`.
    pub place: String,
    /// The name of the listener or output.
    pub name: String,
    /// `server` or `client`: the side that presents the certificate.
    pub role: String,
    /// The time when the certificate expires, in seconds since 1970. Of a peer's certificates, the
    /// one that was presented last counts: if the peer is a sender, only one that was accepted; if
    /// it is a consumer, also one that was refused because it has expired.
    pub not_after_seconds: i64,
}

/// The reloads of the config.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloads {
    /// Reloads that were applied and opened all their listeners. Fields: `count` and
    /// `last_seconds_ago`.
    pub success: Occurred,
    /// Reloads that were refused, or could not open one of their listeners. The same fields.
    pub error: Occurred,
    /// The error for a listener address that the last reload could not bind and that is being
    /// retried; `None` if there is none.
    pub awaits_address: Option<String>,
    /// The first mistake for which the last reload was refused; `None` if it was applied.
    pub refused: Option<String>,
}

/// The rights of the process, under the JSON key `process`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// What the process has given up.
    pub restrict: Restriction,
}

/// The restrictions of the process, as of its start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Restriction {
    /// The `process.restrict` setting at the start: [what the process may
    /// do](../operating/restrict.md).
    pub setting: String,
    /// The version of the kernel's Landlock; `None` if it is not in force.
    pub landlock_abi: Option<i32>,
    /// `true`: the seccomp filter is in force.
    pub seccomp: bool,
    /// Restrictions that the setting asks for but that are not in force, and why.
    pub missing: Option<String>,
}

/// A count of occurrences, such as reloads with one result, and the age of the last one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Occurred {
    /// The number since the start.
    pub count: u64,
    /// The age of the last occurrence, in seconds; `None` if there was none since the start.
    pub last_seconds_ago: Option<f64>,
}

/// The evidence log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Entries of the log (`evidence_size`).
    pub size: u64,
    /// The age of the last signed checkpoint, in seconds; `None` if none was signed since the
    /// start.
    pub last_checkpoint_seconds_ago: Option<f64>,
    /// The witnesses.
    pub witnesses: Vec<Witness>,
    /// Failed attempts to record, by reason (`evidence_errors_total`); only reasons that have
    /// occurred.
    pub errors: BTreeMap<String, u64>,
    /// The age of the last error with each of these reasons, in seconds.
    pub last_errors_seconds_ago: BTreeMap<String, f64>,
}

/// A witness of the evidence log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Witness {
    /// The name of the witness's key.
    pub name: String,
    /// The age of its last cosignature, by the witness's clock, in seconds; `None` if there was
    /// none since the start.
    pub last_seconds_ago: Option<f64>,
}
