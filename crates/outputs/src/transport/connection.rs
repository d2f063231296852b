//! Connections over TCP or TLS to an output's addresses: dialling, handshakes, and what a socket
//! knows about acknowledged bytes and errors.
//!
//! This file knows no protocol. The links decide which bytes are sent and when they are final.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use socket2::SockRef;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::socket::{SharedSocket, Socket};
use super::tls_session::{Expiry, Tls};
use client::ask::Stream;
use client::net;
use client::net::DialError;
use config::HostPort;
use delivery::endpoints::{Attempt, Endpoint, Endpoints, Probed, ResolvedAddress, Watch};
use delivery::failure::Failure;
use delivery::files::Files;
use telemetry::{AttemptError, OutputMetrics};

/// Opens the TCP or TLS connections of one output. Shared by the output's connector, its links, and
/// the watch, a task that tests failed addresses.
pub(crate) struct Dialer {
    /// The output's addresses. They pick the address for each connection.
    pub endpoints: Arc<Endpoints>,
    /// The TLS settings and certificate files. `None` for plain TCP.
    tls: Option<Arc<Tls>>,
    pub settings: config::Stream,
    pub timeouts: config::Timeouts,
    pub metrics: OutputMetrics,
}

impl Dialer {
    /// Makes a dialer for the addresses in `stream`. Reads no file and looks up no name.
    pub(crate) fn new(
        stream: &config::Stream,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        let endpoints = Endpoints::new(&output.name, stream.strategy, &output.timeouts);
        let endpoint = |name: &HostPort| Endpoint { name: name.clone(), resolved_here: true };
        endpoints.set(stream.addresses.iter().map(endpoint).collect());
        Self {
            endpoints: Arc::new(endpoints),
            tls: stream.tls.clone().map(|tls| Arc::new(Tls::new(tls, &[], expiry))),
            settings: stream.clone(),
            timeouts: output.timeouts.clone(),
            metrics,
        }
    }

    /// Returns the certificate files, which a reload reads again. `None` without TLS.
    pub(crate) fn files(&self) -> Option<Arc<dyn Files>> {
        self.tls.clone().map(|tls| tls as Arc<dyn Files>)
    }

    /// Connects to each address of the output once, with the TLS handshake if TLS is configured.
    /// Returns the result for each address.
    pub(crate) async fn probe(&self) -> Probed {
        let dial = async |address| self.dial(address).await.map(|_| None);
        self.endpoints.try_all(|address| address.name.to_string(), dial).await
    }

