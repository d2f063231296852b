//! Limits for the contents of a log, so that a hostile log takes a bounded amount of memory.

use evidence_log::entry::{Entry, Started};

/// The maximum number of bytes of a name or a reason in an entry. The relay writes fewer than 100.
const NAME_BYTES_MAX: usize = 256;

const OUTPUTS_MAX: usize = 1000;

/// The maximum number of facts of a log in memory: gaps between positions, names of outputs, and
/// notes.
pub(super) const FACTS_MAX: usize = 1_000_000;

/// Returns what is wrong with an entry that no relay writes. `None` for an acceptable entry.
pub(crate) fn excess(entry: &Entry) -> Option<&'static str> {
    let is_long = |text: &String| text.len() > NAME_BYTES_MAX;
    let (long, outputs) = match entry {
        Entry::Delivered(entry) => (is_long(&entry.output), 0),
        Entry::Lost { output, reason, .. } => (is_long(output) || is_long(reason), 0),
        Entry::Start(Started { running, .. }) | Entry::Reload(running) | Entry::Stop(running) => {
            let long = is_long(&running.version) || is_long(&running.config_sha256);
            (long || running.outputs.keys().any(is_long), running.outputs.len())
        }
        Entry::Key { verifier_key, .. } => (verifier_key.len() > 4 * NAME_BYTES_MAX, 0),
        Entry::Accepted { .. }
        | Entry::Heartbeat { .. }
        | Entry::Pruned { .. }
        | Entry::Alarm { .. } => (false, 0),
    };
    match (long, outputs > OUTPUTS_MAX) {
        (true, _) => Some("has a name of more than 256 bytes"),
        (_, true) => Some("lists more than 1,000 outputs"),
        (false, false) => None,
    }
}
