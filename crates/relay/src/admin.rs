//! Serves metrics, health, status and the status page on the admin address, and health on the probe
//! address too. These addresses are separate from those of the listeners, and take no events.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `all_dropped` `manual` `page` `places` | what all answers share · filters that drop everything · the pages of docs/ · the status page · places for connections |
//! | 2 | `access` `evidence` `history` | who may ask · the files of the evidence · the last hours |
//! | 3 | `tap` | taps |
//! | 4 | `sampling` `status` | the values of every 10 s · `/status` |

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listener::handshake;
use crate::source;
use base::lock::lock;
use base::words::counted;
use delivery::Status;
use delivery::tap::Taps;
use queue::Queue;
use telemetry::{OutputMetrics, Telemetry};

mod access;
mod all_dropped;
mod evidence;
mod history;
mod manual;
mod page;
mod places;
mod sampling;
mod status;
mod tap;

pub use access::Access;
pub use manual::Manual;

use access::{Audience, Refusal, Refused};
use history::History;
use places::{Place, Places};
use tap::Answer;

/// The longest time of a TLS handshake, and the longest wait for the complete head of the first or
/// the next request. After this time the admin server closes the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest lifetime of a connection to the admin server that is not a tap. Without this limit,
/// clients that are idle or read slowly could keep the few connections.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// The time that the last response to `/metrics` has to reach its client before the process ends.
const ANSWER: Duration = Duration::from_secs(1);

/// The value of the label `listener` for the certificate of the admin address.
const ADMIN: &str = "admin";

type Page = Response<Full<Bytes>>;

/// The state that the admin pages (`/metrics`, `/readyz`, `/status`) show. The relay shares this
/// value with the admin server and updates it.
pub struct Admin {
    telemetry: Arc<Telemetry>,
    queue: Queue,
    /// The outputs, listeners, sources and queue of the config in force. A reload replaces all of
    /// them together.
    shown: ArcSwap<Shown>,
    /// The error of the address for which a reload waits; `None` if no reload waits.
    awaited_address: Mutex<Option<String>>,
    /// The first mistake of the config that the last reload refused; `None` if it was applied.
    refused_config: Mutex<Option<String>>,
    history: History,
    /// `true`: the start of the relay is over.
    started: AtomicBool,
    stopping: AtomicBool,
    /// The number of requests for `/metrics`.
    scrapes: watch::Sender<u64>,
    /// The time at which this value was made, from which the uptime is counted.
    since: Instant,
    /// The machine's name, which in Kubernetes is the pod's name.
    host: String,
    /// The directory of the evidence log; `None` if there is no evidence.
    evidence: Option<PathBuf>,
    manual: Manual,
    tap: tap::Door,
    access: ArcSwap<Access>,
    refused: Refused,
    /// The time of the last request for `/metrics` that was refused with 401.
    unauthorized: Mutex<Option<Instant>>,
}

/// The parts of the config in force, in the config's order. All are empty until the start is over.
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
    /// `true`: the queue keeps events until this output has finished with them.
    pub required: bool,
    /// The lag above which the status page shows this output as late.
    pub lag_max: Duration,
    /// The setting `rate_limit`, in bytes per second.
    pub rate_limit: Option<u64>,
    /// The schema of the documents that leave: the value of the key `filter.shape`.
    pub shape: &'static str,
    /// The state of the connection and the last error, which the delivery loop updates.
    pub status: Arc<Status>,
}

