//! `demo`: the whole path in one process on loopback: events as kube-apiserver sends them, the relay as it always runs, and
//! a consumer that goes away in the middle.
//!
//! Whether anything is lost is not asked of the relay: each event has a number, and the consumer notes which have come.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

mod consumer;
mod events;

use consumer::Consumer;
use events::Generator;

use crate::config;
use crate::queue::Queue;
use crate::relay;
use crate::relay::Opened;
use crate::relay::Signals;
use crate::replay::client::Client;
use crate::replay::client::Connection;
use crate::replay::client::Failure;
use crate::replay::client::Retry;

/// kube-apiserver sends ten batches a second at most (`--audit-webhook-batch-throttle-qps`).
const BATCH_EVERY: Duration = Duration::from_millis(100);

/// Batches under way. kube-apiserver knows no limit; this one is never met where the relay answers.
const UNDER_WAY_MAX: usize = 64;

/// The consumer is away from here on, as a part of the whole time, for a quarter of it, and no longer than this.
const AWAY_FROM: f64 = 0.4;
const AWAY_PART: f64 = 0.25;
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Figures are renewed so often.
const LOOK: Duration = Duration::from_millis(100);

/// At the end, what the consumer has not got by then, or no more of for so long, is lost.
const DELIVERY_MAX: Duration = Duration::from_secs(60);
const DELIVERY_PAUSE_MAX: Duration = Duration::from_secs(15);

/// What is happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Addresses are being opened.
    #[default]
    Starting,
    /// Events flow.
    Flowing,
    /// The consumer resets every connection.
    Away,
    /// No more events are made; the queue empties.
    Emptying,
}

/// What there is to see.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// What is happening.
    pub phase: Phase,
    /// Events that the relay has accepted.
    pub sent: u64,
    /// Those that the consumer has, each counted once.
    pub delivered: u64,
    /// What is in the queue.
    pub queue_events: u64,
    /// The same in bytes.
    pub queue_bytes: u64,
    /// Accepted, and neither in the queue nor at the consumer; or refused for good.
    pub lost: u64,
    /// Where the relay's status page is.
    pub admin: Option<SocketAddr>,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// Events that the relay has accepted, or has refused for good.
    pub sent: u64,
    /// Those that the consumer has, each counted once.
    pub delivered: u64,
    /// How often the consumer got one that it had.
    pub repeated: u64,
    /// Those that it has not.
    pub lost: u64,
    /// How long the consumer was away.
    pub away: Duration,
    /// What the queue held at most.
    pub queue_events_max: u64,
    /// The same in bytes.
    pub queue_bytes_max: u64,
}

/// Runs all three for so long, or until `stop`.
///
/// # Errors
///
/// The relay does not start, or ends.
pub async fn run(
    length: Duration,
    figures: watch::Sender<Figures>,
    stop: CancellationToken,
) -> Result<Summary, String> {
    let consumer = Consumer::start().map_err(|error| format!("no consumer: {error}"))?;
    let relay_stop = CancellationToken::new();
    let (opened, opening) = oneshot::channel();
    let signals = Signals {
        stopped: relay_stop.clone().cancelled_owned(),
        aborted: std::future::pending(),
        reload: tokio::sync::mpsc::channel(1).1,
        opened: Some(opened),
    };
    let config = config::read(&config_for(consumer.address())).config;
    let config = config.ok_or("the demo's config is wrong")?;
    let mut relay = std::pin::pin!(relay::run(None, config, signals));
    let demo = async {
        let Ok(opened) = opening.await else { return std::future::pending().await };
        let demo = Demo::new(opened, consumer, figures, stop)?;
        Ok::<_, String>(demo.run(length).await)
    };
    let summary = tokio::select! {
        summary = demo => summary?,
        ended = &mut relay => {
            let why = ended.err().map(|error| error.to_string());
            return Err(why.unwrap_or_else(|| "the relay has ended".to_owned()));
        }
    };
    relay_stop.cancel();
    // What it has not delivered is in the summary.
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

/// A batch that was sent.
struct Posted {
    numbers: Range<u64>,
    connection: Option<Connection>,
    result: Result<(), Failure>,
}

struct Demo {
    queue: Queue,
    client: Arc<Client>,
    consumer: Consumer,
    figures: watch::Sender<Figures>,
    stop: CancellationToken,
    posting: JoinSet<Posted>,
    idle: Vec<Connection>,
    /// Events accepted, and refused for good.
    accepted: u64,
    refused: u64,
    /// All of these.
    sent: Vec<Range<u64>>,
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
        let listener = listeners.first().ok_or("the relay does not listen")?;
        let url = format!("http://{listener}/?timeout=30s");
        let client = Client::new(&url, None, None, Retry::default(), stop.clone())?;
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

    /// `None`: it has panicked, and its events are missed at the end.
    fn posted(&mut self, posted: Option<Posted>) {
        let Some(Posted { numbers, connection, result }) = posted else { return };
        self.idle.extend(connection);
        match result {
            Ok(()) => self.accepted += numbers.end - numbers.start,
            Err(Failure::Final(_) | Failure::GivenUp(_)) => {
                self.refused += numbers.end - numbers.start;
            }
            // Nobody has promised anything for them.
            Err(Failure::Stopped) => return,
        }
        self.sent.push(numbers);
    }

    fn show(&mut self, phase: Phase) {
        // In this order: what was accepted is in the queue until the consumer has it.
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

    /// Waits until what was accepted has arrived, within bounds.
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
