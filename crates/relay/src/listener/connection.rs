//! Tracks every connection: its phase, and the deadline of that phase.
//!
//! hyper alone is not enough. hyper starts its timeout for a head as soon as a keep-alive
//! connection becomes idle, and has no idle timeout. Therefore the socket is wrapped. [`Watched`]
//! sees when a head begins and an answer is sent, and [`Registry`] closes a connection that stays
//! too long in one phase.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::answer::Notes;
use super::sender::Sender;
use audit::RejectedItem;
use base::lock::lock;
use delivery::DeadLetters;
use telemetry::{ChangedEvent, ListenerMetrics, RefusedConnection, Rejection};

/// The approximate maximum number of bytes of a refused body that the relay discards after the
/// answer. If the relay closed the connection immediately, the sender might see a reset and not the
/// refusal (RFC 9112 §9.6).
const LINGER_BYTES: usize = 1024 * 1024;
/// The longest time for which the rest of a refused body is read after the answer.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);
/// The same limit if the relay has already waited for the rest of the body before its answer.
pub(super) const LINGER_TIME_SLOW: Duration = Duration::from_millis(500);

/// The first bytes of a TLS handshake: a record of type 22, of any version of TLS (RFC 8446 §5.1).
const TLS_HANDSHAKE: &[u8] = &[22, 3];

/// The connection preface that an HTTP/2 client sends (RFC 9113 §3.4). No HTTP/1 request begins
/// with its first line.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The answer to an HTTP/1 head that takes longer than `limits.header_timeout`.
const HEAD_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The time after which the relay closes a connection that was told to end ([`Connection::leave`])
/// and has no request in progress. Also the time from the GOAWAY (RFC 9113 §6.8) for an idle h2
/// connection to its close.
const FAREWELL: Duration = Duration::from_secs(1);

/// The time for which an HTTP/1.1 connection must wait for its next request before the relay frees
/// hyper's buffers of the connection: 112 KiB after a batch. A busy connection keeps its buffers.
const REST_AFTER: Duration = Duration::from_secs(2);

/// The open connections of all listeners. Each of them counts for `limits.max_connections`; a
/// connection that was closed for a new one is no longer here.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The TLS handshake is not complete. The module `handshake` limits its time, because only that
    /// module knows what to count and to log.
    Handshake,
    /// No request is in progress and, on HTTP/1, no byte of the next one has arrived.
    Idle,
    /// The head of a request has begun, and is not complete yet.
    Head,
    /// The given number of requests have complete heads, and are not answered yet.
    Serving(usize),
    /// The answer was handed to hyper, but the socket has not sent all of it yet.
    Answered,
}

/// The way in which the registry ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The connection is closed without a further answer.
    Close,
    /// The head of a request took too long. HTTP/1.1 gets 408 before the close.
    Timeout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    /// Bytes that arrive between two requests are not necessarily the beginning of a head, because
    /// HTTP/2 has other frames.
    Http2 {
        /// `true`: the connection was idle for too long, and GOAWAY has told the client so.
        is_dismissed: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffers {
    /// The connection has had no request since hyper's state for it was made.
    Fresh,
    /// Buffers of 112 KiB, after a request.
    Used,
    /// hyper has begun to close the connection.
    Closing,
}

#[derive(Debug, Default)]
struct Refusals {
    /// The number of requests in [`Phase::Serving`] that are already refused, but not answered yet,
    /// because the rest of their bodies is still being discarded.
    under_way: usize,
    /// `true`: the last request that has ended was answered with a refusal.
    was_last: bool,
    /// The longest time for which the rest of a refused body is discarded before the close; `None`
    /// if there is no such body.
    linger: Option<Duration>,
}

/// The state of one connection. Its socket and its service update the state. The registry reads it,
/// and notes in it how the connection must end.
struct State {
    phase: Phase,
    /// The time at which the phase began. A refusal in this phase sets it to the time of the
    /// refusal. After that, each large part of the refused body sets it to the time at which the
    /// part arrived.
    since: Instant,
    /// The time since which the connection waits for the complete head of a request: the time of
    /// its opening, or of the end of its last request.
    headless: Instant,
    /// The registry's decision to end the connection; `None` before it.
    verdict: Option<Verdict>,
    protocol: Protocol,
    buffers: Buffers,
    refusals: Refusals,
    /// The time of [`Connection::leave`]; `None` before. Each later end of a request that had begun
    /// before sets it to the time of that end.
    leaving: Option<Instant>,
}

/// The order in which connections are closed for a new one, if the limit of connections is reached:
/// those of rank `Refused` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Each request of this connection is answered or refused. The relay only waits for the rest of
    /// a body, or until the client has read the answer.
    Refused,
    /// The connection waits for its TLS handshake, a request, or the rest of a head.
    Headless,
}

