//! The lines of the log that are limited in time: losses, each kind for each output, and states
//! that may flap.
//!
//! Whoever loses events, or sees a state change, only notes it here ([`Losses::add`],
//! [`Reports::changed`]): that takes one short lock, writes nothing, and so may be done under the
//! queue's lock and on any thread. One task of the relay ([`Reports::tell`]) writes the lines. A
//! loss is said at its first event, and then at most every ten seconds with the number since the
//! last line and in total. A state is said when it changes; where it goes on changing, one line in
//! ten seconds says how often it did. What is left at the end is said by [`Reports::flush`], or
//! when the last handle goes.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The least time between two lines of the same kind.
const QUIET: Duration = Duration::from_secs(10);

/// The name, in `error_total` and here, of what no output can get.
pub(super) const QUEUE: &str = "queue";

/// A kind of loss. Each has lines of its own, for each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// `queue.when_full = "drop_oldest"`.
    DropOldest,
    /// `queue.when_full = "drop_newest"`.
    DropNewest,
    /// The output is not required, and the room was needed.
    NotRequired,
    /// Places of the queue's files are damaged: it counts places, and the events are
    /// [`Loss::Missing`] for each output.
    Damaged,
    /// The queue's files do not have the events any more.
    Missing,
    /// The output has given the events up.
    GivenUp(Cause, LostAs),
    /// The output is not in the config any more.
    Removed,
    /// The process ends, and the events were in memory only.
    Undelivered,
    /// Dead letters were deleted to keep within `dead_letter.max_bytes`.
    DeadLetters,
}

/// Why an output gives events up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The consumer refuses them for good.
    Refused,
    /// They do not fit the protocol, or the output's filter.
    TooLong,
    /// `retry.max_elapsed` has passed.
    TooOld,
}

/// What becomes of events that are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LostAs {
    /// They are gone.
    Dropped,
    /// They are in the dead-letter files.
    DeadLetter,
    /// They should be there, and could not be written.
    Unwritten,
}

impl Loss {
    fn message(self) -> &'static str {
        match self {
            Self::DropOldest => {
                "queue full: the oldest events are dropped and counted, as queue.when_full says"
            }
            Self::DropNewest => {
                "queue full: new events are dropped and counted, as queue.when_full says"
            }
            Self::NotRequired => {
                "the room is needed: the oldest events of an output that is not required are dropped and counted"
            }
            Self::Damaged => "the queue is damaged here, going on behind it",
            Self::Missing => "events are missing in the queue, lost and counted",
            Self::GivenUp(..) => "events given up and counted",
            Self::Removed => {
                "events not delivered to the output that was removed, lost and counted"
            }
            Self::Undelivered => "events not delivered in time, lost and counted",
            Self::DeadLetters => {
                "dead_letter.max_bytes is used up, the oldest dead letters are deleted and counted"
            }
        }
    }

    /// Why events were given up.
    fn cause(self) -> Option<&'static str> {
        let Self::GivenUp(cause, _) = self else { return None };
        Some(match cause {
            Cause::Refused => "refused",
            Cause::TooLong => "too long",
            Cause::TooOld => "retry.max_elapsed",
        })
    }

    /// What became of events that were given up.
    fn fate(self) -> Option<&'static str> {
        let Self::GivenUp(_, fate) = self else { return None };
        Some(match fate {
            LostAs::Dropped => "dropped",
            LostAs::DeadLetter => "written to the dead letters",
            LostAs::Unwritten => "lost, the dead letters can't be written",
        })
    }
}

/// A state that the log has a line for whenever it changes, unless it flaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A batch has found no room.
    QueueFull {
        /// Bytes held.
        bytes: u64,
        /// `queue.when_full`.
        when_full: String,
    },
    /// There is room again.
    QueueHasRoom {
        /// Bytes held.
        bytes: u64,
    },
    /// The queue's disk does not store.
    DiskRefuses {
        /// What it says.
        error: String,
    },
    /// It does again.
    DiskIsWell,
}

impl State {
    /// Which of the states it is one side of.
    fn of(&self) -> usize {
        match self {
            Self::QueueFull { .. } | Self::QueueHasRoom { .. } => 0,
            Self::DiskRefuses { .. } | Self::DiskIsWell => 1,
        }
    }

