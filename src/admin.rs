//! Metrics, health and status, on an address of their own and never on the ingest port.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::output::Status;
use crate::queue::Queue;
use crate::telemetry::Telemetry;

/// A scraper, probes and a person or two; more is a mistake, and must not cost the relay anything.
const CONNECTIONS_MAX: usize = 64;

/// A head must come so fast; the same for the next on a kept connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest life of a connection: whoever idles or reads slowly does not keep its place.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// What the routes tell of. Shared with `relay`, which sets what changes.
pub struct Admin {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    outputs: Vec<Output>,
    listeners: Mutex<Vec<ListenerState>>,
    started: AtomicBool,
    stopping: AtomicBool,
    since: Instant,
}

/// One output as `/status` shows it.
pub struct Output {
    /// Its name.
    pub name: String,
    /// `http`, `tcp`, ….
    pub kind: &'static str,
    /// What its delivery reports.
    pub status: Arc<Status>,
}

struct ListenerState {
    label: String,
    tls: bool,
    address: Option<SocketAddr>,
}

impl Admin {
    /// Neither started nor stopping.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, queue: Queue, outputs: Vec<Output>) -> Self {
        Self {
            telemetry,
            queue,
            outputs,
            listeners: Mutex::default(),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            since: Instant::now(),
        }
    }

    /// A listener is configured.
    pub fn listener(&self, label: &str, tls: bool) {
        let state = ListenerState { label: label.to_owned(), tls, address: None };
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(state);
    }

    /// A listener is open.
    pub fn listening(&self, label: &str, address: SocketAddr) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let unopened = |state: &&mut ListenerState| state.label == label && state.address.is_none();
        if let Some(state) = listeners.iter_mut().find(unopened) {
            state.address = Some(address);
        }
    }

    /// Everything is open: `/readyz` is 200 from now on.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// The drain begins: `/readyz` is 503 from now on.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Answers until stopped.
    pub async fn serve(self: Arc<Self>, socket: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept on the admin address");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (admin, stop) = (Arc::clone(&self), stop.clone());
            tracker.spawn(async move {
                let service = service_fn(|request| {
                    std::future::ready(Ok::<_, Infallible>(admin.answer(&request)))
                });
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                // Errors are the client's: it went away, or sent no HTTP.
                let bounded = tokio::time::timeout(CONNECTION_TIME, serving);
                drop(stop.run_until_cancelled(bounded).await);
                drop(place);
            });
        }
        tracker.close();
        tracker.wait().await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => {
                self.queue.observe();
                let mut response = text(StatusCode::OK, self.telemetry.render());
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/livez" | "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self
                .ready(request.uri().query().is_some_and(|query| query.split('&').any(is_verbose))),
            "/status" => {
                let mut response = text(StatusCode::OK, self.status());
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            "/" => text(
                StatusCode::OK,
                "/metrics /livez /healthz /readyz /readyz?verbose /status\n".to_owned(),
            ),
            _ => text(StatusCode::NOT_FOUND, "no such page; / lists them\n".to_owned()),
        }
    }

    /// Only what must keep senders away fails it: a full queue or a dead output does not, because a pod that leaves its
    /// Service turns back-pressure into connection errors.
    fn ready(&self, verbose: bool) -> Response<Full<Bytes>> {
        let mut reasons = Vec::new();
        if !self.started.load(Ordering::Relaxed) {
            reasons.push("starting");
        }
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("shutting down");
        }
        let status =
            if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        if !verbose {
            let body = if reasons.is_empty() { "ok".to_owned() } else { reasons.join("\n") };
            return text(status, format!("{body}\n"));
        }
        let mut body = String::new();
        let mut line = |name: &str, failed: Option<&str>| {
            // Writing to a String can't fail.
            match failed {
                None => writeln!(body, "[+]{name} ok").ok(),
                Some(why) => writeln!(body, "[-]{name} {why}").ok(),
            };
        };
        let is = |reason: &str| reasons.contains(&reason).then_some("failed");
        line("started", is("starting"));
        line("serving", is("shutting down"));
        line("queue-room", self.queue.is_full().then_some("the queue is full (not fatal)"));
        let fault = self.queue.fault().map(|fault| format!("{fault} (not fatal)"));
        line("queue-writable", fault.as_deref());
        for output in &self.outputs {
            let snapshot = output.status.snapshot();
            let error = snapshot.last_error.unwrap_or_else(|| "not connected yet".to_owned());
            let why = format!("{error} (not fatal)");
            line(&format!("output {}", output.name), (!snapshot.up).then_some(why.as_str()));
        }
        let verdict = if reasons.is_empty() { "passed" } else { "failed" };
        body.push_str(&format!("readyz check {verdict}\n"));
        text(status, body)
    }

    fn status(&self) -> String {
        let (bytes, events) = self.queue.held();
        let backlogs = self.queue.backlogs();
        let outputs: Vec<_> = self
            .outputs
            .iter()
            .map(|output| {
                let snapshot = output.status.snapshot();
                let backlog = backlogs
                    .iter()
                    .find(|(name, _)| *name == output.name)
                    .map(|(_, backlog)| *backlog);
                let backlog = backlog.unwrap_or_default();
                json!({
                    "name": output.name,
                    "type": output.kind,
                    "up": snapshot.up,
                    "backlog_events": backlog.events,
                    "backlog_bytes": backlog.bytes,
                    "lag_seconds": backlog.lag,
                    "last_error": snapshot.last_error,
                    "next_retry_seconds": snapshot.next_retry.map(|wait| wait.as_secs_f64()),
                })
            })
            .collect();
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners: Vec<_> = listeners
            .iter()
            .map(|state| {
                json!({
                    "listener": state.label,
                    "tls": state.tls,
                    "address": state.address.map(|address| address.to_string()),
                })
            })
            .collect();
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.since.elapsed().as_secs(),
            "started": self.started.load(Ordering::Relaxed),
            "stopping": self.stopping.load(Ordering::Relaxed),
            "listeners": listeners,
            "queue": {
                "bytes": bytes,
                "capacity_bytes": self.queue.capacity(),
                "events": events,
                "fault": self.queue.fault(),
            },
            "outputs": outputs,
        });
        format!("{status:#}\n")
    }
}

fn is_verbose(parameter: &str) -> bool {
    parameter == "verbose" || parameter.starts_with("verbose=")
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
