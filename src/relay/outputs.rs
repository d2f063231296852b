//! The outputs of a running relay: a task each, which outlives changes of its settings.
//!
//! A changed output is not stopped and started: its task is told what comes next, lets what is on the wire become final
//! (for ten seconds at most), and goes on from its place in the log with the new settings. Nobody waits for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config;
use crate::config::OutputKind;
use crate::delivery::DeadLetters;
use crate::delivery::Files;
use crate::delivery::HandOver;
use crate::delivery::Orders;
use crate::delivery::Prepared;
use crate::delivery::Status;
use crate::output;
use crate::queue;
use crate::queue::Cursor;
use crate::queue::Queue;
use crate::telemetry::Telemetry;

/// Owns their tasks.
pub(super) struct Outputs {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    dead_letters: DeadLetters,
    slots: Vec<Slot>,
    tasks: JoinSet<Result<Ended, String>>,
    /// Whose task is whose.
    names: HashMap<tokio::task::Id, String>,
    /// What all are told: the drain, and the end.
    orders: Orders,
    /// Why one has ended, until somebody asks.
    failed: Option<String>,
}

/// An output that is there.
struct Slot {
    config: config::Output,
    files: Option<Arc<dyn Files>>,
    status: Arc<Status>,
    inbox: Arc<Inbox>,
}

/// Why a task has ended.
enum Ended {
    /// It was told to, at the end of the process.
    Stopped,
    /// The config does not name it any more. What it had not got was counted as lost.
    Left,
}

/// What becomes of an output.
enum Next {
    Replace(Box<Prepared>, CancellationToken),
    Leave,
}

/// Tells an output's task what becomes of it. What is told last counts.
struct Inbox {
    state: Mutex<InboxState>,
}

struct InboxState {
    next: Option<Next>,
    /// Of the delivery that runs, or of the one in `next`.
    retire: CancellationToken,
}

impl Inbox {
    fn new(retire: CancellationToken) -> Self {
        Self { state: Mutex::new(InboxState { next: None, retire }) }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, prepared: Prepared) {
        let retire = CancellationToken::new();
        let mut state = self.lock();
        state.next = Some(Next::Replace(Box::new(prepared), retire.clone()));
        std::mem::replace(&mut state.retire, retire).cancel();
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.next = Some(Next::Leave);
        state.retire.cancel();
    }

    fn take(&self) -> Option<Next> {
        self.lock().next.take()
    }
}

/// One output of a config that is about to be applied.
pub(super) struct Planned {
    config: config::Output,
    files: Option<Arc<dyn Files>>,
    step: Step,
}

enum Step {
    /// The slot of this index goes on as it is.
    Keep(usize),
    /// The slot of this index gets other settings.
    Replace(usize, Prepared),
    /// It is new. The place is there once it has one.
    Add(Prepared, Option<Place>),
}

/// A new output's place in the log.
enum Place {
    /// From the start of the process, where it may be an old one that goes on.
    Opened(Cursor),
    Joined(Joined),
}

impl Place {
    fn keep(self) -> Option<Cursor> {
        match self {
            Self::Opened(cursor) => Some(cursor),
            Self::Joined(mut joined) => joined.0.take(),
        }
    }
}

/// A place that a reload asked for. Where the reload fails or is given up, the output has never
/// joined: its cursor would keep, for nobody, what comes.
struct Joined(Option<Cursor>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(cursor) = self.0.take() {
            cursor.leave_uncounted();
        }
    }
}

/// What an output reads from files, and whose it is.
pub(super) type NamedFiles = (String, Arc<dyn Files>);

impl Planned {
    /// What is read from files for it.
    pub(super) fn files(&self) -> Option<NamedFiles> {
        let files = self.files.clone()?;
        Some((format!("output {}", self.config.name), files))
    }

    /// For the queue, where it is new.
    pub(super) fn joins(&self) -> Option<queue::Output> {
        match &self.step {
            Step::Add(prepared, None) => Some(prepared.in_queue()),
            Step::Add(_, Some(_)) | Step::Keep(_) | Step::Replace(..) => None,
        }
    }

    /// Its place in the log, as the start has found or made it.
    pub(super) fn opened(&mut self, cursor: Cursor) {
        self.set_place(Place::Opened(cursor));
    }

