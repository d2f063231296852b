//! The change that a new config makes to each output, before the config is applied.

use std::sync::Arc;

use delivery::{Files, Prepared};
use queue::Cursor;

pub(crate) struct Planned {
    pub(super) config: config::Output,
    pub(super) files: Option<Arc<dyn Files>>,
    pub(super) step: Step,
}

/// The change that a plan makes to one output. The number in a variant is the index of the output's
/// slot.
pub(super) enum Step {
    /// The output keeps its delivery. Only its setting `required` may change.
    Keep(usize),
    Replace(usize, Prepared),
    /// The output is new. The second value is `None` until the output has its cursor.
    Add(Prepared, Option<Place>),
}

/// The cursor of a new output, until [`Place::keep`] takes it. If a reload has made the cursor and
/// fails, this value is dropped with the cursor inside, and the output leaves the queue as if it
/// had never joined. Otherwise the queue would keep events for an output that does not exist.
pub(super) struct Place {
    cursor: Option<Cursor>,
    /// `true`: a reload has made the cursor. `false`: the start of the process has opened the
    /// cursor, which an earlier process may have stored in a queue on disk.
    has_joined: bool,
}

impl Place {
    /// Returns the cursor. From now on, the cursor stays in the queue even if a reload fails.
    pub(super) fn keep(mut self) -> Option<Cursor> {
        self.cursor.take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(cursor) = self.cursor.take().filter(|_| self.has_joined) {
            cursor.leave_uncounted();
        }
    }
}

pub(crate) type NamedFiles = (String, Arc<dyn Files>);

pub(crate) fn files_of(planned: &[Planned]) -> Vec<NamedFiles> {
    let named = |output: &Planned| Some((output.config.name.clone(), output.files.clone()?));
    planned.iter().filter_map(named).collect()
}

impl Planned {
    /// Returns the description with which a new output joins the queue; `None` if the output is not
    /// new, or has a cursor already.
    pub(crate) fn joins(&self) -> Option<queue::Output> {
        match &self.step {
            Step::Add(prepared, None) => Some(prepared.in_queue()),
            Step::Add(_, Some(_)) | Step::Keep(_) | Step::Replace(..) => None,
        }
    }

    /// Gives a new output its cursor. `has_joined` is `true` if a reload has made the cursor.
    pub(crate) fn place(&mut self, cursor: Cursor, has_joined: bool) {
        if let Step::Add(_, place) = &mut self.step {
            *place = Some(Place { cursor: Some(cursor), has_joined });
        }
    }
}
