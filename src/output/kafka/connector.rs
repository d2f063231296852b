//! Delivers to Kafka: one message for each event. A message is final when every in-sync replica of
//! its partition has it.
//!
//! librdkafka sends the messages and retries them, without changing the order within a partition
//! and without sending any message twice (it is an idempotent producer). If it can't deliver a
//! message in order, this producer ends and another one begins. Messages that were sent and not
//! acknowledged may then arrive twice, but none is left out.
//!
//! Each producer has two threads: one of ours makes the calls that may block, and one of the crate
//! rdkafka polls. Both end when the link is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::BaseRecord;
use rdkafka::producer::Producer;
use rdkafka::producer::ProducerContext;
use rdkafka::producer::ThreadedProducer;
use tokio::sync::mpsc as async_mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::MessageKey;
use super::Settings;
use crate::audit::scan;
use crate::config;
use crate::config::Compression;
use crate::delivery::endpoints::Probed;
use crate::delivery::failure::Failure;
use crate::delivery::failure::ProbeError;
use crate::delivery::files::Files;
use crate::delivery::files::StageError;
use crate::delivery::lines::lines;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::kafka::Changes;
use crate::kafka::Cluster;
use crate::kafka::Trouble;
use crate::output::transport::tls_session::Expiry;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::staged::Staged;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;

/// How many full batches, by bytes and by events, may be under way. While the brokers write one,
/// others are on the way there and back.
const WINDOW: u64 = 4;

/// The most bytes of messages that are sent together; `batch.max_bytes` may lower it. A broker
/// takes 1,048,588 bytes by default (its `message.max.bytes`).
const SET_BYTES: u64 = 1_000_000;

/// How often progress is checked within the shorter one of `timeouts.connect` and
/// `timeouts.request`.
const PROGRESS_CHECKS: u32 = 10;

/// The settings that all producers of an output share, one after the other.
struct ProducerSettings {
    name: String,
    cluster: Cluster,
    config: Settings,
    retry: config::Retry,
    timeouts: config::Timeouts,
    limits: config::BatchLimits,
    metrics: OutputMetrics,
    expiry: Expiry,
}

impl Files for ProducerSettings {
    fn stage(self: Arc<Self>) -> Result<Staged, StageError> {
        let secrets = self.cluster.read().map_err(StageError::Setting)?;
        Ok(Box::new(move || {
            self.cluster.apply(secrets);
            self.expiry.set("client", self.cluster.not_after());
        }))
    }
}

impl ProducerSettings {
    /// The configuration of librdkafka for one producer.
    fn producer(&self) -> ClientConfig {
        let mut producer = self.cluster.client(self.timeouts.connect, self.timeouts.request);
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
            // A message that fails for good must not be overtaken by the messages after it.
            .set("enable.gapless.guarantee", "true")
            // librdkafka never gives a message up by itself, because later messages could then
            // arrive before it. The link watches `timeouts.request`.
            .set("message.timeout.ms", "0")
            .set("request.timeout.ms", millis(self.timeouts.request, 900_000))
            .set("reconnect.backoff.ms", millis(self.retry.initial_interval, 3_600_000))
            .set("reconnect.backoff.max.ms", millis(self.retry.max_interval, 3_600_000))
            .set("partitioner", "murmur2_random")
            .set("compression.type", compression)
            .set("linger.ms", "5")
            .set("batch.size", self.limits.max_bytes.min(SET_BYTES).to_string())
            // The brokers limit the size of an event, and `room` limits how much is under way.
            // With limits of its own librdkafka would refuse messages that can be delivered.
            .set("message.max.bytes", "1000000000")
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "2147483647");
        producer
    }

    /// The name of the consumer in messages of the log.
    fn place(&self) -> String {
        format!("kafka {} at {}", self.cluster.topic(), self.cluster.brokers())
    }

    fn failure(&self, trouble: &Trouble) -> Failure {
        Failure::new(trouble.reason, format!("{}: {trouble}", self.place()))
    }
}