    fn write(&self, changes: u64) {
        match self {
            Self::QueueFull { bytes, when_full } => {
                tracing::warn!(bytes, when_full, changes, "queue full");
            }
            Self::QueueHasRoom { bytes } => {
                tracing::info!(bytes, changes, "queue below 80 %");
            }
            Self::DiskRefuses { error } => tracing::error!(
                error,
                changes,
                "the queue's disk refuses: senders get 503 until it does not"
            ),
            Self::DiskIsWell => tracing::info!(changes, "the queue's disk is well again"),
        }
    }
}

/// Lines that a state may have within [`QUIET`] before it counts as flapping. The queue: full, and
/// not any more. The disk: an error, what its first probes say, and well again.
const BURSTS: [usize; 2] = [2, 6];

/// All that is noted. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Reports {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    notes: Mutex<Notes>,
    /// Tells the task that there is something new.
    news: Notify,
}

#[derive(Default)]
struct Notes {
    /// By name. As many as there are series of `error_total`.
    parties: BTreeMap<Arc<str>, Arc<Party>>,
    losses: BTreeMap<(Loss, Arc<str>), Tally>,
    states: [Flap; BURSTS.len()],
}

/// An output, or the queue.
struct Party {
    name: Arc<str>,
    /// Its events are kept until it has them: it is required, and nothing is dropped where the
    /// queue is full.
    keeps: AtomicBool,
    /// Events that were noted as lost.
    lost: AtomicU64,
}

/// Losses of one kind and output.
#[derive(Default)]
struct Tally {
    total: u64,
    /// Since the last line.
    untold: u64,
    /// Says more about the first of them.
    detail: Option<String>,
    told: Option<Instant>,
}

impl Tally {
    /// When the next line may be written. `None`: there is nothing to say.
    fn due(&self, now: Instant) -> Option<Instant> {
        (self.untold > 0).then(|| self.told.map_or(now, |told| told + QUIET))
    }
}

/// The changes of one state.
#[derive(Default)]
struct Flap {
    /// When the last lines were written, as many as make a burst.
    told: VecDeque<Instant>,
    /// The last line stood for several changes.
    flaps: bool,
    /// Since the last line.
    changes: u64,
    state: Option<State>,
}

impl Flap {
    /// When the next line may be written. `None`: there is nothing to say.
    fn due(&self, burst: usize, now: Instant) -> Option<Instant> {
        self.state.as_ref()?;
        let is_calm = self.changes == 1 && !self.flaps;
        let limit = match is_calm {
            true if self.told.len() < burst => None,
            true => self.told.front(),
            false => self.told.back(),
        };
        Some(limit.map_or(now, |told| *told + QUIET))
    }

    fn take(&mut self, burst: usize, now: Instant) -> Option<(State, u64)> {
        let state = self.state.take()?;
        let changes = std::mem::take(&mut self.changes);
        self.flaps = changes > 1;
        if self.told.len() == burst {
            self.told.pop_front();
        }
        self.told.push_back(now);
        Some((state, changes))
    }
}

/// A line to be written.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Lost { loss: Loss, name: Arc<str>, events: u64, total: u64, detail: Option<String> },
    Changed { state: State, changes: u64 },
}

impl Line {
    fn write(&self) {
        match self {
            Self::Changed { state, changes } => state.write(*changes),
            Self::Lost { loss, name, events, total, detail } => {
                let output = (**name != *QUEUE).then_some(&**name);
                let (cause, fate, message) = (loss.cause(), loss.fate(), loss.message());
                let detail = detail.as_deref();
                if *loss == Loss::Damaged {
                    tracing::error!(place = detail, places = events, total, "{message}");
                } else if *loss == Loss::Missing {
                    tracing::error!(output, events, total, position = detail, "{message}");
                } else {
                    tracing::error!(
                        output,
                        events,
                        total,
                        cause,
                        fate,
                        error = detail,
                        "{message}"
                    );
                }
            }
        }
    }
}

