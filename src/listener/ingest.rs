//! Turns one POST into one answer: the head is judged, the body is read within its limits, decoded,
//! and appended to the queue.
//!
//! A refusal is normally answered after the body was read and thrown away, because a Go client
//! whose connection closes while it writes sees a transport error instead of the answer. There are
//! three exceptions. A body that is larger than allowed, or not sent yet (`Expect: 100-continue`),
//! is refused at once. So is a body that has already taken longer than `limits.body_timeout`. A
//! body that does not come soon is not waited for ([`REFUSED_TIME`]).

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures_util::FutureExt as _;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version, header};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::answer;
use super::answer::{Body, Refusal};
use super::buffer::{Buffer, Pool};
use super::connection::{Connection, LINGER_TIME, LINGER_TIME_SLOW};
use super::large::{Large, Sizes, Stopped, Whole};
use super::settings::Settings;
use crate::audit;
use crate::audit::Split;
use crate::config::Acknowledge;
use crate::queue::{Append, Queue, Refused, Ticket};
use crate::telemetry::{Gauge, Rejection};
use crate::volume::Volume;

/// The longest time for which the relay waits for more bytes of the body of a refused request. The
/// time starts again whenever [`REFUSED_BYTES`] more bytes have arrived, but the whole wait never
/// exceeds `limits.body_timeout`. After the wait, the relay sends the refusal although the body is
/// not complete, and the connection ends (on h2, in most cases only the stream). Thus a sender that
/// is still writing gets its answer. A sender that sends nothing, or sends very slowly, cannot keep
/// its connection.
const REFUSED_TIME: Duration = Duration::from_secs(2);
/// The number of bytes of a refused body after which the wait of [`REFUSED_TIME`] starts again. A
/// sender must therefore send 64 KiB in each second on average, which a slow network can still do.
const REFUSED_BYTES: u64 = 128 * 1024;

/// The number of compressed bytes that are decompressed in one step. At gzip's best compression
/// ratio, 1032, one step gives about 4 MiB of output.
const GZIP_STEP: usize = 4 * 1024;

/// The number of bytes by which a gzip body may be larger than twice the size of its decompressed
/// content. A larger body must have many gzip members without content. They cost CPU time (65 ms
/// for each MB) and carry no events. The body of a normal sender never reaches this limit.
const GZIP_SPARE: u64 = 1024 * 1024;

/// The largest body in bytes that is decoded in the task that serves the request. A larger body is
/// decoded on another thread, because serde_json takes about 1 ms for each MiB and would block the
/// async runtime.
const INLINE_MAX: usize = 1024 * 1024;

/// The smallest body in bytes that may stay a list in the queue. A smaller one is copied together
/// with others when it is sent, so that it would save no copy.
const LIST_MIN: usize = 32 * 1024;

/// The largest total size, in KiB, of the bodies that are decoded at the same time on the threads
/// for blocking work. Decoding needs memory for the positions of the events: up to half of the
/// body's size, if nearly all events are as small as possible. The limit bounds this memory. A body
/// that is larger than the limit is decoded alone.
const DECODING_KIB: u32 = 16 * 1024;

/// Makes the semaphore that limits how much is decoded at the same time. It has [`DECODING_KIB`]
/// permits, one for each KiB.
pub(super) fn decoding() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(DECODING_KIB as usize))
}

/// The counter of the bytes in flight, which `limits.max_in_flight` limits. The bytes of a body are
/// counted from the time when they arrive. They are counted until the body is in the queue and its
/// request does not wait for the acknowledgement any more.
pub(super) struct InFlight {
    /// The number of bytes that are counted now.
    used: AtomicU64,
    /// The metric that shows `used`.
    gauge: Gauge,
}

impl InFlight {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { used: AtomicU64::new(0), gauge }
    }

    /// Adds `bytes` to the counter and returns `true`. If the sum would be larger than `max`,
    /// changes nothing and returns `false`.
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

    /// Returns `true` if the counter has reached `max` bytes, so that no more bytes may be taken.
    fn is_full(&self, max: u64) -> bool {
        self.used.load(Ordering::Relaxed) >= max
    }
}

/// The bytes of one body that the counter [`InFlight`] counts now. Dropping this value subtracts
/// them from the counter.
struct Reservation<'a> {
    in_flight: &'a InFlight,
    /// The largest value that the counter may reach: `limits.max_in_flight`.
    max: u64,
    /// The number of bytes that are counted for this body now.
    bytes: u64,
}

impl Reservation<'_> {
    /// Sets the number of bytes that are counted for this body to `total`. The error is the refusal
    /// of the request: 429 if there is no room for the bytes now, 413 if a single event is so large
    /// that there will never be room.
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

