//! One POST becomes one status: the head is judged, the body read within its bounds, decoded and appended.
//!
//! A refusal is answered after the body was read and thrown away, because a Go client that is cut
//! off while it writes sees a transport error instead of the answer. What is larger than allowed,
//! or not yet sent (`Expect: 100-continue`), is refused at once, and a body that does not come soon
//! is not waited for ([`REFUSED_TIME`]). A body that is too large to be held whole is decoded and
//! stored while it arrives ([`Large`]).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::Version;
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::header;
use hyper::http::request::Parts;
use metrics::Gauge;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::Settings;
use super::answer;
use super::answer::Body;
use super::answer::Refusal;
use super::buffer::Buffer;
use super::buffer::Pool;
use super::connection::Connection;
use super::connection::LINGER_TIME;
use super::connection::LINGER_TIME_SLOW;
use super::large::Large;
use super::large::Sizes;
use super::large::Stopped;
use super::large::Whole;
use crate::audit;
use crate::audit::Split;
use crate::config::Acknowledge;
use crate::queue::Queue;
use crate::queue::Refused;
use crate::telemetry::Rejection;

/// The body of a refused request has so long to come, and as long again after each
/// [`REFUSED_BYTES`] of it, but never longer than `limits.body_timeout`. Then the refusal is
/// answered all the same, and the connection ends: a sender that is still writing finds its answer,
/// and one that sends nothing, or a byte now and then, does not keep its place.
const REFUSED_TIME: Duration = Duration::from_secs(2);
/// See [`REFUSED_TIME`]: 64 KiB each second, which a slow line still does.
const REFUSED_BYTES: u64 = 128 * 1024;

/// Input of one step of decompression: at gzip's best ratio of 1032, the output of a step stays near 4 MiB.
const GZIP_STEP: usize = 4 * 1024;

/// Bytes by which a gzip body may exceed twice its content. Members without content cost CPU (65 ms
/// each MB) and nothing else: who compresses at all stays far below.
const GZIP_SPARE: u64 = 1024 * 1024;

/// Bodies larger than this are decoded off the runtime's threads: a millisecond each MiB or so, where serde_json does it.
const INLINE_MAX: usize = 1024 * 1024;

/// KiB of bodies that are decoded at once off the runtime's threads: besides a body, decoding needs memory for the places
/// of its events, up to half of it where all but the first are the smallest. A larger body is decoded alone.
const DECODING_KIB: u32 = 16 * 1024;

/// See [`DECODING_KIB`].
pub(super) fn decoding() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(DECODING_KIB as usize))
}

/// `limits.max_in_flight`: bytes of bodies that are not yet in the queue or wait for their acknowledgement, counted as
/// they arrive.
pub(super) struct InFlight {
    used: AtomicU64,
    gauge: Gauge,
}

impl InFlight {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { used: AtomicU64::new(0), gauge }
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn add(&self, bytes: u64, max: u64) -> bool {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= max)
        });
        if taken.is_ok() {
            self.gauge.increment(bytes as f64);
        }
        taken.is_ok()
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.gauge.decrement(bytes as f64);
    }

    fn is_full(&self, max: u64) -> bool {
        self.used.load(Ordering::Relaxed) >= max
    }
}

/// One body's share of [`InFlight`]; given back when dropped.
struct Reservation<'a> {
    in_flight: &'a InFlight,
    max: u64,
    bytes: u64,
}

impl Reservation<'_> {
    /// Makes the share `total` bytes.
    fn set(&mut self, total: usize) -> Result<(), Refusal> {
        let total = total as u64;
        if total > self.bytes && !self.in_flight.add(total - self.bytes, self.max) {
            return Err(if total > self.max {
                event_too_large(self.max)
            } else {
                in_flight_full()
            });
        }
        self.in_flight.give_back(self.bytes.saturating_sub(total));
        self.bytes = total;
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.in_flight.give_back(self.bytes);
    }
}

/// What the config says of requests. A request keeps those that it began with.
pub(super) struct Bounds {
    /// The effective `limits.max_body`.
    pub(super) max_body: u64,
    pub(super) max_in_flight: u64,
    /// Follow from `max_in_flight`.
    pub(super) sizes: Sizes,
    pub(super) body_timeout: Duration,
    pub(super) acknowledge: Acknowledge,
    pub(super) delivered_timeout: Duration,
    pub(super) retry_after: Duration,
}

