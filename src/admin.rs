//! Serves metrics, health, status and the status page on the admin address. The admin address is
//! separate from the addresses of the listeners, and takes no events.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `all_dropped` `page` `places` | what all answers share · filters that drop everything · the status page · where the relay runs |
//! | 2 | `evidence` `history` `tap` | the files of the evidence · the last hours · taps |
//! | 3 | `sampling` `status` | the values of every 10 s · `/status` |

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::Status;
use crate::listener::Token;
use crate::lock::lock;
use crate::queue::Queue;
use crate::tap::Taps;
use crate::telemetry::{OutputMetrics, Telemetry};
use crate::{config, source};

mod all_dropped;
mod evidence;
mod history;
mod page;
mod places;
mod sampling;
mod status;
mod tap;

use history::History;
use places::Places;

/// The longest time that a client may take to send the complete head of a request. The time begins
/// when the connection is opened or the previous request has ended. After this time the admin
/// server closes the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest lifetime of a connection to the admin server. After this time the server closes the
/// connection, so that a client that is idle or reads slowly cannot keep one of the few connections
/// permanently.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// The time for which an answer to `/metrics` may be on its way before the process ends.
const ANSWER: Duration = Duration::from_secs(1);

/// The state that the admin pages (`/metrics`, `/readyz`, `/status`) show. The module `relay`
/// shares this value with the admin server and updates it.
pub struct Admin {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    /// The outputs, listeners, sources and the queue of the config in force. A reload replaces all
    /// of them together.
    shown: ArcSwap<Shown>,
    /// The error of the address for which a reload waits; `None` if it waits for none.
    awaited_address: Mutex<Option<String>>,
    history: History,
    /// `true`: the start is over, and all outputs, listeners and sources are open.
    started: AtomicBool,
    /// `true`: the drain has begun.
    stopping: AtomicBool,
    /// The number of requests for `/metrics`.
    scrapes: watch::Sender<u64>,
    /// The time at which this value was made, at the start of the process. The uptime is counted
    /// from this time.
    since: Instant,
    /// The machine's name, which in Kubernetes is the pod's name.
    host: String,
    /// The directory of the evidence log; `None` if there is no evidence.
    evidence: Option<PathBuf>,
    /// The route `/tap`.
    tap: tap::Door,
}

/// The parts of the config in force that the pages show, in the order of the config. All are empty
/// before the start is over.
#[derive(Default)]
struct Shown {
    outputs: Vec<Output>,
    listeners: Vec<Listener>,
    sources: Vec<source::Shown>,
    queue: Option<config::Queue>,
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
    /// The schema of the documents that leave: the value of the key `filter.shape`.
    pub shape: &'static str,
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
    pub fn new(
        telemetry: Arc<Telemetry>,
        queue: Queue,
        evidence: Option<PathBuf>,
        taps: Arc<Taps>,
    ) -> Self {
        let now = Instant::now();
        Self {
            telemetry,
            queue,
            shown: ArcSwap::default(),
            awaited_address: Mutex::default(),
            history: History::new(now),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            scrapes: watch::Sender::default(),
            since: now,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            evidence,
            tap: tap::Door::new(taps),
        }
    }

    /// Replaces what the pages show. Outputs that no longer exist are removed from the history.
    pub fn show(
        &self,
        outputs: Vec<Output>,
        listeners: Vec<Listener>,
        sources: Vec<source::Shown>,
        queue: &config::Queue,
    ) {
        self.history.keep(|name| outputs.iter().any(|output| output.name == name));
        let queue = Some(queue.clone());
        self.shown.store(Arc::new(Shown { outputs, listeners, sources, queue }));
    }

    /// Sets the token that opens taps. With `None`, nobody can open one. If the token has changed,
    /// the open taps end.
    pub fn tap_token(&self, token: Option<Token>) {
        self.tap.lock_with(token);
    }

    /// Notes that all outputs, listeners and sources are open: `/readyz` answers 200 from now on,
    /// until the drain begins.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Notes the error of an address for which a reload waits; `None` if it waits for none.
    pub fn awaits_address(&self, error: Option<String>) {
        *lock(&self.awaited_address) = error;
    }

    /// Notes that the config was reloaded. `success` is `true` if the new config is in use with all
    /// its listeners.
    pub fn reloaded(&self, success: bool) {
        self.history.reloaded(Instant::now(), success);
    }

