//! The source `type = "kafka"`: reads a topic as a member of a consumer group.
//!
//! One thread owns the consumer and makes all calls to it. Each message is a body, as a listener
//! accepts it. Messages of a partition that are available together are put into batches. For each
//! partition, the thread stores the offset before which every required output has acknowledged all
//! events or counted them as lost. librdkafka commits the stored offsets every second, before a
//! partition is given back, and at the end. After a crash the messages that were not committed are
//! read again: about `max_in_flight` bytes at most, and those acknowledged in the last second.
//!
//! A message that is too large or not valid would block its partition permanently. Such a message
//! is counted, logged and skipped. So is a record inside a message that has no event, beside
//! others that have one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::{Orders, Source, Status};
use audit::wrapping::{self, Unwrapped};
use audit::{LevelCounts, Rejected, Split};
use base::lock::lock;
use base::staged::Staged;
use client::kafka::{Changes, Cluster, Trouble};
use config::BATCH_OVERHEAD;
use queue::{Append, Queue, Ticket};
use telemetry::{ChangedEvent, ListenerMetrics, Rejection};
use transform::volume::{Seen, Volume};

/// The size in bytes up to which messages are put together into one batch of the queue, unless
/// `limits.max_body` is smaller. A larger message becomes a batch of its own.
const GROUP_BYTES: usize = 1024 * 1024;
/// The greatest number of messages that are put together into one batch of the queue.
const GROUP_MESSAGES: u64 = 5000;

/// The maximum number of messages that are taken and not acknowledged yet. Without this limit, very
/// many small messages could take much memory.
const MESSAGES_MAX: u64 = 100_000;

/// The longest wait of one poll. The thread looks for orders between two polls.
const POLL: Duration = Duration::from_millis(100);

/// The pause between two attempts to append a batch, and between two checks of acknowledgements
/// while partitions are given back. Also the longest wait of a poll while the source closes.
const FULL: Duration = Duration::from_millis(5);

/// The time for which a batch waits to be appended before the source pauses its partitions. The
/// thread can then poll without messages, so that the consumer group does not give the partitions
/// to another reader. After the pause, librdkafka must fetch again the messages that it had fetched
/// ahead.
const PAUSE_AFTER: Duration = Duration::from_secs(1);

/// The longest wait before a partition is given back to the consumer group. If the batches taken
/// from it are acknowledged in this time, fewer messages are read twice.
const REVOKE_WAIT: Duration = Duration::from_secs(2);

/// The number of heartbeats that the consumer sends to the group in one `session_timeout`.
const HEARTBEATS: u32 = 4;

/// The longest time between two polls, unless `session_timeout` is longer. After this time, the
/// consumer group gives the partitions to another reader.
const POLL_MAX: Duration = Duration::from_secs(300);

/// The timeout for setting up a connection to a broker, and for finding the topic in a probe.
const CONNECT: Duration = Duration::from_secs(10);
/// The timeout for a broker's response to a request.
const REQUEST: Duration = Duration::from_secs(60);

/// The maximum number of KiB of messages that librdkafka fetches before the source asks for them.
const AHEAD_KIB: u64 = 16 * 1024;
/// The largest size in bytes of a broker's response to one fetch request. If the first set of
/// messages in a response is larger, the broker still sends it, alone.
const FETCH_BYTES: u64 = 8 * 1024 * 1024;

/// The shortest time between two warnings about trouble with the brokers, as long as no message
/// arrives.
const REMIND: Duration = Duration::from_secs(60);

/// The shortest time between two log lines about skipped messages, except for the last line.
const SKIPPED: Duration = Duration::from_secs(10);

/// The pause before the source tries again to make a Kafka consumer, after an attempt has failed.
const AGAIN: Duration = Duration::from_secs(5);

