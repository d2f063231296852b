//! One connection, from its handshake to its end.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Registered, Watched};
use super::handshake::Handshake;
use super::policy::Policy;
use super::requests::respond;
use super::terms::Terms;

/// A connection that has a place in the registry. The task of the connection owns this value.
pub(super) struct Session {
    pub(super) place: Registered,
    pub(super) policy: Arc<Policy>,
    pub(super) terms: Arc<Terms>,
}

impl Session {
    /// Makes the TLS handshake, if the listener has TLS, and serves the connection to its end.
    pub(super) async fn run(self, stream: TcpStream, handshake: Option<Handshake>) {
        let connection = &self.place.connection;
        let Some(handshake) = handshake else {
            connection.established(false);
            return self.serve(stream).await;
        };
        let made = tokio::select! {
            made = handshake.make(stream) => made,
            () = connection.judged() => return,
            () = self.terms.closing.cancelled() => return,
        };
        let Some(stream) = made else { return };
        connection.established(stream.get_ref().1.alpn_protocol() == Some(b"h2"));
        self.serve(stream).await;
    }

    /// Serves a connection that is ready for requests. When `closing` is cancelled, or an h2
    /// connection has reached its maximum age, the connection ends after its current requests. An
    /// HTTP/1.1 connection of that age ends with its next answer.
    async fn serve<T>(self, stream: T)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { place, policy, terms } = self;
        let connection = &place.connection;
        let mut orders = Orders {
            connection,
            closing: Some(terms.closing.clone()),
            old: terms.max_age.map(|age| Box::pin(tokio::time::sleep(age))),
        };
        let service = service_fn(move |request| respond(&terms, request));
        let mut watched = Watched::new(stream, Arc::clone(connection));
        let is_h2 = tokio::select! {
            biased;
            is_h2 = watched.begins_h2() => is_h2,
            // No request has begun.
            _ = orders.next() => return,
        };
        match is_h2 {
            Ok(true) => {
                let mut serving =
                    Box::pin(policy.http2.serve_connection(TokioIo::new(watched), service));
                let end = http2::Connection::graceful_shutdown;
                drive(serving.as_mut(), end, &mut orders).await;
                return;
            }
            Ok(false) => {}
            Err(_) => return,
        }
        loop {
            let io = TokioIo::new(watched);
            let mut serving = Box::new(policy.http1.serve_connection(io, service.clone()));
            let end = http1::Connection::graceful_shutdown;
            match drive(Pin::new(&mut *serving), end, &mut orders).await {
                // hyper frees the buffers of a connection only with its own state of the
                // connection. Without a request in progress this state has nothing that is needed,
                // except for the beginning of the next head, so the connection gets a new state.
                None => {
                    let parts = serving.into_parts();
                    watched = parts.io.into_inner();
                    watched.ahead = Bytes::copy_from_slice(&parts.read_buf);
                }
                Some(_) => return,
            }
        }
    }
}

/// Polls a connection of hyper to its end, and passes on [`Order::End`] with `end`. Returns the
/// connection's result; `None` at [`Order::Rest`].
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut serving: Pin<&mut C>,
    end: fn(Pin<&mut C>),
    orders: &mut Orders<'_>,
) -> Option<hyper::Result<()>> {
    loop {
        // The stream polls the future of the orders only when an order may have come, and not
        // whenever the connection has new bytes.
        let mut order: FuturesUnordered<_> = [orders.next()].into_iter().collect();
        tokio::select! {
            biased;
            ended = serving.as_mut() => {
                if let Err(error) = &ended {
                    tracing::trace!(%error, "connection ended");
                }
                return Some(ended);
            }
            Some(order) = order.next() => match order {
                Order::End => end(serving.as_mut()),
                Order::Rest => return None,
            }
        }
    }
}

/// An order to the connection that hyper serves.
enum Order {
    /// The connection takes no more requests. h2 is sent GOAWAY, which loses no request.
    End,
    /// The connection waits for a request, so its buffers can be freed.
    Rest,
}

struct Orders<'c> {
    connection: &'c Connection,
    /// `None` after the listener was closed.
    closing: Option<CancellationToken>,
    /// The timer for the maximum age of the connection; `None` after that, or if there is no
    /// maximum.
    old: Option<Pin<Box<Sleep>>>,
}

impl Orders<'_> {
    /// Waits for the next order.
    ///
    /// # Cancel safety
    ///
    /// No order is lost when the future is dropped.
    async fn next(&mut self) -> Order {
        let Self { connection, closing, old } = self;
        loop {
            tokio::select! {
                biased;
                () = if_any(closing.as_ref().map(CancellationToken::cancelled)) => {
                    *closing = None;
                    connection.leave();
                    return Order::End;
                }
                () = connection.retired() => return Order::End,
                () = if_any(old.as_mut()) => {
                    *old = None;
                    // HTTP/1.1 has no GOAWAY: the connection ends with the next answer, which has
                    // the header `Connection: close`.
                    if connection.is_multiplexed() {
                        return Order::End;
                    }
                }
                () = connection.rested() => return Order::Rest,
            }
        }
    }
}

/// Waits for the future. Without a future, never returns.
async fn if_any(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
