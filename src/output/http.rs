//! `type = "http"`: one POST for each batch; 2xx is the acknowledgement, if the consumer had the
//! whole request by then.
//!
//! `concurrency` lanes each keep one HTTP/1.1 connection to each address whose turn it was. 400,
//! 413 and 422 concern the events and are told apart from all other answers, which are retried.
//! Redirects are never followed. Nothing here logs or reports a path or query: they may hold a
//! token.
//!
//! With `round_robin`, a request that is silent while another address works (`silence`) is given to
//! that one too, once: the first answer counts. A lone consumer is given `timeouts.request`, and so
//! is the first of a `failover`: whether the others work is not known while they get nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use url::Url;

mod body;
mod proxy;
mod silence;
mod wire;

use super::json_lines::audit_log;
use super::transport::connection::dial_failure;
use super::transport::tls_session::Expiry;
use super::transport::tls_session::Tls;
use crate::audit::LIST_HEAD;
use crate::config;
use crate::config::Compression;
use crate::config::HostPort;
use crate::config::HttpFormat;
use crate::config::Strategy;
use crate::delivery::endpoints;
use crate::delivery::endpoints::Attempt;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::endpoints::Place;
use crate::delivery::endpoints::Probed;
use crate::delivery::endpoints::Watch;
use crate::delivery::failure::Failure;
use crate::delivery::failure::RETRY_AFTER_MAX;
use crate::delivery::failure::StageError;
use crate::delivery::files::Files;
use crate::delivery::files::Staged;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::net;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;

use body::Pieces;
use body::Upload;
use body::gzip;
use body::zstd;
use proxy::Proxy;
use silence::Answers;
use silence::Waiting;
use wire::Marks;
use wire::Progress;
use wire::Wire;

/// A consumer's answer is read so far, to keep the connection; a longer one ends it.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// And for so long, and no longer than the head was waited for: the status has come by then, which
/// is all that counts.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// How often in `timeouts.request` progress is looked for.
const LOOKS: u32 = 10;

/// And at least so often where silence is noticed.
const SILENCE_LOOK: Duration = Duration::from_millis(100);

/// While a request of less than [`SMALL_BYTES`] is under way that is younger than this, the next one waits: for an answer,
/// or so long. Single events then become fewer requests, where answers are quick; where they are not, hardly later ones.
const COALESCE: Duration = Duration::from_millis(5);
const SMALL_BYTES: u64 = 64 * 1024;

/// TCP keepalive of kept connections.
const KEEPALIVE: Duration = Duration::from_secs(30);

const USER_AGENT: &str = concat!("kube-audit-forwarder/", env!("CARGO_PKG_VERSION"));

/// What of the settings comes from `${…}` and files.
struct Targets {
    targets: Vec<Target>,
    proxy: Option<Proxy>,
    headers: HeaderMap,
}

struct Target {
    origin: Origin,
    authority: HeaderValue,
    path_and_query: String,
}

/// Where a connection leads: all of a URL that may be shown.
#[derive(Clone, PartialEq)]
struct Origin {
    https: bool,
    at: HostPort,
}

/// One output's requests. Shared by its lanes.
struct Client {
    config: config::HttpOutput,
    timeouts: config::Timeouts,
    limits: config::BatchLimits,
    endpoints: Arc<Endpoints>,
    tls: Arc<Tls>,
    targets: ArcSwapOption<Targets>,
    metrics: OutputMetrics,
    answers: Answers,
    /// Owns the tasks that drive connections.
    drivers: TaskTracker,
}

impl Client {
    fn new(
        http: &config::HttpOutput,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        Self {
            config: http.clone(),
            timeouts: output.timeouts.clone(),
            limits: output.batch,
            endpoints: Arc::new(Endpoints::new(&output.name, http.strategy, &output.timeouts)),
            tls: Arc::new(Tls::new(http.tls.clone(), &[b"http/1.1"], expiry)),
            targets: ArcSwapOption::empty(),
            metrics,
            answers: Answers::default(),
            drivers: TaskTracker::new(),
        }
    }

