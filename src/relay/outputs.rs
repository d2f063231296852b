//! The outputs of a running relay. Each has a task, which outlives changes of the output's
//! settings.
//!
//! A changed output is not stopped and started. Its task learns the new settings, lets the events
//! on the wire become final (for ten seconds at most), and goes on from its cursor with the new
//! settings. Nobody waits for this.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::error::EndReason;
use super::error::OutputEnded;
use super::error::Refused;
use crate::admin;
use crate::config;
use crate::delivery::DeadLetters;
use crate::delivery::Files;
use crate::delivery::HandOver;
use crate::delivery::Orders;
use crate::delivery::Prepared;
use crate::delivery::RunError;
use crate::delivery::Status;
use crate::output;
use crate::queue;
use crate::queue::Cursor;
use crate::queue::Queue;
use crate::status::thresholds;
use crate::telemetry::Telemetry;

/// The outputs of the relay, and their tasks. [`super::Parts`] owns them.
///
/// A slot is an output of the config in use. The task of the output runs one delivery (the loop
/// that sends events) after another. When a reload changes the output, the old delivery gives the
/// next one its cursor (place in the queue) and its claims (ranges of events that were taken and
/// are not settled yet). A removed output loses its slot at once. Its task ends later, after some
/// seconds if its consumer hangs. Until then no new output can join the queue under the same name.
///
/// A reload has three steps. [`Outputs::plan`] compares the config with the slots,
/// [`Outputs::join`] gives each new output a cursor, and [`Outputs::commit`] puts the plan in
/// force. Until the commit nothing has changed; if a plan is dropped, the cursors of its new
/// outputs leave the queue again.
///
/// A task that ends without being told to is a failure: [`Outputs::ended`] returns the error, and
/// the relay ends. The queue's drain does not wait for an output whose task has failed.
pub(super) struct Outputs {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    dead_letters: DeadLetters,
    slots: Vec<Slot>,
    tasks: JoinSet<Result<Ended, RunError>>,
    /// The name of the output that each task serves. The key is the id of the task.
    names: HashMap<tokio::task::Id, String>,
    /// The orders to all outputs. Two orders exist: the drain (the orderly end) has begun, and the
    /// outputs must end. The checkpoints of the evidence are beside them.
    orders: Orders,
    /// The first failure of an output's task that [`Outputs::ended`] or [`Outputs::stop`] must
    /// still return; `None`: there is no such failure.
    failed: Option<OutputEnded>,
}

/// An output of the config in use.
struct Slot {
    config: config::Output,
    files: Option<Arc<dyn Files>>,
    status: Arc<Status>,
    inbox: Arc<Inbox>,
}

/// The reason why an output's task has ended.
enum Ended {
    /// The task was told to end, at the end of the process.
    Stopped,
    /// A reload has removed the output. The events that it had not delivered were counted as lost.
    Left,
}

/// A message to an output's task. The message says what the task does after its present delivery
/// (the loop that sends events) has ended.
enum Next {
    /// The output has new settings: the task next runs this new delivery (the loop that sends
    /// events). Cancelling the token ends the new delivery.
    Replace(Box<Prepared>, CancellationToken),
    /// A reload has removed the output: the task ends.
    Leave,
}

/// Holds the next message to an output's task. A later message replaces a message that the task has
/// not taken yet.
struct Inbox {
    state: Mutex<InboxState>,
}

struct InboxState {
    next: Option<Next>,
    /// Cancelling this token ends the output's newest delivery (the loop that sends events). This
    /// is the new delivery in `next` if there is one, otherwise the delivery that runs.
    retire: CancellationToken,
}