impl State {
    /// Returns the rank of this connection if it may be closed for a new one, and a time: `since`
    /// for `Refused`, `headless` for `Headless`. Within a rank, the connection with the earliest
    /// time is closed first. `None` if the connection must stay, or ends already.
    fn gives_way(&self) -> Option<(Rank, Instant)> {
        match self.phase {
            _ if self.verdict.is_some() => None,
            Phase::Serving(count) if self.refusals.under_way >= count => {
                Some((Rank::Refused, self.since))
            }
            Phase::Answered if self.refusals.was_last => Some((Rank::Refused, self.since)),
            Phase::Serving(_) | Phase::Answered => None,
            Phase::Idle if self.refusals.linger.is_some() => Some((Rank::Refused, self.since)),
            Phase::Handshake | Phase::Idle | Phase::Head => Some((Rank::Headless, self.headless)),
        }
    }

    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Handshake,
            since: now,
            headless: now,
            verdict: None,
            protocol: Protocol::Http1,
            buffers: Buffers::Fresh,
            refusals: Refusals::default(),
            leaving: None,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn is_multiplexed(&self) -> bool {
        self.protocol != Protocol::Http1
    }

    fn speaks(&mut self, multiplexed: bool) {
        if multiplexed != self.is_multiplexed() {
            let http2 = Protocol::Http2 { is_dismissed: false };
            self.protocol = if multiplexed { http2 } else { Protocol::Http1 };
        }
    }

    /// Returns `true` if the connection speaks HTTP/1 and waits for a request or the rest of its
    /// head.
    fn is_unasked(&self) -> bool {
        !self.is_multiplexed() && matches!(self.phase, Phase::Idle | Phase::Head)
    }

    /// Returns `true` if the next bytes begin the head of an HTTP/1 request.
    fn awaits_head(&self) -> bool {
        self.phase == Phase::Idle && !self.is_multiplexed() && self.refusals.linger.is_none()
    }

    /// Returns `true` if the buffers of the connection may be freed: it is an HTTP/1.1 connection
    /// that waits for a request and may stay.
    fn may_rest(&self) -> bool {
        self.phase == Phase::Idle
            && !self.is_multiplexed()
            && self.buffers != Buffers::Closing
            && self.verdict.is_none()
            && self.leaving.is_none()
    }
}