/// The limits for requests, from the config. A reload replaces them; a request keeps the limits
/// that were valid when it began.
pub(super) struct Bounds {
    /// The largest allowed body in bytes: the smallest of `limits.max_body` and the other limits of
    /// the config that a body must obey.
    pub(super) max_body: u64,
    pub(super) max_in_flight: u64,
    /// The sizes that decide how large bodies are decoded. They are computed from `max_body` and
    /// `max_in_flight`.
    pub(super) sizes: Sizes,
    pub(super) body_timeout: Duration,
    pub(super) acknowledge: Acknowledge,
    pub(super) delivered_timeout: Duration,
    pub(super) retry_after: Duration,
}

/// The state that the requests of all listeners share.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) in_flight: InFlight,
    /// Counts who has caused the bytes that were accepted.
    pub(super) volume: Arc<Volume>,
    /// The free memory mappings for bodies.
    pub(super) pool: Arc<Pool>,
    /// Limits how many KiB of bodies are decoded at the same time.
    pub(super) decoding: Arc<Semaphore>,
    pub(super) bounds: ArcSwap<Bounds>,
    /// This token is cancelled at the beginning of the drain. New requests are then refused.
    pub(super) closing: CancellationToken,
    /// This token is cancelled in the middle of the drain. Requests that are still under way are
    /// then refused.
    pub(super) cut: CancellationToken,
}

/// Turns each request of a connection into an answer, in these steps:
///
/// 1. `judge` decides from the head alone if the request may be accepted. Most refusals are made
///    here.
/// 2. `take` reads the body in pieces and decompresses it. The bytes in memory are counted in
///    [`InFlight`]; if its limit is reached, the request is refused.
/// 3. A body of up to 1 MiB is decoded at once, a larger body on a thread for blocking work. With a
///    durable queue, a body that is too large to be held as a whole is given in steps to [`Large`],
///    which decodes it and stores its lines while the rest arrives.
/// 4. The lines are appended to the queue. The answer waits until the queue's ticket says that the
///    events are acknowledged, for at most `delivered_timeout`.
/// 5. If the request is refused, `refuse` answers it, in most cases after it has read the rest of
///    the body and thrown it away.
///
/// A batch is never answered with 200 before its ticket is acknowledged. If the sender has gone,
/// the request is dropped, and its bytes are subtracted from [`InFlight`].
pub(super) struct Ingest {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    pub(super) settings: Arc<ArcSwap<Settings>>,
}

impl Ingest {
    /// Answers a request, which began at `started`. If `refusal` is `Some`, the request is refused
    /// for this reason, whatever it contains. Also returns the refusal if the answer is one.
    pub(super) async fn handle(
        &self,
        request: Request<Incoming>,
        refusal: Option<Refusal>,
        started: Instant,
    ) -> (Response<Body>, Option<Refusal>) {
        let (head, body) = request.into_parts();
        let bounds = self.shared.bounds.load_full();
        let mut upload = Upload {
            body,
            deadline: started + bounds.body_timeout,
            cut: &self.shared.cut,
            connection: &self.connection,
            sent: 0,
            begun: false,
            ended: false,
            whole_at: None,
        };
        let judged = match refusal {
            Some(refusal) => Err(refusal),
            None => self.judge(&bounds, &head, upload.body.size_hint().exact()),
        };
        let expects = head
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        // The head of a request may hold 16 KiB, for each stream of an h2 connection, and is not
        // needed any more.
        drop(head);
        let outcome = match judged {
            Ok(gzip) => self.take(&bounds, gzip, &mut upload).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(events) => {
                tracing::debug!(events, bytes = upload.sent, "batch accepted");
                if let Some(whole_at) = upload.whole_at {
                    let now = Instant::now();
                    self.connection.metrics().accepted_after(now.duration_since(whole_at), now);
                }
                (answer::accepted(events), None)
            }
            Err(refusal) => {
                let (response, refusal) = self.refuse(&bounds, refusal, expects, upload).await;
                (response, Some(refusal))
            }
        }
    }

