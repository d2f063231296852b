//! Reads events from Kafka topics, as one reader of a consumer group. Sources are the second way
//! into the queue, besides the listeners.
//!
//! A source appends to the queue as a listener does. The consumer group stores, for each partition,
//! the offset up to which the partition is finished. A source moves that offset only past events
//! that every required output has acknowledged or counted as lost; for this, the config must have
//! `queue.acknowledge = "delivered"`. Therefore the next reader of the partition misses nothing,
//! even after a crash.

#![cfg_attr(
    not(feature = "kafka"),
    allow(
        dead_code,
        unreachable_code,
        unused_variables,
        reason = "there is no source in a binary without kafka"
    )
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use base::lock::lock;
use base::staged::Staged;
use process::Failures;
use queue::Queue;
use telemetry::Telemetry;

#[cfg(feature = "kafka")]
mod kafka;

/// The longest wait of the drain until all sources take no more events. Most stop within 100 ms;
/// only a source that hangs, or is giving partitions back, needs the full time.
const CLOSING: Duration = Duration::from_secs(1);

/// The longest wait of a reload until the sources that it removes or changes take no more events.
/// Only a source that hangs takes this long.
const CLOSING_AT_RELOAD: Duration = Duration::from_secs(5);

/// The longest time for which a removed or changed source waits for the acknowledgement of the
/// events that it has taken. The next reader of its partitions reads the other events again.
const LEAVING: Duration = Duration::from_secs(10);

/// One source of events, such as a Kafka topic. `run` blocks, and is called on a thread of its own.
/// `stage` and `probe` block too, and are called only where the async runtime allows it.
trait Source: Send + Sync {
    /// Reads and checks the secrets and certificates of the source, but does not use them yet.
    /// Returns a function; when the caller calls it, the source begins to use the files.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The text names the file and its fault.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;

    /// Tries once to connect to the source. Changes nothing. Returns the address that was tried,
    /// and the result of the attempt, whose error names the topic.
    fn probe(&self) -> (String, Result<(), String>);

    /// Reads events and appends them to `queue`. Returns when `orders` tell the source to end.
    fn run(&self, queue: &Queue, orders: Orders);

    fn status(&self) -> Arc<Status>;
}

/// The state of a source that the page `/status` shows. The thread of the source updates it, and
/// the task that waits for this thread notes an end without an order.
#[derive(Default)]
pub struct Status {
    state: Mutex<Snapshot>,
}

/// A copy of the state of a source at one moment; see [`Status`].
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// `true`: the source takes no events now. A batch has waited for a second for room in the
    /// queue or for earlier acknowledgements, or the source is about to end.
    pub paused: bool,
    /// The partitions of the topic that this relay reads.
    pub partitions: Vec<i32>,
    /// The last error; `None` if the source has read a message or got partitions since.
    pub last_error: Option<String>,
}

impl Status {
    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut lock(&self.state));
    }

    /// Returns a copy of the state of the source at this moment.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.state).clone()
    }
}

/// A source as the page `/status` shows it.
pub struct Shown {
    /// The config of the source.
    pub config: config::Source,
    /// The state of the source, which the source updates.
    pub status: Arc<Status>,
}

/// The orders to the thread of a source, which checks them regularly.
struct Orders {
    /// Cancelled when the source must stop taking events. The source then ends as soon as the
    /// events that it has taken are acknowledged.
    closing: CancellationToken,
    /// Cancelled when the source must end without waiting for acknowledgements. The next reader of
    /// the partitions reads all events again that are not acknowledged by then.
    stop: CancellationToken,
    /// Exists while the source may still take events. The source drops it when it has stopped
    /// taking events.
    taking: Option<TaskTrackerToken>,
}

/// One source of a new config that is not in use yet.
pub struct Planned {
    config: config::Source,
    /// The value of `limits.max_body`: each message must have fewer bytes.
    max_body: u64,
    /// The source that will read: one that runs already, or a new one that is not started yet.
    source: Arc<dyn Source>,
    /// The index of the running source that continues unchanged; `None` if `source` is new.
    slot: Option<usize>,
}

impl Planned {
    /// Returns the name of the source, from the config.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Reads and checks the secrets and certificates of the source, but does not use them yet.
    /// Returns a function; when the caller calls it, the source begins to use the files. Blocks on
    /// the disk.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The text names the source, the file and its fault. Nothing
    /// has changed then.
    pub fn stage(&self) -> Result<Staged, String> {
        let staged = Arc::clone(&self.source).stage();
        staged.map_err(|fault| format!("source {}: {fault}", self.config.name))
    }

    /// Tries once to connect to the source; its files must already be in use. Returns the address
    /// that was tried, and the result of the attempt. Blocks on the network.
    pub fn probe(&self) -> (String, Result<(), String>) {
        self.source.probe()
    }
}

