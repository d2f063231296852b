//! `type = "kafka"`: one message for each event, which is final when every in-sync replica of its
//! partition has it.
//!
//! librdkafka sends, and tries again as long as it makes sense, without changing the order within a
//! partition or sending anything twice (idempotent producer). What it can't deliver in order ends
//! this producer, and begins again with another: whatever was sent and not acknowledged may then
//! arrive twice, but nothing is left out.
//!
//! A thread for each producer makes the calls, and another of rdkafka's polls; both end when the
//! link is gone.

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

use super::transport::tls_session::Expiry;
use crate::audit::scan;
use crate::config;
use crate::config::Compression;
use crate::config::MessageKey;
use crate::delivery::endpoints::Probed;
use crate::delivery::failure::Failure;
use crate::delivery::failure::ProbeError;
use crate::delivery::failure::StageError;
use crate::delivery::files::Files;
use crate::delivery::files::Staged;
use crate::delivery::lines::lines;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::kafka::Changes;
use crate::kafka::Cluster;
use crate::kafka::Trouble;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;

/// Batches under way: while the brokers write one, others are on the way there and back.
const WINDOW: u64 = 4;

/// Messages are sent together up to here, less where `batch.max_bytes` is less: below what a broker
/// takes by default (1,048,588 bytes, its `message.max.bytes`).
const SET_BYTES: u64 = 1_000_000;

/// How often in `timeouts.connect` or `timeouts.request` progress is looked for.
const LOOKS: u32 = 10;

/// What all producers of an output have in common.
struct Shared {
    name: String,
    cluster: Cluster,
    config: config::KafkaOutput,
    retry: config::Retry,
    timeouts: config::Timeouts,
    limits: config::BatchLimits,
    metrics: OutputMetrics,
    expiry: Expiry,
}

impl Files for Shared {
    fn stage(self: Arc<Self>) -> Result<Staged, StageError> {
        let secrets = self.cluster.read().map_err(StageError::Setting)?;
        Ok(Box::new(move || {
            self.cluster.apply(secrets);
            self.expiry.set("client", self.cluster.not_after());
        }))
    }
}

impl Shared {
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
            // What fails for good must not be overtaken by what comes after it.
            .set("enable.gapless.guarantee", "true")
            // It never gives up by itself: that would be out of order. `timeouts.request` is ours.
            .set("message.timeout.ms", "0")
            .set("request.timeout.ms", millis(self.timeouts.request, 900_000))
            .set("reconnect.backoff.ms", millis(self.retry.initial_interval, 3_600_000))
            .set("reconnect.backoff.max.ms", millis(self.retry.max_interval, 3_600_000))
            .set("partitioner", "murmur2_random")
            .set("compression.type", compression)
            .set("linger.ms", "5")
            .set("batch.size", self.limits.max_bytes.min(SET_BYTES).to_string())
            // How large an event may be is for the brokers to say, and how much is under way for
            // `room`: at limits of its own librdkafka would refuse what can be delivered.
            .set("message.max.bytes", "1000000000")
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "2147483647");
        producer
    }

    /// The consumer, in messages.
    fn place(&self) -> String {
        format!("kafka {} at {}", self.cluster.topic(), self.cluster.brokers())
    }

    fn failure(&self, trouble: &Trouble) -> Failure {
        Failure::new(trouble.reason, format!("{}: {trouble}", self.place()))
    }
}

/// Makes producers. Owned by the delivery loop.
pub(super) struct Connector {
    shared: Arc<Shared>,
}