impl Inbox {
    fn new(retire: CancellationToken) -> Self {
        Self { state: Mutex::new(InboxState { next: None, retire }) }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the task to end its delivery (the loop that sends events), and then to run the
    /// delivery `prepared`.
    fn replace(&self, prepared: Prepared) {
        let retire = CancellationToken::new();
        let mut state = self.lock();
        state.next = Some(Next::Replace(Box::new(prepared), retire.clone()));
        std::mem::replace(&mut state.retire, retire).cancel();
    }

    /// Tells the task to end, because the output was removed.
    fn leave(&self) {
        let mut state = self.lock();
        state.next = Some(Next::Leave);
        state.retire.cancel();
    }

    /// Removes and returns the message; `None` if there is none.
    fn take(&self) -> Option<Next> {
        self.lock().next.take()
    }
}

/// The plan for one output of a config that is about to be applied.
pub(super) struct Planned {
    config: config::Output,
    files: Option<Arc<dyn Files>>,
    step: Step,
}

/// The change that a plan makes to one output.
enum Step {
    /// The output with this index in the list of outputs in use keeps its delivery (the loop that
    /// sends events). Only the setting `required` of the output may change.
    Keep(usize),
    /// The output with this index in the list of outputs in use gets new settings.
    Replace(usize, Prepared),
    /// The output is new. The second value holds the output's cursor (place in the queue); `None`
    /// until the output has joined the queue.
    Add(Prepared, Option<Place>),
}

/// The cursor (place in the queue) of a new output. The variant says how the output got the cursor.
enum Place {
    /// The cursor was opened at the start of the process. With a queue on disk, an earlier process
    /// may have stored it.
    Opened(Cursor),
    /// The cursor was made by a reload.
    Joined(Joined),
}

impl Place {
    /// Returns the cursor. From now on, the cursor stays in the queue even if a reload fails.
    /// `None` if the cursor was taken out before.
    fn keep(self) -> Option<Cursor> {
        match self {
            Self::Opened(cursor) => Some(cursor),
            Self::Joined(mut joined) => joined.0.take(),
        }
    }
}

/// The cursor (place in the queue) that a reload has made for a new output. If the reload fails,
/// this value is dropped with the cursor inside, and the output leaves the queue as if it had never
/// joined. Without this removal, the queue would keep events for an output that does not exist. The
/// value is `None` after the cursor was taken out; a drop of this value then changes nothing.
struct Joined(Option<Cursor>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(cursor) = self.0.take() {
            cursor.leave_uncounted();
        }
    }
}

/// The name of an output, and the files that the output reads.
pub(super) type NamedFiles = (String, Arc<dyn Files>);

impl Planned {
    /// Returns the output's name and the files that the output reads; `None` if it reads no files.
    pub(super) fn files(&self) -> Option<NamedFiles> {
        let files = self.files.clone()?;
        Some((self.config.name.clone(), files))
    }

    /// Returns the settings with which the output joins the queue; `None` if the output is not new,
    /// or if it has joined already.
    pub(super) fn joins(&self) -> Option<queue::Output> {
        match &self.step {
            Step::Add(prepared, None) => Some(prepared.in_queue()),
            Step::Add(_, Some(_)) | Step::Keep(_) | Step::Replace(..) => None,
        }
    }

