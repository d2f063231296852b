//! The health of an output (does it work?), for the log, the metrics and `/status`. The log gets
//! one line for each change, and counts repetitions.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::aside::{Aside, Kept};
use super::endpoints::{AddressState, Endpoints};
use super::failure::Failure;
use base::lock::lock;
use base::position::Position;
use telemetry::{AttemptError, Cause, Loss, LostAs, OutputMetrics};

/// The time between two log lines while an output stays down for the same reason.
const REMIND: Duration = Duration::from_secs(60);

/// The shortest time between two log lines about an output, if the reason changes or the output
/// goes up and down.
const QUIET: Duration = Duration::from_secs(10);

/// After this many changes between up and down, each within [`STEADY`] of the one before, an output
/// is unsteady. A consumer that restarts twice makes four.
const TURNS: u32 = 5;

/// An output that keeps its state for this time is steady again.
const STEADY: Duration = Duration::from_secs(120);

/// The health of one output. Counts failed attempts, writes the log lines about the output, and
/// keeps [`Status`] current. The delivery loop owns this value.
pub struct Health {
    /// The name of the output.
    pub name: String,
    /// The metrics of the output.
    pub metrics: OutputMetrics,
    status: Arc<Status>,
    /// `true` if an attempt of this output ever succeeded.
    was_up: bool,
    /// The moment of the first failed attempt since the output was last up; `None` while the output
    /// is up, and before the first attempt.
    down: Option<Instant>,
    /// `true` if the last log line about the output says that it is down.
    told_down: bool,
    /// The time and the reason of the last log line that says that the output is down; `None` if
    /// there was no such line.
    told: Option<(Instant, AttemptError)>,
    /// The number of attempts that failed since the output was last up.
    failures: u64,
    /// `true` if `retry.max_elapsed` is set: an event that can't be delivered within this time is
    /// given up.
    gives_up: bool,
    /// The time of the last log line about an event that is set aside; `None` if there was none.
    told_aside: Option<Instant>,
    /// The number of lost events at the moment when the output went down. It includes the events
    /// that were lost for all outputs.
    lost_before: u64,
}

/// The state of one output that `/status` shows. The delivery loop changes it, and the module
/// `admin` reads it.
#[derive(Default)]
pub struct Status {
    /// `true` if the config has paused the output.
    pub paused: bool,
    state: Mutex<Snapshot>,
    endpoints: Option<Arc<Endpoints>>,
}

/// The values of a [`Status`] at one moment.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// `true` if the last attempt succeeded.
    pub up: bool,
    /// The text of the last failed attempt's error, and its moment; `None` if no attempt failed.
    /// The text never contains the path or query of a URL.
    pub last_error: Option<(String, Instant)>,
    /// The moment of the first failed attempt since the output was last up; `None` while the output
    /// is up, and before the first attempt.
    pub down_since: Option<Instant>,
    /// The number of changes between up and down of which each came within [`STEADY`] of the one
    /// before it, and the moment of the last one; `None` before the first.
    turns: Option<(u32, Instant)>,
    /// The moment of the next attempt; `None` while no next attempt is planned.
    pub next_attempt: Option<Instant>,
    /// The moment of the last delivery that timed out while the output was up; `None` if none did.
    pub stalled: Option<Instant>,
    /// `true` if events may be lost while the output is down, because they become too old or the
    /// queue becomes full. The value is that of the last failed attempt.
    pub may_lose: bool,
    /// The events that are set aside: the consumer does not take them, although it takes others.
    /// `None` if there are none.
    pub aside: Option<AsideEvents>,
}

/// The events that an output has set aside.
#[derive(Debug, Clone)]
pub struct AsideEvents {
    /// The number of these events.
    pub events: u64,
    /// The position of the first of them.
    pub position: Position,
    /// The moment at which the first of them was first tried. If the relay has started or has begun
    /// to drain since then, this moment.
    pub since: Instant,
    /// The number of tries of the first of them. Tries while the consumer did not work do not
    /// count.
    pub tries: u32,
    /// The consumer's last answer to the first of them, with the address.
    pub error: Arc<str>,
    /// `true` if at least one of them is answered with server errors, and may wait for as long as
    /// `rejected.after_server_errors`.
    pub server_errors: bool,
}

impl Snapshot {
    /// Notes the error and the moment of a failed attempt.
    fn failed(&mut self, failure: &Failure) {
        self.last_error = Some((failure.message.clone(), Instant::now()));
    }

    /// Notes that the output is up and was down, or the other way round.
    fn turned(&mut self) {
        let lately = self.turns.filter(|(_, at)| at.elapsed() < STEADY);
        self.turns = Some((lately.map_or(1, |(turns, _)| turns.saturating_add(1)), Instant::now()));
    }

    /// Returns `true` if the output fails and works again, in turn: its state at a single moment
    /// says little then.
    pub fn is_unsteady(&self) -> bool {
        self.turns.is_some_and(|(turns, at)| turns >= TURNS && at.elapsed() < STEADY)
    }
}

impl Status {
    /// Makes the status of an output that has not made an attempt yet.
    pub fn new(endpoints: Option<Arc<Endpoints>>, paused: bool) -> Self {
        Self { paused, state: Mutex::default(), endpoints }
    }

    /// Returns how the output chooses one of its addresses, as the config has it; `None` if the
    /// output has no addresses.
    pub fn strategy(&self) -> Option<&'static str> {
        self.endpoints.as_ref().map(|endpoints| endpoints.strategy.name())
    }

    /// Returns the values of the status at this moment.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.state).clone()
    }

    /// Returns the state of each address of the output, in the order of the config.
    pub fn addresses(&self) -> Vec<AddressState> {
        self.endpoints.as_ref().map(|it| it.states()).unwrap_or_default()
    }
}