/// One Kafka source of the config, until a reload changes or removes it or the relay ends. It may
/// use several Kafka consumers one after the other, each in a [`Session`].
pub(super) struct Reader {
    name: String,
    cluster: Cluster,
    config: config::KafkaSource,
    max_body: u64,
    metrics: ListenerMetrics,
    volume: Arc<Volume>,
    status: Arc<Status>,
    /// The number of messages that all consumers of this source have skipped since its start.
    skipped: AtomicU64,
}

impl Reader {
    pub(super) fn new(
        name: &str,
        config: &config::KafkaSource,
        max_body: u64,
        metrics: ListenerMetrics,
        volume: Arc<Volume>,
    ) -> Self {
        let cluster = Cluster::new(&config.cluster);
        let (name, config, status) = (name.to_owned(), config.clone(), Arc::default());
        let skipped = AtomicU64::new(0);
        Self { name, cluster, config, max_body, metrics, volume, status, skipped }
    }

    fn consumer(&self) -> ClientConfig {
        let mut consumer = self.cluster.client(CONNECT, REQUEST);
        let session = self.config.session_timeout;
        let answer_max =
            (self.max_body.saturating_add(FETCH_BYTES)).clamp(100_000_000, 2_147_483_647);
        consumer
            .set("group.id", &self.config.group)
            // librdkafka commits stored offsets, and only acknowledged offsets are stored.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            // A new group begins with the oldest message.
            .set("auto.offset.reset", "earliest")
            // Partitions that stay with their reader are not interrupted by a rebalance.
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.as_millis().to_string())
            .set("heartbeat.interval.ms", (session / HEARTBEATS).as_millis().to_string())
            .set("max.poll.interval.ms", session.max(POLL_MAX).as_millis().to_string())
            .set("queued.max.messages.kbytes", AHEAD_KIB.to_string())
            .set("fetch.max.bytes", FETCH_BYTES.to_string())
            .set("receive.message.max.bytes", answer_max.to_string())
            .set("check.crcs", "true");
        consumer
    }

    fn context(&self, state: Arc<Mutex<State>>, status: Arc<Status>) -> Context {
        let topic = self.cluster.topic().to_owned();
        Context { source: self.name.clone(), metrics: self.metrics.clone(), topic, state, status }
    }

    fn open(&self) -> Result<Session<'_>, Trouble> {
        let changes = self.cluster.changes();
        let state = Arc::new(Mutex::new(State::default()));
        let context = self.context(Arc::clone(&state), Arc::clone(&self.status));
        let trouble = |error| Trouble::new(&error, "");
        let consumer: BaseConsumer<Context> =
            self.consumer().create_with_context(context).map_err(trouble)?;
        consumer.subscribe(&[self.cluster.topic()]).map_err(trouble)?;
        self.status.update(|status| {
            (status.paused, status.partitions) = (false, Vec::new());
        });
        let intake = Intake {
            reader: self,
            state,
            group: None,
            waiting: VecDeque::new(),
            skipped: 0,
            first: None,
            told: None,
        };
        Ok(Session { consumer, changes, intake, full_since: None })
    }
}

impl Source for Reader {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let secrets = self.cluster.read()?;
        Ok(Box::new(move || self.cluster.apply(secrets)))
    }

    fn probe(&self) -> (String, Result<(), String>) {
        let context = self.context(Arc::default(), Arc::default());
        let mut settings = self.consumer();
        // A consumer without a group only looks at the topic and joins nothing.
        settings.remove("group.id");
        let consumer = settings.create_with_context::<_, BaseConsumer<Context>>(context);
        let found =
            consumer.and_then(|consumer| self.cluster.find_topic(consumer.client(), CONNECT));
        let found = found.map_err(|error| {
            format!("topic {}: {}", self.cluster.topic(), Trouble::new(&error, ""))
        });
        (self.cluster.brokers(), found)
    }

    fn run(&self, queue: &Queue, mut orders: Orders) {
        let mut told: Option<Instant> = None;
        while !orders.stop.is_cancelled() && !orders.closing.is_cancelled() {
            match self.open() {
                Ok(session) => {
                    told = None;
                    session.run(queue, &mut orders);
                }
                Err(error) => {
                    self.status.update(|status| status.last_error = Some(error.to_string()));
                    if told.is_none_or(|told| told.elapsed() >= REMIND) {
                        told = Some(Instant::now());
                        tracing::warn!(
                            source = self.name,
                            %error,
                            "cannot create a Kafka consumer, retrying"
                        );
                    }
                    let until = Instant::now() + AGAIN;
                    while Instant::now() < until && !orders.closing.is_cancelled() {
                        park_timeout(POLL);
                    }
                }
            }
        }
        orders.taking = None;
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }
}

