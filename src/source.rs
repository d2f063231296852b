//! Reads events from topics, as one reader of a consumer group. Sources are the second way in,
//! besides the listeners.
//!
//! A source appends to the queue as a listener does. The group stores the offset up to which a
//! partition is finished, and a source moves that offset only past events that every required
//! output has acknowledged or counted as lost. Therefore the next reader of the partition misses
//! nothing, also after a crash.

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
use crate::staged::Staged;
use crate::telemetry::Telemetry;

#[cfg(feature = "kafka")]
mod kafka;

/// The drain waits this long until sources take nothing more. A source that does not hang reacts in
/// a fraction of this time.
const CLOSING: Duration = Duration::from_secs(1);

/// The longest time that a reload waits until the sources that it removes or changes take no more
/// events. The full time passes only if a call to a source never returns.
const CLOSING_AT_RELOAD: Duration = Duration::from_secs(5);

/// The longest time that a source, after a reload has removed or changed it, waits for the events
/// that it took to be acknowledged. The next reader of its partitions reads again what was not
/// acknowledged.
const LEAVING: Duration = Duration::from_secs(10);

/// The reason why the files of a source cannot be put in use.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A file with a secret or a certificate cannot be read or used. Nothing has changed: a reload
    /// is refused, and a start ends the process. The operator must correct the file or the config.
    #[error("source {name}: {fault}")]
    File {
        /// The source's name.
        name: String,
        /// The path of the file and its fault, as text.
        fault: String,
    },
}

/// The reason why a probe of a source failed. A probe changes nothing, so its caller only reports
/// the error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The cluster cannot be reached, or does not let this client use the topic. The operator must
    /// correct the address, the topic, or the rights at the cluster.
    #[error("topic {topic}: {fault}")]
    Topic {
        /// The name of the topic.
        topic: String,
        /// The error from the client library of the cluster.
        fault: String,
    },
}

/// One source of events. Its calls block, so they are made on threads that belong to the source.
trait Source: Send + Sync {
    /// Reads and checks the files of the source. They are put in use only when the caller calls the
    /// result.
    ///
    /// # Errors
    ///
    /// The text names a file and its fault.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;

    /// Connects to the source once. Returns the address that was tried, and the result of the
    /// attempt.
    fn probe(&self) -> (String, Result<(), ProbeError>);

    /// Reads events into `queue` until `orders` tell the source to end.
    fn run(&self, queue: &Queue, orders: Orders);

    /// Returns the state that the source reports for `/status`.
    fn status(&self) -> Arc<Status>;
}

/// The state that a source reports for `/status`. The source's thread writes it.
#[derive(Default)]
pub struct Status {
    state: Mutex<Snapshot>,
}

/// The contents of a [`Status`] at one moment.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// `true`: the source does not read at the moment, because the queue has no room or too many
    /// bytes are not acknowledged.
    pub paused: bool,
    /// The partitions of the topic that this relay reads.
    pub partitions: Vec<i32>,
    /// The last error; `None` once a message was read, or partitions were assigned, after it.
    pub last_error: Option<String>,
}

impl Status {
    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns the state of the source at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A source in the form that `/status` shows.
pub struct Shown {
    /// The config of the source.
    pub config: config::Source,
    /// The state that the source reports.
    pub status: Arc<Status>,
}

/// The orders to the thread of a source.
struct Orders {
    /// Cancelled when the source must take no more events, and must end once the events that it
    /// took are acknowledged.
    closing: CancellationToken,
    /// Cancelled when the source must end now, without waiting for acknowledgements. Events that
    /// are not acknowledged yet are read again by the next reader of the partitions.
    stop: CancellationToken,
    /// A token that the source holds as long as it may still take events; `None` once it takes no
    /// more.
    taking: Option<TaskTrackerToken>,
}

/// One source of a config that is about to be put in force.
pub struct Planned {
    config: config::Source,
    /// The greatest size of a message, in bytes.
    max_body: u64,
    source: Arc<dyn Source>,
    /// The index of the running source with the same config, which goes on unchanged; `None`: a new
    /// source is needed.
    slot: Option<usize>,
}

impl Planned {
    /// Returns the name of the source in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Reads and checks the files of the source. They are put in use only when the caller calls the
    /// result. Blocks.
    ///
    /// # Errors
    ///
    /// [`StageError`]: a file cannot be used, and nothing has changed.
    pub fn stage(&self) -> Result<Staged, StageError> {
        let staged = Arc::clone(&self.source).stage();
        staged.map_err(|fault| StageError::File { name: self.config.name.clone(), fault })
    }

