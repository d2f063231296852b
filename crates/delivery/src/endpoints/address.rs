//! A configured endpoint, and one address that it resolves to.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::figures::Figures;
use crate::failure::Failure;
use config::HostPort;
use telemetry::AttemptError;

/// A host and a port, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The host and the port.
    pub name: HostPort,
    /// `true` if the relay looks up the IP addresses of the host, `false` if a proxy does this.
    pub resolved_here: bool,
}

impl Endpoint {
    pub(super) fn literal(&self) -> Option<SocketAddr> {
        self.name.host.parse().ok().map(|ip| SocketAddr::new(ip, self.name.port))
    }

    pub(super) fn needs_lookup(&self) -> bool {
        self.resolved_here && self.literal().is_none()
    }
}

/// One address of an output, which a lookup or a reload may have removed since this value was made.
#[derive(Debug, Clone)]
pub struct ResolvedAddress {
    /// The index of the address's endpoint in the output's config.
    pub endpoint: usize,
    /// The id. No other address of the same output ever has it.
    pub id: usize,
    /// The host and port as configured.
    pub name: HostPort,
    /// `None` while the host is not resolved, and if a proxy resolves it.
    pub socket: Option<SocketAddr>,
    /// The numbers that `/status` shows for the address.
    pub figures: Arc<Figures>,
}

/// Two values are equal if they are the same address; their figures are not compared.
impl PartialEq for ResolvedAddress {
    fn eq(&self, other: &Self) -> bool {
        let Self { endpoint, id, name, socket, figures: _ } = self;
        (endpoint, id, name, socket) == (&other.endpoint, &other.id, &other.name, &other.socket)
    }
}

impl ResolvedAddress {
    /// Makes a [`Failure`] of a connection to this address. `what` says what happened.
    pub fn failure(&self, reason: AttemptError, what: impl fmt::Display) -> Failure {
        Failure::new(reason, format!("connection to {self}: {what}"))
    }
}

/// Writes `host:port`, followed by the IP address in parentheses if the host is a resolved name.
impl fmt::Display for ResolvedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match self.socket {
            Some(socket) if self.name.host.parse() != Ok(socket.ip()) => {
                write!(f, " ({})", socket.ip())
            }
            _ => Ok(()),
        }
    }
}
