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
use super::terms::{Bounds, DECODING_KIB, Shared};
use queue::Queue;
use telemetry::Telemetry;

/// The maximum size in bytes of an HTTP/1 request's head, and of the connection's read buffer. With
/// hyper's default of 408 KiB, 4,096 connections that send their heads slowly would take 1.6 GiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The maximum number of open streams of one h2 connection. kube-apiserver was seen to use 22.
const STREAMS_MAX: u32 = 100;
/// The largest size in bytes of all headers of one h2 request together.
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// The flow-control window of one h2 stream in bytes: a batch of 1 MiB needs no window update.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The flow-control window in bytes that all streams of one h2 connection share.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// The limits that all listeners share. The relay owns this value. The drain first calls
/// [`Gate::close`] and then waits in [`Gate::closed`]. During this wait, the drain calls
/// [`Gate::cut`] if connections are still open after half of the drain timeout.
pub struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<Registry>,
    /// The settings for connections. A reload replaces them.
    pub(super) rules: ArcSwap<Rules>,
    /// Tracks the tasks of all connections, so that the drain can wait for them.
    pub(super) connections: TaskTracker,
    /// Cancelled at the deadline of the drain: connections that are still open are then aborted.
    pub(super) aborted: CancellationToken,
}

/// The settings for connections, from the config. An open connection keeps the settings with which
/// it was accepted, except that new deadlines hold immediately.
pub(super) struct Rules {
    /// From this number of open connections on, a new one needs the place of another.
    pub(super) max_connections: usize,
    /// The approximate age at which a connection ends after its current request; `None`: no limit.
    pub(super) max_connection_age: Option<Duration>,
    pub(super) deadlines: Deadlines,
    pub(super) protocols: auto::Builder<TokioExecutor>,
}

fn bounds(limits: &config::Limits, queue: &config::Queue) -> Bounds {
    Bounds {
        max_body: limits.max_body,
        max_in_flight: limits.max_in_flight,
        body_timeout: limits.body_timeout,
        acknowledge: queue.acknowledge,
        delivered_timeout: queue.delivered_timeout,
        retry_after: queue.retry_after,
    }
}

fn rules(limits: &config::Limits, queue: &config::Queue) -> Rules {
    Rules {
        max_connections: limits.max_connections,
        max_connection_age: limits.max_connection_age,
        deadlines: Deadlines { header: limits.header_timeout, idle: limits.idle_timeout },
        protocols: protocols(queue.acknowledge != config::Acknowledge::Delivered),
    }
}

impl Gate {
    /// Makes the gate with the limits of the config. The events of all requests go to `queue`.
    pub fn new(
        limits: &config::Limits,
        queue_config: &config::Queue,
        queue: Queue,
        telemetry: &Telemetry,
    ) -> Self {
        let shared = Shared {
            queue,
            in_flight: Arc::new(InFlight::new(telemetry.in_flight())),
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

    /// Replaces the limits and the deadlines after a reload. New limits hold for later requests and
    /// connections; new deadlines hold immediately, for all connections.
    pub fn apply(&self, limits: &config::Limits, queue: &config::Queue) {
        self.shared.bounds.store(Arc::new(bounds(limits, queue)));
        self.rules.store(Arc::new(rules(limits, queue)));
    }

    /// Ends connections that have reached a deadline without a request in progress, until `stop` is
    /// cancelled.
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

/// Returns hyper's settings for HTTP/1 and h2. If `half_close` is `true`, a sender that has shut
/// down its write side still gets its answer; otherwise hyper drops the request. The caller passes
/// `false` if `acknowledge` is `delivered`: answers may then take seconds, and hyper cannot tell
/// such a sender from one that has gone.
///
/// The limit of 100 headers for each request is hyper's default. It is not set explicitly, because
/// hyper would then fill two tables of 100 entries for each request.
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
