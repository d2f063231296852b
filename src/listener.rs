//! Accepts batches from senders over HTTP/1.1 and h2, with or without TLS, and within limits. One
//! service answers all requests.
//!
//! A listener owns its accept loop and its connections. An error of `accept` is logged and tried
//! again after a pause; it never ends the process. A listener meets the outputs only at the queue.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::Response;
use hyper::Version;
use hyper::body::Incoming;
use hyper::header;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;
use tower::Service;
use tower::layer::util::Stack;

use crate::config;
use crate::net;
use crate::queue::Queue;
use crate::telemetry::ListenerMetrics;
use crate::telemetry::Telemetry;
use crate::tls::Server;
use crate::tls::not_after;

mod answer;
mod auth;
mod buffer;
mod connection;
mod framing;
mod handshake;
mod ingest;
mod large;

use answer::Body;
use answer::Refusal;
use auth::AuthLayer;
pub use auth::Token;
use buffer::Pool;
use connection::Connection;
use connection::Deadlines;
use connection::Lent;
use connection::Registered;
use connection::Registry;
use connection::Watched;
use handshake::Refused;
use ingest::Bounds;
use ingest::InFlight;
use ingest::Ingest;
use ingest::Shared;
use ingest::decoding;
use large::Sizes;

/// The largest head of a request in bytes. The read buffer of a connection has the same limit. The
/// default of hyper is larger, 408 KiB. With that default, 4,096 connections that send their heads
/// slowly would take 1.6 GiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The largest number of headers of a request.
const HEADERS_MAX: usize = 100;
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
/// The pause after an error of `accept` that concerns more than one connection, such as too many
/// open files. Without the pause the listener would fail again and again without a break.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits that all listeners share. The connections and requests of all listeners count against
/// these limits. The module `relay` owns this value. The drain (the orderly end of the relay) first
/// calls [`Gate::close`] and then waits in [`Gate::closed`]. If connections are still open after
/// half of the drain timeout, it calls [`Gate::cut`] during this wait.
pub struct Gate {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    /// The settings for connections (limits, deadlines and HTTP settings). A reload replaces them.
    rules: ArcSwap<Rules>,
    /// Tracks the tasks of all connections, so that the drain (the orderly end of the relay) can
    /// wait for them.
    connections: TaskTracker,
    /// This token is cancelled at the end of the drain: all connections that are still open are
    /// then aborted.
    aborted: CancellationToken,
}

