//! Log lines whose rate is limited: lost events, and states that may flap.
//!
//! The code that loses events or changes a state only notes that here ([`Losses::add`],
//! [`Reports::changed`]). A note takes only short locks and writes nothing, so it may be made under
//! the queue's lock and on any thread. One task of the relay ([`Reports::tell`]) writes the lines:
//!
//! - A loss has a line at its first event, and then at most one line in ten seconds, with the
//!   events since the last line and in total. Each kind of loss has its own lines for each output.
//! - A state has a line when it changes. If it *flaps* (changes often), it has at most one line in
//!   ten seconds, with the number of changes.
//!
//! At the end of the process, [`Reports::flush`] writes the notes that have no line yet. If nobody
//! calls it, they are written when the last handle is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use base::lock::lock;

/// The pause between two log lines about the same loss, or about a state that flaps.
const QUIET: Duration = Duration::from_secs(10);

/// The longest wait of [`Reports::flush`], because a thread may panic while it writes a line.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The name in `error_total`, in place of an output's, for events that no output can get.
pub(crate) const QUEUE: &str = "queue";

/// A kind of loss. Each kind has its own log lines for each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The full queue dropped its oldest events: `queue.when_full = "drop_oldest"`.
    DropOldest,
    /// The full queue dropped a new batch: `queue.when_full = "drop_newest"`.
    DropNewest,
    /// The queue needed room and dropped events of an output with `required = false`.
    NotRequired,
    /// Places in the queue's files are damaged. This loss counts places: an output counts the
    /// events that it loses there as [`Loss::Missing`].
    Damaged,
    /// Events are missing in the queue's files, because of damage.
    Missing,
    /// The output has given up the events, and does not try to send them any more.
    GivenUp(Cause, LostAs),
    /// The output was removed from the config before it had delivered all its events.
    Removed,
    /// The relay ended before it had delivered the events, and they were not stored durably.
    Undelivered,
    /// Dead letters were deleted, to keep within `dead_letter.max_bytes`.
    DeadLetters,
}

/// The reason why an output has given up events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The consumer refuses the events permanently.
    Refused,
    /// The events are longer than the protocol, or the output's filter, allows.
    TooLong,
    /// The events were set aside, and their files can't be read.
    Unreadable,
}

/// The fate of events that an output has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LostAs {
    /// The events are lost, because no dead-letter files are kept.
    Dropped,
    /// The events were written to the dead-letter files, from which they can be sent again.
    DeadLetter,
    /// The events are lost: they should be in the dead-letter files, but could not be written.
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
                "the queue needs room: the oldest events of an output that is not required are dropped and counted"
            }
            Self::Damaged => {
                "a part of the queue's files is damaged and skipped: events in it that were not \
                 delivered count as lost"
            }
            Self::Missing => {
                "events are missing in the files of the queue: they are lost and counted"
            }
            Self::GivenUp(_, LostAs::Dropped) => {
                "events given up by an output: they are lost and counted"
            }
            Self::GivenUp(_, LostAs::DeadLetter) => {
                "events given up by an output: they are in the dead letters, and counted as lost; \
                 fix the cause, then replay them"
            }
            Self::GivenUp(_, LostAs::Unwritten) => {
                "events given up by an output: they are lost and counted, \
                 because they could not be kept as dead letters"
            }
            Self::Removed => {
                "an output was removed before it had delivered all events: they are lost and \
                 counted"
            }
            Self::Undelivered => {
                "the relay ended before it had delivered all events: they are lost and counted"
            }
            Self::DeadLetters => {
                "the dead letters have reached dead_letter.max_bytes: those of a flood, or the \
                 oldest, are deleted and counted"
            }
        }
    }

    /// Returns the value of the log field `cause`, which only events that were given up have.
    fn cause(self) -> Option<&'static str> {
        let Self::GivenUp(cause, _) = self else { return None };
        Some(match cause {
            Cause::Refused => "refused",
            Cause::TooLong => "too long",
            Cause::Unreadable => "damaged",
        })
    }

    /// Returns the value of the log field `fate`, which only events that were given up have.
    fn fate(self) -> Option<&'static str> {
        let Self::GivenUp(_, fate) = self else { return None };
        Some(match fate {
            LostAs::Dropped => "dropped",
            LostAs::DeadLetter => "written to the dead letters",
            LostAs::Unwritten => "lost, the dead letters can't be written",
        })
    }
}