    /// Expands what the config has as templates. Errors name keys and files, never what they expand to.
    fn expand(&self) -> Result<Targets, String> {
        let mut targets = Vec::new();
        for (index, template) in self.config.urls.iter().enumerate() {
            let text = template.expand().map_err(|error| chain(&error))?;
            targets.push(target(&text).map_err(|what| format!("urls[{index}] {what}"))?);
        }
        let proxy = match &self.config.proxy {
            Some(template) => {
                let text = template.expand().map_err(|error| chain(&error))?;
                Some(Proxy::new(&text).map_err(|what| format!("proxy {what}"))?)
            }
            None => None,
        };
        let mut headers = HeaderMap::new();
        for (name, template) in &self.config.headers {
            let text = template.expand().map_err(|error| chain(&error))?;
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("headers.{name} is no header name"))?;
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| format!("headers.{name} is no header value"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let cannot_read = |file: &std::path::Path, error: std::io::Error| {
            format!("cannot read {}: {error}", file.display())
        };
        let credentials = if let Some(file) = &self.config.bearer_token_file {
            let token = config::read_token(file).map_err(|error| cannot_read(file, error))?;
            Some((format!("Bearer {token}"), file))
        } else if let Some(basic) = &self.config.basic_auth {
            let user = basic.username.expand().map_err(|error| chain(&error))?;
            // A password may begin or end with a blank, so only its line break goes.
            let file = &basic.password_file;
            let password = config::read_secret(file).map_err(|error| cannot_read(file, error))?;
            let pair = format!("{user}:{password}");
            Some((format!("Basic {}", BASE64_STANDARD.encode(pair)), file))
        } else {
            None
        };
        if let Some((credentials, file)) = credentials {
            let mut value = HeaderValue::from_str(&credentials)
                .map_err(|_| format!("{} holds what no header can", file.display()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(Targets { targets, proxy, headers })
    }

    /// Connects to a place and sends nothing.
    async fn reach(&self, place: Place) -> Result<(), Failure> {
        let gone =
            || Failure::new(AttemptError::Protocol, format!("{place}: no such URL any more"));
        let targets = self.targets.load_full().ok_or_else(gone)?;
        let target = targets.targets.get(place.entry).ok_or_else(gone)?;
        let origin = &target.origin;
        let deadline = Instant::now() + self.timeouts.connect;
        let stream = self.open(origin, &place, targets.proxy.as_ref(), deadline).await?;
        if origin.https {
            let HostPort { host, port } = &origin.at;
            self.tls.handshake(host, *port, stream, deadline).await?;
        }
        Ok(())
    }

    /// A way to the origin, by itself or through the proxy.
    async fn open(
        &self,
        origin: &Origin,
        place: &Place,
        proxy: Option<&Proxy>,
        deadline: Instant,
    ) -> Result<TcpStream, Failure> {
        let stream = match (proxy, place.socket) {
            (Some(proxy), _) => {
                let HostPort { host, port } = &proxy.at;
                let dialled = net::dial(host, *port, deadline).await.map_err(|error| {
                    let failure = dial_failure(&error);
                    Failure::new(failure.reason, format!("{origin}: {proxy}: {failure}"))
                });
                let mut stream = dialled?;
                let opening = proxy.open(&mut stream, &origin.at);
                let opened =
                    tokio::time::timeout_at(deadline, opening).await.unwrap_or_else(|_| {
                        let what = format!("{proxy}: no answer within the connect timeout");
                        Err((AttemptError::Timeout, what))
                    });
                opened
                    .map_err(|(reason, what)| Failure::new(reason, format!("{origin}: {what}")))?;
                stream
            }
            (None, Some(address)) => {
                let connected = net::connect(address, deadline).await;
                connected.map_err(|error| dial_failure(&error))?
            }
            (None, None) => {
                let what = format!("{place} has no address");
                return Err(Failure::new(AttemptError::Resolve, what));
            }
        };
        net::tune_dialled(&stream, KEEPALIVE, self.timeouts.request).ok();
        Ok(stream)
    }

    async fn dial(
        &self,
        origin: &Origin,
        place: Place,
        proxy: Option<&Proxy>,
    ) -> Result<Kept, Failure> {
        let deadline = Instant::now() + self.timeouts.connect;
        let failure =
            |error: hyper::Error| Failure::new(AttemptError::Connect, format!("{origin}: {error}"));
        let wire = Wire::new(self.open(origin, &place, proxy, deadline).await?);
        let watch = wire.watch();
        let progress = watch.progress();
        // The drivers end with their connections: when the lane drops its half, or the peer closes.
        let (sender, driver) = if origin.https {
            let HostPort { host, port } = &origin.at;
            let stream = watch.over(self.tls.handshake(host, *port, wire, deadline).await?);
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
            (sender, self.drivers.spawn(driver).abort_handle())
        } else {
            let stream = watch.over(wire);
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
            (sender, self.drivers.spawn(driver).abort_handle())
        };
        let way = Way { origin: origin.clone(), proxy: proxy.cloned(), place };
        Ok(Kept { way, expiry: self.endpoints.expiry(), sender, progress, driver, busy: false })
    }

    /// The next address, and the settings as they are now. `None` before the files have been read.
    async fn pick(&self) -> Option<(Arc<Targets>, Attempt)> {
        loop {
            let targets = self.targets.load_full()?;
            let attempt = self.endpoints.pick()?;
            let place = attempt.place();
            if targets.targets.get(place.entry).is_some_and(|it| it.origin.at == place.name) {
                return Some((targets, attempt));
            }
            // The URLs are changing, between the one and the other.
            tokio::task::yield_now().await;
        }
    }

    /// Sends a batch on a lane's connection, or on a new one where it has none for the address
    /// whose turn it is; and to another one too, where that is silent and the other is not.
    async fn attempt(&self, lane: &mut Lane, batch: Batch) -> (usize, Outcome) {
        let Some((targets, attempt)) = self.pick().await else {
            let failure =
                Failure::new(AttemptError::Protocol, "the URL's files have not been read");
            return (0, Outcome::Failed(failure));
        };
        let body = match self.encode(batch).await {
            Ok(body) => body,
            Err(failure) => {
                let outcome = Outcome::Failed(failure);
                return self.settle(lane, Exchanged { attempt, outcome, kept: None });
            }
        };
        let waiting = Waiting::default();
        let kept = lane.take(&targets, attempt.place());
        let mut first =
            Box::pin(self.exchange(kept, &targets, attempt, body.clone(), Some(&waiting)));
        let (silent, since, other) = tokio::select! {
            biased;
            done = first.as_mut() => return self.settle(lane, done),
            silence = self.silence(&waiting) => silence,
        };
        self.endpoints.suspect(silent, since.elapsed());
        self.metrics.retries.increment(1);
        let kept = lane.take(&targets, &other);
        let attempt = self.endpoints.give(other);
        let mut second = Box::pin(self.exchange(kept, &targets, attempt, body, None));
        let (done, other) = tokio::select! {
            biased;
            done = first.as_mut() => (done, second),
            done = second.as_mut() => {
                if !matches!(done.outcome, Outcome::Failed(_)) {
                    // The silent one is not waited for any more, and its connection ends.
                    self.metrics.failed(AttemptError::Timeout);
                }
                (done, first)
            }
        };
        match done.outcome {
            Outcome::Accepted | Outcome::Refused(_) => self.settle(lane, done),
            Outcome::Failed(failure) => {
                done.attempt.failed(&failure);
                self.metrics.failed(failure.reason);
                let done = other.await;
                self.settle(lane, done)
            }
        }
    }

    /// Notes how an exchange went, and keeps its connection.
    fn settle(&self, lane: &mut Lane, done: Exchanged) -> (usize, Outcome) {
        let Exchanged { attempt, mut outcome, kept } = done;
        if let Some(kept) = kept {
            lane.keep(kept, self.endpoints.count());
        }
        if !matches!(outcome, Outcome::Failed(_)) {
            self.answers.answered(attempt.place().id);
        }
        let another_may = self.config.strategy == Strategy::RoundRobin;
        match outcome {
            // Where all are equals, one that refuses what others take is at fault. Passed over, it is tried again later.
            Outcome::Refused(mut failure) if another_may && attempt.refused(&failure) => {
                failure.elsewhere = true;
                outcome = Outcome::Failed(failure);
            }
            Outcome::Refused(_) if another_may => {}
            Outcome::Accepted | Outcome::Refused(_) => attempt.succeeded(),
            Outcome::Failed(ref mut failure) => failure.elsewhere = attempt.failed(failure),
        }
        (attempt.place().id, outcome)
    }

    /// Waits until a request is silent while another address works: at which address, since when,
    /// and the other one.
    async fn silence(&self, waiting: &Waiting) -> (usize, Instant, Place) {
        if self.config.strategy != Strategy::RoundRobin {
            return std::future::pending().await;
        }
        loop {
            let limit = self.answers.limit();
            let wake = match waiting.get() {
                Some((id, since)) if since.elapsed() >= limit => {
                    let others = self.endpoints.others(id);
                    let other = others.into_iter().find(|it| self.answers.works(it.id, since));
                    if let Some(other) = other {
                        return (id, since, other);
                    }
                    Instant::now() + SILENCE_LOOK
                }
                Some((_, since)) => since + limit,
                None => Instant::now() + SILENCE_LOOK,
            };
            tokio::time::sleep_until(wake).await;
        }
    }

    /// One request and its answer. `waiting` is told since when there is no progress.
    async fn exchange(
        &self,
        mut kept: Option<Kept>,
        targets: &Targets,
        mut attempt: Attempt,
        body: Pieces,
        waiting: Option<&Waiting>,
    ) -> Exchanged {
        let result = self.send(&mut kept, targets, &mut attempt, &body, waiting).await;
        let outcome = result.unwrap_or_else(Outcome::Failed);
        Exchanged { attempt, outcome, kept }
    }

    /// As [`Client::exchange`], which leaves in `kept` a connection that can be used again.
    async fn send(
        &self,
        kept: &mut Option<Kept>,
        targets: &Targets,
        attempt: &mut Attempt,
        body: &Pieces,
        waiting: Option<&Waiting>,
    ) -> Result<Outcome, Failure> {
        let Some(target) = targets.targets.get(attempt.place().entry) else {
            return Err(Failure::new(AttemptError::Protocol, "no such URL"));
        };
        let (origin, proxy) = (&target.origin, targets.proxy.as_ref());
        let failed = |reason, what: &str| Failure::new(reason, format!("{origin}: {what}"));
        loop {
            // Not ready where the peer has closed it.
            let reused = match kept {
                Some(kept) => {
                    let ready = tokio::time::timeout(self.timeouts.connect, kept.sender.ready());
                    matches!(ready.await, Ok(Ok(())))
                }
                None => false,
            };
            let mut connection = match kept.take() {
                Some(kept) if reused => kept,
                _ => {
                    let dial = |place| self.dial(origin, place, proxy);
                    self.endpoints.dial(attempt, dial).await?
                }
            };
            let marks = connection.progress.begin();
            connection.busy = true;
            let request = self.request(&targets.headers, target, body, marks.clone());
            let request =
                request.map_err(|error| failed(AttemptError::Protocol, &error.to_string()))?;
            let id = attempt.place().id;
            let _under_way = self.answers.asks(id);
            let answer = connection.sender.send_request(request);
            let waited = self.in_time(&connection.progress, waiting, id, answer).await;
            let (response, since) = match waited {
                Some((Ok(response), since)) => (response, since),
                Some((Err(error), _)) => {
                    let reason = broken(&error);
                    if reused && reason == AttemptError::Closed {
                        // The peer closed a kept connection as we wrote to it: no word about this request.
                        continue;
                    }
                    return Err(failed(reason, &chain(&error)));
                }
                None => {
                    let waited = self.timeouts.request.as_secs_f64();
                    let what = format!("no answer and no progress for {waited} s");
                    return Err(failed(AttemptError::Timeout, &what));
                }
            };
            if !marks.was_whole() {
                // The connection ends: nobody wants the rest of the request.
                return Ok(early(origin, &response));
            }
            connection.busy = false;
            let waited = since.elapsed();
            let (outcome, keep) = judge(origin, response, since + self.timeouts.request).await;
            if !matches!(outcome, Outcome::Failed(_)) {
                self.answers.took(waited);
            }
            if keep && !connection.is_over(&self.endpoints) {
                *kept = Some(connection);
            }
            return Ok(outcome);
        }
    }

    /// Waits as long as the peer's kernel takes the request, and then for `timeouts.request` at
    /// most. Tells since when that was.
    async fn in_time<T>(
        &self,
        progress: &Progress,
        waiting: Option<&Waiting>,
        id: usize,
        exchange: impl Future<Output = T>,
    ) -> Option<(T, Instant)> {
        let mut exchange = std::pin::pin!(exchange);
        let limit = self.timeouts.request;
        let look = match self.config.strategy {
            Strategy::Failover => limit / LOOKS,
            Strategy::RoundRobin => SILENCE_LOOK.min(limit / LOOKS),
        };
        let (mut seen, mut since) = (progress.acknowledged(), Instant::now());
        loop {
            if let Some(waiting) = waiting {
                waiting.set(id, since);
            }
            let until = (Instant::now() + look).min(since + limit);
            if let Ok(done) = tokio::time::timeout_at(until, exchange.as_mut()).await {
                waiting.inspect(|waiting| waiting.clear());
                return Some((done, since));
            }
            let now = progress.acknowledged();
            if now.is_some() && now != seen {
                self.answers.paused(since.elapsed());
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                return None;
            }
        }
    }

    fn request(
        &self,
        extra: &HeaderMap,
        target: &Target,
        body: &Pieces,
        marks: Marks,
    ) -> Result<Request<Upload>, hyper::http::Error> {
        let interim = marks.clone();
        let body = Upload { pieces: body.clone(), metrics: self.metrics.clone(), marks };
        let content_type = match self.config.format {
            HttpFormat::EventList | HttpFormat::JsonArray => "application/json",
            HttpFormat::Ndjson | HttpFormat::AuditLog => "application/x-ndjson",
        };
        let encoding = match self.config.compression {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
        };
        let mut request =
            Request::builder().method(Method::POST).uri(&target.path_and_query).body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, target.authority.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        for (name, value) in extra {
            headers.insert(name, value.clone());
        }
        hyper::ext::on_informational(&mut request, move |_| interim.interim());
        Ok(request)
    }

    /// The request's body.
    async fn encode(&self, batch: Batch) -> Result<Pieces, Failure> {
        let body = match self.config.format {
            HttpFormat::Ndjson => Pieces::of(batch.pieces),
            HttpFormat::AuditLog => Pieces::of(vec![audit_log(&batch.pieces)]),
            HttpFormat::EventList => Pieces::list(LIST_HEAD, batch.pieces, b"]}\n"),
            HttpFormat::JsonArray => Pieces::list(b"[", batch.pieces, b"]"),
        };
        let compress: fn(Pieces) -> std::io::Result<Vec<u8>> = match self.config.compression {
            Compression::None => return Ok(body),
            Compression::Gzip => gzip,
            Compression::Zstd => zstd,
        };
        let compressed = tokio::task::spawn_blocking(move || compress(body)).await;
        match compressed {
            Ok(Ok(bytes)) => Ok(Pieces::of(vec![Bytes::from(bytes)])),
            Ok(Err(error)) => {
                Err(Failure::new(AttemptError::Protocol, format!("cannot compress: {error}")))
            }
            Err(error) => {
                Err(Failure::new(AttemptError::Protocol, format!("cannot compress: {error}")))
            }
        }
    }
}

impl Files for Client {
    fn stage(self: Arc<Self>) -> Result<Staged, StageError> {
        let targets = self.expand().map_err(StageError::Setting)?;
        let has_https = targets.targets.iter().any(|target| target.origin.https);
        let tls = has_https.then(|| Arc::clone(&self.tls).stage()).transpose()?;
        Ok(Box::new(move || {
            let resolved_here = targets.proxy.is_none();
            let endpoint = |target: &Target| {
                let name = target.origin.at.clone();
                endpoints::Target { name, resolved_here }
            };
            let endpoints = targets.targets.iter().map(endpoint).collect();
            self.targets.store(Some(Arc::new(targets)));
            self.endpoints.set(endpoints);
            tls.into_iter().for_each(|staged| staged());
        }))
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.at)
    }
}

/// Takes a URL apart. Errors don't quote it.
fn target(text: &str) -> Result<Target, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let https = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err("is neither http nor https".to_owned()),
    };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err("has no host".to_owned());
    };
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let path_and_query = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Target {
        origin: Origin { https, at: HostPort { host, port } },
        authority: HeaderValue::from_str(&authority)
            .map_err(|_| "has an unusable host".to_owned())?,
        path_and_query,
    })
}

