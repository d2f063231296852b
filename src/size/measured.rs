//! The constants of the computation: what was measured, and what other parts of the program use.
//!
//! The CPU times are those of `benches/RESULTS.md`, on an Intel Xeon without AVX-512 at 2.5 GHz,
//! the slower of the two machines of that page. Where the load decides, they are those far below
//! saturation, where a byte costs most.

use std::time::Duration;

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;

/// The maximum number of events per second of one kube-apiserver at its defaults: 10 batches of 400
/// events (`--audit-webhook-batch-throttle-qps`, `--audit-webhook-batch-max-size`).
pub const EVENTS_PER_SECOND_OF_APISERVER: f64 = 4_000.0;

/// The maximum number of events in a batch of kube-apiserver (`--audit-webhook-batch-max-size`).
pub const BATCH_EVENTS_MAX: f64 = 400.0;

/// After this time in seconds kube-apiserver sends a batch that is not full
/// (`--audit-webhook-batch-max-wait`).
pub const BATCH_WAIT_SECONDS: f64 = 30.0;

/// The highest rate as a multiple of the mean, if it is not known. A mean over a day hides the busy
/// hours. The multiple is chosen and not measured: `--peak` and `--url` replace it.
pub const PEAK: f64 = 3.0;

/// The queue holds this multiple of what the mean rate brings during the outage, because the outage
/// may be in the busier half of the day. The multiple is chosen and not measured.
pub const HEADROOM: f64 = 1.25;

/// The bytes that a queue in memory counts for each batch besides its events.
pub const BATCH_OVERHEAD_MEMORY: f64 = crate::config::BATCH_OVERHEAD as f64;

/// The maximum number of bytes that a queue on disk takes for each batch besides its events: the
/// header of the record (64 bytes), and the padding up to 4,096 bytes of a batch that is synced
/// alone.
pub const BATCH_OVERHEAD_DISK: f64 = 4_096.0 + 64.0;

/// The largest file of a queue on disk, in bytes: the default of `queue.segment_bytes`.
pub const SEGMENT_MAX: u64 = 64 * MIB;

/// The part of `queue.max_bytes` that one file takes if the queue is small.
pub const SEGMENT_PART: u64 = 16;

/// The files of a queue on disk that may be without events while the queue is full: the end of the
/// one that is written, and the one that begins next.
pub const SEGMENTS_OPEN: u64 = 2;

/// The part of `queue.max_bytes` that is kept free for damaged records, which is at most 64 MiB.
pub const QUARANTINE_PART: u64 = 16;
/// The maximum number of bytes that are kept free for damaged records.
pub const QUARANTINE_MAX: u64 = 64 * MIB;

/// The smallest queue that is proposed. A smaller one has no room for a batch of 400 large events.
pub const QUEUE_MIN: u64 = 256 * MIB;

/// The largest queue that is proposed: 1 PiB. A figure beyond it comes from a mistyped number.
pub const QUEUE_MAX: u64 = 1 << 50;

/// The default of `dead_letter.max_bytes`.
pub const DEAD_LETTERS: u64 = 64 * MIB;

/// The part of a volume that ext4 keeps for root (mke2fs -m), as a factor.
pub const FILE_SYSTEM: f64 = 1.05;

/// The default of `evidence.max_bytes`; the line hashes take twice as much at most.
pub const EVIDENCE_LINES: u64 = GIB;
/// The bytes of a line hash.
pub const EVIDENCE_LINE: f64 = 32.0;
/// The bytes of the log of the evidence in a day: an entry of 160 bytes a second.
pub const EVIDENCE_LOG_DAY: f64 = 160.0 * 86_400.0;
/// The further bytes of the log for each event: 28,877 bytes of tiles for 100,000 events.
pub const EVIDENCE_LOG_EVENT: f64 = 28_877.0 / 100_000.0;
/// The days for which the volume has room for the log of the evidence, which is never cut.
pub const EVIDENCE_LOG_DAYS: f64 = 365.0;

