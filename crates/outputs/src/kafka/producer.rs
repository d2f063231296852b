//! The producer of a `kafka` output: its settings, its thread, and the reports of librdkafka.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::{MessageKey, Settings};
use crate::setup::Setup;
use crate::transport::tls_session::Expiry;
use audit::scan;
use base::lock::lock;
use base::staged::Staged;
use client::kafka::{Cluster, Trouble};
use config::Compression;
use delivery::failure::Failure;
use delivery::files::Files;
use queue::{Batch, Claim, lines};
use telemetry::{AttemptError, OutputMetrics};
use transform::shape;

/// The maximum bytes of the messages that librdkafka sends to a broker together, unless
/// `batch.max_bytes` is lower. A broker accepts at most 1,048,588 bytes by default (its setting
/// `message.max.bytes`).
const SET_BYTES: u64 = 1_000_000;

/// The settings of one output for all its producers, which exist one after the other.
pub(super) struct ProducerSettings {
    pub(super) cluster: Cluster,
    config: Settings,
    pub(super) output: config::Output,
    pub(super) metrics: OutputMetrics,
    expiry: Expiry,
}

impl Files for ProducerSettings {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let secrets = self.cluster.read()?;
        Ok(Box::new(move || {
            self.cluster.apply(secrets);
            self.expiry.set("client", self.cluster.not_after());
        }))
    }
}

impl ProducerSettings {
    pub(super) fn new(kafka: &Settings, setup: &Setup<'_>) -> Self {
        Self {
            cluster: Cluster::new(&kafka.cluster),
            config: kafka.clone(),
            output: setup.output.clone(),
            metrics: setup.metrics.clone(),
            expiry: setup.expiry.clone(),
        }
    }

    fn producer(&self) -> ClientConfig {
        let mut producer =
            self.cluster.client(self.output.timeouts.connect, self.output.timeouts.request);
        let millis =
            |time: Duration, most: u64| time.as_millis().clamp(1, u128::from(most)).to_string();
        let compression = match self.config.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        producer
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A message that fails permanently must not be overtaken by later messages.
            .set("enable.gapless.guarantee", "true")
            // librdkafka never gives a message up by itself, because later messages could then
            // arrive before it. The link watches `timeouts.request`.
            .set("message.timeout.ms", "0")
            .set("request.timeout.ms", millis(self.output.timeouts.request, 900_000))
            .set("reconnect.backoff.ms", millis(self.output.retry.initial_interval, 3_600_000))
            .set("reconnect.backoff.max.ms", millis(self.output.retry.max_interval, 3_600_000))
            .set("partitioner", "murmur2_random")
            .set("compression.type", compression)
            .set("linger.ms", "5")
            .set("batch.size", self.output.batch.max_bytes.min(SET_BYTES).to_string())
            // The brokers limit the size of an event, and `KafkaLink::room` limits the
            // unacknowledged events. The limits of librdkafka are therefore as high as possible:
            // otherwise librdkafka would refuse messages that can be delivered.
            .set("message.max.bytes", "1000000000")
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "2147483647");
        producer
    }

    /// Returns the topic and the brokers for messages: `kafka TOPIC at BROKERS`.
    pub(super) fn place(&self) -> String {
        format!("kafka {} at {}", self.cluster.topic(), self.cluster.brokers())
    }

    /// Returns the failure for an error that librdkafka reported. The message names the topic and
    /// the brokers.
    pub(super) fn failure(&self, trouble: &Trouble) -> Failure {
        Failure::new(trouble.reason, format!("{}: {trouble}", self.place()))
    }

    /// Returns the failure of messages that this producer had not delivered when it ended.
    pub(super) fn ended(&self, reason: AttemptError) -> Failure {
        Failure::new(reason, format!("{}: the producer has ended", self.place()))
    }
}

/// A batch for a producer's thread.
pub(super) struct Job {
    /// The claim of the batch. `None` for a checkpoint.
    pub(super) claim: Option<Claim>,
    pub(super) batch: Batch,
    /// The key of a checkpoint: the origin of its evidence log. All checkpoints of a log are
    /// therefore in one partition, and a compacted topic keeps the newest one. `None` for events,
    /// whose keys follow from the config.
    pub(super) key: Option<Vec<u8>>,
}

/// The thread of a producer. Looks for the topic and sends the result to `ready`. Then passes the
/// batches from `queue` to librdkafka until `queue` is closed. The thread is not joined, because a
/// call of librdkafka may hang. It owns only the settings, the producer and its channels.
pub(super) fn produce(
    shared: &ProducerSettings,
    reporter: Reporter,
    queue: &mpsc::Receiver<Job>,
    ready: oneshot::Sender<Result<(), Trouble>>,
) {
    let producer: ThreadedProducer<Reporter> = match shared.producer().create_with_context(reporter)
    {
        Ok(producer) => producer,
        Err(error) => {
            // The send fails only if nobody waits any more: the attempt took too long, a reload has
            // replaced the files, or the output was stopped.
            ready.send(Err(Trouble::new(&error, ""))).ok();
            return;
        }
    };
    let found = shared.cluster.find_topic(producer.client(), shared.output.timeouts.connect);
    let found = found.map_err(|error| Trouble::new(&error, ""));
    if ready.send(found).is_err() {
        return;
    }
    send_all(shared, &producer, queue);
    // Dropping the producer gives up its undelivered messages, and reports them as failed.
}

