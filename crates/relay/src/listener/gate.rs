//! The limits that all listeners share, and the end of all their connections.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::buffer::Pool;
use super::connection::{Deadlines, Registry};
use super::in_flight::InFlight;
use super::large::Sizes;
use super::terms::{Bounds, DECODING_KIB, Shared};
use queue::Queue;
use telemetry::Telemetry;

/// The largest head of a request in bytes. The read buffer of a connection has the same limit. The
/// default of hyper is larger, 408 KiB. With that default, 4,096 connections that send their heads
/// slowly would take 1.6 GiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The largest number of streams that one h2 connection may have open at the same time. The limit
/// is far above the 22 streams that kube-apiserver was seen to use.
const STREAMS_MAX: u32 = 100;
/// The largest size in bytes of all headers of one h2 request together.
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// The flow-control window of one h2 stream in bytes. With this size a sender can send a batch of 1
/// MiB without waiting for a window update.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The flow-control window of one h2 connection in bytes, which all streams of the connection
/// share.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// The limits that all listeners share. The connections and requests of all listeners count against
/// these limits. The module `relay` owns this value. The drain first calls [`Gate::close`] and then
/// waits in [`Gate::closed`]. If connections are still open after half of the drain timeout, it
/// calls [`Gate::cut`] during this wait.
pub struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<Registry>,
    /// The settings for connections. A reload replaces them.
    pub(super) rules: ArcSwap<Rules>,
    /// Tracks the tasks of all connections, so that the drain can wait for them.
    pub(super) connections: TaskTracker,
    /// This token is cancelled at the end of the drain: all connections that are still open are
    /// then aborted.
    pub(super) aborted: CancellationToken,
}

/// The settings for connections, from the config. An open connection keeps the settings that were
/// valid when it was accepted. Only the deadlines of open connections change at once after a
/// reload.
pub(super) struct Rules {
    /// The largest number of connections that all listeners together have open at the same time.
    pub(super) max_connections: usize,
    /// The approximate age at which a connection ends after its current request; `None` if
    /// connections of any age may stay.
    pub(super) max_connection_age: Option<Duration>,
    pub(super) deadlines: Deadlines,
    pub(super) protocols: auto::Builder<TokioExecutor>,
}

/// Returns the limits for requests, taken from the config.
fn bounds(limits: &config::Limits, queue: &config::Queue) -> Bounds {
    Bounds {
        max_body: limits.max_body,
        max_in_flight: limits.max_in_flight,
        sizes: Sizes::new(limits.max_body, limits.max_in_flight),
        body_timeout: limits.body_timeout,
        acknowledge: queue.acknowledge,
        delivered_timeout: queue.delivered_timeout,
        retry_after: queue.retry_after,
    }
}

/// Returns the settings for connections, taken from the config.
fn rules(limits: &config::Limits, queue: &config::Queue) -> Rules {
    Rules {
        max_connections: limits.max_connections,
        max_connection_age: limits.max_connection_age,
        deadlines: Deadlines { header: limits.header_timeout, idle: limits.idle_timeout },
        protocols: protocols(queue.acknowledge != config::Acknowledge::Delivered),
    }
}

impl Gate {
    /// Makes the gate with the limits and deadlines of the config. The events of all requests go to
    /// `queue`.
    pub fn new(
        limits: &config::Limits,
        queue_config: &config::Queue,
        queue: Queue,
        telemetry: &Telemetry,
    ) -> Self {
        let shared = Shared {
            queue,
            in_flight: InFlight::new(telemetry.in_flight()),
            volume: Arc::clone(telemetry.volume()),
            pool: Arc::new(Pool::default()),
            decoding: Arc::new(Semaphore::new(DECODING_KIB as usize)),
            bounds: ArcSwap::from_pointee(bounds(limits, queue_config)),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            registry: Arc::default(),
            rules: ArcSwap::from_pointee(rules(limits, queue_config)),
            connections: TaskTracker::new(),
            aborted: CancellationToken::new(),
        }
    }

    /// Replaces the limits and the deadlines after a reload. New limits hold for requests that
    /// begin and connections that are accepted from now on. New deadlines hold at once for all
    /// connections.
    pub fn apply(&self, limits: &config::Limits, queue: &config::Queue) {
        self.shared.bounds.store(Arc::new(bounds(limits, queue)));
        self.rules.store(Arc::new(rules(limits, queue)));
    }

    /// Checks all connections again and again, and ends those that have reached a deadline while no
    /// request was under way. Returns when `stop` is cancelled.
    pub async fn enforce_deadlines(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let deadlines = self.rules.load().deadlines;
            let tick = tokio::time::sleep(deadlines.tick());
            if stop.run_until_cancelled(tick).await.is_none() {
                return;
            }
            self.registry.enforce(deadlines);
        }
    }

    /// Returns the number of connections that have given their places to newer ones and are not
    /// closed yet.
    pub(super) fn given_way(&self) -> usize {
        self.connections.len().saturating_sub(self.registry.places())
    }

    /// Makes all listeners stop accepting connections, and refuses new requests. Each open
    /// connection ends after its current request.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Refuses all requests that are still under way: they are answered with 503.
    pub fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Waits until every connection has ended. Connections that are still open at the time
    /// `deadline` are aborted.
    pub async fn closed(&self, deadline: Instant) {
        self.connections.close();
        tokio::time::timeout_at(deadline, self.connections.wait()).await.ok();
        self.aborted.cancel();
        self.connections.wait().await;
    }
}

/// Returns hyper's settings for HTTP/1 and h2. `half_close` decides about a sender that has shut
/// down its write side. If it is `true`, the sender still gets its answer. If it is `false`, hyper
/// drops the request. The caller passes `false` with `acknowledge = "delivered"`. Answers may then
/// take seconds, and a sender that has gone looks the same as one that has only shut down its write
/// side.
///
/// A request may have at most 100 headers, which is hyper's default. hyper fills two tables of 100
/// entries for each request if the same number is set.
fn protocols(half_close: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD_BYTES_MAX).header_read_timeout(None).half_close(half_close);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
