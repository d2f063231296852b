//! Dead letters: events that their consumer will not get, kept in files for whoever looks into it.
//!
//! A letter is one line, `{"time":…,"output":…,"reason":…,"event":{…}}`, with the event's bytes as they were received. A thread
//! of its own writes them (`files`): what waits is written and synced together, and only then does a delivery finish
//! the claims. A disk that refuses or hangs costs the letter and holds up nobody for long: the event is lost then, and
//! counted as such.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lines::lines;
use crate::config::Config;
use crate::telemetry::DroppedLetters;
use crate::telemetry::Telemetry;

mod files;

use files::Files;
use files::Line;

/// Letters that are written and synced together. What one output has handed over and not heard of is bounded by the same.
pub(super) const GROUP_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What one output has handed over and not heard of, in claims. An event refused alone is a claim
/// of its own.
pub(super) const CLAIMS_MAX: usize = 4096;

/// Jobs that wait for the thread, those of all outputs and those that nobody waits for any more.
/// One more is not written.
const JOBS_MAX: usize = 16 * CLAIMS_MAX;

/// A letter that is not safe after so long is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the end of the relay waits for the thread.
const CLOSING: Duration = Duration::from_secs(2);

/// Longer reasons are cut.
const REASON_BYTES_MAX: usize = 1024;

/// The place for dead letters. Cheap to clone; all clones are the same. Owned by `relay`, which ends it.
#[derive(Clone)]
pub struct DeadLetters {
    shared: Arc<Shared>,
}

struct Shared {
    dropped: DroppedLetters,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    place: Option<Place>,
    writer: Option<Writer>,
    /// Threads that have been told to end, or will be.
    threads: Vec<oneshot::Receiver<Infallible>>,
}

/// As the config says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    max_bytes: u64,
}

/// A thread that writes into one directory. It ends when nobody has `jobs` any more, after those it was given.
struct Writer {
    jobs: mpsc::Sender<Job>,
    busy: Arc<Busy>,
}

/// Since when the thread has been at work on a group.
#[derive(Default)]
struct Busy(Mutex<Option<Instant>>);

impl Busy {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn is_stuck(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }
}

/// Events of one output, given up for one reason.
struct Job {
    output: Arc<str>,
    reason: Arc<str>,
    lines: Arc<Lines>,
    done: oneshot::Sender<Written>,
}

/// The lines of a job: whole ones, each ended by `\n`. The thread takes them to write them; a
/// delivery that has waited in vain takes them back, so that a disk that hangs keeps no memory, and
/// no event that was counted as lost is written later.
struct Lines(Mutex<Option<Vec<Bytes>>>);

impl Lines {
    fn take(&self) -> Option<Vec<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A job that the thread has taken: its letters are written, whoever still waits for them.
struct Taken {
    output: Arc<str>,
    reason: Arc<str>,
    lines: Vec<Bytes>,
    done: oneshot::Sender<Written>,
}

impl Taken {
    /// `None` where the delivery has taken its lines back.
    fn of(job: Job) -> Option<Self> {
        let Job { output, reason, lines, done } = job;
        Some(Self { output, reason, lines: lines.take()?, done })
    }

    fn bytes(&self) -> u64 {
        self.lines.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// What became of some letters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Events that are safe in the files.
    pub(super) events: u64,
    /// Why the others are not.
    pub(super) error: Option<String>,
}

impl Written {
    fn failed(error: impl Into<String>) -> Self {
        Self { events: 0, error: Some(error.into()) }
    }
}

/// Letters that are being written, also where this is dropped.
pub(super) struct Writing {
    done: oneshot::Receiver<Written>,
    deadline: Instant,
    lines: Arc<Lines>,
}

impl Writing {
    fn new(done: oneshot::Receiver<Written>, lines: Arc<Lines>) -> Self {
        Self { done, deadline: Instant::now() + PATIENCE, lines }
    }

    /// Waits for their end, for ten seconds at most since they were handed over. Those that the
    /// thread has not begun with by then are taken back.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped; not to be called again when it has returned.
    pub(super) async fn done(&mut self) -> Written {
        match tokio::time::timeout_at(self.deadline, &mut self.done).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Written::failed("the thread that writes them has ended"),
            Err(_) => {
                drop(self.lines.take());
                Written::failed("the disk does not answer")
            }
        }
    }
}

impl DeadLetters {
    /// Nowhere yet: [`DeadLetters::reconfigure`] gives them a place.
    #[must_use]
    pub fn new(telemetry: &Telemetry) -> Self {
        let dropped = telemetry.dead_letters_dropped();
        Self { shared: Arc::new(Shared { dropped, state: Mutex::default() }) }
    }

    /// From now on they go where this says. Those handed over before still go to the place before.
    pub fn reconfigure(&self, config: &Config) {
        let max_bytes = config.dead_letter.max_bytes;
        let place = |directory| Place { directory, max_bytes };
        self.set(config.dead_letter_directory().map(place));
    }

    fn set(&self, place: Option<Place>) {
        let mut state = self.lock();
        if state.place != place {
            state.place = place;
            // The thread ends by that, and one that hangs in a dead disk keeps nobody from the new place.
            state.writer = None;
            let started = self.start(&mut state);
            drop(state);
            tell(started);
        }
    }