    /// Connects to the address whose turn it is. After a failure, continues with the next address,
    /// until no address is left that may be tried now. Returns the connection, and the [`Attempt`]
    /// for the caller's report whether the address works. If all addresses fail, returns the last
    /// failure. Also starts the watch if it does not run yet.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        watch: &mut Watch,
    ) -> Result<(Wire, Attempt), Failure> {
        let dialer = Arc::clone(self);
        watch.start(&self.endpoints, move |address| {
            let dialer = Arc::clone(&dialer);
            async move { dialer.dial(address).await.map(drop) }
        });
        loop {
            let Some(mut attempt) = self.endpoints.pick() else {
                return Err(Failure::new(AttemptError::Connect, "there is no address"));
            };
            match self.endpoints.dial(&mut attempt, |address| self.dial(address)).await {
                Ok(wire) => {
                    attempt.connected();
                    return Ok((wire, attempt));
                }
                Err(failure) if attempt.failed(&failure) => {
                    // Another address is left. This failure is counted here, because the delivery
                    // loop counts only the failure that `connect` returns.
                    self.metrics.failed(failure.reason);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Connects to one address, with the TLS handshake if there is one, within `timeouts.connect`.
    pub(crate) async fn dial(&self, address: ResolvedAddress) -> Result<Wire, Failure> {
        let Some(socket) = address.socket else {
            return Err(Failure::new(AttemptError::Resolve, format!("{address} has no address")));
        };
        let deadline = Instant::now() + self.timeouts.connect;
        let stream = net::connect(socket, deadline).await.map_err(|error| dial_failure(&error))?;
        // The socket options detect a silent peer early. An error is ignored, because the request
        // timeout still detects the peer, only later.
        net::tune_dialled(&stream, self.settings.keepalive, self.timeouts.request).ok();
        let socket = Socket::new(stream);
        let Some(tls) = &self.tls else { return Ok(Wire::Plain(socket)) };
        Ok(Wire::Tls(Box::new(tls.handshake(&address.name, socket, deadline).await?)))
    }
}

impl Wire {
    /// Turns an error of reading or writing on the connection to `address` into a failure for
    /// counters and the log. If the peer has sent a TLS alert, the failure is about the alert and
    /// not about `error`.
    pub(crate) fn failure(&mut self, address: &ResolvedAddress, error: &io::Error) -> Failure {
        // With TLS 1.3, a server refuses our certificate only after our side of the handshake is
        // done. A later read or write then fails.
        if let Some(refusal) = self.refusal() {
            return address.failure(AttemptError::Tls, refusal);
        }
        address.failure(io_reason(error), error)
    }
}

/// Returns the category of an error of reading or writing on an open connection.
pub(crate) fn io_reason(error: &io::Error) -> AttemptError {
    if error.kind() == io::ErrorKind::TimedOut {
        AttemptError::Timeout
    } else if error.kind() == io::ErrorKind::InvalidData {
        // rustls reports its own errors, and alerts of the peer, with this kind.
        AttemptError::Tls
    } else {
        AttemptError::Closed
    }
}

pub(crate) fn dial_failure(error: &DialError) -> Failure {
    let reason = match error {
        DialError::Resolve { .. } => AttemptError::Resolve,
        DialError::Connect { .. } => AttemptError::Connect,
        DialError::Timeout { .. } => AttemptError::Timeout,
    };
    Failure::new(reason, error.to_string())
}

pub(crate) enum Wire {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Wire {
    /// Returns the socket below TLS, or the socket itself without TLS.
    pub(crate) fn socket(&self) -> &SharedSocket {
        match self {
            Self::Plain(socket) => &socket.shared,
            Self::Tls(stream) => &stream.get_ref().0.shared,
        }
    }

    /// Returns the stream that the protocol reads and writes: the socket, or TLS on the socket.
    pub(crate) fn io(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }

    /// Reads the bytes that have arrived, and returns the error that rustls finds there: almost
    /// always the alert of a peer that refuses the connection. `None` without an error or without
    /// TLS. The socket is read directly, and not through the async runtime: a write may fail before
    /// the runtime knows that there is something to read.
    fn refusal(&mut self) -> Option<rustls::Error> {
        let Self::Tls(stream) = self else { return None };
        let (socket, session) = stream.get_mut();
        let socket = SockRef::from(&socket.shared.stream);
        while session.read_tls(&mut &*socket).is_ok_and(|bytes| bytes > 0) {
            if let Err(error) = session.process_new_packets() {
                return Some(error);
            }
        }
        None
    }

    /// Makes our kernel acknowledge the read bytes at once. Otherwise the kernel may wait for 40 to
    /// 200 ms, and a peer that writes small answers without TCP_NODELAY does not send the next
    /// answer before that (RFC 896). The kernel forgets this setting, so it must be repeated after
    /// each read.
    pub(crate) fn acknowledge_at_once(&self) {
        // An error is ignored: it only makes answers slower.
        SockRef::from(&self.socket().stream).set_tcp_quickack(true).ok();
    }

    /// Returns how many bytes the peer's kernel has acknowledged since the connection was made.
    ///
    /// # Errors
    ///
    /// The socket has an error, such as a reset by the peer.
    pub(crate) fn acknowledged(&self) -> io::Result<u64> {
        let acknowledged = self.socket().acknowledged()?;
        // The error must be requested after the number: after a reset the number means nothing.
        match self.socket().stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(acknowledged),
        }
    }
}
