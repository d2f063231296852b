//! `[evidence]`: the log that proves which events were received.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::queue;
use config_table::problem::Content;
use config_table::reader::Context;
use config_table::table::{Table, optional, required};
use config_table::values;
use config_table::values::{MIB, secs};
use evidence_log::tlog::key::{Kind, VerifierKey, check_name};

/// The settings of the section `[evidence]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The file with the private signing key.
    pub key_file: PathBuf,
    /// The file with the next signing key, which `key_file` will name after a later restart. While
    /// `next_key_file` is set, both keys sign each checkpoint.
    pub next_key_file: Option<PathBuf>,
    /// The name of the log. No other log may have it.
    pub origin: String,
    /// The time between two checkpoints while the log grows.
    pub checkpoint_interval: Duration,
    /// The time without a new entry after which the relay adds one, to show that it still runs.
    pub heartbeat_interval: Duration,
    /// The size in bytes above which the oldest line hashes are deleted.
    pub max_bytes: u64,
    /// The witnesses that are asked to cosign the checkpoints, each with its own name.
    pub witnesses: Vec<Witness>,
}

/// A witness (C2SP `tlog-witness`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The submission prefix: `http://` or `https://`.
    pub url: String,
    /// The key that verifies the cosignatures of this witness.
    pub key: VerifierKey,
}

/// The maximum number of witnesses, far below the 100 signatures that a note may have.
const WITNESSES_MAX: usize = 16;

/// Returns `None` if a required key (here or in a witness) is missing or wrong.
pub(crate) fn read(t: &mut Table<'_, '_>) -> Option<Evidence> {
    let meaning = "file with the private signing key, as written by `evidence keygen`";
    let key_file = t.file(required("key_file", "path", meaning), Content::SigningKey);
    let meaning = "file with the signing key that `key_file` will name next; while this is set, \
                   both keys sign";
    let key = optional("next_key_file", "path", "none", meaning);
    let next_key_file = t.file(key, Content::SigningKey);
    let meaning = "name of the log; give each relay and each queue directory its own";
    let origin = t.word(required("origin", "string", meaning), |text| {
        check_name(text).map(|()| text.to_owned()).map_err(|_| {
            "is not an origin, allowed: 1 to 255 bytes without whitespace, control characters or +"
                .to_owned()
        })
    });
    let checkpoint_interval = t.time(
        "checkpoint_interval",
        secs(10),
        secs(1)..,
        "interval between checkpoints while the log grows",
    );
    let heartbeat_interval = t.time(
        "heartbeat_interval",
        secs(3600),
        secs(1)..,
        "maximum interval between checkpoints while the log does not grow",
    );
    let max_bytes = t.size(
        "max_bytes",
        1024 * MIB,
        MIB..,
        "size above which the oldest line hashes are deleted; their files may grow to twice this \
         size",
    );
    Some(Evidence {
        witnesses: witnesses(t)?,
        key_file: key_file?,
        next_key_file,
        origin: origin?,
        checkpoint_interval,
        heartbeat_interval,
        max_bytes,
    })
}

fn witnesses(t: &mut Table<'_, '_>) -> Option<Vec<Witness>> {
    let witnesses = t.found_tables(optional(
        "witness",
        "table, or array of tables",
        "none",
        "servers that the relay asks to cosign each checkpoint, so that a rollback of the log is \
         noticed",
    ));
    let witnesses = witnesses.map(|tables| t.read_tables(tables, witness)).unwrap_or_default();
    let witnesses = witnesses.into_iter().collect::<Option<Vec<_>>>()?;
    if witnesses.len() > WITNESSES_MAX {
        t.cx.error(&t.path_of("witness"), "has more than 16 witnesses, allowed: at most 16");
    }
    let mut names = BTreeSet::new();
    for (index, Witness { key, .. }) in witnesses.iter().enumerate() {
        if !names.insert(key.name()) {
            let spot = format!("{}[{index}].key", t.path_of("witness"));
            t.cx.error(&spot, "has the same name as another witness: remove one of them");
        }
    }
    Some(witnesses)
}

fn witness(t: &mut Table<'_, '_>) -> Option<Witness> {
    let meaning = "base URL for add-checkpoint requests; its certificate must be from a public CA";
    let url =
        t.word(required("url", "URL", meaning), |text| values::url(text).map(|_| text.to_owned()));
    let meaning = "verifier key for the witness's cosignatures (Ed25519, type 0x04)";
    let key = t.word(required("key", "string", meaning), |text| {
        let key: VerifierKey = text.parse().map_err(|error| {
            format!("is not a verifier key ({error}), allowed: the witness's NAME+ID+BASE64")
        })?;
        match key.kind() {
            Kind::Cosignature => Ok(key),
            Kind::Note => Err("is the key of a log, allowed: the key for the witness's \
                               cosignatures (type 0x04)"
                .to_owned()),
        }
    });
    Some(Witness { url: url?, key: key? })
}

/// Reports a section `[evidence]` (`is_set`) without a queue on disk.
pub(super) fn contradictions(cx: &Context<'_>, is_set: bool) {
    if is_set && !queue::is_durable(cx) {
        cx.error(
            "evidence",
            "needs queue.directory: events that are only in memory cannot be proven",
        );
    }
}