/// The batches of each partition that are not acknowledged yet. Only the thread of the source uses
/// this value, partly in the functions of [`Context`].
#[derive(Default)]
struct State {
    /// The partitions that this consumer reads now, by partition number.
    partitions: BTreeMap<i32, Partition>,
    /// The number of times that a partition was assigned to this consumer. Each assignment gets the
    /// next number.
    assignments: u64,
    /// The number of messages in all batches that are not acknowledged yet.
    messages: u64,
    /// The number of bytes that all batches that are not acknowledged yet take in the queue.
    bytes: u64,
    /// `true` if the partitions are paused, so that librdkafka delivers no messages.
    paused: bool,
    /// `true`: partitions are given back without waiting for the acknowledgement of their batches.
    hurried: bool,
    /// `true`: the queue has taken a batch that it will not acknowledge. The consumer must be
    /// replaced, so that the messages of this batch are read again.
    refused: bool,
    /// The time of the last warning about the brokers; `None` once a message has arrived after it.
    told: Option<Instant>,
}

struct Partition {
    /// The number of the assignment. A partition that is assigned again gets a new number.
    assignment: u64,
    /// The batches of this partition that are not acknowledged yet, in the order of their offsets.
    taken: VecDeque<Taken>,
}

/// The messages of a batch, which are of one partition.
#[derive(Clone, Copy)]
struct Messages {
    partition: i32,
    /// The assignment of the partition under which the messages were read.
    assignment: u64,
    /// The offset after the last message.
    next: i64,
    /// The number of messages, including skipped messages.
    count: u64,
    /// The number of messages that were not skipped.
    accepted: u64,
    /// The time at which the first message was taken.
    begun: Instant,
}

/// A batch that the queue has taken, or that has no events. The batch's offset is not stored yet.
struct Taken {
    messages: Messages,
    /// The number of bytes that the batch takes in the queue.
    bytes: u64,
    /// The queue's ticket for the acknowledgement; `None` if the batch has no events.
    ticket: Option<Ticket>,
}

impl State {
    /// Removes the acknowledged batches at the front of each partition. Returns the partitions from
    /// which a batch was removed, each with the offset after the last removed batch. Sets `refused`
    /// if the first batch that remains will not be acknowledged.
    fn settle(&mut self, metrics: &ListenerMetrics) -> Vec<(i32, i64)> {
        let mut behind = Vec::new();
        for (number, partition) in &mut self.partitions {
            let mut next = None;
            while let Some(first) = partition.taken.front_mut() {
                match first.ticket.as_mut().map(|ticket| ticket.acknowledged().now_or_never()) {
                    None | Some(Some(Ok(()))) => {}
                    Some(None) => break,
                    Some(Some(Err(_))) => {
                        self.refused = true;
                        break;
                    }
                }
                let Some(done) = partition.taken.pop_front() else { break };
                let Messages { next: end, count, accepted, begun, .. } = done.messages;
                self.messages -= count;
                self.bytes -= done.bytes;
                (0..accepted).for_each(|_| metrics.answered(200));
                if done.ticket.is_some() {
                    metrics.duration.record(begun.elapsed().as_secs_f64());
                }
                next = Some(end);
            }
            behind.extend(next.map(|next| (*number, next)));
        }
        behind
    }

