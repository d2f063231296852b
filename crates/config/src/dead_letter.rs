//! `[dead_letter]`: the files for events that an output has given up.

use std::path::PathBuf;

use super::delivery::Rejected;
use super::{output, queue};
use config_table::problem::Severity;
use config_table::reader::Context;
use config_table::table::{Table, optional};
use config_table::values::MIB;

/// The minimum of `dead_letter.max_bytes`. A single event can have several hundred KiB, and an
/// event longer than `max_bytes` cannot be kept at all.
const DEAD_LETTER_MIN: u64 = MIB;

/// The settings of the section `[dead_letter]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The configured directory. If it is `None`, [`super::Config::dead_letter_directory`] says
    /// which directory is used.
    pub directory: Option<PathBuf>,
    /// The largest size of all dead-letter files together, in bytes.
    pub max_bytes: u64,
}

pub(crate) fn read(t: &mut Table<'_, '_>) -> DeadLetter {
    DeadLetter {
        directory: t.directory(optional(
            "directory",
            "path",
            "dead-letter/ in queue.directory",
            "directory for rejected events, as JSON lines; created with mode 0700 if missing. If \
             neither this nor `queue.directory` is set, rejected events are dropped and counted as \
             lost",
        )),
        max_bytes: t.size(
            "max_bytes",
            64 * MIB,
            DEAD_LETTER_MIN..,
            "maximum total size of dead-letter files; those of a flood, and then the oldest, are \
             deleted first, and their events counted",
        ),
    }
}

/// Warns if an output sets `rejected.action = "dead_letter"` without a directory: neither
/// `dead_letter.directory` nor `queue.directory` is set, so that rejected events are dropped.
pub(super) fn warn_without_directory(
    cx: &Context<'_>,
    dead_letter: &DeadLetter,
    outputs: &[output::Draft],
) {
    let is_set = cx.is_set("dead_letter.directory") || dead_letter.directory.is_some();
    if queue::is_durable(cx) || is_set {
        return;
    }
    let action = |draft: &output::Draft| format!("{}.rejected.action", draft.path);
    let asks = |draft: &&output::Draft| {
        cx.is_set(&action(draft))
            && draft.output.as_ref().is_some_and(|it| it.rejected == Rejected::DeadLetter)
    };
    if let Some(draft) = outputs.iter().find(asks) {
        let path = action(draft);
        let message = "needs dead_letter.directory or queue.directory: if neither is set, rejected \
                       events are dropped and counted as lost";
        cx.problem_at(&path, &path, message, Severity::Warning);
    }
}
