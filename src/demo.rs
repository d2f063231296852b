//! Shows the whole path in one process on loopback: events as kube-apiserver sends them, the relay
//! as it always runs, and a consumer that is down for a while.
//!
//! The demo does not ask the relay whether events were lost. Each event has a number, and the
//! consumer notes which numbers have arrived.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

mod consumer;
mod events;

use consumer::Consumer;
use events::Generator;

use client::ask::Connection;
use queue::Queue;
use relay::{Opened, Signals};
use tools::replay::client::{Client, Failure, PATIENCE};

/// The time between two batches. kube-apiserver sends at most ten batches per second
/// (`--audit-webhook-batch-throttle-qps`).
const BATCH_EVERY: Duration = Duration::from_millis(100);

/// The greatest number of batches that are sent and have no response yet. kube-apiserver has no
/// such limit. While the relay responds, the demo stays below the limit.
const UNDER_WAY_MAX: usize = 64;

/// The moment at which the consumer goes down, as a share of the demo's length: 0.4 of 20 s is 8 s
/// after the start.
const AWAY_FROM: f64 = 0.4;
/// The time for which the consumer is down, as a share of the demo's length.
const AWAY_PART: f64 = 0.25;
/// The longest time for which the consumer is down.
const AWAY_MAX: Duration = Duration::from_secs(5);

/// The longest time between two updates of the numbers that the demo shows.
const LOOK: Duration = Duration::from_millis(100);

/// The longest time for which the demo waits at its end for all events to arrive. An event that has
/// not arrived by then counts as lost.
const DELIVERY_MAX: Duration = Duration::from_secs(60);
/// The longest time for which the demo waits, at its end, for the next event to arrive at the
/// consumer. After this time without a new event, all events that have not arrived count as lost.
const DELIVERY_PAUSE_MAX: Duration = Duration::from_secs(15);

/// The phase of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// The demo starts: the relay and the consumer open their addresses.
    #[default]
    Starting,
    /// The demo sends events, and the consumer accepts them.
    Flowing,
    /// The demo sends events, and the consumer resets every connection.
    Away,
    /// The demo sends no new batch, and waits until the events have arrived at the consumer.
    Emptying,
}

/// The numbers that the demo shows, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// The phase in which the demo is now.
    pub phase: Phase,
    /// The number of events that the relay has accepted.
    pub sent: u64,
    /// The number of events that have arrived at the consumer, each counted once.
    pub delivered: u64,
    /// The number of events in the relay's queue.
    pub queue_events: u64,
    /// The number of bytes in the relay's queue.
    pub queue_bytes: u64,
    /// The number of events that are lost: the relay has refused them permanently or in every
    /// attempt, or it has accepted them and they are neither in its queue nor at the consumer.
    pub lost: u64,
    /// The address of the relay's status page; `None` until the page is open.
    pub admin: Option<SocketAddr>,
}

/// The result of a demo.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// The number of events that the relay has accepted, or has refused permanently or in every
    /// attempt.
    pub sent: u64,
    /// The number of events that have arrived at the consumer, each counted once.
    pub delivered: u64,
    /// The number of times that the consumer received an event that it had received before.
    pub repeated: u64,
    /// The number of events that were sent and have not arrived at the consumer.
    pub lost: u64,
    /// The time for which the consumer was down.
    pub away: Duration,
    /// The greatest number of events that were seen in the queue at one moment.
    pub queue_events_max: u64,
    /// The number of bytes in the queue at the moment at which the queue had the most events.
    pub queue_bytes_max: u64,
}

