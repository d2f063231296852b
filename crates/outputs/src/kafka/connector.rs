//! Delivers to Kafka: one message for each event. A message is final when every in-sync replica of
//! its partition has it.
//!
//! librdkafka sends the messages and retries them. It keeps the order within a partition, and the
//! brokers store a message once even if it is sent again (an idempotent producer). If a message
//! can't be delivered in order, the producer ends and another one begins. Messages that were sent
//! and not acknowledged may then arrive twice, but none is left out.
//!
//! Each producer has two threads in addition to librdkafka's own: a thread of the relay makes the
//! calls that may block, and a thread of the crate rdkafka polls. Both end after the link has given
//! the producer up or was dropped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::{mpsc as async_mpsc, oneshot};
use tokio::time::Instant;

use super::Settings;
use super::producer::{Job, ProducerSettings, Report, Reporter, Verdict, produce};
use crate::setup::Setup;
use client::kafka::{Changes, Trouble};
use delivery::checkpoints::{Checkpoint, Fate};
use delivery::endpoints::Probed;
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::{CLOSE_TIME, Connect, Event, Link};
use queue::{Batch, Claim, Take};
use telemetry::AttemptError;

/// The maximum number of full batches, by bytes and by events, that are sent and unacknowledged.
/// The number is above 1, so that the network carries one batch while the brokers write another.
const WINDOW: u64 = 4;

/// The number of checks for progress within `timeouts.connect` or `timeouts.request`, whichever is
/// shorter. Progress means that messages were acknowledged.
const PROGRESS_CHECKS: u32 = 10;

/// The connector of a Kafka output. It makes the output's producers (librdkafka's clients that send
/// messages), one after the other. The delivery loop owns the connector.
///
/// [`Connect::connect`] starts a producer and waits until a broker has confirmed that the topic
/// exists. librdkafka makes the connections to brokers itself. If a connection breaks, librdkafka
/// connects again, and the producer stays. The loop first calls `connect` when the delivery begins,
/// even if there is nothing to send, and again after a producer has ended.
pub(super) struct KafkaConnector {
    shared: Arc<ProducerSettings>,
}

impl KafkaConnector {
    pub(super) fn new(kafka: &Settings, setup: &Setup<'_>) -> Self {
        Self { shared: Arc::new(ProducerSettings::new(kafka, setup)) }
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
        let result = connected.map(|_| None).map_err(|failure| failure.message);
        vec![(self.shared.cluster.brokers(), result)]
    }

    /// Makes a producer ([`KafkaConnector::attempt`]). Begins again if a reload replaces the files
    /// in the meantime.
    async fn connect(&mut self) -> Result<KafkaLink, Failure> {
        loop {
            let mut changes = self.shared.cluster.changes();
            tokio::select! {
                connected = self.attempt() => return connected,
                // The attempt with the old files proves nothing.
                _ = changes.changed() => {}
            }
        }
    }
}

impl KafkaConnector {
    /// Makes a producer with the current content of the files, and waits until a broker has
    /// confirmed that the topic exists.
    async fn attempt(&self) -> Result<KafkaLink, Failure> {
        let shared = Arc::clone(&self.shared);
        let changes = shared.cluster.changes();
        let (jobs, queue) = mpsc::channel();
        // The number of reports needs no limit: there is one for each unfinished claim, and a few
        // about trouble.
        let (reports, reported) = async_mpsc::unbounded_channel();
        let (ready, found) = oneshot::channel();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let reporter = Reporter {
            name: shared.output.name.clone(),
            reports,
            acknowledged: Arc::clone(&acknowledged),
        };
        std::thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || produce(&shared, reporter, &queue, ready))
            .map_err(|error| Failure::new(AttemptError::Connect, format!("kafka: {error}")))?;
        let mut link = KafkaLink {
            shared: Arc::clone(&self.shared),
            jobs: Some(jobs),
            reports: reported,
            changes,
            outdated: false,
            under_way: UnderWay::default(),
            progress: Progress::of(acknowledged),
            trouble: None,
            told: None,
            given_up: None,
        };
        // Each call of the thread takes at most `timeouts.connect`. The limit is for a thread that
        // hangs in a system call.
        let limit = self.shared.output.timeouts.connect * 2 + CLOSE_TIME;
        let trouble = match tokio::time::timeout(limit, found).await {
            Ok(Ok(Ok(()))) => return Ok(link),
            Ok(Ok(Err(trouble))) => trouble,
            Ok(Err(_)) | Err(_) => {
                Trouble { reason: AttemptError::Timeout, message: "no answer".to_owned() }
            }
        };
        // A timeout or a failed connection does not name the cause, but an earlier error of
        // librdkafka may.
        let is_vague = matches!(trouble.reason, AttemptError::Connect | AttemptError::Timeout);
        while let Ok(report) = link.reports.try_recv() {
            drop(link.on_report(Some(report)));
        }
        let said = link.trouble.take().filter(|_| is_vague);
        Err(said.unwrap_or_else(|| self.shared.failure(&trouble)))
    }
}

