//! The state of the kernel, with its clock and its events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::baton::{Doing, Task, TaskId};
use super::files::Files;
use super::net_model::{Net, NetEvent};
use super::process::ProcessState;

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const MILLISECOND: u64 = 1_000_000;
pub(super) const MICROSECOND: u64 = 1_000;

/// The monotonic clock at the start: the machine has already run for a while.
const UPTIME: u64 = 10_000 * SECOND;

/// The time of day at the start: 1 June 2026, 12:00 UTC.
const TIME_OF_DAY: u64 = 1_780_315_200 * SECOND;

/// Something that happens at a certain time.
#[derive(Debug)]
pub(super) enum Event {
    /// The deadline of a thread's wait: the thread, and the number of the wait.
    Wake(TaskId, u64),
    Net(NetEvent),
}

/// An event in the heap, which is ordered by time and then by number.
struct Timed {
    at: u64,
    number: u64,
    event: Event,
}

impl Timed {
    fn key(&self) -> (u64, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

pub(super) struct Kernel {
    /// The simulated time since the start, in nanoseconds.
    pub(super) now: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) tasks: Vec<Task>,
    /// The threads that may run.
    pub(super) ready: Vec<TaskId>,
    /// The real kernel's ID of a thread that has passed its baton on and is ending.
    pub(super) ending: Option<usize>,
    /// The threads that wait at an address (futex(2)), in order of arrival.
    pub(super) futexes: BTreeMap<usize, VecDeque<TaskId>>,
    events: BinaryHeap<Reverse<Timed>>,
    number: u64,
    pub(super) net: Net,
    pub(super) files: Files,
    pub(super) processes: Vec<ProcessState>,
    pub(super) trace: super::trace::Trace,
    /// The number of calls to the kernel.
    pub(super) calls: u64,
}

impl Kernel {
    pub(super) fn new(seed: u64, trace: super::trace::Trace) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            now: 0,
            tasks: Vec::new(),
            ready: Vec::new(),
            ending: None,
            futexes: BTreeMap::new(),
            events: BinaryHeap::new(),
            number: 0,
            net: Net::default(),
            files: Files::new(rng.fork()),
            processes: Vec::new(),
            trace,
            calls: 0,
            rng,
        }
    }

    /// Schedules an event.
    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(Timed { at: at.max(self.now), number: self.number, event }));
    }

    /// Runs all events that are due.
    pub(super) fn due(&mut self) {
        while self.events.peek().is_some_and(|Reverse(first)| first.at <= self.now) {
            if let Some(Reverse(Timed { event, .. })) = self.events.pop() {
                match event {
                    Event::Wake(task, wait) => self.wake_from(task, wait),
                    Event::Net(event) => self.happen(event),
                }
            }
        }
    }

    /// Moves the time to the next event. Returns `None` if there is none.
    pub(super) fn jump(&mut self) -> Option<()> {
        let Reverse(next) = self.events.peek()?;
        self.now = self.now.max(next.at);
        Some(())
    }

    /// Returns the time of a clock in nanoseconds.
    pub(super) fn clock(&self, clock: libc::clockid_t) -> u64 {
        match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI => {
                TIME_OF_DAY + self.now
            }
            _ => UPTIME + self.now,
        }
    }

    /// Converts a clock's time to the simulated time.
    pub(super) fn when(&self, clock: libc::clockid_t, time: u64) -> u64 {
        time.saturating_sub(self.clock(clock) - self.now)
    }

    /// Returns a random time up to `longest` nanoseconds. Short times are more likely.
    pub(super) fn short_time(&mut self, longest: u64) -> u64 {
        let most = longest >> self.rng.u32(..4);
        self.rng.u64(..=most)
    }

    /// Describes the waiting threads, for the message that nothing can happen any more.
    pub(super) fn stuck(&self) -> String {
        let count = |doing| self.tasks.iter().filter(|task| task.doing == doing).count();
        format!("{} threads wait at {} ns", count(Doing::Waiting), self.now)
    }
}
