//! Binding and dialling TCP, with the socket options that both need. Nothing above TCP.

use std::io;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::time::Duration;

use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::timeout_at;

mod unacknowledged;

pub use unacknowledged::unacknowledged;

/// Connections that the kernel has completed and we have not accepted yet. kube-apiserver may come with dozens at once
/// after a pause; beyond a thousand the accept loop itself is the problem.
const BACKLOG: u32 = 1024;

/// Unsent bytes that the kernel takes from us per connection, beyond what is in flight. What lies there is lost work
/// when the connection breaks, and one round trip's worth is already in flight.
const NOT_SENT_MAX: u32 = 512 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or the resolver did not answer.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// Name that was looked up.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// No address of the name took the connection; the last one's error.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The deadline passed first.
    #[error("no connection to {to} within the connect timeout")]
    Timeout {
        /// Address, or name and port, that was dialled.
        to: String,
    },
}

/// Listens. The address may be in TIME_WAIT from our predecessor.
///
/// # Errors
///
/// The kernel's: in use, no such address, no permission.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// All addresses that a host has now, in the order of the resolver (getaddrinfo(3): the hosts file, the DNS, and what else
/// the system asks). The resolver may take its time, also where nobody waits for it any more: `held` is dropped when it
/// has answered, so that callers can bound how many threads it keeps.
///
/// # Errors
///
/// The resolver's.
pub async fn resolve(
    host: String,
    port: u16,
    held: impl Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let looking_up = tokio::task::spawn_blocking(move || {
        let addresses = (host, port).to_socket_addrs();
        drop(held);
        addresses
    });
    Ok(looking_up.await.map_err(io::Error::other)??.collect())
}

/// Connects to one address before the deadline.
///
/// # Errors
///
/// [`DialError`].
pub async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, DialError> {
    match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|source| DialError::Connect { address, source }),
        Err(_) => Err(DialError::Timeout { to: address.to_string() }),
    }
}

/// Resolves `host` anew and connects to the first of its addresses that answers before the deadline.
///
/// # Errors
///
/// [`DialError`].
pub async fn dial(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, DialError> {
    let attempt = async {
        let unresolved = |source| DialError::Resolve { host: host.to_owned(), source };
        let addresses = resolve(host.to_owned(), port, ()).await.map_err(unresolved)?;
        let mut last = None;
        for (index, address) in addresses.iter().enumerate() {
            // A silent address may take its share of the time, and leaves the rest to the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = Some(DialError::Connect { address: *address, source }),
                Err(_) => {
                    last = Some(DialError::Connect {
                        address: *address,
                        source: io::Error::new(io::ErrorKind::TimedOut, "no answer"),
                    });
                }
            }
        }
        let none = || unresolved(io::Error::new(io::ErrorKind::NotFound, "no address"));
        Err(last.unwrap_or_else(none))
    };
    match timeout_at(deadline, attempt).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { to: format!("{host}:{port}") }),
    }
}

/// Options of an accepted connection: no delay of small answers, and a dead peer is noticed.
///
/// # Errors
///
/// The kernel's; the socket stays usable.
pub fn tune_accepted(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))
}

/// Options of a connection to a consumer: `silence` is how long sent bytes may stay unacknowledged before the kernel
/// gives up (TCP_USER_TIMEOUT, RFC 5482).
///
/// # Errors
///
/// The kernel's; the socket stays usable.
pub fn tune_dialled(stream: &TcpStream, keepalive: Duration, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive))?;
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_MAX)
}

/// Ages of connections are drawn between 90 % and 110 %, so that those made together do not all end together.
#[must_use]
pub fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}
