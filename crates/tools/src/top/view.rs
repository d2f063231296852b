//! The newest responses of a relay. Nothing here makes text.

use std::time::Duration;

use base::words::escape::message;
use telemetry::status::verdict::State;
use telemetry::status::{Output, Status, verdict};

/// The newest state of a relay, and whether the relay responds.
pub struct View {
    /// The relay's base URL, for the first line.
    pub(super) url: String,
    pub(super) status: Option<Status>,
    /// The reason why the relay did not respond, and the time since its last response; `None` if no
    /// failure is to be shown.
    pub(super) failure: Option<(String, Duration)>,
    /// `true`: two states had different start times: another process has responded.
    pub(super) has_restarted: bool,
    /// The lines of the table of `--by`, which replaces the outputs.
    pub(super) volume: Option<Vec<String>>,
}

impl View {
    /// Makes a view without a response.
    pub fn new(url: &str) -> Self {
        let (status, failure, has_restarted, volume) = (None, None, false, None);
        Self { url: message(url), status, failure, has_restarted, volume }
    }

    /// Stores the lines of the table of `--by`.
    pub fn counted(&mut self, table: Vec<String>) {
        self.volume = Some(table);
    }

    /// Stores a new state of the relay.
    pub fn answered(&mut self, mut status: Status) {
        self.failure = None;
        let start = |status: &Status| status.process.start_time_seconds;
        if self.status.as_ref().is_some_and(|before| start(before) != start(&status)) {
            self.has_restarted = true;
        }
        // Relays of older versions send neither a verdict nor states of outputs.
        if status.verdict.is_none() {
            verdict::judge(&mut status);
        }
        status.outputs.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        self.status = Some(status);
    }

    /// Records that the relay did not respond: the reason, and the time since the last response.
    pub fn failed(&mut self, reason: &str, silence: Duration) {
        self.failure = Some((message(reason), silence));
    }
}

/// Returns the sort rank of an output: trouble comes first.
fn rank(it: &Output) -> u8 {
    match it.trouble {
        Some(State::Bad) => 0,
        Some(State::Warn) => 1,
        Some(State::Good | State::Note) | None => 2,
    }
}
