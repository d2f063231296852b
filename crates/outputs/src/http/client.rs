//! The HTTP client of one output: its settings, its addresses, and how a connection is made.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::api::{Api, ConnectionId, Encoded, Sent};
use super::body::{COPIED_BYTES, Upload};
use super::confirm::{Confirmations, Doubts};
use super::cookies::Cookies;
use super::expanded::Expanded;
use super::pool::{ConnectionKey, PooledConnection};
use super::proxy::Proxy;
use super::url::{BaseUrl, HttpEndpoint};
use super::wire::Progress;
use crate::setup::Setup;
use crate::transport::connection::dial_failure;
use crate::transport::socket::Socket;
use crate::transport::tls_session::Tls;
use base::staged::Staged;
use client::net;
use delivery::endpoints::{Attempt, Endpoint, Endpoints, ResolvedAddress};
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::CLOSE_TIME;
use queue::{Identity, Take};
use telemetry::{AttemptError, OutputMetrics};

/// The TCP keepalive interval of all connections, including idle ones.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// The HTTP client of one output: it picks addresses, makes connections and sends requests. All
/// parts of the output that connect to the consumer share one client.
///
/// `endpoints` and `expanded` hold the same URLs in the same order. A reload replaces first one
/// field and then the other, so [`Client::pick`] checks that they agree.
pub(super) struct Client {
    pub(super) config: config::HttpClient,
    pub(super) api: Arc<dyn Api>,
    /// The identity of the queue; empty before the delivery begins.
    pub(super) queue: OnceLock<Identity>,
    pub(super) timeouts: config::Timeouts,
    pub(super) room: Room,
    pub(super) endpoints: Arc<Endpoints>,
    tls: Arc<Tls>,
    /// The URLs and headers, with their templates filled in. `None` before the files of the config
    /// were read.
    pub(super) expanded: ArcSwapOption<Expanded>,
    pub(super) metrics: OutputMetrics,
    /// The number of 2xx responses in a row that can't be read.
    pub(super) unread: AtomicU32,
    /// The doubts ([`confirm`](super::confirm)), and the number of requests that wait for a
    /// confirmation.
    pub(super) doubts: Arc<Doubts>,
    /// The tasks that read and write the connections, one for each. A task ends with its
    /// connection.
    pub(super) drivers: TaskTracker,
}

/// The room for events in a request.
pub(super) struct Room {
    pub(super) limits: config::BatchLimits,
    /// The size of a request's body divided by the size of its batch's events, in thousandths, at
    /// least 1,000. The value follows the requests so far: it rises at once and falls slowly, so
    /// that few batches are too large for one request.
    growth: AtomicU64,
}

impl Room {
    fn new(limits: config::BatchLimits) -> Self {
        Self { limits, growth: AtomicU64::new(1000) }
    }

    /// Updates the growth with a request whose batch had `bytes` bytes.
    pub(super) fn note(&self, bytes: u64, encoded: &Encoded, batch: &Sent) {
        let body = encoded.body.left().saturating_mul(batch.events);
        let grown = body.saturating_mul(1000) / (bytes * encoded.events).max(1);
        let before = self.growth.load(Ordering::Relaxed);
        let margin = grown / 64;
        self.growth.store((grown + margin).max(before - before / 64).max(1000), Ordering::Relaxed);
    }
}

impl Client {
    /// Returns the maximum events and bytes of the next batch. If the protocol wraps events, a
    /// batch may get fewer bytes, because the body of its request is larger than the batch.
    pub(super) fn take(&self) -> Take {
        let config::BatchLimits { max_bytes, max_events } = self.room.limits;
        let growth = self.room.growth.load(Ordering::Relaxed);
        let bytes = match self.api.wraps_events() {
            true => (max_bytes.saturating_mul(1000) / growth).max(1),
            false => max_bytes,
        };
        Take { bytes, events: max_events }
    }

