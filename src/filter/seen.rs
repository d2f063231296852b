//! The memory of what has left, so that an event that kube-apiserver sends again leaves once.
//!
//! An event is known by SHA-256 of its bytes as they were received, cut to 128 bits. Not by its auditID: who sends a request
//! chooses it, and could hide an event behind another's. And not by a faster hash: he chooses other bytes of events as well,
//! and must not be able to make two that collide.
//!
//! What is taken for a duplicate does not leave, so every doubt is decided the other way: what was forgotten, what comes out
//! of order, and what is outside the window leaves again. An event is never a duplicate of itself, however often it is read:
//! a retry has the position that it had. All that has left within the window is remembered with its position, and not only
//! the last of its kind, so that what is read again from some position on is judged as it was the first time.
//!
//! It does not know what became of an event: whoever asks says which did not leave after all ([`Seen::forget`]), and how far
//! everything is final ([`Seen::settled`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use hashbrown::HashTable;
use ring::digest;
use tokio::time::Instant;

use crate::position::Position;

/// Events that are remembered. Each takes 32 bytes, and 10 to be found by: a million are 44 MB, which is as much as kube-apiserver
/// sends in five minutes at 3,000 events a second. Its retries of a batch end earlier.
const EVENTS_MAX: usize = 1_000_000;

/// What [`Seen::received`] has before its own beginning. Nothing in a queue is older.
const LEAD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// 128 bits.
type Hash = [u64; 2];

/// An event that has left, or is about to.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: Hash,
    position: Position,
    /// In ms.
    received: u64,
}

/// What has left through one output. Owned by its delivery, and handed on to the one that takes its place.
pub struct Seen {
    /// In ms.
    window: u64,
    events_max: usize,
    begun: Instant,
    /// By position. What was forgotten stays here until it is the oldest, and is in the table no more.
    entries: VecDeque<Entry>,
    /// The number of the first of them.
    first: u32,
    /// Their numbers, by hash.
    table: HashTable<u32>,
}

impl Seen {
    /// Nothing has left yet.
    #[must_use]
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

    /// From now on the window is another. What was forgotten by the old one stays so.
    pub fn set_window(&mut self, window: Duration) {
        self.window = millis(window);
    }

    /// When something was received that is so old now, on an axis that begins long before this memory does.
    #[must_use]
    pub fn received(&self, age: Duration) -> Duration {
        (LEAD + self.begun.elapsed()).saturating_sub(age)
    }

    /// Whether these bytes have left at an earlier position, and were received within the window before or after. If not, they
    /// are about to leave, and are remembered, unless something behind them is already.
    ///
    /// Positions are asked for in order, and again in order from any one on.
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

    /// What is at these positions has not left, and will not: what repeats it is to leave.
    pub fn forget(&mut self, positions: Range<Position>) {
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

    /// All before this position is final, and will not be asked for again: of that, what is outside the window of all that may
    /// be is forgotten.
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
        // Otherwise it was forgotten before.
        if let Ok(found) = self.table.find_entry(oldest.hash[0], |other| *other == number) {
            found.remove();
        }
        self.first = self.first.wrapping_add(1);
    }
}

/// Numbers begin again at 0 behind the last; there are never so many at a time.
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