/// A state of the queue or of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The queue is full: a batch has found no room.
    QueueFull {
        /// The number of bytes in the queue.
        bytes: u64,
        /// The value of the setting `queue.when_full`.
        when_full: String,
    },
    /// The queue has room again after it was full: a fifth of its limit is free.
    QueueHasRoom {
        /// The bytes in the queue, without those that a new batch may free.
        bytes: u64,
    },
    /// The queue's disk refuses to store events.
    DiskRefuses {
        /// The operation that failed and its error, as text.
        error: String,
    },
    /// The queue's disk stores events again.
    DiskIsWell,
    /// The queue's disk does not respond.
    DiskHangs {
        /// The number of seconds for which the disk has not responded.
        seconds: u64,
    },
    /// The queue's disk responds again.
    DiskAnswers,
}

impl State {
    /// Writes a log line. `changes` is the number of changes since the previous line.
    fn write(&self, changes: u64) {
        match self {
            Self::QueueFull { bytes, when_full } if when_full == "reject" => tracing::warn!(
                bytes,
                when_full,
                changes,
                "queue full: new events are not accepted (senders get 429) until the outputs have \
                 delivered others"
            ),
            Self::QueueFull { bytes, when_full } => tracing::warn!(
                bytes,
                when_full,
                changes,
                "queue full: events are dropped until the outputs have delivered others"
            ),
            Self::QueueHasRoom { bytes } => {
                tracing::info!(bytes, changes, "queue has room again: it is below 80 %");
            }
            Self::DiskRefuses { error } => tracing::error!(
                error,
                changes,
                "the queue's disk refuses writes: senders get 503 until it accepts them"
            ),
            Self::DiskIsWell => tracing::info!(changes, "the queue's disk accepts writes again"),
            Self::DiskHangs { seconds } => tracing::error!(
                seconds,
                changes,
                "the queue's disk does not respond: senders get 503 until it does"
            ),
            Self::DiskAnswers => tracing::info!(changes, "the queue's disk responds again"),
        }
    }
}

/// The number of log lines about the queue's room that may be written within [`QUIET`]: one for a
/// full queue, and one for room again. Further changes share a line.
const ROOM_LINES: usize = 2;

/// The number of log lines about the disk that may be written within [`QUIET`]: enough for an
/// error, the first attempts to store again, and its end. Further changes share a line.
const DISK_LINES: usize = 6;

/// The notes for the log of one relay: losses, and changes of the queue's state. Clones are cheap
/// and share the notes.
#[derive(Clone, Default)]
pub struct Reports {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    notes: Mutex<Notes>,
    /// Wakes the task that writes the log lines, because there is a new note.
    news: Notify,
    /// Wakes a thread that waits until [`Notes::writers`] is 0.
    written: Condvar,
}

/// The losses of one relay, and the changes of states that the log has not reported yet.
struct Notes {
    /// The counts since the start, by the name of the output or [`QUEUE`].
    parties: BTreeMap<Arc<str>, Arc<Party>>,
    /// The losses by kind, and by the name of the output or [`QUEUE`].
    losses: BTreeMap<(Loss, Arc<str>), Tally>,
    /// The changes between a full queue and a queue with room.
    room: Flap,
    disk: Flap,
    /// The time at which the queue became full; `None` if it is not full.
    full_since: Option<Instant>,
    /// The number of threads that have taken notes and are writing the log lines about them.
    writers: usize,
}

impl Default for Notes {
    fn default() -> Self {
        let (parties, losses) = (BTreeMap::new(), BTreeMap::new());
        let (room, disk) = (Flap::new(ROOM_LINES), Flap::new(DISK_LINES));
        Self { parties, losses, room, disk, full_since: None, writers: 0 }
    }
}