/// Retry-After: seconds or a date (RFC 9110 §10.2.3), as far as it is heeded.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that are no number are too many.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).ok()?
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// What an answer means to a consumer's having the batch.
fn meaning(origin: &Origin, response: &Response<Incoming>) -> Outcome {
    let status = response.status();
    let failure = |reason| Failure {
        retry_after: retry_after(response.headers(), SystemTime::now()),
        ..Failure::new(reason, format!("{origin}: answered {status}"))
    };
    match status {
        status if status.is_success() => Outcome::Accepted,
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Outcome::Refused(failure(AttemptError::Status4xx)),
        StatusCode::TOO_MANY_REQUESTS => Outcome::Failed(failure(AttemptError::Status429)),
        status if status.is_client_error() => Outcome::Failed(failure(AttemptError::Status4xx)),
        status if status.is_server_error() => Outcome::Failed(failure(AttemptError::Status5xx)),
        _ => Outcome::Failed(failure(AttemptError::Protocol)),
    }
}

/// The same of an answer that began before the consumer had the whole request. It may refuse a
/// request by its head. It can't have taken what it had not got: a proxy or a default backend
/// answers like that, whoever is behind it.
fn early(origin: &Origin, response: &Response<Incoming>) -> Outcome {
    match meaning(origin, response) {
        Outcome::Accepted => {
            let status = response.status();
            let what = format!(
                "{origin}: answered {status} before it had the whole request, which is no \
                 acknowledgement"
            );
            Outcome::Failed(Failure::new(AttemptError::Protocol, what))
        }
        outcome @ (Outcome::Refused(_) | Outcome::Failed(_)) => outcome,
    }
}