impl Notes {
    /// Takes the lines that are due, or with `all` whatever is left; says when the next will be.
    fn take(&mut self, now: Instant, all: bool) -> (Vec<Line>, Option<Instant>) {
        let (mut lines, mut next) = (Vec::new(), None::<Instant>);
        let mut wait = |due: Instant| next = Some(next.map_or(due, |next| next.min(due)));
        for (flap, burst) in self.states.iter_mut().zip(BURSTS) {
            match flap.due(burst, now) {
                Some(due) if due > now && !all => wait(due),
                Some(_) => {
                    let taken = flap.take(burst, now);
                    lines.extend(taken.map(|(state, changes)| Line::Changed { state, changes }));
                }
                None => {}
            }
        }
        for ((loss, name), tally) in &mut self.losses {
            match tally.due(now) {
                Some(due) if due > now && !all => wait(due),
                Some(_) => {
                    tally.told = Some(now);
                    let (loss, name, total) = (*loss, Arc::clone(name), tally.total);
                    let (events, detail) = (std::mem::take(&mut tally.untold), tally.detail.take());
                    lines.push(Line::Lost { loss, name, events, total, detail });
                }
                None => {}
            }
        }
        (lines, next)
    }
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an output of this name loses, or the queue.
    pub(super) fn losses(&self, name: &str) -> Losses {
        let party = |notes: &mut Notes, name: &str| {
            if let Some(party) = notes.parties.get(name) {
                return Arc::clone(party);
            }
            let name = Arc::<str>::from(name);
            let (keeps, lost) = (AtomicBool::new(true), AtomicU64::new(0));
            let party = Arc::new(Party { name: Arc::clone(&name), keeps, lost });
            notes.parties.insert(name, Arc::clone(&party));
            party
        };
        let mut notes = self.lock();
        let (party, queue) = (party(&mut notes, name), party(&mut notes, QUEUE));
        drop(notes);
        Losses { reports: self.clone(), party, queue }
    }

    /// A state is another than it was.
    pub fn changed(&self, state: State) {
        let flap = &mut self.lock().states[state.of()];
        flap.changes += 1;
        flap.state = Some(state);
        self.shared.news.notify_one();
    }

    /// Writes lines until it is stopped. The task of the relay.
    pub async fn tell(self, stop: CancellationToken) {
        loop {
            let (lines, next) = self.lock().take(Instant::now(), false);
            lines.iter().for_each(Line::write);
            let next = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.news.notified() => {}
                () = next => {}
            }
        }
    }

    /// Writes what was noted and not said, however soon after the last line.
    pub fn flush(&self) {
        let (lines, _) = self.lock().take(Instant::now(), true);
        lines.iter().for_each(Line::write);
    }
}

/// The log must not end with less than was lost.
impl Drop for Shared {
    fn drop(&mut self) {
        let notes = self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
        notes.take(Instant::now(), true).0.iter().for_each(Line::write);
    }
}

/// What one output, or the queue, loses. Cheap to clone; all of one name are the same.
#[derive(Clone)]
pub struct Losses {
    reports: Reports,
    party: Arc<Party>,
    queue: Arc<Party>,
}

impl Losses {
    /// So many more events are lost. `detail` says more about them, and is not for every line: the
    /// first one counts.
    pub fn add(&self, loss: Loss, events: u64, detail: Option<&str>) {
        self.party.lost.fetch_add(events, Ordering::Relaxed);
        self.note(loss, events, detail);
    }

    /// As [`Losses::add`], of what is no loss of its own.
    pub(super) fn note(&self, loss: Loss, events: u64, detail: Option<&str>) {
        if events == 0 {
            return;
        }
        let mut notes = self.reports.lock();
        let tally = notes.losses.entry((loss, Arc::clone(&self.party.name))).or_default();
        tally.total += events;
        let is_first = tally.untold == 0;
        tally.untold += events;
        if is_first {
            tally.detail = detail.map(str::to_owned);
            self.reports.shared.news.notify_one();
        }
    }

    /// Events that this output and the queue have lost.
    #[must_use]
    pub fn events(&self) -> u64 {
        let lost = |party: &Party| party.lost.load(Ordering::Relaxed);
        lost(&self.party) + lost(&self.queue)
    }