    fn set_place(&mut self, new: Place) {
        if let Step::Add(_, place) = &mut self.step {
            *place = Some(new);
        }
    }

    fn add(
        config: &config::Output,
        telemetry: &Arc<Telemetry>,
        dead_letters: &DeadLetters,
    ) -> Self {
        let prepared = output::prepare(config, telemetry, dead_letters);
        let files = prepared.files();
        Self { config: config.clone(), files, step: Step::Add(prepared, None) }
    }
}

/// All outputs of the first config.
pub(super) fn plan_start(
    configs: &[config::Output],
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Vec<Planned> {
    configs.iter().map(|config| Planned::add(config, telemetry, dead_letters)).collect()
}

impl Outputs {
    pub(super) fn new(telemetry: Arc<Telemetry>, queue: Queue, dead_letters: DeadLetters) -> Self {
        Self {
            telemetry,
            queue,
            dead_letters,
            slots: Vec::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            orders: Orders::default(),
            failed: None,
        }
    }

    /// What a config makes of them. Changes nothing.
    pub(super) fn plan(&self, configs: &[config::Output]) -> Vec<Planned> {
        let plan = |config: &config::Output| {
            let index = self.slots.iter().position(|slot| slot.config.name == config.name);
            let Some((index, slot)) = index.and_then(|at| Some((at, self.slots.get(at)?))) else {
                return Planned::add(config, &self.telemetry, &self.dead_letters);
            };
            // Whether others wait for it is the queue's business alone.
            let as_before = config::Output { required: slot.config.required, ..config.clone() };
            if as_before == slot.config {
                let files = slot.files.clone();
                return Planned { config: config.clone(), files, step: Step::Keep(index) };
            }
            let prepared = output::prepare(config, &self.telemetry, &self.dead_letters);
            let files = prepared.files();
            Planned { config: config.clone(), files, step: Step::Replace(index, prepared) }
        };
        configs.iter().map(plan).collect()
    }

    /// Gives each new one its place in the log. The places are theirs once the plan is put in
    /// force.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn join(&mut self, planned: &mut [Planned]) -> Result<(), String> {
        for new in planned.iter_mut() {
            let Some(queue::Output { name, required, metrics, .. }) = new.joins() else { continue };
            let leaves = |outputs: &Self| outputs.names.values().any(|leaving| *leaving == name);
            if leaves(self) {
                tracing::info!(
                    output = name,
                    "the reload waits for the output that had this name, which is leaving"
                );
            }
            // For some seconds, where its consumer hangs.
            while leaves(self) {
                self.reap().await;
            }
            match self.queue.join(&name, required, metrics).await {
                Ok(cursor) => new.set_place(Place::Joined(Joined(Some(cursor)))),
                Err(error) => return Err(format!("output {name} cannot join the queue: {error}")),
            }
        }
        Ok(())
    }

    /// Puts a plan in force, in which every new one has joined.
    pub(super) fn commit(&mut self, planned: Vec<Planned>) {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        for Planned { config, files, step } in planned {
            let mut kept = |index: usize| before.get_mut(index).and_then(Option::take);
            let slot = match step {
                Step::Keep(index) => kept(index).map(|slot| Slot { config, ..slot }),
                Step::Replace(index, prepared) => kept(index).map(|slot| {
                    tracing::info!(output = config.name, "output changed");
                    let status = prepared.status();
                    slot.inbox.replace(prepared);
                    Slot { config, files, status, inbox: slot.inbox }
                }),
                // Without a place in the log there is nothing to deliver.
                Step::Add(prepared, place) => {
                    let cursor = place.and_then(Place::keep);
                    cursor.map(|cursor| self.start(config, files, prepared, cursor))
                }
            };
            self.slots.extend(slot);
        }
        // Those that become required first: at no time is there none.
        self.slots.iter().filter(|slot| slot.config.required).for_each(|slot| self.require(slot));
        self.slots.iter().filter(|slot| !slot.config.required).for_each(|slot| self.require(slot));
        for left in before.into_iter().flatten() {
            tracing::info!(output = left.config.name, "output removed");
            left.inbox.leave();
        }
    }

    fn require(&self, slot: &Slot) {
        self.queue.require(&slot.config.name, slot.config.required);
        self.telemetry.output_required(&slot.config.name, slot.config.required);
    }

    fn start(
        &mut self,
        config: config::Output,
        files: Option<Arc<dyn Files>>,
        prepared: Prepared,
        cursor: Cursor,
    ) -> Slot {
        let orders = Orders { retire: CancellationToken::new(), ..self.orders.clone() };
        let inbox = Arc::new(Inbox::new(orders.retire.clone()));
        let status = prepared.status();
        let task = deliver(prepared, cursor, orders, Arc::clone(&inbox));
        self.names.insert(self.tasks.spawn(task).id(), config.name.clone());
        Slot { config, files, status, inbox }
    }

    /// Waits until one ends that was not told to, and takes it out of the queue. For ever where none is left.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn ended(&mut self) -> String {
        loop {
            if let Some(error) = self.failed.take() {
                return error;
            }
            if self.tasks.is_empty() {
                return std::future::pending().await;
            }
            self.reap().await;
        }
    }

    /// Waits for the next that ends, and notes where it should not have.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    async fn reap(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return };
        let (id, message) = match ended {
            Ok((id, Ok(Ended::Left))) => {
                self.names.remove(&id);
                return;
            }
            Ok((id, Ok(Ended::Stopped))) if self.orders.stop.is_cancelled() => {
                self.names.remove(&id);
                return;
            }
            Ok((id, Ok(Ended::Stopped))) => (id, "has ended".to_owned()),
            Ok((id, Err(message))) => (id, message),
            Err(panic) => (panic.id(), format!("its task has panicked: {panic}")),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        self.queue.give_up(&name);
        self.failed.get_or_insert(format!("output {name}: {message}"));
    }

    /// For `/status`.
    pub(super) fn show(&self) -> Vec<admin::Output> {
        let show = |slot: &Slot| admin::Output {
            name: slot.config.name.clone(),
            kind: slot.config.kind.name(),
            required: slot.config.required,
            lag_max: lag_max(&slot.config.kind),
            status: Arc::clone(&slot.status),
        };
        self.slots.iter().map(show).collect()
    }

    /// The drain begins.
    pub(super) fn hurry(&self) {
        self.orders.draining.cancel();
    }

    /// Ends all of them, and waits for that. Says why one has ended that should not have.
    pub(super) async fn stop(&mut self) -> Option<String> {
        self.orders.stop.cancel();
        while !self.tasks.is_empty() {
            self.reap().await;
        }
        self.failed.take()
    }
}

