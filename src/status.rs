//! The JSON that `/status` and `/status/history` answer, as types. The relay judges its own state
//! by these types, and `top` reads another relay's state into them.
//!
//! A field that is missing gets its default, so that the answers of an older relay can be read too.
//! docs/reference/status-json.md explains each field.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub mod thresholds;
pub mod verdict;

/// Reads a value. If it is `null`, which stands for "not known yet", returns the default of its
/// type.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    source: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

/// The state of a relay at one moment: the answer of `/status`.
#[derive(Debug, Clone, Default, Deserialize)]
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
    /// The evidence log; `None` if the config has no `[evidence]`.
    pub evidence: Option<Evidence>,
    /// The relay's judgement of its own state; `None` from a relay that gives none.
    pub verdict: Option<verdict::Verdict>,
}

/// The process and its memory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The version of the program.
    pub version: String,
    /// The name of the machine; in Kubernetes, of the pod.
    pub host: String,
    /// The moment of the answer, in seconds since 1970.
    pub time_seconds: f64,
    /// The start of the process, in seconds since 1970.
    pub start_time_seconds: f64,
    /// The time since the start of the relay, in seconds.
    pub uptime_seconds: f64,
    /// `true`: all outputs, listeners and sources are open.
    pub started: bool,
    /// `true`: the orderly end of the relay has begun.
    pub stopping: bool,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// The memory that the process may have, in bytes; `None` if there is no limit.
    pub memory_limit_bytes: Option<u64>,
    /// Lines of the log that were not written.
    pub log_dropped_lines: u64,
    /// The time at which an earlier process was killed, within 24 hours, in the format of RFC 3339;
    /// `None` if none was, as far as is known.
    pub last_killed: Option<String>,
}

/// The requests of senders, and the events that came with them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Intake {
    /// The level of `queue.acknowledge`: `queued`, `delivered` or `synced`.
    #[serde(deserialize_with = "or_default")]
    pub acknowledge: String,
    /// Bytes of request bodies that are not in the queue yet.
    pub in_flight_bytes: u64,
    /// Events accepted since the start.
    pub accepted_events: u64,
    /// Events accepted in each second, over the last minute; `None` from an older relay.
    pub accepted_events_per_second: Option<f64>,
    /// Bytes of bodies in each second, over the last minute; `None` from an older relay.
    pub received_bytes_per_second: Option<f64>,
    /// The age of the last accepted batch, in seconds; `None` if there is none yet.
    pub last_event_seconds_ago: Option<f64>,
    /// Requests answered 429 in each second, over the last minute.
    #[serde(deserialize_with = "or_default")]
    pub refused_429_per_second: f64,
    /// The age of the last answer 429 because of `limits.max_in_flight`; `None` if there was none.
    pub in_flight_full_seconds_ago: Option<f64>,
    /// For how long the relay refused requests.
    pub refusals: Refusals,
    /// The request that was refused last; `None` if none was since the start.
    pub last_rejected: Option<Rejected>,
    /// The last request that was refused for good; `None` if none was since the start.
    pub last_final_refusal: Option<Rejected>,
    /// The connections that were refused, by reason, as in the metric `connections_refused_total`;
    /// a reason that has not occurred since the start is missing.
    pub refused_connections: BTreeMap<String, Occurred>,
    /// The last TLS handshake of a sender that failed; `None` if none did since the start.
    pub last_tls_failure: Option<TlsFailure>,
}

/// The events lost or refused for good, by the queue and by all outputs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Events lost or refused for good since the start, by the queue and by all outputs.
    pub lost_events: u64,
    /// The age of the last loss, in seconds; `None` if nothing was lost since the start.
    pub last_lost_seconds_ago: Option<f64>,
    /// Events lost in each second, over the last minute.
    #[serde(deserialize_with = "or_default")]
    pub lost_events_per_second: f64,
    /// Events that earlier processes have lost. They count for 24 hours after the last loss.
    pub earlier_lost_events: u64,
    /// The time of the last loss of an earlier process, in the format of RFC 3339; `None` if there
    /// was none.
    pub earlier_last_lost: Option<String>,
    /// Dead letters that were deleted, to keep within `dead_letter.max_bytes`.
    pub dead_letters_dropped_events: u64,
}

