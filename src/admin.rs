//! Serves metrics, health, status and the status page on the admin address. The admin address is
//! separate from the addresses of the listeners, and takes no events.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
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
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::AddressState;
use crate::delivery::Status;
use crate::queue::Queue;
use crate::release;
use crate::source;
use crate::telemetry;
use crate::telemetry::Certificate;
use crate::telemetry::LastRejected;
use crate::telemetry::Reading;
use crate::telemetry::Telemetry;

mod evidence;
mod page;
mod places;

use places::Places;

/// The longest time that a client may take to send the complete head of a request. The time begins
/// when the connection is opened or the previous request has ended. After this time the admin
/// server closes the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest lifetime of a connection to the admin server. After this time the server closes the
/// connection, so that a client that is idle or reads slowly cannot keep one of the few connections
/// permanently.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// The state that the admin pages (`/metrics`, `/readyz`, `/status`) show. The module `relay`
/// shares this value with the admin server and updates it.
pub struct Admin {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    /// The outputs that exist now, in the order of the config.
    outputs: Mutex<Vec<Output>>,
    /// The listeners that exist now, in the order of the config.
    listeners: Mutex<Vec<Listener>>,
    /// The sources that exist now, in the order of the config.
    sources: Mutex<Vec<source::Shown>>,
    /// `true`: the start is over, and all outputs, listeners and sources are open.
    started: AtomicBool,
    /// `true`: the drain, which ends the relay, has begun.
    stopping: AtomicBool,
    /// The time at which this value was made, at the start of the process. The uptime is counted
    /// from this time.
    since: Instant,
    /// The machine's name, which in Kubernetes is the pod's name.
    host: String,
    /// The directory of the evidence log; `None` if there is no evidence.
    evidence: Option<PathBuf>,
}

/// An output as `/status` shows it.
pub struct Output {
    /// The output's name.
    pub name: String,
    /// The type of the output in the config: `http`, `tcp` and so on.
    pub kind: &'static str,
    /// `true`: the queue keeps events until this output has them.
    pub required: bool,
    /// The longest time that an event may wait for this output. The status page shows an event that
    /// waits longer as late.
    pub lag_max: Duration,
    /// The state of this output: connected or not, and the last error. The delivery loop of the
    /// output updates this state.
    pub status: Arc<Status>,
}

/// A listener as `/status` shows it.
pub struct Listener {
    /// The listener's address, as configured.
    pub label: String,
    /// `true`: the listener speaks HTTPS.
    pub tls: bool,
    /// The address on which the socket listens; `None` until the listener is open.
    pub address: Option<SocketAddr>,
}

impl Admin {
    /// Makes the state of a relay that has not started yet and has no outputs, listeners and
    /// sources.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, queue: Queue, evidence: Option<PathBuf>) -> Self {
        Self {
            telemetry,
            queue,
            outputs: Mutex::default(),
            listeners: Mutex::default(),
            sources: Mutex::default(),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            since: Instant::now(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            evidence,
        }
    }

    /// Replaces the outputs, listeners and sources that the pages show.
    pub fn show(
        &self,
        outputs: Vec<Output>,
        listeners: Vec<Listener>,
        sources: Vec<source::Shown>,
    ) {
        *lock(&self.outputs) = outputs;
        *lock(&self.listeners) = listeners;
        *lock(&self.sources) = sources;
    }

