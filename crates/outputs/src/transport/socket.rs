//! A TCP socket that counts the written bytes. Below TLS, these are the bytes of TLS records.

use std::io;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use client::net;

/// The socket of a connection, for the code that reads and writes it.
pub(crate) struct Socket {
    pub shared: Arc<SharedSocket>,
}

/// A socket with the number of written bytes. Code that only asks for the progress of a peer shares
/// it with the [`Socket`].
pub(crate) struct SharedSocket {
    pub stream: TcpStream,
    /// The number of bytes that our kernel has taken since the connection was made.
    written: AtomicU64,
    /// `true` if the next read must ask the kernel for data, even if the async runtime does not
    /// know yet that there is something to read.
    pub asks: AtomicBool,
}

impl SharedSocket {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Returns how many bytes the peer's kernel has acknowledged since the connection was made.
    pub(crate) fn acknowledged(&self) -> io::Result<u64> {
        Ok(self.written().saturating_sub(net::unacknowledged(&self.stream)?))
    }
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let (written, asks) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { shared: Arc::new(SharedSocket { stream, written, asks }) }
    }

    /// Calls `write` when the socket takes bytes, counts the written bytes, and returns the result.
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

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let SharedSocket { stream, asks, .. } = &*self.shared;
        if asks.swap(false, Ordering::Relaxed) {
            match (&*SockRef::from(stream)).read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|read| buf.advance(read))),
            }
        }
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let (mut read, room) = (0, buf.remaining());
            let tried = stream.try_io(Interest::READABLE, || {
                read = stream.try_read_buf(buf)?;
                // A read that does not fill the buffer took everything that had arrived.
                // `WouldBlock` tells the runtime not to ask the socket again before more bytes have
                // arrived.
                if 0 < read && read < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match tried {
                Err(error) if read == 0 && error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if read == 0 => return Poll::Ready(Err(error)),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for Socket {
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