    /// Makes a client that has read no file and made no connection yet.
    pub(super) fn new(client: &config::HttpClient, api: Arc<dyn Api>, setup: &Setup<'_>) -> Self {
        let output = setup.output;
        Self {
            config: client.clone(),
            api,
            queue: OnceLock::new(),
            timeouts: output.timeouts.clone(),
            room: Room::new(output.batch),
            endpoints: Arc::new(Endpoints::new(&output.name, client.strategy, &output.timeouts)),
            tls: Arc::new(Tls::new(client.tls.clone(), &[b"http/1.1"], setup.expiry.clone())),
            expanded: ArcSwapOption::empty(),
            metrics: setup.metrics.clone(),
            unread: AtomicU32::new(0),
            doubts: Arc::default(),
            drivers: TaskTracker::new(),
        }
    }

    /// Picks the address for the next request. Also returns the current URLs and headers, which
    /// match the address even during a reload. `None` without an address, or before the files of
    /// the config were read.
    pub(super) async fn pick(&self) -> Option<(Arc<Expanded>, Attempt)> {
        loop {
            let expanded = self.expanded.load_full()?;
            let attempt = self.endpoints.pick()?;
            let address = attempt.address();
            let endpoint = expanded.endpoints.get(address.endpoint);
            if endpoint.is_some_and(|endpoint| endpoint.base.at == address.name) {
                return Some((expanded, attempt));
            }
            // A reload has replaced the settings, and will replace the addresses in a moment.
            tokio::task::yield_now().await;
        }
    }

    /// Tests whether an address can be reached: connects, does the TLS handshake for an https URL,
    /// and closes the connection without a request to the consumer.
    pub(super) async fn reach(&self, address: ResolvedAddress) -> Result<(), Failure> {
        let gone = || {
            Failure::new(
                AttemptError::Protocol,
                format!("{address}: the config no longer has this URL"),
            )
        };
        let expanded = self.expanded.load_full().ok_or_else(gone)?;
        // During a reload, the URL at this place may be another one.
        let endpoint = expanded.endpoints.get(address.endpoint);
        let base = &endpoint.filter(|it| it.base.at == address.name).ok_or_else(gone)?.base;
        let mut deadline = Instant::now() + self.timeouts.connect;
        let stream = self.open(base, &address, expanded.proxy.as_ref(), &mut deadline).await?;
        if base.https {
            self.tls.handshake(&base.at, stream, deadline).await?;
        }
        Ok(())
    }

    /// Waits until all connections have ended, at most [`CLOSE_TIME`]. The caller must have dropped
    /// the connections.
    pub(super) async fn closed(&self) {
        self.drivers.close();
        tokio::time::timeout(CLOSE_TIME, self.drivers.wait()).await.ok();
    }

    /// Makes an HTTP connection to an address, with TLS for an https URL, and starts its task.
    pub(super) async fn dial(
        &self,
        base: &BaseUrl,
        address: ResolvedAddress,
        proxy: Option<&Proxy>,
    ) -> Result<PooledConnection, Failure> {
        let mut deadline = Instant::now() + self.timeouts.connect;
        let failure =
            |error: hyper::Error| Failure::new(AttemptError::Connect, format!("{base}: {error}"));
        let socket = Socket::new(self.open(base, &address, proxy, &mut deadline).await?);
        let (progress, shared) = (Progress::of(&socket), Arc::clone(&socket.shared));
        let (sender, driver) = if base.https {
            let stream = self.tls.handshake(&base.at, socket, deadline).await?;
            self.drive(progress.over(stream, shared)).await.map_err(failure)?
        } else {
            self.drive(progress.over(socket, shared)).await.map_err(failure)?
        };
        let (id, expiry) = (ConnectionId::random(), self.endpoints.expiry());
        let confirmations = Confirmations::new(address.id, &address.figures, &self.doubts);
        let key = ConnectionKey { base: base.clone(), proxy: proxy.cloned(), address };
        let cookies = self.api.confirm().map(|_| Cookies::default());
        Ok(PooledConnection {
            key,
            expiry,
            sender,
            progress,
            driver,
            busy: false,
            id,
            confirmations,
            was_alone: false,
            cookies,
        })
    }

