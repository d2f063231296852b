//! Tracks every connection: its phase, and the deadline of that phase.
//!
//! hyper alone is not enough. hyper starts its timeout for a head as soon as a kept connection
//! falls idle, has no idle timeout, and answers an unreadable head with an empty body. Therefore
//! the socket is wrapped: [`Watched`] derives the connection's phase from its bytes, [`Registry`]
//! closes a connection that stays too long in one phase, and the answers that hyper makes by itself
//! are replaced by `Status` objects.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::answer;
use super::framing::Framing;
use crate::telemetry::ListenerMetrics;
use crate::telemetry::Rejection;

/// The largest number of bytes of a refused body that are still read and thrown away if the refusal
/// was answered before the whole body was read; see [`LINGER_TIME`]. Otherwise the sender might see
/// a reset instead of the answer (RFC 9112 §9.6).
const LINGER_BYTES: usize = 1024 * 1024;
/// The longest time for which the bytes of a refused body are thrown away after the answer; see
/// [`LINGER_BYTES`].
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);
/// Replaces [`LINGER_TIME`] if the refusal has already waited for the body, and the body did not
/// come in that time.
pub(super) const LINGER_TIME_SLOW: Duration = Duration::from_millis(500);

/// The first line of the preface of HTTP/2 (RFC 9113 §3.4). No HTTP/1 request begins with these
/// bytes.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// The time that an h2 client has to end its connection after GOAWAY (RFC 9113 §6.8); after it, the
/// connection is closed. A head that had begun when its connection was told to end has the same
/// time to become complete.
const FAREWELL: Duration = Duration::from_secs(1);

/// The deadlines of a connection that is in no request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// The longest time for the head of a request, or for a TLS handshake.
    pub(super) header: Duration,
    /// The longest time between two requests of a connection.
    pub(super) idle: Duration,
}

impl Deadlines {
    /// The time between two calls of [`Registry::enforce`]: a tenth of the shorter deadline,
    /// between 10 and 250 ms.
    pub(super) fn tick(self) -> Duration {
        (self.header.min(self.idle) / 10)
            .clamp(Duration::from_millis(10), Duration::from_millis(250))
    }
}

/// All open connections of all listeners, at most `limits.max_connections`. All listeners share one
/// registry.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// The number that the next connection gets.
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
}

/// The phase of a connection, which decides which deadline the connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The connection waits for the first byte of a request.
    Idle,
    /// The connection waits for the rest of a head, or of a TLS handshake.
    Head,
    /// This many requests are under way; their senders wait for the relay.
    Serving(usize),
    /// The answer is written to the socket, but not flushed yet.
    Answered,
}

/// The way in which the relay ends a connection that is in no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The connection is closed without an answer: it was idle for too long, or its place is
    /// needed.
    Close,
    /// The connection is closed after the answer 408: its head came too slowly.
    Timeout,
}

/// The state of a connection. The socket and the service of the connection change the state, and
/// the registry reads it.
struct State {
    phase: Phase,
    /// The time at which the phase began. In a request that is already refused: the time at which
    /// its body last made progress.
    since: Instant,
    /// The time since which the connection has had no complete head: the time at which it was
    /// opened, or at which its last request was answered.
    headless: Instant,
    /// The way in which the registry ends the connection; `None` as long as the connection may
    /// stay.
    verdict: Option<Verdict>,
    /// `true`: the connection speaks HTTP/2. Bytes between two requests may then be frames, not the
    /// beginning of a head.
    multiplexed: bool,
    /// `true`: the h2 client was sent GOAWAY, because its connection was idle for too long.
    dismissed: bool,
    /// The time for which the rest of a body is thrown away before the connection closes; `None` if
    /// no body is left to throw away.
    linger: Option<Duration>,
    /// The number of requests under way that are already refused, and whose bodies are thrown away.
    /// At most the number in [`Phase::Serving`].
    refused: usize,
    /// `true`: the answer that was handed to the socket last refuses its request.
    refusing: bool,
    /// `None`: requests may begin. Otherwise the time at which the connection was told to end; if
    /// requests were under way then, the time at which the last of them was answered.
    leaving: Option<Instant>,
}

/// The two kinds of connections that may lose their place to a new connection when no place is
/// free. Connections of the kind `Refused` lose their place before those of the kind `Headless`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// All requests of this connection are already refused. The relay only waits for the rest of a
    /// body, or for the client to read the answer.
    Refused,
    /// The connection has no complete head.
    Headless,
}