/// What all requests of all listeners share.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) in_flight: InFlight,
    pub(super) pool: Arc<Pool>,
    pub(super) decoding: Arc<Semaphore>,
    pub(super) bounds: ArcSwap<Bounds>,
    /// New requests are refused.
    pub(super) closing: CancellationToken,
    /// What is still under way is refused too.
    pub(super) cut: CancellationToken,
}

/// The service of one connection.
#[derive(Clone)]
pub(super) struct Ingest {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    pub(super) settings: Arc<ArcSwap<Settings>>,
}

impl Service<Request<Incoming>> for Ingest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let ingest = self.clone();
        Box::pin(async move { Ok(ingest.handle(request).await) })
    }
}

impl Ingest {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let bounds = self.shared.bounds.load_full();
        let mut upload = Upload {
            body,
            deadline: Instant::now() + bounds.body_timeout,
            cut: &self.shared.cut,
            connection: &self.connection,
            sent: 0,
            begun: false,
            ended: false,
        };
        let judged = self.judge(&bounds, &mut head, upload.body.size_hint().exact());
        let expects = head
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        // 16 KiB for each stream of an h2 connection, if its sender likes.
        drop(head);
        let outcome = match judged {
            Ok(gzip) => self.take(&bounds, gzip, &mut upload).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(events) => {
                tracing::debug!(events, bytes = upload.sent, "batch accepted");
                answer::accepted(events)
            }
            Err(refusal) => self.refuse(&bounds, refusal, expects, upload).await,
        }
    }

    /// What the head alone tells. `Ok` says whether the body is gzip.
    fn judge(
        &self,
        bounds: &Bounds,
        head: &mut Parts,
        length: Option<u64>,
    ) -> Result<bool, Refusal> {
        if let Some(refusal) = head.extensions.remove::<Refusal>() {
            return Err(refusal);
        }
        if head.version == Version::HTTP_11
            && head.headers.get_all(header::HOST).iter().count() != 1
        {
            return Err(invalid("a request has exactly one Host header (RFC 9112 §3.2)"));
        }
        // "/" takes any path, and the `*` of OPTIONS, which is none.
        let settings = self.settings.load();
        let prefix = settings.path_prefix.trim_end_matches('/');
        let rest = head.uri.path().strip_prefix(prefix);
        let inside = |rest: &str| prefix.is_empty() || rest.is_empty() || rest.starts_with('/');
        if !rest.is_some_and(inside) {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                Rejection::NotFound,
                format!("audit events are taken below {}", settings.path_prefix),
            ));
        }
        if head.method != Method::POST {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Rejection::Method,
                "audit events are taken by POST",
            ));
        }
        let gzip = media(head)?;
        if length.is_some_and(|length| length > bounds.max_body) {
            return Err(too_large(bounds));
        }
        if self.shared.closing.is_cancelled() {
            return Err(shutting_down());
        }
        if self.shared.in_flight.is_full(bounds.max_in_flight) {
            return Err(in_flight_full());
        }
        let length = if gzip { 0 } else { length.unwrap_or(0) };
        self.shared.queue.admits(length).map_err(refused)?;
        Ok(gzip)
    }

    /// Reads, decodes and appends; says how many events were accepted.
    async fn take(
        &self,
        bounds: &Bounds,
        gzip: bool,
        upload: &mut Upload<'_>,
    ) -> Result<u64, Refusal> {
        let (in_flight, max) = (&self.shared.in_flight, bounds.max_in_flight);
        let mut share = Reservation { in_flight, max, bytes: 0 };
        let body = if gzip {
            self.inflate(bounds, upload, &mut share).await?
        } else {
            self.collect(bounds, upload, &mut share).await?
        };
        let Intake { rest, large, .. } = body;
        let whole = match large {
            None if rest.len() <= INLINE_MAX => decode(rest).map_err(stopped)?,
            None => {
                let length = rest.len();
                self.off_thread(bounds, length, || decode(rest)).await?
            }
            Some(mut large) => {
                let length = rest.len();
                let end = move || large.push(rest.bytes()).and_then(|()| large.end());
                self.off_thread(bounds, length, end).await?
            }
        };
        let events = whole.events;
        if events == 0 {
            return Ok(0);
        }
        // A last line without its line break is stored with one. At the bound, which may be the queue's, that byte is too
        // much for ever, and 429 would say that it fits later.
        if whole.bytes > bounds.max_body {
            return Err(too_large(bounds));
        }
        let mut ticket = whole.append(&self.shared.queue).map_err(refused)?;
        let deadline = Instant::now() + bounds.delivered_timeout;
        tokio::select! {
            biased;
            acknowledged = timeout_at(deadline, ticket.acknowledged()) => match acknowledged {
                Ok(acknowledged) => acknowledged.map(|()| events).map_err(refused),
                Err(_) => Err(too_late(bounds)),
            },
            () = self.shared.cut.cancelled() => Err(shutting_down()),
        }
    }

    async fn collect(
        &self,
        bounds: &Bounds,
        upload: &mut Upload<'_>,
        share: &mut Reservation<'_>,
    ) -> Result<Intake, Refusal> {
        let announced =
            upload.body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        // With a directory most of a large body never comes to the buffer.
        let most = bounds.sizes.whole + bounds.sizes.step;
        let is_held_whole = !self.shared.queue.is_durable();
        let first = announced.map(|length| if is_held_whole { length } else { length.min(most) });
        let mut intake = Intake::new(first, &self.shared.pool);
        while let Some(piece) = upload.next().await? {
            if upload.sent > bounds.max_body {
                return Err(too_large(bounds));
            }
            share.set(intake.held() + piece.len())?;
            intake.rest.extend(&piece);
            self.settle(bounds, &mut intake, share).await?;
        }
        Ok(intake)
    }

    async fn inflate(
        &self,
        bounds: &Bounds,
        upload: &mut Upload<'_>,
        share: &mut Reservation<'_>,
    ) -> Result<Intake, Refusal> {
        let broken = |error: io::Error| {
            if error.kind() == io::ErrorKind::FileTooLarge {
                too_large(bounds)
            } else {
                invalid(format!("the body is broken gzip: {error}"))
            }
        };
        let intake = Intake::new(None, &self.shared.pool);
        let mut decoder = MultiGzDecoder::new(Inflated { intake, bytes: 0, max: bounds.max_body });
        while let Some(piece) = upload.next().await? {
            if upload.sent > bounds.max_body {
                return Err(too_large(bounds));
            }
            for step in piece.chunks(GZIP_STEP) {
                decoder.write_all(step).map_err(broken)?;
                let Inflated { intake, bytes, .. } = decoder.get_mut();
                if upload.sent > bytes.saturating_mul(2).saturating_add(GZIP_SPARE) {
                    return Err(invalid(
                        "the gzip has members without content: it is twice as large as the body in it",
                    ));
                }
                share.set(intake.held())?;
                self.settle(bounds, intake, share).await?;
                tokio::task::consume_budget().await;
            }
        }
        if upload.sent == 0 {
            return Err(invalid("the body is empty"));
        }
        let intake = decoder.finish().map_err(broken)?.intake;
        share.set(intake.held())?;
        Ok(intake)
    }

    /// Hands on the bytes that have come, once they are too many for a body that is decoded whole.
    async fn settle(
        &self,
        bounds: &Bounds,
        intake: &mut Intake,
        share: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        let most = if intake.large.is_some() { bounds.sizes.step } else { bounds.sizes.whole };
        if intake.rest.len() <= most {
            return Ok(());
        }
        let new = || Some(Large::new(bounds.sizes, self.shared.queue.incoming()?));
        let Some(mut large) = intake.large.take().or_else(new) else { return Ok(()) };
        let next = Buffer::new(Some(bounds.sizes.step), &self.shared.pool);
        let rest = std::mem::replace(&mut intake.rest, next);
        let push = move |rest: Buffer| large.push(rest.bytes()).map(|()| large);
        intake.large = Some(self.off_thread(bounds, rest.len(), || push(rest)).await?);
        share.set(intake.held())
    }

    /// Does what takes milliseconds, or waits for the disk, on a thread that may block. The work
    /// goes on when its request has gone, and keeps its turn until it ends.
    async fn off_thread<T: Send + 'static>(
        &self,
        bounds: &Bounds,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Stopped> + Send + 'static,
    ) -> Result<T, Refusal> {
        let decoding = Arc::clone(&self.shared.decoding);
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, DECODING_KIB);
        let done = async {
            let turn = decoding.acquire_many_owned(kib).await.ok()?;
            let task = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            task.await.ok()
        };
        tokio::select! {
            biased;
            done = timeout_at(Instant::now() + bounds.delivered_timeout, done) => match done {
                Ok(Some(outcome)) => outcome.map_err(stopped),
                Ok(None) => Err(shutting_down()),
                Err(_) => Err(too_late(bounds)),
            },
            () = self.shared.cut.cancelled() => Err(shutting_down()),
        }
    }

    /// Answers a refusal, after the body where that is still to come and small enough.
    async fn refuse(
        &self,
        bounds: &Bounds,
        mut refusal: Refusal,
        expects: bool,
        mut upload: Upload<'_>,
    ) -> Response<Body> {
        let unsent = expects && !upload.begun;
        let announced = upload.body.size_hint().lower() + upload.sent;
        let discard = !unsent
            && announced <= bounds.max_body
            && refusal.status != StatusCode::REQUEST_TIMEOUT;
        if discard && let Err(slow) = upload.discard(bounds.max_body).await {
            refusal = slow;
        }
        let mut response = refusal.answer(bounds.retry_after);
        let unread = !upload.ended && !upload.body.is_end_stream();
        if unread {
            let slow = discard && upload.sent <= bounds.max_body;
            self.connection.linger(if slow { LINGER_TIME_SLOW } else { LINGER_TIME });
        }
        if unread || refusal.closes() {
            // On h2 the stream is reset with NO_ERROR where its body is unread; the connection ends only for those that
            // should find another replica.
            response
                .headers_mut()
                .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            if refusal.closes() || !self.connection.is_multiplexed() {
                self.connection.retire();
            }
        }
        tracing::debug!(
            status = refusal.status.as_u16(),
            error = refusal.message,
            "request refused"
        );
        response
    }
}

