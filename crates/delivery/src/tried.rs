//! The times at which events were first sent, for `retry.max_elapsed`. An event keeps the time of
//! its first attempt when its batch is cut, sent again, or joined with others.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use queue::{Claim, Position};

/// Attempts within this part of `max_elapsed`, such as 3.6 s of 1 h, share an entry, which has the
/// time of the latest attempt. So at most about 1,000 entries are added in `max_elapsed`, and no
/// event is given up too early.
const RESOLUTION: u32 = 1000;

/// The times of the first attempts to send the events that are not final.
pub(super) struct Tried {
    pub max_elapsed: Duration,
    /// In the order of positions, which is also the order of time.
    entries: VecDeque<Entry>,
}

/// Events that were first sent between `begun` and `at`. The range begins where the previous entry
/// ends, and ends before `end`.
struct Entry {
    end: Position,
    begun: Instant,
    at: Instant,
}

impl Tried {
    pub(crate) fn new(max_elapsed: Duration) -> Self {
        Self { max_elapsed, entries: VecDeque::new() }
    }

    /// Notes that a claim is sent now. Events that were sent before keep their first time. Entries
    /// before `watermark` are removed.
    pub(crate) fn note(&mut self, claim: Claim, watermark: Position) {
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

    /// Returns the position before which every event was first sent at least `max_elapsed` ago.
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
        // The first events are sent again, together with later ones.
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
