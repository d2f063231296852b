//! The memory of sent events, so that an event that kube-apiserver sends twice leaves once.
//!
//! An event is recognised by the SHA-256 of its bytes as received, cut to 128 bits. Its auditID
//! cannot be used: the sender of a request chooses it, and could hide an event by giving it the
//! auditID of another. A faster hash cannot be used either: the sender also chooses other bytes of
//! the event, and must not be able to make two events with the same hash.
//!
//! A wrong duplicate is a lost event. So an event leaves again in every doubtful case: if its first
//! copy is forgotten, out of order, or outside the window. A retry has the same position, and is
//! not a duplicate. Up to a million events within the window are remembered by position. So when
//! the queue is read again from an earlier position, these events are judged as they were the first
//! time.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use aws_lc_rs::digest;
use hashbrown::HashTable;
use tokio::time::Instant;

use base::position::Position;

/// A million events take 44 MB, with the hash table. At 3,000 events per second they are the last
/// five and a half minutes; kube-apiserver stops retrying a batch earlier than that.
const EVENTS_MAX: usize = 1_000_000;

/// The time from the zero point of [`Seen::received`] to [`Seen::begun`]. No event is older.
const LEAD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

type Hash = [u64; 2];

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: Hash,
    position: Position,
    /// In milliseconds, see [`Seen::received`].
    received: u64,
}

/// The events that one output has sent. A delivery loop owns this value, and hands it to the next.
pub struct Seen {
    /// The deduplication window in milliseconds.
    window: u64,
    events_max: usize,
    begun: Instant,
    /// In the order of positions. [`Seen::forget`] removes an event only from `table`.
    entries: VecDeque<Entry>,
    /// The number of the first entry. Numbers count up, and stay when older entries are removed.
    first: u32,
    /// Finds the number of an entry. The key is the first 64 bits of its hash.
    table: HashTable<u32>,
}

impl Seen {
    /// Makes an empty memory. Events with the same bytes are duplicates within `window`.
    pub fn new(window: Duration) -> Self {
        Self::with_room(window, EVENTS_MAX)
    }

    fn with_room(window: Duration, events_max: usize) -> Self {
        Self {
            window: millis(window),
            events_max,
            begun: Instant::now(),
            entries: VecDeque::new(),
            first: 0,
            table: HashTable::new(),
        }
    }

    /// Changes the window. Events that are already forgotten stay forgotten.
    pub fn set_window(&mut self, window: Duration) {
        self.window = millis(window);
    }

    /// Returns the time when an event of this age was received, since a zero point long ago.
    pub fn received(&self, age: Duration) -> Duration {
        (LEAD + self.begun.elapsed()).saturating_sub(age)
    }

    /// Returns `true` if an earlier event with the same bytes is remembered, this event is not, and
    /// both were received within the window. Otherwise remembers the event, unless the memory has
    /// this position or a later one. Positions must ascend, but may go back and ascend again.
    #[must_use]
    pub fn check(&mut self, event: &[u8], position: Position, received: Duration) -> bool {
        let (hash, received) = (hash(event), millis(received));
        let mut is_duplicate = false;
        for number in self.table.iter_hash(hash[0]) {
            let Some(known) = entry(&self.entries, self.first, *number) else { continue };
            if known.hash != hash {
                continue;
            }
            if known.position == position {
                return false;
            }
            let is_within = known.received.abs_diff(received) <= self.window;
            is_duplicate |= known.position < position && is_within;
        }
        if !is_duplicate {
            self.remember(Entry { hash, position, received });
        }
        is_duplicate
    }

    /// Removes events that were not and will not be sent, so that later copies are not duplicates.
    pub fn forget(&mut self, positions: Range<Position>) {
        if self.entries.back().is_none_or(|last| last.position < positions.start) {
            return;
        }
        let start = self.entries.partition_point(|known| known.position < positions.start);
        let inside = self.entries.range(start..).enumerate();
        let inside = inside.take_while(|(_, known)| known.position < positions.end);
        for (index, known) in inside {
            let number = number(self.first, start + index);
            if let Ok(found) = self.table.find_entry(known.hash[0], |other| *other == number) {
                found.remove();
            }
        }
    }

    /// Forgets the events that are too old to have duplicates. Events before `watermark` are final
    /// or set aside.
    pub fn settled(&mut self, watermark: Position) {
        let settled = self.entries.partition_point(|known| known.position < watermark);
        let Some(last) = settled.checked_sub(1).and_then(|last| self.entries.get(last)) else {
            return;
        };
        let since = last.received.saturating_sub(self.window);
        while self.entries.front().is_some_and(|oldest| oldest.received < since) {
            self.forget_oldest();
        }
    }

    /// Adds an entry if it is after all others. Removes the oldest one if the memory is full.
    fn remember(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.position >= entry.position) {
            return;
        }
        if self.entries.len() >= self.events_max {
            self.forget_oldest();
        }
        let new = number(self.first, self.entries.len());
        self.entries.push_back(entry);
        let (entries, first) = (&self.entries, self.first);
        self.table.insert_unique(entry.hash[0], new, |number| {
            self::entry(entries, first, *number).map_or(0, |entry| entry.hash[0])
        });
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.entries.pop_front() else { return };
        let number = self.first;
        // If the table has no such number, the event was forgotten before.
        if let Ok(found) = self.table.find_entry(oldest.hash[0], |other| *other == number) {
            found.remove();
        }
        self.first = self.first.wrapping_add(1);
    }
}

/// Numbers may wrap around, because there are never `u32::MAX` entries at the same time.
fn number(first: u32, index: usize) -> u32 {
    first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX))
}

fn entry(entries: &VecDeque<Entry>, first: u32, number: u32) -> Option<&Entry> {
    entries.get(usize::try_from(number.wrapping_sub(first)).ok()?)
}

fn hash(event: &[u8]) -> Hash {
    let digest = digest::digest(&digest::SHA256, event);
    let mut words = digest.as_ref().chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    [words.next().unwrap_or(0), words.next().unwrap_or(0)]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