/// One connection to the admin address or the probe address.
struct Caller {
    admin: Arc<Admin>,
    peer: SocketAddr,
    /// `true`: the connection is to the probe address.
    is_probe: bool,
    turn: tap::Turn,
    /// Tracks the tasks of all connections and taps.
    tracker: TaskTracker,
    /// Cancelled when the relay ends.
    stop: CancellationToken,
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
    /// Makes the state of a relay that has not started, without outputs, listeners and sources.
    pub fn new(
        telemetry: Arc<Telemetry>,
        queue: Queue,
        evidence: Option<PathBuf>,
        taps: Arc<Taps>,
        manual: Manual,
    ) -> Self {
        let now = Instant::now();
        Self {
            telemetry,
            queue,
            shown: ArcSwap::default(),
            awaited_address: Mutex::default(),
            refused_config: Mutex::default(),
            history: History::new(now),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            scrapes: watch::Sender::default(),
            since: now,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            evidence,
            manual,
            tap: tap::Door::new(taps),
            access: ArcSwap::default(),
            refused: Refused::default(),
            unauthorized: Mutex::default(),
        }
    }

    /// Replaces the parts of the config that the pages show, and removes all other outputs from the
    /// history.
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

    /// Returns the present access rules.
    pub fn access(&self) -> Arc<Access> {
        self.access.load_full()
    }

    /// Replaces the access rules, from the next request on. If the token for taps has changed, the
    /// open taps end. If TLS or the CA of clients has changed, all connections but taps end.
    pub fn admit(&self, mut access: Access) {
        self.tap.lock_with(access.tap.take());
        if let Some(not_after) = access.not_after() {
            self.telemetry.certificate_expiry("listener", ADMIN, "server", not_after);
        }
        let has_changed = self.access.load().asked() != access.asked();
        let before = self.access.swap(Arc::new(access));
        if has_changed {
            before.revoked.cancel();
        }
    }

    /// Notes that the start of the relay is over: `/readyz` responds with 200 until the drain.
    pub fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Notes the error of an address for which a reload waits; `None` if no reload waits.
    pub fn awaits_address(&self, error: Option<String>) {
        *lock(&self.awaited_address) = error;
    }

    /// Notes a reload: the reason for which it was refused, or `None` if the new config is in use.
    pub fn reloaded(&self, refused: Option<String>) {
        self.history.reloaded(Instant::now(), refused.is_none());
        *lock(&self.refused_config) = refused;
    }

    /// Notes that the drain begins: from now on `/readyz` responds with 503.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits for the next request for `/metrics`, until `deadline` at the latest. After such a
    /// request, waits a second more, in which the response can reach the client. Does not wait if
    /// `/metrics` was never requested.
    pub async fn scraped(&self, deadline: Instant) {
        let mut scrapes = self.scrapes.subscribe();
        if *scrapes.borrow_and_update() > 0
            && tokio::time::timeout_at(deadline, scrapes.changed()).await.is_ok()
        {
            tokio::time::sleep(ANSWER).await;
        }
    }