/// What an answer means, and whether its connection can be kept. Its body is read and thrown away.
async fn judge(
    origin: &Origin,
    response: Response<Incoming>,
    deadline: Instant,
) -> (Outcome, bool) {
    let outcome = meaning(origin, &response);
    let mut body = response.into_body();
    let mut read = 0;
    let rest = async {
        while let Some(frame) = body.frame().await {
            read += frame.ok()?.data_ref().map_or(0, Bytes::len);
            if read > ANSWER_BYTES_MAX {
                return None;
            }
        }
        Some(())
    };
    let deadline = deadline.min(Instant::now() + ANSWER_TIME);
    let keep = matches!(tokio::time::timeout_at(deadline, rest).await, Ok(Some(())));
    (outcome, keep)
}

/// Why there is no answer on a connection that was made.
fn broken(error: &hyper::Error) -> AttemptError {
    if error.is_parse() {
        return AttemptError::Protocol;
    }
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // With TLS 1.3 a server refuses the client's certificate after the handshake.
            if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                return AttemptError::Tls;
            }
            if error.kind() == std::io::ErrorKind::TimedOut {
                return AttemptError::Timeout;
            }
            return AttemptError::Closed;
        }
        source = error.source();
    }
    AttemptError::Closed
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

enum Outcome {
    Accepted,
    Refused(Failure),
    Failed(Failure),
}

