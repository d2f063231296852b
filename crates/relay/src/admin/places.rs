//! Limits the number of connections of the admin address and, separately, of the probe address.
//! Decides which connection loses its place to a new connection.
//!
//! Every new connection gets a *place*, the right to stay open. If all places are taken, the
//! connection that has sent no request for the longest time loses its place: in most cases it is
//! idle, sends a head that never ends, or does not read its response. A probe that connects and
//! immediately sends its request thus normally gets a response. A scraper whose keep-alive
//! connection was closed connects again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use base::lock::lock;

/// The maximum number of connections, besides taps, that each address serves at the same time:
/// enough for a scraper, the probes and a few people. Without a limit, a client could take much
/// memory from the relay.
const CONNECTIONS_MAX: usize = 64;

/// The places of one address. Its accept loop and all connections share them.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// The taken places, by the identifier of the connection: at most [`CONNECTIONS_MAX`].
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    /// The time of the last request, or the opening of the connection before the first request.
    asked: Instant,
    /// Cancelled when a newer connection takes this place: the connection must then end.
    lost: CancellationToken,
}

impl Places {
    /// Returns a place for a new connection. If no place is free, takes the place of the connection
    /// that has sent no request for the longest time.
    pub(super) fn take(self: &Arc<Self>) -> Place {
        let lost = CancellationToken::new();
        let mut taken = lock(&self.taken);
        if taken.by_id.len() >= CONNECTIONS_MAX {
            let longest = taken.by_id.iter().map(|(id, entry)| (entry.asked, *id)).min();
            let entry = longest.and_then(|(_, id)| taken.by_id.remove(&id));
            if let Some(entry) = entry {
                entry.lost.cancel();
            }
        }
        let id = taken.next;
        taken.next += 1;
        taken.by_id.insert(id, Entry { asked: Instant::now(), lost: lost.clone() });
        Place { places: Arc::clone(self), id, lost }
    }
}

/// The right of one connection to stay open. Dropping this value frees the place.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    /// Cancelled when a newer connection takes this place: the connection must then end.
    pub(super) lost: CancellationToken,
}

impl Place {
    /// Gives the place back, because other limits apply to this connection from now on. No new
    /// connection can end it any more.
    pub(super) fn leave(&self) {
        lock(&self.places.taken).by_id.remove(&self.id);
    }

    /// Notes a request: connections whose last request is older now lose their places before this
    /// one.
    pub(super) fn asked(&self) {
        if let Some(entry) = lock(&self.places.taken).by_id.get_mut(&self.id) {
            entry.asked = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.taken).by_id.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_asked_for_nothing_for_longest_gives_way() {
        let places = Arc::new(Places::default());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(places.take());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        held[0].asked();
        let lost = |held: &[Place]| -> Vec<usize> {
            (0..held.len()).filter(|&at| held[at].lost.is_cancelled()).collect()
        };
        assert_eq!(lost(&held), [0_usize; 0]);
        held.push(places.take());
        assert_eq!(lost(&held), [1]);
        // After a place was given back, a new connection takes no place from another.
        held.truncate(CONNECTIONS_MAX);
        held.push(places.take());
        assert_eq!(lost(&held), [1]);
        held.push(places.take());
        assert_eq!(lost(&held), [1, 2]);
        assert_eq!(lock(&places.taken).by_id.len(), CONNECTIONS_MAX);
        // A connection that has left counts no more, and loses its place to nobody.
        held[3].leave();
        held.push(places.take());
        assert_eq!(lost(&held), [1, 2]);
        drop(held);
        assert!(lock(&places.taken).by_id.is_empty());
    }
}
