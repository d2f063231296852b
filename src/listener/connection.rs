//! Who is connected, what each connection is waiting for, and the deadlines of that.
//!
//! hyper starts its head timeout when a kept connection falls idle, has no idle timeout, and answers unreadable heads
//! with an empty body. So the socket is wrapped: [`Watched`] notes the phase that the bytes show, [`Registry`] closes
//! whoever stays too long in one, and answers of hyper's own making become `Status` objects.

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

/// After a refusal that was answered before the body was read: so much of it is still taken, for so long, that the
/// sender finds our answer instead of a reset (RFC 9112 §9.6).
const LINGER_BYTES: usize = 1024 * 1024;
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);
/// The same for a sender whose body did not come while its refusal waited for it: the sender has
/// had its time.
pub(super) const LINGER_TIME_SLOW: Duration = Duration::from_millis(500);

/// What HTTP/2 begins with, as far as no HTTP/1 request begins so (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// After GOAWAY an h2 client has so long to say that it has understood; who does not is closed (RFC
/// 9113 §6.8). The same for the rest of a head that had begun when its connection was told to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The deadlines of a connection outside a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) header: Duration,
    pub(super) idle: Duration,
}

impl Deadlines {
    /// How often [`Registry::enforce`] is called: often enough for the shortest deadline, and never a load.
    pub(super) fn tick(self) -> Duration {
        (self.header.min(self.idle) / 10)
            .clamp(Duration::from_millis(10), Duration::from_millis(250))
    }
}

/// All connections of all listeners, bounded by `limits.max_connections`.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a head, or of a TLS handshake.
    Head,
    /// Us: so many requests are under way.
    Serving(usize),
    /// The answer is written but not flushed.
    Answered,
}

/// Why we end a connection that is in no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Without a word: it idled too long, or its place is needed.
    Close,
    /// With 408: its head came too slowly.
    Timeout,
}

struct State {
    phase: Phase,
    since: Instant,
    /// When it was last without a complete head, or began to be.
    headless: Instant,
    verdict: Option<Verdict>,
    /// HTTP/2: frames between requests are no beginning of a head.
    multiplexed: bool,
    /// h2 has been told that it idled too long.
    dismissed: bool,
    /// How long the rest of the body is thrown away at the end, where that is to be done at all.
    linger: Option<Duration>,
    /// Requests under way that are refused already, and whose bodies are thrown away. At most those
    /// under way.
    refused: usize,
    /// The answer that is written but not flushed refuses its request.
    refusing: bool,
    /// No request is to begin here any more. The time is when that was decided, or when the last
    /// request that had begun before was answered.
    leaving: Option<Instant>,
}

/// Connections that lose their place to a new one where none is free, the first in this order
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// All that it asks for is refused already: only the rest of a body is waited for, or that the
    /// answer is read.
    Refused,
    /// It has no complete head.
    Headless,
}

impl State {
    /// Whether the connection may lose its place to another, and since when it has been as it is:
    /// the longest goes first.
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

/// One connection, as its task, its socket and the registry see it.
pub(super) struct Connection {
    state: Mutex<State>,
    waker: AtomicWaker,
    opened: Instant,
    metrics: ListenerMetrics,
    retired: Notify,
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(state: &mut State, phase: Phase) {
        state.phase = phase;
        state.since = Instant::now();
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.metrics
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The handshake is over: the first head may begin.
    pub(super) fn established(&self, multiplexed: bool) {
        let mut state = self.lock();
        state.multiplexed = multiplexed;
        Self::enter(&mut state, Phase::Idle);
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.lock().multiplexed
    }

    /// A head is complete. Says whether it came in time: false where the connection had been told
    /// to end before.
    pub(super) fn begin_request(&self, multiplexed: bool) -> bool {
        let mut state = self.lock();
        state.multiplexed = multiplexed;
        let under_way = if let Phase::Serving(count) = state.phase { count } else { 0 };
        Self::enter(&mut state, Phase::Serving(under_way + 1));
        state.leaving.is_none()
    }

    /// An answer was handed to the socket. `in_time` is what [`Connection::begin_request`] said.
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

    /// A request under way is refused, and only the rest of its body is waited for, until the guard
    /// is dropped.
    pub(super) fn refused(&self) -> RefusedRequest<'_> {
        let mut state = self.lock();
        state.refused += 1;
        state.since = Instant::now();
        RefusedRequest(self)
    }

