//! When a consumer counts as silent, so that its request may be sent to another one too.
//!
//! How long an answer may take is known only from the answers before: a request is silent when it
//! has waited, without any progress, for [`TIMES`] times the longest recent wait, and at least for
//! [`SILENT_MIN`]. A long wait is forgotten slowly, a little with each answer. For example, a
//! consumer that takes 1 s for every hundredth batch is always given more than 1 s.
//!
//! Another address works if it has answered since the silence began, or has no request to answer.
//! If all consumers are slow at the same time, no request is sent twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use base::lock::lock;

/// The shortest time without progress after which a request can count as silent.
pub(super) const SILENT_MIN: Duration = Duration::from_secs(1);

/// The time without progress after which a request counts as silent, as long as no request of the
/// output was accepted or refused and none made progress after a pause. The time is long because
/// the first answer of a consumer that was just started may be slow.
const SILENT_AT_FIRST: Duration = Duration::from_secs(5);

/// A request counts as silent when it has waited this many times as long as the longest recent wait
/// for an answer. For example, if the longest recent wait is 2 s, a request is silent after 6 s.
const TIMES: u32 = 3;

/// With each answer, the longest recent wait for an answer shrinks by 1/128, so that one slow
/// answer does not count for ever. After about 90 answers it has shrunk to half.
const FORGET: u32 = 128;

/// The greatest number of addresses for which the times of answers are remembered. DNS may give new
/// addresses again and again, so the oldest address is forgotten first.
const ADDRESSES_MAX: usize = 1024;

/// Remembers how long an output's consumers take to answer, and how many requests each address has
/// not answered yet. All requests of the output share this value.
#[derive(Default)]
pub(super) struct AnswerTimes {
    state: Mutex<AnswerState>,
}

/// The content of [`AnswerTimes`], behind its lock.
#[derive(Default)]
struct AnswerState {
    /// The longest recent wait for an answer; `None` before the first answer.
    longest: Option<Duration>,
    /// The requests and answers of each address, by the address's id.
    addresses: BTreeMap<usize, AddressActivity>,
}

/// The requests and answers of one address.
#[derive(Default)]
struct AddressActivity {
    /// The number of requests that were sent to the address and are not answered yet.
    under_way: usize,
    /// The time when the address last accepted or refused a request; `None` if it never did.
    answered: Option<Instant>,
}

/// A guard for one request: as long as this value exists, the request counts as not answered by the
/// address.
pub(super) struct Unanswered<'a> {
    answers: &'a AnswerTimes,
    id: usize,
}

impl AnswerTimes {
    fn lock(&self) -> MutexGuard<'_, AnswerState> {
        lock(&self.state)
    }

    /// Returns the time without progress after which a request counts as silent.
    pub(super) fn limit(&self) -> Duration {
        match self.lock().longest {
            Some(longest) => (longest * TIMES).max(SILENT_MIN),
            None => SILENT_AT_FIRST,
        }
    }

    /// Notes that an answer came. `waited` is the time between the last progress of its request and
    /// the answer. Must be called only for answers that accept or refuse the request. Other answers
    /// say nothing about usual times: a gateway, for example, answers 504 only after its own
    /// timeout.
    pub(super) fn took(&self, waited: Duration) {
        let mut state = self.lock();
        let before = state.longest.unwrap_or_default();
        state.longest = Some(waited.max(before - before / FORGET));
    }

    /// Notes that more bytes of a request were acknowledged after a pause. `waited` is the length
    /// of the pause.
    pub(super) fn paused(&self, waited: Duration) {
        let mut state = self.lock();
        state.longest = state.longest.max(Some(waited));
    }

    /// Notes that a request to the address `id` begins. The request counts as not answered until
    /// the returned guard is dropped.
    pub(super) fn asks(&self, id: usize) -> Unanswered<'_> {
        let mut state = self.lock();
        state.addresses.entry(id).or_default().under_way += 1;
        if state.addresses.len() > ADDRESSES_MAX {
            state.addresses.pop_first();
        }
        Unanswered { answers: self, id }
    }

    /// Notes that an address has taken or refused a request, which shows that it works.
    pub(super) fn answered(&self, id: usize) {
        self.lock().addresses.entry(id).or_default().answered = Some(Instant::now());
    }

    /// Returns `true` if, as far as is known, the address `id` works: it has answered a request
    /// after `since`, or it has no request that waits for an answer.
    pub(super) fn works(&self, id: usize, since: Instant) -> bool {
        let state = self.lock();
        state.addresses.get(&id).is_none_or(|address| {
            address.under_way == 0 || address.answered.is_some_and(|answered| answered >= since)
        })
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(address) = self.answers.lock().addresses.get_mut(&self.id) {
            address.under_way = address.under_way.saturating_sub(1);
        }
    }
}

/// The id of the address from which a request waits for an answer, and the time of the request's
/// last progress; `None` if the request does not wait. The request writes this value, and the check
/// for silent requests reads it.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Option<(usize, Instant)>>);

impl Waiting {
    pub(super) fn set(&self, waiting: Option<(usize, Instant)>) {
        *lock(&self.0) = waiting;
    }

    /// Returns the id of the address that the request waits for, and the time of the last progress.
    /// Returns `None` before the request has a connection, and after its answer.
    pub(super) fn get(&self) -> Option<(usize, Instant)> {
        *lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_a_few_times_the_longest_wait_of_late_and_a_second_at_least() {
        let answers = AnswerTimes::default();
        assert_eq!(answers.limit(), SILENT_AT_FIRST);
        answers.took(SECOND / 100);
        assert_eq!(answers.limit(), SILENT_MIN);
        // One answer in a hundred takes 3 s, and every request is given more than that.
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
        // A consumer that pauses in the middle of a body may do so again. Later progress does not
        // shorten the limit.
        answers.paused(SECOND * 2);
        answers.paused(SECOND / 10);
        assert_eq!(answers.limit(), SECOND * 6);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_works_if_it_has_answered_since_or_owes_nothing() {
        let answers = AnswerTimes::default();
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