    /// Answers requests on `socket` until `stop` is cancelled, then ends all connections. If
    /// `is_probe` is `true`, serves only the pages for probes, otherwise all admin pages.
    pub async fn serve(
        self: Arc<Self>,
        socket: TcpListener,
        is_probe: bool,
        stop: CancellationToken,
    ) {
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
            let caller = Arc::new(Caller {
                admin: Arc::clone(&self),
                peer,
                is_probe,
                turn: tap::Turn::default(),
                tracker: tracker.clone(),
                stop: stop.clone(),
            });
            tracker.spawn(caller.serve(stream, places.take()));
        }
        tracker.close();
        tracker.wait().await;
    }

    fn metrics(&self) -> Page {
        self.scrapes.send_modify(|count| *count += 1);
        self.queue.observe();
        let shown = self.shown.load();
        for output in &shown.outputs {
            let addresses = output.status.addresses();
            self.telemetry.output_addresses(&output.name, addresses.iter().map(|it| &*it.state));
        }
        // Before its first attempt, an output is neither up nor down.
        let was_tried = |name: &str| {
            shown.outputs.iter().filter(|output| output.name == name).any(|output| {
                let snapshot = output.status.snapshot();
                snapshot.up || snapshot.down_since.is_some()
            })
        };
        let metrics = self.telemetry.render_states_of(|metric, place, name| {
            self.has(place, name) && (metric != OutputMetrics::up || was_tried(name))
        });
        let mut response = text(StatusCode::OK, metrics);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// Returns `true` if the config still has this output, or this listener with TLS, so that its
    /// states and certificates are shown. Until the start is over the config's parts are not known,
    /// and the result is always `true`.
    fn has(&self, place: &str, name: &str) -> bool {
        // A start that is over has shown its parts.
        if !self.started.load(Ordering::Acquire) {
            return true;
        }
        let shown = self.shown.load();
        match place {
            "output" => shown.outputs.iter().any(|it| it.name == name),
            _ if name == ADMIN => self.access.load().not_after().is_some(),
            _ => shown.listeners.iter().any(|it| it.tls && it.label == name),
        }
    }

    /// Returns the response to `/readyz`. If the query has the parameter `verbose`, the body lists
    /// every check. The status is 503 only during the start and the drain. If it were 503 for a
    /// full queue or a dead output too, Kubernetes would remove the pod from its Service. Senders
    /// would then get connection errors instead of a response that tells them to retry later.
    fn ready(&self, request: &Request<Incoming>) -> Page {
        let asks = |parameter: &str| parameter == "verbose" || parameter.starts_with("verbose=");
        let verbose = request.uri().query().is_some_and(|query| query.split('&').any(asks));
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
        // An operator whose Prometheus has a wrong token sees no metrics, and asks this address.
        if let Some(at) = *lock(&self.unauthorized) {
            let (count, ago) = (self.telemetry.unauthorized().get(), at.elapsed().as_secs());
            let requests = counted(count, "request", "requests");
            let why = format!("{requests} refused with 401, the last {ago} s ago (not fatal)");
            line("metrics", Some(&why));
        }
        for key in &self.access.load().faults {
            line(key, Some("its file can't be used, so nobody gets what it guards (not fatal)"));
        }
        let verdict = if reasons.is_empty() { "passed" } else { "failed" };
        body.push_str(&format!("readyz check {verdict}\n"));
        text(status, body)
    }

    /// Returns the response to `/drained`. The status is 200 if no event waits or is set aside for
    /// a required output. Otherwise it is 503, with a line for each output that has such events.
    /// Paused outputs are left out, because they deliver nothing.
    fn drained(&self) -> Page {
        let mut body = String::new();
        for (name, events) in self.waiting().into_iter().filter(|(_, events)| *events > 0) {
            // Writing to a `String` cannot fail.
            let what = if events == 1 { "event" } else { "events" };
            writeln!(body, "{events} {what} for the output {name}").ok();
        }
        match body.is_empty() {
            true => text(StatusCode::OK, "ok\n".to_owned()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, body),
        }
    }
}

