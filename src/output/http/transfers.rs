//! Requests that a protocol makes itself, because a request does not carry one batch: one request
//! at a time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::api::Outcome;
use super::api::RequestHead;
use super::api::Sent;
use super::body::Pieces;
use super::client::Client;
use super::exchange::Load;
use super::pool::Lane;
use crate::config::BatchLimits;

/// The sender of the requests of one link. It keeps the connections between them.
pub(in crate::output) struct Transfers {
    client: Arc<Client>,
    /// The connections that no request uses; empty while a request is under way.
    lane: Lane,
    /// The id of the address that answered last.
    pub(in crate::output) consumer: usize,
}

/// The result of a request, with the connections that it had.
pub(in crate::output) struct Transferred {
    lane: Lane,
    consumer: usize,
    outcome: Outcome,
}

impl Transfers {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, lane: Lane::default(), consumer: 0 }
    }

    /// Returns the limits of the batches that the link may take from the queue.
    pub(in crate::output) fn limits(&self) -> BatchLimits {
        self.client.room.limits
    }

    /// Notes that the next request was sent before.
    pub(in crate::output) fn count_retry(&self) {
        self.client.metrics.retries.increment(1);
    }

    /// Returns a future that sends a request to the address whose turn it is. The link passes its
    /// result to [`Transfers::end`]. If the future is dropped, the request and its connection end.
    pub(in crate::output) fn begin(
        &mut self,
        head: RequestHead,
        body: Vec<Bytes>,
        sent: Sent,
    ) -> Pin<Box<dyn Future<Output = Transferred> + Send>> {
        let (client, mut lane) = (Arc::clone(&self.client), std::mem::take(&mut self.lane));
        Box::pin(async move {
            let load = Load { head, body: Pieces::of(body), sent };
            let (consumer, outcome) = client.transfer(&mut lane, load).await;
            Transferred { lane, consumer, outcome }
        })
    }

    /// Keeps the connections of a request that has ended, and returns its outcome.
    pub(in crate::output) fn end(&mut self, done: Transferred) -> Outcome {
        (self.lane, self.consumer) = (done.lane, done.consumer);
        done.outcome
    }

    /// Closes the connections, and waits for their ends as [`Client::closed`] does.
    pub(in crate::output) async fn close(self) {
        drop(self.lane);
        self.client.closed().await;
    }
}
