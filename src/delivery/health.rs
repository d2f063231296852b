//! Whether an output works, for the log, the metrics and `/status`: one line for each change, repetitions counted.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoints::AddressState;
use super::endpoints::Endpoints;
use super::failure::Failure;
use crate::telemetry::AttemptError;
use crate::telemetry::Cause;
use crate::telemetry::Loss;
use crate::telemetry::LostAs;
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
    /// `retry.max_elapsed` is set: what can't be delivered is given up.
    gives_up: bool,
    /// Events that were lost before it went down, of this output and of those that no output can
    /// get.
    lost_before: u64,
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
    /// Its events are not kept whatever comes.
    may_lose: bool,
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
    /// As it went down, nothing but its consumer could end that its events are kept.
    pub keeps_events: bool,
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
        let (up, keeps_events) = (state.up, !state.may_lose);
        Snapshot { up, last_error, last_error_age, down, next_retry, keeps_events, addresses }
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
            gives_up: false,
            lost_before: 0,
        }
    }

    /// Whether it gives up what it can't deliver after some time.
    pub(super) fn gives_up(mut self, gives_up: bool) -> Self {
        self.gives_up = gives_up;
        self
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
        if self.down.is_none() {
            self.lost_before = self.metrics.losses.events();
        }
        let since = *self.down.get_or_insert(now);
        let is_kept = self.keeps_events();
        let mut status = self.status.lock();
        status.up = false;
        status.may_lose = !is_kept;
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
        let (output, still) = (&self.name, std::mem::replace(&mut self.told_down, true));
        let message = self.told_of_events(still);
        tracing::warn!(output, reason, error, failures, "{message}");
        self.told = Some((now, failure.reason));
    }

    /// Says for the log that the output is down, and whether its events are safe: that they are
    /// kept is said only where nothing but the consumer can end that.
    fn told_of_events(&self, still: bool) -> &'static str {
        let is_losing = self.metrics.losses.events() > self.lost_before;
        match (self.keeps_events(), is_losing) {
            (true, _) if still => "output still down, events are kept",
            (true, _) => "output down, events are kept",
            (false, true) if still => "output still down, events are being lost",
            (false, true) => "output down, events are being lost",
            (false, false) if still => "output still down, events wait and may be lost",
            (false, false) => "output down, events wait and may be lost",
        }
    }

    fn keeps_events(&self) -> bool {
        self.metrics.losses.keeps() && !self.gives_up
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
    pub(super) fn given_up(&self, events: u64, cause: Cause, fate: LostAs, error: &str) {
        self.metrics.losses.add(Loss::GivenUp(cause, fate), events, Some(error));
    }

    /// The next attempt is so far away.
    pub(super) fn next_attempt(&mut self, wait: Duration) {
        self.status.lock().next_attempt = Some(Instant::now() + wait);
    }
}