/// For how long the relay refused requests, by the status of the answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusals {
    /// Answers 429: the queue is full, or too many bytes are under way.
    pub with_429: RefusalTimes,
    /// Answers 503: the disk refuses writes, or the consumers are too slow.
    pub with_503: RefusalTimes,
    /// Requests by POST that were refused for good, and TLS handshakes that failed. The *long*
    /// spells are shorter than with the others, because no sender is asked to come back.
    pub permanent: RefusalTimes,
}

/// How long requests were refused. A *spell* is a time in which requests are refused without a
/// pause of a minute, up to the last refusal. It is *shut* as long as no batch is accepted in it.
/// It is *long* if kube-apiserver gives up a batch that is refused for this time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusalTimes {
    /// The length of the present spell; `None` if no request was refused in the last minute.
    pub seconds: Option<f64>,
    /// The time for which the present spell is shut; `None` if it is not.
    pub shut_seconds: Option<f64>,
    /// The length of the longest spell since the start.
    pub longest_seconds: f64,
    /// The longest time since the start for which a spell was shut.
    pub longest_shut_seconds: f64,
    /// The age of the last refusal in a long spell; `None` if there was none.
    pub long_ended_seconds_ago: Option<f64>,
    /// The age of the last refusal in a spell that was shut for long; `None` if there was none.
    pub long_shut_ended_seconds_ago: Option<f64>,
    /// The number of refusals in spells that were shut for long, since the start.
    pub long_shut_requests: u64,
}

/// The request that was refused last.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Rejected {
    /// The reason, as in the metric `requests_rejected_total`.
    pub reason: String,
    /// The age of the refusal, in seconds.
    pub seconds_ago: f64,
}

/// A TLS handshake of a sender that failed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TlsFailure {
    /// The address of the listener, as configured.
    pub listener: String,
    /// The reason, as in the metric `listener_tls_failures_total`.
    pub reason: String,
    /// The age of the failure, in seconds.
    pub seconds_ago: f64,
}

/// A listener.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// The listener's address, as configured.
    pub listener: String,
    /// The address on which the listener's socket is open; `None` until the socket is open.
    pub address: Option<String>,
    /// Bytes of request bodies, as sent.
    pub received_bytes: u64,
    /// Open connections.
    pub connections: u64,
    /// `true`: the listener speaks HTTPS.
    pub tls: bool,
    /// The time from the end of an accepted body to the answer that one of a hundred answers
    /// exceeds, in seconds; `None`: no batch was accepted in the last minute.
    pub latency_p99_seconds: Option<f64>,
}

/// A source: a Kafka topic that is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The name of the source.
    pub name: String,
    /// Bytes of messages.
    pub received_bytes: u64,
    /// The last trouble; `None` once a message was read after the trouble.
    pub last_error: Option<String>,
}

/// The queue.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// `memory` or `disk`.
    pub kind: String,
    /// Bytes in use, as `queue.max_bytes` counts them.
    pub bytes: u64,
    /// The part of `bytes` whose room new events can't have; `None` from a relay of a version that
    /// does not report it.
    pub needed_bytes: Option<u64>,
    /// How fast `needed_bytes` has grown in the last minutes, in each second; negative if it
    /// shrinks. `None`: not known yet.
    pub growth_bytes_per_second: Option<f64>,
    /// The limit, `queue.max_bytes`.
    pub capacity_bytes: u64,
    /// Events in the queue.
    pub events: u64,
    /// `true` from the moment at which a batch found no room until a fifth of the queue is free.
    pub full: bool,
    /// The setting `queue.when_full`: `reject`, `drop_oldest` or `drop_newest`.
    #[serde(deserialize_with = "or_default")]
    pub when_full: String,
    /// The setting `queue.retry_after`, in seconds.
    #[serde(deserialize_with = "or_default")]
    pub retry_after_seconds: f64,
    /// The reason why the queue can't store a batch; `None` if it stores batches.
    pub fault: Option<String>,
    /// Events lost before any output could get them.
    pub lost_events: u64,
}