/// The link to one Kafka producer. The delivery loop owns the link; the producer's threads report
/// to it through a channel.
///
/// The life of a batch on the link:
///
/// 1. [`Link::send`] puts the batch in the channel to the producer's thread ([`produce`]). The link
///    takes a batch while at most [`WINDOW`] - 1 full batches are unacknowledged.
/// 2. The thread passes the messages of the batch to librdkafka, which sends and retries them.
/// 3. librdkafka gives a delivery report for each message. The last report for the batch completes
///    the [`Verdict`] on the batch's claim. The link reports accepted and refused claims to the
///    loop.
///
/// The link is *given up* in these cases:
///
/// - A message failed: it was not delivered, for a reason other than its content or size.
///   librdkafka then delivers no later message, so that none overtakes the failed one.
/// - A message was refused, because of its content or size.
/// - librdkafka has reported a fatal error, or the producer has ended.
/// - No message was acknowledged for `timeouts.request`.
///
/// A link that is given up takes no more batches. It still reports the accepted and refused claims
/// whose verdicts arrive within [`CLOSE_TIME`]. It ends with [`Event::Gone`] after this time, or as
/// soon as every batch has its result.
///
/// When a reload has replaced the files with certificates or passwords, the link is *outdated*: it
/// takes no more batches, and ends when every batch has its result. A new producer then reads the
/// new files.
///
/// While librdkafka retries after an error, the link reports the error with [`Event::Troubled`]:
/// first when no message was acknowledged for `timeouts.connect`, and then again after each further
/// `timeouts.connect`.
///
/// Invariants: batches may become final in another order than they were sent, because partitions
/// are independent. Each batch has at most one verdict. The link never joins a thread.
pub(super) struct KafkaLink {
    shared: Arc<ProducerSettings>,
    /// The channel to the producer's thread. `None` once the producer is given up.
    jobs: Option<mpsc::Sender<Job>>,
    reports: async_mpsc::UnboundedReceiver<Report>,
    /// Signals that a reload has replaced the files.
    changes: Changes,
    /// `true` if a reload has replaced the files since the producer was made, so that a new one is
    /// needed.
    outdated: bool,
    under_way: UnderWay,
    progress: Progress,
    /// The last error of librdkafka since messages were last acknowledged.
    trouble: Option<Failure>,
    /// The time when an error of librdkafka was last reported to the delivery loop.
    told: Option<Instant>,
    /// `None` until the producer is given up.
    given_up: Option<GivenUp>,
}

/// The batches that were sent and have no result yet. Checkpoints do not count.
#[derive(Default)]
struct UnderWay {
    /// The number of events and of bytes of each batch.
    batches: BTreeMap<Claim, (u64, u64)>,
    events: u64,
    bytes: u64,
}

impl UnderWay {
    fn add(&mut self, claim: Claim, events: u64, bytes: u64) {
        self.batches.insert(claim, (events, bytes));
        self.events += events;
        self.bytes += bytes;
    }

    fn remove(&mut self, claim: &Claim) {
        if let Some((events, bytes)) = self.batches.remove(claim) {
            self.events -= events;
            self.bytes -= bytes;
        }
    }
}

/// The record of acknowledgements, to find out that a producer makes no progress. A batch that is
/// sent when no other batch is unacknowledged begins a new record.
struct Progress {
    /// The number of acknowledged messages, counted by the producer's callbacks.
    acknowledged: Arc<AtomicU64>,
    /// The value of `acknowledged` at the last check that saw it grow, or when the record began.
    /// `since` is the time of that check or beginning.
    seen: u64,
    since: Instant,
    /// The time of the last check.
    checked: Instant,
}

impl Progress {
    fn of(acknowledged: Arc<AtomicU64>) -> Self {
        let now = Instant::now();
        let seen = acknowledged.load(Ordering::Relaxed);
        Self { acknowledged, seen, since: now, checked: now }
    }

    fn begin(&mut self) {
        *self = Self::of(Arc::clone(&self.acknowledged));
    }

    /// Returns the time since acknowledgements were last seen, or since the record began. `None` if
    /// there were some since the last check.
    fn silence(&mut self, now: Instant) -> Option<Duration> {
        self.checked = now;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        if acknowledged != self.seen {
            (self.seen, self.since) = (acknowledged, now);
            return None;
        }
        Some(now.duration_since(self.since))
    }
}

/// The time when a producer was given up, and the reason.
struct GivenUp {
    at: Instant,
    /// The first failure with a known cause.
    failure: Option<Failure>,
    /// `true` if a refused event is the cause, or one of the causes.
    refused: bool,
}

impl KafkaLink {
    /// Gives the producer up, which then gets no more batches. `failure` is the cause, and
    /// `refused` is `true` if an event was refused.
    fn give_up(&mut self, failure: Option<Failure>, refused: bool) {
        self.jobs = None;
        let begun = GivenUp { at: Instant::now(), failure: None, refused };
        let given_up = self.given_up.get_or_insert(begun);
        given_up.refused |= refused;
        given_up.failure = given_up.failure.take().or(failure);
    }