/// How one request went.
struct Exchanged {
    attempt: Attempt,
    outcome: Outcome,
    /// Its connection, where it can be used again.
    kept: Option<Kept>,
}

/// A place for one request at a time, and the connections it keeps: one for each address whose turn it was.
#[derive(Default)]
struct Lane {
    kept: Vec<Kept>,
}

impl Lane {
    fn take(&mut self, targets: &Targets, place: &Place) -> Option<Kept> {
        let (origin, proxy) = (&targets.targets.get(place.entry)?.origin, targets.proxy.as_ref());
        let leads_there = |way: &Way| {
            way.origin == *origin && way.proxy.as_ref() == proxy && way.place.id == place.id
        };
        let index = self.kept.iter().position(|kept| leads_there(&kept.way))?;
        Some(self.kept.remove(index)).filter(|kept| !kept.is_of_age())
    }

    /// The one unused for longest goes where there are more than addresses: a URL's file has changed.
    fn keep(&mut self, connection: Kept, max: usize) {
        self.kept.push(connection);
        if self.kept.len() > max {
            self.kept.remove(0);
        }
    }
}

/// Where a connection leads.
struct Way {
    origin: Origin,
    proxy: Option<Proxy>,
    place: Place,
}

/// A connection.
struct Kept {
    way: Way,
    /// When it is of age.
    expiry: Option<Instant>,
    sender: http1::SendRequest<Upload>,
    progress: Progress,
    /// Of the task that drives it.
    driver: AbortHandle,
    /// It has a request that is not answered, or was answered too early: it can't end in order, and
    /// nobody waits for that.
    busy: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.busy {
            self.driver.abort();
        }
    }
}