    /// Begins HTTP/1.1 on a stream, and starts the task that reads and writes it. Returns the
    /// sender of requests and a handle that aborts the task. The task ends when the peer closes the
    /// connection, or when the sender is dropped and no request is unanswered.
    async fn drive(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> hyper::Result<(http1::SendRequest<Upload>, AbortHandle)> {
        // hyper writes as soon as this many bytes wait, and the body then makes its next piece in
        // the same memory. The limit also applies to the head of an answer. A folded header line
        // is valid in an answer (RFC 9112 §5.2), and a space behind a name is ignored (§5.1).
        let mut builder = http1::Builder::new();
        builder
            .max_buf_size(COPIED_BYTES)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        Ok((sender, self.drivers.spawn(driver).abort_handle()))
    }

    /// Makes a TCP connection to an address, directly or through the proxy. The time of the lookup
    /// of the proxy's name is added to `deadline`.
    pub(super) async fn open(
        &self,
        base: &BaseUrl,
        address: &ResolvedAddress,
        proxy: Option<&Proxy>,
        deadline: &mut Instant,
    ) -> Result<TcpStream, Failure> {
        let stream = match (proxy, address.socket) {
            (Some(proxy), _) => tunnel(base, proxy, self.timeouts.connect, deadline).await?,
            (None, Some(socket)) => {
                let connected = net::connect(socket, *deadline).await;
                connected.map_err(|error| dial_failure(&error))?
            }
            (None, None) => {
                let what = format!("{address} has no address");
                return Err(Failure::new(AttemptError::Resolve, what));
            }
        };
        // The socket options detect a silent peer early. An error is ignored, because the request
        // timeout still detects the peer.
        net::tune_dialled(&stream, KEEPALIVE, self.timeouts.request).ok();
        Ok(stream)
    }
}

/// Connects to the proxy and asks it to connect to the consumer. Returns the connection. All
/// further bytes on it are from and to the consumer. `patience` and `deadline`: see [`net::dial`].
pub(super) async fn tunnel(
    base: &BaseUrl,
    proxy: &Proxy,
    patience: Duration,
    deadline: &mut Instant,
) -> Result<TcpStream, Failure> {
    let dialled = net::dial(&proxy.at, patience, deadline).await.map_err(|error| {
        let failure = dial_failure(&error);
        Failure::new(failure.reason, format!("{base}: {proxy}: {failure}"))
    });
    let mut stream = dialled?;
    let opening = proxy.open(&mut stream, &base.at);
    let opened = tokio::time::timeout_at(*deadline, opening).await.unwrap_or_else(|_| {
        let what = format!("{proxy}: no response within the connect timeout");
        Err((AttemptError::Timeout, what))
    });
    opened.map_err(|(reason, what)| Failure::new(reason, format!("{base}: {what}")))?;
    Ok(stream)
}

impl Files for Client {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let expanded = Expanded::read(&self.config, &*self.api)?;
        let has_https = expanded.endpoints.iter().any(|endpoint| endpoint.base.https);
        let tls = has_https.then(|| Arc::clone(&self.tls).stage()).transpose()?;
        Ok(Box::new(move || {
            // A proxy resolves the consumer's name itself.
            let resolved_here = expanded.proxy.is_none();
            let endpoint = |endpoint: &HttpEndpoint| {
                let name = endpoint.base.at.clone();
                Endpoint { name, resolved_here }
            };
            let endpoints = expanded.endpoints.iter().map(endpoint).collect();
            self.api.take_up();
            self.expanded.store(Some(Arc::new(expanded)));
            self.endpoints.set(endpoints);
            tls.into_iter().for_each(|staged| staged());
        }))
    }

    fn effective(&self) -> String {
        self.expanded.load().as_ref().map(|expanded| expanded.effective.clone()).unwrap_or_default()
    }
}
