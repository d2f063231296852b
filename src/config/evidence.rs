//! `[evidence]`: the log that proves which events came in.

use std::path::PathBuf;
use std::time::Duration;

use super::problem::Content;
use super::queue;
use super::reader::Context;
use super::table::Table;
use super::table::optional;
use super::table::required;
use super::values::MIB;
use super::values::secs;
use crate::tlog::key::check_name;

/// The settings of the section `[evidence]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The file with the private signing key.
    pub key_file: PathBuf,
    /// The file with the private signing key that takes over at the next start without this one.
    /// Until then both sign. `None`: there is none.
    pub next_key_file: Option<PathBuf>,
    /// The name of the log, which no other log has.
    pub origin: String,
    /// The time between two checkpoints while the log grows.
    pub checkpoint_interval: Duration,
    /// The longest time without an entry.
    pub heartbeat_interval: Duration,
    /// The most bytes of the line hashes.
    pub max_bytes: u64,
}

/// Reads the section `[evidence]`. Returns `None` if a value that has no default is wrong; the
/// problem is recorded.
pub(super) fn read(t: &mut Table<'_, '_>) -> Option<Evidence> {
    let meaning = "the private signing key, as evidence keygen writes it";
    let key_file = t.file(required("key_file", "path", meaning), Content::SigningKey, true);
    let meaning = "the key that key_file will name next; until then both keys sign";
    let key = optional("next_key_file", "path", "one key", meaning);
    let next_key_file = t.file(key, Content::SigningKey, true);
    let meaning = "the log's name: one relay, one directory, one origin";
    let origin = t.word(required("origin", "string", meaning), |text| {
        check_name(text).map(|()| text.to_owned()).map_err(|_| {
            "is not an origin, allowed: 1 to 255 bytes without blanks, control characters and +"
                .to_owned()
        })
    });
    let checkpoint_interval = t.time(
        "checkpoint_interval",
        secs(10),
        secs(1)..,
        "a checkpoint is signed this often while the log grows",
    );
    let heartbeat_interval = t.time(
        "heartbeat_interval",
        secs(3600),
        secs(1)..,
        "and at least this often when it does not grow",
    );
    let max_bytes = t.size(
        "max_bytes",
        1024 * MIB,
        MIB..,
        "of the hashes of lines, kept within twice this size; the oldest go first",
    );
    Some(Evidence {
        key_file: key_file?,
        next_key_file,
        origin: origin?,
        checkpoint_interval,
        heartbeat_interval,
        max_bytes,
    })
}

/// Reports that the section needs a queue in files, if it is there and the queue is in memory.
pub(super) fn contradictions(cx: &Context<'_>, is_set: bool) {
    if is_set && !queue::is_durable(cx) {
        cx.error("evidence", "needs queue.directory: what is in memory only can't be proven");
    }
}
