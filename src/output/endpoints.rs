//! Which of an output's addresses is tried next.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Strategy;

/// An address that failed is passed over for so long, where another is left.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// The addresses of one output, by index. Shared by its connections.
pub(super) struct Endpoints {
    strategy: Strategy,
    state: Mutex<State>,
}

struct State {
    failed: Vec<Option<Instant>>,
    /// Every address is tried once before any is tried again.
    round: Instant,
    next: usize,
}

impl State {
    fn is_left(&self, index: usize) -> bool {
        self.failed[index].is_none_or(|at| at < self.round || at.elapsed() >= PASSED_OVER)
    }
}

impl Endpoints {
    pub(super) fn new(count: usize, strategy: Strategy) -> Self {
        let state = State { failed: vec![None; count], round: Instant::now(), next: 0 };
        Self { strategy, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next to try: with `failover` the first in order that has not failed lately, with `round_robin` the next such.
    pub(super) fn pick(&self) -> usize {
        let mut state = self.lock();
        let count = state.failed.len();
        let first = match self.strategy {
            Strategy::Failover => 0,
            Strategy::RoundRobin => state.next,
        };
        if !(0..count).any(|index| state.is_left(index)) {
            state.failed.fill(None);
            state.round = Instant::now();
        }
        let picked =
            (first..first + count).map(|index| index % count).find(|index| state.is_left(*index));
        let picked = picked.unwrap_or_default();
        state.next = (picked + 1) % count;
        picked
    }

    /// Notes a failure; says whether another address is left to try at once.
    pub(super) fn failed(&self, index: usize) -> bool {
        let mut state = self.lock();
        state.failed[index] = Some(Instant::now());
        (0..state.failed.len()).any(|index| state.is_left(index))
    }

    /// Notes a success.
    pub(super) fn succeeded(&self, index: usize) {
        self.lock().failed[index] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failover_keeps_to_the_first_that_works_and_comes_back_to_it() {
        let endpoints = Endpoints::new(3, Strategy::Failover);
        assert_eq!((endpoints.pick(), endpoints.pick()), (0, 0));
        assert!(endpoints.failed(0));
        assert_eq!((endpoints.pick(), endpoints.pick()), (1, 1));
        endpoints.succeeded(1);
        tokio::time::advance(PASSED_OVER).await;
        assert_eq!(endpoints.pick(), 0);
        assert!(endpoints.failed(0));
        assert!(endpoints.failed(1));
        assert_eq!(endpoints.pick(), 2);
        assert!(!endpoints.failed(2));
        // All have failed: a new round, from the first.
        assert_eq!(endpoints.pick(), 0);
        assert!(endpoints.failed(0));
        assert_eq!(endpoints.pick(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn round_robin_takes_turns_and_passes_over_what_failed() {
        let endpoints = Endpoints::new(3, Strategy::RoundRobin);
        let turns: Vec<_> = (0..4).map(|_| endpoints.pick()).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        assert!(endpoints.failed(1));
        let turns: Vec<_> = (0..4).map(|_| endpoints.pick()).collect();
        assert_eq!(turns, [2, 0, 2, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_address_is_always_the_next() {
        let endpoints = Endpoints::new(1, Strategy::Failover);
        assert!(!endpoints.failed(endpoints.pick()));
        assert_eq!(endpoints.pick(), 0);
    }
}
