//! When a consumer counts as silent, so that another one may have its request.
//!
//! Nothing is known of how long an answer may take, but for how long answers took: a request is
//! silent when it has waited, without any progress, for [`TIMES`] as long as the longest wait of
//! late, and never before [`SILENT_MIN`]. A wait that was long is forgotten slowly, with each
//! answer a little: a consumer that takes a second for every hundredth batch is given that second.
//!
//! Another address works if it has answered since the silence began, or has nothing to answer.
//! Where all are slow at the same time, none of them gets what another one was given.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

/// Nothing is called silent before.
pub(super) const SILENT_MIN: Duration = Duration::from_secs(1);

/// The same while nothing has been answered yet: a consumer that has just been started may be slow
/// once.
const SILENT_AT_FIRST: Duration = Duration::from_secs(5);

/// A few times the longest wait of late.
const TIMES: u32 = 3;

/// Each answer takes this part off the longest wait: half of it is forgotten after 90 answers.
const FORGET: u32 = 128;

/// Addresses that something is known of. They come and go with what names resolve to.
const ADDRESSES_MAX: usize = 1024;

/// What an output's consumers were asked and have answered. Shared by its lanes.
#[derive(Default)]
pub(super) struct Answers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The longest wait for an answer of late.
    longest: Option<Duration>,
    addresses: BTreeMap<usize, Address>,
}

#[derive(Default)]
struct Address {
    /// Requests that it has not answered.
    under_way: usize,
    /// When it answered the last one.
    answered: Option<Instant>,
}

/// A request that an address has not answered, until it is dropped.
pub(super) struct UnderWay<'a> {
    answers: &'a Answers,
    id: usize,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that has waited longer is silent.
    pub(super) fn limit(&self) -> Duration {
        match self.lock().longest {
            Some(longest) => (longest * TIMES).max(SILENT_MIN),
            None => SILENT_AT_FIRST,
        }
    }

    /// An answer has taken so long since the last progress. Errors don't count: the one of a
    /// gateway that has waited in vain comes late.
    pub(super) fn took(&self, waited: Duration) {
        let mut state = self.lock();
        let before = state.longest.unwrap_or_default();
        state.longest = Some(waited.max(before - before / FORGET));
    }

    /// There was progress again after so long.
    pub(super) fn paused(&self, waited: Duration) {
        let mut state = self.lock();
        state.longest = state.longest.max(Some(waited));
    }

    /// An address is asked.
    pub(super) fn asks(&self, id: usize) -> UnderWay<'_> {
        let mut state = self.lock();
        state.addresses.entry(id).or_default().under_way += 1;
        if state.addresses.len() > ADDRESSES_MAX {
            state.addresses.pop_first();
        }
        UnderWay { answers: self, id }
    }

    /// An address has taken or refused a request: it works.
    pub(super) fn answered(&self, id: usize) {
        self.lock().addresses.entry(id).or_default().answered = Some(Instant::now());
    }

    /// Whether there is no reason to think that an address is silent too.
    pub(super) fn works(&self, id: usize, since: Instant) -> bool {
        let state = self.lock();
        state.addresses.get(&id).is_none_or(|address| {
            address.under_way == 0 || address.answered.is_some_and(|answered| answered >= since)
        })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(address) = self.answers.lock().addresses.get_mut(&self.id) {
            address.under_way = address.under_way.saturating_sub(1);
        }
    }
}

/// Since when a request waits without progress, and at which address. Written by who waits for its
/// answer.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Option<(usize, Instant)>>);

impl Waiting {
    pub(super) fn set(&self, id: usize, since: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, since));
    }

    /// It has an answer.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `None`: it is not on a connection yet, or has its answer.
    pub(super) fn get(&self) -> Option<(usize, Instant)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_a_few_times_the_longest_wait_of_late_and_a_second_at_least() {
        let answers = Answers::default();
        assert_eq!(answers.limit(), SILENT_AT_FIRST);
        answers.took(SECOND / 100);
        assert_eq!(answers.limit(), SILENT_MIN);
        // One of a hundred takes 3 s: each is given that.
        for number in 0..1000 {
            if number % 100 == 0 {
                answers.took(SECOND * 3);
            }
            answers.took(SECOND / 100);
            assert!(answers.limit() > SECOND * 3, "{number}: {:?}", answers.limit());
        }
        for _ in 0..1000 {
            answers.took(SECOND / 100);
        }
        assert_eq!(answers.limit(), SILENT_MIN);
        // A consumer that pauses in the middle of a body may do so again; progress forgets nothing.
        answers.paused(SECOND * 2);
        answers.paused(SECOND / 10);
        assert_eq!(answers.limit(), SECOND * 6);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_works_if_it_has_answered_since_or_owes_nothing() {
        let answers = Answers::default();
        let since = Instant::now();
        assert!(answers.works(7, since), "nothing is known of it");
        let (one, other) = (answers.asks(7), answers.asks(7));
        assert!(!answers.works(7, since));
        tokio::time::advance(SECOND).await;
        answers.answered(7);
        drop(one);
        assert!(answers.works(7, since));
        assert!(!answers.works(7, Instant::now() + SECOND), "it owes an answer since");
        drop(other);
        assert!(answers.works(7, Instant::now() + SECOND));
        for id in 0..10 * ADDRESSES_MAX {
            drop(answers.asks(id));
        }
        assert_eq!(answers.lock().addresses.len(), ADDRESSES_MAX);
    }
}