    /// Decides from the head of a request if the request may be accepted. Returns `Ok(true)` if the
    /// body is gzip, `Ok(false)` if it is not compressed, and an error if the request is refused.
    fn judge(&self, bounds: &Bounds, head: &Parts, length: Option<u64>) -> Result<bool, Refusal> {
        if head.version == Version::HTTP_11
            && head.headers.get_all(header::HOST).iter().count() != 1
        {
            return Err(invalid("a request has exactly one Host header (RFC 9112 §3.2)"));
        }
        // The prefix "/" allows every path, and the `*` of OPTIONS, which is not a path.
        let settings = self.settings.load();
        let prefix = settings.path_prefix.trim_end_matches('/');
        let rest = head.uri.path().strip_prefix(prefix);
        let inside = |rest: &str| prefix.is_empty() || rest.is_empty() || rest.starts_with('/');
        if !rest.is_some_and(inside) {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                Rejection::NotFound,
                format!("audit events are accepted below {}", settings.path_prefix),
            ));
        }
        if head.method != Method::POST {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Rejection::Method,
                "audit events are accepted by POST only",
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

    /// Reads the body, decodes it, appends its events to the queue and waits until they are
    /// acknowledged. Returns the number of events that were accepted.
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
        upload.whole_at = Some(Instant::now());
        let (Intake { rest, large, .. }, volume) = (body, &self.shared.volume);
        let keeps_list = rest.len() >= LIST_MIN && self.shared.queue.keeps_lists();
        let whole = match large {
            None if rest.len() <= INLINE_MAX => {
                decode(rest, keeps_list, volume).map_err(stopped)?
            }
            None => {
                let (length, volume) = (rest.len(), Arc::clone(volume));
                self.off_thread(bounds, length, move || decode(rest, keeps_list, &volume)).await?
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
        // The last line of a body without a final line break is stored with one. If the body has
        // exactly the largest allowed size, the lines are one byte too large at any time; 429 would
        // promise that they fit later.
        if whole.bytes > bounds.max_body {
            return Err(too_large(bounds));
        }
        let (mut ticket, seen) = whole.append(&self.shared.queue).map_err(refused)?;
        // A queue in memory acknowledges most batches at once. Such a batch needs no timer.
        let at_once = ticket.acknowledged().now_or_never();
        let acknowledged = match at_once {
            Some(acknowledged) => acknowledged.map_err(refused),
            None => self.wait_for(&mut ticket, bounds).await,
        };
        acknowledged?;
        self.shared.volume.count(seen);
        Ok(events)
    }

    /// Waits until the events of a ticket are acknowledged.
    async fn wait_for(&self, ticket: &mut Ticket, bounds: &Bounds) -> Result<(), Refusal> {
        let deadline = Instant::now() + bounds.delivered_timeout;
        tokio::select! {
            biased;
            acknowledged = timeout_at(deadline, ticket.acknowledged()) => match acknowledged {
                Ok(acknowledged) => acknowledged.map_err(refused),
                Err(_) => Err(too_late(bounds)),
            },
            () = self.shared.cut.cancelled() => Err(shutting_down()),
        }
    }

    /// Reads an uncompressed body to its end. With a durable queue, a large body is already decoded
    /// while it arrives. Returns the bytes that are not decoded yet and, for a large body, the
    /// state of its decoding.
    async fn collect(
        &self,
        bounds: &Bounds,
        upload: &mut Upload<'_>,
        share: &mut Reservation<'_>,
    ) -> Result<Intake, Refusal> {
        let announced =
            upload.body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        // With a durable queue, the buffer of a large body is handed on for decoding and replaced
        // each time that it is full (`settle`), so it never needs room for the whole body.
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

    /// Reads a gzip body to its end and decompresses it. With a durable queue, a large body is
    /// already decoded while it arrives. Returns the bytes that are not decoded yet and, for a
    /// large body, the state of its decoding.
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
                        "the gzip is more than twice as large as the body in it: it has too many members without content",
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

    /// Gives the bytes that have arrived (`intake`) to [`Large`] for decoding, if they are too many
    /// to be decoded as one whole. Must be called after each step of reading. Does nothing if the
    /// queue is in memory.
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
        let Shared { queue, volume, .. } = &*self.shared;
        let new = || Some(Large::new(bounds.sizes, queue.incoming()?, Arc::clone(volume)));
        let Some(mut large) = intake.large.take().or_else(new) else { return Ok(()) };
        let next = Buffer::new(Some(bounds.sizes.step), &self.shared.pool);
        let rest = std::mem::replace(&mut intake.rest, next);
        let push = move |rest: Buffer| large.push(rest.bytes()).map(|()| large);
        intake.large = Some(self.off_thread(bounds, rest.len(), || push(rest)).await?);
        share.set(intake.held())
    }

    /// Runs `work` on a thread for blocking work, because it takes milliseconds or waits for the
    /// disk, and returns its result. `bytes` is the number of bytes to decode; it decides how many
    /// permits of the semaphore `decoding` the work takes. If the request ends while it waits for
    /// the permits, `work` never runs. If the request ends later, `work` still runs to its end and
    /// keeps its permits until then.
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

    /// Returns the answer for a refused request. If the rest of the body has not arrived yet and is
    /// not too large, first reads this rest and throws it away. Does not do so if the refusal is
    /// 408, or if the sender waits for `100 Continue`.
    async fn refuse(
        &self,
        bounds: &Bounds,
        mut refusal: Refusal,
        expects: bool,
        mut upload: Upload<'_>,
    ) -> (Response<Body>, Refusal) {
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
            // On h2 the stream of an unread body is reset with NO_ERROR, and the connection ends
            // only for the statuses of [`Refusal::closes`].
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
        (response, refusal)
    }
}

/// Returns the refusal of a request that has waited for `delivered_timeout`. This limit exists so
/// that neither a slow consumer nor a slow disk can block a request for ever.
fn too_late(bounds: &Bounds) -> Refusal {
    let (reason, message) = match bounds.acknowledge {
        // `queued` is only for a queue in memory, where nothing but the decoding of a large body
        // can take this long.
        Acknowledge::Queued => {
            (Rejection::DeliveryTimeout, "the relay has not decoded the body in time")
        }
        Acknowledge::Delivered => {
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
        "one event is too large for limits.max_in_flight ({max} bytes): raise limits.max_in_flight"
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Rejection::TooLarge, message)
}

/// Checks and splits a body that is completely in memory. Returns its lines; the error says why the
/// body is invalid.
///
/// If `keeps_list` is `true`, a list of events may stay as it was received ([`Append::list`]).
fn decode(mut body: Buffer, keeps_list: bool, volume: &Volume) -> Result<Whole, Stopped> {
    let (split, list) = match keeps_list {
        true => audit::decode_keeping_list(body.with_room())?,
        false => (audit::decode_in_place(body.with_room())?, None),
    };
    let Split { lines, events, levels } = split;
    Ok(Whole::in_memory(Append { lines: body.keep(lines), list, events, levels }, volume))
}

fn stopped(stopped: Stopped) -> Refusal {
    match stopped {
        Stopped::Invalid(error) => invalid(error.to_string()),
        Stopped::Refused(reason) => refused(reason),
    }
}

/// Checks the headers Content-Type and Content-Encoding. Returns `true` if the body is gzip and
/// `false` if it is not compressed. The error is the refusal of an unknown type or encoding.
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
                "the Content-Type is not one of application/json, application/x-ndjson, text/plain",
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

/// The body of a request that is arriving.
struct Upload<'a> {
    body: Incoming,
    /// The time until which `Upload::next` waits for more bytes.
    deadline: Instant,
    /// This token is cancelled in the middle of the drain. The request is then refused.
    cut: &'a CancellationToken,
    connection: &'a Connection,
    /// The number of bytes of the body that have arrived, counted before decompression.
    sent: u64,
    /// `true`: the relay has begun to read the body. If the request has `Expect: 100-continue`,
    /// hyper asks the sender for the body at this moment.
    begun: bool,
    /// `true`: no more bytes will arrive, because the body is complete or broken.
    ended: bool,
    /// The time at which the body was complete; `None` before.
    whole_at: Option<Instant>,
}

impl Upload<'_> {
    /// Waits for the next bytes of the body and returns them; `None` if the body is complete. The
    /// error is the refusal of the request, for one of three reasons: the body arrives too slowly,
    /// the body is broken, or the relay is ending.
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
                    tracing::debug!(%error, "the body ended early");
                    return Err(invalid(
                        "the body is shorter than its Content-Length, or its chunks are broken",
                    ));
                }
                // Trailers are ignored.
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

    /// Reads the rest of a refused body and throws it away. Also stops when more than `max` bytes
    /// of the body have arrived in all, or when the body arrives too slowly (see [`REFUSED_TIME`]).
    /// Returns an error, the refusal 408, only if `limits.body_timeout` has passed.
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

