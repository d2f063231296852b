//! The socket below an HTTP connection, seen by whoever waits for an answer on it.
//!
//! What was handed to the kernel says little: a slow consumer is busy for minutes with what lies in buffers. So progress
//! is what the peer's kernel has acknowledged, and what has come from there.

use std::io;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::Interest;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use crate::net;

/// The socket. Owned by the connection's driver.
pub(super) struct Wire {
    shared: Arc<Shared>,
}

struct Shared {
    stream: TcpStream,
    /// Bytes read and written.
    moved: AtomicU64,
}

/// Sees how far a connection is, and does not keep it open.
pub(super) struct Progress {
    shared: Weak<Shared>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { shared: Arc::new(Shared { stream, moved: AtomicU64::new(0) }) }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { shared: Arc::downgrade(&self.shared) }
    }

    fn moved(&self, bytes: usize) {
        self.shared.moved.fetch_add(bytes as u64, Ordering::Relaxed);
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
                    self.moved(bytes);
                    return Poll::Ready(Ok(bytes));
                }
            }
        }
    }
}

impl Progress {
    /// As [`Progress::bytes`] on a connection where nothing is under way.
    pub(super) fn at_rest(&self) -> u64 {
        self.shared.upgrade().map_or(0, |shared| shared.moved.load(Ordering::Relaxed))
    }

    /// Bytes that the peer's kernel has, and bytes that it has sent. Changes while anything moves.
    pub(super) fn bytes(&self) -> u64 {
        // A connection that is gone makes no progress; its error is on its way.
        let Some(shared) = self.shared.upgrade() else { return 0 };
        let unacknowledged = net::unacknowledged(&shared.stream).unwrap_or_default();
        shared.moved.load(Ordering::Relaxed).saturating_sub(unacknowledged)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.shared.stream.poll_read_ready(cx))?;
            let mut read = 0;
            let unfilled = buf.initialize_unfilled();
            let tried = self.shared.stream.try_io(Interest::READABLE, || {
                let room = unfilled.len();
                read = (&*SockRef::from(&self.shared.stream)).read(unfilled)?;
                // All that there was. Said so, the runtime does not ask the socket again before it is told of more.
                if 0 < read && read < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match tried {
                Err(error) if read == 0 && error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if read == 0 => return Poll::Ready(Err(error)),
                _ => {
                    buf.advance(read);
                    self.moved(read);
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