/// The settings for connections, from the config. An open connection keeps the settings that were
/// valid when it was accepted. Only the deadlines of open connections change at once after a
/// reload.
struct Rules {
    /// The largest number of connections that all listeners together have open at the same time.
    max_connections: usize,
    /// The approximate age at which a connection ends after its current request; `None`:
    /// connections of any age may stay.
    max_connection_age: Option<Duration>,
    deadlines: Deadlines,
    protocols: auto::Builder<TokioExecutor>,
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
    /// Makes the gate (the limits that all listeners share) with the limits and deadlines of the
    /// config. The events of all requests go to `queue`.
    #[must_use]
    pub fn new(
        limits: &config::Limits,
        queue_config: &config::Queue,
        queue: Queue,
        telemetry: &Telemetry,
    ) -> Self {
        let shared = Shared {
            queue,
            in_flight: InFlight::new(telemetry.in_flight()),
            pool: Arc::new(Pool::default()),
            decoding: decoding(),
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

/// The settings of one listener for requests. They come from the config and from the files that the
/// config names. A reload replaces all settings of a listener at once.
pub struct Settings {
    path_prefix: String,
    token: Option<Token>,
    tls: Option<Arc<Server>>,
}

impl Settings {
    /// Reads the files that the config of a listener names. If neither the certificate files nor
    /// the TLS config have changed since `current` was read, keeps the TLS settings of `current`;
    /// clients can then resume their sessions. Returns `None` if the certificate, its key or the
    /// `client_ca` does not exist yet and the config has `tls.optional`. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// A text that names the file and its fault.
    pub fn read(config: &config::Listener, current: Option<&Self>) -> Result<Option<Self>, String> {
        let token = config.bearer_token_file.as_deref().map(Token::read).transpose()?;
        let tls = match &config.tls {
            None => None,
            Some(tls) => match Server::read(tls, current.and_then(|it| it.tls.as_ref())) {
                Ok(server) => Some(server),
                Err(error) if tls.optional && error.is_missing() => return Ok(None),
                Err(error) => return Err(error.to_string()),
            },
        };
        Ok(Some(Self { path_prefix: config.path_prefix.clone(), token, tls }))
    }

    /// Returns `true` if connections that were made under the settings `others` may stay open under
    /// these settings. They may stay if both settings use TLS with the same `client_ca`, or if
    /// neither uses TLS. Otherwise clients must connect again, because the certificate of a client
    /// is checked only in the TLS handshake.
    #[must_use]
    pub fn is_compatible(&self, others: &Self) -> bool {
        fn asked(settings: &Settings) -> Option<Option<&[u8]>> {
            settings.tls.as_ref().map(|tls| tls.client_ca())
        }
        asked(self) == asked(others)
    }
}

/// A listener on one bound address. All clones of this value are the same listener: they share the
/// socket and the settings, and closing one clone closes all of them.
#[derive(Clone)]
pub struct Listener {
    socket: Arc<TcpListener>,
    /// The address as configured, which is also the metrics' label `listener`.
    label: String,
    /// The settings for requests, which a reload replaces.
    settings: Arc<ArcSwap<Settings>>,
    metrics: ListenerMetrics,
    /// The senders that were refused, for the log.
    refused: Arc<Refused>,
    telemetry: Arc<Telemetry>,
    /// This token is cancelled when this listener is closed, or when the drain (the orderly end of
    /// the relay) closes all listeners. The listener then accepts no more connections.
    closing: CancellationToken,
    /// This token is cancelled when a reload has changed which clients may connect, so that the
    /// open connections of this listener must end. Their next requests are refused.
    revoked: CancellationToken,
}

impl Listener {
    /// Makes a listener on a socket that is already bound. Clients can already connect, because the
    /// kernel completes their connections. [`Listener::serve`] then accepts these connections.
    #[must_use]
    pub fn new(
        socket: TcpListener,
        config: &config::Listener,
        settings: Arc<Settings>,
        gate: &Gate,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let listener = Self {
            socket: Arc::new(socket),
            label: config.label.clone(),
            settings: Arc::new(ArcSwap::new(settings)),
            metrics: telemetry.listener(&config.label),
            refused: Arc::default(),
            telemetry,
            closing: gate.shared.closing.child_token(),
            revoked: CancellationToken::new(),
        };
        listener.show_expiry();
        listener
    }

    /// Updates the metric that shows when the certificate of this listener expires. Does nothing if
    /// the listener has no TLS.
    fn show_expiry(&self) {
        if let Some(not_after) = self.settings.load().tls.as_ref().and_then(|tls| tls.not_after()) {
            self.telemetry.certificate_expiry("listener", &self.label, "server", not_after);
        }
    }

    /// Returns the listener's address, as it is written in the config.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the address on which the socket listens. If the config has port 0, the result has
    /// the port that the kernel has chosen.
    ///
    /// # Errors
    ///
    /// The kernel cannot tell the address of the socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns the settings that are in use now for new requests.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Replaces the settings of this listener. New settings hold for TLS handshakes and requests
    /// that begin from now on. Open connections stay open.
    pub fn apply(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.show_expiry();
    }

    /// Makes a listener on the same socket with new settings. Open connections of the old listener,
    /// `self`, may not stay under the new settings (see [`Settings::is_compatible`]). The caller
    /// must also call `Listener::revoke` on the old listener.
    #[must_use]
    pub fn successor(&self, settings: Settings, gate: &Gate) -> Self {
        let successor = Self {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            closing: gate.shared.closing.child_token(),
            revoked: CancellationToken::new(),
            ..self.clone()
        };
        successor.show_expiry();
        successor
    }

    /// Stops accepting connections on this listener. Each open connection ends after its current
    /// request.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Stops accepting connections on this listener, as [`Listener::close`] does, and also refuses
    /// each request whose head is not complete yet. The refusal is needed for h2: a client that
    /// ignores GOAWAY could otherwise go on sending requests.
    pub fn revoke(&self) {
        self.revoked.cancel();
        self.closing.cancel();
    }

    /// Accepts connections and starts a task for each of them. Returns when this listener is
    /// closed, or when all listeners are closed.
    pub async fn serve(self, gate: Arc<Gate>) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    self.open(stream, peer, &gate);
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(listener = self.label, %error, "cannot accept connections, trying again");
                    }
                    let pause = tokio::time::sleep(ACCEPT_PAUSE);
                    self.closing.run_until_cancelled(pause).await;
                }
            }
        }
    }

    /// Starts the task that serves a new connection. If the limit of connections is reached,
    /// another connection is closed for the new one. If all other connections must stay, the new
    /// connection is closed at once.
    fn open(&self, stream: TcpStream, peer: SocketAddr, gate: &Arc<Gate>) {
        let rules = gate.rules.load_full();
        let Some(place) = gate.registry.open(rules.max_connections, self.metrics.clone()) else {
            tracing::debug!(
                listener = self.label,
                "connection closed: limits.max_connections other connections have a request under way"
            );
            return;
        };
        // An error is ignored, because a socket also works without these options.
        net::tune_accepted(&stream).ok();
        let tls = self.settings.load().tls.as_ref().map(|tls| TlsAcceptor::from(tls.settings()));
        let age = rules.max_connection_age.map(net::jittered);
        let stack = Stack::new(
            AuthLayer {
                settings: Arc::clone(&self.settings),
                revoked: self.revoked.clone(),
                refused: Arc::clone(&self.refused),
                listener: self.label.as_str().into(),
                peer,
            },
            CountLayer {
                connection: Arc::clone(&place.connection),
                max_age: age,
                closing: self.closing.clone(),
            },
        );
        let service = stack.layer(Ingest {
            shared: Arc::clone(&gate.shared),
            connection: Arc::clone(&place.connection),
            settings: Arc::clone(&self.settings),
        });
        let aborted = gate.aborted.clone();
        let (telemetry, label) = (Arc::clone(&self.telemetry), self.label.clone());
        let (metrics, refused) = (self.metrics.clone(), Arc::clone(&self.refused));
        let (closing, header_timeout) = (self.closing.clone(), rules.deadlines.header);
        let protocols = rules.protocols.clone();
        let serve = async move {
            match tls {
                None => {
                    place.connection.established(false);
                    serve_connection(protocols, stream, place, service, closing, age).await;
                }
                Some(acceptor) => {
                    let made = handshake::accept(acceptor, stream, header_timeout);
                    let handshake = tokio::select! {
                        handshake = made => handshake,
                        () = place.connection.judged() => return,
                        () = closing.cancelled() => return,
                    };
                    match handshake {
                        Ok(stream) => {
                            let session = stream.get_ref().1;
                            let leaf = session.peer_certificates().and_then(<[_]>::first);
                            if let Some(not_after) = leaf.and_then(not_after) {
                                telemetry
                                    .certificate_expiry("listener", &label, "client", not_after);
                            }
                            let h2 = session.alpn_protocol() == Some(b"h2");
                            place.connection.established(h2);
                            serve_connection(protocols, stream, place, service, closing, age).await;
                        }
                        Err(Some(failure)) => {
                            metrics.tls_failed(failure.reason);
                            refused.handshake(&label, peer, &failure);
                        }
                        Err(None) => {}
                    }
                }
            }
        };
        gate.connections.spawn(async move {
            aborted.run_until_cancelled(serve).await;
        });
    }
}

