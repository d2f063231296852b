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
    failed: Vec<Option<Failed>>,
    /// Every address is tried once before any is tried again.
    round: Instant,
    next: usize,
}

#[derive(Clone, Copy)]
struct Failed {
    at: Instant,
    /// Passed over until then.
    until: Instant,
    /// It has asked for that itself (Retry-After), so that a new round does not end it.
    asked: bool,
}

impl State {
    fn is_left(&self, index: usize) -> bool {
        self.failed[index].is_none_or(|failed| {
            Instant::now() >= failed.until || (failed.at < self.round && !failed.asked)
        })
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
    /// Where none is left a new round begins; where all have asked for a pause, the one whose pause ends first is taken.
    pub(super) fn pick(&self) -> usize {
        let mut state = self.lock();
        let count = state.failed.len();
        let first = match self.strategy {
            Strategy::Failover => 0,
            Strategy::RoundRobin => state.next,
        };
        if !(0..count).any(|index| state.is_left(index)) {
            for failed in &mut state.failed {
                *failed = failed.filter(|failed| failed.asked);
            }
            state.round = Instant::now();
        }
        let turns = || (first..first + count).map(|index| index % count);
        let left = turns().find(|index| state.is_left(*index));
        let soonest =
            || turns().min_by_key(|index| state.failed[*index].map(|failed| failed.until));
        let picked = left.or_else(soonest).unwrap_or_default();
        state.next = (picked + 1) % count;
        picked
    }

    /// Notes a failure, and how long a pause the consumer has asked for; says whether another address is left to try at
    /// once.
    pub(super) fn failed(&self, index: usize, retry_after: Option<Duration>) -> bool {
        let mut state = self.lock();
        let at = Instant::now();
        let asked = retry_after.is_some_and(|asked| asked > PASSED_OVER);
        let until = at + retry_after.unwrap_or_default().max(PASSED_OVER);
        state.failed[index] = Some(Failed { at, until, asked });
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
        assert!(endpoints.failed(0, None));
        assert_eq!((endpoints.pick(), endpoints.pick()), (1, 1));
        endpoints.succeeded(1);
        tokio::time::advance(PASSED_OVER).await;
        assert_eq!(endpoints.pick(), 0);
        assert!(endpoints.failed(0, None));
        assert!(endpoints.failed(1, None));
        assert_eq!(endpoints.pick(), 2);
        assert!(!endpoints.failed(2, None));
        // All have failed: a new round, from the first.
        assert_eq!(endpoints.pick(), 0);
        assert!(endpoints.failed(0, None));
        assert_eq!(endpoints.pick(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn round_robin_takes_turns_and_passes_over_what_failed() {
        let endpoints = Endpoints::new(3, Strategy::RoundRobin);
        let turns: Vec<_> = (0..4).map(|_| endpoints.pick()).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        assert!(endpoints.failed(1, None));
        let turns: Vec<_> = (0..4).map(|_| endpoints.pick()).collect();
        assert_eq!(turns, [2, 0, 2, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_asks_for_a_pause_gets_it_though_others_fail() {
        let endpoints = Endpoints::new(2, Strategy::Failover);
        assert!(endpoints.failed(0, Some(Duration::from_secs(120))));
        for _ in 0..5 {
            assert_eq!(endpoints.pick(), 1);
            assert!(!endpoints.failed(1, None));
            tokio::time::advance(Duration::from_secs(20)).await;
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(endpoints.pick(), 0);
        // All ask: the first to be over.
        assert!(endpoints.failed(0, Some(Duration::from_secs(60))));
        assert!(!endpoints.failed(1, Some(Duration::from_secs(30))));
        assert_eq!(endpoints.pick(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_address_is_always_the_next() {
        let endpoints = Endpoints::new(1, Strategy::Failover);
        assert!(!endpoints.failed(endpoints.pick(), None));
        assert_eq!(endpoints.pick(), 0);
    }
}
