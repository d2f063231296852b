//! Whether an output works, for the log, the metrics and `/status`: one line for each change, repetitions counted.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::AddressState;
use super::Failure;
use super::endpoints::Endpoints;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;

/// While an output stays down, one line in so long.
const REMIND: Duration = Duration::from_secs(60);

/// The least time between two lines where the reason changes, or where the output goes up and down.
const QUIET: Duration = Duration::from_secs(10);

/// Owned by the delivery loop.
pub(super) struct Health {
    name: String,
    pub(super) metrics: OutputMetrics,
    status: Arc<Status>,
    was_up: bool,
    /// Since when attempts fail.
    down: Option<Instant>,
    /// Whether the log has it as down.
    told_down: bool,
    /// The last line that said so.
    told: Option<(Instant, AttemptError)>,
    failures: u64,
    /// By [`LostAs`].
    given_up: [GivenUp; LOST_AS.len()],
}

/// What becomes of events that are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LostAs {
    /// They are gone.
    Dropped,
    /// They are in the dead-letter files.
    DeadLetter,
    /// They should be there, and could not be written.
    Unwritten,
}

const LOST_AS: [LostAs; 3] = [LostAs::Dropped, LostAs::DeadLetter, LostAs::Unwritten];

impl LostAs {
    fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::DeadLetter => "written to the dead letters",
            Self::Unwritten => "lost, the dead letters can't be written",
        }
    }
}

/// Events of one [`LostAs`].
#[derive(Debug, Default)]
struct GivenUp {
    /// Since the last line that told of some.
    events: u64,
    told: Option<Instant>,
}

/// What `/status` shows. Shared with `admin`.
#[derive(Default)]
pub struct Status {
    state: Mutex<StatusState>,
    endpoints: Option<Arc<Endpoints>>,
}

#[derive(Debug, Default, Clone)]
struct StatusState {
    up: bool,
    last_error: Option<(String, Instant)>,
    down_since: Option<Instant>,
    next_attempt: Option<Instant>,
}

impl StatusState {
    fn failed(&mut self, failure: &Failure) {
        self.last_error = Some((failure.message.clone(), Instant::now()));
    }
}

/// A moment of [`Status`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The last attempt succeeded.
    pub up: bool,
    /// Of the last attempt that failed. Holds no path or query of a URL.
    pub last_error: Option<String>,
    /// How long ago that was.
    pub last_error_age: Option<Duration>,
    /// For how long attempts have failed.
    pub down: Option<Duration>,
    /// Until the next attempt, while one is waited for.
    pub next_retry: Option<Duration>,
    /// Its addresses, in order.
    pub addresses: Vec<AddressState>,
}

impl Status {
    pub(super) fn new(endpoints: Option<Arc<Endpoints>>) -> Self {
        Self { state: Mutex::default(), endpoints }
    }

    fn lock(&self) -> MutexGuard<'_, StatusState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock().clone();
        let next_retry = state.next_attempt.map(|at| at.saturating_duration_since(Instant::now()));
        let addresses = self.endpoints.as_ref().map(|it| it.states()).unwrap_or_default();
        let down = state.down_since.map(|since| since.elapsed());
        let (last_error, at) = state.last_error.unzip();
        let last_error_age = at.map(|at| at.elapsed());
        Snapshot { up: state.up, last_error, last_error_age, down, next_retry, addresses }
    }
}

impl Health {
    pub(super) fn new(name: &str, metrics: OutputMetrics, status: Arc<Status>) -> Self {
        Self {
            name: name.to_owned(),
            metrics,
            status,
            was_up: false,
            down: None,
            told_down: false,
            told: None,
            failures: 0,
            given_up: Default::default(),
        }
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self) {
        let since = self.down.take();
        if since.is_none() && self.was_up {
            return;
        }
        self.metrics.up.set(1.0);
        let mut status = self.status.lock();
        status.up = true;
        status.down_since = None;
        status.next_attempt = None;
        drop(status);
        if !std::mem::replace(&mut self.was_up, true) && !self.told_down {
            tracing::info!(output = self.name, "output up");
        } else if let Some(since) = since.filter(|_| self.told_down) {
            let after = format!("{:.1} s", since.elapsed().as_secs_f64());
            tracing::info!(output = self.name, after, failures = self.failures, "output up again");
        }
        self.told_down = false;
        self.failures = 0;
    }

    /// The consumer has a batch.
    pub(super) fn delivered(&self, events: u64, attempts: u32) {
        tracing::debug!(output = self.name, events, attempts, "batch delivered");
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        self.down(failure);
    }

    /// As [`Health::failed`], where the attempt is counted already.
    pub(super) fn down(&mut self, failure: &Failure) {
        self.metrics.up.set(0.0);
        self.failures += 1;
        let now = Instant::now();
        let since = *self.down.get_or_insert(now);
        let mut status = self.status.lock();
        status.up = false;
        status.down_since = Some(since);
        status.failed(failure);
        drop(status);
        let (reason, error, failures) = (failure.reason.name(), &failure.message, self.failures);
        let quiet = self.told.is_some_and(|(at, told)| {
            let same = self.told_down && told == failure.reason;
            now.duration_since(at) < if same { REMIND } else { QUIET }
        });
        if quiet {
            tracing::debug!(output = self.name, reason, error, "attempt failed");
            return;
        }
        if std::mem::replace(&mut self.told_down, true) {
            tracing::warn!(
                output = self.name,
                reason,
                error,
                failures,
                "output still down, events are kept"
            );
        } else {
            tracing::warn!(
                output = self.name,
                reason,
                error,
                failures,
                "output down, events are kept"
            );
        }
        self.told = Some((now, failure.reason));
    }

    /// An attempt at one address failed, and another is tried at once: the output is not down. The log has it from those
    /// who know the addresses.
    pub(super) fn passed_over(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        self.status.lock().failed(failure);
    }

    /// The consumer refused a batch for what is in it. Only where it goes on refusing is it down.
    pub(super) fn refused(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        tracing::debug!(output = self.name, error = failure.message, "batch refused");
        self.status.lock().failed(failure);
    }

    /// Events are given up, and counted by whoever finishes their claim.
    pub(super) fn given_up(&mut self, events: u64, fate: LostAs, error: &str) {
        let given_up = &mut self.given_up[fate as usize];
        given_up.events += events;
        let now = Instant::now();
        if events > 0 && given_up.told.is_none_or(|at| now.duration_since(at) >= REMIND) {
            given_up.told = Some(now);
            let events = std::mem::take(&mut given_up.events);
            let fate = fate.name();
            tracing::error!(output = self.name, events, fate, error, "events given up and counted");
        }
    }

    /// The next attempt is so far away.
    pub(super) fn next_attempt(&mut self, wait: Duration) {
        self.status.lock().next_attempt = Some(Instant::now() + wait);
    }
}

/// The log must not end with less than was lost.
impl Drop for Health {
    fn drop(&mut self) {
        for (fate, given_up) in LOST_AS.into_iter().zip(&self.given_up) {
            if given_up.events > 0 {
                let (events, fate) = (given_up.events, fate.name());
                tracing::error!(
                    output = self.name,
                    events,
                    fate,
                    "more events given up and counted since the last line"
                );
            }
        }
    }
}