impl Kept {
    fn is_of_age(&self) -> bool {
        self.expiry.is_some_and(|expiry| Instant::now() >= expiry)
    }

    /// Whether it takes no more requests.
    fn is_over(&self, endpoints: &Endpoints) -> bool {
        self.is_of_age() || endpoints.is_gone(&self.way.place)
    }
}

/// Makes the link, which then makes connections as it needs them.
pub(super) struct Connector {
    client: Arc<Client>,
    watch: Watch,
}

impl Connector {
    pub(super) fn new(
        http: &config::HttpOutput,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        Self::of(Client::new(http, output, metrics, expiry))
    }

    fn of(client: Client) -> Self {
        Self { client: Arc::new(client), watch: Watch::default() }
    }
}

impl Connect for Connector {
    type Link = HttpLink;

    const EAGER: bool = false;

    fn is_ordered(&self) -> bool {
        self.client.config.concurrency == 1
    }

    fn files(&self) -> Option<Arc<dyn Files>> {
        Some(Arc::clone(&self.client) as Arc<dyn Files>)
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.client.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        let client = &self.client;
        let Some(targets) = client.targets.load_full() else { return Vec::new() };
        let shown = |place: &Place| match targets.targets.get(place.entry) {
            Some(target) => target.origin.to_string(),
            None => place.name.to_string(),
        };
        client.endpoints.try_all(shown, |place| client.reach(place)).await
    }

