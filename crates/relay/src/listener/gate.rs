//! The limits that all listeners share, and the end of all their connections.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::buffer::Pool;
use super::connection::Registry;
use super::in_flight::InFlight;
use super::policy::Policy;
use super::terms::{DECODING_KIB, Shared};
use delivery::DeadLetters;
use queue::Queue;
use telemetry::Telemetry;

/// The shortest and the longest time between two looks for connections at a deadline.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(250);

/// The limits that all listeners share. The relay owns this value. The drain first calls
/// [`Gate::close`] and then waits in [`Gate::closed`]. During this wait, the drain calls
/// [`Gate::cut`] if connections are still open after half of the drain timeout.
pub struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<Registry>,
    /// Tracks the tasks of all connections, so that the drain can wait for them.
    pub(super) connections: TaskTracker,
    /// Cancelled at the deadline of the drain: connections that are still open are then aborted.
    pub(super) aborted: CancellationToken,
}

impl Gate {
    /// Makes the gate with the limits of the config. The events of all requests go to `queue`, and
    /// the items that are not events to `dead_letters`.
    pub fn new(
        limits: &config::Limits,
        queue_config: &config::Queue,
        queue: Queue,
        dead_letters: DeadLetters,
        telemetry: &Telemetry,
    ) -> Self {
        let shared = Shared {
            queue,
            in_flight: Arc::new(InFlight::new(telemetry.in_flight())),
            volume: Arc::clone(telemetry.volume()),
            pool: Arc::new(Pool::default()),
            repeats: Arc::default(),
            dead_letters,
            decoding: Arc::new(Semaphore::new(DECODING_KIB as usize)),
            policy: ArcSwap::from_pointee(Policy::new(limits, queue_config)),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            registry: Arc::default(),
            connections: TaskTracker::new(),
            aborted: CancellationToken::new(),
        }
    }

    /// Replaces the limits and the deadlines after a reload. New limits hold for later requests and
    /// connections; new deadlines hold immediately, for all connections.
    pub fn apply(&self, limits: &config::Limits, queue: &config::Queue) {
        self.shared.policy.store(Arc::new(Policy::new(limits, queue)));
    }

    /// Ends connections that have reached a deadline without a request in progress, until `stop` is
    /// cancelled. Looks for them about ten times in the shorter deadline.
    pub async fn enforce_deadlines(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let policy = self.shared.policy.load_full();
            let limits = &policy.limits;
            let tick =
                (limits.header_timeout.min(limits.idle_timeout) / 10).clamp(TICK_MIN, TICK_MAX);
            if stop.run_until_cancelled(tokio::time::sleep(tick)).await.is_none() {
                return;
            }
            self.registry.enforce(limits);
        }
    }

    /// Returns the number of connections that gave their places to newer ones and are not closed
    /// yet.
    pub(super) fn given_way(&self) -> usize {
        self.connections.len().saturating_sub(self.registry.places())
    }

    /// Makes all listeners stop accepting connections, and refuses new requests. Each open
    /// connection ends after its current request.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Answers the requests that still wait for something with 503.
    pub fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Waits until every connection has ended. Aborts the connections that are still open at
    /// `deadline`.
    pub async fn closed(&self, deadline: Instant) {
        self.connections.close();
        tokio::time::timeout_at(deadline, self.connections.wait()).await.ok();
        self.aborted.cancel();
        self.connections.wait().await;
    }
}
