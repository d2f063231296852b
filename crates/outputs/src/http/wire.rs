//! The state of a request as the socket below HTTP knows it: the progress of the request, and
//! whether the consumer had the whole request when the answer began.
//!
//! The number of bytes that our kernel has taken is not progress: buffers hold enough to keep a
//! slow consumer busy for minutes. Progress is therefore the number of the request's bytes that the
//! peer's kernel has acknowledged. Once all bytes are acknowledged, only the whole head of the
//! final answer is progress; an interim answer or half of a head is not.
//!
//! An answer acknowledges a batch only if the peer's kernel has acknowledged the request's last
//! byte when we read the answer's first byte. The segment with this first byte also acknowledges
//! everything that the peer has read (RFC 9293 §3.1). If bytes of the request are not acknowledged
//! when we read the answer's first byte, the peer had not read them when it answered.
//! [`WatchedStream`] checks this whenever it reads bytes of an answer. Before each write except the
//! request's first, it looks for an answer, until it has found one.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::socket::{SharedSocket, Socket};
use base::lock::lock;

/// The maximum bytes that are read before a write, to find an early answer: one that comes before
/// the whole request was sent.
const EARLY_BYTES: usize = 4096;

/// The progress of the current request on a connection. The task that reads and writes the
/// connection, the request's body, and the sender of the request share it.
#[derive(Clone, Default)]
pub(super) struct RequestMarks(Arc<Mutex<RequestState>>);

#[derive(Default)]
struct RequestState {
    /// `true` from the first write of the request on.
    begun: bool,
    /// `true` if hyper has taken the last piece of the request's body, which may still be in a
    /// buffer of this process.
    ended: bool,
    /// The number of bytes that our kernel had taken since the connection was made, up to the end
    /// of the request. `None` until our kernel has the whole request.
    end: Option<u64>,
    /// `true` if the peer's kernel had the whole request when the first byte of the answer was
    /// read. `None` before that byte. Interim answers (1xx) do not count.
    answered: Option<bool>,
    /// `true` if the peer's kernel had acknowledged the whole request when bytes of an answer were
    /// last read.
    last: bool,
}

impl RequestMarks {
    fn lock(&self) -> MutexGuard<'_, RequestState> {
        lock(&self.0)
    }

    pub(super) fn body_ended(&self) {
        self.lock().ended = true;
    }

    /// Records that the bytes so far were an interim answer. The next byte that is read then counts
    /// as the beginning of the final answer, even if the final answer's first bytes were read
    /// together with the interim answer.
    pub(super) fn interim(&self) {
        self.lock().answered = None;
    }

    /// Returns `true` if the peer's kernel had the whole request when the answer began. Only such
    /// an answer can acknowledge the request.
    pub(super) fn was_whole(&self) -> bool {
        let state = self.lock();
        state.answered.unwrap_or(state.last)
    }
}

/// The progress of the current request, for the sender of requests. Does not keep the socket open.
pub(super) struct Progress {
    shared: Weak<SharedSocket>,
    marks: RequestMarks,
}

impl Progress {
    pub(super) fn of(socket: &Socket) -> Self {
        Self { shared: Arc::downgrade(&socket.shared), marks: RequestMarks::default() }
    }

    /// Returns the stream for HTTP on this connection. `stream` is the socket, or TLS on the
    /// socket.
    pub(super) fn over<S>(&self, stream: S, shared: Arc<SharedSocket>) -> WatchedStream<S> {
        WatchedStream { stream, shared, marks: self.marks.clone(), early: None }
    }

    /// Begins a new request, and returns the record of its progress. The previous request on the
    /// connection must have been answered.
    pub(super) fn begin(&self) -> RequestMarks {
        *self.marks.lock() = RequestState::default();
        self.marks.clone()
    }

    /// Returns the number of bytes that our kernel has taken since the connection was made. `None`
    /// if the connection has ended.
    pub(super) fn written(&self) -> Option<u64> {
        Some(self.shared.upgrade()?.written())
    }

    /// Returns the number of bytes that the peer's kernel has acknowledged since the connection was
    /// made. Bytes after the current request do not count. `None` if the connection has ended.
    pub(super) fn acknowledged(&self) -> Option<u64> {
        let acknowledged = self.shared.upgrade()?.acknowledged().ok()?;
        Some(self.marks.lock().end.map_or(acknowledged, |end| acknowledged.min(end)))
    }
}

/// The stream below HTTP, with or without TLS. It records for each answer whether the peer had the
/// whole request when the answer began. The task that reads and writes the connection owns it.
pub(super) struct WatchedStream<S> {
    stream: S,
    shared: Arc<SharedSocket>,
    marks: RequestMarks,
    /// The result of a read before a write, for the next call of `poll_read`.
    early: Option<io::Result<Bytes>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WatchedStream<S> {
    /// Records that bytes of an answer were read, and whether the peer's kernel had acknowledged
    /// the whole request by then.
    fn note_answer(&self) {
        let mut state = self.marks.lock();
        let is_whole =
            state.end.is_some_and(|end| self.shared.acknowledged().is_ok_and(|bytes| bytes >= end));
        state.last = is_whole;
        state.answered.get_or_insert(is_whole);
    }

    /// Before a write, reads an answer that has already arrived, and records that it came before
    /// the whole request was sent. Does nothing before a request's first write, or once an answer
    /// has begun.
    fn look(&mut self, cx: &mut Context<'_>) {
        let mut state = self.marks.lock();
        let first = !std::mem::replace(&mut state.begun, true);
        if first || state.answered.is_some() || self.early.is_some() {
            return;
        }
        drop(state);
        let mut bytes = [0; EARLY_BYTES];
        let mut buf = ReadBuf::new(&mut bytes);
        self.shared.asks.store(true, Ordering::Relaxed);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        self.shared.asks.store(false, Ordering::Relaxed);
        let Poll::Ready(result) = read else { return };
        let read = Bytes::copy_from_slice(buf.filled());
        if !read.is_empty() {
            self.note_answer();
        }
        self.early = Some(result.map(|()| read));
        // The runtime does not report bytes that are already read, so the task is woken here.
        cx.waker().wake_by_ref();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.early.take() {
            Some(Ok(mut early)) => {
                let taken = early.split_to(early.len().min(buf.remaining()));
                buf.put_slice(&taken);
                if !early.is_empty() {
                    self.early = Some(Ok(early));
                }
                return Poll::Ready(Ok(()));
            }
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => {}
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.note_answer();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.look(cx);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.look(cx);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Flushes the stream. hyper calls this when its own buffers are empty, so our kernel then has
    /// all bytes that hyper had to write. If hyper has taken the whole body, the number of bytes so
    /// far is the end of the request.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let mut state = self.marks.lock();
        if state.ended {
            state.end.get_or_insert(self.shared.written());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