impl Caller {
    async fn serve(self: Arc<Self>, stream: TcpStream, place: Place) {
        let access = self.admin.access();
        let service = service_fn(|request| {
            place.asked();
            self.respond(request)
        });
        if !access.is_open() && !self.is_probe {
            return;
        }
        let serving = async {
            let stream = match access.tls().filter(|_| !self.is_probe) {
                None => Either::Left(stream),
                Some(tls) => match handshake(&tls, stream, HEAD_TIMEOUT).await {
                    Ok(stream) => Either::Right(stream),
                    Err(why) => {
                        why.iter().for_each(|why| self.admin.refused.note(self.peer, why));
                        return;
                    }
                },
            };
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // The client caused this error: it has gone, or has not sent HTTP.
            serving.await.ok();
        };
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            biased;
            () = self.turn.begun() => {}
            () = self.stop.cancelled() => return,
            () = access.revoked.cancelled() => return,
            () = tokio::time::sleep(CONNECTION_TIME) => return,
            () = &mut serving => return,
            () = place.lost() => return,
        }
        // The connection is a tap now, which has limits of its own and ends by itself when the
        // relay ends.
        place.leave();
        tokio::select! {
            () = serving => {}
            () = self.turn.over() => {}
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let response = self.page(&request).await;
        let mut response = response.unwrap_or_else(|refusal| refusal.response().map(Answer::Left));
        let headers = response.headers_mut();
        // Browsers must trust the Content-Type. Files of the evidence may be cached, and say so.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// Returns the page that a request asks for. At the probe address, only the pages for probes
    /// exist. They also answer `OPTIONS`, the method of HAProxy's `option httpchk`.
    async fn page(&self, request: &Request<Incoming>) -> Result<Response<Answer>, Refusal> {
        use Audience::{Readers, Scrapers};
        let (admin, path, method) = (&self.admin, request.uri().path(), request.method());
        let is_get = [Method::GET, Method::HEAD].contains(method);
        let is_for_probes = is_get || method == Method::OPTIONS;
        let check = |audience| self.check(audience, request);
        let page = match path {
            "/livez" | "/healthz" if is_for_probes => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" if is_for_probes => admin.ready(request),
            "/drained" if is_for_probes => admin.drained(),
            _ if !is_get => {
                let mut page =
                    text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
                page.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                page
            }
            _ if self.is_probe => no_page(
                "no such page at the probe address: /livez /healthz /readyz /readyz?verbose \
                 /drained\n",
            ),
            // The page itself is the same for all relays. The facts that it shows come from
            // `/status`.
            "/" => page::response(),
            // A tap has a token of its own.
            "/tap" => {
                let shown = admin.shown.load();
                let names: Vec<_> = shown.outputs.iter().map(|it| it.name.clone()).collect();
                return admin.tap.open(request, &names, self);
            }
            "/metrics" => {
                check(Scrapers).inspect_err(|_| {
                    admin.telemetry.unauthorized().increment(1);
                    *lock(&admin.unauthorized) = Some(Instant::now());
                })?;
                admin.metrics()
            }
            "/status" => check(Readers).map(|()| json(admin.status()))?,
            "/status/history" => {
                check(Readers)?;
                admin.history_page().await
            }
            "/status/volume" => {
                check(Readers)?;
                admin.volume_page().await
            }
            _ if path.starts_with(evidence::PREFIX) => {
                check(Readers)?;
                let (log, path) = (admin.evidence.clone(), path.to_owned());
                let read = move || evidence::response(log.as_deref(), &path);
                made(read, "the file can't be read\n").await
            }
            // The manual says nothing about this relay.
            _ => manual::response(admin.manual, request).unwrap_or_else(|| {
                no_page(
                    "no such page: / /metrics /livez /healthz /readyz /readyz?verbose /drained \
                     /status /status/history /status/volume /evidence/ /tap; the manual is at \
                     /contents\n",
                )
            }),
        };
        Ok(page.map(Answer::Left))
    }

    /// Returns an error if the request has no right to the pages of this audience.
    fn check(&self, audience: Audience, request: &Request<Incoming>) -> Result<(), Refusal> {
        let what = self.admin.access.load().refusal(audience, request.headers());
        what.map_or(Ok(()), |what| Err(self.refuse(what)))
    }

    /// Logs that a request is refused, and returns the refusal.
    fn refuse(&self, what: &str) -> Refusal {
        self.admin.refused.note(self.peer, what);
        Refusal(StatusCode::UNAUTHORIZED, what.to_owned())
    }
}

/// Returns the page that `make` returns. `make` may take milliseconds, or read the disk. If `make`
/// panics, the response is 500 with the text `failed`.
async fn made(make: impl FnOnce() -> Page + Send + 'static, failed: &str) -> Page {
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, failed.to_owned()))
}

fn no_page(what: &str) -> Page {
    text(StatusCode::NOT_FOUND, what.to_owned())
}

fn json(body: String) -> Page {
    let mut response = text(StatusCode::OK, body);
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: String) -> Page {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
