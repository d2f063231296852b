//! Limits the number of connections of the admin address and, separately, of the probe address.
//! Decides which connection loses its place to a new connection.
//!
//! Every new connection gets a *place*, the right to stay open. Connections that have sent no
//! request yet, and those that have, have places of their own kind. If all places of a kind are
//! taken, the connection that has waited or asked for nothing for the longest time loses its place.
//! So a flood of connections without requests takes no place from a scraper. A connection that has
//! lost its place does not end if its request has arrived. So a probe, which sends its request at
//! once, gets its response whatever the rate of the flood, unless it has to make a TLS handshake
//! before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::Instant;

use base::lock::lock;

/// The maximum number of connections with a request, besides taps, that each address serves at the
/// same time: enough for a scraper, the probes and a few people. Without a limit, a client could
/// take much memory from the relay.
const ASKED_MAX: usize = 64;

/// The maximum number of connections without a request. At 5,000 new connections in a second, each
/// has 51 ms for its request.
const SILENT_MAX: usize = 256;

/// The places of one address. Its accept loop and all connections share them.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// The taken places, by the identifier of the connection.
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    /// The time of the last request, or the opening of the connection before the first request.
    asked: Instant,
    stage: Stage,
    /// Notified when another connection takes this place.
    lost: Arc<Notify>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No request has arrived.
    Silent,
    Asked,
}

impl Taken {
    fn of(&self, stage: Stage) -> impl Iterator<Item = (&u64, &Entry)> {
        self.by_id.iter().filter(move |(_, entry)| entry.stage == stage)
    }

    /// If more than `max` places of a kind are taken, ends the connection that has asked for
    /// nothing for the longest time.
    fn keep(&mut self, max: usize, stage: Stage) {
        if self.of(stage).count() <= max {
            return;
        }
        let longest = self.of(stage).map(|(id, entry)| (entry.asked, *id)).min();
        if let Some(entry) = longest.and_then(|(_, id)| self.by_id.remove(&id)) {
            entry.lost.notify_one();
        }
    }
}

impl Places {
    /// Returns a place for a new connection. If no place is free, takes the place of the connection
    /// that has waited for its first request for the longest time.
    pub(super) fn take(self: &Arc<Self>) -> Place {
        let mut taken = lock(&self.taken);
        let (id, lost) = (taken.next, Arc::default());
        taken.next += 1;
        let place = Place { places: Arc::clone(self), id, lost };
        place.put(&mut taken, Stage::Silent, SILENT_MAX);
        place
    }
}

/// The right of one connection to stay open. Dropping this value frees the place.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    lost: Arc<Notify>,
}

impl Place {
    fn put(&self, taken: &mut Taken, stage: Stage, max: usize) {
        let entry = Entry { asked: Instant::now(), stage, lost: Arc::clone(&self.lost) };
        taken.by_id.insert(self.id, entry);
        taken.keep(max, stage);
    }

    /// Gives the place back, because other limits apply to this connection from now on. No new
    /// connection can end it any more.
    pub(super) fn leave(&self) {
        lock(&self.places.taken).by_id.remove(&self.id);
    }

    /// Notes a request: connections whose last request is older now lose their places before this
    /// one. A connection that had lost its place has one again.
    pub(super) fn asked(&self) {
        self.put(&mut lock(&self.places.taken), Stage::Asked, ASKED_MAX);
    }

    /// Waits until another connection has taken this place: this connection must then end. A
    /// request that has arrived must be read before this future is polled, since it keeps the
    /// connection open.
    pub(super) async fn lost(&self) {
        loop {
            self.lost.notified().await;
            // The runtime learns only now what has arrived on a connection that is new.
            tokio::task::yield_now().await;
            if !lock(&self.places.taken).by_id.contains_key(&self.id) {
                return;
            }
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

    fn lost(held: &[Place]) -> Vec<usize> {
        let has = |place: &Place| lock(&place.places.taken).by_id.contains_key(&place.id);
        (0..held.len()).filter(|&at| !has(&held[at])).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_asked_for_nothing_for_longest_gives_way() {
        let places = Arc::new(Places::default());
        let asked = || {
            let place = places.take();
            place.asked();
            place
        };
        let mut held = Vec::new();
        for _ in 0..ASKED_MAX {
            held.push(asked());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        held[0].asked();
        assert_eq!(lost(&held), [0_usize; 0]);
        held.push(asked());
        assert_eq!(lost(&held), [1]);
        // After a place was given back, a new connection takes no place from another.
        held.truncate(ASKED_MAX);
        held.push(asked());
        assert_eq!(lost(&held), [1]);
        held.push(asked());
        assert_eq!(lost(&held), [1, 2]);
        // A connection that has left counts no more, and loses its place to nobody.
        held.remove(3).leave();
        held.push(asked());
        assert_eq!(lost(&held), [1, 2]);
        drop(held);
        assert!(lock(&places.taken).by_id.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_without_requests_ends_only_connections_without_requests() {
        let places = Arc::new(Places::default());
        let scraper = places.take();
        scraper.asked();
        let mut held = vec![scraper];
        for _ in 0..SILENT_MAX + 100 {
            tokio::time::advance(Duration::from_millis(1)).await;
            held.push(places.take());
        }
        assert_eq!(lost(&held), (1..=100).collect::<Vec<_>>());
        // The request of one of them had arrived.
        held[7].asked();
        let ends = async |place: &Place| {
            tokio::time::timeout(Duration::from_secs(1), place.lost()).await.is_ok()
        };
        assert!(ends(&held[6]).await && !ends(&held[7]).await);
    }
}
