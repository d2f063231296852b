//! A socket of a sender, plain or with TLS.

use std::io;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::ClientConnection;

use super::Actor;
use crate::pki::Papers;
use crate::truth::Answer;
use crate::{kernel, pki};

/// The most bytes of one write. The deadline is checked between writes.
const WRITE_MAX: usize = 64 * 1024;
/// The age at which the timeouts of a socket are set again.
const LIMITS_AGE: Duration = Duration::from_secs(1);

/// A socket whose operations have one deadline. An error is the result of the request.
pub(super) struct Socket {
    stream: TcpStream,
    /// `None` without TLS.
    tls: Option<Box<ClientConnection>>,
    /// The deadline for which the socket's own timeouts were set, and when.
    limits: Option<(Duration, Duration)>,
}

impl Socket {
    /// Connects, with a handshake if the relay uses TLS.
    pub(super) fn connect(
        actor: &Actor,
        papers: Papers,
        is_http2: bool,
        deadline: Duration,
    ) -> Result<Self, Answer> {
        let mut socket = Self::plain(actor, deadline)?;
        let Some(security) = &actor.target.security else { return Ok(socket) };
        let begun = kernel::now();
        let mut tls = Box::new(security.client(papers, is_http2));
        while tls.is_handshaking() {
            socket.limit(deadline).map_err(|_| Answer::NoConnection)?;
            // No byte of a request has been sent yet.
            tls.complete_io(&mut socket.stream).map_err(|_| Answer::NoConnection)?;
        }
        let protocol = if is_http2 { b"h2".as_slice() } else { b"http/1.1" };
        let Some(leaf) = pki::leaf(&tls).filter(|_| tls.alpn_protocol() == Some(protocol)) else {
            return Err(Answer::NoConnection);
        };
        actor.book.shook_hands(begun, leaf);
        socket.tls = Some(tls);
        Ok(socket)
    }

    /// Connects without a handshake, even if the relay uses TLS.
    pub(super) fn plain(actor: &Actor, deadline: Duration) -> Result<Self, Answer> {
        let address = actor.target.address();
        let stream = TcpStream::connect_timeout(&address, left(deadline)?)
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|_| Answer::NoConnection)?;
        Ok(Self { stream, tls: None, limits: None })
    }

    pub(super) fn write(&mut self, bytes: &[u8], deadline: Duration) -> Result<(), Answer> {
        for bytes in bytes.chunks(WRITE_MAX) {
            self.limit(deadline)?;
            let written = match &mut self.tls {
                None => self.stream.write_all(bytes),
                Some(tls) => tls.writer().write_all(bytes).and_then(|()| flush(tls, &self.stream)),
            };
            written.map_err(|error| told(&error))?;
        }
        Ok(())
    }

    /// Reads some bytes. 0 bytes mean the end of the connection.
    pub(super) fn read(&mut self, buffer: &mut [u8], deadline: Duration) -> Result<usize, Answer> {
        self.limit(deadline)?;
        self.read_some(buffer).map_err(|error| told(&error))
    }

    /// Reads the bytes that are already there. `TimedOut` means that there are none.
    pub(super) fn read_now(&mut self, buffer: &mut [u8]) -> Result<usize, Answer> {
        let read = self.stream.set_nonblocking(true).and_then(|()| self.read_some(buffer));
        let again = self.stream.set_nonblocking(false);
        read.and_then(|size| again.map(|()| size)).map_err(|error| told(&error))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.read_tls(&mut self.stream)?;
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &self.stream)?;
        }
    }

    /// Returns `true` unless the peer has closed the connection or sent something unexpected.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.read_now(&mut [0]) == Err(Answer::TimedOut)
    }

    pub(super) fn finish_writing(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // A broken connection need not be closed.
            drop(flush(tls, &self.stream));
        }
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// Lets each operation wait until this deadline. Timeouts up to a second old are good enough.
    fn limit(&mut self, deadline: Duration) -> Result<(), Answer> {
        let left = left(deadline)?;
        let now = kernel::now();
        let is_set = |(of, at): (Duration, Duration)| of == deadline && now < at + LIMITS_AGE;
        if !self.limits.is_some_and(is_set) {
            let both = self.stream.set_read_timeout(Some(left));
            let both = both.and_then(|()| self.stream.set_write_timeout(Some(left)));
            both.map_err(|error| told(&error))?;
            self.limits = Some((deadline, now));
        }
        Ok(())
    }
}

/// Writes the pending TLS records.
fn flush(tls: &mut ClientConnection, mut stream: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut stream)?;
    }
    Ok(())
}

fn left(deadline: Duration) -> Result<Duration, Answer> {
    let left = deadline.saturating_sub(kernel::now());
    if left.is_zero() { Err(Answer::TimedOut) } else { Ok(left) }
}

fn told(error: &io::Error) -> Answer {
    let is_late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    if is_late { Answer::TimedOut } else { Answer::Broken }
}
