//! The state that the threads of one sender share: whether it still works, and the bodies that wait
//! to be sent, with their due times.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::events::Serial;
use crate::kernel;

#[derive(Default)]
pub(super) struct Shop {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// The bodies that no courier has taken, by due time and number.
    due: BTreeMap<(Duration, u64), Job>,
    number: u64,
    /// The number of events in bodies that are neither acknowledged nor given up.
    events: usize,
    /// The number of threads that are delivering a body that is never in `due`.
    busy: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Working,
    Quiet,
    Closed,
}

/// A body that is sent until it is acknowledged or given up.
pub(super) struct Job {
    pub(super) serials: Arc<[Serial]>,
    pub(super) body: Arc<[u8]>,
    /// The attempts that have failed.
    pub(super) failed: u32,
    /// The requests of the current attempt. All except the first one follow a Retry-After.
    pub(super) requests: u32,
    /// When the current attempt ends.
    pub(super) deadline: Duration,
    /// The next pause, without its jitter.
    pub(super) backoff: Duration,
}

impl Shop {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it")
    }

    /// Waits this long, and returns `true`. Returns `false` at once when the sender becomes quiet.
    pub(super) fn pause(&self, time: Duration) -> bool {
        self.pause_until(kernel::now() + time, Phase::Quiet)
    }

    /// Waits until then, and returns `true`. Returns `false` at once when the sender is closed.
    pub(super) fn pause_to_retry(&self, until: Duration) -> bool {
        self.pause_until(until, Phase::Closed)
    }

    fn pause_until(&self, until: Duration, end: Phase) -> bool {
        let mut state = self.lock();
        while state.phase < end {
            let left = until.saturating_sub(kernel::now());
            if left.is_zero() {
                return true;
            }
            state = self.changed.wait_timeout(state, left).expect("nothing panics").0;
        }
        false
    }

    /// Returns `true` if there is room for this many more events.
    pub(super) fn has_room(&self, events: usize, buffer: usize) -> bool {
        self.lock().events + events <= buffer
    }

    /// Adds a body that is due now.
    pub(super) fn add(&self, job: Job) {
        self.lock().events += job.serials.len();
        self.put(kernel::now(), job);
    }

    /// Puts a body back until it is due.
    pub(super) fn put(&self, due: Duration, job: Job) {
        let mut state = self.lock();
        state.number += 1;
        let number = state.number;
        state.due.insert((due, number), job);
        self.changed.notify_all();
    }

    /// Waits for a body that is due. Returns `None` once the sender is closed.
    pub(super) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let first = state.due.first_key_value().map(|((due, _), _)| *due);
            let now = kernel::now();
            state = match (state.phase, first) {
                (Phase::Closed, _) => return None,
                (_, Some(due)) if due <= now => return state.due.pop_first().map(|(_, job)| job),
                (_, Some(due)) => {
                    self.changed.wait_timeout(state, due - now).expect("nothing panics").0
                }
                (_, None) => self.changed.wait(state).expect("nothing panics"),
            };
        }
    }

    /// Removes events that are acknowledged or given up from the count.
    pub(super) fn done(&self, events: usize) {
        self.lock().events -= events;
        self.changed.notify_all();
    }

    /// Records that a thread starts or stops delivering a body that is never in `due`.
    pub(super) fn busy(&self, is_busy: bool) {
        let mut state = self.lock();
        state.busy = if is_busy { state.busy + 1 } else { state.busy - 1 };
        self.changed.notify_all();
    }

    pub(super) fn quiet(&self) {
        let mut state = self.lock();
        state.phase = state.phase.max(Phase::Quiet);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().phase = Phase::Closed;
        self.changed.notify_all();
    }

    pub(super) fn wait_until_idle(&self, deadline: Duration) {
        let mut state = self.lock();
        while state.events > 0 || state.busy > 0 {
            let left = deadline.saturating_sub(kernel::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).expect("nothing panics").0;
        }
    }
}