impl State {
    /// Returns the rank of this connection among those that may lose their place, and the time
    /// since which the connection has had that rank. Of the connections of one rank, the one that
    /// has had it for the longest time loses its place first. `None` if the connection must keep
    /// its place.
    fn gives_way(&self) -> Option<(Rank, Instant)> {
        match self.phase {
            _ if self.verdict.is_some() => None,
            Phase::Serving(count) if self.refused >= count => Some((Rank::Refused, self.since)),
            Phase::Answered if self.refusing => Some((Rank::Refused, self.since)),
            Phase::Serving(_) | Phase::Answered => None,
            Phase::Idle if self.linger.is_some() => Some((Rank::Refused, self.since)),
            Phase::Idle | Phase::Head => Some((Rank::Headless, self.headless)),
        }
    }
}

/// One connection. Its task, its socket ([`Watched`]) and the registry share this value.
///
/// The phases follow each other as `Head` (TLS handshake) → `Idle` → `Head` → `Serving` →
/// `Answered` → `Idle`. HTTP/2 stays `Idle` until its first request, returns to `Idle` after the
/// last of its requests, and is never `Answered`. The deadlines are:
///
/// - `Idle` ends after `idle_timeout`: HTTP/1.1 is closed, and h2 is sent GOAWAY first and closed
///   after [`FAREWELL`].
/// - `Head` ends after `header_timeout`, with the answer 408 on HTTP/1.1.
/// - `Serving` has no deadline here; ingest bounds a request's time.
/// - `Answered` ends after `header_timeout`, plus the time to throw a body away.
///
/// A connection that was told to end ([`Connection::leave`]) is closed [`FAREWELL`] later, unless a
/// request is under way.
///
/// A request that may still be accepted is never ended by the registry.
pub(super) struct Connection {
    state: Mutex<State>,
    /// Wakes the task that reads or writes the socket, after the registry has ended the connection.
    waker: AtomicWaker,
    opened: Instant,
    metrics: ListenerMetrics,
    /// Notified when the connection must take no further request.
    retired: Notify,
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the phase of a connection, and notes the time of the change.
    fn enter(state: &mut State, phase: Phase) {
        state.phase = phase;
        state.since = Instant::now();
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.metrics
    }

    /// The time since this connection was accepted.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Notes that the TLS handshake is over, or that there is none, so that the first head may
    /// begin. `multiplexed` is `true` if the client has chosen h2.
    pub(super) fn established(&self, multiplexed: bool) {
        let mut state = self.lock();
        state.multiplexed = multiplexed;
        Self::enter(&mut state, Phase::Idle);
    }

    /// Returns `true` if the connection speaks HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.lock().multiplexed
    }

    /// Notes that the head of a request is complete. Returns `true` if the connection was not told
    /// to end before that.
    pub(super) fn begin_request(&self, multiplexed: bool) -> bool {
        let mut state = self.lock();
        state.multiplexed = multiplexed;
        let under_way = if let Phase::Serving(count) = state.phase { count } else { 0 };
        Self::enter(&mut state, Phase::Serving(under_way + 1));
        state.leaving.is_none()
    }

    /// Notes that an answer was handed to the socket, or that its request was dropped. `in_time` is
    /// the result of [`Connection::begin_request`]; `refusing` is `true` if the answer is a
    /// refusal.
    pub(super) fn end_request(&self, in_time: bool, refusing: bool) {
        let mut state = self.lock();
        let left =
            if let Phase::Serving(count) = state.phase { count.saturating_sub(1) } else { 0 };
        state.headless = Instant::now();
        state.refusing = refusing;
        if in_time && let Some(leaving) = &mut state.leaving {
            *leaving = Instant::now();
        }
        let phase = match left {
            0 if state.multiplexed => Phase::Idle,
            0 => Phase::Answered,
            _ => Phase::Serving(left),
        };
        Self::enter(&mut state, phase);
    }

    /// Notes that a request under way is refused and only the rest of its body is awaited. Dropping
    /// the returned guard ends this state.
    pub(super) fn refused(&self) -> RefusedRequest<'_> {
        let mut state = self.lock();
        state.refused += 1;
        state.since = Instant::now();
        RefusedRequest(self)
    }

    /// Tells the connection that no request may begin any more. If the connection is idle or in a
    /// head, it ends after at most [`FAREWELL`] and one tick of the registry.
    pub(super) fn leave(&self) {
        self.lock().leaving.get_or_insert_with(Instant::now);
    }

    /// Tells hyper to take no further request on this connection: h2 sends GOAWAY, HTTP/1.1 ends
    /// keep-alive.
    pub(super) fn retire(&self) {
        self.retired.notify_one();
    }

    /// Waits until [`Connection::retire`] is called.
    pub(super) async fn retired(&self) {
        self.retired.notified().await;
    }

    /// Notes that the connection ends after this answer while the sender may still be writing.
    /// Bytes that the sender writes after the answer are thrown away for `time`.
    pub(super) fn linger(&self, time: Duration) {
        self.lock().linger = Some(time);
    }

    /// Ends the connection in the way that `verdict` names, and wakes its task.
    fn judge(&self, verdict: Verdict) {
        self.lock().verdict = Some(verdict);
        self.waker.wake();
    }

    /// Waits until the registry ends the connection. The task of a TLS handshake needs this,
    /// because nobody reads through [`Watched`] before the end of the handshake.
    pub(super) async fn judged(&self) {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.lock().verdict.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A guard for a request whose body is thrown away; see [`Connection::refused`].
pub(super) struct RefusedRequest<'a>(&'a Connection);