/// Makes the producers of one output. Owned by the delivery loop.
///
/// [`Connect::connect`] starts a producer and waits until a broker has confirmed that the topic
/// exists. librdkafka makes the connections to brokers itself, and makes them again after they
/// break without ending the link. The loop calls `connect` as soon as the output starts, before
/// there is anything to send, and again after a producer has ended.
pub(super) struct KafkaConnector {
    shared: Arc<ProducerSettings>,
}

impl KafkaConnector {
    pub(super) fn new(
        kafka: &Settings,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        let shared = ProducerSettings {
            name: output.name.clone(),
            cluster: Cluster::new(&kafka.cluster),
            config: kafka.clone(),
            retry: output.retry.clone(),
            timeouts: output.timeouts.clone(),
            limits: output.batch,
            metrics,
            expiry,
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Connect for KafkaConnector {
    type Link = KafkaLink;

    const EAGER: bool = true;

    fn files(&self) -> Option<Arc<dyn Files>> {
        Some(Arc::clone(&self.shared) as Arc<dyn Files>)
    }

    async fn probe(&mut self) -> Probed {
        let connected = self.connect().await;
        let result = connected.map(drop).map_err(ProbeError::from);
        vec![(self.shared.cluster.brokers(), result)]
    }

    /// Makes a producer, and waits until a broker has confirmed that the topic exists.
    async fn connect(&mut self) -> Result<KafkaLink, Failure> {
        loop {
            let mut changes = self.shared.cluster.changes();
            tokio::select! {
                connected = self.attempt() => return connected,
                // A reload has replaced the files, so an attempt with the old ones proves nothing.
                () = changes.changed() => {}
            }
        }
    }
}

impl KafkaConnector {
    /// Makes a producer with the files as they are now.
    async fn attempt(&self) -> Result<KafkaLink, Failure> {
        let shared = Arc::clone(&self.shared);
        let changes = shared.cluster.changes();
        let (jobs, queue) = mpsc::channel();
        // The number of reports is bounded by the claims under way: one each, and a few about
        // trouble.
        let (reports, reported) = async_mpsc::unbounded_channel();
        let (ready, found) = oneshot::channel();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let reporter = Reporter {
            name: shared.name.clone(),
            reports,
            acknowledged: Arc::clone(&acknowledged),
        };
        std::thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || produce(&shared, reporter, &queue, ready))
            .map_err(|error| Failure::new(AttemptError::Connect, format!("kafka: {error}")))?;
        let shared = Arc::clone(&self.shared);
        let mut link = KafkaLink::new(shared, jobs, reported, changes, acknowledged);
        // Each call of the thread takes at most `timeouts.connect`. The limit is for a thread that
        // hangs in a system call.
        let limit = self.shared.timeouts.connect * 2 + CLOSE_TIME;
        let trouble = match tokio::time::timeout(limit, found).await {
            Ok(Ok(Ok(()))) => return Ok(link),
            Ok(Ok(Err(trouble))) => trouble,
            Ok(Err(_)) | Err(_) => {
                Trouble { reason: AttemptError::Timeout, message: "no answer".to_owned() }
            }
        };
        let said = link.last_trouble().filter(|_| is_vague(&trouble));
        Err(said.unwrap_or_else(|| self.shared.failure(&trouble)))
    }
}

/// Whether a trouble says only that there is no connection. What a connection reported before then
/// tells more.
fn is_vague(trouble: &Trouble) -> bool {
    matches!(trouble.reason, AttemptError::Connect | AttemptError::Timeout)
}

/// The thread of a producer: hands messages to librdkafka, and ends when the link is gone. It is
/// not joined, because a call may hang; it owns nothing but its producer.
fn produce(
    shared: &ProducerSettings,
    reporter: Reporter,
    queue: &mpsc::Receiver<Batch>,
    ready: oneshot::Sender<Result<(), Trouble>>,
) {
    let producer: ThreadedProducer<Reporter> = match shared.producer().create_with_context(reporter)
    {
        Ok(producer) => producer,
        Err(error) => {
            // An error says that the output was stopped in the meantime.
            ready.send(Err(Trouble::new(&error, ""))).ok();
            return;
        }
    };
    let found = shared.cluster.find_topic(producer.client(), shared.timeouts.connect);
    let found = found.map_err(|error| Trouble::new(&error, ""));
    if ready.send(found).is_err() {
        return;
    }
    send_all(shared, &producer, queue);
    // Dropping the producer gives up the messages under way, and reports them as failed.
}

/// Hands batches over in their order, until librdkafka does not take a message. The link then ends
/// the producer, but batches may still wait here until it has heard of the refusal. They fail
/// unsent: if they were sent, they would overtake the message.
fn send_all(
    shared: &ProducerSettings,
    producer: &ThreadedProducer<Reporter>,
    queue: impl IntoIterator<Item = Batch>,
) {
    let mut goes_on = true;
    for batch in queue {
        if goes_on {
            goes_on = send(shared, producer, &batch);
        } else {
            producer.context().tell(Report::Done(batch.claim, Verdict::Failed(None)));
        }
    }
}

/// Hands over the messages of a batch. Returns `false` if librdkafka does not take a message; the
/// messages after it are then not sent, and the claim has its verdict.
fn send(shared: &ProducerSettings, producer: &ThreadedProducer<Reporter>, batch: &Batch) -> bool {
    let sent = Arc::new(Sent {
        claim: batch.claim,
        left: AtomicU64::new(batch.events),
        verdict: Mutex::new(Verdict::Accepted),
    });
    let mut unsent = batch.events;
    for line in lines(&batch.pieces) {
        let record: BaseRecord<'_, [u8], [u8], Arc<Sent>> =
            BaseRecord::with_opaque_to(shared.cluster.topic(), Arc::clone(&sent)).payload(line);
        let key = match shared.config.key {
            MessageKey::AuditId => scan::member(line, "auditID").and_then(scan::string),
            MessageKey::None => None,
        };
        let record = match &key {
            Some(key) => record.key(&**key),
            None => record,
        };
        if let Err((error, _)) = producer.send(record) {
            let reporter = producer.context();
            sent.note(Verdict::of(&error, line.len()));
            // The messages after this one must not be sent, and count as reported.
            reporter.finish(&sent, unsent);
            return false;
        }
        unsent -= 1;
    }
    true
}

/// The result for the messages of one claim.
#[derive(Debug)]
enum Verdict {
    /// Every message that has its report was acknowledged.
    Accepted,
    /// A message can't be delivered, or was given up. `None`: only because another message failed.
    Failed(Option<Trouble>),
    /// A message is refused for its own content or size.
    Refused(Trouble),
}

/// The error codes of messages that were given up because another message failed.
const CONSEQUENCES: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::Fatal,
    RDKafkaErrorCode::GaplessGuarantee,
    RDKafkaErrorCode::PurgeQueue,
    RDKafkaErrorCode::PurgeInflight,
    RDKafkaErrorCode::OutOfOrderSequenceNumber,
];

/// The error codes that concern the message itself: any broker would refuse it.
const REFUSALS: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::MessageSizeTooLarge,
    RDKafkaErrorCode::MessageBatchTooLarge,
    RDKafkaErrorCode::InvalidRecord,
];

