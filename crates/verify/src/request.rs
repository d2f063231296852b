//! The request for a check.

use std::path::PathBuf;
use std::time::Duration;

use evidence_log::tlog::checkpoint::{Checkpoint, Signed};
use evidence_log::tlog::key::VerifierKey;
use evidence_log::tlog::note::Signed as Signature;

/// The keys, checkpoints and lines of a check.
#[derive(Debug, Default)]
pub struct Request {
    /// The keys that may have signed the log.
    pub keys: Vec<VerifierKey>,
    /// The witnesses that must have signed its checkpoint.
    pub witnesses: Vec<VerifierKey>,
    /// Checkpoints that somebody has kept: a name for each, and its note.
    pub checkpoints: Vec<(String, Vec<u8>)>,
    /// The outputs whose consumer has stored the lines: several if an output was renamed.
    pub outputs: Vec<String>,
    /// The files with the stored lines. If there are none, lines are not compared.
    pub events: Vec<PathBuf>,
    /// The time from which on events are counted, in milliseconds since 1970.
    pub since: Option<u64>,
    /// The time up to which events are counted.
    pub until: Option<u64>,
    /// The lines of the last part of an export may be absent, because the consumer had not written
    /// them yet: those that left within this time before the last line that is there.
    pub settle: Duration,
    /// `true`: events that are lost according to the log are not faults.
    pub allows_lost: bool,
    /// `true`: over a directory in use, the check waits for a checkpoint that covers the lines.
    pub waits: bool,
    /// The newest checkpoints that witnesses have: the URL of each witness, and its note.
    pub witnessed: Vec<(String, Vec<u8>)>,
    /// The greatest age that the newest cosignature of a witness may have.
    pub witness_max_age: Option<Duration>,
}

impl Request {
    /// Checks that one of the keys has signed a checkpoint, which the text about it calls `name`.
    /// Returns what is wrong.
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

    /// Returns `true` if the request asks about the time `at`, or about any part of the time from
    /// `at` to `to`.
    pub(super) fn asks_about(&self, at: u64, to: u64) -> bool {
        self.since.is_none_or(|since| since <= to) && self.until.is_none_or(|until| at <= until)
    }

    /// Returns `true` if the request asks about this output. A request without names asks about
    /// all.
    pub(super) fn asks_of(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|asked| asked == output)
    }
}