/// One open connection. The task of the connection, its socket ([`Watched`]) and the registry share
/// this value.
///
/// A connection goes through the phases `Handshake` → `Idle` → `Head` → `Serving` → `Answered` →
/// `Idle`. HTTP/2 stays `Idle` until its first request, returns to `Idle` after the last of its
/// requests, and is never `Answered`. While the relay discards the rest of a refused body after the
/// answer, the connection is `Idle` too. The phases have these time limits:
///
/// - `Idle`: `idle_timeout`. After it, HTTP/1.1 is closed. h2 is sent GOAWAY, and is closed after a
///   further [`FAREWELL`].
/// - `Handshake`: no limit here. The module `handshake` ends it after `header_timeout`.
/// - `Head`: `header_timeout`. After it, HTTP/1.1 gets 408.
/// - `Serving`: no limit here. The module `ingest` limits the time of a request.
/// - `Answered`: `header_timeout`, plus the time for which the rest of a refused body is discarded.
///
/// A connection that was told to end ([`Connection::leave`]) is closed [`FAREWELL`] later, or
/// [`FAREWELL`] after the end of the last request that was in progress. While the answer to a
/// refused body is being sent, only the limit of `Answered` holds.
///
/// The registry never ends a connection that has a request that may still be accepted.
pub(super) struct Connection {
    state: Mutex<State>,
    /// Wakes the task of the connection when the registry has decided to end the connection. The
    /// task waits for its socket or, during the TLS handshake, in [`Connection::judged`].
    waker: AtomicWaker,
    opened: Instant,
    metrics: ListenerMetrics,
    sender: Sender,
    /// Notified when the connection must take no more requests.
    retired: Notify,
    /// Notified when the connection has waited for a request for [`REST_AFTER`].
    rested: Notify,
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.metrics
    }

    /// Counts a request that is refused with this answer. If the request may have had a batch (a
    /// health check has none), its sender may get a log line.
    pub(super) fn rejected(
        &self,
        rejection: Rejection,
        code: u16,
        message: &str,
        may_be_batch: bool,
    ) {
        self.metrics.rejected(rejection, code, message);
        if may_be_batch {
            if rejection.is_for_good() {
                self.metrics.turned_away();
            }
            self.sender.request_refused(rejection, code, message);
        }
    }

    /// Counts what the notes about an accepted body say. Its items that are not audit events get a
    /// log line and dead letters.
    pub(super) fn noted(&self, notes: Notes, dead_letters: &DeadLetters) {
        let Notes { rejected, mended, trimmed } = notes;
        self.metrics.changed_events.of(ChangedEvent::InvalidUtf8).increment(mended);
        self.metrics.changed_events.of(ChangedEvent::Trimmed).increment(trimmed);
        self.metrics.rejected_items.increment(rejected.count);
        if let Some(told) = rejected.told() {
            self.sender.items_rejected(&told);
            for RejectedItem { fault, text } in rejected.first {
                dead_letters.keep(&self.sender.listener, &fault.to_string(), &text);
            }
        }
    }

    /// Counts a head that was too slow, or that hyper could not read. The answer with this status
    /// has no body. `is_tls` is `true` if the sender has begun a TLS handshake instead.
    pub(super) fn head_refused(&self, status: u16, is_tls: bool) {
        let (rejection, message) = match status {
            _ if is_tls => (
                Rejection::Invalid,
                "the sender speaks TLS to a listener without TLS: give it a URL that begins with \
                 http://, or set listener.tls",
            ),
            408 => (Rejection::Timeout, "the head of the request arrived too slowly"),
            431 => (
                Rejection::Invalid,
                "the head of the request is larger than 64 KiB or has more than 100 headers",
            ),
            _ => (Rejection::Invalid, "the head of the request is not HTTP"),
        };
        self.metrics.answered(status);
        self.rejected(rejection, status, message, true);
    }

    /// Counts this connection as closed because of `limits.max_connections`.
    fn closed_for_room(&self, reason: RefusedConnection) {
        self.metrics.connection_refused(reason);
        self.sender.connection_closed(reason);
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.opened)
    }

    /// Notes that the connection is ready for its first request. `multiplexed` is `true` if the
    /// client has chosen h2 in the TLS handshake, or has sent its preface.
    pub(super) fn established(&self, multiplexed: bool) {
        let mut state = self.lock();
        state.speaks(multiplexed);
        state.enter(Phase::Idle, Instant::now());
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.lock().is_multiplexed()
    }

    /// Notes a request whose head is complete at the time `now`. Returns `false` if the connection
    /// was told to end before.
    pub(super) fn begin_request(&self, multiplexed: bool, now: Instant) -> bool {
        let mut state = self.lock();
        state.speaks(multiplexed);
        if state.buffers == Buffers::Fresh {
            state.buffers = Buffers::Used;
        }
        let under_way = if let Phase::Serving(count) = state.phase { count } else { 0 };
        state.enter(Phase::Serving(under_way + 1), now);
        state.leaving.is_none()
    }

    /// Notes the end of a request at the time `now`: its answer was handed to hyper, or it was
    /// dropped. `in_time` is the result of [`Connection::begin_request`]. `refusing` is `true` if
    /// the answer is a refusal.
    pub(super) fn end_request(&self, in_time: bool, refusing: bool, now: Instant) {
        let mut state = self.lock();
        let left =
            if let Phase::Serving(count) = state.phase { count.saturating_sub(1) } else { 0 };
        state.headless = now;
        state.refusals.was_last = refusing;
        if in_time && let Some(leaving) = &mut state.leaving {
            *leaving = now;
        }
        let phase = match left {
            0 if state.is_multiplexed() => Phase::Idle,
            0 => Phase::Answered,
            _ => Phase::Serving(left),
        };
        state.enter(phase, now);
    }

    /// Notes that a request is refused, and that the relay only waits for the rest of its body,
    /// until the returned guard is dropped.
    pub(super) fn refused(&self) -> RefusedRequest<'_> {
        let mut state = self.lock();
        state.refusals.under_way += 1;
        state.since = Instant::now();
        RefusedRequest(self)
    }

    /// Notes that the connection was told to end. [`Connection`] says how long it may then stay.
    pub(super) fn leave(&self) {
        self.lock().leaving.get_or_insert_with(Instant::now);
    }

    /// Asks hyper to take no more requests on this connection: on h2 hyper sends GOAWAY, on
    /// HTTP/1.1 it closes the connection after the current request.
    pub(super) fn retire(&self) {
        self.retired.notify_one();
    }

    pub(super) async fn retired(&self) {
        self.retired.notified().await;
    }

    /// Waits until the connection has waited for a request for [`REST_AFTER`]. Its buffers can then
    /// be freed, except for the beginning of a head that may have come with the last request.
    pub(super) async fn rested(&self) {
        loop {
            self.rested.notified().await;
            // A request may have begun since the registry looked.
            if self.lock().may_rest() {
                return;
            }
        }
    }

    /// Notes that the sender may still be sending a refused body. When the connection is shut down,
    /// the relay reads and discards the rest for at most `time`, and at most about [`LINGER_BYTES`]
    /// of it.
    pub(super) fn linger(&self, time: Duration) {
        self.lock().refusals.linger = Some(time);
    }

    fn judge(&self, verdict: Verdict) {
        self.lock().verdict = Some(verdict);
        self.waker.wake();
    }

    /// Waits until the registry decides to end the connection. Used only during a TLS handshake:
    /// afterwards, the wrapper [`Watched`] sees this decision.
    pub(super) async fn judged(&self) {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.lock().verdict.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Exists while the rest of a refused body is being discarded; see [`Connection::refused`].
pub(super) struct RefusedRequest<'a>(&'a Connection);

