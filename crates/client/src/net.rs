//! Binds and dials TCP sockets, and sets socket options.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

mod unacknowledged;

pub use unacknowledged::unacknowledged;

use crate::names::Names;
use config::HostPort;

/// The maximum number of connections that wait for accept(2). kube-apiserver may open dozens in a
/// burst.
const BACKLOG: u32 = 1024;

/// The number of unsent bytes at which the kernel takes no more bytes (TCP_NOTSENT_LOWAT).
const NOT_SENT_MAX: u32 = 512 * 1024;

/// The reason why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or the resolver has failed.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name that was looked up.
        host: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// No address of the name accepted the connection. The fields are those of the last attempt.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// The error of the kernel, or a timeout.
        source: io::Error,
    },
    /// The deadline was reached before there was a connection.
    #[error("no connection to {to} within the connect timeout")]
    Timeout {
        /// The address, or the name and port, that was dialled.
        to: String,
    },
}

/// Makes a listening socket, even while old connections on this address are in TIME_WAIT.
///
/// # Errors
///
/// The error of the kernel, for example if `address` is in use or the process may not bind it.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connects to one address, before `deadline`.
///
/// # Errors
///
/// [`DialError::Connect`] or [`DialError::Timeout`].
pub async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, DialError> {
    match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|source| DialError::Connect { address, source }),
        Err(_) => Err(DialError::Timeout { to: address.to_string() }),
    }
}

/// Looks up a host for at most `patience`, tries its addresses one after the other, and returns the
/// first connection. The time of the lookup is added to `deadline`: the rest has its own time.
///
/// # Errors
///
/// [`DialError`]: the name has no address, no address accepted, or `deadline` has passed.
pub async fn dial(
    to: &HostPort,
    patience: Duration,
    deadline: &mut Instant,
) -> Result<TcpStream, DialError> {
    let unresolved = |source| DialError::Resolve { host: to.host.clone(), source };
    let begun = Instant::now();
    let addresses = Names::of_process().look_up(to, patience).await.map_err(unresolved)?;
    let late = || {
        let what = format!("no response within {} s", patience.as_secs_f64());
        unresolved(io::Error::new(io::ErrorKind::TimedOut, what))
    };
    let addresses = addresses.ok_or_else(late)?;
    *deadline += begun.elapsed();
    let deadline = *deadline;
    let attempt = async {
        let mut last = None;
        for (index, address) in addresses.iter().enumerate() {
            // An address that does not respond may use only its share of the time left.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let connecting = tokio::time::timeout(share, TcpStream::connect(address)).await;
            let silent = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
            match connecting.unwrap_or_else(silent) {
                Ok(stream) => return Ok(stream),
                Err(source) => last = Some(DialError::Connect { address: *address, source }),
            }
        }
        let none = || unresolved(io::Error::new(io::ErrorKind::NotFound, "no address"));
        Err(last.unwrap_or_else(none))
    };
    match timeout_at(deadline, attempt).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { to: to.to_string() }),
    }
}

/// Sets the options of an accepted connection: no delay of small responses, and keepalive.
///
/// # Errors
///
/// The error of the kernel. The socket stays usable.
pub fn tune_accepted(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))
}

/// Sets the options of a dialled connection. `keepalive` is the time before and between the
/// kernel's probes. `silence` limits the wait for an acknowledgement of sent bytes
/// (TCP_USER_TIMEOUT, RFC 5482).
///
/// # Errors
///
/// The error of the kernel. The socket stays usable.
pub fn tune_dialled(stream: &TcpStream, keepalive: Duration, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive))?;
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_MAX)
}

/// Returns 90 % to 110 % of `age`, so that connections that began together do not all end together.
pub fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}