/// Neither a consumer nor a disk may hold a request for ever.
fn too_late(bounds: &Bounds) -> Refusal {
    let (reason, message) = match bounds.acknowledge {
        Acknowledge::Queued | Acknowledge::Delivered => {
            (Rejection::DeliveryTimeout, "the consumers have not acknowledged the events in time")
        }
        Acknowledge::Synced => (Rejection::Disk, "the disk has not stored the events in time"),
    };
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, message)
}

fn too_large(bounds: &Bounds) -> Refusal {
    let message = format!("the body is larger than {} bytes", bounds.max_body);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Rejection::TooLarge, message)
}

fn event_too_large(max: u64) -> Refusal {
    let message = format!(
        "one event is too large for limits.max_in_flight ({max} bytes), which has room for one of about half its size: raise it"
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Rejection::TooLarge, message)
}

fn decode(mut body: Buffer) -> Result<Whole, Stopped> {
    let Split { lines, events, levels } = audit::decode_in_place(body.with_room())?;
    Ok(Whole::in_memory(body.keep(lines), events, levels))
}

fn stopped(stopped: Stopped) -> Refusal {
    match stopped {
        Stopped::Invalid(error) => invalid(error.to_string()),
        Stopped::Refused(reason) => refused(reason),
    }
}

/// Content-Type and Content-Encoding; says whether the body is gzip.
fn media(head: &Parts) -> Result<bool, Refusal> {
    let refuse = |message: &str| {
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Rejection::MediaType, message))
    };
    if let Some(value) = head.headers.get(header::CONTENT_TYPE) {
        let essence =
            value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let known = ["application/json", "application/x-ndjson", "text/plain", ""];
        if !known.iter().any(|name| essence.eq_ignore_ascii_case(name.as_bytes())) {
            return refuse(
                "the Content-Type is none of application/json, application/x-ndjson, text/plain",
            );
        }
    }
    let mut encodings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    match (
        encodings.next().map(|value| value.as_bytes().trim_ascii().to_ascii_lowercase()),
        encodings.next(),
    ) {
        (None, _) => Ok(false),
        (Some(encoding), None) if encoding == b"identity" => Ok(false),
        (Some(encoding), None) if encoding == b"gzip" || encoding == b"x-gzip" => Ok(true),
        _ => refuse("the Content-Encoding is neither gzip nor absent"),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Rejection::Invalid, message)
}