impl Queue {
    /// Returns the bytes that count for how full the queue is.
    pub fn needed(&self) -> u64 {
        self.needed_bytes.unwrap_or(self.bytes)
    }

    /// Returns the part of the queue that is needed, from 0 to 1.
    pub fn fill(&self) -> f64 {
        self.needed() as f64 / (self.capacity_bytes as f64).max(1.0)
    }

    /// Returns the seconds after which the queue is full at the pace of the last minutes. Returns
    /// `None` if the queue does not grow, or so little of it is needed that the pace says nothing.
    pub fn full_in(&self) -> Option<f64> {
        let growth = self.growth_bytes_per_second.filter(|growth| *growth > 0.0)?;
        let free = self.capacity_bytes.saturating_sub(self.needed()) as f64;
        (self.fill() > thresholds::FORECAST_FILL).then(|| free / growth)
    }
}

/// An output.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The name of the output.
    pub name: String,
    /// The type of the output: `http`, `tcp` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// `true`: the queue keeps events until this output has them.
    pub required: bool,
    /// `true`: each event is kept until the consumer has it, also while the output is down.
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
    /// For how long the filter has dropped every event that came; `None`: it lets events through,
    /// or none comes.
    pub all_dropped_seconds: Option<f64>,
    /// The events that the consumer does not take, although it takes others; `None`: there are
    /// none.
    pub parked: Option<Parked>,
    /// The addresses of the output.
    pub addresses: Vec<Address>,
    /// How bad the state of the output is, as the relay judges it; `None` if nothing is wrong.
    pub trouble: Option<verdict::State>,
}

/// The attempts to reach the consumer of an output.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `true`: the last attempt succeeded.
    pub up: bool,
    /// `true`: the config has paused the output, so that no attempts are made.
    pub paused: bool,
    /// `true`: the output has changed between up and down again and again in the last minutes.
    #[serde(deserialize_with = "or_default")]
    pub unsteady: bool,
    /// The time for which attempts have been failing, in seconds; `None` while the output is up,
    /// and before the first attempt.
    pub down_seconds: Option<f64>,
    /// The text of the last error; `None` if there was none since the start.
    pub last_error: Option<String>,
    /// The age of the last error, in seconds.
    pub last_error_seconds_ago: Option<f64>,
    /// The age of the last delivery that timed out while the output was up; `None` if none did.
    pub stalled_seconds_ago: Option<f64>,
    /// The time until the next attempt, in seconds; `None` if none is planned.
    pub next_retry_seconds: Option<f64>,
}

/// The events that the consumer of an output has not acknowledged yet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Backlog {
    /// Events that the consumer has not acknowledged yet.
    pub backlog_events: u64,
    /// Bytes of these events.
    pub backlog_bytes: u64,
    /// The age of the oldest of these events, in seconds.
    #[serde(deserialize_with = "or_default")]
    pub lag_seconds: f64,
    /// The lag above which the output is late, in seconds.
    #[serde(deserialize_with = "or_default")]
    pub lag_max_seconds: f64,
    /// `true`: the backlog and the lag have grown for two minutes or more.
    #[serde(deserialize_with = "or_default")]
    pub growing: bool,
}

/// The counts of an output since the start, and how long its events take.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Events that the consumer has acknowledged since the start.
    pub delivered_events: u64,
    /// The same in each second, over the last minute; `None` if the output is new.
    pub delivered_events_per_second: Option<f64>,
    /// Events that the consumer said it had already.
    pub existing_events: u64,
    /// Bytes sent, repetitions included.
    pub sent_bytes: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Events that the filter has kept back or changed, by action.
    pub filtered: BTreeMap<String, u64>,
    /// Failed attempts, by reason.
    pub errors: BTreeMap<String, u64>,
    /// Events lost or refused for good.
    pub lost_events: u64,
    /// The lost events that are in the dead letters.
    pub dead_letter_events: u64,
    /// The median of the time from accepted to acknowledged, in seconds; `None` if no event was
    /// acknowledged lately.
    pub latency_p50_seconds: Option<f64>,
    /// The time from accepted to acknowledged that one of a hundred events exceeds, in seconds;
    /// `None`: no event lately.
    pub latency_p99_seconds: Option<f64>,
}