    async fn connect(&mut self) -> Result<HttpLink, Failure> {
        let client = Arc::clone(&self.client);
        self.watch.start(&self.client.endpoints, move |place| {
            let client = Arc::clone(&client);
            async move { client.reach(place).await }
        });
        let lanes = (0..self.client.config.concurrency).map(|_| Lane::default()).collect();
        Ok(HttpLink {
            client: Arc::clone(&self.client),
            lanes,
            busy: FuturesUnordered::new(),
            waits_until: None,
            consumer: 0,
            tidied: 0,
        })
    }
}

type Exchange = Pin<Box<dyn Future<Output = (Lane, Claim, (usize, Outcome))> + Send>>;

/// The lanes.
pub(super) struct HttpLink {
    client: Arc<Client>,
    lanes: Vec<Lane>,
    busy: FuturesUnordered<Exchange>,
    /// No other request goes out beside the one under way. See [`COALESCE`].
    waits_until: Option<Instant>,
    /// The address that the last event came from.
    consumer: usize,
    /// The version of the addresses at the last [`HttpLink::tidy`].
    tidied: u64,
}

impl HttpLink {
    /// Closes idle connections that are over; says when the next one will be of age.
    fn tidy(&mut self) -> Option<Instant> {
        let endpoints = &self.client.endpoints;
        let version = endpoints.version();
        let changed = std::mem::replace(&mut self.tidied, version) != version;
        for lane in &mut self.lanes {
            let is_over =
                |kept: &Kept| if changed { kept.is_over(endpoints) } else { kept.is_of_age() };
            lane.kept.retain(|kept| !is_over(kept));
        }
        self.lanes.iter().flat_map(|lane| &lane.kept).filter_map(|kept| kept.expiry).min()
    }
}

impl Link for HttpLink {
    fn room(&self) -> Option<Take> {
        let limits = self.client.limits;
        (!self.lanes.is_empty() && self.waits_until.is_none())
            .then_some(Take { bytes: limits.max_bytes, events: limits.max_events })
    }

    fn send(&mut self, batch: Batch) {
        let mut lane = self.lanes.pop().unwrap_or_default();
        let client = Arc::clone(&self.client);
        // To wait for more is of no use where a batch may not hold much more.
        let limits = self.client.limits;
        let is_small = batch.bytes < SMALL_BYTES.min(limits.max_bytes / 2)
            && batch.events < limits.max_events / 2;
        self.waits_until = is_small.then(|| Instant::now() + COALESCE);
        self.busy.push(Box::pin(async move {
            let claim = batch.claim;
            let outcome = client.attempt(&mut lane, batch).await;
            (lane, claim, outcome)
        }));
    }

    async fn event(&mut self) -> Event {
        let client = Arc::clone(&self.client);
        let exchanged = loop {
            // Made before it is looked: a change is not missed.
            let changed = client.endpoints.changed();
            let of_age = self.tidy();
            let at =
                |time: Option<Instant>| tokio::time::sleep_until(time.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                exchanged = self.busy.next(), if !self.busy.is_empty() => break exchanged,
                () = at(self.waits_until), if self.waits_until.is_some() => break None,
                () = at(of_age), if of_age.is_some() => {}
                () = changed => {}
            }
        };
        self.waits_until = None;
        let Some((lane, claim, (index, outcome))) = exchanged else { return Event::Room };
        self.lanes.push(lane);
        self.consumer = index;
        match outcome {
            Outcome::Accepted => Event::Accepted { claim, rejected: Vec::new() },
            Outcome::Refused(failure) => Event::Refused(claim, failure),
            Outcome::Failed(failure) => Event::Failed(claim, failure),
        }
    }