    /// Connects to the source once, after its files were read and put in use. Returns the address
    /// that was tried, and the result of the attempt. Blocks.
    pub fn probe(&self) -> (String, Result<(), ProbeError>) {
        self.source.probe()
    }
}

/// The sources of one relay, owned by `relay`.
///
/// Each source runs in a thread of its own, and a task waits for the thread's end. A reload goes in
/// three steps: [`Sources::plan`] compares the new config with the running sources,
/// [`Sources::close_leaving`] stops those that are removed or changed from taking events, and
/// [`Sources::commit`] starts the new ones. The drain calls [`Sources::close`] at its beginning and
/// [`Sources::end`] at its end. A thread that ends without being told to is reported to
/// [`Failures`]. Threads are never joined: a call of a source may hang for ever, and a thread owns
/// nothing that the end of the process needs.
#[derive(Default)]
pub struct Sources {
    /// The sources that run now, in the order of the config.
    slots: Vec<Slot>,
    /// The tasks that wait until the sources' threads have ended.
    tasks: TaskTracker,
    /// Cancelled when the drain begins.
    closing: CancellationToken,
    /// Cancelled when the drain is over.
    stop: CancellationToken,
    failures: Failures,
}

/// A source that runs, with the means to end it.
struct Slot {
    config: config::Source,
    max_body: u64,
    source: Arc<dyn Source>,
    closing: CancellationToken,
    /// Holds a token as long as the source may still take events.
    taking: TaskTracker,
}

impl Slot {
    /// Tells the source to take no more events. The future is ready once the source takes none.
    fn close(&self) -> impl Future<Output = ()> {
        self.closing.cancel();
        self.taking.close();
        self.taking.wait()
    }
}

impl Sources {
    /// Makes a set without sources. A source that ends without being told to is reported to
    /// `failures`.
    #[must_use]
    pub fn new(failures: Failures) -> Self {
        Self { failures, ..Self::default() }
    }

    /// Compares a config with the sources that run. Nothing is connected, changed or read from
    /// files yet. `max_body` limits the bytes of a message, as it limits the body of a request.
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

    /// Tells the sources that a plan removes or changes to take nothing more, and waits until they
    /// do, at most `CLOSING_AT_RELOAD`. Call this before the queue's settings change: events are
    /// acknowledged by the settings that hold when a source takes them, and under other settings an
    /// offset might be committed before any output has the events.
    pub async fn close_leaving(&self, planned: &[Planned]) {
        let is_kept = |index| planned.iter().any(|planned| planned.slot == Some(index));
        let slots = self.slots.iter().enumerate();
        let leaving = slots.filter(|(index, _)| !is_kept(*index)).map(|(_, slot)| slot.close());
        // A source that hangs will see that it is to close before it takes anything.
        tokio::time::timeout(CLOSING_AT_RELOAD, join_all(leaving)).await.ok();
    }

    /// Puts a plan in force, after its files were put in use: new sources begin to read. The
    /// sources that leave were closed before.
    pub fn commit(&mut self, planned: Vec<Planned>, queue: &Queue) {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        for Planned { config, max_body, source, slot } in planned {
            let kept = slot.and_then(|index| before.get_mut(index)?.take());
            let slot = kept.unwrap_or_else(|| self.start(config, max_body, source, queue));
            self.slots.push(slot);
        }
    }

    /// Starts a source that is new or changed.
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

    /// Starts the thread of a source, and the task that waits for the thread's end.
    fn run(&self, name: &str, source: Arc<dyn Source>, queue: &Queue, orders: Orders) {
        let (name, queue, status) = (name.to_owned(), queue.clone(), source.status());
        let (closing, stop) = (orders.closing.clone(), orders.stop.clone());
        let (ended, mut end) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("source {name}"));
        let started = thread.spawn(move || {
            source.run(&queue, orders);
            // Sending fails only if the waiting task has given up, because the thread took too long
            // to end.
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
    #[must_use]
    pub fn show(&self) -> Vec<Shown> {
        let show =
            |slot: &Slot| Shown { config: slot.config.clone(), status: slot.source.status() };
        self.slots.iter().map(show).collect()
    }

    /// Begins the drain: waits until no source takes events any more, at most `CLOSING`. Events
    /// that were taken are still waited for by the sources.
    pub async fn close(&self) {
        self.closing.cancel();
        let closed = join_all(self.slots.iter().map(Slot::close));
        tokio::time::timeout(CLOSING, closed).await.ok();
    }

    /// Ends the drain: tells all sources to end now, and waits until their threads have ended, at
    /// most `limit`. Events that are not acknowledged are left to the next reader.
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