impl RefusedRequest<'_> {
    /// Notes that a large part of the refused body has arrived just now. The connection then gives
    /// way later when a new one needs room.
    pub(super) fn progressed(&self) {
        self.0.lock().since = Instant::now();
    }
}

impl Drop for RefusedRequest<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.refusals.under_way = state.refusals.under_way.saturating_sub(1);
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }

    /// Adds a new connection and returns its place. If `max` connections are already open, closes
    /// one of them and counts it as refused. The first choice is the connection whose refused
    /// request has made no progress for the longest time. The second choice is the one that has
    /// waited longest for a complete head. `None` if there is neither: the caller then closes the
    /// new connection.
    pub(super) fn open(
        self: &Arc<Self>,
        max: usize,
        metrics: ListenerMetrics,
        sender: Sender,
    ) -> Option<Registered> {
        let now = Instant::now();
        let connection = Arc::new(Connection {
            state: Mutex::new(State::new(now)),
            waker: AtomicWaker::new(),
            opened: now,
            metrics,
            sender,
            retired: Notify::new(),
            rested: Notify::new(),
        });
        let mut entries = self.lock();
        let mut evicted = None;
        if entries.open.len() >= max {
            let open = entries.open.iter();
            let may_go =
                open.filter_map(|(id, connection)| Some((connection.lock().gives_way()?, *id)));
            let first = may_go.min();
            // The place of the evicted connection is free now. The connection's task ends when it
            // runs next.
            evicted = first.and_then(|(_, id)| entries.open.remove(&id));
            let Some(evicted) = &evicted else {
                drop(entries);
                connection.closed_for_room(RefusedConnection::AllBusy);
                return None;
            };
            evicted.judge(Verdict::Close);
        }
        let id = entries.next;
        entries.next += 1;
        entries.open.insert(id, Arc::clone(&connection));
        drop(entries);
        if let Some(evicted) = evicted {
            evicted.closed_for_room(RefusedConnection::Evicted);
        }
        connection.metrics.connections.increment(1.0);
        Some(Registered { registry: Arc::clone(self), id, connection })
    }

    pub(super) fn places(&self) -> usize {
        self.lock().open.len()
    }

    /// Ends every connection without a request in progress that has reached the deadline of its
    /// phase, or was told to end [`FAREWELL`] ago. `handshake` limits TLS handshakes. An idle
    /// HTTP/2 connection is first told to end. Notifies the connections whose buffers can be freed.
    pub(super) fn enforce(&self, limits: &config::Limits) {
        let (header, idle) = (limits.header_timeout, limits.idle_timeout);
        for connection in self.lock().open.values() {
            let mut state = connection.lock();
            let waited = state.since.elapsed();
            let is_over = state.leaving.is_some_and(|since| since.elapsed() >= FAREWELL);
            let verdict = match state.phase {
                _ if state.verdict.is_some() => continue,
                Phase::Handshake | Phase::Serving(_) => continue,
                Phase::Head if waited >= header => Verdict::Timeout,
                // A client that does not read its answer has the same time as one that does not
                // complete a head.
                Phase::Answered if waited >= header + state.refusals.linger.unwrap_or_default() => {
                    Verdict::Close
                }
                Phase::Answered if state.refusals.linger.is_some() => continue,
                Phase::Idle if waited >= idle && !state.is_multiplexed() => Verdict::Close,
                Phase::Idle if waited >= idle + FAREWELL => Verdict::Close,
                Phase::Idle
                    if waited >= idle
                        && state.protocol == Protocol::Http2 { is_dismissed: false } =>
                {
                    state.protocol = Protocol::Http2 { is_dismissed: true };
                    drop(state);
                    connection.retire();
                    continue;
                }
                Phase::Idle | Phase::Head | Phase::Answered if is_over => Verdict::Close,
                Phase::Idle
                    if waited >= REST_AFTER
                        && state.buffers == Buffers::Used
                        && state.may_rest() =>
                {
                    state.buffers = Buffers::Fresh;
                    connection.rested.notify_one();
                    continue;
                }
                Phase::Idle | Phase::Head | Phase::Answered => continue,
            };
            drop(state);
            connection.judge(verdict);
        }
    }
}