/// An output that works has its events confirmed by the consumer within this time; an event that
/// waits for longer waits for an answer that does not come, or behind others. A batch takes
/// milliseconds, a retry after a lone failure less than a second, and a consumer that is silent is
/// given up after `timeouts.request`, a minute by default: half of it.
const LAG_MAX: Duration = Duration::from_secs(30);

/// [`LAG_MAX`], and what the protocol itself waits before an event is final.
fn lag_max(kind: &OutputKind) -> Duration {
    let waits = match kind {
        OutputKind::Tcp(tcp) => tcp.replay_window,
        OutputKind::Syslog(syslog) => syslog.replay_window,
        OutputKind::Http(_)
        | OutputKind::Stdout(_)
        | OutputKind::Lumberjack(_)
        | OutputKind::Relp(_) => Duration::ZERO,
        #[cfg(feature = "kafka")]
        OutputKind::Kafka(_) => Duration::ZERO,
    };
    LAG_MAX + waits
}

/// One output's task.
async fn deliver(
    mut prepared: Prepared,
    cursor: Cursor,
    mut orders: Orders,
    inbox: Arc<Inbox>,
) -> Result<Ended, String> {
    let mut begin = HandOver { cursor, claims: Vec::new(), seen: None };
    loop {
        let Some(left) = prepared.run(begin, orders.clone()).await? else {
            return Ok(Ended::Stopped);
        };
        match inbox.take() {
            Some(Next::Replace(next, retire)) => {
                (prepared, orders.retire, begin) = (*next, retire, left);
            }
            // Without a word it was not retired.
            Some(Next::Leave) | None => {
                left.cursor.leave();
                return Ok(Ended::Left);
            }
        }
    }
}
