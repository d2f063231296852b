//! Where events come from besides the listeners: topics that this relay reads as one of a group.
//!
//! A source appends to the queue as a listener does. It keeps its place at its origin, and moves it on only behind what
//! every output has acknowledged: whoever reads on from there, after a crash too, misses nothing.

#![cfg_attr(
    not(feature = "kafka"),
    allow(
        dead_code,
        unreachable_code,
        unused_variables,
        reason = "there is no source in a binary without kafka"
    )
)]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config;
use crate::process::Failures;
use crate::queue::Queue;
use crate::telemetry::Telemetry;

#[cfg(feature = "kafka")]
mod kafka;

/// A source hears within a fraction of it that it is to take nothing more.
const CLOSING: Duration = Duration::from_secs(1);

/// A reload waits so long for that, which hangs only in a call that never returns.
const CLOSING_AT_RELOAD: Duration = Duration::from_secs(5);

/// One that a reload removes or changes waits so long for what it took to be acknowledged. The rest comes again, to whoever
/// reads on.
const LEAVING: Duration = Duration::from_secs(10);

/// Puts what was read from files in use. Dropped instead, it has changed nothing.
pub type Staged = Box<dyn FnOnce() + Send>;

/// One source. Its calls block: they are made by threads of its own.
trait Source: Send + Sync {
    /// Reads and checks its files, and changes nothing yet.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;

    /// Connects once, and says where to, and how it went.
    fn probe(&self) -> (String, Result<(), String>);

    /// Reads until it is told to end.
    fn run(&self, queue: &Queue, orders: Orders);

    /// What it reports.
    fn status(&self) -> Arc<Status>;
}

/// What a source reports, for `/status`. Its thread writes it.
#[derive(Default)]
pub struct Status {
    state: Mutex<Snapshot>,
}

/// A moment of [`Status`].
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Nothing is read for a while: the queue has no room, or too much is not acknowledged.
    pub paused: bool,
    /// Those that this relay reads, of the topic's.
    pub partitions: Vec<i32>,
    /// The last trouble, since something was read.
    pub last_error: Option<String>,
}

impl Status {
    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A source as `/status` shows it.
pub struct Shown {
    /// As the config has it.
    pub config: config::Source,
    /// What it reports.
    pub status: Arc<Status>,
}

/// What a source is told.
struct Orders {
    /// To take nothing more, and to end when what it took is acknowledged.
    closing: CancellationToken,
    /// To end now. What is not acknowledged comes again.
    stop: CancellationToken,
    /// Kept as long as it takes something.
    taking: Option<TaskTrackerToken>,
}

/// One source of a config that is about to be applied.
pub struct Planned {
    config: config::Source,
    max_body: u64,
    source: Arc<dyn Source>,
    /// The slot that goes on as it is.
    slot: Option<usize>,
}

impl Planned {
    /// The name in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Reads and checks its files, and changes nothing yet. Blocks.
    ///
    /// # Errors
    ///
    /// What is wrong, for the operator.
    pub fn stage(&self) -> Result<Staged, String> {
        let staged = Arc::clone(&self.source).stage();
        staged.map_err(|error| format!("source {}: {error}", self.config.name))
    }

    /// Connects once: where to, and how it went. After its files were read. Blocks.
    pub fn probe(&self) -> (String, Result<(), String>) {
        self.source.probe()
    }
}

/// The sources of one relay. Owned by `relay`.
#[derive(Default)]
pub struct Sources {
    slots: Vec<Slot>,
    tasks: TaskTracker,
    closing: CancellationToken,
    stop: CancellationToken,
    failures: Failures,
}

/// A source that reads.
struct Slot {
    config: config::Source,
    max_body: u64,
    source: Arc<dyn Source>,
    closing: CancellationToken,
    /// Empty once it takes nothing more.
    taking: TaskTracker,
}

impl Slot {
    /// Tells it to take nothing more. The future returns when it does not.
    fn close(&self) -> impl Future<Output = ()> {
        self.closing.cancel();
        self.taking.close();
        self.taking.wait()
    }
}

impl Sources {
    /// Without any yet. A source that ends although nobody has told it to is one of these failures.
    #[must_use]
    pub fn new(failures: Failures) -> Self {
        Self { failures, ..Self::default() }
    }

