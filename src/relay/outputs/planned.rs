//! What a config that is about to be applied means for each output.

use std::sync::Arc;

use crate::config;
use crate::delivery::DeadLetters;
use crate::delivery::Files;
use crate::delivery::Prepared;
use crate::output;
use crate::queue;
use crate::queue::Cursor;
use crate::telemetry::Telemetry;

/// The plan for one output.
pub(in crate::relay) struct Planned {
    pub(super) config: config::Output,
    pub(super) files: Option<Arc<dyn Files>>,
    pub(super) step: Step,
}

/// The change that a plan makes to one output. An index is that of the output's slot.
pub(super) enum Step {
    /// The output keeps its delivery. Only its setting `required` may change.
    Keep(usize),
    /// The output gets new settings.
    Replace(usize, Prepared),
    /// The output is new. `None` until it has its cursor.
    Add(Prepared, Option<Place>),
}

/// The cursor of a new output, and where it is from.
pub(super) enum Place {
    /// The cursor was opened at the start of the process. With a queue on disk, an earlier process
    /// may have stored it.
    Opened(Cursor),
    /// The cursor was made by a reload.
    Joined(Joined),
}

impl Place {
    /// Returns the cursor. From now on, the cursor stays in the queue even if a reload fails.
    /// `None` if the cursor was taken out before.
    pub(super) fn keep(self) -> Option<Cursor> {
        match self {
            Self::Opened(cursor) => Some(cursor),
            Self::Joined(mut joined) => joined.0.take(),
        }
    }
}

/// The cursor that a reload has made for a new output; `None` after it was taken out. If the reload
/// fails, this value is dropped with the cursor inside, and the output leaves the queue as if it
/// had never joined. Otherwise the queue would keep events for an output that does not exist.
pub(super) struct Joined(pub(super) Option<Cursor>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(cursor) = self.0.take() {
            cursor.leave_uncounted();
        }
    }
}

/// The name of an output, and the files that the output reads.
pub(in crate::relay) type NamedFiles = (String, Arc<dyn Files>);

/// Returns the files of each output that reads files.
pub(in crate::relay) fn files_of(planned: &[Planned]) -> Vec<NamedFiles> {
    let named = |output: &Planned| Some((output.config.name.clone(), output.files.clone()?));
    planned.iter().filter_map(named).collect()
}

impl Planned {
    /// Returns the settings with which the output joins the queue; `None` if the output is not new,
    /// or if it has joined already.
    pub(in crate::relay) fn joins(&self) -> Option<queue::Output> {
        match &self.step {
            Step::Add(prepared, None) => Some(prepared.in_queue()),
            Step::Add(_, Some(_)) | Step::Keep(_) | Step::Replace(..) => None,
        }
    }

    /// Gives a new output the cursor that was opened at the start of the process.
    pub(in crate::relay) fn opened(&mut self, cursor: Cursor) {
        self.set_place(Place::Opened(cursor));
    }

    pub(super) fn set_place(&mut self, new: Place) {
        if let Step::Add(_, place) = &mut self.step {
            *place = Some(new);
        }
    }

    /// Plans an output with this config. `step` makes the step of the prepared output.
    pub(super) fn new(
        config: &config::Output,
        telemetry: &Arc<Telemetry>,
        dead_letters: &DeadLetters,
        step: impl FnOnce(Prepared) -> Step,
    ) -> Self {
        let prepared = output::prepare(config, telemetry, dead_letters);
        let files = prepared.files();
        Self { config: config.clone(), files, step: step(prepared) }
    }
}