/// The bytes of a body that have arrived so far and are not stored in the queue yet.
struct Intake {
    /// The bytes of the body that have arrived and were not yet given to the decoder `large`. If
    /// `large` is `None`, these are all bytes that have arrived.
    rest: Buffer,
    /// The decoder of a large body, which decodes the body while it arrives. `None` as long as the
    /// body is held as a whole.
    large: Option<Large>,
}

impl Intake {
    fn new(announced: Option<usize>, pool: &Arc<Pool>) -> Self {
        Self { rest: Buffer::new(announced, pool), large: None }
    }

    /// Returns the number of bytes of memory that the body takes now. This number is counted
    /// against `limits.max_in_flight`.
    fn held(&self) -> usize {
        self.rest.len() + self.large.as_ref().map_or(0, Large::held)
    }
}

/// A writer that receives the decompressed bytes of a gzip body.
struct Inflated {
    intake: Intake,
    /// The number of decompressed bytes that were written so far.
    bytes: u64,
    /// The largest allowed number of decompressed bytes; with more bytes, `write` returns an error.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_of_max_in_flight_is_taken_and_no_more() {
        let in_flight = InFlight::new(Gauge::default());
        assert!(in_flight.add(60, 100) && in_flight.add(40, 100) && in_flight.is_full(100));
        assert!(!in_flight.add(1, 100), "beyond the limit");
        in_flight.give_back(1);
        assert!(!in_flight.is_full(100) && in_flight.add(1, 100), "what was refused took nothing");
        assert!(!in_flight.add(u64::MAX, u64::MAX), "a sum beyond 64 bits");
    }
}