fn refused(refused: Refused) -> Refusal {
    let (status, reason, message) = match refused {
        Refused::Full => (
            StatusCode::TOO_MANY_REQUESTS,
            Rejection::QueueFull,
            "the queue is full, try again later",
        ),
        Refused::Disk => (
            StatusCode::SERVICE_UNAVAILABLE,
            Rejection::Disk,
            "the disk does not store events now, try again later",
        ),
        Refused::Undelivered => (
            StatusCode::SERVICE_UNAVAILABLE,
            Rejection::DeliveryTimeout,
            "an output that the events are for has ended, try again later",
        ),
    };
    Refusal::new(status, reason, message)
}

fn in_flight_full() -> Refusal {
    let message = "too many bytes of requests are under way, try again later";
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, Rejection::InFlightFull, message)
}

fn shutting_down() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Rejection::ShuttingDown, "shutting down")
}

/// A body on its way in.
struct Upload<'a> {
    body: Incoming,
    deadline: Instant,
    cut: &'a CancellationToken,
    connection: &'a Connection,
    /// Bytes that came, as sent.
    sent: u64,
    /// Whether it was asked for: hyper then answers `Expect: 100-continue`.
    begun: bool,
    /// Nothing more will come.
    ended: bool,
}

impl Upload<'_> {
    /// The next piece.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if self.ended {
                return Ok(None);
            }
            self.begun = true;
            let frame = tokio::select! {
                biased;
                frame = timeout_at(self.deadline, self.body.frame()) => frame,
                () = self.cut.cancelled() => return Err(shutting_down()),
            };
            match frame {
                Err(_) => {
                    let message = "the body came too slowly";
                    return Err(Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        Rejection::Timeout,
                        message,
                    ));
                }
                Ok(None) => self.ended = true,
                Ok(Some(Err(error))) => {
                    self.ended = true;
                    tracing::debug!(%error, "body broke off");
                    return Err(invalid(
                        "the body is shorter than announced, or its chunks are broken",
                    ));
                }
                // Trailers say nothing that matters here.
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        self.sent += piece.len() as u64;
                        self.connection.metrics().received.increment(piece.len() as u64);
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// Throws the rest away, unless it is more than `max` in all, or does not come within
    /// [`REFUSED_TIME`]. An error only where the sender is too slow for `limits.body_timeout`.
    async fn discard(&mut self, max: u64) -> Result<(), Refusal> {
        let refused = self.connection.refused();
        let latest = self.deadline;
        let (mut counted, mut deadline) = (self.sent, Instant::now() + REFUSED_TIME);
        while self.sent <= max {
            self.deadline = deadline.min(latest);
            match self.next().await {
                Ok(Some(_)) if self.sent - counted >= REFUSED_BYTES => {
                    (counted, deadline) = (self.sent, Instant::now() + REFUSED_TIME);
                    refused.progressed();
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(refusal)
                    if refusal.status == StatusCode::REQUEST_TIMEOUT && deadline >= latest =>
                {
                    return Err(refusal);
                }
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// A body as far as it has come.
struct Intake {
    /// The bytes that are not handed on yet: all of a body that is held whole.
    rest: Buffer,
    large: Option<Large>,
}

impl Intake {
    fn new(announced: Option<usize>, pool: &Arc<Pool>) -> Self {
        Self { rest: Buffer::new(announced, pool), large: None }
    }

    /// Bytes of memory, as `limits.max_in_flight` counts them.
    fn held(&self) -> usize {
        self.rest.len() + self.large.as_ref().map_or(0, Large::held)
    }
}

/// Takes the decompressed bytes of a body.
struct Inflated {
    intake: Intake,
    /// All that came.
    bytes: u64,
    max: u64,
}

impl Write for Inflated {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes += buf.len() as u64;
        if self.bytes > self.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.intake.rest.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