    /// Returns `true` if all batches of the partitions `numbers` are acknowledged.
    fn is_empty(&self, numbers: &[i32]) -> bool {
        let ours = numbers.iter().filter_map(|number| self.partitions.get(number));
        ours.map(|partition| partition.taken.len()).sum::<usize>() == 0
    }

    /// Removes a partition that is given back, and returns the number of messages in its unfinished
    /// batches. The tickets of these batches are dropped: the queue then removes each batch that no
    /// output has begun to send.
    fn forget(&mut self, number: i32) -> u64 {
        let taken = self.partitions.remove(&number).map(|partition| partition.taken);
        let mut messages = 0;
        for taken in taken.into_iter().flatten() {
            messages += taken.messages.count;
            self.bytes -= taken.bytes;
        }
        self.messages -= messages;
        messages
    }
}

/// The functions that librdkafka calls, with the data that they need. They are called on the thread
/// that polls.
struct Context {
    source: String,
    metrics: ListenerMetrics,
    topic: String,
    state: Arc<Mutex<State>>,
    status: Arc<Status>,
}

impl Context {
    /// Tells librdkafka the offsets up to which batches are acknowledged; librdkafka then commits
    /// these offsets.
    fn settle(&self, consumer: &BaseConsumer<Self>) {
        let behind = lock(&self.state).settle(&self.metrics);
        if behind.is_empty() {
            return;
        }
        let mut offsets = TopicPartitionList::with_capacity(behind.len());
        for (partition, next) in behind {
            let added = offsets.add_partition_offset(&self.topic, partition, Offset::Offset(next));
            if let Err(error) = added {
                tracing::warn!(
                    source = self.source,
                    %error,
                    "cannot store an offset for Kafka: some messages may be read twice"
                );
            }
        }
        if let Err(error) = consumer.store_offsets(&offsets) {
            // Another reader has these partitions now, and reads from the last committed offset.
            tracing::debug!(source = self.source, %error, "offsets not stored");
        }
    }

    fn show_partitions(&self, state: &State) {
        let partitions = state.partitions.keys().copied().collect();
        self.status.update(|status| status.partitions = partitions);
    }