    /// Notes that the drain begins: `/readyz` answers 503 from now on.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until `/metrics` was read once more, but not after `deadline`. Does not wait if nobody
    /// has read it yet.
    pub async fn scraped(&self, deadline: Instant) {
        let mut scrapes = self.scrapes.subscribe();
        if *scrapes.borrow_and_update() > 0
            && tokio::time::timeout_at(deadline, scrapes.changed()).await.is_ok()
        {
            tokio::time::sleep(ANSWER).await;
        }
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
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept on the admin address");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = places.take();
            let (admin, stop, tasks) = (Arc::clone(&self), stop.clone(), tracker.clone());
            tracker.spawn(async move {
                let turn = tap::Turn::default();
                let caller = tap::Caller { peer, turn: &turn, tracker: &tasks, stop: &stop };
                let service = service_fn(|request| {
                    place.asked();
                    let (admin, caller) = (&admin, &caller);
                    async move { Ok::<_, Infallible>(admin.respond_or_tap(&request, caller).await) }
                });
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                // An error is ignored, because the client caused it: the client has gone, or has
                // not sent HTTP.
                let mut serving = std::pin::pin!(serving);
                tokio::select! {
                    biased;
                    () = turn.begun() => {}
                    () = stop.cancelled() => return,
                    () = place.lost.cancelled() => return,
                    () = tokio::time::sleep(CONNECTION_TIME) => return,
                    _ = &mut serving => return,
                }
                // The connection is a tap now, which has limits of its own and ends by itself at
                // the stop.
                place.leave();
                tokio::select! {
                    _ = serving => {}
                    () = turn.over() => {}
                }
            });
        }
        tracker.close();
        tracker.wait().await;
    }

    /// Returns the response to one request: the lines of a tap, or one of the other responses.
    async fn respond_or_tap(
        self: &Arc<Self>,
        request: &Request<Incoming>,
        caller: &tap::Caller<'_>,
    ) -> Response<tap::Answer> {
        if !tap::Door::is_for(request) {
            return self.respond(request).await.map(Either::Left);
        }
        let shown = self.shown.load();
        let names: Vec<_> = shown.outputs.iter().map(|output| output.name.clone()).collect();
        self.tap.open(request, &names, caller)
    }

    /// Returns the response to one request, for an admin page or for a file of the evidence.
    async fn respond(self: &Arc<Self>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/status/history") => return for_now(self.history_response().await),
            (&Method::GET, "/status/volume") => return for_now(self.volume_response().await),
            _ => {}
        }
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
                self.scrapes.send_modify(|count| *count += 1);
                self.queue.observe();
                self.observe_addresses();
                let metrics = self.telemetry.render_states_of(|metric, place, name| {
                    self.has(place, name) && (metric != OutputMetrics::up || self.was_tried(name))
                });
                let mut response = text(StatusCode::OK, metrics);
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/livez" | "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self
                .ready(request.uri().query().is_some_and(|query| query.split('&').any(is_verbose))),
            "/status" => json(self.status()),
            "/" => page::response(),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such page: / /metrics /livez /healthz /readyz /readyz?verbose /status \
                 /status/history /status/volume /evidence/ /tap\n"
                    .to_owned(),
            ),
        }
    }

    /// Returns `true` if the config still has this output, or this listener with TLS: only then do
    /// the pages show its states and certificates. Before the start is over, the result is always
    /// `true`, because the outputs and listeners are not known yet.
    fn has(&self, place: &str, name: &str) -> bool {
        if !self.started.load(Ordering::Relaxed) {
            return true;
        }
        let shown = self.shown.load();
        match place {
            "output" => shown.outputs.iter().any(|it| it.name == name),
            _ => shown.listeners.iter().any(|it| it.tls && it.label == name),
        }
    }

    /// Sets the gauges that count the addresses of each output.
    fn observe_addresses(&self) {
        for output in &self.shown.load().outputs {
            let addresses = output.status.addresses();
            self.telemetry.output_addresses(&output.name, addresses.iter().map(|it| it.state));
        }
    }

    /// Returns `true` if the output `name` has made an attempt, so that it is either up or down.
    fn was_tried(&self, name: &str) -> bool {
        self.shown.load().outputs.iter().any(|output| {
            let snapshot = output.status.snapshot();
            output.name == name && (snapshot.up || snapshot.down_since.is_some())
        })
    }

    /// Returns the response to `/readyz`. If `verbose` is `true`, its body lists every check. The
    /// status is 503 only during the start and the drain. A full queue or a dead output does not
    /// lead to 503. If it did, Kubernetes would remove the pod from its Service. Senders would then
    /// get connection errors, and not the answer to retry later.
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
        for output in &self.shown.load().outputs {
            let snapshot = output.status.snapshot();
            let error = snapshot.last_error.map(|(error, _)| error);
            let why = format!("{} (not fatal)", error.as_deref().unwrap_or("not connected yet"));
            line(&format!("output {}", output.name), (!snapshot.up).then_some(why.as_str()));
        }
        let verdict = if reasons.is_empty() { "passed" } else { "failed" };
        body.push_str(&format!("readyz check {verdict}\n"));
        text(status, body)
    }
}

/// Returns `true` if this parameter of a URL's query is `verbose` or `verbose=…`, which asks
/// `/readyz` to list all of its checks.
fn is_verbose(parameter: &str) -> bool {
    parameter == "verbose" || parameter.starts_with("verbose=")
}

/// Adds the headers of a response that describes the present state: caches must not store the
/// response, and browsers must believe its Content-Type.
fn for_now(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    believed(&mut response);
    response
}

/// Adds the header by which browsers believe the Content-Type of a response.
fn believed<B>(response: &mut Response<B>) {
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
