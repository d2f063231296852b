//! Requests for a protocol with its own link, one at a time. Such a request may carry several
//! batches, or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Mutex;

use super::api::{Outcome, RequestHead, Sent};
use super::body::Pieces;
use super::client::Client;
use super::exchange::Load;
use super::pool::Lane;
use config::BatchLimits;

/// The sender of the requests of one link. Clones share the connections, which stay open between
/// requests.
#[derive(Clone)]
pub(crate) struct Transfers {
    client: Arc<Client>,
    /// The connections. A request holds the lock until it has ended.
    lane: Arc<Mutex<Lane>>,
    /// The id of the address of the last request. 0 if none was picked.
    consumer: Arc<AtomicUsize>,
}

impl Transfers {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, lane: Arc::default(), consumer: Arc::default() }
    }

    /// Returns the limits of the batches that the link may take from the queue.
    pub(crate) fn limits(&self) -> BatchLimits {
        self.client.room.limits
    }

    /// Counts a retry. Called before a request that may have been sent before.
    pub(crate) fn count_retry(&self) {
        self.client.metrics.retries.increment(1);
    }

    pub(crate) fn consumer(&self) -> usize {
        self.consumer.load(Ordering::Relaxed)
    }

    /// Sends a request to the address whose turn it is, and returns its outcome.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the request and its connection.
    pub(crate) async fn send(&self, head: RequestHead, body: Vec<Bytes>, sent: Sent) -> Outcome {
        let load = Load { head, body: Pieces::of(body), sent };
        let (consumer, outcome) = self.client.transfer(&mut *self.lane.lock().await, load).await;
        self.consumer.store(consumer, Ordering::Relaxed);
        outcome
    }

    /// Closes the connections, and waits for their ends as [`Client::closed`] does. All clones must
    /// have been dropped.
    pub(crate) async fn close(self) {
        drop(self.lane);
        self.client.closed().await;
    }
}
