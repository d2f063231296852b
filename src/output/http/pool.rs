//! The connections that an `http` output keeps between requests.

use hyper::client::conn::http1;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::Upload;
use super::expanded::Expanded;
use super::proxy::Proxy;
use super::url::BaseUrl;
use super::wire::Progress;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::endpoints::ResolvedAddress;

/// The address that a connection leads to, and the way there. A connection may be used for a
/// request if its key is the one that a new connection for the request would have.
pub(super) struct ConnectionKey {
    pub(super) base: BaseUrl,
    /// The proxy that the connection goes through; `None`: it goes to the consumer directly.
    pub(super) proxy: Option<Proxy>,
    pub(super) address: ResolvedAddress,
}

/// An open HTTP/1.1 connection that is used for one request after the other.
pub(super) struct PooledConnection {
    pub(super) key: ConnectionKey,
    /// When the connection reaches `timeouts.max_connection_age`; `None` without such a limit.
    pub(super) expiry: Option<Instant>,
    pub(super) sender: http1::SendRequest<Upload>,
    pub(super) progress: Progress,
    /// Aborts the task that drives the connection.
    pub(super) driver: AbortHandle,
    /// `true` if the last request is not answered, or was answered too early. Such a connection
    /// can't end in order, so dropping it aborts its driver.
    pub(super) busy: bool,
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if self.busy {
            self.driver.abort();
        }
    }
}

impl PooledConnection {
    /// Returns `true` if the connection has reached its age limit.
    pub(super) fn has_expired(&self) -> bool {
        self.expiry.is_some_and(|expiry| Instant::now() >= expiry)
    }

    /// Returns `true` if the connection takes no more requests: it has reached its age limit, or
    /// its address is no longer in the set.
    pub(super) fn is_over(&self, endpoints: &Endpoints) -> bool {
        self.has_expired() || endpoints.is_gone(&self.key.address)
    }
}

/// The right to send one request at a time, with the connections that were opened for it: at most
/// one to each address. An output has as many lanes as `concurrency` says. A lane is owned by the
/// link while it is idle, and by its request while that is under way.
#[derive(Default)]
pub(super) struct Lane {
    /// Connections without a request, beginning with the one that was unused for the longest time.
    idle: Vec<PooledConnection>,
}

impl Lane {
    /// Takes out the connection that leads to `address`; `None` if there is none. A connection that
    /// has reached its age limit is closed, and the result is `None` too.
    pub(super) fn take(
        &mut self,
        expanded: &Expanded,
        address: &ResolvedAddress,
    ) -> Option<PooledConnection> {
        let base = &expanded.endpoints.get(address.endpoint)?.base;
        let proxy = expanded.proxy.as_ref();
        let leads_there = |key: &ConnectionKey| {
            key.base == *base && key.proxy.as_ref() == proxy && key.address.id == address.id
        };
        let index = self.idle.iter().position(|connection| leads_there(&connection.key))?;
        Some(self.idle.remove(index)).filter(|connection| !connection.has_expired())
    }

    /// Puts a connection back. If the lane then has more than `max` connections, the one that was
    /// unused for the longest time is closed: it leads to a URL that a reload has removed.
    pub(super) fn put_back(&mut self, connection: PooledConnection, max: usize) {
        self.idle.push(connection);
        if self.idle.len() > max {
            self.idle.remove(0);
        }
    }

    /// Closes the idle connections that `is_over` returns `true` for.
    pub(super) fn close_if(&mut self, is_over: impl Fn(&PooledConnection) -> bool) {
        self.idle.retain(|connection| !is_over(connection));
    }

    /// Returns when the first idle connection reaches its age limit; `None` if none has a limit.
    pub(super) fn first_expiry(&self) -> Option<Instant> {
        self.idle.iter().filter_map(|connection| connection.expiry).min()
    }
}
