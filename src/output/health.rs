//! Whether an output works, for the log, the metrics and `/status`: one line for each change, repetitions counted.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Failure;
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
    told_lost: Option<Instant>,
    lost: u64,
    told_passed_over: Option<Instant>,
}

/// What `/status` shows. Shared with `admin`.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<StatusState>,
}

#[derive(Debug, Default, Clone)]
struct StatusState {
    up: bool,
    last_error: Option<String>,
    next_attempt: Option<Instant>,
}

/// A moment of [`Status`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The last attempt succeeded.
    pub up: bool,
    /// Of the last attempt that failed. Holds no path or query of a URL.
    pub last_error: Option<String>,
    /// Until the next attempt, while one is waited for.
    pub next_retry: Option<Duration>,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, StatusState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock().clone();
        let next_retry = state.next_attempt.map(|at| at.saturating_duration_since(Instant::now()));
        Snapshot { up: state.up, last_error: state.last_error, next_retry }
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
            told_lost: None,
            lost: 0,
            told_passed_over: None,
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
        let mut status = self.status.lock();
        status.up = false;
        status.last_error = Some(failure.message.clone());
        drop(status);
        let now = Instant::now();
        self.down.get_or_insert(now);
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

    /// An attempt at one address failed, and another is tried at once: the output is not down, but somebody should know.
    pub(super) fn passed_over(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        self.status.lock().last_error = Some(failure.message.clone());
        let (reason, error) = (failure.reason.name(), &failure.message);
        let now = Instant::now();
        if self.told_passed_over.is_some_and(|at| now.duration_since(at) < REMIND) {
            tracing::debug!(output = self.name, reason, error, "address passed over");
        } else {
            self.told_passed_over = Some(now);
            tracing::warn!(
                output = self.name,
                reason,
                error,
                "address passed over, trying another"
            );
        }
    }

    /// The consumer refused a batch for what is in it. Only where it goes on refusing is it down.
    pub(super) fn refused(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        tracing::debug!(output = self.name, error = failure.message, "batch refused");
        self.status.lock().last_error = Some(failure.message.clone());
    }

    /// Events are given up.
    pub(super) fn lost(&mut self, events: u64, failure: &Failure) {
        self.lost += events;
        let now = Instant::now();
        if self.told_lost.is_none_or(|at| now.duration_since(at) >= REMIND) {
            self.told_lost = Some(now);
            let events = std::mem::take(&mut self.lost);
            let error = &failure.message;
            tracing::error!(
                output = self.name,
                events,
                error,
                "events refused for good, dropped and counted"
            );
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
        if self.lost > 0 {
            tracing::error!(
                output = self.name,
                events = self.lost,
                "more events refused for good since the last line, dropped and counted"
            );
        }
    }
}