    /// Notes that all outputs, listeners and sources are open: `/readyz` answers 200 from now on,
    /// until the drain (the orderly end of the relay) begins.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Notes that the drain (the orderly end of the relay) begins: `/readyz` answers 503 from now
    /// on.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Answers requests for admin pages on `socket` until `stop` is cancelled. Then ends all
    /// connections and returns.
    pub async fn serve(self: Arc<Self>, socket: TcpListener, stop: CancellationToken) {
        let places = Arc::<Places>::default();
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
            let place = places.take();
            let (admin, stop) = (Arc::clone(&self), stop.clone());
            tracker.spawn(async move {
                let service = service_fn(|request| {
                    place.asked();
                    let admin = &admin;
                    async move { Ok::<_, Infallible>(admin.respond(&request).await) }
                });
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                // An error is ignored, because the client caused it: the client has gone, or has
                // not sent HTTP.
                let bounded = tokio::time::timeout(CONNECTION_TIME, serving);
                let bounded = place.lost.run_until_cancelled(bounded);
                drop(stop.run_until_cancelled(bounded).await);
            });
        }
        tracker.close();
        tracker.wait().await;
    }

    /// Returns the response to one request, for an admin page or for a file of the evidence.
    async fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().strip_prefix(evidence::PREFIX);
        let Some(path) = path.filter(|_| request.method() == Method::GET) else {
            return for_now(self.answer(request));
        };
        let (log, path) = (self.evidence.clone(), path.to_owned());
        let read = move || evidence::response(log.as_deref(), &path);
        let mut response = tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| {
            text(StatusCode::INTERNAL_SERVER_ERROR, "the file can't be read\n".to_owned())
        });
        believed(&mut response);
        response
    }

    /// Returns the response to one request for an admin page.
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => {
                self.queue.observe();
                let metrics = self.telemetry.render_states_of(|place, name| self.has(place, name));
                let mut response = text(StatusCode::OK, metrics);
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
            "/" => page::response(),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such page: / /metrics /livez /healthz /readyz /readyz?verbose /status /evidence/\n"
                    .to_owned(),
            ),
        }
    }

    /// Returns `true` if the admin pages may show the states (gauges) and the certificates of the
    /// output or listener `name`, which a reload can remove. Counters are always shown. If `place`
    /// is `output`, an output with this name must exist now. For any other `place`, a listener with
    /// this name and with TLS must exist now. Before the start is over, the result is always
    /// `true`, because the outputs and listeners are not known yet.
    fn has(&self, place: &str, name: &str) -> bool {
        if !self.started.load(Ordering::Relaxed) {
            return true;
        }
        match place {
            "output" => lock(&self.outputs).iter().any(|output| output.name == name),
            _ => {
                lock(&self.listeners).iter().any(|listener| listener.tls && listener.label == name)
            }
        }
    }

    /// Returns the response to `/readyz`. If `verbose` is `true`, its body lists every check. The
    /// status is 503 only during the start and the drain (the orderly end of the relay). A full
    /// queue or a dead output does not lead to 503. If it did, Kubernetes would remove the pod from
    /// its Service. Senders would then get connection errors, and not the answer to retry later.
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
            // Writing to a `String` cannot fail.
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
        for output in lock(&self.outputs).iter() {
            let snapshot = output.status.snapshot();
            let error = snapshot.last_error.unwrap_or_else(|| "not connected yet".to_owned());
            let why = format!("{error} (not fatal)");
            line(&format!("output {}", output.name), (!snapshot.up).then_some(why.as_str()));
        }
        let verdict = if reasons.is_empty() { "passed" } else { "failed" };
        body.push_str(&format!("readyz check {verdict}\n"));
        text(status, body)
    }

    /// Returns the JSON text of the page `/status`. A field that has the name of a metric has the
    /// same meaning as the metric. docs/reference/status-json.md lists all fields.
    fn status(&self) -> String {
        let (bytes, events) = self.queue.held();
        let reading = self.telemetry.read();
        let now = telemetry::now();
        let ago = |time: f64| (now - time).max(0.0);
        let status = json!({
            "version": release::VERSION,
            "revision": release::REVISION,
            "host": self.host,
            "time_seconds": now,
            "start_time_seconds": reading.started(),
            "uptime_seconds": self.since.elapsed().as_secs(),
            "tasks": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            "memory_bytes": reading.memory_bytes(),
            "memory_limit_bytes": reading.memory_limit_bytes(),
            "started": self.started.load(Ordering::Relaxed),
            "stopping": self.stopping.load(Ordering::Relaxed),
            "lost_events": reading.all_lost_events(),
            "accepted_events": reading.accepted_events(),
            "last_event_seconds_ago": reading.last_event().map(ago),
            "in_flight_bytes": reading.in_flight_bytes(),
            "log_dropped_lines": reading.log_dropped_lines(),
            "listeners": self.listeners(&reading),
            "sources": self.sources(&reading),
            "rejected_requests": rejected(&reading),
            "last_rejected": self.telemetry.last_rejected().as_ref().map(last_rejected),
            "queue": {
                "kind": match &self.queue {
                    Queue::Memory(_) => "memory",
                    Queue::Spool(_) => "disk",
                },
                "bytes": bytes,
                "capacity_bytes": self.queue.capacity(),
                "events": events,
                "full": self.queue.is_full(),
                "fault": self.queue.fault(),
                "lost_events": reading.lost_events("queue"),
            },
            "outputs": self.outputs(&reading),
            "certificates": self.certificates(&reading),
            "reloads": reloads(&reading, ago),
        });
        format!("{status:#}\n")
    }

    fn listeners(&self, reading: &Reading) -> Value {
        let listener = |state: &Listener| {
            json!({
                "listener": state.label,
                "tls": state.tls,
                "address": state.address.map(|address| address.to_string()),
                "connections": reading.connections(&state.label),
                "received_bytes": reading.received_bytes(&state.label),
            })
        };
        lock(&self.listeners).iter().map(listener).collect()
    }

    fn sources(&self, reading: &Reading) -> Value {
        lock(&self.sources).iter().map(|it| source(it, reading)).collect()
    }

    /// Returns, as JSON, the certificates of the outputs and listeners that exist now. The metrics
    /// may also have certificates of outputs and listeners that a reload has removed; the result
    /// leaves them out.
    fn certificates(&self, reading: &Reading) -> Value {
        let is_here = |it: &&Certificate| self.has(&it.place, &it.name);
        reading.certificates().iter().filter(is_here).map(certificate).collect()
    }

    fn outputs(&self, reading: &Reading) -> Value {
        let backlogs = self.queue.backlogs();
        let output = |output: &Output| {
            let snapshot = output.status.snapshot();
            let backlog = backlogs.iter().find(|(name, _)| *name == output.name);
            let backlog = backlog.map(|(_, backlog)| *backlog).unwrap_or_default();
            let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
            json!({
                "name": output.name,
                "type": output.kind,
                "required": output.required,
                "up": snapshot.up,
                "down_seconds": seconds(snapshot.down),
                "keeps_events": snapshot.keeps_events,
                "backlog_events": backlog.events,
                "backlog_bytes": backlog.bytes,
                "lag_seconds": backlog.lag,
                "lag_max_seconds": output.lag_max.as_secs_f64(),
                "delivered_events": reading.delivered_events(&output.name),
                "sent_bytes": reading.sent_bytes(&output.name),
                "retries": reading.retries(&output.name),
                "lost_events": reading.lost_events(&output.name),
                "dead_letter_events": reading.dead_letter_events(&output.name),
                "last_error": snapshot.last_error,
                "last_error_seconds_ago": seconds(snapshot.last_error_age),
                "next_retry_seconds": seconds(snapshot.next_retry),
                "addresses": snapshot.addresses.iter().map(address).collect::<Value>(),
            })
        };
        lock(&self.outputs).iter().map(output).collect()
    }
}

