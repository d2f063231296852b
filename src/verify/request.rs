//! The request for a check.

use std::path::PathBuf;
use std::time::Duration;

use crate::tlog::key::VerifierKey;

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