/// Returns `true` if an error of accept(2) concerns only one connection, which has already ended.
/// The listener can then accept the next connection without a pause.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::ConnectionRefused
    )
}

/// Returns hyper's settings for HTTP/1 and h2. `half_close` decides about a sender that has shut
/// down its write side. If it is `true`, the sender still gets its answer. If it is `false`, hyper
/// drops the request. The caller passes `false` with `acknowledge = "delivered"`. Answers may then
/// take seconds, and a sender that has gone looks the same as one that has only shut down its write
/// side.
fn protocols(half_close: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .header_read_timeout(None)
        .half_close(half_close);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

/// Serves one connection and returns when it has ended. When `closing` is cancelled, or an h2
/// connection has reached the age `max_age`, the connection ends after its current requests. An
/// HTTP/1.1 connection of that age ends with its next answer.
async fn serve_connection<T, S>(
    protocols: auto::Builder<TokioExecutor>,
    mut stream: T,
    place: Registered,
    service: S,
    closing: CancellationToken,
    max_age: Option<Duration>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let connection = Arc::clone(&place.connection);
    // An h2 connection of this age is sent GOAWAY, which loses no request. HTTP/1.1 has no such
    // message: the connection ends with the next answer, which has the header `Connection: close`.
    let old = async {
        match max_age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let mut old = std::pin::pin!(old);
    let (mut is_old, mut is_closing) = (false, false);
    loop {
        // hyper frees the buffers of a connection only with the connection. While no request is
        // under way, they hold nothing, so the connection gets a new state of hyper.
        let (lent, returned) = Lent::new(stream);
        let watched = Watched::new(Pin::new(lent), Arc::clone(&connection));
        let service = TowerToHyperService::new(service.clone());
        let mut serving = Box::pin(protocols.serve_connection(TokioIo::new(watched), service));
        loop {
            tokio::select! {
                biased;
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        tracing::trace!(error = %error, "connection ended");
                    }
                    return;
                }
                () = closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.leave();
                    serving.as_mut().graceful_shutdown();
                }
                () = connection.retired() => serving.as_mut().graceful_shutdown(),
                () = old.as_mut(), if !is_old => {
                    is_old = true;
                    if connection.is_multiplexed() {
                        serving.as_mut().graceful_shutdown();
                    }
                }
                () = connection.rested() => break,
            }
        }
        drop(serving);
        let Ok(returned) = returned.await else { return };
        stream = returned;
    }
}