    /// Handles a report of the producer, or the end of the producer (`None`). Returns the event for
    /// the delivery loop, if there is one.
    fn on_report(&mut self, report: Option<Report>) -> Option<Event> {
        match report {
            Some(Report::Done(claim, verdict)) => return self.on_verdict(claim, verdict),
            Some(Report::Trouble { trouble, fatal }) => {
                let failure = self.shared.failure(&trouble);
                if fatal {
                    self.give_up(Some(failure), false);
                } else {
                    self.trouble = Some(failure);
                }
            }
            None => {
                self.under_way = UnderWay::default();
                self.give_up(Some(self.shared.ended(AttemptError::Protocol)), false);
            }
        }
        None
    }

    /// Handles the result for a claim or for a checkpoint. After a message that was refused or has
    /// failed, this producer gets no more batches. Returns the event for the delivery loop, if
    /// there is one.
    fn on_verdict(&mut self, claim: Option<Claim>, verdict: Verdict) -> Option<Event> {
        claim.inspect(|claim| self.under_way.remove(claim));
        match verdict {
            Verdict::Accepted => {
                self.trouble = self.trouble.take().filter(|_| claim.is_none());
                Some(Event::accepted(claim))
            }
            Verdict::Refused(trouble) => {
                self.give_up(None, true);
                let failure = self.shared.failure(&trouble);
                Some(match claim {
                    Some(claim) => Event::Refused(claim, failure),
                    None => Event::Checkpoint(Fate::Refused(failure)),
                })
            }
            Verdict::Failed(trouble) => {
                let failure = trouble.map(|trouble| self.shared.failure(&trouble));
                self.give_up(failure.clone(), false);
                let ended = || self.shared.ended(AttemptError::Closed);
                let failure = failure.unwrap_or_else(ended);
                claim.is_none().then_some(Event::Checkpoint(Fate::Failed(failure)))
            }
        }
    }

    /// Checks whether messages were acknowledged since the last check. If none was acknowledged for
    /// `timeouts.request`, gives the producer up, and returns `None`. If none was acknowledged for
    /// `timeouts.connect`, returns the last error of librdkafka as [`Event::Troubled`], at most
    /// once in each `timeouts.connect`. `None` without such an error.
    fn on_check(&mut self) -> Option<Event> {
        let now = Instant::now();
        let silence = self.progress.silence(now);
        if self.given_up.is_some() {
            return None;
        }
        let Some(waited) = silence else {
            self.trouble = None;
            return None;
        };
        let config::Timeouts { connect, request, .. } = self.shared.output.timeouts;
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
        let config::BatchLimits { max_bytes, max_events } = self.shared.output.batch;
        let has_room = self.under_way.bytes <= (WINDOW - 1).saturating_mul(max_bytes)
            && self.under_way.events <= (WINDOW - 1).saturating_mul(max_events);
        (has_room && self.jobs.is_some() && !self.outdated)
            .then_some(Take { bytes: max_bytes, events: max_events })
    }

    fn send(&mut self, batch: Batch) {
        let Some(jobs) = &self.jobs else { return };
        if self.under_way.batches.is_empty() {
            self.progress.begin();
        }
        self.shared.metrics.bytes.increment(batch.bytes);
        self.under_way.add(batch.claim, batch.events, batch.bytes);
        // The send fails only if the thread has ended, which the link learns from the end of the
        // reports.
        jobs.send(Job { claim: Some(batch.claim), batch, key: None }).ok();
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        let Some(jobs) = &self.jobs else { return };
        self.shared.metrics.bytes.increment(checkpoint.line().len() as u64);
        let key = Some(checkpoint.origin().to_vec());
        jobs.send(Job { claim: None, batch: checkpoint.batch(), key }).ok();
    }

    async fn event(&mut self) -> Event {
        loop {
            let idle = self.under_way.batches.is_empty();
            if let Some(given_up) = &mut self.given_up
                && (idle || given_up.at.elapsed() >= CLOSE_TIME)
            {
                let failure = given_up.failure.take().filter(|_| !given_up.refused);
                return Event::Gone { failure, request: None };
            }
            if idle && self.outdated {
                return Event::Gone { failure: None, request: None };
            }
            let timeouts = &self.shared.output.timeouts;
            let interval = timeouts.connect.min(timeouts.request) / PROGRESS_CHECKS;
            let check = self.progress.checked + interval;
            let event = tokio::select! {
                biased;
                report = self.reports.recv() => self.on_report(report),
                _ = self.changes.changed(), if !self.outdated => {
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

    /// Ends the producer, and waits at most [`CLOSE_TIME`] for its end. Events without a result
    /// stay in the queue, and are sent again later.
    async fn close(mut self) {
        self.jobs = None;
        let gone = async { while self.reports.recv().await.is_some() {} };
        tokio::time::timeout(CLOSE_TIME, gone).await.ok();
    }
}
