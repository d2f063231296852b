//! The request for a check.

use std::path::PathBuf;
use std::time::Duration;

use evidence_log::tlog::checkpoint::{Checkpoint, Signed};
use evidence_log::tlog::key::VerifierKey;
use evidence_log::tlog::note::Signed as Signature;

/// The keys, checkpoints and stored lines of a check.
#[derive(Debug, Default)]
pub struct Request {
    /// The keys that may have signed the log.
    pub keys: Vec<VerifierKey>,
    /// The witnesses that must have cosigned the log's checkpoint.
    pub witnesses: Vec<VerifierKey>,
    /// The checkpoints that somebody has kept, each with a name and its note.
    pub checkpoints: Vec<(String, Vec<u8>)>,
    /// The outputs whose consumer has stored the lines: several if an output was renamed.
    pub outputs: Vec<String>,
    /// The files with the stored lines. Without files, lines are not compared.
    pub events: Vec<PathBuf>,
    /// The beginning of the requested time, in milliseconds since 1970.
    pub since: Option<u64>,
    /// The end of the requested time, in milliseconds since 1970.
    pub until: Option<u64>,
    /// The time before the last stored line in which sent lines may be absent from an export,
    /// because the consumer had not written them yet.
    pub settle: Duration,
    /// `true`: events that are lost according to the log are not faults.
    pub allows_lost: bool,
    /// `true`: if a relay is using the directory, the check waits until the signed entries cover
    /// the stored lines.
    pub waits: bool,
    /// The newest checkpoint of each witness: the URL of the witness, and the note.
    pub witnessed: Vec<(String, Vec<u8>)>,
    /// The maximum age of the newest cosignature of a witness.
    pub witness_max_age: Option<Duration>,
}

impl Request {
    /// Checks that a key with the name of the log has signed a checkpoint, and that no signature of
    /// a key is forged. Errors call the checkpoint `name`.
    pub(super) fn signed_by_key(&self, name: &str, signed: &Signed) -> Result<(), String> {
        let Signed { checkpoint: Checkpoint { origin, .. }, note } = signed;
        let has = |found| self.keys.iter().filter(move |key| note.check(key) == found);
        if has(Signature::Forged).next().is_some() {
            return Err(format!("{name} of {origin} has a forged signature of the key"));
        }
        match has(Signature::Valid(None)).any(|key| key.name() == origin) {
            true => Ok(()),
            false => Err(format!("{name} of {origin} is not signed by the key")),
        }
    }

    /// Returns `true` if the time from `at` to `to` overlaps with the requested time.
    pub(super) fn asks_about(&self, at: u64, to: u64) -> bool {
        self.since.is_none_or(|since| since <= to) && self.until.is_none_or(|until| at <= until)
    }

    /// Returns `true` if this output is requested. If the request names no output, all are
    /// requested.
    pub(super) fn asks_of(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|asked| asked == output)
    }
}