impl Verdict {
    /// The verdict for a claim with a message of `bytes` bytes that met `error`.
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

/// A claim under way. Shared by all its messages.
struct Sent {
    claim: Claim,
    /// The number of messages without a report.
    left: AtomicU64,
    verdict: Mutex<Verdict>,
}

impl Sent {
    /// Notes the verdict of one message. The worst verdict of a claim counts: refused, then failed,
    /// then accepted. Of several failures, the first with a reason counts.
    fn note(&self, verdict: Verdict) {
        let mut noted = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
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

/// What a producer reports to its link.
#[derive(Debug)]
enum Report {
    /// Every message of a claim has its delivery report.
    Done(Claim, Verdict),
    /// librdkafka has met an error. It goes on trying, unless the error is fatal.
    Trouble { trouble: Trouble, fatal: bool },
}

/// Receives the callbacks of a producer, on the producer's threads. The producer owns it, so the
/// reports end when the producer is gone.
struct Reporter {
    name: String,
    reports: async_mpsc::UnboundedSender<Report>,
    /// The number of messages that were acknowledged. The link reads it to see progress.
    acknowledged: Arc<AtomicU64>,
}

impl Reporter {
    /// Notes that `messages` more messages of a claim have their report. The last one reports the
    /// claim.
    fn finish(&self, sent: &Sent, messages: u64) {
        if sent.left.fetch_sub(messages, Ordering::AcqRel) == messages {
            let mut noted = sent.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            let verdict = std::mem::replace(&mut *noted, Verdict::Accepted);
            self.tell(Report::Done(sent.claim, verdict));
        }
    }

    fn tell(&self, report: Report) {
        // An error says that the link is gone.
        self.reports.send(report).ok();
    }
}

impl ClientContext for Reporter {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::kafka::log(&self.name, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            // The errors of the single brokers tell more, and were reported before.
            return;
        }
        let fatal = code == Some(RDKafkaErrorCode::Fatal);
        self.tell(Report::Trouble { trouble: Trouble::new(&error, reason), fatal });
    }
}

impl ProducerContext for Reporter {
    type DeliveryOpaque = Arc<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Arc<Sent>) {
        match result {
            Ok(_) => drop(self.acknowledged.fetch_add(1, Ordering::Relaxed)),
            Err((error, message)) => sent.note(Verdict::of(error, message.payload_len())),
        }
        self.finish(&sent, 1);
    }
}

/// One producer, until it has to be replaced. The delivery loop owns the link; the producer's
/// threads report to it by a channel.
///
/// The life of a batch on the link:
///
/// 1. [`Link::send`] puts the batch in the channel to the thread ([`produce`]). There is room for
///    it while fewer than [`WINDOW`] full batches are under way.
/// 2. The thread hands its messages to librdkafka, which batches, sends and retries them.
/// 3. When the last message of the claim has its delivery report, the claim has a [`Verdict`]:
///    accepted and refused claims are events for the loop.
///
/// A failed message ends the producer: librdkafka delivers nothing after it, so that nothing
/// overtakes it. The link is then *given up*: it takes no more batches, reports the verdicts that
/// still come for up to [`CLOSE_TIME`], and ends with [`Event::Gone`]. It is also given up after a
/// refused message, after a fatal error, and when no message was acknowledged for
/// `timeouts.request`.
///
/// When a reload has replaced the files, the link is *outdated*: it takes no more batches, and ends
/// when nothing is under way. A new producer reads the new files.
///
/// Trouble that librdkafka retries is reported once nothing was acknowledged for
/// `timeouts.connect`, by [`Event::Troubled`], and again after each `timeouts.connect` that it
/// lasts.
///
/// Invariants: claims may become final out of order, because partitions are independent. Each claim
/// has at most one verdict. The link never joins a thread.
pub(super) struct KafkaLink {
    shared: Arc<ProducerSettings>,
    /// The channel to the producer's thread; `None` once the producer is given up.
    jobs: Option<mpsc::Sender<Batch>>,
    reports: async_mpsc::UnboundedReceiver<Report>,
    /// Tells when a reload has replaced the files.
    changes: Changes,
    /// Whether a reload has replaced the files since the producer was made.
    outdated: bool,
    /// Events and bytes of each claim that has no verdict yet.
    under_way: BTreeMap<Claim, (u64, u64)>,
    /// The events of all claims in `under_way`.
    events: u64,
    /// The bytes of all claims in `under_way`.
    bytes: u64,
    /// The number of messages that were acknowledged. The producer's threads count them.
    acknowledged: Arc<AtomicU64>,
    /// The number of acknowledged messages when progress was last seen, and when that was.
    progress: (u64, Instant),
    /// When progress was last checked.
    checked: Instant,
    /// The last trouble since the last progress; `None` if there was none.
    trouble: Option<Failure>,
    /// When trouble was last reported; `None` if it never was.
    told: Option<Instant>,
    /// `None` while the producer works.
    given_up: Option<GivenUp>,
}

/// When and why a producer was given up.
struct GivenUp {
    at: Instant,
    /// The first failure with a reason; `None` if there was none.
    failure: Option<Failure>,
    /// Whether the reason is an event, and not the brokers.
    refused: bool,
}

impl KafkaLink {
    fn new(
        shared: Arc<ProducerSettings>,
        jobs: mpsc::Sender<Batch>,
        reports: async_mpsc::UnboundedReceiver<Report>,
        changes: Changes,
        acknowledged: Arc<AtomicU64>,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            jobs: Some(jobs),
            reports,
            changes,
            outdated: false,
            under_way: BTreeMap::new(),
            events: 0,
            bytes: 0,
            acknowledged,
            progress: (0, now),
            checked: now,
            trouble: None,
            told: None,
            given_up: None,
        }
    }