/// Events that a consumer does not take, although it takes others.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Parked {
    /// The number of these events.
    pub events: u64,
    /// The position of the first one.
    pub position: u64,
    /// `true`: at least one of them waits because of server errors, and later events are delivered
    /// before it.
    pub out_of_order: bool,
}

/// An address of an output.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// The number of the configured endpoint, from 0.
    pub endpoint: u64,
    /// The address, without the path of a URL.
    pub address: String,
    /// `up`, `down`, `suspect`, `back, on trial`, or `unknown`: no delivery has tried it yet.
    pub state: String,
    /// The time for which the address has been in this state, in seconds.
    pub state_seconds: Option<f64>,
    /// `true`: the last delivery or connection that succeeded was at this address.
    pub used: bool,
    /// Attempts that ended at this address.
    pub requests: Option<u64>,
    /// Bytes sent to this address.
    pub sent_bytes: Option<u64>,
    /// Failed attempts, by reason.
    pub errors: BTreeMap<String, u64>,
    /// The median of the time from sending to the acknowledgement, in seconds.
    pub latency_p50_seconds: Option<f64>,
    /// The time from sending to the acknowledgement that one of a hundred attempts exceeds, in
    /// seconds.
    pub latency_p99_seconds: Option<f64>,
    /// The text of the last error at this address.
    pub last_error: Option<String>,
    /// The age of this error, in seconds.
    pub last_error_seconds_ago: Option<f64>,
}

/// A certificate.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// `listener` or `output`.
    pub place: String,
    /// The name of the listener or output.
    pub name: String,
    /// `server` or `client`: whose certificate this is.
    pub role: String,
    /// The end of the certificate's validity, in seconds since 1970.
    pub not_after_seconds: f64,
}

/// The reloads of the config.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Reloads {
    /// Reloads that were applied, with all their listeners.
    pub success: Occurred,
    /// Reloads that were refused, or that could not open one of their listeners.
    pub error: Occurred,
    /// The error of the address that the last reload could not bind, and for which it is tried
    /// again; `None`: there is none.
    pub awaits_address: Option<String>,
}

/// How often something has occurred: reloads with one result, for example.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Occurred {
    /// The number since the start.
    pub count: u64,
    /// The age of the last occurrence, in seconds; `None` if there was none since the start.
    pub last_seconds_ago: Option<f64>,
}

/// The evidence log.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Entries in the log.
    pub size: u64,
    /// The age of the last signed checkpoint, in seconds; `None` if none was signed since the
    /// start.
    pub last_checkpoint_seconds_ago: Option<f64>,
    /// The witnesses.
    pub witnesses: Vec<Witness>,
    /// Errors by reason, as in `evidence_errors_total`.
    pub errors: BTreeMap<String, u64>,
    /// The age of the last error with each reason that has occurred, in seconds.
    pub last_errors_seconds_ago: BTreeMap<String, f64>,
}

/// A witness of the evidence log.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Witness {
    /// The name of the witness's key.
    pub name: String,
    /// The age of its last cosignature, in seconds; `None` if it gave none since the start.
    pub last_seconds_ago: Option<f64>,
}

/// The last hour of a relay: the answer of `/status/history`. Each list has one element for each
/// time in `time_seconds`; `None` stands where nothing is known.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct History {
    /// The time between two elements, in seconds.
    pub interval_seconds: f64,
    /// The times, in seconds since 1970, in ascending order.
    pub time_seconds: Vec<f64>,
    /// Events accepted in each second.
    pub accepted_events_per_second: Vec<Option<f64>>,
    /// Events lost in each second.
    pub lost_events_per_second: Vec<Option<f64>>,
    /// Bytes in the queue.
    pub queue_bytes: Vec<Option<f64>>,
    /// The history of each output, by its name.
    pub outputs: BTreeMap<String, OutputHistory>,
}

/// The last hour of one output.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OutputHistory {
    /// Events acknowledged in each second.
    pub delivered_events_per_second: Vec<Option<f64>>,
}