    /// Waits until what was handed over is written, within bounds. After the deliveries have ended.
    pub async fn close(&self) {
        let threads = {
            let mut state = self.lock();
            (state.place, state.writer) = (None, None);
            std::mem::take(&mut state.threads)
        };
        let ended = async {
            for thread in threads {
                // It says nothing, and ends.
                thread.await.ok();
            }
        };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            tracing::error!("the disk of the dead letters does not answer at the end");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread, where there is a directory for it.
    fn start(&self, state: &mut State) -> io::Result<()> {
        let Some(Place { directory, max_bytes }) = &state.place else { return Ok(()) };
        let files = Files::new(directory, *max_bytes, self.shared.dropped.clone());
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let (living, ended) = oneshot::channel();
        let busy = Arc::<Busy>::default();
        let (at_work, directory) = (Arc::clone(&busy), directory.clone());
        let started =
            std::thread::Builder::new().name("dead-letters".to_owned()).spawn(move || {
                let _living: oneshot::Sender<Infallible> = living;
                write_all(files, &directory, queue, &at_work);
            });
        state.threads.retain_mut(|thread| {
            matches!(thread.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        });
        state.threads.push(ended);
        started.map(|_| state.writer = Some(Writer { jobs, busy }))
    }

    /// Hands over whole lines. `None`: there is no place for dead letters.
    pub(super) fn write(
        &self,
        output: &Arc<str>,
        lines: Vec<Bytes>,
        reason: &Arc<str>,
    ) -> Option<Writing> {
        let mut state = self.lock();
        state.place.as_ref()?;
        let (done, waiting) = oneshot::channel();
        let (output, reason) = (Arc::clone(output), Arc::clone(reason));
        let lines = Arc::new(Lines(Mutex::new(Some(lines))));
        let writing = Writing::new(waiting, Arc::clone(&lines));
        let mut job = Job { output, reason, lines, done };
        let mut started = Ok(());
        // One that has panicked, or could not be started, gets a successor.
        for _ in 0..2 {
            match &state.writer {
                Some(writer) if writer.busy.is_stuck() => {
                    job.done.send(Written::failed("the disk does not answer")).ok();
                    break;
                }
                Some(writer) => match writer.jobs.try_send(job) {
                    Ok(()) => break,
                    Err(TrySendError::Full(job)) => {
                        job.done.send(Written::failed("the disk is too slow for them")).ok();
                        break;
                    }
                    Err(TrySendError::Closed(returned)) => job = returned,
                },
                None => {}
            }
            started = self.start(&mut state);
        }
        drop(state);
        tell(started);
        Some(writing)
    }
}

fn tell(started: io::Result<()>) {
    if let Err(error) = started {
        tracing::error!(%error, "no thread for the dead letters");
    }
}

/// The thread.
fn write_all(mut files: Files, directory: &Path, mut queue: mpsc::Receiver<Job>, busy: &Busy) {
    let directory = directory.display();
    match files.look() {
        Ok(0) => {}
        Ok(files) => tracing::info!(%directory, files, "dead letters found"),
        Err(error) => tracing::error!(
            %directory,
            %error,
            "dead letters can't be written, rejected events will be dropped and counted"
        ),
    }
    while let Some(first) = queue.blocking_recv() {
        let Some(first) = Taken::of(first) else { continue };
        busy.set(Some(Instant::now()));
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && let Ok(next) = queue.try_recv()
        {
            if let Some(next) = Taken::of(next) {
                bytes += next.bytes();
                group.push(next);
            }
        }
        let results = write_group(&mut files, &group);
        busy.set(None);
        for (job, written) in group.into_iter().zip(results) {
            // Nobody waits any more where that took too long.
            job.done.send(written).ok();
        }
    }
}

fn write_group(files: &mut Files, group: &[Taken]) -> Vec<Written> {
    let time = rfc3339(SystemTime::now());
    let heads: Vec<Vec<u8>> = group.iter().map(|job| head(&time, job)).collect();
    let letters: Vec<Line<'_>> = group
        .iter()
        .zip(&heads)
        .flat_map(|(job, head)| lines(&job.lines).map(move |event| Line { head, event }))
        .collect();
    let mut results = files.write(&letters).into_iter();
    let written = |job: &Taken| {
        let mut written = Written { events: 0, error: None };
        for result in results.by_ref().take(lines(&job.lines).count()) {
            match result {
                Ok(()) => written.events += 1,
                Err(error) => written.error = Some(error),
            }
        }
        written
    };
    group.iter().map(written).collect()
}

/// A letter up to its event.
fn head(time: &str, job: &Taken) -> Vec<u8> {
    let mut reason = &*job.reason;
    if reason.len() > REASON_BYTES_MAX {
        reason = reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default();
    }
    let (output, reason) = (serde_json::Value::from(&*job.output), serde_json::Value::from(reason));
    format!(r#"{{"time":"{time}","output":{output},"reason":{reason},"event":"#).into_bytes()
}

/// UTC with milliseconds, as RFC 3339 has it.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = date(days);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The day so many days after 1970-01-01. Years are counted from March, so that the leap day is their last.
fn date(days: u64) -> (u64, u64, u64) {
    const IN_400_YEARS: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / IN_400_YEARS, days % IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
pub(super) mod tests;