    /// Prepares to give partitions back, which librdkafka does after this call: waits for the
    /// acknowledgement of their batches, for at most `REVOKE_WAIT`. Does not wait if the source is
    /// in a hurry or has lost the partitions already.
    fn give_back(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        let hurried = lock(&self.state).hurried || consumer.assignment_lost();
        let until = Instant::now() + if hurried { Duration::ZERO } else { REVOKE_WAIT };
        loop {
            self.settle(consumer);
            if lock(&self.state).is_empty(partitions) || Instant::now() >= until {
                break;
            }
            park_timeout(FULL);
        }
        let mut state = lock(&self.state);
        let unfinished: u64 = partitions.iter().map(|number| state.forget(*number)).sum();
        self.show_partitions(&state);
        drop(state);
        tracing::info!(source = self.source, ?partitions, unfinished, "partitions revoked");
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::kafka::log(&self.source, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            // The error of each single broker is reported too, and says more.
            return;
        }
        let error = Trouble::new(&error, reason);
        self.status.update(|status| status.last_error = Some(error.to_string()));
        let mut state = lock(&self.state);
        let tells = state.told.is_none_or(|told| told.elapsed() >= REMIND);
        if tells {
            state.told = Some(Instant::now());
        }
        drop(state);
        if tells {
            tracing::warn!(
                source = self.source,
                topic = self.topic,
                %error,
                "error from the Kafka brokers, retrying"
            );
        } else {
            tracing::debug!(
                source = self.source,
                topic = self.topic,
                %error,
                "error from the Kafka brokers"
            );
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            self.give_back(consumer, &numbers(partitions));
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        let partitions = numbers(list);
        let mut state = lock(&self.state);
        for number in &partitions {
            state.assignments += 1;
            let assignment = state.assignments;
            state.partitions.insert(*number, Partition { assignment, taken: VecDeque::new() });
        }
        let paused = state.paused;
        self.show_partitions(&state);
        drop(state);
        // An assignment means that the group's coordinator has responded.
        self.status.update(|status| status.last_error = None);
        tracing::info!(source = self.source, ?partitions, "partitions assigned");
        if paused && let Err(error) = consumer.pause(list) {
            tracing::debug!(source = self.source, %error, "partitions not paused");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
        {
            tracing::debug!(source = self.source, %error, "offsets not committed, trying again");
        }
    }
}

struct Group {
    messages: Messages,
    /// The events of the batch, each followed by one `\n`.
    lines: Vec<u8>,
    events: u64,
    levels: LevelCounts,
}

/// Puts messages together into batches, and appends the batches to the queue.
struct Intake<'a> {
    reader: &'a Reader,
    state: Arc<Mutex<State>>,
    /// The batch that is being filled; `None` if no message was put into it yet.
    group: Option<Group>,
    /// The complete batches that are not in the queue yet, in their order.
    waiting: VecDeque<(Messages, Append)>,
    /// The number of messages skipped since the last log line about them.
    skipped: u64,
    /// The partition, the offset and the fault of the first message that `skipped` counts.
    first: Option<(i32, i64, Unused)>,
    /// The time of the last log line about skipped messages; `None` if there was none.
    told: Option<Instant>,
}

/// Why a message, or a record inside it, is not used.
struct Unused {
    what: String,
    /// Other records of the message have events, which are taken.
    has_events: bool,
}

const SKIPS: &str = "a Kafka message is too large or has no valid audit events: it is skipped, and \
                     its events are lost and counted";
const PARTLY: &str = "a Kafka message has records without a valid audit event: they are skipped and \
                      counted, and the events of its other records are taken";

impl Intake<'_> {
    /// Puts a message into the batch that is being filled, or skips it if it is not usable.
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let (partition, payload) = (message.partition(), message.payload().unwrap_or_default());
        self.reader.metrics.received.increment(payload.len() as u64);
        let mut state = lock(&self.state);
        let was_troubled = state.told.take().is_some();
        let ours = state.partitions.get(&partition).map(|ours| ours.assignment);
        drop(state);
        if was_troubled {
            self.reader.status.update(|status| status.last_error = None);
            tracing::info!(source = self.reader.name, "reading messages from Kafka again");
        }
        // The partition was given back after the message was fetched: another reader will read the
        // message.
        let Some(assignment) = ours else { return };
        let fits = |group: &Group| {
            (group.messages.partition, group.messages.assignment) == (partition, assignment)
                && group.lines.len() + payload.len() < self.group_max()
        };
        if !self.group.as_ref().is_some_and(fits) {
            self.close_group();
        }
        let group = self.group.get_or_insert_with(|| Group {
            messages: Messages {
                partition,
                assignment,
                next: 0,
                count: 0,
                accepted: 0,
                begun: Instant::now(),
            },
            lines: Vec::new(),
            events: 0,
            levels: LevelCounts::default(),
        });
        group.messages.next = message.offset() + 1;
        group.messages.count += 1;
        // The queue adds a line break to a message without one. So a message of exactly `max_body`
        // bytes might not fit into an empty queue, and would wait for room that never comes.
        let refused = if payload.len() as u64 >= self.reader.max_body {
            let what = "larger than limits.max_body".to_owned();
            Some((Rejection::TooLarge, 413, Unused { what, has_events: false }))
        } else {
            let added = group.add(payload, &self.reader.metrics);
            added.err().map(|error| (Rejection::Invalid, 400, error))
        };
        if let Some((reason, code, error)) = refused {
            self.reader.metrics.rejected(reason, code, &error.what);
            // Behind the queue, a message with events counts as answered with 200.
            if !error.has_events {
                self.reader.metrics.answered(code);
            }
            self.skip(message, error);
        }
    }

    fn group_max(&self) -> usize {
        let max_body = usize::try_from(self.reader.max_body).unwrap_or(usize::MAX);
        GROUP_BYTES.min(max_body)
    }

    /// Counts a skipped message, and notes its place and its fault for the log.
    fn skip(&mut self, message: &BorrowedMessage<'_>, error: Unused) {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let (source, what) = (&self.reader.name, &error.what);
        tracing::debug!(source, topic, partition, offset, error = what, "message skipped");
        self.reader.skipped.fetch_add(1, Ordering::Relaxed);
        self.skipped += 1;
        self.first.get_or_insert((partition, offset, error));
        self.tell_skipped(false);
    }

    /// Logs how many messages were skipped since the last such line. Does nothing if there are
    /// none. If `all` is `false`, also does nothing within `SKIPPED` after the last line.
    fn tell_skipped(&mut self, all: bool) {
        let is_soon = self.told.is_some_and(|told| told.elapsed() < SKIPPED);
        if is_soon && !all {
            return;
        }
        let Some((partition, offset, unused)) = self.first.take() else { return };
        let Unused { what: error, has_events } = unused;
        self.told = Some(Instant::now());
        let (source, topic) = (&self.reader.name, self.reader.cluster.topic());
        let skipped = std::mem::take(&mut self.skipped);
        let total = self.reader.skipped.load(Ordering::Relaxed);
        tracing::error!(
            source,
            topic,
            partition,
            offset,
            error,
            skipped,
            total,
            "{}",
            if has_events { PARTLY } else { SKIPS }
        );
    }

    fn close_group(&mut self) {
        let Some(mut group) = self.group.take() else { return };
        // The queue counts the bytes in the vector, not its capacity.
        group.lines.shrink_to_fit();
        let Group { messages, lines, events, levels } = group;
        let append = Append { lines: Bytes::from(lines), events, levels, list: None };
        self.waiting.push_back((messages, append));
    }

    /// Appends the waiting batches to the queue, in order, until the queue takes no more, or too
    /// many bytes or messages are not acknowledged yet. A batch whose partition was given back is
    /// discarded: the next reader of the partition reads its messages again.
    fn append(&mut self, queue: &Queue) {
        let max_in_flight = self.reader.config.max_in_flight;
        while let Some((messages, append)) = self.waiting.front() {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            let Messages { partition, assignment, count, .. } = *messages;
            let bytes = append.lines.len() as u64 + BATCH_OVERHEAD;
            let ours = state.partitions.get_mut(&partition);
            if let Some(ours) = ours.filter(|ours| ours.assignment == assignment) {
                let full = state.bytes.saturating_add(bytes) > max_in_flight
                    || state.messages.saturating_add(count) > MESSAGES_MAX;
                if full && state.messages > 0 {
                    return;
                }
                let ticket = (append.events > 0).then(|| queue.append(append.clone()));
                let Ok(ticket) = ticket.transpose() else { return };
                state.messages += count;
                state.bytes += bytes;
                ours.taken.push_back(Taken { messages: *messages, bytes, ticket });
                drop(guard);
                let (volume, mut seen) = (&self.reader.volume, Seen::default());
                volume.look(&append.lines, None, append.events, &mut seen);
                volume.count(seen);
            }
            self.waiting.pop_front();
        }
    }
}

