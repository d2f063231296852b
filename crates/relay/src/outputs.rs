//! The outputs of a running relay. Each output has a task, which keeps running when a reload
//! changes the output.
//!
//! When the settings of an output change, the old delivery waits for the responses to the events on
//! the wire, for ten seconds at most. Then the task runs the next delivery, which continues from
//! the same cursor with the new settings. The reload does not wait for this.
//!
//! `planned` has the changes that a config makes, and `task` runs the deliveries of one output.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::error::Refused;
use crate::admin;
use delivery::{DeadLetters, Files, Orders, Prepared, Status};
use queue::{Cursor, Queue};
use telemetry::Telemetry;
use telemetry::status::thresholds;

mod planned;
mod task;

pub(super) use planned::{NamedFiles, Planned, files_of};

use planned::{Place, Step};
use task::{Ended, Inbox, deliver};

/// The outputs of the relay, and their tasks. [`super::parts::Parts`] owns them.
///
/// A slot is an output of the config in use. When a reload changes the output, the old delivery
/// gives the next one its cursor and the claims that are not final. A reload that removes an output
/// removes the slot, and the task ends later: after some seconds if the consumer hangs. Until then
/// no new output can join the queue under the same name.
///
/// A reload has three steps. [`Outputs::plan`] compares the config with the slots,
/// [`Outputs::join`] gives each new output a cursor, and [`Outputs::commit`] puts the plan in
/// force. Before the commit, the new cursors are the only change, and they leave the queue again if
/// the plan is dropped.
///
/// A task that ends without being told to is a failure: [`Outputs::ended`] returns the error, and
/// the relay ends.
pub(crate) struct Outputs {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    dead_letters: DeadLetters,
    slots: Vec<Slot>,
    tasks: JoinSet<Result<Ended, String>>,
    /// The name of the output that each task serves.
    names: HashMap<tokio::task::Id, String>,
    /// The orders that all outputs share. Each output has its own token `retire`.
    orders: Orders,
    /// The first failure of an output's task that [`Outputs::ended`] or [`Outputs::stop`] must
    /// still return.
    failed: Option<String>,
}

struct Slot {
    config: config::Output,
    files: Option<Arc<dyn Files>>,
    status: Arc<Status>,
    inbox: Arc<Inbox>,
}

/// Makes the plan for the outputs of the first config, which are all new.
pub(super) fn plan_start(
    configs: &[config::Output],
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Vec<Planned> {
    plan(&[], configs, telemetry, dead_letters)
}

fn plan(
    slots: &[Slot],
    configs: &[config::Output],
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Vec<Planned> {
    let plan = |config: &config::Output| {
        let mut slots = slots.iter().enumerate();
        let found = slots.find(|(_, slot)| slot.config.name == config.name);
        // Only the queue needs to know whether an output is required, so the delivery stays if only
        // this key changes.
        if let Some((index, slot)) = found
            && slot.config == (config::Output { required: slot.config.required, ..config.clone() })
        {
            let files = slot.files.clone();
            return Planned { config: config.clone(), files, step: Step::Keep(index) };
        }
        let prepared = outputs::prepare(config, telemetry, dead_letters);
        let files = prepared.files();
        let step = match found {
            Some((index, _)) => Step::Replace(index, prepared),
            None => Step::Add(prepared, None),
        };
        Planned { config: config.clone(), files, step }
    };
    configs.iter().map(plan).collect()
}

impl Outputs {
    pub(crate) fn new(
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

    pub(crate) fn plan(&self, configs: &[config::Output]) -> Vec<Planned> {
        plan(&self.slots, configs, &self.telemetry, &self.dead_letters)
    }

    /// Gives each new output a cursor, after the end of any earlier output of the same name. `Err`
    /// if the queue refuses an output. If the plan is dropped before it is committed, the new
    /// cursors leave the queue again.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, `planned` holds the cursors that were made before. No failure of a
    /// task is lost.
    pub(crate) async fn join(&mut self, planned: &mut [Planned]) -> Result<(), Refused> {
        for new in planned.iter_mut() {
            let Some(queue::Output { name, required, metrics, .. }) = new.joins() else { continue };
            let leaves = |outputs: &Self| outputs.names.values().any(|leaving| *leaving == name);
            if leaves(self) {
                tracing::info!(
                    output = name,
                    "the reload waits until the removed output with the same name has stopped"
                );
            }
            // The task of a removed output takes some seconds to end if its consumer hangs.
            while leaves(self) {
                self.reap().await;
            }
            match self.queue.join(&name, required, metrics).await {
                Ok(cursor) => new.place(cursor, true),
                Err(error) => {
                    let text = format!("output {name} cannot join the queue: {error}");
                    return Err(Refused::Join(text));
                }
            }
        }
        Ok(())
    }

    /// Puts a plan in force: starts the new outputs, gives changed outputs their new settings, and
    /// tells removed outputs to end. Every new output must have its cursor already.
    pub(crate) fn commit(&mut self, planned: Vec<Planned>) {
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
    /// error. From then on, the drain of the queue does not wait for this output. If no task runs
    /// and there is no such error, this function never returns.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no error is lost: the next call returns it.
    pub(crate) async fn ended(&mut self) -> String {
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

    /// Waits until the task of any output has ended; returns immediately if there is no task. If
    /// nobody told the task to end, its output has failed. The queue then no longer waits for this
    /// output, and the error is stored in `failed`, unless an earlier error is there.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no task and no error is lost: the next call continues.
    async fn reap(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return };
        let (id, reason) = match ended {
            Ok((id, Ok(ended)))
                if matches!(ended, Ended::Left) || self.orders.stop.is_cancelled() =>
            {
                self.names.remove(&id);
                return;
            }
            // The delivery has returned although nobody had stopped it.
            Ok((id, Ok(Ended::Stopped | Ended::Left))) => (id, "has ended".to_owned()),
            Ok((id, Err(error))) => (id, error),
            Err(panic) => (panic.id(), format!("its task has panicked: {panic}")),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        self.queue.give_up(&name);
        self.failed.get_or_insert(format!("output {name}: {reason}"));
    }

    pub(crate) fn show(&self) -> Vec<admin::Output> {
        let show = |slot: &Slot| admin::Output {
            name: slot.config.name.clone(),
            kind: slot.config.kind.name(),
            required: slot.config.required,
            lag_max: lag_max(&slot.config),
            rate_limit: slot.config.rate_limit,
            shape: slot.config.filter.form.shape.name(),
            status: Arc::clone(&slot.status),
        };
        self.slots.iter().map(show).collect()
    }

    /// Tells all outputs that the drain has begun, so that they make only short pauses.
    pub(crate) fn hurry(&self) {
        self.orders.draining.cancel();
    }

    /// Ends all outputs and waits until their tasks have ended. Returns the first error of a task
    /// that [`Outputs::ended`] has not returned already.
    pub(crate) async fn stop(&mut self) -> Option<String> {
        self.orders.stop.cancel();
        while !self.tasks.is_empty() {
            self.reap().await;
        }
        self.failed.take()
    }
}

fn lag_max(config: &config::Output) -> Duration {
    thresholds::lag_max(config.kind.final_after.map(|(_, waits)| waits))
}