impl RefusedRequest<'_> {
    /// Notes that a large part of the body has come. Of all refused connections, this connection
    /// now loses its place last.
    pub(super) fn progressed(&self) {
        self.0.lock().since = Instant::now();
    }
}

impl Drop for RefusedRequest<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.refused = state.refused.saturating_sub(1);
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a place to a new connection. If `max` places are taken, another connection loses its
    /// place: one whose requests are all refused, or, if there is none, the one that has been
    /// without a complete head for the longest time. Returns `None` if every connection is in a
    /// request that may still be accepted; the caller then closes the new connection.
    pub(super) fn open(
        self: &Arc<Self>,
        max: usize,
        metrics: ListenerMetrics,
    ) -> Option<Registered> {
        let now = Instant::now();
        let connection = Arc::new(Connection {
            state: Mutex::new(State {
                phase: Phase::Head,
                since: now,
                headless: now,
                verdict: None,
                multiplexed: false,
                dismissed: false,
                linger: None,
                refused: 0,
                refusing: false,
                leaving: None,
            }),
            waker: AtomicWaker::new(),
            opened: now,
            metrics,
            retired: Notify::new(),
        });
        let mut entries = self.lock();
        if entries.open.len() >= max {
            let first = entries
                .open
                .iter()
                .filter_map(|(id, connection)| Some((connection.lock().gives_way()?, *id)))
                .min();
            // The place of the evicted connection is free at once; its task ends when it is
            // scheduled next.
            let (_, id) = first?;
            let evicted = entries.open.remove(&id)?;
            evicted.judge(Verdict::Close);
        }
        let id = entries.next;
        entries.next += 1;
        entries.open.insert(id, Arc::clone(&connection));
        connection.metrics.connections.increment(1.0);
        Some(Registered { registry: Arc::clone(self), id, connection })
    }

    /// Ends every connection whose deadline has passed. Called once in each [`Deadlines::tick`].
    pub(super) fn enforce(&self, deadlines: Deadlines) {
        let Deadlines { header, idle } = deadlines;
        for connection in self.lock().open.values() {
            let mut state = connection.lock();
            let waited = state.since.elapsed();
            let is_over = state.leaving.is_some_and(|since| since.elapsed() >= FAREWELL);
            let verdict = match state.phase {
                _ if state.verdict.is_some() => continue,
                Phase::Serving(_) => continue,
                Phase::Head if waited >= header => Verdict::Timeout,
                // A client that does not read its answer has the same time as one that does not
                // complete a head.
                Phase::Answered if waited >= header + state.linger.unwrap_or_default() => {
                    Verdict::Close
                }
                Phase::Answered if state.linger.is_some() => continue,
                Phase::Idle if waited >= idle && !state.multiplexed => Verdict::Close,
                Phase::Idle if waited >= idle + FAREWELL => Verdict::Close,
                Phase::Idle if waited >= idle && !state.dismissed => {
                    state.dismissed = true;
                    drop(state);
                    connection.retire();
                    continue;
                }
                Phase::Idle | Phase::Head | Phase::Answered if is_over => Verdict::Close,
                Phase::Idle | Phase::Head | Phase::Answered => continue,
            };
            drop(state);
            connection.judge(verdict);
        }
    }
}

/// The place of a connection in the registry. Dropping this value makes the place free.
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

/// The socket of a connection, or its TLS stream. All bytes pass through here in both directions,
/// so that the phase of the connection and the verdict of the registry are known.
pub(super) struct Watched<T> {
    inner: T,
    connection: Arc<Connection>,
    /// The relay's own answer, which is written in place of hyper's, and the number of its bytes
    /// that are written already; `None` if no such answer is being written.
    own_answer: Option<(Vec<u8>, usize)>,
    /// The number of bytes of [`H2_PREFACE`] that have come; `None` after the whole preface has
    /// come, or after bytes that do not belong to it.
    preface: Option<usize>,
    /// Follows the bytes of HTTP/1 that were read, to know if a head has begun.
    framing: Framing,
    /// The time until which the bytes of a refused body are thrown away, and the number of bytes
    /// that were thrown away so far; `None` as long as none are thrown away.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Watched<T> {
    pub(super) fn new(inner: T, connection: Arc<Connection>) -> Self {
        Self {
            inner,
            connection,
            own_answer: None,
            preface: Some(0),
            framing: Framing::new(),
            linger: None,
        }
    }