/// Runs the sender, the relay and the consumer for `length`, or until `stop` is cancelled. Then
/// waits until all sent events have arrived, but not without limit (`DELIVERY_MAX`,
/// `DELIVERY_PAUSE_MAX`), and returns the counts.
///
/// # Errors
///
/// The consumer or the relay did not start, or the relay ended before the demo did.
pub async fn run(
    length: Duration,
    figures: watch::Sender<Figures>,
    stop: CancellationToken,
) -> Result<Summary, String> {
    let consumer = Consumer::start()
        .map_err(|error| format!("cannot start the consumer of the demo: {error}"))?;
    let relay_stop = CancellationToken::new();
    let (opened, opening) = oneshot::channel();
    let signals = Signals {
        stopped: relay_stop.clone().cancelled_owned(),
        aborted: std::future::pending(),
        reload: tokio::sync::mpsc::channel(1).1,
        opened: Some(opened),
    };
    let config = config::read(&config_for(consumer.address()), outputs::TYPES).config;
    let config = config.ok_or("the demo's config is wrong")?;
    let mut relay = std::pin::pin!(relay::run(None, config, manual::PAGES, signals));
    let demo = async {
        let Ok(opened) = opening.await else { return std::future::pending().await };
        let demo = Demo::new(opened, consumer, figures, stop)?;
        Ok::<_, String>(demo.run(length).await)
    };
    let summary = tokio::select! {
        summary = demo => summary?,
        ended = &mut relay => {
            let why = ended.err().map(|error| error.to_string());
            return Err(why.unwrap_or_else(|| "the relay has ended before the demo did".to_owned()));
        }
    };
    relay_stop.cancel();
    // An error of the relay is ignored here, because the summary already counts the events that are
    // not delivered.
    relay.await.ok();
    Ok(summary)
}

fn config_for(consumer: SocketAddr) -> String {
    format!(
        r#"
admin = {{ address = "127.0.0.1:0" }}
shutdown = {{ drain_timeout = "2s" }}
[[listener]]
address = "127.0.0.1:0"
[[output]]
name = "consumer"
type = "http"
urls = ["http://{consumer}/"]
format = "ndjson"
retry = {{ initial_interval = "100ms", max_interval = "500ms" }}
"#
    )
}

struct Posted {
    numbers: Range<u64>,
    connection: Option<Connection>,
    result: Result<(), Failure>,
}

/// The running demo. [`run`] owns it, and its loop runs in the caller's task, beside the relay.
///
/// The loop has two phases. The first phase lasts for the length of the demo or until `stop` is
/// cancelled. In this phase the loop sends a batch every [`BATCH_EVERY`], unless [`UNDER_WAY_MAX`]
/// batches have no response; each batch has a task of its own. The consumer is down during a part
/// of this phase. In the second phase the loop sends no more batches, and waits until all events
/// have arrived, but not without limit.
///
/// The loop updates the figures at least every [`LOOK`]. In the result, an event counts as sent
/// when the relay has accepted it, or has refused it permanently or in every attempt. An event that
/// counts as sent and never arrives at the consumer counts as lost.
struct Demo {
    queue: Queue,
    client: Arc<Client>,
    consumer: Consumer,
    figures: watch::Sender<Figures>,
    stop: CancellationToken,
    /// The tasks that each send one batch and wait for the relay's response.
    posting: JoinSet<Posted>,
    /// Open connections to the relay that no task uses now.
    idle: Vec<Connection>,
    /// The number of events that the relay has accepted.
    accepted: u64,
    /// The number of events that the relay has refused permanently or in every attempt.
    refused: u64,
    /// The ranges of the numbers of all events that count in `accepted` or in `refused`. The demo
    /// gives every event a number.
    sent: Vec<Range<u64>>,
    /// The greatest number of events that were seen in the queue, and the number of bytes in the
    /// queue at that moment.
    queue_max: (u64, u64),
}

impl Demo {
    fn new(
        opened: Opened,
        consumer: Consumer,
        figures: watch::Sender<Figures>,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let Opened { listeners, admin, queue } = opened;
        let listener = listeners.first().ok_or("the relay has no listener")?;
        let url = format!("http://{listener}/?timeout=30s");
        let client = Client::new(&url, None, None, PATIENCE, stop.clone())?;
        figures.send_modify(|figures| figures.admin = Some(admin));
        Ok(Self {
            queue,
            client: Arc::new(client),
            consumer,
            figures,
            stop,
            posting: JoinSet::new(),
            idle: Vec::new(),
            accepted: 0,
            refused: 0,
            sent: Vec::new(),
            queue_max: (0, 0),
        })
    }

