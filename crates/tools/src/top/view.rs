//! The newest responses of a relay, and the choices of the reader. Nothing here draws.

use std::time::Duration;

use base::words::escape::message;
use telemetry::status::verdict::State;
use telemetry::status::{History, Output, Status, verdict};

/// A key that changes the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Selects the output above.
    Up,
    /// Selects the output below.
    Down,
    /// Shows or hides the details of the selected output.
    Details,
    /// Pauses the view, or continues.
    Pause,
    /// Shows or hides the explanation of the keys and the columns.
    Help,
}

/// The state of `top` between two drawings.
pub struct View {
    /// The relay's base URL, for the first line.
    pub(super) url: String,
    pub(super) status: Option<Status>,
    pub(super) history: Option<History>,
    /// The reason why the relay did not respond; `None` if no failure is to be shown.
    pub(super) failure: Option<String>,
    /// At the last failure, the time since the last response.
    pub(super) silence: Duration,
    /// `true`: two stored states had different start times: another process has responded.
    pub(super) has_restarted: bool,
    /// The name of the selected output, so that the selection survives reordering. `None`: the
    /// first output.
    selected: Option<String>,
    details: bool,
    /// The lines of the table of `--by`, which replaces the outputs.
    pub(super) volume: Option<Vec<String>>,
    pub(super) paused: bool,
    pub(super) help: bool,
}

impl View {
    /// Makes a view without a response. It shows an output's details if `details` is `true`.
    pub fn new(url: &str, details: bool) -> Self {
        Self {
            url: message(url),
            status: None,
            history: None,
            failure: None,
            silence: Duration::ZERO,
            has_restarted: false,
            selected: None,
            details,
            volume: None,
            paused: false,
            help: false,
        }
    }

    /// Stores the lines of the table of `--by`, unless the view is paused.
    pub fn counted(&mut self, table: Vec<String>) {
        if !self.paused {
            self.volume = Some(table);
        }
    }

    /// Stores a new state of the relay, unless the view is paused. In any case, the relay has
    /// responded.
    pub fn answered(&mut self, mut status: Status) {
        self.failure = None;
        self.silence = Duration::ZERO;
        if self.paused {
            return;
        }
        let start = |status: &Status| status.process.start_time_seconds;
        if self.status.as_ref().is_some_and(|before| start(before) != start(&status)) {
            self.has_restarted = true;
        }
        // Relays of older versions send neither a verdict nor states of outputs.
        if status.verdict.is_none() {
            status.verdict = Some(verdict::judge(&status));
            for output in &mut status.outputs {
                output.trouble = verdict::trouble(output);
            }
        }
        status.outputs.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        if !status.outputs.iter().any(|it| Some(&it.name) == self.selected.as_ref()) {
            self.selected = None;
        }
        self.status = Some(status);
    }

    /// Stores the last hour (`None`: the relay keeps no history), unless the view is paused.
    pub fn remembered(&mut self, history: Option<History>) {
        if !self.paused {
            self.history = history;
        }
    }

    /// Records that the relay did not respond: the reason, and the time since the last response.
    pub fn failed(&mut self, reason: &str, silence: Duration) {
        self.failure = Some(message(reason));
        self.silence = silence;
    }

    /// Applies a key.
    pub fn press(&mut self, key: Key) {
        match key {
            Key::Up => self.select(-1),
            Key::Down => self.select(1),
            Key::Details => self.details = !self.details,
            Key::Pause => self.paused = !self.paused,
            Key::Help => self.help = !self.help,
        }
    }

    /// Moves the selection by `step` lines within the table.
    fn select(&mut self, step: isize) {
        let Some(status) = &self.status else { return };
        let at = self.selected_row(status);
        let last = status.outputs.len().saturating_sub(1);
        let at = at.saturating_add_signed(step).min(last);
        self.selected = status.outputs.get(at).map(|it| it.name.clone());
    }

    /// Returns the output whose details are shown; `None` if they are hidden.
    pub(super) fn shown_output(&self) -> Option<&Output> {
        let status = self.status.as_ref().filter(|_| self.details)?;
        status.outputs.get(self.selected_row(status))
    }

    pub(super) fn selected_row(&self, status: &Status) -> usize {
        let is_selected = |it: &Output| Some(&it.name) == self.selected.as_ref();
        status.outputs.iter().position(is_selected).unwrap_or(0)
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