/// The place of a connection in the registry. Dropping this value frees the place.
pub(super) struct Registered {
    registry: Arc<Registry>,
    id: u64,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.lock().open.remove(&self.id);
        self.connection.metrics.connections.decrement(1.0);
    }
}

/// A wrapper around the socket of a connection, or around its TLS stream. All bytes in both
/// directions pass through it. The wrapper sees when a head begins and an answer is sent, and ends
/// the connection when the registry has decided so.
pub(super) struct Watched<T> {
    inner: T,
    connection: Arc<Connection>,
    /// Bytes that were read from `inner` already. They are read again before those of `inner`.
    pub(super) ahead: Bytes,
    /// `true`: hyper answers a head that it could not read, and the answer is counted.
    has_refused: bool,
    /// `true`: the first bytes are those of a TLS handshake, and the listener has no TLS.
    is_tls: bool,
    /// The time limit for the rest of a refused body, and the number of its bytes that were
    /// discarded, at most about [`LINGER_BYTES`]. `None` if no body is being discarded.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Watched<T> {
    pub(super) fn new(inner: T, connection: Arc<Connection>) -> Self {
        let (has_refused, is_tls) = (false, false);
        Self { inner, connection, ahead: Bytes::new(), has_refused, is_tls, linger: None }
    }

