//! The health of an output (does it work?), for the log, the metrics and `/status`. The log gets
//! one line for each change, and counts repetitions.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::aside::{Aside, Kept};
use super::endpoints::Endpoints;
use super::failure::Failure;
use base::lock::lock;
use base::position::Position;
use telemetry::{AttemptError, Cause, Loss, LostAs, OutputMetrics, status};

/// The time between two log lines while an output stays down for the same reason.
const REMIND: Duration = Duration::from_secs(60);

/// The shortest time between two log lines that say that the output is down, if the reason has
/// changed or the output was up in between. Also the shortest time between lines about events set
/// aside.
const QUIET: Duration = Duration::from_secs(10);

/// An output with this many changes between up and down, each within [`STEADY`] of the previous
/// one, is unsteady. A consumer that restarts twice makes four.
const TURNS: u32 = 5;

const STEADY: Duration = Duration::from_secs(120);

/// An output at which one request in ten fails, over about the last hundred, is unsteady too. Such
/// a request is sent again, and the output stays up.
const OFTEN: f64 = 0.1;

/// The weight of the newest request in this share.
const NEWEST: f64 = 0.02;

/// The number of events set aside that are looked at for `/status`, so that each try costs little.
const SHOWN_MAX: usize = 1000;

/// The health of one output. Counts failed attempts, writes the log lines about the output, and
/// keeps [`Status`] current. The delivery loop owns this value.
pub struct Health {
    /// The name of the output.
    pub name: String,
    /// The metrics of the output.
    pub metrics: OutputMetrics,
    status: Arc<Status>,
    was_up: bool,
    down: Option<Instant>,
    told_down: bool,
    /// The time and the reason of the last log line that says that the output is down.
    told: Option<(Instant, AttemptError)>,
    failures: u64,
    told_aside: Option<Instant>,
    told_stumble: Option<Instant>,
    /// The number of lost events when the output went down, including those lost for all outputs.
    lost_before: u64,
}

/// The state of one output for `/status`. The delivery loop changes it.
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
    /// `true` if the output is up: [`Health::succeeded`] came after the last [`Health::down`].
    pub up: bool,
    /// The last error, which never has the path or query of a URL, and its moment.
    pub last_error: Option<(String, Instant)>,
    /// The moment of the first failed attempt since the output was last up.
    pub down_since: Option<Instant>,
    /// The number of changes, each within [`STEADY`] of the previous one, and the moment of the
    /// last.
    turns: Option<(u32, Instant)>,
    /// The share of failed requests, over about the last hundred or since the output was down, and
    /// the moment of the last failure with which it was at least [`OFTEN`].
    failing: (f64, Option<Instant>),
    /// The moment of the next attempt, if one is planned.
    pub next_attempt: Option<Instant>,
    /// The moment of the last delivery that timed out while the output was up.
    pub stalled: Option<Instant>,
    /// `true` if events may be lost while the output is down, for their age or from a full queue.
    pub may_lose: bool,
    /// The events that are set aside; `None` if all of them are given up, or if there are none.
    /// `seconds` is 0 here. It is counted from the moment at which the event that is shown was set
    /// aside, or from the start of the relay or of the drain if that is later.
    pub aside: Option<(status::Aside, Instant)>,
}

impl Snapshot {
    fn failed(&mut self, failure: &Failure) {
        self.last_error = Some((failure.message.clone(), Instant::now()));
    }

    fn turned(&mut self) {
        let lately = self.turns.filter(|(_, at)| at.elapsed() < STEADY);
        self.turns = Some((lately.map_or(1, |(turns, _)| turns.saturating_add(1)), Instant::now()));
    }

    /// Counts a request in the share of those that fail.
    fn requested(&mut self, fails: bool) {
        let share = &mut self.failing.0;
        *share += NEWEST * (f64::from(u8::from(fails)) - *share);
        if fails && *share >= OFTEN {
            self.failing.1 = Some(Instant::now());
        }
    }

    /// Returns `true` if the output often changes between up and down, or is up and many requests
    /// fail.
    pub fn is_unsteady(&self) -> bool {
        self.turns.is_some_and(|(turns, at)| turns >= TURNS && at.elapsed() < STEADY)
            || self.up && self.failing.1.is_some_and(|at| at.elapsed() < STEADY)
    }
}

impl Status {
    /// Makes the status of an output that has made no attempt.
    pub fn new(endpoints: Option<Arc<Endpoints>>, paused: bool) -> Self {
        Self { paused, state: Mutex::default(), endpoints }
    }

    /// Returns the strategy by which the output chooses an address; `None` if it has no addresses.
    pub fn strategy(&self) -> Option<&'static str> {
        self.endpoints.as_ref().map(|endpoints| endpoints.strategy.name())
    }

    /// Returns the values of the status at this moment.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.state).clone()
    }

    /// Returns the state of each address, in the order of the config.
    pub fn addresses(&self) -> Vec<status::Address> {
        self.endpoints.as_ref().map(|it| it.states()).unwrap_or_default()
    }
}