/// Passes batches to librdkafka in order, until librdkafka does not accept a message. Later batches
/// are not sent, because their messages would overtake that message, but are reported as failed.
fn send_all(
    shared: &ProducerSettings,
    producer: &ThreadedProducer<Reporter>,
    queue: impl IntoIterator<Item = Job>,
) {
    let mut continues = true;
    for job in queue {
        if continues {
            continues = send(shared, producer, &job);
        } else {
            producer.context().tell(Report::Done(job.claim, Verdict::Failed(None)));
        }
    }
}

/// Passes the messages of a batch to librdkafka. Returns `true` if librdkafka accepts all of them.
/// After a message that librdkafka does not accept, the rest of the batch is not sent, but counts
/// as reported, so that the batch gets a result.
fn send(shared: &ProducerSettings, producer: &ThreadedProducer<Reporter>, job: &Job) -> bool {
    let Job { claim, batch, key } = job;
    let mut unsent = batch.events;
    let (left, verdict) = (AtomicU64::new(unsent), Mutex::new(Verdict::Accepted));
    let sent = Arc::new(SentClaim { claim: *claim, left, verdict });
    for line in lines(&batch.pieces) {
        let record: BaseRecord<'_, [u8], [u8], Arc<SentClaim>> =
            BaseRecord::with_opaque_to(shared.cluster.topic(), Arc::clone(&sent)).payload(line);
        let key = match (key, shared.config.key) {
            (Some(key), _) => Some(Cow::Borrowed(key.as_slice())),
            (None, MessageKey::AuditId) => shape::audit_id(line).and_then(scan::string),
            (None, MessageKey::None) => None,
        };
        let record = match &key {
            Some(key) => record.key(&**key),
            None => record,
        };
        if let Err((error, _)) = producer.send(record) {
            sent.note(Verdict::of(&error, line.len()));
            producer.context().finish(&sent, unsent);
            return false;
        }
        unsent -= 1;
    }
    true
}

/// The result for one claim, made from the delivery reports of its messages.
#[derive(Debug)]
pub(super) enum Verdict {
    /// No message of the claim has failed so far. Once every message has its delivery report, the
    /// brokers have acknowledged the whole claim.
    Accepted,
    /// A message of the claim was not delivered, so the claim must be sent again. The value is the
    /// cause. `None` if the only cause is that another message failed or that the producer ended.
    Failed(Option<Trouble>),
    /// A message of the claim was refused because of its content or size, and would be refused
    /// again.
    Refused(Trouble),
}

/// The error codes of messages that librdkafka gave up only because another message failed or the
/// producer ended.
const CONSEQUENCES: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::Fatal,
    RDKafkaErrorCode::GaplessGuarantee,
    RDKafkaErrorCode::PurgeQueue,
    RDKafkaErrorCode::PurgeInflight,
    RDKafkaErrorCode::OutOfOrderSequenceNumber,
];

/// The error codes about the content or size of a message. The message would be refused again.
const REFUSALS: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::MessageSizeTooLarge,
    RDKafkaErrorCode::MessageBatchTooLarge,
    RDKafkaErrorCode::InvalidRecord,
];

impl Verdict {
    /// Returns the result for a claim after the failure of a message of `bytes` bytes.
    fn of(error: &KafkaError, bytes: usize) -> Self {
        let mut trouble = Trouble::new(error, "");
        match error.rdkafka_error_code() {
            Some(code) if CONSEQUENCES.contains(&code) => Self::Failed(None),
            Some(code) if REFUSALS.contains(&code) => {
                trouble.message = format!("message of {bytes} bytes: {trouble}");
                Self::Refused(trouble)
            }
            Some(_) | None => Self::Failed(Some(trouble)),
        }
    }
}

/// A claim whose messages were passed to librdkafka. All messages of the claim share this value.
pub(super) struct SentClaim {
    /// `None` for a checkpoint.
    claim: Option<Claim>,
    /// The number of messages of the claim without a delivery report.
    left: AtomicU64,
    verdict: Mutex<Verdict>,
}

impl SentClaim {
    /// Adds the result of one message to the result of its claim. The worst result counts: refused,
    /// then failed, then accepted. If several messages failed, the first failure with a cause
    /// counts.
    fn note(&self, verdict: Verdict) {
        let mut noted = lock(&self.verdict);
        let replace = match (&*noted, &verdict) {
            (_, Verdict::Accepted) | (Verdict::Refused(_), _) => false,
            (Verdict::Accepted, _) | (_, Verdict::Refused(_)) => true,
            (Verdict::Failed(why), Verdict::Failed(_)) => why.is_none(),
        };
        if replace {
            *noted = verdict;
        }
    }
}