    /// The last trouble that was reported while the producer looked for the topic; `None` if there
    /// was none.
    fn last_trouble(&mut self) -> Option<Failure> {
        while let Ok(report) = self.reports.try_recv() {
            drop(self.on_report(Some(report)));
        }
        self.trouble.take()
    }

    /// Gives the producer up. No more batches are sent. Each claim under way is reported as failed,
    /// or with the verdict that it gets in the meantime.
    fn give_up(&mut self, failure: Option<Failure>, refused: bool) {
        self.jobs = None;
        let given_up = self.given_up.get_or_insert_with(|| GivenUp {
            at: Instant::now(),
            failure: None,
            refused: false,
        });
        given_up.refused |= refused;
        if given_up.failure.is_none() {
            given_up.failure = failure;
        }
    }

    /// Handles a report; `None` says that the producer is gone. Returns an event for the loop, or
    /// `None` if there is none.
    fn on_report(&mut self, report: Option<Report>) -> Option<Event> {
        match report {
            Some(Report::Done(claim, verdict)) => {
                if let Some((events, bytes)) = self.under_way.remove(&claim) {
                    self.events -= events;
                    self.bytes -= bytes;
                }
                match verdict {
                    Verdict::Accepted => {
                        self.trouble = None;
                        return Some(Event::Accepted { claim, rejected: Vec::new() });
                    }
                    Verdict::Refused(trouble) => {
                        self.give_up(None, true);
                        return Some(Event::Refused(claim, self.shared.failure(&trouble)));
                    }
                    Verdict::Failed(trouble) => {
                        self.give_up(trouble.map(|trouble| self.shared.failure(&trouble)), false);
                    }
                }
            }
            Some(Report::Trouble { trouble, fatal }) => {
                let failure = self.shared.failure(&trouble);
                if fatal {
                    self.give_up(Some(failure), false);
                } else {
                    self.trouble = Some(failure);
                }
            }
            None => {
                self.under_way.clear();
                let message = format!("{}: the producer has ended", self.shared.place());
                self.give_up(Some(Failure::new(AttemptError::Protocol, message)), false);
            }
        }
        None
    }