fn rejected(reading: &Reading) -> Value {
    reading
        .rejected_requests()
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), json!(count)))
        .collect()
}

fn last_rejected(last: &LastRejected) -> Value {
    json!({
        "listener": *last.listener,
        "reason": last.reason.name(),
        "code": last.code,
        "message": last.message,
        "seconds_ago": last.at.elapsed().as_secs_f64(),
    })
}

fn certificate(certificate: &Certificate) -> Value {
    json!({
        "place": certificate.place,
        "name": certificate.name,
        "role": certificate.role,
        "not_after_seconds": certificate.not_after,
    })
}

fn reloads(reading: &Reading, ago: impl Fn(f64) -> f64) -> Value {
    let of = |result| {
        let (count, last) = reading.reloads(result);
        json!({ "count": count, "last_seconds_ago": last.map(&ago) })
    };
    json!({ "success": of("success"), "error": of("error") })
}

fn address(state: &AddressState) -> Value {
    json!({ "address": state.address, "state": state.state, "used": state.used })
}

fn source(source: &source::Shown, reading: &Reading) -> Value {
    let [kind, topic, group] = source.config.origin();
    let snapshot = source.status.snapshot();
    let state = match (snapshot.partitions.is_empty(), snapshot.paused) {
        (true, _) => "waiting",
        (false, true) => "paused",
        (false, false) => "reading",
    };
    json!({
        "name": source.config.name,
        "type": kind,
        "topic": topic,
        "group": group,
        "state": state,
        "partitions": snapshot.partitions,
        "received_bytes": reading.received_bytes(&source.config.name),
        "last_error": snapshot.last_error,
    })
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns `true` if this parameter of a URL's query is `verbose` or `verbose=…`, which asks
/// `/readyz` to list all of its checks.
fn is_verbose(parameter: &str) -> bool {
    parameter == "verbose" || parameter.starts_with("verbose=")
}

/// Adds the headers that every response of the admin server has: caches must not store the
/// response, and browsers must believe its Content-Type.
fn for_now(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    believed(&mut response);
    response
}

/// Adds the header by which browsers believe the Content-Type of a response.
fn believed(response: &mut Response<Full<Bytes>>) {
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