/// The counts of lost events of one output, or of [`QUEUE`] for events that no output can get.
struct Party {
    name: Arc<str>,
    /// The value of [`Losses::keeps`]: `true` if events wait for the output.
    keeps: AtomicBool,
    lost: AtomicU64,
    last: Mutex<Option<Instant>>,
}

/// The losses of one kind at one output, or in the queue.
#[derive(Default)]
struct Tally {
    total: u64,
    /// The lost events that no log line has reported yet.
    untold: u64,
    /// A detail about the first loss since the last log line, such as the consumer's error.
    detail: Option<String>,
    /// The time of the last log line.
    told: Option<Instant>,
}

impl Tally {
    /// Returns when the next log line may be written; `None` if there is nothing to report.
    fn due(&self, now: Instant) -> Option<Instant> {
        (self.untold > 0).then(|| self.told.map_or(now, |told| told + QUIET))
    }
}

/// The changes of one state, such as whether the queue is full. Usually each change has a log line
/// of its own. If the state flaps, the next line comes [`QUIET`] after an earlier one, and reports
/// all changes up to its time.
struct Flap {
    /// The number of log lines that may be written within [`QUIET`].
    burst: usize,
    /// The times of the last log lines: at most `burst` of them, the oldest first.
    told: VecDeque<Instant>,
    /// `true`: the last log line reported several changes.
    flaps: bool,
    changes: u64,
    /// The state after the last change; `None` if the log shows this state already.
    state: Option<State>,
}

impl Flap {
    fn new(burst: usize) -> Self {
        Self { burst, told: VecDeque::new(), flaps: false, changes: 0, state: None }
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        self.state.as_ref()?;
        let is_calm = self.changes == 1 && !self.flaps;
        let limit = match is_calm {
            true if self.told.len() < self.burst => None,
            true => self.told.front(),
            false => self.told.back(),
        };
        Some(limit.map_or(now, |told| *told + QUIET))
    }