    /// Reads the first bytes of the connection, which stay [`Watched::ahead`]. Returns `true` if
    /// they are those of HTTP/2. hyper then writes its settings immediately.
    pub(super) async fn begins_h2(&mut self) -> io::Result<bool> {
        let mut first = BytesMut::with_capacity(H2_PREFACE.len());
        while first.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&first) {
            if self.read_buf(&mut first).await? == 0 {
                break;
            }
        }
        self.is_tls = first.starts_with(TLS_HANDSHAKE);
        self.ahead = first.freeze();
        let is_h2 = self.ahead.starts_with(H2_PREFACE);
        if is_h2 {
            self.connection.established(true);
        }
        Ok(is_h2)
    }

    /// Returns an error if there is a verdict, and otherwise the state. Registers the task of `cx`,
    /// which the registry wakes if it closes the connection later.
    fn check(&self, cx: &Context<'_>) -> io::Result<MutexGuard<'_, State>> {
        self.connection.waker.register(cx.waker());
        let state = self.connection.lock();
        match state.verdict {
            Some(Verdict::Close | Verdict::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            None => Ok(state),
        }
    }

    /// hyper writes these bytes. If no request waits for an answer, they answer a head that hyper
    /// could not read, which is counted once, whether the client reads the answer or not.
    fn writes(&mut self, cx: &Context<'_>, bytes: &[u8]) -> io::Result<()> {
        if self.check(cx)?.is_unasked() && !std::mem::replace(&mut self.has_refused, true) {
            // The status code stands behind `HTTP/1.1 `.
            let status = bytes.get(9..12).and_then(|it| std::str::from_utf8(it).ok()?.parse().ok());
            self.connection.head_refused(status.unwrap_or(400), self.is_tls);
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.connection.waker.register(cx.waker());
        let verdict = this.connection.lock().verdict;
        match verdict {
            Some(Verdict::Timeout) if !this.connection.is_multiplexed() => {
                this.connection.head_refused(408, false);
                // An answer that cannot be written immediately is dropped: the client has not read
                // earlier answers either, and would not read this one.
                drop(Pin::new(&mut this.inner).poll_write(cx, HEAD_TIMEOUT));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // An end of the stream makes hyper close the connection normally.
            Some(Verdict::Timeout | Verdict::Close) => return Poll::Ready(Ok(())),
            None => {}
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        } else {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(count));
        }
        let read = buf.filled().get(before..).unwrap_or_default();
        let mut state = this.connection.lock();
        // Old clients send an empty line after a request (RFC 9112 §2.2).
        if state.awaits_head() && read.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            state.enter(Phase::Head, Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx, buf)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx, bufs.first().map_or(&[], |first| &**first))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        let mut state = self.check(cx)?;
        std::task::ready!(flushed)?;
        if state.phase == Phase::Answered {
            state.enter(Phase::Idle, Instant::now());
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts down the write side of the socket. If the request was refused and the sender may still
    /// be sending its body, also reads and discards the rest of the body for a limited time.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check(cx)?.buffers = Buffers::Closing;
        if this.linger.is_none() {
            std::task::ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            let Some(time) = this.connection.lock().refusals.linger else {
                return Poll::Ready(Ok(()));
            };
            this.linger = Some((Box::pin(tokio::time::sleep(time)), 0));
        }
        let Some((deadline, taken)) = &mut this.linger else { return Poll::Ready(Ok(())) };
        let mut waste = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        while deadline.as_mut().poll(cx).is_pending() && *taken < LINGER_BYTES {
            let mut buf = ReadBuf::uninit(&mut waste);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
            *taken += buf.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::Telemetry;

    /// A drain or a reload tells the connection to end while its request waits for the queue.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_to_end_has_time_for_the_answer_to_its_last_request() {
        let registry = Arc::new(Registry::default());
        let peer = ([127, 0, 0, 1], 1).into();
        let sender = Sender { listener: "l".into(), peer, refused: Arc::default() };
        let place = registry.open(1, Telemetry::new().listener("l"), sender).expect("a place");
        let long = Duration::from_secs(60);
        let limits = config::Limits {
            max_body: 1,
            max_in_flight: 1,
            max_connections: 1,
            header_timeout: long,
            body_timeout: long,
            idle_timeout: long,
            max_connection_age: None,
        };
        let verdict = || {
            registry.enforce(&limits);
            place.connection.lock().verdict
        };
        place.connection.established(false);
        let in_time = place.connection.begin_request(false, Instant::now());
        place.connection.leave();
        tokio::time::advance(10 * FAREWELL).await;
        assert_eq!(verdict(), None, "its request may still be accepted");
        place.connection.end_request(in_time, false, Instant::now());
        assert_eq!(verdict(), None, "the answer is on its way");
        tokio::time::advance(FAREWELL).await;
        assert_eq!(verdict(), Some(Verdict::Close));
    }
}