impl Connector {
    pub(super) fn new(
        kafka: &config::KafkaOutput,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        let shared = Shared {
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

impl Connect for Connector {
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

    /// A producer, and the word of a broker that the topic exists.
    async fn connect(&mut self) -> Result<KafkaLink, Failure> {
        loop {
            let mut changes = self.shared.cluster.changes();
            tokio::select! {
                connected = self.attempt() => return connected,
                // What may have failed with the old files need not fail with the new ones.
                () = changes.changed() => {}
            }
        }
    }
}

impl Connector {
    async fn attempt(&self) -> Result<KafkaLink, Failure> {
        let shared = Arc::clone(&self.shared);
        let changes = shared.cluster.changes();
        let (jobs, queue) = mpsc::channel();
        // Bounded by what is under way: one for each claim, and a few of trouble.
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
        // Its calls are bounded by `connect`; this is for what may hang in a system call.
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

/// What the connections said tells more than that there is none.
fn is_vague(trouble: &Trouble) -> bool {
    matches!(trouble.reason, AttemptError::Connect | AttemptError::Timeout)
}

/// The thread: hands messages to librdkafka, and ends when the link is gone. It is not joined: a
/// call may hang, and it owns nothing but its producer.
fn produce(
    shared: &Shared,
    reporter: Reporter,
    queue: &mpsc::Receiver<Batch>,
    ready: oneshot::Sender<Result<(), Trouble>>,
) {
    let producer: ThreadedProducer<Reporter> = match shared.producer().create_with_context(reporter)
    {
        Ok(producer) => producer,
        Err(error) => {
            // Nobody waits for it where the output has been stopped.
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
    // What is still under way is given up here, and reported.
}

/// Hands batches over in their order, until librdkafka does not take a message. The link ends the
/// producer by that, but hears of it late: batches that wait here by then fail unsent, or they
/// would overtake the message.
fn send_all(
    shared: &Shared,
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

/// Hands over the messages of a batch. `false` where librdkafka does not take one: those behind it
/// are not sent, and count as failed.
fn send(shared: &Shared, producer: &ThreadedProducer<Reporter>, batch: &Batch) -> bool {
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
            // Nothing after it may be sent.
            reporter.finish(&sent, unsent);
            return false;
        }
        unsent -= 1;
    }
    true
}

/// What became of a claim's messages.
#[derive(Debug)]
enum Verdict {
    /// So far, every one is acknowledged.
    Accepted,
    /// One can't be delivered, or was given up; why, where it is not the consequence of another's
    /// failure.
    Failed(Option<Trouble>),
    /// One is refused for what it is.
    Refused(Trouble),
}

/// Given up for what happened to another message.
const CONSEQUENCES: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::Fatal,
    RDKafkaErrorCode::GaplessGuarantee,
    RDKafkaErrorCode::PurgeQueue,
    RDKafkaErrorCode::PurgeInflight,
    RDKafkaErrorCode::OutOfOrderSequenceNumber,
];

/// About the message, whichever broker says so.
const REFUSALS: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::MessageSizeTooLarge,
    RDKafkaErrorCode::MessageBatchTooLarge,
    RDKafkaErrorCode::InvalidRecord,
];

impl Verdict {
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

/// A claim under way: each of its messages has one.
struct Sent {
    claim: Claim,
    /// Messages without a report.
    left: AtomicU64,
    verdict: Mutex<Verdict>,
}

impl Sent {
    /// The worst counts, and of equals the first that says why.
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

/// What a producer tells its link.
#[derive(Debug)]
enum Report {
    /// Every message of a claim has its delivery report.
    Done(Claim, Verdict),
    /// Librdkafka goes on trying, unless it is fatal.
    Trouble { trouble: Trouble, fatal: bool },
}

/// Called by the threads of a producer, and owned by it: when the reports end, it is gone.
struct Reporter {
    name: String,
    reports: async_mpsc::UnboundedSender<Report>,
    /// Messages.
    acknowledged: Arc<AtomicU64>,
}

impl Reporter {
    /// So many messages of a claim have their report.
    fn finish(&self, sent: &Sent, messages: u64) {
        if sent.left.fetch_sub(messages, Ordering::AcqRel) == messages {
            let mut noted = sent.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            let verdict = std::mem::replace(&mut *noted, Verdict::Accepted);
            self.tell(Report::Done(sent.claim, verdict));
        }
    }

    fn tell(&self, report: Report) {
        // Nobody waits for it where the output has been stopped.
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
            // What each of them said tells more.
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

/// One producer, until it has to be replaced.
pub(super) struct KafkaLink {
    shared: Arc<Shared>,
    /// `None`: given up.
    jobs: Option<mpsc::Sender<Batch>>,
    reports: async_mpsc::UnboundedReceiver<Report>,
    changes: Changes,
    /// The files are others now.
    outdated: bool,
    /// Events and bytes of each claim that has no verdict yet.
    under_way: BTreeMap<Claim, (u64, u64)>,
    events: u64,
    bytes: u64,
    acknowledged: Arc<AtomicU64>,
    /// Messages that were acknowledged when progress was seen last, and when that was.
    progress: (u64, Instant),
    looked: Instant,
    /// The last since then.
    trouble: Option<Failure>,
    told: Option<Instant>,
    given_up: Option<GivenUp>,
}

/// Why a producer is given up.
struct GivenUp {
    at: Instant,
    failure: Option<Failure>,
    /// It is because of an event, not of the brokers.
    refused: bool,
}

impl KafkaLink {
    fn new(
        shared: Arc<Shared>,
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
            looked: now,
            trouble: None,
            told: None,
            given_up: None,
        }
    }

    /// What the connections said while the topic was looked for.
    fn last_trouble(&mut self) -> Option<Failure> {
        while let Ok(report) = self.reports.try_recv() {
            drop(self.on_report(Some(report)));
        }
        self.trouble.take()
    }

    /// No more is sent, and what is under way will be reported as failed, or as what became of it
    /// meanwhile.
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

    /// How long to wait between looks at the progress.
    fn look(&self) -> Duration {
        self.shared.timeouts.connect.min(self.shared.timeouts.request) / LOOKS
    }

    fn on_look(&mut self) -> Option<Event> {
        let now = Instant::now();
        self.looked = now;
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
            self.looked = now;
        }
        self.shared.metrics.bytes.increment(batch.bytes);
        self.under_way.insert(batch.claim, (batch.events, batch.bytes));
        self.events += batch.events;
        self.bytes += batch.bytes;
        // A thread that has ended says so by the end of its reports.
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
            let look = self.looked + self.look();
            let event = tokio::select! {
                biased;
                report = self.reports.recv() => self.on_report(report),
                () = self.changes.changed(), if !self.outdated => {
                    self.outdated = true;
                    None
                }
                () = tokio::time::sleep_until(look), if !idle => self.on_look(),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// What is under way is given up.
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

    /// An output to a broker that is not there.
    fn shared() -> (Arc<Shared>, Arc<Telemetry>) {
        let text = "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\ntype = 'kafka'\n\
                    brokers = ['127.0.0.1:1']\ntopic = 't'\n";
        let output = config::read(text).config.expect(text).outputs.remove(0);
        let config::OutputKind::Kafka(kafka) = &output.kind else { panic!("{text}") };
        let telemetry = Arc::new(Telemetry::new());
        let expiry = Expiry::new(&telemetry, "o");
        let connector = Connector::new(kafka, &output, telemetry.output("o"), expiry);
        (connector.shared, telemetry)
    }

    /// Events of these lengths.
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
        // The third message is too long for it. There is nobody to deliver the others to: what is
        // sent has no verdict yet.
        let batches =
            [batch(0, &[10, 10]), batch(2, &[2000, 10]), batch(4, &[10]), batch(5, &[10])];
        send_all(&shared, &producer, batches);
        let mut verdicts = Vec::new();
        while verdicts.len() < 3 {
            match reported.try_recv() {
                Ok(Report::Done(claim, verdict)) => verdicts.push((claim.start.get(), verdict)),
                // What it says of the broker.
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
