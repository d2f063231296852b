//! The open connections of an output over HTTP, between requests.

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::api::ConnectionId;
use super::body::Upload;
use super::confirm::Confirmations;
use super::cookies::Cookies;
use super::expanded::Expanded;
use super::proxy::Proxy;
use super::url::BaseUrl;
use super::wire::Progress;
use client::ask;
use client::ask::NoAnswer;
use delivery::endpoints::{Endpoints, ResolvedAddress};

/// The server that a connection leads to, and the proxy on the way to it. A batch is sent on an
/// open connection only if this key matches the URL, proxy and address of its request.
pub(super) struct ConnectionKey {
    pub(super) base: BaseUrl,
    /// The proxy of the connection. `None`: it leads directly to the consumer.
    pub(super) proxy: Option<Proxy>,
    pub(super) address: ResolvedAddress,
}

/// An open HTTP/1.1 connection that is used for one request after the other.
pub(super) struct PooledConnection {
    pub(super) key: ConnectionKey,
    /// The time when the connection reaches `timeouts.max_connection_age`, if that is set, or when
    /// it was found to lead to a server that takes nothing.
    pub(super) expiry: Option<Instant>,
    pub(super) sender: http1::SendRequest<Upload>,
    pub(super) progress: Progress,
    /// Aborts the task that reads and writes the connection.
    pub(super) driver: AbortHandle,
    /// `true` from the beginning of a request, at least until an answer to the whole request. Such
    /// a connection can't be closed cleanly, so dropping it aborts its task.
    pub(super) busy: bool,
    pub(super) id: ConnectionId,
    /// The requests on this connection that the consumer has taken and not confirmed yet.
    pub(super) confirmations: Confirmations,
    /// `true` if the last request was alone on the connection ([`Lane::sends_alone`]).
    pub(super) was_alone: bool,
    /// The cookies of the connection. `None` if no cookies are needed, because the consumer does
    /// not confirm requests later.
    pub(super) cookies: Option<Cookies>,
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if self.busy {
            self.driver.abort();
        }
    }
}

impl PooledConnection {
    pub(super) fn has_expired(&self) -> bool {
        self.expiry.is_some_and(|expiry| Instant::now() >= expiry)
    }

    /// Returns `true` if no request on the connection waits for its confirmation.
    pub(super) fn is_free(&self) -> bool {
        self.confirmations.is_empty()
    }

    /// Stores the cookies of an answer for later requests on this connection. `target` is the path
    /// and query of the answered request.
    pub(super) fn take_up_cookies(&mut self, headers: &HeaderMap, target: &str) {
        if let Some(cookies) = &mut self.cookies {
            cookies.take_up(headers, target, self.key.base.https);
        }
    }

    /// Returns `true` if no more batches may use the connection: it has reached its age limit, or
    /// the output does not have its address any more.
    pub(super) fn is_over(&self, endpoints: &Endpoints) -> bool {
        self.has_expired() || endpoints.is_gone(&self.key.address)
    }
}

/// Sends a request and waits for the head of its final answer. Interim answers are recorded in the
/// marks of the request.
pub(super) async fn exchange(
    sender: &mut http1::SendRequest<Upload>,
    request: Request<Upload>,
) -> Result<Response<Incoming>, NoAnswer> {
    let marks = request.body().marks.clone();
    ask::exchange(sender, request, move || marks.interim()).await
}

/// A slot for one request at a time, with the open connections of its earlier requests: at most as
/// many as the output has addresses, unless requests on them wait for their confirmation. An
/// `HttpLink` has `concurrency` lanes. A running request owns its lane, and the link owns the idle
/// lanes.
#[derive(Default)]
pub(super) struct Lane {
    /// The idle connections. The first one has been unused for the longest time.
    idle: Vec<PooledConnection>,
    /// The version of the addresses ([`Endpoints::version`]) at the last call of [`Lane::tidy`]. A
    /// lane that runs a request while the addresses change is tidied afterwards.
    tidied: u64,
    /// `true` if the next request has a single event that was turned down alone before, so that a
    /// failure of this request says nothing about the address. It needs a connection without an
    /// unconfirmed request, and has it for itself until it is confirmed. If the event makes the
    /// consumer end the connection, this costs no other event its confirmation, and no other
    /// request costs the event its own.
    pub(super) sends_alone: bool,
    /// The number of requests in a row of which the consumer has taken nothing.
    pub(super) failures: u32,
}

impl Lane {
    /// Removes the connection to `address` from the lane and returns it. `None` if there is none
    /// that is younger than its age limit. Also closes all connections that have reached their age
    /// limit, unless requests on them wait for their confirmation.
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
        self.close_if(PooledConnection::has_expired);
        let fits = |it: &PooledConnection| {
            let is_open = it.is_free() || !(self.sends_alone || it.was_alone);
            is_open && leads_there(&it.key) && !it.has_expired()
        };
        let index = self.idle.iter().position(fits)?;
        Some(self.idle.remove(index))
    }

    /// Puts a connection back after its request, or closes it if it is free
    /// ([`PooledConnection::is_free`]) and has reached its age limit. If the lane then holds more
    /// than `max` connections (the number of addresses), closes the free one that was unused for
    /// the longest time.
    pub(super) fn put_back(&mut self, connection: PooledConnection, max: usize) {
        if connection.is_free() && connection.has_expired() {
            return;
        }
        self.idle.push(connection);
        if self.idle.len() > max {
            let free = self.idle.iter().position(PooledConnection::is_free);
            free.map(|index| self.idle.remove(index));
        }
    }

    /// Closes the idle connections that have reached their age limit and, if the addresses have
    /// changed, those whose address was removed. `version` is the version of the current addresses.
    /// Connections with requests that wait for their confirmation stay open. Returns the earliest
    /// time when one of the others reaches its age limit.
    pub(super) fn tidy(&mut self, endpoints: &Endpoints, version: u64) -> Option<Instant> {
        let changed = std::mem::replace(&mut self.tidied, version) != version;
        self.close_if(|connection| match changed {
            true => connection.is_over(endpoints),
            false => connection.has_expired(),
        });
        let free = self.idle.iter().filter(|connection| connection.is_free());
        free.filter_map(|connection| connection.expiry).min()
    }

    /// Closes the idle connections for which `is_over` returns `true`, unless requests on them wait
    /// for their confirmation.
    fn close_if(&mut self, is_over: impl Fn(&PooledConnection) -> bool) {
        self.idle.retain(|connection| !connection.is_free() || !is_over(connection));
    }

    /// Returns the earliest [`Confirmations::asked()`] of the idle connections, if there is one.
    pub(super) fn first_asked(&self) -> Option<Instant> {
        self.idle.iter().filter_map(|connection| connection.confirmations.asked()).min()
    }

    /// Removes and returns the idle connections whose [`Confirmations::asked()`] is not after
    /// `time`.
    pub(super) fn take_asked_before(&mut self, time: Instant) -> Vec<PooledConnection> {
        let is_due = |connection: &mut PooledConnection| {
            connection.confirmations.asked().is_some_and(|asked| asked <= time)
        };
        self.idle.extract_if(.., is_due).collect()
    }
}