    /// Whether the queue keeps events until this output has them. The queue says so; until then it
    /// does.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.party.keeps.load(Ordering::Relaxed)
    }

    /// Changes [`Losses::keeps`].
    pub fn keep(&self, keeps: bool) {
        self.party.keeps.store(keeps, Ordering::Relaxed);
    }

    /// See [`Reports::changed`].
    pub fn changed(&self, state: State) {
        self.reports.changed(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What would be written now, and when something will be next.
    fn due(reports: &Reports) -> (Vec<Line>, Option<Duration>) {
        let now = Instant::now();
        let (lines, next) = reports.lock().take(now, false);
        (lines, next.map(|next| next - now))
    }

    fn lost(loss: Loss, name: &str, events: u64, total: u64, detail: Option<&str>) -> Line {
        Line::Lost { loss, name: name.into(), events, total, detail: detail.map(str::to_owned) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_said_at_its_first_event_and_then_every_ten_seconds_with_the_numbers() {
        let reports = Reports::default();
        let losses = reports.losses("a");
        assert_eq!(due(&reports), (vec![], None));
        losses.add(Loss::DropOldest, 0, None);
        assert_eq!(due(&reports), (vec![], None), "nothing is lost");
        losses.add(Loss::DropOldest, 3, None);
        assert_eq!(due(&reports).0, [lost(Loss::DropOldest, "a", 3, 3, None)]);
        for _ in 0..99 {
            tokio::time::advance(Duration::from_millis(100)).await;
            losses.add(Loss::DropOldest, 2, None);
            assert_eq!(due(&reports).0, []);
        }
        // Another kind, and another output, do not wait for it.
        let refused = Loss::GivenUp(Cause::Refused, LostAs::Dropped);
        losses.add(refused, 1, Some("status 400"));
        losses.add(refused, 1, Some("status 422"));
        reports.losses("b").add(Loss::DropOldest, 7, None);
        let (lines, next) = due(&reports);
        let others =
            [lost(Loss::DropOldest, "b", 7, 7, None), lost(refused, "a", 2, 2, Some("status 400"))];
        assert_eq!(lines, others);
        assert_eq!(next, Some(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(due(&reports).0, [lost(Loss::DropOldest, "a", 198, 201, None)]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(due(&reports), (vec![], None), "nothing more was lost");
        assert_eq!((losses.events(), reports.losses("b").events()), (203, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_says_what_was_not_said_yet() {
        let reports = Reports::default();
        let losses = reports.losses("a");
        losses.add(Loss::Missing, 1, None);
        drop(due(&reports));
        losses.add(Loss::Missing, 5, Some("7"));
        assert_eq!(due(&reports).0, []);
        let (lines, next) = reports.lock().take(Instant::now(), true);
        assert_eq!((lines, next), (vec![lost(Loss::Missing, "a", 5, 6, Some("7"))], None));
        assert_eq!(reports.lock().take(Instant::now(), true).0, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_is_said_at_once_and_one_that_flaps_once_in_ten_seconds_with_a_count() {
        let reports = Reports::default();
        let full = || State::QueueFull { bytes: 9, when_full: "drop_oldest".to_owned() };
        let room = || State::QueueHasRoom { bytes: 5 };
        let line = |state, changes| Line::Changed { state, changes };
        reports.changed(full());
        assert_eq!(due(&reports).0, [line(full(), 1)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        reports.changed(room());
        assert_eq!(due(&reports).0, [line(room(), 1)], "one outage is two lines, at once");
        let mut lines = Vec::new();
        for step in 0..300 {
            tokio::time::advance(Duration::from_millis(100)).await;
            reports.changed(if step % 2 == 0 { full() } else { room() });
            lines.extend(due(&reports).0);
        }
        let counts: Vec<_> = lines
            .iter()
            .map(|line| match line {
                Line::Changed { changes, .. } => *changes,
                Line::Lost { .. } => panic!("nothing is lost"),
            })
            .collect();
        assert_eq!(counts, [100, 100, 100], "one line in ten seconds");
        // The last change of a burst is said too.
        reports.changed(full());
        assert_eq!(due(&reports), (vec![], Some(QUIET)));
        tokio::time::advance(QUIET).await;
        assert_eq!(due(&reports).0, [line(full(), 1)]);
        reports.changed(State::DiskRefuses { error: "EIO".to_owned() });
        assert_eq!(due(&reports).0.len(), 1, "another state is not held up");
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_hears_of_the_first_event_and_wakes_for_the_last() {
        let reports = Reports::default();
        let (losses, stop) = (reports.losses("a"), CancellationToken::new());
        let mut telling = std::pin::pin!(reports.clone().tell(stop.clone()));
        let untold = || -> u64 { reports.lock().losses.values().map(|tally| tally.untold).sum() };
        let mut run = async |time| {
            assert!(tokio::time::timeout(time, &mut telling).await.is_err(), "it goes on");
        };
        let moment = Duration::from_millis(1);
        run(moment).await;
        losses.add(Loss::DropNewest, 1, None);
        run(moment).await;
        assert_eq!(untold(), 0, "said at once");
        losses.add(Loss::DropNewest, 2, None);
        run(QUIET / 2).await;
        assert_eq!(untold(), 2, "not yet");
        run(QUIET / 2).await;
        assert_eq!(untold(), 0, "nothing more came, and it is said");
        stop.cancel();
        telling.await;
    }
}