/// All sources of one relay. The relay's `Parts` own this value.
///
/// Each source has a thread of its own, and a task waits until the thread has ended. A reload has
/// three steps: [`Sources::plan`] compares the new config with the running sources,
/// [`Sources::close_leaving`] makes the sources that are removed or changed stop taking events, and
/// [`Sources::commit`] starts the new sources. The drain calls [`Sources::close`] at its beginning
/// and [`Sources::end`] at its end. A thread that ends without an order is reported to
/// [`Failures`].
#[derive(Default)]
pub struct Sources {
    /// The sources that run now, in the order of the config.
    slots: Vec<Slot>,
    /// The tasks that wait for the threads of the sources. There is one task for each thread.
    tasks: TaskTracker,
    /// This token is cancelled when the drain begins. All sources then stop taking events.
    closing: CancellationToken,
    /// This token is cancelled at the end of the drain. All sources then end without waiting for
    /// acknowledgements.
    stop: CancellationToken,
    /// Receives a report if a source ends without an order.
    failures: Failures,
}

struct Slot {
    config: config::Source,
    max_body: u64,
    source: Arc<dyn Source>,
    /// This token is cancelled when this source must stop taking events.
    closing: CancellationToken,
    /// Has one token while the source may still take events, and is empty after that.
    taking: TaskTracker,
}

impl Slot {
    /// Orders the source to stop taking events. The future completes when it has stopped.
    fn close(&self) -> impl Future<Output = ()> {
        self.closing.cancel();
        self.taking.close();
        self.taking.wait()
    }
}

impl Sources {
    /// Makes a set without sources. A source that ends without an order, or whose thread cannot be
    /// started, is reported to `failures`.
    pub fn new(failures: Failures) -> Self {
        Self { failures, ..Self::default() }
    }

    /// Compares a config with the running sources, and returns a plan for each source of the
    /// config. Changes nothing, reads no files and makes no connection. A message must have fewer
    /// than `max_body` bytes.
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

    /// Orders the running sources that the plan does not keep to stop taking events. Waits until
    /// they have stopped, for at most `CLOSING_AT_RELOAD`. Call this before the settings of the
    /// queue change: under other settings, a source might commit an offset before any output has
    /// the events.
    pub async fn close_leaving(&self, planned: &[Planned]) {
        let is_kept = |index| planned.iter().any(|planned| planned.slot == Some(index));
        let slots = self.slots.iter().enumerate();
        let leaving = slots.filter(|(index, _)| !is_kept(*index)).map(|(_, slot)| slot.close());
        // A source that hangs will see the order to close before it takes any more events.
        tokio::time::timeout(CLOSING_AT_RELOAD, join_all(leaving)).await.ok();
    }

    /// Carries out the plan: new and changed sources begin to read. Their files must already be in
    /// use, and the sources that are removed or changed must already be closed.
    pub fn commit(&mut self, planned: Vec<Planned>, queue: &Queue) {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        for Planned { config, max_body, source, slot } in planned {
            let kept = slot.and_then(|index| before.get_mut(index)?.take());
            let slot = kept.unwrap_or_else(|| {
                let (closing, taking) = (self.closing.child_token(), TaskTracker::new());
                let slot = Slot { config, max_body, source, closing, taking };
                self.start(&slot, queue);
                slot
            });
            self.slots.push(slot);
        }
    }

    /// Starts the thread of a source, and a task that reports if the thread ends without an order.
    fn start(&self, slot: &Slot, queue: &Queue) {
        let (name, source, queue) =
            (slot.config.name.clone(), Arc::clone(&slot.source), queue.clone());
        let (closing, stop) = (slot.closing.clone(), self.stop.child_token());
        let taking = Some(slot.taking.token());
        let orders = Orders { closing: closing.clone(), stop: stop.clone(), taking };
        let status = source.status();
        let (ended, mut end) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("source {name}"));
        let started = thread.spawn(move || {
            source.run(&queue, orders);
            // Sending fails only if the waiting task is gone, because the process is about to end.
            ended.send(()).ok();
        });
        if let Err(error) = started {
            self.failures.report(format!("source {name}: cannot start its thread: {error}"));
            return;
        }
        let (all, failures) = (self.closing.clone(), self.failures.clone());
        // The thread is not joined: a call may hang, and the thread owns nothing that the end of
        // the process needs.
        self.tasks.spawn(async move {
            let is_told = || closing.is_cancelled() || stop.is_cancelled();
            let leaving = async {
                closing.cancelled().await;
                tokio::time::sleep(LEAVING).await;
            };
            let ended = tokio::select! {
                ended = &mut end => ended,
                () = leaving => {
                    // During the drain, the drain's own deadline stops the source.
                    if !all.is_cancelled() {
                        stop.cancel();
                    }
                    end.await
                }
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

    /// Returns the sources as `/status` shows them.
    pub fn show(&self) -> Vec<Shown> {
        let show =
            |slot: &Slot| Shown { config: slot.config.clone(), status: slot.source.status() };
        self.slots.iter().map(show).collect()
    }

    /// Begins the drain: orders all sources to stop taking events, and waits until they have
    /// stopped, for at most `CLOSING`. The sources still wait for the acknowledgement of the events
    /// that they have taken.
    pub async fn close(&self) {
        self.closing.cancel();
        let closed = join_all(self.slots.iter().map(Slot::close));
        tokio::time::timeout(CLOSING, closed).await.ok();
    }

    /// Ends the drain: orders all sources to end now, and waits for their threads for at most
    /// `limit`. The next reader of the topic reads again all events that are not acknowledged.
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
            let volume = Arc::clone(telemetry.volume());
            Arc::new(kafka::Reader::new(&config.name, kafka, max_body, metrics, volume))
        }
    }
}

#[cfg(test)]
mod tests;