    /// No request is to begin any more: what is idle then, or in a head, ends within [`FAREWELL`].
    pub(super) fn leave(&self) {
        self.lock().leaving.get_or_insert_with(Instant::now);
    }

    /// No further request is taken: GOAWAY, or the end of keep-alive.
    pub(super) fn retire(&self) {
        self.retired.notify_one();
    }

    /// Waits for [`Connection::retire`].
    pub(super) async fn retired(&self) {
        self.retired.notified().await;
    }

    /// The connection ends after this answer, and the sender is still writing: that is read and
    /// thrown away for so long.
    pub(super) fn linger(&self, time: Duration) {
        self.lock().linger = Some(time);
    }

    fn judge(&self, verdict: Verdict) {
        self.lock().verdict = Some(verdict);
        self.waker.wake();
    }

    /// Waits until the registry ends the connection; for phases in which nobody reads through [`Watched`].
    pub(super) async fn judged(&self) {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.lock().verdict.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A request whose body is thrown away. See [`Connection::refused`].
pub(super) struct RefusedRequest<'a>(&'a Connection);

impl RefusedRequest<'_> {
    /// Much of the body has come: among the refused, this connection gives way last.
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

    /// Takes in a new connection, one of at most `max`. At the limit, one whose requests are
    /// refused already makes room, else the one that has been longest without a complete head.
    /// Where every one is in a request that may be accepted, `None`: the new connection is to be
    /// closed.
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
            // Its place is free at once: its task ends as soon as it is scheduled.
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

    /// Ends whoever is beyond a deadline. Called every [`Deadlines::tick`].
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
                // Who does not read our answers gets as long as who does not finish a head.
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

/// A place in the registry; given back when dropped.
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

/// A connection's socket, behind TLS where there is TLS.
pub(super) struct Watched<T> {
    inner: T,
    connection: Arc<Connection>,
    /// What is written in place of what hyper writes, and how much of it is out.
    own_answer: Option<(Vec<u8>, usize)>,
    /// How much of [`H2_PREFACE`] has come; `None` once something else has.
    preface: Option<usize>,
    /// HTTP/1: which of the bytes that hyper has taken begin a head.
    framing: Framing,
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

    /// An error once the registry has ended the connection; else it wakes whoever waits to write.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.connection.waker.register(cx.waker());
        match self.connection.lock().verdict {
            Some(Verdict::Close) => Err(io::ErrorKind::TimedOut.into()),
            Some(Verdict::Timeout) | None => Ok(()),
        }
    }

    /// Writes our own answer whole.
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

    /// Whether hyper now speaks for itself: it has found no request in what came.
    fn is_unasked(&self) -> bool {
        let state = self.connection.lock();
        !state.multiplexed && matches!(state.phase, Phase::Idle | Phase::Head)
    }

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

    /// Replaces hyper's answer to what was no request; pretends to have written its bytes.
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
                // Where it does not go out at once, the client has not read what came before it, and won't read this.
                drop(this.poll_own_answer(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // The end of the stream: hyper closes in order.
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
                // The preface may come in pieces, and hyper writes its settings as soon as it is complete.
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
            // The beginning of a pipelined head came with the request that was just answered; hyper
            // holds it.
            let phase = if self.framing.is_in_head() { Phase::Head } else { Phase::Idle };
            Connection::enter(&mut state, phase);
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts the write side, and where a refused sender is still writing, reads on for a while.
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