    /// Takes the state and the number of its changes, for a log line that is written at `now`.
    fn take(&mut self, now: Instant) -> Option<(State, u64)> {
        let state = self.state.take()?;
        let changes = std::mem::take(&mut self.changes);
        self.flaps = changes > 1;
        if self.told.len() == self.burst {
            self.told.pop_front();
        }
        self.told.push_back(now);
        Some((state, changes))
    }
}

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
                    tracing::error!(file = detail, count = events, total, "{message}");
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
    /// Takes the log lines that are due at `now`, or, if `all` is `true`, all of them. Also returns
    /// the time at which the next one is due; `None` if no other note waits.
    fn take(&mut self, now: Instant, all: bool) -> (Vec<Line>, Option<Instant>) {
        let (mut lines, mut next) = (Vec::new(), None::<Instant>);
        let mut wait = |due: Instant| next = Some(next.map_or(due, |next| next.min(due)));
        for flap in [&mut self.room, &mut self.disk] {
            match flap.due(now) {
                Some(due) if due > now && !all => wait(due),
                Some(_) => {
                    let taken = flap.take(now);
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
    /// Returns the handle that notes the losses of this output, or, for [`QUEUE`], of the queue.
    pub fn losses(&self, name: &str) -> Losses {
        let party = |notes: &mut Notes, name: &str| {
            if let Some(party) = notes.parties.get(name) {
                return Arc::clone(party);
            }
            let name = Arc::<str>::from(name);
            let (keeps, lost) = (AtomicBool::new(true), AtomicU64::new(0));
            let last = Mutex::default();
            let party = Arc::new(Party { name: Arc::clone(&name), keeps, lost, last });
            notes.parties.insert(name, Arc::clone(&party));
            party
        };
        let mut notes = lock(&self.shared.notes);
        let (party, queue) = (party(&mut notes, name), party(&mut notes, QUEUE));
        drop(notes);
        Losses { reports: self.clone(), party, queue }
    }

    /// Notes that the queue, or its disk, has changed to `state`. A log line follows.
    pub fn changed(&self, state: State) {
        let mut notes = lock(&self.shared.notes);
        match state {
            State::QueueFull { .. } => {
                notes.full_since.get_or_insert_with(Instant::now);
            }
            State::QueueHasRoom { .. } => notes.full_since = None,
            State::DiskRefuses { .. }
            | State::DiskIsWell
            | State::DiskHangs { .. }
            | State::DiskAnswers => {}
        }
        let flap = match state {
            State::QueueFull { .. } | State::QueueHasRoom { .. } => &mut notes.room,
            State::DiskRefuses { .. }
            | State::DiskIsWell
            | State::DiskHangs { .. }
            | State::DiskAnswers => &mut notes.disk,
        };
        flap.changes += 1;
        flap.state = Some(state);
        drop(notes);
        self.shared.news.notify_one();
    }

    /// Returns the time since the queue became full; `None` if it is not full.
    pub fn full_for(&self) -> Option<Duration> {
        lock(&self.shared.notes).full_since.map(|since| since.elapsed())
    }

    /// Returns the time since the last loss of this output, even of a removed one; `None` if there
    /// was no loss. The name `queue` stands for events that no output can get.
    pub fn lost_ago(&self, name: &str) -> Option<Duration> {
        let party = lock(&self.shared.notes).parties.get(name).map(Arc::clone)?;
        let last = *lock(&party.last);
        last.map(|last| last.elapsed())
    }

    /// Returns the time since the last loss of any output or of the queue, if there was one.
    pub fn any_lost_ago(&self) -> Option<Duration> {
        let parties: Vec<_> = lock(&self.shared.notes).parties.values().map(Arc::clone).collect();
        let last = parties.iter().filter_map(|party| *lock(&party.last)).max();
        last.map(|last| last.elapsed())
    }

    /// Writes log lines about the notes until `stop` is cancelled. One task of the relay runs it.
    pub async fn tell(self, stop: CancellationToken) {
        loop {
            let next = self.write(false);
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

    /// Writes the log lines that are due, or all of them. Returns when the next one is due.
    fn write(&self, all: bool) -> Option<Instant> {
        let mut notes = lock(&self.shared.notes);
        let (lines, next) = notes.take(Instant::now(), all);
        notes.writers += 1;
        drop(notes);
        lines.iter().for_each(Line::write);
        lock(&self.shared.notes).writers -= 1;
        self.shared.written.notify_all();
        next
    }

    /// Writes a log line for every note that has none yet. Then waits, for at most one second,
    /// until the task of [`Reports::tell`] has written its lines on another thread. Otherwise the
    /// process could end before them.
    pub fn flush(&self) {
        self.write(true);
        let notes = lock(&self.shared.notes);
        let written =
            self.shared.written.wait_timeout_while(notes, FLUSH_TIMEOUT, |it| it.writers > 0);
        drop(written);
    }
}

/// Writes the notes that have no log line yet, so that the log reports every loss.
impl Drop for Shared {
    fn drop(&mut self) {
        let notes = self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
        notes.take(Instant::now(), true).0.iter().for_each(Line::write);
    }
}

/// Notes losses of one output, or of the queue. Handles with the same name share their counts.
#[derive(Clone)]
pub struct Losses {
    pub(crate) reports: Reports,
    party: Arc<Party>,
    /// The counts of the queue, which [`Losses::events`] adds to those of an output.
    queue: Arc<Party>,
}

impl Losses {
    /// Notes that `events` more events are lost. A log line shows the `detail`, such as an error,
    /// of the first loss since the previous line.
    pub fn add(&self, loss: Loss, events: u64, detail: Option<&str>) {
        if events > 0 {
            self.party.lost.fetch_add(events, Ordering::Relaxed);
            *lock(&self.party.last) = Some(Instant::now());
        }
        self.note(loss, events, detail);
    }

    /// Notes a loss for the log only: [`Losses::events`] does not change.
    pub fn note(&self, loss: Loss, events: u64, detail: Option<&str>) {
        if events == 0 {
            return;
        }
        let mut notes = lock(&self.reports.shared.notes);
        let tally = notes.losses.entry((loss, Arc::clone(&self.party.name))).or_default();
        tally.total += events;
        let is_first = tally.untold == 0;
        tally.untold += events;
        if is_first {
            tally.detail = detail.map(str::to_owned);
            self.reports.shared.news.notify_one();
        }
    }

    /// Returns the number of lost events: those of this output, and those that no output could get.
    pub fn events(&self) -> u64 {
        let lost = |party: &Party| party.lost.load(Ordering::Relaxed);
        lost(&self.party) + lost(&self.queue)
    }

    /// Returns `true` if the queue keeps events until this output has them, and also before the
    /// first call of [`Losses::keep`].
    pub fn keeps(&self) -> bool {
        self.party.keeps.load(Ordering::Relaxed)
    }

    /// Sets the value that [`Losses::keeps`] returns.
    pub fn keep(&self, keeps: bool) {
        self.party.keeps.store(keeps, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the lines that are due, and returns them with the time until the next one.
    fn due(reports: &Reports) -> (Vec<Line>, Option<Duration>) {
        let now = Instant::now();
        let (lines, next) = lock(&reports.shared.notes).take(now, false);
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
        // Another kind of loss, and another output, do not wait for this one.
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
        let (lines, next) = lock(&reports.shared.notes).take(Instant::now(), true);
        assert_eq!((lines, next), (vec![lost(Loss::Missing, "a", 5, 6, Some("7"))], None));
        assert_eq!(lock(&reports.shared.notes).take(Instant::now(), true).0, []);
    }

    /// A log in which writing a line takes [`SlowLog::LINE`].
    #[derive(Clone)]
    struct SlowLog(Arc<Mutex<Vec<u8>>>);

    impl SlowLog {
        const LINE: Duration = Duration::from_millis(300);
    }

    impl std::io::Write for SlowLog {
        #[expect(clippy::disallowed_methods, reason = "the test has no runtime")]
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(Self::LINE);
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The task has taken a note and is writing its line on another thread when the process ends.
    #[test]
    fn the_end_waits_for_a_line_that_another_thread_is_writing() {
        let (reports, text) = (Reports::default(), Arc::new(Mutex::new(Vec::new())));
        reports.losses("a").add(Loss::Undelivered, 10, None);
        let log = SlowLog(Arc::clone(&text));
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        let writer = {
            let reports = reports.clone();
            std::thread::spawn(move || {
                tracing::subscriber::with_default(subscriber, || reports.write(false));
            })
        };
        while lock(&reports.shared.notes).losses.values().any(|tally| tally.untold > 0) {
            std::thread::yield_now();
        }
        reports.flush();
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        assert!(text.contains("events=10") && text.contains("lost and counted"), "{text:?}");
        writer.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_loss_has_an_age_for_each_output_and_for_all() {
        let reports = Reports::default();
        let (losses, second) = (reports.losses("a"), Duration::from_secs(1));
        losses.add(Loss::DropOldest, 0, None);
        losses.note(Loss::DeadLetters, 5, None);
        assert_eq!((reports.lost_ago("a"), reports.any_lost_ago()), (None, None));
        losses.add(Loss::DropOldest, 3, None);
        tokio::time::advance(5 * second).await;
        reports.losses(QUEUE).add(Loss::DropNewest, 1, None);
        tokio::time::advance(2 * second).await;
        assert_eq!(reports.lost_ago("a"), Some(7 * second));
        assert_eq!(reports.lost_ago(QUEUE), Some(2 * second));
        assert_eq!(reports.any_lost_ago(), Some(2 * second));
        assert_eq!(reports.lost_ago("nobody"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_full_since_it_was_said_to_be_until_it_has_room() {
        let (reports, second) = (Reports::default(), Duration::from_secs(1));
        assert_eq!(reports.full_for(), None);
        reports.changed(State::QueueFull { bytes: 9, when_full: "reject".to_owned() });
        tokio::time::advance(3 * second).await;
        reports.changed(State::DiskIsWell);
        assert_eq!(reports.full_for(), Some(3 * second));
        reports.changed(State::QueueHasRoom { bytes: 1 });
        assert_eq!(reports.full_for(), None);
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
        // The last change of a burst has a line too.
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
        let untold = || -> u64 {
            lock(&reports.shared.notes).losses.values().map(|tally| tally.untold).sum()
        };
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
