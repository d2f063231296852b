//! The socket below an HTTP connection, seen by whoever waits for an answer on it.
//!
//! Bytes that were handed to the kernel say little: a slow consumer is busy for minutes with those
//! in buffers. Progress is therefore the number of a request's bytes that the peer's kernel has
//! acknowledged. Once it has all of them, there is no progress but the answer: whatever else the
//! peer sends, as interim answers or half a head, changes nothing.
//!
//! An answer means something only if its first byte came after the request's last one had arrived.
//! TCP makes sure that this can be told: the segment with the answer's first byte acknowledges what
//! the peer has read (RFC 9293 §3.1), so bytes that are not acknowledged when that byte is read
//! were not read either. [`Watched`] looks at each byte of an answer as it is read, and looks for
//! one before each write that is not the request's first.

use std::io;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::Interest;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use crate::net;

/// Bytes of an answer that are read before there was nothing left to write.
const EARLY_BYTES: usize = 4096;

/// The socket. Owned by the connection's driver, below TLS.
pub(super) struct Wire {
    shared: Arc<Shared>,
}

struct Shared {
    stream: TcpStream,
    /// Bytes that the kernel has taken. It never shrinks.
    written: AtomicU64,
    /// The next read asks the kernel, also where the runtime has not been told of anything to read.
    asks: AtomicBool,
}

impl Shared {
    /// Bytes that the peer's kernel has acknowledged.
    fn acknowledged(&self) -> u64 {
        let unacknowledged = net::unacknowledged(&self.stream).unwrap_or_default();
        self.written.load(Ordering::Relaxed).saturating_sub(unacknowledged)
    }
}

/// How far the request on a connection is. Shared by the connection's driver, the request's body,
/// and who waits for the answer.
#[derive(Clone, Default)]
pub(super) struct Marks(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Some of the request was written.
    begun: bool,
    /// The body has been taken to its end. Its last piece may lie in buffers of this process.
    ended: bool,
    /// The kernel has the whole request: so many bytes were written to the socket by then.
    end: Option<u64>,
    /// The first byte of the answer was read, and whether the peer's kernel had the whole request
    /// by then. Interim answers don't count.
    answered: Option<bool>,
    /// The same, of the bytes that were read last.
    last: bool,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body has no more pieces.
    pub(super) fn body_ended(&self) {
        self.lock().ended = true;
    }

    /// What was read so far was an interim answer. One that comes together with the beginning of
    /// the next answer hides when that began: it counts from the next byte on.
    pub(super) fn interim(&self) {
        self.lock().answered = None;
    }

    /// Whether the peer's kernel had the whole request when the answer began.
    pub(super) fn was_whole(&self) -> bool {
        let state = self.lock();
        state.answered.unwrap_or(state.last)
    }
}

/// Sees how far a connection is, and does not keep it open.
pub(super) struct Progress {
    shared: Weak<Shared>,
    marks: Marks,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (written, asks) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { stream, written, asks }) }
    }

    /// The watch over requests, for the layer above TLS and for who waits.
    pub(super) fn watch(&self) -> Watch {
        Watch { shared: Arc::clone(&self.shared), marks: Marks::default() }
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.shared.stream.poll_write_ready(cx))?;
            match write(&self.shared.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => {
                    self.shared.written.fetch_add(bytes as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(bytes));
                }
            }
        }
    }
}

/// What [`Watched`] and [`Progress`] have in common.
pub(super) struct Watch {
    shared: Arc<Shared>,
    marks: Marks,
}

impl Watch {
    pub(super) fn progress(&self) -> Progress {
        Progress { shared: Arc::downgrade(&self.shared), marks: self.marks.clone() }
    }

    /// The stream that HTTP is spoken on: the wire, or TLS over it.
    pub(super) fn over<S>(self, stream: S) -> Watched<S> {
        Watched { stream, shared: self.shared, marks: self.marks, early: None }
    }
}

impl Progress {
    /// A request begins, on a connection where nothing is under way.
    pub(super) fn begin(&self) -> Marks {
        *self.marks.lock() = State::default();
        self.marks.clone()
    }

    /// Bytes that the peer's kernel has acknowledged, those behind the request not counted. `None`:
    /// the connection is gone, and its error is on its way.
    pub(super) fn acknowledged(&self) -> Option<u64> {
        let acknowledged = self.shared.upgrade()?.acknowledged();
        Some(self.marks.lock().end.map_or(acknowledged, |end| acknowledged.min(end)))
    }
}

/// What HTTP reads from and writes to, with or without TLS. Owned by the connection's driver.
pub(super) struct Watched<S> {
    stream: S,
    shared: Arc<Shared>,
    marks: Marks,
    /// What came while there was something to write: the next read's.
    early: Option<io::Result<Bytes>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Bytes of an answer were read.
    fn note_answer(&self) {
        let mut state = self.marks.lock();
        let is_whole = state.end.is_some_and(|end| self.shared.acknowledged() >= end);
        state.last = is_whole;
        state.answered.get_or_insert(is_whole);
    }

    /// Before a write: an answer that is there already has not waited for it.
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
        // Whoever reads has not been told of it.
        cx.waker().wake_by_ref();
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Shared { stream, asks, .. } = &*self.shared;
        if asks.swap(false, Ordering::Relaxed) {
            match (&*SockRef::from(stream)).read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|read| buf.advance(read))),
            }
        }
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let mut read = 0;
            let unfilled = buf.initialize_unfilled();
            let tried = stream.try_io(Interest::READABLE, || {
                let room = unfilled.len();
                read = (&*SockRef::from(stream)).read(unfilled)?;
                // All that there was. Said so, the runtime does not ask the socket again before it is told of more.
                if 0 < read && read < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match tried {
                Err(error) if read == 0 && error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if read == 0 => return Poll::Ready(Err(error)),
                _ => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.shared.stream).shutdown(std::net::Shutdown::Write))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

    /// Called with nothing left in the buffers above.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let mut state = self.marks.lock();
        if state.ended {
            state.end.get_or_insert(self.shared.written.load(Ordering::Relaxed));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