    /// The time between two checks of progress.
    fn check_interval(&self) -> Duration {
        self.shared.timeouts.connect.min(self.shared.timeouts.request) / PROGRESS_CHECKS
    }

    /// Checks progress. Returns [`Event::Troubled`] if there was none for some time and librdkafka
    /// has said why; else `None`. Gives the producer up after `timeouts.request` without progress.
    fn on_check(&mut self) -> Option<Event> {
        let now = Instant::now();
        self.checked = now;
        if self.given_up.is_some() {
            return None;
        }
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let (seen, since) = self.progress;
        if acknowledged != seen {
            self.progress = (acknowledged, now);
            self.trouble = None;
            return None;
        }
        let waited = now.duration_since(since);
        let config::Timeouts { connect, request, .. } = self.shared.timeouts;
        if waited >= request {
            let why = self.trouble.take().map(|failure| format!(": {failure}"));
            let message = format!(
                "{}: no acknowledgement for {} s{}",
                self.shared.place(),
                request.as_secs_f64(),
                why.unwrap_or_default()
            );
            self.give_up(Some(Failure::new(AttemptError::Timeout, message)), false);
            return None;
        }
        let quiet = self.told.is_some_and(|told| now.duration_since(told) < connect);
        if waited < connect || quiet {
            return None;
        }
        let trouble = self.trouble.clone()?;
        self.told = Some(now);
        Some(Event::Troubled(trouble))
    }
}