/// The outermost layer of a connection's service. It counts each request and its answer in the
/// metrics. It also ends an HTTP/1.1 connection with the next answer, if the connection has reached
/// its maximum age or its listener is closed.
#[derive(Clone)]
struct CountLayer {
    connection: Arc<Connection>,
    /// The age at which the connection must end; `None`: a connection of any age may stay.
    max_age: Option<Duration>,
    /// This token is cancelled when the listener is closed.
    closing: CancellationToken,
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { settings: self.clone(), inner }
    }
}

/// The service that the layer [`CountLayer`] makes. It counts requests and passes them to `inner`.
#[derive(Clone)]
struct Count<S> {
    settings: CountLayer,
    inner: S,
}

impl<S> Service<Request<Incoming>> for Count<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let CountLayer { connection, max_age, closing } = self.settings.clone();
        let started = Instant::now();
        let multiplexed = request.version() == Version::HTTP_2;
        let in_time = connection.begin_request(multiplexed);
        let mut under_way = UnderWay { connection, in_time, refusing: false };
        let inner = self.inner.call(request);
        Box::pin(async move {
            let mut response = inner.await?;
            let connection = &under_way.connection;
            let metrics = connection.metrics();
            metrics.answered(response.status().as_u16());
            if let Some(Refusal { rejection, status, message }) = response.extensions().get() {
                metrics.rejected(*rejection, status.as_u16(), message);
                under_way.refusing = true;
            }
            let old = max_age.is_some_and(|max| connection.age() >= max);
            if !multiplexed && (old || closing.is_cancelled()) {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            metrics.duration.record(started.elapsed().as_secs_f64());
            drop(under_way);
            Ok(response)
        })
    }
}

/// A guard for one request that is under way. Dropping this value notes the end of the request. The
/// end is therefore noted even if the sender has gone and no answer is written.
struct UnderWay {
    connection: Arc<Connection>,
    /// The result of [`Connection::begin_request`]: `true` if the request began before the
    /// connection was told to end.
    in_time: bool,
    /// `true`: the answer to this request is a refusal.
    refusing: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.connection.end_request(self.in_time, self.refusing);
    }
}
