//! The places of the admin address: how many connections it has, and which of them gives way to a
//! new one.
//!
//! Whoever connects gets a place. Where all are taken, the connection that has gone longest without
//! asking for anything loses its own, whether it idles, sends a head that never ends, or does not
//! read its answer: a probe that connects and asks at once is always answered, and a scraper that
//! finds its kept connection closed connects again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A scraper, probes and a person or two; more is a mistake, and must not cost the relay anything.
const CONNECTIONS_MAX: usize = 64;

/// All places. Shared by the accept loop and its connections.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// At most [`CONNECTIONS_MAX`].
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    /// When its last request came; before the first one, when it was opened.
    asked: Instant,
    lost: CancellationToken,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection. Where none is free, the connection that has asked for nothing
    /// for the longest time loses its place at once.
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

/// The place of one connection; given back when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    /// Cancelled once the place is another's: the connection ends.
    pub(super) lost: CancellationToken,
}

impl Place {
    /// Notes that a request came.
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
        // A place that was given back costs nobody another one.
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