impl Health {
    /// Makes the health of an output that has made no attempt.
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
            told_aside: None,
            told_stumble: None,
            lost_before: 0,
        }
    }

    /// Updates the status of the events that are set aside. `told` is the position of one of which
    /// it has just become clear that it is at fault, and not the consumer.
    pub fn aside(&mut self, aside: &Aside, told: Option<Position>) {
        let is_at_fault = |kept: &Kept| kept.retrial.is_at_fault();
        let shown = || aside.waiting().take(SHOWN_MAX);
        let first = shown().find(|(_, kept)| is_at_fault(kept)).or_else(|| shown().next());
        let shown = first.map(|(position, kept)| {
            let at_fault = shown().filter(|(_, kept)| kept.fails() && is_at_fault(kept)).count();
            let shown = status::Aside {
                events: aside.count() as u64,
                position: position.get(),
                audit_id: kept.audit_id.to_string(),
                bytes: kept.event.bytes,
                seconds: 0.0,
                tries: kept.retrial.tries,
                error: kept.answer.to_string(),
                server_errors: shown().any(|(_, kept)| kept.fails()),
                at_fault: at_fault as u64,
                crowded: aside.is_crowded(),
            };
            (shown, kept.retrial.since)
        });
        lock(&self.status.state).aside = shown;
        let told = told.and_then(|told| aside.waiting().find(|(position, _)| *position == told));
        if let Some((position, kept)) = told
            && self.told_aside.is_none_or(|at| at.elapsed() >= QUIET)
        {
            self.told_aside = Some(Instant::now());
            self.tell_aside(position, kept, aside.count());
        }
    }

    fn tell_aside(&self, position: Position, kept: &Kept, events: usize) {
        let (output, position, error) = (&self.name, position.get(), &*kept.answer);
        let (audit_id, bytes) = (&*kept.audit_id, kept.event.bytes);
        tracing::warn!(
            output,
            position,
            audit_id,
            bytes,
            error,
            events,
            "the consumer turns down one event each time but accepts others: the event is set \
             aside and retried, and later events are delivered before it"
        );
    }

    /// An attempt succeeded: the output is up.
    pub fn succeeded(&mut self) {
        let since = self.down.take();
        if since.is_none() && self.was_up {
            // A pause may begin while the output is up.
            let mut status = lock(&self.status.state);
            status.next_attempt = None;
            status.requested(false);
            return;
        }
        self.metrics.up.set(1.0);
        let mut status = lock(&self.status.state);
        if since.is_some() {
            status.turned();
            status.failing = (0.0, None);
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

    /// The consumer has acknowledged a batch of `events` events, after `attempts` attempts.
    pub fn delivered(&self, events: u64, attempts: u32) {
        tracing::debug!(output = self.name, events, attempts, "batch delivered");
    }

    /// Counts an attempt that failed: the output is down.
    pub fn failed(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        self.down(failure);
    }

    /// Like [`failed`](Self::failed), but does not count the attempt in the metrics, because the
    /// caller has done that.
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

    /// `still` is `true` if the log has already said that the output is down.
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

    /// Returns `true` if no event is dropped from a full queue.
    fn keeps_events(&self) -> bool {
        self.metrics.losses.keeps()
    }

    /// Counts a failed attempt that does not make the output down: one after which another address
    /// is tried, or one in which the consumer turned events down, which may be at fault.
    pub fn passed_over(&mut self, failure: &Failure) {
        self.metrics.failed(failure.reason);
        lock(&self.status.state).failed(failure);
        tracing::debug!(
            output = self.name,
            error = failure.message,
            "an attempt failed, and the output stays up"
        );
    }

    /// Counts a request that failed while the output is up. Others may be accepted, so the output
    /// does not go down.
    pub fn stumbled(&mut self, failure: &Failure) {
        self.passed_over(failure);
        lock(&self.status.state).requested(true);
        let is_told = self.told_stumble.is_some_and(|at| at.elapsed() < REMIND);
        if is_told || failure.elsewhere || self.told_down {
            return;
        }
        self.told_stumble = Some(Instant::now());
        let (output, reason, error) = (&self.name, failure.reason.name(), &failure.message);
        tracing::warn!(output, reason, error, "a request failed: its events are sent again");
    }

    /// Counts events that are given up: `cause` is the reason, `fate` is what happens to them. The
    /// output's other counters of events grow when the claim is finished.
    pub fn given_up(&self, events: u64, cause: Cause, fate: LostAs, error: &str) {
        self.metrics.losses.add(Loss::GivenUp(cause, fate), events, Some(error));
    }

    /// Notes that the next attempt begins after the time `wait`.
    pub fn next_attempt(&mut self, wait: Duration) {
        lock(&self.status.state).next_attempt = Some(Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that are accepted do not lengthen the two minutes after the last failure, although
    /// the share stays above a tenth for eighty of them.
    #[tokio::test(start_paused = true)]
    async fn an_output_is_steady_two_minutes_after_the_last_of_many_failures() {
        let mut state = Snapshot { up: true, ..Snapshot::default() };
        for turn in 0..100 {
            state.requested(turn % 2 == 0);
        }
        assert!(state.is_unsteady());
        let mut seconds = 0;
        while state.is_unsteady() {
            tokio::time::advance(Duration::from_secs(10)).await;
            state.requested(false);
            seconds += 10;
        }
        assert_eq!(seconds, 120);
        // One more failure with a share that has not fallen far begins the two minutes again.
        assert!(state.failing.0 > OFTEN, "{:?}", state.failing);
        state.requested(true);
        assert!(state.is_unsteady());
    }
}