impl Link for KafkaLink {
    fn room(&self) -> Option<Take> {
        let config::BatchLimits { max_bytes, max_events } = self.shared.limits;
        let has_room = self.bytes <= (WINDOW - 1).saturating_mul(max_bytes)
            && self.events <= (WINDOW - 1).saturating_mul(max_events);
        (has_room && self.jobs.is_some() && !self.outdated)
            .then_some(Take { bytes: max_bytes, events: max_events })
    }

    fn send(&mut self, batch: Batch) {
        let Some(jobs) = &self.jobs else { return };
        if self.under_way.is_empty() {
            let now = Instant::now();
            self.progress = (self.acknowledged.load(Ordering::Relaxed), now);
            self.checked = now;
        }
        self.shared.metrics.bytes.increment(batch.bytes);
        self.under_way.insert(batch.claim, (batch.events, batch.bytes));
        self.events += batch.events;
        self.bytes += batch.bytes;
        // An error says that the thread has ended. The end of its reports says so too.
        jobs.send(batch).ok();
    }

    async fn event(&mut self) -> Event {
        loop {
            let idle = self.under_way.is_empty();
            if let Some(given_up) = &mut self.given_up
                && (idle || given_up.at.elapsed() >= CLOSE_TIME)
            {
                let failure = given_up.failure.take().filter(|_| !given_up.refused);
                return Event::Gone(failure);
            }
            if idle && self.outdated {
                return Event::Gone(None);
            }
            let check = self.checked + self.check_interval();
            let event = tokio::select! {
                biased;
                report = self.reports.recv() => self.on_report(report),
                () = self.changes.changed(), if !self.outdated => {
                    self.outdated = true;
                    None
                }
                () = tokio::time::sleep_until(check), if !idle => self.on_check(),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Gives up the claims under way, and waits until the producer is gone, for [`CLOSE_TIME`] at
    /// most.
    async fn close(mut self) {
        self.jobs = None;
        let gone = async { while self.reports.recv().await.is_some() {} };
        tokio::time::timeout(CLOSE_TIME, gone).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Telemetry;

    /// Returns the settings of an output to a broker that is not there.
    fn shared() -> (Arc<ProducerSettings>, Arc<Telemetry>) {
        let text = "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\ntype = 'kafka'\n\
                    brokers = ['127.0.0.1:1']\ntopic = 't'\n";
        let output = config::read(text, crate::output::TYPES).config.expect(text).outputs.remove(0);
        let kafka = output.kind.settings().expect("it is kafka's");
        let telemetry = Arc::new(Telemetry::new());
        let expiry = Expiry::new(&telemetry, "o");
        let connector = KafkaConnector::new(kafka, &output, telemetry.output("o"), expiry);
        (connector.shared, telemetry)
    }

    /// Returns a batch that begins at position `start`, with events of these lengths in bytes.
    fn batch(start: u64, lengths: &[usize]) -> Batch {
        let lines: String = lengths.iter().map(|length| "x".repeat(*length) + "\n").collect();
        let events = lengths.len() as u64;
        Batch {
            claim: Claim::of(start, start + events),
            events,
            bytes: lines.len() as u64,
            pieces: vec![lines.into()],
            origins: Vec::new(),
        }
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
        let batches =
            [batch(0, &[10, 10]), batch(2, &[2000, 10]), batch(4, &[10]), batch(5, &[10])];
        send_all(&shared, &producer, batches);
        let mut verdicts = Vec::new();
        while verdicts.len() < 3 {
            match reported.try_recv() {
                Ok(Report::Done(claim, verdict)) => verdicts.push((claim.start.get(), verdict)),
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