    /// What a config makes of them. Nothing is connected, changed or read from files yet. `max_body` bounds a message as it
    /// bounds a request's body.
    #[must_use]
    pub fn plan(
        &self,
        configs: &[config::Source],
        max_body: u64,
        telemetry: &Telemetry,
    ) -> Vec<Planned> {
        let plan = |config: &config::Source| {
            let same = |slot: &Slot| slot.config == *config && slot.max_body == max_body;
            let slot = self.slots.iter().position(same);
            let there = slot.and_then(|index| self.slots.get(index));
            let source = there.map(|slot| Arc::clone(&slot.source));
            let source = source.unwrap_or_else(|| make(config, max_body, telemetry));
            Planned { config: config.clone(), max_body, source, slot }
        };
        configs.iter().map(plan).collect()
    }

    /// Those that a plan removes or changes take nothing more; returns when they don't. Before the queue's settings change: what
    /// a source takes is acknowledged as those say, and with others an offset might be committed before any output has the
    /// events.
    pub async fn close_leaving(&self, planned: &[Planned]) {
        let is_kept = |index| planned.iter().any(|planned| planned.slot == Some(index));
        let slots = self.slots.iter().enumerate();
        let leaving = slots.filter(|(index, _)| !is_kept(*index)).map(|(_, slot)| slot.close());
        // One that hangs sees that it is to close before it takes anything.
        tokio::time::timeout(CLOSING_AT_RELOAD, join_all(leaving)).await.ok();
    }

    /// Puts a plan in force whose files are in use: new ones read. Those that go were closed before.
    pub fn commit(&mut self, planned: Vec<Planned>, queue: &Queue) {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        for Planned { config, max_body, source, slot } in planned {
            let kept = slot.and_then(|index| before.get_mut(index)?.take());
            let slot = kept.unwrap_or_else(|| self.start(config, max_body, source, queue));
            self.slots.push(slot);
        }
    }

    fn start(
        &self,
        config: config::Source,
        max_body: u64,
        source: Arc<dyn Source>,
        queue: &Queue,
    ) -> Slot {
        let (closing, taking) = (self.closing.child_token(), TaskTracker::new());
        let stop = self.stop.child_token();
        let orders =
            Orders { closing: closing.clone(), stop: stop.clone(), taking: Some(taking.token()) };
        self.run(&config.name, Arc::clone(&source), queue, orders);
        Slot { config, max_body, source, closing, taking }
    }

    /// Its thread.
    fn run(&self, name: &str, source: Arc<dyn Source>, queue: &Queue, orders: Orders) {
        let (name, queue, status) = (name.to_owned(), queue.clone(), source.status());
        let (closing, stop) = (orders.closing.clone(), orders.stop.clone());
        let (ended, mut end) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("source {name}"));
        let started = thread.spawn(move || {
            source.run(&queue, orders);
            // Nobody waits for it where it took too long to end.
            ended.send(()).ok();
        });
        if let Err(error) = started {
            self.failures.report(format!("source {name}: no thread for it: {error}"));
            return;
        }
        let (all, failures) = (self.closing.clone(), self.failures.clone());
        // The thread is not joined: a call may hang, and it owns nothing that the end needs.
        self.tasks.spawn(async move {
            let is_told = || closing.is_cancelled() || stop.is_cancelled();
            let leaving = async {
                closing.cancelled().await;
                tokio::time::sleep(LEAVING).await;
                // The drain has a time of its own.
                if !all.is_cancelled() {
                    stop.cancel();
                }
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! {
                ended = &mut end => ended,
                () = leaving => return,
            };
            let error = match ended {
                Ok(()) if is_told() => return,
                Ok(()) => "its thread has ended",
                Err(_) => "its thread has panicked",
            };
            status.update(|status| status.last_error = Some(error.to_owned()));
            failures.report(format!("source {name}: {error}"));
        });
    }

    /// For `/status`.
    #[must_use]
    pub fn show(&self) -> Vec<Shown> {
        let show =
            |slot: &Slot| Shown { config: slot.config.clone(), status: slot.source.status() };
        self.slots.iter().map(show).collect()
    }

    /// The drain begins: returns when nothing more is taken. What was taken is waited for.
    pub async fn close(&self) {
        self.closing.cancel();
        let closed = join_all(self.slots.iter().map(Slot::close));
        tokio::time::timeout(CLOSING, closed).await.ok();
    }

    /// The drain is over: what is not acknowledged is given back. Returns when they have ended, or after so long.
    pub async fn end(&self, limit: Duration) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.ok();
    }
}

fn make(config: &config::Source, max_body: u64, telemetry: &Telemetry) -> Arc<dyn Source> {
    match config.kind {
        #[cfg(feature = "kafka")]
        config::SourceKind::Kafka(ref kafka) => {
            let metrics = telemetry.listener(&config.name);
            Arc::new(kafka::Reader::new(&config.name, kafka, max_body, metrics))
        }
    }
}

#[cfg(test)]
mod tests;