impl Health {
    /// Makes the health of an output that has not made an attempt yet.
    pub fn new(config: &config::Output, metrics: OutputMetrics, status: Arc<Status>) -> Self {
        metrics.paused.set(f64::from(u8::from(config.pause)));
        if config.pause {
            tracing::warn!(
                output = config.name,
                "output paused by the config: its events wait in the queue until `pause` is removed"
            );
        }
        Self {
            name: config.name.clone(),
            metrics,
            status,
            was_up: false,
            down: None,
            told_down: false,
            told: None,
            failures: 0,
            gives_up: config.retry.max_elapsed.is_some(),
            told_aside: None,
            lost_before: 0,
        }
    }

    /// Notes which events are set aside. `new` is the position of one that was set aside just now;
    /// `None` if none was.
    pub fn aside(&mut self, aside: &Aside, new: Option<Position>) {
        let first = aside.waiting().next();
        let shown = first.map(|(position, kept)| AsideEvents {
            events: aside.count() as u64,
            position,
            since: kept.retrial.since,
            tries: kept.retrial.tries,
            error: Arc::clone(&kept.answer),
            server_errors: aside.waiting().any(|(_, kept)| kept.gets_server_errors()),
        });
        lock(&self.status.state).aside = shown;
        let added = new.and_then(|new| aside.waiting().find(|(position, _)| *position == new));
        if let Some((position, kept)) = added
            && self.told_aside.is_none_or(|at| at.elapsed() >= QUIET)
        {
            self.told_aside = Some(Instant::now());
            self.tell_aside(position, kept, aside.count());
        }
    }

    /// Logs that an event is set aside.
    fn tell_aside(&self, position: Position, kept: &Kept, events: usize) {
        let (output, position, error) = (&self.name, position.get(), &*kept.answer);
        if kept.gets_server_errors() {
            tracing::warn!(
                output,
                position,
                error,
                events,
                "the consumer responds to one event with a server error but accepts others: the \
                 event is set aside and retried, and later events are delivered before it"
            );
        } else {
            tracing::info!(
                output,
                position,
                error,
                events,
                "the consumer refuses one event but accepts others: the event is set aside and \
                 retried"
            );
        }
    }

    /// Notes that an attempt succeeded: the output is up.
    pub fn succeeded(&mut self) {
        let since = self.down.take();
        if since.is_none() && self.was_up {
            // A pause may begin while the output is up.
            lock(&self.status.state).next_attempt = None;
            return;
        }
        self.metrics.up.set(1.0);
        let mut status = lock(&self.status.state);
        if since.is_some() {
            status.turned();
        }
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

    /// Notes that the consumer has acknowledged a batch of `events` events, after `attempts`
    /// attempts.
    pub fn delivered(&self, events: u64, attempts: u32) {
        tracing::debug!(output = self.name, events, attempts, "batch delivered");
    }

    /// Notes and counts an attempt that failed: the output is down.
    pub fn failed(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        self.down(failure);
    }

    /// Notes that an attempt failed, so the output is down. The caller has already counted the
    /// attempt.
    pub fn down(&mut self, failure: &Failure) {
        self.metrics.up.set(0.0);
        self.failures += 1;
        let now = Instant::now();
        if self.down.is_none() {
            self.lost_before = self.metrics.losses.events();
        }
        let since = *self.down.get_or_insert(now);
        let is_kept = self.keeps_events();
        let mut status = lock(&self.status.state);
        if status.up {
            status.turned();
            if failure.reason == AttemptError::Timeout {
                status.stalled = Some(now);
            }
        }
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

    /// Returns the text of the log line that says that the output is down. If no event can be lost
    /// because of its age or a full queue, the text says that events are kept. Otherwise, it says
    /// that events are lost, or may be lost. `still` is `true` if the log has already said that the
    /// output is down.
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

    /// Returns `true` if every event is kept until the consumer has it: no event is given up for
    /// its age, and none is dropped when the queue is full.
    fn keeps_events(&self) -> bool {
        self.metrics.losses.keeps() && !self.gives_up
    }

    /// Notes that an attempt at one address failed, and that another address is tried at once. The
    /// output does not count as down. Nothing is logged here, because the set of addresses logs
    /// that the address is down.
    pub fn passed_over(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        lock(&self.status.state).failed(failure);
    }

    /// Notes that the consumer took only some events of a batch, or none, and has answered for each
    /// event.
    pub fn turned_away(&mut self, failure: &Failure) {
        self.passed_over(failure);
        tracing::debug!(output = self.name, error = failure.message, "single events turned away");
    }

    /// Notes that the consumer refused a batch because of its events. The output stays up.
    pub fn refused(&mut self, failure: &Failure) {
        self.passed_over(failure);
        tracing::debug!(output = self.name, error = failure.message, "batch refused");
    }

    /// Counts events that are given up. `cause` says why, and `fate` says what happens to them. The
    /// event counters of this output do not grow here, but when the claim of the events is
    /// finished.
    pub fn given_up(&self, events: u64, cause: Cause, fate: LostAs, error: &str) {
        self.metrics.losses.add(Loss::GivenUp(cause, fate), events, Some(error));
    }

    /// Notes, for `/status`, that the next attempt begins after the time `wait`.
    pub fn next_attempt(&mut self, wait: Duration) {
        lock(&self.status.state).next_attempt = Some(Instant::now() + wait);
    }
}