/// Dropping the intake writes the log line about the messages that were skipped last.
impl Drop for Intake<'_> {
    fn drop(&mut self) {
        self.tell_skipped(true);
    }
}

impl Group {
    /// Adds the events of a message to the batch, also those inside the records of another system,
    /// such as Azure's in an Event Hub. `Err` is what of the message can't be used: after it, the
    /// batch is as it was, or has the events of the records beside those that can't be used.
    fn add(&mut self, payload: &[u8], metrics: &ListenerMetrics) -> Result<(), Unused> {
        let all = |what: String| Unused { what, has_events: false };
        let some = |what: String| Unused { what, has_events: true };
        let as_body = match self.add_body(payload, metrics) {
            Ok(rejected) => return rejected.told().map_or(Ok(()), |what| Err(some(what))),
            Err(as_body) => as_body,
        };
        let mut found = Unwrapped::default();
        let unwrapped = str::from_utf8(payload)
            .map_err(|_| None)
            .and_then(|payload| wrapping::unwrap(payload, wrapping::DEPTH_MAX, &mut found));
        unwrapped.map_err(|what| all(what.unwrap_or_else(|| as_body.to_string())))?;
        self.add_body(&found.events, metrics).map_err(|error| all(error.to_string()))?;
        found.told().map_or(Ok(()), |what| Err(some(what)))
    }