    async fn run(mut self, length: Duration) -> Summary {
        let away = length.mul_f64(AWAY_PART).min(AWAY_MAX);
        let begun = Instant::now();
        let goes = begun + length.mul_f64(AWAY_FROM);
        let returns = goes + away;
        let mut generator = Generator::new();
        let mut batches = tokio::time::interval(BATCH_EVERY);
        batches.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK);
        let end = tokio::time::sleep_until(begun + length);
        let mut end = std::pin::pin!(end);
        let mut was_away = Duration::ZERO;
        loop {
            tokio::select! {
                () = &mut end => break,
                () = self.stop.cancelled() => break,
                _ = look.tick() => {}
                _ = batches.tick(), if self.posting.len() < UNDER_WAY_MAX => {
                    self.post(&mut generator);
                }
                Some(posted) = self.posting.join_next() => self.posted(posted.ok()),
            }
            let now = Instant::now();
            let is_away = (goes..returns).contains(&now);
            if is_away {
                was_away = now - goes;
            }
            self.consumer.set_away(is_away);
            self.show(if is_away { Phase::Away } else { Phase::Flowing });
        }
        self.consumer.set_away(false);
        self.empty().await;
        let (queue_events_max, queue_bytes_max) = self.queue_max;
        Summary {
            sent: self.accepted + self.refused,
            delivered: self.consumer.delivered(),
            repeated: self.consumer.repeated(),
            lost: self.consumer.missing(&self.sent),
            away: if was_away.is_zero() { was_away } else { was_away.max(LOOK) },
            queue_events_max,
            queue_bytes_max,
        }
    }

    fn post(&mut self, generator: &mut Generator) {
        let (body, numbers) = generator.batch();
        let (client, mut connection) = (Arc::clone(&self.client), self.idle.pop());
        self.posting.spawn(async move {
            let events = numbers.end - numbers.start;
            let result = client.post(&mut connection, &body, events, |_| ()).await;
            Posted { numbers, connection, result }
        });
    }

    /// Counts the events of a batch as accepted or refused, depending on the result of sending it.
    /// `None` means that the task of the batch panicked. The events of such a batch are not
    /// counted, and neither are those of a batch that a stop has interrupted, because the relay has
    /// not promised to deliver them.
    fn posted(&mut self, posted: Option<Posted>) {
        let Some(Posted { numbers, connection, result }) = posted else { return };
        self.idle.extend(connection);
        match result {
            Ok(()) => self.accepted += numbers.end - numbers.start,
            Err(Failure::Final(_) | Failure::GivenUp(_)) => {
                self.refused += numbers.end - numbers.start;
            }
            Err(Failure::Stopped) => return,
        }
        self.sent.push(numbers);
    }

    fn show(&mut self, phase: Phase) {
        // The order matters: an accepted event is in the queue until the consumer has it. In this
        // order, each accepted event is found in at least one of the two places.
        let sent = self.accepted;
        let (queue_bytes, queue_events) = self.queue.held();
        let delivered = self.consumer.delivered();
        let lost = self.refused + sent.saturating_sub(queue_events + delivered);
        self.queue_max = self.queue_max.max((queue_events, queue_bytes));
        self.figures.send_modify(|figures| {
            let admin = figures.admin;
            *figures = Figures { phase, sent, delivered, queue_events, queue_bytes, lost, admin };
        });
    }

    /// Waits until no request is open, and all events in `sent` have arrived at the consumer, even
    /// refused ones. Gives up after [`DELIVERY_MAX`], or when no event has arrived for
    /// [`DELIVERY_PAUSE_MAX`].
    async fn empty(&mut self) {
        let begun = Instant::now();
        let mut moved = (Instant::now(), 0);
        loop {
            self.show(Phase::Emptying);
            let Figures { delivered, .. } = *self.figures.borrow();
            if delivered != moved.1 {
                moved = (Instant::now(), delivered);
            }
            let is_over = self.posting.is_empty() && self.consumer.missing(&self.sent) == 0;
            let is_late =
                begun.elapsed() >= DELIVERY_MAX || moved.0.elapsed() >= DELIVERY_PAUSE_MAX;
            if is_over || is_late {
                return;
            }
            tokio::select! {
                Some(posted) = self.posting.join_next() => self.posted(posted.ok()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
