//! A blocking socket, plain or TLS, from either end.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use rustls::ClientConnection;
use rustls::ServerConnection;
use rustls::StreamOwned;

/// What both ends of the tests talk through.
pub(crate) enum Stream {
    Plain(TcpStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Stream {
    /// The socket below, for its options and its end.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Client(tls) => &tls.sock,
            Self::Server(tls) => &tls.sock,
        }
    }

    /// Sends TLS's close_notify, then FIN: the orderly end of the write side.
    pub(crate) fn finish_writing(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => {}
            Self::Client(tls) => tls.conn.send_close_notify(),
            Self::Server(tls) => tls.conn.send_close_notify(),
        }
        self.flush()?;
        self.socket().shutdown(std::net::Shutdown::Write)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Client(tls) => tls.read(buffer),
            Self::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(buffer),
            Self::Client(tls) => tls.write(buffer),
            Self::Server(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Client(tls) => tls.flush(),
            Self::Server(tls) => tls.flush(),
        }
    }
}