/// A report that a producer sends to its `KafkaLink`.
#[derive(Debug)]
pub(super) enum Report {
    /// No message of the claim waits for a delivery report. The second value is the result for the
    /// claim. A checkpoint has no claim.
    Done(Option<Claim>, Verdict),
    /// librdkafka has met an error. If it is `fatal`, this producer can't send any more; otherwise
    /// librdkafka continues to try.
    Trouble { trouble: Trouble, fatal: bool },
}

/// Receives the callbacks of a producer, on the producer's threads, and sends reports to the
/// `KafkaLink`. The producer owns this value, so the channel closes when the producer ends.
pub(super) struct Reporter {
    pub(super) name: String,
    pub(super) reports: async_mpsc::UnboundedSender<Report>,
    /// The number of messages that the brokers have acknowledged. If the number does not grow for
    /// too long, the producer is given up.
    pub(super) acknowledged: Arc<AtomicU64>,
}

impl Reporter {
    /// Records that `messages` more messages of a claim have their delivery report. If no message
    /// of the claim is left, sends the result for the claim.
    fn finish(&self, sent: &SentClaim, messages: u64) {
        if sent.left.fetch_sub(messages, Ordering::AcqRel) == messages {
            let mut noted = lock(&sent.verdict);
            let verdict = std::mem::replace(&mut *noted, Verdict::Accepted);
            self.tell(Report::Done(sent.claim, verdict));
        }
    }

    fn tell(&self, report: Report) {
        // The send fails only if the link is dropped, and nobody needs the report then.
        self.reports.send(report).ok();
    }
}

impl ClientContext for Reporter {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::kafka::log(&self.name, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            // The error of each single broker says more, and was reported before.
            return;
        }
        let fatal = code == Some(RDKafkaErrorCode::Fatal);
        self.tell(Report::Trouble { trouble: Trouble::new(&error, reason), fatal });
    }
}

impl ProducerContext for Reporter {
    type DeliveryOpaque = Arc<SentClaim>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Arc<SentClaim>) {
        match result {
            Ok(_) => drop(self.acknowledged.fetch_add(1, Ordering::Relaxed)),
            Err((error, message)) => sent.note(Verdict::of(error, message.payload_len())),
        }
        self.finish(&sent, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use telemetry::Telemetry;

    /// Returns the settings of an output to a broker that is not there.
    fn shared() -> (Arc<ProducerSettings>, Arc<Telemetry>) {
        let keys = "type = 'kafka'\nbrokers = ['127.0.0.1:1']\ntopic = 't'";
        let output = crate::tests::output(keys);
        let kafka = output.kind.settings().expect("it is kafka's");
        let telemetry = Arc::new(Telemetry::new());
        let shared = ProducerSettings::new(kafka, &Setup::new(&output, &telemetry));
        (Arc::new(shared), telemetry)
    }

    #[test]
    fn a_message_that_librdkafka_does_not_take_is_overtaken_by_none() {
        let (shared, _telemetry) = shared();
        let (reports, mut reported) = async_mpsc::unbounded_channel();
        let reporter = Reporter { name: "o".to_owned(), reports, acknowledged: Arc::default() };
        let mut config = shared.producer();
        config.set("message.max.bytes", "1000").set("batch.size", "1000");
        let producer: ThreadedProducer<Reporter> = config.create_with_context(reporter).unwrap();
        // The third message is too long for this producer. There is no broker, so messages that
        // are sent get no verdict.
        let batches = [(0, &[10, 10][..]), (2, &[2000, 10]), (4, &[10]), (5, &[10])];
        let jobs = batches.map(|(start, lengths)| {
            let events: Vec<_> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let batch = crate::tests::batch(start, &events);
            Job { claim: Some(batch.claim), batch, key: None }
        });
        send_all(&shared, &producer, jobs);
        let mut verdicts = Vec::new();
        while verdicts.len() < 3 {
            match reported.try_recv() {
                Ok(Report::Done(claim, verdict)) => {
                    verdicts.push((claim.unwrap().start.get(), verdict));
                }
                // librdkafka reports that the broker can't be reached.
                Ok(Report::Trouble { .. }) => {}
                Err(error) => panic!("{error}, batches behind it were sent: {verdicts:?}"),
            }
        }
        let refused = matches!(&verdicts[0], (2, Verdict::Refused(_)));
        let failed = |verdict: &(u64, Verdict)| matches!(verdict, (4 | 5, Verdict::Failed(None)));
        assert!(refused && verdicts[1..].iter().all(failed), "{verdicts:?}");
        producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        producer.flush(Duration::from_secs(10)).unwrap();
    }
}