    /// Adds the events of a body to the batch, and returns its other items. After an error, the
    /// batch is as it was.
    fn add_body(
        &mut self,
        body: &[u8],
        metrics: &ListenerMetrics,
    ) -> Result<Rejected, audit::Invalid> {
        let start = self.lines.len();
        self.lines.extend_from_slice(body);
        self.lines.push(b'\n');
        let body = self.lines.get_mut(start..).unwrap_or_default();
        let split = audit::decode_in_place(body).inspect_err(|_| self.lines.truncate(start))?;
        let Split { lines, events, levels, rejected, mended, own } = split;
        match own {
            Some(own) => {
                self.lines.truncate(start);
                self.lines.extend_from_slice(own.get(lines).unwrap_or_default());
            }
            None => {
                let length = lines.len();
                self.lines.copy_within(start + lines.start..start + lines.end, start);
                self.lines.truncate(start + length);
            }
        }
        self.messages.accepted += 1;
        self.events += events;
        for (sum, count) in self.levels.iter_mut().zip(levels) {
            *sum += count;
        }
        metrics.changed_events.of(ChangedEvent::InvalidUtf8).increment(mended);
        metrics.rejected_items.increment(rejected.count);
        Ok(rejected)
    }
}

/// One Kafka consumer of a source, from its start until it is replaced or the source ends.
///
/// The source's thread runs [`Session::run`]. If a batch has waited for the queue for a second, or
/// after an order to close, the partitions are paused, and the thread polls without taking
/// messages. Without these polls, the consumer group would take the partitions away.
///
/// An offset is stored only when every batch before it is acknowledged or has no events. When the
/// consumer is dropped, its partitions go back to the consumer group and the stored offsets are
/// committed. The next consumer reads again all messages that were not acknowledged.
struct Session<'a> {
    consumer: BaseConsumer<Context>,
    changes: Changes,
    intake: Intake<'a>,
    /// The time since which a batch waits to be appended; `None` if no batch waits.
    full_since: Option<Instant>,
}

