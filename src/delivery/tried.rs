//! When events were tried first, for `retry.max_elapsed`: the clock of a batch starts with its first attempt, and goes on
//! however it is cut, sent again, or joined with others.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::Claim;
use crate::queue::Position;

/// Attempts that are so close together, as a part of the time allowed, are noted as one, the later one: this bounds what
/// has to be kept, and nothing is given up too early.
const RESOLUTION: u32 = 1000;

/// The first attempts at what is not finished. Owned by a delivery loop.
pub(super) struct Tried {
    pub(super) max_elapsed: Duration,
    /// In order of position, and so of time.
    entries: VecDeque<Entry>,
}

/// The events before `end`, and not before the end of the entry in front, were tried first between `begun` and `at`.
struct Entry {
    end: Position,
    begun: Instant,
    at: Instant,
}

impl Tried {
    pub(super) fn new(max_elapsed: Duration) -> Self {
        Self { max_elapsed, entries: VecDeque::new() }
    }

    /// An attempt at this claim; what of it was tried before keeps its time. What is before the watermark is forgotten.
    pub(super) fn note(&mut self, claim: Claim, watermark: Position) {
        while self.entries.front().is_some_and(|entry| entry.end <= watermark) {
            self.entries.pop_front();
        }
        let (now, resolution) = (Instant::now(), self.max_elapsed / RESOLUTION);
        match self.entries.back_mut() {
            Some(last) if claim.end <= last.end => {}
            Some(last) if now.duration_since(last.begun) < resolution => {
                (last.end, last.at) = (claim.end, now);
            }
            _ => self.entries.push_back(Entry { end: claim.end, begun: now, at: now }),
        }
    }

    /// Behind the last event whose time is over.
    pub(super) fn over_until(&self) -> Position {
        let now = Instant::now();
        let over = |entry: &Entry| now.duration_since(entry.at) >= self.max_elapsed;
        let count = self.entries.partition_point(over);
        count
            .checked_sub(1)
            .and_then(|last| self.entries.get(last))
            .map_or(Position::START, |entry| entry.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(start: Position, end: Position) -> Claim {
        Claim { start, end }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_keeps_the_time_of_its_first_attempt() {
        let second = Duration::from_secs(1);
        let mut tried = Tried::new(10 * second);
        tried.note(claim(Position::new(0), Position::new(5)), Position::new(0));
        tokio::time::advance(4 * second).await;
        // Again, with what has come since.
        tried.note(claim(Position::new(0), Position::new(8)), Position::new(0));
        tokio::time::advance(5 * second).await;
        assert_eq!(tried.over_until(), 0);
        tokio::time::advance(second).await;
        assert_eq!(tried.over_until(), 5);
        tokio::time::advance(4 * second).await;
        assert_eq!(tried.over_until(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_and_nothing_is_over_too_early() {
        let max = Duration::from_secs(1000);
        let mut tried = Tried::new(max);
        let mut firsts = Vec::new();
        for position in 0..100_000 {
            tried.note(
                claim(Position::new(position), Position::new(position + 1)),
                Position::new(0),
            );
            firsts.push(Instant::now());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(tried.entries.len() <= 1001, "{}", tried.entries.len());
        let over = usize::try_from(tried.over_until().get()).unwrap();
        assert!(firsts[..over].iter().all(|first| first.elapsed() >= max));
        tokio::time::advance(max / 1000).await;
        assert_eq!(tried.over_until(), 100, "at most a thousandth too late");
        tried.note(claim(Position::new(100_000), Position::new(100_001)), Position::new(100_000));
        assert_eq!(tried.entries.len(), 1);
    }
}
