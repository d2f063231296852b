//! The memory of the events that have left, so that an event that kube-apiserver sends twice leaves
//! once.
//!
//! An event is recognised by the SHA-256 of its bytes as they were received, cut to 128 bits. Its
//! auditID cannot be used: the sender of a request chooses it, and could hide an event by giving it
//! the auditID of another. A faster hash cannot be used either: the sender also chooses other bytes
//! of the event, and must not be able to make two events with the same hash.
//!
//! An event that is taken for a duplicate does not leave, and is lost if that was wrong. In every
//! doubtful case the event therefore leaves again: if its first copy is forgotten, out of order, or
//! outside the window. An event is never a duplicate of itself, however often it is read: a retry
//! has the same position. All events that have left within the window are remembered, each with its
//! position, and not only the last copy of each. When the queue is read again from an earlier
//! position, every event is therefore judged as it was the first time.
//!
//! The memory does not know what happened to an event. Its owner tells it which events were not
//! sent after all ([`Seen::forget`]), and up to which position everything is final
//! ([`Seen::settled`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use aws_lc_rs::digest;
use hashbrown::HashTable;
use tokio::time::Instant;

use base::position::Position;

/// The largest number of events that are remembered. An event takes 32 bytes, and 10 bytes in the
/// hash table: a million events take 44 MB. At 3,000 events per second, kube-apiserver sends a
/// million in five minutes, and it stops retrying a batch earlier than that.
const EVENTS_MAX: usize = 1_000_000;

/// The time between the zero point of [`Seen::received`] and the moment at which a memory is made:
/// 100 years. No event in a queue is older than that, so that every event was received after the
/// zero point.
const LEAD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The first 128 bits of an event's SHA-256.
type Hash = [u64; 2];

/// An event that was sent or is about to be sent.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: Hash,
    position: Position,
    /// The time at which the event was received, as [`Seen::received`] returns it, in milliseconds.
    received: u64,
}

/// The memory of the events that one output has sent, which finds duplicates. The output's delivery
/// loop owns it, and hands it on to the delivery loop that replaces it.
pub struct Seen {
    /// The deduplication window in milliseconds. Two events with the same bytes are duplicates only
    /// if they were received at most this long after each other.
    window: u64,
    events_max: usize,
    begun: Instant,
    /// The remembered events in the order of their positions. [`Seen::forget`] takes an event out
    /// of `table`, so that it is not found any more, but leaves its entry here. Entries are removed
    /// only from the front, the oldest first.
    entries: VecDeque<Entry>,
    /// The number of the first entry in `entries`. Each entry's number is one more than the number
    /// of the entry before it, and stays the same when older entries are removed.
    first: u32,
    /// A hash table that finds the number of an event's entry in `entries`. The key is the first 64
    /// bits of the event's hash.
    table: HashTable<u32>,
}

impl Seen {
    /// Makes an empty memory. Two events with the same bytes count as duplicates if they were
    /// received within `window` of each other.
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

    /// Changes the window, which is the time within which events with the same bytes count as
    /// duplicates. Events that are already forgotten stay forgotten, even if the new window is
    /// longer.
    pub fn set_window(&mut self, window: Duration) {
        self.window = millis(window);
    }

    /// Returns the time at which an event of this age was received. The result is counted from a
    /// zero point, 100 years before this memory was made, so that it is never negative.
    pub fn received(&self, age: Duration) -> Duration {
        (LEAD + self.begun.elapsed()).saturating_sub(age)
    }

    /// Returns `true` if the event is a duplicate: an event with the same bytes was sent from an
    /// earlier position, and the two events were received within the deduplication window of each
    /// other.
    ///
    /// If the result is `false`, the event is remembered as sent. It is not added again if the
    /// memory already has an event at this position or at a later one.
    ///
    /// Positions must be passed in ascending order. The caller may go back to an earlier position,
    /// and must ascend again from there.
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

    /// Tells the memory that the events at these positions were not sent and will not be sent. An
    /// event with the same bytes as one of them is then not a duplicate of it.
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

    /// Tells the memory that all events before `watermark` are final (acknowledged, dropped or
    /// given up) and will not be checked again. Events that are so old that no new event can be a
    /// duplicate of them are forgotten.
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

    /// Adds an entry to the memory, if its position is after those of all other entries. If the
    /// memory is full, the oldest entry is removed.
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

/// Returns the number of the entry at `index` in the entries; `first` is the number of the first
/// entry. Numbers wrap around to 0 after the largest `u32`, which is safe because there are never
/// that many entries at the same time.
fn number(first: u32, index: usize) -> u32 {
    first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX))
}

fn entry(entries: &VecDeque<Entry>, first: u32, number: u32) -> Option<&Entry> {
    entries.get(usize::try_from(number.wrapping_sub(first)).ok()?)
}

/// Returns the first 128 bits of the SHA-256 of an event, or of another text.
pub(super) fn hash(event: &[u8]) -> Hash {
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