impl Session<'_> {
    fn run(mut self, queue: &Queue, orders: &mut Orders) {
        loop {
            let closing = orders.closing.is_cancelled();
            self.intake.tell_skipped(false);
            self.consumer.context().settle(&self.consumer);
            if closing {
                self.intake.waiting.clear();
                orders.taking = None;
            } else {
                self.intake.append(queue);
            }
            let state = lock(&self.intake.state);
            let (is_idle, refused) = (state.messages == 0, state.refused);
            drop(state);
            if orders.stop.is_cancelled() || refused || (closing && is_idle) {
                break;
            }
            if !closing && self.changes.has_changed().unwrap_or(false) {
                tracing::info!(
                    source = self.intake.reader.name,
                    "files with Kafka credentials changed, reconnecting"
                );
                break;
            }
            if !self.has_room(closing) {
                park_timeout(FULL);
            } else if !self.read(closing) {
                break;
            }
        }
        lock(&self.intake.state).hurried = orders.closing.is_cancelled();
        // The drop of the consumer gives its partitions back, commits the offsets and leaves the
        // group.
    }

    /// Pauses the partitions if a batch has waited too long for the queue, or if `closing` is
    /// `true`. Otherwise resumes them. Returns `true` if the thread may poll now: no batch waits
    /// for the queue, or the partitions are paused.
    fn has_room(&mut self, closing: bool) -> bool {
        let is_full = !self.intake.waiting.is_empty();
        self.full_since = is_full.then(|| self.full_since.unwrap_or_else(Instant::now));
        let is_paused =
            closing || self.full_since.is_some_and(|since| since.elapsed() >= PAUSE_AFTER);
        let was_paused = std::mem::replace(&mut lock(&self.intake.state).paused, is_paused);
        if was_paused != is_paused {
            self.intake.reader.status.update(|status| status.paused = is_paused);
            let list = self.consumer.assignment();
            let done = list.and_then(|list| match is_paused {
                true => self.consumer.pause(&list),
                false => self.consumer.resume(&list),
            });
            if let Err(error) = done {
                tracing::debug!(source = self.intake.reader.name, %error, "partitions not paused or resumed");
            }
        }
        !is_full || is_paused
    }

    /// Polls for messages and makes batches of them, until no message is available or a batch is
    /// complete. If `closing` is `true`, the messages are discarded. Returns `false` if the
    /// consumer has failed and must be replaced.
    fn read(&mut self, closing: bool) -> bool {
        let mut timeout = if closing { FULL } else { POLL };
        loop {
            match self.consumer.poll(timeout) {
                None => break,
                Some(Ok(message)) if !closing => self.intake.take(&message),
                Some(Ok(_)) => {}
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    let source = &self.intake.reader.name;
                    tracing::warn!(source, error = %code, "the Kafka consumer has failed, reconnecting");
                    return false;
                }
                // The callback `error` has already reported this error.
                Some(Err(_)) => {}
            }
            let is_whole = |group: &Group| {
                group.lines.len() >= self.intake.group_max()
                    || group.messages.count >= GROUP_MESSAGES
            };
            if !self.intake.waiting.is_empty() || self.intake.group.as_ref().is_some_and(is_whole) {
                break;
            }
            timeout = Duration::ZERO;
        }
        self.intake.close_group();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::Output;
    use telemetry::Telemetry;

    /// The only output of three batches ends before it has any of them. From then on, no look at
    /// the batches returns an offset to be committed.
    #[test]
    fn what_was_refused_is_never_committed_however_often_it_is_settled() {
        let config = config::read(config::EMBEDDED, outputs::TYPES).config.expect("it is right");
        let acknowledge = config::Acknowledge::Delivered;
        let (config, telemetry) = (config::Queue { acknowledge, ..config.queue }, Telemetry::new());
        let metrics = telemetry.output("o");
        let name = "o".to_owned();
        let output = Output { name, required: true, metrics, recorder: None };
        let (queue, _cursors) = Queue::open(&config, &telemetry, &[output]).expect("in memory");
        let mut partition = Partition { assignment: 1, taken: VecDeque::new() };
        for next in 1..=3 {
            let lines = Bytes::from_static(b"{}\n");
            let append = Append { lines, events: 1, levels: LevelCounts::default(), list: None };
            let ticket = Some(queue.append(append).expect("there is room"));
            let begun = Instant::now();
            let messages =
                Messages { partition: 0, assignment: 1, next, count: 1, accepted: 1, begun };
            partition.taken.push_back(Taken { messages, bytes: 3, ticket });
        }
        let mut state = State { messages: 3, bytes: 9, ..State::default() };
        state.partitions.insert(0, partition);
        let metrics = telemetry.listener("topic");
        assert_eq!(state.settle(&metrics), [], "nobody has it yet");
        assert!(!state.refused);
        queue.give_up("o");
        for _ in 0..3 {
            assert_eq!(state.settle(&metrics), [], "its output has ended");
            assert!(state.refused);
        }
        assert_eq!(state.messages, 3);
    }
}