    /// Gives a new output its cursor (place in the queue), which was opened at the start of the
    /// process.
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

/// Makes the plan for the outputs of the first config, which are all new.
pub(super) fn plan_start(
    configs: &[config::Output],
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Vec<Planned> {
    configs.iter().map(|config| Planned::add(config, telemetry, dead_letters)).collect()
}

impl Outputs {
    /// Makes the outputs of a relay, of which none runs yet. `orders` has the checkpoints of the
    /// evidence, if the relay records it, and the taps.
    pub(super) fn new(
        telemetry: Arc<Telemetry>,
        queue: Queue,
        dead_letters: DeadLetters,
        orders: Orders,
    ) -> Self {
        Self {
            telemetry,
            queue,
            dead_letters,
            slots: Vec::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            orders,
            failed: None,
        }
    }

    /// Compares a config with the outputs in use. Returns the plan for each output of the config,
    /// and changes nothing.
    pub(super) fn plan(&self, configs: &[config::Output]) -> Vec<Planned> {
        let plan = |config: &config::Output| {
            let index = self.slots.iter().position(|slot| slot.config.name == config.name);
            let Some((index, slot)) = index.and_then(|at| Some((at, self.slots.get(at)?))) else {
                return Planned::add(config, &self.telemetry, &self.dead_letters);
            };
            // Only the queue needs to know whether an output is required, so a change of that key
            // keeps the slot.
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

    /// Gives each new output a cursor (place in the queue). Waits for an earlier output of the same
    /// name that has not ended yet. `Err` if the queue refuses an output. If the plan is dropped
    /// before it is committed, the new cursors leave the queue again.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, `planned` holds the cursors that were made before. No failure of a
    /// task is lost.
    pub(super) async fn join(&mut self, planned: &mut [Planned]) -> Result<(), Refused> {
        for new in planned.iter_mut() {
            let Some(queue::Output { name, required, metrics, .. }) = new.joins() else { continue };
            let leaves = |outputs: &Self| outputs.names.values().any(|leaving| *leaving == name);
            if leaves(self) {
                tracing::info!(
                    output = name,
                    "the reload waits until the earlier output of this name has left"
                );
            }
            // The task of a removed output takes some seconds to end if its consumer hangs.
            while leaves(self) {
                self.reap().await;
            }
            match self.queue.join(&name, required, metrics).await {
                Ok(cursor) => new.set_place(Place::Joined(Joined(Some(cursor)))),
                Err(source) => return Err(Refused::Join { name, source }),
            }
        }
        Ok(())
    }

    /// Puts a plan in force: starts the new outputs, gives changed outputs their new settings, and
    /// tells removed outputs to end. Every new output must have its cursor already.
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
                // An output without a cursor has nothing to deliver.
                Step::Add(prepared, place) => {
                    let cursor = place.and_then(Place::keep);
                    cursor.map(|cursor| self.start(config, files, prepared, cursor))
                }
            };
            self.slots.extend(slot);
        }
        // Outputs that become required are marked first, so that there is a required output at any
        // time.
        self.slots.iter().filter(|slot| slot.config.required).for_each(|slot| self.require(slot));
        self.slots.iter().filter(|slot| !slot.config.required).for_each(|slot| self.require(slot));
        for left in before.into_iter().flatten() {
            tracing::info!(output = left.config.name, "output removed");
            left.inbox.leave();
        }
    }

    /// Tells the queue and the metrics whether the output is required.
    fn require(&self, slot: &Slot) {
        self.queue.require(&slot.config.name, slot.config.required);
        let lag_max = lag_max(&slot.config);
        self.telemetry.output_settings(&slot.config.name, slot.config.required, lag_max);
    }

    /// Starts the task of a new output, and returns the output's slot.
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

    /// Waits until the task of an output has ended although nobody told it to end, and returns the
    /// error. From then on, the drain of the queue does not wait for this output. If no task runs,
    /// this function waits for ever.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no error is lost: the next call returns it.
    pub(super) async fn ended(&mut self) -> OutputEnded {
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

    /// Waits until the task of any output has ended; returns at once if there is no task. If nobody
    /// told the task to end, its output has failed. The queue then no longer waits for this output,
    /// and the error is stored in `failed`. An earlier error in `failed` is not replaced.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no task and no error is lost: the next call goes on.
    async fn reap(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return };
        let (id, reason) = match ended {
            Ok((id, Ok(Ended::Left))) => {
                self.names.remove(&id);
                return;
            }
            Ok((id, Ok(Ended::Stopped))) if self.orders.stop.is_cancelled() => {
                self.names.remove(&id);
                return;
            }
            Ok((id, Ok(Ended::Stopped))) => (id, EndReason::Returned),
            Ok((id, Err(error))) => (id, error.into()),
            Err(panic) => (panic.id(), EndReason::Panicked(panic)),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        self.queue.give_up(&name);
        self.failed.get_or_insert(OutputEnded { name, reason });
    }

    /// Returns the outputs as `/status` shows them.
    pub(super) fn show(&self) -> Vec<admin::Output> {
        let show = |slot: &Slot| admin::Output {
            name: slot.config.name.clone(),
            kind: slot.config.kind.name(),
            required: slot.config.required,
            lag_max: lag_max(&slot.config),
            shape: slot.config.filter.form.shape.name(),
            status: Arc::clone(&slot.status),
        };
        self.slots.iter().map(show).collect()
    }

    /// Tells all outputs that the drain (the orderly end of the relay) has begun, so that they make
    /// only short pauses.
    pub(super) fn hurry(&self) {
        self.orders.draining.cancel();
    }

    /// Ends all outputs and waits until their tasks have ended. If a task has failed, returns the
    /// error of the first such task. An error that [`Outputs::ended`] has returned already does not
    /// count. `None` if there is no such error.
    pub(super) async fn stop(&mut self) -> Option<OutputEnded> {
        self.orders.stop.cancel();
        while !self.tasks.is_empty() {
            self.reap().await;
        }
        self.failed.take()
    }
}

/// Returns the lag (age of the oldest undelivered event) above which the output is late.
fn lag_max(config: &config::Output) -> Duration {
    thresholds::lag_max(config.kind.final_after().map(|(_, waits)| waits))
}

/// Runs an output's task: one delivery after another, until the output is stopped or removed.
/// Returns the reason for the end; `Err` if the output cannot go on.
async fn deliver(
    mut prepared: Prepared,
    cursor: Cursor,
    mut orders: Orders,
    inbox: Arc<Inbox>,
) -> Result<Ended, RunError> {
    let mut begin = HandOver::begin(cursor);
    loop {
        let Some(left) = prepared.run(begin, orders.clone()).await? else {
            return Ok(Ended::Stopped);
        };
        match inbox.take() {
            Some(Next::Replace(next, retire)) => {
                (prepared, orders.retire, begin) = (*next, retire, left);
            }
            // A delivery retires only after a message in the inbox, so `None` does not occur.
            Some(Next::Leave) | None => {
                left.cursor.leave();
                return Ok(Ended::Left);
            }
        }
    }
}