/// The memory of the program itself.
pub const PROGRAM: u64 = 32 * MIB;
/// The memory of a queue on disk.
pub const QUEUE_ON_DISK: u64 = 32 * MIB;
/// The memory of a connection that has just had a request.
pub const CONNECTION: u64 = 160 * KIB;
/// The maximum number of connections: `limits.max_connections`, as in the shipped manifests.
pub const CONNECTIONS: u64 = 1_024;
/// The smallest `limits.max_in_flight` that is proposed, as in the shipped manifests.
pub const IN_FLIGHT_MIN: u64 = 128 * MIB;
/// The seconds for which a body is in memory before it is in the queue. The slowest answers of a
/// queue on disk at half load took 0.03 s.
pub const IN_FLIGHT_SECONDS: f64 = 1.0;
/// Memory limits are multiples of this.
pub const MEMORY_STEP: u64 = 128 * MIB;
/// The memory of a relay in normal use: 30 to 75 MiB were measured under a load of a gigabyte a
/// second.
pub const MEMORY_USUAL: u64 = 128 * MIB;

/// The age at which a connection is closed, so that the next one reaches another replica: the
/// default of `limits.max_connection_age`.
pub const CONNECTION_AGE: Duration = Duration::from_secs(15 * 60);

/// The CPU of a relay that does little: streams ask 100 times a second what the peer has
/// acknowledged. In thousandths of a core.
pub const CPU_IDLE: f64 = 10.0;
/// CPU seconds for each GB from http to http with the queue in memory, at 4,000 events/s.
pub const CPU_MEMORY: f64 = 2.9;
/// The same with the queue on disk.
pub const CPU_DISK: f64 = 4.1;
/// CPU seconds for each GB that TLS adds on both sides.
pub const CPU_TLS: f64 = 1.1;
/// CPU seconds for each GB that the evidence adds.
pub const CPU_EVIDENCE: f64 = 1.1;
/// The CPU of a further output as a part of that of the first one.
pub const CPU_FURTHER: f64 = 0.3;
/// CPU seconds of a request, whatever it holds, with the queue in memory: single events, 1,000 a
/// second.
pub const CPU_REQUEST_MEMORY: f64 = 0.000_13;
/// The same with the queue on disk: 2.6 times as much.
pub const CPU_REQUEST_DISK: f64 = 0.000_34;
/// The smallest CPU request that is proposed, in thousandths of a core, as in the shipped
/// manifests: for the start, a reload, and TLS handshakes.
pub const CPU_MIN: u64 = 100;

/// The resources that one type of output needs.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// The value of `type`.
    pub name: &'static str,
    /// The CPU seconds for each GB in addition to those of `http`.
    pub cpu: f64,
    /// The memory in bytes of the batches that are under way, besides the largest event.
    pub memory: u64,
}

/// 1 MB in bytes.
const MB: u64 = 1_000_000;

/// The types of output at their defaults. Memory: `concurrency` × `batch.max_bytes`, and what the
/// page of the guarantees adds for a type. CPU: the row of the type less the row of `http` of the
/// same run, at saturation. `stdout` was not measured by itself; it writes the bytes that `tcp`
/// writes.
pub const OUTPUTS: [Output; 13] = [
    Output { name: "http", cpu: 0.0, memory: 4 * 4 * MIB },
    Output { name: "tcp", cpu: 1.7, memory: 0 },
    Output { name: "syslog", cpu: 2.3, memory: 0 },
    Output { name: "stdout", cpu: 1.7, memory: 0 },
    Output { name: "lumberjack", cpu: 10.6, memory: 4 * MIB },
    Output { name: "relp", cpu: 1.7, memory: 4 * MIB },
    Output { name: "kafka", cpu: 4.1, memory: 8 * 4 * MIB },
    Output { name: "splunk_hec", cpu: 1.6, memory: 4 * MB },
    Output { name: "elasticsearch", cpu: 3.3, memory: 4 * (4 + 8) * MIB },
    Output { name: "ibm_cloud_logs", cpu: 2.3, memory: 4 * 2 * MB },
    Output { name: "s3", cpu: 5.6, memory: (2 * 64 + 4) * MIB },
    Output { name: "loki", cpu: 11.0, memory: 4 * 4 * 4 * MIB },
    Output { name: "otlp", cpu: 9.9, memory: 4 * 4 * 4 * MB },
];

/// Returns the needs of a type of output; `None` if there is no such type.
pub fn output(name: &str) -> Option<Output> {
    OUTPUTS.into_iter().find(|output| output.name == name)
}