    fn consumer(&self) -> usize {
        self.consumer
    }

    /// Requests under way are cut off: what they carry is not final.
    async fn close(self) {
        drop((self.lanes, self.busy));
        self.client.drivers.close();
        tokio::time::timeout(crate::delivery::link::CLOSE_TIME, self.client.drivers.wait())
            .await
            .ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit;

    #[test]
    fn a_target_shows_neither_path_nor_query() {
        let target = target("https://logs.example:8443/v1/in?token=s3cr3t").unwrap();
        assert_eq!(target.origin.to_string(), "https://logs.example:8443");
        assert_eq!(target.path_and_query, "/v1/in?token=s3cr3t");
        assert_eq!(target.authority, "logs.example:8443");
        let target = super::target("http://[::1]/x").unwrap();
        assert_eq!((target.origin.at.host.as_str(), target.origin.at.port), ("::1", 80));
        assert_eq!(
            (target.origin.to_string().as_str(), target.authority),
            ("http://[::1]:80", HeaderValue::from_static("[::1]"))
        );
        assert!(super::target("ftp://x/").is_err());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Sun, 09 Sep 2001 01:46:50 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(of("Sun, 09 Sep 2001 01:46:30 GMT"), None);
        assert_eq!(of("99999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(of("Fri, 31 Dec 9999 23:59:59 GMT"), Some(RETRY_AFTER_MAX));
        assert_eq!((of("soon"), of("-1"), of("+1"), of("")), (None, None, None, None));
    }

    #[test]
    fn base64_is_rfc4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(BASE64_STANDARD.encode(plain), coded);
        }
    }

    #[test]
    fn the_head_of_a_list_has_the_version_of_its_events() {
        let list = [LIST_HEAD, b"]}"].concat();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(list["apiVersion"], audit::API_VERSION);
        assert_eq!(list["kind"], "EventList");
    }

    /// A link to a consumer that takes connections and never answers.
    async fn silent_link(limits: &str) -> (HttpLink, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let text = format!(
            "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\ntype = 'http'\n\
             urls = ['http://{address}/']\nconcurrency = 3\nbatch = {{ {limits} }}\n"
        );
        let read = config::read(&text);
        let output = read.config.unwrap_or_else(|| panic!("{text}")).outputs.remove(0);
        let config::OutputKind::Http(http) = &output.kind else { panic!("{text}") };
        let telemetry = Arc::new(crate::telemetry::Telemetry::new());
        let expiry = Expiry::new(&telemetry, "o");
        let client = Client::new(http, &output, telemetry.output("o"), expiry);
        let mut connector = Connector::of(client);
        (Connect::files(&connector).unwrap().stage().unwrap())();
        (connector.connect().await.unwrap(), listener)
    }

    fn batch(events: u64, bytes: usize) -> Batch {
        let lines = Bytes::from("x".repeat(bytes - 1) + "\n");
        Batch {
            claim: Claim::of(0, events),
            events,
            bytes: bytes as u64,
            pieces: vec![lines],
            origins: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_request_waits_for_the_one_under_way_and_not_for_long() {
        let (mut link, _consumer) = silent_link("max_events = 100").await;
        link.send(batch(1, 800));
        assert_eq!(link.room(), None);
        let begun = Instant::now();
        let event = link.event().await;
        assert!(matches!(event, Event::Room), "{event:?}");
        assert!((COALESCE..COALESCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert!(link.room().is_some());
        // Each for itself, and not beyond the lanes.
        link.send(batch(1, 800));
        assert_eq!(link.room(), None);
        assert!(matches!(link.event().await, Event::Room));
        link.send(batch(1, 800));
        assert!(matches!(link.event().await, Event::Room));
        assert_eq!(link.room(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_beside_a_request_that_is_large_or_holds_what_it_may() {
        let (mut link, _consumer) = silent_link("max_events = 100").await;
        link.send(batch(10, 64 * 1024));
        assert!(link.room().is_some());
        link.send(batch(50, 800));
        assert!(link.room().is_some());
        let (mut link, _consumer) = silent_link("max_events = 1").await;
        link.send(batch(1, 800));
        assert!(link.room().is_some());
        let (mut link, _consumer) = silent_link("max_bytes = '16KiB'").await;
        link.send(batch(1, 8 * 1024));
        assert!(link.room().is_some());
    }
}