    /// Returns an error if the registry has closed the connection. Otherwise registers the task of
    /// `cx`, so that the registry wakes the task when it ends the connection.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.connection.waker.register(cx.waker());
        match self.connection.lock().verdict {
            Some(Verdict::Close) => Err(io::ErrorKind::TimedOut.into()),
            Some(Verdict::Timeout) | None => Ok(()),
        }
    }

    /// Writes the relay's own answer completely, and flushes it.
    fn poll_own_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, written)) = &mut self.own_answer {
            if *written == bytes.len() {
                self.own_answer = None;
                break;
            }
            let count =
                std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[*written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Returns `true` if no request is under way on HTTP/1. Bytes that hyper writes then are its
    /// own answer to bytes that were no request.
    fn is_unasked(&self) -> bool {
        let state = self.connection.lock();
        !state.multiplexed && matches!(state.phase, Phase::Idle | Phase::Head)
    }

    /// Prepares the relay's own answer with this status, and counts it in the metrics.
    fn start_own_answer(&mut self, status: u16) {
        let metrics = self.connection.metrics();
        let (rejection, message) = match status {
            408 => (Rejection::Timeout, "the head of the request came too slowly"),
            431 => (
                Rejection::Invalid,
                "the head of the request is larger than 64 KiB or has more than 100 headers",
            ),
            _ => (Rejection::Invalid, "the head of the request is not HTTP"),
        };
        metrics.answered(status);
        metrics.rejected(rejection, status, message);
        self.own_answer = Some((answer::raw(status, message), 0));
    }

    /// Writes the relay's own answer in place of hyper's answer, which begins with `hypers`.
    /// Returns `length`, the number of hyper's bytes, as if they were written.
    fn poll_replace(
        &mut self,
        cx: &mut Context<'_>,
        hypers: &[u8],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        if self.own_answer.is_none() {
            let status = std::str::from_utf8(hypers.get(9..12).unwrap_or_default()).ok();
            self.start_own_answer(status.and_then(|digits| digits.parse().ok()).unwrap_or(400));
        }
        std::task::ready!(self.poll_own_answer(cx))?;
        Poll::Ready(Ok(length))
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
                if this.own_answer.is_none() {
                    this.start_own_answer(408);
                }
                // If the answer does not go out at once, the client has not read earlier answers
                // either, and would not read this one.
                drop(this.poll_own_answer(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // An end of the stream makes hyper close the connection in order.
            Some(Verdict::Timeout | Verdict::Close) => return Poll::Ready(Ok(())),
            None => {}
        }
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if !read.is_empty() {
            let mut state = this.connection.lock();
            if !state.multiplexed {
                this.framing.advance(read);
                if state.phase == Phase::Idle && this.framing.is_in_head() {
                    Connection::enter(&mut state, Phase::Head);
                }
            }
            if let Some(matched) = this.preface {
                // The preface may come in several reads. hyper writes its settings as soon as the
                // preface is complete.
                let expected = H2_PREFACE.get(matched..).unwrap_or_default();
                let length = expected.len().min(read.len());
                let matches = read.get(..length) == expected.get(..length);
                this.preface = (matches && length < expected.len()).then_some(matched + length);
                if matches && length == expected.len() {
                    state.multiplexed = true;
                    Connection::enter(&mut state, Phase::Idle);
                }
            }
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
        self.check(cx)?;
        if self.is_unasked() {
            return self.poll_replace(cx, buf, buf.len());
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if self.is_unasked() {
            let length = bufs.iter().map(|buf| buf.len()).sum();
            let first = bufs.first().map_or(&[][..], |buf| buf);
            return self.poll_replace(cx, first, length);
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        std::task::ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        let mut state = self.connection.lock();
        if state.phase == Phase::Answered {
            // The beginning of the next head may have come together with the request that was just
            // answered; hyper then already holds it.
            let phase = if self.framing.is_in_head() { Phase::Head } else { Phase::Idle };
            Connection::enter(&mut state, phase);
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts the write side of the socket down. If a refused sender may still be writing, its bytes
    /// are then read and thrown away for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check(cx)?;
        if this.linger.is_none() {
            std::task::ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            let Some(time) = this.connection.lock().linger else { return Poll::Ready(Ok(())) };
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
