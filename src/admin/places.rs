//! Limits the number of connections of the admin address, and decides which connection loses its
//! place to a new connection.
//!
//! Every new connection gets a place. If all places are taken, the connection that has sent no
//! request for the longest time loses its place: it is idle, sends a head that never ends, or does
//! not read its answer. Therefore a probe that connects and sends its request at once is always
//! answered. A scraper whose kept connection was closed connects again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The largest number of connections that the admin address serves at the same time: enough for a
/// scraper, the probes and a few people. The limit keeps a client that opens too many connections
/// from taking memory from the relay.
const CONNECTIONS_MAX: usize = 64;

/// The set of places for connections of the admin address: a connection may stay open only while it
/// has a place. The accept loop and all connections share this value.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

/// The connections that have a place now.
#[derive(Default)]
struct Taken {
    /// The identifier that the next connection gets.
    next: u64,
    /// The places that are taken, by the connection's identifier; at most [`CONNECTIONS_MAX`].
    by_id: HashMap<u64, Entry>,
}

/// A place that one connection has taken.
struct Entry {
    /// The time of the connection's last request. Before its first request: the time at which the
    /// connection was opened.
    asked: Instant,
    /// This token is cancelled when the connection loses its place to a newer connection.
    lost: CancellationToken,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes and returns a place for a new connection. If no place is free, the connection that has
    /// sent no request for the longest time loses its place at once.
    pub(super) fn take(self: &Arc<Self>) -> Place {
        let lost = CancellationToken::new();
        let mut taken = self.lock();
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

/// The place of one connection of the admin address, without which the connection may not stay
/// open. Dropping this value makes the place free.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    /// This token is cancelled when the connection has lost its place to a newer connection. The
    /// connection must then end.
    pub(super) lost: CancellationToken,
}

impl Place {
    /// Notes that this connection has sent a request now. Of all connections, it then loses its
    /// place last.
    pub(super) fn asked(&self) {
        if let Some(entry) = self.places.lock().by_id.get_mut(&self.id) {
            entry.asked = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().by_id.remove(&self.id);
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
        assert_eq!(places.lock().by_id.len(), CONNECTIONS_MAX);
        drop(held);
        assert!(places.lock().by_id.is_empty());
    }
}
